//! Memory that the host mapped for DMA.
//!
//! It upholds one rule: host memory is reached through the table
//! of mappings and nothing else, and a reference into it lives no longer than a borrow of the
//! table, so that an unmapping, which borrows it mutably, leaves none behind. Knows addresses and
//! rights; must not know queues or commands.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use kiovec::memory::{Access, Guarded, Mapping};

use crate::mapped_file::MappedFile;

/// An access to an address that is not mapped, or not for this kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault;

/// Why a mapping was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapError {
    #[error("IOVA and memory of a mapping are multiples of 4096, and so is its length, which is not 0")]
    Misaligned,
    #[error("it overlaps an earlier mapping")]
    Overlap,
    #[error("there is no such mapping")]
    Missing,
}

/// What the controller wants to do with host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    Write,
}

struct Entry {
    iova: u64,
    end: u64,
    memory: NonNull<u8>,
    access: Access,
    /// What is behind the memory, if it is a socket peer's file.
    file: Option<Arc<MappedFile>>,
}

// SAFETY: the memory of a mapping may be used by any thread from `map` to `unmap` (the contract of
// `kiovec::memory::Mapping`).
unsafe impl Send for Entry {}

/// The translation table: ascending, disjoint.
pub(crate) struct Dma {
    entries: Vec<Entry>,
    /// Where the last look-up ended: most follow one another in the same region.
    recent: Cell<usize>,
    /// How many mappings were lost in this process, of which this table has none.
    losses: Cell<u64>,
    /// Changes with every unmapping; no two tables of a process ever have the same.
    epoch: u64,
}

/// A ring of the host's, looked up once for each mapping that it lies in: there are many where the host's memory is
/// mapped page by page. Good for one epoch of one table.
pub(crate) struct Window {
    iova: u64,
    words: usize,
    want: Want,
    /// The piece of the ring that was looked up last: its first word, how many follow, and where they are.
    first: usize,
    len: usize,
    memory: NonNull<AtomicU64>,
    epoch: u64,
}

// SAFETY: the pointer is used only together with the table that it comes from (`Dma::view`).
unsafe impl Send for Window {}

fn next_epoch() -> u64 {
    static EPOCHS: AtomicU64 = AtomicU64::new(0);
    EPOCHS.fetch_add(1, Ordering::Relaxed)
}

impl Dma {
    pub(crate) fn new() -> Dma {
        let losses = Cell::new(Guarded::losses());
        Dma { entries: Vec::new(), recent: Cell::new(0), losses, epoch: next_epoch() }
    }

    /// Lets the controller reach the memory of a mapping, until [`unmap`](Dma::unmap).
    pub(crate) fn map(&mut self, mapping: &Mapping<'_>) -> Result<(), MapError> {
        let (iova, memory, access) = (mapping.iova(), mapping.memory(), mapping.access());
        self.insert(mapping.len(), Entry { iova, end: iova, memory, access, file: None })
    }

    /// Lets the controller reach a socket peer's file, until [`unmap`](Dma::unmap), which lets go of it.
    pub(crate) fn map_file(
        &mut self,
        iova: u64,
        file: Arc<MappedFile>,
        access: Access,
    ) -> Result<(), MapError> {
        let (len, memory) = (file.len() as u64, file.memory());
        self.insert(len, Entry { iova, end: iova, memory, access, file: Some(file) })
    }

    /// Adds an entry; its end is filled in.
    fn insert(&mut self, len: u64, entry: Entry) -> Result<(), MapError> {
        let Some(end) = entry.iova.checked_add(len) else { return Err(MapError::Misaligned) };
        let odd = (entry.iova | len | entry.memory.addr().get() as u64) % 4096;
        if odd != 0 || len == 0 {
            return Err(MapError::Misaligned);
        }
        let at = self.entries.partition_point(|before| before.end <= entry.iova);
        if self.entries.get(at).is_some_and(|next| next.iova < end) {
            return Err(MapError::Overlap);
        }
        self.entries.insert(at, Entry { end, ..entry });
        Ok(())
    }

    /// After a copy: whether it went through memory that is there. A peer may truncate its file at any
    /// time; what is copied from then on, by any thread, is zeros.
    #[inline]
    fn still_there(&self, iova: u64, len: u64) -> Result<(), Fault> {
        // A mapping is counted as lost before there are zeros in its place, maybe by a signal handler in the
        // middle of the copy: not to be read before it.
        fence(Ordering::Acquire);
        if Guarded::losses() == self.losses.get() { Ok(()) } else { self.check_files(iova, len) }
    }

    #[cold]
    fn check_files(&self, iova: u64, len: u64) -> Result<(), Fault> {
        let losses = Guarded::losses();
        fence(Ordering::Acquire);
        let is_lost = |entry: &&Entry| entry.file.as_ref().is_some_and(|file| file.is_lost());
        let mut lost = self.entries.iter().filter(is_lost).peekable();
        if lost.peek().is_none() {
            self.losses.set(losses);
        }
        let end = iova.saturating_add(len);
        if lost.any(|entry| entry.iova < end && iova < entry.end) { Err(Fault) } else { Ok(()) }
    }

    /// Ends a mapping. No reference and no usable window into it is left.
    pub(crate) fn unmap(&mut self, iova: u64, len: u64) -> Result<(), MapError> {
        let same = |entry: &Entry| entry.iova == iova && entry.end - entry.iova == len;
        let at = self.entries.iter().position(same).ok_or(MapError::Missing)?;
        self.entries.remove(at);
        self.epoch = next_epoch();
        Ok(())
    }

    /// Changes with every unmapping: windows of an earlier epoch must be looked up again.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether all of a range may be reached.
    #[inline(always)]
    pub(crate) fn check(&self, iova: u64, len: u64, want: Want) -> Result<(), Fault> {
        if let Some(entry) = self.entries.get(self.recent.get())
            && entry.iova <= iova
            && iova < entry.end
            && len <= entry.end - iova
            && (want == Want::Read || entry.access == Access::ReadWrite)
        {
            return Ok(());
        }
        self.check_elsewhere(iova, len, want)
    }

    /// Not, or not only, in the mapping of the last look-up.
    #[cold]
    fn check_elsewhere(&self, iova: u64, len: u64, want: Want) -> Result<(), Fault> {
        self.pieces(iova, len, want, |_, _, _| {})
    }

    /// Copies from the host.
    pub(crate) fn read(&self, iova: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.pieces(iova, to.len() as u64, Want::Read, |memory, at, len| {
            let to = &mut to[at..at + len];
            // SAFETY: `pieces` found `len` mapped bytes at `memory`; `to` is memory of our own. The
            // host does not write what a command reads while the command is in flight.
            unsafe { std::ptr::copy_nonoverlapping(memory.as_ptr(), to.as_mut_ptr(), len) }
        })?;
        self.still_there(iova, to.len() as u64)
    }

    /// Copies to the host.
    pub(crate) fn write(&self, iova: u64, from: &[u8]) -> Result<(), Fault> {
        self.pieces(iova, from.len() as u64, Want::Write, |memory, at, len| {
            let from = &from[at..at + len];
            // SAFETY: `pieces` found `len` mapped, writable bytes at `memory`; `from` is memory of
            // our own. The host does not touch what a command writes while it is in flight.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), memory.as_ptr(), len) }
        })?;
        self.still_there(iova, from.len() as u64)
    }

    /// Writes zeros to the host.
    pub(crate) fn zero(&self, iova: u64, len: u64) -> Result<(), Fault> {
        self.pieces(iova, len, Want::Write, |memory, _, len| {
            // SAFETY: `pieces` found `len` mapped, writable bytes at `memory`. The host does not
            // touch what a command writes while it is in flight.
            unsafe { std::ptr::write_bytes(memory.as_ptr(), 0, len) }
        })?;
        self.still_there(iova, len)
    }

    /// 64-bit words of the host's, at an address that is a multiple of 8 and within one mapping.
    pub(crate) fn words(&self, iova: u64, count: usize) -> Result<&[AtomicU64], Fault> {
        let memory = self.contiguous_words(iova, count, Want::Read)?;
        // SAFETY: `contiguous_words` found that many aligned words in a mapping. The borrow of the
        // table keeps the mapping; host and controller access rings and lists atomically.
        Ok(unsafe { std::slice::from_raw_parts(memory.as_ptr(), count) })
    }

    /// A 32-bit word of the host's, at an address that is a multiple of 4, for both sides to read and write.
    pub(crate) fn word32(&self, iova: u64) -> Result<&AtomicU32, Fault> {
        if !iova.is_multiple_of(4) {
            return Err(Fault);
        }
        let (memory, _) = self.find(iova, Want::Write)?;
        // SAFETY: mappings begin and end on pages, so an aligned word is within one. The borrow of the table keeps the
        // mapping; host and controller access such words atomically.
        Ok(unsafe { memory.cast().as_ref() })
    }

    /// Looks a ring up: `words` 64-bit words at an address that is a multiple of 8, mapped from end to end.
    pub(crate) fn window(&self, iova: u64, words: usize, want: Want) -> Result<Window, Fault> {
        let len = (words as u64).checked_mul(8).filter(|_| iova.is_multiple_of(8)).ok_or(Fault)?;
        self.check(iova, len, want)?;
        let mut window =
            Window { iova, words, want, first: 0, len: 0, memory: NonNull::dangling(), epoch: self.epoch };
        self.look_up(&mut window, 0)?;
        Ok(window)
    }

    /// Looks the same ring up again, in this epoch.
    pub(crate) fn renew(&self, window: &mut Window) -> Result<(), Fault> {
        *window = self.another(window)?;
        Ok(())
    }

    /// Another window of the same ring, in this epoch.
    pub(crate) fn another(&self, window: &Window) -> Result<Window, Fault> {
        self.window(window.iova, window.words, window.want)
    }

    /// An entry of a ring, which is the `N` words from one of them on and lies in one mapping.
    #[inline(always)]
    pub(crate) fn entry<'a, const N: usize>(
        &'a self,
        window: &'a mut Window,
        at: usize,
    ) -> Result<&'a [AtomicU64; N], Fault> {
        if window.epoch != self.epoch {
            return Err(Fault);
        }
        // Below the first word it wraps, and is beyond the last.
        let mut from = at.wrapping_sub(window.first);
        if from >= window.len {
            self.look_up(window, at)?;
            from = 0;
        }
        // SAFETY: `look_up` found these words in a table of this epoch, which is this table, and
        // nothing was unmapped since. Rings are accessed atomically by both sides.
        let words = unsafe { std::slice::from_raw_parts(window.memory.as_ptr(), window.len) };
        words.get(from..).and_then(<[AtomicU64]>::first_chunk).ok_or(Fault)
    }

    /// Turns a window to the piece of its ring that begins with a word.
    #[cold]
    fn look_up(&self, window: &mut Window, at: usize) -> Result<(), Fault> {
        let rest = window.words.checked_sub(at).ok_or(Fault)?;
        let (memory, room) = self.find(window.iova + 8 * at as u64, window.want)?;
        (window.first, window.len, window.memory) = (at, rest.min((room / 8) as usize), memory.cast());
        Ok(())
    }

    fn contiguous_words(&self, iova: u64, count: usize, want: Want) -> Result<NonNull<AtomicU64>, Fault> {
        if !iova.is_multiple_of(8) {
            return Err(Fault);
        }
        let len = (count as u64).checked_mul(8).ok_or(Fault)?;
        let (memory, room) = self.find(iova, want)?;
        if len > room { Err(Fault) } else { Ok(memory.cast()) }
    }

    /// Calls `each` with the address of every mapped piece of a range, its offset and its length.
    #[inline]
    fn pieces(
        &self,
        iova: u64,
        len: u64,
        want: Want,
        mut each: impl FnMut(NonNull<u8>, usize, usize),
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let (memory, room) = self.find(iova.checked_add(done).ok_or(Fault)?, want)?;
            let piece = room.min(len - done);
            each(memory, done as usize, piece as usize);
            done += piece;
        }
        Ok(())
    }

    /// The memory behind an address, and how much of it follows in the same mapping (1 or more).
    #[inline]
    fn find(&self, iova: u64, want: Want) -> Result<(NonNull<u8>, u64), Fault> {
        let hit = |entry: &&Entry| entry.iova <= iova && iova < entry.end;
        let entry = match self.entries.get(self.recent.get()).filter(hit) {
            Some(entry) => entry,
            None => {
                let at = self.entries.partition_point(|entry| entry.end <= iova);
                self.recent.set(at);
                self.entries.get(at).filter(hit).ok_or(Fault)?
            }
        };
        if want == Want::Write && entry.access == Access::Read {
            return Err(Fault);
        }
        // SAFETY: the offset is below the length of the mapping.
        let memory = unsafe { entry.memory.byte_add((iova - entry.iova) as usize) };
        Ok((memory, entry.end - iova))
    }
}

impl fmt::Debug for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|entry| Range { start: entry.iova, end: entry.end }))
            .finish()
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:#x}, {} words)", self.iova, self.words)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Host memory for unit tests: mapped at an IOVA, and looked at between two steps.
    pub(crate) struct HostMemory {
        iova: u64,
        pages: NonNull<[Page]>,
    }

    #[repr(C, align(4096))]
    #[derive(Clone)]
    struct Page([u8; 4096]);

    impl HostMemory {
        /// Memory filled with `fill`, not mapped yet. `iova` is a multiple of 4096.
        pub(crate) fn new(iova: u64, pages: usize, fill: u8) -> HostMemory {
            let pages = Box::leak(vec![Page([fill; 4096]); pages].into_boxed_slice());
            HostMemory { iova, pages: NonNull::from(pages) }
        }

        /// Maps it in a table. The table must be dropped first.
        pub(crate) fn map(&self, dma: &mut Dma, access: Access) {
            let (iova, end) = (self.iova, self.iova + 4096 * self.pages.len() as u64);
            let at = dma.entries.partition_point(|entry| entry.end <= iova);
            dma.entries.insert(at, Entry { iova, end, memory: self.pages.cast(), access, file: None });
        }

        pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
            assert!(offset + len <= 4096 * self.pages.len());
            // SAFETY: within the memory, as checked; nothing else runs meanwhile.
            unsafe { std::slice::from_raw_parts(self.pages.cast::<u8>().as_ptr().add(offset), len).to_vec() }
        }

        pub(crate) fn write(&self, offset: usize, data: &[u8]) {
            assert!(offset + data.len() <= 4096 * self.pages.len());
            // SAFETY: as in `read`.
            unsafe {
                self.pages.cast::<u8>().as_ptr().add(offset).copy_from(data.as_ptr(), data.len());
            }
        }
    }

    impl Drop for HostMemory {
        fn drop(&mut self) {
            // SAFETY: leaked by `new`, and dropped after the table, as `map` demands.
            drop(unsafe { Box::from_raw(self.pages.as_ptr()) });
        }
    }

    #[test]
    fn accesses_are_checked_at_every_edge() {
        let host = HostMemory::new(0x10000, 2, 7);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut byte = [0];
        assert_eq!(dma.read(0x10000, &mut byte), Ok(()));
        assert_eq!(byte, [7]);
        assert_eq!(dma.read(0x11fff, &mut byte), Ok(()));
        assert_eq!(dma.read(0x12000, &mut byte), Err(Fault));
        assert_eq!(dma.read(0xffff, &mut byte), Err(Fault));
        assert_eq!(dma.check(0x11fff, 2, Want::Read), Err(Fault));
        assert_eq!(dma.check(u64::MAX, 2, Want::Read), Err(Fault));
        assert_eq!(dma.check(0x10000, 0x2000, Want::Write), Ok(()));
        assert!(dma.words(0x11ff8, 1).is_ok());
        assert_eq!(dma.words(0x11ff8, 2).unwrap_err(), Fault);
        assert_eq!(dma.words(0x11ff4, 1).unwrap_err(), Fault);
    }

    #[test]
    fn memory_that_is_mapped_read_only_is_not_written() {
        let host = HostMemory::new(0x10000, 1, 7);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::Read);
        assert_eq!(dma.write(0x10000, &[1]), Err(Fault));
        assert_eq!(dma.zero(0x10000, 1), Err(Fault));
        assert!(dma.window(0x10000, 2, Want::Write).is_err());
        assert!(dma.window(0x10000, 2, Want::Read).is_ok());
        assert_eq!(host.read(0, 1), [7]);
    }

    #[test]
    fn a_copy_crosses_adjacent_mappings() {
        let (low, high) = (HostMemory::new(0x10000, 1, 1), HostMemory::new(0x11000, 1, 2));
        let mut dma = Dma::new();
        high.map(&mut dma, Access::ReadWrite);
        low.map(&mut dma, Access::ReadWrite);
        let mut bytes = [0; 4];
        dma.read(0x10ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 2, 2]);
        dma.zero(0x10fff, 2).unwrap();
        assert_eq!((low.read(4095, 1), high.read(0, 2)), (vec![0], vec![0, 2]));
    }

    #[test]
    fn a_ring_crosses_adjacent_mappings() {
        let pages = [2, 0, 1].map(|page| HostMemory::new(0x10000 + 0x1000 * page, 1, page as u8));
        let mut dma = Dma::new();
        pages.iter().for_each(|page| page.map(&mut dma, Access::ReadWrite));
        let mut window = dma.window(0x10000, 3 * 512, Want::Write).unwrap();
        for at in [0, 504, 512, 1528, 8, 1016, 1024, 1024, 0] {
            let entry = dma.entry::<8>(&mut window, at).unwrap();
            let byte = (at / 512) as u64;
            assert_eq!(entry[7].load(Ordering::Relaxed), byte * 0x0101_0101_0101_0101, "word {at}");
        }
        assert!(dma.entry::<8>(&mut window, 3 * 512).is_err());
        assert!(dma.window(0x10000, 3 * 512 + 1, Want::Write).is_err());
        dma.unmap(0x11000, 4096).unwrap();
        assert_eq!(dma.renew(&mut window), Err(Fault));
    }

    #[test]
    fn a_window_ends_with_its_mapping() {
        let host = HostMemory::new(0x10000, 1, 0);
        let other = HostMemory::new(0x20000, 1, 0);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        other.map(&mut dma, Access::ReadWrite);
        let mut window = dma.window(0x10000, 512, Want::Read).unwrap();
        assert!(dma.entry::<8>(&mut window, 504).is_ok());
        assert!(dma.entry::<8>(&mut window, 505).is_err());
        assert!(dma.entry::<8>(&mut window, 512).is_err());
        dma.unmap(0x20000, 4096).unwrap();
        assert!(dma.entry::<8>(&mut window, 0).is_err());
        dma.renew(&mut window).unwrap();
        assert!(dma.entry::<8>(&mut window, 0).is_ok());
        assert!(Dma::new().entry::<8>(&mut window, 0).is_err());
        assert_eq!(dma.unmap(0x10000, 8192), Err(MapError::Missing));
        dma.unmap(0x10000, 4096).unwrap();
        assert_eq!(dma.renew(&mut window), Err(Fault));
    }
}
