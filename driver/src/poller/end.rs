//! Ends before the end: requests that are cancelled, or whose deadline passed.
//!
//! What was not issued yet is dropped at once; what is in flight goes on, and its memory stays where it is,
//! until its completion comes. Knows which requests an event stands for; must not know why it is ended.

use std::time::Duration;

use super::{Core, Layer, Poller};
use crate::request::{Cause, Event, NodeId, Reason, State};

impl<L: Layer> Poller<L> {
    /// Ends what an event waits for: it is resolved now, as a failure, if it was pending, and so is every
    /// pending request below it. No part of them is issued any more. An event settles when what was in
    /// flight has completed, which may have been carried out: outcome unknown.
    ///
    /// Losers of an `any` that has its winner are ended by cancelling the `any`.
    pub fn cancel(&mut self, event: Event) {
        self.end(event, Reason::Cancelled);
    }

    /// Gives an event `limit` from now on to be resolved; else it is [ended](Poller::cancel) as
    /// [expired](Reason::Expired), by the first poll after that. It is the caller's own limit: what the
    /// controller gets in time is another matter. A further one takes the place of the first.
    pub fn set_deadline(&mut self, event: Event, limit: Duration) {
        // Not the time of this poll: much may have happened since.
        let now = self.core.clock.as_ref().map_or(Duration::ZERO, |clock| clock.now());
        self.core.events.set_deadline(event, Some(now.saturating_add(limit)));
        self.core.tree.attention.add_touched();
    }

    /// Takes an event's deadline away.
    pub fn clear_deadline(&mut self, event: Event) {
        self.core.events.set_deadline(event, None);
    }

    /// Ends what is late.
    #[cold]
    pub(super) fn expire(&mut self) {
        let now = Duration::from_nanos(self.core.nanos());
        while let Some(event) = self.core.events.expired(now) {
            self.end(event, Reason::Expired);
        }
    }

    fn end(&mut self, event: Event, reason: Reason) {
        // A closure that panicked may have left it with requests that are not counted yet.
        self.core.events.flush();
        if matches!(self.core.events.state(event), None | Some(State::Settled(..))) {
            return;
        }
        let below = self.core.events.pending_requests(event);
        let compounds = self.core.events.compounds(event);
        self.core.events.resolve(event, reason);
        let cause = if reason == Reason::Expired { Cause::Expired } else { Cause::Cancelled };
        for (leaf, request) in below {
            self.core.events.resolve(leaf, reason);
            self.stop(request, cause);
        }
        for all in compounds {
            let counted: Vec<NodeId> = self.core.tree.counted_by(all).collect();
            if self.core.events.is_open(all) || !counted.is_empty() {
                self.core.events.resolve(all, reason);
            }
            // Nothing more is to come.
            self.core.events.close(all);
            counted.into_iter().for_each(|request| self.stop(request, cause));
        }
    }

    /// Lets nothing more of a request go down, nor of its children.
    fn stop(&mut self, request: NodeId, cause: Cause) {
        let mut work = vec![request];
        while let Some(id) = work.pop() {
            let Core { tree, again, .. } = &mut self.core;
            let node = &mut tree[id];
            if let (true, Some(pair)) = (node.counted, self.queues.get_mut(usize::from(node.queue))) {
                pair.queue.watch_counted(node, id);
            }
            // What is in flight may or may not be carried out: from its first block on.
            node.end(cause);
            let (waits, queue) = (node.waits, usize::from(node.queue));
            if node.in_flight == 0 && !waits {
                // Some layer keeps it for later.
                *again = true;
                tree.attention.add_news();
            }
            tree.attention.add_touched();
            if let Some(pair) = self.queues.get_mut(queue) {
                pair.end(tree, id, waits);
            }
            work.extend(tree.children(id));
        }
    }
}
