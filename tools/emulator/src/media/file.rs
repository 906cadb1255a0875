//! Blocks in a file or on a block device.
//!
//! Knows system calls and their errors; must not know commands.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiovec::spec::Status;
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::controller::{Run, unreachable_memory};
use crate::dma::Dma;
use crate::refused_path::Advice;

/// What is moved by one system call, at most.
const BUFFER: usize = 128 << 10;

/// Why a file or device cannot be what blocks are stored in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// A system call failed.
    #[error("cannot {what} {}: {source}{}", path.display(), Advice(path, source))]
    Os {
        /// What was being done.
        what: &'static str,
        /// The file or device.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Another server, or another program that locks it, uses it.
    #[error("{} is in use by another process, which has locked it; end that one, or name another file", .0.display())]
    InUse(PathBuf),
    /// A device that is too small.
    #[error("{} has {has} bytes, and the namespaces need {need}; set size to less", path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its bytes.
        has: u64,
        /// The bytes that are needed.
        need: u64,
    },
    /// Neither a file nor a block device, or more than a file can have.
    #[error("{} cannot store blocks: {why}", path.display())]
    Unsuitable {
        /// What was named.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// An open and locked file or device.
#[derive(Debug)]
pub(super) struct Disk {
    file: OwnedFd,
}

impl Disk {
    /// Opens a file for `namespaces` times `size` bytes; makes it, or makes it longer, if it has to be.
    pub(super) fn open(path: &Path, size: u64, namespaces: u32) -> Result<Disk, MediaError> {
        let os =
            |what| move |errno: Errno| MediaError::Os { what, path: path.to_owned(), source: errno.into() };
        let unsuitable = |why| MediaError::Unsuitable { path: path.to_owned(), why };
        let need = size.checked_mul(namespaces.into()).filter(|need| *need <= i64::MAX as u64);
        let need = need.ok_or_else(|| unsuitable("all namespaces together are too large for a file"))?;
        let there = rustix::fs::stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
        // A block device that is mounted, or otherwise taken, refuses to be opened exclusively.
        let kind = match there {
            Ok(FileType::BlockDevice) => OFlags::EXCL,
            Ok(FileType::RegularFile) | Err(Errno::NOENT) => OFlags::CREATE,
            Ok(_) => return Err(unsuitable("it is neither a file nor a block device")),
            Err(errno) => return Err(os("look at")(errno)),
        };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | kind;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map_err(os("open"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(MediaError::InUse(path.to_owned())),
            Err(errno) => return Err(os("lock")(errno)),
        }
        let has = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(os("find the size of"))?;
        if has < need && kind == OFlags::EXCL {
            return Err(MediaError::TooSmall { path: path.to_owned(), has, need });
        }
        if has < need {
            rustix::fs::ftruncate(&file, need).map_err(os("extend"))?;
        }
        Ok(Disk { file })
    }
}

/// The part of a disk that one namespace has.
#[derive(Debug)]
pub(crate) struct Part {
    disk: Arc<Disk>,
    start: u64,
    /// Another namespace's part follows.
    len: u64,
    buffer: Box<[u8]>,
}

impl Part {
    pub(super) fn new(disk: &Arc<Disk>, start: u64, len: u64) -> Part {
        Part { disk: Arc::clone(disk), start, len, buffer: vec![0; BUFFER].into_boxed_slice() }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&mut self, offset: u64, dma: &Dma, runs: &[Run]) -> Result<(), Status> {
        self.each_piece(offset, runs, |disk, at, iova, buffer| {
            read_all(disk, buffer, at)?;
            dma.write(iova, buffer).map_err(unreachable_memory)
        })
    }

    pub(super) fn write(&mut self, offset: u64, dma: &Dma, runs: &[Run]) -> Result<(), Status> {
        self.each_piece(offset, runs, |disk, at, iova, buffer| {
            dma.read(iova, buffer).map_err(unreachable_memory)?;
            write_all(disk, buffer, at)
        })
    }

    pub(super) fn compare(&mut self, offset: u64, dma: &Dma, runs: &[Run]) -> Result<bool, Status> {
        let mut equal = true;
        let mut theirs = Vec::new();
        self.each_piece(offset, runs, |disk, at, iova, buffer| {
            read_all(disk, buffer, at)?;
            theirs.resize(buffer.len(), 0);
            dma.read(iova, &mut theirs).map_err(unreachable_memory)?;
            equal &= *buffer == *theirs;
            Ok(())
        })?;
        Ok(equal)
    }

    /// Makes a range read as zeros, by writing them if there is no other way.
    pub(super) fn zero(&mut self, offset: u64, len: u64) -> Result<(), Status> {
        if len == 0 || self.deallocate(offset, len)? {
            return Ok(());
        }
        let Part { disk, start, buffer, .. } = self;
        buffer.fill(0);
        let mut done = 0;
        while done < len {
            let piece = (buffer.len() as u64).min(len - done);
            let zeros = buffer.get(..piece as usize).ok_or(Status::INTERNAL_ERROR)?;
            write_all(disk.file.as_fd(), zeros, *start + offset + done)?;
            done += piece;
        }
        Ok(())
    }

    /// Makes a range read as zeros. False if file or device cannot do that without being written.
    pub(super) fn deallocate(&mut self, offset: u64, len: u64) -> Result<bool, Status> {
        if len == 0 {
            return Ok(true);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry(|| rustix::fs::fallocate(&self.disk.file, flags, self.start + offset, len)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
            Err(_) => Err(Status::WRITE_FAULT),
        }
    }

    pub(super) fn flush(&self) -> Result<(), Status> {
        retry(|| rustix::fs::fdatasync(&self.disk.file)).map_err(|_| Status::WRITE_FAULT)
    }

    /// Cuts runs into pieces that fit into the buffer. Bit buckets are left out.
    fn each_piece(
        &mut self,
        offset: u64,
        runs: &[Run],
        mut each: impl FnMut(BorrowedFd<'_>, u64, u64, &mut [u8]) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut at = self.start + offset;
        for run in runs {
            let mut done = 0;
            while done < run.len && run.iova.is_some() {
                let piece = (self.buffer.len() as u64).min(run.len - done);
                let buffer = self.buffer.get_mut(..piece as usize).ok_or(Status::INTERNAL_ERROR)?;
                if let Some(iova) = run.iova {
                    each(self.disk.file.as_fd(), at + done, iova + done, buffer)?;
                }
                done += piece;
            }
            at += run.len;
        }
        Ok(())
    }
}

fn read_all(file: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> Result<(), Status> {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = buffer.get_mut(done..) {
        match retry(|| rustix::io::pread(file, &mut *rest, at + done as u64)) {
            // Somebody has made the file shorter.
            Ok(0) | Err(_) => return Err(Status::UNRECOVERED_READ_ERROR),
            Ok(bytes) => done += bytes,
        }
    }
    Ok(())
}

fn write_all(file: BorrowedFd<'_>, buffer: &[u8], at: u64) -> Result<(), Status> {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = buffer.get(done..) {
        match retry(|| rustix::io::pwrite(file, rest, at + done as u64)) {
            Ok(0) | Err(_) => return Err(Status::WRITE_FAULT),
            Ok(bytes) => done += bytes,
        }
    }
    Ok(())
}

/// Again, if a signal came in between.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
