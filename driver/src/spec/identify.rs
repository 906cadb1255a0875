//! Identify data structures (Base 2.0, section 5.17.2; NVM Command Set 1.0, section 4.1.5).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::registers::Version;

/// Identify Controller, 4096 bytes (Base 2.0, section 5.17.2.1; NVM Command Set 1.0, section 4.1.5.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Controller {
    /// PCI Vendor ID.
    pub vid: u16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: u16,
    /// Serial Number, padded with spaces; see [`serial`](Controller::serial).
    pub sn: [u8; 20],
    /// Model Number, padded with spaces; see [`model`](Controller::model).
    pub mn: [u8; 40],
    /// Firmware Revision, padded with spaces; see [`firmware`](Controller::firmware).
    pub fr: [u8; 8],
    /// Recommended Arbitration Burst, 2^rab commands.
    pub rab: u8,
    /// IEEE OUI Identifier, least significant byte first.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Maximum Data Transfer Size, 2^mdts pages of CAP.MPSMIN; 0 is no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: u16,
    /// Version, as in the VS register; see [`version`](Controller::version).
    pub ver: u32,
    /// RTD3 Resume Latency, microseconds.
    pub rtd3r: u32,
    /// RTD3 Entry Latency, microseconds: how long a shutdown may take.
    pub rtd3e: u32,
    /// Optional Asynchronous Events Supported.
    pub oaes: u32,
    /// Controller Attributes.
    pub ctratt: u32,
    /// Read Recovery Levels Supported.
    pub rrls: u16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// Controller Type: 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    /// FRU Globally Unique Identifier.
    pub fguid: [u8; 16],
    /// Command Retry Delay Times 1 to 3, units of 100 ms.
    pub crdt: [u16; 3],
    /// Reserved.
    pub reserved134: [u8; 119],
    /// NVM Subsystem Report.
    pub nvmsr: u8,
    /// VPD Write Cycle Information.
    pub vwci: u8,
    /// Management Endpoint Capabilities.
    pub mec: u8,
    /// Optional Admin Command Support; see the `OACS_` constants.
    pub oacs: u16,
    /// Abort Command Limit, 0's based.
    pub acl: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl: u8,
    /// Firmware Updates.
    pub frmw: u8,
    /// Log Page Attributes.
    pub lpa: u8,
    /// Error Log Page Entries, 0's based.
    pub elpe: u8,
    /// Number of Power States Support, 0's based.
    pub npss: u8,
    /// Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, kelvins.
    pub wctemp: u16,
    /// Critical Composite Temperature Threshold, kelvins.
    pub cctemp: u16,
    /// Maximum Time for Firmware Activation, units of 100 ms.
    pub mtfa: u16,
    /// Host Memory Buffer Preferred Size, units of 4 KiB.
    pub hmpre: u32,
    /// Host Memory Buffer Minimum Size, units of 4 KiB.
    pub hmmin: u32,
    /// Total NVM Capacity, bytes.
    pub tnvmcap: [u8; 16],
    /// Unallocated NVM Capacity, bytes.
    pub unvmcap: [u8; 16],
    /// Replay Protected Memory Block Support.
    pub rpmbs: u32,
    /// Extended Device Self-test Time, minutes.
    pub edstt: u16,
    /// Device Self-test Options.
    pub dsto: u8,
    /// Firmware Update Granularity, units of 4 KiB.
    pub fwug: u8,
    /// Keep Alive Support: granularity in units of 100 ms.
    pub kas: u16,
    /// Host Controlled Thermal Management Attributes.
    pub hctma: u16,
    /// Minimum Thermal Management Temperature, kelvins.
    pub mntmt: u16,
    /// Maximum Thermal Management Temperature, kelvins.
    pub mxtmt: u16,
    /// Sanitize Capabilities.
    pub sanicap: u32,
    /// Host Memory Buffer Minimum Descriptor Entry Size, units of 4 KiB.
    pub hmminds: u32,
    /// Host Memory Maximum Descriptors Entries.
    pub hmmaxd: u16,
    /// NVM Set Identifier Maximum.
    pub nsetidmax: u16,
    /// Endurance Group Identifier Maximum.
    pub endgidmax: u16,
    /// ANA Transition Time, seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities.
    pub anacap: u8,
    /// ANA Group Identifier Maximum.
    pub anagrpmax: u32,
    /// Number of ANA Group Identifiers.
    pub nanagrpid: u32,
    /// Persistent Event Log Size, units of 64 KiB.
    pub pels: u32,
    /// Domain Identifier.
    pub domid: u16,
    /// Reserved.
    pub reserved358: [u8; 10],
    /// Max Endurance Group Capacity, bytes.
    pub megcap: [u8; 16],
    /// Reserved.
    pub reserved384: [u8; 128],
    /// Submission Queue Entry Size: required in bits 3:0, maximum in bits 7:4, powers of two.
    pub sqes: u8,
    /// Completion Queue Entry Size: required in bits 3:0, maximum in bits 7:4, powers of two.
    pub cqes: u8,
    /// Maximum Outstanding Commands; 0 is not reported.
    pub maxcmd: u16,
    /// Number of Namespaces: the largest NSID.
    pub nn: u32,
    /// Optional NVM Command Support; see the `ONCS_` constants.
    pub oncs: u16,
    /// Fused Operation Support.
    pub fuses: u16,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Volatile Write Cache: present in bit 0, Flush with NSID FFFFFFFFh in bits 2:1.
    pub vwc: u8,
    /// Atomic Write Unit Normal, 0's based, logical blocks.
    pub awun: u16,
    /// Atomic Write Unit Power Fail, 0's based, logical blocks.
    pub awupf: u16,
    /// I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Atomic Compare & Write Unit, 0's based, logical blocks.
    pub acwu: u16,
    /// Copy Descriptor Formats Supported.
    pub ocfs: u16,
    /// SGL Support; see the `SGLS_` constants and [`sgl_support`](Controller::sgl_support).
    pub sgls: u32,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: u32,
    /// Maximum Domain Namespace Attachments.
    pub maxdna: [u8; 16],
    /// Maximum I/O Controller Namespace Attachments.
    pub maxcna: u32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// NVM Subsystem NVMe Qualified Name, ended by a zero byte; see [`subnqn`](Controller::subnqn).
    pub subnqn_bytes: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// NVMe over Fabrics fields.
    pub fabrics: [u8; 256],
    /// Power State Descriptors 0 to 31.
    pub psd: [[u8; 32]; 32],
    /// Vendor specific.
    pub vendor: [u8; 1024],
}

const _: () = assert!(size_of::<Controller>() == 4096);

/// OAES: Namespace Attribute Notices (Base 2.0, section 5.17.2.1).
pub const OAES_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// OAES: Firmware Activation Notices (Base 2.0, section 5.17.2.1).
pub const OAES_FIRMWARE_ACTIVATION: u32 = 1 << 9;
/// OAES: Asymmetric Namespace Access Change Notices (Base 2.0, section 5.17.2.1).
pub const OAES_ASYMMETRIC_ACCESS: u32 = 1 << 11;
/// OAES: Predictable Latency Event Aggregate Log Change Notices (Base 2.0, section 5.17.2.1).
pub const OAES_PREDICTABLE_LATENCY: u32 = 1 << 12;
/// OAES: LBA Status Information Notices (Base 2.0, section 5.17.2.1).
pub const OAES_LBA_STATUS: u32 = 1 << 13;
/// OAES: Endurance Group Event Aggregate Log Page Change Notices (Base 2.0, section 5.17.2.1).
pub const OAES_ENDURANCE_GROUP: u32 = 1 << 14;

/// OACS: Security Send and Receive (Base 2.0, section 5.17.2.1).
pub const OACS_SECURITY: u16 = 1 << 0;
/// OACS: Format NVM (Base 2.0, section 5.17.2.1).
pub const OACS_FORMAT: u16 = 1 << 1;
/// OACS: Firmware Commit and Image Download (Base 2.0, section 5.17.2.1).
pub const OACS_FIRMWARE: u16 = 1 << 2;
/// OACS: Namespace Management and Attachment (Base 2.0, section 5.17.2.1).
pub const OACS_NAMESPACE_MANAGEMENT: u16 = 1 << 3;
/// OACS: Device Self-test (Base 2.0, section 5.17.2.1).
pub const OACS_SELF_TEST: u16 = 1 << 4;
/// OACS: Directives (Base 2.0, section 5.17.2.1).
pub const OACS_DIRECTIVES: u16 = 1 << 5;
/// OACS: NVMe-MI Send and Receive (Base 2.0, section 5.17.2.1).
pub const OACS_NVME_MI: u16 = 1 << 6;
/// OACS: Virtualization Management (Base 2.0, section 5.17.2.1).
pub const OACS_VIRTUALIZATION: u16 = 1 << 7;
/// OACS: Doorbell Buffer Config (Base 2.0, section 5.17.2.1).
pub const OACS_DOORBELL_BUFFER: u16 = 1 << 8;

/// ONCS: Compare (Base 2.0, section 5.17.2.1).
pub const ONCS_COMPARE: u16 = 1 << 0;
/// ONCS: Write Uncorrectable (Base 2.0, section 5.17.2.1).
pub const ONCS_WRITE_UNCORRECTABLE: u16 = 1 << 1;
/// ONCS: Dataset Management (Base 2.0, section 5.17.2.1).
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: Write Zeroes (Base 2.0, section 5.17.2.1).
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// ONCS: Save and Select fields in Set and Get Features (Base 2.0, section 5.17.2.1).
pub const ONCS_SAVE_SELECT: u16 = 1 << 4;
/// ONCS: Reservations (Base 2.0, section 5.17.2.1).
pub const ONCS_RESERVATIONS: u16 = 1 << 5;
/// ONCS: Timestamp (Base 2.0, section 5.17.2.1).
pub const ONCS_TIMESTAMP: u16 = 1 << 6;
/// ONCS: Verify (Base 2.0, section 5.17.2.1).
pub const ONCS_VERIFY: u16 = 1 << 7;
/// ONCS: Copy (Base 2.0, section 5.17.2.1).
pub const ONCS_COPY: u16 = 1 << 8;

/// VWC: a volatile write cache is present (Base 2.0, section 5.17.2.1).
pub const VWC_PRESENT: u8 = 1 << 0;

/// CTRATT: Extended LBA formats, more than 16 (Base 2.0, section 5.17.2.1).
pub const CTRATT_ELBAS: u32 = 1 << 15;

/// SGLS: the bits that say whether SGLs are supported in the NVM command set (Base 2.0, section 5.17.2.1).
pub const SGLS_SUPPORT_MASK: u32 = 0b11;
/// SGLS: Bit Bucket descriptors (Base 2.0, section 5.17.2.1).
pub const SGLS_BIT_BUCKET: u32 = 1 << 16;
/// SGLS: a byte aligned contiguous metadata buffer (Base 2.0, section 5.17.2.1).
pub const SGLS_METADATA_BYTE_ALIGNED: u32 = 1 << 17;
/// SGLS: an SGL may be longer than the data (Base 2.0, section 5.17.2.1).
pub const SGLS_LONGER_THAN_DATA: u32 = 1 << 18;
/// SGLS: MPTR may hold an SGL descriptor (Base 2.0, section 5.17.2.1).
pub const SGLS_METADATA_SGL: u32 = 1 << 19;
/// SGLS: the address field may be an offset (Base 2.0, section 5.17.2.1).
pub const SGLS_OFFSET: u32 = 1 << 20;

/// How a controller supports SGLs for NVM commands (Base 2.0, section 5.17.2.1, SGLS bits 1:0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SglSupport {
    /// Not at all.
    None,
    /// Without alignment or granularity requirement.
    Bytes,
    /// Data blocks need dword alignment and granularity.
    Dwords,
    /// A reserved value.
    Reserved,
}

impl Controller {
    /// Serial Number, trimmed; bytes that are no printable ASCII become `?` (Base 2.0, section 5.17.2.1).
    pub fn serial(&self) -> String {
        text(&self.sn)
    }

    /// Model Number, trimmed; bytes that are no printable ASCII become `?` (Base 2.0, section 5.17.2.1).
    pub fn model(&self) -> String {
        text(&self.mn)
    }

    /// Firmware Revision, trimmed; bytes that are no printable ASCII become `?` (Base 2.0, section 5.17.2.1).
    pub fn firmware(&self) -> String {
        text(&self.fr)
    }

    /// NVM Subsystem NVMe Qualified Name, up to its zero byte (Base 2.0, section 5.17.2.1).
    pub fn subnqn(&self) -> String {
        text(&self.subnqn_bytes)
    }

    /// Version of the specification (Base 2.0, section 5.17.2.1, VER).
    pub const fn version(&self) -> Version {
        Version::from_bits(self.ver)
    }

    /// IEEE OUI Identifier as a number (Base 2.0, section 5.17.2.1, IEEE).
    pub const fn oui(&self) -> u32 {
        u32::from_le_bytes([self.ieee[0], self.ieee[1], self.ieee[2], 0])
    }

    /// Total NVM Capacity in bytes (Base 2.0, section 5.17.2.1, TNVMCAP).
    pub const fn total_capacity(&self) -> u128 {
        u128::from_le_bytes(self.tnvmcap)
    }

    /// Unallocated NVM Capacity in bytes (Base 2.0, section 5.17.2.1, UNVMCAP).
    pub const fn unallocated_capacity(&self) -> u128 {
        u128::from_le_bytes(self.unvmcap)
    }

    /// The largest transfer in bytes, where there is a limit (Base 2.0, section 5.17.2.1, MDTS).
    pub const fn max_transfer(&self, mpsmin: u8) -> Option<u64> {
        let shift = 12 + (mpsmin & 0xf) as u32 + self.mdts as u32;
        if self.mdts == 0 || shift > 63 { None } else { Some(1 << shift) }
    }

    /// How SGLs are supported (Base 2.0, section 5.17.2.1, SGLS).
    pub const fn sgl_support(&self) -> SglSupport {
        match self.sgls & SGLS_SUPPORT_MASK {
            0b00 => SglSupport::None,
            0b01 => SglSupport::Bytes,
            0b10 => SglSupport::Dwords,
            _ => SglSupport::Reserved,
        }
    }

    /// Whether there is a volatile write cache (Base 2.0, section 5.17.2.1, VWC).
    pub const fn has_volatile_write_cache(&self) -> bool {
        self.vwc & VWC_PRESENT != 0
    }
}

/// ASCII up to the first zero byte, without the padding. Control characters of a device must not
/// reach a terminal.
fn text(bytes: &[u8]) -> String {
    let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { *byte as char } else { '?' };
    let text: String = bytes.iter().take_while(|byte| **byte != 0).map(printable).collect();
    text.trim().to_owned()
}

/// An LBA format (NVM Command Set 1.0, section 4.1.5.1, LBA Format data structure).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct LbaFormat {
    /// Metadata Size in bytes.
    #[bits(16)]
    pub ms: u16,
    /// LBA Data Size, 2^lbads bytes; 0 is a format that is not available.
    #[bits(8)]
    pub lbads: u8,
    /// Relative Performance, 0 is best.
    #[bits(2)]
    pub rp: u8,
    #[bits(6)]
    __: u8,
}

impl LbaFormat {
    /// The block size in bytes; `None` for a size below 512, the least there is, or beyond 2^31
    /// (NVM Command Set 1.0, section 4.1.5.1, LBADS).
    pub const fn block_size(self) -> Option<u32> {
        match self.lbads() {
            9..=31 => Some(1 << self.lbads()),
            _ => None,
        }
    }
}

/// Identify Namespace, NVM command set, 4096 bytes (NVM Command Set 1.0, section 4.1.5.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Namespace {
    /// Namespace Size, logical blocks. 0 in an inactive namespace.
    pub nsze: u64,
    /// Namespace Capacity, logical blocks.
    pub ncap: u64,
    /// Namespace Utilization, logical blocks.
    pub nuse: u64,
    /// Namespace Features; see the `NSFEAT_` constants.
    pub nsfeat: u8,
    /// Number of LBA Formats, 0's based.
    pub nlbaf: u8,
    /// Formatted LBA Size; see [`format_index`](Namespace::format_index).
    pub flbas: u8,
    /// Metadata Capabilities.
    pub mc: u8,
    /// End-to-end Data Protection Capabilities.
    pub dpc: u8,
    /// End-to-end Data Protection Type Settings.
    pub dps: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// Deallocate Logical Block Features.
    pub dlfeat: u8,
    /// Namespace Atomic Write Unit Normal, 0's based.
    pub nawun: u16,
    /// Namespace Atomic Write Unit Power Fail, 0's based.
    pub nawupf: u16,
    /// Namespace Atomic Compare & Write Unit, 0's based.
    pub nacwu: u16,
    /// Namespace Atomic Boundary Size Normal, 0's based; 0 is none.
    pub nabsn: u16,
    /// Namespace Atomic Boundary Offset.
    pub nabo: u16,
    /// Namespace Atomic Boundary Size Power Fail, 0's based; 0 is none.
    pub nabspf: u16,
    /// Namespace Optimal I/O Boundary, logical blocks; 0 is none.
    pub noiob: u16,
    /// NVM Capacity, bytes.
    pub nvmcap: [u8; 16],
    /// Namespace Preferred Write Granularity, 0's based.
    pub npwg: u16,
    /// Namespace Preferred Write Alignment, 0's based.
    pub npwa: u16,
    /// Namespace Preferred Deallocate Granularity, 0's based.
    pub npdg: u16,
    /// Namespace Preferred Deallocate Alignment, 0's based.
    pub npda: u16,
    /// Namespace Optimal Write Size, 0's based.
    pub nows: u16,
    /// Maximum Single Source Range Length, for Copy.
    pub mssrl: u16,
    /// Maximum Copy Length.
    pub mcl: u32,
    /// Maximum Source Range Count, 0's based.
    pub msrc: u8,
    /// Reserved.
    pub reserved81: [u8; 11],
    /// ANA Group Identifier.
    pub anagrpid: u32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace Attributes: write protected in bit 0.
    pub nsattr: u8,
    /// NVM Set Identifier.
    pub nvmsetid: u16,
    /// Endurance Group Identifier.
    pub endgid: u16,
    /// Namespace Globally Unique Identifier, big-endian; all 0 is none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, big-endian; all 0 is none.
    pub eui64: [u8; 8],
    /// LBA Formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vendor: [u8; 3712],
}

const _: () = assert!(size_of::<Namespace>() == 4096);

/// NSFEAT: Thin Provisioning (NVM Command Set 1.0, section 4.1.5.1).
pub const NSFEAT_THIN: u8 = 1 << 0;
/// NSFEAT: NAWUN, NAWUPF and NACWU hold for this namespace (NVM Command Set 1.0, section 4.1.5.1).
pub const NSFEAT_ATOMICS: u8 = 1 << 1;
/// NSFEAT: the error Deallocated or Unwritten Logical Block is supported (NVM Command Set 1.0, section 4.1.5.1).
pub const NSFEAT_DEALLOCATED_ERROR: u8 = 1 << 2;
/// NSFEAT: NPWG, NPWA, NPDG, NPDA and NOWS are defined (NVM Command Set 1.0, section 4.1.5.1).
pub const NSFEAT_OPTIMAL_IO: u8 = 1 << 4;

/// FLBAS: metadata goes at the end of each block, not into a buffer of its own (NVM Command Set 1.0, section 4.1.5.1).
pub const FLBAS_EXTENDED: u8 = 1 << 4;

/// NSATTR: the namespace is write protected now (NVM Command Set 1.0, section 4.1.5.1).
pub const NSATTR_WRITE_PROTECTED: u8 = 1 << 0;

impl Namespace {
    /// Which of the LBA formats is in use: FLBAS bits 6:5 above bits 3:0 (NVM Command Set 1.0,
    /// section 4.1.5.1). Up to 16 formats the upper bits mean nothing and are left out.
    pub const fn format_index(&self) -> usize {
        let low = self.flbas & 0x0f;
        let high = self.flbas >> 5 & 0b11;
        if self.nlbaf < 16 { low as usize } else { (high << 4 | low) as usize }
    }

    /// Whether the LBA format in use is one that the namespace says it has (NVM Command Set 1.0,
    /// section 4.1.5.1, NLBAF).
    pub const fn has_format(&self) -> bool {
        self.format_index() <= self.nlbaf as usize
    }

    /// The LBA format in use (NVM Command Set 1.0, section 4.1.5.1).
    pub const fn format(&self) -> LbaFormat {
        // The index has 6 bits and the array 64 entries.
        self.lbaf[self.format_index()]
    }

    /// NVM Capacity in bytes (NVM Command Set 1.0, section 4.1.5.1, NVMCAP).
    pub const fn capacity_bytes(&self) -> u128 {
        u128::from_le_bytes(self.nvmcap)
    }
}

/// I/O Command Set specific Identify Controller for the NVM command set, CNS 06h CSI 00h, 4096
/// bytes (NVM Command Set 1.0, section 4.1.5.4).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct NvmController {
    /// Verify Size Limit, 2^vsl pages; 0 is none.
    pub vsl: u8,
    /// Write Zeroes Size Limit, 2^wzsl pages; 0 is none.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit, 2^wusl pages; 0 is none.
    pub wusl: u8,
    /// Dataset Management Ranges Limit; 0 is none.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit, logical blocks; 0 is none.
    pub dmrsl: u32,
    /// Dataset Management Size Limit, logical blocks; 0 is none.
    pub dmsl: u64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}

const _: () = assert!(size_of::<NvmController>() == 4096);

/// An Active Namespace ID list, CNS 02h, 4096 bytes (Base 2.0, section 5.17.2.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ActiveNamespaces {
    /// NSIDs, ascending; the first 0 ends the list.
    pub nsids: [u32; 1024],
}

const _: () = assert!(size_of::<ActiveNamespaces>() == 4096);

impl ActiveNamespaces {
    /// The NSIDs up to the first 0 (Base 2.0, section 5.17.2.2).
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids.iter().copied().take_while(|nsid| *nsid != 0)
    }
}

/// One of the names of a namespace (Base 2.0, section 5.17.2.3, Namespace Identification Descriptor).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceDescriptor {
    /// IEEE Extended Unique Identifier, NIDT 1h.
    Eui64([u8; 8]),
    /// Namespace Globally Unique Identifier, NIDT 2h.
    Nguid([u8; 16]),
    /// Namespace UUID, NIDT 3h.
    Uuid([u8; 16]),
    /// Command Set Identifier, NIDT 4h.
    Csi(u8),
    /// A type this driver does not know, or a known type of a wrong length.
    Unknown {
        /// Namespace Identifier Type.
        nidt: u8,
        /// Namespace Identifier Length.
        nidl: u8,
    },
}

/// The descriptors of a Namespace Identification Descriptor list, CNS 03h (Base 2.0, section
/// 5.17.2.3). Ends at a length of 0, or where a descriptor would pass the end of the list.
#[derive(Debug, Clone)]
pub struct NamespaceDescriptors<'a> {
    rest: &'a [u8],
}

impl<'a> NamespaceDescriptors<'a> {
    /// Reads a list (Base 2.0, section 5.17.2.3).
    pub const fn new(list: &'a [u8; 4096]) -> Self {
        NamespaceDescriptors { rest: list }
    }
}

impl Iterator for NamespaceDescriptors<'_> {
    type Item = NamespaceDescriptor;

    fn next(&mut self) -> Option<NamespaceDescriptor> {
        let (header, rest) = self.rest.split_first_chunk::<4>()?;
        let [nidt, nidl, ..] = *header;
        if nidl == 0 {
            self.rest = &[];
            return None;
        }
        let (nid, rest) = rest.split_at_checked(nidl.into())?;
        self.rest = rest;
        Some(descriptor(nidt, nidl, nid))
    }
}

impl std::iter::FusedIterator for NamespaceDescriptors<'_> {}

fn descriptor(nidt: u8, nidl: u8, nid: &[u8]) -> NamespaceDescriptor {
    let known = match nidt {
        1 => nid.try_into().ok().map(NamespaceDescriptor::Eui64),
        2 => nid.try_into().ok().map(NamespaceDescriptor::Nguid),
        3 => nid.try_into().ok().map(NamespaceDescriptor::Uuid),
        4 => <[u8; 1]>::try_from(nid).ok().map(|[csi]| NamespaceDescriptor::Csi(csi)),
        _ => None,
    };
    known.unwrap_or(NamespaceDescriptor::Unknown { nidt, nidl })
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn controller_fields_are_where_the_specification_puts_them() {
        for (offset, expected) in [
            (offset_of!(Controller, sn), 4),
            (offset_of!(Controller, mn), 24),
            (offset_of!(Controller, fr), 64),
            (offset_of!(Controller, rab), 72),
            (offset_of!(Controller, mdts), 77),
            (offset_of!(Controller, cntlid), 78),
            (offset_of!(Controller, ver), 80),
            (offset_of!(Controller, rtd3e), 88),
            (offset_of!(Controller, ctratt), 96),
            (offset_of!(Controller, cntrltype), 111),
            (offset_of!(Controller, crdt), 128),
            (offset_of!(Controller, oacs), 256),
            (offset_of!(Controller, aerl), 259),
            (offset_of!(Controller, npss), 263),
            (offset_of!(Controller, wctemp), 266),
            (offset_of!(Controller, tnvmcap), 280),
            (offset_of!(Controller, unvmcap), 296),
            (offset_of!(Controller, kas), 320),
            (offset_of!(Controller, sanicap), 328),
            (offset_of!(Controller, anagrpmax), 344),
            (offset_of!(Controller, megcap), 368),
            (offset_of!(Controller, sqes), 512),
            (offset_of!(Controller, maxcmd), 514),
            (offset_of!(Controller, nn), 516),
            (offset_of!(Controller, oncs), 520),
            (offset_of!(Controller, vwc), 525),
            (offset_of!(Controller, awun), 526),
            (offset_of!(Controller, nwpc), 531),
            (offset_of!(Controller, acwu), 532),
            (offset_of!(Controller, sgls), 536),
            (offset_of!(Controller, mnan), 540),
            (offset_of!(Controller, subnqn_bytes), 768),
            (offset_of!(Controller, fabrics), 1792),
            (offset_of!(Controller, psd), 2048),
            (offset_of!(Controller, vendor), 3072),
        ] {
            assert_eq!(offset, expected);
        }
    }

    #[test]
    fn namespace_fields_are_where_the_specification_puts_them() {
        for (offset, expected) in [
            (offset_of!(Namespace, nsfeat), 24),
            (offset_of!(Namespace, flbas), 26),
            (offset_of!(Namespace, dlfeat), 33),
            (offset_of!(Namespace, nawun), 34),
            (offset_of!(Namespace, noiob), 46),
            (offset_of!(Namespace, nvmcap), 48),
            (offset_of!(Namespace, npwg), 64),
            (offset_of!(Namespace, mssrl), 74),
            (offset_of!(Namespace, mcl), 76),
            (offset_of!(Namespace, msrc), 80),
            (offset_of!(Namespace, anagrpid), 92),
            (offset_of!(Namespace, nsattr), 99),
            (offset_of!(Namespace, nguid), 104),
            (offset_of!(Namespace, eui64), 120),
            (offset_of!(Namespace, lbaf), 128),
            (offset_of!(Namespace, vendor), 384),
            (offset_of!(NvmController, dmrsl), 4),
            (offset_of!(NvmController, dmsl), 8),
        ] {
            assert_eq!(offset, expected);
        }
    }

    #[test]
    fn names_are_trimmed_and_safe() {
        let mut controller = Controller::new_zeroed();
        controller.sn = *b"  S1 23             ";
        controller.mn = [0x1b; 40];
        controller.fr = *b"1.0\0\xff\xff\xff\xff";
        controller.subnqn_bytes[..4].copy_from_slice(b"nqn.");
        assert_eq!(controller.serial(), "S1 23");
        assert_eq!(controller.model(), "?".repeat(40));
        assert_eq!(controller.firmware(), "1.0");
        assert_eq!(controller.subnqn(), "nqn.");
    }

    #[test]
    fn transfer_limits() {
        let mut controller = Controller::new_zeroed();
        assert_eq!(controller.max_transfer(0), None);
        controller.mdts = 5;
        assert_eq!(controller.max_transfer(0), Some(128 << 10));
        controller.mdts = 255;
        assert_eq!(controller.max_transfer(255), None);
    }

    #[test]
    fn the_format_index_has_two_parts() {
        let mut namespace = Namespace::new_zeroed();
        namespace.flbas = 0b0111_0010;
        assert_eq!(namespace.format_index(), 2);
        namespace.nlbaf = 63;
        assert_eq!(namespace.format_index(), 0b11_0010);
        namespace.flbas = 0xff;
        assert_eq!(namespace.format_index(), 63);
        namespace.lbaf[63] = LbaFormat::new().with_lbads(12).with_ms(8);
        assert_eq!(namespace.format().block_size(), Some(4096));
        assert_eq!(LbaFormat::from_bits(u32::MAX).block_size(), None);
        assert_eq!(LbaFormat::new().block_size(), None);
    }

    #[test]
    fn active_namespaces_end_at_zero() {
        let mut list = ActiveNamespaces::new_zeroed();
        assert_eq!(list.iter().count(), 0);
        list.nsids[..4].copy_from_slice(&[1, 3, 0, 7]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 3]);
        list.nsids = [9; 1024];
        assert_eq!(list.iter().count(), 1024);
    }

    #[test]
    fn descriptors_are_read_in_order() {
        let mut list = [0; 4096];
        list[..12].copy_from_slice(&[1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        list[12..17].copy_from_slice(&[4, 1, 0, 0, 2]);
        list[17..22].copy_from_slice(&[2, 1, 0, 0, 9]);
        let all: Vec<_> = NamespaceDescriptors::new(&list).collect();
        assert_eq!(
            all,
            [
                NamespaceDescriptor::Eui64([1, 2, 3, 4, 5, 6, 7, 8]),
                NamespaceDescriptor::Csi(2),
                NamespaceDescriptor::Unknown { nidt: 2, nidl: 1 },
            ]
        );
    }

    #[test]
    fn garbage_descriptors_end() {
        for byte in 0..=255 {
            let list = [byte; 4096];
            assert!(NamespaceDescriptors::new(&list).count() <= 4096 / 5);
        }
    }
}
