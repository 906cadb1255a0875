//! What is to be reached: steps of the driver that a run must have seen, or it proves nothing of them.
//!
//! Knows names and counts; must not know how a step is reached.

use std::collections::BTreeMap;
use std::ops::AddAssign;

macro_rules! points {
    ($($point:ident $name:literal,)*) => {
        /// A step that the driver can take.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point { $(#[doc = $name] $point,)* }

        impl Point {
            /// All there are.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// What it is called in reports.
            pub fn name(self) -> &'static str {
                match self { $(Point::$point => $name,)* }
            }
        }
    };
}

points! {
    Split "a request cut into several commands",
    Merge "requests merged into one command",
    Bounce "blocks by way of a bounce buffer",
    Prp "a queue with PRPs",
    Sgl "a queue with SGLs",
    BeyondMdts "a request larger than one command",
    OwnMemory "memory of the space's own",
    Registered "memory of an application",
    Guest "memory of a guest",
    OddSegments "segments that are not whole pages",
    Overlap "writes in flight together on the same block",
    Resubmit "a container submitted again in place",
    ResubmitChanged "a container changed and submitted again",
    SubmitInside "a container submitted from the closure",
    TakenOut "a container taken out",
    Exchanged "a container put in the place of a finished one",
    SubmitCounted "a container submitted into an event",
    ResubmitCounted "a container submitted again into an event",
    RefusedClosed "a container refused by an event that was ended",
    CountedAll "an event that counts requests, closed and settled",
    Flush "a flush",
    WriteZeroes "a write zeroes",
    Deallocate "a deallocate",
    CompareEqual "a compare that finds no difference",
    CompareOther "a compare that finds a difference",
    Fua "a forced unit access",
    Atomic "an atomic request carried out",
    NoMerge "a request that is not merged",
    RefusedFull "a container refused for lack of room",
    RefusedShape "a container refused for its shape",
    RefusedNotAtomic "a container refused as not atomic",
    RefusedOperation "an operation that the controller does not have",
    RefusedBelow "a request refused by a layer or queue below",
    RefusedRange "a container refused beyond the end",
    Plugged "a queue plugged with requests in line",
    TwoPollers "two pollers on one controller",
    TwoQueues "two queues of a poller on one controller",
    Failed "a request failed by the controller",
    FailedLater "a request failed behind its first block",
    Lost "a request failed by a lost controller",
    AfterLoss "a request to a controller that is lost already",
    Stuck "a controller that never answered, and was pulled",
    TimedOut "a command timeout",
    AbortSent "an Abort",
    AbortFound "an Abort that found its command",
    AbortMissed "an Abort that did not find its command",
    AbortsLimited "Aborts that wait for the Abort Command Limit",
    ControllerReset "a controller reset",
    FunctionReset "a function reset",
    LastRung "the last rung: lost after resets that did not help",
    PollersReset "several pollers reset together",
    AgainAfterAbort "a command sent again after an Abort",
    AgainAfterReset "a command sent again after a reset",
    DelayKept "a Command Retry Delay that was kept",
    ShadowsArmed "shadow doorbells armed",
    ShadowsArmedAgain "shadow doorbells armed again after a reset",
    OutcomeUnknown "a request whose outcome is unknown",
    CacheLost "a flush that tells of a lost cache",
    EventError "an event: an error",
    EventHealth "an event: health",
    EventNamespaces "an event: namespaces",
    EventFirmware "an event: firmware",
    EventOther "an event: anything else",
    EventAfterReset "an event after a reset",
    Resized "a namespace resized, and noticed",
    Detached "a namespace detached, and noticed",
    Attached "a namespace attached again, and noticed",
    FatalFound "a fatal status found by polling",
    GoneFound "a removal found by polling",
    Spurious "a completion that answers nothing",
    CancelPending "a cancel of a request in flight or in line",
    CancelPlugged "a cancel of a request behind a plug",
    CancelSettled "a cancel of a request that is over",
    CancelLayered "a cancel of a request in a layer",
    CancelSet "a cancel of a set of events",
    DeadlineMet "a deadline that was kept",
    DeadlinePassed "a deadline that passed",
    DeadlineSet "a deadline of a set of events that passed",
    Released "an event released before it settled",
    Observed "a part of a request observed before the rest",
    ObservedFailed "a part of a request that failed",
    AllEvent "all of some events",
    AnyEvent "any of some events",
    AtLeastEvent "at least so many of some events",
    NestedEvent "a set of sets",
    EmptyEvent "a set of nothing",
    ResolvedFirst "a set resolved before it settled",
    Waited "a wait for an event",
    Layered "a stack of layers",
    NoLayers "a seed without layers",
    Retried "a request tried again by a layer",
    Cured "a request cured by trying again",
    GivenUp "a request tried again in vain",
    Failover "a read from another leg of a mirror",
    Hedged "a hedged read",
    HedgeWon "a hedged read won by the second leg",
    Ejected "a leg ejected from a mirror",
    CacheHit "a cache hit",
    CacheMiss "a cache miss",
    CacheShared "a cache line waited for by two",
    CacheInvalidated "a cache line given up for a write",
    Verified "data compared with their checksums",
    Reopened "a controller opened anew after the run",
    OpenRefused "a bring-up that fails, and then succeeds",
    PowerLost "a write cache lost with the power",
    BlocksLost "blocks taken back by a loss of power",
    TeardownFault "queues taken down from a controller that does not answer",
}

/// How often each was reached.
#[derive(Debug, Clone, Default)]
pub struct Reached(BTreeMap<Point, u64>);

impl Reached {
    /// Once more.
    pub fn note(&mut self, point: Point) {
        self.add(point, 1);
    }

    /// If something is so.
    pub fn note_if(&mut self, so: bool, point: Point) {
        self.add(point, u64::from(so));
    }

    /// So many times.
    pub fn add(&mut self, point: Point, count: u64) {
        *self.0.entry(point).or_default() += count;
    }

    /// How often.
    pub fn count(&self, point: Point) -> u64 {
        self.0.get(&point).copied().unwrap_or(0)
    }

    /// Those that never were.
    pub fn missing(&self) -> Vec<Point> {
        Point::ALL.iter().copied().filter(|point| self.count(*point) == 0).collect()
    }
}

impl AddAssign<&Reached> for Reached {
    fn add_assign(&mut self, other: &Reached) {
        for (point, count) in &other.0 {
            self.add(*point, *count);
        }
    }
}
