//! The judge: a namespace, or what the kernel makes of several, as the kernel's own drivers read and write it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiovec_tests::machine::{Access, Controller};
use kiovec_tests::pattern::{self, Extent};

use crate::{Verdict, ensure, uevent};

/// Direct I/O needs memory as aligned as the largest block.
const ALIGN: usize = 4096;
/// Bytes per call.
const CHUNK: u64 = 1 << 20;

/// Bytes at an address that is a multiple of [`ALIGN`].
#[derive(Debug)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0_u8; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The block device of the namespace, as soon as the kernel has made it.
pub fn path(controller: &Controller, nsid: u32) -> Result<PathBuf, String> {
    let what = format!("block device of namespace {nsid} of {}", controller.bdf());
    uevent::wait_for(&what, Duration::from_secs(20), || find(controller, nsid))
}

/// By serial number and namespace: the names are in the order in which the controllers happened to get ready.
fn find(controller: &Controller, nsid: u32) -> Option<PathBuf> {
    let text =
        |path: PathBuf| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let ours = |block: &PathBuf| {
        text(block.join("device/serial")) == controller.serial && text(block.join("nsid")) == nsid.to_string()
    };
    let blocks = fs::read_dir("/sys/block").ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(ours);
    // With native multipath each path has a hidden block device of its own, without a node, beside the real one.
    let mut nodes = blocks.filter_map(|block| Some(Path::new("/dev").join(block.file_name()?)));
    nodes.find(|node| is_there(node))
}

/// Whether a device can be opened: its node is there before the device is, and the kernel announces the device then.
pub fn is_there(node: &Path) -> bool {
    match File::open(node) {
        Err(e) => e.kind() != io::ErrorKind::NotFound && e.raw_os_error() != Some(libc::ENXIO),
        Ok(_) => true,
    }
}

fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Reads a stretch, or writes it anew, and gives the kernel's error.
pub fn access(path: &Path, access: Access, offset: u64, len: usize) -> io::Result<()> {
    let file = open_direct(path)?;
    let mut buffer = Aligned::new(len);
    match access {
        Access::Read => file.read_exact_at(buffer.get(), offset),
        Access::Write => file.write_all_at(buffer.get(), offset),
    }
}

/// What a device can do with blocks beside reading and writing them (linux/fs.h).
#[derive(Debug, Clone, Copy)]
pub enum Erasure {
    /// BLKDISCARD.
    Discard,
    /// BLKZEROOUT.
    WriteZeroes,
}

impl Erasure {
    fn request(self) -> libc::Ioctl {
        match self {
            Erasure::Discard => 0x1277,
            Erasure::WriteZeroes => 0x127f,
        }
    }

    /// The file in the queue's directory that says how much the device takes at once; 0 is not at all.
    fn limit(self) -> &'static str {
        match self {
            Erasure::Discard => "discard_max_bytes",
            Erasure::WriteZeroes => "write_zeroes_max_bytes",
        }
    }
}

/// A number that the kernel shows of a device's queue.
pub fn queue_limit(path: &Path, name: &str) -> Result<u64, String> {
    let file = Path::new("/sys/block").join(path.file_name().unwrap_or_default()).join("queue").join(name);
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    text.trim().parse().map_err(|e| format!("{}: {text:?}: {e}", file.display()))
}

/// Erases a stretch by the device's own command: the kernel would write zeros for a device that has none.
pub fn erase(path: &Path, erasure: Erasure, offset: u64, len: u64) -> Verdict {
    ensure!(queue_limit(path, erasure.limit())? > 0, "{} does not offer {erasure:?}", path.display());
    let file = open_direct(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let range = [offset, len];
    // SAFETY: both requests read two 64-bit numbers, which outlive the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), erasure.request(), range.as_ptr()) };
    let error = io::Error::last_os_error();
    ensure!(done == 0, "{erasure:?} of {len} bytes at {offset} of {}: {error}", path.display());
    Ok(())
}

/// Calls `each` with every stretch of the extent, at most `most` long.
fn chunks(extent: &Extent, most: u64, mut each: impl FnMut(u64, usize) -> Verdict) -> Verdict {
    let mut offset = extent.offset;
    while offset < extent.end() {
        let len = most.min(extent.end() - offset);
        each(offset, len as usize)?;
        offset += len;
    }
    Ok(())
}

/// Writes the extent's pattern.
pub fn write(controller: &Controller, extent: &Extent) -> Verdict {
    write_at(&path(controller, extent.nsid)?, extent)
}

/// The same on any block device.
pub fn write_at(path: &Path, extent: &Extent) -> Verdict {
    write_by(path, extent, CHUNK)
}

/// The same with so many bytes per call.
pub fn write_by(path: &Path, extent: &Extent, most: u64) -> Verdict {
    let failed = |e| format!("writing {extent} to {}: {e}", path.display());
    let file = open_direct(path).map_err(failed)?;
    chunks(extent, most, |offset, len| {
        let mut buffer = Aligned::new(len);
        pattern::fill(extent.seed, offset, buffer.get());
        file.write_all_at(buffer.get(), offset).map_err(failed)
    })?;
    file.sync_all().map_err(failed)
}

/// Reads the extent and compares it with its pattern.
pub fn verify(controller: &Controller, extent: &Extent) -> Verdict {
    verify_at(&path(controller, extent.nsid)?, extent)
}

/// The same on any block device.
pub fn verify_at(path: &Path, extent: &Extent) -> Verdict {
    verify_by(path, extent, CHUNK)
}

/// The same with so many bytes per call.
pub fn verify_by(path: &Path, extent: &Extent, most: u64) -> Verdict {
    let failed = |e| format!("reading {extent} of {}: {e}", path.display());
    let file = open_direct(path).map_err(failed)?;
    chunks(extent, most, |offset, len| {
        let mut buffer = Aligned::new(len);
        file.read_exact_at(buffer.get(), offset).map_err(failed)?;
        let wrong = pattern::mismatch(extent.seed, offset, buffer.get());
        ensure!(
            wrong.is_none(),
            "{}: {extent} differs at byte {}",
            path.display(),
            wrong.unwrap_or_default()
        );
        Ok(())
    })
}

/// Calls `each` with every unit of a device's first ones, and what the device has there.
pub fn read_each(
    path: &Path,
    units: u64,
    bytes: u64,
    mut each: impl FnMut(u64, &[u8]) -> Verdict,
) -> Verdict {
    let failed = |e| format!("reading {}: {e}", path.display());
    let file = open_direct(path).map_err(failed)?;
    let mut buffer = Aligned::new(bytes as usize);
    (0..units).try_for_each(|unit| {
        file.read_exact_at(buffer.get(), unit * bytes).map_err(failed)?;
        each(unit, buffer.get())
    })
}

/// Reads two block devices over the extent; they have to hold the same, whatever it is.
pub fn same(paths: [&Path; 2], extent: &Extent) -> Verdict {
    let failed = |e| format!("reading {extent} of {paths:?}: {e}");
    let [one, other] = [open_direct(paths[0]).map_err(failed)?, open_direct(paths[1]).map_err(failed)?];
    chunks(extent, CHUNK, |offset, len| {
        let mut buffers = [Aligned::new(len), Aligned::new(len)];
        one.read_exact_at(buffers[0].get(), offset).map_err(failed)?;
        other.read_exact_at(buffers[1].get(), offset).map_err(failed)?;
        let [one, other] = &mut buffers;
        let wrong = one.get().iter().zip(other.get().iter()).position(|(a, b)| a != b);
        ensure!(wrong.is_none(), "{paths:?} differ at byte {}", offset + wrong.unwrap_or_default() as u64);
        Ok(())
    })
}
