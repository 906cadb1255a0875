//! Nodes in a row.
//!
//! Knows the order; must not know what the nodes wait for.

use super::{NodeId, Tree};

/// Nodes in a row, linked through themselves. A node is in one line at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    first: NodeId,
    last: NodeId,
}

impl Line {
    pub(crate) const EMPTY: Line = Line { first: NodeId::NONE, last: NodeId::NONE };

    pub(crate) fn first(&self) -> NodeId {
        self.first
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Whether there is one and no other.
    pub(crate) fn is_single(&self) -> bool {
        self.first == self.last
    }

    /// Takes all of another line behind this one's.
    pub(crate) fn append(&mut self, tree: &mut Tree, mut other: Line) {
        other.prepend(tree, *self);
        *self = other;
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, tree: &mut Tree, id: NodeId) {
        tree[id].next = NodeId::NONE;
        match self.last {
            NodeId::NONE => self.first = id,
            last => tree[last].next = id,
        }
        self.last = id;
    }

    #[inline(always)]
    pub(crate) fn pop(&mut self, tree: &Tree) -> Option<NodeId> {
        let id = self.first;
        if id.is_none() {
            return None;
        }
        self.first = tree[id].next;
        if self.first.is_none() {
            self.last = NodeId::NONE;
        }
        Some(id)
    }

    /// Puts another line before this one.
    pub(crate) fn prepend(&mut self, tree: &mut Tree, other: Line) {
        if other.is_empty() {
            return;
        }
        tree[other.last].next = self.first;
        *self = Line { first: other.first, last: if self.is_empty() { other.last } else { self.last } };
    }

    /// Takes linked nodes behind this line's.
    pub(crate) fn append_row(&mut self, tree: &mut Tree, first: NodeId, last: NodeId) {
        tree[last].next = NodeId::NONE;
        self.append(tree, Line { first, last });
    }

    /// Takes nodes out in front, up to one that is not the last: they stay linked to each other.
    #[inline(always)]
    pub(crate) fn pop_until(&mut self, next: NodeId) {
        self.first = next;
        if next.is_none() {
            self.last = NodeId::NONE;
        }
    }

    /// Takes a node out, wherever it stands.
    pub(crate) fn remove(&mut self, tree: &mut Tree, id: NodeId) {
        if self.first == id {
            self.pop(tree);
            return;
        }
        let mut others = Line::EMPTY;
        while let Some(first) = self.pop(tree) {
            if first != id {
                others.push(tree, first);
            }
        }
        *self = others;
    }
}
