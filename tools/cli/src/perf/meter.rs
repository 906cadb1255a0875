//! What every worker measures of its I/Os, whatever carries them out: their latency, over all of the
//! measurement and in slices of it, and what failed.

use kiovec::pci::Clock;
use kiovec::{Cause, Failure, Operation};
use rustix::io::Errno;
use std::fmt;

use super::control::Gauge;
use super::latency::{Cells, Latency};

pub struct Meter<'a> {
    pub gauge: &'a Gauge,
    clock: Clock,
    /// The time of this poll; 0 before anybody asked.
    now: u64,
    /// When each request was submitted, or should have been, by its tag, for those who do not keep that in the tag.
    pub started: Box<[u64]>,
    latency: Latency,
    /// Counted only where there are reads too.
    pub writes: u64,
    /// Counted only where I/Os differ in size.
    pub bytes: u64,
    pub errors: u64,
    pub first_error: Option<(Operation, Reason)>,
    slices: Vec<Slice>,
    /// The latencies of the slices so far, and when the last one ended; 0 while nothing is measured.
    sliced: Latency,
    cut_at: u64,
}

/// A part of the measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    pub number: u32,
    pub seconds: f64,
    pub cells: Cells,
}

/// Why an I/O failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Driver(Failure),
    Kernel {
        lba: u64,
        errno: Errno,
    },
    /// Fewer bytes than asked for went over.
    Short {
        lba: u64,
        bytes: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Driver(failure) => failure.fmt(f),
            Reason::Kernel { lba, errno } => write!(f, "{errno} at LBA {lba}; see dmesg"),
            Reason::Short { lba, bytes } => {
                write!(f, "only {bytes} bytes at LBA {lba}; does somebody make the file smaller?")
            }
        }
    }
}

impl Reason {
    /// Whether what a request needs is gone for good, and no layer could make up for it.
    pub fn is_lost(self) -> bool {
        match self {
            Reason::Driver(failure) => failure.cause == Cause::ControllerLost,
            Reason::Kernel { errno, .. } => errno == Errno::NODEV || errno == Errno::NXIO,
            Reason::Short { .. } => false,
        }
    }
}

impl<'a> Meter<'a> {
    pub fn new(requests: usize, gauge: &'a Gauge) -> Meter<'a> {
        Meter {
            gauge,
            clock: Clock::Monotonic,
            now: 0,
            started: vec![0; requests].into_boxed_slice(),
            latency: Latency::default(),
            writes: 0,
            bytes: 0,
            errors: 0,
            first_error: None,
            slices: Vec::new(),
            sliced: Latency::default(),
            cut_at: 0,
        }
    }

    /// Forgets what was counted while warming up.
    pub fn begin(&mut self) {
        (self.latency, self.sliced) = (Latency::default(), Latency::default());
        (self.writes, self.bytes) = (0, 0);
        self.slices.clear();
        self.cut_at = self.clock.nanos();
    }

    /// Ends the measurement: what completes from now on is not part of it.
    pub fn end(&mut self) -> (Latency, Vec<Slice>) {
        self.cut_at = 0;
        (std::mem::take(&mut self.latency), std::mem::take(&mut self.slices))
    }

    /// Ends a slice of the measurement.
    #[cold]
    pub fn cut(&mut self, number: u32) {
        if self.cut_at == 0 {
            return;
        }
        let now = self.clock.nanos();
        let seconds = now.saturating_sub(self.cut_at) as f64 / 1e9;
        let cells = self.latency.since(&mut self.sliced);
        self.slices.push(Slice { number, seconds, cells });
        self.cut_at = now;
    }

    /// A new poll begins, at a time of its own.
    #[inline(always)]
    pub fn new_poll(&mut self) {
        self.now = 0;
    }

    /// The time: read once for a poll, unless it is wanted exactly.
    #[inline(always)]
    pub fn now<const EXACT: bool>(&mut self) -> u64 {
        if EXACT || self.now == 0 {
            self.look_at_clock();
        }
        self.now
    }

    #[cold]
    fn look_at_clock(&mut self) {
        self.now = self.clock.nanos();
    }

    pub fn nanos(&self) -> u64 {
        self.clock.nanos()
    }

    /// A request took so many nanoseconds.
    #[inline(always)]
    pub fn took(&mut self, nanos: u64) {
        self.latency.record(nanos);
    }

    /// A request completed `now`, and its tag's next one begins then, unless it is told otherwise.
    #[inline(always)]
    pub fn record(&mut self, tag: usize, now: u64) {
        let started = std::mem::replace(&mut self.started[tag], now);
        self.took(now.wrapping_sub(started));
    }

    #[cold]
    pub fn failed(&mut self, operation: Operation, reason: Reason) {
        self.errors += 1;
        self.first_error.get_or_insert((operation, reason));
        if reason.is_lost() {
            self.gauge.set_lost();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_add_up_to_the_whole() {
        let gauge = Gauge::default();
        let mut meter = Meter::new(1, &gauge);
        meter.record(0, 5);
        meter.cut(0);
        meter.begin();
        for number in 0..3 {
            meter.started[0] = 100;
            meter.record(0, 100 + 10 * u64::from(number + 1));
            meter.record(0, 150 + 10 * u64::from(number));
            meter.cut(number);
        }
        meter.cut(3);
        let (latency, slices) = meter.end();
        assert_eq!(latency.count(), 6, "what was before the beginning is not in it");
        assert_eq!(slices.iter().map(|slice| slice.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let counts: Vec<u64> = slices.iter().map(|s| s.cells.iter().map(|cell| cell.1).sum()).collect();
        assert_eq!(counts, [2, 2, 2, 0]);
        let mut sum = Latency::default();
        slices.iter().for_each(|slice| sum.add_cells(&slice.cells));
        assert!(sum.cells().eq(latency.cells()));
        meter.cut(9);
        assert!(meter.end().1.is_empty(), "nothing is sliced outside of the measurement");
    }
}
