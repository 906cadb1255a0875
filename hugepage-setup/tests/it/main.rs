//! The whole program on a simulated machine: a tree of files, and a kernel that reacts to writes.
#![forbid(unsafe_code)]
// Outside #[test] functions too, everything here is a test.
#![allow(clippy::unwrap_used)]

mod bind;
mod cli;
mod fake;
mod holders;
mod hugepages;
mod interrupted;
mod status;
