//! When requests are due: at once, or so many in a second whatever becomes of those before.
//!
//! A paced request's latency counts from when it was due. If it has to wait for others, its user would have
//! waited as well.

/// Fractions of a nanosecond, so that a rate is kept for a month.
const FRACTION: u32 = 20;

#[derive(Debug, Clone)]
pub enum Pace {
    /// As many as can be in flight.
    Free,
    /// In 2^-20 nanoseconds: the time between two requests, and when the next one is due.
    Every { interval: u128, due: u128 },
}

impl Pace {
    pub fn new(rate: Option<f64>) -> Pace {
        match rate {
            None => Pace::Free,
            Some(rate) => {
                let interval = 1e9 * f64::from(1 << FRACTION) / rate;
                Pace::Every { interval: (interval as u128).max(1), due: 0 }
            }
        }
    }

    /// Begins anew: a request is due now.
    pub fn begin(&mut self, now: u64) {
        if let Pace::Every { due, .. } = self {
            *due = u128::from(now) << FRACTION;
        }
    }

    /// When the next request was due, if that is not in the future; the one after it is next.
    pub fn take(&mut self, now: u64) -> Option<u64> {
        match self {
            Pace::Free => Some(now),
            Pace::Every { interval, due } => {
                let at = (*due >> FRACTION) as u64;
                let is_due = at <= now;
                if is_due {
                    *due += *interval;
                }
                is_due.then_some(at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_rate_is_kept(rate in 0.5f64..5e7, start in 0u64..1 << 40, steps in prop::collection::vec(1u64..1 << 24, 1..50)) {
            let mut pace = Pace::new(Some(rate));
            pace.begin(start);
            let (mut now, mut taken, mut last) = (start, 0u64, 0);
            for step in steps {
                now += step.min((1e5 * 1e9 / rate) as u64);
                while let Some(due) = pace.take(now) {
                    prop_assert!(due <= now && due >= last && due >= start);
                    last = due;
                    taken += 1;
                }
                let expected = (now - start) as f64 * rate / 1e9 + 1.0;
                prop_assert!((taken as f64 - expected).abs() <= 1.0 + expected * 1e-6, "{} for {}", taken, expected);
            }
        }
    }

    #[test]
    fn without_a_rate_everything_is_due() {
        let mut pace = Pace::new(None);
        pace.begin(5);
        assert_eq!((pace.take(7), pace.take(7)), (Some(7), Some(7)));
    }
}
