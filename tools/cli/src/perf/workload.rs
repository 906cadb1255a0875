//! What the requests of a run are, one after the other.

use kiovec::{IoContainer, Operation};

use super::job::Part;
use super::random::{Random, scale};

/// Decides what a container is submitted as next.
pub trait Workload {
    /// Whether deciding takes so long that the clock has to be read for each request.
    const EXACT_TIMES: bool;
    /// Whether there are both reads and writes, so that they have to be counted.
    const MIXED: bool;

    /// The container completed.
    fn completed(&mut self, io: &mut IoContainer, success: bool);

    /// Makes the container the next request, or returns false if there is none.
    fn next(&mut self, io: &mut IoContainer) -> bool;
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
    fn completed(&mut self, _io: &mut IoContainer, _success: bool) {}

    #[inline(always)]
    fn next(&mut self, io: &mut IoContainer) -> bool {
        let random = if RANDOM || MIXED { self.random.next() } else { 0 };
        let unit = if RANDOM { scale(random, self.part.units) } else { self.step() };
        io.set_lba(self.part.lba_of(unit));
        if MIXED {
            let operation = if self.mix.is_read(random) { Operation::Read } else { Operation::Write };
            io.set_operation(operation);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part { first: 100, units: 10, blocks: 8 };

    fn requests<W: Workload>(mut workload: W, n: usize) -> Vec<(Operation, u64)> {
        let mut io = IoContainer::read(0, kiovec::memory::MemoryChain::new());
        let mut request = || {
            assert!(workload.next(&mut io));
            (io.operation(), io.lba())
        };
        (0..n).map(|_| request()).collect()
    }

    #[test]
    fn sequential_requests_follow_one_another_and_begin_again() {
        let workload = Plain::<false, false>::new(PART, Mix::new(false, 100), Random::new(1));
        let lbas: Vec<u64> = requests(workload, 12).iter().map(|request| request.1).collect();
        assert_eq!(lbas[..3], [100, 108, 116]);
        assert_eq!(lbas[9..], [172, 100, 108]);
    }

    #[test]
    fn random_requests_are_aligned_and_reach_everything() {
        let workload = Plain::<true, false>::new(PART, Mix::new(true, 100), Random::new(1));
        let lbas: Vec<u64> = requests(workload, 1000).iter().map(|request| request.1).collect();
        assert!(lbas.iter().all(|lba| (100..180).contains(lba) && (lba - 100) % 8 == 0));
        assert!((0..10).all(|unit| lbas.contains(&(100 + 8 * unit))));
    }

    #[test]
    fn the_read_share_is_what_was_asked_for() {
        for (percent, reads) in [(0, 0..=0), (30, 2700..=3300), (100, 10_000..=10_000)] {
            let workload = Plain::<true, true>::new(PART, Mix::new(true, percent), Random::new(1));
            let got = requests(workload, 10_000).iter().filter(|r| r.0 == Operation::Read).count();
            assert!(reads.contains(&got), "{percent} %: {got} of 10000");
        }
    }
}
