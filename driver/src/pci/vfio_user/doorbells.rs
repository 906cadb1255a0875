//! The doorbells of a controller in another process: mapped where its server lets them be, else messages.
//!
//! Knows which part of BAR0 a server offers as a file, and what must hold of that file; must not know
//! queues.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use zerocopy::IntoBytes;

use super::super::bar::Bar;
use super::super::{DOORBELLS, DoorbellPage, PostedWrites};
use super::connection::Connection;
use super::message::{REGION_BAR0, REGION_MMAP, RegionAccess, RegionInfo, command};
use super::sparse::SparseArea;

/// The most that is mapped: the doorbells of 1024 queue pairs with the widest stride that is in use.
const MOST: u64 = 1 << 20;
/// What offsets of mappings are multiples of.
const PAGE: u64 = 4096;

/// How doorbells get across, decided once for a connection.
#[derive(Debug)]
pub(super) enum Doorbells {
    Mapped { bar: Arc<Bar>, sealed: bool },
    Posted,
}

/// Where doorbells lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Which of the files that came.
    file: usize,
    offset: u64,
    len: u64,
}

impl Doorbells {
    /// Takes what a server said of BAR0. An error says what is wrong with it.
    pub(super) fn of(
        info: &RegionInfo,
        areas: Option<&[SparseArea]>,
        files: &[OwnedFd],
    ) -> Result<Doorbells, String> {
        let Some(place) = place(info, areas, files.len())? else {
            return Ok(Doorbells::Posted);
        };
        let file = files.get(place.file).ok_or("a file is missing")?.as_fd();
        let (bar, sealed) = map(file, place)?;
        Ok(Doorbells::Mapped { bar: Arc::new(bar), sealed })
    }

    /// Whether their file was truncated, so that stores go nowhere.
    pub(super) fn are_lost(&self) -> bool {
        matches!(self, Doorbells::Mapped { bar, .. } if bar.is_lost())
    }

    /// The first `len` bytes of doorbells, of a BAR0 of `bar0` bytes. Those that reach farther than the
    /// mapping are all posted.
    pub(super) fn page(&self, connection: &Arc<Connection>, len: u64, bar0: u64) -> Option<DoorbellPage> {
        match self {
            Doorbells::Mapped { bar, .. } if len <= bar.len() as u64 => bar.doorbells(0, len),
            _ => {
                let fits = DOORBELLS.checked_add(len).is_some_and(|end| end <= bar0);
                let poster = || Arc::new(Poster { connection: Arc::clone(connection) });
                fits.then(|| DoorbellPage::posted(poster(), len))
            }
        }
    }
}

/// Where a server says that doorbells can be mapped; `None` where it says that they cannot.
fn place(info: &RegionInfo, areas: Option<&[SparseArea]>, files: usize) -> Result<Option<Place>, String> {
    if info.flags & REGION_MMAP == 0 || files == 0 {
        return Ok(None);
    }
    let whole = [SparseArea { offset: 0, size: info.size }];
    let areas = areas.unwrap_or(&whole);
    // One file for all areas, or one for each.
    if files > 1 && files != areas.len() {
        return Err(format!("{files} files came with BAR0, which has {} areas to map", areas.len()));
    }
    let end = |area: &SparseArea| area.offset.checked_add(area.size).filter(|end| *end <= info.size);
    if areas.iter().any(|area| end(area).is_none()) {
        return Err(format!("an area of BAR0 ends behind its {:#x} bytes", info.size));
    }
    let Some((index, area)) = areas
        .iter()
        .enumerate()
        .find(|(_, area)| area.offset <= DOORBELLS && end(area).is_some_and(|end| end > DOORBELLS))
    else {
        return Ok(None);
    };
    let Some(offset) = info.offset.checked_add(DOORBELLS) else {
        return Err(format!("BAR0 begins at {:#x} of its file", info.offset));
    };
    let len = (area.offset + area.size - DOORBELLS).min(MOST);
    // What is not on pages cannot be mapped, and need not.
    let mappable = offset.is_multiple_of(PAGE) && area.offset.is_multiple_of(PAGE);
    Ok(mappable.then_some(Place { file: if files == 1 { 0 } else { index }, offset, len }))
}

/// Maps doorbells, and says whether the file is sealed against becoming shorter. A store behind the end of
/// a file is SIGBUS, so the file must be as long as was said, and have memory now.
fn map(file: BorrowedFd<'_>, place: Place) -> Result<(Bar, bool), String> {
    let stat = fstat(file).map_err(|error| format!("the file of its doorbells: {error}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("the file of its doorbells is no ordinary one".into());
    }
    let (size, end) = (stat.st_size as u64, place.offset.saturating_add(place.len));
    if size < end {
        return Err(format!("the file of its doorbells has {size:#x} bytes, and {end:#x} were promised"));
    }
    let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    let cannot = |error: std::io::Error| format!("mapping its doorbells: {error}");
    let bar = Bar::new(file, place.offset, place.len as usize).map_err(cannot)?;
    bar.populate().map_err(cannot)?;
    Ok((bar, sealed))
}

/// Doorbells by REGION_WRITE, with no reply wanted.
struct Poster {
    connection: Arc<Connection>,
}

impl PostedWrites for Poster {
    fn post(&self, offset: u64, value: u32) {
        let access = RegionAccess { offset, region: REGION_BAR0, count: 4 };
        self.connection.post(command::REGION_WRITE, &[access.as_bytes(), &value.to_le_bytes()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR0: RegionInfo = RegionInfo {
        argsz: 32,
        flags: REGION_MMAP | 3,
        index: 0,
        cap_offset: 0,
        size: 0x4000,
        offset: 0x10000,
    };

    fn area(offset: u64, size: u64) -> SparseArea {
        SparseArea { offset, size }
    }

    #[test]
    fn the_area_of_the_doorbells_is_found() {
        let at = |file, len| Ok(Some(Place { file, offset: 0x11000, len }));
        for (areas, files, place) in [
            (None, 1, at(0, 0x3000)),
            (None, 0, Ok(None)),
            (Some(&[area(0x1000, 0x1000)][..]), 1, at(0, 0x1000)),
            (Some(&[area(0x1000, 8)]), 1, at(0, 8)),
            (Some(&[area(0, 0x4000)]), 1, at(0, 0x3000)),
            (Some(&[area(0x3000, 0x1000), area(0x1000, 0x2000)]), 1, at(0, 0x2000)),
            (Some(&[area(0x3000, 0x1000), area(0x1000, 0x2000)]), 2, at(1, 0x2000)),
            (Some(&[area(0x800, 0x1000)]), 1, Ok(None)),
            (Some(&[area(0, 0x1000), area(0x2000, 0x1000)]), 1, Ok(None)),
            (Some(&[area(0x1000, 0)]), 1, Ok(None)),
            (Some(&[]), 1, Ok(None)),
        ] {
            assert_eq!(super::place(&BAR0, areas, files), place, "{areas:?} {files}");
        }
        assert_eq!(super::place(&RegionInfo { flags: 3, ..BAR0 }, None, 0), Ok(None));
        assert_eq!(super::place(&RegionInfo { offset: 0x10800, ..BAR0 }, None, 1), Ok(None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (areas, files) in [
            (Some(&[area(0x1000, 0x1000)][..]), 2),
            (None, 8),
            (Some(&[area(0x1000, 0x3001)]), 1),
            (Some(&[area(0x1000, 0x1000), area(u64::MAX, 2)]), 1),
        ] {
            assert!(super::place(&BAR0, areas, files).is_err(), "{areas:?} {files}");
        }
        assert!(super::place(&RegionInfo { offset: u64::MAX, ..BAR0 }, None, 1).is_err());
    }

    #[test]
    fn a_file_that_is_too_short_or_no_file_is_refused() {
        use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
        let place = Place { file: 0, offset: 0x1000, len: 0x1000 };
        let file = memfd_create("doorbells", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, 0x1fff).unwrap();
        assert!(map(file.as_fd(), place).unwrap_err().contains("0x1fff"));
        ftruncate(&file, 0x2000).unwrap();
        assert!(!map(file.as_fd(), place).unwrap().1);
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert!(map(file.as_fd(), place).unwrap().1);
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(map(read.as_fd(), place).unwrap_err().contains("ordinary"));
    }
}
