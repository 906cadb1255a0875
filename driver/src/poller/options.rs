//! How a queue pair is set up, in the caller's words.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{Error, Result};

/// The largest transfer of one command unless asked for otherwise: what one list page can express.
const MAX_TRANSFER: u64 = 2 << 20;

/// The command timeout unless asked for otherwise: that of the Linux driver (`nvme_core.io_timeout`).
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// How a queue pair is set up.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Commands in flight at most, 1 to 4096; fewer if the controller's queues are smaller.
    pub depth: usize,
    /// PRPs, SGLs, or whichever the controller offers.
    pub data: DataForm,
    /// Bytes that one command transfers at most, before MDTS makes it less.
    pub max_transfer: u64,
    /// Whether requests that have to wait may share commands with their neighbours.
    pub merge: bool,
    /// Whether requests wait for the end of the [poll](crate::Poller::poll) that they come in, or for the next one,
    /// which is when the controller is told of them anyway: then neighbours share commands although there are
    /// slots for all. Costs requests without neighbours some instructions, and no time.
    pub gather: bool,
    /// How long the controller may take for a command before something is done about it; `None` is for
    /// ever.
    pub command_timeout: Option<Duration>,
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions {
            depth: 128,
            data: DataForm::Auto,
            max_transfer: MAX_TRANSFER,
            merge: true,
            gather: false,
            command_timeout: Some(COMMAND_TIMEOUT),
        }
    }
}

impl QueueOptions {
    /// What a command timeout can be.
    pub const COMMAND_TIMEOUTS: RangeInclusive<Duration> =
        Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

    /// Sets the command timeout, within [`COMMAND_TIMEOUTS`](Self::COMMAND_TIMEOUTS), or none.
    ///
    /// It is the controller's: the request goes on. What it takes before the request is given up by its
    /// caller is a [deadline](crate::Poller::set_deadline). A command is found to be overdue when the time
    /// is up, or up to a quarter of it later, by a poll; where nobody polls, no time is counted.
    #[must_use]
    pub fn command_timeout(mut self, timeout: impl Into<Option<Duration>>) -> QueueOptions {
        self.command_timeout = timeout.into();
        self
    }

    /// Refuses what is out of its range.
    pub(super) fn check(&self) -> Result<()> {
        match self.command_timeout {
            Some(timeout) if !QueueOptions::COMMAND_TIMEOUTS.contains(&timeout) => {
                let (least, most) = (Self::COMMAND_TIMEOUTS.start(), Self::COMMAND_TIMEOUTS.end());
                let what = format!("a command timeout of {timeout:?} is not within {least:?} to {most:?}");
                Err(Error::InvalidInput(what))
            }
            _ => Ok(()),
        }
    }

    /// Sets the depth.
    #[must_use]
    pub fn depth(mut self, depth: usize) -> QueueOptions {
        self.depth = depth;
        self
    }

    /// Sets the form of data pointers.
    #[must_use]
    pub fn data(mut self, data: DataForm) -> QueueOptions {
        self.data = data;
        self
    }

    /// Sets whether requests that have to wait may share commands.
    #[must_use]
    pub fn merge(mut self, merge: bool) -> QueueOptions {
        self.merge = merge;
        self
    }

    /// Has requests wait for the end of the poll, so that neighbours share commands.
    #[must_use]
    pub fn gather(mut self, gather: bool) -> QueueOptions {
        self.gather = gather;
        self
    }

    /// Sets the largest transfer of one command, in bytes.
    #[must_use]
    pub fn max_transfer(mut self, bytes: u64) -> QueueOptions {
        self.max_transfer = bytes;
        self
    }
}

/// The form of data pointers (Base 2.0, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataForm {
    /// SGLs where the controller has them, else PRPs.
    #[default]
    Auto,
    /// Physical Region Pages.
    Prp,
    /// Scatter Gather Lists.
    Sgl,
}
