//! What queue pairs count, summed over those of a worker or of a run.

use std::iter::Sum;
use std::ops::{Add, Sub};

use kiovec::QueueStats;

/// Counters of some queue pairs, or of what they did in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub commands: u64,
    pub splits: u64,
    pub merges: u64,
    pub bounces: u64,
    pub sq_doorbells: u64,
    pub cq_doorbells: u64,
    /// Completions that answer nothing.
    pub faults: u64,
}

impl Counters {
    fn zip(self, other: Counters, f: impl Fn(u64, u64) -> u64) -> Counters {
        Counters {
            commands: f(self.commands, other.commands),
            splits: f(self.splits, other.splits),
            merges: f(self.merges, other.merges),
            bounces: f(self.bounces, other.bounces),
            sq_doorbells: f(self.sq_doorbells, other.sq_doorbells),
            cq_doorbells: f(self.cq_doorbells, other.cq_doorbells),
            faults: f(self.faults, other.faults),
        }
    }
}

impl From<QueueStats> for Counters {
    fn from(stats: QueueStats) -> Counters {
        Counters {
            commands: stats.commands,
            splits: stats.splits,
            merges: stats.merges,
            bounces: stats.bounces,
            sq_doorbells: stats.sq_doorbells,
            cq_doorbells: stats.cq_doorbells,
            faults: stats.faults,
        }
    }
}

impl Add for Counters {
    type Output = Counters;

    fn add(self, other: Counters) -> Counters {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Counters {
    type Output = Counters;

    fn sub(self, earlier: Counters) -> Counters {
        self.zip(earlier, |a, b| a - b)
    }
}

impl Sum for Counters {
    fn sum<I: Iterator<Item = Counters>>(all: I) -> Counters {
        all.fold(Counters::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_summed() {
        let one = Counters::default().zip(Counters::default(), |_, _| 1);
        let three: Counters = [one; 3].into_iter().sum();
        assert_eq!((three - one, three.faults, three.merges), (one + one, 3, 3));
    }
}
