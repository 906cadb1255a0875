//! The kernel's log.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// All records that the kernel still has.
pub fn read() -> std::io::Result<String> {
    let mut device = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut log = String::new();
    let mut record = [0; 8192];
    loop {
        match device.read(&mut record) {
            Ok(len) => log.push_str(&String::from_utf8_lossy(&record[..len])),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(log),
            // The oldest records were overwritten meanwhile; the next read goes on after them.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(e) => return Err(e),
        }
    }
}
