//! Requests whose completion is an event, to be waited for alone or with others.
//!
//! Knows which request an event stands for; must not know how events are decided.

use std::time::Duration;

use super::cx::Cx;
use super::layer::{Handle, NO_SLOT};
use super::others::split;
use super::{Core, Done, Layer, Poller, Rejected, Target, admit};
use crate::queue::{Queue, Refusal};
use crate::request::{Awaited, BadEvent, Event, Failure, IoContainer, Moment, Node, NodeId, State, Verdict};

impl<L: Layer> Poller<L> {
    /// Hands a container over like [`submit`](Poller::submit); its completion is an event instead of
    /// a call of the closure. The container stays in the poller, and takes a place there, until it
    /// is [claimed](Poller::claim) or its event [released](Poller::release).
    ///
    /// ```
    /// # use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
    /// # use kiovec_emulator::{Config, Emulator};
    /// # use std::time::Duration;
    /// # let emulator = Emulator::spawn(Config::parse("media=ram")?)?;
    /// # let space = DmaSpace::new()?;
    /// # let controller = Controller::open(emulator.function(), &space)?;
    /// # let mut poller = Poller::new(64);
    /// # let queue = poller.add_queue(&controller, QueueOptions::default())?;
    /// # let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
    /// let a = poller.request(disk, IoContainer::read(0, space.allocate(1 << 20)?))?;
    /// let b = poller.request(disk, IoContainer::read(9999, space.allocate(4096)?))?;
    /// let both = poller.all(&[a, b])?;
    /// let verdict = poller.wait(both, Duration::from_secs(30), |_| {}).expect("in time");
    /// assert!(verdict.success);
    /// for event in [a, b] {
    ///     let (io, result) = poller.claim(event).expect("settled");
    ///     assert_eq!(result, Ok(()));
    /// }
    /// poller.release(both);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request(&mut self, target: Target, io: IoContainer) -> Result<Event, Rejected> {
        let mut event = None;
        self.enter(target, io, |events, node, id| {
            node.event = Some(*event.insert(events.leaf(id)));
        })?;
        Ok(event.expect("what was accepted has its event"))
    }

    /// Hands a container over for a future to wait for: it stays where it is until that [takes](Poller::take_ready)
    /// it.
    pub(super) fn submit_awaited(&mut self, target: Target, io: IoContainer) -> Result<NodeId, Rejected> {
        let mut request = NodeId::NONE;
        self.enter(target, io, |_, node, id| {
            node.awaited = Awaited::Pending;
            request = id;
        })?;
        Ok(request)
    }

    /// The container of a request that a future waits for, and its result, if it has finished.
    #[inline]
    pub(super) fn take_ready(&mut self, request: NodeId) -> Option<(IoContainer, Result<(), Failure>)> {
        if !self.is_ready(request) {
            return None;
        }
        let result = self.core.tree[request].failure().map_or(Ok(()), Err);
        Some((self.core.tree.remove(request), result))
    }

    /// Whether a request has finished that a future waits for: if so, the future gets it now.
    #[inline]
    pub(super) fn is_ready(&mut self, request: NodeId) -> bool {
        let ready = self.core.tree[request].awaited == Awaited::Ready;
        if ready {
            self.hand_over(request);
        }
        ready
    }

    /// A request that a future has waited for, if it has finished.
    pub(super) fn ready(&mut self, request: NodeId) -> Option<&mut Node> {
        Some(&mut self.core.tree[request]).filter(|node| node.awaited == Awaited::Ready)
    }

    /// Somebody gets a request that has stayed here.
    #[inline]
    fn hand_over(&mut self, request: NodeId) {
        let node = &mut self.core.tree[request];
        if let (true, Some(pair)) = (node.doubtful, self.queues.get(usize::from(node.queue))) {
            node.doubtful = false;
            pair.queue.find_late(node.namespace);
        }
    }

    /// Submits a request again, where it is, that a future has waited for. If it is refused, it is no more.
    pub(super) fn resubmit_ready(&mut self, request: NodeId) -> Result<(), Rejected> {
        let tree = &mut self.core.tree;
        tree.attention.add_touched();
        let node = &mut tree[request];
        (node.awaited, node.doubtful) = (Awaited::Pending, false);
        if let (false, Some(pair)) = (node.is_layered(), self.queues.get_mut(usize::from(node.queue)))
            && pair.queue.start_again(tree, request)
        {
            return Ok(());
        }
        self.core.now = None;
        let (pair, mut others) = split(&mut self.queues, 0).expect("it went down on a queue");
        let io = Handle::new(&self.core.tree, request);
        let mut cx = Cx::new(&mut pair.queue, &mut others, &mut self.core);
        admit::start_again(&mut cx, &mut self.layers, io)
    }

    /// Makes an event that has settled the request again that a future waits for; which one that is.
    pub(super) fn unmake_event(&mut self, event: Event) -> Option<NodeId> {
        let State::Settled(..) = self.state(event)? else { return None };
        let request = self.core.events.request(event)?;
        self.core.events.release(event);
        self.core.forget_observers(request);
        let node = &mut self.core.tree[request];
        (node.event, node.awaited) = (None, Awaited::Ready);
        self.hand_over(request);
        Some(request)
    }

    /// Makes a request that a future waits for an event instead.
    #[cold]
    pub(super) fn make_event(&mut self, request: NodeId) -> Event {
        let Core { tree, events, .. } = &mut self.core;
        let event = events.leaf(request);
        let node = &mut tree[request];
        node.event = Some(event);
        if std::mem::replace(&mut node.awaited, Awaited::No) == Awaited::Ready {
            let failure = node.failure();
            let bytes = if failure.is_none() { node.io.memory().len() as u64 } else { 0 };
            events.settle(event, bytes, failure);
        } else if let Some(pair) = self.queues.get_mut(usize::from(node.queue)) {
            pair.queue.watch_event(tree, request);
        }
        event
    }

    /// Succeeds when all of `events` did, fails with the first that fails. Of none, it succeeds at once.
    pub fn all(&mut self, events: &[Event]) -> Result<Event, BadEvent> {
        self.core.events.all(events)
    }

    /// An `all` of requests that are yet to come: those that are submitted
    /// [into](Poller::submit_into) it, until it is [closed](Poller::close). It succeeds when it is closed and all of
    /// them did, fails with the first that fails, and settles when it is closed and all have completed.
    ///
    /// Its requests are no events of their own: each goes to the closure as well, when it has been counted, and
    /// [can be submitted again](Done::resubmit_into) in place. So an I/O costs little more than without it.
    ///
    /// ```
    /// # use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
    /// # use kiovec_emulator::{Config, Emulator};
    /// # use std::time::Duration;
    /// # let emulator = Emulator::spawn(Config::parse("media=ram")?)?;
    /// # let space = DmaSpace::new()?;
    /// # let controller = Controller::open(emulator.function(), &space)?;
    /// # let mut poller = Poller::new(64);
    /// # let queue = poller.add_queue(&controller, QueueOptions::default())?;
    /// # let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
    /// let first = poller.open_all();
    /// for lba in 0..8 {
    ///     poller.submit_into(first, disk, IoContainer::read(lba, space.allocate(4096)?))?;
    /// }
    /// poller.close(first);
    /// // The next round goes down while the first comes up.
    /// let second = poller.open_all();
    /// let limit = Duration::from_secs(30);
    /// let verdict = poller.wait(first, limit, |mut done| {
    ///     done.set_lba(done.io().lba() + 8);
    ///     done.resubmit_into(second).expect("within the namespace");
    /// });
    /// assert!(verdict.expect("in time").success);
    /// poller.close(second);
    /// assert!(poller.wait(second, limit, |done| drop(done)).expect("in time").success);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_all(&mut self) -> Event {
        self.core.events.open_all()
    }

    /// Hands a container over like [`submit`](Poller::submit); its completion counts in an
    /// [open](Poller::open_all) event as well, before the closure is called.
    /// [Refused](crate::Refusal::Closed) by one that is not open.
    pub fn submit_into(&mut self, all: Event, target: Target, io: IoContainer) -> Result<(), Rejected> {
        if !self.core.events.enroll(all) {
            return Err(Rejected { io, reason: Refusal::Closed });
        }
        let entered = self.enter(target, io, |_, node, _| (node.event, node.counted) = (Some(all), true));
        if entered.is_err() {
            self.core.events.withdraw(all);
        }
        entered
    }

    /// An [open](Poller::open_all) event takes no more requests. So does one that is cancelled, whose deadline
    /// passes, or that is released.
    pub fn close(&mut self, all: Event) {
        self.core.events.close(all);
    }

    /// Succeeds with the first of `events` that does, fails when all did. Of none, it fails at once.
    pub fn any(&mut self, events: &[Event]) -> Result<Event, BadEvent> {
        self.core.events.any(events)
    }

    /// Succeeds when `k` of `events` did, fails when that can no longer be.
    pub fn at_least(&mut self, k: usize, events: &[Event]) -> Result<Event, BadEvent> {
        self.core.events.at_least(k, events)
    }

    /// What is known of an event; `None` if it was claimed or released.
    pub fn state(&self, event: Event) -> Option<State> {
        self.core.events.state(event)
    }

    /// Polls until an event is resolved, `limit` at most; `f` gets what completes meanwhile and is
    /// no event. `None` if time is up first, or if the event was claimed or released.
    ///
    /// Resolved is not settled: other requests below may still be under way.
    pub fn wait(&mut self, event: Event, limit: Duration, mut f: impl FnMut(Done<'_, L>)) -> Option<Verdict> {
        let end = self.core.clock.as_ref()?.now().saturating_add(limit);
        loop {
            match self.state(event)? {
                State::Resolved(verdict) | State::Settled(verdict, _) => return Some(verdict),
                State::Pending => {}
            }
            // The time is read first: whoever was held up looks once more before giving up.
            let late = self.core.clock.as_ref()?.now() > end;
            let idle = self.poll(&mut f) == 0;
            if late && self.state(event)? == State::Pending {
                return None;
            }
            if idle {
                self.pause();
            }
        }
    }

    /// Takes the container of a request that is settled, with its result, and releases the event.
    /// `None` while it is not settled, or for an event that stands for others.
    pub fn claim(&mut self, event: Event) -> Option<(IoContainer, Result<(), Failure>)> {
        let State::Settled(_, totals) = self.state(event)? else { return None };
        let node = self.core.events.request(event)?;
        self.core.events.release(event);
        self.core.forget_observers(node);
        self.hand_over(node);
        Some((self.core.tree.remove(node), totals.first.map_or(Ok(()), Err)))
    }

    /// Looks at an event no more. Its request, if it is one, goes on, and its memory is freed when it
    /// is settled; what the event does for events made from it goes on as well.
    pub fn release(&mut self, event: Event) {
        if self.claim(event).is_none() {
            self.core.forget_observer(event);
            self.core.events.release(event);
        }
    }

    /// Tells of an event's moments by `token`, a number below 2^63, from now on. An event has one token.
    ///
    /// # Panics
    /// If the token is larger.
    pub fn notify(&mut self, event: Event, token: u64) {
        assert!(token < 1 << 63, "a token is below 2^63");
        self.core.events.notify(event, token);
    }

    /// The next moment of an event that was to be told of, in the order in which they came.
    pub fn next_moment(&mut self) -> Option<(u64, Moment)> {
        self.core.events.next_moment()
    }
}

impl Core {
    /// Counts a request that has completed, and moved so many bytes, in the event that waits for it.
    #[cold]
    pub(super) fn tally(&mut self, id: NodeId, bytes: u64) {
        let node = &mut self.tree[id];
        node.counted = false;
        let Some(all) = node.event.take() else { return };
        let failure = node.failure();
        self.events.tally(all, if failure.is_none() { bytes } else { 0 }, failure);
    }

    /// Counts a request whose only command has succeeded, if an event waits for it, and which goes another way
    /// than down again into one.
    #[cold]
    #[inline(never)]
    pub(super) fn tally_whole(&mut self, queue: &mut Queue, id: NodeId, slot: u32) {
        self.tally_bytes(queue, id, slot, self.tree[id].io.memory().len());
    }

    /// The same, where other memory than that which it moved, of so many bytes, is in its place already.
    #[cold]
    #[inline(never)]
    pub(super) fn tally_bytes(&mut self, queue: &mut Queue, id: NodeId, slot: u32, bytes: usize) {
        if self.tree[id].counted {
            self.tally(id, bytes as u64);
            if slot != NO_SLOT {
                queue.end_counting();
            }
        }
    }

    /// Settles the event that a finished request is, if it is one.
    #[cold]
    pub(super) fn settled(&mut self, id: NodeId) -> bool {
        let node = &mut self.tree[id];
        let bytes = node.io.memory().len() as u64;
        if let Some(event) = node.event
            && node.failed.is_none()
            && !node.counted
            && !node.is_observed_or_forfeited()
            && self.events.request(event).is_some()
        {
            self.events.settle(event, bytes, None);
            return true;
        }
        let failure = node.failure();
        if node.observed {
            self.finish_observers(id, failure);
        }
        self.tree[id].bury();
        let Some(event) = self.tree[id].event else { return false };
        if self.tree[id].counted {
            self.tally(id, bytes);
            return false;
        }
        if self.events.request(event).is_none() {
            // Nobody will claim it.
            self.forget_observers(id);
            drop(self.tree.remove(id));
        }
        self.events.settle(event, if failure.is_none() { bytes } else { 0 }, failure);
        true
    }
}
