//! Waiting for the kernel to make or drop a device, by its own announcements.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kiovec_tests::process;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};

/// Returns once `found` gives something; looks at every announcement of the kernel, for `limit` at most.
pub fn wait_for<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> Result<T, String> {
    // Before the first look: what happens between a look and the wait is announced to this socket.
    let socket = announcements().map_err(|e| format!("cannot listen to the kernel's announcements: {e}"))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(thing) = found() {
            return Ok(thing);
        }
        if !process::readable(&socket, deadline).map_err(|e| format!("poll: {e}"))? {
            return Err(format!("{what}: not there after {} s", limit.as_secs()));
        }
        // An overrun only loses texts that are not read anyway.
        let _ = recv(&socket, &mut [0_u8; 4096][..], RecvFlags::empty());
    }
}

fn announcements() -> rustix::io::Result<OwnedFd> {
    const KERNEL_GROUP: u32 = 1;
    let protocol = Some(netlink::KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}
