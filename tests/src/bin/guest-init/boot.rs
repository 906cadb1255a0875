//! What a distribution's start-up would have done: the kernel's file systems and modules.

use std::fs;

use rustix::mount::{MountFlags, mount};

/// Mounts what programs expect to be there.
pub fn file_systems() -> Result<(), String> {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(target).map_err(|e| format!("{target}: {e}"))?;
        mount(kind, target, kind, MountFlags::empty(), None)
            .map_err(|e| format!("mount {kind} on {target}: {e}"))?;
    }
    Ok(())
}

/// Loads the modules of /modules in the order of their file names, which the host numbered.
pub fn modules() -> Result<(), String> {
    let directory = fs::read_dir("/modules").map_err(|e| format!("/modules: {e}"))?;
    let mut files: Vec<_> = directory.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for file in files {
        let image = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        rustix::system::init_module(&image, c"").map_err(|e| format!("loading {}: {e}", file.display()))?;
    }
    Ok(())
}
