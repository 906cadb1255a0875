//! Files of a socket peer, mapped into this process.
//!
//! The peer may truncate one at any time: each is guarded, so that its mapping is lost then, and not the
//! process. Knows files and mappings; must not know what the memory is for.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use kiovec::memory::{Access, Guarded, SigbusHandler};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

const PAGE: u64 = 4096;
/// File systems whose pages are memory: reading one cannot wait for another process to deliver it.
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;
/// A part of a peer's file, mapped. Dropping it unmaps it.
pub(crate) struct MappedFile {
    /// The mapping: whole pages of the file.
    start: NonNull<u8>,
    mapped: usize,
    /// The part that was asked for.
    offset: usize,
    len: usize,
    /// Until it is unmapped.
    guard: Option<Guarded>,
}

// SAFETY: raw memory, which is reached through pointers only; whoever makes them says why they are good.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps `len` bytes of a file. Files are refused that are not memory (EINVAL): reading others may
    /// wait for ever. `wake` is an eventfd that is written when the mapping is lost.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        access: Access,
        wake: &Arc<OwnedFd>,
        _: SigbusHandler,
    ) -> Result<MappedFile, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let system = rustix::fs::fstatfs(file)?;
        let page = match system.f_type {
            TMPFS => PAGE,
            HUGETLBFS => u64::try_from(system.f_bsize).map_err(|_| Errno::INVAL)?.max(PAGE),
            _ => return Err(Errno::INVAL),
        };
        let end = offset.checked_add(len).ok_or(Errno::INVAL)?;
        let size = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || len == 0 || end > size {
            return Err(Errno::INVAL);
        }
        let first = offset - offset % page;
        let mapped = end.checked_next_multiple_of(page).ok_or(Errno::INVAL)? - first;
        let mapped = usize::try_from(mapped).map_err(|_| Errno::INVAL)?;
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), mapped, protection, MapFlags::SHARED, file, first)?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let offset = (offset - first) as usize;
        let mut mapping = MappedFile { start, mapped, offset, len: len as usize, guard: None };
        // SAFETY: whole pages, mapped above, and unmapped after the guard is dropped. They are accessed through
        // raw pointers, and what they hold is the peer's choice at any time.
        let guard = unsafe { Guarded::new(start, mapped, Some(Arc::clone(wake))) };
        mapping.guard = Some(guard.map_err(|_| Errno::NOSPC)?);
        Ok(mapping)
    }

    /// The memory that was asked for.
    pub(crate) fn memory(&self) -> NonNull<u8> {
        // SAFETY: the part lies within the mapping.
        unsafe { self.start.byte_add(self.offset) }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the file was truncated, and the memory is no longer the file's.
    pub(crate) fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guarded::is_lost)
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: mapped in `new`, or replaced in place since; whoever had pointers into it is gone.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("len", &self.len).field("lost", &self.is_lost()).finish()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    use super::*;
    use crate::dma::{Dma, Fault};

    fn map(file: &OwnedFd, offset: u64, len: u64, access: Access) -> Result<MappedFile, Errno> {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        MappedFile::new(file.as_fd(), offset, len, access, &wake, kiovec::install_sigbus_handler().unwrap())
    }

    fn memory(len: u64) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    #[test]
    fn a_truncated_file_is_a_fault_and_nothing_else_is() {
        let (file, other) = (memory(0x4000), memory(0x1000));
        let mut dma = Dma::new();
        dma.map_file(
            0x10000,
            map(&file, 0x1000, 0x3000, Access::ReadWrite).unwrap().into(),
            Access::ReadWrite,
        )
        .unwrap();
        dma.map_file(0x20000, map(&other, 0, 0x1000, Access::Read).unwrap().into(), Access::Read).unwrap();
        rustix::io::pwrite(&file, b"abc", 0x1000).unwrap();
        let mut bytes = [0; 3];
        dma.read(0x10000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        dma.write(0x11000, b"def").unwrap();
        rustix::io::pread(&file, &mut bytes, 0x2000).unwrap();
        assert_eq!(&bytes, b"def");
        ftruncate(&file, 0).unwrap();
        // The first finds it out, and all others meet what is there instead.
        for _ in 0..2 {
            assert_eq!(dma.read(0x10000, &mut bytes), Err(Fault));
            assert_eq!(dma.write(0x11000, &bytes), Err(Fault));
        }
        dma.read(0x20000, &mut bytes).unwrap();
        dma.unmap(0x10000, 0x3000).unwrap();
        dma.read(0x20000, &mut bytes).unwrap();
    }

    #[test]
    fn what_a_file_does_not_have_is_not_mapped() {
        let file = memory(0x2000);
        for (offset, len) in [(0, 0x3000), (0x2000, 0x1000), (0, 0), (u64::MAX, 2), (0x1000, u64::MAX)] {
            assert_eq!(map(&file, offset, len, Access::Read).unwrap_err(), Errno::INVAL, "{offset} {len}");
        }
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert!(map(&pipe, 0, 0x1000, Access::Read).is_err());
        let disk = std::fs::File::open("/proc/self/exe").unwrap().into();
        assert_eq!(map(&disk, 0, 0x1000, Access::Read).unwrap_err(), Errno::INVAL);
    }
}
