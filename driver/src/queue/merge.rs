//! Merging: neighbours in the line that are neighbours on the medium go down in one command.
//!
//! Only what has to wait anyway is merged, so nothing is delayed by it. Each request completes on its
//! own; if the command fails, they go down again one by one, and only the guilty one fails. Knows the
//! line and limits; must not know how a request came to wait.

use super::cut::nlb;
use super::runs::{Parts, Run};
use super::slots::Piece;
use super::{Queue, Reachable, WAITING};
use crate::defects::{self, Defect};
use crate::request::{Cause, Failed, Line, Node, NodeId, Operation, Tree};

/// Requests in one command, at most.
const MOST: u16 = 256;

impl Queue {
    /// Sends the first nodes of the line down in one command. False if they do not go together, or
    /// there is no slot: then nothing was done.
    pub(super) fn merge(&mut self, tree: &mut Tree) -> bool {
        let first = self.waiting.first();
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
        let cid = self.slots.occupy(slot, first, Piece::Merged { count });
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
