//! Driver instructions per I/O, counted by callgrind on the stepped emulator: `cargo bench -p kiovec`.
//!
//! Each line of the table runs this program again under callgrind, twice, with different numbers of
//! I/Os; only what happens inside `counted_poll` is counted, and the difference is what the I/Os
//! cost. The counts do not depend on how busy the machine is.
//!
//! `instructions.txt` beside this file has the counts as they were last, and `counts` says when that is a
//! failure.

use std::process::ExitCode;
use std::sync::Arc;

use kiovec::layer::{Disk, Stack};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{
    Controller, DataForm, Done, Event, IoContainer, Poller, QueueId, QueueOptions, REQUEST_BYTES, SLOT_BYTES,
    State, Target,
};
use kiovec_emulator::{Config, Emulator};

use self::counts::{Failure, Row};

mod counts;

/// A line of the table.
struct Line {
    name: &'static str,
    /// The most that it may be; `None` where it is only there for others to refer to.
    budget: Option<Budget>,
    value: Value,
}

enum Budget {
    Most(f64),
    /// So much more than another line.
    Over(&'static str, f64),
}

enum Value {
    Counted(Work),
    /// A part of the difference between two other lines.
    Difference {
        of: &'static str,
        less: &'static str,
        part: f64,
    },
    Ratio {
        of: &'static str,
        to: &'static str,
    },
    Bytes(usize),
}

/// What is carried out.
#[derive(Clone, Copy)]
struct Work {
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
    /// The same, as a change that might be any.
    Changed,
    /// The same, and the memory is so many pages that are not neighbours.
    Scattered(usize),
    /// Taken out, and another one submitted in its place.
    Replaced,
    /// Taken out, and submitted like a new one.
    TakenOut,
    /// Requested as one of the events of an `all`, and claimed.
    Event,
    /// Resubmitted where it is, and counted by an `all` of as many as are in flight.
    Counted,
    /// Awaited as a future.
    Future,
    /// The same, and submitted again where it is.
    FutureInPlace,
    /// Resubmitted where it is, through so many layers.
    Layers(usize),
    /// Resubmitted where it is, as that many commands.
    Split(usize),
    /// Taken out, and submitted with so many neighbours that all share a command.
    Merged(usize),
    /// Resubmitted where it is, with so many neighbours that share a command.
    Gathered(usize),
    /// Resubmitted where it is, on so many queue pairs.
    Queues(usize),
    /// Nothing is in flight at all, on so many queue pairs.
    Idle(usize),
}

const KIB: usize = 1024;
const PRP: DataForm = DataForm::Prp;
const SGL: DataForm = DataForm::Sgl;

const fn count(name: &'static str, depth: usize, bytes: usize, data: DataForm, next: Next) -> Line {
    Line { name, budget: None, value: Value::Counted(Work { depth, bytes, data, next }) }
}

impl Line {
    const fn most(mut self, budget: f64) -> Line {
        self.budget = Some(Budget::Most(budget));
        self
    }

    const fn over(mut self, name: &'static str, budget: f64) -> Line {
        self.budget = Some(Budget::Over(name, budget));
        self
    }
}

const fn part(name: &'static str, of: &'static str, less: &'static str, part: f64, budget: f64) -> Line {
    Line { name, budget: Some(Budget::Most(budget)), value: Value::Difference { of, less, part } }
}

const fn each(name: &'static str, of: &'static str, part: f64) -> Line {
    Line { name, budget: None, value: Value::Difference { of, less: "", part } }
}

const fn bytes(name: &'static str, bytes: usize, budget: f64) -> Line {
    Line { name, budget: Some(Budget::Most(budget)), value: Value::Bytes(bytes) }
}

const IN_PLACE: &str = "4 KiB, depth 32, in place";
const NEW_MEMORY: &str = "4 KiB, depth 32, new memory";
const TABLE: &[Line] = &[
    count("4 KiB, depth 1, in place", 1, 4 * KIB, PRP, Next::InPlace).most(190.0),
    count(IN_PLACE, 32, 4 * KIB, PRP, Next::InPlace).most(90.0),
    count("4 KiB, depth 128, in place", 128, 4 * KIB, PRP, Next::InPlace).most(90.0),
    count("4 KiB, depth 128, in place, SGL", 128, 4 * KIB, SGL, Next::InPlace).most(90.0),
    count(NEW_MEMORY, 32, 4 * KIB, PRP, Next::NewMemory).most(120.0),
    count("4 KiB, depth 128, new memory", 128, 4 * KIB, PRP, Next::NewMemory).most(120.0),
    count("4 KiB, depth 32, new memory by io_mut", 32, 4 * KIB, PRP, Next::Changed),
    count("4 KiB, depth 128, taken out for another", 128, 4 * KIB, PRP, Next::Replaced).most(150.0),
    count("4 KiB, depth 128, taken out", 128, 4 * KIB, PRP, Next::TakenOut),
    count("128 KiB, depth 32, in place", 32, 128 * KIB, PRP, Next::InPlace).over(IN_PLACE, 2.0),
    count("512 KiB, depth 32, in place", 32, 512 * KIB, PRP, Next::InPlace).over(IN_PLACE, 2.0),
    count("1 MiB, depth 32, in place", 32, 1024 * KIB, PRP, Next::InPlace).over(IN_PLACE, 2.0),
    count("128 KiB, depth 32, new memory", 32, 128 * KIB, PRP, Next::NewMemory).over(NEW_MEMORY, 12.0),
    count("512 KiB, depth 32, new memory", 32, 512 * KIB, PRP, Next::NewMemory).over(NEW_MEMORY, 12.0),
    count("1 MiB, depth 32, new memory", 32, 1024 * KIB, PRP, Next::NewMemory).over(NEW_MEMORY, 12.0),
    count("1.5 MiB, SGL, across 2 MiB blocks, new memory", 16, 1536 * KIB, SGL, Next::NewMemory)
        .over(NEW_MEMORY, 12.0),
    count("8 scattered pages, one command", 32, 4 * KIB, PRP, Next::Scattered(8)).over(NEW_MEMORY, 136.0),
    count("32 scattered pages, one command", 32, 4 * KIB, PRP, Next::Scattered(32)).over(NEW_MEMORY, 424.0),
    count("an event in an all of 64, taken out", 64, 4 * KIB, PRP, Next::Event),
    count("4 KiB, depth 64, in place", 64, 4 * KIB, PRP, Next::InPlace),
    count("in place, counted by an all of 64", 64, 4 * KIB, PRP, Next::Counted),
    part(
        "an event in an all, in place",
        "in place, counted by an all of 64",
        "4 KiB, depth 64, in place",
        1.0,
        25.0,
    ),
    count("a future, in place", 64, 4 * KIB, PRP, Next::FutureInPlace).most(400.0),
    count("a future, taken out", 64, 4 * KIB, PRP, Next::Future),
    count("0 layers", 128, 4 * KIB, PRP, Next::Layers(0)),
    count("1 layer", 128, 4 * KIB, PRP, Next::Layers(1)),
    count("3 layers", 128, 4 * KIB, PRP, Next::Layers(3)),
    count("6 layers", 128, 4 * KIB, PRP, Next::Layers(6)),
    part("a pass-through layer, of 6", "6 layers", "0 layers", 1.0 / 6.0, 15.0),
    count("32 KiB split into 8", 64, 32 * KIB, PRP, Next::Split(8)),
    each("a piece of a split request, of 8", "32 KiB split into 8", 1.0 / 8.0).most(110.0),
    count("128 KiB split into 32", 64, 128 * KIB, PRP, Next::Split(32)),
    each("a piece of a split request, of 32", "128 KiB split into 32", 1.0 / 32.0).most(110.0),
    count("4 KiB merged 32 to 1, in place", 32, 4 * KIB, PRP, Next::Gathered(32)).most(70.0),
    count("4 KiB merged 32 to 1, taken out", 32, 4 * KIB, PRP, Next::Merged(32)),
    count("64 queue pairs, depth 32 each", 32, 4 * KIB, PRP, Next::Queues(64)),
    Line {
        name: "64 queue pairs to one, as a ratio",
        budget: Some(Budget::Most(1.1)),
        value: Value::Ratio { of: "64 queue pairs, depth 32 each", to: IN_PLACE },
    },
    count("idle poll, 1 queue pair", 1, 4 * KIB, PRP, Next::Idle(1)).most(20.0),
    count("idle poll, 9 queue pairs", 1, 4 * KIB, PRP, Next::Idle(9)),
    part(
        "idle poll, each further queue pair",
        "idle poll, 9 queue pairs",
        "idle poll, 1 queue pair",
        0.125,
        10.0,
    ),
    bytes("bytes of a slot, less its list page", SLOT_BYTES, 128.0),
    bytes("bytes of a request, in flight or waiting", REQUEST_BYTES, 256.0),
];

/// What is counted, with everything that these call. Named whole: a pattern would match their closures
/// too, and switch counting off there.
const COUNTED: [&str; 16] = [
    "counted_poll_gathered",
    "counted_poll_into",
    "counted_poll_in_place",
    "counted_poll_layers",
    "counted_poll_merge",
    "counted_poll_collect",
    "counted_poll_new_memory",
    "counted_poll_changed",
    "counted_poll_replaced",
    "counted_poll_taken_out",
    "counted_poll_request",
    "counted_poll_claim",
    "counted_poll_idle",
    "counted_poll_queues",
    "counted_poll_futures",
    "counted_poll_futures_in_place",
];

/// The emulator's part of what is counted otherwise.
const NOT_COUNTED: &str = "<kiovec_emulator::function::EmulatedFunction as kiovec::pci::Function>::pause";

/// A multiple of what any line has in flight, and of the polls from one that looks at everything to the next.
const FEW: u64 = 4096;
const MANY: u64 = 3 * FEW;
/// Makes the program run one line instead of printing the table: its index and a number of I/Os.
const CHILD: &str = "KIOVEC_BENCH_CHILD";

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

/// The counts as they were last.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

fn table() -> Result<(), Failure> {
    counts::table(FILE.as_ref(), "driver instructions per I/O (callgrind)", TABLE, |line, values| {
        let value = match &line.value {
            Value::Counted(_) => counted(line.name)?,
            Value::Difference { of, less, part } => (values[of] - values[less]) * part,
            Value::Ratio { of, to } => values[of] / values[to],
            Value::Bytes(bytes) => *bytes as f64,
        };
        let budget = line.budget.as_ref().map(|budget| match budget {
            Budget::Most(most) => *most,
            Budget::Over(other, more) => values[other] + more,
        });
        let digits = if matches!(line.value, Value::Ratio { .. }) { 2 } else { 1 };
        Ok(Row { name: line.name, value, digits, budget })
    })
}

/// What an I/O costs.
fn counted(name: &str) -> Result<f64, Failure> {
    Ok((collected(name, MANY)? - collected(name, FEW)?) as f64 / (MANY - FEW) as f64)
}

/// Runs one line under callgrind.
fn collected(name: &str, ios: u64) -> Result<u64, Failure> {
    let functions: Vec<String> = COUNTED.map(|name| format!("instructions::{name}")).to_vec();
    let functions: Vec<&str> = functions.iter().map(String::as_str).chain([NOT_COUNTED]).collect();
    counts::collected(&functions, CHILD, &format!("{ios} {name}"))
}

fn child(spec: &str) -> Result<(), Failure> {
    let (ios, name) = spec.split_once(' ').ok_or("a number and a name are wanted")?;
    let line = TABLE.iter().find(|line| line.name == name).ok_or("there is no such line")?;
    let Value::Counted(work) = &line.value else { return Err("nothing is counted for it".into()) };
    let mut left: u64 = ios.parse()?;
    let settings = "size=1G,block=4096,media=null,mdts=9,sgl=on";
    let emulator = Emulator::stepped(Config::parse(settings)?)?;
    let space = DmaSpace::new()?;
    let controller = Controller::open(emulator.function(), &space)?;
    match work.next {
        Next::Layers(count) => return layers(&emulator, &controller, &space, work, count, left),
        Next::Queues(count) => return queues(&emulator, &controller, &space, work, count, left),
        _ => {}
    }
    let mut poller = Poller::new(work.depth as u32 * 2);
    let mut options = QueueOptions::default().depth(work.depth).data(work.data);
    if let Next::Split(pieces) = work.next {
        options = options.max_transfer((work.bytes / pieces) as u64);
    }
    let options = options.gather(matches!(work.next, Next::Gathered(_)));
    let queue = poller.add_queue(&controller, options)?;
    let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
    match work.next {
        Next::Idle(queues) => {
            for _ in 1..queues {
                poller.add_queue(&controller, options)?;
            }
            (0..left).for_each(|_| _ = counted_poll_idle(&mut poller));
            return Ok(());
        }
        Next::Event => return events(&emulator, &mut poller, disk, &space, left),
        Next::Future | Next::FutureInPlace => return futures(&mut poller, disk, &space, work.next, left),
        Next::Merged(count) => return merged(&emulator, &mut poller, (queue, disk), &space, count, left),
        _ => {}
    }
    let memory = || match work.next {
        // Every other page.
        Next::Scattered(pages) => {
            let mut rest = space.allocate(2 * pages * work.bytes)?;
            let mut chain = MemoryChain::with_capacity(pages);
            for _ in 0..pages {
                let (page, more) = rest.split_at(work.bytes);
                chain.append(page);
                rest = more.split_at(work.bytes).1;
            }
            Ok(chain)
        }
        // As long as a hugepage, so that memory is contiguous and inside one 2 MiB block.
        _ => space.allocate(work.bytes),
    };
    let mut spare: MemoryChain = memory()?;
    let mut other = IoContainer::read(0, memory()?);
    let requests = match work.next {
        // As many as have slots.
        Next::Split(pieces) => work.depth / pieces,
        _ => work.depth,
    };
    for tag in 0..requests as u64 {
        poller.submit(disk, IoContainer::read(tag, memory()?).tag(tag))?;
    }
    let (mut random, mut before) = (1u64, None);
    while left > 0 {
        let done = match work.next {
            Next::InPlace | Next::Split(_) => counted_poll_in_place(&mut poller, &mut random),
            Next::NewMemory | Next::Scattered(_) => {
                counted_poll_new_memory(&mut poller, &mut random, &mut spare)
            }
            Next::Changed => counted_poll_changed(&mut poller, &mut random, &mut spare),
            Next::Gathered(_) => counted_poll_gathered(&mut poller, &mut random),
            Next::Counted => counted_poll_into(&mut poller, &mut before, &mut random),
            Next::Replaced => counted_poll_replaced(&mut poller, &mut random, &mut other),
            Next::TakenOut => counted_poll_taken_out(&mut poller, disk, &mut random),
            _ => return Err("it has a loop of its own".into()),
        };
        left = left.saturating_sub(done as u64);
        while emulator.step() > 0 && before.is_some() {}
    }
    let stats = poller.stats(queue);
    assert!(
        stats.faults == 0 && stats.bounces == 0 && (stats.commands + stats.merges) as usize >= work.depth
    );
    if let Next::Gathered(count) = work.next {
        assert_eq!(stats.merges, stats.commands * (count as u64 - 1));
    }
    Ok(())
}

/// In place on many queue pairs.
fn queues(
    emulator: &Emulator,
    controller: &Arc<Controller>,
    space: &DmaSpace,
    work: &Work,
    count: usize,
    ios: u64,
) -> Result<(), Failure> {
    let mut poller = Poller::new((count * work.depth) as u32);
    for _ in 0..count {
        let queue =
            poller.add_queue(controller, QueueOptions::default().depth(work.depth).data(work.data))?;
        let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
        for tag in 0..work.depth as u64 {
            poller.submit(disk, IoContainer::read(tag, space.allocate(work.bytes)?).tag(tag))?;
        }
    }
    let (mut random, mut left) = (1u64, ios);
    while left > 0 {
        left = left.saturating_sub(counted_poll_queues(&mut poller, &mut random) as u64);
        emulator.step();
    }
    Ok(())
}

#[inline(never)]
fn counted_poll_queues(poller: &mut Poller, random: &mut u64) -> usize {
    poller.poll(|mut done| {
        check(&done);
        done.set_lba(lba(random));
        done.resubmit().expect("accepted");
    })
}

/// As many reads at a time as the queue holds, awaited one after the other.
fn futures(poller: &mut Poller, disk: Target, space: &DmaSpace, next: Next, ios: u64) -> Result<(), Failure> {
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(IoContainer::read(0, space.allocate(4 * KIB)?));
    }
    match next {
        Next::FutureInPlace => counted_poll_futures_in_place(poller, disk, &mut idle, ios / 64),
        _ => counted_poll_futures(poller, disk, &mut idle, ios / 64),
    }
    Ok(())
}

#[inline(never)]
fn counted_poll_futures_in_place(
    poller: &mut Poller,
    disk: Target,
    idle: &mut Vec<IoContainer>,
    rounds: u64,
) {
    poller.run(async |reactor| {
        let (mut random, mut requests) = (1, Vec::with_capacity(64));
        for io in idle.drain(..) {
            requests.push(reactor.submit(disk, io).expect("accepted"));
        }
        for _ in 0..rounds {
            for request in &mut requests {
                let mut finished = request.finished().await;
                assert!(finished.result().is_ok());
                finished.in_place(|mut io| io.set_lba(lba(&mut random)));
                finished.resubmit().expect("accepted");
            }
        }
    });
}

#[inline(never)]
fn counted_poll_futures(poller: &mut Poller, disk: Target, idle: &mut Vec<IoContainer>, rounds: u64) {
    poller.run(async |reactor| {
        let (mut random, mut requests) = (1, Vec::with_capacity(64));
        for _ in 0..rounds {
            for mut io in idle.drain(..) {
                io.set_lba(lba(&mut random));
                requests.push(reactor.submit(disk, io).expect("accepted"));
            }
            for request in requests.drain(..) {
                let (io, result) = request.await;
                assert!(result.is_ok());
                idle.push(io);
            }
        }
    });
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

/// Neighbours go down again as neighbours, from somewhere else on.
#[inline(never)]
fn counted_poll_gathered(poller: &mut Poller, random: &mut u64) -> usize {
    let first = lba(random);
    poller.poll(|mut done| {
        check(&done);
        let at = first + done.io().get_tag();
        done.set_lba(at);
        done.resubmit().expect("accepted");
    })
}

/// All that completed go down again, counted by a new event; that of the round before is settled then.
#[inline(never)]
fn counted_poll_into(poller: &mut Poller, before: &mut Option<Event>, random: &mut u64) -> usize {
    let all = poller.open_all();
    let count = poller.poll(|mut done| {
        check(&done);
        done.set_lba(lba(random));
        done.resubmit_into(all).expect("accepted");
    });
    poller.close(all);
    if let Some(before) = before.replace(all) {
        assert!(matches!(poller.state(before), Some(State::Settled(verdict, _)) if verdict.success));
        poller.release(before);
    }
    count
}

#[inline(never)]
fn counted_poll_new_memory(
    poller: &mut Poller,
    random: &mut u64,
    spare: &mut kiovec::memory::MemoryChain,
) -> usize {
    poller.poll(|mut done| {
        check(&done);
        done.set_lba(lba(random));
        done.exchange_memory(spare);
        done.resubmit().expect("accepted");
    })
}

#[inline(never)]
fn counted_poll_changed(poller: &mut Poller, random: &mut u64, spare: &mut MemoryChain) -> usize {
    poller.poll(|mut done| {
        check(&done);
        let io = done.io_mut();
        io.set_lba(lba(random));
        std::mem::swap(io.memory_mut(), spare);
        done.resubmit().expect("accepted");
    })
}

/// What is taken out goes in again as the next one's other.
#[inline(never)]
fn counted_poll_replaced(poller: &mut Poller, random: &mut u64, other: &mut IoContainer) -> usize {
    poller.poll(|mut done| {
        check(&done);
        other.set_lba(lba(random));
        done.exchange(other);
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
