//! What the requests of a run are, one after the other.

use kiovec::Operation;

use super::job::Part;
use super::random::{Random, scale};

/// One request: what is done, and from which block on. How many blocks is the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    pub lba: u64,
}

/// Decides which request comes next.
pub trait Workload {
    /// Whether deciding takes so long that the clock has to be read for each request.
    const EXACT_TIMES: bool;
    /// Whether there are both reads and writes, so that they have to be counted.
    const MIXED: bool;

    /// A request completed, with `data` in its memory.
    #[inline(always)]
    fn completed<'d>(&mut self, _: Request, _: impl Iterator<Item = &'d mut [u8]>, _success: bool) {}

    /// The next request, if there is one.
    fn next(&mut self) -> Option<Request>;

    /// Makes a request's memory ready for it.
    #[inline(always)]
    fn prepare<'d>(&mut self, _: Request, _: impl Iterator<Item = &'d mut [u8]>) {}
}

/// Which requests a workload is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    pub random: bool,
    /// Of 2^32 requests, so many are reads.
    reads: u64,
}

impl Mix {
    pub fn new(random: bool, read_percent: u8) -> Mix {
        Mix { random, reads: (u64::from(read_percent) << 32) / 100 }
    }

    /// Whether there are any writes in it.
    pub fn writes(self) -> bool {
        self.reads < 1 << 32
    }

    /// Whether there is anything to decide.
    pub fn is_pure(self) -> bool {
        self.reads == 0 || !self.writes()
    }

    /// Decides by a random number's lower half: the upper one decides where.
    #[inline(always)]
    pub fn is_read(self, random: u64) -> bool {
        random & 0xffff_ffff < self.reads
    }
}

/// Reads and writes whose data nobody looks at. What does not change in a run is a constant, so that
/// the loop is as short as the workload allows.
#[derive(Debug)]
pub struct Plain<const RANDOM: bool, const MIXED: bool> {
    part: Part,
    mix: Mix,
    random: Random,
    next: u64,
}

impl<const RANDOM: bool, const MIXED: bool> Plain<RANDOM, MIXED> {
    pub fn new(part: Part, mix: Mix, random: Random) -> Self {
        assert!(RANDOM == mix.random && (MIXED || mix.is_pure()));
        Plain { part, mix, random, next: 0 }
    }

    #[inline(always)]
    fn step(&mut self) -> u64 {
        let unit = self.next;
        self.next = if unit + 1 < self.part.units { unit + 1 } else { 0 };
        unit
    }
}

impl<const RANDOM: bool, const MIXED: bool> Workload for Plain<RANDOM, MIXED> {
    const EXACT_TIMES: bool = false;
    const MIXED: bool = MIXED;

    #[inline(always)]
    fn next(&mut self) -> Option<Request> {
        let random = if RANDOM || MIXED { self.random.next() } else { 0 };
        let unit = if RANDOM { scale(random, self.part.units) } else { self.step() };
        let read = if MIXED { self.mix.is_read(random) } else { !self.mix.writes() };
        let operation = if read { Operation::Read } else { Operation::Write };
        Some(Request { operation, lba: self.part.lba_of(unit) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part { first: 100, units: 10, blocks: 8 };

    fn requests(mut workload: impl Workload, n: usize) -> Vec<Request> {
        (0..n).map(|_| workload.next().unwrap()).collect()
    }

    #[test]
    fn sequential_requests_follow_one_another_and_begin_again() {
        let workload = Plain::<false, false>::new(PART, Mix::new(false, 100), Random::new(1));
        let lbas: Vec<u64> = requests(workload, 12).iter().map(|request| request.lba).collect();
        assert_eq!(lbas[..3], [100, 108, 116]);
        assert_eq!(lbas[9..], [172, 100, 108]);
    }

    #[test]
    fn random_requests_are_aligned_and_reach_everything() {
        let workload = Plain::<true, false>::new(PART, Mix::new(true, 100), Random::new(1));
        let lbas: Vec<u64> = requests(workload, 1000).iter().map(|request| request.lba).collect();
        assert!(lbas.iter().all(|lba| (100..180).contains(lba) && (lba - 100) % 8 == 0));
        assert!((0..10).all(|unit| lbas.contains(&(100 + 8 * unit))));
    }

    #[test]
    fn the_read_share_is_what_was_asked_for() {
        for (percent, reads) in [(0, 0..=0), (30, 2700..=3300), (100, 10_000..=10_000)] {
            let workload = Plain::<true, true>::new(PART, Mix::new(true, percent), Random::new(1));
            let got = requests(workload, 10_000).iter().filter(|r| r.operation == Operation::Read).count();
            assert!(reads.contains(&got), "{percent} %: {got} of 10000");
        }
    }
}
