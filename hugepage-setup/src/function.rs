//! The NVMe functions of a machine.

use serde::Serialize;

use crate::bind::VFIO_PCI;
use crate::holders::Usage;
use crate::state::State;
use crate::sysfs::{attribute, link_name, names, required};
use crate::{Bdf, Error, Holder, Result, Sysfs};

/// Mass storage, non-volatile memory, NVM Express I/O controller (PCI Code and ID Assignment, 1.9).
const NVME_CLASS: &str = "0x010802";

/// One PCI function that is an NVMe controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NvmeFunction {
    /// Its address.
    pub bdf: Bdf,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The driver that `restore` would give it back to; `None` also when it was never touched.
    pub previous_driver: Option<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// The NUMA node that it is close to.
    pub numa_node: Option<u32>,
    /// PCI vendor ID.
    pub vendor: u16,
    /// PCI device ID.
    pub device: u16,
    /// Model number: from the kernel's driver, else as it was when we took it from there.
    pub model: Option<String>,
    /// Serial number, likewise.
    pub serial: Option<String>,
    /// The kernel's name for the controller, while the kernel has it: `nvme0`.
    pub kernel_device: Option<String>,
    /// Its namespaces, as far as the kernel shows them as disks.
    pub namespaces: Vec<Namespace>,
    /// Who uses it.
    pub users: Vec<Holder>,
    /// Other functions of its IOMMU group whose drivers keep VFIO from opening the group: `0000:01:00.1
    /// (e1000e)`.
    pub group_blockers: Vec<String>,
}

/// A namespace that the kernel shows as a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// The block device: `nvme0n1`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// All NVMe functions, by address.
///
/// Needs no privilege; without it, processes of other users are missing from `users`.
///
/// # Errors
///
/// `/sys` or `/proc` is missing or damaged.
pub fn nvme_functions(sysfs: &Sysfs) -> Result<Vec<NvmeFunction>> {
    let mut bdfs: Vec<Bdf> = addresses(sysfs)?;
    bdfs.retain(|&bdf| attribute(&sysfs.function(bdf).join("class")).as_deref() == Some(NVME_CLASS));
    if bdfs.is_empty() {
        return Ok(Vec::new());
    }
    let usage = Usage::read(sysfs)?;
    // To look, a damaged state file is no obstacle: only remembered names are lost. `Machine` does refuse it.
    let state = State::load(sysfs).unwrap_or_default();
    bdfs.into_iter().map(|bdf| describe(sysfs, bdf, &usage, &state)).collect()
}

/// One function, which must exist and be NVMe.
pub(crate) fn nvme_function(sysfs: &Sysfs, bdf: Bdf, state: &State) -> Result<NvmeFunction> {
    let folder = sysfs.function(bdf);
    if !folder.exists() {
        return Err(Error::NoSuchFunction(bdf));
    }
    let class = required(&folder.join("class"))?;
    if class != NVME_CLASS {
        return Err(Error::NotNvme { bdf, class });
    }
    describe(sysfs, bdf, &Usage::read(sysfs)?, state)
}

/// Vendor and device ID, or `None` if nothing is there any more.
pub(crate) fn ids(sysfs: &Sysfs, bdf: Bdf) -> Option<(u16, u16)> {
    Some((hex_id(sysfs, bdf, "vendor")?, hex_id(sysfs, bdf, "device")?))
}

pub(crate) fn iommu_group(sysfs: &Sysfs, bdf: Bdf) -> Option<u32> {
    link_name(&sysfs.function(bdf).join("iommu_group"))?.parse().ok()
}

fn addresses(sysfs: &Sysfs) -> Result<Vec<Bdf>> {
    let mut bdfs: Vec<Bdf> =
        names(&sysfs.path("/sys/bus/pci/devices"))?.iter().filter_map(|name| name.parse().ok()).collect();
    bdfs.sort();
    Ok(bdfs)
}

fn hex_id(sysfs: &Sysfs, bdf: Bdf, name: &str) -> Option<u16> {
    u16::from_str_radix(attribute(&sysfs.function(bdf).join(name))?.strip_prefix("0x")?, 16).ok()
}

fn describe(sysfs: &Sysfs, bdf: Bdf, usage: &Usage, state: &State) -> Result<NvmeFunction> {
    let folder = sysfs.function(bdf);
    let kernel_device = names(&folder.join("nvme"))?.into_iter().find(|name| name.starts_with("nvme"));
    let namespaces = kernel_device.as_deref().map_or(Ok(Vec::new()), |name| namespaces(sysfs, bdf, name))?;
    let (vendor, device) = ids(sysfs, bdf).unwrap_or_default();
    let before = state.device(bdf).filter(|before| (before.vendor, before.device) == (vendor, device));
    let told = |name: &str| {
        let path = folder.join("nvme").join(kernel_device.as_deref()?).join(name);
        // A device may say anything, and this is printed on terminals.
        let text = attribute(&path)?.replace(char::is_control, "");
        Some(text).filter(|text| !text.is_empty())
    };
    let mut function = NvmeFunction {
        bdf,
        driver: sysfs.driver_of(bdf),
        previous_driver: before.and_then(|before| before.driver.clone()),
        iommu_group: iommu_group(sysfs, bdf),
        numa_node: attribute(&folder.join("numa_node")).and_then(|node| node.parse().ok()),
        vendor,
        device,
        model: told("model").or_else(|| before?.model.clone()),
        serial: told("serial").or_else(|| before?.serial.clone()),
        kernel_device,
        namespaces,
        users: Vec::new(),
        group_blockers: Vec::new(),
    };
    function.users = users(sysfs, &function, usage)?;
    function.group_blockers = group_blockers(sysfs, &function)?;
    Ok(function)
}

fn namespaces(sysfs: &Sysfs, bdf: Bdf, controller: &str) -> Result<Vec<Namespace>> {
    let entries = names(&sysfs.function(bdf).join("nvme").join(controller))?;
    let mut disks: Vec<String> = entries.iter().filter_map(|entry| disk_name(entry)).collect();
    disks.sort();
    disks.dedup();
    let disk = |name: String| {
        // 512-byte units, whatever the logical block size.
        let sectors = attribute(&sysfs.path(format!("/sys/class/block/{name}/size")))?.parse::<u64>().ok()?;
        Some(Namespace { name, bytes: sectors.saturating_mul(512) })
    };
    Ok(disks.into_iter().filter_map(disk).collect())
}

/// The disk that users see for an entry of a controller's folder: with multipath, `nvme0c1n2` is the hidden
/// path through controller 1 to `nvme0n2`, and that is the one that is mounted.
fn disk_name(entry: &str) -> Option<String> {
    let (instance, rest) = digits(entry.strip_prefix("nvme")?)?;
    let rest = match rest.strip_prefix('c') {
        Some(path) => digits(path)?.1,
        None => rest,
    };
    let (namespace, rest) = digits(rest.strip_prefix('n')?)?;
    rest.is_empty().then(|| format!("nvme{instance}n{namespace}"))
}

fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn users(sysfs: &Sysfs, function: &NvmeFunction, usage: &Usage) -> Result<Vec<Holder>> {
    let mut users = Vec::new();
    for namespace in &function.namespaces {
        users.extend(usage.of_disk(sysfs, &namespace.name)?);
    }
    for node in character_devices(sysfs, function)? {
        users.extend(usage.open().holders(sysfs, &node));
    }
    users.sort();
    users.dedup();
    Ok(users)
}

/// Through which other device files the function can be in use.
fn character_devices(sysfs: &Sysfs, function: &NvmeFunction) -> Result<Vec<String>> {
    let mut nodes = Vec::new();
    if function.driver.as_deref() == Some(VFIO_PCI) {
        nodes.extend(function.iommu_group.map(|group| format!("/dev/vfio/{group}")));
        let cdevs = names(&sysfs.function(function.bdf).join("vfio-dev"))?;
        nodes.extend(cdevs.iter().map(|name| format!("/dev/vfio/devices/{name}")));
    }
    nodes.extend(function.kernel_device.iter().map(|name| format!("/dev/{name}")));
    // The generic device of a namespace, for passthrough commands: ng0n1.
    nodes.extend(function.namespaces.iter().map(|disk| disk.name.replacen("nvme", "/dev/ng", 1)));
    Ok(nodes)
}

/// VFIO opens a group only if no other driver may do DMA in it. It lets bridges be.
fn group_blockers(sysfs: &Sysfs, function: &NvmeFunction) -> Result<Vec<String>> {
    let Some(group) = function.iommu_group else { return Ok(Vec::new()) };
    let members = names(&sysfs.path(format!("/sys/kernel/iommu_groups/{group}/devices")))?;
    let blocker = |name: String| {
        let other = name.parse::<Bdf>().ok().filter(|&other| other != function.bdf)?;
        let driver = sysfs.driver_of(other)?;
        let harmless = [VFIO_PCI, "pcieport", "pci-stub"].contains(&driver.as_str());
        (!harmless).then(|| format!("{other} ({driver})"))
    };
    Ok(members.into_iter().filter_map(blocker).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipath_paths_stand_for_their_head() {
        assert_eq!(disk_name("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(disk_name("nvme3c12n4").as_deref(), Some("nvme3n4"));
    }

    #[test]
    fn other_entries_are_not_disks() {
        for entry in
            ["nvme0", "ng0n1", "nvme0n1p1", "nvme0c1", "nvmen1", "nvme0n", "nvme0cn1", "hwmon3", "power"]
        {
            assert_eq!(disk_name(entry), None, "{entry}");
        }
    }
}
