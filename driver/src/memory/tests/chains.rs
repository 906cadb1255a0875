//! Chains of all kinds of memory against a plain vector.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::super::*;
use super::external::{Owner, PAGE};

#[test]
fn a_chain_of_one_segment_needs_no_heap() {
    assert!(size_of::<MemoryChain>() <= 48);
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Pool,
    Registered,
    Guest,
}

#[derive(Debug, Clone)]
enum Step {
    Append(Kind, usize),
    /// Cut, and put the parts together the other way round.
    Rotate(usize),
    /// Cut in many, one after another, and put together again.
    Crumble(usize),
    Slice(usize, usize),
    Write(usize, usize, u8),
    Fill(u8),
    /// Copied in and out by places, going on from one to the next.
    Stroll(usize, Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Pool), Just(Kind::Registered), Just(Kind::Guest)];
    prop_oneof![
        6 => (kind, 1..9000usize).prop_map(|(kind, len)| Step::Append(kind, len)),
        2 => any::<usize>().prop_map(Step::Rotate),
        1 => (1..3000usize).prop_map(Step::Crumble),
        1 => (0..3000usize, 0..3000usize).prop_map(|(front, back)| Step::Slice(front, back)),
        3 => (any::<usize>(), 1..9000usize, any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        1 => any::<u8>().prop_map(Step::Fill),
        3 => (any::<usize>(), proptest::collection::vec(0..5000usize, 1..8))
            .prop_map(|(at, lens)| Step::Stroll(at, lens)),
    ]
}

/// Memory of each kind, of which no byte is given out twice.
struct Memory {
    space: DmaSpace,
    registered: Registration,
    guest: GuestRegistration,
    used: usize,
}

const EACH: usize = 64 * PAGE;

impl Memory {
    fn new() -> Memory {
        let space = DmaSpace::new().unwrap();
        let registered = space.register(Owner::new(EACH / PAGE)).unwrap();
        // Two regions in a row, so that chains of the guest's have joints, too.
        let half = EACH / 2;
        let ranges = [(GuestAddress(0), half), (GuestAddress(half as u64), half)];
        let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let guest = space.register_guest(Arc::new(ram)).unwrap();
        Memory { space, registered, guest, used: 0 }
    }

    fn take(&mut self, kind: Kind, len: usize) -> Option<MemoryChain> {
        let range = self.used..self.used + len;
        if range.end > EACH {
            return None;
        }
        self.used = range.end;
        Some(match kind {
            Kind::Pool => self.space.allocate(len).unwrap(),
            Kind::Registered => self.registered.chain(range).unwrap(),
            Kind::Guest => self.guest.chain(GuestAddress(range.start as u64), len).unwrap(),
        })
    }
}

/// Bytes that tell their place.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

fn clamp(at: usize, len: usize, size: usize) -> Range<usize> {
    let at = at % (size + 1);
    at..at + len.min(size - at)
}

fn apply(step: Step, chain: &mut MemoryChain, model: &mut Vec<u8>, memory: &mut Memory) {
    let whole = std::mem::take(chain);
    *chain = match step {
        Step::Append(kind, len) => {
            let mut whole = whole;
            if let Some(mut more) = memory.take(kind, len) {
                let bytes = pattern(len, len as u8);
                more.copy_from_slice(0, &bytes);
                whole.append(more);
                model.extend(bytes);
            }
            whole
        }
        Step::Rotate(at) => {
            let at = at % (model.len() + 1);
            let (left, mut right) = whole.split_at(at);
            assert_eq!((left.len(), right.len()), (at, model.len() - at));
            right.append(left);
            model.rotate_left(at);
            right
        }
        Step::Crumble(size) => {
            let (mut rest, mut back) = (whole, MemoryChain::new());
            while rest.len() > size {
                let (piece, more) = rest.split_at(size);
                back.append(piece);
                rest = more;
            }
            back.append(rest);
            back
        }
        Step::Slice(front, back) => {
            let front = front.min(model.len());
            let end = model.len() - back.min(model.len() - front);
            *model = model[front..end].to_vec();
            whole.slice(front..end)
        }
        Step::Write(at, len, seed) => {
            let mut whole = whole;
            let range = clamp(at, len, model.len());
            let bytes = pattern(range.len(), seed);
            whole.copy_from_slice(range.start, &bytes);
            model[range].copy_from_slice(&bytes);
            whole
        }
        Step::Fill(byte) => {
            let mut whole = whole;
            whole.fill(byte);
            model.fill(byte);
            whole
        }
        Step::Stroll(at, lens) => {
            let mut at = at % (model.len() + 1);
            let mut place = whole.advance(MemoryChain::start(), at as u64);
            for len in lens {
                let range = clamp(at, len, model.len());
                let mut bytes = vec![0; range.len()];
                whole.copy_range_out(place, &mut bytes);
                assert_eq!(bytes, model[range.clone()]);
                let bytes = pattern(range.len(), at as u8);
                whole.copy_range_in(place, &bytes);
                model[range.clone()].copy_from_slice(&bytes);
                place = whole.advance(place, range.len() as u64);
                at = range.end;
                assert_eq!(place, whole.advance(MemoryChain::start(), at as u64));
            }
            whole
        }
    };
}

proptest! {
    #[test]
    fn chains_hold_what_a_vector_holds(steps in proptest::collection::vec(step(), 1..40)) {
        let mut memory = Memory::new();
        let (mut chain, mut model) = (MemoryChain::new(), Vec::new());
        for step in steps {
            apply(step, &mut chain, &mut model, &mut memory);
            prop_assert_eq!(chain.len(), model.len());
            prop_assert_eq!(chain.iter().map(Segment::len).sum::<usize>(), model.len());
            prop_assert!(chain.to_vec() == model);
        }
        // Whatever was cut off went back, and the rest does so now.
        drop(chain);
        prop_assert!(memory.registered.chain(0..EACH).is_ok());
    }
}

#[test]
fn places_are_told_from_the_end_as_from_the_start() {
    let memory = DmaSpace::new().unwrap().allocate(10_000).unwrap();
    let (left, mut chain) = memory.split_at(4000);
    chain.append(left);
    let place = |segment, offset| Position { segment, offset };
    assert_eq!(chain.advance(MemoryChain::start(), 5999), place(0, 5999));
    assert_eq!(chain.advance(MemoryChain::start(), 6000), place(1, 0));
    assert_eq!(chain.advance(place(0, 5999), 4000), place(1, 3999));
    assert_eq!(chain.advance(place(0, 5999), 4001), place(2, 0));
    assert_eq!(chain.advance(place(2, 0), 0), place(2, 0));
    chain.copy_range_in(place(2, 0), &[]);
}

#[test]
#[should_panic(expected = "beyond the end")]
fn no_place_is_beyond_the_end() {
    let chain = DmaSpace::new().unwrap().allocate(4096).unwrap();
    chain.advance(Position { segment: 0, offset: 4000 }, 97);
}

#[test]
#[should_panic(expected = "not within a chain")]
fn a_copy_that_does_not_fit_writes_nothing() {
    let mut chain = DmaSpace::new().unwrap().allocate(4096).unwrap();
    chain.copy_from_slice(4000, &[0; 97]);
}
