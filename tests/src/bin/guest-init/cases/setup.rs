//! hugepage-setup: status, reserve, bind, restore, and whom it refuses to take a device from.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiovec_tests::machine::{Controller, DISK, Machine, SCRATCH, USED};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::written_disks;
use crate::device_mapper::Mapped;
use crate::program::program;
use crate::{Verdict, disk, ensure, pci};

/// What the tests work with: 128 MiB of 2 MiB pages.
const PAGES: u64 = 64;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// `hugepage-setup bind` for this controller.
pub fn bind(controller: &Controller) -> Verdict {
    program(&format!("hugepage-setup bind {}", controller.bdf())).succeeds()?;
    is_with(controller, "vfio-pci")
}

fn is_with(controller: &Controller, driver: &str) -> Verdict {
    let now = pci::driver(controller);
    ensure!(now.as_deref() == Some(driver), "{} is with {now:?}, not with {driver}", controller.bdf());
    Ok(())
}

/// Status lists the functions of a machine that nobody has changed, for people and as JSON.
pub fn status(machine: &'static Machine) -> Verdict {
    let text = program("hugepage-setup status").succeeds()?;
    for controller in machine.controllers {
        text.out_has(&[&controller.bdf(), "nvme", controller.serial])?;
    }
    let output = program("hugepage-setup status --json").succeeds()?;
    let listed = output.json()?["functions"].as_array().map_or(0, Vec::len);
    ensure!(listed == machine.controllers.len(), "{listed} functions in {output}");
    Ok(())
}

/// Without an IOMMU status says so, and bind refuses and leaves the function to its driver.
pub fn no_iommu(_: &'static Machine) -> Verdict {
    program("hugepage-setup status").succeeds()?.out_has(&["IOMMU off", "intel_iommu=on"])?;
    program(&format!("hugepage-setup bind {}", DISK.bdf())).refuses(&[&DISK.bdf(), "IOMMU", "firmware"])?;
    is_with(&DISK, "nvme")
}

/// Hugepages are reserved; once more changes nothing; more than there is memory for changes nothing either.
pub fn reserve(_: &'static Machine) -> Verdict {
    let command = format!("hugepage-setup reserve --count {PAGES}");
    program(&command).succeeds()?.out_has(&["64 hugepages"])?;
    ensure!(pool()? == PAGES, "the pool has {} pages", pool()?);
    program(&command).succeeds()?.out_has(&["already"])?;
    program("hugepage-setup reserve --count 100000").refuses(&["100000", "ask for fewer"])?;
    ensure!(pool()? == PAGES, "the pool has {} pages after a refusal", pool()?);
    Ok(())
}

fn pool() -> Result<u64, String> {
    let text = fs::read_to_string(POOL).map_err(|e| format!("{POOL}: {e}"))?;
    text.trim().parse().map_err(|e| format!("{POOL}: {text:?}: {e}"))
}

/// Runs `then` on a machine whose hugepages have been given back.
pub fn without_hugepages(then: impl FnOnce() -> Verdict) -> Verdict {
    let set = |pages: u64| fs::write(POOL, pages.to_string()).map_err(|e| format!("{POOL}: {e}"));
    set(0)?;
    let left = pool()?;
    let verdict = if left == 0 { then() } else { Err(format!("{left} hugepages are in use by somebody")) };
    set(PAGES)?;
    verdict
}

/// A device whose partition is swapped on stays where it is, and the refusal names the partition.
pub fn swap_is_refused(_: &'static Machine) -> Verdict {
    let mut partition = disk::path(&USED, 1)?.into_os_string();
    partition.push("p1");
    let partition = Path::new(&partition);
    let name = CString::new(partition.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: the name is a string that ends in NUL and outlives the call.
    let on = unsafe { libc::swapon(name.as_ptr(), 0) };
    ensure!(on == 0, "swapon {}: {}", partition.display(), std::io::Error::last_os_error());
    let refused = refuses_to_take(&USED, &[&partition.display().to_string(), "swapoff"]);
    // SAFETY: as above.
    let off = unsafe { libc::swapoff(name.as_ptr()) };
    ensure!(off == 0, "swapoff {}: {}", partition.display(), std::io::Error::last_os_error());
    refused?;
    bind(&USED)?;
    restore_one(&USED)
}

/// A device with a mounted file system stays where it is, and the refusal names the mount.
pub fn mount_is_refused(_: &'static Machine) -> Verdict {
    const AT: &str = "/mnt";
    let device = disk::path(&USED, 2)?;
    fs::create_dir_all(AT).map_err(|e| format!("{AT}: {e}"))?;
    mount(&device, AT, "romfs", MountFlags::RDONLY, None)
        .map_err(|e| format!("mount {}: {e}", device.display()))?;
    let refused = refuses_to_take(&USED, &[&device.display().to_string(), AT, "unmount"]);
    unmount(AT, UnmountFlags::empty()).map_err(|e| format!("umount {AT}: {e}"))?;
    refused
}

/// A device under device-mapper stays where it is, and the refusal names the device on top.
pub fn device_mapper_is_refused(_: &'static Machine) -> Verdict {
    const NAME: &str = "kiovec-holder";
    let device = disk::path(&USED, 3)?;
    let holder = Mapped::linear(NAME, &device, 1024)?;
    let refused = refuses_to_take(&USED, &[&device.display().to_string(), "dm-0", NAME]);
    drop(holder);
    refused
}

/// A device that a process has open stays where it is, and the refusal names the process; unless it is forced.
pub fn open_device_is_refused(_: &'static Machine) -> Verdict {
    let path = disk::path(&USED, 3)?;
    let file = fs::File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    refuses_to_take(&USED, &[&path.display().to_string(), "pid 1", "--force"])?;
    program(&format!("hugepage-setup bind --force {}", USED.bdf())).succeeds()?;
    is_with(&USED, "vfio-pci")?;
    drop(file);
    restore_one(&USED)
}

fn refuses_to_take(controller: &Controller, words: &[&str]) -> Verdict {
    program(&format!("hugepage-setup bind {}", controller.bdf())).refuses(words)?;
    is_with(controller, "nvme")
}

fn restore_one(controller: &Controller) -> Verdict {
    program(&format!("hugepage-setup restore {}", controller.bdf())).succeeds()?;
    is_with(controller, "nvme")
}

/// Addresses of nothing, of something else, and of nobody's form are refused.
pub fn wrong_addresses_are_refused(_: &'static Machine) -> Verdict {
    program("hugepage-setup bind 0000:7f:1f.7").refuses(&["0000:7f:1f.7", "no such PCI function"])?;
    program("hugepage-setup bind 0000:00:00.0").refuses(&["0000:00:00.0", "not an NVMe function"])?;
    program("hugepage-setup bind --user nobody-of-that-name 0000:00:10.0")
        .refuses(&["nobody-of-that-name"])?;
    is_with(&DISK, "nvme")
}

/// The disks go to vfio-pci, a second time as well, and status and list say so.
pub fn bind_disks(machine: &'static Machine) -> Verdict {
    for controller in written_disks(machine) {
        bind(controller)?;
        program(&format!("hugepage-setup bind {}", controller.bdf())).succeeds()?.out_has(&["already"])?;
        let device = format!("/dev/vfio/{}", pci::group(controller)?);
        ensure!(Path::new(&device).exists(), "no {device}");
    }
    let status = program("hugepage-setup status").succeeds()?;
    let row = status.out.lines().find(|line| line.starts_with(&DISK.bdf()));
    ensure!(
        row.is_some_and(|row| row.contains("vfio-pci")),
        "no vfio-pci in the row of {}: {status}",
        DISK.bdf()
    );
    Ok(())
}

/// The group's device file belongs to the user it was given to, and to root again afterwards.
pub fn user_gets_the_group(_: &'static Machine) -> Verdict {
    let device = format!("/dev/vfio/{}", pci::group(&SCRATCH)?);
    let owner = || fs::metadata(&device).map(|meta| meta.uid()).map_err(|e| format!("{device}: {e}"));
    program(&format!("hugepage-setup bind --user tester {}", SCRATCH.bdf())).succeeds()?;
    ensure!(owner()? == 1000, "{device} belongs to {}", owner()?);
    restore_one(&SCRATCH)?;
    bind(&SCRATCH)?;
    ensure!(owner()? == 0, "{device} still belongs to {}", owner()?);
    Ok(())
}

/// Restore gives everything back, functions and hugepages; a second time there is nothing to do.
pub fn restore(machine: &'static Machine) -> Verdict {
    program("hugepage-setup restore").succeeds()?;
    machine.controllers.iter().try_for_each(|controller| is_with(controller, "nvme"))?;
    ensure!(pool()? == 0, "{} hugepages are still reserved", pool()?);
    program("hugepage-setup restore").succeeds()?.out_has(&["nothing to restore"])
}
