//! What a seed did, step by step: a hash of it, and the steps themselves for whoever wants to see them.
//!
//! Two runs of a seed are the same run if their hashes are. No address, no wall clock and no order of a hash
//! map goes in. Knows steps; must not know why they were taken.

use std::hash::{DefaultHasher, Hash, Hasher};

/// One step.
#[derive(Debug, Hash)]
#[allow(missing_docs)]
pub enum Step {
    World { what: String },
    Fault { name: &'static str, what: String },
    Submit { tag: u64, volume: usize, poller: usize, way: usize, what: String },
    Refused { tag: u64, why: String },
    Again { tag: u64, lba: u64, operation: &'static str },
    Done { tag: u64, poller: usize, nanos: u64, failure: Option<String> },
    Observe { tag: u64, from: u64, to: u64 },
    Observed { tag: u64, success: bool },
    Set { node: usize, kind: &'static str, wanted: usize, of: Vec<usize> },
    SetMoment { node: usize, settled: bool },
    Open { node: usize },
    Close { node: usize },
    Into { tag: u64, node: usize },
    Cancel { node: usize },
    Deadline { node: usize, nanos: u64 },
    Release { node: usize },
    Plug { poller: usize, queue: usize },
    Unplug { poller: usize, queue: usize },
    Strike { name: &'static str, controller: usize },
    LetGo { controller: usize, commands: usize },
    Lost { controller: usize },
    PowerLost { controller: usize, blocks: u64 },
    Failed { controller: usize },
    Raised { controller: usize, what: &'static str },
    Told { controller: usize, what: &'static str },
    Pulled { controller: usize, failed: bool },
    Stepped { controller: usize, work: usize },
    Ended { turns: u64, commands: u64 },
}

/// All steps so far.
#[derive(Debug, Default)]
pub struct Trace {
    hash: DefaultHasher,
    printed: bool,
    steps: u64,
}

impl Trace {
    /// One that prints what it is told of, if `printed`.
    pub fn new(printed: bool) -> Trace {
        Trace { printed, ..Trace::default() }
    }

    /// The next step, in a turn.
    pub fn note(&mut self, turn: u64, step: &Step) {
        if self.printed {
            println!("{turn:>6} {step:?}");
        }
        (turn, step).hash(&mut self.hash);
        self.steps += 1;
    }

    /// What two runs have in common if they are the same.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}
