//! A function through the kernel's VFIO: container, group, device (Documentation/driver-api/vfio.rst).
//!
//! Knows VFIO; must not know NVMe, except for where the doorbells begin. Everything is released on
//! drop, whoever unwinds: closing the device's file makes the kernel clear bus mastering and reset
//! the function, closing the group takes it out of the container, closing the container unmaps.

mod capabilities;
mod container;
mod ioctl;
mod signals;
mod sysfs;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as abi;

use self::capabilities::Region;
use self::container::{Container, Group};
use self::signals::Signals;
use self::sysfs::Place;
use super::bar::Bar;
use super::{Address, DOORBELLS, DoorbellPage, Function, Notice};
use crate::memory::{DmaSpace, Domain};
use crate::{Error, Result};

/// A PCI function that is bound to vfio-pci.
#[derive(Debug)]
pub struct Vfio {
    // Declared in the order of release: the mapping, the device, its group, the container.
    bar0: Arc<Bar>,
    config: Region,
    signals: Signals,
    device: File,
    _group: Arc<Group>,
    container: Arc<Container>,
    name: String,
}

impl Vfio {
    /// Opens a function. Functions that are opened for one space share one container.
    ///
    /// Errors say which of the things is missing that VFIO needs: the function, an IOMMU, vfio-pci,
    /// a viable group, permission, interrupt remapping.
    pub fn open(address: Address, space: &DmaSpace) -> Result<Vfio> {
        let place = Place::new("/", address.to_string());
        let number = place.vfio_group()?;
        let container = match space.domain_of_type::<Container>() {
            Some(container) => container,
            None => {
                let container = Arc::new(Container::open(&place)?);
                space.remember(&(Arc::clone(&container) as Arc<dyn Domain>));
                container
            }
        };
        let group = container.group(&place, number)?;
        let name = place.device;
        let device = open_device(&group, &name)?;
        let config = region(&device, abi::VFIO_PCI_CONFIG_REGION_INDEX, &name)?;
        let bar0 = map_bar0(&device, &name)?;
        let signals = Signals::arm(&device);
        let function = Vfio { bar0: Arc::new(bar0), config, signals, device, _group: group, container, name };
        function.set_command(super::COMMAND_MEMORY_SPACE, true)?;
        Ok(function)
    }

    /// Where a register of `N` bytes lies.
    fn register<const N: u64>(&self, offset: u64) -> Result<*mut u32> {
        let inside = offset.checked_add(N).is_some_and(|end| end <= self.bar0.len() as u64);
        if !inside || !offset.is_multiple_of(N) {
            return Err(Error::InvalidInput(format!("{}: BAR0 has no register at {offset:#x}", self.name)));
        }
        // SAFETY: within the mapping, as checked.
        Ok(unsafe { self.bar0.base().byte_add(offset as usize) }.as_ptr().cast())
    }

    /// What was loaded from BAR0 just now, or what registers read as that nobody answers for.
    fn unless_lost<T>(&self, loaded: T, ones: T) -> T {
        if self.bar0.is_lost() { ones } else { loaded }
    }

    fn config_position(&self, offset: u16, len: usize) -> Result<u64> {
        if u64::from(offset) + len as u64 > self.config.size {
            let size = self.config.size;
            let what = format!("{}: configuration space ends at {size:#x}, before {offset:#x}", self.name);
            return Err(Error::InvalidInput(what));
        }
        Ok(self.config.offset + u64::from(offset))
    }
}

fn open_device(group: &Group, name: &str) -> Result<File> {
    let c_name = CString::new(name).map_err(|e| Error::InvalidInput(e.to_string()))?;
    let device =
        ioctl::device(&group.file, &c_name).map_err(Error::os(format!("{name}: opening it in its group")))?;
    let info = ioctl::device_info(&device).map_err(Error::os(name))?;
    if info.flags & abi::VFIO_DEVICE_FLAGS_PCI == 0 {
        return Err(Error::Unsupported {
            device: name.into(),
            what: "VFIO does not call it a PCI device".into(),
        });
    }
    Ok(File::from(device))
}

fn region(device: &File, index: u32, name: &str) -> Result<Region> {
    let info = ioctl::region_info(device, index).map_err(Error::os(format!("{name}: region {index}")))?;
    Region::parse(&info).ok_or_else(|| Error::Unsupported {
        device: name.into(),
        what: format!("VFIO's information of region {index} is too short"),
    })
}

fn map_bar0(device: &File, name: &str) -> Result<Bar> {
    let bar0 = region(device, abi::VFIO_PCI_BAR0_REGION_INDEX, name)?;
    let len = bar0.mappable_from_start();
    if len <= DOORBELLS {
        let what =
            format!("only {len:#x} bytes of BAR0 can be mapped, and the doorbells begin at {DOORBELLS:#x}");
        return Err(Error::Unsupported { device: name.into(), what });
    }
    Bar::new(device.as_fd(), bar0.offset, len as usize).map_err(Error::os(format!("{name}: mapping BAR0")))
}

impl Function for Vfio {
    fn name(&self) -> &str {
        &self.name
    }

    fn domain(&self) -> Arc<dyn Domain> {
        self.container.clone()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        let at = self.config_position(offset, data.len())?;
        self.device.read_exact_at(data, at).map_err(Error::os(format!("{}: configuration space", self.name)))
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        let at = self.config_position(offset, data.len())?;
        self.device.write_all_at(data, at).map_err(Error::os(format!("{}: configuration space", self.name)))
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let register = self.register::<4>(offset)?;
        // SAFETY: a register of the mapped BAR, aligned; volatile because a device is behind it.
        let value = u32::from_le(unsafe { register.read_volatile() });
        Ok(self.unless_lost(value, u32::MAX))
    }

    fn read64(&self, offset: u64) -> Result<u64> {
        let low = self.register::<8>(offset)?;
        // SAFETY: as in read32; two accesses, since not every platform has one of 64 bits.
        let (low, high) = unsafe { (low.read_volatile(), low.add(1).read_volatile()) };
        let value = u64::from(u32::from_le(low)) | u64::from(u32::from_le(high)) << 32;
        Ok(self.unless_lost(value, u64::MAX))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        let register = self.register::<4>(offset)?;
        // SAFETY: as in read32.
        unsafe { register.write_volatile(value.to_le()) };
        Ok(())
    }

    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        let low = self.register::<8>(offset)?;
        // SAFETY: as in read64.
        unsafe {
            low.write_volatile((value as u32).to_le());
            low.add(1).write_volatile(((value >> 32) as u32).to_le());
        }
        Ok(())
    }

    fn doorbells(&self, len: u64) -> Result<DoorbellPage> {
        self.bar0.doorbells(DOORBELLS, len).ok_or_else(|| {
            let (end, mapped) = (DOORBELLS.saturating_add(len), self.bar0.len());
            let what = format!("doorbells end at {end:#x}, behind the mapped {mapped:#x} bytes of BAR0");
            Error::Unsupported { device: self.name.clone(), what }
        })
    }

    fn notice(&self) -> Option<Notice> {
        if self.bar0.is_lost() { Some(Notice::Gone) } else { self.signals.take() }
    }

    fn reset(&self) -> Result<()> {
        ioctl::reset(&self.device).map_err(Error::os(format!("{}: function level reset", self.name)))
    }
}

impl Drop for Vfio {
    fn drop(&mut self) {
        // The kernel does it too; the sooner a controller stops writing to memory, the better.
        let _ = self.set_command(super::COMMAND_BUS_MASTER, false);
    }
}
