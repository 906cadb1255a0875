//! Requests all around a defect of the medium: the one over it fails, and only it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiovec::{Controller, DataForm, Failure as Lost, IoContainer, Operation, Poller, QueueOptions};
use kiovec_tests::machine::kernel_seed;
use kiovec_tests::pattern::{self, Extent, UNKNOWN};

use crate::Failure;
use crate::merge::Bad;

/// Requests, of several blocks each, most of which wait for a slot.
const REQUESTS: u64 = 128;
const BLOCKS: u64 = 4;
const DEPTH: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);
/// What is written has another pattern than the kernel's.
const SEED: u64 = 0x61_6c6f_6e65;

/// Writes patterns, or reads the kernel's. Returns what was written, and how the one request failed.
pub fn run(controller: &Arc<Controller>, data: DataForm, bad: &Bad) -> Result<(Vec<Extent>, Lost), Failure> {
    let mut poller = Poller::new(REQUESTS as u32);
    let queue = poller.add_queue(controller, QueueOptions::default().data(data).depth(DEPTH))?;
    let namespace = controller.namespace(bad.nsid)?;
    let block = u64::from(namespace.block_size().ok_or("no block size")?);
    let disk = poller.add_namespace(queue, &namespace)?;
    let guilty = bad.lba / BLOCKS;
    let seed = if bad.operation == Operation::Write { SEED } else { kernel_seed(bad.nsid) };
    let extent = |number: u64| Extent {
        nsid: bad.nsid,
        offset: number * BLOCKS * block,
        len: BLOCKS * block,
        seed: if bad.operation == Operation::Write && number == guilty { UNKNOWN } else { seed },
    };
    let numbers = guilty - REQUESTS / 2..guilty + REQUESTS / 2;
    for number in numbers.clone() {
        let mut bytes = vec![0xa5; (BLOCKS * block) as usize];
        if bad.operation == Operation::Write {
            pattern::fill(seed, extent(number).offset, &mut bytes);
        }
        let mut memory = controller.space().allocate(bytes.len())?;
        memory.copy_from_slice(0, &bytes);
        let mut io = IoContainer::read(number * BLOCKS, memory).tag(number);
        io.set_operation(bad.operation);
        poller.submit(disk, io)?;
    }
    let failures = finish(&mut poller, seed, block)?;
    match failures[..] {
        [(number, lost)] if number == guilty => {
            let written = if bad.operation == Operation::Write { numbers } else { 0..0 };
            Ok((written.map(extent).collect(), lost))
        }
        _ => Err(format!("request {guilty} is over the defect, and these failed: {failures:?}").into()),
    }
}

/// Waits for all. The number and the failure of each that failed; the others have their pattern.
fn finish(poller: &mut Poller, seed: u64, block: u64) -> Result<Vec<(u64, Lost)>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let (mut failures, mut wrong) = (Vec::new(), None);
    while poller.outstanding() > 0 {
        if Instant::now() > deadline {
            return Err("no completion for a minute".into());
        }
        poller.poll(|done| {
            let result = done.result();
            let io = done.take();
            let (number, offset) = (io.get_tag(), io.lba() * block);
            match result {
                Err(failure) => failures.push((number, failure)),
                Ok(()) => wrong = wrong.or(pattern::mismatch(seed, offset, &io.into_memory().to_vec())),
            }
        });
    }
    wrong.map_or(Ok(failures), |at| Err(format!("byte {at} of the namespace differs").into()))
}
