//! The controller as the driver sees it: a PCI function, and the domain through which it reaches
//! memory.
//!
//! Knows how calls reach the controller, whichever thread it runs in; must not know what they do.

use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiovec::memory::{Domain, Mapping};
use kiovec::pci::{Clock, DoorbellPage, Function};
use kiovec::{Error, Result};

use crate::config::Config;
use crate::controller::Controller;
use crate::doorbells::Doorbells;
use crate::media::{MediaError, Store};

/// Interrupt messages of x86: no memory is mapped there.
const MSI_WINDOW: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// How far virtual time goes on when the driver waits: large beside a poll, small beside a time-out.
const PAUSE: Duration = Duration::from_millis(1);
/// The same, once nothing has happened in so many pauses in a row: what is waited for does not come.
const LONG_PAUSE: Duration = Duration::from_millis(8);
const IDLE_PAUSES: u32 = 256;

/// A controller, and the lock that its thread shares with everybody who calls in.
pub(crate) struct Shared {
    name: String,
    iova_bits: u8,
    /// Virtual time, if the controller is stepped.
    time: Option<Arc<AtomicU64>>,
    controller: Mutex<Controller>,
    /// Pauses in a row in which a stepped controller had nothing to do.
    idle_pauses: AtomicU32,
    /// Callers that wait for the controller's thread to let go of the lock.
    waiting: AtomicU32,
}

impl Shared {
    /// A controller that is stepped by its caller.
    pub(crate) fn stepped(config: Config) -> std::result::Result<Shared, MediaError> {
        let stores = Store::open(&config)?;
        let doorbells = Doorbells::new(config.queues);
        let time = Arc::new(AtomicU64::new(0));
        let clock = Clock::Virtual(Arc::clone(&time));
        let names = (config.name.clone(), config.iova_bits);
        Ok(Shared::new(names, Some(time), Controller::new(config, clock, 1, doorbells, stores)))
    }

    /// A controller that has a thread of its own.
    pub(crate) fn threaded(config: Config) -> std::result::Result<Shared, MediaError> {
        let stores = Store::open(&config)?;
        let doorbells = Doorbells::new(config.queues);
        Ok(Shared::served(config, doorbells, stores))
    }

    /// The same, with given doorbells and contents.
    pub(crate) fn served(config: Config, doorbells: Arc<Doorbells>, stores: Vec<Store>) -> Shared {
        let names = (config.name.clone(), config.iova_bits);
        Shared::new(names, None, Controller::new(config, Clock::Monotonic, 1024, doorbells, stores))
    }

    fn new((name, iova_bits): (String, u8), time: Option<Arc<AtomicU64>>, controller: Controller) -> Shared {
        let (idle_pauses, waiting) = (AtomicU32::new(0), AtomicU32::new(0));
        Shared { name, iova_bits, time, controller: Mutex::new(controller), idle_pauses, waiting }
    }

    /// Polls a stepped controller, and returns how much it did.
    pub(crate) fn step(&self) -> usize {
        let work = self.controller().poll();
        if work > 0 {
            self.idle_pauses.store(0, Ordering::Relaxed);
        }
        work
    }

    /// The same in a pause, and tells whether there has been nothing to do in many of them.
    fn step_is_idle(&self) -> bool {
        self.step() == 0 && self.idle_pauses.fetch_add(1, Ordering::Relaxed) >= IDLE_PAUSES
    }

    /// The controller, for a caller.
    pub(crate) fn controller(&self) -> MutexGuard<'_, Controller> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let controller = self.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        controller
    }

    /// The controller, for its thread, which gives it up while there are callers.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Controller> {
        // A panic would be a bug of the emulator's; its callers go on as well as they can.
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline(always)]
    pub(crate) fn has_callers(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Lets virtual time go on.
    pub(crate) fn advance(&self, by: Duration) {
        if let Some(time) = &self.time {
            time.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Virtual time, if the controller is stepped.
    pub(crate) fn time(&self) -> Option<&Arc<AtomicU64>> {
        self.time.as_ref()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// The function. Holds the controller, not the thread that runs it.
pub(crate) struct EmulatedFunction {
    shared: Arc<Shared>,
    domain: Arc<EmulatedDomain>,
}

impl EmulatedFunction {
    pub(crate) fn new(shared: Arc<Shared>) -> EmulatedFunction {
        let domain = Arc::new(EmulatedDomain { shared: Arc::clone(&shared) });
        EmulatedFunction { shared, domain }
    }

    /// An access of `len` bytes to BAR0 must be aligned and within it.
    fn check(&self, controller: &Controller, offset: u64, len: u64) -> Result<()> {
        if offset.is_multiple_of(len) && offset < controller.bar_len() {
            return Ok(());
        }
        Err(Error::InvalidInput(format!(
            "{}: no register of {len} bytes at offset {offset:#x} of BAR0, which is {:#x} bytes long",
            self.shared.name,
            controller.bar_len()
        )))
    }

    fn check_config(&self, offset: u16, len: usize) -> Result<()> {
        if usize::from(offset) + len <= 4096 {
            return Ok(());
        }
        let name = &self.shared.name;
        Err(Error::InvalidInput(format!("{name}: {len} bytes at {offset:#x} are not in configuration space")))
    }
}

impl Function for EmulatedFunction {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn domain(&self) -> Arc<dyn Domain> {
        let domain: Arc<EmulatedDomain> = Arc::clone(&self.domain);
        domain
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        self.check_config(offset, data.len())?;
        self.shared.controller().config_read(offset, data);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        self.check_config(offset, data.len())?;
        self.shared.controller().config_write(offset, data);
        Ok(())
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let controller = self.shared.controller();
        self.check(&controller, offset, 4)?;
        Ok(controller.read32(offset))
    }

    fn read64(&self, offset: u64) -> Result<u64> {
        let controller = self.shared.controller();
        self.check(&controller, offset, 8)?;
        let (low, high) = (controller.read32(offset), controller.read32(offset + 4));
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        let mut controller = self.shared.controller();
        self.check(&controller, offset, 4)?;
        controller.write32(offset, value);
        Ok(())
    }

    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        let mut controller = self.shared.controller();
        self.check(&controller, offset, 8)?;
        controller.write32(offset, value as u32);
        controller.write32(offset + 4, (value >> 32) as u32);
        Ok(())
    }

    fn doorbells(&self, len: u64) -> Result<DoorbellPage> {
        let controller = self.shared.controller();
        let doorbells = controller.doorbells();
        if len > doorbells.len() {
            let (name, there) = (&self.shared.name, doorbells.len());
            return Err(Error::InvalidInput(format!("{name}: {len} bytes of doorbells; there are {there}")));
        }
        Ok(doorbells.page(len))
    }

    fn reset(&self) -> Result<()> {
        let mut controller = self.shared.controller();
        if controller.is_gone() {
            return Err(Error::Gone { device: self.shared.name.clone() });
        }
        controller.function_reset();
        Ok(())
    }

    fn clock(&self) -> Clock {
        match self.shared.time() {
            Some(time) => Clock::Virtual(Arc::clone(time)),
            None => Clock::Monotonic,
        }
    }

    fn pause(&self) {
        if self.shared.time().is_none() {
            return std::thread::yield_now();
        }
        self.shared.advance(if self.shared.step_is_idle() { LONG_PAUSE } else { PAUSE });
    }
}

/// The translation table in front of the controller.
pub(crate) struct EmulatedDomain {
    shared: Arc<Shared>,
}

impl EmulatedDomain {
    fn refuse(&self, iova: u64, len: u64, reason: impl std::fmt::Display) -> Error {
        let name = self.shared.name();
        Error::InvalidInput(format!("{name}: cannot map or unmap {len:#x} bytes at IOVA {iova:#x}: {reason}"))
    }
}

impl Domain for EmulatedDomain {
    fn name(&self) -> String {
        self.shared.name().to_owned()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        let last = u64::MAX >> (64 - self.shared.iova_bits);
        let below = 0..=MSI_WINDOW.start() - 1;
        if last > *MSI_WINDOW.end() { vec![below, MSI_WINDOW.end() + 1..=last] } else { vec![below] }
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<()> {
        let (iova, len) = (mapping.iova(), mapping.len());
        let last = iova.saturating_add(len.saturating_sub(1));
        let fits = |range: &RangeInclusive<u64>| range.contains(&iova) && range.contains(&last);
        if !self.iova_ranges().iter().any(fits) {
            return Err(self.refuse(iova, len, "outside of its IOVA ranges"));
        }
        let mapped = self.shared.controller().dma().map(mapping);
        mapped.map_err(|error| self.refuse(iova, len, error))
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<()> {
        // The lock is the promise: the controller is not in the middle of an access.
        let unmapped = self.shared.controller().dma().unmap(iova, len);
        unmapped.map_err(|error| self.refuse(iova, len, error))
    }
}

// What is shared crosses threads: say so here, rather than where it first does.
const _: () = {
    const fn is_shared<T: Any + Send + Sync>() {}
    is_shared::<Shared>();
};
