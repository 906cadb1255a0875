//! What the kernel tells of a function besides: that it wants it back, and errors of the bus; and a controller
//! that vanishes with nothing in flight.
#![allow(clippy::unwrap_used)]

mod pass_on;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kiovec::memory::DmaSpace;
use kiovec::pci::{DoorbellPage, Function, Notice, PostedWrites};
use kiovec::spec::{Status, admin_opcode};
use kiovec::{Cause, Controller, ControllerEvent, Error, IoContainer, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use pass_on::pass_on;

const BLOCK: usize = 4096;
/// Polls from one look at the controllers to the next.
const LOOK: usize = 1024;

/// Doorbells that keep what is behind them open, as a mapping does.
struct Doorbells(Arc<dyn Function>);

impl PostedWrites for Doorbells {
    fn post(&self, offset: u64, value: u32) {
        let _ = self.0.write32(offset, value);
    }
}

/// A function that is told of what a test says.
struct Told {
    inner: Arc<dyn Function>,
    doorbells: Arc<Doorbells>,
    notices: Mutex<Vec<Notice>>,
    /// How often the driver has asked for them.
    looks: AtomicUsize,
}

impl Function for Told {
    pass_on! { inner: name, domain, config_read, config_write, read32, read64, write32, write64, reset, clock, pause }

    fn doorbells(&self, len: u64) -> Result<DoorbellPage, Error> {
        Ok(DoorbellPage::posted(Arc::clone(&self.doorbells) as _, len))
    }

    fn notice(&self) -> Option<Notice> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.notices.lock().unwrap().pop()
    }
}

/// A controller that a test tells of, in a poller with others.
struct Side {
    function: Arc<Told>,
    controller: Arc<Controller>,
    emulator: Emulator,
    target: Target,
    queue: QueueId,
}

struct Bench {
    space: DmaSpace,
    poller: Poller,
    sides: Vec<Side>,
}

impl Bench {
    fn new(controllers: usize) -> Bench {
        Bench::merging(controllers, false)
    }

    fn merging(controllers: usize, merge: bool) -> Bench {
        let space = DmaSpace::new().unwrap();
        let mut bench = Bench { poller: Poller::new(64), space, sides: Vec::new() };
        for _ in 0..controllers {
            let emulator = Emulator::stepped(Config::parse("size=1M,block=4096,media=ram").unwrap()).unwrap();
            let inner = emulator.function();
            let doorbells = Arc::new(Doorbells(Arc::clone(&inner)));
            let (notices, looks) = (Mutex::default(), AtomicUsize::new(0));
            let function = Arc::new(Told { inner, doorbells, notices, looks });
            let controller = Controller::open(Arc::clone(&function) as _, &bench.space).unwrap();
            let options = QueueOptions::default().depth(4).merge(merge);
            let queue = bench.poller.add_queue(&controller, options).unwrap();
            let target = bench.poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
            bench.sides.push(Side { function, controller, emulator, target, queue });
        }
        bench
    }

    fn tell(&self, side: usize, notice: Notice) {
        self.sides[side].function.notices.lock().unwrap().push(notice);
    }

    /// Reads of 8 blocks, of which 4 can be in flight, none of which is completed.
    fn hold(&mut self, side: usize) {
        self.sides[side].emulator.hold(Commands::io());
        self.submit(side, 8);
        self.turns(4);
    }

    fn submit(&mut self, side: usize, count: u64) {
        for lba in 0..count {
            let io = IoContainer::read(lba, self.space.allocate(BLOCK).unwrap()).tag(side as u64);
            self.poller.submit(self.sides[side].target, io).unwrap();
        }
    }

    fn looks(&self, side: usize) -> usize {
        self.sides[side].function.looks.load(Ordering::Relaxed)
    }

    /// Polls and steps; what completed, with the side that it was for.
    fn turns(&mut self, count: usize) -> Vec<(u64, Result<(), Cause>)> {
        let mut all = Vec::new();
        for _ in 0..count {
            self.poller.poll(|done| {
                let result = done.result().map_err(|failure| failure.cause);
                let lost = matches!(result, Err(Cause::ControllerLost));
                let io = done.take();
                assert!(!lost || io.memory().len() == BLOCK, "what reaches nothing keeps nothing");
                all.push((io.get_tag(), result));
            });
            for side in &self.sides {
                side.emulator.step();
            }
        }
        all
    }
}

fn is_return_requested(event: &ControllerEvent) -> bool {
    matches!(event, ControllerEvent::ReturnRequested)
}

#[test]
fn what_the_kernel_wants_back_is_given_up() {
    let mut bench = Bench::new(2);
    bench.hold(0);
    bench.tell(0, Notice::ReturnRequested);
    let done = bench.turns(2 * LOOK);
    assert_eq!(done, [(0, Err(Cause::ControllerLost)); 8]);
    let controller = Arc::clone(&bench.sides[0].controller);
    let error = controller.check().unwrap_err();
    assert!(matches!(error, Error::ReturnRequested { .. }), "{error}");
    assert!(matches!(controller.namespace(1), Err(Error::ReturnRequested { .. })), "admin commands too");
    assert_eq!(controller.events().filter(is_return_requested).count(), 1);
    // What is submitted later fails too, the other one goes on.
    bench.submit(0, 1);
    bench.submit(1, 8);
    let mut done = bench.turns(2 * LOOK);
    done.sort_by_key(|(side, _)| *side);
    let expected = std::iter::once((0, Err(Cause::ControllerLost))).chain(vec![(1, Ok(())); 8]);
    assert!(done.iter().copied().eq(expected), "{done:?}");
    assert_eq!(bench.space.retired(), 0);
    drop(controller);
    assert_closed(bench);
}

/// Once all that may keep a function open is dropped, nothing does.
fn assert_closed(bench: Bench) {
    let function = Arc::downgrade(&bench.sides[0].function);
    let doorbells = Arc::downgrade(&bench.sides[0].function.doorbells);
    let Bench { poller, sides, .. } = bench;
    drop((poller, sides));
    assert_eq!((function.strong_count(), doorbells.strong_count()), (0, 0));
}

#[test]
fn queues_that_could_not_be_deleted_keep_nothing_open() {
    let mut bench = Bench::new(1);
    let refused = |opcode| {
        Fault::new(Commands::admin().opcode(opcode), Effect::Status(Status::INTERNAL_ERROR)).times(1)
    };
    let faults = Faults::default();
    let faults = faults.with(refused(admin_opcode::CREATE_IO_SQ)).with(refused(admin_opcode::DELETE_IO_CQ));
    bench.sides[0].emulator.set_faults(faults);
    let controller = Arc::clone(&bench.sides[0].controller);
    assert!(bench.poller.add_queue(&controller, QueueOptions::default()).is_err());
    drop(controller);
    assert_closed(bench);
}

#[test]
fn a_request_is_told_where_nobody_polls() {
    let bench = Bench::new(1);
    bench.tell(0, Notice::ReturnRequested);
    let controller = &bench.sides[0].controller;
    assert!(controller.check().is_ok());
    assert_eq!(controller.events().filter(is_return_requested).count(), 1);
    assert!(matches!(controller.check(), Err(Error::ReturnRequested { .. })));
    // A second one changes nothing.
    bench.tell(0, Notice::ReturnRequested);
    assert_eq!(controller.events().count(), 0);
}

/// The poll that finds a controller lost finds completions of its as well: they are of before.
#[test]
fn what_was_completed_before_a_controller_is_lost_has_its_result() {
    // Four have commands of their own; or all have one.
    for (merge, completed) in [(false, 4), (true, 8)] {
        let mut bench = Bench::merging(1, merge);
        let queue = bench.sides[0].queue;
        if merge {
            bench.poller.plug(queue);
        }
        bench.hold(0);
        bench.poller.unplug(queue);
        let before = bench.looks(0);
        while bench.looks(0) == before {
            bench.turns(1);
        }
        bench.turns(LOOK - 1);
        let before = bench.looks(0);
        bench.sides[0].emulator.release_all();
        while bench.sides[0].emulator.step() > 0 {}
        bench.tell(0, Notice::ReturnRequested);
        let done = bench.turns(1);
        assert!(bench.looks(0) > before, "it was to look in this poll");
        assert_eq!(done[..completed], vec![(0, Ok(())); completed]);
        assert_eq!(done[completed..], vec![(0, Err(Cause::ControllerLost)); 8 - completed]);
        assert_eq!(bench.poller.stats(queue).faults, 0);
    }
}

/// The kernel asks for what was pulled out, too.
#[test]
fn what_was_pulled_out_is_gone_and_not_wanted_back() {
    let mut bench = Bench::new(2);
    bench.hold(0);
    bench.sides[0].emulator.unplug();
    bench.tell(0, Notice::ReturnRequested);
    assert_eq!(bench.turns(2 * LOOK), [(0, Err(Cause::ControllerLost)); 8]);
    let error = bench.sides[0].controller.check().unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
    bench.submit(1, 1);
    assert_eq!(bench.turns(LOOK), [(1, Ok(()))]);
}

#[test]
fn an_error_of_the_bus_costs_a_reset() {
    let mut bench = Bench::new(1);
    bench.hold(0);
    bench.tell(0, Notice::BusError);
    assert_eq!(bench.turns(8 * LOOK), []);
    bench.sides[0].emulator.release_all();
    assert_eq!(bench.turns(LOOK), [(0, Ok(())); 8]);
    let side = &bench.sides[0];
    side.controller.check().unwrap();
    assert!(side.controller.events().any(|event| matches!(event, ControllerEvent::BusError)));
    let stats = bench.poller.stats(side.queue);
    assert_eq!((stats.resets, stats.resent), (1, 4));
}

#[test]
fn an_error_of_the_bus_that_nothing_survives_is_the_end() {
    let mut bench = Bench::new(2);
    bench.hold(0);
    bench.sides[0].emulator.unplug();
    bench.tell(0, Notice::BusError);
    assert_eq!(bench.turns(2 * LOOK), [(0, Err(Cause::ControllerLost)); 8]);
    let error = bench.sides[0].controller.check().unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
}

/// In the middle of a reset: no poller waits for one that does not come back.
#[test]
fn a_reset_ends_with_what_it_resets() {
    let mut bench = Bench::new(1);
    bench.hold(0);
    bench.tell(0, Notice::BusError);
    while bench.sides[0].controller.namespace(1).is_ok() {
        bench.turns(1);
    }
    bench.tell(0, Notice::Gone);
    assert_eq!(bench.turns(2 * LOOK), [(0, Err(Cause::ControllerLost)); 8]);
    assert!(bench.sides[0].controller.check().is_err());
}

/// A function that completes what was held back, and is pulled out then, at the first look at a register once it is
/// armed.
struct Late {
    inner: Arc<dyn Function>,
    emulator: Emulator,
    armed: AtomicBool,
}

impl Function for Late {
    pass_on! { inner: name, domain, config_read, config_write, read64, write32, write64, doorbells, reset, clock, pause }

    fn read32(&self, offset: u64) -> Result<u32, Error> {
        if self.armed.swap(false, Ordering::Relaxed) {
            self.emulator.release_all();
            while self.emulator.step() > 0 {}
            self.emulator.unplug();
        }
        self.inner.read32(offset)
    }
}

/// They have finished when the controller is found to be lost, after the turn of their queue, and their futures are
/// dropped before the next one.
#[test]
fn requests_that_finish_between_two_turns_outlive_their_futures() {
    let emulator = Emulator::stepped(Config::parse("size=1M,block=4096,media=ram").unwrap()).unwrap();
    let function = Arc::new(Late { inner: emulator.function(), emulator, armed: AtomicBool::new(false) });
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(Arc::clone(&function) as _, &space).unwrap();
    let mut poller = Poller::new(8);
    let options = QueueOptions::default().gather(true).command_timeout(None);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    function.emulator.hold(Commands::io());
    function.armed.store(true, Ordering::Relaxed);
    poller.run(async |reactor| {
        let read =
            |lba| reactor.submit(disk, IoContainer::read(lba, space.allocate(BLOCK).unwrap())).unwrap();
        let requests = [0, 1, 2].map(read);
        let mut left = 200_000;
        std::future::poll_fn(|context| {
            left -= 1;
            context.waker().wake_by_ref();
            let waits = function.armed.load(Ordering::Relaxed) && left > 0;
            if waits { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
        })
        .await;
        drop(requests);
    });
    assert!(!function.armed.load(Ordering::Relaxed), "nobody has looked");
    assert_eq!((poller.outstanding(), poller.stats(queue).merges), (3, 2));
    poller.poll(|done| panic!("{:?} shows up where nobody asked for it", done.io()));
    assert_eq!((poller.outstanding(), poller.stats(queue).faults), (0, 0));
}
