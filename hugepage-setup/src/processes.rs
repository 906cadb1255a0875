//! Which processes hold device files open.

use std::fs;
use std::path::Path;

use crate::sysfs::attribute;
use crate::{Holder, Result, Sysfs, sysfs};

/// More than `pid_max` is by default; a bound on the scan, not a limit that anybody meets.
const MAX_PROCESSES: usize = 1 << 17;
/// Per process. What a process holds beyond that is not seen.
const MAX_FILES: usize = 1 << 14;

/// Every device file that is open, and by whom.
#[derive(Debug, Default)]
pub(crate) struct OpenDevices(Vec<(u32, String)>);

impl OpenDevices {
    /// Looks once through `/proc/*/fd`. A process that ends meanwhile, or that we may not look into, is
    /// skipped.
    pub(crate) fn scan(sysfs: &Sysfs) -> Result<OpenDevices> {
        let mut open = Vec::new();
        let pids = sysfs::names(&sysfs.path("/proc"))?;
        for pid in pids.iter().filter_map(|name| name.parse::<u32>().ok()).take(MAX_PROCESSES) {
            open.extend(devices_of(&sysfs.path(format!("/proc/{pid}/fd"))).map(|path| (pid, path)));
        }
        open.sort();
        open.dedup();
        Ok(OpenDevices(open))
    }

    /// Those who hold the device file at `path`, as seen by a running machine.
    pub(crate) fn holders<'a>(
        &'a self,
        sysfs: &'a Sysfs,
        path: &'a str,
    ) -> impl Iterator<Item = Holder> + 'a {
        self.0.iter().filter(move |(_, open)| open == path).map(|&(pid, ref open)| Holder::Process {
            path: open.clone(),
            pid,
            comm: attribute(&sysfs.path(format!("/proc/{pid}/comm"))).unwrap_or_default(),
        })
    }
}

fn devices_of(fd: &Path) -> impl Iterator<Item = String> + use<> {
    let files = fs::read_dir(fd).into_iter().flatten().take(MAX_FILES);
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.map(|target| target.to_string_lossy().into_owned()).filter(|target| target.starts_with("/dev/"))
}
