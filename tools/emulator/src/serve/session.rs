//! What is said with one client, from its first message to its last.
//!
//! Knows commands of the protocol, their order and their replies; must not know what they do to the
//! controller, nor who comes next.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiovec::pci::vfio_user::message::{
    DEVICE_PCI, DEVICE_RESETS, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, PCI_IRQS, PCI_REGIONS, RegionAccess,
    RegionInfo, SetIrqs, Version, command,
};
use kiovec::pci::vfio_user::{Capabilities, Limits, Message, Socket, SocketError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::memory::{ClientMemory, MAX_MAPPINGS};
use super::{interrupts, regions};
use crate::doorbells::Doorbells;
use crate::function::Shared;

/// Bytes of data in one message.
const MAX_TRANSFER: u32 = 1 << 20;
/// Files with one message.
const MAX_FDS: usize = 16;
/// How long the first message may take, the rest of any, and a reply to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Writes in one REGION_WRITE_MULTI.
const MAX_WRITES: u64 = 1024;

/// Why a client is served no longer.
#[derive(Debug)]
#[non_exhaustive]
pub enum End {
    /// It has closed its connection.
    Closed,
    /// The server was stopped.
    Stopped,
    /// It has truncated a file that it had shared for DMA.
    Truncated,
    /// It speaks another version of the protocol, or none.
    Version(String),
    /// It has sent what is no command.
    NotACommand,
    /// Its messages cannot be read, or it does not take replies.
    Socket(SocketError),
    /// The server cannot wait for messages.
    Os(std::io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Closed => f.write_str("it has closed the connection"),
            End::Stopped => f.write_str("the server was stopped"),
            End::Truncated => f.write_str("disconnected: it has truncated a file that it shared for DMA"),
            End::Version(why) => write!(f, "disconnected: {why}"),
            End::NotACommand => f.write_str("disconnected: it has sent what is no command"),
            End::Socket(error) => write!(f, "disconnected: {error}"),
            End::Os(error) => write!(f, "disconnected: cannot wait for messages: {error}"),
        }
    }
}

impl From<SocketError> for End {
    fn from(error: SocketError) -> End {
        if matches!(error, SocketError::Closed) { End::Closed } else { End::Socket(error) }
    }
}

/// What a command is answered with.
#[derive(Default)]
struct Reply {
    payload: Vec<u8>,
    /// The file of the doorbells goes with it.
    doorbells: bool,
}

impl Reply {
    fn of<T: IntoBytes + Immutable>(payload: &T) -> Reply {
        Reply { payload: payload.as_bytes().to_vec(), doorbells: false }
    }
}

/// DEVICE_GET_REGION_IO_FDS and its reply, before the list of files: there are none.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RegionIoFds {
    argsz: u32,
    flags: u32,
    index: u32,
    count: u32,
}

/// One write of REGION_WRITE_MULTI; at most 8 bytes of data.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct OneWrite {
    access: RegionAccess,
    data: [u8; 8],
}

pub(super) struct Session<'a> {
    socket: Socket,
    shared: &'a Arc<Shared>,
    doorbells: Arc<Doorbells>,
    memory: ClientMemory,
    /// A version was agreed on.
    agreed: bool,
    /// REGION_WRITE_MULTI was agreed on.
    write_multiple: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        stream: UnixStream,
        shared: &'a Arc<Shared>,
        doorbells: Arc<Doorbells>,
        memory: ClientMemory,
    ) -> Session<'a> {
        let payload = MAX_TRANSFER as usize + size_of::<RegionAccess>();
        let socket = Socket::new(stream, Limits { payload, fds: MAX_FDS });
        Session { socket, shared, doorbells, memory, agreed: false, write_multiple: false }
    }

    /// Answers messages until something ends it. `stop` is readable when the server is to end.
    pub(super) fn run(mut self, stop: BorrowedFd<'_>) -> End {
        // When the first message must be there, or the one that has begun: others wait for their turn.
        let mut deadline = Instant::now().checked_add(PATIENCE);
        loop {
            if let Err(end) = self.wait(stop, deadline) {
                return end;
            }
            let answered = match self.socket.try_receive() {
                Ok(Some(message)) => {
                    deadline = None;
                    self.answer(message)
                }
                Ok(None) => {
                    deadline = deadline.or_else(|| Instant::now().checked_add(PATIENCE));
                    Ok(())
                }
                Err(error) => Err(error.into()),
            };
            if let Err(end) = answered {
                return end;
            }
        }
    }

    /// Waits until there is something to read.
    fn wait(&self, stop: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<(), End> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left
                .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let mut events = [
                PollFd::new(&stop, PollFlags::IN),
                PollFd::new(self.memory.lost(), PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            match poll(&mut events, left.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(End::Os(errno.into())),
                Ok(0) => return Err(SocketError::Timeout.into()),
                Ok(_) => {}
            }
            let [stop, lost, _] = events.map(|event| !event.revents().is_empty());
            return match (stop, lost) {
                (true, _) => Err(End::Stopped),
                (_, true) => Err(End::Truncated),
                _ => Ok(()),
            };
        }
    }

    fn answer(&mut self, message: Message) -> Result<(), End> {
        let header = message.header;
        if !header.is_command() {
            return Err(End::NotACommand);
        }
        let deadline = Instant::now() + PATIENCE;
        let (answer, end) = match self.execute(message) {
            Ok(answer) => (answer, None),
            Err(end) => (Err(Errno::INVAL), Some(end)),
        };
        if header.wants_reply() {
            match answer {
                Ok(reply) => {
                    let file = self.doorbells.file().filter(|_| reply.doorbells);
                    let (file, payload) = (file.as_slice(), &[&reply.payload[..]]);
                    self.socket.send(header.reply(), payload, file, deadline)?;
                }
                Err(errno) => {
                    let reply = header.error_reply(errno.raw_os_error().unsigned_abs());
                    self.socket.send(reply, &[], &[], deadline)?;
                }
            }
        }
        end.map_or(Ok(()), Err)
    }

    /// Does what a command asks for. An `End` if nothing that follows can be understood.
    fn execute(&mut self, message: Message) -> Result<Result<Reply, Errno>, End> {
        match (message.header.command, self.agreed) {
            (command::VERSION, false) => self.version(&message).map(Ok),
            (command::VERSION, true) => Ok(Err(Errno::INVAL)),
            (_, false) => Err(End::Version("its first message is not VERSION".into())),
            _ => Ok(self.command(message)),
        }
    }

    fn version(&mut self, message: &Message) -> Result<Reply, End> {
        let (theirs, capabilities) =
            Capabilities::parse_version(&message.payload).map_err(|error| End::Version(error.to_string()))?;
        let ours = Version::CURRENT;
        if theirs.major != ours.major {
            let Version { major, minor } = theirs;
            let why = format!("it speaks vfio-user {major}.{minor}; this server speaks {}", ours.major);
            return Err(End::Version(format!("{why}.{}", ours.minor)));
        }
        self.agreed = true;
        self.write_multiple = capabilities.write_multiple == Some(true);
        let answer = Capabilities {
            max_msg_fds: Some(MAX_FDS as u64),
            max_data_xfer_size: Some(MAX_TRANSFER.into()),
            max_dma_maps: Some(MAX_MAPPINGS as u64),
            pgsizes: Some(4096),
            write_multiple: self.write_multiple.then_some(true),
            ..Capabilities::default()
        };
        // Who has sent no JSON may not expect any.
        let answer = (message.payload.len() > size_of::<Version>()).then_some(&answer);
        let version = Version { minor: ours.minor.min(theirs.minor), ..ours };
        Ok(Reply { payload: Capabilities::version_payload(version, answer), doorbells: false })
    }

    fn command(&mut self, message: Message) -> Result<Reply, Errno> {
        match message.header.command {
            command::DMA_MAP => {
                let (map, _) = parse::<DmaMap>(&message)?;
                at_least(map.argsz, size_of::<DmaMap>())?;
                self.memory.map(&mut self.shared.controller(), &map, &message.fds)?;
                Ok(Reply::default())
            }
            command::DMA_UNMAP => {
                let (unmap, _) = parse::<DmaUnmap>(&message)?;
                at_least(unmap.argsz, size_of::<DmaUnmap>())?;
                let size = self.memory.unmap(&mut self.shared.controller(), &unmap)?;
                Ok(Reply::of(&DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, size, ..unmap }))
            }
            command::DEVICE_GET_INFO => {
                let (asked, _) = parse::<DeviceInfo>(&message)?;
                at_least(asked.argsz, size_of::<DeviceInfo>())?;
                let (argsz, flags) = (size_of::<DeviceInfo>() as u32, DEVICE_PCI | DEVICE_RESETS);
                Ok(Reply::of(&DeviceInfo { argsz, flags, num_regions: PCI_REGIONS, num_irqs: PCI_IRQS }))
            }
            command::DEVICE_GET_REGION_INFO => {
                let (asked, _) = parse::<RegionInfo>(&message)?;
                let (payload, doorbells) = regions::info(&mut self.shared.controller(), &asked)?;
                Ok(Reply { payload, doorbells })
            }
            command::DEVICE_GET_REGION_IO_FDS => {
                let (asked, _) = parse::<RegionIoFds>(&message)?;
                at_least(asked.argsz, size_of::<RegionIoFds>())?;
                let argsz = size_of::<RegionIoFds>() as u32;
                let none = RegionIoFds { argsz, flags: 0, index: asked.index, count: 0 };
                if asked.index < PCI_REGIONS { Ok(Reply::of(&none)) } else { Err(Errno::INVAL) }
            }
            command::DEVICE_GET_IRQ_INFO => {
                let (asked, _) = parse::<IrqInfo>(&message)?;
                Ok(Reply::of(&interrupts::info(self.shared.controller().interrupts(), &asked)?))
            }
            command::DEVICE_SET_IRQS => {
                let (set, data) = parse::<SetIrqs>(&message)?;
                let data = data.to_vec();
                interrupts::set(self.shared.controller().interrupts(), &set, &data, message.fds)?;
                Ok(Reply::default())
            }
            command::REGION_READ => self.read(&message),
            command::REGION_WRITE => {
                let (access, data) = parse::<RegionAccess>(&message)?;
                let data = data.get(..access.count as usize).ok_or(Errno::INVAL)?;
                regions::write(&mut self.shared.controller(), access.region, access.offset, data)?;
                Ok(Reply::of(&access))
            }
            command::REGION_WRITE_MULTI if self.write_multiple => self.write_multi(&message),
            command::DEVICE_RESET => {
                self.shared.controller().function_reset();
                Ok(Reply::default())
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn read(&self, message: &Message) -> Result<Reply, Errno> {
        let (access, _) = parse::<RegionAccess>(message)?;
        if access.count > MAX_TRANSFER {
            return Err(Errno::INVAL);
        }
        let RegionAccess { offset, region, count } = access;
        let data = regions::read(&mut self.shared.controller(), region, offset, count)?;
        let payload = [access.as_bytes(), &data].concat();
        Ok(Reply { payload, doorbells: false })
    }

    /// Several writes; the first that is wrong ends it.
    fn write_multi(&self, message: &Message) -> Result<Reply, Errno> {
        let (count, mut rest) = parse::<u64>(message)?;
        if count > MAX_WRITES {
            return Err(Errno::INVAL);
        }
        let mut controller = self.shared.controller();
        for _ in 0..count {
            let (write, later) = OneWrite::read_from_prefix(rest).map_err(|_| Errno::INVAL)?;
            let data = write.data.get(..write.access.count as usize).ok_or(Errno::INVAL)?;
            regions::write(&mut controller, write.access.region, write.access.offset, data)?;
            rest = later;
        }
        Ok(Reply::of(&count))
    }
}

fn parse<T: FromBytes>(message: &Message) -> Result<(T, &[u8]), Errno> {
    message.parse().ok_or(Errno::INVAL)
}

/// `argsz` is what the sender has room for.
fn at_least(argsz: u32, len: usize) -> Result<(), Errno> {
    if argsz as usize >= len { Ok(()) } else { Err(Errno::INVAL) }
}
