//! A VFIO container: the IOMMU's translation table for all groups in it.
//!
//! Knows groups and mappings; must not know devices.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vfio_bindings::bindings::vfio as abi;

use super::ioctl;
use super::sysfs::Place;
use crate::memory::{Access, Domain, Mapping};
use crate::{Error, Result};

/// The container's file, and the groups that are in it.
#[derive(Debug)]
pub(super) struct Container {
    file: File,
    groups: Mutex<Vec<Weak<Group>>>,
}

/// An IOMMU group that is in a container. Closing it takes it out.
#[derive(Debug)]
pub(super) struct Group {
    number: u32,
    pub(super) file: File,
}

impl Container {
    pub(super) fn open(place: &Place) -> Result<Container> {
        let path = place.path("dev/vfio/vfio");
        let file = open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Error::Permission { path: path.display().to_string(), device: place.device.clone() }
            }
            _ => Error::os(format!("{}: is the module vfio_iommu_type1 loaded?", path.display()))(source),
        })?;
        let usable = ioctl::api_version(&file).is_ok_and(|version| version == abi::VFIO_API_VERSION as i32)
            && ioctl::has_type1v2(&file).unwrap_or(false);
        if !usable {
            let what = "the kernel's VFIO has no type 1 v2 IOMMU (modprobe vfio_iommu_type1)".into();
            return Err(Error::Unsupported { device: place.device.clone(), what });
        }
        Ok(Container { file, groups: Mutex::default() })
    }

    /// The group of a device in this container, opened now unless it is in it already.
    pub(super) fn group(&self, place: &Place, number: u32) -> Result<Arc<Group>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        let here = groups.iter().filter_map(Weak::upgrade).find(|group| group.number == number);
        if let Some(group) = here {
            return Ok(group);
        }
        let group = Arc::new(Group { number, file: open_group(place, number)? });
        // The first group sets the IOMMU up with a call of its own, later ones on joining.
        let joined = ioctl::set_container(&group.file, &self.file);
        let set_up =
            if groups.is_empty() { joined.and_then(|()| ioctl::set_type1v2(&self.file)) } else { joined };
        set_up.map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => Error::NoInterruptRemapping { device: place.device.clone() },
            _ => Error::os(format!("{}: setting up the IOMMU", place.device))(source),
        })?;
        groups.push(Arc::downgrade(&group));
        Ok(group)
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn open_group(place: &Place, number: u32) -> Result<File> {
    let path = place.path(&format!("dev/vfio/{number}"));
    let device = place.device.clone();
    let file = open(&path).map_err(|source| match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            Error::Permission { path: path.display().to_string(), device: device.clone() }
        }
        Some(libc::EBUSY) => Error::Busy { device: device.clone(), group: number },
        _ => Error::os(path.display().to_string())(source),
    })?;
    match ioctl::group_is_viable(&file).map_err(Error::os(path.display().to_string()))? {
        true => Ok(file),
        false => Err(Error::GroupNotViable { device, group: number, others: place.others_in_group(number) }),
    }
}

impl Domain for Container {
    fn name(&self) -> String {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = groups.iter().filter_map(Weak::upgrade).map(|group| group.number.to_string());
        format!("IOMMU group {}", numbers.collect::<Vec<_>>().join(", "))
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        // Without an answer nothing is known to be mappable; attaching then says so.
        ioctl::iommu_info(&self.file)
            .map_or_else(|_| Vec::new(), |info| super::capabilities::iova_ranges(&info))
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<()> {
        let flags = abi::VFIO_DMA_MAP_FLAG_READ
            | match mapping.access() {
                Access::Read => 0,
                Access::ReadWrite => abi::VFIO_DMA_MAP_FLAG_WRITE,
            };
        let memory = mapping.memory().as_ptr().expose_provenance() as u64;
        ioctl::map_dma(&self.file, mapping.iova(), memory, mapping.len(), flags).map_err(|source| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            match (source.raw_os_error(), limit) {
                (Some(libc::ENOMEM), Some(limit)) => Error::Memlock { wanted: mapping.len(), limit },
                _ => {
                    let (iova, len) = (mapping.iova(), mapping.len());
                    Error::os(format!("{}: mapping {len} bytes at IOVA {iova:#x}", self.name()))(source)
                }
            }
        })
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<()> {
        ioctl::unmap_dma(&self.file, iova, len)
            .map_err(Error::os(format!("{}: unmapping {len} bytes at IOVA {iova:#x}", self.name())))
    }
}
