use std::fs;

use super::{json, kiovec, stderr, text};

#[test]
fn two_results_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("a.json"), json("perf -d 100 -t 300 -a 0 -q 4").to_string()).unwrap();
    fs::write(path("b.json"), json("perf -d 100 -t 300 -a 0 -q 8 -w randrw").to_string()).unwrap();
    let shown = text(&format!("perf --compare {} {}", path("a.json"), path("b.json")));
    for words in ["not the same was measured:", "B/A", "IOPS", "99.9% us"] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    let depth = shown.lines().find_map(|line| line.strip_prefix("queue depth")).expect(&shown);
    assert_eq!(depth.split_whitespace().collect::<Vec<_>>(), ["4", "->", "8"]);
    let same = text(&format!("perf --compare {} {}", path("a.json"), path("a.json")));
    assert!(!same.contains("not the same") && same.contains("1.000   +0.0%"), "{same}");
    fs::write(path("c.json"), "{\"fio version\": \"fio-3.33\"}").unwrap();
    for (line, code, words) in [
        (
            format!("perf --compare {} {}", path("a.json"), path("c.json")),
            1,
            "c.json: not a result of kiovec perf",
        ),
        (
            format!("perf --compare {} {}", path("none"), path("a.json")),
            1,
            "a result is made with: kiovec perf --json > FILE",
        ),
        (format!("perf --compare {}", path("a.json")), 2, "--compare"),
        (format!("perf emulated --compare {0} {0}", path("a.json")), 2, "cannot be used with"),
    ] {
        let output = kiovec(&line);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {error}");
        assert!(error.contains(words) && error.lines().count() == 1, "{line}: {error}");
    }
}
