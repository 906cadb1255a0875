//! Data that says where it belongs, and the list of who wrote what.
//!
//! The guest's kernel and kiovec each write patterns that the other reads back. A pattern's bytes are a
//! function of a seed and of their place on the medium alone, however the I/O was cut.

use std::fmt;
use std::str::FromStr;

/// The seed whose pattern is zeros.
pub const ZEROS: u64 = 0;
/// Stands in an [`Extent`] for data that nobody knows: that of a write that failed.
pub const UNKNOWN: u64 = u64::MAX;

/// Fills `data`, which lies at byte `offset` of the namespace, with the pattern of `seed`.
///
/// Both are multiples of eight: the pattern is made of 64-bit words.
pub fn fill(seed: u64, offset: u64, data: &mut [u8]) {
    assert!(offset.is_multiple_of(8) && data.len().is_multiple_of(8), "patterns are made of 64-bit words");
    if seed == ZEROS {
        return data.fill(0);
    }
    for (index, bytes) in data.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(seed, offset / 8 + index as u64).to_le_bytes());
    }
}

/// The first byte, counted on the namespace, at which `data` is not the pattern of `seed`.
pub fn mismatch(seed: u64, offset: u64, data: &[u8]) -> Option<u64> {
    let mut expected = vec![0; data.len()];
    fill(seed, offset, &mut expected);
    let at = data.iter().zip(&expected).position(|(a, b)| a != b)?;
    Some(offset + at as u64)
}

/// The finaliser of splitmix64 over seed and place: neighbours share no bits, so a shift of a block shows.
fn word(seed: u64, index: u64) -> u64 {
    let mut z =
        seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stretch of a namespace that holds the pattern of `seed`, unless that is [`UNKNOWN`]. As text: `EXTENT nsid offset length seed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The namespace.
    pub nsid: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The seed of its pattern.
    pub seed: u64,
}

impl Extent {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EXTENT {} {} {} {}", self.nsid, self.offset, self.len, self.seed)
    }
}

impl FromStr for Extent {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let wrong = || format!("{line:?} is not `EXTENT nsid offset length seed`");
        let mut words = line.strip_prefix("EXTENT ").ok_or_else(wrong)?.split(' ').map(str::parse);
        let mut number = || words.next().and_then(Result::ok).ok_or_else(wrong);
        let nsid: u64 = number()?;
        let extent = Extent {
            nsid: nsid.try_into().map_err(|_| wrong())?,
            offset: number()?,
            len: number()?,
            seed: number()?,
        };
        if words.next().is_some() { Err(wrong()) } else { Ok(extent) }
    }
}

/// The extents in `text`, which may have other lines too.
pub fn manifest(text: &str) -> Result<Vec<Extent>, String> {
    text.lines().filter(|line| line.starts_with("EXTENT ")).map(str::parse).collect()
}

/// What a namespace holds after `over` was written on `base`: the extents of `over`, and what of `base` lies
/// between them. The extents of `over` are within `base`, and apart from each other.
pub fn overlay(base: Extent, over: &[Extent]) -> Result<Vec<Extent>, String> {
    let mut over: Vec<Extent> = over.iter().copied().filter(|extent| extent.nsid == base.nsid).collect();
    over.sort_by_key(|extent| extent.offset);
    let mut all = Vec::new();
    let mut at = base.offset;
    for extent in over {
        if extent.offset < at || extent.end() > base.end() {
            return Err(format!("{extent} overlaps another, or is not within {base}"));
        }
        all.push(Extent { offset: at, len: extent.offset - at, ..base });
        all.push(extent);
        at = extent.end();
    }
    all.push(Extent { offset: at, len: base.end() - at, ..base });
    all.retain(|extent| extent.len > 0);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 8192];
        fill(7, 4096, &mut whole);
        let mut parts = vec![0; 8192];
        let (first, second) = parts.split_at_mut(512);
        fill(7, 4096, first);
        fill(7, 4096 + 512, second);
        assert_eq!(whole, parts);
        assert_eq!(mismatch(7, 4096, &whole), None);
    }

    #[test]
    fn a_wrong_place_seed_or_byte_shows() {
        let mut data = vec![0; 1024];
        fill(7, 0, &mut data);
        assert_eq!(mismatch(7, 512, &data), Some(512));
        assert_eq!(mismatch(8, 0, &data), Some(0));
        data[1000] ^= 1;
        assert_eq!(mismatch(7, 0, &data), Some(1000));
    }

    #[test]
    fn extents_come_back_as_they_were_written() {
        let extent = Extent { nsid: 2, offset: 4096, len: 1 << 22, seed: u64::MAX };
        assert_eq!(manifest(&format!("talk\n{extent}\n")), Ok(vec![extent]));
        for wrong in ["EXTENT 1 2 3", "EXTENT 1 2 3 4 5", "EXTENT 4294967296 2 3 4", "EXTENT a b c d"] {
            assert!(manifest(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_overlay_covers_the_base_without_holes() {
        let extent = |offset, len, seed| Extent { nsid: 1, offset, len, seed };
        let over =
            [extent(90, 10, 3), extent(0, 10, 2), Extent { nsid: 2, ..extent(0, 1, 9) }, extent(10, 5, 4)];
        let expected = [extent(0, 10, 2), extent(10, 5, 4), extent(15, 75, 1), extent(90, 10, 3)];
        assert_eq!(overlay(extent(0, 100, 1), &over).as_deref(), Ok(&expected[..]));
        assert_eq!(overlay(extent(0, 100, 1), &[]), Ok(vec![extent(0, 100, 1)]));
        assert!(overlay(extent(0, 100, 1), &[extent(0, 10, 2), extent(9, 2, 3)]).is_err());
        assert!(overlay(extent(0, 100, 1), &[extent(99, 2, 2)]).is_err());
    }
}
