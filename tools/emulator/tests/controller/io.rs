//! I/O commands through queues: data, limits, pointers.

use kiovec::spec::command::{DSM_DEALLOCATE, RW_FUA};
use kiovec::spec::{Command, Descriptor, DsmRange, Status, io_opcode};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::host::{Host, Words};

#[test]
fn what_is_written_is_read_back() {
    let mut host = Host::with_queue("size=4M,block=512,media=ram,namespaces=2");
    let (mut memory, iova) = host.buffer(8192, 0);
    let data: Vec<u8> = (0..8192u32).map(|i| (i * 7 / 5) as u8).collect();
    memory.copy_from_slice(0, &data);
    let write = Command::write(2, 1000, 15).with_prps(iova, iova + 4096);
    let write = Command { cdw12: write.cdw12 | RW_FUA, ..write };
    assert_eq!(host.try_io(write), Status::SUCCESS);
    let (back, iova) = host.buffer(8192, 0xaa);
    assert_eq!(host.try_io(Command::read(2, 1000, 15).with_prps(iova, iova + 4096)), Status::SUCCESS);
    assert_eq!(back.to_vec(), data);
    // The other namespace has blocks of its own, which were never written.
    assert_eq!(host.try_io(Command::read(1, 1000, 15).with_prps(iova, iova + 4096)), Status::SUCCESS);
    assert_eq!(back.to_vec(), [0; 8192]);
}

#[test]
fn contents_survive_every_reset() {
    let mut host = Host::with_queue("size=4M,media=ram");
    let (_memory, iova) = host.buffer(4096, 0x5a);
    assert_eq!(host.try_io(Command::write(1, 9, 0).with_prps(iova, 0)), Status::SUCCESS);
    host.disable();
    host.function.reset().unwrap();
    host.enable();
    host.create_pair(1, 4);
    let (back, iova) = host.buffer(4096, 0);
    assert_eq!(host.try_io(Command::read(1, 9, 0).with_prps(iova, 0)), Status::SUCCESS);
    assert_eq!(back.to_vec(), [0x5a; 4096]);
}

#[test]
fn deallocated_and_zeroed_blocks_read_as_zeros() {
    let mut host = Host::with_queue("size=4M,block=512,media=ram");
    let (_memory, iova) = host.buffer(4096, 0x77);
    assert_eq!(host.try_io(Command::write(1, 0, 7).with_prps(iova, 0)), Status::SUCCESS);
    let (mut ranges, at) = host.buffer(4096, 0);
    let range = |slba, length| DsmRange { context_attributes: 0, length, slba };
    ranges.copy_from_slice(4064, [range(1, 1), range(5, 2)].as_bytes());
    let deallocate = Command::deallocate(1, 1).with_prps(at + 4064, 0);
    assert_eq!(deallocate.cdw11, DSM_DEALLOCATE);
    assert_eq!(host.try_io(deallocate), Status::SUCCESS);
    assert_eq!(host.try_io(Command::write_zeroes(1, 3, 0)), Status::SUCCESS);
    let (back, iova) = host.buffer(4096, 1);
    assert_eq!(host.try_io(Command::read(1, 0, 7).with_prps(iova, 0)), Status::SUCCESS);
    let blocks: Vec<u8> = back.to_vec().chunks(512).map(|block| block[0]).collect();
    assert_eq!(blocks, [0x77, 0, 0x77, 0, 0x77, 0, 0, 0x77]);
}

#[test]
fn compare_finds_differences() {
    let mut host = Host::with_queue("size=1M,media=ram");
    let (mut memory, iova) = host.buffer(4096, 3);
    assert_eq!(host.try_io(Command::write(1, 0, 0).with_prps(iova, 0)), Status::SUCCESS);
    let compare = Command { opcode: io_opcode::COMPARE, ..Command::read(1, 0, 0).with_prps(iova, 0) };
    assert_eq!(host.try_io(compare), Status::SUCCESS);
    memory.copy_from_slice(4095, &[4]);
    assert_eq!(host.try_io(compare), Status::COMPARE_FAILURE);
}

#[test]
fn errors_reach_the_completion() {
    let mut host = Host::with_queue("size=1M,mdts=1,namespaces=1");
    let (_memory, iova) = host.buffer(4096, 0);
    let read = |nsid, slba, nlb| Command::read(nsid, slba, nlb).with_prps(iova, iova);
    let cases = [
        (read(1, 255, 0), Status::SUCCESS),
        (read(1, 256, 0), Status::LBA_OUT_OF_RANGE.with_dnr()),
        (read(1, 255, 1), Status::LBA_OUT_OF_RANGE.with_dnr()),
        (read(1, 0, 2), Status::INVALID_FIELD.with_dnr()),
        (read(0, 0, 0), Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
        (read(2, 0, 0), Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
        (Command::read(1, 0, 0).with_prps(iova + 2, 0), Status::PRP_OFFSET_INVALID.with_dnr()),
        (Command::read(1, 0, 1).with_prps(iova, iova + 8), Status::PRP_OFFSET_INVALID.with_dnr()),
        (Command::read(1, 0, 0).with_prps(0x30_0000_0000, 0), Status::DATA_TRANSFER_ERROR),
        (Command { opcode: 0x0c, ..read(1, 0, 0) }, Status::INVALID_OPCODE.with_dnr()),
        (read(1, 0, 0).with_sgl(Descriptor::data_block(iova, 4096)), Status::INVALID_FIELD.with_dnr()),
    ];
    for (command, status) in cases {
        assert_eq!(host.try_io(command), status, "{command:?}");
    }
    assert_eq!(host.emulator.counters().errors, cases.len() as u64 - 1);
}

#[test]
fn sgls_carry_data_of_any_shape() {
    let mut host = Host::with_queue("size=1M,block=512,media=ram,sgl=on");
    let (mut memory, iova) = host.buffer(4096, 0);
    let data: Vec<u8> = (0..1024u32).map(|i| (i / 3) as u8).collect();
    memory.copy_from_slice(1, &data[..700]);
    memory.copy_from_slice(2001, &data[700..]);
    let list = Words::new(&host.space, 4096);
    let segment = |at: u64, descriptors: &[Descriptor]| {
        for (i, descriptor) in descriptors.iter().enumerate() {
            let words: [u64; 2] = (*descriptor).into();
            list.store((at / 8) as usize + 2 * i, &words);
        }
    };
    segment(0, &[Descriptor::data_block(iova + 1, 700), Descriptor::last_segment(list.iova() + 64, 16)]);
    segment(64, &[Descriptor::data_block(iova + 2001, 324)]);
    let write = Command::write(1, 5, 1).with_sgl(Descriptor::segment(list.iova(), 32));
    assert_eq!(host.try_io(write), Status::SUCCESS);
    // Read the second block only, by dropping the first.
    segment(128, &[Descriptor::bit_bucket(512), Descriptor::data_block(iova, 512)]);
    let read = Command::read(1, 5, 1).with_sgl(Descriptor::last_segment(list.iova() + 128, 32));
    assert_eq!(host.try_io(read), Status::SUCCESS);
    assert_eq!(memory.to_vec()[..512], data[512..]);
}

#[test]
fn counters_count() {
    let mut host = Host::with_queue("block=512");
    let (_memory, iova) = host.buffer(4096, 0);
    let before = host.emulator.counters();
    for _ in 0..3 {
        host.push(1, Command::read(1, 0, 7).with_prps(iova, 0));
    }
    host.push(1, Command::write(1, 0, 1).with_prps(iova, 0));
    host.push(1, Command::flush(0));
    host.ring(1);
    assert_eq!(host.reap_all(1).len(), 5);
    let after = host.emulator.counters();
    assert_eq!((after.reads, after.blocks_read), (3, 24));
    assert_eq!((after.writes, after.blocks_written), (1, 2));
    assert_eq!((after.io_commands, after.errors), (5, 1));
    assert_eq!(after.sq_doorbells - before.sq_doorbells, 1);
    assert_eq!(after.completions - before.completions, 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Transfers through lists that lie anywhere, chained or not, end up where a plain reading of
    /// the list says.
    #[test]
    fn large_transfers_follow_their_lists(
        order in Just((0..40u64).collect::<Vec<_>>()).prop_shuffle(),
        offset in 0..8u64,
        blocks in 1..280u16,
        room in 1..40u64,
    ) {
        let mut host = Host::with_queue("size=1M,block=512,media=ram,mdts=0");
        let (mut memory, iova) = host.buffer(40 * 4096, 0);
        let lists = Words::new(&host.space, 2 * 4096);
        let len = usize::from(blocks) * 512;
        let start = 512 * offset;
        let data: Vec<u8> = (0..len).map(|i| (i * 31 / 512 + i) as u8).collect();
        // Data go to the pages in a shuffled order, the first from an offset on.
        let first = (4096 - start as usize).min(len);
        let mut places = vec![(order[0] * 4096 + start, 0..first)];
        let mut at = first;
        while at < len {
            let end = (at + 4096).min(len);
            places.push((order[places.len()] * 4096, at..end));
            at = end;
        }
        for (place, part) in &places {
            memory.copy_from_slice(*place as usize, &data[part.clone()]);
        }
        let pages: Vec<u64> = places.iter().map(|(place, _)| iova + place).collect();
        let mut word = 512 - room as usize;
        let list = lists.iova() + 8 * word as u64;
        let rest = &pages[1..];
        for (i, page) in rest.iter().enumerate() {
            if word == 511 && i + 1 < rest.len() {
                lists.store(511, &[lists.iova() + 4096]);
                word = 512;
            }
            lists.store(word, &[*page]);
            word += 1;
        }
        let prp2 = if rest.len() == 1 { rest[0] } else { list };
        let write = Command::write(1, 0, blocks - 1).with_prps(pages[0], prp2);
        prop_assert_eq!(host.try_io(write), Status::SUCCESS);
        memory.fill(0xee);
        let read = Command { opcode: io_opcode::READ, ..write };
        prop_assert_eq!(host.try_io(read), Status::SUCCESS);
        let mut expected = vec![0xee; 40 * 4096];
        for (place, part) in &places {
            expected[*place as usize..][..part.len()].copy_from_slice(&data[part.clone()]);
        }
        prop_assert_eq!(memory.to_vec(), expected);
    }
}

/// Whoever wants to read a register, or end a mapping, waits for a step to end.
#[test]
fn a_step_waits_for_a_disk_once_and_every_queue_has_its_turn() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = format!("size=1M,queues=3,vwc=off,media=file:{}", dir.path().join("disk").display());
    let mut host = Host::new(&config);
    let (_buffer, iova) = host.buffer(4096, 1);
    (1..=3).for_each(|qid| host.create_pair(qid, 16));
    for qid in 1..=3 {
        for lba in 0..8 {
            host.push(qid, Command::write(1, lba, 0).with_prps(iova, 0));
        }
        host.ring(qid);
    }
    for done in 1..=24 {
        assert_eq!((host.emulator.step(), host.emulator.counters().writes), (1, done));
        if done % 3 == 0 {
            assert_eq!([1, 2, 3].map(|qid| host.reap(qid).is_some()), [true; 3], "{done}");
        }
    }
}
