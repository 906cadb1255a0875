//! The poller: one per thread. It owns queue pairs and the request tree, and drives both.
//!
//! Knows which queue a request goes to, and gives finished ones to the caller; must not know wire
//! formats. No interrupts, no lock, no allocation from submit to completion.
#![forbid(unsafe_code)]

mod done;
mod event;

use std::fmt;
use std::sync::Arc;

pub use self::done::Done;
use crate::controller::{Controller, Namespace};
use crate::memory::{Access, SharedArray};
use crate::queue::{DataPointer, Limits, MAX_DEPTH, Queue, QueueStats, Reachable, Refusal};
use crate::request::{Events, IoContainer, NodeId, Tree};
use crate::spec::identify::SglSupport;
use crate::{Error, Result};

/// Queue pairs of a poller, at most.
const MAX_QUEUES: usize = 1024;
/// Completion entries beyond what can be outstanding: a doorbell for every so many completions.
const SPARE_COMPLETIONS: u32 = 64;
/// The largest transfer of one command unless asked for otherwise: what one list page can express.
const MAX_TRANSFER: u64 = 2 << 20;

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
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions { depth: 128, data: DataForm::Auto, max_transfer: MAX_TRANSFER }
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
    poller: u32,
    index: u16,
}

/// Where requests go: a namespace, through a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    poller: u32,
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
pub struct Poller {
    queues: Vec<Option<Box<Line>>>,
    core: Core,
    turns: u64,
}

/// What all queues of a poller share.
#[derive(Debug)]
struct Core {
    tree: Tree,
    events: Events,
}

impl Core {
    /// Whether a target is one of this poller's.
    fn owns(&self, target: Target) -> bool {
        target.poller == self.tree.id()
    }
}

/// A queue and the controller it belongs to.
#[derive(Debug)]
struct Line {
    queue: Queue,
    qid: u16,
    controller: Arc<Controller>,
}

impl Poller {
    /// A poller with room for `requests` requests, on all its queues together, in flight or waiting.
    pub fn new(requests: u32) -> Poller {
        Poller {
            queues: Vec::new(),
            core: Core { tree: Tree::new(requests), events: Events::default() },
            turns: 0,
        }
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
        let line = Line::new(controller, options)?;
        self.queues.push(Some(Box::new(line)));
        Ok(QueueId { poller: self.core.tree.id(), index: self.queues.len() as u16 - 1 })
    }

    /// Makes a namespace of the queue's controller a target.
    pub fn add_namespace(&mut self, queue: QueueId, namespace: &Namespace) -> Result<Target> {
        if queue.poller != self.core.tree.id() {
            return Err(Error::InvalidInput("the queue belongs to another poller".into()));
        }
        let line = self.line(queue.index);
        if !line.controller.owns(namespace) {
            let what = format!("namespace {} belongs to another controller than the queue", namespace.nsid());
            return Err(Error::InvalidInput(what));
        }
        let block_size = namespace.usable().map_err(|what| line.unsupported(what))?;
        let controller = &line.controller;
        let limits = Limits::new(
            controller.identity(),
            controller.nvm_identity(),
            namespace.identity(),
            block_size.trailing_zeros(),
            line.max_transfer(),
        );
        if limits.transfer << limits.block_shift > line.max_transfer() {
            let what = format!("a block of {block_size} bytes exceeds the {} of MDTS", line.max_transfer());
            return Err(line.unsupported(what));
        }
        let namespace = line.queue.add_namespace(Reachable { nsid: namespace.nsid(), limits });
        Ok(Target { poller: queue.poller, queue: queue.index, namespace })
    }

    /// Hands a container over. The controller learns of it at the next [`poll`](Poller::poll), with
    /// everything else that was submitted by then. Once accepted it completes, whatever its size.
    #[allow(clippy::result_large_err)]
    pub fn submit(&mut self, target: Target, io: IoContainer) -> std::result::Result<(), Rejected> {
        let (queue, core, id) = self.enter(target, io)?;
        queue.start(&mut core.tree, id);
        Ok(())
    }

    /// Puts a container into the tree, from where its target's queue can start it.
    #[allow(clippy::result_large_err)]
    fn enter(
        &mut self,
        target: Target,
        io: IoContainer,
    ) -> std::result::Result<(&mut Queue, &mut Core, NodeId), Rejected> {
        let Poller { queues, core, .. } = self;
        if !core.owns(target) {
            return Err(Rejected { io, reason: Refusal::ForeignTarget });
        }
        let line = queues[usize::from(target.queue)].as_mut().expect("a queue is out only during poll");
        let id = enter(&mut line.queue, core, target.namespace, io)?;
        Ok((&mut line.queue, core, id))
    }

    /// Tells controllers what was submitted, and gives `f` every request that completed since the
    /// last time. Returns how many those were. Never blocks.
    #[inline]
    pub fn poll(&mut self, mut f: impl FnMut(Done<'_>)) -> usize {
        self.turns += 1;
        let mut count = 0;
        for index in 0..self.queues.len() {
            count += Turn::new(self, index).run(&mut f);
        }
        count
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
        self.find(queue).map(|line| line.queue.stats()).unwrap_or_default()
    }

    /// Commands that a queue pair has in flight at most: what was asked for, or what the
    /// controller's queues can hold. 0 for a queue pair of another poller.
    pub fn depth(&self, queue: QueueId) -> usize {
        self.find(queue).map_or(0, |line| line.queue.depth())
    }

    fn find(&self, queue: QueueId) -> Option<&Line> {
        let here = (queue.poller == self.core.tree.id()).then_some(usize::from(queue.index))?;
        self.queues.get(here)?.as_deref()
    }

    fn line(&mut self, queue: u16) -> &mut Line {
        self.queues[usize::from(queue)].as_mut().expect("a queue is out only during poll")
    }
}

/// Puts a container into the tree, from where it can be started.
#[allow(clippy::result_large_err)]
fn enter(
    queue: &mut Queue,
    core: &mut Core,
    namespace: u16,
    mut io: IoContainer,
) -> std::result::Result<NodeId, Rejected> {
    match queue.admit(&mut io, namespace) {
        Ok(()) => core.tree.insert(io, namespace).map_err(|io| Rejected { io, reason: Refusal::Full }),
        Err(reason) => Err(Rejected { io, reason }),
    }
}

/// One queue's turn within a poll. The queue is out of the poller, so that the caller's closure
/// can submit to it and to all others; it is put back even if the closure panics.
struct Turn<'a> {
    poller: &'a mut Poller,
    index: usize,
    line: Option<Box<Line>>,
}

impl<'a> Turn<'a> {
    #[inline(always)]
    fn new(poller: &'a mut Poller, index: usize) -> Turn<'a> {
        let line = poller.queues[index].take();
        Turn { poller, index, line }
    }

    #[inline(always)]
    fn run(&mut self, f: &mut impl FnMut(Done<'_>)) -> usize {
        let Some(line) = &mut self.line else { return 0 };
        let queue = &mut line.queue;
        let Poller { queues, core, .. } = &mut *self.poller;
        let mut count = 0;
        let mut idle = true;
        // What the closure submits is not rung before the loop ends, so an honest controller has no
        // more completions than this, and another one must not keep us here.
        for _ in 0..queue.most_completions() {
            match queue.next(&mut core.tree) {
                Ok(finished) => {
                    count += 1;
                    if !core.settled(&finished) {
                        f(Done::new(queue, core, queues, self.index as u16, finished));
                    }
                }
                Err(true) => {}
                Err(false) => break,
            }
            idle = false;
        }
        queue.finish_poll(&mut core.tree, idle);
        count
    }
}

impl Drop for Turn<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.poller.queues[self.index] = self.line.take();
    }
}

impl Line {
    fn new(controller: &Arc<Controller>, options: QueueOptions) -> Result<Line> {
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
        let pair = controller.create_queue_pair(sq_entries, cq_entries)?;
        let qid = pair.qid;
        let queue =
            Queue::new((qid, pair.sq, pair.cq), depth, pointer, lists, transfer, controller.space().id());
        Ok(Line { queue, qid, controller: Arc::clone(controller) })
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

impl Drop for Poller {
    fn drop(&mut self) {
        for line in self.queues.drain(..).flatten() {
            // Deleting a submission queue ends its commands (Base 2.0, section 5.7); only then may
            // the memory of its rings, lists and requests be used again.
            if line.controller.delete_queue_pair(line.qid).or_else(|_| line.controller.quiesce()).is_err() {
                line.controller.space().retire();
            }
        }
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("queues", &self.queues.len())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}
