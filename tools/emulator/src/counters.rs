//! What the controller has done so far, and what was done to it.

use std::ops::AddAssign;

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
    /// New values seen in submission queue tail doorbells, or in their shadows.
    pub sq_doorbells: u64,
    /// New values seen in completion queue head doorbells, or in their shadows.
    pub cq_doorbells: u64,
    /// Writes seen to registers of doorbells that have shadows.
    pub shadowed_writes: u64,
    /// Those among them that were needed: nobody looked at the shadow.
    pub needed_writes: u64,
    /// Tails and heads that were told in shadows that nobody looked at, without the register. Of a stepped controller
    /// that is a mistake of the host's; otherwise the host may be about to write it.
    pub missed_writes: u64,
    /// Looks at shadow doorbells.
    pub shadow_looks: u64,
    /// Doorbell writes that were ignored because they were invalid.
    pub bad_doorbells: u64,
    /// How often a command had to wait because its completion queue was full.
    pub full_queues: u64,
    /// Controller and function level resets.
    pub resets: u64,
    /// Function level resets among them.
    pub function_resets: u64,
    /// Abort commands that were carried out.
    pub aborts: u64,
    /// Commands that were aborted by them.
    pub aborted: u64,
    /// Abort commands beyond the Abort Command Limit.
    pub excess_aborts: u64,
    /// What went wrong because it was planned.
    pub faults: FaultCounters,
}

/// Faults that were injected, counted when they came to pass: what a plan has in store for a command
/// that is still pending, or was lost in a reset, is not among them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounters {
    /// Commands that were not carried out and got a planned status in place of that.
    pub errors: u64,
    /// Commands that were delayed.
    pub delayed: u64,
    /// Completions that were not posted.
    pub dropped: u64,
    /// Completions that are posted once more, as soon as there is room.
    pub doubled: u64,
    /// Completions that were posted with wrong bits.
    pub corrupted: u64,
    /// Fatal statuses.
    pub fatal: u64,
    /// Removals of the device.
    pub unplugged: u64,
    /// Commands that were held.
    pub held: u64,
    /// Losses of power, of a controller that has a volatile write cache.
    pub power_losses: u64,
    /// Blocks that went back to what they were before, as they were written and not flushed.
    pub lost_blocks: u64,
    /// Completions posted after that of a command fetched later from the same queue.
    pub overtaken: u64,
}

/// Adds what another controller has done.
impl AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        let Counters { faults, .. } = other;
        self.admin_commands += other.admin_commands;
        self.io_commands += other.io_commands;
        self.reads += other.reads;
        self.writes += other.writes;
        self.blocks_read += other.blocks_read;
        self.blocks_written += other.blocks_written;
        self.completions += other.completions;
        self.errors += other.errors;
        self.sq_doorbells += other.sq_doorbells;
        self.cq_doorbells += other.cq_doorbells;
        self.shadowed_writes += other.shadowed_writes;
        self.needed_writes += other.needed_writes;
        self.missed_writes += other.missed_writes;
        self.shadow_looks += other.shadow_looks;
        self.bad_doorbells += other.bad_doorbells;
        self.full_queues += other.full_queues;
        self.resets += other.resets;
        self.function_resets += other.function_resets;
        self.aborts += other.aborts;
        self.aborted += other.aborted;
        self.excess_aborts += other.excess_aborts;
        self.faults.errors += faults.errors;
        self.faults.delayed += faults.delayed;
        self.faults.dropped += faults.dropped;
        self.faults.doubled += faults.doubled;
        self.faults.corrupted += faults.corrupted;
        self.faults.fatal += faults.fatal;
        self.faults.unplugged += faults.unplugged;
        self.faults.held += faults.held;
        self.faults.power_losses += faults.power_losses;
        self.faults.lost_blocks += faults.lost_blocks;
        self.faults.overtaken += faults.overtaken;
    }
}
