//! Gets a machine ready for a userspace NVMe driver, and puts it back as it was.
//!
//! Three things stand between a stock Linux machine and [VFIO]: the NVMe function belongs to the kernel's
//! `nvme` driver, the group's device file belongs to root, and there are no hugepages. [`Machine`] changes
//! all three, writes down what was there *before* each change, and undoes it on request, even after it was
//! killed half-way. [`nvme_functions`] and [`Status::read`] only look, and need no privilege.
//!
//! Everything goes through [`Sysfs`], which holds the root of the file tree, and every change goes through
//! [`Kernel`]; so the tests run the real code on a tree of files with a simulated kernel behind it.
//!
//! [VFIO]: https://docs.kernel.org/driver-api/vfio.html
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bdf;
mod bind;
mod bytes;
mod error;
mod function;
mod holders;
mod hugepages;
mod kernel;
mod machine;
mod processes;
mod state;
mod status;
mod sysfs;
mod user;

pub use bdf::Bdf;
pub use bind::{BindOptions, Bound, Restored, Unbound, VFIO_PCI};
pub use bytes::{Bytes, parse_bytes};
pub use error::{Error, Result};
pub use function::{Namespace, NvmeFunction, nvme_functions};
pub use holders::Holder;
pub use hugepages::{HugepagePool, Reservation, Reserved, RestoredPool, hugepage_pools};
pub use kernel::{Kernel, Linux};
pub use machine::Machine;
pub use status::{Status, bind_warnings};
pub use sysfs::Sysfs;
pub use user::{MemoryLimit, User};
