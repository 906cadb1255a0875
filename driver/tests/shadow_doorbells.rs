//! Shadow doorbells: fewer registers are written, and whatever a controller says of them, nothing is lost for good.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::{Status, admin_opcode};
use kiovec::{Controller, IoContainer, Poller, QueueId, QueueOptions, QueueStats, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};

use std::sync::Arc;

const BLOCK: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(8);
/// Polls from one look at the controllers to the next, and some more.
const LOOK: usize = 1100;

struct Rig {
    // Before the emulator: that takes the controller away.
    poller: Poller,
    controller: Arc<Controller>,
    emulator: Emulator,
    space: DmaSpace,
    queue: QueueId,
    disk: Target,
    completed: u64,
}

fn emulator(text: &str) -> Emulator {
    let text = format!("size=16M,block=4096,media=ram,dbbuf=on,{text}");
    Emulator::stepped(Config::parse(text.trim_end_matches(',')).unwrap()).unwrap()
}

fn rig(text: &str) -> Rig {
    open(emulator(text), 8)
}

fn open(emulator: Emulator, depth: usize) -> Rig {
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(64);
    let options = QueueOptions::default().depth(depth).merge(false).command_timeout(TIMEOUT);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Rig { poller, controller, emulator, space, queue, disk, completed: 0 }
}

fn refuse_config() -> Fault {
    let commands = Commands::admin().opcode(admin_opcode::DOORBELL_BUFFER_CONFIG);
    Fault::new(commands, Effect::Status(Status::INVALID_OPCODE.with_dnr()))
}

impl Rig {
    fn memory(&self, blocks: usize, fill: u8) -> MemoryChain {
        let mut memory = self.space.allocate(blocks * BLOCK).unwrap();
        memory.fill(fill);
        memory
    }

    fn write(&mut self, lba: u64, fill: u8) {
        let memory = self.memory(1, fill);
        self.poller.submit(self.disk, IoContainer::write(lba, memory)).unwrap();
    }

    fn stats(&self) -> QueueStats {
        self.poller.stats(self.queue)
    }

    /// One poll; then the controller goes on for so many steps.
    fn turn(&mut self, steps: usize) {
        self.poller.poll(|done| {
            self.completed += 1;
            assert_eq!(done.result(), Ok(()));
            done.take();
        });
        (0..steps).for_each(|_| _ = self.emulator.step());
    }

    fn look(&mut self) {
        (0..LOOK).for_each(|_| self.turn(1));
    }

    /// So many writes of a byte each, one after the other, each with steps in between; what is stored then.
    fn write_all(&mut self, count: u64, steps: usize, fill: u8) {
        let before = self.completed;
        for lba in 0..count {
            self.write(lba, fill);
            self.turn(steps);
        }
        self.finish(before + count);
        let mut bytes = [0; BLOCK];
        for lba in 0..count {
            assert!(self.emulator.read_medium(1, lba, &mut bytes));
            assert!(bytes.iter().all(|byte| *byte == fill), "block {lba}");
        }
    }

    /// Goes on until so many have completed, in a minute of the controller's.
    fn finish(&mut self, completed: u64) {
        for _ in 0..64 {
            if self.completed == completed {
                return;
            }
            self.look();
            self.emulator.advance(Duration::from_secs(1));
        }
        assert_eq!(self.completed, completed);
    }

    fn reset(&mut self) {
        let before = self.stats().resets;
        self.controller.reset().unwrap();
        for _ in 0..8 {
            self.look();
        }
        assert_eq!(self.stats().resets, before + 1);
    }
}

#[test]
fn a_busy_controller_is_told_in_memory() {
    let mut rig = rig("");
    assert!(rig.controller.has_shadow_doorbells());
    rig.write_all(1000, 1, 0x5a);
    let (stats, counters) = (rig.stats(), rig.emulator.counters());
    assert_eq!(stats.commands, 1000);
    // Each write was told in a poll of its own; the first needs the register, the others came while it looked.
    assert_eq!((stats.sq_doorbells, counters.needed_writes), (1, 1));
    assert_eq!(stats.sq_doorbells + stats.cq_doorbells, counters.shadowed_writes);
    assert!(counters.sq_doorbells >= 1000 && counters.bad_doorbells == 0);
}

#[test]
fn an_idle_controller_is_told_by_its_register() {
    let mut rig = rig("");
    rig.write_all(200, 40, 0x5a);
    let (stats, counters) = (rig.stats(), rig.emulator.counters());
    assert_eq!((stats.sq_doorbells, counters.needed_writes), (200, 200));
}

#[test]
fn without_them_every_doorbell_is_written() {
    let space = DmaSpace::new().unwrap();
    let emulator = Emulator::stepped(Config::default()).unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    assert!(!controller.has_shadow_doorbells());
    assert_eq!(emulator.counters().shadow_looks, 0);
}

/// At any pace, and with rings that go round every few commands.
#[test]
fn nothing_is_missed_at_any_pace() {
    for depth in [1, 2, 3, 7, 8, 31] {
        let mut rig = open(emulator("mqes=31"), depth);
        for steps in 0..40 {
            let before = rig.completed;
            for lba in 0..2 * depth as u64 {
                rig.write(lba, steps as u8);
                rig.turn(steps % 20);
            }
            rig.turn(steps);
            rig.finish(before + 2 * depth as u64);
        }
        assert_eq!((rig.stats().timeouts, rig.stats().faults, rig.stats().resets), (0, 0, 0));
        let counters = rig.emulator.counters();
        assert_eq!((counters.bad_doorbells, counters.missed_writes), (0, 0));
    }
}

#[test]
fn a_reset_arms_them_again() {
    let mut rig = rig("");
    rig.write_all(100, 1, 1);
    for fill in 2..5 {
        rig.reset();
        assert!(rig.controller.has_shadow_doorbells());
        let before = rig.stats().sq_doorbells;
        rig.write_all(100, 1, fill);
        assert_eq!(rig.stats().sq_doorbells, before + 1);
    }
    assert_eq!(rig.stats().timeouts, 0);
}

/// What the last queue pair of that name left in the buffers means nothing to the next one.
#[test]
fn a_queue_pair_that_is_created_again_begins_anew() {
    for used in 1..20 {
        let mut rig = rig("queues=1");
        rig.write_all(used, 1, 1);
        rig.poller = Poller::new(64);
        let options = QueueOptions::default().depth(8).command_timeout(TIMEOUT);
        rig.queue = rig.poller.add_queue(&rig.controller, options).unwrap();
        let namespace = rig.controller.namespace(1).unwrap();
        rig.disk = rig.poller.add_namespace(rig.queue, &namespace).unwrap();
        rig.write_all(20, 1, 2);
        assert_eq!((rig.stats().sq_doorbells, rig.stats().timeouts), (1, 0), "{used}");
    }
}

#[test]
fn a_controller_that_refuses_them_is_told_by_its_registers() {
    let emulator = emulator("");
    emulator.set_faults(Faults::default().with(refuse_config()));
    let mut rig = open(emulator, 8);
    assert!(!rig.controller.has_shadow_doorbells());
    rig.write_all(100, 1, 0x5a);
    assert_eq!(rig.stats().sq_doorbells, 100);
    assert_eq!(rig.emulator.counters().shadow_looks, 0);
}

#[test]
fn one_that_refuses_them_after_a_reset_too() {
    let mut rig = rig("");
    rig.write_all(100, 1, 1);
    rig.emulator.set_faults(Faults::default().with(refuse_config()));
    rig.reset();
    assert!(!rig.controller.has_shadow_doorbells());
    let before = rig.stats().sq_doorbells;
    rig.write_all(100, 1, 2);
    assert_eq!(rig.stats().sq_doorbells, before + 100);
    // And takes them after the next one.
    rig.emulator.set_faults(Faults::default());
    rig.reset();
    assert!(rig.controller.has_shadow_doorbells());
    let before = rig.stats().sq_doorbells;
    rig.write_all(100, 1, 3);
    assert_eq!(rig.stats().sq_doorbells, before + 1);
}

/// The controller waits for a register that it has said it does not need.
#[test]
fn a_doorbell_that_is_missing_costs_a_reset() {
    let mut rig = rig("");
    rig.write_all(3, 40, 1);
    assert!(rig.emulator.misstate_event(1, 9));
    rig.write(5, 7);
    rig.turn(40);
    assert_eq!(rig.emulator.outstanding(), 1);
    let before = rig.completed;
    rig.finish(before + 1);
    assert_eq!((rig.stats().timeouts, rig.stats().resets), (1, 1));
    rig.write_all(50, 1, 8);
    assert_eq!(rig.stats().timeouts, 1);
}

/// Whatever it says: a register more or less, and the ladder for what is missing.
#[test]
fn any_event_is_survived() {
    for event in [0, 1, 7, 8, 15, 16, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0xdead_0003, u32::MAX] {
        let mut rig = rig("");
        for round in 0..4 {
            let before = rig.completed;
            for lba in 0..3 {
                rig.write(lba, round);
            }
            assert!(rig.emulator.misstate_event(1, event));
            rig.turn(if round % 2 == 0 { 1 } else { 40 });
            rig.finish(before + 3);
        }
        assert_eq!(rig.emulator.counters().bad_doorbells, 0, "{event:#x}");
    }
}

/// Two threads, one of which goes to sleep as the other one tells it something.
#[test]
fn threads_miss_nothing() {
    for depth in [1, 8] {
        let config = Config::parse("size=16M,block=4096,dbbuf=on").unwrap();
        let emulator = Emulator::spawn(config).unwrap();
        let mut rig = open(emulator, depth);
        for _ in 0..depth {
            let memory = rig.memory(1, 0);
            rig.poller.submit(rig.disk, IoContainer::read(0, memory)).unwrap();
        }
        let mut done = 0u64;
        while rig.poller.outstanding() > 0 {
            rig.poller.poll(|mut io| {
                done += 1;
                assert_eq!(io.result(), Ok(()));
                if done < 2_000 {
                    io.in_place().set_lba(done % 4096);
                    io.resubmit().unwrap();
                }
            });
            // So that it stops looking now and then.
            if done.is_multiple_of(64) {
                std::thread::yield_now();
            }
        }
        let stats = rig.stats();
        assert_eq!((stats.timeouts, stats.faults, stats.resets), (0, 0, 0));
        assert!(stats.sq_doorbells <= stats.commands);
    }
}
