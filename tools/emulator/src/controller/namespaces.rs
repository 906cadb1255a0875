//! Which namespaces are attached, and how large each of them is now.
//!
//! Knows sizes and attachment; must not know what is stored, nor who is told of a change.

use crate::config::Config;

/// All namespaces that exist, by NSID from 1 on.
#[derive(Debug)]
pub(crate) struct Namespaces {
    all: Vec<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    blocks: u64,
    attached: bool,
}

impl Namespaces {
    pub(crate) fn new(config: &Config) -> Namespaces {
        let state = State { blocks: config.blocks(), attached: true };
        Namespaces { all: vec![state; config.namespaces as usize] }
    }

    fn index(nsid: u32) -> usize {
        nsid.wrapping_sub(1) as usize
    }

    /// The number and the size in blocks of an attached namespace.
    #[inline(always)]
    pub(crate) fn active(&self, nsid: u32) -> Option<(usize, u64)> {
        let index = Namespaces::index(nsid);
        let state = self.all.get(index).filter(|state| state.attached)?;
        Some((index, state.blocks))
    }

    /// The NSIDs of attached namespaces above one.
    pub(crate) fn active_after(&self, nsid: u32) -> impl Iterator<Item = u32> + '_ {
        (nsid.saturating_add(1)..=self.all.len() as u32).filter(|nsid| self.active(*nsid).is_some())
    }

    /// Gives a namespace another size, and returns the one it had. `None` if there is none, or it has that
    /// size.
    pub(crate) fn resize(&mut self, nsid: u32, blocks: u64) -> Option<u64> {
        let state = self.all.get_mut(Namespaces::index(nsid)).filter(|state| state.blocks != blocks)?;
        Some(std::mem::replace(&mut state.blocks, blocks))
    }

    /// Attaches or detaches a namespace. False if there is none, or it is so already.
    pub(crate) fn attach(&mut self, nsid: u32, attached: bool) -> bool {
        let state = self.all.get_mut(Namespaces::index(nsid));
        state.is_some_and(|state| std::mem::replace(&mut state.attached, attached) != attached)
    }
}
