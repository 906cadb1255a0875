//! A userspace NVMe driver on Linux VFIO: polled, no interrupts, no copies.
//!
//! A [`Poller`] belongs to one thread and owns queue pairs of one or more [`Controller`]s. An
//! [`IoContainer`] goes in with the memory it moves, and comes back with its completion. However
//! large it is, it is one request; it is cut into commands only where the queue has a slot for the
//! next one.
//!
//! ```
//! use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
//! use kiovec_emulator::{Config, Emulator};
//!
//! // A controller without hardware. One on the PCI bus is opened with
//! // `pci::Vfio::open("0000:01:00.0".parse()?, &space)` instead.
//! let emulator = Emulator::spawn(Config::parse("size=64M,block=4096,media=ram")?)?;
//!
//! let space = DmaSpace::new()?;
//! let controller = Controller::open(emulator.function(), &space)?;
//! let mut poller = Poller::new(128);
//! let queue = poller.add_queue(&controller, QueueOptions::default())?;
//! let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
//!
//! let mut memory = space.allocate(8192)?;
//! memory.copy_from_slice(0, b"hello");
//! poller.submit(disk, IoContainer::write(100, memory).tag(1))?;
//!
//! let mut read = None;
//! while read.is_none() {
//!     poller.poll(|mut done| {
//!         done.result().expect("no error");
//!         match done.io().get_tag() {
//!             1 => {
//!                 let io = done.io_mut();
//!                 io.memory_mut().fill(0);
//!                 io.set_operation(kiovec::Operation::Read);
//!                 io.set_tag(2);
//!                 done.resubmit().expect("accepted");
//!             }
//!             _ => read = Some(done.take().into_memory()),
//!         }
//!     });
//! }
//! assert_eq!(&read.unwrap().to_vec()[..5], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![warn(missing_docs)]
#![deny(unsafe_code)]
// Whoever is refused a container gets it back, by value: it is the common way that is to be cheap.
#![allow(clippy::result_large_err)]

#[cfg(not(target_endian = "little"))]
compile_error!("NVMe structures are little-endian; so is this crate, for now");

/// The examples of that chapter run as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/containers.md")]
mod containers {}

pub mod controller;
#[cfg(not(feature = "defects"))]
mod defects;
#[cfg(feature = "defects")]
pub mod defects;
mod error;
pub mod layer;
#[allow(unsafe_code)]
pub mod memory;
#[allow(unsafe_code)]
pub mod pci;
mod poller;
mod queue;
mod request;
pub mod spec;

pub use controller::{Controller, ControllerEvent, Namespace, NamespaceState};
pub use error::{Error, Result};
pub use memory::install_sigbus_handler;
pub use poller::{
    BadRange, DataForm, Done, Finished, Poller, QueueId, QueueOptions, REQUEST_BYTES, Reactor, Rejected,
    Request, SLOT_BYTES, Target,
};
pub use queue::{QueueStats, Refusal, Replay};
pub use request::{
    BadEvent, Cause, Event, Failure, InPlace, IoContainer, Moment, Operation, Reason, State, Totals, Verdict,
};
