//! A device-mapper device on top of another: what LVM and LUKS amount to.
//!
//! The ioctls of include/uapi/linux/dm-ioctl.h, as far as a linear mapping needs them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

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
pub struct Linear {
    control: File,
    name: String,
}

impl Linear {
    /// Maps the first `sectors` sectors of the block device of this number, `259:3`, to a new device.
    pub fn create(name: &str, number: &str, sectors: u64) -> Result<Linear, String> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        let device =
            Linear { control: control.map_err(|e| format!("{CONTROL}: {e}"))?, name: name.to_owned() };
        device.call(CREATE, None)?;
        device.call(LOAD, Some((sectors, &format!("{number} 0"))))?;
        device.call(RESUME, None)?;
        Ok(device)
    }

    fn call(&self, number: u64, target: Option<(u64, &str)>) -> Result<(), String> {
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

fn argument(name: &str, target: Option<(u64, &str)>) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &4_u32.to_le_bytes()); // version 4.0.0
    put(12, &(LEN as u32).to_le_bytes()); // data_size
    put(16, &(HEADER as u32).to_le_bytes()); // data_start
    put(20, &u32::from(target.is_some()).to_le_bytes()); // target_count
    put(48, name.as_bytes());
    if let Some((sectors, parameters)) = target {
        put(HEADER + 8, &sectors.to_le_bytes());
        put(HEADER + 24, b"linear");
        put(HEADER + 40, parameters.as_bytes());
    }
    bytes
}

impl Drop for Linear {
    fn drop(&mut self) {
        if let Err(e) = self.call(REMOVE, None) {
            println!("guest-init: {e}");
        }
    }
}
