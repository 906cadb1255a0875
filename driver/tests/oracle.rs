//! Containers of any size and shape against a plain array: what is written is what is read, every
//! request completes exactly once, and nothing is left over.
#![allow(clippy::unwrap_used)]

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, DataForm, Done, IoContainer, Operation, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Config, Emulator};
use proptest::prelude::*;

/// Requests of one round go to lanes of this many blocks each, so that none overlaps another:
/// commands in flight together are not ordered.
const LANE: u64 = 1200;
const LANES: u64 = 6;

#[derive(Debug, Clone)]
struct Setup {
    block: usize,
    mdts: u8,
    data: DataForm,
    depth: usize,
    max_transfer: u64,
    /// CAP.MQES: queues of this many entries and one.
    mqes: u16,
}

#[derive(Debug, Clone)]
struct Request {
    operation: Operation,
    skip: u64,
    blocks: u64,
    shape: Shape,
    fua: bool,
}

/// How the memory of a request is laid out.
#[derive(Debug, Clone)]
enum Shape {
    /// One segment, which begins this many bytes (a multiple of 4) into a page.
    One(usize),
    /// Segments of whole pages, not adjacent, the first of which begins inside its page.
    Pages(Vec<usize>, usize),
    /// Cut at these places, in blocks: joints that no PRP list can express, between blocks.
    Blocks(Vec<usize>),
    /// Cut anywhere at multiples of 4 bytes.
    Anywhere(Vec<usize>),
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop_oneof![Just(512), Just(4096)],
        prop_oneof![Just(0u8), 1..6u8],
        prop_oneof![Just(DataForm::Prp), Just(DataForm::Sgl)],
        1..6usize,
        prop_oneof![Just(2u64 << 20), Just(8 << 20), Just(64 << 10)],
        prop_oneof![Just(1u16), Just(2), Just(4), Just(255)],
    )
        .prop_map(|(block, mdts, data, depth, max_transfer, mqes)| Setup {
            block,
            mdts,
            data,
            depth,
            max_transfer,
            mqes,
        })
}

fn request() -> impl Strategy<Value = Request> {
    let operation = prop_oneof![
        4 => Just(Operation::Write),
        4 => Just(Operation::Read),
        1 => Just(Operation::WriteZeroes),
        1 => Just(Operation::Deallocate),
        1 => Just(Operation::Flush),
    ];
    let cuts = || proptest::collection::vec(1..64usize, 1..6);
    let shape = prop_oneof![
        (0..1024usize).prop_map(|offset| Shape::One(offset * 4)),
        (cuts(), 0..1024usize).prop_map(|(pages, offset)| Shape::Pages(pages, offset * 4)),
        cuts().prop_map(Shape::Blocks),
        cuts().prop_map(Shape::Anywhere),
    ];
    (operation, 0..100u64, prop_oneof![1..20u64, 1..1000u64], shape, any::<bool>())
        .prop_map(|(operation, skip, blocks, shape, fua)| Request { operation, skip, blocks, shape, fua })
}

/// Memory of `len` bytes in a given shape. Segments are allocated in pairs of which one is dropped
/// in the end, so that neighbours in the chain are not neighbours in IOVA.
fn memory(space: &DmaSpace, len: usize, shape: &Shape, block: usize) -> MemoryChain {
    let mut gaps = Vec::new();
    let mut piece = |len: usize, offset: usize| {
        let whole = space.allocate(offset + len).unwrap();
        gaps.push(space.allocate(4096).unwrap());
        if offset == 0 { whole } else { whole.split_at(offset).1 }
    };
    let (unit, sizes, offset) = match shape {
        Shape::One(offset) => return piece(len, *offset),
        Shape::Pages(pages, offset) => (4096, pages, *offset),
        Shape::Blocks(blocks) => (block, blocks, 0),
        Shape::Anywhere(words) => (4, words, 0),
    };
    let mut chain = MemoryChain::new();
    for (i, size) in sizes.iter().enumerate() {
        let left = len - chain.len();
        // The first piece of whole pages ends on a page.
        let offset = if i == 0 { offset } else { 0 };
        let size = (size * unit - if offset > 0 { offset } else { 0 }).min(left);
        if size > 0 {
            chain.append(piece(size, offset));
        }
    }
    let left = len - chain.len();
    if left > 0 {
        chain.append(piece(left, 0));
    }
    chain
}

fn run(setup: &Setup, rounds: &[Vec<Request>]) -> Result<(), TestCaseError> {
    let Setup { block, mdts, data, depth, max_transfer, mqes } = setup.clone();
    let size = LANE * LANES * block as u64;
    let text = format!("size={size},block={block},media=ram,mdts={mdts},sgl=on,mqes={mqes}");
    let emulator = Emulator::stepped(Config::parse(&text).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(16);
    let options = QueueOptions::default().depth(depth).data(data).max_transfer(max_transfer);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let mut model = vec![0u8; (LANE * LANES) as usize * block];
    let mut seed = 0u8;
    for round in rounds {
        let mut expected: Vec<Option<Vec<u8>>> = Vec::new();
        for (lane, request) in round.iter().enumerate() {
            let lba = lane as u64 * LANE + request.skip;
            let range = lba as usize * block..(lba + request.blocks) as usize * block;
            let shape = &request.shape;
            let io = match request.operation {
                Operation::Read => {
                    expected.push(Some(model[range.clone()].to_vec()));
                    IoContainer::read(lba, memory(&space, range.len(), shape, block))
                }
                Operation::Write => {
                    expected.push(None);
                    let mut chain = memory(&space, range.len(), shape, block);
                    seed = seed.wrapping_add(1);
                    let bytes: Vec<u8> =
                        (0..range.len()).map(|i| (i as u8).wrapping_mul(7) ^ (i >> 8) as u8 ^ seed).collect();
                    chain.copy_from_slice(0, &bytes);
                    model[range].copy_from_slice(&bytes);
                    IoContainer::write(lba, chain)
                }
                Operation::WriteZeroes | Operation::Deallocate => {
                    expected.push(None);
                    model[range].fill(0);
                    match request.operation {
                        Operation::WriteZeroes => IoContainer::write_zeroes(lba, request.blocks),
                        _ => IoContainer::deallocate(lba, request.blocks),
                    }
                }
                Operation::Flush | Operation::Raw => {
                    expected.push(None);
                    IoContainer::flush()
                }
            };
            let fua = request.fua && matches!(request.operation, Operation::Read | Operation::Write);
            poller
                .submit(disk, io.tag(lane as u64).fua(fua))
                .map_err(|e| TestCaseError::fail(e.to_string()))?;
        }
        let mut done = vec![None; round.len()];
        let mut polls = 0;
        while poller.outstanding() > 0 {
            let mut twice = false;
            poller.poll(|finished| {
                let result = finished.result();
                let io = finished.take();
                let at = io.get_tag() as usize;
                twice |= done[at].replace((result, io.into_memory().to_vec())).is_some();
            });
            prop_assert!(!twice, "a request completed twice");
            emulator.step();
            polls += 1;
            prop_assert!(polls < 100_000, "requests never complete");
        }
        for (done, expected) in done.into_iter().zip(expected) {
            let (result, bytes) = done.expect("completed");
            prop_assert_eq!(result, Ok(()));
            if let Some(expected) = expected {
                prop_assert!(bytes == expected, "read other data than was written");
            }
        }
    }
    prop_assert_eq!(poller.stats(queue).faults, 0);
    let counters = emulator.counters();
    prop_assert_eq!(counters.bad_doorbells, 0);
    prop_assert_eq!(counters.full_queues, 0, "completions had to wait for room");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn what_is_written_is_what_is_read(
        setup in setup(),
        rounds in proptest::collection::vec(proptest::collection::vec(request(), 1..=LANES as usize), 1..12),
    ) {
        run(&setup, &rounds)?;
    }
}

#[test]
fn a_large_request_on_a_shallow_queue_is_one_request() {
    let emulator = Emulator::stepped(Config::parse("size=256M,block=512,media=ram,mdts=1").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(1);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(2)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    poller.submit(disk, IoContainer::read(0, space.allocate(128 << 20).unwrap())).unwrap();
    let mut done = 0;
    while poller.outstanding() > 0 {
        poller.poll(|finished| {
            finished.result().unwrap();
            done += 1;
        });
        emulator.step();
    }
    assert_eq!(done, 1);
    // MDTS 1 is 8 KiB.
    assert_eq!(poller.stats(queue).commands, (128 << 20) / 8192);
}

#[test]
fn a_container_goes_round_in_place() {
    let (emulator, space, mut poller, disk, _) = disk("size=16M,block=512,media=ram");
    // More requests than slots, so that some wait; each writes, reads back, and moves on.
    for tag in 0..8u64 {
        let mut memory = space.allocate(4096).unwrap();
        memory.fill(tag as u8);
        poller.submit(disk, IoContainer::write(tag * 8, memory).tag(tag)).unwrap();
    }
    let mut rounds = [0u64; 8];
    run_until_idle(&emulator, &mut poller, |mut done| {
        let mut io = done.in_place();
        let tag = io.get_tag() as usize;
        let pattern = tag as u8 ^ (rounds[tag] as u8) << 4;
        match io.operation() {
            Operation::Write => {
                io.data_mut().for_each(|data| data.fill(0xee));
                io.set_operation(Operation::Read);
            }
            _ => {
                assert!(io.data_mut().all(|data| data.iter().all(|byte| *byte == pattern)));
                rounds[tag] += 1;
                if rounds[tag] == 100 {
                    return;
                }
                let pattern = tag as u8 ^ (rounds[tag] as u8) << 4;
                io.data_mut().for_each(|data| data.fill(pattern));
                io.set_operation(Operation::Write);
                io.set_lba((rounds[tag] * 8 + tag as u64) * 8);
            }
        }
        done.resubmit().unwrap();
    });
    assert_eq!(rounds, [100; 8]);
}

/// A deallocate that is used again for other blocks deallocates those.
#[test]
fn a_deallocate_goes_round_in_place() {
    let (emulator, space, mut poller, disk, _) = disk("size=1M,block=4096,media=ram");
    let mut memory = space.allocate(16 * 4096).unwrap();
    memory.fill(7);
    poller.submit(disk, IoContainer::write(0, memory)).unwrap();
    run_until_idle(&emulator, &mut poller, |_| {});
    poller.submit(disk, IoContainer::deallocate(0, 2)).unwrap();
    run_until_idle(&emulator, &mut poller, |mut done| {
        if done.io().lba() < 8 {
            let lba = done.io().lba() + 4;
            done.set_lba(lba);
            done.resubmit().unwrap();
        }
    });
    poller.submit(disk, IoContainer::read(0, space.allocate(16 * 4096).unwrap())).unwrap();
    run_until_idle(&emulator, &mut poller, |done| {
        for (lba, block) in done.take().into_memory().to_vec().chunks(4096).enumerate() {
            let expected = if lba < 12 && lba % 4 < 2 { 0 } else { 7 };
            assert!(block.iter().all(|byte| *byte == expected), "block {lba}");
        }
    });
}

#[test]
fn commands_end_at_the_optimal_boundary() {
    let (emulator, space, mut poller, disk, queue) = disk("size=1M,block=4096,media=ram,noiob=8");
    poller.submit(disk, IoContainer::read(4, space.allocate(16 * 4096).unwrap())).unwrap();
    run_until_idle(&emulator, &mut poller, |_| {});
    assert_eq!(poller.stats(queue).commands, 3);
    // In place: within a boundary, across one, and within one again.
    poller.submit(disk, IoContainer::read(0, space.allocate(8 * 4096).unwrap())).unwrap();
    let mut lbas = vec![32, 20, 16];
    run_until_idle(&emulator, &mut poller, |mut done| {
        if let Some(lba) = lbas.pop() {
            done.set_lba(lba);
            done.resubmit().unwrap();
        }
    });
    assert_eq!(poller.stats(queue).commands, 3 + 1 + 1 + 2 + 1);
}

fn disk(settings: &str) -> (Emulator, DmaSpace, Poller, Target, QueueId) {
    let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(8);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(4)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    (emulator, space, poller, disk, queue)
}

fn run_until_idle(emulator: &Emulator, poller: &mut Poller, mut f: impl FnMut(Done<'_>)) {
    while poller.outstanding() > 0 {
        poller.poll(|done| {
            done.result().unwrap();
            f(done);
        });
        emulator.step();
    }
}

#[test]
fn what_has_no_memory_may_take_many_commands() {
    let (emulator, _, mut poller, disk, queue) = disk("size=4M,block=512,media=ram,wzsl=1,dmrsl=100");
    poller.submit(disk, IoContainer::write_zeroes(3, 1000)).unwrap();
    poller.submit(disk, IoContainer::deallocate(3, 1000)).unwrap();
    run_until_idle(&emulator, &mut poller, |_| {});
    // WZSL 1 is 16 blocks.
    assert_eq!(poller.stats(queue).commands, 1000_u64.div_ceil(16) + 10);
}
