//! A finished request, in the hands of the caller's closure.

use super::cx::Cx;
use super::layer::{Direct, Handle, Layer, NO_SLOT};
use super::others::Others;
use super::{Core, Rejected, Stacked, Target};
use crate::memory::MemoryChain;
use crate::queue::{Queue, Refusal};
use crate::request::{Awaited, Event, Failure, InPlace, IoContainer, NodeId};

/// A finished request. Submit it again, take its container, or just drop it: then its memory is
/// freed.
///
/// It is where it was while it was in flight; [`resubmit`](Done::resubmit) after
/// [`set_lba`](Done::set_lba) moves nothing, and is the cheapest way to keep a queue busy.
#[derive(Debug)]
pub struct Done<'a, L: Layer = Direct> {
    /// The queue whose turn it is.
    queue: &'a mut Queue,
    others: Others<'a>,
    core: &'a mut Core,
    layers: &'a mut Vec<Stacked<L>>,
    /// None once it went another way than being dropped.
    node: NodeId,
    /// The slot that it still has, of a command that carried all of it.
    slot: u32,
}

impl<'a, L: Layer> Done<'a, L> {
    #[inline(always)]
    pub(super) fn new(
        queue: &'a mut Queue,
        others: Others<'a>,
        core: &'a mut Core,
        layers: &'a mut Vec<Stacked<L>>,
        node: NodeId,
        slot: u32,
    ) -> Done<'a, L> {
        Done { queue, others, core, layers, node, slot }
    }

    /// Whether all of it succeeded; else the failure with the lowest LBA. A request that failed may
    /// have been carried out in part.
    #[inline(always)]
    pub fn result(&self) -> Result<(), Failure> {
        // Nobody was there who could have found fault with a command that succeeded.
        if L::NONE && self.slot != NO_SLOT {
            return Ok(());
        }
        let node = &self.core.tree[self.node];
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
    #[inline(always)]
    pub fn io(&self) -> &IoContainer {
        &self.core.tree[self.node].io
    }

    /// The container, to be changed in any way before it is submitted again, which then costs as much
    /// as for a new one. [`in_place`](Done::in_place) has the changes that cost nothing.
    #[inline(always)]
    pub fn io_mut(&mut self) -> &mut IoContainer {
        let id = self.node;
        // What is counted is what it was.
        if self.core.tree[id].counted {
            self.core.tally_whole(self.queue, id, self.slot);
        }
        let node = &mut self.core.tree[id];
        node.wire.forget();
        &mut node.io
    }

    /// The container, to be changed such that what was prepared for its commands stays in use.
    #[inline(always)]
    pub fn in_place(&mut self) -> InPlace<'_> {
        let id = self.node;
        let node = &mut self.core.tree[id];
        InPlace { io: &mut node.io, wire: Some(&mut node.wire) }
    }

    /// Moves the container to another first block.
    #[inline(always)]
    pub fn set_lba(&mut self, lba: u64) {
        self.in_place().set_lba(lba);
    }

    /// Exchanges the container's memory for other memory. If that is as long, what was prepared for its
    /// commands mostly stays in use.
    #[inline(always)]
    pub fn exchange_memory(&mut self, memory: &mut MemoryChain) {
        let node = &mut self.core.tree[self.node];
        if !node.io.memory_mut().exchange(memory) {
            node.wire.forget();
            if node.counted {
                self.core.tally_bytes(self.queue, self.node, self.slot, memory.len());
            }
        } else if !self.queue.point(node, self.slot, memory) {
            node.wire.forget();
        }
    }

    /// Takes the container out and puts another one in its place, for the same target: what [`take`](Done::take) and
    /// [`submit`](Done::submit) do, at the cost of [other memory](Done::exchange_memory), if both read, or both
    /// write, as many bytes, and do so alike. From now on this is about the new one, which is
    /// [submitted](Done::resubmit), or dropped, like any; `io` is the one that is finished, whose
    /// [result](Done::result) is to be looked at before.
    #[inline(always)]
    pub fn exchange(&mut self, io: &mut IoContainer) {
        let alike = self.core.tree[self.node].io.exchange_words(io);
        self.exchange_memory(io.memory_mut());
        if !alike {
            self.core.tree[self.node].wire.forget();
        }
    }

    /// The target that it was submitted to.
    pub fn target(&self) -> Target {
        self.core.target(self.node)
    }

    /// Submits the container again, where it is, to the same target.
    #[inline(always)]
    pub fn resubmit(mut self) -> Result<(), Rejected> {
        let id = std::mem::replace(&mut self.node, NodeId::NONE);
        let node = &mut self.core.tree[id];
        if (L::NONE || !node.is_layered()) && self.queue.restart(node, self.slot) {
            return Ok(());
        }
        if self.queue.is_gated() && (L::NONE || !node.is_layered()) {
            // Without a slot, nothing is left of what was prepared and checked, unless it was on this queue.
            let waits = match self.slot {
                NO_SLOT => self.queue.begin_again(&mut self.core.tree, id),
                slot => self.queue.hold_again(&mut self.core.tree, id, slot),
            };
            if waits {
                return Ok(());
            }
        }
        if !L::NONE && self.slot != NO_SLOT {
            let way = (&mut *self.queue, &mut self.others, &mut *self.core);
            if pass_again(way, self.layers, id, self.slot) {
                return Ok(());
            }
        }
        let mut cx = Cx::new(self.queue, &mut self.others, self.core);
        resubmit_changed(&mut cx, self.layers, id, self.slot)
    }

    /// The same, and its completion counts in an [open](crate::Poller::open_all) event.
    /// [Refused](crate::Refusal::Closed) by one that is not open.
    #[inline(always)]
    pub fn resubmit_into(mut self, all: Event) -> Result<(), Rejected> {
        let id = std::mem::replace(&mut self.node, NodeId::NONE);
        let Core { events, tree, .. } = &mut *self.core;
        let node = &mut tree[id];
        // From one event to the next, like the one before it. What has no slot has been counted, and has no event.
        let before = node.event;
        if events.pass(before, all, node.io.memory().len() as u64) {
            node.event = Some(all);
            if self.queue.restart_among_counted(node, self.slot) {
                return Ok(());
            }
            events.take_back(node.io.memory().len() as u64);
            node.event = before;
        }
        let mut cx = Cx::new(self.queue, &mut self.others, self.core);
        resubmit_counted(&mut cx, self.layers, (id, all), self.slot)
    }

    /// Leaves a request where it is, without its slot, that a future waits for: then it is one of these. Else it is
    /// dropped.
    #[inline(always)]
    pub(super) fn leave(mut self) -> Option<NodeId> {
        let id = self.node;
        let node = &mut self.core.tree[id];
        if node.awaited == Awaited::No {
            return None;
        }
        (node.awaited, node.in_flight) = (Awaited::Ready, 0);
        self.queue.keep_prepared(node);
        if self.slot != NO_SLOT {
            self.queue.release(self.slot);
        }
        self.node = NodeId::NONE;
        Some(id)
    }

    /// Takes the container out.
    #[inline(always)]
    pub fn take(mut self) -> IoContainer {
        let id = std::mem::replace(&mut self.node, NodeId::NONE);
        remove(self.queue, self.core, id, self.slot)
    }

    /// Submits another container, to any target of the poller, and goes on with this one.
    pub fn submit(&mut self, target: Target, io: IoContainer) -> Result<(), Rejected> {
        let mut cx = Cx::new(self.queue, &mut self.others, self.core);
        super::admit::enter(&mut cx, self.layers, target, io, |_, _, _| {})
    }
}

impl<L: Layer> Drop for Done<'_, L> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.node.is_none() {
            discard(self.queue, self.core, self.node, self.slot);
        }
    }
}

// What follows takes a `Done` apart, so that none need ever be in memory.

/// A request that is prepared, through layers that do nothing but look at it and move it. False if it is none: then
/// nothing was done.
#[inline(always)]
fn pass_again<L: Layer>(
    (queue, others, core): (&mut Queue, &mut Others<'_>, &mut Core),
    layers: &[Stacked<L>],
    id: NodeId,
    slot: u32,
) -> bool {
    let Some(Stacked { geometry, plain: Some(plain), .. }) = layers.get(usize::from(core.tree[id].layer))
    else {
        return false;
    };
    let node = &mut core.tree[id];
    // As many blocks went down before.
    let within = node.io.lba() <= geometry.blocks.wrapping_sub(node.io.blocks());
    if !within || !node.wire.is_prepared() || node.event.is_some() {
        return false;
    }
    plain.shift_down(node);
    // It still counts one command in flight, as that of the last time did.
    let restarted = queue.restart(node, slot);
    plain.begin(core, id);
    if !restarted {
        submit_below(&mut Cx::new(queue, others, core), plain.target(), id, slot);
    }
    true
}

#[cold]
#[inline(never)]
fn submit_below(cx: &mut Cx<'_>, target: Target, id: NodeId, slot: u32) {
    let node = &mut cx.core.tree[id];
    node.in_flight = 0;
    node.rewind_prepared();
    let io = Handle::with_slot(&cx.core.tree, id, slot, cx.here);
    cx.submit(target, io);
}

/// Any container, as if it were new, but in the same node; or one that passes layers.
#[inline(never)]
fn resubmit_changed<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    node: NodeId,
    slot: u32,
) -> Result<(), Rejected> {
    let Cx { here, queue, core, .. } = &mut *cx;
    if core.tree[node].counted {
        core.tally_whole(queue, node, slot);
    }
    let direct = L::NONE || !core.tree[node].is_layered();
    if queue.is_gated()
        && direct
        && slot != NO_SLOT
        && queue.restart_among_counted(&mut core.tree[node], slot)
    {
        return Ok(());
    }
    core.tree[node].in_flight = 0;
    let io = Handle::with_slot(&core.tree, node, slot, *here);
    super::admit::start_again(cx, layers, io)
}

/// The same for a request that an event counts. Where layers are between, it is counted when they have seen it:
/// it goes down without the slot, as one that is new.
#[inline(never)]
fn resubmit_counted<L: Layer>(
    cx: &mut Cx<'_>,
    layers: &mut [Stacked<L>],
    (id, all): (NodeId, Event),
    slot: u32,
) -> Result<(), Rejected> {
    let Cx { here, queue, core, .. } = &mut *cx;
    let node = &mut core.tree[id];
    let bytes = node.io.memory().len() as u64;
    if let (true, Some(before)) = (node.is_counted_whole() && slot != NO_SLOT, node.event)
        && core.events.pass_first(before, all, bytes)
    {
        node.event = Some(all);
        if queue.restart_among_counted(node, slot) {
            return Ok(());
        }
        core.events.take_back(bytes);
        node.event = Some(before);
    }
    core.tally_whole(queue, id, slot);
    if !core.events.enroll(all) {
        return Err(Rejected { io: remove(queue, core, id, slot), reason: Refusal::Closed });
    }
    let node = &mut core.tree[id];
    (node.event, node.counted) = (Some(all), true);
    if slot != NO_SLOT && node.is_counted_whole() && queue.restart_among_counted(node, slot) {
        queue.begin_counting();
        return Ok(());
    }
    node.in_flight = 0;
    let mut io = Handle::with_slot(&core.tree, id, slot, *here);
    cx.release_slot(&mut io);
    let again = super::admit::start_again(cx, layers, io);
    if again.is_err() {
        cx.core.events.withdraw(all);
    }
    again
}

/// Takes the container of a request out.
#[inline(always)]
fn remove(queue: &mut Queue, core: &mut Core, node: NodeId, slot: u32) -> IoContainer {
    let finished = &mut core.tree[node];
    finished.in_flight = 0;
    if finished.counted {
        core.tally_whole(queue, node, slot);
    }
    if slot != NO_SLOT {
        queue.release(slot);
    }
    core.tree.remove(node)
}

/// Takes a request out, and frees its memory. Small where it is called, so that a closure that may panic
/// does without a `Done` in memory as well.
#[cold]
#[inline(never)]
fn discard(queue: &mut Queue, core: &mut Core, node: NodeId, slot: u32) {
    drop(remove(queue, core, node, slot));
}
