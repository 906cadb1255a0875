//! Memory that devices reach: one IOVA space, its regions, memory chains, PRP tables.
//!
//! A [`DmaSpace`] has memory of three kinds: its own ([`allocate`](DmaSpace::allocate)), an
//! application's ([`register`](DmaSpace::register)), and a guest's RAM
//! ([`register_guest`](DmaSpace::register_guest)). A [`MemoryChain`] may be of all of them at once;
//! nobody below asks which is which.
//!
//! Knows where memory is and who may reach it; must not know queues, commands or controllers.
//! Unsafe code here upholds three rules: memory outlives every mapping of it; a slice of it exists
//! only while its owner holds the segment, which is never while a command is in flight; and of
//! memory that a guest writes too, no slice ever exists.

mod chain;
mod domain;
mod external;
mod guest;
mod map;
mod masked;
mod prp_table;
mod ranges;
mod raw;
mod region;
mod shared;
mod sigbus;
mod source;
mod space;

/// The page size that this driver gives controllers: CC.MPS is 0.
pub(crate) const PAGE_SIZE: u64 = 4096;

pub(crate) use chain::Position;
pub use chain::{MemoryChain, Segment};
pub use domain::{Access, Domain, Mapping};
pub use external::{ExternalMemory, Registration};
pub use guest::GuestRegistration;
pub(crate) use map::Map;
pub(crate) use masked::Masked;
pub use raw::RawCommands;
pub use region::Pages;
pub(crate) use shared::{SharedArray, SharedRing, SharedWords};
pub use sigbus::{Guarded, SigbusHandler, install_sigbus_handler};
pub use space::{Attachment, DmaSpace};
/// The crate whose types stand for a guest's memory, in the version that is meant here.
pub use vm_memory;

#[cfg(test)]
mod tests;
