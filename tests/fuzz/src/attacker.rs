//! A controller in memory that does what the fuzzer wants: registers, Admin answers, data and completions.
//!
//! Without any wish it is an honest one, so that a few bytes get far. It reaches what is mapped for it, and
//! nothing else; every wait for it makes virtual time go on. It takes queue entries apart itself: what it
//! knows of commands is not what the driver knows.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiovec::memory::{Access, DmaSpace, Domain, Mapping};
use kiovec::pci::{Clock, DoorbellPage, Function, PostedWrites};
use kiovec::{Error, Result};
use rustix::fs::{FallocateFlags, fallocate};

/// Virtual time between two looks: short at first, then long, so that no wait takes many.
const SHORT_PAUSE: u64 = 200_000;
const LONG_PAUSE: u64 = 500_000_000;
const SHORT_PAUSES: u32 = 8;
/// Looks in a whole run, of all waits together: a row of the longest of them (ten minutes) is far below.
const MOST_PAUSES: u32 = 100_000;
const MOST_QUEUES: usize = 8;
const PAGE: usize = 4096;

/// Bytes of the fuzzer's, and zeros when they are used up.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let there = self.take(N);
        bytes[..there.len()].copy_from_slice(there);
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// What the controller hands out, as far as the fuzzer changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    Controller,
    Namespace,
    Namespaces,
    Descriptors,
    Nvm,
    Log,
    Config,
}

/// Bytes of a page, from the time on when it was read so many times.
struct Change {
    page: Page,
    after: u32,
    offset: usize,
    bytes: Vec<u8>,
}

/// Bits of a register, from the time on when it was read so many times.
struct Override {
    offset: u64,
    after: u32,
    mask: u32,
    value: u32,
}

/// What becomes of an Admin command, by its number.
struct Answer {
    number: u32,
    kind: u8,
    value: u32,
}

/// Everything that is known before the driver comes.
#[derive(Default)]
pub struct Wishes {
    changes: Vec<Change>,
    registers: Vec<Override>,
    answers: Vec<Answer>,
    refuses_reset: bool,
    refuses_config: bool,
    refuses_unmap: bool,
}

const REGISTERS: [u64; 8] = [0x00, 0x04, 0x08, 0x14, 0x1c, 0x24, 0x68, 0x1c];

impl Wishes {
    /// A row of chunks: a kind and when, where, how long, and what.
    pub fn read(script: &mut Script<'_>, chunks: u8) -> Wishes {
        let mut wishes = Wishes::default();
        for _ in 0..chunks {
            let (kind, at, len) = (script.byte(), script.half(), script.byte());
            let after = u32::from(kind >> 4);
            let page = match kind & 15 {
                0 | 10 => Page::Controller,
                1 | 11 => Page::Namespace,
                2 => Page::Namespaces,
                3 => Page::Descriptors,
                4 => Page::Nvm,
                5 => Page::Log,
                6 => Page::Config,
                7 => {
                    let offset = REGISTERS[usize::from(at) % REGISTERS.len()];
                    let mask = if at & 8 == 0 { u32::MAX } else { script.word() };
                    wishes.registers.push(Override { offset, after, mask, value: script.word() });
                    continue;
                }
                8 => {
                    let answer = Answer { number: u32::from(at) % 64, kind: len, value: script.word() };
                    wishes.answers.push(answer);
                    continue;
                }
                9 => {
                    wishes.refuses_reset |= at & 1 != 0;
                    wishes.refuses_config |= at & 2 != 0;
                    wishes.refuses_unmap |= at & 4 != 0;
                    continue;
                }
                // The same byte over and over.
                12 => {
                    let bytes = vec![len; PAGE];
                    wishes.change(Page::Namespaces, after, usize::from(at), bytes);
                    continue;
                }
                _ => continue,
            };
            wishes.change(page, after, usize::from(at), script.take(len.into()).to_vec());
        }
        wishes
    }

    /// Honest in everything but what there is to be read.
    #[must_use]
    pub fn pages_only(self) -> Wishes {
        Wishes { changes: self.changes, ..Wishes::default() }
    }

    fn change(&mut self, page: Page, after: u32, offset: usize, mut bytes: Vec<u8>) {
        let offset = offset % PAGE;
        bytes.truncate(PAGE - offset);
        self.changes.push(Change { page, after, offset, bytes });
    }
}

/// A command as it lay in a submission queue.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    pub qid: u16,
    pub cid: u16,
    pub opcode: u8,
    pub lba: u64,
    pub blocks: u64,
    dwords: [u64; 8],
}

impl Fetched {
    fn new(qid: u16, dwords: [u64; 8]) -> Fetched {
        Fetched {
            qid,
            cid: (dwords[0] >> 16) as u16,
            opcode: dwords[0] as u8,
            lba: dwords[5],
            blocks: (dwords[6] & 0xffff) + 1,
            dwords,
        }
    }

    fn dword(&self, number: usize) -> u32 {
        (self.dwords[number / 2] >> (32 * (number % 2))) as u32
    }
}

/// A completion, in every field.
#[derive(Debug, Clone, Copy, Default)]
pub struct Entry {
    pub dw0: u32,
    pub dw1: u32,
    pub sq_head: u16,
    pub sq_id: u16,
    pub cid: u16,
    pub status: u16,
}

struct Sq {
    iova: u64,
    entries: u32,
    head: u32,
}

struct Cq {
    iova: u64,
    entries: u32,
    tail: u32,
    phase: bool,
}

/// Memory that is mapped, as far as that is true.
struct Mapped {
    iova: u64,
    len: u64,
    memory: NonNull<u64>,
    writable: bool,
}

// SAFETY: memory that is mapped may be used by any thread until it is unmapped (the contract of Mapping).
unsafe impl Send for Mapped {}

#[derive(Default)]
struct State {
    wishes: Wishes,
    mapped: Vec<Mapped>,
    /// Files of everything that ever was mapped, to give retired memory back.
    files: Vec<(OwnedFd, u64, u64)>,
    registers: BTreeMap<u64, u32>,
    register_reads: BTreeMap<u64, u32>,
    page_reads: BTreeMap<u8, u32>,
    command: [u8; 2],
    /// The stride of doorbells that was read last.
    stride: u64,
    fatal: bool,
    sqs: BTreeMap<u16, Sq>,
    cqs: BTreeMap<u16, Cq>,
    admin_commands: u32,
    events: VecDeque<Fetched>,
    outstanding: VecDeque<Fetched>,
    /// All that were ever sent to I/O queues.
    log: Vec<Fetched>,
    /// What completion queues ever held: queue, submission queue, CID, and whether it was a success.
    posted: HashSet<(u16, u16, u16, bool)>,
    posts: u64,
    pauses: u32,
    row: u32,
}

/// The controller. Clones are the same one.
#[derive(Clone)]
pub struct Attacker {
    state: Arc<Mutex<State>>,
    time: Arc<AtomicU64>,
    domain: Arc<Table>,
}

struct Table(Arc<Mutex<State>>);

struct Doorbells(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attacker {
    pub fn new(wishes: Wishes) -> Attacker {
        let registers = BTreeMap::from([
            // MQES 63, TO 1 s, and NVM.
            (0x00, 63 | 2 << 24),
            (0x04, 1 << 5),
            (0x08, 0x0002_0000),
        ]);
        let state = Arc::new(Mutex::new(State { wishes, registers, ..State::default() }));
        let domain = Arc::new(Table(Arc::clone(&state)));
        Attacker { state, time: Arc::default(), domain }
    }

    pub fn function(&self) -> Arc<dyn Function> {
        Arc::new(self.clone())
    }

    /// Commands that wait for their completions.
    pub fn outstanding(&self) -> usize {
        lock(&self.state).outstanding.len()
    }

    /// Completes one of the outstanding commands, as it should be but for its status.
    pub fn complete(&self, which: usize, status: u16) {
        let mut state = lock(&self.state);
        let count = state.outstanding.len();
        if count == 0 {
            return;
        }
        let Some(command) = state.outstanding.remove(which % count) else { return };
        let sq_head = state.sqs.get(&command.qid).map_or(0, |sq| sq.head as u16);
        let entry = Entry { sq_head, sq_id: command.qid, cid: command.cid, status, ..Entry::default() };
        state.post(command.qid, entry, false);
    }

    /// Posts whatever it likes, in its turn; with the wrong phase, the turn is not over.
    pub fn post(&self, qid: u16, entry: Entry, wrong_phase: bool) {
        lock(&self.state).post(qid, entry, wrong_phase);
    }

    /// Writes whatever it likes into a completion queue.
    pub fn scribble(&self, qid: u16, at: u32, words: [u64; 2]) {
        lock(&self.state).scribble(qid, at, words);
    }

    /// Reports an event, if there is a request for one.
    pub fn event(&self, dw0: u32) {
        let mut state = lock(&self.state);
        if let Some(request) = state.events.pop_front() {
            state.post(0, Entry { dw0, cid: request.cid, ..Entry::default() }, false);
        }
    }

    /// The CID of some command, outstanding or over.
    pub fn some_cid(&self, back: usize) -> Option<(u16, u16)> {
        let state = lock(&self.state);
        let at = state.log.len().checked_sub(1 + back % state.log.len().max(1))?;
        state.log.get(at).map(|command| (command.qid, command.cid))
    }

    pub fn advance(&self, nanos: u64) {
        self.time.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn fail(&self) {
        lock(&self.state).fatal = true;
    }

    /// Whether there was a successful completion for a command of this kind for every one of these blocks.
    pub fn has_completed(&self, opcode: u8, lba: u64, blocks: u64) -> bool {
        let state = lock(&self.state);
        let answered = |command: &&Fetched| {
            command.opcode == opcode && state.posted.contains(&(command.qid, command.qid, command.cid, true))
        };
        // One that lies in a queue can be answered before its doorbell is rung: the controller has guessed its CID.
        let lie = state
            .sqs
            .iter()
            .filter(|(qid, _)| **qid > 0)
            .flat_map(|(qid, sq)| (0..sq.entries).map(|at| Fetched::new(*qid, state.entry(sq.iova, at))));
        let lie: Vec<Fetched> = lie.collect();
        let mut commands = state.log.iter().chain(&lie).filter(answered);
        if blocks == 0 {
            return commands.next().is_some();
        }
        let commands: Vec<_> = commands.collect();
        let mut at = lba;
        while at < lba + blocks {
            let here =
                commands.iter().filter(|command| command.lba <= at && at < command.lba + command.blocks);
            let Some(end) = here.map(|command| command.lba + command.blocks).max() else { return false };
            at = end;
        }
        true
    }

    pub fn posts(&self) -> u64 {
        lock(&self.state).posts
    }

    /// After a run: memory that the space keeps for good is not needed any more, as this is gone.
    pub fn give_back(&self) {
        for (file, offset, len) in std::mem::take(&mut lock(&self.state).files) {
            let _ = fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len);
        }
    }
}

impl State {
    /// A word of mapped memory.
    fn at(&self, iova: u64, write: bool) -> Option<&AtomicU64> {
        let within = |mapped: &&Mapped| {
            iova.is_multiple_of(8) && mapped.iova <= iova && iova - mapped.iova < mapped.len
        };
        let mapped = self.mapped.iter().find(within).filter(|mapped| mapped.writable || !write)?;
        // SAFETY: the word is within the mapping, as checked, which is there until it is unmapped, and that
        // takes this state mutably. The driver runs in this thread, and not now.
        Some(unsafe { AtomicU64::from_ptr(mapped.memory.as_ptr().byte_add((iova - mapped.iova) as usize)) })
    }

    fn load(&self, iova: u64) -> u64 {
        self.at(iova, false).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// An entry of a submission queue.
    fn entry(&self, queue: u64, at: u32) -> [u64; 8] {
        std::array::from_fn(|word| self.load(queue + 64 * u64::from(at) + 8 * word as u64))
    }

    fn store(&self, iova: u64, value: u64) {
        if let Some(word) = self.at(iova, true) {
            word.store(value, Ordering::Release);
        }
    }

    fn store_bytes(&self, iova: u64, bytes: &[u8]) {
        for (iova, word) in (iova..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            self.store(iova, u64::from_le_bytes(*word));
        }
    }

    fn post(&mut self, qid: u16, entry: Entry, wrong_phase: bool) {
        let Some(cq) = self.cqs.get_mut(&qid) else { return };
        let (at, phase) = (cq.tail, cq.phase != wrong_phase);
        if !wrong_phase {
            cq.tail = (cq.tail + 1) % cq.entries;
            cq.phase ^= cq.tail == 0;
        }
        let low = u64::from(entry.dw1) << 32 | u64::from(entry.dw0);
        let status = u64::from(entry.status << 1 | u16::from(phase));
        let ids = u64::from(entry.cid) << 32 | u64::from(entry.sq_id) << 16 | u64::from(entry.sq_head);
        self.scribble(qid, at, [low, status << 48 | ids]);
    }

    fn scribble(&mut self, qid: u16, at: u32, [low, high]: [u64; 2]) {
        let Some(cq) = self.cqs.get(&qid) else { return };
        let iova = cq.iova + 16 * u64::from(at % cq.entries);
        self.store(iova, low);
        self.store(iova + 8, high);
        // Code and type say whether it is a success, not the bits that go with them.
        let success = high >> 49 & 0x7ff == 0;
        self.posted.insert((qid, (high >> 16) as u16, (high >> 32) as u16, success));
        self.posts += 1;
    }

    fn read(&mut self, offset: u64) -> u32 {
        let reads = self.register_reads.entry(offset).or_default();
        *reads += 1;
        let mut value = match offset {
            0x1c => self.csts(),
            _ => self.registers.get(&offset).copied().unwrap_or(0),
        };
        let reads = self.register_reads[&offset];
        for change in &self.wishes.registers {
            if change.offset == offset && reads > change.after {
                value = value & !change.mask | change.value & change.mask;
            }
        }
        if offset == 0x04 {
            self.stride = 4 << (value & 15);
        }
        value
    }

    /// CSTS follows CC at once.
    fn csts(&self) -> u32 {
        let cc = self.registers.get(&0x14).copied().unwrap_or(0);
        let shut_down = if cc >> 14 & 3 != 0 { 0b1000 } else { 0 };
        cc & 1 | u32::from(self.fatal) << 1 | shut_down
    }

    fn write(&mut self, offset: u64, value: u32) {
        let before = self.registers.insert(offset, value).unwrap_or(0);
        if offset != 0x14 || (before ^ value) & 1 == 0 {
            return;
        }
        (self.sqs, self.cqs, self.fatal) = Default::default();
        self.events.clear();
        self.outstanding.clear();
        if value & 1 != 0 {
            let long = |state: &State, at| {
                let half = |at| u64::from(state.registers.get(&at).copied().unwrap_or(0));
                half(at + 4) << 32 | half(at)
            };
            let aqa = self.registers.get(&0x24).copied().unwrap_or(0);
            let (asq, acq) = (long(self, 0x28), long(self, 0x30));
            self.sqs.insert(0, Sq { iova: asq, entries: (aqa & 0xfff) + 1, head: 0 });
            self.cqs.insert(0, Cq { iova: acq, entries: (aqa >> 16 & 0xfff) + 1, tail: 0, phase: true });
        }
    }

    /// A doorbell: commands are fetched, and Admin commands carried out.
    fn ring(&mut self, doorbell: u64, value: u32) {
        let number = doorbell / self.stride.max(4);
        let qid = (number / 2) as u16;
        if !number.is_multiple_of(2) {
            return;
        }
        while let Some(sq) = self.sqs.get_mut(&qid)
            && sq.head != value
            && value < sq.entries
        {
            let (iova, at) = (sq.iova, sq.head);
            sq.head = (sq.head + 1) % sq.entries;
            let command = Fetched::new(qid, self.entry(iova, at));
            if qid == 0 {
                self.admin(command);
            } else {
                self.log.push(command);
                self.outstanding.push_back(command);
            }
        }
    }

    fn admin(&mut self, command: Fetched) {
        let (number, cid) = (self.admin_commands, command.cid);
        self.admin_commands += 1;
        self.row = 0;
        if command.opcode == 0x0c {
            self.events.push_back(command);
            return;
        }
        let (status, dw0) = self.carry_out(&command);
        let entry = Entry { dw0, cid, status, ..Entry::default() };
        let answer = self.wishes.answers.iter().find(|answer| answer.number == number);
        let Some(&Answer { kind, value, .. }) = answer else { return self.post(0, entry, false) };
        match kind % 10 {
            0 => {}
            1 => self.post(0, Entry { status: value as u16 & 0x7fff, ..entry }, false),
            2 => self.post(0, Entry { dw0: value, ..entry }, false),
            3 => {
                self.post(0, Entry { cid: value as u16, dw0: value, ..entry }, false);
                self.post(0, entry, false);
            }
            4 => {
                self.post(0, entry, false);
                self.post(0, entry, false);
            }
            5 => self.post(0, entry, true),
            6 => self.post(0, Entry { sq_id: value as u16, sq_head: (value >> 16) as u16, ..entry }, false),
            7 => self.fatal = true,
            // More than there is room for.
            8 => (0..value % 100).for_each(|_| self.post(0, Entry { cid: value as u16, ..entry }, false)),
            _ => {
                for back in 0..value % 40 {
                    self.post(0, Entry { cid: cid.wrapping_sub(back as u16), ..entry }, false);
                }
            }
        }
    }

    fn carry_out(&mut self, command: &Fetched) -> (u16, u32) {
        let (dw10, dw11, prp1) = (command.dword(10), command.dword(11), command.dwords[3]);
        let (qid, entries) = (dw10 as u16, (dw10 >> 16) + 1);
        let mut dw0 = 0;
        match command.opcode {
            0x00 => {
                self.sqs.remove(&qid);
                self.outstanding.retain(|command| command.qid != qid);
            }
            0x01 if self.sqs.len() <= MOST_QUEUES && entries > 1 => {
                self.sqs.insert(qid, Sq { iova: prp1, entries, head: 0 });
            }
            0x04 => _ = self.cqs.remove(&qid),
            0x05 if self.cqs.len() <= MOST_QUEUES && entries > 1 => {
                self.cqs.insert(qid, Cq { iova: prp1, entries, tail: 0, phase: true });
            }
            0x01 | 0x05 => return (0x0101, 0),
            0x02 => {
                let len = 4 * ((dw10 >> 16 & 0xfff) as usize + 1);
                let data = self.page(Page::Log, dw10 as u8);
                self.store_bytes(prp1, &data[..len.min(PAGE)]);
            }
            0x06 => {
                let page = match dw10 as u8 {
                    0 => Page::Namespace,
                    2 => Page::Namespaces,
                    3 => Page::Descriptors,
                    6 => Page::Nvm,
                    _ => Page::Controller,
                };
                let data = self.page(page, 0);
                self.store_bytes(prp1, &data);
            }
            0x09 if dw10 as u8 == 7 => dw0 = dw11 & 0x0003_0003,
            0x08 => dw0 = 1,
            // It looks at no shadow doorbells.
            0x7c => return (0x0001, 0),
            _ => {}
        }
        (0, dw0)
    }

    /// A page, with what the fuzzer wants in it.
    fn page(&mut self, page: Page, log: u8) -> [u8; PAGE] {
        let reads = self.page_reads.entry(page as u8).or_default();
        *reads += 1;
        let mut data = honest(page, log);
        for change in self.wishes.changes.iter().filter(|change| change.page == page && *reads > change.after)
        {
            data[change.offset..change.offset + change.bytes.len()].copy_from_slice(&change.bytes);
        }
        data
    }
}

/// What an honest controller with two namespaces says.
fn honest(page: Page, log: u8) -> [u8; PAGE] {
    let mut data = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    match page {
        Page::Controller => {
            // MDTS, OAES, AERL, entry sizes, NN, ONCS, VWC.
            put(77, &[5]);
            put(92, &0x300u32.to_le_bytes());
            put(258, &[3, 3]);
            put(512, &[0x66, 0x44]);
            put(516, &[2, 0, 0, 0, 0x0c, 0, 0, 0, 0, 1]);
        }
        Page::Namespace => {
            put(0, &[0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0]);
            put(25, &[1]);
            put(130, &[12, 0, 0, 0, 9]);
        }
        Page::Namespaces => put(0, &[1, 0, 0, 0, 2]),
        Page::Log if log == 4 => put(0, &[1]),
        Page::Config => put(0, &[0x34, 0x12, 0x78, 0x56]),
        Page::Descriptors | Page::Nvm | Page::Log => {}
    }
    data
}

impl Function for Attacker {
    fn name(&self) -> &str {
        "attacker"
    }

    fn domain(&self) -> Arc<dyn Domain> {
        let domain: Arc<Table> = Arc::clone(&self.domain);
        domain
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        let mut state = lock(&self.state);
        let mut page = state.page(Page::Config, 0);
        page[4..6].copy_from_slice(&state.command);
        let at = usize::from(offset);
        data.copy_from_slice(page.get(at..at + data.len()).ok_or_else(|| refused("config"))?);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        let mut state = lock(&self.state);
        if state.wishes.refuses_config {
            return Err(refused("config"));
        }
        if let (4, [low, high]) = (offset, data) {
            state.command = [*low, *high];
        }
        Ok(())
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        Ok(lock(&self.state).read(offset))
    }

    fn read64(&self, offset: u64) -> Result<u64> {
        let mut state = lock(&self.state);
        Ok(u64::from(state.read(offset)) | u64::from(state.read(offset + 4)) << 32)
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        lock(&self.state).write(offset, value);
        Ok(())
    }

    fn write64(&self, offset: u64, value: u64) -> Result<()> {
        let mut state = lock(&self.state);
        state.write(offset, value as u32);
        state.write(offset + 4, (value >> 32) as u32);
        Ok(())
    }

    fn doorbells(&self, len: u64) -> Result<DoorbellPage> {
        Ok(DoorbellPage::posted(Arc::new(Doorbells(Arc::clone(&self.state))), len))
    }

    fn reset(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if state.wishes.refuses_reset {
            return Err(refused("reset"));
        }
        state.write(0x14, 0);
        Ok(())
    }

    fn clock(&self) -> Clock {
        Clock::Virtual(Arc::clone(&self.time))
    }

    fn pause(&self) {
        let mut state = lock(&self.state);
        state.pauses += 1;
        state.row += 1;
        assert!(state.pauses < MOST_PAUSES, "the driver waits without end");
        self.advance(if state.row > SHORT_PAUSES { LONG_PAUSE } else { SHORT_PAUSE });
    }
}

fn refused(what: &str) -> Error {
    Error::InvalidInput(format!("attacker: no {what}"))
}

impl Domain for Table {
    fn name(&self) -> String {
        "attacker".into()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=u64::MAX]
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<()> {
        let (iova, len, memory) = (mapping.iova(), mapping.len(), mapping.memory().cast());
        let mut state = lock(&self.0);
        let overlaps = |other: &Mapped| iova < other.iova + other.len && other.iova < iova + len;
        assert!(!state.mapped.iter().any(overlaps), "mapped twice: {iova:#x}");
        let writable = mapping.access() == Access::ReadWrite;
        state.mapped.push(Mapped { iova, len, memory, writable });
        if let Some((file, offset)) = mapping.file()
            && let Ok(file) = file.try_clone_to_owned()
        {
            state.files.push((file, offset, len));
        }
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<()> {
        let mut state = lock(&self.0);
        let at = state.mapped.iter().position(|mapped| (mapped.iova, mapped.len) == (iova, len));
        let at = at.expect("only what is mapped is unmapped");
        if state.wishes.refuses_unmap {
            return Err(refused("unmap"));
        }
        state.mapped.swap_remove(at);
        Ok(())
    }
}

impl PostedWrites for Doorbells {
    fn post(&self, offset: u64, value: u32) {
        lock(&self.0).ring(offset - 0x1000, value);
    }
}

/// A space that lives from one run to the next, unless a run left something in it for good: memory costs far
/// more than a run.
pub fn with_space(attacker: &Attacker, run: impl FnOnce(&DmaSpace)) {
    thread_local!(static SPACE: std::cell::RefCell<Option<DmaSpace>> = const { std::cell::RefCell::new(None) });
    let Some(space) = SPACE.take().or_else(|| DmaSpace::new().ok()) else { return };
    run(&space);
    if space.retired() == 0 {
        SPACE.set(Some(space));
    } else {
        drop(space);
        attacker.give_back();
    }
}
