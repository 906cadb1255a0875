//! Rings: submission entries out, completion entries in, and the doorbells of both.
//!
//! Knows positions and phases; must not know what a command means or who waits for it. Entries are
//! shared with the device as atomics; a doorbell orders what was written before it.

use std::sync::atomic::Ordering;

use crate::memory::SharedArray;
use crate::pci::Doorbell;
use crate::spec::Completion;

/// A submission queue (Base 2.0, section 3.3.1).
#[derive(Debug)]
pub(crate) struct SubmissionRing {
    entries: SharedArray<8>,
    mask: u32,
    tail: u32,
    /// The tail that the controller was told last.
    rung: u32,
    doorbell: Doorbell,
    /// How often the doorbell was rung.
    pub(crate) doorbells: u64,
    /// How many commands were written.
    pub(crate) commands: u64,
}

impl SubmissionRing {
    /// A ring over an array whose length is a power of two.
    pub(crate) fn new(entries: SharedArray<8>, doorbell: Doorbell) -> SubmissionRing {
        assert!(entries.len().is_power_of_two() && entries.len() <= 1 << 16);
        let mask = entries.len() as u32 - 1;
        SubmissionRing { entries, mask, tail: 0, rung: 0, doorbell, doorbells: 0, commands: 0 }
    }

    /// Writes an entry. The controller sees it after the next [`ring`](SubmissionRing::ring). That
    /// there is room is the caller's to know: it never has as many commands outstanding as the
    /// ring has entries.
    #[inline(always)]
    pub(crate) fn push(&mut self, words: [u64; 8]) {
        let entry = &self.entries[(self.tail & self.mask) as usize];
        for (cell, word) in entry.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Whether the controller knows of all entries.
    #[inline(always)]
    pub(crate) fn is_rung(&self) -> bool {
        self.tail == self.rung
    }

    /// Tells the controller of all entries since the last time.
    #[inline(always)]
    pub(crate) fn ring(&mut self) {
        self.commands += u64::from(self.tail.wrapping_sub(self.rung));
        self.rung = self.tail;
        self.doorbells += 1;
        self.doorbell.ring(self.tail & self.mask);
    }

    pub(crate) fn iova(&self) -> u64 {
        self.entries.iova()
    }

    pub(crate) fn len(&self) -> u32 {
        self.mask + 1
    }
}

/// Idle polls after which the controller is told what was consumed.
const IDLE_POLLS: u32 = 16;
/// The Phase Tag within the high word of a completion.
const PHASE: u64 = 1 << 48;

/// A completion queue (Base 2.0, section 3.3.1).
#[derive(Debug)]
pub(crate) struct CompletionRing {
    entries: SharedArray<2>,
    mask: u32,
    head: u32,
    /// The head that the controller was told last.
    rung: u32,
    /// What the phase bit of a new entry is, in its place in the high word.
    phase: u64,
    doorbell: Doorbell,
    idle_polls: u32,
    /// How often the doorbell was rung.
    pub(crate) doorbells: u64,
}

impl CompletionRing {
    /// A ring over an array of zeros whose length is a power of two.
    pub(crate) fn new(entries: SharedArray<2>, doorbell: Doorbell) -> CompletionRing {
        assert!(entries.len().is_power_of_two() && entries.len() <= 1 << 16);
        let mask = entries.len() as u32 - 1;
        CompletionRing {
            entries,
            mask,
            head: 0,
            rung: 0,
            phase: PHASE,
            doorbell,
            idle_polls: 0,
            doorbells: 0,
        }
    }

    /// The high word of the entry at the head, with its phase bit turned into "is not new": in a
    /// new entry it is 0. Everything the controller wrote before it is visible if it is new.
    #[inline(always)]
    pub(crate) fn high(&self) -> u64 {
        self.entries[(self.head & self.mask) as usize][1].load(Ordering::Acquire) ^ self.phase
    }

    /// Whether [`high`](CompletionRing::high) returned the word of a new entry.
    #[inline(always)]
    pub(crate) fn is_new(high: u64) -> bool {
        high & PHASE == 0
    }

    /// The entry behind a high word; its phase bit has no meaning.
    pub(crate) fn entry(&self, high: u64) -> Completion {
        let low = self.entries[(self.head & self.mask) as usize][0].load(Ordering::Relaxed);
        Completion::from_words(low, high)
    }

    /// Dword 0 of an entry consumed `ago` entries before the head. It is there until the doorbell
    /// says that it may be overwritten.
    pub(crate) fn dword0(&self, ago: u32) -> u32 {
        let at = self.head.wrapping_sub(ago) & self.mask;
        self.entries[at as usize][0].load(Ordering::Relaxed) as u32
    }

    /// Consumes the entry at the head.
    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        self.head = self.head.wrapping_add(1);
        if self.head & self.mask == 0 {
            self.phase ^= PHASE;
        }
    }

    /// Entries consumed of which the controller does not know yet.
    #[inline(always)]
    pub(crate) fn unacknowledged(&self) -> u32 {
        self.head.wrapping_sub(self.rung)
    }

    /// Makes room: before consumed and outstanding entries together could fill the ring.
    #[inline(always)]
    pub(crate) fn make_room(&mut self, outstanding: u32) {
        if self.unacknowledged() + outstanding >= self.mask {
            self.ring();
        }
    }

    /// After a few idle polls in a row: a broken controller may be waiting for room that it need not
    /// wait for.
    #[inline(always)]
    pub(crate) fn make_room_when_idle(&mut self, idle: bool) {
        self.idle_polls = if idle { self.idle_polls + 1 } else { 0 };
        if self.idle_polls == IDLE_POLLS {
            self.idle_polls = 0;
            self.ring();
        }
    }

    /// Tells the controller of all entries consumed since the last time, if there are any.
    pub(crate) fn ring(&mut self) {
        if self.head != self.rung {
            self.rung = self.head;
            self.doorbells += 1;
            self.doorbell.ring(self.head & self.mask);
        }
    }

    pub(crate) fn iova(&self) -> u64 {
        self.entries.iova()
    }

    pub(crate) fn len(&self) -> u32 {
        self.mask + 1
    }
}
