//! `--report`: one page of HTML that needs nothing else, for people who were not there.
//!
//! Knows how a run is shown; must not know how its figures come about.

mod chart;
mod html;
mod machine;

use std::fmt::Write as _;
use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use self::chart::{Axis, Line, draw, log_marks, marks};
use self::html::{columns, escape, pairs};
use super::latency::Latency;
use super::report::{QUANTILES, Report};
use super::run::Run;
use super::series::Point;
use crate::{Error, Result};

const STYLE: &str = include_str!("page.css");

/// A file that can be written, found so before the run rather than after it.
#[derive(Debug)]
pub struct Page {
    path: PathBuf,
    file: fs::File,
    /// It was not there before.
    new: bool,
    written: bool,
}

impl Page {
    pub fn create(path: &Path) -> Result<Page> {
        let wrong = |what: &str| Error::Unsuitable(format!("--report {}: {what}", path.display()));
        let known = fs::metadata(path);
        if known.as_ref().is_ok_and(|known| !known.is_file()) {
            return Err(wrong("not a file, and nothing else is written; name one, as in out.html"));
        }
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file =
            file.map_err(|error| wrong(&format!("{error}; name a file in a folder that can be written")))?;
        Ok(Page { path: path.to_owned(), file, new: known.is_err(), written: false })
    }

    pub fn write(mut self, run: &Run<'_>) -> Result<()> {
        let html = html(run, &machine::command_line(std::env::args()));
        let written = self.file.set_len(0).and_then(|()| self.file.rewind());
        let written = written.and_then(|()| self.file.write_all(html.as_bytes()));
        self.written = true;
        written.map_err(Error::os(format!("--report {}", self.path.display())))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if self.new && !self.written {
            // Empty, and of no use.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn html(run: &Run<'_>, command: &str) -> String {
    let names: Vec<String> = run.reports.iter().map(|report| report.device().to_string()).collect();
    let title = format!("kiovec perf {}", names.join(" "));
    let when = humantime::format_rfc3339_seconds(SystemTime::now());
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head><body><main>\n<h1>{title}</h1>\n<p>{when}</p>\n",
        title = escape(&title),
    );
    if let Some(failure) = run.failure() {
        let _ = writeln!(html, "<p class=\"bad\">{}</p>", escape(&failure));
    }
    if run.reports.len() > 1 {
        html += &tiles(run.iops(), run.mib(), &run.latency());
    }
    for report in &run.reports {
        html += &job(report, run.reports.len() > 1);
    }
    html += "<div class=\"tables\">";
    html += &pairs("Machine", &machine::facts(), false);
    let _ = write!(html, "<section><h2>Command line</h2><pre>{}</pre></section>", escape(command));
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(html, "</div>\n<footer>kiovec {version}</footer>\n</main></body></html>");
    html
}

/// One job: its figures, charts and tables.
fn job(report: &Report<'_>, titled: bool) -> String {
    let mut html = String::new();
    if titled {
        let _ = writeln!(html, "<h2>{}</h2>", escape(&report.device().to_string()));
    }
    report.heading().lines().filter(|line| !line.is_empty()).for_each(|line| {
        let _ = writeln!(html, "<p>{}</p>", escape(line));
    });
    html += &tiles(report.iops(), report.mib(report.iops()), report.latency());
    html += "<div class=\"charts\">\n";
    html += &distribution(report.latency());
    html += &tail(report.latency());
    html += &rate(report.over_time());
    html += &latency_over_time(report.over_time());
    html += "</div>\n<div class=\"tables\">";
    html += &pairs("Latency", &percentiles(report.latency()), true);
    html += &pairs("Per I/O", &report.counted_per_io(), true);
    html += &pairs("Device", &report.about_device(), false);
    let waits = report.about_waits();
    if !waits.is_empty() {
        html += &pairs("Adaptive polling, warm-up included", &waits, true);
    }
    html += "</div>";
    if report.rows().len() > 2 {
        html += &columns("Workers", &report.rows());
    }
    html
}

fn tiles(iops: f64, mib: f64, latency: &Latency) -> String {
    let histogram = latency.histogram();
    let at = |quantile| time(histogram.value_at_quantile(quantile).min(latency.max()) as f64);
    let tiles = [
        (amount(iops), "IOPS"),
        (amount(mib), "MiB/s"),
        (time(latency.mean()), "average latency"),
        (at(0.5), "median"),
        (at(0.99), "99 %"),
        (at(0.999), "99.9 %"),
    ];
    let tile =
        |(value, name): &(String, &str)| format!("<div><b>{}</b><span>{name}</span></div>", escape(value));
    format!("<div class=\"tiles\">{}</div>\n", tiles.iter().map(tile).collect::<String>())
}

fn percentiles(latency: &Latency) -> Vec<(String, String)> {
    let histogram = latency.histogram();
    let at = |quantile| time(histogram.value_at_quantile(quantile).min(latency.max()) as f64);
    let least = latency.cells().next().map_or(0, |(from, ..)| from);
    let mut rows = vec![("least".to_owned(), time(least as f64))];
    rows.extend(QUANTILES.map(|(_, name, quantile)| (name.replace('%', " %"), at(quantile))));
    rows.push(("most".into(), time(latency.max() as f64)));
    rows.push(("average".into(), time(latency.mean())));
    rows
}

/// How many I/Os took at most how long.
fn distribution(latency: &Latency) -> String {
    let total = latency.count() as f64;
    let mut line: Line = Vec::new();
    let mut below = 0;
    for (from, to, count) in latency.cells() {
        let share = |below: u64| below as f64 * 100.0 / total;
        // From where the share is not to be seen, to where what is left is not.
        let (before, after) = (share(below), share(below + count));
        below += count;
        if after >= 0.05 && before <= 99.95 {
            line.push(((from.max(1) as f64).log10(), before));
            line.push(((to as f64).log10(), after));
        }
    }
    let y =
        Axis { from: 0.0, to: 100.0, marks: marks(0.0, 100.0, 5), label: &|share| format!("{share:.0} %") };
    figure(
        "Latency: share of I/Os that took at most so long",
        &[],
        log_time_x(&line).as_ref(),
        &y,
        &[line.clone()],
    )
}

/// The longest latencies: each step to the right is a tenth of the I/Os before.
fn tail(latency: &Latency) -> String {
    let total = latency.count() as f64;
    let (mut line, mut below): (Line, u64) = (Vec::new(), 0);
    for (_, to, count) in latency.cells() {
        below += count;
        let left = (total - below as f64).max(0.5) / total;
        line.push((-left.log10(), (to.min(latency.max().max(1)) as f64).log10()));
    }
    line.dedup_by(|next, last| next.0 - last.0 < 0.002 && next.1 - last.1 < 0.002);
    let most = line.last().map_or(1.0, |point| point.0);
    let nines = |nines: &f64| match *nines as u32 {
        0 => "0".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        n => format!("99.{} %", "9".repeat(n as usize - 2)),
    };
    let last = most.floor() as u32;
    // More than four do not fit side by side.
    let step = last.div_ceil(3).max(1) as usize;
    let marks = (0..=last).step_by(step).map(f64::from).collect();
    let x = Axis { from: 0.0, to: most.max(1.0), marks, label: &nines };
    let y = log_time(line.iter().map(|point| point.1));
    figure("Latency by percentile", &[], Some(&x), &y, &[line])
}

fn rate(points: &[Point]) -> String {
    let line: Line = points.iter().map(|point| (point.at, point.iops)).collect();
    let highest = line.iter().map(|point| point.1).fold(0.0, f64::max) * 1.05;
    let y = Axis { from: 0.0, to: highest, marks: marks(0.0, highest, 5), label: &|iops| amount(*iops) };
    figure("IOPS over time", &[], Some(&seconds(points)), &y, &[line])
}

fn latency_over_time(points: &[Point]) -> String {
    let line = |of: fn(&Point) -> u64| -> Line {
        points
            .iter()
            .filter(|point| point.iops > 0.0)
            .map(|point| (point.at, (of(point).max(1) as f64).log10()))
            .collect()
    };
    let lines = [line(|point| point.p50), line(|point| point.p99), line(|point| point.max)];
    let y = log_time(lines.iter().flatten().map(|point| point.1));
    let names = ["median", "99 %", "most"];
    figure("Latency over time", &names, Some(&seconds(points)), &y, &lines)
}

fn seconds(points: &[Point]) -> Axis<'static> {
    let to = points.last().map_or(0.0, |point| point.at);
    let from = points.first().map_or(0.0, |point| point.at);
    let label = &|seconds: &f64| format!("{} s", (seconds * 1000.0).round() / 1000.0);
    Axis { from, to, marks: marks(from, to, 5), label }
}

/// An axis of times, by their decimal logarithms.
fn log_time(values: impl Iterator<Item = f64> + Clone) -> Axis<'static> {
    let from = values.clone().fold(f64::INFINITY, f64::min) - 0.02;
    let to = values.fold(f64::NEG_INFINITY, f64::max) + 0.02;
    // A wide range begins and ends where there is a mark, or nearly.
    let (from, to) =
        if to - from > 1.0 { ((from * 2.0).floor() / 2.0, (to * 2.0).ceil() / 2.0) } else { (from, to) };
    let marks = if from.is_finite() { log_marks(from, to, 5) } else { vec![] };
    Axis { from, to, marks, label: &|log| short_time(10f64.powf(*log)) }
}

fn log_time_x(line: &Line) -> Option<Axis<'static>> {
    (!line.is_empty()).then(|| log_time(line.iter().map(|point| point.0)))
}

fn figure(title: &str, names: &[&str], x: Option<&Axis<'_>>, y: &Axis<'_>, lines: &[Line]) -> String {
    let svg = x.and_then(|x| draw(x, y, lines));
    let svg = svg.unwrap_or_else(|| "<p>too few I/Os, or too short a time, to draw this</p>".into());
    let legend = names.iter().enumerate();
    let legend =
        legend.map(|(index, name)| format!("<span><i class=\"line{}\"></i>{name}</span>", index + 1));
    format!("<figure><figcaption>{title}{}</figcaption>{svg}</figure>\n", legend.collect::<String>())
}

/// Nanoseconds with a unit that fits.
fn time(nanos: f64) -> String {
    match nanos {
        nanos if nanos < 1e3 => format!("{nanos:.0} ns"),
        nanos if nanos < 1e6 => format!("{:.2} µs", nanos / 1e3),
        nanos if nanos < 1e9 => format!("{:.2} ms", nanos / 1e6),
        nanos => format!("{:.2} s", nanos / 1e9),
    }
}

/// The same for a mark on an axis: as few digits as say it.
fn short_time(nanos: f64) -> String {
    let (value, unit) = match nanos {
        nanos if nanos < 0.9995e3 => (nanos, "ns"),
        nanos if nanos < 0.9995e6 => (nanos / 1e3, "µs"),
        nanos if nanos < 0.9995e9 => (nanos / 1e6, "ms"),
        nanos => (nanos / 1e9, "s"),
    };
    format!("{} {unit}", (value * 1000.0).round() / 1000.0)
}

/// A number with a suffix for thousands and millions.
fn amount(value: f64) -> String {
    let (value, suffix) = match value {
        value if value >= 1e9 => (value / 1e9, " G"),
        value if value >= 1e6 => (value / 1e6, " M"),
        value if value >= 1e4 => (value / 1e3, " k"),
        value => (value, ""),
    };
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [0.0, 999.0, 45_000.0, 123_456.0, 45.7e6].map(amount),
            ["0", "999", "45 k", "123 k", "45.7 M"]
        );
        assert_eq!([90.0, 2710.0, 3.5e6, 2e9].map(time), ["90 ns", "2.71 µs", "3.50 ms", "2.00 s"]);
        assert_eq!(
            [1.0, 100.0, 1e3, 2.5e3, 1e6, 999_999.9].map(short_time),
            ["1 ns", "100 ns", "1 µs", "2.5 µs", "1 ms", "1 ms"]
        );
    }

    #[test]
    fn nothing_measured_is_a_page_all_the_same() {
        for html in
            [distribution(&Latency::default()), tail(&Latency::default()), rate(&[]), latency_over_time(&[])]
        {
            assert!(html.contains("too few I/Os"), "{html}");
        }
        let mut latency = Latency::default();
        latency.record(1000);
        assert!(distribution(&latency).contains("<svg"));
        tail(&latency);
    }

    #[test]
    fn a_page_that_was_not_written_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.html");
        drop(Page::create(&path).unwrap());
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        drop(Page::create(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        for (path, words) in
            [(folder.path().to_owned(), "not a file"), (folder.path().join("no/out"), "No such file")]
        {
            let error = Page::create(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("--report"), "{error}");
        }
    }
}
