//! `kernel:/dev/nvme0n1`, `kernel:/path/file`: a block device or a file, as the kernel drives it.
//!
//! Knows how it is opened, how large it is, and what must not be written; must not know about rings.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// What it is called on a command line, before the path.
pub const PREFIX: &str = "kernel:";
/// statx(2), since Linux 6.1: how direct I/O has to be aligned.
const DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);

/// A path as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(PathBuf);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Name, String> {
        match text.strip_prefix(PREFIX) {
            Some(path) if !path.is_empty() => Ok(Name(path.into())),
            _ => Err(format!("{PREFIX} needs a block device or a file, as in {PREFIX}/dev/nvme0n1")),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0.display())
    }
}

/// A file in use.
#[derive(Debug)]
pub struct File {
    pub name: Name,
    pub file: fs::File,
    pub block_size: u32,
    pub blocks: u64,
    /// Whether the page cache is passed by.
    pub direct: bool,
    /// Whether the device can be polled by the kernel, as far as sysfs tells.
    pub can_poll: bool,
    /// What makes its figures something else than a device's.
    pub notes: Vec<String>,
}

impl File {
    pub fn open(name: &Name, writes: bool) -> Result<File> {
        let metadata = fs::metadata(&name.0).map_err(|error| cannot_open(name, &error))?;
        let kind = metadata.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            let what = format!("{name} is neither a block device nor a file");
            return Err(Error::Unsuitable(what + "; see lsblk, or make a file: truncate -s 1G FILE"));
        }
        let (mut file, direct) = open(name, writes, kind.is_block_device())?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(|error| Error::os(name.to_string())(error))?;
        let block_size = match kind.is_block_device() {
            true => attribute(&metadata, "logical_block_size").unwrap_or(512),
            false => alignment(&file, direct),
        };
        let blocks = bytes / u64::from(block_size);
        if blocks == 0 {
            let what = format!("{name} has {bytes} bytes, which is less than a block of {block_size}");
            return Err(Error::Unsuitable(what + "; make it larger: truncate -s 1G FILE"));
        }
        let can_poll = direct && attribute(&metadata, "io_poll") == Some(1);
        let notes = notes(name, &metadata, direct, can_poll);
        Ok(File { name: name.clone(), file, block_size, blocks, direct, can_poll, notes })
    }
}

/// Past the page cache, if that is possible. A block device that is written is opened exclusively: the kernel
/// refuses that while it is mounted or otherwise in use, a part of it included, and nobody mounts it
/// meanwhile.
fn open(name: &Name, writes: bool, device: bool) -> Result<(fs::File, bool)> {
    let exclusive = if writes && device { OFlags::EXCL } else { OFlags::empty() };
    let open = |flags: OFlags| {
        let flags = (flags | exclusive).bits() as i32;
        OpenOptions::new().read(true).write(writes).custom_flags(flags).open(&name.0)
    };
    let opened = match open(OFlags::DIRECT) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            open(OFlags::empty()).map(|file| (file, false))
        }
        result => result.map(|file| (file, true)),
    };
    opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => {
            let what = format!("{name} is mounted or otherwise in use{}, and is not written", user(&name.0));
            Error::Unsuitable(what + "; unmount it, see lsblk and /proc/mounts")
        }
        _ => cannot_open(name, &error),
    })
}

fn cannot_open(name: &Name, error: &std::io::Error) -> Error {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => "; see lsblk, or make a file: truncate -s 1G FILE",
        Some(Errno::ACCESS | Errno::PERM) => "; run it as root, or as a user who may open it",
        _ => "",
    };
    Error::Unsuitable(format!("{name}: {error}{hint}"))
}

/// Where it is mounted, or a part of it.
fn user(path: &Path) -> String {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = path.to_string_lossy();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        words.next().filter(|source| source.starts_with(&*path)).and(words.next())
    });
    mount.map_or_else(String::new, |mount| format!(" (at {mount})"))
}

/// A number that sysfs has of the queue of a block device, or of the device that a file is on.
fn attribute(metadata: &fs::Metadata, name: &str) -> Option<u32> {
    let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    // A partition has no queue of its own.
    ["queue", "../queue"].iter().find_map(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

/// What offsets and sizes have to be multiples of.
fn alignment(file: &fs::File, direct: bool) -> u32 {
    if !direct {
        return 512;
    }
    let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, DIOALIGN);
    let known = statx.ok().filter(|statx| statx.stx_mask & DIOALIGN.bits() != 0);
    match known.map(|statx| statx.stx_dio_offset_align) {
        Some(align) if align.is_power_of_two() && align <= 1 << 16 => align.max(512),
        _ => 4096,
    }
}

fn notes(name: &Name, metadata: &fs::Metadata, direct: bool, can_poll: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !direct {
        notes.push(format!("{name} takes no O_DIRECT: this measures the page cache, not a device"));
    } else if !can_poll {
        notes.push(format!(
            "{name}: completions come by interrupt: its queue cannot be polled (queue/io_poll is 0; for NVMe, load the \
             driver with nvme.poll_queues=2)"
        ));
    }
    if metadata.is_file() && metadata.blocks().saturating_mul(512) < metadata.len() {
        notes.push(format!("{name} has holes, and what reads them reads no device; write all of it first"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &Path) -> Name {
        format!("{PREFIX}{}", path.display()).parse().unwrap()
    }

    #[test]
    fn a_file_has_whole_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, vec![1; 3 * 4096 + 100]).unwrap();
        let file = File::open(&name(&path), false).unwrap();
        assert_eq!(file.blocks * u64::from(file.block_size), 3 * 4096);
        fs::write(&path, [1; 100]).unwrap();
        let error = File::open(&name(&path), false).unwrap_err().to_string();
        assert!(error.contains("has 100 bytes") && error.contains("truncate"), "{error}");
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let error = File::open(&name(Path::new("/proc")), false).unwrap_err().to_string();
        assert!(error.contains("kernel:/proc is neither a block device nor a file"), "{error}");
        let error = File::open(&name(Path::new("/dev/null")), true).unwrap_err().to_string();
        assert!(error.contains("kernel:/dev/null is neither"), "{error}");
        let error = File::open(&name(Path::new("/nowhere/f")), false).unwrap_err().to_string();
        assert!(error.contains("No such file") && error.contains("lsblk"), "{error}");
        assert!("kernel:".parse::<Name>().is_err());
    }

    #[test]
    fn a_file_with_holes_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let notes = File::open(&name(&path), false).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains("has holes")), "{notes:?}");
    }
}
