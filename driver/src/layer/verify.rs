//! Blocks that are read are compared with what was written, without a place on the medium for it.
//!
//! Knows the checksum of every block that was written through it, and which blocks it cannot tell of;
//! must not know what is below, nor change anything of a request but whether it failed.
//!
//! Commands in flight together are not ordered. So a block has a checksum only as long as a single
//! write determines its contents: while a write is in flight, and after two that were in flight
//! together, it is unknown; and a read is checked only against blocks that did not change since it was
//! submitted.

use std::ops::Range;

use bitfield_struct::bitfield;
use crc32fast::Hasher;

use super::{Cx, Filter, Handle, Layer, Through};
use crate::request::{Cause, Operation};
use crate::{Error, Result};

/// Checks what is read from below against what was written to it.
///
/// A block whose contents are not what was written last fails its read with
/// [`Cause::Corrupt`]; the data are the caller's all the same. Blocks never
/// written through it, deallocated ones, and those of writes that failed or overlapped are not checked.
/// All that changes the blocks must pass through it: to another way to them it is blind, and takes what
/// came that way for corruption.
///
/// It keeps 8 bytes of ordinary memory for each block, and looks once at every byte that passes.
pub type Verify<B> = Through<Verifier, B>;

/// What a [`Verify`] does.
#[derive(Debug)]
pub struct Verifier {
    /// An [`Entry`] for each block. Plain words, which begin as pages that nothing was written to.
    table: Vec<u64>,
    block_shift: u32,
    /// The checksum of a block of zeros.
    zeros: u32,
    /// Writes that finished so far: what "since" is measured by.
    now: u64,
    buffer: Box<[u8; BUFFER]>,
    checks: Checks,
}

/// Blocks that a [`Verify`] has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checks {
    /// Blocks written, with zeros as well, whose contents are known since.
    pub stamped: u64,
    /// Blocks read whose contents were known.
    pub checked: u64,
    /// Blocks read whose contents were not known.
    pub unchecked: u64,
    /// Blocks read that were not what was written.
    pub mismatches: u64,
}

/// Bytes that are looked at at once.
const BUFFER: usize = 4096;

/// What is known of a block. All zeros: nothing.
#[bitfield(u64)]
struct Entry {
    /// CRC-32 of what was written last. The block's number need not go into it: it is the place in the
    /// table, so a block that holds another one's data shows as well.
    checksum: u32,
    /// When it changed last. Of this clock only the low bits are kept, so a block that did not change
    /// for long may seem to have changed just now: then it is not checked, once. Never the other way
    /// round.
    #[bits(21)]
    changed: u32,
    /// Writes in flight. So many at once that they cannot be counted make it unknown for ever.
    #[bits(10)]
    writers: u32,
    /// Whether the checksum is, or after the only write in flight will be, that of its contents.
    known: bool,
}

/// What is kept of a read: its first block that is read this time, and since when it is under way. Of the clock,
/// so many bits that no read is under way until they repeat.
#[bitfield(u64)]
struct Reading {
    #[bits(28)]
    first: u64,
    #[bits(36)]
    since: u64,
}

const _: () = assert!(Verifier::MAX_BLOCKS <= 1 << Reading::FIRST_BITS);

const SINCE: u64 = (1 << Reading::SINCE_BITS) - 1;
const CLOCK: u64 = (1 << Entry::CHANGED_BITS) - 1;
const UNCOUNTED: u32 = (1 << Entry::WRITERS_BITS) - 1;

impl Entry {
    /// A write goes down, after which the block has this checksum, or any.
    fn begin(self, checksum: Option<u32>) -> Entry {
        let alone = self.writers() == 0;
        self.with_checksum(checksum.unwrap_or_default())
            .with_known(alone && checksum.is_some())
            .with_writers((self.writers() + 1).min(UNCOUNTED))
    }

    /// A write came up, at a time.
    fn end(self, succeeded: bool, now: u64) -> Entry {
        let left = if self.writers() == UNCOUNTED { UNCOUNTED } else { self.writers().saturating_sub(1) };
        self.with_writers(left).with_known(self.known() && succeeded).with_changed((now & CLOCK) as u32)
    }

    fn is_known(self) -> bool {
        self.known() && self.writers() == 0
    }

    /// Whether its contents are known, and have been for as long as a read was under way.
    fn is_known_for(self, elapsed: u64, now: u64) -> bool {
        let age = now.wrapping_sub(self.changed().into()) & CLOCK;
        self.is_known() && age >= elapsed
    }
}

impl<B: Layer> Through<Verifier, B> {
    /// Checks what is read from a layer. Refused if that has more than [`Verifier::MAX_BLOCKS`].
    pub fn new(below: B) -> Result<Verify<B>> {
        let geometry = below.geometry();
        if geometry.blocks > Verifier::MAX_BLOCKS {
            return Err(Error::InvalidInput(format!(
                "verifying keeps 8 bytes for each block; {} are more than the {} it can have: verify a partition",
                geometry.blocks,
                Verifier::MAX_BLOCKS
            )));
        }
        let verifier = Verifier {
            table: vec![0; geometry.blocks as usize],
            block_shift: geometry.block_shift,
            zeros: crc32fast::hash(&vec![0; geometry.block_size()]),
            now: 0,
            buffer: Box::new([0; BUFFER]),
            checks: Checks::default(),
        };
        Ok(Through::over(verifier, below))
    }
}

impl Verifier {
    /// Blocks that it can keep a checksum of, at most: 2 GiB of memory.
    pub const MAX_BLOCKS: u64 = 1 << 28;

    /// Blocks so far.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Blocks that a write is to change become unknown until it comes up.
    fn begin(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        // One that failed before goes on where it failed.
        let first = cx.io(io).extent() - cx.unissued(io);
        cx.set_frame(io, frame, first);
        let blocks = first..cx.io(io).blocks();
        let Some(entries) = entries(&mut self.table, cx.io(io).lba(), &blocks) else { return };
        let stamp = |entry: &mut u64, checksum| *entry = Entry::from(*entry).begin(checksum).into();
        match cx.io(io).operation() {
            Operation::Write => {
                let mut entries = entries.iter_mut();
                checksums(cx, io, blocks, self.block_shift, &mut *self.buffer, |checksum| {
                    entries.next().into_iter().for_each(|entry| stamp(entry, Some(checksum)));
                });
            }
            Operation::WriteZeroes => entries.iter_mut().for_each(|entry| stamp(entry, Some(self.zeros))),
            _ => entries.iter_mut().for_each(|entry| stamp(entry, None)),
        }
    }

    /// A write came up: all its blocks changed by now, those before its failure to what was written.
    fn end(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        self.now += 1;
        let blocks = cx.frame(io, frame)..cx.io(io).blocks();
        let good = succeeded(cx, io).saturating_sub(blocks.start);
        let Some(entries) = entries(&mut self.table, cx.io(io).lba(), &blocks) else { return };
        for (word, i) in entries.iter_mut().zip(0..) {
            let entry = Entry::from(*word).end(i < good, self.now);
            self.checks.stamped += u64::from(entry.is_known());
            *word = entry.into();
        }
    }

    /// A read goes down. What lies before its failure was compared when it came up, here or in another layer: a
    /// mirror may have had it read by another leg, whose clock says nothing here.
    fn begin_read(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        let first = cx.io(io).extent() - cx.unissued(io);
        let since = self.now & SINCE;
        cx.set_frame(io, frame, Reading::new().with_first(first).with_since(since).into());
    }

    /// Compares what was read this time.
    fn check(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        let (reading, now) = (Reading::from(cx.frame(io, frame)), self.now);
        let elapsed = now.wrapping_sub(reading.since()) & SINCE;
        let first = reading.first();
        let blocks = first..succeeded(cx, io).max(first);
        let Some(entries) = entries(&mut self.table, cx.io(io).lba(), &blocks) else { return };
        let known = |word: &&u64| Entry::from(**word).is_known_for(elapsed, now);
        let count = entries.iter().filter(known).count() as u64;
        self.checks.checked += count;
        self.checks.unchecked += blocks.end - blocks.start - count;
        if count == 0 {
            return;
        }
        let (mut wrong, mut at) = (None, 0);
        checksums(cx, io, blocks, self.block_shift, &mut *self.buffer, |checksum| {
            let entry = Entry::from(entries[at]);
            if entry.is_known_for(elapsed, now) && entry.checksum() != checksum {
                wrong.get_or_insert(first + at as u64);
                self.checks.mismatches += 1;
            }
            at += 1;
        });
        if let Some(at) = wrong {
            cx.fail(io, at, Cause::Corrupt);
        }
    }
}

/// The entries of blocks of a request that begins with `lba`; `None` if they are beyond the end.
fn entries<'t>(table: &'t mut [u64], lba: u64, blocks: &Range<u64>) -> Option<&'t mut [u64]> {
    let (start, end) = (lba.checked_add(blocks.start)?, lba.checked_add(blocks.end)?);
    table.get_mut(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// Blocks of a request that came up before the first that failed.
fn succeeded(cx: &Cx<'_>, io: &Handle) -> u64 {
    let container = cx.io(io);
    let blocks = container.blocks();
    cx.failure(io).map_or(blocks, |failure| failure.lba.wrapping_sub(container.lba()).min(blocks))
}

/// The checksums of blocks of a request, in order.
fn checksums(
    cx: &Cx<'_>,
    io: &Handle,
    blocks: Range<u64>,
    block_shift: u32,
    buffer: &mut [u8],
    mut f: impl FnMut(u32),
) {
    let block = 1 << block_shift;
    let (mut hasher, mut left) = (Hasher::new(), block);
    let bytes = blocks.start << block_shift..blocks.end << block_shift;
    // Powers of two both, so no piece has bytes of two blocks.
    let buffer = &mut buffer[..block.min(BUFFER)];
    cx.copy_pieces(io, bytes, buffer, |piece| {
        hasher.update(piece);
        left -= piece.len();
        if left == 0 {
            f(std::mem::take(&mut hasher).finalize());
            left = block;
        }
    });
}

impl Filter for Verifier {
    const KEEPS_FRAME: bool = true;

    #[inline]
    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        cx.judge(io);
        match cx.io(io).operation() {
            Operation::Write | Operation::WriteZeroes | Operation::Deallocate => self.begin(cx, io, frame),
            Operation::Read => self.begin_read(cx, io, frame),
            Operation::Flush | Operation::Raw => {}
        }
    }

    #[inline]
    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize) {
        match cx.io(io).operation() {
            Operation::Write | Operation::WriteZeroes | Operation::Deallocate => self.end(cx, io, frame),
            Operation::Read => self.check(cx, io, frame),
            Operation::Flush | Operation::Raw => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_makes_a_block_known() {
        let fresh = Entry::new();
        assert!(!fresh.is_known());
        let written = fresh.begin(Some(7));
        assert!(!written.is_known(), "as long as it is in flight");
        assert!(written.end(true, 1).is_known() && written.end(true, 1).checksum() == 7);
        assert!(!written.end(false, 1).is_known());
        assert!(!written.end(true, 1).begin(None).end(true, 2).is_known());
    }

    #[test]
    fn writes_in_flight_together_make_it_unknown() {
        let both = Entry::new().begin(Some(1)).begin(Some(2));
        let first = both.end(true, 1);
        assert!(!first.is_known() && !first.end(true, 2).is_known());
        // A third one while the second is in flight helps nothing; one after it does.
        assert!(!first.begin(Some(3)).end(true, 2).end(true, 3).is_known());
        assert!(first.end(true, 2).begin(Some(3)).end(true, 3).is_known());
        // A write that failed may still have changed it.
        assert!(!both.end(false, 1).end(true, 2).is_known());
    }

    #[test]
    fn more_writers_than_can_be_counted_are_never_forgotten() {
        let crowded = (0..=UNCOUNTED).fold(Entry::new(), |entry, _| entry.begin(Some(1)));
        let after = (0..=UNCOUNTED).fold(crowded, |entry, _| entry.end(true, 1));
        assert!(!after.begin(Some(1)).end(true, 2).is_known());
    }

    #[test]
    fn a_read_is_checked_against_what_was_known_before_it() {
        let known_since =
            |entry: Entry, then: u64, now: u64| entry.is_known_for(now.saturating_sub(then), now);
        let period = CLOCK + 1;
        for at in [1, 5, CLOCK, period, period + 5, 7 * period + 3] {
            let entry = Entry::new().begin(Some(1)).end(true, at);
            assert!(known_since(entry, at, at) && known_since(entry, at, at + 100));
            assert!(known_since(entry, at + 50, at + 100));
            assert!(!known_since(entry, at - 1, at) && !known_since(entry, at - 1, at + 100));
            // Its age looks like less when the clock has gone round; that costs a check, at worst.
            assert!(!known_since(entry, at - 1, at + period) && !known_since(entry, at - 1, at - 1 + period));
            assert!(!known_since(entry, at + 1, at + period), "not checked, though it could be");
            assert!(known_since(entry, at + period, at + period));
        }
    }
}
