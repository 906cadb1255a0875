//! Deliberate defects of the driver, each of which some seed must find.
//!
//! Knows their names; must not know what is broken by them.

use std::process::ExitCode;

#[cfg(feature = "defects")]
use kiovec::defects::Defect;

#[cfg(not(feature = "defects"))]
pub fn find(name: &str, _: usize) -> ExitCode {
    eprintln!("this program has no defects in it; use: {} {name}", COMMAND);
    ExitCode::from(2)
}

#[cfg(not(feature = "defects"))]
pub fn select(name: &str) -> Result<(), ExitCode> {
    Err(find(name, 0))
}

const COMMAND: &str = "cargo run --release -p kiovec-tests --features defects --bin simulate -- --defect";

/// Has the driver have one from now on.
#[cfg(feature = "defects")]
pub fn select(name: &str) -> Result<(), ExitCode> {
    match named(name) {
        None => Err(unknown(name)),
        defect => {
            kiovec::defects::select(defect);
            Ok(())
        }
    }
}

#[cfg(feature = "defects")]
fn named(name: &str) -> Option<Defect> {
    Defect::ALL.iter().copied().find(|defect| defect.name() == name)
}

#[cfg(feature = "defects")]
fn unknown(name: &str) -> ExitCode {
    eprintln!(
        "{name} is no defect of this driver; `--defect list` lists them, `--defect all` is all of them"
    );
    ExitCode::from(2)
}

/// Runs seeds until one finds a defect, or all defects one after the other.
#[cfg(feature = "defects")]
pub fn find(name: &str, jobs: usize) -> ExitCode {
    let chosen: Vec<Defect> = match name {
        "list" => {
            Defect::ALL.iter().for_each(|defect| println!("{}", defect.name()));
            return ExitCode::SUCCESS;
        }
        "all" => Defect::ALL.to_vec(),
        _ => named(name).into_iter().collect(),
    };
    if chosen.is_empty() {
        return unknown(name);
    }
    let mut found = true;
    for defect in chosen {
        kiovec::defects::select(Some(defect));
        found &= hunt(defect.name(), jobs);
        kiovec::defects::select(None);
    }
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a defect was found, in as many seeds as a run must have anyway; some seeds that found it are told.
#[cfg(feature = "defects")]
fn hunt(name: &str, jobs: usize) -> bool {
    use crate::report::THOROUGH;
    use crate::runner::{Seeds, run_all};

    /// Seeds that are told.
    const SOME: usize = 3;
    let (mut seeds, mut found) = (0, Vec::new());
    run_all(Seeds { first: 1, count: THOROUGH, limit: None }, jobs, |seed, outcome| {
        seeds += 1;
        found.extend(outcome.failure.map(|why| (seed, why)));
        found.len() < SOME
    });
    let Some((seed, why)) = found.first() else {
        println!("{name}: NOT FOUND in {seeds} seeds");
        return false;
    };
    let others: Vec<String> = found[1..].iter().map(|(seed, _)| seed.to_string()).collect();
    println!(
        "{name}: found by seed {seed}, and {} more of {seeds} ({}): {why}",
        others.len(),
        others.join(", ")
    );
    println!("  replay it with: {COMMAND} {name} --seed {seed} --trace");
    true
}
