//! An io_uring with registered buffers and a registered file.
//!
//! Knows when a buffer is the kernel's and when it is ours; must not know what is read or written, nor
//! why. The only module of the command line with `unsafe` in it: the kernel reads and writes buffers
//! behind the compiler's back, and these functions hand out none that it may be using.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use kiovec::Operation;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// How long the kernel is waited for at a time, so that whoever waits can look around.
const WAIT: types::Timespec = types::Timespec::new().nsec(50_000_000);
/// From Linux 5.11 on: waits that end.
const OLDEST: &str = "Linux 5.11 or later";

/// How completions are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The kernel polls the device when it is asked to, once for each call.
    Device,
    /// The thread sleeps until an interrupt brings a completion.
    Interrupt,
    /// Interrupts bring completions, and the thread looks at the ring without a call.
    Ring,
}

/// What a ring is made for.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Buffers, of which each is in flight at most once.
    pub slots: usize,
    /// Bytes of each.
    pub bytes: usize,
    pub wait: Wait,
}

/// One transfer between a slot's buffer and the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Reads, unless it is a write.
    pub operation: Operation,
    pub offset: u64,
    pub bytes: usize,
}

pub struct Ring {
    ring: IoUring,
    memory: Memory,
    /// By slot: what the kernel has been given.
    in_flight: Box<[Option<Transfer>]>,
    count: usize,
    wait: Wait,
    calls: u64,
}

impl Ring {
    pub fn new(file: BorrowedFd<'_>, shape: Shape) -> io::Result<Ring> {
        let ring = build(shape)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(Errno::NOSYS.into());
        }
        let memory = Memory::new(shape.slots, shape.bytes)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let buffers: Vec<libc::iovec> = (0..shape.slots).map(|slot| memory.iovec(slot)).collect();
        // SAFETY: the memory stays mapped for as long as anything is in flight, see `Drop`. Nobody has a
        // reference to it but through `data`, which gives out no buffer that is in flight.
        unsafe { ring.submitter().register_buffers(&buffers)? };
        let in_flight = vec![None; shape.slots].into_boxed_slice();
        Ok(Ring { ring, memory, in_flight, count: 0, wait: shape.wait, calls: 0 })
    }

    /// How many transfers the kernel has.
    pub fn in_flight(&self) -> usize {
        self.count
    }

    /// System calls made so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// A buffer, unless the kernel has it, or there is none of that number.
    pub fn data(&mut self, slot: usize) -> Option<&mut [u8]> {
        match self.in_flight.get(slot) {
            // SAFETY: the slot exists, and the kernel does not have it; the exclusive reference to the
            // ring keeps it from getting it, and any second reference from being made.
            Some(None) => Some(unsafe { self.memory.slot(slot) }),
            _ => None,
        }
    }

    /// Gives a slot's buffer to the kernel, with the next call of [`Ring::poll`]. Refused if the kernel has it
    /// already, or the transfer does not fit it.
    pub fn push(&mut self, slot: usize, transfer: Transfer) -> Result<(), Errno> {
        let place = self.in_flight.get_mut(slot).filter(|place| place.is_none()).ok_or(Errno::BUSY)?;
        let Ok(bytes) = u32::try_from(transfer.bytes.min(self.memory.stride)) else {
            return Err(Errno::INVAL);
        };
        let entry = entry(&self.memory, slot, transfer, bytes);
        // SAFETY: the buffer is mapped, is registered under this number, has at least so many bytes, and
        // stays untouched until the completion, because the slot is marked.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Errno::AGAIN)?;
        *place = Some(transfer);
        self.count += 1;
        Ok(())
    }

    /// Hands over what was pushed, waits for at most 50 ms if the ring was made for that, and tells of
    /// each transfer that has ended: its slot, what it was, and how many bytes went over.
    pub fn poll(&mut self, mut f: impl FnMut(usize, Transfer, Result<usize, Errno>)) -> io::Result<usize> {
        self.enter()?;
        let (in_flight, mut found) = (&mut self.in_flight, 0);
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            let Some(transfer) = in_flight.get_mut(slot).and_then(Option::take) else { continue };
            self.count -= 1;
            found += 1;
            f(slot, transfer, outcome(&entry));
        }
        Ok(found)
    }

    fn enter(&mut self) -> io::Result<()> {
        let pushed = !self.ring.submission().is_empty();
        let entered = match self.wait {
            Wait::Ring if !pushed => return Ok(()),
            Wait::Ring | Wait::Device => self.ring.submitter().submit(),
            Wait::Interrupt if self.count == 0 => return Ok(()),
            Wait::Interrupt => {
                let args = types::SubmitArgs::new().timespec(&WAIT);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        self.calls += 1;
        match entered.map_err(|error| Errno::from_io_error(&error)) {
            // Time is over, a signal came, or the kernel wants completions to be taken first.
            Ok(_) | Err(Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN)) => Ok(()),
            Err(errno) => Err(errno.unwrap_or(Errno::IO).into()),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.count > 0 {
            // The kernel may still write to it.
            self.memory.keep_for_ever();
        }
    }
}

fn outcome(entry: &cqueue::Entry) -> Result<usize, Errno> {
    let result = entry.result();
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()))
}

fn entry(memory: &Memory, slot: usize, transfer: Transfer, bytes: u32) -> squeue::Entry {
    let (fd, address) = (types::Fixed(0), memory.address(slot));
    // At most 4096 slots.
    let index = slot as u16;
    let entry = match transfer.operation {
        Operation::Write => {
            opcode::WriteFixed::new(fd, address, bytes, index).offset(transfer.offset).build()
        }
        _ => opcode::ReadFixed::new(fd, address, bytes, index).offset(transfer.offset).build(),
    };
    entry.user_data(slot as u64)
}

/// The newest flags that this kernel knows.
fn build(shape: Shape) -> io::Result<IoUring> {
    let entries = shape.slots.next_power_of_two() as u32;
    let build = |modern: bool| {
        let mut builder = IoUring::builder();
        if shape.wait == Wait::Device {
            builder.setup_iopoll();
        }
        if modern && shape.wait != Wait::Ring {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        builder.build(entries)
    };
    match build(true) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
        result => result,
    }
}

/// What to do about a ring that cannot be made.
pub fn advice(error: &io::Error) -> String {
    let why = match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "io_uring is not permitted here (a container's seccomp filter, or sysctl kernel.io_uring_disabled); \
             permit it, or measure outside of the container"
                .to_owned()
        }
        Some(Errno::NOSYS) => format!("this kernel has no io_uring that can be used; it takes {OLDEST}"),
        Some(Errno::NOMEM) => {
            "too little memory may be locked for registered buffers; raise `ulimit -l`, or lower -q or -o"
                .to_owned()
        }
        _ => format!("io_uring cannot be set up: {error}; see dmesg"),
    };
    format!("{why} (os error {})", error.raw_os_error().unwrap_or(0))
}

/// Memory for all slots, page-aligned, in one mapping of its own.
struct Memory {
    start: NonNull<u8>,
    len: usize,
    stride: usize,
    keep: bool,
}

impl Memory {
    fn new(slots: usize, bytes: usize) -> io::Result<Memory> {
        let stride = bytes.next_multiple_of(4096);
        let len = stride.checked_mul(slots).filter(|len| *len > 0).ok_or(Errno::NOMEM)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a mapping of its own, at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags)? };
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let memory = Memory { start, len, stride, keep: false };
        // SAFETY: the range is the mapping; the advice does not change what is in it.
        // It is only advice: without huge pages it works as well.
        let _ = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(memory)
    }

    fn address(&self, slot: usize) -> *mut u8 {
        // Without bounds of its own: what is behind it is looked at only through `slot`, or by the kernel,
        // which checks.
        self.start.as_ptr().wrapping_add(slot * self.stride)
    }

    fn iovec(&self, slot: usize) -> libc::iovec {
        libc::iovec { iov_base: self.address(slot).cast(), iov_len: self.stride }
    }

    /// # Safety
    ///
    /// The slot exists, and nobody else reads or writes it while the reference lives.
    unsafe fn slot(&mut self, slot: usize) -> &mut [u8] {
        debug_assert!((slot + 1) * self.stride <= self.len);
        // SAFETY: within the mapping, which is initialised (zeroed) and lives as long as `self`; the caller
        // vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.address(slot), self.stride) }
    }

    fn keep_for_ever(&mut self) {
        self.keep = true;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.keep {
            // SAFETY: our own mapping, from beginning to end; no reference outlives `self`, and the kernel has
            // none of it in flight, or it would be kept.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        for (errno, words) in [
            (libc::EPERM, "not permitted"),
            (libc::ENOSYS, "Linux 5.11"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EINVAL, "cannot be set up"),
        ] {
            let text = advice(&io::Error::from_raw_os_error(errno));
            assert!(text.contains(words) && text.lines().count() == 1, "{text}");
        }
    }

    #[test]
    fn a_buffer_is_the_kernels_or_ours() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let shape = Shape { slots: 3, bytes: 5000, wait: Wait::Interrupt };
        let mut ring = Ring::new(file.as_fd(), shape).unwrap();
        let write = Transfer { operation: Operation::Write, offset: 8192, bytes: 5000 };
        ring.data(1).unwrap().fill(7);
        ring.push(1, write).unwrap();
        assert!(ring.data(1).is_none() && ring.data(3).is_none());
        assert_eq!(ring.push(1, write), Err(Errno::BUSY));
        assert_eq!(ring.push(3, write), Err(Errno::BUSY));
        let mut ended = Vec::new();
        while ring.in_flight() > 0 {
            ring.poll(|slot, transfer, result| ended.push((slot, transfer, result))).unwrap();
        }
        assert_eq!(ended, [(1, write, Ok(5000))]);
        let read = Transfer { operation: Operation::Read, ..write };
        ring.push(2, read).unwrap();
        while ring.in_flight() > 0 {
            ring.poll(|_, _, result| assert_eq!(result, Ok(5000))).unwrap();
        }
        assert_eq!(ring.data(2).unwrap()[..5001], [&[7; 5000][..], &[0]].concat());
    }

    #[test]
    fn a_ring_that_goes_while_something_is_in_flight_keeps_its_memory() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let shape = Shape { slots: 1, bytes: 4096, wait: Wait::Interrupt };
        let mut ring = Ring::new(file.as_fd(), shape).unwrap();
        let read = Transfer { operation: Operation::Read, offset: 0, bytes: 4096 };
        ring.push(0, read).unwrap();
        assert_eq!(ring.in_flight(), 1);
        drop(ring);
    }
}
