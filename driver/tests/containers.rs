//! What one container becomes on its way down: split, merged, bounced, observed in parts.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::spec::Status;
use kiovec::{
    Cause, Controller, DataForm, Failure, IoContainer, Operation, Poller, QueueId, QueueOptions, Refusal,
    State, Target,
};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};

struct Bench {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller,
    queue: QueueId,
    disk: Target,
}

fn bench(settings: &str, options: QueueOptions) -> Bench {
    let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(1024);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { emulator, space, poller, queue, disk }
}

impl Bench {
    fn memory(&self, len: usize, byte: u8) -> MemoryChain {
        let mut memory = self.space.allocate(len).unwrap();
        memory.fill(byte);
        memory
    }

    fn submit(&mut self, io: IoContainer) {
        self.poller.submit(self.disk, io).unwrap();
    }

    /// Polls until nothing is outstanding: results and contents by tag, in the order of completion.
    fn finish(&mut self) -> Vec<(u64, Result<(), Failure>, Vec<u8>)> {
        let mut done = Vec::new();
        for _ in 0..1_000_000 {
            if self.poller.outstanding() == 0 {
                return done;
            }
            self.poller.poll(|finished| {
                let result = finished.result();
                let io = finished.take();
                done.push((io.get_tag(), result, io.into_memory().to_vec()));
            });
            self.emulator.step();
        }
        panic!("{} requests never complete", self.poller.outstanding());
    }

    fn commands(&self) -> u64 {
        self.poller.stats(self.queue).commands
    }

    /// What the blocks from 0 on contain, one byte of each.
    fn first_bytes(&mut self, blocks: usize) -> Vec<u8> {
        let size = self.poller.geometry(self.disk).unwrap().block_size();
        self.submit(IoContainer::read(0, self.space.allocate(blocks * size).unwrap()));
        self.finish()[0].2.chunks(size).map(|block| block[0]).collect()
    }
}

const DISK: &str = "size=16M,block=4096,media=ram,mdts=9,awupf=255";

#[test]
fn adjacent_requests_that_wait_share_a_command() {
    for (data, sgl) in [(DataForm::Prp, "off"), (DataForm::Sgl, "on")] {
        let mut bench = bench(&format!("{DISK},sgl={sgl}"), QueueOptions::default().data(data));
        bench.poller.plug(bench.queue);
        for i in 0..32 {
            let memory = bench.memory(4096, i as u8 + 1);
            bench.submit(IoContainer::write(i, memory).tag(i));
        }
        bench.poller.poll(|_| panic!("nothing went down"));
        assert_eq!(bench.commands(), 0);
        bench.poller.unplug(bench.queue);
        let mut tags: Vec<u64> = bench.finish().iter().map(|done| (done.1.unwrap(), done.0).1).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..32).collect::<Vec<_>>(), "each completes on its own");
        let stats = bench.poller.stats(bench.queue);
        assert_eq!((stats.commands, stats.merges, stats.splits), (1, 31, 0));
        assert_eq!(bench.first_bytes(33), (1..=32).chain([0]).collect::<Vec<u8>>());
        // Reads as well, and in a full queue without a plug.
        let mut reads =
            self::bench(&format!("{DISK},sgl={sgl}"), QueueOptions::default().data(data).depth(1));
        for i in 0..32 {
            let memory = reads.memory(4096, 0xee);
            reads.submit(IoContainer::read(i, memory).tag(i));
        }
        assert!(reads.finish().iter().all(|done| done.1.is_ok() && done.2 == [0; 4096]));
        assert_eq!(reads.commands(), 2, "the first alone, and what waited for it together");
    }
}

#[test]
fn what_must_stay_apart_stays_apart() {
    // Requests of one block each, and how many commands they are.
    type Make = fn(&Bench, u64) -> IoContainer;
    let write = |bench: &Bench, lba| IoContainer::write(lba, bench.memory(4096, 1));
    let cases: [(&str, &str, Make, u64); 8] = [
        ("plain", "", write, 1),
        ("fua", "", |b, lba| IoContainer::write(lba, b.memory(4096, 1)).fua(true), 8),
        ("no_merge", "", |b, lba| IoContainer::write(lba, b.memory(4096, 1)).no_merge(true), 8),
        ("atomic", "", |b, lba| IoContainer::write(lba, b.memory(4096, 1)).atomic(true), 8),
        ("gaps", "", |b, lba| IoContainer::write(2 * lba, b.memory(4096, 1)), 8),
        ("zeroes", "", |_, lba| IoContainer::write_zeroes(lba, 1), 8),
        ("boundary", ",noiob=4", write, 2),
        ("atomic unit of the namespace", ",nawupf=255,nabspf=255", write, 1),
    ];
    for (name, settings, make, commands) in cases {
        let mut bench = bench(&format!("{DISK}{settings}"), QueueOptions::default());
        bench.poller.plug(bench.queue);
        for lba in 0..8 {
            let io = make(&bench, lba);
            bench.submit(io);
        }
        bench.poller.unplug(bench.queue);
        assert!(bench.finish().iter().all(|done| done.1.is_ok()), "{name}");
        assert_eq!(bench.commands(), commands, "{name}");
    }
    // A flush between them, kinds that alternate, the switch, and power-fail atomicity of one block.
    let mut flush = bench(DISK, QueueOptions::default());
    flush.poller.plug(flush.queue);
    for lba in 0..4 {
        let memory = flush.memory(4096, 1);
        flush.submit(IoContainer::write(lba, memory));
        if lba == 1 {
            flush.submit(IoContainer::flush());
        }
    }
    flush.poller.unplug(flush.queue);
    assert_eq!((flush.finish().len(), flush.commands()), (5, 3));
    for (settings, options, commands) in [
        (DISK.to_owned(), QueueOptions::default().merge(false), 8),
        (DISK.replace("awupf=255", "awupf=0"), QueueOptions::default(), 8),
        (DISK.replace("awupf=255", "awupf=3"), QueueOptions::default(), 2),
    ] {
        let mut bench = bench(&settings, options);
        bench.poller.plug(bench.queue);
        for lba in 0..8 {
            let memory = bench.memory(4096, 1);
            bench.submit(IoContainer::write(lba, memory));
        }
        bench.poller.unplug(bench.queue);
        bench.finish();
        assert_eq!(bench.commands(), commands, "{settings}");
    }
}

#[test]
fn a_merged_command_that_fails_fails_only_the_guilty() {
    for status in [Status::WRITE_FAULT, Status::WRITE_FAULT.with_dnr()] {
        let mut bench = bench(DISK, QueueOptions::default().depth(2));
        bench.emulator.set_faults(
            Faults::default().with(Fault::new(Commands::writes().lbas(5..6), Effect::Status(status))),
        );
        bench.poller.plug(bench.queue);
        for i in 0..8 {
            let memory = bench.memory(4096, 7);
            bench.submit(IoContainer::write(i, memory).tag(i));
        }
        bench.poller.unplug(bench.queue);
        let mut done = bench.finish();
        done.sort_by_key(|done| done.0);
        for (tag, result, _) in &done {
            let expected = Failure { lba: 5, cause: Cause::Status(status) };
            assert_eq!(*result, if *tag == 5 { Err(expected) } else { Ok(()) });
        }
        assert_eq!(done.len(), 8);
        assert_eq!(bench.commands(), 1 + 8, "together, then one by one");
        assert_eq!(bench.first_bytes(8), [7, 7, 7, 7, 7, 0, 7, 7]);
    }
}

#[test]
fn an_atomic_request_is_one_command_or_refused() {
    let mut bench = bench("size=1M,block=4096,media=ram,mdts=2,awupf=1,sgl=off", QueueOptions::default());
    let atomic = |io: IoContainer| io.atomic(true);
    let memory = bench.memory(2 * 4096, 1);
    bench.submit(atomic(IoContainer::write(0, memory)));
    let memory = bench.memory(3 * 4096, 1);
    let rejected = bench.poller.submit(bench.disk, atomic(IoContainer::write(0, memory))).unwrap_err();
    assert_eq!(rejected.reason, Refusal::NotAtomic { lba: 0, blocks: 3, unit: 2 });
    let memory = bench.memory(4 * 4096, 1);
    bench.submit(atomic(IoContainer::read(0, memory)));
    let memory = bench.memory(5 * 4096, 1);
    let rejected = bench.poller.submit(bench.disk, atomic(IoContainer::read(0, memory))).unwrap_err();
    assert!(matches!(rejected.reason, Refusal::NotAtomic { .. }));
    assert_eq!((bench.finish().len(), bench.commands()), (2, 2));
}

/// A chain of `count` segments of odd sizes, none next to its neighbour, and `len` bytes in all.
fn odd_chain(space: &DmaSpace, count: usize, len: usize) -> MemoryChain {
    let mean = len / count;
    let mut rest = space.allocate(len).unwrap();
    let mut pieces = Vec::with_capacity(count);
    for i in 0..count - 1 {
        let odd = [1, 3, 514, 77][i % 4];
        let (piece, more) =
            rest.split_at(if i % 2 == 0 { mean + odd } else { mean - [1, 3, 514, 77][(i - 1) % 4] });
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces.rotate_left(count / 3);
    for pair in pieces.chunks_exact_mut(2) {
        pair.swap(0, 1);
    }
    let mut chain = MemoryChain::new();
    pieces.into_iter().for_each(|piece| chain.append(piece));
    assert_eq!((chain.len(), chain.segments().len()), (len, count));
    chain
}

#[test]
fn a_gibibyte_in_odd_segments_on_a_queue_of_two() {
    for data in [DataForm::Prp, DataForm::Sgl] {
        let options = QueueOptions::default().depth(2).data(data);
        let mut bench = bench("size=1G,block=512,media=null,sgl=on", options);
        let chain = odd_chain(&bench.space, 64 << 10, 1 << 30);
        bench.submit(IoContainer::read(0, chain));
        let mut done = 0;
        while bench.poller.outstanding() > 0 {
            bench.poller.poll(|finished| {
                finished.result().unwrap();
                done += 1;
            });
            bench.emulator.step();
        }
        assert_eq!(done, 1);
        let stats = bench.poller.stats(bench.queue);
        assert_eq!(stats.splits, stats.commands - 1);
        assert_eq!(stats.bounces > 0, data == DataForm::Prp, "SGLs need no bounce buffer");
    }
}

#[test]
fn odd_segments_carry_the_right_bytes() {
    for (data, sgl) in [(DataForm::Prp, "off"), (DataForm::Sgl, "on"), (DataForm::Sgl, "dword")] {
        let options = QueueOptions::default().depth(2).data(data);
        let mut bench = bench(&format!("size=4M,block=512,media=ram,mdts=1,sgl={sgl}"), options);
        let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut chain = odd_chain(&bench.space, 300, 1 << 20);
        chain.copy_from_slice(0, &bytes);
        bench.submit(IoContainer::write(7, chain));
        bench.finish();
        let chain = odd_chain(&bench.space, 411, 1 << 20);
        bench.submit(IoContainer::read(7, chain));
        assert!(bench.finish()[0].2 == bytes, "{data:?} {sgl}");
        let chain = odd_chain(&bench.space, 2, 1 << 20);
        let refused = bench.poller.submit(bench.disk, IoContainer::read(7, chain).no_bounce(true));
        let whole = sgl == "on";
        assert_eq!(refused.is_ok(), whole, "{data:?} {sgl}");
        bench.finish();
    }
}

#[test]
fn a_part_of_a_request_is_done_while_the_rest_is_under_way() {
    let mut bench = bench("size=1M,block=512,media=ram,mdts=1", QueueOptions::default());
    let memory = bench.memory(64 << 10, 0x5a);
    bench.submit(IoContainer::write(0, memory));
    bench.finish();
    // Eight commands of 16 blocks, of which the first stays away.
    bench.emulator.hold(Commands::reads().lbas(..16));
    let memory = bench.memory(64 << 10, 0);
    let request = bench.poller.request(bench.disk, IoContainer::read(0, memory)).unwrap();
    let ranges = [0..100, 8000..8200, 8192..16384, 60_000..65_536];
    let parts: Vec<_> =
        ranges.iter().map(|range| bench.poller.observe(request, range.clone()).unwrap()).collect();
    assert!(bench.poller.observe(request, 0..65_537).is_err());
    let both = bench.poller.all(&parts[2..]).unwrap();
    for _ in 0..10 {
        bench.poller.poll(|_| {});
        bench.emulator.step();
    }
    assert_eq!(bench.poller.state(request), Some(State::Pending));
    let is_settled =
        |bench: &Bench, event| matches!(bench.poller.state(event), Some(State::Settled(v, _)) if v.success);
    let settled: Vec<bool> = parts.iter().map(|part| is_settled(&bench, *part)).collect();
    assert_eq!(settled, [false, false, true, true]);
    assert!(is_settled(&bench, both));
    assert!(bench.poller.observed(parts[0]).is_none(), "the controller may still write there");
    let bytes: Vec<u8> = bench.poller.observed(parts[2]).unwrap().flatten().copied().collect();
    assert_eq!(bytes, [0x5a; 8192]);
    // One that comes late knows what is done already.
    let late = bench.poller.observe(request, 16_384..32_768).unwrap();
    let pending = bench.poller.observe(request, 0..512).unwrap();
    assert!(is_settled(&bench, late) && !is_settled(&bench, pending));
    bench.emulator.release_all();
    for _ in 0..10 {
        bench.emulator.step();
        bench.poller.poll(|_| {});
    }
    assert!(parts.iter().chain([&request, &pending]).all(|event| is_settled(&bench, *event)));
    assert!(bench.poller.claim(request).is_some());
    assert!(bench.poller.observed(parts[2]).is_none(), "its memory went with the request");
}

#[test]
fn parts_of_a_request_that_fails() {
    let mut bench = bench("size=1M,block=512,media=ram,mdts=1", QueueOptions::default().depth(2));
    let fault = Fault::new(Commands::reads().lbas(40..41), Effect::Status(Status::UNRECOVERED_READ_ERROR));
    bench.emulator.set_faults(Faults::default().with(fault));
    let memory = bench.memory(64 << 10, 0);
    let request = bench.poller.request(bench.disk, IoContainer::read(0, memory)).unwrap();
    let before = bench.poller.observe(request, 0..16_384).unwrap();
    let at = bench.poller.observe(request, 16_384..24_576).unwrap();
    let behind = bench.poller.observe(request, 57_344..65_536).unwrap();
    for _ in 0..20 {
        bench.poller.poll(|_| {});
        bench.emulator.step();
    }
    let success = |event| match bench.poller.state(event) {
        Some(State::Settled(verdict, _)) => verdict.success,
        state => panic!("{state:?}"),
    };
    assert_eq!([request, before, at, behind].map(success), [false, true, false, false]);
    assert!(bench.poller.observed(at).is_none());
}

#[test]
fn a_lost_controller_fails_everything_it_had() {
    let mut bench = bench("size=1M,block=512,media=ram,mdts=1", QueueOptions::default().depth(2));
    for tag in 0..4 {
        let memory = bench.memory(64 << 10, 0);
        bench.submit(IoContainer::read(tag * 128, memory).tag(tag));
    }
    bench.poller.poll(|_| {});
    bench.emulator.unplug();
    let mut done = HashMap::new();
    for _ in 0..200_000 {
        bench.poller.poll(|finished| {
            assert!(done.insert(finished.io().get_tag(), finished.result()).is_none());
        });
    }
    assert_eq!(done.len(), 4);
    assert!(done.values().all(|result| result.unwrap_err().cause == Cause::ControllerLost));
    // And what comes later, at once.
    let memory = bench.memory(512, 0);
    bench.submit(IoContainer::write(0, memory));
    assert_eq!(bench.finish()[0].1.unwrap_err().cause, Cause::ControllerLost);
    assert_eq!(bench.poller.outstanding(), 0);
}

/// Neighbours in the line that come from containers of any shape, in any order of operations.
#[test]
fn merged_or_not_the_medium_is_the_same() {
    for merge in [false, true] {
        for data in [DataForm::Prp, DataForm::Sgl] {
            let settings = "size=1M,block=512,media=ram,mdts=1,sgl=on,awupf=15";
            let mut bench = bench(settings, QueueOptions::default().depth(1).data(data).merge(merge));
            let mut model = vec![0u8; 2048];
            let mut lba = 0;
            for i in 0..200u64 {
                let blocks = [8, 8, 1, 3, 8, 8, 5][(i % 7) as usize];
                if i % 11 == 0 {
                    lba = i * 37 % 1500;
                }
                let byte = (i % 251) as u8 + 1;
                let mut memory = odd_chain(&bench.space, 1 + (i / 4 % 3) as usize, 512 * 9);
                memory = memory.split_at(512 * blocks as usize).0;
                memory.fill(byte);
                // Overlapping requests are not ordered: the line only goes on upward.
                bench.submit(IoContainer::write(lba, memory));
                model[lba as usize..(lba + blocks) as usize].fill(byte);
                lba += blocks;
                if i % 11 == 10 {
                    assert!(bench.finish().iter().all(|done| done.1.is_ok()));
                }
            }
            bench.finish();
            assert_eq!(bench.first_bytes(2048), model);
            assert_eq!(bench.poller.stats(bench.queue).merges > 0, merge);
        }
    }
}

#[test]
fn a_finished_part_of_the_line_is_used_again() {
    // In-place resubmission of merged requests: each goes round on its own.
    let mut bench = bench(DISK, QueueOptions::default().depth(1));
    for i in 0..8u64 {
        let memory = bench.memory(4096, i as u8);
        bench.submit(IoContainer::write(i, memory).tag(i));
    }
    let mut rounds = [0; 8];
    while bench.poller.outstanding() > 0 {
        bench.poller.poll(|mut done| {
            done.result().unwrap();
            let tag = done.io().get_tag() as usize;
            rounds[tag] += 1;
            if rounds[tag] < 50 {
                done.in_place().set_operation(Operation::Write);
                done.resubmit().unwrap();
            }
        });
        bench.emulator.step();
    }
    assert_eq!(rounds, [50; 8]);
    assert_eq!(bench.first_bytes(8), (0..8).collect::<Vec<u8>>());
}
