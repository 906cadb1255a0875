//! The way in: what is wrong with a container is said before it is accepted, never after; then it is in the
//! tree, and started.
//!
//! Knows what a stack looks like from above; must not know what is in it.

use super::cx::Cx;
use super::layer::{Geometry, Handle, Layer};
use super::{Core, LAYERED, Rejected, Stacked, Target};
use crate::queue::{Refusal, check_range, check_space, count_blocks};
use crate::request::{IoContainer, NO_LAYER, NodeId, Operation};

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

/// Puts a container into the tree and starts it.
pub(super) fn enter<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    target: Target,
    mut io: IoContainer,
    accepted: impl FnOnce(&mut Core, NodeId),
) -> Result<(), Rejected> {
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
        cx.core.tree[id].block_shift = geometry.block_shift as u8;
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
pub(super) fn start_again<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    mut io: Handle,
) -> Result<(), Rejected> {
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
    let admitted = match node.wire.is_prepared() {
        true => check_range(&node.io, geometry.blocks),
        false => geometry.admit(&mut node.io),
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
