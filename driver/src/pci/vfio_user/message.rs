//! The messages of the protocol, byte for byte: a header, a payload, and what rights go with them.
//!
//! Knows formats, as the vfio-user specification has them (QEMU, docs/interop/vfio-user.rst, version
//! 0.1); must not know sockets, or what is done about a message. Numbers are in the byte order of the
//! machine that both ends run on.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Commands, as in [`Header::command`].
pub mod command {
    /// Agree on a version and on capabilities: the first message of a connection.
    pub const VERSION: u16 = 1;
    /// Make memory of the client's reachable.
    pub const DMA_MAP: u16 = 2;
    /// End what DMA_MAP began. The reply says that no access can happen any more.
    pub const DMA_UNMAP: u16 = 3;
    /// What the device is.
    pub const DEVICE_GET_INFO: u16 = 4;
    /// Where a region is, and what of it can be mapped.
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    /// Files that stand for parts of a region.
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    /// How many interrupts of a kind there are.
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    /// Set interrupts up.
    pub const DEVICE_SET_IRQS: u16 = 8;
    /// Read a region.
    pub const REGION_READ: u16 = 9;
    /// Write a region.
    pub const REGION_WRITE: u16 = 10;
    /// From the server: read memory of the client's.
    pub const DMA_READ: u16 = 11;
    /// From the server: write memory of the client's.
    pub const DMA_WRITE: u16 = 12;
    /// Reset the device.
    pub const DEVICE_RESET: u16 = 13;
    /// Several region writes in one message, where [`write_multiple`](super::super::Capabilities) is agreed on.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// Features of the device, migration above all.
    pub const DEVICE_FEATURE: u16 = 16;
    /// Migration data, out of the device.
    pub const MIG_DATA_READ: u16 = 17;
    /// Migration data, into the device.
    pub const MIG_DATA_WRITE: u16 = 18;

    /// What a command is called in a message to people.
    pub fn name(command: u16) -> &'static str {
        match command {
            VERSION => "VERSION",
            DMA_MAP => "DMA_MAP",
            DMA_UNMAP => "DMA_UNMAP",
            DEVICE_GET_INFO => "DEVICE_GET_INFO",
            DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            REGION_READ => "REGION_READ",
            REGION_WRITE => "REGION_WRITE",
            DMA_READ => "DMA_READ",
            DMA_WRITE => "DMA_WRITE",
            DEVICE_RESET => "DEVICE_RESET",
            REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
            DEVICE_FEATURE => "DEVICE_FEATURE",
            MIG_DATA_READ => "MIG_DATA_READ",
            MIG_DATA_WRITE => "MIG_DATA_WRITE",
            _ => "an unknown command",
        }
    }
}

/// The type, in [`Header::flags`]: 0 is a command, 1 a reply.
const TYPE: u32 = 0xf;
const TYPE_REPLY: u32 = 1;
/// No reply is wanted.
const NO_REPLY: u32 = 1 << 4;
/// The command failed; [`Header::error`] says why.
const ERROR: u32 = 1 << 5;

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command; its reply has the same.
    pub id: u16,
    /// One of [`command`]. Some servers leave it 0 in replies.
    pub command: u16,
    /// Bytes of the whole message, header included.
    pub size: u32,
    /// Type, "no reply", "error".
    pub flags: u32,
    /// In a reply that is an error: an errno, or 0. Reserved in commands.
    pub error: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = size_of::<Header>();

    /// A command, whose size is filled in when it is sent.
    pub const fn command(id: u16, command: u16) -> Header {
        Header { id, command, size: 0, flags: 0, error: 0 }
    }

    /// The same command, with no reply wanted.
    pub const fn without_reply(self) -> Header {
        Header { flags: self.flags | NO_REPLY, ..self }
    }

    /// The reply to this command: it succeeded.
    pub const fn reply(&self) -> Header {
        Header { id: self.id, command: self.command, size: 0, flags: TYPE_REPLY, error: 0 }
    }

    /// The reply to this command: it failed with an errno. Such a reply has no payload.
    pub const fn error_reply(&self, errno: u32) -> Header {
        Header { flags: TYPE_REPLY | ERROR, error: errno, ..self.reply() }
    }

    /// Whether it is a command (type 0).
    pub const fn is_command(&self) -> bool {
        self.flags & TYPE == 0
    }

    /// Whether it is a reply (type 1).
    pub const fn is_reply(&self) -> bool {
        self.flags & TYPE == TYPE_REPLY
    }

    /// Whether this command is to be answered.
    pub const fn wants_reply(&self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// Of a reply: the errno that it reports, which may be 0 for "not said", or `None` for success.
    pub const fn failure(&self) -> Option<u32> {
        if self.flags & ERROR != 0 { Some(self.error) } else { None }
    }
}

/// A message that was received.
#[derive(Debug)]
pub struct Message {
    /// Its header; `size` is what it came with.
    pub header: Header,
    /// What followed the header.
    pub payload: Vec<u8>,
    /// The files that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The structure that the payload begins with, and what follows it; `None` where the payload is
    /// shorter.
    pub fn parse<T: FromBytes>(&self) -> Option<(T, &[u8])> {
        T::read_from_prefix(&self.payload).ok()
    }
}

/// Payload of VERSION, before the capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// The same on both sides, or they do not understand each other.
    pub major: u16,
    /// In the reply: at most what was proposed.
    pub minor: u16,
}

impl Version {
    /// What this crate speaks.
    pub const CURRENT: Version = Version { major: 0, minor: 1 };
}

/// The server may read the mapping ([`DmaMap::flags`]).
pub const DMA_READABLE: u32 = 1 << 0;
/// The server may write the mapping ([`DmaMap::flags`]).
pub const DMA_WRITEABLE: u32 = 1 << 1;

/// Payload of DMA_MAP. The file comes with the message; without one, the server is to use DMA_READ and
/// DMA_WRITE. The reply has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`DMA_READABLE`], [`DMA_WRITEABLE`].
    pub flags: u32,
    /// Where the memory is in the file.
    pub offset: u64,
    /// The IOVA.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Payload of DMA_UNMAP and of its reply. Names exactly one earlier mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes that the reply's payload may have.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The IOVA.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// The device knows DEVICE_RESET ([`DeviceInfo::flags`]).
pub const DEVICE_RESETS: u32 = 1 << 0;
/// The device is a PCI function ([`DeviceInfo::flags`]).
pub const DEVICE_PCI: u32 = 1 << 1;

/// Payload of DEVICE_GET_INFO and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes that the reply's payload may have; in the reply, that it needs.
    pub argsz: u32,
    /// [`DEVICE_RESETS`], [`DEVICE_PCI`].
    pub flags: u32,
    /// Regions: 9 of a PCI function, by their `VFIO_PCI_*_REGION_INDEX`.
    pub num_regions: u32,
    /// Kinds of interrupts: 5 of a PCI function, by their `VFIO_PCI_*_IRQ_INDEX`.
    pub num_irqs: u32,
}

/// Region index of BAR0.
pub const REGION_BAR0: u32 = 0;
/// Region index of configuration space.
pub const REGION_CONFIG: u32 = 7;
/// Regions of a PCI function.
pub const PCI_REGIONS: u32 = 9;
/// Kinds of interrupts of a PCI function: INTx, MSI, MSI-X, error, request.
pub const PCI_IRQS: u32 = 5;
/// IRQ index of MSI-X.
pub const IRQ_MSIX: u32 = 2;

/// The region can be read ([`RegionInfo::flags`]).
pub const REGION_READABLE: u32 = 1 << 0;
/// The region can be written ([`RegionInfo::flags`]).
pub const REGION_WRITEABLE: u32 = 1 << 1;
/// The region, or what its sparse areas say, can be mapped from the file that came with the reply
/// ([`RegionInfo::flags`]).
pub const REGION_MMAP: u32 = 1 << 2;
/// There is a capability list at [`RegionInfo::cap_offset`] ([`RegionInfo::flags`]).
pub const REGION_CAPS: u32 = 1 << 3;

/// Payload of DEVICE_GET_REGION_INFO; in the reply, capabilities follow it
/// ([`SparseArea::list`](super::SparseArea::list)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes that the reply's payload may have; in the reply, that it needs.
    pub argsz: u32,
    /// `REGION_*`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where the first capability begins, from the start of this structure.
    pub cap_offset: u32,
    /// Bytes of the region.
    pub size: u64,
    /// Where the region begins in the file.
    pub offset: u64,
}

/// Payload of DEVICE_GET_IRQ_INFO and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes that the reply's payload may have; in the reply, that it needs.
    pub argsz: u32,
    /// `VFIO_IRQ_INFO_*`: bit 0 says that eventfds can be set.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// How many of it.
    pub count: u32,
}

/// Payload of DEVICE_SET_IRQS, before its data; eventfds come with the message. The reply has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIrqs {
    /// Bytes of this structure and its data.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_*`.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// The first one.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// Payload of REGION_READ and REGION_WRITE and of their replies. Data follow a write, and the reply to a
/// read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// From the start of the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// Payload of DMA_READ and DMA_WRITE and of their replies. Data follow a write, and the reply to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaAccess {
    /// The IOVA.
    pub address: u64,
    /// Bytes of data.
    pub count: u64,
}

const _: () = {
    assert!(size_of::<Header>() == 16 && size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32 && size_of::<DmaUnmap>() == 24);
    assert!(size_of::<DeviceInfo>() == 16 && size_of::<RegionInfo>() == 32);
    assert!(size_of::<IrqInfo>() == 16 && size_of::<SetIrqs>() == 20);
    assert!(size_of::<RegionAccess>() == 16 && size_of::<DmaAccess>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_specified() {
        let reply = Header { size: 0x1234, ..Header::command(0x0102, command::DMA_MAP).error_reply(17) };
        let mut bytes = Vec::new();
        bytes.extend(0x0102u16.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend(0x1234u32.to_ne_bytes());
        bytes.extend(0x21u32.to_ne_bytes());
        bytes.extend(17u32.to_ne_bytes());
        assert_eq!(reply.as_bytes(), bytes);
        assert_eq!(Header::read_from_bytes(&bytes).unwrap(), reply);
    }

    #[test]
    fn a_message_is_a_command_or_a_reply_or_neither() {
        let command = Header::command(1, command::REGION_WRITE);
        assert!(command.is_command() && !command.is_reply() && command.wants_reply());
        assert!(!command.without_reply().wants_reply() && command.without_reply().is_command());
        let reply = command.reply();
        assert!(reply.is_reply() && !reply.is_command() && reply.failure().is_none());
        assert_eq!(command.error_reply(0).failure(), Some(0));
        let neither = Header { flags: 2, ..command };
        assert!(!neither.is_command() && !neither.is_reply());
    }

    #[test]
    fn a_payload_that_is_too_short_is_none() {
        let mut message = Message { header: Header::command(0, 0), payload: vec![0; 16], fds: vec![] };
        message.payload.extend([1, 2]);
        let (access, data) = message.parse::<RegionAccess>().unwrap();
        assert_eq!((access.count, data), (0, &[1, 2][..]));
        message.payload.truncate(15);
        assert!(message.parse::<RegionAccess>().is_none());
    }
}
