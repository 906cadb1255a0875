//! How a controller is reached: configuration space, registers, doorbells, DMA domain, reset.
//!
//! This is the control plane: nothing here is called per I/O, except the ring of a [`Doorbell`],
//! which is a store to mapped memory and no virtual call wherever there is memory to map. Knows how to reach a function of PCI;
//! must not know what NVMe puts in its registers.

mod address;
mod bar;
mod doorbell;
mod shadow;
mod vfio;
pub mod vfio_user;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::memory::Domain;
use crate::{Error, Result};

pub use address::Address;
pub use doorbell::{Doorbell, DoorbellPage, PostedWrites};
pub(crate) use shadow::{Shadow, ShadowDoorbells};
pub use vfio::Vfio;
pub use vfio_user::VfioUser;

/// Where the doorbells begin in BAR0.
pub(crate) const DOORBELLS: u64 = 0x1000;
/// Command register of configuration space (PCI Express Base Specification, 7.5.1.1.3).
const COMMAND: u16 = 0x04;
const COMMAND_MEMORY_SPACE: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// A PCI function with an NVMe controller behind it, however it is reached.
///
/// Registers are those of BAR0 (NVM Express PCIe Transport, "Controller registers"); offsets are in bytes.
/// All methods may be called from several threads.
pub trait Function: Send + Sync {
    /// The name the function was opened by, for messages: `0000:01:00.0`, `emulated`.
    fn name(&self) -> &str;

    /// The translation table through which the function reaches memory. Functions that share one
    /// return the same `Arc`.
    fn domain(&self) -> Arc<dyn Domain>;

    /// Reads configuration space. `offset + data.len()` is at most 4096.
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()>;

    /// Writes configuration space. `offset + data.len()` is at most 4096.
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()>;

    /// Reads a 32-bit register. A function that is gone reads as all ones.
    fn read32(&self, offset: u64) -> Result<u32>;

    /// Reads a 64-bit register, as two 32-bit accesses, low half first, where that is all there is.
    fn read64(&self, offset: u64) -> Result<u64>;

    /// Writes a 32-bit register.
    fn write32(&self, offset: u64, value: u32) -> Result<()>;

    /// Writes a 64-bit register.
    fn write64(&self, offset: u64, value: u64) -> Result<()>;

    /// `len` bytes of doorbells, mapped where they can be, which start at offset 1000h of BAR0.
    fn doorbells(&self, len: u64) -> Result<DoorbellPage>;

    /// What is said when no register answers. With hardware, that means that it reaches no memory any
    /// more; a function that may go on after it is lost says something else than [`Error::Gone`].
    fn gone(&self) -> Error {
        Error::Gone { device: self.name().into() }
    }

    /// What was told of the function since the last time that this was asked, other than in its registers. Never
    /// waits; asked at every look after a controller, so it is to cost little.
    fn notice(&self) -> Option<Notice> {
        None
    }

    /// Function level reset: afterwards the function is as after power-on, with its configuration
    /// space restored.
    fn reset(&self) -> Result<()>;

    /// Lets the function write and read memory, or stops it from doing so.
    fn set_bus_master(&self, on: bool) -> Result<()> {
        self.set_command(COMMAND_BUS_MASTER, on)
    }

    /// Sets or clears bits of the command register.
    fn set_command(&self, bits: u16, on: bool) -> Result<()> {
        let mut command = [0; 2];
        self.config_read(COMMAND, &mut command)?;
        let before = u16::from_le_bytes(command);
        let after = if on { before | bits } else { before & !bits };
        // A function that lost its power has forgotten the other bits as well. Written back, VFIO would take them for
        // our wish: without Memory Space Enable, the next access to a register ends the process with SIGBUS.
        if after == before {
            return Ok(());
        }
        self.config_write(COMMAND, &after.to_le_bytes())
    }

    /// The clock that time-outs of this function run by.
    fn clock(&self) -> Clock {
        Clock::Monotonic
    }

    /// Called between two looks at a register or at an admin completion. A controller that is
    /// stepped in the caller's thread advances here.
    fn pause(&self) {
        std::thread::yield_now();
    }
}

/// What is told of a function other than in its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Whoever lent it wants it back: it is being removed or unbound, and that waits until it is closed.
    ReturnRequested,
    /// An uncorrectable error on the way to it. It may be as before, as after a reset, or gone.
    BusError,
    /// Nobody answers for its registers any more, and nobody will: see [`Function::gone`].
    Gone,
}

/// Where the time of a function comes from.
#[derive(Debug, Clone)]
pub enum Clock {
    /// CLOCK_MONOTONIC.
    Monotonic,
    /// Virtual time in nanoseconds, advanced by whoever steps the controller.
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// Nanoseconds since an arbitrary start.
    pub fn nanos(&self) -> u64 {
        match self {
            Clock::Monotonic => {
                let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
            }
            Clock::Virtual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Time since an arbitrary start.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos())
    }
}
