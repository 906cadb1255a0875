//! The first and only service of the guest: makes the machine usable, runs the cases of the machine it was
//! booted as, reports them on the second serial line, and ends the machine with an exit code that says the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use kiovec_tests::machine::{self, Machine, REBOOT};
use kiovec_tests::report::{FAIL, Line, Outcome, PASS};

mod boot;
mod cases;
mod device_mapper;
mod disk;
mod exit;
mod kmsg;
mod operator;
mod pci;
mod program;
mod reboot;
mod reporter;
mod slot;
mod uevent;
mod vfio;

/// How a case ended: nothing to say, or why it failed.
type Verdict = Result<(), String>;

/// Leaves the case with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

fn main() {
    let passed = start();
    exit::machine(if passed { PASS } else { FAIL });
}

/// Whether all went well. Without a reporter there is nobody to tell: the missing marker says it.
fn start() -> bool {
    if let Err(why) = boot::file_systems() {
        println!("guest-init: {why}");
        return false;
    }
    match (reporter::Reporter::open(), booted_as()) {
        (Ok(mut reporter), Ok(machine)) => run(machine, &mut reporter),
        (reporter, machine) => {
            println!("guest-init: {:?}, {:?}", reporter.err(), machine.err());
            false
        }
    }
}

/// The machine that the kernel's command line names.
fn booted_as() -> Result<&'static Machine, String> {
    let line = std::fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
    let name = line.split_whitespace().find_map(|word| word.strip_prefix("kiovec.machine="));
    let name = name.ok_or("no kiovec.machine= on the kernel's command line")?;
    machine::find(name).ok_or_else(|| format!("no machine is called {name}"))
}

fn run(machine: &'static Machine, reporter: &mut reporter::Reporter) -> bool {
    let booted = boot::modules();
    let mut failed = 0;
    for name in &machine.cases[already_run(machine)..] {
        let started = Instant::now();
        println!("guest-init: case {name}");
        let verdict = booted.clone().and_then(|()| run_case(name, machine, failed));
        failed += usize::from(verdict.is_err());
        let outcome = Outcome { name: (*name).to_owned(), took: started.elapsed(), failure: verdict.err() };
        println!("guest-init: {outcome}");
        reporter.tell(&Line::Case(outcome));
    }
    if failed > 0 {
        // Booted quietly, the kernel's own view of a failure is nowhere else.
        println!("guest-init: the kernel's log:\n{}", kmsg::read().unwrap_or_default());
    }
    reporter.tell(&Line::End { passed: machine.cases.len() - failed, failed });
    failed == 0
}

/// How many cases the boots before this one have run; all of them passed, or there would be no other boot.
fn already_run(machine: &Machine) -> usize {
    let reboot = machine.cases.iter().position(|name| *name == REBOOT);
    reboot.filter(|_| reboot::has_been()).unwrap_or(0)
}

/// Runs one case after `failed` that failed; a panic is a failure like any other, and the next case still runs.
fn run_case(name: &str, machine: &'static Machine, failed: usize) -> Verdict {
    if name == REBOOT {
        ensure!(failed == 0, "no use: {failed} failed before");
        return reboot::once();
    }
    let case = cases::find(name).ok_or_else(|| format!("no case is called {name}"))?;
    catch_unwind(AssertUnwindSafe(|| case(machine))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}
