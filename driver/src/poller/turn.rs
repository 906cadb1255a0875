//! One queue's turn within a poll: what it found goes up through the layers, and to the closure.
//!
//! Knows the order in which finished requests are delivered; must not know what a layer does with one.

use std::cmp::Reverse;
use std::ops::Range;

use super::cx::Cx;
use super::done::Done;
use super::layer::{Handle, Layer};
use super::pair::Pair;
use super::{Core, Poller, Stacked};
use crate::queue::Next;
use crate::request::{Attention, Line};

/// Idle polls with commands in flight after which the controller's status is read: it costs about as
/// much as a hundred polls.
const IDLE_POLLS: u32 = 1 << 16;

/// What is finished by other means than the success of a command that carried all of a request.
///
/// What finishes while this is worked off is left for the next time: a closure that submits what fails at
/// once must not keep us here.
pub(super) struct Rest {
    finished: Line,
    surfaced: Line,
    /// Layers that have still to be called.
    layers: Range<usize>,
    /// What they may return.
    most: usize,
}

impl Rest {
    pub(super) const NONE: Rest =
        Rest { finished: Line::EMPTY, surfaced: Line::EMPTY, layers: 0..0, most: 0 };

    /// What there is to do now, and what a panic left of an earlier time.
    #[cold]
    pub(super) fn collect(&mut self, cx: &mut Cx<'_>, layers: usize) {
        let finished = cx.core.tree.take_finished();
        self.finished.append(&mut cx.core.tree, finished);
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
        cx.core.tree.attention = Attention::REST;
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
            if let Some(io) = ascend(cx, layers, Handle::new(&cx.core.tree, id)) {
                return Some(io);
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

    #[inline(always)]
    pub(super) fn run(&mut self, f: &mut impl FnMut(Done<'_, L>)) -> usize {
        let here = self.index;
        let Turn { poller, pair: Some(pair), .. } = &mut *self else { return 0 };
        let queue = &mut pair.queue;
        let (mut count, mut idle) = (0, true);
        let mut more = poller.core.tree.attention != Attention::NONE;
        if more {
            poller.collect_rest(queue, here);
        }
        // What the closure submits is not rung before the loop ends, so an honest controller has no
        // more completions than this, and another one must not keep us here.
        let mut left = queue.most_completions();
        loop {
            let finished = if more {
                match poller.next_of_rest(queue, here) {
                    None => {
                        more = false;
                        continue;
                    }
                    finished => finished,
                }
            } else {
                if left == 0 {
                    break;
                }
                match queue.next(&mut poller.core.tree) {
                    Next::Nothing => break,
                    Next::Other => {
                        (idle, left) = (false, left - 1);
                        poller.collect_rest(queue, here);
                        more = true;
                        continue;
                    }
                    Next::Whole(node, slot) => {
                        (idle, left) = (false, left - 1);
                        let Poller { core, layers, .. } = &mut **poller;
                        let io = Handle::with_slot(&core.tree, node, slot, here);
                        ascend(&mut Cx { here, queue, core }, layers, io)
                    }
                }
            };
            let Some(io) = finished else { continue };
            count += 1;
            // One that went down whole, and still has its slot, is no event.
            if io.has_slot() || !poller.core.settled(io.node) {
                f(Done::new(queue, poller, io, here));
            }
        }
        queue.finish_poll(&mut poller.core.tree, idle);
        if idle {
            self.watch();
        }
        count
    }

    /// After many idle polls with commands in flight, looks whether the controller is still there: no
    /// command of a controller that is gone ever completes.
    #[inline(always)]
    fn watch(&mut self) {
        let Some(pair) = &mut self.pair else { return };
        pair.idle = if pair.queue.is_busy() { pair.idle + 1 } else { 0 };
        if pair.idle == IDLE_POLLS {
            pair.idle = 0;
            pair.check(&mut self.poller.core);
        }
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

/// A node that finished at the bottom passes its layers: `Some` if that finishes a request.
#[inline(always)]
fn ascend<L: Layer>(cx: &mut Cx<'_>, layers: &mut [Stacked<L>], io: Handle) -> Option<Handle> {
    // No layer is the last number there is, which no stack has.
    let layer = usize::from(cx.core.tree[io.node].layer);
    match layers.get_mut(layer) {
        None => Some(io),
        Some(stacked) => stacked.layer.complete(cx, io).inspect(|io| cx.check(io)),
    }
}
