//! Memory that clients share, take back, and take away.

use kiovec::pci::vfio_user::message::{DmaMap, DmaUnmap};
use kiovec::spec::{Command, Status};
use rustix::fs::ftruncate;

use crate::host::{DATA, Host, IOVA, LEN, memory};
use crate::peer::{Rig, map_of, unmap_of};

const EACCES: u32 = 13;
const EEXIST: u32 = 17;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

#[test]
fn mappings_are_checked() {
    let rig = Rig::new("size=16M");
    let mut peer = rig.client();
    let file = memory(0x4000);
    let good = map_of(0x10000, 0x4000);
    for map in [
        DmaMap { flags: 0, ..good },
        DmaMap { flags: 4 | 3, ..good },
        DmaMap { size: 0, ..good },
        DmaMap { size: 0x3800, ..good },
        DmaMap { size: 0x5000, ..good },
        DmaMap { size: !4095, ..good },
        DmaMap { offset: 0x1000, ..good },
        DmaMap { offset: 0x800, size: 0x1000, ..good },
        DmaMap { offset: !4095, size: 0x1000, ..good },
        DmaMap { address: 0x10800, ..good },
        DmaMap { address: !4095, ..good },
        DmaMap { argsz: 31, ..good },
    ] {
        assert_eq!(peer.map(&map, Some(&file)), Err(EINVAL), "{map:?}");
    }
    peer.map(&good, Some(&file)).unwrap();
    for (address, size) in [(0x10000, 0x4000), (0xf000, 0x2000), (0x13000, 0x1000), (0x11000, 0x1000)] {
        assert_eq!(peer.map(&map_of(address, size), Some(&file)), Err(EEXIST));
        assert_eq!(peer.map(&map_of(address, size), None), Err(EEXIST));
    }
    // What is no memory is not mapped: neither a pipe nor a file on a disk.
    let pipe = rustix::pipe::pipe().unwrap().0;
    assert!(peer.map(&map_of(0x20000, 0x1000), Some(&pipe)).is_err());
    let disk = std::fs::File::open(std::env::current_exe().unwrap()).unwrap().into();
    assert_eq!(peer.map(&map_of(0x20000, 0x1000), Some(&disk)), Err(EINVAL));
    // A file that is open for reading can be mapped for reading only.
    let read_only = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = std::fs::File::open(read_only).unwrap().into();
    assert_eq!(peer.map(&map_of(0x20000, 0x1000), Some(&read_only)), Err(EACCES));
    peer.map(&DmaMap { flags: 1, ..map_of(0x20000, 0x1000) }, Some(&read_only)).unwrap();
}

#[test]
fn unmapping_names_whole_mappings() {
    let rig = Rig::new("size=16M");
    let mut peer = rig.client();
    let file = memory(0x4000);
    for address in [0x10000, 0x14000, 0x20000] {
        peer.map(&map_of(address, 0x4000), Some(&file)).unwrap();
    }
    peer.map(&map_of(0x18000, 0x1000), None).unwrap();
    for (address, size) in [(0x10000, 0x3000), (0x11000, 0x3000), (0xf000, 0x2000), (0x10000, 0x5000)] {
        assert_eq!(peer.unmap(&unmap_of(address, size)), Err(EINVAL));
    }
    for (address, size) in [(0x10000, 0), (0, 0), (0x30800, 0x1000), (0x30000, 0x800), (!4095, 0x2000)] {
        assert_eq!(peer.unmap(&unmap_of(address, size)), Err(EINVAL));
    }
    assert_eq!(peer.unmap(&DmaUnmap { flags: 1, ..unmap_of(0x10000, 0x4000) }), Err(ENOTSUP));
    assert_eq!(peer.unmap(&DmaUnmap { flags: 2, ..unmap_of(0x10000, 0x4000) }), Err(EINVAL));
    assert_eq!(peer.unmap(&unmap_of(0x10000, 0x4000)), Ok(0x4000));
    assert_eq!(peer.unmap(&unmap_of(0x10000, 0x4000)), Ok(0));
    // Several at once, with one that has no file.
    assert_eq!(peer.unmap(&unmap_of(0x10000, 0x10000)), Ok(0x5000));
    assert_eq!(peer.unmap(&DmaUnmap { flags: 2, ..unmap_of(0, 0) }), Ok(0x4000));
    assert_eq!(peer.unmap(&DmaUnmap { flags: 2, ..unmap_of(0, 0) }), Ok(0));
    peer.map(&map_of(0x10000, 0x4000), Some(&file)).unwrap();
}

/// What QEMU does behind a virtual IOMMU: the guest invalidates more than it had mapped, and the whole
/// address space is emptied in halves.
#[test]
fn unmapping_where_nothing_is_mapped_is_done_at_once() {
    let rig = Rig::new("size=16M");
    let mut peer = rig.client();
    let half = 1 << 63;
    for (address, size) in [(0x30000, 0x1000), (0, half), (half, half), (!4095, 4096)] {
        assert_eq!(peer.unmap(&unmap_of(address, size)), Ok(0), "{address:#x} {size:#x}");
    }
    let file = memory(0x4000);
    peer.map(&map_of(0x10000, 0x4000), Some(&file)).unwrap();
    peer.map(&map_of(!0xffff, 0x4000), Some(&file)).unwrap();
    assert_eq!((peer.unmap(&unmap_of(0, half)), peer.unmap(&unmap_of(half, half))), (Ok(0x4000), Ok(0x4000)));
    peer.map(&map_of(!0xffff, 0x4000), Some(&file)).unwrap();
}

#[test]
fn there_is_an_end_to_mappings() {
    let rig = Rig::new("size=16M");
    let mut peer = rig.client();
    let file = memory(0x1000);
    let mut count = 0;
    let refused = loop {
        let file = (count % 100 != 0).then_some(&file);
        match peer.map(&map_of(0x1000 * (count + 1), 0x1000), file) {
            Ok(()) => count += 1,
            Err(errno) => break errno,
        }
        assert!(count < 10_000);
    };
    assert_eq!((refused, count), (ENOSPC, 4096));
    assert_eq!(peer.unmap(&unmap_of(0x1000, 0x1000)), Ok(0x1000));
    peer.map(&map_of(0x1000, 0x1000), Some(&file)).unwrap();
}

#[test]
fn memory_without_a_file_is_not_reached() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    host.peer.map(&map_of(0x10000, 0x1000), None).unwrap();
    let read = Command::read(1, 0, 0).with_prps(0x10000, 0);
    assert_eq!(host.run(1, read).status(), Status::DATA_TRANSFER_ERROR);
    host.write_block(0, 1);
}

#[test]
fn what_is_mapped_for_reading_is_not_written() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    let file = memory(0x1000);
    host.peer.map(&DmaMap { flags: 1, ..map_of(0x10000, 0x1000) }, Some(&file)).unwrap();
    let write = Command::write(1, 0, 0).with_prps(0x10000, 0);
    assert_eq!(host.run(1, write).status(), Status::SUCCESS);
    let read = Command::read(1, 0, 0).with_prps(0x10000, 0);
    assert_eq!(host.run(1, read).status(), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn after_an_unmapping_nothing_is_written_any_more() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    host.write_block(0, 0x77);
    let file = memory(0x1000);
    for _ in 0..50 {
        host.peer.map(&map_of(0x10000, 0x1000), Some(&file)).unwrap();
        for _ in 0..10 {
            host.submit(1, Command::read(1, 0, 0).with_prps(0x10000, 0));
        }
        host.peer.unmap(&unmap_of(0x10000, 0x1000)).unwrap();
        // Acknowledged: what is written now stays.
        rustix::io::pwrite(&file, &[0x11; 4096], 0).unwrap();
        for _ in 0..10 {
            let status = host.wait(|host| host.reap(1)).status();
            assert!(matches!(status, Status::SUCCESS | Status::DATA_TRANSFER_ERROR), "{status:?}");
        }
        let mut bytes = [0; 4096];
        rustix::io::pread(&file, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [0x11; 4096]);
    }
}

#[test]
fn a_client_that_truncates_its_data_is_sent_away() {
    let rig = Rig::new("size=16M,media=ram");
    Host::with_queue(&rig).write_block(9, 0x99);
    assert_eq!(rig.end(), "it has closed the connection");
    let mut host = Host::with_queue(&rig);
    let file = memory(0x4000);
    host.peer.map(&map_of(0x10000, 0x4000), Some(&file)).unwrap();
    ftruncate(&file, 0x1000).unwrap();
    host.submit(1, Command::read(1, 9, 0).with_prps(0x12000, 0));
    assert_eq!(rig.end(), "disconnected: it has truncated a file that it shared for DMA");
    let status = host.reap(1).map(|entry| entry.status());
    assert!(status.is_none_or(|status| status == Status::DATA_TRANSFER_ERROR), "{status:?}");
    assert_eq!(Host::with_queue(&rig).read_block(9), [0x99; 4096]);
}

#[test]
fn a_client_that_truncates_its_rings_is_sent_away() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    host.write_block(9, 0x99);
    for _ in 0..8 {
        host.submit(1, Command::write(1, 9, 0).with_prps(IOVA + DATA, 0));
    }
    // The last doorbell, with nothing behind it.
    ftruncate(&host.memory, 0).unwrap();
    let doorbell = 0x1000 + 2 * 64;
    rustix::io::pwrite(&host.doorbells, &15u32.to_le_bytes(), doorbell).unwrap();
    assert_eq!(rig.end(), "disconnected: it has truncated a file that it shared for DMA");
    let mut next = Host::with_queue(&rig);
    assert_eq!(next.read_block(9), [0x99; 4096]);
    assert!(next.get(0, LEN as usize).len() == LEN as usize);
}

/// Files may be as large as their owner says, with nothing in them; addresses are what they take.
#[test]
fn a_client_cannot_take_all_addresses() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    let file = memory(1 << 46);
    let mut address = 1 << 48;
    for size in (12..=46).rev().map(|shift| 1 << shift) {
        let refused = loop {
            match host.peer.map(&map_of(address, size), Some(&file)) {
                Ok(()) => address += size,
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, ENOSPC, "{size:#x}");
    }
    // What the server needs for itself is there: memory, and a thread for the next client.
    host.write_block(1000, 0x10);
    drop(host);
    assert_eq!(Host::with_queue(&rig).read_block(1000), [0x10; 4096]);
}

/// The doorbells' file is memory like any other: completions that are posted there ring, and what rings is
/// fetched as commands.
#[test]
fn queues_on_the_doorbells_harm_nobody_else() {
    let rig = Rig::new("size=16M,media=ram,queues=4");
    let mut host = Host::with_queue(&rig);
    host.write_block(9, 0x99);
    let doorbells = host.doorbells.try_clone().unwrap();
    host.peer.map(&map_of(0x10000, 0x2000), Some(&doorbells)).unwrap();
    let cq = Command::create_io_cq(2, 64, 0x11000);
    assert_eq!(host.run(0, cq).status(), Status::SUCCESS);
    assert_eq!(host.run(0, Command::create_io_sq(2, 64, 0x11000, 2)).status(), Status::SUCCESS);
    // Neither beyond the mapping, nor beyond all addresses.
    for iova in [0x11000 + 0x1000, u64::MAX - 0xfff, 0x10000 + 0x1f000] {
        assert_ne!(host.run(0, Command::create_io_cq(3, 64, iova)).status(), Status::SUCCESS, "{iova:#x}");
    }
    let mut value = 1u32;
    for round in 0..10_000u64 {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = 0x1000 + 64 * (4 + round % 4) + 4 * (round % 16);
        rustix::io::pwrite(&doorbells, &(value >> (value & 31)).to_le_bytes(), at).unwrap();
    }
    host.peer.unmap(&unmap_of(0x10000, 0x2000)).unwrap();
    drop(host);
    assert_eq!(rig.end(), "it has closed the connection");
    assert_eq!(Host::with_queue(&rig).read_block(9), [0x99; 4096]);
}
