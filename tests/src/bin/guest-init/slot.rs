//! The hot-plug slot that a controller is in: taking the controller out without anybody's consent, and cutting its
//! power for a while.
//!
//! Knows Slot Control and Slot Status (PCI Express Base Specification, 7.5.3.10 and 7.5.3.11), what QEMU makes of them
//! and what the kernel answers; must not know who uses the controller.
//!
//! What a process sees that has the function open through vfio-pci, tried with Linux 6.1 and QEMU 10.0:
//! - Registers of the mapped BAR read as **zeros**, where real hardware answers with all ones: QEMU has nobody to
//!   answer for a bus. Writes go nowhere. There is no SIGBUS, and the BAR can even be mapped again; SIGBUS comes
//!   only where Memory Space Enable has been cleared through VFIO itself, be it by writing the command register back
//!   as it reads after a loss of power.
//! - Configuration space reads as all ones where VFIO passes it on: Status is FFFFh. IDs and BARs are VFIO's own copy
//!   and stay.
//! - Reset (VFIO_DEVICE_RESET) fails at once with EAGAIN after a removal. Mapping and unmapping DMA go on working.
//! - VFIO's request eventfd fires at once after a removal, if there is one; the error eventfd never does. The function
//!   stays in sysfs, and pciehp waits in vfio-pci, until its user closes the device, or dies; then everything goes in
//!   milliseconds. Other slots and other processes notice nothing of it.
//! - After a mere loss of power nothing fires, and the kernel goes on believing in the function: whoever resets or
//!   closes it sits in the kernel, beyond the reach of signals, until power is back, or for more than a minute each
//!   time (pci_dev_wait). With power back the command register is 0 and the BARs are empty, so that registers still read
//!   as zeros, until Memory Space Enable is written through VFIO, which puts the BARs back: then the old mapping works.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use kiovec_tests::machine::Controller;

use crate::{Verdict, ensure, kmsg, uevent};

/// Offsets in configuration space, and in the PCI Express capability.
const CAPABILITIES: u64 = 0x34;
const SLOT_CONTROL: u64 = 0x18;
const SLOT_STATUS: u64 = 0x1a;

const PCI_EXPRESS: u8 = 0x10;

const HOT_PLUG_INTERRUPT: u16 = 1 << 5;
const INDICATOR: u16 = 3 << 8;
const INDICATOR_ON: u16 = 1 << 8;
const INDICATOR_OFF: u16 = 3 << 8;
const POWER_OFF: u16 = 1 << 10;
const PRESENCE: u16 = 1 << 6;

/// The kernel has a thread that has to get to it.
const LIMIT: Duration = Duration::from_secs(20);

/// Takes the controller out, whatever it is doing and whoever has it, as a hand would that pulls it. Returns when the
/// kernel knows; whoever has the function open still has it then, see [`wait_until_gone`]. It does not come back in
/// this boot.
pub fn remove(controller: &Controller) -> Verdict {
    let slot = Slot::of(controller)?;
    let mut log = kmsg::Follower::new().map_err(|e| format!("/dev/kmsg: {e}"))?;
    let before = slot.control()?;
    ensure!(before & POWER_OFF == 0, "the slot of {} has no power already", controller.bdf());
    // QEMU takes out what is in a slot whose indicator and power are off. The kernel must not find the power off, or it
    // takes the slot for disabled by itself, and never removes the function: so it is told nothing before both are as
    // they were. All that it sees then is that card and link are gone.
    slot.set_control(before & !HOT_PLUG_INTERRUPT & !INDICATOR | INDICATOR_OFF | POWER_OFF)?;
    slot.set_control(before)?;
    ensure!(slot.status()? & PRESENCE == 0, "{} is still in its slot", controller.bdf());
    let bdf = controller.bdf();
    // The one if somebody has it open, the other if nobody has. Whoever closes it before the kernel knows would wait
    // as after a loss of power.
    log.wait_for(&format!("removal of {bdf}"), LIMIT, |record| {
        record.contains(&bdf)
            && (record.contains("device request") || record.contains("Removing from iommu group"))
    })
}

/// Waits until the kernel has let go of a removed controller, which is when its last user has.
pub fn wait_until_gone(controller: &Controller) -> Verdict {
    let path = format!("/sys/bus/pci/devices/{}", controller.bdf());
    let what = format!("end of {}", controller.bdf());
    uevent::wait_for(&what, LIMIT, || (!Path::new(&path).exists()).then_some(()))
}

/// Cuts the controller's power. It stays in its slot, and the kernel learns nothing.
pub fn cut_power(controller: &Controller) -> Verdict {
    let slot = Slot::of(controller)?;
    // With its indicator on, QEMU leaves the controller in the slot.
    slot.set_control(slot.control()? & !INDICATOR | INDICATOR_ON | POWER_OFF)?;
    ensure!(vendor(controller)? == u16::MAX, "{} still has power", controller.bdf());
    Ok(())
}

/// Gives the controller its power back: it is as after power-on, its BARs and its command register included.
pub fn restore_power(controller: &Controller) -> Verdict {
    let slot = Slot::of(controller)?;
    slot.set_control(slot.control()? & !INDICATOR & !POWER_OFF | INDICATOR_ON)?;
    ensure!(vendor(controller)? != u16::MAX, "{} still has no power", controller.bdf());
    Ok(())
}

fn vendor(controller: &Controller) -> Result<u16, String> {
    Ok(u16::from_le_bytes(Config::open(controller.bdf())?.read(0)?))
}

/// A function's configuration space, as sysfs gives it to root.
#[derive(Debug)]
struct Config {
    file: File,
    bdf: String,
}

impl Config {
    fn open(bdf: String) -> Result<Config, String> {
        let path = format!("/sys/bus/pci/devices/{bdf}/config");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Config { file: file.map_err(|e| format!("{path}: {e}"))?, bdf })
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        let failed = |e| format!("{}: reading configuration space at {at:#x}: {e}", self.bdf);
        self.file.read_exact_at(&mut bytes, at).map_err(failed)?;
        Ok(bytes)
    }

    fn write(&self, at: u64, value: u16) -> Verdict {
        let failed = |e| format!("{}: writing {value:#x} to configuration space at {at:#x}: {e}", self.bdf);
        self.file.write_all_at(&value.to_le_bytes(), at).map_err(failed)
    }

    /// Where the first capability of that kind is.
    fn capability(&self, id: u8) -> Result<u64, String> {
        /// There is no room for more.
        const MOST: usize = 48;
        let [mut at] = self.read(CAPABILITIES)?;
        for _ in 0..MOST {
            if at == 0 {
                break;
            }
            let [found, next] = self.read(at.into())?;
            if found == id {
                return Ok(at.into());
            }
            at = next;
        }
        Err(format!("{} has no capability {id:#x}", self.bdf))
    }
}

/// The registers of a slot, which its root port has.
#[derive(Debug)]
struct Slot {
    port: Config,
    capability: u64,
}

impl Slot {
    fn of(controller: &Controller) -> Result<Slot, String> {
        let port = controller.root_port.as_ref();
        let port = port.ok_or_else(|| format!("{} is in no slot", controller.bdf()))?;
        let port = Config::open(port.address.to_string())?;
        let capability = port.capability(PCI_EXPRESS)?;
        Ok(Slot { port, capability })
    }

    fn control(&self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.port.read(self.capability + SLOT_CONTROL)?))
    }

    fn set_control(&self, value: u16) -> Verdict {
        self.port.write(self.capability + SLOT_CONTROL, value)
    }

    fn status(&self) -> Result<u16, String> {
        Ok(u16::from_le_bytes(self.port.read(self.capability + SLOT_STATUS)?))
    }
}
