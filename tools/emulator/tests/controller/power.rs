//! Losses of power, and what a volatile write cache makes of them.

use kiovec::spec::command::RW_FUA;
use kiovec::spec::{Command, DsmRange, FeatureId, Status};
use kiovec_emulator::Faults;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::host::Host;

const BLOCK: usize = 512;
const BLOCKS: u64 = 32;

/// The first byte of each block, all of which have the same bytes.
fn medium(host: &Host) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK * BLOCKS as usize];
    assert!(host.emulator.read_medium(1, 0, &mut bytes));
    bytes
        .chunks(BLOCK)
        .map(|block| {
            assert!(block.iter().all(|byte| *byte == block[0]), "half a block");
            block[0]
        })
        .collect()
}

fn write(host: &mut Host, lba: u64, blocks: u16, byte: u8, fua: bool) {
    let (_memory, iova) = host.buffer(BLOCK * usize::from(blocks), byte);
    let command = Command::write(1, lba, blocks - 1).with_prps(iova, iova + 4096);
    let command = Command { cdw12: command.cdw12 | if fua { RW_FUA } else { 0 }, ..command };
    assert_eq!(host.try_io(command), Status::SUCCESS);
}

fn back_again(host: &mut Host) {
    host.disable();
    host.enable();
    host.create_pair(1, 8);
}

fn host(settings: &str) -> Host {
    Host::with_queue(&format!("size=16K,block=512,media=ram,{settings}"))
}

#[test]
fn what_is_not_flushed_may_be_lost_and_all_else_is_there() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..40 {
        let mut host = host(&format!("write_cache=1000,seed={seed}"));
        write(&mut host, 0, 16, 1, false);
        assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
        write(&mut host, 0, 8, 2, false);
        write(&mut host, 2, 1, 3, true);
        write(&mut host, 4, 1, 4, false);
        let seen = medium(&host);
        assert_eq!(seen[..16], [2, 2, 3, 2, 4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1], "reads see the cache");
        host.emulator.power_loss();
        assert!(!host.csts().rdy());
        let left = medium(&host);
        assert_eq!((left[2], &left[8..16]), (3, &[1; 8][..]));
        assert!(left[4] == 1 || left[4] == 2 || left[4] == 4);
        for byte in [0, 1, 3, 5, 6, 7].map(|block: usize| left[block]) {
            (old, new) = (old + u32::from(byte == 1), new + u32::from(byte == 2));
            assert!(byte == 1 || byte == 2);
        }
        let lost = left.iter().zip(&seen).filter(|(left, seen)| left != seen).count() as u64;
        let faults = host.emulator.counters().faults;
        assert_eq!((faults.power_losses, faults.lost_blocks), (1, lost));
        // Nothing is lost twice.
        host.emulator.power_loss();
        assert_eq!(medium(&host), left);
    }
    assert!(old > 20 && new > 20, "{old} and {new}");
}

#[test]
fn an_atomic_write_is_lost_as_a_whole() {
    let mut torn = 0;
    for seed in 0..40 {
        let mut host = host(&format!("write_cache=1000,awupf=3,seed={seed}"));
        write(&mut host, 0, 4, 1, false);
        write(&mut host, 8, 5, 1, false);
        host.emulator.power_loss();
        let left = medium(&host);
        assert!(left[..4] == [0; 4] || left[..4] == [1; 4], "{left:?}");
        torn += u32::from(left[8..13] != [0; 5] && left[8..13] != [1; 5]);
    }
    assert!(torn > 5, "{torn}");
}

#[test]
fn a_full_cache_gives_up_what_came_first() {
    for seed in 0..40 {
        let mut host = host(&format!("write_cache=4,seed={seed}"));
        (0..8).for_each(|lba| write(&mut host, lba, 1, 1, false));
        write(&mut host, 7, 1, 2, false);
        host.emulator.power_loss();
        assert_eq!(medium(&host)[..5], [1; 5]);
    }
}

#[test]
fn without_a_cache_nothing_is_lost() {
    for settings in ["vwc=on", "vwc=off", "write_cache=1000"] {
        let mut host = host(settings);
        if settings == "write_cache=1000" {
            let off = Command::set_features(FeatureId::VOLATILE_WRITE_CACHE, 0);
            write(&mut host, 0, 1, 1, false);
            assert_eq!(host.admin(off).status(), Status::SUCCESS);
        }
        write(&mut host, 0, 1, 1, false);
        write(&mut host, 1, 1, 1, false);
        host.emulator.power_loss();
        assert_eq!(medium(&host)[..3], [1, 1, 0], "{settings}");
    }
}

/// Which of these take the power with them is for the plan to say.
#[test]
fn resets_failures_and_removals_may_be_losses_of_power() {
    let ways: [fn(&mut Host); 4] = [
        |host| host.disable(),
        |host| host.function.reset().unwrap(),
        |host| host.emulator.fail(),
        |host| host.emulator.unplug(),
    ];
    for way in ways {
        let mut lost = 0;
        for seed in 0..20 {
            let mut host = host(&format!("write_cache=1000,seed={seed}"));
            write(&mut host, 0, 16, 1, false);
            if seed % 2 == 0 {
                host.emulator.set_faults(Faults::default().power_loss());
            }
            way(&mut host);
            let here = medium(&host)[..16].iter().filter(|byte| **byte == 0).count();
            assert!(seed % 2 == 0 || here == 0);
            lost += here;
        }
        assert!(lost > 0);
    }
}

#[test]
fn a_cache_needs_blocks_that_are_kept() {
    for text in ["write_cache=1", "write_cache=1,media=ram,vwc=off", "write_cache=1,media=file:/tmp/x"] {
        let error = kiovec_emulator::Config::parse(text).unwrap_err().to_string();
        assert!(error.contains("write_cache=1 is not possible"), "{error}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { lba: u64, blocks: u64, fua: bool },
    Zero { lba: u64, blocks: u64 },
    Deallocate { lba: u64, blocks: u64 },
    Flush,
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..BLOCKS - 8, 1..9u64);
    prop_oneof![
        4 => (at(), any::<bool>()).prop_map(|((lba, blocks), fua)| Step::Write { lba, blocks, fua }),
        1 => at().prop_map(|(lba, blocks)| Step::Zero { lba, blocks }),
        1 => at().prop_map(|(lba, blocks)| Step::Deallocate { lba, blocks }),
        1 => Just(Step::Flush),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against a list of what each block may hold after a loss: the last is what is seen.
    #[test]
    fn each_block_holds_something_since_its_last_flush(
        steps in proptest::collection::vec(step(), 1..40), room in 1..100u32, seed in any::<u32>()
    ) {
        let mut host = host(&format!("write_cache={room},seed={seed},wzsl=0"));
        let mut model = vec![vec![0u8]; BLOCKS as usize];
        for (number, step) in steps.into_iter().enumerate() {
            let byte = number as u8 + 1;
            let (range, byte, durable) = match step {
                Step::Write { lba, blocks, fua } => {
                    write(&mut host, lba, blocks as u16, byte, fua);
                    (lba..lba + blocks, byte, fua)
                }
                Step::Zero { lba, blocks } => {
                    prop_assert_eq!(host.try_io(Command::write_zeroes(1, lba, blocks as u16 - 1)), Status::SUCCESS);
                    (lba..lba + blocks, 0, false)
                }
                Step::Deallocate { lba, blocks } => {
                    let (mut ranges, at) = host.buffer(4096, 0);
                    let range = DsmRange { context_attributes: 0, length: blocks as u32, slba: lba };
                    ranges.copy_from_slice(0, range.as_bytes());
                    prop_assert_eq!(host.try_io(Command::deallocate(1, 0).with_prps(at, 0)), Status::SUCCESS);
                    (lba..lba + blocks, 0, false)
                }
                Step::Flush => {
                    prop_assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
                    model.iter_mut().for_each(|may| drop(may.drain(..may.len() - 1)));
                    (0..0, 0, false)
                }
                Step::Lose => {
                    host.emulator.power_loss();
                    back_again(&mut host);
                    for (byte, may) in medium(&host).into_iter().zip(&mut model) {
                        prop_assert!(may.contains(&byte), "{byte} is none of {may:?}");
                        *may = vec![byte];
                    }
                    (0..0, 0, false)
                }
            };
            for may in &mut model[range.start as usize..range.end as usize] {
                if durable {
                    may.clear();
                }
                may.push(byte);
            }
            let seen: Vec<u8> = model.iter().filter_map(|may| may.last().copied()).collect();
            prop_assert_eq!(medium(&host), seen);
        }
    }
}
