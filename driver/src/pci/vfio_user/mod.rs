//! A controller in another process, over a socket: the vfio-user protocol.
//!
//! [`message`], [`Capabilities`], [`SparseArea`] and [`Socket`] are the protocol's formats, for either
//! end of a connection.

mod capabilities;
pub mod message;
mod socket;
mod sparse;

pub use capabilities::{BadVersion, Capabilities, MAX_VERSION_PAYLOAD, TwinSocket};
pub use message::{Header, Message};
pub use socket::{Limits, Socket, SocketError};
pub use sparse::{BadCapabilityList, SparseArea};
