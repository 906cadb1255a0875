//! Which places of a range are asked for how often, when not all are alike.
//!
//! Knows distributions over numbered places; must not know what is at a place.

use std::fmt;
use std::str::FromStr;

use rand::TryRng;
use rand_distr::{Distribution, Zipf};

use super::random::{Random, scale};

/// How the places are not alike, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Skew {
    /// `--zipf THETA`: the n-th most popular place is asked for in proportion to n^-THETA.
    Zipf(f64),
    /// `--hot PLACES:IOS`: the first PLACES percent of the range get IOS percent of the I/Os.
    Hot { places: f64, ios: f64 },
}

/// Beyond it nearly all I/Os are on one place.
const STEEPEST: f64 = 5.0;

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Skew::Zipf(theta) => write!(f, "zipf {theta}"),
            Skew::Hot { places, ios } => write!(f, "hot {places}:{ios}"),
        }
    }
}

/// THETA of `--zipf`.
pub fn zipf(text: &str) -> Result<Skew, String> {
    match text.parse::<f64>() {
        Ok(theta) if theta > 0.0 && theta <= STEEPEST => Ok(Skew::Zipf(theta)),
        _ => Err(format!("not a number above 0 and up to {STEEPEST}, such as 0.99 or 1.2")),
    }
}

/// PLACES:IOS of `--hot`.
pub fn hot(text: &str) -> Result<Skew, String> {
    let percent = |text: &str| f64::from_str(text).ok().filter(|percent| *percent > 0.0 && *percent < 100.0);
    let parts = text.split_once(':').and_then(|(places, ios)| Some((percent(places)?, percent(ios)?)));
    let (places, ios) = parts.ok_or("not two percentages between 0 and 100, such as 10:90")?;
    Ok(Skew::Hot { places, ios })
}

/// The places `0..n` of a range.
#[derive(Debug, Clone)]
pub enum Places {
    Even(u64),
    Zipf {
        n: u64,
        ranks: Zipf<f64>,
        /// Popular places lie apart: consecutive ranks are so many places from each other.
        step: u64,
    },
    Hot {
        n: u64,
        hot: u64,
        /// Of 2^64 I/Os, so many go there.
        share: u64,
    },
}

impl Places {
    pub fn new(n: u64, skew: Option<Skew>) -> Places {
        match skew {
            Some(Skew::Zipf(theta)) if n > 1 => match Zipf::new(n as f64, theta) {
                Ok(ranks) => Places::Zipf { n, ranks, step: step(n) },
                Err(_) => Places::Even(n),
            },
            Some(Skew::Hot { places, ios }) if n > 1 => {
                let hot = (n as f64 * places / 100.0).round() as u64;
                let share = (ios / 100.0 * u64::MAX as f64) as u64;
                Places::Hot { n, hot: hot.clamp(1, n - 1), share }
            }
            _ => Places::Even(n),
        }
    }

    /// A place, drawn with the probability that it has.
    #[inline(always)]
    pub fn draw(&self, random: &mut Random) -> u64 {
        match self {
            Places::Even(n) => scale(random.next(), *n),
            Places::Zipf { n, ranks, step } => {
                let rank = (ranks.sample(&mut Source(random)) as u64).clamp(1, *n) - 1;
                ((u128::from(rank) * u128::from(*step)) % u128::from(*n)) as u64
            }
            Places::Hot { n, hot, share } => match random.next() < *share {
                true => scale(random.next(), *hot),
                false => hot + scale(random.next(), n - hot),
            },
        }
    }
}

/// Near the golden section of `n`, and without a common divisor, so that no two ranks share a place.
fn step(n: u64) -> u64 {
    let golden = (n as f64 * 0.618_033_988_749) as u64;
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // One is found soon: primes are dense, and 1 is one at the latest.
    (1..=golden).rev().find(|step| gcd(*step, n) == 1).unwrap_or(1)
}

/// Our generator, as `rand` knows them.
struct Source<'a>(&'a mut Random);

impl TryRng for Source<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok((self.0.next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(self.0.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            let word = self.0.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How often each place is drawn.
    fn counts(places: &Places, n: u64, draws: usize, seed: u64) -> Vec<u64> {
        let mut random = Random::new(seed);
        let mut counts = vec![0u64; n as usize];
        (0..draws).for_each(|_| counts[places.draw(&mut random) as usize] += 1);
        counts
    }

    #[test]
    fn what_was_asked_for_is_read() {
        assert_eq!(zipf("1.2"), Ok(Skew::Zipf(1.2)));
        assert_eq!(hot("10:90"), Ok(Skew::Hot { places: 10.0, ios: 90.0 }));
        for text in ["", "0", "-1", "6", "nan", "inf", "x"] {
            assert!(zipf(text).is_err(), "{text}");
        }
        for text in ["", "10", "10:", ":90", "0:90", "10:100", "10:nan", "a:b", "1:2:3", "-1:5"] {
            assert!(hot(text).is_err(), "{text}");
        }
    }

    /// Against the definition: the n-th most popular place has n^-theta over the sum of all.
    #[test]
    fn zipf_is_zipf() {
        const N: u64 = 50;
        const DRAWS: usize = 200_000;
        for theta in [0.5, 0.99, 1.0, 1.2, 2.0] {
            let places = Places::new(N, Some(Skew::Zipf(theta)));
            let counts = counts(&places, N, DRAWS, 7);
            let weight = |rank: u64| (rank as f64).powf(-theta);
            let all: f64 = (1..=N).map(weight).sum();
            let chi: f64 = (1..=N)
                .map(|rank| {
                    let expected = DRAWS as f64 * weight(rank) / all;
                    let place = (rank - 1) * step(N) % N;
                    (counts[place as usize] as f64 - expected).powi(2) / expected
                })
                .sum();
            // 49 degrees of freedom: beyond 95 in one of 10,000 cases.
            assert!(chi < 95.0, "theta {theta}: chi squared {chi}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn places_are_in_range(n in 1u64.., seed: u64, theta in 0.01f64..5.0, places in 0.1f64..99.9, ios in 0.1f64..99.9) {
            let mut random = Random::new(seed);
            for skew in [None, Some(Skew::Zipf(theta)), Some(Skew::Hot { places, ios })] {
                let places = Places::new(n, skew);
                (0..20).for_each(|_| assert!(places.draw(&mut random) < n, "{skew:?}"));
            }
        }

        #[test]
        fn ranks_are_spread_one_to_one(n in 2u64..2000) {
            let mut seen: Vec<u64> = (0..n).map(|rank| rank * step(n) % n).collect();
            seen.sort_unstable();
            prop_assert!(seen.iter().copied().eq(0..n));
        }

        #[test]
        fn hot_places_get_their_share(n in 20u64..500, seed: u64, places in 10.0f64..90.0, ios in 5.0f64..95.0) {
            const DRAWS: usize = 20_000;
            let skewed = Places::new(n, Some(Skew::Hot { places, ios }));
            let counts = counts(&skewed, n, DRAWS, seed);
            let hot = (n as f64 * places / 100.0).round() as usize;
            let got = counts[..hot].iter().sum::<u64>() as f64 / DRAWS as f64;
            let p = ios / 100.0;
            let deviation = (p * (1.0 - p) / DRAWS as f64).sqrt();
            prop_assert!((got - p).abs() < 6.0 * deviation, "{} for {}", got, p);
        }
    }
}
