//! What the machine was like before we changed it.
//!
//! The file is replaced by rename *before* each change that it describes, so that after a kill at any moment
//! it knows at least as much as was changed. `restore` only compares and sets, so knowing too much does no
//! harm.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::hugepages::Pool;
use crate::kernel::Kernel;
use crate::sysfs::attribute;
use crate::{Bdf, Error, Result, Sysfs};

pub(crate) const FOLDER: &str = "/run/hugepage-setup";

const VERSION: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Where /run outlives a boot, what it says about another boot is void.
    boot_id: Option<String>,
    devices: BTreeMap<Bdf, DeviceBefore>,
    /// Who owned /dev/vfio/GROUP.
    groups: BTreeMap<u32, Owner>,
    hugepages: Vec<PoolBefore>,
}

/// A function as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceBefore {
    pub(crate) driver: Option<String>,
    pub(crate) driver_override: Option<String>,
    pub(crate) iommu_group: Option<u32>,
    /// To notice that another device sits there now.
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Once the kernel's driver is gone, nobody else can tell.
    pub(crate) model: Option<String>,
    pub(crate) serial: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolBefore {
    pub(crate) pool: Pool,
    pub(crate) pages: u64,
}

impl State {
    /// What the file says; nothing, if there is none or it is from before the last boot.
    pub(crate) fn load(sysfs: &Sysfs) -> Result<State> {
        let boot_id = attribute(&sysfs.path("/proc/sys/kernel/random/boot_id"));
        let fresh = State { version: VERSION, boot_id, ..State::default() };
        let path = file(sysfs);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(fresh),
            Err(source) => return Err(Error::Read { path, source }),
        };
        let bad = |reason: String| Error::BadState { path: path.clone(), reason };
        let state: State = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if state.version != VERSION {
            return Err(bad(format!("version {}, this program writes {VERSION}", state.version)));
        }
        Ok(if state.boot_id == fresh.boot_id { state } else { fresh })
    }

    /// Replaces the file; removes it when there is nothing to remember.
    pub(crate) fn store(&self, sysfs: &Sysfs, kernel: &mut impl Kernel) -> Result<()> {
        let path = file(sysfs);
        let failed = |source| Error::Write { action: "update".to_owned(), path: path.clone(), source };
        if self.is_empty() {
            return match kernel.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        text.push('\n');
        let new = path.with_extension("json.new");
        kernel.create(&new, &text).and_then(|()| kernel.rename(&new, &path)).map_err(failed)
    }

    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.groups.is_empty() && self.hugepages.is_empty()
    }

    pub(crate) fn device(&self, bdf: Bdf) -> Option<&DeviceBefore> {
        self.devices.get(&bdf)
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = Bdf> {
        self.devices.keys().copied()
    }

    pub(crate) fn remember_device(&mut self, bdf: Bdf, before: DeviceBefore) {
        self.devices.insert(bdf, before);
    }

    /// Also forgets the owner of a group in which no function of ours is left.
    pub(crate) fn forget_device(&mut self, bdf: Bdf) {
        self.devices.remove(&bdf);
        let devices = &self.devices;
        self.groups.retain(|&group, _| devices.values().any(|device| device.iommu_group == Some(group)));
    }

    /// Whether this is the last function of ours in the group.
    pub(crate) fn is_last_in_group(&self, bdf: Bdf, group: u32) -> bool {
        !self.devices.iter().any(|(&other, before)| other != bdf && before.iommu_group == Some(group))
    }

    pub(crate) fn owner(&self, group: u32) -> Option<Owner> {
        self.groups.get(&group).copied()
    }

    /// The first owner counts: later ones were ours.
    pub(crate) fn remember_owner(&mut self, group: u32, owner: Owner) {
        self.groups.entry(group).or_insert(owner);
    }

    pub(crate) fn hugepages(&self) -> &[PoolBefore] {
        &self.hugepages
    }

    /// The first count counts: later ones were ours.
    pub(crate) fn remember_pool(&mut self, before: PoolBefore) {
        if !self.hugepages.iter().any(|known| known.pool == before.pool) {
            self.hugepages.push(before);
        }
    }

    pub(crate) fn forget_pool(&mut self, pool: Pool) {
        self.hugepages.retain(|known| known.pool != pool);
    }
}

fn file(sysfs: &Sysfs) -> PathBuf {
    sysfs.path(FOLDER).join("state.json")
}
