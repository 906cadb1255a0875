//! Running a controller: in a thread of its own, or step by step in the caller's.
//!
//! Knows threads and time; must not know NVMe.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kiovec::pci::Function;
use kiovec::spec::{AsyncEvent, Command};

use crate::config::{Config, ConfigError};
use crate::controller::{Health, Remedy};
use crate::counters::Counters;
use crate::faults::{Commands, Faults};
use crate::function::{EmulatedFunction, Shared};
use crate::media::MediaError;

/// Polls without work before the thread lets others run in between: some tens of microseconds.
const SPIN: u32 = 2_000;
/// Idle turns, each with a yield, before the thread sleeps in between: some tens of milliseconds.
const YIELD: u32 = 50_000;
/// How long it sleeps then.
const NAP: Duration = Duration::from_micros(50);

/// Why there is no emulator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not possible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the blocks are stored in cannot be used.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The thread could not be started, or not be pinned to its processor.
    #[error("cannot {what}: {source}")]
    Thread {
        /// What was being done.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// A software NVMe controller. Dropping it is pulling the device: functions and domains that a
/// driver still holds stay valid, and all registers read as ones.
///
/// ```
/// use kiovec_emulator::{Config, Emulator};
/// let emulator = Emulator::stepped(Config::default())?;
/// let function = emulator.function();
/// assert_eq!(function.read32(kiovec::spec::registers::VS)?, 0x0002_0000);
/// drop(emulator);
/// assert_eq!(function.read32(kiovec::spec::registers::VS)?, u32::MAX);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Emulator {
    shared: Arc<Shared>,
    function: Arc<EmulatedFunction>,
    thread: Option<Thread>,
}

/// The thread that runs a controller. Dropping it ends it.
pub(crate) struct Thread {
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it, on a processor if that is wanted.
    pub(crate) fn start(shared: &Arc<Shared>, core: Option<usize>) -> Result<Thread, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = std::sync::mpsc::channel();
        let (its_shared, its_stop) = (Arc::clone(shared), Arc::clone(&stop));
        let body = move || {
            let pinned = core.map_or(Ok(()), pin);
            let failed = pinned.is_err();
            let _ = ready.send(pinned);
            if !failed {
                run(&its_shared, &its_stop);
            }
        };
        let handle = std::thread::Builder::new()
            .name("nvme-emulator".into())
            .spawn(body)
            .map_err(|source| Error::Thread { what: "start the emulator's thread".into(), source })?;
        if let Ok(Err(source)) = started.recv() {
            return Err(not_on(core, source));
        }
        Ok(Thread { stop, handle: Some(handle) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle.take() {
            // A thread that panicked has nothing more to say here.
            let _ = handle.join();
        }
    }
}

impl Emulator {
    /// Starts a controller in a thread of its own.
    pub fn spawn(config: Config) -> Result<Emulator, Error> {
        config.check()?;
        let core = config.core;
        let shared = Arc::new(Shared::threaded(config)?);
        let thread = Thread::start(&shared, core)?;
        Ok(Emulator::new(shared, Some(thread)))
    }

    /// A controller that does something only in [`step`](Emulator::step), and when the driver
    /// waits for it ([`Function::pause`]). Its clock is virtual: the same calls have the same results.
    pub fn stepped(config: Config) -> Result<Emulator, Error> {
        config.check()?;
        Ok(Emulator::new(Arc::new(Shared::stepped(config)?), None))
    }

    fn new(shared: Arc<Shared>, thread: Option<Thread>) -> Emulator {
        let function = Arc::new(EmulatedFunction::new(Arc::clone(&shared)));
        Emulator { shared, function, thread }
    }

    /// The controller as a PCI function, to be given to a driver. Always the same one.
    pub fn function(&self) -> Arc<dyn Function> {
        let function: Arc<EmulatedFunction> = Arc::clone(&self.function);
        function
    }

    /// Lets the controller do what there is to do, once around its queues. Returns how much it
    /// did; 0 means that nothing will happen until the driver does something or time passes. A
    /// controller with a thread of its own needs no steps.
    pub fn step(&self) -> usize {
        self.shared.step()
    }

    /// Lets virtual time go on. Nothing happens before the next step. Without effect on a
    /// controller with a thread of its own.
    pub fn advance(&self, by: Duration) {
        self.shared.advance(by);
    }

    /// What the controller has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.controller().counters()
    }

    /// From now on, commands that are fetched meet these faults, and no others that were planned
    /// before, by the configuration included.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.controller().set_faults(faults);
    }

    /// How many commands each fault of the plan has struck, in the order of the plan. One that has
    /// struck none was not reached.
    pub fn injections(&self) -> Vec<u64> {
        self.shared.controller().injections()
    }

    /// From now on, these commands are fetched, but neither carried out nor completed, until they
    /// are released. Commands may be held for several reasons at a time.
    ///
    /// ```
    /// use kiovec_emulator::{Commands, Config, Emulator};
    /// let emulator = Emulator::stepped(Config::default())?;
    /// emulator.hold(Commands::writes());
    /// // The driver submits writes of blocks 1 to 3, and:
    /// emulator.step();
    /// for (_queue, command) in emulator.held() {
    ///     println!("write of block {} is held", command.slba());
    /// }
    /// // The write of block 2 completes first, and then the others.
    /// emulator.release(Commands::writes().lbas(2..=2));
    /// emulator.release(Commands::writes());
    /// emulator.step();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hold(&self, commands: Commands) {
        self.shared.controller().hold(commands);
    }

    /// The commands that are held, and their submission queues, in the order in which they were
    /// fetched.
    pub fn held(&self) -> Vec<(u16, Command)> {
        self.shared.controller().held()
    }

    /// How many I/O commands the host has told the controller of that are not over: in submission queues, or
    /// fetched and not completed.
    pub fn outstanding(&self) -> usize {
        self.shared.controller().outstanding()
    }

    /// Whether one of those moves data to or from memory within this range of I/O virtual addresses. As long as
    /// that is so, a driver must not give the memory to anybody else.
    pub fn may_touch(&self, memory: &Range<u64>) -> bool {
        self.shared.controller().may_touch(memory)
    }

    /// Releases those among the held commands that are among these, and returns their number. They
    /// complete from the next step on, in the order in which they were released. What is fetched
    /// later is held as before.
    pub fn release(&self, commands: Commands) -> usize {
        self.shared.controller().release(commands)
    }

    /// Releases all commands, and holds none any more.
    pub fn release_all(&self) -> usize {
        self.shared.controller().release_all()
    }

    /// Gives a namespace another number of blocks; what is cut off is lost. A host that wants to know is
    /// told (Namespace Attribute Changed). False, and nothing happens, if there is no such namespace, it
    /// has that size, that is more than 4096T, or more than it began with on the part of a file that it has.
    ///
    /// ```
    /// use kiovec::{Controller, memory::DmaSpace};
    /// use kiovec_emulator::{Config, Emulator};
    /// let emulator = Emulator::stepped(Config::parse("size=16M,block=4096")?)?;
    /// let controller = Controller::open(emulator.function(), &DmaSpace::new()?)?;
    /// let namespace = controller.namespace(1)?;
    /// assert!(emulator.resize(1, 100));
    /// while controller.events().next().is_none() {
    ///     emulator.step();
    /// }
    /// assert_eq!(namespace.blocks(), 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resize(&self, nsid: u32, blocks: u64) -> bool {
        self.shared.controller().resize(nsid, blocks)
    }

    /// Attaches a namespace that was detached; at first all of them are attached. The host is told. False
    /// if there is no such namespace, or it is attached.
    pub fn attach(&self, nsid: u32) -> bool {
        self.shared.controller().attach(nsid, true)
    }

    /// Detaches a namespace: it is not active any more, and commands for it fail. The host is told. False
    /// if there is no such namespace, or it is detached.
    pub fn detach(&self, nsid: u32) -> bool {
        self.shared.controller().attach(nsid, false)
    }

    /// Says that the Identify data of a namespace have changed: for changes by
    /// [`Faults::identify`](crate::Faults::identify).
    pub fn namespace_changed(&self, nsid: u32) {
        self.shared.controller().namespace_changed(nsid);
    }

    /// From now on, the SMART / Health log says this. A host that wants to know is told of each critical
    /// warning that was not there before.
    pub fn set_health(&self, health: Health) {
        self.shared.controller().set_health(health);
    }

    /// Says that the activation of firmware begins. The firmware stays what it is.
    pub fn activate_firmware(&self) {
        self.shared.controller().activate_firmware();
    }

    /// Whether the host has asked for any kind of event since the last reset.
    pub fn is_listened_to(&self) -> bool {
        self.shared.controller().is_listened_to()
    }

    /// Reports an event, whatever it is, and whether the host has asked for it or not.
    pub fn raise(&self, event: AsyncEvent) {
        self.shared.controller().raise(event);
    }

    /// What is on the medium of a namespace, from block `lba` on, without asking the controller: no
    /// command, no fault, and also when it has failed or is unplugged. Zeros beyond its end, and where blocks
    /// are stored in a file. False if there is no such namespace.
    pub fn read_medium(&self, nsid: u32, lba: u64, bytes: &mut [u8]) -> bool {
        self.shared.controller().read_medium(nsid, lba, bytes)
    }

    /// Writes an EventIdx that is not so, for the tail of an I/O queue: the host may leave out a write to its doorbell
    /// that is needed, or make one that is not. Until the controller says something else. False if the queue has no
    /// shadow doorbell.
    pub fn misstate_event(&self, qid: u16, event: u32) -> bool {
        self.shared.controller().misstate_event(qid, event)
    }

    /// The controller has a fatal error: it reports CSTS.CFS, and does nothing until it is reset.
    pub fn fail(&self) {
        self.shared.controller().fail();
    }

    /// The power fails for a moment: of what was written and is not flushed, any part is lost
    /// ([`Config::write_cache`]), and the controller is disabled, without queues.
    ///
    /// ```
    /// use kiovec_emulator::{Config, Emulator};
    /// let emulator = Emulator::stepped(Config::parse("size=1M,media=ram,write_cache=64")?)?;
    /// // The driver writes, and:
    /// emulator.power_loss();
    /// println!("{} blocks are lost", emulator.counters().faults.lost_blocks);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn power_loss(&self) {
        self.shared.controller().power_loss();
    }

    /// The controller goes on with what it does; but once it is disabled, it does not get ready any more,
    /// until something helps.
    pub fn hang(&self, until: Remedy) {
        self.shared.controller().hang(until);
    }

    /// The device is pulled: registers read as all ones, doorbells do nothing, and memory is not
    /// touched any more. As when the emulator is dropped, but it can still be asked what it did.
    pub fn unplug(&self) {
        self.shared.controller().remove();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.thread = None;
        self.shared.controller().remove();
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("name", &self.shared.name())
            .field("threaded", &self.thread.is_some())
            .finish_non_exhaustive()
    }
}

/// Whether a thread can run on this processor: who starts one later wants to know now.
pub(crate) fn check_core(core: Option<usize>) -> Result<(), Error> {
    let Some(number) = core else { return Ok(()) };
    let tried = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || pin(number))?;
        // It does not panic.
        thread.join().unwrap_or(Ok(()))
    });
    tried.map_err(|source| not_on(core, source))
}

fn not_on(core: Option<usize>, source: std::io::Error) -> Error {
    Error::Thread { what: format!("run the emulator on processor {}", core.unwrap_or_default()), source }
}

fn pin(core: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// The controller's thread: holds the lock while it has work and nobody calls in.
fn run(shared: &Shared, stop: &AtomicBool) {
    let mut idle = 0;
    while !stop.load(Ordering::Relaxed) {
        serve(shared, stop, &mut idle);
        let_callers_in(shared, stop);
        match idle {
            0..SPIN => {}
            SPIN..YIELD => std::thread::yield_now(),
            _ => std::thread::sleep(NAP),
        }
    }
}

/// Polls until somebody calls in, or there has been nothing to do for a while.
#[inline(never)]
fn serve(shared: &Shared, stop: &AtomicBool, idle: &mut u32) {
    let mut controller = shared.lock();
    loop {
        if controller.poll() > 0 {
            *idle = 0;
        } else {
            *idle = idle.saturating_add(1);
            std::hint::spin_loop();
        }
        if shared.has_callers() || *idle >= SPIN || stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Waits for callers to get their turn; not for ever, as there may always be another one.
fn let_callers_in(shared: &Shared, stop: &AtomicBool) {
    for _ in 0..1000 {
        if !shared.has_callers() || stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::yield_now();
    }
}
