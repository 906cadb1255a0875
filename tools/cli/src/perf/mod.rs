//! `kiovec perf`: keeps a namespace busy and measures it.
//!
//! The loop that is measured is in `worker`, and what it submits in `workload` and `verify`; all
//! else here runs before, after or beside it.

mod control;
mod cores;
mod counters;
mod job;
mod latency;
mod layers;
mod options;
mod progress;
mod random;
mod range;
mod report;
mod route;
mod supervisor;
mod verify;
mod worker;
mod workload;

use kiovec::memory::Pages;

use self::job::Job;
pub use self::options::Options;
use self::report::Report;
use crate::device::{Device, Leaf, Opened};
use crate::output::{self, Format};
use crate::{Error, Result};

pub fn run(mut options: Options) -> Result<()> {
    options.check()?;
    let allowed = cores::allowed()?;
    let cores = cores::choose(options.cores.as_ref(), &allowed)?;
    let crowded = place_emulators(&mut options.device, &cores, &allowed);
    let interrupted = supervisor::on_interrupt()?;
    let opened = options.device.open()?;
    let job = Job::new(&options, &opened, cores, crowded)?;
    let outcome = supervisor::run(&job, &opened, &options, &interrupted)?;
    advise(&opened, &job);
    let report = Report::new(&options, &job, &opened, outcome);
    report.notes().iter().for_each(|note| eprintln!("kiovec: note: {note}"));
    match options.format() {
        Format::Text => output::print(&report.text())?,
        Format::Json => output::print_json(&report.json())?,
    }
    report.failure().map_or(Ok(()), |what| Err(Error::Failed(what)))
}

/// Gives each emulator a core that no worker has, and no other emulator as long as there are enough.
/// Returns whether there were too few.
fn place_emulators(device: &mut Device, cores: &[usize], allowed: &[usize]) -> bool {
    let mut others = allowed.iter().copied().filter(|core| !cores.contains(core)).cycle();
    let mut taken = cores.to_vec();
    let mut crowded = false;
    for leaf in &mut device.leaves {
        let Leaf::Emulated(config) = leaf else { continue };
        config.core = config.core.or_else(|| others.next());
        crowded |= config.core.is_none_or(|core| taken.contains(&core));
        taken.extend(config.core);
    }
    crowded
}

/// What stood in the way of better figures. Once, and only if it did.
fn advise(opened: &Opened, job: &Job) {
    if job.crowded {
        eprintln!("kiovec: note: an emulator had no core for itself, so these figures do not show its speed");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulators_keep_off_workers_and_off_one_another() {
        let place = |device: &str, cores: &[usize]| {
            let mut device: Device = device.parse().unwrap();
            let crowded = place_emulators(&mut device, cores, &[0, 1, 2]);
            let core = |leaf: &Leaf| if let Leaf::Emulated(config) = leaf { config.core } else { None };
            (device.leaves.iter().map(core).collect::<Vec<_>>(), crowded)
        };
        assert_eq!(place("emulated", &[0]), (vec![Some(1)], false));
        assert_eq!(place("emulated:core=0", &[0]), (vec![Some(0)], true));
        assert_eq!(place("emulated", &[0, 1, 2]), (vec![None], true));
        assert_eq!(place("01:00.0", &[0, 1, 2]), (vec![None], false));
        let two = "mirror(emulated,emulated:mdts=1)";
        assert_eq!(place(two, &[0]), (vec![Some(1), Some(2)], false));
        assert_eq!(place(two, &[0, 2]), (vec![Some(1), Some(1)], true));
    }
}
