//! The ladder: command timeout, Abort, and what comes after it; each rung is reached by a fault.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use kiovec::memory::{DmaSpace, MemoryChain, RawCommands};
use kiovec::spec::command::{FUSE_FIRST, FUSE_SECOND};
use kiovec::spec::{Cns, Command, FeatureId, Status, admin_opcode, io_opcode};
use kiovec::{
    Cause, Controller, Error, Event, Failure, IoContainer, Namespace, Poller, QueueId, QueueOptions,
    QueueStats, Replay, State, Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults, Remedy};

const BLOCK: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(8);
/// Polls from one look at the controllers to the next, and some more.
const LOOK: usize = 1100;

/// One poller with one queue of a controller.
struct Rig {
    emulator: Arc<Emulator>,
    controller: Arc<Controller>,
    space: DmaSpace,
    poller: Poller,
    queue: QueueId,
    disk: Target,
}

/// What became of a request: its tag, its result, what was read.
type Outcome = (u64, Result<(), Failure>, Vec<u8>);

fn rig(settings: &str) -> Rig {
    rig_with(settings, QueueOptions::default().depth(8).command_timeout(TIMEOUT))
}

fn rig_with(settings: &str, options: QueueOptions) -> Rig {
    open(emulator(settings), options)
}

fn emulator(settings: &str) -> Arc<Emulator> {
    let settings = format!("size=16M,block=4096,media=ram,{settings}");
    Arc::new(Emulator::stepped(Config::parse(&settings).unwrap()).unwrap())
}

fn open(emulator: Arc<Emulator>, options: QueueOptions) -> Rig {
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    join(emulator, controller, space, options)
}

fn join(emulator: Arc<Emulator>, controller: Arc<Controller>, space: DmaSpace, options: QueueOptions) -> Rig {
    let mut poller = Poller::new(64);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Rig { emulator, controller, space, poller, queue, disk }
}

/// Another poller on the same controller.
fn beside(rig: &Rig) -> Rig {
    let options = QueueOptions::default().depth(8).command_timeout(TIMEOUT);
    join(Arc::clone(&rig.emulator), Arc::clone(&rig.controller), rig.space.clone(), options)
}

/// Two pollers, with one handle of the namespace.
fn two(settings: &str) -> (Rig, Rig) {
    let rig = rig(settings);
    let namespace = rig.controller.namespace(1).unwrap();
    let other = beside(&rig).with(&namespace);
    (rig.with(&namespace), other)
}

impl Rig {
    /// With this handle of the namespace.
    fn with(mut self, namespace: &Namespace) -> Rig {
        self.disk = self.poller.add_namespace(self.queue, namespace).unwrap();
        self
    }

    fn memory(&self, blocks: usize, fill: u8) -> MemoryChain {
        let mut memory = self.space.allocate(blocks * BLOCK).unwrap();
        memory.fill(fill);
        memory
    }

    fn read(&mut self, lba: u64, blocks: usize) {
        let memory = self.memory(blocks, 0xee);
        self.poller.submit(self.disk, IoContainer::read(lba, memory).tag(lba)).unwrap();
    }

    fn write(&mut self, lba: u64, blocks: usize, fill: u8) {
        let memory = self.memory(blocks, fill);
        self.poller.submit(self.disk, IoContainer::write(lba, memory).tag(lba)).unwrap();
    }

    fn request_write(&mut self, lba: u64, blocks: usize, fill: u8) -> Event {
        let memory = self.memory(blocks, fill);
        self.poller.request(self.disk, IoContainer::write(lba, memory)).unwrap()
    }

    fn stats(&self) -> QueueStats {
        self.poller.stats(self.queue)
    }

    /// One poll, and one step.
    fn turn(&mut self, outcomes: &mut Vec<Outcome>) {
        self.poller.poll(|done| {
            let result = done.result();
            let io = done.take();
            outcomes.push((io.get_tag(), result, io.into_memory().to_vec()));
        });
        self.emulator.step();
    }

    /// Polls until the poller has looked after its controller.
    fn look(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        (0..LOOK).for_each(|_| self.turn(&mut outcomes));
        outcomes
    }

    /// Lets so much time pass, and looks often meanwhile.
    fn spend(&mut self, time: Duration) -> Vec<Outcome> {
        let mut outcomes = self.look();
        for _ in 0..32 {
            self.emulator.advance(time / 32);
            outcomes.extend(self.look());
        }
        outcomes
    }

    /// Goes on until nothing is left, at most so long; what came of it, by tag.
    fn settle(&mut self, most: Duration) -> Vec<Outcome> {
        self.settle_but(most, 0)
    }

    /// The same, while so many events keep their containers.
    fn settle_but(&mut self, most: Duration, kept: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for _ in 0..64 {
            outcomes.extend(self.look());
            if self.poller.outstanding() == kept {
                break;
            }
            self.emulator.advance(most / 64);
        }
        assert_eq!(self.poller.outstanding(), kept, "not settled within {most:?}");
        outcomes.sort_by_key(|outcome| outcome.0);
        outcomes
    }

    /// Looks until something is so.
    fn look_until(&mut self, is: impl Fn(&Rig) -> bool) {
        let soon = (0..100).any(|_| {
            assert_eq!(self.look(), []);
            is(self)
        });
        assert!(soon);
    }

    fn flush(&mut self) -> Result<(), Cause> {
        self.flush_to(self.disk)
    }

    fn flush_to(&mut self, disk: Target) -> Result<(), Cause> {
        let flush = self.poller.request(disk, IoContainer::flush()).unwrap();
        self.look_until(|rig| rig.is_settled(flush));
        self.poller.claim(flush).unwrap().1.map_err(|failure| failure.cause)
    }

    /// Writes ones, from block 0 on, by requests of so many blocks each, which share a command if they can.
    fn write_neighbours(&mut self, requests: &[usize], events: bool) -> Vec<Event> {
        self.poller.plug(self.queue);
        let (mut lba, mut writes) = (0, Vec::new());
        for blocks in requests {
            match events {
                true => writes.push(self.request_write(lba, *blocks, 1)),
                false => self.write(lba, *blocks, 1),
            }
            lba += *blocks as u64;
        }
        self.poller.unplug(self.queue);
        writes
    }

    /// Whether any of so many blocks of ones is lost when the power has failed; a flush that `covered` them allows none.
    fn is_lost(&self, blocks: usize, covered: bool, case: impl Debug) -> bool {
        self.emulator.power_loss();
        let mut bytes = vec![0; blocks * BLOCK];
        assert!(self.emulator.read_medium(1, 0, &mut bytes));
        let whole = bytes.iter().all(|byte| *byte == 1);
        assert!(whole || !covered, "{case:?}");
        !whole
    }

    fn is_settled(&self, event: Event) -> bool {
        matches!(self.poller.state(event), Some(State::Settled(..)))
    }

    fn faults(&self, faults: &[(Commands, Effect, u64)]) {
        let plan = faults.iter().fold(Faults::default(), |plan, (commands, effect, times)| {
            plan.with(Fault::new(*commands, *effect).times(*times))
        });
        self.emulator.set_faults(plan);
    }
}

fn aborts() -> Commands {
    Commands::admin().opcode(admin_opcode::ABORT)
}

// ---- the command timeout ----

#[test]
fn a_command_is_overdue_after_its_timeout_and_a_quarter_more_at_most() {
    let mut rig = rig("mdts=5");
    rig.emulator.hold(Commands::reads());
    rig.emulator.hold(aborts());
    rig.read(0, 1);
    rig.spend(TIMEOUT - Duration::from_millis(100));
    assert_eq!(rig.stats().timeouts, 0);
    rig.spend(TIMEOUT / 4 + Duration::from_millis(600));
    assert_eq!(rig.stats().timeouts, 1);
    assert_eq!(rig.poller.outstanding(), 1, "the request goes on");
}

/// Time that nobody polled in is none.
#[test]
fn a_thread_that_was_held_up_times_nothing_out() {
    let mut rig = rig("mdts=5");
    rig.faults(&[(Commands::reads(), Effect::Delay(TIMEOUT * 8), 1)]);
    rig.read(0, 1);
    rig.look();
    rig.emulator.advance(TIMEOUT * 9);
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
    assert_eq!(rig.stats().timeouts, 0);
}

#[test]
fn without_a_timeout_a_command_may_take_for_ever() {
    let mut rig = rig_with("mdts=5", QueueOptions::default().command_timeout(None));
    rig.emulator.hold(Commands::reads());
    rig.read(0, 1);
    for _ in 0..8 {
        rig.spend(Duration::from_secs(100));
    }
    assert_eq!((rig.stats().timeouts, rig.stats().aborts), (0, 0));
    rig.emulator.release_all();
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
}

#[test]
fn timeouts_have_a_range() {
    let rig = rig("mdts=5");
    for timeout in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
        let options = QueueOptions::default().command_timeout(timeout);
        let refused = Poller::new(1).add_queue(&rig.controller, options).unwrap_err().to_string();
        assert!(refused.contains("command timeout") && refused.contains("1ms"), "{refused}");
    }
}

/// Slots that are used again and again are never old, however often a sweep finds them in flight; what a
/// sweep has seen completes like anything else.
#[test]
fn a_busy_queue_is_not_overdue() {
    let mut rig = rig("mdts=5");
    (0..8).for_each(|lba| rig.read(lba, 1));
    for round in 0..64 {
        rig.emulator.advance(TIMEOUT / 8);
        let mut done = 0;
        for _ in 0..2000 {
            done += rig.poller.poll(|done| {
                assert_eq!(done.result(), Ok(()));
                done.resubmit().unwrap();
            });
            rig.emulator.step();
        }
        assert!(done > 8000, "{done} in round {round}");
    }
    assert_eq!((rig.stats().timeouts, rig.stats().faults), (0, 0));
}

// ---- Abort ----

/// One Abort for each command that is overdue, and no more at a time than the controller takes.
#[test]
fn overdue_commands_are_aborted_within_the_limit() {
    for (acl, most) in [(0u8, 1), (1, 2), (7, 2)] {
        let emulator = emulator(&format!("mdts=5,acl={acl}"));
        let mut rig = open(emulator, QueueOptions::default().depth(8).command_timeout(TIMEOUT));
        assert_eq!(rig.controller.identity().acl, acl);
        rig.emulator.hold(Commands::reads());
        rig.emulator.hold(aborts());
        (0..5).for_each(|lba| rig.read(lba, 1));
        rig.spend(TIMEOUT * 3 / 2);
        let held = rig.emulator.held().iter().filter(|(qid, _)| *qid == 0).count();
        assert_eq!(held, most, "ACL {acl}");
        assert_eq!(rig.stats().aborts, 5);
        assert_eq!(rig.emulator.counters().excess_aborts, 0);
    }
}

/// The owner gave it up: the controller is told, and it settles.
#[test]
fn what_is_cancelled_is_aborted_and_settles() {
    let mut rig = rig("mdts=5");
    rig.emulator.hold(Commands::writes());
    let events: Vec<Event> = (0..2).map(|i| rig.request_write(i * 8, 1, 1)).collect();
    rig.look();
    rig.poller.cancel(events[0]);
    rig.poller.set_deadline(events[1], Duration::from_millis(1));
    assert!(matches!(rig.poller.state(events[0]), Some(State::Resolved(_))));
    rig.spend(Duration::from_millis(100));
    for (event, cause) in events.into_iter().zip([Cause::Cancelled, Cause::Expired]) {
        assert!(rig.is_settled(event), "{cause}");
        assert_eq!(rig.poller.claim(event).unwrap().1.unwrap_err().cause, cause);
    }
    assert_eq!(rig.stats().aborts, 2);
    assert_eq!(rig.emulator.counters().errors, 2, "both were aborted");
    // The queue goes on.
    rig.emulator.release_all();
    rig.write(0, 1, 7);
    rig.read(1, 1);
    assert!(rig.settle(TIMEOUT).iter().all(|outcome| outcome.1 == Ok(())));
}

/// The command was aborted, the request lives: it goes down once more, and nobody notices.
#[test]
fn what_was_aborted_is_sent_again() {
    let mut rig = rig("mdts=1");
    rig.faults(&[(Commands::reads(), Effect::Delay(TIMEOUT * 100), 3)]);
    rig.write(0, 8, 5);
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
    // One goes down whole; the other in four pieces, two of which are late.
    rig.read(0, 1);
    rig.read(0, 8);
    for (_, result, bytes) in rig.settle(TIMEOUT * 2) {
        assert_eq!(result, Ok(()));
        assert!(bytes.iter().all(|byte| *byte == 5), "what is read is what was written");
    }
    let stats = rig.stats();
    assert_eq!((stats.timeouts, stats.aborts, stats.resent, stats.resets), (3, 3, 3, 0));
}

/// It is late every time: in the end the request fails, and says why.
#[test]
fn what_is_aborted_again_and_again_fails() {
    let mut rig = rig("mdts=5");
    rig.faults(&[(Commands::reads().lbas(3..4), Effect::Delay(TIMEOUT * 100), u64::MAX)]);
    rig.read(3, 1);
    let outcome = rig.settle(TIMEOUT * 8).remove(0);
    let failure = outcome.1.unwrap_err();
    assert_eq!((failure.lba, failure.status()), (3, Some(Status::ABORT_REQUESTED)));
    assert_eq!(rig.stats().resent, 3);
    rig.read(0, 1);
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
}

/// Its answer says that there was nothing to abort: no more is waited for than the completion that may be on its way.
#[test]
fn an_abort_that_finds_nothing_is_not_waited_for() {
    let mut rig = rig("mdts=5");
    rig.faults(&[(Commands::reads(), Effect::Drop, 1)]);
    rig.read(0, 1);
    let outcomes = rig.spend(TIMEOUT * 7 / 4);
    assert_eq!((rig.stats().aborts, rig.stats().resets), (1, 1), "not after twice the timeout");
    assert!(outcomes.len() == 1 && outcomes[0].1 == Ok(()));
}

/// Commands may take for ever; Aborts may not.
#[test]
fn aborts_without_an_answer_cost_a_reset() {
    let mut rig = rig_with("mdts=5", QueueOptions::default().command_timeout(None));
    rig.emulator.hold(Commands::writes());
    rig.emulator.hold(aborts());
    let event = rig.request_write(0, 1, 1);
    rig.look();
    rig.poller.cancel(event);
    rig.spend(Duration::from_secs(58));
    assert!(!rig.is_settled(event) && rig.stats().resets == 0);
    rig.spend(Duration::from_secs(4));
    rig.look();
    assert!(rig.is_settled(event) && rig.stats().resets == 1);
}

// ---- controller reset ----

/// A completion is lost, so that there is nothing to abort: the controller is reset, and the request goes on.
#[test]
fn a_lost_completion_costs_a_reset() {
    let mut rig = rig("mdts=1");
    rig.faults(&[(Commands::io(), Effect::Drop, 2)]);
    let before = rig.emulator.counters().resets;
    rig.write(0, 8, 9);
    assert_eq!(rig.settle(TIMEOUT * 3)[0].1, Ok(()));
    let stats = rig.stats();
    assert_eq!((stats.timeouts, stats.resets, stats.faults), (2, 1, 0));
    assert_eq!(rig.emulator.counters().resets, before + 1);
    rig.read(0, 8);
    let outcome = rig.settle(TIMEOUT).remove(0);
    assert!(outcome.1 == Ok(()) && outcome.2.iter().all(|byte| *byte == 9));
}

/// What completed after its Abort was asked for, or was put off, or waited in line when the reset came.
#[test]
fn what_waits_goes_on_after_a_reset() {
    let mut rig = rig("mdts=1");
    rig.faults(&[(Commands::writes().lbas(16..17), Effect::Drop, 1)]);
    // More than there are slots for; some of them are neighbours.
    (0..40).for_each(|i| rig.write(i * 2, 2, i as u8));
    let outcomes = rig.settle(TIMEOUT * 3);
    assert_eq!(
        outcomes.iter().map(|outcome| outcome.0).collect::<Vec<_>>(),
        (0..40).map(|i| i * 2).collect::<Vec<_>>()
    );
    assert!(outcomes.iter().all(|outcome| outcome.1 == Ok(())));
    assert_eq!(rig.stats().resets, 1);
    (0..40).for_each(|i| rig.read(i * 2, 2));
    for (tag, result, bytes) in rig.settle(TIMEOUT) {
        assert!(result == Ok(()) && bytes.iter().all(|byte| u64::from(*byte) == tag / 2), "block {tag}");
    }
}

/// A fatal status is found without any timeout.
#[test]
fn a_fatal_status_costs_a_reset() {
    let mut rig = rig("mdts=5");
    rig.emulator.hold(Commands::writes());
    rig.write(0, 4, 3);
    rig.look();
    rig.emulator.fail();
    rig.emulator.release_all();
    let mut outcomes = Vec::new();
    while rig.poller.outstanding() > 0 {
        rig.turn(&mut outcomes);
    }
    assert_eq!((outcomes.len(), outcomes[0].1), (1, Ok(())));
    assert_eq!((rig.stats().timeouts, rig.stats().resets), (0, 1));
}

/// Its failure is over with the reset: who asks is told so, and it is not reset for it again, however long it is silent.
#[test]
fn a_controller_that_was_reset_is_as_good_as_before() {
    let mut rig = rig("mdts=5");
    rig.emulator.hold(Commands::reads());
    rig.read(0, 4);
    rig.look();
    rig.emulator.fail();
    let mut outcomes = Vec::new();
    assert!(matches!(rig.controller.check(), Err(Error::Fatal { .. })));
    while rig.stats().resets == 0 {
        rig.turn(&mut outcomes);
    }
    rig.controller.check().unwrap();
    // More idle polls than until the controller's status is read.
    (0..70_000).for_each(|_| rig.turn(&mut outcomes));
    assert_eq!((rig.stats().resets, outcomes.len()), (1, 0));
    rig.emulator.release_all();
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
}

/// A reset clears what was set: it is set as before, and what depends on it goes on.
#[test]
fn features_are_set_again_after_a_reset() {
    let emulator = emulator("mdts=5");
    let status = Status::NAMESPACE_NOT_READY.with_crd(1);
    delays(&emulator, [3, 0, 0], Fault::new(Commands::reads(), Effect::Status(status)).times(2));
    let mut rig = open(emulator, QueueOptions::default().depth(8).command_timeout(TIMEOUT));
    let features = [
        FeatureId::NUMBER_OF_QUEUES,
        FeatureId::ASYNC_EVENT_CONFIGURATION,
        FeatureId::HOST_BEHAVIOR,
        FeatureId::VOLATILE_WRITE_CACHE,
    ];
    let read = |rig: &Rig| {
        features.map(|feature| {
            // SAFETY: what has data there has 512 bytes.
            let trust = unsafe { RawCommands::trust() };
            let get = Command::get_features(feature);
            let (completion, memory) = rig.controller.admin(&get, rig.memory(1, 0), 1000, trust).unwrap();
            assert!(completion.status().is_success(), "{feature:?}");
            (completion.dw0, memory.to_vec())
        })
    };
    let before = read(&rig);
    assert_eq!(before[2].1[0], 1, "ACRE");
    for resets in 1..=2 {
        rig.controller.reset().unwrap();
        (0..8).for_each(|_| drop(rig.look()));
        assert_eq!(rig.stats().resets, resets);
        assert!(read(&rig) == before);
        assert!(rig.emulator.is_listened_to(), "a request for events is outstanding");
    }
    rig.read(0, 1);
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
    assert_eq!(rig.stats().resent, 2, "without ACRE there are no retry delays");
}

/// Resets that are asked for cost what is in flight a delay. However many they are, the controller is not given up for
/// them; and while one lasts, nothing is wrong with it.
#[test]
fn resets_that_are_asked_for_lose_nothing() {
    let mut rig = rig("mdts=1");
    let mut other = beside(&rig);
    rig.emulator.hold(Commands::io());
    (0..8).for_each(|i| rig.write(100 + 8 * i, 8, i as u8 + 1));
    other.read(0, 4);
    let (mut outcomes, mut others) = (Vec::new(), Vec::new());
    for round in 1..=6 {
        rig.controller.reset().unwrap();
        rig.controller.reset().unwrap();
        rig.controller.check().unwrap();
        assert!(matches!(rig.controller.namespace(1), Err(Error::Resetting { .. })));
        for _ in 0..8 * LOOK {
            rig.turn(&mut outcomes);
            other.turn(&mut others);
        }
        assert_eq!((rig.stats().resets, other.stats().resets), (round, round));
        assert!(rig.stats().resent > 0 && outcomes.is_empty() && others.is_empty());
    }
    rig.emulator.release_all();
    let outcomes = rig.settle(TIMEOUT);
    assert_eq!((outcomes.len(), other.settle(TIMEOUT).len()), (8, 1));
    assert!(outcomes.iter().all(|outcome| outcome.1 == Ok(())));
    for i in 0..8 {
        rig.read(100 + 8 * i, 8);
    }
    let back = rig.settle(TIMEOUT);
    assert!((0..8).zip(&back).all(|(i, read)| read.1 == Ok(()) && read.2.iter().all(|byte| *byte == i + 1)));
    assert_eq!((rig.stats().timeouts, rig.stats().aborts, rig.stats().faults), (0, 0, 0));
}

/// With nobody polling, whoever asks for events goes on with the reset.
#[test]
fn a_reset_without_pollers_is_carried_out_by_events() {
    let emulator = emulator("mdts=5");
    let controller = Controller::open(emulator.function(), &DmaSpace::new().unwrap()).unwrap();
    let before = emulator.counters().resets;
    controller.reset().unwrap();
    let again = (0..LOOK).find(|_| {
        let _ = controller.events().count();
        emulator.step();
        controller.namespace(1).is_ok()
    });
    assert!(again.is_some() && emulator.counters().resets == before + 1);
}

/// Queue pairs of two pollers stop together and go on together; one that has nothing in flight as well.
#[test]
fn two_pollers_are_reset_together() {
    let mut one = rig("mdts=1");
    let mut other = beside(&one);
    let mut idle = beside(&one);
    one.faults(&[(Commands::reads().queue(1), Effect::Drop, 1)]);
    one.emulator.hold(Commands::io().queue(2));
    one.read(0, 4);
    other.write(100, 4, 1);
    let (mut outcomes, mut others) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        one.emulator.advance(TIMEOUT / 8);
        for _ in 0..LOOK {
            one.turn(&mut outcomes);
            other.turn(&mut others);
            idle.poller.poll(|_| panic!("it has nothing to do"));
        }
        // Before its own timeout: that of the first has to be what it is reset for.
        if one.stats().resets == 1 {
            one.emulator.release_all();
        }
    }
    assert_eq!((outcomes.len(), others.len()), (1, 1));
    assert!(outcomes[0].1 == Ok(()) && others[0].1 == Ok(()));
    for rig in [&one, &other, &idle] {
        assert_eq!(rig.stats().resets, 1);
    }
    idle.read(100, 4);
    assert!(idle.settle(TIMEOUT)[0].2.iter().all(|byte| *byte == 1));
}

/// The same with a thread for each, while both write and read what they wrote.
#[test]
fn pollers_in_threads_are_reset_together() {
    const RESETS: u64 = 4;
    let settings = "size=16M,block=4096,media=ram,mdts=1";
    let emulator = Emulator::spawn(Config::parse(settings).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let resets = [const { AtomicU64::new(0) }; 2];
    let ready = Barrier::new(3);
    let worker = |me: usize| {
        let mut poller = Poller::new(16);
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(4)).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        let (mut lba, mut fill) = (0, 0u8);
        ready.wait();
        while resets[me].load(Ordering::Relaxed) < RESETS {
            (lba, fill) = (lba % 64 + 8, fill.wrapping_add(1));
            let at = 1000 * me as u64 + lba;
            let mut memory = space.allocate(8 * BLOCK).unwrap();
            memory.fill(fill);
            for io in
                [IoContainer::write(at, memory), IoContainer::read(at, space.allocate(8 * BLOCK).unwrap())]
            {
                let event = poller.request(disk, io).unwrap();
                poller.wait(event, Duration::from_secs(60), |_| {}).unwrap();
                let (io, result) = poller.claim(event).unwrap();
                assert_eq!(result, Ok(()));
                assert!(io.into_memory().to_vec().iter().all(|byte| *byte == fill));
            }
            resets[me].store(poller.stats(queue).resets, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let worker = &worker;
        let workers = [0, 1].map(|me| scope.spawn(move || worker(me)));
        ready.wait();
        for round in 0..RESETS {
            while resets.iter().any(|resets| resets.load(Ordering::Relaxed) < round) {
                assert!(!workers.iter().any(|worker| worker.is_finished()), "a worker has failed");
                std::thread::yield_now();
            }
            controller.reset().unwrap();
        }
    });
    assert_eq!(resets.map(|resets| resets.into_inner()), [RESETS; 2]);
}

/// Nobody knows what a poller does that is not polled: the others wait a bounded time, and then all is lost.
#[test]
fn a_poller_that_never_stops_is_the_end() {
    let mut one = rig("mdts=1");
    let mut silent = beside(&one);
    one.faults(&[(Commands::reads(), Effect::Drop, u64::MAX)]);
    silent.read(7, 1);
    silent.poller.poll(|_| panic!("nothing is done yet"));
    one.read(0, 1);
    let outcome = one.settle(TIMEOUT * 3 + Duration::from_secs(20)).remove(0);
    assert_eq!(outcome.1.unwrap_err().cause, Cause::ControllerLost);
    // It learns of it when it is polled.
    assert_eq!(silent.settle(TIMEOUT)[0].1.unwrap_err().cause, Cause::ControllerLost);
    let error = one.controller.namespace(1).unwrap_err().to_string();
    assert!(error.contains("given up"), "{error}");
}

/// What comes too late meets another generation: it is counted, and delivered to nobody.
#[test]
fn late_completions_are_delivered_to_nobody() {
    let mut rig = rig("mdts=5");
    rig.write(0, 1, 1);
    rig.write(1, 1, 2);
    assert_eq!(rig.settle(TIMEOUT).len(), 2);
    rig.faults(&[(Commands::reads(), Effect::Double, 1), (Commands::reads(), Effect::Drop, 1)]);
    rig.read(0, 1);
    rig.settle(TIMEOUT * 3);
    rig.read(1, 1);
    let outcome = rig.settle(TIMEOUT).remove(0);
    assert!(outcome.1 == Ok(()) && outcome.2.iter().all(|byte| *byte == 2));
    assert_eq!(rig.stats().resets, 1);
}

/// What its owner gave up is not carried out after a reset; it keeps its memory until then.
#[test]
fn what_was_given_up_is_not_sent_again() {
    let mut rig = rig("mdts=5");
    rig.write(0, 1, 1);
    rig.settle(TIMEOUT);
    rig.faults(&[(Commands::reads().lbas(9..10), Effect::Drop, 1)]);
    rig.emulator.hold(aborts());
    rig.emulator.hold(Commands::writes());
    let event = rig.request_write(0, 1, 2);
    rig.read(9, 1);
    rig.look();
    rig.poller.cancel(event);
    rig.look();
    assert!(!rig.is_settled(event), "the controller may still read its memory");
    let outcomes = rig.settle_but(TIMEOUT * 4, 1);
    assert_eq!(outcomes.len(), 1);
    assert!(rig.is_settled(event) && rig.stats().resets == 1);
    assert_eq!(rig.poller.claim(event).unwrap().1.unwrap_err().cause, Cause::Cancelled);
    rig.emulator.release_all();
    rig.read(0, 1);
    assert!(rig.settle(TIMEOUT)[0].2.iter().all(|byte| *byte == 1), "the write was never carried out");
}

#[test]
fn what_is_not_to_be_replayed_is_reported() {
    let mut rig = rig("mdts=1");
    rig.poller.set_replay(rig.disk, Replay::Report).unwrap();
    rig.faults(&[(Commands::io(), Effect::Drop, 2)]);
    rig.write(4, 2, 1);
    rig.read(8, 2);
    let outcomes = rig.settle(TIMEOUT * 4);
    assert_eq!(outcomes[0].1, Err(Failure { lba: 4, cause: Cause::OutcomeUnknown }));
    assert_eq!(outcomes[1].1, Ok(()));
}

/// A command of the caller's own making is carried out twice only if that is said to do no harm.
#[test]
fn raw_commands_are_reported_unless_they_are_idempotent() {
    for idempotent in [false, true] {
        let mut rig = rig("mdts=5");
        rig.faults(&[(Commands::io(), Effect::Drop, 1)]);
        // SAFETY: the command, a flush, transfers nothing.
        let trust = unsafe { RawCommands::trust() };
        let io = IoContainer::raw(&Command::flush(0), MemoryChain::new(), trust).idempotent(idempotent);
        rig.poller.submit(rig.disk, io).unwrap();
        let result = rig.settle(TIMEOUT * 4).remove(0).1;
        let cause = result.map_err(|failure| failure.cause);
        assert_eq!(cause, if idempotent { Ok(()) } else { Err(Cause::OutcomeUnknown) });
    }
}

/// What would be another command if it were carried out again, or alone, is not; whatever is said of half a pair.
#[test]
fn what_cannot_be_repeated_has_an_unknown_outcome() {
    const ZONE_APPEND: u8 = 0x7d;
    const VENDOR: u8 = 0xc1;
    let raw = |opcode, flags| Command { opcode, flags, ..Command::flush(0) };
    let append = vec![(raw(ZONE_APPEND, 0), false)];
    let vendor = vec![(raw(VENDOR, 0), false)];
    let pair = [(io_opcode::COMPARE, FUSE_FIRST), (io_opcode::WRITE, FUSE_SECOND)];
    let pair = pair.map(|(opcode, flags)| (raw(opcode, flags), true)).to_vec();
    for commands in [append, vendor, pair] {
        let mut rig = rig("mdts=5");
        rig.faults(&[(Commands::io(), Effect::Drop, u64::MAX)]);
        // SAFETY: they have a block, and no command transfers more.
        let trust = unsafe { RawCommands::trust() };
        for (command, idempotent) in &commands {
            let io = IoContainer::raw(command, rig.memory(1, 0), trust).idempotent(*idempotent);
            rig.poller.submit(rig.disk, io).unwrap();
        }
        rig.look();
        let sent = rig.emulator.counters().io_commands;
        assert_eq!(sent, commands.len() as u64);
        for outcome in rig.settle(TIMEOUT * 4) {
            assert_eq!(outcome.1.unwrap_err().cause, Cause::OutcomeUnknown, "{commands:?}");
        }
        assert_eq!((rig.stats().resets, rig.emulator.counters().io_commands), (1, sent), "{commands:?}");
    }
}

/// What was written and not flushed may be gone with the cache: the next flush says so, once.
#[test]
fn the_next_flush_after_a_reset_says_that_the_cache_is_lost() {
    for (settings, lost) in [("mdts=5,vwc=on", true), ("mdts=5,vwc=off", false)] {
        for in_flight in [false, true] {
            let mut rig = rig(settings);
            let what = if in_flight { Commands::io() } else { Commands::reads() };
            rig.faults(&[(what, Effect::Drop, 1)]);
            if !in_flight {
                rig.read(0, 1);
                rig.settle(TIMEOUT * 4);
            }
            let mut results = Vec::new();
            for _ in 0..3 {
                rig.poller.submit(rig.disk, IoContainer::flush()).unwrap();
                results.push(rig.settle(TIMEOUT * 4).remove(0).1.map_err(|failure| failure.cause));
            }
            let first = if lost { Err(Cause::CacheLost) } else { Ok(()) };
            assert_eq!(results, [first, Ok(()), Ok(())], "{settings}, in flight: {in_flight}");
            assert_eq!(rig.stats().resets, 1);
        }
    }
}

/// A flush that is given up after a reset, and before it completes, tells nobody: the next one does.
#[test]
fn a_flush_that_was_given_up_does_not_keep_the_loss_to_itself() {
    let mut rig = rig("mdts=5,vwc=on");
    rig.emulator.hold(Commands::io());
    let given_up = rig.poller.request(rig.disk, IoContainer::flush()).unwrap();
    rig.look();
    rig.emulator.fail();
    // It is sent again, and held again.
    let resent = (0..100).any(|_| {
        rig.look();
        rig.stats().resets == 1 && !rig.emulator.held().is_empty()
    });
    assert!(resent);
    rig.poller.cancel(given_up);
    rig.emulator.release_all();
    let flush = rig.poller.request(rig.disk, IoContainer::flush()).unwrap();
    let both = (0..100).any(|_| {
        rig.look();
        rig.is_settled(given_up) && rig.is_settled(flush)
    });
    assert!(both);
    let cause = |rig: &mut Rig, event| rig.poller.claim(event).unwrap().1.map_err(|failure| failure.cause);
    assert_eq!(cause(&mut rig, given_up), Err(Cause::Cancelled));
    assert_eq!(cause(&mut rig, flush), Err(Cause::CacheLost));
}

/// A part of a write was done before the power failed, the rest after a flush has told of that: the next flush does not
/// succeed as if all of it were there. The flushes may be another poller's, so that the write has all slots.
#[test]
fn a_flush_covers_no_write_of_which_a_part_is_lost() {
    for depth in [1, 8] {
        let mut lost = 0;
        for seed in 0..8 {
            // Two blocks a command.
            let options = QueueOptions::default().depth(depth).command_timeout(TIMEOUT);
            let mut rig = rig_with(&format!("mdts=1,write_cache=1000,seed={seed}"), options);
            let namespace = rig.controller.namespace(1).unwrap();
            rig.disk = rig.poller.add_namespace(rig.queue, &namespace).unwrap();
            let options = QueueOptions::default().depth(depth).command_timeout(TIMEOUT);
            let other = rig.poller.add_queue(&rig.controller, options).unwrap();
            let other = rig.poller.add_namespace(other, &namespace).unwrap();
            rig.emulator.hold(Commands::writes().lbas(2..));
            rig.write(0, 6, 1);
            rig.look();
            rig.emulator.power_loss();
            assert_eq!(rig.flush_to(other), Err(Cause::CacheLost));
            rig.emulator.release_all();
            assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
            let covered = rig.flush_to(other) == Ok(());
            lost += u32::from(rig.is_lost(6, covered, ("depth", depth, "seed", seed)));
            // It is said once.
            assert_eq!([rig.flush_to(other), rig.flush_to(other)], [Err(Cause::CacheLost), Ok(())]);
        }
        assert!(lost > 0);
    }
}

/// A write was done before the power failed, all of it or a part, and its caller claims it after a flush has told of the
/// loss: the next flush does not succeed as if all of it were there.
#[test]
fn a_flush_covers_no_write_that_is_claimed_after_the_loss_was_told() {
    // Two blocks a command: of several, the rest is done after the reset.
    for requests in [&[2][..], &[6], &[1, 1]] {
        let blocks = requests.iter().sum();
        let mut lost = 0;
        for seed in 0..8 {
            let mut rig = rig(&format!("mdts=1,awupf=7,write_cache=1000,seed={seed}"));
            rig.emulator.hold(Commands::writes().lbas(2..));
            let writes = rig.write_neighbours(requests, true);
            rig.look();
            rig.emulator.power_loss();
            rig.emulator.release_all();
            rig.look_until(|rig| writes.iter().all(|write| rig.is_settled(*write)));
            assert_eq!(rig.flush(), Err(Cause::CacheLost));
            for write in writes {
                assert_eq!(rig.poller.claim(write).unwrap().1, Ok(()));
            }
            let covered = rig.flush() == Ok(());
            lost += u32::from(rig.is_lost(blocks, covered, (requests, "seed", seed)));
            assert_eq!([rig.flush(), rig.flush()], [Err(Cause::CacheLost), Ok(())]);
        }
        assert!(lost > 0);
    }
}

/// The same for a future that is asked after that, made an event or not.
#[test]
fn a_flush_covers_no_write_whose_future_is_asked_after_the_loss_was_told() {
    for (is_event, blocks) in [(false, 2), (false, 6), (true, 2), (true, 6)] {
        let mut lost = 0;
        for seed in 0..8 {
            let mut rig = rig(&format!("mdts=1,write_cache=1000,seed={seed}"));
            rig.emulator.hold(Commands::writes().lbas(2..));
            let write = IoContainer::write(0, rig.memory(blocks, 1));
            let read = IoContainer::read(100, rig.memory(1, 0));
            let Rig { emulator, poller, disk, .. } = &mut rig;
            let covered = poller.run(async |reactor| {
                let mut write = reactor.submit(*disk, write).unwrap();
                if is_event {
                    write.event();
                }
                // What can be done of the write is done before.
                assert_eq!(reactor.submit(*disk, read).unwrap().await.1, Ok(()));
                emulator.power_loss();
                emulator.release_all();
                let flush = async || reactor.submit(*disk, IoContainer::flush()).unwrap().await.1;
                assert_eq!(flush().await.unwrap_err().cause, Cause::CacheLost);
                assert_eq!(write.finished().await.result(), Ok(()));
                flush().await.is_ok()
            });
            lost += u32::from(rig.is_lost(
                blocks,
                covered,
                ("an event", is_event, "blocks", blocks, "seed", seed),
            ));
        }
        assert!(lost > 0);
    }
}

/// A write was done before the power failed, when its poller had stopped for the reset already; and that poller finds it,
/// or its caller claims it, after another poller's flush has told of the loss.
#[test]
fn a_flush_covers_no_write_that_is_found_after_the_loss_was_told() {
    let ways = [(false, false), (true, false), (true, true)];
    let ways = ways.iter().flat_map(|way| [(&[2][..], *way), (&[1, 1], *way)]);
    for (requests, (is_event, found_before)) in ways {
        let mut lost = 0;
        for seed in 0..8 {
            let (mut rig, mut other) = two(&format!("mdts=1,awupf=7,write_cache=1000,seed={seed}"));
            rig.emulator.hold(Commands::io());
            // A sweep finds this; what is sent after it has no marks of one.
            rig.read(100, 1);
            rig.look();
            let writes = rig.write_neighbours(requests, is_event);
            rig.look();
            assert_eq!(rig.emulator.held().len(), 2);
            rig.controller.reset().unwrap();
            // It stops; the controller waits for the other one.
            assert_eq!(rig.look(), []);
            rig.emulator.release(Commands::writes());
            rig.emulator.step();
            // One poll is no look at the controller.
            let mut found = 0;
            let mut poll =
                |rig: &mut Rig| rig.poller.poll(|done| found += usize::from(done.result().is_ok()));
            if found_before {
                poll(&mut rig);
            }
            rig.emulator.power_loss();
            rig.emulator.release_all();
            assert_eq!(other.flush(), Err(Cause::CacheLost));
            if !found_before {
                poll(&mut rig);
            }
            for write in writes {
                found += usize::from(rig.poller.claim(write).unwrap().1.is_ok());
            }
            assert_eq!(found, requests.len());
            let covered = other.flush() == Ok(());
            lost += u32::from(rig.is_lost(2, covered, (requests, "events", is_event, "seed", seed)));
        }
        assert!(lost > 0);
    }
}

/// The same of a write that is found before, and delivered after that: at the end of the turn, in which the closure was
/// called with something else.
#[test]
fn a_flush_covers_no_write_that_is_delivered_after_the_loss_was_told() {
    let mut lost = 0;
    for seed in 0..8 {
        let (mut rig, mut other) = two(&format!("mdts=1,write_cache=1000,seed={seed}"));
        rig.emulator.hold(Commands::io());
        rig.write(0, 2, 1);
        rig.read(100, 1);
        rig.look();
        rig.controller.reset().unwrap();
        assert_eq!(rig.look(), []);
        rig.emulator.release_all();
        rig.emulator.step();
        let Rig { emulator, poller, .. } = &mut rig;
        let mut delivered = Vec::new();
        poller.poll(|done| {
            if delivered.is_empty() {
                emulator.power_loss();
                assert_eq!(other.flush(), Err(Cause::CacheLost));
            }
            delivered.push((done.io().get_tag(), done.result()));
        });
        assert_eq!(delivered, [(100, Ok(())), (0, Ok(()))]);
        let covered = other.flush() == Ok(());
        lost += u32::from(rig.is_lost(2, covered, ("seed", seed)));
    }
    assert!(lost > 0);
}

/// A queue pair that is added after the reset tells of the loss as well.
#[test]
fn a_flush_on_a_new_queue_pair_says_that_the_cache_is_lost() {
    for is_event in [false, true] {
        let mut rig = rig("mdts=1,vwc=on");
        let namespace = rig.controller.namespace(1).unwrap();
        rig.controller.reset().unwrap();
        rig.look_until(|rig| rig.stats().resets == 1);
        let mut new = beside(&rig).with(&namespace);
        let result = match is_event {
            true => new.flush(),
            false => {
                new.poller.submit(new.disk, IoContainer::flush()).unwrap();
                new.settle(TIMEOUT).remove(0).1.map_err(|failure| failure.cause)
            }
        };
        assert_eq!(result, Err(Cause::CacheLost), "an event: {is_event}");
        assert_eq!(new.flush(), Ok(()));
    }
}

/// It comes back each time, and completes nothing: that has an end.
#[test]
fn resets_that_do_not_help_have_an_end() {
    let mut rig = rig("mdts=5");
    let before = rig.emulator.counters().resets;
    rig.faults(&[(Commands::io(), Effect::Drop, u64::MAX)]);
    (0..4).for_each(|lba| rig.read(lba, 1));
    let outcomes = rig.settle(TIMEOUT * 16);
    assert_eq!(outcomes.len(), 4);
    for outcome in outcomes {
        assert!(matches!(outcome.1.unwrap_err().cause, Cause::ControllerLost | Cause::OutcomeUnknown));
    }
    assert!(rig.emulator.counters().resets <= before + 4);
    assert!(matches!(rig.controller.reset(), Err(Error::Lost { .. })));
    assert!(matches!(rig.controller.check(), Err(Error::Lost { .. })));
}

/// One command is never answered, all others are: the request fails, the others go on.
#[test]
fn a_command_that_is_never_answered_fails_alone() {
    let mut rig = rig("mdts=5");
    rig.faults(&[(Commands::reads().lbas(3..4), Effect::Drop, u64::MAX)]);
    rig.read(3, 1);
    let mut outcomes = Vec::new();
    for _ in 0..64 * 8 {
        rig.write(10, 1, 1);
        outcomes.extend(rig.look());
        rig.emulator.advance(TIMEOUT / 8);
    }
    let (read, writes): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.0 == 3);
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].1.unwrap_err().cause, Cause::OutcomeUnknown);
    assert!(writes.len() > 400 && writes.iter().all(|outcome| outcome.1 == Ok(())), "{}", writes.len());
}

/// A controller that is being reset, or was given up, takes no commands; and says so at once.
#[test]
fn during_a_reset_nothing_is_sent() {
    let mut rig = rig("mdts=5");
    rig.emulator.fail();
    rig.read(0, 1);
    // It is not stepped: it does not get anywhere.
    (0..90_000).for_each(|_| _ = rig.poller.poll(|_| panic!("nothing was carried out")));
    let error = rig.controller.namespace(1).unwrap_err().to_string();
    assert!(error.contains("is being reset"), "{error}");
    let mut poller = Poller::new(1);
    assert!(poller.add_queue(&rig.controller, QueueOptions::default()).is_err());
    assert_eq!(rig.settle(TIMEOUT)[0].1, Ok(()));
    poller.add_queue(&rig.controller, QueueOptions::default()).unwrap();
}

// ---- function reset, and the end ----

/// Enabled again, the controller does not get ready: that takes a reset of the function.
#[test]
fn what_a_controller_reset_does_not_cure_a_function_reset_may() {
    let mut rig = rig("mdts=1,to=4");
    rig.write(0, 8, 4);
    rig.settle(TIMEOUT);
    rig.emulator.hang(Remedy::FunctionReset);
    rig.faults(&[(Commands::reads(), Effect::Drop, 1)]);
    rig.read(0, 8);
    let outcome = rig.settle(TIMEOUT * 4).remove(0);
    assert!(outcome.1 == Ok(()) && outcome.2.iter().all(|byte| *byte == 4), "{:?}", outcome.1);
    assert_eq!(rig.stats().resets, 1);
}

/// Nothing helps: everything fails, in a bounded time, and the memory comes back, since the function is kept from
/// it.
#[test]
fn what_nothing_cures_is_lost() {
    let mut rig = rig("mdts=5,to=4");
    rig.emulator.hang(Remedy::None);
    rig.faults(&[(Commands::reads(), Effect::Drop, 1)]);
    (0..20).for_each(|lba| rig.read(lba, 1));
    let outcomes = rig.settle(TIMEOUT * 4);
    let failed = |cause| outcomes.iter().filter(|o| o.1.is_err_and(|failure| failure.cause == cause)).count();
    let done = outcomes.iter().filter(|outcome| outcome.1 == Ok(())).count();
    assert_eq!((done, failed(Cause::ControllerLost)), (19, 1));
    assert!(outcomes.iter().all(|outcome| outcome.2.len() == BLOCK));
    // The handles stay safe to use.
    rig.read(0, 1);
    assert_eq!(rig.settle(TIMEOUT)[0].1.unwrap_err().cause, Cause::ControllerLost);
    assert!(rig.controller.active_namespaces().is_err());
}

/// Pulled in the middle of a reset.
#[test]
fn what_vanishes_during_a_reset_is_lost() {
    for looks in 0..8 {
        let mut rig = rig("mdts=5");
        rig.faults(&[(Commands::reads(), Effect::Drop, 1)]);
        rig.read(0, 1);
        rig.look();
        rig.emulator.fail();
        let mut outcomes = Vec::new();
        (0..65_536 + looks * 1024).for_each(|_| rig.turn(&mut outcomes));
        rig.emulator.unplug();
        (0..200_000).for_each(|_| rig.turn(&mut outcomes));
        outcomes.extend(rig.settle(TIMEOUT * 4));
        let result = outcomes.remove(0).1;
        assert!(result.is_ok() || result.is_err_and(|failure| failure.cause == Cause::ControllerLost));
        assert!(outcomes.is_empty());
    }
}

/// After a reset another controller answers: its data is not that of the requests.
#[test]
fn another_controller_gets_nothing() {
    let mut rig = rig("mdts=5,serial=ONE");
    let other = Faults::default().with(Fault::new(Commands::writes(), Effect::Drop).times(1)).identify(
        Cns::CONTROLLER,
        0,
        4,
        *b"TWO                 ",
    );
    rig.emulator.set_faults(other);
    rig.write(0, 1, 1);
    assert_eq!(rig.settle(TIMEOUT * 8)[0].1.unwrap_err().cause, Cause::ControllerLost);
    assert_eq!(rig.emulator.counters().writes, 1, "the one that was lost");
}

/// A namespace may be another one after a reset, too.
#[test]
fn a_namespace_is_looked_at_again() {
    let mut rig = rig("mdts=5");
    let namespace = rig.controller.namespace(1).unwrap();
    let disk = rig.poller.add_namespace(rig.queue, &namespace).unwrap();
    rig.disk = disk;
    rig.faults(&[
        (Commands::reads(), Effect::Drop, 1),
        // The events that tell of it are lost.
        (Commands::admin().opcode(admin_opcode::GET_LOG_PAGE), Effect::Drop, u64::MAX),
    ]);
    assert!(rig.emulator.resize(1, 100));
    rig.read(0, 1);
    assert_eq!(rig.settle(TIMEOUT * 4)[0].1, Ok(()));
    assert_eq!(namespace.blocks(), 100);
    let beyond = IoContainer::read(100, rig.memory(1, 0));
    assert!(rig.poller.submit(rig.disk, beyond).is_err());
}

// ---- Command Retry Delay ----

/// CRDT1 to CRDT3 of Identify Controller, in units of 100 ms.
fn delays(emulator: &Emulator, crdt: [u16; 3], fault: Fault) {
    let bytes: Vec<u8> = crdt.iter().flat_map(|time| time.to_le_bytes()).collect();
    emulator.set_faults(Faults::default().identify(Cns::CONTROLLER, 0, 128, bytes).with(fault));
}

/// The controller says when to try again: not before, and not much later.
#[test]
fn a_retry_delay_is_kept() {
    for (crd, millis) in [(1, 300), (2, 700), (3, 1200)] {
        let emulator = emulator("mdts=5");
        let status = Status::NAMESPACE_NOT_READY.with_crd(crd);
        delays(&emulator, [3, 7, 12], Fault::new(Commands::reads(), Effect::Status(status)).times(2));
        let mut rig = open(emulator, QueueOptions::default().depth(8).command_timeout(TIMEOUT));
        rig.read(0, 1);
        for again in 0..2 {
            rig.look();
            rig.look();
            rig.emulator.advance(Duration::from_millis(millis - 1));
            assert!(rig.look().is_empty());
            assert_eq!(rig.stats().resent, again, "too early");
            rig.emulator.advance(Duration::from_millis(1));
            rig.look();
            assert_eq!(rig.stats().resent, again + 1);
        }
        rig.look();
        assert_eq!(rig.poller.outstanding(), 0, "it has succeeded");
    }
}

/// A few times, and not with Do Not Retry, nor for hours; nor where nothing was agreed on.
#[test]
fn retries_have_an_end() {
    let not_ready = Status::NAMESPACE_NOT_READY;
    for (status, crdt, resent, said) in [
        (not_ready.with_crd(1), [1, 0, 0], 3, not_ready.with_crd(1)),
        (not_ready.with_crd(2), [1, 0, 0], 3, not_ready.with_crd(2)),
        (not_ready.with_crd(1).with_dnr(), [1, 0, 0], 0, not_ready.with_crd(1).with_dnr()),
        (not_ready.with_crd(1), [u16::MAX, 0, 0], 0, not_ready.with_crd(1)),
        (not_ready.with_crd(1), [0, 0, 0], 0, not_ready),
        (not_ready, [1, 1, 1], 0, not_ready),
    ] {
        let emulator = emulator("mdts=5");
        delays(&emulator, crdt, Fault::new(Commands::reads(), Effect::Status(status)));
        let mut rig = open(emulator, QueueOptions::default().depth(8).command_timeout(TIMEOUT));
        rig.read(0, 1);
        let failure = rig.settle(TIMEOUT).remove(0).1.unwrap_err();
        assert_eq!((failure.status(), rig.stats().resent), (Some(said), resent), "{status} {crdt:?}");
    }
}

/// Cancelled while it waits for its time: nothing is in flight, so it is over at once.
#[test]
fn what_waits_for_its_time_can_be_cancelled() {
    let emulator = emulator("mdts=5");
    let fault = Fault::new(Commands::writes(), Effect::Status(Status::NAMESPACE_NOT_READY.with_crd(1)));
    delays(&emulator, [100, 0, 0], fault);
    let mut rig = open(emulator, QueueOptions::default().depth(1).command_timeout(TIMEOUT));
    let event = rig.request_write(0, 1, 1);
    rig.look();
    rig.poller.cancel(event);
    rig.poller.poll(|_| panic!("it is an event"));
    assert!(rig.is_settled(event));
    rig.read(0, 1);
    assert_eq!(rig.settle_but(TIMEOUT, 1)[0].1, Ok(()), "its slot is free");
    assert_eq!(rig.poller.claim(event).unwrap().1.unwrap_err().cause, Cause::Cancelled);
}

/// Two who use one namespace through one queue, neighbours on the medium, of whom one wants nothing carried out twice.
#[test]
fn neighbours_of_two_minds_about_replay_share_no_command() {
    let mut rig =
        rig_with("mdts=5,awupf=7", QueueOptions::default().depth(8).command_timeout(TIMEOUT).gather(true));
    let namespace = rig.controller.namespace(1).unwrap();
    let other = rig.poller.add_namespace(rig.queue, &namespace).unwrap();
    rig.poller.set_replay(other, Replay::Report).unwrap();
    rig.faults(&[(Commands::io(), Effect::Drop, 2)]);
    rig.write(4, 1, 1);
    let memory = rig.memory(1, 2);
    rig.poller.submit(other, IoContainer::write(5, memory).tag(5)).unwrap();
    let outcomes = rig.settle(TIMEOUT * 4);
    assert_eq!(outcomes[0].1, Ok(()));
    assert_eq!(outcomes[1].1, Err(Failure { lba: 5, cause: Cause::OutcomeUnknown }));
}
