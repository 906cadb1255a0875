//! Compound events: all, any, or at least k of a set of events (docs/architecture.md).
//!
//! Every event has two moments. *Resolved*: success or failure is known. *Settled*: everything below
//! has completed, no DMA is outstanding, the totals are final. Each comes exactly once, resolved
//! first. Pure logic: knows counts and edges; must not know what a leaf stands for.

mod arena;
mod deadline;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use self::arena::{Arena, Edge, Node};
use self::deadline::Deadlines;
use super::{Failure, NodeId};

/// Names an event. A handle to an event that was released names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Event {
    index: u32,
    generation: NonZeroU32,
}

impl Event {
    /// No other event has it as long as nobody releases this one.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    /// As one number, which is not 0.
    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.generation.get()) << 32 | u64::from(self.index)
    }

    fn from_word(word: u64) -> Option<Event> {
        NonZeroU32::new((word >> 32) as u32).map(|generation| Event { index: word as u32, generation })
    }
}

/// What is known of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Neither success nor failure is certain.
    Pending,
    /// Success or failure is certain; something below is still under way.
    Resolved(Verdict),
    /// Everything below has completed.
    Settled(Verdict, Totals),
}

/// How an event was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Success or failure.
    pub success: bool,
    /// What decided it.
    pub reason: Reason,
    /// The event to which that happened: this one, or one below. None where there was nothing to wait
    /// for.
    pub decided_by: Option<Event>,
}

/// What decides an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A leaf completed, or there was nothing to wait for.
    Completion,
    /// Its owner cancelled an event: a failure.
    Cancelled,
    /// The deadline of an event passed: a failure.
    Expired,
}

/// Sums over everything below an event. A leaf that is reached by two ways counts twice.
///
/// A request that failed counts no bytes, and one that was ended early has failed, even if all of it was
/// carried out. A sum that is too large stays at the largest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes that leaves moved.
    pub bytes: u64,
    /// Leaves that failed.
    pub failed: u32,
    /// Of their failures, the one with the lowest LBA.
    pub first: Option<Failure>,
}

/// A moment of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Success or failure became known.
    Resolved,
    /// Everything below has completed.
    Settled,
}

/// What cannot be an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadEvent {
    /// More successes are asked for than there are events.
    #[error("{wanted} of {given} events can never succeed")]
    TooMany {
        /// k.
        wanted: usize,
        /// n.
        given: usize,
    },
    /// A handle that names nothing any more.
    #[error("event {0} of the list was released")]
    Released(usize),
}

/// Which moments of an event have just come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct News {
    resolved: bool,
    settled: bool,
}

impl News {
    const NONE: News = News { resolved: false, settled: false };
}

/// Requests that succeeded and went down again, from the care of one event to that of another: both are told of
/// all of them at once.
#[derive(Debug, Default)]
struct Round {
    /// The events, by their words.
    entering: u64,
    /// How many have entered the one, and left the other.
    entered: u32,
    leaving: u64,
    /// Bytes that those moved that left.
    bytes: u64,
}

/// All events of a poller.
#[derive(Debug, Default)]
pub(crate) struct Events {
    arena: Arena,
    /// By index, the failure with the lowest LBA, of those nodes that count any. Apart from the nodes,
    /// since most do not.
    failures: Vec<Failure>,
    deadlines: Deadlines,
    /// Compound events of which those above have not been told yet. First in, first out: what resolved
    /// before it settled goes up in this order. None is in it more than once for each moment.
    work: VecDeque<(u32, News)>,
    /// What was counted since the last flush.
    round: Round,
    /// Moments that came, for whoever waits.
    fired: VecDeque<(u64, Moment)>,
    /// Events of which a moment came, by index, for whoever waits for them by index.
    watched: VecDeque<u32>,
}

/// Owners' numbers are below it: above, it is an event's index that is noted.
const WATCHED: u64 = 1 << 63;

impl Events {
    /// An event that has nothing below, and is settled by [`settle`](Events::settle). It stands for a
    /// request, or for whatever its creator knows, such as a part of one: `NodeId::NONE`.
    #[inline]
    pub(crate) fn leaf(&mut self, request: NodeId) -> Event {
        self.arena.insert(Node::leaf(request))
    }

    /// The request that a leaf stands for.
    #[inline]
    pub(crate) fn request(&self, event: Event) -> Option<NodeId> {
        self.held(event).map(|node| node.request).filter(|request| !request.is_none())
    }

    /// An event that succeeds when `wanted` of `children` did, and fails when that can no longer be.
    pub(crate) fn at_least(&mut self, wanted: usize, children: &[Event]) -> Result<Event, BadEvent> {
        if wanted > children.len() && !children.is_empty() {
            return Err(BadEvent::TooMany { wanted, given: children.len() });
        }
        self.compound(wanted, children)
    }

    /// Succeeds when all do; at once if there are none.
    pub(crate) fn all(&mut self, children: &[Event]) -> Result<Event, BadEvent> {
        self.compound(children.len(), children)
    }

    /// Succeeds when one does; fails at once if there are none.
    pub(crate) fn any(&mut self, children: &[Event]) -> Result<Event, BadEvent> {
        self.compound(1, children)
    }

    fn compound(&mut self, wanted: usize, children: &[Event]) -> Result<Event, BadEvent> {
        if let Some(at) = children.iter().position(|child| self.held(*child).is_none()) {
            return Err(BadEvent::Released(at));
        }
        let count = u32::try_from(children.len()).expect("no memory holds so many");
        // No more than `count` are wanted, unless it is 0.
        let mut node = Node::compound(wanted as u32, count);
        if wanted == 0 || children.is_empty() {
            node.verdict =
                Some(Verdict { success: wanted == 0, reason: Reason::Completion, decided_by: None });
        }
        let event = self.arena.insert(node);
        for child in children {
            self.join(child.index, event.index);
        }
        // Nobody is above it or waits for it yet, so there is nobody to tell.
        Ok(event)
    }

    /// An `all` of requests that it counts as they come, until it is [closed](Events::close).
    pub(crate) fn open_all(&mut self) -> Event {
        self.arena.insert(Node::open())
    }

    /// Has an open event wait for one more request; false if it takes none.
    pub(crate) fn enroll(&mut self, all: Event) -> bool {
        let Some(node) = self.arena.get_mut(all).filter(|node| node.open) else { return false };
        // As many as there are nodes of a tree, at most.
        (node.to_succeed, node.unsettled) = (node.to_succeed.wrapping_add(1), node.unsettled + 1);
        true
    }

    /// Has an open event wait for one request less, which was not accepted.
    #[cold]
    pub(crate) fn withdraw(&mut self, all: Event) {
        let node = self.arena.get_mut(all).filter(|node| node.open).expect("it was open just now");
        (node.to_succeed, node.unsettled) = (node.to_succeed.wrapping_sub(1), node.unsettled - 1);
    }

    /// Adds what was counted of requests since the last time: nearly all of them go from one event to one other.
    #[inline(never)]
    pub(crate) fn flush(&mut self) {
        let Round { entering, entered, leaving, bytes } = std::mem::take(&mut self.round);
        if let Some(node) = Event::from_word(entering).and_then(|all| self.arena.get_mut(all)) {
            // As many as there are nodes of a tree, at most.
            (node.to_succeed, node.unsettled) =
                (node.to_succeed.wrapping_add(entered), node.unsettled + entered);
        }
        let Some(all) = Event::from_word(leaving).filter(|_| entered > 0) else { return };
        let verdict = Verdict { success: true, reason: Reason::Completion, decided_by: Some(all) };
        let news = self.arena[all.index].count(Some(verdict), Some(bytes), entered);
        if news != News::NONE {
            self.run(all.index, news);
        }
    }

    /// A request that an event [waits for](Events::enroll) has completed.
    pub(crate) fn tally(&mut self, all: Event, bytes: u64, failure: Option<Failure>) {
        self.flush();
        if let Some(failure) = failure {
            self.count_failures(all.index, 1, failure);
        }
        let verdict =
            Verdict { success: failure.is_none(), reason: Reason::Completion, decided_by: Some(all) };
        let news = self.arena[all.index].count(Some(verdict), Some(bytes), 1);
        if news != News::NONE {
            self.run(all.index, news);
        }
    }

    /// The same for one that succeeded, and goes down again to be counted by another event, if that is what
    /// the one before did. The events know of it after the next [`flush`](Events::flush).
    #[inline(always)]
    pub(crate) fn pass(&mut self, from: Option<Event>, to: Event, bytes: u64) -> bool {
        let Round { entering, leaving, .. } = self.round;
        let same = entering == to.word() && from.is_some_and(|from| from.word() == leaving);
        if same {
            self.round.entered += 1;
            // No sum of what a poller's requests move is that large.
            self.round.bytes = self.round.bytes.wrapping_add(bytes);
        }
        same
    }

    /// Takes back what the last [`pass`](Events::pass) did.
    #[cold]
    pub(crate) fn take_back(&mut self, bytes: u64) {
        self.round.entered -= 1;
        self.round.bytes = self.round.bytes.wrapping_sub(bytes);
    }

    /// The same for the first of those that do so; false if the other event takes none.
    #[cold]
    pub(crate) fn pass_first(&mut self, from: Event, to: Event, bytes: u64) -> bool {
        self.flush();
        if !self.is_open(to) {
            return false;
        }
        self.round = Round { entering: to.word(), entered: 1, leaving: from.word(), bytes };
        true
    }

    /// Whether an event takes requests.
    pub(crate) fn is_open(&self, all: Event) -> bool {
        self.arena.get(all).is_some_and(|node| node.open)
    }

    /// An open event takes no more requests: it is decided by those that it has.
    pub(crate) fn close(&mut self, all: Event) {
        self.flush();
        if let Some(node) = self.arena.get_mut(all)
            && std::mem::take(&mut node.open)
        {
            self.tally(all, 0, None);
        }
    }

    /// Puts an event under another; what has come already counts at once.
    #[inline]
    fn join(&mut self, child: u32, parent: u32) {
        let node = &self.arena[child];
        let news = News { resolved: node.verdict.is_some(), settled: node.is_settled() };
        if news.resolved {
            self.count(parent, child, news);
        }
        if !news.settled {
            self.arena.link(child, parent);
        }
    }

    /// A leaf has completed.
    #[inline]
    pub(crate) fn settle(&mut self, leaf: Event, bytes: u64, failure: Option<Failure>) {
        let node = self.arena.get_mut(leaf).expect("a leaf is there until it settles");
        assert!(node.leaf && !node.is_settled(), "a leaf settles once");
        let verdict =
            Verdict { success: failure.is_none(), reason: Reason::Completion, decided_by: Some(leaf) };
        (node.bytes, node.unsettled) = (bytes, 0);
        let resolved = node.verdict.is_none();
        if resolved {
            node.verdict = Some(verdict);
        }
        // Nearly every leaf succeeds, has one event above it, and nobody is to be told: its two moments
        // are one, and go straight into the counts above. All others go by the list of work.
        if resolved && failure.is_none() && !node.notify && node.above.is_last() {
            let above = std::mem::replace(&mut node.above, Edge::NONE);
            let held = node.held;
            self.deadlines.remove(leaf.index);
            if !held {
                self.arena.remove(leaf.index);
            }
            let Some(parent) = above.parent() else { return };
            let news = self.arena[parent].count(Some(verdict), Some(bytes), 1);
            if news != News::NONE {
                self.run(parent, news);
            }
        } else {
            self.settle_otherwise(leaf.index, News { resolved, settled: true }, failure);
        }
    }

    /// Out of line, so that the usual way needs no room for a failure.
    #[inline(never)]
    fn settle_otherwise(&mut self, leaf: u32, news: News, failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.count_failures(leaf, 1, failure);
        }
        self.run(leaf, news);
    }

    /// What is known of an event, `None` if the handle names nothing any more.
    #[inline]
    pub(crate) fn state(&self, event: Event) -> Option<State> {
        self.held(event).map(|node| match node.verdict {
            None => State::Pending,
            Some(verdict) if node.is_settled() => State::Settled(verdict, self.totals(event.index)),
            Some(verdict) => State::Resolved(verdict),
        })
    }

    /// The owner looks at it no more. What it does for events above goes on.
    #[inline]
    pub(crate) fn release(&mut self, event: Event) {
        let Some(node) = self.arena.get_mut(event).filter(|node| node.held) else { return };
        if node.open {
            self.close(event);
        }
        let node = &mut self.arena[event.index];
        (node.held, node.notify) = (false, false);
        let settled = node.is_settled();
        self.deadlines.remove(event.index);
        if settled {
            self.arena.remove(event.index);
        }
    }

    /// Tells of an event's moments from now on, under a number of the owner's below 2^63; of those that
    /// came already, at once.
    pub(crate) fn notify(&mut self, event: Event, token: u64) {
        if self.held(event).is_some() {
            let node = &mut self.arena[event.index];
            (node.token, node.notify) = (token, true);
            let news = News { resolved: node.verdict.is_some(), settled: node.is_settled() };
            self.fire(token, news);
        }
    }

    /// Notes an event's moments from now on, for [`next_watched`](Events::next_watched). Returns its index,
    /// which no other event has as long as nobody releases it.
    pub(crate) fn watch(&mut self, event: Event) -> usize {
        self.notify(event, WATCHED | u64::from(event.index));
        event.index as usize
    }

    /// The index of the next event that was watched and of which a moment came.
    pub(crate) fn next_watched(&mut self) -> Option<usize> {
        self.watched.pop_front().map(|index| index as usize)
    }

    /// The next moment to be told of; of one event, resolved before settled.
    pub(crate) fn next_moment(&mut self) -> Option<(u64, Moment)> {
        self.fired.pop_front()
    }

    /// Works out what is new for the events above one: a list of work, no recursion, one step for each
    /// edge and moment.
    #[inline(never)]
    fn run(&mut self, index: u32, news: News) {
        self.work.push_back((index, news));
        while let Some((index, news)) = self.work.pop_front() {
            self.tell(index, news);
        }
    }

    /// Tells an event's owner and the events above what is new of it, and frees it when all is told
    /// and nobody looks at it.
    fn tell(&mut self, index: u32, news: News) {
        let Node { notify, token, held, above, .. } = self.arena[index];
        if news.resolved {
            self.deadlines.remove(index);
        }
        if notify {
            self.fire(token, news);
        }
        let mut edge = above;
        while let Some(parent) = edge.parent() {
            let news = self.count(parent, index, news);
            if news != News::NONE {
                self.work.push_back((parent, news));
            }
            edge = self.arena.next(edge);
        }
        if news.settled {
            self.arena.unlink(index);
            if !held {
                self.arena.remove(index);
            }
        }
    }

    /// Counts what is new of a child: what that makes new of its parent.
    fn count(&mut self, parent: u32, child: u32, news: News) -> News {
        let Node { verdict, bytes, failed, .. } = self.arena[child];
        if news.settled && failed > 0 {
            self.count_failures(parent, failed, self.failures[child as usize]);
        }
        self.arena[parent].count(verdict.filter(|_| news.resolved), news.settled.then_some(bytes), 1)
    }

    /// Adds failures to what a node has counted.
    #[cold]
    fn count_failures(&mut self, index: u32, failed: u32, first: Failure) {
        let (node, at) = (&mut self.arena[index], index as usize);
        if self.failures.len() <= at {
            self.failures.resize(at + 1, first);
        }
        if node.failed == 0 || first.lba < self.failures[at].lba {
            self.failures[at] = first;
        }
        node.failed = node.failed.saturating_add(failed);
    }

    fn totals(&self, index: u32) -> Totals {
        let Node { bytes, failed, .. } = self.arena[index];
        Totals { bytes, failed, first: (failed > 0).then(|| self.failures[index as usize]) }
    }

    fn fire(&mut self, token: u64, news: News) {
        if token & WATCHED != 0 {
            return self.watched.extend((news != News::NONE).then_some(token as u32));
        }
        self.fired.extend(news.resolved.then_some((token, Moment::Resolved)));
        self.fired.extend(news.settled.then_some((token, Moment::Settled)));
    }

    /// The node of a handle that was not released.
    #[inline]
    fn held(&self, event: Event) -> Option<&Node> {
        self.arena.get(event).filter(|node| node.held)
    }
}

impl Node {
    /// Counts how so many children were decided, and the bytes of those that settled: what that makes new here.
    #[inline(always)]
    fn count(&mut self, resolved: Option<Verdict>, settled: Option<u64>, children: u32) -> News {
        let mut news = News::NONE;
        if let Some(verdict) = resolved
            && self.verdict.is_none()
        {
            let missing = if verdict.success { &mut self.to_succeed } else { &mut self.to_fail };
            *missing = missing.saturating_sub(children);
            if *missing == 0 {
                // What decided the last child that it took has decided this one.
                self.verdict = Some(verdict);
                news.resolved = true;
            }
        }
        if let Some(bytes) = settled {
            self.bytes = self.bytes.saturating_add(bytes);
            self.unsettled -= children;
            news.settled = self.is_settled();
        }
        news
    }
}

/// Ends before the end: cancel and deadlines.
impl Events {
    /// Decides a pending event as a failure, now, since its owner cancelled it or its deadline passed;
    /// whether it was pending. It settles as always, when everything below has completed. Events above
    /// count it as they count any failure; those below are not touched.
    ///
    /// A released event can be resolved as well: events above may still count on it.
    pub(crate) fn resolve(&mut self, event: Event, reason: Reason) -> bool {
        assert!(reason != Reason::Completion, "what completes is settled");
        let Some(node) = self.arena.get_mut(event).filter(|node| node.verdict.is_none()) else {
            return false;
        };
        node.verdict = Some(Verdict { success: false, reason, decided_by: Some(event) });
        self.run(event.index, News { resolved: true, settled: false });
        true
    }

    /// The pending leaves that are an event or below it, released ones included, and the requests that
    /// they stand for: what to stop when nobody is to wait for the event any more. Leaves without a
    /// request are left out.
    ///
    /// It looks at every event of the poller, except where the event is a leaf itself.
    pub(crate) fn pending_requests(&self, event: Event) -> Vec<(Event, NodeId)> {
        let pending = |index: &u32| {
            let node = &self.arena[*index];
            node.leaf && node.verdict.is_none() && !node.request.is_none()
        };
        let below = self.below(event).into_iter().filter(pending);
        below.map(|index| (self.arena.event(index), self.arena[index].request)).collect()
    }

    /// The compound events that an event is, or that are below it: those that count requests are among them.
    pub(crate) fn compounds(&self, event: Event) -> Vec<Event> {
        let below = self.below(event).into_iter().filter(|index| !self.arena[*index].leaf);
        below.map(|index| self.arena.event(index)).collect()
    }

    /// An event and those below it, each once.
    fn below(&self, event: Event) -> Vec<u32> {
        let Some(node) = self.arena.get(event) else { return Vec::new() };
        // Edges lead up only. A leaf has nothing below.
        let edges = if node.leaf { Vec::new() } else { self.arena.downward() };
        let mut seen = HashSet::from([event.index]);
        let mut work = vec![event.index];
        let mut found = Vec::new();
        while let Some(index) = work.pop() {
            found.push(index);
            let first = edges.partition_point(|(parent, _)| *parent < index);
            let below = edges[first..].iter().take_while(|(parent, _)| *parent == index);
            work.extend(below.map(|(_, child)| *child).filter(|child| seen.insert(*child)));
        }
        found
    }

    /// Gives an event that is pending a deadline, in place of the one it has, or takes it away. It is
    /// forgotten when the event is resolved or released.
    pub(crate) fn set_deadline(&mut self, event: Event, at: Option<Duration>) {
        if self.held(event).is_some_and(|node| node.verdict.is_none()) {
            match at {
                Some(at) => self.deadlines.set(event, at),
                None => self.deadlines.remove(event.index),
            }
        }
    }

    /// The earliest deadline of all, counted from the clock's start.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.next()
    }

    /// The pending event with the earliest deadline, if that has passed. The deadline is taken away;
    /// what becomes of the event is the caller's to say.
    pub(crate) fn expired(&mut self, now: Duration) -> Option<Event> {
        self.deadlines.expired(now)
    }
}
