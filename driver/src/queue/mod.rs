//! An I/O queue pair: nodes of the request tree go down as commands, completions come up.
//!
//! A node is cut into pieces by its cursor, one piece at a time, as slots free up; what has to wait
//! waits in order, and neighbours in the line may share a command. Knows slots, pieces and rings;
//! must not know who asked for a request, nor what happens with it afterwards.
#![forbid(unsafe_code)]

mod admit;
mod bounce;
mod cut;
mod limits;
mod merge;
mod prp;
mod ring;
mod runs;
mod sgl;
mod slots;

pub use self::admit::Refusal;
pub(crate) use self::admit::{check_range, check_space, count_blocks};
use self::bounce::Bounce;
pub(crate) use self::cut::{DataPointer, contiguous_prps};
pub(crate) use self::limits::Limits;
pub(crate) use self::ring::{CompletionRing, SubmissionRing};
use self::slots::{Piece, Slots};
use crate::memory::{MemoryChain, SharedArray};
use crate::request::{Cause, Failed, IoContainer, Line, Node, NodeId, Operation, Tree, Wire};
use crate::spec::Completion;
use crate::spec::command::DSM_DEALLOCATE;

/// Slots of a queue are at most this many.
pub(crate) const MAX_DEPTH: usize = slots::MAX;
/// 64-bit words of a list page.
const PAGE_WORDS: usize = 512;

/// A namespace as a queue sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reachable {
    pub(crate) nsid: u32,
    pub(crate) limits: Limits,
}

/// Why a namespace can no longer be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Detached,
    Reformatted,
}

/// Counters of a queue pair since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Commands that the controller was told of.
    pub commands: u64,
    /// Commands that carried a part of a request, not counting its first.
    pub splits: u64,
    /// Requests that went down in a command with others, not counting the first in each.
    pub merges: u64,
    /// Commands whose data went through a bounce buffer.
    pub bounces: u64,
    /// Writes to the submission queue's doorbell.
    pub sq_doorbells: u64,
    /// Writes to the completion queue's doorbell.
    pub cq_doorbells: u64,
    /// Completions that answer no command in flight: the device is broken, or lies.
    pub faults: u64,
}

/// Something waits for a slot: nothing may overtake it.
const WAITING: u32 = 1;
/// The caller holds requests back, so that they come together.
const PLUGGED: u32 = 2;
/// The controller is lost: nothing goes down any more.
const DEAD: u32 = 4;

/// The device's part of a queue pair, and everything in flight on it.
#[derive(Debug)]
pub(crate) struct Queue {
    sq: SubmissionRing,
    cq: CompletionRing,
    slots: Slots,
    /// Zero, unless a new request must not go straight down.
    gate: u32,
    waiting: Line,
    /// What came after the plug.
    plugged: Line,
    merging: bool,
    namespaces: Vec<Reachable>,
    /// Those among them, by number, that can no longer be used; their capacity is 0.
    gone: Vec<(u16, Gone)>,
    pointer: DataPointer,
    /// Memory for lists, `list_pages` for each slot.
    lists: SharedArray<1>,
    list_pages: usize,
    bounce: Bounce,
    /// Bytes that one command transfers at most.
    max_transfer: u64,
    space: u64,
    /// Those counters that the rings do not keep.
    counted: QueueStats,
}

/// What a look at the completion queue found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Next {
    /// A node that went down whole succeeded. Its slot is still taken.
    Whole(NodeId, usize),
    /// Anything else; nodes that finished are in the tree's line.
    Other,
    Nothing,
}

impl Queue {
    pub(crate) fn new(
        (qid, sq, cq): (u16, SubmissionRing, CompletionRing),
        depth: usize,
        pointer: DataPointer,
        lists: SharedArray<1>,
        bounce: Vec<MemoryChain>,
        max_transfer: u64,
        space: u64,
    ) -> Queue {
        // A full submission queue holds one entry less than its size, and completions never
        // outnumber what is outstanding.
        assert!(depth < sq.len() as usize && depth < cq.len() as usize);
        let list_pages = lists.len() / PAGE_WORDS / depth;
        assert!(list_pages > 0);
        Queue {
            sq,
            cq,
            slots: Slots::new(qid, depth),
            gate: 0,
            waiting: Line::EMPTY,
            plugged: Line::EMPTY,
            merging: true,
            namespaces: Vec::new(),
            gone: Vec::new(),
            pointer,
            lists,
            list_pages,
            bounce: Bounce::new(bounce),
            max_transfer,
            space,
            counted: QueueStats::default(),
        }
    }

    /// Bytes of list memory that a queue needs for transfers of `bytes`.
    pub(crate) fn list_bytes(depth: usize, bytes: u64) -> usize {
        depth * prp::list_pages(bytes) * PAGE_WORDS * 8
    }

    pub(crate) fn add_namespace(&mut self, namespace: Reachable) -> u16 {
        self.namespaces.push(namespace);
        self.namespaces.len() as u16 - 1
    }

    pub(crate) fn reachable(&self, namespace: u16) -> &Reachable {
        &self.namespaces[usize::from(namespace)]
    }

    /// A namespace has another size from now on, unless it is closed.
    pub(crate) fn resize(&mut self, namespace: u16, blocks: u64) {
        if self.gone(namespace).is_none() {
            self.namespaces[usize::from(namespace)].limits.capacity = blocks;
        }
    }

    /// Why a namespace can no longer be used.
    fn gone(&self, namespace: u16) -> Option<Gone> {
        self.gone.iter().find(|(number, _)| *number == namespace).map(|(_, gone)| *gone)
    }

    /// A namespace takes no more requests, and what has no command yet of those that it took fails: the
    /// memory of a request is not for blocks of another size.
    #[cold]
    pub(crate) fn close(&mut self, tree: &mut Tree, number: u16, gone: Gone) {
        if self.gone(number).is_some() {
            return;
        }
        self.gone.push((number, gone));
        self.namespaces[usize::from(number)].limits.capacity = 0;
        for line in [self.waiting, self.plugged] {
            let mut next = line.first();
            while !next.is_none() {
                let id = next;
                next = tree[id].next;
                if tree[id].namespace == number {
                    let at = tree[id].cursor;
                    tree[id].fail(at, Cause::Refused);
                    self.drop_unissued(tree, id);
                }
            }
        }
    }

    pub(crate) fn stats(&self) -> QueueStats {
        QueueStats {
            commands: self.sq.commands,
            sq_doorbells: self.sq.doorbells,
            cq_doorbells: self.cq.doorbells,
            ..self.counted
        }
    }

    /// Completions that an honest controller can have for one poll, at most.
    pub(crate) fn most_completions(&self) -> u32 {
        self.cq.len()
    }

    pub(crate) fn max_transfer(&self) -> u64 {
        self.max_transfer
    }

    pub(crate) fn depth(&self) -> usize {
        self.slots.depth()
    }

    pub(crate) fn space(&self) -> u64 {
        self.space
    }

    /// Whether commands are in flight, or finished ones still have their slots.
    pub(crate) fn is_busy(&self) -> bool {
        self.slots.taken() > 0
    }

    pub(crate) fn set_merging(&mut self, merging: bool) {
        self.merging = merging;
    }

    // ---- down ----

    /// Starts a node that was admitted: as much of it as there are slots for; the rest waits.
    pub(crate) fn start(&mut self, tree: &mut Tree, id: NodeId) {
        if self.gate & DEAD != 0 {
            tree[id].fail(0, Cause::ControllerLost);
            return tree.finish(id);
        }
        if self.gate & PLUGGED != 0 {
            tree[id].waits = true;
            return self.plugged.push(tree, id);
        }
        if self.gate != 0 || !self.issue(tree, id) {
            tree[id].waits = true;
            self.waiting.push(tree, id);
            self.gate |= WAITING;
        }
    }

    /// Sends a node that just finished down again, in the same slot, if it went down whole, nothing
    /// waits, and nothing of it changed but the LBA. Else returns false: then it must be admitted and
    /// started again.
    #[inline(always)]
    pub(crate) fn restart(&mut self, node: &mut Node, id: NodeId, slot: usize) -> bool {
        let Some(wire) = node.wire else { return false };
        let limits = &self.namespaces[usize::from(node.namespace)].limits;
        let fits = node.io.lba().checked_add(node.io.blocks()).is_some_and(|end| end <= limits.capacity);
        if self.gate != 0 || !fits || limits.crosses_boundary(node.io.lba(), node.io.blocks()) {
            return false;
        }
        node.in_flight = 1;
        node.failed = None;
        self.push(&node.io, wire, node.io.lba(), slot, id, Piece::Whole);
        true
    }

    /// Issues pieces until the node has none left (true) or there is no room for the next (false).
    fn issue(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        while tree[id].unissued() > 0 {
            let Some(slot) = self.slots.take() else { return false };
            let Some(cut) = self.cut(tree, id, slot) else {
                self.slots.free(slot);
                return false;
            };
            let first = tree[id].cursor;
            let shift = self.reachable(tree[id].namespace).limits.block_shift;
            tree.advance(id, cut.blocks, shift);
            let node = &mut tree[id];
            node.in_flight += 1;
            let whole = cut.blocks == node.io.extent() && cut.buffer.is_none();
            // The range of a deallocate is in memory, where a change of the LBA would not reach it; and
            // whether a request is atomic depends on where it is.
            let lasting = node.io.operation() != Operation::Deallocate && !node.io.is_atomic();
            node.wire = (whole && lasting).then_some(cut.wire);
            // A completion that is an event takes the longer way, where pieces are counted.
            let piece = match cut.buffer {
                Some(buffer) => Piece::Bounced { first, blocks: cut.blocks, buffer },
                None if whole && node.event.is_none() && node.in_flight == 1 => Piece::Whole,
                None => Piece::Part { first, blocks: cut.blocks },
            };
            self.counted.splits += u64::from(first > 0);
            self.push(&node.io, cut.wire, node.io.lba().wrapping_add(first), slot, id, piece);
        }
        true
    }

    /// Writes a command into the ring.
    #[inline(always)]
    fn push(&mut self, io: &IoContainer, wire: Wire, lba: u64, slot: usize, id: NodeId, piece: Piece) {
        let cid = self.slots.occupy(slot, id, piece);
        let head = wire.head | u64::from(cid) << 16;
        let cdw10_11 = match io.operation() {
            // One range; the attribute is dword 11.
            Operation::Deallocate => u64::from(DSM_DEALLOCATE) << 32,
            Operation::Flush => 0,
            _ => lba,
        };
        let [prp1, prp2] = wire.dptr;
        self.sq.push([head, io.raw.cdw2_3, 0, prp1, prp2, cdw10_11, wire.tail, io.raw.cdw14_15]);
    }

    // ---- waiting ----

    /// Holds back what is submitted from now on.
    pub(crate) fn plug(&mut self) {
        self.gate |= PLUGGED;
    }

    /// Sends down what was held back.
    pub(crate) fn unplug(&mut self, tree: &mut Tree) {
        self.gate &= !PLUGGED;
        let plugged = std::mem::replace(&mut self.plugged, Line::EMPTY);
        if !plugged.is_empty() {
            self.waiting.append(tree, plugged);
            self.gate |= WAITING;
        }
        self.issue_waiting(tree);
    }

    /// Gives free slots to what waits, in order.
    #[cold]
    fn issue_waiting(&mut self, tree: &mut Tree) {
        // Without a slot there is nothing to merge for either.
        while !self.waiting.is_empty() && self.slots.taken() < self.slots.depth() {
            let id = self.waiting.first();
            let sent = self.merging && self.merge(tree);
            if !sent && !self.issue(tree, id) {
                return;
            }
            if !sent {
                self.waiting.pop(tree);
                tree[id].waits = false;
            }
        }
        self.open_gate();
    }

    fn open_gate(&mut self) {
        if self.waiting.is_empty() {
            self.gate &= !WAITING;
        }
    }

    /// Drops what is not issued yet of a node, which failed.
    pub(crate) fn drop_unissued(&mut self, tree: &mut Tree, id: NodeId) {
        if tree[id].waits {
            self.waiting.remove(tree, id);
            self.plugged.remove(tree, id);
            tree[id].waits = false;
            self.open_gate();
        }
        if tree[id].is_finished() {
            tree.finish(id);
        }
    }

    // ---- up ----

    /// Looks for one completion.
    #[inline(always)]
    pub(crate) fn next(&mut self, tree: &mut Tree) -> Next {
        let high = self.cq.high();
        let index = self.slots.index(high);
        let slot = self.slots.get(index);
        if high >> 16 != slot.expect {
            if !CompletionRing::is_new(high) {
                return Next::Nothing;
            }
            self.exception(tree, high, index);
            return Next::Other;
        }
        let node = slot.node;
        self.cq.advance();
        self.slots.vacate(index);
        tree[node].in_flight = 0;
        Next::Whole(node, index)
    }

    /// A new entry, of anything but the success of a whole node.
    #[cold]
    fn exception(&mut self, tree: &mut Tree, high: u64, index: usize) {
        let completion: Completion = self.cq.entry(high);
        self.cq.advance();
        if !self.slots.answers(index, &completion) {
            self.counted.faults += 1;
            return;
        }
        let status = completion.status();
        self.settle(tree, index, (!status.is_success()).then_some(Cause::Status(status)));
    }

    /// The command in a slot is over.
    fn settle(&mut self, tree: &mut Tree, index: usize, cause: Option<Cause>) {
        let slot = *self.slots.get(index);
        self.slots.free(index);
        let (first, blocks) = match slot.piece {
            Piece::Merged { count } => return self.settle_merged(tree, slot.node, count, cause),
            Piece::Whole => (0, tree[slot.node].io.extent()),
            Piece::Part { first, blocks } => (first, blocks),
            Piece::Bounced { first, blocks, buffer } => {
                let shift = self.reachable(tree[slot.node].namespace).limits.block_shift;
                self.bounce.finish(tree, slot.node, buffer, (blocks << shift) as usize, cause.is_none());
                (first, blocks)
            }
        };
        let failed = cause.map(|cause| Failed { at: first, cause });
        tree.settle_piece(slot.node, first..first + blocks, failed);
        // A node that failed may still stand in the line, with pieces that will not be issued.
        if tree[slot.node].is_finished() {
            self.drop_unissued(tree, slot.node);
        }
    }

    /// A slot that a finished node no longer needs.
    #[inline(always)]
    pub(crate) fn release(&mut self, slot: usize) {
        self.slots.free(slot);
    }

    /// Dword 0 of the completion that [`next`](Queue::next) consumed last.
    pub(crate) fn dword0(&self) -> u32 {
        self.cq.dword0(1)
    }

    /// The end of a poll in which completions were found or not: what waits gets free slots, and the
    /// doorbells are rung, each at most once.
    #[inline(always)]
    pub(crate) fn finish_poll(&mut self, tree: &mut Tree, idle: bool) {
        if self.gate != 0 {
            self.issue_waiting(tree);
        }
        if self.sq.is_rung() {
            self.cq.make_room_when_idle(idle);
        } else {
            // First room for what the new commands will complete with, then the commands.
            self.cq.make_room(self.slots.taken() as u32);
            self.sq.ring();
        }
    }

    /// The controller is lost: everything fails, now and later. What it may still reach goes back to nobody,
    /// unless it is certain that it reaches nothing.
    pub(crate) fn fail_all(&mut self, tree: &mut Tree, reaches_nothing: bool) {
        self.gate |= DEAD;
        for index in 0..self.slots.depth() {
            if self.slots.is_in_flight(index) {
                if !reaches_nothing {
                    self.forfeit(tree, index);
                }
                self.settle(tree, index, Some(Cause::ControllerLost));
            }
        }
        let plugged = std::mem::replace(&mut self.plugged, Line::EMPTY);
        self.waiting.append(tree, plugged);
        while let Some(id) = self.waiting.pop(tree) {
            tree[id].waits = false;
            let at = tree[id].cursor;
            tree[id].fail(at, Cause::ControllerLost);
            tree.finish(id);
        }
        self.gate = DEAD;
    }

    /// All memory of a command in flight.
    fn forfeit(&mut self, tree: &mut Tree, index: usize) {
        let slot = *self.slots.get(index);
        let count = if let Piece::Merged { count } = slot.piece { count } else { 1 };
        let mut id = slot.node;
        for _ in 0..count {
            tree.forfeit(id);
            id = tree[id].next;
        }
    }

    /// Blocks of a node's range that commands in flight move.
    pub(crate) fn in_flight_of(&self, id: NodeId) -> impl Iterator<Item = std::ops::Range<u64>> {
        self.slots.in_flight().filter(move |slot| slot.node == id).filter_map(|slot| match slot.piece {
            Piece::Part { first, blocks } | Piece::Bounced { first, blocks, .. } => {
                Some(first..first + blocks)
            }
            Piece::Whole | Piece::Merged { .. } => None,
        })
    }
}
