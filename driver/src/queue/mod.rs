//! An I/O queue pair: nodes of the request tree go down as commands, completions come up.
//!
//! A node is cut into pieces by its cursor, one piece at a time, as slots free up; what has to wait
//! waits in order, and neighbours in the line may share a command. Knows slots, pieces and rings;
//! must not know who asked for a request, nor what happens with it afterwards.
#![forbid(unsafe_code)]

mod admit;
mod again;
mod bounce;
mod cut;
mod limits;
mod merge;
mod overdue;
mod prp;
mod ring;
mod runs;
mod sgl;
mod slots;

use std::hint::cold_path;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use self::admit::Refusal;
pub(crate) use self::admit::{check_range, check_space, count_blocks};
pub(crate) use self::again::CacheLoss;
pub use self::again::Replay;
use self::again::{PutOff, Upkeep};
use self::bounce::Bounce;
pub(crate) use self::cut::{DataPointer, contiguous_prps};
use self::cut::{Series, nlb};
pub(crate) use self::limits::Limits;
use self::merge::Join;
pub(crate) use self::overdue::SWEEPS;
pub(crate) use self::ring::{CompletionRing, SubmissionRing};
use self::runs::Run;
use self::slots::{Piece, Slots};
use crate::defects::{self, Defect};
use crate::memory::{MemoryChain, Position, SharedArray};
use crate::request::{
    Cause, Failed, IoContainer, Line, Node, NodeId, Operation, Progress, Second, Tree, Wire,
};
use crate::spec::Completion;
use crate::spec::command::DSM_DEALLOCATE;
use crate::spec::io_opcode::{READ, WRITE};

/// Slots of a queue are at most this many.
pub(crate) const MAX_DEPTH: usize = slots::MAX;
/// Bytes of a slot.
pub(crate) const SLOT_BYTES: usize = size_of::<slots::Slot>();
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
    /// Writes to the submission queue's doorbell register. With shadow doorbells, the controller may need none.
    pub sq_doorbells: u64,
    /// Writes to the completion queue's doorbell register.
    pub cq_doorbells: u64,
    /// Completions that answer no command in flight: the device is broken, or lies.
    pub faults: u64,
    /// Commands that were not completed within the command timeout.
    pub timeouts: u64,
    /// Commands whose Abort was asked for: overdue, cancelled, or past their deadline.
    pub aborts: u64,
    /// How often the queue pair was created anew, after a reset of the controller.
    pub resets: u64,
    /// Commands that were sent once more: after an Abort or a reset, or since the controller asked for it.
    pub resent: u64,
}

/// Something waits for a slot: nothing may overtake it.
const WAITING: u32 = 1;
/// The caller holds requests back, so that they come together.
const PLUGGED: u32 = 2;
/// The controller is lost: nothing goes down any more.
const DEAD: u32 = 4;
/// The controller completes more in one turn than it can have been told of.
const HALTED: u32 = 8;
/// The controller is being reset: nothing goes down until it is back.
const SUSPENDED: u32 = 16;

/// Commands are in flight whose nodes an event counts: what finds one of those has to count it.
const COUNTING: u32 = 32;

/// Nodes without slots are on their way to the closure, and neighbours among them may go down together: nothing takes the
/// short way.
const ROW: u32 = 64;

/// A command is not sent yet that others may join.
const JOINING: u32 = 128;

/// Nodes that just finished may go down again at the end of the turn, or when all are there.
const RESTED: u32 = HALTED | COUNTING | WAITING | ROW;

/// Idle polls after which the controller is told what was consumed: a broken one may be waiting for room
/// that it need not wait for.
const IDLE_POLLS: u32 = 16;

/// The device's part of a queue pair, and everything in flight on it.
#[derive(Debug)]
pub(crate) struct Queue {
    qid: u16,
    sq: SubmissionRing,
    cq: CompletionRing,
    slots: Slots,
    /// Zero, unless a new request must not go straight down.
    gate: u32,
    /// Slots of commands that carry all of a node that an event counts.
    counting: u32,
    waiting: Line,
    join: Join,
    /// Those that have just succeeded, in a command with others or in several. What was prepared and checked of them
    /// stays.
    row: Line,
    /// What came after the plug.
    plugged: Line,
    merging: bool,
    gathering: bool,
    namespaces: Vec<Reachable>,
    /// What is to be done for each of them after a reset.
    upkeep: Vec<Upkeep>,
    /// Commands that are to be sent once more.
    again: Vec<PutOff>,
    /// How long the controller has us wait before that, by Command Retry Delay from 1 on.
    retry_delays: Option<[Duration; 3]>,
    /// Those among the namespaces, by number, that can no longer be used; their capacity is 0.
    gone: Vec<(u16, Gone)>,
    pointer: DataPointer,
    /// Memory for lists, `list_pages` for each slot.
    lists: SharedArray<1>,
    list_pages: usize,
    bounce: Bounce,
    /// Bytes that one command transfers at most.
    max_transfer: u64,
    space: u64,
    /// How often the completion queue went round in this turn.
    laps: u32,
    /// A cache may have been lost, which a flush has to tell of.
    wary: bool,
    /// Those counters that the rings do not keep.
    counted: QueueStats,
}

/// What a look at the completion queue found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Next {
    /// A node that went down whole succeeded. Its slot is still taken.
    Whole(NodeId, u32),
    /// Anything else; nodes that finished are in the row, or in the tree's lines.
    Other,
    Nothing,
}

impl Queue {
    pub(crate) fn new(
        (qid, sq, mut cq): (u16, SubmissionRing, CompletionRing),
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
        cq.keep_room(depth as u32);
        let list_pages = lists.len() / PAGE_WORDS / depth;
        assert!(list_pages > 0);
        Queue {
            qid,
            sq,
            cq,
            slots: Slots::new(qid, depth),
            gate: 0,
            counting: 0,
            waiting: Line::EMPTY,
            join: Join::NONE,
            row: Line::EMPTY,
            plugged: Line::EMPTY,
            merging: true,
            gathering: false,
            namespaces: Vec::new(),
            upkeep: Vec::new(),
            again: Vec::with_capacity(depth),
            retry_delays: None,
            gone: Vec::new(),
            pointer,
            lists,
            list_pages,
            bounce: Bounce::new(bounce),
            max_transfer,
            space,
            laps: 0,
            wary: false,
            counted: QueueStats::default(),
        }
    }

    /// Bytes of list memory that a queue needs for transfers of `bytes`.
    pub(crate) fn list_bytes(depth: usize, bytes: u64) -> usize {
        depth * prp::list_pages(bytes) * PAGE_WORDS * 8
    }

    /// `cache` says whether a reset may have cost it what was written and not flushed.
    pub(crate) fn add_namespace(&mut self, namespace: Reachable, cache: Arc<CacheLoss>) -> u16 {
        self.namespaces.push(namespace);
        self.wary |= cache.was_lost();
        self.upkeep.push(Upkeep { replay: Replay::default(), cache });
        self.namespaces.len() as u16 - 1
    }

    pub(crate) fn reachable(&self, namespace: u16) -> &Reachable {
        &self.namespaces[usize::from(namespace)]
    }

    /// A namespace has another size from now on, unless it is closed.
    pub(crate) fn resize(&mut self, tree: &mut Tree, namespace: u16, blocks: u64) {
        if self.gone(namespace).is_none() {
            self.set_capacity(tree, namespace, blocks);
        }
    }

    /// Sets the blocks of a namespace; what was prepared for it before is not any more.
    fn set_capacity(&mut self, tree: &mut Tree, namespace: u16, blocks: u64) {
        self.namespaces[usize::from(namespace)].limits.capacity = blocks;
        tree.forget_prepared(namespace);
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
        self.break_off(tree);
        self.gone.push((number, gone));
        self.set_capacity(tree, number, 0);
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
            commands: self.sq.commands(),
            sq_doorbells: self.sq.doorbells,
            cq_doorbells: self.cq.doorbells,
            ..self.counted
        }
    }

    /// Begins a turn. If it does not come to its [end](Queue::finish_turn), there [is news](Queue::has_news).
    #[inline(always)]
    pub(crate) fn begin_turn(&mut self, tree: &mut Tree) {
        if self.gate & (ROW | JOINING) != 0 {
            self.break_off(tree);
        }
        self.laps = 0;
        self.cq.forget();
    }

    /// Whether the controller has completed more in this turn than it can have been told of.
    pub(crate) fn is_flooded(&self) -> bool {
        self.laps > 1
    }

    /// How far completions were looked at in this turn: laps, and the place.
    pub(crate) fn progress(&self) -> (u32, u32) {
        (self.laps, self.cq.position())
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
    #[inline(always)]
    pub(crate) fn start(&mut self, tree: &mut Tree, id: NodeId) {
        if self.gate & !COUNTING != 0 || !self.issue(tree, id) {
            self.hold(tree, id);
        }
    }

    /// Lets a node wait.
    #[cold]
    fn hold(&mut self, tree: &mut Tree, id: NodeId) {
        if self.gate & DEAD != 0 {
            tree[id].fail(0, Cause::ControllerLost);
            return tree.finish(id);
        }
        tree[id].waits = true;
        if self.gate & PLUGGED != 0 {
            return self.plugged.push(tree, id);
        }
        self.close_join(tree);
        self.waiting.push(tree, id);
        self.gate |= WAITING;
    }

    /// Sends a node that just finished down again, in the same slot, if it went down whole and nothing
    /// waits. Else returns false: then it must be admitted and started again.
    #[inline(always)]
    pub(crate) fn restart(&mut self, node: &mut Node, slot: u32) -> bool {
        if self.gate != 0 || (node.io.lba() >= node.wire.bound && !self.prepare_again(node, slot)) {
            return false;
        }
        let cid = self.slots.occupy_again(slot as usize);
        self.push(&node.wire, cid, node.io.lba());
        true
    }

    /// The same for one that an event counts, or that comes after such. In one function with the other, new memory costs 7
    /// instructions more.
    #[inline(always)]
    pub(crate) fn restart_among_counted(&mut self, node: &mut Node, slot: u32) -> bool {
        if self.gate & !COUNTING != 0 || (node.io.lba() >= node.wire.bound && !self.prepare_again(node, slot))
        {
            return false;
        }
        let cid = self.slots.occupy_again(slot as usize);
        self.push(&node.wire, cid, node.io.lba());
        true
    }

    /// Whether something keeps a node that just finished from going straight down again.
    #[inline(always)]
    pub(crate) fn is_gated(&self) -> bool {
        self.gate != 0
    }

    /// Sends a node down again that has no slot, if nothing has changed but its LBA since it was here: what shared a
    /// command with others may do so again, and what takes several waits for its turn. Else nothing was done.
    #[inline(never)]
    pub(crate) fn begin_again(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        if self.join(tree, id) {
            return true;
        }
        self.begin_apart(tree, id)
    }

    /// The same for one that does not join others that are there.
    #[inline(never)]
    fn begin_apart(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        let node = &mut tree[id];
        if node.io.lba() >= node.wire.bound.max(node.wire.checked) || self.gate & !(RESTED | JOINING) != 0 {
            return false;
        }
        if node.wire.is_prepared() || !self.waiting.is_empty() || self.gate & (HALTED | JOINING) != 0 {
            self.join_or_wait(tree, id);
            return true;
        }
        node.rewind_prepared();
        node.in_flight = 0;
        if !self.issue_pieces(tree, id) {
            self.hold(tree, id);
        }
        true
    }

    /// A node that just finished begins a command that others may join, or waits.
    fn join_or_wait(&mut self, tree: &mut Tree, id: NodeId) {
        self.close_join(tree);
        let may_open = self.merging && self.waiting.is_empty() && self.gate & HALTED == 0;
        if !may_open || !self.open_join(tree, id) {
            self.wait_again(tree, id);
        }
    }

    /// All of a node waits for the end of the turn.
    #[inline(always)]
    fn wait_again(&mut self, tree: &mut Tree, id: NodeId) {
        let node = &mut tree[id];
        node.rewind_prepared();
        (node.in_flight, node.waits) = (0, true);
        self.gate |= WAITING;
        self.waiting.push(tree, id);
    }

    /// Has a node that just finished wait once more, if it is prepared, is no event and takes no list: what was
    /// prepared stays, and the slot is free. Else nothing was done.
    #[inline(never)]
    pub(crate) fn hold_again(&mut self, tree: &mut Tree, id: NodeId, slot: u32) -> bool {
        let node = &mut tree[id];
        let gate = self.gate & !(HALTED | COUNTING);
        if gate == 0 || gate & !(WAITING | ROW | JOINING) != 0 || node.io.lba() >= node.wire.bound {
            return false;
        }
        if self.is_listed(&node.wire) || node.event.is_some() || node.failed.is_some() {
            return false;
        }
        self.slots.free(slot as usize);
        node.alone = false;
        if node.io.is_no_merge() || !self.join(tree, id) {
            self.join_or_wait(tree, id);
        }
        true
    }

    /// A node without a slot stays prepared, unless its command has a list in the memory of that slot.
    #[inline(always)]
    pub(crate) fn keep_prepared(&self, node: &mut Node) {
        if self.is_listed(&node.wire) {
            node.wire.forget();
        }
    }

    /// Sends a node down again that has no slot, if nothing has changed but its LBA since it was here. Else nothing was
    /// done.
    #[inline]
    pub(crate) fn start_again(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        let node = &mut tree[id];
        let within = node.io.lba() < node.wire.bound.max(node.wire.checked);
        if within {
            node.rewind_prepared();
            self.start(tree, id);
        }
        within
    }

    /// Whether a command's data pointer may refer to a list in the memory of its slot.
    #[inline(always)]
    fn is_listed(&self, wire: &Wire) -> bool {
        match self.pointer {
            DataPointer::Sgl { .. } => true,
            DataPointer::Prp { .. } => {
                wire.dptr[1].wrapping_sub(self.lists.iova()) < 8 * self.lists.len() as u64
            }
        }
    }

    /// Nodes that follow each other have succeeded, have no slots, are no events and passed no layers: they are delivered
    /// in this turn. None may be lost with a cache: nobody would tell of it.
    fn land(&mut self, tree: &mut Tree, first: NodeId, last: NodeId) {
        debug_assert!(!tree[first].doubtful);
        self.row.append_row(tree, first, last);
        if self.gate & ROW == 0 {
            self.gate |= ROW;
            tree.attention.begin_row();
        }
    }

    /// Whether some of them are not delivered yet.
    #[inline(always)]
    pub(crate) fn has_row(&self) -> bool {
        self.gate & ROW != 0
    }

    /// The next one of them.
    #[inline(always)]
    pub(crate) fn next_of_row(&mut self, tree: &mut Tree) -> Option<NodeId> {
        let next = self.row.pop(tree);
        if next.is_none() {
            self.end_row(tree);
        }
        next
    }

    #[inline(never)]
    fn end_row(&mut self, tree: &mut Tree) {
        self.gate &= !ROW;
        tree.attention.end_row();
    }

    /// Those that were not delivered land like anything else: the turn is over.
    #[cold]
    pub(crate) fn leave_row(&mut self, tree: &mut Tree) {
        if self.gate & ROW != 0 {
            self.end_row(tree);
        }
        tree.land(std::mem::replace(&mut self.row, Line::EMPTY));
    }

    /// What the last turn was to end waits like anything else: the closure has panicked, if there is any.
    #[cold]
    #[inline(never)]
    pub(crate) fn break_off(&mut self, tree: &mut Tree) {
        self.leave_row(tree);
        self.part_join(tree);
    }

    /// One more slot has a command of a node that an event counts.
    #[inline]
    pub(crate) fn begin_counting(&mut self) {
        self.counting += 1;
        self.gate |= COUNTING;
    }

    /// One less.
    pub(crate) fn end_counting(&mut self) {
        self.counting -= 1;
        if self.counting == 0 {
            self.gate &= !COUNTING;
        }
    }

    /// A node that an event counts was ended: whoever finds its completion has to know.
    pub(crate) fn watch_counted(&mut self, node: &mut Node, id: NodeId) {
        if self.slots.watch_whole(id, node.io.extent() as u32) {
            node.wire.forget();
            self.end_counting();
        }
    }

    /// A node has become an event: whoever finds its completion has to know.
    pub(crate) fn watch_event(&mut self, tree: &Tree, id: NodeId) {
        if !self.slots.watch_whole(id, tree[id].io.extent() as u32) {
            self.slots.watch_merged(id, |id| tree[id].next);
        }
    }

    /// Prepares a node that just finished once more, or looks closer at its LBA.
    #[inline(never)]
    fn prepare_again(&mut self, node: &mut Node, slot: u32) -> bool {
        if slot as usize >= self.slots.depth() {
            return false;
        }
        let prepared =
            node.wire.is_prepared() || self.prepare(node) || self.prepare_list(node, slot as usize);
        let ready = prepared && self.is_within_limits(node);
        if ready {
            node.cursor = node.io.blocks();
        }
        ready
    }

    /// Prepares the command of the usual request: one command carries all of it, from or to a single
    /// segment that needs no list. Whatever else there is takes the longer way.
    #[inline(always)]
    fn prepare(&self, node: &mut Node) -> bool {
        let Some(Reachable { nsid, limits }) = self.namespaces.get(usize::from(node.namespace)) else {
            return false;
        };
        let Some(segment) = node.io.memory().only_segment() else { return false };
        let (iova, len) = (segment.iova(), segment.len() as u64);
        let blocks = len >> limits.block_shift;
        // No blocks are a very large number here.
        if !node.io.is_usual()
            || segment.space() != self.space
            || blocks << limits.block_shift != len
            || blocks.wrapping_sub(1) >= limits.transfer
            || blocks > limits.capacity
        {
            return false;
        }
        let Some(dptr) = self.pointer.direct(Run { iova, len }) else { return false };
        let opcode = if node.io.operation() == Operation::Read { READ } else { WRITE };
        let tail = nlb(&node.io, blocks);
        node.io.set_blocks(blocks);
        let wire = self.wire(*nsid, u16::from(opcode), (dptr, self.pointer.flags()), tail);
        node.wire = Wire { bound: limits.bound(blocks), ..wire };
        true
    }

    /// Prepares a command for memory in several segments, with a list in the memory of the slot that the node
    /// has. Not one that takes several commands, or a bounce buffer.
    #[inline(never)]
    fn prepare_list(&self, node: &mut Node, slot: usize) -> bool {
        let Some(Reachable { nsid, limits }) = self.namespaces.get(usize::from(node.namespace)) else {
            return false;
        };
        let (chain, len) = (node.io.memory(), node.io.memory().len() as u64);
        let blocks = len >> limits.block_shift;
        if slot >= self.slots.depth()
            || !node.io.is_usual()
            || blocks << limits.block_shift != len
            || blocks.wrapping_sub(1) >= limits.transfer
            || blocks > limits.capacity
        {
            return false;
        }
        let Some(dptr) = self.whole_list(chain.segments(), slot) else { return false };
        let opcode = if node.io.operation() == Operation::Read { READ } else { WRITE };
        let tail = nlb(&node.io, blocks);
        node.io.set_blocks(blocks);
        let wire = self.wire(*nsid, u16::from(opcode), (dptr, 0), tail);
        node.wire = Wire { bound: limits.bound(blocks), ..wire };
        true
    }

    /// Points a command, if it is prepared, to other memory of the same length; `before` is what it pointed
    /// to. False if it takes more than that.
    #[inline(always)]
    pub(crate) fn point(&self, node: &mut Node, slot: u32, before: &MemoryChain) -> bool {
        let Some(segment) = node.io.memory().one() else { return self.point_to_list(node, slot) };
        if before.one().is_some_and(|before| segment.has_source_of(before)) || segment.space() == self.space {
            let (wire, iova) = (&mut node.wire, segment.iova());
            let by = iova.wrapping_sub(wire.dptr[0]);
            if by.is_multiple_of(prp::PAGE) {
                if wire.second == Second::Fixed {
                    wire.dptr[0] = iova;
                    return true;
                }
                cold_path();
                if wire.second == Second::Listed && prp::is_in_block(iova, before.len() as u64) {
                    wire.dptr = [iova, prp::moved(wire.dptr[1], by)];
                    return true;
                }
            }
        }
        self.point_anew(node)
    }

    /// The same, whatever segment it was, and is.
    #[inline(never)]
    fn point_anew(&self, node: &mut Node) -> bool {
        let Some(segment) = node.io.memory().one().filter(|segment| segment.space() == self.space) else {
            return false;
        };
        let run = Run { iova: segment.iova(), len: segment.len() as u64 };
        let Some(dptr) = self.pointer.direct(run) else { return false };
        (node.wire.dptr, node.wire.second) = (dptr, self.pointer.second(run));
        true
    }

    /// The same, for memory in several segments: their list is written into the memory of the node's slot.
    #[inline(never)]
    fn point_to_list(&self, node: &mut Node, slot: u32) -> bool {
        let slot = slot as usize;
        let Some([first, second]) = self.page_list(node.io.memory().segments(), slot) else {
            return self.point_to_mixed_list(node, slot);
        };
        (node.wire.dptr[0], node.wire.dptr[1], node.wire.second) = (first, second, Second::Any);
        true
    }

    #[cold]
    #[inline(never)]
    fn point_to_mixed_list(&self, node: &mut Node, slot: usize) -> bool {
        // If nothing is prepared, the length may be any; and without a slot there is no list.
        if slot >= self.slots.depth() || !node.wire.is_prepared() {
            return false;
        }
        let Some(dptr) = self.mixed_list(node.io.memory().segments(), slot) else { return false };
        (node.wire.dptr, node.wire.second) = (dptr, Second::Any);
        true
    }

    /// Whether the LBA of a prepared command is within the limits.
    #[inline(always)]
    fn is_within_limits(&self, node: &Node) -> bool {
        node.io.lba() < node.wire.bound || self.is_within_boundaries(node)
    }

    #[inline(never)]
    fn is_within_boundaries(&self, node: &Node) -> bool {
        let limits = &self.reachable(node.namespace).limits;
        let (lba, blocks) = (node.io.lba(), node.io.blocks());
        let fits = lba.checked_add(blocks).is_some_and(|end| end <= limits.capacity);
        fits && !limits.crosses_boundary(lba, blocks)
    }

    /// Issues pieces until the node has none left (true) or there is no room for the next (false).
    #[inline(always)]
    fn issue(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        let node = &mut tree[id];
        if !node.wire.is_prepared() || node.cursor > 0 {
            return self.issue_pieces(tree, id);
        }
        let Some(slot) = self.slots.take() else { return false };
        (node.cursor, node.in_flight) = (node.io.blocks(), 1);
        let cid = if node.event.is_none() {
            self.slots.occupy(slot, id, Piece::Whole)
        } else if node.is_counted_whole() {
            self.begin_counting();
            self.slots.occupy(slot, id, Piece::Whole)
        } else {
            // A completion that is an event takes the longer way, where pieces are counted.
            node.wire.forget();
            self.slots.occupy(slot, id, Piece::Part { first: 0, blocks: node.io.blocks() as u32 })
        };
        self.push(&node.wire, cid, node.io.lba());
        true
    }

    fn issue_pieces(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        self.issue_alike(tree, id);
        tree[id].unissued() == 0 || self.issue_rest(tree, id)
    }

    #[inline(never)]
    fn issue_rest(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        self.issue_runs(tree, id);
        while tree[id].unissued() > 0 {
            let Some(slot) = self.slots.take() else { return false };
            let Some(cut) = self.cut(tree, id, slot) else {
                self.slots.free(slot);
                return false;
            };
            let first = tree[id].cursor;
            let limits = self.reachable(tree[id].namespace).limits;
            // The completion of a flush that will fail is looked at closely.
            let watched = self.wary && self.is_late_flush(&tree[id]);
            tree.advance(id, cut.blocks, limits.block_shift);
            let node = &mut tree[id];
            node.in_flight += 1;
            let whole = cut.blocks == node.io.extent() && cut.buffer.is_none();
            let blocks = cut.blocks as u32;
            let piece = match cut.buffer {
                Some(buffer) => Piece::Bounced { first, blocks, buffer },
                None if whole
                    && (node.event.is_none() || node.is_counted_whole())
                    && node.in_flight == 1
                    && !watched =>
                {
                    Piece::Whole
                }
                None => Piece::Part { first, blocks },
            };
            // Whether a request is atomic depends on where it is.
            if piece == Piece::Whole && node.io.is_usual() {
                node.wire = Wire { bound: limits.bound(cut.blocks), ..cut.wire };
            }
            if piece == Piece::Whole && node.counted {
                self.begin_counting();
            }
            self.counted.splits += u64::from(first > 0);
            let cid = self.slots.occupy(slot, id, piece);
            self.push_piece(&node.io, &cut.wire, cid, first);
        }
        true
    }

    /// Writes the command for a piece into the ring.
    #[inline(always)]
    fn push_piece(&mut self, io: &IoContainer, wire: &Wire, cid: u32, first: u64) {
        match io.operation() {
            Operation::Raw => self.push_raw(io, wire, cid),
            // One range; the attribute is dword 11.
            Operation::Deallocate => self.push(wire, cid, u64::from(DSM_DEALLOCATE) << 32),
            Operation::Flush => self.push(wire, cid, 0),
            _ => self.push(wire, cid, io.lba().wrapping_add(first)),
        }
    }

    /// Issues pieces of a read or write that is cut by its limits alone, as long as each piece lies in one
    /// segment and needs no list. Whatever else comes is left.
    #[inline(never)]
    fn issue_runs(&mut self, tree: &mut Tree, id: NodeId) {
        let Node { namespace, cursor: mut first, .. } = tree[id];
        let Reachable { nsid, limits } = *self.reachable(namespace);
        let io = &tree[id].io;
        let opcode = match io.operation() {
            Operation::Read => READ,
            Operation::Write => WRITE,
            _ => return,
        };
        let (lba, end, tail) = (io.lba(), io.blocks(), nlb(io, 1));
        // What one command can carry all of may be prepared, elsewhere.
        if first == 0 && limits.transfer_from(lba, end) == end {
            return;
        }
        let mut wire = self.wire(nsid, u16::from(opcode), ([0; 2], self.pointer.flags()), tail);
        let (chain, mut at) = tree.memory(id);
        let (from, mut issued) = (first, 0);
        'segments: for segment in chain.segments().get(at.segment..).unwrap_or_default() {
            let (begin, len) = (segment.iova(), segment.len() as u64);
            while at.offset < len {
                let blocks = limits.transfer_from(lba.wrapping_add(first), end - first);
                let (bytes, left) = (blocks << limits.block_shift, len - at.offset);
                if blocks == 0 || bytes > left {
                    break 'segments;
                }
                // As many as are alike.
                let most = match limits.boundary {
                    0 => (left / bytes).min((end - first) / blocks).min(self.slots.left().into()) as u32,
                    _ => 1,
                };
                wire.tail = tail + blocks - 1;
                let run = Run { iova: begin + at.offset, len: bytes };
                let count = self.issue_run(id, &wire, lba, (first, blocks as u32), run, most);
                (first, issued) = (first + u64::from(count) * blocks, issued + count);
                at.offset += u64::from(count) * bytes;
                if count == 0 {
                    break 'segments;
                }
            }
            at = Position { segment: at.segment + 1, offset: 0 };
        }
        self.counted.splits += u64::from(issued) - u64::from(from == 0 && issued > 0);
        tree.issued(id, first, at, issued);
    }

    /// Issues pieces of a node that was checked, and of whose pieces all are alike but the last: as many of those as there
    /// are slots for. Whatever else comes is left.
    #[inline(never)]
    fn issue_alike(&mut self, tree: &mut Tree, id: NodeId) {
        let node = &tree[id];
        let Wire { checked, head, tail, .. } = node.wire;
        if checked == 0 || head == 0 {
            return;
        }
        let Some(segment) = node.io.memory().one() else { return };
        let first = node.cursor;
        let blocks = (tail & 0xffff) as u32 + 1;
        let most = (node.unissued() / u64::from(blocks)) as u32;
        let shift = self.reachable(node.namespace).limits.block_shift;
        let run = Run { iova: segment.iova() + (first << shift), len: u64::from(blocks) << shift };
        let wire = Wire { head, tail, ..Wire::NONE };
        let issued = self.issue_run(id, &wire, node.io.lba(), (first, blocks), run, most);
        let cursor = first + u64::from(issued) * u64::from(blocks);
        self.counted.splits += u64::from(issued) - u64::from(first == 0 && issued > 0);
        tree.issued(id, cursor, Position { segment: 0, offset: cursor << shift }, issued);
    }

    /// Issues pieces of a node that are alike and follow each other, the first of them with its memory given, as long
    /// as they need no list, and `most` at most, for which there are slots. Returns how many.
    #[inline(always)]
    fn issue_run(
        &mut self,
        id: NodeId,
        wire: &Wire,
        lba: u64,
        (first, blocks): (u64, u32),
        run: Run,
        most: u32,
    ) -> u32 {
        let Wire { head, tail, .. } = *wire;
        let Some(Series { first: mut dptr, step, most: alike }) = self.pointer.series(run) else { return 0 };
        let count = most.min(alike).min(self.slots.left());
        let mut lba = lba.wrapping_add(first);
        let Queue { slots, sq, .. } = self;
        slots.occupy_parts(count, id, (first, blocks), |cid| {
            sq.push([head ^ u64::from(cid), 0, 0, dptr[0], dptr[1], lba, tail, 0]);
            lba = lba.wrapping_add(blocks.into());
            dptr = [dptr[0].wrapping_add(step[0]), dptr[1].wrapping_add(step[1])];
        });
        count
    }

    /// Writes a command into the ring; its dwords 10 and 11 are given.
    #[inline(always)]
    fn push(&mut self, wire: &Wire, cid: u32, cdw10_11: u64) {
        let [prp1, prp2] = wire.dptr;
        self.sq.push([wire.head ^ u64::from(cid), 0, 0, prp1, prp2, cdw10_11, wire.tail, 0]);
    }

    /// Writes a command of the caller's own making into the ring.
    fn push_raw(&mut self, io: &IoContainer, wire: &Wire, cid: u32) {
        let [prp1, prp2] = wire.dptr;
        let (head, raw) = (wire.head ^ u64::from(cid), io.raw_words());
        self.sq.push([head, raw.cdw2_3, 0, prp1, prp2, io.lba(), wire.tail, raw.cdw14_15]);
    }

    // ---- waiting ----

    /// Holds back what is submitted from now on.
    pub(crate) fn plug(&mut self) {
        self.gate |= PLUGGED;
    }

    /// Sends down what was held back, and rings the doorbell for it: the next poll may be long in coming, or be
    /// the one that would find it completed.
    pub(crate) fn unplug(&mut self, tree: &mut Tree) {
        self.gate &= !PLUGGED;
        let plugged = std::mem::replace(&mut self.plugged, Line::EMPTY);
        if !plugged.is_empty() {
            self.waiting.append(tree, plugged);
            self.gate |= WAITING;
        }
        self.issue_waiting(tree);
        self.ring();
    }

    /// Gives free slots to what waits, in order.
    #[cold]
    fn issue_waiting(&mut self, tree: &mut Tree) {
        if self.gate & SUSPENDED != 0 {
            return;
        }
        self.close_join(tree);
        // Without a slot there is nothing to merge for either.
        while !self.waiting.is_empty() && self.slots.taken() < self.slots.depth() {
            let id = self.waiting.first();
            let sent = self.merging && !self.waiting.is_single() && self.merge(tree);
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

    /// Whether requests wait for the end of the turn that they come in, so that neighbours go down together.
    pub(crate) fn set_gathering(&mut self, gathering: bool) {
        self.gathering = gathering;
        self.gate |= WAITING;
        self.open_gate();
    }

    fn open_gate(&mut self) {
        if self.waiting.is_empty() && !self.gathering {
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

    /// Whether a completion may have come since the last turn.
    #[inline(always)]
    pub(crate) fn has_news(&self) -> bool {
        self.cq.has_changed()
    }

    /// Looks for one completion. A node that went down whole still counts one command in flight.
    #[inline(always)]
    pub(crate) fn next(&mut self, tree: &mut Tree) -> Next {
        let high = self.cq.high();
        let high = if defects::is(Defect::MissGenerationCheck) { self.slots.believe(high) } else { high };
        // The comparison with a slot finds this as well, but later, and every turn ends with it.
        if !CompletionRing::is_success(high) {
            if CompletionRing::is_new(high) {
                self.exception(tree, high);
                return Next::Other;
            }
            self.cq.remember(high);
            return Next::Nothing;
        }
        match self.slots.land(high) {
            Some((node, slot)) => {
                self.advance();
                Next::Whole(node, slot as u32)
            }
            None => {
                self.exception(tree, high);
                Next::Other
            }
        }
    }

    /// Consumes a completion. An honest controller has no more of them for one turn than its queue has
    /// entries, since what is submitted meanwhile is not rung before the end; another one gets nothing more
    /// to complete, so that it does not keep us here.
    #[inline(always)]
    fn advance(&mut self) {
        if self.cq.advance() {
            cold_path();
            self.laps += 1;
            if self.laps == 2 {
                self.gate |= HALTED;
            }
        }
    }

    /// A new entry, of anything but the success of a whole node; and those that follow it, as long as they are
    /// successes of pieces.
    #[cold]
    #[inline(never)]
    fn exception(&mut self, tree: &mut Tree, high: u64) {
        // One in sixteen, by the SQ head.
        if defects::is(Defect::LoseCompletion) && high & 0xf == 7 {
            return self.advance();
        }
        // After a reset a flush may have come too late.
        let landed = !self.wary && self.land_pieces(tree, high);
        if !landed {
            self.other_exception(tree, high);
        }
    }

    /// Successes of pieces, as many as follow each other; whether there is one. Those that are in flight are all that
    /// there can be.
    #[inline(always)]
    fn land_pieces(&mut self, tree: &mut Tree, high: u64) -> bool {
        let (mut high, before) = (high, self.slots.left());
        while let Some((id, blocks)) = self.slots.land_part(high) {
            let observed = tree[id].observed;
            let first = self.slots.left() - 1;
            loop {
                self.advance();
                high = self.cq.high();
                // Nobody wants to know which ones they are.
                if observed || !self.slots.land_part_of(high, id) {
                    break;
                }
            }
            let node = &mut tree[id];
            node.settle_all(self.slots.left() - first);
            if node.is_finished() | observed {
                self.finish_piece(tree, id, blocks);
            }
        }
        self.slots.left() > before
    }

    /// A piece of a node that is observed, or the last one, has succeeded.
    fn finish_piece(&mut self, tree: &mut Tree, id: NodeId, blocks: Range<u64>) {
        let node = &tree[id];
        let (finished, waits) = (node.is_finished(), node.waits);
        tree.observe(id, blocks, Progress::Done);
        match finished {
            // One that failed may still stand in the line.
            true if waits => self.drop_unissued(tree, id),
            true if tree[id].is_usual() => self.land(tree, id, id),
            true => tree.finish(id),
            false => {}
        }
    }

    #[cold]
    #[inline(never)]
    fn other_exception(&mut self, tree: &mut Tree, high: u64) {
        let index = self.slots.index(high);
        if self.slots.is_marked(index) && self.look_again(tree, index, high) {
            return;
        }
        let completion: Completion = self.cq.entry(high);
        self.advance();
        if self.slots.answers(index, &completion) {
            let status = completion.status();
            // A flush may have come too late, after a reset.
            if status.is_success() && !self.wary {
                self.settle(tree, index, None);
            } else {
                self.settle_unless_put_off(tree, index, status);
            }
        } else {
            self.counted.faults += 1;
        }
    }

    /// The command in a slot is over.
    fn settle(&mut self, tree: &mut Tree, index: usize, cause: Option<Cause>) {
        let slot = *self.slots.get(index);
        self.slots.free(index);
        if self.is_suspended() && cause.is_none() {
            // It goes the longer way, on which it is told of.
            Queue::mark_landed(tree, slot);
        }
        let (first, blocks) = match slot.piece {
            Piece::Merged { count, last } => {
                return match (cause, last) {
                    (None, Some(last)) if !self.is_suspended() => self.land(tree, slot.node, last),
                    (cause, _) => self.settle_merged(tree, slot.node, count, cause),
                };
            }
            Piece::Whole => {
                if tree[slot.node].counted {
                    self.end_counting();
                }
                tree[slot.node].wire.forget();
                (0, tree[slot.node].io.extent())
            }
            Piece::Part { first, blocks } => (first, blocks.into()),
            Piece::Bounced { first, blocks, buffer } => {
                let blocks = u64::from(blocks);
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
    pub(crate) fn release(&mut self, slot: u32) {
        self.slots.free(slot as usize);
    }

    /// Dword 0 of the completion that [`next`](Queue::next) consumed last.
    pub(crate) fn dword0(&self) -> u32 {
        self.cq.dword0()
    }

    /// At the end of a turn, what waits gets free slots.
    #[inline(never)]
    pub(crate) fn finish_gated(&mut self, tree: &mut Tree) {
        self.gate &= !HALTED;
        self.issue_waiting(tree);
    }

    /// The end of a turn: the doorbells are rung, each at most once.
    #[inline(always)]
    pub(crate) fn finish_turn(&mut self) {
        self.ring();
    }

    /// After so many polls in a row that found nothing, the controller is told of all that was consumed.
    pub(crate) fn rest(&mut self, idle: u32) {
        if idle >= IDLE_POLLS {
            self.cq.ring();
        }
    }

    /// Tells the controller of new commands, if there are any.
    #[inline(always)]
    fn ring(&mut self) {
        if !self.sq.is_rung() {
            // First room for what the new commands will complete with, then the commands.
            self.cq.make_room();
            self.sq.ring();
        }
    }

    /// The controller is lost: what it has not completed fails, now and later. What it may still reach goes back to
    /// nobody, unless it is certain that it reaches nothing.
    pub(crate) fn fail_all(&mut self, tree: &mut Tree, reaches_nothing: bool) {
        self.break_off(tree);
        self.gate |= DEAD;
        self.take_in(tree);
        for index in 0..self.slots.depth() {
            if self.slots.is_in_flight(index) || self.slots.is_put_off(index) {
                // What is put off, the controller is done with.
                if !reaches_nothing && self.slots.is_in_flight(index) {
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
        self.gate = DEAD | self.gate & COUNTING;
        self.again.clear();
    }

    /// Takes in what has come and was not looked at: it would answer nothing once its commands have failed.
    fn take_in(&mut self, tree: &mut Tree) {
        // One whose slot has marks is looked at twice, and no controller keeps us here.
        for _ in 0..2 * self.cq.len() {
            let high = self.cq.high();
            if !CompletionRing::is_new(high) {
                break;
            }
            self.other_exception(tree, high);
        }
        self.leave_row(tree);
    }

    /// All memory of a command in flight.
    fn forfeit(&mut self, tree: &mut Tree, index: usize) {
        let slot = *self.slots.get(index);
        let count = if let Piece::Merged { count, .. } = slot.piece { count } else { 1 };
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
                Some(first..first + u64::from(blocks))
            }
            Piece::Whole | Piece::Merged { .. } => None,
        })
    }
}
