//! Equal controllers in slots of their own: the same memory to two, and one of them lost. And media with defects.

use std::fs;
use std::process::Child;
use std::time::Duration;

use kiovec_tests::machine::{
    Access, Atomic, Controller, DEFECTIVE, Defect, LEG, Machine, Model, Namespace, OTHER_LEG, THIRD_LEG,
    kernel_extent,
};
use kiovec_tests::pattern::{self, Extent, UNKNOWN};
use kiovec_tests::report::Ask;
use rustix::process::{Pid, Signal, kill_process};

use super::io::manifest;
use super::perf::{sound, sound_report, wait_until_busy};
use crate::operator::ask;
use crate::program::{Program, finish, program};
use crate::{Verdict, disk, ensure, pci, slot, vfio};

/// From the loss of a controller to the end of a program that cannot do without it. `kiovec perf` gives up one that is
/// merely silent after 30 s; this has to be something that it knew.
pub const PROMPTLY: Duration = Duration::from_secs(20);
/// What it knew.
pub const GONE: &str = "gone from the bus";

fn perf(controller: &Controller, options: &str) -> Program {
    program(&format!("kiovec perf {options} {}", controller.bdf()))
}

/// Reads for a second, without an error.
pub fn works(controller: &Controller) -> Verdict {
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

/// A controller loses its power in the middle of reads, and has it back: its user ends by itself, and then it can be
/// used again; what is on it, other cases look at.
pub fn power_is_lost_and_back(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let cut = |_: &Child| {
        slot::cut_power(&OTHER_LEG)?;
        // Before the user ends: the kernel waits for it when the device is closed.
        slot::restore_power(&OTHER_LEG)
    };
    ends(&OTHER_LEG, perf(&OTHER_LEG, "-w randread -q 32 -o 4096 -t 600"), cut, GONE)?;
    works(&OTHER_LEG)
}

/// A controller is removed in the middle of I/O: its user ends by itself, and it is gone for everybody. (That others
/// notice nothing, a mirror shows.)
pub fn removed_in_use(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    let run = perf(&OTHER_LEG, "-w randrw --yes-destroy-data -q 32 -o 4096 -t 600");
    ends(&OTHER_LEG, run, |_| slot::remove(&OTHER_LEG), GONE)?;
    is_gone(&OTHER_LEG)
}

/// The same in the middle of a run that verifies: what a person sees is one error, and no result. A run on another
/// controller, in a process of its own, notices nothing.
pub fn removed_while_verifying(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    pci::rebind(&THIRD_LEG, "vfio-pci")?;
    let verify = "-w randrw --verify --yes-destroy-data -q 16 -o 4096 -a 0 --json -t 600";
    let beside = perf(&THIRD_LEG, verify).telling();
    let text = beside.to_string();
    let mut other = beside.start()?;
    let lost = wait_until_busy(&mut other)
        .and_then(|()| ends(&OTHER_LEG, perf(&OTHER_LEG, verify), |_| slot::remove(&OTHER_LEG), GONE))
        .and_then(|()| wait_until_busy(&mut other));
    end_early(&other)?;
    let output = finish(text, other, PROMPTLY)?;
    lost.map_err(|why| format!("{why}: {output}"))?;
    ensure!(output.code == Some(0), "{output}");
    sound_report(&output)?;
    is_gone(&OTHER_LEG)
}

/// The kernel is asked to let a controller go that a run has in use: it asks the run in turn, which ends by itself and
/// says why; then the controller is gone.
pub fn unplugged_while_verifying(_: &'static Machine) -> Verdict {
    pci::rebind(&LEG, "vfio-pci")?;
    let run = perf(&LEG, "-w randrw --verify --yes-destroy-data -q 16 -o 4096 -t 600 -a 0 --json");
    let unplug = |_: &Child| ask(&Ask::Unplug { serial: LEG.serial.to_owned() });
    ends(&LEG, run, unplug, "the kernel wants the device back")?;
    is_gone(&LEG)
}

/// Memory Space Enable of a function that a run has in use is cleared: its BAR is dead, each access of it a SIGBUS. The
/// run ends by itself; the next one has nothing to complain of.
pub fn dead_bar(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    // The first namespace has a ledger.
    let run = "-w randrw --verify --yes-destroy-data -q 16 -o 4096 -t 600 -a 0 --json --nsid 2";
    ends(&OTHER_LEG, perf(&OTHER_LEG, run), vfio::clear_memory_space, GONE)?;
    works(&OTHER_LEG)
}

/// As somebody does who has seen enough of a run.
pub fn end_early(run: &Child) -> Verdict {
    kill_process(Pid::from_child(run), Signal::INT).map_err(|e| format!("kill: {e}"))
}

/// A run on a controller that gets lost in its middle ends by itself, prints no result, and says why in one line.
fn ends(controller: &Controller, run: Program, lose: impl FnOnce(&Child) -> Verdict, why: &str) -> Verdict {
    let run = run.telling();
    let text = run.to_string();
    let mut user = run.start()?;
    let lost = wait_until_busy(&mut user).and_then(|()| lose(&user));
    let output = finish(text, user, PROMPTLY)?;
    lost?;
    ensure!(output.code == Some(1), "no error: {output}");
    ensure!(output.out.is_empty(), "a result as if nothing had happened: {output}");
    let is_error = |line: &&str| !line.starts_with("kiovec: note: ") && !line.contains(" I/Os, ");
    let errors = output.err.lines().filter(is_error).count();
    ensure!(errors == 1, "{errors} errors: {output}");
    output.err_has(&[&controller.bdf(), why])
}

/// A controller that was removed is gone for everybody, as soon as its last user has let go of it.
pub fn is_gone(controller: &Controller) -> Verdict {
    slot::wait_until_gone(controller)?;
    program(&format!("kiovec identify {}", controller.bdf()))
        .refuses(&[&controller.bdf(), "no such PCI function"])
}

/// Sequential writes that wait for slots go down together, if they are neighbours: fewer commands than I/Os.
pub fn merges(_: &'static Machine) -> Verdict {
    pci::rebind(&OTHER_LEG, "vfio-pci")?;
    // More at once than the controller has slots for, and more than one block each: one block is atomic, and not joined.
    let run = perf(&OTHER_LEG, "-w write --yes-destroy-data -q 4096 -o 4096 -t 1 -a 0 --nsid 1 --json");
    let report = sound(run)?.json()?;
    let number = |key: &str| report[key].as_f64().ok_or_else(|| format!("no {key}: {report}"));
    let (slots, commands, merges) =
        (number("command_depth")?, number("commands_per_io")?, number("merges_per_io")?);
    ensure!(slots < 4096.0 && commands < 1.0 && merges > 0.0, "nothing was merged: {report}");
    Ok(())
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

/// Of many requests around a defect, exactly the one over it fails, and says what the medium said; what is read beside
/// it is what the kernel wrote, and what is written beside it the kernel reads, and all that nobody has written.
pub fn defects_fail_alone(_: &'static Machine) -> Verdict {
    const FORMS: [&str; 2] = ["prp", "sgl"];
    pci::rebind(&DEFECTIVE, "nvme")?;
    for namespace in DEFECTIVE.namespaces {
        let known = pattern::overlay(kernel_extent(namespace), &holes(namespace))?;
        known.iter().filter(is_known).try_for_each(|extent| disk::write(&DEFECTIVE, extent))?;
    }
    pci::rebind(&DEFECTIVE, "vfio-pci")?;
    let mut written = Vec::new();
    for (index, namespace) in DEFECTIVE.namespaces.iter().enumerate() {
        for defect in namespace.defects {
            let (nsid, lba) = (namespace.nsid, defect.sector * 512 / u64::from(namespace.block));
            let (write, said) = match defect.access {
                Access::Read => ("", "Unrecovered Read Error"),
                Access::Write => ("--write", "Write Fault"),
            };
            // Both forms, on namespaces of their own.
            let (form, bdf) = (FORMS[index % 2], DEFECTIVE.bdf());
            let line = format!("kiovec-guest-io alone {form} {bdf} {nsid} {lba} {write}");
            let output = program(&line).succeeds()?;
            output.out_has(&["one request failed", said, "at LBA"])?;
            written.extend(pattern::manifest(&output.out)?);
        }
    }
    pci::rebind(&DEFECTIVE, "nvme")?;
    DEFECTIVE.namespaces.iter().try_for_each(|namespace| kernel_reads_all_but_holes(namespace, &written))
}

fn kernel_reads_all_but_holes(namespace: &Namespace, written: &[Extent]) -> Verdict {
    let is_unread = |hole: &Extent| !written.iter().any(|extent| meets(extent, hole));
    let holes = holes(namespace).into_iter().filter(is_unread);
    let over: Vec<Extent> = written.iter().copied().chain(holes).collect();
    let all = pattern::overlay(kernel_extent(namespace), &over)?;
    ensure!(all.len() > namespace.defects.len() + 2, "nothing was written on namespace {}", namespace.nsid);
    all.iter().filter(is_known).try_for_each(|extent| disk::verify(&DEFECTIVE, extent))
}

fn is_known(extent: &&Extent) -> bool {
    extent.seed != UNKNOWN
}

fn meets(extent: &Extent, hole: &Extent) -> bool {
    extent.nsid == hole.nsid && extent.offset < hole.end() && hole.offset < extent.end()
}

/// The blocks of a namespace that the kernel cannot write, or read.
fn holes(namespace: &Namespace) -> Vec<Extent> {
    let len = u64::from(namespace.block);
    let hole = |defect: &Defect| {
        let offset = defect.sector * 512 / len * len;
        Extent { nsid: namespace.nsid, offset, len, seed: UNKNOWN }
    };
    namespace.defects.iter().map(hole).collect()
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
        let Model::Qemu { atomic: Atomic::Blocks(blocks), .. } = controller.model else { continue };
        pci::rebind(controller, "vfio-pci")?;
        let json = program(&format!("kiovec identify {} --json", controller.bdf())).succeeds()?.json()?;
        for field in ["awun", "awupf"] {
            let value = json["controller"][field].as_u64();
            ensure!(value == Some(u64::from(blocks) - 1), "{field} is {value:?}");
        }
    }
    Ok(())
}
