//! Random numbers in a few instructions: good enough to spread LBAs, no more.

use std::hash::{BuildHasher, RandomState};

/// A generator: a counter that steps by the golden ratio, folded by one multiplication.
#[derive(Debug, Clone)]
pub struct Random(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Any odd number with bits everywhere; so that the factors of the product differ.
const OTHER: u64 = 0xd1b5_4a32_d192_ed03;

impl Random {
    /// Seeds that differ in one bit give sequences that have nothing in common.
    pub fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let wide = u128::from(self.0) * u128::from(self.0 ^ OTHER);
        (wide >> 64) as u64 ^ wide as u64
    }
}

/// Brings a random number into `0..range` by multiplication: no division, and a bias of range/2^64.
#[inline(always)]
pub fn scale(random: u64, range: u64) -> u64 {
    ((u128::from(random) * u128::from(range)) >> 64) as u64
}

/// Spreads every bit of a number over all of it; a bijection.
pub fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(STEP);
    for shift in [32, 29] {
        x = (x ^ x >> shift).wrapping_mul(OTHER);
    }
    x ^ x >> 32
}

/// A seed for a run that was given none.
pub fn seed() -> u64 {
    // The standard library seeds each of these from the operating system.
    RandomState::new().hash_one(0) & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-squared of `n` draws into `cells`; about `cells` if they are even.
    fn chi_squared(cells: u64, n: u64, mut draw: impl FnMut() -> u64) -> f64 {
        let mut counts = vec![0u64; cells as usize];
        (0..n).for_each(|_| counts[draw() as usize] += 1);
        let expected = n as f64 / cells as f64;
        counts.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum()
    }

    #[test]
    fn lbas_are_spread_evenly() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let chi = chi_squared(1000, 100_000, || scale(random.next(), 1000));
            assert!((800.0..1250.0).contains(&chi), "seed {seed}: {chi}");
        }
    }

    #[test]
    fn low_bits_and_neighbours_are_spread_evenly() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let low = chi_squared(256, 100_000, || random.next() & 0xff);
            assert!((170.0..360.0).contains(&low), "seed {seed}: {low}");
            let pairs = chi_squared(256, 100_000, || random.next() >> 60 << 4 | random.next() >> 60);
            assert!((170.0..360.0).contains(&pairs), "seed {seed}: {pairs}");
        }
    }

    #[test]
    fn scaling_stays_in_range() {
        assert_eq!(scale(u64::MAX, 7), 6);
        assert_eq!(scale(0, 7), 0);
        assert_eq!(scale(u64::MAX, u64::MAX), u64::MAX - 1);
    }

    #[test]
    fn workers_have_sequences_of_their_own() {
        let mut all: Vec<u64> = (0..8)
            .flat_map(|seed| {
                let mut random = Random::new(seed);
                (0..1000).map(move |_| random.next())
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8000);
    }
}
