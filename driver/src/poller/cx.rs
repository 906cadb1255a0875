//! What a layer can do with a request that passes: look at it, send it on, make children of it, keep it.
//!
//! Knows requests, children, frames and time; must not know what any layer does.

use std::cmp::Reverse;
use std::ops::Range;
use std::time::Duration;

use super::layer::{Handle, NO_SLOT, Name, Outline, Waiting};
use super::others::Others;
use super::{Core, Target};
use crate::memory::MemoryChain;
use crate::queue::{Queue, Refusal, count_blocks};
use crate::request::{Cause, Failure, IoContainer, Node, NodeId, Operation, Tree};

/// A poller, in the hands of a layer.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The queue whose turn it is.
    pub(super) here: u16,
    pub(super) queue: &'a mut Queue,
    pub(super) others: Others<'a>,
    pub(super) core: &'a mut Core,
}

impl<'a> Cx<'a> {
    #[inline(always)]
    pub(super) fn new(queue: &'a mut Queue, others: &'a mut Others<'_>, core: &'a mut Core) -> Cx<'a> {
        let others = others.again();
        Cx { here: others.here(), queue, others, core }
    }
}

impl Cx<'_> {
    // ---- the request itself ----

    /// The container. That of a child has no memory: it moves its parent's.
    #[inline]
    pub fn io(&self, io: &Handle) -> &IoContainer {
        &self.node(io).io
    }

    /// The node of a handle, of which nothing is under way: so nobody looks at memory that a device writes,
    /// not even with a handle of another poller's, or with two of one request.
    #[inline]
    fn node(&self, io: &Handle) -> &Node {
        let node = &self.core.tree[io.node];
        assert!(io.tree == self.core.tree.id() && node.in_flight == 0, "not a request of this layer's");
        node
    }

    #[inline]
    fn node_mut(&mut self, io: &Handle) -> &mut Node {
        assert!(io.tree == self.core.tree.id(), "not a request of this poller's");
        &mut self.core.tree[io.node]
    }

    /// A request that a layer is done with: that goes on upward.
    pub(super) fn check(&self, io: &Handle) {
        assert!(!self.node(io).waits, "a layer gave a request upward that is under way");
    }

    /// Moves it to another first block.
    #[inline]
    pub fn set_lba(&mut self, io: &Handle, lba: u64) {
        self.node_mut(io).io.set_lba(lba);
    }

    /// Moves it by so many blocks, modulo 2^64: what a layer adds on the way down, it subtracts on the
    /// way up.
    #[inline]
    pub fn shift_lba(&mut self, io: &Handle, blocks: u64) {
        let io = &mut self.node_mut(io).io;
        io.set_lba(io.lba().wrapping_add(blocks));
    }

    /// Its failure, by its own LBA.
    #[inline]
    pub fn failure(&self, io: &Handle) -> Option<Failure> {
        self.node(io).failure()
    }

    /// Makes a request a successful one, failed or not: the layer has seen to all of it.
    pub fn succeed(&mut self, io: &Handle) {
        self.node_mut(io).succeed();
    }

    /// Makes it fail, `at` blocks behind its first.
    pub fn fail(&mut self, io: &Handle, at: u64, cause: Cause) {
        self.node_mut(io).fail(at, cause);
    }

    /// The word with a number below [`Layer::frames`](super::Layer::frames); a child begins with its parent's.
    #[inline]
    pub fn frame(&self, io: &Handle, number: usize) -> u64 {
        self.node(io);
        self.core.tree.frames(io.node)[number]
    }

    /// Sets a word.
    #[inline]
    pub fn set_frame(&mut self, io: &Handle, number: usize, word: u64) {
        self.node_mut(io);
        self.core.tree.frames_mut(io.node)[number] = word;
    }

    /// Blocks that are neither done nor under way.
    pub fn unissued(&self, io: &Handle) -> u64 {
        self.core.tree[io.node].unissued()
    }

    /// Blocks that are done or under way.
    pub fn issued(&self, io: &Handle) -> u64 {
        self.core.tree[io.node].cursor
    }

    /// Whether it succeeded is this layer's to say, on the way up: until then, nobody who observes a part
    /// of it is told that it did.
    pub fn judge(&mut self, io: &Handle) {
        self.node_mut(io).judged = true;
    }

    /// Whether it could be submitted once more after it failed: not if it was cancelled, or its deadline
    /// passed, nor if it reads into memory that a lost controller may still write.
    pub fn can_resume(&self, io: &Handle) -> bool {
        self.node(io);
        self.core.tree.can_resume(io.node)
    }

    /// Ready to be submitted once more, from its first failure on: what lies before is done. One that
    /// [cannot](Cx::can_resume) stays as it is, and fails as it did wherever it is submitted.
    pub fn resume(&mut self, io: &mut Handle) {
        self.node(io);
        self.release_slot(io);
        self.core.tree.resume(io.node);
        // Before any of it can be issued again.
        self.core.tell_observers();
    }

    /// Bytes that it moves.
    pub fn len(&self, io: &Handle) -> u64 {
        let node = self.node(io);
        match node.io.operation() {
            Operation::Read | Operation::Write => node.io.blocks() << node.block_shift,
            _ => 0,
        }
    }

    /// Copies what lies `offset` bytes behind the beginning of its memory.
    pub fn copy_out(&self, io: &Handle, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= self.len(io), "beyond the end of the request");
        let (chain, start) = self.core.tree.memory_from_start(io.node);
        chain.copy_range_out(chain.advance(start, offset), data);
    }

    /// Copies what lies in a range of bytes of its memory out, and shows it to `f` piece by piece, in
    /// order: each fills the buffer, but for the last one. Walks the memory once, where repeated
    /// [`copy_out`](Cx::copy_out) begins at the beginning each time.
    ///
    /// # Panics
    /// If the range is beyond the end of the request, or the buffer empty.
    pub fn copy_pieces(&self, io: &Handle, bytes: Range<u64>, buffer: &mut [u8], mut f: impl FnMut(&[u8])) {
        assert!(bytes.end <= self.len(io) && !buffer.is_empty(), "beyond the end of the request");
        let (chain, start) = self.core.tree.memory_from_start(io.node);
        let (mut at, mut left) = (chain.advance(start, bytes.start), bytes.end.saturating_sub(bytes.start));
        while left > 0 {
            let len = left.min(buffer.len() as u64);
            let piece = &mut buffer[..len as usize];
            chain.copy_range_out(at, piece);
            f(piece);
            (at, left) = (chain.advance(at, len), left - len);
        }
    }

    /// Copies into its memory, `offset` bytes behind its beginning.
    pub fn copy_in(&mut self, io: &Handle, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.len(io), "beyond the end of the request");
        let (chain, start) = self.core.tree.memory_from_start(io.node);
        chain.copy_range_in(chain.advance(start, offset), data);
    }

    // ---- waiting ----

    /// Puts a request behind those that wait.
    pub fn wait(&mut self, waiting: &mut Waiting, mut io: Handle) {
        self.node(&io);
        self.release_slot(&mut io);
        assert!(waiting.line.is_empty() || waiting.tree == Some(io.tree), "a line of another poller's");
        waiting.tree = Some(io.tree);
        waiting.line.push(&mut self.core.tree, io.node);
    }

    /// Takes the first of those that wait for which `is_due` is true. One may have been ended meanwhile,
    /// which its [`failure`](Cx::failure) says; [`Layer::poll`](super::Layer::poll) is called soon after.
    pub fn next_waiting(
        &mut self,
        waiting: &mut Waiting,
        mut is_due: impl FnMut(&Cx<'_>, &Handle) -> bool,
    ) -> Option<Handle> {
        assert!(
            waiting.line.is_empty() || waiting.tree == Some(self.core.tree.id()),
            "a line of another poller's"
        );
        let mut id = waiting.line.first();
        while !id.is_none() {
            let io = self.handle(id);
            if is_due(self, &io) {
                waiting.line.remove(&mut self.core.tree, id);
                return Some(io);
            }
            id = self.core.tree[id].next;
        }
        None
    }

    // ---- down ----

    /// Sends it to a namespace. It comes back through [`Layer::complete`](super::Layer::complete), whatever
    /// becomes of it.
    #[inline(always)]
    pub fn submit(&mut self, target: Target, io: Handle) {
        let node = self.core.tree.own(io.node, io.tree);
        // In the same slot, if all is as it was the last time.
        if io.has_slot()
            && (io.queue, target.queue) == (self.here, self.here)
            && node.namespace == target.namespace
            && node.failed.is_none()
            && self.queue.restart(node, io.slot)
        {
            node.in_flight = 1;
            node.cursor = node.io.extent();
            return;
        }
        self.submit_changed(target, io);
    }

    #[cold]
    fn submit_changed(&mut self, target: Target, mut io: Handle) {
        self.release_slot(&mut io);
        if !self.core.owns(target) {
            self.core.tree[io.node].fail(0, Cause::Refused);
        }
        if self.core.tree[io.node].failed.is_some() {
            // Ended while some layer kept it: it goes back as it is.
            return self.core.tree.finish(io.node);
        }
        match self.admit(target, io.node) {
            Ok(()) => self.start(target, io.node),
            Err(_) => {
                self.core.tree[io.node].fail(0, Cause::Refused);
                self.core.tree.finish(io.node);
            }
        }
    }

    pub(super) fn admit(&mut self, target: Target, id: NodeId) -> Result<(), Refusal> {
        self.core.tree[id].queue = target.queue;
        let (queue, tree) = self.queue(target.queue);
        queue.admit(tree, id, target.namespace)
    }

    pub(super) fn start(&mut self, target: Target, id: NodeId) {
        let (queue, tree) = self.queue(target.queue);
        queue.start(tree, id);
    }

    // ---- children ----

    /// The next blocks of a request, 1 or more, as a child.
    pub fn child(&mut self, of: &Handle, blocks: u64) -> Handle {
        let child = self.core.tree.child(of.node, blocks);
        self.handle(child)
    }

    /// The blocks of the parent that follow, as another child.
    pub fn sibling(&mut self, of: &Handle, blocks: u64) -> Handle {
        let parent = self.core.tree[of.node].parent();
        let child = self.core.tree.child(parent, blocks);
        self.handle(child)
    }

    /// All of a request from a block on as a child, next to others that are the same. That block is the one that it goes
    /// on with, as [`issued`](Cx::issued) says before the first of them: 0, unless it failed before. Not of a read: two
    /// children would write to the same memory.
    ///
    /// # Panics
    /// If it is a read.
    pub fn share(&mut self, of: &Handle, first: u64) -> Handle {
        let child = self.core.tree.share(of.node, first);
        self.handle(child)
    }

    /// A container of the layer's own as a child: its completion is counted in the parent's, but it has
    /// memory of its own. If it has no number of blocks yet, it is all of that memory.
    pub fn foster(&mut self, of: &Handle, mut io: IoContainer) -> Handle {
        // The layers below look at its blocks before it is admitted, when what is wrong with it is found.
        if io.blocks() == 0 {
            let _ = count_blocks(&mut io, 1 << self.core.tree[of.node].block_shift);
        }
        let child = self.core.tree.foster(of.node, io);
        self.handle(child)
    }

    /// What a child with memory of its own is to do, once more: another child of the same parent, with
    /// other memory.
    pub fn foster_sibling(&mut self, of: Name, memory: MemoryChain) -> Handle {
        let (parent, io) = (self.core.tree[of.0].parent(), &self.core.tree[of.0].io);
        let mut io = io.part(0, io.blocks());
        io.replace_memory(memory);
        let child = self.core.tree.foster(parent, io);
        self.handle(child)
    }

    fn handle(&self, node: NodeId) -> Handle {
        Handle::new(&self.core.tree, node)
    }

    /// Puts a request away until its children have joined. Gives it back if all of them have.
    pub fn park(&mut self, mut io: Handle) -> Option<Handle> {
        self.release_slot(&mut io);
        let node = self.node_mut(&io);
        if node.in_flight == 0 {
            return Some(io);
        }
        node.parked = true;
        None
    }

    /// What a child's parent is about; `None` for a request that has none.
    pub fn parent(&self, child: &Handle) -> Option<Outline> {
        let parent = self.node(child).parent();
        let outline = |io: &IoContainer| Outline {
            operation: io.operation(),
            lba: io.lba(),
            blocks: io.blocks(),
            tag: io.get_tag(),
        };
        (!parent.is_none()).then(|| outline(&self.core.tree[parent].io))
    }

    /// Blocks of a child's parent that are neither done nor under way.
    pub fn parent_unissued(&self, child: &Handle) -> u64 {
        self.core.tree[self.core.tree[child.node].parent()].unissued()
    }

    /// Blocks of the parent before a child.
    pub fn offset(&self, child: &Handle) -> u64 {
        self.core.tree[child.node].offset()
    }

    /// A word of a child's parent.
    pub fn parent_frame(&self, child: &Handle, number: usize) -> u64 {
        self.core.tree.frames(self.core.tree[child.node].parent())[number]
    }

    /// Sets a word of a child's parent.
    pub fn set_parent_frame(&mut self, child: &Handle, number: usize, word: u64) {
        let parent = self.core.tree[child.node].parent();
        self.core.tree.frames_mut(parent)[number] = word;
    }

    /// A finished child goes; its parent fails as it did. Returns the parent with the last child, if it was
    /// [parked](Cx::park).
    pub fn join(&mut self, mut child: Handle) -> Option<Handle> {
        let failed = self.node(&child).failed;
        self.release_slot(&mut child);
        let parent = self.core.tree.join(child.node, failed);
        if self.core.tree[parent].is_finished() { self.unpark(parent) } else { None }
    }

    /// Takes the container of a child with memory of its own out. Returns the parent with the last child.
    pub fn release(&mut self, mut child: Handle) -> (IoContainer, Option<Handle>) {
        let parent = self.node(&child).parent();
        self.release_slot(&mut child);
        if parent.is_none() {
            return (self.core.tree.remove(child.node), None);
        }
        let io = self.core.tree.part(child.node);
        (io, self.unpark(parent))
    }

    /// Lets a child with memory of its own go on without its parent. Returns the parent, if that was the
    /// last child.
    ///
    /// # Panics
    /// If it moves memory of its parent, who could not let go of it.
    pub fn orphan(&mut self, child: impl Into<Name>) -> Option<Handle> {
        let parent = self.core.tree.orphan(child.into().0);
        self.unpark(parent)
    }

    /// A request that was put away, when its last child has joined. There is one handle of it.
    fn unpark(&mut self, id: NodeId) -> Option<Handle> {
        let node = &mut self.core.tree[id];
        let back = node.in_flight == 0 && std::mem::take(&mut node.parked);
        back.then(|| self.handle(id))
    }

    // ---- time ----

    /// The time since an arbitrary start; the same during one call of a closure or layer.
    pub fn now(&mut self) -> Duration {
        Duration::from_nanos(self.core.nanos())
    }

    /// The same in nanoseconds.
    #[inline]
    pub fn nanos(&mut self) -> u64 {
        self.core.nanos()
    }

    /// Has [`Layer::poll`](super::Layer::poll) called soon.
    pub fn call_again(&mut self) {
        self.core.again = true;
        self.core.tree.attention.add_news();
    }

    /// Has [`Layer::poll`](super::Layer::poll) called at a time, or a little later. Each call that was
    /// asked for is remembered until then: a layer asks for the next one only when it has come, not in
    /// every `poll`.
    pub fn call_at(&mut self, when: Duration) {
        let Core { wake_at, tree, .. } = &mut *self.core;
        // Many ask for one time.
        if wake_at.peek() != Some(&Reverse(when)) {
            wake_at.push(Reverse(when));
        }
        tree.attention.add_news();
    }

    /// A request that passed all layers upward, while no closure is there to take it.
    pub(super) fn surface(&mut self, mut io: Handle) {
        self.check(&io);
        self.release_slot(&mut io);
        let Core { surfaced, tree, .. } = &mut *self.core;
        surfaced.push(tree, io.node);
        tree.attention.add_news();
    }

    /// Gives the slot of a finished command back.
    #[inline]
    pub(super) fn release_slot(&mut self, io: &mut Handle) {
        if io.has_slot() {
            let (queue, tree) = self.queue(io.queue);
            queue.release(io.slot);
            io.slot = NO_SLOT;
            tree[io.node].wire.forget();
        }
    }

    /// Somebody gets a request now, or later, if it stays here until it is fetched.
    pub(super) fn hand_over(&mut self, id: NodeId) {
        let node = &mut self.core.tree[id];
        let (queue, namespace) = (node.queue, node.namespace);
        if node.doubtful {
            node.doubtful = node.stays();
            self.queue(queue).0.find_late(namespace);
        }
    }

    #[inline]
    fn queue(&mut self, index: u16) -> (&mut Queue, &mut Tree) {
        if index == self.here {
            return (self.queue, &mut self.core.tree);
        }
        self.other_queue(index)
    }

    #[inline(never)]
    fn other_queue(&mut self, index: u16) -> (&mut Queue, &mut Tree) {
        let tree = &mut self.core.tree;
        (self.others.queue(tree, index), tree)
    }
}
