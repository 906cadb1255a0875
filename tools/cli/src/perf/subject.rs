//! What is measured: a device that this program's driver drives, or one that the kernel drives.
//!
//! Knows the two by name, and how each is opened; must not know what is done with them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kiovec::memory::Pages;

use super::kernel;
use crate::Result;
use crate::device::{Device, FORMS, KERNELS, Leaf, Opened};

/// A device as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Driver(Device),
    Kernel(kernel::Name),
}

impl Default for Subject {
    /// A controller in this process, so that it runs anywhere.
    fn default() -> Subject {
        "emulated".parse().expect("the shortest name there is")
    }
}

/// What `perf` says of its devices.
pub fn forms() -> String {
    format!("{FORMS}, or {}/dev/nvme0n1 (the kernel's driver, through io_uring, or a file)", kernel::PREFIX)
}

/// The path of what may be a block device's name: a path, or nvme0n1. nvme0 is a controller, and layers are none.
fn block_device(name: &str) -> Option<String> {
    let controller = |rest: &str| rest.chars().all(|letter| letter.is_ascii_digit());
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    let is_one = !name.contains('(') && !short.strip_prefix("nvme").is_some_and(controller);
    is_one.then(|| if name.starts_with('/') { name.to_owned() } else { format!("/dev/{name}") })
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Subject, String> {
        if text.starts_with(kernel::PREFIX) {
            return text.parse().map(Subject::Kernel);
        }
        if text.contains(['(', ',']) && text.contains(kernel::PREFIX) {
            return Err(format!("layers stand on the driver's own devices, and {} is none", kernel::PREFIX));
        }
        text.parse().map(Subject::Driver).map_err(|error: String| match block_device(text) {
            Some(path) if error.ends_with(KERNELS) => {
                format!("{error}; {}{path} measures it through that driver", kernel::PREFIX)
            }
            _ => error.replace(FORMS, &forms()),
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Driver(device) => device.fmt(f),
            Subject::Kernel(name) => name.fmt(f),
        }
    }
}

impl Subject {
    /// Whether there are layers between its name and its controllers.
    pub fn is_stack(&self) -> bool {
        matches!(self, Subject::Driver(device) if device.is_stack())
    }

    /// The controllers below it, if the driver drives them.
    pub fn leaves(&self) -> &[Leaf] {
        match self {
            Subject::Driver(device) => &device.leaves,
            Subject::Kernel(_) => &[],
        }
    }

    pub fn leaves_mut(&mut self) -> &mut [Leaf] {
        match self {
            Subject::Driver(device) => &mut device.leaves,
            Subject::Kernel(_) => &mut [],
        }
    }

    /// Opens it, for writing as well if that is needed.
    pub fn attach(&self, writes: bool) -> Result<Arc<Attached>> {
        Ok(Arc::new(match self {
            Subject::Driver(device) => Attached::Driver(device.open()?),
            Subject::Kernel(name) => Attached::Kernel(kernel::File::open(name, writes)?),
        }))
    }
}

/// A device in use.
#[derive(Debug)]
pub enum Attached {
    Driver(Opened),
    Kernel(kernel::File),
}

impl Attached {
    /// Its controllers, if the driver drives them.
    pub fn driver(&self) -> Option<&Opened> {
        match self {
            Attached::Driver(opened) => Some(opened),
            Attached::Kernel(_) => None,
        }
    }

    /// The controllers that have stopped, and why.
    pub fn lost(&self) -> Vec<kiovec::Error> {
        self.driver().map(Opened::lost).unwrap_or_default()
    }

    /// What the driver's data memory stands on.
    pub fn pages(&self) -> Option<Pages> {
        self.driver()?.space.pages()
    }

    /// What the kernel's figures are worth.
    pub fn notes(&self) -> &[String] {
        match self {
            Attached::Driver(_) => &[],
            Attached::Kernel(file) => &file.notes,
        }
    }

    /// How the I/Os get to the device.
    pub fn way(&self) -> String {
        match self {
            Attached::Driver(_) => self.pages().map_or_else(String::new, |pages| pages.to_string()),
            Attached::Kernel(kernel::File { direct: false, .. }) => "io_uring, page cache".into(),
            Attached::Kernel(kernel::File { can_poll: true, .. }) => "io_uring, O_DIRECT, IOPOLL".into(),
            Attached::Kernel(_) => "io_uring, O_DIRECT, interrupts".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_they_are_given() {
        for name in ["emulated", "kernel:/dev/nvme0n1", "trace(emulated:size=1M)"] {
            assert_eq!(name.parse::<Subject>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn names_of_the_kernels_are_answered_with_both_ways() {
        let error = |name: &str| name.parse::<Subject>().unwrap_err();
        for (name, path) in [("nvme0n1", "/dev/nvme0n1"), ("/dev/sda", "/dev/sda")] {
            let wanted = format!("kernel:{path} measures it through that driver");
            assert!(error(name).contains("kiovec list") && error(name).ends_with(&wanted), "{}", error(name));
        }
        for name in ["nvme0", "/dev/nvme10", "trace(nvme0n1)"] {
            assert!(error(name).ends_with(KERNELS), "{}", error(name));
        }
    }

    #[test]
    fn layers_stand_on_no_kernel_device() {
        let error = "mirror(emulated,kernel:/dev/sda)".parse::<Subject>().unwrap_err();
        assert!(error.contains("the driver's own devices"), "{error}");
    }
}
