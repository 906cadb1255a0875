//! Counts and latencies of what passes, without touching it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Cx, Filter, Handle, Layer, Through};
use crate::poller::{LOG2S, Plain, Tally, What};

/// Looks at what passes between two layers.
pub type Trace<B> = Through<Tracer, B>;

/// What a [`Trace`] does.
#[derive(Debug, Default)]
pub struct Tracer {
    /// Shared with those that see the same.
    tally: Arc<Tally>,
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
    pub by_log2: [u64; LOG2S],
}

impl<B: Layer> Through<Tracer, B> {
    /// Looks at what passes to a layer, and comes back from it.
    pub fn new(below: B) -> Trace<B> {
        Through::over(Tracer::default(), below)
    }
}

impl Tracer {
    /// What passed so far.
    pub fn counts(&self) -> Counts {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Counts {
            reads: count(&self.tally.reads),
            writes: count(&self.tally.writes),
            others: count(&self.tally.others),
            failed: count(&self.tally.failed),
            blocks: count(&self.tally.blocks),
            total: Duration::from_nanos(count(&self.tally.total)),
            longest: Duration::from_nanos(count(&self.tally.longest)),
            by_log2: self.tally.by_log2.0.each_ref().map(count),
        }
    }
}

impl Filter for Tracer {
    const KEEPS_FRAME: bool = true;

    fn plain(&mut self, below: impl FnOnce() -> Option<Plain>) -> Option<Plain> {
        Some(below()?.tallied(&mut self.tally))
    }

    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        let now = cx.nanos();
        cx.set_frame(io, frame, now);
    }

    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        let took = cx.nanos().saturating_sub(cx.frame(io, frame));
        self.tally.count(What::of(cx.io(io), cx.failure(io).is_some()), took);
    }
}
