//! Neighbours that share a command, one of which the medium has a defect under: only that one may fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiovec::memory::DmaSpace;
use kiovec::{Controller, DataForm, IoContainer, Operation, Poller, QueueOptions, QueueStats, Target};

use crate::Failure;

/// Requests in the row, of two blocks each: one block alone would be atomic, and two such writes stay apart.
const REQUESTS: u64 = 16;
const BLOCKS: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

/// The defect.
pub struct Bad {
    pub nsid: u32,
    pub lba: u64,
    pub operation: Operation,
}

/// Submits the row together, and expects the one with the defect to fail, after all of them went down once
/// in one command and once each alone. What was written is read back.
pub fn run(controller: &Arc<Controller>, data: DataForm, bad: &Bad) -> Result<QueueStats, Failure> {
    let space = controller.space();
    let mut poller = Poller::new(REQUESTS as u32);
    let queue = poller.add_queue(controller, QueueOptions::default().data(data))?;
    let namespace = controller.namespace(bad.nsid)?;
    let size = namespace.block_size().ok_or("no block size")? as usize * BLOCKS as usize;
    let disk = poller.add_namespace(queue, &namespace)?;
    let first = bad.lba - REQUESTS / 2 * BLOCKS;
    poller.plug(queue);
    for i in 0..REQUESTS {
        let mut io = row(space, size, i, 0x40 + i as u8)?;
        io.set_operation(bad.operation);
        io.set_lba(first + i * BLOCKS);
        poller.submit(disk, io)?;
    }
    poller.unplug(queue);
    let guilty = (bad.lba - first) / BLOCKS;
    for (i, succeeded, _) in finish(&mut poller)? {
        if succeeded == (i == guilty) {
            return Err(format!("request {i}: succeeded: {succeeded}; the defect is in {guilty}").into());
        }
    }
    let stats = poller.stats(queue);
    let (merges, commands) = (REQUESTS - 1, 1 + REQUESTS);
    if (stats.merges, stats.commands) != (merges, commands) {
        return Err(format!("{stats:?}; expected {merges} merges and {commands} commands").into());
    }
    if bad.operation == Operation::Write {
        read_back(&mut poller, disk, space, first, size, guilty)?;
    }
    Ok(stats)
}

fn read_back(
    poller: &mut Poller,
    disk: Target,
    space: &DmaSpace,
    first: u64,
    size: usize,
    guilty: u64,
) -> Result<(), Failure> {
    for i in (0..REQUESTS).filter(|i| *i != guilty) {
        let mut io = row(space, size, i, 0)?;
        io.set_lba(first + i * BLOCKS);
        poller.submit(disk, io)?;
    }
    for (i, succeeded, bytes) in finish(poller)? {
        if !succeeded || bytes.iter().any(|byte| *byte != 0x40 + i as u8) {
            return Err(format!("request {i}: not what was written").into());
        }
    }
    Ok(())
}

/// Memory of its own page, so that neighbours join on pages only where PRPs can say so.
fn row(space: &DmaSpace, size: usize, tag: u64, byte: u8) -> Result<IoContainer, Failure> {
    let mut memory = space.allocate(size)?;
    memory.fill(byte);
    Ok(IoContainer::read(0, memory).tag(tag))
}

/// Waits for all: tag, success and contents of each.
fn finish(poller: &mut Poller) -> Result<Vec<(u64, bool, Vec<u8>)>, Failure> {
    let end = Instant::now() + PATIENCE;
    let mut done = Vec::new();
    while poller.outstanding() > 0 {
        if Instant::now() > end {
            return Err("no completion for a minute".into());
        }
        poller.poll(|finished| {
            let succeeded = finished.result().is_ok();
            let io = finished.take();
            done.push((io.get_tag(), succeeded, io.into_memory().to_vec()));
        });
    }
    Ok(done)
}
