//! The controller as attacker: the fuzzer gives its wishes, and then a row of things that the application and
//! the controller do.
//!
//! Whatever it does, every request comes back at most once and with its own memory, succeeds only after the
//! controller said so of commands for all of its blocks, and everything ends in bounded time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kiovec::memory::DmaSpace;
use kiovec::{
    Controller, DataForm, Event, Failure, IoContainer, Operation, Poller, QueueId, QueueOptions, Target,
};

#[path = "attacker.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod attacker;

use attacker::{Attacker, Entry, Script, Wishes, with_space};

/// Requests in a poller, at most.
const REQUESTS: u32 = 64;
/// Things done in a run, at most.
const MOST: usize = 400;
const MOST_QUEUES: usize = 3;
/// Bytes of a request, at most: more than MDTS, so that it is cut.
const MOST_BYTES: usize = 512 << 10;

pub fn fuzz_controller(data: &[u8]) {
    let mut script = Script(data);
    let chunks = script.byte() % 12;
    let attacker = Attacker::new(Wishes::read(&mut script, chunks));
    with_space(&attacker, |space| {
        let Ok(controller) = Controller::open(attacker.function(), space) else { return };
        let mut application = Application::new(&attacker, space, controller);
        application.add_queue(script.byte());
        for _ in 0..MOST {
            if script.is_over() {
                break;
            }
            application.step(&mut script);
        }
        application.poll(4);
    });
}

/// What a request was when it was submitted.
struct Sent {
    operation: Operation,
    lba: u64,
    blocks: u64,
    memory: Vec<(u64, usize)>,
}

struct Application<'a> {
    attacker: &'a Attacker,
    space: &'a DmaSpace,
    poller: Poller,
    controller: Arc<Controller>,
    queues: Vec<(QueueId, Vec<Target>)>,
    sent: BTreeMap<u64, Sent>,
    events: Vec<Event>,
    tag: u64,
    lba: u64,
}

impl<'a> Application<'a> {
    fn new(attacker: &'a Attacker, space: &'a DmaSpace, controller: Arc<Controller>) -> Application<'a> {
        Application {
            attacker,
            space,
            poller: Poller::new(REQUESTS),
            controller,
            queues: Vec::new(),
            sent: BTreeMap::new(),
            events: Vec::new(),
            tag: 0,
            lba: 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        let more = usize::from(what >> 4);
        match what & 15 {
            0 => self.poll(1 + more),
            1 => self.submit(Operation::Read, script),
            2 => self.submit(Operation::Write, script),
            3 => {
                let others = [Operation::Flush, Operation::WriteZeroes, Operation::Deallocate];
                self.submit(others[more % 3], script);
            }
            4 => (0..=more).for_each(|_| self.attacker.complete(0, 0)),
            5 => self.attacker.complete(script.byte().into(), script.half() & 0x7fff),
            6 => self.post(more, script),
            7 => self.scribble(more, script),
            8 => self.poll(100 * (1 + more)),
            9 => self.end_event(more, script),
            10 => self.compound(more),
            11 => self.plug(more),
            12 => self.controller_event(script),
            13 => self.add_queue(script.byte()),
            14 => {
                self.attacker.advance(u64::from(script.word()) << 10);
                self.poll(1);
            }
            _ => self.misfortune(more, script),
        }
    }

    fn target(&self, which: u8) -> Option<Target> {
        let (_, targets) = self.queues.get(usize::from(which & 3) % self.queues.len().max(1))?;
        targets.get(usize::from(which >> 2) % targets.len().max(1)).copied()
    }

    fn submit(&mut self, operation: Operation, script: &mut Script<'_>) {
        let (flags, size, gap) = (script.byte(), script.byte(), script.byte());
        let Some(target) = self.target(flags & 7) else { return };
        let Some(geometry) = self.poller.geometry(target) else { return };
        let block = geometry.block_size();
        let blocks = (1 + usize::from(size & 15)) << (size >> 4 & 3);
        let blocks = blocks.min(MOST_BYTES / block).max(1) as u64;
        // Now and then not behind the last one, or far away.
        self.lba += if gap & 0x80 == 0 { 0 } else { u64::from(gap) << (gap & 31) };
        let lba = if operation == Operation::Flush { 0 } else { self.lba };
        let Some(memory) = self.memory(blocks as usize * block, size >> 6) else { return };
        let io = match operation {
            Operation::Read => IoContainer::read(lba, memory),
            Operation::Write => IoContainer::write(lba, memory),
            Operation::WriteZeroes => IoContainer::write_zeroes(lba, blocks),
            Operation::Deallocate => IoContainer::deallocate(lba, blocks),
            _ => IoContainer::flush(),
        };
        self.tag += 1;
        let io = io.tag(self.tag).fua(gap & 2 != 0).no_merge(gap & 4 != 0).atomic(gap & 0x7f == 8);
        let sent = Sent { operation, lba, blocks, memory: addresses(&io) };
        let accepted = if flags & 8 == 0 {
            self.poller.submit(target, io).is_ok()
        } else {
            let event = self.poller.request(target, io);
            event.is_ok_and(|event| {
                self.events.push(event);
                true
            })
        };
        if accepted {
            self.sent.insert(self.tag, sent);
            self.lba += blocks;
        }
    }

    /// One segment, or several whose joints PRPs cannot always express.
    fn memory(&self, len: usize, shape: u8) -> Option<kiovec::memory::MemoryChain> {
        let memory = self.space.allocate(len + 4096).ok()?.slice(match shape {
            0 => 0..len,
            1 => 512..512 + len,
            _ => 4096..4096 + len,
        });
        if shape < 3 || len < 4096 {
            return Some(memory);
        }
        let (mut first, rest) = memory.split_at((len / 2) & !511);
        let mut other = self.space.allocate(rest.len()).ok()?;
        std::mem::swap(&mut first, &mut other);
        let mut chain = kiovec::memory::MemoryChain::with_capacity(2);
        chain.append(other);
        let wanted = len - chain.len();
        chain.append(first.slice(0..wanted));
        Some(chain)
    }

    fn poll(&mut self, times: usize) {
        let Application { attacker, poller, sent, .. } = self;
        for _ in 0..times {
            poller.poll(|done| {
                let result = done.result();
                check(attacker, sent, done.io(), result);
            });
        }
    }

    fn post(&mut self, how: usize, script: &mut Script<'_>) {
        let which = script.byte();
        let (qid, cid) = match (how & 3, self.attacker.some_cid(which.into())) {
            (0 | 1, Some((qid, cid))) => (qid, cid),
            // Another generation, or another slot.
            (2, Some((qid, cid))) => (qid, cid ^ 1 << (which & 15)),
            _ => (1 + u16::from(which & 1), script.half()),
        };
        let entry = if how & 3 == 0 {
            Entry { sq_id: qid, cid, ..Entry::default() }
        } else {
            let (sq_head, sq_id, status) = (script.half(), script.byte(), script.half());
            let sq_id = if sq_id < 0x80 { qid } else { sq_id.into() };
            let status = if status & 1 == 0 { 0 } else { status >> 1 };
            Entry { dw0: script.byte().into(), dw1: 0, sq_head, sq_id, cid, status }
        };
        let to = if how & 4 == 0 { qid } else { u16::from(which) % 4 };
        self.attacker.post(to, entry, how & 8 != 0);
    }

    fn scribble(&mut self, how: usize, script: &mut Script<'_>) {
        let qid = (how & 3) as u16;
        let at = script.byte();
        let words = [script.long(), script.long()];
        for count in 0..=(how as u32 >> 2) * 8 {
            self.attacker.scribble(qid, u32::from(at) + count, words);
        }
    }

    fn end_event(&mut self, how: usize, script: &mut Script<'_>) {
        if self.events.is_empty() {
            return;
        }
        let which = usize::from(script.byte()) % self.events.len();
        let event = self.events[which];
        match how & 3 {
            0 => self.poller.cancel(event),
            1 => {
                if let Some((io, result)) = self.poller.claim(event) {
                    check(self.attacker, &mut self.sent, &io, result);
                    assert!(self.poller.claim(event).is_none());
                }
            }
            2 => self.poller.release(event),
            _ => self.poller.set_deadline(event, Duration::from_millis(script.byte().into())),
        }
    }

    fn compound(&mut self, how: usize) {
        let some = self.events.iter().rev().take(1 + (how & 3)).copied().collect::<Vec<_>>();
        let event = match how >> 2 {
            0 => self.poller.all(&some),
            1 => self.poller.any(&some),
            k => self.poller.at_least(k - 1, &some),
        };
        self.events.extend(event);
    }

    fn plug(&mut self, how: usize) {
        let Some((queue, _)) = self.queues.get((how & 7) % self.queues.len().max(1)) else { return };
        if how & 8 == 0 { self.poller.plug(*queue) } else { self.poller.unplug(*queue) }
    }

    fn controller_event(&mut self, script: &mut Script<'_>) {
        self.attacker.event(script.word());
        for _ in 0..4 {
            let _ = self.controller.events().count();
        }
    }

    /// A further queue pair with all namespaces that can be had.
    fn add_queue(&mut self, how: u8) {
        if self.queues.len() == MOST_QUEUES {
            return;
        }
        let depth = [2, 1, 3, 8, 63, 128, 16, 4][usize::from(how & 7)];
        let form = if how & 8 == 0 { DataForm::Auto } else { DataForm::Sgl };
        let options = QueueOptions::default().depth(depth).data(form).merge(how & 16 == 0);
        let Ok(queue) = self.poller.add_queue(&self.controller, options) else { return };
        let nsids = self.controller.active_namespaces().unwrap_or_default();
        let mut targets = Vec::new();
        for nsid in nsids.into_iter().take(2) {
            let Ok(namespace) = self.controller.namespace(nsid) else { continue };
            targets.extend(self.poller.add_namespace(queue, &namespace));
        }
        self.queues.push((queue, targets));
    }

    fn misfortune(&mut self, how: usize, script: &mut Script<'_>) {
        match how & 3 {
            0 => {
                let Some(event) = self.events.last().copied() else { return };
                let (limit, attacker, sent) =
                    (Duration::from_millis(script.byte().into()), self.attacker, &mut self.sent);
                let _ = self.poller.wait(event, limit, |done| {
                    let result = done.result();
                    check(attacker, sent, done.io(), result);
                });
            }
            1 => self.attacker.fail(),
            2 => {
                let _ = self.controller.check();
            }
            // All of them, last to first.
            _ => (0..self.attacker.outstanding()).for_each(|_| self.attacker.complete(usize::MAX, 0)),
        }
    }
}

fn addresses(io: &IoContainer) -> Vec<(u64, usize)> {
    io.memory().segments().iter().map(|segment| (segment.iova(), segment.len())).collect()
}

/// A request has come back.
fn check(attacker: &Attacker, sent: &mut BTreeMap<u64, Sent>, io: &IoContainer, result: Result<(), Failure>) {
    let sent = sent.remove(&io.get_tag()).expect("what comes back was sent, and has not come back yet");
    assert_eq!((sent.operation, sent.lba), (io.operation(), io.lba()));
    if result.is_err() {
        return;
    }
    assert_eq!(sent.memory, addresses(io), "its memory");
    let (opcode, blocks) = match sent.operation {
        Operation::Read => (0x02, sent.blocks),
        Operation::Write => (0x01, sent.blocks),
        Operation::WriteZeroes => (0x08, sent.blocks),
        Operation::Deallocate => (0x09, 0),
        _ => (0x00, 0),
    };
    let completed = attacker.has_completed(opcode, sent.lba, blocks);
    assert!(completed, "{:?} of {} blocks at {} succeeded by itself", sent.operation, blocks, sent.lba);
    assert!(attacker.posts() > 0);
}
