//! A stripe is its legs in rows, for requests of any size and at any place, and says where it failed.
#![allow(clippy::unwrap_used)]

mod bench;

use bench::{Bench, rounds};
use kiovec::layer::{Disk, Layer, Partition, Retry, RetryOptions, Stripe};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::Status;
use kiovec::{Cause, Controller, Failure, IoContainer, Poller, QueueOptions};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use proptest::prelude::*;

/// Stripes of RAM disks in blocks of 4 KiB.
fn stripe(legs: usize, blocks: u64, chunk: u64, depth: usize, more: &str) -> Bench<Stripe<Disk>> {
    let settings: Vec<String> =
        (0..legs).map(|leg| format!("size={},media=ram,seed={leg}{more}", blocks * 4096)).collect();
    Bench::new(&settings, depth, |_, disks| Stripe::new(disks, chunk * 4096).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_what_is_read(
        legs in 2..6usize,
        chunk in prop_oneof![1..5u64, 1..70u64],
        depth in prop_oneof![1..4usize, Just(64)],
        mdts in 0..4u8,
        block in prop_oneof![Just(512u64), Just(4096)],
        sgl in any::<bool>(),
        rounds in rounds(10),
    ) {
        let sgl = if sgl { "on" } else { "off" };
        let settings: Vec<String> = (0..legs as u64).map(|leg| {
            // Of different sizes, of which the smallest counts.
            let size = (700 + leg * 13) * block;
            format!("size={size},block={block},media=ram,mdts={mdts},sgl={sgl},random_order=on,seed={leg}")
        }).collect();
        let mut bench = Bench::new(&settings, depth, |_, disks| Stripe::new(disks, chunk * block).unwrap());
        prop_assert_eq!(bench.layer().geometry().blocks, 700 / chunk * chunk * legs as u64);
        bench.compare(&rounds, |_, _| {})?;
    }

    #[test]
    fn stripes_of_stripes(chunk in 1..9u64, inner in 1..9u64, rounds in rounds(6)) {
        let settings: Vec<String> =
            (0..4).map(|leg| format!("size=2M,media=ram,random_order=on,seed={leg}")).collect();
        let mut bench = Bench::new(&settings, 8, |_, mut disks| {
            let others = disks.split_off(2);
            let legs = [disks, others].map(|disks| Stripe::new(disks, inner * 4096).unwrap());
            Stripe::new(legs.into(), chunk * 4096).unwrap()
        });
        bench.compare(&rounds, |_, _| {})?;
    }
}

#[test]
fn blocks_are_where_they_belong() {
    let mut bench = stripe(3, 64, 4, 16, "");
    let blocks = bench.layer().geometry().blocks;
    assert_eq!(blocks, 3 * 64);
    let mut memory = bench.memory(blocks as usize, 0);
    for (lba, block) in memory.to_vec().chunks(4096).enumerate() {
        memory.copy_from_slice(lba * 4096, &vec![lba as u8; block.len()]);
    }
    assert_eq!(bench.run(IoContainer::write(0, memory)).result, Ok(()));
    for leg in 0..3 {
        let alone = bench.layer().legs()[leg].target();
        let memory = bench.memory(64, 0xee);
        bench.poller.submit(alone, IoContainer::read(0, memory)).unwrap();
        for (block, bytes) in bench.settle()[0].bytes.chunks(4096).enumerate() {
            let lba = (block / 4 * 3 + leg) * 4 + block % 4;
            assert!(bytes.iter().all(|byte| *byte == lba as u8), "block {block} of leg {leg}");
        }
    }
}

#[test]
fn one_chunk_is_one_command_and_a_flush_is_for_all() {
    let mut bench = stripe(2, 64, 4, 1, "");
    let memory = bench.memory(3, 1);
    bench.run(IoContainer::write(9, memory));
    assert_eq!(bench.commands(), [1, 0]);
    bench.run(IoContainer::flush());
    assert_eq!(bench.commands(), [2, 1]);
}

/// One leg's flush tells of a lost cache, the other's has failed before: that is what is told, and trying again does not
/// hide it.
#[test]
fn a_lost_cache_of_one_leg_is_told_whatever_the_other_says() {
    let settings =
        ["size=1M,block=4096,media=ram,vwc=on".to_string(), "size=1M,block=4096,media=ram".to_string()];
    let mut bench = Bench::new(&settings, 8, |_, disks| {
        Retry::new(Stripe::new(disks, 4096).unwrap(), RetryOptions::default()).unwrap()
    });
    bench.emulator(0).power_loss();
    let memory = bench.memory(2, 0);
    assert_eq!(bench.run(IoContainer::read(0, memory)).result, Ok(()));
    bench.emulator(0).hold(Commands::io());
    let error = Fault::new(Commands::io(), Effect::Status(Status::INTERNAL_ERROR)).times(1);
    bench.emulator(1).set_faults(Faults::default().with(error));
    bench.submit(IoContainer::flush());
    // Both have their commands, and the one that fails has failed.
    (0..100).for_each(|_| assert!(bench.turn().is_empty()));
    assert_eq!(bench.emulator(0).held().len(), 1);
    assert_eq!(bench.emulator(1).injections(), [1]);
    bench.emulator(0).release_all();
    let outcome = bench.settle().remove(0);
    assert_eq!(outcome.result.map_err(|failure| failure.cause), Err(Cause::CacheLost));
    assert_eq!(bench.run(IoContainer::flush()).result, Ok(()));
}

/// Of a request of a thousand chunks, there are a few children at a time.
#[test]
fn a_large_request_is_split_as_it_goes() {
    let mut bench = stripe(2, 8192, 1, 1024, "");
    let memory = bench.memory(4096, 1);
    bench.submit(IoContainer::write(0, memory));
    let mut most = 0;
    let mut before: u64 = 0;
    while bench.poller.outstanding() > 0 {
        let commands = bench.commands().into_iter().sum::<u64>();
        most = most.max(commands - before);
        before = commands;
        bench.turn();
    }
    assert!((1..=8).contains(&most), "{most} commands in one turn");
}

#[test]
fn an_atomic_request_lies_within_a_chunk() {
    let mut bench = stripe(2, 64, 4, 16, ",awupf=15");
    let memory = bench.memory(4, 1);
    assert_eq!(bench.run(IoContainer::write(4, memory).atomic(true)).result, Ok(()));
    let memory = bench.memory(4, 1);
    let outcome = bench.run(IoContainer::write(5, memory).atomic(true));
    assert_eq!(outcome.result, Err(Failure { lba: 5, cause: Cause::Refused }));
    assert_eq!(outcome.lba, 5);
}

/// A bad block of a leg, seen from above: in the first chunk of a request, in its middle, in the middle
/// of a child that takes several commands, in a request that lies within one chunk.
#[test]
fn failures_are_by_the_lba_of_the_stripe() {
    let cause = Cause::Status(Status::UNRECOVERED_READ_ERROR);
    for depth in [1, 2, 64] {
        // MDTS 1 is 2 blocks.
        let mut bench = stripe(3, 120, 12, depth, ",mdts=1");
        // Block 30 of leg 1 is in row 2, at 6: chunk 7 of the stripe.
        let weak = Commands::reads().lbas(30..31);
        let cause_is = Effect::Status(Status::UNRECOVERED_READ_ERROR);
        bench.emulator(1).set_faults(Faults::seeded(1).with(Fault::new(weak, cause_is)));
        let bad = 7 * 12 + 6;
        for (lba, blocks) in [(bad, 1), (bad - 6, 12), (bad - 2, 4), (0, 360), (bad - 40, 80), (bad, 13)] {
            let memory = bench.memory(blocks, 0);
            let outcome = bench.run(IoContainer::read(lba, memory));
            let failure = outcome.result.expect_err("a block that cannot be read");
            assert_eq!(failure, Failure { lba: bad, cause }, "{blocks} blocks from {lba} on");
            assert_eq!((outcome.lba, outcome.bytes.len()), (lba, blocks * 4096), "the container comes back");
        }
        // What does not touch it is not concerned.
        let memory = bench.memory(90, 0);
        assert_eq!(bench.run(IoContainer::read(0, memory)).result, Ok(()));
        assert_eq!(bench.poller.outstanding(), 0);
    }
}

#[test]
fn nothing_is_sent_after_a_failure() {
    let mut bench = stripe(2, 8192, 1, 64, "");
    let all = Fault::new(Commands::writes(), Effect::Status(Status::WRITE_FAULT));
    bench.emulator(0).set_faults(Faults::seeded(1).with(all));
    let memory = bench.memory(8192, 1);
    bench.submit(IoContainer::write(0, memory));
    for _ in 0..10 {
        assert!(bench.poll().is_empty());
        bench.emulator(0).step();
    }
    assert_eq!(bench.commands(), [4, 4]);
    assert_eq!(bench.settle()[0].result.unwrap_err().lba, 0);
    assert_eq!(bench.commands(), [4, 4]);
}

#[test]
fn a_leg_that_is_pulled_fails_what_it_has() {
    let mut bench = stripe(2, 4096, 2, 8, "");
    for tag in 0..4 {
        let memory = bench.memory(1000, 1);
        bench.submit(IoContainer::write(tag * 1000, memory).tag(tag));
    }
    for _ in 0..20 {
        assert!(bench.turn().is_empty());
    }
    drop(bench.emulators[1].take());
    let outcomes = bench.settle();
    assert_eq!(outcomes.len(), 4);
    for outcome in outcomes {
        let failure = outcome.result.unwrap_err();
        assert_eq!(failure.cause, Cause::ControllerLost);
        assert_eq!(failure.lba / 2 % 2, 1, "{failure} is not on the leg that was pulled");
        assert_eq!(failure.lba / 1000, outcome.tag);
    }
    // The other leg is still there, for what lies on it alone.
    let memory = bench.memory(2, 1);
    assert_eq!(bench.run(IoContainer::write(4, memory)).result, Ok(()));
    let memory = bench.memory(2, 1);
    let failure = bench.run(IoContainer::write(6, memory)).result.unwrap_err();
    assert_eq!(failure, Failure { lba: 6, cause: Cause::ControllerLost });
    assert_eq!(bench.run(IoContainer::flush()).result.unwrap_err().cause, Cause::ControllerLost);
}

#[test]
fn a_container_goes_round_in_place() {
    let mut bench = stripe(3, 64, 4, 2, "");
    let mut lba = 0;
    let memory = bench.memory(3, 7);
    bench.submit(IoContainer::write(0, memory));
    let mut rounds = 0;
    while bench.poller.outstanding() > 0 {
        bench.poller.poll(|mut done| {
            done.result().unwrap();
            assert_eq!(done.io().lba(), lba, "it comes back as it was");
            rounds += 1;
            lba = (lba + 1) % 180;
            if rounds < 400 {
                done.set_lba(lba);
                done.resubmit().unwrap();
            }
        });
        for leg in 0..3 {
            bench.emulator(leg).step();
        }
    }
    assert_eq!(rounds, 400);
}

#[test]
fn legs_that_do_not_go_together() {
    let space = DmaSpace::new().unwrap();
    let mut poller: Poller<Stripe<Partition<Disk>>> = Poller::with_layers(8);
    let mut leg = |settings: &str, space: &DmaSpace| {
        let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
        let controller = Controller::open(emulator.function(), space).unwrap();
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(2)).unwrap();
        let target = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        let disk = Disk::new(&poller, target).unwrap();
        (emulator, disk)
    };
    let (_a, a) = leg("size=1M", &space);
    let (_b, b) = leg("size=1M,block=512", &space);
    let (_c, c) = leg("size=1M", &DmaSpace::new().unwrap());
    let refused = |legs: Vec<Disk>, chunk| Stripe::new(legs, chunk).unwrap_err().to_string();
    assert_eq!(refused(vec![a], 4096), "a stripe has 2 to 64 legs, not 1");
    let error = refused(vec![a, b], 4096);
    assert_eq!(error, "leg 1 of a stripe has blocks of 512 bytes, leg 0 of 4096; format them alike");
    assert!(refused(vec![a, c], 4096).contains("open their controllers with one DmaSpace"));
    for chunk in [0, 512, 4097, 6000, 2 << 20] {
        let error = refused(vec![a, a], chunk);
        assert!(error.contains("choose a multiple of the block size, up to the smallest leg"), "{error}");
    }
    let small = Partition::new(a, 0..10).unwrap();
    let stripe = Stripe::new(vec![small, Partition::new(a, 100..256).unwrap()], 3 * 4096).unwrap();
    assert_eq!((stripe.geometry().blocks, stripe.chunk_bytes()), (18, 12288));
    let target = poller.add_layer(stripe).unwrap();
    let memory = space.allocate(19 * 4096).unwrap();
    assert!(poller.submit(target, IoContainer::read(0, memory)).is_err(), "beyond the end");
    assert!(poller.submit(target, IoContainer::read(0, MemoryChain::new())).is_err());
    assert_eq!(poller.outstanding(), 0);
}
