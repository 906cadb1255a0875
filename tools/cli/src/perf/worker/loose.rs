//! A worker whose containers are taken out when they are done, and go down again when it is time for that, or
//! when another I/O of their size comes. It costs more than the next request in place, so it is taken only where
//! that cannot be.

use kiovec::layer::Layer;
use kiovec::{Done, IoContainer, Operation};

use super::{Lane, Worker, request};
use crate::Result;
use crate::perf::control::{Control, Phase};
use crate::perf::course::{Engine, Reading, Tally};
use crate::perf::job::Job;
use crate::perf::meter::{Meter, Reason};
use crate::perf::pace::Pace;
use crate::perf::workload::Workload;

pub struct Loose<'a, L: Layer> {
    pub worker: Worker<'a, L>,
    /// By size, the containers that are not in flight.
    pools: Vec<Vec<IoContainer>>,
    sizes: Vec<u64>,
    pace: Pace,
    depth: usize,
    /// The workload has no more.
    exhausted: bool,
}

impl<'a, L: Layer> Loose<'a, L> {
    pub fn new(worker: Worker<'a, L>, job: &Job) -> Loose<'a, L> {
        let sizes = job.sizes();
        let pools = sizes.iter().map(|_| Vec::with_capacity(job.depth as usize)).collect();
        let pace = Pace::new(job.rate);
        let mut loose = Loose { worker, pools, sizes, pace, depth: job.depth as usize, exhausted: false };
        loose.sort();
        loose
    }

    /// Brings the containers that came back to where those of their size are.
    fn sort(&mut self) {
        for io in self.worker.lane.idle.drain(..) {
            if let Some(pool) = self.pools.get_mut(io.get_tag() as usize / self.depth.max(1)) {
                pool.push(io);
            }
        }
    }

    /// Submits what is due. What is written or read back as a whole is due at once.
    fn issue<W: Workload>(&mut self, work: &mut W, phase: Phase) -> Result<()> {
        let paced = matches!(phase, Phase::WarmUp | Phase::Measure);
        self.worker.route.begin();
        while self.worker.route.poller.outstanding() < self.depth && !self.worker.lane.meter.gauge.is_lost() {
            let now = self.worker.lane.now::<W>();
            let due = if paced { self.pace.take(now) } else { Some(now) };
            let Some(due) = due else { break };
            let Some((size, request)) = work.next_sized() else {
                self.exhausted = true;
                break;
            };
            // There are as many of each size as can be in flight.
            let Some(mut io) = self.pools.get_mut(size).and_then(Vec::pop) else { break };
            io.set_lba(request.lba);
            io.set_operation(request.operation);
            work.prepare(request, io.data_mut());
            let started = match (&self.pace, paced) {
                (Pace::Every { .. }, true) => due,
                _ => self.worker.lane.now::<W>(),
            };
            self.worker.lane.meter.started[io.get_tag() as usize] = started;
            self.worker.route.poller.submit(self.worker.route.target, io).map_err(kiovec::Error::from)?;
        }
        self.worker.route.go();
        let busy = self.worker.route.poller.outstanding() > 0;
        self.worker.lane.meter.gauge.set_busy(busy);
        Ok(())
    }

    fn poll<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        self.worker.lane.meter.new_poll();
        let (lane, sizes, depth) = (&mut self.worker.lane, &self.sizes[..], self.depth.max(1));
        let count = self.worker.route.poller.poll(|done| {
            let size = sizes.get(done.io().get_tag() as usize / depth).copied();
            take(lane, work, done, size.unwrap_or(0));
        });
        self.worker.after_poll(count)?;
        self.worker.restock()?;
        self.sort();
        Ok(())
    }
}

/// A completion, recorded; its container is free.
fn take<W: Workload, L: Layer>(lane: &mut Lane<'_>, work: &mut W, done: Done<'_, L>, bytes: u64) {
    let (now, result) = (lane.now::<W>(), done.result());
    let mut io = done.take();
    let finished = request(&io);
    lane.meter.record(io.get_tag() as usize, now);
    lane.meter.bytes += bytes;
    lane.meter.writes += u64::from(W::MIXED && finished.operation == Operation::Write);
    if let Err(failure) = result {
        lane.meter.failed(finished.operation, Reason::Driver(failure));
    }
    work.completed(finished, io.data_mut(), result.is_ok());
    lane.keep(io);
}

impl<'a, L: Layer> Engine<'a> for Loose<'a, L> {
    fn control(&self) -> &'a Control {
        self.worker.control
    }

    fn meter(&mut self) -> &mut Meter<'a> {
        &mut self.worker.lane.meter
    }

    fn start<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        self.exhausted = false;
        self.pace.begin(self.worker.lane.meter.nanos());
        self.worker.lane.meter.new_poll();
        self.issue(work, self.worker.control.phase())
    }

    fn poll_until<W: Workload>(&mut self, phase: Phase, work: &mut W) -> Result<()> {
        let mut seen = self.worker.control.moment();
        while seen.phase() < phase {
            while self.worker.control.moment() == seen {
                self.poll(work)?;
                self.issue(work, seen.phase())?;
                let over = self.exhausted || self.worker.lane.meter.gauge.is_lost();
                if over && self.worker.route.poller.outstanding() == 0 {
                    return Ok(());
                }
            }
            self.worker.lane.meter.cut(seen.slice());
            seen = self.worker.control.moment();
        }
        Ok(())
    }

    fn drain<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        while self.worker.control.phase() < Phase::Abort && self.worker.route.poller.outstanding() > 0 {
            self.poll(work)?;
        }
        self.worker.lane.meter.gauge.set_busy(false);
        Ok(())
    }

    fn reading(&self) -> Reading {
        self.worker.reading()
    }

    fn tally(&self) -> Tally {
        self.worker.tally()
    }
}
