//! Layers side by side, alike enough that a request can go to any of them.
//!
//! Knows what they have in common; must not know which of them a request goes to.

use std::ops::{Deref, DerefMut};

use super::{Cx, Geometry, Handle, Layer};
use crate::{Error, Result};

/// The legs of a layer that has several below it. They do not change.
#[derive(Debug)]
pub(super) struct Legs<B> {
    legs: Vec<B>,
    /// What they have in common; as large as the smallest.
    pub(super) geometry: Geometry,
    /// The number of the first word that is not theirs.
    pub(super) frame: usize,
}

impl<B: Layer> Legs<B> {
    /// From 2 to `most` legs of a `whole`, with blocks of one size and memory from one place.
    pub(super) fn new(whole: &str, legs: Vec<B>, most: usize) -> Result<Legs<B>> {
        if !(2..=most).contains(&legs.len()) {
            let what = format!("a {whole} has 2 to {most} legs, not {}", legs.len());
            return Err(Error::InvalidInput(what));
        }
        let mut common = legs[0].geometry();
        for (number, leg) in legs.iter().enumerate().skip(1) {
            let Geometry { block_shift, blocks, write_zeroes, deallocate, .. } = leg.geometry();
            if block_shift != common.block_shift {
                return Err(Error::InvalidInput(format!(
                    "leg {number} of a {whole} has blocks of {} bytes, leg 0 of {}; format them alike",
                    1u64 << block_shift,
                    common.block_size()
                )));
            }
            if !leg.geometry().shares_space(&common) {
                return Err(Error::InvalidInput(format!(
                    "leg {number} of a {whole} takes other memory than leg 0; open their controllers with one DmaSpace"
                )));
            }
            common.blocks = common.blocks.min(blocks);
            common.write_zeroes &= write_zeroes;
            common.deallocate &= deallocate;
        }
        let frame = legs.iter().map(Layer::frames).max().unwrap_or(0);
        Ok(Legs { legs, geometry: common, frame })
    }

    /// Children that a leg makes of one request, at most.
    pub(super) fn children(&self) -> u32 {
        self.legs.iter().map(Layer::children).max().unwrap_or(0)
    }

    /// What any leg has finished by other means than a completion.
    pub(super) fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        self.legs.iter_mut().find_map(|leg| leg.poll(cx))
    }

    /// Orphans of all legs.
    pub(super) fn orphans(&self) -> u32 {
        self.legs.iter().map(Layer::orphans).sum()
    }
}

impl<B> Deref for Legs<B> {
    type Target = [B];

    fn deref(&self) -> &[B] {
        &self.legs
    }
}

impl<B> DerefMut for Legs<B> {
    fn deref_mut(&mut self) -> &mut [B] {
        &mut self.legs
    }
}
