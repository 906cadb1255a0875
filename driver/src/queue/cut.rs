//! Cutting: the next piece of a node that one command can carry, and what that command looks like.
//!
//! Knows limits and shapes of memory; must not know when a piece is cut, nor what becomes of it.

use std::sync::atomic::Ordering;

use super::prp::Prps;
use super::runs::{Parts, Run, Runs};
use super::{Limits, PAGE_WORDS, Queue, Reachable, prp, sgl};
use crate::memory::{MemoryChain, Position, Segment};
use crate::request::{IoContainer, NodeId, Operation, Second, Tree, Wire};
use crate::spec::command::{PSDT_SGL_MPTR_CONTIGUOUS, RW_FUA};

/// How data pointers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataPointer {
    /// Physical Region Pages; the table lists contiguous memory.
    Prp {
        /// The IOVA of the table, unless the controller wants lists of its own.
        table: Option<u64>,
    },
    /// Scatter Gather Lists.
    Sgl {
        /// Addresses and lengths are multiples of this.
        granularity: u64,
    },
}

impl DataPointer {
    /// The data pointer of a contiguous run, where the controller can be told of it without a list of the
    /// slot's.
    #[inline(always)]
    pub(super) fn direct(&self, run: Run) -> Option<[u64; 2]> {
        match *self {
            DataPointer::Prp { table } if run.iova & 3 == 0 => prp::contiguous(run, table),
            DataPointer::Sgl { granularity } if run.iova & (granularity - 1) == 0 => {
                Some(sgl::contiguous(run))
            }
            _ => None,
        }
    }

    /// The [direct](DataPointer::direct) pointers of runs that are as long as the given one, and follow it and each
    /// other.
    #[inline(always)]
    pub(super) fn series(&self, run: Run) -> Option<Series> {
        let first = self.direct(run)?;
        let (step, most) = match *self {
            DataPointer::Sgl { granularity } if run.len & (granularity - 1) == 0 => ([run.len, 0], u32::MAX),
            DataPointer::Prp { .. } if run.len.is_multiple_of(prp::PAGE) => prp::series(run),
            _ => ([0; 2], 1),
        };
        Some(Series { first, step, most })
    }

    /// How the second half of a [direct](DataPointer::direct) pointer to a run goes with the first.
    pub(super) fn second(&self, run: Run) -> Second {
        match self {
            DataPointer::Prp { .. } => prp::second(run),
            DataPointer::Sgl { .. } => Second::Fixed,
        }
    }

    /// The flags word of a command with a pointer of this form.
    #[inline(always)]
    pub(super) fn flags(&self) -> u16 {
        if matches!(self, DataPointer::Sgl { .. }) { SGL } else { 0 }
    }
}

/// Data pointers of runs in a row: the first, what each differs from the one before by, and how many that is true of.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) first: [u64; 2],
    pub(super) step: [u64; 2],
    pub(super) most: u32,
}

/// The flags word of a command with SGLs.
const SGL: u16 = (PSDT_SGL_MPTR_CONTIGUOUS as u16) << 8;

/// A piece of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) blocks: u64,
    pub(super) wire: Wire,
    /// The bounce buffer that its data goes through, if it does.
    pub(super) buffer: Option<u16>,
}

impl Queue {
    /// The next piece of a node, for a slot. `None` if it needs a bounce buffer and none is free: then
    /// some command in flight has it.
    pub(super) fn cut(&mut self, tree: &Tree, id: NodeId, slot: usize) -> Option<Cut> {
        let node = &tree[id];
        let io = &node.io;
        let Reachable { nsid, limits } = *self.reachable(node.namespace);
        let lba = io.lba().wrapping_add(node.cursor);
        let mut buffer = None;
        let (blocks, pointer, tail) = match io.operation() {
            Operation::Read | Operation::Write => {
                let (chain, at) = tree.memory(id);
                let most = limits.transfer_from(lba, node.unissued());
                let (blocks, pointer) = match self.one_run(chain, at, most << limits.block_shift) {
                    Some(run) => (most, self.contiguous_pointer(run, slot)),
                    None => self.any_runs(io, (chain, at), most, limits, slot, &mut buffer)?,
                };
                (blocks, pointer, nlb(io, blocks))
            }
            Operation::WriteZeroes => {
                let blocks = node.unissued().min(limits.write_zeroes);
                (blocks, NO_DATA, nlb(io, blocks))
            }
            Operation::Deallocate => {
                let blocks = node.unissued().min(limits.deallocate);
                (blocks, (self.deallocate_range(slot, lba, blocks), 0), 0)
            }
            Operation::Flush => (1, NO_DATA, 0),
            Operation::Raw => {
                let (chain, at) = tree.memory(id);
                let pointer = match chain.len() as u64 {
                    0 => NO_DATA,
                    len => self.data_pointer(Parts::new(chain, at, len), slot),
                };
                (1, pointer, io.raw_words().cdw12_13)
            }
        };
        let opcode = io.operation().opcode().map_or_else(|| io.raw_words().opcode_flags, u16::from);
        Some(Cut { blocks, wire: self.wire(nsid, opcode, pointer, tail), buffer })
    }

    /// What stays the same of a command from one submission to the next. The SQ identifier is in it as a
    /// slot's low word has it, which [`push`](Queue::push) adds: so it takes itself out.
    #[inline(always)]
    pub(super) fn wire(&self, nsid: u32, opcode: u16, (dptr, flags): ([u64; 2], u16), tail: u64) -> Wire {
        let head = u64::from(nsid) << 32 | u64::from((opcode | flags) ^ self.qid);
        let second = if dptr[1] == 0 { Second::Fixed } else { Second::Any };
        Wire { bound: 0, checked: 0, head, dptr, tail, second }
    }

    /// So many bytes from a place on, if they lie in one segment, and where the controller can be told of.
    #[inline(always)]
    fn one_run(&self, chain: &MemoryChain, at: Position, len: u64) -> Option<Run> {
        let segment = chain.segments().get(at.segment)?;
        let run = Run { iova: segment.iova() + at.offset, len };
        let granularity = match self.pointer {
            DataPointer::Prp { .. } => 4,
            DataPointer::Sgl { granularity } => granularity,
        };
        (at.offset + len <= segment.len() as u64 && run.iova & (granularity - 1) == 0).then_some(run)
    }

    /// Blocks from a place on, as many as one command can carry, and their data pointer; `buffer` is the
    /// bounce buffer that they go through, if they do.
    #[inline(never)]
    fn any_runs(
        &mut self,
        io: &IoContainer,
        (chain, at): (&MemoryChain, Position),
        most: u64,
        limits: Limits,
        slot: usize,
        buffer: &mut Option<u16>,
    ) -> Option<(u64, ([u64; 2], u16))> {
        let bytes = self.expressible(Parts::new(chain, at, most << limits.block_shift));
        let blocks = bytes >> limits.block_shift;
        if blocks > 0 {
            let parts = Parts::new(chain, at, blocks << limits.block_shift);
            return Some((blocks, self.data_pointer(parts, slot)));
        }
        let write = io.operation() == Operation::Write;
        let blocks = self.blocks_to_bounce(chain, at, most, limits);
        let (index, run) = self.bounce.begin(chain, at, blocks << limits.block_shift, write)?;
        self.counted.bounces += 1;
        *buffer = Some(index);
        Some((blocks, self.contiguous_pointer(run, slot)))
    }

    /// How many blocks from a place on cannot be had otherwise, so that they go through a bounce
    /// buffer together. The first is one of them.
    fn blocks_to_bounce(&self, chain: &MemoryChain, from: Position, most: u64, limits: Limits) -> u64 {
        let block = 1 << limits.block_shift;
        let most = most.min(self.bounce.capacity() >> limits.block_shift);
        assert!(most > 0, "a bounce buffer holds a block");
        let mut at = from;
        for blocks in 1..most {
            at = chain.advance(at, block);
            if self.expressible(Parts::new(chain, at, block)) == block {
                return blocks;
            }
        }
        most
    }

    /// Bytes of `parts` that one command can express, from their beginning on.
    pub(super) fn expressible(&self, parts: impl Iterator<Item = Run>) -> u64 {
        let runs = Runs::new(parts);
        match self.pointer {
            DataPointer::Prp { .. } => prp::expressible(runs),
            DataPointer::Sgl { granularity } => {
                sgl::expressible(runs, granularity, self.list_pages * PAGE_WORDS / 2)
            }
        }
    }

    /// The data pointer of a piece, and the flags that go with it.
    pub(super) fn data_pointer(
        &mut self,
        parts: impl Iterator<Item = Run> + Clone,
        slot: usize,
    ) -> ([u64; 2], u16) {
        let runs = Runs::new(parts);
        let mut ahead = runs.clone();
        match ahead.next().filter(|_| ahead.next().is_none()) {
            Some(run) => self.contiguous_pointer(run, slot),
            None => self.listed_pointer(runs, slot),
        }
    }

    #[inline]
    pub(super) fn contiguous_pointer(&mut self, run: Run, slot: usize) -> ([u64; 2], u16) {
        match self.pointer {
            DataPointer::Sgl { .. } => (sgl::contiguous(run), SGL),
            DataPointer::Prp { table } => match prp::contiguous(run, table) {
                Some(direct) => (direct, 0),
                None => self.listed_pointer(std::iter::once(run), slot),
            },
        }
    }

    /// PRPs of all of these segments, if a list in the slot's memory can express them, and they belong to this
    /// queue's space.
    pub(super) fn whole_list(&self, segments: &[Segment], slot: usize) -> Option<[u64; 2]> {
        self.page_list(segments, slot).or_else(|| self.mixed_list(segments, slot))
    }

    /// The same for whole pages of one source, as scattered memory mostly is, that take one page of a list. The
    /// first may be the end of a page.
    #[inline(always)]
    pub(super) fn page_list(&self, segments: &[Segment], slot: usize) -> Option<[u64; 2]> {
        let DataPointer::Prp { .. } = self.pointer else { return None };
        let [first, rest @ ..] = segments else { return None };
        let (begin, end) = (first.iova(), first.iova() + first.len() as u64);
        if !end.is_multiple_of(prp::PAGE) || first.len() as u64 > prp::PAGE || first.space() != self.space {
            return None;
        }
        if !begin.is_multiple_of(4) || rest.len().wrapping_sub(1) >= PAGE_WORDS {
            return None;
        }
        let word = slot * self.list_pages * PAGE_WORDS;
        let words = self.lists.get(word..word + rest.len())?;
        for i in 0..rest.len() {
            let (Some(page), Some([word])) = (rest.get(i), words.get(i)) else { return None };
            let is_whole = page.iova().is_multiple_of(prp::PAGE) && page.len() as u64 == prp::PAGE;
            if !is_whole || !page.has_source_of(first) {
                return None;
            }
            word.store(page.iova(), Ordering::Relaxed);
        }
        match rest {
            [second] => Some([begin, second.iova()]),
            _ => Some([begin, self.lists.iova() + 8 * word as u64]),
        }
    }

    /// The same, for segments of any lengths.
    #[cold]
    #[inline(never)]
    pub(super) fn mixed_list(&self, segments: &[Segment], slot: usize) -> Option<[u64; 2]> {
        if let DataPointer::Sgl { .. } = self.pointer {
            return None;
        }
        let first_word = slot * self.list_pages * PAGE_WORDS;
        let words = &self.lists[first_word..first_word + self.list_pages * PAGE_WORDS];
        let mut list = Prps::new(self.lists.iova() + 8 * first_word as u64);
        let mut store = |i: usize, word: u64| words[i][0].store(word, Ordering::Relaxed);
        for segment in segments {
            let run = Run { iova: segment.iova(), len: segment.len() as u64 };
            if segment.space() != self.space || !list.add(run, &mut store) {
                return None;
            }
        }
        Some(list.pointer())
    }

    /// With a list in the slot's memory.
    fn listed_pointer(&mut self, runs: impl Iterator<Item = Run>, slot: usize) -> ([u64; 2], u16) {
        let first_word = slot * self.list_pages * PAGE_WORDS;
        let list = self.lists.iova() + 8 * first_word as u64;
        let words = &self.lists[first_word..first_word + self.list_pages * PAGE_WORDS];
        let store = |i: usize, word: u64| words[i][0].store(word, Ordering::Relaxed);
        match self.pointer {
            DataPointer::Prp { .. } => (prp::scattered(runs, list, store), 0),
            DataPointer::Sgl { .. } => (sgl::scattered(runs, list, store), SGL),
        }
    }

    /// One range for dataset management, in the slot's list page; always a PRP.
    pub(super) fn deallocate_range(&mut self, slot: usize, lba: u64, blocks: u64) -> [u64; 2] {
        let word = slot * self.list_pages * PAGE_WORDS;
        for (i, value) in [blocks << 32, lba].into_iter().enumerate() {
            self.lists[word + i][0].store(value, Ordering::Relaxed);
        }
        [self.lists.iova() + 8 * word as u64, 0]
    }
}

pub(super) const NO_DATA: ([u64; 2], u16) = ([0; 2], 0);

/// Dwords 12 and 13 of a command for so many blocks.
#[inline(always)]
pub(super) fn nlb(io: &IoContainer, blocks: u64) -> u64 {
    (blocks - 1) | if io.is_fua() { u64::from(RW_FUA) } else { 0 }
}

/// The PRPs of an admin command's memory: contiguous, and within what the table lists.
pub(crate) fn contiguous_prps(chain: &MemoryChain, table: Option<u64>) -> Option<[u64; 2]> {
    let mut runs = Runs::new(Parts::new(chain, Position::default(), chain.len() as u64));
    let run = runs.next().filter(|_| runs.next().is_none())?;
    prp::contiguous(run, table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is said of runs in a row is what is found for each of them.
        #[test]
        fn pointers_in_a_row_are_those_of_each_run(
            page in 0..2000u64,
            offset in prop_oneof![2 => Just(0u64), 1 => (0..1024u64).prop_map(|dwords| 4 * dwords)],
            len in prop_oneof![
                4 => (1..40u64).prop_map(|pages| pages << 12),
                1 => (1..40u64).prop_map(|sectors| sectors << 9),
            ],
            form in 0..4usize,
        ) {
            let pointer = match form {
                0 => DataPointer::Sgl { granularity: 4 },
                1 => DataPointer::Sgl { granularity: 4096 },
                2 => DataPointer::Prp { table: None },
                _ => DataPointer::Prp { table: Some(1 << 40) },
            };
            let run = |i: u64| Run { iova: (1 << 30) + (page << 12) + offset + i * len, len };
            let series = pointer.series(run(0));
            prop_assert_eq!(series.is_some(), pointer.direct(run(0)).is_some());
            let Some(Series { mut first, step, most }) = series else { return Ok(()) };
            prop_assert!(most > 0);
            for i in 0..u64::from(most).min(1000) {
                prop_assert_eq!(Some(first), pointer.direct(run(i)), "run {} of {}", i, most);
                first = [first[0].wrapping_add(step[0]), first[1].wrapping_add(step[1])];
            }
        }
    }
}
