//! What a workload can be beyond one size, one rate and even places, and jobs from a file.

use std::fs;
use std::time::Instant;

use super::{json, kiovec, number, stderr, text};

const SHORT: &str = "-d 200 -t 300 -a 0 -q 8";

/// Of all devices that there are.
fn everywhere(check: impl Fn(&str, &str)) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("data");
    fs::write(&path, vec![1; 8 << 20]).unwrap();
    check("emulated:size=8M,media=ram", "");
    check("trace(emulated:size=8M,media=ram)", "");
    check(&format!("kernel:{}", path.display()), "--yes-destroy-data");
}

#[test]
fn no_more_ios_begin_than_are_asked_for() {
    everywhere(|device, consent| {
        for pattern in ["randread", "randrw", "read"] {
            let began = Instant::now();
            let report = json(&format!("perf {device} {consent} --rate 500 -w {pattern} {SHORT}"));
            // All of the time there was: on a busy machine, what was due before the measurement may come in it.
            let (ios, seconds) = (number(&report["ios"]), began.elapsed().as_secs_f64());
            assert!(ios > 0.0 && ios <= 500.0 * seconds + 8.0, "{seconds} s: {report}");
            assert_eq!((number(&report["rate"]), number(&report["errors"])), (500.0, 0.0));
        }
    });
    let shown = text(&format!("perf --rate 500 {SHORT}"));
    assert!(shown.contains("depth 8, 500 IOPS asked for"), "{shown}");
}

/// Of a device that is asked for more than it can do, those that had to wait are late.
#[test]
fn latency_counts_from_when_an_io_should_have_begun() {
    let report = json("perf emulated --rate 1000000000 -q 1 -d 100 -t 300 -a 0");
    let (latency, seconds) = (&report["latency_ns"], number(&report["seconds"]));
    // At a rate that nothing keeps up with, the last one is late by nearly all of the time.
    assert!(number(&latency["max"]) > seconds * 1e9 / 2.0, "{report}");
}

#[test]
fn paced_runs_are_verified_and_fill_as_fast_as_they_can() {
    everywhere(|device, consent| {
        let report = json(&format!("perf {device} {consent} --rate 200 --verify -w randread {SHORT}"));
        assert_eq!(number(&report["verify"]["mismatches"]), 0.0, "{report}");
        assert!(number(&report["ios"]) > 0.0, "{report}");
    });
}

#[test]
fn several_sizes_are_measured_together() {
    everywhere(|device, consent| {
        for pattern in ["randread", "randrw", "write"] {
            let report =
                json(&format!("perf {device} {consent} --bssplit 4k/50:64k/50 -w {pattern} {SHORT}"));
            let size = number(&report["mib_per_second"]) / number(&report["iops"]) * 1048576.0;
            assert!((16384.0..53248.0).contains(&size), "{size}: {report}");
            assert_eq!((&report["bssplit"], number(&report["errors"])), (&"4096/50:65536/50".into(), 0.0));
        }
    });
}

#[test]
fn skewed_places_are_verified_like_others() {
    everywhere(|device, consent| {
        for skew in ["--zipf 1.1", "--hot 10:90"] {
            let report = json(&format!("perf {device} {consent} {skew} --verify -w randrw {SHORT}"));
            assert_eq!(number(&report["verify"]["mismatches"]), 0.0, "{report}");
            assert!(number(&report["verify"]["checked_blocks"]) > 0.0, "{report}");
            let report = json(&format!("perf {device} {skew} {SHORT}"));
            assert_eq!((&report["skew"], number(&report["errors"])), (&skew.replace("--", "").into(), 0.0));
        }
    });
}

/// A cache of a tenth of the range sees whether a tenth of it is hot.
#[test]
fn hot_places_are_hot() {
    let hits = |skew: &str| {
        let device = "cache(bytes=4M,emulated:size=32M,media=ram)";
        let report = json(&format!("perf {device} {skew} -d 4000 -t 300 -a 0 -q 32"));
        let layer = &report["layers"][0];
        number(&layer["hits"])
            / (number(&layer["hits"]) + number(&layer["misses"]) + number(&layer["shared"]))
    };
    let (even, hot) = (hits(""), hits("--hot 10:95"));
    assert!(even < 0.4 && hot > even + 0.1, "{even} {hot}");
}

#[test]
fn a_polite_worker_says_what_it_costs() {
    let report = json(&format!("perf --poll adaptive {SHORT}"));
    let waits = &report["adaptive_polling"];
    assert!(number(&waits["max_ns"]) >= number(&waits["mean_ns"]), "{report}");
    assert!(number(&report["ios"]) > 0.0, "{report}");
    let shown = text(&format!("perf --poll adaptive --rate 100 {SHORT}"));
    assert!(
        shown.contains("adaptive polling, warm-up included: ") && shown.contains(" us at most"),
        "{shown}"
    );
    assert!(json(&format!("perf {SHORT}"))["adaptive_polling"].is_null());
}

#[test]
fn jobs_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.fio");
    let jobs = "[global]\nruntime=300\nramp_time=100ms\ntime_based\nnumber_ios=100\n\n[reads]\nrw=randread\nbs=8k\niodepth=4\n\
                filename=emulated:serial=A\n\n[writes]\nrw=write\nbssplit=4k/60:64k/40\nnumjobs=2\noffset=1M\n\
                size=16M\nfilename=emulated:serial=B\n";
    fs::write(&path, jobs).unwrap();
    let document = json(&format!("perf --jobfile {}", path.display()));
    let jobs = document["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2, "{document}");
    assert_eq!((&jobs[0]["workload"], number(&jobs[0]["io_size"])), (&"randread".into(), 8192.0));
    assert_eq!(jobs[1]["workers"].as_array().unwrap().len(), 2);
    assert_eq!(number(&jobs[1]["range"]["start"]), 256.0, "{document}");
    assert!(jobs.iter().all(|job| number(&job["ios"]) > 0.0 && number(&job["errors"]) == 0.0), "{document}");
    // Another device for a job that names none.
    fs::write(&path, "[a]\nrw=randrw\nruntime=300s\nnumber_ios=1\n").unwrap();
    let report = json(&format!("perf emulated:serial=C -a 0 --jobfile {}", path.display()));
    assert_eq!((&report["device"], &report["workload"]), (&"emulated:serial=C".into(), &"randrw".into()));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown = path("unknown", "[a]\nrw=read\nioengine=libaio\n");
    let named = path("named", "[a]\nfilename=emulated\n");
    let writes = path("writes", "[a]\nrw=write\nfilename=01:00.0\n");
    let size = path("size", "[a]\nsize=2T\n");
    for (line, code, words) in [
        (
            format!("perf --jobfile {unknown}"),
            2,
            "line 3: ioengine is not supported; supported are: rw, bs, ",
        ),
        (format!("perf emulated:serial=A --jobfile {named}"), 2, "filename and DEVICE both name one"),
        (format!("perf --jobfile {writes}"), 2, "--yes-destroy-data"),
        (format!("perf --jobfile {size}"), 1, "and the namespace at LBA"),
        ("perf --jobfile /nowhere".into(), 2, "/nowhere: No such file"),
        ("perf --zipf 0".into(), 2, "above 0"),
        ("perf --zipf 1.1 -w read".into(), 2, "--zipf and --hot are about random LBAs"),
        ("perf --hot 10".into(), 2, "such as 10:90"),
        ("perf --hot 10:90 --zipf 1".into(), 2, "cannot be used with"),
        ("perf --bssplit 4k/50".into(), 2, "50 together"),
        ("perf --bssplit 4k/50:1000/50".into(), 1, "-o 1000: an odd I/O size"),
        ("perf emulated:media=ram --bssplit 4k --verify".into(), 2, "cannot be used with"),
        ("perf --rate 0".into(), 2, "--rate"),
        ("perf --poll rarely".into(), 2, "adaptive"),
        ("perf kernel:/dev/null --poll adaptive".into(), 2, "--poll"),
    ] {
        let output = kiovec(&line);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {error}");
        assert!(error.contains(words) && error.lines().count() == 1, "{line}: {error}");
    }
}

/// What users of fio type works, on the command line and in a file.
#[test]
fn options_have_the_names_that_fio_gave_them() {
    let report = json("perf --rw readwrite --bs 8k --iodepth 4 --runtime 300 --ramp-time 0 --number_ios 50");
    assert_eq!((&report["workload"], &report["queue_depth"]), (&"rw".into(), &4.into()));
    assert_eq!(number(&report["io_size"]), 8192.0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.fio");
    fs::write(&path, "[a]\nreadwrite=randrw\nblocksize=16k\ndirect=1\nruntime=300\nnumber_ios=50\n").unwrap();
    let report = json(&format!("perf -a 0 --jobfile {}", path.display()));
    assert_eq!((&report["workload"], number(&report["io_size"])), (&"randrw".into(), 16384.0));
    fs::write(&path, "[a]\ndirect=0\n").unwrap();
    let error = stderr(&kiovec(&format!("perf --jobfile {}", path.display())));
    assert!(error.contains("line 2: direct=0: 1, or nothing: no page cache is on the way"), "{error}");
}

/// Each worker does as many as it was told to, in the time that it takes; a job that is done does not end the others.
#[test]
fn a_run_ends_after_so_many_ios() {
    let report = json("perf -d 300 -t 86400 -a 0 -q 8 --numjobs 2");
    let workers = report["workers"].as_array().unwrap();
    assert!(workers.len() == 2 && workers.iter().all(|worker| number(&worker["ios"]) >= 300.0), "{report}");
    assert!(number(&report["seconds"]) < 80000.0, "{report}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.fio");
    let jobs = "[global]\nruntime=24h\niodepth=8\n[few]\nnumber_ios=1\nfilename=emulated:serial=A\n[many]\n\
                number_ios=300\nfilename=emulated:serial=B\n";
    fs::write(&path, jobs).unwrap();
    let document = json(&format!("perf -a 0 --jobfile {}", path.display()));
    let ios = |job: usize| number(&document["jobs"][job]["ios"]);
    assert!(ios(0) >= 1.0 && ios(1) >= 300.0, "{document}");
}
