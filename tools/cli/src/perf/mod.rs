//! `kiovec perf`: keeps a namespace busy and measures it.
//!
//! The loop that is measured is in `worker`, and what it submits in `workload` and `verify`; all
//! else here runs before, after or beside it.

mod control;
mod cores;
mod counters;
mod course;
mod job;
mod kernel;
mod latency;
mod layers;
mod meter;
mod options;
mod progress;
mod random;
mod range;
mod report;
mod route;
mod series;
mod sketch;
mod subject;
mod supervisor;
mod verify;
mod worker;
mod workload;

use std::sync::atomic::AtomicBool;

use kiovec::memory::Pages;

use self::job::Job;
pub use self::options::Options;
use self::report::Report;
use self::subject::Attached;
use self::supervisor::Outcome;
use crate::device::Leaf;
use crate::output::{self, Format};
use crate::{Error, Result};

/// One device of a run: what is done with it, and the device in use.
#[derive(Debug)]
pub struct Side {
    pub options: Options,
    pub job: Job,
    pub attached: Attached,
}

pub fn run(options: Options) -> Result<()> {
    options.check()?;
    let interrupted = supervisor::on_interrupt()?;
    let (side, outcome) = measure(options, &interrupted)?;
    advise(&side);
    let report = Report::new(&side, outcome);
    report.notes().iter().for_each(|note| eprintln!("kiovec: note: {note}"));
    match side.options.format() {
        Format::Text => output::print(&report.text())?,
        Format::Json => output::print_json(&report.json())?,
    }
    report.failure().map_or(Ok(()), |what| Err(Error::Failed(what)))
}

/// Opens a device and runs the workload on it.
fn measure(mut options: Options, interrupted: &AtomicBool) -> Result<(Side, Outcome)> {
    let allowed = cores::allowed()?;
    let cores = cores::choose(options.cores.as_ref(), &allowed)?;
    let crowded = place_emulators(options.device.leaves_mut(), &cores, &allowed);
    let attached = options.device.attach(options.destroys_data())?;
    let job = Job::new(&options, &attached, cores, crowded)?;
    let side = Side { options, job, attached };
    let outcome = supervisor::run(&side, interrupted)?;
    Ok((side, outcome))
}

/// Gives each emulator a core that no worker has, and no other emulator as long as there are enough.
/// Returns whether there were too few.
fn place_emulators(leaves: &mut [Leaf], cores: &[usize], allowed: &[usize]) -> bool {
    let mut others = allowed.iter().copied().filter(|core| !cores.contains(core)).cycle();
    let mut taken = cores.to_vec();
    let mut crowded = false;
    for leaf in leaves {
        let Leaf::Emulated(config) = leaf else { continue };
        config.core = config.core.or_else(|| others.next());
        crowded |= config.core.is_none_or(|core| taken.contains(&core));
        taken.extend(config.core);
    }
    crowded
}

/// What stood in the way of better figures. Once, and only if it did.
fn advise(side: &Side) {
    let job = &side.job;
    if job.crowded {
        eprintln!("kiovec: note: an emulator had no core for itself, so these figures do not show its speed");
    }
    side.attached.notes().iter().for_each(|note| eprintln!("kiovec: note: {note}"));
    if let Some(pages @ (Pages::Collapsed2M | Pages::Small4K)) = side.attached.pages() {
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
    use crate::device::Device;

    #[test]
    fn emulators_keep_off_workers_and_off_one_another() {
        let place = |device: &str, cores: &[usize]| {
            let mut device: Device = device.parse().unwrap();
            let crowded = place_emulators(&mut device.leaves, cores, &[0, 1, 2]);
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
