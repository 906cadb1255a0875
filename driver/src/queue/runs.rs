//! The contiguous runs of a part of a chain: what both PRPs and SGLs are made from.

use crate::memory::{MemoryChain, Position, Segment};

/// Contiguous bytes at an IOVA, 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) iova: u64,
    pub(super) len: u64,
}

/// What each segment has of `len` bytes of a chain, from a place on.
#[derive(Debug, Clone)]
pub(super) struct Parts<'a> {
    segments: &'a [Segment],
    skip: u64,
    left: u64,
}

impl<'a> Parts<'a> {
    pub(super) const NONE: Parts<'static> = Parts { segments: &[], skip: 0, left: 0 };

    #[inline]
    pub(super) fn new(chain: &'a MemoryChain, at: Position, len: u64) -> Parts<'a> {
        let segments = chain.segments().get(at.segment..).unwrap_or_default();
        Parts { segments, skip: at.offset, left: len }
    }
}

impl Iterator for Parts<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
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

/// Runs of which neighbours that are neighbours in IOVA have become one.
#[derive(Debug, Clone)]
pub(super) struct Runs<I> {
    parts: I,
    ahead: Option<Run>,
}

impl<I: Iterator<Item = Run>> Runs<I> {
    #[inline]
    pub(super) fn new(mut parts: I) -> Runs<I> {
        let ahead = parts.next();
        Runs { parts, ahead }
    }
}

impl<I: Iterator<Item = Run>> Iterator for Runs<I> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        let mut run = self.ahead.take()?;
        for next in self.parts.by_ref() {
            if next.iova != run.iova + run.len {
                self.ahead = Some(next);
                break;
            }
            run.len += next.len;
        }
        Some(run)
    }
}
