//! The workers of one job as seen from beside: whether they get on, whether their device is there, whether they have
//! done enough.
//!
//! Must not know what other jobs do, nor what time it is for them.

use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::Side;
use super::control::{Control, Gauge, Phase};
use super::course::Tally;
use crate::{Error, Result};

/// A worker with I/O in flight that gets no completion for so long has a dead device.
const PATIENCE: Duration = Duration::from_secs(30);

/// The threads of a job.
pub type Workers<'scope> = Vec<ScopedJoinHandle<'scope, Result<Tally>>>;

/// A job, and what is known of its workers.
pub struct Crew<'a> {
    pub side: &'a Side,
    pub control: &'a Control,
    stall: Stall,
    /// Why it has ended before its time.
    pub lost: Option<Error>,
    /// All its workers have left.
    pub over: bool,
    /// I/Os of each worker when its measurement had begun.
    before: Vec<u64>,
}

impl<'a> Crew<'a> {
    pub fn new(side: &'a Side, control: &'a Control) -> Crew<'a> {
        let stall = Stall::new(control.gauges.len(), PATIENCE);
        Crew { side, control, stall, lost: None, over: false, before: vec![] }
    }

    /// Whether it takes part in what the jobs do together.
    pub fn is_on(&self) -> bool {
        self.control.phase() < Phase::Stop
    }

    /// Notices what the workers have noticed. Returns whether one of them could not go on, with its device in order.
    pub fn look(&mut self, workers: &Workers<'_>) -> bool {
        let left = workers.iter().filter(|worker| worker.is_finished()).count();
        if self.control.any_lost() {
            self.control.advance(Phase::Stop);
        }
        self.over = left == workers.len();
        // A worker leaves before the end only with an error, which `collect` finds, or because its device is lost.
        let early = left > 0 && self.control.phase() < Phase::Finish;
        if early {
            self.end(self.dead());
        }
        early && self.lost.is_none()
    }

    /// Looks after the device, and gives it up if that is all there is to do.
    pub fn look_after(&mut self, now: Instant) {
        if self.over || self.lost.is_some() {
            return;
        }
        let stalled = self.stall.look(self.control, now);
        self.end(self.dead().or_else(|| stalled.then(|| self.stalled())));
    }

    fn end(&mut self, cause: Option<Error>) {
        if cause.is_some() {
            self.lost = cause;
            self.control.advance(Phase::Abort);
        }
    }

    /// A device without layers is lost with its controller.
    fn dead(&self) -> Option<Error> {
        let alone = !self.side.options.device.is_stack();
        alone.then(|| self.side.attached.lost().into_iter().next()).flatten().map(Error::from)
    }

    fn stalled(&self) -> Error {
        let (device, seconds) = (&self.side.options.device, PATIENCE.as_secs());
        Error::Failed(format!(
            "{device}: no completion for {seconds} s with I/O in flight; reset it or power-cycle it, and see dmesg"
        ))
    }

    /// Why it ended before its time. Its workers may have known before anybody else did.
    pub fn loss(self) -> Option<Error> {
        let seen = self.control.any_lost();
        self.lost.is_none().then(|| self.dead()).flatten().filter(|_| seen).or(self.lost)
    }

    pub fn begin_counting(&mut self) {
        self.before = self.control.gauges.iter().map(Gauge::ios).collect();
    }

    /// Ends the measurement of a job that has done as much as it should.
    pub fn count(&self) {
        let Some(wanted) = self.side.options.number_ios else { return };
        let done = |(gauge, before): (&Gauge, &u64)| gauge.ios().saturating_sub(*before) >= wanted;
        if self.control.gauges.iter().zip(&self.before).all(done) {
            self.control.advance(Phase::Finish);
        }
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

    /// Whether a worker has had no completion for too long.
    fn look(&mut self, control: &Control, now: Instant) -> bool {
        for ((ios, since), gauge) in self.seen.iter_mut().zip(&control.gauges) {
            if *ios != gauge.ios() || !gauge.is_busy() {
                (*ios, *since) = (gauge.ios(), now);
            }
        }
        self.seen.iter().any(|(_, since)| now.duration_since(*since) >= self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_stalled_only_while_it_waits() {
        let control = Control::new(2);
        let start = Instant::now();
        let mut stall = Stall::new(2, Duration::from_secs(30));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!stall.look(&control, at(100)), "nobody waits");
        control.gauges[0].set_busy(true);
        control.gauges[1].set_busy(true);
        assert!(!stall.look(&control, at(110)));
        control.gauges[0].set_ios(1);
        control.gauges[1].set_ios(1);
        assert!(!stall.look(&control, at(120)));
        control.gauges[0].set_ios(2);
        assert!(!stall.look(&control, at(149)));
        assert!(stall.look(&control, at(150)), "the second worker's last completion was 30 s ago");
        control.gauges[1].set_busy(false);
        assert!(!stall.look(&control, at(160)));
    }
}
