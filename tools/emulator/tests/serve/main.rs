//! The controller behind a socket, as clients see it: written by hand from the specification of the
//! protocol, byte by byte where it matters; by somebody else, where their client is right; and the driver itself.
// What a test cannot do ends it, in functions that are not tests themselves, too.
#![allow(clippy::unwrap_used)]

mod any_bytes;
mod bytes;
mod driven;
mod files;
mod foreign;
mod host;
mod interrupts;
mod lives;
mod mappings;
mod peer;
mod socket_file;
