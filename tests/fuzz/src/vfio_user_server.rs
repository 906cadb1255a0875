//! One client of a server, with messages made of arbitrary bytes; the server must then serve the next.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use kiovec_emulator::{Config, Server};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

const MEMORY: u64 = 0x1_0000;
/// VERSION without JSON, and its reply's length.
const VERSION: [u8; 20] = [1, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Where the server of this process listens; it runs until the process ends.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("kiovec-fuzz-{}", std::process::id()));
        let config = Config::parse("size=1M,media=ram,queues=2").expect("a configuration");
        let sigbus = kiovec::install_sigbus_handler().expect("a handler");
        let mut server = Server::bind(config, &path, sigbus).expect("a server");
        // A name is needed to connect only: what is left behind by a process that crashes is a dead socket.
        std::thread::spawn(move || {
            while let Ok(Some(client)) = server.accept() {
                client.serve().expect("whatever the client does, it is served");
            }
        });
        path
    })
}

/// Sends messages: command, flags, what goes with it and a length from the input, then its payload.
pub fn fuzz_server(data: &[u8]) {
    let mut stream = UnixStream::connect(socket()).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    let memory = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&memory, MEMORY).expect("memory");
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    send(&stream, &VERSION, None);
    let mut rest = data;
    while let [command, flags, extra, len, after @ ..] = rest {
        let (payload, after) = after.split_at((*len as usize).min(after.len()));
        rest = after;
        let size = 16 + payload.len() as u32;
        // Now and then what its header says is wrong, or its file is too short.
        let size = if extra & 0xf0 == 0xf0 { size.wrapping_add(*len as u32) } else { size };
        let mut message = vec![7, 0, command % 20, 0];
        message.extend(size.to_ne_bytes());
        message.extend([*flags, 0, 0, 0, 0, 0, 0, 0]);
        message.extend(payload);
        let file = match extra & 3 {
            0 => None,
            1 => Some(&event),
            _ => Some(&memory),
        };
        send(&stream, &message, file);
        if extra & 0x0c == 0x0c {
            let _ = ftruncate(&memory, u64::from(*len) << 8);
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut replies = Vec::new();
    let ended = stream.read_to_end(&mut replies);
    let timed_out = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!ended.as_ref().is_err_and(timed_out), "the server has not let go");
}

fn send(stream: &UnixStream, bytes: &[u8], file: Option<&OwnedFd>) {
    let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(&files)));
    // It may have sent us away, and it may have more replies than anybody takes.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags);
}
