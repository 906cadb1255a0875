//! Stacks that only look at requests that pass, and move them to other blocks: whatever they are made of, the
//! poller does all of it at once.
//!
//! Knows the sum of what such layers do; must not know which layers they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Core, Target};
use crate::request::{IoContainer, Node, NodeId, Operation};

/// What a stack does with each request on its way to a namespace, and back.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct Plain {
    target: Target,
    /// Blocks that it is moved by, modulo 2^64.
    shift: u64,
    /// What counts it, and measures how long it took.
    tally: Option<Arc<Tally>>,
}

/// Numbers of bits that latencies are counted by.
pub(crate) const LOG2S: usize = u64::BITS as usize + 1;

/// Counts of what passed. One thread counts, and any may look.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) others: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Of reads and writes.
    pub(crate) blocks: AtomicU64,
    /// In nanoseconds.
    pub(crate) total: AtomicU64,
    pub(crate) longest: AtomicU64,
    pub(crate) by_log2: Latencies,
}

/// How many took less than 2^i nanoseconds, but not less than 2^(i-1).
#[derive(Debug)]
pub(crate) struct Latencies(pub(crate) [AtomicU64; LOG2S]);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies([const { AtomicU64::new(0) }; LOG2S])
    }
}

impl Plain {
    /// Nothing, on the way to a namespace.
    pub(crate) fn to(target: Target) -> Plain {
        Plain { target, shift: 0, tally: None }
    }

    /// Where it sends requests.
    pub(super) fn target(&self) -> Target {
        self.target
    }

    /// The same from above a layer that moves requests by so many blocks.
    pub(crate) fn shifted(self, blocks: u64) -> Plain {
        Plain { shift: self.shift.wrapping_add(blocks), ..self }
    }

    /// The same from above a layer that counts. All that do count the same: they get one tally.
    pub(crate) fn tallied(mut self, tally: &mut Arc<Tally>) -> Plain {
        *tally = Arc::clone(self.tally.get_or_insert_with(|| Arc::clone(tally)));
        self
    }

    /// On the way down.
    #[inline(always)]
    pub(super) fn down(&self, core: &mut Core, id: NodeId) {
        self.shift_down(&mut core.tree[id]);
        self.begin(core, id);
    }

    /// To the blocks below.
    #[inline(always)]
    pub(super) fn shift_down(&self, node: &mut Node) {
        node.io.set_lba(node.io.lba().wrapping_add(self.shift));
    }

    /// Notes when it went down.
    #[inline(always)]
    pub(super) fn begin(&self, core: &mut Core, id: NodeId) {
        if self.tally.is_some() {
            core.tree[id].began = core.nanos();
        }
    }

    /// On the way up.
    #[inline(always)]
    pub(super) fn up(&self, core: &mut Core, id: NodeId) {
        let node = &mut core.tree[id];
        node.io.set_lba(node.io.lba().wrapping_sub(self.shift));
        if let Some(tally) = &self.tally {
            let what = What::of(&node.io, node.failed.is_some());
            let began = node.began;
            tally.count(what, core.nanos().saturating_sub(began));
        }
    }
}

/// What counts of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct What {
    operation: Operation,
    blocks: u64,
    failed: bool,
}

impl What {
    #[inline(always)]
    pub(crate) fn of(io: &IoContainer, failed: bool) -> What {
        What { operation: io.operation(), blocks: io.blocks(), failed }
    }
}

impl Tally {
    /// A request that came back after so many nanoseconds.
    #[inline(always)]
    pub(crate) fn count(&self, what: What, took: u64) {
        let (finished, blocks) = match what.operation {
            Operation::Read => (&self.reads, what.blocks),
            Operation::Write => (&self.writes, what.blocks),
            _ => (&self.others, 0),
        };
        add(finished, 1);
        add(&self.blocks, blocks);
        if what.failed {
            add(&self.failed, 1);
        }
        add(&self.total, took);
        if took > self.longest.load(Ordering::Relaxed) {
            self.longest.store(took, Ordering::Relaxed);
        }
        add(&self.by_log2.0[(u64::BITS - took.leading_zeros()) as usize], 1);
    }
}

/// Nobody else adds, so it need not be one step.
#[inline(always)]
fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
