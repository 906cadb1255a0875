//! A mirror has what was written as long as one leg has it, whatever becomes of the others; and nothing
//! that comes late does any harm.
#![allow(clippy::unwrap_used)]

mod bench;

use std::time::Duration;

use bench::{Bench, LANES, rounds};
use kiovec::layer::{Disk, Layer, Mirror, Partition, Retry, RetryOptions, Stack, Stripe};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::Status;
use kiovec::{Cause, Controller, Failure, IoContainer, Poller, QueueOptions, State};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults, Remedy};
use proptest::prelude::*;

const AFTER: Duration = Duration::from_micros(100);
const LATE: Duration = Duration::from_micros(101);

fn settings(legs: usize, more: &str) -> Vec<String> {
    (0..legs).map(|leg| format!("size=1M,media=ram,random_order=on,seed={leg}{more}")).collect()
}

/// A mirror of RAM disks of 256 blocks of 4 KiB.
fn mirror(legs: usize) -> Bench<Mirror<Disk>> {
    Bench::new(&settings(legs, ""), 8, |_, disks| Mirror::new(disks).unwrap())
}

/// The same, with buffers of 8 blocks. Block 0 to 7 of each leg have its number and 1.
fn hedged(legs: usize, buffers: usize) -> Bench<Mirror<Disk>> {
    let mut bench = Bench::new(&settings(legs, ""), 64, |space, disks| {
        Mirror::new(disks).unwrap().hedged(AFTER, pool(space, buffers)).unwrap()
    });
    for leg in 0..legs {
        let disk = bench.layer().legs()[leg];
        bench.plant(disk, 0, 8, leg as u8 + 1);
    }
    bench
}

fn pool(space: &DmaSpace, buffers: usize) -> Vec<MemoryChain> {
    (0..buffers).map(|_| space.allocate(8 * 4096).unwrap()).collect()
}

fn fault(commands: Commands, status: Status) -> Faults {
    Faults::seeded(1).with(Fault::new(commands, Effect::Status(status)))
}

fn ejected(mirror: &Mirror<Disk>) -> Vec<Option<Cause>> {
    (0..mirror.legs().len()).map(|leg| mirror.leg_counts(leg).unwrap().ejected).collect()
}

/// What happens to the legs meanwhile.
#[derive(Debug, Clone)]
enum Mishap {
    None,
    /// A leg is pulled at this turn.
    Pulled {
        leg: usize,
        turn: usize,
    },
    /// Reads of these blocks fail, on this leg.
    Unreadable {
        leg: usize,
        lba: u64,
        blocks: u64,
    },
    /// Writes fail, one in so many, on this leg.
    Unwritable {
        leg: usize,
        one_in: u32,
    },
    /// Commands of this leg take long, one in so many.
    Slow {
        leg: usize,
        one_in: u32,
    },
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        Just(Mishap::None),
        (0..2usize, 0..60usize).prop_map(|(leg, turn)| Mishap::Pulled { leg, turn }),
        (0..2usize, 0..200u64, 1..50u64).prop_map(|(leg, lba, blocks)| Mishap::Unreadable {
            leg,
            lba,
            blocks
        }),
        (0..2usize, 1..20u32).prop_map(|(leg, one_in)| Mishap::Unwritable { leg, one_in }),
        (0..2usize, 1..4u32).prop_map(|(leg, one_in)| Mishap::Slow { leg, one_in }),
    ]
}

impl Mishap {
    fn plan(&self, emulators: &[Option<Emulator>]) {
        let (leg, fault) = match *self {
            Mishap::None | Mishap::Pulled { .. } => return,
            Mishap::Unreadable { leg, lba, blocks } => {
                let weak = Commands::reads().lbas(lba..lba + blocks);
                (leg, Fault::new(weak, Effect::Status(Status::UNRECOVERED_READ_ERROR)))
            }
            Mishap::Unwritable { leg, one_in } => {
                (leg, Fault::new(Commands::writes(), Effect::Status(Status::WRITE_FAULT)).one_in(one_in))
            }
            Mishap::Slow { leg, one_in } => {
                (leg, Fault::new(Commands::io(), Effect::DelaySteps(40)).one_in(one_in))
            }
        };
        emulators[leg].as_ref().unwrap().set_faults(Faults::seeded(7).random_order().with(fault));
    }

    fn happen(&self, now: usize, emulators: &mut [Option<Emulator>]) {
        if let Mishap::Pulled { leg, turn } = *self
            && turn == now
        {
            drop(emulators[leg].take());
        }
        // The clock of the poller is that of the first controller, and stands still once it is pulled.
        if let Some(first) = &emulators[0] {
            first.advance(AFTER / 10);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn one_leg_is_enough(
        legs in 2..5usize,
        depth in prop_oneof![1..4usize, Just(64)],
        mdts in 0..4u8,
        buffers in prop_oneof![Just(0usize), 2..12usize],
        mishap in mishap(),
        rounds in rounds(12),
    ) {
        let settings = settings(legs, &format!(",mdts={mdts}"));
        let mut bench = Bench::new(&settings, depth, |space, disks| {
            let mirror = Mirror::new(disks).unwrap();
            if buffers == 0 { mirror } else { mirror.hedged(AFTER, pool(space, buffers)).unwrap() }
        });
        mishap.plan(&bench.emulators);
        bench.compare(&rounds, |turn, emulators| mishap.happen(turn, emulators))?;
        let mirror = bench.layer();
        prop_assert_eq!(mirror.free_buffers(), buffers);
        for (leg, cause) in ejected(mirror).into_iter().enumerate() {
            let expected = match mishap {
                Mishap::Pulled { leg, .. } => (leg, Cause::ControllerLost),
                Mishap::Unwritable { leg, .. } => (leg, Cause::Status(Status::WRITE_FAULT)),
                _ => (usize::MAX, Cause::Cancelled),
            };
            prop_assert!(cause.is_none_or(|cause| (leg, cause) == expected), "leg {} is ejected", leg);
        }
    }

    #[test]
    fn a_stripe_of_mirrors(
        chunk in 1..20u64,
        inner in 2..4usize,
        buffers in prop_oneof![Just(0usize), 2..12usize],
        mishap in mishap(),
        rounds in rounds(8),
    ) {
        let mut bench = Bench::new(&settings(2 * inner, ""), 8, |space, mut disks| {
            let others = disks.split_off(inner);
            let legs = [disks, others].map(|disks| {
                let mirror = Mirror::new(disks).unwrap();
                if buffers == 0 { mirror } else { mirror.hedged(AFTER, pool(space, buffers)).unwrap() }
            });
            Stripe::new(legs.into(), chunk * 4096).unwrap()
        });
        mishap.plan(&bench.emulators);
        bench.compare(&rounds, |turn, emulators| mishap.happen(turn, emulators))?;
        for mirror in bench.layer().legs() {
            prop_assert_eq!(mirror.free_buffers(), buffers);
        }
    }

    #[test]
    fn a_mirror_of_stripes(
        chunk in 1..20u64,
        buffers in prop_oneof![Just(0usize), 2..12usize],
        mishap in mishap(),
        rounds in rounds(8),
    ) {
        let mut bench = Bench::new(&settings(4, ""), 8, |space, mut disks| {
            let others = disks.split_off(2);
            let legs = [disks, others].map(|disks| Stripe::new(disks, chunk * 4096).unwrap());
            let mirror = Mirror::new(legs.into()).unwrap();
            if buffers == 0 { mirror } else { mirror.hedged(AFTER, pool(space, buffers)).unwrap() }
        });
        mishap.plan(&bench.emulators);
        bench.compare(&rounds, |turn, emulators| mishap.happen(turn, emulators))?;
        prop_assert_eq!(bench.layer().free_buffers(), buffers);
    }
}

#[test]
fn reads_take_turns_and_writes_go_to_all() {
    let mut bench = mirror(3);
    for lba in 0..6 {
        let memory = bench.memory(1, 0);
        assert_eq!(bench.run(IoContainer::read(lba, memory)).result, Ok(()));
    }
    assert_eq!(bench.commands(), [2, 2, 2]);
    let memory = bench.memory(1, 1);
    bench.run(IoContainer::write(0, memory));
    bench.run(IoContainer::flush());
    bench.run(IoContainer::write_zeroes(0, 3));
    bench.run(IoContainer::deallocate(0, 3));
    assert_eq!(bench.commands(), [6, 6, 6]);
    let reads = (0..3).map(|leg| bench.layer().leg_counts(leg).unwrap().reads);
    assert!(reads.eq([2, 2, 2]));
    assert_eq!(bench.layer().leg_counts(3), None);
}

#[test]
fn a_write_is_done_when_all_legs_are() {
    let mut bench = mirror(2);
    bench.emulator(1).hold(Commands::io());
    let memory = bench.memory(4, 7);
    bench.submit(IoContainer::write(0, memory));
    for _ in 0..100 {
        assert!(bench.turn().is_empty(), "one leg has it, the other has not");
    }
    bench.emulator(1).release_all();
    assert_eq!(bench.settle()[0].result, Ok(()));
}

#[test]
fn a_leg_that_cannot_write_is_ejected() {
    for commands in [
        Commands::writes(),
        Commands::io().opcode(kiovec::spec::io_opcode::FLUSH),
        Commands::io().opcode(kiovec::spec::io_opcode::WRITE_ZEROES),
        Commands::io().opcode(kiovec::spec::io_opcode::DATASET_MANAGEMENT),
    ] {
        let mut bench = mirror(3);
        bench.emulator(1).set_faults(fault(commands, Status::WRITE_FAULT));
        let memory = bench.memory(4, 7);
        assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
        assert_eq!(bench.run(IoContainer::flush()).result, Ok(()));
        assert_eq!(bench.run(IoContainer::write_zeroes(10, 3)).result, Ok(()));
        assert_eq!(bench.run(IoContainer::deallocate(20, 3)).result, Ok(()));
        assert_eq!(ejected(bench.layer()), [None, Some(Cause::Status(Status::WRITE_FAULT)), None]);
        let before = bench.commands();
        for _ in 0..4 {
            let memory = bench.memory(4, 0);
            assert_eq!(bench.run(IoContainer::read(0, memory)).bytes, [7; 4 * 4096]);
        }
        let memory = bench.memory(4, 8);
        bench.run(IoContainer::write(0, memory));
        assert_eq!(bench.commands(), [before[0] + 3, before[1], before[2] + 3], "nothing is sent to it");
    }
}

#[test]
fn what_fails_everywhere_fails_and_ejects_none() {
    let mut bench = mirror(2);
    bench.emulator(0).set_faults(fault(Commands::writes().lbas(9..10), Status::WRITE_FAULT));
    bench.emulator(1).set_faults(fault(Commands::writes().lbas(5..6), Status::WRITE_FAULT));
    let memory = bench.memory(16, 7);
    let outcome = bench.run(IoContainer::write(0, memory));
    assert_eq!(outcome.result.unwrap_err().cause, Cause::Status(Status::WRITE_FAULT));
    assert_eq!(ejected(bench.layer()), [None, None]);
    // By the lowest LBA, if the legs tell.
    let mut bench = Bench::new(&settings(2, ",mdts=1"), 8, |_, disks| Mirror::new(disks).unwrap());
    bench.emulator(0).set_faults(fault(Commands::writes().lbas(13..14), Status::WRITE_FAULT));
    bench.emulator(1).set_faults(fault(Commands::writes().lbas(9..10), Status::INTERNAL_ERROR));
    let memory = bench.memory(16, 7);
    let outcome = bench.run(IoContainer::write(1, memory));
    let cause = Cause::Status(Status::INTERNAL_ERROR);
    assert_eq!(outcome.result, Err(Failure { lba: 9, cause }));
    assert_eq!(ejected(bench.layer()), [None, None]);
}

#[test]
fn the_last_leg_stays_and_its_failures_are_the_mirrors() {
    let mut bench = mirror(2);
    bench.emulator(0).set_faults(fault(Commands::writes(), Status::WRITE_FAULT));
    let memory = bench.memory(1, 7);
    assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
    let weak = fault(Commands::io().lbas(3..4), Status::UNRECOVERED_READ_ERROR);
    bench.emulator(1).set_faults(weak);
    let cause = Cause::Status(Status::UNRECOVERED_READ_ERROR);
    for write in [false, true] {
        let memory = bench.memory(1, 7);
        let io = if write { IoContainer::write(3, memory) } else { IoContainer::read(3, memory) };
        assert_eq!(bench.run(io).result, Err(Failure { lba: 3, cause }));
    }
    drop(bench.emulators[1].take());
    for _ in 0..2 {
        let memory = bench.memory(1, 7);
        let failure = bench.run(IoContainer::read(0, memory)).result.unwrap_err();
        assert_eq!(failure, Failure { lba: 0, cause: Cause::ControllerLost });
    }
    assert!(ejected(bench.layer())[0].is_some());
    assert_eq!(ejected(bench.layer())[1], None);
}

/// Leg 0 is ejected while it carries out a write that leg 1 fails: what leg 0 says does not count.
#[test]
fn a_leg_that_was_ejected_saves_no_write() {
    let mut bench = mirror(2);
    bench.emulator(0).hold(Commands::writes().lbas(8..9));
    bench.emulator(0).set_faults(fault(Commands::writes().lbas(0..1), Status::WRITE_FAULT));
    bench.emulator(1).set_faults(fault(Commands::writes().lbas(8..9), Status::WRITE_FAULT));
    let memory = bench.memory(1, 7);
    bench.submit(IoContainer::write(8, memory).tag(8));
    let memory = bench.memory(1, 7);
    bench.submit(IoContainer::write(0, memory).tag(0));
    let first = bench.until(1).remove(0);
    assert_eq!((first.tag, first.result), (0, Ok(())));
    let cause = Cause::Status(Status::WRITE_FAULT);
    assert_eq!(ejected(bench.layer()), [Some(cause), None]);
    bench.emulator(0).release_all();
    let second = bench.settle().remove(0);
    assert_eq!(second.result, Err(Failure { lba: 8, cause }));
    assert_eq!(ejected(bench.layer()), [Some(cause), None], "the last leg stays");
}

#[test]
fn what_a_leg_refuses_fails_and_ejects_none() {
    let settings = ["size=1M,media=ram,awupf=7", "size=1M,media=ram"].map(str::to_owned);
    let mut bench = Bench::new(&settings, 8, |_, disks| Mirror::new(disks).unwrap());
    let memory = bench.memory(4, 7);
    let outcome = bench.run(IoContainer::write(16, memory).atomic(true));
    assert_eq!(outcome.result, Err(Failure { lba: 16, cause: Cause::Refused }));
    assert_eq!(ejected(bench.layer()), [None, None]);
}

#[test]
fn a_read_goes_on_with_another_leg() {
    let mut bench = Bench::new(&settings(3, ",mdts=1"), 8, |_, disks| Mirror::new(disks).unwrap());
    let memory = bench.memory(16, 7);
    bench.run(IoContainer::write(0, memory));
    let weak = |lba| fault(Commands::reads().lbas(lba..lba + 1), Status::UNRECOVERED_READ_ERROR);
    bench.emulator(0).set_faults(weak(4));
    bench.emulator(1).set_faults(weak(8));
    for _ in 0..6 {
        let memory = bench.memory(16, 0);
        let outcome = bench.run(IoContainer::read(0, memory));
        assert_eq!((outcome.result, outcome.bytes), (Ok(()), vec![7; 16 * 4096]));
    }
    let mirror = bench.layer();
    assert_eq!(ejected(mirror), [None; 3], "it may still have everything else");
    assert_eq!(mirror.counts().failovers, 2 * 2 + 2);
    let failed = (0..3).map(|leg| mirror.leg_counts(leg).unwrap().failed_reads);
    assert!(failed.eq([2, 4, 0]));
    // No leg is asked twice.
    bench.emulator(2).set_faults(weak(4));
    bench.emulator(1).set_faults(weak(4));
    let memory = bench.memory(16, 0);
    let outcome = bench.run(IoContainer::read(0, memory));
    let cause = Cause::Status(Status::UNRECOVERED_READ_ERROR);
    assert_eq!(outcome.result, Err(Failure { lba: 4, cause }));
    assert_eq!(bench.layer().counts().failovers, 6 + 2);
}

#[test]
fn reads_that_a_lost_controller_had_are_read_elsewhere() {
    let mut bench = mirror(2);
    let memory = bench.memory(100, 7);
    bench.run(IoContainer::write(0, memory));
    bench.emulator(0).hold(Commands::reads());
    for tag in 0..LANES as u64 {
        let memory = bench.memory(25, 0);
        bench.submit(IoContainer::read(tag * 25, memory).tag(tag));
    }
    let mut outcomes = bench.until(2);
    drop(bench.emulators[0].take());
    outcomes.extend(bench.settle());
    assert!(outcomes.iter().all(|outcome| outcome.result == Ok(()) && outcome.bytes == [7; 25 * 4096]));
    assert_eq!(ejected(bench.layer()), [Some(Cause::ControllerLost), None]);
    assert_eq!(bench.layer().counts().failovers, 2);
}

/// What is written before a failure is done, and somebody may have written other data there by then: it is not written
/// once more.
#[test]
fn a_write_that_is_tried_again_goes_on_where_it_failed() {
    let make =
        |_: &DmaSpace, disks| Retry::new(Mirror::new(disks).unwrap(), RetryOptions::default()).unwrap();
    let mut bench = Bench::new(&settings(2, ",mdts=1"), 8, make);
    for leg in 0..2 {
        let weak = Fault::new(Commands::writes().lbas(4..5), Effect::Status(Status::WRITE_FAULT)).times(1);
        let first = Fault::new(Commands::writes().lbas(0..1), Effect::DelaySteps(1));
        bench.emulator(leg).set_faults(Faults::default().with(weak).with(first));
    }
    let memory = bench.memory(16, 7);
    assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
    for leg in 0..2 {
        assert_eq!(bench.emulator(leg).injections(), [1, 1], "each is written once");
    }
    let memory = bench.memory(16, 0);
    let outcome = bench.run(IoContainer::read(0, memory));
    assert_eq!((outcome.result, outcome.bytes), (Ok(()), vec![7; 16 * 4096]));
}

/// What they were sent to completes nothing, and no reset brings it back; or one does, and then it is asked again.
#[test]
fn reads_of_a_leg_that_resets_do_not_cure_are_read_elsewhere() {
    for (remedy, elsewhere) in [(Remedy::None, true), (Remedy::FunctionReset, false)] {
        let mut bench = mirror(2);
        let memory = bench.memory(100, 7);
        bench.run(IoContainer::write(0, memory));
        bench.emulator(0).hang(remedy);
        bench
            .emulator(0)
            .set_faults(Faults::default().with(Fault::new(Commands::reads(), Effect::Drop).once()));
        for tag in 0..LANES as u64 {
            let memory = bench.memory(25, 0);
            bench.submit(IoContainer::read(tag * 25, memory).tag(tag));
        }
        let mut outcomes = Vec::new();
        for _ in 0..400 {
            (0..1100).for_each(|_| outcomes.extend(bench.turn()));
            bench.emulator(0).advance(Duration::from_secs(1));
        }
        assert_eq!(outcomes.len(), LANES);
        assert!(outcomes.iter().all(|outcome| outcome.result == Ok(()) && outcome.bytes == [7; 25 * 4096]));
        assert_eq!(bench.layer().counts().failovers, u64::from(elsewhere));
        assert_eq!(ejected(bench.layer()), [elsewhere.then_some(Cause::ControllerLost), None]);
        let resets = bench.queues.iter().map(|queue| bench.poller.stats(*queue).resets);
        assert!(resets.eq([u64::from(!elsewhere), 0]));
        assert_eq!(bench.space.retired(), 0, "nothing is kept of what reaches nothing");
    }
}

// ---- hedged reads ----

/// The leg that comes late has other data, so that one byte of it in the wrong place would be seen.
#[test]
fn the_loser_of_a_race_does_no_harm() {
    let mut bench = hedged(2, 4);
    bench.emulator(0).hold(Commands::reads());
    let memory = bench.memory(8, 0xee);
    bench.submit(IoContainer::read(0, memory));
    for _ in 0..100 {
        assert!(bench.turn().is_empty(), "it is not time");
    }
    assert_eq!(bench.commands(), [2, 1]);
    bench.emulator(0).advance(LATE);
    let outcome = bench.until(1).remove(0);
    assert_eq!((outcome.result, outcome.bytes), (Ok(()), vec![2; 8 * 4096]));
    let counts = *bench.layer().counts();
    assert_eq!((counts.hedges, counts.hedge_wins, counts.failovers), (1, 1, 0));
    assert_eq!(bench.layer().free_buffers(), 3, "the loser has its buffer");
    assert_eq!(bench.poller.outstanding(), 1, "and is still under way");
    bench.emulator(0).release_all();
    assert!(bench.settle().is_empty(), "nobody is told of it");
    assert_eq!(bench.layer().free_buffers(), 4);
}

/// The memory goes round in place while losers of earlier rounds still write.
#[test]
fn a_container_goes_round_in_place_while_losers_are_under_way() {
    let mut bench = hedged(2, 8);
    bench.emulator(0).hold(Commands::reads());
    let memory = bench.memory(3, 0xee);
    bench.submit(IoContainer::read(0, memory));
    let (mut rounds, mut turns) = (0, 0);
    while rounds < 20 {
        bench.poller.poll(|mut done| {
            done.result().unwrap();
            let by_first = done.in_place().data_mut().all(|data| data.iter().all(|byte| *byte == 1));
            let by_second = done.in_place().data_mut().all(|data| data.iter().all(|byte| *byte == 2));
            assert!(by_first || by_second);
            done.in_place().data_mut().for_each(|data| data.fill(0xee));
            rounds += 1;
            if rounds < 20 {
                done.resubmit().unwrap();
            }
        });
        bench.emulator(1).step();
        bench.emulator(0).step();
        bench.emulator(0).advance(AFTER / 3);
        turns += 1;
        // From time to time, some losers come in.
        if turns % 40 == 0 {
            bench.emulator(0).release_all();
            bench.emulator(0).hold(Commands::reads());
        }
        assert!(turns < 10_000, "it stopped after {rounds} rounds");
    }
    bench.emulator(0).release_all();
    assert!(bench.settle().is_empty());
    assert_eq!(bench.layer().free_buffers(), 8);
    assert!(bench.layer().counts().hedge_wins > 3);
}

/// Losers take nothing of the room for requests.
#[test]
fn there_is_room_for_requests_while_losers_are_under_way() {
    let mut bench = hedged(2, 16);
    bench.emulator(0).hold(Commands::reads());
    for round in 1..3 {
        for _ in 0..LANES {
            let memory = bench.memory(8, 0xee);
            bench.submit(IoContainer::read(0, memory));
        }
        bench.turn();
        bench.emulator(0).advance(LATE);
        assert!(bench.until(LANES).iter().all(|outcome| outcome.bytes == [2; 8 * 4096]));
        assert!(bench.poller.outstanding() >= round * LANES / 2, "no losers");
    }
    // All of them write now, with all the nodes that they need.
    for lba in 0..LANES as u64 {
        let memory = bench.memory(8, 5);
        bench.submit(IoContainer::write(100 + lba * 8, memory));
    }
    bench.until(LANES);
    bench.emulator(0).release_all();
    bench.settle();
    assert_eq!(bench.layer().free_buffers(), 16);
}

#[test]
fn the_first_leg_may_still_win() {
    let mut bench = hedged(2, 4);
    for leg in 0..2 {
        bench.emulator(leg).hold(Commands::reads());
    }
    let memory = bench.memory(5, 0xee);
    bench.submit(IoContainer::read(2, memory));
    bench.turn();
    bench.emulator(0).advance(LATE);
    while bench.emulator(1).held().is_empty() || bench.emulator(0).held().is_empty() {
        assert!(bench.turn().is_empty());
    }
    bench.emulator(0).release_all();
    assert_eq!(bench.until(1)[0].bytes, vec![1; 5 * 4096]);
    bench.emulator(1).release_all();
    assert!(bench.settle().is_empty());
    let counts = bench.layer().counts();
    assert_eq!((counts.hedges, counts.hedge_wins), (1, 0));
    assert_eq!(bench.layer().free_buffers(), 4);
}

/// Each in turn: both legs fail, the first before or after the second was asked; or one of them only.
#[test]
fn legs_that_fail_in_a_race() {
    let cause = Cause::Status(Status::UNRECOVERED_READ_ERROR);
    for failing in [[true, true], [true, false], [false, true]] {
        for late in [false, true] {
            let mut bench = hedged(2, 4);
            for leg in (0..2).filter(|leg| failing[*leg]) {
                let weak = Commands::reads().lbas(3..4);
                bench.emulator(leg).set_faults(fault(weak, Status::UNRECOVERED_READ_ERROR));
            }
            bench.emulator(0).hold(Commands::reads());
            let memory = bench.memory(8, 0xee);
            bench.submit(IoContainer::read(0, memory));
            if late {
                bench.turn();
                bench.emulator(0).advance(LATE);
            }
            let mut outcomes = Vec::new();
            for _ in 0..100 {
                outcomes.extend(bench.turn());
            }
            bench.emulator(0).release_all();
            outcomes.extend(bench.settle());
            assert_eq!(outcomes.len(), 1);
            let expected = if failing == [true, true] { Err(Failure { lba: 0, cause }) } else { Ok(()) };
            assert_eq!(outcomes[0].result, expected, "{failing:?} {late}");
            if let Some(good) = failing.iter().position(|failing| !failing) {
                assert_eq!(outcomes[0].bytes, vec![good as u8 + 1; 8 * 4096]);
            }
            assert_eq!(bench.layer().free_buffers(), 4);
            assert_eq!(ejected(bench.layer()), [None, None]);
        }
    }
}

#[test]
fn races_that_are_lost_by_all_leave_nothing() {
    let mut bench = hedged(2, 2);
    for leg in 0..2 {
        bench.emulator(leg).set_faults(fault(Commands::reads(), Status::UNRECOVERED_READ_ERROR));
    }
    for _ in 0..10 {
        let memory = bench.memory(8, 0xee);
        let outcome = bench.run(IoContainer::read(0, memory));
        assert!(outcome.result.is_err());
        assert_eq!(outcome.bytes, [0xee; 8 * 4096]);
        assert_eq!(bench.layer().free_buffers(), 2);
    }
    assert_eq!(bench.layer().counts().failovers, 10);
}

/// The time before a request was submitted does not count.
#[test]
fn a_second_leg_is_not_asked_too_early() {
    let mut bench = hedged(2, 2);
    let memory = bench.memory(1, 0);
    bench.run(IoContainer::read(0, memory));
    let memory = bench.memory(1, 0);
    bench.run(IoContainer::read(0, memory));
    bench.emulator(0).advance(100 * AFTER);
    bench.emulator(0).hold(Commands::reads());
    let memory = bench.memory(1, 0);
    bench.submit(IoContainer::read(0, memory));
    for _ in 0..100 {
        assert!(bench.turn().is_empty());
    }
    assert_eq!(bench.layer().counts().hedges, 0);
    bench.emulator(0).advance(LATE);
    assert_eq!(bench.until(1)[0].bytes, [2; 4096]);
    bench.emulator(0).release_all();
    bench.settle();
}

#[test]
fn a_third_leg_is_asked_when_one_of_two_fails() {
    let mut bench = hedged(3, 4);
    bench.emulator(0).hold(Commands::reads());
    bench.emulator(1).set_faults(fault(Commands::reads(), Status::UNRECOVERED_READ_ERROR));
    let memory = bench.memory(8, 0xee);
    bench.submit(IoContainer::read(0, memory));
    bench.turn();
    bench.emulator(0).advance(LATE);
    assert_eq!(bench.until(1)[0].bytes, vec![3; 8 * 4096]);
    bench.emulator(0).release_all();
    bench.settle();
    let counts = bench.layer().counts();
    assert_eq!((counts.hedges, counts.hedge_wins, counts.failovers), (1, 1, 1));
    assert_eq!(bench.layer().free_buffers(), 4);
}

/// A controller that is pulled is noticed late; a second leg is asked before.
#[test]
fn a_leg_that_is_pulled_in_a_race() {
    let mut bench = hedged(2, 4);
    bench.emulator(1).hold(Commands::reads());
    let memory = bench.memory(8, 0xee);
    bench.run(IoContainer::read(0, memory));
    let memory = bench.memory(8, 0xee);
    bench.submit(IoContainer::read(0, memory));
    for _ in 0..20 {
        bench.turn();
    }
    drop(bench.emulators[1].take());
    bench.emulator(0).advance(LATE);
    assert_eq!(bench.until(1)[0].bytes, vec![1; 8 * 4096]);
    assert_eq!(ejected(bench.layer()), [None, None], "nobody knows yet");
    assert!(bench.settle().is_empty());
    assert_eq!(ejected(bench.layer()), [None, Some(Cause::ControllerLost)]);
    assert_eq!(bench.layer().free_buffers(), 4);
}

#[test]
fn reads_that_are_not_hedged() {
    let mut bench = hedged(2, 2);
    bench.emulator(0).hold(Commands::reads());
    let mut outcomes = 0;
    // Too long, or not to be copied. Each second one goes to the leg that holds it.
    for _ in 0..2 {
        let memory = bench.memory(9, 0);
        bench.submit(IoContainer::read(0, memory));
        let memory = bench.memory(1, 0);
        bench.submit(IoContainer::read(0, memory).no_bounce(true));
    }
    for _ in 0..100 {
        outcomes += bench.turn().len();
        bench.emulator(0).advance(LATE);
    }
    assert_eq!(outcomes, 2);
    assert_eq!(bench.layer().counts().hedges, 0);
    bench.emulator(0).release_all();
    assert_eq!(bench.settle().len(), 2);

    // Two buffers, and two first lanes have them: there is none for a second lane, nor for a third read.
    let mut bench = hedged(2, 2);
    for leg in 0..2 {
        bench.emulator(leg).hold(Commands::reads());
    }
    for _ in 0..3 {
        let memory = bench.memory(1, 0);
        bench.submit(IoContainer::read(0, memory));
    }
    for _ in 0..100 {
        assert!(bench.turn().is_empty());
        bench.emulator(0).advance(LATE);
    }
    assert_eq!((bench.layer().counts().hedges, bench.layer().free_buffers()), (0, 0));
    for leg in 0..2 {
        bench.emulator(leg).release_all();
    }
    assert_eq!(bench.settle().len(), 3);
    assert_eq!(bench.layer().free_buffers(), 2);
}

// ---- stacks ----

/// A stack from text; devices are numbers.
fn stack(text: &str, space: &DmaSpace, disks: &[Disk]) -> Result<Stack, kiovec::Error> {
    Stack::new(&text.parse().unwrap(), space, &mut |name| Ok(disks[name.parse::<usize>().unwrap()]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_stack(
        text in prop_oneof![
            Just("stripe(chunk=16K,mirror(hedge=100,buffers=4,buffer=32K,0,1),mirror(2,3))"),
            Just("mirror(stripe(chunk=4K,0,2),stripe(chunk=12K,1,3))"),
            Just("mirror(hedge=50,buffers=8,mirror(hedge=100,0,1),mirror(hedge=100,2,3))"),
            Just("trace(stripe(chunk=20K,partition(start=10,mirror(verify(0),verify(1))),retry(2),3))"),
            Just("verify(mirror(retry(0),stripe(chunk=8K,1,partition(start=3,blocks=150,2)),3))"),
            Just("cache(bytes=256K,line=16K,stripe(chunk=8K,mirror(hedge=100,buffers=4,buffer=32K,0,1),3))"),
            Just("mirror(hedge=50,buffers=4,cache(bytes=128K,line=8K,0),cache(bytes=64K,line=4K,verify(1)))"),
        ],
        depth in prop_oneof![1..4usize, Just(64)],
        mishap in mishap(),
        rounds in rounds(8),
    ) {
        let mut bench = Bench::new(&settings(4, ",mdts=2"), depth, |space, disks| stack(text, space, &disks).unwrap());
        // A stripe on single devices does not survive anything but delays.
        let mishap = match mishap {
            Mishap::Slow { .. } => mishap,
            _ if text.contains("2),3") || text.contains("2)),3") => Mishap::None,
            _ => mishap,
        };
        mishap.plan(&bench.emulators);
        bench.compare(&rounds, |turn, emulators| mishap.happen(turn, emulators))?;
        for stack in bench.layer().layers() {
            if let Stack::Mirror(mirror) = stack {
                prop_assert!([0, 4, 8, 32].contains(&mirror.free_buffers()), "a buffer is missing");
            }
        }
    }
}

/// One leg has other data than what was written to it, which Verify finds out, and the mirror goes round.
#[test]
fn what_is_corrupt_on_one_leg_is_read_from_another() {
    let mut disks = Vec::new();
    let mut bench = Bench::new(&settings(2, ""), 8, |space, all| {
        disks = all;
        stack("mirror(verify(0),verify(1))", space, &disks).unwrap()
    });
    let memory = bench.memory(16, 7);
    assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
    bench.plant(disks[0], 5, 1, 0xbb);
    for _ in 0..4 {
        let memory = bench.memory(16, 0);
        let outcome = bench.run(IoContainer::read(0, memory));
        assert_eq!((outcome.result, outcome.bytes), (Ok(()), vec![7; 16 * 4096]));
    }
    bench.plant(disks[1], 9, 1, 0xbb);
    bench.plant(disks[1], 5, 1, 0xbb);
    let memory = bench.memory(16, 0);
    let outcome = bench.run(IoContainer::read(0, memory));
    assert_eq!(outcome.result, Err(Failure { lba: 5, cause: Cause::Corrupt }));
    let Stack::Mirror(mirror) = bench.layer() else { panic!("{:?}", bench.layer()) };
    assert_eq!(mirror.counts().failovers, 2 + 1);
    assert!((0..2).all(|leg| mirror.leg_counts(leg).unwrap().ejected.is_none()));
}

/// A mirror in a mirror has one leg that cannot read a block, and one that is lost: it has what is written, and is not
/// lost, whichever of the two is asked first; hedged, or not.
#[test]
fn a_mirror_is_not_lost_with_one_of_its_legs() {
    let cause = Cause::Status(Status::UNRECOVERED_READ_ERROR);
    for hedge in ["", "hedge=1000,buffers=4,buffer=32K,"] {
        for first in 0..2 {
            let mut bench = Bench::new(&settings(3, ""), 8, |space, disks| {
                stack(&format!("mirror(mirror({hedge}0,1),2)"), space, &disks).unwrap()
            });
            let memory = bench.memory(8, 7);
            assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
            // After two reads the outer mirror is where it was, and the inner one a leg further.
            for _ in 0..2 * first {
                let memory = bench.memory(1, 0);
                assert_eq!(bench.run(IoContainer::read(0, memory)).result, Ok(()));
            }
            bench.emulator(0).set_faults(fault(Commands::reads().lbas(3..4), Status::UNRECOVERED_READ_ERROR));
            drop(bench.emulators[1].take());
            let memory = bench.memory(8, 0);
            let outcome = bench.run(IoContainer::read(0, memory));
            assert_eq!((outcome.result, outcome.bytes), (Ok(()), vec![7; 8 * 4096]));
            let legs = |bench: &Bench<Stack>, inner: bool| {
                let all = bench.layer().layers();
                let mut mirrors = all.iter().filter_map(|layer| match layer {
                    Stack::Mirror(mirror) => Some(mirror),
                    _ => None,
                });
                let mirror = if inner { mirrors.nth(1) } else { mirrors.next() }.unwrap();
                [0, 1].map(|leg| mirror.leg_counts(leg).unwrap().ejected)
            };
            assert_eq!(legs(&bench, true), [None, Some(Cause::ControllerLost)], "{hedge} {first}");
            assert_eq!(legs(&bench, false), [None, None], "{hedge} {first}");
            // What is left of it can go on alone, and says what it cannot read.
            drop(bench.emulators[2].take());
            let memory = bench.memory(8, 8);
            assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
            let memory = bench.memory(8, 0);
            let failure = bench.run(IoContainer::read(0, memory)).result.unwrap_err();
            assert_eq!(failure, Failure { lba: 0, cause });
        }
    }
}

#[test]
fn options_that_do_not_fit() {
    let mut disks = Vec::new();
    let bench = Bench::new(&settings(2, ""), 8, |_, all| {
        disks = all;
        Stack::Disk(disks[0])
    });
    for (text, part) in [
        ("stripe(0)", "2 to 64 legs"),
        ("stripe(chunk=5000,0,1)", "multiple of the block size"),
        ("mirror(0)", "2 to 8 legs"),
        ("mirror(hedge=100,buffers=1,0,1)", "2 to 4096 buffers"),
        ("mirror(hedge=100,buffers=5G,buffer=4K,0,1)", "2 to 4096 buffers, not 4097"),
        ("mirror(hedge=100,buffer=5000,0,1)", "whole number"),
        ("mirror(buffers=4,0,1)", "buffers is no option"),
    ] {
        let error = stack(text, &bench.space, &disks).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

// ---- ends ----

/// A race that is cancelled ends when its legs have: what comes late is of no use.
#[test]
fn a_read_that_is_cancelled_is_not_sent_to_another_leg() {
    for late in [false, true] {
        let mut bench = hedged(3, 4);
        bench.emulator(0).hold(Commands::reads());
        bench.emulator(1).hold(Commands::reads());
        let memory = bench.memory(8, 0xee);
        let read = bench.poller.request(bench.stack, IoContainer::read(0, memory)).unwrap();
        bench.turn();
        if late {
            bench.emulator(0).advance(LATE);
            while bench.layer().counts().hedges == 0 {
                bench.turn();
            }
        }
        for _ in 0..20 {
            bench.turn();
        }
        bench.poller.cancel(read);
        for _ in 0..20 {
            bench.emulator(0).advance(LATE);
            bench.turn();
        }
        let commands = bench.commands();
        bench.emulator(0).set_faults(fault(Commands::reads(), Status::UNRECOVERED_READ_ERROR));
        bench.emulator(0).release_all();
        bench.emulator(1).release_all();
        let claimed = loop {
            bench.turn();
            if let Some(claimed) = bench.poller.claim(read) {
                break claimed;
            }
        };
        assert_eq!(claimed.1.unwrap_err().cause, Cause::Cancelled);
        assert!(claimed.0.into_memory().to_vec().iter().all(|byte| *byte == 0xee));
        bench.settle();
        assert_eq!(bench.commands(), commands);
        assert_eq!(bench.layer().counts().hedges, u64::from(late));
        assert_eq!((bench.layer().free_buffers(), ejected(bench.layer())), (4, vec![None; 3]));
    }
}

/// Legs that have it and legs that may not stay side by side, because the caller knows that it failed.
#[test]
fn a_write_that_is_cancelled_ejects_none() {
    for faulty in [false, true] {
        let mut bench = mirror(2);
        if faulty {
            bench.emulator(0).set_faults(fault(Commands::writes(), Status::WRITE_FAULT));
        }
        bench.emulator(1).hold(Commands::writes());
        let memory = bench.memory(8, 7);
        let write = bench.poller.request(bench.stack, IoContainer::write(0, memory)).unwrap();
        for _ in 0..20 {
            bench.turn();
        }
        bench.poller.cancel(write);
        bench.emulator(1).release_all();
        let (_, result) = loop {
            bench.turn();
            if let Some(claimed) = bench.poller.claim(write) {
                break claimed;
            }
        };
        assert_eq!(result.unwrap_err().cause, Cause::Cancelled);
        assert_eq!(ejected(bench.layer()), [None, None]);
        let memory = bench.memory(8, 0);
        assert_eq!(bench.run(IoContainer::read(0, memory)).result, Ok(()));
    }
}

/// An observer of a part of a write is told when all legs have it, not when one has.
#[test]
fn a_part_of_a_write_is_done_when_all_legs_are() {
    let mut bench = mirror(2);
    bench.emulator(1).hold(Commands::writes());
    let memory = bench.memory(8, 7);
    let write = bench.poller.request(bench.stack, IoContainer::write(0, memory)).unwrap();
    let part = bench.poller.observe(write, 0..4096).unwrap();
    for _ in 0..100 {
        bench.turn();
        assert_eq!(bench.poller.state(part), Some(State::Pending));
    }
    bench.emulator(1).release_all();
    while bench.poller.state(part) == Some(State::Pending) {
        bench.turn();
    }
    assert!(bench.poller.observed(part).is_some());
}

#[test]
fn mirrors_that_cannot_be() {
    let space = DmaSpace::new().unwrap();
    let mut poller: Poller<Mirror<Partition<Disk>>> = Poller::with_layers(8);
    let emulator = Emulator::stepped(Config::parse("size=1M,oncs=0").unwrap()).unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(2)).unwrap();
    let target = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let disk = Disk::new(&poller, target).unwrap();
    let refused = |legs: usize| Mirror::new(vec![disk; legs]).unwrap_err().to_string();
    assert_eq!(refused(1), "a mirror has 2 to 8 legs, not 1");
    assert_eq!(refused(9), "a mirror has 2 to 8 legs, not 9");
    let small = Partition::new(disk, 0..10).unwrap();
    let mirror = Mirror::new(vec![Partition::new(disk, 100..256).unwrap(), small]).unwrap();
    let geometry = mirror.geometry();
    assert_eq!((geometry.blocks, geometry.write_zeroes, geometry.deallocate), (10, false, false));
    let refused = |buffers: Vec<MemoryChain>| {
        let mirror = Mirror::new(vec![disk; 2]).unwrap();
        mirror.hedged(AFTER, buffers).unwrap_err().to_string()
    };
    assert_eq!(refused(Vec::new()), "hedged reads take 2 to 4096 buffers, not 0");
    let memory = |space: &DmaSpace, len| vec![space.allocate(len).unwrap(), space.allocate(len).unwrap()];
    let error = refused(memory(&space, 6000));
    assert_eq!(error, "buffer 0 of 6000 bytes is not a whole number of 4096-byte blocks");
    assert!(refused(memory(&DmaSpace::new().unwrap(), 4096)).contains("another DmaSpace"));
    assert!(refused(vec![MemoryChain::new(), MemoryChain::new()]).contains("buffer 0 of 0 bytes"));
    poller.add_layer(mirror).unwrap();
}
