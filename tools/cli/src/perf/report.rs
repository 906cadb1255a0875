//! What a run has found: a table in the manner of SPDK's perf, or JSON.

use std::fmt::Write;
use std::sync::Arc;

use hdrhistogram::Histogram;
use hugepage_setup::Bytes;
use kiovec::{Controller, Namespace, Operation};
use serde_json::{Value, json};

use super::course::Tally;
use super::idle::{Polling, Waits};
use super::job::Job;
use super::latency::Latency;
use super::layers::Counted;
use super::meter::Reason;
use super::options::Options;
use super::recovery::Recovery;
use super::series::{self, Point};
use super::sketch::{self, Style};
use super::subject::{Attached, Subject};
use super::supervisor::End;
use super::verify::Checks;
use super::{Side, cores};
use crate::output;

/// Quantiles that are reported: name in JSON, name for people, value.
pub const QUANTILES: [(&str, &str, f64); 5] = [
    ("p50", "50%", 0.5),
    ("p90", "90%", 0.9),
    ("p99", "99%", 0.99),
    ("p99_9", "99.9%", 0.999),
    ("p99_99", "99.99%", 0.9999),
];

/// What a result says of itself, so that it is known again.
pub const TOOL: &str = "kiovec perf";

/// A counter's name, whether people want to know that it is zero, and the counter.
type Count = (&'static str, bool, fn(&Tally) -> u64);

/// What is counted per I/O that the kernel carries out.
const PER_KERNEL_IO: [Count; 2] =
    [("polls", true, |worker| worker.polls), ("system calls", true, |worker| worker.calls)];

/// What is counted per I/O that the driver carries out.
const PER_IO: [Count; 7] = [
    ("polls", true, |worker| worker.polls),
    ("commands", true, |worker| worker.counters.commands),
    ("splits", false, |worker| worker.counters.splits),
    ("merges", false, |worker| worker.counters.merges),
    ("bounces", false, |worker| worker.counters.bounces),
    ("SQ doorbells", true, |worker| worker.counters.sq_doorbells),
    ("CQ doorbells", true, |worker| worker.counters.cq_doorbells),
];

pub struct Report<'a> {
    options: &'a Options,
    job: &'a Job,
    attached: &'a Attached,
    workers: Vec<Tally>,
    /// Why it ended before the other jobs.
    lost: Option<String>,
    interrupted: bool,
    latency: Latency,
    histogram: Histogram<u64>,
    checks: Option<Checks>,
    /// By the layers of a stack, in all workers.
    layers: Vec<Counted>,
    over_time: Vec<Point>,
}

impl<'a> Report<'a> {
    pub fn new(side: &'a Side, end: End, interrupted: bool) -> Report<'a> {
        let Side { options, job, attached } = side;
        let End { tallies: workers, lost } = end;
        let attached: &Attached = attached;
        let mut latency = Latency::default();
        workers.iter().for_each(|worker| latency.add(&worker.latency));
        Report {
            options,
            job,
            attached,
            lost: lost.map(|error| error.to_string()),
            interrupted,
            histogram: latency.histogram(),
            latency,
            checks: checks(&workers),
            over_time: series::over_time(&workers),
            layers: Counted::sum(workers.iter().map(|worker| &worker.layers[..])),
            workers,
        }
    }

    /// What was wrong, if anything was.
    pub fn failure(&self) -> Option<String> {
        let device = &self.options.device;
        if let Some(Checks { mismatches: mismatches @ 1.., first: Some(first), .. }) = &self.checks {
            let what = self.subject();
            return Some(format!("{what}: {mismatches} blocks are not as written; the first: {first}"));
        }
        if let Some(lost) = &self.lost {
            return Some(format!("{lost}; its job ended after {:.2} s of the measurement", self.seconds()));
        }
        if let Some((operation, failure)) = self.first_error() {
            let (errors, name) = (self.sum(|worker| worker.errors), lower(operation));
            let lost = self.attached.lost().iter().map(|lost| format!("; {lost}")).collect::<String>();
            return Some(format!("{device}: {errors} I/Os failed; the first: {name}: {failure}{lost}"));
        }
        match self.sum(|worker| worker.faults) {
            0 => None,
            faults => Some(format!(
                "{device}: {faults} completions answer no command in flight; do not trust this device's data"
            )),
        }
    }

    /// What was lost without any harm, and what was asked for in vain.
    pub fn notes(&self) -> Vec<String> {
        if self.first_error().is_some() || self.lost.is_some() {
            return vec![];
        }
        let lost = self.attached.lost();
        let mut notes: Vec<String> =
            lost.iter().map(|lost| format!("{lost}; the run went on without it")).collect();
        let sequential = !self.options.io_pattern.is_random();
        if self.job.merge && sequential && self.ios() > 0 && self.sum(|worker| worker.counters.merges) == 0 {
            notes.push(format!(
                "--merge merged nothing on {}: writes of one block stay as atomic as they are (AWUPF), and I/Os as large \
                 as a command may be have no room for neighbours; try smaller blocks or I/Os",
                self.options.device
            ));
        }
        notes
    }

    /// The device, and which part of it; that of each controller below layers is theirs to know.
    fn subject(&self) -> String {
        let device = &self.options.device;
        match &self.job.namespaces[..] {
            [namespace] if !device.is_stack() => format!("{device}, namespace {}", namespace.nsid()),
            _ => device.to_string(),
        }
    }

    fn first_error(&self) -> Option<(Operation, Reason)> {
        self.workers.iter().find_map(|worker| worker.first_error)
    }

    pub fn sum(&self, of: impl Fn(&Tally) -> u64) -> u64 {
        self.workers.iter().map(of).sum()
    }

    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    pub fn over_time(&self) -> &[Point] {
        &self.over_time
    }

    /// What is counted, and how much of it for each I/O.
    pub fn counted_per_io(&self) -> Vec<(String, String)> {
        let counts = self.per_io_counts().iter();
        counts.map(|(name, _, of)| ((*name).to_owned(), format!("{:.4}", self.per_io(of)))).collect()
    }

    /// What waiting has cost, if the workers waited otherwise than by polling.
    pub fn about_waits(&self) -> Vec<(String, String)> {
        self.waits().map(Waits::facts).unwrap_or_default()
    }

    /// What the device says of itself. Whoever shows it has to mind that nobody has looked at it.
    pub fn about_device(&self) -> Vec<(String, String)> {
        let Some(opened) = self.attached.driver() else {
            return vec![
                ("driver".into(), "the kernel's, through io_uring".into()),
                ("way".into(), self.attached.way()),
            ];
        };
        let mut facts = vec![("driver".into(), "kiovec".into()), ("memory".into(), self.attached.way())];
        for (controller, namespace) in opened.controllers.iter().zip(&self.job.namespaces) {
            let identity = controller.identity();
            facts.push((
                "controller".into(),
                format!("{}, namespace {}", controller.name(), namespace.nsid()),
            ));
            facts.push(("model".into(), identity.model()));
            facts.push(("serial".into(), identity.serial()));
            facts.push(("firmware".into(), identity.firmware()));
        }
        facts
    }

    /// Whether the job ended before the others.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    pub fn device(&self) -> &Subject {
        &self.options.device
    }

    pub fn ios(&self) -> u64 {
        self.latency.count()
    }

    /// Each worker by its own clock.
    pub fn iops(&self) -> f64 {
        self.workers.iter().map(iops).sum()
    }

    pub fn mib(&self, iops: f64) -> f64 {
        let (ios, bytes) = (self.ios(), self.sum(|worker| worker.bytes));
        let size = if ios > 0 { bytes as f64 / ios as f64 } else { 0.0 };
        iops * size / (1 << 20) as f64
    }

    fn seconds(&self) -> f64 {
        self.workers.iter().map(|worker| worker.seconds).fold(0.0, f64::max)
    }

    fn per_io(&self, of: impl Fn(&Tally) -> u64) -> f64 {
        self.sum(of) as f64 / (self.ios() as f64).max(1.0)
    }

    /// What adaptive polling waited.
    fn waits(&self) -> Option<Waits> {
        self.workers.iter().filter_map(|worker| worker.waits).reduce(Waits::add)
    }

    fn recovery(&self) -> Recovery {
        self.workers.iter().map(|worker| worker.recovery).sum()
    }

    fn per_io_counts(&self) -> &'static [Count] {
        if self.attached.driver().is_some() { &PER_IO } else { &PER_KERNEL_IO }
    }

    // ---- for people ----

    pub fn text(&self) -> String {
        let mut text = self.heading();
        text += &output::table(&self.rows(), &[1, 2, 3, 4, 5]);
        text += &self.quantiles();
        text += &self.pictures(Style::of_stdout());
        if self.options.latency_histogram {
            text += &self.cells();
        }
        text += &self.counts();
        if !self.layers.is_empty() {
            text += "\nlayers, warm-up included:\n";
            self.layers.iter().for_each(|layer| text += &format!("{}\n", layer.text()));
        }
        text
    }

    pub fn heading(&self) -> String {
        let Job { blocks, block_size, io_size, depth, seed, split, skew, .. } = self.job;
        let size =
            split.as_ref().map_or_else(|| format!("{io_size} bytes"), |split| format!("{split} bytes"));
        let mut more = skew.map_or_else(String::new, |skew| format!(", {skew}"));
        if let Some(rate) = self.options.rate {
            more += &format!(", {rate} IOPS asked for");
        }
        if self.job.merge {
            more += ", neighbours merged";
        }
        if self.job.polling == Polling::Adaptive {
            more += ", adaptive polling";
        }
        let pattern = self.options.io_pattern;
        let share = match pattern.is_mixed() {
            true => format!(" ({} % reads)", self.options.read_share()),
            false => String::new(),
        };
        let bytes = Bytes(blocks.saturating_mul((*block_size).into()));
        let (cores, seconds) = (cores::ranges(&self.job.cores), self.seconds());
        let core = if self.job.cores.len() == 1 { "core" } else { "cores" };
        let cut = match (&self.lost, self.interrupted) {
            (Some(_), _) => ", device lost",
            (None, true) => ", interrupted",
            (None, false) => "",
        };
        format!(
            "{}: {bytes} in blocks of {block_size} bytes\n\
             {}{share}, {size}, depth {depth}{more}, {core} {cores}, {seconds:.2} s{cut}, seed {seed}, {}\n\n",
            self.subject(),
            pattern.name(),
            self.attached.way()
        )
    }

    pub fn rows(&self) -> Vec<Vec<String>> {
        let row = |name: String, iops: f64, latency: &Latency| {
            let least = latency.cells().next().map_or(0, |(from, ..)| from);
            let columns = [latency.mean(), least as f64, latency.max() as f64].map(micros);
            let rates = [format!("{iops:.1}"), format!("{:.2}", self.mib(iops))];
            [name].into_iter().chain(rates).chain(columns).collect()
        };
        let head = ["", "IOPS", "MiB/s", "average us", "min us", "max us"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        if self.workers.len() > 1 {
            let workers = self.workers.iter();
            rows.extend(
                workers.map(|worker| row(format!("core {}", worker.core), iops(worker), &worker.latency)),
            );
        }
        rows.push(row("total".into(), self.iops(), &self.latency));
        rows
    }

    fn quantiles(&self) -> String {
        let mut text = "\nlatency in us:".to_owned();
        for (_, name, quantile) in QUANTILES {
            let _ = write!(text, "  {name} {}", micros(self.quantile(quantile)));
        }
        let _ = writeln!(text, "  max {}", micros(self.latency.max() as f64));
        text
    }

    /// The latencies as bars, and how the rate went.
    fn pictures(&self, style: Style) -> String {
        let cells: Vec<_> = self.latency.cells().collect();
        let total = (self.ios() as f64).max(1.0);
        let body = self.quantile(0.005) as u64..=self.quantile(0.99) as u64;
        let rows: Vec<Vec<String>> = sketch::histogram(style, &cells, body)
            .into_iter()
            .map(|(from, to, ios, bar)| {
                let share = format!("{:.2}%", ios as f64 * 100.0 / total);
                vec![micros(from as f64), "to".into(), micros(to as f64), share, bar]
            })
            .collect();
        let mut text = output::table(&rows, &[0, 2, 3]);
        let rates: Vec<f64> = self.over_time.iter().map(|point| point.iops).collect();
        if let [first, _, ..] = rates[..] {
            let lowest = rates.iter().copied().fold(first, f64::min);
            let highest = rates.iter().copied().fold(first, f64::max);
            let line = sketch::sparkline(style, &rates);
            let _ = writeln!(text, "\nIOPS over time: {line}  {lowest:.0} to {highest:.0}");
        }
        text
    }

    fn quantile(&self, quantile: f64) -> f64 {
        // The last cell's middle may lie beyond the greatest value there was.
        self.histogram.value_at_quantile(quantile).min(self.latency.max()) as f64
    }

    /// Four lines an octave are as fine as anybody reads.
    fn cells(&self) -> String {
        let mut rows = vec![["from us", "to us", "share", "cumulative", "I/Os"].map(str::to_owned).to_vec()];
        let total = (self.ios() as f64).max(1.0);
        let mut below = 0;
        for (from, to, count) in coarse(self.latency.cells()) {
            below += count;
            let percent = |count: u64| format!("{:.4}%", count as f64 * 100.0 / total);
            let bounds = [micros(from as f64), micros(to as f64)];
            let shares = [percent(count), percent(below), count.to_string()];
            rows.push(bounds.into_iter().chain(shares).collect());
        }
        format!("\n{}", output::table(&rows, &[0, 1, 2, 3, 4]))
    }

    fn counts(&self) -> String {
        let mut text = "\nper I/O: ".to_owned();
        let mut comma = "";
        for (name, always, of) in self.per_io_counts() {
            let share = self.per_io(of);
            if *always || share > 0.0 {
                let _ = write!(text, "{comma}{share:.3} {name}");
                comma = ", ";
            }
        }
        let _ = writeln!(
            text,
            "\nI/Os: {} ({} writes), {} errors",
            self.ios(),
            self.sum(|worker| worker.writes),
            self.sum(|worker| worker.errors),
        );
        if let Some(lost) = &self.lost {
            let _ = writeln!(text, "device lost: {lost}");
        }
        if let Some(waits) = self.waits() {
            text += &waits.text();
        }
        text += &self.recovery().text().unwrap_or_default();
        if let Some(Checks { checked, unchecked, mismatches, .. }) = &self.checks {
            let _ = writeln!(
                text,
                "verified: {checked} blocks read and checked, {mismatches} wrong, {unchecked} unchecked"
            );
            if self.job.read_back && (self.interrupted || self.lost.is_some()) {
                text += "not read back: interrupted\n";
            }
        }
        text
    }

    // ---- for programs ----

    pub fn json(&self) -> Value {
        let mut document = json!({
            "tool": TOOL,
            "version": env!("CARGO_PKG_VERSION"),
            "driver": if self.attached.driver().is_some() { "kiovec" } else { "io_uring" },
            "device": self.options.device.to_string(),
            "controllers": self.controllers(),
            "block_size": self.job.block_size,
            "workload": self.options.io_pattern.name(),
            "read_percent": self.options.read_share(),
            "io_size": self.job.io_size,
            "queue_depth": self.job.depth,
            "bssplit": self.job.split.as_ref().map(ToString::to_string),
            "skew": self.job.skew.map(|skew| skew.to_string()),
            "rate": self.options.rate,
            "merge": self.job.merge.then_some(true),
            "poll": self.attached.driver().map(|_| self.job.polling.name()),
            "adaptive_polling": self.waits().map(Waits::json),
            "command_depth": self.workers.iter().map(|worker| worker.queue_depth).min(),
            "range": self.range(),
            "seed": self.job.seed,
            "pages": self.attached.pages().map(|pages| pages.to_string()),
            "way": self.attached.way(),
            "interrupted": self.interrupted,
            "lost": self.lost,
            "seconds": self.seconds(),
            "ios": self.ios(),
            "reads": self.ios() - self.sum(|worker| worker.writes),
            "writes": self.sum(|worker| worker.writes),
            "errors": self.sum(|worker| worker.errors),
            "first_error": self.first_error().map(|(op, failure)| format!("{}: {failure}", lower(op))),
            "faults": self.sum(|worker| worker.faults),
            "recovery": self.attached.driver().map(|_| self.recovery().json()),
            "iops": self.iops(),
            "mib_per_second": self.mib(self.iops()),
            "latency_ns": self.latencies(),
            "verify": self.checks.as_ref().map(|checks| self.verified(checks)),
            "workers": self.workers.iter().map(|worker| self.worker(worker)).collect::<Vec<_>>(),
        });
        for (name, _, of) in self.per_io_counts() {
            document[format!("{}_per_io", name.to_lowercase().replace(' ', "_"))] = json!(self.per_io(of));
        }
        if self.options.device.is_stack() {
            document["layers"] = self.layers.iter().map(Counted::json).collect();
        } else if self.attached.driver().is_some() {
            document["nsid"] = self.job.namespaces.iter().map(Namespace::nsid).next().into();
        }
        if self.options.latency_histogram {
            let cell = |(from, to, count)| json!({ "from_ns": from, "to_ns": to, "ios": count });
            document["histogram"] = self.latency.cells().map(cell).collect();
        }
        document
    }

    fn controllers(&self) -> Value {
        let controller = |(controller, namespace): (&Arc<Controller>, &Namespace)| {
            json!({
                "name": controller.name(),
                "nsid": namespace.nsid(),
                "lost": controller.check().err().map(|error| error.to_string()),
            })
        };
        let controllers = self.attached.driver().map(|opened| &opened.controllers[..]).unwrap_or_default();
        controllers.iter().zip(&self.job.namespaces).map(controller).collect()
    }

    fn range(&self) -> Value {
        let first = self.job.parts.first().map_or(0, |part| part.first);
        let end = self.job.parts.last().map_or(0, |part| part.lba_of(part.units));
        json!({ "start": first, "end": end })
    }

    fn latencies(&self) -> Value {
        latencies(&self.latency)
    }

    fn verified(&self, checks: &Checks) -> Value {
        json!({
            "checked_blocks": checks.checked,
            "unchecked_blocks": checks.unchecked,
            "mismatches": checks.mismatches,
            "first_mismatch": checks.first.as_ref().map(ToString::to_string),
            "read_back": self.job.read_back && !self.interrupted && self.lost.is_none(),
        })
    }

    fn worker(&self, worker: &Tally) -> Value {
        json!({
            "core": worker.core,
            "seconds": worker.seconds,
            "ios": worker.latency.count(),
            "iops": iops(worker),
            "mib_per_second": self.mib(iops(worker)),
            "mean_latency_ns": worker.latency.mean(),
        })
    }
}

/// Latencies as a program gets them.
pub fn latencies(latency: &Latency) -> Value {
    let histogram = latency.histogram();
    let mut latencies = json!({
        "mean": latency.mean(),
        "min": latency.cells().next().map_or(0, |(from, ..)| from),
        "max": latency.max(),
    });
    for (name, _, quantile) in QUANTILES {
        latencies[name] = json!(histogram.value_at_quantile(quantile).min(latency.max()));
    }
    latencies
}

fn iops(worker: &Tally) -> f64 {
    if worker.seconds > 0.0 { worker.latency.count() as f64 / worker.seconds } else { 0.0 }
}

/// What all workers have checked.
fn checks(workers: &[Tally]) -> Option<Checks> {
    let mut sum: Option<Checks> = None;
    for checks in workers.iter().filter_map(|worker| worker.checks.as_ref()) {
        let sum = sum.get_or_insert_default();
        sum.checked += checks.checked;
        sum.unchecked += checks.unchecked;
        sum.mismatches += checks.mismatches;
        sum.first = sum.first.take().or_else(|| checks.first.clone());
    }
    sum
}

/// Joins the cells that lie in the same quarter of an octave.
fn coarse(cells: impl Iterator<Item = (u64, u64, u64)>) -> Vec<(u64, u64, u64)> {
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for (from, _, count) in cells {
        let quarter = (from / 4).checked_ilog2().map_or(1, |octave| 1 << octave);
        let (from, to) = (from / quarter * quarter, (from / quarter + 1).saturating_mul(quarter));
        match joined.last_mut().filter(|last| last.0 == from) {
            Some(last) => last.2 += count,
            None => joined.push((from, to, count)),
        }
    }
    joined
}

pub fn micros(nanos: f64) -> String {
    format!("{:.2}", nanos / 1000.0)
}

fn lower(operation: Operation) -> &'static str {
    if operation == Operation::Write { "write" } else { "read" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The failure that a report names for what its only worker has found.
    fn failure(tally: Tally) -> Option<String> {
        let options = Options::from_line("emulated:size=1M");
        let attached = options.device.attach(false).unwrap();
        let job = Job::new(&options, &attached, vec![0], true).unwrap();
        let side = Side { options, job, attached };
        let report = Report::new(&side, End { tallies: vec![tally], lost: None }, false);
        assert!(report.text().contains("I/Os: 0 (0 writes)"));
        assert_eq!(report.json()["first_error"].is_null(), report.first_error().is_none());
        report.failure()
    }

    #[test]
    fn the_first_error_is_named() {
        assert_eq!(failure(Tally::default()), None);
        let status = kiovec::spec::Status::new(kiovec::spec::status::SCT_MEDIA, 0x81);
        let first_error = Some((
            Operation::Read,
            Reason::Driver(kiovec::Failure { lba: 800, cause: kiovec::Cause::Status(status) }),
        ));
        let text = failure(Tally { errors: 3, first_error, ..Tally::default() }).unwrap();
        assert!(text.starts_with("emulated:size=1M: 3 I/Os failed; the first: read: "), "{text}");
        assert!(text.contains("LBA 800") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn wrong_data_and_stray_completions_are_failures() {
        let pattern = crate::perf::verify::Pattern::new(1, 512);
        let first = pattern.check(77, 1, &[0; 512]).err();
        let checks = Some(Checks { checked: 9, unchecked: 0, mismatches: 2, first });
        let text = failure(Tally { checks, ..Tally::default() }).unwrap();
        assert!(
            text.contains("namespace 1: 2 blocks are not as written; the first: LBA 77, byte 0"),
            "{text}"
        );
        let text = failure(Tally { faults: 4, ..Tally::default() }).unwrap();
        assert!(text.contains("4 completions answer no command"), "{text}");
    }

    #[test]
    fn coarse_cells_keep_every_count() {
        let cells = (0..2000).map(|nanos| (nanos, nanos + 1, 1));
        let joined = coarse(cells);
        assert_eq!(joined.iter().map(|cell| cell.2).sum::<u64>(), 2000);
        assert!(joined.windows(2).all(|pair| pair[0].1 == pair[1].0));
        assert!(joined.contains(&(1024, 1280, 256)), "{joined:?}");
    }
}
