//! Memory of every shape takes the place of memory of any other shape, and containers that of others: each request
//! reads into its own.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::sync::OnceLock;

use kiovec::layer::{Disk, Partition};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{
    Controller, DataForm, Done, Event, IoContainer, Operation, Poller, QueueOptions, Refusal, Target,
};
use kiovec_emulator::{Config, Emulator};
use proptest::prelude::*;
use proptest::sample::Index;

type Layers = Partition<Disk>;

const BLOCK: usize = 512;
const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
const BLOCKS: u64 = (6 << 20) / BLOCK as u64;

/// What becomes of a request that is finished.
#[derive(Debug, Clone)]
struct Then {
    /// Which container takes its place, or that container's memory the place of its own, if any does.
    other: Option<(Index, bool)>,
    lba: u64,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Again,
    Into,
    Anew,
}

#[derive(Debug, Clone)]
struct Shape {
    foreign: bool,
    /// How many blocks behind the beginning of a page it begins, or of the end of a 2 MiB block, less so many.
    skip: usize,
    back: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    One(usize),
    /// The end of a page, whole pages, and the beginning of one.
    Pages(usize, usize, usize),
    /// Segments of so many dwords, and what is missing to whole blocks.
    Crumbs(Vec<usize>),
}

fn shape() -> impl Strategy<Value = Shape> {
    // Many are equally long.
    let length =
        prop_oneof![1 => Just(8usize), 1 => Just(16), 6 => Just(72), 1 => 1..40usize, 1 => 1..2500usize];
    let kind = prop_oneof![
        10 => length.prop_map(Kind::One),
        3 => (0..8usize, 0..20usize, 0..8usize).prop_map(|(a, b, c)| Kind::Pages(a, b, c)),
        1 => prop::collection::vec(1..1500usize, 1..4).prop_map(Kind::Crumbs),
    ];
    let skip = prop_oneof![4 => Just(0usize), 1 => 0..16usize];
    let back = prop_oneof![Just(0usize), (1..12usize).prop_map(|pages| 8 * pages), 1..100usize];
    (prop::bool::weighted(0.05), skip, back, kind).prop_map(|(foreign, skip, back, kind)| Shape {
        foreign,
        skip,
        back,
        kind,
    })
}

/// Contiguous memory of `len` bytes that begins `skip` blocks behind the beginning of a page, or `back` less before
/// the end of a 2 MiB block.
fn contiguous(space: &DmaSpace, skip: usize, back: usize, len: usize) -> MemoryChain {
    let all = space.allocate(2 * HUGE + 2 * PAGE + len).unwrap();
    let iova = all.segments()[0].iova() as usize;
    let start = match back {
        0 => iova.next_multiple_of(PAGE),
        back => (iova + PAGE).next_multiple_of(HUGE).max(iova + back * BLOCK) - back * BLOCK,
    };
    let from = start + skip * BLOCK - iova;
    all.slice(from..from + len)
}

fn chain(spaces: &[DmaSpace; 2], shape: &Shape) -> MemoryChain {
    let space = &spaces[usize::from(shape.foreign)];
    let mut chain = MemoryChain::new();
    match &shape.kind {
        Kind::One(blocks) => return contiguous(space, shape.skip, shape.back, blocks * BLOCK),
        Kind::Pages(before, pages, after) => {
            let mut push = |from: usize, len: usize| {
                if len > 0 {
                    chain.append(space.allocate(2 * PAGE).unwrap().slice(from..from + len));
                }
            };
            push(PAGE - before * BLOCK, before * BLOCK);
            (0..*pages).for_each(|_| push(0, PAGE));
            push(0, after * BLOCK);
        }
        Kind::Crumbs(dwords) => {
            for dwords in dwords {
                chain.append(contiguous(space, shape.skip, 0, dwords * 4));
            }
            let rest = chain.len().next_multiple_of(BLOCK) - chain.len();
            if rest > 0 {
                chain.append(space.allocate(PAGE).unwrap().slice(0..rest));
            }
        }
    }
    if chain.is_empty() { space.allocate(BLOCK).unwrap() } else { chain }
}

/// What the medium holds: no dword twice.
fn medium() -> &'static [u8] {
    static MEDIUM: OnceLock<Vec<u8>> = OnceLock::new();
    let dwords = 0..(BLOCKS * BLOCK as u64 / 4) as u32;
    MEDIUM.get_or_init(|| dwords.flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect())
}

fn holds(memory: &MemoryChain, lba: u64) -> bool {
    let from = lba as usize * BLOCK;
    memory.to_vec() == medium()[from..from + memory.len()]
}

struct World {
    emulator: Emulator,
    spaces: [DmaSpace; 2],
    poller: Poller<Layers>,
    targets: [Target; 2],
}

fn world(depth: usize, sgl: bool, gather: bool) -> World {
    let config = "size=6M,block=512,media=ram,mdts=8,sgl=on";
    let emulator = Emulator::stepped(Config::parse(config).unwrap()).unwrap();
    let spaces = [DmaSpace::new().unwrap(), DmaSpace::new().unwrap()];
    let controller = Controller::open(emulator.function(), &spaces[0]).unwrap();
    let mut poller = Poller::with_layers(32);
    let data = if sgl { DataForm::Sgl } else { DataForm::Prp };
    let options = QueueOptions::default().depth(depth).data(data).gather(gather);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let below = Disk::new(&poller, disk).unwrap();
    let part = poller.add_layer(Partition::new(below, 0..BLOCKS).unwrap()).unwrap();
    let mut all = spaces[0].allocate(6 << 20).unwrap();
    all.copy_from_slice(0, medium());
    poller.submit(disk, IoContainer::write(0, all)).unwrap();
    while poller.outstanding() > 0 {
        poller.poll(|done| done.result().unwrap());
        emulator.step();
    }
    World { emulator, spaces, poller, targets: [disk, part] }
}

struct Closure<'a> {
    pool: &'a mut Vec<IoContainer>,
    open: Event,
}

impl Closure<'_> {
    fn finish(&mut self, mut done: Done<'_, Layers>, then: &Then, again: bool) -> Option<IoContainer> {
        let io = done.io();
        done.result().unwrap();
        assert!(holds(io.memory(), io.lba()), "{io:?}");
        if !again {
            self.pool.push(done.take());
            return None;
        }
        done.in_place().data_mut().for_each(|bytes| bytes.fill(0xee));
        if let Some((index, whole)) = &then.other
            && !self.pool.is_empty()
        {
            let at = index.index(self.pool.len());
            let io = &mut self.pool[at];
            let reads = [done.io(), &*io].map(|io| io.operation() == Operation::Read);
            if *whole || reads != [true, true] {
                let names = |io: &IoContainer| {
                    (io.get_tag(), io.lba(), io.operation(), io.is_fua(), io.is_atomic(), io.memory().len())
                };
                let (before, blocks, other) = (names(done.io()), done.io().blocks(), names(io));
                done.exchange(io);
                assert_eq!((names(io), io.blocks(), names(done.io())), (before, blocks, other));
            } else {
                done.exchange_memory(io.memory_mut());
            }
        }
        let blocks = (done.io().memory().len() / BLOCK) as u64;
        done.set_lba(then.lba % (BLOCKS - blocks));
        let result = match then.how {
            How::Again => done.resubmit(),
            How::Into => done.resubmit_into(self.open),
            How::Anew if done.io().operation() == Operation::Read => {
                let target = done.target();
                let memory = done.io_mut().replace_memory(MemoryChain::new());
                done.submit(target, IoContainer::read(done.io().lba(), memory))
            }
            How::Anew => done.resubmit(),
        };
        match result {
            Ok(()) => None,
            Err(rejected) => match rejected.reason {
                Refusal::ForeignMemory { .. } => Some(rejected.io),
                reason => panic!("{reason}"),
            },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn each_reads_into_its_own_memory(
        depth in 1..16usize,
        sgl in prop::bool::weighted(0.2),
        gather in prop::bool::weighted(0.3),
        shapes in prop::collection::vec(shape(), 2..14),
        requests in prop::collection::vec((shape(), prop::bool::weighted(0.3), 0..BLOCKS), 1..8),
        thens in prop::collection::vec(
            (prop::option::weighted(0.6, any::<(Index, bool)>()), 0..BLOCKS, prop_oneof![8 => Just(How::Again), 1 => Just(How::Into), 1 => Just(How::Anew)])
                .prop_map(|(other, lba, how)| Then { other, lba, how }), 1..100),
    ) {
        let mut world = world(depth, sgl, gather);
        let mut pool: Vec<IoContainer> = shapes.iter().zip(1000..).map(|(shape, tag)| {
            let io = IoContainer::read(0, chain(&world.spaces, shape)).tag(tag);
            match tag % 7 {
                0 => io.fua(true),
                1 => io.no_merge(true),
                2 => IoContainer::flush().tag(tag),
                _ => io,
            }
        }).collect();
        let (open, mut number) = (world.poller.open_all(), 0);
        for (shape, layered, lba) in &requests {
            let memory = chain(&world.spaces, &Shape { foreign: false, ..shape.clone() });
            let blocks = (memory.len() / BLOCK) as u64;
            let io = IoContainer::read(lba % (BLOCKS - blocks), memory);
            world.poller.submit(world.targets[usize::from(*layered)], io).unwrap();
        }
        for _ in 0..4000 {
            if world.poller.outstanding() == 0 {
                break;
            }
            let mut closure = Closure { pool: &mut pool, open };
            let mut back = Vec::new();
            world.poller.poll(|done| {
                let target = done.target();
                let then = &thens[number % thens.len()];
                let again = number < thens.len();
                number += 1;
                back.extend(closure.finish(done, then, again).map(|io| (target, io)));
            });
            for (target, io) in back {
                let memory = world.spaces[0].allocate(PAGE).unwrap();
                pool.push(io);
                world.poller.submit(target, IoContainer::read(0, memory)).unwrap();
            }
            world.emulator.step();
        }
        prop_assert_eq!(world.poller.outstanding(), 0);
        prop_assert!(number >= thens.len());
    }
}

/// Another container in the place of one that is finished is carried out as what it is.
#[test]
fn a_write_in_the_place_of_a_read_is_a_write() {
    let World { emulator, spaces, mut poller, targets } = world(4, false, false);
    for target in targets {
        let memory = spaces[0].allocate(PAGE).unwrap();
        poller.submit(target, IoContainer::read(8, memory).tag(1)).unwrap();
        let mut memory = spaces[0].allocate(PAGE).unwrap();
        memory.fill(7);
        let mut other = IoContainer::write(8, memory).tag(2);
        // The read goes down, then the write, then what has become of the read: it reads what was written.
        let mut tags = Vec::new();
        while poller.outstanding() > 0 {
            poller.poll(|mut done| {
                done.result().unwrap();
                tags.push(done.io().get_tag());
                if tags.len() < 3 {
                    done.exchange(&mut other);
                    done.resubmit().unwrap();
                } else {
                    assert_eq!(done.io().memory().to_vec(), [7; PAGE]);
                }
            });
            emulator.step();
        }
        assert_eq!(tags, [1, 2, 1]);
        // As it was, for whoever comes next.
        let mut memory = spaces[0].allocate(PAGE).unwrap();
        memory.copy_from_slice(0, &medium()[8 * BLOCK..][..PAGE]);
        poller.submit(target, IoContainer::write(8, memory)).unwrap();
        while poller.outstanding() > 0 {
            poller.poll(|done| done.result().unwrap());
            emulator.step();
        }
    }
}
