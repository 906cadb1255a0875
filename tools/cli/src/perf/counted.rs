//! A worker of `kiovec perf` on a controller that is stepped in its own thread, for the bench that counts
//! what an I/O costs all in all. Everything that is counted is as in a run; only the phases do not go by the
//! clock, but by the I/Os.

use std::sync::Arc;

use kiovec::layer::Direct;
use kiovec::memory::DmaSpace;
use kiovec::{Controller, QueueOptions};
use kiovec_emulator::Emulator;

use super::control::{Control, Phase};
use super::course::Engine;
use super::idle::Idle;
use super::job::Job;
use super::route::Route;
use super::subject::{Attached, Subject};
use super::worker::Worker;
use super::{Options, cores};
use crate::device::{Leaf, Opened};
use crate::{Error, Result};

/// Runs the workload of some options, until so many I/Os have completed.
pub fn run(options: &Options, ios: u64) -> Result<()> {
    let jobs = options.jobs()?;
    let [options] = &jobs[..] else { return Err(Error::Usage("only one job can be counted".into())) };
    let attached = open(&options.device)?;
    let Some(opened) = attached.driver() else { return Err(unsuitable(&options.device)) };
    let Some(emulator) = opened.emulators.first() else { return Err(unsuitable(&options.device)) };
    let core = cores::allowed()?.into_iter().take(1).collect();
    let job = Job::new(options, &attached, core, false)?;
    let control = Control::new(1);
    control.advance(Phase::Measure);
    let queue = QueueOptions::default().depth(job.queue_depth()).data(job.data);
    let route = Route::direct(opened, &job.namespaces, job.depth, queue)?;
    let device = || step(emulator, &control, ios);
    let worker = Worker::new(route, &job, opened, &control, &control.gauges[0])?;
    counted_run(&mut worker.idling(Idle::Step(&device)), &job)
}

fn open(device: &Subject) -> Result<Attached> {
    let Subject::Driver(device) = device else { return Err(unsuitable(device)) };
    let [Leaf::Emulated(config)] = &device.leaves[..] else { return Err(unsuitable(device)) };
    let emulator = Emulator::stepped((**config).clone())?;
    let space = DmaSpace::new()?;
    let controllers: Vec<Arc<Controller>> = vec![Controller::open(emulator.function(), &space)?];
    Ok(Attached::Driver(Opened { device: device.clone(), controllers, space, emulators: vec![emulator] }))
}

fn unsuitable(device: &impl std::fmt::Display) -> Error {
    Error::Unsuitable(format!("{device}: only one emulated controller without layers can be counted"))
}

/// What is counted, but for what the device does.
#[inline(never)]
fn counted_run(worker: &mut Worker<'_, Direct>, job: &Job) -> Result<()> {
    worker.run(job, 0).map(drop)
}

/// What the device does, when a poll found nothing.
#[inline(never)]
fn step(emulator: &Emulator, control: &Control, ios: u64) {
    while emulator.step() > 0 {}
    if control.ios() >= ios {
        control.advance(Phase::Finish);
    }
}
