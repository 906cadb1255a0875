//! `--report`: a page that needs nothing else.

use std::fs;

use super::{kiovec, stderr, text};

/// The page of a run.
fn page(line: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.html");
    text(&format!("perf {line} --report {}", path.display()));
    fs::read_to_string(path).unwrap()
}

/// Elements that are opened, in order, each closed where it should be.
fn check_nesting(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = page.split_once("</style>").unwrap().1;
    for tag in body.split('<').skip(1).map(|rest| rest.split_once('>').expect("a tag ends").0) {
        let name = tag.split([' ', '/']).find(|name| !name.is_empty()).unwrap();
        if tag.starts_with('/') {
            // The head was opened before the style.
            let expected = open.pop().unwrap_or(if name == "head" { "head" } else { "html" });
            assert_eq!(expected, name, "{tag}");
        } else if !tag.ends_with('/') && name != "meta" {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_page_has_all_of_it_and_needs_no_network() {
    let page = page("emulated:serial=S-77 -t 20 -a 0 -d 200 --rate 400 -q 8 --numjobs 2 -w randrw");
    check_nesting(&page);
    assert_eq!(page.matches("<svg ").count(), 4, "{page}");
    for words in [
        "prefers-color-scheme: dark",
        "width=device-width",
        "Content-Security-Policy",
        "IOPS over time",
        "Latency over time",
        "<th>99.9 %</th>",
        "<th>merges</th>",
        "<th>SQ doorbells</th>",
        "<td>S-77</td>",
        "<h2>Machine</h2>",
        "perf emulated:serial=S-77 -t 20",
        "Workers",
    ] {
        assert!(page.contains(words), "{words:?} is not in:\n{page}");
    }
    for words in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(words), "{words:?} is in:\n{page}");
    }
    // The only address names a format, and nobody asks for it.
    assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn what_others_say_is_never_markup() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("<script>&\"';-->");
    fs::write(&path, [1; 8192]).unwrap();
    let page = page(&format!("kernel:{} -d 1 -t 300 -a 0 -q 1", path.display()));
    check_nesting(&page);
    assert!(
        !page.contains("<script") && page.contains("/&lt;script&gt;&amp;&quot;&#39;;--&gt;</h1>"),
        "{page}"
    );
}

#[test]
fn several_jobs_and_hardly_any_ios_are_no_obstacle() {
    for line in ["emulated:serial=A trace(emulated:serial=B) -t 0.1 -a 0", "-t 0.001 -a 0 -q 1 -o 1M"] {
        check_nesting(&page(line));
    }
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no/out.html");
    for (path, words) in [(missing.as_path(), "No such file"), (folder.path(), "not a file")] {
        let output = kiovec(&format!("perf -t 600 --report {}", path.display()));
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(words) && error.lines().count() == 1, "{error}");
    }
    let path = folder.path().join("out.html");
    assert!(!kiovec(&format!("perf -o 1000 --report {}", path.display())).status.success());
    assert!(!path.exists(), "nothing is left of a run that was none");
}
