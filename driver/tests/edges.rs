//! The edges of the poller and of the seam for layers: observers, requests that end in odd places, layers
//! with mistakes, controllers that are lost. Each test stands for a defect that was there.
#![allow(clippy::unwrap_used, clippy::type_complexity)]

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use kiovec::layer::{Cx, Disk, Geometry, Handle, Layer, Trace};
use kiovec::memory::{DmaSpace, MemoryChain, RawCommands};
use kiovec::spec::{Command, Status};
use kiovec::{
    Cause, Controller, Event, IoContainer, Operation, Poller, QueueId, QueueOptions, Refusal, State, Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};

const BLOCK: usize = 4096;

/// A layer above a namespace that does what a test says.
struct Scripted {
    disk: Disk,
    children: u32,
    down: Box<dyn FnMut(&mut Cx<'_>, Handle) -> Option<Handle>>,
    up: Box<dyn FnMut(&mut Cx<'_>, Handle) -> Option<Handle>>,
    again: Box<dyn FnMut(&mut Cx<'_>) -> Option<Handle>>,
}

impl Scripted {
    fn new(disk: Disk) -> Scripted {
        let target = disk.target();
        Scripted {
            disk,
            children: 4,
            down: Box::new(move |cx, io| {
                cx.submit(target, io);
                None
            }),
            up: Box::new(|_, io| Some(io)),
            again: Box::new(|_| None),
        }
    }
}

impl Layer for Scripted {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn frames(&self) -> usize {
        0
    }

    fn orphans(&self) -> u32 {
        4
    }

    fn children(&self) -> u32 {
        self.children
    }

    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        (self.down)(cx, io)
    }

    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        (self.up)(cx, io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        (self.again)(cx)
    }
}

struct Bench<L: Layer> {
    emulator: Emulator,
    space: DmaSpace,
    controller: std::sync::Arc<Controller>,
    poller: Poller<L>,
    queue: QueueId,
    disk: Target,
}

const SETTINGS: &str = "size=16M,block=4096,media=ram,mdts=1,awupf=1";

fn bench<L: Layer>(settings: &str, requests: u32, depth: usize) -> Bench<L> {
    let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(requests);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(depth)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { emulator, space, controller, poller, queue, disk }
}

impl<L: Layer> Bench<L> {
    fn read(&self, lba: u64, blocks: usize) -> IoContainer {
        IoContainer::read(lba, self.space.allocate(blocks * BLOCK).unwrap())
    }

    fn turn(&mut self) {
        for _ in 0..10 {
            self.poller.poll(|_| {});
            self.emulator.step();
        }
        self.poller.poll(|_| {});
    }

    fn is_settled(&self, event: Event) -> bool {
        matches!(self.poller.state(event), Some(State::Settled(..)))
    }
}

impl Bench<Scripted> {
    fn scripted(requests: u32, script: impl FnOnce(&mut Scripted)) -> (Bench<Scripted>, Target) {
        let mut bench = bench(SETTINGS, requests, 8);
        let mut layer = Scripted::new(Disk::new(&bench.poller, bench.disk).unwrap());
        script(&mut layer);
        let target = bench.poller.add_layer(layer).unwrap();
        (bench, target)
    }
}

// ---- memory that a device may still write ----

/// A retry: what was done behind the failure is done once more, over memory that an observer shows.
#[test]
fn an_observer_shows_nothing_that_is_read_again() {
    let tries = Rc::new(Cell::new(0));
    let counted = Rc::clone(&tries);
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.up = Box::new(move |cx, mut io| {
            counted.set(counted.get() + 1);
            if counted.get() > 1 {
                return Some(io);
            }
            cx.resume(&mut io);
            cx.submit(disk, io);
            None
        });
    });
    // Two commands: the first fails, but after the second has succeeded.
    let fault = Fault::new(Commands::reads().lbas(0..1), Effect::Status(Status::UNRECOVERED_READ_ERROR));
    bench.emulator.set_faults(Faults::default().with(fault));
    bench.emulator.hold(Commands::reads().lbas(0..1));
    let request = bench.read(0, 4);
    let request = bench.poller.request(target, request).unwrap();
    let behind = bench.poller.observe(request, 2 * BLOCK as u64..4 * BLOCK as u64).unwrap();
    bench.turn();
    assert!(bench.is_settled(behind) && bench.poller.observed(behind).is_some());
    bench.emulator.release_all();
    bench.emulator.hold(Commands::reads());
    bench.emulator.set_faults(Faults::default());
    bench.emulator.step();
    bench.poller.poll(|_| {});
    assert_eq!(tries.get(), 1);
    bench.emulator.step();
    let again: Vec<u64> = bench.emulator.held().iter().map(|held| held.1.slba()).collect();
    assert!(again.contains(&2), "it is being read once more");
    assert!(bench.poller.observed(behind).is_none(), "the controller may still write there");
}

/// A layer that finds fault with data itself, and reads them once more.
#[test]
fn what_is_read_again_without_a_failure_is_not_done() {
    let tries = Rc::new(Cell::new(0));
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.up = Box::new(move |cx, mut io| {
            tries.set(tries.get() + 1);
            if tries.get() > 1 {
                return Some(io);
            }
            cx.resume(&mut io);
            cx.submit(disk, io);
            None
        });
    });
    let request = bench.read(0, 4);
    bench.emulator.hold(Commands::reads().lbas(2..3));
    let request = bench.poller.request(target, request).unwrap();
    let all = bench.poller.observe(request, 0..4 * BLOCK as u64).unwrap();
    bench.turn();
    // The second time, nothing comes back.
    bench.emulator.release(Commands::reads());
    bench.emulator.hold(Commands::reads());
    bench.turn();
    assert!(!bench.emulator.held().is_empty());
    assert_eq!(bench.poller.state(request), Some(State::Pending));
    assert!(bench.poller.observed(all).is_none(), "the controller may still write there");
}

/// A mirror's read: the first leg fails, which the layer absorbs, and the other one is asked.
#[test]
fn a_failure_that_is_absorbed_is_no_success() {
    let legs = Rc::new(Cell::new(0));
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            let leg = cx.child(&io, 2);
            cx.submit(disk, leg);
            cx.park(io);
            None
        });
        layer.up = Box::new(move |cx, leg| {
            legs.set(legs.get() + 1);
            if legs.get() > 1 {
                return cx.join(leg);
            }
            let mut io = cx.join(leg).unwrap();
            cx.resume(&mut io);
            let mut leg = cx.child(&io, 2);
            cx.set_lba(&leg, 100);
            cx.resume(&mut leg);
            cx.submit(disk, leg);
            cx.park(io);
            None
        });
    });
    let fault = Fault::new(Commands::reads().lbas(0..1), Effect::Status(Status::UNRECOVERED_READ_ERROR));
    bench.emulator.set_faults(Faults::default().with(fault));
    bench.emulator.hold(Commands::reads().lbas(100..));
    let request = bench.read(0, 2);
    let request = bench.poller.request(target, request).unwrap();
    let all = bench.poller.observe(request, 0..2 * BLOCK as u64).unwrap();
    bench.turn();
    assert_eq!(bench.emulator.held().len(), 1);
    assert_eq!(bench.poller.state(request), Some(State::Pending));
    assert!(bench.poller.observed(all).is_none(), "the controller may still write there");
}

fn halves(layer: &mut Scripted) {
    let disk = layer.disk.target();
    layer.down = Box::new(move |cx, io| {
        let half = cx.unissued(&io) / 2;
        for _ in 0..2 {
            let child = cx.child(&io, half);
            cx.submit(disk, child);
        }
        cx.park(io);
        None
    });
    layer.up = Box::new(|cx, child| cx.join(child));
}

/// A child that joined is counted twice for an observer that comes right after.
#[test]
fn an_observer_that_comes_late_waits_for_all_of_its_range() {
    let (mut bench, target) = Bench::scripted(8, halves);
    bench.emulator.hold(Commands::reads().lbas(2..));
    let request = bench.read(0, 4);
    let request = bench.poller.request(target, request).unwrap();
    let first = bench.poller.observe(request, 0..BLOCK as u64).unwrap();
    bench.poller.poll(|_| {});
    bench.emulator.step();
    bench.poller.poll(|_| {});
    let all = bench.poller.observe(request, 0..4 * BLOCK as u64).unwrap();
    bench.turn();
    assert!(bench.is_settled(first));
    assert_eq!(bench.emulator.held().len(), 1);
    assert!(!bench.is_settled(all));
    assert!(bench.poller.observed(all).is_none(), "the controller may still write there");
}

/// A child with memory of its own says nothing about its parent's blocks.
#[test]
fn a_fostered_child_is_not_counted_as_blocks_of_its_parent() {
    let own = Rc::new(RefCell::new(None));
    let give = Rc::clone(&own);
    let waiting = Rc::new(RefCell::new(None));
    let later = Rc::clone(&waiting);
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            *later.borrow_mut() = Some(io);
            cx.call_again();
            None
        });
        layer.again = Box::new(move |cx| {
            let io: Handle = waiting.borrow_mut().take()?;
            let foster = cx.foster(&io, give.borrow_mut().take()?);
            cx.submit(disk, foster);
            let child = cx.child(&io, 2);
            cx.submit(disk, child);
            cx.park(io);
            None
        });
        layer.up = Box::new(|cx, child| cx.join(child));
    });
    *own.borrow_mut() = Some(bench.read(100, 2));
    bench.emulator.hold(Commands::reads().lbas(..50));
    let request = bench.read(0, 2);
    let request = bench.poller.request(target, request).unwrap();
    let part = bench.poller.observe(request, 0..BLOCK as u64).unwrap();
    bench.turn();
    assert_eq!(bench.emulator.held().len(), 1);
    assert!(bench.poller.observed(part).is_none(), "the controller may still write there");
}

/// Two handles of one request: one goes down, the other one up.
#[test]
fn a_request_in_flight_is_never_done() {
    let own = Rc::new(RefCell::new(None));
    let give = Rc::clone(&own);
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            let foster = cx.foster(&io, give.borrow_mut().take().unwrap());
            let (_, twin) = cx.release(foster);
            cx.submit(disk, io);
            twin
        });
    });
    *own.borrow_mut() = Some(bench.read(100, 2));
    bench.emulator.hold(Commands::reads());
    let io = bench.read(0, 2);
    bench.poller.submit(target, io).unwrap();
    let mut seen = false;
    let _ = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..3 {
            bench.poller.poll(|done| {
                seen |= done.io().memory().segments()[0].as_slice().len() > 1;
                std::mem::forget(done);
            });
            bench.emulator.step();
        }
    }));
    assert!(!seen, "a slice of memory that the controller may still write");
}

/// A request that goes down itself, next to a child of it.
#[test]
fn a_request_is_done_when_its_children_are() {
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            let child = cx.share(&io, 0);
            cx.set_lba(&child, 100);
            cx.submit(disk, child);
            cx.submit(disk, io);
            None
        });
    });
    bench.emulator.hold(Commands::writes().lbas(100..));
    let memory = bench.space.allocate(2 * BLOCK).unwrap();
    let iova = memory.segments()[0].iova();
    let refused = catch_unwind(AssertUnwindSafe(|| {
        bench.poller.submit(target, IoContainer::write(0, memory)).unwrap();
    }));
    assert!(refused.is_err(), "a layer's mistake");
    let mut done = 0;
    for _ in 0..10 {
        bench.poller.poll(|_| done += 1);
        bench.emulator.step();
    }
    assert_eq!(bench.emulator.held().len(), 1);
    assert_ne!(bench.space.allocate(BLOCK).unwrap().segments()[0].iova(), iova, "freed in flight");
    assert_eq!(done, 0);
}

/// A child of a child that lost its parent moves memory of a request that is over.
#[test]
fn only_a_child_with_memory_of_its_own_goes_on_alone() {
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            let child = cx.child(&io, 2);
            let below = cx.child(&child, 2);
            let parent = cx.orphan(&child);
            cx.submit(disk, below);
            cx.park(child);
            parent
        });
    });
    bench.emulator.hold(Commands::reads());
    let io = bench.read(0, 2);
    let iova = io.memory().segments()[0].iova();
    let refused = catch_unwind(AssertUnwindSafe(|| bench.poller.submit(target, io).unwrap()));
    assert!(refused.is_err(), "a layer's mistake");
    bench.turn();
    assert_ne!(bench.space.allocate(BLOCK).unwrap().segments()[0].iova(), iova, "freed in flight");
}

/// A handle of another poller names a request that is in flight here.
#[test]
fn a_handle_of_another_poller_is_refused() {
    let stash = Rc::new(RefCell::new(None));
    let (put, take) = (Rc::clone(&stash), Rc::clone(&stash));
    let (mut other, theirs) = Bench::scripted(8, |layer| {
        layer.down = Box::new(move |_, io| {
            *put.borrow_mut() = Some(io);
            None
        });
    });
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            if let Some(mut foreign) = take.borrow_mut().take() {
                cx.set_lba(&foreign, 100);
                cx.resume(&mut foreign);
                cx.submit(disk, foreign);
                return Some(io);
            }
            cx.submit(disk, io);
            None
        });
    });
    // The first node of either tree.
    bench.emulator.hold(Commands::reads().lbas(..50));
    let io = bench.read(0, 2).tag(1);
    bench.poller.submit(target, io).unwrap();
    bench.turn();
    let io = other.read(0, 2);
    other.poller.submit(theirs, io).unwrap();
    let io = bench.read(10, 2).tag(2);
    let mut seen = false;
    let _ = catch_unwind(AssertUnwindSafe(|| {
        bench.poller.submit(target, io).unwrap();
        for _ in 0..5 {
            bench.poller.poll(|done| seen |= done.io().get_tag() == 1);
            bench.emulator.step();
        }
    }));
    assert_eq!(bench.emulator.held().len(), 1, "the first command is in flight");
    assert!(!seen, "its memory was handed out and freed");
}

// ---- lost and stuck ----

/// A layer has a request in its hands while that is cancelled.
#[test]
fn a_request_that_is_cancelled_in_a_layer_settles() {
    let held = Rc::new(RefCell::new(None));
    let (put, take) = (Rc::clone(&held), held);
    let go = Rc::new(Cell::new(false));
    let may = Rc::clone(&go);
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            *put.borrow_mut() = Some(io);
            cx.call_again();
            None
        });
        layer.again = Box::new(move |cx| {
            cx.call_again();
            if may.get()
                && let Some(io) = take.borrow_mut().take()
            {
                cx.submit(disk, io);
            }
            None
        });
    });
    let io = bench.read(0, 2);
    let request = bench.poller.request(target, io).unwrap();
    bench.turn();
    bench.poller.cancel(request);
    go.set(true);
    bench.turn();
    assert!(bench.is_settled(request), "{:?}", bench.poller.state(request));
}

/// A layer that answers by itself what is submitted again in place, as a cache does.
#[test]
fn a_request_that_a_layer_answers_gives_its_slot_back() {
    let count = Rc::new(Cell::new(0));
    let (mut bench, target) = Bench::scripted(64, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            count.set(count.get() + 1);
            if count.get() % 2 == 0 {
                return Some(io);
            }
            cx.submit(disk, io);
            None
        });
    });
    for round in 0..20 {
        let io = bench.read(0, 1);
        bench.poller.submit(target, io).unwrap();
        let mut finished = 0;
        for _ in 0..10 {
            bench.poller.poll(|done| {
                finished += 1;
                if finished == 1 {
                    done.resubmit().unwrap();
                }
            });
            bench.emulator.step();
        }
        assert_eq!(finished, 2, "round {round}");
    }
}

/// More hedges in flight than there is room for.
#[test]
fn orphans_leave_room_for_children() {
    let own: Rc<RefCell<Vec<IoContainer>>> = Rc::default();
    let give = Rc::clone(&own);
    let (mut bench, target) = Bench::scripted(1, |layer| {
        let disk = layer.disk.target();
        layer.children = 1;
        layer.down = Box::new(move |cx, io| {
            let foster = cx.foster(&io, give.borrow_mut().pop().unwrap());
            assert!(cx.orphan(&foster).is_none(), "the parent was not put away");
            cx.submit(disk, foster);
            Some(io)
        });
    });
    *own.borrow_mut() = (0..2).map(|_| bench.read(100, 1)).collect();
    bench.emulator.hold(Commands::reads());
    let io = bench.read(0, 1);
    bench.poller.submit(target, io).unwrap();
    let mut rounds = 0;
    for _ in 0..5 {
        bench.poller.poll(|done| {
            rounds += 1;
            if rounds < 2 {
                done.resubmit().unwrap();
            }
        });
        bench.emulator.step();
    }
    assert_eq!(rounds, 2);
}

/// A closure that panics at the first of several requests that one command carried.
#[test]
fn a_panic_in_the_closure_loses_nothing_else() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 8);
    bench.poller.plug(bench.queue);
    for lba in 0..2 {
        let io = bench.read(lba, 1);
        bench.poller.submit(bench.disk, io).unwrap();
    }
    bench.poller.unplug(bench.queue);
    bench.poller.poll(|_| {});
    bench.emulator.step();
    let panicked = catch_unwind(AssertUnwindSafe(|| bench.poller.poll(|_| panic!("of the test"))));
    assert!(panicked.is_err());
    assert_eq!(bench.poller.stats(bench.queue).merges, 1);
    bench.turn();
    assert_eq!(bench.poller.outstanding(), 0);
}

/// A closure that panics after it has submitted a request.
#[test]
fn what_was_submitted_before_a_panic_goes_down_with_the_next_poll() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 8);
    for lba in [0, 10] {
        let io = bench.read(lba, 1);
        bench.poller.submit(bench.disk, io).unwrap();
    }
    bench.poller.poll(|_| {});
    bench.emulator.step();
    let mut count = 0;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        bench.poller.poll(|done| {
            count += 1;
            assert!(count < 2, "of the test");
            done.resubmit().unwrap();
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(bench.poller.stats(bench.queue).commands, 2);
    bench.poller.poll(|_| {});
    assert_eq!(bench.poller.stats(bench.queue).commands, 3);
}

// ---- resubmission ----

/// Memory that is exchanged for other memory, of whatever shape: nothing goes to what was there before.
#[test]
fn data_go_to_the_memory_that_is_there_now() {
    let mut bench: Bench<kiovec::layer::Direct> = bench("size=16M,block=4096,media=ram,mdts=4", 8, 8);
    let byte = |lba: usize| lba as u8 + 1;
    let mut all = bench.space.allocate(64 * BLOCK).unwrap();
    (0..64).for_each(|lba| all.copy_from_slice(lba * BLOCK, &[byte(lba); BLOCK]));
    bench.poller.submit(bench.disk, IoContainer::write(0, all)).unwrap();
    bench.turn();
    // Segments of these lengths, none next to another.
    let space = bench.space.clone();
    let chain = |lengths: &[usize]| {
        let mut chain = MemoryChain::new();
        for length in lengths {
            chain.append(space.allocate(length + BLOCK).unwrap().slice(0..*length));
        }
        chain
    };
    let part = |at: usize, length| space.allocate(4 << 20).unwrap().slice(at..at + length);
    fn several<const N: usize>(parts: [MemoryChain; N]) -> MemoryChain {
        let mut chain = MemoryChain::new();
        parts.into_iter().for_each(|part| chain.append(part));
        chain
    }
    let shapes = [
        chain(&[BLOCK]),
        chain(&[BLOCK; 9]),
        chain(&[9 * BLOCK]),
        chain(&[BLOCK; 9]),
        chain(&[BLOCK, BLOCK, 3 * BLOCK, BLOCK, 2 * BLOCK]),
        chain(&[BLOCK; 2]),
        chain(&[512, BLOCK - 512, BLOCK]),
        chain(&[40 * BLOCK]),
        chain(&[BLOCK; 20]),
        chain(&[BLOCK]),
        chain(&[BLOCK]),
        // As long as the one before, and in the same place of a page or not, of a block that lists one, or not.
        chain(&[9 * BLOCK]),
        chain(&[9 * BLOCK]),
        part(0, 9 * BLOCK),
        part(BLOCK, 9 * BLOCK),
        part((2 << 20) - 3 * BLOCK, 9 * BLOCK),
        part((2 << 20) + BLOCK, 9 * BLOCK),
        part(512, 9 * BLOCK),
        part(BLOCK + 512, 9 * BLOCK),
        chain(&[9 * BLOCK]),
        part(0, 2 * BLOCK),
        part(BLOCK, 2 * BLOCK),
        chain(&[2 * BLOCK]),
        part(0, BLOCK),
        part(512, BLOCK),
        part(BLOCK + 512, BLOCK),
        part(BLOCK, BLOCK),
        several([part(BLOCK - 512, 512), part(0, BLOCK), part(0, BLOCK - 512)]),
        several([part(BLOCK - 512, 512), part(0, BLOCK), part(0, BLOCK - 512)]),
        several([
            part(BLOCK - 512, 512),
            part(0, BLOCK),
            part(0, BLOCK),
            part(0, BLOCK),
            part(0, BLOCK - 512),
        ]),
        chain(&[BLOCK; 4]),
    ];
    let io = bench.read(0, 1);
    bench.poller.submit(bench.disk, io).unwrap();
    let mut there = 0;
    for (lba, mut memory) in shapes.into_iter().enumerate() {
        let mut seen = false;
        for _ in 0..10 {
            if seen {
                break;
            }
            while bench.emulator.step() > 0 {}
            bench.poller.poll(|mut done| {
                assert_eq!(done.result(), Ok(()));
                for (i, block) in done.io().memory().to_vec().chunks(BLOCK).enumerate() {
                    assert_eq!(block, [byte(there + i); BLOCK], "block {i} of shape {lba}");
                }
                done.exchange_memory(&mut memory);
                done.set_lba(lba as u64);
                (there, seen) = (lba, true);
                done.resubmit().unwrap();
            });
        }
        assert!(seen);
    }
    let mut foreign = DmaSpace::new().unwrap().allocate(BLOCK).unwrap();
    let mut refused = false;
    for _ in 0..10 {
        while bench.emulator.step() > 0 {}
        bench.poller.poll(|mut done| {
            done.exchange_memory(&mut foreign);
            refused |= matches!(done.resubmit().unwrap_err().reason, Refusal::ForeignMemory { segment: 0 });
        });
    }
    assert!(refused);
}

/// What the event of an observer does for events made from it goes on.
#[test]
fn an_observer_that_is_released_still_counts() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 8);
    let io = bench.read(0, 4);
    let request = bench.poller.request(bench.disk, io).unwrap();
    let part = bench.poller.observe(request, 0..BLOCK as u64).unwrap();
    let all = bench.poller.all(&[part, request]).unwrap();
    bench.poller.release(part);
    bench.turn();
    assert!(bench.is_settled(request));
    assert!(bench.is_settled(all), "{:?}", bench.poller.state(all));
}

/// "What was submitted before goes on."
#[test]
fn a_plug_holds_back_only_what_comes_after_it() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
    let io = bench.read(0, 16);
    let request = bench.poller.request(bench.disk, io).unwrap();
    bench.poller.plug(bench.queue);
    for _ in 0..5 {
        bench.turn();
    }
    assert!(bench.is_settled(request), "{} commands", bench.poller.stats(bench.queue).commands);
}

/// Two queues that always have something to tell.
#[test]
fn a_wait_ends_in_a_busy_poller() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
    let second = bench.poller.add_queue(&bench.controller, QueueOptions::default().depth(2)).unwrap();
    let second = bench.poller.add_namespace(second, &bench.controller.namespace(1).unwrap()).unwrap();
    bench.emulator.hold(Commands::reads().lbas(500..501));
    let io = bench.read(500, 1);
    let never = bench.poller.request(bench.disk, io).unwrap();
    for target in [bench.disk, second] {
        let io = bench.read(0, 1);
        bench.poller.submit(target, io).unwrap();
    }
    bench.poller.poll(|_| {});
    bench.emulator.step();
    let mut calls = 0;
    let Bench { emulator, poller, .. } = &mut bench;
    let verdict = poller.wait(never, Duration::from_secs(10), |done| {
        calls += 1;
        emulator.advance(Duration::from_secs(1));
        // The other queue's command.
        emulator.step();
        // Without an end to the test, this goes on for ever.
        if calls < 10_000 {
            done.resubmit().unwrap();
        }
    });
    assert_eq!(verdict, None);
    assert!(calls < 100, "10 seconds had passed {} times over", calls / 10);
}

/// A future waits for an event that another one releases.
#[test]
fn who_waits_for_an_event_learns_that_it_was_released() {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
        bench.emulator.hold(Commands::reads());
        let Bench { poller, space, disk, .. } = &mut bench;
        let verdict = poller.run(async |reactor| {
            let io = IoContainer::read(0, space.allocate(BLOCK).unwrap());
            let request = reactor.submit(*disk, io).unwrap();
            let wait = reactor.resolved(request.event());
            futures_util::future::join(wait, async { drop(request) }).await.0
        });
        let _ = tell.send(verdict);
    });
    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(None));
}

// ---- wrong ----

#[test]
fn zeroes_of_any_length() {
    let mut bench: Bench<kiovec::layer::Direct> = bench("size=1G,block=512,media=null", 8, 2);
    bench.poller.submit(bench.disk, IoContainer::write_zeroes(0, 200_000)).unwrap();
    bench.poller.submit(bench.disk, IoContainer::deallocate(0, 200_000)).unwrap();
    bench.turn();
    assert_eq!(bench.poller.outstanding(), 0);
}

/// What is atomic is so in place as well.
#[test]
fn an_atomic_request_stays_so_in_place() {
    let settings = "size=16M,block=4096,media=ram,mdts=4,awupf=1,nawupf=3,nabspf=3";
    let mut bench: Bench<kiovec::layer::Direct> = bench(settings, 8, 2);
    let memory = bench.space.allocate(4 * BLOCK).unwrap();
    bench.poller.submit(bench.disk, IoContainer::write(0, memory).atomic(true)).unwrap();
    bench.poller.poll(|_| {});
    bench.emulator.step();
    let mut refused = None;
    bench.poller.poll(|mut done| {
        // Across a boundary of 4 blocks.
        done.set_lba(2);
        refused = Some(done.resubmit().is_err());
    });
    assert_eq!(refused, Some(true), "a move across a boundary");
    bench.turn();
    let memory = bench.space.allocate(8 * BLOCK).unwrap();
    bench.poller.submit(bench.disk, IoContainer::read(0, memory).atomic(true)).unwrap();
    bench.poller.poll(|_| {});
    bench.emulator.step();
    let mut refused = None;
    bench.poller.poll(|mut done| {
        done.in_place().set_operation(Operation::Write);
        refused = Some(done.resubmit().is_err());
    });
    assert_eq!(refused, Some(true), "a write larger than the unit");
}

/// A stack made for another poller writes to a disk of this one.
#[test]
fn a_stack_stands_on_namespaces_of_its_own_poller() {
    let emulators = [0, 1].map(|_| Emulator::stepped(Config::parse(SETTINGS).unwrap()).unwrap());
    let space = DmaSpace::new().unwrap();
    let mut pollers = emulators.each_ref().map(|emulator| {
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let mut poller: Poller<Disk> = Poller::with_layers(8);
        let queue = poller.add_queue(&controller, QueueOptions::default()).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        (poller, disk)
    });
    let (poller, disk) = &pollers[0];
    let disk = Disk::new(poller, *disk).unwrap();
    let poller = &mut pollers[1].0;
    let Ok(target) = poller.add_layer(disk) else { return };
    let mut written = false;
    if poller.submit(target, IoContainer::write(0, space.allocate(BLOCK).unwrap())).is_ok() {
        for _ in 0..5 {
            poller.poll(|done| written |= done.result().is_ok());
            emulators[1].step();
        }
    }
    assert!(!written, "to the wrong disk");
}

/// Time that passed before a request was submitted is none of its latency.
#[test]
fn a_latency_begins_with_its_request() {
    let mut bench: Bench<Trace<Disk>> = bench(SETTINGS, 8, 2);
    let disk = Disk::new(&bench.poller, bench.disk).unwrap();
    let target = bench.poller.add_layer(Trace::new(disk)).unwrap();
    for _ in 0..2 {
        bench.emulator.advance(Duration::from_secs(10));
        let io = bench.read(0, 1);
        bench.poller.submit(target, io).unwrap();
        while bench.poller.poll(|_| {}) == 0 {
            bench.emulator.step();
        }
    }
    let longest = bench.poller.layer(target).unwrap().filter().counts().longest;
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

// ---- panics ----

#[test]
fn a_limit_may_be_as_long_as_there_is() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
    bench.emulator.advance(Duration::from_secs(1));
    let io = bench.read(0, 1);
    let request = bench.poller.request(bench.disk, io).unwrap();
    let set = catch_unwind(AssertUnwindSafe(|| bench.poller.set_deadline(request, Duration::MAX)));
    let wait = catch_unwind(AssertUnwindSafe(|| bench.poller.wait(request, Duration::MAX, |_| {})));
    assert!(set.is_ok(), "set_deadline");
    assert!(wait.is_ok(), "wait");
}

#[test]
fn any_request_may_be_observed() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
    // SAFETY: the read below transfers one block, as much as its memory holds.
    let trust = unsafe { RawCommands::trust() };
    let command = Command { opcode: 2, ..Command::default() };
    let memory = bench.space.allocate(BLOCK).unwrap();
    let raw = bench.poller.request(bench.disk, IoContainer::raw(&command, memory, trust)).unwrap();
    let observed = catch_unwind(AssertUnwindSafe(|| bench.poller.observe(raw, 0..BLOCK as u64).is_ok()));
    bench.turn();
    assert!(observed.is_ok(), "a raw command");
    // Zeroes that were given memory, less than a byte for each block.
    let mut io = IoContainer::write_zeroes(0, 10);
    io.replace_memory(bench.space.allocate(8).unwrap());
    let zeroes = bench.poller.request(bench.disk, io).unwrap();
    let observed = catch_unwind(AssertUnwindSafe(|| bench.poller.observe(zeroes, 0..8).is_ok()));
    assert!(observed.is_ok(), "zeroes");
}

/// NAWUPF of 0 says that AWUPF holds (NVM Command Set 1.0, figure 97), not that it is one block.
#[test]
fn a_namespace_without_a_unit_of_its_own_has_the_controllers() {
    let settings = "size=16M,block=4096,media=ram,mdts=4,awupf=3,nabspf=7";
    let mut bench: Bench<kiovec::layer::Direct> = bench(settings, 8, 2);
    let memory = bench.space.allocate(4 * BLOCK).unwrap();
    let accepted = bench.poller.submit(bench.disk, IoContainer::write(0, memory).atomic(true));
    assert!(accepted.is_ok(), "{}", accepted.unwrap_err());
}

/// A layer that tries again whatever the controller failed.
#[test]
fn what_is_cancelled_is_not_tried_again() {
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.up = Box::new(move |cx, mut io| match cx.failure(&io).map(|failure| failure.cause) {
            Some(Cause::Status(_)) => {
                cx.resume(&mut io);
                cx.submit(disk, io);
                None
            }
            _ => Some(io),
        });
    });
    // The first of two commands fails, and then the request is cancelled.
    let fault = Fault::new(Commands::reads().lbas(0..1), Effect::Status(Status::UNRECOVERED_READ_ERROR));
    bench.emulator.set_faults(Faults::default().with(fault.once()));
    bench.emulator.hold(Commands::reads().lbas(2..3));
    let io = bench.read(0, 4);
    let request = bench.poller.request(target, io).unwrap();
    bench.turn();
    bench.poller.cancel(request);
    let before = bench.poller.stats(bench.queue).commands;
    bench.emulator.release_all();
    bench.turn();
    assert!(bench.is_settled(request));
    assert_eq!(bench.poller.stats(bench.queue).commands, before, "no part of it is issued any more");
    assert_eq!(bench.poller.claim(request).unwrap().1.unwrap_err().cause, Cause::Cancelled);
}

/// Two calls at two times.
#[test]
fn a_layer_is_called_at_every_time_it_asked_for() {
    let at: Rc<RefCell<Vec<Duration>>> = Rc::default();
    let note = Rc::clone(&at);
    let (mut bench, target) = Bench::scripted(8, |layer| {
        let disk = layer.disk.target();
        layer.down = Box::new(move |cx, io| {
            let now = cx.now();
            cx.call_at(now + Duration::from_secs(1));
            cx.call_at(now + Duration::from_secs(2));
            cx.submit(disk, io);
            None
        });
        layer.again = Box::new(move |cx| {
            note.borrow_mut().push(cx.now());
            None
        });
    });
    bench.emulator.hold(Commands::reads());
    let io = bench.read(0, 1);
    bench.poller.submit(target, io).unwrap();
    for _ in 0..6 {
        bench.emulator.advance(Duration::from_millis(500));
        bench.turn();
    }
    assert_eq!(at.borrow().len(), 2, "{:?}", at.borrow());
}

/// It asked for a call; that its requests are done meanwhile is another matter.
#[test]
fn a_layer_without_requests_is_called() {
    let calls = Rc::new(Cell::new(0));
    let count = Rc::clone(&calls);
    let (mut bench, target) = Bench::scripted(8, |layer| {
        layer.down = Box::new(|cx, io| {
            let now = cx.now();
            cx.call_at(now + Duration::from_secs(1));
            Some(io)
        });
        layer.again = Box::new(move |_| {
            count.set(count.get() + 1);
            None
        });
    });
    let io = bench.read(0, 1);
    bench.poller.submit(target, io).unwrap();
    bench.turn();
    bench.emulator.advance(Duration::from_secs(2));
    bench.turn();
    assert_eq!(calls.get(), 1);
}

/// The first queue that notices has the controller reset, after which its status is good again.
#[test]
fn a_controller_that_failed_is_reset_for_all_its_queues() {
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
    let second = bench.poller.add_queue(&bench.controller, QueueOptions::default().depth(2)).unwrap();
    let second = bench.poller.add_namespace(second, &bench.controller.namespace(1).unwrap()).unwrap();
    bench.emulator.hold(Commands::reads());
    for target in [bench.disk, second] {
        let io = bench.read(0, 1);
        bench.poller.submit(target, io).unwrap();
    }
    bench.turn();
    bench.emulator.fail();
    bench.emulator.release_all();
    let mut done = 0;
    for _ in 0..100_000 {
        bench.emulator.step();
        bench.poller.poll(|io| done += u32::from(io.result() == Ok(())));
    }
    assert_eq!((done, bench.poller.outstanding()), (2, 0));
}

/// Of a guest's memory there are no slices; the documentation of `observed` says nothing of it.
#[test]
fn an_observed_part_of_a_guests_memory_is_no_panic() {
    use kiovec::memory::vm_memory::{GuestAddress, GuestMemoryMmap};
    let mut bench: Bench<kiovec::layer::Direct> = bench(SETTINGS, 8, 2);
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let guest = bench.space.register_guest(std::sync::Arc::new(ram)).unwrap();
    let io = IoContainer::read(0, guest.chain(GuestAddress(0), BLOCK).unwrap());
    let request = bench.poller.request(bench.disk, io).unwrap();
    let part = bench.poller.observe(request, 0..512).unwrap();
    bench.turn();
    let bytes = catch_unwind(AssertUnwindSafe(|| bench.poller.observed(part).map(|slices| slices.count())));
    assert!(bytes.is_ok(), "the caller cannot know that this panics");
}

#[test]
fn what_is_never_prepared_goes_round_through_layers() {
    let emulator = Emulator::stepped(Config::parse("size=64M,block=4096,media=ram").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(8);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(4)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let disk = Disk::new(&poller, disk).unwrap();
    let traced = poller.add_layer(Trace::new(disk)).unwrap();
    poller.submit(traced, IoContainer::flush()).unwrap();
    poller.submit(traced, IoContainer::deallocate(8, 8)).unwrap();
    poller.submit(traced, IoContainer::write(0, space.allocate(BLOCK).unwrap()).atomic(true)).unwrap();
    let mut left = 9;
    for _ in 0..100 {
        poller.poll(|done| {
            done.result().unwrap();
            if left > 0 {
                left -= 1;
                done.resubmit().unwrap();
            }
        });
        emulator.step();
    }
    assert_eq!((left, poller.outstanding(), poller.stats(queue).commands), (0, 0, 12));
}

/// No layer was ever added to a poller that may have some.
#[test]
fn a_poller_for_layers_does_without_any() {
    let emulator = Emulator::stepped(Config::parse("size=1M,media=ram").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller: Poller<Scripted> = Poller::with_layers(4);
    let queue = poller.add_queue(&controller, QueueOptions::default()).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    poller.submit(disk, IoContainer::read(0, space.allocate(BLOCK).unwrap())).unwrap();
    let mut left = 3;
    while poller.outstanding() > 0 {
        while emulator.step() > 0 {}
        poller.poll(|mut done| {
            done.result().unwrap();
            left -= 1;
            // Changed in any way, it takes the longer way down.
            done.io_mut().set_operation(Operation::Write);
            if left > 0 {
                done.resubmit().unwrap();
            }
        });
    }
    assert_eq!(left, 0);
}
