//! The poller: one per thread. It owns queue pairs and the request tree, and drives both.
//!
//! Knows which queue a request goes to, and gives finished ones to the caller; must not know wire
//! formats. No interrupts, no lock, no allocation from submit to completion.
#![forbid(unsafe_code)]

mod admit;
mod done;
mod end;
mod event;
mod layer;
mod observe;
mod reactor;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use self::done::Done;
pub use self::layer::{Cx, Direct, Geometry, Handle, Layer, Name, Outline, Waiting};
pub use self::observe::BadRange;
use self::observe::Observers;
pub use self::reactor::{Reactor, Request};
use crate::controller::{Controller, Namespace};
use crate::memory::{Access, SharedArray};
use crate::pci::Clock;
use crate::queue::{DataPointer, Limits, MAX_DEPTH, Next, Queue, QueueStats, Reachable, Refusal};
use crate::request::{Attention, Events, FRAMES, IoContainer, Line, NO_LAYER, NodeId, Tree};
use crate::spec::identify::SglSupport;
use crate::{Error, Result};

/// Queue pairs of a poller, at most.
const MAX_QUEUES: usize = 1024;
/// Completion entries beyond what can be outstanding: a doorbell for every so many completions.
const SPARE_COMPLETIONS: u32 = 64;
/// The largest transfer of one command unless asked for otherwise: what one list page can express.
const MAX_TRANSFER: u64 = 2 << 20;

/// Bounce buffers of a queue pair at most, and bytes of each: the largest block as well.
const BOUNCE_BUFFERS: usize = 4;
const BOUNCE_BYTES: usize = 64 << 10;
/// Idle polls with commands in flight after which the controller's status is read: it costs about as
/// much as a hundred polls.
const IDLE_POLLS: u32 = 1 << 16;
/// Stands in a target for a queue: it is a stack of layers.
const LAYERED: u16 = u16::MAX;

/// How a queue pair is set up.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Commands in flight at most, 1 to 4096; fewer if the controller's queues are smaller.
    pub depth: usize,
    /// PRPs, SGLs, or whichever the controller offers.
    pub data: DataForm,
    /// Bytes that one command transfers at most, before MDTS makes it less.
    pub max_transfer: u64,
    /// Whether requests that have to wait may share commands with their neighbours.
    pub merge: bool,
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions { depth: 128, data: DataForm::Auto, max_transfer: MAX_TRANSFER, merge: true }
    }
}

impl QueueOptions {
    /// Sets the depth.
    #[must_use]
    pub fn depth(mut self, depth: usize) -> QueueOptions {
        self.depth = depth;
        self
    }

    /// Sets the form of data pointers.
    #[must_use]
    pub fn data(mut self, data: DataForm) -> QueueOptions {
        self.data = data;
        self
    }

    /// Sets whether requests that have to wait may share commands.
    #[must_use]
    pub fn merge(mut self, merge: bool) -> QueueOptions {
        self.merge = merge;
        self
    }

    /// Sets the largest transfer of one command, in bytes.
    #[must_use]
    pub fn max_transfer(mut self, bytes: u64) -> QueueOptions {
        self.max_transfer = bytes;
        self
    }
}

/// The form of data pointers (Base 2.0, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataForm {
    /// SGLs where the controller has them, else PRPs.
    #[default]
    Auto,
    /// Physical Region Pages.
    Prp,
    /// Scatter Gather Lists.
    Sgl,
}

/// Names a queue pair of a poller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueId {
    poller: NonZeroU32,
    index: u16,
}

/// Where requests go: a namespace, through a queue pair; or a stack of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    poller: NonZeroU32,
    queue: u16,
    namespace: u16,
}

/// A container that was not accepted, and why.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// The container, as it was.
    pub io: IoContainer,
    /// Why it was not accepted.
    pub reason: Refusal,
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Error {
        Error::InvalidInput(rejected.to_string())
    }
}

/// One thread's queue pairs and requests.
///
/// ```
/// use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
/// use kiovec_emulator::{Config, Emulator};
///
/// let emulator = Emulator::spawn(Config::parse("media=ram")?)?;
/// let space = DmaSpace::new()?;
/// let controller = Controller::open(emulator.function(), &space)?;
/// let mut poller = Poller::new(1024);
/// let queue = poller.add_queue(&controller, QueueOptions::default())?;
/// let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
///
/// let mut memory = space.allocate(4096)?;
/// memory.fill(7);
/// poller.submit(disk, IoContainer::write(0, memory))?;
/// let mut written = false;
/// while !written {
///     poller.poll(|done| {
///         done.result().expect("the write succeeds");
///         written = true;
///     });
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Poller<L: Layer = Direct> {
    core: Core,
    layers: Vec<Stacked<L>>,
    rest: Rest,
    turns: u64,
}

/// What all queues of a poller share.
#[derive(Debug)]
struct Core {
    /// One is out during its turn.
    queues: Vec<Option<Box<Pair>>>,
    tree: Tree,
    events: Events,
    observers: Observers,
    /// Requests that passed all layers upward while no closure was there to take them.
    surfaced: Line,
    /// A layer wants to be called.
    again: bool,
    /// When layers want to be called.
    wake_at: BinaryHeap<Reverse<Duration>>,
    clock: Option<Clock>,
    /// The time, if anybody asked for it in this turn.
    now: Option<u64>,
}

/// A stack of layers that requests can be submitted to.
#[derive(Debug)]
struct Stacked<L> {
    layer: L,
    geometry: Geometry,
}

/// A queue and the controller it belongs to.
#[derive(Debug)]
struct Pair {
    queue: Queue,
    qid: u16,
    controller: Arc<Controller>,
    /// Polls in a row that found nothing while commands were in flight.
    idle: u32,
}

impl Core {
    /// Whether a target is one of this poller's.
    fn owns(&self, target: Target) -> bool {
        target.poller == self.tree.id()
    }

    /// Where a request was submitted to.
    fn target(&self, id: NodeId) -> Target {
        let (poller, node) = (self.tree.id(), &self.tree[id]);
        match node.is_layered() {
            true => Target { poller, queue: LAYERED, namespace: node.layer },
            false => Target { poller, queue: node.queue, namespace: node.namespace },
        }
    }

    fn nanos(&mut self) -> u64 {
        *self.now.get_or_insert_with(|| self.clock.as_ref().map_or(0, Clock::nanos))
    }
}

impl Poller {
    /// A poller with room for `requests` requests, on all its queues together, in flight or waiting.
    pub fn new(requests: u32) -> Poller {
        Poller::with_layers(requests)
    }
}

impl<L: Layer> Poller<L> {
    /// The same, for requests that pass layers as well.
    pub fn with_layers(requests: u32) -> Poller<L> {
        let core = Core {
            queues: Vec::new(),
            tree: Tree::new(requests),
            events: Events::default(),
            observers: Observers::default(),
            surfaced: Line::EMPTY,
            again: false,
            wake_at: BinaryHeap::new(),
            clock: None,
            now: None,
        };
        Poller { core, layers: Vec::new(), rest: Rest::NONE, turns: 0 }
    }

    /// Creates an I/O queue pair on a controller.
    pub fn add_queue(&mut self, controller: &Arc<Controller>, options: QueueOptions) -> Result<QueueId> {
        if self.core.queues.len() == MAX_QUEUES {
            return Err(Error::InvalidInput(format!("a poller has at most {MAX_QUEUES} queue pairs")));
        }
        if !(1..=MAX_DEPTH).contains(&options.depth) {
            let depth = options.depth;
            return Err(Error::InvalidInput(format!(
                "a queue depth of {depth} is not within 1 to {MAX_DEPTH}"
            )));
        }
        let pair = Pair::new(controller, options)?;
        self.core.clock.get_or_insert_with(|| controller.clock());
        self.core.queues.push(Some(Box::new(pair)));
        Ok(QueueId { poller: self.core.tree.id(), index: self.core.queues.len() as u16 - 1 })
    }

    /// Makes a namespace of the queue's controller a target.
    pub fn add_namespace(&mut self, queue: QueueId, namespace: &Namespace) -> Result<Target> {
        if queue.poller != self.core.tree.id() {
            return Err(Error::InvalidInput("the queue belongs to another poller".into()));
        }
        let pair = self.pair(queue.index);
        if !pair.controller.owns(namespace) {
            let what = format!("namespace {} belongs to another controller than the queue", namespace.nsid());
            return Err(Error::InvalidInput(what));
        }
        let block_size = namespace.usable().map_err(|what| pair.unsupported(what))?;
        let controller = &pair.controller;
        let limits = Limits::new(
            controller.identity(),
            controller.nvm_identity(),
            namespace.identity(),
            block_size.trailing_zeros(),
            pair.max_transfer(),
        );
        if limits.transfer << limits.block_shift > pair.max_transfer() {
            let what = format!("a block of {block_size} bytes exceeds the {} of MDTS", pair.max_transfer());
            return Err(pair.unsupported(what));
        }
        if block_size as usize > BOUNCE_BYTES {
            return Err(pair.unsupported(format!("a block of {block_size} bytes exceeds {BOUNCE_BYTES}")));
        }
        let namespace = pair.queue.add_namespace(Reachable { nsid: namespace.nsid(), limits });
        Ok(Target { poller: queue.poller, queue: queue.index, namespace })
    }

    /// Makes a stack of layers a target.
    pub fn add_layer(&mut self, layer: L) -> Result<Target> {
        let geometry = layer.geometry();
        if geometry.poller != self.core.tree.id() {
            return Err(Error::InvalidInput("the layers stand on namespaces of another poller".into()));
        }
        if layer.frames() > FRAMES {
            let what = format!("the layers keep {} words with each request; {FRAMES} fit", layer.frames());
            return Err(Error::InvalidInput(what));
        }
        self.core.tree.reserve_children(layer.children());
        self.core.tree.reserve_orphans(layer.orphans());
        self.layers.push(Stacked { layer, geometry });
        let namespace = self.layers.len() as u16 - 1;
        Ok(Target { poller: self.core.tree.id(), queue: LAYERED, namespace })
    }

    /// A stack of layers, to look at its counters; `None` for a target without layers.
    pub fn layer(&self, target: Target) -> Option<&L> {
        let here = self.core.owns(target) && target.queue == LAYERED;
        let stacked = self.layers.get(usize::from(target.namespace)).filter(|_| here)?;
        Some(&stacked.layer)
    }

    /// What a target looks like; `None` for one of another poller.
    pub fn geometry(&self, target: Target) -> Option<Geometry> {
        if !self.core.owns(target) {
            return None;
        }
        if target.queue == LAYERED {
            return Some(self.layers.get(usize::from(target.namespace))?.geometry);
        }
        let queue = &self.core.queues.get(usize::from(target.queue))?.as_ref()?.queue;
        let limits = &queue.reachable(target.namespace).limits;
        Some(Geometry {
            block_shift: limits.block_shift,
            blocks: limits.capacity,
            write_zeroes: limits.write_zeroes > 0,
            deallocate: limits.deallocate > 0,
            space: queue.space(),
            poller: target.poller,
        })
    }

    /// Hands a container over. The controller learns of it at the next [`poll`](Poller::poll), with
    /// everything else that was submitted by then. Once accepted it completes, whatever its size.
    pub fn submit(&mut self, target: Target, io: IoContainer) -> std::result::Result<(), Rejected> {
        self.enter(target, io, |_, _| {})
    }

    fn enter(
        &mut self,
        target: Target,
        io: IoContainer,
        accepted: impl FnOnce(&mut Core, NodeId),
    ) -> std::result::Result<(), Rejected> {
        if !self.core.owns(target) {
            return Err(Rejected { io, reason: Refusal::ForeignTarget });
        }
        let index = if target.queue == LAYERED { 0 } else { target.queue };
        // It may be long since the last poll.
        self.core.now = None;
        let mut turn = Turn::new(self, index);
        let (mut cx, layers) = turn.cx().expect("a target's queue is there");
        enter(&mut cx, layers, target, io, accepted)
    }

    /// Holds back what is submitted to a queue pair from now on, so that neighbours can share
    /// commands, until [`unplug`](Poller::unplug). What was submitted before goes on.
    pub fn plug(&mut self, queue: QueueId) {
        if self.find(queue).is_some() {
            self.pair(queue.index).queue.plug();
        }
    }

    /// Lets go what was held back.
    pub fn unplug(&mut self, queue: QueueId) {
        if self.find(queue).is_some() {
            let Core { queues, tree, .. } = &mut self.core;
            let pair = queues[usize::from(queue.index)].as_mut().expect("a queue is out only during poll");
            pair.queue.unplug(tree);
        }
    }

    /// Tells controllers what was submitted, and gives `f` every request that completed since the
    /// last time. Returns how many those were. Never blocks.
    #[inline]
    pub fn poll(&mut self, mut f: impl FnMut(Done<'_, L>)) -> usize {
        self.turns += 1;
        self.core.now = None;
        if self.core.events.next_deadline().is_some() {
            self.expire();
        }
        let mut count = 0;
        for index in 0..self.core.queues.len() {
            count += Turn::new(self, index as u16).run(&mut f);
        }
        count
    }

    #[cold]
    fn collect_rest(&mut self, queue: &mut Queue, here: u16) {
        let Poller { core, layers, rest, .. } = self;
        rest.collect(&mut Cx { here, queue, core }, layers.len());
    }

    #[cold]
    fn next_of_rest(&mut self, queue: &mut Queue, here: u16) -> Option<Handle> {
        let Poller { core, layers, rest, .. } = self;
        rest.next(&mut Cx { here, queue, core }, layers)
    }

    /// Lets others run: after a poll that found nothing, where there is nothing else to do.
    fn pause(&self) {
        for pair in self.core.queues.iter().flatten() {
            pair.controller.pause();
        }
    }

    /// Requests in the tree: in flight or waiting.
    pub fn outstanding(&self) -> usize {
        self.core.tree.len()
    }

    /// How often [`poll`](Poller::poll) was called.
    pub fn polls(&self) -> u64 {
        self.turns
    }

    /// The counters of a queue pair; zeros for one of another poller.
    pub fn stats(&self, queue: QueueId) -> QueueStats {
        self.find(queue).map(|pair| pair.queue.stats()).unwrap_or_default()
    }

    /// Commands that a queue pair has in flight at most: what was asked for, or what the
    /// controller's queues can hold. 0 for a queue pair of another poller.
    pub fn depth(&self, queue: QueueId) -> usize {
        self.find(queue).map_or(0, |pair| pair.queue.depth())
    }

    fn find(&self, queue: QueueId) -> Option<&Pair> {
        let here = (queue.poller == self.core.tree.id()).then_some(usize::from(queue.index))?;
        self.core.queues.get(here)?.as_deref()
    }

    fn pair(&mut self, queue: u16) -> &mut Pair {
        self.core.queues[usize::from(queue)].as_mut().expect("a queue is out only during poll")
    }
}

/// Puts a container into the tree and starts it.
fn enter<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    target: Target,
    mut io: IoContainer,
    accepted: impl FnOnce(&mut Core, NodeId),
) -> std::result::Result<(), Rejected> {
    if !cx.core.owns(target) {
        return Err(Rejected { io, reason: Refusal::ForeignTarget });
    }
    let layered = target.queue == LAYERED;
    if layered && let Err(reason) = layers[usize::from(target.namespace)].geometry.admit(&mut io) {
        return Err(Rejected { io, reason });
    }
    let layer = if layered { target.namespace } else { NO_LAYER };
    let id = cx.core.tree.insert(io, layer).map_err(|io| Rejected { io, reason: Refusal::Full })?;
    if layered {
        accepted(cx.core, id);
        let Stacked { layer, geometry } = &mut layers[usize::from(target.namespace)];
        cx.core.tree[id].block_shift = geometry.block_shift;
        let io = Handle::new(&cx.core.tree, id);
        if let Some(io) = layer.submit(cx, io) {
            cx.surface(io);
        }
        return Ok(());
    }
    if let Err(reason) = cx.admit(target, id) {
        return Err(Rejected { io: cx.core.tree.remove(id), reason });
    }
    accepted(cx.core, id);
    cx.start(target, id);
    Ok(())
}

/// Starts a request once more.
fn start_again<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    mut io: Handle,
) -> std::result::Result<(), Rejected> {
    let id = io.node;
    let target = cx.core.target(id);
    let node = &mut cx.core.tree[id];
    let Some(Stacked { layer, geometry }) = layers.get_mut(usize::from(node.layer)) else {
        cx.release_slot(&mut io);
        cx.core.tree[id].rewind();
        if let Err(reason) = cx.admit(target, id) {
            return Err(Rejected { io: cx.core.tree.remove(id), reason });
        }
        cx.start(target, id);
        return Ok(());
    };
    let admitted = match node.wire {
        Some(_) => geometry.check_range(&node.io),
        None => geometry.admit(&mut node.io),
    };
    if let Err(reason) = admitted {
        cx.release_slot(&mut io);
        return Err(Rejected { io: cx.core.tree.remove(id), reason });
    }
    node.rewind_prepared();
    if let Some(io) = layer.submit(cx, io) {
        cx.surface(io);
    }
    Ok(())
}

/// A node that finished at the bottom passes its layers: `Some` if that finishes a request.
#[inline(always)]
fn ascend<L: Layer>(cx: &mut Cx<'_>, layers: &mut [Stacked<L>], io: Handle) -> Option<Handle> {
    // No layer is the last number there is, which no stack has.
    let layer = usize::from(cx.core.tree[io.node].layer);
    match layers.get_mut(layer) {
        None => Some(io),
        Some(stacked) => stacked.layer.complete(cx, io).inspect(|io| cx.check(io)),
    }
}

/// What is finished by other means than the success of a command that carried all of a request.
///
/// What finishes while this is worked off is left for the next time: a closure that submits what fails at
/// once must not keep us here.
struct Rest {
    finished: Line,
    surfaced: Line,
    /// Layers that have still to be called.
    layers: Range<usize>,
    /// What they may return.
    most: usize,
}

impl Rest {
    const NONE: Rest = Rest { finished: Line::EMPTY, surfaced: Line::EMPTY, layers: 0..0, most: 0 };

    /// What there is to do now, and what a panic left of an earlier time.
    #[cold]
    fn collect(&mut self, cx: &mut Cx<'_>, layers: usize) {
        let finished = cx.core.tree.take_finished();
        self.finished.append(&mut cx.core.tree, finished);
        let surfaced = std::mem::replace(&mut cx.core.surfaced, Line::EMPTY);
        self.surfaced.append(&mut cx.core.tree, surfaced);
        let mut due = false;
        while let Some(Reverse(at)) = cx.core.wake_at.peek().copied()
            && at <= cx.now()
        {
            due = true;
            cx.core.wake_at.pop();
        }
        if std::mem::take(&mut cx.core.again) || due {
            self.layers = 0..layers;
        }
        // If the closure panics, this is where the next turn goes on.
        cx.core.tree.attention = Attention::REST;
        cx.core.tell_observers();
        // At least one: a layer may have something to do without a request.
        self.most = cx.core.tree.len().max(1);
    }

    /// The next request; it has passed its layers.
    #[cold]
    fn next<L: Layer>(&mut self, cx: &mut Cx<'_>, layers: &mut [Stacked<L>]) -> Option<Handle> {
        if let Some(id) = self.surfaced.pop(&cx.core.tree) {
            return Some(Handle::new(&cx.core.tree, id));
        }
        while let Some(id) = self.finished.pop(&cx.core.tree) {
            if let Some(io) = ascend(cx, layers, Handle::new(&cx.core.tree, id)) {
                return Some(io);
            }
        }
        while let Some(index) = self.layers.clone().next() {
            if self.most > 0
                && let Some(io) = layers[index].layer.poll(cx)
            {
                self.most -= 1;
                cx.check(&io);
                return Some(io);
            }
            self.layers.next();
            if self.most == 0 {
                cx.call_again();
            }
        }
        let Core { tree, wake_at, .. } = &mut *cx.core;
        tree.attention.clear_rest(!wake_at.is_empty());
        None
    }
}

/// One queue's turn within a poll. The queue is out of the poller, so that the caller's closure
/// can submit to it and to all others; it is put back even if the closure panics.
struct Turn<'a, L: Layer> {
    poller: &'a mut Poller<L>,
    index: u16,
    pair: Option<Box<Pair>>,
}

impl<'a, L: Layer> Turn<'a, L> {
    #[inline(always)]
    fn new(poller: &'a mut Poller<L>, index: u16) -> Turn<'a, L> {
        let pair = poller.core.queues.get_mut(usize::from(index)).and_then(Option::take);
        Turn { poller, index, pair }
    }

    #[inline(always)]
    fn cx(&mut self) -> Option<(Cx<'_>, &mut [Stacked<L>])> {
        let Poller { core, layers, .. } = &mut *self.poller;
        let queue = &mut self.pair.as_mut()?.queue;
        Some((Cx { here: self.index, queue, core }, layers))
    }

    #[inline(always)]
    fn run(&mut self, f: &mut impl FnMut(Done<'_, L>)) -> usize {
        let here = self.index;
        let Turn { poller, pair: Some(pair), .. } = &mut *self else { return 0 };
        let queue = &mut pair.queue;
        let (mut count, mut idle) = (0, true);
        let mut more = poller.core.tree.attention != Attention::NONE;
        if more {
            poller.collect_rest(queue, here);
        }
        // What the closure submits is not rung before the loop ends, so an honest controller has no
        // more completions than this, and another one must not keep us here.
        let mut left = queue.most_completions();
        loop {
            let finished = if more {
                match poller.next_of_rest(queue, here) {
                    None => {
                        more = false;
                        continue;
                    }
                    finished => finished,
                }
            } else {
                if left == 0 {
                    break;
                }
                match queue.next(&mut poller.core.tree) {
                    Next::Nothing => break,
                    Next::Other => {
                        (idle, left) = (false, left - 1);
                        poller.collect_rest(queue, here);
                        more = true;
                        continue;
                    }
                    Next::Whole(node, slot) => {
                        (idle, left) = (false, left - 1);
                        let Poller { core, layers, .. } = &mut **poller;
                        let io = Handle::with_slot(&core.tree, node, slot, here);
                        ascend(&mut Cx { here, queue, core }, layers, io)
                    }
                }
            };
            let Some(io) = finished else { continue };
            count += 1;
            // One that went down whole, and still has its slot, is no event.
            if io.has_slot() || !poller.core.settled(io.node) {
                f(Done::new(queue, poller, io, here));
            }
        }
        queue.finish_poll(&mut poller.core.tree, idle);
        if idle {
            self.watch();
        }
        count
    }

    /// After many idle polls with commands in flight, looks whether the controller is still there: no
    /// command of a controller that is gone ever completes.
    #[inline(always)]
    fn watch(&mut self) {
        let Some(pair) = &mut self.pair else { return };
        pair.idle = if pair.queue.is_busy() { pair.idle + 1 } else { 0 };
        if pair.idle == IDLE_POLLS {
            pair.idle = 0;
            pair.check(&mut self.poller.core);
        }
    }
}

impl<L: Layer> Drop for Turn<'_, L> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(home) = self.poller.core.queues.get_mut(usize::from(self.index)) {
            *home = self.pair.take();
        }
    }
}

impl Pair {
    fn new(controller: &Arc<Controller>, options: QueueOptions) -> Result<Pair> {
        let largest = controller.capabilities().max_queue_entries();
        // Powers of two, so that a mask wraps positions; one entry of a full ring stays empty.
        let largest = 1 << largest.ilog2();
        let depth = options.depth.min(largest as usize - 1);
        let sq_entries = (depth as u32 + 1).next_power_of_two();
        let cq_entries = (depth as u32 + SPARE_COMPLETIONS).next_power_of_two().min(largest);
        let pointer = data_pointer(controller, options.data)?;
        let transfer = max_transfer(controller, options.max_transfer);
        let lists = Queue::list_bytes(depth, transfer);
        let lists = SharedArray::new(controller.space().segment(lists, 4096, Access::Read)?);
        let bounce = std::iter::repeat_with(|| controller.space().allocate(BOUNCE_BYTES));
        let bounce = bounce.take(depth.min(BOUNCE_BUFFERS)).collect::<Result<Vec<_>>>()?;
        // Last: the controller knows of the queue pair from then on.
        let pair = controller.create_queue_pair(sq_entries, cq_entries)?;
        let qid = pair.qid;
        let ids = (qid, pair.sq, pair.cq);
        let space = controller.space().id();
        let mut queue = Queue::new(ids, depth, pointer, lists, bounce, transfer, space);
        queue.set_merging(options.merge);
        Ok(Pair { queue, qid, controller: Arc::clone(controller), idle: 0 })
    }

    /// Fails everything if the controller is gone, or has failed.
    #[cold]
    fn check(&mut self, core: &mut Core) {
        let Err(error) = self.controller.check() else { return };
        // One that is gone reaches nothing.
        let reaches_nothing = self.controller.quiesce().is_ok() || matches!(error, Error::Gone { .. });
        if !reaches_nothing {
            self.controller.space().retire();
        }
        self.queue.fail_all(&mut core.tree, reaches_nothing);
    }

    fn max_transfer(&self) -> u64 {
        self.queue.max_transfer()
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { device: self.controller.name().into(), what }
    }
}

fn max_transfer(controller: &Controller, wanted: u64) -> u64 {
    // MPSMIN is 0: anything else is refused at bring-up.
    let mdts = controller.identity().max_transfer(0).unwrap_or(u64::MAX);
    // A list of more than 64 pages per slot serves nobody.
    wanted.clamp(4096, 64 << 20).min(mdts.max(4096))
}

fn data_pointer(controller: &Controller, wanted: DataForm) -> Result<DataPointer> {
    let prp = DataPointer::Prp { table: controller.prp_table() };
    let sgl = match controller.identity().sgl_support() {
        SglSupport::Bytes => Some(DataPointer::Sgl { granularity: 1 }),
        SglSupport::Dwords => Some(DataPointer::Sgl { granularity: 4 }),
        SglSupport::None | SglSupport::Reserved => None,
    };
    match (wanted, sgl) {
        (DataForm::Prp, _) | (DataForm::Auto, None) => Ok(prp),
        (DataForm::Sgl | DataForm::Auto, Some(sgl)) => Ok(sgl),
        (DataForm::Sgl, None) => Err(Error::Unsupported {
            device: controller.name().into(),
            what: "it takes no SGLs; use PRPs".into(),
        }),
    }
}

impl<L: Layer> Drop for Poller<L> {
    fn drop(&mut self) {
        for pair in self.core.queues.drain(..).flatten() {
            // Deleting a submission queue ends its commands (Base 2.0, section 5.7); only then may
            // the memory of its rings, lists and requests be used again.
            if pair.controller.delete_queue_pair(pair.qid).or_else(|_| pair.controller.quiesce()).is_err() {
                pair.controller.space().retire();
            }
        }
    }
}

impl<L: Layer> fmt::Debug for Poller<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("queues", &self.core.queues.len())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}
