//! Sizes as people write them: `2M`, `1G`. Binary, as memory is.

use std::fmt;

/// A number of bytes that prints as `2 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return write!(f, "{} B", self.0);
        };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        let tenth = ((u128::from(rest) * 10) >> shift) as u64;
        match tenth {
            0 => write!(f, "{whole} {unit}iB"),
            _ => write!(f, "{whole}.{tenth} {unit}iB"),
        }
    }
}

/// Reads `4096`, `512K`, `2M`, `2MiB`, `1G`, `1T`.
///
/// # Errors
///
/// The text is not a number with one of those units, or does not fit 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write it as 2M, 512M or 1G");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim_end_matches('B').trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        _ => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1,
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("2M"), Ok(2 << 20));
        assert_eq!(parse_bytes("2m"), Ok(2 << 20));
        assert_eq!(parse_bytes("2MiB"), Ok(2 << 20));
        assert_eq!(parse_bytes("1GB"), Ok(1 << 30));
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for bad in ["", "M", "-1", "+1", "1.5G", "1Q", "2 M", "1GG", "16777216T", "99999999999999999999"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn printed_in_the_largest_unit() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(2 << 20).to_string(), "2 MiB");
        assert_eq!(Bytes((3 << 30) / 2).to_string(), "1.5 GiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "16777215.9 TiB");
    }
}
