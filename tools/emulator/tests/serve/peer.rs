//! A server in a thread, and clients of the simplest kind.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kiovec::pci::vfio_user::message::{DmaMap, DmaUnmap, RegionAccess, SetIrqs, command};
use kiovec::pci::vfio_user::{Capabilities, Header};
use kiovec_emulator::{Config, Counters, Server, Stopper};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PATIENCE: Duration = Duration::from_secs(300);

/// A running server.
pub struct Rig {
    pub path: PathBuf,
    stopper: Stopper,
    thread: Option<JoinHandle<Counters>>,
    ends: Receiver<String>,
    _dir: TempDir,
}

impl Rig {
    pub fn new(text: &str) -> Rig {
        let dir = TempDir::new().unwrap();
        Rig::with(dir, Config::parse(text).unwrap())
    }

    pub fn with(dir: TempDir, config: Config) -> Rig {
        let path = dir.path().join("nvme.sock");
        let mut server = Server::bind(config, &path, kiovec::install_sigbus_handler().unwrap()).unwrap();
        let stopper = server.stopper().unwrap();
        let (sender, ends) = channel();
        let thread = std::thread::spawn(move || {
            while let Some(client) = server.accept().unwrap() {
                let _ = sender.send(client.serve().unwrap().to_string());
            }
            server.counters()
        });
        Rig { path, stopper, thread: Some(thread), ends, _dir: dir }
    }

    pub fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client that has agreed on a version.
    pub fn client(&self) -> Peer {
        let mut peer = Peer::new(self.stream());
        peer.version();
        peer
    }

    /// How the next client ends that has not been asked for.
    pub fn end(&self) -> String {
        self.ends.recv_timeout(PATIENCE).unwrap()
    }

    /// Stops the server. Nothing is left in the directory but what a test has put there.
    pub fn stop(mut self) -> Counters {
        self.stopper.stop();
        let counters = self.thread.take().unwrap().join().unwrap();
        assert!(!self.path.exists());
        counters
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A reply as it came.
#[derive(Debug)]
pub struct Reply {
    pub header: Header,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    pub fn parse<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.payload).unwrap().0
    }
}

/// A client's end of a connection.
pub struct Peer {
    pub stream: UnixStream,
    next_id: u16,
}

impl Peer {
    pub fn new(stream: UnixStream) -> Peer {
        Peer { stream, next_id: 0x0100 }
    }

    pub fn version(&mut self) -> Capabilities {
        let ours = Capabilities { max_msg_fds: Some(8), ..Capabilities::default() };
        let current = kiovec::pci::vfio_user::message::Version::CURRENT;
        let reply = self.ask(command::VERSION, &Capabilities::version_payload(current, Some(&ours)));
        let (version, theirs) = Capabilities::parse_version(&reply.payload).unwrap();
        assert_eq!(version, current);
        theirs
    }

    /// Bytes of a command.
    pub fn message(&mut self, command: u16, payload: &[u8]) -> Vec<u8> {
        self.next_id = self.next_id.wrapping_add(1);
        let size = (Header::LEN + payload.len()) as u32;
        let header = Header { size, ..Header::command(self.next_id, command) };
        [header.as_bytes(), payload].concat()
    }

    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// The next reply, which must come as one message. None at the end of the connection.
    pub fn receive(&self) -> Option<Reply> {
        let mut bytes = vec![0; 2 << 20];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        // What the server has closed with input unread is reset.
        let received = match recvmsg(&self.stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::CONNRESET) => return None,
            received => received.unwrap(),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                fds.extend(files);
            }
        }
        if received.bytes == 0 {
            return None;
        }
        bytes.truncate(received.bytes);
        let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
        assert_eq!(header.size as usize, bytes.len(), "a reply is one message");
        assert!(header.is_reply());
        Some(Reply { header, payload: payload.to_vec(), fds })
    }

    pub fn exchange(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Reply, u32> {
        let message = self.message(command, payload);
        self.send(&message, fds);
        let reply = self.receive().expect("a reply");
        assert_eq!((reply.header.id, reply.header.command), (self.next_id, command));
        match reply.header.failure() {
            None => Ok(reply),
            Some(errno) => {
                assert!(reply.payload.is_empty());
                Err(errno)
            }
        }
    }

    pub fn ask(&mut self, command: u16, payload: &[u8]) -> Reply {
        self.exchange(command, payload, &[]).unwrap()
    }

    pub fn try_ask<T: IntoBytes + Immutable>(&mut self, command: u16, payload: &T) -> Result<Reply, u32> {
        self.exchange(command, payload.as_bytes(), &[])
    }

    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let access = RegionAccess { offset, region, count };
        let reply = self.try_ask(command::REGION_READ, &access)?;
        assert_eq!(reply.parse::<RegionAccess>(), access);
        Ok(reply.payload[16..].to_vec())
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        let reply = self.exchange(command::REGION_WRITE, &[access.as_bytes(), data].concat(), &[])?;
        assert_eq!(reply.payload, access.as_bytes());
        Ok(())
    }

    pub fn map(&mut self, map: &DmaMap, file: Option<&OwnedFd>) -> Result<(), u32> {
        let fds: Vec<BorrowedFd<'_>> = file.iter().map(|file| file.as_fd()).collect();
        let reply = self.exchange(command::DMA_MAP, map.as_bytes(), &fds)?;
        assert!(reply.payload.is_empty());
        Ok(())
    }

    /// Bytes that were unmapped.
    pub fn unmap(&mut self, unmap: &DmaUnmap) -> Result<u64, u32> {
        Ok(self.try_ask(command::DMA_UNMAP, unmap)?.parse::<DmaUnmap>().size)
    }

    pub fn set_irqs(&mut self, set: SetIrqs, data: &[u8], fds: &[&OwnedFd]) -> Result<(), u32> {
        let set = SetIrqs { argsz: (size_of::<SetIrqs>() + data.len()) as u32, ..set };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.exchange(command::DEVICE_SET_IRQS, &[set.as_bytes(), data].concat(), &fds).map(|_| ())
    }
}

pub fn map_of(address: u64, size: u64) -> DmaMap {
    DmaMap { argsz: 32, flags: 3, offset: 0, address, size }
}

pub fn unmap_of(address: u64, size: u64) -> DmaUnmap {
    DmaUnmap { argsz: 24, flags: 0, address, size }
}
