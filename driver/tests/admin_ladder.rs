//! Admin commands that are not completed in time: Abort, and what comes after it; and what a controller that has
//! stopped, or needs a reset, makes of them.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use kiovec::memory::{DmaSpace, MemoryChain, RawCommands, Registration};
use kiovec::spec::{Command, Completion, FeatureId, admin_opcode};
use kiovec::{Cause, Controller, Error, IoContainer, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = 4096;
const PAGES: usize = 24;
/// Polls from one look at the controllers to the next, and some more.
const LOOK: usize = 1100;

#[derive(Clone, FromBytes, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

struct Rig {
    emulator: Arc<Emulator>,
    controller: Arc<Controller>,
    memory: Registration,
    poller: Poller,
    queue: QueueId,
    disk: Target,
    space: DmaSpace,
}

fn rig(timeout: Option<Duration>) -> Rig {
    let config = Config::parse("size=1M,block=4096,media=ram,mdts=5").unwrap();
    let emulator = Arc::new(Emulator::stepped(config).unwrap());
    let space = DmaSpace::new().unwrap();
    let memory = space.register(vec![Page([0; PAGE]); PAGES]).unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(16);
    let queue = poller.add_queue(&controller, QueueOptions::default().command_timeout(timeout)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Rig { emulator, controller, memory, poller, queue, disk, space }
}

fn asked() -> Commands {
    Commands::admin().opcode(admin_opcode::GET_FEATURES)
}

/// Get Features, whose data go to this memory.
fn ask(controller: &Controller, memory: MemoryChain, millis: u64) -> Result<Completion, Error> {
    let command = Command::get_features(FeatureId::HOST_BEHAVIOR);
    // SAFETY: the command transfers 512 bytes, and the memory is a page, or none, which is refused.
    let trust = unsafe { RawCommands::trust() };
    controller.admin(&command, memory, millis, trust).map(|(completion, _)| completion)
}

impl Rig {
    fn ask(&self, page: usize, millis: u64) -> Result<Completion, Error> {
        ask(&self.controller, self.page(page).unwrap(), millis)
    }

    /// A page of the memory, unless it is somebody else's.
    fn page(&self, page: usize) -> Result<MemoryChain, Error> {
        self.memory.chain(page * PAGE..(page + 1) * PAGE)
    }

    fn read(&mut self) {
        let memory = self.space.allocate(PAGE).unwrap();
        self.poller.submit(self.disk, IoContainer::read(0, memory)).unwrap();
    }

    fn resets(&self) -> u64 {
        self.poller.stats(self.queue).resets
    }

    /// Polls so often that the controller is looked after a few times; how many requests have succeeded.
    fn look(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..4 * LOOK {
            self.poller.poll(|request| {
                assert_eq!(request.result(), Ok(()));
                done += 1;
            });
            self.emulator.step();
        }
        done
    }
}

/// Its memory comes back with the completion that the Abort makes, nothing else is disturbed, and what comes later is
/// answered with its own completion.
#[test]
fn an_admin_command_that_takes_too_long_is_aborted() {
    let mut rig = rig(None);
    rig.emulator.hold(Commands::reads());
    rig.emulator.hold(asked());
    rig.read();
    rig.look();
    assert!(matches!(rig.ask(0, 100), Err(Error::Timeout { millis: 100, .. })));
    assert!(rig.page(0).is_err(), "the controller may still write to it");
    rig.look();
    let counters = rig.emulator.counters();
    assert_eq!((counters.aborts, counters.aborted), (1, 1));
    rig.page(0).unwrap();
    // Too late for its Abort.
    assert!(rig.ask(1, 100).is_err());
    rig.emulator.release_all();
    rig.look();
    rig.page(1).unwrap();
    assert!(rig.ask(2, 100).unwrap().status().is_success());
    rig.emulator.advance(Duration::from_secs(120));
    assert_eq!((rig.look(), rig.resets()), (0, 0), "the read was released before");
    assert_eq!(rig.poller.outstanding(), 0);
}

/// There is nothing to abort: a minute later the controller is reset, and what was in flight goes on.
#[test]
fn an_admin_command_that_is_never_completed_costs_a_reset() {
    let mut rig = rig(None);
    rig.emulator.set_faults(Faults::default().with(Fault::new(asked(), Effect::Drop).once()));
    rig.emulator.hold(Commands::reads());
    rig.read();
    assert!(matches!(rig.ask(0, 100), Err(Error::Timeout { .. })));
    rig.emulator.advance(Duration::from_secs(59));
    assert_eq!(rig.look(), 0);
    let counters = rig.emulator.counters();
    assert_eq!((counters.aborts, counters.aborted, rig.resets()), (1, 0, 0));
    assert!(rig.page(0).is_err());
    // Meanwhile others are answered.
    assert!(rig.ask(1, 100).unwrap().status().is_success());
    rig.emulator.advance(Duration::from_secs(2));
    rig.look();
    rig.look();
    assert_eq!(rig.resets(), 1);
    rig.page(0).unwrap();
    rig.emulator.release_all();
    assert_eq!(rig.look(), 1);
    assert!(rig.ask(0, 100).unwrap().status().is_success());
}

/// With nobody who polls, and time-outs that are far too short: the queue does not overflow, and all memory comes back.
#[test]
fn admin_commands_that_nobody_answers_do_not_pile_up() {
    let mut rig = rig(None);
    rig.emulator.set_faults(Faults::default().with(Fault::new(asked(), Effect::Drop)));
    let results: Vec<_> = (0..PAGES).map(|page| rig.ask(page, 1)).collect();
    let timeouts = results.iter().take_while(|result| matches!(result, Err(Error::Timeout { .. }))).count();
    assert!((1..=9).contains(&timeouts), "{timeouts}");
    assert!(results[timeouts..].iter().all(|result| matches!(result, Err(Error::Resetting { .. }))));
    rig.poller = Poller::new(1);
    rig.emulator.set_faults(Faults::default());
    let again = (0..LOOK).any(|_| {
        let _ = rig.controller.events().count();
        rig.emulator.step();
        rig.controller.namespace(1).is_ok()
    });
    assert!(again);
    assert!((0..PAGES).all(|page| rig.page(page).is_ok()));
}

/// One thread waits an hour for an admin command. The read of another one is lost, and is not kept waiting for that.
#[test]
fn an_admin_command_does_not_keep_others_from_a_reset() {
    let mut rig = rig(Some(Duration::from_secs(1)));
    rig.emulator.hold(asked());
    rig.emulator.set_faults(Faults::default().with(Fault::new(Commands::reads(), Effect::Drop).once()));
    let (controller, emulator) = (Arc::clone(&rig.controller), Arc::clone(&rig.emulator));
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&controller, MemoryChain::new(), 3_600_000));
        while emulator.held().is_empty() {
            std::thread::yield_now();
        }
        rig.read();
        let done = (0..1000).any(|_| {
            emulator.advance(Duration::from_millis(100));
            rig.look() == 1
        });
        assert!(done);
        waiting.join().unwrap()
    });
    assert!(matches!(waited, Err(Error::Resetting { .. })), "{waited:?}");
    assert_eq!((rig.resets(), rig.poller.outstanding()), (1, 0));
}

/// No I/O is in flight that would show it.
#[test]
fn an_admin_command_finds_a_controller_that_has_stopped() {
    let mut rig = rig(None);
    rig.emulator.fail();
    assert!(matches!(rig.ask(0, 100), Err(Error::Fatal { .. })));
    assert!(matches!(rig.ask(1, 100), Err(Error::Resetting { .. })));
    rig.look();
    rig.look();
    assert_eq!(rig.resets(), 1);
    assert!(rig.ask(0, 100).unwrap().status().is_success());
}

/// Whoever notices first, it is lost for all, and says so as often as it is asked.
#[test]
fn an_admin_command_finds_a_controller_that_was_pulled() {
    let mut rig = rig(None);
    rig.emulator.hold(Commands::reads());
    rig.read();
    rig.look();
    rig.emulator.unplug();
    for page in 0..PAGES {
        let error = rig.ask(page, 100).unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
    }
    let mut causes = Vec::new();
    (0..2 * LOOK).for_each(|_| {
        rig.poller.poll(|request| causes.push(request.result().unwrap_err().cause));
    });
    assert_eq!(causes, [Cause::ControllerLost]);
}
