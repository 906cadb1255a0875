//! The course of a worker, from filling the range to reading it back, whatever carries out its I/Os.
//!
//! Knows stages and phases; must not know what an I/O is to the one who carries it out.

use super::control::{Control, Phase};
use super::counters::Counters;
use super::idle::Waits;
use super::job::Job;
use super::latency::Latency;
use super::layers::Counted;
use super::meter::{Meter, Reason, Slice};
use super::random::{Random, mix};
use super::recovery::Recovery;
use super::verify::{Checks, Stage, Verified};
use super::workload::{Plain, Skewed, Varied, Workload};
use crate::Result;
use kiovec::Operation;

/// What a worker has found.
#[derive(Debug, Default)]
pub struct Tally {
    pub core: usize,
    /// From the beginning of the measurement to its end, by this worker's own clock.
    pub seconds: f64,
    pub latency: Latency,
    pub slices: Vec<Slice>,
    /// Of the I/Os measured, so many were writes.
    pub writes: u64,
    /// What the I/Os measured moved.
    pub bytes: u64,
    /// Those of adaptive polling, from first to last.
    pub waits: Option<Waits>,
    pub polls: u64,
    /// System calls, if the kernel carries out the I/Os.
    pub calls: u64,
    pub counters: Counters,
    /// Completions that answer nothing, from first to last.
    pub faults: u64,
    pub recovery: Recovery,
    /// I/Os that failed, from first to last.
    pub errors: u64,
    pub first_error: Option<(Operation, Reason)>,
    pub checks: Option<Checks>,
    /// Commands that each queue pair can hold.
    pub queue_depth: usize,
    /// What the layers have counted, from first to last.
    pub layers: Vec<Counted>,
}

/// Counters at one moment.
#[derive(Debug, Default)]
pub struct Reading {
    pub polls: u64,
    pub calls: u64,
    pub counters: Counters,
}

/// Carries out the I/Os of a worker.
pub trait Engine<'a> {
    fn control(&self) -> &'a Control;

    fn meter(&mut self) -> &mut Meter<'a>;

    /// Puts as many requests in flight as there may be, if the workload has as many.
    fn start<W: Workload>(&mut self, work: &mut W) -> Result<()>;

    /// Keeps requests in flight until a phase begins, or the workload has no more.
    fn poll_until<W: Workload>(&mut self, phase: Phase, work: &mut W) -> Result<()>;

    /// Lets end what is in flight. After an abort, nothing is waited for, and nobody asks for the result.
    fn drain<W: Workload>(&mut self, work: &mut W) -> Result<()>;

    /// What is counted while it goes on.
    fn reading(&self) -> Reading;

    /// What holds for all of the run.
    fn tally(&self) -> Tally;

    /// A worker's whole run.
    fn run(&mut self, job: &Job, index: usize) -> Result<Tally> {
        let random = Random::new(mix(job.seed).wrapping_add(index as u64));
        let (part, mix) = (job.parts[index], job.mix);
        let mut tally = match (mix.random, mix.is_pure()) {
            _ if job.verify => {
                let mut work = Verified::new(part, mix, job.block_size, job.seed, job.skew, random);
                self.verify(&mut work, job)?
            }
            _ if let Some(split) = &job.split => {
                self.measure(&mut Varied::new(part, mix, split, job.block_size, job.skew, random))?
            }
            _ if let Some(skew) = job.skew => self.measure(&mut Skewed::new(part, mix, skew, random))?,
            (true, true) => self.measure(&mut Plain::<true, false>::new(part, mix, random))?,
            (true, false) => self.measure(&mut Plain::<true, true>::new(part, mix, random))?,
            (false, true) => self.measure(&mut Plain::<false, false>::new(part, mix, random))?,
            (false, false) => self.measure(&mut Plain::<false, true>::new(part, mix, random))?,
        };
        tally.core = job.cores[index];
        if job.split.is_none() {
            tally.bytes = tally.latency.count().saturating_mul(job.io_size);
        }
        if !job.verify && mix.is_pure() && mix.writes() {
            tally.writes = tally.latency.count();
        }
        Ok(tally)
    }

    /// Warms up, measures, and ends.
    fn measure<W: Workload>(&mut self, work: &mut W) -> Result<Tally> {
        let control = self.control();
        self.meter().gauge.set_ready();
        while control.phase() == Phase::Prepare {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        if control.phase() < Phase::Finish {
            self.start(work)?;
        }
        self.meter().gauge.set_started();
        self.poll_until(Phase::Measure, work)?;
        self.meter().begin();
        let (begin, began) = (self.reading(), self.meter().nanos());
        self.meter().gauge.set_measuring();
        self.poll_until(Phase::Finish, work)?;
        let (end, ended) = (self.reading(), self.meter().nanos());
        let (writes, bytes) = (self.meter().writes, self.meter().bytes);
        let (latency, slices) = self.meter().end();
        self.drain(work)?;
        Ok(Tally {
            seconds: (ended - began) as f64 / 1e9,
            latency,
            slices,
            writes,
            bytes,
            polls: end.polls - begin.polls,
            calls: end.calls - begin.calls,
            counters: end.counters - begin.counters,
            ..self.tally()
        })
    }

    /// Fills if needed, measures, reads back if needed.
    fn verify(&mut self, work: &mut Verified, job: &Job) -> Result<Tally> {
        if job.fill {
            self.pass(work, Stage::Fill)?;
        }
        work.begin(Stage::Run);
        let measured = self.measure(work)?;
        if job.read_back && self.control().phase() == Phase::Finish {
            self.pass(work, Stage::ReadBack)?;
        }
        let Tally { errors, first_error, faults, recovery, waits, .. } = self.tally();
        let checks = Some(work.checks.clone());
        Ok(Tally { checks, errors, first_error, faults, recovery, waits, ..measured })
    }

    /// Once through all units.
    fn pass(&mut self, work: &mut Verified, stage: Stage) -> Result<()> {
        work.begin(stage);
        self.start(work)?;
        self.poll_until(Phase::Stop, work)?;
        self.drain(work)
    }
}
