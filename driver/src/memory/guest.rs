//! A guest's RAM, as part of a space.
//!
//! Knows guest addresses; must not know what a guest asks for.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::chain::{MemoryChain, Segment};
use super::region::Backing;
use super::source::Source;
use super::space::{DmaSpace, Registered};
use crate::{Error, Result};

impl DmaSpace {
    /// Makes a guest's RAM part of the space: every controller reaches it, at one IOVA for each of
    /// its regions, and the registration turns guest addresses into chains.
    ///
    /// The guest may write its memory at any time, so there are no slices of it: chains of it are read
    /// and written by copying ([`MemoryChain::copy_to_slice`] and the like). What a device writes
    /// is not recorded as dirty anywhere, which is why memory with a dirty bitmap is not accepted.
    ///
    /// The memory is kept until all registrations and segments of it are dropped and it is unmapped
    /// everywhere; for ever, if a device that reaches it cannot be stopped.
    ///
    /// # Errors
    /// If a region is not whole pages of 4096 bytes or not mapped for reading and writing, is (in part)
    /// in this space already, finds no room in the IOVA window, or cannot be mapped for an attached
    /// controller.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use kiovec::memory::{DmaSpace, vm_memory::{GuestAddress, GuestMemoryMmap}};
    ///
    /// let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    /// let space = DmaSpace::new()?;
    /// let guest = space.register_guest(Arc::new(ram))?;
    /// let chain = guest.chain(GuestAddress(0x1200), 512)?;
    /// # assert_eq!(chain.len(), 512);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn register_guest(&self, memory: Arc<GuestMemoryMmap>) -> Result<GuestRegistration> {
        let part = |region: &vm_memory::GuestRegionMmap| {
            let start = region.start_addr().raw_value();
            let refuse = |what: &str| {
                let len = region.len();
                Err(Error::InvalidInput(format!("guest memory at {start:#x} of {len} bytes {what}")))
            };
            let both = libc::PROT_READ | libc::PROT_WRITE;
            if region.prot() & both != both {
                return refuse("is not mapped for reading and writing; map it with PROT_READ | PROT_WRITE");
            }
            let Some(base) = NonNull::new(region.as_ptr()) else { return refuse("is mapped nowhere") };
            // Of a private mapping, the file is not what is in memory.
            let file = region.file_offset().filter(|_| region.flags() & libc::MAP_SHARED != 0);
            let bytes = NonNull::slice_from_raw_parts(base, region.size());
            // SAFETY: a guest's region stays mapped as it is until it is dropped, and `memory` keeps it.
            let backing = unsafe { Backing::external(bytes, file.cloned(), Box::new(Arc::clone(&memory)))? };
            let registered = self.add_external(backing)?;
            let source = Arc::new(Source::shared(Arc::clone(&registered)));
            Ok(Part { guest: start..start + region.len(), iova: source.iova().start, source, registered })
        };
        Ok(GuestRegistration { parts: memory.iter().map(part).collect::<Result<_>>()? })
    }
}

/// A guest's RAM in a space. Dropping it, and all clones of it, ends the registration as soon as no
/// segment of it is left: whoever drops the last one unmaps the memory.
///
/// A segment counts itself in and out of the clone that made it. Threads that make segments should
/// have a clone each, so that they do not pass these counts from core to core.
pub struct GuestRegistration {
    /// Ascending and disjoint.
    parts: Box<[Part]>,
}

/// A region of the guest's.
struct Part {
    guest: Range<u64>,
    /// Where it begins for devices.
    iova: u64,
    source: Arc<Source>,
    registered: Arc<Registered>,
}

impl GuestRegistration {
    /// `len` bytes of the guest (1 or more), from an address on: one segment, or one for each of the
    /// guest's regions that they lie in. Other chains may have the same bytes.
    ///
    /// For the I/O path: a chain of one segment costs a look among the guest's regions and one
    /// uncontended count; no lock, no system call, no heap.
    ///
    /// # Errors
    /// If some of the bytes are not RAM, or `len` is 0.
    #[inline]
    pub fn chain(&self, address: GuestAddress, len: usize) -> Result<MemoryChain> {
        let start = address.raw_value();
        // Nothing, if it is beyond all addresses: which is refused, too.
        let wanted = start..start.checked_add(len as u64).unwrap_or(start);
        let parts = &self.parts[self.parts.partition_point(|part| part.guest.end <= start)..];
        match parts.first() {
            Some(part) if !wanted.is_empty() && part.guest.start <= start && wanted.end <= part.guest.end => {
                Ok(part.segment(wanted).into())
            }
            _ => across(parts, wanted),
        }
    }
}

impl Part {
    /// Guest addresses of this region.
    #[inline]
    fn segment(&self, wanted: Range<u64>) -> Segment {
        let len = wanted.end - wanted.start;
        let iova = self.iova + (wanted.start - self.guest.start);
        Segment::new(iova, len as usize, len, Arc::clone(&self.source))
    }
}

/// A chain of guest addresses that are not all in one region.
#[cold]
fn across(parts: &[Part], wanted: Range<u64>) -> Result<MemoryChain> {
    let mut chain = MemoryChain::new();
    let mut at = wanted.start;
    let mut parts = parts.iter();
    while at < wanted.end {
        let Some(part) = parts.next().filter(|part| part.guest.start <= at) else { break };
        let upto = wanted.end.min(part.guest.end);
        chain.push(part.segment(at..upto));
        at = upto;
    }
    if wanted.is_empty() || at < wanted.end {
        let what = format!("guest addresses {wanted:#x?} are none, or not all of them are RAM");
        return Err(Error::InvalidInput(what));
    }
    Ok(chain)
}

impl Clone for GuestRegistration {
    /// Not for the I/O path: it allocates.
    fn clone(&self) -> GuestRegistration {
        let parts = self.parts.iter().map(|part| Part {
            guest: part.guest.clone(),
            iova: part.iova,
            source: Arc::new(Source::shared(Arc::clone(&part.registered))),
            registered: Arc::clone(&part.registered),
        });
        GuestRegistration { parts: parts.collect() }
    }
}

impl fmt::Debug for GuestRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parts.iter().map(|part| (&part.guest, &part.source))).finish()
    }
}
