//! Memory of a file, mapped: shared, aligned, and unmapped on drop.
//!
//! One type for regions and for BARs. Knows mmap; must not know what the file is.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A new file of `len` bytes that has no place in a file system, and is gone with its last user. Its
/// length is sealed: other processes get it, and none of them may take the pages away from under us.
pub(super) fn memfd(name: &str, len: u64, flags: MemfdFlags) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags)?;
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A shared, writable mapping. Accessed through raw pointers only: others write it too.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
}

impl Map {
    /// Maps `len` bytes of a file from `offset` on, where the kernel likes: for hugetlbfs, that is a
    /// multiple of the page size.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Map> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { rustix::mm::mmap(null_mut(), len, PROTECTION, MapFlags::SHARED, file, offset)? };
        Map::of(base, len)
    }

    /// Maps `len` bytes of a file of ordinary pages, at an address that is a multiple of `align` (a
    /// power of two).
    pub(crate) fn aligned(file: BorrowedFd<'_>, len: usize, align: usize) -> io::Result<Map> {
        assert!(align.is_power_of_two() && len > 0);
        // Reserve more than is wanted, place the mapping inside, and give the rest back.
        let reserved = len.next_multiple_of(rustix::param::page_size()) + align;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE)?
        };
        let skip = start.addr().next_multiple_of(align) - start.addr();
        let base = start.wrapping_byte_add(skip);
        // SAFETY: replaces a part of the reservation made above.
        let mapped =
            unsafe { rustix::mm::mmap(base, len, PROTECTION, MapFlags::SHARED | MapFlags::FIXED, file, 0) };
        // A call that failed may have taken the reservation away already, and another thread may have
        // mapped something there since: the middle is not touched any more.
        let used = skip + len.next_multiple_of(rustix::param::page_size());
        for (at, len) in [(start, skip), (start.wrapping_byte_add(used), reserved - used)] {
            if len > 0 {
                // SAFETY: part of the reservation made above, which nothing else refers to.
                let _ = unsafe { rustix::mm::munmap(at, len) };
            }
        }
        mapped?;
        Map::of(base, len)
    }

    fn of(base: *mut core::ffi::c_void, len: usize) -> io::Result<Map> {
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Map { base, len })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives every page of a part memory now, so that a full tmpfs is an error here and not a
    /// SIGBUS later.
    pub(crate) fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        self.advise(offset, len, Advice::LinuxPopulateWrite)
    }

    /// Asks for huge pages in place of small ones. Only a wish.
    pub(crate) fn collapse(&self) -> io::Result<()> {
        // SAFETY: MADV_COLLAPSE changes which physical pages back the mapping, not what it holds.
        match unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives the memory of a part back: it reads as zeros from then on. Only a wish.
    pub(crate) fn discard(&self, offset: usize, len: usize) {
        let _ = self.advise(offset, len, Advice::LinuxRemove);
    }

    fn advise(&self, offset: usize, len: usize, advice: Advice) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: within the mapping, as checked, which stays a mapping: what is advised here changes
        // its contents at most, and those are accessed through raw pointers only.
        unsafe { rustix::mm::madvise(self.base.as_ptr().byte_add(offset).cast(), len, advice)? };
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let len = self.len.next_multiple_of(rustix::param::page_size());
        // SAFETY: made by `new`; the owner of a Map ends every use of it before dropping it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), len) };
    }
}

// SAFETY: a Map is an address range; what is done with the memory in it is up to its users, each
// of which says why it may.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}
