//! A controller in another process, over a socket: the vfio-user protocol.
//!
//! [`VfioUser`] is the client. [`message`], [`Capabilities`], [`SparseArea`] and [`Socket`] are the
//! protocol's formats, for either end of a connection. Knows vfio-user; must not know NVMe, except for
//! where the doorbells begin.

mod capabilities;
mod connect;
mod connection;
mod domain;
mod doorbells;
mod function;
mod mappings;
pub mod message;
mod socket;
mod sparse;

pub use capabilities::{BadVersion, Capabilities, MAX_VERSION_PAYLOAD, TwinSocket};
pub use function::{DoorbellPath, Options, VfioUser};
pub use message::{Header, Message};
pub use socket::{Limits, Socket, SocketError};
pub use sparse::{BadCapabilityList, SparseArea};
