//! The emulated controller as a host sees it: through registers, doorbells and memory alone. The
//! host here is written by hand, from the specification; it is not the driver.
// What the host cannot do ends the test, in functions that are not tests themselves, too.
#![allow(clippy::unwrap_used)]

mod admin;
mod bring_up;
mod doorbells;
mod events;
mod faults;
mod host;
mod io;
mod power;
mod shadow;
mod threaded;
