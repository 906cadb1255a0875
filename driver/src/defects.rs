//! Deliberate defects, to show that the tests find them. Never for use: without the feature `defects`, which
//! no other crate may turn on, none of this is compiled in, and [`is`] is a constant `false`.
//!
//! A hook is one line where the right thing is left out: `if crate::defects::is(Defect::X) { return; }`. Knows
//! names; must not know what is broken by them.

#[cfg(feature = "defects")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A deliberate defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A completion is consumed, and nobody is told.
    LoseCompletion = 1,
    /// A request's memory is free while a command may still write it.
    ReleaseMemoryEarly,
    /// A piece of a request is issued twice.
    ReissueTwice,
    /// A merged command completes all of its requests but one.
    SkipMergedConstituent,
    /// A completion with a slot's index and another generation is taken for that slot's.
    MissGenerationCheck,
    /// An asynchronous event is taken, and no further one asked for.
    ForgetToRearmEvents,
    /// A cache keeps a line that is being written.
    KeepStaleLine,
    /// A mirror goes on to read from a leg that missed a write.
    KeepStaleLeg,
    /// A controller that waits for its register is not told of a new tail or head.
    ForgetDoorbell,
}

#[cfg(feature = "defects")]
static SELECTED: AtomicU8 = AtomicU8::new(0);

/// Whether the driver is to have a defect.
#[cfg(feature = "defects")]
pub(crate) fn is(defect: Defect) -> bool {
    SELECTED.load(Ordering::Relaxed) == defect as u8
}

/// Whether the driver is to have a defect: no.
#[cfg(not(feature = "defects"))]
#[inline(always)]
pub(crate) const fn is(_: Defect) -> bool {
    false
}

/// From now on, the driver has this defect in all threads, and no other; or none.
#[cfg(feature = "defects")]
pub fn select(defect: Option<Defect>) {
    SELECTED.store(defect.map_or(0, |defect| defect as u8), Ordering::Relaxed);
}

#[cfg(feature = "defects")]
impl Defect {
    /// All there are.
    pub const ALL: &[Defect] = &[
        Defect::LoseCompletion,
        Defect::ReleaseMemoryEarly,
        Defect::ReissueTwice,
        Defect::SkipMergedConstituent,
        Defect::MissGenerationCheck,
        Defect::ForgetToRearmEvents,
        Defect::KeepStaleLine,
        Defect::KeepStaleLeg,
        Defect::ForgetDoorbell,
    ];

    /// Its name in a command line.
    pub fn name(self) -> &'static str {
        match self {
            Defect::LoseCompletion => "lose-completion",
            Defect::ReleaseMemoryEarly => "release-memory-early",
            Defect::ReissueTwice => "reissue-twice",
            Defect::SkipMergedConstituent => "skip-merged-constituent",
            Defect::MissGenerationCheck => "miss-generation-check",
            Defect::ForgetToRearmEvents => "forget-to-rearm-events",
            Defect::KeepStaleLine => "keep-stale-line",
            Defect::KeepStaleLeg => "keep-stale-leg",
            Defect::ForgetDoorbell => "forget-doorbell",
        }
    }
}
