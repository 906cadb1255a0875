//! Slots: which command is in flight under which CID.
//!
//! A CID is the slot's index with a generation above it, so that a completion that comes twice or
//! late names no slot. FFFFh is never a CID. Knows CIDs; must not know commands.

use std::ops::Range;

use crate::memory::Masked;
use crate::request::NodeId;
use crate::spec::Completion;

/// Slots of a queue: below the 4096 that leave four bits of a CID to the generation.
pub(super) const MAX: usize = 4096;

/// No completion matches a slot with one of these: they are above the 48 bits that one is compared by.
const VACANT: u32 = 1 << 30;
/// The command carries a part of its node, by no other means than the request's own memory.
const PART: u32 = 1 << 31;
/// It carries neither that nor all of one node.
const OTHER: u32 = 1 << 28;
/// The command in the slot, which is vacant, is to be sent once more.
const AGAIN: u32 = 1 << 29;
/// How many sweeps have found the command, in four bits. Every command begins with none, since what it
/// writes into its slot overwrites them: so a command's time costs nothing until it is looked at.
const AGE: u32 = 1 << 16;
const AGES: u32 = 0xf * AGE;
/// An Abort of the command was asked for.
const ABORT: u32 = 1 << 20;
/// Its completion has to be looked at: it was sent before, or in flight when its queue pair stopped.
const WATCHED: u32 = 1 << 21;
/// How often it was sent once more through its own fault, in two bits.
const TRY: u32 = 1 << 22;
const TRIES: u32 = 3 * TRY;
/// The most that can be counted.
pub(super) const MOST_TRIES: u32 = TRIES / TRY;
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

    /// The next generation, modulo 2^16, as the slot's low word; the SQ identifier below is not touched.
    #[inline(always)]
    fn begin(&mut self, generation: u32) -> u32 {
        let mut low = self.low.wrapping_add(generation);
        if low >= NO_CID {
            std::hint::cold_path();
            low = low.wrapping_add(generation);
        }
        self.low = low;
        low
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
    /// All of it and of the nodes that follow it, `count` in all; the last of them, if none is an event, and none
    /// passed layers.
    Merged { count: u16, last: Option<NodeId> },
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: Masked<Slot>,
    /// What a slot's low word differs by from one generation to the next.
    generation: u32,
    /// Those that nobody has, the first so many of these.
    vacant: Masked<u16>,
    left: u32,
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
        let slots = Masked::new((0..depth.next_power_of_two()).map(vacant).collect());
        let generation = (slots.len() as u32) << 16;
        let mut vacant: Vec<u16> = (0..depth as u16).rev().collect();
        vacant.resize(slots.len(), 0);
        Slots { slots, generation, vacant: Masked::new(vacant.into()), left: depth as u32, depth }
    }

    /// The slot that a completion's high word names, if that is in flight or not.
    #[inline(always)]
    pub(super) fn index(&self, high: u64) -> usize {
        self.slots.mask((high >> 32) as u32) as usize
    }

    /// A completion's high word with the generation of the slot's command, whatever it has.
    pub(super) fn believe(&self, high: u64) -> u64 {
        let generations = u64::from(!self.slots.mask(0xffff) & 0xffff) << 32;
        let cid = u64::from(self.cid(self.index(high))) << 32;
        high & !generations | cid & generations
    }

    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> &Slot {
        &self.slots[index as u32]
    }

    #[inline(always)]
    fn get_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index as u32]
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

    /// The node of a slot, and the blocks of it that the command in it carried, if a completion's high word
    /// says that this succeeded, and the command carried a part by no other means than the request's own
    /// memory: then the slot is free.
    #[inline(always)]
    pub(super) fn land_part(&mut self, high: u64) -> Option<(NodeId, Range<u64>)> {
        let index = self.index(high);
        let slot = self.get_mut(index);
        let Piece::Part { first, blocks } = slot.piece else { return None };
        if high >> 16 | u64::from(PART) << 32 != slot.expect() {
            return None;
        }
        slot.high = VACANT;
        let node = slot.node;
        self.put_back(index);
        Some((node, first..first + u64::from(blocks)))
    }

    /// The same for a part of this node: whether it is.
    #[inline(always)]
    pub(super) fn land_part_of(&mut self, high: u64, node: NodeId) -> bool {
        let index = self.index(high);
        let slot = self.get_mut(index);
        if slot.node != node || high >> 16 | u64::from(PART) << 32 != slot.expect() {
            return false;
        }
        slot.high = VACANT;
        self.put_back(index);
        true
    }

    /// Free slots.
    pub(super) fn left(&self) -> u32 {
        self.left
    }

    /// Takes a free slot.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(self.vacant[self.left].into())
    }

    #[inline(always)]
    fn put_back(&mut self, index: usize) {
        debug_assert!((self.left as usize) < self.depth, "a slot was given back twice");
        self.vacant[self.left] = index as u16;
        self.left += 1;
    }

    /// Puts a command into a slot that was taken, and returns its low word: the CID where dword 0 has it.
    #[inline(always)]
    pub(super) fn occupy(&mut self, index: usize, node: NodeId, piece: Piece) -> u32 {
        let generation = self.generation;
        let slot = self.get_mut(index);
        (slot.node, slot.piece) = (node, piece);
        slot.high = match piece {
            Piece::Whole => 0,
            Piece::Part { .. } => PART,
            Piece::Bounced { .. } | Piece::Merged { .. } => OTHER,
        };
        slot.begin(generation)
    }

    /// Puts parts of a node that follow each other, of so many blocks each, into free slots: `each` gets the low word
    /// of each. There are that many.
    #[inline(always)]
    pub(super) fn occupy_parts(
        &mut self,
        count: u32,
        node: NodeId,
        (mut first, blocks): (u64, u32),
        mut each: impl FnMut(u32),
    ) {
        let generation = self.generation;
        let (mut left, rest) = (self.left, self.left - count);
        self.left = rest;
        while left > rest {
            left -= 1;
            let slot = &mut self.slots[self.vacant[left].into()];
            (slot.node, slot.piece, slot.high) = (node, Piece::Part { first, blocks }, PART);
            each(slot.begin(generation));
            first += u64::from(blocks);
        }
    }

    /// Puts all of the same node into a slot once more, and returns its low word.
    #[inline(always)]
    pub(super) fn occupy_again(&mut self, index: usize) -> u32 {
        let generation = self.generation;
        let slot = self.get_mut(index);
        slot.high = 0;
        slot.begin(generation)
    }

    /// Gives a taken slot back.
    #[inline(always)]
    pub(super) fn free(&mut self, index: usize) {
        self.get_mut(index).high = VACANT;
        self.put_back(index);
    }

    /// Whether a completion, whatever its status, answers the command in the slot it names.
    pub(super) fn answers(&self, index: usize, completion: &Completion) -> bool {
        let low = u32::from(completion.cid) << 16 | u32::from(completion.sq_id);
        self.is_in_flight(index) && self.slots[index as u32].low == low
    }

    /// Counts a sweep that has found the command of a slot in flight: how many have by now, 15 at most.
    pub(super) fn grow_older(&mut self, index: usize) -> u32 {
        self.set_age(index, (self.age(index) + 1).min(AGES / AGE));
        self.age(index)
    }

    /// Sweeps that have found the command of a slot.
    pub(super) fn age(&self, index: usize) -> u32 {
        (self.slots[index as u32].high & AGES) / AGE
    }

    pub(super) fn set_age(&mut self, index: usize, age: u32) {
        let high = &mut self.slots[index as u32].high;
        *high = (*high & !AGES) | (age * AGE);
    }

    /// Notes whether an Abort of a command was asked for.
    pub(super) fn note_abort(&mut self, index: usize, asked: bool) {
        let high = &mut self.slots[index as u32].high;
        *high = if asked { *high | ABORT } else { *high & !ABORT };
    }

    pub(super) fn is_abort_asked(&self, index: usize) -> bool {
        self.slots[index as u32].high & ABORT != 0
    }

    /// The slot that a CID names.
    pub(super) fn index_of(&self, cid: u16) -> usize {
        self.index(u64::from(cid) << 32)
    }

    /// The CID of the command that is or was in a slot.
    pub(super) fn cid(&self, index: usize) -> u16 {
        (self.slots[index as u32].low >> 16) as u16
    }

    /// Whether the command in a slot is in flight, and was found by a sweep, is to be aborted, or watched.
    #[inline(always)]
    pub(super) fn is_marked(&self, index: usize) -> bool {
        let high = self.slots[index as u32].high;
        high & VACANT == 0 && high & (AGES | ABORT | WATCHED | TRIES) != 0
    }

    /// Has the completion of the command in a slot looked at.
    pub(super) fn watch(&mut self, index: usize) {
        self.get_mut(index).high |= WATCHED;
    }

    /// If a completion's high word is the success of a command that carries all of its node, and does not
    /// match for nothing but its age, takes the age away, so that it does.
    pub(super) fn rejuvenate(&mut self, index: usize, high: u64) -> bool {
        let slot = &mut self.slots[index as u32];
        let aged = slot.high != 0 && slot.high & !(AGES | ABORT | WATCHED | TRIES) == 0;
        let answered = aged && high >> 16 == u64::from(slot.low);
        if answered {
            slot.high = 0;
        }
        answered
    }

    pub(super) fn is_in_flight(&self, index: usize) -> bool {
        self.slots[index as u32].high & VACANT == 0
    }

    /// Has the completion of a node's command, if it is one that carries all of the node, looked at closely;
    /// whether there is such a command.
    pub(super) fn watch_whole(&mut self, node: NodeId, blocks: u32) -> bool {
        let carries = |slot: &Slot| {
            let in_flight = slot.high & VACANT == 0 || slot.high & AGAIN != 0;
            in_flight && slot.node == node && slot.piece == Piece::Whole
        };
        let Some(index) = self.slots.iter().position(carries) else { return false };
        let slot = self.get_mut(index);
        slot.piece = Piece::Part { first: 0, blocks };
        slot.high |= PART;
        true
    }

    /// Has the completion of a command that carries a node with others looked at node by node, if all of them are
    /// plain so far. `next` is the one that is linked to one.
    pub(super) fn watch_merged(&mut self, node: NodeId, next: impl Fn(NodeId) -> NodeId) {
        for index in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[index];
            let Piece::Merged { count, last: last @ Some(_) } = &mut slot.piece else { continue };
            let mut all = std::iter::successors(Some(slot.node), |id| Some(next(*id))).take((*count).into());
            if slot.high & VACANT == 0 && all.any(|id| id == node) {
                *last = None;
            }
        }
    }

    /// The slots of commands in flight, and of those that are to be sent once more.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.high & VACANT == 0 || slot.high & AGAIN != 0)
    }

    /// Takes the command out of its slot, to be put into it once more: the slot stays taken.
    pub(super) fn put_off(&mut self, index: usize) {
        let slot = self.get_mut(index);
        slot.high = (slot.high & TRIES) | VACANT | AGAIN;
    }

    /// How often the command of a slot was sent once more through its own fault, up to [`MOST_TRIES`].
    pub(super) fn tries(&self, index: usize) -> u32 {
        (self.slots[index as u32].high & TRIES) / TRY
    }

    /// Counts one.
    pub(super) fn add_try(&mut self, index: usize) {
        if self.tries(index) < MOST_TRIES {
            self.get_mut(index).high += TRY;
        }
    }

    /// Whether the command of a slot is to be put into it once more.
    pub(super) fn is_put_off(&self, index: usize) -> bool {
        self.slots[index as u32].high & AGAIN != 0
    }

    /// Puts the command that is or was in a slot into it once more, and returns its low word.
    pub(super) fn occupy_once_more(&mut self, index: usize) -> u32 {
        let Slot { node, piece, high, .. } = self.slots[index as u32];
        let low = self.occupy(index, node, piece);
        self.slots[index as u32].high |= WATCHED | (high & TRIES);
        low
    }

    /// Slots that are taken.
    #[inline(always)]
    pub(super) fn taken(&self) -> usize {
        self.depth - self.left as usize
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
        assert_eq!(occupy(Piece::Merged { count: 2, last: None }), None);
        assert_eq!(occupy(Piece::Whole), Some((NodeId::NONE, 2)));
    }

    #[test]
    fn a_command_is_as_old_as_its_sweeps() {
        let mut slots = Slots::new(1, 4);
        let cid = (slots.occupy(2, NodeId::NONE, Piece::Whole) >> 16) as u16;
        let word = high(cid, 1, true);
        assert!(!slots.rejuvenate(2, word), "it has no age");
        let ages: Vec<u32> = (0..20).map(|_| slots.grow_older(2)).collect();
        assert_eq!((&ages[..5], ages[19]), (&[1, 2, 3, 4, 5][..], 15));
        slots.note_abort(2, true);
        assert!(slots.is_abort_asked(2));
        assert!(slots.is_in_flight(2) && slots.land(word).is_none());
        assert!(!slots.rejuvenate(2, high(cid ^ 4, 1, true)), "another generation");
        assert!(slots.rejuvenate(2, word));
        assert_eq!(slots.land(word), Some((NodeId::NONE, 2)));
        assert!(!slots.rejuvenate(2, word), "it has landed");
        slots.occupy(2, NodeId::NONE, Piece::Merged { count: 2, last: None });
        assert_eq!((slots.age(2), slots.is_abort_asked(2)), (0, false), "another command");
        slots.grow_older(2);
        let word = high(slots.cid(2), 1, true);
        assert!(!slots.rejuvenate(2, word), "it does not carry all of a node");
        assert!(slots.is_in_flight(2));
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
