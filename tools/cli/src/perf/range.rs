//! `--range`: a part of a namespace, in blocks or in bytes.

use std::ops::Range;
use std::str::FromStr;

use hugepage_setup::parse_bytes;

use crate::{Error, Result};

const FORMS: &str =
    "a range is START:LEN or START-END (END is not included), in LBAs (1000) or bytes (4k, 1G)";

/// A range as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeOption {
    text: String,
    start: Place,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Blocks(u64),
    Bytes(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    After(Place),
    At(Place),
    /// Where the namespace ends.
    OfAll,
}

impl FromStr for RangeOption {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<RangeOption, &'static str> {
        parse(text).ok_or(FORMS)
    }
}

fn parse(text: &str) -> Option<RangeOption> {
    let (start, end) = match text.split_once(':') {
        Some((start, len)) => (start, End::After(place(len)?)),
        None => {
            let (start, end) = text.split_once('-')?;
            (start, End::At(place(end)?))
        }
    };
    Some(RangeOption { text: text.to_owned(), start: place(start)?, end })
}

impl RangeOption {
    /// So many bytes from `start` on, or all that follow.
    pub fn of_bytes(start: u64, size: Option<u64>) -> RangeOption {
        let end = size.map_or(End::OfAll, |size| End::After(Place::Bytes(size)));
        let text = size.map_or_else(|| format!("{start}B:"), |size| format!("{start}B:{size}B"));
        RangeOption { text, start: Place::Bytes(start), end }
    }
}

/// A suffix makes it bytes.
fn place(text: &str) -> Option<Place> {
    let number = parse_bytes(text).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    Some(if plain { Place::Blocks(number) } else { Place::Bytes(number) })
}

impl RangeOption {
    /// The LBAs it means on a namespace.
    pub fn resolve(&self, block_size: u64, capacity: u64) -> Result<Range<u64>> {
        let wrong = |what: String| Error::Unsuitable(format!("--range {}: {what}", self.text));
        let blocks = |place| match place {
            Place::Blocks(blocks) => Ok(blocks),
            Place::Bytes(bytes) if bytes % block_size == 0 => Ok(bytes / block_size),
            Place::Bytes(bytes) => {
                Err(wrong(format!("{bytes} bytes are not a whole number of {block_size}-byte blocks")))
            }
        };
        let start = blocks(self.start)?;
        let end = match self.end {
            End::After(len) => start.saturating_add(blocks(len)?),
            End::At(end) => blocks(end)?,
            End::OfAll => capacity,
        };
        if end > capacity {
            return Err(wrong(format!("it ends at LBA {end}, and the namespace at LBA {capacity}")));
        }
        if start >= end {
            return Err(wrong(format!("it is empty: LBA {start} to {end}")));
        }
        Ok(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Range<u64>> {
        text.parse::<RangeOption>().unwrap().resolve(4096, 1000)
    }

    #[test]
    fn blocks_and_bytes() {
        assert_eq!(resolve("0:1000").unwrap(), 0..1000);
        assert_eq!(resolve("10-20").unwrap(), 10..20);
        assert_eq!(resolve("8k:8k").unwrap(), 2..4);
        assert_eq!(resolve("8k-3M").unwrap(), 2..768);
        assert_eq!(resolve("5:4096B").unwrap(), 5..6);
        assert_eq!(RangeOption::of_bytes(8192, None).resolve(4096, 1000).unwrap(), 2..1000);
        assert_eq!(RangeOption::of_bytes(8192, Some(4096)).resolve(4096, 1000).unwrap(), 2..3);
        assert!(RangeOption::of_bytes(4096 * 1000, None).resolve(4096, 1000).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (text, what) in [
            ("0:1001", "ends at LBA 1001, and the namespace at LBA 1000"),
            ("20-20", "empty"),
            ("21-20", "empty"),
            ("5:0", "empty"),
            ("512B:4k", "not a whole number of 4096-byte blocks"),
            ("18446744073709551615:2", "and the namespace"),
        ] {
            let error = resolve(text).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "7", ":", "-", "1:", ":1", "1-", "-1", "a:b", "1:2:3", "1-2-3", "1.5:2"] {
            assert!(text.parse::<RangeOption>().is_err(), "{text}");
        }
    }
}
