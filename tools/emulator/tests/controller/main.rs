//! The emulated controller as a host sees it: through registers, doorbells and memory alone. The
//! host here is written by hand, from the specification; it is not the driver.

mod admin;
mod bring_up;
mod doorbells;
mod host;
mod io;
mod threaded;
