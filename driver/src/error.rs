//! The errors of the whole crate: each says what happened, where, and what to do next.
//!
//! Knows the wording; must not know how any of these situations is detected.

use crate::spec::Status;

/// What the world can do to a caller of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such PCI function.
    #[error("{device}: no such PCI function; `kiovec list` shows the NVMe functions of this machine")]
    NotFound {
        /// The device as it was named.
        device: String,
    },
    /// The name is not one of the forms a device can have.
    #[error("{name:?} is not a device name: {reason}")]
    BadName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The function is bound to a driver other than vfio-pci, or to none.
    #[error("{device} is bound to {driver}; bind it with: hugepage-setup bind {device}")]
    NotBound {
        /// The device as it was named.
        device: String,
        /// The driver it is bound to, or `no driver`.
        driver: String,
    },
    /// The function has no IOMMU group.
    #[error(
        "{device} has no IOMMU group: there is no IOMMU, or it is off; enable VT-d/AMD-Vi in the firmware and boot with intel_iommu=on (docs/hardware.md)"
    )]
    NoIommu {
        /// The device as it was named.
        device: String,
    },
    /// Another function of the group is bound to a host driver.
    #[error(
        "{device}: IOMMU group {group} is not viable: {others} must be bound to vfio-pci or to no driver as well"
    )]
    GroupNotViable {
        /// The device as it was named.
        device: String,
        /// The IOMMU group's number.
        group: u32,
        /// The functions that keep it from being viable.
        others: String,
    },
    /// The group is open in another process, or in another [`DmaSpace`](crate::memory::DmaSpace).
    #[error("{device}: IOMMU group {group} is in use by another process; end it, or choose another device")]
    Busy {
        /// The device as it was named.
        device: String,
        /// The IOMMU group's number.
        group: u32,
    },
    /// The IOMMU cannot isolate interrupts.
    #[error(
        "{device}: the IOMMU has no interrupt remapping, so VFIO refuses it; enable interrupt remapping (x2APIC) in the firmware, or, accepting that a device could forge interrupts, load vfio_iommu_type1 with allow_unsafe_interrupts=1"
    )]
    NoInterruptRemapping {
        /// The device as it was named.
        device: String,
    },
    /// A file's permissions keep us out.
    #[error(
        "no permission to open {path}; give it to this user with: hugepage-setup bind --user $USER {device}"
    )]
    Permission {
        /// The file.
        path: String,
        /// The device as it was named.
        device: String,
    },
    /// RLIMIT_MEMLOCK is too small to pin memory for DMA.
    #[error(
        "cannot pin {wanted} bytes for DMA: the locked-memory limit is {limit} bytes; raise it with `ulimit -l` or in /etc/security/limits.conf (memlock)"
    )]
    Memlock {
        /// Bytes of the mapping that failed.
        wanted: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// CSTS.RDY did not follow CC.EN in the time that the controller itself gives.
    #[error("{device}: controller not ready after {millis} ms ({what}); it may need a power cycle")]
    NotReady {
        /// The device as it was named.
        device: String,
        /// How long was waited, in milliseconds.
        millis: u64,
        /// What was waited for.
        what: &'static str,
    },
    /// CSTS.CFS is set.
    #[error("{device}: controller fatal status (CSTS.CFS); reset it, or power-cycle it")]
    Fatal {
        /// The device as it was named.
        device: String,
    },
    /// The controller is being reset.
    #[error("{device}: the controller is being reset; poll, and try again")]
    Resetting {
        /// The device as it was named.
        device: String,
    },
    /// Neither a reset of the controller nor one of its function has helped, or not every poller has stopped
    /// for it.
    #[error("{device}: the controller is given up: resets did not bring it back; drop it, and open it again")]
    Lost {
        /// The device as it was named.
        device: String,
    },
    /// The kernel wants the function back, so it was given up.
    #[error(
        "{device}: the kernel wants the device back (it is being removed or unbound), so everything in flight has failed; close it, and what waits for it goes on"
    )]
    ReturnRequested {
        /// The device as it was named.
        device: String,
    },
    /// CSTS.RDY of an enabled controller is 0.
    #[error("{device}: the controller was reset or lost its power behind the driver's back; open it again")]
    Disabled {
        /// The device as it was named.
        device: String,
    },
    /// Registers read as all ones, or as zeros that they never have.
    #[error("{device}: no register answers: the device is gone from the bus")]
    Gone {
        /// The device as it was named.
        device: String,
    },
    /// Nobody answers at a socket, or not as a vfio-user server does.
    #[error("{device}: {reason}")]
    NoServer {
        /// The device as it was named.
        device: String,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The connection to a controller in another process is lost. What was mapped for it stays reserved
    /// as long as this process lives: the other one may still use it.
    #[error(
        "{device}: the connection is lost: {reason}; start the server again if it has ended, and open the device again"
    )]
    Disconnected {
        /// The device as it was named.
        device: String,
        /// What happened first.
        reason: String,
    },
    /// The controller lacks something that this driver needs.
    #[error("{device}: not supported: {what}")]
    Unsupported {
        /// The device as it was named.
        device: String,
        /// What is missing or refused.
        what: String,
    },
    /// An admin command was not completed in time.
    #[error("{device}: no completion of {command} after {millis} ms")]
    Timeout {
        /// The device as it was named.
        device: String,
        /// The command.
        command: String,
        /// How long was waited, in milliseconds.
        millis: u64,
    },
    /// The controller completed a command with an error.
    #[error("{device}: {command} failed: {status}")]
    Command {
        /// The device as it was named.
        device: String,
        /// The command.
        command: String,
        /// The status field of its completion.
        status: Status,
    },
    /// The namespace is not active on this controller.
    #[error("{device} has no active namespace {nsid}; active: {active}")]
    NoNamespace {
        /// The device as it was named.
        device: String,
        /// The NSID asked for.
        nsid: u32,
        /// The active NSIDs.
        active: String,
    },
    /// IOVA ranges of a device and memory of the space exclude each other.
    #[error(
        "{device} cannot reach memory at IOVA {start:#x}-{end:#x} ({what}); its IOVA ranges are {ranges}"
    )]
    IovaExcluded {
        /// The device or IOMMU domain.
        device: String,
        /// First address.
        start: u64,
        /// Last address.
        end: u64,
        /// What memory lies there.
        what: String,
        /// The ranges that the device has.
        ranges: String,
    },
    /// No more memory, or no more room in the IOVA window.
    #[error("cannot get {bytes} bytes of DMA memory: {reason}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Why.
        reason: String,
    },
    /// An argument is out of its range.
    #[error("{0}")]
    InvalidInput(String),
    /// An operating-system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done, to what.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Os { what, source }
    }
}
