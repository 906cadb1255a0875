//! A stack of layers on stepped controllers, and a plain array to compare it with.
#![allow(clippy::unwrap_used, dead_code)]

use kiovec::layer::{Disk, Layer};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, Failure, IoContainer, Operation, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Config, Emulator};
use proptest::prelude::*;

/// Requests of one round go to lanes, so that none overlaps another: requests under way together are not
/// ordered.
pub const LANES: usize = 4;
/// More than it takes to notice that a controller is gone.
const PATIENCE: usize = 1_000_000;

#[derive(Debug, Clone)]
pub struct Request {
    operation: Operation,
    skip: u64,
    blocks: u64,
    /// Segments of so many blocks; what is left is one segment.
    segments: Vec<usize>,
    fua: bool,
}

pub fn request() -> impl Strategy<Value = Request> {
    let operation = prop_oneof![
        5 => Just(Operation::Write),
        5 => Just(Operation::Read),
        1 => Just(Operation::WriteZeroes),
        1 => Just(Operation::Deallocate),
        1 => Just(Operation::Flush),
    ];
    let segments = proptest::collection::vec(1..40usize, 0..4);
    (operation, 0..60u64, prop_oneof![1..10u64, 1..500u64], segments, any::<bool>()).prop_map(
        |(operation, skip, blocks, segments, fua)| Request { operation, skip, blocks, segments, fua },
    )
}

/// Rounds of requests.
pub fn rounds(most: usize) -> impl Strategy<Value = Vec<Vec<Request>>> {
    proptest::collection::vec(proptest::collection::vec(request(), 1..=LANES), 1..most)
}

/// What became of a request.
#[derive(Debug)]
pub struct Outcome {
    pub tag: u64,
    pub lba: u64,
    pub result: Result<(), Failure>,
    pub bytes: Vec<u8>,
}

pub struct Bench<L: Layer> {
    pub poller: Poller<L>,
    pub stack: Target,
    pub space: DmaSpace,
    /// `None` once it was pulled.
    pub emulators: Vec<Option<Emulator>>,
    pub queues: Vec<QueueId>,
    /// Decides which controller goes on.
    chance: u64,
}

impl<L: Layer> Bench<L> {
    /// A stack on one controller for each of `settings`, with queues of some depth.
    pub fn new(settings: &[String], depth: usize, stack: impl FnOnce(&DmaSpace, Vec<Disk>) -> L) -> Bench<L> {
        let space = DmaSpace::new().unwrap();
        let mut poller = Poller::with_layers(LANES as u32);
        let (mut emulators, mut queues, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for settings in settings {
            let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
            let controller = Controller::open(emulator.function(), &space).unwrap();
            let options = QueueOptions::default().depth(depth);
            let queue = poller.add_queue(&controller, options).unwrap();
            let namespace = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
            disks.push(Disk::new(&poller, namespace).unwrap());
            queues.push(queue);
            emulators.push(Some(emulator));
        }
        let stack = poller.add_layer(stack(&space, disks)).unwrap();
        Bench { poller, stack, space, emulators, queues, chance: 1 }
    }

    pub fn layer(&self) -> &L {
        self.poller.layer(self.stack).unwrap()
    }

    pub fn emulator(&self, leg: usize) -> &Emulator {
        self.emulators[leg].as_ref().unwrap()
    }

    pub fn block(&self) -> usize {
        self.poller.geometry(self.stack).unwrap().block_size()
    }

    /// Commands that each controller was given so far.
    pub fn commands(&self) -> Vec<u64> {
        self.queues.iter().map(|queue| self.poller.stats(*queue).commands).collect()
    }

    pub fn memory(&self, blocks: usize, fill: u8) -> MemoryChain {
        let mut memory = self.space.allocate(blocks * self.block()).unwrap();
        memory.fill(fill);
        memory
    }

    pub fn submit(&mut self, io: IoContainer) {
        self.poller.submit(self.stack, io).unwrap();
    }

    /// One poll; then each controller goes one step on, or does not.
    pub fn turn(&mut self) -> Vec<Outcome> {
        let outcomes = self.poll();
        for emulator in &self.emulators {
            // Knuth's MMIX generator; the low bits are no good.
            self.chance =
                self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if self.chance >> 63 == 0
                && let Some(emulator) = emulator
            {
                emulator.step();
            }
        }
        outcomes
    }

    pub fn poll(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        self.poller.poll(|done| {
            let result = done.result();
            let io = done.take();
            let (tag, lba) = (io.get_tag(), io.lba());
            outcomes.push(Outcome { tag, lba, result, bytes: io.into_memory().to_vec() });
        });
        outcomes
    }

    /// Goes on until nothing is left in the poller. All controllers that are there are stepped.
    pub fn settle(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for _ in 0..PATIENCE {
            if self.poller.outstanding() == 0 {
                return outcomes;
            }
            outcomes.extend(self.turn());
        }
        panic!("{} requests never complete", self.poller.outstanding());
    }

    /// Goes on until so many requests have come back.
    pub fn until(&mut self, count: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for _ in 0..PATIENCE {
            outcomes.extend(self.turn());
            if outcomes.len() >= count {
                assert_eq!(outcomes.len(), count);
                return outcomes;
            }
        }
        panic!("{} of {count} requests complete", outcomes.len());
    }

    /// Writes blocks of one leg behind the back of the stack.
    pub fn plant(&mut self, disk: Disk, lba: u64, blocks: usize, fill: u8) {
        let memory = self.memory(blocks, fill);
        self.poller.submit(disk.target(), IoContainer::write(lba, memory)).unwrap();
        assert_eq!(self.until(1)[0].result, Ok(()));
    }

    /// One request, from its submission to its end.
    pub fn run(&mut self, io: IoContainer) -> Outcome {
        self.submit(io);
        let mut outcomes = self.settle();
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    /// Requests compared with an array, whatever happens to the controllers meanwhile: `meddle` is called
    /// before each turn, with its number. All must succeed.
    pub fn compare(
        &mut self,
        rounds: &[Vec<Request>],
        mut meddle: impl FnMut(usize, &mut Vec<Option<Emulator>>),
    ) -> Result<(), TestCaseError> {
        let (block, capacity) = (self.block(), self.poller.geometry(self.stack).unwrap().blocks);
        let mut model = vec![0u8; capacity as usize * block];
        let (mut seed, mut turns) = (0, 0);
        for round in rounds {
            let mut expected: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
            for (lane, request) in round.iter().enumerate() {
                seed += 1;
                let (io, bytes) = self.prepare(request, lane as u64, seed, &mut model);
                expected.push((io.lba(), bytes));
                self.submit(io.tag(lane as u64));
            }
            let mut outcomes: Vec<Option<Outcome>> = expected.iter().map(|_| None).collect();
            let end = turns + PATIENCE;
            while self.poller.outstanding() > 0 {
                meddle(turns, &mut self.emulators);
                for outcome in self.turn() {
                    let at = outcome.tag as usize;
                    prop_assert!(outcomes[at].replace(outcome).is_none(), "a request completed twice");
                }
                turns += 1;
                prop_assert!(turns < end, "requests never complete");
            }
            for (outcome, (lba, expected)) in outcomes.into_iter().zip(expected) {
                let outcome = outcome.expect("every request completes");
                prop_assert_eq!((outcome.result, outcome.lba), (Ok(()), lba));
                prop_assert!(
                    expected.is_none_or(|bytes| bytes == outcome.bytes),
                    "other data than was written"
                );
            }
        }
        for queue in &self.queues {
            prop_assert_eq!(self.poller.stats(*queue).faults, 0);
        }
        Ok(())
    }

    /// A request, and what it reads if it does.
    fn prepare(
        &self,
        request: &Request,
        lane: u64,
        seed: u64,
        model: &mut [u8],
    ) -> (IoContainer, Option<Vec<u8>>) {
        let block = self.block();
        let width = (model.len() / block / LANES) as u64;
        let skip = request.skip.min(width - 1);
        let (lba, blocks) = (lane * width + skip, request.blocks.min(width - skip));
        let here = &mut model[lba as usize * block..(lba + blocks) as usize * block];
        let io = match request.operation {
            Operation::Read => {
                return (
                    IoContainer::read(lba, self.segments(request, blocks)).fua(request.fua),
                    Some(here.to_vec()),
                );
            }
            Operation::Write => {
                let mut chain = self.segments(request, blocks);
                let pattern = |i: usize| (i as u8).wrapping_mul(7) ^ (i >> 8) as u8 ^ seed as u8;
                here.iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(i));
                chain.copy_from_slice(0, here);
                IoContainer::write(lba, chain).fua(request.fua)
            }
            Operation::WriteZeroes | Operation::Deallocate => {
                here.fill(0);
                match request.operation {
                    Operation::WriteZeroes => IoContainer::write_zeroes(lba, blocks),
                    _ => IoContainer::deallocate(lba, blocks),
                }
            }
            Operation::Flush | Operation::Raw => IoContainer::flush(),
        };
        (io, None)
    }

    fn segments(&self, request: &Request, blocks: u64) -> MemoryChain {
        let mut chain = MemoryChain::new();
        let mut left = blocks as usize;
        for blocks in request.segments.iter().copied().chain([usize::MAX]) {
            let blocks = blocks.min(left);
            if blocks > 0 {
                chain.append(self.memory(blocks, 0xee));
            }
            left -= blocks;
        }
        chain
    }
}
