//! Doorbell registers: plain memory to both sides, in a file where the host is another process.
//!
//! Knows where they lie; must not know what their values mean.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kiovec::pci::DoorbellPage;
use kiovec::spec::registers;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// CAP.DSTRD of this controller: a doorbell every 64 bytes, so that no two share a cache line.
pub(crate) const DSTRD: u8 = 4;

const PAGE: usize = 4096;

/// A cache line with one doorbell register, at its start.
#[repr(C, align(64))]
#[derive(Default)]
struct Line {
    cells: [AtomicU32; 16],
}

const _: () = assert!(size_of::<Line>() == 4 << DSTRD);

/// Where the lines are.
enum Backing {
    /// On the heap.
    Own,
    /// In a mapping of a sealed memfd.
    File(OwnedFd),
}

/// The doorbell registers.
pub(crate) struct Doorbells {
    lines: NonNull<[Line]>,
    backing: Backing,
}

// SAFETY: the lines belong to this value, and consist of atomics.
unsafe impl Send for Doorbells {}
// SAFETY: as above.
unsafe impl Sync for Doorbells {}

impl Doorbells {
    /// The doorbells of queues 0 to `queues`, in whole pages.
    pub(crate) fn new(queues: u16) -> Arc<Doorbells> {
        let lines = Doorbells::lines_for(queues);
        let lines: Box<[Line]> = std::iter::repeat_with(Line::default).take(lines).collect();
        Arc::new(Doorbells { lines: NonNull::from(Box::leak(lines)), backing: Backing::Own })
    }

    /// The same in a file that stands for BAR0, for another process to map. They fill the BAR, as some
    /// clients take what can be mapped to extend to its end. The file cannot change its size any more:
    /// whoever has it can do nothing to this process but write doorbells.
    pub(crate) fn in_file(queues: u16) -> std::io::Result<Arc<Doorbells>> {
        let start = registers::DOORBELLS as usize;
        let bar = (start + Doorbells::lines_for(queues) * size_of::<Line>()).next_power_of_two();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("kiovec-doorbells", flags)?;
        rustix::fs::ftruncate(&file, bar as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let len = bar - start;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, start as u64)?
        };
        let base = NonNull::new(base).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let lines = NonNull::slice_from_raw_parts(base.cast(), len / size_of::<Line>());
        Ok(Arc::new(Doorbells { lines, backing: Backing::File(file) }))
    }

    /// Lines for two doorbells of each queue, in whole pages.
    fn lines_for(queues: u16) -> usize {
        (2 * (usize::from(queues) + 1)).next_multiple_of(PAGE / size_of::<Line>())
    }

    #[inline(always)]
    fn lines(&self) -> &[Line] {
        // SAFETY: leaked or mapped in the constructors, zeroed, and released in `drop` only.
        unsafe { self.lines.as_ref() }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        size_of_val(self.lines()) as u64
    }

    /// The file, where there is one. The doorbells begin at 1000h in it, as in BAR0.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Own => None,
            Backing::File(file) => Some(file.as_fd()),
        }
    }

    /// What a driver gets to see of them. `len` is at most their length.
    pub(crate) fn page(self: &Arc<Self>, len: u64) -> DoorbellPage {
        let owner: Arc<Doorbells> = Arc::clone(self);
        // SAFETY: the lines are `len` bytes of AtomicU32 or more, which never move, and which the owner keeps.
        unsafe { DoorbellPage::new(self.lines.cast(), len.min(self.len()), owner) }
    }

    /// The tail doorbell of a submission queue.
    #[inline(always)]
    pub(crate) fn tail(&self, qid: u16) -> &AtomicU32 {
        &self.lines()[2 * usize::from(qid)].cells[0]
    }

    /// The head doorbell of a completion queue.
    #[inline(always)]
    pub(crate) fn head(&self, qid: u16) -> &AtomicU32 {
        &self.lines()[2 * usize::from(qid) + 1].cells[0]
    }

    /// The register at a byte offset, where there is one.
    pub(crate) fn at(&self, offset: u64) -> Option<&AtomicU32> {
        let line = size_of::<Line>() as u64;
        let index = offset.is_multiple_of(line).then_some(offset / line)?;
        Some(&self.lines().get(usize::try_from(index).ok()?)?.cells[0])
    }

    /// Sets all of them to 0.
    pub(crate) fn clear(&self) {
        for line in self.lines() {
            line.cells[0].store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        match self.backing {
            // SAFETY: leaked by `new`; nobody else has them.
            Backing::Own => drop(unsafe { Box::from_raw(self.lines.as_ptr()) }),
            // SAFETY: mapped by `in_file`, with this length; nobody else has them.
            Backing::File(_) => unsafe {
                let _ = rustix::mm::munmap(self.lines.as_ptr().cast(), size_of_val(self.lines.as_ref()));
            },
        }
    }
}

impl fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doorbells({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_have_a_cache_line_each() {
        let doorbells = Doorbells::new(4);
        assert_eq!(doorbells.len(), 4096);
        let page = doorbells.page(4096);
        page.doorbell(registers::sq_tail_doorbell(3, DSTRD)).unwrap().ring(9);
        page.doorbell(registers::cq_head_doorbell(3, DSTRD)).unwrap().ring(8);
        assert_eq!(doorbells.tail(3).load(Ordering::Acquire), 9);
        assert_eq!(doorbells.head(3).load(Ordering::Acquire), 8);
        assert_eq!(doorbells.at(6 * 64).unwrap().load(Ordering::Relaxed), 9);
        assert!(doorbells.at(4).is_none() && doorbells.at(4096).is_none());
        doorbells.clear();
        assert_eq!(doorbells.tail(3).load(Ordering::Relaxed), 0);
    }

    #[test]
    fn doorbells_in_a_file_fill_the_bar_and_the_file_keeps_its_size() {
        for (queues, bar) in [(1, 0x2000), (31, 0x2000), (32, 0x4000), (64, 0x4000), (1024, 0x40000)] {
            let doorbells = Doorbells::in_file(queues).unwrap();
            assert_eq!(doorbells.len() + 0x1000, bar);
            let file = doorbells.file().unwrap();
            assert_eq!(rustix::fs::ftruncate(file, 0), Err(rustix::io::Errno::PERM));
            assert_eq!(rustix::fs::ftruncate(file, bar * 2), Err(rustix::io::Errno::PERM));
            doorbells.tail(queues).store(7, Ordering::Relaxed);
            let mut there = [0; 4];
            let at = registers::DOORBELLS + registers::sq_tail_doorbell(queues, DSTRD);
            rustix::io::pread(file, &mut there, at).unwrap();
            assert_eq!(there, [7, 0, 0, 0]);
        }
        assert!(Doorbells::new(1).file().is_none());
    }
}
