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

/// A place on the PCI buses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The bus: 0 is the root complex's own.
    pub bus: u8,
    /// The device.
    pub slot: u8,
    /// The function.
    pub function: u8,
}

/// A root port with a hot-plug slot that has a power controller, so that what is in it can be removed.
#[derive(Debug)]
pub struct RootPort {
    /// Where the port itself is.
    pub address: Address,
    /// The number of its slot.
    pub slot: u8,
}

/// An NVMe controller.
#[derive(Debug)]
pub struct Controller {
    /// Where it is.
    pub address: Address,
    /// The port in whose slot it is; `None` for one that is part of the root complex.
    pub root_port: Option<RootPort>,
    /// Whether other functions are in its slot; without ACS they share its IOMMU group.
    pub multifunction: bool,
    /// Its serial number, by which the guest finds its block devices.
    pub serial: &'static str,
    /// Who makes it.
    pub model: Model,
    /// Namespaces.
    pub namespaces: &'static [Namespace],
}

/// Who makes a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// QEMU itself.
    Qemu {
        /// How much it takes at once.
        mdts: Mdts,
        /// What it writes as a whole or not at all.
        atomic: Atomic,
    },
    /// `kiovec serve`, in a process of its own that QEMU reaches by vfio-user. Its namespaces are alike, and outlive
    /// the machine.
    Served,
}

/// Atomic writes (NVM Command Set 1.0, section 2.1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomic {
    /// One block, as every controller has to.
    Block,
    /// So many, in normal operation and across a power failure: AWUN and AWUPF are one less.
    Blocks(u32),
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
    /// Where its medium is broken, in every boot.
    pub defects: &'static [Defect],
}

/// A sector whose every access of one kind fails. The others keep their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defect {
    /// What fails.
    pub access: Access,
    /// Which sector, of 512 bytes whatever the namespace's blocks are.
    pub sector: u64,
}

/// A kind of access to a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
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
        write!(f, "0000:{:02x}:{:02x}.{:x}", self.bus, self.slot, self.function)
    }
}

impl Machine {
    /// Whether it boots more than once.
    pub fn reboots(&self) -> bool {
        self.cases.contains(&REBOOT)
    }

    /// Whether a controller of it is one of `kiovec serve`.
    pub fn is_served(&self) -> bool {
        self.controllers.iter().any(|controller| controller.model == Model::Served)
    }
}

impl Controller {
    /// A controller like the others but for its address and its serial number.
    const fn usual(address: Address, serial: &'static str) -> Controller {
        Controller {
            address,
            root_port: None,
            multifunction: false,
            serial,
            model: USUAL_MODEL,
            namespaces: BOTH_BLOCK_SIZES,
        }
    }

    /// Its address as the command line takes it, `0000:00:10.0`.
    pub fn bdf(&self) -> String {
        self.address.to_string()
    }
}

const MIB: u64 = 1 << 20;

/// QEMU's own MDTS of 512 KiB.
const USUAL_MODEL: Model = Model::Qemu { mdts: Mdts::Pages(7), atomic: Atomic::Block };

const fn with_mdts(mdts: Mdts) -> Model {
    Model::Qemu { mdts, atomic: Atomic::Block }
}

const fn blank(nsid: u32, size: u64, block: u32) -> Namespace {
    Namespace { nsid, size, block, content: Content::Blank, defects: &[] }
}

/// On the root complex's own bus.
const fn at(slot: u8, function: u8) -> Address {
    Address { bus: 0, slot, function }
}

const BOTH_BLOCK_SIZES: &[Namespace] = &[blank(1, 32 * MIB, 512), blank(2, 32 * MIB, 4096)];

/// The controller that most cases use: two namespaces of both block sizes, QEMU's own MDTS of 512 KiB.
pub static DISK: Controller = Controller::usual(at(0x10, 0), "KIOVECDISK");

/// A controller that takes 8 KiB at once.
pub static SMALL_TRANSFERS: Controller =
    Controller { model: with_mdts(Mdts::Pages(1)), ..Controller::usual(at(0x11, 0), "KIOVECSMALL") };

/// A controller that takes the largest transfers that QEMU has.
pub static LARGE_TRANSFERS: Controller =
    Controller { model: with_mdts(Mdts::Largest), ..Controller::usual(at(0x12, 0), "KIOVECLARGE") };

/// Two controllers in one slot: they share one IOMMU group.
pub static TWIN: Controller = twin(0, "KIOVECTWIN0");
/// The other of the two.
pub static OTHER_TWIN: Controller = twin(1, "KIOVECTWIN1");

const ONE_NAMESPACE: &[Namespace] = &[blank(1, 16 * MIB, 512)];

const fn twin(function: u8, serial: &'static str) -> Controller {
    Controller {
        multifunction: true,
        namespaces: ONE_NAMESPACE,
        ..Controller::usual(at(0x13, function), serial)
    }
}

/// A controller whose namespaces the machine uses: swap, a file system, device-mapper.
pub static USED: Controller = Controller {
    namespaces: &[
        Namespace { content: Content::SwapPartition, ..blank(1, 16 * MIB, 512) },
        Namespace { content: Content::FileSystem, ..blank(2, MIB, 512) },
        blank(3, MIB, 4096),
    ],
    ..Controller::usual(at(0x14, 0), "KIOVECUSED")
};

/// A controller whose data nobody minds: for workloads that destroy it.
pub static SCRATCH: Controller = Controller::usual(at(0x15, 0), "KIOVECSCRATCH");

/// One of three equal controllers, each in a hot-plug slot: whatever is kept twice, or can lose a part.
pub static LEG: Controller = leg(1, "KIOVECLEG0");
/// The second of them.
pub static OTHER_LEG: Controller = leg(2, "KIOVECLEG1");
/// The third. What it has, nobody looks at: it is the first to be lost.
pub static THIRD_LEG: Controller = leg(3, "KIOVECLEG2");

/// Slots are numbered in the order of their ports, from 1, because that is how the buses behind them get numbers.
const fn leg(slot: u8, serial: &'static str) -> Controller {
    let port = RootPort { address: at(0x17 + slot, 0), slot };
    let address = Address { bus: slot, slot: 0, function: 0 };
    Controller { root_port: Some(port), ..Controller::usual(address, serial) }
}

/// A controller as large as the legs, whose medium has defects: the same in both namespaces, where no partition scan
/// comes near.
pub static DEFECTIVE: Controller = Controller {
    namespaces: &[
        Namespace { defects: DEFECTS, ..blank(1, 32 * MIB, 512) },
        Namespace { defects: DEFECTS, ..blank(2, 32 * MIB, 4096) },
    ],
    ..Controller::usual(at(0x16, 0), "KIOVECDEFECT")
};

/// Neither is at the start of a block of 4 KiB, so that an error's place and the block's are two things.
const DEFECTS: &[Defect] =
    &[Defect { access: Access::Read, sector: 20_003 }, Defect { access: Access::Write, sector: 30_005 }];

/// A controller that writes 256 blocks as a whole or not at all.
pub static ATOMIC: Controller = Controller {
    model: Model::Qemu { mdts: Mdts::Pages(7), atomic: Atomic::Blocks(256) },
    ..Controller::usual(at(0x17, 0), "KIOVECATOMIC")
};

/// The controller of `kiovec serve`.
pub static SERVED: Controller = Controller {
    model: Model::Served,
    namespaces: &[blank(1, 32 * MIB, 512), blank(2, 32 * MIB, 512)],
    ..Controller::usual(at(0x10, 0), "KIOVECSERVED")
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

/// Machines with QEMU's own controllers.
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
        name: "legs",
        processors: 2,
        iommu: Some(PLAIN_IOMMU),
        controllers: &[&LEG, &OTHER_LEG, &THIRD_LEG, &DEFECTIVE],
        cases: &[
            "modules-loaded",
            "kernel-writes",
            "defects",
            "defects-fail-alone",
            "defects-under-merged",
            "kiovec-duplicates-prp",
            "kiovec-duplicates-sgl",
            "power-lost-and-back",
            "kernel-reads-kiovecs",
            // The legs begin alike, and have to stay so.
            "mirror-writes",
            "mirror-verifies",
            "stripe-as-the-kernels",
            "stripe-verifies",
            "merges",
            "gathered",
            // Each takes one away for good.
            "stripe-loses-a-leg",
            "mirror-loses-a-leg",
            "removed-in-use",
            "no-dma-faults",
        ],
        limit: Duration::from_secs(300),
    },
    Machine {
        name: "recovery",
        processors: 2,
        iommu: Some(PLAIN_IOMMU),
        controllers: &[&LEG, &OTHER_LEG, &THIRD_LEG, &TWIN, &OTHER_TWIN],
        cases: &[
            "modules-loaded",
            "contended",
            "shadow-doorbells",
            "killed-again-and-again",
            "reset-under-load",
            "answers-late",
            "dead-bar",
            "dead-bar-under-writes",
            // Each takes one away for good.
            "removed-while-verifying",
            "unplugged-while-verifying",
            "no-dma-faults",
        ],
        limit: Duration::from_secs(300),
    },
    Machine {
        name: "atomic",
        processors: 1,
        iommu: Some(PLAIN_IOMMU),
        controllers: &[&ATOMIC],
        cases: &["modules-loaded", "atomic-writes"],
        limit: Duration::from_secs(120),
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

/// Boots the machine anew, from firmware on: the cases after it run in the next boot. Only once in a machine.
pub const REBOOT: &str = "reboot";

/// Machines with the controller of one `kiovec serve` that goes on from each to the next; in this order.
pub static SERVED_MACHINES: &[Machine] = &[
    Machine {
        name: "served",
        processors: 2,
        iommu: None,
        controllers: &[&SERVED],
        cases: &[
            "modules-loaded",
            "served-as-described",
            "kernel-writes",
            "kernel-reads-back",
            "many-at-once",
            "deallocates",
            "writes-zeroes",
            "controller-reset",
            "driver-leaves-and-returns",
            "kernel-writes-again",
            "no-nvme-complaints",
            REBOOT,
            "kernel-reads-after-reboot",
            "driver-returns-after-reboot",
            "kernel-writes-after-reboot",
            "no-nvme-complaints-after-reboot",
            // The machine ends in the middle of I/O.
            "busy-to-the-end",
        ],
        limit: Duration::from_secs(150),
    },
    Machine {
        name: "served-again",
        processors: 1,
        iommu: None,
        controllers: &[&SERVED],
        cases: &[
            "modules-loaded",
            "served-as-described",
            "kernel-reads-back",
            "many-at-once",
            "no-nvme-complaints",
        ],
        limit: Duration::from_secs(120),
    },
    // Whatever the guest's kernel maps for a single I/O, QEMU maps for the server.
    Machine {
        name: "served-behind-iommu",
        processors: 1,
        iommu: Some(PLAIN_IOMMU),
        controllers: &[&SERVED],
        cases: &[
            "modules-loaded",
            "kernel-writes",
            "many-at-once",
            "kernel-writes-again",
            "kiovec-reads-kernels-prp",
            "kiovec-writes-prp",
            "kiovec-writes-sgl",
            "kernel-reads-kiovecs",
            "no-nvme-complaints",
            "no-dma-faults",
        ],
        limit: Duration::from_secs(180),
    },
];

/// The machine of that name.
pub fn find(name: &str) -> Option<&'static Machine> {
    MACHINES.iter().chain(SERVED_MACHINES).find(|machine| machine.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_look_as_linux_writes_them() {
        assert_eq!(OTHER_TWIN.bdf(), "0000:00:13.1");
        assert_eq!(OTHER_LEG.bdf(), "0000:02:00.0");
    }

    /// Firmware and kernel number buses in the order in which they find the ports.
    #[test]
    fn controllers_in_slots_are_on_the_bus_of_their_port() {
        for machine in MACHINES.iter().chain(SERVED_MACHINES) {
            let in_slots = machine.controllers.iter().filter_map(|c| Some((c.root_port.as_ref()?, c)));
            let mut in_slots: Vec<_> = in_slots.collect();
            in_slots.sort_by_key(|(port, _)| port.address.slot);
            let buses: Vec<u8> = in_slots.iter().map(|(_, c)| c.address.bus).collect();
            assert_eq!(buses, (1..=in_slots.len() as u8).collect::<Vec<_>>(), "{}", machine.name);
            let others = machine.controllers.iter().filter(|c| c.root_port.is_none());
            assert!(others.map(|c| c.address.bus).all(|bus| bus == 0), "{}", machine.name);
        }
    }

    #[test]
    fn nothing_is_there_twice() {
        for machine in MACHINES.iter().chain(SERVED_MACHINES) {
            let distinct = |items: Vec<String>| items.len() == items.iter().collect::<BTreeSet<_>>().len();
            let ports = machine.controllers.iter().filter_map(|c| Some(c.root_port.as_ref()?.address));
            let functions = machine.controllers.iter().map(|c| c.address).chain(ports);
            assert!(distinct(functions.map(|address| address.to_string()).collect()), "{}", machine.name);
            assert!(
                distinct(machine.controllers.iter().map(|c| c.serial.to_owned()).collect()),
                "{}",
                machine.name
            );
            assert!(distinct(machine.cases.iter().map(|c| (*c).to_owned()).collect()), "{}", machine.name);
        }
        let names: BTreeSet<_> = MACHINES.iter().chain(SERVED_MACHINES).map(|machine| machine.name).collect();
        assert_eq!(names.len(), MACHINES.len() + SERVED_MACHINES.len());
    }
}
