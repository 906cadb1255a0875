//! Slots: which command is in flight under which CID.
//!
//! A CID is the slot's index with a generation above it, so that a completion that comes twice or
//! late names no slot. FFFFh is never a CID. Knows CIDs; must not know commands.

use crate::request::NodeId;
use crate::spec::Completion;

/// Slots of a queue: below the 4096 that leave four bits of a CID to the generation.
pub(super) const MAX: usize = 4096;

/// No completion matches it: above the 48 bits that one is compared by.
const VACANT: u64 = u64::MAX;
/// Above them as well: what else a completion is compared by is below.
const NOT_WHOLE: u64 = 1 << 63;

/// A command in flight: a node, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// What a new completion's high word is, shifted right by 16, if the command succeeded and carried
    /// all of its node: SQ identifier, CID, phase as expected, status 0. One comparison checks all of it.
    pub(super) expect: u64,
    cid: u16,
    pub(super) node: NodeId,
    pub(super) piece: Piece,
}

/// What of a node a command carries. Offsets and lengths are in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of it.
    Whole,
    /// Blocks, from the one with the offset `first` on.
    Part { first: u64, blocks: u64 },
    /// The same, by way of a bounce buffer.
    Bounced { first: u64, blocks: u64, buffer: u16 },
    /// All of it and of the nodes that follow it, `count` in all.
    Merged { count: u16 },
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    depth: usize,
    qid: u16,
}

impl Slots {
    /// `depth` slots, 1 to 4096.
    pub(super) fn new(qid: u16, depth: usize) -> Slots {
        assert!((1..=MAX).contains(&depth));
        let vacant = |index: usize| Slot {
            expect: VACANT,
            cid: index as u16,
            node: NodeId::NONE,
            piece: Piece::Whole,
        };
        Slots {
            // A power of two, so that a mask brings any CID into range.
            slots: (0..depth.next_power_of_two()).map(vacant).collect(),
            free: (0..depth as u16).rev().collect(),
            depth,
            qid,
        }
    }

    /// The slot that a completion's high word names, if that is in flight or not.
    #[inline(always)]
    pub(super) fn index(&self, high: u64) -> usize {
        (high >> 32) as usize & (self.slots.len() - 1)
    }

    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// Takes a free slot.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<usize> {
        self.free.pop().map(usize::from)
    }

    /// Puts a command into a slot that was taken, and returns its CID.
    #[inline(always)]
    pub(super) fn occupy(&mut self, index: usize, node: NodeId, piece: Piece) -> u16 {
        let qid = self.qid;
        let generation = self.slots.len() as u32;
        let slot = &mut self.slots[index];
        // The next generation; the last one, whose CIDs include FFFFh, is left out.
        let next = u32::from(slot.cid) + generation;
        let cid = if next >= 0x1_0000 - generation { index as u16 } else { next as u16 };
        let whole = if piece == Piece::Whole { 0 } else { NOT_WHOLE };
        *slot = Slot { expect: whole | u64::from(cid) << 16 | u64::from(qid), cid, node, piece };
        cid
    }

    /// The command is no longer in flight; the slot stays taken.
    #[inline(always)]
    pub(super) fn vacate(&mut self, index: usize) {
        self.slots[index].expect = VACANT;
    }

    /// Gives a taken slot back.
    #[inline(always)]
    pub(super) fn free(&mut self, index: usize) {
        self.vacate(index);
        self.free.push(index as u16);
    }

    /// Whether a completion, whatever its status, answers the command in the slot it names.
    pub(super) fn answers(&self, index: usize, completion: &Completion) -> bool {
        let expect = u64::from(completion.cid) << 16 | u64::from(completion.sq_id);
        self.slots[index].expect & !NOT_WHOLE == expect
    }

    pub(super) fn is_in_flight(&self, index: usize) -> bool {
        self.slots[index].expect != VACANT
    }

    /// The slots of commands in flight.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.expect != VACANT)
    }

    /// Slots that are taken.
    #[inline(always)]
    pub(super) fn taken(&self) -> usize {
        self.depth - self.free.len()
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn generations_differ_and_never_make_ffff() {
        for depth in [1, 3, 32, 1024, 4096] {
            let mut slots = Slots::new(1, depth);
            let last = depth - 1;
            let mut seen = HashSet::new();
            let generations = 0x1_0000 / depth.next_power_of_two() - 1;
            for _ in 0..generations {
                let cid = slots.occupy(last, NodeId::NONE, Piece::Whole);
                assert_ne!(cid, 0xffff);
                assert_eq!(slots.index(u64::from(cid) << 32), last);
                assert!(seen.insert(cid), "depth {depth}: CID {cid:04x} again after {}", seen.len());
            }
        }
    }

    #[test]
    fn a_vacant_slot_matches_nothing() {
        let mut slots = Slots::new(1, 4);
        let cid = slots.occupy(2, NodeId::NONE, Piece::Whole);
        let completion = Completion { cid, sq_id: 1, ..Completion::default() };
        assert!(slots.answers(2, &completion));
        slots.vacate(2);
        assert!(!slots.answers(2, &completion));
        assert!((0..=u64::MAX >> 16).contains(&0) && slots.get(2).expect > u64::MAX >> 16);
    }
}
