//! What the requests of a run are, one after the other.

use kiovec::Operation;

use super::job::Part;
use super::places::{Places, Skew};
use super::random::{Random, scale};
use super::sizes::Split;

/// One request: what is done, and from which block on. How many blocks is the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    pub lba: u64,
}

/// Decides which request comes next.
pub trait Workload {
    /// Whether it fills memory and looks at it: that takes so long that the clock has to be read for each
    /// request.
    const TOUCHES_DATA: bool;
    /// Whether there are both reads and writes, so that they have to be counted.
    const MIXED: bool;

    /// A request completed, with `data` in its memory.
    #[inline(always)]
    fn completed<'d>(&mut self, _: Request, _: impl Iterator<Item = &'d mut [u8]>, _success: bool) {}

    /// The next request, if there is one.
    fn next(&mut self) -> Option<Request>;

    /// The same with the number of its size, where there are several.
    #[inline(always)]
    fn next_sized(&mut self) -> Option<(usize, Request)> {
        self.next().map(|request| (0, request))
    }

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

    /// Decides by a random number of its own.
    #[inline(always)]
    pub fn operation(self, random: &mut Random) -> Operation {
        if self.is_pure() {
            return if self.writes() { Operation::Write } else { Operation::Read };
        }
        if self.is_read(random.next()) { Operation::Read } else { Operation::Write }
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
    const TOUCHES_DATA: bool = false;
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

/// Reads and writes, some places more often than others.
#[derive(Debug)]
pub struct Skewed {
    part: Part,
    mix: Mix,
    places: Places,
    random: Random,
}

impl Skewed {
    pub fn new(part: Part, mix: Mix, skew: Skew, random: Random) -> Skewed {
        Skewed { part, mix, places: Places::new(part.units, Some(skew)), random }
    }
}

impl Workload for Skewed {
    const TOUCHES_DATA: bool = false;
    const MIXED: bool = true;

    #[inline(always)]
    fn next(&mut self) -> Option<Request> {
        let unit = self.places.draw(&mut self.random);
        Some(Request { operation: self.mix.operation(&mut self.random), lba: self.part.lba_of(unit) })
    }
}

/// Reads and writes of several sizes, each aligned to its size if it is at random.
#[derive(Debug)]
pub struct Varied {
    part: Part,
    mix: Mix,
    sizes: Vec<Size>,
    random: Random,
    /// Where a sequential one goes on, in blocks from the beginning.
    next: u64,
}

#[derive(Debug)]
struct Size {
    blocks: u64,
    /// Of 100 requests, so many are of this size or of one before it.
    up_to: u64,
    places: Places,
}

impl Varied {
    pub fn new(
        part: Part,
        mix: Mix,
        split: &Split,
        block: u32,
        skew: Option<Skew>,
        random: Random,
    ) -> Varied {
        let mut up_to = 0;
        let size = |(bytes, share): &(u64, u32)| {
            let blocks = (bytes / u64::from(block)).max(1);
            up_to += u64::from(*share);
            Size { blocks, up_to, places: Places::new(part.units * part.blocks / blocks, skew) }
        };
        Varied { part, mix, sizes: split.sizes().iter().map(size).collect(), random, next: 0 }
    }

    /// The next one's place, in blocks from the beginning.
    fn place(&mut self, index: usize) -> Option<u64> {
        let size = self.sizes.get(index)?;
        if self.mix.random {
            return Some(size.places.draw(&mut self.random) * size.blocks);
        }
        let end = self.part.units * self.part.blocks;
        let place = if self.next + size.blocks <= end { self.next } else { 0 };
        self.next = place + size.blocks;
        Some(place)
    }
}

impl Workload for Varied {
    const TOUCHES_DATA: bool = false;
    const MIXED: bool = true;

    fn next(&mut self) -> Option<Request> {
        self.next_sized().map(|(_, request)| request)
    }

    fn next_sized(&mut self) -> Option<(usize, Request)> {
        let dice = scale(self.random.next(), 100);
        let index = self.sizes.iter().position(|size| dice < size.up_to)?;
        let place = self.place(index)?;
        Some((
            index,
            Request { operation: self.mix.operation(&mut self.random), lba: self.part.first + place },
        ))
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
    fn several_sizes_have_their_shares_and_their_places() {
        let split: Split = "4k/25:16k/75".parse().unwrap();
        let mut work = Varied::new(PART, Mix::new(true, 100), &split, 4096, None, Random::new(3));
        let drawn: Vec<(usize, Request)> = (0..10_000).map(|_| work.next_sized().unwrap()).collect();
        let small = drawn.iter().filter(|(size, _)| *size == 0).count();
        assert!((2200..2800).contains(&small), "{small}");
        for (size, request) in drawn {
            let (blocks, place) = ([1, 4][size], request.lba - 100);
            assert!(place % blocks == 0 && place + blocks <= 80, "{request:?}");
        }
        let mut work = Varied::new(PART, Mix::new(false, 100), &split, 4096, None, Random::new(3));
        let mut next = 100;
        for _ in 0..1000 {
            let (size, request) = work.next_sized().unwrap();
            assert!(request.lba == next || (request.lba == 100 && next + [1, 4][size] > 180), "{request:?}");
            next = request.lba + [1, 4][size];
        }
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
