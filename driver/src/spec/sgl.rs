//! SGL descriptors (Base 2.0, section 4.1.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Descriptor type: SGL Data Block (Base 2.0, section 4.1.2.1).
pub const DATA_BLOCK: u8 = 0x0;
/// Descriptor type: SGL Bit Bucket (Base 2.0, section 4.1.2.1).
pub const BIT_BUCKET: u8 = 0x1;
/// Descriptor type: SGL Segment (Base 2.0, section 4.1.2.1).
pub const SEGMENT: u8 = 0x2;
/// Descriptor type: SGL Last Segment (Base 2.0, section 4.1.2.1).
pub const LAST_SEGMENT: u8 = 0x3;
/// Descriptor type: Keyed SGL Data Block (Base 2.0, section 4.1.2.1).
pub const KEYED_DATA_BLOCK: u8 = 0x4;
/// Descriptor type: Transport SGL Data Block (Base 2.0, section 4.1.2.1).
pub const TRANSPORT_DATA_BLOCK: u8 = 0x5;

/// Descriptor sub type: the address is an address (Base 2.0, section 4.1.2.1).
pub const SUBTYPE_ADDRESS: u8 = 0x0;
/// Descriptor sub type: the address is an offset (Base 2.0, section 4.1.2.1).
pub const SUBTYPE_OFFSET: u8 = 0x1;

/// An SGL descriptor, 16 bytes (Base 2.0, section 4.1.2.1).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Descriptor {
    /// Address of the data or of the next segment; reserved in a bit bucket.
    pub address: u64,
    /// Length in bytes; of a segment, a multiple of 16.
    pub length: u32,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Descriptor type in bits 7:4, sub type in bits 3:0.
    pub kind: u8,
}

const _: () = assert!(size_of::<Descriptor>() == 16);

impl Descriptor {
    /// A piece of data (Base 2.0, section 4.1.2.1, SGL Data Block descriptor).
    pub const fn data_block(address: u64, length: u32) -> Descriptor {
        Descriptor::of(DATA_BLOCK, address, length)
    }

    /// Read data to be dropped (Base 2.0, section 4.1.2.1, SGL Bit Bucket descriptor).
    pub const fn bit_bucket(length: u32) -> Descriptor {
        Descriptor::of(BIT_BUCKET, 0, length)
    }

    /// The next segment, which is not the last (Base 2.0, section 4.1.2.1, SGL Segment descriptor).
    pub const fn segment(address: u64, length: u32) -> Descriptor {
        Descriptor::of(SEGMENT, address, length)
    }

    /// The last segment (Base 2.0, section 4.1.2.1, SGL Last Segment descriptor).
    pub const fn last_segment(address: u64, length: u32) -> Descriptor {
        Descriptor::of(LAST_SEGMENT, address, length)
    }

    /// SGL Descriptor Type (Base 2.0, section 4.1.2.1).
    pub const fn descriptor_type(&self) -> u8 {
        self.kind >> 4
    }

    /// SGL Descriptor Sub Type (Base 2.0, section 4.1.2.1).
    pub const fn sub_type(&self) -> u8 {
        self.kind & 0xf
    }

    const fn of(descriptor_type: u8, address: u64, length: u32) -> Descriptor {
        Descriptor { address, length, reserved: [0; 3], kind: descriptor_type << 4 | SUBTYPE_ADDRESS }
    }
}

/// As the data pointer of a command carries it (Base 2.0, section 3.3.3.1, DPTR).
impl From<Descriptor> for [u64; 2] {
    fn from(descriptor: Descriptor) -> [u64; 2] {
        zerocopy::transmute!(descriptor)
    }
}

/// As the data pointer of a command carries it (Base 2.0, section 3.3.3.1, DPTR).
impl From<[u64; 2]> for Descriptor {
    fn from(words: [u64; 2]) -> Descriptor {
        zerocopy::transmute!(words)
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        assert_eq!(offset_of!(Descriptor, length), 8);
        assert_eq!(offset_of!(Descriptor, kind), 15);
        assert_eq!(Descriptor::last_segment(0, 16).kind, 0x30);
        assert_eq!(Descriptor::segment(0, 16).descriptor_type(), SEGMENT);
        assert_eq!(Descriptor::bit_bucket(8).kind, 0x10);
        assert_eq!(Descriptor { kind: 0xff, ..Descriptor::default() }.sub_type(), 0xf);
    }

    #[test]
    fn a_descriptor_is_two_words() {
        let words: [u64; 2] = Descriptor::segment(0xabcd, 0x30).into();
        assert_eq!(words, [0xabcd, 0x2000_0000_0000_0030]);
        assert_eq!(Descriptor::from(words), Descriptor::segment(0xabcd, 0x30));
    }
}
