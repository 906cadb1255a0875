//! Observers: parts of a request whose completion is an event of its own, while the rest is under way.
//!
//! Knows which blocks of which request an observer waits for; must not know how they are carried out.

use std::ops::Range;

use super::{Core, Layer, Poller};
use crate::request::{Event, Failure, NodeId, Operation, Progress};

/// All observers of a poller.
#[derive(Debug, Default)]
pub(super) struct Observers {
    list: Vec<Observer>,
}

#[derive(Debug)]
struct Observer {
    event: Event,
    node: NodeId,
    blocks: Range<u64>,
    block_shift: u32,
    /// Blocks of the range that have not succeeded yet.
    left: u64,
    /// Blocks of it are carried out once more, or nobody can tell which were: then it is done with its
    /// request, not before.
    late: bool,
    settled: bool,
}

/// Why a range of a request cannot be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// The event stands for no request, or was released.
    #[error("the event is not that of a request that is there")]
    NoRequest,
    /// The range is empty, or beyond the end of the request's memory.
    #[error("a range of {len} bytes is not within the request")]
    Outside {
        /// Bytes of the range.
        len: u64,
    },
}

impl<L: Layer> Poller<L> {
    /// An event for a part of a request, of bytes of its memory: settled when the blocks that have
    /// these bytes are done, whatever of the rest is still under way. It fails if the request fails
    /// before.
    ///
    /// Not for the I/O path: it looks at every command in flight of the request's queue.
    pub fn observe(&mut self, request: Event, bytes: Range<u64>) -> Result<Event, BadRange> {
        let node = self.core.events.request(request).ok_or(BadRange::NoRequest)?;
        // What has come already is not to be counted twice.
        self.core.tell_observers();
        let io = &self.core.tree[node].io;
        let moves = matches!(io.operation(), Operation::Read | Operation::Write);
        let len = if moves { io.memory().len() as u64 } else { 0 };
        if bytes.is_empty() || bytes.end > len {
            return Err(BadRange::Outside { len: bytes.end.saturating_sub(bytes.start) });
        }
        let block_shift = (len / self.core.tree[node].io.blocks()).trailing_zeros();
        let blocks = bytes.start >> block_shift..bytes.end.div_ceil(1 << block_shift);
        let event = self.core.events.leaf(NodeId::NONE);
        let (left, late) = self.unsettled(node, &blocks);
        let observer = Observer { event, node, blocks, block_shift, left, late, settled: false };
        self.core.tree[node].observed = true;
        self.core.observers.list.push(observer);
        if let Some(crate::request::State::Settled(verdict, _)) = self.core.events.state(request) {
            let failure = self.core.tree[node].failure().filter(|_| !verdict.success);
            self.core.finish_observers(node, failure);
        } else if left == 0 && !late {
            self.core.observers.list.last_mut().expect("just pushed").settled = true;
            self.core.events.settle(event, 0, None);
        }
        Ok(event)
    }

    /// How many blocks of a range have not succeeded yet, and whether that cannot be told.
    fn unsettled(&mut self, id: NodeId, blocks: &Range<u64>) -> (u64, bool) {
        let node = &self.core.tree[id];
        if node.failed.is_some() || node.judged {
            return (overlap(blocks, blocks), true);
        }
        let unissued = overlap(blocks, &(node.cursor..u64::MAX));
        let mut pieces: Vec<Range<u64>> = (self.core.tree.children(id))
            .map(|child| &self.core.tree[child])
            .map(|child| child.offset()..child.offset() + child.io.extent())
            .collect();
        let queue = usize::from(node.queue);
        if let (true, Some(pair)) = (pieces.is_empty(), self.queues.get(queue)) {
            pieces.extend(pair.queue.in_flight_of(id));
        }
        let in_flight: u64 = pieces.iter().map(|piece| overlap(blocks, piece)).sum();
        (unissued + in_flight, pieces.len() != node.in_flight as usize)
    }

    /// The bytes of an observed part, once it is settled and succeeded, as long as its request is not
    /// claimed. `None` as well if any of its request's memory is a guest's, or if a lost controller may
    /// still write it.
    pub fn observed(&self, observer: Event) -> Option<impl Iterator<Item = &[u8]>> {
        let here = self.core.observers.list.iter().find(|here| here.event == observer)?;
        if !here.settled || here.late || here.left > 0 || self.core.tree.is_forfeited(here.node) {
            return None;
        }
        let (chain, start) = self.core.tree.memory_from_start(here.node);
        let gone = (chain.len() as u64) < here.blocks.end << here.block_shift;
        if gone || chain.iter().any(|segment| segment.is_shared()) {
            return None;
        }
        let at = chain.advance(start, here.blocks.start << here.block_shift);
        Some(chain.slices(at, (here.blocks.end - here.blocks.start) << here.block_shift))
    }
}

impl Core {
    /// Counts the pieces of observed requests that settled since the last time.
    pub(super) fn tell_observers(&mut self) {
        let Core { observers, tree, events, .. } = self;
        while let Some((node, blocks, progress)) = tree.next_observed() {
            for observer in observers.list.iter_mut().filter(|here| here.node == node) {
                let common = overlap(&observer.blocks, &blocks);
                match progress {
                    Progress::Open => observer.late |= common > 0,
                    Progress::Done => observer.left = observer.left.saturating_sub(common),
                }
                if observer.left == 0 && !observer.late && !observer.settled {
                    observer.settled = true;
                    events.settle(observer.event, 0, None);
                }
            }
        }
    }

    /// A request is finished: so is every part of it.
    pub(super) fn finish_observers(&mut self, node: NodeId, failure: Option<Failure>) {
        self.tell_observers();
        let Core { observers, events, .. } = self;
        // Those that are settled, and whose blocks were carried out once more since, are shown again if
        // that succeeded.
        for observer in observers.list.iter_mut().filter(|here| here.node == node) {
            if !observer.settled || observer.late {
                observer.left = if failure.is_none() { 0 } else { observer.left.max(1) };
                observer.late = false;
            }
            if !std::mem::replace(&mut observer.settled, true) {
                events.settle(observer.event, 0, failure);
            }
        }
    }

    /// The request leaves the poller, and its memory with it.
    pub(super) fn forget_observers(&mut self, node: NodeId) {
        self.observers.list.retain(|here| here.node != node);
    }

    /// Nobody looks at an observer any more. One that is not settled still counts for events above it.
    pub(super) fn forget_observer(&mut self, event: Event) {
        self.observers.list.retain(|here| here.event != event || !here.settled);
    }
}

/// Blocks that two ranges have in common.
fn overlap(a: &Range<u64>, b: &Range<u64>) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}
