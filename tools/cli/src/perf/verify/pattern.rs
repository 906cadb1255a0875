//! What a verified block contains, and what can be read from one that is not as expected.
//!
//! A block is pairs of 64-bit words: its LBA, and its generation below a mark of the run, each
//! combined with a key that differs from place to place and from seed to seed. So every byte of the
//! block is determined by seed, LBA, generation and place, and every pair, wherever it turns up,
//! still tells which LBA and generation it was written for.

use std::fmt;

use crate::perf::random::{Random, mix};

/// Bytes of a pair.
const PAIR: usize = 16;
/// What a buffer holds before it is read into: a device that does not write there is found out.
const POISON: u8 = 0xa5;

/// The contents of all blocks of a run.
#[derive(Debug)]
pub struct Pattern {
    keys: Box<[[u64; 2]]>,
    mark: u32,
}

/// A block that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The block that was read.
    pub lba: u64,
    /// The generation that was written last.
    pub generation: u32,
    /// The first byte that is wrong.
    pub byte: usize,
    /// The eight bytes around it as they should be.
    pub expected: [u8; 8],
    /// As they are.
    pub got: [u8; 8],
    pub found: Found,
}

/// What a wrong block seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All of it belongs to another LBA.
    Misplaced {
        lba: u64,
        generation: u32,
    },
    /// All of it was there before the last write.
    Stale {
        generation: u32,
    },
    /// Part of it is as expected, and part of it is from elsewhere or earlier.
    Torn {
        lba: u64,
        generation: u32,
    },
    /// A few bytes are wrong, and all others as expected.
    Corrupt,
    /// Nothing was read into this part of the buffer.
    Untouched,
    Zeros,
    /// Nothing that this run wrote.
    Foreign,
}

impl Pattern {
    pub fn new(seed: u64, block_size: usize) -> Pattern {
        assert!(block_size > 0 && block_size.is_multiple_of(PAIR), "blocks are whole pairs of words");
        let mut random = Random::new(mix(seed));
        let mark = random.next() as u32;
        let keys = (0..block_size / PAIR).map(|_| [random.next(), random.next()]).collect();
        Pattern { keys, mark }
    }

    /// Writes a block.
    pub fn fill(&self, lba: u64, generation: u32, block: &mut [u8]) {
        for (pair, key) in block.chunks_exact_mut(PAIR).zip(&self.keys) {
            pair.copy_from_slice(&self.pair(lba, generation, key));
        }
    }

    /// Makes a buffer ready for being read into.
    pub fn poison(buffer: &mut [u8]) {
        buffer.fill(POISON);
    }

    /// Compares all of a block that was read.
    pub fn check(&self, lba: u64, generation: u32, block: &[u8]) -> Result<(), Mismatch> {
        let pairs = block.chunks_exact(PAIR).zip(&self.keys);
        match pairs.clone().all(|(pair, key)| pair == self.pair(lba, generation, key)) {
            true => Ok(()),
            false => Err(self.mismatch(lba, generation, block)),
        }
    }

    #[inline(always)]
    fn pair(&self, lba: u64, generation: u32, key: &[u64; 2]) -> [u8; PAIR] {
        let second = u64::from(self.mark) << 32 | u64::from(generation);
        let mut pair = [0; PAIR];
        pair[..8].copy_from_slice(&(lba ^ key[0]).to_le_bytes());
        pair[8..].copy_from_slice(&(second ^ key[1]).to_le_bytes());
        pair
    }

    /// The LBA and generation that a pair was written for, if it was in this run.
    fn decode(&self, pair: &[u8], key: &[u64; 2]) -> Option<(u64, u32)> {
        let word = |half: &[u8]| half.try_into().map(u64::from_le_bytes).ok();
        let (first, second) = pair.split_at_checked(8)?;
        let (lba, second) = (word(first)? ^ key[0], word(second)? ^ key[1]);
        (second >> 32 == u64::from(self.mark)).then_some((lba, second as u32))
    }

    #[cold]
    fn mismatch(&self, lba: u64, generation: u32, block: &[u8]) -> Mismatch {
        let mut expected = vec![0; block.len()];
        self.fill(lba, generation, &mut expected);
        let byte = block.iter().zip(&expected).position(|(got, expected)| got != expected).unwrap_or(0);
        let word = byte / 8 * 8;
        let eight = |bytes: &[u8]| bytes[word..word + 8].try_into().unwrap_or_default();
        let (got, expected) = (eight(block), eight(&expected));
        Mismatch { lba, generation, byte, expected, got, found: self.identify(lba, generation, byte, block) }
    }

    /// What the first wrong pair says, and whether all others say the same.
    fn identify(&self, lba: u64, generation: u32, byte: usize, block: &[u8]) -> Found {
        let pairs = block.chunks_exact(PAIR).zip(&self.keys);
        let wrong = pairs.clone().filter(|(pair, key)| *pair != self.pair(lba, generation, key)).count();
        let place = byte / PAIR;
        match self.decode(&block[place * PAIR..][..PAIR], &self.keys[place]) {
            _ if block[byte / 8 * 8..][..8] == [POISON; 8] => Found::Untouched,
            _ if block.iter().all(|byte| *byte == 0) => Found::Zeros,
            None => Found::Foreign,
            // Nothing tears a block at so fine a grain.
            Some(_) if wrong == 1 => Found::Corrupt,
            Some((from, old)) => {
                let uniform = pairs.clone().all(|(pair, key)| self.decode(pair, key) == Some((from, old)));
                match uniform {
                    false => Found::Torn { lba: from, generation: old },
                    true if from == lba => Found::Stale { generation: old },
                    true => Found::Misplaced { lba: from, generation: old },
                }
            }
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { lba, generation, byte, .. } = self;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (expected, got, word) = (hex(&self.expected), hex(&self.got), byte / 8 * 8);
        write!(f, "LBA {lba}, byte {byte}: bytes {word} to {} are {got}, expected {expected}; ", word + 7)?;
        match self.found {
            Found::Misplaced { lba: from, generation: old } => {
                write!(f, "the block holds the data of LBA {from} generation {old} (misplaced)")
            }
            Found::Stale { generation: old } => {
                write!(f, "the block holds generation {old}, and {generation} was written last (stale)")
            }
            Found::Torn { lba: from, generation: old } => {
                write!(f, "here it holds the data of LBA {from} generation {old}, and elsewhere ")?;
                write!(f, "other data (torn; expected generation {generation})")
            }
            Found::Corrupt => write!(f, "all but these are as expected (corrupt; generation {generation})"),
            Found::Untouched => f.write_str("the device did not write the buffer here"),
            Found::Zeros => write!(f, "the block is all zeros (expected generation {generation})"),
            Found::Foreign => write!(f, "not data of this run (expected generation {generation})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZES: [usize; 3] = [512, 4096, 65536];

    fn block(pattern: &Pattern, size: usize, lba: u64, generation: u32) -> Vec<u8> {
        let mut block = vec![0; size];
        pattern.fill(lba, generation, &mut block);
        block
    }

    #[test]
    fn what_was_written_is_accepted() {
        for size in SIZES {
            let pattern = Pattern::new(7, size);
            for (lba, generation) in [(0, 1), (u64::MAX, u32::MAX >> 2), (12345, 1)] {
                pattern.check(lba, generation, &block(&pattern, size, lba, generation)).unwrap();
            }
        }
    }

    #[test]
    fn every_single_bit_is_checked() {
        let pattern = Pattern::new(7, 512);
        let good = block(&pattern, 512, 5, 3);
        for bit in 0..512 * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mismatch = pattern.check(5, 3, &bad).unwrap_err();
            assert_eq!((mismatch.lba, mismatch.generation, mismatch.byte), (5, 3, bit / 8));
            // A pair with a wrong mark is nobody's.
            assert!(matches!(mismatch.found, Found::Corrupt | Found::Foreign));
            assert_eq!(mismatch.got[bit / 8 % 8] ^ mismatch.expected[bit / 8 % 8], 1 << (bit % 8));
        }
    }

    #[test]
    fn stale_and_misplaced_blocks_say_where_they_are_from() {
        for size in SIZES {
            let pattern = Pattern::new(7, size);
            let found = |lba, generation| {
                pattern.check(5, 3, &block(&pattern, size, lba, generation)).unwrap_err().found
            };
            assert_eq!(found(5, 2), Found::Stale { generation: 2 });
            assert_eq!(found(5, 4), Found::Stale { generation: 4 });
            assert_eq!(found(6, 3), Found::Misplaced { lba: 6, generation: 3 });
            assert_eq!(found(1 << 40, 1), Found::Misplaced { lba: 1 << 40, generation: 1 });
        }
    }

    #[test]
    fn a_block_torn_anywhere_is_found_and_located() {
        let pattern = Pattern::new(7, 512);
        let (new, old) = (block(&pattern, 512, 5, 3), block(&pattern, 512, 5, 2));
        for cut in (32..480).step_by(16) {
            let torn = [&new[..cut], &old[cut..]].concat();
            let mismatch = pattern.check(5, 3, &torn).unwrap_err();
            // The LBA word of a pair is the same in both generations.
            assert_eq!(mismatch.byte, cut + 8);
            assert_eq!(mismatch.found, Found::Torn { lba: 5, generation: 2 });
            let torn = [&old[..cut], &new[cut..]].concat();
            let mismatch = pattern.check(5, 3, &torn).unwrap_err();
            assert_eq!((mismatch.byte, mismatch.found), (8, Found::Torn { lba: 5, generation: 2 }));
        }
    }

    #[test]
    fn blocks_of_nobody() {
        let pattern = Pattern::new(7, 512);
        let check = |block: &[u8]| pattern.check(5, 3, block).unwrap_err().found;
        assert_eq!(check(&[0; 512]), Found::Zeros);
        assert_eq!(check(&[0xff; 512]), Found::Foreign);
        assert_eq!(check(&block(&Pattern::new(8, 512), 512, 5, 3)), Found::Foreign);
        let mut short = block(&pattern, 512, 5, 3);
        Pattern::poison(&mut short[256..]);
        assert_eq!(check(&short), Found::Untouched);
        let good = block(&pattern, 512, 5, 3);
        let shifted = [&good[16..], &good[..16]].concat();
        assert_eq!(check(&shifted), Found::Foreign);
    }

    #[test]
    fn a_mismatch_is_one_line_with_all_that_is_known() {
        let pattern = Pattern::new(7, 512);
        let mismatch = pattern.check(5, 3, &block(&pattern, 512, 9, 1)).unwrap_err();
        let text = mismatch.to_string();
        assert!(text.starts_with("LBA 5, byte 0: bytes 0 to 7 are "), "{text}");
        assert!(text.ends_with("holds the data of LBA 9 generation 1 (misplaced)"), "{text}");
    }

    proptest! {
        #[test]
        fn whatever_differs_is_found(lba: u64, generation: u32, seed: u64, other: Vec<u8>, at in 0usize..512) {
            let pattern = Pattern::new(seed, 512);
            let good = block(&pattern, 512, lba, generation);
            let mut bad = good.clone();
            let end = 512.min(at + other.len());
            bad[at..end].copy_from_slice(&other[..end - at]);
            prop_assert_eq!(pattern.check(lba, generation, &bad).is_ok(), bad == good);
        }
    }
}
