//! `--verify`: every block written says which LBA and which generation it is, and every block read
//! is checked against what was written last.

mod ledger;
mod pattern;
mod workload;

pub use ledger::Ledger;
pub use pattern::{Mismatch, Pattern};
pub use workload::{Checks, Stage, Verified};
