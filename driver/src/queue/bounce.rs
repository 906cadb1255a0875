//! Bounce buffers: for blocks that lie in memory such that no data pointer can say where, as a block
//! that straddles a joint off a page boundary does with PRPs.
//!
//! Knows buffers, and whose data is in them; must not know why a block needs one.

use super::runs::Run;
use crate::memory::{MemoryChain, Position};
use crate::request::{NodeId, Operation, Tree};

/// The buffers of a queue, all of one size, contiguous and on pages of their own.
#[derive(Debug)]
pub(super) struct Bounce {
    buffers: Vec<Buffer>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Buffer {
    memory: MemoryChain,
    /// Where in its node's chain the data belongs.
    at: Position,
}

impl Bounce {
    pub(super) fn new(memory: Vec<MemoryChain>) -> Bounce {
        assert!(!memory.is_empty() && memory.iter().all(|chain| chain.segments().len() == 1));
        let free = (0..memory.len() as u16).collect();
        let buffers = memory.into_iter().map(|memory| Buffer { memory, at: Position::default() }).collect();
        Bounce { buffers, free }
    }

    /// Bytes of a buffer.
    pub(super) fn capacity(&self) -> u64 {
        self.buffers[0].memory.len() as u64
    }

    /// Takes a buffer for `len` bytes of a chain, with the data in it if it is for a write.
    pub(super) fn begin(
        &mut self,
        chain: &MemoryChain,
        at: Position,
        len: u64,
        write: bool,
    ) -> Option<(u16, Run)> {
        let index = self.free.pop()?;
        let buffer = &mut self.buffers[usize::from(index)];
        buffer.at = at;
        let iova = buffer.memory.segments()[0].iova();
        if write && let Some(data) = buffer.memory.data_mut().next() {
            chain.copy_range_out(at, &mut data[..len as usize]);
        }
        Some((index, Run { iova, len }))
    }

    /// Where a buffer is, of which `len` bytes are used.
    pub(super) fn run(&self, index: u16, len: u64) -> Run {
        Run { iova: self.buffers[usize::from(index)].memory.segments()[0].iova(), len }
    }

    /// The command is over: what was read goes where it belongs, and the buffer is free again.
    pub(super) fn finish(&mut self, tree: &Tree, id: NodeId, index: u16, len: usize, success: bool) {
        let buffer = &self.buffers[usize::from(index)];
        if success && tree[id].io.operation() == Operation::Read {
            let (chain, _) = tree.memory(id);
            chain.copy_range_in(buffer.at, &buffer.memory.segments()[0].as_slice()[..len]);
        }
        self.free.push(index);
    }
}
