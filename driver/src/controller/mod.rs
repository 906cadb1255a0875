//! A controller: bring-up, admin commands, events, namespaces, queue pairs, shutdown.
//!
//! Knows the admin command set and the life of a controller; must not know requests. Safe to share
//! between threads: admin commands take a lock, queue pairs belong to whoever had them created.
#![forbid(unsafe_code)]

mod abort;
mod admin;
mod event;
mod loss;
mod namespace;
mod quirks;
mod registers;
mod reset;
mod watch;

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use zerocopy::FromBytes;

use self::abort::Aborts;
use self::admin::AdminQueue;
use self::event::Inbox;
use self::loss::Loss;
use self::namespace::Known;
pub(crate) use self::namespace::Live;
use self::quirks::Quirks;
use self::registers::Registers;
pub(crate) use self::reset::Era;
use self::reset::{Course, SharedEra};
use self::watch::{Audience, Watch};
use crate::memory::{Access, Attachment, DmaSpace, MemoryChain, RawCommands};
use crate::pci::{Clock, DoorbellPage, Function, ShadowDoorbells};
use crate::queue::{CompletionRing, SubmissionRing, contiguous_prps};
use crate::spec::command::NSID_ALL;
use crate::spec::identify::{self, ActiveNamespaces, NamespaceDescriptors, NvmController};
use crate::spec::registers::{cq_head_doorbell, doorbell_stride, sq_tail_doorbell};
use crate::spec::{Cap, Cns, Command, Completion, FeatureId, NumberOfQueues, Version};
use crate::{Error, Result};

pub use event::ControllerEvent;
pub use namespace::{Namespace, NamespaceState};
pub use quirks::Quirk;

/// I/O queue pairs that are asked for: one per thread of a large machine.
const QUEUE_PAIRS: u32 = 128;
/// Pages of the active namespace list that are looked at, at most, of 1024 NSIDs each.
const MAX_NAMESPACE_PAGES: usize = 16;
/// The largest NSID of a namespace; FFFFFFFFh stands for all of them.
const LAST_NSID: u32 = NSID_ALL - 1;
/// NSIDs that an error names, at most.
const NAMED: usize = 16;
/// log2 of the bytes of the entries of submission and completion queues.
const ENTRY_SIZES: (u8, u8) = (6, 4);

/// The version register of 2.0, the first to have CNS 06h.
const VERSION_2_0: u32 = 0x0002_0000;

/// An NVMe controller, enabled and ready. Dropping the last handle shuts it down.
///
/// ```
/// use kiovec::{Controller, memory::DmaSpace};
/// use kiovec_emulator::{Config, Emulator};
/// let emulator = Emulator::spawn(Config::default())?;
/// let space = DmaSpace::new()?;
/// let controller = Controller::open(emulator.function(), &space)?;
/// for nsid in controller.active_namespaces()? {
///     println!("namespace {nsid}: {} blocks", controller.namespace(nsid)?.blocks());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Controller {
    id: u64,
    registers: Registers,
    admin: Mutex<Admin>,
    known: Known,
    inbox: Inbox,
    identity: Box<identify::Controller>,
    nvm: Option<Box<NvmController>>,
    doorbells: DoorbellPage,
    /// Of a controller that has shadow doorbells, whether it takes them or not.
    shadows: Option<Arc<ShadowDoorbells>>,
    qids: Mutex<Vec<u16>>,
    quirks: Quirks,
    space: DmaSpace,
    /// The era in which it had a fatal status.
    failed: AtomicU64,
    era: SharedEra,
    /// A poller needs a reset while another thread waits for an admin command.
    interrupt: Arc<AtomicBool>,
    /// Why it was lost.
    loss: OnceLock<Loss>,
    /// It was told that Command Retry Delays are known.
    advanced_retry: bool,
    // Before the function: unmapping needs the IOMMU, which may go with the last function behind it.
    _attachment: Attachment,
    function: Arc<dyn Function>,
}

/// The admin queue, and what it is kept busy with when nobody waits for it.
struct Admin {
    queue: AdminQueue,
    watch: Watch,
    aborts: Aborts,
    course: Course,
    /// Rings that the controller may still have, until it is stopped.
    stranded: Vec<(SubmissionRing, CompletionRing)>,
}

/// The rings of an I/O queue pair that a controller has created.
#[derive(Debug)]
pub(crate) struct QueuePair {
    pub(crate) qid: u16,
    pub(crate) sq: SubmissionRing,
    pub(crate) cq: CompletionRing,
}

/// What stands when bring-up fails half-way: undone on drop, so that the device is left as it was.
struct Enabling<'a> {
    registers: &'a Registers,
    function: &'a dyn Function,
    space: &'a DmaSpace,
}

impl Drop for Enabling<'_> {
    fn drop(&mut self) {
        let disabled = self.registers.clear_enable();
        if self.function.set_bus_master(false).is_err() && disabled.is_err() {
            self.space.retire();
        }
    }
}

impl Controller {
    /// Resets and enables the controller behind `function`, with its memory from `space`
    /// (Base 2.0, section 3.5.1). Every wait is bounded by the controller's own CAP.TO or CRTO, within half
    /// a second to ten minutes.
    pub fn open(function: Arc<dyn Function>, space: &DmaSpace) -> Result<Arc<Controller>> {
        let quirks = pci_quirks(&*function)?;
        let registers = Registers::open(Arc::clone(&function), quirks)?;
        let attachment = space.attach(function.domain())?;
        let dstrd = registers.cap.dstrd();
        let admin_doorbells = function.doorbells(2 * doorbell_stride(dstrd))?;
        registers.disable()?;
        let interrupt = Arc::<AtomicBool>::default();
        let (its, bells) = (Arc::clone(&interrupt), &admin_doorbells);
        let mut admin = AdminQueue::new(Arc::clone(&function), space, bells, dstrd, its)?;
        let mut watch = Watch::new(space)?;
        let mut shadows = None;
        // After all that the controller writes to, so that it is dropped before: first the controller stops, then its
        // rings go.
        let undo = Enabling { registers: &registers, function: &*function, space };
        function.set_bus_master(true)?;
        registers.enable(admin.sq(), admin.cq())?;
        let table = prp_table(space, quirks);
        let mut commands = Commands { admin: &mut admin, space, table, millis: admin::TIMEOUT_MILLIS };
        let identity = commands.identify::<identify::Controller>(Cns::CONTROLLER, 0, 0)?;
        if let Some(what) = unfit(&identity) {
            return Err(Error::Unsupported { device: function.name().into(), what });
        }
        let nvm = match registers.version.into_bits() >= VERSION_2_0 {
            true => commands.identify(Cns::COMMAND_SET_CONTROLLER, 0, 0).ok(),
            false => None,
        };
        let pairs = commands.number_of_queues()?;
        let advanced_retry = commands.enable_advanced_retry(&identity)?;
        if identity.oacs & identify::OACS_DOORBELL_BUFFER != 0 {
            commands.arm_doorbells(shadows.insert(ShadowDoorbells::new(space)?))?;
        }
        watch.arm(&mut commands, &identity)?;
        let doorbells = function.doorbells(2 * (u64::from(pairs) + 1) * doorbell_stride(dstrd))?;
        std::mem::forget(undo);
        static IDS: AtomicU64 = AtomicU64::new(1);
        Ok(Arc::new(Controller {
            failed: AtomicU64::new(u64::MAX),
            id: IDS.fetch_add(1, Ordering::Relaxed),
            registers,
            era: SharedEra::default(),
            interrupt,
            loss: OnceLock::new(),
            advanced_retry,
            admin: Mutex::new(Admin {
                queue: admin,
                watch,
                aborts: Aborts::new(identity.acl),
                course: Course::new(),
                stranded: Vec::new(),
            }),
            known: Known::default(),
            inbox: Inbox::default(),
            identity,
            nvm,
            doorbells,
            shadows,
            qids: Mutex::new((1..=pairs).rev().collect()),
            quirks,
            space: space.clone(),
            function,
            _attachment: attachment,
        }))
    }

    /// Whether a namespace was identified by this controller.
    pub(crate) fn owns(&self, namespace: &Namespace) -> bool {
        namespace.controller == self.id
    }

    /// The name it was opened by.
    pub fn name(&self) -> &str {
        self.function.name()
    }

    /// The space its memory comes from.
    pub fn space(&self) -> &DmaSpace {
        &self.space
    }

    /// Controller Capabilities (Base 2.0, section 3.1.3.1).
    pub fn capabilities(&self) -> Cap {
        self.registers.cap
    }

    /// Version register (Base 2.0, section 3.1.3.2).
    pub fn version(&self) -> Version {
        self.registers.version
    }

    /// Identify Controller data, as of bring-up (Base 2.0, section 5.17.2.1).
    pub fn identity(&self) -> &identify::Controller {
        &self.identity
    }

    /// Identify data of the NVM command set (NVM Command Set 1.0, section 4.1.5.4), where there are.
    pub fn nvm_identity(&self) -> Option<&NvmController> {
        self.nvm.as_deref()
    }

    /// I/O queue pairs that can still be created. All that the controller granted, before the first.
    pub fn available_queue_pairs(&self) -> usize {
        self.qids().len()
    }

    /// How long it asks to wait before a command is sent again, by Command Retry Delay from 1 on; `None` if it
    /// asks for none.
    pub(crate) fn retry_delays(&self) -> Option<[Duration; 3]> {
        let delay = |units: u16| Duration::from_millis(100 * u64::from(units));
        self.advanced_retry.then(|| self.identity.crdt.map(delay))
    }

    /// Whether it looks for tails and heads in memory (Doorbell Buffer Config), so that its doorbells need not be
    /// written each time.
    pub fn has_shadow_doorbells(&self) -> bool {
        self.shadows.as_ref().is_some_and(|shadows| shadows.is_armed())
    }

    /// Whether a quirk applies to it.
    pub fn has_quirk(&self, quirk: Quirk) -> bool {
        self.quirks.has(quirk)
    }

    /// Fails if the controller was lost, and says why; or has stopped: CSTS.CFS, or registers that read as all ones.
    /// While it is reset nothing is wrong with it. Reads a register: not for the I/O path.
    pub fn check(&self) -> Result<()> {
        let era = self.era();
        let Era::Running(number) = era else { return self.outlived() };
        if self.failed.load(Ordering::Relaxed) == number {
            return Err(Error::Fatal { device: self.name().into() });
        }
        let checked = registers::check(&*self.function);
        // What was read in the middle of a reset says nothing.
        if self.era() != era {
            return self.outlived();
        }
        // Whoever looks first has it reset: all others are to learn the cause, not that it is disabled.
        if matches!(checked, Err(Error::Fatal { .. })) {
            self.failed.store(number, Ordering::Relaxed);
        }
        checked
    }

    /// What the controller has reported of its own accord, oldest first, until there is nothing more. Any
    /// thread may take events; each comes once. Those that nobody takes are kept, up to 64, and counted
    /// beyond that.
    ///
    /// A poller with a queue pair of the controller has events read every thousand polls. Where nobody
    /// polls, this does it: an event takes several calls until it is there.
    pub fn events(&self) -> impl Iterator<Item = ControllerEvent> + '_ {
        self.attend();
        std::iter::from_fn(|| self.inbox.take())
    }

    /// Goes on with events as far as that is possible without waiting: not at all while another thread uses
    /// the admin queue. Reads no register, unless something was told of the function.
    pub(crate) fn attend(&self) {
        let Some(mut admin) = self.try_admin() else { return };
        self.heed(&mut admin);
        if !admin.course.is_running() {
            return self.advance(&mut admin);
        }
        let Admin { queue, watch, aborts, .. } = &mut *admin;
        watch.turn(queue, &Audience { known: &self.known, inbox: &self.inbox });
        let answers = aborts.turn(queue);
        if queue.is_stuck() {
            self.stop(&mut admin);
        } else if !answers {
            self.begin(&mut admin);
        }
    }

    /// The admin queue, if no other thread uses it.
    fn try_admin(&self) -> Option<MutexGuard<'_, Admin>> {
        match self.admin.try_lock() {
            Ok(admin) => Some(admin),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Asks for an Abort of a command, without waiting for it; false if that cannot be asked for now.
    pub(crate) fn abort(&self, qid: u16, cid: u16) -> bool {
        self.try_admin().is_some_and(|mut admin| {
            let Admin { queue, aborts, course, .. } = &mut *admin;
            course.is_running() && aborts.ask(queue, qid, cid)
        })
    }

    /// The next answer to an Abort of a queue's command, that has come: its CID, and whether it was aborted.
    pub(crate) fn abort_answer(&self, qid: u16) -> Option<(u16, bool)> {
        self.try_admin()?.aborts.answer(qid)
    }

    /// Another number than before if a namespace has changed that there is a handle of.
    pub(crate) fn namespaces_epoch(&self) -> u64 {
        self.known.epoch()
    }

    /// The NSIDs of the active namespaces, ascending (Base 2.0, section 5.17.2.2).
    ///
    /// A list that is out of order, names one twice or names none that can be is read all the same: the NSIDs
    /// that can be, each once, up to the first 0 of each page, and 16,384 of them at most.
    pub fn active_namespaces(&self) -> Result<Vec<u32>> {
        self.commands(|commands| commands.active_namespaces())
    }

    /// Identifies an active namespace.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace> {
        // Under one lock: no change is reported before there is somebody to tell.
        self.commands(|commands| {
            let active = commands.active_namespaces()?;
            if !active.contains(&nsid) {
                let device = self.name().into();
                return Err(Error::NoNamespace { device, nsid, active: list(&active) });
            }
            let identity = commands.identify(Cns::NAMESPACE, nsid, 0)?;
            let descriptors = match commands.identify::<[u8; 4096]>(Cns::NAMESPACE_DESCRIPTORS, nsid, 0) {
                Ok(list) => NamespaceDescriptors::new(&list).collect(),
                // Optional before version 1.3.
                Err(Error::Command { .. }) => Vec::new(),
                Err(error) => return Err(error),
            };
            let live = Arc::new(Live::new(nsid, &identity));
            self.known.add(&live);
            Ok(Namespace { controller: self.id, identity, descriptors, live })
        })
    }

    /// An admin command of the caller's own making: CID and data pointer are filled in. `memory`,
    /// which may be empty, is contiguous. Blocks until the completion is there, at most `millis`
    /// milliseconds. A completion with an error status is not an error of this function.
    ///
    /// If it fails otherwise, the memory is the controller's until that completes the command, or is reset. A command
    /// that was not completed in time is aborted, and if it is not completed in a minute more, the controller is reset.
    /// So give a command that may take long, as Format NVM, the time that it needs.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::Resetting`] while the controller is reset, or if a poller needs a reset meanwhile;
    /// what [`check`](Controller::check) says of a controller that has stopped, which is reset then.
    pub fn admin(
        &self,
        command: &Command,
        memory: MemoryChain,
        millis: u64,
        _trust: RawCommands,
    ) -> Result<(Completion, MemoryChain)> {
        // An address of the caller's would go past every check.
        let command = command.with_prps(0, 0);
        self.commands(|commands| commands.execute(&command, memory, millis))
    }

    /// Creates an I/O queue pair, with entries as powers of two.
    pub(crate) fn create_queue_pair(&self, sq_entries: u32, cq_entries: u32) -> Result<QueuePair> {
        let qid = self.qids().pop().ok_or_else(|| Error::Unsupported {
            device: self.name().into(),
            what: "it has no more I/O queue pairs; use fewer threads".into(),
        })?;
        // A command that was not answered may have been carried out: then the QID is not free.
        self.create_rings(qid, sq_entries, cq_entries).inspect_err(|error| match error {
            Error::Timeout { .. } | Error::Gone { .. } | Error::Disconnected { .. } | Error::Fatal { .. } => {
            }
            _ => self.qids().push(qid),
        })
    }

    fn create_rings(&self, qid: u16, sq_entries: u32, cq_entries: u32) -> Result<QueuePair> {
        let (function, dstrd) = (&*self.function, self.registers.cap.dstrd());
        let (sq, cq) =
            admin::rings(function, &self.space, &self.doorbells, dstrd, qid, sq_entries, cq_entries)?;
        // Some queue's that has gone may have left something there: clean before the controller knows of this one.
        let shadow = |offset| self.shadows.as_ref().filter(|it| it.is_armed())?.shadow(offset);
        let sq = sq.with_shadow(shadow(sq_tail_doorbell(qid, dstrd)));
        let cq = cq.with_shadow(shadow(cq_head_doorbell(qid, dstrd)));
        self.command(&Command::create_io_cq(qid, cq.len(), cq.iova()))?;
        if let Err(error) = self.command(&Command::create_io_sq(qid, sq.len(), sq.iova(), qid)) {
            if self.command(&Command::delete_io_cq(qid)).is_err() {
                self.admin.lock().unwrap_or_else(PoisonError::into_inner).stranded.push((sq, cq));
            }
            return Err(error);
        }
        self.admin.lock().unwrap_or_else(PoisonError::into_inner).course.join(qid);
        Ok(QueuePair { qid, sq, cq })
    }

    /// Deletes an I/O queue pair, unless a reset has ended it, and it was not created anew. When this returns
    /// `Ok`, no command of it is in flight any more.
    pub(crate) fn delete_queue_pair(&self, qid: u16, ended: bool) -> Result<()> {
        let mut admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = admin.course.leave(qid) || ended && admin.course.is_running();
        drop(admin);
        if ended {
            self.qids().push(qid);
            return Ok(());
        }
        self.command(&Command::delete_io_sq(qid))?;
        self.command(&Command::delete_io_cq(qid))?;
        self.qids().push(qid);
        Ok(())
    }

    /// The clock that time-outs run by.
    pub(crate) fn clock(&self) -> Clock {
        self.function.clock()
    }

    /// What a thread does that has nothing to do but wait for the controller.
    pub(crate) fn pause(&self) {
        self.function.pause();
    }

    /// Makes sure that the controller touches no memory: disabled, or reset, or off the bus.
    pub(crate) fn quiesce(&self) -> Result<()> {
        let reset = |error| match error {
            // To reset what is gone can block for minutes in the kernel.
            Error::Gone { .. } | Error::Disconnected { .. } => Err(error),
            _ => self.function.reset(),
        };
        self.registers.disable().or_else(reset).or_else(|_| self.function.set_bus_master(false))
    }

    pub(crate) fn prp_table(&self) -> Option<u64> {
        prp_table(&self.space, self.quirks)
    }

    fn command(&self, command: &Command) -> Result<Completion> {
        self.commands(|commands| {
            commands.succeed(command, MemoryChain::new()).map(|(completion, _)| completion)
        })
    }

    fn commands<T>(&self, f: impl FnOnce(&mut Commands<'_>) -> Result<T>) -> Result<T> {
        let mut admin = self.running()?;
        let result = f(&mut self.commands_of(&mut admin.queue, admin::TIMEOUT_MILLIS));
        match result {
            _ if self.interrupt.load(Ordering::Relaxed) => self.begin(&mut admin),
            // It is not counted: no command is sent again for it, so that this has an end.
            Err(Error::Fatal { .. } | Error::Disabled { .. }) => self.stop(&mut admin),
            Err(Error::Gone { .. } | Error::Disconnected { .. }) => self.lose(&mut admin.course, Loss::Gone),
            Err(Error::Timeout { .. }) => {
                let Admin { queue, aborts, .. } = &mut *admin;
                aborts.turn(queue);
            }
            _ => {}
        }
        result
    }

    /// The admin queue of a controller that commands can be sent to.
    fn running(&self) -> Result<MutexGuard<'_, Admin>> {
        let mut admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        self.outlived()?;
        // With nobody who looks, commands of one's own must not fill the queue.
        if admin.queue.is_stuck() && admin.course.is_running() {
            self.stop(&mut admin);
        }
        if let Some(refusal) = admin.course.refusal(self.name()) {
            return Err(refusal);
        }
        // It was of use to nobody who waited then.
        self.interrupt.store(false, Ordering::Relaxed);
        Ok(admin)
    }

    fn qids(&self) -> MutexGuard<'_, Vec<u16>> {
        self.qids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.registers.shut_down(self.identity.rtd3e);
        let quiet = self.quiesce();
        let off = self.function.set_bus_master(false);
        if quiet.is_err() && off.is_err() {
            self.space.retire();
        }
    }
}

/// The admin queue in use.
struct Commands<'a> {
    admin: &'a mut AdminQueue,
    space: &'a DmaSpace,
    /// The table that lists contiguous memory, unless the controller wants lists of its own.
    table: Option<u64>,
    /// What a command is granted.
    millis: u64,
}

impl Commands<'_> {
    fn execute(
        &mut self,
        command: &Command,
        memory: MemoryChain,
        millis: u64,
    ) -> Result<(Completion, MemoryChain)> {
        let mut command = *command;
        if !memory.is_empty() {
            let [prp1, prp2] = self.prps(&memory)?;
            command = command.with_prps(prp1, prp2);
        }
        // Not dropped by an unwinding: then it is the controller's.
        let memory = ManuallyDrop::new(memory);
        let result = self.admin.execute(&command, millis);
        let memory = ManuallyDrop::into_inner(memory);
        match result {
            Ok(completion) => Ok((completion, memory)),
            Err(error) => {
                self.admin.give_up(memory);
                Err(error)
            }
        }
    }

    fn prps(&self, memory: &MemoryChain) -> Result<[u64; 2]> {
        if memory.segments().iter().any(|segment| segment.space() != self.space.id()) {
            let what = "the memory of an admin command belongs to another DmaSpace than the controller";
            return Err(Error::InvalidInput(what.into()));
        }
        contiguous_prps(memory, self.table).ok_or_else(|| {
            Error::InvalidInput("the memory of an admin command must be contiguous, within 2 MiB".into())
        })
    }

    fn succeed(&mut self, command: &Command, memory: MemoryChain) -> Result<(Completion, MemoryChain)> {
        let (completion, memory) = self.execute(command, memory, self.millis)?;
        match completion.status() {
            status if status.is_success() => Ok((completion, memory)),
            status => {
                let device = self.admin.name().into();
                Err(Error::Command { device, command: admin::name(command), status })
            }
        }
    }

    fn identify<T: FromBytes>(&mut self, cns: Cns, nsid: u32, cntid: u16) -> Result<Box<T>> {
        let mut memory = MemoryChain::from(self.space.segment(4096, 4096, Access::ReadWrite)?);
        memory.fill(0);
        let (_, memory) = self.succeed(&Command::identify(cns, nsid, cntid), memory)?;
        let bytes = memory.segments().first().map_or(&[][..], |segment| segment.as_slice());
        // Identify data are 4096 bytes, and so is every T.
        T::read_from_bytes(bytes).map(Box::new).map_err(|_| Error::InvalidInput("identify data".into()))
    }

    fn active_namespaces(&mut self) -> Result<Vec<u32>> {
        let mut nsids: Vec<u32> = Vec::new();
        for _ in 0..MAX_NAMESPACE_PAGES {
            let after = nsids.last().copied().unwrap_or(0);
            let list: Box<ActiveNamespaces> = self.identify(Cns::ACTIVE_NAMESPACES, after, 0)?;
            nsids.extend(list.iter().filter(|nsid| *nsid <= LAST_NSID));
            nsids.sort_unstable();
            nsids.dedup();
            if list.iter().count() < list.nsids.len() || nsids.last() == Some(&LAST_NSID) {
                break;
            }
        }
        Ok(nsids)
    }

    /// Says that Command Retry Delays are known, to a controller that has any (Host Behavior Support, Base 2.0,
    /// section 5.27.1.18). False if it has none, or does not take it.
    fn enable_advanced_retry(&mut self, identity: &identify::Controller) -> Result<bool> {
        if identity.crdt.iter().all(|time| *time == 0) {
            return Ok(false);
        }
        let mut memory = MemoryChain::from(self.space.segment(4096, 4096, Access::Read)?);
        memory.fill(0);
        // ACRE is the first byte.
        memory.copy_from_slice(0, &[1]);
        match self.succeed(&Command::set_features(FeatureId::HOST_BEHAVIOR, 0), memory) {
            Ok(_) => Ok(true),
            Err(Error::Command { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tells the controller of shadow doorbells (Doorbell Buffer Config, Base 2.0, section 5.8). One that does not
    /// take them is told everything by its registers.
    fn arm_doorbells(&mut self, shadows: &ShadowDoorbells) -> Result<()> {
        let (doorbells, events) = shadows.forgotten();
        match self.succeed(&Command::doorbell_buffer_config(doorbells, events), MemoryChain::new()) {
            Ok(_) => shadows.set_armed(true),
            Err(Error::Command { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Asks for queues and returns how many pairs there are (Base 2.0, section 5.27.1.5).
    fn number_of_queues(&mut self) -> Result<u16> {
        let wanted = NumberOfQueues { submission: QUEUE_PAIRS, completion: QUEUE_PAIRS };
        let command = Command::set_features(FeatureId::NUMBER_OF_QUEUES, wanted.encode());
        let (completion, _) = self.succeed(&command, MemoryChain::new())?;
        let granted = NumberOfQueues::decode(completion.dw0);
        Ok(granted.submission.min(granted.completion).min(QUEUE_PAIRS) as u16)
    }
}

fn prp_table(space: &DmaSpace, quirks: Quirks) -> Option<u64> {
    (!quirks.has(Quirk::AlignedLists)).then(|| space.prp_table())
}

/// What keeps this driver from driving a controller, by its Identify data. A queue entry size of 0 stands for
/// one that is not reported; everything else that is absurd there is left alone, or limits what is used.
fn unfit(identity: &identify::Controller) -> Option<String> {
    let fits = |sizes: u8, ours: u8| sizes == 0 || (sizes & 0xf..=sizes >> 4).contains(&ours);
    let (sqes, cqes) = ENTRY_SIZES;
    let (theirs, what, size) = match identity {
        id if !fits(id.sqes, sqes) => (id.sqes, "submission", sqes),
        id if !fits(id.cqes, cqes) => (id.cqes, "completion", cqes),
        _ => return None,
    };
    let (least, most) = (1u32 << (theirs & 0xf), 1u32 << (theirs >> 4));
    Some(format!(
        "its {what} queue entries have {least} to {most} bytes; those of this driver have {}",
        1 << size
    ))
}

/// NSIDs for a message.
fn list(nsids: &[u32]) -> String {
    let named = nsids.iter().take(NAMED).map(u32::to_string).collect::<Vec<_>>().join(", ");
    match nsids.len() {
        0 => "none".into(),
        count if count > NAMED => format!("{named} and {} more", count - NAMED),
        _ => named,
    }
}

/// The quirks that go with the function's IDs (configuration space, offsets 0 and 2).
fn pci_quirks(function: &dyn Function) -> Result<Quirks> {
    let mut ids = [0; 4];
    function.config_read(0, &mut ids)?;
    let [v0, v1, d0, d1] = ids;
    Ok(Quirks::of(u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1])))
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").field("name", &self.name()).finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Controller>();
};
