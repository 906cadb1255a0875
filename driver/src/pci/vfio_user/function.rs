//! The function behind a connection: configuration space, registers, doorbells, reset.
//!
//! Knows which messages these take; must not know what NVMe puts in registers, except for where the
//! doorbells begin.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::super::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY_SPACE, DoorbellPage, Function, Notice};
use super::connect::{self, negotiate};
use super::connection::Connection;
use super::domain::PeerDomain;
use super::doorbells::Doorbells;
use super::message::{
    DEVICE_PCI, DEVICE_RESETS, DeviceInfo, IrqInfo, Message, REGION_BAR0, REGION_CONFIG, REGION_MMAP,
    RegionAccess, RegionInfo, command,
};
use super::sparse::SparseArea;
use crate::memory::Domain;
use crate::{Error, Result};

/// How large a list of areas may be.
const REGION_INFO_BYTES: u32 = 4096;

/// How long a server may take, up to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// From before a request is sent until its reply is there, whatever the server asks for meanwhile.
    /// Also for the connection itself, and for a message that is not answered. 10 s unless told.
    pub timeout: Duration,
    /// The same for a device reset, of which the protocol says that it may take long. 60 s unless told.
    pub reset_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { timeout: Duration::from_secs(10), reset_timeout: Duration::from_secs(60) }
    }
}

/// How doorbells reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorbellPath {
    /// Stores to memory of a file of the server's.
    Mapped {
        /// Nobody can make the file shorter. If somebody does so with one that is not sealed, the next
        /// doorbell is SIGBUS, which ends this process unless there is a
        /// [handler](crate::install_sigbus_handler): then the connection is lost.
        sealed: bool,
    },
    /// A REGION_WRITE each, with no reply wanted: a system call, after whoever is using the connection.
    Messages,
}

/// A controller in another process, behind a vfio-user socket.
///
/// **What is waited for.** Each request has one deadline ([`Options`]). After one that passed, and after
/// anything that a server must not say, the connection is lost for good: registers read as all ones, and
/// the error that follows from that is [`Error::Disconnected`], with the cause.
///
/// **Who reads memory.** A server is given the files of all memory of the space, so it is trusted with
/// what is in there. One that asks by message instead (DMA_READ, DMA_WRITE) is answered while a reply is
/// awaited, at every register access, and in [`pause`](Function::pause): at bring-up and during admin
/// commands at once, but while queues are polled only when the controller is looked at, once in 65,536
/// idle polls. Such a server works, and is slow.
///
/// **When it dies.** What it had mapped is never unmapped without its word, since a child of it may have
/// the memory still: it stays reserved as long as this process lives.
#[derive(Debug)]
pub struct VfioUser {
    connection: Arc<Connection>,
    domain: Arc<PeerDomain>,
    options: Options,
    /// Bytes of configuration space, and of BAR0.
    config: u64,
    bar0: u64,
    /// Bytes of data in one message.
    transfer: usize,
    doorbells: Doorbells,
    resets: bool,
}

impl VfioUser {
    /// Connects to the server that listens at a socket, or at the socket named `cntrl` in a directory.
    ///
    /// Errors say whether there is no socket, nobody listening, or something else than a vfio-user server
    /// with a PCI function.
    pub fn open(path: impl AsRef<Path>) -> Result<VfioUser> {
        VfioUser::open_with(path, Options::default())
    }

    /// The same with times of one's own.
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<VfioUser> {
        let path = path.as_ref();
        let name = format!("vfio-user:{}", path.display());
        let stream = connect::connect(&name, path, options.timeout)?;
        VfioUser::over(name, stream, options)
    }

    /// The same over a stream that is connected already; `name` is for messages.
    pub fn over(name: impl Into<String>, stream: UnixStream, options: Options) -> Result<VfioUser> {
        let connection = Arc::new(connect::over(name.into(), stream, options.timeout));
        let capabilities = negotiate(&connection)?;
        let transfer = usize::try_from(capabilities.data_xfer_size()).unwrap_or(usize::MAX);
        let device = device_info(&connection)?;
        let (config, _, _) = region_info(&connection, REGION_CONFIG)?;
        let (bar0, payload, files) = region_info(&connection, REGION_BAR0)?;
        let unsupported = |what| Error::Unsupported { device: connection.name().into(), what };
        let areas = SparseArea::list(&payload).map_err(|error| connection.lose(format!("BAR0: {error}")))?;
        let doorbells = Doorbells::of(&bar0, areas.as_deref(), &files).map_err(unsupported)?;
        let function = VfioUser {
            domain: Arc::new(PeerDomain::new(Arc::clone(&connection), capabilities)),
            options,
            config: config.size,
            bar0: bar0.size,
            transfer,
            doorbells,
            resets: device.flags & DEVICE_RESETS != 0,
            connection,
        };
        function.set_command(COMMAND_MEMORY_SPACE, true)?;
        Ok(function)
    }

    /// How doorbells reach the server. Decided when it was opened.
    pub fn doorbell_path(&self) -> DoorbellPath {
        match self.doorbells {
            Doorbells::Mapped { sealed, .. } => DoorbellPath::Mapped { sealed },
            Doorbells::Posted => DoorbellPath::Messages,
        }
    }

    /// How many interrupts of a kind (`VFIO_PCI_*_IRQ_INDEX`) the function has. This driver polls, and
    /// uses none.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        let argsz = size_of::<IrqInfo>() as u32;
        let asked = IrqInfo { argsz, flags: 0, index, count: 0 };
        let reply = self.connection.request(command::DEVICE_GET_IRQ_INFO, &[asked.as_bytes()])?;
        let (info, _) = parse::<IrqInfo>(&self.connection, &reply)?;
        Ok(info)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        for (index, piece) in data.chunks_mut(self.transfer).enumerate() {
            let offset = offset + (index * self.transfer) as u64;
            let access = RegionAccess { offset, region, count: piece.len() as u32 };
            let reply = self.connection.request(command::REGION_READ, &[access.as_bytes()])?;
            let (got, bytes) = parse::<RegionAccess>(&self.connection, &reply)?;
            match bytes.get(..piece.len()).filter(|_| got.count == access.count) {
                Some(bytes) => piece.copy_from_slice(bytes),
                None => return Err(self.lose_size(command::REGION_READ, &access, &reply)),
            }
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        for (index, piece) in data.chunks(self.transfer).enumerate() {
            let offset = offset + (index * self.transfer) as u64;
            let access = RegionAccess { offset, region, count: piece.len() as u32 };
            let reply = self.connection.request(command::REGION_WRITE, &[access.as_bytes(), piece])?;
            let (got, _) = parse::<RegionAccess>(&self.connection, &reply)?;
            if got.count != access.count {
                return Err(self.lose_size(command::REGION_WRITE, &access, &reply));
            }
        }
        Ok(())
    }

    fn lose_size(&self, command: u16, asked: &RegionAccess, reply: &Message) -> Error {
        let (bytes, name) = (reply.payload.len(), command::name(command));
        self.connection.lose(format!("{bytes} bytes answered {name} of {} bytes", asked.count))
    }

    /// Whether a register of `len` bytes is there.
    fn check_register(&self, offset: u64, len: u64) -> Result<()> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bar0);
        if inside && offset.is_multiple_of(len) {
            return Ok(());
        }
        Err(Error::InvalidInput(format!("{}: BAR0 has no register at {offset:#x}", self.name())))
    }

    fn check_config(&self, offset: u16, len: usize) -> Result<()> {
        if u64::from(offset) + len as u64 <= self.config {
            return Ok(());
        }
        let (name, size) = (self.name(), self.config);
        let what = format!("{name}: configuration space ends at {size:#x}, before {offset:#x}");
        Err(Error::InvalidInput(what))
    }

    /// Gives the connection up if doorbells do not reach the server any more.
    fn look_at_doorbells(&self) {
        if self.doorbells.are_lost() && !self.connection.is_lost() {
            self.connection.lose_soon("its server has truncated the file of its doorbells".into());
        }
    }

    /// A register. One of a lost connection is all ones.
    fn read_register<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        self.check_register(offset, N as u64)?;
        self.look_at_doorbells();
        let mut bytes = [0; N];
        match self.read(REGION_BAR0, offset, &mut bytes) {
            Err(Error::Disconnected { .. }) => Ok([0xff; N]),
            read => read.map(|()| bytes),
        }
    }
}

fn parse<'a, T: zerocopy::FromBytes>(connection: &Connection, reply: &'a Message) -> Result<(T, &'a [u8])> {
    reply.parse::<T>().ok_or_else(|| {
        let (bytes, name) = (reply.payload.len(), command::name(reply.header.command));
        connection.lose(format!("a reply to {name} with {bytes} bytes, and {} is the least", size_of::<T>()))
    })
}

fn device_info(connection: &Connection) -> Result<DeviceInfo> {
    let asked = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, flags: 0, num_regions: 0, num_irqs: 0 };
    let reply = connection.request(command::DEVICE_GET_INFO, &[asked.as_bytes()])?;
    let (info, _) = parse::<DeviceInfo>(connection, &reply)?;
    if info.flags & DEVICE_PCI == 0 || info.num_regions <= REGION_CONFIG {
        let what = "it is no PCI function; name the socket of an NVMe controller".into();
        return Err(Error::Unsupported { device: connection.name().into(), what });
    }
    Ok(info)
}

/// What a server says of a region, the reply's whole payload, and the files that came with it.
fn region_info(connection: &Connection, index: u32) -> Result<(RegionInfo, Vec<u8>, Vec<OwnedFd>)> {
    let asked = RegionInfo { argsz: REGION_INFO_BYTES, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
    let reply = connection.request(command::DEVICE_GET_REGION_INFO, &[asked.as_bytes()])?;
    let (info, _) = parse::<RegionInfo>(connection, &reply)?;
    if info.index != index || info.argsz > REGION_INFO_BYTES {
        let RegionInfo { index: got, argsz, .. } = info;
        return Err(connection.lose(format!("region {index} was asked for: {argsz} bytes on {got} came")));
    }
    if info.flags & REGION_MMAP == 0 && !reply.fds.is_empty() {
        let files = reply.fds.len();
        return Err(
            connection.lose(format!("{files} files came with region {index}, which cannot be mapped"))
        );
    }
    Ok((info, reply.payload, reply.fds))
}

impl Function for VfioUser {
    fn name(&self) -> &str {
        self.connection.name()
    }

    fn domain(&self) -> Arc<dyn Domain> {
        Arc::clone(&self.domain) as _
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        self.check_config(offset, data.len())?;
        self.read(REGION_CONFIG, u64::from(offset), data)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        self.check_config(offset, data.len())?;
        self.write(REGION_CONFIG, u64::from(offset), data)
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        self.read_register(offset).map(u32::from_le_bytes)
    }

    fn read64(&self, offset: u64) -> Result<u64> {
        self.read_register(offset).map(u64::from_le_bytes)
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.check_register(offset, 4)?;
        self.write(REGION_BAR0, offset, &value.to_le_bytes())
    }

    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.check_register(offset, 8)?;
        self.write(REGION_BAR0, offset, &value.to_le_bytes())
    }

    fn doorbells(&self, len: u64) -> Result<DoorbellPage> {
        self.doorbells.page(&self.connection, len, self.bar0).ok_or_else(|| Error::Unsupported {
            device: self.name().into(),
            what: format!("{len:#x} bytes of doorbells do not fit BAR0 of {:#x} bytes", self.bar0),
        })
    }

    fn notice(&self) -> Option<Notice> {
        self.look_at_doorbells();
        self.connection.is_lost().then_some(Notice::Gone)
    }

    fn gone(&self) -> Error {
        self.connection.disconnected()
    }

    fn reset(&self) -> Result<()> {
        if !self.resets {
            let what = "device reset".into();
            return Err(Error::Unsupported { device: self.name().into(), what });
        }
        let mut saved = [0; 2];
        self.config_read(COMMAND, &mut saved)?;
        self.connection.request_within(command::DEVICE_RESET, &[], self.options.reset_timeout)?;
        self.config_write(COMMAND, &saved)
    }

    fn pause(&self) {
        self.connection.serve();
        std::thread::yield_now();
    }
}

impl Drop for VfioUser {
    fn drop(&mut self) {
        // A server should do so when its client is gone; the sooner it stops writing to memory, the better.
        if !self.connection.is_lost() {
            let _ = self.set_command(COMMAND_BUS_MASTER, false);
        }
    }
}
