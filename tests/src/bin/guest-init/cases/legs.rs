//! Two equal controllers in slots of their own: the same memory to both, and one of them lost. And media with defects.

use std::fs;
use std::process::Child;
use std::time::Duration;

use kiovec_tests::machine::{
    Access, Atomic, Controller, DEFECTIVE, Defect, LEG, Machine, Namespace, OTHER_LEG,
};
use kiovec_tests::process;

use super::io::manifest;
use super::perf::{sound, wait_until_busy};
use crate::program::{Program, program};
use crate::{Verdict, disk, ensure, pci, slot};

fn perf(controller: &Controller, options: &str) -> Program {
    program(&format!("kiovec perf {options} {}", controller.bdf()))
}

/// Reads for a second, without an error.
fn works(controller: &Controller) -> Verdict {
    sound(perf(controller, "-w randread -q 8 -o 4096 -t 1 -a 0 --json")).map(drop)
}

/// Every shape of memory is written to both with PRPs, each from the same memory, and read back into it.
pub fn duplicates_prp(_: &'static Machine) -> Verdict {
    duplicates("prp")
}

/// The same with SGLs.
pub fn duplicates_sgl(_: &'static Machine) -> Verdict {
    duplicates("sgl")
}

fn duplicates(form: &str) -> Verdict {
    pci::rebind(&LEG, "vfio-pci")?;
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let both = format!("{} {}", LEG.bdf(), OTHER_LEG.bdf());
    let output = program(&format!("kiovec-guest-io duplicate {form} {both}")).succeeds()?;
    // The kernel looks at each of them for the same.
    for leg in [&LEG, &OTHER_LEG] {
        let path = manifest(leg, form);
        fs::write(&path, &output.out).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(())
}

/// A controller loses its power in the middle of reads, and has it back: it can be used again once its user has ended,
/// and what is on it, other cases look at.
pub fn power_is_lost_and_back(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let mut user = perf(&OTHER_LEG, "-w randread -q 32 -o 4096 -t 600").start()?;
    let lost = wait_until_busy(&mut user).and_then(|()| {
        slot::cut_power(&OTHER_LEG)?;
        // Before the user ends: the kernel waits for it when the device is closed.
        slot::restore_power(&OTHER_LEG)
    });
    let ended = kill(&mut user);
    lost.and(ended)?;
    works(&OTHER_LEG)
}

/// A controller is removed in the middle of I/O. Whatever its user makes of it, it can be killed; the other leg works
/// before that and after; and the removed one is gone for everybody.
pub fn removed_in_use(_: &'static Machine) -> Verdict {
    pci::rebind(&LEG, "vfio-pci")?;
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let mut user = perf(&LEG, "-w randrw --yes-destroy-data -q 32 -o 4096 -t 600").start()?;
    let removed = wait_until_busy(&mut user).and_then(|()| {
        slot::remove(&LEG)?;
        works(&OTHER_LEG)
    });
    let ended = kill(&mut user);
    removed.and(ended)?;
    slot::wait_until_gone(&LEG)?;
    program(&format!("kiovec identify {}", LEG.bdf())).refuses(&[&LEG.bdf(), "no such PCI function"])?;
    works(&OTHER_LEG)
}

/// The process has to end: one that waits in the kernel for its device does not, for a minute.
fn kill(child: &mut Child) -> Verdict {
    child.kill().map_err(|e| format!("kill: {e}"))?;
    let ended = process::ended(child, Duration::from_secs(20)).map_err(|e| format!("poll: {e}"))?;
    ensure!(ended, "killed, and still there after 20 s");
    child.wait().map(drop).map_err(|e| format!("wait: {e}"))
}

/// The medium fails where it should, and nowhere else: in the kernel's eyes, sector by sector around each defect, and
/// in kiovec's.
pub fn defects(_: &'static Machine) -> Verdict {
    pci::rebind(&DEFECTIVE, "nvme")?;
    for namespace in DEFECTIVE.namespaces {
        let path = disk::path(&DEFECTIVE, namespace.nsid)?;
        let block = u64::from(namespace.block);
        for defect in namespace.defects {
            let bad = defect.sector * 512 / block;
            for lba in bad - 1..=bad + 1 {
                for access in [Access::Read, Access::Write] {
                    let fails = disk::access(&path, access, lba * block, namespace.block as usize).is_err();
                    let should = lba == bad && access == defect.access;
                    ensure!(fails == should, "{}: {access:?} at LBA {lba}: fails: {fails}", path.display());
                }
            }
        }
    }
    pci::rebind(&DEFECTIVE, "vfio-pci")?;
    let namespace = &DEFECTIVE.namespaces[0];
    namespace.defects.iter().try_for_each(|defect| kiovec_meets(namespace, defect))
}

/// Of neighbours that share a command, only the one over the defect fails: on the namespace whose blocks are
/// pages, so that PRPs can join them too.
pub fn defects_under_merged(_: &'static Machine) -> Verdict {
    pci::rebind(&DEFECTIVE, "vfio-pci")?;
    let Some(Namespace { nsid, defects, block, .. }) = DEFECTIVE.namespaces.iter().find(|n| n.block == 4096)
    else {
        return Err("no namespace of 4096-byte blocks".into());
    };
    for (form, defect) in ["prp", "sgl"].iter().flat_map(|form| defects.iter().map(move |d| (form, d))) {
        let lba = defect.sector * 512 / u64::from(*block);
        let write = if defect.access == Access::Write { "--write" } else { "" };
        let line = format!("kiovec-guest-io merge {form} {} {nsid} {lba} {write}", DEFECTIVE.bdf());
        program(&line).succeeds()?;
    }
    Ok(())
}

fn kiovec_meets(namespace: &Namespace, defect: &Defect) -> Verdict {
    let Namespace { nsid, block, .. } = namespace;
    let workload = match defect.access {
        Access::Read => "read",
        Access::Write => "write --yes-destroy-data",
    };
    let lba = defect.sector * 512 / u64::from(*block);
    let options = format!("-w {workload} -q 1 -o {block} -t 1 -a 0 --nsid {nsid} --range {lba}:1");
    let output = perf(&DEFECTIVE, &options).run()?;
    ensure!(output.code == Some(1), "no error: {output}");
    output.err_has(&["I/Os failed", &lba.to_string()])
}

/// The controller says what it writes as a whole.
pub fn atomic_writes(machine: &'static Machine) -> Verdict {
    for controller in machine.controllers {
        let Atomic::Blocks(blocks) = controller.atomic else { continue };
        pci::rebind(controller, "vfio-pci")?;
        let json = program(&format!("kiovec identify {} --json", controller.bdf())).succeeds()?.json()?;
        for field in ["awun", "awupf"] {
            let value = json["controller"][field].as_u64();
            ensure!(value == Some(u64::from(blocks) - 1), "{field} is {value:?}");
        }
    }
    Ok(())
}
