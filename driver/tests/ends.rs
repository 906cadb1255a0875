//! Requests that end before their end: cancelled, expired, or with nobody left who waits for them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::future::{Either, join, join_all, select};
use kiovec::memory::DmaSpace;
use kiovec::{
    Cause, Controller, Event, IoContainer, Operation, Poller, QueueId, QueueOptions, Reason, State, Target,
};
use kiovec_emulator::{Commands, Config, Emulator};

const BLOCK: usize = 4096;
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller,
    queue: QueueId,
    disk: Target,
}

/// A stepped controller whose commands move two blocks each, and a queue of two.
fn bench() -> Bench {
    let emulator = Emulator::stepped(Config::parse("size=16M,block=4096,media=ram,mdts=1").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(64);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(2)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { emulator, space, poller, queue, disk }
}

impl Bench {
    fn read(&mut self, lba: u64, blocks: usize) -> Event {
        let io = IoContainer::read(lba, self.space.allocate(blocks * BLOCK).unwrap());
        self.poller.request(self.disk, io).unwrap()
    }

    fn turn(&mut self) {
        for _ in 0..20 {
            self.poller.poll(|_| panic!("everything here is an event"));
            self.emulator.step();
        }
        self.poller.poll(|_| panic!("everything here is an event"));
    }

    fn commands(&self) -> u64 {
        self.poller.stats(self.queue).commands
    }

    fn cause(&mut self, event: Event) -> Option<Cause> {
        self.poller.claim(event).unwrap().1.err().map(|failure| failure.cause)
    }
}

fn is_settled(bench: &Bench, event: Event) -> bool {
    matches!(bench.poller.state(event), Some(State::Settled(..)))
}

#[test]
fn what_is_cancelled_is_issued_no_further() {
    let mut bench = bench();
    bench.emulator.hold(Commands::reads());
    let (large, waiting) = (bench.read(0, 100), bench.read(500, 1));
    bench.turn();
    assert_eq!(bench.commands(), 2);
    // In flight: resolved now, settled with its commands.
    bench.poller.cancel(large);
    let Some(State::Resolved(verdict)) = bench.poller.state(large) else { panic!("not resolved") };
    assert_eq!((verdict.success, verdict.reason), (false, Reason::Cancelled));
    assert!(bench.poller.claim(large).is_none(), "the controller may still write its memory");
    // In the line: nothing of it is in flight.
    bench.poller.cancel(waiting);
    bench.poller.poll(|_| {});
    assert!(is_settled(&bench, waiting));
    bench.emulator.release_all();
    bench.turn();
    assert!(is_settled(&bench, large));
    assert_eq!(bench.commands(), 2, "neither the rest nor what waited");
    assert_eq!([large, waiting].map(|event| bench.cause(event)), [Some(Cause::Cancelled); 2]);
    assert_eq!(bench.poller.outstanding(), 0);
    // The queue is as good as before.
    let next = bench.read(0, 10);
    bench.turn();
    assert_eq!(bench.cause(next), None);
}

#[test]
fn the_losers_of_an_any_are_cancelled_by_cancelling_it() {
    let mut bench = bench();
    bench.emulator.hold(Commands::reads().lbas(100..));
    let (winner, loser, late) = (bench.read(0, 1), bench.read(100, 1), bench.read(200, 1));
    let any = bench.poller.any(&[winner, loser, late]).unwrap();
    bench.turn();
    let Some(State::Resolved(verdict)) = bench.poller.state(any) else { panic!("not resolved") };
    assert!(verdict.success);
    assert_eq!(bench.poller.state(loser), Some(State::Pending), "it goes on by itself");
    bench.poller.cancel(any);
    assert!(matches!(bench.poller.state(loser), Some(State::Resolved(v)) if v.reason == Reason::Cancelled));
    bench.emulator.release_all();
    bench.turn();
    let Some(State::Settled(verdict, _)) = bench.poller.state(any) else { panic!("not settled") };
    assert!(verdict.success, "what was decided stays so");
    for event in [winner, loser, late] {
        assert!(bench.poller.claim(event).is_some());
    }
}

#[test]
fn a_merged_request_is_cancelled_alone() {
    let mut bench = bench();
    bench.emulator.hold(Commands::reads());
    bench.poller.plug(bench.queue);
    let (a, b) = (bench.read(0, 1), bench.read(1, 1));
    bench.poller.unplug(bench.queue);
    bench.turn();
    assert_eq!(bench.poller.stats(bench.queue).merges, 1);
    bench.poller.cancel(a);
    assert_eq!(bench.poller.state(b), Some(State::Pending));
    bench.emulator.release_all();
    bench.turn();
    assert_eq!([a, b].map(|event| bench.cause(event)), [Some(Cause::Cancelled), None]);
}

#[test]
fn a_deadline_ends_a_request_and_what_is_made_of_it() {
    let mut bench = bench();
    bench.emulator.hold(Commands::reads().lbas(100..));
    let (fast, slow) = (bench.read(0, 1), bench.read(100, 8));
    let both = bench.poller.all(&[fast, slow]).unwrap();
    bench.poller.set_deadline(both, Duration::from_secs(10));
    bench.poller.set_deadline(fast, Duration::from_secs(1));
    bench.turn();
    assert!(is_settled(&bench, fast), "in time");
    bench.emulator.advance(Duration::from_secs(9));
    bench.turn();
    assert_eq!(bench.poller.state(both), Some(State::Pending));
    bench.emulator.advance(Duration::from_secs(2));
    bench.turn();
    for event in [both, slow] {
        let Some(State::Resolved(verdict)) = bench.poller.state(event) else { panic!("not resolved") };
        assert_eq!((verdict.success, verdict.reason), (false, Reason::Expired));
    }
    bench.emulator.release_all();
    bench.turn();
    assert!(is_settled(&bench, both));
    assert_eq!([fast, slow].map(|event| bench.cause(event)), [None, Some(Cause::Expired)]);
    assert!(bench.commands() < 5, "the rest was not issued");
}

#[test]
fn futures_are_joined_and_selected() {
    let Bench { emulator, space, mut poller, disk, .. } = bench();
    let memory = |byte| {
        let mut memory = space.allocate(3 * BLOCK).unwrap();
        memory.fill(byte);
        memory
    };
    let sum = poller.run(async |reactor| {
        let write = |lba, byte| reactor.submit(disk, IoContainer::write(lba, memory(byte))).unwrap();
        let ((_, one), (_, two)) = join(write(0, 1), write(10, 2)).await;
        assert_eq!((one, two), (Ok(()), Ok(())));
        let reads = [0, 10, 20].map(|lba| reactor.submit(disk, IoContainer::read(lba, memory(9))).unwrap());
        let all = reactor.all(&reads.each_ref().map(|read| read.event())).unwrap();
        assert!(reactor.resolved(all).await.unwrap().success);
        let (_, totals) = reactor.settled(all).await.unwrap();
        assert_eq!(totals.bytes, 9 * BLOCK as u64);
        reactor.release(all);
        assert_eq!(reactor.resolved(all).await, None);
        let found: Vec<u8> =
            join_all(reads).await.into_iter().map(|(io, _)| io.into_memory().to_vec()[0]).collect();
        assert_eq!(found, [1, 2, 0]);
        // The first of two: the other's future is dropped in flight.
        emulator.hold(Commands::reads().lbas(..5));
        // One command: the queue has a slot for the other.
        let one = space.allocate(BLOCK).unwrap();
        let slow = reactor.submit(disk, IoContainer::read(0, one)).unwrap();
        let fast = reactor.submit(disk, IoContainer::read(10, memory(9))).unwrap();
        match select(slow, fast).await {
            Either::Right(((io, Ok(())), _slow)) => io.into_memory().to_vec()[0],
            _ => panic!("the one that is held is not first"),
        }
    });
    assert_eq!(sum, 2);
    assert_eq!(poller.outstanding(), 1, "it goes on without its future");
    emulator.release_all();
    for _ in 0..10 {
        poller.poll(|_| panic!("nobody asked for it"));
        emulator.step();
    }
    poller.poll(|_| {});
    assert_eq!(poller.outstanding(), 0);
}

#[test]
fn memory_of_a_dropped_future_comes_back_when_it_is_settled() {
    let Bench { emulator, space, mut poller, disk, .. } = bench();
    let iova = |len| space.allocate(len).unwrap().segments()[0].iova();
    let before = iova(BLOCK);
    emulator.hold(Commands::io());
    poller.run(async |reactor| {
        let io = IoContainer::read(0, space.allocate(BLOCK).unwrap());
        drop(reactor.submit(disk, io).unwrap());
    });
    for _ in 0..10 {
        poller.poll(|_| {});
        emulator.step();
    }
    assert_ne!(iova(BLOCK), before, "the controller may still write there");
    emulator.release_all();
    for _ in 0..10 {
        poller.poll(|_| {});
        emulator.step();
    }
    assert_eq!(iova(BLOCK), before);
}

#[test]
fn a_future_has_a_deadline_and_says_so() {
    let Bench { emulator, space, mut poller, disk, .. } = bench();
    emulator.hold(Commands::io());
    let verdict = poller.run(async |reactor| {
        let request = reactor.submit(disk, IoContainer::read(0, space.allocate(BLOCK).unwrap())).unwrap();
        reactor.set_deadline(request.event(), Duration::from_millis(5));
        let verdict = reactor.resolved(request.event()).await.unwrap();
        emulator.release_all();
        let (_, result) = request.await;
        assert_eq!(result.unwrap_err().cause, Cause::Expired);
        verdict
    });
    assert_eq!((verdict.success, verdict.reason), (false, Reason::Expired));
    assert_eq!(poller.outstanding(), 0);
}

/// Two futures that wait for one event, and a thousand that each make their next request.
#[test]
fn many_futures_at_once() {
    // All of it stays: a controller whose emulator is dropped is gone.
    let Bench { emulator: _emulator, space, mut poller, disk, .. } = bench();
    let total = poller.run(async |reactor| {
        let one = reactor.submit(disk, IoContainer::read(0, space.allocate(BLOCK).unwrap())).unwrap();
        let event = one.event();
        let (a, b) = join(reactor.resolved(event), reactor.settled(event)).await;
        assert!(a.unwrap().success && b.unwrap().0.success);
        one.await.1.unwrap();
        let chain = |i: u64| {
            let mut io = IoContainer::write(i * 8, space.allocate(BLOCK).unwrap());
            async move {
                for _ in 0..10 {
                    let (back, result) = reactor.submit(disk, io).unwrap().await;
                    result.unwrap();
                    io = back;
                    io.set_operation(Operation::Read);
                }
                io.lba()
            }
        };
        join_all((0..50).map(chain)).await.into_iter().sum::<u64>()
    });
    assert_eq!(total, (0..50).map(|i| i * 8).sum::<u64>());
    assert!(poller.outstanding() == 0 && poller.polls() > 0);
    let waited = poller.all(&[]).unwrap();
    assert!(poller.wait(waited, LIMIT, |_| {}).unwrap().success);
}
