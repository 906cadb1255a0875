//! What a worker does with polls that find nothing.

use std::hint::spin_loop;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};

/// So many idle polls in a row, before anything else is done than polling.
const PATIENT: u32 = 256;
/// The longest row of `pause` between two polls; when that was not enough, others may run.
const LONGEST_PAUSE: u32 = 256;

/// Idle polls between two times that others have the core. A turn of theirs may take long on a busy machine, and a poller
/// looks after its controllers once in 1024 polls only.
const POLLS_A_TURN: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Polling {
    /// Poll again at once.
    Spin,
    /// After 256 idle polls in a row, pause between polls, longer each time; then let others run.
    Adaptive,
}

impl Polling {
    /// The name as it is given.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// How a worker idles.
pub enum Idle<'a> {
    Spin,
    /// Somebody else needs the core. So many polls were in vain since that one had it.
    Yield(u32),
    Adaptive(Backoff),
    /// The device is in this thread, and gets its turn.
    Step(&'a dyn Fn()),
}

impl<'a> Idle<'a> {
    pub fn new(polling: Polling, crowded: bool) -> Idle<'a> {
        match (polling, crowded) {
            (Polling::Adaptive, _) => Idle::Adaptive(Backoff::default()),
            (Polling::Spin, true) => Idle::Yield(0),
            (Polling::Spin, false) => Idle::Spin,
        }
    }

    /// A poll found nothing.
    #[inline(always)]
    pub fn nothing_found(&mut self) {
        if !matches!(self, Idle::Spin) {
            self.wait();
        }
    }

    #[cold]
    #[inline(never)]
    fn wait(&mut self) {
        match self {
            Idle::Spin => {}
            Idle::Yield(vain) => {
                *vain = (*vain + 1) % POLLS_A_TURN;
                if *vain == 0 {
                    yield_now();
                }
            }
            Idle::Adaptive(backoff) => backoff.nothing_found(),
            Idle::Step(device) => device(),
        }
    }

    /// A poll found something.
    #[inline(always)]
    pub fn found(&mut self) {
        if let Idle::Adaptive(backoff) = self {
            backoff.in_a_row = 0;
        }
    }

    pub fn waits(&self) -> Option<Waits> {
        match self {
            Idle::Adaptive(backoff) => Some(backoff.waits),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Backoff {
    in_a_row: u32,
    pause: u32,
    waits: Waits,
}

impl Backoff {
    fn nothing_found(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row <= PATIENT {
            self.pause = 1;
            return;
        }
        let began = Instant::now();
        match self.pause <= LONGEST_PAUSE {
            true => (0..self.pause).for_each(|_| spin_loop()),
            false => yield_now(),
        }
        self.pause = (2 * self.pause).min(2 * LONGEST_PAUSE);
        self.waits.record(began.elapsed());
    }
}

/// The waits of adaptive polling. A completion that comes in one is found at its end: it is later by the
/// length of a wait at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waits {
    pub count: u64,
    pub total: Duration,
    pub longest: Duration,
}

impl Waits {
    fn record(&mut self, wait: Duration) {
        self.count += 1;
        self.total += wait;
        self.longest = self.longest.max(wait);
    }

    pub fn add(self, other: Waits) -> Waits {
        Waits {
            count: self.count + other.count,
            total: self.total + other.total,
            longest: self.longest.max(other.longest),
        }
    }

    fn mean(self) -> f64 {
        self.total.as_nanos() as f64 / (self.count as f64).max(1.0)
    }

    pub fn text(self) -> String {
        let micros = |nanos: f64| format!("{:.2}", nanos / 1000.0);
        format!(
            "adaptive polling, warm-up included: {} waits, {} us on average, {} us at most: an I/O that ended in one \
             was found up to so much later\n",
            self.count,
            micros(self.mean()),
            micros(self.longest.as_nanos() as f64)
        )
    }

    /// The same in columns.
    pub fn facts(self) -> Vec<(String, String)> {
        let micros = |nanos: f64| format!("{:.2} us", nanos / 1000.0);
        vec![
            ("waits".into(), self.count.to_string()),
            ("average: so much later an I/O may be found".into(), micros(self.mean())),
            ("longest".into(), micros(self.longest.as_nanos() as f64)),
        ]
    }

    pub fn json(self) -> Value {
        json!({
            "waits": self.count,
            "seconds": self.total.as_secs_f64(),
            "mean_ns": self.mean(),
            "max_ns": u64::try_from(self.longest.as_nanos()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_patient_first_and_begins_anew() {
        let mut idle = Idle::new(Polling::Adaptive, false);
        let waits = |idle: &Idle| idle.waits().unwrap().count;
        (0..PATIENT).for_each(|_| idle.nothing_found());
        assert_eq!(waits(&idle), 0);
        (0..20).for_each(|_| idle.nothing_found());
        assert_eq!(waits(&idle), 20);
        idle.found();
        (0..PATIENT).for_each(|_| idle.nothing_found());
        assert_eq!(waits(&idle), 20);
        let waits = idle.waits().unwrap();
        assert!(waits.longest <= waits.total && waits.total > Duration::ZERO);
        assert_eq!(waits.add(waits).count, 40);
        assert_eq!(Idle::new(Polling::Spin, true).waits(), None);
    }
}
