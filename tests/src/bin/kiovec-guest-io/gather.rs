//! Many small writes at a time, where those that are submitted in one go may share commands: neighbours do, and
//! what lies apart is not held up by it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiovec::{Controller, DataForm, IoContainer, Poller, QueueOptions};
use kiovec_tests::pattern::{self, Extent};

use crate::Failure;

/// In flight.
const DEPTH: usize = 256;
/// Bytes of a request.
const BYTES: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(120);

/// The order of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Sequential,
    /// None next to the one before it.
    Scattered,
}

/// What it took.
#[derive(Debug)]
pub struct Taken {
    pub requests: u64,
    pub commands: u64,
    pub polls: u64,
}

/// Writes an extent, which is whole requests.
pub fn run(
    controller: &Arc<Controller>,
    data: DataForm,
    extent: &Extent,
    order: Order,
) -> Result<Taken, Failure> {
    let space = controller.space();
    let mut poller = Poller::new(DEPTH as u32);
    let queue = poller.add_queue(controller, QueueOptions::default().depth(DEPTH).data(data))?;
    let namespace = controller.namespace(extent.nsid)?;
    let block = u64::from(namespace.block_size().ok_or("no block size")?);
    let disk = poller.add_namespace(queue, &namespace)?;
    let requests = extent.len / BYTES;
    let mut next: u64 = 0;
    let mut prepare = |io: &mut IoContainer| {
        let request = match order {
            Order::Sequential => next,
            // As far from the last one as from the first one: a step of about the golden section, and odd, while
            // the number is a power of two.
            Order::Scattered => next.wrapping_mul((requests * 5 / 8) | 1) % requests,
        };
        next += 1;
        let offset = extent.offset + request * BYTES;
        io.set_lba(offset / block);
        io.data_mut().for_each(|bytes| pattern::fill(extent.seed, offset, bytes));
    };
    if !requests.is_power_of_two() || requests < DEPTH as u64 {
        return Err(format!("{requests} requests are no power of two from {DEPTH} on").into());
    }
    poller.plug(queue);
    for _ in 0..DEPTH {
        let mut io = IoContainer::write(0, space.allocate(BYTES as usize)?);
        prepare(&mut io);
        poller.submit(disk, io)?;
    }
    poller.unplug(queue);
    let mut left = requests - DEPTH as u64;
    let end = Instant::now() + PATIENCE;
    let (mut failed, mut refused) = (None, None);
    while poller.outstanding() > 0 {
        if Instant::now() > end {
            return Err("not done in two minutes".into());
        }
        poller.plug(queue);
        poller.poll(|mut done| {
            if let Err(failure) = done.result() {
                failed = Some(failure);
            } else if left > 0 && failed.is_none() {
                left -= 1;
                prepare(done.io_mut());
                if let Err(rejected) = done.resubmit() {
                    refused = Some(rejected.reason);
                }
            }
        });
        poller.unplug(queue);
    }
    match (failed, refused) {
        (Some(failure), _) => Err(failure.to_string().into()),
        (None, Some(refusal)) => Err(refusal.to_string().into()),
        (None, None) => Ok(Taken { requests, commands: poller.stats(queue).commands, polls: poller.polls() }),
    }
}
