//! How a queue pair is set up, in the caller's words.

/// The largest transfer of one command unless asked for otherwise: what one list page can express.
const MAX_TRANSFER: u64 = 2 << 20;

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
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions { depth: 128, data: DataForm::Auto, max_transfer: MAX_TRANSFER, merge: true }
    }
}

impl QueueOptions {
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
