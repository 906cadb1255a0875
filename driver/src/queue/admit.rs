//! Admission: what is wrong with a container is said before it is accepted, never after.
//!
//! Knows limits and shapes; must not know slots or rings.

use super::cut::nlb;
use super::runs::{Parts, Run};
use super::{DataPointer, Gone, Limits, Queue, Reachable};
use crate::memory::{MemoryChain, Position};
use crate::request::{IoContainer, Node, NodeId, Operation, Tree, Wire};

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
    /// One command cannot carry it, or not such that it happens as one.
    #[error(
        "{blocks} blocks from LBA {lba} on are not atomic: one command must carry them all, and a write may have {unit} blocks"
    )]
    NotAtomic {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// Blocks that the namespace writes as one.
        unit: u64,
    },
    /// The namespace is not attached to the controller any more.
    #[error("namespace {nsid} was detached; attach it, identify it anew and add it to the poller anew")]
    Detached {
        /// Its NSID.
        nsid: u32,
    },
    /// The namespace has another block size, or else another format, than when it was identified.
    #[error("namespace {nsid} was reformatted; identify it anew and add it to the poller anew")]
    Reformatted {
        /// Its NSID.
        nsid: u32,
    },
    /// It was to count in an event that is not open for requests.
    #[error("the event takes no more requests; open another one")]
    Closed,
    /// The controller does not have the command.
    #[error("the controller does not support {0:?}")]
    NotSupported(Operation),
}

impl Queue {
    /// Checks a node and completes what the caller left open: the number of blocks.
    #[inline(always)]
    pub(crate) fn admit(&self, tree: &mut Tree, id: NodeId, namespace: u16) -> Result<(), Refusal> {
        let node = &mut tree[id];
        node.namespace = namespace;
        if node.cursor == 0 && self.prepare(node) && self.is_within_limits(node) {
            return Ok(());
        }
        if self.admit_long(node) {
            return Ok(());
        }
        self.admit_otherwise(tree, id, namespace)
    }

    /// The same for a read or write of any length whose memory is one segment that every controller can be told of.
    #[inline(never)]
    fn admit_long(&self, node: &mut Node) -> bool {
        let limits = &self.reachable(node.namespace).limits;
        let Some(segment) = node.io.memory().only_segment() else { return false };
        let (block, blocks) = (1 << limits.block_shift, segment.len() as u64 >> limits.block_shift);
        let one = Run { iova: segment.iova(), len: block };
        let good = node.io.is_usual()
            && segment.space() == self.space
            && blocks << limits.block_shift == segment.len() as u64
            && blocks > 0
            && node.io.lba().checked_add(blocks).is_some_and(|end| end <= limits.capacity)
            && self.pointer.direct(one).is_some();
        if good {
            let checked = limits.capacity - blocks + 1;
            node.io.set_blocks(blocks);
            node.wire = match limits.boundary {
                // All pieces but the last are alike.
                0 if blocks > limits.transfer => Wire { checked, ..self.piece(node) },
                _ => Wire { checked, ..Wire::NONE },
            };
        }
        good
    }

    /// What commands have in common that carry as much of a node as one may.
    #[inline(never)]
    fn piece(&self, node: &Node) -> Wire {
        let Reachable { nsid, limits } = self.reachable(node.namespace);
        let opcode = node.io.operation().opcode().map_or(0, u16::from);
        let tail = nlb(&node.io, limits.transfer);
        self.wire(*nsid, opcode, ([0; 2], self.pointer.flags()), tail)
    }

    #[cold]
    #[inline(never)]
    fn admit_otherwise(&self, tree: &mut Tree, id: NodeId, namespace: u16) -> Result<(), Refusal> {
        let node = &mut tree[id];
        node.wire.forget();
        let limits = &self.reachable(namespace).limits;
        let operation = tree[id].io.operation();
        match operation {
            Operation::WriteZeroes if limits.write_zeroes == 0 => {
                return Err(Refusal::NotSupported(operation));
            }
            Operation::Deallocate if limits.deallocate == 0 => return Err(Refusal::NotSupported(operation)),
            _ => {}
        }
        if tree.has_own_memory(id) {
            let node = &mut tree[id];
            count_blocks(&mut node.io, 1 << limits.block_shift)?;
            check_space(&node.io, self.space)?;
        }
        let io = &tree[id].io;
        check_range(io, limits.capacity).map_err(|refusal| self.explain(namespace, refusal))?;
        let (chain, from) = tree.memory_from_start(id);
        if io.is_atomic() {
            self.check_atomic(io, Parts::new(chain, from, io.blocks() << limits.block_shift), limits)?;
        }
        match operation {
            Operation::Raw => self.check_shape(chain, from, chain.len() as u64, limits, chain.len() as u64),
            _ if io.is_no_bounce() && !chain.is_empty() => self.check_shape(
                chain,
                from,
                io.blocks() << limits.block_shift,
                limits,
                1 << limits.block_shift,
            ),
            _ => Ok(()),
        }
    }

    /// Why a range of a namespace is not there.
    #[cold]
    fn explain(&self, namespace: u16, refusal: Refusal) -> Refusal {
        let nsid = self.reachable(namespace).nsid;
        match self.gone(namespace) {
            None => refusal,
            Some(Gone::Detached) => Refusal::Detached { nsid },
            Some(Gone::Reformatted) => Refusal::Reformatted { nsid },
        }
    }

    /// One command must carry all of it.
    fn check_atomic(
        &self,
        io: &IoContainer,
        parts: impl Iterator<Item = Run>,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let (lba, blocks) = (io.lba(), io.blocks());
        let fits = match io.operation() {
            Operation::Read => limits.transfer_from(lba, blocks) == blocks,
            Operation::Write => limits.transfer_from(lba, blocks) == blocks && limits.is_atomic(lba, blocks),
            Operation::WriteZeroes => blocks <= limits.write_zeroes && limits.is_atomic(lba, blocks),
            Operation::Deallocate | Operation::Flush | Operation::Raw => return Ok(()),
        };
        let expressible = io.operation() == Operation::WriteZeroes
            || self.expressible(parts) == blocks << limits.block_shift;
        match fits && expressible {
            true => Ok(()),
            false => Err(Refusal::NotAtomic { lba, blocks, unit: limits.atomic }),
        }
    }

    /// Checks that no unit, of which commands carry one or more, is in memory that the controller cannot
    /// be told of.
    fn check_shape(
        &self,
        chain: &MemoryChain,
        from: Position,
        len: u64,
        limits: &Limits,
        unit: u64,
    ) -> Result<(), Refusal> {
        let (mut at, mut left) = (from, len);
        while left > 0 {
            let most = left.min(limits.transfer << limits.block_shift);
            let bytes = self.expressible(Parts::new(chain, at, most));
            let units = bytes / unit * unit;
            if units == 0 {
                let segment = chain.advance(at, bytes.min(unit - 1)).segment;
                return Err(Refusal::Shape { segment, form: self.form(), reason: self.reason(unit, most) });
            }
            (at, left) = (chain.advance(at, units), left - units);
        }
        Ok(())
    }

    fn reason(&self, unit: u64, most: u64) -> &'static str {
        match self.pointer {
            _ if unit > most => "it is more than one command can carry",
            DataPointer::Prp { .. } => {
                "it must begin at a multiple of 4 bytes and, within a block, on a page boundary right after one"
            }
            DataPointer::Sgl { .. } => {
                "address and length must suit the controller's SGLs, and a block have no more descriptors than a command"
            }
        }
    }

    fn form(&self) -> &'static str {
        match self.pointer {
            DataPointer::Prp { .. } => "PRPs",
            DataPointer::Sgl { .. } => "SGLs",
        }
    }
}

/// Sets the number of blocks of a container, from its memory if it moves any.
pub(crate) fn count_blocks(io: &mut IoContainer, block_size: u64) -> Result<(), Refusal> {
    match io.operation() {
        Operation::Read | Operation::Write => {
            let bytes = io.memory().len() as u64;
            if bytes == 0 || !bytes.is_multiple_of(block_size) {
                return Err(Refusal::Length { bytes, block_size });
            }
            io.set_blocks(bytes / block_size);
        }
        Operation::WriteZeroes | Operation::Deallocate if io.blocks() == 0 => {
            return Err(Refusal::Length { bytes: 0, block_size });
        }
        Operation::WriteZeroes | Operation::Deallocate => {}
        Operation::Flush | Operation::Raw => io.set_blocks(0),
    }
    Ok(())
}

/// Checks that the blocks of a container, if it concerns any, are there.
#[inline]
pub(crate) fn check_range(io: &IoContainer, capacity: u64) -> Result<(), Refusal> {
    let (lba, blocks) = (io.lba(), io.blocks());
    match lba.checked_add(blocks) {
        _ if blocks == 0 => Ok(()),
        Some(end) if end <= capacity => Ok(()),
        _ => Err(Refusal::OutOfRange { lba, blocks, capacity }),
    }
}

/// Checks that the memory of a container is of a `DmaSpace`.
pub(crate) fn check_space(io: &IoContainer, space: u64) -> Result<(), Refusal> {
    match io.memory().iter().position(|segment| segment.space() != space) {
        None => Ok(()),
        Some(segment) => Err(Refusal::ForeignMemory { segment }),
    }
}
