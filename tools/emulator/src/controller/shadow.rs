//! Shadow doorbells (Base 2.0, section 5.8): where the host writes tails and heads, and reads when it has to write the
//! registers as well.
//!
//! The controller looks at a shadow only as long as it has reason to, and says so by EventIdx: after [`LOOKS`] looks
//! that found nothing it waits for the register, however often it is polled. So a host that leaves out a write that is
//! needed is found, with a stepped controller always. Knows what is in the buffers; must not know commands.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use kiovec::spec::registers::{cq_head_doorbell, sq_tail_doorbell};
use kiovec::spec::{Command, Status};

use super::Controller;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::transfer::unreachable_memory;
use crate::counters::Counters;
use crate::dma::{Dma, Fault, Want};
use crate::doorbells::DSTRD;

/// Looks at a tail that find nothing, one in a poll, before the controller waits for the register.
const LOOKS: u32 = 16;
/// In the register of a queue that has a shadow: nobody has written it since. No tail and no head is this, and whatever
/// is written is another value, even if it is the one that was written last.
const NOT_RUNG: u32 = u32::MAX;

/// The two buffers that the host has named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    shadows: u64,
    events: u64,
}

/// Where a doorbell has its shadow, and its EventIdx.
#[derive(Debug, Clone, Copy)]
struct Place {
    shadow: u64,
    event: u64,
}

/// The shadow of a tail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TailShadow {
    place: Place,
    /// Looks that may still find nothing; 0: the register is waited for.
    looks: u32,
    /// What is in the shadow and was not told by the register, although that is waited for.
    missed: Option<u32>,
}

/// The shadow of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadShadow {
    place: Place,
    /// The queue is full, and the register is waited for.
    waits: bool,
    missed: Option<u32>,
}

/// What came of a look.
struct Seen {
    /// What the host has told.
    value: u32,
    /// Its register was written.
    rung: bool,
    /// And that was needed.
    needed: bool,
    /// It was not, and should have been.
    missed: bool,
    looks: u64,
}

impl Seen {
    /// Nothing, so far.
    fn nothing(rung: u32, register: &AtomicU32) -> Seen {
        Seen { value: rung, rung: take(register), needed: false, missed: false, looks: 0 }
    }
}

impl Buffers {
    /// The shadow of the doorbell at a byte offset, if it is within the page.
    fn place(self, offset: u64, page: u64) -> Option<Place> {
        (offset < page).then_some(Place { shadow: self.shadows + offset, event: self.events + offset })
    }
}

impl Place {
    fn value(self, dma: &Dma) -> Result<u32, Fault> {
        Ok(dma.word32(self.shadow)?.load(Ordering::Acquire))
    }

    /// Whether there is something new in a shadow that is not looked at. Each value is missed once.
    fn is_missed(self, dma: &Dma, rung: u32, missed: &mut Option<u32>) -> Result<bool, Fault> {
        let value = self.value(dma)?;
        Ok(value != rung && missed.replace(value) != Some(value))
    }

    /// Puts there what its register says.
    fn begin(self, dma: &Dma, now: u32) -> Result<(), Fault> {
        dma.word32(self.shadow)?.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// The register is to be written when the host leaves this place behind.
    fn ask_at(self, dma: &Dma, place: u32) -> Result<(), Fault> {
        dma.word32(self.event)?.store(place, Ordering::Relaxed);
        // The host writes the shadow and then looks here.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// It need not be written: the place that was left last is the one that the host comes to last.
    fn ask_nothing(self, dma: &Dma, now: u32, size: u32) -> Result<(), Fault> {
        self.ask_at(dma, if now == 0 { size - 1 } else { now - 1 })
    }
}

/// Whether a register was written since the last time.
fn take(register: &AtomicU32) -> bool {
    register.load(Ordering::Relaxed) != NOT_RUNG && register.swap(NOT_RUNG, Ordering::AcqRel) != NOT_RUNG
}

impl TailShadow {
    /// Looks for a new tail. `rung` is what was found last; a queue that is busy is not given up.
    fn look(
        &mut self,
        dma: &Dma,
        register: &AtomicU32,
        rung: u32,
        size: u32,
        busy: bool,
    ) -> Result<Seen, Fault> {
        let mut seen = Seen::nothing(rung, register);
        if seen.rung {
            seen.needed = self.looks == 0;
            self.looks = LOOKS;
        }
        if self.looks == 0 {
            seen.missed = self.place.is_missed(dma, rung, &mut self.missed)?;
            return Ok(seen);
        }
        self.missed = None;
        seen.looks = 1;
        seen.value = self.place.value(dma)?;
        if seen.value == rung && !busy {
            self.looks -= 1;
            if self.looks > 0 && !seen.rung {
                return Ok(seen);
            }
            if self.looks == 0 {
                self.place.ask_at(dma, rung)?;
                seen.looks += 1;
                seen.value = self.place.value(dma)?;
                if seen.value == rung {
                    return Ok(seen);
                }
            }
        }
        self.looks = LOOKS;
        self.place.ask_nothing(dma, seen.value, size)?;
        Ok(seen)
    }
}

impl HeadShadow {
    /// Looks for a new head. A full queue waits for the register.
    fn look(
        &mut self,
        dma: &Dma,
        register: &AtomicU32,
        rung: u32,
        size: u32,
        full: bool,
    ) -> Result<Seen, Fault> {
        let mut seen = Seen::nothing(rung, register);
        if self.waits && !seen.rung {
            seen.missed = self.place.is_missed(dma, rung, &mut self.missed)?;
            return Ok(seen);
        }
        self.missed = None;
        seen.needed = std::mem::take(&mut self.waits);
        seen.looks = 1;
        seen.value = self.place.value(dma)?;
        if seen.value == rung && full {
            self.place.ask_at(dma, rung)?;
            seen.looks += 1;
            seen.value = self.place.value(dma)?;
            self.waits = seen.value == rung;
        }
        if !self.waits && (seen.value != rung || seen.needed) {
            self.place.ask_nothing(dma, seen.value, size)?;
        }
        Ok(seen)
    }
}

impl SubmissionQueue {
    /// The tail, as far as the host has told, and is listened to.
    #[inline(always)]
    pub(super) fn told(
        &mut self,
        dma: &Dma,
        register: &AtomicU32,
        counters: &mut Counters,
    ) -> Result<u32, Fault> {
        if self.shadow.is_none() {
            Ok(register.load(Ordering::Acquire))
        } else {
            self.look(dma, register, counters)
        }
    }

    #[cold]
    fn look(&mut self, dma: &Dma, register: &AtomicU32, counters: &mut Counters) -> Result<u32, Fault> {
        let (rung, size, busy) = (self.rung(), self.size(), !self.is_empty());
        match &mut self.shadow {
            Some(shadow) => shadow.look(dma, register, rung, size, busy).map(|seen| seen.counted(counters)),
            None => Ok(rung),
        }
    }
}

impl CompletionQueue {
    /// The head, as far as the host has told, and is listened to.
    #[inline(always)]
    pub(super) fn told(
        &mut self,
        dma: &Dma,
        register: &AtomicU32,
        counters: &mut Counters,
    ) -> Result<u32, Fault> {
        if self.shadow.is_none() {
            Ok(register.load(Ordering::Acquire))
        } else {
            self.look(dma, register, counters)
        }
    }

    #[cold]
    fn look(&mut self, dma: &Dma, register: &AtomicU32, counters: &mut Counters) -> Result<u32, Fault> {
        let (rung, size, full) = (self.rung(), self.size(), self.is_full());
        match &mut self.shadow {
            Some(shadow) => shadow.look(dma, register, rung, size, full).map(|seen| seen.counted(counters)),
            None => Ok(rung),
        }
    }
}

impl Seen {
    fn counted(self, counters: &mut Counters) -> u32 {
        counters.shadowed_writes += u64::from(self.rung);
        counters.needed_writes += u64::from(self.needed);
        counters.missed_writes += u64::from(self.missed);
        counters.shadow_looks += self.looks;
        self.value
    }
}

impl Controller {
    /// Doorbell Buffer Config (Base 2.0, section 5.8). The buffers are good until the controller is reset; queues that
    /// there are already have shadows from now on as well.
    pub(super) fn doorbell_buffer_config(&mut self, command: &Command) -> Result<u32, Status> {
        if !self.config.dbbuf {
            return Err(Status::INVALID_OPCODE.with_dnr());
        }
        let [shadows, events] = command.dptr;
        if command.nsid != 0 || shadows == events {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let page = self.page();
        for buffer in [shadows, events] {
            if !buffer.is_multiple_of(page) {
                return Err(Status::PRP_OFFSET_INVALID.with_dnr());
            }
            self.dma.check(buffer, page, Want::Write).map_err(unreachable_memory)?;
        }
        self.shadows = Some(Buffers { shadows, events });
        for qid in 1..self.sqs.len() as u16 {
            self.shadow_tail(qid);
            self.shadow_head(qid);
        }
        Ok(0)
    }

    /// Looks for the tail of an I/O queue in its shadow from now on, if it has one. What was told so far is put there.
    pub(super) fn shadow_tail(&mut self, qid: u16) {
        let page = self.page();
        let Some(sq) = self.sqs[usize::from(qid)].as_mut() else { return };
        let place = self.shadows.and_then(|it| it.place(sq_tail_doorbell(qid, DSTRD), page));
        let Some(place) = place else { return };
        self.doorbells.tail(qid).store(NOT_RUNG, Ordering::Relaxed);
        sq.shadow = Some(TailShadow { place, looks: 0, missed: None });
        if place.begin(&self.dma, sq.rung()).and_then(|()| place.ask_at(&self.dma, sq.rung())).is_err() {
            self.fail();
        }
    }

    /// The same of a completion queue's head.
    pub(super) fn shadow_head(&mut self, qid: u16) {
        let page = self.page();
        let Some(cq) = self.cqs[usize::from(qid)].as_mut() else { return };
        let place = self.shadows.and_then(|it| it.place(cq_head_doorbell(qid, DSTRD), page));
        let Some(place) = place else { return };
        self.doorbells.head(qid).store(NOT_RUNG, Ordering::Relaxed);
        cq.shadow = Some(HeadShadow { place, waits: false, missed: None });
        let asked = |()| place.ask_nothing(&self.dma, cq.rung(), cq.size());
        if place.begin(&self.dma, cq.rung()).and_then(asked).is_err() {
            self.fail();
        }
    }

    /// Says that the register of a tail is wanted at some other place.
    pub(crate) fn misstate_event(&mut self, qid: u16, event: u32) -> bool {
        let shadow = self.sqs.get(usize::from(qid)).and_then(|sq| sq.as_ref()?.shadow);
        shadow.is_some_and(|shadow| shadow.place.ask_at(&self.dma, event).is_ok())
    }

    /// What the host has written, whether anybody has looked or not.
    pub(super) fn told_tail(&self, qid: u16) -> u32 {
        let shadow = self.sqs[usize::from(qid)].as_ref().and_then(|sq| sq.shadow);
        let told = shadow.and_then(|shadow| shadow.place.value(&self.dma).ok());
        told.unwrap_or_else(|| self.doorbells.tail(qid).load(Ordering::Acquire))
    }
}
