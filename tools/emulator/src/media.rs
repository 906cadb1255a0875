//! What the blocks of a namespace are stored in.
//!
//! Knows bytes at offsets and runs of host memory; must not know commands.

use std::sync::Arc;

use kiovec::spec::Status;

use crate::config::{Config, Media};
use crate::controller::{Run, unreachable_memory};
use crate::dma::Dma;
use file::{Disk, Part};

mod file;

pub use file::MediaError;

/// What is allocated at a time.
const CHUNK: usize = 1 << 20;

/// The contents of one namespace.
#[derive(Debug)]
pub(crate) enum Store {
    /// Nothing is kept.
    Null,
    /// Chunks, where there is anything but zeros.
    Ram(Vec<Option<Box<[u8]>>>),
    /// A part of a file. Boxed, so that the others are not larger for it.
    File(Box<Part>),
}

impl Store {
    /// Opens what all namespaces are stored in.
    pub(crate) fn open(config: &Config) -> Result<Vec<Store>, MediaError> {
        let namespaces = 0..u64::from(config.namespaces);
        Ok(match &config.media {
            Media::Null => namespaces.map(|_| Store::Null).collect(),
            Media::Ram => namespaces.map(|_| Store::Ram(Vec::new())).collect(),
            Media::File(path) => {
                let disk = Arc::new(Disk::open(path, config.size, config.namespaces)?);
                namespaces
                    .map(|index| Store::File(Box::new(Part::new(&disk, index * config.size, config.size))))
                    .collect()
            }
        })
    }

    /// Reads what lies at `offset` into the host's memory.
    pub(crate) fn read(&mut self, offset: u64, dma: &Dma, runs: &[Run]) -> Result<(), Status> {
        match self {
            Store::Null => Ok(()),
            Store::Ram(chunks) => each_piece(offset, runs, |chunk, at, iova, len| {
                let Some(iova) = iova else { return Ok(()) };
                let copied = match chunks.get(chunk).and_then(Option::as_deref) {
                    Some(bytes) => dma.write(iova, &bytes[at..at + len]),
                    None => dma.zero(iova, len as u64),
                };
                copied.map_err(unreachable_memory)
            }),
            Store::File(part) => part.read(offset, dma, runs),
        }
    }

    /// Writes the host's memory to what lies at `offset`. If it is to be `durable`, it survives a loss of
    /// power when this returns, as far as the store can.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        dma: &Dma,
        runs: &[Run],
        durable: bool,
    ) -> Result<(), Status> {
        match self {
            Store::Null => Ok(()),
            Store::Ram(chunks) => each_piece(offset, runs, |chunk, at, iova, len| match iova {
                Some(iova) => {
                    dma.read(iova, &mut allocated(chunks, chunk)[at..at + len]).map_err(unreachable_memory)
                }
                None => Ok(()),
            }),
            Store::File(part) => {
                part.write(offset, dma, runs)?;
                if durable { part.flush() } else { Ok(()) }
            }
        }
    }

    /// What lies at `offset`, for whoever wants to know without asking the controller. Nothing is there
    /// where nothing is kept.
    pub(crate) fn peek(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        let Store::Ram(chunks) = self else { return };
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % CHUNK as u64) as usize;
            let (now, later) = rest.split_at_mut((CHUNK - within).min(rest.len()));
            let chunk = usize::try_from(at / CHUNK as u64).ok().and_then(|chunk| chunks.get(chunk));
            if let Some(Some(chunk)) = chunk {
                now.copy_from_slice(&chunk[within..within + now.len()]);
            }
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
    }

    /// Puts something where [`peek`](Store::peek) finds it, if anything is kept there at all.
    pub(crate) fn poke(&mut self, offset: u64, bytes: &[u8]) {
        let Store::Ram(chunks) = self else { return };
        let mut at = offset as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = at % CHUNK;
            let (now, later) = rest.split_at((CHUNK - within).min(rest.len()));
            allocated(chunks, at / CHUNK)[within..within + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len(), later);
        }
    }

    /// Whether the host's memory is equal to what lies at `offset`.
    pub(crate) fn compare(&mut self, offset: u64, dma: &Dma, runs: &[Run]) -> Result<bool, Status> {
        let chunks = match self {
            Store::Null => return Ok(true),
            Store::Ram(chunks) => chunks,
            Store::File(part) => return part.compare(offset, dma, runs),
        };
        let mut equal = true;
        each_piece(offset, runs, |chunk, at, iova, len| {
            let Some(iova) = iova else { return Ok(()) };
            let mut theirs = vec![0; len];
            dma.read(iova, &mut theirs).map_err(unreachable_memory)?;
            equal &= match chunks.get(chunk).and_then(Option::as_deref) {
                Some(ours) => ours[at..at + len] == theirs,
                None => theirs.iter().all(|byte| *byte == 0),
            };
            Ok(())
        })?;
        Ok(equal)
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) -> Result<(), Status> {
        match self {
            Store::Null => Ok(()),
            Store::Ram(chunks) => {
                zero_chunks(chunks, offset, len);
                Ok(())
            }
            Store::File(part) => part.zero(offset, len),
        }
    }

    /// Makes a range read as zeros, or leaves it alone where that would take writing them.
    pub(crate) fn deallocate(&mut self, offset: u64, len: u64) -> Result<(), Status> {
        match self {
            Store::File(part) => part.deallocate(offset, len).map(|_| ()),
            _ => self.zero(offset, len),
        }
    }

    /// Whether a command may wait for a disk.
    pub(crate) fn waits(&self) -> bool {
        matches!(self, Store::File(_))
    }

    /// Bytes that it can have.
    pub(crate) fn most(&self) -> u64 {
        match self {
            Store::File(part) => part.len(),
            _ => u64::MAX,
        }
    }

    /// What was written survives a loss of power from now on, as far as the store can.
    pub(crate) fn flush(&self) -> Result<(), Status> {
        match self {
            Store::File(part) => part.flush(),
            _ => Ok(()),
        }
    }
}

fn zero_chunks(chunks: &mut [Option<Box<[u8]>>], offset: u64, len: u64) {
    let end = offset.saturating_add(len).min((chunks.len() * CHUNK) as u64) as usize;
    let mut next = usize::try_from(offset).unwrap_or(usize::MAX);
    while next < end {
        let (chunk, at) = (next / CHUNK, next % CHUNK);
        let piece = (CHUNK - at).min(end - next);
        match &mut chunks[chunk] {
            whole if piece == CHUNK => *whole = None,
            Some(bytes) => bytes[at..at + piece].fill(0),
            None => {}
        }
        next += piece;
    }
}

fn allocated(chunks: &mut Vec<Option<Box<[u8]>>>, chunk: usize) -> &mut [u8] {
    if chunks.len() <= chunk {
        chunks.resize_with(chunk + 1, || None);
    }
    chunks[chunk].get_or_insert_with(|| vec![0; CHUNK].into_boxed_slice())
}

/// Cuts runs where chunks end: chunk, offset in it, address (none for a bit bucket), length.
fn each_piece(
    offset: u64,
    runs: &[Run],
    mut each: impl FnMut(usize, usize, Option<u64>, usize) -> Result<(), Status>,
) -> Result<(), Status> {
    let mut next = offset;
    for run in runs {
        let mut done = 0;
        while done < run.len {
            let at = (next % CHUNK as u64) as usize;
            let len = ((CHUNK - at) as u64).min(run.len - done);
            each((next / CHUNK as u64) as usize, at, run.iova.map(|iova| iova + done), len as usize)?;
            (done, next) = (done + len, next + len);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kiovec::memory::Access;

    use super::*;
    use crate::dma::tests::HostMemory;

    #[test]
    fn what_was_written_is_read_and_the_rest_is_zeros() {
        let host = HostMemory::new(0x10000, 4, 0xaa);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut store = Store::Ram(Vec::new());
        let at = |iova, len| [Run { iova: Some(iova), len }];
        // Across the joint of two chunks.
        store.write((1 << 20) - 512, &dma, &at(0x10000, 1024), false).unwrap();
        store.read((1 << 20) - 1024, &dma, &at(0x11000, 2048)).unwrap();
        let read = host.read(0x1000, 2048);
        assert!(read[..512].iter().chain(&read[1536..]).all(|byte| *byte == 0));
        assert!(read[512..1536].iter().all(|byte| *byte == 0xaa));
        assert_eq!(store.compare((1 << 20) - 512, &dma, &at(0x10000, 1024)), Ok(true));
        assert_eq!(store.compare(1 << 20, &dma, &at(0x10000, 1024)), Ok(false));
        assert_eq!(store.compare(1 << 30, &dma, &at(0x11000, 512)), Ok(true));
        assert_eq!(store.read(0, &dma, &at(0x14000, 1)), Err(Status::DATA_TRANSFER_ERROR));
    }

    #[test]
    fn zeroed_chunks_are_given_back() {
        let host = HostMemory::new(0x10000, 1, 0xaa);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut store = Store::Ram(Vec::new());
        for chunk in 0..3 {
            store.write(chunk << 20, &dma, &[Run { iova: Some(0x10000), len: 4096 }], false).unwrap();
        }
        store.zero(2048, (2 << 20) - 2048 + 512).unwrap();
        let Store::Ram(chunks) = &store else { unreachable!() };
        assert!(chunks[0].is_some() && chunks[1].is_none());
        assert_eq!(chunks[0].as_ref().unwrap()[2047..2049], [0xaa, 0]);
        assert_eq!(chunks[2].as_ref().unwrap()[511..513], [0, 0xaa]);
        store.zero(0, u64::MAX).unwrap();
        store.zero(u64::MAX, u64::MAX).unwrap();
    }
}
