//! Deliberate defects of the driver, each of which some seed must find.
//!
//! Knows their names; must not know what is broken by them.

use std::process::ExitCode;

#[cfg(not(feature = "defects"))]
pub fn find(name: &str, _: usize) -> ExitCode {
    eprintln!(
        "this program has no defects in it; use: cargo run --release -p kiovec-tests --features defects --bin simulate \
         -- --defect {name}"
    );
    ExitCode::from(2)
}

/// Runs seeds until one finds a defect, or those that are hooked one after the other.
#[cfg(feature = "defects")]
pub fn find(name: &str, jobs: usize) -> ExitCode {
    use kiovec::defects::Defect;

    let named = |defect: &&Defect| defect.name() == name;
    let chosen: Vec<Defect> = match name {
        "list" => {
            for defect in Defect::ALL {
                println!(
                    "{}{}",
                    defect.name(),
                    if defect.is_hooked() { "" } else { " (not in the driver yet)" }
                );
            }
            return ExitCode::SUCCESS;
        }
        "all" => Defect::ALL.iter().copied().filter(|defect| defect.is_hooked()).collect(),
        _ => Defect::ALL.iter().filter(named).copied().collect(),
    };
    if chosen.is_empty() || chosen.iter().any(|defect| !defect.is_hooked()) {
        eprintln!(
            "{name} is no defect of this driver; `--defect list` lists them, `--defect all` is all of them"
        );
        return ExitCode::from(2);
    }
    let mut found = true;
    for defect in chosen {
        kiovec::defects::select(Some(defect));
        found &= hunt(defect.name(), jobs);
        kiovec::defects::select(None);
    }
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a defect was found, in as many seeds as a run must have anyway.
#[cfg(feature = "defects")]
fn hunt(name: &str, jobs: usize) -> bool {
    use crate::report::{THOROUGH, replay};
    use crate::runner::{Seeds, run_all};

    let (mut seeds, mut first) = (0, None);
    run_all(Seeds { first: 1, count: THOROUGH, limit: None }, jobs, |seed, outcome| {
        seeds += 1;
        if let Some(why) = outcome.failure {
            first.get_or_insert((seed, why));
        }
        first.is_none()
    });
    match &first {
        Some((seed, why)) => println!(
            "{name}: found by seed {seed}, {seeds} seeds tried: {why}\n  without it: {}",
            replay(*seed)
        ),
        None => println!("{name}: NOT FOUND in {seeds} seeds"),
    }
    first.is_some()
}
