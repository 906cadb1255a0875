//! Capability chains of VFIO's info structures: which IOVAs there are, which parts of a BAR map.
//!
//! Pure parsing of what the kernel wrote; must not make calls.

use std::ops::{Range, RangeInclusive};

use vfio_bindings::bindings::vfio as abi;

/// No info structure has more capabilities than this.
const LIMIT: usize = 64;

/// What is needed of a region.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it lies in the device's file.
    pub(super) offset: u64,
    pub(super) size: u64,
    /// The parts that mmap accepts, as offsets in the region.
    pub(super) mappable: Vec<Range<u64>>,
}

impl Region {
    pub(super) fn parse(info: &[u32]) -> Option<Region> {
        // struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
        let flags = *info.get(1)?;
        let (size, offset) = (word64(info, 16)?, word64(info, 24)?);
        let mappable = match capability(info, *info.get(3)?, abi::VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16) {
            _ if flags & abi::VFIO_REGION_INFO_FLAG_MMAP == 0 => Vec::new(),
            Some(at) if flags & abi::VFIO_REGION_INFO_FLAG_CAPS != 0 => {
                pairs(info, at).map(|(offset, size)| offset..offset.saturating_add(size)).collect()
            }
            _ => std::iter::once(0..size).collect(),
        };
        Some(Region { offset, size, mappable })
    }

    /// The part that maps from offset 0 on.
    pub(super) fn mappable_from_start(&self) -> u64 {
        self.mappable.iter().find(|part| part.start == 0).map_or(0, |part| part.end.min(self.size))
    }
}

/// The IOVAs that a container can map. Kernels before 5.4 do not say: then all of them.
pub(super) fn iova_ranges(info: &[u32]) -> Vec<RangeInclusive<u64>> {
    const IOVA_RANGE: u16 = 1;
    // struct vfio_iommu_type1_info: argsz, flags, iova_pgsizes (64 bits), cap_offset.
    let has_capabilities = info.get(1).is_some_and(|flags| flags & abi::VFIO_IOMMU_INFO_CAPS != 0);
    let at = info.get(4).filter(|_| has_capabilities).and_then(|at| capability(info, *at, IOVA_RANGE));
    match at {
        None => std::iter::once(0..=u64::MAX).collect(),
        Some(at) => pairs(info, at).map(|(start, end)| start..=end).collect(),
    }
}

/// Both capabilities used here are a header, a count, a word of padding, and pairs of 64-bit words.
fn pairs(info: &[u32], at: usize) -> impl Iterator<Item = (u64, u64)> {
    let count = info.get(at / 4 + 2).copied().unwrap_or(0) as usize;
    let fits = info.len() / 4;
    (0..count.min(fits))
        .map_while(move |i| Some((word64(info, at + 16 + i * 16)?, word64(info, at + 24 + i * 16)?)))
}

/// The byte offset of the first capability with an id. Header: id and version (16 bits each), next.
fn capability(info: &[u32], first: u32, id: u16) -> Option<usize> {
    let mut at = first as usize;
    for _ in 0..LIMIT {
        if at == 0 || !at.is_multiple_of(4) {
            return None;
        }
        if *info.get(at / 4)? as u16 == id {
            return Some(at);
        }
        at = *info.get(at / 4 + 1)? as usize;
    }
    None
}

fn word64(info: &[u32], at: usize) -> Option<u64> {
    let low = u64::from(*info.get(at / 4)?);
    Some(low | u64::from(*info.get(at / 4 + 1)?) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn push64(info: &mut Vec<u32>, value: u64) {
        info.extend([value as u32, (value >> 32) as u32]);
    }

    #[test]
    fn reads_iova_ranges_behind_another_capability() {
        // argsz, flags, page sizes, cap_offset, pad; a capability with id 3; the IOVA ranges.
        let mut info = vec![0, abi::VFIO_IOMMU_INFO_CAPS, 0x1000, 0, 24, 0];
        info.extend([3 | 1 << 16, 36, 65535]);
        info.extend([1 | 1 << 16, 0, 2, 0]);
        for value in [0, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            push64(&mut info, value);
        }
        assert_eq!(iova_ranges(&info), [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!(iova_ranges(&[20, 0, 0x1000, 0, 0]), [0..=u64::MAX]);
    }

    #[test]
    fn a_sparse_region_maps_only_its_areas() {
        let flags = abi::VFIO_REGION_INFO_FLAG_MMAP | abi::VFIO_REGION_INFO_FLAG_CAPS;
        let mut info = vec![0, flags, 0, 32];
        push64(&mut info, 0x4000);
        push64(&mut info, 1 << 40);
        info.extend([abi::VFIO_REGION_INFO_CAP_SPARSE_MMAP | 1 << 16, 0, 2, 0]);
        for value in [0, 0x2000, 0x3000, 0x1000] {
            push64(&mut info, value);
        }
        let region = Region::parse(&info).unwrap();
        assert_eq!(
            region,
            Region { offset: 1 << 40, size: 0x4000, mappable: vec![0..0x2000, 0x3000..0x4000] }
        );
        assert_eq!(region.mappable_from_start(), 0x2000);
        info[1] = abi::VFIO_REGION_INFO_FLAG_MMAP;
        assert_eq!(Region::parse(&info).unwrap().mappable_from_start(), 0x4000);
        info[1] = 0;
        assert_eq!(Region::parse(&info).unwrap().mappable_from_start(), 0);
    }

    proptest! {
        #[test]
        fn no_input_panics_or_loops(info in proptest::collection::vec(0..64u32, 0..32)) {
            let _ = (iova_ranges(&info), Region::parse(&info));
        }
    }
}
