//! A finished request, in the hands of the caller's closure.

use super::{Core, Line, Rejected, Target};
use crate::queue::{Finished, Queue, Refusal};
use crate::request::{Failure, InPlace, IoContainer, NodeId};

/// A finished request. Submit it again, take its container, or just drop it: then its memory is
/// freed.
///
/// It is where it was while it was in flight; [`resubmit`](Done::resubmit) after
/// [`set_lba`](Done::set_lba) moves nothing, and is the cheapest way to keep a queue busy.
#[derive(Debug)]
pub struct Done<'a> {
    queue: &'a mut Queue,
    core: &'a mut Core,
    others: &'a mut [Option<Box<Line>>],
    here: u16,
    node: NodeId,
    slot: Option<usize>,
}

impl<'a> Done<'a> {
    #[inline(always)]
    pub(super) fn new(
        queue: &'a mut Queue,
        core: &'a mut Core,
        others: &'a mut [Option<Box<Line>>],
        here: u16,
        finished: Finished,
    ) -> Done<'a> {
        Done { queue, core, others, here, node: finished.node, slot: finished.slot }
    }

    /// Whether all of it succeeded; else the failure with the lowest LBA. A request that failed may
    /// have been carried out in part.
    #[inline]
    pub fn result(&self) -> Result<(), Failure> {
        match self.core.tree[self.node].failure {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }

    /// Dword 0 of the completion: the result of a raw command. Of a request that took several
    /// commands, that of the last one.
    pub fn dword0(&self) -> u32 {
        self.queue.dword0()
    }

    /// The container.
    #[inline]
    pub fn io(&self) -> &IoContainer {
        &self.core.tree[self.node].io
    }

    /// The container, to be changed in any way before it is submitted again, which then costs as much
    /// as for a new one. [`in_place`](Done::in_place) has the changes that cost nothing.
    pub fn io_mut(&mut self) -> &mut IoContainer {
        let node = &mut self.core.tree[self.node];
        node.wire = None;
        &mut node.io
    }

    /// The container, to be changed such that what was prepared for its commands stays in use.
    #[inline(always)]
    pub fn in_place(&mut self) -> InPlace<'_> {
        let node = &mut self.core.tree[self.node];
        InPlace { io: &mut node.io, wire: Some(&mut node.wire) }
    }

    /// Moves the container to another first block.
    #[inline(always)]
    pub fn set_lba(&mut self, lba: u64) {
        self.in_place().set_lba(lba);
    }

    /// The target that it was submitted to.
    pub fn target(&self) -> Target {
        let namespace = self.core.tree[self.node].namespace;
        Target { poller: self.core.tree.id(), queue: self.here, namespace }
    }

    /// Submits the container again, where it is, to the same target.
    #[inline(always)]
    #[allow(clippy::result_large_err)]
    pub fn resubmit(mut self) -> Result<(), Rejected> {
        let id = self.node;
        if let Some(slot) = self.slot
            && self.queue.restart(&mut self.core.tree[id], id, slot)
        {
            std::mem::forget(self);
            return Ok(());
        }
        self.resubmit_changed()
    }

    /// Any container, as if it were new, but in the same node.
    #[cold]
    #[allow(clippy::result_large_err)]
    fn resubmit_changed(&mut self) -> Result<(), Rejected> {
        let node = &mut self.core.tree[self.node];
        if let Err(reason) = self.queue.admit(&mut node.io, node.namespace) {
            return Err(Rejected { io: self.remove(), reason });
        }
        node.rewind();
        if let Some(slot) = self.slot.take() {
            self.queue.release(slot);
        }
        self.queue.start(&mut self.core.tree, std::mem::replace(&mut self.node, NodeId::NONE));
        Ok(())
    }

    /// Takes the container out.
    #[inline]
    pub fn take(mut self) -> IoContainer {
        self.remove()
    }

    /// Submits another container, to any target of the poller, and goes on with this one.
    #[allow(clippy::result_large_err)]
    pub fn submit(&mut self, target: Target, io: IoContainer) -> Result<(), Rejected> {
        if !self.core.owns(target) {
            return Err(Rejected { io, reason: Refusal::ForeignTarget });
        }
        let queue = match target.queue == self.here {
            true => &mut *self.queue,
            false => {
                let line = self.others[usize::from(target.queue)].as_mut();
                &mut line.expect("only the queue whose turn it is is out").queue
            }
        };
        let id = super::enter(queue, self.core, target.namespace, io)?;
        queue.start(&mut self.core.tree, id);
        Ok(())
    }

    #[inline(always)]
    fn remove(&mut self) -> IoContainer {
        if let Some(slot) = self.slot.take() {
            self.queue.release(slot);
        }
        self.core.tree.remove(std::mem::replace(&mut self.node, NodeId::NONE))
    }
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if !self.node.is_none() {
            drop(self.remove());
        }
    }
}
