//! A queue pair of a poller, and the controller that it belongs to.
//!
//! Knows how a queue pair is set up for a controller, and when the controller is lost; must not know
//! requests.

use std::sync::Arc;

use super::recover::Timeout;
use super::{BOUNCE_BYTES, Core, DataForm, QueueOptions};
use crate::controller::{Controller, Era, Live, Namespace, NamespaceState};
use crate::memory::{Access, SharedArray};
use crate::queue::{DataPointer, Gone, Limits, Queue, Reachable};
use crate::request::Tree;
use crate::spec::identify::SglSupport;
use crate::{Error, Result};

/// Completion entries beyond what can be outstanding: a doorbell for every so many completions.
const SPARE_COMPLETIONS: u32 = 64;
/// Idle polls with commands in flight after which the controller's status is read: it costs about as
/// much as a hundred polls.
const IDLE_POLLS: u32 = 1 << 16;
/// Bounce buffers of a queue pair, at most.
const BOUNCE_BUFFERS: usize = 4;

/// A queue and the controller it belongs to. The queue comes first, so that one address is that of both: it takes a
/// register less from each turn.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Pair {
    pub(super) queue: Queue,
    pub(super) qid: u16,
    /// Which of the poller's queue pairs it is.
    pub(super) index: u16,
    pub(super) controller: Arc<Controller>,
    /// Polls in a row that found nothing while commands were in flight.
    pub(super) idle: u32,
    /// The namespaces of the queue, by their number.
    namespaces: Vec<Arc<Live>>,
    /// What the controller's epoch was when they were last looked at.
    epoch: u64,
    pub(super) timeout: Timeout,
    /// The era of the controller that its queue pair is of.
    pub(super) era: Era,
    /// The reset that it has stopped for.
    pub(super) stopped: Option<Era>,
    /// Nothing has completed since the last reset.
    pub(super) unproved: bool,
}

impl Pair {
    pub(super) fn new(controller: &Arc<Controller>, options: QueueOptions, index: u16) -> Result<Pair> {
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
        // Before the queue pair is there: then no reset of it is missed.
        let era = controller.era();
        // Last: the controller knows of the queue pair from then on.
        let pair = controller.create_queue_pair(sq_entries, cq_entries)?;
        let qid = pair.qid;
        let ids = (qid, pair.sq, pair.cq);
        let space = controller.space().id();
        let mut queue = Queue::new(ids, depth, pointer, lists, bounce, transfer, space);
        queue.set_merging(options.merge);
        queue.set_gathering(options.merge && options.gather);
        queue.set_retry_delays(controller.retry_delays());
        let (namespaces, epoch) = (Vec::new(), controller.namespaces_epoch());
        let timeout = Timeout::new(options.command_timeout);
        let controller = Arc::clone(controller);
        let (stopped, unproved) = (None, false);
        Ok(Pair {
            queue,
            qid,
            index,
            controller,
            idle: 0,
            namespaces,
            epoch,
            timeout,
            era,
            stopped,
            unproved,
        })
    }

    pub(super) fn add_namespace(&mut self, namespace: &Namespace, limits: Limits) -> u16 {
        self.namespaces.push(Arc::clone(&namespace.live));
        self.queue.add_namespace(Reachable { nsid: namespace.nsid(), limits }, namespace.live.cache())
    }

    /// Goes on with the controller's events, and takes over what they changed of namespaces.
    pub(super) fn attend(&mut self, tree: &mut Tree) {
        self.controller.attend();
        self.recover(tree);
        let epoch = self.controller.namespaces_epoch();
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        for (number, live) in self.namespaces.iter().enumerate() {
            match live.state() {
                NamespaceState::Active => self.queue.resize(tree, number as u16, live.blocks()),
                NamespaceState::Detached => self.queue.close(tree, number as u16, Gone::Detached),
                NamespaceState::Reformatted => self.queue.close(tree, number as u16, Gone::Reformatted),
            }
        }
    }

    /// So many polls in a row have found nothing.
    pub(super) fn rest(&mut self, core: &mut Core, idle: u32) {
        self.idle = idle;
        self.queue.rest(idle);
        if idle >= IDLE_POLLS {
            self.idle = 0;
            // No command of a controller that is gone ever completes.
            if self.queue.is_busy() {
                self.check(core);
            }
        }
    }

    /// Fails everything if the controller is gone; has it reset if it has failed.
    #[cold]
    fn check(&mut self, core: &mut Core) {
        if self.queue.is_suspended() {
            return;
        }
        let Err(error) = self.controller.check() else { return };
        if !matches!(error, Error::Gone { .. } | Error::Disconnected { .. }) {
            return self.controller.recover();
        }
        // One that is gone reaches nothing.
        let reaches_nothing = self.controller.quiesce().is_ok() || matches!(error, Error::Gone { .. });
        if !reaches_nothing {
            self.controller.space().retire();
        }
        self.queue.fail_all(&mut core.tree, reaches_nothing);
    }

    pub(super) fn max_transfer(&self) -> u64 {
        self.queue.max_transfer()
    }

    pub(super) fn unsupported(&self, what: String) -> Error {
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
