//! What there is, what is missing, and what to do about it.

use serde::Serialize;

use crate::bind::VFIO_PCI;
use crate::sysfs::{attribute, names};
use crate::{
    Bound, Bytes, HugepagePool, MemoryLimit, NvmeFunction, Result, Sysfs, User, hugepage_pools,
    nvme_functions,
};

/// The least that a driver with a few queues and buffers has to lock.
const SMALL_MEMLOCK: u64 = 64 << 20;

/// Everything that a userspace NVMe driver needs to know of a machine before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Whether an IOMMU is on: there are IOMMU groups.
    pub iommu: bool,
    /// The IOMMUs, by the names of their drivers: `dmar0`, `ivhd0`.
    pub iommu_units: Vec<String>,
    /// Whether there is a vfio-pci driver.
    pub vfio_pci: bool,
    /// Whether the type 1 IOMMU driver of VFIO is there, without which a container cannot be used.
    pub vfio_iommu_type1: bool,
    /// How much memory this process may lock. A privileged one is not held to it.
    pub memlock: Option<MemoryLimit>,
    /// The pools of hugepages.
    pub hugepages: Vec<HugepagePool>,
    /// The NVMe functions.
    pub functions: Vec<NvmeFunction>,
    /// What to do next, in order.
    pub next: Vec<String>,
}

impl Status {
    /// Looks at the machine. Needs no privilege.
    ///
    /// # Errors
    ///
    /// `/sys` or `/proc` is missing or damaged.
    pub fn read(sysfs: &Sysfs) -> Result<Status> {
        let mut status = Status {
            iommu: !names(&sysfs.path("/sys/kernel/iommu_groups"))?.is_empty(),
            iommu_units: names(&sysfs.path("/sys/class/iommu"))?,
            vfio_pci: sysfs.driver(VFIO_PCI).exists(),
            vfio_iommu_type1: sysfs.path("/sys/module/vfio_iommu_type1").exists(),
            memlock: MemoryLimit::of_process(sysfs, "self"),
            hugepages: hugepage_pools(sysfs)?,
            functions: nvme_functions(sysfs)?,
            next: Vec::new(),
        };
        status.next = status.advice(is_root(sysfs));
        Ok(status)
    }

    fn advice(&self, root: bool) -> Vec<String> {
        let mut next = Vec::new();
        if self.functions.is_empty() {
            next.push(NO_FUNCTION.to_owned());
        } else {
            next.extend(self.host_advice(root));
            next.extend(self.functions.iter().filter_map(|function| function.advice(self.iommu)));
        }
        if reserved_bytes(&self.hugepages) == 0 {
            next.push(NO_HUGEPAGES.to_owned());
        }
        next
    }

    fn host_advice(&self, root: bool) -> Vec<String> {
        let mut next = Vec::new();
        if !self.iommu {
            next.push(NO_IOMMU.to_owned());
        }
        if !self.vfio_pci {
            next.push(NO_VFIO_PCI.to_owned());
        } else if !self.vfio_iommu_type1 {
            next.push(NO_TYPE1.to_owned());
        }
        if let Some(limit) = self.memlock.filter(|&limit| !root && is_small(limit, &self.hugepages)) {
            next.push(memlock_advice("you", limit, &self.hugepages));
        }
        next
    }
}

const NO_FUNCTION: &str = "there is no NVMe function (PCI class 0x010802) here; kiovec can still use \
                           emulated: and vfio-user: devices";
const NO_HUGEPAGES: &str = "no hugepages are reserved (kiovec works without, but then pins 4 KiB pages); \
                            run: hugepage-setup reserve --bytes 1G";
const NO_IOMMU: &str = "there is no IOMMU, or it is off; enable VT-d/AMD-Vi in the firmware and boot with \
                        intel_iommu=on";
const NO_VFIO_PCI: &str = "vfio-pci is not loaded; `hugepage-setup bind` loads it, or run: modprobe vfio-pci";
const NO_TYPE1: &str =
    "vfio_iommu_type1 is not loaded, so VFIO cannot map memory; run: modprobe vfio_iommu_type1";

impl NvmeFunction {
    fn advice(&self, iommu: bool) -> Option<String> {
        let bdf = self.bdf;
        let by_vfio = self.driver.as_deref() == Some(VFIO_PCI);
        if self.iommu_group.is_none() {
            // Without any IOMMU, that has been said once for all functions.
            return iommu
                .then(|| format!("{bdf} has no IOMMU group: its IOMMU is off, or does not cover it"));
        }
        if by_vfio && !self.group_blockers.is_empty() {
            return Some(self.blocked());
        }
        let idle = !by_vfio && self.users.is_empty();
        idle.then(|| format!("to use {bdf} from userspace, run: hugepage-setup bind {bdf}"))
    }

    fn blocked(&self) -> String {
        format!(
            "{}: its IOMMU group {} also holds {}; VFIO will not open the group until that is unbound, or \
             bound to vfio-pci too",
            self.bdf,
            self.iommu_group.unwrap_or_default(),
            self.group_blockers.join(", ")
        )
    }
}

/// What may still keep a program from using the functions that were just bound: other drivers in their
/// groups, and a user who may not lock enough memory.
///
/// # Errors
///
/// `/sys` or `/proc` is missing or damaged.
pub fn bind_warnings(sysfs: &Sysfs, bound: &[Bound], user: Option<&User>) -> Result<Vec<String>> {
    let functions = nvme_functions(sysfs)?;
    let ours = functions.iter().filter(|function| bound.iter().any(|bound| bound.bdf == function.bdf));
    let blocked = ours.filter(|function| !function.group_blockers.is_empty());
    let mut warnings: Vec<String> = blocked.map(NvmeFunction::blocked).collect();
    if let Some(user) = user.filter(|user| user.uid != 0 && !bound.is_empty()) {
        let pools = hugepage_pools(sysfs)?;
        let limit = MemoryLimit::of_user(sysfs, user).filter(|&limit| is_small(limit, &pools));
        warnings.extend(limit.map(|limit| memlock_advice(&user.name, limit, &pools)));
    }
    Ok(warnings)
}

fn reserved_bytes(pools: &[HugepagePool]) -> u64 {
    let whole = pools.iter().filter(|pool| pool.node.is_none());
    whole.fold(0, |sum, pool| sum.saturating_add(pool.size.saturating_mul(pool.total)))
}

/// Whoever reserved hugepages means to use them, and then they are locked.
fn enough(pools: &[HugepagePool]) -> u64 {
    reserved_bytes(pools).max(SMALL_MEMLOCK)
}

fn is_small(limit: MemoryLimit, pools: &[HugepagePool]) -> bool {
    limit < MemoryLimit::Bytes(enough(pools))
}

fn memlock_advice(who: &str, limit: MemoryLimit, pools: &[HugepagePool]) -> String {
    let enough = Bytes(enough(pools));
    format!(
        "{who} may lock {limit} of memory, and all that is mapped for DMA counts; raise memlock to {enough} \
         or more (/etc/security/limits.conf, or LimitMEMLOCK= of a service)"
    )
}

/// By effective user, which is what counts for writing to sysfs.
fn is_root(sysfs: &Sysfs) -> bool {
    let status = attribute(&sysfs.path("/proc/self/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}
