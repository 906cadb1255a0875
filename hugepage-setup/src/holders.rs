//! Who uses a namespace: mounts, swap, block devices stacked on it, and processes that have it open.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fmt, fs, io};

use serde::Serialize;

use crate::processes::OpenDevices;
use crate::sysfs::{attribute, link_name, names, required};
use crate::{Error, Result, Sysfs};

/// A reason not to take a function away from its driver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Holder {
    /// A file system is mounted from the device.
    Mount {
        /// The block device: `nvme0n1p2`.
        device: String,
        /// Where.
        at: String,
    },
    /// The kernel swaps to the device.
    Swap {
        /// The block device.
        device: String,
    },
    /// A process has the device file open.
    Process {
        /// The device file.
        path: String,
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// Another block device sits on top: device mapper (LVM, LUKS), MD, loop.
    Stacked {
        /// The block device below.
        device: String,
        /// The block device on top: `dm-0`.
        by: String,
        /// The name that its owner gave it: `vg0-home`.
        name: Option<String>,
    },
    /// Something in the kernel has claimed the device, and sysfs does not say what: ZFS, or a mount in
    /// another mount namespace.
    Claimed {
        /// The block device.
        device: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mount { device, at } => write!(f, "/dev/{device} is mounted on {at}"),
            Holder::Swap { device } => write!(f, "/dev/{device} is swapped on"),
            Holder::Process { path, pid, comm } => write!(f, "{path} is held open by {comm} (pid {pid})"),
            Holder::Stacked { device, by, name: None } => write!(f, "/dev/{device} is held by {by}"),
            Holder::Stacked { device, by, name: Some(name) } => {
                write!(f, "/dev/{device} is held by {by} ({name})")
            }
            Holder::Claimed { device } => {
                write!(f, "/dev/{device} is claimed in the kernel (ZFS, or mounted in a container)")
            }
        }
    }
}

impl Holder {
    /// What to do so that it lets go.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Holder::Mount { .. } => "unmount it",
            Holder::Swap { .. } => "run swapoff on it",
            Holder::Process { .. } => "stop that process",
            Holder::Stacked { .. } => {
                "deactivate that (vgchange -an, mdadm --stop, cryptsetup close, losetup -d)"
            }
            Holder::Claimed { .. } => "export that pool, or unmount it there",
        }
    }
}

/// Who uses which device, read once for all functions.
#[derive(Debug)]
pub(crate) struct Usage {
    mounts: Vec<Mount>,
    swaps: Vec<String>,
    /// Loop device and the file behind it.
    loops: Vec<(String, String)>,
    /// The devices of each mounted btrfs: `mountinfo` names only one of them.
    btrfs: Vec<Vec<String>>,
    open: OpenDevices,
}

#[derive(Debug)]
struct Mount {
    /// `259:2`
    number: String,
    source: String,
    at: String,
}

impl Usage {
    pub(crate) fn read(sysfs: &Sysfs) -> Result<Usage> {
        let mountinfo = required(&sysfs.path("/proc/self/mountinfo"))?;
        Ok(Usage {
            mounts: mountinfo.lines().filter_map(mount).collect(),
            swaps: swaps(&sysfs.path("/proc/swaps"))?,
            loops: loops(sysfs)?,
            btrfs: btrfs(sysfs)?,
            open: OpenDevices::scan(sysfs)?,
        })
    }

    pub(crate) fn open(&self) -> &OpenDevices {
        &self.open
    }

    /// Everything that uses a disk, its partitions, or a block device stacked on one of those.
    pub(crate) fn of_disk(&self, sysfs: &Sysfs, disk: &str) -> Result<Vec<Holder>> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![disk.to_owned()];
        // Stacks are acyclic, but two of them may meet further up; and a bound costs nothing.
        let mut seen = BTreeSet::new();
        while let Some(device) = waiting.pop() {
            if !seen.insert(device.clone()) {
                continue;
            }
            waiting.extend(partitions(sysfs, &device)?);
            for stacked in self.stacked_on(sysfs, &device)? {
                if let Holder::Stacked { by, .. } = &stacked {
                    waiting.push(by.clone());
                }
                found.insert(stacked);
            }
            found.extend(self.of_device(sysfs, &device));
        }
        Ok(found.into_iter().collect())
    }

    /// What uses this one block device directly.
    fn of_device(&self, sysfs: &Sysfs, device: &str) -> Vec<Holder> {
        let mut found = self.mounts_of(sysfs, device);
        if self.swaps.iter().any(|swap| is_called(sysfs, device, swap)) {
            found.push(Holder::Swap { device: device.to_owned() });
        }
        found.extend(self.open.holders(sysfs, &format!("/dev/{device}")));
        found
    }

    fn mounts_of(&self, sysfs: &Sysfs, device: &str) -> Vec<Holder> {
        let number = attribute(&sysfs.path("/sys/class/block").join(device).join("dev"));
        // btrfs and others have a number of their own in mountinfo: there the name must do.
        let from =
            |mount: &Mount, device: &str| mount.source.split(':').any(|path| is_called(sysfs, device, path));
        let hold = |mount: &Mount| Holder::Mount { device: device.to_owned(), at: mount.at.clone() };
        let direct =
            self.mounts.iter().filter(|mount| Some(&mount.number) == number.as_ref() || from(mount, device));
        let mut found: Vec<Holder> = direct.map(hold).collect();
        let members = self.btrfs.iter().find(|members| members.iter().any(|member| member == device));
        if let Some(members) = members.filter(|_| found.is_empty()) {
            let any = self.mounts.iter().filter(|mount| members.iter().any(|member| from(mount, member)));
            found.extend(any.map(hold));
            if found.is_empty() {
                found.push(Holder::Claimed { device: device.to_owned() });
            }
        }
        found
    }

    fn stacked_on(&self, sysfs: &Sysfs, device: &str) -> Result<Vec<Holder>> {
        let block = sysfs.path("/sys/class/block");
        let mut above = names(&block.join(device).join("holders"))?;
        let node = format!("/dev/{device}");
        above.extend(self.loops.iter().filter(|(_, file)| *file == node).map(|(name, _)| name.clone()));
        let stacked = |by: String| Holder::Stacked {
            device: device.to_owned(),
            name: attribute(&block.join(&by).join("dm/name")),
            by,
        };
        Ok(above.into_iter().map(stacked).collect())
    }
}

fn partitions(sysfs: &Sysfs, device: &str) -> Result<Vec<String>> {
    let block = sysfs.path("/sys/class/block").join(device);
    let mut parts = names(&block)?;
    parts.retain(|name| block.join(name).join("partition").exists());
    Ok(parts)
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (number, at) = (before.next()?, before.nth(1)?);
    let source = after.split(' ').nth(1)?;
    Some(Mount { number: number.to_owned(), source: unescape(source), at: unescape(at) })
}

/// The first column of `/proc/swaps`; the file is missing when the kernel cannot swap.
fn swaps(path: &Path) -> Result<Vec<String>> {
    match fs::read_to_string(path) {
        Ok(text) => {
            Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn loops(sysfs: &Sysfs) -> Result<Vec<(String, String)>> {
    let block = sysfs.path("/sys/class/block");
    let backing = |name: &String| attribute(&block.join(name).join("loop/backing_file"));
    Ok(names(&block)?.into_iter().filter_map(|name| backing(&name).map(|file| (name, file))).collect())
}

fn btrfs(sysfs: &Sysfs) -> Result<Vec<Vec<String>>> {
    let root = sysfs.path("/sys/fs/btrfs");
    names(&root)?.into_iter().map(|uuid| names(&root.join(uuid).join("devices"))).collect()
}

/// Whether the path, as it stands in `mountinfo` or `swaps`, is this block device.
fn is_called(sysfs: &Sysfs, device: &str, path: &str) -> bool {
    let Some(name) = path.strip_prefix("/dev/") else { return false };
    let mapped = || attribute(&sysfs.path("/sys/class/block").join(device).join("dm/name"));
    name == device
        || name.strip_prefix("mapper/").is_some_and(|name| Some(name) == mapped().as_deref())
        || link_name(&sysfs.path(path)).as_deref() == Some(device)
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| u8::from_str_radix(digits, 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_line() {
        let line = r"36 35 259:2 /mnt1 /a\040b rw,noatime master:1 shared:7 - ext4 /dev/nvme0n1p2 rw,quota";
        let mount = mount(line).unwrap();
        assert_eq!((&*mount.number, &*mount.at, &*mount.source), ("259:2", "/a b", "/dev/nvme0n1p2"));
    }

    #[test]
    fn short_mountinfo_lines_are_skipped() {
        for line in ["", " - ", "1 2 3", "1 2 8:1 / - ext4", "1 2 8:1 / /mnt - ext4"] {
            assert!(mount(line).is_none(), "{line:?}");
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(r"/a\011b\134c"), "/a\tb\\c");
        assert_eq!(unescape(r"/a\"), r"/a\");
        assert_eq!(unescape(r"/a\04"), r"/a\04");
        assert_eq!(unescape(r"\999\777"), r"\999\777");
    }
}
