//! What all jobs of a run have found: the report of each, and what they did together.

use serde_json::{Value, json};

use super::Side;
use super::latency::Latency;
use super::report::{Report, TOOL, latencies, micros};
use super::supervisor::Outcome;
use crate::output;

pub struct Run<'a> {
    pub reports: Vec<Report<'a>>,
    interrupted: bool,
}

impl<'a> Run<'a> {
    pub fn new(sides: &'a [Side], outcome: Outcome) -> Run<'a> {
        let interrupted = outcome.interrupted;
        let reports = sides.iter().zip(outcome.ends);
        let reports = reports.map(|(side, end)| Report::new(side, end, interrupted)).collect();
        Run { reports, interrupted }
    }

    /// What was wrong, if anything was, with whichever jobs.
    pub fn failure(&self) -> Option<String> {
        let all: Vec<String> = self.reports.iter().filter_map(Report::failure).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What was lost without any harm.
    pub fn notes(&self) -> Vec<String> {
        self.reports.iter().flat_map(Report::notes).collect()
    }

    pub fn iops(&self) -> f64 {
        self.reports.iter().map(Report::iops).sum()
    }

    pub fn mib(&self) -> f64 {
        self.reports.iter().map(|report| report.mib(report.iops())).sum()
    }

    /// Of all I/Os.
    pub fn latency(&self) -> Latency {
        let mut all = Latency::default();
        self.reports.iter().for_each(|report| all.add(report.latency()));
        all
    }

    pub fn text(&self) -> String {
        let texts: Vec<String> = self.reports.iter().map(Report::text).collect();
        let texts = texts.join("\n");
        if self.reports.len() < 2 {
            return texts;
        }
        let row = |name: String, iops: f64, mib: f64, latency: &Latency| {
            let times = [latency.mean(), latency.max() as f64].map(micros);
            [name, format!("{iops:.1}"), format!("{mib:.2}")].into_iter().chain(times).collect::<Vec<_>>()
        };
        let mut rows = vec![["", "IOPS", "MiB/s", "average us", "max us"].map(str::to_owned).to_vec()];
        for report in &self.reports {
            let iops = report.iops();
            let lost = if report.is_lost() { " (lost)" } else { "" };
            rows.push(row(format!("{}{lost}", report.device()), iops, report.mib(iops), report.latency()));
        }
        rows.push(row("all devices".into(), self.iops(), self.mib(), &self.latency()));
        format!("{texts}\n{}", output::table(&rows, &[1, 2, 3, 4]))
    }

    /// The result of the only job, or what all of them did together, and the result of each.
    pub fn json(&self) -> Value {
        if let [report] = &self.reports[..] {
            return report.json();
        }
        let errors = self.reports.iter().map(|report| report.sum(|worker| worker.errors));
        json!({
            "tool": TOOL,
            "version": env!("CARGO_PKG_VERSION"),
            "interrupted": self.interrupted,
            "ios": self.reports.iter().map(Report::ios).sum::<u64>(),
            "errors": errors.sum::<u64>(),
            "iops": self.iops(),
            "mib_per_second": self.mib(),
            "latency_ns": latencies(&self.latency()),
            "jobs": self.reports.iter().map(Report::json).collect::<Vec<_>>(),
        })
    }
}
