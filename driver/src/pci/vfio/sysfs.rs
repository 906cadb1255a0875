//! What sysfs says of a function: whether it exists, who drives it, which group it is in.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A function's place in a file system tree; tests plant trees of their own.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    pub(super) device: String,
}

impl Place {
    pub(super) fn new(root: impl Into<PathBuf>, device: String) -> Place {
        Place { root: root.into(), device }
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// The IOMMU group of a function that is there, is an NVMe controller and is bound to vfio-pci.
    pub(super) fn vfio_group(&self) -> Result<u32> {
        let device = self.device.clone();
        let folder = self.path(&format!("sys/bus/pci/devices/{device}"));
        if !folder.exists() {
            return Err(Error::NotFound { device });
        }
        let class = fs::read_to_string(folder.join("class")).unwrap_or_default();
        if class.trim() != "0x010802" {
            let what = format!("PCI class {} is not an NVMe I/O controller (0x010802)", class.trim());
            return Err(Error::Unsupported { device, what });
        }
        let group = link(&folder.join("iommu_group")).and_then(|number| number.parse().ok());
        // Without an IOMMU no binding helps: that comes first.
        let group = group.ok_or_else(|| Error::NoIommu { device: device.clone() })?;
        match link(&folder.join("driver")) {
            Some(driver) if driver == "vfio-pci" => Ok(group),
            driver => Err(Error::NotBound { device, driver: driver.unwrap_or_else(|| "no driver".into()) }),
        }
    }

    /// The functions of a group that host drivers hold, as text.
    pub(super) fn others_in_group(&self, group: u32) -> String {
        let folder = self.path(&format!("sys/kernel/iommu_groups/{group}/devices"));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut held: Vec<String> = entries
            .filter_map(|entry| {
                let driver = link(&entry.path().join("driver")).filter(|driver| driver != "vfio-pci")?;
                Some(format!("{} (bound to {driver})", entry.file_name().to_string_lossy()))
            })
            .collect();
        held.sort();
        if held.is_empty() { "another function of the group".into() } else { held.join(", ") }
    }
}

/// The last component of a symbolic link's target.
fn link(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree with one function, removed on drop.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, class: &str, driver: Option<&str>, group: Option<u32>) -> Tree {
            let root = std::env::temp_dir().join(format!("kiovec-sysfs-{name}-{}", std::process::id()));
            let device = root.join("sys/bus/pci/devices/0000:01:00.0");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), class).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), device.join("driver")).unwrap();
            }
            if let Some(group) = group {
                symlink(format!("../../../kernel/iommu_groups/{group}"), device.join("iommu_group")).unwrap();
                let devices = root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
                fs::create_dir_all(&devices).unwrap();
                symlink(&device, devices.join("0000:01:00.0")).unwrap();
            }
            Tree(root)
        }

        fn place(&self, device: &str) -> Place {
            Place::new(&self.0, device.into())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_obstacle_has_its_own_answer() {
        let bound = Tree::new("bound", "0x010802\n", Some("vfio-pci"), Some(7));
        assert_eq!(bound.place("0000:01:00.0").vfio_group().unwrap(), 7);
        let error = bound.place("0000:02:00.0").vfio_group().unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");

        let kernel = Tree::new("kernel", "0x010802\n", Some("nvme"), Some(7));
        let error = kernel.place("0000:01:00.0").vfio_group().unwrap_err().to_string();
        assert_eq!(error, "0000:01:00.0 is bound to nvme; bind it with: hugepage-setup bind 0000:01:00.0");
        assert_eq!(kernel.place("0000:01:00.0").others_in_group(7), "0000:01:00.0 (bound to nvme)");

        let free = Tree::new("free", "0x010802\n", None, Some(7));
        assert!(free.place("0000:01:00.0").vfio_group().unwrap_err().to_string().contains("no driver"));

        let bare = Tree::new("bare", "0x010802\n", Some("nvme"), None);
        let error = bare.place("0000:01:00.0").vfio_group().unwrap_err();
        assert!(matches!(error, Error::NoIommu { .. }), "{error}");

        let network = Tree::new("network", "0x020000\n", Some("vfio-pci"), Some(7));
        let error = network.place("0000:01:00.0").vfio_group().unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}
