//! A server of the test's own: it answers byte for byte what a test wants.
//!
//! Its formats are written out here rather than taken from the driver, except for the reading of whole
//! requests.

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiovec::Error;
use kiovec::pci::vfio_user::{Limits, Message, Options, Socket, SocketError, VfioUser};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Long enough for a busy machine. Only what fails waits for it.
pub const LONG: Duration = Duration::from_secs(30);
/// For servers that do not answer.
pub const SHORT: Duration = Duration::from_millis(30);

pub fn options(timeout: Duration) -> Options {
    Options { timeout, reset_timeout: timeout }
}

/// What follows from a request: what is sent, with which files, and whether the server goes on.
pub struct Answer {
    pub bytes: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

/// One end of a connection, as a server has it.
pub struct Peer {
    pub stream: UnixStream,
    socket: Socket,
}

impl Peer {
    pub fn new(stream: UnixStream) -> Peer {
        let socket = Socket::new(stream.try_clone().unwrap(), Limits { payload: 2 << 20, fds: 16 });
        Peer { stream, socket }
    }

    /// The next request, or `None` when the client is gone.
    pub fn next(&mut self) -> Option<Message> {
        match self.socket.receive(Instant::now() + LONG) {
            Ok(message) => Some(message),
            Err(SocketError::Timeout) => panic!("the client says nothing"),
            Err(_) => None,
        }
    }

    /// A message if there is one; the outer `None` when the client is gone.
    pub fn poll(&mut self) -> Option<Option<Message>> {
        self.socket.try_receive().ok()
    }

    /// Sends bytes, the files with the first of them. That the client is gone is no error.
    pub fn send(&mut self, bytes: &[u8], files: &[OwnedFd]) {
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let parts = [std::io::IoSlice::new(bytes)];
        let sent = sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL).unwrap_or(bytes.len());
        let _ = self.stream.write_all(&bytes[sent..]);
    }
}

/// Listens in a directory of its own, serves one client in a thread, and is joined.
pub struct Server<T = ()> {
    dir: tempfile::TempDir,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Server<T> {
    pub fn start(serve: impl FnOnce(Peer) -> T + Send + 'static) -> Server<T> {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("cntrl")).unwrap();
        let thread = std::thread::spawn(move || serve(Peer::new(listener.accept().unwrap().0)));
        Server { dir, thread }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("cntrl")
    }

    pub fn open(&self, timeout: Duration) -> Result<VfioUser, Error> {
        VfioUser::open_with(self.path(), options(timeout))
    }

    pub fn end(self) -> T {
        self.thread.join().unwrap()
    }
}

// ---- the formats, once more ----

pub fn message(id: u16, command: u16, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(command.to_ne_bytes());
    bytes.extend((16 + payload.len() as u32).to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

pub fn reply(request: &Message, payload: &[u8]) -> Vec<u8> {
    message(request.header.id, request.header.command, 1, 0, payload)
}

pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

pub fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// argsz, flags, index, cap_offset, size, offset; the areas' list behind it.
pub fn region_info(flags: u32, index: u32, size: u64, offset: u64, areas: &[(u64, u64)]) -> Vec<u8> {
    let list = if areas.is_empty() { 0 } else { 16 + 16 * areas.len() as u32 };
    let (flags, at) = if list == 0 { (flags, 0) } else { (flags | 8, 32) };
    let mut bytes = words(&[32 + list, flags, index, at]);
    bytes.extend(longs(&[size, offset]));
    if list > 0 {
        bytes.extend(words(&[1 | 1 << 16, 0, areas.len() as u32, 0]));
        areas.iter().for_each(|(offset, size)| bytes.extend(longs(&[*offset, *size])));
    }
    bytes
}

pub fn file(len: u64) -> OwnedFd {
    let file = memfd_create("bar0", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

/// A device that is no controller: configuration space and BAR0 are memory, doorbells a file.
pub struct Memory {
    pub config: Vec<u8>,
    pub bar0: Vec<u8>,
    pub doorbells: OwnedFd,
    /// What DMA_MAP and DMA_UNMAP said, as bytes, and how many files came along.
    pub maps: Vec<(u16, Vec<u8>, usize)>,
    pub resets: usize,
    pub posted: Vec<(u64, Vec<u8>)>,
}

pub const BAR0: u64 = 0x2000;

impl Memory {
    pub fn new() -> Memory {
        Memory {
            config: (0..=255).collect(),
            bar0: (0..BAR0).map(|at| at as u8).collect(),
            doorbells: file(BAR0),
            maps: vec![],
            resets: 0,
            posted: vec![],
        }
    }

    /// The right answer, or none where none is wanted.
    pub fn answer(&mut self, request: &Message) -> Option<Answer> {
        let mut files = Vec::new();
        let word = |at: usize| {
            request.payload.get(at..at + 4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()))
        };
        let payload = match request.header.command {
            1 => [&[0, 0, 1, 0][..], b"{\"capabilities\":{\"max_msg_fds\":8}}\0"].concat(),
            2 | 3 => {
                self.maps.push((request.header.command, request.payload.clone(), request.fds.len()));
                if request.header.command == 3 { request.payload.clone() } else { vec![] }
            }
            4 => words(&[16, 3, 9, 5]),
            5 if word(8) == 7 => region_info(3, 7, 256, 0, &[]),
            5 => {
                files.push(self.doorbells.try_clone().unwrap());
                region_info(7, 0, BAR0, 0, &[(0x1000, 0x1000)])
            }
            7 => words(&[16, 1, word(8), 33]),
            9 | 10 => {
                let (offset, len) = (word(0) as usize, word(12) as usize);
                let region = if word(8) == 7 { &mut self.config } else { &mut self.bar0 };
                let access = &request.payload[..16];
                if request.header.command == 9 {
                    [access, &region[offset..offset + len]].concat()
                } else {
                    region[offset..offset + len].copy_from_slice(&request.payload[16..]);
                    if !request.header.wants_reply() {
                        self.posted.push((offset as u64, request.payload[16..].to_vec()));
                        return None;
                    }
                    access.to_vec()
                }
            }
            13 => {
                self.resets += 1;
                vec![]
            }
            other => panic!("command {other}"),
        };
        Some(Answer { bytes: reply(request, &payload), files })
    }

    /// Answers until the client is gone.
    pub fn serve(mut self, mut peer: Peer) -> Memory {
        while let Some(request) = peer.next() {
            if let Some(Answer { bytes, files }) = self.answer(&request) {
                peer.send(&bytes, &files);
            }
        }
        self
    }
}
