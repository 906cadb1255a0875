//! The run as seen from beside: phases by the clock, progress, and what ends it, or a part of it, before its time.
//!
//! Every wait of a worker ends here at the latest: when its only controller has stopped, or when
//! nothing has completed for half a minute. Then its job ends, and the others go on. What a lost controller means
//! below layers is theirs to decide; the job ends when they let an I/O fail for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::control::{Control, Phase};
use super::course::Tally;
use super::crew::{Crew, Workers};
use super::progress::Progress;
use super::recovery::Resets;
use super::subject::Attached;
use super::{Options, Side, kernel, worker};
use crate::{Error, Result};

/// Between two looks at controller and workers.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks while there is little to wait for.
const SHORT_TICK: Duration = Duration::from_millis(5);

/// What a measurement is cut into, to see how it went: so many slices, unless they would be shorter.
const SLICES: u32 = 100;
const SHORTEST_SLICE: Duration = Duration::from_millis(50);

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Of each job.
    pub ends: Vec<End>,
    /// By the user, before its time.
    pub interrupted: bool,
}

/// How a job ended.
#[derive(Debug)]
pub struct End {
    /// Of its workers.
    pub tallies: Vec<Tally>,
    /// Why it ended before the others did, if its device was lost.
    pub lost: Option<Error>,
}

/// A flag that the first SIGINT or SIGTERM sets. The second one ends the process.
pub fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(Error::os("installing a signal handler"))?;
    }
    Ok(flag)
}

/// Runs all workers from first to last.
pub fn run(sides: &[Side], label: &str, interrupted: &AtomicBool) -> Result<Outcome> {
    let controls: Vec<Control> = sides.iter().map(|side| Control::new(side.job.cores.len())).collect();
    let ends = thread::scope(|scope| {
        let mut crews: Vec<Workers<'_>> = Vec::new();
        for (side, control) in sides.iter().zip(&controls) {
            let mut crew = Vec::new();
            for (index, gauge) in control.gauges.iter().enumerate() {
                let (job, core) = (&side.job, side.job.cores[index]);
                let body = move || match &*side.attached {
                    Attached::Driver(opened) => worker::run(job, index, opened, control, gauge),
                    Attached::Kernel(file) => kernel::run(job, index, file, control, gauge),
                };
                let spawned = thread::Builder::new().name(format!("kiovec-{core}")).spawn_scoped(scope, body);
                match spawned {
                    Ok(worker) => crew.push(worker),
                    Err(error) => {
                        controls.iter().for_each(|control| control.advance(Phase::Abort));
                        return Err(Error::os("starting a thread")(error));
                    }
                }
            }
            crews.push(crew);
        }
        let losses = Supervisor::new(sides, label, interrupted, &controls).watch(&crews);
        collect(sides, crews, losses)
    })?;
    Ok(Outcome { ends, interrupted: interrupted.load(Ordering::Relaxed) })
}

/// How each job ended, or the reason why that is of no interest: none got to its end, or one could not be carried
/// out.
fn collect(sides: &[Side], crews: Vec<Workers<'_>>, mut losses: Vec<Option<Error>>) -> Result<Vec<End>> {
    let mut results = Vec::new();
    for crew in crews {
        let join = |worker: ScopedJoinHandle<'_, Result<Tally>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        results.push(crew.into_iter().map(join).collect::<Vec<_>>());
    }
    if losses.iter().all(Option::is_some) {
        let mut all: Vec<Error> = losses.into_iter().flatten().collect();
        if all.len() > 1 {
            let all: Vec<String> = all.iter().map(Error::to_string).collect();
            return Err(Error::Failed(all.join("; ")));
        }
        return all.pop().map_or_else(|| Ok(vec![]), Err);
    }
    let mut ends = Vec::new();
    for ((side, results), lost) in sides.iter().zip(results).zip(losses.drain(..)) {
        let tallies = results.into_iter().zip(&side.job.cores).map(|(result, core)| match result {
            // Without its device, a worker may not even have begun.
            Err(_) if lost.is_some() => Ok(Tally { core: *core, ..Tally::default() }),
            result => result,
        });
        ends.push(End { tallies: tallies.collect::<Result<_>>()?, lost });
    }
    Ok(ends)
}

struct Supervisor<'a> {
    crews: Vec<Crew<'a>>,
    /// Where the run is; a job may be further.
    phase: Phase,
    interrupted: &'a AtomicBool,
    warmup: Duration,
    time: Duration,
    /// How long a slice of the measurement is.
    slice: Duration,
    progress: Progress<'a>,
    resets: Resets,
    /// When the phase began that ends by the clock.
    since: Instant,
    /// Whether all workers have found that they are measured.
    measuring: bool,
}

impl<'a> Supervisor<'a> {
    fn new(
        sides: &'a [Side],
        label: &str,
        interrupted: &'a AtomicBool,
        controls: &'a [Control],
    ) -> Supervisor<'a> {
        // The same for all jobs.
        let time =
            |time: fn(&Options) -> Duration| sides.first().map_or(SHORT_TICK, |side| time(&side.options));
        let (warmup, time) = (time(|options| options.warmup_time), time(|options| options.time));
        let size = |(side, control): (&Side, &'a Control)| (control, side.job.io_size);
        let every = sides.first().and_then(|side| side.options.status_interval);
        let shown = sides.iter().zip(controls).map(size).collect();
        Supervisor {
            crews: sides.iter().zip(controls).map(|(side, control)| Crew::new(side, control)).collect(),
            phase: Phase::Prepare,
            interrupted,
            warmup,
            time,
            slice: (time / SLICES).max(SHORTEST_SLICE),
            progress: Progress::new(warmup + time, label, shown, every),
            resets: Resets::new(sides.first().and_then(|side| side.options.reset_every)),
            since: Instant::now(),
            measuring: false,
        }
    }

    /// Takes the run through its phases, until no worker is left. Returns which jobs lost their device.
    fn watch(mut self, threads: &[Workers<'_>]) -> Vec<Option<Error>> {
        let mut looked = Instant::now();
        loop {
            let early = self.crews.iter_mut().zip(threads).map(|(crew, workers)| crew.look(workers));
            if early.fold(false, |any, early| any | early) {
                self.advance(Phase::Abort);
            }
            if self.crews.iter().all(|crew| crew.over) {
                break;
            }
            if self.interrupted.load(Ordering::Relaxed) {
                self.advance(Phase::Stop);
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.trouble();
            }
            self.move_on();
            self.reset();
            thread::park_timeout(self.pause());
        }
        self.progress.finish();
        self.crews.into_iter().map(Crew::loss).collect()
    }

    /// Looks after devices and workers.
    fn trouble(&mut self) {
        self.progress.show();
        let now = Instant::now();
        self.crews.iter_mut().for_each(|crew| crew.look_after(now));
    }

    fn advance(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
        self.crews.iter().for_each(|crew| crew.control.advance(phase));
    }

    /// Whether it holds for all jobs that are still in the run.
    fn all(&self, so: fn(&Control) -> bool) -> bool {
        self.crews.iter().filter(|crew| crew.is_on()).all(|crew| so(crew.control))
    }

    /// Only while all workers poll: before, they create queue pairs.
    fn reset(&mut self) {
        let phases = Phase::WarmUp..=Phase::Finish;
        if phases.contains(&self.phase) && self.all(Control::all_started) {
            self.resets.turn(self.crews.iter().map(|crew| &*crew.side.attached));
        }
    }

    /// Begins the next phase when it is time.
    fn move_on(&mut self) {
        if self.phase == Phase::Measure && !self.measuring {
            // The time runs from when it does for all.
            self.measuring = self.all(Control::all_measuring);
            self.since = Instant::now();
            if self.measuring {
                self.progress.phase(Phase::Measure);
            }
            self.crews.iter_mut().for_each(Crew::begin_counting);
        }
        let next = match self.phase {
            Phase::Prepare if self.all(Control::all_ready) => Phase::WarmUp,
            // On a busy machine a worker may not have run at all by now.
            Phase::WarmUp if self.since.elapsed() >= self.warmup && self.all(Control::all_started) => {
                Phase::Measure
            }
            Phase::Measure if self.measuring && self.since.elapsed() >= self.time => Phase::Finish,
            Phase::Measure => {
                let slices = self.slices();
                self.crews.iter().for_each(|crew| crew.control.advance_slice(slices));
                if self.measuring {
                    self.crews.iter().for_each(Crew::count);
                }
                return;
            }
            _ => return,
        };
        self.advance(next);
        self.since = Instant::now();
        if next != Phase::Measure {
            self.progress.phase(next);
        }
    }

    /// Slices of the measurement that are over.
    fn slices(&self) -> u32 {
        (self.since.elapsed().as_nanos() / self.slice.as_nanos().max(1)) as u32
    }

    /// Until something may have to be done.
    fn pause(&self) -> Duration {
        let left = match self.phase {
            Phase::Measure if !self.measuring => SHORT_TICK,
            Phase::WarmUp => match self.warmup.saturating_sub(self.since.elapsed()) {
                Duration::ZERO => SHORT_TICK,
                left => left,
            },
            Phase::Measure if self.crews.iter().any(|crew| crew.side.options.number_ios.is_some()) => {
                SHORT_TICK
            }
            Phase::Measure => {
                let next = self.slice * (self.slices() + 1);
                self.time.min(next).saturating_sub(self.since.elapsed())
            }
            _ => SHORT_TICK,
        };
        left.min(TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::control::Gauge;
    use crate::perf::cores;
    use crate::perf::job::Job;

    /// A device, and its emulators, which go when they are dropped.
    fn without_emulators(options: Options) -> ([Side; 1], Vec<kiovec_emulator::Emulator>) {
        let mut attached = options.device.attach(false).unwrap();
        let job = Job::new(&options, &attached, cores::allowed().unwrap()[..1].to_vec(), true).unwrap();
        let Attached::Driver(opened) = Arc::get_mut(&mut attached).unwrap() else {
            panic!("an emulated device")
        };
        let emulators = std::mem::take(&mut opened.emulators);
        ([Side { options, job, attached }], emulators)
    }

    #[test]
    fn a_device_that_is_gone_is_given_up_and_named() {
        let options = Options::from_line("emulated:size=1M -t 600");
        let (sides, emulators) = without_emulators(options);
        let (interrupted, control) = (AtomicBool::new(false), Control::new(1));
        let mut supervisor = Supervisor::new(&sides, "", &interrupted, std::slice::from_ref(&control));
        supervisor.trouble();
        assert!(supervisor.crews[0].lost.is_none());
        drop(emulators);
        supervisor.trouble();
        let error = supervisor.crews[0].lost.take().unwrap().to_string();
        assert!(error.contains("emulated") && error.contains("gone"), "{error}");
        assert_eq!(control.phase(), Phase::Abort);
    }

    #[test]
    fn below_layers_a_controller_may_go() {
        let options = Options::from_line("trace(emulated:size=1M) -t 600");
        let (sides, emulators) = without_emulators(options);
        let (interrupted, control) = (AtomicBool::new(false), Control::new(1));
        drop(emulators);
        let mut supervisor = Supervisor::new(&sides, "", &interrupted, std::slice::from_ref(&control));
        supervisor.trouble();
        assert!(supervisor.crews[0].lost.is_none());
        assert_eq!(control.phase(), Phase::Prepare);
        assert_eq!(sides[0].attached.lost().len(), 1);
    }

    #[test]
    fn nothing_is_measured_before_all_workers_have_begun() {
        let (sides, _emulators) = without_emulators(Options::from_line("emulated:size=1M -a 0 -t 0.001"));
        let (interrupted, control) = (AtomicBool::new(false), Control::new(2));
        let mut supervisor = Supervisor::new(&sides, "", &interrupted, std::slice::from_ref(&control));
        let mut phase = || {
            supervisor.move_on();
            control.phase()
        };
        control.gauges.iter().for_each(Gauge::set_ready);
        assert_eq!((phase(), phase()), (Phase::WarmUp, Phase::WarmUp));
        control.gauges[1].set_started();
        assert_eq!(phase(), Phase::WarmUp);
        control.gauges[0].set_started();
        assert_eq!(phase(), Phase::Measure);
        control.gauges[1].set_measuring();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(3) {
            assert_eq!(phase(), Phase::Measure, "one of them has not noticed");
        }
        control.gauges[0].set_measuring();
        while phase() == Phase::Measure {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        assert_eq!(phase(), Phase::Finish);
    }
}
