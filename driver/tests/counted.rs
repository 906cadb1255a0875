//! Events that count requests as they come, against a model that counts by itself.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use kiovec::layer::{Disk, Partition};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, Done, Event, IoContainer, Poller, QueueOptions, Reason, Refusal, State, Target};
use kiovec_emulator::{Config, Emulator};
use proptest::prelude::*;
use proptest::sample::Index;

/// Fails whenever it is read.
const BAD: u64 = 5;
const BLOCKS: u64 = 16;

type Layers = Partition<Disk>;

#[derive(Debug, Clone)]
enum Step {
    Open,
    /// So many blocks, some of them more than one command carries, to be counted by one of the events, or none.
    Submit {
        into: Option<Index>,
        lba: u64,
        blocks: usize,
        layered: bool,
    },
    Close(Index),
    Cancel(Index),
    Release(Index),
    /// Lets the controller work, and does this with what completes.
    Work(Vec<Then>),
    /// The same, but the closure panics with the last of them.
    Panic(Vec<Then>),
    Plug,
    Unplug,
}

/// What the closure does with a finished request.
#[derive(Debug, Clone)]
enum Then {
    Take,
    Drop,
    Resubmit(u64),
    Into(Index, u64),
    /// Its memory is read into once more, through the other queue pair; and the request is dropped.
    Elsewhere(u64),
    /// Into one of the events, with memory of so many blocks.
    Exchange(Index, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let lba = 0..BLOCKS - 4;
    let then = prop_oneof![
        1 => Just(Then::Take),
        1 => Just(Then::Drop),
        2 => lba.clone().prop_map(Then::Resubmit),
        4 => (index(), lba.clone()).prop_map(|(into, lba)| Then::Into(into, lba)),
        1 => lba.clone().prop_map(Then::Elsewhere),
        1 => (index(), 1..5usize).prop_map(|(into, blocks)| Then::Exchange(into, blocks)),
    ];
    let submit = (prop::option::weighted(0.8, index()), lba, 1..5usize, prop::bool::weighted(0.2));
    let step = prop_oneof![
        2 => Just(Step::Open),
        6 => submit.prop_map(|(into, lba, blocks, layered)| Step::Submit { into, lba, blocks, layered }),
        1 => index().prop_map(Step::Close),
        1 => index().prop_map(Step::Cancel),
        1 => index().prop_map(Step::Release),
        6 => prop::collection::vec(then.clone(), 1..6).prop_map(Step::Work),
        1 => prop::collection::vec(then, 1..6).prop_map(Step::Panic),
        1 => Just(Step::Plug),
        1 => Just(Step::Unplug),
    ];
    prop::collection::vec(step, 1..60)
}

/// An event, as the model sees it.
#[derive(Debug)]
struct Counted {
    event: Event,
    open: bool,
    released: bool,
    cancelled: bool,
    /// Requests that came, and of those that completed: all, those that failed, and the bytes of the others.
    came: u32,
    completed: u32,
    failed: u32,
    bytes: u64,
}

struct World {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<Layers>,
    queue: kiovec::QueueId,
    disk: Target,
    /// The same namespace through another queue pair.
    beside: Target,
    part: Target,
    all: Vec<Counted>,
    /// By its tag, the event that counts a request.
    counts: HashMap<u64, usize>,
    tags: u64,
}

fn world() -> World {
    gathering(false)
}

/// The same, and the queue pairs may have requests wait for the end of the turn.
fn gathering(gather: bool) -> World {
    let config = format!("size=64K,block=4096,media=ram,mdts=1,read_error={BAD}");
    let emulator = Emulator::stepped(Config::parse(&config).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(32);
    let options = QueueOptions::default().depth(4).gather(gather);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let other = poller.add_queue(&controller, options).unwrap();
    let beside = poller.add_namespace(other, &controller.namespace(1).unwrap()).unwrap();
    let below = Disk::new(&poller, disk).unwrap();
    let part = poller.add_layer(Partition::new(below, 0..BLOCKS).unwrap()).unwrap();
    World {
        emulator,
        space,
        poller,
        queue,
        disk,
        beside,
        part,
        all: Vec::new(),
        counts: HashMap::new(),
        tags: 0,
    }
}

/// Counts a finished request, and does with it what is wanted.
fn finish(
    mut done: Done<'_, Layers>,
    then: &Then,
    all: &mut [Counted],
    counts: &mut HashMap<u64, usize>,
    (space, beside): (&DmaSpace, Target),
) {
    let tag = done.io().get_tag();
    if let Some(counted) = counts.remove(&tag).map(|at| &mut all[at]) {
        counted.completed += 1;
        match done.result() {
            Ok(()) => counted.bytes += done.io().memory().len() as u64,
            Err(_) => counted.failed += 1,
        }
    }
    match then {
        Then::Take => assert_eq!(done.take().get_tag(), tag),
        Then::Drop => drop(done),
        Then::Resubmit(lba) => {
            done.set_lba(*lba);
            done.resubmit().unwrap();
        }
        Then::Elsewhere(lba) => {
            let memory = done.io_mut().replace_memory(MemoryChain::new());
            let _ = done.submit(beside, IoContainer::read(*lba, memory).tag(tag));
        }
        Then::Into(index, _) | Then::Exchange(index, _) => {
            match then {
                Then::Into(_, lba) => done.set_lba(*lba),
                Then::Exchange(_, blocks) => {
                    done.exchange_memory(&mut space.allocate(blocks * 4096).unwrap());
                    done.set_lba(0);
                }
                _ => {}
            }
            if all.is_empty() {
                return;
            }
            let at = index.index(all.len());
            match done.resubmit_into(all[at].event) {
                Ok(()) => {
                    assert!(all[at].open);
                    all[at].came += 1;
                    counts.insert(tag, at);
                }
                Err(rejected) => {
                    assert!(!all[at].open && rejected.reason == Refusal::Closed);
                    assert_eq!(rejected.io.get_tag(), tag);
                }
            }
        }
    }
}

impl World {
    /// Four reads, and an event that counts them and no more.
    fn four_reads(&mut self) -> Event {
        let event = self.poller.open_all();
        for lba in 0..4 {
            let io = IoContainer::read(lba, self.space.allocate(4096).unwrap());
            self.poller.submit_into(event, self.disk, io).unwrap();
        }
        self.poller.close(event);
        event
    }

    fn pick(&self, index: &Index) -> Option<usize> {
        (!self.all.is_empty()).then(|| index.index(self.all.len()))
    }

    fn work(&mut self, then: &[Then]) {
        self.poll(then, usize::MAX);
        self.emulator.step();
    }

    /// Does this with what completes; panics with the last of so many.
    fn poll(&mut self, then: &[Then], most: usize) {
        let World { poller, all, counts, space, beside, .. } = self;
        let mut number = 0;
        poller.poll(|done| {
            finish(done, &then[number % then.len()], all, counts, (space, *beside));
            number += 1;
            if number == most {
                // Without a word.
                std::panic::resume_unwind(Box::new(()));
            }
        });
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Open => {
                let event = self.poller.open_all();
                let (open, released, cancelled) = (true, false, false);
                let (came, completed, failed, bytes) = (0, 0, 0, 0);
                self.all.push(Counted { event, open, released, cancelled, came, completed, failed, bytes });
            }
            Step::Submit { into, lba, blocks, layered } => {
                let io = IoContainer::read(lba, self.space.allocate(blocks * 4096).unwrap()).tag(self.tags);
                let target = if layered { self.part } else { self.disk };
                let Some(at) = into.and_then(|index| self.pick(&index)) else {
                    let _ = self.poller.submit(target, io);
                    self.tags += 1;
                    return;
                };
                match self.poller.submit_into(self.all[at].event, target, io) {
                    Ok(()) => {
                        assert!(self.all[at].open);
                        self.all[at].came += 1;
                        self.counts.insert(self.tags, at);
                    }
                    Err(rejected) if self.all[at].open => assert_eq!(rejected.reason, Refusal::Full),
                    Err(rejected) => assert_eq!(rejected.reason, Refusal::Closed),
                }
                self.tags += 1;
            }
            Step::Close(index) => {
                let Some(at) = self.pick(&index) else { return };
                self.poller.close(self.all[at].event);
                self.all[at].open = false;
            }
            Step::Cancel(index) => {
                let Some(at) = self.pick(&index).filter(|at| !self.all[*at].released) else { return };
                self.all[at].cancelled |= self.poller.state(self.all[at].event) == Some(State::Pending);
                self.poller.cancel(self.all[at].event);
                self.all[at].open = false;
            }
            Step::Release(index) => {
                let Some(at) = self.pick(&index) else { return };
                self.poller.release(self.all[at].event);
                (self.all[at].open, self.all[at].released) = (false, true);
            }
            Step::Work(then) => self.work(&then),
            Step::Panic(then) => {
                let poll = std::panic::AssertUnwindSafe(|| self.poll(&then, then.len()));
                if std::panic::catch_unwind(poll).is_err() {
                    // Events are told at the end of the turn.
                    self.work(&then);
                }
            }
            Step::Plug => self.poller.plug(self.queue),
            Step::Unplug => self.poller.unplug(self.queue),
        }
    }

    /// What is known of each event is what the model says.
    fn check(&self) {
        for counted in &self.all {
            let state = self.poller.state(counted.event);
            if counted.released {
                assert_eq!(state, None);
                continue;
            }
            let settled = !counted.open && counted.came == counted.completed;
            let resolved = settled || counted.failed > 0 || counted.cancelled;
            match state.unwrap() {
                State::Pending => assert!(!resolved, "{counted:?}"),
                State::Resolved(verdict) => {
                    assert!(resolved && !settled && !verdict.success, "{counted:?}");
                }
                State::Settled(verdict, totals) => {
                    assert!(settled, "{counted:?}");
                    let reason = if counted.cancelled { Reason::Cancelled } else { Reason::Completion };
                    assert_eq!(verdict.reason, reason);
                    assert_eq!(verdict.success, counted.failed == 0 && !counted.cancelled);
                    assert_eq!((totals.bytes, totals.failed), (counted.bytes, counted.failed));
                    assert_eq!(totals.first.is_some(), counted.failed > 0);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn an_open_all_counts_each_request_once(gather in any::<bool>(), steps in steps()) {
        let mut world = gathering(gather);
        for step in steps {
            world.take(step);
            world.check();
        }
        for at in 0..world.all.len() {
            world.poller.close(world.all[at].event);
            world.all[at].open = false;
        }
        world.poller.unplug(world.queue);
        for _ in 0..200 {
            world.work(&[Then::Drop]);
            world.check();
        }
        prop_assert_eq!(world.poller.outstanding(), 0);
        prop_assert!(world.counts.is_empty());
        prop_assert!(world.all.iter().all(|counted| counted.came == counted.completed));
    }
}

#[test]
fn a_round_and_the_next_are_counted_apart() {
    let mut world = world();
    let first = world.four_reads();
    let any = world.poller.any(&[first]).unwrap();
    world.poller.notify(first, 1);
    for _ in 0..10 {
        let next = world.poller.open_all();
        let mut before = 0;
        while before < 4 {
            before += world.poller.poll(|done| done.resubmit_into(next).unwrap());
            world.emulator.step();
        }
        world.poller.close(next);
        assert_eq!(world.poller.state(next), Some(State::Pending));
        world.poller.release(next);
    }
    let Some(State::Settled(verdict, totals)) = world.poller.state(any) else { panic!("not settled") };
    assert!(verdict.success && verdict.decided_by == Some(first));
    assert_eq!((totals.bytes, totals.failed), (4 * 4096, 0));
    let moments: Vec<_> = std::iter::from_fn(|| world.poller.next_moment()).map(|(token, _)| token).collect();
    assert_eq!(moments, [1, 1]);
    // All of them went down in place, in commands of their own.
    assert_eq!(world.poller.stats(world.queue).commands, 44);
}

/// What is told of counted requests survives a closure that panics.
#[test]
fn a_panic_loses_no_count() {
    let mut world = world();
    let first = world.four_reads();
    let second = world.poller.open_all();
    for number in 0..20 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut seen = 0;
            world.poller.poll(|done| {
                seen += 1;
                if number < 10 {
                    done.resubmit_into(second).unwrap();
                }
                assert!(seen % 2 == 0 || number >= 10, "as it is meant to be");
            });
        }));
        assert!(result.is_ok() || number < 10);
        if number == 9 {
            world.poller.close(second);
        }
        world.emulator.step();
    }
    assert!(matches!(world.poller.state(first), Some(State::Settled(verdict, _)) if verdict.success));
    let Some(State::Settled(verdict, totals)) = world.poller.state(second) else { panic!("not settled") };
    assert!(verdict.success && totals.bytes > 0 && totals.bytes % 4096 == 0);
    assert_eq!(world.poller.outstanding(), 0);
}

/// What is counted of a request is what it moved, not what the closure makes of it.
#[test]
fn bytes_are_those_that_were_moved() {
    let World { emulator, space, mut poller, disk, .. } = world();
    let (first, second) = (poller.open_all(), poller.open_all());
    for lba in 8..12 {
        let io = IoContainer::read(lba, space.allocate(4096).unwrap()).tag(lba);
        poller.submit_into(first, disk, io).unwrap();
    }
    poller.close(first);
    poller.poll(|_| ());
    while emulator.step() > 0 {}
    poller.poll(|mut done| match done.io().get_tag() {
        8 => drop(done.io_mut().replace_memory(MemoryChain::new())),
        9 => {
            done.exchange_memory(&mut space.allocate(8192).unwrap());
            done.resubmit_into(second).unwrap();
        }
        10 => {
            done.io_mut().replace_memory(space.allocate(8192).unwrap());
            done.resubmit_into(second).unwrap();
        }
        _ => {
            done.exchange_memory(&mut space.allocate(8192).unwrap());
            done.resubmit().unwrap();
        }
    });
    let Some(State::Settled(verdict, totals)) = poller.state(first) else { panic!("not settled") };
    assert!(verdict.success);
    assert_eq!((totals.bytes, totals.failed), (4 * 4096, 0));
    poller.close(second);
    while poller.outstanding() > 0 {
        while emulator.step() > 0 {}
        poller.poll(|done| done.result().unwrap());
    }
    let Some(State::Settled(_, totals)) = poller.state(second) else { panic!("not settled") };
    assert_eq!(totals.bytes, 2 * 8192);
}

/// What was delivered before a closure panicked has completed: it can no longer be cancelled.
#[test]
fn what_completed_before_a_panic_is_not_cancelled_after_it() {
    let World { emulator, space, mut poller, disk, .. } = world();
    let (first, second) = (poller.open_all(), poller.open_all());
    for lba in 8..12 {
        poller.submit_into(first, disk, IoContainer::read(lba, space.allocate(4096).unwrap())).unwrap();
    }
    poller.close(first);
    poller.poll(|_| ());
    while emulator.step() > 0 {}
    let mut seen = 0;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        poller.poll(|done| {
            done.resubmit_into(second).unwrap();
            seen += 1;
            assert!(seen < 4, "as it is meant to be");
        });
    }));
    assert!(result.is_err() && seen == 4);
    poller.cancel(first);
    let Some(State::Settled(verdict, totals)) = poller.state(first) else { panic!("not settled") };
    assert!(verdict.success, "{verdict:?}");
    assert_eq!((totals.bytes, totals.failed), (4 * 4096, 0));
    assert_eq!(poller.state(second), Some(State::Pending));
}

/// With a deadline of any event, every poll looks at everything; and events are told of what was counted all the same.
#[test]
fn a_round_is_over_at_the_end_of_the_poll_although_an_event_has_a_deadline() {
    let World { emulator, space, mut poller, disk, .. } = world();
    let (first, second) = (poller.open_all(), poller.open_all());
    poller.set_deadline(second, std::time::Duration::from_secs(3600));
    for lba in 8..12 {
        poller.submit_into(first, disk, IoContainer::read(lba, space.allocate(4096).unwrap())).unwrap();
    }
    poller.close(first);
    poller.poll(|_| ());
    while emulator.step() > 0 {}
    assert_eq!(poller.poll(|done| done.resubmit_into(second).unwrap()), 4);
    assert!(matches!(poller.state(first), Some(State::Settled(verdict, _)) if verdict.success));
    assert_eq!(poller.state(second), Some(State::Pending));
}
