//! Admission: what is wrong with a container is said before it is accepted, never after.
//!
//! Knows limits and shapes; must not know slots or rings.

use super::runs::Runs;
use super::{DataPointer, Limits, PAGE_WORDS, Queue};
use crate::memory::MemoryChain;
use crate::request::{IoContainer, Operation};

/// Why a container is not accepted as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The poller's tree is full: poll, and submit again.
    #[error("as many requests are under way as the poller has room for; poll, and submit again")]
    Full,
    /// A target of another poller.
    #[error("the target belongs to another poller")]
    ForeignTarget,
    /// Beyond the end of the namespace.
    #[error("LBA {lba} + {blocks} blocks is beyond the end of the namespace, {capacity} blocks")]
    OutOfRange {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// Blocks of the namespace.
        capacity: u64,
    },
    /// Not a whole number of blocks, or none.
    #[error("{bytes} bytes of memory are not a whole number of {block_size}-byte blocks")]
    Length {
        /// Bytes of the chain.
        bytes: u64,
        /// Bytes of a block.
        block_size: u64,
    },
    /// Memory of another `DmaSpace`.
    #[error("segment {segment} belongs to another DmaSpace than the controller")]
    ForeignMemory {
        /// Its index in the chain.
        segment: usize,
    },
    /// The controller cannot be told of memory of this shape.
    #[error("segment {segment} cannot be expressed as {form}: {reason}")]
    Shape {
        /// Its index in the chain.
        segment: usize,
        /// PRPs or SGLs.
        form: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The controller does not have the command.
    #[error("the controller does not support {0:?}")]
    NotSupported(Operation),
}

impl Queue {
    /// Checks a container and completes what the caller left open: the number of blocks.
    pub(crate) fn admit(&self, io: &mut IoContainer, namespace: u16) -> Result<(), Refusal> {
        let limits = &self.reachable(namespace).limits;
        let operation = io.operation();
        match operation {
            Operation::Read | Operation::Write => {
                let (bytes, block_size) = (io.memory().len() as u64, 1 << limits.block_shift);
                if bytes == 0 || bytes % block_size != 0 {
                    return Err(Refusal::Length { bytes, block_size });
                }
                io.set_blocks(bytes >> limits.block_shift);
            }
            Operation::WriteZeroes if limits.write_zeroes == 0 => {
                return Err(Refusal::NotSupported(operation));
            }
            Operation::Deallocate if limits.deallocate == 0 => return Err(Refusal::NotSupported(operation)),
            Operation::WriteZeroes | Operation::Deallocate if io.blocks() == 0 => {
                return Err(Refusal::Length { bytes: 0, block_size: 1 << limits.block_shift });
            }
            Operation::WriteZeroes | Operation::Deallocate => {}
            Operation::Flush | Operation::Raw => io.set_blocks(0),
        }
        if io.blocks() > 0 {
            check_range(io, limits)?;
        }
        self.check_shape(io, limits)
    }

    /// Checks that pieces of the chain can be made such that every one is whole blocks.
    fn check_shape(&self, io: &IoContainer, limits: &Limits) -> Result<(), Refusal> {
        let chain = io.memory();
        let segments = chain.segments();
        if let Some(segment) = segments.iter().position(|segment| segment.space() != self.space) {
            return Err(Refusal::ForeignMemory { segment });
        }
        let block = if io.operation() == Operation::Raw { u64::MAX } else { 1 << limits.block_shift };
        match self.pointer {
            DataPointer::Prp { .. } => check_prp_shape(chain, block),
            DataPointer::Sgl { granularity } => {
                check_sgl_shape(chain, block, granularity, self.list_pages * PAGE_WORDS / 2)
            }
        }?;
        let len = chain.len() as u64;
        if io.operation() == Operation::Raw
            && (len > limits.transfer << limits.block_shift || self.expressible(chain, 0, len) < len)
        {
            let reason = "the memory of a raw command must fit one command";
            return Err(Refusal::Shape { segment: segments.len() - 1, form: self.form(), reason });
        }
        Ok(())
    }

    fn form(&self) -> &'static str {
        match self.pointer {
            DataPointer::Prp { .. } => "PRPs",
            DataPointer::Sgl { .. } => "SGLs",
        }
    }
}

fn check_range(io: &IoContainer, limits: &Limits) -> Result<(), Refusal> {
    let (lba, blocks, capacity) = (io.lba(), io.blocks(), limits.capacity);
    match lba.checked_add(blocks) {
        Some(end) if end <= capacity => Ok(()),
        _ => Err(Refusal::OutOfRange { lba, blocks, capacity }),
    }
}

/// Every joint that PRPs cannot express must lie between two blocks.
fn check_prp_shape(chain: &MemoryChain, block: u64) -> Result<(), Refusal> {
    let shape = |segment, reason| Err(Refusal::Shape { segment, form: "PRPs", reason });
    let (mut offset, mut end) = (0, None);
    for (i, segment) in chain.segments().iter().enumerate() {
        let start = segment.iova();
        if start % 4 != 0 {
            return shape(i, "it does not begin at a multiple of 4 bytes");
        }
        let joined = end.is_none_or(|end| end == start || (end % 4096 == 0 && start % 4096 == 0));
        if !joined && offset % block != 0 {
            return shape(
                i,
                "a block would straddle its beginning, which is not on a page boundary on both sides",
            );
        }
        offset += segment.len() as u64;
        end = Some(start + segment.len() as u64);
    }
    Ok(())
}

/// Every block must fit the descriptors of one command, every segment the granularity.
fn check_sgl_shape(
    chain: &MemoryChain,
    block: u64,
    granularity: u64,
    descriptors: usize,
) -> Result<(), Refusal> {
    let segments = chain.segments();
    let shape = |segment, reason| Err(Refusal::Shape { segment, form: "SGLs", reason });
    for (i, segment) in segments.iter().enumerate() {
        if segment.iova() % granularity != 0 || !(segment.len() as u64).is_multiple_of(granularity) {
            return shape(i, "the controller wants addresses and lengths that are multiples of 4 bytes");
        }
    }
    let blocks = chain.len() as u64 / block;
    if segments.len() > descriptors
        && let Some(at) = (0..blocks).find(|i| Runs::new(chain, i * block, block).count() > descriptors)
    {
        let segment = segments_before(chain, at * block);
        return shape(segment, "a block would need more descriptors than one command has");
    }
    Ok(())
}

fn segments_before(chain: &MemoryChain, bytes: u64) -> usize {
    let mut offset = 0;
    let starts = chain.segments().iter().take_while(|segment| {
        let start = offset;
        offset += segment.len() as u64;
        start < bytes
    });
    starts.count()
}
