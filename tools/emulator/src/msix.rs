//! Interrupts: message signalled ones (PCI Express Base Specification, section 6.1.4, MSI-X), delivered
//! through eventfds of whoever has set them up.
//!
//! Knows vectors, masks and the table in its BAR; must not know what they are raised for.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of an entry of the table.
const ENTRY: u64 = 16;
/// Vector Control, as a dword of an entry: its bit 0 is Mask.
const CONTROL: usize = 3;

/// Where table and pending bits lie in their BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) vectors: u16,
}

impl Layout {
    /// One vector for the Admin queue, and one for each I/O queue.
    pub(crate) fn new(queues: u16) -> Layout {
        Layout { vectors: queues + 1 }
    }

    /// Where the pending bits begin; the table begins at 0.
    pub(crate) fn pending_bits(self) -> u64 {
        (u64::from(self.vectors) * ENTRY).next_multiple_of(4096)
    }

    /// Length of the BAR.
    pub(crate) fn bar_len(self) -> u64 {
        (self.pending_bits() + 4096).next_power_of_two()
    }
}

#[derive(Debug)]
struct Vector {
    /// Address, data and control: kept for whoever reads them back.
    entry: [u32; 4],
    eventfd: Option<OwnedFd>,
    /// Its Mask bit was set by a write; the one that it has from the beginning does not count, as hosts
    /// that reach the function through VFIO set vectors up without the table.
    masked_in_table: bool,
    /// It was masked by other means.
    masked: bool,
    pending: bool,
}

/// The interrupt vectors of the function.
#[derive(Debug)]
pub(crate) struct Interrupts {
    layout: Layout,
    vectors: Vec<Vector>,
    /// Function Mask of Message Control.
    function_masked: bool,
}

impl Interrupts {
    pub(crate) fn new(layout: Layout) -> Interrupts {
        let vector = || Vector {
            entry: [0, 0, 0, 1],
            eventfd: None,
            masked_in_table: false,
            masked: false,
            pending: false,
        };
        let vectors = std::iter::repeat_with(vector).take(layout.vectors.into()).collect();
        Interrupts { layout, vectors, function_masked: false }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// There is something new for a vector.
    pub(crate) fn raise(&mut self, vector: u16) {
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else { return };
        vector.raise(self.function_masked);
    }

    /// Delivers a vector to an eventfd from now on, or to nobody. False if there is no such vector.
    pub(crate) fn set_eventfd(&mut self, vector: u32, eventfd: Option<OwnedFd>) -> bool {
        let Some(vector) = self.vectors.get_mut(vector as usize) else { return false };
        vector.eventfd = eventfd;
        vector.pending &= vector.eventfd.is_some();
        true
    }

    /// Masks a vector, or lets it through, with what has become pending meanwhile. False if there is no
    /// such vector.
    pub(crate) fn set_masked(&mut self, vector: u32, masked: bool) -> bool {
        let Some(vector) = self.vectors.get_mut(vector as usize) else { return false };
        vector.masked = masked;
        vector.deliver(self.function_masked);
        true
    }

    /// Message Control was written.
    pub(crate) fn set_function_masked(&mut self, masked: bool) {
        if std::mem::replace(&mut self.function_masked, masked) != masked {
            self.vectors.iter_mut().for_each(|vector| vector.deliver(masked));
        }
    }

    /// The function was reset: nothing is pending, and the table is as after power-on. Who has set
    /// eventfds up keeps them.
    pub(crate) fn reset(&mut self) {
        for vector in &mut self.vectors {
            vector.entry = [0, 0, 0, 1];
            (vector.masked_in_table, vector.pending) = (false, false);
        }
    }

    /// Reads a dword of the BAR.
    pub(crate) fn read32(&self, offset: u64) -> u32 {
        if let Some((vector, dword)) = self.place(offset) {
            return self.vectors.get(vector).map_or(0, |vector| vector.entry[dword]);
        }
        let Some(first) = offset.checked_sub(self.layout.pending_bits()) else { return 0 };
        let first = usize::try_from(first).unwrap_or(usize::MAX).saturating_mul(8);
        let vectors = self.vectors.iter().skip(first).take(32).enumerate();
        vectors.fold(0, |bits, (bit, vector)| bits | u32::from(vector.pending) << bit)
    }

    /// Writes a dword of the BAR. Pending bits cannot be written.
    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        let Some((index, dword)) = self.place(offset) else { return };
        let Some(vector) = self.vectors.get_mut(index) else { return };
        vector.entry[dword] = value;
        if dword == CONTROL {
            vector.masked_in_table = value & 1 != 0;
            vector.deliver(self.function_masked);
        }
    }

    /// Vector and dword of an offset in the table.
    fn place(&self, offset: u64) -> Option<(usize, usize)> {
        let within = offset < u64::from(self.layout.vectors) * ENTRY;
        within.then_some(((offset / ENTRY) as usize, (offset % ENTRY / 4) as usize))
    }
}

impl Vector {
    fn raise(&mut self, function_masked: bool) {
        if self.eventfd.is_some() {
            self.pending = true;
            self.deliver(function_masked);
        }
    }

    fn deliver(&mut self, function_masked: bool) {
        let masked = function_masked || self.masked || self.masked_in_table;
        if masked || !self.pending {
            return;
        }
        self.pending = false;
        if let Some(eventfd) = &self.eventfd {
            signal(eventfd);
        }
    }
}

/// Adds one to an eventfd, unless it is full: then its reader is told already.
///
/// It was made non-blocking when it was set up, but that is a state of the open file, which its other owner can
/// change back. So it is asked first whether a write would wait. Its owner can still fill it in between.
fn signal(eventfd: &OwnedFd) {
    let mut room = [PollFd::new(eventfd, PollFlags::OUT)];
    if poll(&mut room, Some(&Timespec::default())) == Ok(1) && room[0].revents().contains(PollFlags::OUT) {
        let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn interrupts() -> (Interrupts, OwnedFd) {
        let mut interrupts = Interrupts::new(Layout::new(64));
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        assert!(interrupts.set_eventfd(33, Some(eventfd.try_clone().unwrap())));
        (interrupts, eventfd)
    }

    fn count(eventfd: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(eventfd, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
    }

    #[test]
    fn a_vector_is_delivered_to_its_eventfd_only() {
        let (mut interrupts, eventfd) = interrupts();
        interrupts.raise(33);
        interrupts.raise(32);
        interrupts.raise(u16::MAX);
        assert_eq!(count(&eventfd), 1);
        interrupts.set_eventfd(33, None);
        interrupts.raise(33);
        assert_eq!(count(&eventfd), 0);
        assert!(!interrupts.set_eventfd(65, None) && !interrupts.set_masked(65, true));
    }

    #[test]
    fn what_is_masked_is_pending_until_it_is_not() {
        type Mask = fn(&mut Interrupts, bool);
        let table: Mask = |interrupts, masked| interrupts.write32(33 * 16 + 12, masked.into());
        let vector: Mask = |interrupts, masked| assert!(interrupts.set_masked(33, masked));
        let function: Mask = Interrupts::set_function_masked;
        for mask in [table, vector, function] {
            let (mut interrupts, eventfd) = interrupts();
            let pending = |interrupts: &Interrupts| interrupts.read32(interrupts.layout().pending_bits() + 4);
            mask(&mut interrupts, true);
            interrupts.raise(33);
            interrupts.raise(33);
            assert_eq!((count(&eventfd), pending(&interrupts)), (0, 0b10));
            mask(&mut interrupts, false);
            assert_eq!((count(&eventfd), pending(&interrupts)), (1, 0));
            mask(&mut interrupts, true);
            mask(&mut interrupts, false);
            assert_eq!(count(&eventfd), 0);
        }
    }

    /// A peer can make its eventfd a blocking one again, and fill it.
    #[test]
    fn an_eventfd_that_would_block_is_left_alone() {
        let full = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (mut interrupts, _) = interrupts();
        assert!(interrupts.set_eventfd(33, Some(full.try_clone().unwrap())));
        let (done, end) = mpsc::channel();
        std::thread::spawn(move || {
            interrupts.raise(33);
            let _ = done.send(());
        });
        assert!(end.recv_timeout(Duration::from_secs(20)).is_ok(), "the write waits for a reader");
        assert_eq!(count(&full), u64::MAX - 1);
    }

    #[test]
    fn the_table_is_read_back() {
        let (mut interrupts, _eventfd) = interrupts();
        assert_eq!(interrupts.layout(), Layout { vectors: 65 });
        assert_eq!((interrupts.layout().pending_bits(), interrupts.layout().bar_len()), (4096, 8192));
        assert_eq!(interrupts.read32(12), 1);
        interrupts.write32(16, 0xfee0_0000);
        assert_eq!((interrupts.read32(16), interrupts.read32(0)), (0xfee0_0000, 0));
        interrupts.write32(4096, u32::MAX);
        interrupts.write32(65 * 16, 5);
        assert_eq!((interrupts.read32(4096), interrupts.read32(65 * 16), interrupts.read32(8188)), (0, 0, 0));
        interrupts.reset();
        assert_eq!(interrupts.read32(16), 0);
    }
}
