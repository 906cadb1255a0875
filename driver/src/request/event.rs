//! Compound events: all, any, or at least k of a set of events (docs/containers.md).
//!
//! Every event has two moments. *Resolved*: success or failure is known. *Settled*: everything below
//! has completed, no DMA is outstanding, the totals are final. Each comes exactly once, resolved
//! first. Pure logic: knows counts and edges; must not know what a leaf stands for.

use std::collections::VecDeque;

use super::{Failure, NodeId};

/// Names an event. A handle to an event that was released names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    index: u32,
    generation: u32,
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
    /// The leaf whose completion decided it; none where there was nothing to wait for.
    pub decided_by: Option<Event>,
}

/// Sums over everything below an event. A leaf that is reached by two ways counts twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes that leaves moved.
    pub bytes: u64,
    /// Leaves that failed.
    pub failed: u64,
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

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    generation: u32,
    /// Children: 0 in a leaf.
    children: u32,
    /// Successes that make it one.
    wanted: u32,
    succeeded: u32,
    failed: u32,
    unsettled: u32,
    /// Edges to events above.
    parents: u32,
    verdict: Option<Verdict>,
    settled: bool,
    /// The owner has not released it.
    held: bool,
    /// The owner wants to be told of its moments, under this number.
    token: Option<u64>,
    /// What a leaf stands for.
    request: NodeId,
    in_use: bool,
    totals: Totals,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    parent: u32,
    next: u32,
}

/// All events of a poller.
#[derive(Debug, Default)]
pub(crate) struct Events {
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    edges: Vec<Edge>,
    vacant_edges: Vec<u32>,
    /// Moments that came and whose consequences above are not worked out yet.
    work: VecDeque<(u32, Moment)>,
    /// Moments that came, for whoever waits.
    fired: VecDeque<(u64, Moment)>,
}

impl Events {
    /// An event that stands for a request: it is settled by [`settle`](Events::settle).
    pub(crate) fn leaf(&mut self, request: NodeId) -> Event {
        let leaf = self.insert(0, 1, 1);
        self.nodes[leaf.index as usize].request = request;
        leaf
    }

    /// The request that a leaf stands for.
    pub(crate) fn request(&self, event: Event) -> Option<NodeId> {
        self.get(event).map(|node| node.request).filter(|request| !request.is_none())
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
        if let Some(at) = children.iter().position(|child| self.get(*child).is_none()) {
            return Err(BadEvent::Released(at));
        }
        let count = children.len() as u32;
        let event = self.insert(count, wanted as u32, count);
        for child in children {
            self.join(child.index, event);
        }
        self.decide(event.index, None);
        self.run();
        Ok(event)
    }

    /// Puts an event under another; what has come already counts at once.
    fn join(&mut self, child: u32, parent: Event) {
        let node = &self.nodes[child as usize];
        let (verdict, settled, totals) = (node.verdict, node.settled, node.totals);
        if let Some(verdict) = verdict {
            self.count(parent.index, verdict);
        }
        if settled {
            self.add(parent.index, totals);
        }
        if verdict.is_none() || !settled {
            let edge = Edge { parent: parent.index, next: self.nodes[child as usize].parents };
            self.nodes[child as usize].parents = match self.vacant_edges.pop() {
                Some(at) => {
                    self.edges[at as usize] = edge;
                    at
                }
                None => {
                    self.edges.push(edge);
                    self.edges.len() as u32 - 1
                }
            };
        }
    }

    /// A leaf has completed.
    pub(crate) fn settle(&mut self, leaf: Event, bytes: u64, failure: Option<Failure>) {
        let node = &mut self.nodes[leaf.index as usize];
        assert!(node.in_use && node.generation == leaf.generation, "a leaf is there until it settles");
        assert!(node.children == 0 && !node.settled, "a leaf settles once");
        node.totals = Totals { bytes, failed: u64::from(failure.is_some()), first: failure };
        self.verdict(leaf.index, Verdict { success: failure.is_none(), decided_by: Some(leaf) });
        self.settled(leaf.index);
        self.run();
    }

    /// What is known of an event, `None` if the handle names nothing any more.
    pub(crate) fn state(&self, event: Event) -> Option<State> {
        self.get(event).map(|node| match node.verdict {
            None => State::Pending,
            Some(verdict) if node.settled => State::Settled(verdict, node.totals),
            Some(verdict) => State::Resolved(verdict),
        })
    }

    /// The owner looks at it no more. What it does for events above goes on.
    pub(crate) fn release(&mut self, event: Event) {
        if self.get(event).is_some() {
            let node = &mut self.nodes[event.index as usize];
            (node.held, node.token) = (false, None);
            self.reclaim(event.index);
        }
    }

    /// Tells of an event's moments from now on, under a number of the owner's; of those that came
    /// already, at once.
    pub(crate) fn notify(&mut self, event: Event, token: u64) {
        let Some(node) = self.get(event) else { return };
        let came = [node.verdict.map(|_| Moment::Resolved), node.settled.then_some(Moment::Settled)];
        self.fired.extend(came.into_iter().flatten().map(|moment| (token, moment)));
        self.nodes[event.index as usize].token = Some(token);
    }

    /// The next moment to be told of; of one event, resolved before settled.
    pub(crate) fn next_moment(&mut self) -> Option<(u64, Moment)> {
        self.fired.pop_front()
    }

    /// Events that are in use.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    /// Works out what moments mean for events above: a list of work, no recursion, one step for each
    /// edge and moment.
    fn run(&mut self) {
        while let Some((index, moment)) = self.work.pop_front() {
            let node = &self.nodes[index as usize];
            let (verdict, totals) = (node.verdict, node.totals);
            let mut at = node.parents;
            while at != NONE {
                let Edge { parent, next } = self.edges[at as usize];
                match (moment, verdict) {
                    (Moment::Resolved, Some(verdict)) => self.count(parent, verdict),
                    (Moment::Resolved, None) => unreachable!("a moment came before its verdict"),
                    (Moment::Settled, _) => {
                        self.add(parent, totals);
                        self.vacant_edges.push(at);
                    }
                }
                at = next;
            }
            if moment == Moment::Settled {
                self.nodes[index as usize].parents = NONE;
                self.reclaim(index);
            }
        }
    }

    /// Counts a child's verdict.
    fn count(&mut self, index: u32, verdict: Verdict) {
        let node = &mut self.nodes[index as usize];
        match verdict.success {
            true => node.succeeded += 1,
            false => node.failed += 1,
        }
        self.decide(index, verdict.decided_by);
    }

    /// Whether the counts decide a compound event now.
    fn decide(&mut self, index: u32, by: Option<Event>) {
        let node = &self.nodes[index as usize];
        let success = node.succeeded >= node.wanted;
        let hopeless = u64::from(node.failed) + u64::from(node.wanted) > u64::from(node.children);
        if node.verdict.is_none() && (success || hopeless) {
            self.verdict(index, Verdict { success, decided_by: by });
        }
        let node = &self.nodes[index as usize];
        // With children, the last of them settles it; without, nothing else will.
        if node.unsettled == 0 && !node.settled {
            self.settled(index);
        }
    }

    /// Adds what a child came to, and settles with the last.
    fn add(&mut self, index: u32, totals: Totals) {
        let node = &mut self.nodes[index as usize];
        node.totals.bytes += totals.bytes;
        node.totals.failed += totals.failed;
        node.totals.first = match (node.totals.first, totals.first) {
            (Some(a), Some(b)) => Some(if b.lba < a.lba { b } else { a }),
            (a, b) => a.or(b),
        };
        node.unsettled -= 1;
        if node.unsettled == 0 && node.verdict.is_some() {
            self.settled(index);
        }
    }

    fn verdict(&mut self, index: u32, verdict: Verdict) {
        self.nodes[index as usize].verdict = Some(verdict);
        self.came(index, Moment::Resolved);
    }

    fn settled(&mut self, index: u32) {
        self.nodes[index as usize].settled = true;
        self.came(index, Moment::Settled);
    }

    fn came(&mut self, index: u32, moment: Moment) {
        let node = &self.nodes[index as usize];
        self.fired.extend(node.token.map(|token| (token, moment)));
        self.work.push_back((index, moment));
    }

    fn insert(&mut self, children: u32, wanted: u32, unsettled: u32) -> Event {
        let generation = self.vacant.last().map_or(0, |at| self.nodes[*at as usize].generation + 1);
        let node = Node {
            generation,
            children,
            wanted,
            succeeded: 0,
            failed: 0,
            unsettled,
            parents: NONE,
            verdict: None,
            settled: false,
            held: true,
            token: None,
            request: NodeId::NONE,
            in_use: true,
            totals: Totals::default(),
        };
        let index = match self.vacant.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        Event { index, generation }
    }

    fn get(&self, event: Event) -> Option<&Node> {
        self.nodes
            .get(event.index as usize)
            .filter(|node| node.in_use && node.held && node.generation == event.generation)
    }

    /// Frees an event that is settled, told everyone above, and is looked at by nobody.
    fn reclaim(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        if node.settled && !node.held && node.parents == NONE && node.in_use {
            node.in_use = false;
            self.vacant.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Cause;
    use crate::spec::Status;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// What an event is made of, as a plain value.
    #[derive(Debug, Clone)]
    enum Shape {
        Leaf,
        /// At least k of these earlier ones.
        AtLeast(usize, Vec<usize>),
    }

    /// What comes of a leaf.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Settle {
            bytes: u64,
            failed: bool,
        },
        /// Its owner looks at it no more; what it does for others goes on.
        Release,
    }

    /// A DAG: leaves first, then events over earlier ones; and for each leaf its steps, in a random order.
    fn dags() -> impl Strategy<Value = (Vec<Shape>, Vec<(usize, Step)>, usize)> {
        (
            1..12usize,
            proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u32>(), 0..6)), 1..10),
        )
            .prop_flat_map(|(leaves, compounds)| {
                let mut shapes = vec![Shape::Leaf; leaves];
                for (k, children) in compounds {
                    let children: Vec<usize> = children.iter().map(|c| *c as usize % shapes.len()).collect();
                    let k =
                        if children.is_empty() { k as usize % 2 } else { k as usize % (children.len() + 1) };
                    shapes.push(Shape::AtLeast(k, children));
                }
                let steps = proptest::collection::vec((any::<bool>(), any::<bool>(), 0..1000u64), leaves);
                (Just(shapes), steps, Just(leaves))
            })
            .prop_flat_map(|(shapes, steps, leaves)| {
                let mut order: Vec<(usize, Step)> = Vec::new();
                for (leaf, (release, failed, bytes)) in steps.into_iter().enumerate() {
                    if release {
                        order.push((leaf, Step::Release));
                    }
                    order.push((leaf, Step::Settle { bytes, failed }));
                }
                let late = 0..=order.len();
                (Just(shapes), Just(order).prop_shuffle(), late, Just(leaves))
            })
            .prop_map(|(shapes, order, late, _)| (shapes, order, late))
    }

    /// Direct evaluation, from what is known of the leaves.
    fn evaluate(
        shapes: &[Shape],
        leaves: &HashMap<usize, (Option<bool>, bool)>,
        at: usize,
    ) -> (Option<bool>, bool) {
        match &shapes[at] {
            Shape::Leaf => leaves.get(&at).copied().unwrap_or((None, false)),
            Shape::AtLeast(k, children) => {
                let all: Vec<_> = children.iter().map(|c| evaluate(shapes, leaves, *c)).collect();
                let good = all.iter().filter(|(v, _)| *v == Some(true)).count();
                let bad = all.iter().filter(|(v, _)| *v == Some(false)).count();
                let verdict = if good >= *k { Some(true) } else { (bad + k > all.len()).then_some(false) };
                (verdict, all.iter().all(|(_, settled)| *settled))
            }
        }
    }

    fn totals(
        shapes: &[Shape],
        leaves: &HashMap<usize, (u64, Option<Failure>)>,
        at: usize,
    ) -> (u64, u64, Option<u64>) {
        match &shapes[at] {
            Shape::Leaf => {
                let (bytes, failure) = leaves[&at];
                (bytes, failure.is_some().into(), failure.map(|f| f.lba))
            }
            Shape::AtLeast(_, children) => children.iter().map(|c| totals(shapes, leaves, *c)).fold(
                (0, 0, None),
                |(b, f, first), (b2, f2, first2)| {
                    (b + b2, f + f2, [first, first2].into_iter().flatten().min())
                },
            ),
        }
    }

    proptest! {
        #[test]
        fn a_dag_comes_to_what_it_evaluates_to((shapes, order, late) in dags()) {
            let mut events = Events::default();
            let mut handles: Vec<Event> = Vec::new();
            let mut moments: HashMap<u64, Vec<Moment>> = HashMap::new();
            let leaf_count = shapes.iter().filter(|s| matches!(s, Shape::Leaf)).count();
            handles.extend((0..leaf_count).map(|_| events.leaf(NodeId::NONE)));
            let mut told = 0;
            let mut released = std::collections::HashSet::new();
            let mut known: HashMap<usize, (Option<bool>, bool)> = HashMap::new();
            let mut results = HashMap::new();
            // Compound events may be made at any time: before, between and after what comes of the leaves.
            for step in 0..=order.len() {
                if step == late {
                    for shape in &shapes[leaf_count..] {
                        let Shape::AtLeast(k, children) = shape else { unreachable!() };
                        let children: Vec<Event> = children.iter().map(|c| handles[*c]).collect();
                        let event = events.compound(*k, &children).unwrap();
                        handles.push(event);
                    }
                }
                if let Some((leaf, what)) = order.get(step).copied() {
                    match what {
                        // Events can be made only of such as are still held.
                        Step::Release if step >= late => {
                            events.release(handles[leaf]);
                            released.insert(leaf);
                        }
                        Step::Release => {}
                        Step::Settle { bytes, failed } => {
                            let failure = failed.then_some(Failure { lba: leaf as u64, cause: Cause::Status(Status::INTERNAL_ERROR) });
                            known.insert(leaf, (Some(!failed), true));
                            results.insert(leaf, (bytes, failure));
                            events.settle(handles[leaf], bytes, failure);
                        }
                    }
                }
                for (token, handle) in handles.iter().enumerate().skip(told) {
                    events.notify(*handle, token as u64);
                }
                told = handles.len();
                while let Some((token, moment)) = events.next_moment() {
                    moments.entry(token).or_default().push(moment);
                }
                for (at, handle) in handles.iter().enumerate() {
                    if released.contains(&at) {
                        prop_assert_eq!(events.state(*handle), None);
                        continue;
                    }
                    let (verdict, settled) = evaluate(&shapes, &known, at);
                    let seen = moments.get(&(at as u64)).cloned().unwrap_or_default();
                    let expected = match (verdict, settled) {
                        (None, _) => vec![],
                        (Some(_), false) => vec![Moment::Resolved],
                        (Some(_), true) => vec![Moment::Resolved, Moment::Settled],
                    };
                    prop_assert_eq!(&seen, &expected, "event {} of {:?}", at, shapes);
                    match events.state(*handle).unwrap() {
                        State::Pending => prop_assert_eq!(verdict, None),
                        State::Resolved(v) => prop_assert_eq!((Some(v.success), false), (verdict, settled)),
                        State::Settled(v, t) => {
                            prop_assert_eq!((Some(v.success), true), (verdict, settled));
                            let (bytes, failed, first) = totals(&shapes, &results, at);
                            prop_assert_eq!((t.bytes, t.failed, t.first.map(|f| f.lba)), (bytes, failed, first));
                        }
                    }
                }
            }
            for handle in handles {
                events.release(handle);
            }
            prop_assert_eq!(events.len(), 0, "events are left over");
            prop_assert_eq!(events.vacant_edges.len(), events.edges.len(), "edges are left over");
        }
    }

    #[test]
    fn empty_and_impossible_sets() {
        let mut events = Events::default();
        let all = events.all(&[]).unwrap();
        let any = events.any(&[]).unwrap();
        let settled =
            |success| Some(State::Settled(Verdict { success, decided_by: None }, Totals::default()));
        assert_eq!((events.state(all), events.state(any)), (settled(true), settled(false)));
        let leaf = events.leaf(NodeId::NONE);
        assert_eq!(events.at_least(2, &[leaf]), Err(BadEvent::TooMany { wanted: 2, given: 1 }));
        events.settle(leaf, 1, None);
        events.release(leaf);
        assert_eq!(events.all(&[leaf]), Err(BadEvent::Released(0)));
    }

    #[test]
    fn a_hundred_thousand_leaves_under_one_event() {
        let mut events = Events::default();
        let leaves: Vec<Event> = (0..100_000).map(|_| events.leaf(NodeId::NONE)).collect();
        let mut event = events.all(&leaves).unwrap();
        // And as deep a chain of events above it.
        for _ in 0..100_000 {
            event = events.any(&[event]).unwrap();
        }
        for leaf in &leaves {
            assert_eq!(events.state(event), Some(State::Pending));
            events.settle(*leaf, 1, None);
        }
        let Some(State::Settled(verdict, totals)) = events.state(event) else { panic!("not settled") };
        assert_eq!((verdict.decided_by, totals.bytes), (leaves.last().copied(), 100_000));
    }
}
