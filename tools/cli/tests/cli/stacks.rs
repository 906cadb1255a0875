use std::time::{Duration, Instant};

use super::{json, kiovec, number, stderr, stdout, text};

const TRACED: &str = "trace(partition(start=8,blocks=1000,emulated:size=16M,media=ram))";

#[test]
fn a_stack_is_a_device() {
    let report = json(&format!("perf {TRACED} --verify -w randrw -q 8 -d 100 -t 300 -a 0"));
    assert_eq!(report["device"], TRACED);
    assert_eq!(report["range"], serde_json::json!({ "start": 0, "end": 1000 }));
    assert!(number(&report["verify"]["checked_blocks"]) > 0.0, "{report}");
    assert_eq!(number(&report["verify"]["mismatches"]) + number(&report["errors"]), 0.0, "{report}");
    let controller = &report["controllers"][0];
    assert_eq!(controller["name"], "emulated:size=16M,media=ram");
    assert_eq!((&controller["nsid"], controller["lost"].is_null()), (&1.into(), true));
    let layers = report["layers"].as_array().unwrap();
    assert_eq!((layers.len(), &layers[0]["layer"]), (1, &TRACED.into()));
    let seen = number(&layers[0]["reads"]) + number(&layers[0]["writes"]);
    assert!(seen >= number(&report["ios"]), "{report}");
    assert!((number(&layers[0]["latency_ns"]["mean"])) > 0.0, "{report}");
}

#[test]
fn people_see_what_its_layers_counted() {
    let shown = text(&format!("perf {TRACED} -w read -q 8 -d 100 -t 300 -a 0"));
    assert!(shown.starts_with(&format!("{TRACED}: 3.9 MiB in blocks of 4096 bytes\n")), "{shown}");
    assert!(shown.contains(&format!("layers, warm-up included:\n{TRACED}: ")), "{shown}");
    assert!(shown.contains(" reads, 0 writes, 0 others, 0 failed; "), "{shown}");
}

#[test]
fn layers_that_remember_have_a_part_of_the_range_for_each_worker() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("NOT RUN: this takes two cores");
        return;
    }
    let report =
        json("perf retry(verify(emulated:size=1M,media=ram)) -w randrw -q 8 -d 100 -t 300 -a 0 -c 0,1");
    assert_eq!(number(&report["errors"]), 0.0, "{report}");
    let layers = report["layers"].as_array().unwrap();
    assert_eq!((layers.len(), &layers[0]["retried"], &layers[1]["mismatches"]), (2, &0.into(), &0.into()));
    assert!(number(&layers[1]["checked"]) > 0.0, "{report}");
}

#[test]
fn one_namespace_number_is_for_all_controllers() {
    let report = json("perf trace(emulated:namespaces=2) --nsid 2 -d 100 -t 300 -a 0 -q 1");
    assert_eq!(report["controllers"][0]["nsid"], 2);
}

#[test]
fn a_lost_controller_ends_the_run_that_needs_it() {
    for cores in ["-q 8", "-q 8 -c 0,1"] {
        if cores.contains("-c") && std::thread::available_parallelism().unwrap().get() < 2 {
            eprintln!("NOT RUN: this takes two cores");
            continue;
        }
        let began = Instant::now();
        let output = kiovec(&format!("perf trace(emulated:unplug_after=2000) -t 600 {cores}"));
        assert!(began.elapsed() < Duration::from_secs(500), "{:?}", began.elapsed());
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        for words in [
            "trace(emulated:unplug_after=2000): ",
            " I/Os failed; the first: read: controller lost at LBA ",
            "; emulated:unplug_after=2000: ",
            "the device is gone from the bus",
        ] {
            assert!(error.contains(words), "{words:?} is not in {error:?}");
        }
        assert!(stdout(&output).contains(" failed; "), "the report is there all the same");
    }
}
