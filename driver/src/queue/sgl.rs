//! Scatter Gather Lists (Base 2.0, section 4.1.2): what a piece of a chain looks like to a
//! controller that takes SGLs.
//!
//! Knows addresses and lengths; must not know commands.

use super::runs::Run;
use crate::spec::Descriptor;

/// The data pointer of a contiguous run.
#[inline(always)]
pub(super) fn contiguous(run: Run) -> [u64; 2] {
    Descriptor::data_block(run.iova, run.len as u32).into()
}

/// The number of bytes, from the start of `runs` on, that `descriptors` descriptors can express, where
/// addresses and lengths are multiples of `granularity`. The last run may be odd: a command ends with
/// a block, before its end.
pub(super) fn expressible(runs: impl Iterator<Item = Run>, granularity: u64, descriptors: usize) -> u64 {
    let mut bytes = 0;
    for run in runs.take(descriptors) {
        if run.iova % granularity != 0 {
            break;
        }
        bytes += run.len;
        if run.len % granularity != 0 {
            break;
        }
    }
    bytes
}

/// The data pointer of `runs`, with the descriptors written through `store` (index of the 64-bit
/// word, value) to memory at `list`.
pub(super) fn scattered(
    runs: impl Iterator<Item = Run>,
    list: u64,
    mut store: impl FnMut(usize, u64),
) -> [u64; 2] {
    let mut descriptors = 0;
    for run in runs {
        let words: [u64; 2] = contiguous(run);
        store(2 * descriptors, words[0]);
        store(2 * descriptors + 1, words[1]);
        descriptors += 1;
    }
    Descriptor::last_segment(list, 16 * descriptors as u32).into()
}
