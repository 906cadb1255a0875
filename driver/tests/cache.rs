//! The read cache: what is read is what was written whatever the cache did, and it did what it is for.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use kiovec::layer::{
    Cache, CacheCounts, CacheOptions, Disk, Layer, Partition, Plan, Retry, RetryOptions, Stack, Trace,
};
use kiovec::memory::DmaSpace;
use kiovec::spec::{Status, admin_opcode};
use kiovec::{
    Cause, Controller, Done, Failure, IoContainer, Operation, Poller, QueueId, QueueOptions, State, Target,
    Verdict,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const BLOCK: usize = 512;
/// Blocks of a line.
const LINE: u64 = 8;
const LINE_BYTES: usize = LINE as usize * BLOCK;

type Outcome = (Result<(), Failure>, Vec<u8>);

/// A cache above a disk whose every block is filled with its own number.
struct Rig<L: Layer> {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<L>,
    queue: QueueId,
    cached: Target,
    /// What has completed, by tag.
    done: BTreeMap<u64, Outcome>,
}

/// The byte that block `lba` is filled with at first.
fn byte(lba: u64) -> u8 {
    (lba as u8).wrapping_mul(31) ^ (lba >> 8) as u8 ^ 0x5a
}

fn bytes(blocks: Range<u64>, block: usize) -> Vec<u8> {
    blocks.flat_map(|lba| vec![byte(lba); block]).collect()
}

impl Rig<Cache<Disk>> {
    /// With so many lines of 8 blocks.
    fn new(lines: usize) -> Rig<Cache<Disk>> {
        Rig::with_room(16, lines)
    }

    fn with_room(requests: u32, lines: usize) -> Rig<Cache<Disk>> {
        let options = CacheOptions { bytes: lines * LINE_BYTES, line: LINE_BYTES };
        Rig::over("size=256K,block=512,media=ram", requests, 8, |disk, space| {
            Cache::new(disk, space, options).unwrap()
        })
    }

    fn counts(&self) -> CacheCounts {
        *self.poller.layer(self.cached).unwrap().counts()
    }
}

impl<L: Layer> Rig<L> {
    fn over(config: &str, requests: u32, depth: usize, layer: impl FnOnce(Disk, &DmaSpace) -> L) -> Rig<L> {
        let emulator = Emulator::stepped(Config::parse(config).unwrap()).unwrap();
        let space = DmaSpace::new().unwrap();
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let mut poller = Poller::with_layers(requests);
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(depth)).unwrap();
        let namespace = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        let geometry = poller.geometry(namespace).unwrap();
        let mut memory = space.allocate((geometry.blocks << geometry.block_shift) as usize).unwrap();
        memory.copy_from_slice(0, &bytes(0..geometry.blocks, geometry.block_size()));
        poller.submit(namespace, IoContainer::write(0, memory)).unwrap();
        let layer = layer(Disk::new(&poller, namespace).unwrap(), &space);
        let cached = poller.add_layer(layer).unwrap();
        let mut rig = Rig { emulator, space, poller, queue, cached, done: BTreeMap::new() };
        rig.run();
        rig.done.clear();
        rig
    }

    fn submit(&mut self, io: IoContainer) {
        self.poller.submit(self.cached, io).unwrap();
    }

    fn read(&self, blocks: Range<u64>) -> IoContainer {
        let mut memory = self.space.allocate((blocks.end - blocks.start) as usize * BLOCK).unwrap();
        memory.fill(0xee);
        IoContainer::read(blocks.start, memory).tag(blocks.start)
    }

    fn write(&self, blocks: Range<u64>, byte: u8) -> IoContainer {
        let mut memory = self.space.allocate((blocks.end - blocks.start) as usize * BLOCK).unwrap();
        memory.fill(byte);
        IoContainer::write(blocks.start, memory).tag(blocks.start)
    }

    fn poll(&mut self) {
        let done = &mut self.done;
        self.poller.poll(|finished| {
            let result = finished.result();
            let io = finished.take();
            let again = done.insert(io.get_tag(), (result, io.into_memory().to_vec()));
            assert!(again.is_none(), "two requests with one tag");
        });
    }

    /// Polls and steps some times, however much that does.
    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.poll();
            self.emulator.step();
        }
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.poller.outstanding() == 0 {
                return;
            }
            self.turns(1);
        }
        panic!("requests never complete");
    }

    fn commands(&self) -> u64 {
        self.poller.stats(self.queue).commands
    }

    fn finish_read(&mut self, tag: u64) -> Vec<u8> {
        let (result, bytes) = self.done.remove(&tag).expect("completed");
        assert_eq!(result, Ok(()));
        bytes
    }

    /// Reads, and checks that nothing has changed there.
    fn check(&mut self, blocks: Range<u64>) {
        self.submit(self.read(blocks.clone()));
        self.run();
        assert!(self.finish_read(blocks.start) == bytes(blocks.clone(), BLOCK), "blocks {blocks:?}");
    }
}

fn read_error(lbas: Range<u64>) -> Fault {
    Fault::new(Commands::reads().lbas(lbas), Effect::Status(Status::UNRECOVERED_READ_ERROR))
}

// ---- hits, misses and what they cost ----

#[test]
fn what_is_there_takes_no_command() {
    let mut rig = Rig::new(16);
    rig.check(0..4);
    let commands = rig.commands();
    assert_eq!((rig.counts().misses, rig.counts().hits), (1, 0));
    // All of the line is there, not only what was asked for; without a step nothing can be read.
    for blocks in [0..4, 4..8, 0..8, 7..8] {
        rig.submit(rig.read(blocks.clone()));
        rig.poll();
        assert!(rig.finish_read(blocks.start) == bytes(blocks, BLOCK));
    }
    assert_eq!((rig.commands(), rig.poller.outstanding()), (commands, 0));
    assert_eq!((rig.counts().hits, rig.counts().hit_bytes), (4, 17 * BLOCK as u64));
    // The same for a read of several lines.
    rig.check(8..16);
    let commands = rig.commands();
    rig.submit(rig.read(3..13));
    rig.poll();
    assert!(rig.finish_read(3) == bytes(3..13, BLOCK));
    assert_eq!((rig.commands(), rig.poller.outstanding()), (commands, 0));
}

#[test]
fn requests_for_one_line_share_one_command() {
    let mut rig = Rig::new(16);
    let commands = rig.commands();
    for lba in 0..8 {
        rig.submit(rig.read(lba..lba + 1));
    }
    // A piece of a larger one as well.
    rig.submit(rig.read(6..12).tag(100));
    rig.run();
    for lba in 0..8 {
        assert!(rig.finish_read(lba) == bytes(lba..lba + 1, BLOCK));
    }
    assert!(rig.finish_read(100) == bytes(6..12, BLOCK));
    let counts = rig.counts();
    assert_eq!((counts.misses, counts.shared, counts.hits), (2, 8, 0));
    assert_eq!(rig.commands() - commands, 2);
}

#[test]
fn hits_are_served_while_a_miss_is_under_way() {
    let mut rig = Rig::new(16);
    rig.check(0..8);
    rig.check(16..24);
    // What is missing cannot be read: what is there all the same must come from before it failed.
    rig.emulator.set_faults(Faults::default().with(read_error(8..16)));
    rig.emulator.hold(Commands::reads());
    rig.submit(rig.read(4..20));
    rig.turns(3);
    let counts = rig.counts();
    assert_eq!((counts.hits, counts.hit_bytes, counts.misses), (2, 8 * BLOCK as u64, 3));
    assert_eq!((rig.poller.outstanding(), rig.emulator.held().len()), (1, 1));
    // And the lines serve others meanwhile.
    for blocks in [0..8, 16..24] {
        rig.submit(rig.read(blocks.clone()));
        rig.poll();
        assert!(rig.finish_read(blocks.start) == bytes(blocks, BLOCK));
    }
    rig.emulator.release_all();
    rig.run();
    let (result, memory) = rig.done.remove(&4).unwrap();
    let failure = result.unwrap_err();
    assert_eq!(failure.lba, 8);
    assert_eq!(failure.status(), Some(Status::UNRECOVERED_READ_ERROR));
    assert!(memory[..4 * BLOCK] == bytes(4..8, BLOCK) && memory[12 * BLOCK..] == bytes(16..20, BLOCK));
    assert!(memory[4 * BLOCK..12 * BLOCK].iter().all(|byte| *byte == 0xee));
}

#[test]
fn a_read_has_few_lines_read_at_a_time() {
    // And there is just enough room for what it is cut into.
    let mut rig = Rig::with_room(1, 64);
    rig.emulator.hold(Commands::reads());
    rig.submit(rig.read(3..3 + 100));
    let mut lines = 0;
    while rig.poller.outstanding() > 0 {
        rig.turns(2);
        let held = rig.emulator.held();
        assert!(held.len() <= 4, "{} reads at a time", held.len());
        if let Some((_, command)) = held.first() {
            rig.emulator.release(Commands::reads().lbas(command.slba()..=command.slba()));
            lines += 1;
        }
    }
    assert_eq!((lines, rig.counts().misses), (13, 13));
    assert!(rig.finish_read(3) == bytes(3..103, BLOCK));
}

/// A part of a request that was a hit can be used before the rest of the request is there.
#[test]
fn hits_can_be_observed_before_the_rest_is_there() {
    let mut rig = Rig::new(16);
    rig.check(0..8);
    rig.check(16..24);
    rig.emulator.hold(Commands::reads());
    let request = rig.poller.request(rig.cached, rig.read(4..20)).unwrap();
    let parts = [0..4u64, 4..12, 12..16].map(|blocks| blocks.start * BLOCK as u64..blocks.end * BLOCK as u64);
    let parts = parts.map(|part| rig.poller.observe(request, part).unwrap());
    rig.turns(3);
    let seen = |rig: &Rig<_>| {
        parts.map(|part| rig.poller.observed(part).map(|part| part.collect::<Vec<_>>().concat()))
    };
    assert!(seen(&rig) == [Some(bytes(4..8, BLOCK)), None, Some(bytes(16..20, BLOCK))]);
    rig.emulator.release_all();
    rig.turns(3);
    assert!(seen(&rig)[1] == Some(bytes(8..16, BLOCK)));
    assert_eq!(rig.poller.claim(request).unwrap().1, Ok(()));
}

#[test]
fn the_line_goes_that_was_not_used_for_longest() {
    // One set.
    let mut rig = Rig::new(4);
    for line in 0..4 {
        rig.check(line * LINE..line * LINE + 1);
    }
    rig.check(0..1);
    rig.check(4 * LINE..4 * LINE + 1);
    let commands = rig.commands();
    // Line 1 has gone, for line 4.
    for line in [0, 2, 3, 4] {
        rig.check(line * LINE..line * LINE + 1);
    }
    assert_eq!(rig.commands(), commands);
    rig.check(LINE..LINE + 1);
    assert_eq!(rig.commands(), commands + 1);
}

// ---- around the cache ----

#[test]
fn some_reads_pass_through() {
    let mut rig = Rig::new(16);
    rig.check(0..32);
    assert_eq!((rig.counts().misses, rig.counts().bypassed), (4, 0));
    let commands = rig.commands();
    // More than a quarter of the cache: as one request, hits or not.
    rig.check(0..33);
    assert_eq!((rig.counts().bypassed, rig.counts().hits, rig.commands()), (1, 0, commands + 1));
    for io in [rig.read(0..1).fua(true), rig.read(1..2).atomic(true), rig.read(2..3).no_bounce(true)] {
        rig.submit(io);
    }
    rig.run();
    assert_eq!((rig.counts().bypassed, rig.counts().hits), (4, 0));
    for lba in 0..3 {
        assert!(rig.finish_read(lba) == bytes(lba..lba + 1, BLOCK));
    }
    rig.submit(IoContainer::flush().tag(7));
    rig.run();
    assert_eq!(rig.done.remove(&7).unwrap().0, Ok(()));
}

#[test]
fn with_all_lines_being_read_others_pass_through() {
    let mut rig = Rig::new(2);
    rig.emulator.hold(Commands::reads());
    for line in 0..4 {
        rig.submit(rig.read(line * LINE + 1..line * LINE + 3));
    }
    rig.turns(2);
    let blocks: Vec<_> = rig.emulator.held().iter().map(|(_, read)| (read.slba(), read.nlb() + 1)).collect();
    assert_eq!(blocks, [(0, 8), (8, 8), (17, 2), (25, 2)]);
    rig.emulator.release_all();
    rig.run();
    for line in 0..4 {
        let first = line * LINE + 1;
        assert!(rig.finish_read(first) == bytes(first..first + 2, BLOCK));
    }
    assert_eq!((rig.counts().misses, rig.counts().bypassed), (2, 2));
}

#[test]
fn what_is_not_a_whole_line_at_the_end_passes_through() {
    let options = CacheOptions { bytes: 16 * LINE_BYTES, line: LINE_BYTES };
    let mut rig = Rig::over("size=10240,block=512,media=ram", 4, 4, |disk, space| {
        Cache::new(disk, space, options).unwrap()
    });
    rig.check(10..20);
    rig.check(10..20);
    rig.check(19..20);
    let counts = rig.counts();
    assert_eq!((counts.misses, counts.hits, counts.bypassed), (1, 1, 3));
}

/// In place, a write, which has a slot when it is done, becomes a read that needs none: because it is a
/// hit, or waits for a line that is being read. With 8 slots, and 20 times.
#[test]
fn a_read_without_a_command_gives_the_slot_of_the_last_one_back() {
    for waits in [false, true] {
        let mut rig = Rig::new(64);
        rig.check(0..8);
        for round in 0..20 {
            let line = if waits { 20 + u64::from(round) } else { 0 } * LINE;
            let mut first = waits.then(|| rig.read(line..line + 1));
            rig.submit(rig.write(8..9, round).tag(1000));
            let (cached, mut read) = (rig.cached, None);
            for _ in 0..10 {
                rig.poller.poll(|mut done: Done<'_, _>| match done.io().operation() {
                    Operation::Write => {
                        first.take().into_iter().for_each(|first| done.submit(cached, first).unwrap());
                        done.in_place().set_operation(Operation::Read);
                        done.set_lba(line + 3);
                        done.resubmit().unwrap();
                    }
                    _ if done.io().get_tag() == 1000 => read = Some(done.take().into_memory().to_vec()),
                    _ => {}
                });
                rig.emulator.step();
            }
            assert!(read.expect("there was a slot for the write") == bytes(line + 3..line + 4, BLOCK));
        }
        let counts = rig.counts();
        assert_eq!((counts.hits, counts.shared), if waits { (0, 20) } else { (20, 0) });
    }
}

#[test]
fn a_cache_is_made_from_text() {
    let plan: Plan = "cache(bytes=32K,line=4K,partition(start=8,blocks=64,disk))".parse().unwrap();
    let mut rig = Rig::over("size=256K,block=512,media=ram", 4, 4, |disk, space| {
        Stack::new(&plan, space, &mut |_| Ok(disk)).unwrap()
    });
    for _ in 0..2 {
        rig.submit(rig.read(0..8).tag(0));
        rig.run();
        assert!(rig.finish_read(0) == bytes(8..16, BLOCK));
    }
    let stack = rig.poller.layer(rig.cached).unwrap();
    assert!(matches!(stack, Stack::Cache(cache) if cache.counts().hits == 1 && cache.counts().misses == 1));
    assert_eq!(stack.layers().len(), 3);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let mut refused = 0;
    Rig::over("size=1M,block=4096,media=ram", 4, 4, |disk, space| {
        let new = |bytes, line| Cache::new(disk, space, CacheOptions { bytes, line });
        for (bytes, line) in
            [(1 << 20, 2048), (1 << 20, 12288), (1 << 20, 0), (4096, 8192), (0, 4096), (8 << 30, 4096)]
        {
            new(bytes, line).unwrap_err();
            refused += 1;
        }
        let elsewhere = DmaSpace::new().unwrap();
        Cache::new(disk, &elsewhere, CacheOptions::default()).unwrap_err();
        // As small as can be, and not a whole number of lines.
        new(5000, 4096).unwrap()
    })
    .run();
    assert_eq!(refused, 6);
}

// ---- writes ----

#[test]
fn what_is_written_is_not_served_from_before() {
    let mut rig = Rig::new(16);
    let writes = [
        |rig: &Rig<_>| rig.write(12..20, 0),
        |_: &Rig<_>| IoContainer::write_zeroes(12, 8).tag(12),
        |_: &Rig<_>| IoContainer::deallocate(12, 8).tag(12),
    ];
    for (i, write) in writes.into_iter().enumerate() {
        rig.submit(rig.write(0..32, 9));
        rig.run();
        rig.done.clear();
        for line in 0..4 {
            rig.submit(rig.read(line * LINE..line * LINE + 1));
        }
        rig.run();
        rig.done.clear();
        let invalidated = rig.counts().invalidated;
        rig.submit(write(&rig));
        rig.run();
        assert_eq!(rig.done.remove(&12).unwrap().0, Ok(()));
        assert_eq!(rig.counts().invalidated - invalidated, 2);
        let (commands, misses) = (rig.commands(), rig.counts().misses);
        rig.submit(rig.read(0..32));
        rig.run();
        let mut expected = vec![9; 32 * BLOCK];
        expected[12 * BLOCK..20 * BLOCK].fill(0);
        assert!(rig.finish_read(0) == expected, "write {i}");
        // The two lines that the write touched, and no others.
        assert_eq!((rig.commands() - commands, rig.counts().misses - misses), (2, 2));
    }
}

/// The line is read before the write, and comes in while the write is under way.
#[test]
fn a_line_read_before_a_write_is_not_kept() {
    let mut rig = Rig::new(16);
    rig.submit(rig.read(0..1));
    rig.turns(1);
    // The line is in memory; nobody has looked. Others that came before the write wait for it.
    rig.submit(rig.read(5..6));
    rig.submit(rig.write(4..8, 1));
    assert_eq!((rig.counts().shared, rig.counts().invalidated), (1, 1));
    rig.poll();
    assert!(rig.finish_read(0) == bytes(0..1, BLOCK));
    rig.run();
    assert!(rig.finish_read(5) == bytes(5..6, BLOCK), "the read came before the write");
    rig.done.clear();
    rig.submit(rig.read(0..8));
    rig.run();
    assert!(rig.finish_read(0)[4 * BLOCK..].iter().all(|byte| *byte == 1));
    assert_eq!((rig.counts().hits, rig.counts().misses), (0, 2));
}

/// The line is read before the write, and comes in after it. Whoever comes after the write waits for
/// another.
#[test]
fn a_line_read_before_a_write_that_comes_in_after_it_is_not_kept() {
    let mut old = 0;
    for seed in 0..16 {
        let mut rig = Rig::new(16);
        let late = Fault::new(Commands::reads(), Effect::DelaySteps(10)).once();
        // In random order, half of the commands move their data when they are fetched.
        rig.emulator.set_faults(Faults::seeded(seed).random_order().with(late));
        rig.submit(rig.read(5..6).tag(1));
        rig.turns(1);
        rig.submit(rig.write(4..8, 1).tag(2));
        while !rig.done.contains_key(&2) {
            rig.turns(1);
        }
        assert!(!rig.done.contains_key(&1));
        rig.submit(rig.read(5..6).tag(3));
        rig.run();
        assert!(rig.finish_read(3).iter().all(|byte| *byte == 1), "served what was read before the write");
        old += usize::from(rig.finish_read(1) == bytes(5..6, BLOCK));
        rig.submit(rig.read(4..5).tag(4));
        rig.run();
        assert!(rig.finish_read(4).iter().all(|byte| *byte == 1), "kept what was read before the write");
        assert_eq!((rig.counts().misses, rig.counts().shared), (2, 0));
    }
    assert!(old > 0, "no line was ever read before the write");
}

#[test]
fn next_to_a_write_nothing_comes_into_the_cache() {
    let mut rig = Rig::new(16);
    rig.check(16..24);
    rig.emulator.hold(Commands::writes());
    rig.submit(rig.write(4..8, 1));
    rig.submit(rig.write(4..6, 1).tag(5));
    rig.turns(2);
    rig.emulator.release(Commands::writes().lbas(7..8));
    rig.turns(2);
    assert!(rig.done.contains_key(&4) && !rig.done.contains_key(&5));
    // One of the two is still under way. Neighbours are read around the cache, all else is served.
    rig.submit(rig.read(0..2));
    rig.submit(rig.read(16..18));
    rig.turns(2);
    assert!(rig.finish_read(0) == bytes(0..2, BLOCK) && rig.finish_read(16) == bytes(16..18, BLOCK));
    let counts = rig.counts();
    assert_eq!((counts.misses, counts.bypassed, counts.hits), (1, 1, 1));
    rig.emulator.release_all();
    rig.run();
    rig.check(2..4);
    rig.check(0..2);
    assert_eq!((rig.counts().misses, rig.counts().hits), (2, 2));
}

#[test]
fn a_write_larger_than_the_cache_throws_out_what_it_touches() {
    let mut rig = Rig::new(32);
    for line in 0..32 {
        rig.check(line * LINE..line * LINE + 1);
    }
    rig.submit(rig.write(9..500, 1));
    rig.run();
    rig.done.clear();
    assert_eq!(rig.counts().invalidated, 31);
    rig.check(0..8);
    assert_eq!(rig.counts().hits, 1);
    rig.submit(rig.read(8..16));
    rig.run();
    let read = rig.finish_read(8);
    assert!(read[..BLOCK] == bytes(8..9, BLOCK) && read[BLOCK..].iter().all(|byte| *byte == 1));
}

// ---- failures ----

#[test]
fn only_who_wants_a_bad_block_fails() {
    let mut rig = Rig::new(16);
    rig.emulator.set_faults(Faults::default().with(read_error(13..14)));
    for blocks in [8..10, 12..14, 14..16, 5..9, 6..20, 13..15] {
        rig.submit(rig.read(blocks));
    }
    rig.run();
    for blocks in [8..10, 14..16, 5..9] {
        assert!(rig.finish_read(blocks.start) == bytes(blocks, BLOCK));
    }
    // The first block of the piece that failed: from line to line.
    for (tag, lba) in [(12, 12), (6, 8), (13, 13)] {
        assert_eq!(rig.done.remove(&tag).unwrap().0.unwrap_err().lba, lba);
    }
    let counts = rig.counts();
    assert_eq!((counts.misses, counts.shared, counts.retried), (3, 6, 6));
    // Nothing was kept of the line, and it can be had again.
    rig.emulator.set_faults(Faults::default());
    rig.check(8..16);
    rig.check(12..14);
    assert_eq!((rig.counts().misses, rig.counts().hits), (4, 1));
}

/// A read that comes once more goes on where it failed.
#[test]
fn reads_can_be_resumed() {
    let options = CacheOptions { bytes: 16 * LINE_BYTES, line: LINE_BYTES };
    let mut rig = Rig::over("size=256K,block=512,media=ram", 4, 4, |disk, space| {
        Retry::new(Cache::new(disk, space, options).unwrap(), RetryOptions::default()).unwrap()
    });
    // As a line, and by itself; then all is well. The rest is one line, or two.
    for (bad, blocks) in [(8, 5..16), (40, 37..54), (80, 81..84)] {
        rig.emulator.set_faults(Faults::default().with(read_error(bad..bad + 8).times(2)));
        rig.check(blocks);
    }
    let layer = rig.poller.layer(rig.cached).unwrap();
    assert_eq!((layer.retries().cured, layer.below().counts().retried), (3, 3));
}

/// What lies before the block that a failure names has been read, even if a line there failed, too; what
/// comes after is not asked for any more.
#[test]
fn what_lies_before_a_failure_is_done() {
    let mut rig = Rig::new(64);
    rig.emulator.set_faults(Faults::default().with(read_error(0..1)).with(read_error(8..16)));
    rig.emulator.hold(Commands::reads().lbas(0..1));
    rig.emulator.hold(Commands::reads().lbas(16..));
    rig.submit(rig.read(4..100));
    rig.turns(6);
    // The second line failed, and so did its piece by itself; the others are still under way.
    assert_eq!((rig.counts().retried, rig.counts().misses, rig.poller.outstanding()), (1, 4, 1));
    rig.emulator.release_all();
    rig.run();
    let (result, memory) = rig.done.remove(&4).unwrap();
    assert_eq!(result.unwrap_err().lba, 8);
    assert!(memory[..4 * BLOCK] == bytes(4..8, BLOCK));
    assert_eq!((rig.counts().retried, rig.counts().misses), (2, 4));
}

#[test]
fn cancelling_one_read_leaves_others_that_wait_for_its_line() {
    let mut rig = Rig::new(16);
    rig.emulator.hold(Commands::reads());
    rig.emulator.hold(Commands::admin().opcode(admin_opcode::ABORT));
    let first = rig.poller.request(rig.cached, rig.read(4..12)).unwrap();
    rig.submit(rig.read(0..2));
    rig.submit(rig.read(6..10).tag(6));
    let second = rig.poller.request(rig.cached, rig.read(8..9)).unwrap();
    rig.turns(2);
    let commands = rig.commands();
    rig.poller.cancel(first);
    rig.poller.cancel(second);
    rig.turns(2);
    // What is in flight may still write to memory: nobody gets anything back yet.
    assert!(rig.poller.claim(first).is_none() && rig.poller.claim(second).is_none());
    rig.emulator.release_all();
    rig.turns(4);
    for event in [first, second] {
        let (_, result) = rig.poller.claim(event).unwrap();
        assert_eq!(result.unwrap_err().cause, Cause::Cancelled);
    }
    assert!(rig.finish_read(0) == bytes(0..2, BLOCK) && rig.finish_read(6) == bytes(6..10, BLOCK));
    // Both lines were read once more, for those that were left.
    assert_eq!((rig.commands() - commands, rig.counts().retried, rig.poller.outstanding()), (2, 0, 0));
    rig.check(0..16);
    assert_eq!(rig.counts().hits, 2);
}

#[test]
fn a_cancelled_read_asks_for_no_more_lines() {
    let mut rig = Rig::new(64);
    rig.emulator.hold(Commands::reads());
    let event = rig.poller.request(rig.cached, rig.read(0..128)).unwrap();
    rig.turns(2);
    let commands = rig.commands();
    rig.poller.cancel(event);
    rig.emulator.release_all();
    rig.turns(4);
    assert_eq!(rig.poller.claim(event).unwrap().1.unwrap_err().cause, Cause::Cancelled);
    assert_eq!((rig.commands(), rig.poller.outstanding()), (commands, 0));
}

#[test]
fn a_lost_controller_fails_what_waits_for_lines() {
    let mut rig = Rig::new(16);
    rig.check(0..8);
    rig.emulator.hold(Commands::reads());
    for blocks in [4..20, 9..10, 17..18] {
        rig.submit(rig.read(blocks));
    }
    rig.turns(1);
    rig.emulator.unplug();
    while rig.poller.outstanding() > 0 {
        rig.poll();
    }
    for (tag, lba) in [(4, 8), (9, 9), (17, 17)] {
        assert_eq!(rig.done.remove(&tag).unwrap().0, Err(Failure { lba, cause: Cause::ControllerLost }));
    }
    // What is there is still there.
    rig.check(0..8);
}

#[test]
fn a_poller_may_go_while_lines_are_read() {
    let mut rig = Rig::new(16);
    rig.emulator.hold(Commands::reads());
    rig.submit(rig.read(4..20));
    rig.submit(rig.read(5..6));
    rig.turns(2);
    assert_eq!(rig.poller.outstanding(), 2);
}

#[test]
fn a_cached_read_can_be_an_event() {
    let mut rig = Rig::new(16);
    rig.check(0..8);
    let reads = [0..8, 2..12, 10..14].map(|blocks| rig.read(blocks));
    let events = reads.map(|read| rig.poller.request(rig.cached, read).unwrap());
    let all = rig.poller.all(&events).unwrap();
    rig.poll();
    // The first is a hit, and there is nothing to wait for.
    assert!(rig.poller.claim(events[0]).unwrap().0.memory().to_vec() == bytes(0..8, BLOCK));
    assert!(rig.poller.claim(events[1]).is_none());
    rig.turns(3);
    assert!(matches!(rig.poller.state(all), Some(State::Settled(Verdict { success: true, .. }, _))));
    for (event, blocks) in [(events[1], 2..12), (events[2], 10..14)] {
        let (io, result) = rig.poller.claim(event).unwrap();
        assert_eq!(result, Ok(()));
        assert!(io.memory().to_vec() == bytes(blocks, BLOCK));
    }
    assert_eq!((rig.counts().misses, rig.counts().shared, rig.poller.outstanding()), (2, 1, 0));
}

// ---- everything at once ----

#[derive(Debug, Clone)]
struct Setup {
    block: usize,
    /// log2 of the blocks of a line.
    line_shift: u32,
    lines: usize,
    requests: u32,
    depth: usize,
    seed: u64,
    bad: Option<u64>,
}

#[derive(Debug, Clone)]
struct Request {
    operation: Operation,
    /// Where, as a fraction of the device, and how many blocks. Some places are sought more than others.
    at: f64,
    blocks: u64,
    fua: bool,
    /// Whether to poll before the next.
    poll: bool,
}

const DEVICE: u64 = 200;

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop_oneof![Just(512), Just(4096)],
        0..5u32,
        1..20usize,
        1..12u32,
        1..6usize,
        any::<u64>(),
        prop::option::weighted(0.5, 0..DEVICE),
    )
        .prop_map(|(block, line_shift, lines, requests, depth, seed, bad)| Setup {
            block,
            line_shift,
            lines,
            requests,
            depth,
            seed,
            bad,
        })
}

fn request() -> impl Strategy<Value = Request> {
    let operation = prop_oneof![
        12 => Just(Operation::Read),
        3 => Just(Operation::Write),
        1 => Just(Operation::WriteZeroes),
        1 => Just(Operation::Deallocate),
        1 => Just(Operation::Flush),
    ];
    let blocks = prop_oneof![4 => 1..6u64, 2 => 1..40u64, 1 => 1..DEVICE];
    (operation, 0.0..1.0f64, blocks, prop::bool::weighted(0.05), prop::bool::weighted(0.4))
        .prop_map(|(operation, at, blocks, fua, poll)| Request { operation, at, blocks, fua, poll })
}

/// A request in flight, and what it shall read.
struct Flying {
    blocks: Range<u64>,
    writes: bool,
    expected: Option<Vec<u8>>,
}

/// Requests in flight together never depend on their order: a write overlaps no other request.
struct Oracle<L: Layer> {
    rig: Rig<L>,
    block: usize,
    bad: Option<u64>,
    model: Vec<u8>,
    flying: BTreeMap<u64, Flying>,
}

impl<L: Layer> Oracle<L> {
    fn turn(&mut self) -> Result<(), TestCaseError> {
        self.rig.turns(1);
        for (tag, (result, bytes)) in std::mem::take(&mut self.rig.done) {
            let Flying { blocks, expected, .. } = self.flying.remove(&tag).expect("completed once");
            match self.bad.filter(|bad| expected.is_some() && blocks.contains(bad)) {
                None => prop_assert_eq!(result, Ok(())),
                Some(bad) => {
                    let lba = result.expect_err("a block of it cannot be read").lba;
                    prop_assert!((blocks.start..=bad).contains(&lba), "{} for {:?}", lba, blocks);
                    continue;
                }
            }
            if let Some(expected) = expected {
                prop_assert!(bytes == expected, "read of {:?} has other data than was written", blocks);
            }
        }
        Ok(())
    }

    fn conflicts(&self, blocks: &Range<u64>, writes: bool) -> bool {
        self.flying.values().any(|other| {
            (writes || other.writes) && blocks.start < other.blocks.end && other.blocks.start < blocks.end
        })
    }

    /// What a request shall read, and what it changes.
    fn apply(&mut self, request: &Request, blocks: &Range<u64>, tag: u64) -> (IoContainer, Option<Vec<u8>>) {
        let range = blocks.start as usize * self.block..blocks.end as usize * self.block;
        let (lba, count, len) = (blocks.start, blocks.end - blocks.start, range.len());
        match request.operation {
            Operation::Read => {
                let mut memory = self.rig.space.allocate(len).unwrap();
                memory.fill(0xee);
                (IoContainer::read(lba, memory), Some(self.model[range].to_vec()))
            }
            Operation::Write => {
                let data: Vec<u8> = (0..len).map(|i| (i as u64 / 7 + tag * 13) as u8).collect();
                let mut memory = self.rig.space.allocate(len).unwrap();
                memory.copy_from_slice(0, &data);
                self.model[range].copy_from_slice(&data);
                (IoContainer::write(lba, memory), None)
            }
            Operation::WriteZeroes | Operation::Deallocate => {
                self.model[range].fill(0);
                match request.operation {
                    Operation::WriteZeroes => (IoContainer::write_zeroes(lba, count), None),
                    _ => (IoContainer::deallocate(lba, count), None),
                }
            }
            Operation::Flush | Operation::Raw => (IoContainer::flush(), None),
        }
    }

    fn submit(&mut self, tag: u64, request: &Request, most: u32) -> Result<(), TestCaseError> {
        let first = ((DEVICE as f64 * request.at.powi(3)) as u64).min(DEVICE - 1);
        let blocks = first..(first + request.blocks).min(DEVICE);
        let moves = matches!(request.operation, Operation::Read | Operation::Write);
        let writes = !matches!(request.operation, Operation::Read | Operation::Flush);
        let mut polls = 0;
        while self.conflicts(&blocks, writes) || self.flying.len() == most as usize {
            self.turn()?;
            polls += 1;
            prop_assert!(polls < 100_000, "requests never complete");
        }
        let (io, expected) = self.apply(request, &blocks, tag);
        self.flying.insert(tag, Flying { blocks, writes, expected });
        let io = io.tag(tag).fua(request.fua && moves);
        let accepted = self.rig.poller.submit(self.rig.cached, io);
        accepted.map_err(|rejected| TestCaseError::fail(rejected.to_string()))?;
        if request.poll { self.turn() } else { Ok(()) }
    }
}

/// What is below the layers.
#[derive(Clone, Copy)]
struct Below {
    /// The block of the device that is their first.
    start: u64,
    /// Every now and then a read fails that succeeds the next time.
    flaky: bool,
}

const PLAIN: Below = Below { start: 0, flaky: false };

/// Returns what the layers counted.
fn run<L: Layer>(
    setup: &Setup,
    Below { start, flaky }: Below,
    requests: &[Request],
    layer: impl FnOnce(Disk, &DmaSpace) -> L,
    counts: impl Fn(&L) -> CacheCounts,
) -> Result<CacheCounts, TestCaseError> {
    let Setup { block, depth, seed, bad, .. } = *setup;
    let config = format!("size={},block={block},media=ram,mdts=1", (start + DEVICE) * block as u64);
    let rig = Rig::over(&config, setup.requests, depth, layer);
    let faults = Faults::seeded(seed).random_order();
    let slow = Fault::new(Commands::reads(), Effect::DelaySteps(4)).one_in(4);
    let error = Fault::new(Commands::reads(), Effect::Status(Status::INTERNAL_ERROR)).one_in(30);
    let faults = if flaky { faults.with(error) } else { faults };
    let bad_block = bad.map(|bad| read_error(start + bad..start + bad + 1));
    rig.emulator.set_faults(bad_block.into_iter().fold(faults.with(slow), Faults::with));
    let model = bytes(start..start + DEVICE, block);
    let mut oracle = Oracle { rig, block, bad, model, flying: BTreeMap::new() };
    for (tag, request) in requests.iter().enumerate() {
        oracle.submit(tag as u64, request, setup.requests)?;
    }
    let mut polls = 0;
    while !oracle.flying.is_empty() {
        oracle.turn()?;
        polls += 1;
        prop_assert!(polls < 100_000, "requests never complete");
    }
    let Rig { poller, emulator, queue, cached, .. } = &oracle.rig;
    prop_assert_eq!(poller.outstanding(), 0);
    prop_assert_eq!(poller.stats(*queue).faults, 0);
    prop_assert_eq!(emulator.counters().bad_doorbells, 0);
    Ok(counts(poller.layer(*cached).unwrap()))
}

fn options(setup: &Setup) -> CacheOptions {
    let line = setup.block << setup.line_shift;
    CacheOptions { bytes: setup.lines * line, line }
}

fn check(
    cases: u32,
    case: impl Fn(&Setup, &[Request]) -> Result<CacheCounts, TestCaseError>,
) -> (CacheCounts, u64) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let total = Cell::new((CacheCounts::default(), 0));
    let strategy = (setup(), prop::collection::vec(request(), 1..150));
    let result = TestRunner::new(config).run(&strategy, |(setup, requests)| {
        let counts = case(&setup, &requests)?;
        let (mut sum, evicted) = total.get();
        sum.hits += counts.hits;
        sum.misses += counts.misses;
        sum.shared += counts.shared;
        sum.bypassed += counts.bypassed;
        sum.retried += counts.retried;
        sum.invalidated += counts.invalidated;
        let gone = counts.misses.saturating_sub(setup.lines as u64 + counts.invalidated + counts.retried);
        total.set((sum, evicted + gone));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    total.get()
}

#[test]
fn what_is_written_is_what_is_read() {
    let (counts, evicted) = check(128, |setup, requests| {
        let layer = |disk, space: &_| Cache::new(disk, space, options(setup)).unwrap();
        run(setup, PLAIN, requests, layer, |cache| *cache.counts())
    });
    let CacheCounts { hits, misses, shared, bypassed, retried, invalidated, .. } = counts;
    for count in [hits, misses, shared, bypassed, retried, invalidated, evicted] {
        assert!(count > 10, "hardly tested: {counts:?}, {evicted} evicted");
    }
}

/// A small cache above a large one: reads of lines finish at once.
#[test]
fn a_cache_above_a_cache() {
    let (counts, _) = check(64, |setup, requests| {
        let layer = |disk, space: &_| {
            let line = setup.block << (setup.line_shift / 2);
            let below = Cache::new(disk, space, options(setup)).unwrap();
            Cache::new(below, space, CacheOptions { bytes: 6 * line, line }).unwrap()
        };
        run(setup, PLAIN, requests, layer, |cache| *cache.below().counts())
    });
    assert!(counts.hits > 20 && counts.shared > 20, "hardly tested: {counts:?}");
}

/// One of which submits what failed once more, from where it failed.
#[test]
fn a_cache_between_other_layers() {
    let (counts, _) = check(48, |setup, requests| {
        let layer = |disk: Disk, space: &_| {
            let part = Partition::new(disk, 5..5 + DEVICE).unwrap();
            let cache = Cache::new(Trace::new(part), space, options(setup)).unwrap();
            Retry::new(cache, RetryOptions::default().times(15)).unwrap()
        };
        run(setup, Below { start: 5, flaky: true }, requests, layer, |retry| *retry.below().counts())
    });
    assert!(counts.hits > 20 && counts.shared > 20 && counts.retried > 20, "hardly tested: {counts:?}");
}
