//! The model of a medium: for each block, the exact set of writes that it may hold the data of.
//!
//! A write may be on a block from the moment it is submitted. It is on the block for certain when it was
//! acknowledged, and then nothing can be any more that was over before it was submitted. What was in flight with it
//! may have come before or after it; that is also what is promised if pieces are carried out once more after a
//! reset. A write that failed, was ended early or went with its controller may or may not be there, in each block by
//! itself.
//!
//! Where a volatile cache can be lost, what was overwritten may be there again after a loss of power, until a flush has
//! succeeded that was submitted after the write that is in its place was acknowledged, or that write was one with
//! forced unit access. Knows writes and blocks; must not know how they are carried out.

use std::ops::Range;
use std::sync::OnceLock;

/// What every write writes some of.
const NOISE: usize = 1 << 20;
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

fn noise() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut chance = crate::chance::Chance::new(1);
        (0..NOISE + PAGE).map(|_| chance.next() as u8).collect()
    })
}

/// Makes what all seeds have in common, so that no seed is charged with it.
pub fn prepare() {
    let _ = noise();
}

/// A write: a number that no other has, and what it leaves on blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Its number, 1 or more.
    pub number: u32,
    /// It leaves zeros: a write zeroes or a deallocate.
    pub zeros: bool,
    /// When it was submitted, on a clock that ticks with each submission and completion.
    pub since: u64,
}

impl Write {
    /// What it leaves on a block of so many bytes.
    pub fn contents(self, lba: u64, block: usize) -> &'static [u8] {
        if self.zeros {
            return &ZEROS[..block];
        }
        let at = (u64::from(self.number) << 32 | lba).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44;
        &noise()[at as usize..at as usize + block]
    }
}

/// A write that a block may hold.
#[derive(Debug, Clone, Copy)]
struct Held {
    write: Write,
    /// When it was over; `None` if it is in flight.
    over: Option<u64>,
    /// When it was acknowledged.
    acknowledged: Option<u64>,
    /// When it became certain that the block does not hold it.
    gone: Option<u64>,
    /// No loss of power brings it back.
    for_good: bool,
}

impl Held {
    fn new(write: Write, over: Option<u64>) -> Held {
        Held { write, over, acknowledged: over, gone: None, for_good: false }
    }

    /// Another one is on the block that began when this one was over.
    fn leave(&mut self, now: u64, for_good: bool) {
        self.gone.get_or_insert(now);
        self.for_good |= for_good;
    }
}

/// A medium, or what a stack of layers shows as one.
#[derive(Debug)]
pub struct Model {
    block: usize,
    blocks: Vec<Vec<Held>>,
    /// What is written may be lost until it is flushed.
    cached: bool,
    /// When the power failed last.
    lost: u64,
    /// How often a flush has said so.
    told: u64,
}

/// What a compare must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// No difference is possible.
    pub equal: bool,
    /// A difference is possible.
    pub other: bool,
}

impl Model {
    /// Blocks of zeros.
    pub fn new(block: usize, blocks: u64) -> Model {
        let zeros = Held::new(Write { number: 0, zeros: true, since: 0 }, Some(0));
        Model { block, blocks: vec![vec![zeros]; blocks as usize], cached: false, lost: 0, told: 0 }
    }

    /// The same, with a volatile cache in front of the medium if it is `cached`.
    pub fn cached(self, cached: bool) -> Model {
        Model { cached, ..self }
    }

    /// Whether what is written may be lost until it is flushed.
    pub fn is_cached(&self) -> bool {
        self.cached
    }

    /// Bytes of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    fn range(&mut self, blocks: &Range<u64>) -> &mut [Vec<Held>] {
        &mut self.blocks[blocks.start as usize..blocks.end as usize]
    }

    /// A write is submitted. True if another one is in flight on the same block.
    pub fn begin(&mut self, blocks: Range<u64>, write: Write) -> bool {
        let mut overlaps = false;
        for held in self.range(&blocks) {
            overlaps |= held.iter().any(|held| held.over.is_none());
            held.push(Held::new(write, None));
        }
        overlaps
    }

    /// A write was not accepted: it is nowhere.
    pub fn withdraw(&mut self, blocks: Range<u64>, write: Write) {
        for held in self.range(&blocks) {
            held.retain(|held| held.write != write);
        }
    }

    /// A write is over, and may or may not be on these blocks.
    pub fn over(&mut self, blocks: Range<u64>, write: Write, now: u64) {
        for held in self.range(&blocks).iter_mut().flatten().filter(|held| held.write == write) {
            held.over.get_or_insert(now);
        }
    }

    /// A write is on these blocks, or was. What nobody asks for any more is forgotten: `oldest` is when the first of
    /// those requests was submitted that are in flight. It is `durable` if it was written with forced unit access.
    pub fn acknowledged(&mut self, blocks: Range<u64>, write: Write, now: u64, oldest: u64, durable: bool) {
        self.over(blocks.clone(), write, now);
        let for_good = durable || !self.cached;
        // What was in flight when the power failed may have been carried out before, and be lost.
        let certain = for_good || write.since > self.lost;
        for held in self.range(&blocks) {
            for held in held.iter_mut() {
                match held.write == write {
                    true => _ = held.acknowledged.get_or_insert(now),
                    false if certain && held.over.is_some_and(|over| over <= write.since) => {
                        held.leave(now, for_good);
                    }
                    false => {}
                }
            }
            forget(held, oldest);
        }
    }

    /// A flush has succeeded that was submitted at `since`: what was acknowledged before stays, whatever happens.
    pub fn flushed(&mut self, since: u64, now: u64, oldest: u64) {
        if !self.cached {
            return;
        }
        for held in &mut self.blocks {
            let flushed = held.iter().filter(|held| held.acknowledged.is_some_and(|at| at < since));
            let newest = flushed.map(|held| held.write.since).max().unwrap_or(0);
            for held in held.iter_mut() {
                if held.write.since < newest && held.over.is_some_and(|over| over <= newest) {
                    held.leave(now, true);
                }
                held.for_good |= held.gone.is_some_and(|gone| gone < since);
            }
            forget(held, oldest);
        }
    }

    /// A flush has said that the cache was lost: what was acknowledged before is to be written again, and no flush
    /// covers it any more.
    pub fn told_of_loss(&mut self) {
        self.blocks.iter_mut().flatten().for_each(|held| held.acknowledged = None);
        self.told += 1;
    }

    /// How often a flush has said that the cache was lost.
    pub fn losses_told(&self) -> u64 {
        self.told
    }

    /// The power has failed: what was overwritten may be there again.
    pub fn lost(&mut self, now: u64) {
        self.lost = now;
        for held in self.blocks.iter_mut().flatten().filter(|held| !held.for_good) {
            held.gone = None;
        }
    }

    /// Whether these bytes are what the blocks from `lba` on may have contained at some time from `since` on.
    pub fn check(&self, lba: u64, bytes: &[u8], since: u64) -> Result<(), String> {
        for (lba, bytes) in (lba..).zip(bytes.chunks(self.block)) {
            let block = &self.blocks[lba as usize];
            let mut legal = block.iter().filter(|held| held.gone.is_none_or(|gone| gone > since));
            if !legal.any(|held| held.write.contents(lba, self.block) == bytes) {
                return Err(self.explain(lba, bytes, since));
            }
        }
        Ok(())
    }

    /// After a check: what was seen on a block that nothing was in flight on stays there.
    pub fn seen(&mut self, lba: u64, bytes: &[u8], since: u64, now: u64) {
        // It may have been seen before the power failed, and be gone since.
        if self.cached && since <= self.lost {
            return;
        }
        let size = self.block;
        for (lba, bytes) in (lba..).zip(bytes.chunks(size)) {
            let held = &mut self.blocks[lba as usize];
            let quiet = |held: &Held| held.gone.is_some() || held.over.is_some_and(|over| over <= since);
            if held.len() > 1 && held.iter().all(quiet) {
                for held in held.iter_mut().filter(|held| held.write.contents(lba, size) != bytes) {
                    held.gone.get_or_insert(now);
                }
            }
        }
    }

    /// What comparing these bytes with blocks may come to.
    pub fn compare(&self, lba: u64, bytes: &[u8], since: u64) -> Comparison {
        let mut comparison = Comparison { equal: true, other: false };
        for (lba, bytes) in (lba..).zip(bytes.chunks(self.block)) {
            let legal =
                self.blocks[lba as usize].iter().filter(|held| held.gone.is_none_or(|gone| gone > since));
            let (mut equal, mut other) = (false, false);
            for held in legal {
                let same = held.write.contents(lba, self.block) == bytes;
                (equal, other) = (equal | same, other | !same);
            }
            comparison.equal &= equal;
            comparison.other |= other;
        }
        comparison
    }

    /// A write that a block may hold now: the latest.
    pub fn latest(&self, lba: u64) -> Option<Write> {
        self.blocks[lba as usize].iter().rfind(|held| held.gone.is_none()).map(|held| held.write)
    }

    #[cold]
    fn explain(&self, lba: u64, bytes: &[u8], since: u64) -> String {
        let held = &self.blocks[lba as usize];
        let last = self.blocks.iter().flatten().map(|held| held.write.number).max().unwrap_or(0);
        let is = |number: &u32| {
            Write { number: *number, zeros: false, since: 0 }.contents(lba, self.block) == bytes
        };
        let found = match bytes.iter().all(|byte| *byte == 0) {
            true => "zeros".into(),
            false => match (1..=last).find(is) {
                Some(number) => format!("the data of write {number}"),
                None => format!("the data of no write of it, {:02x?}...", &bytes[..8]),
            },
        };
        let may: Vec<String> = held
            .iter()
            .filter(|held| held.gone.is_none_or(|gone| gone > since))
            .map(|Held { write, over, .. }| {
                let what = if write.zeros { "zeros of" } else { "write" };
                let state = if over.is_some() { "over" } else { "in flight" };
                format!("{what} {} ({state})", write.number)
            })
            .collect();
        format!("block {lba} has {found}; it may have: {}", may.join(", "))
    }
}

/// Forgets what nobody asks for any more, and no loss of power brings back.
fn forget(held: &mut Vec<Held>, oldest: u64) {
    held.retain(|held| !held.for_good || held.gone.is_none_or(|gone| gone > oldest));
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn write(number: u32, since: u64) -> Write {
        Write { number, zeros: false, since }
    }

    fn allows(model: &Model, write: Write, since: u64) -> bool {
        model.check(0, write.contents(0, BLOCK), since).is_ok()
    }

    #[test]
    fn what_was_over_before_is_overwritten() {
        let mut model = Model::new(BLOCK, 1);
        let (a, b) = (write(1, 1), write(2, 3));
        model.begin(0..1, a);
        assert!(allows(&model, a, 1) && !allows(&model, b, 1));
        model.acknowledged(0..1, a, 2, 0, false);
        model.begin(0..1, b);
        assert!(allows(&model, a, 3) && allows(&model, b, 3));
        model.acknowledged(0..1, b, 4, 0, false);
        assert!(!allows(&model, a, 4) && allows(&model, b, 4));
        // A read that was submitted before that may have come first.
        assert!(allows(&model, a, 3));
    }

    #[test]
    fn writes_in_flight_together_are_not_ordered() {
        let mut model = Model::new(BLOCK, 1);
        let (a, b) = (write(1, 1), write(2, 2));
        assert!(!model.begin(0..1, a));
        assert!(model.begin(0..1, b));
        model.acknowledged(0..1, b, 3, 0, false);
        model.acknowledged(0..1, a, 4, 0, false);
        assert!(allows(&model, a, 4) && allows(&model, b, 4));
        model.seen(0, b.contents(0, BLOCK), 5, 6);
        assert!(!allows(&model, a, 6) && allows(&model, b, 6));
    }

    #[test]
    fn a_write_that_failed_may_be_there() {
        let mut model = Model::new(BLOCK, 1);
        let (a, b) = (write(1, 1), write(2, 3));
        model.begin(0..1, a);
        model.acknowledged(0..1, a, 2, 2, false);
        model.begin(0..1, b);
        model.over(0..1, b, 4);
        assert!(allows(&model, a, 5) && allows(&model, b, 5));
        let both = model.compare(0, a.contents(0, BLOCK), 5);
        assert_eq!(both, Comparison { equal: true, other: true });
    }

    #[test]
    fn what_was_overwritten_comes_back_until_it_is_flushed() {
        let mut model = Model::new(BLOCK, 1).cached(true);
        let (a, b, c) = (write(1, 1), write(2, 3), write(3, 20));
        model.begin(0..1, a);
        model.acknowledged(0..1, a, 2, 2, false);
        model.begin(0..1, b);
        model.acknowledged(0..1, b, 4, 4, false);
        assert!(!allows(&model, a, 5) && allows(&model, b, 5));
        // Submitted before the second one was acknowledged.
        model.flushed(3, 6, 6);
        model.lost(7);
        assert!(allows(&model, a, 8) && allows(&model, b, 8));
        model.flushed(9, 10, 10);
        model.lost(11);
        assert!(!allows(&model, a, 12) && allows(&model, b, 12));
        model.begin(0..1, c);
        model.acknowledged(0..1, c, 21, 21, true);
        model.lost(22);
        assert!(!allows(&model, b, 23) && allows(&model, c, 23));
    }

    #[test]
    fn what_was_in_flight_when_the_power_failed_may_be_lost_until_it_is_flushed() {
        let mut model = Model::new(BLOCK, 1).cached(true);
        let (a, b) = (write(1, 1), write(2, 3));
        model.begin(0..1, a);
        model.acknowledged(0..1, a, 2, 2, false);
        model.flushed(3, 3, 3);
        model.begin(0..1, b);
        model.lost(4);
        model.acknowledged(0..1, b, 5, 5, false);
        assert!(allows(&model, a, 6) && allows(&model, b, 6));
        model.flushed(6, 7, 7);
        assert!(!allows(&model, a, 8) && allows(&model, b, 8));
    }
}
