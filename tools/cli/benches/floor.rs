//! `kiovec perf` against a loop with no driver in it, across cores, in turns: what the driver and the tool cost
//! in time. `cargo bench -p kiovec-tools --bench floor`; with `-- --rounds 21 --seconds 2` for more.
//!
//! It reports and judges nothing: seconds depend on what else a machine does. It takes two cores that nobody else
//! uses; each round's ratio says more than its figures.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use kiovec_emulator::{Config, Emulator};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::bare::{Bare, SETTINGS};

mod bare;

type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
struct Options {
    /// How often each of the two is measured at each depth.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How long each time, after a tenth of that to warm up.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// I/Os in flight.
    #[arg(long, value_delimiter = ',', default_value = "1,32,128",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    depths: Vec<u32>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (Some(worker), Some(controller)) = (cores.next(), cores.next()) else {
        return Err("this takes two cores".into());
    };
    let time = Duration::try_from_secs_f64(options.seconds)?;
    println!("4 KiB random reads of a null controller on core {controller}, from core {worker}");
    println!(
        "{} rounds of {} s; medians, and of the ratios quartiles and range",
        options.rounds, options.seconds
    );
    println!(
        "{:>5} {:>14} {:>14} {:>9} {:>16} {:>16}",
        "depth", "perf", "bare loop", "perf/loop", "quartiles", "min to max"
    );
    for depth in &options.depths {
        let (mut perf, mut loops, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds {
            // Who is first alternates.
            let first = (round % 2 == 1).then(|| bare(*depth, time, [worker, controller])).transpose()?;
            let with = kiovec(*depth, time, [worker, controller])?;
            let without = match first {
                Some(iops) => iops,
                None => bare(*depth, time, [worker, controller])?,
            };
            perf.push(with);
            loops.push(without);
            ratios.push(with / without);
        }
        let quantiles = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
            [0.0, 0.25, 0.5, 0.75, 1.0].map(at)
        };
        let [min, q1, median, q3, max] = quantiles(&mut ratios);
        println!(
            "{depth:>5} {:>14.0} {:>14.0} {median:>9.3} {:>16} {:>16}",
            quantiles(&mut perf)[2],
            quantiles(&mut loops)[2],
            format!("{q1:.3} to {q3:.3}"),
            format!("{min:.3} to {max:.3}")
        );
    }
    Ok(())
}

/// IOPS of `kiovec perf`, which records the latency of each I/O.
fn kiovec(depth: u32, time: Duration, [worker, controller]: [usize; 2]) -> Result<f64, Failure> {
    let device = format!("emulated:{SETTINGS},core={controller}");
    let line = format!(
        "perf {device} -q {depth} -c {worker} -t {} -a {} --json",
        time.as_secs_f64(),
        time.as_secs_f64() / 10.0
    );
    let output = Command::new(env!("CARGO_BIN_EXE_kiovec")).args(line.split_whitespace()).output()?;
    if !output.status.success() {
        return Err(format!("kiovec {line}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["iops"].as_f64().ok_or("no IOPS in the report")?)
}

/// IOPS of the loop.
fn bare(depth: u32, time: Duration, [worker, controller]: [usize; 2]) -> Result<f64, Failure> {
    let before = sched_getaffinity(None)?;
    let mut only = CpuSet::new();
    only.set(worker);
    sched_setaffinity(None, &only)?;
    let emulator = Emulator::spawn(Config::parse(&format!("{SETTINGS},core={controller}"))?)?;
    let mut bare = Bare::new(&emulator, depth)?;
    measure(&mut bare, time / 10);
    let iops = measure(&mut bare, time);
    sched_setaffinity(None, &before)?;
    if iops == 0.0 { Err("nothing completed".into()) } else { Ok(iops) }
}

/// Polls between two looks at the clock.
const POLLS: u32 = 4096;

fn measure(bare: &mut Bare, time: Duration) -> f64 {
    let began = Instant::now();
    let mut ios = 0u64;
    while began.elapsed() < time {
        (0..POLLS).for_each(|_| ios += u64::from(bare.poll()));
    }
    ios as f64 / began.elapsed().as_secs_f64()
}
