//! The kernel's driver under the same workloads, on files: block devices that may be written are nobody's to
//! expect.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{json, kiovec, number, stderr, text};

/// A file of so many bytes, with something in it.
fn file(bytes: usize) -> (TempDir, PathBuf, String) {
    // Not in memory: some of those take no O_DIRECT.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("data");
    fs::write(&path, vec![0x5a; bytes]).unwrap();
    let name = format!("kernel:{}", path.display());
    (folder, path, name)
}

const CONSENT: &str = "--yes-destroy-data -d 20 -t 300 -a 0";

#[test]
fn numbers_agree_with_one_another() {
    let (_folder, _, name) = file(8 << 20);
    let report = json(&format!("perf {name} -d 20 -t 300 -a 0 -q 16"));
    assert_eq!((&report["device"], number(&report["errors"])), (&name.into(), 0.0));
    assert!(number(&report["ios"]) > 0.0 && number(&report["latency_ns"]["p50"]) > 0.0, "{report}");
    assert_eq!(number(&report["range"]["end"]) * number(&report["block_size"]), f64::from(8 << 20));
    assert!((0.0..=1.1).contains(&number(&report["system_calls_per_io"])), "{report}");
    assert!(report["commands_per_io"].is_null() && report["nsid"].is_null(), "{report}");
}

#[test]
fn every_workload_is_verified() {
    for pattern in ["read", "write", "randread", "randwrite", "rw", "randrw"] {
        for size in ["4k", "64k", "1M"] {
            let (_folder, _, name) = file(4 << 20);
            let report = json(&format!("perf {name} --verify -w {pattern} -o {size} -q 3 {CONSENT}"));
            let verify = &report["verify"];
            assert!(number(&verify["checked_blocks"]) > 0.0, "{pattern} {size}: {report}");
            assert_eq!(number(&verify["mismatches"]) + number(&report["errors"]), 0.0, "{report}");
        }
    }
}

#[test]
fn one_at_a_time_is_possible_and_so_are_many() {
    let (_folder, _, name) = file(1 << 20);
    for depth in [1, 4096] {
        let report = json(&format!("perf {name} -q {depth} -d 20 -t 300 -a 0"));
        assert!(number(&report["ios"]) > 0.0 && number(&report["errors"]) == 0.0, "{report}");
    }
}

#[test]
fn what_is_written_is_in_the_range_and_nowhere_else() {
    let (_folder, path, name) = file(1 << 20);
    json(&format!("perf {name} -w write -q 4 --range 64k:64k {CONSENT}"));
    let data = fs::read(&path).unwrap();
    let untouched = |range: std::ops::Range<usize>| data[range].iter().all(|byte| *byte == 0x5a);
    assert!(untouched(0..65536) && untouched(131_072..1 << 20));
    assert!(!untouched(65536..131_072));
}

#[test]
fn people_see_how_it_is_driven() {
    let (_folder, _, name) = file(1 << 20);
    let shown = text(&format!("perf {name} -d 20 -t 300 -a 0"));
    assert!(shown.starts_with(&format!("{name}: 1 MiB in blocks of ")), "{shown}");
    assert!(shown.contains("io_uring, ") && shown.contains(" system calls\n"), "{shown}");
    assert!(!shown.contains("doorbells"), "{shown}");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let (folder, path, name) = file(64 << 10);
    let missing = format!("kernel:{}", folder.path().join("missing").display());
    for (line, words) in [
        (format!("perf {name} -w write"), &["overwrites data on kernel:", "--yes-destroy-data"][..]),
        (format!("perf {name} --verify"), &["overwrites data on kernel:", "--yes-destroy-data"]),
        (format!("perf {missing}"), &["No such file", "truncate -s 1G"]),
        (format!("perf {missing} -w write --yes-destroy-data"), &["No such file"]),
        (format!("perf {name} -o 128k"), &["larger than the range", "65536 bytes"]),
        (format!("perf {name} -o 100"), &["odd I/O size"]),
        (format!("perf {name} --range 64k:4k"), &["and the namespace at LBA"]),
        (format!("perf {name} --nsid 1"), &["--nsid", "one namespace already"]),
        (format!("perf {name} --data prp"), &["--data", "leave it out"]),
        ("perf kernel:".into(), &["kernel:/dev/nvme0n1"]),
        ("perf kernel:/dev/null".into(), &["neither a block device nor a file"]),
        (format!("perf trace({name})"), &["the driver's own devices"]),
        (format!("identify {name}"), &["a device is 0000:01:00.0"]),
    ] {
        let output = kiovec(&line);
        let error = stderr(&output);
        assert!(!output.status.success() && output.stdout.is_empty(), "kiovec {line}");
        assert_eq!(error.lines().count(), 1, "kiovec {line}: {error}");
        for word in words {
            assert!(error.contains(word), "kiovec {line}: {word:?} is not in {error:?}");
        }
    }
    assert_eq!(fs::read(path).unwrap(), vec![0x5a; 64 << 10], "nothing of all this has written");
}
