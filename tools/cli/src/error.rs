//! What a command can fail with: one line each, with what, where and what to do next.

use std::process::ExitCode;

/// A result with the command line's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options that contradict each other, seen before anything was touched.
    #[error("{0}")]
    Usage(String),
    /// Options that do not go with the device or the machine.
    #[error("{0}")]
    Unsuitable(String),
    /// The run came to an end, and something was wrong.
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Driver(#[from] kiovec::Error),
    #[error(transparent)]
    Emulator(#[from] kiovec_emulator::Error),
    #[error(transparent)]
    Serve(#[from] kiovec_emulator::ServeError),
    #[error(transparent)]
    Setup(#[from] hugepage_setup::Error),
    /// An operating-system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done, to what.
        what: String,
        source: std::io::Error,
    },
}

impl Error {
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if matches!(self, Error::Usage(_)) { 2 } else { 1 })
    }

    /// Names what was being done when the operating system said no.
    pub fn os<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        let what = what.into();
        move |source| Error::Os { what, source: source.into() }
    }
}
