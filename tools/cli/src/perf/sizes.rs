//! `--bssplit`: I/Os of several sizes, each with its share.

use std::fmt;
use std::str::FromStr;

use hugepage_setup::parse_bytes;

/// As many as fio takes.
const MOST: usize = 64;

/// Sizes in bytes and their shares in percent, as in `4k/60:64k/40`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split(Vec<(u64, u32)>);

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Split, String> {
        let form =
            || "sizes and their percentages, as in 4k/60:64k/40; what is left out shares the rest".to_owned();
        let mut parts: Vec<(u64, Option<u32>)> = Vec::new();
        for part in text.split(':') {
            let (size, share) =
                part.split_once('/').map_or((part, None), |(size, share)| (size, Some(share)));
            let size = parse_bytes(size).ok().filter(|size| *size > 0).ok_or_else(form)?;
            let share = match share {
                None | Some("") => None,
                Some(share) => Some(share.parse().ok().filter(|share| *share <= 100).ok_or_else(form)?),
            };
            parts.push((size, share));
        }
        if parts.len() > MOST {
            return Err(format!("at most {MOST} sizes"));
        }
        let given: u32 = parts.iter().filter_map(|part| part.1).sum();
        let open = parts.iter().filter(|part| part.1.is_none()).count() as u32;
        if given > 100 || (open == 0 && given != 100) {
            return Err(format!("the percentages are {given} together, and not 100"));
        }
        // The rest of a division goes to the first of those that share.
        let (each, mut rest) = match open {
            0 => (0, 0),
            open => ((100 - given) / open, (100 - given) % open),
        };
        let share = |share: Option<u32>| share.unwrap_or_else(|| each + std::mem::take(&mut rest));
        let mut share = share;
        let mut sizes: Vec<(u64, u32)> = Vec::new();
        for (size, given) in parts {
            match (share(given), sizes.iter_mut().find(|other| other.0 == size)) {
                (0, _) => {}
                (share, Some(other)) => other.1 += share,
                (share, None) => sizes.push((size, share)),
            }
        }
        Ok(Split(sizes))
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(size, share)| format!("{size}/{share}")).collect();
        f.write_str(&parts.join(":"))
    }
}

impl Split {
    pub fn sizes(&self) -> &[(u64, u32)] {
        &self.0
    }

    pub fn largest(&self) -> u64 {
        self.0.iter().map(|size| size.0).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_of_a_hundred() {
        for (text, sizes) in [
            ("4k/60:64k/40", vec![(4096, 60), (65536, 40)]),
            ("4k/50:8k:16k", vec![(4096, 50), (8192, 25), (16384, 25)]),
            ("4k:8k:16k", vec![(4096, 34), (8192, 33), (16384, 33)]),
            ("512", vec![(512, 100)]),
            ("4k/30:8k/0:4k/70", vec![(4096, 100)]),
        ] {
            assert_eq!(text.parse(), Ok(Split(sizes)), "{text}");
        }
        for (text, words) in [
            ("", "as in 4k/60"),
            ("4k/x", "as in 4k/60"),
            ("4k/101", "as in 4k/60"),
            ("0/100", "as in 4k/60"),
            ("4k/60:8k/50", "110 together"),
            ("4k/60:8k/30", "90 together"),
        ] {
            assert!(text.parse::<Split>().unwrap_err().contains(words), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[0-9kM/:]{0,40}", any: String) {
            let _ = any.parse::<Split>();
            if let Ok(split) = text.parse::<Split>() {
                prop_assert_eq!(split.sizes().iter().map(|size| size.1).sum::<u32>(), 100);
                prop_assert_eq!(split.to_string().parse::<Split>(), Ok(split));
            }
        }
    }
}
