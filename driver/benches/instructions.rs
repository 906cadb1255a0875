//! Driver instructions per I/O, counted by callgrind on the stepped emulator: `cargo bench -p kiovec`.
//!
//! Each line of the table runs this program again under callgrind, twice, with different numbers of
//! I/Os; only what happens inside `counted_poll` is counted, and the difference is what the I/Os
//! cost. The counts do not depend on how busy the machine is.

use std::process::{Command, ExitCode};
use std::sync::Arc;

use kiovec::layer::{Disk, Stack};
use kiovec::memory::DmaSpace;
use kiovec::{Controller, DataForm, Done, Event, IoContainer, Poller, QueueId, QueueOptions, State, Target};
use kiovec_emulator::{Config, Emulator};

/// A line of the table.
struct Work {
    name: &'static str,
    depth: usize,
    bytes: usize,
    data: DataForm,
    next: Next,
}

/// What happens with a finished container.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// Resubmitted where it is, with another LBA.
    InPlace,
    /// Resubmitted where it is, with other memory.
    NewMemory,
    /// Taken out, and submitted like a new one.
    TakenOut,
    /// Requested as one of the events of an `all`, and claimed.
    Event,
    /// Resubmitted where it is, through so many layers.
    Layers(usize),
    /// Resubmitted where it is, as that many commands.
    Split(usize),
    /// Taken out, and submitted with so many neighbours that all share a command.
    Merged(usize),
    /// Nothing is in flight at all.
    Idle,
}

const fn work(name: &'static str, depth: usize, bytes: usize, data: DataForm, next: Next) -> Work {
    Work { name, depth, bytes, data, next }
}

const KIB: usize = 1024;
const TABLE: &[Work] = &[
    work("4 KiB read, depth 1, in place", 1, 4 * KIB, DataForm::Prp, Next::InPlace),
    work("4 KiB read, depth 32, in place", 32, 4 * KIB, DataForm::Prp, Next::InPlace),
    work("4 KiB read, depth 128, in place", 128, 4 * KIB, DataForm::Prp, Next::InPlace),
    work("4 KiB read, depth 128, in place, SGL", 128, 4 * KIB, DataForm::Sgl, Next::InPlace),
    work("4 KiB read, depth 128, new memory", 128, 4 * KIB, DataForm::Prp, Next::NewMemory),
    work("4 KiB read, depth 128, taken out", 128, 4 * KIB, DataForm::Prp, Next::TakenOut),
    work("128 KiB read, depth 32, in place", 32, 128 * KIB, DataForm::Prp, Next::InPlace),
    work("1 MiB read, depth 8, in place", 8, 1024 * KIB, DataForm::Prp, Next::InPlace),
    work("1 MiB read, depth 8, new memory", 8, 1024 * KIB, DataForm::Prp, Next::NewMemory),
    work("4 KiB read as an event in an all of 64", 64, 4 * KIB, DataForm::Prp, Next::Event),
    work("4 KiB read through 0 layers", 128, 4 * KIB, DataForm::Prp, Next::Layers(0)),
    work("4 KiB read through 1 layer", 128, 4 * KIB, DataForm::Prp, Next::Layers(1)),
    work("4 KiB read through 3 layers", 128, 4 * KIB, DataForm::Prp, Next::Layers(3)),
    work("4 KiB read through 6 layers", 128, 4 * KIB, DataForm::Prp, Next::Layers(6)),
    work("32 KiB read split into 8", 64, 32 * KIB, DataForm::Prp, Next::Split(8)),
    work("4 KiB read merged 32 to 1", 32, 4 * KIB, DataForm::Prp, Next::Merged(32)),
    work("idle poll", 1, 4 * KIB, DataForm::Prp, Next::Idle),
];

/// What is counted, with everything that these call. Named whole: a pattern would match their closures
/// too, and switch counting off there.
const COUNTED: [&str; 9] = [
    "counted_poll_in_place",
    "counted_poll_layers",
    "counted_poll_merge",
    "counted_poll_collect",
    "counted_poll_new_memory",
    "counted_poll_taken_out",
    "counted_poll_request",
    "counted_poll_claim",
    "counted_poll_idle",
];

const FEW: u64 = 1_920;
const MANY: u64 = 5_760;
/// Makes the program run one line instead of printing the table: its index and a number of I/Os.
const CHILD: &str = "KIOVEC_BENCH_CHILD";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let result = match std::env::var(CHILD) {
        Ok(spec) => child(&spec),
        Err(_) => table(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table() -> Result<(), Failure> {
    println!("{:<42} {:>20}", "driver instructions (callgrind)", "per I/O");
    for (index, work) in TABLE.iter().enumerate() {
        let cost = (count(index, MANY)? - count(index, FEW)?) as f64 / (MANY - FEW) as f64;
        println!("{:<42} {cost:>20.1}", work.name);
    }
    Ok(())
}

/// Runs one line under callgrind.
fn count(index: usize, ios: u64) -> Result<u64, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(COUNTED.map(|name| format!("--toggle-collect=instructions::{name}")))
        .arg(std::env::current_exe()?)
        .env(CHILD, format!("{index} {ios}"))
        .output()
        .map_err(|e| format!("valgrind: {e}; install it with: apt-get install valgrind"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, number)) if output.status.success() => Ok(number.trim().parse()?),
        _ => Err(format!("{}: no count:\n{text}", TABLE[index].name).into()),
    }
}

fn child(spec: &str) -> Result<(), Failure> {
    let (index, ios) = spec.split_once(' ').ok_or("two numbers are wanted")?;
    let work = &TABLE[index.parse::<usize>()?];
    let mut left: u64 = ios.parse()?;
    let emulator = Emulator::stepped(Config::parse("size=1G,block=4096,media=null,mdts=9,sgl=on")?)?;
    let space = DmaSpace::new()?;
    let controller = Controller::open(emulator.function(), &space)?;
    if let Next::Layers(count) = work.next {
        return layers(&emulator, &controller, &space, work, count, left);
    }
    let mut poller = Poller::new(work.depth as u32 * 2);
    let mut options = QueueOptions::default().depth(work.depth).data(work.data);
    if let Next::Split(pieces) = work.next {
        options = options.max_transfer((work.bytes / pieces) as u64);
    }
    let queue = poller.add_queue(&controller, options)?;
    let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
    if work.next == Next::Idle {
        for _ in 0..left {
            counted_poll_idle(&mut poller);
        }
        return Ok(());
    }
    if work.next == Next::Event {
        return events(&emulator, &mut poller, disk, &space, left);
    }
    if let Next::Merged(count) = work.next {
        return merged(&emulator, &mut poller, (queue, disk), &space, count, left);
    }
    // As long as a hugepage, so that memory is contiguous and inside one 2 MiB block.
    let mut spare = space.allocate(work.bytes)?;
    for tag in 0..work.depth as u64 {
        poller.submit(disk, IoContainer::read(tag, space.allocate(work.bytes)?).tag(tag))?;
    }
    let mut random = 1u64;
    while left > 0 {
        let done = match work.next {
            Next::InPlace | Next::Split(_) => counted_poll_in_place(&mut poller, &mut random),
            Next::NewMemory => counted_poll_new_memory(&mut poller, &mut random, &mut spare),
            Next::TakenOut => counted_poll_taken_out(&mut poller, disk, &mut random),
            Next::Event | Next::Idle | Next::Layers(_) | Next::Merged(_) => 0,
        };
        left = left.saturating_sub(done as u64);
        emulator.step();
    }
    let stats = poller.stats(queue);
    assert!(stats.faults == 0 && stats.commands as usize >= work.depth);
    Ok(())
}

/// In place through layers that neither split nor merge, of those that a stack from text has.
fn layers(
    emulator: &Emulator,
    controller: &Arc<Controller>,
    space: &DmaSpace,
    work: &Work,
    count: usize,
    ios: u64,
) -> Result<(), Failure> {
    let mut poller = Poller::<Stack>::with_layers(work.depth as u32);
    let queue = poller.add_queue(controller, QueueOptions::default().depth(work.depth).data(work.data))?;
    let mut target = poller.add_namespace(queue, &controller.namespace(1)?)?;
    let disk = Disk::new(&poller, target)?;
    if count > 0 {
        let names = ["partition(start=8,", "trace(", "partition("].into_iter().cycle().take(count);
        let text = names.collect::<String>() + "DISK" + &")".repeat(count);
        let stack = Stack::new(&text.parse()?, space, &mut |_| Ok(disk))?;
        target = poller.add_layer(stack)?;
    }
    for tag in 0..work.depth as u64 {
        poller.submit(target, IoContainer::read(tag, space.allocate(work.bytes)?).tag(tag))?;
    }
    let (mut random, mut left) = (1u64, ios);
    while left > 0 {
        left = left.saturating_sub(counted_poll_layers(&mut poller, &mut random) as u64);
        emulator.step();
    }
    Ok(())
}

#[inline(never)]
fn counted_poll_layers(poller: &mut Poller<Stack>, random: &mut u64) -> usize {
    poller.poll(|mut done| {
        assert!(done.result().is_ok());
        done.set_lba(lba(random));
        done.resubmit().expect("accepted");
    })
}

/// Neighbours that are held back until all are there.
fn merged(
    emulator: &Emulator,
    poller: &mut Poller,
    (queue, disk): (QueueId, Target),
    space: &DmaSpace,
    count: usize,
    ios: u64,
) -> Result<(), Failure> {
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(IoContainer::read(0, space.allocate(4 * KIB)?));
    }
    let mut random = 1;
    for _ in 0..ios / count as u64 {
        let first = lba(&mut random);
        counted_poll_merge(poller, (queue, disk), &mut idle, first);
        while emulator.step() > 0 {}
        counted_poll_collect(poller, &mut idle);
        assert_eq!(idle.len(), count);
    }
    let stats = poller.stats(queue);
    assert_eq!((stats.commands + stats.merges, stats.commands * count as u64), (ios, ios));
    Ok(())
}

#[inline(never)]
fn counted_poll_merge(
    poller: &mut Poller,
    (queue, disk): (QueueId, Target),
    idle: &mut Vec<IoContainer>,
    first: u64,
) {
    poller.plug(queue);
    for (i, mut io) in idle.drain(..).enumerate() {
        io.set_lba(first + i as u64);
        poller.submit(disk, io).expect("accepted");
    }
    poller.unplug(queue);
    poller.poll(|_| {});
}

#[inline(never)]
fn counted_poll_collect(poller: &mut Poller, idle: &mut Vec<IoContainer>) {
    poller.poll(|done| {
        check(&done);
        idle.push(done.take());
    });
}

/// As many reads at a time as the queue holds, waited for as one event.
fn events(
    emulator: &Emulator,
    poller: &mut Poller,
    disk: Target,
    space: &DmaSpace,
    ios: u64,
) -> Result<(), Failure> {
    let mut random = 1;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(IoContainer::read(0, space.allocate(4 * KIB)?));
    }
    let mut events = Vec::with_capacity(64);
    for _ in 0..ios / 64 {
        let all = counted_poll_request(poller, disk, &mut idle, &mut events, &mut random);
        while emulator.step() > 0 {}
        counted_poll_claim(poller, all, &mut idle, &mut events);
    }
    Ok(())
}

#[inline(never)]
fn counted_poll_request(
    poller: &mut Poller,
    disk: Target,
    idle: &mut Vec<IoContainer>,
    events: &mut Vec<Event>,
    random: &mut u64,
) -> Event {
    for mut io in idle.drain(..) {
        io.set_lba(lba(random));
        events.push(poller.request(disk, io).expect("accepted"));
    }
    let all = poller.all(events).expect("all are held");
    poller.poll(|_| {});
    all
}

#[inline(never)]
fn counted_poll_claim(poller: &mut Poller, all: Event, idle: &mut Vec<IoContainer>, events: &mut Vec<Event>) {
    poller.poll(|_| {});
    assert!(matches!(poller.state(all), Some(State::Settled(..))));
    idle.extend(events.drain(..).map(|event| poller.claim(event).expect("settled").0));
    poller.release(all);
}

/// A block of the namespace, less the largest transfer.
fn lba(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 47
}

#[inline(never)]
fn counted_poll_in_place(poller: &mut Poller, random: &mut u64) -> usize {
    poller.poll(|mut done| {
        check(&done);
        done.set_lba(lba(random));
        done.resubmit().expect("accepted");
    })
}

#[inline(never)]
fn counted_poll_new_memory(
    poller: &mut Poller,
    random: &mut u64,
    spare: &mut kiovec::memory::MemoryChain,
) -> usize {
    poller.poll(|mut done| {
        check(&done);
        let io = done.io_mut();
        io.set_lba(lba(random));
        *spare = io.replace_memory(std::mem::take(spare));
        done.resubmit().expect("accepted");
    })
}

#[inline(never)]
fn counted_poll_taken_out(poller: &mut Poller, disk: Target, random: &mut u64) -> usize {
    let mut taken = None;
    let count = poller.poll(|mut done| {
        check(&done);
        // What was taken out in the last turn goes in now, as a new one.
        if let Some(mut io) = taken.take() {
            IoContainer::set_lba(&mut io, lba(random));
            done.submit(disk, io).expect("accepted");
        }
        taken = Some(done.take());
    });
    if let Some(io) = taken {
        poller.submit(disk, io).expect("accepted");
    }
    count
}

#[inline(never)]
fn counted_poll_idle(poller: &mut Poller) -> usize {
    poller.poll(|_| {})
}

#[inline(always)]
fn check(done: &Done<'_>) {
    assert!(done.result().is_ok());
}
