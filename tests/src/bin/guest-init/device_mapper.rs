//! A device-mapper device on top of others: what LVM and LUKS amount to, and the kernel's own stripe.
//!
//! Knows the ioctls of include/uapi/linux/dm-ioctl.h, as far as a table of one target needs them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{disk, uevent};

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`, without the target that may follow.
const HEADER: usize = 312;
/// Header, `struct dm_target_spec` (40 bytes) and its parameters.
const LEN: usize = 512;

const CREATE: u64 = 3;
const REMOVE: u64 = 4;
/// Suspends, or, without the flag that says so, resumes.
const RESUME: u64 = 6;
const LOAD: u64 = 9;

/// The device, which goes when this is dropped.
#[derive(Debug)]
pub struct Mapped {
    control: File,
    name: String,
}

/// A target: its kind, how many sectors it is long, its parameters.
type Target<'a> = (&'a str, u64, &'a str);

impl Mapped {
    /// Maps the first `sectors` sectors of a block device to a new device.
    pub fn linear(name: &str, device: &Path, sectors: u64) -> Result<Mapped, String> {
        Mapped::create(name, ("linear", sectors, &format!("{} 0", number(device)?)))
    }

    /// Stripes block devices, of so many sectors each, in chunks of so many.
    pub fn striped(name: &str, devices: &[PathBuf], sectors: u64, chunk: u64) -> Result<Mapped, String> {
        let mut parameters = format!("{} {chunk}", devices.len());
        for device in devices {
            parameters += &format!(" {} 0", number(device)?);
        }
        Mapped::create(name, ("striped", devices.len() as u64 * sectors, &parameters))
    }

    fn create(name: &str, target: Target<'_>) -> Result<Mapped, String> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        let device =
            Mapped { control: control.map_err(|e| format!("{CONTROL}: {e}"))?, name: name.to_owned() };
        device.call(CREATE, None)?;
        device.call(LOAD, Some(target))?;
        device.call(RESUME, None)?;
        Ok(device)
    }

    /// Its block device, as soon as it is there.
    pub fn path(&self) -> Result<PathBuf, String> {
        let named = |block: &PathBuf| {
            fs::read_to_string(block.join("dm/name")).is_ok_and(|name| name.trim() == self.name)
        };
        let find = || {
            let mut blocks = fs::read_dir("/sys/block").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            let node = Path::new("/dev").join(blocks.find(named)?.file_name()?);
            disk::is_there(&node).then_some(node)
        };
        uevent::wait_for(&format!("block device {}", self.name), Duration::from_secs(20), find)
    }

    fn call(&self, number: u64, target: Option<Target<'_>>) -> Result<(), String> {
        const TYPE: u64 = 0xfd;
        let mut argument = argument(&self.name, target);
        let request = 3 << 30 | (HEADER as u64) << 16 | TYPE << 8 | number;
        // SAFETY: the argument says its own length (data_size), beyond which the kernel neither reads nor writes.
        let done = unsafe { libc::ioctl(self.control.as_raw_fd(), request, argument.as_mut_ptr()) };
        if done == 0 {
            return Ok(());
        }
        Err(format!("device-mapper {number}, {}: {}", self.name, io::Error::last_os_error()))
    }
}

/// A block device's number as tables have it: `259:3`.
fn number(device: &Path) -> Result<String, String> {
    let number = fs::metadata(device).map_err(|e| format!("{}: {e}", device.display()))?.rdev();
    Ok(format!("{}:{}", libc::major(number), libc::minor(number)))
}

fn argument(name: &str, target: Option<Target<'_>>) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &4_u32.to_le_bytes()); // version 4.0.0
    put(12, &(LEN as u32).to_le_bytes()); // data_size
    put(16, &(HEADER as u32).to_le_bytes()); // data_start
    put(20, &u32::from(target.is_some()).to_le_bytes()); // target_count
    put(48, name.as_bytes());
    if let Some((kind, sectors, parameters)) = target {
        put(HEADER + 8, &sectors.to_le_bytes());
        put(HEADER + 24, kind.as_bytes());
        put(HEADER + 40, parameters.as_bytes());
    }
    bytes
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Err(e) = self.call(REMOVE, None) {
            println!("guest-init: {e}");
        }
    }
}
