//! The I/O container: one request, from the caller to the controller and back, the same object all
//! the way.
//!
//! Knows what is asked for; must not know which queue carries it out.

use std::fmt;
use std::ops::Deref;

use super::Wire;
use crate::memory::{MemoryChain, RawCommands};
use crate::spec::{Command, io_opcode};

/// What a container asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operation {
    /// Read (NVM Command Set 1.0, section 3.2.4).
    Read,
    /// Write (NVM Command Set 1.0, section 3.2.6).
    Write,
    /// Flush (Base 2.0, section 7.1): everything whose completion was delivered before becomes
    /// durable.
    #[default]
    Flush,
    /// Write Zeroes (NVM Command Set 1.0, section 3.2.8).
    WriteZeroes,
    /// Dataset Management with Deallocate (NVM Command Set 1.0, section 3.2.3): a hint.
    Deallocate,
    /// A command of the caller's own making, carried out as it is.
    Raw,
}

impl Operation {
    /// The opcode; of a raw command, that of the command it was made from.
    pub(crate) fn opcode(self) -> Option<u8> {
        Some(match self {
            Operation::Read => io_opcode::READ,
            Operation::Write => io_opcode::WRITE,
            Operation::Flush => io_opcode::FLUSH,
            Operation::WriteZeroes => io_opcode::WRITE_ZEROES,
            Operation::Deallocate => io_opcode::DATASET_MANAGEMENT,
            Operation::Raw => return None,
        })
    }
}

/// One request: an operation, the blocks it concerns, the memory it moves, and a tag of the caller's.
///
/// Submitting moves it in; it comes back with its completion. It is never cloned, and as long as
/// it is in, nobody but the controller touches its memory.
///
/// ```
/// use kiovec::IoContainer;
/// let space = kiovec::memory::DmaSpace::new()?;
/// let io = IoContainer::read(1000, space.allocate(64 << 10)?).tag(7);
/// assert_eq!((io.lba(), io.memory().len()), (1000, 65536));
/// # Ok::<(), kiovec::Error>(())
/// ```
#[derive(Default)]
pub struct IoContainer {
    memory: MemoryChain,
    lba: u64,
    blocks: u64,
    tag: u64,
    operation: Operation,
    fua: bool,
    no_merge: bool,
    no_bounce: bool,
    atomic: bool,
    idempotent: bool,
    /// Command dwords that only a raw command has. Out of the way: containers are moved.
    raw: Option<Box<RawWords>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawWords {
    pub(crate) opcode_flags: u16,
    pub(crate) cdw2_3: u64,
    pub(crate) cdw12_13: u64,
    pub(crate) cdw14_15: u64,
}

impl IoContainer {
    fn new(operation: Operation, lba: u64, blocks: u64, memory: MemoryChain) -> IoContainer {
        IoContainer { operation, lba, blocks, memory, ..IoContainer::default() }
    }

    /// Reads as many blocks from `lba` on as the chain holds. Its length is a multiple of the
    /// block size, and may exceed what one command can move.
    pub fn read(lba: u64, memory: MemoryChain) -> IoContainer {
        IoContainer::new(Operation::Read, lba, 0, memory)
    }

    /// Writes the chain to the blocks from `lba` on. Its length is a multiple of the block size,
    /// and may exceed what one command can move.
    pub fn write(lba: u64, memory: MemoryChain) -> IoContainer {
        IoContainer::new(Operation::Write, lba, 0, memory)
    }

    /// Makes durable what was written and completed before.
    pub fn flush() -> IoContainer {
        IoContainer::new(Operation::Flush, 0, 0, MemoryChain::new())
    }

    /// Sets `blocks` blocks (1 or more) to zeros.
    pub fn write_zeroes(lba: u64, blocks: u64) -> IoContainer {
        IoContainer::new(Operation::WriteZeroes, lba, blocks, MemoryChain::new())
    }

    /// Tells the controller that the contents of `blocks` blocks (1 or more) are no longer needed.
    pub fn deallocate(lba: u64, blocks: u64) -> IoContainer {
        IoContainer::new(Operation::Deallocate, lba, blocks, MemoryChain::new())
    }

    /// An I/O command of the caller's own making: opcode, FUSE and dwords 2, 3 and 10 to 15 are
    /// taken as they are; CID, NSID, PSDT and the data pointer are filled in. The memory, which
    /// may be empty, must fit one command.
    pub fn raw(command: &Command, memory: MemoryChain, _trust: RawCommands) -> IoContainer {
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let mut io = IoContainer::new(Operation::Raw, command.slba(), 0, memory);
        io.raw = Some(Box::new(RawWords {
            opcode_flags: u16::from(command.flags & crate::spec::command::FUSE_MASK) << 8
                | u16::from(command.opcode),
            cdw2_3: pair(command.cdw2, command.cdw3),
            cdw12_13: pair(command.cdw12, command.cdw13),
            cdw14_15: pair(command.cdw14, command.cdw15),
        }));
        io
    }

    /// Sets a number that the caller finds again in the completion.
    #[must_use]
    pub fn tag(mut self, tag: u64) -> IoContainer {
        self.tag = tag;
        self
    }

    /// Force Unit Access: a write completes only when it is durable, a read comes from the medium
    /// (NVM Command Set 1.0, sections 3.2.4 and 3.2.6).
    #[must_use]
    pub fn fua(mut self, fua: bool) -> IoContainer {
        self.fua = fua;
        self
    }

    /// Keeps the request apart: no command carries it together with others.
    #[must_use]
    pub fn no_merge(mut self, no_merge: bool) -> IoContainer {
        self.no_merge = no_merge;
        self
    }

    /// No byte of it is copied: memory that the controller cannot be told of is refused, naming the
    /// segment, where else the blocks concerned would go through a bounce buffer.
    #[must_use]
    pub fn no_bounce(mut self, no_bounce: bool) -> IoContainer {
        self.no_bounce = no_bounce;
        self
    }

    /// Neither split nor merged. A write is refused if the namespace does not write that many blocks
    /// from there on as one when power fails (NVM Command Set 1.0, section 2.1.4); a read, if it does
    /// not fit one command.
    #[must_use]
    pub fn atomic(mut self, atomic: bool) -> IoContainer {
        self.atomic = atomic;
        self
    }

    /// Says of a raw command that it may be carried out twice, to the same effect: then it is, if the
    /// controller was reset meanwhile. Other raw commands fail with
    /// [`OutcomeUnknown`](crate::Cause::OutcomeUnknown), and so does one of a fused pair, whatever is said of it: alone
    /// it is another command.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> IoContainer {
        self.idempotent = idempotent;
        self
    }

    /// Whether it may be carried out twice.
    pub(crate) fn is_idempotent(&self) -> bool {
        let fused = self.raw.as_ref().is_some_and(|raw| raw.opcode_flags >> 8 != 0);
        self.operation != Operation::Raw || self.idempotent && !fused
    }

    /// What is asked for.
    #[inline]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// Changes what is asked for: a finished write becomes the read that checks it.
    ///
    /// # Panics
    /// If it is to become `Raw`: only [`raw`](IoContainer::raw) makes such.
    pub fn set_operation(&mut self, operation: Operation) {
        assert!(operation != Operation::Raw, "a raw command is made by IoContainer::raw");
        self.raw = None;
        self.operation = operation;
    }

    /// The first block.
    #[inline]
    pub fn lba(&self) -> u64 {
        self.lba
    }

    /// Moves the request to another first block.
    #[inline]
    pub fn set_lba(&mut self, lba: u64) {
        self.lba = lba;
    }

    /// The number of blocks, once submitted; before, only of an operation without memory.
    #[inline]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The caller's number.
    #[inline]
    pub fn get_tag(&self) -> u64 {
        self.tag
    }

    /// Changes the caller's number.
    #[inline]
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// Whether Force Unit Access is asked for.
    #[inline]
    pub fn is_fua(&self) -> bool {
        self.fua
    }

    /// Whether it is neither split nor merged.
    pub fn is_atomic(&self) -> bool {
        self.atomic
    }

    /// Whether none of its data may be copied on the way.
    pub fn is_no_bounce(&self) -> bool {
        self.no_bounce
    }

    /// Whether it is to have commands of its own.
    #[inline(always)]
    pub(crate) fn is_no_merge(&self) -> bool {
        self.no_merge
    }

    /// Whether it is a read or write that may go anywhere.
    #[inline(always)]
    pub(crate) fn is_usual(&self) -> bool {
        matches!(self.operation, Operation::Read | Operation::Write) && !self.atomic
    }

    /// Whether a command may carry it together with others.
    pub(crate) fn may_merge(&self) -> bool {
        let moves = matches!(self.operation, Operation::Read | Operation::Write);
        moves && !self.fua && !self.no_merge && !self.atomic
    }

    /// The words of a raw command; zeros for any other.
    pub(crate) fn raw_words(&self) -> RawWords {
        self.raw.as_deref().copied().unwrap_or_default()
    }

    /// The container, where it is not looked at any more: only what it owns is taken away there.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> IoContainer {
        IoContainer { memory: std::mem::take(&mut self.memory), raw: self.raw.take(), ..*self }
    }

    /// A container for blocks of this one, from the one with offset `first` on; it has no memory of its
    /// own.
    pub(crate) fn part(&self, first: u64, blocks: u64) -> IoContainer {
        IoContainer {
            memory: MemoryChain::new(),
            raw: self.raw.clone(),
            lba: self.lba.wrapping_add(first),
            blocks: if self.blocks == 0 { 0 } else { blocks },
            ..*self
        }
    }

    /// The memory.
    #[inline]
    pub fn memory(&self) -> &MemoryChain {
        &self.memory
    }

    /// The memory, to change its shape or its contents.
    #[inline]
    pub fn memory_mut(&mut self) -> &mut MemoryChain {
        &mut self.memory
    }

    /// The contents of the memory, segment by segment.
    pub fn data_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory.data_mut()
    }

    /// Puts other memory in, and returns what was there.
    #[inline(always)]
    pub fn replace_memory(&mut self, memory: MemoryChain) -> MemoryChain {
        std::mem::replace(&mut self.memory, memory)
    }

    /// Exchanges two containers, but for their memory. Whether they are reads, or writes, whose commands differ in
    /// nothing but the LBA and what the memory makes of them: then the number of blocks is not exchanged either.
    #[inline(always)]
    pub(crate) fn exchange_words(&mut self, other: &mut IoContainer) -> bool {
        std::mem::swap(&mut self.lba, &mut other.lba);
        std::mem::swap(&mut self.tag, &mut other.tag);
        let moves = matches!(self.operation, Operation::Read | Operation::Write);
        let alike = moves && self.wishes() == other.wishes();
        match alike {
            true => other.blocks = self.blocks,
            false => self.exchange_wishes(other),
        }
        alike
    }

    #[inline(always)]
    fn wishes(&self) -> (Operation, bool, bool, bool, bool, bool) {
        (self.operation, self.fua, self.no_merge, self.no_bounce, self.atomic, self.idempotent)
    }

    #[cold]
    #[inline(never)]
    fn exchange_wishes(&mut self, other: &mut IoContainer) {
        let swap = |a: &mut IoContainer, wishes| {
            (a.operation, a.fua, a.no_merge, a.no_bounce, a.atomic, a.idempotent) = wishes;
        };
        let (ours, others) = (self.wishes(), other.wishes());
        swap(self, others);
        swap(other, ours);
        std::mem::swap(&mut self.blocks, &mut other.blocks);
        std::mem::swap(&mut self.raw, &mut other.raw);
    }

    /// The memory, when the request itself is not needed any more.
    pub fn into_memory(self) -> MemoryChain {
        self.memory
    }

    /// The container as something to be used again, to be handled like one that
    /// [`Done::in_place`](crate::Done::in_place) gives.
    pub fn in_place(&mut self) -> InPlace<'_> {
        InPlace { io: self, wire: None }
    }

    /// What the cursor counts to: blocks, or one for a request that concerns none.
    #[inline]
    pub(crate) fn extent(&self) -> u64 {
        self.blocks.max(1)
    }

    #[inline(always)]
    pub(crate) fn set_blocks(&mut self, blocks: u64) {
        self.blocks = blocks;
    }
}

/// A container, and those changes to it that leave what was prepared for its commands in use.
#[derive(Debug)]
pub struct InPlace<'a> {
    pub(crate) io: &'a mut IoContainer,
    pub(crate) wire: Option<&'a mut Wire>,
}

impl InPlace<'_> {
    /// Moves the request to another first block.
    #[inline(always)]
    pub fn set_lba(&mut self, lba: u64) {
        self.io.lba = lba;
    }

    /// Changes the caller's number.
    #[inline(always)]
    pub fn set_tag(&mut self, tag: u64) {
        self.io.tag = tag;
    }

    /// Changes what is asked for. Free between read and write, whose commands differ in the opcode
    /// alone.
    #[inline(always)]
    pub fn set_operation(&mut self, operation: Operation) {
        let moves = |operation| matches!(operation, Operation::Read | Operation::Write);
        if let Some(wire) = self.wire.as_deref_mut() {
            match (self.io.operation.opcode(), operation.opcode()) {
                (Some(before), Some(opcode))
                    if wire.head != 0 && moves(operation) && moves(self.io.operation) =>
                {
                    wire.head ^= u64::from(before ^ opcode);
                }
                _ => wire.forget(),
            }
        }
        if self.io.operation != operation {
            self.io.set_operation(operation);
        }
    }

    /// The contents of the memory, segment by segment.
    #[inline(always)]
    pub fn data_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.io.data_mut()
    }
}

impl Deref for InPlace<'_> {
    type Target = IoContainer;

    #[inline(always)]
    fn deref(&self) -> &IoContainer {
        self.io
    }
}

impl fmt::Debug for IoContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoContainer")
            .field("operation", &self.operation)
            .field("lba", &self.lba)
            .field("blocks", &self.blocks)
            .field("memory", &self.memory)
            .field("tag", &self.tag)
            .finish()
    }
}
