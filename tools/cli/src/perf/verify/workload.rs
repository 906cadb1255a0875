//! The verifying workload: which block is written or read next, and checking what was read.

use kiovec::Operation;

use super::{Ledger, Mismatch, Pattern};
use crate::perf::job::Part;
use crate::perf::places::{Places, Skew};
use crate::perf::random::Random;
use crate::perf::workload::{Mix, Request, Workload};

/// What the workload is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Writes every unit once, so that there is something to read.
    Fill,
    /// Does what it was asked to, for as long as it is asked to.
    Run,
    /// Reads every unit whose contents are known.
    ReadBack,
}

/// What was verified, in blocks.
#[derive(Debug, Clone, Default)]
pub struct Checks {
    /// Blocks that were read and compared.
    pub checked: u64,
    /// Blocks that were read, and of which nobody knew what they hold: a write had failed.
    pub unchecked: u64,
    /// Blocks that were not as expected.
    pub mismatches: u64,
    pub first: Option<Mismatch>,
}

/// Reads and writes of a part of a namespace in which each block is known.
#[derive(Debug)]
pub struct Verified {
    stage: Stage,
    part: Part,
    mix: Mix,
    block_size: usize,
    pattern: Pattern,
    ledger: Ledger,
    places: Places,
    random: Random,
    next: u64,
    pub checks: Checks,
}

impl Verified {
    pub fn new(
        part: Part,
        mix: Mix,
        block_size: u32,
        seed: u64,
        skew: Option<Skew>,
        random: Random,
    ) -> Verified {
        Verified {
            stage: Stage::Fill,
            part,
            mix,
            block_size: block_size as usize,
            // One seed for all workers: then data of another worker's part is recognised.
            pattern: Pattern::new(seed, block_size as usize),
            ledger: Ledger::new(part.units),
            places: Places::new(part.units, skew),
            random,
            next: 0,
            checks: Checks::default(),
        }
    }

    /// Begins a stage. Nothing is in flight.
    pub fn begin(&mut self, stage: Stage) {
        self.stage = stage;
        self.next = 0;
    }

    /// The next I/O's unit, taken, and what is done to it.
    fn choose(&mut self) -> Option<(u64, Operation)> {
        match self.stage {
            Stage::Fill => {
                let unit = self.advance(|_, _| true)?;
                Some((unit, Operation::Write))
            }
            Stage::ReadBack => {
                let unit = self.advance(|ledger, unit| ledger.expected(unit).is_some())?;
                Some((unit, Operation::Read))
            }
            Stage::Run => self.choose_any(),
        }
    }

    /// The next unit in order of which `wanted` holds, until all have had their turn.
    fn advance(&mut self, wanted: impl Fn(&Ledger, u64) -> bool) -> Option<u64> {
        let unit = (self.next..self.part.units).find(|unit| wanted(&self.ledger, *unit))?;
        self.next = unit + 1;
        self.ledger.take_near(unit)
    }

    fn choose_any(&mut self) -> Option<(u64, Operation)> {
        let random = self.random.next();
        let wanted = match self.mix.random {
            true => self.places.draw(&mut self.random),
            false => self.next,
        };
        let unit = self.ledger.take_near(wanted)?;
        self.next = if unit + 1 < self.part.units { unit + 1 } else { 0 };
        // A mixed workload writes first: what nobody has written cannot be checked.
        let known = self.ledger.expected(unit).is_some() || !self.mix.writes();
        let operation = if known && self.mix.is_read(random) { Operation::Read } else { Operation::Write };
        Some((unit, operation))
    }

    fn check<'d>(&mut self, first: u64, data: impl Iterator<Item = &'d mut [u8]>) {
        let expected = self.ledger.expected(self.part.unit_at(first));
        let blocks = data.flat_map(|data| data.chunks_exact(self.block_size));
        for (lba, block) in (first..).zip(blocks) {
            let Some(generation) = expected else {
                self.checks.unchecked += 1;
                continue;
            };
            self.checks.checked += 1;
            if let Err(mismatch) = self.pattern.check(lba, generation, block) {
                self.checks.mismatches += 1;
                self.checks.first.get_or_insert(mismatch);
            }
        }
    }
}

impl Workload for Verified {
    /// Filling and checking take longer than many an I/O.
    const TOUCHES_DATA: bool = true;
    const MIXED: bool = true;

    fn completed<'d>(&mut self, request: Request, data: impl Iterator<Item = &'d mut [u8]>, success: bool) {
        let unit = self.part.unit_at(request.lba);
        match request.operation {
            Operation::Write if success => self.ledger.written(unit),
            Operation::Read if success => self.check(request.lba, data),
            _ => {}
        }
        self.ledger.release(unit);
    }

    fn next(&mut self) -> Option<Request> {
        let (unit, operation) = self.choose()?;
        Some(Request { operation, lba: self.part.lba_of(unit) })
    }

    fn prepare<'d>(&mut self, request: Request, data: impl Iterator<Item = &'d mut [u8]>) {
        if request.operation == Operation::Read {
            data.for_each(Pattern::poison);
            return;
        }
        let generation = self.ledger.begin_write(self.part.unit_at(request.lba));
        let blocks = data.flat_map(|data| data.chunks_exact_mut(self.block_size));
        (request.lba..).zip(blocks).for_each(|(lba, block)| self.pattern.fill(lba, generation, block));
    }
}
