//! What a run of many seeds came to, as text or as JSON.
//!
//! Knows counts; must not know how they came about.

use std::time::Duration;

use serde_json::json;

use crate::faults::KINDS;
use crate::reach::{Point, Reached};
use crate::run::Outcome;

/// Seeds after which every step and every fault must have been reached: the rarest was then reached a dozen times,
/// whatever seeds they were.
pub const THOROUGH: u64 = 3000;
/// Failures that are told; the others are counted.
const MOST_TOLD: usize = 10;

/// Sums over all seeds.
#[derive(Debug, Default)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// Those that failed, and why.
    pub failures: Vec<(u64, String)>,
    failed: u64,
    requests: u64,
    commands: u64,
    longest: u64,
    heap: u64,
    /// By kind: seeds that had it planned, seeds in which it struck, and how often.
    faults: Vec<[u64; 3]>,
    reached: Reached,
}

/// How to run a seed again.
pub fn replay(seed: u64) -> String {
    format!("cargo run --release -p kiovec-tests --bin simulate -- --seed {seed} --trace")
}

impl Report {
    /// One seed more.
    pub fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.requests += outcome.requests;
        self.commands += outcome.commands;
        self.longest = self.longest.max(outcome.longest);
        self.heap = self.heap.max(outcome.heap);
        self.faults.resize(KINDS.len(), [0; 3]);
        for (kind, struck) in outcome.faults {
            let [planned, seeds, times] = &mut self.faults[kind];
            *planned += 1;
            *seeds += u64::from(struck > 0);
            *times += struck;
        }
        self.reached += &outcome.reached;
        if let Some(why) = outcome.failure {
            self.failed += 1;
            if self.failures.len() < MOST_TOLD {
                self.failures.push((seed, why));
            }
        }
    }

    /// What was never reached, where that is a failure.
    pub fn unreached(&self) -> Vec<&'static str> {
        if self.seeds < THOROUGH {
            return Vec::new();
        }
        let faults = KINDS.iter().zip(&self.faults).filter(|(_, [_, seeds, _])| *seeds == 0);
        let points = self.reached.missing().into_iter().map(Point::name);
        faults.map(|(kind, _)| kind.name).chain(points).collect()
    }

    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failed == 0 && self.unreached().is_empty()
    }

    /// The report as text.
    pub fn text(&self, took: Duration) {
        println!("{:<42} {:>9} {:>9} {:>10}", "fault", "planned", "struck", "times");
        for (kind, [planned, seeds, times]) in KINDS.iter().zip(&self.faults) {
            println!("{:<42} {planned:>9} {seeds:>9} {times:>10}", kind.name);
        }
        println!("\n{:<60} {:>12}", "step", "times");
        for point in Point::ALL {
            println!("{:<60} {:>12}", point.name(), self.reached.count(*point));
        }
        println!();
        if self.seeds < THOROUGH {
            println!("with fewer than {THOROUGH} seeds, what was never reached is no failure");
        }
        for name in self.unreached() {
            println!("NEVER REACHED in {} seeds: {name}", self.seeds);
        }
        self.failures(|line| println!("{line}"));
        println!(
            "{} seeds, {} failed, {} requests, {} commands; a request took {} turns at most, a seed {} KiB of heap",
            self.seeds,
            self.failed,
            self.requests,
            self.commands,
            self.longest,
            self.heap >> 10
        );
        println!("{:.0} seeds per minute", self.per_minute(took));
    }

    fn failures(&self, mut tell: impl FnMut(String)) {
        for (seed, why) in &self.failures {
            tell(format!("seed {seed} FAILED {why}\n  replay it with: {}", replay(*seed)));
        }
    }

    fn per_minute(&self, took: Duration) -> f64 {
        self.seeds as f64 * 60.0 / took.as_secs_f64().max(1e-9)
    }

    /// The report as JSON.
    pub fn json(&self, took: Duration) {
        let faults: Vec<_> = (KINDS.iter().zip(&self.faults))
            .map(|(kind, [planned, seeds, times])| {
                json!({"name": kind.name, "planned": planned, "struck": seeds, "times": times})
            })
            .collect();
        let steps: Vec<_> = Point::ALL
            .iter()
            .map(|point| json!({"name": point.name(), "times": self.reached.count(*point)}))
            .collect();
        let failures: Vec<_> = (self.failures.iter())
            .map(|(seed, why)| json!({"seed": seed, "failure": why, "replay": replay(*seed)}))
            .collect();
        let all = json!({
            "seeds": self.seeds,
            "failed": self.failed,
            "requests": self.requests,
            "commands": self.commands,
            "longest_turns": self.longest,
            "heap_bytes": self.heap,
            "seconds": took.as_secs_f64(),
            "seeds_per_minute": self.per_minute(took),
            "faults": faults,
            "steps": steps,
            "never_reached": self.unreached(),
            "failures": failures,
        });
        println!("{all:#}");
    }
}
