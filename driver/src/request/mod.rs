//! Requests: the I/O container and the tree it lives in while it is carried out.
//!
//! Pure logic. Knows requests and their pieces; must not know devices.
#![forbid(unsafe_code)]

mod container;
mod event;
mod failure;
mod line;
mod tree;

pub use container::{InPlace, IoContainer, Operation};
pub(crate) use event::Events;
pub use event::{BadEvent, Event, Moment, Reason, State, Totals, Verdict};
pub use failure::{Cause, Failure};
pub(crate) use line::Line;
pub(crate) use tree::{
    Awaited, FRAMES, Failed, NO_LAYER, NO_QUEUE, Node, NodeId, Progress, Second, Tree, Wire,
};
