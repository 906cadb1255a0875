//! The poller: one per thread. It owns queue pairs and the request tree, and drives both.
//!
//! Knows which queue a request goes to, and gives finished ones to the caller; must not know wire
//! formats. No interrupts, no lock, no allocation from submit to completion.
#![forbid(unsafe_code)]

mod admit;
mod cx;
mod done;
mod end;
mod event;
mod layer;
mod observe;
mod options;
mod others;
mod pair;
mod plain;
mod reactor;
mod recover;
mod turn;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

pub use self::cx::Cx;
pub use self::done::Done;
pub use self::layer::{Direct, Geometry, Handle, Layer, Name, Outline, Waiting};
pub use self::observe::BadRange;
use self::observe::Observers;
pub use self::options::{DataForm, QueueOptions};
use self::others::split;
use self::pair::Pair;
#[doc(hidden)]
pub use self::plain::Plain;
pub(crate) use self::plain::{LOG2S, Tally, What};
pub use self::reactor::{Finished, Reactor, Request};
use self::turn::Rest;
use crate::controller::{Controller, Namespace};
use crate::pci::Clock;
use crate::queue::{Limits, MAX_DEPTH, QueueStats, Refusal, Replay};
use crate::request::{Events, FRAMES, IoContainer, Line, Node, NodeId, Tree};
use crate::{Error, Result};

/// Queue pairs of a poller, at most.
const MAX_QUEUES: usize = 1024;
/// Polls from one look at the controllers' admin queues to the next: it costs some 50 instructions.
const ATTEND: u64 = 1024;

/// Bytes of a bounce buffer: the largest block as well.
const BOUNCE_BYTES: usize = 64 << 10;
/// Stands in a target for a queue: it is a stack of layers.
const LAYERED: u16 = u16::MAX;

/// Bytes that a poller keeps for each request that it has room for, in flight or waiting, as long as it has
/// no layers.
pub const REQUEST_BYTES: usize = size_of::<Node>();
/// Bytes that a queue pair keeps for each command in flight, besides its list page.
pub const SLOT_BYTES: usize = crate::queue::SLOT_BYTES;

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
    queues: Vec<Pair>,
    core: Core,
    layers: Vec<Stacked<L>>,
    rest: Rest,
    /// The numbers of the last poll that gave every queue its turn, and of the last that looked after
    /// controllers.
    looked: u64,
    attended: u64,
}

/// What all queues of a poller share.
#[derive(Debug)]
struct Core {
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
    /// What it does, if that is nothing but to look at requests and to move them.
    plain: Option<Plain>,
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
            tree: Tree::new(requests),
            events: Events::default(),
            observers: Observers::default(),
            surfaced: Line::EMPTY,
            again: false,
            wake_at: BinaryHeap::new(),
            clock: None,
            now: None,
        };
        let (queues, layers) = (Vec::new(), Vec::new());
        Poller { queues, core, layers, rest: Rest::NONE, looked: 0, attended: 0 }
    }

    /// Creates an I/O queue pair on a controller.
    pub fn add_queue(&mut self, controller: &Arc<Controller>, options: QueueOptions) -> Result<QueueId> {
        if self.queues.len() == MAX_QUEUES {
            return Err(Error::InvalidInput(format!("a poller has at most {MAX_QUEUES} queue pairs")));
        }
        if !(1..=MAX_DEPTH).contains(&options.depth) {
            let depth = options.depth;
            return Err(Error::InvalidInput(format!(
                "a queue depth of {depth} is not within 1 to {MAX_DEPTH}"
            )));
        }
        options.check()?;
        let index = self.queues.len() as u16;
        let pair = Pair::new(controller, options, index)?;
        self.core.clock.get_or_insert_with(|| controller.clock());
        self.queues.push(pair);
        Ok(QueueId { poller: self.core.tree.id(), index })
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
        let mut limits = Limits::new(
            controller.identity(),
            controller.nvm_identity(),
            namespace.identity(),
            block_size.trailing_zeros(),
            pair.max_transfer(),
        );
        limits.capacity = namespace.blocks();
        if limits.transfer << limits.block_shift > pair.max_transfer() {
            let what = format!("a block of {block_size} bytes exceeds the {} of MDTS", pair.max_transfer());
            return Err(pair.unsupported(what));
        }
        if block_size as usize > BOUNCE_BYTES {
            return Err(pair.unsupported(format!("a block of {block_size} bytes exceeds {BOUNCE_BYTES}")));
        }
        let namespace = pair.add_namespace(namespace, limits);
        Ok(Target { poller: queue.poller, queue: queue.index, namespace })
    }

    /// Says what becomes of commands that change what a namespace stores, if the controller is reset while they
    /// are in flight; without it, they are [reissued](Replay::Reissue). Refused for a stack of layers: it is
    /// each of the namespaces below that is asked about.
    pub fn set_replay(&mut self, target: Target, replay: Replay) -> Result<()> {
        if !self.core.owns(target) || target.queue == LAYERED {
            return Err(Error::InvalidInput("what is replayed is said of a namespace of this poller".into()));
        }
        self.pair(target.queue).queue.set_replay(target.namespace, replay);
        Ok(())
    }

    /// Makes a stack of layers a target.
    pub fn add_layer(&mut self, mut layer: L) -> Result<Target> {
        let geometry = layer.geometry();
        if geometry.poller != self.core.tree.id() {
            return Err(Error::InvalidInput("the layers stand on namespaces of another poller".into()));
        }
        if layer.frames() > FRAMES {
            let what = format!("the layers keep {} words with each request; {FRAMES} fit", layer.frames());
            return Err(Error::InvalidInput(what));
        }
        self.core.tree.reserve(layer.children(), layer.orphans());
        let plain = layer.plain();
        self.layers.push(Stacked { layer, geometry, plain });
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
        let queue = &self.queues.get(usize::from(target.queue))?.queue;
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
        self.enter(target, io, |_, _, _| {})
    }

    fn enter(
        &mut self,
        target: Target,
        io: IoContainer,
        accepted: impl FnOnce(&mut Events, &mut Node, NodeId),
    ) -> std::result::Result<(), Rejected> {
        if !self.core.owns(target) {
            return Err(Rejected { io, reason: Refusal::ForeignTarget });
        }
        // It may be long since the last poll.
        self.core.now = None;
        if L::NONE || target.queue != LAYERED {
            let Core { tree, events, .. } = &mut self.core;
            tree.attention.add_touched();
            let queue = &mut self.queues[usize::from(target.queue)].queue;
            return admit::begin(queue, tree, events, target, io, accepted);
        }
        self.core.tree.attention.add_touched();
        let (pair, mut others) = split(&mut self.queues, 0).expect("layers stand on a queue");
        let mut cx = Cx::new(&mut pair.queue, &mut others, &mut self.core);
        admit::enter(&mut cx, &mut self.layers, target, io, accepted)
    }

    /// Holds back what is submitted to a queue pair from now on, so that neighbours can share
    /// commands, until [`unplug`](Poller::unplug). What was submitted before goes on.
    pub fn plug(&mut self, queue: QueueId) {
        if self.find(queue).is_some() {
            self.pair(queue.index).queue.plug();
        }
    }

    /// Lets go what was held back, and tells the controller of it.
    pub fn unplug(&mut self, queue: QueueId) {
        if self.find(queue).is_some() {
            let tree = &mut self.core.tree;
            self.queues[usize::from(queue.index)].queue.unplug(tree);
            tree.attention.add_touched();
        }
    }

    /// Tells controllers what was submitted, and gives `f` every request that completed since the
    /// last time. Returns how many those were. Never blocks.
    #[inline]
    pub fn poll(&mut self, mut f: impl FnMut(Done<'_, L>)) -> usize {
        if !self.core.tree.attention.begin_quiet() {
            return self.full_poll(&mut f);
        }
        match self.queues.iter().position(|pair| pair.queue.has_news()) {
            None => 0,
            Some(first) if self.queues.len() == 1 => self.turn(first, &mut f),
            Some(first) => self.turns(first, &mut f),
        }
    }

    /// Gives a queue its turn, and then those behind it that have completions.
    #[inline(never)]
    fn turns(&mut self, first: usize, f: &mut impl FnMut(Done<'_, L>)) -> usize {
        let mut count = self.turn(first, f);
        for index in first + 1..self.queues.len() {
            // Once one has left more to do than to look for completions, all others have their turns as well.
            if !self.is_silent(index) || !self.core.tree.attention.is_quiet() {
                count += self.turn(index, f);
            }
        }
        count
    }

    /// Whether a queue is there and has no completion.
    fn is_silent(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(|pair| !pair.queue.has_news())
    }

    /// Gives every queue its turn.
    #[inline(never)]
    fn full_poll(&mut self, f: &mut impl FnMut(Done<'_, L>)) -> usize {
        self.core.now = None;
        let polls = self.begin_full();
        let mut count = 0;
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            let (before, idle) = (queue.queue.progress().1, queue.idle);
            let found = self.turn(index, f);
            count += found;
            // Where something was found, it is not known for how many polls there was nothing before.
            if (found, self.queues[index].queue.progress()) == (0, (0, before)) {
                self.queues[index].rest(&mut self.core, idle.saturating_add(polls));
            }
        }
        if self.core.events.next_deadline().is_none() {
            self.core.tree.attention.end_full();
        }
        count
    }

    /// Looks after events of the controllers.
    #[cold]
    fn attend(&mut self) {
        for pair in &mut self.queues {
            pair.attend(&mut self.core.tree);
        }
    }

    /// A poll that gives all queues a turn: the polls since the last one.
    #[cold]
    #[inline(never)]
    fn begin_full(&mut self) -> u32 {
        self.core.tree.attention.begin_full();
        let now = self.polls();
        let polls = now - std::mem::replace(&mut self.looked, now);
        if now - self.attended >= ATTEND {
            self.attended = now;
            self.attend();
        }
        if self.core.events.next_deadline().is_some() {
            self.expire();
        }
        polls as u32
    }

    /// Lets others run: after a poll that found nothing, where there is nothing else to do.
    fn pause(&self) {
        for pair in &self.queues {
            pair.controller.pause();
        }
    }

    /// Requests in the tree: in flight or waiting.
    pub fn outstanding(&self) -> usize {
        self.core.tree.len()
    }

    /// How often [`poll`](Poller::poll) was called.
    pub fn polls(&self) -> u64 {
        self.core.tree.attention.polls()
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
        self.queues.get(here)
    }

    fn pair(&mut self, queue: u16) -> &mut Pair {
        &mut self.queues[usize::from(queue)]
    }
}

impl<L: Layer> Drop for Poller<L> {
    fn drop(&mut self) {
        for pair in self.queues.drain(..) {
            // Deleting a submission queue ends its commands (Base 2.0, section 5.7); only then may
            // the memory of its rings, lists and requests be used again.
            if pair.leave().is_err() {
                pair.controller.space().retire();
            }
        }
    }
}

impl<L: Layer> fmt::Debug for Poller<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("queues", &self.queues.len())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}
