//! Whatever happens to a driver or to its controller in the middle of writes, what was acknowledged is there: for the
//! next driver, and for the kernel's own.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use kiovec_tests::ledger::{Ledger, UNIT_BYTES, UNITS};
use kiovec_tests::machine::{Controller, LEG, Machine, OTHER_LEG, OTHER_TWIN, TWIN};
use kiovec_tests::process;
use kiovec_tests::report::Ask;

use super::legs::{PROMPTLY, works};
use super::perf::{sound_report, wait_until_busy};
use crate::operator::ask;
use crate::program::{LIMIT, Output, Program, finish, program};
use crate::{Verdict, disk, ensure, pci, vfio};

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

    /// The kernel's own driver finds what was acknowledged.
    fn kernel_agrees(&self) -> Verdict {
        pci::rebind(self.controller, "nvme")?;
        let path = disk::path(self.controller, self.nsid)?;
        let blocks = self.controller.namespaces.iter().find(|namespace| namespace.nsid == self.nsid);
        let block = blocks.map_or(512, |namespace| namespace.block as usize);
        disk::read_each(&path, UNITS, UNIT_BYTES, |unit, data| self.ledger.check(unit, data, block))
    }
}

/// A driver is killed in the middle of its writes, and the next one starts at once; again and again.
pub fn killed_again_and_again(_: &'static Machine) -> Verdict {
    let writing = Writing::on(&OTHER_LEG, 1)?;
    for kill in 0..KILLS {
        let run = writing.writer(["prp", "sgl"][kill as usize % 2], "");
        let text = run.to_string();
        let mut writer = run.start()?;
        let progress = writing.wait_for_progress(&mut writer);
        writer.kill().map_err(|e| format!("kill: {e}"))?;
        let output = finish(text, writer, PROMPTLY)?;
        progress.map_err(|why| format!("after {kill} kills: {why}: {output}"))?;
    }
    writing.writer("prp", "--writes 300").succeeds()?;
    writing.kernel_agrees()
}

/// A controller is reset again and again in the middle of writes: all of them go on, each is there afterwards.
pub fn reset_under_load(_: &'static Machine) -> Verdict {
    let writing = Writing::on(&LEG, 2)?;
    let output = writing.writer("sgl", "--writes 1500 --reset-every 250").succeeds()?;
    let (resets, resent) = (number(&output, "resets")?, number(&output, "resent")?);
    ensure!(resets >= 4 && resent > 0, "what was in flight was not sent again: {output}");
    nothing_odd(&output)?;
    writing.kernel_agrees()
}

/// A device finishes nothing any more: the driver asks for Aborts, which QEMU's controller cannot do, and resets it.
/// What was late is there afterwards, once.
pub fn answers_late(_: &'static Machine) -> Verdict {
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

/// The namespace finishes nothing until its controller is reset.
fn stall(controller: &Controller, nsid: u32) -> Verdict {
    ask(&Ask::Stall { serial: controller.serial.into(), nsid })
}

fn number(output: &Output, name: &str) -> Result<u64, String> {
    let value = &output.json()?[name];
    value.as_u64().ok_or_else(|| format!("{name} is {value}: {output}"))
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
    let run = perf("-w randrw --verify -q 16 -t 4", &TWIN);
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
    let output = finish(text, first, LIMIT)?;
    refused?;
    ensure!(output.code == Some(0), "{output}");
    sound_report(&output)?;
    works(&OTHER_TWIN)
}

/// Memory Space Enable is cleared under a driver: its BAR is dead, and its process with it, for every access is a
/// SIGBUS. The function is as good as before for the next one, and a process on another controller notices nothing.
pub fn dead_bar(_: &'static Machine) -> Verdict {
    let writing = Writing::on(&OTHER_LEG, 1)?;
    let run = writing.writer("sgl", "");
    let text = run.to_string();
    let mut writer = run.start()?;
    let cleared = writing.wait_for_progress(&mut writer).and_then(|()| vfio::clear_memory_space(&writer));
    let output = finish(text, writer, PROMPTLY)?;
    cleared.map_err(|why| format!("{why}: {output}"))?;
    ensure!(output.code != Some(0), "no error: {output}");
    writing.writer("prp", "--writes 300").succeeds()?;
    writing.kernel_agrees()
}
