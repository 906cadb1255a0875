//! The bottom of every stack: a namespace, through a queue pair.

use super::{Cx, Geometry, Handle, Layer};
use crate::poller::{Plain, Poller, Target};
use crate::{Error, Result};

/// A namespace as a layer.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    target: Target,
    geometry: Geometry,
}

impl Disk {
    /// A target of a poller, for a stack of the same poller. Refused for a target that is a stack itself.
    pub fn new<L: Layer>(poller: &Poller<L>, target: Target) -> Result<Disk> {
        match poller.geometry(target) {
            Some(geometry) if poller.layer(target).is_none() => Ok(Disk { target, geometry }),
            _ => Err(Error::InvalidInput("a stack stands on namespaces of its own poller".into())),
        }
    }

    /// Where it sends requests.
    pub fn target(&self) -> Target {
        self.target
    }
}

impl Layer for Disk {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn plain(&mut self) -> Option<Plain> {
        Some(Plain::to(self.target))
    }

    fn frames(&self) -> usize {
        0
    }

    fn children(&self) -> u32 {
        0
    }

    fn orphans(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        cx.submit(self.target, io);
        None
    }

    #[inline(always)]
    fn complete(&mut self, _: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        Some(io)
    }

    fn poll(&mut self, _: &mut Cx<'_>) -> Option<Handle> {
        None
    }
}
