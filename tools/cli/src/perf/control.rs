//! What the supervisor and the workers tell each other while they run: a phase down, counts up.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Where a run is. Phases only ever move on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Queues and memory are made; the range is filled, if it has to be.
    Prepare,
    /// As in the measurement, not counted.
    WarmUp,
    Measure,
    /// What is in flight ends; what was written is read back, if it has to be.
    Finish,
    /// What is in flight ends, and nothing else begins: the user has had enough, or a part of the
    /// device is lost.
    Stop,
    /// Nothing is waited for: the device is gone.
    Abort,
}

const PHASES: [Phase; 6] =
    [Phase::Prepare, Phase::WarmUp, Phase::Measure, Phase::Finish, Phase::Stop, Phase::Abort];

/// A phase, and within the measurement a slice of it, in one word that is compared as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u32);

/// The phase is above the number of the slice.
const PHASE_SHIFT: u32 = 24;

impl Moment {
    pub fn phase(self) -> Phase {
        PHASES[((self.0 >> PHASE_SHIFT) as usize).min(PHASES.len() - 1)]
    }

    pub fn slice(self) -> u32 {
        self.0 & ((1 << PHASE_SHIFT) - 1)
    }
}

/// Of the workers of one job: each may end for itself.
#[derive(Debug)]
pub struct Control {
    moment: AtomicU32,
    pub gauges: Vec<Gauge>,
}

/// What a worker shows of itself. Alone on its cache lines: it is written all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Gauge {
    ios: AtomicU64,
    busy: AtomicBool,
    ready: AtomicBool,
    started: AtomicBool,
    measuring: AtomicBool,
    lost: AtomicBool,
}

impl Control {
    pub fn new(workers: usize) -> Control {
        let gauges = std::iter::repeat_with(Gauge::default).take(workers).collect();
        Control { moment: AtomicU32::new(0), gauges }
    }

    #[inline(always)]
    pub fn moment(&self) -> Moment {
        Moment(self.moment.load(Ordering::Relaxed))
    }

    pub fn phase(&self) -> Phase {
        self.moment().phase()
    }

    /// Goes on to a phase, unless a later one has begun.
    pub fn advance(&self, phase: Phase) {
        self.moment.fetch_max((phase as u32) << PHASE_SHIFT, Ordering::Relaxed);
    }

    /// Goes on to a slice of the measurement, unless that is over.
    pub fn advance_slice(&self, slice: u32) {
        let (from, to) = ((Phase::Measure as u32) << PHASE_SHIFT, (Phase::Finish as u32) << PHASE_SHIFT);
        let next = from | slice & (to - from - 1);
        let still = |moment| (from..to).contains(&moment).then_some(next);
        let _ = self.moment.fetch_update(Ordering::Relaxed, Ordering::Relaxed, still);
    }

    /// I/Os of all workers since they began, of whatever stage.
    pub fn ios(&self) -> u64 {
        self.gauges.iter().map(Gauge::ios).sum()
    }

    pub fn all_ready(&self) -> bool {
        self.gauges.iter().all(|gauge| gauge.ready.load(Ordering::Relaxed))
    }

    pub fn all_started(&self) -> bool {
        self.gauges.iter().all(|gauge| gauge.started.load(Ordering::Relaxed))
    }

    pub fn all_measuring(&self) -> bool {
        self.gauges.iter().all(|gauge| gauge.measuring.load(Ordering::Relaxed))
    }

    pub fn any_lost(&self) -> bool {
        self.gauges.iter().any(Gauge::is_lost)
    }
}

impl Gauge {
    #[inline(always)]
    pub fn set_ios(&self, ios: u64) {
        self.ios.store(ios, Ordering::Relaxed);
    }

    pub fn ios(&self) -> u64 {
        self.ios.load(Ordering::Relaxed)
    }

    /// While it is busy, completions are expected of it.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Its requests are in flight, as they will be in the measurement.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// What it does from now on counts.
    pub fn set_measuring(&self) {
        self.measuring.store(true, Ordering::Relaxed);
    }

    /// An I/O failed for want of a device that is gone for good: others will.
    pub fn set_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_move_on() {
        let control = Control::new(1);
        for (to, now) in [
            (Phase::WarmUp, Phase::WarmUp),
            (Phase::Stop, Phase::Stop),
            (Phase::Measure, Phase::Stop),
            (Phase::Abort, Phase::Abort),
        ] {
            control.advance(to);
            assert_eq!(control.phase(), now);
        }
    }

    #[test]
    fn slices_are_of_the_measurement_only() {
        let control = Control::new(1);
        control.advance_slice(1);
        assert_eq!((control.phase(), control.moment().slice()), (Phase::Prepare, 0));
        control.advance(Phase::Measure);
        control.advance_slice(7);
        assert_eq!((control.phase(), control.moment().slice()), (Phase::Measure, 7));
        control.advance(Phase::Finish);
        control.advance_slice(8);
        assert_eq!((control.phase(), control.moment().slice()), (Phase::Finish, 0));
    }
}
