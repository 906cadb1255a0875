//! Where events live: nodes, and edges from each to the events above it.
//!
//! Knows what is in use and what is above what; must not know how an event is decided.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

use super::{Event, Verdict};
use crate::request::NodeId;

const NONE: u32 = u32::MAX;

/// What is known of an event, and what decides it.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Node {
    /// That of the event's handle; of a vacant node, that of the next.
    generation: NonZeroU32,
    /// Successes that are missing to success.
    pub(super) to_succeed: u32,
    /// Failures that are missing to failure.
    pub(super) to_fail: u32,
    /// Children that are still to settle; 1 in a leaf that is.
    pub(super) unsettled: u32,
    pub(super) verdict: Option<Verdict>,
    /// The first edge up.
    pub(super) above: Edge,
    /// Bytes that leaves below moved.
    pub(super) bytes: u64,
    /// Leaves below that failed.
    pub(super) failed: u32,
    /// What a leaf stands for.
    pub(super) request: NodeId,
    /// The owner's number for it.
    pub(super) token: u64,
    /// The owner wants to be told of its moments.
    pub(super) notify: bool,
    /// The owner has not released it.
    pub(super) held: bool,
    pub(super) leaf: bool,
    /// It counts requests, and more may come.
    pub(super) open: bool,
}

/// The completion of a leaf touches two cache lines of nodes: its own and that of the event above it.
const _: () = assert!(size_of::<Node>() == 64);

impl Node {
    pub(super) fn leaf(request: NodeId) -> Node {
        Node { request, leaf: true, ..Node::compound(1, 1) }
    }

    /// Succeeds when `wanted` of `children` did.
    pub(super) fn compound(wanted: u32, children: u32) -> Node {
        Node {
            generation: NonZeroU32::MIN,
            to_succeed: wanted,
            to_fail: children.saturating_sub(wanted) + 1,
            unsettled: children,
            verdict: None,
            above: Edge::NONE,
            bytes: 0,
            failed: 0,
            request: NodeId::NONE,
            token: 0,
            notify: false,
            held: true,
            leaf: false,
            open: false,
        }
    }

    /// Succeeds when it is closed, which counts as if it were a child, and all did that came before.
    pub(super) fn open() -> Node {
        Node { open: true, ..Node::compound(1, 1) }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.unsettled == 0
    }
}

/// An edge to an event above, and where the next one is. The first edge of a node is in the node
/// itself, since few have more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    parent: u32,
    next: u32,
}

impl Edge {
    pub(super) const NONE: Edge = Edge { parent: NONE, next: NONE };

    /// The event that it leads to.
    #[inline]
    pub(super) fn parent(self) -> Option<u32> {
        (self.parent != NONE).then_some(self.parent)
    }

    /// Whether there is none after it.
    #[inline]
    pub(super) fn is_last(self) -> bool {
        self.next == NONE
    }
}

/// Nodes and edges. Both are used again, so that it grows only while there are more than ever before.
#[derive(Debug, Default)]
pub(super) struct Arena {
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    edges: Vec<Edge>,
    vacant_edges: Vec<u32>,
}

impl Arena {
    #[inline]
    pub(super) fn insert(&mut self, node: Node) -> Event {
        let index = self.vacant.pop().unwrap_or_else(|| self.grow());
        let place = &mut self[index];
        let generation = place.generation;
        *place = Node { generation, ..node };
        Event { index, generation }
    }

    /// A vacant node that was not there before.
    #[cold]
    fn grow(&mut self) -> u32 {
        let index = self.nodes.len() as u32;
        assert!(index != NONE, "there is no memory for so many events");
        self.nodes.push(Node::leaf(NodeId::NONE));
        index
    }

    /// Makes a node vacant; no handle names it any more.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) {
        let generation = &mut self[index].generation;
        // A handle of 2^32 generations ago is beyond what a check can help.
        *generation = generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.vacant.push(index);
    }

    /// The node that a handle names, released or not.
    #[inline]
    pub(super) fn get(&self, event: Event) -> Option<&Node> {
        self.nodes.get(event.index as usize).filter(|node| node.generation == event.generation)
    }

    /// The node that a handle names, released or not.
    #[inline]
    pub(super) fn get_mut(&mut self, event: Event) -> Option<&mut Node> {
        self.nodes.get_mut(event.index as usize).filter(|node| node.generation == event.generation)
    }

    /// The handle to a node.
    pub(super) fn event(&self, index: u32) -> Event {
        Event { index, generation: self[index].generation }
    }

    /// Puts an event below another.
    #[inline]
    pub(super) fn link(&mut self, child: u32, parent: u32) {
        let above = &mut self.nodes[child as usize].above;
        if above.parent == NONE {
            above.parent = parent;
            return;
        }
        // It goes in after the first.
        let edge = Edge { parent, next: above.next };
        above.next = match self.vacant_edges.pop() {
            Some(at) => {
                self.edges[at as usize] = edge;
                at
            }
            None => {
                assert!(self.edges.len() < NONE as usize, "there is no memory for so many edges");
                self.edges.push(edge);
                self.edges.len() as u32 - 1
            }
        };
    }

    /// The edge after this one.
    #[inline]
    pub(super) fn next(&self, edge: Edge) -> Edge {
        if edge.is_last() { Edge::NONE } else { self.edges[edge.next as usize] }
    }

    /// Takes an event away from all above it.
    pub(super) fn unlink(&mut self, child: u32) {
        let mut at = std::mem::replace(&mut self[child].above, Edge::NONE).next;
        while at != NONE {
            self.vacant_edges.push(at);
            at = self.edges[at as usize].next;
        }
    }

    /// All edges, as parent and child, in this order.
    pub(super) fn downward(&self) -> Vec<(u32, u32)> {
        let mut all = Vec::new();
        for (child, node) in self.nodes.iter().enumerate() {
            let mut edge = node.above;
            while let Some(parent) = edge.parent() {
                all.push((parent, child as u32));
                edge = self.next(edge);
            }
        }
        all.sort_unstable();
        all
    }

    /// Nodes and edges in use.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.nodes.len() - self.vacant.len(), self.edges.len() - self.vacant_edges.len())
    }

    /// Of how much there is room.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 4] {
        [self.nodes.capacity(), self.vacant.capacity(), self.edges.capacity(), self.vacant_edges.capacity()]
    }
}

impl Index<u32> for Arena {
    type Output = Node;

    #[inline]
    fn index(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }
}

impl IndexMut<u32> for Arena {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }
}
