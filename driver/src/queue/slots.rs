//! Slots: which command is in flight under which CID.
//!
//! A CID is the slot's index with a generation above it, so that a completion that comes twice or
//! late names no slot. FFFFh is never a CID. Knows CIDs; must not know commands.

use crate::request::NodeId;
use crate::spec::Completion;

/// Slots of a queue: below the 4096 that leave four bits of a CID to the generation.
pub(super) const MAX: usize = 4096;

/// No completion matches a slot with one of these: they are above the 48 bits that one is compared by.
const VACANT: u32 = 1 << 30;
const NOT_WHOLE: u32 = 1 << 31;
/// FFFFh as a CID, at its place in a slot's low word.
const NO_CID: u32 = 0xffff_0000;

/// A command in flight: a node, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// SQ identifier, and CID above it. A vacant slot keeps them, so that the next CID is another generation.
    low: u32,
    /// 0 if a command is in flight that carries all of its node.
    high: u32,
    pub(super) piece: Piece,
    pub(super) node: NodeId,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Slot {
    /// What a new completion's high word is, shifted right by 16, if the command succeeded and carried
    /// all of its node: SQ identifier, CID, phase as expected, status 0. One comparison checks all of it.
    #[inline(always)]
    fn expect(&self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

/// What of a node a command carries. Offsets and lengths are in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of it.
    Whole,
    /// Blocks, from the one with the offset `first` on.
    Part { first: u64, blocks: u32 },
    /// The same, by way of a bounce buffer.
    Bounced { first: u64, blocks: u32, buffer: u16 },
    /// All of it and of the nodes that follow it, `count` in all.
    Merged { count: u16 },
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    /// Brings any CID into range.
    mask: u32,
    /// What a slot's low word differs by from one generation to the next.
    generation: u32,
    free: Vec<u16>,
    depth: usize,
}

impl Slots {
    /// `depth` slots, 1 to 4096.
    pub(super) fn new(qid: u16, depth: usize) -> Slots {
        assert!((1..=MAX).contains(&depth));
        let vacant = |index: usize| Slot {
            low: (index as u32) << 16 | u32::from(qid),
            high: VACANT,
            node: NodeId::NONE,
            piece: Piece::Whole,
        };
        let slots: Box<[Slot]> = (0..depth.next_power_of_two()).map(vacant).collect();
        let (mask, generation) = (slots.len() as u32 - 1, (slots.len() as u32) << 16);
        Slots { slots, mask, generation, free: (0..depth as u16).rev().collect(), depth }
    }

    /// The slot that a completion's high word names, if that is in flight or not.
    #[inline(always)]
    pub(super) fn index(&self, high: u64) -> usize {
        ((high >> 32) as u32 & self.mask) as usize
    }

    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> &Slot {
        let Some(slot) = self.slots.get(index) else { no_such_slot() };
        slot
    }

    #[inline(always)]
    fn get_mut(&mut self, index: usize) -> &mut Slot {
        let Some(slot) = self.slots.get_mut(index) else { no_such_slot() };
        slot
    }

    /// The node of the slot that a completion's high word names, if the command in it carried all of the
    /// node and succeeded: then it is no longer in flight. The slot stays taken.
    #[inline(always)]
    pub(super) fn land(&mut self, high: u64) -> Option<(NodeId, usize)> {
        let index = self.index(high);
        let slot = self.get_mut(index);
        if high >> 16 != slot.expect() {
            return None;
        }
        slot.high = VACANT;
        Some((slot.node, index))
    }

    /// Takes a free slot.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<usize> {
        self.free.pop().map(usize::from)
    }

    /// Puts a command into a slot that was taken, and returns its low word: the CID where dword 0 has it.
    #[inline(always)]
    pub(super) fn occupy(&mut self, index: usize, node: NodeId, piece: Piece) -> u32 {
        let slot = self.get_mut(index);
        (slot.node, slot.piece) = (node, piece);
        let cid = self.occupy_again(index);
        if piece != Piece::Whole {
            self.get_mut(index).high = NOT_WHOLE;
        }
        cid
    }

    /// Puts all of the same node into a slot once more, and returns its low word.
    #[inline(always)]
    pub(super) fn occupy_again(&mut self, index: usize) -> u32 {
        let generation = self.generation;
        let slot = self.get_mut(index);
        // The next generation, modulo 2^16; the SQ identifier below is not touched.
        let mut low = slot.low.wrapping_add(generation);
        if low >= NO_CID {
            std::hint::cold_path();
            low = low.wrapping_add(generation);
        }
        (slot.low, slot.high) = (low, 0);
        low
    }

    /// Gives a taken slot back.
    #[inline(always)]
    pub(super) fn free(&mut self, index: usize) {
        self.get_mut(index).high = VACANT;
        self.free.push(index as u16);
    }

    /// Whether a completion, whatever its status, answers the command in the slot it names.
    pub(super) fn answers(&self, index: usize, completion: &Completion) -> bool {
        let low = u32::from(completion.cid) << 16 | u32::from(completion.sq_id);
        self.is_in_flight(index) && self.slots[index].low == low
    }

    pub(super) fn is_in_flight(&self, index: usize) -> bool {
        self.slots[index].high & VACANT == 0
    }

    /// The nodes that slots were last taken for.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.slots.iter().map(|slot| slot.node)
    }

    /// The slots of commands in flight.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.high & VACANT == 0)
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

/// An index comes from a mask, or from a slot that was there.
#[cold]
#[inline(never)]
fn no_such_slot() -> ! {
    panic!("a slot that is not there")
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
                let cid = (slots.occupy(last, NodeId::NONE, Piece::Whole) >> 16) as u16;
                assert_ne!(cid, 0xffff);
                assert_eq!(slots.index(u64::from(cid) << 32), last);
                assert!(seen.insert(cid), "depth {depth}: CID {cid:04x} again after {}", seen.len());
            }
        }
    }

    /// The high word of a successful completion, of either phase.
    fn high(cid: u16, sq_id: u16, new: bool) -> u64 {
        let status_phase = u16::from(!new);
        Completion { cid, sq_id, status_phase, ..Completion::default() }.to_words().1
    }

    #[test]
    fn one_comparison_for_all_that_can_be_wrong() {
        let mut slots = Slots::new(1, 4);
        let mut occupy = |piece| {
            let cid = (slots.occupy(2, NodeId::NONE, piece) >> 16) as u16;
            let completion = Completion { cid, sq_id: 1, ..Completion::default() };
            assert!(slots.is_in_flight(2) && slots.answers(2, &completion));
            let failed = Completion { status_phase: 2, ..completion }.to_words().1;
            for wrong in [high(cid, 1, false), high(cid, 2, true), high(cid ^ 4, 1, true), failed] {
                assert_eq!(slots.land(wrong), None);
            }
            let landed = slots.land(high(cid, 1, true));
            // Twice never.
            assert_eq!(slots.land(high(cid, 1, true)), None);
            if landed.is_some() {
                assert!(!slots.is_in_flight(2) && !slots.answers(2, &completion));
            }
            landed
        };
        assert_eq!(occupy(Piece::Whole), Some((NodeId::NONE, 2)));
        assert_eq!(occupy(Piece::Merged { count: 2 }), None);
        assert_eq!(occupy(Piece::Whole), Some((NodeId::NONE, 2)));
    }

    #[test]
    fn a_vacant_slot_matches_nothing() {
        let mut slots = Slots::new(1, 4);
        for cid in 0..=u16::MAX {
            assert_eq!(slots.land(high(cid, 1, true)), None);
            let completion = Completion { cid, sq_id: 1, ..Completion::default() };
            assert!(!slots.answers(usize::from(cid & 3), &completion));
        }
    }
}
