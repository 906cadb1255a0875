//! The built `kiovec` as a user runs it, on emulated controllers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod compare;
mod identify;
mod interrupt;
mod jobs;
mod kernel;
mod list;
mod perf;
mod refused;
mod report;
mod serve;
mod stacks;
mod verify;
mod versus;

use std::process::{Command, Output};

use serde_json::Value;

fn kiovec(line: &str) -> Output {
    let args = line.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_kiovec")).args(args).output().expect("kiovec starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// What a command prints that succeeds.
fn text(line: &str) -> String {
    let output = kiovec(line);
    assert!(output.status.success(), "kiovec {line}: {:?}", stderr(&output));
    stdout(&output)
}

fn json(line: &str) -> Value {
    serde_json::from_str(&text(&format!("{line} --json"))).expect("JSON")
}

/// A number in a JSON document.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}
