//! Shadow doorbells (Base 2.0, section 5.8), for a host that writes registers by the letter, and for others.

use std::sync::atomic::Ordering;

use kiovec::spec::identify::{Controller, OACS_DOORBELL_BUFFER};
use kiovec::spec::registers::{cq_head_doorbell, sq_tail_doorbell};
use kiovec::spec::{Cns, Command, Completion, Status};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::host::{Host, Words};

/// CAP.DSTRD.
const STRIDE: u8 = 4;
/// More steps than the controller looks at a shadow in which there is nothing new.
const IDLE: usize = 40;

/// A host with shadow doorbells for queue pair 1.
struct Shadowed {
    host: Host,
    shadows: Words,
    events: Words,
    /// Heads and tails that were told of, in shadows.
    told: [u32; 2],
    /// Writes to registers.
    rung: u64,
}

fn config(shadows: &Words, events: &Words) -> Command {
    Command::doorbell_buffer_config(shadows.iova(), events.iova())
}

fn armed(sq_entries: u16, cq_entries: u16) -> Shadowed {
    let mut host = Host::new("queues=40,dbbuf=on");
    let (shadows, events) = (Words::new(&host.space, 4096), Words::new(&host.space, 4096));
    assert_eq!(host.try_admin(config(&shadows, &events)), Status::SUCCESS);
    host.create_cq(1, cq_entries);
    host.create_sq(1, sq_entries, 1);
    host.cqs.get_mut(&1).unwrap().acknowledges = false;
    Shadowed { host, shadows, events, told: [0; 2], rung: 0 }
}

/// The 64-bit word with the doorbell at an offset.
fn word(offset: u64) -> usize {
    (offset / 8) as usize
}

impl Shadowed {
    fn offsets() -> [usize; 2] {
        [word(sq_tail_doorbell(1, STRIDE)), word(cq_head_doorbell(1, STRIDE))]
    }

    /// Where the controller wants to be told: of the tail, and of the head.
    fn events(&self) -> [u64; 2] {
        Shadowed::offsets().map(|at| self.events.word(at).load(Ordering::SeqCst))
    }

    /// Writes a shadow; whether the register is to be written, by places that are left one after the other.
    fn tell(&mut self, which: usize, new: u16, entries: u16) -> bool {
        let at = Shadowed::offsets()[which];
        self.shadows.word(at).store(new.into(), Ordering::SeqCst);
        let event = self.events()[which];
        let (mut place, mut passed) = (self.told[which] as u16, false);
        while place != new {
            passed |= u64::from(place) == event;
            place = (place + 1) % entries;
        }
        self.told[which] = new.into();
        passed
    }

    /// Submits so many flushes, and tells of the tail by its shadow.
    fn submit(&mut self, count: usize) -> bool {
        (0..count).for_each(|_| _ = self.host.push(1, Command::flush(1)));
        let (tail, entries) = (self.host.sqs[&1].tail, self.host.sqs[&1].entries);
        self.tell(0, tail, entries)
    }

    /// The same, and writes the register if that is wanted.
    fn submit_and_ring(&mut self, count: usize) {
        if self.submit(count) {
            self.rung += 1;
            self.host.ring(1);
        }
    }

    /// Takes completions, and tells of the head.
    fn reap(&mut self) -> Vec<Completion> {
        let done: Vec<Completion> = std::iter::from_fn(|| self.host.reap(1)).collect();
        let (head, entries) = (self.host.cqs[&1].head, self.host.cqs[&1].entries);
        if self.tell(1, head, entries) {
            self.rung += 1;
            self.host.cqs[&1].doorbell.ring(head.into());
        }
        done
    }

    fn idle(&self) {
        (0..IDLE).for_each(|_| _ = self.host.emulator.step());
    }
}

#[test]
fn it_is_there_if_it_is_set() {
    for (text, bits) in [("", 0), ("dbbuf=on", OACS_DOORBELL_BUFFER)] {
        let mut host = Host::new(text);
        let (memory, iova) = host.buffer(4096, 0);
        let identify = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(iova, 0);
        assert_eq!(host.try_admin(identify), Status::SUCCESS);
        let identity = Controller::read_from_bytes(&memory.to_vec()).unwrap();
        assert_eq!(identity.oacs & OACS_DOORBELL_BUFFER, bits);
        let (shadows, events) = (Words::new(&host.space, 4096), Words::new(&host.space, 4096));
        let expected = if bits == 0 { Status::INVALID_OPCODE.with_dnr() } else { Status::SUCCESS };
        assert_eq!(host.try_admin(config(&shadows, &events)), expected);
    }
}

#[test]
fn buffers_are_pages_that_can_be_reached() {
    let mut host = Host::new("dbbuf=on");
    let (shadows, events) = (Words::new(&host.space, 4096), Words::new(&host.space, 4096));
    let (one, other) = (shadows.iova(), events.iova());
    let offset = Status::PRP_OFFSET_INVALID.with_dnr();
    for (one, other, status) in [
        (one + 8, other, offset),
        (one, other + 64, offset),
        (one, one, Status::INVALID_FIELD.with_dnr()),
        (1 << 38, other, Status::DATA_TRANSFER_ERROR),
        (one, 1 << 38, Status::DATA_TRANSFER_ERROR),
    ] {
        let refused = host.try_admin(Command::doorbell_buffer_config(one, other));
        assert_eq!(refused.code(), status.code(), "{one:#x}, {other:#x}");
    }
    // It goes on with registers.
    host.create_pair(1, 8);
    assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    assert_eq!(host.emulator.counters().shadow_looks, 0);
}

/// What makes a host's mistake visible: nobody looks at the shadow of a queue that has been idle.
#[test]
fn a_register_that_should_have_been_written_is_missed() {
    let mut it = armed(8, 64);
    // A queue begins like that as well.
    for _ in 0..20 {
        it.idle();
        assert!(it.submit(1));
        it.idle();
        assert_eq!(it.reap(), []);
        assert_eq!(it.host.emulator.outstanding(), 1, "it was told all the same");
        // Sooner or later the same value that was written there last.
        it.host.ring(1);
        it.host.emulator.step();
        assert_eq!(it.reap().len(), 1);
    }
    let counters = it.host.emulator.counters();
    assert_eq!((counters.needed_writes, counters.missed_writes), (20, 20));
}

#[test]
fn a_busy_queue_needs_no_register() {
    let mut it = armed(8, 64);
    for _ in 0..200 {
        it.submit_and_ring(3);
        it.host.emulator.step();
        assert_eq!(it.reap().len(), 3);
    }
    let counters = it.host.emulator.counters();
    assert_eq!((it.rung, counters.shadowed_writes, counters.needed_writes), (1, 1, 1));
    assert!(counters.shadow_looks >= 200);
    assert_eq!(counters.bad_doorbells, 0);
}

#[test]
fn a_full_completion_queue_waits_for_its_register() {
    let mut it = armed(16, 4);
    it.submit_and_ring(10);
    let mut done = 0;
    while done < 10 {
        it.idle();
        let rung = it.rung;
        let more = it.reap().len();
        assert_eq!(more, 3.min(10 - done));
        done += more;
        assert_eq!(it.rung - rung, u64::from(done < 10), "{done}");
    }
}

#[test]
fn a_reset_forgets_the_buffers() {
    let mut it = armed(8, 64);
    it.submit_and_ring(1);
    it.idle();
    it.host.disable();
    it.host.enable();
    it.host.create_pair(1, 8);
    let before = it.host.emulator.counters();
    assert_eq!(it.host.try_io(Command::flush(1)), Status::SUCCESS);
    it.submit(1);
    it.idle();
    assert_eq!(it.host.emulator.counters().shadow_looks, before.shadow_looks);
    assert_eq!(it.host.emulator.counters().io_commands, before.io_commands + 1);
}

/// A page has room for 64 doorbells of 64 bytes.
#[test]
fn queues_beyond_the_page_have_registers_alone() {
    let mut it = armed(8, 64);
    it.host.create_pair(32, 8);
    it.host.create_pair(31, 8);
    let before = it.host.emulator.counters().shadow_looks;
    assert_eq!(it.host.run(32, Command::flush(1)).status(), Status::SUCCESS);
    assert_eq!(it.host.emulator.counters().shadow_looks, before);
}

#[test]
fn a_bad_tail_in_a_shadow_is_ignored() {
    let mut it = armed(8, 64);
    it.submit_and_ring(1);
    it.host.emulator.step();
    for bad in [8, 9, 0xffff, u64::from(u32::MAX)] {
        it.shadows.word(Shadowed::offsets()[0]).store(bad, Ordering::SeqCst);
        it.host.emulator.step();
    }
    assert_eq!(it.host.emulator.counters().bad_doorbells, 4);
    assert_eq!(it.host.emulator.counters().io_commands, 1);
}

#[test]
fn buffers_that_go_away_are_fatal() {
    let mut it = armed(8, 64);
    it.submit_and_ring(1);
    it.host.drop_attachment();
    it.host.settle();
    assert!(it.host.csts().cfs());
}

proptest! {
    /// Whatever the pace of both: a host that writes registers by the rule loses nothing.
    #[test]
    fn nothing_is_missed(
        sq in 2..9u16,
        cq in 2..9u16,
        turns in proptest::collection::vec((0..9usize, 0..30usize, any::<bool>()), 1..100),
    ) {
        let mut it = armed(sq, cq);
        let (mut submitted, mut done) = (0, 0);
        for (count, steps, reaps) in turns {
            let room = usize::from(sq) - 1 - (submitted - done);
            it.submit_and_ring(count.min(room));
            submitted += count.min(room);
            (0..steps).for_each(|_| _ = it.host.emulator.step());
            if reaps {
                done += it.reap().len();
            }
        }
        for _ in 0..20 {
            it.idle();
            done += it.reap().len();
        }
        prop_assert_eq!(done, submitted);
        let counters = it.host.emulator.counters();
        prop_assert_eq!((counters.bad_doorbells, counters.missed_writes), (0, 0));
    }
}
