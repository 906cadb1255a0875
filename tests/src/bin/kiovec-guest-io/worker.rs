//! One thread: a poller with two queue pairs on each controller, and the steps of its share.

use kiovec::layer::{Direct, Layer, Stack};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{DataForm, Done, IoContainer, Poller, QueueOptions, Target};
use kiovec_tests::pattern;

use crate::Failure;
use crate::device::{Device, Route};
use crate::plan::Step;

/// Queue pairs per thread and controller.
const QUEUES: usize = 2;
/// Few slots, so that large requests wait for them in pieces.
const DEPTH: usize = 8;
/// Requests at once.
const REQUESTS: u32 = 12;
/// More than a page of a PRP list can express, so that lists get chained where MDTS allows it.
const MAX_TRANSFER: u64 = 8 << 20;

/// What to do with each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Read and compare with the step's pattern.
    Read,
    /// Write the step's pattern.
    Write,
    WriteZeroes,
    Deallocate,
    /// Flush the step's namespace.
    Flush,
}

/// A thread's work.
#[derive(Debug)]
pub struct Job<'a> {
    pub device: &'a Device,
    pub data: DataForm,
    pub way: Way,
    pub steps: Vec<Step>,
}

/// Does the steps, several at a time; fails with the first one that failed, after all have settled.
pub fn run(job: &Job<'_>) -> Result<(), Failure> {
    match job.device.is_layered() {
        true => run_on(job, Poller::<Stack>::with_layers(REQUESTS)),
        false => run_on(job, Poller::<Direct>::new(REQUESTS)),
    }
}

fn run_on<L: Route>(job: &Job<'_>, mut poller: Poller<L>) -> Result<(), Failure> {
    let targets = targets(job, &mut poller)?;
    let mut waiting = job.steps.iter().enumerate();
    let mut failed: Option<Failure> = None;
    loop {
        while poller.outstanding() < REQUESTS as usize
            && let Some((index, step)) = waiting.next()
        {
            let (_, target) = targets
                .iter()
                .filter(|(nsid, _)| *nsid == step.place.nsid)
                .nth(index % QUEUES)
                .ok_or("a step of a namespace that is not there")?;
            let io = request(job.device.space(), job.way, step)?.tag(index as u64);
            poller
                .submit(*target, io)
                .map_err(|rejected| format!("{step:?}: refused: {}", rejected.reason))?;
        }
        if poller.outstanding() == 0 {
            return failed.map_or(Ok(()), Err);
        }
        poller.poll(|done| {
            let step = &job.steps[done.io().get_tag() as usize];
            if let Err(why) = check(done, job.way, step) {
                failed.get_or_insert_with(|| format!("{:?} of {step:?}: {why}", job.way).into());
            }
        });
    }
}

/// Every namespace of the steps through every queue pair.
fn targets<L: Route>(job: &Job<'_>, poller: &mut Poller<L>) -> Result<Vec<(u32, Target)>, Failure> {
    let mut nsids: Vec<u32> = job.steps.iter().map(|step| step.place.nsid).collect();
    nsids.sort_unstable();
    nsids.dedup();
    let options = QueueOptions::default().depth(DEPTH).data(job.data).max_transfer(MAX_TRANSFER);
    let mut targets = Vec::new();
    for _ in 0..QUEUES {
        targets.extend(job.device.connect(poller, options, &nsids)?);
    }
    Ok(targets)
}

fn request(space: &DmaSpace, way: Way, step: &Step) -> kiovec::Result<IoContainer> {
    let place = step.place;
    let memory = || step.shape.allocate(space, step.len(), place.block as usize);
    Ok(match way {
        Way::Read => {
            let mut memory = memory()?;
            // Whatever was there before must not pass for what is read.
            memory.fill(0xa5);
            IoContainer::read(place.lba, memory).fua(step.fua)
        }
        Way::Write => IoContainer::write(place.lba, filled(memory()?, step)).fua(step.fua),
        Way::WriteZeroes => IoContainer::write_zeroes(place.lba, place.blocks),
        Way::Deallocate => IoContainer::deallocate(place.lba, place.blocks),
        Way::Flush => IoContainer::flush(),
    })
}

/// The memory with the step's pattern in it.
pub fn filled(mut memory: MemoryChain, step: &Step) -> MemoryChain {
    let mut data = vec![0; memory.len()];
    pattern::fill(step.seed, step.extent().offset, &mut data);
    memory.copy_from_slice(0, &data);
    memory
}

fn check<L: Layer>(done: Done<'_, L>, way: Way, step: &Step) -> Result<(), Failure> {
    done.result()?;
    if way == Way::Read {
        compare(done.take().memory(), step)?;
    }
    Ok(())
}

/// Whether what was read is the step's pattern.
pub fn compare(memory: &MemoryChain, step: &Step) -> Result<(), Failure> {
    match pattern::mismatch(step.seed, step.extent().offset, &memory.to_vec()) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} of the namespace differs").into()),
    }
}
