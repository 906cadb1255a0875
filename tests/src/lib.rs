//! What the QEMU tests need on both sides of the guest's boundary.
//!
//! On the host: [`build`] makes the static binaries, [`kernel`] finds Debian's kernel and the modules to load,
//! [`initramfs`] packs them, [`qemu`] boots a machine and reads its report, [`operator`] does to it what the guest
//! asks for, by its [`monitor`], and [`server`] is the other process of a machine whose controller is served. On both
//! sides: [`machine`] says which machines there are, with which controllers and cases, [`report`] is the line protocol in which the
//! guest tells its results, [`pattern`] is the data that one side writes and the other expects, [`ledger`]
//! says what of it a writer that was killed had been acknowledged, [`process`] waits for a child no longer than it may take.

pub mod build;
pub mod initramfs;
pub mod kernel;
pub mod ledger;
pub mod machine;
pub mod monitor;
pub mod operator;
pub mod pattern;
pub mod process;
pub mod qemu;
pub mod report;
pub mod server;
