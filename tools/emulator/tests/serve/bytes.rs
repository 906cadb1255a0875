//! Messages byte by byte.

use std::io::Write;

use kiovec::pci::vfio_user::message::{
    DeviceInfo, PCI_REGIONS, REGION_BAR0, REGION_CONFIG, RegionAccess, RegionInfo, Version, command,
};
use kiovec::pci::vfio_user::{Header, SparseArea};
use kiovec::spec::registers;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromBytes, IntoBytes};

use crate::host::memory;
use crate::peer::{Peer, Rig, map_of, unmap_of};

const EINVAL: u32 = 22;
const ENOTSUP: u32 = 95;

fn region_info(argsz: u32, index: u32) -> RegionInfo {
    RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 }
}

/// VERSION and a read of VS, as they are sent.
fn conversation(peer: &mut Peer) -> Vec<Vec<u8>> {
    let json = b"{\"capabilities\":{\"max_msg_fds\":8}}\0";
    let version = [Version::CURRENT.as_bytes(), json].concat();
    let read = RegionAccess { offset: registers::VS, region: REGION_BAR0, count: 4 };
    vec![peer.message(command::VERSION, &version), peer.message(command::REGION_READ, read.as_bytes())]
}

fn expect_vs(peer: &Peer) {
    assert_eq!(peer.receive().unwrap().payload[16..], 0x0002_0000u32.to_le_bytes());
}

#[test]
fn a_message_may_come_in_two_parts_cut_anywhere() {
    let rig = Rig::new("size=1M");
    let mut peer = Peer::new(rig.stream());
    let [version, read] = &conversation(&mut peer)[..] else { unreachable!() };
    let (head, tail) = version.split_at(9);
    peer.stream.write_all(head).unwrap();
    peer.stream.write_all(tail).unwrap();
    peer.receive().unwrap();
    for at in 0..=read.len() {
        let (head, tail) = read.split_at(at);
        peer.stream.write_all(head).unwrap();
        // That it has arrived, and is alone, is not known; often it is.
        std::thread::yield_now();
        peer.stream.write_all(tail).unwrap();
        expect_vs(&peer);
    }
    for byte in read.iter().copied() {
        peer.stream.write_all(&[byte]).unwrap();
        std::thread::yield_now();
    }
    expect_vs(&peer);
}

#[test]
fn messages_may_come_glued_together() {
    let rig = Rig::new("size=1M");
    let mut peer = Peer::new(rig.stream());
    let messages = conversation(&mut peer);
    let read = messages[1].clone();
    peer.stream.write_all(&[messages.concat(), read.repeat(20)].concat()).unwrap();
    // Replies are messages of their own, but a stream glues them: they are taken apart by their sizes.
    let mut bytes = Vec::new();
    let mut replies = 0;
    while replies < 22 {
        let mut more = [0; 4096];
        let got = std::io::Read::read(&mut peer.stream, &mut more).unwrap();
        assert!(got > 0);
        bytes.extend(&more[..got]);
        while let Ok((header, _)) = Header::read_from_prefix(&bytes)
            && bytes.len() >= header.size as usize
        {
            assert!(header.is_reply() && header.failure().is_none());
            bytes.drain(..header.size as usize);
            replies += 1;
        }
    }
    assert!(bytes.is_empty());
}

#[test]
fn a_connection_may_end_anywhere() {
    let rig = Rig::new("size=1M");
    let messages = conversation(&mut Peer::new(rig.stream()));
    rig.end();
    let (version, all) = (messages[0].len(), messages.concat());
    for len in 0..all.len() {
        let mut stream = rig.stream();
        stream.write_all(&all[..len]).unwrap();
        drop(stream);
        let end = rig.end();
        let within = format!("bytes into a message of {}", if len < 16 { 16 } else { version });
        match len {
            0 => assert_eq!(end, "it has closed the connection"),
            len if len < version => assert!(end.ends_with(&within), "{len}: {end}"),
            // Nobody takes the reply to the version; whether that is noticed first is open.
            _ => assert!(end.contains("closed the connection"), "{len}: {end}"),
        }
    }
    rig.client();
}

#[test]
fn a_client_that_does_not_go_on_is_sent_away() {
    let [silent, slow, deaf] = [(); 3].map(|()| Rig::new("size=1M"));
    // Nothing comes at all: others wait for their turn.
    let _silent = silent.stream();
    // The rest of a message that has begun does not come.
    let mut peer = slow.client();
    let message = peer.message(command::DEVICE_GET_INFO, &[0; 16]);
    peer.stream.write_all(&message[..20]).unwrap();
    // Nobody takes the replies: at some time they do not fit any more, and then the requests do not.
    let mut reader = deaf.client();
    let read = RegionAccess { offset: 0, region: REGION_BAR0, count: 0x4000 };
    let reads = reader.message(command::REGION_READ, read.as_bytes()).repeat(100);
    while reader.stream.write_all(&reads).is_ok() {}
    for rig in [&silent, &slow, &deaf] {
        assert_eq!(rig.end(), "disconnected: the other end took too long");
        rig.client();
    }
    assert!(peer.receive().is_none());
}

#[test]
fn sizes_that_cannot_be_end_the_connection() {
    let rig = Rig::new("size=1M");
    for size in [0, 1, 15, 16 + (1 << 20) + 16 + 1, i32::MAX as u32, u32::MAX] {
        let mut peer = rig.client();
        let mut message = peer.message(command::REGION_READ, &[0; 16]);
        message[4..8].copy_from_slice(&size.to_ne_bytes());
        peer.stream.write_all(&message).unwrap();
        assert!(peer.receive().is_none(), "{size}");
        assert!(rig.end().contains("bytes; one has 16 to"));
    }
}

#[test]
fn replies_and_other_types_end_the_connection() {
    let rig = Rig::new("size=1M");
    for flags in [1, 2, 15, 0x21] {
        let mut peer = rig.client();
        let mut message = peer.message(command::DEVICE_GET_INFO, &[0; 16]);
        message[8] = flags;
        peer.stream.write_all(&message).unwrap();
        assert!(peer.receive().is_none());
        assert_eq!(rig.end(), "disconnected: it has sent what is no command");
    }
}

#[test]
fn the_first_message_is_a_version() {
    let rig = Rig::new("size=1M");
    let mut peer = Peer::new(rig.stream());
    let info = DeviceInfo { argsz: 16, flags: 0, num_regions: 0, num_irqs: 0 };
    assert_eq!(peer.try_ask(command::DEVICE_GET_INFO, &info).unwrap_err(), EINVAL);
    assert!(peer.receive().is_none());
    assert!(rig.end().contains("first message is not VERSION"));
    let mut peer = rig.client();
    assert_eq!(peer.try_ask(command::VERSION, &Version::CURRENT).unwrap_err(), EINVAL);
    peer.try_ask(command::DEVICE_GET_INFO, &info).unwrap();
}

#[test]
fn versions_are_agreed_on() {
    let rig = Rig::new("size=1M");
    for (minor, agreed) in [(0, 0), (1, 1), (2, 1), (u16::MAX, 1)] {
        let mut peer = Peer::new(rig.stream());
        let reply = peer.try_ask(command::VERSION, &Version { major: 0, minor }).unwrap();
        // Without JSON, as without JSON it was asked.
        assert_eq!(reply.payload, Version { major: 0, minor: agreed }.as_bytes());
    }
    for payload in [
        &[1, 0, 0, 0][..],
        &[0xff; 4],
        &[],
        &[0; 3],
        b"\0\0\x01\0{",
        b"\0\0\x01\0{\0",
        b"\0\0\x01\0{\"capabilities\":3}\0",
    ] {
        let mut peer = Peer::new(rig.stream());
        assert_eq!(peer.exchange(command::VERSION, payload, &[]).unwrap_err(), EINVAL);
        assert!(peer.receive().is_none());
    }
    let capabilities = rig.client().stream;
    drop(capabilities);
    let capabilities = Peer::new(rig.stream()).version();
    assert_eq!((capabilities.max_msg_fds, capabilities.pgsizes), (Some(16), Some(4096)));
    assert_eq!(capabilities.write_multiple, None);
}

#[test]
fn the_device_is_a_pci_function() {
    let rig = Rig::new("size=1M,queues=64");
    let mut peer = rig.client();
    let info = DeviceInfo { argsz: 16, flags: 0, num_regions: 0, num_irqs: 0 };
    let info: DeviceInfo = peer.try_ask(command::DEVICE_GET_INFO, &info).unwrap().parse();
    assert_eq!((info.flags, info.num_regions, info.num_irqs), (3, 9, 5));
    let sizes = [0x4000, 0, 0, 0, 0x2000, 0, 0, 4096, 0];
    for (index, size) in (0..PCI_REGIONS).zip(sizes) {
        let reply = peer.try_ask(command::DEVICE_GET_REGION_INFO, &region_info(4096, index)).unwrap();
        let info: RegionInfo = reply.parse();
        assert_eq!((info.index, info.size, info.flags & 3), (index, size, if size > 0 { 3 } else { 0 }));
        assert_eq!((reply.fds.len(), info.argsz as usize), (usize::from(index == 0), reply.payload.len()));
        let areas = SparseArea::list(&reply.payload).unwrap();
        let doorbells = vec![SparseArea { offset: 0x1000, size: 0x3000 }];
        assert_eq!(areas, (index == 0).then_some(doorbells));
    }
    // No room for capabilities: what they need, and no file.
    let reply = peer.try_ask(command::DEVICE_GET_REGION_INFO, &region_info(32, REGION_BAR0)).unwrap();
    let info: RegionInfo = reply.parse();
    assert_eq!((reply.payload.len(), reply.fds.len(), info.argsz, info.cap_offset), (32, 0, 64, 32));
    for (argsz, index) in [(31, 0), (0, 0), (4096, 9), (4096, u32::MAX)] {
        let refused = peer.try_ask(command::DEVICE_GET_REGION_INFO, &region_info(argsz, index));
        assert_eq!(refused.unwrap_err(), EINVAL);
    }
    let io_fds = [16u32, 0, 0, 0];
    let reply = peer.try_ask(command::DEVICE_GET_REGION_IO_FDS, &io_fds).unwrap();
    assert_eq!((reply.payload.len(), reply.payload[12], reply.fds.len()), (16, 0, 0));
    assert_eq!(peer.try_ask(command::DEVICE_GET_REGION_IO_FDS, &[16u32, 0, 9, 0]).unwrap_err(), EINVAL);
}

#[test]
fn accesses_of_regions_are_checked() {
    let rig = Rig::new("size=1M");
    let mut peer = rig.client();
    for (region, offset, count) in [
        (0, 0x4000, 4),
        (0, 0x3ffe, 4),
        (0, u64::MAX, 4),
        (0, u64::MAX - 3, 4),
        (0, 0, 0),
        (0, 0, u32::MAX),
        (0, 0, 0x4001),
        (7, 4096, 1),
        (7, 4095, 2),
        (7, 0, 4097),
        (4, 0x2000, 4),
        (1, 0, 1),
        (8, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 4),
    ] {
        assert_eq!(peer.read(region, offset, count), Err(EINVAL), "{region} {offset} {count}");
        if count < 5000 {
            assert_eq!(peer.write(region, offset, &vec![0; count as usize]), Err(EINVAL));
        }
    }
    // Registers are written in dwords, and read in any way.
    for (offset, data) in [(1, &[0; 4][..]), (0x14, &[0; 1]), (0x14, &[0; 6])] {
        assert_eq!(peer.write(REGION_BAR0, offset, data), Err(EINVAL));
    }
    let whole = peer.read(REGION_BAR0, 0, 64).unwrap();
    for offset in 0..60u64 {
        for count in 1..=4u32 {
            let at = offset as usize;
            assert_eq!(peer.read(REGION_BAR0, offset, count).unwrap(), whole[at..at + count as usize]);
        }
    }
    assert_eq!(peer.read(REGION_BAR0, 0, 0x4000).unwrap().len(), 0x4000);
    // A count that the data do not have.
    let access = RegionAccess { offset: 4, region: REGION_CONFIG, count: 3 };
    let refused = peer.exchange(command::REGION_WRITE, &[access.as_bytes(), &[0; 2]].concat(), &[]);
    assert_eq!(refused.unwrap_err(), EINVAL);
    // Configuration space, in any bytes.
    assert_eq!(peer.read(REGION_CONFIG, 0x09, 3).unwrap(), [0x02, 0x08, 0x01]);
    peer.write(REGION_CONFIG, 0x05, &[0x05]).unwrap();
    assert_eq!(peer.read(REGION_CONFIG, 0x04, 2).unwrap(), [0x02, 0x05]);
}

#[test]
fn commands_that_are_not_known_are_refused() {
    let rig = Rig::new("size=1M");
    let mut peer = rig.client();
    for command in [0, 11, 12, 14, 15, 16, 17, 18, 19, 1000, u16::MAX] {
        for payload in [&[][..], &[0; 64]] {
            assert_eq!(peer.exchange(command, payload, &[]).unwrap_err(), ENOTSUP, "{command}");
        }
    }
    for command in (2..=10).filter(|command| *command != command::DEVICE_RESET) {
        assert_eq!(peer.exchange(command, &[], &[]).unwrap_err(), EINVAL, "{command}");
        assert_eq!(peer.exchange(command, &[0; 3], &[]).unwrap_err(), EINVAL, "{command}");
    }
}

#[test]
fn writes_may_want_no_reply() {
    let rig = Rig::new("size=1M");
    let mut peer = rig.client();
    let access = RegionAccess { offset: registers::AQA, region: REGION_BAR0, count: 4 };
    let mut write = peer.message(command::REGION_WRITE, &[access.as_bytes(), &[7, 0, 9, 0]].concat());
    write[8] = 0x10;
    peer.stream.write_all(&write).unwrap();
    let mut wrong = peer.message(command::REGION_WRITE, &[0xff; 16]);
    wrong[8] = 0x10;
    peer.stream.write_all(&wrong).unwrap();
    assert_eq!(peer.read(REGION_BAR0, registers::AQA, 4).unwrap(), [7, 0, 9, 0]);
}

#[test]
fn several_writes_in_one_message_where_that_is_agreed_on() {
    let rig = Rig::new("size=1M");
    let mut peer = Peer::new(rig.stream());
    let payload =
        [&[0, 0, 1, 0], &b"{\"capabilities\":{\"write_multiple\":true,\"other\":[]}}\0"[..]].concat();
    let reply = peer.ask(command::VERSION, &payload);
    assert!(String::from_utf8_lossy(&reply.payload).contains("\"write_multiple\":true"));
    let one = |offset: u64, count: u32, data: u64| {
        let access = RegionAccess { offset, region: REGION_BAR0, count };
        [access.as_bytes(), data.as_bytes()].concat()
    };
    let writes =
        [2u64.as_bytes(), &one(registers::AQA, 4, 0x0003_0004), &one(registers::ASQ, 8, 0x5_0000_7000)];
    let mut message = peer.message(command::REGION_WRITE_MULTI, &writes.concat());
    message[8] = 0x10;
    peer.stream.write_all(&message).unwrap();
    assert_eq!(peer.read(REGION_BAR0, registers::AQA, 12).unwrap(), [4, 0, 3, 0, 0, 0x70, 0, 0, 5, 0, 0, 0]);
    for bad in [
        [&[0xff; 8][..], &one(registers::AQA, 4, 0)].concat(),
        [2u64.as_bytes(), &one(registers::AQA, 4, 0)].concat(),
        [1u64.as_bytes(), &one(registers::AQA, 9, 0)].concat(),
        [1u64.as_bytes(), &one(u64::MAX, 4, 0)].concat(),
    ] {
        assert_eq!(peer.exchange(command::REGION_WRITE_MULTI, &bad, &[]).unwrap_err(), EINVAL);
    }
}

#[test]
fn files_that_nobody_asked_for_are_let_go() {
    let rig = Rig::new("size=1M");
    let mut peer = rig.client();
    let file = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let file = std::os::fd::AsFd::as_fd(&file);
    let info = DeviceInfo { argsz: 16, flags: 0, num_regions: 0, num_irqs: 0 };
    peer.exchange(command::DEVICE_GET_INFO, info.as_bytes(), &[file; 16]).unwrap();
    let map = map_of(0, 0x1000);
    assert_eq!(peer.exchange(command::DMA_MAP, map.as_bytes(), &[file; 2]).unwrap_err(), EINVAL);
    let message = peer.message(command::DEVICE_GET_INFO, info.as_bytes());
    peer.send(&message, &[file; 17]);
    assert!(peer.receive().is_none());
    assert!(rig.end().contains("more than 16 files"));
}

/// What SPDK's client sends, byte for byte: identifiers are 0, VERSION has no JSON, GET_REGION_INFO is
/// padded to what is to fit into its reply, whatever it declares, and DMA_UNMAP comes with a file.
#[test]
fn spdk_s_client_is_understood() {
    let rig = Rig::new("size=1M");
    let peer = Peer::new(rig.stream());
    let say = |command: u8, payload: &[u8], files: &[std::os::fd::BorrowedFd<'_>]| {
        let size = (16 + payload.len() as u32).to_le_bytes();
        let header = [&[0, 0, command, 0][..], &size, &[0; 8]].concat();
        peer.send(&[&header, payload].concat(), files);
        let reply = peer.receive().unwrap();
        assert_eq!((reply.header.id, reply.header.failure()), (0, None));
        reply
    };
    assert_eq!(say(1, &[0, 0, 1, 0], &[]).payload, [0, 0, 1, 0]);
    let info = say(4, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(info.payload[8], 9);
    for (index, declared) in (0..9u8).flat_map(|index| [(index, 4064u32), (index, 32)]) {
        // 4096 bytes of buffer, less the structure.
        let mut payload = vec![0; 4064];
        payload[..4].copy_from_slice(&declared.to_le_bytes());
        payload[8] = index;
        let reply = say(5, &payload, &[]);
        let has_area = index == 0 && declared == 4064;
        assert!(reply.payload.len() <= declared as usize && reply.fds.len() == usize::from(has_area));
    }
    let file = memory(0x20_0000);
    let file = [std::os::fd::AsFd::as_fd(&file)];
    let iova = 0x2000_0020_0000;
    assert!(say(2, map_of(iova, 0x20_0000).as_bytes(), &file).payload.is_empty());
    let command = [&4u64.to_le_bytes()[..], &7u32.to_le_bytes(), &2u32.to_le_bytes()].concat();
    assert_eq!(say(9, &command, &[]).payload[16..], [2, 0]);
    say(10, &[&command[..], &[6, 4]].concat(), &[]);
    assert_eq!(say(9, &command, &[]).payload[16..], [6, 4]);
    assert_eq!(say(3, unmap_of(iova, 0x20_0000).as_bytes(), &file).payload.len(), 24);
}
