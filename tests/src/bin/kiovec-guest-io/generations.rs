//! A writer that may be killed, reset and stalled at any time: it notes what it submits and what was acknowledged, and
//! begins by holding the medium against what the writers before it have noted.

use std::io::stdin;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use kiovec::{Controller, IoContainer, Poller, QueueId, QueueOptions, QueueStats, Target};
use kiovec_tests::ledger::{IN_FLIGHT, Ledger, UNIT_BYTES, UNITS, seed};
use kiovec_tests::pattern;

use crate::Failure;

/// From one completion to the next; longer than all that the driver may take to recover.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    pub nsid: u32,
    /// It is over after so many writes and so many resets of the controller; never, if neither is given.
    pub writes: Option<u64>,
    pub resets: Option<u64>,
    /// The controller is reset with each line that comes on standard input.
    pub reset_on_line: bool,
}

struct Writer<'a> {
    controller: &'a Controller,
    poller: Poller,
    queue: QueueId,
    disk: Target,
    ledger: &'a Ledger,
    block: usize,
    /// By unit, the generation in flight.
    in_flight: Vec<Option<u64>>,
}

/// Checks what is there, writes, and checks again.
pub fn run(
    controller: &Arc<Controller>,
    options: QueueOptions,
    path: &Path,
    task: Task,
) -> Result<QueueStats, Failure> {
    let ledger = Ledger::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut poller = Poller::new(IN_FLIGHT as u32);
    let queue = poller.add_queue(controller, options.depth(IN_FLIGHT as usize))?;
    let namespace = controller.namespace(task.nsid)?;
    let block = namespace.block_size().ok_or("no block size")? as usize;
    let disk = poller.add_namespace(queue, &namespace)?;
    let in_flight = vec![None; UNITS as usize];
    let mut writer = Writer { controller, poller, queue, disk, ledger: &ledger, block, in_flight };
    writer.check()?;
    if task.reset_on_line {
        reset_on_line(Arc::downgrade(controller));
    }
    writer.write(&task)?;
    writer.check()?;
    Ok(writer.poller.stats(queue))
}

/// From another thread than the one that polls, as long as there is a controller.
fn reset_on_line(controller: Weak<Controller>) {
    thread::spawn(move || {
        for _ in stdin().lines().map_while(Result::ok) {
            let Some(controller) = controller.upgrade() else { break };
            if let Err(error) = controller.reset() {
                eprintln!("kiovec-guest-io: {error}");
            }
        }
    });
}

impl Writer<'_> {
    /// Reads all units, and holds them against the ledger.
    fn check(&mut self) -> Result<(), Failure> {
        for first in (0..UNITS).step_by(IN_FLIGHT as usize) {
            for unit in first..first + IN_FLIGHT {
                let memory = self.controller.space().allocate(UNIT_BYTES as usize)?;
                self.poller.submit(self.disk, IoContainer::read(self.lba(unit), memory).tag(unit))?;
            }
            let deadline = Instant::now() + PATIENCE;
            while self.poller.outstanding() > 0 {
                self.completions(deadline, |ledger, unit, block, io| {
                    Ok(ledger.check(unit, &io.into_memory().to_vec(), block)?)
                })?;
            }
        }
        Ok(())
    }

    /// Writes units, each with its next generation.
    fn write(&mut self, task: &Task) -> Result<(), Failure> {
        let (mut done, mut unit) = (0, 0);
        let mut progress = Instant::now();
        loop {
            while self.poller.outstanding() < IN_FLIGHT as usize && !self.is_over(task, done) {
                // A stride without a common divisor: it comes by all of them, neighbours far apart.
                unit = (unit + 97) % UNITS;
                if self.in_flight[unit as usize].is_none() {
                    self.submit(unit)?;
                }
            }
            if self.poller.outstanding() == 0 {
                return Ok(());
            }
            let mut acknowledged = Vec::new();
            self.completions(progress + PATIENCE, |_, unit, _, _| {
                acknowledged.push(unit);
                Ok(())
            })?;
            for unit in acknowledged {
                self.acknowledge(unit)?;
                (done, progress) = (done + 1, Instant::now());
            }
        }
    }

    fn is_over(&self, task: &Task, done: u64) -> bool {
        let resets = self.poller.stats(self.queue).resets;
        let is_endless = task.writes.is_none() && task.resets.is_none();
        !is_endless && done >= task.writes.unwrap_or(0) && resets >= task.resets.unwrap_or(0)
    }

    fn submit(&mut self, unit: u64) -> Result<(), Failure> {
        let generation = self.ledger.entry(unit)?.submitted + 1;
        let mut data = vec![0; UNIT_BYTES as usize];
        pattern::fill(seed(generation), unit * UNIT_BYTES, &mut data);
        let mut memory = self.controller.space().allocate(data.len())?;
        memory.copy_from_slice(0, &data);
        self.ledger.submit(unit, generation)?;
        self.in_flight[unit as usize] = Some(generation);
        Ok(self.poller.submit(self.disk, IoContainer::write(self.lba(unit), memory).tag(unit))?)
    }

    fn acknowledge(&mut self, unit: u64) -> Result<(), Failure> {
        let generation = self.in_flight[unit as usize].take().ok_or("a write completed twice")?;
        Ok(self.ledger.acknowledge(unit, generation)?)
    }

    /// Polls once; `each` gets what succeeded.
    fn completions(
        &mut self,
        deadline: Instant,
        mut each: impl FnMut(&Ledger, u64, usize, IoContainer) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (ledger, block, mut failed) = (self.ledger, self.block, None);
        self.poller.poll(|done| {
            let result = done.result();
            let io = done.take();
            let unit = io.get_tag();
            let outcome = result.map_err(Failure::from).and_then(|()| each(ledger, unit, block, io));
            if let Err(why) = outcome {
                failed.get_or_insert_with(|| format!("unit {unit}: {why}"));
            }
        });
        match failed {
            Some(why) => Err(why.into()),
            None if Instant::now() > deadline => Err("no completion for a minute".into()),
            None => Ok(()),
        }
    }

    fn lba(&self, unit: u64) -> u64 {
        unit * UNIT_BYTES / self.block as u64
    }
}
