//! A software NVMe controller: in its own thread, stepped in the caller's, or behind a socket.
//!
//! It behaves as the specifications say (NVMe Base 2.0, NVM Command Set 1.0, PCIe Transport 1.0)
//! and is as strict as hardware: every DMA address is checked against what was mapped and for
//! which access, every doorbell value against the queue, every field against its range. A driver
//! reaches it through [`kiovec::pci::Function`], as it reaches a real one.
//!
//! | module | knows |
//! |---|---|
//! | `config` | settings as values and as text |
//! | `dma` | memory that the host mapped: the IOVA table |
//! | `doorbells` | the doorbell registers, which host and controller share |
//! | `mapped_file` | files of a socket peer, which it may truncate |
//! | `faults` | what goes wrong, as data |
//! | `media` | what blocks are stored in |
//! | `msix` | interrupt vectors |
//! | `pci_config` | configuration space |
//! | `refused_path` | what to do about a path that cannot be opened or made |
//! | `controller` | the state machine: registers, queues, Admin and NVM commands |
//! | `function` | the controller as the driver sees it |
//! | `emulator` | threads, steps and time |
//! | `serve` | the controller behind a vfio-user socket |
//!
//! Unsafe code is in `dma`, `doorbells` and `mapped_file`.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod config;
mod controller;
mod counters;
#[allow(unsafe_code)]
mod dma;
#[allow(unsafe_code)]
mod doorbells;
mod emulator;
mod faults;
mod function;
#[allow(unsafe_code)]
mod mapped_file;
mod media;
mod msix;
mod pci_config;
mod refused_path;
mod serve;

pub use config::{Config, ConfigError, Media, Sgl};
pub use controller::{Health, Remedy};
pub use counters::{Counters, FaultCounters};
pub use emulator::{Emulator, Error};
pub use faults::{Commands, Effect, Fault, Faults, Register};
pub use media::MediaError;
pub use serve::{Connection, End, ServeError, Server, Stopper};
