//! Which legs of a mirror are in use, whose turn it is to be read, and what each has done.
//!
//! Knows what failed for which cause; must not know requests.

use crate::defects::Defect;
use crate::request::Cause;

/// Legs of a mirror, at most: a mask of them is one byte.
pub(super) const MAX_LEGS: usize = 8;

/// What one leg of a [`Mirror`](super::Mirror) did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LegCounts {
    /// Reads that it was given.
    pub reads: u64,
    /// Those of them that it failed, and not because of the request.
    pub failed_reads: u64,
    /// Why it is not in use any more: it failed to write what another leg wrote, or its controller is
    /// lost.
    pub ejected: Option<Cause>,
}

/// The legs.
#[derive(Debug)]
pub(super) struct Roster {
    /// Those in use, a bit for each. One is, always.
    live: u8,
    /// The leg whose turn it is, or the next one in use.
    turn: u32,
    counts: [LegCounts; MAX_LEGS],
    /// How each failed last to write.
    failed_write: [Option<Cause>; MAX_LEGS],
}

/// The bit of a leg.
pub(super) const fn bit(leg: usize) -> u8 {
    1 << leg
}

/// Whether a cause speaks against the leg, and not against the request, or whoever made it.
pub(super) fn blames_leg(cause: Cause) -> bool {
    !matches!(cause, Cause::Cancelled | Cause::Expired | Cause::Refused)
}

impl Roster {
    pub(super) fn new(legs: usize) -> Roster {
        let live = u8::MAX >> (MAX_LEGS - legs);
        Roster { live, turn: 0, counts: Default::default(), failed_write: Default::default() }
    }

    /// The legs in use.
    pub(super) fn live(&self) -> u8 {
        self.live
    }

    /// The only leg in use, if it is the only one.
    pub(super) fn last(&self) -> Option<usize> {
        self.live.is_power_of_two().then_some(self.live.trailing_zeros() as usize)
    }

    pub(super) fn counts(&self, leg: usize) -> &LegCounts {
        &self.counts[leg]
    }

    /// The leg to read from: they take turns.
    pub(super) fn next(&mut self) -> usize {
        let leg = self.another(0).expect("one leg is in use, always");
        self.turn = (leg as u32 + 1) % MAX_LEGS as u32;
        leg
    }

    /// A leg to read from, except some. `None` if no other is in use. It is nobody's turn: else a leg that
    /// fails would have its turn each time.
    pub(super) fn another(&mut self, except: u8) -> Option<usize> {
        let legs = self.live & !except;
        if legs == 0 {
            return None;
        }
        let later = legs >> self.turn << self.turn;
        let leg = if later != 0 { later } else { legs }.trailing_zeros() as usize;
        self.counts[leg].reads += 1;
        Some(leg)
    }

    /// A leg failed to read. Whether another one may do better.
    #[cold]
    pub(super) fn read_failed(&mut self, leg: usize, cause: Cause) -> bool {
        let blamed = blames_leg(cause);
        self.counts[leg].failed_reads += u64::from(blamed);
        blamed
    }

    /// A leg that failed to read, and left the read its memory, is lost if its cause says so: then it goes, unless it
    /// is the last.
    #[cold]
    pub(super) fn eject_lost(&mut self, leg: usize, cause: Cause) -> bool {
        let lost = cause == Cause::ControllerLost;
        if lost && self.live != bit(leg) {
            self.eject(leg, cause);
        }
        lost
    }

    /// A leg failed to write, which does not matter as long as no other leg did better.
    #[cold]
    pub(super) fn write_failed(&mut self, leg: usize, cause: Cause) {
        self.failed_write[leg] = Some(cause);
    }

    /// Legs have not got what others have: they go.
    #[cold]
    pub(super) fn eject_stale(&mut self, legs: u8) {
        if crate::defects::is(Defect::KeepStaleLeg) {
            return;
        }
        for leg in (0..MAX_LEGS).filter(|leg| legs & bit(*leg) != 0) {
            if let Some(cause) = self.failed_write[leg] {
                self.eject(leg, cause);
            }
        }
    }

    fn eject(&mut self, leg: usize, cause: Cause) {
        if self.live & bit(leg) != 0 {
            self.live &= !bit(leg);
            self.counts[leg].ejected = Some(cause);
        }
        assert!(self.live != 0, "the last leg stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns() {
        let mut roster = Roster::new(3);
        let turns: Vec<_> = (0..6).map(|_| roster.next()).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        assert_eq!((roster.next(), roster.another(bit(0)), roster.next()), (0, Some(1), 1));
        assert!(roster.eject_lost(2, Cause::ControllerLost));
        let turns: Vec<_> = (0..4).map(|_| roster.next()).collect();
        assert_eq!(turns, [0, 1, 0, 1]);
        assert_eq!(roster.another(bit(0) | bit(1)), None);
        assert_eq!(roster.counts(0).reads, 5);
        let mut roster = Roster::new(8);
        let turns: Vec<_> = (0..9).map(|_| roster.next()).collect();
        assert_eq!(turns, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
    }

    #[test]
    fn who_is_ejected() {
        let mut roster = Roster::new(2);
        for cause in [Cause::Cancelled, Cause::Expired, Cause::Refused] {
            assert!(!roster.read_failed(0, cause));
        }
        assert!(roster.read_failed(0, Cause::Corrupt), "another leg may have it");
        assert!(!roster.eject_lost(0, Cause::Corrupt));
        assert_eq!((roster.counts(0).failed_reads, roster.last()), (1, None));
        roster.write_failed(0, Cause::Corrupt);
        roster.eject_stale(bit(0));
        assert_eq!((roster.counts(0).ejected, roster.last()), (Some(Cause::Corrupt), Some(1)));
        assert!(roster.eject_lost(1, Cause::ControllerLost));
        assert_eq!((roster.counts(1).ejected, roster.last()), (None, Some(1)));
    }
}
