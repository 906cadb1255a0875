//! The admin queue: one command at a time that somebody waits for, each with a bounded wait; beside it a few
//! that nobody waits for, requests for events and what is read for them; and those that took too long, with
//! the memory that is the controller's until they are completed, or it is reset.
//!
//! Knows rings and time; must not know what a command is for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::registers;
use crate::memory::{Access, DmaSpace, MemoryChain, SharedArray};
use crate::pci::{DoorbellPage, Function};
use crate::queue::{CompletionRing, SubmissionRing};
use crate::spec::registers::{cq_head_doorbell, sq_tail_doorbell};
use crate::spec::{Command, Completion, admin_opcode};
use crate::{Error, Result};

/// Entries of both admin queues: background commands, and one command.
const ENTRIES: u32 = 32;
/// Asynchronous Event Requests that are kept outstanding, at most.
pub(super) const EVENT_REQUESTS: usize = 4;
/// The slot of the one background command that reads.
const READ: usize = EVENT_REQUESTS;
/// Aborts that are outstanding, at most. Their slots are the last.
pub(super) const ABORTS: usize = 2;
const FIRST_ABORT: usize = READ + 1;
const SLOTS: usize = FIRST_ABORT + ABORTS;
/// In the CIDs of background commands, over a generation of 12 bits and a slot of 3. No slot is 7, so none
/// of them is FFFFh, which is never used.
const BACKGROUND: u16 = 1 << 15;
const SLOT_BITS: u32 = 3;
/// What hosts commonly grant an admin command; Format and the like need a longer one.
pub(super) const TIMEOUT_MILLIS: u64 = 60_000;
/// Commands that were given up and are not completed, at most: whoever leaves more of them unanswered answers
/// nothing. With those that nobody waits for, fewer than there are entries.
const MOST_GIVEN_UP: usize = 8;
/// How long a command takes before the controller's status is looked at meanwhile.
const PATIENCE_NANOS: u64 = 1_000_000;

pub(super) struct AdminQueue {
    function: Arc<dyn Function>,
    sq: SubmissionRing,
    cq: CompletionRing,
    cid: u16,
    background: Background,
    given_up: Vec<GivenUp>,
    /// CIDs of those whose Abort was not asked for yet.
    overdue: Vec<u16>,
    /// Somebody else needs a reset: who waits for a command is to let the queue go.
    interrupt: Arc<AtomicBool>,
}

/// A command that was not completed while somebody waited for it.
#[derive(Debug)]
struct GivenUp {
    cid: u16,
    since: u64,
    /// The controller's.
    _memory: MemoryChain,
}

/// Commands that nobody waits for.
#[derive(Debug, Default)]
struct Background {
    /// By slot: the CID of the command that is outstanding.
    outstanding: [Option<u16>; SLOTS],
    generation: u16,
    /// Those completed and not yet looked at, one for each slot at most.
    finished: VecDeque<(usize, Completion)>,
}

impl Background {
    /// A CID for the next command of a slot.
    fn occupy(&mut self, slot: usize) -> u16 {
        self.generation = (self.generation + 1) & 0xfff;
        let cid = BACKGROUND | self.generation << SLOT_BITS | slot as u16;
        self.outstanding[slot] = Some(cid);
        cid
    }

    /// Takes a completion in. What answers no command is dropped: it is of one that was given up, whose
    /// memory is kept for good, or made up.
    fn file(&mut self, completion: Completion) {
        let slot = usize::from(completion.cid & ((1 << SLOT_BITS) - 1));
        if let Some(outstanding) = self.outstanding.get_mut(slot)
            && *outstanding == Some(completion.cid)
        {
            *outstanding = None;
            self.finished.push_back((slot, completion));
        }
    }

    fn take(&mut self, wanted: impl Fn(usize) -> bool) -> Option<(usize, Completion)> {
        let at = self.finished.iter().position(|(slot, _)| wanted(*slot))?;
        self.finished.remove(at)
    }
}

impl AdminQueue {
    pub(super) fn new(
        function: Arc<dyn Function>,
        space: &DmaSpace,
        doorbells: &DoorbellPage,
        dstrd: u8,
        interrupt: Arc<AtomicBool>,
    ) -> Result<AdminQueue> {
        let (sq, cq) = rings(&*function, space, doorbells, dstrd, 0, ENTRIES, ENTRIES)?;
        let (background, given_up, overdue) = (Background::default(), Vec::new(), Vec::new());
        Ok(AdminQueue { function, sq, cq, cid: 0, background, given_up, overdue, interrupt })
    }

    /// The function's name.
    pub(super) fn name(&self) -> &str {
        self.function.name()
    }

    pub(super) fn sq(&self) -> (u64, u32) {
        (self.sq.iova(), self.sq.len())
    }

    pub(super) fn cq(&self) -> (u64, u32) {
        (self.cq.iova(), self.cq.len())
    }

    /// Carries out a command; its CID is chosen here. If this fails, whatever memory the command
    /// refers to belongs to the controller, and the command is to be [given up](AdminQueue::give_up).
    pub(super) fn execute(&mut self, command: &Command, millis: u64) -> Result<Completion> {
        self.cid = self.free_cid();
        let command = Command { cid: self.cid, ..*command };
        self.sq.push(zerocopy::transmute!(command));
        self.sq.ring();
        let clock = self.function.clock();
        let start = clock.nanos();
        loop {
            let waited = clock.nanos() - start;
            // As many as the ring holds: a controller that keeps posting must not keep us here.
            for _ in 0..ENTRIES {
                match self.next() {
                    Some(completion) if completion.cid == self.cid => return Ok(completion),
                    Some(other) => self.file(other),
                    None => break,
                }
            }
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(Error::Resetting { device: self.function.name().into() });
            }
            if waited > PATIENCE_NANOS {
                registers::check(&*self.function)?;
            }
            if waited > millis.saturating_mul(1_000_000) {
                let device = self.function.name().into();
                return Err(Error::Timeout { device, command: name(&command), millis });
            }
            self.function.pause();
        }
    }

    /// A CID that no command has which was given up: a late completion is not taken for another's.
    fn free_cid(&self) -> u16 {
        let next = |cid: u16| (cid + 1) & !BACKGROUND;
        let mut cid = next(self.cid);
        while self.given_up.iter().any(|it| it.cid == cid) {
            cid = next(cid);
        }
        cid
    }

    /// Takes in a completion that nobody waits for.
    fn file(&mut self, completion: Completion) {
        self.given_up.retain(|it| it.cid != completion.cid);
        self.background.file(completion);
    }

    // ---- what took too long ----

    /// Keeps the memory of the command that was executed last, which has failed, until that is completed, or the
    /// controller was reset; and has it aborted.
    pub(super) fn give_up(&mut self, memory: MemoryChain) {
        self.give_up_command(self.cid, memory);
    }

    /// The same for the command that reads, whose memory is not the queue's.
    pub(super) fn give_up_read(&mut self) {
        if let Some(cid) = self.background.outstanding[READ] {
            self.give_up_command(cid, MemoryChain::new());
        }
    }

    fn give_up_command(&mut self, cid: u16, memory: MemoryChain) {
        self.given_up.push(GivenUp { cid, since: self.nanos(), _memory: memory });
        self.overdue.push(cid);
    }

    /// The next command that is to be aborted.
    pub(super) fn take_overdue(&mut self) -> Option<u16> {
        self.overdue.pop()
    }

    /// Whether a command was given up and is not completed in as long once more as commands are commonly
    /// granted, or too many are.
    pub(super) fn is_stuck(&self) -> bool {
        let is_late = |it: &GivenUp| self.nanos().saturating_sub(it.since) > TIMEOUT_MILLIS * 1_000_000;
        self.given_up.len() > MOST_GIVEN_UP || self.given_up.iter().any(is_late)
    }

    // ---- what nobody waits for ----

    /// Sends an Asynchronous Event Request, in a slot below [`EVENT_REQUESTS`] that has none.
    pub(super) fn start(&mut self, slot: usize, command: &Command) {
        let cid = self.background.occupy(slot);
        let command = Command { cid, ..*command };
        self.sq.push(zerocopy::transmute!(command));
        self.sq.ring();
    }

    /// Sends the one command that reads something, when the last one was completed.
    pub(super) fn start_read(&mut self, command: &Command) {
        self.start(READ, command);
    }

    /// Takes in what was completed. No more than the ring holds: a controller that keeps posting must not
    /// keep us here. Reads no register.
    #[inline]
    pub(super) fn look(&mut self) {
        for _ in 0..ENTRIES {
            let Some(completion) = self.next() else { return };
            self.file(completion);
        }
    }

    /// The completion of a request for an event, and its slot, which is free.
    pub(super) fn finished_request(&mut self) -> Option<(usize, Completion)> {
        self.background.take(|slot| slot < READ)
    }

    /// The completion of the command that reads.
    pub(super) fn finished_read(&mut self) -> Option<Completion> {
        self.background.take(|slot| slot == READ).map(|(_, completion)| completion)
    }

    /// Sends an Abort, in a slot below [`ABORTS`] that has none.
    pub(super) fn start_abort(&mut self, slot: usize, command: &Command) {
        self.start(FIRST_ABORT + slot, command);
    }

    /// The completion of an Abort, and its slot, which is free.
    pub(super) fn finished_abort(&mut self) -> Option<(usize, Completion)> {
        let (slot, completion) = self.background.take(|slot| slot >= FIRST_ABORT)?;
        Some((slot - FIRST_ABORT, completion))
    }

    /// After a reset nothing is outstanding. Late completions of what was are recognised.
    pub(super) fn forget_background(&mut self) {
        self.background.outstanding = Default::default();
        self.background.finished.clear();
    }

    /// Empty, for a controller that was reset, with nothing outstanding.
    pub(super) fn restart(&mut self) {
        self.sq.restart();
        self.cq.restart();
        self.forget_background();
        self.given_up.clear();
        self.overdue.clear();
    }

    /// The time.
    pub(super) fn nanos(&self) -> u64 {
        self.function.clock().nanos()
    }

    fn next(&mut self) -> Option<Completion> {
        let high = self.cq.high();
        if !CompletionRing::is_new(high) {
            return None;
        }
        let completion = self.cq.entry(high);
        self.cq.advance();
        self.cq.ring();
        Some(completion)
    }
}

/// The rings of a queue pair, zeroed, with their doorbells. Entries are powers of two.
pub(super) fn rings(
    function: &dyn Function,
    space: &DmaSpace,
    doorbells: &DoorbellPage,
    dstrd: u8,
    qid: u16,
    sq_entries: u32,
    cq_entries: u32,
) -> Result<(SubmissionRing, CompletionRing)> {
    let doorbell = |offset: u64| {
        doorbells.doorbell(offset).ok_or_else(|| Error::Unsupported {
            device: function.name().into(),
            what: format!("the doorbell at {:#x} is not mapped", 0x1000 + offset),
        })
    };
    // The controller reads submission entries and writes completions; the IOMMU holds it to that.
    let sq = SharedArray::<8>::new(space.segment(sq_entries as usize * 64, 4096, Access::Read)?);
    let cq = SharedArray::<2>::new(space.segment(cq_entries as usize * 16, 4096, Access::ReadWrite)?);
    std::sync::atomic::fence(Ordering::SeqCst);
    Ok((
        SubmissionRing::new(sq, doorbell(sq_tail_doorbell(qid, dstrd))?),
        CompletionRing::new(cq, doorbell(cq_head_doorbell(qid, dstrd))?),
    ))
}

/// What a command is called in a message.
pub(super) fn name(command: &Command) -> String {
    let opcode = command.opcode;
    match opcode {
        admin_opcode::IDENTIFY => format!("Identify (CNS {:02x}h)", command.cdw10 & 0xff),
        admin_opcode::SET_FEATURES => format!("Set Features (FID {:02x}h)", command.cdw10 & 0xff),
        _ => format!("{} ({opcode:02x}h)", admin_opcode::name(opcode)),
    }
}
