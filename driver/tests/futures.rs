//! Requests that futures wait for: taken out, submitted again where they are, made events at any moment, dropped at any
//! moment. Each reads what it asked for, and none ever shows up elsewhere.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use futures_util::future::{Either, select};
use kiovec::layer::{Disk, Partition};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, IoContainer, Poller, QueueOptions, Reactor, Refusal, Request, Target};
use kiovec_emulator::{Config, Emulator};
use proptest::prelude::*;
use proptest::sample::Index;

type Layers = Partition<Disk>;

const BLOCK: usize = 512;
const BLOCKS: u64 = 4096;

#[derive(Debug, Clone, Copy)]
enum Action {
    /// Awaited, looked at, and submitted again where it is.
    Again,
    /// Awaited, and another one takes its place.
    Take,
    /// Dropped, whatever it is doing; another one takes its place.
    Drop,
    /// Made an event.
    Event,
    /// Made an event that is awaited first.
    Settle,
    /// Made an event, and ended.
    Cancel,
}

fn action() -> impl Strategy<Value = Action> {
    use Action::{Again, Cancel, Drop, Event, Settle, Take};
    prop_oneof![6 => Just(Again), 2 => Just(Take), 1 => Just(Drop), 2 => Just(Event), 1 => Just(Settle), 1 => Just(Cancel)]
}

fn byte(lba: u64) -> u8 {
    (lba ^ lba >> 8) as u8
}

fn holds(memory: &MemoryChain, lba: u64) -> bool {
    memory.to_vec().chunks(BLOCK).zip(lba..).all(|(block, lba)| block.iter().all(|b| *b == byte(lba)))
}

struct World {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<Layers>,
    targets: [Target; 2],
}

fn world(depth: usize, gather: bool) -> World {
    let config = "size=2M,block=512,media=ram,mdts=4";
    let emulator = Emulator::stepped(Config::parse(config).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(64);
    let options = QueueOptions::default().depth(depth).gather(gather);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let below = Disk::new(&poller, disk).unwrap();
    let part = poller.add_layer(Partition::new(below, 0..BLOCKS).unwrap()).unwrap();
    let mut all = space.allocate(2 << 20).unwrap();
    (0..BLOCKS).for_each(|lba| all.copy_from_slice(lba as usize * BLOCK, &[byte(lba); BLOCK]));
    poller.submit(disk, IoContainer::write(0, all)).unwrap();
    while poller.outstanding() > 0 {
        poller.poll(|done| done.result().unwrap());
        emulator.step();
    }
    World { emulator, space, poller, targets: [disk, part] }
}

/// Lets so many turns pass.
async fn turns(count: usize) {
    let mut left = count;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What a future comes to, in a bounded number of turns.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    match select(pin!(future), pin!(turns(10_000))).await {
        Either::Left((value, _)) => value,
        Either::Right(_) => panic!("nobody was woken"),
    }
}

struct One<'r, 'p> {
    request: Option<Request<'r, 'p, Layers>>,
    cancelled: bool,
}

/// A read of so many blocks, from somewhere on.
fn submit<'r, 'p>(
    reactor: &'r Reactor<'p, Layers>,
    space: &DmaSpace,
    target: Target,
    (lba, blocks): (u64, u64),
) -> One<'r, 'p> {
    let mut memory = space.allocate(blocks as usize * BLOCK).unwrap();
    memory.fill(0xee);
    let request = reactor.submit(target, IoContainer::read(lba % (BLOCKS - blocks), memory)).unwrap();
    One { request: Some(request), cancelled: false }
}

fn check(one: &One<'_, '_>, io: &IoContainer, result: Result<(), kiovec::Failure>) {
    assert!(result.is_ok() || one.cancelled, "{result:?}");
    assert!(result.is_err() || holds(io.memory(), io.lba()), "{io:?}");
}

async fn act<'r, 'p>(
    reactor: &'r Reactor<'p, Layers>,
    one: &mut One<'r, 'p>,
    action: Action,
    lba: u64,
) -> bool {
    let request = one.request.as_mut().unwrap();
    match action {
        Action::Again => {
            let mut finished = soon(request.finished()).await;
            let result = finished.result();
            let mut seen = Vec::new();
            finished.in_place(|mut io| {
                seen = io.memory().to_vec();
                let (before, blocks) = (io.lba(), io.blocks());
                assert!(result.is_err() || holds(io.memory(), before), "{:?}", *io);
                io.data_mut().for_each(|data| data.fill(0xee));
                io.set_lba(lba % (BLOCKS - blocks));
            });
            finished.resubmit().unwrap();
            assert!(result.is_ok() || one.cancelled, "{result:?}");
            one.cancelled = false;
            return false;
        }
        Action::Event => _ = request.event(),
        Action::Settle => {
            let (verdict, _) = soon(reactor.settled(request.event())).await.unwrap();
            assert!(verdict.success || one.cancelled);
        }
        Action::Cancel => {
            reactor.cancel(request.event());
            one.cancelled = true;
        }
        Action::Take => {
            let (io, result) = soon(one.request.take().unwrap()).await;
            check(one, &io, result);
            return true;
        }
        Action::Drop => {
            one.request = None;
            return true;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_is_done_with_them(
        depth in 1..9usize,
        gather in any::<bool>(),
        row in any::<bool>(),
        requests in prop::collection::vec(
            (prop::bool::weighted(0.3), any::<u64>(), prop_oneof![3 => Just(8u64), 1 => 1..300u64]), 1..12),
        steps in prop::collection::vec((any::<Index>(), action(), any::<u64>(), 0..3usize), 1..80),
    ) {
        let World { emulator, space, mut poller, targets } = world(depth, gather);
        poller.run(async |reactor| {
            let mut all = Vec::new();
            for (i, (layered, lba, blocks)) in (0..).zip(&requests) {
                // Neighbours, which share commands, or anything.
                let (lba, blocks) = if row { (100 + 8 * i, 8) } else { (*lba, *blocks) };
                all.push(submit(reactor, &space, targets[usize::from(*layered)], (lba, blocks)));
            }
            for (index, action, lba, pause) in &steps {
                let at = index.index(all.len());
                let lba = if row { 1000 + 8 * at as u64 } else { *lba };
                if act(reactor, &mut all[at], *action, lba).await {
                    let (layered, _, blocks) = requests[at];
                    let blocks = if row { 8 } else { blocks };
                    all[at] = submit(reactor, &space, targets[usize::from(layered)], (lba, blocks));
                }
                turns(*pause).await;
            }
            for one in &mut all {
                act(reactor, one, Action::Take, 0).await;
            }
        });
        for _ in 0..2000 {
            if poller.outstanding() == 0 {
                break;
            }
            poller.poll(|done| panic!("{:?} shows up where nobody asked for it", done.io()));
            emulator.step();
        }
        assert_eq!(poller.outstanding(), 0);
    }
}

/// What was prepared while it waited to be submitted again may not be true any more.
#[test]
fn a_namespace_shrinks_between_two_submissions() {
    let World { emulator, space, mut poller, targets: [disk, _] } = world(4, false);
    poller.run(async |reactor| {
        let mut request =
            reactor.submit(disk, IoContainer::read(2000, space.allocate(BLOCK).unwrap())).unwrap();
        soon(request.finished()).await.result().unwrap();
        emulator.resize(1, 100);
        // Until the driver has heard of it.
        for _ in 0..1_000_000 {
            match reactor.submit(disk, IoContainer::read(2000, space.allocate(BLOCK).unwrap())) {
                Err(rejected) => {
                    assert!(matches!(rejected.reason, Refusal::OutOfRange { capacity: 100, .. }));
                    break;
                }
                Ok(other) => drop(soon(other).await),
            }
        }
        let rejected = soon(request.finished()).await.resubmit().unwrap_err();
        assert!(matches!(rejected.reason, Refusal::OutOfRange { capacity: 100, .. }), "{}", rejected.reason);
    });
    assert_eq!(poller.outstanding(), 0);
}

/// In a command with others, in a command of its own, in several, or without one yet.
#[test]
fn it_becomes_an_event_wherever_it_is() {
    for (depth, row, blocks) in [(1, 4, 8), (8, 1, 8), (4, 1, 512), (1, 2, 256)] {
        for which in 0..row {
            let World { emulator, space, mut poller, targets: [disk, _] } = world(depth, true);
            poller.run(async |reactor| {
                emulator.hold(kiovec_emulator::Commands::io());
                let read = |i: usize| submit(reactor, &space, disk, (100 + i as u64 * blocks, blocks));
                let mut all: Vec<_> = (0..row).map(read).collect();
                turns(3).await;
                let event = all[which].request.as_ref().unwrap().event();
                emulator.release_all();
                let (verdict, totals) = soon(reactor.settled(event)).await.unwrap();
                assert!(verdict.success);
                assert_eq!(totals.bytes, blocks * BLOCK as u64);
                for one in &mut all {
                    act(reactor, one, Action::Again, 7).await;
                    act(reactor, one, Action::Take, 0).await;
                }
            });
            assert_eq!(poller.outstanding(), 0);
        }
    }
}
