//! A controller that says what is not so, or nothing: none of it is delivered to anybody, and each request comes back
//! once, with its own data.
#![allow(clippy::unwrap_used)]

mod pass_on;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiovec::memory::DmaSpace;
use kiovec::pci::Function;
use kiovec::spec::Completion;
use kiovec::{Controller, Error, IoContainer, Poller, QueueId, QueueOptions, QueueStats, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use pass_on::pass_on;

const BLOCK: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(8);
const NO_BITS: Completion = Completion { dw0: 0, dw1: 0, sq_head: 0, sq_id: 0, cid: 0, status_phase: 0 };
/// The CID of another command of the slot, and of another slot.
const GENERATION: Effect = Effect::Corrupt(Completion { cid: 0x8000, ..NO_BITS });
const ANOTHER: Effect = Effect::Corrupt(Completion { cid: 1, ..NO_BITS });

/// Counts the registers that are read.
struct Counted {
    inner: Arc<dyn Function>,
    reads: AtomicU64,
}

impl Function for Counted {
    pass_on! { inner: name, domain, config_write, write32, write64, doorbells, reset, clock, pause }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<(), Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.config_read(offset, data)
    }

    fn read32(&self, offset: u64) -> Result<u32, Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read32(offset)
    }

    fn read64(&self, offset: u64) -> Result<u64, Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read64(offset)
    }
}

struct Rig {
    function: Arc<Counted>,
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller,
    queue: QueueId,
    disk: Target,
}

/// Blocks 0 to 7 have their number in each byte.
fn rig() -> Rig {
    let emulator = Emulator::stepped(Config::parse("size=1M,block=4096,media=ram,mdts=5").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let function = Arc::new(Counted { inner: emulator.function(), reads: AtomicU64::new(0) });
    let controller = Controller::open(Arc::clone(&function) as _, &space).unwrap();
    let mut poller = Poller::new(64);
    let options = QueueOptions::default().depth(8).command_timeout(TIMEOUT).merge(false);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let mut rig = Rig { function, emulator, space, poller, queue, disk };
    for lba in 0..8u8 {
        let mut memory = rig.space.allocate(BLOCK).unwrap();
        memory.fill(lba);
        rig.poller.submit(disk, IoContainer::write(lba.into(), memory)).unwrap();
    }
    while rig.poller.outstanding() > 0 {
        rig.turn();
    }
    rig
}

impl Rig {
    fn stats(&self) -> QueueStats {
        self.poller.stats(self.queue)
    }

    fn read(&mut self, lba: u64) {
        let mut memory = self.space.allocate(BLOCK).unwrap();
        memory.fill(0xee);
        self.poller.submit(self.disk, IoContainer::read(lba, memory).tag(lba)).unwrap();
    }

    /// One poll, and one step; which requests came back, all with the data that they asked for.
    fn turn(&mut self) -> Vec<u64> {
        let mut done = Vec::new();
        self.poller.poll(|request| {
            assert_eq!(request.result(), Ok(()));
            let io = request.take();
            let lba = io.lba();
            assert!(io.into_memory().to_vec().iter().all(|byte| u64::from(*byte) == lba), "block {lba}");
            done.push(lba);
        });
        self.emulator.step();
        done
    }

    /// All eight blocks are read, while these things happen to their commands.
    fn read_all(&mut self, effects: &[Effect]) {
        let plan = effects.iter().fold(Faults::default(), |plan, effect| {
            plan.with(Fault::new(Commands::reads().lbas(3..4), *effect).times(1))
        });
        self.emulator.set_faults(plan);
        (0..8).for_each(|lba| self.read(lba));
        let mut done = Vec::new();
        for _ in 0..400 {
            (0..1100).for_each(|_| done.extend(self.turn()));
            if self.poller.outstanding() == 0 {
                break;
            }
            self.emulator.advance(TIMEOUT / 100);
        }
        done.sort_unstable();
        assert_eq!(done, (0..8).collect::<Vec<_>>());
    }
}

/// The right completion follows.
#[test]
fn completions_that_answer_nothing_are_counted() {
    for effect in [Effect::UNKNOWN_CID, Effect::WRONG_SQ_ID, GENERATION] {
        let mut rig = rig();
        rig.read_all(&[effect, Effect::Double]);
        assert_eq!((rig.stats().faults, rig.stats().resets), (1, 0), "{effect:?}");
    }
    let mut rig = rig();
    rig.read_all(&[Effect::Double]);
    assert_eq!((rig.stats().faults, rig.stats().resets), (1, 0), "it came twice");
}

/// It does not follow: the command is overdue, and the controller reset.
#[test]
fn completions_that_nobody_gets_cost_a_reset() {
    for effect in [Effect::UNKNOWN_CID, Effect::WRONG_SQ_ID, GENERATION, Effect::WRONG_PHASE] {
        let mut rig = rig();
        rig.read_all(&[effect]);
        assert_eq!(rig.stats().resets, 1, "{effect:?}");
    }
}

/// What the driver does not need it does not believe: how far the submission queue was read, and a result that nobody
/// asked for.
#[test]
fn noise_in_a_completion_does_no_harm() {
    for sq_head in [1, 8, 0x7fff, 0xffff] {
        let mut rig = rig();
        rig.read_all(&[Effect::Corrupt(Completion { sq_head, dw0: u32::MAX, dw1: u32::MAX, ..NO_BITS })]);
        // Round and round.
        for _ in 0..8 {
            rig.read_all(&[]);
        }
        assert_eq!((rig.stats().faults, rig.stats().resets), (0, 0));
    }
}

/// The CID of another request, which is in flight: nothing tells it from the right one but that the other one's data
/// are not there yet, as with any device. What the driver sees to is that each comes back once.
#[test]
fn a_completion_for_another_request_ends_each_once() {
    let mut rig = rig();
    let plan = Faults::default().with(Fault::new(Commands::reads().lbas(3..4), ANOTHER).times(1));
    rig.emulator.set_faults(plan);
    (0..8).for_each(|lba| rig.read(lba));
    let mut done = Vec::new();
    for _ in 0..400 {
        for _ in 0..1100 {
            rig.poller.poll(|request| done.push(request.take().lba()));
            rig.emulator.step();
        }
        rig.emulator.advance(TIMEOUT / 100);
    }
    done.sort_unstable();
    assert_eq!((done, rig.poller.outstanding()), ((0..8).collect::<Vec<_>>(), 0));
    assert!(rig.stats().faults > 0);
}

/// A register is read when a queue pair has been silent for long with commands in flight, and for no poll else.
#[test]
fn no_register_is_read_for_a_poll() {
    let mut rig = rig();
    let before = rig.function.reads.load(Ordering::Relaxed);
    let reads = |rig: &Rig| rig.function.reads.load(Ordering::Relaxed) - before;
    for round in 0..100_000 {
        if rig.poller.outstanding() < 8 {
            rig.read(round % 8);
        }
        rig.turn();
    }
    while rig.poller.outstanding() > 0 {
        rig.turn();
    }
    (0..200_000).for_each(|_| drop(rig.turn()));
    assert_eq!(reads(&rig), 0, "busy, or with nothing to do");
    rig.emulator.hold(Commands::reads());
    rig.read(0);
    (0..200_000).for_each(|_| drop(rig.turn()));
    assert!((1..=200_000 / 65_536 + 1).contains(&reads(&rig)), "{}", reads(&rig));
}
