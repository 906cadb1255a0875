//! What the kernel's own parts do: the ground that the other cases stand on.

use std::path::Path;

use kiovec_tests::machine::{DISK, Machine};

use crate::{Verdict, ensure, kmsg, pci};

/// VFIO is there, and every controller of the machine belongs to the kernel's driver.
pub fn modules_loaded(machine: &'static Machine) -> Verdict {
    ensure!(Path::new("/dev/vfio/vfio").exists(), "no /dev/vfio/vfio");
    ensure!(Path::new("/sys/bus/pci/drivers/vfio-pci").exists(), "no driver vfio-pci");
    machine.controllers.iter().try_for_each(|controller| pci::wait_for_driver(controller, "nvme"))
}

/// A function goes to vfio-pci by plain writes to sysfs: shows that the machine itself is sound.
pub fn sysfs_bind(_: &'static Machine) -> Verdict {
    pci::rebind(&DISK, "vfio-pci")?;
    let device = format!("/dev/vfio/{}", pci::group(&DISK)?);
    ensure!(Path::new(&device).exists(), "no {device}");
    Ok(())
}

/// And comes back.
pub fn sysfs_restore(_: &'static Machine) -> Verdict {
    pci::rebind(&DISK, "nvme")
}

/// No device touched memory that was not mapped for it. QEMU completes such an access with success, so that only
/// the IOMMU's own message tells.
pub fn no_dma_faults(_: &'static Machine) -> Verdict {
    let log = kmsg::read().map_err(|e| format!("/dev/kmsg: {e}"))?;
    let fault = log.lines().find(|line| line.contains("DMAR") && line.to_lowercase().contains("fault"));
    ensure!(fault.is_none(), "{}", fault.unwrap_or_default());
    Ok(())
}
