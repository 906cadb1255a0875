//! Several layers as one that is as large as all of them: RAID-0.
//!
//! Knows which block is on which leg; must not know what a leg is made of.

use super::legs::Legs;
use super::{Cx, Geometry, Handle, Layer};
use crate::request::{Cause, Operation};
use crate::{Error, Result};

/// Legs of a stripe, at most.
const MAX_LEGS: usize = 64;
/// Children of a request that are under way at the same time, for each leg on average.
const PER_LEG: u64 = 4;

/// Layers side by side, filled in rows: chunk 0 is on leg 0, chunk 1 on leg 1, and so on, round and
/// round. Whatever one leg loses is lost.
///
/// A request within one chunk goes to its leg as it is. Any other is split at the chunks, not all at
/// once: the next child is made when one has finished, and none after a failure. A flush goes to
/// all legs. An `atomic` request that does not lie within one chunk fails as [`Cause::Refused`].
///
/// ```
/// use kiovec::layer::{Disk, Layer, Stripe};
/// use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
/// use kiovec_emulator::{Config, Emulator};
///
/// let space = DmaSpace::new()?;
/// let mut poller = Poller::with_layers(64);
/// let mut emulators = Vec::new();
/// let mut legs = Vec::new();
/// for _ in 0..3 {
///     let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
///     let controller = Controller::open(emulator.function(), &space)?;
///     let queue = poller.add_queue(&controller, QueueOptions::default())?;
///     let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
///     legs.push(Disk::new(&poller, namespace)?);
///     emulators.push(emulator);
/// }
/// let stripe = Stripe::new(legs, 128 << 10)?;
/// assert_eq!(stripe.geometry().blocks * 4096, 3 * (64 << 20));
/// let stripe = poller.add_layer(stripe)?;
///
/// poller.submit(stripe, IoContainer::read(0, space.allocate(1 << 20)?))?; // 8 chunks
/// while poller.poll(|done| done.result().expect("no error")) == 0 {}
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stripe<B> {
    legs: Legs<B>,
    /// Blocks of a chunk.
    chunk: u64,
    /// Blocks of all legs that are in use.
    blocks: u64,
}

/// What a stripe keeps with a request below it.
#[derive(Debug, Clone, Copy)]
struct Place {
    leg: usize,
    /// It is a child that the stripe made.
    child: bool,
}

impl Place {
    fn word(self) -> u64 {
        (self.leg as u64) << 1 | u64::from(self.child)
    }

    fn of(word: u64) -> Place {
        Place { leg: (word >> 1) as usize, child: word & 1 != 0 }
    }
}

impl<B: Layer> Stripe<B> {
    /// A stripe of 2 to 64 legs with chunks of so many bytes, a multiple of the block size. Of each leg
    /// as many whole chunks are in use as the smallest has. The legs have blocks of one size, and memory
    /// for one of them is memory for all.
    pub fn new(legs: Vec<B>, chunk_bytes: u64) -> Result<Stripe<B>> {
        let legs = Legs::new("stripe", legs, MAX_LEGS)?;
        let below = legs.geometry;
        let block = below.block_size() as u64;
        let rows = below.blocks.checked_div(chunk_bytes / block).unwrap_or(0);
        if rows == 0 || !chunk_bytes.is_multiple_of(block) {
            let (blocks, what) =
                (below.blocks, "choose a multiple of the block size, up to the smallest leg");
            return Err(Error::InvalidInput(format!(
                "chunks of {chunk_bytes} bytes do not divide legs of {blocks} blocks of {block} bytes; {what}"
            )));
        }
        let chunk = chunk_bytes / block;
        let Some(blocks) = (rows * chunk).checked_mul(legs.len() as u64) else {
            return Err(Error::InvalidInput("a stripe has fewer than 2^64 blocks".into()));
        };
        Ok(Stripe { legs, chunk, blocks })
    }

    /// The layers below, in the order of their chunks.
    pub fn legs(&self) -> &[B] {
        &self.legs
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk << self.legs.geometry.block_shift
    }

    /// Where a block is: on which leg, and which block there.
    #[inline]
    fn locate(&self, lba: u64) -> (usize, u64) {
        let (chunk, within, legs) = (lba / self.chunk, lba % self.chunk, self.legs.len() as u64);
        ((chunk % legs) as usize, chunk / legs * self.chunk + within)
    }

    /// Which block of the stripe a block of a leg is.
    #[inline]
    fn lba(&self, leg: usize, block: u64) -> u64 {
        let (row, within) = (block / self.chunk, block % self.chunk);
        (row * self.legs.len() as u64 + leg as u64) * self.chunk + within
    }

    /// Sends what lies within one chunk to its leg.
    #[inline]
    fn send(&mut self, cx: &mut Cx<'_>, io: Handle, child: bool) -> Option<Handle> {
        let (leg, lba) = self.locate(cx.io(&io).lba());
        cx.set_lba(&io, lba);
        cx.set_frame(&io, self.legs.frame, Place { leg, child }.word());
        self.legs[leg].submit(cx, io)
    }

    /// Makes the first children of a request, and sends them.
    fn split(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        if cx.failure(&io).is_some() {
            // Ended while a layer above had it.
            return Some(io);
        }
        let (first, left) = (cx.io(&io), cx.unissued(&io));
        let at = first.lba() + (first.blocks() - left);
        let mut child = cx.child(&io, self.within_chunk(at, left));
        cx.park(io);
        for _ in 1..PER_LEG * self.legs.len() as u64 {
            // While it is in our hands: nobody else has the parent.
            let next = self.sibling(cx, &child);
            if let Some(finished) = self.send(cx, child, true)
                && let Some(parent) = cx.join(finished)
            {
                return Some(parent);
            }
            child = next?;
        }
        let finished = self.send(cx, child, true)?;
        self.join(cx, finished)
    }

    /// A child has finished: the next one takes its place.
    fn join(&mut self, cx: &mut Cx<'_>, mut child: Handle) -> Option<Handle> {
        loop {
            let next = if cx.failure(&child).is_none() { self.sibling(cx, &child) } else { None };
            let parent = cx.join(child);
            let Some(next) = next else { return parent };
            child = self.send(cx, next, true)?;
        }
    }

    /// The next child of a child's parent. `None` if there is nothing left to be done, or no point in it.
    fn sibling(&self, cx: &mut Cx<'_>, child: &Handle) -> Option<Handle> {
        let (parent, left) = (cx.parent(child)?, cx.parent_unissued(child));
        if left == 0 {
            return None;
        }
        let at = parent.lba + (parent.blocks - left);
        Some(cx.sibling(child, self.within_chunk(at, left)))
    }

    /// Of `left` blocks from `lba` on, how many are in the first one's chunk.
    fn within_chunk(&self, lba: u64, left: u64) -> u64 {
        left.min(self.chunk - lba % self.chunk)
    }

    /// All of a request to every leg.
    fn share(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let mut children: [Option<Handle>; MAX_LEGS] = [const { None }; MAX_LEGS];
        for (leg, child) in children.iter_mut().enumerate().take(self.legs.len()) {
            let share = child.insert(cx.share(&io, 0));
            cx.set_frame(share, self.legs.frame, Place { leg, child: true }.word());
        }
        cx.park(io);
        let mut parent = None;
        for (leg, child) in self.legs.iter_mut().zip(children.into_iter().flatten()) {
            if let Some(finished) = leg.submit(cx, child) {
                // Nothing before the last child.
                parent = cx.join(finished);
            }
        }
        parent
    }

    /// What a leg has finished.
    #[inline]
    fn up(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let Place { leg, child } = Place::of(cx.frame(&io, self.legs.frame));
        if child {
            return self.join(cx, io);
        }
        cx.set_lba(&io, self.lba(leg, cx.io(&io).lba()));
        Some(io)
    }
}

impl<B: Layer> Layer for Stripe<B> {
    fn geometry(&self) -> Geometry {
        Geometry { blocks: self.blocks, ..self.legs.geometry }
    }

    fn frames(&self) -> usize {
        self.legs.frame + 1
    }

    fn children(&self) -> u32 {
        // A child's successor is made before the child goes.
        PER_LEG as u32 * self.legs.len() as u32 * (1 + self.legs.children()) + 1
    }

    fn orphans(&self) -> u32 {
        self.legs.orphans()
    }

    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let (lba, blocks) = (cx.io(&io).lba(), cx.io(&io).blocks());
        if cx.io(&io).operation() == Operation::Flush {
            return self.share(cx, io);
        }
        if lba % self.chunk + blocks <= self.chunk {
            let io = self.send(cx, io, false)?;
            return self.up(cx, io);
        }
        if cx.io(&io).is_atomic() {
            cx.fail(&io, 0, Cause::Refused);
            return Some(io);
        }
        self.split(cx, io)
    }

    #[inline]
    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let Place { leg, .. } = Place::of(cx.frame(&io, self.legs.frame));
        let io = self.legs[leg].complete(cx, io)?;
        self.up(cx, io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        while let Some(io) = self.legs.poll(cx) {
            if let Some(io) = self.up(cx, io) {
                return Some(io);
            }
        }
        None
    }
}
