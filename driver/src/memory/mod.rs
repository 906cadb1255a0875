//! Memory that devices reach: regions on memfds, one IOVA space, memory chains, PRP tables.
//!
//! Knows where memory is and who may reach it; must not know queues, commands or controllers.
//! Unsafe code here upholds two rules: memory outlives every mapping of it, and a slice of it
//! exists only while its owner holds the segment, which is never while a command is in flight.

mod chain;
mod domain;
mod map;
mod prp_table;
mod ranges;
mod raw;
mod region;
mod shared;
mod space;

/// The page size that this driver gives controllers: CC.MPS is 0.
pub(crate) const PAGE_SIZE: u64 = 4096;

pub(crate) use chain::Position;
pub use chain::{MemoryChain, Segment};
pub use domain::{Access, Domain, Mapping};
pub(crate) use map::Map;
pub use raw::RawCommands;
pub use region::Pages;
pub(crate) use shared::SharedArray;
pub use space::{Attachment, DmaSpace};

#[cfg(test)]
mod tests;
