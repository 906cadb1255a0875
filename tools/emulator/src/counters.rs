//! What the controller has done so far.

/// Counts since the controller was made. Resets do not clear them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Admin commands fetched.
    pub admin_commands: u64,
    /// I/O commands fetched.
    pub io_commands: u64,
    /// Read commands that succeeded.
    pub reads: u64,
    /// Write commands that succeeded.
    pub writes: u64,
    /// Blocks of these reads.
    pub blocks_read: u64,
    /// Blocks of these writes.
    pub blocks_written: u64,
    /// Completions posted, of all queues.
    pub completions: u64,
    /// Completions among them with an error status.
    pub errors: u64,
    /// New values seen in submission queue tail doorbells.
    pub sq_doorbells: u64,
    /// New values seen in completion queue head doorbells.
    pub cq_doorbells: u64,
    /// Doorbell writes that were ignored because they were invalid.
    pub bad_doorbells: u64,
    /// How often a command had to wait because its completion queue was full.
    pub full_queues: u64,
    /// Controller and function level resets.
    pub resets: u64,
}
