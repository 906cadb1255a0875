//! Messages in pieces, glued, cut off, too long, and with files.

use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::message::command;
use super::*;

const LIMITS: Limits = Limits { payload: 4096, fds: 2 };
/// Long enough for a machine that is busy; nothing here waits for it unless it fails.
const LONG: Duration = Duration::from_secs(20);

fn pair() -> (UnixStream, Socket) {
    let (here, there) = UnixStream::pair().unwrap();
    (here, Socket::new(there, LIMITS))
}

fn soon() -> Instant {
    Instant::now() + LONG
}

fn bytes(id: u16, payload: &[u8]) -> Vec<u8> {
    let size = (Header::LEN + payload.len()) as u32;
    let header = Header { size, ..Header::command(id, command::REGION_READ) };
    [header.as_bytes(), payload].concat()
}

fn file(name: &str) -> OwnedFd {
    memfd_create(name, MemfdFlags::CLOEXEC).unwrap()
}

fn send_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    assert_eq!(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()), Ok(bytes.len()));
}

#[test]
fn what_is_sent_is_received_with_its_files() {
    let (here, mut there) = pair();
    let mut here = Socket::new(here, LIMITS);
    let (one, two) = (file("one"), file("two"));
    let header = Header::command(7, command::DMA_MAP);
    here.send(header, &[b"abc", b"", b"defg"], &[one.as_fd(), two.as_fd()], soon()).unwrap();
    here.send(header.without_reply(), &[], &[], soon()).unwrap();
    let message = there.receive(soon()).unwrap();
    assert_eq!((message.header, &message.payload[..]), (Header { size: 23, ..header }, &b"abcdefg"[..]));
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(message.fds.iter().map(inode).collect::<Vec<_>>(), [inode(&one), inode(&two)]);
    for fd in &message.fds {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    let message = there.receive(soon()).unwrap();
    assert!(message.payload.is_empty() && message.fds.is_empty() && !message.header.wants_reply());
}

#[test]
fn a_message_split_at_every_byte_is_put_together() {
    let whole = bytes(3, b"payload");
    for at in 1..whole.len() {
        let (mut here, mut there) = pair();
        here.write_all(&whole[..at]).unwrap();
        assert!(there.try_receive().unwrap().is_none());
        here.write_all(&whole[at..]).unwrap();
        assert_eq!(there.try_receive().unwrap().unwrap().payload, b"payload");
    }
}

#[test]
fn a_time_out_keeps_what_has_come() {
    let (mut here, mut there) = pair();
    let whole = bytes(3, b"payload");
    here.write_all(&whole[..20]).unwrap();
    let error = there.receive(Instant::now()).unwrap_err();
    assert!(matches!(error, SocketError::Timeout) && !there.is_broken(), "{error}");
    here.write_all(&whole[20..]).unwrap();
    assert_eq!(there.receive(soon()).unwrap().payload, b"payload");
}

#[test]
fn a_message_cut_off_at_every_byte_says_so() {
    let whole = bytes(3, b"payload");
    for at in 0..whole.len() {
        let (mut here, mut there) = pair();
        here.write_all(&whole[..at]).unwrap();
        drop(here);
        match there.receive(soon()).unwrap_err() {
            SocketError::Closed => assert_eq!(at, 0),
            SocketError::Truncated { got, .. } => assert_eq!(got, at),
            other => panic!("{at}: {other}"),
        }
        assert!(there.is_broken());
        assert!(matches!(there.receive(soon()), Err(SocketError::Closed)));
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    for size in [0, 1, 15, 16 + 4097, u32::MAX] {
        let (mut here, mut there) = pair();
        here.write_all(Header { size, ..Header::command(1, 1) }.as_bytes()).unwrap();
        let error = there.receive(soon()).unwrap_err();
        assert!(matches!(error, SocketError::Size { size: said, most: 4112 } if said == size), "{error}");
    }
    for len in [0, 4096] {
        let (mut here, mut there) = pair();
        here.write_all(&bytes(1, &vec![5; len])).unwrap();
        assert_eq!(there.receive(soon()).unwrap().payload.len(), len);
    }
}

#[test]
fn too_many_files_are_closed_and_refused() {
    for (limit, fds) in [(0, 1), (1, 2), (2, 3), (2, 9)] {
        let (here, there) = UnixStream::pair().unwrap();
        let mut there = Socket::new(there, Limits { fds: limit, ..LIMITS });
        let (read, write) = rustix::pipe::pipe().unwrap();
        send_fds(&here, &bytes(1, b""), &vec![write.as_fd(); fds]);
        drop(write);
        assert!(matches!(there.receive(soon()), Err(SocketError::TooManyFds { most }) if most == limit));
        // Nobody holds the pipe's other end any more.
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}

#[test]
fn files_of_a_message_in_pieces_are_counted_together() {
    let (here, mut there) = pair();
    let (whole, fd) = (bytes(1, b"abc"), file("f"));
    send_fds(&here, &whole[..16], &[fd.as_fd()]);
    send_fds(&here, &whole[16..], &[fd.as_fd()]);
    assert_eq!(there.receive(soon()).unwrap().fds.len(), 2);
    for at in 0..3 {
        send_fds(&here, &whole[at * 5..at * 5 + 5], &[fd.as_fd()]);
    }
    assert!(matches!(there.receive(soon()), Err(SocketError::TooManyFds { .. })));
}

#[test]
fn files_stay_with_their_message() {
    let (here, mut there) = pair();
    let (none, some, fd) = (bytes(1, b"abc"), bytes(2, b""), file("f"));
    (&here).write_all(&none).unwrap();
    send_fds(&here, &some, &[fd.as_fd()]);
    (&here).write_all(&none).unwrap();
    let counts: Vec<_> = (0..3).map(|_| there.receive(soon()).unwrap().fds.len()).collect();
    assert_eq!(counts, [0, 1, 0]);
}

#[test]
fn a_peer_that_reads_nothing_is_a_time_out_and_ends_the_connection() {
    let (_here, mut there) = pair();
    let payload = vec![0; 1 << 20];
    let deadline = Instant::now() + Duration::from_millis(20);
    let sent = std::iter::repeat_with(|| there.send(Header::command(1, 1), &[&payload], &[], deadline));
    let error = sent.take(100).find_map(Result::err);
    assert!(matches!(error, Some(SocketError::Timeout)), "{error:?}");
    assert!(matches!(there.send(Header::command(1, 1), &[], &[], soon()), Err(SocketError::Closed)));
}

#[test]
fn a_large_message_goes_through_a_small_buffer() {
    let (here, there) = UnixStream::pair().unwrap();
    let mut there = Socket::new(there, Limits { payload: 1 << 22, fds: 1 });
    let payload: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
    let sender = std::thread::spawn({
        let payload = payload.clone();
        move || {
            let mut here = Socket::new(here, LIMITS);
            here.send(Header::command(1, 1), &[&payload], &[file("f").as_fd()], soon()).unwrap();
        }
    });
    let message = there.receive(soon()).unwrap();
    sender.join().unwrap();
    assert!(message.payload == payload && message.fds.len() == 1);
}

#[test]
fn what_cannot_be_sent_is_refused_and_breaks_nothing() {
    let (here, mut there) = pair();
    let mut here = Socket::new(here, LIMITS);
    let fd = file("f");
    let error = here.send(Header::command(1, 1), &[], &vec![fd.as_fd(); 254], soon()).unwrap_err();
    assert!(matches!(error, SocketError::Unsendable { fds: 254, .. }));
    here.send(Header::command(2, 1), &[], &[fd.as_fd(); 2], soon()).unwrap();
    assert_eq!(there.receive(soon()).unwrap().header.id, 2);
    drop(there);
    assert!(matches!(here.send(Header::command(3, 1), &[], &[], soon()), Err(SocketError::Closed)));
}

proptest! {
    #[test]
    fn messages_survive_any_cutting(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (mut here, mut there) = pair();
        let stream: Vec<u8> =
            payloads.iter().enumerate().flat_map(|(id, payload)| bytes(id as u16, payload)).collect();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort();
        let mut got = Vec::new();
        for cut in cuts.windows(2) {
            here.write_all(&stream[cut[0]..cut[1]]).unwrap();
            while let Some(message) = there.try_receive().unwrap() {
                got.push(message.payload);
            }
        }
        prop_assert_eq!(got, payloads);
    }

    #[test]
    fn any_bytes_end_in_an_error_and_not_in_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let (mut here, mut there) = pair();
        here.write_all(&bytes).unwrap();
        drop(here);
        let messages = std::iter::repeat_with(|| there.receive(soon()));
        prop_assert!(messages.take(1000).any(|message| message.is_err()));
    }
}
