//! Registers that are mapped, of a function that may vanish.
//!
//! Knows that a store or a load there can fail, and how that is seen afterwards; must not know which registers
//! these are.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::DoorbellPage;
use crate::memory::{Guarded, Map};

/// A mapped part of a BAR. Should its memory vanish, and there be a
/// [handler](crate::install_sigbus_handler) of what comes of that, it is lost: stores go nowhere, and what is
/// loaded means nothing.
pub(super) struct Bar {
    // Declared in the order of release.
    guard: Guarded,
    map: Map,
}

impl Bar {
    /// Maps `len` bytes of a file from `offset` on.
    pub(super) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> std::io::Result<Bar> {
        let map = Map::new(file, offset, len)?;
        // SAFETY: all pages of the mapping, which is dropped after its guard. They are accessed as volatile or
        // atomic words only, and nothing relies on what these are but after a look at `is_lost`.
        let guard =
            unsafe { Guarded::new(map.base(), len.next_multiple_of(rustix::param::page_size()), None)? };
        Ok(Bar { guard, map })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.map.base()
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Gives every page memory now.
    pub(super) fn populate(&self) -> std::io::Result<()> {
        self.map.populate(0, self.map.len())
    }

    /// Whether it has vanished. What was loaded before is good if this says no afterwards.
    pub(super) fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// `len` bytes of doorbells from `offset` on; `None` if they do not fit.
    pub(super) fn doorbells(self: &Arc<Bar>, offset: u64, len: u64) -> Option<DoorbellPage> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len() as u64);
        if !fits || !offset.is_multiple_of(4) {
            return None;
        }
        // SAFETY: within the mapping, as checked.
        let base = unsafe { self.base().byte_add(offset as usize) }.cast::<AtomicU32>();
        // SAFETY: the mapping is page-aligned, spans `len` bytes from there, and lives with the Arc; so does what
        // it may be replaced with.
        Some(unsafe { DoorbellPage::new(base, len, Arc::clone(self) as _) })
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bar").field("len", &self.len()).field("lost", &self.is_lost()).finish()
    }
}
