//! The admin queue: one command at a time, each with a bounded wait.
//!
//! Knows rings and time; must not know what a command is for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::registers;
use crate::memory::{Access, DmaSpace, SharedArray};
use crate::pci::{DoorbellPage, Function};
use crate::queue::{CompletionRing, SubmissionRing};
use crate::spec::registers::{cq_head_doorbell, sq_tail_doorbell};
use crate::spec::{Command, Completion, admin_opcode};
use crate::{Error, Result};

/// Entries of both admin queues: AERs and aborts of later, and one command.
const ENTRIES: u32 = 32;
/// What hosts commonly grant an admin command; Format and the like need a longer one.
pub(super) const TIMEOUT_MILLIS: u64 = 60_000;
/// How long a command takes before the controller's status is looked at meanwhile.
const PATIENCE_NANOS: u64 = 1_000_000;

pub(super) struct AdminQueue {
    function: Arc<dyn Function>,
    sq: SubmissionRing,
    cq: CompletionRing,
    cid: u16,
}

impl AdminQueue {
    pub(super) fn new(
        function: Arc<dyn Function>,
        space: &DmaSpace,
        doorbells: &DoorbellPage,
        dstrd: u8,
    ) -> Result<AdminQueue> {
        let (sq, cq) = rings(&*function, space, doorbells, dstrd, 0, ENTRIES, ENTRIES)?;
        Ok(AdminQueue { function, sq, cq, cid: 0 })
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
    /// refers to belongs to the controller.
    pub(super) fn execute(&mut self, command: &Command, millis: u64) -> Result<Completion> {
        // FFFFh is never used.
        self.cid = if self.cid == 0xfffe { 0 } else { self.cid + 1 };
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
                    // It answers a command that was given up, whose memory is kept for good.
                    Some(_) => {}
                    None => break,
                }
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
