//! PCI functions as sysfs shows them: the harness's own view, beside that of the programs under test.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use kiovec_tests::machine::Controller;

use crate::{Verdict, ensure, uevent};

const LIMIT: Duration = Duration::from_secs(20);

fn device(controller: &Controller) -> PathBuf {
    PathBuf::from("/sys/bus/pci/devices").join(controller.bdf())
}

fn link_name(path: PathBuf) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// The driver that the function is bound to.
pub fn driver(controller: &Controller) -> Option<String> {
    link_name(device(controller).join("driver"))
}

/// The number of its IOMMU group.
pub fn group(controller: &Controller) -> Result<String, String> {
    link_name(device(controller).join("iommu_group"))
        .ok_or_else(|| format!("{} has no group", controller.bdf()))
}

/// Waits until the function is bound to `name`.
pub fn wait_for_driver(controller: &Controller, name: &str) -> Verdict {
    let what = format!("driver {name} for {}", controller.bdf());
    uevent::wait_for(&what, LIMIT, || (driver(controller).as_deref() == Some(name)).then_some(()))
}

fn write(path: PathBuf, text: &str) -> Verdict {
    fs::write(&path, text).map_err(|e| format!("{text:?} to {}: {e}", path.display()))
}

/// Takes the function from its driver, and gives it back.
pub fn leave_and_return(controller: &Controller) -> Verdict {
    let path = device(controller);
    let before = driver(controller).ok_or_else(|| format!("{} has no driver", controller.bdf()))?;
    write(path.join("driver/unbind"), &controller.bdf())?;
    ensure!(driver(controller).is_none(), "{} is still with {before}", controller.bdf());
    write(format!("/sys/bus/pci/drivers/{before}/bind").into(), &controller.bdf())?;
    wait_for_driver(controller, &before)
}

/// Gives the function to `name` the way an administrator would by hand; the next probe by itself does the same.
pub fn rebind(controller: &Controller, name: &str) -> Verdict {
    if driver(controller).as_deref() == Some(name) {
        return Ok(());
    }
    let path = device(controller);
    // An empty override means that any driver whose table matches may take it.
    write(path.join("driver_override"), if name == "nvme" { "\n" } else { name })?;
    if path.join("driver").exists() {
        write(path.join("driver/unbind"), &controller.bdf())?;
    }
    write("/sys/bus/pci/drivers_probe".into(), &controller.bdf())?;
    wait_for_driver(controller, name)
}
