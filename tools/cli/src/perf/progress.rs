//! The line that says how the run goes, on standard error, if somebody is there to see it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::control::{Control, Gauge, Phase};

pub struct Progress {
    bar: ProgressBar,
    /// Bytes of an I/O of each worker.
    sizes: Vec<u64>,
    label: String,
    /// I/Os and bytes at the last look, and when that was.
    last: (u64, u64, Instant),
    /// When the warm-up began.
    began: Option<Instant>,
}

impl Progress {
    pub fn new(length: Duration, label: &str, sizes: Vec<u64>) -> Progress {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(length.as_millis() as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:<10} [{bar:25}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix("preparing");
        Progress { bar, sizes, label: label.to_owned(), last: (0, 0, Instant::now()), began: None }
    }

    pub fn phase(&mut self, phase: Phase, control: &Control) {
        self.bar.set_prefix(match phase {
            Phase::Prepare => "preparing",
            Phase::WarmUp => "warming up",
            Phase::Measure => "measuring",
            Phase::Finish | Phase::Stop | Phase::Abort => "finishing",
        });
        if phase == Phase::WarmUp {
            self.began = Some(Instant::now());
            self.last = (control.ios(), self.bytes(control), Instant::now());
        }
    }

    pub fn show(&mut self, control: &Control) {
        if self.bar.is_hidden() {
            return;
        }
        let (before, bytes_before, since) = self.last;
        let (ios, bytes, seconds) =
            (control.ios(), self.bytes(control), since.elapsed().as_secs_f64().max(1e-9));
        let rate = ios.saturating_sub(before) as f64 / seconds;
        self.last = (ios, bytes, Instant::now());
        if let Some(began) = self.began {
            self.bar.set_position(began.elapsed().as_millis() as u64);
        }
        let mib = bytes.saturating_sub(bytes_before) as f64 / seconds / (1 << 20) as f64;
        self.bar.set_message(format!("{rate:>12.0} IOPS {mib:>10.1} MiB/s {}", self.label));
    }

    fn bytes(&self, control: &Control) -> u64 {
        let bytes = |(gauge, size): (&Gauge, &u64)| gauge.ios().saturating_mul(*size);
        control.gauges.iter().zip(&self.sizes).map(bytes).sum()
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
