//! The line that says how the run goes, on standard error, if somebody is there to see it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::control::{Control, Phase};

pub struct Progress {
    bar: ProgressBar,
    io_size: u64,
    /// I/Os at the last look, and when that was.
    last: (u64, Instant),
    /// When the warm-up began.
    began: Option<Instant>,
}

impl Progress {
    pub fn new(length: Duration, io_size: u64) -> Progress {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(length.as_millis() as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:<10} [{bar:25}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix("preparing");
        Progress { bar, io_size, last: (0, Instant::now()), began: None }
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
            self.last = (control.ios(), Instant::now());
        }
    }

    pub fn show(&mut self, control: &Control) {
        if self.bar.is_hidden() {
            return;
        }
        let (before, since) = self.last;
        let ios = control.ios();
        let rate = ios.saturating_sub(before) as f64 / since.elapsed().as_secs_f64().max(1e-9);
        self.last = (ios, Instant::now());
        if let Some(began) = self.began {
            self.bar.set_position(began.elapsed().as_millis() as u64);
        }
        let mib = rate * self.io_size as f64 / (1 << 20) as f64;
        self.bar.set_message(format!("{rate:>12.0} IOPS {mib:>10.1} MiB/s"));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
