//! Which parts of a region can be mapped: the capability that follows a region's information.
//!
//! Knows the capability list's format; must not know what is mapped.
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::message::{REGION_CAPS, RegionInfo};

/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
const SPARSE_MMAP: u16 = 1;
/// Areas that are looked at, at most.
const MAX_AREAS: u32 = 64;
/// Capabilities that are looked at, at most.
const MAX_CAPABILITIES: usize = 16;

/// A part of a region that can be mapped from the region's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseArea {
    /// From the start of the region; the region's offset in the file is added to it.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CapabilityHeader {
    id: u16,
    version: u16,
    next: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SparseMmap {
    header: CapabilityHeader,
    nr_areas: u32,
    reserved: u32,
}

/// A capability list that leads out of its message, does not end, or is too long.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the capability list of a region leads nowhere")]
pub struct BadCapabilityList;

impl SparseArea {
    /// The areas that a reply to DEVICE_GET_REGION_INFO lists, given its whole payload. `None` where it
    /// has no such list: then the region can be mapped as a whole, or not at all.
    pub fn list(payload: &[u8]) -> Result<Option<Vec<SparseArea>>, BadCapabilityList> {
        let (info, _) = RegionInfo::read_from_prefix(payload).map_err(|_| BadCapabilityList)?;
        if info.flags & REGION_CAPS == 0 {
            return Ok(None);
        }
        let mut at = info.cap_offset;
        for _ in 0..MAX_CAPABILITIES {
            let here = payload.get(at as usize..).filter(|_| at as usize >= size_of::<RegionInfo>());
            let here = here.ok_or(BadCapabilityList)?;
            let (header, _) = CapabilityHeader::read_from_prefix(here).map_err(|_| BadCapabilityList)?;
            match (header.id, header.next) {
                (SPARSE_MMAP, _) => return areas(here).map(Some),
                (_, 0) => return Ok(None),
                (_, next) => at = next,
            }
        }
        Err(BadCapabilityList)
    }

    /// The payload of a reply to DEVICE_GET_REGION_INFO that lists areas: `info` with its size, flags and
    /// offset of capabilities filled in. Without areas there is no list.
    pub fn region_info_payload(info: RegionInfo, areas: &[SparseArea]) -> Vec<u8> {
        let list = if areas.is_empty() { 0 } else { size_of::<SparseMmap>() + size_of_val(areas) };
        let fixed = size_of::<RegionInfo>();
        let info = RegionInfo {
            argsz: (fixed + list) as u32,
            flags: if list == 0 { info.flags & !REGION_CAPS } else { info.flags | REGION_CAPS },
            cap_offset: if list == 0 { 0 } else { fixed as u32 },
            ..info
        };
        let mut payload = info.as_bytes().to_vec();
        if list > 0 {
            let header = CapabilityHeader { id: SPARSE_MMAP, version: 1, next: 0 };
            let sparse = SparseMmap { header, nr_areas: areas.len() as u32, reserved: 0 };
            payload.extend_from_slice(sparse.as_bytes());
            payload.extend_from_slice(areas.as_bytes());
        }
        payload
    }
}

fn areas(capability: &[u8]) -> Result<Vec<SparseArea>, BadCapabilityList> {
    let (sparse, rest) = SparseMmap::read_from_prefix(capability).map_err(|_| BadCapabilityList)?;
    if sparse.nr_areas > MAX_AREAS {
        return Err(BadCapabilityList);
    }
    let (chunks, _) = rest.as_chunks::<{ size_of::<SparseArea>() }>();
    let areas: Vec<_> =
        chunks.iter().take(sparse.nr_areas as usize).map(|bytes| zerocopy::transmute!(*bytes)).collect();
    if areas.len() < sparse.nr_areas as usize { Err(BadCapabilityList) } else { Ok(areas) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INFO: RegionInfo =
        RegionInfo { argsz: 0, flags: 7, index: 0, cap_offset: 9, size: 1 << 14, offset: 0 };

    #[test]
    fn what_is_written_is_read() {
        let none = SparseArea::region_info_payload(INFO, &[]);
        assert_eq!((none.len(), SparseArea::list(&none)), (32, Ok(None)));
        let areas = [SparseArea { offset: 0x1000, size: 0x1000 }, SparseArea { offset: 0x3000, size: 5 }];
        let mut payload = SparseArea::region_info_payload(INFO, &areas);
        assert_eq!(payload.len(), 32 + 16 + 32);
        let (info, _) = RegionInfo::read_from_prefix(&payload).unwrap();
        assert_eq!((info.argsz, info.flags, info.cap_offset), (80, 15, 32));
        payload.extend([0xff; 100]);
        assert_eq!(SparseArea::list(&payload), Ok(Some(areas.to_vec())));
    }

    #[test]
    fn a_list_cut_off_anywhere_is_refused() {
        let areas = [SparseArea { offset: 0x1000, size: 0x1000 }];
        let payload = SparseArea::region_info_payload(INFO, &areas);
        for len in 0..payload.len() {
            assert_eq!(SparseArea::list(&payload[..len]), Err(BadCapabilityList), "{len}");
        }
    }

    #[test]
    fn a_list_that_never_ends_or_is_huge_is_refused() {
        let info = RegionInfo { flags: 15, cap_offset: 32, ..INFO };
        let other = |next: u32| CapabilityHeader { id: 9, version: 1, next };
        let list = |header: CapabilityHeader| [info.as_bytes(), header.as_bytes()].concat();
        assert_eq!(SparseArea::list(&list(other(0))), Ok(None));
        for next in [32, 1, 33, 40, u32::MAX] {
            assert_eq!(SparseArea::list(&list(other(next))), Err(BadCapabilityList), "{next}");
        }
        let header = CapabilityHeader { id: SPARSE_MMAP, version: 1, next: 0 };
        let huge = SparseMmap { header, nr_areas: u32::MAX, reserved: 0 };
        assert_eq!(SparseArea::list(&[info.as_bytes(), huge.as_bytes()].concat()), Err(BadCapabilityList));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(mut bytes in prop::collection::vec(any::<u8>(), 0..200), offset in 0u32..220) {
            if let Some(flags) = bytes.get_mut(4) {
                *flags |= 8;
            }
            if let Some(at) = bytes.get_mut(12..16) {
                at.copy_from_slice(&offset.to_ne_bytes());
            }
            let _ = SparseArea::list(&bytes);
        }
    }
}
