//! Where segments come from: a region, and who has which part of it.
//!
//! Knows which bytes of a region are taken; must not know how a region is mapped.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::domain::Access;
use super::ranges::FreeRanges;
use super::region::Region;
use super::space::Registered;

/// What a segment holds on to. The only count that making and dropping a segment changes is the
/// one of its source: whoever makes segments per I/O has a source of his own, whose count, on a
/// cache line of its own, no other thread touches.
#[repr(align(64))]
pub(super) struct Source {
    region: Arc<Region>,
    /// Identifies the space, for the check that a chain belongs to it.
    space: u64,
    /// Which bytes nobody has; `None` for memory that is shared: anybody may have any part of it.
    free: Option<Mutex<FreeRanges>>,
    /// Of external memory: what ends its registration when the last source is gone.
    _registered: Option<Arc<Registered>>,
}

impl Source {
    /// A source of segments that do not overlap.
    pub(super) fn exclusive(region: Arc<Region>, space: u64, registered: Option<Arc<Registered>>) -> Source {
        let Range { start, end } = region.iova();
        let free = Some(Mutex::new(FreeRanges::new(0..end - start)));
        Source { region, space, free, _registered: registered }
    }

    /// A source of segments of memory that is not ours alone.
    pub(super) fn shared(registered: Arc<Registered>) -> Source {
        let (region, space) = (Arc::clone(registered.region()), registered.space());
        Source { region, space, free: None, _registered: Some(registered) }
    }

    #[inline]
    pub(super) fn is_shared(&self) -> bool {
        self.free.is_none()
    }

    pub(super) fn iova(&self) -> Range<u64> {
        self.region.iova()
    }

    #[inline]
    pub(super) fn space(&self) -> u64 {
        self.space
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(super) fn access(&self) -> Access {
        self.region.access()
    }

    /// Where an address is in this process.
    pub(super) fn pointer(&self, iova: u64) -> NonNull<u8> {
        self.region.pointer(iova)
    }

    /// Takes `len` bytes at an address that is a multiple of `align`; `align` is at most 2 MiB.
    pub(super) fn take(&self, len: u64, align: u64) -> Option<u64> {
        let offset = self.with_free(|free| free.take(len, align))??;
        Some(self.region.iova().start + offset)
    }

    /// Takes a range of offsets, not empty, if nobody has any of it.
    pub(super) fn take_at(&self, range: Range<u64>) -> bool {
        self.with_free(|free| free.take_at(range)).unwrap_or(false)
    }

    /// Takes back what was taken.
    #[inline]
    pub(super) fn give(&self, iova: u64, len: u64) {
        if let Some(free) = &self.free {
            let offset = iova - self.region.iova().start;
            free.lock().unwrap_or_else(PoisonError::into_inner).give(offset..offset + len);
        }
    }

    /// Nothing of a retired region is free, whatever was given back.
    fn with_free<T>(&self, f: impl FnOnce(&mut FreeRanges) -> T) -> Option<T> {
        let free = self.free.as_ref().filter(|_| !self.region.is_retired())?;
        Some(f(&mut free.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_shared() { "shared" } else { "exclusive" };
        write!(f, "Source({:?}, {kind})", self.region)
    }
}
