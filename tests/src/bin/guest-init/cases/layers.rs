//! Mirrors and stripes of the legs: the kernel's own drivers find every byte where it belongs, and a leg that is taken
//! away costs the mirror nothing and ends the stripe.

use std::path::{Path, PathBuf};

use kiovec_tests::machine::{Controller, LEG, Machine, OTHER_LEG, THIRD_LEG, kernel_extent, kernel_seed};
use kiovec_tests::pattern::{self, Extent};

use super::legs::{GONE, PROMPTLY, is_gone, works};
use super::perf::{sound, sound_report, wait_until_busy};
use crate::device_mapper::Mapped;
use crate::program::{LIMIT, Program, finish, program};
use crate::{Verdict, disk, ensure, pci, slot};

/// The two that every case but the loss of the third has.
const LEGS: [&Controller; 2] = [&LEG, &OTHER_LEG];
const FORMS: [&str; 2] = ["prp", "sgl"];
/// Bytes of a chunk: so few that many a request has blocks on both legs.
const CHUNK: u64 = 16 << 10;

fn bind(legs: &[&Controller], driver: &str) -> Verdict {
    legs.iter().try_for_each(|leg| pci::rebind(leg, driver))
}

/// A layer on legs, as the command line takes it.
fn layer(name: &str, options: &str, legs: &[&Controller]) -> String {
    let legs: Vec<String> = legs.iter().map(|leg| leg.bdf()).collect();
    format!("{name}({options}{})", legs.join(","))
}

fn stripe() -> String {
    layer("stripe", &format!("chunk={CHUNK},"), &LEGS)
}

fn perf(device: &str, options: &str) -> Program {
    program(&format!("kiovec perf {device} --yes-destroy-data -a 0 {options}"))
}

/// Writes in every shape through layers, and reads back. Returns what is where now, by the layers' own addresses.
fn write_through(device: &str) -> Result<Vec<Extent>, String> {
    let mut written = Vec::new();
    for form in FORMS {
        let output = program(&format!("kiovec-guest-io write {form} {device}")).succeeds()?;
        written.extend(pattern::manifest(&output.out)?);
    }
    ensure!(!written.is_empty(), "nothing was written on {device}");
    Ok(written)
}

/// What is written through a mirror, the kernel finds on both legs, and nothing else has changed.
pub fn mirror_writes(_: &'static Machine) -> Verdict {
    bind(&LEGS, "nvme")?;
    let namespaces = || LEGS.into_iter().flat_map(|leg| leg.namespaces.iter().map(move |n| (leg, n)));
    namespaces().try_for_each(|(leg, namespace)| disk::write(leg, &kernel_extent(namespace)))?;
    bind(&LEGS, "vfio-pci")?;
    let written = write_through(&layer("mirror", "", &LEGS))?;
    bind(&LEGS, "nvme")?;
    namespaces().try_for_each(|(leg, namespace)| {
        let all = pattern::overlay(kernel_extent(namespace), &written)?;
        all.iter().try_for_each(|extent| disk::verify(leg, extent))
    })
}

/// The kernel's own stripe of the same legs is the same device: each reads what the other wrote.
pub fn stripe_as_the_kernels(_: &'static Machine) -> Verdict {
    bind(&LEGS, "nvme")?;
    for whole in stripes() {
        kernels_stripe(&whole, |path| disk::write_at(path, &whole))?;
    }
    bind(&LEGS, "vfio-pci")?;
    for form in FORMS {
        let reads = program(&format!("kiovec-guest-io read {form} {}", stripe()));
        reads.succeeds()?.out_has(&["match"])?;
    }
    let written = write_through(&stripe())?;
    bind(&LEGS, "nvme")?;
    stripes().try_for_each(|whole| {
        let all = pattern::overlay(whole, &written)?;
        kernels_stripe(&whole, |path| all.iter().try_for_each(|extent| disk::verify_at(path, extent)))
    })
}

/// The stripe of each namespace, with the kernel's pattern from end to end.
fn stripes() -> impl Iterator<Item = Extent> {
    let legs = LEGS.len() as u64;
    LEG.namespaces.iter().map(move |namespace| Extent {
        nsid: namespace.nsid,
        offset: 0,
        len: legs * namespace.size,
        seed: kernel_seed(namespace.nsid),
    })
}

/// Calls `then` with the block device that the kernel makes of a namespace of all legs.
fn kernels_stripe(whole: &Extent, then: impl FnOnce(&Path) -> Verdict) -> Verdict {
    const SECTOR: u64 = 512;
    let legs: Vec<PathBuf> =
        LEGS.iter().map(|leg| disk::path(leg, whole.nsid)).collect::<Result<_, String>>()?;
    let sectors = whole.len / LEGS.len() as u64 / SECTOR;
    let striped = Mapped::striped("kiovec-stripe", &legs, sectors, CHUNK / SECTOR)?;
    then(&striped.path()?)
}

/// Mixed I/O on a mirror of legs that are alike is right wherever it is read, and leaves them alike, from end to end.
pub fn mirror_verifies(_: &'static Machine) -> Verdict {
    bind(&LEGS, "vfio-pci")?;
    let mirror = layer("mirror", "", &LEGS);
    sound(perf(&mirror, "-w randrw --verify -q 16 -o 4096 -t 1 --nsid 1 --json"))?;
    sound(perf(&mirror, "-w randrw --verify -q 8 -o 64k -t 1 -c 0,1 --nsid 2 --json"))?;
    bind(&LEGS, "nvme")?;
    LEG.namespaces.iter().try_for_each(|namespace| {
        let paths = [disk::path(&LEG, namespace.nsid)?, disk::path(&OTHER_LEG, namespace.nsid)?];
        disk::same([&paths[0], &paths[1]], &kernel_extent(namespace))
    })
}

/// The same on stripes: I/Os within a chunk, and some of many chunks.
pub fn stripe_verifies(_: &'static Machine) -> Verdict {
    bind(&LEGS, "vfio-pci")?;
    let default = layer("stripe", "", &LEGS);
    sound(perf(&default, "-w randrw --verify -q 16 -o 4096 -t 1 --nsid 1 --json"))?;
    let split = sound(perf(&stripe(), "-w randrw --verify -q 8 -o 1M -t 1 --nsid 2 --json"))?;
    let commands = split.json()?["commands_per_io"].as_f64();
    ensure!(
        commands.is_some_and(|commands| commands > 1.0),
        "{commands:?} commands per I/O of many chunks: {split}"
    );
    Ok(())
}

/// A leg of a stripe is taken away in the middle of I/O: the run ends by itself, and says for which controller and
/// where it failed first.
pub fn stripe_loses_a_leg(_: &'static Machine) -> Verdict {
    let legs = [&LEG, &OTHER_LEG, &THIRD_LEG];
    bind(&legs, "vfio-pci")?;
    let run = perf(&layer("stripe", "", &legs), "-w randrw -q 16 -o 4096 -t 600 --json").telling();
    let text = run.to_string();
    let mut user = run.start()?;
    let removed = wait_until_busy(&mut user).and_then(|()| slot::remove(&THIRD_LEG));
    let output = finish(text, user, PROMPTLY)?;
    removed?;
    ensure!(output.code == Some(1), "exit code 1 for I/O that failed: {output}");
    output.err_has(&["I/Os failed; the first:", "LBA", &THIRD_LEG.bdf(), GONE])?;
    is_gone(&THIRD_LEG)?;
    LEGS.into_iter().try_for_each(works)
}

/// A leg of a mirror is taken away in the middle of I/O: the run goes on to its end, finds at the end all that it
/// wrote, and says what it went on without.
pub fn mirror_loses_a_leg(_: &'static Machine) -> Verdict {
    bind(&LEGS, "vfio-pci")?;
    // Long enough to lose the leg before the end, which is what the case is about: else it fails.
    let run = perf(&layer("mirror", "", &LEGS), "-w randrw --verify -q 16 -o 4096 -t 20 --json").telling();
    let text = run.to_string();
    let mut user = run.start()?;
    let removed = wait_until_busy(&mut user).and_then(|()| slot::remove(&LEG));
    let output = finish(text, user, LIMIT)?;
    removed?;
    ensure!(output.code == Some(0), "the other leg has everything: {output}");
    sound_report(&output)?;
    output.out_has(&["\"interrupted\": false"])?;
    output.err_has(&[&LEG.bdf(), "the run went on without it"])?;
    is_gone(&LEG)?;
    works(&OTHER_LEG)
}
