//! How a request failed.
//!
//! Knows causes; must not know what is done about them.

use crate::spec::Status;

/// How a request failed, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{cause} at LBA {lba}")]
pub struct Failure {
    /// The first block of the piece that failed; of several, the lowest.
    pub lba: u64,
    /// Why it failed.
    pub cause: Cause,
}

/// Why a request, or a piece of it, failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The controller said so.
    #[error("{0}")]
    Status(Status),
    /// Its owner cancelled it. Commands that were in flight may have been carried out.
    #[error("cancelled")]
    Cancelled,
    /// Its deadline passed. Commands that were in flight may have been carried out.
    #[error("deadline passed")]
    Expired,
    /// The controller is gone, or failed for good. Commands that were in flight may have been carried
    /// out.
    #[error("controller lost")]
    ControllerLost,
    /// The controller was reset, or did not answer, and the command is none that is carried out once more:
    /// it may have been carried out.
    #[error("outcome unknown: it may have been carried out")]
    OutcomeUnknown,
    /// The controller was reset, and has a volatile write cache, which may have lost what was written and
    /// not flushed. The next flush after that fails with this, once; and again if its caller gets a write after that of
    /// which some was done before the reset.
    #[error("the volatile write cache may have been lost with what was written and not flushed")]
    CacheLost,
    /// Something below could not accept it as it is.
    #[error("refused below")]
    Refused,
    /// A layer found the data to be other than what was written.
    #[error("data differ from what was written")]
    Corrupt,
}

impl Failure {
    /// What the controller said, if it was the controller that failed the request.
    pub fn status(&self) -> Option<Status> {
        match self.cause {
            Cause::Status(status) => Some(status),
            _ => None,
        }
    }
}
