//! The kernel's log.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use kiovec_tests::process;

use crate::{Verdict, ensure};

const PATH: &str = "/dev/kmsg";

/// All records that the kernel still has.
pub fn read() -> io::Result<String> {
    let mut device = open()?;
    let mut log = String::new();
    while let Some(record) = next(&mut device)? {
        log.push_str(&record);
    }
    Ok(log)
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(PATH)
}

/// The next record, if there is one already.
fn next(device: &mut File) -> io::Result<Option<String>> {
    let mut record = [0; 8192];
    loop {
        match device.read(&mut record) {
            Ok(len) => return Ok(Some(String::from_utf8_lossy(&record[..len]).into_owned())),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            // The oldest records were overwritten meanwhile; the next read goes on after them.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The records that come from its making on.
#[derive(Debug)]
pub struct Follower {
    device: File,
}

impl Follower {
    pub fn new() -> io::Result<Follower> {
        let mut device = open()?;
        device.seek(SeekFrom::End(0))?;
        Ok(Follower { device })
    }

    /// Returns once there is a record for which `found` holds; waits `limit` at most.
    pub fn wait_for(&mut self, what: &str, limit: Duration, found: impl Fn(&str) -> bool) -> Verdict {
        let failed = |e: io::Error| format!("{PATH}: {e}");
        let deadline = Instant::now() + limit;
        loop {
            while let Some(record) = next(&mut self.device).map_err(failed)? {
                if found(&record) {
                    return Ok(());
                }
            }
            let more = process::readable(&self.device, deadline).map_err(failed)?;
            ensure!(more, "{what}: nothing of it in the kernel's log after {} s", limit.as_secs());
        }
    }
}
