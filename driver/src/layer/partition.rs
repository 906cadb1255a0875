//! A part of a device that looks like a device.

use std::ops::Range;

use super::{Cx, Filter, Geometry, Handle, Layer, Through};
use crate::poller::Plain;
use crate::{Error, Result};

/// A part of what is below: its block 0 is block `start` there.
pub type Partition<B> = Through<Part, B>;

/// What a [`Partition`] does.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    start: u64,
    blocks: u64,
}

impl<B: Layer> Through<Part, B> {
    /// The blocks of a range. It lies within what is below, and is not empty.
    pub fn new(below: B, blocks: Range<u64>) -> Result<Partition<B>> {
        let there = below.geometry().blocks;
        if blocks.is_empty() || blocks.end > there {
            let Range { start, end } = blocks;
            let what =
                format!("a partition of blocks {start} to {end} is not within the {there} blocks below");
            return Err(Error::InvalidInput(what));
        }
        Ok(Through::over(Part { start: blocks.start, blocks: blocks.end - blocks.start }, below))
    }
}

impl Filter for Part {
    fn geometry(&self, below: Geometry) -> Geometry {
        Geometry { blocks: self.blocks, ..below }
    }

    fn plain(&mut self, below: impl FnOnce() -> Option<Plain>) -> Option<Plain> {
        Some(below()?.shifted(self.start))
    }

    #[inline(always)]
    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, _: usize) {
        cx.shift_lba(io, self.start);
    }

    #[inline(always)]
    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, _: usize) {
        cx.shift_lba(io, self.start.wrapping_neg());
    }
}
