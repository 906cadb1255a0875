//! A controller of `kiovec serve`, as the kernel's own driver finds it: from the first register to the last block.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use kiovec_tests::machine::{Controller, Machine, Namespace, SERVED};
use kiovec_tests::pattern::{Extent, ZEROS};

use crate::disk::Erasure;
use crate::{Verdict, disk, ensure, kmsg, pci};

/// Every namespace has its block device, of the size it should have; every processor has a queue, with an interrupt
/// that comes.
pub fn as_described(machine: &'static Machine) -> Verdict {
    for namespace in SERVED.namespaces {
        let path = disk::path(&SERVED, namespace.nsid)?;
        let sectors = path.file_name().map(|name| Path::new("/sys/block").join(name).join("size"));
        let sectors = fs::read_to_string(sectors.unwrap_or_default()).map_err(|e| e.to_string())?;
        ensure!(
            sectors.trim() == (namespace.size / 512).to_string(),
            "{} has {sectors} sectors",
            path.display()
        );
        let block = disk::queue_limit(&path, "logical_block_size")?;
        ensure!(block == u64::from(namespace.block), "{} has blocks of {block} bytes", path.display());
    }
    let interrupts = fs::read_to_string("/proc/interrupts").map_err(|e| format!("/proc/interrupts: {e}"))?;
    for queue in 0..=machine.processors {
        let line = interrupts.lines().find(|line| line.ends_with(&format!("q{queue}")));
        ensure!(line.is_some_and(|line| line.contains("MSI")), "no MSI-X for queue {queue}: {interrupts}");
    }
    Ok(())
}

/// Parts of a namespace are written and read back by one thread each, in I/Os of several lengths.
pub fn many_at_once(_: &'static Machine) -> Verdict {
    for (threads, len) in [(1, 512), (1, 1 << 20), (8, 4096), (32, 128 << 10), (64, 12 << 10)] {
        for namespace in SERVED.namespaces {
            at_once(namespace, threads, len)
                .map_err(|why| format!("{threads} threads, {len} bytes: {why}"))?;
        }
    }
    Ok(())
}

fn at_once(namespace: &Namespace, threads: u64, len: u64) -> Verdict {
    /// I/Os of each thread.
    const EACH: u64 = 8;
    let path = disk::path(&SERVED, namespace.nsid)?;
    let part = namespace.size / threads;
    let verdicts: Vec<Verdict> = thread::scope(|scope| {
        let one = |thread| {
            let extent = Extent {
                nsid: namespace.nsid,
                offset: thread * part,
                len: part.min(EACH * len),
                seed: 1 + thread + (len << 8),
            };
            let path = &path;
            scope.spawn(move || {
                disk::write_by(path, &extent, len)?;
                disk::verify_by(path, &extent, len)
            })
        };
        let all: Vec<_> = (0..threads).map(one).collect();
        all.into_iter().map(|thread| thread.join().unwrap_or(Err("panicked".into()))).collect()
    });
    verdicts.into_iter().collect()
}

/// Deallocated blocks read as zeros, and their neighbours as before.
pub fn deallocates(_: &'static Machine) -> Verdict {
    erases(Erasure::Discard)
}

/// So do zeroed ones.
pub fn writes_zeroes(_: &'static Machine) -> Verdict {
    erases(Erasure::WriteZeroes)
}

fn erases(erasure: Erasure) -> Verdict {
    const PART: u64 = 1 << 20;
    for namespace in SERVED.namespaces {
        let path = disk::path(&SERVED, namespace.nsid)?;
        let part = |index, seed| Extent { nsid: namespace.nsid, offset: index * PART, len: PART, seed };
        disk::write_at(&path, &Extent { len: 3 * PART, ..part(4, 77) })?;
        disk::erase(&path, erasure, 5 * PART, PART)?;
        [part(4, 77), part(5, ZEROS), part(6, 77)]
            .iter()
            .try_for_each(|part| disk::verify_at(&path, part))?;
    }
    Ok(())
}

/// The driver resets the controller, and goes on.
pub fn controller_reset(_: &'static Machine) -> Verdict {
    stays(|| {
        let path = device_directory(&SERVED)?.join("reset_controller");
        fs::write(&path, "1").map_err(|e| format!("{}: {e}", path.display()))
    })
}

/// The driver shuts the controller down and leaves it; then it comes back.
pub fn driver_leaves_and_returns(_: &'static Machine) -> Verdict {
    stays(|| pci::leave_and_return(&SERVED))
}

/// What was written before is there afterwards, and there can be written again.
fn stays(then: impl FnOnce() -> Verdict) -> Verdict {
    let extents =
        SERVED.namespaces.iter().map(|n| Extent { nsid: n.nsid, offset: 9 << 20, len: 4 << 20, seed: 78 });
    let extents: Vec<Extent> = extents.collect();
    extents.iter().try_for_each(|extent| disk::write(&SERVED, extent))?;
    then()?;
    extents.iter().try_for_each(|extent| disk::verify(&SERVED, extent))?;
    SERVED.namespaces.iter().try_for_each(|namespace| at_once(namespace, 8, 4096))
}

/// `/sys/class/nvme/nvme0`.
fn device_directory(controller: &Controller) -> Result<PathBuf, String> {
    let all = format!("/sys/bus/pci/devices/{}/nvme", controller.bdf());
    let mut entries = fs::read_dir(&all).map_err(|e| format!("{all}: {e}"))?;
    entries.find_map(|entry| Some(entry.ok()?.path())).ok_or_else(|| format!("{all} is empty"))
}

/// The driver found nothing to complain of: no time-out, no missing answer, nothing that it had to work around.
pub fn no_complaints(_: &'static Machine) -> Verdict {
    let log = kmsg::read().map_err(|e| format!("/dev/kmsg: {e}"))?;
    let complaint = log.lines().find(|record| is_complaint(record));
    ensure!(complaint.is_none(), "{}", complaint.unwrap_or_default());
    Ok(())
}

/// A record of `nvme` that is a warning or worse: `4,123,456,-;nvme nvme0: text`.
fn is_complaint(record: &str) -> bool {
    /// Of eight levels; the rest of the number is who says it.
    const WARNING: u32 = 4;
    let level = record.split(',').next().and_then(|number| number.parse::<u32>().ok());
    let text = record.split_once(';').map_or("", |(_, text)| text);
    level.is_some_and(|level| level % 8 <= WARNING) && text.contains("nvme")
}

/// Threads read, and go on reading when the case is over, until the machine is.
pub fn busy_to_the_end(_: &'static Machine) -> Verdict {
    const READERS: u64 = 16;
    let path = disk::path(&SERVED, 1)?;
    let whole = kiovec_tests::machine::kernel_extent(&SERVED.namespaces[0]);
    for reader in 0..READERS {
        let path = path.clone();
        thread::spawn(move || {
            let part = Extent { offset: whole.len / READERS * reader, len: 1 << 20, ..whole };
            while disk::verify_by(&path, &part, 4096).is_ok() {}
        });
    }
    Ok(())
}
