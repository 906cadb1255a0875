//! A user's layer that keeps requests until their time comes: what waits in it is no different from what
//! waits elsewhere.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiovec::layer::{Cx, Disk, Geometry, Handle, Layer, Trace, Waiting};
use kiovec::memory::DmaSpace;
use kiovec::{Cause, Controller, IoContainer, Poller, QueueId, QueueOptions, State, Target};
use kiovec_emulator::{Config, Emulator};

/// Lets a request down once in a while, those with odd tags first.
struct Gate<B> {
    below: B,
    waiting: Waiting,
    every: Duration,
}

impl<B: Layer> Layer for Gate<B> {
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
        cx.wait(&mut self.waiting, io);
        let next = cx.now() + self.every;
        cx.call_at(next);
        None
    }

    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        self.below.complete(cx, io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        let odd = cx.next_waiting(&mut self.waiting, |cx, io| cx.io(io).get_tag() % 2 == 1);
        let next = odd.or_else(|| cx.next_waiting(&mut self.waiting, |_, _| true))?;
        let when = cx.now() + self.every;
        cx.call_at(when);
        self.below.submit(cx, next)
    }
}

struct Bench {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<Gate<Trace<Disk>>>,
    queue: QueueId,
    stack: Target,
}

fn bench() -> Bench {
    let emulator = Emulator::stepped(Config::parse("size=16M,block=4096,media=ram").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(64);
    let queue = poller.add_queue(&controller, QueueOptions::default()).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let below = Trace::new(Disk::new(&poller, disk).unwrap());
    let every = Duration::from_secs(1);
    let stack = poller.add_layer(Gate { below, waiting: Waiting::default(), every }).unwrap();
    Bench { emulator, space, poller, queue, stack }
}

#[test]
fn requests_leave_in_the_order_that_the_layer_wants() {
    let mut bench = bench();
    for tag in 0..10 {
        let io = IoContainer::read(tag, bench.space.allocate(4096).unwrap()).tag(tag);
        bench.poller.submit(bench.stack, io).unwrap();
    }
    let mut order = Vec::new();
    for second in 1..=10 {
        for _ in 0..5 {
            bench.poller.poll(|done| order.push(done.io().get_tag()));
            bench.emulator.step();
        }
        assert_eq!(bench.poller.stats(bench.queue).commands, second - 1);
        bench.emulator.advance(Duration::from_secs(1));
    }
    while bench.poller.outstanding() > 0 {
        bench.poller.poll(|done| order.push(done.io().get_tag()));
        bench.emulator.step();
    }
    assert_eq!(order, [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]);
}

/// The layer looks at nothing, and submits what was ended: it comes back, and no command is made of it.
#[test]
fn what_is_ended_while_it_waits_goes_no_further() {
    let mut bench = bench();
    let events = [0, 1, 2].map(|lba| {
        let io = IoContainer::read(lba, bench.space.allocate(4096).unwrap());
        bench.poller.request(bench.stack, io).unwrap()
    });
    bench.poller.poll(|_| {});
    bench.poller.cancel(events[1]);
    bench.poller.cancel(events[0]);
    for _ in 0..20 {
        bench.poller.poll(|_| {});
        bench.emulator.step();
        bench.emulator.advance(Duration::from_secs(1));
    }
    let causes = events.map(|event| {
        assert!(matches!(bench.poller.state(event), Some(State::Settled(..))));
        bench.poller.claim(event).unwrap().1.err().map(|failure| failure.cause)
    });
    assert_eq!(causes, [Some(Cause::Cancelled), Some(Cause::Cancelled), None]);
    assert_eq!(bench.poller.stats(bench.queue).commands, 1);
}
