//! Who may open a group, and how much memory they may lock for it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::sysfs::{attribute, names};
use crate::{Bytes, Error, Result, Sysfs};

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name, or the number as text.
    pub name: String,
    /// Number.
    pub uid: u32,
}

impl User {
    /// Finds a user by name in `/etc/passwd`, or takes a number as it is. The file is read directly, because
    /// this program is also linked statically, where NSS does not work.
    ///
    /// # Errors
    ///
    /// There is no such name.
    pub fn find(sysfs: &Sysfs, name: &str) -> Result<User> {
        let uid = name.parse().ok().or_else(|| uid_of(sysfs, name));
        let uid = uid.ok_or_else(|| Error::NoSuchUser(name.to_owned()))?;
        Ok(User { name: name.to_owned(), uid })
    }
}

fn uid_of(sysfs: &Sysfs, name: &str) -> Option<u32> {
    let passwd = attribute(&sysfs.path("/etc/passwd"))?;
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None })
}

/// How much memory a process may lock. VFIO counts every byte that is mapped for DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// No limit.
    Unlimited,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MemoryLimit::Bytes(bytes) => Bytes(bytes).fmt(f),
            MemoryLimit::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            MemoryLimit::Bytes(bytes) => serializer.serialize_u64(bytes),
            MemoryLimit::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

impl MemoryLimit {
    /// The soft limit of a process, from `/proc/PROCESS/limits`.
    pub(crate) fn of_process(sysfs: &Sysfs, process: &str) -> Option<MemoryLimit> {
        let limits = attribute(&sysfs.path(format!("/proc/{process}/limits")))?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
        limit(line.split_whitespace().next()?, 1)
    }

    /// What a log-in of the user will get: what pam_limits says, else what init hands down.
    pub(crate) fn of_user(sysfs: &Sysfs, user: &User) -> Option<MemoryLimit> {
        let mut found = None;
        for file in limits_files(sysfs) {
            let text = fs::read_to_string(file).unwrap_or_default();
            for (specific, limit) in text.lines().filter_map(|line| limits_line(line, &user.name)) {
                // A later line wins, but a wildcard never over a name.
                if found.is_none_or(|(known, _)| specific >= known) {
                    found = Some((specific, limit));
                }
            }
        }
        found.map(|(_, limit)| limit).or_else(|| MemoryLimit::of_process(sysfs, "1"))
    }
}

fn limits_files(sysfs: &Sysfs) -> Vec<PathBuf> {
    let folder = sysfs.path("/etc/security/limits.d");
    let drop_ins = names(&folder).unwrap_or_default().into_iter().filter(|name| name.ends_with(".conf"));
    let mut files = vec![sysfs.path("/etc/security/limits.conf")];
    files.extend(drop_ins.map(|name| folder.join(Path::new(&name))));
    files
}

/// A line of limits.conf(5) about the soft memlock of this user: whether it names the user, and the limit.
fn limits_line(line: &str, user: &str) -> Option<(bool, MemoryLimit)> {
    let mut fields = line.split('#').next()?.split_whitespace();
    let (domain, kind, item, value) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if !["soft", "-"].contains(&kind) || item != "memlock" || ![user, "*"].contains(&domain) {
        return None;
    }
    Some((domain == user, limit(value, 1024)?))
}

fn limit(text: &str, unit: u64) -> Option<MemoryLimit> {
    match text {
        "unlimited" | "infinity" | "-1" => Some(MemoryLimit::Unlimited),
        _ => Some(MemoryLimit::Bytes(text.parse::<u64>().ok()?.saturating_mul(unit))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_limits_conf() {
        let mib = |mib: u64| MemoryLimit::Bytes(mib << 20);
        assert_eq!(limits_line("joe  soft memlock 65536", "joe"), Some((true, mib(64))));
        assert_eq!(limits_line("* - memlock unlimited # all", "joe"), Some((false, MemoryLimit::Unlimited)));
        for other in [
            "",
            "# joe soft memlock 1",
            "joe hard memlock 1",
            "ann soft memlock 1",
            "joe soft nofile 1",
            "joe soft memlock",
            "joe soft memlock lots",
        ] {
            assert_eq!(limits_line(other, "joe"), None, "{other:?}");
        }
    }

    #[test]
    fn no_limit_is_more_than_any() {
        assert!(MemoryLimit::Unlimited > MemoryLimit::Bytes(u64::MAX));
    }
}
