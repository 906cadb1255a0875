//! Controller properties and doorbells (Base 2.0, section 3.1.3; PCIe Transport 1.0, section 3.1).

use std::fmt;

use bitfield_struct::bitfield;

/// Controller Capabilities, 64 bits (Base 2.0, section 3.1.3.1).
pub const CAP: u64 = 0x00;
/// Version (Base 2.0, section 3.1.3.2).
pub const VS: u64 = 0x08;
/// Interrupt Mask Set (Base 2.0, section 3.1.3.3).
pub const INTMS: u64 = 0x0c;
/// Interrupt Mask Clear (Base 2.0, section 3.1.3.4).
pub const INTMC: u64 = 0x10;
/// Controller Configuration (Base 2.0, section 3.1.3.5).
pub const CC: u64 = 0x14;
/// Controller Status (Base 2.0, section 3.1.3.6).
pub const CSTS: u64 = 0x1c;
/// NVM Subsystem Reset (Base 2.0, section 3.1.3.7).
pub const NSSR: u64 = 0x20;
/// Admin Queue Attributes (Base 2.0, section 3.1.3.8).
pub const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address, 64 bits (Base 2.0, section 3.1.3.9).
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address, 64 bits (Base 2.0, section 3.1.3.10).
pub const ACQ: u64 = 0x30;
/// Controller Ready Timeouts (Base 2.0, section 3.1.3.20).
pub const CRTO: u64 = 0x68;
/// Where the doorbells start (PCIe Transport 1.0, section 3.1.2).
pub const DOORBELLS: u64 = 0x1000;

/// CC.CSS: the NVM command set (Base 2.0, section 3.1.3.5).
pub const CSS_NVM: u8 = 0b000;
/// CC.CSS: all supported I/O command sets (Base 2.0, section 3.1.3.5).
pub const CSS_ALL: u8 = 0b110;
/// CC.CSS: the Admin command set only (Base 2.0, section 3.1.3.5).
pub const CSS_ADMIN_ONLY: u8 = 0b111;

/// CC.SHN: no shutdown notification (Base 2.0, section 3.1.3.5).
pub const SHN_NONE: u8 = 0b00;
/// CC.SHN: normal shutdown (Base 2.0, section 3.1.3.5).
pub const SHN_NORMAL: u8 = 0b01;
/// CC.SHN: abrupt shutdown (Base 2.0, section 3.1.3.5).
pub const SHN_ABRUPT: u8 = 0b10;

/// CSTS.SHST: normal operation, no shutdown requested (Base 2.0, section 3.1.3.6).
pub const SHST_NORMAL: u8 = 0b00;
/// CSTS.SHST: shutdown processing occurs (Base 2.0, section 3.1.3.6).
pub const SHST_OCCURRING: u8 = 0b01;
/// CSTS.SHST: shutdown processing is complete (Base 2.0, section 3.1.3.6).
pub const SHST_COMPLETE: u8 = 0b10;

/// The value that starts an NVM subsystem reset, "NVMe" (Base 2.0, section 3.1.3.7).
pub const NSSR_RESET: u32 = 0x4e56_4d65;

/// The tail doorbell of a submission queue, from the start of the doorbells (PCIe Transport 1.0,
/// section 3.1.2.1). Add [`DOORBELLS`] for the offset in BAR0.
pub const fn sq_tail_doorbell(qid: u16, dstrd: u8) -> u64 {
    (2 * qid as u64) * doorbell_stride(dstrd)
}

/// The head doorbell of a completion queue, from the start of the doorbells (PCIe Transport 1.0,
/// section 3.1.2.2). Add [`DOORBELLS`] for the offset in BAR0.
pub const fn cq_head_doorbell(qid: u16, dstrd: u8) -> u64 {
    (2 * qid as u64 + 1) * doorbell_stride(dstrd)
}

/// Bytes from one doorbell to the next (Base 2.0, section 3.1.3.1, CAP.DSTRD: a field of 4 bits).
pub const fn doorbell_stride(dstrd: u8) -> u64 {
    4 << (dstrd & 0xf)
}

/// Controller Capabilities (Base 2.0, section 3.1.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Maximum Queue Entries Supported, 0's based.
    #[bits(16)]
    pub mqes: u16,
    /// Contiguous Queues Required.
    pub cqr: bool,
    /// Arbitration Mechanism Supported.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// Timeout, in units of 500 ms.
    #[bits(8)]
    pub to: u8,
    /// Doorbell Stride, 2^(2 + dstrd) bytes.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM Subsystem Reset Supported.
    pub nssrs: bool,
    /// Command Sets Supported: bit 0 NVM, bit 6 more than that, bit 7 none but Admin.
    #[bits(8)]
    pub css: u8,
    /// Boot Partition Support.
    pub bps: bool,
    /// Controller Power Scope.
    #[bits(2)]
    pub cps: u8,
    /// Memory Page Size Minimum, 2^(12 + mpsmin) bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// Memory Page Size Maximum, 2^(12 + mpsmax) bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// Persistent Memory Region Supported.
    pub pmrs: bool,
    /// Controller Memory Buffer Supported.
    pub cmbs: bool,
    /// NVM Subsystem Shutdown Supported.
    pub nsss: bool,
    /// Controller Ready With Media Support.
    pub crwms: bool,
    /// Controller Ready Independent of Media Support.
    pub crims: bool,
    #[bits(3)]
    __: u8,
}

impl Cap {
    /// Controller Ready Modes Supported, both bits: bit 0 is CRWMS, bit 1 is CRIMS (Base 2.0, section 3.1.3.1).
    pub const fn crms(self) -> u8 {
        (self.into_bits() >> 59) as u8 & 0b11
    }

    /// The largest queue in entries: MQES is 0's based (Base 2.0, section 3.1.3.1).
    pub const fn max_queue_entries(self) -> u32 {
        self.mqes() as u32 + 1
    }
}

/// Controller Configuration (Base 2.0, section 3.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cc {
    /// Enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O Command Set Selected.
    #[bits(3)]
    pub css: u8,
    /// Memory Page Size, 2^(12 + mps) bytes.
    #[bits(4)]
    pub mps: u8,
    /// Arbitration Mechanism Selected.
    #[bits(3)]
    pub ams: u8,
    /// Shutdown Notification.
    #[bits(2)]
    pub shn: u8,
    /// I/O Submission Queue Entry Size, 2^iosqes bytes.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O Completion Queue Entry Size, 2^iocqes bytes.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller Ready Independent of Media Enable.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// Controller Status (Base 2.0, section 3.1.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Csts {
    /// Ready.
    pub rdy: bool,
    /// Controller Fatal Status.
    pub cfs: bool,
    /// Shutdown Status.
    #[bits(2)]
    pub shst: u8,
    /// NVM Subsystem Reset Occurred.
    pub nssro: bool,
    /// Processing Paused.
    pub pp: bool,
    /// Shutdown Type.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// Admin Queue Attributes (Base 2.0, section 3.1.3.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Aqa {
    /// Admin Submission Queue Size, 0's based.
    #[bits(12)]
    pub asqs: u16,
    #[bits(4)]
    __: u8,
    /// Admin Completion Queue Size, 0's based.
    #[bits(12)]
    pub acqs: u16,
    #[bits(4)]
    __: u8,
}

/// Controller Ready Timeouts (Base 2.0, section 3.1.3.20), in units of 500 ms.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Crto {
    /// Controller Ready With Media Timeout.
    #[bits(16)]
    pub crwmt: u16,
    /// Controller Ready Independent of Media Timeout.
    #[bits(16)]
    pub crimt: u16,
}

/// Version of the specification that the controller follows (Base 2.0, section 3.1.3.2).
#[bitfield(u32, debug = false)]
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Tertiary version number.
    #[bits(8)]
    pub ter: u8,
    /// Minor version number.
    #[bits(8)]
    pub mnr: u8,
    /// Major version number.
    #[bits(16)]
    pub mjr: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.mjr(), self.mnr(), self.ter())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_fields_are_where_the_specification_puts_them() {
        assert_eq!(Cap::from_bits(0xffff).mqes(), 0xffff);
        assert!(Cap::from_bits(1 << 16).cqr());
        assert_eq!(Cap::from_bits(3 << 17).ams(), 3);
        assert_eq!(Cap::from_bits(0xff << 24).to(), 0xff);
        assert_eq!(Cap::from_bits(0xf << 32).dstrd(), 0xf);
        assert!(Cap::from_bits(1 << 36).nssrs());
        assert_eq!(Cap::from_bits(0xff << 37).css(), 0xff);
        assert!(Cap::from_bits(1 << 45).bps());
        assert_eq!(Cap::from_bits(0xf << 48).mpsmin(), 0xf);
        assert_eq!(Cap::from_bits(0xf << 52).mpsmax(), 0xf);
        assert!(Cap::from_bits(1 << 56).pmrs());
        assert!(Cap::from_bits(1 << 57).cmbs());
        assert!(Cap::from_bits(1 << 59).crwms());
        assert!(Cap::from_bits(1 << 60).crims());
        assert_eq!(Cap::from_bits(3 << 59).crms(), 3);
        assert_eq!(Cap::from_bits(u64::MAX).max_queue_entries(), 65536);
    }

    #[test]
    fn configuration_and_status_fields() {
        let cc = Cc::new().with_en(true).with_iosqes(6).with_iocqes(4);
        assert_eq!(cc.into_bits(), 0x0046_0001);
        assert_eq!(Cc::from_bits(0b110 << 4).css(), CSS_ALL);
        assert_eq!(Cc::from_bits(0xf << 7).mps(), 0xf);
        assert_eq!(Cc::from_bits(7 << 11).ams(), 7);
        assert_eq!(Cc::from_bits(1 << 14).shn(), SHN_NORMAL);
        assert!(Cc::from_bits(1 << 24).crime());
        assert!(Csts::from_bits(1).rdy() && Csts::from_bits(2).cfs());
        assert_eq!(Csts::from_bits(2 << 2).shst(), SHST_COMPLETE);
        assert!(Csts::from_bits(1 << 4).nssro() && Csts::from_bits(1 << 5).pp());
        assert_eq!(Aqa::new().with_asqs(31).with_acqs(63).into_bits(), 63 << 16 | 31);
        assert_eq!(Crto::from_bits(0x0002_0001).crwmt(), 1);
        assert_eq!(Crto::from_bits(0x0002_0001).crimt(), 2);
    }

    #[test]
    fn a_version_reads_as_text_and_orders() {
        assert_eq!(Version::from_bits(0x0001_0400).to_string(), "1.4.0");
        assert_eq!(Version::from_bits(0x0002_0000).to_string(), "2.0.0");
        assert!(Version::from_bits(0x0001_0400) < Version::from_bits(0x0002_0000));
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!((sq_tail_doorbell(0, 0), cq_head_doorbell(0, 0)), (0, 4));
        assert_eq!((sq_tail_doorbell(3, 0), cq_head_doorbell(3, 0)), (24, 28));
        assert_eq!((sq_tail_doorbell(1, 4), cq_head_doorbell(1, 4)), (128, 192));
        assert_eq!(cq_head_doorbell(u16::MAX, 15), (2 * 65535 + 1) * (4 << 15));
    }
}
