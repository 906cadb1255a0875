//! A finished request, in the hands of the caller's closure.

use super::cx::Cx;
use super::layer::{Direct, Handle, Layer};
use super::{Poller, Rejected, Stacked, Target};
use crate::queue::Queue;
use crate::request::{Failure, InPlace, IoContainer, NodeId};

/// A finished request. Submit it again, take its container, or just drop it: then its memory is
/// freed.
///
/// It is where it was while it was in flight; [`resubmit`](Done::resubmit) after
/// [`set_lba`](Done::set_lba) moves nothing, and is the cheapest way to keep a queue busy.
#[derive(Debug)]
pub struct Done<'a, L: Layer = Direct> {
    /// The queue whose turn it is: it is not in its place in the poller.
    queue: &'a mut Queue,
    poller: &'a mut Poller<L>,
    /// `None` once it went another way than being dropped.
    io: Option<Handle>,
    here: u16,
}

impl<'a, L: Layer> Done<'a, L> {
    #[inline(always)]
    pub(super) fn new(queue: &'a mut Queue, poller: &'a mut Poller<L>, io: Handle, here: u16) -> Done<'a, L> {
        Done { queue, poller, io: Some(io), here }
    }

    fn cx(&mut self) -> (Cx<'_>, &mut [Stacked<L>]) {
        let Poller { core, layers, .. } = &mut *self.poller;
        (Cx { here: self.here, queue: self.queue, core }, layers)
    }

    /// Whether all of it succeeded; else the failure with the lowest LBA. A request that failed may
    /// have been carried out in part.
    #[inline]
    pub fn result(&self) -> Result<(), Failure> {
        let node = &self.poller.core.tree[self.node()];
        match node.failed {
            None => Ok(()),
            Some(failed) => Err(failed.by_lba(&node.io)),
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
        &self.poller.core.tree[self.node()].io
    }

    /// The container, to be changed in any way before it is submitted again, which then costs as much
    /// as for a new one. [`in_place`](Done::in_place) has the changes that cost nothing.
    pub fn io_mut(&mut self) -> &mut IoContainer {
        let id = self.node();
        let node = &mut self.poller.core.tree[id];
        node.wire = None;
        &mut node.io
    }

    /// The container, to be changed such that what was prepared for its commands stays in use.
    #[inline(always)]
    pub fn in_place(&mut self) -> InPlace<'_> {
        let id = self.node();
        let node = &mut self.poller.core.tree[id];
        InPlace { io: &mut node.io, wire: Some(&mut node.wire) }
    }

    /// Moves the container to another first block.
    #[inline(always)]
    pub fn set_lba(&mut self, lba: u64) {
        self.in_place().set_lba(lba);
    }

    /// The target that it was submitted to.
    pub fn target(&self) -> Target {
        self.poller.core.target(self.node())
    }

    /// Submits the container again, where it is, to the same target.
    #[inline(always)]
    pub fn resubmit(mut self) -> Result<(), Rejected> {
        if let Some(io) = &self.io
            && io.has_slot()
        {
            let node = &mut self.poller.core.tree[io.node];
            if !node.is_layered() && self.queue.restart(node, io.node, usize::from(io.slot)) {
                self.io = None;
                return Ok(());
            }
        }
        self.resubmit_changed()
    }

    /// Any container, as if it were new, but in the same node; or one that passes layers.
    fn resubmit_changed(&mut self) -> Result<(), Rejected> {
        let Some(io) = self.io.take() else { return Ok(()) };
        let (mut cx, layers) = self.cx();
        super::admit::start_again(&mut cx, layers, io)
    }

    /// Takes the container out.
    #[inline]
    pub fn take(mut self) -> IoContainer {
        let io = self.io.take();
        io.map_or_else(IoContainer::default, |io| self.remove(io))
    }

    /// Submits another container, to any target of the poller, and goes on with this one.
    pub fn submit(&mut self, target: Target, io: IoContainer) -> Result<(), Rejected> {
        let (mut cx, layers) = self.cx();
        super::admit::enter(&mut cx, layers, target, io, |_, _| {})
    }

    #[inline(always)]
    fn node(&self) -> NodeId {
        self.io.as_ref().map_or(NodeId::NONE, |io| io.node)
    }

    #[inline(always)]
    fn remove(&mut self, mut io: Handle) -> IoContainer {
        let (mut cx, _) = self.cx();
        cx.release_slot(&mut io);
        cx.core.tree.remove(io.node)
    }
}

impl<L: Layer> Drop for Done<'_, L> {
    fn drop(&mut self) {
        if let Some(io) = self.io.take() {
            drop(self.remove(io));
        }
    }
}
