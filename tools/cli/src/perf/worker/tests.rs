//! A worker on an emulated controller, with somebody else who writes the same namespace: all the
//! ways in which data can be wrong.

use kiovec::layer::Direct;
use kiovec::memory::MemoryChain;

use super::*;
use crate::device::Opened;
use crate::perf::Options;
use crate::perf::subject::Attached;
use crate::perf::verify::{Checks, Mismatch, Stage, Verified};

struct Bench {
    attached: std::sync::Arc<Attached>,
    job: Job,
    control: Control,
}

impl Bench {
    fn new(line: &str) -> Bench {
        let options = Options::from_line(line);
        options.check().unwrap();
        let attached = options.device.attach(true).unwrap();
        let core = cores::allowed().unwrap()[..1].to_vec();
        let job = Job::new(&options, &attached, core, true).unwrap();
        let control = Control::new(1);
        Bench { attached, job, control }
    }

    fn opened(&self) -> &Opened {
        self.attached.driver().unwrap()
    }

    fn gauge(&self) -> &Gauge {
        &self.control.gauges[0]
    }

    fn run(&self) -> Result<Tally> {
        run(&self.job, 0, self.opened(), &self.control, self.gauge())
    }

    fn worker(&self) -> Worker<'_, Direct> {
        let options = QueueOptions::default().depth(self.job.queue_depth());
        let route = Route::direct(self.opened(), &self.job.namespaces, self.job.depth, options).unwrap();
        Worker::new(route, &self.job, self.opened(), &self.control, self.gauge()).unwrap()
    }

    fn work(&self) -> Verified {
        let Job { parts, mix, block_size, seed, .. } = &self.job;
        Verified::new(parts[0], *mix, *block_size, *seed, None, Random::new(1))
    }

    /// Reads a block behind the worker's back.
    fn read(&self, lba: u64) -> Vec<u8> {
        let memory = self.opened().space.allocate(self.job.block_size as usize).unwrap();
        self.carry_out(IoContainer::read(lba, memory)).to_vec()
    }

    /// Writes a block behind the worker's back.
    fn write(&self, lba: u64, data: &[u8]) {
        let mut memory = self.opened().space.allocate(data.len()).unwrap();
        memory.copy_from_slice(0, data);
        self.carry_out(IoContainer::write(lba, memory));
    }

    fn carry_out(&self, io: IoContainer) -> MemoryChain {
        let options = QueueOptions::default().depth(1);
        let Route { mut poller, target, .. } =
            Route::direct(self.opened(), &self.job.namespaces, 1, options).unwrap();
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
        let run = scope.spawn(|| bench.run());
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

/// A run over layers from first to last, while `meanwhile` happens.
fn layered(line: &str, meanwhile: impl FnOnce(&Bench)) -> Tally {
    let bench = Bench::new(line);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| bench.run());
        bench.control.advance(Phase::WarmUp);
        bench.control.advance(Phase::Measure);
        while bench.control.ios() < 2000 && !run.is_finished() {
            std::thread::yield_now();
        }
        meanwhile(&bench);
        bench.control.advance(Phase::Finish);
        run.join().unwrap().unwrap()
    })
}

#[test]
fn blocks_are_verified_through_layers() {
    for (pattern, below) in [
        ("randrw", "emulated"),
        ("randread -o 64k", "emulated:block=512"),
        ("write -o 1M", "emulated:mdts=3"),
    ] {
        let comma = if below.contains(':') { "," } else { ":" };
        let line =
            format!("trace(partition(start=7,{below}{comma}size=8M,media=ram)) --verify -q 4 -w {pattern}");
        let tally = layered(&line, |_| {});
        let checks = tally.checks.unwrap();
        assert!(checks.checked > 0 && checks.mismatches == 0 && tally.errors == 0, "{line}: {checks:?}");
        assert_eq!(tally.layers.len(), 1, "only the trace counts");
    }
}

#[test]
fn a_partition_is_where_it_should_be() {
    let bench = Bench::new("partition(start=7,blocks=64,emulated:size=1M,media=ram) --verify -w write");
    assert_eq!(bench.job.blocks, 64);
    let options = QueueOptions::default();
    let route = Route::layered(bench.opened(), &bench.job.namespaces, bench.job.depth, options).unwrap();
    let mut worker = Worker::new(route, &bench.job, bench.opened(), &bench.control, bench.gauge()).unwrap();
    let mut work = bench.work();
    worker.pass(&mut work, Stage::Fill).unwrap();
    let pattern = crate::perf::verify::Pattern::new(bench.job.seed, 4096);
    pattern.check(5, 1, &bench.read(12)).unwrap();
    assert_eq!(bench.read(6), [0; 4096], "what is before it is not touched");
    assert_eq!(bench.read(71), [0; 4096], "nor what is behind it");
}

#[test]
fn a_lost_device_fails_each_io_once() {
    for line in ["trace(emulated) -q 8", "trace(emulated:media=ram) -q 8 --verify -w randrw"] {
        let tally = layered(line, |bench| {
            bench.opened().emulators[0].unplug();
            while !bench.control.any_lost() {
                std::thread::yield_now();
            }
            // As the supervisor does.
            bench.control.advance(Phase::Stop);
        });
        assert!((1..=8).contains(&tally.errors), "{line}: {}", tally.errors);
        assert!(tally.first_error.unwrap().1.is_lost());
    }
}

const TWO: &str = "emulated:size=4M,media=ram,serial=A,emulated:size=4M,media=ram,serial=B";

#[test]
fn a_mirror_goes_on_without_a_leg_and_its_data_are_right() {
    for pattern in ["randrw", "randread", "write -o 64k"] {
        for leg in [0, 1] {
            let line = format!("mirror({TWO}) --verify -q 8 -w {pattern}");
            let tally = layered(&line, |bench| {
                bench.opened().emulators[leg].unplug();
                let ios = bench.control.ios();
                while bench.control.ios() < ios + 2000 && !bench.control.any_lost() {
                    std::thread::yield_now();
                }
            });
            let checks = tally.checks.unwrap();
            assert!(checks.checked > 0 && checks.mismatches == 0 && tally.errors == 0, "{line}: {checks:?}");
        }
    }
}

#[test]
fn a_mirror_without_legs_and_a_stripe_without_one_fail() {
    for (layer, lost) in [("mirror", &[0, 1][..]), ("stripe", &[1])] {
        let line = format!("{layer}({TWO}) --verify -q 8 -w randrw");
        let tally = layered(&line, |bench| {
            lost.iter().for_each(|leg| bench.opened().emulators[*leg].unplug());
            while !bench.control.any_lost() {
                std::thread::yield_now();
            }
            bench.control.advance(Phase::Stop);
        });
        assert!((1..=8).contains(&tally.errors), "{line}: {}", tally.errors);
        assert_eq!(tally.checks.unwrap().mismatches, 0, "{line}");
    }
}

#[test]
fn a_stripe_of_mirrors_is_verified_on_all_its_controllers() {
    let (a, c) = (TWO, TWO.replace("serial=A", "serial=C").replace("serial=B", "serial=D"));
    let line = format!("stripe(chunk=16K,mirror({a}),mirror({c})) --verify -q 8 -w randrw -o 32k");
    let tally = layered(&line, |_| {});
    let checks = tally.checks.unwrap();
    assert!(checks.checked > 0 && checks.mismatches == 0 && tally.errors == 0, "{checks:?}");
    assert!(tally.counters.commands >= 2 * tally.latency.count(), "both legs, or both mirrors, of each");
}
