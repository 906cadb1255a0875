//! A software NVMe controller: in its own thread, or stepped in the caller's.
//!
//! It behaves as the specifications say (NVMe Base 2.0, NVM Command Set 1.0, PCIe Transport 1.0)
//! and is as strict as hardware: every DMA address is checked against what was mapped and for
//! which access, every doorbell value against the queue, every field against its range. A driver
//! reaches it through [`kiovec::pci::Function`], as it reaches a real one.
//!
//! | module | knows |
//! |---|---|
//! | `config` | settings as values and as text |
//! | `dma` | memory shared with the host: the IOVA table and the doorbells; all unsafe code |
//! | `faults` | what goes wrong, as data |
//! | `media` | what blocks are stored in |
//! | `pci_config` | configuration space |
//! | `controller` | the state machine: registers, queues, Admin and NVM commands |
//! | `function` | the controller as the driver sees it |
//! | `emulator` | threads, steps and time |
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod config;
mod controller;
mod counters;
#[allow(unsafe_code)]
mod dma;
mod emulator;
mod faults;
mod function;
mod media;
mod pci_config;

pub use config::{Config, ConfigError, Media, Sgl};
pub use controller::Health;
pub use counters::{Counters, FaultCounters};
pub use emulator::{Emulator, Error};
pub use faults::{Commands, Effect, Fault, Faults, Register};
