//! Admission to layers: what is wrong with a container is said before it is accepted, never after.
//!
//! Knows what a stack looks like from above; must not know what is in it.

use super::layer::Geometry;
use crate::queue::{Refusal, count_blocks};
use crate::request::{IoContainer, Operation};

impl Geometry {
    /// Checks a container and completes what the caller left open: the number of blocks.
    pub(super) fn admit(&self, io: &mut IoContainer) -> Result<(), Refusal> {
        let operation = io.operation();
        match operation {
            Operation::WriteZeroes if self.write_zeroes => {}
            Operation::Deallocate if self.deallocate => {}
            Operation::WriteZeroes | Operation::Deallocate | Operation::Raw => {
                return Err(Refusal::NotSupported(operation));
            }
            Operation::Read | Operation::Write | Operation::Flush => {}
        }
        count_blocks(io, 1 << self.block_shift)?;
        if let Some(segment) = io.memory().segments().iter().position(|s| s.space() != self.space) {
            return Err(Refusal::ForeignMemory { segment });
        }
        self.check_range(io)
    }

    #[inline]
    pub(super) fn check_range(&self, io: &IoContainer) -> Result<(), Refusal> {
        let (lba, blocks, capacity) = (io.lba(), io.blocks(), self.blocks);
        match lba.checked_add(blocks) {
            Some(end) if end <= capacity => Ok(()),
            _ if io.operation() == Operation::Flush => Ok(()),
            _ => Err(Refusal::OutOfRange { lba, blocks, capacity }),
        }
    }
}
