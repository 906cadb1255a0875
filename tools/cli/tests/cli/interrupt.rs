use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn interrupted(line: &str, signal: Signal) -> Value {
    let child = Command::new(env!("CARGO_BIN_EXE_kiovec"))
        .args(line.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    kill_process(Pid::from_child(&child), signal).unwrap();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{line}: {:?}", began.elapsed());
    assert!(output.status.success(), "{line}: {:?}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_interrupted_run_still_reports() {
    let report = interrupted("perf -t 600 -a 0 --json", Signal::INT);
    assert_eq!(report["interrupted"], true);
    assert!(report["ios"].as_u64().unwrap() > 0 && report["seconds"].as_f64().unwrap() < 60.0, "{report}");
    assert_eq!(report["errors"], 0);
}

#[test]
fn so_does_one_that_has_not_begun_to_measure() {
    let report = interrupted("perf -t 600 -a 600 --json", Signal::TERM);
    assert_eq!((&report["interrupted"], &report["ios"]), (&true.into(), &0.into()));
}

#[test]
fn a_verifying_run_does_not_stay_to_read_back() {
    let report = interrupted("perf emulated:media=ram --verify -w write -t 600 -a 0 --json", Signal::INT);
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["verify"]["read_back"], false);
}
