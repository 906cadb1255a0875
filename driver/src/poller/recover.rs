//! What a queue pair does about commands that take too long.
//!
//! Everything here is done at a poller's looks after its controllers, every 1024 polls, and nothing waits.
//! Knows the time and the order of steps; must not know how a command is found to be overdue, nor how one is
//! aborted.

use std::time::Duration;

use super::pair::Pair;
use crate::Result;
use crate::controller::Era;
use crate::defects::{self, Defect};
use crate::queue::SWEEPS;
use crate::request::{NodeId, Tree};

/// When commands are looked at for how long they take.
#[derive(Debug)]
pub(super) struct Timeout {
    /// Nanoseconds from one sweep to the next, unless commands may take for ever.
    interval: Option<u64>,
    next: u64,
}

impl Timeout {
    pub(super) fn new(timeout: Option<Duration>) -> Timeout {
        let interval = timeout.map(|timeout| (timeout.as_nanos() / u128::from(SWEEPS)) as u64);
        Timeout { interval, next: 0 }
    }

    /// Whether it is time for a sweep.
    fn is_due(&mut self, now: u64) -> bool {
        let Some(interval) = self.interval.filter(|_| now >= self.next) else { return false };
        // However late it is: a thread that was held up has not seen what came meanwhile.
        self.next = now.saturating_add(interval);
        true
    }
}

impl Pair {
    /// Looks for commands that are overdue, and sends those once more that are to be.
    #[cold]
    pub(super) fn recover(&mut self, tree: &mut Tree) {
        let era = self.controller.era();
        if era != self.era {
            return self.take_part(tree, era);
        }
        if !self.queue.is_busy() {
            return;
        }
        if self.unproved && self.queue.has_completed() {
            self.unproved = !self.controller.proved();
        }
        let Pair { queue, controller, qid, timeout, .. } = self;
        while let Some((cid, aborted)) = controller.abort_answer(*qid) {
            queue.abort_answered(cid, aborted);
        }
        let now = controller.clock().nanos();
        if queue.send_again(tree, now) {
            tree.attention.add_touched();
        }
        if !timeout.is_due(now) {
            return;
        }
        let found = queue.sweep();
        if found.lost > 0 {
            controller.recover();
        } else if found.overdue > 0 {
            queue.abort_overdue(|cid| controller.abort(*qid, cid));
        }
    }

    /// Takes part in a reset of the controller: stops, lets it go on, and is created anew.
    #[cold]
    fn take_part(&mut self, tree: &mut Tree, era: Era) {
        match era {
            Era::Lost { reaches_nothing } => {
                self.era = era;
                if !reaches_nothing {
                    self.controller.space().retire();
                }
                self.queue.fail_all(tree, reaches_nothing);
            }
            Era::Resetting(_) => {
                self.queue.suspend(tree, self.index);
                if self.stopped != Some(era) && self.controller.stopped(self.qid) {
                    self.stopped = Some(era);
                }
            }
            Era::Running(_) => {
                self.queue.suspend(tree, self.index);
                let rings = self.queue.empty_rings();
                match self.controller.create_again(self.qid, rings) {
                    Ok(()) => {
                        (self.era, self.unproved) = (era, true);
                        self.queue.resume(tree);
                    }
                    Err(_) => self.controller.recover(),
                }
            }
        }
    }

    /// Gives the queue pair up; an error if the controller may still reach its memory.
    pub(super) fn leave(&self) -> Result<()> {
        let ended = self.era != self.controller.era();
        self.controller.delete_queue_pair(self.qid, ended).or_else(|_| self.controller.quiesce())
    }

    /// What is waiting of a node that was ended is dropped, and what is in flight is to be aborted.
    #[cold]
    pub(super) fn end(&mut self, tree: &mut Tree, id: NodeId, waits: bool) {
        let Pair { queue, controller, qid, .. } = self;
        if waits {
            queue.drop_unissued(tree, id);
        }
        queue.drop_put_off(tree, id);
        queue.abort_node(id, |cid| controller.abort(*qid, cid));
        if defects::is(Defect::ReleaseMemoryEarly) {
            queue.abandon(tree, id);
        }
    }
}
