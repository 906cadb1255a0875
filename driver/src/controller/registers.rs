//! The controller's registers: enable, disable, shut down, each with every wait bounded.
//!
//! Knows the order of steps that Base 2.0, sections 3.5 and 3.6, asks for; must not know queues.

use std::sync::Arc;

use super::quirks::{DELAY_BEFORE_READY_MILLIS, Quirk, Quirks};
use crate::pci::Function;
use crate::spec::registers as reg;
use crate::spec::{Aqa, Cap, Cc, Crto, Csts, Version};
use crate::{Error, Result};

/// The longest wait for CSTS.RDY that a controller can ask for: CRTO goes up to 9 hours, CAP.TO to two
/// minutes.
const READY_MOST_MILLIS: u64 = 600_000;
/// Shutdown without RTD3E: what hosts commonly grant.
const SHUTDOWN_MILLIS: u64 = 5_000;
/// RTD3E is in microseconds and goes up to 71 minutes; nobody waits that long.
const SHUTDOWN_MOST_MILLIS: u64 = 60_000;

/// A controller as far as its registers go.
pub(super) struct Registers {
    function: Arc<dyn Function>,
    pub(super) cap: Cap,
    pub(super) version: Version,
    quirks: Quirks,
    /// How long a change of CC.EN may take.
    ready_millis: u64,
}

/// A change of CC.EN that was asked for: from when on, and until when it shows in CSTS.RDY, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    look_from: u64,
    until: u64,
}

impl Registers {
    /// Reads what never changes, once, so that nothing relies on it staying the same, and refuses what this driver cannot drive.
    pub(super) fn open(function: Arc<dyn Function>, quirks: Quirks) -> Result<Registers> {
        let version = function.read32(reg::VS)?;
        let cap = Cap::from_bits(function.read64(reg::CAP)?);
        if version == u32::MAX || cap.into_bits() == u64::MAX {
            return Err(function.gone());
        }
        let crto = if cap.crms() != 0 { function.read32(reg::CRTO)? } else { 0 };
        let ready_millis = ready_millis(cap, Crto::from_bits(crto));
        let registers =
            Registers { function, cap, version: Version::from_bits(version), quirks, ready_millis };
        if version == 0 {
            return Err(registers.unsupported("its version register is 0, which no specification has"));
        }
        if cap.mpsmin() > 0 {
            let size = 4u64 << cap.mpsmin();
            return Err(registers
                .unsupported(format!("its smallest memory page is {size} KiB; only 4 KiB is supported")));
        }
        if cap.css() & 1 == 0 && cap.css() & (1 << 6) == 0 {
            return Err(registers.unsupported("it has no NVM command set"));
        }
        if cap.mqes() == 0 {
            return Err(registers.unsupported("CAP.MQES is 0, which the specification forbids"));
        }
        Ok(registers)
    }

    /// CC.EN 1 → 0 and CSTS.RDY to 0: a controller reset. A transition of EN before RDY has followed
    /// the last one is undefined, so that is waited for first.
    pub(super) fn disable(&self) -> Result<()> {
        if self.configuration()?.en() {
            // A controller that never gets there is disabled all the same.
            let _ = self.wait("CSTS.RDY = 1", self.ready_millis, |csts| csts.rdy() || csts.cfs());
        }
        self.clear_enable()
    }

    /// The same for a controller that failed to get ready: nothing is waited for before.
    pub(super) fn clear_enable(&self) -> Result<()> {
        let cc = self.configuration()?;
        if cc.en() {
            self.function.write32(reg::CC, cc.with_en(false).with_shn(reg::SHN_NONE).into_bits())?;
            self.delay_before_ready();
        }
        self.wait("CSTS.RDY = 0", self.ready_millis, |csts| !csts.rdy())
    }

    // ---- the same step by step, for a reset that nobody waits for ----

    /// CC.EN to 0.
    pub(super) fn begin_disable(&self, now: u64) -> Result<Change> {
        let cc = self.configuration()?;
        if cc.en() {
            self.function.write32(reg::CC, cc.with_en(false).with_shn(reg::SHN_NONE).into_bits())?;
        }
        Ok(self.change(now))
    }

    /// Whether CSTS.RDY is 0; an error if it ought to be.
    pub(super) fn is_disabled(&self, change: &Change, now: u64) -> Result<bool> {
        self.has_changed(change, now, "CSTS.RDY = 0", |csts| Ok(!csts.rdy()))
    }

    /// CC.EN to 1 with the admin queues at these addresses.
    pub(super) fn begin_enable(&self, sq: (u64, u32), cq: (u64, u32), now: u64) -> Result<Change> {
        self.write_enable(sq, cq)?;
        Ok(self.change(now))
    }

    /// Whether CSTS.RDY is 1; an error if it ought to be, or never will.
    pub(super) fn is_enabled(&self, change: &Change, now: u64) -> Result<bool> {
        self.has_changed(change, now, "CSTS.RDY = 1", |csts| match csts.cfs() {
            true => Err(Error::Fatal { device: self.function.name().into() }),
            false => Ok(csts.rdy()),
        })
    }

    fn change(&self, now: u64) -> Change {
        let pause = if self.quirks.has(Quirk::DelayBeforeReady) { DELAY_BEFORE_READY_MILLIS } else { 0 };
        let after = |millis: u64| now.saturating_add(millis.saturating_mul(1_000_000));
        Change { look_from: after(pause), until: after(pause + self.ready_millis) }
    }

    fn has_changed(
        &self,
        change: &Change,
        now: u64,
        what: &'static str,
        reached: impl Fn(Csts) -> Result<bool>,
    ) -> Result<bool> {
        if now < change.look_from {
            return Ok(false);
        }
        if reached(status(&*self.function)?)? {
            return Ok(true);
        }
        if now > change.until {
            let (device, millis) = (self.function.name().into(), self.ready_millis);
            return Err(Error::NotReady { device, millis, what });
        }
        Ok(false)
    }

    fn configuration(&self) -> Result<Cc> {
        match self.function.read32(reg::CC)? {
            u32::MAX => Err(self.function.gone()),
            cc => Ok(Cc::from_bits(cc)),
        }
    }

    /// CC.EN 0 → 1 with the admin queues at these addresses, and CSTS.RDY to 1.
    pub(super) fn enable(&self, sq: (u64, u32), cq: (u64, u32)) -> Result<()> {
        self.write_enable(sq, cq)?;
        self.delay_before_ready();
        self.wait("CSTS.RDY = 1", self.ready_millis, |csts| csts.rdy() || csts.cfs())?;
        check(&*self.function)
    }

    fn write_enable(&self, sq: (u64, u32), cq: (u64, u32)) -> Result<()> {
        let aqa = Aqa::new().with_asqs((sq.1 - 1) as u16).with_acqs((cq.1 - 1) as u16);
        self.function.write32(reg::AQA, aqa.into_bits())?;
        self.function.write64(reg::ASQ, sq.0)?;
        self.function.write64(reg::ACQ, cq.0)?;
        // Command sets: all that are supported where CAP.CSS bit 6 says so, else NVM.
        let css = if self.cap.css() & (1 << 6) != 0 { 0b110 } else { 0 };
        let cc = Cc::new().with_en(true).with_css(css).with_iosqes(6).with_iocqes(4);
        self.function.write32(reg::CC, cc.into_bits())
    }

    /// Orderly shutdown (Base 2.0, section 3.6.1), in the time that RTD3E (µs, 0 for unknown) asks for. A
    /// controller that is disabled already is left alone: shut down in that state, it would carry out no
    /// command when it is enabled, as only EN 1 → 0 ends a shutdown.
    pub(super) fn shut_down(&self, rtd3e_micros: u32) -> Result<()> {
        let cc = self.configuration()?;
        if !cc.en() {
            return Ok(());
        }
        self.function.write32(reg::CC, cc.with_shn(reg::SHN_NORMAL).into_bits())?;
        let millis = match u64::from(rtd3e_micros).div_ceil(1000) {
            0 => SHUTDOWN_MILLIS,
            millis => millis.clamp(SHUTDOWN_MILLIS, SHUTDOWN_MOST_MILLIS),
        };
        self.wait("shutdown complete", millis, |csts| csts.shst() == reg::SHST_COMPLETE || csts.cfs())
    }

    fn delay_before_ready(&self) {
        if self.quirks.has(Quirk::DelayBeforeReady) {
            let clock = self.function.clock();
            let end = clock.nanos() + DELAY_BEFORE_READY_MILLIS * 1_000_000;
            while clock.nanos() < end {
                self.function.pause();
            }
        }
    }

    fn wait(&self, what: &'static str, millis: u64, reached: impl Fn(Csts) -> bool) -> Result<()> {
        let clock = self.function.clock();
        let end = clock.nanos().saturating_add(millis.saturating_mul(1_000_000));
        loop {
            // The time is read first: a thread that was held up must look once more before it
            // gives up.
            let late = clock.nanos() > end;
            if reached(status(&*self.function)?) {
                return Ok(());
            }
            if late {
                return Err(Error::NotReady { device: self.function.name().into(), millis, what });
            }
            self.function.pause();
        }
    }

    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { device: self.function.name().into(), what: what.into() }
    }
}

/// The controller's own word on how long a change of EN takes, in units of 500 ms: CRTO where CAP.CRMS says
/// that there is one, else CAP.TO. 0 is half a second, and no word is taken for more than ten minutes.
fn ready_millis(cap: Cap, crto: Crto) -> u64 {
    let crwmt = if cap.crms() == 0 { 0 } else { crto.crwmt() };
    let units = u64::from(crwmt).max(cap.to().into());
    (units.max(1) * 500).min(READY_MOST_MILLIS)
}

/// CSTS, or an error if the device is gone.
fn status(function: &dyn Function) -> Result<Csts> {
    let gone = || function.gone();
    match function.read32(reg::CSTS)? {
        u32::MAX => Err(gone()),
        // Some bridges answer for a device that is gone with zeros, and a controller that is there always
        // has a version.
        0 if matches!(function.read32(reg::VS)?, 0 | u32::MAX) => Err(gone()),
        csts => Ok(Csts::from_bits(csts)),
    }
}

/// Fails if an enabled controller answers nothing any more: it is gone, has stopped (CSTS.CFS), or was
/// disabled by something else than this driver.
pub(super) fn check(function: &dyn Function) -> Result<()> {
    let csts = status(function)?;
    match (csts.cfs(), csts.rdy()) {
        (true, _) => Err(Error::Fatal { device: function.name().into() }),
        (false, false) => Err(Error::Disabled { device: function.name().into() }),
        (false, true) => Ok(()),
    }
}
