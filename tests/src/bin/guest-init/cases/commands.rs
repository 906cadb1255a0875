//! `kiovec list` and `kiovec identify`: what they show, and what opening a device says when something is missing.

use kiovec_tests::machine::{Controller, DISK, Machine, OTHER_TWIN, SCRATCH, TWIN};

use super::{setup, written_disks};
use crate::program::{Output, Program, USER, program};
use crate::{Verdict, disk, ensure, pci};

const MODEL: &str = "QEMU NVMe Ctrl";

/// `kiovec identify`, which opens the controller.
fn identify(controller: &Controller) -> Program {
    program(&format!("kiovec identify {}", controller.bdf()))
}

/// The row of a table that begins with the controller's address.
fn row<'a>(output: &'a Output, controller: &Controller) -> Result<&'a str, String> {
    let row = output.out.lines().find(|line| line.contains(&controller.bdf()));
    row.ok_or_else(|| format!("no row for {}: {output}", controller.bdf()))
}

/// Every function is listed, with the driver it has.
fn list_shows(controllers: impl Iterator<Item = &'static Controller>, driver: &str) -> Verdict {
    let output = program("kiovec list").succeeds()?;
    for controller in controllers {
        let row = row(&output, controller)?;
        let group = pci::group(controller)?;
        ensure!(
            row.contains(driver) && row.contains(&group),
            "{driver}, group {group} not in the row {row:?}"
        );
    }
    Ok(())
}

/// All are listed as the kernel's, for people and as JSON.
pub fn list_kernels(machine: &'static Machine) -> Verdict {
    list_shows(machine.controllers.iter().copied(), "nvme")?;
    let text = program("kiovec list --json").succeeds()?.json()?.to_string();
    ensure!(
        machine.controllers.iter().all(|controller| text.contains(&controller.bdf())),
        "not all are in {text}"
    );
    Ok(())
}

/// Those that were bound are listed as VFIO's.
pub fn list_bound(machine: &'static Machine) -> Verdict {
    list_shows(written_disks(machine), "vfio-pci")
}

/// Controller and namespaces as QEMU made them.
pub fn identify_disks(machine: &'static Machine) -> Verdict {
    for disk in written_disks(machine) {
        pci::rebind(disk, "vfio-pci")?;
        identify(disk).succeeds()?.out_has(&[MODEL, disk.serial, "512", "4096"])?;
        for form in ["--json", "-o json"] {
            let output = program(&format!("kiovec identify {} {form}", disk.bdf())).succeeds()?;
            let text = output.json()?.to_string();
            ensure!(text.contains(disk.serial) && text.contains(MODEL), "model or serial is not in {text}");
        }
    }
    Ok(())
}

/// A device that the kernel has: the error says how to get it, and the disk stays where it is.
pub fn kernels_device_is_refused(_: &'static Machine) -> Verdict {
    let bdf = DISK.bdf();
    let how = format!("hugepage-setup bind {bdf}");
    identify(&DISK).refuses(&["nvme", &how])?;
    program(&format!("kiovec perf -t 1 {bdf}")).refuses(&["nvme", &how])?;
    disk::path(&DISK, 1).map(drop)
}

/// Addresses of nothing, and what is no address.
pub fn wrong_addresses_are_refused(_: &'static Machine) -> Verdict {
    program("kiovec identify 0000:7f:1f.7").refuses(&[
        "0000:7f:1f.7",
        "no such PCI function",
        "kiovec list",
    ])?;
    program("kiovec perf -t 1 0000:7f:1f.7").refuses(&["0000:7f:1f.7", "no such PCI function"])?;
    program("kiovec identify 0000:00:10").refuses(&["0000:00:10", "0000:01:00.0"])
}

/// Two functions share a group. With one bound, the error names the other; with both, each can be used.
pub fn group_must_be_viable(_: &'static Machine) -> Verdict {
    ensure!(pci::group(&TWIN)? == pci::group(&OTHER_TWIN)?, "the machine is not as it should be: two groups");
    setup::bind(&TWIN)?;
    identify(&TWIN).refuses(&[&TWIN.bdf(), "not viable", &OTHER_TWIN.bdf()])?;
    ensure!(pci::driver(&OTHER_TWIN).as_deref() == Some("nvme"), "the other twin lost its driver");
    setup::bind(&OTHER_TWIN)?;
    for twin in [&TWIN, &OTHER_TWIN] {
        identify(twin).succeeds()?.out_has(&[twin.serial])?;
    }
    Ok(())
}

/// An unprivileged user is told about the group's file, then about the limit of locked memory; with both, it works.
pub fn unprivileged_user(_: &'static Machine) -> Verdict {
    const SMALL: u64 = 64 << 10;
    const ENOUGH: u64 = 256 << 20;
    setup::bind(&SCRATCH)?;
    let device = format!("/dev/vfio/{}", pci::group(&SCRATCH)?);
    identify(&SCRATCH).unprivileged().refuses(&[&device, "permission", "--user"])?;
    program(&format!("hugepage-setup bind --user {USER} {}", SCRATCH.bdf())).succeeds()?;
    identify(&SCRATCH).unprivileged().locked_memory(SMALL).refuses(&[
        "locked-memory limit",
        "65536",
        "ulimit -l",
    ])?;
    identify(&SCRATCH).unprivileged().locked_memory(ENOUGH).succeeds()?.out_has(&[SCRATCH.serial])
}

/// Without interrupt remapping binding works, and opening says what is missing.
pub fn no_interrupt_remapping(_: &'static Machine) -> Verdict {
    setup::bind(&DISK)?;
    identify(&DISK).refuses(&[&DISK.bdf(), "interrupt remapping", "allow_unsafe_interrupts"])?;
    ensure!(pci::driver(&DISK).as_deref() == Some("vfio-pci"), "the function lost its driver");
    Ok(())
}

/// Without an IOMMU opening says so, and not that the device should be bound: it could not be.
pub fn no_iommu(_: &'static Machine) -> Verdict {
    identify(&DISK).refuses(&[&DISK.bdf(), "no IOMMU group", "firmware"])?;
    disk::path(&DISK, 1).map(drop)
}
