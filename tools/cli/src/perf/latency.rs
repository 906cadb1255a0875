//! Latencies, recorded in a few instructions: an array of counts, finer than 1 % everywhere.

use std::hint::cold_path;

use hdrhistogram::Histogram;

/// log2 of the cells of an octave.
const FINENESS: u32 = 7;
/// The last cell of the last octave is 57 · 128 + 127; a power of two, so that a mask bounds it.
const CELLS: usize = 8192;

/// How many latencies are in which cell, for cells that are not empty.
pub type Cells = Vec<(u16, u64)>;

/// Latencies in nanoseconds.
#[derive(Debug, Clone)]
pub struct Latency {
    counts: Box<[u64; CELLS]>,
    sum: u64,
    max: u64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency { counts: Box::new([0; CELLS]), sum: 0, max: 0 }
    }
}

impl Latency {
    #[inline(always)]
    pub fn record(&mut self, nanos: u64) {
        self.counts[cell(nanos)] += 1;
        self.sum = self.sum.wrapping_add(nanos);
        // A branch that is hardly ever taken costs less than a store.
        if nanos > self.max {
            cold_path();
            self.max = nanos;
        }
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    pub fn mean(&self) -> f64 {
        let count = self.count();
        if count == 0 { 0.0 } else { self.sum as f64 / count as f64 }
    }

    pub fn add(&mut self, other: &Latency) {
        self.counts.iter_mut().zip(&*other.counts).for_each(|(count, more)| *count += more);
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// What came since `before`, which then is as this is.
    pub fn since(&self, before: &mut Latency) -> Cells {
        let pairs = self.counts.iter().zip(before.counts.iter_mut()).enumerate();
        let new = pairs.filter_map(|(index, (now, before))| match now - std::mem::replace(before, *now) {
            0 => None,
            // There are fewer than 2^16 cells.
            count => Some((index as u16, count)),
        });
        new.collect()
    }

    /// Adds what was counted in cells. What their sum and their greatest were is known as well as the cells
    /// are fine.
    pub fn add_cells(&mut self, cells: &Cells) {
        for (index, count) in cells {
            let index = usize::from(*index) & (CELLS - 1);
            let (lowest, width) = bounds(index);
            self.counts[index] += count;
            let middle = lowest.saturating_add(width / 2);
            self.sum = self.sum.wrapping_add(middle.wrapping_mul(*count));
            self.max = self.max.max(lowest.saturating_add(width - 1));
        }
    }

    /// The same, where quantiles can be had. The middle of a cell stands for all of it.
    pub fn histogram(&self) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).expect("three significant digits are possible");
        for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (lowest, width) = bounds(index);
            // It grows with its values, up to 2^63.
            let middle = (lowest + width / 2).min(self.max).min(u64::MAX / 2);
            histogram.record_n(middle, *count).expect("a histogram that grows takes every value");
        }
        histogram
    }

    /// The cells that are not empty: from, to (not included), and how many.
    pub fn cells(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let cells = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        cells.map(|(index, count)| {
            let (lowest, width) = bounds(index);
            (lowest, lowest.saturating_add(width), *count)
        })
    }
}

/// Cells are as wide as the value is large: below 256 ns one for each, then 128 in each octave.
#[inline(always)]
fn cell(nanos: u64) -> usize {
    let shift = (nanos | 1 << FINENESS).ilog2() - FINENESS;
    (((shift as usize) << FINENESS) + (nanos >> shift) as usize) & (CELLS - 1)
}

/// The lowest value of a cell, and how many values it has.
fn bounds(cell: usize) -> (u64, u64) {
    let shift = (cell >> FINENESS).saturating_sub(1);
    (((cell - (shift << FINENESS)) as u64) << shift, 1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cells_follow_one_another() {
        for index in 0..58 * 128 - 1 {
            let (lowest, width) = bounds(index);
            let last = lowest + (width - 1);
            assert_eq!((cell(lowest), cell(last)), (index, index));
            if last < u64::MAX {
                assert_eq!(cell(last + 1), index + 1);
            }
        }
        assert_eq!(cell(u64::MAX), 57 * 128 + 127);
    }

    #[test]
    fn nothing_recorded_is_zero() {
        let latency = Latency::default();
        assert_eq!((latency.count(), latency.max(), latency.mean()), (0, 0, 0.0));
        assert_eq!(latency.histogram().value_at_quantile(0.99), 0);
    }

    #[test]
    fn any_value_is_taken() {
        let mut latency = Latency::default();
        latency.record(0);
        latency.record(u64::MAX);
        assert_eq!((latency.histogram().len(), latency.max()), (2, u64::MAX));
        assert_eq!(latency.cells().count(), 2);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(mut values in prop::collection::vec(0u64..1 << 40, 1..500)) {
            let mut latency = Latency::default();
            let mut other = Latency::default();
            let half = values.len() / 2;
            values[..half].iter().for_each(|value| latency.record(*value));
            values[half..].iter().for_each(|value| other.record(*value));
            latency.add(&other);
            values.sort_unstable();
            let histogram = latency.histogram();
            for percent in [1, 50, 90, 99, 100] {
                let rank = (values.len() * percent).div_ceil(100);
                let exact = values[rank - 1] as f64;
                let got = histogram.value_at_quantile(percent as f64 / 100.0) as f64;
                prop_assert!((got - exact).abs() <= exact * 0.01 + 1.0, "p{percent}: {got} for {exact}");
            }
            prop_assert_eq!(latency.max(), values[values.len() - 1]);
            let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
            prop_assert!((latency.mean() - mean).abs() <= mean * 1e-9);
        }
    }
}
