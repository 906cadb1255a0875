//! Memory that driver and device use at the same time: rings and PRP lists.
//!
//! An array of entries of 64-bit atomics, so that safe code can read and write it whatever the
//! device does meanwhile. Knows nothing of what an entry means.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chain::Segment;

/// Entries of `N` 64-bit words each, shared with a device.
pub(crate) struct SharedArray<const N: usize> {
    entries: NonNull<[AtomicU64; N]>,
    len: usize,
    segment: Segment,
}

impl<const N: usize> SharedArray<N> {
    /// Takes a segment whole and sets every word to zero.
    pub(crate) fn new(segment: Segment) -> SharedArray<N> {
        let entries = segment.pointer().cast::<[AtomicU64; N]>();
        assert!(entries.is_aligned(), "shared memory begins on a word");
        let len = segment.len() / size_of::<[AtomicU64; N]>();
        let array = SharedArray { entries, len, segment };
        array.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        array
    }

    /// The address that devices use for entry 0.
    pub(crate) fn iova(&self) -> u64 {
        self.segment.iova()
    }
}

impl<const N: usize> Deref for SharedArray<N> {
    type Target = [[AtomicU64; N]];

    #[inline(always)]
    fn deref(&self) -> &[[AtomicU64; N]] {
        // SAFETY: the segment owns this memory, is aligned (checked in `new`) and at least this
        // long; all access to it, here and by the device, is to whole aligned words, and atomics
        // may change under a shared reference.
        unsafe { std::slice::from_raw_parts(self.entries.as_ptr(), self.len) }
    }
}

// SAFETY: owns its memory like a Segment, and gives access to it through atomics only.
unsafe impl<const N: usize> Send for SharedArray<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for SharedArray<N> {}

impl<const N: usize> fmt::Debug for SharedArray<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedArray({} × {} bytes at {:#x})", self.len, N * 8, self.iova())
    }
}
