//! The operator of a machine: does to it, from outside, what its guest asks for.
//!
//! Knows which of QEMU's commands make a device late or take it out; must not know why a guest wants that.

use std::io::{self, Write};
use std::process::ChildStdin;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::{Value, json};

use crate::monitor::{Entrance, Monitor};
use crate::report::{Answer, Ask};

/// What QEMU traces when a controller was enabled.
pub const CONTROLLER_ENABLED: &str = "pci_nvme_mmio_start_success";
/// How long a device stays late at most.
const LIMIT: Duration = Duration::from_secs(60);

/// The operator of one machine.
#[derive(Debug)]
pub struct Operator {
    entrance: Entrance,
    /// From the first request on.
    monitor: Option<Monitor>,
    answers: ChildStdin,
    /// Lines that QEMU traced.
    traced: Receiver<String>,
}

impl Operator {
    /// For a QEMU that connects to `entrance`; the guest hears answers on `answers`.
    pub fn new(entrance: Entrance, answers: ChildStdin, traced: Receiver<String>) -> Operator {
        Operator { entrance, monitor: None, answers, traced }
    }

    /// Does what is asked for, and answers.
    pub fn obey(&mut self, ask: &Ask) {
        let done = self.begin(ask);
        let answer = Answer(done.as_ref().map_err(ToString::to_string).err());
        // Should the machine be gone, its report says so.
        let _ = writeln!(self.answers, "{answer}");
        if let (Ok(()), Ask::Stall { serial, nsid }) = (done, ask) {
            let _ = self.end_stall(serial, *nsid);
        }
    }

    fn begin(&mut self, ask: &Ask) -> io::Result<()> {
        match ask {
            Ask::Stall { serial, nsid } => {
                let trace = json!({ "name": CONTROLLER_ENABLED, "enable": true });
                self.monitor()?.execute("trace-event-set-state", &trace)?;
                while self.traced.try_recv().is_ok() {}
                // One byte a second: nothing that is asked for comes within any timeout.
                self.limit(serial, *nsid, 1)
            }
            // A stall is over before anything else is listened to.
            Ask::Recovered => Ok(()),
            Ask::Unplug { serial } => self.monitor()?.execute("device_del", &json!({ "id": serial })),
        }
    }

    /// The device is as fast as before once its controller was reset; or after a while.
    fn end_stall(&mut self, serial: &str, nsid: u32) -> io::Result<()> {
        let _ = self.traced.recv_timeout(LIMIT);
        self.limit(serial, nsid, 0)?;
        let trace = json!({ "name": CONTROLLER_ENABLED, "enable": false });
        self.monitor()?.execute("trace-event-set-state", &trace)
    }

    /// Limits a namespace to so many bytes per second; 0 is no limit.
    fn limit(&mut self, serial: &str, nsid: u32, bytes: u64) -> io::Result<()> {
        let mut limits: Value =
            json!({ "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0, "bps": bytes });
        limits["id"] = json!(namespace_id(serial, nsid));
        self.monitor()?.execute("block_set_io_throttle", &limits)
    }

    fn monitor(&mut self) -> io::Result<&mut Monitor> {
        if self.monitor.is_none() {
            self.monitor = Some(self.entrance.accept()?);
        }
        self.monitor.as_mut().ok_or_else(|| io::Error::other("no monitor"))
    }
}

/// What a namespace, and what it is on, is called in QEMU. A controller is called by its serial number.
pub fn namespace_id(serial: &str, nsid: u32) -> String {
    format!("{serial}-{nsid}")
}
