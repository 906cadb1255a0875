//! Devices by name, and how they are opened.
//!
//! Knows every form that a device's name can have; must not know what is done with the device. A
//! form that is added here is there in every command.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kiovec::Controller;
use kiovec::memory::DmaSpace;
use kiovec::pci::{Address, Vfio};
use kiovec_emulator::{Config, Emulator};

use crate::Result;

/// What a command says that takes a device.
pub const FORMS: &str = "0000:01:00.0 or 01:00.0 (a PCI function, see `kiovec list`), or \
                         emulated[:size=1G,block=4096,media=null|ram,…] (a controller in this process)";

/// A device as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// `0000:01:00.0`: a PCI function, through VFIO.
    Pci(Address),
    /// `emulated:size=1G`: a controller of our own, in a thread of this process.
    Emulated(Box<Config>),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Device, String> {
        // What comes before the first colon decides; a PCI domain has only hexadecimal digits.
        let (form, rest) = name.split_once(':').map_or((name, None), |(form, rest)| (form, Some(rest)));
        match form {
            "emulated" => {
                let config = Config::parse(rest.unwrap_or_default()).map_err(|error| error.to_string())?;
                Ok(Device::Emulated(Box::new(config)))
            }
            _ => name.parse().map(Device::Pci).map_err(|_| format!("a device is {FORMS}")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Pci(address) => address.fmt(f),
            Device::Emulated(config) => f.write_str(&config.name),
        }
    }
}

/// A device in use. Fields are in the order of release: the controller shuts down while the
/// emulator still runs.
#[derive(Debug)]
pub struct Opened {
    pub controller: Arc<Controller>,
    pub space: DmaSpace,
    /// The device itself, if it is one of our own. Dropping it pulls the device.
    #[allow(dead_code, reason = "it is kept for its thread")]
    pub emulator: Option<Emulator>,
}

impl Device {
    /// Opens the device, with a memory space of its own, and brings its controller up.
    pub fn open(&self) -> Result<Opened> {
        let space = DmaSpace::new()?;
        match self {
            Device::Pci(address) => {
                let function = Arc::new(Vfio::open(*address, &space)?);
                Ok(Opened { controller: Controller::open(function, &space)?, space, emulator: None })
            }
            Device::Emulated(config) => {
                let emulator = Emulator::spawn((**config).clone())?;
                let controller = Controller::open(emulator.function(), &space)?;
                Ok(Opened { controller, space, emulator: Some(emulator) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        for (name, canonical) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("emulated", "emulated"),
            ("emulated:", "emulated"),
            ("emulated:size=64M,media=ram", "emulated:size=64M,media=ram"),
        ] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn any_other_form_is_answered_with_the_forms_there_are() {
        for name in ["", "nvme0", "/dev/nvme0n1", "0000:01:00", "emulator", "Emulated", "stripe(a,b)", "x:y"]
        {
            let error = name.parse::<Device>().unwrap_err();
            assert!(error.contains("0000:01:00.0") && error.contains("emulated[:"), "{name}: {error}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let error = "emulated:block=513".parse::<Device>().unwrap_err();
        assert!(error.contains("block=513") && error.contains("512"), "{error}");
    }
}
