//! What a writer that may be killed at any time has submitted and what was acknowledged, in a file that outlives it.
//!
//! The medium's first [`UNITS`] units are written again and again, each time with the pattern of another generation. The
//! writer notes a generation before it submits it and after it was acknowledged; whoever reads the medium afterwards
//! knows which generations each block may hold: none that is older than the last acknowledged one. Knows generations;
//! must not know who writes, nor how.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::pattern;

/// Units that are written.
pub const UNITS: u64 = 256;
/// Bytes of a unit: several blocks of either size, so that one that is written by halves shows.
pub const UNIT_BYTES: u64 = 16 << 10;

/// Units that a writer has in flight at most.
pub const IN_FLIGHT: u64 = 32;

const ENTRY: u64 = 16;
/// Patterns of generations are apart from those of the kernel.
const SEEDS: u64 = 0x67_656e_0000_0000;

/// A unit's generations; 0 is whatever was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The last one that was submitted.
    pub submitted: u64,
    /// The last one that was acknowledged.
    pub acknowledged: u64,
}

/// The file. What is written to it is there for others at once, whatever becomes of the writer.
#[derive(Debug)]
pub struct Ledger {
    file: File,
}

impl Ledger {
    /// Opens the file, or makes one in which nothing was submitted.
    pub fn open(path: &Path) -> io::Result<Ledger> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(UNITS * ENTRY)?;
        Ok(Ledger { file })
    }

    /// A unit's generations.
    pub fn entry(&self, unit: u64) -> io::Result<Entry> {
        Ok(Entry { submitted: self.number(unit * ENTRY)?, acknowledged: self.number(unit * ENTRY + 8)? })
    }

    fn number(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Before a generation is submitted. Only after the one before was acknowledged, or its writer is no more.
    pub fn submit(&self, unit: u64, generation: u64) -> io::Result<()> {
        self.file.write_all_at(&generation.to_le_bytes(), unit * ENTRY)
    }

    /// After it was acknowledged.
    pub fn acknowledge(&self, unit: u64, generation: u64) -> io::Result<()> {
        self.file.write_all_at(&generation.to_le_bytes(), unit * ENTRY + 8)
    }

    /// The sum of all acknowledged generations: more of it is progress.
    pub fn acknowledged(&self) -> io::Result<u64> {
        (0..UNITS).map(|unit| Ok(self.entry(unit)?.acknowledged)).sum()
    }

    /// Units that were submitted and not acknowledged.
    pub fn in_flight(&self) -> io::Result<u64> {
        let open = |unit| self.entry(unit).map(|entry| u64::from(entry.submitted != entry.acknowledged));
        (0..UNITS).map(open).sum()
    }

    /// Whether what was read of a unit is what it may hold, block by block.
    pub fn check(&self, unit: u64, data: &[u8], block: usize) -> Result<(), String> {
        let entry = self.entry(unit).map_err(|e| format!("the ledger: {e}"))?;
        let blocks = (unit * UNIT_BYTES..).step_by(block).zip(data.chunks_exact(block));
        for (offset, data) in blocks {
            if !entry.allows(offset, data) {
                return Err(format!("unit {unit}, byte {offset} of the namespace: not of {entry:?}"));
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Whether a block may hold this.
    fn allows(&self, offset: u64, data: &[u8]) -> bool {
        let mut candidates = self.acknowledged.max(1)..=self.submitted;
        // What was there before anything was acknowledged is anything.
        self.acknowledged == 0 || candidates.any(|one| pattern::mismatch(seed(one), offset, data).is_none())
    }
}

/// The seed of a generation's pattern.
pub fn seed(generation: u64) -> u64 {
    SEEDS + generation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_ledger(name: &str, then: impl FnOnce(&Ledger)) {
        let path = std::env::temp_dir().join(format!("kiovec-ledger-{name}-{}", std::process::id()));
        then(&Ledger::open(&path).expect("a file"));
        std::fs::remove_file(&path).expect("removed");
    }

    fn unit(number: u64, generation: u64) -> Vec<u8> {
        let mut data = vec![0; UNIT_BYTES as usize];
        pattern::fill(seed(generation), number * UNIT_BYTES, &mut data);
        data
    }

    #[test]
    fn what_was_acknowledged_has_to_be_there() {
        with_ledger("acknowledged", |ledger| {
            ledger.check(7, &unit(9, 9), 512).expect("nothing was acknowledged yet");
            ledger.submit(7, 1).expect("noted");
            ledger.acknowledge(7, 1).expect("noted");
            ledger.check(7, &unit(7, 1), 512).expect("as acknowledged");
            assert!(ledger.check(7, &unit(8, 1), 512).is_err(), "another unit's");
            assert!(ledger.check(7, &unit(7, 2), 512).is_err(), "never submitted");
            assert_eq!(ledger.acknowledged().expect("read"), 1);
        });
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_in_part() {
        with_ledger("submitted", |ledger| {
            ledger.submit(3, 5).expect("noted");
            ledger.acknowledge(3, 4).expect("noted");
            let (old, new) = (unit(3, 4), unit(3, 5));
            ledger.check(3, &[&new[..4096], &old[4096..]].concat(), 4096).expect("one block is the new one");
            assert!(ledger.check(3, &[&new[..512], &old[512..]].concat(), 4096).is_err(), "half a block");
            assert_eq!(ledger.in_flight().expect("read"), 1);
            assert!(ledger.check(3, &unit(3, 3), 512).is_err(), "an acknowledged write is lost");
        });
    }
}
