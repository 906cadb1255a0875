//! Requests: the I/O container and the tree it lives in while it is carried out.
//!
//! Pure logic. Knows requests and their pieces; must not know devices.
#![forbid(unsafe_code)]

mod container;
mod event;
mod tree;

pub use container::{InPlace, IoContainer, Operation};
pub(crate) use event::Events;
pub use event::{BadEvent, Event, Moment, State, Totals, Verdict};
pub use tree::Failure;
pub(crate) use tree::{Node, NodeId, Tree, Wire};
