//! Who wrote what last: a generation for each I/O-sized unit of a range, and whether one is under
//! way.
//!
//! I/Os of a run are all of one size and aligned to it from the range's beginning, so two of them
//! concern the same blocks or none in common: one word for all blocks of a unit is enough. While an
//! I/O is under way, its unit is taken, so that no two on the same blocks are ever in flight.

/// An I/O on the unit is in flight.
const TAKEN: u32 = 1 << 31;
/// The last write completed, so the contents are known.
const KNOWN: u32 = 1 << 30;
const GENERATION: u32 = KNOWN - 1;

/// The generations of a range. 0 is never written.
#[derive(Debug)]
pub struct Ledger {
    units: Box<[u32]>,
}

impl Ledger {
    pub fn new(units: u64) -> Ledger {
        Ledger { units: vec![0; units as usize].into_boxed_slice() }
    }

    /// Bytes that a ledger takes.
    pub fn bytes(units: u64) -> u64 {
        units.saturating_mul(size_of::<u32>() as u64)
    }

    pub fn len(&self) -> u64 {
        self.units.len() as u64
    }

    /// The generation that a read of the unit must return, if that is known.
    pub fn expected(&self, unit: u64) -> Option<u32> {
        let word = self.units[unit as usize];
        (word & KNOWN != 0).then_some(word & GENERATION)
    }

    /// Takes the first unit from `unit` on, in a circle, that no I/O concerns. There is one as long
    /// as fewer I/Os are in flight than there are units.
    pub fn take_near(&mut self, unit: u64) -> Option<u64> {
        let len = self.len();
        let mut circle = (unit..len).chain(0..unit);
        let free = circle.find(|unit| self.units[*unit as usize] & TAKEN == 0)?;
        self.units[free as usize] |= TAKEN;
        Some(free)
    }

    /// A write begins, and gives the unit the generation returned. Its contents are unknown until
    /// the write has succeeded.
    pub fn begin_write(&mut self, unit: u64) -> u32 {
        let word = &mut self.units[unit as usize];
        let next = (*word & GENERATION) + 1;
        let generation = if next > GENERATION { 1 } else { next };
        *word = *word & TAKEN | generation;
        generation
    }

    /// A write succeeded.
    pub fn written(&mut self, unit: u64) {
        self.units[unit as usize] |= KNOWN;
    }

    /// The I/O on the unit is over.
    pub fn release(&mut self, unit: u64) {
        self.units[unit as usize] &= !TAKEN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_known_from_its_first_completed_write_on() {
        let mut ledger = Ledger::new(4);
        assert_eq!(ledger.take_near(2), Some(2));
        assert_eq!(ledger.expected(2), None);
        assert_eq!(ledger.begin_write(2), 1);
        assert_eq!(ledger.expected(2), None);
        ledger.written(2);
        ledger.release(2);
        assert_eq!(ledger.expected(2), Some(1));
    }

    #[test]
    fn a_write_that_failed_leaves_unknown_contents() {
        let mut ledger = Ledger::new(1);
        for generation in 1..4 {
            ledger.take_near(0);
            assert_eq!(ledger.begin_write(0), generation);
            if generation < 3 {
                ledger.written(0);
            }
            ledger.release(0);
        }
        assert_eq!(ledger.expected(0), None);
    }

    #[test]
    fn taken_units_are_left_alone() {
        let mut ledger = Ledger::new(3);
        let taken: Vec<_> = (0..4).map(|_| ledger.take_near(1)).collect();
        assert_eq!(taken, [Some(1), Some(2), Some(0), None]);
        ledger.release(2);
        assert_eq!(ledger.take_near(0), Some(2));
    }

    #[test]
    fn generations_begin_again_after_the_last() {
        let mut ledger = Ledger::new(1);
        ledger.units[0] = TAKEN | KNOWN | GENERATION;
        assert_eq!(ledger.begin_write(0), 1);
        assert_eq!(ledger.units[0], TAKEN | 1);
    }
}
