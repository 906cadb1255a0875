//! How memory is made reachable for devices: one [`Domain`] is one translation table, of an IOMMU
//! container, of a socket peer, or of an emulated controller.
//!
//! Knows mappings; must not know which device or IOMMU stands behind one.

use std::any::Any;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use crate::Result;

/// What the device may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only: submission queues and PRP lists.
    Read,
    /// Read and write: data and completion queues.
    ReadWrite,
}

/// A piece of memory that a [`Domain`] is to make reachable at an IOVA.
///
/// Only this crate's `memory` module makes these, and it calls [`Domain::unmap`] before the memory
/// goes away: an implementation may hand the memory to a device from `map` to `unmap`, and may
/// read and write it through raw pointers in that time.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    pub(super) iova: u64,
    pub(super) memory: NonNull<u8>,
    pub(super) len: u64,
    pub(super) file: Option<(BorrowedFd<'a>, u64)>,
    pub(super) access: Access,
}

impl Mapping<'_> {
    /// The address that the device uses. A multiple of 4096.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// The memory in this process.
    pub fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    /// Length in bytes. A multiple of 4096, never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file that backs the memory and the offset of the mapping in it, where there is one.
    pub fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.file
    }

    /// What the device may do with it.
    pub fn access(&self) -> Access {
        self.access
    }
}

/// One translation table: whatever is mapped in it, every device behind it reaches.
pub trait Domain: Any + Send + Sync {
    /// Whose table it is, for messages.
    fn name(&self) -> String;

    /// The IOVAs that can be mapped, ascending and disjoint.
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>>;

    /// Makes memory reachable. Overlaps with an earlier mapping are an error.
    fn map(&self, mapping: &Mapping<'_>) -> Result<()>;

    /// Ends what `map` began, for exactly the same range. When this returns, the device can no
    /// longer reach the memory.
    fn unmap(&self, iova: u64, len: u64) -> Result<()>;
}

impl fmt::Debug for dyn Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.name())
    }
}
