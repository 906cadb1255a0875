//! What the kernel tells the user of a function besides: that it wants it back, and errors of the bus.
//!
//! Knows eventfds; must not know what follows.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use vfio_bindings::bindings::vfio as abi;

use super::super::Notice;
use super::ioctl;

/// The eventfds of a function. Where it has none, nothing is told.
#[derive(Debug)]
pub(super) struct Signals {
    /// What is to be heeded first comes first.
    fds: Vec<(Notice, OwnedFd)>,
}

impl Signals {
    /// Has the kernel signal what it can. What it cannot shows a little later, in registers that do not answer.
    pub(super) fn arm(device: impl AsFd) -> Signals {
        let kinds = [
            (Notice::ReturnRequested, abi::VFIO_PCI_REQ_IRQ_INDEX),
            (Notice::BusError, abi::VFIO_PCI_ERR_IRQ_INDEX),
        ];
        let armed = |(notice, index)| {
            let info = ioctl::irq_info(&device, index).ok()?;
            let usable = info.count > 0 && info.flags & abi::VFIO_IRQ_INFO_EVENTFD != 0;
            let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok().filter(|_| usable)?;
            ioctl::set_trigger(&device, index, &fd).ok()?;
            Some((notice, fd))
        };
        Signals { fds: kinds.into_iter().filter_map(armed).collect() }
    }

    /// Something that was signalled since the last time. Never waits; a system call for each kind.
    pub(super) fn take(&self) -> Option<Notice> {
        let mut count = [0; 8];
        let mut signalled = self.fds.iter().filter(|(_, fd)| rustix::io::read(fd, &mut count).is_ok());
        signalled.next().map(|(notice, _)| *notice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_told_once_and_a_request_first() {
        let eventfd = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let signals =
            Signals { fds: vec![(Notice::ReturnRequested, eventfd()), (Notice::BusError, eventfd())] };
        let signal = |index: usize| rustix::io::write(&signals.fds[index].1, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(signals.take(), None);
        for index in [1, 0, 0] {
            signal(index);
        }
        assert_eq!(signals.take(), Some(Notice::ReturnRequested));
        assert_eq!(signals.take(), Some(Notice::BusError));
        assert_eq!(signals.take(), None);
    }

    #[test]
    fn what_has_no_interrupts_has_no_signals() {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Signals::arm(&nothing).take(), None);
    }
}
