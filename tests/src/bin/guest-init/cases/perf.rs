//! `kiovec perf` on a bound controller: workloads that verify themselves, what it refuses, and what a killed run
//! leaves behind.

use std::process::Child;
use std::time::{Duration, Instant};

use kiovec_tests::machine::{Machine, SCRATCH};
use kiovec_tests::process;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::setup;
use crate::program::{LIMIT, Output, Program, finish, program, said};
use crate::{Verdict, ensure, pci};

fn perf(options: &str) -> Program {
    program(&format!("kiovec perf {options} {}", SCRATCH.bdf()))
}

fn is_bound() -> Verdict {
    pci::rebind(&SCRATCH, "vfio-pci")
}

/// Runs a workload; it has to do I/O without an error and, if it verifies, to find every block as it was written.
pub fn sound(program: Program) -> Result<Output, String> {
    let output = program.succeeds()?;
    sound_report(&output)?;
    Ok(output)
}

/// The same of a report.
pub fn sound_report(output: &Output) -> Verdict {
    let report = output.json()?;
    let number = |value: &Value| value.as_u64();
    ensure!(number(&report["ios"]).is_some_and(|ios| ios > 0), "no I/O: {output}");
    ensure!(number(&report["errors"]) == Some(0) && number(&report["faults"]) == Some(0), "errors: {output}");
    let verify = &report["verify"];
    if output.to_string().contains("--verify") {
        ensure!(
            number(&verify["checked_blocks"]).is_some_and(|blocks| blocks > 0),
            "nothing checked: {output}"
        );
        ensure!(number(&verify["mismatches"]) == Some(0), "wrong data: {output}");
        ensure!(number(&verify["unchecked_blocks"]) == Some(0), "blocks without a check: {output}");
    }
    Ok(())
}

/// Reads: one at a time, for people, and many at a time.
pub fn reads(_: &'static Machine) -> Verdict {
    is_bound()?;
    perf("-w read -q 1 -o 4096 -t 1 -a 0").succeeds()?.out_has(&["IOPS", " 0 errors"])?;
    sound(perf("-w randread -q 32 -o 512 -t 1 -a 0 --json")).map(drop)
}

/// Mixed random I/O whose every block is checked when it is read; on both block sizes, with PRPs and SGLs.
pub fn verifies(_: &'static Machine) -> Verdict {
    is_bound()?;
    sound(perf("-w randrw --verify --yes-destroy-data -q 16 -o 4096 -t 2 --data prp --json"))?;
    sound(perf("-w randrw --verify --yes-destroy-data -q 8 -o 16384 -t 1 -a 0 --nsid 2 --data sgl --json"))?;
    // Larger than MDTS: each I/O is several commands.
    sound(perf("-w rw --verify --yes-destroy-data -q 4 -o 1M -t 1 -a 0 --nsid 2 --json")).map(drop)
}

/// The same from two threads, each with a queue pair.
pub fn verifies_on_two_cores(_: &'static Machine) -> Verdict {
    is_bound()?;
    let output = sound(perf("-w randrw --verify --yes-destroy-data -q 8 -o 4096 -t 2 -a 0 -c 0,1 --json"))?;
    output.out_has(&["\"core\": 0", "\"core\": 1"])
}

/// Nothing is written without consent; a range is none, nor is a workload that only verifies.
pub fn consent_is_needed(_: &'static Machine) -> Verdict {
    is_bound()?;
    perf("-w write -t 1").refuses(&["--yes-destroy-data"])?;
    perf("-w randrw -t 1 --range 0:1000").refuses(&["--yes-destroy-data"])?;
    perf("-w read -t 1 --verify").refuses(&["--yes-destroy-data"])
}

/// A namespace that is not there, and sizes that are no blocks.
pub fn wrong_workloads_are_refused(_: &'static Machine) -> Verdict {
    is_bound()?;
    perf("-w read -t 1 --nsid 9").refuses(&["no active namespace 9"])?;
    perf("-w read -t 1 -o 1000").refuses(&["1000", "512"])?;
    perf("-w read -t 1 -o 512 --nsid 2").refuses(&["512", "4096"])?;
    ensure!(pci::driver(&SCRATCH).as_deref() == Some("vfio-pci"), "the function lost its driver");
    Ok(())
}

/// Without hugepages it works, and says so; without transparent ones as well.
pub fn no_hugepages(_: &'static Machine) -> Verdict {
    is_bound()?;
    let workload = || perf("-w randrw --verify --yes-destroy-data -q 4 -o 64k -t 1 -a 0 --json");
    setup::without_hugepages(|| {
        let how = "hugepage-setup reserve";
        sound(workload())?.err_has(&["no hugepages", "transparent", how])?;
        sound(workload().small_pages())?.err_has(&["no hugepages", "4 KiB pages", how])
    })
}

/// A run that is interrupted reports what it has done so far.
pub fn interrupted_run_reports(_: &'static Machine) -> Verdict {
    is_bound()?;
    let run = perf("-w randread -q 8 -o 4096 -t 600 -a 0 --json").telling();
    let text = run.to_string();
    let mut child = run.start()?;
    let busy = wait_until_busy(&mut child);
    kill_process(Pid::from_child(&child), Signal::INT).map_err(|e| format!("kill: {e}"))?;
    let output = finish(text, child, LIMIT)?;
    busy?;
    sound_report(&output)?;
    output.out_has(&["\"interrupted\": true"])
}

/// While one process has the device a second one is told so; when the first is killed in the middle of its I/O,
/// the device can be used again at once.
pub fn killed_run_leaves_it_usable(_: &'static Machine) -> Verdict {
    is_bound()?;
    let mut first = perf("-w randrw --verify --yes-destroy-data -q 32 -o 4096 -t 600").telling().start()?;
    let second = wait_until_busy(&mut first).and_then(|()| {
        program(&format!("kiovec identify {}", SCRATCH.bdf())).refuses(&["in use by another process"])
    });
    first.kill().and_then(|()| first.wait()).map_err(|e| format!("kill: {e}"))?;
    second?;
    perf("-w randrw --verify --yes-destroy-data -q 16 -o 4096 -t 1").succeeds().map(drop)
}

/// Waits until a run that is [`telling`](Program::telling) has measured some I/O, and more of it than before this was
/// asked.
pub fn wait_until_busy(child: &mut Child) -> Verdict {
    let deadline = Instant::now() + LIMIT;
    let before = measured(&said(child)?);
    while Instant::now() < deadline {
        let ended = process::ended(child, Duration::from_millis(20)).map_err(|e| format!("poll: {e}"))?;
        ensure!(!ended, "it ended by itself");
        if measured(&said(child)?) > before {
            return Ok(());
        }
    }
    Err(format!("it did not get busy; it has said: {}", said(child)?))
}

/// I/Os by the last line that tells of some while it measures: `kiovec: 1.5 s, measuring: 1234 I/Os, …`.
fn measured(said: &str) -> u64 {
    let ios = |line: &str| line.split_once(" s, measuring: ")?.1.split_once(" I/Os, ")?.0.parse().ok();
    said.lines().filter_map(ios).next_back().unwrap_or(0)
}
