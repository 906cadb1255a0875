use serde_json::Value;

use super::{json, kiovec, number, stderr, text};

/// So many I/Os, however long a busy machine takes for them.
const SHORT: &str = "-d 2000 -t 300 -a 0";

#[test]
fn numbers_agree_with_one_another() {
    let report = json("perf -d 4000 -t 300 -a 0 -q 32 -L");
    let get = |name: &str| number(&report[name]);
    assert!(get("ios") >= 4000.0 && get("seconds") > 0.0, "{report}");
    assert_eq!(get("reads") + get("writes"), get("ios"));
    assert_eq!((get("writes"), get("errors"), get("faults")), (0.0, 0.0, 0.0));
    assert!((get("iops") - get("ios") / get("seconds")).abs() < 1.0);
    assert!((get("mib_per_second") - get("iops") / 256.0).abs() < 0.01);
    assert!((0.9..1.1).contains(&get("commands_per_io")), "{report}");
    assert!(get("sq_doorbells_per_io") <= 1.01 && get("cq_doorbells_per_io") <= 1.01, "{report}");
    assert!(get("sq_doorbells_per_io") <= get("polls_per_io"));
    let counts = report["histogram"].as_array().unwrap().iter().map(|cell| number(&cell["ios"]));
    assert_eq!(counts.sum::<f64>(), get("ios"));
}

#[test]
fn latencies_ascend() {
    let report = json(&format!("perf {SHORT} -q 8"));
    let latency = &report["latency_ns"];
    let names = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"];
    let values: Vec<f64> = names.iter().map(|name| number(&latency[name])).collect();
    assert!(values.is_sorted() && values[0] > 0.0, "{latency}");
    assert!((values[0]..=values[6]).contains(&number(&latency["mean"])), "{latency}");
}

#[test]
fn a_large_io_is_several_commands() {
    let report = json(&format!("perf emulated:size=1G,mdts=5 {SHORT} -o 1M -q 4 -w read"));
    assert_eq!(number(&report["command_depth"]), 32.0);
    assert!((7.0..9.0).contains(&number(&report["commands_per_io"])), "{report}");
}

#[test]
fn reads_and_writes_are_mixed_as_asked() {
    for (options, low, high) in [
        ("-w write", 0.0, 0.0),
        ("-w randwrite", 0.0, 0.0),
        ("-w read", 1.0, 1.0),
        ("-w rw", 0.4, 0.6),
        ("-w randrw -M 0", 0.0, 0.0),
        ("-w randrw -M 70", 0.6, 0.8),
        ("-w rw -M 100", 1.0, 1.0),
    ] {
        let report = json(&format!("perf {SHORT} {options}"));
        let share = number(&report["reads"]) / number(&report["ios"]).max(1.0);
        assert!((low..=high).contains(&share), "{options}: {share}");
    }
}

#[test]
fn people_get_a_table() {
    let shown = text(&format!("perf {SHORT} -L --seed 42"));
    for words in [
        "emulated, namespace 1: 1 GiB in blocks of 4096 bytes\n",
        "randread, 4096 bytes, depth 128, core ",
        "seed 42",
        "IOPS",
        "MiB/s",
        "total",
        "latency in us:  50% ",
        "99.99% ",
        "cumulative",
        "100.0000%",
        "per I/O: ",
        " SQ doorbells",
        " (0 writes), 0 errors",
    ] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
}

#[test]
fn people_see_how_it_went_and_programs_get_numbers_only() {
    // A second at least, and slices of a fifth.
    let shown = text("perf -t 20 -a 0 -q 4 --rate 200 -d 200");
    let line = shown.lines().find(|line| line.starts_with("IOPS over time: ")).expect(&shown);
    let (low, high) = line.rsplit_once("  ").and_then(|(_, range)| range.split_once(" to ")).expect(line);
    assert!(low.parse::<u64>().unwrap() <= high.parse::<u64>().unwrap(), "{line}");
    let shares = shown.lines().filter_map(|line| line.split_once(" to ")?.1.split_whitespace().nth(1));
    let shares = shares.filter_map(|share| share.strip_suffix('%')?.parse::<f64>().ok());
    assert!((99.0..101.0).contains(&shares.sum::<f64>()), "{shown}");
    assert!(shown.is_ascii(), "no terminal, no blocks: {shown}");
    let report = json(&format!("perf {SHORT} -q 4")).to_string();
    assert!(!report.contains("over time") && report.is_ascii(), "{report}");
}

#[test]
fn standard_error_is_quiet_but_for_notes() {
    let output = kiovec(&format!("perf {SHORT}"));
    assert!(stderr(&output).lines().all(|line| line.starts_with("kiovec: note: ")), "{}", stderr(&output));
}

#[test]
fn a_namespace_and_a_range_can_be_chosen() {
    let report = json(&format!("perf emulated:namespaces=2,block=512 --nsid 2 --range 3:9 -o 1k {SHORT}"));
    assert_eq!((number(&report["nsid"]), number(&report["block_size"])), (2.0, 512.0));
    assert_eq!(report["range"], serde_json::json!({ "start": 3, "end": 11 }));
    let report = json(&format!("perf --range 1M-2M {SHORT}"));
    assert_eq!(report["range"], serde_json::json!({ "start": 256, "end": 512 }));
}

#[test]
fn small_queues_and_ranges_are_no_obstacle() {
    for line in
        ["emulated:mqes=1 -q 64", "-q 1", "-q 4096", "emulated:size=4k,block=4096 -q 16", "-o 1G -q 1"]
    {
        let report = json(&format!("perf {line} -d 1 -t 300 -a 0"));
        assert_eq!(number(&report["errors"]), 0.0, "{line}: {report}");
    }
}

#[test]
fn merging_is_counted_or_said_to_be_in_vain() {
    let report = json("perf emulated:block=512 -w write -q 256 --merge -d 20000 -t 300 -a 0");
    // How many go down together depends on who is polled when; `counted` has the exact figure.
    assert!(number(&report["commands_per_io"]) < 0.5 && number(&report["merges_per_io"]) > 0.5, "{report}");
    // One block each, which is written as a whole or not at all; two together need not be.
    let output = kiovec(&format!("perf emulated:block=4096,awupf=0 -w write -q 256 --merge {SHORT}"));
    assert!(stderr(&output).contains("--merge merged nothing on emulated"), "{}", stderr(&output));
}

#[test]
fn every_core_has_a_worker() {
    let cores = std::thread::available_parallelism().unwrap().get();
    if cores < 2 {
        eprintln!("NOT RUN: this takes two cores");
        return;
    }
    for pattern in ["randread", "write", "rw"] {
        let report = json(&format!("perf -c 0x3 -w {pattern} {SHORT}"));
        let workers = report["workers"].as_array().unwrap();
        assert_eq!(workers.len(), 2);
        let sum = |name: &str| workers.iter().map(|worker: &Value| number(&worker[name])).sum::<f64>();
        assert_eq!(sum("ios"), number(&report["ios"]));
        assert!((sum("iops") - number(&report["iops"])).abs() < 1.0);
    }
}

/// Controllers that are reset in the middle of I/O cost it nothing but time, and the report says that they were.
#[test]
fn resets_under_load_lose_nothing() {
    let line = "perf emulated:size=4M,media=ram,queues=2 -w randrw --verify -q 16 --numjobs 2 -a 0";
    // Long enough for resets, and not for ever.
    let line = format!("{line} --rate 2000 -d 1000 -t 300");
    let report = json(&format!("{line} --reset-every 0.1"));
    assert_eq!((number(&report["errors"]), number(&report["verify"]["mismatches"])), (0.0, 0.0));
    let recovery = &report["recovery"];
    assert!(number(&recovery["queue_pair_resets"]) >= 1.0, "{recovery}");
    assert_eq!(number(&recovery["timeouts"]), 0.0);
    let text = text(&format!("{line} --reset-every 0.2"));
    assert!(text.contains("recovery, warm-up included: 0 commands timed out"), "{text}");
}

/// A controller that fails again after each reset is given up, and that is what is said of it.
#[test]
fn a_controller_that_stays_fatal_is_given_up() {
    let output = kiovec("perf emulated:fatal_after=1000 -q 16 -t 600");
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.lines().count() <= 2 && error.contains("resets did not bring it back"), "{error}");
}

#[test]
fn command_timeouts_and_resets_are_the_drivers() {
    assert!(!text(&format!("perf {SHORT} -q 4 --command-timeout 3600")).contains("recovery"));
    for (line, what) in [
        ("--command-timeout 0", "0.001 to 86400 seconds"),
        ("--reset-every 0.01", "at least 0.1 seconds"),
        ("kernel:/dev/null --reset-every 1", "leave them out"),
        ("kernel:/dev/null --command-timeout 1", "leave them out"),
    ] {
        let error = stderr(&kiovec(&format!("perf {line}")));
        assert!(error.contains(what) && error.lines().count() == 1, "{line}: {error}");
    }
}
