//! The request tree of a poller: a bounded slab of nodes. A node is a container and what has
//! become of it so far; a child is some of its parent's blocks, and moves its parent's memory.
//!
//! Pure logic. Knows cursors and counts; must not know queues, slots or commands.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut, Range};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Cause, Event, Failure, IoContainer, Line, Operation};
use crate::memory::{MemoryChain, Position};

/// Names a node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeId(u32);

impl NodeId {
    /// No node: what a vacant slot or the end of a list refers to.
    pub(crate) const NONE: NodeId = NodeId(u32::MAX);

    pub(crate) fn is_none(self) -> bool {
        self == NodeId::NONE
    }

    /// No other node of the tree has it.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The words of a submission queue entry that stay the same from one submission to the next, as long as
/// nothing of the container changes but the LBA.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    /// A first block below it makes a command that is within all limits; 0 if nothing is prepared. Others
    /// may as well: that takes a closer look.
    pub(crate) bound: u64,
    /// The same of a request that takes several commands: all of it was checked. If all of them but the last are alike,
    /// they have this head and tail; else the head is 0.
    pub(crate) checked: u64,
    /// Dwords 0 and 1: opcode, flags, NSID; the CID is added for each submission.
    pub(crate) head: u64,
    /// PRP entries or an SGL descriptor.
    pub(crate) dptr: [u64; 2],
    /// Dwords 12 and 13.
    pub(crate) tail: u64,
    /// How the second half of the data pointer goes with the first.
    pub(crate) second: Second,
}

/// How the second half of a data pointer changes, as memory of the same length and with the same place in its
/// page takes the place of other memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Second {
    /// It depends.
    #[default]
    Any,
    /// Not at all: there is none, or it is a length.
    Fixed,
    /// It lies in a list of all addresses: for each page that the memory moves, by an entry.
    Listed,
}

impl Wire {
    /// Nothing is prepared.
    pub(crate) const NONE: Wire =
        Wire { bound: 0, checked: 0, head: 0, dptr: [0; 2], tail: 0, second: Second::Any };

    #[inline(always)]
    pub(crate) fn is_prepared(&self) -> bool {
        self.bound > 0
    }

    #[inline(always)]
    pub(crate) fn forget(&mut self) {
        (self.bound, self.checked) = (0, 0);
    }
}

/// Words that layers keep in a request, at most, from top to bottom of a stack.
pub(crate) const FRAMES: usize = 6;
/// The queue of a request that has gone to none itself.
pub(crate) const NO_QUEUE: u16 = u16::MAX;
/// The layers of a node that was submitted to a namespace directly.
pub(crate) const NO_LAYER: u16 = u16::MAX;

/// A container in the tree.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Node {
    pub(crate) io: IoContainer,
    /// The wire form of the container, where one command carries all of it and nothing but the LBA
    /// changed since. It belongs to the node, not to the container: it is for the node's queue and namespace, and,
    /// if it refers to a list, for the slot of that command, as long as the node has it.
    pub(crate) wire: Wire,
    /// The event that its completion is, where it is one: then the container stays here until it is
    /// claimed.
    pub(crate) event: Option<Event>,
    /// The event counts it, and it goes to the closure like one that is no event.
    pub(crate) counted: bool,
    /// Whether a future waits for it, which it then goes to, and is no event.
    pub(crate) awaited: Awaited,
    /// Which of the poller's stacks of layers it came in through.
    pub(crate) layer: u16,
    /// Which queue it went to last.
    pub(crate) queue: u16,
    /// Which of the queue's namespaces it went to last.
    pub(crate) namespace: u16,
    /// Goes down in commands of its own: one that it shared failed.
    pub(crate) alone: bool,
    /// log2 of the bytes of a block where layers are between; else its queue knows.
    pub(crate) block_shift: u8,
    /// Somebody observes ranges of it.
    pub(crate) observed: bool,
    /// Whether a part of it succeeded is known no sooner than of all of it: a layer has the last word.
    pub(crate) judged: bool,
    /// It was a child, and goes on without its parent.
    orphan: bool,
    /// Some device may write its memory for ever: it goes back to nobody.
    forfeited: bool,
    /// A layer put it away until its children have joined.
    pub(crate) parked: bool,
    /// What it is to its parent: blocks that no other child has.
    exclusive: bool,
    /// It stands in a queue's line.
    pub(crate) waits: bool,
    /// Some of it may have been done before a reset, and be lost with a cache; and whoever gets it may have been told of
    /// that before.
    pub(crate) doubtful: bool,
    /// Blocks that commands or children were made for, from the container's first block on.
    pub(crate) cursor: u64,
    /// Commands and children in flight.
    pub(crate) in_flight: u32,
    /// The failure with the lowest offset.
    pub(crate) failed: Option<Failed>,
    /// The next node of a line.
    pub(crate) next: NodeId,
    /// Where the memory of the next piece begins, in the owner's chain.
    at: Position,
    /// Where the memory begins.
    start: Position,
    /// Whose memory it moves: its own, or that of a node above.
    owner: NodeId,
    parent: NodeId,
    /// Its first block, from the parent's first block on.
    offset: u64,
    /// When it went down, in nanoseconds, if anybody measures that of a request that just passes.
    pub(crate) began: u64,
}

/// A power of two, so that finding one takes no multiplication.
const _: () = assert!(size_of::<Node>() == 256);

/// How a node failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Blocks of the node before the piece that failed.
    pub(crate) at: u64,
    pub(crate) cause: Cause,
}

/// What a request is to a future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// Nothing.
    No,
    /// It is under way.
    Pending,
    /// It has finished, and waits to be taken.
    Ready,
}

/// What became of blocks of an observed node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    /// They failed, or are carried out once more: nobody can say so of them before their node is finished.
    Open,
}

impl Failed {
    pub(crate) fn by_lba(&self, io: &IoContainer) -> Failure {
        Failure { lba: io.lba().wrapping_add(self.at), cause: self.cause }
    }
}

impl Node {
    /// Counts so many pieces that succeeded.
    #[inline(always)]
    pub(crate) fn settle_all(&mut self, pieces: u32) {
        assert!(self.in_flight >= pieces, "more pieces completed than were in flight");
        self.in_flight -= pieces;
    }

    /// Counts a piece that completed.
    #[inline(always)]
    pub(crate) fn settle(&mut self, failed: Option<Failed>) {
        assert!(self.in_flight > 0, "a piece completed that was not in flight");
        self.in_flight -= 1;
        if let Some(Failed { at, cause }) = failed {
            self.fail(at, cause);
        }
    }

    /// Remembers a failure: that with the lowest offset, or a flush's that tells of a lost cache, since no other flush
    /// does. What is not issued yet never will be: it is pointless.
    pub(crate) fn fail(&mut self, at: u64, cause: Cause) {
        if self.failed.is_none_or(|earlier| at < earlier.at) || cause == Cause::CacheLost {
            self.failed = Some(Failed { at, cause });
        }
        self.cursor = self.io.extent();
    }

    /// Fails it as a whole, whatever failed of it before: nobody goes on with it.
    pub(crate) fn end(&mut self, cause: Cause) {
        self.failed = Some(Failed { at: 0, cause });
        self.cursor = self.io.extent();
    }

    /// All of it is done, by other means than its pieces.
    pub(crate) fn succeed(&mut self) {
        self.failed = None;
        self.cursor = self.io.extent();
    }

    /// The failure, by LBA.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failed.map(|failed| failed.by_lba(&self.io))
    }

    /// Whether an event counts it, and no layer has to see it before.
    #[inline(always)]
    pub(crate) fn is_counted_whole(&self) -> bool {
        self.counted && self.layer == NO_LAYER
    }

    pub(crate) fn is_layered(&self) -> bool {
        self.layer != NO_LAYER
    }

    /// Blocks for which there is no command yet.
    #[inline(always)]
    pub(crate) fn unissued(&self) -> u64 {
        self.io.extent() - self.cursor
    }

    /// Nothing of it is under way, and nothing is left to be issued.
    #[inline(always)]
    pub(crate) fn is_finished(&self) -> bool {
        self.in_flight == 0 && self.unissued() == 0
    }

    /// Whether it stays here when it has finished, until somebody fetches it.
    pub(crate) fn stays(&self) -> bool {
        self.awaited != Awaited::No || self.event.is_some() && !self.counted
    }

    /// Whether it writes something that a cache may hold back.
    pub(crate) fn is_cached(&self) -> bool {
        match self.io.operation() {
            Operation::Write | Operation::WriteZeroes => !self.io.is_fua(),
            Operation::Deallocate => true,
            Operation::Read | Operation::Flush | Operation::Raw => false,
        }
    }

    /// Whether it is no event, and nobody is to be told of it but the closure.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.event.is_none() && !self.is_observed_or_forfeited()
    }

    /// Whether it succeeded, is no event, passed no layers, and nobody is to be told of it but the closure.
    pub(crate) fn is_usual(&self) -> bool {
        self.is_plain() && !self.is_layered() && self.failed.is_none()
    }

    /// Whether it is not the usual request that it seems to be.
    #[inline(always)]
    pub(crate) fn is_observed_or_forfeited(&self) -> bool {
        self.observed | self.forfeited
    }

    /// Takes memory that goes back to nobody out, before anybody looks at a finished request.
    pub(crate) fn bury(&mut self) {
        if std::mem::take(&mut self.forfeited) {
            let memory = self.io.replace_memory(MemoryChain::new());
            // What is retired is never used again, and the space is to know that nobody has it.
            if !memory.iter().all(|segment| segment.is_retired()) {
                std::mem::forget(memory);
            }
        }
    }

    /// Ready to be issued from its beginning, once more.
    #[inline(always)]
    pub(crate) fn rewind(&mut self) {
        self.wire.forget();
        self.rewind_prepared();
    }

    /// The same, but what was prepared for its command stays.
    #[inline(always)]
    pub(crate) fn rewind_prepared(&mut self) {
        self.cursor = 0;
        self.at = self.start;
        self.failed = None;
        self.alone = false;
    }

    pub(crate) fn parent(&self) -> NodeId {
        self.parent
    }

    /// Its first block, from the parent's first block on.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn vacant() -> Node {
        Node {
            io: IoContainer::default(),
            wire: Wire::NONE,
            event: None,
            counted: false,
            awaited: Awaited::No,
            layer: NO_LAYER,
            queue: 0,
            namespace: 0,
            block_shift: 0,
            alone: false,
            observed: false,
            judged: false,
            orphan: false,
            parked: false,
            forfeited: false,
            exclusive: false,
            waits: false,
            doubtful: false,
            cursor: 0,
            in_flight: 0,
            failed: None,
            next: NodeId::NONE,
            at: Position::default(),
            start: Position::default(),
            owner: NodeId::NONE,
            parent: NodeId::NONE,
            offset: 0,
            began: 0,
        }
    }
}

/// What the poller has to do besides looking at completion queues; while that is nothing, most polls are
/// quiet ones, which look at nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    what: u8,
    /// Quiet polls that are still to come before the next full one.
    quiet: u32,
    /// Those that were, before there was something to do.
    held: u32,
    /// Polls so far, with the quiet ones that are still to come.
    polls: u64,
}

impl Attention {
    /// Something that was begun with is not worked off.
    const REST: u8 = 1;
    /// Something new came.
    const NEWS: u8 = 2;
    /// Something waits for its time.
    const TIMER: u8 = 4;
    /// A queue was touched out of its turn.
    const TOUCHED: u8 = 8;
    /// Nodes without slots are on their way to the closure, in this turn.
    const ROW: u8 = 16;
    /// Quiet polls in a row, at most.
    const QUIET: u32 = 1023;

    const NONE: Attention = Attention { what: 0, quiet: 0, held: 0, polls: 0 };

    fn add(&mut self, what: u8) {
        self.what |= what;
        self.polls -= u64::from(self.quiet);
        self.held += std::mem::take(&mut self.quiet);
    }

    /// Something new came.
    pub(crate) fn add_news(&mut self) {
        self.add(Attention::NEWS);
    }

    /// A queue was touched out of its turn: it wants one soon.
    #[inline]
    pub(crate) fn add_touched(&mut self) {
        self.add(Attention::TOUCHED);
    }

    /// Nodes without slots have to be delivered before the turn is over.
    pub(crate) fn begin_row(&mut self) {
        self.add(Attention::ROW);
    }

    /// They are.
    pub(crate) fn end_row(&mut self) {
        self.what &= !Attention::ROW;
        let held = std::mem::take(&mut self.held);
        self.be_quiet(held);
    }

    /// What came is being worked off.
    pub(crate) fn begin_rest(&mut self) {
        self.what = self.what & Attention::TOUCHED | Attention::REST;
    }

    /// All that was begun with is worked off; whether something waits for its time. If nothing else is to
    /// be done, polls are as quiet as they were before.
    pub(crate) fn clear_rest(&mut self, timer: bool) {
        self.what &= !(Attention::REST | Attention::TIMER);
        if timer {
            self.add(Attention::TIMER);
        }
        let held = std::mem::take(&mut self.held);
        self.be_quiet(held);
    }

    /// Whether there is anything to work off.
    #[inline(always)]
    pub(crate) fn has_rest(&self) -> bool {
        self.what & (Attention::REST | Attention::NEWS | Attention::TIMER | Attention::ROW) != 0
    }

    /// Counts a poll; whether it may be a quiet one.
    #[inline(always)]
    pub(crate) fn begin_quiet(&mut self) -> bool {
        let (left, none) = self.quiet.overflowing_sub(1);
        self.quiet = left;
        !none
    }

    /// Whether only those queues want a turn that have completions.
    pub(crate) fn is_quiet(&self) -> bool {
        self.what == 0
    }

    /// Counts a poll that gives every queue its turn, as the one that could not be a quiet one.
    pub(crate) fn begin_full(&mut self) {
        (self.quiet, self.held) = (0, 0);
        self.what &= !Attention::TOUCHED;
        self.polls += 1;
    }

    /// Unless there is anything to do, the polls to come are quiet.
    pub(crate) fn end_full(&mut self) {
        self.be_quiet(Attention::QUIET);
    }

    /// Unless there is anything to do, so many polls to come are quiet.
    fn be_quiet(&mut self, polls: u32) {
        if self.what == 0 {
            self.polls = self.polls - u64::from(self.quiet) + u64::from(polls);
            self.quiet = polls;
        }
    }

    /// Polls so far.
    pub(crate) fn polls(&self) -> u64 {
        self.polls - u64::from(self.quiet)
    }
}

/// All nodes of a poller. Allocated before the first request.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Identifies the tree, and so its poller, among all of this process.
    id: NonZeroU32,
    nodes: Vec<Node>,
    /// What layers keep with nodes; empty as long as there are no layers.
    frames: Vec<[u64; FRAMES]>,
    /// The first of those that nobody has; they are linked like a line.
    vacant: NodeId,
    /// Requests, without their children: in the tree, and at most.
    requests: u32,
    capacity: u32,
    /// Children that a request can have at the same time.
    children: u32,
    /// Children that go on without their parents. They take nothing of the capacity: there is room for
    /// them apart.
    orphans: u32,
    /// Nodes that finished and wait for whoever is above them.
    finished: Line,
    /// The same, where nobody is above but the poller: no layers.
    landed: Line,
    /// Pieces of observed nodes that settled.
    observed: Vec<(NodeId, Range<u64>, Progress)>,
    pub(crate) attention: Attention,
}

impl Tree {
    /// A tree with room for `capacity` requests.
    pub(crate) fn new(capacity: u32) -> Tree {
        static IDS: AtomicU32 = AtomicU32::new(1);
        let id = NonZeroU32::new(IDS.fetch_add(1, Ordering::Relaxed));
        let mut tree = Tree {
            id: id.expect("fewer than 2^32 pollers"),
            nodes: Vec::new(),
            frames: Vec::new(),
            vacant: NodeId::NONE,
            requests: 0,
            capacity,
            children: 0,
            orphans: 0,
            finished: Line::EMPTY,
            landed: Line::EMPTY,
            observed: Vec::new(),
            attention: Attention::NONE,
        };
        tree.grow(capacity);
        tree
    }

    /// Makes room for layers, with so many children of every request, and so many more nodes that are
    /// orphans, or children of such: then none ever waits for a node.
    pub(crate) fn reserve(&mut self, children: u32, orphans: u32) {
        let more = children.saturating_sub(self.children);
        self.children += more;
        self.grow(more.saturating_mul(self.capacity).saturating_add(orphans));
        self.frames.resize(self.nodes.len(), [0; FRAMES]);
    }

    /// The words that layers keep with a node.
    #[inline(always)]
    pub(crate) fn frames(&self, id: NodeId) -> &[u64; FRAMES] {
        let Some(frames) = self.frames.get(id.0 as usize) else { no_such_node() };
        frames
    }

    #[inline(always)]
    pub(crate) fn frames_mut(&mut self, id: NodeId) -> &mut [u64; FRAMES] {
        let Some(frames) = self.frames.get_mut(id.0 as usize) else { no_such_node() };
        frames
    }

    fn grow(&mut self, by: u32) {
        let len = self.nodes.len() as u32;
        let end = len.checked_add(by).filter(|end| *end < u32::MAX).expect("fewer than 2^32 nodes");
        self.nodes.extend(std::iter::repeat_with(Node::vacant).take(by as usize));
        (len..end).rev().for_each(|index| self.vacate(NodeId(index)));
    }

    /// Takes a place for a request, which is then [filled](Tree::fill); `None` when the tree is full.
    #[inline(always)]
    pub(crate) fn place(&mut self) -> Option<NodeId> {
        if self.requests >= self.capacity {
            return None;
        }
        let id = self.occupy()?;
        self.requests += 1;
        Some(id)
    }

    /// Puts a container into its place.
    #[inline(always)]
    pub(crate) fn fill(&mut self, id: NodeId, io: IoContainer, layer: u16) {
        let node = &mut self[id];
        // Field by field, since a node as a value would be copied; all flags, which is one store.
        // There is no memory in a vacant one: nothing to drop.
        std::mem::forget(std::mem::replace(&mut node.io, io));
        (node.layer, node.event, node.owner, node.parent) = (layer, None, id, NodeId::NONE);
        (node.observed, node.judged, node.orphan, node.forfeited) = (false, false, false, false);
        (node.parked, node.exclusive, node.waits, node.counted) = (false, false, false, false);
        node.doubtful = false;
        node.awaited = Awaited::No;
        (node.start, node.block_shift) = (Position::default(), 0);
        node.rewind();
    }

    /// Takes a container out.
    #[inline(always)]
    pub(crate) fn remove(&mut self, id: NodeId) -> IoContainer {
        let node = &mut self[id];
        assert!(node.in_flight == 0 && !node.waits, "a node left the tree that was under way");
        assert!(!node.owner.is_none(), "a node left the tree twice");
        node.owner = NodeId::NONE;
        if node.forfeited || node.orphan || !node.parent.is_none() {
            return self.remove_unusual(id);
        }
        let io = node.io.take();
        self.requests -= 1;
        self.vacate(id);
        io
    }

    #[cold]
    #[inline(never)]
    fn remove_unusual(&mut self, id: NodeId) -> IoContainer {
        let node = &mut self[id];
        node.bury();
        let io = node.io.take();
        let parent = std::mem::replace(&mut node.parent, NodeId::NONE);
        match std::mem::take(&mut node.orphan) {
            true => self.orphans -= 1,
            false => self.requests -= u32::from(parent.is_none()),
        }
        self.vacate(id);
        io
    }

    #[inline(always)]
    fn occupy(&mut self) -> Option<NodeId> {
        let id = self.vacant;
        if id.is_none() {
            return None;
        }
        self.vacant = self[id].next;
        Some(id)
    }

    #[inline(always)]
    fn vacate(&mut self, id: NodeId) {
        self[id].next = self.vacant;
        self.vacant = id;
    }

    /// The next `blocks` blocks of a node as a child: the node's cursor moves on.
    pub(crate) fn child(&mut self, parent: NodeId, blocks: u64) -> NodeId {
        let node = &self[parent];
        assert!(0 < blocks && blocks <= node.unissued(), "a child has some of its parent's blocks");
        let io = node.io.part(node.cursor, blocks);
        let (owner, start) = (node.owner, node.at);
        let child = self.adopt(parent, io, owner, start);
        self[child].exclusive = true;
        self.advance(parent, blocks, self[parent].block_shift.into());
        child
    }

    /// All of a node from one of its blocks on as a child, next to others that have the same. Not for reads: two
    /// children would write to the same memory. What lies before is done, and may be somebody else's by now.
    pub(crate) fn share(&mut self, parent: NodeId, first: u64) -> NodeId {
        let node = &self[parent];
        assert!(node.io.operation() != Operation::Read, "what is read goes to one place");
        let io = node.io.part(first, node.io.blocks().saturating_sub(first));
        // Its cursor goes on with the first of these children, and this does not.
        let (owner, start) = (node.owner, node.at);
        let child = self.adopt(parent, io, owner, start);
        self[child].offset = first;
        // Every block is under way, and done when all that have it are.
        self[parent].cursor = self[parent].io.extent();
        self[parent].judged = true;
        child
    }

    /// A container with memory of its own as a child.
    pub(crate) fn foster(&mut self, parent: NodeId, io: IoContainer) -> NodeId {
        // Its blocks are done when the layer says so.
        self[parent].judged = true;
        self.adopt(parent, io, NodeId::NONE, Position::default())
    }

    fn adopt(&mut self, parent: NodeId, io: IoContainer, owner: NodeId, start: Position) -> NodeId {
        let id = self.occupy().expect("room was reserved for the children of every request");
        let Node { layer, block_shift, cursor: offset, .. } = self[parent];
        self.frames[id.0 as usize] = self.frames[parent.0 as usize];
        let node = &mut self[id];
        *node = Node { io, layer, block_shift, parent, offset, owner, start, ..Node::vacant() };
        if owner.is_none() {
            node.owner = id;
        }
        node.rewind();
        self[parent].in_flight += 1;
        id
    }

    /// A node has finished: whoever is above it learns of it.
    pub(crate) fn finish(&mut self, id: NodeId) {
        if !self[id].is_layered() {
            let mut line = self.landed;
            line.push(self, id);
            self.landed = line;
            return self.attention.add_news();
        }
        let mut line = self.take_finished();
        line.push(self, id);
        self.finished = line;
        self.attention.add_news();
    }

    /// Nodes that succeeded, whose queue delivers them no more: they go the longer way, on which they may become events.
    pub(crate) fn land(&mut self, row: Line) {
        if row.is_empty() {
            return;
        }
        let mut id = row.first();
        while !id.is_none() {
            self[id].in_flight = 0;
            id = self[id].next;
        }
        let mut landed = self.take_landed();
        landed.append(self, row);
        self.landed = landed;
        self.attention.add_news();
    }

    /// Takes nodes that have finished and have no layers above them.
    pub(crate) fn take_landed(&mut self) -> Line {
        std::mem::replace(&mut self.landed, Line::EMPTY)
    }

    /// Nodes that finished and wait for whoever is above them.
    pub(crate) fn take_finished(&mut self) -> Line {
        std::mem::replace(&mut self.finished, Line::EMPTY)
    }

    /// A piece of an observed node that settled, or that a failure leaves open.
    pub(crate) fn next_observed(&mut self) -> Option<(NodeId, Range<u64>, Progress)> {
        self.observed.pop()
    }

    /// Blocks of a node settled, if somebody observes it.
    #[inline]
    pub(crate) fn observe(&mut self, id: NodeId, blocks: Range<u64>, progress: Progress) {
        if self[id].observed {
            self.observed.push((id, blocks, progress));
            self.attention.add_news();
        }
    }

    /// Counts a piece of a node that completed: those blocks of it.
    pub(crate) fn settle_piece(&mut self, id: NodeId, blocks: Range<u64>, failed: Option<Failed>) {
        self[id].settle(failed);
        self.observe(id, blocks, if failed.is_none() { Progress::Done } else { Progress::Open });
    }

    /// Requests on a queue that are to be fetched, of which nothing is under way.
    pub(crate) fn unfetched(&mut self, queue: u16) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().filter(move |node| {
            let here = !node.owner.is_none() && node.queue == queue;
            here && node.stays() && node.in_flight == 0 && !node.waits
        })
    }

    /// Takes a finished child out and counts it in its parent, which fails with `failed`, by the child's
    /// blocks.
    pub(crate) fn join(&mut self, child: NodeId, failed: Option<Failed>) -> NodeId {
        let Node { parent, offset, exclusive, .. } = self[child];
        let blocks = self.remove(child).extent();
        let failed = failed.map(|failed| Failed { at: offset + failed.at, ..failed });
        match exclusive {
            true => self.settle_piece(parent, offset..offset + blocks, failed),
            false => self[parent].settle(failed),
        }
        parent
    }

    /// Takes the container of a finished child out, which leaves its parent.
    pub(crate) fn part(&mut self, child: NodeId) -> IoContainer {
        let parent = self[child].parent;
        let io = self.remove(child);
        self[parent].settle(None);
        io
    }

    /// Lets a child go on without its parent, as a request of its own that is beyond the capacity.
    pub(crate) fn orphan(&mut self, child: NodeId) -> NodeId {
        let node = &mut self[child];
        assert!(node.owner == child, "a child that moves its parent's memory does not leave it");
        node.orphan = true;
        let parent = std::mem::replace(&mut node.parent, NodeId::NONE);
        assert!(!parent.is_none(), "only a child is orphaned");
        self[parent].settle(None);
        self.orphans += 1;
        parent
    }

    /// Moves a node's cursor over blocks that were issued.
    pub(crate) fn advance(&mut self, id: NodeId, blocks: u64, block_shift: u32) {
        let node = &mut self[id];
        node.cursor += blocks;
        // At the end there is nothing to look for in the chain.
        if node.unissued() > 0 {
            let (owner, at) = (node.owner, node.at);
            let memory = self[owner].io.memory();
            // Zeros and deallocations are as long as they like, and move none.
            if !memory.is_empty() {
                self[id].at = memory.advance(at, blocks << block_shift);
            }
        }
    }

    /// Moves a node's cursor over blocks for which so many commands were issued, and to where the memory of
    /// the next piece begins.
    #[inline(always)]
    pub(crate) fn issued(&mut self, id: NodeId, cursor: u64, at: Position, commands: u32) {
        let node = &mut self[id];
        (node.cursor, node.at) = (cursor, at);
        node.in_flight += commands;
    }

    /// Whether a node that failed can go on: not one whose owner ended it, and nobody reads into memory that
    /// another device may still write.
    pub(crate) fn can_resume(&self, id: NodeId) -> bool {
        let failed = self[id].failed;
        let ended = failed.is_some_and(|failed| matches!(failed.cause, Cause::Cancelled | Cause::Expired));
        let buried = self.is_forfeited(id) && self[id].io.operation() == Operation::Read;
        !ended && !buried
    }

    /// Goes on from a node's first failure, if it [can](Tree::can_resume): what lies before it is done.
    pub(crate) fn resume(&mut self, id: NodeId) {
        if !self.can_resume(id) {
            return;
        }
        let from = self[id].failed.map_or(0, |failed| failed.at);
        // What comes after may have been done already, and is now done once more.
        self.observe(id, from..u64::MAX, Progress::Open);
        self[id].rewind();
        if from > 0 {
            self.advance(id, from, self[id].block_shift.into());
        }
    }

    /// Whether a node moves memory of its own container, if any; else it is that of a node above.
    pub(crate) fn has_own_memory(&self, id: NodeId) -> bool {
        self[id].owner == id
    }

    /// Some device may write the memory that a node moves for ever. It stays where it is as long as the
    /// request is in the tree, since others may still move it too, and then goes back to nobody.
    pub(crate) fn forfeit(&mut self, id: NodeId) {
        let owner = self[id].owner;
        self[owner].forfeited = true;
    }

    /// Whether the memory that a node moves goes back to nobody.
    pub(crate) fn is_forfeited(&self, id: NodeId) -> bool {
        self[self[id].owner].forfeited
    }

    /// The chain that a node moves, and where in it the node's next piece begins.
    pub(crate) fn memory(&self, id: NodeId) -> (&MemoryChain, Position) {
        let node = &self[id];
        (self[node.owner].io.memory(), node.at)
    }

    /// The chain that a node moves, and where in it the node begins.
    pub(crate) fn memory_from_start(&self, id: NodeId) -> (&MemoryChain, Position) {
        let node = &self[id];
        (self[node.owner].io.memory(), node.start)
    }

    /// The number of a node's stack of layers, or one that no stack has.
    #[inline(always)]
    pub(crate) fn layer(&self, id: NodeId) -> usize {
        self.nodes.get(id.0 as usize).map_or(NO_LAYER, |node| node.layer).into()
    }

    /// Children of a node that are in the tree. Looks at every node.
    pub(crate) fn children(&self, parent: NodeId) -> impl Iterator<Item = NodeId> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(move |(_, node)| node.parent == parent).map(|(i, _)| NodeId(i as u32))
    }

    /// Nothing is prepared any more for a namespace with this number, of whatever queue. Looks at every node.
    pub(crate) fn forget_prepared(&mut self, namespace: u16) {
        self.nodes.iter_mut().filter(|node| node.namespace == namespace).for_each(|node| node.wire.forget());
    }

    /// Requests that an event counts and that are under way. Looks at every node.
    pub(crate) fn counted_by(&self, all: Event) -> impl Iterator<Item = NodeId> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(move |(_, node)| node.counted && node.event == Some(all) && !node.owner.is_none())
            .map(|(i, _)| NodeId(i as u32))
    }

    #[inline(always)]
    pub(crate) fn id(&self) -> NonZeroU32 {
        self.id
    }

    /// A node of this tree, of which nothing is under way.
    #[inline(always)]
    pub(crate) fn own(&mut self, id: NodeId, tree: NonZeroU32) -> &mut Node {
        let node = &mut self.nodes[id.0 as usize];
        assert!(tree == self.id && node.in_flight == 0, "not a request that can be submitted");
        node
    }

    /// Requests that are in the tree, without their children, and orphans.
    pub(crate) fn len(&self) -> usize {
        (self.requests + self.orphans) as usize
    }
}

impl Index<NodeId> for Tree {
    type Output = Node;

    #[inline(always)]
    fn index(&self, id: NodeId) -> &Node {
        let Some(node) = self.nodes.get(id.0 as usize) else { no_such_node() };
        node
    }
}

impl IndexMut<NodeId> for Tree {
    #[inline(always)]
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        let Some(node) = self.nodes.get_mut(id.0 as usize) else { no_such_node() };
        node
    }
}

/// Nodes are never taken away, so this is `NodeId::NONE`.
#[cold]
#[inline(never)]
fn no_such_node() -> ! {
    panic!("a node that is not there")
}
