//! The vfio-user client, with a server that says what the fuzzer wants.
//!
//! All of the server's answers are in the socket before the client says a word: its message IDs are known,
//! so a run needs one thread, and is the same each time. What the fuzzer gives is a row of chunks: right
//! answers, answers of its own under the right ID, questions, and noise, each with files or without.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::time::Duration;

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::pci::Function;
use kiovec::pci::vfio_user::{Options, VfioUser};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Bytes that a run looks at: all answers must fit the socket's buffer.
const MOST: usize = 8 << 10;
/// A stalled server is one that the fuzzer made: no run waits longer.
const TIMEOUT: Duration = Duration::from_millis(5);

/// One space and one region for all runs: what a lost server was given is never given back.
static SPACE: LazyLock<Option<(DmaSpace, MemoryChain)>> = LazyLock::new(|| {
    let space = DmaSpace::new().ok()?;
    let memory = space.allocate(4096).ok()?;
    Some((space, memory))
});

pub fn fuzz_client(data: &[u8]) {
    let Ok((client, server)) = UnixStream::pair() else { return };
    script(&server, &data[..data.len().min(MOST)]);
    let _ = server.shutdown(Shutdown::Write);
    let options = Options { timeout: TIMEOUT, reset_timeout: TIMEOUT };
    let Ok(function) = VfioUser::over("fuzz", client, options) else { return };
    let _ = function.irq_info(2);
    let _ = function.config_read(0, &mut [0; 64]);
    if let Some((space, _memory)) = &*SPACE {
        let attachment = space.attach(function.domain());
        function.pause();
        let _ = function.read64(0);
        let _ = function.write32(0x14, 1);
        if let Some(doorbell) = function.doorbells(8).ok().and_then(|page| page.doorbell(4)) {
            doorbell.ring(1);
        }
        drop(attachment);
    }
    let _ = function.reset();
    let _ = function.read32(0x1c);
}

/// Writes what the fuzzer wants the server to say.
fn script(mut server: &UnixStream, mut data: &[u8]) {
    let mut answered = 0;
    while let Some((&[kind, len], rest)) = data.split_first_chunk::<2>() {
        let (chunk, rest) = rest.split_at(usize::from(len).min(rest.len()));
        data = rest;
        let files = usize::from(kind >> 5);
        // The client's IDs begin with 2.
        let id = 2 + answered;
        let bytes = match kind & 7 {
            0..=2 => {
                answered += 1;
                message(id, command(answered), 1, &payload(answered))
            }
            3 => {
                answered += 1;
                message(id, command(answered), 1, chunk)
            }
            // Right up to where the fuzzer begins.
            4 => {
                answered += 1;
                let mut payload = payload(answered);
                let at = usize::from(len) % (payload.len() + 1);
                payload.truncate(at);
                payload.extend(chunk);
                message(id, command(answered), 1, &payload)
            }
            5 => message(id, 11 + u16::from(len & 1), 0, chunk),
            6 => message(id, command(answered + 1), 0x21, &[]),
            _ => chunk.to_vec(),
        };
        let mappable = kind & 8 != 0 || answered == 4;
        let files: Vec<OwnedFd> = (0..files.max(usize::from(answered == 4 && kind & 7 < 5)))
            .filter(|_| mappable)
            .filter_map(|_| file())
            .collect();
        send(&mut server, &bytes, &files);
    }
}

/// What the client asks for, in order: the first request is number 1.
fn command(number: u16) -> u16 {
    [1, 4, 5, 5, 9, 10, 7, 9, 2, 2, 9, 10, 3, 3, 9, 13, 10, 9]
        .get(usize::from(number) - 1)
        .copied()
        .unwrap_or(9)
}

/// A right answer's payload.
fn payload(number: u16) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    match number {
        1 => vec![0, 0, 1, 0],
        2 => words(&[16, 3, 9, 5]),
        3 => words(&[32, 3, 7, 0, 256, 0, 0, 0]),
        4 => words(&[64, 15, 0, 32, 0x2000, 0, 0, 0, 1 | 1 << 16, 0, 1, 0, 0x1000, 0, 0x1000, 0]),
        5 | 15 => words(&[4, 0, 7, 2, 0]),
        6 | 17 => words(&[4, 0, 7, 2]),
        7 => words(&[16, 1, 2, 3]),
        8 => [words(&[0, 0, 7, 64]), vec![7; 64]].concat(),
        9 | 10 => vec![],
        11 => words(&[0, 0, 0, 8, 1, 2]),
        12 => words(&[0x14, 0, 0, 4]),
        _ => words(&[0x1c, 0, 0, 4, 5, 6]),
    }
}

fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let header: [&[u8]; 5] = [
        &id.to_ne_bytes(),
        &command.to_ne_bytes(),
        &size.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &22u32.to_ne_bytes(),
    ];
    [&header.concat(), payload].concat()
}

fn file() -> Option<OwnedFd> {
    let file = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    rustix::fs::ftruncate(&file, 0x2000).ok()?;
    Some(file)
}

fn send(server: &mut &UnixStream, bytes: &[u8], files: &[OwnedFd]) {
    if files.is_empty() {
        let _ = server.write_all(bytes);
        return;
    }
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if control.push(SendAncillaryMessage::ScmRights(&fds)) {
        let _ = sendmsg(server, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }
}
