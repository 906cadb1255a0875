//! Counts and latencies of what passes, without touching it.

use std::time::Duration;

use super::{Cx, Filter, Handle, Layer, Passing, Through};
use crate::request::Operation;

/// Looks at what passes between two layers.
pub type Trace<B> = Through<Tracer, B>;

/// What a [`Trace`] does.
#[derive(Debug)]
pub struct Tracer {
    /// Reads, writes, and everything else.
    finished: [u64; 3],
    failed: u64,
    blocks: u64,
    /// In nanoseconds.
    total: u64,
    longest: u64,
    by_log2: [u64; LOG2S],
}

/// Numbers of bits that latencies are counted by: the last for all that are longer.
const LOG2S: usize = 48;

/// What passed a [`Trace`]. Latencies are from its way down to its way up, to the resolution of one
/// reading of the clock for each poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Reads that finished.
    pub reads: u64,
    /// Writes that finished.
    pub writes: u64,
    /// Everything else that finished.
    pub others: u64,
    /// How many of all of them failed.
    pub failed: u64,
    /// Blocks that reads and writes moved, failed ones included.
    pub blocks: u64,
    /// The sum of all latencies.
    pub total: Duration,
    /// The longest latency.
    pub longest: Duration,
    /// How many took less than 2^i nanoseconds, but not less than 2^(i-1).
    pub by_log2: [u64; LOG2S],
}

impl<B: Layer> Through<Tracer, B> {
    /// Looks at what passes to a layer, and comes back from it.
    pub fn new(below: B) -> Trace<B> {
        let tracer =
            Tracer { finished: [0; 3], failed: 0, blocks: 0, total: 0, longest: 0, by_log2: [0; LOG2S] };
        Through::over(tracer, below)
    }
}

impl Tracer {
    /// What passed so far.
    pub fn counts(&self) -> Counts {
        let Tracer { finished: [reads, writes, others], failed, blocks, .. } = *self;
        let (total, longest) = (Duration::from_nanos(self.total), Duration::from_nanos(self.longest));
        Counts { reads, writes, others, failed, blocks, total, longest, by_log2: self.by_log2 }
    }

    #[inline(always)]
    pub(super) fn begin(&mut self, io: &mut Passing<'_>, frame: usize) {
        let now = io.nanos();
        io.set_frame(frame, now);
    }

    #[inline(always)]
    pub(super) fn end(&mut self, io: &mut Passing<'_>, frame: usize) {
        let took = io.nanos().saturating_sub(io.frame(frame));
        let (kind, blocks) = match io.io().operation() {
            Operation::Read => (0, io.io().blocks()),
            Operation::Write => (1, io.io().blocks()),
            _ => (2, 0),
        };
        self.finished[kind] += 1;
        self.blocks += blocks;
        self.failed += u64::from(io.has_failed());
        self.total += took;
        self.longest = self.longest.max(took);
        let log2 = (u64::BITS - took.leading_zeros()) as usize;
        self.by_log2[log2.min(LOG2S - 1)] += 1;
    }
}

impl Filter for Tracer {
    const KEEPS_FRAME: bool = true;

    const PLAIN: bool = true;

    #[inline(always)]
    fn pass_down(&mut self, io: &mut Passing<'_>, frame: usize) {
        self.begin(io, frame);
    }

    #[inline(always)]
    fn pass_up(&mut self, io: &mut Passing<'_>, frame: usize) {
        self.end(io, frame);
    }

    #[inline(always)]
    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        self.begin(&mut cx.passing(io), frame);
    }

    #[inline(always)]
    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        self.end(&mut cx.passing(io), frame);
    }
}
