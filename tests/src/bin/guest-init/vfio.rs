//! What is done behind a driver's back to a function that it has open through vfio-pci: through its own file, which
//! this process borrows. Knows where VFIO has configuration space; must not know whose device it is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Child;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::{Verdict, ensure};

/// Where a region begins in the file (VFIO_PCI_OFFSET_SHIFT), and the region that is configuration space
/// (VFIO_PCI_CONFIG_REGION_INDEX).
const REGION_SHIFT: u32 = 40;
const CONFIG: u64 = 7 << REGION_SHIFT;
const COMMAND: u64 = 4;
const MEMORY_SPACE: u16 = 1 << 1;

/// The number of a process's file for a function, if it has one open.
pub fn device_file(pid: u32) -> Option<i32> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let mut devices = files.filter(|file| {
        let target = fs::read_link(file.path()).unwrap_or_default();
        target.to_string_lossy().contains("vfio-device")
    });
    devices.next()?.file_name().to_str()?.parse().ok()
}

/// Clears Memory Space Enable of the only function that the process has open: VFIO takes the pages of its BARs away.
pub fn clear_memory_space(user: &Child) -> Verdict {
    let number = device_file(user.id()).ok_or("it has no function open")?;
    let failed = |e| format!("borrowing file {number} of process {}: {e}", user.id());
    let process = pidfd_open(Pid::from_child(user), PidfdFlags::empty()).map_err(failed)?;
    let file = pidfd_getfd(process, number, PidfdGetfdFlags::empty()).map_err(failed)?;
    let (file, mut command) = (File::from(file), [0; 2]);
    let failed = |e| format!("the command register through VFIO: {e}");
    file.read_exact_at(&mut command, CONFIG + COMMAND).map_err(failed)?;
    let before = u16::from_le_bytes(command);
    ensure!(before & MEMORY_SPACE != 0, "Memory Space Enable is clear already: {before:#x}");
    file.write_all_at(&(before & !MEMORY_SPACE).to_le_bytes(), CONFIG + COMMAND).map_err(failed)
}
