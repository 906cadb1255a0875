//! The bytes of the most used server (SPDK's NVMe-oF target, with libvfio-user), as far as they are known.

use kiovec::memory::DmaSpace;
use kiovec::pci::Function;
use kiovec::pci::vfio_user::DoorbellPath;

use super::peer::{LONG, Peer, Server, file, longs, message, region_info, words};

/// VERSION, with JSON or without; 0 as the command of replies in old versions.
fn script(mut peer: Peer, version: Vec<u8>, echo: bool) -> Vec<(u16, Vec<u8>)> {
    let mut heard = Vec::new();
    let bar0 = file(0x2000);
    while let Some(request) = peer.next() {
        let command = request.header.command;
        heard.push((command, request.payload.clone()));
        let index = request.payload.get(8).copied().unwrap_or(0);
        let payload = match command {
            1 => version.clone(),
            2 => vec![],
            3 => request.payload.clone(),
            4 => words(&[16, 3, 9, 5]),
            // The reply is as long as argsz allowed, zeros behind what there is to say; one file for each area.
            5 => {
                let argsz = u32::from_ne_bytes(request.payload[..4].try_into().unwrap()) as usize;
                let mut payload = match index {
                    0 => region_info(7, 0, 0x2000, 0, &[(0x1000, 0x1000)]),
                    7 => region_info(3, 7, 0x1000, 0, &[]),
                    _ => region_info(0, u32::from(index), 0, 0, &[]),
                };
                payload.resize(argsz.max(payload.len()), 0);
                payload
            }
            9 => {
                let count = request.payload[12] as usize;
                // CAP: MQES 255, CQR, TO 10 s, CSS.
                let data = 0x0000_0020_1401_00ffu64.to_ne_bytes();
                [&request.payload[..16], &data[..count.min(8)]].concat()
            }
            10 => request.payload[..16].to_vec(),
            _ => vec![],
        };
        let files = if command == 5 && index == 0 { vec![bar0.try_clone().unwrap()] } else { vec![] };
        let reply = message(request.header.id, if echo { command } else { 0 }, 1, 0, &payload);
        peer.send(&reply, &files);
    }
    heard
}

#[test]
fn its_answers_are_understood() {
    let json = b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":4096}}}\0";
    let bare = vec![0, 0, 1, 0];
    for (version, echo) in [
        (bare.clone(), true),
        (bare.clone(), false),
        ([&bare[..], json].concat(), true),
        ([&[0, 0, 0, 0], &json[..]].concat(), false),
    ] {
        let server = Server::start(move |peer| script(peer, version, echo));
        let function = server.open(LONG).unwrap();
        // An ordinary file: it cannot be known that it stays as long as it is.
        assert_eq!(function.doorbell_path(), DoorbellPath::Mapped { sealed: false });
        assert_eq!(function.read64(0).unwrap() & 0xffff, 255);
        assert!(function.doorbells(0x1000).unwrap().is_mapped());
        let space = DmaSpace::new().unwrap();
        let memory = space.allocate(1 << 20).unwrap();
        let attachment = space.attach(function.domain()).unwrap();
        let iova = memory.segments()[0].iova();
        drop((attachment, function));
        let heard = server.end();
        // The first thing said, and a request that is no longer than its structure.
        assert_eq!((heard[0].0, &heard[0].1[..4], heard[0].1.last()), (1, &[0, 0, 1, 0][..], Some(&0)));
        assert!(heard.iter().filter(|(command, _)| *command == 5).all(|(_, payload)| payload.len() == 32));
        // Regions are whole 2 MiB pages, which is all that it registers for its own devices.
        let (iova, size) = (iova / (2 << 20) * (2 << 20), 2u64 << 20);
        let map = [words(&[32, 3]), longs(&[0, iova, size])].concat();
        assert!(heard.contains(&(2, map)), "{heard:x?}");
    }
}
