//! Counts and latencies of what passes, without touching it.

use std::time::Duration;

use super::{Cx, Filter, Handle, Layer, Through};
use crate::request::Operation;

/// Looks at what passes between two layers.
pub type Trace<B> = Through<Tracer, B>;

/// What a [`Trace`] does.
#[derive(Debug, Default)]
pub struct Tracer {
    counts: Counts,
}

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
    pub by_log2: [u64; 48],
}

impl Default for Counts {
    fn default() -> Counts {
        let (reads, writes, others, failed, blocks) = (0, 0, 0, 0, 0);
        let (total, longest) = (Duration::ZERO, Duration::ZERO);
        Counts { reads, writes, others, failed, blocks, total, longest, by_log2: [0; 48] }
    }
}

impl<B: Layer> Through<Tracer, B> {
    /// Looks at what passes to a layer, and comes back from it.
    pub fn new(below: B) -> Trace<B> {
        Through::over(Tracer::default(), below)
    }
}

impl Tracer {
    /// What passed so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Filter for Tracer {
    const KEEPS_FRAME: bool = true;

    #[inline(always)]
    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        let now = cx.nanos();
        cx.set_frame(io, frame, now);
    }

    #[inline(always)]
    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        let took = cx.nanos().saturating_sub(cx.frame(io, frame));
        let counts = &mut self.counts;
        let request = cx.io(io);
        let moved = match request.operation() {
            Operation::Read => (&mut counts.reads, request.blocks()),
            Operation::Write => (&mut counts.writes, request.blocks()),
            _ => (&mut counts.others, 0),
        };
        *moved.0 += 1;
        counts.blocks += moved.1;
        counts.failed += u64::from(cx.failure(io).is_some());
        counts.total += Duration::from_nanos(took);
        counts.longest = counts.longest.max(Duration::from_nanos(took));
        let log2 = (u64::BITS - took.leading_zeros()) as usize;
        counts.by_log2[log2.min(counts.by_log2.len() - 1)] += 1;
    }
}
