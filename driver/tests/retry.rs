//! The layer that tries again: what it cures, what it gives up, and that it repeats no more than it must.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiovec::layer::{
    Cx, Disk, Geometry, Handle, Layer, Partition, Retries, Retry, RetryOptions, Stack, Trace, Verify,
};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::Status;
use kiovec::{
    Cause, Controller, Error, Event, Failure, IoContainer, Operation, Poller, QueueId, QueueOptions, State,
    Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use proptest::prelude::*;

struct Bench<L: Layer> {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<L>,
    queue: QueueId,
    stack: Target,
}

impl<L: Layer> Bench<L> {
    fn new(settings: &str, depth: usize, build: impl FnOnce(Disk) -> L) -> Bench<L> {
        let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
        let space = DmaSpace::new().unwrap();
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let mut poller = Poller::with_layers(64);
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(depth)).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        let stack = build(Disk::new(&poller, disk).unwrap());
        let stack = poller.add_layer(stack).unwrap();
        Bench { emulator, space, poller, queue, stack }
    }

    fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.emulator.set_faults(faults.into_iter().fold(Faults::default(), Faults::with));
    }

    fn submit(&mut self, io: IoContainer) {
        self.poller.submit(self.stack, io).unwrap();
    }

    fn turn(&mut self) -> Option<(Result<(), Failure>, MemoryChain)> {
        let mut came = None;
        self.poller.poll(|done| came = Some((done.result(), done.take().into_memory())));
        self.emulator.step();
        came
    }

    fn one(&mut self, io: IoContainer) -> (Result<(), Failure>, MemoryChain) {
        self.submit(io);
        (0..100_000).find_map(|_| self.turn()).expect("it completes")
    }

    fn commands(&self) -> u64 {
        self.poller.stats(self.queue).commands
    }

    /// Reads at once what a retry may never have touched.
    fn blocks(&mut self, blocks: u64) -> Vec<u8> {
        self.faults([]);
        let (result, memory) = self.one(IoContainer::read(0, self.scattered(blocks, 0xee)));
        result.unwrap();
        memory.to_vec().chunks(4096).map(|block| block[0]).collect()
    }

    /// Memory in segments of one, two, three … blocks that are not neighbours; each block is filled with
    /// its number and `seed`.
    fn scattered(&self, blocks: u64, seed: u8) -> MemoryChain {
        let (mut chain, mut gaps) = (MemoryChain::new(), Vec::new());
        let mut left = blocks as usize;
        for size in 1.. {
            let size = size.min(left);
            if size == 0 {
                break;
            }
            chain.append(self.space.allocate(size * 4096).unwrap());
            gaps.push(self.space.allocate(4096).unwrap());
            left -= size;
        }
        (0..blocks as usize).for_each(|i| chain.copy_from_slice(i * 4096, &[i as u8 ^ seed; 4096]));
        chain
    }
}

impl<B: Layer> Bench<Retry<B>> {
    fn retries(&self) -> (u64, u64, u64) {
        let Retries { retried, cured, given_up, .. } = *self.poller.layer(self.stack).unwrap().retries();
        (retried, cured, given_up)
    }
}

/// MDTS 1: commands of two blocks.
const DISK: &str = "size=16M,block=4096,media=ram,mdts=1";

fn plain(depth: usize, options: RetryOptions) -> Bench<Retry<Disk>> {
    Bench::new(DISK, depth, |disk| Retry::new(disk, options).unwrap())
}

fn error(lbas: std::ops::Range<u64>, status: Status) -> Fault {
    Fault::new(Commands::io().lbas(lbas), Effect::Status(status))
}

#[test]
fn a_request_that_fails_for_a_while_succeeds() {
    let mut bench = plain(8, RetryOptions::default());
    bench.faults([error(5..6, Status::INTERNAL_ERROR).times(2)]);
    let memory = bench.scattered(2, 1);
    let (result, memory) = bench.one(IoContainer::write(4, memory));
    assert_eq!((result, bench.retries(), bench.commands()), (Ok(()), (2, 1, 0), 3));
    assert_eq!(memory.to_vec()[..4096], [1; 4096], "the caller's memory, as it was");
    bench.faults([error(5..6, Status::UNRECOVERED_READ_ERROR).times(3)]);
    let (result, memory) = bench.one(IoContainer::read(4, bench.scattered(2, 0xee)));
    assert_eq!((result, bench.retries(), bench.commands()), (Ok(()), (5, 2, 0), 7));
    assert_eq!([memory.to_vec()[0], memory.to_vec()[4096]], [1, 0]);
    // One that succeeds at once is none of its business.
    let memory = bench.scattered(2, 1);
    bench.one(IoContainer::write(4, memory)).0.unwrap();
    assert_eq!((bench.retries(), bench.commands()), ((5, 2, 0), 8));
}

#[test]
fn all_that_moves_no_data_is_tried_again_as_well() {
    let mut bench = plain(8, RetryOptions::default().times(1));
    let memory = bench.scattered(8, 0x40);
    bench.one(IoContainer::write(0, memory)).0.unwrap();
    for io in [IoContainer::flush(), IoContainer::write_zeroes(1, 2), IoContainer::deallocate(5, 1)] {
        let before = bench.commands();
        bench.faults([Fault::new(Commands::io(), Effect::Status(Status::COMMAND_INTERRUPTED)).once()]);
        assert_eq!(bench.one(io).0, Ok(()));
        assert_eq!(bench.commands() - before, 2);
    }
    assert_eq!(bench.retries(), (3, 3, 0));
    assert_eq!(bench.blocks(8), [0x40, 0, 0, 0x43, 0x44, 0, 0x46, 0x47]);
}

#[test]
fn only_what_is_not_done_is_repeated() {
    // On a queue of one slot nothing is sent behind what fails.
    let mut bench = plain(1, RetryOptions::default());
    bench.faults([error(11..12, Status::INTERNAL_ERROR).times(2), error(21..22, Status::WRITE_FAULT).once()]);
    let memory = bench.scattered(32, 0x80);
    assert_eq!(bench.one(IoContainer::write(0, memory)).0, Ok(()));
    assert_eq!((bench.retries(), bench.commands()), ((3, 1, 0), 16 + 3));
    assert_eq!(bench.blocks(32), (0x80..0xa0).collect::<Vec<u8>>());
    // A read leaves alone what it has.
    bench.faults([error(11..12, Status::UNRECOVERED_READ_ERROR).times(2)]);
    let before = bench.commands();
    let (result, memory) = bench.one(IoContainer::read(0, bench.scattered(32, 0xee)));
    assert_eq!((result, bench.commands() - before), (Ok(()), 16 + 2));
    assert_eq!(memory.to_vec(), bench.scattered(32, 0x80).to_vec());
    // With more slots, what was in flight behind the failure is repeated, and nothing before it.
    let mut bench = plain(4, RetryOptions::default());
    bench.faults([
        error(11..12, Status::INTERNAL_ERROR).once(),
        Fault::new(Commands::io().lbas(0..10), Effect::Status(Status::INTERNAL_ERROR)).after(5),
    ]);
    let memory = bench.scattered(32, 0x80);
    assert_eq!(bench.one(IoContainer::write(0, memory)).0, Ok(()));
    assert!((16 + 1..=16 + 4).contains(&bench.commands()), "{}", bench.commands());
    assert_eq!(bench.emulator.injections(), [1, 0]);
    assert_eq!(bench.blocks(32), (0x80..0xa0).collect::<Vec<u8>>());
}

#[test]
fn what_is_given_up_names_its_block() {
    let mut bench = Bench::new(DISK, 1, |disk| {
        let part = Partition::new(disk, 100..200).unwrap();
        Trace::new(Retry::new(Trace::new(part), RetryOptions::default().times(2)).unwrap())
    });
    // Command 3 of the partition's fails once, command 7 always.
    bench.faults([error(107..108, Status::INTERNAL_ERROR).once(), error(115..116, Status::WRITE_FAULT)]);
    let memory = bench.scattered(20, 0);
    let failure = Failure { lba: 14, cause: Cause::Status(Status::WRITE_FAULT) };
    assert_eq!(bench.one(IoContainer::write(0, memory)).0, Err(failure));
    // Blocks 0 to 7, 6 to 15, and 14 and 15 once more.
    assert_eq!(bench.commands(), 4 + 5 + 1);
    let trace = bench.poller.layer(bench.stack).unwrap();
    let Retries { retried, cured, given_up, .. } = *trace.below().retries();
    assert_eq!((retried, cured, given_up), (2, 0, 1));
    // What is above has seen one request, what is below three, each by its own first block.
    assert_eq!((trace.filter().counts().writes, trace.filter().counts().failed), (1, 1));
    let below = trace.below().below().filter().counts();
    assert_eq!((below.writes, below.failed), (3, 3));
    let memory = bench.scattered(4, 0);
    assert_eq!(bench.one(IoContainer::write(96, memory)).0, Ok(()), "the last blocks of the partition");
}

#[test]
fn what_cannot_help_is_not_tried() {
    let mut bench = plain(8, RetryOptions::default());
    for status in [
        Status::INTERNAL_ERROR.with_dnr(),
        Status::INVALID_FIELD,
        Status::LBA_OUT_OF_RANGE,
        Status::NAMESPACE_WRITE_PROTECTED,
        Status::ABORT_REQUESTED,
    ] {
        bench.faults([error(0..1, status)]);
        let before = bench.commands();
        let failure = Failure { lba: 0, cause: Cause::Status(status) };
        assert_eq!(bench.one(IoContainer::read(0, bench.scattered(2, 0))).0, Err(failure));
        assert_eq!(bench.commands() - before, 1, "{status}");
    }
    assert_eq!(bench.retries(), (0, 0, 0));
    // Nor with no retries at all.
    let mut bench = plain(8, RetryOptions::default().times(0));
    bench.faults([error(0..1, Status::INTERNAL_ERROR).once()]);
    assert!(bench.one(IoContainer::read(0, bench.scattered(2, 0))).0.is_err());
    assert_eq!((bench.retries(), bench.commands()), ((0, 0, 0), 1));
}

#[test]
fn a_controller_that_is_gone_is_not_tried_again() {
    let mut bench = plain(8, RetryOptions::default());
    bench.faults([Fault::new(Commands::io(), Effect::Unplug)]);
    let (result, _) = bench.one(IoContainer::read(0, bench.scattered(2, 0)));
    assert_eq!(result.unwrap_err().cause, Cause::ControllerLost);
    assert_eq!(bench.retries(), (0, 0, 0));
}

#[test]
fn every_use_of_a_container_has_all_its_retries() {
    let mut bench = plain(8, RetryOptions::default().times(2));
    bench.faults([Fault::new(Commands::io(), Effect::Status(Status::INTERNAL_ERROR))]);
    bench.submit(IoContainer::read(0, bench.scattered(2, 0)));
    let mut uses = 0;
    while bench.poller.outstanding() > 0 {
        bench.poller.poll(|mut done| {
            uses += 1;
            assert_eq!(done.result().unwrap_err().lba, 2 * (uses - 1));
            if uses < 10 {
                done.set_lba(2 * uses);
                done.resubmit().unwrap();
            }
        });
        bench.emulator.step();
    }
    assert_eq!((bench.retries(), bench.commands()), ((20, 0, 10), 30));
}

#[test]
fn it_waits_before_it_tries_again() {
    let delay = Duration::from_millis(10);
    let mut bench = plain(8, RetryOptions::default().times(2).delay(delay));
    bench.faults([error(3..4, Status::INTERNAL_ERROR).times(3)]);
    let memory = bench.scattered(8, 7);
    bench.submit(IoContainer::write(0, memory));
    let mut commands = 4;
    for round in 0..2 {
        for _ in 0..50 {
            assert!(bench.turn().is_none());
        }
        assert_eq!(bench.commands(), commands, "nothing happens before its time");
        bench.emulator.advance(delay - Duration::from_micros(1));
        for _ in 0..50 {
            assert!(bench.turn().is_none());
        }
        assert_eq!((bench.commands(), bench.retries()), (commands, (round, 0, 0)));
        bench.emulator.advance(Duration::from_micros(1));
        // Blocks 2 to 7 once more.
        commands += 3;
        if round == 1 {
            break;
        }
    }
    let came = (0..50).find_map(|_| bench.turn()).expect("it is over");
    assert_eq!(came.0, Err(Failure { lba: 2, cause: Cause::Status(Status::INTERNAL_ERROR) }));
    assert_eq!((bench.commands(), bench.retries()), (commands, (2, 0, 1)));
}

#[test]
fn many_wait_each_for_its_own_time() {
    let mut bench = plain(64, RetryOptions::default().times(1).delay(Duration::from_millis(10)));
    bench.faults((0..40).map(|lba| error(lba..lba + 1, Status::INTERNAL_ERROR).once()));
    let step = Duration::from_millis(1);
    let (mut done, mut submitted) = (Vec::new(), 0);
    for millisecond in 0..60 {
        if submitted < 40 {
            let memory = bench.scattered(1, submitted as u8);
            bench.submit(IoContainer::write(submitted, memory).tag(submitted));
            submitted += 1;
        }
        for _ in 0..8 {
            bench.poller.poll(|finished| {
                finished.result().unwrap();
                done.push((finished.io().get_tag(), millisecond));
            });
            bench.emulator.step();
        }
        bench.emulator.advance(step);
    }
    // In the order in which they failed, each ten milliseconds later.
    assert_eq!(done, (0..40).map(|tag| (tag, tag + 10)).collect::<Vec<_>>());
    assert_eq!((bench.retries(), bench.commands()), ((40, 40, 0), 80));
    assert_eq!(bench.blocks(40), (0..40).collect::<Vec<u8>>());
}

/// A queue of one slot, one request that fails and waits, and others that pass it meanwhile.
#[test]
fn one_that_waits_takes_no_slot() {
    let mut bench = plain(1, RetryOptions::default().delay(Duration::from_millis(10)));
    bench.faults([error(0..1, Status::INTERNAL_ERROR).once()]);
    bench.submit(IoContainer::read(0, bench.scattered(1, 0)).tag(1));
    (0..10).for_each(|_| assert!(bench.turn().is_none()));
    for lba in 1..5 {
        assert_eq!(bench.one(IoContainer::read(lba, bench.scattered(1, 0))).0, Ok(()));
    }
    bench.emulator.advance(Duration::from_millis(10));
    assert_eq!((0..10).find_map(|_| bench.turn()).unwrap().0, Ok(()));
    assert_eq!(bench.retries(), (1, 1, 0));
}

#[test]
fn a_cured_request_is_an_event_that_succeeded() {
    let mut bench = plain(2, RetryOptions::default().delay(Duration::from_millis(1)));
    bench.faults([error(7..8, Status::INTERNAL_ERROR).times(2)]);
    let memory = bench.scattered(16, 0);
    let event = bench.poller.request(bench.stack, IoContainer::write(0, memory)).unwrap();
    let verdict = bench.poller.wait(event, Duration::from_secs(10), |_| {}).unwrap();
    assert!(verdict.success);
    let (io, result) = bench.poller.claim(event).unwrap();
    assert_eq!((result, io.blocks(), bench.retries()), (Ok(()), 16, (2, 1, 0)));
}

fn cause<L: Layer>(bench: &mut Bench<L>, event: Event) -> Option<Cause> {
    bench.poller.claim(event).expect("settled").1.err().map(|failure| failure.cause)
}

#[test]
fn what_is_ended_while_it_waits_is_not_tried_again() {
    let mut bench = plain(4, RetryOptions::default().delay(Duration::from_secs(1000)));
    bench.faults([error(0..30, Status::INTERNAL_ERROR)]);
    // The first blocks of one fail, the last ones of the other; and one is left alone.
    let reads = [(0, 4), (24, 12), (10, 2)];
    let events = reads.map(|(lba, blocks)| {
        let io = IoContainer::read(lba, bench.scattered(blocks, 0));
        bench.poller.request(bench.stack, io).unwrap()
    });
    bench.poller.set_deadline(events[1], Duration::from_secs(10));
    (0..20).for_each(|_| assert!(bench.turn().is_none()));
    assert_eq!(events.map(|event| bench.poller.state(event)), [Some(State::Pending); 3]);
    let commands = bench.commands();
    bench.poller.cancel(events[0]);
    bench.poller.poll(|_| {});
    assert_eq!(cause(&mut bench, events[0]), Some(Cause::Cancelled), "without any time passing");
    bench.emulator.advance(Duration::from_secs(11));
    bench.poller.poll(|_| {});
    assert_eq!(cause(&mut bench, events[1]), Some(Cause::Expired));
    assert_eq!((bench.commands(), bench.poller.outstanding()), (commands, 1));
    bench.faults([]);
    bench.emulator.advance(Duration::from_secs(990));
    (0..20).for_each(|_| assert!(bench.turn().is_none()));
    assert_eq!(cause(&mut bench, events[2]), None);
    assert_eq!((bench.commands(), bench.retries()), (commands + 1, (1, 1, 0)));
}

#[test]
fn what_is_cancelled_while_it_fails_is_not_tried_again() {
    let mut bench = plain(2, RetryOptions::default());
    // Its first command fails while its second is in flight: then it is cancelled.
    bench.faults([error(0..1, Status::INTERNAL_ERROR)]);
    bench.emulator.hold(Commands::io().lbas(2..3));
    let io = IoContainer::read(0, bench.scattered(4, 0));
    let event = bench.poller.request(bench.stack, io).unwrap();
    (0..20).for_each(|_| assert!(bench.turn().is_none()));
    bench.poller.cancel(event);
    bench.emulator.release_all();
    (0..20).for_each(|_| assert!(bench.turn().is_none()));
    assert_eq!(cause(&mut bench, event), Some(Cause::Cancelled));
    assert_eq!((bench.commands(), bench.retries()), (2, (0, 0, 0)));
}

#[test]
fn options_have_limits() {
    for options in [
        RetryOptions::default().times(RetryOptions::MAX_TIMES + 1),
        RetryOptions::default().delay(RetryOptions::MAX_DELAY + Duration::from_nanos(1)),
    ] {
        Bench::new(DISK, 1, |disk| {
            let Err(error) = Retry::new(disk, options) else { panic!("{options:?} accepted") };
            assert!(matches!(error, Error::InvalidInput(_)));
            disk
        });
    }
    let most = RetryOptions::default().times(RetryOptions::MAX_TIMES);
    let mut bench = plain(4, most);
    bench.faults([error(0..1, Status::INTERNAL_ERROR)]);
    assert!(bench.one(IoContainer::read(0, bench.scattered(1, 0))).0.is_err());
    let times = u64::from(RetryOptions::MAX_TIMES);
    assert_eq!((bench.retries(), bench.commands()), ((times, 0, 1), times + 1));
}

/// A layer of a user's: it fails what touches a block, so many times, on the way down or on the way up.
struct Flaky<B> {
    below: B,
    lba: u64,
    times: u32,
    down: bool,
    cause: Cause,
}

impl<B: Layer> Flaky<B> {
    fn strike(&mut self, cx: &mut Cx<'_>, io: &Handle) -> bool {
        let container = cx.io(io);
        let at = self.lba.wrapping_sub(container.lba());
        let strikes = self.times > 0 && at < container.blocks() && cx.failure(io).is_none();
        if strikes {
            self.times -= 1;
            cx.fail(io, at, self.cause);
        }
        strikes
    }
}

impl<B: Layer> Layer for Flaky<B> {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn frames(&self) -> usize {
        self.below.frames()
    }

    fn children(&self) -> u32 {
        self.below.children()
    }

    fn orphans(&self) -> u32 {
        self.below.orphans()
    }

    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        if self.down && self.strike(cx, &io) { Some(io) } else { self.below.submit(cx, io) }
    }

    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let io = self.below.complete(cx, io)?;
        if !self.down {
            self.strike(cx, &io);
        }
        Some(io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        self.below.poll(cx)
    }
}

#[test]
fn a_users_layer_below_is_like_any_other() {
    for down in [true, false] {
        for delay in [Duration::ZERO, Duration::from_millis(1)] {
            let status = Cause::Status(Status::INTERNAL_ERROR);
            for (times, cause, expected) in [
                (2, status, Ok(())),
                (3, status, Err(Failure { lba: 10, cause: status })),
                (1, Cause::Cancelled, Err(Failure { lba: 10, cause: Cause::Cancelled })),
            ] {
                let mut bench = Bench::new(DISK, 2, |disk| {
                    let flaky = Flaky { below: disk, lba: 20 + 10, times, down, cause };
                    let part = Partition::new(flaky, 20..120).unwrap();
                    Retry::new(part, RetryOptions::default().times(2).delay(delay)).unwrap()
                });
                let memory = bench.scattered(16, 0);
                bench.submit(IoContainer::write(0, memory));
                let mut came = None;
                for _ in 0..1000 {
                    came = came.or(bench.turn());
                    bench.emulator.advance(delay / 4);
                }
                assert_eq!(came.expect("it completes").0, expected);
                let retried = if cause == status { 2 } else { 0 };
                let cured = u64::from(expected.is_ok());
                let given_up = u64::from(cause == status) - cured;
                assert_eq!(bench.retries(), (retried, cured, given_up));
            }
        }
    }
}

/// The layer's frame of one request must not be read in another that gets its place in the poller.
#[test]
fn layers_keep_their_words_apart() {
    let mut bench = Bench::new(DISK, 4, |disk| {
        let below = Retry::new(Trace::new(disk), RetryOptions::default().times(1)).unwrap();
        let verify = Verify::new(Trace::new(below)).unwrap();
        Retry::new(verify, RetryOptions::default().times(1)).unwrap()
    });
    for round in 0..20 {
        // Two tries of the lower one, for each of two of the upper one.
        bench.faults([error(5..6, Status::INTERNAL_ERROR).times(3)]);
        let memory = bench.scattered(8, round);
        assert_eq!(bench.one(IoContainer::write(0, memory)).0, Ok(()));
        let (result, memory) = bench.one(IoContainer::read(0, bench.scattered(8, 0xee)));
        assert_eq!((result, memory.to_vec()), (Ok(()), bench.scattered(8, round).to_vec()));
    }
    assert_eq!(bench.retries(), (20, 20, 0));
}

#[test]
fn it_is_a_layer_of_a_stack_that_is_text() {
    for (text, error) in [
        ("retry(times=2,delay=5,verify(disk))", None),
        ("retry(disk)", None),
        ("retry(times=16,disk)", Some("at most 15")),
        ("retry(times=99999999999,disk)", Some("at most 15")),
        ("retry(delay=4M,disk)", Some("3600s")),
        ("retry(often=3,disk)", Some("no option")),
    ] {
        Bench::new(DISK, 4, |disk| {
            let space = DmaSpace::new().unwrap();
            let made = Stack::new(&text.parse().unwrap(), &space, &mut |_| Ok(disk));
            match (made, error) {
                (Ok(stack), None) => assert!(matches!(stack, Stack::Retry(_))),
                (Err(said), Some(part)) => assert!(said.to_string().contains(part), "{said}"),
                (made, _) => panic!("{text}: {made:?}"),
            }
            disk
        });
    }
    let mut bench = Bench::new(DISK, 4, |disk| {
        let plan = "retry(times=1,delay=5,verify(disk))".parse().unwrap();
        Stack::new(&plan, &DmaSpace::new().unwrap(), &mut |_| Ok(disk)).unwrap()
    });
    bench.faults([error(0..1, Status::INTERNAL_ERROR).once()]);
    bench.submit(IoContainer::read(0, bench.scattered(2, 0)));
    assert!((0..20).all(|_| bench.turn().is_none()));
    bench.emulator.advance(Duration::from_millis(5));
    assert_eq!((0..20).find_map(|_| bench.turn()).unwrap().0, Ok(()));
}

#[derive(Debug, Clone)]
struct Request {
    operation: Operation,
    lane: u64,
    blocks: u64,
}

const LANE: u64 = 40;

fn requests() -> impl Strategy<Value = Vec<Vec<Request>>> {
    let operation = prop_oneof![
        4 => Just(Operation::Write), 4 => Just(Operation::Read), 1 => Just(Operation::WriteZeroes),
        1 => Just(Operation::Flush),
    ];
    let request = |lane| {
        (operation.clone(), 1..LANE).prop_map(move |(operation, blocks)| Request { operation, lane, blocks })
    };
    let round = (0..5u64).map(request).collect::<Vec<_>>();
    proptest::collection::vec(round, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With more retries than failures, everything succeeds, and what is written is what is read.
    #[test]
    fn what_is_written_is_what_is_read(
        rounds in requests(),
        depth in 1..9usize,
        seed in any::<u64>(),
        faults in 1..12u64,
        millis in prop_oneof![Just(0u64), Just(3)],
    ) {
        let options = RetryOptions::default().times(12).delay(Duration::from_millis(millis));
        let mut bench = Bench::new(&format!("{DISK},awupf=255"), depth, |disk| {
            let part = Partition::new(Retry::new(disk, options).unwrap(), 9..9 + 5 * LANE).unwrap();
            Verify::new(Trace::new(part)).unwrap()
        });
        let mut model = vec![0; 5 * LANE as usize];
        for (number, round) in (1..).zip(&rounds) {
            let fault = Fault::new(Commands::io(), Effect::Status(Status::INTERNAL_ERROR)).one_in(5).times(faults);
            bench.emulator.set_faults(Faults::seeded(seed ^ u64::from(number)).random_order().with(fault));
            let mut expected = Vec::new();
            for Request { operation, lane, blocks } in round {
                let lba = lane * LANE;
                let cells = &mut model[lba as usize..(lba + blocks) as usize];
                expected.push((*operation == Operation::Read).then(|| cells.to_vec()));
                let io = match operation {
                    Operation::Write => {
                        cells.iter_mut().zip(0..).for_each(|(cell, i)| *cell = i ^ number);
                        IoContainer::write(lba, bench.scattered(*blocks, number))
                    }
                    Operation::Read => IoContainer::read(lba, bench.scattered(*blocks, 0xee)),
                    Operation::WriteZeroes => {
                        cells.fill(0);
                        IoContainer::write_zeroes(lba, *blocks)
                    }
                    _ => IoContainer::flush(),
                };
                bench.submit(io.tag(*lane));
            }
            let mut polls = 0;
            let mut done = vec![None; 5];
            while bench.poller.outstanding() > 0 {
                bench.poller.poll(|finished| {
                    let (lane, result) = (finished.io().get_tag() as usize, finished.result());
                    let bytes = finished.take().into_memory().to_vec();
                    assert!(done[lane].replace((result, bytes)).is_none(), "completed twice");
                });
                bench.emulator.step();
                bench.emulator.advance(Duration::from_millis(1));
                polls += 1;
                prop_assert!(polls < 100_000, "requests never complete");
            }
            for (done, expected) in done.into_iter().zip(expected) {
                let (result, bytes) = done.unwrap();
                prop_assert_eq!(result, Ok(()));
                if let Some(expected) = expected {
                    let whole = |(block, cell): (&[u8], &u8)| block.iter().all(|byte| byte == cell);
                    prop_assert!(bytes.chunks(4096).zip(&expected).all(whole), "other data than was written");
                }
            }
        }
    }
}
