//! One queue's turn within a poll: what it found goes up through the layers, and to the closure.
//!
//! Knows the order in which finished requests are delivered; must not know what a layer does with one.

use std::cmp::Reverse;
use std::ops::Range;

use super::cx::Cx;
use super::done::Done;
use super::layer::{Handle, Layer, NO_SLOT};
use super::pair::Pair;
use super::{Core, Poller, Stacked};
use crate::queue::Next;
use crate::request::{Line, NodeId};

/// Idle polls with commands in flight after which the controller's status is read: it costs about as
/// much as a hundred polls.
const IDLE_POLLS: u32 = 1 << 16;

/// What is finished by other means than the success of a command that carried all of a request.
///
/// What finishes while this is worked off is left for the next time: a closure that submits what fails at
/// once must not keep us here.
pub(super) struct Rest {
    finished: Line,
    /// Those that have no layers above them.
    pub(super) landed: Line,
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
        // What a panic left may have been prepared for what is not there any more.
        let mut left = self.landed.first();
        while !left.is_none() {
            let node = &mut cx.core.tree[left];
            node.wire.forget();
            left = node.next;
        }
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
            let io = Handle::new(&cx.core.tree, id);
            let io = match layers.get_mut(cx.core.tree.layer(id)) {
                None => Some(io),
                Some(stacked) => stacked.layer.complete(cx, io).inspect(|io| cx.check(io)),
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

/// One queue's turn within a poll. The queue is out of the poller, so that the caller's closure
/// can submit to it and to all others; it is put back even if the closure panics.
pub(super) struct Turn<'a, L: Layer> {
    poller: &'a mut Poller<L>,
    index: u16,
    pair: Option<Box<Pair>>,
}

impl<'a, L: Layer> Turn<'a, L> {
    #[inline(always)]
    pub(super) fn new(poller: &'a mut Poller<L>, index: u16) -> Turn<'a, L> {
        let pair = poller.core.queues.get_mut(usize::from(index)).and_then(Option::take);
        Turn { poller, index, pair }
    }

    #[inline(always)]
    pub(super) fn cx(&mut self) -> Option<(Cx<'_>, &mut [Stacked<L>])> {
        let Poller { core, layers, .. } = &mut *self.poller;
        let queue = &mut self.pair.as_mut()?.queue;
        Some((Cx { here: self.index, queue, core }, layers))
    }

    /// `polls` are those since the last time that every queue had its turn.
    #[inline(always)]
    pub(super) fn run(&mut self, polls: u32, f: &mut impl FnMut(Done<'_, L>)) -> usize {
        let here = self.index;
        let Turn { poller, pair: Some(pair), .. } = &mut *self else { return 0 };
        let (poller, queue) = (&mut **poller, &mut pair.queue);
        let most = queue.begin_turn();
        let (mut count, mut others) = (0, most);
        // Whether there is a rest that is being worked off, and more of it.
        let mut rest = false;
        let mut more = poller.core.tree.attention.has_rest();
        loop {
            let (node, slot) = match queue.next(&mut poller.core.tree) {
                Next::Whole(node, slot) => {
                    let Poller { core, layers, .. } = &mut *poller;
                    match ascend(&mut Cx { here, queue, core }, layers, node, slot, &mut count) {
                        Some(finished) => finished,
                        None => continue,
                    }
                }
                Next::Other(found) => {
                    (more, others) = (true, others.saturating_sub(found));
                    if others == 0 {
                        poller.core.tree.attention.add_touched();
                        break;
                    }
                    continue;
                }
                Next::Nothing if !rest && !more => break,
                Next::Nothing => {
                    if !rest {
                        poller.collect_rest(queue, here);
                        (rest, more) = (true, false);
                    }
                    let node = poller.next_of_rest(queue, here, &mut count);
                    if node.is_none() {
                        rest = false;
                        continue;
                    }
                    (node, NO_SLOT)
                }
            };
            count += 1;
            f(Done::new(queue, poller, node, slot, here));
        }
        // Where something was found, it is not known for how many polls there was nothing before.
        pair.idle =
            if polls > 0 && (count, others) == (0, most) { pair.idle.saturating_add(polls) } else { 0 };
        queue.finish_turn(&mut poller.core.tree, pair.idle);
        if pair.idle >= IDLE_POLLS {
            pair.idle = 0;
            // No command of a controller that is gone ever completes.
            if queue.is_busy() {
                pair.check(&mut poller.core);
            }
        }
        count
    }
}

impl<L: Layer> Drop for Turn<'_, L> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(home) = self.poller.core.queues.get_mut(usize::from(self.index)) {
            *home = self.pair.take();
        }
    }
}

/// A node whose command carried all of it, and succeeded, passes its layers: `Some` if that finishes a
/// request, which may still have a slot, for the closure; those that are events are counted.
#[inline(always)]
fn ascend<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    node: NodeId,
    slot: u32,
    count: &mut usize,
) -> Option<(NodeId, u32)> {
    if L::NONE {
        return Some((node, slot));
    }
    let Some(stacked) = layers.get_mut(cx.core.tree.layer(node)) else { return Some((node, slot)) };
    if stacked.plain.is_some() {
        // It is the request itself, and stays where it is.
        stacked.layer.pass_up(&mut cx.core.passing(node));
        return Some((node, slot));
    }
    ascend_layers(cx, stacked, node, slot, count)
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
    let mut io = stacked.layer.complete(cx, io)?;
    cx.check(&io);
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
