//! How the run goes, on standard error: a line that changes, if somebody is there to see it, or a line every so often,
//! if that was asked for.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::control::{Control, Phase};
use crate::output;

pub struct Progress<'a> {
    bar: ProgressBar,
    /// The workers of each job, and the bytes of an I/O of theirs.
    jobs: Vec<(&'a Control, u64)>,
    label: String,
    phase: &'static str,
    last: Look,
    /// When the warm-up began.
    began: Option<Instant>,
    /// Lines that stay, every so often.
    every: Option<Duration>,
    first_line: Instant,
    last_line: Look,
}

/// I/Os and bytes at some time.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    ios: u64,
    bytes: u64,
}

impl Look {
    /// I/Os and MiB per second from an earlier one to this.
    fn rates(&self, before: &Look) -> (f64, f64) {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-9);
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        (per_second(self.ios, before.ios), per_second(self.bytes, before.bytes) / (1 << 20) as f64)
    }
}

impl<'a> Progress<'a> {
    pub fn new(
        length: Duration,
        label: &str,
        jobs: Vec<(&'a Control, u64)>,
        every: Option<Duration>,
    ) -> Progress<'a> {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(length.as_millis() as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:<10} [{bar:25}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let phase = "preparing";
        bar.set_prefix(phase);
        let now = Instant::now();
        let last = Look { at: now, ios: 0, bytes: 0 };
        let (label, last_line) = (label.to_owned(), last);
        Progress { bar, jobs, label, phase, last, began: None, every, first_line: now, last_line }
    }

    pub fn phase(&mut self, phase: Phase) {
        self.phase = match phase {
            Phase::Prepare => "preparing",
            Phase::WarmUp => "warming up",
            Phase::Measure => "measuring",
            Phase::Finish | Phase::Stop | Phase::Abort => "finishing",
        };
        self.bar.set_prefix(self.phase);
        if phase == Phase::WarmUp {
            self.began = Some(Instant::now());
            self.last = self.look();
        }
    }

    pub fn show(&mut self) {
        if self.every.is_some_and(|every| self.last_line.at.elapsed() >= every) {
            self.say();
        }
        if self.bar.is_hidden() {
            return;
        }
        let now = self.look();
        let (iops, mib) = now.rates(&self.last);
        self.last = now;
        if let Some(began) = self.began {
            self.bar.set_position(began.elapsed().as_millis() as u64);
        }
        self.bar.set_message(format!("{iops:>12.0} IOPS {mib:>10.1} MiB/s {}", self.label));
    }

    fn say(&mut self) {
        let (now, phase) = (self.look(), self.phase);
        let ((iops, mib), ios) = (now.rates(&self.last_line), now.ios);
        let seconds = (now.at - self.first_line).as_secs_f64();
        let space = if self.label.is_empty() { "" } else { ", " };
        self.last_line = now;
        self.bar.suspend(|| {
            output::note(format_args!(
                "{seconds:.1} s, {phase}: {ios} I/Os, {iops:.0} IOPS, {mib:.1} MiB/s{space}{}",
                self.label
            ));
        });
    }

    fn look(&self) -> Look {
        let ios = |(control, size): &(&Control, u64)| (control.ios(), control.ios().saturating_mul(*size));
        let sum =
            |(ios, bytes): (u64, u64), (more, size): (u64, u64)| (ios + more, bytes.saturating_add(size));
        let (ios, bytes) = self.jobs.iter().map(ios).fold((0, 0), sum);
        Look { at: Instant::now(), ios, bytes }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
