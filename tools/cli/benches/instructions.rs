//! All instructions of a worker of `kiovec perf` per I/O: the driver, and what perf does with each I/O itself.
//! Counted by callgrind on a controller that is stepped in the same thread and whose part is left out, as
//! those of the driver alone are (`cargo bench -p kiovec`): `cargo bench -p kiovec-tools --bench instructions`.
//! Beside it: a loop with no driver in it, and what the emulator needs for a command.
//!
//! What the kernel does for a look at the clock is not in it: callgrind sees a system call where there is none
//! otherwise. There is one look for each poll that finds something.

use std::process::ExitCode;

use kiovec_emulator::{Config, Emulator};

use self::bare::Bare;
use self::counts::{Failure, Row};

mod bare;
#[path = "../../../driver/benches/counts/mod.rs"]
mod counts;

/// A line of the table.
struct Line {
    name: &'static str,
    what: What,
    budget: Option<f64>,
}

enum What {
    /// `kiovec perf` with these options.
    Perf(&'static str),
    /// What the emulator does meanwhile.
    Emulator(&'static str),
    /// The loop with no driver in it, with so many I/Os in flight.
    Bare(u32),
}

const fn count(name: &'static str, what: What) -> Line {
    Line { name, what, budget: None }
}

const TABLE: &[Line] = &[
    count("perf -q 1", What::Perf("-q 1 -w randread")),
    count("perf -q 32", What::Perf("-q 32 -w randread")),
    Line { budget: Some(125.0), ..count("perf -q 128", What::Perf("-q 128 -w randread")) },
    count("perf -q 128 -w read", What::Perf("-q 128 -w read")),
    count("perf -q 128 -w randrw", What::Perf("-q 128 -w randrw")),
    count("perf -q 128 --hot 10:90", What::Perf("-q 128 --hot 10:90")),
    count("a bare loop, depth 1", What::Bare(1)),
    count("a bare loop, depth 32", What::Bare(32)),
    count("a bare loop, depth 128", What::Bare(128)),
    count("the emulator, depth 128", What::Emulator("-q 128 -w randread")),
];

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const CHILD: &str = "KIOVEC_BENCH_CHILD";
/// What a worker does, but for what the device does; what that is; and the loop.
const RUN: &str = "kiovec_tools::perf::counted::counted_run";
const STEP: &str = "kiovec_tools::perf::counted::step";
const BARE: &str = "instructions::counted_poll";
/// A multiple of what any line has in flight, and of the polls from one that looks at everything to the next.
const FEW: u64 = 4096;
const MANY: u64 = 3 * FEW;

fn main() -> ExitCode {
    let result = match std::env::var(CHILD) {
        Ok(spec) => child(&spec),
        Err(_) => table(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table() -> Result<(), Failure> {
    counts::table(FILE.as_ref(), "all instructions of perf per I/O (callgrind)", TABLE, |line, _| {
        let collected = |ios: u64| match line.what {
            What::Perf(options) => counts::collected(&[RUN, STEP], CHILD, &perf(ios, options)),
            What::Emulator(options) => counts::collected(&[STEP], CHILD, &perf(ios, options)),
            What::Bare(depth) => counts::collected(&[BARE], CHILD, &format!("bare {ios} {depth}")),
        };
        let value = (collected(MANY)? - collected(FEW)?) as f64 / (MANY - FEW) as f64;
        Ok(Row { name: line.name, value, digits: 1, budget: line.budget })
    })
}

fn perf(ios: u64, options: &str) -> String {
    format!("perf {ios} emulated:{} {options} --seed 1", bare::SETTINGS)
}

fn child(spec: &str) -> Result<(), Failure> {
    let (what, rest) = spec.split_once(' ').ok_or("what is to be counted?")?;
    let (ios, rest) = rest.split_once(' ').ok_or("how many I/Os?")?;
    match what {
        "bare" => count_bare(ios.parse()?, rest.parse()?),
        _ => Ok(kiovec_tools::count_perf(rest, ios.parse()?)?),
    }
}

fn count_bare(ios: u64, depth: u32) -> Result<(), Failure> {
    let emulator = Emulator::stepped(Config::parse(bare::SETTINGS)?)?;
    let mut bare = Bare::new(&emulator, depth)?;
    let mut left = ios;
    while left > 0 {
        while emulator.step() > 0 {}
        left = left.saturating_sub(counted_poll(&mut bare).into());
    }
    Ok(())
}

#[inline(never)]
fn counted_poll(bare: &mut Bare) -> u32 {
    bare.poll()
}
