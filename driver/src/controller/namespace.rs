//! Namespaces as Identify describes them, and what has become of them since.
//!
//! Knows what may change under a namespace in use, and what may not; must not know how that is found out.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::queue::CacheLoss;
use crate::spec::command::CSI_NVM;
use crate::spec::identify::{self, FLBAS_EXTENDED, NamespaceDescriptor};

/// An active namespace of a controller. Clones of it are the same one.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Identifies the controller among all of this process.
    pub(super) controller: u64,
    pub(super) identity: Box<identify::Namespace>,
    pub(super) descriptors: Vec<NamespaceDescriptor>,
    pub(crate) live: Arc<Live>,
}

/// What has become of a namespace since it was identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceState {
    /// It is there; it may have another size.
    Active,
    /// It is not active any more, or another one has its NSID. Identify it anew if it comes back.
    Detached,
    /// It has another block size, metadata or protection, or a size that cannot be. Identify it anew, and
    /// add it to pollers anew.
    Reformatted,
}

/// What changes of a namespace while there are handles of it.
#[derive(Debug)]
pub(crate) struct Live {
    nsid: u32,
    blocks: AtomicU64,
    state: AtomicU8,
    /// What a reset may have cost it.
    cache: Arc<CacheLoss>,
    identifiers: ([u8; 16], [u8; 8]),
    format: Format,
}

/// What must stay the same as long as a namespace is in use.
#[derive(Debug, PartialEq, Eq)]
struct Format {
    block_size: Option<u32>,
    metadata: u16,
    extended: bool,
    protection: u8,
}

impl Format {
    fn of(identity: &identify::Namespace) -> Format {
        Format {
            block_size: block_size(identity),
            metadata: identity.format().ms(),
            extended: identity.flbas & FLBAS_EXTENDED != 0,
            protection: identity.dps & 0b111,
        }
    }
}

/// Bytes of a block, `None` where the format in use is not one of the formats, or has no size that can be.
fn block_size(identity: &identify::Namespace) -> Option<u32> {
    identity.format().block_size().filter(|_| identity.has_format())
}

/// Whether a namespace of so many blocks has fewer than 2^64 bytes, and any.
fn can_be(blocks: u64, block_size: u32) -> bool {
    blocks > 0 && blocks.checked_mul(block_size.into()).is_some()
}

impl Live {
    pub(super) fn new(nsid: u32, identity: &identify::Namespace) -> Live {
        Live {
            nsid,
            blocks: AtomicU64::new(identity.nsze),
            state: AtomicU8::new(NamespaceState::Active as u8),
            cache: Arc::default(),
            identifiers: (identity.nguid, identity.eui64),
            format: Format::of(identity),
        }
    }

    /// Size in logical blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    pub(crate) fn cache(&self) -> Arc<CacheLoss> {
        Arc::clone(&self.cache)
    }

    pub(crate) fn state(&self) -> NamespaceState {
        match self.state.load(Ordering::Relaxed) {
            state if state == NamespaceState::Active as u8 => NamespaceState::Active,
            state if state == NamespaceState::Detached as u8 => NamespaceState::Detached,
            _ => NamespaceState::Reformatted,
        }
    }

    /// What Identify says now; `None` if there is no such namespace. One that is detached or reformatted
    /// stays that, whatever comes afterwards.
    fn renew(&self, identity: Option<&identify::Namespace>) {
        if self.state() != NamespaceState::Active {
            return;
        }
        let state = match identity {
            // An inactive namespace is all zeros.
            None => NamespaceState::Detached,
            Some(now) if now.nsze == 0 && now.ncap == 0 => NamespaceState::Detached,
            Some(now) if (now.nguid, now.eui64) != self.identifiers => NamespaceState::Detached,
            Some(now) if Format::of(now) != self.format => NamespaceState::Reformatted,
            Some(now) => match self.format.block_size {
                Some(size) if can_be(now.nsze, size) => {
                    return self.blocks.store(now.nsze, Ordering::Relaxed);
                }
                _ => NamespaceState::Reformatted,
            },
        };
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// The namespaces of a controller that there are handles of.
#[derive(Debug, Default)]
pub(super) struct Known {
    all: Mutex<Vec<Weak<Live>>>,
    /// Changes with each change of any of them.
    epoch: AtomicU64,
}

impl Known {
    pub(super) fn add(&self, live: &Arc<Live>) {
        let mut all = self.all();
        all.retain(|live| live.strong_count() > 0);
        all.push(Arc::downgrade(live));
    }

    /// The NSIDs of those that are still in use, each once.
    pub(super) fn nsids(&self, wanted: impl Fn(u32) -> bool) -> Vec<u32> {
        let all = self.all();
        let in_use = all.iter().filter_map(Weak::upgrade).map(|live| live.nsid);
        let mut nsids: Vec<u32> = in_use.filter(|nsid| wanted(*nsid)).collect();
        nsids.sort_unstable();
        nsids.dedup();
        nsids
    }

    /// What Identify says of a namespace now.
    pub(super) fn renew(&self, nsid: u32, identity: Option<&identify::Namespace>) {
        for live in self.all().iter().filter_map(Weak::upgrade).filter(|live| live.nsid == nsid) {
            live.renew(identity);
        }
        // Who sees this sees what was changed.
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// What was written to any of them and not flushed may be lost.
    pub(super) fn lose_caches(&self) {
        for live in self.all().iter().filter_map(Weak::upgrade) {
            live.cache.lose();
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn all(&self) -> MutexGuard<'_, Vec<Weak<Live>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Namespace {
    /// Namespace Identifier.
    pub fn nsid(&self) -> u32 {
        self.live.nsid
    }

    /// Identify Namespace data (NVM Command Set 1.0, section 4.1.5.1), as of the time when it was identified.
    pub fn identity(&self) -> &identify::Namespace {
        &self.identity
    }

    /// Namespace Identification Descriptors (Base 2.0, section 5.17.2.3); empty before version 1.3.
    pub fn descriptors(&self) -> &[NamespaceDescriptor] {
        &self.descriptors
    }

    /// Size in logical blocks: NSZE, as the controller reported it last. It follows the namespace when the
    /// controller says that it changed, soon after.
    pub fn blocks(&self) -> u64 {
        self.live.blocks()
    }

    /// What has become of it since it was identified.
    pub fn state(&self) -> NamespaceState {
        self.live.state()
    }

    /// Bytes of a logical block, `None` if the controller reports a size that cannot be.
    pub fn block_size(&self) -> Option<u32> {
        block_size(&self.identity)
    }

    /// Bytes of metadata with each block.
    pub fn metadata_size(&self) -> u16 {
        self.identity.format().ms()
    }

    /// Whether this driver can read and write it, or why not.
    pub(crate) fn usable(&self) -> Result<u32, String> {
        let (nsid, identity) = (self.nsid(), &self.identity);
        match self.state() {
            NamespaceState::Active => {}
            NamespaceState::Detached => {
                return Err(format!("namespace {nsid} is detached; attach it, and identify it anew"));
            }
            NamespaceState::Reformatted => {
                return Err(format!("namespace {nsid} has another format by now; identify it anew"));
            }
        }
        if !identity.has_format() {
            let (index, last) = (identity.format_index(), identity.nlbaf);
            return Err(format!(
                "namespace {nsid}: its LBA format is number {index}, and the last is {last}"
            ));
        }
        let Some(block_size) = self.block_size() else {
            return Err(format!("namespace {nsid}: LBADS {} is no block size", identity.format().lbads()));
        };
        let other = self.descriptors.iter().find_map(|descriptor| match descriptor {
            NamespaceDescriptor::Csi(csi) if *csi != CSI_NVM => Some(*csi),
            _ => None,
        });
        if let Some(csi) = other {
            return Err(format!("namespace {nsid} has command set {csi}; only NVM (0) is supported"));
        }
        if self.metadata_size() > 0 {
            let place = if identity.flbas & FLBAS_EXTENDED != 0 { "interleaved" } else { "separate" };
            return Err(format!(
                "namespace {nsid} is formatted with {} bytes of {place} metadata; format it without (nvme format)",
                self.metadata_size()
            ));
        }
        if !can_be(self.blocks(), block_size) {
            return Err(format!("namespace {nsid}: a size of {} blocks cannot be", self.blocks()));
        }
        Ok(block_size)
    }
}
