//! A read cache in registered memory.
//!
//! A read is cut at the boundaries of lines. A piece whose line is there is copied at once; one whose
//! line is not waits until the line has been read, together with all others that want some of it. Knows
//! reads, their pieces, and which line each is in; must not know how lines are found and replaced.

mod lines;

use std::ops::Range;

use self::lines::Lines;
use super::{Cx, Geometry, Handle, Layer, Waiting};
use crate::memory::DmaSpace;
use crate::request::{Cause, IoContainer, Operation};
use crate::{Error, Result};

/// Pieces of a read that are under way at the same time, at most.
const WINDOW: u32 = 4;
/// Lines of a cache, at most.
const MAX_LINES: usize = 1 << 20;

/// The size of a [`Cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of all lines, 1 to 2^20 lines. What does not make whole lines, or sets of lines, is left out.
    pub bytes: usize,
    /// Bytes of a line, which is read as a whole: a power of two, at least a block.
    pub line: usize,
}

impl Default for CacheOptions {
    /// 16 MiB, in lines of 64 KiB.
    fn default() -> CacheOptions {
        CacheOptions { bytes: 16 << 20, line: 64 << 10 }
    }
}

/// What a [`Cache`] has done. A read counts once for each line that it touches; again, if it waited for one
/// that somebody else had read and then cancelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheCounts {
    /// Served from a line that was there.
    pub hits: u64,
    /// Bytes of these.
    pub hit_bytes: u64,
    /// Had a line read.
    pub misses: u64,
    /// Waited for a line that was being read already.
    pub shared: u64,
    /// Passed through, for whatever reason; a read that did as a whole counts once.
    pub bypassed: u64,
    /// Read by themselves after their line could not be read.
    pub retried: u64,
    /// Lines thrown out because something was written.
    pub invalidated: u64,
}

/// A read cache above another layer: write-through, and a write throws out the lines that it touches.
///
/// Reads that are large (more than a quarter of the cache), or are to be
/// [`fua`](IoContainer::fua), [`atomic`](IoContainer::atomic) or without any copy
/// ([`no_bounce`](IoContainer::no_bounce)), pass through, as does what is next to a write that is under
/// way, or finds all lines taken that it could use. What is written otherwise than through this layer is
/// not noticed.
///
/// ```
/// use kiovec::layer::{Cache, CacheOptions, Disk};
/// use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
/// use kiovec_emulator::{Config, Emulator};
///
/// let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
/// let space = DmaSpace::new()?;
/// let controller = Controller::open(emulator.function(), &space)?;
/// let mut poller = Poller::with_layers(64);
/// let queue = poller.add_queue(&controller, QueueOptions::default())?;
/// let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
/// let disk = Disk::new(&poller, namespace)?;
/// let cached = poller.add_layer(Cache::new(disk, &space, CacheOptions::default())?)?;
///
/// for _ in 0..2 {
///     poller.submit(cached, IoContainer::read(3, space.allocate(8192)?))?;
///     while poller.poll(|done| done.result().expect("no error")) == 0 {}
/// }
/// assert_eq!(poller.layer(cached).expect("it is there").counts().hits, 1);
/// assert_eq!(poller.stats(queue).commands, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Cache<B> {
    below: B,
    /// The number of its word.
    frame: usize,
    lines: Lines,
    block_shift: u32,
    /// log2 of the blocks of a line.
    line_shift: u32,
    /// Lines that are on the device as a whole: what comes after them is not cached.
    whole_lines: u64,
    /// Blocks of a read that is not too large.
    most: u64,
    /// What lines have come for, and still has to go up.
    served: Waiting,
    counts: CacheCounts,
}

/// What a request is to this layer: the word that it keeps with it.
enum Role {
    /// Came from above, and goes back there.
    Request,
    /// A piece of a read that came from above.
    Piece,
    /// Reads this line.
    Fill(usize),
}

impl Role {
    fn word(self) -> u64 {
        match self {
            Role::Request => 0,
            Role::Piece => 1,
            Role::Fill(line) => 2 + line as u64,
        }
    }

    fn of(word: u64) -> Role {
        match word {
            0 => Role::Request,
            1 => Role::Piece,
            line => Role::Fill((line - 2) as usize),
        }
    }
}

impl<B: Layer> Cache<B> {
    /// Puts a cache above a layer, in new memory of its space. Fails if that is another space than the
    /// layer's, if there is no memory, or with sizes other than [`CacheOptions`] says.
    pub fn new(below: B, space: &DmaSpace, options: CacheOptions) -> Result<Cache<B>> {
        let CacheOptions { bytes, line } = options;
        let geometry = below.geometry();
        let block = geometry.block_size();
        if !line.is_power_of_two() || line < block {
            let what = format!("a cache line of {line} bytes is not a power of two from {block} on");
            return Err(Error::InvalidInput(what));
        }
        let count = bytes / line;
        if !(1..=MAX_LINES).contains(&count) {
            let what =
                format!("a cache of {bytes} bytes does not have 1 to {MAX_LINES} lines of {line} bytes");
            return Err(Error::InvalidInput(what));
        }
        if geometry.space != space.id() {
            return Err(Error::InvalidInput("a cache has memory of the DmaSpace of what is below".into()));
        }
        let mut memory = space.allocate(count * line)?;
        let mut buffers = Vec::with_capacity(count);
        for _ in 1..count {
            let (buffer, rest) = memory.split_at(line);
            buffers.push(IoContainer::read(0, buffer));
            memory = rest;
        }
        buffers.push(IoContainer::read(0, memory));
        let lines = Lines::new(buffers);
        let line_shift = line.trailing_zeros() - geometry.block_shift;
        Ok(Cache {
            frame: below.frames(),
            below,
            most: (lines.len() as u64 / 4).max(1) << line_shift,
            lines,
            block_shift: geometry.block_shift,
            line_shift,
            whole_lines: geometry.blocks >> line_shift,
            served: Waiting::default(),
            counts: CacheCounts::default(),
        })
    }

    /// What it has done so far.
    pub fn counts(&self) -> &CacheCounts {
        &self.counts
    }

    /// The layer below.
    pub fn below(&self) -> &B {
        &self.below
    }

    // ---- reads, down ----

    /// A read from above, not larger than it may be.
    fn read(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let (end, blocks) = (end_of(cx.io(&io)), cx.io(&io).blocks());
        if self.next_blocks(end, blocks) == blocks {
            return self.read_piece(cx, io);
        }
        // From where it left off, if it comes once more.
        let mut under_way = 0;
        while under_way < WINDOW && cx.unissued(&io) > 0 {
            let blocks = self.next_blocks(end, cx.unissued(&io));
            let piece = cx.child(&io, blocks);
            cx.set_frame(&piece, self.frame, Role::Piece.word());
            match self.read_piece(cx, piece) {
                None => under_way += 1,
                // Not put away yet, the request is not given back.
                Some(piece) => drop(cx.join(piece)),
            }
        }
        cx.park(io)
    }

    /// A read that touches one line.
    fn read_piece(&mut self, cx: &mut Cx<'_>, piece: Handle) -> Option<Handle> {
        let number = cx.io(&piece).lba() >> self.line_shift;
        if let Some(line) = self.lines.find(number) {
            if self.lines.is_filling(line) {
                self.counts.shared += 1;
                cx.wait(self.lines.waiting(line), piece);
                return None;
            }
            self.counts.hits += 1;
            self.counts.hit_bytes += cx.len(&piece);
            self.lines.touch(line);
            self.copy(cx, line, &piece);
            return Some(piece);
        }
        let free = if number < self.whole_lines { self.lines.claim(number) } else { None };
        let Some((line, mut buffer)) = free else {
            self.counts.bypassed += 1;
            return self.below.submit(cx, piece);
        };
        self.counts.misses += 1;
        buffer.set_lba(number << self.line_shift);
        // A child of the piece, with which it is cancelled: then others that wait have it read again.
        let fill = cx.foster(&piece, buffer);
        cx.set_frame(&fill, self.frame, Role::Fill(line).word());
        cx.park(piece);
        let fill = self.below.submit(cx, fill)?;
        self.filled(cx, fill, line)
    }

    // ---- reads, up ----

    /// A line has been read, or could not be. Returns what had it read, if that is finished.
    fn filled(&mut self, cx: &mut Cx<'_>, fill: Handle, line: usize) -> Option<Handle> {
        let failed = cx.failure(&fill).map(|failure| failure.cause);
        let (buffer, piece) = cx.release(fill);
        let mut waiting = self.lines.filled(line, buffer, failed.is_none());
        while let Some(piece) = next(cx, &mut waiting) {
            if let Some(piece) = self.settle(cx, line, failed, piece) {
                cx.wait(&mut self.served, piece);
            }
        }
        self.settle(cx, line, failed, piece?)
    }

    /// The line that a piece waited for is there, or not to be had.
    fn settle(
        &mut self,
        cx: &mut Cx<'_>,
        line: usize,
        failed: Option<Cause>,
        piece: Handle,
    ) -> Option<Handle> {
        match failed {
            None => self.copy(cx, line, &piece),
            // The piece itself was ended meanwhile.
            Some(_) if cx.failure(&piece).is_some() => {}
            // It ended with the one that it was read for, and was worth reading all the same.
            Some(Cause::Cancelled | Cause::Expired) => return self.read_piece(cx, piece),
            // It may not have been one of the piece's own blocks. Even if its request has failed: what
            // lies before the failure is done.
            Some(_) => {
                self.counts.retried += 1;
                return self.below.submit(cx, piece);
            }
        }
        Some(piece)
    }

    fn copy(&self, cx: &mut Cx<'_>, line: usize, piece: &Handle) {
        let block = cx.io(piece).lba() & ((1 << self.line_shift) - 1);
        let start = (block << self.block_shift) as usize;
        let end = start + cx.len(piece) as usize;
        cx.copy_in(piece, 0, &self.lines.data(line)[start..end]);
    }

    // ---- up ----

    /// Something has come up from below, or been served. `Some` if a request is finished.
    fn finish(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        match Role::of(cx.frame(&io, self.frame)) {
            Role::Request => {
                if let Some(lines) = self.written(cx.io(&io)) {
                    self.lines.end_write(lines);
                }
                Some(io)
            }
            Role::Piece => self.finish_piece(cx, io),
            Role::Fill(line) => {
                let io = self.filled(cx, io, line)?;
                self.finish(cx, io)
            }
        }
    }

    /// Its place in the window is taken by the next piece that has to wait.
    fn finish_piece(&mut self, cx: &mut Cx<'_>, piece: Handle) -> Option<Handle> {
        let end = cx.parent(&piece).map_or(0, |parent| parent.lba + parent.blocks);
        while cx.failure(&piece).is_none() && cx.parent_unissued(&piece) > 0 {
            let blocks = self.next_blocks(end, cx.parent_unissued(&piece));
            let next = cx.sibling(&piece, blocks);
            cx.set_frame(&next, self.frame, Role::Piece.word());
            match self.read_piece(cx, next) {
                // Not the last: the other one is still there.
                Some(next) => drop(cx.join(next)),
                None => break,
            }
        }
        cx.join(piece)
    }

    /// One of those that are finished; the poller asks for the others.
    fn one_of_served(&mut self, cx: &mut Cx<'_>, first: Option<Handle>) -> Option<Handle> {
        let mut one = first;
        while one.is_none() {
            let io = next(cx, &mut self.served)?;
            one = self.finish(cx, io);
        }
        if !self.served.is_empty() {
            cx.call_again();
        }
        one
    }

    // ---- where things are ----

    /// Blocks of the next piece of a read that ends before block `end`: at most to the end of a line.
    fn next_blocks(&self, end: u64, unissued: u64) -> u64 {
        let line = 1 << self.line_shift;
        unissued.min(line - ((end - unissued) & (line - 1)))
    }

    /// The lines that a request changes.
    fn written(&self, io: &IoContainer) -> Option<Range<u64>> {
        match io.operation() {
            Operation::Write | Operation::WriteZeroes | Operation::Deallocate => {
                Some(io.lba() >> self.line_shift..((end_of(io) - 1) >> self.line_shift) + 1)
            }
            Operation::Read | Operation::Flush | Operation::Raw => None,
        }
    }

    /// Whether a request is a read that the cache may serve.
    fn may_serve(&self, io: &IoContainer) -> bool {
        io.operation() == Operation::Read
            && io.blocks() <= self.most
            && !(io.is_fua() || io.is_atomic() || io.is_no_bounce())
    }
}

/// Takes the first of those that wait.
fn next(cx: &mut Cx<'_>, waiting: &mut Waiting) -> Option<Handle> {
    cx.next_waiting(waiting, |_, _| true)
}

/// The first block behind a request.
fn end_of(io: &IoContainer) -> u64 {
    io.lba() + io.blocks()
}

impl<B: Layer> Layer for Cache<B> {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn frames(&self) -> usize {
        self.frame + 1
    }

    /// Each piece of the window, the read of a line that it may wait for, and what is made of either; and
    /// a finished piece, while the one that follows it is made.
    fn children(&self) -> u32 {
        WINDOW * (2 + self.below.children()) + 1
    }

    fn orphans(&self) -> u32 {
        self.below.orphans()
    }

    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        cx.set_frame(&io, self.frame, Role::Request.word());
        if cx.failure(&io).is_some() {
            // Ended while a layer above had it.
            return Some(io);
        }
        if self.may_serve(cx.io(&io)) {
            return self.read(cx, io);
        }
        match self.written(cx.io(&io)) {
            Some(lines) => self.counts.invalidated += self.lines.begin_write(lines),
            None => self.counts.bypassed += u64::from(cx.io(&io).operation() == Operation::Read),
        }
        let io = self.below.submit(cx, io)?;
        self.finish(cx, io)
    }

    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let io = self.below.complete(cx, io)?;
        let first = self.finish(cx, io);
        self.one_of_served(cx, first)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        loop {
            if let Some(io) = self.one_of_served(cx, None) {
                return Some(io);
            }
            let io = self.below.poll(cx)?;
            if let Some(io) = self.finish(cx, io) {
                return Some(io);
            }
        }
    }
}
