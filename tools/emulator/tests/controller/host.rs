//! A host of the simplest kind.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiovec::Result;
use kiovec::memory::{Attachment, DmaSpace, Domain, Mapping, MemoryChain};
use kiovec::pci::{Doorbell, Function};
use kiovec::spec::registers::{self, cq_head_doorbell, sq_tail_doorbell};
use kiovec::spec::{Aqa, Cap, Cc, Command, Completion, Csts, Status};
use kiovec_emulator::{Config, Emulator};

/// A domain that keeps a space's memory above 64 GiB, out of the way of any other space's.
struct Above;

impl Domain for Above {
    fn name(&self) -> String {
        "above".into()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        // Every space has its PRP table below 1 GiB.
        vec![512 << 20..=(1 << 30) - 1, 1 << 36..=(1 << 38) - 1]
    }

    fn map(&self, _: &Mapping<'_>) -> Result<()> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Entries of the Admin queues.
pub const ADMIN_ENTRIES: u16 = 16;

/// Memory that host and controller use at the same time, as 64-bit words.
pub struct Words {
    memory: MemoryChain,
    base: *mut u64,
}

impl Words {
    pub fn new(space: &DmaSpace, bytes: usize) -> Words {
        let mut memory = space.allocate(bytes).unwrap();
        memory.fill(0);
        let base = memory.data_mut().next().expect("one segment").as_mut_ptr().cast();
        Words { memory, base }
    }

    pub fn iova(&self) -> u64 {
        self.memory.segments()[0].iova()
    }

    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(8 * (index + 1) <= self.memory.len());
        // SAFETY: within the memory, as checked; after `new`, words are all that is made of it.
        unsafe { AtomicU64::from_ptr(self.base.add(index)) }
    }

    pub fn store(&self, index: usize, words: &[u64]) {
        for (at, word) in (index..).zip(words) {
            self.word(at).store(*word, Ordering::Relaxed);
        }
    }
}

/// The host's end of a submission queue.
pub struct Sq {
    pub words: Words,
    pub entries: u16,
    pub tail: u16,
    pub doorbell: Doorbell,
}

/// The host's end of a completion queue.
pub struct Cq {
    pub words: Words,
    pub entries: u16,
    pub head: u16,
    pub phase: bool,
    pub doorbell: Doorbell,
    /// Whether the head doorbell is rung for every entry.
    pub acknowledges: bool,
}

pub struct Host {
    pub sqs: BTreeMap<u16, Sq>,
    pub cqs: BTreeMap<u16, Cq>,
    attachment: Option<Attachment>,
    pub space: DmaSpace,
    pub function: Arc<dyn Function>,
    pub emulator: Emulator,
    next_cid: u16,
}

impl Host {
    /// A host of a stepped controller, which is not enabled yet.
    pub fn cold(text: &str) -> Host {
        Host::of(Emulator::stepped(Config::parse(text).unwrap()).unwrap())
    }

    /// A host of a stepped controller that is ready.
    pub fn new(text: &str) -> Host {
        let mut host = Host::cold(text);
        host.enable();
        host
    }

    /// The same with queue pair 1, of 8 entries each.
    pub fn with_queue(text: &str) -> Host {
        let mut host = Host::new(text);
        host.create_pair(1, 8);
        host
    }

    pub fn of(emulator: Emulator) -> Host {
        let function = emulator.function();
        let space = DmaSpace::new().unwrap();
        let attachment = space.attach(function.domain()).unwrap();
        let (sqs, cqs) = (BTreeMap::new(), BTreeMap::new());
        Host { sqs, cqs, attachment: Some(attachment), space, function, emulator, next_cid: 0 }
    }

    pub fn cap(&self) -> Cap {
        Cap::from_bits(self.function.read64(registers::CAP).unwrap())
    }

    pub fn csts(&self) -> Csts {
        Csts::from_bits(self.function.read32(registers::CSTS).unwrap())
    }

    pub fn write_cc(&self, cc: Cc) {
        self.function.write32(registers::CC, cc.into_bits()).unwrap();
    }

    /// CC as a host sets it.
    pub fn usual_cc() -> Cc {
        Cc::new().with_en(true).with_iosqes(6).with_iocqes(4)
    }

    pub fn bus_master(&self, on: bool) {
        self.function.set_bus_master(on).unwrap();
    }

    /// Sets the Admin queues up, without enabling the controller.
    pub fn prepare(&mut self) {
        let (sq, cq) = self.queue_pair(0, ADMIN_ENTRIES);
        let size = ADMIN_ENTRIES - 1;
        let aqa = Aqa::new().with_asqs(size).with_acqs(size);
        self.function.write32(registers::AQA, aqa.into_bits()).unwrap();
        self.function.write64(registers::ASQ, sq.words.iova()).unwrap();
        self.function.write64(registers::ACQ, cq.words.iova()).unwrap();
        self.sqs.insert(0, sq);
        self.cqs.insert(0, cq);
        self.bus_master(true);
    }

    pub fn enable(&mut self) {
        self.prepare();
        self.write_cc(Host::usual_cc());
        self.wait(|csts| csts.rdy());
    }

    pub fn disable(&mut self) {
        self.write_cc(Cc::new());
        self.wait(|csts| !csts.rdy());
        self.sqs.clear();
        self.cqs.clear();
    }

    /// Waits as a driver does, with an end to it.
    pub fn wait(&self, condition: impl Fn(Csts) -> bool) {
        let timeout = u64::from(self.cap().to()) * 500_000_000;
        let end = self.function.clock().nanos() + timeout;
        while !condition(self.csts()) {
            assert!(self.function.clock().nanos() < end, "{:?}", self.csts());
            self.function.pause();
        }
    }

    /// Steps until nothing happens any more.
    pub fn settle(&self) {
        while self.emulator.step() > 0 {}
    }

    pub fn queue_pair(&self, qid: u16, entries: u16) -> (Sq, Cq) {
        (self.sq(qid, entries), self.cq(qid, entries))
    }

    pub fn sq(&self, qid: u16, entries: u16) -> Sq {
        let words = Words::new(&self.space, usize::from(entries) * 64);
        Sq { words, entries, tail: 0, doorbell: self.doorbell(sq_tail_doorbell(qid, self.cap().dstrd())) }
    }

    pub fn cq(&self, qid: u16, entries: u16) -> Cq {
        let words = Words::new(&self.space, usize::from(entries) * 16);
        let doorbell = self.doorbell(cq_head_doorbell(qid, self.cap().dstrd()));
        Cq { words, entries, head: 0, phase: true, doorbell, acknowledges: true }
    }

    pub fn doorbell(&self, offset: u64) -> Doorbell {
        self.function.doorbells(offset + 4).unwrap().doorbell(offset).unwrap()
    }

    pub fn create_cq(&mut self, qid: u16, entries: u16) {
        let cq = self.cq(qid, entries);
        let created = self.admin(Command::create_io_cq(qid, entries.into(), cq.words.iova()));
        assert_eq!(created.status(), Status::SUCCESS);
        self.cqs.insert(qid, cq);
    }

    pub fn create_sq(&mut self, qid: u16, entries: u16, cqid: u16) {
        let sq = self.sq(qid, entries);
        let created = self.admin(Command::create_io_sq(qid, entries.into(), sq.words.iova(), cqid));
        assert_eq!(created.status(), Status::SUCCESS);
        self.sqs.insert(qid, sq);
    }

    pub fn create_pair(&mut self, qid: u16, entries: u16) {
        self.create_cq(qid, entries);
        self.create_sq(qid, entries, qid);
    }

    /// Writes a command into a ring, with a new CID, which is returned.
    pub fn push(&mut self, qid: u16, mut command: Command) -> u16 {
        command.cid = self.next_cid;
        self.next_cid = (self.next_cid + 1) % 0xffff;
        self.push_as_is(qid, command);
        command.cid
    }

    pub fn push_as_is(&mut self, qid: u16, command: Command) {
        let sq = self.sqs.get_mut(&qid).unwrap();
        let words: [u64; 8] = zerocopy::transmute!(command);
        sq.words.store(8 * usize::from(sq.tail), &words);
        sq.tail = (sq.tail + 1) % sq.entries;
    }

    /// Rings the tail doorbell.
    pub fn ring(&self, qid: u16) {
        let sq = &self.sqs[&qid];
        sq.doorbell.ring(sq.tail.into());
    }

    /// Takes the next completion, if there is one.
    pub fn reap(&mut self, cqid: u16) -> Option<Completion> {
        let cq = self.cqs.get_mut(&cqid).unwrap();
        let at = 2 * usize::from(cq.head);
        let high = cq.words.word(at + 1).load(Ordering::Acquire);
        let entry = Completion::from_words(cq.words.word(at).load(Ordering::Relaxed), high);
        if entry.phase() != cq.phase {
            return None;
        }
        cq.head = (cq.head + 1) % cq.entries;
        cq.phase ^= cq.head == 0;
        if cq.acknowledges {
            cq.doorbell.ring(cq.head.into());
        }
        Some(entry)
    }

    /// Steps, and takes all completions there are.
    pub fn reap_all(&mut self, cqid: u16) -> Vec<Completion> {
        let mut all = Vec::new();
        loop {
            self.settle();
            let before = all.len();
            while let Some(entry) = self.reap(cqid) {
                all.push(entry);
            }
            if all.len() == before {
                return all;
            }
        }
    }

    /// Executes one command on a queue pair.
    pub fn run(&mut self, qid: u16, command: Command) -> Completion {
        let cid = self.push(qid, command);
        self.ring(qid);
        let end = self.function.clock().nanos() + 5_000_000_000;
        loop {
            if let Some(entry) = self.reap(qid) {
                assert_eq!((entry.cid, entry.sq_id), (cid, qid));
                return entry;
            }
            assert!(self.function.clock().nanos() < end, "no completion");
            self.function.pause();
        }
    }

    pub fn admin(&mut self, command: Command) -> Completion {
        self.run(0, command)
    }

    /// The status of an Admin command.
    pub fn try_admin(&mut self, command: Command) -> Status {
        self.admin(command).status()
    }

    /// The status of an I/O command on queue pair 1.
    pub fn try_io(&mut self, command: Command) -> Status {
        self.run(1, command).status()
    }

    /// Takes all memory away from the controller.
    pub fn drop_attachment(&mut self) {
        self.attachment = None;
    }

    /// Maps memory that no queue uses, and unmaps it again.
    pub fn map_and_unmap(&self) {
        let other = DmaSpace::new().unwrap();
        let _above = other.attach(Arc::new(Above)).unwrap();
        let _memory = other.allocate(4096).unwrap();
        drop(other.attach(self.function.domain()).unwrap());
    }

    /// A buffer, and its address.
    pub fn buffer(&self, len: usize, fill: u8) -> (MemoryChain, u64) {
        let mut memory = self.space.allocate(len).unwrap();
        memory.fill(fill);
        let iova = memory.segments()[0].iova();
        (memory, iova)
    }
}
