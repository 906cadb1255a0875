//! The seam between a poller and the layers above its namespaces: what a layer is, and what passes from
//! one to the next.
//!
//! A request is in the tree all the time, in one place; what passes is a [`Handle`] to it. Knows what a
//! layer looks like; must not know what any layer does.

use std::num::NonZeroU32;

use super::cx::Cx;
use super::plain::Plain;
use crate::request::{Line, NodeId, Operation, Tree};

/// A request in the hands of one layer: not in flight, and nobody else's at this moment.
///
/// Whoever has it passes it on: down with [`Layer::submit`], up by returning it, or away, until its
/// last child has joined, with [`Cx::park`]. One that is dropped is lost, and its place in the poller
/// with it.
#[derive(Debug)]
#[must_use = "a handle that is dropped loses its request"]
pub struct Handle {
    pub(super) node: NodeId,
    /// Of which poller.
    pub(super) tree: NonZeroU32,
    /// The slot that it still has from its last command, and on which queue.
    pub(super) slot: u32,
    pub(super) queue: u16,
}

pub(super) const NO_SLOT: u32 = u32::MAX;

impl Handle {
    pub(super) fn new(tree: &Tree, node: NodeId) -> Handle {
        Handle { node, tree: tree.id(), slot: NO_SLOT, queue: 0 }
    }

    #[inline(always)]
    pub(super) fn with_slot(tree: &Tree, node: NodeId, slot: u32, queue: u16) -> Handle {
        Handle { node, tree: tree.id(), slot, queue }
    }

    #[inline(always)]
    pub(super) fn has_slot(&self) -> bool {
        self.slot != NO_SLOT
    }
}

/// Requests that a layer keeps until their time comes, in order. They are linked through themselves, so
/// that it has room for all there are, and needs no memory.
#[derive(Debug)]
pub struct Waiting {
    pub(super) line: Line,
    /// Of which poller, once there was one.
    pub(super) tree: Option<NonZeroU32>,
}

impl Waiting {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }
}

impl Default for Waiting {
    /// None.
    fn default() -> Waiting {
        Waiting { line: Line::EMPTY, tree: None }
    }
}

/// Names a request that a layer let go of, as long as it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name(pub(super) NodeId);

impl From<&Handle> for Name {
    fn from(io: &Handle) -> Name {
        Name(io.node)
    }
}

/// What a layer looks like from above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// log2 of the bytes of a logical block.
    pub block_shift: u32,
    /// Its size in blocks.
    pub blocks: u64,
    /// Whether it has Write Zeroes.
    pub write_zeroes: bool,
    /// Whether it has Deallocate.
    pub deallocate: bool,
    /// The `DmaSpace` that memory must come from.
    pub(crate) space: u64,
    /// The poller that it stands on.
    pub(crate) poller: NonZeroU32,
}

/// What a request is about, without its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// What is asked for.
    pub operation: Operation,
    /// The first block.
    pub lba: u64,
    /// The number of blocks.
    pub blocks: u64,
    /// The caller's number.
    pub tag: u64,
}

impl Geometry {
    /// Bytes of a logical block.
    pub fn block_size(&self) -> usize {
        1 << self.block_shift
    }

    /// The same with another number of blocks.
    pub fn with_blocks(self, blocks: u64) -> Geometry {
        Geometry { blocks, ..self }
    }

    /// Whether memory for the one is memory for the other, and requests of one poller reach both.
    pub fn shares_space(&self, other: &Geometry) -> bool {
        (self.space, self.poller) == (other.space, other.poller)
    }
}

/// A block layer: the same above and below.
///
/// A request comes down through [`submit`](Layer::submit) and is passed to the layer below; it comes
/// up through [`complete`](Layer::complete), which first has the layer below look at it. Both return it
/// once it is finished at this level: then it goes on upward. No layer sees another one's state, and none
/// refers to the layer above.
pub trait Layer {
    /// There is no such layer: the poller has none.
    #[doc(hidden)]
    const NONE: bool = false;

    /// What it and the layers below do, if that is nothing but to look at requests that pass, and to move them to
    /// other blocks. Then the poller does it for them from now on, and calls none of them.
    #[doc(hidden)]
    fn plain(&mut self) -> Option<Plain> {
        None
    }

    /// What it looks like from above. Constant.
    fn geometry(&self) -> Geometry;

    /// Words that it and the layers below keep in a request; [`frame`](Cx::frame) numbers below that are
    /// theirs. Constant.
    fn frames(&self) -> usize;

    /// Children that it and the layers below make of one request and have at the same time. Constant.
    fn children(&self) -> u32;

    /// Children that it and the layers below have go on [without their parents](Cx::orphan) at the same
    /// time, those of all requests together, and with their own children. Constant.
    fn orphans(&self) -> u32;

    /// Takes a request in: `None` if it is under way, `Some` if it is finished already.
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle>;

    /// A request, or a child that this layer or one below made of it, has finished at the bottom. `Some`
    /// if that finishes a request at this level.
    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle>;

    /// Called until it returns `None`, after [`Cx::call_again`] and when the time of
    /// [`Cx::call_at`] has come: requests that have finished by other means than a completion.
    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle>;
}

/// No layers: what a poller has that was made by [`Poller::new`](super::Poller::new).
#[derive(Debug, Clone, Copy)]
pub enum Direct {}

impl Layer for Direct {
    const NONE: bool = true;

    fn geometry(&self) -> Geometry {
        match *self {}
    }

    fn frames(&self) -> usize {
        match *self {}
    }

    fn children(&self) -> u32 {
        match *self {}
    }

    fn orphans(&self) -> u32 {
        match *self {}
    }

    fn submit(&mut self, _: &mut Cx<'_>, _: Handle) -> Option<Handle> {
        match *self {}
    }

    fn complete(&mut self, _: &mut Cx<'_>, _: Handle) -> Option<Handle> {
        match *self {}
    }

    fn poll(&mut self, _: &mut Cx<'_>) -> Option<Handle> {
        match *self {}
    }
}
