//! The controller's ends of submission and completion queues (Base 2.0, section 3.3.1).
//!
//! Knows positions, phases and what a doorbell may say; must not know commands.

use std::sync::atomic::Ordering;

use kiovec::spec::{Command, Completion};

use super::shadow::{HeadShadow, TailShadow};
use crate::dma::{Dma, Fault, Want, Window};

/// Words of a submission queue entry: CC.IOSQES is 6.
const SQ_WORDS: usize = 8;
/// Words of a completion queue entry: CC.IOCQES is 4.
const CQ_WORDS: usize = 2;

/// A doorbell value that the queue's state rules out (Base 2.0, section 5.2.1, Invalid Doorbell
/// Write Value). It is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadDoorbell;

/// A submission queue.
#[derive(Debug)]
pub(crate) struct SubmissionQueue {
    window: Window,
    size: u32,
    head: u32,
    tail: u32,
    /// What the doorbell said last, valid or not.
    rung: u32,
    cqid: u16,
    /// Where else the tail is looked for.
    pub(super) shadow: Option<TailShadow>,
}

impl SubmissionQueue {
    /// A queue of `size` entries at an address.
    pub(crate) fn new(dma: &Dma, iova: u64, size: u32, cqid: u16) -> Result<SubmissionQueue, Fault> {
        let window = dma.window(iova, size as usize * SQ_WORDS, Want::Read)?;
        Ok(SubmissionQueue { window, size, head: 0, tail: 0, rung: 0, cqid, shadow: None })
    }

    /// The completion queue that it reports to.
    #[inline(always)]
    pub(crate) fn cqid(&self) -> u16 {
        self.cqid
    }

    /// The position of the next command to be fetched.
    #[inline(always)]
    pub(crate) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Entries.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// What the doorbell said last, valid or not.
    pub(crate) fn rung(&self) -> u32 {
        self.rung
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Takes what the tail doorbell says now. True if that is news.
    #[inline(always)]
    pub(crate) fn notice(&mut self, value: u32) -> Result<bool, BadDoorbell> {
        if value == self.rung { Ok(false) } else { self.accept(value) }
    }

    #[inline]
    fn accept(&mut self, value: u32) -> Result<bool, BadDoorbell> {
        self.rung = value;
        // One entry of a queue is always free, so that full and empty differ.
        let free = self.size - 1 - distance(self.head, self.tail, self.size);
        if value >= self.size || distance(self.tail, value, self.size) > free {
            return Err(BadDoorbell);
        }
        self.tail = value;
        Ok(true)
    }

    /// Fetches the command at the head. The queue is not empty.
    #[inline(always)]
    pub(crate) fn fetch(&mut self, dma: &Dma) -> Result<Command, Fault> {
        let entry = dma.entry::<SQ_WORDS>(&mut self.window, self.head as usize * SQ_WORDS)?;
        let mut command = [0; SQ_WORDS];
        for (word, cell) in command.iter_mut().zip(entry) {
            *word = cell.load(Ordering::Relaxed);
        }
        self.head = next(self.head, self.size);
        Ok(zerocopy::transmute!(command))
    }

    /// The commands that were not fetched yet, with what the tail doorbell says now.
    pub(crate) fn unfetched(&self, dma: &Dma, rung: u32) -> Vec<Command> {
        let free = self.size - 1 - distance(self.head, self.tail, self.size);
        let ahead = rung < self.size && distance(self.tail, rung, self.size) <= free;
        let (mut at, end) = (self.head, if ahead { rung } else { self.tail });
        let mut commands = Vec::new();
        let Ok(mut window) = dma.another(&self.window) else { return commands };
        while at != end {
            let Ok(entry) = dma.entry::<SQ_WORDS>(&mut window, at as usize * SQ_WORDS) else { break };
            let mut command = [0; SQ_WORDS];
            for (word, cell) in command.iter_mut().zip(entry) {
                *word = cell.load(Ordering::Relaxed);
            }
            commands.push(zerocopy::transmute!(command));
            at = next(at, self.size);
        }
        commands
    }

    /// Looks the ring up again, after an unmapping.
    pub(crate) fn renew(&mut self, dma: &Dma) -> Result<(), Fault> {
        dma.renew(&mut self.window)
    }
}

/// A completion queue.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    window: Window,
    size: u32,
    head: u32,
    tail: u32,
    /// What the doorbell said last, valid or not.
    rung: u32,
    phase: bool,
    /// Submission queues that report to it.
    users: u32,
    /// The interrupt that tells of new entries.
    vector: Option<u16>,
    /// Where else the head is looked for.
    pub(super) shadow: Option<HeadShadow>,
}

impl CompletionQueue {
    /// A queue of `size` entries at an address. What is there is expected to be zeros; the first
    /// pass has phase 1.
    pub(crate) fn new(dma: &Dma, iova: u64, size: u32) -> Result<CompletionQueue, Fault> {
        let window = dma.window(iova, size as usize * CQ_WORDS, Want::Write)?;
        let (vector, shadow) = (None, None);
        Ok(CompletionQueue { window, size, head: 0, tail: 0, rung: 0, phase: true, users: 0, vector, shadow })
    }

    /// The same, with an interrupt.
    pub(crate) fn with_vector(self, vector: Option<u16>) -> CompletionQueue {
        CompletionQueue { vector, ..self }
    }

    /// The interrupt vector that tells of new entries.
    #[inline(always)]
    pub(crate) fn vector(&self) -> Option<u16> {
        self.vector
    }

    /// Entries.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// What the doorbell said last, valid or not.
    pub(crate) fn rung(&self) -> u32 {
        self.rung
    }

    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        next(self.tail, self.size) == self.head
    }

    pub(crate) fn users(&self) -> u32 {
        self.users
    }

    pub(crate) fn add_user(&mut self) {
        self.users += 1;
    }

    pub(crate) fn remove_user(&mut self) {
        self.users = self.users.saturating_sub(1);
    }

    /// Takes what the head doorbell says now. True if that is news.
    pub(crate) fn notice(&mut self, value: u32) -> Result<bool, BadDoorbell> {
        if value == self.rung {
            return Ok(false);
        }
        self.rung = value;
        let used = distance(self.head, self.tail, self.size);
        if value >= self.size || distance(self.head, value, self.size) > used {
            return Err(BadDoorbell);
        }
        self.head = value;
        Ok(true)
    }

    /// Posts an entry; its phase is filled in, or the opposite if bit 0 of its status word is set. The
    /// queue is not full.
    #[inline(always)]
    pub(crate) fn post(&mut self, dma: &Dma, mut entry: Completion) -> Result<(), Fault> {
        entry.status_phase ^= u16::from(self.phase);
        let [low, high] = dma.entry::<CQ_WORDS>(&mut self.window, self.tail as usize * CQ_WORDS)?;
        let (low_word, high_word) = entry.to_words();
        low.store(low_word, Ordering::Relaxed);
        // The phase is in this half: who sees it sees the other half, and the data.
        high.store(high_word, Ordering::Release);
        self.tail = next(self.tail, self.size);
        self.phase ^= self.tail == 0;
        Ok(())
    }

    /// Looks the ring up again, after an unmapping.
    pub(crate) fn renew(&mut self, dma: &Dma) -> Result<(), Fault> {
        dma.renew(&mut self.window)
    }
}

#[inline(always)]
fn next(at: u32, size: u32) -> u32 {
    if at + 1 == size { 0 } else { at + 1 }
}

/// Entries from one position to another; both are below `size`, or the second is beyond and the
/// caller refuses it anyway.
#[inline(always)]
fn distance(from: u32, to: u32, size: u32) -> u32 {
    if to >= from { to - from } else { size - from + to }
}

#[cfg(test)]
mod tests {
    use kiovec::memory::Access;
    use kiovec::spec::Status;
    use proptest::prelude::*;
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;
    use crate::dma::tests::HostMemory;

    fn entry(cid: u16) -> Completion {
        Completion { cid, ..Completion::default() }
    }

    fn posted(host: &HostMemory, index: usize) -> Completion {
        Completion::read_from_bytes(&host.read(16 * index, 16)).unwrap()
    }

    #[test]
    fn the_phase_turns_with_every_pass() {
        let host = HostMemory::new(0x1000, 1, 0);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut cq = CompletionQueue::new(&dma, 0x1000, 3).unwrap();
        for pass in 0..4u16 {
            for at in 0..3u16 {
                cq.post(&dma, entry(3 * pass + at)).unwrap();
                assert_eq!(cq.notice(u32::from((at + 1) % 3)), Ok(true));
                let seen = posted(&host, at.into());
                assert_eq!((seen.cid, seen.phase()), (3 * pass + at, pass % 2 == 0));
                assert_eq!(seen.status(), Status::SUCCESS);
            }
        }
    }

    #[test]
    fn a_queue_is_full_with_one_entry_free() {
        let host = HostMemory::new(0x1000, 1, 0);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut cq = CompletionQueue::new(&dma, 0x1000, 2).unwrap();
        assert!(!cq.is_full());
        cq.post(&dma, entry(0)).unwrap();
        assert!(cq.is_full());
        assert_eq!(cq.notice(1), Ok(true));
        assert!(!cq.is_full());
    }

    #[test]
    fn a_head_beyond_what_was_posted_is_refused_once() {
        let host = HostMemory::new(0x1000, 1, 0);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut cq = CompletionQueue::new(&dma, 0x1000, 4).unwrap();
        cq.post(&dma, entry(0)).unwrap();
        for value in [2, 3, 4, u32::MAX] {
            assert_eq!(cq.notice(value), Err(BadDoorbell));
            assert_eq!(cq.notice(value), Ok(false));
        }
        assert_eq!(cq.notice(1), Ok(true));
    }

    #[test]
    fn a_tail_that_overtakes_the_head_is_refused() {
        let host = HostMemory::new(0x1000, 1, 0);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::ReadWrite);
        let mut sq = SubmissionQueue::new(&dma, 0x1000, 4, 1).unwrap();
        assert_eq!(sq.notice(4), Err(BadDoorbell));
        assert_eq!(sq.notice(u32::MAX), Err(BadDoorbell));
        assert_eq!(sq.notice(3), Ok(true));
        for value in [0, 1, 2] {
            assert_eq!(sq.notice(value), Err(BadDoorbell));
        }
        sq.fetch(&dma).unwrap();
        assert_eq!(sq.notice(0), Ok(true));
        assert_eq!(sq.notice(1), Err(BadDoorbell));
        for head in [2, 3, 0] {
            sq.fetch(&dma).unwrap();
            assert_eq!(sq.head(), head);
        }
        assert!(sq.is_empty());
    }

    #[test]
    fn commands_are_fetched_as_they_lie_in_memory() {
        let host = HostMemory::new(0x1000, 1, 0);
        let mut dma = Dma::new();
        host.map(&mut dma, Access::Read);
        let command = Command { cid: 77, ..Command::read(3, 0x1_0000_0002, 4) };
        host.write(64, command.as_bytes());
        let mut sq = SubmissionQueue::new(&dma, 0x1000, 4, 1).unwrap();
        sq.notice(2).unwrap();
        assert_eq!(sq.fetch(&dma).unwrap(), Command::default());
        assert_eq!(sq.fetch(&dma).unwrap(), command);
        assert!(CompletionQueue::new(&dma, 0x1000, 4).is_err());
    }

    proptest! {
        /// Against counters that never wrap.
        #[test]
        fn doorbells_agree_with_unbounded_counters(
            size in 2..9u32,
            steps in proptest::collection::vec((any::<bool>(), 0..10u32), 1..200),
        ) {
            let host = HostMemory::new(0x1000, 1, 0);
            let mut dma = Dma::new();
            host.map(&mut dma, Access::Read);
            let mut sq = SubmissionQueue::new(&dma, 0x1000, size, 1).unwrap();
            let (mut head, mut tail, mut last) = (0u32, 0u32, 0u32);
            for (fetch, value) in steps {
                if fetch && head < tail {
                    sq.fetch(&dma).unwrap();
                    head += 1;
                } else {
                    // The one tail with this remainder that is not behind.
                    let wanted = (tail..tail + size).find(|tail| tail % size == value);
                    let valid = wanted.is_some_and(|wanted| wanted - head < size);
                    let expected = if value == last { Ok(false) } else if valid { Ok(true) } else { Err(BadDoorbell) };
                    prop_assert_eq!(sq.notice(value), expected);
                    if value != last && valid {
                        tail = wanted.unwrap();
                    }
                    last = value;
                }
                prop_assert_eq!(sq.is_empty(), head == tail);
                prop_assert_eq!(u32::from(sq.head()), head % size);
            }
        }
    }
}
