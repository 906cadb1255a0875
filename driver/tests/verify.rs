//! The layer that checks what is read: it finds what changed behind its back, at the right block, and
//! never takes for corruption what is none.
#![allow(clippy::unwrap_used)]

use kiovec::layer::{Checks, Disk, Layer, Partition, Retry, RetryOptions, Trace, Verifier, Verify};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::Status;
use kiovec::{
    Cause, Controller, DataForm, Error, Failure, IoContainer, Operation, Poller, QueueOptions, Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use proptest::prelude::*;

/// A stack on an emulated disk, and the disk itself: the way behind the stack's back.
struct Bench<L: Layer> {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<L>,
    disk: Target,
    stack: Target,
    block: usize,
}

impl<L: Layer> Bench<L> {
    fn new(settings: &str, options: QueueOptions, build: impl FnOnce(Disk) -> L) -> Bench<L> {
        let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
        let space = DmaSpace::new().unwrap();
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let mut poller = Poller::with_layers(64);
        let queue = poller.add_queue(&controller, options).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        let stack = build(Disk::new(&poller, disk).unwrap());
        let stack = poller.add_layer(stack).unwrap();
        let block = poller.geometry(disk).unwrap().block_size();
        Bench { emulator, space, poller, disk, stack, block }
    }

    /// So many blocks, each with other contents, all of which follow from `seed`.
    fn pattern(&self, blocks: usize, seed: u8) -> MemoryChain {
        let mut memory = self.space.allocate(blocks * self.block).unwrap();
        let bytes: Vec<u8> =
            (0..memory.len()).map(|i| (i as u8).wrapping_mul(5) ^ (i / self.block) as u8 ^ seed).collect();
        memory.copy_from_slice(0, &bytes);
        memory
    }

    fn write(&self, lba: u64, blocks: usize, seed: u8) -> IoContainer {
        IoContainer::write(lba, self.pattern(blocks, seed))
    }

    fn read(&self, lba: u64, blocks: usize) -> IoContainer {
        IoContainer::read(lba, self.space.allocate(blocks * self.block).unwrap())
    }

    /// Submits requests together; their results and contents, in the order in which they are given.
    fn all<const N: usize>(
        &mut self,
        target: Target,
        ios: [IoContainer; N],
    ) -> [(Result<(), Failure>, Vec<u8>); N] {
        for (tag, io) in (0..).zip(ios) {
            self.poller.submit(target, io.tag(tag)).unwrap();
        }
        let mut done = [const { None }; N];
        while self.poller.outstanding() > 0 {
            self.poller.poll(|finished| {
                let result = finished.result();
                let io = finished.take();
                let at = io.get_tag() as usize;
                assert!(done[at].replace((result, io.into_memory().to_vec())).is_none(), "completed twice");
            });
            self.emulator.step();
        }
        done.map(Option::unwrap)
    }

    fn one(&mut self, io: IoContainer) -> (Result<(), Failure>, Vec<u8>) {
        let stack = self.stack;
        let [done] = self.all(stack, [io]);
        done
    }

    fn behind(&mut self, io: IoContainer) -> Vec<u8> {
        let disk = self.disk;
        let [(result, data)] = self.all(disk, [io]);
        result.unwrap();
        data
    }
}

impl<B: Layer> Bench<Verify<B>> {
    fn checks(&self) -> Checks {
        *self.poller.layer(self.stack).unwrap().filter().checks()
    }

    /// Reads blocks one by one: which of them were checked.
    fn known(&mut self, lbas: std::ops::Range<u64>) -> Vec<bool> {
        lbas.map(|lba| {
            let before = self.checks().checked;
            let read = self.read(lba, 1);
            self.one(read).0.unwrap();
            self.checks().checked > before
        })
        .collect()
    }
}

fn plain(settings: &str) -> Bench<Verify<Disk>> {
    Bench::new(settings, QueueOptions::default(), |disk| Verify::new(disk).unwrap())
}

const DISK: &str = "size=4M,block=4096,media=ram";

fn corrupt(lba: u64) -> Result<(), Failure> {
    Err(Failure { lba, cause: Cause::Corrupt })
}

#[test]
fn what_changed_behind_its_back_is_found_at_its_block() {
    for settings in ["size=4M,block=512,media=ram", DISK, "size=4M,block=16384,media=ram,mdts=3"] {
        let mut bench = Bench::new(settings, QueueOptions::default().depth(2), |disk| {
            Verify::new(Partition::new(disk, 32..160).unwrap()).unwrap()
        });
        let (write, expected) = (bench.write(8, 64, 1), bench.pattern(64, 1).to_vec());
        assert_eq!(bench.one(write).0, Ok(()));
        let read = bench.read(8, 64);
        assert_eq!(bench.one(read), (Ok(()), expected.clone()));
        assert_eq!(bench.checks(), checks(64, 64, 0, 0));
        // Blocks 20 and 50 of the partition: one bit, and another block's contents.
        let mut bent = bench.behind(bench.read(32 + 20, 1));
        bent[bench.block - 1] ^= 0x10;
        let mut memory = bench.space.allocate(bench.block).unwrap();
        memory.copy_from_slice(0, &bent);
        bench.behind(IoContainer::write(32 + 20, memory));
        let mut memory = bench.space.allocate(bench.block).unwrap();
        memory.copy_from_slice(0, &expected[..bench.block]);
        bench.behind(IoContainer::write(32 + 50, memory));
        // The first of them is reported, both are counted, and the data are what is there.
        let read = bench.read(8, 64);
        let (result, data) = bench.one(read);
        assert_eq!(result, corrupt(20));
        assert_eq!(data[12 * bench.block..][..bench.block], bent[..]);
        assert_eq!(bench.checks(), checks(64, 128, 0, 2));
        for (lba, blocks, result) in [(21, 29, Ok(())), (21, 30, corrupt(50)), (20, 1, corrupt(20))] {
            let read = bench.read(lba, blocks);
            assert_eq!(bench.one(read).0, result);
        }
        // Written through it again, they are right again.
        let write = bench.write(20, 31, 2);
        assert_eq!(bench.one(write).0, Ok(()));
        let read = bench.read(8, 64);
        assert_eq!(bench.one(read).0, Ok(()));
    }
}

fn checks(stamped: u64, checked: u64, unchecked: u64, mismatches: u64) -> Checks {
    let mut checks = Checks::default();
    (checks.stamped, checks.checked, checks.unchecked, checks.mismatches) =
        (stamped, checked, unchecked, mismatches);
    checks
}

#[test]
fn blocks_that_nothing_was_written_to_are_not_checked() {
    let mut bench = plain(DISK);
    bench.behind(bench.write(0, 16, 1));
    let writes = [bench.write(4, 2, 2), IoContainer::write_zeroes(8, 4), bench.write(12, 4, 3)];
    let stack = bench.stack;
    assert!(bench.all(stack, writes).iter().all(|done| done.0.is_ok()));
    assert_eq!(bench.one(IoContainer::deallocate(10, 4)).0, Ok(()));
    assert_eq!(bench.one(IoContainer::flush()).0, Ok(()));
    let read = bench.read(0, 16);
    assert_eq!(bench.one(read).0, Ok(()));
    assert_eq!(bench.checks(), checks(10, 6, 10, 0));
    let expected =
        [[false; 4], [true, true, false, false], [true, true, false, false], [false, false, true, true]];
    assert_eq!(bench.known(0..16), expected.as_flattened());
    // What is not zero any more, is noticed.
    bench.behind(bench.write(9, 1, 7));
    let read = bench.read(8, 4);
    assert_eq!(bench.one(read).0, corrupt(9));
}

#[test]
fn blocks_of_a_write_that_failed_are_unknown_from_there_on() {
    let settings = format!("{DISK},mdts=1");
    let mut bench =
        Bench::new(&settings, QueueOptions::default().depth(1), |disk| Verify::new(disk).unwrap());
    let write = bench.write(0, 16, 1);
    assert_eq!(bench.one(write).0, Ok(()));
    // Commands of two blocks; that for blocks 6 and 7 fails, and no further one is sent.
    let bad = Fault::new(Commands::writes().lbas(7..8), Effect::Status(Status::WRITE_FAULT)).once();
    bench.emulator.set_faults(Faults::default().with(bad));
    let write = bench.write(2, 12, 2);
    let failure = Failure { lba: 6, cause: Cause::Status(Status::WRITE_FAULT) };
    assert_eq!(bench.one(write).0, Err(failure));
    let expected = [[true; 4], [true, true, false, false], [false; 4], [false, false, true, true]];
    assert_eq!(bench.known(0..16), expected.as_flattened());
    // A read that fails is checked up to where it did.
    let bad = Fault::new(Commands::reads().lbas(4..5), Effect::Status(Status::UNRECOVERED_READ_ERROR));
    bench.emulator.set_faults(Faults::default().with(bad));
    let before = bench.checks();
    let read = bench.read(0, 16);
    assert_eq!(bench.one(read).0.unwrap_err().lba, 4);
    assert_eq!(bench.checks().checked - before.checked, 4);
    bench.behind(bench.write(2, 1, 9));
    let read = bench.read(0, 16);
    assert_eq!(bench.one(read).0, corrupt(2));
}

#[test]
fn writes_in_flight_together_leave_what_they_share_unknown() {
    let mut bench = plain(DISK);
    let (stack, writes) = (bench.stack, [bench.write(0, 8, 1), bench.write(6, 4, 2)]);
    assert!(bench.all(stack, writes).iter().all(|done| done.0.is_ok()));
    let expected = [true, true, true, true, true, true, false, false, true, true, false];
    assert_eq!(bench.known(0..11), expected);
    // A deallocate and a write of zeros are writes as well.
    let ios = [
        IoContainer::write_zeroes(0, 4),
        IoContainer::deallocate(2, 1),
        bench.write(3, 2, 3),
        bench.write(5, 1, 4),
    ];
    assert!(bench.all(stack, ios).iter().all(|done| done.0.is_ok()));
    assert_eq!(bench.known(0..7), [true, true, false, false, true, true, false]);
    // One alone makes them known.
    let write = bench.write(0, 8, 5);
    assert_eq!(bench.one(write).0, Ok(()));
    assert_eq!(bench.known(0..8), [true; 8]);
}

#[test]
fn a_read_in_flight_with_a_write_is_not_checked_where_they_meet() {
    // Whichever is submitted first, and whichever comes up first.
    for read_first in [false, true] {
        for slow in [Commands::reads(), Commands::writes()] {
            let mut bench = plain(DISK);
            let write = bench.write(0, 8, 1);
            assert_eq!(bench.one(write).0, Ok(()));
            let delay = Fault::new(slow, Effect::DelaySteps(5)).once();
            bench.emulator.set_faults(Faults::default().with(delay));
            let (stack, write, read) = (bench.stack, bench.write(2, 2, 2), bench.read(0, 8));
            let ios = if read_first { [read, write] } else { [write, read] };
            let done = bench.all(stack, ios);
            assert!(done.iter().all(|done| done.0.is_ok()), "{done:?}");
            assert_eq!(bench.checks(), checks(10, 6, 2, 0));
            assert_eq!(bench.known(0..8), [true; 8]);
        }
    }
}

#[test]
fn a_table_that_would_be_too_large_is_refused() {
    let build = |disk: Disk| match Verify::new(disk) {
        Ok(_) => panic!("a table of 16 GiB"),
        Err(error) => {
            assert!(matches!(error, Error::InvalidInput(_)) && error.to_string().contains("2147483648"));
            Verify::new(Partition::new(disk, 5..5 + 1000).unwrap()).unwrap()
        }
    };
    let mut bench = Bench::new("size=1T,block=512,media=null", QueueOptions::default(), build);
    assert_eq!(Verifier::MAX_BLOCKS, 1 << 28);
    assert_eq!(bench.known(999..1000), [false]);
}

/// A request of a random workload.
#[derive(Debug, Clone)]
struct Step {
    operation: Operation,
    lba: u64,
    blocks: u64,
    pieces: Vec<usize>,
    /// Steps of the controller before the next request.
    pause: usize,
}

const BLOCKS: u64 = 64;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operation = prop_oneof![
        5 => Just(Operation::Write),
        6 => Just(Operation::Read),
        1 => Just(Operation::WriteZeroes),
        1 => Just(Operation::Deallocate),
        1 => Just(Operation::Flush),
    ];
    let pieces = proptest::collection::vec(1..40usize, 0..4);
    let step = (operation, 0..BLOCKS, 1..24u64, pieces, prop_oneof![3 => Just(0usize), 2 => 1..6usize])
        .prop_map(|(operation, lba, blocks, pieces, pause)| Step {
            operation,
            lba,
            blocks: blocks.min(BLOCKS - lba),
            pieces,
            pause,
        });
    proptest::collection::vec(step, 1..80)
}

/// Memory in several segments, cut at multiples of 64 bytes.
fn scattered(space: &DmaSpace, len: usize, pieces: &[usize]) -> MemoryChain {
    let mut chain = MemoryChain::new();
    for piece in pieces {
        let room = (piece * 64).min(len - chain.len());
        if room > 0 {
            chain.append(space.allocate(room).unwrap());
        }
    }
    if chain.len() < len {
        chain.append(space.allocate(len - chain.len()).unwrap());
    }
    chain
}

/// Runs requests that overlap, complete in any order and may fail, and returns how many did.
fn run<L: Layer>(bench: &mut Bench<L>, steps: &[Step]) -> Result<u64, TestCaseError> {
    let mut failed = 0;
    let mut corrupt = None;
    let mut poll = |bench: &mut Bench<L>| {
        bench.poller.poll(|done| {
            if let Err(failure) = done.result() {
                failed += 1;
                corrupt = corrupt.or((failure.cause == Cause::Corrupt).then_some(failure));
            }
        });
        bench.emulator.step();
    };
    for (seed, step) in (1..).zip(steps) {
        let len = step.blocks as usize * bench.block;
        let io = match step.operation {
            Operation::Write => {
                let mut chain = scattered(&bench.space, len, &step.pieces);
                chain.copy_from_slice(0, &bench.pattern(step.blocks as usize, seed).to_vec());
                IoContainer::write(step.lba, chain)
            }
            Operation::Read => IoContainer::read(step.lba, scattered(&bench.space, len, &step.pieces)),
            Operation::WriteZeroes => IoContainer::write_zeroes(step.lba, step.blocks),
            Operation::Deallocate => IoContainer::deallocate(step.lba, step.blocks),
            _ => IoContainer::flush(),
        };
        while bench.poller.outstanding() >= 60 {
            poll(bench);
        }
        bench.poller.submit(bench.stack, io).map_err(|e| TestCaseError::fail(e.to_string()))?;
        (0..step.pause).for_each(|_| poll(bench));
    }
    let mut polls = 0;
    while bench.poller.outstanding() > 0 {
        poll(bench);
        polls += 1;
        prop_assert!(polls < 100_000, "requests never complete");
    }
    prop_assert_eq!(corrupt, None);
    Ok(failed)
}

/// Every block that is known is what is there; and one that is written alone is known.
fn settle<L: Layer>(bench: &mut Bench<L>) -> Result<(), TestCaseError> {
    bench.emulator.set_faults(Faults::default());
    let read = bench.read(0, BLOCKS as usize);
    prop_assert_eq!(bench.one(read).0, Ok(()));
    let (write, expected) = (bench.write(0, BLOCKS as usize, 0xaa), bench.pattern(BLOCKS as usize, 0xaa));
    prop_assert_eq!(bench.one(write).0, Ok(()));
    let read = bench.read(0, BLOCKS as usize);
    prop_assert_eq!(bench.one(read), (Ok(()), expected.to_vec()));
    Ok(())
}

fn options() -> impl Strategy<Value = (String, QueueOptions)> {
    (0..3u8, prop_oneof![Just(1usize), 2..8usize, Just(64)], any::<bool>(), any::<bool>()).prop_map(
        |(mdts, depth, sgl, merge)| {
            let (form, sgl) = if sgl { (DataForm::Sgl, "on") } else { (DataForm::Prp, "off") };
            let settings = format!("size=4M,block=512,media=ram,awupf=255,mdts={mdts},sgl={sgl}");
            (settings, QueueOptions::default().depth(depth).data(form).merge(merge))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Overlapping requests, in any order, some of which fail: never a false alarm, above or below retries.
    #[test]
    fn there_are_no_false_alarms(
        (settings, options) in options(),
        steps in steps(),
        seed in any::<u64>(),
        one_in in prop_oneof![Just(None), (2..20u32).prop_map(Some)],
        times in 0..4u32,
    ) {
        let mut faults = Faults::seeded(seed).random_order();
        if let Some(one_in) = one_in {
            faults = faults.with(Fault::new(Commands::io(), Effect::Status(Status::INTERNAL_ERROR)).one_in(one_in));
        }
        let retry = RetryOptions::default().times(times);
        let mut above = Bench::new(&settings, options, |disk| {
            let part = Partition::new(disk, 100..100 + BLOCKS).unwrap();
            Retry::new(Trace::new(Verify::new(part).unwrap()), retry).unwrap()
        });
        above.emulator.set_faults(faults.clone());
        let failed = run(&mut above, &steps)?;
        prop_assert!(one_in.is_some() || failed == 0);
        settle(&mut above)?;
        let verify = above.poller.layer(above.stack).unwrap().below().below();
        prop_assert!(verify.filter().checks().checked >= BLOCKS);

        let mut below = Bench::new(&settings, options, |disk| {
            let retried = Retry::new(disk, retry).unwrap();
            Verify::new(Partition::new(retried, 100..100 + BLOCKS).unwrap()).unwrap()
        });
        below.emulator.set_faults(faults);
        let failed = run(&mut below, &steps)?;
        prop_assert!(one_in.is_some() || failed == 0);
        settle(&mut below)?;
        prop_assert_eq!(below.checks().mismatches, 0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    Nothing,
    Seed(u8, usize),
    Zeros,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One request after another: exactly those blocks are checked that are known, and what is read is
    /// what was written.
    #[test]
    fn what_is_known_is_checked((settings, options) in options(), steps in steps()) {
        let mut bench = Bench::new(&settings, options, |disk| {
            Trace::new(Verify::new(Partition::new(disk, 7..7 + BLOCKS).unwrap()).unwrap())
        });
        let mut model = [Known::Nothing; BLOCKS as usize];
        let (mut checked, mut unchecked) = (0, 0);
        for (seed, step) in (1..).zip(&steps) {
            let range = step.lba as usize..(step.lba + step.blocks) as usize;
            let known = &mut model[range];
            let io = match step.operation {
                Operation::Write => {
                    known.iter_mut().zip(0..).for_each(|(known, i)| *known = Known::Seed(seed, i));
                    bench.write(step.lba, step.blocks as usize, seed)
                }
                Operation::WriteZeroes => {
                    known.fill(Known::Zeros);
                    IoContainer::write_zeroes(step.lba, step.blocks)
                }
                Operation::Deallocate => {
                    known.fill(Known::Nothing);
                    IoContainer::deallocate(step.lba, step.blocks)
                }
                Operation::Read => {
                    let count = known.iter().filter(|known| **known != Known::Nothing).count() as u64;
                    (checked, unchecked) = (checked + count, unchecked + step.blocks - count);
                    IoContainer::read(step.lba, scattered(&bench.space, step.blocks as usize * bench.block, &step.pieces))
                }
                _ => IoContainer::flush(),
            };
            let (result, data) = bench.one(io);
            prop_assert_eq!(result, Ok(()));
            if step.operation == Operation::Read {
                for (block, known) in data.chunks(bench.block).zip(&model[step.lba as usize..]) {
                    match known {
                        Known::Seed(seed, i) => {
                            let whole = bench.pattern(i + 1, *seed).to_vec();
                            prop_assert!(block == &whole[i * bench.block..]);
                        }
                        Known::Zeros => prop_assert!(block.iter().all(|byte| *byte == 0)),
                        Known::Nothing => {}
                    }
                }
            }
        }
        let checks = bench.poller.layer(bench.stack).unwrap().below().filter().checks();
        prop_assert_eq!((checks.checked, checks.unchecked, checks.mismatches), (checked, unchecked, 0));
    }
}

/// A part of a read is not known to be right before the layer has looked at all of it.
#[test]
fn a_part_that_is_corrupt_is_never_said_to_have_succeeded() {
    let mut bench = plain("size=1M,block=4096,media=ram,mdts=1");
    let (write, spoiled) = (bench.write(0, 8, 1), bench.write(1, 1, 2));
    bench.one(write).0.unwrap();
    bench.behind(spoiled);
    bench.emulator.hold(Commands::reads().lbas(6..));
    let read = bench.read(0, 8);
    let request = bench.poller.request(bench.stack, read).unwrap();
    let part = bench.poller.observe(request, 0..8192).unwrap();
    for _ in 0..10 {
        bench.poller.poll(|_| {});
        bench.emulator.step();
    }
    assert_eq!(bench.poller.state(part), Some(kiovec::State::Pending));
    bench.emulator.release_all();
    for _ in 0..10 {
        bench.emulator.step();
        bench.poller.poll(|_| {});
    }
    assert!(matches!(bench.poller.state(part), Some(kiovec::State::Settled(v, _)) if !v.success));
    assert!(bench.poller.observed(part).is_none());
}

/// Each of them counts for itself where the poller does not do it for all.
#[test]
fn traces_below_a_layer_that_does_more_count_each_request_once() {
    let mut bench = Bench::new("size=1M,block=512,media=ram", QueueOptions::default(), |disk| {
        Verify::new(Trace::new(Trace::new(disk))).unwrap()
    });
    for lba in 0..3 {
        let read = bench.read(lba, 1);
        bench.one(read).0.unwrap();
    }
    let upper = bench.poller.layer(bench.stack).unwrap().below();
    assert_eq!((upper.filter().counts().reads, upper.below().filter().counts().reads), (3, 3));
}
