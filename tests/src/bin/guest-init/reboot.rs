//! Booting anew within one run of the machine, and knowing it afterwards.
//!
//! Knows a byte of the real-time clock's memory that neither firmware nor kernel uses and that a warm restart leaves
//! as it is; must not know what is tested before and after.

use crate::{Verdict, ensure};

const INDEX_PORT: u16 = 0x70;
const DATA_PORT: u16 = 0x71;
const BYTE: u8 = 0x52;
const REBOOTED: u8 = 0xa5;

/// Reboots; in the boot after that, it has been done.
pub fn once() -> Verdict {
    allow_ports()?;
    if take() {
        return Ok(());
    }
    write(REBOOTED);
    rustix::system::reboot(rustix::system::RebootCommand::Restart).map_err(|e| format!("reboot: {e}"))
}

/// Whether this is the boot after that.
pub fn has_been() -> bool {
    allow_ports().is_ok() && read() == REBOOTED
}

/// The same, once.
fn take() -> bool {
    let rebooted = read() == REBOOTED;
    write(0);
    rebooted
}

fn allow_ports() -> Verdict {
    // SAFETY: ioperm only changes which ports this thread may use.
    let done = unsafe { libc::ioperm(INDEX_PORT.into(), 2, 1) };
    ensure!(done == 0, "ioperm {INDEX_PORT:#x}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn read() -> u8 {
    let value;
    select();
    // SAFETY: the ports are allowed, and an access to the clock's memory touches no other.
    unsafe { std::arch::asm!("in al, dx", in("dx") DATA_PORT, out("al") value, options(nomem, nostack)) };
    value
}

fn write(value: u8) {
    select();
    // SAFETY: as above.
    unsafe { std::arch::asm!("out dx, al", in("dx") DATA_PORT, in("al") value, options(nomem, nostack)) };
}

fn select() {
    // SAFETY: as above.
    unsafe { std::arch::asm!("out dx, al", in("dx") INDEX_PORT, in("al") BYTE, options(nomem, nostack)) };
}
