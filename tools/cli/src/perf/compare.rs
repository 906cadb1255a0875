//! `--compare`: what is different in two results that were kept.
//!
//! Knows what a result looks like; must not know how one comes about.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::report::{TOOL, micros};
use crate::{Error, Result, output};

/// No result is longer: with all of its histogram it has a megabyte.
const LONGEST: u64 = 64 << 20;

/// What was asked for: if it differs, so may everything else.
const SETTINGS: [&str; 16] = [
    "version",
    "driver",
    "device",
    "workload",
    "read_percent",
    "io_size",
    "bssplit",
    "queue_depth",
    "rate",
    "skew",
    "merge",
    "poll",
    "range",
    "block_size",
    "way",
    "seconds",
];

/// What came of it.
const FIGURES: [(&str, &str, Unit); 22] = [
    ("/iops", "IOPS", Unit::Rate),
    ("/mib_per_second", "MiB/s", Unit::Rate),
    ("/latency_ns/mean", "average us", Unit::Nanoseconds),
    ("/latency_ns/min", "min us", Unit::Nanoseconds),
    ("/latency_ns/p50", "50% us", Unit::Nanoseconds),
    ("/latency_ns/p90", "90% us", Unit::Nanoseconds),
    ("/latency_ns/p99", "99% us", Unit::Nanoseconds),
    ("/latency_ns/p99_9", "99.9% us", Unit::Nanoseconds),
    ("/latency_ns/p99_99", "99.99% us", Unit::Nanoseconds),
    ("/latency_ns/max", "max us", Unit::Nanoseconds),
    ("/polls_per_io", "polls per I/O", Unit::Share),
    ("/commands_per_io", "commands per I/O", Unit::Share),
    ("/splits_per_io", "splits per I/O", Unit::Share),
    ("/merges_per_io", "merges per I/O", Unit::Share),
    ("/bounces_per_io", "bounces per I/O", Unit::Share),
    ("/sq_doorbells_per_io", "SQ doorbells per I/O", Unit::Share),
    ("/cq_doorbells_per_io", "CQ doorbells per I/O", Unit::Share),
    ("/system_calls_per_io", "system calls per I/O", Unit::Share),
    ("/ios", "I/Os", Unit::Count),
    ("/writes", "writes", Unit::Count),
    ("/errors", "errors", Unit::Count),
    ("/verify/mismatches", "wrong blocks", Unit::Count),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Rate,
    Nanoseconds,
    Share,
    Count,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Rate => format!("{value:.1}"),
            Unit::Nanoseconds => micros(value),
            Unit::Share => format!("{value:.4}"),
            Unit::Count => format!("{value:.0}"),
        }
    }
}

pub fn text(before: &Path, after: &Path) -> Result<String> {
    let (a, b) = (read(before)?, read(after)?);
    let mut text = format!("A: {}\nB: {}\n", before.display(), after.display());
    let settings: Vec<Vec<String>> = SETTINGS
        .into_iter()
        .filter(|name| differ(a.get(name), b.get(name)))
        .map(|name| vec![name.replace('_', " "), shown(a.get(name)), "->".into(), shown(b.get(name))])
        .collect();
    if !settings.is_empty() {
        text += &format!("\nnot the same was measured:\n{}", output::table(&settings, &[]));
    }
    let mut rows = vec![["", "A", "B", "B/A", "change"].map(str::to_owned).to_vec()];
    rows.extend(FIGURES.into_iter().filter_map(|(pointer, name, unit)| {
        row(
            name,
            unit,
            a.pointer(pointer).and_then(Value::as_f64),
            b.pointer(pointer).and_then(Value::as_f64),
        )
    }));
    Ok(format!("{text}\n{}", output::table(&rows, &[1, 2, 3, 4])))
}

/// How long was measured is measured too, and no two runs take the same time to the last digit.
const SAME: f64 = 0.02;

fn differ(a: Option<&Value>, b: Option<&Value>) -> bool {
    // What one of them does not know of is as little set as what it knows to be null.
    let set = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
    let number = |value: Option<&Value>| value.filter(|value| value.is_f64()).and_then(Value::as_f64);
    match (number(a), number(b)) {
        (Some(a), Some(b)) => (a - b).abs() > SAME * a.max(b),
        _ => set(a) != set(b),
    }
}

/// A figure that at least one of them has, and that is not zero in both.
fn row(name: &str, unit: Unit, a: Option<f64>, b: Option<f64>) -> Option<Vec<String>> {
    let nothing = |value: Option<f64>| value.is_none_or(|value| value == 0.0);
    if nothing(a) && nothing(b) {
        return None;
    }
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| unit.show(value));
    let ratio = a.zip(b).map(|(a, b)| b / a).filter(|ratio| ratio.is_finite());
    let (ratio, change) = match ratio {
        Some(ratio) => (format!("{ratio:.3}"), format!("{:+.1}%", (ratio - 1.0) * 100.0)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    Some(vec![name.to_owned(), shown(a), shown(b), ratio, change])
}

/// A value that is not ours, in one line that no terminal takes for an order.
fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// A result of ours, and of one run.
fn read(path: &Path) -> Result<Value> {
    let wrong = |what: &str| Error::Unsuitable(format!("--compare: {}: {what}", path.display()));
    let mut text = Vec::new();
    let file = fs::File::open(path)
        .map_err(|error| wrong(&format!("{error}; a result is made with: kiovec perf --json > FILE")))?;
    file.take(LONGEST + 1).read_to_end(&mut text).map_err(|error| wrong(&error.to_string()))?;
    if text.len() as u64 > LONGEST {
        return Err(wrong("more than 64 MiB, which is no result of kiovec perf"));
    }
    let foreign = "not a result of kiovec perf; make one with: kiovec perf --json > FILE";
    let result: Value = serde_json::from_slice(&text).map_err(|_| wrong(foreign))?;
    if result.get("tool").and_then(Value::as_str) != Some(TOOL) {
        return Err(wrong(foreign));
    }
    if result.get("versus").is_some() {
        return Err(wrong("a result of --versus, which has its ratios already; name results of single runs"));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compare(a: &[u8], b: &[u8]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&paths[0], a).unwrap();
        fs::write(&paths[1], b).unwrap();
        text(&paths[0], &paths[1])
    }

    #[test]
    fn ratios_are_those_of_the_second_to_the_first() {
        let a = json!({ "tool": TOOL, "iops": 1000.0, "errors": 0, "latency_ns": { "p50": 2000 }, "device": "x" });
        let b = json!({ "tool": TOOL, "iops": 1500.0, "errors": 3, "latency_ns": { "p50": 1000 }, "device": "y\u{1b}" });
        let shown = compare(a.to_string().as_bytes(), b.to_string().as_bytes()).unwrap();
        let row = |name: &str| {
            let line = shown.lines().find(|line| line.starts_with(name)).expect(name);
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("IOPS"), ["IOPS", "1000.0", "1500.0", "1.500", "+50.0%"]);
        assert_eq!(row("50% us"), ["50%", "us", "2.00", "1.00", "0.500", "-50.0%"]);
        assert_eq!(row("errors"), ["errors", "0", "3", "-", "-"]);
        assert_eq!(row("device"), ["device", "x", "->", "y\u{fffd}"]);
        assert!(!shown.contains("writes") && !shown.contains("workload"), "{shown}");
    }

    #[test]
    fn other_files_are_refused() {
        let good = json!({ "tool": TOOL }).to_string();
        for bad in ["", "{}", "[1]", "fio", r#"{"tool":"fio"}"#, r#"{"fio version":"3"}"#] {
            let error = compare(good.as_bytes(), bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("/b: not a result of kiovec perf; make one with"), "{error}");
        }
        let versus = json!({ "tool": TOOL, "versus": {} }).to_string();
        let error = compare(versus.as_bytes(), good.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("/a: a result of --versus"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_panics(a: Vec<u8>, numbers: Vec<f64>) {
            let odd = json!({ "tool": TOOL, "iops": numbers.first(), "latency_ns": numbers, "verify": "x", "seconds": {} });
            prop_assert!(compare(&a, &a).is_err());
            compare(odd.to_string().as_bytes(), odd.to_string().as_bytes()).unwrap();
        }
    }

    #[test]
    fn settings_differ_when_they_were_set_otherwise() {
        let differ = |a: Value, b: Value| super::differ(Some(&a), Some(&b));
        assert!(
            differ(json!(4), json!(8))
                && differ(json!("read"), json!("write"))
                && differ(json!(1.0), json!(1.5))
        );
        assert!(!differ(json!(5.0001), json!(5.02)) && !differ(json!(4), json!(4)));
        assert!(differ(json!(null), json!(true)) && !super::differ(None, Some(&json!(null))));
    }
}
