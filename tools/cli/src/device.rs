//! Devices by name, and how they are opened.
//!
//! Knows every form that a device's name can have; must not know what is done with the device, nor
//! which layers there are. A form that is added here is there in every command.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use kiovec::Controller;
use kiovec::layer::{Disk, Plan, Stack};
use kiovec::memory::DmaSpace;
use kiovec::pci::{Address, Vfio, VfioUser};
use kiovec_emulator::{Config, Emulator};

use crate::Result;

/// What a command says that takes a device.
pub const FORMS: &str = "0000:01:00.0 or 01:00.0 (a PCI function, see `kiovec list`), or \
                         emulated[:size=1G,block=4096,media=null|ram|file:PATH,…] (a controller in this process), or \
                         vfio-user:/path/to/socket (a controller in another process), or layers on such devices, as \
                         in mirror(01:00.0,02:00.0)";

/// What to do with a name of the kernel's.
pub const KERNELS: &str = "`kiovec list` shows which PCI function that is";

/// What makes two devices of one, so that a device may be named twice.
const PARTITION: &str = "partition";

/// A device as it is named: a controller, or layers on one or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// In it, each leaf is written in the one way that [`Leaf`] writes it.
    plan: Plan,
    /// Its controllers, from left to right, none twice.
    pub leaves: Vec<Leaf>,
}

/// A controller as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// `0000:01:00.0`: a PCI function, through VFIO.
    Pci(Address),
    /// `emulated:size=1G`: a controller of our own, in a thread of this process.
    Emulated(Box<Config>),
    /// `vfio-user:/path/to/socket`: a controller in another process. The path may also be a directory
    /// with a socket named `cntrl`.
    VfioUser(PathBuf),
}

impl FromStr for Leaf {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Leaf, String> {
        // What comes before the first colon decides; a PCI domain has only hexadecimal digits.
        let (form, rest) = name.split_once(':').map_or((name, None), |(form, rest)| (form, Some(rest)));
        match form {
            "emulated" => {
                let config = Config::parse(rest.unwrap_or_default()).map_err(|error| error.to_string())?;
                Ok(Leaf::Emulated(Box::new(config)))
            }
            "vfio-user" => socket(rest.unwrap_or_default()).map(Leaf::VfioUser),
            _ => name.parse().map(Leaf::Pci).map_err(|_| match kernels(name) {
                true => format!("a name of the kernel's driver; {KERNELS}"),
                false => format!("a device is {FORMS}"),
            }),
        }
    }
}

/// Whether the kernel may call a device so: a path, or nvme0, nvme0n1.
fn kernels(name: &str) -> bool {
    let number = name.strip_prefix("nvme").and_then(|rest| rest.chars().next());
    name.starts_with('/') || number.is_some_and(|first| first.is_ascii_digit())
}

/// The path of a socket. Commas and parentheses have a meaning in stacks, and so none in a path,
/// wherever it stands; a colon has none. What moves the cursor would break messages, which are one line.
fn socket(path: &str) -> std::result::Result<PathBuf, String> {
    match path {
        "" => Err("vfio-user: the path of a socket is missing, as in vfio-user:/path/to/socket".into()),
        _ if path.contains([',', '(', ')']) => Err(format!(
            "{path}: a socket's path has no comma and no parenthesis here; make a symbolic link to it"
        )),
        _ if path.contains(char::is_control) => Err(format!(
            "{path:?}: a socket's path has no control character here; make a symbolic link to it"
        )),
        _ => Ok(PathBuf::from(path)),
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leaf::Pci(address) => address.fmt(f),
            Leaf::Emulated(config) => f.write_str(&config.name),
            Leaf::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Device, String> {
        if !name.contains(['(', ')']) {
            let leaf: Leaf = name.parse()?;
            return Ok(Device { plan: Plan::Device(leaf.to_string()), leaves: vec![leaf] });
        }
        let mut plan: Plan = name.parse().map_err(|error: kiovec::layer::BadPlan| error.to_string())?;
        let mut uses = Vec::new();
        find_leaves(&mut plan, false, &mut uses)?;
        let mut leaves: Vec<Leaf> = Vec::new();
        for (leaf, _) in &uses {
            let shared = || uses.iter().filter(|(other, _)| other == leaf);
            if shared().count() > 1 && shared().any(|(_, in_part)| !in_part) {
                return Err(twice(leaf));
            }
            if !leaves.contains(leaf) {
                leaves.push(leaf.clone());
            }
        }
        Ok(Device { plan, leaves })
    }
}

/// Finds each use of a controller, and whether it is of a part only. Writes their names in one way.
fn find_leaves(
    plan: &mut Plan,
    in_part: bool,
    uses: &mut Vec<(Leaf, bool)>,
) -> std::result::Result<(), String> {
    match plan {
        Plan::Device(name) => {
            let leaf: Leaf = name.parse().map_err(|error| {
                let hint =
                    if name.contains(',') { "; a layer's options come before its devices" } else { "" };
                format!("{name}: {error}{hint}")
            })?;
            *name = leaf.to_string();
            uses.push((leaf, in_part));
            Ok(())
        }
        Plan::Layer { name, below, .. } => {
            let in_part = in_part || name == PARTITION;
            below.iter_mut().try_for_each(|below| find_leaves(below, in_part, uses))
        }
    }
}

/// The same blocks in two places would overwrite each other.
fn twice(leaf: &Leaf) -> String {
    let what = format!(
        "{leaf} is there twice, and is one controller; name parts of it, as in \
         {PARTITION}(start=0,blocks=1000,{leaf}), or two devices"
    );
    match leaf {
        Leaf::Pci(_) | Leaf::VfioUser(_) => what,
        Leaf::Emulated(config) => {
            let comma = if config.name.contains(':') { "," } else { ":" };
            format!("{what}, such as {leaf}{comma}serial=A and {leaf}{comma}serial=B")
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

impl Device {
    /// Whether there are layers between its name and its controllers.
    pub fn is_stack(&self) -> bool {
        matches!(self.plan, Plan::Layer { .. })
    }

    /// The layers as they are written, from top to bottom and from left to right, leaves included: in
    /// the order of [`Stack::layers`].
    pub fn layers(&self) -> Vec<&Plan> {
        let mut layers = vec![&self.plan];
        let mut next = 0;
        while let Some(plan) = layers.get(next) {
            next += 1;
            if let Plan::Layer { below, .. } = plan {
                layers.splice(next..next, below);
            }
        }
        layers
    }

    /// Opens its controllers, in a memory space of their own, and brings them up.
    pub fn open(&self) -> Result<Opened> {
        let space = DmaSpace::new()?;
        let mut opened = Opened { device: self.clone(), controllers: vec![], space, emulators: vec![] };
        self.leaves.iter().try_for_each(|leaf| opened.add(leaf))?;
        Ok(opened)
    }
}

/// A device in use. Fields are in the order of release: controllers shut down while their emulators
/// still run.
#[derive(Debug)]
pub struct Opened {
    pub device: Device,
    /// One for each leaf.
    pub controllers: Vec<Arc<Controller>>,
    pub space: DmaSpace,
    /// Those that are our own. Dropping one pulls it.
    #[allow(dead_code, reason = "they are kept for their threads")]
    pub emulators: Vec<Emulator>,
}

impl Opened {
    fn add(&mut self, leaf: &Leaf) -> Result<()> {
        let controller = match leaf {
            Leaf::Pci(address) => {
                let function = Arc::new(Vfio::open(*address, &self.space)?);
                Controller::open(function, &self.space)?
            }
            Leaf::VfioUser(path) => Controller::open(Arc::new(VfioUser::open(path)?), &self.space)?,
            Leaf::Emulated(config) => {
                let emulator = Emulator::spawn((**config).clone())?;
                let function = emulator.function();
                // Kept before it is needed: a bring-up that fails is undone while it still runs.
                self.emulators.push(emulator);
                Controller::open(function, &self.space)?
            }
        };
        self.controllers.push(controller);
        Ok(())
    }

    /// Its layers, on what `disk` makes of the number of a controller.
    pub fn stack(&self, disk: impl Fn(usize) -> kiovec::Result<Disk>) -> Result<Stack> {
        let leaf = |name: &str| self.device.leaves.iter().position(|leaf| leaf.to_string() == name);
        let mut disk = |name: &str| match leaf(name) {
            Some(index) => disk(index),
            None => Err(kiovec::Error::InvalidInput(format!("{name} is not open"))),
        };
        Ok(Stack::new(&self.device.plan, &self.space, &mut disk)?)
    }

    /// The controllers that are lost, and why. One that has failed is not, as long as the driver can reset it.
    pub fn lost(&self) -> Vec<kiovec::Error> {
        let is_lost = |error: &kiovec::Error| {
            !matches!(error, kiovec::Error::Fatal { .. } | kiovec::Error::Disabled { .. })
        };
        self.controllers.iter().filter_map(|controller| controller.check().err().filter(is_lost)).collect()
    }
}

#[cfg(test)]
mod tests;
