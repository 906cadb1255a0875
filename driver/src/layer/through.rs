//! Layers that neither split nor merge: the same container goes through, and they look at it on the way
//! down and on the way up.

use super::{Cx, Geometry, Handle, Layer};
use crate::poller::Plain;

/// What a pass-through layer does with a request. Each of its methods has the request for itself.
pub trait Filter {
    /// What it looks like from above, on something that looks like `below`.
    fn geometry(&self, below: Geometry) -> Geometry {
        below
    }

    /// Whether it keeps a word with each request.
    const KEEPS_FRAME: bool = false;

    /// What it and the layers below it do, if that is nothing but to look at requests and to move them; given what
    /// the layers below do, which is asked for only by one that does no more itself.
    #[doc(hidden)]
    fn plain(&mut self, _below: impl FnOnce() -> Option<Plain>) -> Option<Plain> {
        None
    }

    /// On the way down. `frame` is the number of its word.
    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize);

    /// On the way up.
    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, frame: usize);
}

/// A filter above another layer.
#[derive(Debug)]
pub struct Through<F, B> {
    filter: F,
    below: B,
    frame: usize,
}

impl<F: Filter, B: Layer> Through<F, B> {
    /// Puts a filter above a layer.
    pub fn over(filter: F, below: B) -> Through<F, B> {
        let frame = below.frames();
        Through { filter, below, frame }
    }

    /// The filter, to look at what it has found.
    pub fn filter(&self) -> &F {
        &self.filter
    }

    /// The layer below.
    pub fn below(&self) -> &B {
        &self.below
    }

    #[inline(always)]
    fn up(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        self.filter.up(cx, &io, self.frame);
        Some(io)
    }
}

impl<F: Filter, B: Layer> Layer for Through<F, B> {
    fn plain(&mut self) -> Option<Plain> {
        self.filter.plain(|| self.below.plain())
    }

    fn geometry(&self) -> Geometry {
        self.filter.geometry(self.below.geometry())
    }

    fn frames(&self) -> usize {
        self.frame + usize::from(F::KEEPS_FRAME)
    }

    fn children(&self) -> u32 {
        self.below.children()
    }

    fn orphans(&self) -> u32 {
        self.below.orphans()
    }

    #[inline(always)]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        self.filter.down(cx, &io, self.frame);
        let io = self.below.submit(cx, io)?;
        self.up(cx, io)
    }

    #[inline(always)]
    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let io = self.below.complete(cx, io)?;
        self.up(cx, io)
    }

    #[inline]
    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        let io = self.below.poll(cx)?;
        self.up(cx, io)
    }
}
