//! Completion queue entries (Base 2.0, section 3.3.3.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Status;

/// A completion queue entry, 16 bytes (Base 2.0, section 3.3.3.2).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(16))]
pub struct Completion {
    /// Command specific result.
    pub dw0: u32,
    /// Command specific result, or reserved.
    pub dw1: u32,
    /// SQ Head Pointer at the time of the completion.
    pub sq_head: u16,
    /// SQ Identifier.
    pub sq_id: u16,
    /// Command Identifier.
    pub cid: u16,
    /// Phase Tag in bit 0, Status field in bits 15:1.
    pub status_phase: u16,
}

const _: () = assert!(size_of::<Completion>() == 16);

impl Completion {
    /// The Phase Tag (Base 2.0, section 3.3.3.2.2).
    pub const fn phase(&self) -> bool {
        self.status_phase & 1 != 0
    }

    /// The Status field (Base 2.0, section 3.3.3.2.1).
    pub const fn status(&self) -> Status {
        Status::from_phase_word(self.status_phase)
    }

    /// The entry from the two 64-bit words by which a ring is read (Base 2.0, section 3.3.3.2):
    /// dwords 0 and 1, and dwords 2 and 3 with the phase.
    pub const fn from_words(low: u64, high: u64) -> Completion {
        Completion {
            dw0: low as u32,
            dw1: (low >> 32) as u32,
            sq_head: high as u16,
            sq_id: (high >> 16) as u16,
            cid: (high >> 32) as u16,
            status_phase: (high >> 48) as u16,
        }
    }

    /// The two 64-bit words of [`from_words`](Completion::from_words) (Base 2.0, section 3.3.3.2).
    pub const fn to_words(&self) -> (u64, u64) {
        let low = (self.dw1 as u64) << 32 | self.dw0 as u64;
        let high = (self.status_phase as u64) << 48
            | (self.cid as u64) << 32
            | (self.sq_id as u64) << 16
            | self.sq_head as u64;
        (low, high)
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        assert_eq!(offset_of!(Completion, dw1), 4);
        assert_eq!(offset_of!(Completion, sq_head), 8);
        assert_eq!(offset_of!(Completion, sq_id), 10);
        assert_eq!(offset_of!(Completion, cid), 12);
        assert_eq!(offset_of!(Completion, status_phase), 14);
    }

    #[test]
    fn phase_and_status_share_a_word() {
        let entry = Completion { status_phase: 0x8101, ..Completion::default() };
        assert!(entry.phase());
        assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
        let entry = Completion { status_phase: 0x8100, ..entry };
        assert!(!entry.phase());
        assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
    }

    #[test]
    fn words_are_the_bytes_of_the_entry() {
        let entry = Completion {
            dw0: 0x01020304,
            dw1: 0x05060708,
            sq_head: 0x090a,
            sq_id: 0x0b0c,
            cid: 0x0d0e,
            status_phase: 0x0f10,
        };
        let (low, high) = entry.to_words();
        assert_eq!(entry.as_bytes()[..8], low.to_ne_bytes());
        assert_eq!(entry.as_bytes()[8..], high.to_ne_bytes());
        assert_eq!(Completion::from_words(low, high), entry);
    }
}
