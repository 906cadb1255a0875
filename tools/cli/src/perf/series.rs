//! How a measurement went: rate and latency of each slice of it, over all workers.

use super::course::Tally;
use super::latency::Latency;

/// One slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Seconds from the beginning of the measurement to the end of the slice.
    pub at: f64,
    pub iops: f64,
    /// Nanoseconds.
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// A slice shorter than this share of the longest says little: it is what was left at the end.
const TOO_SHORT: f64 = 0.25;

/// The slices in order. A worker that was not running when one began has it in an earlier one.
pub fn over_time(tallies: &[Tally]) -> Vec<Point> {
    let slices = || tallies.iter().flat_map(|tally| &tally.slices);
    let Some(last) = slices().map(|slice| slice.number).max() else { return vec![] };
    let longest = slices().map(|slice| slice.seconds).fold(0.0, f64::max);
    let (mut points, mut at) = (Vec::new(), 0.0);
    for number in 0..=last {
        let (mut latency, mut iops, mut seconds) = (Latency::default(), 0.0, 0.0f64);
        for slice in slices().filter(|slice| slice.number == number) {
            let ios: u64 = slice.cells.iter().map(|cell| cell.1).sum();
            iops += ios as f64 / slice.seconds.max(1e-9);
            seconds = seconds.max(slice.seconds);
            latency.add_cells(&slice.cells);
        }
        at += seconds;
        if seconds > longest * TOO_SHORT {
            let histogram = latency.histogram();
            let quantile = |quantile| histogram.value_at_quantile(quantile).min(latency.max());
            points.push(Point { at, iops, p50: quantile(0.5), p99: quantile(0.99), max: latency.max() });
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::meter::Slice;

    fn worker(slices: &[(u32, f64, u64, u64)]) -> Tally {
        let slices = slices.iter().map(|(number, seconds, nanos, ios)| {
            let (mut latency, mut before) = (Latency::default(), Latency::default());
            (0..*ios).for_each(|_| latency.record(*nanos));
            Slice { number: *number, seconds: *seconds, cells: latency.since(&mut before) }
        });
        Tally { slices: slices.collect(), ..Tally::default() }
    }

    #[test]
    fn workers_are_summed_slice_by_slice() {
        let workers = [
            worker(&[(0, 1.0, 100, 10), (1, 1.0, 200, 20), (2, 0.01, 1, 500)]),
            worker(&[(0, 2.0, 110, 30), (1, 1.0, 90, 1)]),
        ];
        let points = over_time(&workers);
        assert_eq!(points.len(), 2, "the rest of a slice is left out: {points:?}");
        assert_eq!((points[0].at, points[0].iops, points[0].p50), (2.0, 25.0, 110));
        assert_eq!((points[1].at, points[1].iops), (3.0, 21.0));
        assert!((199..=201).contains(&points[1].p50), "{points:?}");
        assert!(over_time(&[Tally::default()]).is_empty());
    }
}
