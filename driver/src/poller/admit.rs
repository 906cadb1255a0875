//! The way in: what is wrong with a container is said before it is accepted, never after; then it is in the
//! tree, and started.
//!
//! Knows what a stack looks like from above; must not know what is in it.

use super::cx::Cx;
use super::layer::{Geometry, Handle, Layer};
use super::{Core, LAYERED, Rejected, Stacked, Target};
use crate::queue::{Queue, Refusal, check_range, check_space, count_blocks};
use crate::request::{Events, IoContainer, NO_LAYER, NO_QUEUE, Node, NodeId, Operation, Tree};

impl Geometry {
    /// Checks a container and completes what the caller left open: the number of blocks.
    pub(super) fn admit(&self, io: &mut IoContainer) -> Result<(), Refusal> {
        let operation = io.operation();
        match operation {
            Operation::WriteZeroes if self.write_zeroes => {}
            Operation::Deallocate if self.deallocate => {}
            Operation::WriteZeroes | Operation::Deallocate | Operation::Raw => {
                return Err(Refusal::NotSupported(operation));
            }
            Operation::Read | Operation::Write | Operation::Flush => {}
        }
        count_blocks(io, 1 << self.block_shift)?;
        check_space(io, self.space)?;
        check_range(io, self.blocks)
    }
}

impl<L: Layer> Stacked<L> {
    /// Sends a request down.
    #[inline(always)]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) {
        if let Some(plain) = &self.plain {
            plain.down(cx.core, io.node);
            return cx.submit(plain.target(), io);
        }
        if let Some(io) = self.layer.submit(cx, io) {
            cx.surface(io);
        }
    }

    /// Takes one up that has finished at the bottom: `Some` if that finishes a request.
    #[inline(always)]
    pub(super) fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        if let Some(plain) = &self.plain {
            plain.up(cx.core, io.node);
            return Some(io);
        }
        let io = self.layer.complete(cx, io)?;
        cx.check(&io);
        Some(io)
    }
}

/// Puts a container into the tree and starts it.
#[inline(always)]
pub(super) fn enter<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    target: Target,
    io: IoContainer,
    accepted: impl FnOnce(&mut Events, &mut Node, NodeId),
) -> Result<(), Rejected> {
    if !cx.core.owns(target) {
        return Err(Rejected { io, reason: Refusal::ForeignTarget });
    }
    if !L::NONE && target.queue == LAYERED {
        return enter_layered(cx, &mut layers[usize::from(target.namespace)], target.namespace, io, accepted);
    }
    let Core { tree, events, .. } = &mut *cx.core;
    let queue = match target.queue == cx.here {
        true => &mut *cx.queue,
        false => cx.others.queue(tree, target.queue),
    };
    begin(queue, tree, events, target, io, accepted)
}

/// Hands a container to a namespace through its queue.
#[inline(always)]
pub(super) fn begin(
    queue: &mut Queue,
    tree: &mut Tree,
    events: &mut Events,
    target: Target,
    io: IoContainer,
    accepted: impl FnOnce(&mut Events, &mut Node, NodeId),
) -> Result<(), Rejected> {
    let Some(id) = tree.place() else { return Err(Rejected { io, reason: Refusal::Full }) };
    tree.fill(id, io, NO_LAYER);
    tree[id].queue = target.queue;
    if let Err(reason) = queue.admit(tree, id, target.namespace) {
        return Err(Rejected { io: tree.remove(id), reason });
    }
    accepted(events, &mut tree[id], id);
    queue.start(tree, id);
    Ok(())
}

/// Hands a container to a stack of layers.
#[inline(never)]
fn enter_layered<L: Layer>(
    cx: &mut Cx<'_>,
    stacked: &mut Stacked<L>,
    number: u16,
    mut io: IoContainer,
    accepted: impl FnOnce(&mut Events, &mut Node, NodeId),
) -> Result<(), Rejected> {
    if let Err(reason) = stacked.geometry.admit(&mut io) {
        return Err(Rejected { io, reason });
    }
    let Core { tree, events, .. } = &mut *cx.core;
    let Some(id) = tree.place() else { return Err(Rejected { io, reason: Refusal::Full }) };
    tree.fill(id, io, number);
    tree[id].block_shift = stacked.geometry.block_shift as u8;
    tree[id].queue = NO_QUEUE;
    accepted(events, &mut tree[id], id);
    let io = Handle::new(tree, id);
    stacked.submit(cx, io);
    Ok(())
}

/// Starts a request once more.
#[inline(always)]
pub(super) fn start_again<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    mut io: Handle,
) -> Result<(), Rejected> {
    let id = io.node;
    let target = cx.core.target(id);
    let node = &mut cx.core.tree[id];
    let Some(stacked) = layers.get_mut(usize::from(node.layer)) else {
        cx.release_slot(&mut io);
        cx.core.tree[id].rewind();
        if let Err(reason) = cx.admit(target, id) {
            return Err(Rejected { io: cx.core.tree.remove(id), reason });
        }
        cx.start(target, id);
        return Ok(());
    };
    let admitted = match node.wire.is_prepared() {
        true => check_range(&node.io, stacked.geometry.blocks),
        false => stacked.geometry.admit(&mut node.io),
    };
    if let Err(reason) = admitted {
        cx.release_slot(&mut io);
        return Err(Rejected { io: cx.core.tree.remove(id), reason });
    }
    node.rewind_prepared();
    stacked.submit(cx, io);
    Ok(())
}
