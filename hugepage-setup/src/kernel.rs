//! Everything that changes the machine.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What is asked of the running kernel. Paths are complete, the root included.
///
/// One method is one step: a run that is killed is killed between two of them, and the tests stop it at each.
pub trait Kernel {
    /// Writes an attribute that exists, with one `write(2)`.
    fn write(&mut self, attribute: &Path, value: &str) -> io::Result<()>;

    /// Creates a file, or replaces what is in it.
    fn create(&mut self, file: &Path, contents: &str) -> io::Result<()>;

    /// Renames, replacing what was there.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&mut self, file: &Path) -> io::Result<()>;

    /// User and group that own a file.
    fn owner(&mut self, file: &Path) -> io::Result<(u32, u32)>;

    /// Gives a file to a user and group.
    fn chown(&mut self, file: &Path, user: u32, group: u32) -> io::Result<()>;

    /// Loads a module with its dependencies; the error says in one line why not.
    fn load_module(&mut self, modprobe: &Path, name: &str) -> Result<(), String>;

    /// Whether somebody in the kernel has claimed the block device, or a partition of it, for itself alone.
    fn is_claimed(&mut self, device: &Path) -> bool;

    /// Lets time go by.
    fn pause(&mut self, time: Duration);
}

/// The kernel that we run on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Linux;

impl Kernel for Linux {
    fn write(&mut self, attribute: &Path, value: &str) -> io::Result<()> {
        // Never O_CREAT: a missing attribute must not become a file in a tmpfs.
        OpenOptions::new().write(true).open(attribute)?.write_all(value.as_bytes())
    }

    fn create(&mut self, file: &Path, contents: &str) -> io::Result<()> {
        // No fsync: /run is memory, and what it says about this boot is worth nothing after the next.
        fs::write(file, contents)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&mut self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    fn owner(&mut self, file: &Path) -> io::Result<(u32, u32)> {
        fs::metadata(file).map(|meta| (meta.uid(), meta.gid()))
    }

    fn chown(&mut self, file: &Path, user: u32, group: u32) -> io::Result<()> {
        std::os::unix::fs::chown(file, Some(user), Some(group))
    }

    fn load_module(&mut self, modprobe: &Path, name: &str) -> Result<(), String> {
        let run = Command::new(modprobe).arg(name).output();
        let output = run.map_err(|error| format!("cannot run {}: {error}", modprobe.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(said.lines().next().map_or_else(|| format!("modprobe: {}", output.status), str::to_owned))
    }

    fn is_claimed(&mut self, device: &Path) -> bool {
        // Mounts (in any mount namespace), swap, LVM, MD, btrfs and ZFS members all hold their device
        // exclusively, whether or not sysfs names them. Read-only, so that closing it wakes nobody up.
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(device, flags, Mode::empty()).err() == Some(Errno::BUSY)
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl<K: Kernel + ?Sized> Kernel for &mut K {
    fn write(&mut self, attribute: &Path, value: &str) -> io::Result<()> {
        (**self).write(attribute, value)
    }

    fn create(&mut self, file: &Path, contents: &str) -> io::Result<()> {
        (**self).create(file, contents)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        (**self).rename(from, to)
    }

    fn remove(&mut self, file: &Path) -> io::Result<()> {
        (**self).remove(file)
    }

    fn owner(&mut self, file: &Path) -> io::Result<(u32, u32)> {
        (**self).owner(file)
    }

    fn chown(&mut self, file: &Path, user: u32, group: u32) -> io::Result<()> {
        (**self).chown(file, user, group)
    }

    fn load_module(&mut self, modprobe: &Path, name: &str) -> Result<(), String> {
        (**self).load_module(modprobe, name)
    }

    fn is_claimed(&mut self, device: &Path) -> bool {
        (**self).is_claimed(device)
    }

    fn pause(&mut self, time: Duration) {
        (**self).pause(time);
    }
}
