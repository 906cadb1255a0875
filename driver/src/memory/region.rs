//! A region: memory that is mapped once here and once, at one IOVA, in every domain of its space.
//!
//! Knows where memory comes from and where it lies; must not know who gets which part of it, nor
//! devices.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::MemfdFlags;
use vm_memory::FileOffset;

use super::PAGE_SIZE;
use super::domain::{Access, Mapping};
use super::map::{Map, memfd};
use crate::{Error, Result};

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

/// Memory and what keeps it, before it has an IOVA.
pub(super) struct Backing {
    memory: NonNull<u8>,
    len: u64,
    file: Option<FileOffset>,
    /// Known only of memory of our own.
    pages: Option<Pages>,
    /// Keeps the memory. Never used, only dropped.
    _owner: Box<dyn Send>,
}

// SAFETY: `memory` is an address range; what is done with it is up to the holders of segments, each
// of whom says why he may. The owner is Send and is only ever dropped.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Backing {
    /// Gets `len` bytes of our own, a multiple of 2 MiB, on the best pages there are.
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
        Ok(Backing::mapped(file, map, pages))
    }

    fn shmem(len: u64) -> io::Result<Backing> {
        let file = memfd("kiovec", len, MemfdFlags::empty())?;
        let map = Map::aligned(file.as_fd(), len as usize, GRID as usize)?;
        map.populate(0, map.len())?;
        let pages = if map.collapse().is_ok() { Pages::Collapsed2M } else { Pages::Small4K };
        Ok(Backing::mapped(file, map, pages))
    }

    fn mapped(file: OwnedFd, map: Map, pages: Pages) -> Backing {
        Backing {
            memory: map.base(),
            len: map.len() as u64,
            file: Some(FileOffset::new(File::from(file), 0)),
            pages: Some(pages),
            _owner: Box::new(map),
        }
    }

    /// Memory that came from elsewhere, and the file that it is a shared mapping of, if any.
    ///
    /// # Safety
    /// The memory is initialised and may be read and written through raw pointers until the owner is
    /// dropped.
    pub(super) unsafe fn external(
        memory: NonNull<[u8]>,
        file: Option<FileOffset>,
        owner: Box<dyn Send>,
    ) -> Result<Backing> {
        let (len, memory) = (memory.len() as u64, memory.cast::<u8>());
        if len == 0
            || !len.is_multiple_of(PAGE_SIZE)
            || !memory.addr().get().is_multiple_of(PAGE_SIZE as usize)
        {
            return Err(Error::InvalidInput(format!(
                "memory at {memory:p} of {len} bytes is not whole pages of {PAGE_SIZE} bytes, and an IOMMU maps \
                 nothing smaller; align its start and its length (an mmap is aligned, and so is a vector of a type \
                 of 4096 bytes with #[repr(align(4096))])"
            )));
        }
        Ok(Backing { memory, len, file, pages: None, _owner: owner })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What the IOVA is to be congruent to the address by, so that the IOMMU can use pages as large
    /// as those of the memory.
    pub(super) fn iova_align(&self) -> u64 {
        if self.pages == Some(Pages::Huge1G) { 1 << 30 } else { GRID }
    }

    /// Where the memory lies in this process.
    pub(super) fn address(&self) -> Range<u64> {
        let start = self.memory.addr().get() as u64;
        start..start + self.len
    }
}

/// Memory that is the same for every device of a space.
pub(super) struct Region {
    backing: Backing,
    iova: u64,
    access: Access,
    /// Some device may reach it for ever: none of it that one owner had is given to another.
    retired: AtomicBool,
}

impl Region {
    pub(super) fn new(backing: Backing, iova: u64, access: Access) -> Region {
        Region { backing, iova, access, retired: AtomicBool::new(false) }
    }

    pub(super) fn iova(&self) -> Range<u64> {
        self.iova..self.iova + self.backing.len
    }

    /// The 2 MiB blocks of IOVA that the region lies in, which no other one lies in: a block is what
    /// a page of the PRP table lists.
    pub(super) fn blocks(&self) -> Range<u64> {
        self.iova / GRID * GRID..self.iova().end.next_multiple_of(GRID)
    }

    /// Where the memory lies in this process.
    pub(super) fn address(&self) -> Range<u64> {
        self.backing.address()
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    pub(super) fn pages(&self) -> Option<Pages> {
        self.backing.pages
    }

    pub(super) fn mapping(&self) -> Mapping<'_> {
        Mapping {
            iova: self.iova,
            memory: self.backing.memory,
            len: self.backing.len,
            file: self.backing.file.as_ref().map(|file| (file.file().as_fd(), file.start())),
            access: self.access,
        }
    }

    /// Where an address of the region is in this process.
    pub(super) fn pointer(&self, iova: u64) -> NonNull<u8> {
        assert!(self.iova().contains(&iova));
        // SAFETY: within the memory, as checked.
        unsafe { self.backing.memory.byte_add((iova - self.iova) as usize) }
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
        let iova = self.iova();
        match self.pages() {
            Some(pages) => write!(f, "Region({iova:#x?}, {pages})"),
            None => write!(f, "Region({iova:#x?}, external)"),
        }
    }
}
