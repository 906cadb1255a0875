//! Requests that wait for the end of the turn: neighbours go down together, each gets its own data and its own failure.
#![allow(clippy::unwrap_used)]

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, DataForm, IoContainer, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Commands, Config, Emulator};
use proptest::prelude::*;

const BLOCKS: u64 = 256;
/// Fails whenever it is read.
const BAD: u64 = 77;

struct Bench {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller,
    queue: QueueId,
    disk: Target,
}

fn bench(depth: usize, data: DataForm, gather: bool) -> Bench {
    let config = format!("size=1M,block=4096,media=ram,mdts=5,sgl=on,read_error={BAD}");
    let emulator = Emulator::stepped(Config::parse(&config).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(512);
    let options = QueueOptions::default().depth(depth).data(data).gather(gather);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let mut bench = Bench { emulator, space, poller, queue, disk };
    for lba in 0..BLOCKS {
        let mut memory = bench.space.allocate(4096).unwrap();
        memory.fill(lba as u8);
        bench.poller.submit(bench.disk, IoContainer::write(lba, memory)).unwrap();
    }
    while bench.poller.outstanding() > 0 {
        bench.poller.poll(|done| done.result().unwrap());
        bench.emulator.step();
    }
    bench
}

fn holds(memory: &MemoryChain, lba: u64) -> bool {
    let data = memory.to_vec();
    data.chunks(4096).zip(lba..).all(|(block, lba)| block.iter().all(|byte| *byte == lba as u8))
}

proptest! {
    /// Each request goes through a row of LBAs, in place; some in rows of neighbours, some anywhere.
    #[test]
    fn every_request_reads_what_it_asked_for(
        depth in 1..9usize,
        sgl in any::<bool>(),
        gather in prop::bool::weighted(0.8),
        rounds in prop::collection::vec((0..BLOCKS, any::<bool>(), 0..8u64), 1..8),
        sizes in prop::collection::vec(prop_oneof![3 => Just(1usize), 1 => 1..4usize], 1..24),
    ) {
        let data = if sgl { DataForm::Sgl } else { DataForm::Prp };
        let mut bench = bench(depth, data, gather);
        let lba = |round: usize, tag: u64| {
            let (first, neighbours, apart) = rounds[round];
            let step = if neighbours { 1 } else { 3 + apart };
            (first + tag * step) % (BLOCKS - 4)
        };
        for (tag, size) in sizes.iter().enumerate() {
            let tag = tag as u64;
            let io = IoContainer::read(lba(0, tag), bench.space.allocate(size * 4096).unwrap());
            bench.poller.submit(bench.disk, io.tag(tag)).unwrap();
        }
        let mut at = vec![0; sizes.len()];
        for _ in 0..2000 {
            bench.poller.poll(|mut done| {
                let tag = done.io().get_tag();
                let round = &mut at[tag as usize];
                let first = lba(*round, tag);
                assert_eq!(done.io().lba(), first);
                let bad = (first..first + sizes[tag as usize] as u64).contains(&BAD);
                assert_eq!(done.result().is_err(), bad);
                assert!(bad || holds(done.io().memory(), first));
                *round += 1;
                if *round < rounds.len() {
                    done.set_lba(lba(*round, tag));
                    done.resubmit().unwrap();
                }
            });
            bench.emulator.step();
        }
        prop_assert_eq!(bench.poller.outstanding(), 0);
        prop_assert!(at.iter().all(|round| *round == rounds.len()));
    }
}

#[test]
fn neighbours_share_commands_and_others_are_not_delayed() {
    let polls_of = |gather: bool, step: u64| {
        let mut bench = bench(64, DataForm::Prp, gather);
        let (before, polls) = (bench.poller.stats(bench.queue), bench.poller.polls());
        for tag in 0..32 {
            let io = IoContainer::read(100 + tag * step, bench.space.allocate(4096).unwrap());
            bench.poller.submit(bench.disk, io).unwrap();
        }
        let mut rounds = 0;
        while bench.poller.outstanding() > 0 {
            let round = rounds / 32;
            bench.poller.poll(|done| {
                done.result().unwrap();
                rounds += 1;
                if round < 9 {
                    done.resubmit().unwrap();
                }
            });
            while bench.emulator.step() > 0 {}
        }
        let after = bench.poller.stats(bench.queue);
        (after.commands - before.commands, after.merges - before.merges, bench.poller.polls() - polls)
    };
    let (commands, merges, polls) = polls_of(true, 1);
    assert_eq!((commands, merges), (10, 310));
    assert_eq!(polls_of(false, 1), (320, 0, polls));
    assert_eq!(polls_of(true, 3), (320, 0, polls));
}

/// One whose memory is in two segments side by side goes down whole, but by the longer way.
#[test]
fn what_came_the_longer_way_goes_down_again_with_its_neighbours() {
    for data in [DataForm::Prp, DataForm::Sgl] {
        let mut bench = bench(64, data, true);
        for tag in 0..3 {
            let (mut memory, second) = bench.space.allocate(8192).unwrap().split_at(4096);
            memory.append(second);
            bench.poller.submit(bench.disk, IoContainer::read(20 * tag, memory).tag(tag)).unwrap();
        }
        let before = bench.poller.stats(bench.queue).commands;
        for round in 0..4 {
            bench.poller.poll(|mut done| {
                done.result().unwrap();
                let tag = done.io().get_tag();
                if round > 1 {
                    assert!(holds(done.io().memory(), 200 + 2 * tag));
                }
                done.set_lba(200 + 2 * tag);
                done.resubmit().unwrap();
            });
            while bench.emulator.step() > 0 {}
        }
        assert_eq!(bench.poller.stats(bench.queue).commands - before, 3 + 3, "{data:?}");
    }
}

/// A closure that panics in the middle of requests that shared a command: the others are delivered, also where
/// another queue has its turn first; and nothing of what was prepared for one queue goes down on another.
#[test]
fn a_panic_amid_merged_requests_loses_none_of_the_others() {
    let mut bench = bench(8, DataForm::Prp, true);
    for lba in 0..8 {
        let io = IoContainer::read(lba, bench.space.allocate(4096).unwrap()).tag(lba);
        bench.poller.submit(bench.disk, io).unwrap();
    }
    bench.poller.poll(|_| {});
    while bench.emulator.step() > 0 {}
    let mut seen = Vec::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bench.poller.poll(|mut done| {
            seen.push(done.io().get_tag());
            assert!(seen.len() < 3, "of the test");
            done.set_lba(done.io().lba() + 100);
            done.resubmit().unwrap();
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(bench.poller.stats(bench.queue).merges, 7);
    for _ in 0..100 {
        bench.poller.poll(|mut done| {
            let io = done.io();
            assert!(holds(io.memory(), io.lba()), "{io:?}");
            seen.push(io.get_tag());
            if io.lba() < 100 {
                done.set_lba(done.io().lba() + 100);
                done.resubmit().unwrap();
            }
        });
        bench.emulator.step();
    }
    assert_eq!(bench.poller.outstanding(), 0);
    seen.sort_unstable();
    // Each once, and all but the one that the panic took once more.
    let expected: Vec<u64> = (0..8).flat_map(|tag| vec![tag; if tag == 2 { 1 } else { 2 }]).collect();
    assert_eq!(seen, expected);
}

/// The next command that several share is completed before the poll that follows the panic.
#[test]
fn what_a_panic_left_is_delivered_though_more_came_first() {
    let mut bench = bench(8, DataForm::Prp, true);
    for lba in [0, 1, 2, 3, 100, 101, 102, 103] {
        let io = IoContainer::read(lba, bench.space.allocate(4096).unwrap());
        bench.poller.submit(bench.disk, io).unwrap();
    }
    bench.emulator.hold(Commands::reads().lbas(100..104));
    bench.poller.poll(|_| {});
    while bench.emulator.step() > 0 {}
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bench.poller.poll(|_| panic!("of the test"))
    }));
    assert!(panicked.is_err());
    bench.emulator.release_all();
    while bench.emulator.step() > 0 {}
    let mut seen = Vec::new();
    for _ in 0..3000 {
        bench.poller.poll(|done| {
            assert!(holds(done.io().memory(), done.io().lba()));
            seen.push(done.io().lba());
        });
        bench.emulator.step();
    }
    seen.sort_unstable();
    assert_eq!((seen, bench.poller.outstanding()), (vec![1, 2, 3, 100, 101, 102, 103], 0));
}

/// Between the panic and the next poll.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Submitted,
    Unplugged,
    Lost,
}

/// A closure panics when some have gone down again to share a command, which is not sent before the end of the turn.
#[test]
fn what_was_to_share_a_command_when_the_closure_panicked_is_carried_out_once() {
    for meanwhile in [Meanwhile::Submitted, Meanwhile::Unplugged, Meanwhile::Lost] {
        let mut bench = bench(8, DataForm::Prp, true);
        for lba in 0..6 {
            let io = IoContainer::read(lba, bench.space.allocate(4096).unwrap()).tag(lba);
            bench.poller.submit(bench.disk, io).unwrap();
        }
        bench.poller.poll(|_| {});
        while bench.emulator.step() > 0 {}
        let mut seen = 0;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bench.poller.poll(|mut done| {
                seen += 1;
                assert!(seen < 4, "of the test");
                done.set_lba(done.io().lba() + 100);
                done.resubmit().unwrap();
            })
        }));
        assert!(panicked.is_err());
        let mut lost = false;
        let mut expected = vec![4, 5, 100, 101, 102];
        match meanwhile {
            Meanwhile::Submitted => {
                let memory = bench.space.allocate(4096).unwrap();
                bench.poller.submit(bench.disk, IoContainer::read(200, memory)).unwrap();
                expected.push(200);
            }
            Meanwhile::Unplugged => {
                bench.poller.plug(bench.queue);
                for lba in [60, 61] {
                    let memory = bench.space.allocate(4096).unwrap();
                    bench.poller.submit(bench.disk, IoContainer::read(lba, memory)).unwrap();
                }
                bench.poller.unplug(bench.queue);
                expected.extend([60, 61]);
            }
            Meanwhile::Lost => {
                bench.emulator.unplug();
                lost = true;
            }
        }
        let mut completed = Vec::new();
        for _ in 0..200_000 {
            bench.poller.poll(|done| {
                let io = done.io();
                // What the panic found delivered has succeeded.
                assert_eq!(done.result().is_err(), lost && io.lba() >= 100);
                assert!(done.result().is_err() || holds(io.memory(), io.lba()));
                completed.push(io.lba());
            });
            if bench.poller.outstanding() == 0 {
                break;
            }
            bench.emulator.step();
        }
        completed.sort_unstable();
        expected.sort_unstable();
        assert_eq!((completed, bench.poller.outstanding()), (expected, 0), "{meanwhile:?}");
    }
}

/// The closure panics amid the requests of one queue, and then amid those of another.
#[test]
fn what_panics_left_in_several_queues_is_delivered() {
    let mut bench = bench(8, DataForm::Prp, true);
    let emulator = Emulator::stepped(Config::parse("size=1M,block=4096,media=ram").unwrap()).unwrap();
    let controller = Controller::open(emulator.function(), &bench.space).unwrap();
    let queue = bench.poller.add_queue(&controller, QueueOptions::default().gather(true)).unwrap();
    let disk = bench.poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    for tag in 0..8 {
        let io = IoContainer::read(tag / 2, bench.space.allocate(4096).unwrap()).tag(tag);
        let target = if tag % 2 == 0 { bench.disk } else { disk };
        bench.poller.submit(target, io).unwrap();
    }
    bench.poller.poll(|_| {});
    let mut seen = Vec::new();
    // The second queue first: in the poll after that it comes second.
    for emulator in [&emulator, &bench.emulator] {
        while emulator.step() > 0 {}
        let before = seen.len();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bench.poller.poll(|done| {
                seen.push(done.io().get_tag());
                assert!(seen.len() < before + 2, "of the test");
            })
        }));
        assert!(panicked.is_err());
    }
    for _ in 0..100 {
        bench.poller.poll(|done| seen.push(done.io().get_tag()));
        bench.emulator.step();
        emulator.step();
    }
    seen.sort_unstable();
    assert_eq!((seen, bench.poller.outstanding()), ((0..8).collect(), 0));
}

/// As many as fit go down again together; the next one has an LBA that no namespace has.
#[test]
fn an_lba_beyond_all_joins_no_command_that_is_full() {
    let config = "size=1M,block=512,media=ram,mdts=5";
    let emulator = Emulator::stepped(Config::parse(config).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(64);
    let options = QueueOptions::default().gather(true).max_transfer(8192);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    // Two pages in a command.
    for tag in 0..4u64 {
        let mut memory = space.allocate(4096).unwrap();
        memory.fill(1 + tag as u8);
        poller.submit(disk, IoContainer::write(8 * tag, memory).tag(tag)).unwrap();
    }
    poller.poll(|_| {});
    assert_eq!(poller.stats(queue).merges, 2);
    let mut refused = 0;
    for round in 0..100 {
        while emulator.step() > 0 {}
        poller.poll(|mut done| {
            if round > 0 {
                return;
            }
            let tag = done.io().get_tag();
            done.set_lba(if tag < 2 { 80 + 8 * tag } else { u64::MAX });
            refused += u32::from(done.resubmit().is_err());
        });
    }
    let memory = space.allocate(4096).unwrap();
    poller.submit(disk, IoContainer::read(96, memory)).unwrap();
    let mut found = None;
    for _ in 0..100 {
        poller.poll(|done| found = Some(done.io().memory().to_vec()[0]));
        emulator.step();
    }
    assert_eq!((refused, found), (2, Some(0)), "nothing was written behind the two pages");
}

/// What has Force Unit Access shares no command, the first time and any other.
#[test]
fn fua_goes_down_alone_each_time() {
    let mut bench = bench(64, DataForm::Prp, true);
    let before = bench.poller.stats(bench.queue);
    for tag in 0..8 {
        let io = IoContainer::read(100 + tag, bench.space.allocate(4096).unwrap()).fua(true);
        bench.poller.submit(bench.disk, io).unwrap();
    }
    let mut rounds = 0;
    while bench.poller.outstanding() > 0 {
        bench.poller.poll(|done| {
            done.result().unwrap();
            rounds += 1;
            if rounds <= 16 {
                done.resubmit().unwrap();
            }
        });
        while bench.emulator.step() > 0 {}
    }
    let after = bench.poller.stats(bench.queue);
    assert_eq!((after.commands - before.commands, after.merges - before.merges), (24, 0));
}
