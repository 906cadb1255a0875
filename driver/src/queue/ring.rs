//! Rings: submission entries out, completion entries in, and the doorbells of both.
//!
//! Knows positions and phases; must not know what a command means or who waits for it. Entries are
//! shared with the device as atomics; a doorbell orders what was written before it.

use std::sync::atomic::Ordering;

use crate::memory::{SharedArray, SharedRing};
use crate::pci::{Doorbell, Shadow};
use crate::spec::Completion;

/// A submission queue (Base 2.0, section 3.3.1).
#[derive(Debug)]
pub(crate) struct SubmissionRing {
    /// At the tail.
    ring: SharedRing<8>,
    /// The tail that the controller was told last.
    rung: u32,
    doorbell: Doorbell,
    /// How often its register was written.
    pub(crate) doorbells: u64,
    /// How often the tail came round.
    laps: u64,
    /// Commands that the controller was told of before the last restart.
    earlier: u64,
    /// Commands since then that it will never be told of.
    hushed: u64,
}

impl SubmissionRing {
    /// A ring over an array whose length is a power of two.
    pub(crate) fn new(entries: SharedArray<8>, doorbell: Doorbell) -> SubmissionRing {
        assert!(entries.len().is_power_of_two() && entries.len() <= 1 << 16);
        SubmissionRing {
            ring: SharedRing::new(entries),
            rung: 0,
            doorbell,
            doorbells: 0,
            laps: 0,
            earlier: 0,
            hushed: 0,
        }
    }

    /// The same, with a shadow of its doorbell, if there is one.
    pub(crate) fn with_shadow(mut self, shadow: Option<Shadow>) -> SubmissionRing {
        if let Some(shadow) = shadow {
            self.doorbell = self.doorbell.with_shadow(shadow);
        }
        self
    }

    /// Writes an entry. The controller sees it after the next [`ring`](SubmissionRing::ring). That
    /// there is room is the caller's to know: it never has as many commands outstanding as the
    /// ring has entries.
    #[inline(always)]
    pub(crate) fn push(&mut self, words: [u64; 8]) {
        for (cell, word) in self.ring.entry().iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        if self.ring.advance() {
            self.laps += 1;
        }
    }

    /// How many commands the controller was told of.
    pub(crate) fn commands(&self) -> u64 {
        let pushed = self.laps * u64::from(self.ring.len()) + u64::from(self.ring.position());
        self.earlier + pushed - self.hushed - self.untold()
    }

    /// How many it was not told of yet.
    fn untold(&self) -> u64 {
        u64::from(self.ring.position().wrapping_sub(self.rung) & (self.ring.len() - 1))
    }

    /// What was written since the doorbell was rung is not told of any more.
    pub(crate) fn hush(&mut self) {
        self.hushed += self.untold();
        self.rung = self.ring.position();
    }

    /// Empty, for a controller that was reset.
    pub(crate) fn restart(&mut self) {
        self.earlier = self.commands();
        self.ring.restart();
        self.doorbell.restart();
        (self.laps, self.hushed, self.rung) = (0, 0, 0);
    }

    /// Whether the controller knows of all entries.
    #[inline(always)]
    pub(crate) fn is_rung(&self) -> bool {
        self.ring.position() == self.rung
    }

    /// Tells the controller of all entries since the last time.
    #[inline(always)]
    pub(crate) fn ring(&mut self) {
        let tail = self.ring.position();
        self.rung = tail;
        self.doorbell.ring_counted(tail, &mut self.doorbells);
    }

    pub(crate) fn iova(&self) -> u64 {
        self.ring.iova()
    }

    pub(crate) fn len(&self) -> u32 {
        self.ring.len()
    }
}

/// The Phase Tag within the high word of a completion.
const PHASE: u64 = 1 << 48;

/// A completion queue (Base 2.0, section 3.3.1).
#[derive(Debug)]
pub(crate) struct CompletionRing {
    /// At the head.
    ring: SharedRing<2>,
    /// What the phase bit of a new entry is, in its place in the high word.
    phase: u64,
    /// The high word at the head, when it was last found not to be new; or one that it is not.
    old: u64,
    /// The head that the controller was told last.
    rung: u32,
    /// Entries that may be consumed before the controller is told.
    most: u32,
    /// Brings a difference of positions into range.
    mask: u32,
    /// The controller is told nothing.
    muted: bool,
    doorbell: Doorbell,
    /// How often its register was written.
    pub(crate) doorbells: u64,
}

impl CompletionRing {
    /// A ring over an array of zeros whose length is a power of two.
    pub(crate) fn new(entries: SharedArray<2>, doorbell: Doorbell) -> CompletionRing {
        assert!(entries.len().is_power_of_two() && entries.len() <= 1 << 16);
        CompletionRing {
            mask: entries.len() as u32 - 1,
            ring: SharedRing::new(entries),
            phase: PHASE,
            old: 0,
            rung: 0,
            most: 0,
            muted: false,
            doorbell,
            doorbells: 0,
        }
    }

    /// The same, with a shadow of its doorbell, if there is one.
    pub(crate) fn with_shadow(mut self, shadow: Option<Shadow>) -> CompletionRing {
        if let Some(shadow) = shadow {
            self.doorbell = self.doorbell.with_shadow(shadow);
        }
        self
    }

    /// The high word of the entry at the head, with its phase bit turned into "is not new": in a
    /// new entry it is 0. Everything the controller wrote before it is visible if it is new.
    #[inline(always)]
    pub(crate) fn high(&self) -> u64 {
        self.ring.entry()[1].load(Ordering::Acquire) ^ self.phase
    }

    /// Whether [`high`](CompletionRing::high) returned the word of a new entry.
    #[inline(always)]
    pub(crate) fn is_new(high: u64) -> bool {
        high & PHASE == 0
    }

    /// Whether it is that of a new entry without any fault in its status.
    #[inline(always)]
    pub(crate) fn is_success(high: u64) -> bool {
        high < PHASE
    }

    /// Keeps what [`high`](CompletionRing::high) returned of an entry that is not new.
    #[inline(always)]
    pub(crate) fn remember(&mut self, high: u64) {
        self.old = high ^ self.phase;
    }

    /// Nothing is remembered: whatever is at the head [has changed](CompletionRing::has_changed).
    #[inline(always)]
    pub(crate) fn forget(&mut self) {
        // No completion has these bits: CID FFFFh is never used.
        self.old = u64::MAX;
    }

    /// Whether the entry at the head is another one than the one that was remembered. It may not be new.
    #[inline(always)]
    pub(crate) fn has_changed(&self) -> bool {
        self.ring.entry()[1].load(Ordering::Relaxed) != self.old
    }

    /// The entry behind a high word; its phase bit has no meaning.
    pub(crate) fn entry(&self, high: u64) -> Completion {
        Completion::from_words(self.ring.entry()[0].load(Ordering::Relaxed), high)
    }

    /// Dword 0 of the entry before the head. It is there until the doorbell says that it may be
    /// overwritten.
    pub(crate) fn dword0(&self) -> u32 {
        self.ring.previous()[0].load(Ordering::Relaxed) as u32
    }

    /// Consumes the entry at the head; whether that was the last of the ring.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> bool {
        let again = self.ring.advance();
        if again {
            self.phase ^= PHASE;
        }
        again
    }

    /// Says how many commands can be outstanding: for so many completions [`make_room`] makes room.
    ///
    /// [`make_room`]: CompletionRing::make_room
    pub(crate) fn keep_room(&mut self, outstanding: u32) {
        self.most = (self.ring.len() - 1).saturating_sub(outstanding);
    }

    /// Makes room: before consumed and outstanding entries together could fill the ring.
    #[inline(always)]
    pub(crate) fn make_room(&mut self) {
        let unacknowledged = self.ring.position().wrapping_sub(self.rung) & self.mask;
        if unacknowledged >= self.most {
            self.ring();
        }
    }

    /// The controller is told nothing of what is consumed, until the next restart.
    pub(crate) fn mute(&mut self) {
        self.muted = true;
    }

    /// Empty, for a controller that was reset.
    pub(crate) fn restart(&mut self) {
        self.ring.restart();
        self.doorbell.restart();
        (self.phase, self.old, self.rung, self.muted) = (PHASE, 0, 0, false);
    }

    /// Where the head is.
    pub(crate) fn position(&self) -> u32 {
        self.ring.position()
    }

    /// Whether anything was consumed since the ring was empty.
    pub(crate) fn has_moved(&self) -> bool {
        self.ring.position() != 0 || self.phase != PHASE
    }

    /// Tells the controller of all entries consumed since the last time, if there are any.
    pub(crate) fn ring(&mut self) {
        let head = self.ring.position();
        if head != self.rung && !self.muted {
            self.rung = head;
            self.doorbell.ring_counted(head, &mut self.doorbells);
        }
    }

    pub(crate) fn iova(&self) -> u64 {
        self.ring.iova()
    }

    pub(crate) fn len(&self) -> u32 {
        self.ring.len()
    }
}
