//! Where the kernel's files are, and how they are read.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::{Bdf, Error, Result};

/// The root of the tree that holds `/sys`, `/proc`, `/dev`, `/etc` and `/run`: `/`, or a test's own.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Sysfs {
        Sysfs::new("/")
    }
}

impl Sysfs {
    /// The tree under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs { root: root.into() }
    }

    /// Where the file is that a running machine has at `absolute`.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    pub(crate) fn function(&self, bdf: Bdf) -> PathBuf {
        self.path(format!("/sys/bus/pci/devices/{bdf}"))
    }

    pub(crate) fn driver(&self, name: &str) -> PathBuf {
        self.path("/sys/bus/pci/drivers").join(name)
    }

    /// The driver that the function has now.
    pub(crate) fn driver_of(&self, bdf: Bdf) -> Option<String> {
        link_name(&self.function(bdf).join("driver"))
    }

    /// The driver that alone may take the function, if one was set.
    pub(crate) fn driver_override_of(&self, bdf: Bdf) -> Result<Option<String>> {
        let text = required(&self.function(bdf).join("driver_override"))?;
        // The kernel prints a null pointer as it is.
        Ok(Some(text).filter(|text| !text.is_empty() && text != "(null)"))
    }
}

/// The attribute without its newline, or `None` if it is missing or the device has gone away meanwhile.
pub(crate) fn attribute(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).trim().to_owned())
}

/// An attribute that must be there.
pub(crate) fn required(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A decimal attribute that must be there.
pub(crate) fn number(path: &Path) -> Result<u64> {
    let text = required(path)?;
    text.parse().map_err(|_| Error::Unexpected { path: path.to_owned(), text, expected: "a number" })
}

/// The last part of what a symbolic link points to: `nvme` for `../../../bus/pci/drivers/nvme`.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// The names in a folder, sorted; none if there is no such folder.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    names.sort();
    Ok(names)
}
