//! The same memory to two controllers of one space, one after the other: what needs both to be attached to the same
//! IOVAs, and one poller to have queues of both. Nobody copies the data in between.

use std::sync::Arc;

use kiovec::memory::MemoryChain;
use kiovec::{Controller, DataForm, Done, IoContainer, Poller, QueueOptions, Target};

use crate::Failure;
use crate::plan::Step;
use crate::worker::{compare, filled};

/// Steps under way at once.
const STEPS: usize = 8;

/// What each step goes through with its memory: it is written to both controllers, then read from both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Write(usize),
    Read(usize),
}

const PHASES: [Phase; 4] = [Phase::Write(0), Phase::Write(1), Phase::Read(0), Phase::Read(1)];

/// Takes every step through all phases; fails with the first that failed, after all have settled.
pub fn run(controllers: &[Arc<Controller>; 2], data: DataForm, steps: &[Step]) -> Result<(), Failure> {
    // A finished request holds its place while the next of its step is submitted.
    let mut poller = Poller::new(STEPS as u32 + 1);
    let mut targets = Vec::new();
    for controller in controllers {
        targets.push(targets_of(controller, data, steps, &mut poller)?);
    }
    let mut waiting = steps.iter().enumerate();
    let mut failed: Option<Failure> = None;
    loop {
        while poller.outstanding() < STEPS
            && let Some((index, step)) = waiting.next()
        {
            let block = step.place.block as usize;
            let memory = step.shape.allocate(controllers[0].space(), step.len(), block)?;
            let (target, io) = request(&targets, step, PHASES[0], filled(memory, step))?;
            poller
                .submit(target, io.tag((index * PHASES.len()) as u64))
                .map_err(|rejected| format!("{step:?}: refused: {}", rejected.reason))?;
        }
        if poller.outstanding() == 0 {
            return failed.map_or(Ok(()), Err);
        }
        poller.poll(|done| {
            let tag = done.io().get_tag() as usize;
            let (step, phase) = (&steps[tag / PHASES.len()], PHASES[tag % PHASES.len()]);
            if let Err(why) = go_on(done, &targets, step, tag) {
                failed.get_or_insert_with(|| format!("{phase:?} of {step:?}: {why}").into());
            }
        });
    }
}

/// By controller, then by namespace.
type Targets = [Vec<(u32, Target)>];

fn targets_of(
    controller: &Arc<Controller>,
    data: DataForm,
    steps: &[Step],
    poller: &mut Poller,
) -> Result<Vec<(u32, Target)>, Failure> {
    let queue = poller.add_queue(controller, QueueOptions::default().data(data))?;
    let mut nsids: Vec<u32> = steps.iter().map(|step| step.place.nsid).collect();
    nsids.sort_unstable();
    nsids.dedup();
    let target = |nsid| Ok((nsid, poller.add_namespace(queue, &controller.namespace(nsid)?)?));
    nsids.into_iter().map(target).collect()
}

/// What a phase asks of its controller, with the step's memory.
fn request(
    targets: &Targets,
    step: &Step,
    phase: Phase,
    mut memory: MemoryChain,
) -> Result<(Target, IoContainer), Failure> {
    let lba = step.place.lba;
    let (controller, io) = match phase {
        Phase::Write(controller) => (controller, IoContainer::write(lba, memory)),
        Phase::Read(controller) => {
            // Whatever was there before must not pass for what is read.
            memory.fill(0xa5);
            (controller, IoContainer::read(lba, memory))
        }
    };
    let target = targets[controller].iter().find(|(nsid, _)| *nsid == step.place.nsid);
    let (_, target) = target.ok_or("a step of a namespace that is not there")?;
    Ok((*target, io.fua(step.fua)))
}

/// Checks a phase, and gives its memory to the next.
fn go_on(mut done: Done<'_>, targets: &Targets, step: &Step, tag: usize) -> Result<(), Failure> {
    done.result()?;
    let phase = tag % PHASES.len();
    if let Phase::Read(_) = PHASES[phase] {
        compare(done.io().memory(), step)?;
    }
    let Some(next) = PHASES.get(phase + 1) else { return Ok(()) };
    let memory = done.io_mut().replace_memory(MemoryChain::new());
    let (target, io) = request(targets, step, *next, memory)?;
    done.submit(target, io.tag(tag as u64 + 1))
        .map_err(|rejected| format!("refused: {}", rejected.reason))?;
    Ok(())
}
