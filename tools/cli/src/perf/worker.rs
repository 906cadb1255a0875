//! A worker: one thread on one core, with a poller, a queue pair and requests of its own.
//!
//! Everything is allocated before the first I/O. A container stays where it is from then on: each
//! completion makes it the next request.

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
    idle: Idle,
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
    /// Bytes of an I/O, by tag.
    sizes: Vec<usize>,
}

/// Runs a worker from first to last.
pub fn run(job: &Job, index: usize, opened: &Opened, control: &Control, gauge: &Gauge) -> Result<Tally> {
    // Before anything is allocated, so that memory is close to the core.
    cores::pin(job.cores[index])?;
    let options = QueueOptions::default().depth(job.queue_depth()).data(job.data);
    if !opened.device.is_stack() {
        let route = Route::direct(opened, &job.namespaces, job.depth, options)?;
        let mut worker = Worker::new(route, job, opened, control, gauge)?;
        return if job.is_loose() { Loose::new(worker, job).run(job, index) } else { worker.run(job, index) };
    }
    let route = Route::layered(opened, &job.namespaces, job.depth, options)?;
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
        let sizes = idle.iter().map(|io| io.memory().len()).collect();
        let supply = Supply { space: opened.space.clone(), sizes };
        let bereft = Vec::with_capacity(idle.len());
        let lane = Lane { meter: Meter::new(idle.len(), gauge), idle, bereft, refused: None };
        Ok(Worker { route, lane, control, idle: Idle::new(job.polling, job.crowded), supply })
    }

    /// New memory for what has none any more: the device goes on without the controller that has it.
    #[cold]
    fn restock(&mut self) -> Result<()> {
        for mut io in self.lane.bereft.drain(..) {
            let size = self.supply.sizes[io.get_tag() as usize];
            io.replace_memory(self.supply.space.allocate(size)?);
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
        self.lane.meter.gauge.set_busy(true);
        self.lane.meter.new_poll();
        self.restock()?;
        while let Some(mut io) = self.lane.idle.pop() {
            let Some(request) = work.next() else {
                self.lane.idle.push(io);
                break;
            };
            io.set_lba(request.lba);
            io.set_operation(request.operation);
            work.prepare(request, io.data_mut());
            let now = self.lane.now::<W>();
            self.lane.meter.started[io.get_tag() as usize] = now;
            self.route.poller.submit(self.route.target, io).map_err(kiovec::Error::from)?;
        }
        Ok(())
    }

    fn poll_until<W: Workload>(&mut self, phase: Phase, work: &mut W) -> Result<()> {
        let mut seen = self.control.moment();
        while seen.phase() < phase && self.route.poller.outstanding() > 0 {
            // Nothing but this is looked at for each poll.
            while self.control.moment() == seen && self.route.poller.outstanding() > 0 {
                self.lane.meter.new_poll();
                let lane = &mut self.lane;
                let count = self.route.poller.poll(|done| lane.turn_around(work, done));
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
            let count = self.route.poller.poll(|done| lane.retire(work, done));
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
        if W::EXACT_TIMES { self.meter.now::<true>() } else { self.meter.now::<false>() }
    }

    /// A completion becomes the next request.
    #[inline(always)]
    fn turn_around<W: Workload, L: Layer>(&mut self, work: &mut W, mut done: Done<'_, L>) {
        let now = self.now::<W>();
        let result = done.result();
        let mut io = done.in_place();
        let (finished, tag) = (request(&io), io.get_tag() as usize);
        // The next request begins now, unless preparing it takes long.
        self.meter.record(tag, now);
        if W::MIXED {
            self.meter.writes += u64::from(finished.operation == Operation::Write);
        }
        if let Err(failure) = result {
            if Reason::Driver(failure).is_lost() {
                // It would fail at once, over and over, and be counted as I/O.
                return self.retire(work, done);
            }
            self.meter.failed(finished.operation, Reason::Driver(failure));
        }
        work.completed(finished, io.data_mut(), result.is_ok());
        if done.io().memory().is_empty() {
            return self.bereft.push(done.take());
        }
        let Some(next) = work.next() else {
            self.idle.push(done.take());
            return;
        };
        let mut io = done.in_place();
        io.set_lba(next.lba);
        if W::MIXED {
            io.set_operation(next.operation);
        }
        work.prepare(next, io.data_mut());
        if W::EXACT_TIMES {
            self.meter.started[tag] = self.meter.nanos();
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
            self.meter.failed(finished.operation, Reason::Driver(failure));
        }
        work.completed(finished, io.data_mut(), result.is_ok());
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
