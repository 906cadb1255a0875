//! The address of a PCI function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Error;

/// Domain, bus, device and function: `0000:01:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// The PCI domain (segment). More than 16 bits wide behind Intel VMD.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, 0 to 31.
    pub device: u8,
    /// The function of the device, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for Bdf {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bdf, Error> {
        parse(text).ok_or_else(|| Error::BadBdf(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (path, function) = text.split_once('.')?;
    let mut parts = path.rsplit(':');
    let device = hex(parts.next()?, 2..=2)?;
    let bus = hex(parts.next()?, 2..=2)?;
    let domain = parts.next().map_or(Some(0), |domain| hex(domain, 4..=8))?;
    let function = hex(function, 1..=1)?;
    if parts.next().is_some() || device > 0x1f || function > 7 {
        return None;
    }
    Some(Bdf { domain, bus: bus as u8, device: device as u8, function: function as u8 })
}

/// Digits only: `from_str_radix` alone would also take a sign.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let good = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl Serialize for Bdf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bdf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bdf, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_form_is_domain_zero() {
        let bdf: Bdf = "01:1f.7".parse().unwrap();
        assert_eq!(bdf, Bdf { domain: 0, bus: 1, device: 0x1f, function: 7 });
        assert_eq!(bdf.to_string(), "0000:01:1f.7");
    }

    #[test]
    fn domains_behind_vmd_are_wider() {
        assert_eq!("10000:E1:00.0".parse::<Bdf>().unwrap().to_string(), "10000:e1:00.0");
    }

    #[test]
    fn bad_forms_are_refused_with_the_form_that_is_expected() {
        for bad in [
            "",
            "nvme0",
            "01:00",
            "1:0.0",
            "01:20.0",
            "01:00.8",
            "01:00.00",
            "00:0000:01:00.0",
            "+1:00.0",
            "0000:01:00.0 ",
            "000:01:00.0",
            "01-00.0",
            "/dev/nvme0",
            "01:00.g",
        ] {
            let error = bad.parse::<Bdf>().expect_err(bad).to_string();
            assert!(error.contains("0000:01:00.0"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let bdf = Bdf { domain, bus, device, function };
            prop_assert_eq!(bdf.to_string().parse::<Bdf>().unwrap(), bdf);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,16}") {
            let _ = text.parse::<Bdf>();
        }
    }
}
