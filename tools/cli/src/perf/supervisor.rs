//! The run as seen from beside: phases by the clock, progress, and what ends it before its time.
//!
//! Every wait of a worker ends here at the latest: when its only controller has stopped, or when
//! nothing has completed for half a minute. What a lost controller means below layers is theirs to
//! decide; the run ends when they let an I/O fail for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::control::{Control, Phase};
use super::course::Tally;
use super::progress::Progress;
use super::recovery::Resets;
use super::subject::Attached;
use super::{Options, Side, kernel, worker};
use crate::{Error, Result};

/// Between two looks at controller and workers.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks while there is little to wait for.
const SHORT_TICK: Duration = Duration::from_millis(5);
/// A worker with I/O in flight that gets no completion for so long has a dead device.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a measurement is cut into, to see how it went: so many slices, unless they would be shorter.
const SLICES: u32 = 100;
const SHORTEST_SLICE: Duration = Duration::from_millis(50);

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Of each job, those of its workers.
    pub tallies: Vec<Vec<Tally>>,
    /// By the user, before its time.
    pub interrupted: bool,
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
    let crew = |side: &Side| side.job.cores.len();
    let control = Control::new(sides.iter().map(crew).sum());
    let outcome = thread::scope(|scope| {
        let mut workers = Vec::new();
        let all = sides.iter().flat_map(|side| (0..crew(side)).map(move |index| (side, index)));
        for ((side, index), gauge) in all.zip(&control.gauges) {
            let (control, job, core) = (&control, &side.job, side.job.cores[index]);
            let body = move || match &*side.attached {
                Attached::Driver(opened) => worker::run(job, index, opened, control, gauge),
                Attached::Kernel(file) => kernel::run(job, index, file, control, gauge),
            };
            let spawned = thread::Builder::new().name(format!("kiovec-{core}")).spawn_scoped(scope, body);
            match spawned {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    control.advance(Phase::Abort);
                    return Err(Error::os("starting a thread")(error));
                }
            }
        }
        let cause = Supervisor::new(sides, label, interrupted, &control).watch(&workers);
        collect(workers, cause)
    })?;
    let mut outcome = outcome.into_iter();
    let tallies = sides.iter().map(|side| outcome.by_ref().take(crew(side)).collect()).collect();
    Ok(Outcome { tallies, interrupted: interrupted.load(Ordering::Relaxed) })
}

/// The results of all workers, or the reason why there are none.
fn collect(workers: Vec<ScopedJoinHandle<'_, Result<Tally>>>, cause: Option<Error>) -> Result<Vec<Tally>> {
    let mut results = Vec::new();
    for worker in workers {
        results.push(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
    match cause {
        Some(cause) => Err(cause),
        None => results.into_iter().collect(),
    }
}

struct Supervisor<'a> {
    control: &'a Control,
    sides: &'a [Side],
    interrupted: &'a AtomicBool,
    warmup: Duration,
    time: Duration,
    /// How long a slice of the measurement is.
    slice: Duration,
    progress: Progress,
    stall: Stall,
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
        control: &'a Control,
    ) -> Supervisor<'a> {
        // The same for all jobs.
        let time =
            |time: fn(&Options) -> Duration| sides.first().map_or(SHORT_TICK, |side| time(&side.options));
        let (warmup, time) = (time(|options| options.warmup_time), time(|options| options.time));
        let size = |side: &Side| std::iter::repeat_n(side.job.io_size, side.job.cores.len());
        Supervisor {
            control,
            sides,
            interrupted,
            warmup,
            time,
            slice: (time / SLICES).max(SHORTEST_SLICE),
            progress: Progress::new(warmup + time, label, sides.iter().flat_map(size).collect()),
            stall: Stall::new(control.gauges.len(), PATIENCE),
            resets: Resets::new(sides.first().and_then(|side| side.options.reset_every)),
            since: Instant::now(),
            measuring: false,
        }
    }

    /// Takes the run through its phases, until no worker is left. Returns why it had to be ended.
    fn watch(mut self, workers: &[ScopedJoinHandle<'_, Result<Tally>>]) -> Option<Error> {
        let mut cause = None;
        let mut looked = Instant::now();
        loop {
            let left = workers.iter().filter(|worker| !worker.is_finished()).count();
            if left == 0 {
                break;
            }
            if self.control.any_lost() || self.interrupted.load(Ordering::Relaxed) {
                self.control.advance(Phase::Stop);
            }
            // A worker leaves before the end only with an error, which `collect` finds, or because
            // its device is lost.
            if left < workers.len() && self.control.phase() < Phase::Finish {
                self.control.advance(Phase::Abort);
            }
            if cause.is_none() && looked.elapsed() >= TICK {
                looked = Instant::now();
                cause = self.trouble();
            }
            self.move_on();
            self.reset();
            thread::park_timeout(self.pause());
        }
        self.progress.finish();
        cause.or_else(|| self.dead().filter(|_| self.control.any_lost()))
    }

    /// Looks after the device and the workers, and gives up on them if that is all there is to do.
    fn trouble(&mut self) -> Option<Error> {
        self.progress.show(self.control);
        let stalled = self.stall.look(self.control, Instant::now());
        let cause = self.dead().or_else(|| stalled.map(|worker| self.stalled(worker)));
        if cause.is_some() {
            self.control.advance(Phase::Abort);
        }
        cause
    }

    /// A device without layers is lost with its controller.
    fn dead(&self) -> Option<Error> {
        let mut alone = self.sides.iter().filter(|side| !side.options.device.is_stack());
        alone.find_map(|side| side.attached.lost().into_iter().next()).map(Error::from)
    }

    fn stalled(&self, worker: usize) -> Error {
        let workers = self.sides.iter().flat_map(|side| side.job.cores.iter().map(move |_| side));
        let device = workers.map(|side| side.options.device.to_string()).nth(worker).unwrap_or_default();
        let seconds = PATIENCE.as_secs();
        Error::Failed(format!(
            "{device}: no completion for {seconds} s with I/O in flight; reset it or power-cycle it, and see dmesg"
        ))
    }

    /// Only while all workers poll: before, they create queue pairs.
    fn reset(&mut self) {
        let phases = Phase::WarmUp..=Phase::Finish;
        if phases.contains(&self.control.phase()) && self.control.all_started() {
            self.resets.turn(self.sides.iter().map(|side| &*side.attached));
        }
    }

    /// Begins the next phase when it is time.
    fn move_on(&mut self) {
        if self.control.phase() == Phase::Measure && !self.measuring {
            // The time runs from when it does for all.
            self.measuring = self.control.all_measuring();
            self.since = Instant::now();
        }
        let next = match self.control.phase() {
            Phase::Prepare if self.control.all_ready() => Phase::WarmUp,
            // On a busy machine a worker may not have run at all by now.
            Phase::WarmUp if self.since.elapsed() >= self.warmup && self.control.all_started() => {
                Phase::Measure
            }
            Phase::Measure if self.since.elapsed() >= self.time => Phase::Finish,
            Phase::Measure => return self.control.advance_slice(self.slices()),
            _ => return,
        };
        self.control.advance(next);
        self.since = Instant::now();
        self.progress.phase(next, self.control);
    }

    /// Slices of the measurement that are over.
    fn slices(&self) -> u32 {
        (self.since.elapsed().as_nanos() / self.slice.as_nanos().max(1)) as u32
    }

    /// Until something may have to be done.
    fn pause(&self) -> Duration {
        let left = match self.control.phase() {
            Phase::Measure if !self.measuring => SHORT_TICK,
            Phase::WarmUp => match self.warmup.saturating_sub(self.since.elapsed()) {
                Duration::ZERO => SHORT_TICK,
                left => left,
            },
            Phase::Measure => {
                let next = self.slice * (self.slices() + 1);
                self.time.min(next).saturating_sub(self.since.elapsed())
            }
            _ => SHORT_TICK,
        };
        left.min(TICK)
    }
}

/// Finds workers that wait for completions in vain.
struct Stall {
    seen: Vec<(u64, Instant)>,
    patience: Duration,
}

impl Stall {
    fn new(workers: usize, patience: Duration) -> Stall {
        Stall { seen: vec![(0, Instant::now()); workers], patience }
    }

    /// A worker that has had no completion for too long.
    fn look(&mut self, control: &Control, now: Instant) -> Option<usize> {
        for ((ios, since), gauge) in self.seen.iter_mut().zip(&control.gauges) {
            if *ios != gauge.ios() || !gauge.is_busy() {
                (*ios, *since) = (gauge.ios(), now);
            }
        }
        self.seen.iter().position(|(_, since)| now.duration_since(*since) >= self.patience)
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
        let mut supervisor = Supervisor::new(&sides, "", &interrupted, &control);
        assert!(supervisor.trouble().is_none());
        drop(emulators);
        let error = supervisor.trouble().unwrap().to_string();
        assert!(error.contains("emulated") && error.contains("gone"), "{error}");
        assert_eq!(control.phase(), Phase::Abort);
    }

    #[test]
    fn below_layers_a_controller_may_go() {
        let options = Options::from_line("trace(emulated:size=1M) -t 600");
        let (sides, emulators) = without_emulators(options);
        let (interrupted, control) = (AtomicBool::new(false), Control::new(1));
        drop(emulators);
        let mut supervisor = Supervisor::new(&sides, "", &interrupted, &control);
        assert!(supervisor.trouble().is_none());
        assert_eq!(control.phase(), Phase::Prepare);
        assert_eq!(sides[0].attached.lost().len(), 1);
    }

    #[test]
    fn nothing_is_measured_before_all_workers_have_begun() {
        let (sides, _emulators) = without_emulators(Options::from_line("emulated:size=1M -a 0 -t 0.001"));
        let (interrupted, control) = (AtomicBool::new(false), Control::new(2));
        let mut supervisor = Supervisor::new(&sides, "", &interrupted, &control);
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
        assert_eq!(phase(), Phase::Measure);
        while phase() == Phase::Measure {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        assert_eq!(phase(), Phase::Finish);
    }

    #[test]
    fn a_worker_is_stalled_only_while_it_waits() {
        let control = Control::new(2);
        let start = Instant::now();
        let mut stall = Stall::new(2, Duration::from_secs(30));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(stall.look(&control, at(100)), None, "nobody waits");
        control.gauges[0].set_busy(true);
        control.gauges[1].set_busy(true);
        assert_eq!(stall.look(&control, at(110)), None);
        control.gauges[0].set_ios(1);
        control.gauges[1].set_ios(1);
        assert_eq!(stall.look(&control, at(120)), None);
        control.gauges[0].set_ios(2);
        assert_eq!(stall.look(&control, at(149)), None);
        assert_eq!(
            stall.look(&control, at(150)),
            Some(1),
            "the second worker's last completion was 30 s ago"
        );
        control.gauges[1].set_busy(false);
        assert_eq!(stall.look(&control, at(160)), None);
    }
}
