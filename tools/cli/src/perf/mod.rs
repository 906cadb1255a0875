//! `kiovec perf`: keeps a namespace busy and measures it.
//!
//! The loop that is measured is in `worker`, and what it submits in `workload` and `verify`; all
//! else here runs before, after or beside it.

mod control;
mod cores;
mod job;
mod latency;
mod options;
mod progress;
mod random;
mod range;
mod report;
mod supervisor;
mod verify;
mod worker;
mod workload;

use kiovec::memory::Pages;

use self::job::Job;
pub use self::options::Options;
use self::report::Report;
use crate::device::{Device, Opened};
use crate::output::{self, Format};
use crate::{Error, Result};

pub fn run(mut options: Options) -> Result<()> {
    options.check()?;
    let allowed = cores::allowed()?;
    let cores = cores::choose(options.cores.as_ref(), &allowed)?;
    let crowded = place_emulator(&mut options.device, &cores, &allowed);
    let interrupted = supervisor::on_interrupt()?;
    let opened = options.device.open()?;
    let job = Job::new(&options, &opened, cores, crowded)?;
    let outcome = supervisor::run(&job, &opened.controller, &options, &interrupted)?;
    advise(&opened, &job);
    let report = Report::new(&options, &job, &opened, outcome);
    match options.format() {
        Format::Text => output::print(&report.text())?,
        Format::Json => output::print_json(&report.json())?,
    }
    report.failure().map_or(Ok(()), |what| Err(Error::Failed(what)))
}

/// Gives the emulator a core that no worker has. Returns whether there was none.
fn place_emulator(device: &mut Device, cores: &[usize], allowed: &[usize]) -> bool {
    let Device::Emulated(config) = device else { return false };
    if config.core.is_none() {
        config.core = allowed.iter().copied().find(|core| !cores.contains(core));
    }
    config.core.is_none_or(|core| cores.contains(&core))
}

/// What stood in the way of better figures. Once, and only if it did.
fn advise(opened: &Opened, job: &Job) {
    if job.crowded {
        eprintln!(
            "kiovec: note: the emulator had no core for itself, so these figures do not show its speed"
        );
    }
    if let Some(pages @ (Pages::Collapsed2M | Pages::Small4K)) = opened.space.pages() {
        // Rings and lists of a worker are small beside its data.
        let bytes = job.data_bytes() + ((job.cores.len() as u64) << 25);
        let wanted = bytes.next_multiple_of(64 << 20) >> 20;
        eprintln!(
            "kiovec: note: no hugepages, working with {pages}; get some with: hugepage-setup reserve --bytes {wanted}M"
        );
    }
}
