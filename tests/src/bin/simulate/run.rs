//! One seed from its beginning to its end: in turns, each of which submits, ends, polls and lets the controllers do
//! something, or does not, as chance has it.
//!
//! Knows what can be done at any time; must not know what is right.

use std::time::Duration;

use kiovec::layer::Stack;
use kiovec::{Controller, Done, Event, IoContainer, Operation, Reason, Refusal, Rejected, State, Target};
use kiovec_emulator::{Commands, Remedy};
use std::sync::Arc;

use crate::bench::Bench;
use crate::chance::Chance;
use crate::events::{Count, Node, What};
use crate::faults::{self, Act};
use crate::heap::Mark;
use crate::ladder::{self, Delays};
use crate::memory::Memories;
use crate::notices::Kind;
use crate::reach::{Point, Reached};
use crate::request::{Live, Observer, fill};
use crate::trace::{Step, Trace};
use crate::tree::Plight;
use crate::world::{QueuePair, Station, World};

/// Requests of a seed, at least; some have half as many more.
const REQUESTS: u64 = 200;
/// Faults that must have struck, each at least once.
const FAULTS: usize = 3;
/// By how much time goes on with each turn if nothing has come back for long, and for longer still.
const LONG_TICK: Duration = Duration::from_millis(1);
const LONGER_TICK: Duration = Duration::from_millis(10);
/// Turns in a row without anything coming back, after which all that was held is let go and time goes faster.
const QUIET: u64 = 300;
/// After so many more, a controller with a command that never ends may be pulled.
const PATIENCE: u64 = 40;
/// After so many more, time goes faster still: the driver waits for a controller that does not get ready.
const LONG: u64 = 100;
/// Polls in such a turn.
const POLLS: usize = 512;
/// More than it takes until a controller is lost: it is noticed after 65,536 polls of a queue, or two command
/// timeouts, and has half a second to get ready, twice.
const MOST_QUIET: u64 = 600;
/// Turns from one request that comes back to the next, at most: one of 400 commands that go one by one may take as many,
/// if each is delayed by 20 ms, with turns of 20 us.
const MOST_TURNS: u64 = 400_000;
/// Events at a time, beyond which no sets are made of them.
const MOST_EVENTS: usize = 64;
/// Bytes of heap of a seed, at most, the media of its controllers included.
const MOST_HEAP: i64 = 64 << 20;
/// What may be left of it: what the thread keeps for itself.
const LEFT_OVER: i64 = 64 << 10;

/// What came of a seed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What failed.
    pub failure: Option<String>,
    /// What two runs of it have in common.
    pub hash: u64,
    /// Steps that were traced.
    pub steps: u64,
    /// Requests.
    pub requests: u64,
    /// Commands that the controllers fetched.
    pub commands: u64,
    /// Turns.
    pub turns: u64,
    /// Turns that a request took, at most.
    pub longest: u64,
    /// Bytes of heap, at most.
    pub heap: u64,
    /// Faults by their place in the list: planned in this seed, and how often they struck.
    pub faults: Vec<(usize, u64)>,
    /// Steps of the driver.
    pub reached: Reached,
}

/// One in so many seeds begins with no memory, and gets regions while controllers are attached.
const GROWS: u64 = 16;

/// Runs a seed.
pub fn run(seed: u64, printed: bool) -> Outcome {
    let (outcome, alone) = run_once(seed, printed);
    match &outcome.failure {
        // In memory that no other seed had it must be the same, or it cannot be replayed.
        Some(why) if !alone => match run_once(seed, printed).0 {
            Outcome { failure: None, .. } => {
                let failure = Some(format!("{why} (only in memory that other seeds had before)"));
                Outcome { failure, ..outcome }
            }
            again => again,
        },
        _ => outcome,
    }
}

/// Runs a seed, and tells whether it had memory of its own.
fn run_once(seed: u64, printed: bool) -> (Outcome, bool) {
    crate::model::prepare();
    let alone = match crate::memory::prepare() {
        Ok(is_new) => is_new || seed.is_multiple_of(GROWS),
        Err(error) => return (Outcome { failure: Some(error.to_string()), ..Outcome::default() }, true),
    };
    let mark = Mark::new();
    let mut outcome = Outcome::default();
    let result = run_to_end(seed, printed, &mut outcome);
    let (left, most) = (mark.live() - outcome_bytes(&outcome), mark.most());
    outcome.heap = most.max(0) as u64;
    let result = result.and_then(|()| match () {
        () if most > MOST_HEAP => Err(format!("{most} bytes of heap at a time")),
        () if left > LEFT_OVER => Err(format!("{left} bytes of heap are left at the end")),
        () => Ok(()),
    });
    outcome.failure = result.err();
    (outcome, alone)
}

/// What the outcome itself holds, for all that matters.
fn outcome_bytes(outcome: &Outcome) -> i64 {
    (outcome.faults.capacity() * size_of::<(usize, u64)>()) as i64 + 8 * 1024
}

fn run_to_end(seed: u64, printed: bool, outcome: &mut Outcome) -> Result<(), String> {
    let mut chance = Chance::new(seed);
    let mut trace = Trace::new(printed);
    let mut reached = Reached::default();
    let memories = Memories::new(seed.is_multiple_of(GROWS)).map_err(|error| error.to_string())?;
    let world = World::draw(&mut chance, memories, &mut trace, &mut reached)?;
    let mut run = Run::new(world, chance, trace, reached)?;
    let result = run.all();
    run.bench.count_strikes();
    run.report(outcome);
    if let Err(why) = result {
        let turn = run.bench.turn;
        // Requests are still under way: their end is nobody's business any more.
        drop(run);
        return Err(format!("in turn {turn}: {why}"));
    }
    run.end(outcome)
}

/// A seed that is being run.
pub struct Run {
    /// The pollers.
    pub stations: Vec<Station>,
    /// The driver's controllers, to be dropped after the pollers.
    pub controllers: Vec<Arc<Controller>>,
    /// All the rest.
    pub bench: Bench,
    /// Where free memory lay in the beginning.
    pub free: Vec<u64>,
    budget: u64,
    /// Commands are held until this turn, by controller.
    held: Vec<Option<u64>>,
    pace: Pace,
}

/// How fast things go.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Microseconds of a turn.
    tick: u64,
    /// Polls in a turn, at most, that find nothing.
    polls: usize,
    /// A controller that does not answer is left to the driver, for as long as that takes.
    patient: bool,
}

impl Run {
    fn new(world: World, mut chance: Chance, trace: Trace, reached: Reached) -> Result<Run, String> {
        let World { emulators, controllers, stations, volumes, memories, plan, devices, notices } = world;
        let free = memories.free().map_err(|error| error.to_string())?;
        let block = volumes.first().map_or(512, |volume| volume.model.block());
        let (count, budget) = (emulators.len(), REQUESTS + chance.below(REQUESTS / 2));
        let opened = emulators.iter().map(|emulator| emulator.counters().resets).collect();
        let pace = Pace {
            tick: chance.pick(&[20, 20, 100]),
            polls: chance.pick(&[1, 1, 32, 256]),
            patient: chance.below(3) > 0,
        };
        let bench = Bench {
            chance,
            trace,
            reached,
            emulators,
            caches: devices.iter().map(|device| device.cached.then_some((0, 0))).collect(),
            plights: vec![Plight::default(); count],
            fatal: vec![0; count],
            failures: vec![0; count],
            opened,
            busy: vec![0; count],
            notices,
            delays: Delays::new(count),
            devices,
            doomed: false,
            forfeited: false,
            memories,
            volumes,
            plan,
            cured: false,
            block,
            lives: std::collections::BTreeMap::new(),
            detached: Vec::new(),
            nodes: Vec::new(),
            active: Vec::new(),
            now: 0,
            tag: 0,
            writes: 0,
            turn: 0,
            quiet: 0,
            completions: 0,
            submitted: 0,
            polled_at: 0,
            came_back: 0,
            longest: 0,
            hurry: false,
            waiting: false,
            bytes: Vec::new(),
        };
        Ok(Run { stations, controllers, bench, free, budget, held: vec![None; count], pace })
    }

    fn report(&mut self, outcome: &mut Outcome) {
        let bench = &mut self.bench;
        outcome.requests = bench.submitted;
        outcome.turns = bench.turn;
        outcome.longest = bench.longest;
        outcome.commands = bench.emulators.iter().map(|emulator| emulator.counters().io_commands).sum();
        let step = Step::Ended { turns: bench.turn, commands: outcome.commands };
        bench.trace.note(bench.turn, &step);
        (outcome.hash, outcome.steps) = (bench.trace.hash(), bench.trace.steps());
        outcome.faults = bench.plan.iter().map(|planned| (planned.kind, planned.struck)).collect();
        outcome.reached = bench.reached.clone();
    }

    /// The whole workload, and then whatever is still under way.
    fn all(&mut self) -> Result<(), String> {
        loop {
            while self.bench.submitted < self.budget {
                self.turn(true)?;
            }
            self.bench.hurry = true;
            for number in 0..self.stations.len() {
                if let Some(node) = self.bench.open_at(number) {
                    self.bench.close(&mut self.stations[number], node);
                }
            }
            while self.under_way() > 0 {
                self.turn(false)?;
            }
            if self.enough()? {
                return Ok(());
            }
            // A fault that strikes late gets more to strike.
            self.bench.hurry = false;
            self.budget += REQUESTS / 2;
        }
    }

    /// Requests that are not over, and what layers still have under way for some that are.
    fn under_way(&self) -> usize {
        let outstanding = |station: &Station| station.poller.outstanding();
        self.bench.under_way().max(self.stations.iter().map(outstanding).sum())
    }

    /// Whether enough went wrong.
    fn enough(&mut self) -> Result<bool, String> {
        let bench = &mut self.bench;
        for planned in &mut bench.plan {
            let counters = bench.emulators[planned.controller].counters();
            match planned.act() {
                Some(Act::Order) => planned.struck = counters.faults.overtaken,
                Some(Act::Squeeze) => planned.struck = u64::from(counters.io_commands > 0),
                Some(Act::Hold) => planned.struck = planned.struck.min(counters.faults.held),
                _ => {}
            }
        }
        let struck = bench.struck();
        if struck < FAULTS && self.budget > 2 * REQUESTS {
            // What was drawn is too tame: commands held back can always be had.
            let controller = bench.chance.count(0..bench.emulators.len());
            bench.plan.push(faults::hold(controller, bench.submitted));
        }
        match struck < FAULTS && self.budget > 8 * REQUESTS {
            true => {
                Err(format!("only {struck} faults struck in {} requests: the plan is too tame", self.budget))
            }
            false => Ok(struck >= FAULTS),
        }
    }

    /// One turn.
    pub fn turn(&mut self, more: bool) -> Result<(), String> {
        let bench = &mut self.bench;
        bench.turn += 1;
        bench.quiet += 1;
        if bench.turn - bench.came_back > MOST_TURNS {
            return Err(format!(
                "{} requests are not over, and none has come back for {MOST_TURNS} turns",
                self.under_way()
            ));
        }
        if bench.quiet > QUIET {
            self.silence()?;
        } else {
            self.act(more)?;
        }
        let quiet = self.bench.quiet > QUIET;
        let polls = if quiet { POLLS } else { self.pace.polls };
        for number in 0..self.stations.len() {
            if quiet || self.bench.chance.below(4) > 0 {
                self.poll(number, polls)?;
            }
        }
        self.step();
        if self.bench.chance.one_in(8) {
            self.listen()?;
        }
        Ok(())
    }

    /// Polls one poller, and looks at what came of it.
    fn poll(&mut self, number: usize, polls: usize) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        bench.polled_at = station.clock.nanos();
        let mut wrong = None;
        for _ in 0..polls {
            let count = station.poller.poll(|done| bench.done(number, done, &mut wrong));
            if count > 0 {
                bench.quiet = 0;
                break;
            }
        }
        wrong.map_or(Ok(()), Err)?;
        self.look(number)?;
        let Run { stations, bench, .. } = self;
        bench.scan(&mut stations[number], number)?;
        bench.settle_detached(&stations[number], number)
    }

    /// What the controllers do between two polls, and what happens to them.
    fn step(&mut self) {
        let Run { bench, held, pace, .. } = self;
        let long = bench.quiet > QUIET;
        for (controller, held) in held.iter_mut().enumerate() {
            let tick = match bench.quiet.saturating_sub(QUIET) {
                0 => Duration::from_micros(pace.tick),
                1..LONG => LONG_TICK,
                _ => LONGER_TICK,
            };
            bench.emulators[controller].advance(tick);
            if bench.emulators[controller].outstanding() > 0 || bench.has_failed(controller) {
                bench.busy[controller] = bench.turn;
            }
            if held.is_some_and(|until| until <= bench.turn || long) {
                *held = None;
                let commands = bench.emulators[controller].release_all();
                bench.trace.note(bench.turn, &Step::LetGo { controller, commands });
            }
            let steps = if long { 4 } else { bench.chance.below(2) };
            let work: usize = (0..steps).map(|_| bench.emulators[controller].step()).sum();
            if work > 0 {
                bench.trace.note(bench.turn, &Step::Stepped { controller, work });
            }
        }
        bench.notice_losses();
        bench.note_delays();
    }

    /// Nothing has come back for long.
    fn silence(&mut self) -> Result<(), String> {
        self.unplug_all();
        let waited = self.bench.quiet - QUIET;
        if waited < PATIENCE || self.under_way() == 0 {
            return Ok(());
        }
        if !self.pace.patient
            && let Some(controller) = self.bench.stuck()
        {
            self.pace.patient = true;
            let failed = self.bench.chance.one_in(2);
            match failed {
                true => self.bench.emulators[controller].fail(),
                false => self.bench.emulators[controller].unplug(),
            }
            self.bench.trace.note(self.bench.turn, &Step::Pulled { controller, failed });
            match failed {
                true => self.bench.fail(controller, 1),
                false => self.bench.lose(controller),
            }
            self.bench.reached.note(Point::Stuck);
            self.bench.quiet = QUIET;
        }
        match waited > MOST_QUIET {
            true => Err(format!("{} requests never come back", self.under_way())),
            false => Ok(()),
        }
    }

    /// Something, or nothing.
    fn act(&mut self, more: bool) -> Result<(), String> {
        self.strike();
        let count = if more { self.bench.chance.pick(&[0, 0, 0, 1, 1, 2, 5]) } else { 0 };
        let number = self.bench.chance.count(0..self.stations.len());
        for _ in 0..count {
            self.submit(number)?;
        }
        for number in 0..self.stations.len() {
            for queue in 0..self.stations[number].queues.len() {
                let until = self.stations[number].queues[queue].plugged;
                if until.is_some_and(|until| until <= self.bench.turn) {
                    self.unplug(number, queue);
                }
            }
        }
        match self.bench.chance.below(26) {
            0 => self.plug(number),
            1 | 2 if self.bench.active.len() < MOST_EVENTS => self.gather(number)?,
            3 => self.cancel(number),
            4 => self.limit(number),
            5 => self.release(number),
            6 | 7 => self.observe(number)?,
            8 if self.bench.chance.one_in(8) => self.wait(number)?,
            // Each is a sign of life, which only I/O is to give when there is none.
            9 | 10 if self.bench.quiet < 40 => self.bench.raise(),
            11 | 12 => self.open_or_close(number),
            _ => {}
        }
        Ok(())
    }

    /// Acts that are due.
    fn strike(&mut self) {
        let Run { bench, held, .. } = self;
        for at in 0..bench.plan.len() {
            let planned = &bench.plan[at];
            let Some(act) = planned.due(bench.submitted) else { continue };
            let (controller, name) = (planned.controller, planned.name());
            // A slow controller may have done little of what was submitted.
            if matches!(act, Act::Unplug | Act::Hang(Remedy::None)) && bench.struck() + 1 < FAULTS {
                continue;
            }
            bench.plan[at].struck = 1;
            bench.trace.note(bench.turn, &Step::Strike { name, controller });
            if act == Act::Hold {
                let held_back = [Commands::io(), Commands::reads(), Commands::writes()];
                bench.emulators[controller].hold(bench.chance.pick(&held_back));
                held[controller] = Some(bench.turn + bench.chance.within(5..100));
            } else if !bench.plights[controller].gone {
                bench.strike(controller, act);
            }
            bench.notice_power();
        }
    }

    fn submit(&mut self, number: usize) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        // What is refused for lack of room is drawn in vain.
        if station.poller.outstanding() >= station.room && !bench.chance.one_in(8) {
            return Ok(());
        }
        if bench.chance.one_in(60) {
            return bench.beyond(station, number);
        }
        let (live, target, io) = bench.draw(number)?;
        bench.note_submission(&live, &io);
        if let Some(node) = bench.open_at(number)
            && bench.chance.one_in(2)
            && let Some(event) = bench.nodes[node].event
        {
            return match station.poller.submit_into(event, target, io) {
                Ok(()) => bench.counted(live, node),
                Err(rejected) => {
                    bench.note_closed(node, &rejected);
                    bench.refused(live, &rejected, station.poller.outstanding(), station.room)
                }
            };
        }
        if bench.chance.one_in(2) {
            return match station.poller.submit(target, io) {
                Ok(()) => bench.accepted(live),
                Err(rejected) => bench.refused(live, &rejected, station.poller.outstanding(), station.room),
            };
        }
        match station.poller.request(target, io) {
            Ok(event) => bench.requested(station, number, live, event),
            Err(rejected) => bench.refused(live, &rejected, station.poller.outstanding(), station.room),
        }
    }

    fn plug(&mut self, number: usize) {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        let queue = bench.chance.count(0..station.queues.len());
        let pair = &mut station.queues[queue];
        pair.plugged = Some(bench.turn + bench.chance.within(1..30));
        station.poller.plug(pair.id);
        bench.trace.note(bench.turn, &Step::Plug { poller: number, queue });
    }

    fn unplug(&mut self, number: usize, queue: usize) {
        let station = &mut self.stations[number];
        if station.queues[queue].plugged.take().is_some() {
            self.bench.reached.note(Point::Plugged);
            station.poller.unplug(station.queues[queue].id);
            self.bench.trace.note(self.bench.turn, &Step::Unplug { poller: number, queue });
        }
    }

    /// Nothing is held back any more.
    pub fn unplug_all(&mut self) {
        for number in 0..self.stations.len() {
            for queue in 0..self.stations[number].queues.len() {
                self.unplug(number, queue);
            }
        }
    }

    /// An event of some that there are.
    fn gather(&mut self, number: usize) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        let here = bench.here(number);
        let count = bench.chance.count(0..here.len().min(6) + 1);
        let of: Vec<usize> = (0..count).map(|_| bench.chance.pick(&here)).collect();
        let events: Vec<Event> = of.iter().filter_map(|node| bench.nodes[*node].event).collect();
        let (kind, wanted) = match bench.chance.below(3) {
            0 => ("all", of.len()),
            1 => ("any", 1),
            _ => ("at least", bench.chance.count(0..of.len() + 1)),
        };
        let made = match kind {
            "all" => station.poller.all(&events),
            "any" => station.poller.any(&events),
            _ => station.poller.at_least(wanted, &events),
        };
        let event = made.map_err(|error| format!("{kind} of {of:?}: {error}"))?;
        bench.reached.note(match kind {
            "all" => Point::AllEvent,
            "any" => Point::AnyEvent,
            _ => Point::AtLeastEvent,
        });
        let nested = of.iter().any(|node| matches!(bench.nodes[*node].what, What::Set { .. }));
        bench.reached.note_if(nested, Point::NestedEvent);
        bench.reached.note_if(of.is_empty(), Point::EmptyEvent);
        let node = bench.add_node(number, event, What::Set { wanted, of: of.clone() });
        if bench.chance.one_in(2) {
            bench.nodes[node].moments = Some([false; 2]);
            station.poller.notify(event, node as u64);
        }
        bench.trace.note(bench.turn, &Step::Set { node, kind, wanted, of });
        Ok(())
    }

    /// An event that counts requests, if there is none; else it takes no more.
    fn open_or_close(&mut self, number: usize) {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        match bench.open_at(number) {
            Some(node) => bench.close(station, node),
            None if bench.active.len() < MOST_EVENTS && !bench.hurry => {
                let event = station.poller.open_all();
                let node = bench.add_node(number, event, What::Open(Count::default()));
                if bench.chance.one_in(2) {
                    bench.nodes[node].moments = Some([false; 2]);
                    station.poller.notify(event, node as u64);
                }
                bench.trace.note(bench.turn, &Step::Open { node });
            }
            None => {}
        }
    }

    /// Ends an event, whatever it stands for.
    fn cancel(&mut self, number: usize) {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        let here = bench.here(number);
        let Some(node) = (!here.is_empty()).then(|| bench.chance.pick(&here)) else { return };
        let Some(event) = bench.nodes[node].event else { return };
        bench.note_cancel(station, node, event);
        bench.mark_ended(node, Reason::Cancelled);
        station.poller.cancel(event);
        bench.trace.note(bench.turn, &Step::Cancel { node });
    }

    fn limit(&mut self, number: usize) {
        let Run { stations, bench, .. } = self;
        let here = bench.here(number);
        let Some(node) = (!here.is_empty()).then(|| bench.chance.pick(&here)) else { return };
        bench.set_deadline(&mut stations[number], node);
    }

    /// Nobody looks at an event any more.
    fn release(&mut self, number: usize) {
        let Run { stations, bench, .. } = self;
        let here = bench.here(number);
        let Some(node) = (!here.is_empty()).then(|| bench.chance.pick(&here)) else { return };
        match bench.nodes[node].what {
            What::Part { .. } => return,
            What::Request { tag } => {
                let observed = bench.lives.get(&tag).is_none_or(|live| !live.observers.is_empty());
                if observed {
                    return;
                }
                bench.detached.extend(bench.lives.remove(&tag));
            }
            What::Set { .. } | What::Open(_) => {}
        }
        let Some(event) = bench.nodes[node].event.take() else { return };
        bench.nodes[node].unknown = bench.nodes[node].totals.is_none();
        bench.reached.note_if(bench.nodes[node].unknown, Point::Released);
        stations[number].poller.release(event);
        bench.trace.note(bench.turn, &Step::Release { node });
    }

    fn observe(&mut self, number: usize) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        let here = bench.here(number);
        let requests: Vec<usize> = (here.into_iter())
            .filter(|node| matches!(bench.nodes[*node].what, What::Request { .. }))
            .collect();
        let Some(node) = (!requests.is_empty()).then(|| bench.chance.pick(&requests)) else { return Ok(()) };
        bench.observe(&mut stations[number], node)
    }

    /// Waits for an event for a short while, as a caller does who has nothing else to do.
    fn wait(&mut self, number: usize) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        let here = bench.here(number);
        let Some(node) = (!here.is_empty()).then(|| bench.chance.pick(&here)) else { return Ok(()) };
        let Some(event) = bench.nodes[node].event else { return Ok(()) };
        // Of an event that is over it is told without a poll.
        if station.poller.state(event) != Some(State::Pending) {
            return Ok(());
        }
        bench.polled_at = station.clock.nanos();
        let mut wrong = None;
        let limit = Duration::from_millis(bench.chance.below(4));
        bench.waiting = true;
        let verdict = station.poller.wait(event, limit, |done| bench.done(number, done, &mut wrong));
        bench.waiting = false;
        wrong.map_or(Ok(()), Err)?;
        bench.notice_losses();
        bench.reached.note_if(verdict.is_some(), Point::Waited);
        // Controllers have gone on meanwhile.
        bench.busy.fill(bench.turn);
        bench.note_delays();
        self.look(number)?;
        let Run { stations, bench, .. } = self;
        bench.scan(&mut stations[number], number)
    }

    /// What a poller's queues have done since the last time, and whether there was a reason.
    fn look(&mut self, number: usize) -> Result<(), String> {
        let Run { stations, bench, .. } = self;
        let station = &mut stations[number];
        for queue in &mut station.queues {
            let seen = std::mem::replace(&mut queue.seen, station.poller.stats(queue.id));
            bench.look_at_queue(queue.controller, &seen, &queue.seen)?;
        }
        for controller in 0..bench.emulators.len() {
            let here = |queue: &&QueuePair| queue.controller == controller;
            let queues = stations.iter().flat_map(|station| &station.queues).filter(here);
            bench.look_at_controller(controller, &ladder::sum(queues.map(|queue| &queue.seen)))?;
        }
        Ok(())
    }

    /// Takes what controllers have told the application.
    pub fn listen(&mut self) -> Result<(), String> {
        let Run { controllers, bench, .. } = self;
        for (number, controller) in controllers.iter().enumerate() {
            for event in controller.events() {
                let told =
                    bench.notices.told(number, &bench.emulators[number], &event, &mut bench.reached)?;
                bench.trace.note(bench.turn, &Step::Told { controller: number, what: told.name() });
            }
            bench.forfeited |= bench.notices.identify(number, controller);
        }
        Ok(())
    }
}

impl Bench {
    /// What stops a controller.
    fn strike(&mut self, controller: usize, act: Act) {
        let emulator = &self.emulators[controller];
        if act == Act::Unplug {
            emulator.unplug();
            self.reached.note(Point::GoneFound);
            return self.lose(controller);
        }
        if let Act::Hang(remedy) = act {
            emulator.hang(remedy);
        }
        match act {
            Act::Power => emulator.power_loss(),
            _ => emulator.fail(),
        }
        self.fail(controller, 1);
        if act == Act::Hang(Remedy::None) {
            self.lose(controller);
            self.doomed = true;
        }
    }

    /// A controller reports something of its own accord.
    fn raise(&mut self) {
        let controller = self.chance.count(0..self.emulators.len());
        let kind = self.chance.pick(&Kind::ALL);
        if self.notices.raise(controller, &self.emulators[controller], kind, &mut self.chance) {
            self.trace.note(self.turn, &Step::Raised { controller, what: kind.name() });
        }
    }

    /// Events of a poller that can be looked at.
    fn here(&self, station: usize) -> Vec<usize> {
        let is_here =
            |node: &usize| self.nodes[*node].station == station && self.nodes[*node].event.is_some();
        self.active.iter().copied().filter(is_here).collect()
    }

    fn note_submission(&mut self, live: &Live, io: &IoContainer) {
        let what =
            format!("{:?} {:?} of {} segments", live.operation, live.range(), io.memory().segments().len());
        let Live { tag, volume, station, .. } = *live;
        self.trace.note(self.turn, &Step::Submit { tag, volume, poller: station, way: 0, what });
        let mdts = io.memory().len() > 32 << 10;
        self.reached.note_if(mdts, Point::BeyondMdts);
        self.reached.note_if(io.is_atomic(), Point::Atomic);
    }

    /// A request beyond the end is refused.
    fn beyond(&mut self, station: &mut Station, number: usize) -> Result<(), String> {
        let ways: Vec<(u64, Target)> = (self.volumes.iter())
            .flat_map(|volume| volume.ways.iter().map(move |way| (volume.blocks, way)))
            .filter(|(_, (there, _))| *there == number)
            .map(|(blocks, (_, target))| (blocks, *target))
            .collect();
        let (blocks, target) = self.chance.pick(&ways);
        let memory = self.memories.own(self.block).map_err(|error| error.to_string())?;
        match station.poller.submit(target, IoContainer::read(blocks, memory)) {
            Err(Rejected { reason: Refusal::OutOfRange { .. }, .. }) => {
                self.reached.note(Point::RefusedRange);
                Ok(())
            }
            Err(Rejected { reason: Refusal::Full, .. }) if station.poller.outstanding() >= station.room => {
                Ok(())
            }
            other => Err(format!("a block beyond the end of {blocks}: {other:?}")),
        }
    }

    /// A request was accepted.
    fn accepted(&mut self, live: Live) -> Result<(), String> {
        self.submitted += 1;
        match self.lives.insert(live.tag, live) {
            None => Ok(()),
            Some(live) => Err(format!("request {} was there already", live.tag)),
        }
    }

    /// The event of a poller that takes requests.
    fn open_at(&self, number: usize) -> Option<usize> {
        let takes = |node: &usize| match &self.nodes[*node] {
            node if node.station != number || node.event.is_none() => false,
            node => matches!(&node.what, What::Open(count) if !count.closed),
        };
        self.active.iter().copied().find(takes)
    }

    /// It takes no more.
    fn close(&mut self, station: &mut Station, node: usize) {
        let Node { what, event, .. } = &mut self.nodes[node];
        if let (What::Open(count), Some(event)) = (what, *event) {
            count.closed = true;
            station.poller.close(event);
            self.trace.note(self.turn, &Step::Close { node });
        }
    }

    /// An event took a request no more, which it need not if it was ended.
    fn note_closed(&mut self, node: usize, rejected: &Rejected) {
        let Node { what: What::Open(count), cancelled, limited, .. } = &mut self.nodes[node] else { return };
        if matches!(rejected.reason, Refusal::Closed) && (*cancelled || *limited) {
            count.closed = true;
        }
    }

    /// A request was accepted, and an event counts it.
    fn counted(&mut self, mut live: Live, node: usize) -> Result<(), String> {
        live.counted = Some(node);
        if let What::Open(count) = &mut self.nodes[node].what {
            count.came += 1;
        }
        self.trace.note(self.turn, &Step::Into { tag: live.tag, node });
        self.reached.note(Point::SubmitCounted);
        self.accepted(live)
    }

    /// A request was accepted as an event.
    fn requested(
        &mut self,
        station: &mut Station,
        number: usize,
        mut live: Live,
        event: Event,
    ) -> Result<(), String> {
        let node = self.add_node(number, event, What::Request { tag: live.tag });
        live.node = Some(node);
        let moves = matches!(live.operation, Operation::Read | Operation::Write);
        self.accepted(live)?;
        if self.chance.one_in(6) {
            self.set_deadline(station, node);
        }
        if moves && self.chance.one_in(3) {
            self.observe(station, node)?;
        }
        if self.chance.one_in(4) {
            self.nodes[node].moments = Some([false; 2]);
            station.poller.notify(event, node as u64);
        }
        Ok(())
    }

    /// A request was not accepted: whether that may be.
    fn refused(
        &mut self,
        live: Live,
        rejected: &Rejected,
        outstanding: usize,
        room: usize,
    ) -> Result<(), String> {
        if let Some(write) = live.write {
            self.volumes[live.volume].model.withdraw(live.range(), write);
        }
        self.memories.give_back(live.parts);
        let why = rejected.reason.to_string();
        self.trace.note(self.turn, &Step::Refused { tag: live.tag, why });
        let io = &rejected.io;
        if (io.get_tag(), io.lba()) != (live.tag, live.lba) {
            return Err(format!("request {} was refused, and came back as {io:?}", live.tag));
        }
        let point = match &rejected.reason {
            // Which one is known where it was submitted.
            Refusal::Closed if self.nodes.iter().any(Node::is_ended_count) => Point::RefusedClosed,
            Refusal::Full if outstanding >= room => Point::RefusedFull,
            Refusal::NotAtomic { .. } if io.is_atomic() => Point::RefusedNotAtomic,
            Refusal::Shape { .. } if live.fussy => Point::RefusedShape,
            Refusal::NotSupported(_) if live.writes() && live.operation != Operation::Write => {
                Point::RefusedOperation
            }
            other => return Err(format!("request {} was refused: {other}", live.tag)),
        };
        self.reached.note(point);
        Ok(())
    }

    fn set_deadline(&mut self, station: &mut Station, node: usize) {
        let Some(event) = self.nodes[node].event else { return };
        let micros = self.chance.pick(&[0, 40, 200, 1000, 20_000]);
        let nanos = station.clock.nanos() + micros * 1000;
        station.poller.set_deadline(event, Duration::from_micros(micros));
        let pending = station.poller.state(event) == Some(State::Pending);
        if pending {
            self.nodes[node].deadline = Some(nanos);
            self.mark_ended(node, Reason::Expired);
            let set = matches!(self.nodes[node].what, What::Set { .. });
            self.reached.note_if(set, Point::DeadlineSet);
        }
        self.trace.note(self.turn, &Step::Deadline { node, nanos });
    }

    fn note_cancel(&mut self, station: &Station, node: usize, event: Event) {
        let pending = station.poller.state(event) == Some(State::Pending);
        let point = match self.nodes[node].what {
            What::Set { .. } | What::Open(_) => Point::CancelSet,
            _ if !pending => Point::CancelSettled,
            What::Request { tag } => {
                let layered = self.lives.get(&tag).is_some_and(|live| !self.volumes[live.volume].direct);
                let plugged = station.queues.iter().any(|queue| queue.plugged.is_some());
                self.reached.note_if(plugged, Point::CancelPlugged);
                if layered { Point::CancelLayered } else { Point::CancelPending }
            }
            What::Part { .. } => return,
        };
        self.reached.note(point);
    }

    fn observe(&mut self, station: &mut Station, node: usize) -> Result<(), String> {
        let (Some(event), What::Request { tag }) = (self.nodes[node].event, self.nodes[node].what.clone())
        else {
            return Ok(());
        };
        let Some(mut live) = self.lives.remove(&tag) else { return Ok(()) };
        if matches!(live.operation, Operation::Read | Operation::Write) {
            let len = live.blocks * self.block as u64;
            let from = self.chance.below(len);
            let to = from + 1 + self.chance.below(len - from);
            let part = station.poller.observe(event, from..to).map_err(|error| error.to_string())?;
            let part = self.add_node(live.station, part, What::Part { tag });
            let (cancelled, limited) = (self.nodes[node].cancelled, self.nodes[node].limited);
            (self.nodes[part].cancelled, self.nodes[part].limited) = (cancelled, limited);
            live.observers.push(Observer { node: part, bytes: from as usize..to as usize, told: false });
            self.trace.note(self.turn, &Step::Observe { tag, from, to });
        }
        self.lives.insert(tag, live);
        Ok(())
    }

    /// Requests that nobody looks at are over when nothing is left in their poller.
    fn settle_detached(&mut self, station: &Station, number: usize) -> Result<(), String> {
        if station.poller.outstanding() > self.lives.values().filter(|live| live.station == number).count() {
            return Ok(());
        }
        self.now += 1;
        for live in self.detached.extract_if(.., |live| live.station == number) {
            if let Some(write) = live.write {
                self.volumes[live.volume].model.over(live.range(), write, self.now);
            }
            if live.operation == Operation::Flush {
                self.volumes[live.volume].model.told_of_loss();
            }
            self.memories.give_back(live.parts);
        }
        Ok(())
    }

    /// A request came back to the closure.
    pub fn done(&mut self, number: usize, done: Done<'_, Stack>, wrong: &mut Option<String>) {
        if let Err(why) = self.take(number, done) {
            wrong.get_or_insert(why);
        }
    }

    fn take(&mut self, number: usize, mut done: Done<'_, Stack>) -> Result<(), String> {
        let (tag, result) = (done.io().get_tag(), done.result());
        let failure = result.err().map(|failure| failure.to_string());
        let nanos = self.polled_at;
        self.trace.note(self.turn, &Step::Done { tag, poller: number, nanos, failure });
        let Some(mut live) = self.lives.remove(&tag) else {
            return Err(format!("request {tag} came back, and is not under way"));
        };
        if live.node.is_some() || live.station != number {
            return Err(format!("request {tag} came back to the closure of poller {number}"));
        }
        let counted = live.counted.take();
        let ended = counted.and_then(|node| self.ended_with(node, result));
        if let Some(node) = counted {
            self.count(node, done.io().memory().len() as u64, result.err());
        }
        self.judge(&live, done.io(), result, ended)?;
        if self.chance.one_in(12) {
            self.submit_inside(number, &mut done)?;
        }
        if live.again > 0 && result.is_ok() && !live.fussy && live.operation != Operation::Flush {
            live.again -= 1;
            return self.again(live, done);
        }
        if self.chance.one_in(8) {
            let exchanged = self.exchange(number, live.volume, done);
            self.memories.give_back(live.parts);
            return exchanged;
        }
        self.memories.give_back(live.parts);
        if self.chance.one_in(2) {
            self.reached.note(Point::TakenOut);
            drop(done.take());
        }
        Ok(())
    }

    /// Another request to the same target, in the place of one that is over.
    fn exchange(&mut self, number: usize, volume: usize, mut done: Done<'_, Stack>) -> Result<(), String> {
        let (live, mut io) = self.draw_to(number, volume)?;
        self.note_submission(&live, &io);
        let before = done.io().get_tag();
        done.exchange(&mut io);
        if (io.get_tag(), done.io().get_tag()) != (before, live.tag) {
            return Err(format!("request {before} went out for {}, and {io:?} came", live.tag));
        }
        drop(io);
        self.reached.note(Point::Exchanged);
        match done.resubmit() {
            Ok(()) => self.accepted(live),
            Err(rejected) => self.refused(live, &rejected, 0, 1),
        }
    }

    /// Another request, from within the closure.
    fn submit_inside(&mut self, number: usize, done: &mut Done<'_, Stack>) -> Result<(), String> {
        let (live, target, io) = self.draw(number)?;
        self.note_submission(&live, &io);
        match done.submit(target, io) {
            Ok(()) => {
                self.reached.note(Point::SubmitInside);
                self.accepted(live)
            }
            // It cannot be told from here whether there is room.
            Err(rejected) => self.refused(live, &rejected, usize::MAX, 0),
        }
    }

    /// The same container once more: what was written is read, and what was read is written.
    fn again(&mut self, mut live: Live, mut done: Done<'_, Stack>) -> Result<(), String> {
        live.operation = match live.operation {
            Operation::Write => Operation::Read,
            Operation::Read if self.chance.one_in(2) => Operation::Write,
            same => same,
        };
        let all = self.volumes[live.volume].blocks;
        live.lba = if self.chance.one_in(2) { live.lba } else { (live.lba + 3) % (all - live.blocks + 1) };
        self.now += 1;
        (live.since, live.turn, live.write) = (self.now, self.turn, None);
        let write = live.writes().then(|| self.write(&mut live));
        self.expect(&mut live);
        let Live { tag, lba, operation, .. } = live;
        let what = if operation == Operation::Read { "read" } else { "other" };
        self.trace.note(self.turn, &Step::Again { tag, lba, operation: what });
        let shared = done.io().memory().iter().any(|segment| segment.is_shared());
        if !shared && write.is_none() && self.chance.one_in(2) {
            let mut io = done.in_place();
            io.set_lba(lba);
            io.set_operation(operation);
            io.data_mut().for_each(|data| data.fill(0xee));
            self.reached.note(Point::Resubmit);
        } else {
            let io = done.io_mut();
            io.set_lba(lba);
            io.set_operation(operation);
            match write {
                Some(write) => fill(io.memory_mut(), write, lba, self.block),
                None => io.memory_mut().fill(0xee),
            }
            self.reached.note(Point::ResubmitChanged);
        }
        if let Some(node) = self.open_at(live.station)
            && self.chance.one_in(2)
            && let Some(event) = self.nodes[node].event
        {
            return match done.resubmit_into(event) {
                Ok(()) => {
                    self.reached.note(Point::ResubmitCounted);
                    self.counted(live, node)
                }
                Err(rejected) => {
                    self.note_closed(node, &rejected);
                    self.refused(live, &rejected, 0, 1)
                }
            };
        }
        match done.resubmit() {
            Ok(()) => self.accepted(live),
            Err(rejected) => self.refused(live, &rejected, 0, 1),
        }
    }
}
