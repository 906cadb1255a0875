//! Submission queue entries (Base 2.0, section 3.3.3.1) and the commands that this driver builds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A submission queue entry, 64 bytes (Base 2.0, section 3.3.3.1, Common Command Format).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(64))]
pub struct Command {
    /// Opcode: one of [`admin_opcode`] or [`io_opcode`], by the queue.
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// Command Identifier, unique among the outstanding commands of its submission queue.
    pub cid: u16,
    /// Namespace Identifier.
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Metadata Pointer.
    pub mptr: u64,
    /// Data Pointer: PRP entry 1 and 2, or one SGL descriptor.
    pub dptr: [u64; 2],
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}

const _: () = assert!(size_of::<Command>() == 64);

/// FUSE: the first command of a fused operation (Base 2.0, section 3.3.3.1, CDW0 bits 9:8).
pub const FUSE_FIRST: u8 = 0b01;
/// FUSE: the second command of a fused operation (Base 2.0, section 3.3.3.1, CDW0 bits 9:8).
pub const FUSE_SECOND: u8 = 0b10;
/// The bits of [`Command::flags`] that hold FUSE (Base 2.0, section 3.3.3.1).
pub const FUSE_MASK: u8 = 0b11;
/// PSDT: PRPs (Base 2.0, section 3.3.3.1, CDW0 bits 15:14).
pub const PSDT_PRP: u8 = 0b00 << 6;
/// PSDT: SGL for data, MPTR is one contiguous buffer (Base 2.0, section 3.3.3.1, CDW0 bits 15:14).
pub const PSDT_SGL_MPTR_CONTIGUOUS: u8 = 0b01 << 6;
/// PSDT: SGL for data, MPTR is an SGL segment (Base 2.0, section 3.3.3.1, CDW0 bits 15:14).
pub const PSDT_SGL_MPTR_SGL: u8 = 0b10 << 6;
/// The bits of [`Command::flags`] that hold PSDT (Base 2.0, section 3.3.3.1).
pub const PSDT_MASK: u8 = 0b11 << 6;

/// The NSID that stands for all namespaces (Base 2.0, section 3.2.1.1, broadcast value).
pub const NSID_ALL: u32 = 0xffff_ffff;

/// CDW11 of Create I/O queue commands: Physically Contiguous (Base 2.0, sections 5.4 and 5.5).
pub const QUEUE_PC: u32 = 1 << 0;
/// CDW11 of Create I/O Completion Queue: Interrupts Enabled (Base 2.0, section 5.4).
pub const CQ_IEN: u32 = 1 << 1;

/// CDW12 of read and write: Limited Retry (NVM Command Set 1.0, sections 3.2.4 and 3.2.6).
pub const RW_LR: u32 = 1 << 31;
/// CDW12 of read and write: Force Unit Access (NVM Command Set 1.0, sections 3.2.4 and 3.2.6).
pub const RW_FUA: u32 = 1 << 30;
/// CDW12 of write zeroes: Deallocate (NVM Command Set 1.0, section 3.2.8).
pub const WZ_DEAC: u32 = 1 << 25;

/// CDW11 of dataset management: Integral Dataset for Read (NVM Command Set 1.0, section 3.2.3).
pub const DSM_INTEGRAL_READ: u32 = 1 << 0;
/// CDW11 of dataset management: Integral Dataset for Write (NVM Command Set 1.0, section 3.2.3).
pub const DSM_INTEGRAL_WRITE: u32 = 1 << 1;
/// CDW11 of dataset management: Deallocate (NVM Command Set 1.0, section 3.2.3).
pub const DSM_DEALLOCATE: u32 = 1 << 2;

/// Opcodes of the Admin command set (Base 2.0, section 5, Opcodes for Admin Commands).
pub mod admin_opcode {
    /// Delete I/O Submission Queue (Base 2.0, section 5.7).
    pub const DELETE_IO_SQ: u8 = 0x00;
    /// Create I/O Submission Queue (Base 2.0, section 5.5).
    pub const CREATE_IO_SQ: u8 = 0x01;
    /// Get Log Page (Base 2.0, section 5.16).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue (Base 2.0, section 5.6).
    pub const DELETE_IO_CQ: u8 = 0x04;
    /// Create I/O Completion Queue (Base 2.0, section 5.4).
    pub const CREATE_IO_CQ: u8 = 0x05;
    /// Identify (Base 2.0, section 5.17).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (Base 2.0, section 5.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (Base 2.0, section 5.27).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (Base 2.0, section 5.15).
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (Base 2.0, section 5.2).
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Namespace Management (Base 2.0, section 5.23).
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Firmware Commit (Base 2.0, section 5.12).
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    /// Firmware Image Download (Base 2.0, section 5.13).
    pub const FIRMWARE_DOWNLOAD: u8 = 0x11;
    /// Device Self-test (Base 2.0, section 5.9).
    pub const DEVICE_SELF_TEST: u8 = 0x14;
    /// Namespace Attachment (Base 2.0, section 5.22).
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Keep Alive (Base 2.0, section 5.18).
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Directive Send (Base 2.0, section 5.11).
    pub const DIRECTIVE_SEND: u8 = 0x19;
    /// Directive Receive (Base 2.0, section 5.10).
    pub const DIRECTIVE_RECEIVE: u8 = 0x1a;
    /// Virtualization Management (Base 2.0, section 5.28).
    pub const VIRTUALIZATION_MANAGEMENT: u8 = 0x1c;
    /// NVMe-MI Send (Base 2.0, section 5.21).
    pub const NVME_MI_SEND: u8 = 0x1d;
    /// NVMe-MI Receive (Base 2.0, section 5.20).
    pub const NVME_MI_RECEIVE: u8 = 0x1e;
    /// Capacity Management (Base 2.0, section 5.3).
    pub const CAPACITY_MANAGEMENT: u8 = 0x20;
    /// Lockdown (Base 2.0, section 5.19).
    pub const LOCKDOWN: u8 = 0x24;
    /// Doorbell Buffer Config (Base 2.0, section 5.8).
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
    /// Fabrics commands (Base 2.0, section 6).
    pub const FABRICS: u8 = 0x7f;
    /// Format NVM (Base 2.0, section 5.14).
    pub const FORMAT_NVM: u8 = 0x80;
    /// Security Send (Base 2.0, section 5.26).
    pub const SECURITY_SEND: u8 = 0x81;
    /// Security Receive (Base 2.0, section 5.25).
    pub const SECURITY_RECEIVE: u8 = 0x82;
    /// Sanitize (Base 2.0, section 5.24).
    pub const SANITIZE: u8 = 0x84;
    /// Get LBA Status (NVM Command Set 1.0, section 4.2.1).
    pub const GET_LBA_STATUS: u8 = 0x86;

    /// The name of an Admin command for messages (Base 2.0, section 5).
    pub const fn name(opcode: u8) -> &'static str {
        match opcode {
            DELETE_IO_SQ => "Delete I/O Submission Queue",
            CREATE_IO_SQ => "Create I/O Submission Queue",
            GET_LOG_PAGE => "Get Log Page",
            DELETE_IO_CQ => "Delete I/O Completion Queue",
            CREATE_IO_CQ => "Create I/O Completion Queue",
            IDENTIFY => "Identify",
            ABORT => "Abort",
            SET_FEATURES => "Set Features",
            GET_FEATURES => "Get Features",
            ASYNC_EVENT_REQUEST => "Asynchronous Event Request",
            NAMESPACE_MANAGEMENT => "Namespace Management",
            FIRMWARE_COMMIT => "Firmware Commit",
            FIRMWARE_DOWNLOAD => "Firmware Image Download",
            DEVICE_SELF_TEST => "Device Self-test",
            NAMESPACE_ATTACHMENT => "Namespace Attachment",
            KEEP_ALIVE => "Keep Alive",
            DIRECTIVE_SEND => "Directive Send",
            DIRECTIVE_RECEIVE => "Directive Receive",
            VIRTUALIZATION_MANAGEMENT => "Virtualization Management",
            NVME_MI_SEND => "NVMe-MI Send",
            NVME_MI_RECEIVE => "NVMe-MI Receive",
            CAPACITY_MANAGEMENT => "Capacity Management",
            LOCKDOWN => "Lockdown",
            DOORBELL_BUFFER_CONFIG => "Doorbell Buffer Config",
            FABRICS => "Fabrics command",
            FORMAT_NVM => "Format NVM",
            SECURITY_SEND => "Security Send",
            SECURITY_RECEIVE => "Security Receive",
            SANITIZE => "Sanitize",
            GET_LBA_STATUS => "Get LBA Status",
            0xc0.. => "vendor specific Admin command",
            _ => "unknown Admin command",
        }
    }
}

/// Opcodes of the NVM command set (Base 2.0, section 7; NVM Command Set 1.0, section 3.2).
pub mod io_opcode {
    /// Flush (Base 2.0, section 7.1).
    pub const FLUSH: u8 = 0x00;
    /// Write (NVM Command Set 1.0, section 3.2.6).
    pub const WRITE: u8 = 0x01;
    /// Read (NVM Command Set 1.0, section 3.2.4).
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable (NVM Command Set 1.0, section 3.2.7).
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare (NVM Command Set 1.0, section 3.2.1).
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes (NVM Command Set 1.0, section 3.2.8).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (NVM Command Set 1.0, section 3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify (NVM Command Set 1.0, section 3.2.5).
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register (Base 2.0, section 7.3).
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report (Base 2.0, section 7.5).
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire (Base 2.0, section 7.2).
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release (Base 2.0, section 7.4).
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Copy (NVM Command Set 1.0, section 3.2.2).
    pub const COPY: u8 = 0x19;

    /// The name of an I/O command for messages (NVM Command Set 1.0, section 3).
    pub const fn name(opcode: u8) -> &'static str {
        match opcode {
            FLUSH => "Flush",
            WRITE => "Write",
            READ => "Read",
            WRITE_UNCORRECTABLE => "Write Uncorrectable",
            COMPARE => "Compare",
            WRITE_ZEROES => "Write Zeroes",
            DATASET_MANAGEMENT => "Dataset Management",
            VERIFY => "Verify",
            RESERVATION_REGISTER => "Reservation Register",
            RESERVATION_REPORT => "Reservation Report",
            RESERVATION_ACQUIRE => "Reservation Acquire",
            RESERVATION_RELEASE => "Reservation Release",
            COPY => "Copy",
            0x80.. => "vendor specific I/O command",
            _ => "unknown I/O command",
        }
    }
}

/// Controller or Namespace Structure: what Identify returns (Base 2.0, section 5.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cns(pub u8);

impl Cns {
    /// Identify Namespace, NVM command set (NVM Command Set 1.0, section 4.1.5.1).
    pub const NAMESPACE: Cns = Cns(0x00);
    /// Identify Controller (Base 2.0, section 5.17.2.1).
    pub const CONTROLLER: Cns = Cns(0x01);
    /// Active Namespace ID list (Base 2.0, section 5.17.2.2).
    pub const ACTIVE_NAMESPACES: Cns = Cns(0x02);
    /// Namespace Identification Descriptor list (Base 2.0, section 5.17.2.3).
    pub const NAMESPACE_DESCRIPTORS: Cns = Cns(0x03);
    /// I/O Command Set specific Identify Namespace (Base 2.0, section 5.17.2.5).
    pub const COMMAND_SET_NAMESPACE: Cns = Cns(0x05);
    /// I/O Command Set specific Identify Controller (Base 2.0, section 5.17.2.6).
    pub const COMMAND_SET_CONTROLLER: Cns = Cns(0x06);
    /// Active Namespace ID list of one I/O command set (Base 2.0, section 5.17.2.7).
    pub const COMMAND_SET_ACTIVE_NAMESPACES: Cns = Cns(0x07);
    /// I/O Command Set Independent Identify Namespace (Base 2.0, section 5.17.2.8).
    pub const INDEPENDENT_NAMESPACE: Cns = Cns(0x08);
    /// I/O Command Set data structure (Base 2.0, section 5.17.2.21).
    pub const COMMAND_SETS: Cns = Cns(0x1c);
}

/// Command Set Identifier of the NVM command set (Base 2.0, section 5.17.1, CSI).
pub const CSI_NVM: u8 = 0x00;

/// A range of Dataset Management, 16 bytes (NVM Command Set 1.0, section 3.2.3).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DsmRange {
    /// Context Attributes: hints.
    pub context_attributes: u32,
    /// Length in logical blocks; not 0's based.
    pub length: u32,
    /// Starting LBA.
    pub slba: u64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

impl Command {
    /// Identify (Base 2.0, section 5.17). The data pointer is the caller's to fill in.
    pub const fn identify(cns: Cns, nsid: u32, cntid: u16) -> Command {
        let mut command = Command::admin(admin_opcode::IDENTIFY);
        command.nsid = nsid;
        command.cdw10 = (cntid as u32) << 16 | cns.0 as u32;
        command
    }

    /// Create I/O Completion Queue, contiguous, without interrupts (Base 2.0, section 5.4).
    /// `entries` is the true count, 2 to 65536.
    pub const fn create_io_cq(qid: u16, entries: u32, iova: u64) -> Command {
        let mut command = Command::admin(admin_opcode::CREATE_IO_CQ);
        command.dptr = [iova, 0];
        command.cdw10 = queue_size(entries) << 16 | qid as u32;
        command.cdw11 = QUEUE_PC;
        command
    }

    /// Create I/O Submission Queue, contiguous (Base 2.0, section 5.5). `entries` is the true
    /// count, 2 to 65536; `cqid` is the completion queue it reports to.
    pub const fn create_io_sq(qid: u16, entries: u32, iova: u64, cqid: u16) -> Command {
        let mut command = Command::admin(admin_opcode::CREATE_IO_SQ);
        command.dptr = [iova, 0];
        command.cdw10 = queue_size(entries) << 16 | qid as u32;
        command.cdw11 = (cqid as u32) << 16 | QUEUE_PC;
        command
    }

    /// Delete I/O Submission Queue (Base 2.0, section 5.7).
    pub const fn delete_io_sq(qid: u16) -> Command {
        let mut command = Command::admin(admin_opcode::DELETE_IO_SQ);
        command.cdw10 = qid as u32;
        command
    }

    /// Delete I/O Completion Queue (Base 2.0, section 5.6).
    pub const fn delete_io_cq(qid: u16) -> Command {
        let mut command = Command::admin(admin_opcode::DELETE_IO_CQ);
        command.cdw10 = qid as u32;
        command
    }

    /// Set Features, not saved across power cycles (Base 2.0, section 5.27).
    pub const fn set_features(fid: super::FeatureId, cdw11: u32) -> Command {
        let mut command = Command::admin(admin_opcode::SET_FEATURES);
        command.cdw10 = fid.0 as u32;
        command.cdw11 = cdw11;
        command
    }

    /// Get Features, the current value (Base 2.0, section 5.15).
    pub const fn get_features(fid: super::FeatureId) -> Command {
        let mut command = Command::admin(admin_opcode::GET_FEATURES);
        command.cdw10 = fid.0 as u32;
        command
    }

    /// Get Log Page (Base 2.0, section 5.16): `bytes` of the log from `offset`, both multiples of
    /// 4. Retain Asynchronous Event is clear, so reading acknowledges the event.
    pub const fn get_log_page(page: super::LogPage, nsid: u32, offset: u64, bytes: u32) -> Command {
        let dwords = (bytes / 4).saturating_sub(1);
        let mut command = Command::admin(admin_opcode::GET_LOG_PAGE);
        command.nsid = nsid;
        command.cdw10 = (dwords & 0xffff) << 16 | page.0 as u32;
        command.cdw11 = dwords >> 16;
        command.cdw12 = offset as u32;
        command.cdw13 = (offset >> 32) as u32;
        command
    }

    /// Abort (Base 2.0, section 5.1). Bit 0 of completion dword 0 is clear if it was aborted.
    pub const fn abort(sqid: u16, cid: u16) -> Command {
        let mut command = Command::admin(admin_opcode::ABORT);
        command.cdw10 = (cid as u32) << 16 | sqid as u32;
        command
    }

    /// Doorbell Buffer Config (Base 2.0, section 5.8): the shadow doorbells, and the EventIdx of each, a memory
    /// page each.
    pub const fn doorbell_buffer_config(shadows: u64, events: u64) -> Command {
        Command::admin(admin_opcode::DOORBELL_BUFFER_CONFIG).with_prps(shadows, events)
    }

    /// Asynchronous Event Request (Base 2.0, section 5.2).
    pub const fn async_event_request() -> Command {
        Command::admin(admin_opcode::ASYNC_EVENT_REQUEST)
    }

    /// Read (NVM Command Set 1.0, section 3.2.4). `nlb` is 0's based, as on the wire.
    pub const fn read(nsid: u32, slba: u64, nlb: u16) -> Command {
        Command::blocks(io_opcode::READ, nsid, slba, nlb as u32)
    }

    /// Write (NVM Command Set 1.0, section 3.2.6). `nlb` is 0's based, as on the wire.
    pub const fn write(nsid: u32, slba: u64, nlb: u16) -> Command {
        Command::blocks(io_opcode::WRITE, nsid, slba, nlb as u32)
    }

    /// Write Zeroes (NVM Command Set 1.0, section 3.2.8). `nlb` is 0's based, as on the wire.
    pub const fn write_zeroes(nsid: u32, slba: u64, nlb: u16) -> Command {
        Command::blocks(io_opcode::WRITE_ZEROES, nsid, slba, nlb as u32)
    }

    /// Flush (Base 2.0, section 7.1).
    pub const fn flush(nsid: u32) -> Command {
        Command::blocks(io_opcode::FLUSH, nsid, 0, 0)
    }

    /// Dataset Management with the Deallocate attribute (NVM Command Set 1.0, section 3.2.3).
    /// `ranges` is 0's based, as on the wire; the data are that many + 1 [`DsmRange`]s.
    pub const fn deallocate(nsid: u32, ranges: u8) -> Command {
        let mut command = Command::admin(io_opcode::DATASET_MANAGEMENT);
        command.nsid = nsid;
        command.cdw10 = ranges as u32;
        command.cdw11 = DSM_DEALLOCATE;
        command
    }

    /// The same command with PRP entries as its data pointer (Base 2.0, section 4.1.1).
    pub const fn with_prps(mut self, prp1: u64, prp2: u64) -> Command {
        self.dptr = [prp1, prp2];
        self.flags &= !PSDT_MASK;
        self
    }

    /// The same command with an SGL descriptor as its data pointer (Base 2.0, section 4.1.2).
    pub fn with_sgl(mut self, descriptor: super::Descriptor) -> Command {
        self.dptr = descriptor.into();
        self.flags = self.flags & !PSDT_MASK | PSDT_SGL_MPTR_CONTIGUOUS;
        self
    }

    /// Starting LBA of a command that has one: CDW10 and CDW11 (NVM Command Set 1.0, section 3.2.4).
    pub const fn slba(&self) -> u64 {
        (self.cdw11 as u64) << 32 | self.cdw10 as u64
    }

    /// Number of Logical Blocks, 0's based, of a command that has it (NVM Command Set 1.0, section 3.2.4).
    pub const fn nlb(&self) -> u16 {
        self.cdw12 as u16
    }

    const fn admin(opcode: u8) -> Command {
        Command {
            opcode,
            flags: 0,
            cid: 0,
            nsid: 0,
            cdw2: 0,
            cdw3: 0,
            mptr: 0,
            dptr: [0; 2],
            cdw10: 0,
            cdw11: 0,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
        }
    }

    const fn blocks(opcode: u8, nsid: u32, slba: u64, cdw12: u32) -> Command {
        let mut command = Command::admin(opcode);
        command.nsid = nsid;
        command.cdw10 = slba as u32;
        command.cdw11 = (slba >> 32) as u32;
        command.cdw12 = cdw12;
        command
    }
}

/// QSIZE is 0's based and 16 bits wide (Base 2.0, section 5.4); a count out of range saturates, so
/// that the controller refuses it rather than make another queue than asked for.
const fn queue_size(entries: u32) -> u32 {
    let size = entries.saturating_sub(1);
    if size > 0xffff { 0xffff } else { size }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;
    use crate::spec::{FeatureId, LogPage};

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        assert_eq!(align_of::<Command>(), 64);
        assert_eq!(offset_of!(Command, cid), 2);
        assert_eq!(offset_of!(Command, nsid), 4);
        assert_eq!(offset_of!(Command, mptr), 16);
        assert_eq!(offset_of!(Command, dptr), 24);
        assert_eq!(offset_of!(Command, cdw10), 40);
        assert_eq!(offset_of!(Command, cdw15), 60);
        assert_eq!(offset_of!(DsmRange, slba), 8);
    }

    #[test]
    fn queue_commands() {
        let cq = Command::create_io_cq(3, 65536, 0x1000);
        assert_eq!((cq.opcode, cq.cdw10, cq.cdw11, cq.dptr), (5, 0xffff_0003, 1, [0x1000, 0]));
        let sq = Command::create_io_sq(3, 2, 0x2000, 7);
        assert_eq!((sq.opcode, sq.cdw10, sq.cdw11), (1, 0x0001_0003, 0x0007_0001));
        assert_eq!(Command::delete_io_sq(9).cdw10, 9);
        assert_eq!(Command::delete_io_cq(9).opcode, 4);
        assert_eq!(Command::abort(2, 0x1234).cdw10, 0x1234_0002);
    }

    #[test]
    fn admin_commands_with_parameters() {
        assert_eq!(Command::identify(Cns::NAMESPACE_DESCRIPTORS, 5, 0).cdw10, 3);
        assert_eq!(Command::set_features(FeatureId::NUMBER_OF_QUEUES, 0x0003_0003).cdw11, 0x0003_0003);
        let log = Command::get_log_page(LogPage::SMART, NSID_ALL, 0x1_0000_0004, 512);
        assert_eq!((log.cdw10, log.cdw11, log.cdw12, log.cdw13), (127 << 16 | 2, 0, 4, 1));
        let large = Command::get_log_page(LogPage::ERROR, 0, 0, 4 * 0x1_0001);
        assert_eq!((large.cdw10, large.cdw11), (1, 1));
    }

    #[test]
    fn block_commands() {
        let read = Command::read(1, 0x1_2345_6789, 7).with_prps(0x1000, 0x2000);
        assert_eq!((read.opcode, read.cdw10, read.cdw11, read.cdw12), (2, 0x2345_6789, 1, 7));
        assert_eq!((read.slba(), read.nlb()), (0x1_2345_6789, 7));
        assert_eq!(Command::deallocate(1, 255).cdw10, 255);
        let sgl = Command::write(1, 0, 0).with_sgl(crate::spec::Descriptor::data_block(0x1003, 512));
        assert_eq!(sgl.flags, 0x40);
        assert_eq!(sgl.dptr, [0x1003, 512]);
    }

    #[test]
    fn every_opcode_has_a_name() {
        for opcode in 0..=255 {
            assert!(!admin_opcode::name(opcode).is_empty());
            assert!(!io_opcode::name(opcode).is_empty());
        }
        assert_eq!(io_opcode::name(io_opcode::READ), "Read");
    }
}
