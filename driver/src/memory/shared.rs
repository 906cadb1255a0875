//! Memory that driver and device use at the same time: rings, PRP lists, shadow doorbells.
//!
//! Arrays of atomics, of 64 bits or of 32 as the device has them, so that safe code can read and write them
//! whatever the device does meanwhile. Knows nothing of what an entry means.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

/// Entries that are used one after the other, round and round, and the place of the next one. The place is
/// kept as an address, so that whoever polls an entry follows one pointer.
pub(crate) struct SharedRing<const N: usize> {
    /// One of `entries`.
    next: NonNull<[AtomicU64; N]>,
    /// Behind the last of them.
    end: NonNull<[AtomicU64; N]>,
    entries: SharedArray<N>,
}

impl<const N: usize> SharedRing<N> {
    /// A ring of all entries of an array, at the first of them.
    pub(crate) fn new(entries: SharedArray<N>) -> SharedRing<N> {
        assert!(!entries.is_empty(), "a ring has an entry");
        // SAFETY: it has so many entries, so this is the end of the array.
        let end = unsafe { entries.entries.add(entries.len) };
        SharedRing { next: entries.entries, end, entries }
    }

    /// All entries are zeros, and the first has its turn. The device has forgotten the ring.
    pub(crate) fn restart(&mut self) {
        self.entries.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        self.next = self.entries.entries;
    }

    /// The entry whose turn it is.
    #[inline(always)]
    pub(crate) fn entry(&self) -> &[AtomicU64; N] {
        // SAFETY: it points to one of `entries` (`new`, `advance`), which are atomics and live, where they
        // are, as long as this borrow.
        unsafe { self.next.as_ref() }
    }

    /// The one that was in its turn before.
    pub(crate) fn previous(&self) -> &[AtomicU64; N] {
        let len = self.entries.len();
        &self.entries[(self.position() as usize + len - 1) % len]
    }

    /// Goes on to the next entry; whether that is the first.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> bool {
        // SAFETY: `next` points to an entry, so this is at most one past the last.
        let next = unsafe { self.next.add(1) };
        let again = next == self.end;
        self.next = if again { self.entries.entries } else { next };
        again
    }

    /// The index of the entry whose turn it is.
    #[inline(always)]
    pub(crate) fn position(&self) -> u32 {
        // SAFETY: both are of the same array, and `next` is not before its beginning.
        unsafe { self.next.offset_from_unsigned(self.entries.entries) as u32 }
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The address that devices use for the first entry.
    pub(crate) fn iova(&self) -> u64 {
        self.entries.iova()
    }
}

/// 32-bit words, shared with a device that reads and writes them one by one.
pub(crate) struct SharedWords {
    words: NonNull<AtomicU32>,
    len: usize,
    segment: Segment,
}

impl SharedWords {
    /// Takes a segment whole and sets every word to zero.
    pub(crate) fn new(segment: Segment) -> SharedWords {
        let words = segment.pointer().cast::<AtomicU32>();
        assert!(words.is_aligned(), "shared memory begins on a word");
        let array = SharedWords { words, len: segment.len() / size_of::<AtomicU32>(), segment };
        array.clear();
        array
    }

    /// Sets every word to zero.
    pub(crate) fn clear(&self) {
        self.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// The address that devices use for word 0.
    pub(crate) fn iova(&self) -> u64 {
        self.segment.iova()
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU32];

    #[inline]
    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the segment owns this memory, is aligned (checked in `new`) and at least this long; all access
        // to it, here and by the device, is to whole aligned words, and atomics may change under a shared reference.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

// SAFETY: owns its memory like a Segment, and gives access to it through atomics only.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl fmt::Debug for SharedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedWords({} at {:#x})", self.len, self.iova())
    }
}

// SAFETY: owns what it points to, which is accessed through atomics only.
unsafe impl<const N: usize> Send for SharedRing<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for SharedRing<N> {}

impl<const N: usize> fmt::Debug for SharedRing<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, at {}", self.entries, self.position())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Access, DmaSpace};

    #[test]
    fn a_ring_goes_round() {
        let space = DmaSpace::new().unwrap();
        let mut ring =
            SharedRing::<2>::new(SharedArray::new(space.segment(64, 4096, Access::ReadWrite).unwrap()));
        assert_eq!(ring.len(), 4);
        for at in 0..9u32 {
            assert_eq!(ring.position(), at % 4);
            ring.entry()[1].store(at.into(), Ordering::Relaxed);
            assert_eq!(ring.advance(), at % 4 == 3);
            assert_eq!(ring.previous()[1].load(Ordering::Relaxed), u64::from(at));
        }
        let words: Vec<u64> = ring.entries.iter().map(|entry| entry[1].load(Ordering::Relaxed)).collect();
        assert_eq!(words, [8, 5, 6, 7]);
    }
}
