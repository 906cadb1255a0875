//! The machine that is being set up.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use crate::state::{self, State};
use crate::{Bdf, Error, Kernel, Result, Sysfs};

/// A machine that this process, and at the moment no other, sets up.
#[derive(Debug)]
pub struct Machine<K> {
    pub(crate) sysfs: Sysfs,
    pub(crate) kernel: K,
    pub(crate) state: State,
    /// Two runs at once would each write down what the other had changed as what was before.
    _lock: File,
}

impl<K: Kernel> Machine<K> {
    /// Takes the lock in `/run/hugepage-setup` and reads what earlier runs left to restore. If another run
    /// has the lock, calls `on_wait` once and waits for it.
    ///
    /// # Errors
    ///
    /// Not privileged to write there, or the state file is damaged.
    pub fn open(sysfs: Sysfs, kernel: K, on_wait: impl FnOnce()) -> Result<Machine<K>> {
        let folder = sysfs.path(state::FOLDER);
        let lock = lock(&folder, on_wait).map_err(|source| write_error("lock", &folder, source))?;
        let state = State::load(&sysfs)?;
        Ok(Machine { sysfs, kernel, state, _lock: lock })
    }

    /// The functions that a [`restore`](Machine::restore) has something to do for.
    pub fn changed_functions(&self) -> Vec<Bdf> {
        self.state.devices().collect()
    }

    /// Changes the state on disk first, in memory only if that went well.
    pub(crate) fn commit(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut next = self.state.clone();
        change(&mut next);
        if next != self.state {
            next.store(&self.sysfs, &mut self.kernel)?;
            self.state = next;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, attribute: &Path, value: &str) -> Result<()> {
        let written = self.kernel.write(attribute, value);
        written.map_err(|source| write_error(&format!("write {:?} to", value.trim()), attribute, source))
    }
}

pub(crate) fn write_error(action: &str, path: &Path, source: io::Error) -> Error {
    Error::Write { action: action.to_owned(), path: path.to_owned(), source }
}

fn lock(folder: &Path, on_wait: impl FnOnce()) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            on_wait();
            file.lock()?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}
