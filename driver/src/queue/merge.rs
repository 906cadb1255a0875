//! Merging: neighbours in the line that are neighbours on the medium go down in one command.
//!
//! Only what has to wait anyway is merged, so nothing is delayed by it. Each request completes on its
//! own; if the command fails, they go down again one by one, and only the guilty one fails. Knows the
//! line and limits; must not know how a request came to wait.

use std::sync::atomic::Ordering;

use super::cut::nlb;
use super::runs::{Parts, Run};
use super::slots::Piece;
use super::{DataPointer, PAGE_WORDS, Queue, Reachable, WAITING, prp};
use crate::defects::{self, Defect};
use crate::request::{Cause, Failed, Line, Node, NodeId, Operation, Tree, Wire};

/// Requests in one command, at most.
const MOST: u16 = 256;

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
            let node = &mut tree[id];
            node.waits = false;
            node.in_flight = 1;
            node.cursor = node.io.extent();
        }
        true
    }

    /// The same for prepared commands that are alike but for the LBA, and have a whole page of memory each: one
    /// walk. False if there are no two of them at the head of the line, or there is no slot: then nothing was
    /// done.
    #[inline(never)]
    fn merge_pages(&mut self, tree: &mut Tree) -> bool {
        let first = self.waiting.first();
        let node = &tree[first];
        if node.io.lba() >= node.wire.bound || !is_plain_page(node) {
            return false;
        }
        let Wire { bound, head, tail, dptr: [page, _], .. } = node.wire;
        let (lba, blocks, namespace) = (node.io.lba(), node.io.blocks(), node.namespace);
        let limits = &self.reachable(namespace).limits;
        let shift = prp::PAGE.trailing_zeros() - limits.block_shift;
        let most = limits.transfer_from(lba, u64::from(MOST) << shift).min(bound - lba + blocks - 1) >> shift;
        let most = most.min(limits.writes_as_one(node.io.operation(), blocks)) as usize;
        if matches!(self.pointer, DataPointer::Sgl { .. })
            || blocks << limits.block_shift != prp::PAGE
            || !may_merge(node)
            || self.slots.taken() >= self.slots.depth()
        {
            return false;
        }
        // The list of the slot that will be the next one.
        let Some(slot) = self.slots.take() else { return false };
        let first_word = slot * self.list_pages * PAGE_WORDS;
        let others = most.saturating_sub(1).min(PAGE_WORDS);
        let words = self.lists.get(first_word..first_word + others).unwrap_or_default();
        let (mut id, mut last, mut next_lba) = (node.next, first, lba + blocks);
        for [word] in words {
            if id.is_none() {
                break;
            }
            let node = &mut tree[id];
            // One NSID may be here under several numbers, and what is to be done after a reset differs.
            let same = node.io.lba() == next_lba
                && node.wire.head == head
                && node.wire.tail == tail
                && node.namespace == namespace
                && node.wire.is_prepared();
            if !same || !is_plain_page(node) {
                break;
            }
            word.store(node.wire.dptr[0], Ordering::Relaxed);
            (node.waits, node.in_flight, node.cursor) = (false, 1, blocks);
            next_lba += blocks;
            (last, id) = (id, node.next);
        }
        let count = (next_lba.wrapping_sub(lba) >> shift) as u16;
        if count < 2 {
            self.slots.free(slot);
            return false;
        }
        let node = &mut tree[first];
        (node.waits, node.in_flight, node.cursor) = (false, 1, blocks);
        let second = match words {
            [[second], ..] if count == 2 => second.load(Ordering::Relaxed),
            _ => self.lists.iova() + 8 * first_word as u64,
        };
        let tail = tail + (u64::from(count) - 1) * blocks;
        let wire = Wire { head, dptr: [page, second], tail, ..Wire::NONE };
        let cid = self.slots.occupy(slot, first, Piece::Merged { count, last: Some(last) });
        self.push(&wire, cid, lba);
        self.counted.merges += u64::from(count) - 1;
        self.waiting.pop_until(id);
        true
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

/// Whether a node that is prepared is to be one with others, has a page of memory, and is neither an event nor
/// passed layers.
#[inline(always)]
fn is_plain_page(node: &Node) -> bool {
    (node.wire.dptr[0] & (prp::PAGE - 1) | node.wire.dptr[1]) == 0
        && node.event.is_none()
        && !(node.is_layered() | node.io.is_no_merge())
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
