//! NVMe wire formats: registers, commands, completions, status, identify data, features, logs.
//!
//! Knows the NVMe specifications (Base 2.0, NVM Command Set 1.0, PCIe Transport 1.0) and nothing
//! else: no memory, no queues, no policy. Every structure is total on garbage, because whatever a
//! controller sends ends up in one of them.
#![forbid(unsafe_code)]

pub mod command;
pub mod completion;
pub mod feature;
pub mod identify;
pub mod log;
pub mod registers;
pub mod sgl;
pub mod status;

pub use command::{Cns, Command, DsmRange, admin_opcode, io_opcode};
pub use completion::Completion;
pub use feature::{FeatureId, NumberOfQueues};
pub use identify::LbaFormat;
pub use log::{AsyncEvent, ChangedNamespaces, ErrorLogEntry, FirmwareSlotLog, LogPage, SmartLog};
pub use registers::{Aqa, Cap, Cc, Crto, Csts, Version};
pub use sgl::Descriptor;
pub use status::Status;
