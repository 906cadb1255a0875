//! Files of a socket peer, mapped into this process, and what happens when the peer truncates one.
//!
//! Whoever touches a page of a mapping that its file no longer has gets SIGBUS, which ends the process.
//! [`SigbusHandler`] replaces the mapping with empty memory instead, and marks it as lost. Knows
//! mappings and the signal; must not know what the memory is for.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kiovec::memory::Access;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

const PAGE: u64 = 4096;
/// File systems whose pages are memory: reading one cannot wait for another process to deliver it.
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;
/// Mappings that there can be in this process.
const ROWS: usize = 8192;

/// Proof that this process survives a file that is truncated while it is mapped.
#[derive(Debug, Clone, Copy)]
pub struct SigbusHandler(());

impl SigbusHandler {
    /// Installs a handler of SIGBUS for the whole process, once; later calls find it there. It acts on
    /// memory that clients of a [`Server`](crate::Server) have shared, and leaves everything else to the
    /// handler that was there before. A handler that is installed later must do the same.
    pub fn install() -> std::io::Result<SigbusHandler> {
        static INSTALLED: Mutex<bool> = Mutex::new(false);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if *installed {
            return Ok(SigbusHandler(()));
        }
        let on_sigbus: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        // SAFETY: an action of zeros is a valid one; both calls get valid pointers. The handler is
        // async-signal-safe: it reads statics, and makes system calls.
        let results = unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            let asked = libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before);
            // Never freed: the handler may look at it at any time.
            EARLIER.store(Box::into_raw(Box::new(before)), Ordering::Release);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            asked | libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
        };
        if results != 0 {
            return Err(std::io::Error::last_os_error());
        }
        *installed = true;
        Ok(SigbusHandler(()))
    }
}

/// What the handler knows of a mapping. A row is in use as long as `start` is not 0.
struct Row {
    claimed: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
    /// An eventfd that is written when the mapping is lost.
    wake: AtomicI32,
}

static TABLE: [Row; ROWS] = [const {
    Row {
        claimed: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
        wake: AtomicI32::new(-1),
    }
}; ROWS];

/// Mappings lost, ever.
static LOSSES: AtomicU64 = AtomicU64::new(0);
/// The action that was there before ours.
static EARLIER: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid pointer to an installed SA_SIGINFO handler.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if code == libc::BUS_ADRERR && replace(address) {
        return;
    }
    let earlier = EARLIER.load(Ordering::Acquire);
    // SAFETY: `install` stored a valid action that is never freed.
    let earlier = unsafe { earlier.as_ref() };
    match earlier.map(|action| (action.sa_sigaction, action.sa_flags & libc::SA_SIGINFO != 0)) {
        None | Some((libc::SIG_DFL | libc::SIG_IGN, _)) => {
            // SAFETY: sets the default action; the access is repeated on return, and ends the process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: the kernel would call it in the same way: it was installed with SA_SIGINFO.
        Some((handler, true)) => unsafe {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            handler(signal, info, context);
        },
        // SAFETY: the same, installed without SA_SIGINFO.
        Some((handler, false)) => unsafe {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            handler(signal);
        },
    }
}

/// Replaces the mapping around an address, if it is one of ours. All of it, as pages may be huge.
/// Called in a signal handler.
fn replace(address: usize) -> bool {
    for row in &TABLE {
        let start = row.start.load(Ordering::Acquire);
        let end = row.end.load(Ordering::Acquire);
        if start == 0 || address < start || address >= end {
            continue;
        }
        // Another thread may have given its row to another mapping in between. A newer end was stored after
        // the start was taken away, so that both are of one mapping if the start is still the same.
        if row.start.load(Ordering::Relaxed) != start {
            continue;
        }
        let flags = MapFlags::FIXED | MapFlags::PRIVATE | MapFlags::NORESERVE;
        let at = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of `MappedFile`, which is there as long as its row; replacing it
        // leaves every pointer into it valid. Both calls are bare system calls, which touch no errno.
        let replaced = unsafe {
            rustix::mm::mmap_anonymous(at, end - start, ProtFlags::READ | ProtFlags::WRITE, flags).is_ok()
        };
        row.lost.store(true, Ordering::Relaxed);
        LOSSES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the mapping's owner keeps the file open as long as the row is there.
        let wake = unsafe { BorrowedFd::borrow_raw(row.wake.load(Ordering::Relaxed)) };
        let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        return replaced;
    }
    false
}

/// A part of a peer's file, mapped. Dropping it unmaps it.
pub(crate) struct MappedFile {
    /// The mapping: whole pages of the file.
    start: NonNull<u8>,
    mapped: usize,
    /// The part that was asked for.
    offset: usize,
    len: usize,
    row: &'static Row,
    /// Written when the mapping is lost.
    _wake: Arc<OwnedFd>,
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
        let free = |row: &&Row| !row.claimed.swap(true, Ordering::Acquire);
        let row = TABLE.iter().find(free).ok_or(Errno::NOSPC)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), mapped, protection, MapFlags::SHARED, file, first)
        };
        let start = start.and_then(|start| NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM));
        let start = start.inspect_err(|_| row.claimed.store(false, Ordering::Release))?;
        let address = start.as_ptr().expose_provenance();
        row.lost.store(false, Ordering::Relaxed);
        row.wake.store(wake.as_raw_fd(), Ordering::Relaxed);
        row.end.store(address + mapped, Ordering::Release);
        row.start.store(address, Ordering::Release);
        let offset = (offset - first) as usize;
        Ok(MappedFile { start, mapped, offset, len: len as usize, row, _wake: Arc::clone(wake) })
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
        self.row.lost.load(Ordering::Relaxed)
    }

    /// How many mappings were lost in this process. The count of the thread that touched one has changed
    /// when its access returns.
    #[inline]
    pub(crate) fn losses() -> u64 {
        LOSSES.load(Ordering::Relaxed)
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        self.row.start.store(0, Ordering::Release);
        // SAFETY: mapped in `new`, or replaced in place since; whoever had pointers into it is gone.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
        self.row.claimed.store(false, Ordering::Release);
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
        MappedFile::new(file.as_fd(), offset, len, access, &wake, SigbusHandler::install().unwrap())
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
        assert_eq!(dma.read(0x10000, &mut bytes), Err(Fault));
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
