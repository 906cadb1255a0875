//! A worker: one thread on one core, with a poller, a queue pair and requests of its own.
//!
//! Everything is allocated before the first I/O. A container stays where it is from then on: each
//! completion makes it the next request.

use kiovec::layer::Layer;
use kiovec::pci::Clock;
use kiovec::{Cause, Done, Failure, IoContainer, Operation, QueueOptions, Refusal};

use super::control::{Control, Gauge, Phase};
use super::cores;
use super::counters::Counters;
use super::job::Job;
use super::latency::Latency;
use super::layers::Counted;
use super::random::{Random, mix};
use super::route::Route;
use super::verify::{Checks, Stage, Verified};
use super::workload::{Plain, Request, Workload};
use crate::Result;
use crate::device::Opened;

/// What a worker has found.
#[derive(Debug, Default)]
pub struct Tally {
    pub core: usize,
    /// From the beginning of the measurement to its end, by this worker's own clock.
    pub seconds: f64,
    pub latency: Latency,
    /// Of the I/Os measured, so many were writes.
    pub writes: u64,
    pub polls: u64,
    pub counters: Counters,
    /// Completions that answer nothing, from first to last.
    pub faults: u64,
    /// I/Os that failed, from first to last.
    pub errors: u64,
    pub first_error: Option<(Operation, Failure)>,
    pub checks: Option<Checks>,
    /// Commands that each queue pair can hold.
    pub queue_depth: usize,
    /// What the layers have counted, from first to last.
    pub layers: Vec<Counted>,
}

/// A worker's device and requests.
pub struct Worker<'a, L: Layer> {
    route: Route<L>,
    lane: Lane<'a>,
    control: &'a Control,
    gauge: &'a Gauge,
    /// Polls that find nothing let another thread run.
    crowded: bool,
}

/// What is counted, and the containers that are not in flight.
struct Lane<'a> {
    gauge: &'a Gauge,
    clock: Clock,
    /// The time of this poll; 0 before anybody asked.
    now: u64,
    /// When each request was submitted, by its tag.
    started: Box<[u64]>,
    idle: Vec<IoContainer>,
    latency: Latency,
    /// Counted only where there are reads too.
    writes: u64,
    errors: u64,
    first_error: Option<(Operation, Failure)>,
    refused: Option<Refusal>,
}

/// Counters at one moment.
struct Reading {
    nanos: u64,
    polls: u64,
    counters: Counters,
}

/// Runs a worker from first to last.
pub fn run(job: &Job, index: usize, opened: &Opened, control: &Control) -> Result<Tally> {
    // Before anything is allocated, so that memory is close to the core.
    cores::pin(job.cores[index])?;
    let options = QueueOptions::default().depth(job.queue_depth()).data(job.data);
    if !opened.device.is_stack() {
        let route = Route::direct(opened, &job.namespaces, job.depth, options)?;
        return Worker::new(route, job, index, opened, control)?.run(job, index);
    }
    let route = Route::layered(opened, &job.namespaces, job.depth, options)?;
    let mut worker = Worker::new(route, job, index, opened, control)?;
    let tally = worker.run(job, index)?;
    Ok(Tally { layers: worker.route.counted(opened), ..tally })
}

impl<'a, L: Layer> Worker<'a, L> {
    pub fn new(
        route: Route<L>,
        job: &Job,
        index: usize,
        opened: &Opened,
        control: &'a Control,
    ) -> Result<Worker<'a, L>> {
        let gauge = &control.gauges[index];
        let lane = Lane::new(containers(job, opened)?, gauge);
        Ok(Worker { route, lane, control, gauge, crowded: job.crowded })
    }

    fn run(&mut self, job: &Job, index: usize) -> Result<Tally> {
        let random = Random::new(mix(job.seed).wrapping_add(index as u64));
        let (part, mix) = (job.parts[index], job.mix);
        let mut tally = match (job.verify, mix.random, mix.is_pure()) {
            (true, ..) => {
                let mut work = Verified::new(part, mix, job.block_size, job.seed, random);
                self.verify(&mut work, job)?
            }
            (false, true, true) => self.measure(&mut Plain::<true, false>::new(part, mix, random))?,
            (false, true, false) => self.measure(&mut Plain::<true, true>::new(part, mix, random))?,
            (false, false, true) => self.measure(&mut Plain::<false, false>::new(part, mix, random))?,
            (false, false, false) => self.measure(&mut Plain::<false, true>::new(part, mix, random))?,
        };
        tally.core = job.cores[index];
        if !job.verify && mix.is_pure() && mix.writes() {
            tally.writes = tally.latency.count();
        }
        Ok(tally)
    }

    /// Warms up, measures, and ends.
    pub fn measure<W: Workload>(&mut self, work: &mut W) -> Result<Tally> {
        self.gauge.set_ready();
        while self.control.phase() == Phase::Prepare {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        if self.control.phase() < Phase::Finish {
            self.start(work)?;
        }
        self.poll_until(Phase::Measure, work)?;
        self.lane.begin();
        let begin = self.reading();
        self.poll_until(Phase::Finish, work)?;
        let end = self.reading();
        let (latency, writes) = (std::mem::take(&mut self.lane.latency), self.lane.writes);
        self.drain(work)?;
        Ok(Tally {
            seconds: (end.nanos - begin.nanos) as f64 / 1e9,
            latency,
            writes,
            polls: end.polls - begin.polls,
            counters: end.counters - begin.counters,
            ..self.tally()
        })
    }

    /// Fills if needed, measures, reads back if needed.
    pub fn verify(&mut self, work: &mut Verified, job: &Job) -> Result<Tally> {
        if job.fill {
            self.pass(work, Stage::Fill)?;
        }
        work.begin(Stage::Run);
        let measured = self.measure(work)?;
        if job.read_back && self.control.phase() == Phase::Finish {
            self.pass(work, Stage::ReadBack)?;
        }
        let Tally { errors, first_error, faults, .. } = self.tally();
        Ok(Tally { checks: Some(work.checks.clone()), errors, first_error, faults, ..measured })
    }

    /// Once through all units.
    pub fn pass(&mut self, work: &mut Verified, stage: Stage) -> Result<()> {
        work.begin(stage);
        self.start(work)?;
        self.poll_until(Phase::Stop, work)?;
        self.drain(work)
    }

    /// Puts as many requests in flight as there are containers, if the workload has as many.
    fn start<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        self.gauge.set_busy(true);
        self.lane.now = 0;
        while let Some(mut io) = self.lane.idle.pop() {
            let Some(request) = work.next() else {
                self.lane.idle.push(io);
                break;
            };
            io.set_lba(request.lba);
            io.set_operation(request.operation);
            work.prepare(request, io.data_mut());
            self.lane.started[io.get_tag() as usize] = self.lane.now::<W>();
            self.route.poller.submit(self.route.target, io).map_err(kiovec::Error::from)?;
        }
        Ok(())
    }

    /// Keeps requests in flight until a phase begins, or the workload has no more.
    fn poll_until<W: Workload>(&mut self, phase: Phase, work: &mut W) -> Result<()> {
        while self.control.phase() < phase && self.route.poller.outstanding() > 0 {
            self.lane.now = 0;
            let lane = &mut self.lane;
            let count = self.route.poller.poll(|done| lane.turn_around(work, done));
            self.after_poll(count)?;
        }
        Ok(())
    }

    /// Lets end what is in flight. After an abort, nothing is waited for, and nobody asks for the
    /// result.
    fn drain<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        while self.control.phase() < Phase::Abort && self.route.poller.outstanding() > 0 {
            let lane = &mut self.lane;
            let count = self.route.poller.poll(|done| lane.retire(work, done));
            self.after_poll(count)?;
        }
        self.gauge.set_busy(false);
        Ok(())
    }

    #[inline(always)]
    fn after_poll(&mut self, count: usize) -> Result<()> {
        if count > 0 {
            self.gauge.set_ios(self.gauge.ios() + count as u64);
        } else if self.crowded {
            std::thread::yield_now();
        }
        match &self.lane.refused {
            None => Ok(()),
            Some(refusal) => Err(kiovec::Error::InvalidInput(refusal.to_string()).into()),
        }
    }

    fn reading(&self) -> Reading {
        Reading {
            nanos: self.lane.clock.nanos(),
            polls: self.route.poller.polls(),
            counters: self.route.counters(),
        }
    }

    /// What holds for all of the run.
    fn tally(&self) -> Tally {
        Tally {
            faults: self.route.counters().faults,
            errors: self.lane.errors,
            first_error: self.lane.first_error,
            queue_depth: self.route.depth(),
            ..Tally::default()
        }
    }
}

impl<'a> Lane<'a> {
    fn new(idle: Vec<IoContainer>, gauge: &'a Gauge) -> Lane<'a> {
        Lane {
            gauge,
            clock: Clock::Monotonic,
            now: 0,
            started: vec![0; idle.len()].into_boxed_slice(),
            idle,
            latency: Latency::default(),
            writes: 0,
            errors: 0,
            first_error: None,
            refused: None,
        }
    }

    /// Forgets what was counted while warming up.
    fn begin(&mut self) {
        self.latency = Latency::default();
        self.writes = 0;
    }

    /// The time: read once for a poll, unless the workload wants it exactly.
    #[inline(always)]
    fn now<W: Workload>(&mut self) -> u64 {
        if W::EXACT_TIMES || self.now == 0 {
            self.look_at_clock();
        }
        self.now
    }

    #[cold]
    fn look_at_clock(&mut self) {
        self.now = self.clock.nanos();
    }

    /// A completion becomes the next request.
    #[inline(always)]
    fn turn_around<W: Workload, L: Layer>(&mut self, work: &mut W, mut done: Done<'_, L>) {
        let now = self.now::<W>();
        let result = done.result();
        let mut io = done.in_place();
        let (finished, tag) = (request(&io), io.get_tag() as usize);
        // The next request begins now, unless preparing it takes long.
        let started = std::mem::replace(&mut self.started[tag], now);
        self.latency.record(now - started);
        if W::MIXED {
            self.writes += u64::from(finished.operation == Operation::Write);
        }
        if let Err(failure) = result {
            if is_lost(failure) {
                // It would fail at once, over and over, and be counted as I/O.
                return self.retire(work, done);
            }
            self.failed(finished.operation, failure);
        }
        work.completed(finished, io.data_mut(), result.is_ok());
        let Some(next) = work.next() else {
            self.idle.push(done.take());
            return;
        };
        io.set_lba(next.lba);
        if W::MIXED {
            io.set_operation(next.operation);
        }
        work.prepare(next, io.data_mut());
        if W::EXACT_TIMES {
            self.started[tag] = self.clock.nanos();
        }
        if let Err(rejected) = done.resubmit() {
            self.refused = Some(rejected.reason);
        }
    }

    /// A completion is the last of its container, for now.
    fn retire<W: Workload, L: Layer>(&mut self, work: &mut W, done: Done<'_, L>) {
        let result = done.result();
        let mut io = done.take();
        let finished = request(&io);
        if let Err(failure) = result {
            self.failed(finished.operation, failure);
        }
        work.completed(finished, io.data_mut(), result.is_ok());
        self.idle.push(io);
    }

    #[cold]
    fn failed(&mut self, operation: Operation, failure: Failure) {
        self.errors += 1;
        self.first_error.get_or_insert((operation, failure));
        if is_lost(failure) {
            self.gauge.set_lost();
        }
    }
}

/// Whether what a request needs is gone for good, and no layer could make up for it.
fn is_lost(failure: Failure) -> bool {
    failure.cause == Cause::ControllerLost
}

#[inline(always)]
fn request(io: &IoContainer) -> Request {
    Request { operation: io.operation(), lba: io.lba() }
}

/// All containers of a worker, with their memory and their tags.
fn containers(job: &Job, opened: &Opened) -> Result<Vec<IoContainer>> {
    let mut rest = opened.space.allocate(job.worker_bytes() as usize)?;
    let mut random = Random::new(job.seed);
    // Neither zeros nor all alike: some devices store those without storing anything.
    let words = rest.data_mut().flat_map(|data| data.chunks_exact_mut(8));
    words.for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
    let mut take = |tag: u64| {
        let (slot, others) = std::mem::take(&mut rest).split_at(job.stride() as usize);
        rest = others;
        let (memory, _) = slot.split_at(job.io_size as usize);
        // The workload decides what it does, and where.
        IoContainer::read(0, memory).tag(tag)
    };
    Ok((0..u64::from(job.depth)).map(&mut take).collect())
}

#[cfg(test)]
mod tests;
