//! The same workloads through the kernel: io_uring on a block device or a file, so that two drivers are
//! measured with one tool.

mod file;
#[allow(
    unsafe_code,
    reason = "the kernel has buffers while they are in flight; the module says how that is kept"
)]
mod ring;
mod worker;

pub use file::{File, Name, PREFIX};
pub use worker::run;
