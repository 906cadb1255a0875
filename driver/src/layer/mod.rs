//! Block layers above a namespace: each is the same above and below, so they stack in any order.
//!
//! A request passes them as a [`Handle`] to one container, which stays where it is in the poller's tree
//! (docs/containers.md). A layer knows the layer below it; it must not know which one that is, nor what
//! is above.
//!
//! ```
//! use kiovec::layer::{Disk, Partition, Trace};
//! use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
//! use kiovec_emulator::{Config, Emulator};
//!
//! let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
//! let space = DmaSpace::new()?;
//! let controller = Controller::open(emulator.function(), &space)?;
//! let mut poller = Poller::with_layers(64);
//! let queue = poller.add_queue(&controller, QueueOptions::default())?;
//! let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
//! let disk = Disk::new(&poller, namespace)?;
//! let part = poller.add_layer(Trace::new(Partition::new(disk, 1000..2000)?))?;
//!
//! poller.submit(part, IoContainer::read(0, space.allocate(8192)?))?; // blocks 1000 and 1001
//! while poller.poll(|done| done.result().expect("no error")) == 0 {}
//! assert_eq!(poller.layer(part).expect("it is there").filter().counts().reads, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod cache;
mod call;
mod disk;
mod legs;
mod mirror;
mod partition;
mod plan;
mod retry;
mod stack;
mod stripe;
mod through;
mod trace;
mod verify;

pub use self::cache::{Cache, CacheCounts, CacheOptions};
pub use self::disk::Disk;
pub use self::mirror::{LegCounts, Mirror, MirrorCounts};
pub use self::partition::{Part, Partition};
pub use self::plan::{BadPlan, Plan};
pub use self::retry::{Retries, Retry, RetryOptions};
pub use self::stack::Stack;
pub use self::stripe::Stripe;
pub use self::through::{Filter, Through};
pub use self::trace::{Counts, Trace, Tracer};
pub use self::verify::{Checks, Verifier, Verify};
pub use crate::poller::{Cx, Direct, Geometry, Handle, Layer, Name, Outline, Waiting};
