//! Commands that take too long: how long they have been in flight, in sweeps.
//!
//! No command has a time of its own. A sweep of all slots, four times in a command timeout, counts those
//! that it finds in flight; a slot's next command overwrites the count. So an I/O costs nothing for it, and
//! a command is overdue after the timeout and up to a quarter of it more. Knows ages; must not know the
//! time, nor what is done about a command that is overdue.

use super::Queue;
use super::slots::Piece;
use crate::request::NodeId;

/// Sweeps in a command timeout.
pub(crate) const SWEEPS: u32 = 4;
/// The first sweep finds a command at some age, and these follow it.
const OVERDUE: u32 = 1 + SWEEPS;
/// As long once more, for what was done about it.
const LOST: u32 = OVERDUE + SWEEPS;

/// What a sweep found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sweep {
    /// Commands that are overdue, and whose Abort was not asked for yet.
    pub(crate) overdue: u32,
    /// Commands that are overdue twice.
    pub(crate) lost: u32,
}

impl Queue {
    /// Counts a sweep for every command in flight.
    #[cold]
    pub(crate) fn sweep(&mut self) -> Sweep {
        let mut found = Sweep::default();
        for index in 0..self.slots.depth() {
            if !self.slots.is_in_flight(index) {
                continue;
            }
            let age = self.slots.grow_older(index);
            self.counted.timeouts += u64::from(age == OVERDUE);
            found.lost += u32::from(age >= LOST);
            found.overdue += u32::from(age >= OVERDUE && !self.slots.is_abort_asked(index));
        }
        found
    }

    /// Whether the command in a slot is overdue.
    pub(super) fn is_overdue(&self, index: usize) -> bool {
        self.slots.age(index) >= OVERDUE
    }

    /// Asks for an Abort of every command that is overdue, once: `ask` takes a CID, and says whether it
    /// could be asked for.
    #[cold]
    pub(crate) fn abort_overdue(&mut self, ask: impl FnMut(u16) -> bool) {
        self.abort(Queue::is_overdue, ask);
    }

    /// Asks for an Abort of every command of a node, unless others share it.
    #[cold]
    pub(crate) fn abort_node(&mut self, id: NodeId, ask: impl FnMut(u16) -> bool) {
        let is_its = |queue: &Queue, index: usize| {
            let slot = queue.slots.get(index);
            slot.node == id && !matches!(slot.piece, Piece::Merged { .. })
        };
        self.abort(is_its, ask);
    }

    fn abort(&mut self, wanted: impl Fn(&Queue, usize) -> bool, mut ask: impl FnMut(u16) -> bool) {
        for index in 0..self.slots.depth() {
            let due = self.slots.is_in_flight(index) && !self.slots.is_abort_asked(index);
            if due && wanted(self, index) && ask(self.slots.cid(index)) {
                self.slots.note_abort(index, true);
                self.counted.aborts += 1;
            }
        }
    }

    /// The controller has answered an Abort. If it did not abort the command, it has completed it, or knows
    /// nothing of it: then there is nothing more to wait for than a completion that is on its way.
    #[cold]
    pub(crate) fn abort_answered(&mut self, cid: u16, aborted: bool) {
        let index = self.slots.index_of(cid);
        if aborted || self.slots.cid(index) != cid || !self.slots.is_in_flight(index) {
            return;
        }
        if self.slots.age(index) >= OVERDUE {
            self.slots.set_age(index, self.slots.age(index).max(LOST - 1));
        } else {
            // Its owner gave it up, and it goes on: it may be asked for again when it is overdue.
            self.slots.note_abort(index, false);
        }
    }
}
