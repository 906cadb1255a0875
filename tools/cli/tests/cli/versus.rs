//! Two devices in turns, and several at once.

use std::fs;

use serde_json::Value;

use super::{json, kiovec, number, stderr, text};

const SHORT: &str = "-d 50 -t 300 -a 0 -q 4";

#[test]
fn ratios_are_those_of_the_rounds() {
    let document = json(&format!("perf emulated --versus emulated:mdts=5 --rounds 3 {SHORT}"));
    let versus = &document["versus"];
    assert_eq!(
        (&versus["a"]["device"], &versus["b"]["device"]),
        (&"emulated".into(), &"emulated:mdts=5".into())
    );
    let rounds = versus["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 3);
    for (ratio, figure) in [("iops", "iops"), ("latency_mean", "latency_mean_ns")] {
        let of = |round: &Value| number(&round["a"][figure]) / number(&round["b"][figure]);
        let mut ratios: Vec<f64> = rounds.iter().map(of).collect();
        ratios.sort_by(f64::total_cmp);
        let spread = &versus["ratios"][ratio];
        for (name, expected) in [("min", ratios[0]), ("median", ratios[1]), ("max", ratios[2])] {
            assert!((number(&spread[name]) - expected).abs() < 1e-9, "{name}: {document}");
        }
        let iqr = number(&spread["q3"]) - number(&spread["q1"]);
        assert!((number(&spread["iqr"]) - iqr).abs() < 1e-9 && iqr >= 0.0, "{document}");
    }
}

#[test]
fn a_driver_against_the_kernels() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("data");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let kernel = format!("kernel:{}", path.display());
    let shown = text(&format!("perf emulated --versus {kernel} --rounds 2 {SHORT}"));
    for words in [
        &format!("A: emulated\nB: {kernel}\n"),
        "2 rounds of 50 I/Os each",
        "A/B",
        "IOPS",
        "99.9% us",
        " of 2 rounds",
    ] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    // Without consent the first device is not even opened.
    let output = kiovec(&format!("perf emulated --versus {kernel} -w write {SHORT}"));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--yes-destroy-data"), "{}", stderr(&output));
    assert_eq!(fs::read(&path).unwrap(), vec![1; 1 << 20]);
}

#[test]
fn a_device_that_fails_ends_it() {
    let output = kiovec("perf --versus emulated:unplug_after=1000 -d 5000 -t 300 -a 0");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("emulated:unplug_after=1000"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn several_devices_at_once() {
    let document = json(&format!("perf emulated:serial=A emulated:serial=B,media=ram -w randrw {SHORT}"));
    let jobs = document["jobs"].as_array().unwrap();
    let names: Vec<&Value> = jobs.iter().map(|job| &job["device"]).collect();
    assert_eq!(names, ["emulated:serial=A", "emulated:serial=B,media=ram"]);
    for name in ["ios", "iops", "mib_per_second", "errors"] {
        let sum: f64 = jobs.iter().map(|job| number(&job[name])).sum();
        assert!((sum - number(&document[name])).abs() < 1.0, "{name}: {document}");
    }
    assert!(jobs.iter().all(|job| number(&job["ios"]) > 0.0), "{document}");
    let shown = text(&format!("perf emulated:serial=A emulated:serial=B {SHORT}"));
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("all devices "), "{shown}");
}

#[test]
fn a_device_that_is_named_twice_is_opened_once() {
    let document = json(&format!("perf emulated emulated {SHORT}"));
    assert_eq!(document["jobs"].as_array().unwrap().len(), 2);
    let output = kiovec(&format!("perf emulated:media=ram emulated:media=ram --verify {SHORT}"));
    assert!(stderr(&output).contains("is there twice") && stderr(&output).contains("--numjobs"));
}

#[test]
fn several_workers_on_a_device() {
    for line in ["--numjobs 3", "--numjobs 3 --verify -w randrw", "--numjobs 2 -c 0 -w read"] {
        let report = json(&format!("perf emulated:media=ram,size=16M {line} {SHORT}"));
        let wanted = if line.contains('3') { 3 } else { 2 };
        assert_eq!(report["workers"].as_array().unwrap().len(), wanted, "{line}: {report}");
        assert_eq!(number(&report["errors"]), 0.0);
    }
}
