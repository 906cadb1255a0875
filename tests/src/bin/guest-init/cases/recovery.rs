//! Whatever happens to a driver or to its controller in the middle of writes, what was acknowledged is there: for the
//! next driver, and for the kernel's own.

use std::io::Write;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use kiovec_tests::ledger::{IN_FLIGHT, Ledger, UNIT_BYTES, UNITS};
use kiovec_tests::machine::{Controller, LEG, Machine, OTHER_LEG, OTHER_TWIN, TWIN};
use kiovec_tests::process;
use kiovec_tests::report::Ask;

use super::legs::{PROMPTLY, end_early, works};
use super::perf::{sound_report, wait_until_busy};
use crate::operator::ask;
use crate::program::{LIMIT, Output, Program, finish, program};
use crate::{Verdict, disk, ensure, pci, vfio};

/// How often a controller is reset.
const RESETS: u64 = 3;
/// How often a driver is killed.
const KILLS: u32 = 4;
/// Acknowledged writes until something happens to a writer.
const MEANWHILE: u64 = 300;
/// For as many in a writer that nothing is wrong with, emulated.
const PATIENCE: Duration = Duration::from_secs(30);

/// A writer that keeps a ledger, and what it writes on.
struct Writing {
    controller: &'static Controller,
    nsid: u32,
    path: PathBuf,
    ledger: Ledger,
}

impl Writing {
    fn on(controller: &'static Controller, nsid: u32) -> Result<Writing, String> {
        pci::rebind(controller, "vfio-pci")?;
        let path = PathBuf::from(format!("/tmp/ledger-{}-{nsid}", controller.serial));
        let ledger = Ledger::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Writing { controller, nsid, path, ledger })
    }

    /// A writer that begins by expecting what those before it have noted.
    fn writer(&self, form: &str, options: &str) -> Program {
        let (bdf, nsid, path) = (self.controller.bdf(), self.nsid, self.path.display());
        program(&format!("kiovec-guest-io generations {form} {bdf} {nsid} {path} {options}"))
    }

    fn acknowledged(&self) -> Result<u64, String> {
        self.ledger.acknowledged().map_err(|e| format!("{}: {e}", self.path.display()))
    }

    /// Waits until a writer has got further.
    fn wait_for_progress(&self, writer: &mut Child) -> Verdict {
        let enough = self.acknowledged()? + MEANWHILE;
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged()? < enough {
            // Nobody tells when the file changes; each look is at what has been noted.
            let ended =
                process::ended(writer, Duration::from_millis(20)).map_err(|e| format!("poll: {e}"))?;
            ensure!(!ended, "the writer ended by itself");
            ensure!(Instant::now() < deadline, "the writer gets no further");
        }
        Ok(())
    }

    /// The namespace finishes nothing until its controller is reset; returns when it has as much as it can have.
    fn stall(&self, writer: &mut Child) -> Verdict {
        stall(self.controller, self.nsid)?;
        let deadline = Instant::now() + PATIENCE;
        let failed = |e| format!("{}: {e}", self.path.display());
        loop {
            let before = self.acknowledged()?;
            let ended =
                process::ended(writer, Duration::from_millis(100)).map_err(|e| format!("poll: {e}"))?;
            ensure!(!ended, "the writer ended by itself");
            if self.ledger.in_flight().map_err(failed)? == IN_FLIGHT && self.acknowledged()? == before {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "its writes are not stalled");
        }
    }

    /// The kernel's own driver finds what was acknowledged.
    fn kernel_agrees(&self) -> Verdict {
        pci::rebind(self.controller, "nvme")?;
        let path = disk::path(self.controller, self.nsid)?;
        let blocks = self.controller.namespaces.iter().find(|namespace| namespace.nsid == self.nsid);
        let block = blocks.map_or(512, |namespace| namespace.block as usize);
        disk::read_each(&path, UNITS, UNIT_BYTES, |unit, data| self.ledger.check(unit, data, block))
    }
}

/// A driver is killed with a queue full of writes in flight, and the next one starts at once; again and again. They are
/// stalled as in [`reset_under_load`]: the kernel resets what nobody has open.
pub fn killed_again_and_again(_: &'static Machine) -> Verdict {
    let writing = Writing::on(&OTHER_LEG, 1)?;
    for kill in 0..KILLS {
        let run = writing.writer(["prp", "sgl"][kill as usize % 2], "");
        let text = run.to_string();
        let mut writer = run.start()?;
        let progress = writing.wait_for_progress(&mut writer).and_then(|()| writing.stall(&mut writer));
        writer.kill().map_err(|e| format!("kill: {e}"))?;
        let output = finish(text, writer, PROMPTLY)?;
        progress.map_err(|why| format!("after {kill} kills: {why}: {output}"))?;
    }
    writing.writer("prp", "--writes 300").succeeds()?;
    writing.kernel_agrees()
}

/// A controller is reset again and again with a queue full of writes in flight: all of them go on, each is there
/// afterwards.
///
/// They are stalled first, so that QEMU has fetched them all: what it fetches while it resets, it completes on a queue
/// that it has freed (10.0), and dies.
pub fn reset_under_load(_: &'static Machine) -> Verdict {
    let writing = Writing::on(&LEG, 2)?;
    let run = writing.writer("sgl", &format!("--writes 600 --resets {RESETS} --reset-on-line"));
    let text = run.to_string();
    let mut writer = run.listening().start()?;
    let reset = (0..RESETS).try_for_each(|_| {
        writing.wait_for_progress(&mut writer)?;
        writing.stall(&mut writer)?;
        let line = writer.stdin.as_mut().map(|stdin| stdin.write_all(b"\n"));
        line.unwrap_or(Ok(())).map_err(|e| format!("telling it to reset: {e}"))?;
        ask(&Ask::Recovered)
    });
    let output = finish(text, writer, LIMIT)?;
    reset.map_err(|why| format!("{why}: {output}"))?;
    ensure!(output.code == Some(0), "{output}");
    let (resets, resent) = (number(&output, "resets")?, number(&output, "resent")?);
    ensure!(resets == RESETS && resent > 0, "what was in flight was not sent again: {output}");
    ensure!(number(&output, "timeouts")? == 0, "timed out before it was reset: {output}");
    shadows_are_armed(&output)?;
    nothing_odd(&output)?;
    writing.kernel_agrees()
}

/// A device finishes nothing any more: the driver asks for Aborts, which QEMU's controller cannot do, and resets it.
/// A run that verifies goes on, and says so; and of a writer, what was late is there afterwards.
pub fn answers_late(_: &'static Machine) -> Verdict {
    late_run_goes_on()?;
    let writing = Writing::on(&LEG, 1)?;
    let run = writing.writer("prp", "--command-timeout 1 --resets 1 --writes 600");
    let text = run.to_string();
    let mut writer = run.start()?;
    let stalled = writing
        .wait_for_progress(&mut writer)
        .and_then(|()| stall(&LEG, 1))
        .and_then(|()| ask(&Ask::Recovered));
    let output = finish(text, writer, LIMIT)?;
    stalled.map_err(|why| format!("{why}: {output}"))?;
    ensure!(output.code == Some(0), "{output}");
    for counter in ["timeouts", "aborts", "resets", "resent"] {
        ensure!(number(&output, counter)? > 0, "no {counter}: {output}");
    }
    nothing_odd(&output)?;
    writing.kernel_agrees()
}

fn late_run_goes_on() -> Verdict {
    pci::rebind(&LEG, "vfio-pci")?;
    let workload = "-w randrw --verify --yes-destroy-data -q 16 -o 4096 -t 600 -a 0 --nsid 1 --json";
    let run = program(&format!("kiovec perf {workload} --command-timeout 1 {}", LEG.bdf())).telling();
    let text = run.to_string();
    let mut run = run.start()?;
    let stalled = wait_until_busy(&mut run)
        .and_then(|()| stall(&LEG, 1))
        .and_then(|()| ask(&Ask::Recovered))
        .and_then(|()| wait_until_busy(&mut run));
    end_early(&run)?;
    let output = finish(text, run, LIMIT)?;
    stalled.map_err(|why| format!("{why}: {output}"))?;
    ensure!(output.code == Some(0), "{output}");
    sound_report(&output)?;
    for counter in ["timeouts", "aborts", "queue_pair_resets", "resent"] {
        ensure!(recovery(&output, counter)? > 0, "no {counter}: {output}");
    }
    Ok(())
}

/// What `kiovec perf` counted of that.
fn recovery(output: &Output, name: &str) -> Result<u64, String> {
    let value = &output.json()?["recovery"][name];
    value.as_u64().ok_or_else(|| format!("{name} is {value}: {output}"))
}

/// The namespace finishes nothing until its controller is reset.
fn stall(controller: &Controller, nsid: u32) -> Verdict {
    ask(&Ask::Stall { serial: controller.serial.into(), nsid })
}

fn number(output: &Output, name: &str) -> Result<u64, String> {
    let value = &output.json()?[name];
    value.as_u64().ok_or_else(|| format!("{name} is {value}: {output}"))
}

/// QEMU's controllers have shadow doorbells: here they are, after whatever has happened.
fn shadows_are_armed(output: &Output) -> Verdict {
    let armed = &output.json()?["shadow_doorbells"];
    ensure!(*armed == true, "no shadow doorbells: {output}");
    Ok(())
}

/// QEMU's controller looks for tails and heads in memory: what is written and read that way is right. What comes of a
/// reset, [`reset_under_load`] shows.
pub fn shadow_doorbells(_: &'static Machine) -> Verdict {
    pci::rebind(&LEG, "vfio-pci")?;
    let identity = program(&format!("kiovec identify {} --json", LEG.bdf())).succeeds()?;
    let armed = &identity.json()?["controller"]["decoded"]["shadow_doorbells"];
    ensure!(*armed == true, "no shadow doorbells: {identity}");
    for depth in [1, 2, 64] {
        let workload =
            "-w randrw --verify --yes-destroy-data -o 4096 -a 0 --nsid 2 -t 600 --number-ios 2000 --json";
        let output = program(&format!("kiovec perf {workload} -q {depth} {}", LEG.bdf())).succeeds()?;
        sound_report(&output)?;
    }
    let writing = Writing::on(&OTHER_LEG, 2)?;
    let output = writing.writer("prp", "--writes 600").succeeds()?;
    shadows_are_armed(&output)?;
    nothing_odd(&output)?;
    writing.kernel_agrees()
}

/// No completion was delivered that answers nothing.
fn nothing_odd(output: &Output) -> Verdict {
    ensure!(number(output, "faults")? == 0, "completions that answer no command: {output}");
    Ok(())
}

/// While one process has a device, every other is told so, and what to do; so is one that wants the other function
/// of its group. The first notices nothing.
pub fn contended(_: &'static Machine) -> Verdict {
    pci::rebind(&TWIN, "vfio-pci")?;
    pci::rebind(&OTHER_TWIN, "vfio-pci")?;
    let perf = |options: &str, twin: &Controller| {
        program(&format!("kiovec perf {options} --yes-destroy-data -o 4096 -a 0 --json {}", twin.bdf()))
    };
    let run = perf("-w randrw --verify -q 16 -t 600", &TWIN).telling();
    let text = run.to_string();
    let mut first = run.start()?;
    let refused = wait_until_busy(&mut first).and_then(|()| {
        let group = format!("IOMMU group {} is in use by another process", pci::group(&TWIN)?);
        for twin in [&TWIN, &OTHER_TWIN] {
            let words = [&twin.bdf()[..], &group, "end it, or choose another device"];
            perf("-w randwrite -q 4 -t 1", twin).refuses(&words)?;
        }
        program(&format!("hugepage-setup unbind {}", TWIN.bdf())).refuses(&[&TWIN.bdf(), "process"])
    });
    end_early(&first)?;
    let output = finish(text, first, LIMIT)?;
    refused?;
    ensure!(output.code == Some(0), "{output}");
    sound_report(&output)?;
    works(&OTHER_TWIN)
}

/// The BAR dies under a writer: it ends by itself; what was acknowledged is there for the next one, and for the kernel.
pub fn dead_bar_under_writes(_: &'static Machine) -> Verdict {
    let writing = Writing::on(&OTHER_LEG, 1)?;
    let run = writing.writer("sgl", "");
    let text = run.to_string();
    let mut writer = run.start()?;
    let cleared = writing.wait_for_progress(&mut writer).and_then(|()| vfio::clear_memory_space(&writer));
    let output = finish(text, writer, PROMPTLY)?;
    cleared.map_err(|why| format!("{why}: {output}"))?;
    ensure!(output.code == Some(1), "no error: {output}");
    output.err_has(&[&OTHER_LEG.bdf(), "controller lost"])?;
    writing.writer("prp", "--writes 300").succeeds()?;
    writing.kernel_agrees()
}
