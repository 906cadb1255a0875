//! A worker of `kiovec perf` on a controller that is stepped in its own thread, for the bench that counts
//! what an I/O costs all in all. Everything that is counted is as in a run; only the phases do not go by the
//! clock, but by the I/Os.

use std::sync::Arc;

use kiovec::layer::Direct;
use kiovec::memory::DmaSpace;
use kiovec::{Controller, QueueOptions};
use kiovec_emulator::Emulator;

use super::control::{Control, Phase};
use super::course::{Engine, Tally};
use super::idle::Idle;
use super::job::Job;
use super::route::Route;
use super::subject::{Attached, Subject};
use super::worker::Worker;
use super::{Options, cores};
use crate::device::{Leaf, Opened};
use crate::{Error, Result};

/// Runs the workload of some options, until so many I/Os have completed: they, and some more, are in the tally.
pub fn run(options: &Options, ios: u64) -> Result<Tally> {
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
    let route = Route::direct(opened, &job.namespaces, job.depth, queue)?.gathering(job.merge);
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
fn counted_run(worker: &mut Worker<'_, Direct>, job: &Job) -> Result<Tally> {
    worker.run(job, 0)
}

/// What the device does, when a poll found nothing.
#[inline(never)]
fn step(emulator: &Emulator, control: &Control, ios: u64) {
    while emulator.step() > 0 {}
    if control.ios() >= ios {
        control.advance(Phase::Finish);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOS: u64 = 20_000;

    fn tally(line: &str) -> Tally {
        let tally = run(&Options::from_line(line), IOS).unwrap();
        assert!(tally.latency.count() >= IOS && tally.errors == 0, "{line}");
        tally
    }

    fn per_io(count: u64, tally: &Tally) -> f64 {
        count as f64 / tally.latency.count() as f64
    }

    /// Whether each I/O was a command. Those that were in flight at the beginning may be counted, or not.
    fn one_each(tally: &Tally) -> bool {
        tally.counters.commands.abs_diff(tally.latency.count()) <= tally.queue_depth as u64
    }

    #[test]
    fn doorbells_are_rung_for_many_at_a_time() {
        for (depth, most) in [(128, 1.0 / 8.0), (32, 1.0 / 8.0), (1, 1.05)] {
            for workload in ["randread", "write", "randrw"] {
                let tally = tally(&format!("emulated -q {depth} -w {workload}"));
                let doorbells = per_io(tally.counters.sq_doorbells + tally.counters.cq_doorbells, &tally);
                assert!(doorbells <= most, "{workload}, depth {depth}: {doorbells}");
                assert!(one_each(&tally));
            }
        }
    }

    /// On blocks of 512 bytes: of one block, a write is atomic, and two together would not be.
    #[test]
    fn neighbours_are_merged_when_asked() {
        for workload in ["read", "write"] {
            let line = format!("emulated:size=64M,block=512 -q 256 -o 4096 -w {workload}");
            assert!(one_each(&tally(&line)), "{line}");
            let tally = tally(&format!("{line} --merge"));
            let commands = per_io(tally.counters.commands, &tally);
            assert!(commands <= 1.0 / 16.0, "{line}: {commands}");
        }
    }

    #[test]
    fn what_is_no_neighbour_is_not_held_up_by_merging() {
        for depth in [1, 256] {
            let line = format!("emulated:size=1T,block=512 -q {depth} -o 4096 -w randwrite --seed 5");
            let (plain, merged) = (tally(&line), tally(&format!("{line} --merge")));
            assert_eq!((plain.polls, plain.latency.count()), (merged.polls, merged.latency.count()));
            assert!(one_each(&merged) && merged.counters.merges == 0, "depth {depth}");
        }
    }

    #[test]
    fn what_was_merged_is_where_it_belongs() {
        let tally = tally("emulated:size=16M,block=512,media=ram -q 256 -o 4096 -w write --merge --verify");
        let checks = tally.checks.as_ref().unwrap();
        assert_eq!((checks.checked, checks.mismatches, checks.unchecked), (32 << 10, 0, 0));
        let commands = per_io(tally.counters.commands, &tally);
        assert!(commands <= 1.0 / 16.0, "{commands}");
    }
}
