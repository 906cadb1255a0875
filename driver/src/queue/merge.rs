//! Merging: neighbours in the line that are neighbours on the medium go down in one command.
//!
//! Only what has to wait anyway is merged, so nothing is delayed by it. Each request completes on its
//! own; if the command fails, they go down again one by one, and only the guilty one fails. Knows the
//! line and limits; must not know how a request came to wait.

use std::sync::atomic::Ordering;

use super::cut::nlb;
use super::runs::{Parts, Run};
use super::slots::Piece;
use super::{DataPointer, JOINING, PAGE_WORDS, Queue, Reachable, WAITING, prp};
use crate::defects::{self, Defect};
use crate::request::{Cause, Failed, Line, Node, NodeId, Operation, Tree, Wire};

/// Requests in one command, at most.
const MOST: u16 = 256;
/// No block has it, and it is below no bound.
const NO_LBA: u64 = u64::MAX;

/// A command that is not sent yet, and that neighbours join as they come: pages, in the order of their blocks. Its nodes
/// are as in flight, and stand in no line. It is sent at the end of the turn, or when one comes that does not go with it.
#[derive(Debug)]
pub(super) struct Join {
    first: NodeId,
    /// All of them are linked to each other.
    last: NodeId,
    /// Taken, and vacant until it is sent.
    slot: usize,
    /// The word of the slot's list that is for the next page, and the one after the last that may be.
    word: usize,
    end: usize,
    next_lba: u64,
    /// What all of them have in common.
    blocks: u64,
    head: u64,
    tail: u64,
    namespace: u16,
}

impl Join {
    /// None is open, and nothing joins it.
    pub(super) const NONE: Join = Join {
        first: NodeId::NONE,
        last: NodeId::NONE,
        slot: 0,
        word: 0,
        end: 0,
        next_lba: NO_LBA,
        blocks: 0,
        head: 0,
        tail: 0,
        namespace: 0,
    };
}

impl Queue {
    /// Sends the first nodes of the line down in one command. False if they do not go together, or
    /// there is no slot: then nothing was done.
    pub(super) fn merge(&mut self, tree: &mut Tree) -> bool {
        let first = self.waiting.first();
        if tree[first].wire.checked > 0 {
            // It takes several commands for itself.
            return false;
        }
        if self.merge_pages(tree) {
            return true;
        }
        let (count, blocks) = self.mergeable(tree, first);
        if count < 2 {
            return false;
        }
        let Some(slot) = self.slots.take() else { return false };
        let Reachable { nsid, limits } = *self.reachable(tree[first].namespace);
        let io = &tree[first].io;
        let opcode = io.operation().opcode().map_or(0, u16::from);
        let (tail, lba) = (nlb(io, blocks), io.lba());
        let pointer = self.data_pointer(parts(tree, first, count, limits.block_shift), slot);
        let cid = self.slots.occupy(slot, first, Piece::Merged { count, last: None });
        let wire = self.wire(nsid, opcode, pointer, tail);
        self.push(&wire, cid, lba);
        self.counted.merges += u64::from(count) - 1;
        for _ in 0..count {
            // Out of the line, but linked to each other as before.
            let Some(id) = self.waiting.pop(tree) else { break };
            taken_from_line(&mut tree[id]);
        }
        true
    }

    /// The same for pages that [join](Queue::join). False if there are no two of them at the head of the line, or there
    /// is no slot: then nothing was done.
    #[inline(never)]
    fn merge_pages(&mut self, tree: &mut Tree) -> bool {
        let first = self.waiting.first();
        if !may_merge(&tree[first]) || !self.open_join(tree, first) {
            return false;
        }
        let mut id = tree[first].next;
        while !id.is_none() && is_plain(&tree[id]) && self.join(tree, id) {
            id = taken_from_line(&mut tree[id]);
        }
        if self.join.last == first {
            self.take_join();
            return false;
        }
        taken_from_line(&mut tree[first]);
        self.waiting.pop_until(id);
        self.close_join(tree);
        true
    }

    /// Begins a command that others may [join](Queue::join), with a prepared node that has a whole page of memory.
    /// False if it cannot be: then nothing was done.
    #[inline(never)]
    pub(super) fn open_join(&mut self, tree: &Tree, first: NodeId) -> bool {
        debug_assert!(self.gate & JOINING == 0, "what has joined was to be sent before");
        let node = &tree[first];
        let (lba, blocks, namespace) = (node.io.lba(), node.io.blocks(), node.namespace);
        let Wire { bound, head, tail, .. } = node.wire;
        let limits = &self.reachable(namespace).limits;
        if matches!(self.pointer, DataPointer::Sgl { .. })
            || lba >= bound
            || blocks << limits.block_shift != prp::PAGE
            || !(node.io.may_merge() && is_plain(node) && is_page(node))
        {
            return false;
        }
        let shift = prp::PAGE.trailing_zeros() - limits.block_shift;
        let most = limits.transfer_from(lba, u64::from(MOST) << shift).min(bound - lba + blocks - 1) >> shift;
        let most = most.min(limits.writes_as_one(node.io.operation(), blocks)) as usize;
        // All but the first are in the list of the slot.
        let others = most.saturating_sub(1).min(PAGE_WORDS);
        let Some(slot) = self.slots.take() else { return false };
        let word = slot * self.list_pages * PAGE_WORDS;
        let next_lba = if others > 0 { lba + blocks } else { NO_LBA };
        self.join = Join {
            first,
            last: first,
            slot,
            word,
            end: word + others,
            next_lba,
            blocks,
            head,
            tail,
            namespace,
        };
        self.gate |= JOINING;
        true
    }

    /// Adds a node to the command that was begun last, if that is open and the node's command is the same but for the
    /// page, and the LBA that follows.
    #[inline(always)]
    pub(super) fn join(&mut self, tree: &mut Tree, id: NodeId) -> bool {
        let (node, join) = (&tree[id], &mut self.join);
        // One NSID may be here under several numbers, and what is to be done after a reset differs.
        let same = node.io.lba() == join.next_lba
            && node.io.lba() < node.wire.bound
            && node.wire.head == join.head
            && node.wire.tail == join.tail
            && node.namespace == join.namespace
            && is_page(node);
        if !same {
            return false;
        }
        let Some([word]) = self.lists.get(join.word) else { return false };
        word.store(node.wire.dptr[0], Ordering::Relaxed);
        tree[join.last].next = id;
        join.last = id;
        join.word += 1;
        join.next_lba = if join.word < join.end { join.next_lba + join.blocks } else { NO_LBA };
        true
    }

    /// Sends down what has joined, if anything has.
    pub(super) fn close_join(&mut self, tree: &mut Tree) {
        if self.gate & JOINING != 0 {
            self.send_joined(tree);
        }
    }

    #[inline(never)]
    fn send_joined(&mut self, tree: &mut Tree) {
        self.gate &= !JOINING;
        let Join { first, last, slot, word, blocks, tail, .. } =
            std::mem::replace(&mut self.join, Join::NONE);
        let node = &tree[first];
        let list = slot * self.list_pages * PAGE_WORDS;
        let count = 1 + word - list;
        let (cid, wire) = match count {
            1 => (self.slots.occupy(slot, first, Piece::Whole), node.wire),
            _ => {
                let second = match self.lists.get(list) {
                    Some([second]) if count == 2 => second.load(Ordering::Relaxed),
                    _ => self.lists.iova() + 8 * list as u64,
                };
                let piece = Piece::Merged { count: count as u16, last: Some(last) };
                let tail = tail + (count as u64 - 1) * blocks;
                let wire = Wire { dptr: [node.wire.dptr[0], second], tail, ..node.wire };
                (self.slots.occupy(slot, first, piece), wire)
            }
        };
        self.push(&wire, cid, node.io.lba());
        self.counted.merges += count as u64 - 1;
    }

    /// No command is open any more, and the slot is free.
    fn take_join(&mut self) -> Join {
        self.gate &= !JOINING;
        self.slots.free(self.join.slot);
        std::mem::replace(&mut self.join, Join::NONE)
    }

    /// What has joined waits like anything else: who was to close it cannot.
    pub(super) fn part_join(&mut self, tree: &mut Tree) {
        if self.gate & JOINING == 0 {
            return;
        }
        let Join { first: mut id, last, .. } = self.take_join();
        loop {
            let next = tree[id].next;
            self.wait_again(tree, id);
            if id == last {
                break;
            }
            id = next;
        }
    }

    /// How many nodes, from one in the line on, one command can carry, and how many blocks.
    fn mergeable(&self, tree: &Tree, first: NodeId) -> (u16, u64) {
        let limits = &self.reachable(tree[first].namespace).limits;
        let (lba, operation, namespace) =
            (tree[first].io.lba(), tree[first].io.operation(), tree[first].namespace);
        let (mut count, mut blocks, mut id) = (0, 0, first);
        let mut smallest = u64::MAX;
        while count < MOST && !id.is_none() {
            let node = &tree[id];
            let fits = may_merge(node)
                && (node.namespace, node.io.operation()) == (namespace, operation)
                && lba.checked_add(blocks) == Some(node.io.lba());
            if !fits {
                break;
            }
            let total = blocks + node.io.blocks();
            smallest = smallest.min(node.io.blocks());
            if limits.transfer_from(lba, total) < total
                || (operation == Operation::Write && !limits.keeps_atomicity(lba, total, smallest))
            {
                break;
            }
            (count, blocks, id) = (count + 1, total, node.next);
        }
        if count < 2 {
            return (count, blocks);
        }
        // Up to the first joint that the controller cannot be told of.
        let mut left = self.expressible(parts(tree, first, count, limits.block_shift)) >> limits.block_shift;
        let (mut count_left, mut sum, mut id) = (0, 0, first);
        while count_left < count && left >= tree[id].io.blocks() {
            left -= tree[id].io.blocks();
            sum += tree[id].io.blocks();
            count_left += 1;
            id = tree[id].next;
        }
        (count_left, sum)
    }

    /// A command that carried several nodes is over.
    pub(super) fn settle_merged(&mut self, tree: &mut Tree, first: NodeId, count: u16, cause: Option<Cause>) {
        let mut again = Line::EMPTY;
        let gone = cause.is_some() && self.gone(tree[first].namespace).is_some();
        let mut id = first;
        let count = if defects::is(Defect::SkipMergedConstituent) { count - 1 } else { count };
        for _ in 0..count {
            let node = &mut tree[id];
            let next = node.next;
            match cause {
                // Recovered from nowhere: a lost controller carries out nothing more, nor does anyone for a
                // namespace that is gone; or it is not to be carried out twice.
                cause
                    if gone
                        || matches!(cause, None | Some(Cause::ControllerLost | Cause::OutcomeUnknown)) =>
                {
                    node.settle(cause.map(|cause| Failed { at: 0, cause }));
                    tree.finish(id);
                }
                // Whose fault it was is not known, not even with Do Not Retry set.
                Some(_) if node.failed.is_none() => {
                    node.in_flight = 0;
                    node.rewind();
                    (node.alone, node.waits) = (true, true);
                    again.push(tree, id);
                }
                // Cancelled meanwhile: it is not issued again.
                _ => {
                    node.in_flight = 0;
                    tree.finish(id);
                }
            }
            id = next;
        }
        if !again.is_empty() {
            self.waiting.prepend(tree, again);
            self.gate |= WAITING;
        }
    }
}

/// All of a node is in flight now; the one behind it.
#[inline(always)]
fn taken_from_line(node: &mut Node) -> NodeId {
    (node.waits, node.in_flight, node.cursor) = (false, 1, node.io.extent());
    node.next
}

/// Whether a node may be one with others, and is neither an event nor passed layers.
#[inline(always)]
fn is_plain(node: &Node) -> bool {
    node.event.is_none() && !(node.is_layered() | node.io.is_no_merge())
}

/// Whether a prepared node has data of one page, for which there is no list.
#[inline(always)]
fn is_page(node: &Node) -> bool {
    (node.wire.dptr[0] & (prp::PAGE - 1) | node.wire.dptr[1]) == 0
}

fn may_merge(node: &Node) -> bool {
    node.io.may_merge() && !node.alone && node.cursor == 0 && node.in_flight == 0 && node.unissued() > 0
}

/// The memory of nodes in a row.
fn parts(tree: &Tree, first: NodeId, count: u16, block_shift: u32) -> impl Iterator<Item = Run> + Clone {
    let (mut id, mut left, mut parts) = (first, count, Parts::NONE);
    std::iter::from_fn(move || {
        loop {
            if let Some(run) = parts.next() {
                return Some(run);
            }
            left = left.checked_sub(1)?;
            let (chain, at) = tree.memory(id);
            parts = Parts::new(chain, at, tree[id].io.blocks() << block_shift);
            id = tree[id].next;
        }
    })
}
