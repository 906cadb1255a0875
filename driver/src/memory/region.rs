//! A region: one memfd, mapped once here and once, at one IOVA, in every domain of its space.
//!
//! Knows where memory comes from and which parts of it are free; must not know devices.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::MemfdFlags;

use super::domain::{Access, Mapping};
use super::map::{Map, memfd};
use super::ranges::FreeRanges;

/// 2 MiB: the grid that regions keep to, in length and in IOVA.
pub(super) const GRID: u64 = 2 << 20;

/// The pages that a region came to stand on, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pages {
    /// hugetlbfs pages of 1 GiB.
    Huge1G,
    /// hugetlbfs pages of 2 MiB.
    Huge2M,
    /// Transparent huge pages, collapsed after allocation. They stay put once pinned for DMA.
    Collapsed2M,
    /// Pages of 4 KiB: works, and costs more IOMMU and TLB misses.
    Small4K,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pages::Huge1G => "1 GiB hugepages",
            Pages::Huge2M => "2 MiB hugepages",
            Pages::Collapsed2M => "2 MiB transparent hugepages",
            Pages::Small4K => "4 KiB pages",
        })
    }
}

/// Memory with a file behind it, before it has an IOVA.
pub(super) struct Backing {
    file: OwnedFd,
    map: Map,
    pages: Pages,
}

impl Backing {
    /// Gets `len` bytes, a multiple of 2 MiB, on the best pages there are.
    pub(super) fn new(len: u64) -> io::Result<Backing> {
        assert!(len > 0 && len.is_multiple_of(GRID));
        if len.is_multiple_of(1 << 30)
            && let Ok(backing) = Backing::hugetlb(len, MemfdFlags::HUGE_1GB, Pages::Huge1G)
        {
            return Ok(backing);
        }
        Backing::hugetlb(len, MemfdFlags::HUGE_2MB, Pages::Huge2M).or_else(|_| Backing::shmem(len))
    }

    fn hugetlb(len: u64, size: MemfdFlags, pages: Pages) -> io::Result<Backing> {
        let file = memfd("kiovec", len, MemfdFlags::HUGETLB | size)?;
        let map = Map::new(file.as_fd(), 0, len as usize)?;
        // mmap reserved the pages; this can still fail where a cgroup limits them.
        map.populate(0, map.len())?;
        Ok(Backing { file, map, pages })
    }

    fn shmem(len: u64) -> io::Result<Backing> {
        let file = memfd("kiovec", len, MemfdFlags::empty())?;
        let map = Map::aligned(file.as_fd(), len as usize, GRID as usize)?;
        map.populate(0, map.len())?;
        let pages = if map.collapse().is_ok() { Pages::Collapsed2M } else { Pages::Small4K };
        Ok(Backing { file, map, pages })
    }

    pub(super) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// What the IOVA must be congruent to the address by.
    pub(super) fn iova_align(&self) -> u64 {
        if self.pages == Pages::Huge1G { 1 << 30 } else { GRID }
    }
}

/// Memory that is the same for every device of a space.
pub(super) struct Region {
    backing: Backing,
    iova: u64,
    access: Access,
    /// Identifies the space, for the check that a chain belongs to it.
    space: u64,
    free: Mutex<FreeRanges>,
    /// A domain could not unmap it: some device may still reach it, so nothing of it is used again.
    retired: AtomicBool,
}

impl Region {
    pub(super) fn new(backing: Backing, iova: u64, access: Access, space: u64) -> Region {
        let free = Mutex::new(FreeRanges::new(0..backing.len()));
        Region { backing, iova, access, space, free, retired: AtomicBool::new(false) }
    }

    pub(super) fn iova(&self) -> Range<u64> {
        self.iova..self.iova + self.backing.len()
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    pub(super) fn space(&self) -> u64 {
        self.space
    }

    pub(super) fn pages(&self) -> Pages {
        self.backing.pages
    }

    pub(super) fn mapping(&self) -> Mapping<'_> {
        Mapping {
            iova: self.iova,
            memory: self.backing.map.base(),
            len: self.backing.len(),
            file: Some((self.backing.file.as_fd(), 0)),
            access: self.access,
        }
    }

    /// Takes `len` bytes at an address that is a multiple of `align`; `align` is at most 2 MiB.
    pub(super) fn take(&self, len: u64, align: u64) -> Option<u64> {
        if self.is_retired() {
            return None;
        }
        let offset = self.free.lock().unwrap_or_else(PoisonError::into_inner).take(len, align)?;
        Some(self.iova + offset)
    }

    /// Where an address of the region is in this process.
    pub(super) fn pointer(&self, iova: u64) -> NonNull<u8> {
        assert!(self.iova().contains(&iova));
        // SAFETY: within the mapping, as checked.
        unsafe { self.backing.map.base().byte_add((iova - self.iova) as usize) }
    }

    /// Takes back what `take` gave.
    pub(super) fn give(&self, iova: u64, len: u64) {
        let offset = iova - self.iova;
        self.free.lock().unwrap_or_else(PoisonError::into_inner).give(offset..offset + len);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:#x?}, {})", self.iova(), self.pages())
    }
}
