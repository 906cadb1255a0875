//! A worker on an emulated controller, with somebody else who writes the same namespace: all the
//! ways in which data can be wrong.

use kiovec::layer::Direct;
use kiovec::memory::MemoryChain;

use super::*;
use crate::device::Opened;
use crate::perf::Options;
use crate::perf::verify::Mismatch;

struct Bench {
    opened: Opened,
    job: Job,
    control: Control,
}

impl Bench {
    fn new(line: &str) -> Bench {
        let options = Options::from_line(line);
        options.check().unwrap();
        let opened = options.device.open().unwrap();
        let core = cores::allowed().unwrap()[..1].to_vec();
        let job = Job::new(&options, &opened, core, true).unwrap();
        let control = Control::new(1);
        Bench { opened, job, control }
    }

    fn worker(&self) -> Worker<'_, Direct> {
        let options = QueueOptions::default().depth(self.job.queue_depth());
        let route = Route::direct(&self.opened, &self.job.namespaces, self.job.depth, options).unwrap();
        Worker::new(route, &self.job, 0, &self.opened, &self.control).unwrap()
    }

    fn work(&self) -> Verified {
        let Job { parts, mix, block_size, seed, .. } = &self.job;
        Verified::new(parts[0], *mix, *block_size, *seed, Random::new(1))
    }

    /// Reads a block behind the worker's back.
    fn read(&self, lba: u64) -> Vec<u8> {
        let memory = self.opened.space.allocate(self.job.block_size as usize).unwrap();
        self.carry_out(IoContainer::read(lba, memory)).to_vec()
    }

    /// Writes a block behind the worker's back.
    fn write(&self, lba: u64, data: &[u8]) {
        let mut memory = self.opened.space.allocate(data.len()).unwrap();
        memory.copy_from_slice(0, data);
        self.carry_out(IoContainer::write(lba, memory));
    }

    fn carry_out(&self, io: IoContainer) -> MemoryChain {
        let options = QueueOptions::default().depth(1);
        let Route { mut poller, target, .. } =
            Route::direct(&self.opened, &self.job.namespaces, 1, options).unwrap();
        poller.submit(target, io).unwrap();
        let mut memory = None;
        while memory.is_none() {
            poller.poll(|done| {
                done.result().unwrap();
                memory = Some(done.take().into_memory());
            });
        }
        memory.unwrap()
    }
}

/// Fills a namespace of 4 KiB blocks twice, lets `spoil` at it, and reads it back. `spoil` gets the
/// first generation of block 5.
fn after(line: &str, spoil: impl FnOnce(&Bench, &[u8])) -> (Checks, Tally) {
    let bench = Bench::new(&format!("emulated:size=4M,media=ram --verify -w write {line}"));
    let (mut worker, mut work) = (bench.worker(), bench.work());
    worker.pass(&mut work, Stage::Fill).unwrap();
    let old = bench.read(5);
    worker.pass(&mut work, Stage::Fill).unwrap();
    spoil(&bench, &old);
    worker.pass(&mut work, Stage::ReadBack).unwrap();
    (work.checks, worker.tally())
}

fn one_mismatch(spoil: impl Fn(&Bench, &[u8])) -> Mismatch {
    let mut found = Vec::new();
    for line in ["", "-o 16k", "-o 1M -q 3", "-q 1"] {
        let (checks, tally) = after(line, &spoil);
        assert_eq!((checks.checked, checks.mismatches, tally.errors), (1024, 1, 0), "{line}");
        found.push(checks.first.unwrap());
    }
    let place = |m: &Mismatch| (m.lba, m.byte, m.found);
    assert!(found.iter().all(|mismatch| place(mismatch) == place(&found[0])), "{found:?}");
    found.swap_remove(0)
}

#[test]
fn good_data_is_good() {
    let (checks, tally) = after("", |_, _| {});
    assert_eq!((checks.checked, checks.unchecked, checks.mismatches), (1024, 0, 0));
    assert_eq!((tally.errors, tally.faults), (0, 0));
}

#[test]
fn a_lost_write_is_found() {
    let text = one_mismatch(|bench, old| bench.write(5, old)).to_string();
    assert!(text.starts_with("LBA 5, byte 8: ") && text.contains("holds generation 1, and 2 was"), "{text}");
}

#[test]
fn a_misplaced_write_is_found() {
    let text = one_mismatch(|bench, _| bench.write(700, &bench.read(5))).to_string();
    assert!(text.starts_with("LBA 700, byte 0: ") && text.contains("data of LBA 5 generation 2"), "{text}");
}

#[test]
fn a_torn_write_is_found() {
    let tear = |bench: &Bench, old: &[u8]| {
        let new = bench.read(5);
        bench.write(5, &[&new[..512], &old[512..]].concat());
    };
    let text = one_mismatch(tear).to_string();
    assert!(text.starts_with("LBA 5, byte 520: ") && text.contains("torn"), "{text}");
}

#[test]
fn a_flipped_bit_is_found() {
    let flip = |bench: &Bench, _: &[u8]| {
        let mut data = bench.read(1023);
        data[4095 - 4] ^= 0x10;
        bench.write(1023, &data);
    };
    let text = one_mismatch(flip).to_string();
    assert!(text.starts_with("LBA 1023, byte 4091: bytes 4088 to 4095 are "), "{text}");
}

#[test]
fn zeroed_blocks_are_found() {
    let (checks, _) = after("-o 64k", |bench, _| bench.write(96, &[0; 3 * 4096]));
    assert_eq!((checks.checked, checks.mismatches), (1024, 3));
    let text = checks.first.unwrap().to_string();
    assert!(text.starts_with("LBA 96, byte 0: ") && text.contains("all zeros"), "{text}");
}

/// A whole run, as the command does it, with an earlier generation put back in the middle of it.
#[test]
fn a_run_finds_what_goes_wrong_while_it_runs() {
    let bench = Bench::new("emulated:size=64k,media=ram --verify -w randread -q 4");
    let outcome = std::thread::scope(|scope| {
        let run = scope.spawn(|| run(&bench.job, 0, &bench.opened, &bench.control));
        bench.control.advance(Phase::WarmUp);
        let reach = |ios: u64| {
            // A run that ended early would never get there.
            while bench.control.ios() < ios && !run.is_finished() {
                std::thread::yield_now();
            }
        };
        reach(100);
        let data = bench.read(9);
        bench.write(2, &data);
        bench.control.advance(Phase::Measure);
        let ios = bench.control.ios();
        reach(ios + 1000);
        bench.control.advance(Phase::Finish);
        run.join().unwrap()
    });
    let checks = outcome.unwrap().checks.unwrap();
    assert!(checks.mismatches > 0 && checks.unchecked == 0, "{checks:?}");
    let text = checks.first.unwrap().to_string();
    assert!(text.starts_with("LBA 2, byte 0: ") && text.contains("data of LBA 9 generation 1"), "{text}");
}
