//! Commands that are sent once more: after an Abort, after a reset, or since the controller asks for it.
//!
//! A command keeps its slot until it is sent again, so that nothing is needed for it but that slot, and what
//! the command looks like is worked out anew from its node and its piece. Knows which commands may be
//! carried out twice; must not know how a controller is reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cut::{NO_DATA, nlb};
use super::runs::Parts;
use super::slots::{MOST_TRIES, Piece, Slot};
use super::{Queue, Reachable, SUSPENDED};
use crate::defects::{self, Defect};
use crate::request::{Cause, Node, NodeId, Operation, Tree, Wire};
use crate::spec::Status;

/// What becomes of commands that were in flight when the controller was reset, and change what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replay {
    /// They are sent once more. Where requests that overlap were in flight together, what is stored is of
    /// any of them, as ever; one that was overwritten already may be carried out once more, after the
    /// other. A request that has completed is never carried out again.
    #[default]
    Reissue,
    /// Their requests fail with [`OutcomeUnknown`](crate::Cause::OutcomeUnknown).
    Report,
}

/// The longest that a command waits to be sent once more. A controller can ask for almost two hours; then the
/// request fails, and its caller decides.
const MOST_DELAY: Duration = Duration::from_secs(30);

/// A command that is to be sent once more; its slot knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PutOff {
    slot: u16,
    /// How long it waits, counted from the first look at it.
    delay: Duration,
    /// In nanoseconds, once it is known.
    due: Option<u64>,
}

/// What is to be done for a namespace after a reset.
#[derive(Debug)]
pub(super) struct Upkeep {
    pub(super) replay: Replay,
    pub(super) cache: Arc<CacheLoss>,
}

/// Whether what was written to a namespace and not flushed may be lost with a volatile cache, and nobody was told yet.
/// All handles' queues share it.
#[derive(Debug, Default)]
pub(crate) struct CacheLoss {
    untold: AtomicBool,
    /// It has ever been lost: there is a cache that can be.
    ever: AtomicBool,
}

impl CacheLoss {
    /// A reset may have dropped the cache.
    pub(crate) fn lose(&self) {
        self.ever.store(true, Ordering::Relaxed);
        self.untold.store(true, Ordering::Relaxed);
    }

    /// Somebody gets a request of which some was done before a reset: if a flush has told of that already, it was too
    /// early for this request.
    fn find_late(&self) {
        if self.was_lost() {
            self.untold.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a cache has ever been lost.
    pub(super) fn was_lost(&self) -> bool {
        self.ever.load(Ordering::Relaxed)
    }

    fn is_untold(&self) -> bool {
        self.untold.load(Ordering::Relaxed)
    }

    /// Whether it is to be told now; once.
    fn tell(&self) -> bool {
        self.untold.swap(false, Ordering::Relaxed)
    }
}

impl Queue {
    pub(crate) fn set_retry_delays(&mut self, delays: Option<[Duration; 3]>) {
        self.retry_delays = delays;
    }

    pub(crate) fn set_replay(&mut self, namespace: u16, replay: Replay) {
        self.upkeep[usize::from(namespace)].replay = replay;
    }

    // ---- a completion that is not the last word ----

    /// A completion of a command that has marks in its slot: if it is nothing but the success of one that
    /// carries all of its node, the marks go, and the next look finds it again and takes it for what it is. Those stay of
    /// a flush that may have to tell of a loss, and of what may be lost.
    #[cold]
    #[inline(never)]
    pub(super) fn look_again(&mut self, tree: &Tree, index: usize, high: u64) -> bool {
        let node = &tree[self.slots.get(index).node];
        let watched = self.is_late_flush(node) || self.is_suspended() && node.is_cached();
        !watched && self.slots.rejuvenate(index, high)
    }

    /// A command is over, with a status that may not be the last word.
    #[cold]
    #[inline(never)]
    pub(super) fn settle_unless_put_off(&mut self, tree: &mut Tree, index: usize, status: Status) {
        if status.is_success() || !self.try_again(tree, index, status) {
            let cause = self.verdict(tree, index, status);
            self.settle(tree, index, cause);
        }
    }

    /// Puts a command off that failed, if it is to be sent once more.
    fn try_again(&mut self, tree: &mut Tree, index: usize, status: Status) -> bool {
        let Slot { node, piece, .. } = *self.slots.get(index);
        let Some(delay) = self.retry_delay(index, status) else { return false };
        // Merged ones go down once more anyway, one by one.
        if matches!(piece, Piece::Merged { .. }) || !self.may_repeat(&tree[node], index) {
            return false;
        }
        self.slots.add_try(index);
        self.slots.put_off(index);
        self.again.push(PutOff { slot: index as u16, delay, due: None });
        true
    }

    /// How long a command waits to be sent once more, by its status; `None` if it is not for us to do that.
    fn retry_delay(&self, index: usize, status: Status) -> Option<Duration> {
        if status.code() == Status::ABORT_REQUESTED && self.slots.is_abort_asked(index) {
            return Some(Duration::ZERO);
        }
        let asked = usize::from(status.crd()).checked_sub(1).filter(|_| !status.dnr())?;
        let delay = *self.retry_delays?.get(asked)?;
        (delay <= MOST_DELAY).then_some(delay)
    }

    /// How a command that is over went; of a flush, whether it has come too late.
    fn verdict(&mut self, tree: &Tree, index: usize, status: Status) -> Option<Cause> {
        let node = &tree[self.slots.get(index).node];
        // One that was cancelled, or is past its deadline, has its result already, and tells nobody.
        let late = status.is_success() && self.is_late_flush(node) && node.failed.is_none();
        let namespace = node.namespace;
        if late && self.upkeep[usize::from(namespace)].cache.tell() {
            return Some(Cause::CacheLost);
        }
        // Without what nobody has agreed on, it means nothing.
        let crd = if self.retry_delays.is_some() { status.crd() } else { 0 };
        (!status.is_success()).then_some(Cause::Status(status.with_crd(crd)))
    }

    /// Whether a node is a flush, after a reset that nobody was told of.
    pub(super) fn is_late_flush(&self, node: &Node) -> bool {
        node.io.operation() == Operation::Flush && self.upkeep[usize::from(node.namespace)].cache.is_untold()
    }

    /// Whether a command of a node may be carried out twice, and the node still wants it.
    fn may_repeat(&self, node: &Node, index: usize) -> bool {
        node.failed.is_none()
            && self.slots.tries(index) < MOST_TRIES
            && node.io.is_idempotent()
            && self.gone(node.namespace).is_none()
    }

    /// The same after a reset, when others may have been carried out since.
    fn may_replay(&self, node: &Node, index: usize) -> bool {
        let harmless = matches!(node.io.operation(), Operation::Read | Operation::Flush | Operation::Raw);
        let replay = self.upkeep[usize::from(node.namespace)].replay;
        self.may_repeat(node, index) && (harmless || replay == Replay::Reissue)
    }

    // ---- sending ----

    /// Sends what was put off until now; true if that was anything.
    #[cold]
    pub(crate) fn send_again(&mut self, tree: &mut Tree, now: u64) -> bool {
        let mut sent = false;
        let mut at = 0;
        while self.gate & SUSPENDED == 0
            && let Some(put_off) = self.again.get_mut(at)
        {
            let due = now.saturating_add(put_off.delay.as_nanos() as u64);
            if *put_off.due.get_or_insert(due) > now {
                at += 1;
                continue;
            }
            let index = usize::from(self.again.swap_remove(at).slot);
            self.send_once_more(tree, index);
            sent = true;
        }
        sent
    }

    /// What was put off of a node that was ended is over.
    #[cold]
    pub(crate) fn drop_put_off(&mut self, tree: &mut Tree, id: NodeId) {
        for at in (0..self.again.len()).rev() {
            let index = usize::from(self.again[at].slot);
            if self.slots.get(index).node == id {
                self.again.swap_remove(at);
                self.settle(tree, index, Some(Cause::OutcomeUnknown));
            }
        }
    }

    /// Takes what is in flight of a node for over.
    pub(crate) fn abandon(&mut self, tree: &mut Tree, id: NodeId) {
        for index in 0..self.slots.depth() {
            let Slot { node, piece, .. } = *self.slots.get(index);
            let shared = matches!(piece, Piece::Merged { .. });
            if node == id && !shared && self.slots.is_in_flight(index) {
                self.settle(tree, index, Some(Cause::OutcomeUnknown));
            }
        }
    }

    /// Sends the command of a slot once more, in the same slot, or fails it if that cannot be.
    fn send_once_more(&mut self, tree: &mut Tree, index: usize) {
        let Slot { node: id, .. } = *self.slots.get(index);
        let Some((wire, first)) = self.rebuild(tree, index).filter(|_| tree[id].failed.is_none()) else {
            return self.settle(tree, index, Some(Cause::OutcomeUnknown));
        };
        self.counted.resent += 1;
        let cid = self.slots.occupy_once_more(index);
        self.push_piece(&tree[id].io, &wire, cid, first);
        if defects::is(Defect::ReissueTwice) {
            self.push_piece(&tree[id].io, &wire, cid, first);
        }
    }

    /// The command for the piece of a slot, and the piece's first block; `None` for one that several share.
    fn rebuild(&mut self, tree: &Tree, index: usize) -> Option<(Wire, u64)> {
        let Slot { node: id, piece, .. } = *self.slots.get(index);
        let io = &tree[id].io;
        let (first, blocks) = match piece {
            Piece::Whole => (0, io.extent()),
            Piece::Part { first, blocks } | Piece::Bounced { first, blocks, .. } => (first, blocks.into()),
            Piece::Merged { .. } => return None,
        };
        let Reachable { nsid, limits } = *self.reachable(tree[id].namespace);
        let bytes = blocks << limits.block_shift;
        let (pointer, tail) = match (io.operation(), piece) {
            (Operation::Read | Operation::Write, Piece::Bounced { buffer, .. }) => {
                (self.contiguous_pointer(self.bounce.run(buffer, bytes), index), nlb(io, blocks))
            }
            (Operation::Read | Operation::Write, _) => {
                let (chain, start) = tree.memory_from_start(id);
                let at = chain.advance(start, first << limits.block_shift);
                (self.data_pointer(Parts::new(chain, at, bytes), index), nlb(io, blocks))
            }
            (Operation::WriteZeroes, _) => (NO_DATA, nlb(io, blocks)),
            (Operation::Deallocate, _) => {
                ((self.deallocate_range(index, io.lba().wrapping_add(first), blocks), 0), 0)
            }
            (Operation::Flush, _) => (NO_DATA, 0),
            (Operation::Raw, _) => {
                let (chain, at) = tree.memory_from_start(id);
                let pointer = match chain.len() as u64 {
                    0 => NO_DATA,
                    len => self.data_pointer(Parts::new(chain, at, len), index),
                };
                (pointer, io.raw_words().cdw12_13)
            }
        };
        let opcode = io.operation().opcode().map_or_else(|| io.raw_words().opcode_flags, u16::from);
        Some((self.wire(nsid, opcode, pointer, tail), first))
    }

    // ---- a reset ----

    /// Stops: from now on the controller is told nothing of this queue pair, the poller's with this index, until it is
    /// resumed. What it still completes is taken in.
    #[cold]
    pub(crate) fn suspend(&mut self, tree: &mut Tree, here: u16) {
        if !self.is_suspended() {
            self.mark_done(tree, here);
        }
        self.gate |= SUSPENDED;
        self.sq.hush();
        self.cq.mute();
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.gate & SUSPENDED != 0
    }

    /// Empties the rings, of which the controller knows nothing any more: their addresses and lengths, of
    /// the submission and of the completion queue.
    #[cold]
    pub(crate) fn empty_rings(&mut self) -> [(u64, u32); 2] {
        self.sq.restart();
        self.cq.restart();
        [(self.sq.iova(), self.sq.len()), (self.cq.iova(), self.cq.len())]
    }

    /// Goes on, with rings that are empty and that the controller knows: what was in flight is sent once
    /// more, or its outcome is unknown.
    #[cold]
    pub(crate) fn resume(&mut self, tree: &mut Tree) {
        self.gate &= !SUSPENDED;
        self.counted.resets += 1;
        self.wary = true;
        self.again.clear();
        self.mark_begun(tree);
        for index in 0..self.slots.depth() {
            if self.slots.is_in_flight(index) || self.slots.is_put_off(index) {
                self.replay(tree, index);
            }
        }
        tree.attention.add_touched();
    }

    /// Marks what is done before a reset, and may be fetched after it; and what may be done before it, and be found after
    /// it. By then a flush may have told of the loss, another poller's too.
    fn mark_done(&mut self, tree: &mut Tree, here: u16) {
        for node in tree.unfetched(here) {
            node.doubtful = node.is_cached();
        }
        for index in 0..self.slots.depth() {
            if self.slots.is_in_flight(index) && tree[self.slots.get(index).node].is_cached() {
                self.slots.watch(index);
            }
        }
    }

    /// A command has succeeded that was in flight when the queue pair stopped.
    #[cold]
    pub(super) fn mark_landed(tree: &mut Tree, slot: Slot) {
        let count = if let Piece::Merged { count, .. } = slot.piece { count } else { 1 };
        let mut id = slot.node;
        for _ in 0..count {
            tree[id].doubtful = tree[id].is_cached();
            id = tree[id].next;
        }
    }

    /// Marks the requests of which some may have been done before a reset: parts that are done stay done, and may be
    /// lost with a cache.
    fn mark_begun(&self, tree: &mut Tree) {
        for index in 0..self.slots.depth() {
            let Slot { node, piece, .. } = *self.slots.get(index);
            let part = match piece {
                Piece::Part { blocks, .. } | Piece::Bounced { blocks, .. } => {
                    !node.is_none() && u64::from(blocks) < tree[node].io.extent()
                }
                Piece::Whole | Piece::Merged { .. } => false,
            };
            if part && (self.slots.is_in_flight(index) || self.slots.is_put_off(index)) {
                tree[node].doubtful = tree[node].is_cached();
            }
        }
        for line in [self.waiting, self.plugged] {
            let mut id = line.first();
            while !id.is_none() {
                tree[id].doubtful = tree[id].cursor > 0 && tree[id].is_cached();
                id = tree[id].next;
            }
        }
    }

    /// Whoever gets a write of which some may be lost with a cache may have been told of that before: the next flush tells
    /// of it again.
    pub(crate) fn find_late(&self, namespace: u16) {
        self.upkeep[usize::from(namespace)].cache.find_late();
    }

    /// A command was in flight when the controller was reset.
    fn replay(&mut self, tree: &mut Tree, index: usize) {
        let Slot { node, piece, .. } = *self.slots.get(index);
        let overdue = self.slots.is_in_flight(index) && self.is_overdue(index);
        let replayed = self.may_replay(&tree[node], index);
        if matches!(piece, Piece::Merged { .. }) {
            // One by one. Those that were ended meanwhile are not sent: that is seen there.
            let unwanted = !self.may_replay_all(tree, node);
            let cause =
                if unwanted { Cause::OutcomeUnknown } else { Cause::Status(Status::ABORTED_SQ_DELETION) };
            return self.settle(tree, index, Some(cause));
        }
        if !replayed {
            return self.settle(tree, index, Some(Cause::OutcomeUnknown));
        }
        if overdue {
            self.slots.add_try(index);
        }
        self.send_once_more(tree, index);
    }

    /// Whether those that share a command go down again, each alone: all are of one operation and namespace.
    fn may_replay_all(&self, tree: &Tree, first: NodeId) -> bool {
        let node = &tree[first];
        let replay = self.upkeep[usize::from(node.namespace)].replay;
        node.io.operation() == Operation::Read || replay == Replay::Reissue
    }

    /// Whether any command has completed since the rings were empty.
    pub(crate) fn has_completed(&self) -> bool {
        self.cq.has_moved()
    }
}
