//! The machines that are booted: processors, IOMMU, controllers, and the cases that run there.
//!
//! Host and guest are built from the same list: the host makes QEMU's command line of it, the guest is told the
//! machine's name and finds its devices' addresses and cases here.

use std::fmt;
use std::time::Duration;

use crate::pattern::Extent;

/// A machine to boot.
#[derive(Debug)]
pub struct Machine {
    /// Its name, on the command line and in the report.
    pub name: &'static str,
    /// Processors.
    pub processors: u8,
    /// The IOMMU, if it has one.
    pub iommu: Option<Iommu>,
    /// NVMe functions.
    pub controllers: &'static [&'static Controller],
    /// What runs there, in this order.
    pub cases: &'static [&'static str],
    /// How long it may run, boot included.
    pub limit: Duration,
}

/// QEMU's intel-iommu.
#[derive(Debug, Clone, Copy)]
pub struct Iommu {
    /// Whether it remaps interrupts; VFIO refuses it otherwise.
    pub interrupt_remapping: bool,
    /// Bits of an I/O virtual address: 39 or 48.
    pub address_bits: u8,
}

/// A place on PCI bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub slot: u8,
    /// The function.
    pub function: u8,
}

/// An NVMe controller.
#[derive(Debug)]
pub struct Controller {
    /// Where it is.
    pub address: Address,
    /// Whether other functions are in its slot; without ACS they share its IOMMU group.
    pub multifunction: bool,
    /// Its serial number, by which the guest finds its block devices.
    pub serial: &'static str,
    /// How much it takes at once.
    pub mdts: Mdts,
    /// Namespaces.
    pub namespaces: &'static [Namespace],
}

/// Maximum Data Transfer Size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mdts {
    /// A power of two of 4 KiB pages.
    Pages(u8),
    /// As much as this QEMU allows: no limit, or 2 MiB from 10.0.13 on.
    Largest,
}

/// A namespace, on a raw file of its own.
#[derive(Debug, Clone, Copy)]
pub struct Namespace {
    /// Its number.
    pub nsid: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes in a logical block.
    pub block: u32,
    /// What is on it when the machine starts.
    pub content: Content,
}

/// What a medium holds before the first boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Blank,
    /// A DOS partition table with one partition for swap, initialised.
    SwapPartition,
    /// An empty romfs.
    FileSystem,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.{:x}", self.slot, self.function)
    }
}

impl Controller {
    /// Its address as the command line takes it, `0000:00:10.0`.
    pub fn bdf(&self) -> String {
        self.address.to_string()
    }
}

const MIB: u64 = 1 << 20;

const fn blank(nsid: u32, size: u64, block: u32) -> Namespace {
    Namespace { nsid, size, block, content: Content::Blank }
}

const fn at(slot: u8, function: u8) -> Address {
    Address { slot, function }
}

const BOTH_BLOCK_SIZES: &[Namespace] = &[blank(1, 32 * MIB, 512), blank(2, 32 * MIB, 4096)];

/// The controller that most cases use: two namespaces of both block sizes, QEMU's own MDTS of 512 KiB.
pub static DISK: Controller = Controller {
    address: at(0x10, 0),
    multifunction: false,
    serial: "KIOVECDISK",
    mdts: Mdts::Pages(7),
    namespaces: BOTH_BLOCK_SIZES,
};

/// A controller that takes 8 KiB at once.
pub static SMALL_TRANSFERS: Controller = Controller {
    address: at(0x11, 0),
    multifunction: false,
    serial: "KIOVECSMALL",
    mdts: Mdts::Pages(1),
    namespaces: BOTH_BLOCK_SIZES,
};

/// A controller that takes the largest transfers that QEMU has.
pub static LARGE_TRANSFERS: Controller = Controller {
    address: at(0x12, 0),
    multifunction: false,
    serial: "KIOVECLARGE",
    mdts: Mdts::Largest,
    namespaces: BOTH_BLOCK_SIZES,
};

/// Two controllers in one slot: they share one IOMMU group.
pub static TWIN: Controller = Controller {
    address: at(0x13, 0),
    multifunction: true,
    serial: "KIOVECTWIN0",
    mdts: Mdts::Pages(7),
    namespaces: &[blank(1, 16 * MIB, 512)],
};
/// The other of the two.
pub static OTHER_TWIN: Controller = Controller {
    address: at(0x13, 1),
    multifunction: true,
    serial: "KIOVECTWIN1",
    mdts: Mdts::Pages(7),
    namespaces: &[blank(1, 16 * MIB, 512)],
};

/// A controller whose namespaces the machine uses: swap, a file system, device-mapper.
pub static USED: Controller = Controller {
    address: at(0x14, 0),
    multifunction: false,
    serial: "KIOVECUSED",
    mdts: Mdts::Pages(7),
    namespaces: &[
        Namespace { nsid: 1, size: 16 * MIB, block: 512, content: Content::SwapPartition },
        Namespace { nsid: 2, size: MIB, block: 512, content: Content::FileSystem },
        blank(3, MIB, 4096),
    ],
};

/// A controller whose data nobody minds: for workloads that destroy it.
pub static SCRATCH: Controller = Controller {
    address: at(0x15, 0),
    multifunction: false,
    serial: "KIOVECSCRATCH",
    mdts: Mdts::Pages(7),
    namespaces: BOTH_BLOCK_SIZES,
};

/// What the guest's kernel writes on a namespace before kiovec may have it: a pattern from end to end.
pub fn kernel_extent(namespace: &Namespace) -> Extent {
    Extent { nsid: namespace.nsid, offset: 0, len: namespace.size, seed: kernel_seed(namespace.nsid) }
}

/// The seed of the kernel's pattern on a namespace.
pub fn kernel_seed(nsid: u32) -> u64 {
    0x6b65_726e_0000 + u64::from(nsid)
}

const PLAIN_IOMMU: Iommu = Iommu { interrupt_remapping: true, address_bits: 48 };

/// All machines.
pub static MACHINES: &[Machine] = &[
    Machine {
        name: "main",
        processors: 2,
        iommu: Some(PLAIN_IOMMU),
        controllers: &[&DISK, &SMALL_TRANSFERS, &LARGE_TRANSFERS, &TWIN, &OTHER_TWIN, &USED, &SCRATCH],
        cases: &[
            // The kernel has all devices.
            "modules-loaded",
            "kernel-writes",
            "sysfs-bind",
            "sysfs-restore",
            "kernel-reads-back",
            "status",
            "list-kernels",
            "reserve",
            "setup-refuses-wrong-addresses",
            "setup-refuses-swap",
            "setup-refuses-mount",
            "setup-refuses-device-mapper",
            "setup-refuses-open-device",
            "kiovec-refuses-kernels-device",
            "kiovec-refuses-wrong-addresses",
            // kiovec has them.
            "bind",
            "bind-for-user",
            "list-bound",
            "identify",
            "group-must-be-viable",
            "unprivileged-user",
            "kiovec-reads-kernels-prp",
            "kiovec-reads-kernels-sgl",
            "kiovec-writes-prp",
            "kiovec-writes-sgl",
            "perf-reads",
            "perf-verifies",
            "perf-verifies-on-two-cores",
            "perf-needs-consent",
            "perf-refuses-wrong-workloads",
            "perf-without-hugepages",
            "perf-interrupted",
            "perf-killed",
            // The kernel has them again.
            "restore",
            "kernel-reads-kiovecs",
            "no-dma-faults",
        ],
        limit: Duration::from_secs(400),
    },
    Machine {
        name: "39-bits",
        processors: 1,
        iommu: Some(Iommu { address_bits: 39, ..PLAIN_IOMMU }),
        controllers: &[&DISK],
        cases: &[
            "modules-loaded",
            "kernel-writes",
            "bind",
            "identify",
            "kiovec-reads-kernels-prp",
            "kiovec-writes-prp",
            "kiovec-writes-sgl",
            "kernel-reads-kiovecs",
            "no-dma-faults",
        ],
        limit: Duration::from_secs(180),
    },
    Machine {
        name: "no-interrupt-remapping",
        processors: 1,
        iommu: Some(Iommu { interrupt_remapping: false, ..PLAIN_IOMMU }),
        controllers: &[&DISK],
        cases: &["modules-loaded", "no-interrupt-remapping"],
        limit: Duration::from_secs(120),
    },
    Machine {
        name: "no-iommu",
        processors: 1,
        iommu: None,
        controllers: &[&DISK],
        cases: &["modules-loaded", "status-and-bind-without-iommu", "kiovec-without-iommu"],
        limit: Duration::from_secs(120),
    },
];

/// The machine of that name.
pub fn find(name: &str) -> Option<&'static Machine> {
    MACHINES.iter().find(|machine| machine.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_look_as_linux_writes_them() {
        assert_eq!(OTHER_TWIN.bdf(), "0000:00:13.1");
    }

    #[test]
    fn nothing_is_there_twice() {
        for machine in MACHINES {
            let distinct = |items: Vec<String>| items.len() == items.iter().collect::<BTreeSet<_>>().len();
            assert!(distinct(machine.controllers.iter().map(|c| c.bdf()).collect()), "{}", machine.name);
            assert!(
                distinct(machine.controllers.iter().map(|c| c.serial.to_owned()).collect()),
                "{}",
                machine.name
            );
            assert!(distinct(machine.cases.iter().map(|c| (*c).to_owned()).collect()), "{}", machine.name);
        }
        let names: BTreeSet<_> = MACHINES.iter().map(|machine| machine.name).collect();
        assert_eq!(names.len(), MACHINES.len());
    }
}
