//! Controllers that are lost and cannot be stopped, so that their memory goes back to nobody; and requests
//! that were ended while a layer had them.
#![allow(clippy::unwrap_used, clippy::type_complexity, clippy::cast_possible_truncation)]

mod pass_on;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiovec::layer::{
    Cache, CacheOptions, Cx, Disk, Geometry, Handle, Layer, Mirror, Retry, RetryOptions, Stack, Stripe,
    Verify, Waiting,
};
use kiovec::memory::DmaSpace;
use kiovec::pci::Function;
use kiovec::spec::Status;
use kiovec::{Cause, Controller, Error, Event, IoContainer, Poller, QueueId, QueueOptions, State, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use pass_on::pass_on;

const BLOCK: usize = 4096;
const SETTINGS: &str = "size=16M,block=4096,media=ram,mdts=1,awupf=1";

/// A function that fails, and that nothing can stop then: it may go on to write.
struct Stubborn {
    inner: Arc<dyn Function>,
    fatal: Arc<AtomicBool>,
}

impl Stubborn {
    fn failed(&self) -> bool {
        self.fatal.load(Ordering::Relaxed)
    }

    fn refuse<T>(&self) -> Result<T, Error> {
        Err(Error::InvalidInput("it does not listen".into()))
    }
}

impl Function for Stubborn {
    pass_on! { inner: name, domain, config_read, read64, write64, doorbells, clock, pause }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), Error> {
        if self.failed() { self.refuse() } else { self.inner.config_write(offset, data) }
    }

    fn read32(&self, offset: u64) -> Result<u32, Error> {
        match offset {
            // CSTS: RDY and CFS
            0x1c if self.failed() => Ok(3),
            _ => self.inner.read32(offset),
        }
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), Error> {
        if self.failed() { Ok(()) } else { self.inner.write32(offset, value) }
    }

    fn reset(&self) -> Result<(), Error> {
        if self.failed() { self.refuse() } else { self.inner.reset() }
    }
}

struct Leg {
    emulator: Emulator,
    fatal: Arc<AtomicBool>,
    queue: QueueId,
}

struct Bench<L: Layer> {
    legs: Vec<Leg>,
    space: DmaSpace,
    poller: Poller<L>,
    target: Target,
}

fn bench<L: Layer>(
    settings: &str,
    legs: usize,
    depth: usize,
    make: impl FnOnce(&DmaSpace, Vec<Disk>) -> L,
) -> Bench<L> {
    let space = DmaSpace::new().unwrap();
    let mut poller = Poller::with_layers(16);
    let mut all = Vec::new();
    let mut disks = Vec::new();
    for _ in 0..legs {
        let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
        let fatal = Arc::new(AtomicBool::new(false));
        let function = Arc::new(Stubborn { inner: emulator.function(), fatal: Arc::clone(&fatal) });
        let controller = Controller::open(function, &space).unwrap();
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(depth)).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        disks.push(Disk::new(&poller, disk).unwrap());
        all.push(Leg { emulator, fatal, queue });
    }
    let target = poller.add_layer(make(&space, disks)).unwrap();
    Bench { legs: all, space, poller, target }
}

impl<L: Layer> Bench<L> {
    fn read(&self, lba: u64, blocks: usize) -> IoContainer {
        IoContainer::read(lba, self.space.allocate(blocks * BLOCK).unwrap())
    }

    fn write(&self, lba: u64, blocks: usize) -> IoContainer {
        IoContainer::write(lba, self.space.allocate(blocks * BLOCK).unwrap())
    }

    fn turn(&mut self) {
        for _ in 0..10 {
            self.poller.poll(|_| {});
            for leg in &self.legs {
                leg.emulator.step();
            }
        }
        self.poller.poll(|_| {});
    }

    fn lose(&mut self, leg: usize) {
        self.legs[leg].fatal.store(true, Ordering::Relaxed);
        for _ in 0..70_000 {
            self.poller.poll(|_| {});
        }
        // It is tried to reset it, first.
        for _ in 0..8 {
            self.legs[leg].emulator.advance(Duration::from_secs(60));
            for _ in 0..1100 {
                self.poller.poll(|_| {});
            }
        }
    }

    fn is_settled(&self, event: Event) -> bool {
        matches!(self.poller.state(event), Some(State::Settled(..)))
    }
}

fn quietly<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

// ---- memory that was forfeited ----

/// One leg is lost, with memory that the other leg's copy has still to be made from.
#[test]
fn a_write_goes_on_with_the_other_leg() {
    let mut bench = bench(SETTINGS, 2, 8, |_, disks| Mirror::new(disks).unwrap());
    bench.legs[0].emulator.hold(Commands::writes());
    bench.poller.plug(bench.legs[1].queue);
    let io = bench.write(0, 2);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    assert!(quietly(|| bench.lose(0)).is_some(), "a panic when the leg is lost");
    bench.poller.unplug_or_panic(bench.legs[1].queue);
    assert!(quietly(|| bench.turn()).is_some(), "a panic for the other leg");
    assert!(bench.is_settled(request));
}

/// What panicked as well takes its slot along.
trait Unplug {
    fn unplug_or_panic(&mut self, queue: QueueId);
}

impl<L: Layer> Unplug for Poller<L> {
    fn unplug_or_panic(&mut self, queue: QueueId) {
        assert!(quietly(|| self.unplug(queue)).is_some(), "a panic for the other leg, in unplug");
    }
}

/// A stripe's other leg has still to read to memory that is gone.
#[test]
fn a_stripe_ends_when_a_leg_is_lost() {
    let mut bench = bench(SETTINGS, 2, 8, |_, disks| Stripe::new(disks, 2 * BLOCK as u64).unwrap());
    bench.legs[0].emulator.hold(Commands::reads());
    bench.poller.plug(bench.legs[1].queue);
    let io = bench.read(0, 4);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    bench.lose(0);
    bench.poller.unplug_or_panic(bench.legs[1].queue);
    assert!(quietly(|| bench.turn()).is_some(), "a panic for the other leg");
    assert!(bench.is_settled(request));
}

/// The first command has succeeded, and is checked; the memory went with the second.
#[test]
fn what_is_lost_is_not_verified() {
    let mut bench = bench(SETTINGS, 1, 8, |_, mut disks| Verify::new(disks.pop().unwrap()).unwrap());
    let io = bench.write(0, 4);
    bench.poller.submit(bench.target, io).unwrap();
    bench.turn();
    bench.legs[0].emulator.hold(Commands::reads().lbas(2..));
    let io = bench.read(0, 4);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    assert!(quietly(|| bench.lose(0)).is_some(), "a panic");
    assert!(bench.is_settled(request));
}

/// A part was settled before the rest was lost.
#[test]
fn an_observed_part_is_no_panic_when_the_rest_is_lost() {
    let mut bench = bench(SETTINGS, 1, 8, |_, mut disks| disks.pop().unwrap());
    bench.legs[0].emulator.hold(Commands::reads().lbas(2..));
    let io = bench.read(0, 4);
    let request = bench.poller.request(bench.target, io).unwrap();
    let first = bench.poller.observe(request, 0..BLOCK as u64).unwrap();
    let second = bench.poller.observe(request, BLOCK as u64..2 * BLOCK as u64).unwrap();
    bench.turn();
    assert!(bench.is_settled(first) && bench.is_settled(second));
    bench.lose(0);
    assert!(bench.is_settled(request));
    let lens = [first, second].map(|part| {
        quietly(|| bench.poller.observed(part).map(|bytes| bytes.map(<[u8]>::len).sum::<usize>()))
    });
    for len in lens {
        let len = len.expect("a panic");
        assert!(len.is_none() || len == Some(BLOCK), "it shows {len:?} bytes");
    }
}

/// A buffer that was forfeited is none to hedge with.
#[test]
fn a_lost_buffer_is_not_used_again() {
    let mut bench = bench(SETTINGS, 3, 8, |space, disks| {
        let buffers = (0..2).map(|_| space.allocate(8 * BLOCK).unwrap()).collect();
        Mirror::new(disks).unwrap().hedged(Duration::from_secs(1000), buffers).unwrap()
    });
    bench.legs[0].emulator.hold(Commands::reads());
    let io = bench.read(0, 1);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    assert!(quietly(|| bench.lose(0)).is_some(), "a panic when the leg is lost");
    quietly(|| bench.turn()).expect("a panic");
    assert!(bench.is_settled(request));
    for round in 0..4 {
        let io = bench.read(0, 1);
        let again = bench.poller.request(bench.target, io).unwrap();
        assert!(quietly(|| bench.turn()).is_some(), "a panic in round {round}");
        assert!(bench.is_settled(again), "round {round}");
        assert_eq!(bench.poller.claim(again).unwrap().1, Ok(()), "round {round}");
    }
}

/// A read is in flight on a leg that is lost, and cannot be stopped.
fn lose_the_memory_of_a_read<L: Layer>(bench: &mut Bench<L>) {
    bench.legs[0].emulator.hold(Commands::reads());
    let io = bench.read(0, 1);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    bench.lose(0);
    bench.turn();
    let (io, result) = bench.poller.claim(request).unwrap();
    assert_eq!(result.unwrap_err().cause, Cause::ControllerLost);
    assert_eq!(io.into_memory().len(), 0, "the controller may still write to it");
}

/// A read whose leg was lost and cannot be stopped: with its memory forfeited it cannot go on, and that is what it says.
/// The next one is read from the other leg.
#[test]
fn a_read_that_lost_its_memory_says_so() {
    let mut bench = bench(SETTINGS, 2, 8, |_, disks| Mirror::new(disks).unwrap());
    lose_the_memory_of_a_read(&mut bench);
    assert!(bench.space.retired() > 0);
    let io = bench.read(0, 1);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    let (io, result) = bench.poller.claim(request).unwrap();
    assert_eq!((result, io.into_memory().len()), (Ok(()), BLOCK));
}

/// Nobody reads into the memory that went with one leg, and that is no fault of the others.
#[test]
fn no_other_leg_is_blamed_for_memory_that_is_lost() {
    let mut bench = bench(SETTINGS, 3, 8, |_, disks| Mirror::new(disks).unwrap());
    bench.legs[0].emulator.hold(Commands::reads());
    for lba in 0..6 {
        let io = bench.read(lba, 1);
        bench.poller.submit(bench.target, io).unwrap();
    }
    bench.turn();
    bench.lose(0);
    bench.turn();
    let mirror = bench.poller.layer(bench.target).unwrap();
    let legs = [0, 1, 2].map(|leg| mirror.leg_counts(leg).unwrap());
    assert_eq!(legs.map(|leg| leg.failed_reads), [2, 0, 0]);
    assert_eq!(mirror.counts().failovers, 0);
    // Reads that keep their memory find it lost, and go on elsewhere.
    for lba in 0..3 {
        let io = bench.read(lba, 1);
        let request = bench.poller.request(bench.target, io).unwrap();
        bench.turn();
        assert_eq!(bench.poller.claim(request).unwrap().1, Ok(()));
    }
    let mirror = bench.poller.layer(bench.target).unwrap();
    let ejected = [0, 1, 2].map(|leg| mirror.leg_counts(leg).unwrap().ejected);
    assert_eq!(ejected, [Some(Cause::ControllerLost), None, None]);
    assert_eq!(mirror.counts().failovers, 1);
}

/// A mirror in a mirror that loses a leg, and with it the memory of a read, is not lost itself.
#[test]
fn a_mirror_is_not_lost_with_the_memory_of_a_read() {
    let mut bench = bench(SETTINGS, 3, 8, |_, mut disks| {
        let third = Stack::Disk(disks.pop().unwrap());
        let inner = Mirror::new(disks.into_iter().map(Stack::Disk).collect()).unwrap();
        Mirror::new(vec![Stack::Mirror(Box::new(inner)), third]).unwrap()
    });
    lose_the_memory_of_a_read(&mut bench);
    let mirror = bench.poller.layer(bench.target).unwrap();
    assert_eq!([0, 1].map(|leg| mirror.leg_counts(leg).unwrap().ejected), [None, None]);
}

// ---- observers ----

/// A read of one line of a cache, observed.
#[test]
fn a_part_of_a_cached_read_is_shown() {
    let mut bench = bench(SETTINGS, 1, 8, |space, mut disks| {
        let options = CacheOptions { bytes: 64 * BLOCK, line: 4 * BLOCK };
        Cache::new(disks.pop().unwrap(), space, options).unwrap()
    });
    let io = bench.read(0, 2);
    let request = bench.poller.request(bench.target, io).unwrap();
    let part = bench.poller.observe(request, 0..BLOCK as u64).unwrap();
    bench.turn();
    assert!(bench.is_settled(request) && bench.is_settled(part));
    let State::Settled(verdict, _) = bench.poller.state(part).unwrap() else { panic!() };
    assert!(verdict.success);
    assert!(bench.poller.observed(part).is_some(), "settled, succeeded, and not claimed");
}

/// What was done is done once more, and that fails.
#[test]
fn what_failed_the_second_time_is_not_shown() {
    let mut bench = bench(SETTINGS, 1, 8, |_, mut disks| {
        Retry::new(disks.pop().unwrap(), RetryOptions::default().times(1)).unwrap()
    });
    let fault =
        |lbas| Fault::new(Commands::reads().lbas(lbas), Effect::Status(Status::UNRECOVERED_READ_ERROR));
    let emulator = &bench.legs[0].emulator;
    emulator.set_faults(Faults::default().with(fault(0..1)));
    emulator.hold(Commands::reads().lbas(0..1));
    let io = bench.read(0, 4);
    let request = bench.poller.request(bench.target, io).unwrap();
    let behind = bench.poller.observe(request, 2 * BLOCK as u64..4 * BLOCK as u64).unwrap();
    bench.turn();
    assert!(bench.is_settled(behind) && bench.poller.observed(behind).is_some());
    bench.legs[0].emulator.release_all();
    bench.legs[0].emulator.step();
    bench.legs[0].emulator.set_faults(Faults::default().with(fault(2..3)));
    bench.turn();
    assert!(bench.is_settled(request));
    let shown = bench.poller.observed(behind).is_some();
    let (_, result) = bench.poller.claim(request).unwrap();
    assert_eq!(result.unwrap_err().lba, 2);
    assert!(!shown, "these blocks were read once more, which failed");
}

// ---- cancelled ----

/// A write that one of two legs carried out, and then was cancelled.
#[test]
fn stacks_of_all_kinds_cancel() {
    for text in [
        "stripe(chunk=8K,A,B)",
        "mirror(A,B)",
        "mirror(hedge=1,A,B)",
        "cache(bytes=256K,line=16K,stripe(chunk=8K,A,B))",
        "retry(times=2,delay=1,stripe(chunk=8K,retry(times=1,A),verify(B)))",
        "verify(cache(bytes=256K,line=16K,mirror(hedge=1,A,B)))",
    ] {
        for write in [false, true] {
            for when in 0..6 {
                let mut bench = bench(SETTINGS, 2, 2, |space, disks| {
                    let plan = text.parse().unwrap();
                    let mut take = |name: &str| Ok(disks[usize::from(name == "B")]);
                    Stack::new(&plan, space, &mut take).unwrap()
                });
                bench.legs[0].emulator.hold(Commands::io());
                let mut requests = Vec::new();
                for i in 0..4 {
                    let io = if write { bench.write(3 * i, 9) } else { bench.read(3 * i, 9) };
                    requests.push(bench.poller.request(bench.target, io).unwrap());
                }
                for _ in 0..when {
                    bench.poller.poll(|_| {});
                    bench.legs.iter().for_each(|leg| {
                        leg.emulator.step();
                        leg.emulator.advance(Duration::from_micros(1));
                    });
                }
                for request in &requests[..3] {
                    bench.poller.cancel(*request);
                }
                bench.legs[0].emulator.release_all();
                for _ in 0..20 {
                    bench.turn();
                    bench.legs.iter().for_each(|leg| leg.emulator.advance(Duration::from_millis(1)));
                }
                for request in requests {
                    assert!(bench.is_settled(request), "{text} {write} {when}");
                    let _ = bench.poller.claim(request).unwrap();
                }
                assert_eq!(bench.poller.outstanding(), 0, "{text} {write} {when}");
            }
        }
    }
}

// ---- ended while a layer kept it ----

/// Keeps all requests until it is told to let them go.
struct Gate<B> {
    below: B,
    waiting: Waiting,
    open: std::rc::Rc<std::cell::Cell<bool>>,
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
        cx.call_again();
        None
    }

    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        self.below.complete(cx, io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        if let Some(io) = self.below.poll(cx) {
            return Some(io);
        }
        while self.open.get()
            && let Some(io) = cx.next_waiting(&mut self.waiting, |_, _| true)
        {
            if let Some(io) = self.below.submit(cx, io) {
                return Some(io);
            }
        }
        cx.call_again();
        None
    }
}

/// As `Cx::submit` gives back what was ended while a layer kept it, so should the layers that split.
fn ended_above(text: &str, io: impl Fn(&Bench<Gate<Stack>>) -> IoContainer) {
    let open = std::rc::Rc::default();
    let may = std::rc::Rc::clone(&open);
    let mut bench = bench(SETTINGS, 2, 8, |space, disks| {
        let mut take = |name: &str| Ok(disks[usize::from(name == "B")]);
        let below = Stack::new(&text.parse().unwrap(), space, &mut take).unwrap();
        Gate { below, waiting: Waiting::default(), open: may }
    });
    let io = io(&bench);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    bench.poller.cancel(request);
    open.set(true);
    assert!(quietly(|| bench.turn()).is_some(), "{text}: a panic");
    assert!(bench.is_settled(request), "{text}");
    let commands: u64 = bench.legs.iter().map(|leg| bench.poller.stats(leg.queue).commands).sum();
    assert_eq!(commands, 0, "{text}: no part of it is issued any more");
}

#[test]
fn a_stripe_splits_nothing_that_was_ended() {
    ended_above("stripe(chunk=8K,A,B)", |bench| bench.read(0, 4));
}

#[test]
fn a_mirror_writes_nothing_that_was_ended() {
    ended_above("mirror(A,B)", |bench| bench.write(0, 1));
}

#[test]
fn a_cache_reads_nothing_that_was_ended() {
    ended_above("cache(bytes=256K,line=16K,A)", |bench| bench.read(0, 1));
}

#[test]
fn a_hedged_mirror_reads_nothing_that_was_ended() {
    ended_above("mirror(hedge=1,A,B)", |bench| bench.read(0, 1));
}

// ---- counters ----

/// A write that succeeded gives its caller a container that can be written again.
#[test]
fn what_succeeded_has_its_memory() {
    let mut bench = bench(SETTINGS, 2, 8, |_, disks| Mirror::new(disks).unwrap());
    bench.legs[0].emulator.hold(Commands::writes());
    let io = bench.write(0, 2);
    let request = bench.poller.request(bench.target, io).unwrap();
    bench.turn();
    bench.lose(0);
    let State::Settled(verdict, totals) = bench.poller.state(request).unwrap() else { panic!() };
    assert!(verdict.success);
    assert_eq!(totals.bytes, 2 * BLOCK as u64, "of a request that succeeded");
}

/// One that failed is reset when that is found. Whoever drops it meanwhile, wherever the reset stands, leaves it
/// such that it can be opened again: it must not be shut down when it is disabled, or the next one who enables
/// it waits for its first completion in vain.
#[test]
fn a_controller_that_failed_can_be_opened_again() {
    for polls in (0..20).map(|look| if look == 0 { 0 } else { 64_000 + 512 * look }) {
        let space = DmaSpace::new().unwrap();
        let emulator = Emulator::stepped(Config::parse(SETTINGS).unwrap()).unwrap();
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let mut poller = Poller::new(1);
        let queue = poller.add_queue(&controller, QueueOptions::default()).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        poller.submit(disk, IoContainer::read(0, space.allocate(BLOCK).unwrap())).unwrap();
        poller.poll(|_| panic!("nothing was carried out yet"));
        emulator.fail();
        for _ in 0..polls {
            poller.poll(|done| assert_eq!(done.result(), Ok(())));
            if polls > 0 {
                emulator.step();
            }
        }
        drop((poller, controller));
        Controller::open(emulator.function(), &space).unwrap().namespace(1).unwrap();
    }
}
