//! What queue pairs did about commands that took too long, and what a run asks for: command timeouts and resets.
//!
//! Knows counters and intervals; must not know how a controller recovers.

use std::iter::Sum;
use std::ops::Add;
use std::time::{Duration, Instant};

use kiovec::QueueStats;
use serde_json::{Value, json};

use super::subject::Attached;

/// Of some queue pairs, from first to last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Commands that were not completed within the command timeout.
    timeouts: u64,
    /// Commands whose Abort was asked for.
    aborts: u64,
    /// Queue pairs that were created anew, after a reset.
    resets: u64,
    /// Commands that were sent once more.
    resent: u64,
}

impl From<QueueStats> for Recovery {
    fn from(stats: QueueStats) -> Recovery {
        let QueueStats { timeouts, aborts, resets, resent, .. } = stats;
        Recovery { timeouts, aborts, resets, resent }
    }
}

impl Add for Recovery {
    type Output = Recovery;

    fn add(self, other: Recovery) -> Recovery {
        Recovery {
            timeouts: self.timeouts + other.timeouts,
            aborts: self.aborts + other.aborts,
            resets: self.resets + other.resets,
            resent: self.resent + other.resent,
        }
    }
}

impl Sum for Recovery {
    fn sum<I: Iterator<Item = Recovery>>(all: I) -> Recovery {
        all.fold(Recovery::default(), Add::add)
    }
}

impl Recovery {
    /// A line, if there was anything.
    pub fn text(self) -> Option<String> {
        let Recovery { timeouts, aborts, resets, resent } = self;
        (self != Recovery::default()).then(|| {
            format!(
                "recovery, warm-up included: {timeouts} commands timed out, {aborts} aborted, {resets} queue pairs \
                 reset, {resent} commands sent again\n"
            )
        })
    }

    pub fn json(self) -> Value {
        let Recovery { timeouts, aborts, resets, resent } = self;
        json!({ "timeouts": timeouts, "aborts": aborts, "queue_pair_resets": resets, "resent": resent })
    }
}

/// Resets of all controllers, at intervals.
#[derive(Debug)]
pub struct Resets {
    every: Option<Duration>,
    last: Instant,
}

impl Resets {
    pub fn new(every: Option<Duration>) -> Resets {
        Resets { every, last: Instant::now() }
    }

    /// Resets the controllers, if it is time. One that is lost is not this one's to report.
    pub fn turn<'a>(&mut self, devices: impl Iterator<Item = &'a Attached>) {
        if self.every.is_none_or(|every| self.last.elapsed() < every) {
            return;
        }
        let controllers = devices.filter_map(Attached::driver).flat_map(|opened| &opened.controllers);
        controllers.for_each(|controller| drop(controller.reset()));
        self.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_is_not_told() {
        let one = Recovery { timeouts: 4, aborts: 3, resets: 2, resent: 1 };
        let sum: Recovery = [one; 2].into_iter().sum();
        assert_eq!(Recovery::default().text(), None);
        let text = sum.text().unwrap();
        assert!(
            text.contains("8 commands timed out, 6 aborted, 4 queue pairs reset, 2 commands sent again"),
            "{text}"
        );
        assert_eq!(sum.json()["queue_pair_resets"], 4);
    }
}
