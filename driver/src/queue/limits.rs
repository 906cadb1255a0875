//! What one command may be at most, for one namespace through one queue.
//!
//! Knows the numbers that identify data give; must not know chains.

use crate::request::Operation;
use crate::spec::identify::{self, NvmController};

/// The limits of commands to a namespace. Lengths are in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// log2 of the block size in bytes.
    pub(crate) block_shift: u32,
    /// Blocks of the namespace (NSZE).
    pub(crate) capacity: u64,
    /// Read and write: the smallest of MDTS, NLB and what the driver makes lists for.
    pub(crate) transfer: u64,
    /// Reads and writes do not cross multiples of this (NOIOB), unless it is 0.
    pub(crate) boundary: u64,
    /// Write zeroes; 0 where there is no such command.
    pub(crate) write_zeroes: u64,
    /// One range of a deallocate; 0 where there is no such command.
    pub(crate) deallocate: u64,
    /// What a write changes as one when power fails (NAWUPF, else AWUPF): blocks, 1 or more.
    pub(crate) atomic: u64,
    /// Writes across multiples of this, counted from `atomic_offset` (NABO) on, are not atomic (NABSPF),
    /// unless it is 0.
    pub(crate) atomic_boundary: u64,
    pub(crate) atomic_offset: u64,
}

/// NSFEAT bit 1: the namespace has atomic write units of its own.
const NSABP: u8 = 1 << 1;
/// NLB is a 0's based field of 16 bits.
const NLB: u64 = 1 << 16;

impl Limits {
    /// `transfer` is the largest transfer in bytes, from MDTS and the driver's own lists.
    pub(crate) fn new(
        controller: &identify::Controller,
        nvm: Option<&NvmController>,
        namespace: &identify::Namespace,
        block_shift: u32,
        transfer: u64,
    ) -> Limits {
        let pages = |exponent: u8| match exponent {
            0 => None,
            exponent => 4096u64.checked_shl(u32::from(exponent)).filter(|bytes| *bytes > 0),
        };
        let at_most = |bytes: Option<u64>| bytes.map_or(NLB, |bytes| (bytes >> block_shift).clamp(1, NLB));
        let offered = |bit: u16, limit: u64| if controller.oncs & bit != 0 { limit } else { 0 };
        let ranges = nvm.map_or(0, |nvm| u64::from(nvm.dmrsl));
        let total = nvm.map_or(0, |nvm| nvm.dmsl);
        let own = namespace.nsfeat & NSABP != 0;
        let smallest = [u64::from(u32::MAX), ranges, total].into_iter().filter(|limit| *limit > 0).min();
        Limits {
            block_shift,
            capacity: namespace.nsze,
            transfer: at_most(Some(transfer)),
            boundary: u64::from(namespace.noiob),
            write_zeroes: offered(identify::ONCS_WRITE_ZEROES, at_most(nvm.and_then(|nvm| pages(nvm.wzsl)))),
            deallocate: offered(identify::ONCS_DATASET_MANAGEMENT, smallest.unwrap_or(0)),
            // 0 stands for the controller's unit here too.
            atomic: 1 + u64::from(if own && namespace.nawupf > 0 {
                namespace.nawupf
            } else {
                controller.awupf
            }),
            atomic_boundary: if own && namespace.nabspf > 0 { 1 + u64::from(namespace.nabspf) } else { 0 },
            atomic_offset: u64::from(namespace.nabo),
        }
    }

    /// Blocks of a read or write from `lba` on that one command may move, of `left`.
    #[inline(always)]
    pub(crate) fn transfer_from(&self, lba: u64, left: u64) -> u64 {
        let most = left.min(self.transfer);
        if self.boundary == 0 {
            return most;
        }
        most.min(self.boundary - lba % self.boundary)
    }

    /// A read or write of so many blocks, which one command can move, is within all limits if its first
    /// block is below this. Where there are boundaries, that is certain of block 0 alone. The namespace
    /// may have become too small for it meanwhile.
    #[inline(always)]
    pub(crate) fn bound(&self, blocks: u64) -> u64 {
        let all = self.capacity.saturating_add(1).saturating_sub(blocks);
        if self.boundary == 0 { all } else { all.min(1) }
    }

    /// Whether a boundary lies within these blocks.
    pub(crate) fn crosses_boundary(&self, lba: u64, blocks: u64) -> bool {
        self.boundary != 0 && lba % self.boundary + blocks > self.boundary
    }

    /// Whether a write of these blocks is one that happens as one, or not at all, when power fails.
    pub(crate) fn is_atomic(&self, lba: u64, blocks: u64) -> bool {
        let boundary = self.atomic_boundary;
        let within = || {
            let before = boundary - self.atomic_offset % boundary;
            (lba % boundary + before) % boundary + blocks <= boundary
        };
        blocks <= self.atomic && (boundary == 0 || within())
    }

    /// How many requests of so many blocks can become one, whatever their first block: as many as there are, or
    /// fewer if they lose something by it.
    pub(crate) fn writes_as_one(&self, operation: Operation, blocks: u64) -> u64 {
        match operation {
            Operation::Write if blocks > self.atomic => u64::MAX,
            Operation::Write if self.atomic_boundary == 0 => self.atomic / blocks.max(1),
            Operation::Write => 0,
            _ => u64::MAX,
        }
    }

    /// Whether writes, the smallest of which has `smallest` blocks, lose nothing when they become one:
    /// it is atomic, or none of them was.
    pub(crate) fn keeps_atomicity(&self, lba: u64, total: u64, smallest: u64) -> bool {
        smallest > self.atomic || self.is_atomic(lba, total)
    }
}
