//! Events against a model that evaluates everything below an event directly.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::request::Cause;
use crate::request::Tree;
use crate::spec::Status;

const FAR: Duration = Duration::from_secs(30);

/// Requests for leaves to stand for.
fn requests(count: u32) -> Vec<NodeId> {
    let mut tree = Tree::new(count);
    (0..count).map(|_| tree.place().expect("there is room")).collect()
}

fn failure(lba: u64) -> Failure {
    Failure { lba, cause: Cause::Status(Status::INTERNAL_ERROR) }
}

/// Something that happens. An `Index` picks among the events that there are.
#[derive(Debug, Clone)]
enum Step {
    Leaf { request: bool, notify: bool },
    AtLeast { wanted: usize, children: Vec<Index>, notify: bool },
    Settle { leaf: Index, bytes: u64, failed: bool },
    Cancel(Index),
    SetDeadline(Index, Option<u64>),
    Advance(u64),
    Notify(Index),
    Release(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let step = prop_oneof![
        4 => any::<(bool, bool)>().prop_map(|(request, notify)| Step::Leaf { request, notify }),
        4 => (0..5usize, prop::collection::vec(index(), 0..6), any::<bool>())
            .prop_map(|(wanted, children, notify)| Step::AtLeast { wanted, children, notify }),
        5 => (index(), 0..1000u64, any::<bool>())
            .prop_map(|(leaf, bytes, failed)| Step::Settle { leaf, bytes, failed }),
        1 => index().prop_map(Step::Cancel),
        2 => (index(), prop::option::weighted(0.8, 0..100u64)).prop_map(|(at, d)| Step::SetDeadline(at, d)),
        1 => (0..20u64).prop_map(Step::Advance),
        1 => index().prop_map(Step::Notify),
        1 => index().prop_map(Step::Release),
    ];
    prop::collection::vec(step, 0..120)
}

/// An event, as a plain value. Others are named by their place in the model.
#[derive(Debug)]
struct Modelled {
    handle: Event,
    /// A leaf has none of these.
    wanted: usize,
    children: Vec<usize>,
    leaf: bool,
    request: Option<NodeId>,
    verdict: Option<Verdict>,
    /// What a leaf came to.
    result: Option<(u64, Option<Failure>)>,
    deadline: Option<Duration>,
    held: bool,
    /// Whoever is told was told of these.
    told: Option<Vec<Moment>>,
}

#[derive(Debug, Default)]
struct Model {
    all: Vec<Modelled>,
    now: Duration,
}

impl Model {
    fn add(&mut self, handle: Event, wanted: usize, children: Vec<usize>) -> &mut Modelled {
        self.all.push(Modelled {
            handle,
            wanted,
            children,
            leaf: false,
            request: None,
            verdict: None,
            result: None,
            deadline: None,
            held: true,
            told: None,
        });
        self.all.last_mut().expect("it was added")
    }

    fn settled(&self, at: usize) -> bool {
        let event = &self.all[at];
        if event.leaf { event.result.is_some() } else { event.children.iter().all(|c| self.settled(*c)) }
    }

    fn totals(&self, at: usize) -> Totals {
        let event = &self.all[at];
        if let Some((bytes, first)) = event.result {
            return Totals { bytes, failed: first.is_some().into(), first };
        }
        let below = event.children.iter().map(|child| self.totals(*child));
        below.fold(Totals::default(), |a, b| Totals {
            bytes: a.bytes + b.bytes,
            failed: a.failed + b.failed,
            first: a.first.into_iter().chain(b.first).min_by_key(|failure| failure.lba),
        })
    }

    /// Where and how an event's children decide it, gone through in their order.
    fn decided(&self, at: usize) -> Option<Verdict> {
        let event = &self.all[at];
        let count = event.children.len();
        if event.wanted == 0 || count == 0 {
            let success = event.wanted == 0;
            return Some(Verdict { success, reason: Reason::Completion, decided_by: None });
        }
        let mut counts = [count - event.wanted + 1, event.wanted];
        event.children.iter().filter_map(|child| self.all[*child].verdict).find(|verdict| {
            let missing = &mut counts[usize::from(verdict.success)];
            *missing = missing.saturating_sub(1);
            *missing == 0
        })
    }

    /// What one event's verdict decides. Later events are made of earlier ones.
    fn decide(&mut self, at: usize, verdict: Verdict) {
        self.all[at].verdict.get_or_insert(verdict);
        for above in 0..self.all.len() {
            let event = &self.all[above];
            if !event.leaf && event.verdict.is_none() {
                // Whoever is decided now is so by what happened now, however many ways lead to it.
                let verdict =
                    self.decided(above).map(|decided| Verdict { success: decided.success, ..verdict });
                self.all[above].verdict = verdict;
            }
        }
        for event in self.all.iter_mut().filter(|event| event.verdict.is_some()) {
            event.deadline = None;
        }
    }

    fn end(&mut self, at: usize, reason: Reason) {
        let decided_by = Some(self.all[at].handle);
        self.decide(at, Verdict { success: false, reason, decided_by });
    }

    fn pending_requests(&self, at: usize, found: &mut Vec<usize>) {
        let event = &self.all[at];
        if event.request.is_some() && event.verdict.is_none() {
            found.push(at);
        }
        event.children.iter().for_each(|child| self.pending_requests(*child, found));
    }
}

fn take(events: &mut Events, model: &mut Model, step: Step, requests: &mut Vec<NodeId>) {
    let pick = |model: &Model, index: &Index| (!model.all.is_empty()).then(|| index.index(model.all.len()));
    match step {
        Step::Leaf { request, notify } => {
            let request = request.then(|| requests.pop()).flatten();
            let handle = events.leaf(request.unwrap_or(NodeId::NONE));
            let token = model.all.len() as u64;
            let event = model.add(handle, 1, Vec::new());
            (event.leaf, event.request) = (true, request);
            if notify {
                event.told = Some(Vec::new());
                events.notify(handle, token);
            }
        }
        Step::AtLeast { wanted, children, notify } => {
            let children: Vec<usize> = children.iter().filter_map(|index| pick(model, index)).collect();
            let handles: Vec<Event> = children.iter().map(|child| model.all[*child].handle).collect();
            let made = events.at_least(wanted, &handles);
            if wanted > children.len() && !children.is_empty() {
                assert_eq!(made, Err(BadEvent::TooMany { wanted, given: children.len() }));
                return;
            }
            if let Some(released) = children.iter().position(|child| !model.all[*child].held) {
                assert_eq!(made, Err(BadEvent::Released(released)));
                return;
            }
            let handle = made.expect("its children are held");
            let at = model.all.len();
            let event = model.add(handle, wanted, children);
            if notify {
                event.told = Some(Vec::new());
                events.notify(handle, at as u64);
            }
            model.all[at].verdict = model.decided(at);
        }
        Step::Settle { leaf, bytes, failed } => {
            let Some(at) = pick(model, &leaf) else { return };
            let event = &mut model.all[at];
            if event.leaf && event.result.is_none() {
                let failure = failed.then(|| failure(at as u64));
                event.result = Some((bytes, failure));
                let handle = event.handle;
                events.settle(handle, bytes, failure);
                let verdict =
                    Verdict { success: !failed, reason: Reason::Completion, decided_by: Some(handle) };
                model.decide(at, verdict);
            }
        }
        Step::Cancel(index) => {
            let Some(at) = pick(model, &index) else { return };
            let pending = model.all[at].verdict.is_none();
            assert_eq!(events.resolve(model.all[at].handle, Reason::Cancelled), pending);
            if pending {
                model.end(at, Reason::Cancelled);
            }
        }
        Step::SetDeadline(index, deadline) => {
            let Some(at) = pick(model, &index) else { return };
            let deadline = deadline.map(Duration::from_micros);
            let event = &mut model.all[at];
            events.set_deadline(event.handle, deadline);
            if event.held && event.verdict.is_none() {
                event.deadline = deadline;
            }
        }
        Step::Advance(by) => {
            model.now += Duration::from_micros(by);
            while let Some(handle) = events.expired(model.now) {
                let earliest = model.all.iter().filter_map(|event| event.deadline).min();
                let at = model.all.iter().rposition(|event| event.handle == handle).expect("it is known");
                assert_eq!((model.all[at].deadline.take(), true), (earliest, earliest <= Some(model.now)));
                assert!(events.resolve(handle, Reason::Expired), "an event with a deadline is pending");
                model.end(at, Reason::Expired);
            }
            assert!(model.all.iter().filter_map(|event| event.deadline).all(|deadline| deadline > model.now));
        }
        Step::Notify(index) => {
            let Some(at) = pick(model, &index) else { return };
            let event = &mut model.all[at];
            if event.held && event.told.is_none() {
                event.told = Some(Vec::new());
                events.notify(event.handle, at as u64);
            }
        }
        Step::Release(index) => {
            let Some(at) = pick(model, &index) else { return };
            let event = &mut model.all[at];
            (event.held, event.deadline) = (false, None);
            events.release(event.handle);
        }
    }
}

fn check(events: &mut Events, model: &mut Model) {
    while let Some((token, moment)) = events.next_moment() {
        let event = &mut model.all[token as usize];
        assert!(event.held, "nobody looks at event {token} any more");
        event.told.as_mut().expect("nobody asked for it").push(moment);
    }
    for (at, event) in model.all.iter().enumerate() {
        let settled = model.settled(at);
        let state = match event.verdict {
            None => State::Pending,
            Some(verdict) if settled => State::Settled(verdict, model.totals(at)),
            Some(verdict) => State::Resolved(verdict),
        };
        assert_eq!(events.state(event.handle), event.held.then_some(state), "event {at}");
        assert_eq!(events.request(event.handle), event.request.filter(|_| event.held));
        let moments: &[Moment] = match (event.verdict.is_some(), settled) {
            (false, _) => &[],
            (true, false) => &[Moment::Resolved],
            (true, true) => &[Moment::Resolved, Moment::Settled],
        };
        match &event.told {
            Some(told) if event.held => assert_eq!(told, moments, "event {at}"),
            // What comes after the release is not told.
            Some(told) => assert!(moments.starts_with(told), "event {at}"),
            None => {}
        }
        if event.held || !settled {
            let mut expected = Vec::new();
            model.pending_requests(at, &mut expected);
            expected.sort_unstable();
            expected.dedup();
            let mut found: Vec<usize> = Vec::new();
            for (leaf, request) in events.pending_requests(event.handle) {
                let at = model.all.iter().rposition(|event| event.handle == leaf).expect("it is known");
                assert_eq!(model.all[at].request, Some(request));
                found.push(at);
            }
            found.sort_unstable();
            assert_eq!(found, expected, "below event {at}");
        }
    }
    let deadlines: Vec<Duration> = model.all.iter().filter_map(|event| event.deadline).collect();
    assert_eq!(events.next_deadline(), deadlines.iter().min().copied());
    assert_eq!(events.deadlines.len(), deadlines.len(), "deadlines of events that are over");
}

proptest! {
    /// Verdicts with their causes, moments, totals, deadlines and what is pending below: after each
    /// step of any history. When all is settled and released, nothing is left.
    #[test]
    fn events_come_to_what_they_evaluate_to(steps in steps()) {
        let mut events = Events::default();
        let mut model = Model::default();
        let mut requests = requests(120);
        for step in steps {
            take(&mut events, &mut model, step, &mut requests);
            check(&mut events, &mut model);
        }
        for at in 0..model.all.len() {
            if model.all[at].leaf && model.all[at].result.is_none() {
                let handle = model.all[at].handle;
                events.settle(handle, 1, None);
                model.all[at].result = Some((1, None));
                let decided_by = Some(handle);
                model.decide(at, Verdict { success: true, reason: Reason::Completion, decided_by });
                check(&mut events, &mut model);
            }
        }
        for event in model.all.iter().filter(|event| event.held) {
            events.release(event.handle);
        }
        prop_assert_eq!(events.arena.in_use(), (0, 0), "nodes or edges are left over");
        prop_assert_eq!(events.next_deadline(), None);
    }
}

#[test]
fn empty_and_impossible_sets() {
    let mut events = Events::default();
    let all = events.all(&[]).unwrap();
    let any = events.any(&[]).unwrap();
    let settled = |success| {
        let verdict = Verdict { success, reason: Reason::Completion, decided_by: None };
        Some(State::Settled(verdict, Totals::default()))
    };
    assert_eq!((events.state(all), events.state(any)), (settled(true), settled(false)));
    let leaf = events.leaf(NodeId::NONE);
    assert_eq!(events.at_least(2, &[leaf]), Err(BadEvent::TooMany { wanted: 2, given: 1 }));
    events.settle(leaf, 1, None);
    events.release(leaf);
    assert_eq!(events.all(&[leaf]), Err(BadEvent::Released(0)));
}

#[test]
fn a_cancelled_leaf_decides_at_once_and_settles_when_it_completes() {
    let mut events = Events::default();
    let leaves = [events.leaf(NodeId::NONE), events.leaf(NodeId::NONE)];
    let all = events.all(&leaves).unwrap();
    events.notify(all, 0);
    assert!(events.resolve(leaves[0], Reason::Cancelled));
    assert!(!events.resolve(leaves[0], Reason::Expired), "it is decided once");
    let verdict = Verdict { success: false, reason: Reason::Cancelled, decided_by: Some(leaves[0]) };
    assert_eq!(events.state(all), Some(State::Resolved(verdict)));
    // It was too late: the leaf does what it was to do.
    events.settle(leaves[0], 4096, None);
    let totals = Totals { bytes: 4096, ..Totals::default() };
    assert_eq!(events.state(leaves[0]), Some(State::Settled(verdict, totals)));
    assert_eq!(events.state(all), Some(State::Resolved(verdict)));
    events.settle(leaves[1], 0, Some(failure(7)));
    let totals = Totals { bytes: 4096, failed: 1, first: Some(failure(7)) };
    assert_eq!(events.state(all), Some(State::Settled(verdict, totals)));
    let moments: Vec<_> = std::iter::from_fn(|| events.next_moment()).collect();
    assert_eq!(moments, [(0, Moment::Resolved), (0, Moment::Settled)]);
}

#[test]
fn a_hundred_thousand_leaves_under_one_event() {
    let mut events = Events::default();
    let leaves: Vec<Event> = requests(100_000).into_iter().map(|request| events.leaf(request)).collect();
    let all = events.all(&leaves).unwrap();
    // And as deep a chain of events above it.
    let mut event = all;
    for _ in 0..100_000 {
        event = events.any(&[event]).unwrap();
    }
    let (first, rest) = leaves.split_at(1);
    events.settle(first[0], 1, None);
    assert_eq!(events.pending_requests(event).len(), rest.len());
    events.resolve(all, Reason::Cancelled);
    let Some(State::Resolved(verdict)) = events.state(event) else { panic!("not resolved") };
    assert_eq!((verdict.reason, verdict.decided_by), (Reason::Cancelled, Some(all)));
    for leaf in rest {
        assert_eq!(events.state(event), Some(State::Resolved(verdict)));
        events.settle(*leaf, 1, None);
    }
    let Some(State::Settled(settled, totals)) = events.state(event) else { panic!("not settled") };
    assert_eq!((settled, totals.bytes), (verdict, 100_000));
}

/// All allocations there are.
fn capacities(events: &Events) -> ([usize; 4], [usize; 2], [usize; 3]) {
    let rest = [events.failures.capacity(), events.work.capacity(), events.fired.capacity()];
    (events.arena.capacities(), events.deadlines.capacities(), rest)
}

#[test]
fn a_steady_state_grows_nothing() {
    let mut events = Events::default();
    let mut leaves = Vec::new();
    let mut round = |events: &mut Events, round: u64| {
        leaves.clear();
        leaves.extend((0..64).map(|_| events.leaf(NodeId::NONE)));
        let (all, any) = (events.all(&leaves).unwrap(), events.any(&leaves).unwrap());
        let both = events.all(&[all, any]).unwrap();
        events.notify(both, round);
        events.resolve(leaves[5], Reason::Cancelled);
        for (at, leaf) in leaves.iter().enumerate() {
            events.set_deadline(*leaf, Some(FAR + Duration::from_micros(round)));
            events.settle(*leaf, 1, (at == 9).then(|| failure(9)));
            events.release(*leaf);
        }
        [all, any, both].into_iter().for_each(|event| events.release(event));
        while events.next_moment().is_some() {}
    };
    for warm_up in 0..2 {
        round(&mut events, warm_up);
    }
    let before = capacities(&events);
    for at in 0..1_000 {
        round(&mut events, at);
    }
    assert_eq!(capacities(&events), before);
    assert_eq!(events.arena.in_use(), (0, 0));
}

#[test]
fn far_deadlines_of_short_lived_events_leave_nothing_behind() {
    let mut events = Events::default();
    let mut live = VecDeque::new();
    for at in 0..1_000_000 {
        let leaf = events.leaf(NodeId::NONE);
        // Sixteen of them at the same time, as the clock is read once for each poll.
        events.set_deadline(leaf, Some(FAR + Duration::from_micros(at / 16)));
        live.push_back(leaf);
        if live.len() > 100 {
            let done = live.pop_front().unwrap();
            events.settle(done, 1, None);
            events.release(done);
        }
        assert_eq!(events.deadlines.len(), live.len());
    }
    assert!(events.deadlines.capacities().into_iter().all(|capacity| capacity <= 256));
    assert_eq!(events.expired(FAR), None);
    let last: Vec<Event> = std::iter::from_fn(|| events.expired(FAR * 2)).collect();
    assert_eq!(last.len(), live.len());
    assert_eq!(events.next_deadline(), None);
}
