//! A worker whose I/Os the kernel carries out: one thread on one core, with an io_uring of its own.
//!
//! It has the workloads, the stages and the meter of the driver's own workers, and a loop of its own.

use std::io;
use std::os::fd::AsFd;

use super::File;
use super::ring::{Ring, Shape, Transfer, Wait, advice};
use crate::perf::control::{Control, Gauge, Phase};
use crate::perf::cores;
use crate::perf::course::{Engine, Reading, Tally};
use crate::perf::job::Job;
use crate::perf::meter::{Meter, Reason};
use crate::perf::pace::Pace;
use crate::perf::random::Random;
use crate::perf::workload::{Request, Workload};
use crate::{Error, Result};

struct Worker<'a> {
    ring: Ring,
    meter: Meter<'a>,
    control: &'a Control,
    name: String,
    block_size: u64,
    /// Bytes of an I/O, of each size that there is.
    sizes: Vec<usize>,
    /// Slots that are not in flight.
    idle: Vec<usize>,
    /// What a poll has found. Empty between polls.
    finished: Vec<Finished>,
    pace: Pace,
    /// The workload has no more.
    exhausted: bool,
    polls: u64,
    depth: usize,
}

/// An I/O that has ended.
struct Finished {
    slot: usize,
    bytes: usize,
    request: Request,
    success: bool,
}

/// Runs a worker from first to last.
pub fn run(job: &Job, index: usize, file: &File, control: &Control, gauge: &Gauge) -> Result<Tally> {
    // Before anything is allocated, so that memory is close to the core.
    cores::pin(job.cores[index])?;
    Worker::new(job, file, control, gauge)?.run(job, index)
}

impl<'a> Worker<'a> {
    fn new(job: &Job, file: &File, control: &'a Control, gauge: &'a Gauge) -> Result<Worker<'a>> {
        let depth = job.depth as usize;
        let mut ring = open(job, file)?;
        let mut random = Random::new(job.seed);
        // Neither zeros nor all alike: some devices store those without storing anything.
        for slot in 0..depth {
            let words = ring.data(slot).into_iter().flat_map(|data| data.chunks_exact_mut(8));
            words.for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        }
        Ok(Worker {
            ring,
            meter: Meter::new(depth, gauge),
            control,
            name: file.name.to_string(),
            block_size: job.block_size.into(),
            sizes: job.sizes().into_iter().map(|size| size as usize).collect(),
            pace: Pace::new(job.rate),
            exhausted: false,
            idle: (0..depth).rev().collect(),
            finished: Vec::with_capacity(depth),
            polls: 0,
            depth,
        })
    }

    /// Gives the kernel the next requests, as many as there are slots.
    fn issue<W: Workload>(&mut self, work: &mut W, phase: Phase) -> Result<()> {
        // What is written or read back as a whole is due at once.
        let paced = matches!(phase, Phase::WarmUp | Phase::Measure);
        while let Some(slot) = self.idle.pop() {
            let now = if W::TOUCHES_DATA { self.meter.nanos() } else { self.meter.now::<false>() };
            let due = if paced { self.pace.take(now) } else { Some(now) };
            let next = due.and_then(|_| work.next_sized());
            self.exhausted |= due.is_some() && next.is_none();
            let (Some(due), Some((size, request))) = (due, next) else {
                self.idle.push(slot);
                break;
            };
            let bytes = self.sizes.get(size).copied().unwrap_or(0);
            work.prepare(request, data(&mut self.ring, slot, bytes));
            self.meter.started[slot] = match (&self.pace, paced) {
                (Pace::Every { .. }, true) => due,
                _ if W::TOUCHES_DATA => self.meter.nanos(),
                _ => now,
            };
            let offset = request.lba * self.block_size;
            let transfer = Transfer { operation: request.operation, offset, bytes };
            self.ring.push(slot, transfer).map_err(|errno| self.trouble(errno.into()))?;
        }
        self.meter.gauge.set_busy(self.ring.in_flight() > 0);
        Ok(())
    }

    /// Takes the completions that there are.
    fn reap<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        self.meter.new_poll();
        self.polls += 1;
        let before = self.idle.len();
        let (meter, idle, block_size) = (&mut self.meter, &mut self.idle, self.block_size);
        let mut ended = |slot: usize, transfer: Transfer, result: std::result::Result<usize, _>| {
            let now = meter.now::<false>();
            meter.record(slot, now);
            meter.bytes += transfer.bytes as u64;
            if W::MIXED {
                meter.writes += u64::from(transfer.operation == kiovec::Operation::Write);
            }
            let lba = transfer.offset / block_size;
            let reason = match result {
                Ok(bytes) if bytes == transfer.bytes => None,
                Ok(bytes) => Some(Reason::Short { lba, bytes }),
                Err(errno) => Some(Reason::Kernel { lba, errno }),
            };
            if let Some(reason) = reason {
                meter.failed(transfer.operation, reason);
            }
            idle.push(slot);
            Finished {
                slot,
                bytes: transfer.bytes,
                request: Request { operation: transfer.operation, lba },
                success: reason.is_none(),
            }
        };
        let mut finished = std::mem::take(&mut self.finished);
        let polled = self.ring.poll(|slot, transfer, result| finished.push(ended(slot, transfer, result)));
        polled.map_err(|error| self.trouble(error))?;
        for Finished { slot, bytes, request, success } in finished.drain(..) {
            work.completed(request, data(&mut self.ring, slot, bytes), success);
        }
        self.finished = finished;
        let count = (self.idle.len() - before) as u64;
        self.meter.gauge.set_ios(self.meter.gauge.ios() + count);
        Ok(())
    }

    fn trouble(&self, error: io::Error) -> Error {
        Error::os(format!("{}: io_uring", self.name))(error)
    }
}

impl<'a> Engine<'a> for Worker<'a> {
    fn control(&self) -> &'a Control {
        self.control
    }

    fn meter(&mut self) -> &mut Meter<'a> {
        &mut self.meter
    }

    fn start<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        self.meter.gauge.set_busy(true);
        self.exhausted = false;
        self.pace.begin(self.meter.nanos());
        self.meter.new_poll();
        self.issue(work, self.control.phase())
    }

    fn poll_until<W: Workload>(&mut self, phase: Phase, work: &mut W) -> Result<()> {
        let mut seen = self.control.moment();
        while seen.phase() < phase {
            // An I/O that fails for want of its device would fail at once, over and over.
            if !self.meter.gauge.is_lost() {
                self.issue(work, seen.phase())?;
            }
            let over = self.exhausted || self.meter.gauge.is_lost();
            if over && self.ring.in_flight() == 0 {
                break;
            }
            self.reap(work)?;
            let moment = self.control.moment();
            if moment != seen {
                self.meter.cut(seen.slice());
                seen = moment;
            }
        }
        Ok(())
    }

    fn drain<W: Workload>(&mut self, work: &mut W) -> Result<()> {
        while self.control.phase() < Phase::Abort && self.ring.in_flight() > 0 {
            self.reap(work)?;
        }
        self.meter.gauge.set_busy(false);
        Ok(())
    }

    fn reading(&self) -> Reading {
        Reading { polls: self.polls, calls: self.ring.calls(), ..Reading::default() }
    }

    fn tally(&self) -> Tally {
        Tally {
            errors: self.meter.errors,
            first_error: self.meter.first_error,
            queue_depth: self.depth,
            ..Tally::default()
        }
    }
}

fn data(ring: &mut Ring, slot: usize, bytes: usize) -> impl Iterator<Item = &mut [u8]> {
    ring.data(slot).and_then(|data| data.get_mut(..bytes)).into_iter()
}

/// A ring that polls the device, if that can be polled and one block of it can be read so.
fn open(job: &Job, file: &File) -> Result<Ring> {
    let shape = Shape { slots: job.depth as usize, bytes: job.io_size as usize, wait: Wait::Interrupt };
    let open = |wait| Ring::new(file.file.as_fd(), Shape { wait, ..shape });
    if file.can_poll
        && let Ok(mut ring) = open(Wait::Device)
        && probe(&mut ring, job.io_size as usize)
    {
        return Ok(ring);
    }
    // Nobody who sleeps can be on time.
    let wait = if job.rate.is_some() { Wait::Ring } else { Wait::Interrupt };
    open(wait).map_err(|error| Error::Unsuitable(format!("{}: {}", file.name, advice(&error))))
}

/// Whether a read is carried out by a ring, within a second.
fn probe(ring: &mut Ring, bytes: usize) -> bool {
    let read = Transfer { operation: kiovec::Operation::Read, offset: 0, bytes };
    let (began, mut good) = (std::time::Instant::now(), false);
    if ring.push(0, read).is_err() {
        return false;
    }
    while ring.in_flight() > 0 && began.elapsed() < std::time::Duration::from_secs(1) {
        if ring.poll(|_, _, result| good = result == Ok(bytes)).is_err() {
            return false;
        }
    }
    good && ring.in_flight() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::Options;
    use crate::perf::subject::Attached;

    /// A run on a file of 1 MiB that is cut to 64 KiB after it was opened.
    #[test]
    fn a_file_that_shrinks_fails_its_reads() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let options = Options::from_line(&format!("kernel:{} -q 4 -w read", file.path().display()));
        let attached = options.device.attach(false).unwrap();
        let job = Job::new(&options, &attached, cores::allowed().unwrap()[..1].to_vec(), false).unwrap();
        file.as_file().set_len(64 << 10).unwrap();
        let Attached::Kernel(opened) = &*attached else { panic!("a file") };
        let control = Control::new(1);
        let tally = std::thread::scope(|scope| {
            let run = scope.spawn(|| run(&job, 0, opened, &control, &control.gauges[0]));
            control.advance(Phase::Measure);
            while control.ios() < 256 && !run.is_finished() {
                std::thread::yield_now();
            }
            control.advance(Phase::Finish);
            run.join().unwrap().unwrap()
        });
        let (operation, reason) = tally.first_error.unwrap();
        assert_eq!(
            (operation, reason),
            (
                kiovec::Operation::Read,
                Reason::Short { lba: (64 << 10) / u64::from(job.block_size), bytes: 0 }
            )
        );
        assert!(tally.errors >= 240 - 4, "{}", tally.errors);
        assert!(reason.to_string().contains("smaller"), "{reason}");
    }
}
