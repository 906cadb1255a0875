//! Addresses of PCI functions: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A BDF such as `0000:01:00.0`; `01:00.0` means domain 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// PCI domain (segment group).
    pub domain: u32,
    /// Bus, 0–255.
    pub bus: u8,
    /// Device, 0–31.
    pub device: u8,
    /// Function, 0–7.
    pub function: u8,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(name: &str) -> Result<Address> {
        parse(name).ok_or_else(|| Error::BadName {
            name: name.into(),
            reason: "a PCI function is named like 0000:01:00.0 (domain:bus:device.function, hexadecimal)"
                .into(),
        })
    }
}

fn parse(name: &str) -> Option<Address> {
    let hex = |digits: &str, width: std::ops::RangeInclusive<usize>, max: u32| {
        let plain = width.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().filter(|value| *value <= max)
    };
    let (rest, function) = name.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.split_once(':').unwrap_or(("0000", rest));
    Some(Address {
        domain: hex(domain, 4..=8, u32::MAX)?,
        bus: hex(bus, 2..=2, 0xff)? as u8,
        device: hex(device, 2..=2, 0x1f)? as u8,
        function: hex(function, 1..=1, 7)? as u8,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_one_is_written() {
        for name in ["0000:01:1f.7", "01:1f.7"] {
            assert_eq!(name.parse::<Address>().unwrap().to_string(), "0000:01:1f.7");
        }
        assert_eq!("10000:e1:00.0".parse::<Address>().unwrap().domain, 0x10000);
    }

    #[test]
    fn everything_else_is_refused() {
        for name in
            ["", "nvme0", "01:00", "0000:01:00.8", "0000:01:20.0", "0:01:00.0", "01:+1.0", "0000:001:00.0"]
        {
            let error = name.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains("0000:01:00.0"), "{name}: {error}");
        }
    }
}
