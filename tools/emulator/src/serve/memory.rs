//! The memory that a client has shared: what it has mapped, and what of that the controller can reach.
//!
//! Knows DMA_MAP and DMA_UNMAP; must not know what the memory is used for.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kiovec::memory::{Access, SigbusHandler};
use kiovec::pci::vfio_user::message::{DMA_READABLE, DMA_WRITEABLE, DmaMap, DmaUnmap};
use rustix::io::Errno;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection,
    GuestUsize,
};

use crate::controller::Controller;
use crate::mapped_file::MappedFile;

/// Mappings that a client can have at a time.
pub(super) const MAX_MAPPINGS: usize = 4096;
/// Bytes of files that a client can have mapped at a time: far less than this process has addresses, of
/// which it needs some for itself.
const MAX_BYTES: u64 = 1 << 44;
/// Flags of DMA_UNMAP: with the dirty pages, and all mappings.
const UNMAP_DIRTY_BITMAP: u32 = 1 << 0;
const UNMAP_ALL: u32 = 1 << 1;

/// A part of a client's file, at an IOVA.
#[derive(Debug)]
struct Region {
    iova: GuestAddress,
    file: Arc<MappedFile>,
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.file.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.iova
    }

    fn bitmap(&self) {}
}

impl GuestMemoryRegionBytes for Region {}

/// The DMA table of one client. Its regions are the controller's mappings.
#[derive(Debug)]
pub(super) struct ClientMemory {
    regions: GuestRegionCollection<Region>,
    /// Mappings without a file, by IOVA, and their lengths: the controller faults there.
    unreachable: BTreeMap<u64, u64>,
    /// Written when the client has truncated a file of a mapping.
    lost: Arc<OwnedFd>,
    sigbus: SigbusHandler,
}

impl ClientMemory {
    pub(super) fn new(lost: Arc<OwnedFd>, sigbus: SigbusHandler) -> ClientMemory {
        ClientMemory { regions: GuestRegionCollection::default(), unreachable: BTreeMap::new(), lost, sigbus }
    }

    /// Readable when the client has truncated a file.
    pub(super) fn lost(&self) -> &OwnedFd {
        &self.lost
    }

    /// DMA_MAP. EINVAL for what is wrong in itself, EEXIST for what overlaps, ENOSPC for too many or
    /// too much.
    pub(super) fn map(
        &mut self,
        controller: &mut Controller,
        map: &DmaMap,
        files: &[OwnedFd],
    ) -> Result<(), Errno> {
        let access = match map.flags {
            DMA_READABLE => Access::Read,
            flags if flags & DMA_WRITEABLE != 0 && flags & !(DMA_READABLE | DMA_WRITEABLE) == 0 => {
                Access::ReadWrite
            }
            _ => return Err(Errno::INVAL),
        };
        let end = map.address.checked_add(map.size).ok_or(Errno::INVAL)?;
        if map.size == 0 || !(map.address | map.size).is_multiple_of(4096) {
            return Err(Errno::INVAL);
        }
        if self.regions.num_regions() + self.unreachable.len() >= MAX_MAPPINGS {
            return Err(Errno::NOSPC);
        }
        if self.overlaps(map.address..end) {
            return Err(Errno::EXIST);
        }
        match files {
            [] => {
                self.unreachable.insert(map.address, map.size);
                Ok(())
            }
            [file] => self.map_file(controller, map, access, file),
            _ => Err(Errno::INVAL),
        }
    }

    fn map_file(
        &mut self,
        controller: &mut Controller,
        map: &DmaMap,
        access: Access,
        file: &OwnedFd,
    ) -> Result<(), Errno> {
        if !map.offset.is_multiple_of(4096) {
            return Err(Errno::INVAL);
        }
        let mapped: u64 = self.regions.iter().map(|region| region.len()).sum();
        if map.size > MAX_BYTES - mapped {
            return Err(Errno::NOSPC);
        }
        let file = MappedFile::new(file.as_fd(), map.offset, map.size, access, &self.lost, self.sigbus)?;
        let file = Arc::new(file);
        let region = Arc::new(Region { iova: GuestAddress(map.address), file: Arc::clone(&file) });
        let regions = self.regions.insert_region(region).map_err(|_| Errno::EXIST)?;
        controller.dma().map_file(map.address, file, access).map_err(|_| Errno::EXIST)?;
        self.regions = regions;
        Ok(())
    }

    /// DMA_UNMAP, of all mappings within a range; returns their bytes, 0 where there are none. EINVAL where
    /// it cuts one. The caller holds the controller: when this returns, it reaches none of them.
    pub(super) fn unmap(&mut self, controller: &mut Controller, unmap: &DmaUnmap) -> Result<u64, Errno> {
        if unmap.flags & UNMAP_DIRTY_BITMAP != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let range = match unmap.flags {
            0 => pages(unmap.address, unmap.size).ok_or(Errno::INVAL)?,
            UNMAP_ALL if unmap.address == 0 && unmap.size == 0 => 0..=u64::MAX,
            _ => return Err(Errno::INVAL),
        };
        let touched = |mapping: &Range<u64>| mapping.start <= *range.end() && *range.start() < mapping.end;
        let within =
            |mapping: &Range<u64>| range.contains(&mapping.start) && range.contains(&(mapping.end - 1));
        let mappings: Vec<Range<u64>> = self.mappings().filter(touched).collect();
        if !mappings.iter().all(within) {
            return Err(Errno::INVAL);
        }
        mappings.iter().for_each(|mapping| self.remove(controller, mapping));
        Ok(mappings.iter().map(|mapping| mapping.end - mapping.start).sum())
    }

    fn remove(&mut self, controller: &mut Controller, mapping: &Range<u64>) {
        let len = mapping.end - mapping.start;
        if self.unreachable.remove(&mapping.start).is_some() {
            return;
        }
        // What is in this table is in the controller's.
        let _ = controller.dma().unmap(mapping.start, len);
        if let Ok((regions, _)) = self.regions.remove_region(GuestAddress(mapping.start), len) {
            self.regions = regions;
        }
    }

    fn overlaps(&self, range: Range<u64>) -> bool {
        self.mappings().any(|mapping| mapping.start < range.end && range.start < mapping.end)
    }

    /// All mappings, reachable or not.
    fn mappings(&self) -> impl Iterator<Item = Range<u64>> {
        let reachable = self.regions.iter().map(|region| (region.iova.0, region.len()));
        let unreachable = self.unreachable.iter().map(|(start, len)| (*start, *len));
        reachable.chain(unreachable).map(|(start, len)| start..start + len)
    }
}

/// Whole pages, which may be the last ones that there are.
fn pages(address: u64, size: u64) -> Option<RangeInclusive<u64>> {
    let last = address.checked_add(size.checked_sub(1)?)?;
    (address | size).is_multiple_of(4096).then_some(address..=last)
}
