//! Mappings whose memory may vanish, and the signal that comes of touching one that has.
//!
//! Whoever touches a page of a mapping that its file no longer has gets SIGBUS, which ends the process: a BAR
//! that its function does not answer for, or a file that another process has truncated. A [`Guarded`] mapping is
//! in a table; the handler replaces one that is in there with empty memory, and marks it as lost. Knows address
//! ranges and the signal; must not know what lies there.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use crate::{Error, Result};

/// Guarded mappings that there can be in a process.
const ROWS: usize = 8192;

/// Proof that this process survives the loss of a [`Guarded`] mapping.
#[derive(Debug, Clone, Copy)]
pub struct SigbusHandler(());

type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs a handler of SIGBUS for the whole process, once; later calls find it there.
///
/// With it, a controller whose registers or doorbells vanish under the driver is lost with an error, whether it
/// was opened before or after. Without it, the next access to them ends the process. The handler acts on such
/// mappings only, and leaves everything else to the action that was there before; one that is installed later
/// must do the same.
pub fn install_sigbus_handler() -> Result<SigbusHandler> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(SigbusHandler(()));
    }
    // SAFETY: an action of zeros is a valid one; both calls get valid pointers. The handler is
    // async-signal-safe: it reads statics, and makes system calls.
    let results = unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        let asked = libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before);
        // Never freed: the handler may look at it at any time.
        EARLIER.store(Box::into_raw(Box::new(before)), Ordering::Release);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as Action as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        asked | libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if results != 0 {
        return Err(Error::os("installing a handler of SIGBUS")(std::io::Error::last_os_error()));
    }
    *installed = true;
    Ok(SigbusHandler(()))
}

/// What the handler knows of a mapping. A row is in use as long as `start` is not 0.
struct Row {
    claimed: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
    /// An eventfd that is written when the mapping is lost, or -1.
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
    if code != libc::BUS_ADRERR || !replace(address) {
        pass_on(signal, code, info, context);
    }
}

/// Does what would have happened without our handler.
fn pass_on(signal: libc::c_int, code: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: `install_sigbus_handler` stored a valid action that is never freed.
    let earlier = unsafe { EARLIER.load(Ordering::Acquire).as_ref() };
    // Of an access of this thread's, which is repeated on return; all others come from somebody else, once.
    let faulted = (libc::BUS_ADRALN..=libc::BUS_MCEERR_AR).contains(&code);
    match earlier.map_or((libc::SIG_DFL, 0), |action| (action.sa_sigaction, action.sa_flags)) {
        (libc::SIG_IGN, _) if !faulted => {}
        // A fault is not to be ignored: the kernel takes the default action then, too.
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            // SAFETY: sets the default action; what is raised comes when this handler returns.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if !faulted {
                    libc::raise(signal);
                }
            }
        }
        // SAFETY: the kernel would call it in the same way: it was installed with SA_SIGINFO.
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => unsafe {
            std::mem::transmute::<usize, Action>(handler)(signal, info, context);
        },
        // SAFETY: the same, installed without SA_SIGINFO.
        (handler, _) => unsafe {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
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
        // Before it is replaced: whoever reads from what it is replaced with sees that it is lost.
        row.lost.store(true, Ordering::SeqCst);
        LOSSES.fetch_add(1, Ordering::SeqCst);
        let flags = MapFlags::FIXED | MapFlags::PRIVATE | MapFlags::NORESERVE;
        let at = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a `Guarded` mapping, which is there as long as its row; replacing it
        // leaves every pointer into it valid. Both calls are bare system calls, which touch no errno.
        let replaced = unsafe {
            rustix::mm::mmap_anonymous(at, end - start, ProtFlags::READ | ProtFlags::WRITE, flags).is_ok()
        };
        let wake = row.wake.load(Ordering::Relaxed);
        if wake >= 0 {
            // SAFETY: the mapping's owner keeps the file open as long as the row is there.
            let _ = rustix::io::write(unsafe { BorrowedFd::borrow_raw(wake) }, &1u64.to_ne_bytes());
        }
        return replaced;
    }
    false
}

/// The guard of a mapping, to be dropped before it is unmapped.
pub struct Guarded {
    row: &'static Row,
    /// Written when the mapping is lost.
    _wake: Option<Arc<OwnedFd>>,
}

impl Guarded {
    /// Guards `len` bytes of memory. `wake` is an eventfd that is written when they are lost. Fails if as many
    /// are guarded as can be, 8192.
    ///
    /// # Safety
    /// The range is whole pages of one mapping, of the caller's own, that stays mapped as long as the guard
    /// lives, and may at any time be replaced with private memory of zeros.
    pub unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        wake: Option<Arc<OwnedFd>>,
    ) -> std::io::Result<Guarded> {
        let free = |row: &&Row| !row.claimed.swap(true, Ordering::Acquire);
        let row = TABLE.iter().find(free).ok_or(rustix::io::Errno::NOSPC)?;
        let address = start.as_ptr().expose_provenance();
        row.lost.store(false, Ordering::Relaxed);
        row.wake.store(wake.as_ref().map_or(-1, |wake| wake.as_raw_fd()), Ordering::Relaxed);
        row.end.store(address + len, Ordering::Release);
        row.start.store(address, Ordering::Release);
        Ok(Guarded { row, _wake: wake })
    }

    /// Whether the memory is no longer what was mapped. What was read from it before is good if this says no
    /// afterwards.
    pub fn is_lost(&self) -> bool {
        // What the caller has read is not to be read later.
        fence(Ordering::SeqCst);
        self.row.lost.load(Ordering::Relaxed)
    }

    /// How many mappings were lost in this process. One is counted before there is other memory in its place:
    /// whoever has read from that, and looks then, finds another number than before it was lost.
    #[inline]
    pub fn losses() -> u64 {
        LOSSES.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.row.start.store(0, Ordering::Release);
        self.row.claimed.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("lost", &self.is_lost()).finish()
    }
}

#[cfg(test)]
mod tests;
