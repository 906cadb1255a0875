//! `kiovec perf`: keeps a namespace busy and measures it.
//!
//! The loop that is measured is in `worker`, and what it submits in `workload` and `verify`; all
//! else here runs before, after or beside it.

mod compare;
mod control;
mod cores;
pub mod counted;
mod counters;
mod course;
mod crew;
mod idle;
mod job;
mod jobfile;
mod kernel;
mod latency;
mod layers;
mod meter;
mod options;
mod pace;
mod page;
mod places;
mod progress;
mod random;
mod range;
mod recovery;
mod report;
mod route;
mod run;
mod series;
mod sizes;
mod sketch;
mod subject;
mod supervisor;
mod verify;
mod versus;
mod worker;
mod workload;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kiovec::memory::Pages;

use self::job::Job;
pub use self::options::Options;
use self::page::Page;
use self::run::Run;
use self::subject::{Attached, Subject};
use self::supervisor::Outcome;
use crate::device::Leaf;
use crate::output::{self, Format};
use crate::{Error, Result};

/// One job of a run: what is done with a device, and the device in use.
#[derive(Debug)]
pub struct Side {
    pub options: Options,
    pub job: Job,
    pub attached: Arc<Attached>,
}

pub fn run(options: Options) -> Result<()> {
    if let Some([before, after]) = options.compare.as_deref() {
        return output::print(&compare::text(before, after)?);
    }
    let interrupted = supervisor::on_interrupt()?;
    if let Some(other) = &options.versus {
        return versus::run(&options, other, &interrupted);
    }
    let jobs = options.jobs()?;
    let page = options.report.as_deref().map(Page::create).transpose()?;
    let (sides, outcome) = measure(jobs, "", &interrupted)?;
    advice(&sides).iter().for_each(|advice| output::note(format_args!("note: {advice}")));
    let run = Run::new(&sides, outcome);
    run.notes().iter().for_each(|note| output::note(format_args!("note: {note}")));
    page.map_or(Ok(()), |page| page.write(&run))?;
    match options.format() {
        Format::Text => output::print(&run.text())?,
        Format::Json => output::print_json(&run.json())?,
    }
    run.failure().map_or(Ok(()), |what| Err(Error::Failed(what)))
}

/// Opens the devices of all jobs, each once, and runs the jobs at the same time. `label` is shown while they
/// run.
fn measure(mut jobs: Vec<Options>, label: &str, interrupted: &AtomicBool) -> Result<(Vec<Side>, Outcome)> {
    let allowed = cores::allowed()?;
    let asked = jobs.first().and_then(|job| job.cores.clone());
    let chosen = cores::choose(asked.as_ref(), &allowed)?;
    let wanted: Vec<Option<u32>> = jobs.iter().map(|job| job.numjobs).collect();
    let dealt = cores::deal(asked.is_some(), &chosen, &wanted);
    let names: Vec<Subject> = jobs.iter().map(|job| job.device.clone()).collect();
    let crowded = place(&mut jobs, &names, &dealt, &allowed);
    let mut sides: Vec<Side> = Vec::new();
    for ((options, name), cores) in jobs.iter().zip(&names).zip(dealt) {
        let open = sides.iter().zip(&names).find(|(_, other)| *other == name);
        let attached = match open {
            Some((side, _)) => Arc::clone(&side.attached),
            None => {
                let writes = |(job, other): (&Options, &Subject)| other == name && job.destroys_data();
                options.device.attach(jobs.iter().zip(&names).any(writes))?
            }
        };
        let job = Job::new(options, &attached, cores, crowded)?;
        sides.push(Side { options: options.clone(), job, attached });
    }
    let outcome = supervisor::run(&sides, label, interrupted)?;
    Ok((sides, outcome))
}

/// Gives each emulator a core. Returns whether somebody who polls has to let others run.
fn place(jobs: &mut [Options], names: &[Subject], dealt: &[Vec<usize>], allowed: &[usize]) -> bool {
    let cores = dealt.concat();
    let mut leaves: Vec<Leaf> = Vec::new();
    let first = |index: &usize| names.get(..*index).is_some_and(|before| !before.contains(&names[*index]));
    let firsts: Vec<usize> = (0..names.len()).filter(first).collect();
    firsts.iter().for_each(|index| leaves.extend_from_slice(jobs[*index].device.leaves()));
    let crowded = place_emulators(&mut leaves, &cores, allowed);
    let mut placed = leaves.into_iter();
    for index in firsts {
        jobs[index].device.leaves_mut().iter_mut().zip(&mut placed).for_each(|(leaf, placed)| *leaf = placed);
    }
    crowded || cores.iter().enumerate().any(|(index, core)| cores[..index].contains(core))
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

/// What stood in the way of better figures, if anything did.
fn advice(sides: &[Side]) -> Vec<String> {
    let mut advice = Vec::new();
    if sides.iter().any(|side| side.job.crowded) {
        let what = match sides.iter().any(|side| !side.options.device.leaves().is_empty()) {
            true => "an emulator or a worker had no core for itself, so these figures do not show its speed",
            false => "there were more workers than cores, which took turns",
        };
        advice.push(what.to_owned());
    }
    advice.extend(sides.iter().flat_map(|side| side.attached.notes().iter().cloned()));
    advice.dedup();
    let small = |side: &&Side| matches!(side.attached.pages(), Some(Pages::Collapsed2M | Pages::Small4K));
    let without: Vec<&Side> = sides.iter().filter(small).collect();
    if let Some(pages) = without.first().and_then(|side| side.attached.pages()) {
        // Rings and lists of a worker are small beside its data.
        let bytes = |side: &&Side| side.job.data_bytes() + ((side.job.cores.len() as u64) << 25);
        let wanted = without.iter().map(bytes).sum::<u64>().next_multiple_of(64 << 20) >> 20;
        advice.push(format!(
            "no hugepages, working with {pages}; get some with: hugepage-setup reserve --bytes {wanted}M"
        ));
    }
    advice
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
