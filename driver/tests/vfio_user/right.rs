//! What the client asks a server that does everything right.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kiovec::Error;
use kiovec::memory::DmaSpace;
use kiovec::memory::vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use kiovec::pci::vfio_user::{DoorbellPath, VfioUser};
use kiovec::pci::{Address, Function};
use rustix::fs::{SealFlags, fcntl_add_seals};

use super::peer::{Answer, LONG, Memory, Server, longs, region_info, reply, words};

fn pread(file: &impl AsFd, at: u64) -> u32 {
    let mut bytes = [0; 4];
    rustix::io::pread(file, &mut bytes, at).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn configuration_space_and_registers_are_read_and_written() {
    let server = Server::start(|peer| Memory::new().serve(peer));
    let function = server.open(LONG).unwrap();
    assert_eq!(function.name(), format!("vfio-user:{}", server.path().display()));
    let mut config = [0; 8];
    function.config_read(8, &mut config).unwrap();
    assert_eq!(config, [8, 9, 10, 11, 12, 13, 14, 15]);
    function.config_write(250, &[7; 6]).unwrap();
    assert_eq!(function.read32(0x10).unwrap(), 0x1312_1110);
    assert_eq!(function.read64(0x18).unwrap(), 0x1f1e_1d1c_1b1a_1918);
    function.write32(0x20, 0x0102_0304).unwrap();
    function.write64(0x28, 0x0102_0304_0506_0708).unwrap();
    for bad in [function.read32(0x12), function.read32(0x2000), function.read32(u64::MAX - 3)] {
        assert!(matches!(bad, Err(Error::InvalidInput(_))), "{bad:?}");
    }
    assert!(function.config_read(250, &mut [0; 7]).is_err());
    assert_eq!(function.irq_info(2).unwrap().count, 33);
    drop(function);
    let memory = server.end();
    assert_eq!(memory.config[250..], [7; 6]);
    assert_eq!(memory.config[4] & 6, 2, "memory space on, bus master off");
    assert_eq!(memory.bar0[0x20..0x24], [4, 3, 2, 1]);
    assert_eq!(memory.bar0[0x28..0x30], [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn a_directory_with_a_socket_is_a_name_too() {
    let server = Server::start(|peer| Memory::new().serve(peer));
    let function = VfioUser::open(server.path().parent().unwrap()).unwrap();
    assert_eq!(function.read32(0).unwrap(), 0x0302_0100);
    drop(function);
    server.end();
}

#[test]
fn doorbells_are_stores_to_the_servers_file() {
    let memory = Memory::new();
    let file = memory.doorbells.try_clone().unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    let server = Server::start(|peer| memory.serve(peer));
    let function = server.open(LONG).unwrap();
    assert_eq!(function.doorbell_path(), DoorbellPath::Mapped { sealed: true });
    let page = function.doorbells(0x1000).unwrap();
    assert!(page.is_mapped());
    page.doorbell(0xffc).unwrap().ring(77);
    page.doorbell(0).unwrap().ring(78);
    assert_eq!((pread(&file, 0x1ffc), pread(&file, 0x1000)), (77, 78));
    let error = function.doorbells(0x1004).unwrap_err();
    assert!(error.to_string().contains("do not fit BAR0"), "{error}");
    // A doorbell outlives its function: the mapping is its own.
    let doorbell = page.doorbell(4).unwrap();
    drop((function, page));
    assert!(server.end().posted.is_empty());
    doorbell.ring(79);
    assert_eq!(pread(&file, 0x1004), 79);
}

/// No flag, no file, or an area elsewhere: then doorbells are messages, in order with all others.
#[test]
fn doorbells_are_messages_where_nothing_can_be_mapped() {
    type Tamper = fn(&mut Answer);
    let tampers: [Tamper; 3] = [
        |answer| *answer = Answer { bytes: patch(answer, &region_info(3, 0, 0x2000, 0, &[])), files: vec![] },
        |answer| answer.files.clear(),
        |answer| answer.bytes = patch(answer, &region_info(7, 0, 0x2000, 0, &[(0, 0x1000)])),
    ];
    for tamper in tampers {
        let server = Server::start(move |mut peer| {
            let mut memory = Memory::new();
            while let Some(request) = peer.next() {
                let Some(mut answer) = memory.answer(&request) else { continue };
                if request.header.command == 5 && request.payload[8] == 0 {
                    tamper(&mut answer);
                }
                peer.send(&answer.bytes, &answer.files);
            }
            memory
        });
        let function = server.open(LONG).unwrap();
        assert_eq!(function.doorbell_path(), DoorbellPath::Messages);
        let page = function.doorbells(0x1000).unwrap();
        assert!(!page.is_mapped() && page.doorbell(0x1000).is_none());
        let (one, two) = (page.doorbell(0).unwrap(), page.doorbell(0xffc).unwrap());
        one.ring(5);
        two.ring(6);
        one.ring(7);
        assert_eq!(function.read32(0x1000).unwrap(), 7);
        assert!(function.doorbells(0x1004).is_err());
        drop((function, page, one, two));
        let posted = [(0x1000, vec![5, 0, 0, 0]), (0x1ffc, vec![6, 0, 0, 0]), (0x1000, vec![7, 0, 0, 0])];
        assert_eq!(server.end().posted, posted);
    }
}

fn patch(answer: &Answer, payload: &[u8]) -> Vec<u8> {
    let mut bytes = answer.bytes[..16].to_vec();
    bytes[4..8].copy_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
    [&bytes[..], payload].concat()
}

#[test]
fn memory_is_mapped_with_its_files_and_unmapped_again() {
    let server = Server::start(|peer| Memory::new().serve(peer));
    let space = DmaSpace::new().unwrap();
    let before = space.allocate(1 << 21).unwrap();
    let function = server.open(LONG).unwrap();
    let attachment = space.attach(function.domain()).unwrap();
    let after = space.allocate(5 << 20).unwrap();
    drop((before, after, attachment, function));
    let maps = server.end().maps;
    let (mapped, unmapped): (Vec<_>, Vec<_>) = maps.iter().partition(|(command, ..)| *command == 2);
    // Two regions, with their part of the PRP table each.
    assert_eq!((mapped.len(), unmapped.len()), (4, 4));
    let field = |payload: &[u8], at: usize| u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap());
    let mut ranges = Vec::new();
    for (_, payload, files) in mapped {
        assert_eq!((payload.len(), *files, &payload[..4]), (32, 1, &words(&[32])[..]));
        let (flags, iova, size) = (payload[4], field(payload, 16), field(payload, 24));
        assert_eq!(flags == 3, size >= 1 << 21, "tables are not written by devices");
        ranges.push(longs(&[iova, size]));
    }
    assert!(unmapped.iter().all(|(_, payload, files)| payload.len() == 24 && *files == 0));
    let mut ends: Vec<_> = unmapped.iter().map(|(_, payload, _)| payload[8..].to_vec()).collect();
    ranges.sort();
    ends.sort();
    assert_eq!(ranges, ends);
}

/// An application's memory, on the heap: no other process can have it.
#[test]
fn memory_without_a_file_is_refused() {
    #[derive(Clone, zerocopy::FromBytes, zerocopy::IntoBytes)]
    #[repr(C, align(4096))]
    struct Page([u8; 4096]);
    let server = Server::start(|peer| Memory::new().serve(peer));
    let space = DmaSpace::new().unwrap();
    let function = server.open(LONG).unwrap();
    let attachment = space.attach(function.domain()).unwrap();
    let error = space.register(vec![Page([0; 4096]); 2]).unwrap_err().to_string();
    assert!(error.contains("it has no file") && error.contains("register_guest"), "{error}");
    // And the space goes on.
    space.allocate(4096).unwrap();
    drop((attachment, function));
    server.end();
}

/// A guest's RAM goes with its own file, from where in the file it is.
#[test]
fn a_guests_memory_is_mapped_from_its_file() {
    let ram = File::from(super::peer::file(3 << 20));
    let inode = ram.metadata().unwrap().ino();
    let region = (GuestAddress(0), 1 << 20, Some(FileOffset::new(ram, 2 << 20)));
    let ram = GuestMemoryMmap::from_ranges_with_files([region]).unwrap();
    let server = Server::start(move |mut peer| {
        let mut memory = Memory::new();
        let mut seen = false;
        while let Some(request) = peer.next() {
            if request.header.command == 2 {
                let same = rustix::fs::fstat(&request.fds[0]).unwrap().st_ino == inode;
                seen |= same
                    && request.payload[8..16] == longs(&[2 << 20])
                    && request.payload[24..] == longs(&[1 << 20]);
            }
            let answer = memory.answer(&request).unwrap();
            peer.send(&answer.bytes, &answer.files);
        }
        seen
    });
    let space = DmaSpace::new().unwrap();
    let function = server.open(LONG).unwrap();
    let attachment = space.attach(function.domain()).unwrap();
    let guest = space.register_guest(Arc::new(ram)).unwrap();
    drop((guest, attachment, function));
    assert!(server.end(), "its file, and the offset in it");
}

#[test]
fn what_a_server_can_do_is_honoured() {
    for (json, says) in [
        ("\"max_dma_maps\":0", "the server takes 0 mappings"),
        ("\"max_dma_maps\":1", "the server takes 1 mappings, two for each region of memory; use less memory"),
        ("\"pgsizes\":2097152", "whole pages of 0x200000 bytes, and some memory of the driver's has 4 KiB"),
    ] {
        let server = Server::start(move |peer| with_capabilities(peer, json));
        let space = DmaSpace::new().unwrap();
        let _memory = space.allocate(4096).unwrap();
        let function = server.open(LONG).unwrap();
        let error = space.attach(function.domain()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        drop(function);
        server.end();
    }
    for (json, says) in [
        ("\"max_msg_fds\":0", "takes no files"),
        ("\"max_data_xfer_size\":7", "less than a register"),
        ("\"pgsizes\":0", "no pages"),
        ("\"twin_socket\":{\"supported\":true,\"fd_index\":0}", "a second socket"),
    ] {
        let server = Server::start(move |peer| with_capabilities(peer, json));
        let error = server.open(LONG).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        server.end();
    }
}

#[test]
fn transfers_are_cut_to_what_a_server_takes() {
    let server = Server::start(|peer| with_capabilities(peer, "\"max_data_xfer_size\":8"));
    let function = server.open(LONG).unwrap();
    let mut config = [0; 100];
    function.config_read(9, &mut config).unwrap();
    assert!(config.iter().zip(9..).all(|(got, wanted)| *got == wanted));
    function.config_write(128, &[1; 19]).unwrap();
    drop(function);
    let (memory, largest) = server.end();
    assert_eq!((memory.config[128..148].to_vec(), largest), ([vec![1; 19], vec![147]].concat(), 8));
}

/// Serves with other capabilities, and notes the largest transfer.
fn with_capabilities(mut peer: super::peer::Peer, json: &str) -> (Memory, u32) {
    let mut memory = Memory::new();
    let mut largest = 0;
    while let Some(request) = peer.next() {
        let mut answer = memory.answer(&request).unwrap();
        match request.header.command {
            1 => {
                let json = format!("{{\"capabilities\":{{{json}}}}}\0");
                answer.bytes = reply(&request, &[&[0, 0, 0, 0], json.as_bytes()].concat());
            }
            9 | 10 => {
                largest = largest.max(u32::from_ne_bytes(request.payload[12..16].try_into().unwrap()));
            }
            _ => {}
        }
        peer.send(&answer.bytes, &answer.files);
    }
    (memory, largest)
}

#[test]
fn a_reset_keeps_the_command_register() {
    let server = Server::start(|mut peer| {
        let mut memory = Memory::new();
        while let Some(request) = peer.next() {
            if request.header.command == 13 {
                memory.config[4..6].fill(0);
            }
            let answer = memory.answer(&request).unwrap();
            peer.send(&answer.bytes, &answer.files);
        }
        memory.resets
    });
    let function = server.open(LONG).unwrap();
    function.set_bus_master(true).unwrap();
    function.reset().unwrap();
    let mut command = [0; 2];
    function.config_read(4, &mut command).unwrap();
    assert_eq!(command[0] & 6, 6);
    drop(function);
    assert_eq!(server.end(), 1);
}

#[test]
fn error_replies_keep_their_errno() {
    for (errno, says) in [(22, "Invalid argument"), (0, "gave no reason"), (0xffff_ffff, "0xffffffff")] {
        let server = Server::start(move |mut peer| {
            let mut memory = Memory::new();
            while let Some(request) = peer.next() {
                let mut answer = memory.answer(&request).unwrap();
                let refused = request.header.command == 2
                    || request.header.command == 9 && request.payload[8] == 0 && request.payload[0] == 0x10;
                if refused {
                    answer.bytes =
                        super::peer::message(request.header.id, request.header.command, 0x21, errno, &[]);
                }
                peer.send(&answer.bytes, &answer.files);
            }
        });
        let function = server.open(LONG).unwrap();
        let error = function.read32(0x10).unwrap_err();
        assert!(
            error.to_string().contains("refused REGION_READ") && error.to_string().contains(says),
            "{error}"
        );
        if let Error::Os { source, .. } = &error {
            assert_eq!(source.raw_os_error(), (errno == 22).then_some(22));
        }
        // A refusal loses nothing.
        assert_eq!(function.read32(0x14).unwrap(), 0x1716_1514);
        let space = DmaSpace::new().unwrap();
        let _memory = space.allocate(4096).unwrap();
        let error = space.attach(function.domain()).unwrap_err();
        assert!(error.to_string().contains("refused DMA_MAP"), "{error}");
        drop(function);
        server.end();
    }
}

/// The longest and the shortest time that there is.
#[test]
fn any_time_is_a_time() {
    let server = Server::start(|peer| Memory::new().serve(peer));
    let function = server.open(std::time::Duration::MAX).unwrap();
    assert_eq!(function.read32(0).unwrap(), 0x0302_0100);
    drop(function);
    server.end();
    let server = Server::start(|peer| Memory::new().serve(peer));
    assert!(server.open(std::time::Duration::ZERO).is_err());
    // Whether it connected or not: nobody else does.
    drop(VfioUser::open(server.path()));
    server.end();
}

/// Several threads at once: each gets its own reply.
#[test]
fn threads_share_a_connection() {
    let server = Server::start(|peer| Memory::new().serve(peer));
    let function = Arc::new(server.open(LONG).unwrap());
    std::thread::scope(|scope| {
        for start in [0u64, 64, 128, 192] {
            let function = &function;
            scope.spawn(move || {
                for at in (start..start + 64).step_by(4).cycle().take(200) {
                    let wanted = u32::from_le_bytes(std::array::from_fn(|i| (at + i as u64) as u8));
                    assert_eq!(function.read32(at).unwrap(), wanted);
                    function.pause();
                }
            });
        }
    });
    drop(function);
    server.end();
}

#[test]
fn a_path_that_leads_nowhere_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let says = |path: &std::path::Path| VfioUser::open(path).unwrap_err().to_string();
    let missing = dir.path().join("missing");
    assert!(
        says(&missing).contains("there is no socket") && says(&missing).contains("start the server first")
    );
    assert!(says(dir.path()).contains("cntrl"), "{}", says(dir.path()));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(says(&file).contains("is no socket"), "{}", says(&file));
    let dead = dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(
        says(&dead).contains("nobody listens") && says(&dead).contains("start it again"),
        "{}",
        says(&dead)
    );
    assert!(says(&file.join("x")).contains("correct the path"), "{}", says(&file.join("x")));
    assert!(says(&dir.path().join("x".repeat(300))).contains("symbolic link"));
    assert!("vfio-user:/x".parse::<Address>().is_err());
}

/// 108 bytes are the most that an address has room for; a link to a longer path is as good as the path.
#[test]
fn a_path_may_be_as_long_as_an_address_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let fits = dir.path().join("x".repeat(107 - dir.path().as_os_str().len()));
    let server = Server::start(|peer| Memory::new().serve(peer));
    std::os::unix::fs::symlink(server.path(), &fits).unwrap();
    assert_eq!(fits.as_os_str().len(), 108);
    drop(VfioUser::open(&fits).unwrap());
    server.end();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    let long = dir.path().join("x".repeat(108 - dir.path().as_os_str().len()));
    std::fs::rename(dir.path().join("s"), &long).unwrap();
    let error = VfioUser::open(&long).unwrap_err().to_string();
    assert!(error.contains("longer than a socket's path can be, 108 bytes; make a symbolic link"), "{error}");
    drop(listener);
}
