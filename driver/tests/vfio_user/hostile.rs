//! Servers that do everything wrong. Each must be an error, at once or at the deadline, and never a panic
//! or a hang; and nothing may be believed of a server after that.

use std::time::Instant;

use kiovec::Error;
use kiovec::memory::DmaSpace;
use kiovec::pci::Function;
use kiovec::pci::vfio_user::{Message, VfioUser};
use proptest::prelude::*;

use super::peer::{
    Answer, LONG, Memory, Peer, SHORT, Server, file, longs, message, region_info, reply, words,
};

/// What a server does instead of sending an answer; it goes on as long as this returns true.
type Tamper = Box<dyn FnMut(&mut Peer, usize, &Message, Answer) -> bool + Send>;

fn server(mut tamper: Tamper) -> Server {
    Server::start(move |mut peer| {
        let mut memory = Memory::new();
        let mut index = 0;
        while let Some(request) = peer.next() {
            if let Some(answer) = memory.answer(&request) {
                if !tamper(&mut peer, index, &request, answer) {
                    return;
                }
                index += 1;
            }
        }
    })
}

/// Everything that a client asks for while it opens a function and maps memory.
fn use_it(server: &Server, timeout: std::time::Duration) -> Result<VfioUser, Error> {
    let function = server.open(timeout)?;
    function.config_read(0, &mut [0; 64])?;
    let space = DmaSpace::new()?;
    let attachment = space.attach(function.domain())?;
    let _memory = space.allocate(4096)?;
    function.write32(0x14, 1)?;
    // What is lost reads as all ones, and says why.
    match function.read32(0x10)? {
        u32::MAX => return Err(function.gone()),
        value => assert_eq!(value, 0x1312_1110),
    }
    drop(attachment);
    Ok(function)
}

fn send(peer: &mut Peer, answer: Answer) -> bool {
    peer.send(&answer.bytes, &answer.files);
    true
}

/// The lengths of all right answers, in order.
fn lengths() -> Vec<usize> {
    let (tell, told) = std::sync::mpsc::channel();
    let server = server(Box::new(move |peer, _, _, answer| {
        tell.send(answer.bytes.len()).unwrap();
        send(peer, answer)
    }));
    drop(use_it(&server, LONG).unwrap());
    server.end();
    told.iter().collect()
}

#[test]
fn an_answer_cut_off_at_any_byte_is_an_error() {
    // The last ones are of the unmapping and of bus mastering, which a drop does without a word.
    let lengths = lengths();
    assert!(lengths.len() > 10, "{lengths:?}");
    for (which, len) in lengths.iter().enumerate().take(11) {
        for cut in (0..*len).step_by(if *len > 60 { 7 } else { 1 }) {
            let server = server(Box::new(move |peer, index, _, mut answer| {
                if index == which {
                    answer.bytes.truncate(cut);
                }
                send(peer, answer) && index != which
            }));
            let error = use_it(&server, LONG).unwrap_err().to_string();
            assert!(error.contains("closed the connection"), "answer {which} cut at {cut}: {error}");
            server.end();
        }
    }
}

#[test]
fn an_answer_in_two_pieces_at_any_byte_is_an_answer() {
    for at in 1..100 {
        let server = server(Box::new(move |peer, _, _, answer| {
            let at = at.min(answer.bytes.len());
            peer.send(&answer.bytes[..at], &answer.files);
            std::thread::yield_now();
            peer.send(&answer.bytes[at..], &[]);
            true
        }));
        drop(use_it(&server, LONG).unwrap());
        server.end();
    }
}

/// A question of the server's, glued to its answer in one piece.
#[test]
fn glued_messages_are_taken_apart() {
    let server = server(Box::new(|peer, _, _, answer| {
        let read = message(9, 11, 0, 0, &longs(&[0x1000, 8]));
        // Files go with the first byte of what they are sent with, so these answers stand alone.
        match answer.files.is_empty() {
            true => peer.send(&[&read[..], &read, &answer.bytes].concat(), &[]),
            false => {
                peer.send(&[&read[..], &read].concat(), &[]);
                peer.send(&answer.bytes, &answer.files);
            }
        }
        // Nothing is mapped there: two refusals come before the next request.
        for _ in 0..2 {
            let Some(refusal) = peer.next() else { return false };
            assert_eq!((refusal.header.id, refusal.header.failure()), (9, Some(14)));
        }
        true
    }));
    drop(use_it(&server, LONG).unwrap());
    server.end();
}

#[test]
fn what_is_no_answer_loses_the_connection() {
    type Wrong = fn(&mut Answer);
    let wrong: [(&str, Wrong); 11] = [
        ("another ID", |answer| answer.bytes[0] ^= 1),
        ("another command", |answer| answer.bytes[2] = 12),
        ("neither command nor reply", |answer| answer.bytes[8] = 2),
        ("shorter than a header", |answer| answer.bytes[4..8].copy_from_slice(&words(&[15]))),
        ("of no size", |answer| answer.bytes[4..8].copy_from_slice(&words(&[0]))),
        ("of a huge size", |answer| answer.bytes[4..8].copy_from_slice(&words(&[u32::MAX]))),
        ("just too large", |answer| answer.bytes[4..8].copy_from_slice(&words(&[(1 << 20) + 33]))),
        ("with a file", |answer| answer.files.push(file(1))),
        ("with many files", |answer| (0..9).for_each(|_| answer.files.push(file(1)))),
        ("without payload", |answer| answer.bytes = [&words(&[0])[..2], &answer.bytes[2..16]].concat()),
        ("noise", |answer| answer.bytes.iter_mut().for_each(|byte| *byte ^= 0xa5)),
    ];
    for (what, wrong) in wrong {
        for which in 0..11 {
            // A file more is none too many for BAR0, whose areas may have one each: tested below.
            if what.starts_with("with") && which == 3 {
                continue;
            }
            let server = server(Box::new(move |peer, index, request, mut answer| {
                if index == which {
                    wrong(&mut answer);
                    if what == "without payload" {
                        answer.bytes = reply(request, &[]);
                    }
                }
                send(peer, answer)
            }));
            let result = use_it(&server, LONG);
            // DMA_MAP has an empty answer, and DMA_UNMAP's is not needed.
            if what == "without payload" && (7..=8).contains(&which) {
                drop(result);
            } else if let Ok(function) = result {
                panic!("{what}, answer {which}: {function:?}");
            }
            server.end();
        }
    }
}

#[test]
fn a_server_that_stalls_is_left_at_the_deadline() {
    let answers = lengths().len();
    for which in 0..answers.min(10) {
        for cut in [0, 1, 16, 17] {
            let server = server(Box::new(move |peer, index, _, mut answer| {
                if index == which {
                    answer.bytes.truncate(cut.min(answer.bytes.len() - 1));
                    peer.send(&answer.bytes, &answer.files);
                    // Until the client has had enough.
                    return peer.next().is_some();
                }
                send(peer, answer)
            }));
            let error = use_it(&server, SHORT).unwrap_err().to_string();
            assert!(error.contains("no answer to") && error.contains("30 ms"), "{which}, {cut}: {error}");
            server.end();
        }
    }
}

/// Questions without end, and never an answer.
#[test]
fn a_server_that_only_asks_is_left_at_the_deadline() {
    let server = server(Box::new(|peer, index, _, answer| {
        if index < 5 {
            return send(peer, answer);
        }
        let read = message(1, 11, 0, 0, &longs(&[0, 8]));
        loop {
            peer.send(&read, &[]);
            if peer.next().is_none() {
                return false;
            }
        }
    }));
    let began = Instant::now();
    let error = use_it(&server, SHORT).unwrap_err().to_string();
    assert!(error.contains("no answer to"), "{error}");
    assert!(began.elapsed() < LONG);
    server.end();
}

#[test]
fn what_is_lost_stays_lost() {
    let server = server(Box::new(|peer, index, _, mut answer| {
        if index == 6 {
            answer.bytes[0] ^= 1;
        }
        send(peer, answer)
    }));
    let function = server.open(LONG).unwrap();
    assert_eq!(function.read32(0x10).unwrap(), u32::MAX);
    assert_eq!(function.read64(0x10).unwrap(), u64::MAX);
    for error in [
        function.gone(),
        function.write32(0x14, 0).unwrap_err(),
        function.config_read(0, &mut [0; 2]).unwrap_err(),
        function.set_bus_master(false).unwrap_err(),
        function.reset().unwrap_err(),
    ] {
        assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
        assert!(
            error.to_string().contains("ID") && error.to_string().contains("open the device again"),
            "{error}"
        );
    }
    function.pause();
    // The server is told as well.
    server.end();
}

/// A doorbell that cannot be posted says nothing; who reads registers sees it.
#[test]
fn a_posted_write_that_fails_loses_the_connection() {
    let server = server(Box::new(|peer, index, _, mut answer| {
        if index == 3 {
            answer.bytes = [&answer.bytes[..16], &region_info(3, 0, 0x2000, 0, &[])].concat();
            answer.bytes[4] = 48;
            answer.files.clear();
        }
        send(peer, answer) && index < 5
    }));
    let function = server.open(LONG).unwrap();
    let doorbell = function.doorbells(8).unwrap().doorbell(4).unwrap();
    function.set_bus_master(true).ok();
    server.end();
    for value in 0..10 {
        doorbell.ring(value);
    }
    assert_eq!(function.read32(0x1c).unwrap(), u32::MAX);
    assert!(matches!(function.gone(), Error::Disconnected { .. }));
}

/// A server that reads nothing any more, while doorbells are posted to it.
#[test]
fn a_server_that_does_not_read_is_left_at_the_deadline() {
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let server = server(Box::new(move |peer, index, _, mut answer| {
        if index == 3 {
            answer.bytes = [&answer.bytes[..16], &region_info(3, 0, 0x2000, 0, &[])].concat();
            answer.bytes[4] = 48;
            answer.files.clear();
        }
        send(peer, answer);
        if index == 5 {
            let _ = end.recv();
        }
        index < 5
    }));
    let function = server.open(std::time::Duration::from_secs(1)).unwrap();
    let doorbell = function.doorbells(8).unwrap().doorbell(4).unwrap();
    for value in 0..100_000 {
        doorbell.ring(value);
    }
    assert_eq!(function.read32(0x1c).unwrap(), u32::MAX);
    assert!(function.gone().to_string().contains("took too long"), "{}", function.gone());
    drop(ended);
    server.end();
}

#[test]
fn what_is_said_of_bar0_is_checked() {
    type Wrong = fn(&mut Answer);
    fn put(answer: &mut Answer, payload: Vec<u8>) {
        answer.bytes =
            [&answer.bytes[..4], &words(&[16 + payload.len() as u32]), &answer.bytes[8..16], &payload]
                .concat();
    }
    let wrong: [(&str, Wrong); 8] = [
        ("files came with BAR0", |answer| answer.files.push(file(0x2000))),
        ("0x1fff bytes, and 0x2000", |answer| answer.files = vec![file(0x1fff)]),
        ("no ordinary one", |answer| answer.files = vec![rustix::pipe::pipe().unwrap().0]),
        ("ends behind", |answer| put(answer, region_info(7, 0, 0x2000, 0, &[(0x1000, 0x1001)]))),
        ("ends behind", |answer| put(answer, region_info(7, 0, 0x2000, 0, &[(u64::MAX, 0x1000)]))),
        ("leads nowhere", |answer| put(answer, region_info(15, 0, 0x2000, 0, &[]))),
        ("region 0 was asked for", |answer| put(answer, region_info(7, 1, 0x2000, 0, &[]))),
        ("begins at", |answer| put(answer, region_info(7, 0, 0x2000, u64::MAX, &[(0x1000, 0x1000)]))),
    ];
    for (says, wrong) in wrong {
        let server = server(Box::new(move |peer, index, _, mut answer| {
            if index == 3 {
                wrong(&mut answer);
            }
            send(peer, answer)
        }));
        let error = server.open(LONG).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        server.end();
    }
}

#[test]
fn a_device_that_is_none_is_refused() {
    for (payload, says) in [
        (words(&[16, 1, 9, 5]), "no PCI function"),
        (words(&[16, 3, 7, 5]), "no PCI function"),
        (words(&[16, 3, 9]), "12 bytes, and 16 is the least"),
    ] {
        let server = server(Box::new(move |peer, index, request, mut answer| {
            if index == 1 {
                answer.bytes = reply(request, &payload);
            }
            send(peer, answer)
        }));
        let error = server.open(LONG).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        server.end();
    }
}

#[test]
fn versions_that_do_not_fit_are_refused() {
    for (payload, says) in [
        (&[1, 0, 0, 0][..], "version 1.0"),
        (&[0, 0, 2, 0], "version 0.2"),
        (&[0, 0, 1], "a version of 3 bytes"),
        (&[], "a version of 0 bytes"),
        (b"\0\0\0\0{}", "does not end with a NUL"),
        (b"\0\0\0\0{\0", "JSON is wrong"),
    ] {
        let payload = payload.to_vec();
        let server = server(Box::new(move |peer, _, request, mut answer| {
            answer.bytes = reply(request, &payload);
            send(peer, answer)
        }));
        let error = server.open(LONG).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        server.end();
    }
}

/// What a lost server had mapped is never used again; what it never heard of is free.
#[test]
fn memory_of_a_lost_server_stays_reserved() {
    let server = server(Box::new(|peer, index, _, answer| index < 7 && send(peer, answer)));
    let space = DmaSpace::new().unwrap();
    let function = server.open(LONG).unwrap();
    let attachment = space.attach(function.domain()).unwrap();
    let mapped = space.allocate(1 << 21).unwrap();
    let iova = mapped.segments()[0].iova();
    server.end();
    assert_eq!(function.read32(0).unwrap(), u32::MAX);
    // Others of the space go on, although one domain maps nothing any more.
    let unheard_of = space.allocate(1 << 21).unwrap();
    let free = unheard_of.segments()[0].iova();
    assert_eq!(space.retired(), 0);
    drop((mapped, unheard_of, attachment));
    assert_eq!(space.retired(), 2 << 20, "what is reserved is counted");
    let again: Vec<_> = (0..8).map(|_| space.allocate(1 << 21).unwrap()).collect();
    let iovas: Vec<_> = again.iter().map(|chain| chain.segments()[0].iova()).collect();
    assert!(!iovas.contains(&iova), "{iova:#x} is the lost server's: {iovas:x?}");
    assert!(iovas.contains(&free), "{free:#x} is free: {iovas:x?}");
}

/// A server that is started again and again gets no more to map each time: memory that its predecessors had,
/// and that nobody has any more, is not its own.
#[test]
fn what_is_retired_is_not_mapped_again() {
    let space = DmaSpace::new().unwrap();
    let kept = space.allocate(4096).unwrap();
    for round in 0..5 {
        let server = Server::start(|mut peer| {
            let mut memory = Memory::new();
            while let Some(request) = peer.next().filter(|request| request.header.command != 13) {
                let answer = memory.answer(&request).unwrap();
                peer.send(&answer.bytes, &answer.files);
            }
            memory.maps.len()
        });
        let function = server.open(LONG).unwrap();
        let attachment = space.attach(function.domain()).unwrap();
        let memory = space.allocate(1 << 20).unwrap();
        function.reset().unwrap_err();
        drop((memory, attachment, function));
        // A region and its part of the table, for what is new and, from the second round on, for what is kept.
        assert_eq!((round, server.end()), (round, if round == 0 { 2 } else { 4 }));
        assert_eq!(space.retired(), (round + 1) << 21);
    }
    drop(kept);
}

/// The fuzz target, with whatever bytes come.
#[path = "../../../tests/fuzz/src/vfio_user_client.rs"]
mod target;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes as the answer to any request.
    #[test]
    fn any_answer_gives_an_answer(
        which in 0usize..10,
        noise in prop::collection::vec(any::<u8>(), 0..200),
        keep in 0usize..40,
        files in 0usize..4,
    ) {
        let server = server(Box::new(move |peer, index, _, answer| {
            if index != which {
                return send(peer, answer);
            }
            let mut bytes = answer.bytes;
            bytes.truncate(keep);
            bytes.extend(&noise);
            peer.send(&bytes, &(0..files).map(|_| file(0x2000)).collect::<Vec<_>>());
            false
        }));
        drop(use_it(&server, SHORT));
        server.end();
    }

    #[test]
    fn the_fuzz_target_runs(data in prop::collection::vec(any::<u8>(), 0..400)) {
        target::fuzz_client(&data);
    }
}
