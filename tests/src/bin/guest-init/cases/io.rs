//! Data, in both directions: what the kernel wrote is read through kiovec, what kiovec wrote is read through the
//! kernel.

use std::fs;

use kiovec_tests::machine::{Controller, Machine, kernel_extent};
use kiovec_tests::pattern::{self, Extent};

use super::written_disks;
use crate::program::program;
use crate::{Verdict, disk, ensure, pci};

const FORMS: [&str; 2] = ["prp", "sgl"];

/// The kernel fills every namespace with its pattern.
pub fn kernel_writes(machine: &'static Machine) -> Verdict {
    each_namespace(machine, |disk, whole| disk::write(disk, &whole))
}

/// And finds it again.
pub fn kernel_reads_back(machine: &'static Machine) -> Verdict {
    each_namespace(machine, |disk, whole| disk::verify(disk, &whole))
}

fn each_namespace(machine: &Machine, mut then: impl FnMut(&Controller, Extent) -> Verdict) -> Verdict {
    written_disks(machine).try_for_each(|disk| {
        disk.namespaces.iter().try_for_each(|namespace| then(disk, kernel_extent(namespace)))
    })
}

/// Everything the kernel wrote, in all shapes of memory, with PRPs.
pub fn kiovec_reads_prp(machine: &'static Machine) -> Verdict {
    reads(machine, "prp")
}

/// The same with SGLs.
pub fn kiovec_reads_sgl(machine: &'static Machine) -> Verdict {
    reads(machine, "sgl")
}

fn reads(machine: &Machine, form: &str) -> Verdict {
    written_disks(machine).try_for_each(|disk| {
        pci::rebind(disk, "vfio-pci")?;
        program(&format!("kiovec-guest-io read {form} {}", disk.bdf())).succeeds()?.out_has(&["match"])
    })
}

/// All lengths and shapes of memory are written with PRPs, and read back.
pub fn kiovec_writes_prp(machine: &'static Machine) -> Verdict {
    writes(machine, "prp")
}

/// The same with SGLs.
pub fn kiovec_writes_sgl(machine: &'static Machine) -> Verdict {
    writes(machine, "sgl")
}

fn writes(machine: &Machine, form: &str) -> Verdict {
    written_disks(machine).try_for_each(|disk| {
        pci::rebind(disk, "vfio-pci")?;
        let output = program(&format!("kiovec-guest-io write {form} {}", disk.bdf())).succeeds()?;
        let path = manifest(disk, form);
        fs::write(&path, output.out).map_err(|e| format!("{path}: {e}"))
    })
}

/// Where the list is of what kiovec wrote on a controller.
pub fn manifest(disk: &Controller, form: &str) -> String {
    format!("/tmp/manifest-{}-{form}", disk.serial)
}

/// Through the kernel's driver: all that kiovec wrote is on the medium, and nothing else has changed.
pub fn kernel_reads_kiovecs(machine: &'static Machine) -> Verdict {
    written_disks(machine).try_for_each(|disk| {
        pci::rebind(disk, "nvme")?;
        let written = written_on(disk)?;
        disk.namespaces.iter().try_for_each(|namespace| {
            let all = pattern::overlay(kernel_extent(namespace), &written)?;
            ensure!(all.len() > 1, "kiovec wrote nothing on namespace {}", namespace.nsid);
            all.iter().try_for_each(|extent| disk::verify(disk, extent))
        })
    })
}

fn written_on(disk: &Controller) -> Result<Vec<Extent>, String> {
    let mut all = Vec::new();
    for form in FORMS {
        let path = manifest(disk, form);
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let extents = pattern::manifest(&text)?;
        ensure!(!extents.is_empty(), "{path} lists nothing");
        all.extend(extents);
    }
    Ok(all)
}
