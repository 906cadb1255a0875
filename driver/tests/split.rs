//! Requests that take several commands and go down again where they are: elsewhere, as reads and as writes, and with
//! other memory. A plain array says what they find.
#![allow(clippy::unwrap_used)]

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, DataForm, IoContainer, Operation, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator};
use proptest::prelude::*;

const BLOCK: usize = 512;
const BLOCKS: u64 = 4096;
/// Bytes of a request at most.
const MOST: usize = 160 << 10;

/// What a request does once more.
#[derive(Clone, Debug)]
struct Step {
    lba: u64,
    write: bool,
    memory: Option<Memory>,
}

/// Other memory of the same length: from this byte of something contiguous on, in one part or two.
#[derive(Clone, Debug)]
struct Memory {
    offset: usize,
    parts: usize,
}

fn step() -> impl Strategy<Value = Step> {
    let offset =
        prop_oneof![3 => Just(0), 1 => Just(4096), 1 => Just(512), 1 => Just((2 << 20) - 8192), 1 => Just(2)];
    let memory = (offset, prop_oneof![4 => Just(1usize), 1 => Just(2)])
        .prop_map(|(offset, parts)| Memory { offset, parts });
    (0..BLOCKS, any::<bool>(), prop::option::weighted(0.4, memory)).prop_map(|(lba, write, memory)| Step {
        lba,
        write,
        memory,
    })
}

fn allocate(space: &DmaSpace, len: usize, memory: &Memory) -> MemoryChain {
    let all = space.allocate(4 << 20).unwrap();
    match memory.parts {
        1 => all.slice(memory.offset..memory.offset + len),
        _ => {
            let (first, rest) =
                all.slice(memory.offset..memory.offset + len + 8192).split_at((len / 2) & !4095);
            let missing = len - first.len();
            let mut chain = first;
            chain.append(rest.slice(8192..8192 + missing));
            chain
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn pieces_find_what_an_array_says(
        sgl in any::<bool>(),
        depth in 1..20usize,
        mdts in 1..5u32,
        boundary in prop_oneof![4 => Just(0u32), 1 => Just(24)],
        requests in prop::collection::vec((1..MOST / BLOCK, prop::collection::vec(step(), 1..6)), 1..5),
    ) {
        let config = format!("size=2M,block={BLOCK},media=ram,mdts={mdts},sgl=on,noiob={boundary}");
        let emulator = Emulator::stepped(Config::parse(&config).unwrap()).unwrap();
        let space = DmaSpace::new().unwrap();
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let mut poller = Poller::new(64);
        let data = if sgl { DataForm::Sgl } else { DataForm::Prp };
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(depth).data(data)).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        let mut array = vec![0u8; BLOCKS as usize * BLOCK];
        // One after the other, so that the array has one state.
        for (blocks, steps) in requests {
            let len = blocks * BLOCK;
            let place = |step: &Step| step.lba % (BLOCKS - blocks as u64);
            let mut steps = steps.into_iter();
            let mut now = steps.next().unwrap();
            let mut filled = 0u8;
            let mut fill = |memory: &mut MemoryChain| {
                filled = filled.wrapping_add(1);
                let bytes: Vec<u8> = (0..len).map(|i| (i / BLOCK) as u8 ^ (i as u8) ^ filled).collect();
                memory.copy_from_slice(0, &bytes);
                bytes
            };
            let mut memory = allocate(&space, len, now.memory.as_ref().unwrap_or(&Memory { offset: 0, parts: 1 }));
            let mut written = fill(&mut memory);
            let io = match now.write {
                true => IoContainer::write(place(&now), memory),
                false => IoContainer::read(place(&now), memory),
            };
            poller.submit(disk, io).unwrap();
            for _ in 0..100_000 {
                if poller.outstanding() == 0 {
                    break;
                }
                emulator.step();
                poller.poll(|mut done| {
                    done.result().unwrap();
                    let at = place(&now) as usize * BLOCK;
                    match now.write {
                        true => array[at..at + len].copy_from_slice(&written),
                        false => assert!(done.io().memory().to_vec() == array[at..at + len], "{now:?}"),
                    }
                    let Some(next) = steps.next() else { return };
                    now = next;
                    if let Some(memory) = &now.memory {
                        done.exchange_memory(&mut allocate(&space, len, memory));
                    }
                    let mut io = done.in_place();
                    io.set_lba(place(&now));
                    io.set_operation(if now.write { Operation::Write } else { Operation::Read });
                    let mut at = 0;
                    let mut bytes = vec![0; len];
                    for segment in io.data_mut() {
                        for byte in segment {
                            *byte = (at / BLOCK) as u8 ^ (at as u8).wrapping_mul(3) ^ place(&now) as u8;
                            bytes[at] = *byte;
                            at += 1;
                        }
                    }
                    written = bytes;
                    done.resubmit().unwrap();
                });
            }
            prop_assert_eq!(poller.outstanding(), 0);
        }
        prop_assert_eq!(poller.stats(queue).faults, 0);
    }
}
