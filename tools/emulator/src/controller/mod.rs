//! The controller as a state machine: registers (Base 2.0, section 3.1.3), reset and shutdown
//! (sections 3.6 and 3.7), and the queues that it serves.
//!
//! Written from the specification, and as strict as hardware is. Nothing happens but in
//! [`Controller::poll`] and in accesses to registers. Knows everything about NVMe; must not know
//! threads, nor who steps it.

mod admin;
mod feature;
mod identify;
mod log;
mod namespaces;
mod nvm;
mod outstanding;
mod pending;
mod queue;
mod shadow;
mod transfer;
mod write_cache;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kiovec::pci::Clock;
use kiovec::spec::identify::{OAES_FIRMWARE_ACTIVATION, OAES_NAMESPACE_ATTRIBUTE};
use kiovec::spec::log::AsyncEvent;
use kiovec::spec::registers::{self, CSS_NVM, SHN_NONE, SHST_COMPLETE, SHST_NORMAL, SHST_OCCURRING};
use kiovec::spec::{Aqa, Cap, Cc, Command, Completion, Crto, Csts, LogPage, Status};

use crate::config::Config;
use crate::counters::Counters;
use crate::dma::{Dma, Fault};
use crate::doorbells::{DSTRD, Doorbells};
use crate::media::Store;
use crate::msix::{Interrupts, Layout};
use crate::pci_config::{ConfigSpace, Effect};
use feature::Features;
pub use log::Health;
use log::{Changed, ErrorLog, Events};
use nvm::Nvm;
use pending::Fetched;
use queue::{BadDoorbell, CompletionQueue, SubmissionQueue};
pub(crate) use transfer::{Run, unreachable_memory};

/// Commands fetched from one submission queue before the next one has its turn.
const BURST: usize = 32;
/// The same where a command may wait for a disk: then no more than one is executed in a poll, as whoever wants
/// to read a register or end a mapping waits until the poll is over.
const ONE: usize = 1;
/// What a function that is not there reads as.
const ONES: u32 = u32::MAX;

/// Where the controller stands between two polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CC.EN and CSTS.RDY are 0.
    Disabled,
    /// CC.EN is 1, CSTS.RDY becomes 1 at this time.
    Enabling { ready_at: u64 },
    /// CC.EN and CSTS.RDY are 1.
    Ready,
    /// CC.EN is 0, CSTS.RDY still 1.
    Disabling,
    /// CSTS.CFS is 1.
    Failed,
}

/// What a controller that hangs needs, before it is ready again ([`Emulator::hang`](crate::Emulator::hang)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// A reset of the function.
    FunctionReset,
    /// Nothing helps.
    None,
}

/// What a command ends with: dword 0 of its completion, or how it failed; `None` if it waits for
/// something to happen.
type Answer = Option<Result<u32, Status>>;

pub(crate) struct Controller {
    config: Config,
    clock: Clock,
    pci: ConfigSpace,
    gone: bool,
    state: State,
    /// Commands are executed: ready, not shut down, bus master, not gone.
    running: bool,
    /// They are not completed as they are fetched: there are faults to be injected, or they are held.
    planned: bool,
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    masked_interrupts: u32,
    dma: Dma,
    /// The epoch of the table that the queues' windows are good for.
    epoch: u64,
    doorbells: Arc<Doorbells>,
    /// Where doorbells have their shadows, if the host has said so.
    shadows: Option<shadow::Buffers>,
    /// By queue identifier; 0 is the Admin queue.
    sqs: Vec<Option<SubmissionQueue>>,
    cqs: Vec<Option<CompletionQueue>>,
    /// I/O submission queues that there are.
    active: Vec<u16>,
    queues_created: bool,
    /// Admin completions that have no room in their queue yet.
    backlog: VecDeque<Completion>,
    features: Features,
    events: Events,
    errors: ErrorLog,
    changed: Changed,
    health: Health,
    nvm: Nvm,
    /// Commands fetched from one submission queue before the next one has its turn.
    burst: usize,
    fetched: Fetched,
    /// It is not ready any more when it is enabled, until something helps.
    hung: Option<Remedy>,
    interrupts: Interrupts,
    counters: Counters,
    /// Idle polls between two looks at doorbells of queues that there are not. A power of two.
    scan_interval: u32,
    idle_polls: u32,
}

impl Controller {
    /// A controller as after power-on, with what is stored in its namespaces.
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        scan_interval: u32,
        doorbells: Arc<Doorbells>,
        stores: Vec<Store>,
    ) -> Controller {
        let interrupts = Interrupts::new(Layout::new(config.queues));
        let dma = Dma::new();
        let queues = usize::from(config.queues) + 1;
        let fetched = Fetched::new(config.faults(), queues);
        let waits = stores.iter().any(Store::waits);
        Controller {
            clock,
            pci: ConfigSpace::new(bar_len(&doorbells), interrupts.layout()),
            gone: false,
            state: State::Disabled,
            running: false,
            planned: !fetched.is_idle(),
            cc: Cc::new(),
            csts: Csts::new(),
            aqa: Aqa::new(),
            asq: 0,
            acq: 0,
            masked_interrupts: 0,
            epoch: dma.epoch(),
            dma,
            doorbells,
            shadows: None,
            sqs: std::iter::repeat_with(|| None).take(queues).collect(),
            cqs: std::iter::repeat_with(|| None).take(queues).collect(),
            active: Vec::new(),
            queues_created: false,
            backlog: VecDeque::new(),
            features: Features::new(&config),
            events: Events::default(),
            errors: ErrorLog::default(),
            changed: Changed::default(),
            health: Health::default(),
            nvm: Nvm::new(&config, stores),
            burst: if waits { ONE } else { BURST },
            fetched,
            hung: None,
            interrupts,
            counters: Counters::default(),
            scan_interval,
            idle_polls: 0,
            config,
        }
    }

    pub(crate) fn dma(&mut self) -> &mut Dma {
        &mut self.dma
    }

    pub(crate) fn doorbells(&self) -> &Arc<Doorbells> {
        &self.doorbells
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn interrupts(&mut self) -> &mut Interrupts {
        &mut self.interrupts
    }

    /// What is stored in the namespaces, for another controller. This one is not used any more.
    pub(crate) fn take_stores(&mut self) -> Vec<Store> {
        self.remove();
        self.nvm.take_stores()
    }

    /// What is on the medium, whatever state the controller is in.
    pub(crate) fn read_medium(&self, nsid: u32, lba: u64, bytes: &mut [u8]) -> bool {
        self.nvm.peek(nsid, lba, bytes)
    }

    /// The device is pulled: registers read as all ones from now on, and nothing happens any more.
    pub(crate) fn remove(&mut self) {
        self.lose_cache_with_power();
        self.gone = true;
        self.fetched.clear();
        self.update_running();
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    // Configuration space and resets.

    pub(crate) fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.gone { data.fill(0xff) } else { self.pci.read(offset, data) }
    }

    pub(crate) fn config_write(&mut self, offset: u16, data: &[u8]) {
        if self.gone {
            return;
        }
        if self.pci.write(offset, data) == Effect::Reset {
            self.function_reset();
        }
        self.interrupts.set_function_masked(self.pci.masks_interrupts());
        self.update_running();
    }

    /// Function Level Reset (Base 2.0, section 3.7.2): all registers as after power-on.
    /// Configuration space stays, as whoever asks for the reset would restore it.
    pub(crate) fn function_reset(&mut self) {
        self.controller_reset();
        self.counters.function_resets += 1;
        self.hung = self.hung.filter(|remedy| *remedy != Remedy::FunctionReset);
        self.interrupts.reset();
        self.state = State::Disabled;
        self.cc = Cc::new();
        self.csts = Csts::new();
        self.aqa = Aqa::new();
        (self.asq, self.acq) = (0, 0);
    }

    /// Controller Level Reset (Base 2.0, section 3.7.2). AQA, ASQ and ACQ stay.
    fn controller_reset(&mut self) {
        self.lose_cache_with_power();
        self.sqs.iter_mut().for_each(|queue| *queue = None);
        self.cqs.iter_mut().for_each(|queue| *queue = None);
        self.active.clear();
        self.shadows = None;
        self.backlog.clear();
        self.fetched.clear();
        self.queues_created = false;
        self.features = Features::new(&self.config);
        self.nvm.set_write_cache(self.features.write_cache());
        self.events = Events::default();
        self.changed.clear();
        self.doorbells.clear();
        self.masked_interrupts = 0;
        self.state = if self.csts.rdy() { State::Disabling } else { State::Disabled };
        self.csts = Csts::new().with_rdy(self.csts.rdy());
        self.counters.resets += 1;
        self.update_running();
        self.update_planned();
    }

    fn update_running(&mut self) {
        self.running = self.state == State::Ready
            && self.csts.shst() == SHST_NORMAL
            && self.pci.is_bus_master()
            && !self.gone;
    }

    /// Something that the controller cannot report in a completion (CSTS.CFS).
    pub(crate) fn fail(&mut self) {
        self.lose_cache_with_power();
        self.state = State::Failed;
        self.csts.set_cfs(true);
        self.update_running();
    }

    /// The power fails, and comes back: what was not flushed may be lost, and all else is as after power-on.
    pub(crate) fn power_loss(&mut self) {
        self.lose_cache();
        self.function_reset();
    }

    /// What stops the controller takes its power as well, if that is planned.
    fn lose_cache_with_power(&mut self) {
        if self.fetched.takes_power() {
            self.lose_cache();
        }
    }

    fn lose_cache(&mut self) {
        if !self.gone {
            self.counters.faults.power_losses += 1;
            self.counters.faults.lost_blocks += self.nvm.lose_cache().unwrap_or(0);
        }
    }

    /// From now on it does not get ready, until something helps.
    pub(crate) fn hang(&mut self, until: Remedy) {
        self.hung = Some(until);
    }

    // What happens to a device without the host's doing, and what the host is told of it.

    /// Gives a namespace another size. False if there is none, it has that size, or there is no room.
    pub(crate) fn resize(&mut self, nsid: u32, blocks: u64) -> bool {
        let resized = self.nvm.resize(nsid, blocks);
        if resized {
            self.namespace_changed(nsid);
        }
        resized
    }

    /// Attaches or detaches a namespace. False if there is none, or it is so already.
    pub(crate) fn attach(&mut self, nsid: u32, attached: bool) -> bool {
        let changed = self.nvm.namespaces.attach(nsid, attached);
        if changed {
            self.namespace_changed(nsid);
        }
        changed
    }

    /// The Identify data of a namespace have changed.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        self.changed.add(nsid);
        let info = AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED;
        self.notice(OAES_NAMESPACE_ATTRIBUTE, info, LogPage::CHANGED_NAMESPACES);
    }

    pub(crate) fn is_listened_to(&self) -> bool {
        !self.gone && self.features.events() != 0
    }

    pub(crate) fn activate_firmware(&mut self) {
        let info = AsyncEvent::FIRMWARE_ACTIVATION_STARTING;
        self.notice(OAES_FIRMWARE_ACTIVATION, info, LogPage::FIRMWARE_SLOT);
    }

    fn notice(&mut self, enabled_by: u32, info: u8, page: LogPage) {
        if self.features.events() & enabled_by != 0 {
            self.events.raise(AsyncEvent::new(AsyncEvent::TYPE_NOTICE, info, page));
        }
    }

    pub(crate) fn set_health(&mut self, health: Health) {
        let before = std::mem::replace(&mut self.health, health);
        for event in health.events_since(&before, self.features.events() as u8) {
            self.events.raise(event);
        }
    }

    /// An event as it stands, whatever the host has asked for. One of an error has an entry in the log.
    pub(crate) fn raise(&mut self, event: AsyncEvent) {
        if event.event_type() == AsyncEvent::TYPE_ERROR {
            self.errors.add_queue_error(0);
        }
        self.events.raise(event);
    }

    // Registers.

    /// Length of BAR0.
    pub(crate) fn bar_len(&self) -> u64 {
        bar_len(&self.doorbells)
    }

    /// Reads a 32-bit register. Undefined ones and doorbells read as 0.
    pub(crate) fn read32(&self, offset: u64) -> u32 {
        if self.gone || !self.pci.decodes_memory() {
            return ONES;
        }
        let value = self.register(offset);
        self.fetched.register(offset, value)
    }

    fn register(&self, offset: u64) -> u32 {
        let half = |value: u64| (if offset.is_multiple_of(8) { value } else { value >> 32 }) as u32;
        match offset {
            registers::CAP | 0x04 => half(self.cap().into_bits()),
            registers::VS => identify::VERSION.into_bits(),
            registers::INTMS | registers::INTMC => self.masked_interrupts,
            registers::CC => self.cc.into_bits(),
            registers::CSTS => self.csts.into_bits(),
            registers::AQA => self.aqa.into_bits(),
            registers::ASQ | 0x2c => half(self.asq),
            registers::ACQ | 0x34 => half(self.acq),
            registers::CRTO => Crto::new().with_crwmt(self.config.to.into()).into_bits(),
            _ => 0,
        }
    }

    /// Writes a 32-bit register. Writes to read-only and undefined ones are ignored.
    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        if self.gone || !self.pci.decodes_memory() {
            return;
        }
        match offset {
            registers::INTMS => self.masked_interrupts |= value,
            registers::INTMC => self.masked_interrupts &= !value,
            registers::CC => self.write_cc(Cc::from_bits(value)),
            // The Admin queue cannot be moved under a controller that uses it.
            registers::AQA..=0x37 if self.cc.en() => {}
            registers::AQA => self.aqa = Aqa::from_bits(value & 0x0fff_0fff),
            registers::ASQ => self.asq = with_low(self.asq, value & !0xfff),
            0x2c => self.asq = with_high(self.asq, value),
            registers::ACQ => self.acq = with_low(self.acq, value & !0xfff),
            0x34 => self.acq = with_high(self.acq, value),
            registers::DOORBELLS.. => {
                if let Some(doorbell) = self.doorbells.at(offset - registers::DOORBELLS) {
                    doorbell.store(value, Ordering::Release);
                }
            }
            _ => {}
        }
    }

    fn cap(&self) -> Cap {
        Cap::new()
            .with_mqes(self.config.mqes)
            .with_cqr(true)
            .with_to(self.config.to)
            .with_dstrd(DSTRD)
            .with_css(1 << CSS_NVM)
            .with_mpsmin(self.config.mpsmin)
            .with_mpsmax(self.config.mpsmin + MPS_RANGE)
            .with_crwms(true)
    }

    /// Controller Configuration (Base 2.0, section 3.1.3.5).
    fn write_cc(&mut self, new: Cc) {
        let old = std::mem::replace(&mut self.cc, new);
        match (old.en(), new.en()) {
            (true, false) => return self.controller_reset(),
            (false, true) => self.enable(),
            // These may change only while the controller is disabled.
            (true, true) if (old.css(), old.mps(), old.ams()) != (new.css(), new.mps(), new.ams()) => {
                self.fail();
            }
            _ => {}
        }
        if new.shn() != SHN_NONE && old.shn() == SHN_NONE {
            self.csts.set_shst(SHST_OCCURRING);
        }
        self.update_running();
    }

    fn enable(&mut self) {
        if self.state != State::Disabled || !self.is_valid() {
            return self.fail();
        }
        self.nvm.transfer.set_page(self.page());
        let delay = u64::try_from(self.config.ready.as_nanos()).unwrap_or(u64::MAX);
        let ready_at = self.clock.nanos().saturating_add(delay);
        self.state = State::Enabling { ready_at };
    }

    /// Whether CC, AQA, ASQ and ACQ are such that the controller can be enabled. The I/O entry
    /// sizes may still be 0: they are needed only when the first I/O queue is created.
    fn is_valid(&self) -> bool {
        let mps = self.config.mpsmin..=self.config.mpsmin + MPS_RANGE;
        self.cc.css() == CSS_NVM
            && self.cc.ams() == 0
            && mps.contains(&self.cc.mps())
            && matches!(self.cc.iosqes(), 0 | 6)
            && matches!(self.cc.iocqes(), 0 | 4)
            && self.aqa.asqs() > 0
            && self.aqa.acqs() > 0
            && self.asq.is_multiple_of(self.page())
            && self.acq.is_multiple_of(self.page())
    }

    /// Bytes of a memory page: CC.MPS.
    fn page(&self) -> u64 {
        4096 << self.cc.mps()
    }

    // Serving queues.

    /// Does what there is to do, and returns how much that was.
    pub(crate) fn poll(&mut self) -> usize {
        if !self.running {
            return self.transition();
        }
        if self.dma.epoch() != self.epoch {
            self.renew_windows();
        }
        if self.planned {
            return self.poll_planned();
        }
        if self.burst == ONE {
            return self.poll_in_turns();
        }
        let mut work = self.poll_admin();
        for at in 0..self.active.len() {
            work += self.poll_io(self.active[at]);
        }
        if work == 0 { self.poll_idle() } else { work }
    }

    /// As [`poll`](Controller::poll), but only until there has been work for one I/O queue. The next poll
    /// begins with the queue behind it.
    fn poll_in_turns(&mut self) -> usize {
        let admin = self.poll_admin();
        for at in 0..self.active.len() {
            let work = self.poll_io(self.active[at]);
            if work > 0 {
                self.active.rotate_left(at + 1);
                return admin + work;
            }
        }
        if admin == 0 { self.poll_idle() } else { admin }
    }

    /// Time passes for a controller that executes no commands.
    fn transition(&mut self) -> usize {
        let before = (self.state, self.csts);
        match self.state {
            _ if self.gone => return 0,
            State::Enabling { ready_at } if self.gets_ready() && self.clock.nanos() >= ready_at => {
                match self.open_admin_queue() {
                    Ok(()) => self.state = State::Ready,
                    Err(Fault) => self.fail(),
                }
            }
            State::Disabling => self.state = State::Disabled,
            _ => {}
        }
        if self.csts.shst() == SHST_OCCURRING {
            self.csts.set_shst(SHST_COMPLETE);
        }
        self.csts.set_rdy(match self.state {
            State::Disabled | State::Enabling { .. } => false,
            State::Ready | State::Disabling => true,
            State::Failed => self.csts.rdy(),
        });
        self.update_running();
        usize::from(before != (self.state, self.csts))
    }

    fn gets_ready(&self) -> bool {
        !self.config.never_ready && self.hung.is_none()
    }

    fn open_admin_queue(&mut self) -> Result<(), Fault> {
        let (entries, completions) = (u32::from(self.aqa.asqs()) + 1, u32::from(self.aqa.acqs()) + 1);
        let cq = CompletionQueue::new(&self.dma, self.acq, completions)?;
        let sq = SubmissionQueue::new(&self.dma, self.asq, entries, 0)?;
        self.doorbells.clear();
        // The Admin queue always has interrupts, and vector 0.
        (self.sqs[0], self.cqs[0]) = (Some(sq), Some(cq.with_vector(Some(0))));
        Ok(())
    }

    /// A queue whose memory is gone keeps its old window: the next access to it is a fault.
    fn renew_windows(&mut self) {
        self.epoch = self.dma.epoch();
        for queue in self.sqs.iter_mut().flatten() {
            let _ = queue.renew(&self.dma);
        }
        for queue in self.cqs.iter_mut().flatten() {
            let _ = queue.renew(&self.dma);
        }
    }

    /// Executes a burst of commands from an I/O submission queue.
    #[inline]
    fn poll_io(&mut self, qid: u16) -> usize {
        let Controller { sqs, cqs, dma, nvm, doorbells, counters, burst, .. } = self;
        let Some(sq) = &mut sqs[usize::from(qid)] else { return 0 };
        let Ok(tail) = sq.told(dma, doorbells.tail(qid), counters) else { return self.lose_shadow() };
        let bad = note(sq.notice(tail), &mut counters.sq_doorbells);
        if sq.is_empty() {
            return self.after_doorbell(bad, qid);
        }
        let cqid = sq.cqid();
        let Some(cq) = &mut cqs[usize::from(cqid)] else { return 0 };
        let (mut done, mut bad_head, mut fault) = (0, false, false);
        while done < *burst && !sq.is_empty() {
            // The head doorbell is looked at only when it is needed: its cache line is the host's.
            if cq.is_full() {
                let Ok(head) = cq.told(dma, doorbells.head(cqid), counters) else {
                    fault = true;
                    break;
                };
                bad_head |= note(cq.notice(head), &mut counters.cq_doorbells);
                if cq.is_full() {
                    counters.full_queues += 1;
                    break;
                }
            }
            let Ok(command) = sq.fetch(dma) else {
                fault = true;
                break;
            };
            let status = nvm.execute(dma, &command, counters);
            if !status.is_success() {
                counters.errors += 1;
                self.errors.add_failed(qid, &command, status);
            }
            let entry = completion(sq, qid, command.cid, 0, status);
            if cq.post(dma, entry).is_err() {
                fault = true;
                break;
            }
            done += 1;
        }
        counters.io_commands += done as u64;
        counters.completions += done as u64;
        if let Some(vector) = cq.vector()
            && done > 0
        {
            self.interrupts.raise(vector);
        }
        if fault {
            self.fail();
        }
        done + self.after_doorbell(bad, qid) + self.after_doorbell(bad_head, cqid)
    }

    /// Executes what is in the Admin submission queue, and posts what waits for room.
    fn poll_admin(&mut self) -> usize {
        let Some(sq) = &mut self.sqs[0] else { return 0 };
        let value = self.doorbells.tail(0).load(Ordering::Acquire);
        let bad = note(sq.notice(value), &mut self.counters.sq_doorbells);
        if !bad && sq.is_empty() && self.backlog.is_empty() && !self.events.is_due() {
            return 0;
        }
        let mut work = self.after_doorbell(bad, 0);
        loop {
            work += self.post_admin();
            if !self.backlog.is_empty() {
                return work;
            }
            let Some(command) = self.fetch(0) else { return work };
            work += 1;
            if let Some(answer) = self.admin(&command) {
                if let Err(status) = answer {
                    self.errors.add_failed(0, &command, status);
                }
                self.complete_admin(command.cid, answer);
            }
        }
    }

    /// Fetches the next command of a submission queue, if there is one.
    fn fetch(&mut self, qid: u16) -> Option<Command> {
        let sq = self.sqs[usize::from(qid)].as_mut().filter(|sq| !sq.is_empty())?;
        match sq.fetch(&self.dma) {
            Ok(command) => {
                let Counters { admin_commands, io_commands, .. } = &mut self.counters;
                *if qid == 0 { admin_commands } else { io_commands } += 1;
                Some(command)
            }
            Err(Fault) => {
                self.fail();
                None
            }
        }
    }

    /// Completes an Admin command, as soon as there is room.
    fn complete_admin(&mut self, cid: u16, answer: Result<u32, Status>) {
        let entry = self.entry(0, cid, answer);
        self.backlog.extend(entry);
    }

    /// The completion of a command, counted if it is an error. None if its queue is gone.
    fn entry(&mut self, qid: u16, cid: u16, answer: Result<u32, Status>) -> Option<Completion> {
        let sq = self.sqs[usize::from(qid)].as_ref()?;
        let (dw0, status) = match answer {
            Ok(dw0) => (dw0, Status::SUCCESS),
            Err(status) => (0, status),
        };
        self.counters.errors += u64::from(!status.is_success());
        Some(completion(sq, qid, cid, dw0, status))
    }

    /// Whether another completion fits into a completion queue.
    fn has_room(&mut self, cqid: u16) -> bool {
        let Some(cq) = &mut self.cqs[usize::from(cqid)] else { return false };
        if !cq.is_full() {
            return true;
        }
        let Ok(value) = cq.told(&self.dma, self.doorbells.head(cqid), &mut self.counters) else {
            self.lose_shadow();
            return false;
        };
        let bad = note(cq.notice(value), &mut self.counters.cq_doorbells);
        let room = !cq.is_full();
        self.counters.full_queues += u64::from(!room);
        self.after_doorbell(bad, cqid);
        room
    }

    /// Posts Admin completions while there is room.
    fn post_admin(&mut self) -> usize {
        let posted = self.post_backlog();
        if posted > 0 {
            self.interrupts.raise(0);
        }
        posted
    }

    /// There are new entries in a completion queue with this vector.
    fn interrupt(&mut self, vector: Option<u16>) {
        if let Some(vector) = vector {
            self.interrupts.raise(vector);
        }
    }

    fn post_backlog(&mut self) -> usize {
        let mut posted = 0;
        loop {
            if self.backlog.is_empty()
                && self.events.is_due()
                && let Some((cid, event)) = self.events.report()
            {
                self.complete_admin(cid, Ok(event.0));
            }
            let Some(entry) = self.backlog.front().copied() else { return posted };
            if !self.has_room(0) {
                return posted;
            }
            let Some(cq) = &mut self.cqs[0] else { return posted };
            if cq.post(&self.dma, entry).is_err() {
                self.fail();
                return posted;
            }
            self.backlog.pop_front();
            self.counters.completions += 1;
            posted += 1;
        }
    }

    /// Nothing to execute: time to look at the doorbells that nothing waits for.
    fn poll_idle(&mut self) -> usize {
        let mut work = self.notice_head(0);
        for at in 0..self.active.len() {
            if let Some(sq) = &self.sqs[usize::from(self.active[at])] {
                work += self.notice_head(sq.cqid());
            }
        }
        self.idle_polls = self.idle_polls.wrapping_add(1);
        if self.idle_polls & (self.scan_interval - 1) == 0 {
            work += self.find_stray_doorbells();
        }
        work
    }

    fn notice_head(&mut self, qid: u16) -> usize {
        let Some(cq) = &mut self.cqs[usize::from(qid)] else { return 0 };
        let Ok(value) = cq.told(&self.dma, self.doorbells.head(qid), &mut self.counters) else {
            return self.lose_shadow();
        };
        let bad = note(cq.notice(value), &mut self.counters.cq_doorbells);
        self.after_doorbell(bad, qid)
    }

    /// The memory of a shadow doorbell cannot be reached any more.
    #[cold]
    fn lose_shadow(&mut self) -> usize {
        self.fail();
        1
    }

    /// Doorbells that were written and belong to no queue (Base 2.0, section 5.2.1, Write to Invalid
    /// Doorbell Register).
    fn find_stray_doorbells(&mut self) -> usize {
        let mut found = 0;
        for qid in 0..self.sqs.len() {
            let id = qid as u16;
            let rung =
                |cell: &AtomicU32| cell.load(Ordering::Relaxed) != 0 && cell.swap(0, Ordering::Relaxed) != 0;
            let tail = self.sqs[qid].is_none() && rung(self.doorbells.tail(id));
            let head = self.cqs[qid].is_none() && rung(self.doorbells.head(id));
            for _ in 0..usize::from(tail) + usize::from(head) {
                self.doorbell_error(id, AsyncEvent::INVALID_DOORBELL_REGISTER);
                found += 1;
            }
        }
        found
    }

    /// Reports a doorbell value that was ignored, if `bad`. Returns the work done.
    #[inline]
    fn after_doorbell(&mut self, bad: bool, qid: u16) -> usize {
        if bad {
            self.doorbell_error(qid, AsyncEvent::INVALID_DOORBELL_VALUE);
        }
        usize::from(bad)
    }

    #[cold]
    fn doorbell_error(&mut self, qid: u16, info: u8) {
        self.counters.bad_doorbells += 1;
        self.errors.add_queue_error(qid);
        self.events.raise(AsyncEvent::new(AsyncEvent::TYPE_ERROR, info, LogPage::ERROR));
    }

    fn clear_doorbell(&self, doorbell: &AtomicU32) {
        doorbell.store(0, Ordering::Relaxed);
    }
}

/// How many page sizes above the smallest there are: CAP.MPSMAX.
const MPS_RANGE: u8 = 4;

/// Counts a doorbell value that is new. True if it is bad.
#[inline(always)]
fn note(noticed: Result<bool, BadDoorbell>, counter: &mut u64) -> bool {
    *counter += u64::from(noticed == Ok(true));
    noticed.is_err()
}

#[inline(always)]
fn completion(sq: &SubmissionQueue, sq_id: u16, cid: u16, dw0: u32, status: Status) -> Completion {
    Completion { dw0, dw1: 0, sq_head: sq.head(), sq_id, cid, status_phase: status.0 << 1 }
}

fn bar_len(doorbells: &Doorbells) -> u64 {
    (registers::DOORBELLS + doorbells.len()).next_power_of_two()
}

fn with_low(value: u64, low: u32) -> u64 {
    value & !0xffff_ffff | u64::from(low)
}

fn with_high(value: u64, high: u32) -> u64 {
    value & 0xffff_ffff | u64::from(high) << 32
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("state", &self.state)
            .field("cc", &self.cc)
            .field("csts", &self.csts)
            .field("active", &self.active)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
