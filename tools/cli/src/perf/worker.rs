//! A worker: one thread on one core, with a poller, a queue pair and requests of its own.
//!
//! Everything is allocated before the first I/O. A container stays where it is from then on: each
//! completion makes it the next request.

use std::hint::cold_path;

use kiovec::layer::Layer;
use kiovec::memory::DmaSpace;
use kiovec::{Done, IoContainer, Operation, QueueOptions, Refusal};

use self::loose::Loose;
use super::control::{Control, Gauge, Phase};
use super::cores;
use super::course::{Engine, Reading, Tally};
use super::idle::Idle;
use super::job::{Job, stride};
use super::meter::{Meter, Reason};
use super::random::Random;
use super::route::Route;
use super::workload::{Request, Workload};
use crate::Result;
use crate::device::Opened;

mod loose;

/// A worker's device and requests.
pub struct Worker<'a, L: Layer> {
    route: Route<L>,
    lane: Lane<'a>,
    control: &'a Control,
    idle: Idle<'a>,
    supply: Supply,
}

/// What is counted, and the containers that are not in flight.
struct Lane<'a> {
    meter: Meter<'a>,
    idle: Vec<IoContainer>,
    /// Done, but a controller that was lost may still write what was their memory.
    bereft: Vec<IoContainer>,
    refused: Option<Refusal>,
}

/// Where memory comes from for containers that lost theirs.
struct Supply {
    space: DmaSpace,
    /// What sizes there are, and how many containers of each: where there are several, a tag is a container's
    /// number.
    sizes: Vec<u64>,
    depth: u64,
}

/// Runs a worker from first to last.
pub fn run(job: &Job, index: usize, opened: &Opened, control: &Control, gauge: &Gauge) -> Result<Tally> {
    // Before anything is allocated, so that memory is close to the core.
    cores::pin(job.cores[index])?;
    let mut options = QueueOptions::default().depth(job.queue_depth()).data(job.data);
    options.command_timeout = job.command_timeout.or(options.command_timeout);
    if !opened.device.is_stack() {
        let route = Route::direct(opened, &job.namespaces, job.depth, options)?.gathering(job.merge);
        let mut worker = Worker::new(route, job, opened, control, gauge)?;
        return if job.is_loose() { Loose::new(worker, job).run(job, index) } else { worker.run(job, index) };
    }
    let route = Route::layered(opened, &job.namespaces, job.depth, options)?.gathering(job.merge);
    let mut worker = Worker::new(route, job, opened, control, gauge)?;
    if job.is_loose() {
        let mut loose = Loose::new(worker, job);
        let tally = loose.run(job, index)?;
        return Ok(Tally { layers: loose.worker.route.counted(opened), ..tally });
    }
    let tally = worker.run(job, index)?;
    Ok(Tally { layers: worker.route.counted(opened), ..tally })
}

impl<'a, L: Layer> Worker<'a, L> {
    pub fn new(
        route: Route<L>,
        job: &Job,
        opened: &Opened,
        control: &'a Control,
        gauge: &'a Gauge,
    ) -> Result<Worker<'a, L>> {
        let idle = containers(job, opened)?;
        let supply = Supply { space: opened.space.clone(), sizes: job.sizes(), depth: job.depth.into() };
        let bereft = Vec::with_capacity(idle.len());
        let lane = Lane { meter: Meter::new(idle.len(), gauge), idle, bereft, refused: None };
        Ok(Worker { route, lane, control, idle: Idle::new(job.polling, job.crowded), supply })
    }

    /// The same, with another way to wait.
    pub fn idling(self, idle: Idle<'a>) -> Worker<'a, L> {
        Worker { idle, ..self }
    }

    /// New memory for what has none any more: the device goes on without the controller that has it.
    #[cold]
    fn restock(&mut self) -> Result<()> {
        for mut io in self.lane.bereft.drain(..) {
            let Supply { space, sizes, depth } = &self.supply;
            let number = io.get_tag() / depth;
            let size = sizes.get(number as usize).or(sizes.last()).copied().unwrap_or_default();
            io.replace_memory(space.allocate(size as usize)?);
            self.lane.idle.push(io);
        }
        Ok(())
    }

    #[inline(always)]
    fn after_poll(&mut self, count: usize) -> Result<()> {
        let gauge = self.lane.meter.gauge;
        if count > 0 {
            gauge.set_ios(gauge.ios() + count as u64);
            self.idle.found();
        } else {
            self.idle.nothing_found();
        }
        match &self.lane.refused {
            None => Ok(()),
            Some(refusal) => Err(kiovec::Error::InvalidInput(refusal.to_string()).into()),
        }
    }
}

impl<'a, L: Layer> Engine<'a> for Worker<'a, L> {
    fn control(&self) -> &'a Control {
        self.control
    }

    fn meter(&mut self) -> &mut Meter<'a> {
        &mut self.lane.meter
    }

    fn start<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        if self.lane.meter.gauge.is_lost() {
            return Ok(());
        }
        self.lane.meter.gauge.set_busy(true);
        self.lane.meter.new_poll();
        self.restock()?;
        self.route.begin();
        while let Some(mut io) = self.lane.idle.pop() {
            let Some(request) = work.next() else {
                self.lane.idle.push(io);
                break;
            };
            io.set_lba(request.lba);
            io.set_operation(request.operation);
            work.prepare(request, io.data_mut());
            io.set_tag(self.lane.now::<W>());
            self.route.poller.submit(self.route.target, io).map_err(kiovec::Error::from)?;
        }
        self.route.go();
        Ok(())
    }

    fn poll_until<W: Workload>(&mut self, phase: Phase, work: &mut W) -> Result<()> {
        let mut seen = self.control.moment();
        while seen.phase() < phase && self.route.poller.outstanding() > 0 {
            // Nothing but this is looked at for each poll.
            while self.control.moment() == seen && self.route.poller.outstanding() > 0 {
                self.lane.meter.new_poll();
                let lane = &mut self.lane;
                let count = self.route.poll(|done| lane.turn_around(work, done));
                self.after_poll(count)?;
                if !self.lane.bereft.is_empty() {
                    self.start(work)?;
                }
            }
            self.lane.meter.cut(seen.slice());
            seen = self.control.moment();
        }
        Ok(())
    }

    fn drain<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        while self.control.phase() < Phase::Abort && self.route.poller.outstanding() > 0 {
            let lane = &mut self.lane;
            let count = self.route.poll(|done| lane.retire(work, done));
            self.after_poll(count)?;
        }
        self.lane.meter.gauge.set_busy(false);
        Ok(())
    }

    fn reading(&self) -> Reading {
        Reading { polls: self.route.poller.polls(), calls: 0, counters: self.route.counters() }
    }

    fn tally(&self) -> Tally {
        let meter = &self.lane.meter;
        Tally {
            faults: self.route.counters().faults,
            recovery: self.route.recovery(),
            errors: meter.errors,
            first_error: meter.first_error,
            waits: self.idle.waits(),
            queue_depth: self.route.depth(),
            ..Tally::default()
        }
    }
}

impl Lane<'_> {
    #[inline(always)]
    fn now<W: Workload>(&mut self) -> u64 {
        if W::TOUCHES_DATA { self.meter.now::<true>() } else { self.meter.now::<false>() }
    }

    /// A completion becomes the next request. Its tag is when it began.
    #[inline(always)]
    fn turn_around<W: Workload, L: Layer>(&mut self, work: &mut W, mut done: Done<'_, L>) {
        let now = self.now::<W>();
        let result = done.result();
        if let Err(failure) = result {
            cold_path();
            self.meter.failed(done.io().operation(), Reason::Driver(failure));
            if Reason::Driver(failure).is_lost() {
                // It would fail at once, over and over, and be counted as I/O.
                self.meter.took(now.wrapping_sub(done.io().get_tag()));
                return self.put_away(work, done);
            }
        }
        if W::TOUCHES_DATA {
            let mut io = done.in_place();
            work.completed(request(&io), io.data_mut(), result.is_ok());
        }
        // A command of its own that succeeded had memory.
        if (result.is_err() || !L::NONE) && done.io().memory().is_empty() {
            return self.bereft.push(done.take());
        }
        let Some(next) = work.next() else {
            self.meter.took(now.wrapping_sub(done.io().get_tag()));
            return self.idle.push(done.take());
        };
        let mut io = done.in_place();
        let (began, operation) = (io.get_tag(), io.operation());
        io.set_lba(next.lba);
        if W::MIXED {
            io.set_operation(next.operation);
        }
        // The next request begins now, unless preparing it takes long.
        io.set_tag(now);
        if W::TOUCHES_DATA {
            work.prepare(next, io.data_mut());
            io.set_tag(self.meter.nanos());
        }
        self.meter.took(now.wrapping_sub(began));
        if W::MIXED {
            self.meter.writes += u64::from(operation == Operation::Write);
        }
        if let Err(rejected) = done.resubmit() {
            self.refused = Some(rejected.reason);
        }
    }

    /// A completion is the last of its container, for now.
    fn retire<W: Workload, L: Layer>(&mut self, work: &mut W, done: Done<'_, L>) {
        if let Err(failure) = done.result() {
            self.meter.failed(done.io().operation(), Reason::Driver(failure));
        }
        self.put_away(work, done);
    }

    /// Takes a container out. Inlined, so that a `Done` need not be in memory for it.
    #[inline(always)]
    fn put_away<W: Workload, L: Layer>(&mut self, work: &mut W, done: Done<'_, L>) {
        let success = done.result().is_ok();
        let mut io = done.take();
        work.completed(request(&io), io.data_mut(), success);
        self.keep(io);
    }

    /// A container that is not in flight.
    fn keep(&mut self, io: IoContainer) {
        if io.memory().is_empty() { self.bereft.push(io) } else { self.idle.push(io) }
    }
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
    let mut take = |tag: u64, size: u64| {
        let (slot, others) = std::mem::take(&mut rest).split_at(stride(size) as usize);
        rest = others;
        let (memory, _) = slot.split_at(size as usize);
        // The workload decides what it does, and where.
        IoContainer::read(0, memory).tag(tag)
    };
    let sizes = job.sizes().into_iter().flat_map(|size| std::iter::repeat_n(size, job.depth as usize));
    Ok((0..).zip(sizes).map(|(tag, size)| take(tag, size)).collect())
}

#[cfg(test)]
mod tests;
