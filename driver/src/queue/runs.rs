//! The contiguous runs of a part of a chain: what both PRPs and SGLs are made from.

use crate::memory::{MemoryChain, Segment};

/// Contiguous bytes at an IOVA, 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) iova: u64,
    pub(super) len: u64,
}

/// The runs of `len` bytes of a chain from byte `skip` on. Neighbours in a chain that are
/// neighbours in IOVA are one run.
#[derive(Debug, Clone)]
pub(super) struct Runs<'a> {
    segments: &'a [Segment],
    skip: u64,
    left: u64,
}

impl<'a> Runs<'a> {
    pub(super) fn new(chain: &'a MemoryChain, skip: u64, len: u64) -> Runs<'a> {
        let mut segments = chain.segments();
        let mut skip = skip;
        while let [first, rest @ ..] = segments
            && skip >= first.len() as u64
        {
            skip -= first.len() as u64;
            segments = rest;
        }
        Runs { segments, skip, left: len }
    }

    fn segment(&mut self) -> Option<Run> {
        let [first, rest @ ..] = self.segments else { return None };
        if self.left == 0 {
            return None;
        }
        let run = Run { iova: first.iova() + self.skip, len: self.left.min(first.len() as u64 - self.skip) };
        (self.segments, self.skip) = (rest, 0);
        self.left -= run.len;
        Some(run)
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut run = self.segment()?;
        while let [next, ..] = self.segments
            && next.iova() == run.iova + run.len
            && let Some(more) = self.segment()
        {
            run.len += more.len;
        }
        Some(run)
    }
}
