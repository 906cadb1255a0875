//! Random containers and chains through random stacks on random controllers, in any order and with
//! failures, against a plain array: what may be on a block, what must come of a request, and that nothing
//! is left behind.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::ops::{AddAssign, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kiovec::layer::{Disk, Plan, RetryOptions, Stack};
use kiovec::memory::vm_memory::{GuestAddress, GuestMemoryMmap};
use kiovec::memory::{DmaSpace, ExternalMemory, GuestRegistration, MemoryChain, Registration};
use kiovec::spec::{Status, io_opcode};
use kiovec::{
    Cause, Controller, DataForm, Event, Failure, IoContainer, Moment, Operation, Poller, QueueId,
    QueueOptions, Reason, Refusal, State, Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const CASES: u32 = 320;
/// Controllers below a stack, at most.
const MOST_DISKS: usize = 4;
/// Layers on each other, at most, without a Retry on top of all.
const MOST_LAYERS: usize = 4;
/// Requests that a poller has room for; a round has fewer.
const ROOM: usize = 16;
/// Turns in a row in which nothing comes back, at most; and if a controller is gone, which takes many polls
/// to be noticed.
const PATIENCE: usize = 30_000;
const PATIENCE_IF_LOST: usize = 300_000;
/// By how much time goes on with each turn.
const TICK: Duration = Duration::from_micros(20);
const PAGE: usize = 4096;
/// Memory that is an application's, and memory that is a guest's.
const EXTERNAL: usize = 2 << 20;

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's doing; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

// ---- what is tried ----

#[derive(Debug, Clone)]
struct Case {
    block: usize,
    shape: Shape,
    /// One for each controller.
    devices: Vec<Device>,
    mishaps: Vec<Mishap>,
    rounds: Vec<Round>,
    /// Which controller goes on when.
    seed: u64,
}

/// A stack whose sizes depend on what is below.
#[derive(Debug, Clone)]
enum Shape {
    Disk,
    /// So many percent of what is below, after so many percent.
    Partition(u64, u64, Box<Shape>),
    Trace(Box<Shape>),
    Verify(Box<Shape>),
    /// Lines, and log2 of the blocks of each.
    Cache(usize, u32, Box<Shape>),
    /// Times, and milliseconds of delay.
    Retry(u64, u64, Box<Shape>),
    /// Blocks of a chunk.
    Stripe(u64, Vec<Shape>),
    Mirror(Option<Hedge>, Vec<Shape>),
}

#[derive(Debug, Clone, Copy)]
struct Hedge {
    micros: u64,
    buffers: usize,
    /// Blocks of a buffer.
    blocks: u64,
}

#[derive(Debug, Clone)]
struct Device {
    blocks: u64,
    /// Further settings of the emulator.
    limits: String,
    depth: usize,
    data: DataForm,
    max_transfer: u64,
    merge: bool,
}

#[derive(Debug, Clone)]
enum Mishap {
    Weak(Weak),
    /// One in so many commands takes long.
    Slow {
        disk: usize,
        one_in: u32,
        steps: u32,
    },
    Unplug {
        disk: usize,
        turn: usize,
    },
}

/// Commands of a controller that fail.
#[derive(Debug, Clone)]
struct Weak {
    disk: usize,
    /// `None` is whatever names blocks.
    operation: Option<Operation>,
    first: u64,
    blocks: u64,
    /// How often; `None` is always.
    times: Option<u64>,
    dnr: bool,
}

#[derive(Debug, Clone)]
struct Round {
    start: u64,
    requests: Vec<Request>,
    backwards: bool,
    /// They are all of one kind, and neighbours.
    alike: bool,
    /// Queues that are plugged at first, and the turn in which they no longer are.
    plugged: u8,
    unplug: usize,
    /// The turn in which all that are events are cancelled together.
    cancel: Option<usize>,
}

#[derive(Debug, Clone)]
struct Request {
    operation: Operation,
    /// Blocks left out before it.
    gap: u64,
    blocks: u64,
    /// Blocks behind it that are its own as well, to move to.
    room: u64,
    memory: Memory,
    fua: bool,
    no_merge: bool,
    no_bounce: bool,
    atomic: bool,
    way: Way,
    /// Turns after it was submitted, before the next one is.
    pause: usize,
}

/// How the memory of a request is laid out.
#[derive(Debug, Clone)]
struct Memory {
    /// Segments have a multiple of so many bytes; 0 stands for the block size.
    unit: usize,
    sizes: Vec<usize>,
    /// The first one begins so many bytes into a page.
    offset: usize,
    kinds: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    Registered,
    Guest,
}

/// How a request is made, and how it comes back.
#[derive(Debug, Clone)]
enum Way {
    /// To a closure, which submits it so many times more; in place, or by changing the container.
    Closure { again: usize, in_place: bool },
    /// As an event, with observers of parts of it, in percent, from some turn on.
    Event { end: End, observed: Vec<(usize, usize, usize)> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    Cancel(usize),
    Deadline(u64),
    Release(usize),
}

fn case() -> impl Strategy<Value = Case> {
    let mishaps = prop_oneof![
        1 => Just(Vec::new()),
        4 => proptest::collection::vec(mishap(), 1..8),
    ];
    (
        prop_oneof![Just(512usize), Just(4096)],
        (0..=MOST_LAYERS, 1..=MOST_DISKS).prop_flat_map(|(layers, disks)| shape(layers, disks)),
        proptest::collection::vec(device(), MOST_DISKS),
        mishaps,
        proptest::collection::vec(round(), 1..10),
        (any::<u64>(), any::<u8>()),
    )
        .prop_map(|(block, mut shape, mut devices, mut mishaps, rounds, (seed, curable))| {
            if curable > 160 {
                shape = make_curable(shape, &mut mishaps);
            }
            let mut count = 0;
            Tree::new(&shape, &devices, &mut count);
            devices.truncate(count);
            for mishap in &mut mishaps {
                let (Mishap::Weak(Weak { disk, .. })
                | Mishap::Slow { disk, .. }
                | Mishap::Unplug { disk, .. }) = mishap;
                *disk %= count;
            }
            Case { block, shape, devices, mishaps, rounds, seed }
        })
}

/// A stack that hides everything that goes wrong: it tries again as often as anything can fail.
fn make_curable(shape: Shape, mishaps: &mut Vec<Mishap>) -> Shape {
    mishaps.retain(|mishap| !matches!(mishap, Mishap::Unplug { .. }));
    for mishap in mishaps.iter_mut() {
        if let Mishap::Weak(weak) = mishap {
            (weak.times, weak.dnr) = (Some(weak.times.map_or(2, |times| times.min(3))), false);
        }
    }
    Shape::Retry(RetryOptions::MAX_TIMES.into(), mishaps.len() as u64 % 2, Box::new(shape))
}

/// Stacks of so many layers at most on so many disks.
fn shape(layers: usize, disks: usize) -> BoxedStrategy<Shape> {
    let mut below: Vec<BoxedStrategy<Shape>> = vec![Just(Shape::Disk).boxed()];
    below.extend(
        (2..=disks).map(|disks| abreast(proptest::collection::vec(Just(Shape::Disk), disks).boxed())),
    );
    for _ in 1..layers {
        let one = |disks: usize| below[disks - 1].clone();
        let mut above = Vec::new();
        for disks in 1..=disks {
            let mut choices = vec![(1, one(disks)), (3, filter(one(disks)))];
            for left in 1..disks {
                let legs = (one(left), one(disks - left)).prop_map(|(a, b)| vec![a, b]);
                choices.push((2, abreast(legs.boxed())));
            }
            above.push(proptest::strategy::Union::new_weighted(choices).boxed());
        }
        below = above;
    }
    let all = below.swap_remove(disks - 1);
    if layers == 0 || disks > 1 { all } else { prop_oneof![1 => all.clone(), 3 => filter(all)].boxed() }
}

fn filter(below: BoxedStrategy<Shape>) -> BoxedStrategy<Shape> {
    let of = |below: Shape| Box::new(below);
    prop_oneof![
        1 => (0..40u64, 30..=60u64, below.clone()).prop_map(move |(skip, percent, below)| Shape::Partition(
            skip,
            percent,
            of(below)
        )),
        1 => below.clone().prop_map(move |below| Shape::Trace(of(below))),
        1 => below.clone().prop_map(move |below| Shape::Verify(of(below))),
        1 => (1..200usize, 0..5u32, below.clone()).prop_map(move |(lines, shift, below)| Shape::Cache(
            lines,
            shift,
            of(below)
        )),
        2 => (0..8u64, prop_oneof![Just(0u64), Just(1)], below)
            .prop_map(move |(times, delay, below)| Shape::Retry(times, delay, of(below))),
    ]
    .boxed()
}

fn abreast(legs: BoxedStrategy<Vec<Shape>>) -> BoxedStrategy<Shape> {
    let hedge = (prop_oneof![Just(0u64), 20..400u64], 2..6usize, 1..16u64);
    let hedge = hedge.prop_map(|(micros, buffers, blocks)| Hedge { micros, buffers, blocks });
    prop_oneof![
        (1..40u64, legs.clone()).prop_map(|(chunk, legs)| Shape::Stripe(chunk, legs)),
        (proptest::option::of(hedge), legs).prop_map(|(hedge, legs)| Shape::Mirror(hedge, legs)),
    ]
    .boxed()
}

fn device() -> impl Strategy<Value = Device> {
    let limits = (
        prop_oneof![1 => Just(0u8), 2 => 1..4u8],
        prop_oneof![3 => Just(0u16), 1 => 1..64u16],
        prop_oneof![Just("off"), Just("on"), Just("dword")],
        prop_oneof![Just(1u16), Just(3), Just(255)],
        (
            prop_oneof![1 => Just(0u16), 2 => 1..64u16],
            proptest::option::of(0..20u16),
            proptest::option::of(0..20u16),
        ),
        (0..3u8, prop_oneof![Just(0u32), 1..50u32]),
        any::<u32>(),
    );
    let data = prop_oneof![Just(DataForm::Auto), Just(DataForm::Prp), Just(DataForm::Sgl)];
    let transfer = prop_oneof![Just(2u64 << 20), Just(16 << 10), Just(4096)];
    (40..400u64, limits, 1..=6usize, data, transfer, any::<bool>()).prop_map(
        |(blocks, limits, depth, data, max_transfer, merge)| {
            let (mdts, noiob, sgl, mqes, (awupf, nawupf, nabspf), (wzsl, dmrsl), seed) = limits;
            // Each is none, or not below those before.
            let nawupf = nawupf.map_or(0, |more| awupf + more);
            let nabspf = nabspf.map_or(0, |more| awupf.max(nawupf) + more);
            let limits = format!(
                "mdts={mdts},noiob={noiob},sgl={sgl},mqes={mqes},awupf={awupf},nawupf={nawupf},\
                 nabspf={nabspf},wzsl={wzsl},dmrsl={dmrsl},\
                 random_order=on,seed={seed}"
            );
            // One that has no SGLs is not asked for them.
            let data = if sgl == "off" { DataForm::Auto } else { data };
            Device { blocks, limits, depth, data, max_transfer, merge }
        },
    )
}

fn mishap() -> impl Strategy<Value = Mishap> {
    let operation = prop_oneof![
        3 => Just(None),
        4 => Just(Some(Operation::Read)),
        4 => Just(Some(Operation::Write)),
        1 => Just(Some(Operation::WriteZeroes)),
        1 => Just(Some(Operation::Deallocate)),
        1 => Just(Some(Operation::Flush)),
    ];
    let times = prop_oneof![4 => (1..5u64).prop_map(Some), 1 => Just(None)];
    let weak = (
        operation,
        0..MOST_DISKS,
        0..150u64,
        prop_oneof![2 => 1..4u64, 1 => 1..60u64, 1 => Just(1000)],
        times,
        any::<u8>(),
    );
    prop_oneof![
        12 => weak.prop_map(|(operation, disk, first, blocks, times, dnr)| {
            Mishap::Weak(Weak { disk, operation, first, blocks, times, dnr: dnr > 223 })
        }),
        4 => (0..MOST_DISKS, 2..8u32, 1..30u32)
            .prop_map(|(disk, one_in, steps)| Mishap::Slow { disk, one_in, steps }),
        1 => (0..MOST_DISKS, 0..100usize).prop_map(|(disk, turn)| Mishap::Unplug { disk, turn }),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    let requests = proptest::collection::vec(request(), 1..7);
    let start = prop_oneof![Just(0u64), any::<u64>()];
    let plugged = prop_oneof![Just(0u8), any::<u8>()];
    let cancel = proptest::option::weighted(0.1, 0..12usize);
    (start, requests, any::<bool>(), any::<u8>(), plugged, 0..12usize, cancel).prop_map(
        |(start, requests, backwards, alike, plugged, unplug, cancel)| Round {
            cancel,
            alike: alike > 170,
            start,
            requests,
            backwards,
            plugged,
            unplug,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let operation = prop_oneof![
        8 => Just(Operation::Write),
        8 => Just(Operation::Read),
        2 => Just(Operation::WriteZeroes),
        2 => Just(Operation::Deallocate),
        1 => Just(Operation::Flush),
    ];
    let blocks = prop_oneof![6 => 1..8u64, 3 => 1..80u64, 1 => Just(u64::MAX)];
    let place =
        (prop_oneof![3 => Just(0u64), 1 => 0..60u64], blocks, prop_oneof![3 => Just(0u64), 1 => 0..9u64]);
    let rarely = || any::<u8>().prop_map(|byte| byte > 243);
    let flags = (rarely(), rarely(), rarely(), rarely());
    let pause = prop_oneof![3 => Just(0usize), 1 => 0..4usize];
    (operation, place, memory(), flags, way(), pause).prop_map(
        |(operation, (gap, blocks, room), memory, (fua, no_merge, no_bounce, atomic), way, pause)| Request {
            operation,
            gap,
            blocks,
            room,
            memory,
            fua,
            no_merge,
            no_bounce,
            atomic,
            way,
            pause,
        },
    )
}

fn memory() -> impl Strategy<Value = Memory> {
    let kind = prop_oneof![3 => Just(Kind::Own), 1 => Just(Kind::Registered), 1 => Just(Kind::Guest)];
    let kinds = proptest::collection::vec(kind, 1..4);
    let sizes = |most: usize| proptest::collection::vec(1..most, 0..20);
    prop_oneof![
        3 => (Just(PAGE), sizes(6), Just(0usize), kinds.clone()),
        1 => (Just(PAGE), sizes(6), 1..PAGE, kinds.clone()),
        2 => (Just(0), sizes(6), Just(0usize), kinds.clone()),
        2 => (Just(4), sizes(2000), (0..1024usize).prop_map(|words| words * 4), kinds.clone()),
        1 => (Just(1), sizes(3000), 0..PAGE, kinds),
    ]
    .prop_map(|(unit, sizes, offset, kinds)| Memory { unit, sizes, offset, kinds })
}

fn way() -> impl Strategy<Value = Way> {
    let end = prop_oneof![
        6 => Just(End::None),
        1 => (0..12usize).prop_map(End::Cancel),
        1 => (0..400u64).prop_map(End::Deadline),
        1 => (0..12usize).prop_map(End::Release),
    ];
    let observed =
        proptest::collection::vec((0..100usize, 1..=100usize, prop_oneof![Just(0usize), 1..20usize]), 0..4);
    prop_oneof![
        3 => Just(Way::Closure { again: 0, in_place: false }),
        2 => (1..5usize, any::<bool>()).prop_map(|(again, in_place)| Way::Closure { again, in_place }),
        4 => (end, observed).prop_map(|(end, observed)| Way::Event { end, observed }),
    ]
}

// ---- what may happen ----

/// A stack with its sizes, as text and as something to ask what may fail.
#[derive(Debug)]
enum Tree {
    Disk(usize),
    Partition {
        start: u64,
        blocks: u64,
        below: Box<Tree>,
    },
    /// Neither moves nor hides anything.
    Filter {
        name: &'static str,
        below: Box<Tree>,
    },
    Retry {
        times: u64,
        delay: u64,
        below: Box<Tree>,
    },
    Cache {
        lines: usize,
        shift: u32,
        below: Box<Tree>,
    },
    Stripe {
        chunk: u64,
        legs: Vec<Tree>,
    },
    Mirror {
        hedge: Option<Hedge>,
        legs: Vec<Tree>,
    },
}

impl Tree {
    fn new(shape: &Shape, devices: &[Device], disks: &mut usize) -> Tree {
        match shape {
            Shape::Disk => {
                *disks += 1;
                Tree::Disk(*disks - 1)
            }
            Shape::Partition(skip, percent, below) => {
                let below = Box::new(Tree::new(below, devices, disks));
                let all = below.blocks(devices);
                Tree::Partition { start: all * skip / 100, blocks: (all * percent / 100).max(1), below }
            }
            Shape::Trace(below) => {
                Tree::Filter { name: "trace", below: Box::new(Tree::new(below, devices, disks)) }
            }
            Shape::Verify(below) => {
                Tree::Filter { name: "verify", below: Box::new(Tree::new(below, devices, disks)) }
            }
            Shape::Cache(lines, shift, below) => {
                let below = Box::new(Tree::new(below, devices, disks));
                Tree::Cache { lines: *lines, shift: *shift, below }
            }
            Shape::Retry(times, delay, below) => {
                let below = Box::new(Tree::new(below, devices, disks));
                Tree::Retry { times: *times, delay: *delay, below }
            }
            Shape::Stripe(chunk, legs) => {
                let legs: Vec<Tree> = legs.iter().map(|leg| Tree::new(leg, devices, disks)).collect();
                let chunk = (*chunk).min(smallest(&legs, devices));
                Tree::Stripe { chunk, legs }
            }
            Shape::Mirror(hedge, legs) => {
                let legs = legs.iter().map(|leg| Tree::new(leg, devices, disks)).collect();
                Tree::Mirror { hedge: *hedge, legs }
            }
        }
    }

    fn blocks(&self, devices: &[Device]) -> u64 {
        match self {
            Tree::Disk(disk) => devices[*disk].blocks,
            Tree::Partition { blocks, .. } => *blocks,
            Tree::Filter { below, .. } | Tree::Retry { below, .. } | Tree::Cache { below, .. } => {
                below.blocks(devices)
            }
            Tree::Stripe { chunk, legs } => smallest(legs, devices) / chunk * chunk * legs.len() as u64,
            Tree::Mirror { legs, .. } => smallest(legs, devices),
        }
    }

    /// The stack as text; devices are in it as what they are.
    fn text(&self, block: usize, devices: &[Device], text: &mut String) {
        let legs = |legs: &[Tree], text: &mut String| {
            for (number, leg) in legs.iter().enumerate() {
                text.push_str(if number > 0 { "," } else { "" });
                leg.text(block, devices, text);
            }
        };
        match self {
            Tree::Disk(disk) => {
                let Device { blocks, limits, .. } = &devices[*disk];
                let size = blocks * block as u64;
                write!(text, "emulated:size={size},block={block},media=ram,{limits}").unwrap();
                return;
            }
            Tree::Partition { start, blocks, below } => {
                write!(text, "partition(start={start},blocks={blocks},").unwrap();
                below.text(block, devices, text);
            }
            Tree::Filter { name, below } => {
                write!(text, "{name}(").unwrap();
                below.text(block, devices, text);
            }
            Tree::Retry { times, delay, below } => {
                write!(text, "retry(times={times},delay={delay},").unwrap();
                below.text(block, devices, text);
            }
            Tree::Cache { lines, shift, below } => {
                let line = block << shift;
                write!(text, "cache(bytes={},line={line},", lines * line).unwrap();
                below.text(block, devices, text);
            }
            Tree::Stripe { chunk, legs: below } => {
                write!(text, "stripe(chunk={},", chunk * block as u64).unwrap();
                legs(below, text);
            }
            Tree::Mirror { hedge, legs: below } => {
                text.push_str("mirror(");
                if let Some(Hedge { micros, buffers, blocks }) = hedge {
                    let bytes = blocks * block as u64;
                    write!(text, "hedge={micros},buffers={buffers},buffer={bytes},").unwrap();
                }
                legs(below, text);
            }
        }
        text.push(')');
    }

    /// Whether a request for these blocks may fail, as long as nobody ends it and nothing below refuses
    /// it.
    fn may_fail(&self, fates: &Fates, operation: Operation, blocks: &Range<u64>) -> bool {
        match self {
            Tree::Disk(disk) => fates.lost[*disk] || fates.meets(*disk, operation, blocks, false),
            Tree::Partition { start, below, .. } => {
                below.may_fail(fates, operation, &(start + blocks.start..start + blocks.end))
            }
            // What cannot be read with its neighbours is read by itself.
            Tree::Filter { below, .. } | Tree::Cache { below, .. } => {
                below.may_fail(fates, operation, blocks)
            }
            Tree::Retry { times, below, .. } => {
                below.strikes(fates).is_none_or(|strikes| strikes > *times)
                    && below.may_fail(fates, operation, blocks)
            }
            Tree::Stripe { chunk, legs } => legs.iter().enumerate().any(|(leg, below)| {
                share(*chunk, legs.len() as u64, leg as u64, operation, blocks)
                    .is_some_and(|blocks| below.may_fail(fates, operation, &blocks))
            }),
            // A leg that fails to write may be in use no more.
            Tree::Mirror { legs, .. } => {
                legs.iter().all(|leg| leg.may_be_ejected(fates) || leg.may_fail(fates, operation, blocks))
            }
        }
    }

    fn may_be_ejected(&self, fates: &Fates) -> bool {
        let writes = [Operation::Write, Operation::WriteZeroes, Operation::Deallocate, Operation::Flush];
        let all = Fates { lost: fates.doomed.clone(), cured: false, ..fates.clone() };
        writes.iter().any(|operation| self.may_fail(&all, *operation, &(0..1 << 40)))
    }

    /// How many attempts can fail here in all, of whatever requests; `None` is any number.
    fn strikes(&self, fates: &Fates) -> Option<u64> {
        match self {
            Tree::Disk(disk) => {
                let mut weak = fates.weak.iter().filter(|weak| weak.disk == *disk);
                match fates.doomed[*disk] {
                    true => None,
                    // One that says Do Not Retry counts as one that never stops.
                    false => weak.try_fold(0, |sum, weak| Some(sum + weak.times.filter(|_| !weak.dnr)?)),
                }
            }
            Tree::Partition { below, .. } | Tree::Filter { below, .. } | Tree::Cache { below, .. } => {
                below.strikes(fates)
            }
            Tree::Retry { times, below, .. } => {
                below.strikes(fates).filter(|n| n > times).or_else(|| below.strikes(fates).map(|_| 0))
            }
            Tree::Stripe { legs, .. } => legs.iter().try_fold(0, |sum, leg| Some(sum + leg.strikes(fates)?)),
            Tree::Mirror { legs, .. } => {
                if legs.iter().any(|leg| leg.strikes(fates) == Some(0)) {
                    return Some(0);
                }
                legs.iter().try_fold(0, |sum, leg| Some(sum + leg.strikes(fates)?))
            }
        }
    }

    /// Whether a request for these blocks cannot but fail.
    fn must_fail(&self, fates: &Fates, operation: Operation, blocks: &Range<u64>) -> bool {
        match self {
            Tree::Disk(disk) => fates.lost[*disk] || fates.meets(*disk, operation, blocks, true),
            Tree::Partition { start, below, .. } => {
                below.must_fail(fates, operation, &(start + blocks.start..start + blocks.end))
            }
            Tree::Filter { below, .. } | Tree::Retry { below, .. } => {
                below.must_fail(fates, operation, blocks)
            }
            // What is in it can be read when its controller is gone; what never could be read is not in it.
            Tree::Cache { below, .. } if operation == Operation::Read => {
                let there = Fates { lost: vec![false; fates.lost.len()], ..fates.clone() };
                below.must_fail(&there, operation, blocks)
            }
            Tree::Cache { below, .. } => below.must_fail(fates, operation, blocks),
            Tree::Stripe { chunk, legs } => legs.iter().enumerate().any(|(leg, below)| {
                share(*chunk, legs.len() as u64, leg as u64, operation, blocks)
                    .is_some_and(|blocks| below.must_fail(fates, operation, &blocks))
            }),
            // What one leg cannot read, another can: there must be a block that none can.
            Tree::Mirror { legs, .. } if operation == Operation::Read => blocks
                .clone()
                .any(|block| legs.iter().all(|leg| leg.must_fail(fates, operation, &(block..block + 1)))),
            Tree::Mirror { legs, .. } => legs.iter().all(|leg| leg.must_fail(fates, operation, blocks)),
        }
    }
}

fn smallest(legs: &[Tree], devices: &[Device]) -> u64 {
    legs.iter().map(|leg| leg.blocks(devices)).min().unwrap()
}

/// The blocks of a leg that blocks of a stripe are on; `None` if there are none. Those of all legs, for
/// what concerns no blocks.
fn share(chunk: u64, legs: u64, leg: u64, operation: Operation, blocks: &Range<u64>) -> Option<Range<u64>> {
    if operation == Operation::Flush || blocks.end - blocks.start >= 1 << 32 {
        return Some(blocks.clone());
    }
    let here = |number: &u64| number % legs == leg;
    let mut chunks = (blocks.start / chunk..blocks.end.div_ceil(chunk)).filter(here);
    let first = chunks.next()?;
    let last = chunks.next_back().unwrap_or(first);
    let within = |number: u64, at: u64| at.clamp(number * chunk, (number + 1) * chunk) - number * chunk;
    Some(first / legs * chunk + within(first, blocks.start)..last / legs * chunk + within(last, blocks.end))
}

/// What is wrong with the controllers.
#[derive(Debug, Clone)]
struct Fates {
    weak: Vec<Weak>,
    /// Those that are gone, and those that will be.
    lost: Vec<bool>,
    doomed: Vec<bool>,
    /// There are no errors any more.
    cured: bool,
}

impl Fates {
    /// Whether a command for these blocks meets an error, or one that is always there.
    fn meets(&self, disk: usize, operation: Operation, blocks: &Range<u64>, always: bool) -> bool {
        !self.cured
            && self.weak.iter().any(|weak| {
                weak.disk == disk && (!always || weak.times.is_none()) && weak.concerns(operation, blocks)
            })
    }
}

impl Weak {
    fn concerns(&self, operation: Operation, blocks: &Range<u64>) -> bool {
        match operation {
            Operation::Flush | Operation::Deallocate | Operation::Raw => self.operation == Some(operation),
            _ => {
                self.operation.is_none_or(|weak| weak == operation)
                    && blocks.start < self.first + self.blocks
                    && self.first < blocks.end
            }
        }
    }

    fn status(&self) -> Status {
        let status = match self.operation {
            Some(Operation::Read) => Status::UNRECOVERED_READ_ERROR,
            Some(Operation::Write) => Status::WRITE_FAULT,
            _ => Status::INTERNAL_ERROR,
        };
        if self.dnr { status.with_dnr() } else { status }
    }

    fn fault(&self) -> Fault {
        let commands = match self.operation {
            None => Commands::io(),
            Some(Operation::Read) => Commands::reads(),
            Some(Operation::WriteZeroes) => Commands::io().opcode(io_opcode::WRITE_ZEROES),
            Some(Operation::Deallocate) => Commands::io().opcode(io_opcode::DATASET_MANAGEMENT),
            Some(Operation::Flush) => Commands::io().opcode(io_opcode::FLUSH),
            Some(_) => Commands::writes(),
        };
        let commands = match self.operation {
            Some(Operation::Deallocate | Operation::Flush) => commands,
            _ => commands.lbas(self.first..self.first + self.blocks),
        };
        Fault::new(commands, Effect::Status(self.status())).times(self.times.unwrap_or(u64::MAX))
    }
}

// ---- what must be on the blocks ----

/// The plain array: for each block, which writes it may have the contents of. 0 is zeros.
struct Model {
    block: usize,
    allowed: Vec<Vec<u32>>,
    stamps: u32,
}

/// What every write writes some of.
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut chance = Chance(1);
        (0..NOISE_LEN + PAGE).map(|_| chance.next() as u8).collect()
    })
}

const NOISE_LEN: usize = 1 << 20;
static ZEROS: [u8; PAGE] = [0; PAGE];

impl Model {
    /// What a write with a stamp writes to a block.
    fn contents(&self, stamp: u32, lba: u64) -> &'static [u8] {
        if stamp == 0 {
            return &ZEROS[..self.block];
        }
        let at = (u64::from(stamp) << 32 | lba).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44;
        &noise()[at as usize..at as usize + self.block]
    }

    fn fill(&self, memory: &mut MemoryChain, stamp: u32, lba: u64) {
        for i in 0..memory.len() / self.block {
            memory.copy_from_slice(i * self.block, self.contents(stamp, lba + i as u64));
        }
    }

    /// Whether these bytes are what the blocks from `lba` on may contain.
    fn check(&self, lba: u64, bytes: &[u8]) -> Result<(), String> {
        for (lba, bytes) in (lba..).zip(bytes.chunks(self.block)) {
            let allowed = &self.allowed[lba as usize];
            if !allowed.iter().any(|stamp| self.contents(*stamp, lba) == bytes) {
                let found = (0..=self.stamps).find(|stamp| self.contents(*stamp, lba) == bytes);
                return Err(format!("block {lba} is {found:?}, not one of {allowed:?}: {:x?}", &bytes[..16]));
            }
        }
        Ok(())
    }

    /// Blocks that were written, for all that is known.
    fn written(&mut self, blocks: Range<u64>, stamp: u32) {
        for block in blocks {
            self.allowed[block as usize] = vec![stamp];
        }
    }

    /// Blocks that may have been written.
    fn touched(&mut self, blocks: Range<u64>, stamp: u32) {
        for block in blocks {
            let allowed = &mut self.allowed[block as usize];
            if !allowed.contains(&stamp) {
                allowed.push(stamp);
            }
        }
    }
}

/// A request that is under way.
struct Live<'a> {
    request: &'a Request,
    operation: Operation,
    /// Blocks that are its own, for as long as the round takes.
    start: u64,
    room: u64,
    lba: u64,
    blocks: u64,
    stamp: u32,
    must_fail: bool,
    /// How often it will be submitted again.
    left: usize,
    event: Option<Event>,
    observers: Vec<Observer>,
    /// Blocks of a write that an observer has seen done.
    known: Vec<Range<u64>>,
    cancelled: bool,
    came_back: usize,
    /// It is one of the events that the sets of its round are made of; and what came of it.
    counts: bool,
    succeeded: bool,
}

struct Observer {
    event: Event,
    bytes: Range<usize>,
    told: bool,
}

/// What tells right from wrong.
struct Judge {
    tree: Tree,
    fates: Fates,
    model: Model,
}

impl Judge {
    /// A request has come back: whether it could, with this result and these bytes. `ended` is set if
    /// somebody ended it.
    fn judge(
        &mut self,
        live: &mut Live<'_>,
        io: &IoContainer,
        result: Result<(), Failure>,
        ended: Option<Cause>,
    ) -> Result<(), String> {
        let Live { operation, lba, blocks, stamp, .. } = *live;
        let range = lba..lba + blocks;
        let block = self.model.block;
        let may_fail = self.tree.may_fail(&self.fates, operation, &range);
        let what = || format!("{operation:?} of {range:?} has {result:?} (ended {ended:?})");
        if (io.lba(), io.operation()) != (lba, operation) {
            return Err(format!("{} and came back as {io:?}", what()));
        }
        let moves = matches!(operation, Operation::Read | Operation::Write);
        if moves && (io.blocks(), io.memory().len()) != (blocks, blocks as usize * block) {
            return Err(format!("{} and came back as {io:?}", what()));
        }
        match result.map_err(|failure| failure.cause) {
            Ok(()) if ended.is_some() => return Err(format!("{} although it was ended", what())),
            Ok(()) if live.must_fail => return Err(format!("{} but must fail", what())),
            Ok(()) => {}
            Err(cause) if ended.is_some() => {
                if Some(cause) != ended {
                    return Err(what());
                }
            }
            Err(Cause::Refused) if live.request.atomic || live.request.no_bounce => {}
            Err(Cause::Status(status)) if may_fail => {
                if !self.fates.weak.iter().any(|weak| weak.status() == status) {
                    return Err(format!("{} which nobody said", what()));
                }
            }
            Err(Cause::ControllerLost) if may_fail && self.fates.lost.contains(&true) => {}
            Err(_) => return Err(format!("{} but cannot fail so", what())),
        }
        // What lies before the first failure is done.
        let done = match result {
            Ok(()) => blocks,
            Err(Failure { lba: at, cause: Cause::Status(_) | Cause::ControllerLost }) => {
                if operation != Operation::Flush && !range.contains(&at) {
                    return Err(format!("{} at another block", what()));
                }
                at.saturating_sub(lba).min(blocks)
            }
            Err(_) => 0,
        };
        let bytes = io.memory().to_vec();
        let done_bytes = &bytes[..if moves { done as usize * block } else { 0 }];
        match operation {
            Operation::Read => {
                self.model.check(lba, done_bytes).map_err(|wrong| format!("{}: {wrong}", what()))
            }
            Operation::Flush | Operation::Raw => Ok(()),
            _ => {
                self.model.touched(range.clone(), stamp);
                self.model.written(lba..lba + done, stamp);
                live.known.drain(..).for_each(|known| self.model.written(known, stamp));
                let same = |(lba, bytes): (u64, &[u8])| self.model.contents(stamp, lba) == bytes;
                match operation == Operation::Write && !(lba..).zip(bytes.chunks(block)).all(same) {
                    true => Err(format!("{}: it changed what was to be written", what())),
                    false => Ok(()),
                }
            }
        }
    }
}

// ---- what carries it out ----

#[derive(Clone, FromBytes, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Memory of an application, which tells when it is gone.
struct Owner {
    pages: Vec<Page>,
    gone: Arc<AtomicBool>,
}

// SAFETY: whole pages on the heap, which are not touched before the owner is dropped.
unsafe impl ExternalMemory for Owner {
    fn memory(&mut self) -> std::ptr::NonNull<[u8]> {
        self.pages.memory()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// Where memory comes from.
struct Memories {
    space: DmaSpace,
    registered: Registration,
    guest: GuestRegistration,
    /// Bytes of the two that are given out in this round.
    taken: [usize; 2],
}

impl Memories {
    /// So many bytes of a kind, `offset` bytes into a page; of the space's own, if there is nothing left.
    fn piece(&mut self, kind: Kind, len: usize, offset: usize) -> MemoryChain {
        let external = match kind {
            Kind::Own => None,
            Kind::Registered => Some(0),
            Kind::Guest => Some(1),
        };
        if let Some(which) = external {
            let at = self.taken[which] + offset;
            // Not right behind the one before.
            let end = (at + len).next_multiple_of(PAGE) + PAGE;
            if end <= EXTERNAL {
                self.taken[which] = end;
                return match kind {
                    Kind::Guest => self.guest.chain(GuestAddress(at as u64), len).unwrap(),
                    _ => self.registered.chain(at..at + len).unwrap(),
                };
            }
        }
        let whole = self.space.allocate(offset + len).unwrap();
        if offset == 0 { whole } else { whole.split_at(offset).1 }
    }

    fn chain(&mut self, len: usize, block: usize, memory: &Memory) -> MemoryChain {
        let Memory { unit, sizes, offset, kinds } = memory;
        let unit = if *unit == 0 { block } else { *unit };
        let mut chain = MemoryChain::new();
        let mut gaps = Vec::new();
        for i in 0.. {
            let left = len - chain.len();
            let offset = if i == 0 { *offset } else { 0 };
            // The first piece of whole pages ends on one.
            let less = if unit == PAGE { offset } else { 0 };
            let size = sizes.get(i).map_or(left, |size| (size * unit - less).min(left));
            if size == 0 {
                break;
            }
            chain.append(self.piece(kinds[i % kinds.len()], size, offset));
            gaps.push(self.space.allocate(1).unwrap());
        }
        chain
    }
}

/// What a test has seen of what it is for.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    cases: u64,
    requests: u64,
    resubmitted: u64,
    failed: u64,
    ended: u64,
    released: u64,
    observed: u64,
    commands: u64,
    splits: u64,
    merges: u64,
    bounces: u64,
    struck: u64,
    lost: u64,
    retried: u64,
    cured: u64,
    checked: u64,
    failovers: u64,
    hedges: u64,
    hedge_wins: u64,
    ejected: u64,
    hits: u64,
    misses: u64,
    shared: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.cases += other.cases;
        self.requests += other.requests;
        self.resubmitted += other.resubmitted;
        self.failed += other.failed;
        self.ended += other.ended;
        self.released += other.released;
        self.observed += other.observed;
        self.commands += other.commands;
        self.splits += other.splits;
        self.merges += other.merges;
        self.bounces += other.bounces;
        self.struck += other.struck;
        self.lost += other.lost;
        self.retried += other.retried;
        self.cured += other.cured;
        self.checked += other.checked;
        self.failovers += other.failovers;
        self.hedges += other.hedges;
        self.hedge_wins += other.hedge_wins;
        self.ejected += other.ejected;
        self.hits += other.hits;
        self.misses += other.misses;
        self.shared += other.shared;
    }
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

struct Bench<'a> {
    case: &'a Case,
    judge: Judge,
    poller: Poller<Stack>,
    stack: Target,
    disks: Vec<Disk>,
    queues: Vec<QueueId>,
    emulators: Vec<Emulator>,
    memories: Memories,
    capacity: u64,
    chance: Chance,
    turns: usize,
    /// Turns in a row in which nothing came back.
    quiet: usize,
    tally: Tally,
    gone: Arc<AtomicBool>,
    ram: Arc<GuestMemoryMmap>,
}

impl<'a> Bench<'a> {
    fn new(case: &'a Case) -> Bench<'a> {
        let space = DmaSpace::new().unwrap();
        let gone = Arc::<AtomicBool>::default();
        let pages = vec![Page([0; PAGE]); EXTERNAL / PAGE];
        let registered = space.register(Owner { pages, gone: Arc::clone(&gone) }).unwrap();
        let mut count = 0;
        let tree = Tree::new(&case.shape, &case.devices, &mut count);
        let mut text = String::new();
        tree.text(case.block, &case.devices, &mut text);
        let plan: Plan = text.parse().unwrap();
        assert_eq!((plan.to_string(), plan.devices().len()), (text, count));
        let mut poller = Poller::with_layers(ROOM as u32);
        let (mut disks, mut queues, mut emulators) = (Vec::new(), Vec::new(), Vec::new());
        let stack = Stack::new(&plan, &space, &mut |name| {
            let device = &case.devices[disks.len()];
            let settings = name.strip_prefix("emulated:").unwrap();
            let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
            let controller = Controller::open(emulator.function(), &space)?;
            let Device { depth, data, max_transfer, merge, .. } = *device;
            let options =
                QueueOptions::default().depth(depth).data(data).max_transfer(max_transfer).merge(merge);
            let queue = poller.add_queue(&controller, options)?;
            let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
            let disk = Disk::new(&poller, namespace)?;
            queues.push(queue);
            disks.push(disk);
            emulators.push(emulator);
            Ok(disk)
        })
        .unwrap();
        let stack = poller.add_layer(stack).unwrap();
        // After the controllers came, for a change.
        let ram = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), EXTERNAL)]).unwrap());
        let guest = space.register_guest(Arc::clone(&ram)).unwrap();
        let geometry = poller.geometry(stack).unwrap();
        let capacity = tree.blocks(&case.devices);
        assert_eq!((geometry.blocks, geometry.block_size()), (capacity, case.block));
        let doomed =
            |disk| case.mishaps.iter().any(|m| matches!(m, Mishap::Unplug { disk: d, .. } if *d == disk));
        let weak = case.mishaps.iter().filter_map(|mishap| match mishap {
            Mishap::Weak(weak) => Some(weak.clone()),
            _ => None,
        });
        let fates = Fates {
            weak: weak.collect(),
            lost: vec![false; count],
            doomed: (0..count).map(doomed).collect(),
            cured: false,
        };
        for (disk, emulator) in emulators.iter().enumerate() {
            let mut faults = Faults::seeded(case.seed ^ disk as u64).random_order();
            for mishap in &case.mishaps {
                match mishap {
                    Mishap::Weak(weak) if weak.disk == disk => faults = faults.with(weak.fault()),
                    Mishap::Slow { disk: slow, one_in, steps } if *slow == disk => {
                        let fault = Fault::new(Commands::io(), Effect::DelaySteps(*steps));
                        faults = faults.with(fault.one_in(*one_in));
                    }
                    _ => {}
                }
            }
            emulator.set_faults(faults);
        }
        let model = Model { block: case.block, allowed: vec![vec![0]; capacity as usize], stamps: 0 };
        Bench {
            case,
            judge: Judge { tree, fates, model },
            poller,
            stack,
            disks,
            queues,
            emulators,
            memories: Memories { space, registered, guest, taken: [0; 2] },
            capacity,
            chance: Chance(case.seed),
            turns: 0,
            quiet: 0,
            tally: Tally { cases: 1, ..Tally::default() },
            gone,
            ram,
        }
    }

    /// What the controllers do between two polls, and what happens to them.
    fn meanwhile(&mut self) -> Result<(), String> {
        for mishap in &self.case.mishaps {
            if let Mishap::Unplug { disk, turn } = mishap
                && *turn == self.turns
            {
                self.emulators[*disk].unplug();
                self.tally.lost += u64::from(!self.judge.fates.lost[*disk]);
                self.judge.fates.lost[*disk] = true;
            }
        }
        self.turns += 1;
        self.quiet += 1;
        let lost = self.judge.fates.lost.contains(&true);
        if self.quiet > if lost { PATIENCE_IF_LOST } else { PATIENCE } {
            return Err(format!("{} requests never complete", self.poller.outstanding()));
        }
        // The poller has the clock of the first controller.
        self.emulators[0].advance(TICK);
        // A long silence is that of a controller that is gone: the others have nothing to do.
        if self.quiet < PATIENCE / 2 || self.quiet.is_multiple_of(64) {
            for emulator in &self.emulators {
                if self.chance.next() & 1 == 0 {
                    emulator.step();
                }
            }
        }
        Ok(())
    }

    /// One poll, and what comes of it.
    fn poll(&mut self, live: &mut [Live<'_>]) -> Result<(), String> {
        let Bench { poller, judge, tally, .. } = self;
        let mut wrong = None;
        let mut failed = 0;
        let count = poller.poll(|mut done| {
            let result = done.result();
            failed += u64::from(result.is_err());
            let tag = done.io().get_tag() as usize;
            let Some(here) = live.get_mut(tag).filter(|live| live.event.is_none() && live.came_back == 0)
            else {
                wrong.get_or_insert(format!("request {tag} came back, which it should not"));
                return;
            };
            if let Err(what) = judge.judge(here, done.io(), result, None) {
                wrong.get_or_insert(what);
            }
            if here.left == 0 || result.is_err() {
                here.came_back += 1;
                return;
            }
            here.left -= 1;
            tally.resubmitted += 1;
            let Way::Closure { in_place, .. } = here.request.way else { return };
            let shared = done.io().memory().iter().any(|segment| segment.is_shared());
            let model = &mut judge.model;
            // A write is read back; else it moves on.
            if here.operation == Operation::Write {
                here.operation = Operation::Read;
            } else {
                here.lba = here.start + (here.lba - here.start + 3) % (here.room + 1);
                if here.operation == Operation::Read {
                    here.operation = Operation::Write;
                    model.stamps += 1;
                    here.stamp = model.stamps;
                }
            }
            if in_place && !shared {
                let mut io = done.in_place();
                io.set_lba(here.lba);
                io.set_operation(here.operation);
                if here.operation == Operation::Write {
                    let (mut lba, mut at) = (here.lba, 0);
                    for mut data in io.data_mut() {
                        while !data.is_empty() {
                            let from = &model.contents(here.stamp, lba)[at..];
                            let n = from.len().min(data.len());
                            let (head, tail) = std::mem::take(&mut data).split_at_mut(n);
                            head.copy_from_slice(&from[..n]);
                            (data, at) = (tail, at + n);
                            if at == model.block {
                                (lba, at) = (lba + 1, 0);
                            }
                        }
                    }
                } else {
                    io.data_mut().for_each(|data| data.fill(0xee));
                }
            } else {
                let io = done.io_mut();
                io.set_lba(here.lba);
                io.set_operation(here.operation);
                match here.operation {
                    Operation::Write => model.fill(io.memory_mut(), here.stamp, here.lba),
                    _ => io.memory_mut().fill(0xee),
                }
            }
            here.must_fail =
                judge.tree.must_fail(&judge.fates, here.operation, &(here.lba..here.lba + here.blocks));
            if let Err(rejected) = done.resubmit() {
                wrong.get_or_insert(format!("not accepted again: {rejected:?}"));
            }
        });
        tally.failed += failed;
        if count > 0 {
            self.quiet = 0;
        }
        wrong.map_or(Ok(()), Err)
    }

    /// The container of a request.
    fn make(&mut self, live: &mut Live<'_>, tag: usize) -> IoContainer {
        let Live { request, operation, lba, blocks, .. } = *live;
        let model = &mut self.judge.model;
        let len = blocks as usize * model.block;
        let io = match operation {
            Operation::Read | Operation::Write => {
                let mut memory = self.memories.chain(len, model.block, &request.memory);
                if operation == Operation::Read {
                    memory.fill(0xee);
                    IoContainer::read(lba, memory)
                } else {
                    model.stamps += 1;
                    live.stamp = model.stamps;
                    model.fill(&mut memory, live.stamp, lba);
                    IoContainer::write(lba, memory)
                }
            }
            Operation::WriteZeroes => IoContainer::write_zeroes(lba, blocks),
            Operation::Deallocate => IoContainer::deallocate(lba, blocks),
            Operation::Flush | Operation::Raw => IoContainer::flush(),
        };
        let Request { fua, no_merge, no_bounce, atomic, .. } = *request;
        io.tag(tag as u64).fua(fua).no_merge(no_merge).no_bounce(no_bounce).atomic(atomic)
    }

    /// Places the requests of a round, one behind the other, as far as there are blocks.
    fn place<'r>(&self, round: &'r Round) -> Vec<Live<'r>> {
        let mut at = round.start % self.capacity;
        let mut place = |request: &'r Request| {
            let (gap, room) = if round.alike { (0, 0) } else { (request.gap, request.room) };
            let start = at.saturating_add(gap).min(self.capacity);
            let blocks = request.blocks.min(self.capacity - start);
            let room = room.min(self.capacity - start - blocks);
            let kind = if round.alike { &round.requests[0] } else { request };
            let moves = blocks > 0 && kind.operation != Operation::Flush;
            let operation = if moves { kind.operation } else { Operation::Flush };
            let (start, blocks, room) = if moves { (start, blocks, room) } else { (0, 0, 0) };
            if moves {
                at = start + blocks + room;
            }
            let left = match request.way {
                Way::Closure { again, .. } => again,
                Way::Event { .. } => 0,
            };
            Live {
                request,
                operation,
                start,
                room,
                lba: start,
                blocks,
                stamp: 0,
                must_fail: false,
                left,
                event: None,
                observers: Vec::new(),
                known: Vec::new(),
                cancelled: false,
                came_back: 0,
                counts: false,
                succeeded: false,
            }
        };
        let mut live: Vec<Live<'r>> = round.requests.iter().map(&mut place).collect();
        if round.backwards {
            live.reverse();
        }
        live
    }

    fn round(&mut self, round: &Round) -> Result<(), String> {
        self.memories.taken = [0; 2];
        for queue in 0..self.queues.len() {
            if round.plugged >> queue & 1 != 0 {
                self.poller.plug(self.queues[queue]);
            }
        }
        let mut live = self.place(round);
        for tag in 0..live.len() {
            let io = self.make(&mut live[tag], tag);
            let here = &mut live[tag];
            let blocks = here.lba..here.lba + here.blocks;
            here.must_fail = self.judge.tree.must_fail(&self.judge.fates, here.operation, &blocks);
            self.tally.requests += 1;
            match &here.request.way {
                Way::Closure { .. } => self.poller.submit(self.stack, io).map_err(|e| e.to_string())?,
                Way::Event { end, observed } => {
                    let event = self.poller.request(self.stack, io).map_err(|e| e.to_string())?;
                    here.event = Some(event);
                    if let End::Deadline(micros) = end {
                        self.poller.set_deadline(event, Duration::from_micros(*micros));
                    }
                    for (start, percent, _) in observed.iter().filter(|(_, _, turn)| *turn == 0) {
                        self.observe(here, event, *start, *percent)?;
                    }
                }
            }
            for _ in 0..live[tag].request.pause {
                self.poll(&mut live)?;
                self.events(&mut live, usize::MAX)?;
                self.meanwhile()?;
            }
        }
        live.iter_mut().for_each(|live| live.counts = live.event.is_some() && live.came_back == 0);
        let events: Vec<Event> =
            live.iter().filter(|live| live.counts).filter_map(|live| live.event).collect();
        let sets = [self.poller.all(&events).unwrap(), self.poller.any(&events).unwrap()];
        for (token, set) in sets.into_iter().enumerate() {
            self.poller.notify(set, token as u64);
        }
        for turn in 0.. {
            if turn == round.unplug {
                self.queues.iter().for_each(|queue| self.poller.unplug(*queue));
            }
            if round.cancel == Some(turn) {
                for here in &mut live {
                    let state = here.event.and_then(|event| self.poller.state(event));
                    here.cancelled |= here.counts && state == Some(State::Pending);
                }
                self.poller.cancel(sets[1]);
            }
            self.poll(&mut live)?;
            self.events(&mut live, turn)?;
            if self.poller.outstanding() == 0 {
                break;
            }
            self.meanwhile()?;
        }
        self.queues.iter().for_each(|queue| self.poller.unplug(*queue));
        for (tag, here) in live.iter().enumerate() {
            let released = matches!(here.request.way, Way::Event { end: End::Release(_), .. });
            if here.came_back != 1 && !(released && here.came_back == 0) {
                return Err(format!("request {tag} came back {} times", here.came_back));
            }
        }
        self.check_sets(sets, round, &live)
    }

    /// Observes a part of a request, in percent.
    fn observe(
        &mut self,
        here: &mut Live<'_>,
        event: Event,
        start: usize,
        percent: usize,
    ) -> Result<(), String> {
        if !matches!(here.operation, Operation::Read | Operation::Write) {
            return Ok(());
        }
        let len = here.blocks as usize * self.case.block;
        let start = len * start / 100;
        let bytes = start..(start + (len * percent / 100).max(1)).min(len);
        let range = bytes.start as u64..bytes.end as u64;
        let event = self.poller.observe(event, range).map_err(|e| e.to_string())?;
        here.observers.push(Observer { event, bytes, told: false });
        Ok(())
    }

    /// What has become of the requests that are events, after so many turns.
    fn events(&mut self, live: &mut [Live<'_>], turn: usize) -> Result<(), String> {
        for (tag, here) in live.iter_mut().enumerate() {
            let (Some(event), Way::Event { end, observed }) = (here.event, &here.request.way) else {
                continue;
            };
            if here.came_back > 0 {
                continue;
            }
            match *end {
                End::Cancel(when) if when == turn => {
                    here.cancelled |= self.poller.state(event) == Some(State::Pending);
                    self.poller.cancel(event);
                }
                End::Release(when) if when == turn && here.observers.is_empty() => {
                    self.release(here, event);
                    continue;
                }
                _ => {}
            }
            for (start, percent, _) in observed.iter().filter(|(_, _, when)| *when > 0 && *when == turn) {
                self.observe(here, event, *start, *percent)?;
            }
            let Some(state) = self.poller.state(event) else { continue };
            self.look(here)?;
            let State::Settled(verdict, totals) = state else {
                if self.poller.claim(event).is_some() {
                    return Err(format!("request {tag} is claimed before it is settled"));
                }
                continue;
            };
            let ended = match verdict.reason {
                Reason::Completion => None,
                Reason::Cancelled => Some(Cause::Cancelled),
                Reason::Expired => Some(Cause::Expired),
            };
            if here.cancelled != (ended == Some(Cause::Cancelled)) {
                return Err(format!(
                    "request {tag} is cancelled: {}, but ended as {ended:?}",
                    here.cancelled
                ));
            }
            if here
                .observers
                .iter()
                .any(|observer| !matches!(self.poller.state(observer.event), Some(State::Settled(..))))
            {
                return Err(format!("request {tag} is settled, parts of it are not"));
            }
            let told = here.observers.iter().all(|observer| observer.told);
            let (io, result) = self.poller.claim(event).ok_or("a request that is settled is not claimed")?;
            here.came_back += 1;
            here.succeeded = result.is_ok();
            self.quiet = 0;
            self.tally.failed += u64::from(result.is_err());
            self.tally.ended += u64::from(ended.is_some());
            if verdict.success != result.is_ok() || totals.first != result.err() {
                return Err(format!("request {tag} has {result:?}, its event {verdict:?} and {totals:?}"));
            }
            if result.is_ok() && !told {
                return Err(format!("request {tag} has succeeded, parts of it have not"));
            }
            if io.get_tag() != tag as u64 {
                return Err(format!("request {tag} is another one: {io:?}"));
            }
            self.judge.judge(here, &io, result, ended)?;
            here.observers.drain(..).for_each(|observer| self.poller.release(observer.event));
        }
        Ok(())
    }

    /// Nobody looks at a request any more.
    fn release(&mut self, here: &mut Live<'_>, event: Event) {
        self.poller.release(event);
        self.tally.released += 1;
        let blocks = here.lba..here.lba + here.blocks;
        if matches!(here.operation, Operation::Write | Operation::WriteZeroes | Operation::Deallocate) {
            self.judge.model.touched(blocks, here.stamp);
        }
        here.event = None;
    }

    /// Parts of a request that are done: they have the right bytes, whatever of the rest is under way.
    fn look(&mut self, here: &mut Live<'_>) -> Result<(), String> {
        for observer in here.observers.iter_mut().filter(|observer| !observer.told) {
            let Some(State::Settled(verdict, _)) = self.poller.state(observer.event) else { continue };
            if !verdict.success {
                continue;
            }
            observer.told = true;
            self.tally.observed += 1;
            let block = self.case.block;
            let first = observer.bytes.start / block;
            let blocks = here.lba + first as u64..here.lba + observer.bytes.end.div_ceil(block) as u64;
            let Some(slices) = self.poller.observed(observer.event) else { continue };
            let bytes: Vec<u8> = slices.flatten().copied().collect();
            if bytes.len() != (blocks.end - blocks.start) as usize * block {
                return Err(format!("{} bytes of {blocks:?} are observed", bytes.len()));
            }
            let model = &self.judge.model;
            if here.operation == Operation::Read {
                model.check(blocks.start, &bytes).map_err(|wrong| format!("observed too early: {wrong}"))?;
            } else {
                here.known.push(blocks);
            }
        }
        Ok(())
    }

    /// Sets of events come to what their requests came to, once.
    fn check_sets(&mut self, sets: [Event; 2], round: &Round, live: &[Live<'_>]) -> Result<(), String> {
        let mut moments = [Vec::new(), Vec::new()];
        while let Some((token, moment)) = self.poller.next_moment() {
            moments[token as usize].push(moment);
        }
        let counts = || live.iter().filter(|live| live.counts);
        // Of one that was released nobody knows.
        let known = counts().all(|live| live.came_back > 0);
        let failed = counts().filter(|live| !live.succeeded).count();
        let expected = [failed == 0, failed < counts().count()];
        for ((set, moments), expected) in sets.into_iter().zip(moments).zip(expected) {
            let Some(State::Settled(verdict, totals)) = self.poller.state(set) else {
                return Err(format!("a set of events is {:?}", self.poller.state(set)));
            };
            if moments != [Moment::Resolved, Moment::Settled] {
                return Err(format!("a set of events had the moments {moments:?}"));
            }
            let right = totals.failed as usize == failed && verdict.success == expected;
            if known && round.cancel.is_none() && !right {
                return Err(format!("{failed} of {} failed: {verdict:?} {totals:?}", counts().count()));
            }
            self.poller.release(set);
        }
        Ok(())
    }

    /// Reads all there is, in pieces of so many blocks. With nothing wrong any more, only what is on a
    /// controller that is gone cannot be read.
    fn read_back(&mut self, blocks: u64) -> Result<(), String> {
        let mut lba = 0;
        while lba < self.capacity {
            let blocks = blocks.min(self.capacity - lba);
            let mut memory = self.memories.space.allocate(blocks as usize * self.case.block).unwrap();
            memory.fill(0xee);
            self.poller.submit(self.stack, IoContainer::read(lba, memory)).map_err(|e| e.to_string())?;
            let mut back = None;
            while back.is_none() || self.poller.outstanding() > 0 {
                let mut twice = false;
                self.poller.poll(|done| {
                    let result = done.result();
                    twice |= back.replace((result, done.take().into_memory().to_vec())).is_some();
                });
                if twice {
                    return Err("it came back twice".into());
                }
                self.meanwhile()?;
            }
            self.quiet = 0;
            let (result, bytes) = back.ok_or("it never comes back")?;
            let all = lba..lba + blocks;
            match result {
                Ok(()) => self.judge.model.check(lba, &bytes)?,
                Err(failure) => {
                    let lost = self.judge.fates.lost.contains(&true);
                    if !lost || !self.judge.tree.may_fail(&self.judge.fates, Operation::Read, &all) {
                        return Err(format!("in the end, {all:?} has {failure}"));
                    }
                }
            }
            lba += blocks;
        }
        Ok(())
    }

    /// All slots of all queues can be taken at the same time.
    fn check_slots(&mut self) -> Result<(), String> {
        for disk in 0..self.disks.len() {
            if self.judge.fates.lost[disk] {
                continue;
            }
            let (emulator, depth) = (&self.emulators[disk], self.poller.depth(self.queues[disk]));
            emulator.hold(Commands::io());
            for tag in 0..=depth as u64 {
                let memory = self.memories.space.allocate(self.case.block).unwrap();
                let io = IoContainer::read(tag % 2, memory).no_merge(true);
                self.poller.submit(self.disks[disk].target(), io).map_err(|e| e.to_string())?;
            }
            for _ in 0..4 {
                self.poller.poll(|_| {});
                emulator.step();
            }
            let held = emulator.held().len();
            if held != depth {
                return Err(format!("{held} slots of {depth} are left"));
            }
            emulator.release_all();
            for _ in 0..1000 {
                self.poller.poll(|_| {});
                self.emulators[disk].step();
            }
        }
        match self.poller.outstanding() {
            0 => Ok(()),
            left => Err(format!("{left} requests never complete")),
        }
    }

    /// As many requests as there is room for, and no more.
    fn check_nodes(&mut self) -> Result<(), String> {
        let io = || IoContainer::flush();
        for _ in 0..ROOM {
            self.poller.submit(self.stack, io()).map_err(|e| e.to_string())?;
        }
        match self.poller.submit(self.stack, io()) {
            Err(rejected) if rejected.reason == Refusal::Full => {}
            other => return Err(format!("beyond the room there is: {other:?}")),
        }
        let mut left = ROOM;
        while self.poller.outstanding() > 0 {
            left -= self.poller.poll(|_| {});
            self.meanwhile()?;
        }
        self.quiet = 0;
        match left {
            0 => Ok(()),
            _ => Err(format!("{left} flushes do not come back")),
        }
    }

    /// Where the memory that is free lies.
    fn free(&self) -> Vec<u64> {
        let pieces: Vec<MemoryChain> =
            (0..128).map(|_| self.memories.space.allocate(64 << 10).unwrap()).collect();
        pieces.iter().map(|piece| piece.segments()[0].iova()).collect()
    }

    /// What the layers and queues have counted.
    fn count(&mut self) -> Result<(), String> {
        let tally = &mut self.tally;
        for (queue, emulator) in self.queues.iter().zip(&self.emulators) {
            let (stats, counters) = (self.poller.stats(*queue), emulator.counters());
            if (stats.faults, counters.bad_doorbells, counters.full_queues) != (0, 0, 0) {
                return Err(format!("{stats:?} {counters:?}"));
            }
            tally.commands += stats.commands;
            tally.splits += stats.splits;
            tally.merges += stats.merges;
            tally.bounces += stats.bounces;
            tally.struck += counters.faults.errors;
        }
        let mut buffers = Vec::new();
        self.judge.tree.buffers(&mut buffers);
        let mut buffers = buffers.into_iter();
        for layer in self.poller.layer(self.stack).unwrap().layers() {
            match layer {
                Stack::Mirror(mirror) => {
                    let (free, all) = (mirror.free_buffers(), buffers.next().unwrap());
                    if free != all {
                        return Err(format!("{free} buffers of {all} are left"));
                    }
                    let counts = mirror.counts();
                    tally.failovers += counts.failovers;
                    tally.hedges += counts.hedges;
                    tally.hedge_wins += counts.hedge_wins;
                    let legs = (0..).map_while(|leg| mirror.leg_counts(leg));
                    tally.ejected += legs.filter(|leg| leg.ejected.is_some()).count() as u64;
                }
                Stack::Retry(retry) => {
                    tally.retried += retry.retries().retried;
                    tally.cured += retry.retries().cured;
                }
                Stack::Cache(cache) => {
                    let counts = cache.counts();
                    tally.hits += counts.hits;
                    tally.misses += counts.misses;
                    tally.shared += counts.shared;
                }
                Stack::Verify(verify) => {
                    let checks = verify.filter().checks();
                    tally.checked += checks.checked;
                    if checks.mismatches > 0 {
                        return Err(format!("a false alarm: {checks:?}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn run(mut self) -> Result<Tally, String> {
        let free = self.free();
        let beyond = IoContainer::deallocate(self.capacity, 1);
        match self.poller.submit(self.stack, beyond) {
            Err(rejected) if matches!(rejected.reason, Refusal::OutOfRange { .. }) => {}
            other => return Err(format!("beyond the end: {other:?}")),
        }
        for round in &self.case.rounds {
            self.round(round)?;
        }
        self.count()?;
        for (disk, emulator) in self.emulators.iter().enumerate() {
            emulator.set_faults(Faults::seeded(disk as u64).random_order());
        }
        self.judge.fates.cured = true;
        // Often enough for every leg to have its turn.
        for blocks in [self.capacity, self.capacity, self.capacity, 7, 13] {
            self.read_back(blocks)?;
        }
        self.check_slots()?;
        self.check_nodes()?;
        if self.free() != free {
            return Err("memory is missing".into());
        }
        let Bench { poller, memories, gone, ram, tally, .. } = self;
        let Memories { space, registered, guest, .. } = memories;
        drop((registered, guest));
        if !gone.load(Ordering::Relaxed) || Arc::strong_count(&ram) != 1 {
            return Err("memory that was registered is still in use".into());
        }
        drop((poller, space));
        Ok(tally)
    }
}

impl Tree {
    /// Buffers of the mirrors, from top to bottom and from left to right.
    fn buffers(&self, buffers: &mut Vec<usize>) {
        match self {
            Tree::Disk(_) => {}
            Tree::Partition { below, .. }
            | Tree::Filter { below, .. }
            | Tree::Retry { below, .. }
            | Tree::Cache { below, .. } => {
                below.buffers(buffers);
            }
            Tree::Stripe { legs, .. } => legs.iter().for_each(|leg| leg.buffers(buffers)),
            Tree::Mirror { hedge, legs } => {
                buffers.push(hedge.map_or(0, |hedge| hedge.buffers));
                legs.iter().for_each(|leg| leg.buffers(buffers));
            }
        }
    }
}

#[test]
fn any_stack_is_a_plain_array() {
    let total = RefCell::new(Tally::default());
    let config = ProptestConfig {
        cases: CASES,
        max_shrink_iters: 4000,
        max_shrink_time: 40_000,
        ..ProptestConfig::default()
    };
    proptest!(config, |(case in case())| {
        let tally = Bench::new(&case).run().map_err(TestCaseError::fail)?;
        *total.borrow_mut() += tally;
    });
    let total = total.into_inner();
    println!("{total:?}");
    // What this is for has happened, and more often than that.
    let Tally { resubmitted, failed, ended, released, observed, splits, merges, bounces, .. } = total;
    let Tally { struck, lost, retried, cured, checked, failovers, hedges, ejected, hits, .. } = total;
    let counts = [resubmitted, failed, ended, released, observed, splits, merges, bounces, struck, lost];
    let counts = counts.into_iter().chain([retried, cured, checked, failovers, hedges, ejected, hits]);
    assert!(counts.min() > Some(0) || total.cases < CASES.into(), "{total:?}");
}

// ---- single stacks ----

/// A stack on emulators with settings, which devices are named by, and queues of a depth.
fn stack(text: &str, settings: &str, depth: usize) -> (DmaSpace, Poller<Stack>, Target, Vec<Emulator>) {
    let space = DmaSpace::new().unwrap();
    let mut poller = Poller::with_layers(ROOM as u32);
    let mut emulators = Vec::new();
    let stack = Stack::new(&text.parse().unwrap(), &space, &mut |_| {
        let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
        let controller = Controller::open(emulator.function(), &space)?;
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(depth))?;
        let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
        emulators.push(emulator);
        Disk::new(&poller, namespace)
    });
    let stack = poller.add_layer(stack.unwrap()).unwrap();
    (space, poller, stack, emulators)
}

/// A hedged read that no leg can finish: what is before the failure is there when the rest is tried again.
#[test]
fn a_race_that_all_lose_has_read_what_is_before_its_failure() {
    // Commands of two blocks, one at a time.
    let text = "retry(times=3,mirror(hedge=1000,buffers=4,buffer=32K,a,b))";
    let (space, mut poller, stack, emulators) = stack(text, "size=1M,media=ram,mdts=1", 1);
    let mut run = |io: IoContainer| {
        poller.submit(stack, io).unwrap();
        let mut back = None;
        while back.is_none() {
            poller.poll(|done| back = Some((done.result(), done.take().into_memory().to_vec())));
            for emulator in &emulators {
                emulator.step();
            }
        }
        back.unwrap()
    };
    let memory = |byte| {
        let mut memory = space.allocate(8 * PAGE).unwrap();
        memory.fill(byte);
        memory
    };
    assert_eq!(run(IoContainer::write(0, memory(7))).0, Ok(()));
    for emulator in &emulators {
        let fault = Fault::new(Commands::reads().lbas(5..6), Effect::Status(Status::INTERNAL_ERROR));
        emulator.set_faults(Faults::default().with(fault.once()));
    }
    let (result, bytes) = run(IoContainer::read(0, memory(0xee)));
    assert_eq!(result, Ok(()));
    assert!(bytes == [7; 8 * PAGE]);
}

/// A read that one leg failed half-way goes on in another one, while a write is under way there: what is read may be
/// what was there before or after, and the first leg's layers have left nothing that says since when.
#[test]
fn a_read_that_goes_on_in_another_leg_is_no_false_alarm() {
    for seed in 0..16 {
        let settings = "size=1M,media=ram,noiob=1";
        let (space, mut poller, stack, emulators) = stack("mirror(trace(a),verify(b))", settings, 4);
        let write = |lba, blocks: usize, byte| {
            let mut memory = space.allocate(blocks * PAGE).unwrap();
            memory.fill(byte);
            IoContainer::write(lba, memory)
        };
        let turn = |poller: &mut Poller<Stack>| {
            poller.poll(|done| done.result().unwrap());
            for emulator in &emulators {
                emulator.step();
            }
        };
        emulators[0].advance(Duration::from_secs(1));
        poller.submit(stack, write(0, 2, 1)).unwrap();
        while poller.outstanding() > 0 {
            turn(&mut poller);
        }
        let failure =
            Fault::new(Commands::reads().lbas(1..2), Effect::Status(Status::UNRECOVERED_READ_ERROR));
        emulators[0].set_faults(Faults::default().with(failure));
        let slow = Fault::new(Commands::reads(), Effect::DelaySteps(10));
        emulators[1].set_faults(Faults::seeded(seed).random_order().with(slow));
        poller.submit(stack, IoContainer::read(0, space.allocate(2 * PAGE).unwrap())).unwrap();
        (0..3).for_each(|_| turn(&mut poller));
        poller.submit(stack, write(1, 1, 2)).unwrap();
        while poller.outstanding() > 0 {
            turn(&mut poller);
        }
        for layer in poller.layer(stack).unwrap().layers() {
            if let Stack::Verify(verify) = layer {
                assert_eq!(verify.filter().checks().mismatches, 0, "seed {seed}");
            }
        }
    }
}

/// Requests that are split, copied, hedged and tried again; what the emulators allocate is not counted.
#[test]
fn a_steady_state_allocates_nothing_in_any_layer() {
    // Second legs are asked soon, or never.
    for hedge in [100, 10_000_000] {
        steady_state(hedge);
    }
}

fn steady_state(hedge: u64) {
    let text = format!(
        "trace(verify(cache(bytes=256K,line=16K,retry(times=4,delay=1,mirror(hedge={hedge},buffers=6,buffer=32K,\
                stripe(chunk=12K,a,b),partition(start=7,c))))))"
    );
    let (space, mut poller, stack, emulators) = stack(&text, "size=2M,media=ram,mdts=1", 3);
    for (seed, emulator) in emulators.iter().enumerate() {
        let faults = Faults::seeded(seed as u64).random_order();
        let error = Fault::new(Commands::reads(), Effect::Status(Status::INTERNAL_ERROR)).one_in(50);
        let slow = Fault::new(Commands::io(), Effect::DelaySteps(20)).one_in(20);
        emulator.set_faults(faults.with(error).with(slow));
    }
    let blocks = poller.geometry(stack).unwrap().blocks;
    for tag in 0..ROOM as u64 {
        let memory = space.allocate((1 + tag as usize * 3 % 40) * PAGE).unwrap();
        poller.submit(stack, IoContainer::read(tag * 8, memory).tag(tag)).unwrap();
    }
    let (mut done_so_far, mut allocated) = (0, 0);
    while done_so_far < 6000 {
        let before = ALLOCATIONS.get();
        poller.poll(|mut done| {
            done_so_far += 1;
            done.result().unwrap();
            let mut io = done.in_place();
            let lba = (io.lba() * 7 + 3) % (blocks - 40);
            io.set_lba(lba);
            io.set_operation(if lba % 3 == 0 { Operation::Write } else { Operation::Read });
            done.resubmit().unwrap();
        });
        if done_so_far > 3000 {
            allocated += ALLOCATIONS.get() - before;
        }
        emulators[0].advance(TICK);
        for emulator in &emulators {
            emulator.step();
        }
    }
    for layer in poller.layer(stack).unwrap().layers() {
        match layer {
            Stack::Retry(retry) => assert!(retry.retries().retried > 0),
            Stack::Mirror(mirror) => {
                let counts = mirror.counts();
                assert!(counts.failovers > 0 && (counts.hedges > 0) == (hedge < 1000), "{counts:?}");
            }
            Stack::Cache(cache) => assert!(cache.counts().misses > 0),
            _ => {}
        }
    }
    assert_eq!(allocated, 0, "allocations in 3000 requests");
}
