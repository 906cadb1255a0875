//! One queue's turn within a poll: what it found goes up through the layers, and to the closure.
//!
//! Knows the order in which finished requests are delivered; must not know what a layer does with one.

use std::cmp::Reverse;
use std::ops::Range;

use super::cx::Cx;
use super::done::Done;
use super::layer::{Handle, Layer, NO_SLOT};
use super::others::{Others, split};
use super::{Core, Poller, Stacked};
use crate::queue::{Next, Queue};
use crate::request::{Line, NodeId};

/// What is finished by other means than the success of a command that carried all of a request.
///
/// What finishes while this is worked off is left for the next time: a closure that submits what fails at
/// once must not keep us here.
pub(super) struct Rest {
    finished: Line,
    /// Those that have no layers above them.
    landed: Line,
    surfaced: Line,
    /// Layers that have still to be called.
    layers: Range<usize>,
    /// What they may return.
    most: usize,
}

impl Rest {
    pub(super) const NONE: Rest =
        Rest { finished: Line::EMPTY, landed: Line::EMPTY, surfaced: Line::EMPTY, layers: 0..0, most: 0 };

    /// What there is to do now, and what a panic left of an earlier time.
    #[cold]
    pub(super) fn collect(&mut self, cx: &mut Cx<'_>, layers: usize) {
        let finished = cx.core.tree.take_finished();
        self.finished.append(&mut cx.core.tree, finished);
        let landed = cx.core.tree.take_landed();
        self.landed.append(&mut cx.core.tree, landed);
        let surfaced = std::mem::replace(&mut cx.core.surfaced, Line::EMPTY);
        self.surfaced.append(&mut cx.core.tree, surfaced);
        let mut due = false;
        while let Some(Reverse(at)) = cx.core.wake_at.peek().copied()
            && at <= cx.now()
        {
            due = true;
            cx.core.wake_at.pop();
        }
        if std::mem::take(&mut cx.core.again) || due {
            self.layers = 0..layers;
        }
        // If the closure panics, this is where the next turn goes on.
        cx.core.tree.attention.begin_rest();
        cx.core.tell_observers();
        // At least one: a layer may have something to do without a request.
        self.most = cx.core.tree.len().max(1);
    }

    /// The next request; it has passed its layers.
    #[cold]
    pub(super) fn next<L: Layer>(&mut self, cx: &mut Cx<'_>, layers: &mut [Stacked<L>]) -> Option<Handle> {
        if let Some(id) = self.surfaced.pop(&cx.core.tree) {
            return Some(Handle::new(&cx.core.tree, id));
        }
        while let Some(id) = self.finished.pop(&cx.core.tree) {
            cx.hand_over(id);
            let io = Handle::new(&cx.core.tree, id);
            let io = match layers.get_mut(cx.core.tree.layer(id)) {
                None => Some(io),
                Some(stacked) => stacked.complete(cx, io),
            };
            if io.is_some() {
                return io;
            }
        }
        while let Some(index) = self.layers.clone().next() {
            if self.most > 0
                && let Some(io) = layers[index].layer.poll(cx)
            {
                self.most -= 1;
                cx.check(&io);
                return Some(io);
            }
            self.layers.next();
            if self.most == 0 {
                cx.call_again();
            }
        }
        let Core { tree, wake_at, .. } = &mut *cx.core;
        tree.attention.clear_rest(!wake_at.is_empty());
        None
    }
}

/// Where a turn is with what is finished by other means.
#[derive(PartialEq)]
enum Stage {
    /// It is not looked at yet, or a completion may have brought more since.
    Open,
    /// It is being worked off.
    Working,
    /// It was worked off: what has come since is left for the next turn.
    Over,
}

impl<L: Layer> Poller<L> {
    /// Gives a queue its turn. `f` is called from one place alone, so that it is inlined here. If it panics,
    /// the queue has its next turn in the next poll.
    #[inline(never)]
    pub(super) fn turn(&mut self, index: usize, f: &mut impl FnMut(Done<'_, L>)) -> usize {
        let Poller { queues, core, layers, rest, .. } = self;
        core.now = None;
        let Some((pair, mut others)) = split(queues, index) else { return 0 };
        let queue = &mut pair.queue;
        queue.begin_turn(&mut core.tree);
        let (mut count, mut stage) = (0, Stage::Open);
        loop {
            let (node, slot) = match queue.next(&mut core.tree) {
                Next::Whole(node, slot) if L::NONE => (node, slot),
                Next::Whole(node, slot) => {
                    match ascend((queue, &mut others, core), layers, node, slot, &mut count) {
                        Some(finished) => finished,
                        None => continue,
                    }
                }
                Next::Other => {
                    stage = Stage::Open;
                    if queue.is_flooded() {
                        queue.leave_row(&mut core.tree);
                        core.tree.attention.add_touched();
                        break;
                    }
                    continue;
                }
                Next::Nothing if !core.tree.attention.has_rest() => break,
                Next::Nothing if queue.has_row() => match queue.next_of_row(&mut core.tree) {
                    Some(node) => (node, NO_SLOT),
                    None => continue,
                },
                Next::Nothing => {
                    let mut cx = Cx::new(queue, &mut others, core);
                    match rest.next_one(&mut cx, layers, &mut stage, &mut count) {
                        Some(node) => (node, NO_SLOT),
                        None if stage == Stage::Over => break,
                        None => {
                            stage = Stage::Over;
                            continue;
                        }
                    }
                }
            };
            count += 1;
            f(Done::new(queue, others.again(), core, layers, node, slot));
        }
        pair.idle = 0;
        if pair.queue.is_gated() {
            pair.queue.finish_gated(&mut core.tree);
            core.events.flush();
        }
        pair.queue.finish_turn();
        count
    }
}

impl Rest {
    /// The next one for the closure, which has no slot, or none; those that are events are counted.
    #[cold]
    #[inline(never)]
    fn next_one<L: Layer>(
        &mut self,
        cx: &mut Cx<'_>,
        layers: &mut [Stacked<L>],
        stage: &mut Stage,
        count: &mut usize,
    ) -> Option<NodeId> {
        match stage {
            Stage::Over => return None,
            Stage::Working => {}
            Stage::Open => {
                self.collect(cx, layers.len());
                *stage = Stage::Working;
            }
        }
        while let Some(id) = self.landed.pop(&cx.core.tree) {
            cx.hand_over(id);
            let node = &mut cx.core.tree[id];
            // It has no slot to go straight down again in.
            node.wire.forget();
            if node.is_plain() || !cx.core.settled(id) {
                return Some(id);
            }
            *count += 1;
        }
        while let Some(mut io) = self.next(cx, layers) {
            cx.release_slot(&mut io);
            // Without a slot there is no command that could be sent again.
            cx.core.tree[io.node].wire.forget();
            if !cx.core.settled(io.node) {
                return Some(io.node);
            }
            *count += 1;
        }
        None
    }
}

/// A node whose command carried all of it, and succeeded, passes its layers: `Some` if that finishes a
/// request, which may still have a slot, for the closure; those that are events are counted.
#[inline(always)]
fn ascend<L: Layer>(
    (queue, others, core): (&mut Queue, &mut Others<'_>, &mut Core),
    layers: &mut [Stacked<L>],
    node: NodeId,
    slot: u32,
    count: &mut usize,
) -> Option<(NodeId, u32)> {
    let Some(stacked) = layers.get_mut(usize::from(core.tree[node].layer)) else { return Some((node, slot)) };
    if let Some(plain) = &stacked.plain {
        // It is the request itself, and stays where it is.
        plain.up(core, node);
        return Some((node, slot));
    }
    ascend_layers(&mut Cx::new(queue, others, core), stacked, node, slot, count)
}

#[inline(never)]
fn ascend_layers<L: Layer>(
    cx: &mut Cx<'_>,
    stacked: &mut Stacked<L>,
    node: NodeId,
    slot: u32,
    count: &mut usize,
) -> Option<(NodeId, u32)> {
    cx.core.tree[node].in_flight = 0;
    let io = Handle::with_slot(&cx.core.tree, node, slot, cx.here);
    let mut io = stacked.complete(cx, io)?;
    if io.has_slot() && io.queue == cx.here {
        return Some((io.node, io.slot));
    }
    cx.release_slot(&mut io);
    cx.core.tree[io.node].wire.forget();
    if cx.core.settled(io.node) {
        *count += 1;
        return None;
    }
    Some((io.node, NO_SLOT))
}
