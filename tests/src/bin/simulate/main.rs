//! Deterministic simulation: the driver on stepped controllers, in virtual time, one seed for one exact run.
//!
//! | module | knows |
//! |---|---|
//! | `chance` | numbers from a seed |
//! | `trace` | what a seed did, and the hash of it |
//! | `heap` | bytes that a seed allocates |
//! | `reach` | steps of the driver that must be reached |
//! | `faults` | what can go wrong, and what that makes legal |
//! | `tree` | what may come of a request to a stack of layers |
//! | `model` | which writes each block may hold |
//! | `memory` | chains of all kinds and shapes |
//! | `notices` | what controllers report of their own accord |
//! | `ladder` | what the driver does about slow commands, and why |
//! | `world` | controllers, pollers, namespaces, stacks |
//! | `request`, `events`, `judge` | requests and events under way, and what is right |
//! | `bench`, `run` | the state of a seed, and its turns |
//! | `checks` | what must hold at the end |
//! | `runner`, `report` | many seeds, and what they came to |
//! | `defects` | defects that must be found |

mod bench;
mod chance;
mod checks;
mod defects;
mod events;
mod faults;
mod heap;
mod judge;
mod ladder;
mod memory;
mod model;
mod notices;
mod reach;
mod report;
mod request;
mod run;
mod runner;
#[cfg(test)]
mod tests;
mod trace;
mod tree;
mod world;

use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use self::report::Report;
use self::runner::Seeds;

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// Runs random workloads with random faults against a model of the disk
///
/// A seed is one exact run: the same requests, faults and steps every time. Each has at least 200 requests and 3 faults
/// that struck. Exit code 0: nothing is wrong; 1: a seed failed, or in a run of 3000 seeds or more a step of the driver
/// or a fault was never reached; 2: wrong arguments.
#[derive(Debug, Parser)]
struct Arguments {
    /// The seeds from FIRST to LAST
    #[arg(long, value_name = "FIRST..LAST", value_parser = seeds, group = "which")]
    seeds: Option<RangeInclusive<u64>>,
    /// One seed
    #[arg(long, group = "which")]
    seed: Option<u64>,
    /// Fresh seeds for so many minutes; the first one is printed
    #[arg(long, group = "which", value_parser = clap::value_parser!(f64))]
    minutes: Option<f64>,
    /// The seeds that once found something, and those that reach what is rare
    #[arg(long, group = "which")]
    regressions: bool,
    /// Has the driver have a deliberate defect, and runs seeds until one finds it, or those that are given; `list`
    /// lists the defects, `all` is each of them in turn
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
    /// Prints each step of --seed
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Threads; as many as there are processors by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Seeds that are always run: those that find defects, and some that the simulator itself once took for failures. A
/// change of what is drawn gives them another meaning.
const REGRESSIONS: &[u64] = &[
    1, 2, 3, 4, 5, 6, 7, 10, 12, 26, 34, 80, 412, 445, 555, 697, 8933, 11419, 101091, 102116, 158789, 187313,
    290118, 918540, 954308, 1055249,
];

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let parsed = text.split_once("..").and_then(|(first, last)| {
        let last = last.strip_prefix('=').unwrap_or(last);
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    match parsed {
        Some(seeds) if !seeds.is_empty() => Ok(seeds),
        _ => Err(format!("{text:?} is not of the form FIRST..LAST, as in 1..1000")),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    runner::keep_panics();
    if let Some(name) = &arguments.defect {
        let named = arguments.seed.is_some() || arguments.seeds.is_some();
        if !named {
            return defects::find(name, jobs(&arguments));
        }
        if let Err(code) = defects::select(name) {
            return code;
        }
    }
    if let Some(seed) = arguments.seed {
        return one(seed, arguments.trace, arguments.output);
    }
    if arguments.regressions {
        let mut report = Report::default();
        let started = Instant::now();
        for seed in REGRESSIONS {
            report.add(*seed, runner::run_one(*seed, false));
        }
        return tell(&report, arguments.output, started.elapsed());
    }
    many(&arguments)
}

fn jobs(arguments: &Arguments) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    arguments.jobs.map_or_else(all, usize::from)
}

fn tell(report: &Report, output: Output, took: Duration) -> ExitCode {
    match output {
        Output::Text => report.text(took),
        Output::Json => report.json(took),
    }
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, printed: bool, output: Output) -> ExitCode {
    let started = Instant::now();
    let outcome = runner::run_one(seed, printed);
    if printed {
        println!("hash {:016x} of {} steps", outcome.hash, outcome.steps);
    }
    let mut report = Report::default();
    report.add(seed, outcome);
    tell(&report, output, started.elapsed())
}

fn many(arguments: &Arguments) -> ExitCode {
    let seeds = match (&arguments.seeds, arguments.minutes) {
        (Some(seeds), _) => {
            let count = (seeds.end() - seeds.start()).saturating_add(1);
            Seeds { first: *seeds.start(), count, limit: None }
        }
        (None, minutes) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // Far apart, so that two runs do not meet.
            let first = now.as_secs() << 20;
            let limit = Duration::try_from_secs_f64(minutes.unwrap_or(1.0) * 60.0).unwrap_or(Duration::MAX);
            Seeds { first, count: u64::MAX, limit: Some(limit) }
        }
    };
    if arguments.output == Output::Text {
        println!("seeds from {}", seeds.first);
    }
    let bar = progress(&seeds);
    let started = Instant::now();
    let mut report = Report::default();
    runner::run_all(seeds, jobs(arguments), |seed, outcome| {
        if let Some(why) = &outcome.failure {
            bar.suspend(|| eprintln!("seed {seed} FAILED {why}\n  replay it with: {}", report::replay(seed)));
        }
        report.add(seed, outcome);
        match seeds.limit {
            None => bar.inc(1),
            Some(_) => bar.set_position(started.elapsed().as_secs()),
        }
        bar.set_message(format!("{} seeds, {} failed", report.seeds, report.failures.len()));
        report.failures.len() < 10
    });
    bar.finish_and_clear();
    tell(&report, arguments.output, started.elapsed())
}

fn progress(seeds: &Seeds) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = seeds.limit.map_or(seeds.count, |limit| limit.as_secs());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
