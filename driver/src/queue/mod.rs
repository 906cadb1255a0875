//! An I/O queue pair: nodes of the request tree go down as commands, completions come up.
//!
//! A node is cut into pieces by its cursor, one piece at a time, as slots free up; what has to wait
//! waits in order. Knows slots, pieces and rings; must not know who asked for a request, nor what
//! happens with it afterwards.
#![forbid(unsafe_code)]

mod admit;
mod limits;
mod prp;
mod ring;
mod runs;
mod sgl;
mod slots;

use crate::memory::{MemoryChain, SharedArray};
use crate::request::{IoContainer, Node, NodeId, Operation, Tree, Wire};
use crate::spec::Completion;
use crate::spec::command::{DSM_DEALLOCATE, PSDT_SGL_MPTR_CONTIGUOUS, RW_FUA};

pub use self::admit::Refusal;
pub(crate) use self::limits::Limits;
pub(crate) use self::ring::{CompletionRing, SubmissionRing};
use self::runs::{Run, Runs};
use self::slots::{Piece, Slots};

/// Slots of a queue are at most this many.
pub(crate) const MAX_DEPTH: usize = slots::MAX;
/// 64-bit words of a list page.
const PAGE_WORDS: usize = 512;

/// How data pointers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataPointer {
    /// Physical Region Pages; the table lists contiguous memory.
    Prp {
        /// The IOVA of the table, unless the controller wants lists of its own.
        table: Option<u64>,
    },
    /// Scatter Gather Lists.
    Sgl {
        /// Addresses and lengths are multiples of this.
        granularity: u64,
    },
}

/// A namespace as a queue sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reachable {
    pub(crate) nsid: u32,
    pub(crate) limits: Limits,
}

/// Counters of a queue pair since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Commands that the controller was told of.
    pub commands: u64,
    /// Writes to the submission queue's doorbell.
    pub sq_doorbells: u64,
    /// Writes to the completion queue's doorbell.
    pub cq_doorbells: u64,
    /// Completions that answer no command in flight: the device is broken, or lies.
    pub faults: u64,
}

/// The device's part of a queue pair, and everything in flight on it.
#[derive(Debug)]
pub(crate) struct Queue {
    sq: SubmissionRing,
    cq: CompletionRing,
    slots: Slots,
    /// Non-zero while something waits for a slot: then nothing may overtake it.
    gate: u32,
    waiting: Waiting,
    namespaces: Vec<Reachable>,
    pointer: DataPointer,
    /// Memory for lists, `list_pages` for each slot.
    lists: SharedArray<1>,
    list_pages: usize,
    /// Bytes that one command transfers at most.
    max_transfer: u64,
    space: u64,
    faults: u64,
}

/// Nodes that wait for slots, in order, linked through the nodes themselves.
#[derive(Debug)]
struct Waiting {
    first: NodeId,
    last: NodeId,
}

/// A completion that finished a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    pub(crate) node: NodeId,
    /// The slot, still taken, if the node went down whole.
    pub(crate) slot: Option<usize>,
}

impl Queue {
    pub(crate) fn new(
        (qid, sq, cq): (u16, SubmissionRing, CompletionRing),
        depth: usize,
        pointer: DataPointer,
        lists: SharedArray<1>,
        max_transfer: u64,
        space: u64,
    ) -> Queue {
        // A full submission queue holds one entry less than its size, and completions never
        // outnumber what is outstanding.
        assert!(depth < sq.len() as usize && depth < cq.len() as usize);
        let list_pages = lists.len() / PAGE_WORDS / depth;
        assert!(list_pages > 0);
        let slots = Slots::new(qid, depth);
        let waiting = Waiting { first: NodeId::NONE, last: NodeId::NONE };
        Queue {
            sq,
            cq,
            slots,
            gate: 0,
            waiting,
            namespaces: Vec::new(),
            pointer,
            lists,
            list_pages,
            max_transfer,
            space,
            faults: 0,
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

    pub(crate) fn stats(&self) -> QueueStats {
        QueueStats {
            commands: self.sq.commands,
            sq_doorbells: self.sq.doorbells,
            cq_doorbells: self.cq.doorbells,
            faults: self.faults,
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

    // ---- down ----

    /// Starts a node that was admitted: as much of it as there are slots for; the rest waits.
    pub(crate) fn start(&mut self, tree: &mut Tree, id: NodeId) {
        if self.gate != 0 || !self.issue(&mut tree[id], id) {
            self.wait(tree, id);
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
        node.failure = None;
        self.push(&node.io, wire, node.io.lba(), slot, id, Piece::Whole);
        true
    }

    /// Issues pieces until the node has none left (true) or there is no slot (false).
    fn issue(&mut self, node: &mut Node, id: NodeId) -> bool {
        while node.unissued() > 0 {
            let Some(slot) = self.slots.take() else { return false };
            let (blocks, wire) = self.cut(node, slot);
            let (first, whole) = (node.cursor, blocks == node.io.extent());
            node.cursor += blocks;
            node.in_flight += 1;
            // The range of a deallocate is in memory, where a change of the LBA would not reach it.
            let lasting = whole && node.io.operation() != Operation::Deallocate;
            node.wire = lasting.then_some(wire);
            // A completion that is an event takes the longer way, where pieces are counted.
            let plain = whole && node.event.is_none();
            let piece = if plain { Piece::Whole } else { Piece::Part { first } };
            self.push(&node.io, wire, node.io.lba().wrapping_add(first), slot, id, piece);
        }
        true
    }

    /// The next piece of a node, for a slot: how many blocks, and what its command looks like.
    fn cut(&mut self, node: &Node, slot: usize) -> (u64, Wire) {
        let io = &node.io;
        let Reachable { nsid, limits } = *self.reachable(node.namespace);
        let opcode = u16::from(io.operation().opcode().unwrap_or(0));
        let nlb = |blocks: u64| (blocks - 1) | if io.is_fua() { u64::from(RW_FUA) } else { 0 };
        let lba = io.lba().wrapping_add(node.cursor);
        let (blocks, dptr, opcode_flags, tail) = match io.operation() {
            Operation::Read | Operation::Write => {
                let most = limits.transfer_from(lba, node.unissued());
                let skip = node.cursor << limits.block_shift;
                let bytes = self.expressible(io.memory(), skip, most << limits.block_shift);
                let blocks = bytes >> limits.block_shift;
                assert!(blocks > 0, "an admitted chain has pieces of whole blocks");
                let (dptr, flags) = self.data_pointer(io.memory(), skip, blocks << limits.block_shift, slot);
                (blocks, dptr, opcode | flags, nlb(blocks))
            }
            Operation::WriteZeroes => {
                let blocks = node.unissued().min(limits.write_zeroes);
                (blocks, [0; 2], opcode, nlb(blocks))
            }
            Operation::Deallocate => {
                let blocks = node.unissued().min(limits.deallocate);
                (blocks, self.deallocate_range(slot, lba, blocks), opcode, 0)
            }
            Operation::Flush => (1, [0; 2], opcode, 0),
            Operation::Raw => {
                let (dptr, flags) = match io.memory().len() as u64 {
                    0 => ([0; 2], 0),
                    len => self.data_pointer(io.memory(), 0, len, slot),
                };
                (1, dptr, io.raw.opcode_flags | flags, io.raw.cdw12_13)
            }
        };
        (blocks, Wire { head: u64::from(nsid) << 32 | u64::from(opcode_flags), dptr, tail })
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

    /// Bytes from `skip` on, up to `most`, that one command can express, in whole blocks if the
    /// chain was admitted as such.
    fn expressible(&self, chain: &MemoryChain, skip: u64, most: u64) -> u64 {
        let runs = Runs::new(chain, skip, most);
        match self.pointer {
            DataPointer::Prp { .. } => prp::expressible(runs),
            DataPointer::Sgl { .. } => sgl::expressible(runs, self.list_pages * PAGE_WORDS / 2),
        }
    }

    /// The data pointer of a piece, and the flags that go with it.
    fn data_pointer(&mut self, chain: &MemoryChain, skip: u64, len: u64, slot: usize) -> ([u64; 2], u16) {
        let mut runs = Runs::new(chain, skip, len);
        let first_word = slot * self.list_pages * PAGE_WORDS;
        let list = self.lists.iova() + 8 * first_word as u64;
        let words = &self.lists[first_word..first_word + self.list_pages * PAGE_WORDS];
        let store = |i: usize, word: u64| words[i][0].store(word, std::sync::atomic::Ordering::Relaxed);
        let whole = runs.clone();
        let only = runs.next().filter(|run| run.len == len);
        match (self.pointer, only) {
            (DataPointer::Prp { table }, only) => {
                let direct = only.and_then(|run| prp::contiguous(run, table));
                (direct.unwrap_or_else(|| prp::scattered(whole, list, store)), 0)
            }
            (DataPointer::Sgl { .. }, Some(run)) => (sgl::contiguous(run), SGL),
            (DataPointer::Sgl { .. }, None) => (sgl::scattered(whole, list, store), SGL),
        }
    }

    /// One range for dataset management, in the slot's list page; always a PRP.
    fn deallocate_range(&mut self, slot: usize, lba: u64, blocks: u64) -> [u64; 2] {
        let word = slot * self.list_pages * PAGE_WORDS;
        for (i, value) in [blocks << 32, lba].into_iter().enumerate() {
            self.lists[word + i][0].store(value, std::sync::atomic::Ordering::Relaxed);
        }
        [self.lists.iova() + 8 * word as u64, 0]
    }

    // ---- waiting ----

    fn wait(&mut self, tree: &mut Tree, id: NodeId) {
        tree[id].next = NodeId::NONE;
        match self.waiting.last {
            NodeId::NONE => self.waiting.first = id,
            last => tree[last].next = id,
        }
        self.waiting.last = id;
        self.gate = 1;
    }

    /// Gives free slots to what waits, in order.
    #[cold]
    fn issue_waiting(&mut self, tree: &mut Tree) {
        while !self.waiting.first.is_none() {
            let id = self.waiting.first;
            let node = &mut tree[id];
            // A failed node has nothing left to issue, and leaves the line.
            if !self.issue(node, id) {
                return;
            }
            self.waiting.first = node.next;
        }
        self.waiting.last = NodeId::NONE;
        self.gate = 0;
    }

    // ---- up ----

    /// Looks for one completion. `Ok` for a node that finished, `Err(true)` if something else was
    /// consumed, `Err(false)` if there is nothing new.
    #[inline(always)]
    pub(crate) fn next(&mut self, tree: &mut Tree) -> Result<Finished, bool> {
        let high = self.cq.high();
        let index = self.slots.index(high);
        let slot = *self.slots.get(index);
        if high >> 16 != slot.expect || slot.piece != Piece::Whole {
            return match CompletionRing::is_new(high) {
                true => self.exception(tree, high, index),
                false => Err(false),
            };
        }
        self.cq.advance();
        self.slots.vacate(index);
        tree[slot.node].in_flight = 0;
        Ok(Finished { node: slot.node, slot: Some(index) })
    }

    /// A new entry, of anything but the success of a whole node.
    #[cold]
    fn exception(&mut self, tree: &mut Tree, high: u64, index: usize) -> Result<Finished, bool> {
        let completion: Completion = self.cq.entry(high);
        self.cq.advance();
        if !self.slots.answers(index, &completion) {
            self.faults += 1;
            return Err(true);
        }
        let slot = *self.slots.get(index);
        let status = completion.status();
        let node = &mut tree[slot.node];
        match slot.piece {
            Piece::Whole => {
                node.settle(0, status);
                self.slots.vacate(index);
                Ok(Finished { node: slot.node, slot: Some(index) })
            }
            Piece::Part { first } => {
                node.settle(first, status);
                self.slots.free(index);
                if node.in_flight > 0 || node.unissued() > 0 {
                    return Err(true);
                }
                self.leave_line(tree, slot.node);
                Ok(Finished { node: slot.node, slot: None })
            }
        }
    }

    /// A node that failed may still stand first in the line, with pieces that will not be issued.
    fn leave_line(&mut self, tree: &mut Tree, id: NodeId) {
        if self.waiting.first == id {
            self.waiting.first = tree[id].next;
            if self.waiting.first.is_none() {
                self.waiting.last = NodeId::NONE;
                self.gate = 0;
            }
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
}

/// The flags word of a command with SGLs.
const SGL: u16 = (PSDT_SGL_MPTR_CONTIGUOUS as u16) << 8;

/// The PRPs of an admin command's memory: contiguous, and within what the table lists.
pub(crate) fn contiguous_prps(chain: &MemoryChain, table: Option<u64>) -> Option<[u64; 2]> {
    let len = chain.len() as u64;
    let run = Runs::new(chain, 0, len).next().filter(|run: &Run| run.len == len)?;
    prp::contiguous(run, table)
}
