//! What can go wrong: one line each, with what, where and what to do next.

use std::io;
use std::path::PathBuf;

use crate::{Bdf, Bytes, Holder};

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a PCI address.
    #[error("{0:?} is not a PCI address; the form is 0000:01:00.0, or 01:00.0 in domain 0000")]
    BadBdf(String),

    /// No function at that address.
    #[error(
        "{0}: there is no such PCI function; `hugepage-setup status` lists this machine's NVMe functions"
    )]
    NoSuchFunction(Bdf),

    /// The function is not an NVM Express controller.
    #[error(
        "{bdf} is not an NVMe function: its PCI class is {class}, not 0x010802; see `hugepage-setup status`"
    )]
    NotNvme {
        /// The function.
        bdf: Bdf,
        /// Its class, as sysfs writes it.
        class: String,
    },

    /// No IOMMU stands behind the function.
    #[error(
        "{0} has no IOMMU group: there is no IOMMU, or it is off; enable VT-d/AMD-Vi in the firmware and \
         boot with intel_iommu=on"
    )]
    NoIommuGroup(Bdf),

    /// Taking the function away would pull it from under somebody.
    #[error("{bdf}: {holder}{}; {} first{}", and_more(*.more), .holder.remedy(), or_force(*.can_force))]
    InUse {
        /// The function.
        bdf: Bdf,
        /// Who has to let go first.
        holder: Box<Holder>,
        /// How many more there are.
        more: usize,
        /// Whether `--force` overrides this.
        can_force: bool,
    },

    /// The driver is not in the kernel and could not be loaded.
    #[error(
        "there is no {driver} driver in this kernel, and loading it failed: {reason}; try: modprobe {driver}"
    )]
    NoDriver {
        /// The driver.
        driver: String,
        /// What became of the attempt.
        reason: String,
    },

    /// The kernel was asked for one driver and the function ended up with another, or with none.
    #[error(
        "{bdf}: {wanted} did not take it, it has {} now; `dmesg | grep {bdf}` says why",
        driver_name(.now)
    )]
    NotBound {
        /// The function.
        bdf: Bdf,
        /// The driver it was meant for.
        wanted: String,
        /// The driver it has.
        now: Option<String>,
    },

    /// The kernel was asked to unbind, and the driver is still there.
    #[error("{bdf}: {driver} did not let go of it; `dmesg | grep {bdf}` says why")]
    StillBound {
        /// The function.
        bdf: Bdf,
        /// The driver that it still has.
        driver: String,
    },

    /// The group's device file never came.
    #[error(
        "{bdf}: {} did not appear within {seconds} s; mount devtmpfs on /dev, or see that udev runs",
        .node.display()
    )]
    NoGroupNode {
        /// The function.
        bdf: Bdf,
        /// `/dev/vfio/GROUP`.
        node: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },

    /// A change failed, and so did undoing it.
    #[error("{why}; and putting {bdf} back failed too: {back}; run: hugepage-setup restore {bdf}")]
    NotPutBack {
        /// The function.
        bdf: Bdf,
        /// The first failure.
        why: Box<Error>,
        /// The second.
        back: Box<Error>,
    },

    /// `--user` named nobody.
    #[error(
        "there is no user {0:?} in /etc/passwd; for a user from elsewhere (LDAP) give the number: --user 1000"
    )]
    NoSuchUser(String),

    /// The kernel has no hugepages of that size.
    #[error(
        "this kernel has no hugepages of {}{}; it has: {}",
        Bytes(*.size),
        on_node(*.node),
        none_or(.have)
    )]
    NoSuchPageSize {
        /// The size asked for, in bytes.
        size: u64,
        /// On which NUMA node.
        node: Option<u32>,
        /// The sizes there are.
        have: String,
    },

    /// No such NUMA node.
    #[error("there is no NUMA node {node}; this machine has: {}", none_or(.have))]
    NoSuchNode {
        /// The node asked for.
        node: u32,
        /// The nodes there are.
        have: String,
    },

    /// The kernel did not find enough memory.
    #[error(
        "asked for {asked} hugepages of {}{}, the kernel found memory for {got}; the pool is back at {back}; \
         ask for fewer, free memory first, or reserve them at boot (hugepagesz=, hugepages=)",
        Bytes(*.size),
        on_node(*.node)
    )]
    TooFewPages {
        /// Bytes in a page.
        size: u64,
        /// On which NUMA node.
        node: Option<u32>,
        /// Pages asked for.
        asked: u64,
        /// Pages that the kernel gave.
        got: u64,
        /// Pages in the pool now that what was there has been put back.
        back: u64,
    },

    /// A file could not be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// A file holds what it should not.
    #[error("{} holds {text:?}, which is not {expected}", .path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What is in it.
        text: String,
        /// What was expected.
        expected: &'static str,
    },

    /// A file could not be written.
    #[error("cannot {action} {}: {source}{}", .path.display(), advice(source))]
    Write {
        /// What was to be done to the file: `write "vfio-pci" to`.
        action: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// The state file is damaged. Guessing what it said could bind a disk to the wrong driver.
    #[error(
        "{} is damaged ({reason}), nothing was changed; if no device or hugepage count needs restoring, \
         remove it",
        .path.display()
    )]
    BadState {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        _ => format!(" (and {more} more, see `hugepage-setup status`)"),
    }
}

fn or_force(can_force: bool) -> &'static str {
    if can_force { ", or use --force" } else { "" }
}

fn driver_name(driver: &Option<String>) -> &str {
    driver.as_deref().unwrap_or("no driver")
}

fn on_node(node: Option<u32>) -> String {
    node.map_or_else(String::new, |node| format!(" on NUMA node {node}"))
}

fn none_or(list: &str) -> &str {
    if list.is_empty() { "none" } else { list }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run hugepage-setup as root",
        io::ErrorKind::ReadOnlyFilesystem => {
            "; it is read-only here: run hugepage-setup outside the container"
        }
        _ => "",
    }
}
