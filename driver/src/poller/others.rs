//! The queue pairs of a poller, of which one has its turn.
//!
//! Knows which is which; must not know what a turn is for.

use super::pair::Pair;
use crate::queue::Queue;
use crate::request::Tree;

/// All queue pairs but the one whose turn it is.
#[derive(Debug)]
pub(super) struct Others<'a> {
    before: &'a mut [Pair],
    after: &'a mut [Pair],
}

/// The queue pair whose turn it is, and the others.
#[inline(always)]
pub(super) fn split(pairs: &mut [Pair], index: usize) -> Option<(&mut Pair, Others<'_>)> {
    let (before, rest) = pairs.split_at_mut_checked(index)?;
    let (pair, after) = rest.split_first_mut()?;
    Some((pair, Others { before, after }))
}

impl Others<'_> {
    /// The index of the one whose turn it is.
    #[inline(always)]
    pub(super) fn here(&self) -> u16 {
        self.before.len() as u16
    }

    /// The same, for a while.
    #[inline(always)]
    pub(super) fn again(&mut self) -> Others<'_> {
        Others { before: self.before, after: self.after }
    }

    /// A queue whose turn it is not: it has one soon.
    #[inline(never)]
    pub(super) fn queue(&mut self, tree: &mut Tree, index: u16) -> &mut Queue {
        tree.attention.add_touched();
        let index = usize::from(index);
        let pair = match index.checked_sub(self.before.len()) {
            None => &mut self.before[index],
            Some(0) => panic!("the queue whose turn it is is none of the others"),
            Some(behind) => &mut self.after[behind - 1],
        };
        &mut pair.queue
    }
}
