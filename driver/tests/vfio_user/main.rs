//! The vfio-user client: against a server that does everything right, one that does everything wrong,
//! the most used one's bytes, and an independent implementation's.
#![allow(clippy::unwrap_used)]

mod controller;
mod foreign;
mod hostile;
mod peer;
mod right;
mod spdk;
