//! Handing functions from one driver to another, and back.
//!
//! Every way a function can go (bind, unbind, restore, and undoing a failed bind) ends in
//! [`Machine::settle`]: it compares what is with what should be and makes the difference, so it may start
//! from anywhere, also from where a killed run stopped.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::function::{self, NvmeFunction, nvme_function};
use crate::machine::write_error;
use crate::state::{DeviceBefore, Owner};
use crate::sysfs::attribute;
use crate::{Bdf, Error, Holder, Kernel, Machine, Result, User};

/// The driver that gives a function to userspace.
pub const VFIO_PCI: &str = "vfio-pci";

/// devtmpfs makes the node at once, udev after a moment.
const NODE_WAIT: Wait = Wait { steps: 50, step: Duration::from_millis(100) };

/// After a device appears, udev's workers have it open for an instant; that is not somebody using it.
const PROCESS_WAIT: Wait = Wait { steps: 10, step: Duration::from_millis(100) };

struct Wait {
    steps: u32,
    step: Duration,
}

/// How to bind.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// Who shall own `/dev/vfio/GROUP`.
    pub user: Option<User>,
    /// Take it even from under a mounted file system.
    pub force: bool,
}

/// A function that vfio-pci has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The function.
    pub bdf: Bdf,
    /// Its IOMMU group.
    pub iommu_group: u32,
    /// The group's device file.
    pub node: PathBuf,
    /// The driver that had it before; vfio-pci if nothing had to be done.
    pub from: Option<String>,
}

/// A function that no driver has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unbound {
    /// The function.
    pub bdf: Bdf,
    /// The driver that had it before; none if nothing had to be done.
    pub from: Option<String>,
}

/// What became of a function that was to be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Restored {
    /// It is as it was.
    Back {
        /// The driver that it has.
        driver: Option<String>,
    },
    /// It is not there any more, or another device is; there is nothing to restore.
    Gone,
    /// It was never changed, and is left alone.
    Untouched,
}

impl<K: Kernel> Machine<K> {
    /// Gives the function to vfio-pci, and its group's device file to a user. If that fails, the function is
    /// as it was.
    ///
    /// # Errors
    ///
    /// It is no NVMe function, has no IOMMU group, is in use, or the kernel refused a step.
    pub fn bind(&mut self, bdf: Bdf, options: &BindOptions) -> Result<Bound> {
        let function = nvme_function(&self.sysfs, bdf, &self.state)?;
        let group = function.iommu_group.ok_or(Error::NoIommuGroup(bdf))?;
        let from = function.driver.clone();
        if from.as_deref() != Some(VFIO_PCI) {
            self.refuse_if_in_use(bdf, Some(options.force))?;
            self.need_driver(VFIO_PCI)?;
        }
        let user = options.user.as_ref();
        if from.as_deref() != Some(VFIO_PCI) || user.is_some() {
            self.change(&function, |machine| machine.hand_to_vfio(bdf, group, user))?;
        }
        Ok(Bound { bdf, iommu_group: group, node: group_node(group), from })
    }

    /// Takes the function from its driver and leaves it without one.
    ///
    /// # Errors
    ///
    /// It is no NVMe function, is in use, or the kernel refused a step.
    pub fn unbind(&mut self, bdf: Bdf, force: bool) -> Result<Unbound> {
        let function = nvme_function(&self.sysfs, bdf, &self.state)?;
        let from = function.driver.clone();
        // Known and without a driver: an earlier run may have been killed before it cleared the override.
        if from.is_some() || self.state.device(bdf).is_some() {
            self.refuse_if_in_use(bdf, Some(force))?;
            self.change(&function, |machine| {
                // Without a driver, nothing of ours may decide which one comes next.
                let before = machine.state.device(bdf).and_then(|before| before.driver_override.clone());
                machine.settle(bdf, None, before.as_deref())
            })?;
        }
        Ok(Unbound { bdf, from })
    }

    /// Gives the function back to the driver that it had before the first change, and the group's device file
    /// to its owner. Does nothing to a function that was never changed.
    ///
    /// # Errors
    ///
    /// It is in use, or the kernel refused a step. What is left to do is still remembered then.
    pub fn restore(&mut self, bdf: Bdf) -> Result<Restored> {
        let Some(before) = self.state.device(bdf).cloned() else { return Ok(Restored::Untouched) };
        if function::ids(&self.sysfs, bdf) != Some((before.vendor, before.device)) {
            self.commit(|state| state.forget_device(bdf))?;
            return Ok(Restored::Gone);
        }
        let now = self.sysfs.driver_of(bdf);
        if now.is_some() && now != before.driver {
            self.refuse_if_in_use(bdf, None)?;
        }
        self.give_group_back(bdf, &before)?;
        self.settle(bdf, before.driver.as_deref(), before.driver_override.as_deref())?;
        self.commit(|state| state.forget_device(bdf))?;
        Ok(Restored::Back { driver: before.driver })
    }

    /// Makes a change, and undoes it if it fails: not back to what is remembered, which may be from an
    /// earlier run, but to what was found now.
    fn change(&mut self, found: &NvmeFunction, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let bdf = found.bdf;
        let found_override = self.sysfs.driver_override_of(bdf)?;
        let is_new = self.remember(found, found_override.as_deref())?;
        let Err(why) = step(self) else { return Ok(()) };
        let mut back = self.settle(bdf, found.driver.as_deref(), found_override.as_deref());
        if back.is_ok() && is_new {
            back = self.commit(|state| state.forget_device(bdf));
        }
        Err(match back {
            Ok(()) => why,
            Err(back) => Error::NotPutBack { bdf, why: Box::new(why), back: Box::new(back) },
        })
    }

    /// Writes down how the function is before it is changed for the first time. Returns whether it was the
    /// first.
    fn remember(&mut self, function: &NvmeFunction, driver_override: Option<&str>) -> Result<bool> {
        let known = self.state.device(function.bdf).filter(|known| is_same_device(known, function));
        if known.is_some_and(|known| !given_away_since(known, function)) {
            return Ok(false);
        }
        // Known: then an override for vfio-pci is ours, not what was before.
        let driver_override = match known {
            Some(known) if driver_override == Some(VFIO_PCI) => known.driver_override.clone(),
            _ => driver_override.map(str::to_owned),
        };
        let before = DeviceBefore {
            driver: function.driver.clone(),
            driver_override,
            iommu_group: function.iommu_group,
            vendor: function.vendor,
            device: function.device,
            model: function.model.clone(),
            serial: function.serial.clone(),
        };
        let is_new = known.is_none();
        self.commit(|state| state.remember_device(function.bdf, before))?;
        Ok(is_new)
    }

    fn hand_to_vfio(&mut self, bdf: Bdf, group: u32, user: Option<&User>) -> Result<()> {
        if self.sysfs.driver_of(bdf).as_deref() != Some(VFIO_PCI) {
            self.settle(bdf, Some(VFIO_PCI), Some(VFIO_PCI))?;
        }
        self.wait_for_node(bdf, group)?;
        user.map_or(Ok(()), |user| self.give_group(group, user.uid))
    }

    /// Brings the function to this driver (or none) and this `driver_override`, from wherever it is.
    fn settle(&mut self, bdf: Bdf, driver: Option<&str>, driver_override: Option<&str>) -> Result<()> {
        let now = self.sysfs.driver_of(bdf);
        if now.as_deref() != driver {
            if let Some(wanted) = driver {
                self.need_driver(wanted)?;
                self.set_override(bdf, Some(wanted))?;
            }
            if let Some(now) = now {
                self.detach(bdf, &now)?;
            }
            if let Some(wanted) = driver {
                self.probe(bdf, wanted)?;
            }
        }
        self.set_override(bdf, driver_override)
    }

    fn set_override(&mut self, bdf: Bdf, driver: Option<&str>) -> Result<()> {
        if self.sysfs.driver_override_of(bdf)?.as_deref() == driver {
            return Ok(());
        }
        // An empty line clears it; an empty write would not reach the kernel.
        let line = format!("{}\n", driver.unwrap_or_default());
        self.write(&self.sysfs.function(bdf).join("driver_override"), &line)
    }

    fn detach(&mut self, bdf: Bdf, driver: &str) -> Result<()> {
        self.write(&self.sysfs.driver(driver).join("unbind"), &bdf.to_string())?;
        match self.sysfs.driver_of(bdf) {
            Some(driver) => Err(Error::StillBound { bdf, driver }),
            None => Ok(()),
        }
    }

    /// The write succeeds also when no driver took the function, so what counts is who has it afterwards.
    fn probe(&mut self, bdf: Bdf, wanted: &str) -> Result<()> {
        self.write(&self.sysfs.path("/sys/bus/pci/drivers_probe"), &bdf.to_string())?;
        let now = self.sysfs.driver_of(bdf);
        if now.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(Error::NotBound { bdf, wanted: wanted.to_owned(), now })
    }

    fn need_driver(&mut self, name: &str) -> Result<()> {
        let folder = self.sysfs.driver(name);
        if folder.exists() {
            return Ok(());
        }
        let no = |reason: &str| Error::NoDriver { driver: name.to_owned(), reason: reason.to_owned() };
        let modprobe =
            attribute(&self.sysfs.path("/proc/sys/kernel/modprobe")).filter(|path| !path.is_empty());
        let modprobe = modprobe.ok_or_else(|| no("this kernel loads no modules"))?;
        self.kernel.load_module(modprobe.as_ref(), name).map_err(|reason| no(&reason))?;
        if folder.exists() { Ok(()) } else { Err(no("modprobe succeeded, but there is no such driver")) }
    }

    /// `force` is whether `--force` was given, `None` where there is no such option.
    fn refuse_if_in_use(&mut self, bdf: Bdf, force: Option<bool>) -> Result<()> {
        for left in (0..=PROCESS_WAIT.steps).rev() {
            let function = nvme_function(&self.sysfs, bdf, &self.state)?;
            let by_vfio = function.driver.as_deref() == Some(VFIO_PCI);
            // vfio-pci lets go only when the last file is closed: the write would hang, force or not.
            if force == Some(true) && !by_vfio {
                return Ok(());
            }
            let holders = self.holders(&function);
            let Some(holder) = holders.first() else { return Ok(()) };
            let may_pass = holders.iter().all(|holder| matches!(holder, Holder::Process { .. }));
            if !may_pass || left == 0 {
                let (holder, more) = (Box::new(holder.clone()), holders.len() - 1);
                let can_force = force.is_some() && !by_vfio;
                return Err(Error::InUse { bdf, holder, more, can_force });
            }
            self.kernel.pause(PROCESS_WAIT.step);
        }
        Ok(())
    }

    fn holders(&mut self, function: &NvmeFunction) -> Vec<Holder> {
        let mut holders = function.users.clone();
        if holders.is_empty() {
            for disk in &function.namespaces {
                if self.kernel.is_claimed(&self.sysfs.path(format!("/dev/{}", disk.name))) {
                    holders.push(Holder::Claimed { device: disk.name.clone() });
                }
            }
        }
        holders
    }

    fn wait_for_node(&mut self, bdf: Bdf, group: u32) -> Result<()> {
        let node = self.sysfs.path(group_node(group));
        for _ in 0..NODE_WAIT.steps {
            if node.exists() {
                return Ok(());
            }
            self.kernel.pause(NODE_WAIT.step);
        }
        let seconds = (NODE_WAIT.step * NODE_WAIT.steps).as_secs();
        Err(Error::NoGroupNode { bdf, node: group_node(group), seconds })
    }

    fn give_group(&mut self, group: u32, user: u32) -> Result<()> {
        let node = self.sysfs.path(group_node(group));
        let failed = |source| write_error("change the owner of", &node, source);
        let (owner, owner_group) = self.kernel.owner(&node).map_err(failed)?;
        if owner == user {
            return Ok(());
        }
        self.commit(|state| state.remember_owner(group, Owner { user: owner, group: owner_group }))?;
        self.kernel.chown(&node, user, owner_group).map_err(failed)
    }

    /// While another function of the group is still ours, the user still needs it.
    fn give_group_back(&mut self, bdf: Bdf, before: &DeviceBefore) -> Result<()> {
        let Some(group) = before.iommu_group else { return Ok(()) };
        let Some(owner) = self.state.owner(group) else { return Ok(()) };
        if !self.state.is_last_in_group(bdf, group) {
            return Ok(());
        }
        let node = self.sysfs.path(group_node(group));
        match self.kernel.chown(&node, owner.user, owner.group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(write_error("change the owner of", &node, error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether it was this device that sat at that address then. Where no serial number can be read, what is
/// shown is the remembered one.
fn is_same_device(known: &DeviceBefore, function: &NvmeFunction) -> bool {
    (known.vendor, known.device) == (function.vendor, function.device) && known.serial == function.serial
}

/// Whether somebody else has given the function to another driver after we let go of it: then what we
/// remember is no longer what was before. Ours are only the driver that we remember, vfio-pci and none.
fn given_away_since(known: &DeviceBefore, function: &NvmeFunction) -> bool {
    function.driver.as_deref().is_some_and(|now| now != VFIO_PCI && Some(now) != known.driver.as_deref())
}

fn group_node(group: u32) -> PathBuf {
    PathBuf::from(format!("/dev/vfio/{group}"))
}
