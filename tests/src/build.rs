//! The binaries that go into the guest: the ones that a user runs, linked statically, for the guest has no
//! libraries.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guest runs, beside its init.
pub const PROGRAMS: [&str; 3] = ["kiovec", "hugepage-setup", "kiovec-guest-io"];
/// The guest's first process.
pub const INIT: &str = "guest-init";

/// Why there are no binaries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cargo is not there.
    #[error("cannot run {0:?}: {1}; install Rust, or set CARGO to where cargo is")]
    NoCargo(OsString, #[source] std::io::Error),
    /// cargo failed.
    #[error(
        "the static binaries do not build (cargo's output says why); glibc's static half is in libc6-dev: tests/install"
    )]
    Failed,
}

/// The workspace's root.
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Builds the binaries in release mode and returns the directory they are in.
pub fn static_binaries() -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--release", "--target", TARGET, "--workspace"]);
    for binary in PROGRAMS.iter().chain([&INIT]) {
        command.args(["--bin", binary]);
    }
    // Symbols would only be unpacked by an emulated processor and never read.
    command.env("RUSTFLAGS", static_flags()).env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let status = command.current_dir(workspace()).status().map_err(|e| Error::NoCargo(cargo, e))?;
    if !status.success() {
        return Err(Error::Failed);
    }
    Ok(target_directory().join(TARGET).join("release"))
}

/// glibc linked in, in addition to the flags the user has.
fn static_flags() -> String {
    let theirs = std::env::var("RUSTFLAGS").unwrap_or_default();
    format!("{theirs} -C target-feature=+crt-static").trim_start().to_owned()
}
