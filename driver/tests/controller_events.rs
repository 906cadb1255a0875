//! What a controller reports of its own accord: read, handed on once, armed again; and what becomes of
//! namespaces in use.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use kiovec::layer::Disk;
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::log::{WARNING_RELIABILITY, WARNING_SPARE, WARNING_TEMPERATURE};
use kiovec::spec::{AsyncEvent, Cns, Command, LogPage, Status, admin_opcode};
use kiovec::{
    Cause, Controller, ControllerEvent, Failure, IoContainer, Namespace, NamespaceState, Poller, QueueId,
    QueueOptions, Refusal, Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults, Health};

const BLOCK: usize = 4096;
/// Polls of one look at the controllers, and one more.
const LOOK: usize = 1025;

struct Bench {
    poller: Poller,
    queue: QueueId,
    disk: Target,
    namespace: Namespace,
    controller: Arc<Controller>,
    space: DmaSpace,
    emulator: Emulator,
}

fn open(settings: &str, faults: Faults) -> (Emulator, DmaSpace, Arc<Controller>) {
    let settings = format!("size=1M,block=4096,media=ram,{settings}");
    let emulator = Emulator::stepped(Config::parse(settings.trim_end_matches(',')).unwrap()).unwrap();
    emulator.set_faults(faults);
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    (emulator, space, controller)
}

fn bench_with(settings: &str, options: QueueOptions, faults: Faults) -> Bench {
    let (emulator, space, controller) = open(settings, faults);
    let mut poller = Poller::new(256);
    let queue = poller.add_queue(&controller, options).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let disk = poller.add_namespace(queue, &namespace).unwrap();
    Bench { poller, queue, disk, namespace, controller, space, emulator }
}

fn bench(settings: &str) -> Bench {
    bench_with(settings, QueueOptions::default(), Faults::default())
}

impl Bench {
    /// Long enough for a poller to have read what has been reported, if that is little.
    fn settle(&mut self) {
        for _ in 0..12 * LOOK {
            self.poller.poll(|_| {});
            self.emulator.step();
        }
    }

    /// What has been reported, however much, and a poller that knows it.
    fn events(&mut self) -> Vec<ControllerEvent> {
        let mut events = Vec::new();
        for _ in 0..100 {
            self.emulator.step();
            events.extend(self.controller.events());
        }
        (0..LOOK).for_each(|_| {
            self.poller.poll(|_| {});
        });
        events
    }

    fn memory(&self, blocks: usize) -> MemoryChain {
        self.space.allocate(blocks * BLOCK).unwrap()
    }

    fn read(&mut self, lba: u64, blocks: usize) -> Result<(), Failure> {
        let memory = self.memory(blocks);
        self.poller.submit(self.disk, IoContainer::read(lba, memory)).unwrap();
        let mut result = None;
        while result.is_none() {
            self.emulator.step();
            self.poller.poll(|done| result = Some(done.result()));
        }
        result.unwrap()
    }

    fn refused(&mut self, lba: u64) -> Refusal {
        let memory = self.memory(1);
        self.poller.submit(self.disk, IoContainer::read(lba, memory)).unwrap_err().reason
    }
}

fn warnings(critical_warning: u8) -> Health {
    Health { critical_warning, temperature: 350, available_spare: 7, percentage_used: 120 }
}

fn error(info: u8) -> AsyncEvent {
    AsyncEvent::new(AsyncEvent::TYPE_ERROR, info, LogPage::ERROR)
}

fn only(mut events: Vec<ControllerEvent>) -> ControllerEvent {
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

fn changed(event: &ControllerEvent) -> (Vec<u32>, bool) {
    match event {
        ControllerEvent::NamespacesChanged { nsids, more } => (nsids.clone(), *more),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_reported_when_nothing_happens() {
    let mut bench = bench("");
    bench.settle();
    assert!(bench.events().is_empty());
}

#[test]
fn health() {
    let mut bench = bench("");
    // The same again and again: each is reported once, and the next one comes through.
    for _ in 0..10 {
        bench.emulator.set_health(warnings(WARNING_TEMPERATURE));
        match only(bench.events()) {
            ControllerEvent::Health { info: AsyncEvent::TEMPERATURE_THRESHOLD, log: Some(log) } => {
                assert_eq!((log.critical_warning, log.temperature_kelvin()), (WARNING_TEMPERATURE, 350));
                assert_eq!((log.available_spare, log.percentage_used), (7, 120));
            }
            other => panic!("{other:?}"),
        }
        assert!(bench.events().is_empty());
        // A warning that goes is none.
        bench.emulator.set_health(Health::default());
        assert!(bench.events().is_empty());
    }
    // Three kinds at a time: the type is masked until its log is read, and then the next one comes.
    bench.emulator.set_health(warnings(WARNING_TEMPERATURE | WARNING_SPARE | WARNING_RELIABILITY));
    let kinds: Vec<u8> = bench
        .events()
        .iter()
        .map(|event| match event {
            ControllerEvent::Health { info, log: Some(_) } => *info,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, [0, 1, 2]);
}

#[test]
fn errors() {
    let mut bench = bench("");
    for info in [AsyncEvent::PERSISTENT_INTERNAL_ERROR, AsyncEvent::DIAGNOSTIC_FAILURE] {
        bench.emulator.raise(error(info));
        match only(bench.events()) {
            ControllerEvent::Error { info: reported, entry: Some(entry) } => {
                assert_eq!((reported, entry.sqid, entry.cid), (info, 0, 0xffff));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn firmware_activation() {
    let mut bench = bench("");
    for _ in 0..3 {
        bench.emulator.activate_firmware();
        match only(bench.events()) {
            ControllerEvent::FirmwareActivation { log: Some(log) } => assert_eq!(log.afi, 1),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_nobody_knows_is_handed_on_and_cleared() {
    let mut bench = bench("");
    let vendor = AsyncEvent::new(AsyncEvent::TYPE_VENDOR, 0x42, LogPage::SMART);
    let unread = AsyncEvent::new(AsyncEvent::TYPE_IO_COMMAND, 1, LogPage(0xee));
    bench.emulator.raise(vendor);
    assert!(matches!(only(bench.events()), ControllerEvent::Other(event) if event == vendor));
    bench.emulator.raise(vendor);
    assert!(matches!(only(bench.events()), ControllerEvent::Other(event) if event == vendor));
    // A log page that is not there.
    bench.emulator.raise(unread);
    assert!(matches!(only(bench.events()), ControllerEvent::Other(event) if event == unread));
}

#[test]
fn a_namespace_grows_and_shrinks() {
    let mut bench = bench("namespaces=3");
    assert!(matches!(bench.refused(256), Refusal::OutOfRange { capacity: 256, .. }));
    assert!(bench.emulator.resize(1, 300));
    assert_eq!(changed(&only(bench.events())), (vec![1], false));
    assert_eq!((bench.namespace.blocks(), bench.namespace.state()), (300, NamespaceState::Active));
    assert_eq!(bench.namespace.identity().nsze, 256);
    assert_eq!(bench.poller.geometry(bench.disk).unwrap().blocks, 300);
    bench.read(299, 1).unwrap();

    assert!(bench.emulator.resize(1, 10));
    // Nobody has looked yet: the controller refuses it.
    let failure = bench.read(20, 1).unwrap_err();
    assert_eq!(failure.status().unwrap().code(), Status::LBA_OUT_OF_RANGE);
    assert_eq!(changed(&only(bench.events())), (vec![1], false));
    assert!(matches!(bench.refused(20), Refusal::OutOfRange { capacity: 10, .. }));
    bench.read(9, 1).unwrap();
}

#[test]
fn in_place_resubmission_meets_the_new_size() {
    let mut bench = bench("");
    let memory = bench.memory(1);
    bench.poller.submit(bench.disk, IoContainer::read(200, memory)).unwrap();
    bench.emulator.resize(1, 100);
    let (mut refusal, mut failed) = (None, 0);
    while refusal.is_none() {
        bench.emulator.step();
        bench.poller.poll(|done| {
            failed += u64::from(done.result().is_err());
            refusal = done.resubmit().err().map(|rejected| rejected.reason);
        });
    }
    assert!(matches!(refusal, Some(Refusal::OutOfRange { capacity: 100, .. })), "{refusal:?}");
    assert!(failed > 0);
}

#[test]
fn what_waits_for_a_namespace_that_becomes_too_small_fails() {
    let mut bench = bench_with("", QueueOptions::default().depth(1), Faults::default());
    for _ in 0..2 {
        let memory = bench.memory(8);
        bench.poller.submit(bench.disk, IoContainer::read(0, memory)).unwrap();
    }
    bench.poller.poll(|_| {});
    assert!(bench.emulator.resize(1, 4));
    // Before anything completes, so that the second one still waits when the poller hears of it.
    bench.emulator.hold(Commands::io());
    let mut failed = 0;
    for _ in 0..12 * LOOK {
        bench.poller.poll(|done| failed += u32::from(done.result().is_err()));
        if bench.namespace.blocks() == 4 {
            bench.emulator.release_all();
        }
        bench.emulator.step();
    }
    assert_eq!(failed, 2);
}

#[test]
fn a_namespace_is_detached_and_attached() {
    let mut bench = bench("namespaces=2");
    let second = bench.controller.namespace(2).unwrap();
    let target = bench.poller.add_namespace(bench.queue, &second).unwrap();
    assert!(bench.emulator.detach(2));
    assert_eq!(changed(&only(bench.events())), (vec![2], false));
    assert_eq!((second.state(), bench.namespace.state()), (NamespaceState::Detached, NamespaceState::Active));
    assert_eq!(bench.controller.active_namespaces().unwrap(), [1]);
    let memory = bench.memory(1);
    let refused = bench.poller.submit(target, IoContainer::read(0, memory)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Detached { nsid: 2 });
    let refused = bench.poller.add_namespace(bench.queue, &second).unwrap_err();
    assert!(refused.to_string().contains("is detached"), "{refused}");
    bench.read(0, 1).unwrap();

    assert!(bench.emulator.attach(2));
    assert_eq!(changed(&only(bench.events())), (vec![2], false));
    // Who had it before does not know that it is the same one.
    assert_eq!(second.state(), NamespaceState::Detached);
    assert_eq!(bench.refused_at(target), Refusal::Detached { nsid: 2 });
    let again = bench.controller.namespace(2).unwrap();
    let old = std::mem::replace(&mut bench.disk, bench.poller.add_namespace(bench.queue, &again).unwrap());
    bench.read(0, 1).unwrap();
    bench.disk = old;
    bench.read(0, 1).unwrap();
}

impl Bench {
    fn refused_at(&mut self, target: Target) -> Refusal {
        let memory = self.memory(1);
        self.poller.submit(target, IoContainer::read(0, memory)).unwrap_err().reason
    }
}

/// Blocks of 512 bytes where there were blocks of 4096, told by Identify only.
fn reformatted() -> Faults {
    Faults::default().identify(Cns::NAMESPACE, 1, 26, [0])
}

#[test]
fn a_reformatted_namespace_is_to_be_added_anew() {
    let mut bench = bench("");
    bench.emulator.set_faults(reformatted());
    bench.emulator.namespace_changed(1);
    bench.events();
    assert_eq!(bench.namespace.state(), NamespaceState::Reformatted);
    assert_eq!(bench.refused(0), Refusal::Reformatted { nsid: 1 });
    let refused = bench.poller.add_namespace(bench.queue, &bench.namespace).unwrap_err();
    assert!(refused.to_string().contains("another format"), "{refused}");
    let again = bench.controller.namespace(1).unwrap();
    assert_eq!(again.block_size(), Some(512));
    bench.poller.add_namespace(bench.queue, &again).unwrap();
    // The format of before does not bring the handle of before back.
    bench.emulator.set_faults(Faults::default());
    bench.emulator.namespace_changed(1);
    bench.events();
    assert_eq!(
        (bench.namespace.state(), again.state()),
        (NamespaceState::Reformatted, NamespaceState::Reformatted)
    );
}

#[test]
fn another_namespace_with_the_same_nsid() {
    let mut bench = bench("");
    bench.emulator.set_faults(Faults::default().identify(Cns::NAMESPACE, 1, 104, [9; 16]));
    bench.emulator.namespace_changed(1);
    bench.events();
    assert_eq!(bench.namespace.state(), NamespaceState::Detached);
}

#[test]
fn what_waits_for_a_slot_fails_with_its_namespace() {
    let depth = QueueOptions::default().depth(2).merge(false);
    let mut bench = bench_with("namespaces=2", depth, Faults::default());
    let second = bench.controller.namespace(2).unwrap();
    let second = bench.poller.add_namespace(bench.queue, &second).unwrap();
    bench.emulator.hold(Commands::reads());
    // Two have slots, one of them with pieces to come; the others wait.
    for lba in [0, 1, 2, 3] {
        let memory = bench.memory(if lba == 1 { 64 } else { 1 });
        bench.poller.submit(bench.disk, IoContainer::read(lba, memory).tag(lba)).unwrap();
    }
    let memory = bench.memory(1);
    bench.poller.submit(second, IoContainer::read(0, memory).tag(9)).unwrap();
    bench.emulator.set_faults(reformatted());
    bench.emulator.namespace_changed(1);
    let mut results = Vec::new();
    for _ in 0..12 * LOOK {
        bench.poller.poll(|done| results.push((done.io().get_tag(), done.result())));
        bench.emulator.step();
    }
    let refused = |lba| Err(Failure { lba, cause: Cause::Refused });
    assert_eq!(results, [(2, refused(2)), (3, refused(3))]);
    bench.emulator.release_all();
    for _ in 0..LOOK {
        bench.poller.poll(|done| results.push((done.io().get_tag(), done.result())));
        bench.emulator.step();
    }
    results.sort_by_key(|(tag, _)| *tag);
    let at = results[1].1.unwrap_err();
    // It had a command of 32 blocks: MDTS is 128 KiB.
    assert_eq!((at.lba, at.cause), (33, Cause::Refused));
    assert_eq!((results[0].1, results[4]), (Ok(()), (9, Ok(()))));
    assert_eq!((results.len(), bench.poller.outstanding()), (5, 0));
}

#[test]
fn a_merged_command_of_a_reformatted_namespace_is_not_taken_apart() {
    let mut bench = bench_with("", QueueOptions::default().depth(1), Faults::default());
    let bad = Fault::new(Commands::reads().lbas(1..), Effect::Status(Status::INTERNAL_ERROR));
    bench.emulator.set_faults(reformatted().with(bad));
    bench.emulator.hold(Commands::reads());
    for lba in 0..4 {
        let memory = bench.memory(1);
        bench.poller.submit(bench.disk, IoContainer::read(lba, memory)).unwrap();
    }
    bench.poller.poll(|_| {});
    bench.emulator.step();
    bench.emulator.release(Commands::reads().lbas(0..1));
    bench.emulator.step();
    bench.poller.poll(|done| done.result().unwrap());
    assert_eq!(bench.poller.stats(bench.queue).merges, 2);
    bench.emulator.namespace_changed(1);
    bench.settle();
    assert_eq!((bench.emulator.held().len(), bench.poller.outstanding()), (1, 3));
    bench.emulator.release_all();
    bench.emulator.step();
    bench.poller.poll(|done| assert!(done.result().is_err()));
    assert_eq!((bench.poller.outstanding(), bench.poller.stats(bench.queue).commands), (0, 2));
}

#[test]
fn layers_see_a_refusal_below() {
    let (emulator, space, controller) = open("", Faults::default());
    let mut poller = Poller::with_layers(16);
    let queue = poller.add_queue(&controller, QueueOptions::default()).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let disk = Disk::new(&poller, disk).unwrap();
    let stack = poller.add_layer(disk).unwrap();
    emulator.detach(1);
    for _ in 0..12 * LOOK {
        poller.poll(|_| {});
        emulator.step();
    }
    poller.submit(stack, IoContainer::read(5, space.allocate(BLOCK).unwrap())).unwrap();
    let mut result = None;
    poller.poll(|done| result = Some(done.result()));
    assert_eq!(result, Some(Err(Failure { lba: 5, cause: Cause::Refused })));
}

#[test]
fn a_burst_is_bounded_and_what_is_lost_is_counted() {
    let mut bench = bench("");
    for round in 0..100u32 {
        bench.emulator.raise(error(round as u8));
        for _ in 0..4 * LOOK {
            bench.poller.poll(|_| {});
            bench.emulator.step();
        }
    }
    let events: Vec<ControllerEvent> = bench.controller.events().collect();
    let (lost, kept) = events.split_last().unwrap();
    assert_eq!(kept.len(), 64);
    assert!(matches!(lost, ControllerEvent::Lost(36)), "{lost:?}");
    for (number, event) in kept.iter().enumerate() {
        assert!(matches!(event, ControllerEvent::Error { info, .. } if usize::from(*info) == number));
    }
    // And it goes on.
    bench.emulator.raise(error(1));
    assert!(matches!(only(bench.events()), ControllerEvent::Error { info: 1, .. }));
}

#[test]
fn many_namespaces_change_at_once() {
    let mut bench = bench("namespaces=1024");
    let handles: Vec<Namespace> = [1, 7, 1024].map(|nsid| bench.controller.namespace(nsid).unwrap()).into();
    for nsid in 1..=1024 {
        bench.emulator.resize(nsid, 99);
    }
    let events = bench.events();
    // One notice at the first, and one for all that changed until its log was read.
    assert!(events.len() <= 2, "{events:?}");
    let mut all: Vec<u32> = events.iter().flat_map(|event| changed(event).0).collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(1..=1024));
    assert!(handles.iter().all(|namespace| namespace.blocks() == 99));
}

#[test]
fn more_namespaces_than_the_list_has_room_for() {
    let mut bench = bench("namespaces=1024");
    let last = bench.controller.namespace(1024).unwrap();
    // One that there is not makes 1025.
    for nsid in 1..=1025 {
        bench.emulator.namespace_changed(nsid);
    }
    bench.emulator.resize(1024, 5);
    assert_eq!(changed(&only(bench.events())), (vec![], true));
    assert_eq!(last.blocks(), 5);
}

#[test]
fn events_come_while_io_is_running() {
    let mut bench = bench("");
    for lba in 0..32 {
        let memory = bench.memory(1);
        bench.poller.submit(bench.disk, IoContainer::read(lba, memory)).unwrap();
    }
    let (mut done_count, mut seen) = (0u64, 0);
    for round in 0..20 {
        bench.emulator.set_health(warnings(if round % 2 == 0 { WARNING_SPARE } else { 0 }));
        bench.emulator.resize(1, 200 + round);
        for _ in 0..6 * LOOK {
            bench.poller.poll(|done| {
                done.result().unwrap();
                done_count += 1;
                done.resubmit().unwrap();
            });
            bench.emulator.step();
        }
        seen += bench.controller.events().count();
        assert_eq!(bench.namespace.blocks(), 200 + round);
    }
    assert_eq!(seen, 10 + 20);
    assert!(done_count > 10_000);
}

#[test]
fn two_pollers_share_a_controller() {
    let mut bench = bench("");
    let mut other = Poller::new(16);
    let queue = other.add_queue(&bench.controller, QueueOptions::default()).unwrap();
    let disk = other.add_namespace(queue, &bench.namespace).unwrap();
    bench.emulator.resize(1, 77);
    bench.emulator.activate_firmware();
    let mut events = Vec::new();
    for _ in 0..12 * LOOK {
        bench.poller.poll(|_| {});
        other.poll(|_| {});
        bench.emulator.step();
        events.extend(bench.controller.events());
    }
    // Each once, and both pollers know.
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(bench.poller.geometry(bench.disk).unwrap().blocks, 77);
    assert_eq!(other.geometry(disk).unwrap().blocks, 77);
}

#[test]
fn two_threads_share_a_controller() {
    let config = Config::parse("size=1M,block=4096,media=ram").unwrap();
    let emulator = Emulator::spawn(config).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let until = |blocks: u64| {
        let (controller, namespace) = (&controller, &namespace);
        move || {
            let mut poller = Poller::new(16);
            let queue = poller.add_queue(controller, QueueOptions::default()).unwrap();
            let disk = poller.add_namespace(queue, namespace).unwrap();
            while poller.geometry(disk).unwrap().blocks != blocks {
                poller.poll(|_| {});
                assert!(poller.polls() < 1 << 28, "the change is never seen");
            }
        }
    };
    for blocks in [50, 60, 70] {
        std::thread::scope(|scope| {
            let threads = [scope.spawn(until(blocks)), scope.spawn(until(blocks))];
            emulator.resize(1, blocks);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
    let events: Vec<ControllerEvent> = controller.events().collect();
    assert_eq!(events.len(), 3, "{events:?}");
}

#[test]
fn admin_commands_and_events_do_not_meet() {
    let mut bench = bench("");
    for round in 0..30 {
        bench.emulator.raise(error(round));
        // The event is completed while this waits, and so is its log page.
        assert_eq!(bench.controller.active_namespaces().unwrap(), [1]);
        bench.controller.namespace(1).unwrap();
        assert!(
            matches!(only(bench.events()), ControllerEvent::Error { info, entry: Some(_) } if info == round)
        );
    }
}

#[test]
fn without_a_poller() {
    let (emulator, _space, controller) = open("", Faults::default());
    emulator.raise(error(3));
    let event = (0..10).find_map(|_| {
        emulator.step();
        controller.events().next()
    });
    assert!(matches!(event, Some(ControllerEvent::Error { info: 3, .. })), "{event:?}");
}

/// The command that reads it is aborted, and the next page is read as ever.
#[test]
fn a_log_page_that_takes_too_long() {
    let mut bench = bench("");
    bench.emulator.hold(Commands::admin().opcode(admin_opcode::GET_LOG_PAGE));
    bench.emulator.raise(error(3));
    assert!(bench.events().is_empty());
    bench.emulator.advance(Duration::from_secs(61));
    assert!(matches!(only(bench.events()), ControllerEvent::Error { info: 3, entry: None }));
    assert!(bench.events().is_empty());
    assert_eq!(bench.emulator.counters().aborted, 1);
    bench.emulator.release_all();
    bench.emulator.set_health(warnings(WARNING_SPARE));
    assert!(matches!(only(bench.events()), ControllerEvent::Health { info: 2, log: Some(_) }));
    bench.emulator.advance(Duration::from_secs(61));
    assert!(bench.events().is_empty());
    assert_eq!(bench.poller.stats(bench.queue).resets, 0);
}

/// A controller that has reported an error and keeps its log back, and how often it was reset before.
fn without_its_log() -> (Bench, u64) {
    let mut bench = bench("");
    let resets = bench.emulator.counters().resets;
    bench.emulator.hold(Commands::admin().opcode(admin_opcode::GET_LOG_PAGE));
    bench.emulator.hold(Commands::admin().opcode(admin_opcode::ABORT));
    bench.emulator.raise(error(3));
    assert!(bench.events().is_empty());
    bench.emulator.advance(Duration::from_secs(61));
    assert!(matches!(only(bench.events()), ControllerEvent::Error { info: 3, entry: None }));
    (bench, resets)
}

#[test]
fn a_log_page_that_never_comes() {
    let (mut bench, resets) = without_its_log();
    // Others are still heard, without their log.
    bench.emulator.set_health(warnings(WARNING_SPARE));
    assert!(matches!(only(bench.events()), ControllerEvent::Health { info: 2, log: None }));
    bench.emulator.resize(1, 9);
    assert_eq!(changed(&only(bench.events())), (vec![], true));
    // It comes after all, and all is as before but for the types that it did not clear.
    bench.emulator.release_all();
    assert!(bench.events().is_empty());
    bench.emulator.raise(error(4));
    assert!(matches!(only(bench.events()), ControllerEvent::Error { info: 4, entry: Some(_) }));
    assert_eq!(bench.emulator.counters().resets, resets);
}

/// Nor is it aborted: the controller is reset, and reports as before.
#[test]
fn a_log_page_that_nothing_ends_costs_a_reset() {
    let (mut bench, resets) = without_its_log();
    bench.emulator.advance(Duration::from_secs(61));
    bench.settle();
    bench.emulator.release_all();
    bench.events();
    assert_eq!(bench.emulator.counters().resets, resets + 1);
    assert_eq!(bench.poller.stats(bench.queue).resets, 1);
    bench.emulator.raise(error(4));
    assert!(matches!(only(bench.events()), ControllerEvent::Error { info: 4, entry: Some(_) }));
}

#[test]
fn a_namespace_that_is_never_identified_again() {
    let mut bench = bench("");
    bench.emulator.hold(Commands::admin().opcode(admin_opcode::IDENTIFY));
    bench.emulator.resize(1, 9);
    assert!(bench.events().is_empty());
    bench.emulator.advance(Duration::from_secs(61));
    assert_eq!(changed(&only(bench.events())), (vec![1], false));
    assert_eq!(bench.namespace.blocks(), 256);
    bench.emulator.release_all();
    bench.emulator.resize(1, 10);
    assert_eq!(changed(&only(bench.events())), (vec![1], false));
    assert_eq!(bench.namespace.blocks(), 10);
}

#[test]
fn log_pages_and_identify_that_fail() {
    let failing =
        |opcode| Fault::new(Commands::admin().opcode(opcode), Effect::Status(Status::INTERNAL_ERROR));
    let mut bench = bench("");
    bench.emulator.set_faults(Faults::default().with(failing(admin_opcode::GET_LOG_PAGE).once()));
    bench.emulator.resize(1, 9);
    // Which one changed is not known: all are looked at.
    assert_eq!(changed(&only(bench.events())), (vec![], true));
    assert_eq!(bench.namespace.blocks(), 9);
    bench.emulator.set_faults(Faults::default().with(failing(admin_opcode::IDENTIFY)));
    bench.emulator.namespace_changed(1);
    bench.events();
    assert_eq!((bench.namespace.blocks(), bench.namespace.state()), (9, NamespaceState::Active));
}

/// The controller takes one request fewer than it says.
#[test]
fn requests_that_are_refused_are_not_sent_for_ever() {
    for (status, most) in [(Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr(), 4), (Status::INTERNAL_ERROR, 20)] {
        let refused =
            Fault::new(Commands::admin().opcode(admin_opcode::ASYNC_EVENT_REQUEST), Effect::Status(status));
        let mut bench = bench_with("", QueueOptions::default(), Faults::default().with(refused));
        assert!(bench.events().is_empty());
        assert!(bench.emulator.injections()[0] <= most);
        bench.read(0, 1).unwrap();
    }
}

#[test]
fn aerl_and_oaes_are_kept() {
    for (aerl, requests) in [(0, 1), (1, 2), (3, 4), (255, 4)] {
        let request = Commands::admin().opcode(admin_opcode::ASYNC_EVENT_REQUEST);
        let faults = Faults::default()
            .identify(Cns::CONTROLLER, 0, 259, [aerl])
            .identify(Cns::CONTROLLER, 0, 92, [0xff; 4])
            .with(Fault::new(request, Effect::Delay(Duration::from_nanos(1))));
        let mut bench = bench_with("", QueueOptions::default(), faults);
        bench.settle();
        assert_eq!(bench.emulator.injections()[0], requests, "AERL {aerl}");
        let get = Command::get_features(kiovec::spec::FeatureId::ASYNC_EVENT_CONFIGURATION);
        // SAFETY: the command transfers nothing.
        let trust = unsafe { kiovec::memory::RawCommands::trust() };
        let (completion, _) = bench.controller.admin(&get, MemoryChain::new(), 1000, trust).unwrap();
        assert_eq!(completion.dw0, 0x7b1f);
    }
}
