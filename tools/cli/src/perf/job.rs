//! What a run is going to do: the options, as they apply to one device.

use std::sync::Arc;
use std::time::Duration;

use hugepage_setup::Bytes;
use kiovec::{Controller, DataForm, Namespace, QueueOptions};

use super::idle::Polling;
use super::kernel::File;
use super::options::Options;
use super::places::Skew;
use super::random;
use super::route::Route;
use super::sizes::Split;
use super::subject::Attached;
use super::verify::Ledger;
use super::workload::Mix;
use crate::device::Opened;
use crate::{Error, Result};

/// What all ledgers of a run may take.
const LEDGER_BYTES: u64 = 256 << 20;
/// Commands that a queue pair holds at most.
const MAX_COMMANDS: u64 = 4096;
/// The largest transfer of one command: larger lists serve nobody.
const MAX_TRANSFER: u64 = 2 << 20;
/// An I/O's data begins on a page of its own.
const PAGE: u64 = 4096;

/// A run, with everything decided.
#[derive(Debug)]
pub struct Job {
    /// One on each controller.
    pub namespaces: Vec<Namespace>,
    pub block_size: u32,
    /// All blocks of the device, of which the parts are some.
    pub blocks: u64,
    /// Of the largest I/O, if they differ.
    pub io_size: u64,
    pub split: Option<Split>,
    pub skew: Option<Skew>,
    /// I/Os that each worker begins in a second, if that is not as many as it can.
    pub rate: Option<f64>,
    pub polling: Polling,
    /// What is submitted in one go is held back until it is complete, so that neighbours share commands.
    pub merge: bool,
    /// I/Os in flight of each worker.
    pub depth: u32,
    pub mix: Mix,
    pub verify: bool,
    /// Whether the range is filled before, and read back afterwards.
    pub fill: bool,
    pub read_back: bool,
    pub seed: u64,
    pub data: DataForm,
    /// What a controller may take for a command, if that is not the driver's default.
    pub command_timeout: Option<Duration>,
    pub cores: Vec<usize>,
    pub parts: Vec<Part>,
    /// Bytes that one command moves at most.
    pub max_transfer: u64,
    /// The emulator has no core for itself: whoever polls must let it run.
    pub crowded: bool,
}

/// What one worker reads and writes: units of the size of an I/O, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The first block.
    pub first: u64,
    pub units: u64,
    /// Blocks of a unit.
    pub blocks: u64,
}

impl Part {
    #[inline(always)]
    pub fn lba_of(self, unit: u64) -> u64 {
        self.first + unit * self.blocks
    }

    pub fn unit_at(self, lba: u64) -> u64 {
        (lba - self.first) / self.blocks
    }

    /// As many equal parts as there are workers. What does not divide is left out.
    fn split(self, workers: u64) -> Vec<Part> {
        let units = self.units / workers;
        (0..workers).map(|worker| Part { first: self.lba_of(worker * units), units, ..self }).collect()
    }
}

impl Job {
    pub fn new(options: &Options, attached: &Attached, cores: Vec<usize>, crowded: bool) -> Result<Job> {
        let Shape { namespaces, block_size, blocks, max_transfer } = match attached {
            Attached::Driver(opened) => Shape::of_device(options, opened)?,
            Attached::Kernel(file) => Shape::of_file(file),
        };
        let whole = range(options, blocks, block_size)?;
        let parts = parts(options, whole, cores.len() as u64)?;
        let units = parts.first().map_or(0, |part| part.units);
        let job = Job {
            block_size,
            blocks,
            io_size: options.largest(),
            split: options.bssplit.clone(),
            skew: options.skew(),
            rate: options.rate.map(|rate| rate as f64 / cores.len().max(1) as f64),
            polling: options.poll,
            merge: options.merge,
            // Verified I/Os keep off each other's blocks, so there are no more than units.
            depth: if options.verify { options.io_depth.min(clamp(units)) } else { options.io_depth },
            mix: Mix::new(options.io_pattern.is_random(), options.read_share()),
            verify: options.verify,
            fill: options.verify && !options.io_pattern.writes(),
            read_back: options.verify && options.io_pattern.writes(),
            seed: options.seed.unwrap_or_else(random::seed),
            data: options.data.into(),
            command_timeout: options.command_timeout,
            max_transfer,
            namespaces,
            cores,
            parts,
            crowded,
        };
        job.check_memory(options)?;
        Ok(job)
    }

    /// Commands that a worker has in flight, on a controller that has a part in each of its I/Os, if
    /// all of them are.
    pub fn queue_depth(&self) -> usize {
        let commands = u64::from(self.depth).saturating_mul(self.io_size.div_ceil(self.max_transfer));
        commands.min(MAX_COMMANDS) as usize
    }

    /// The sizes that I/Os have.
    pub fn sizes(&self) -> Vec<u64> {
        match &self.split {
            Some(split) => split.sizes().iter().map(|size| size.0).collect(),
            None => vec![self.io_size],
        }
    }

    /// Whether a completion does not make the next request of its container.
    pub fn is_loose(&self) -> bool {
        self.rate.is_some() || self.split.is_some()
    }

    /// Bytes of data memory of a worker: of each size, as many as can be in flight.
    pub fn worker_bytes(&self) -> u64 {
        let sum = self.sizes().into_iter().fold(0, |sum: u64, size| sum.saturating_add(stride(size)));
        sum.saturating_mul(self.depth.into())
    }

    /// Bytes of data memory of all workers.
    pub fn data_bytes(&self) -> u64 {
        self.worker_bytes().saturating_mul(self.cores.len() as u64)
    }

    fn check_memory(&self, options: &Options) -> Result<()> {
        let units = self.parts.iter().map(|part| part.units).sum();
        let ledger = if self.verify { Ledger::bytes(units) } else { 0 };
        if ledger > LEDGER_BYTES {
            let (needed, most) = (Bytes(ledger), Bytes(LEDGER_BYTES));
            let most_units = LEDGER_BYTES / Ledger::bytes(1);
            let range = Bytes(most_units.saturating_mul(self.io_size));
            return Err(Error::Unsuitable(format!(
                "--verify keeps a generation for each of {units} I/Os, {needed}, and {most} is the most; \
                 restrict it to {range} with --range, or make I/Os larger with -o"
            )));
        }
        let (needed, available) = (self.data_bytes(), available_memory());
        if available.is_some_and(|available| needed > available) {
            let available = Bytes(available.unwrap_or_default());
            return Err(Error::Unsuitable(format!(
                "-q {} and -o {} on {} cores need {} of data memory, and {available} are available; lower one of them",
                options.io_depth,
                self.io_size,
                self.cores.len(),
                Bytes(needed)
            )));
        }
        Ok(())
    }
}

/// What is asked of a device before anything is decided.
struct Shape {
    namespaces: Vec<Namespace>,
    block_size: u32,
    blocks: u64,
    max_transfer: u64,
}

impl Shape {
    fn of_device(options: &Options, opened: &Opened) -> Result<Shape> {
        let namespaces = namespaces(options, opened)?;
        let (block_size, blocks) = size(opened, &namespaces)?;
        Ok(Shape { namespaces, block_size, blocks, max_transfer: max_transfer(opened) })
    }

    /// How the kernel cuts I/Os is its own business.
    fn of_file(file: &File) -> Shape {
        let (block_size, blocks) = (file.block_size, file.blocks);
        Shape { namespaces: vec![], block_size, blocks, max_transfer: MAX_TRANSFER }
    }
}

/// Bytes from the beginning of one I/O's data to the next one's.
pub fn stride(size: u64) -> u64 {
    size.checked_next_multiple_of(PAGE).unwrap_or(size)
}

fn clamp(units: u64) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// The namespace of each controller: the one asked for, or its first.
fn namespaces(options: &Options, opened: &Opened) -> Result<Vec<Namespace>> {
    let namespace = |controller: &Arc<Controller>| {
        let nsid = match options.nsid {
            Some(nsid) => nsid,
            None => *controller.active_namespaces()?.first().ok_or_else(|| {
                let name = controller.name();
                Error::Unsuitable(format!("{name} has no active namespace; see kiovec identify {name}"))
            })?,
        };
        Ok(controller.namespace(nsid)?)
    };
    opened.controllers.iter().map(namespace).collect()
}

/// Bytes of a block, and how many blocks, as they are above all layers. The layers are made once for
/// that, so that what is wrong with them is found before a worker starts.
fn size(opened: &Opened, namespaces: &[Namespace]) -> Result<(u32, u64)> {
    let route = Route::layered(opened, namespaces, 1, QueueOptions::default().depth(1))?;
    match route.geometry() {
        Some(geometry) => Ok((1 << geometry.block_shift, geometry.blocks)),
        None => Err(Error::Unsuitable(format!("{} has no size", opened.device))),
    }
}

/// What fits one command of every controller.
fn max_transfer(opened: &Opened) -> u64 {
    let mdts =
        |controller: &Arc<Controller>| controller.identity().max_transfer(controller.capabilities().mpsmin());
    opened.controllers.iter().filter_map(mdts).fold(MAX_TRANSFER, u64::min)
}

/// The range in units of an I/O.
fn range(options: &Options, capacity: u64, block_size: u32) -> Result<Part> {
    let (size, block_size) = (options.largest(), u64::from(block_size));
    if let Some(size) = options.sizes().into_iter().find(|size| size % block_size != 0) {
        return Err(Error::Unsuitable(format!(
            "-o {size}: an odd I/O size, {} has blocks of {block_size} bytes; use a multiple of that",
            options.device
        )));
    }
    let range = match &options.range {
        Some(range) => range.resolve(block_size, capacity)?,
        None => 0..capacity,
    };
    let (blocks, len) = (size / block_size, range.end - range.start);
    if blocks > len {
        let range = len.saturating_mul(block_size);
        return Err(Error::Unsuitable(format!(
            "-o {size}: an I/O is larger than the range, which has {range} bytes; use smaller I/Os"
        )));
    }
    Ok(Part { first: range.start, units: len / blocks, blocks })
}

/// Random I/Os go everywhere; sequential and verified ones need a part for each worker alone. So do
/// those through layers: each worker has layers of its own, which may remember what is where, and which
/// copies are good.
fn parts(options: &Options, whole: Part, workers: u64) -> Result<Vec<Part>> {
    if options.io_pattern.is_random() && !options.verify && !options.device.is_stack() {
        return Ok(vec![whole; workers as usize]);
    }
    if whole.units < workers {
        return Err(Error::Unsuitable(format!(
            "-c: the range has room for {} I/Os of that size, too few for {workers} cores; use fewer cores",
            whole.units
        )));
    }
    Ok(whole.split(workers))
}

/// Memory that can be had without swapping, free hugepages included.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let huge = value("HugePages_Free").unwrap_or(0).saturating_mul(value("Hugepagesize").unwrap_or(0));
    Some(value("MemAvailable")?.saturating_add(huge).saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_follow_one_another() {
        let whole = Part { first: 10, units: 11, blocks: 4 };
        let parts = whole.split(3);
        assert_eq!(parts.iter().map(|part| part.first).collect::<Vec<_>>(), [10, 22, 34]);
        assert!(parts.iter().all(|part| (part.units, part.blocks) == (3, 4)));
        assert_eq!(parts[1].unit_at(parts[1].lba_of(2)), 2);
    }

    #[test]
    fn there_is_memory_available() {
        assert!(available_memory().unwrap() > 1 << 20);
    }
}
