//! The request tree of a poller: a bounded slab of nodes. A node is a container and what has
//! become of it so far.
//!
//! Pure logic. Knows cursors and counts; must not know queues, slots or commands.

use std::ops::{Index, IndexMut};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Event, IoContainer};
use crate::spec::Status;

/// Names a node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeId(u32);

impl NodeId {
    /// No node: what a vacant slot or the end of a list refers to.
    pub(crate) const NONE: NodeId = NodeId(u32::MAX);

    pub(crate) fn is_none(self) -> bool {
        self == NodeId::NONE
    }
}

/// The words of a submission queue entry that stay the same from one submission to the next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    /// Dwords 0 and 1: opcode, flags, NSID; the CID is added for each submission.
    pub(crate) head: u64,
    /// PRP entries or an SGL descriptor.
    pub(crate) dptr: [u64; 2],
    /// Dwords 12 and 13.
    pub(crate) tail: u64,
}

/// A container in the tree.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) io: IoContainer,
    /// The wire form of the container, where one command carries all of it and nothing but the LBA
    /// changed since. It belongs to the node, not to the container: it names the node's slot, queue
    /// and namespace.
    pub(crate) wire: Option<Wire>,
    /// The event that its completion is, where it is one: then the container stays here until it is
    /// claimed.
    pub(crate) event: Option<Event>,
    /// Which of the queue's namespaces it goes to.
    pub(crate) namespace: u16,
    /// Blocks that commands were made for, from the container's first block on.
    pub(crate) cursor: u64,
    /// Commands in flight.
    pub(crate) in_flight: u32,
    /// The failure with the lowest LBA.
    pub(crate) failure: Option<Failure>,
    /// The next node that waits for the same queue.
    pub(crate) next: NodeId,
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status} at LBA {lba}")]
pub struct Failure {
    /// The first block of the piece that failed; of several, the lowest.
    pub lba: u64,
    /// What the controller said of it.
    pub status: Status,
}

impl Node {
    /// Counts a piece that completed. `first` is its offset in blocks.
    pub(crate) fn settle(&mut self, first: u64, status: Status) {
        assert!(self.in_flight > 0, "a piece completed that was not in flight");
        self.in_flight -= 1;
        if !status.is_success() {
            let lba = self.io.lba() + first;
            if self.failure.is_none_or(|earlier| lba < earlier.lba) {
                self.failure = Some(Failure { lba, status });
            }
            // The rest is pointless: it is not issued.
            self.cursor = self.io.extent();
        }
    }

    /// Blocks for which there is no command yet.
    pub(crate) fn unissued(&self) -> u64 {
        self.io.extent() - self.cursor
    }

    /// Ready to be issued from its beginning, once more.
    pub(crate) fn rewind(&mut self) {
        self.wire = None;
        self.cursor = 0;
        self.failure = None;
        self.next = NodeId::NONE;
    }
}

/// All nodes of a poller. Allocated once.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Identifies the tree, and so its poller, among all of this process.
    id: u32,
    nodes: Box<[Node]>,
    vacant: Vec<NodeId>,
}

impl Tree {
    /// A tree with room for `capacity` nodes.
    pub(crate) fn new(capacity: u32) -> Tree {
        let vacant = || Node {
            io: IoContainer::default(),
            wire: None,
            event: None,
            namespace: 0,
            cursor: 0,
            in_flight: 0,
            failure: None,
            next: NodeId::NONE,
        };
        static IDS: AtomicU32 = AtomicU32::new(1);
        Tree {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            nodes: std::iter::repeat_with(vacant).take(capacity as usize).collect(),
            vacant: (0..capacity).rev().map(NodeId).collect(),
        }
    }

    /// Puts a container in, or gives it back when the tree is full.
    #[allow(clippy::result_large_err)]
    pub(crate) fn insert(&mut self, io: IoContainer, namespace: u16) -> Result<NodeId, IoContainer> {
        let Some(id) = self.vacant.pop() else { return Err(io) };
        let node = &mut self[id];
        node.io = io;
        node.namespace = namespace;
        node.event = None;
        node.rewind();
        Ok(id)
    }

    /// Takes a container out.
    pub(crate) fn remove(&mut self, id: NodeId) -> IoContainer {
        let node = &mut self[id];
        assert!(node.in_flight == 0, "a node left the tree with commands in flight");
        let io = std::mem::take(&mut node.io);
        self.vacant.push(id);
        io
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Nodes that are in the tree.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }
}

impl Index<NodeId> for Tree {
    type Output = Node;

    #[inline]
    fn index(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }
}

impl IndexMut<NodeId> for Tree {
    #[inline]
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }
}
