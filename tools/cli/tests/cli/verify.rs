use super::{json, number};

const PATTERNS: [&str; 6] = ["read", "write", "randread", "randwrite", "rw", "randrw"];
/// Sizes of blocks and of I/Os.
const SIZES: [(u32, &str); 6] =
    [(512, "512"), (512, "1536"), (4096, "4k"), (4096, "128k"), (4096, "1M"), (512, "4M")];

/// Every workload with every size: all that is read is checked, and is as it was written.
fn all(data: &str) {
    for pattern in PATTERNS {
        for (block, size) in SIZES {
            // What is filled first takes as many I/Os as there is room for.
            let bytes = if size.ends_with('M') { "12M" } else { "1536k" };
            let device = format!("emulated:size={bytes},block={block},media=ram,sgl=on");
            let line =
                format!("perf {device} --verify -w {pattern} -o {size} -q 5 -d 20 -t 300 -a 0 --data {data}");
            let report = json(&line);
            let verify = &report["verify"];
            assert!(number(&verify["checked_blocks"]) > 0.0, "{line}: {report}");
            assert_eq!(number(&verify["mismatches"]), 0.0, "{line}: {verify}");
            assert_eq!(number(&verify["unchecked_blocks"]), 0.0, "{line}: {verify}");
            assert_eq!(number(&report["errors"]), 0.0, "{line}");
        }
    }
}

#[test]
fn all_workloads_and_sizes_with_prps() {
    all("prp");
}

#[test]
fn all_workloads_and_sizes_with_sgls() {
    all("sgl");
}

#[test]
fn reads_fill_the_range_first_and_check_what_they_read() {
    let report =
        json("perf emulated:size=1G,media=ram --verify -w read --range 1000:256 -q 4 -d 100 -t 300 -a 0");
    assert_eq!(report["range"], serde_json::json!({ "start": 1000, "end": 1256 }));
    assert_eq!(report["verify"]["read_back"], false);
    assert!(number(&report["verify"]["checked_blocks"]) >= number(&report["ios"]), "{report}");
}

#[test]
fn writes_are_read_back() {
    let report = json("perf emulated:size=1M,media=ram --verify -w write -q 4 -d 100 -t 300 -a 0");
    assert_eq!(report["verify"]["read_back"], true);
    assert!(number(&report["verify"]["checked_blocks"]) <= 256.0, "{report}");
    assert!(number(&report["writes"]) > 0.0, "{report}");
}

#[test]
fn no_more_ios_are_in_flight_than_fit_the_range() {
    let report = json("perf emulated:size=64k,media=ram --verify -w randrw -q 4096 -d 100 -t 300 -a 0");
    assert_eq!(number(&report["queue_depth"]), 16.0);
    let report = json("perf emulated:size=4k,media=ram --verify -w randrw -q 128 -d 100 -t 300 -a 0");
    assert_eq!(number(&report["queue_depth"]), 1.0);
}

#[test]
fn workers_keep_to_parts_of_their_own() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("NOT RUN: this takes two cores");
        return;
    }
    for pattern in ["randrw", "read"] {
        let report = json(&format!(
            "perf emulated:size=1M,media=ram --verify -w {pattern} -c 0,1 -q 8 -d 100 -t 300 -a 0"
        ));
        assert_eq!(number(&report["verify"]["mismatches"]), 0.0, "{report}");
        assert_eq!(report["workers"].as_array().unwrap().len(), 2);
    }
}
