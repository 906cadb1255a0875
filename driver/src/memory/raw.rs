//! The permission to send commands that nobody checks.

/// Permission to send commands of one's own making, which no type can check: how much memory such a
/// command makes the controller read or write is the command's own business.
///
/// ```
/// use kiovec::memory::RawCommands;
/// // SAFETY: every raw command below transfers at most the memory that it is given.
/// let trust = unsafe { RawCommands::trust() };
/// # let _ = trust;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RawCommands(());

impl RawCommands {
    /// # Safety
    /// Every command that is sent with this permission transfers no more than the memory that is
    /// given with it, and contains no address of its own: not in its data pointer, which is filled in,
    /// and not in other dwords or in its data, as the commands have that create queues, configure
    /// doorbell buffers or set the host memory buffer up.
    pub unsafe fn trust() -> RawCommands {
        RawCommands(())
    }
}
