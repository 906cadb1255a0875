//! The memory that a server was given, for the server that asks for it by message.
//!
//! Knows where mapped memory is and what may be done with it; must not know messages. Rings, lists and
//! data are used by the driver while a server copies from and to them, so a copy is made of atomic
//! accesses, and no slice of that memory ever exists.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::memory::{Access, Mapping};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Ascending and disjoint.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    iova: Range<u64>,
    memory: NonNull<u8>,
    access: Access,
}

// SAFETY: a table of addresses; the memory is accessed atomically only, and stays until it is removed
// from the table (see Mapping).
unsafe impl Send for Entry {}

/// Why memory was not accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// Some of it is not mapped.
    Unmapped,
    /// Some of it may only be read.
    ReadOnly,
}

/// A piece of memory within one mapping.
struct Piece {
    memory: NonNull<u8>,
    len: usize,
}

impl Mappings {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a mapping, or returns false where there is one already. The memory stays until
    /// [`remove`](Mappings::remove), as `Mapping` promises.
    pub(super) fn insert(&mut self, mapping: &Mapping<'_>) -> bool {
        let Some(end) = mapping.iova().checked_add(mapping.len()) else { return false };
        let iova = mapping.iova()..end;
        let at = self.entries.partition_point(|entry| entry.iova.end <= iova.start);
        if self.entries.get(at).is_some_and(|next| next.iova.start < iova.end) {
            return false;
        }
        self.entries.insert(at, Entry { iova, memory: mapping.memory(), access: mapping.access() });
        true
    }

    /// Whether exactly this range is a mapping.
    pub(super) fn contains(&self, iova: u64, len: u64) -> bool {
        self.position(iova, len).is_some()
    }

    pub(super) fn remove(&mut self, iova: u64, len: u64) {
        if let Some(at) = self.position(iova, len) {
            self.entries.remove(at);
        }
    }

    fn position(&self, iova: u64, len: u64) -> Option<usize> {
        let range = iova..iova.checked_add(len)?;
        self.entries.iter().position(|entry| entry.iova == range)
    }

    /// Copies memory out. Nothing is copied if not all of it is there.
    pub(super) fn read(&self, iova: u64, len: usize) -> Result<Vec<u8>, Denied> {
        let pieces = self.pieces(iova, len, Access::Read)?;
        let mut data = Vec::with_capacity(len);
        pieces.iter().for_each(|piece| piece.read(&mut data));
        Ok(data)
    }

    /// Copies data in, in ascending order. Nothing is copied if not all of the memory is there.
    pub(super) fn write(&self, iova: u64, data: &[u8]) -> Result<(), Denied> {
        let mut rest = data;
        for piece in self.pieces(iova, data.len(), Access::ReadWrite)? {
            let (here, later) = rest.split_at(piece.len);
            piece.write(here);
            rest = later;
        }
        Ok(())
    }

    /// The memory behind a range, which may span several mappings.
    fn pieces(&self, iova: u64, len: usize, wanted: Access) -> Result<Vec<Piece>, Denied> {
        let end = iova.checked_add(len as u64).ok_or(Denied::Unmapped)?;
        let mut pieces = Vec::new();
        let mut next = iova;
        let first = self.entries.partition_point(|entry| entry.iova.end <= iova);
        for entry in self.entries.iter().skip(first) {
            if next == end {
                break;
            }
            if !entry.iova.contains(&next) {
                return Err(Denied::Unmapped);
            }
            if wanted == Access::ReadWrite && entry.access == Access::Read {
                return Err(Denied::ReadOnly);
            }
            // SAFETY: `next` is within the mapping, as checked, and the memory spans the mapping.
            let memory = unsafe { entry.memory.byte_add((next - entry.iova.start) as usize) };
            let stop = end.min(entry.iova.end);
            pieces.push(Piece { memory, len: (stop - next) as usize });
            next = stop;
        }
        if next == end { Ok(pieces) } else { Err(Denied::Unmapped) }
    }
}

impl Piece {
    /// Bytes before the first word, words, bytes after the last one.
    fn parts(&self) -> (usize, usize, usize) {
        let before = self.memory.addr().get().wrapping_neg() % WORD;
        let before = before.min(self.len);
        (before, (self.len - before) / WORD, (self.len - before) % WORD)
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        debug_assert!(at < self.len);
        // SAFETY: within the piece, which is mapped memory that is accessed atomically by everybody
        // while a device may access it.
        unsafe { AtomicU8::from_ptr(self.memory.as_ptr().add(at)) }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at + WORD <= self.len);
        // SAFETY: as in `byte`; `parts` has found where words are aligned.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }

    fn read(&self, data: &mut Vec<u8>) {
        let (before, words, after) = self.parts();
        data.extend((0..before).map(|at| self.byte(at).load(Ordering::Acquire)));
        for at in (0..words).map(|word| before + word * WORD) {
            data.extend(self.word(at).load(Ordering::Acquire).to_ne_bytes());
        }
        data.extend((self.len - after..self.len).map(|at| self.byte(at).load(Ordering::Acquire)));
    }

    /// In ascending order, each after what is before it: the last word of a completion has its phase.
    fn write(&self, data: &[u8]) {
        let (before, words, after) = self.parts();
        let (head, rest) = data.split_at(before);
        let (middle, tail) = rest.split_at(words * WORD);
        for (at, byte) in head.iter().enumerate() {
            self.byte(at).store(*byte, Ordering::Release);
        }
        for (word, bytes) in middle.as_chunks::<WORD>().0.iter().enumerate() {
            self.word(before + word * WORD).store(u64::from_ne_bytes(*bytes), Ordering::Release);
        }
        for (at, byte) in tail.iter().enumerate() {
            self.byte(self.len - after + at).store(*byte, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Memory of a test's, and where it is mapped: pages at 0x1000 and 0x2000, one read-only at 0x3000,
    /// a gap, one at 0x5000.
    struct Memory {
        pages: Vec<Box<[AtomicU64; 512]>>,
        mappings: Mappings,
    }

    const PLACES: [(u64, Access); 4] = [
        (0x1000, Access::ReadWrite),
        (0x2000, Access::ReadWrite),
        (0x3000, Access::Read),
        (0x5000, Access::ReadWrite),
    ];

    impl Memory {
        fn new() -> Memory {
            let pages: Vec<_> = PLACES.iter().map(|_| Box::new([const { AtomicU64::new(0) }; 512])).collect();
            let mut mappings = Mappings::default();
            for ((iova, access), page) in PLACES.iter().zip(&pages) {
                let entry = Entry {
                    iova: *iova..iova + 4096,
                    memory: NonNull::from(&**page).cast(),
                    access: *access,
                };
                mappings.entries.push(entry);
            }
            Memory { pages, mappings }
        }

        fn bytes(&self) -> Vec<u8> {
            let words = self.pages.iter().flat_map(|page| page.iter());
            words.flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect()
        }
    }

    #[test]
    fn every_edge_is_checked() {
        let Memory { mappings, pages: _pages } = Memory::new();
        for (iova, len, read, write) in [
            (0x1000, 0, Ok(()), Ok(())),
            (0x1000, 8192, Ok(()), Ok(())),
            (0xfff, 1, Err(Denied::Unmapped), Err(Denied::Unmapped)),
            (0x2fff, 2, Ok(()), Err(Denied::ReadOnly)),
            (0x3fff, 1, Ok(()), Err(Denied::ReadOnly)),
            (0x3fff, 2, Err(Denied::Unmapped), Err(Denied::ReadOnly)),
            (0x5fff, 1, Ok(()), Ok(())),
            (0x5fff, 2, Err(Denied::Unmapped), Err(Denied::Unmapped)),
            (u64::MAX, 2, Err(Denied::Unmapped), Err(Denied::Unmapped)),
        ] {
            assert_eq!(mappings.read(iova, len).map(|data| assert_eq!(data.len(), len)), read, "{iova:#x}");
            assert_eq!(mappings.write(iova, &vec![0; len]), write, "{iova:#x}");
        }
        assert!(mappings.contains(0x1000, 4096) && !mappings.contains(0x1000, 8192));
    }

    proptest! {
        /// A plain array is the oracle.
        #[test]
        fn copies_are_those_of_an_array(
            writes in prop::collection::vec((0usize..8192, prop::collection::vec(any::<u8>(), 0..64)), 1..20),
            (from, len) in (0usize..8192, 0usize..100),
        ) {
            let memory = Memory::new();
            let mut oracle = vec![0; 4 * 4096];
            for (at, data) in writes {
                let fits = at + data.len() <= 8192;
                prop_assert_eq!(memory.mappings.write(0x1000 + at as u64, &data).is_ok(), fits || data.is_empty());
                if fits {
                    oracle[at..at + data.len()].copy_from_slice(&data);
                }
            }
            prop_assert_eq!(&memory.bytes(), &oracle);
            let read = memory.mappings.read(0x1000 + from as u64, len).unwrap();
            prop_assert_eq!(&read, &oracle[from..from + len]);
        }
    }
}
