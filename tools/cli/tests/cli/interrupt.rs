use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A run that gets a signal as soon as it has done I/O in this phase.
fn interrupted(line: &str, phase: &str, signal: Signal) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiovec"))
        .args(line.split_whitespace())
        .args(["--status-interval", "0.1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let wanted = format!(" s, {phase}: ");
    let mut ios = stderr.by_ref().filter_map(|said| {
        let said = said.unwrap();
        said.split_once(&wanted)?.1.split_once(" I/Os, ")?.0.parse::<u64>().ok()
    });
    let before = ios.next().expect("it says how it goes");
    assert!(ios.any(|ios| ios > before), "{line}: it has ended by itself");
    kill_process(Pid::from_child(&child), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}: {:?}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_interrupted_run_still_reports() {
    let report = interrupted("perf -t 86400 -a 0 --json", "measuring", Signal::INT);
    assert_eq!(report["interrupted"], true);
    assert!(report["ios"].as_u64().unwrap() > 0 && report["seconds"].as_f64().unwrap() < 80000.0, "{report}");
    assert_eq!(report["errors"], 0);
}

#[test]
fn so_does_one_that_has_not_begun_to_measure() {
    let report = interrupted("perf -t 600 -a 86400 --json", "warming up", Signal::TERM);
    assert_eq!((&report["interrupted"], &report["ios"]), (&true.into(), &0.into()));
}

#[test]
fn a_verifying_run_does_not_stay_to_read_back() {
    let line = "perf emulated:media=ram --verify -w write -t 86400 -a 0 --json";
    let report = interrupted(line, "measuring", Signal::INT);
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["verify"]["read_back"], false);
}
