//! The PRP lists of all memory of a space, written once.
//!
//! Entry `i` of the table is the address `i · 4096`, so the list for the pages that follow page `p`
//! begins at the table's address plus `8 · (p + 1)`: a PRP list pointer may have an offset in its
//! page (NVM Express Base Specification, "Physical Region Page Entry and List"). One page of the
//! table covers one 2 MiB block of IOVAs. The table spans the whole window and is backed only where
//! there are regions.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;

use super::PAGE_SIZE;
use super::domain::{Access, Mapping};
use super::map::{Map, memfd};

/// Bytes of IOVA space that one byte of the table stands for.
const RATIO: u64 = PAGE_SIZE / 8;

pub(super) struct PrpTable {
    file: OwnedFd,
    map: Map,
    iova: u64,
}

impl PrpTable {
    /// Bytes of a table for IOVAs below `end`.
    pub(super) fn len_for(end: u64) -> u64 {
        end.div_ceil(RATIO).next_multiple_of(PAGE_SIZE)
    }

    pub(super) fn new(iova: u64, end: u64) -> io::Result<PrpTable> {
        let len = Self::len_for(end);
        let file = memfd("kiovec-prp", len, MemfdFlags::empty())?;
        let map = Map::new(file.as_fd(), 0, len as usize)?;
        Ok(PrpTable { file, map, iova })
    }

    pub(super) fn iova(&self) -> u64 {
        self.iova
    }

    /// Writes the entries of a region's 2 MiB blocks.
    pub(super) fn fill(&self, blocks: &Range<u64>) -> io::Result<()> {
        let bytes = Self::bytes_of(blocks);
        self.map.populate(bytes.start as usize, (bytes.end - bytes.start) as usize)?;
        for page in (blocks.start..blocks.end).step_by(PAGE_SIZE as usize) {
            let offset = (page / RATIO) as usize;
            assert!(offset + 8 <= self.map.len(), "a region lies outside the window");
            // SAFETY: within the table, as checked; the blocks of a region are its own, so no device
            // and no other thread reads these entries before the region exists.
            unsafe { self.map.base().byte_add(offset).cast::<u64>().write(page.to_le()) };
        }
        Ok(())
    }

    /// Gives the entries of blocks back that no device reaches any more.
    pub(super) fn release(&self, blocks: &Range<u64>) {
        let bytes = Self::bytes_of(blocks);
        self.map.discard(bytes.start as usize, (bytes.end - bytes.start) as usize);
    }

    /// The part of the table that serves a region's blocks.
    pub(super) fn mapping(&self, blocks: &Range<u64>) -> Mapping<'_> {
        let bytes = Self::bytes_of(blocks);
        Mapping {
            iova: self.iova + bytes.start,
            // SAFETY: the blocks lie in the window, which the table spans.
            memory: unsafe { self.map.base().byte_add(bytes.start as usize) },
            len: bytes.end - bytes.start,
            file: Some((self.file.as_fd(), bytes.start)),
            access: Access::Read,
        }
    }

    fn bytes_of(blocks: &Range<u64>) -> Range<u64> {
        blocks.start / RATIO..blocks.end / RATIO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_i_is_page_i() {
        let table = PrpTable::new(0x2000_0000, 1 << 32).unwrap();
        let blocks = 0x60_0000..0xa0_0000;
        table.fill(&blocks).unwrap();
        let mapping = table.mapping(&blocks);
        assert_eq!(mapping.iova(), 0x2000_0000 + 3 * 4096);
        assert_eq!(mapping.len(), 2 * 4096);
        // SAFETY: within the mapping, which nobody else uses.
        let entry = |i| unsafe { mapping.memory().cast::<u64>().add(i).read() };
        for (i, page) in blocks.clone().step_by(4096).enumerate() {
            assert_eq!(entry(i), page);
        }
        table.release(&blocks);
        assert_eq!(entry(0), 0, "the memory was given back");
    }
}
