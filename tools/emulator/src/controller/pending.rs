//! Commands that were fetched and are not completed yet: how queues are served while there is a plan
//! of faults, or commands are held.
//!
//! Without either, a command is completed as it is fetched, and nothing here is called. Knows when a
//! command has its turn and what happens to its completion; must not know which faults there are.

use std::collections::BTreeMap;

use kiovec::spec::{Command, Completion, Status, admin_opcode};

use super::{Answer, Controller, note};
use crate::faults::{Commands, Fate, Faults, Plan};

/// Commands that can be pending: no more are fetched until there are fewer.
const MOST: usize = 1 << 16;

/// A command that was fetched.
#[derive(Debug)]
struct Pending {
    qid: u16,
    command: Command,
    /// Its place among all commands fetched.
    number: u64,
    fate: Fate,
    held: bool,
    /// The step and the time before which it does not complete.
    from_step: u64,
    from_time: u64,
    /// What it ends with, if it has been carried out.
    answer: Option<Answer>,
    /// It has completed before.
    repeated: bool,
}

/// All commands that are pending, and the plan that they follow.
#[derive(Debug)]
pub(super) struct Fetched {
    plan: Plan,
    /// Commands to be held when they are fetched.
    holds: Vec<Commands>,
    /// By turn: the order in which they complete, unless it is random.
    pending: BTreeMap<u64, Pending>,
    next_turn: u64,
    /// How many there have ever been.
    count: u64,
    step: u64,
    /// By submission queue: the number of the newest command completed.
    newest: Vec<u64>,
}

impl Fetched {
    pub(super) fn new(faults: Faults, queues: usize) -> Fetched {
        Fetched {
            plan: Plan::new(faults),
            holds: Vec::new(),
            pending: BTreeMap::new(),
            next_turn: 0,
            count: 0,
            step: 0,
            newest: vec![0; queues],
        }
    }

    /// Whether commands may be completed as they are fetched.
    pub(super) fn is_idle(&self) -> bool {
        self.plan.is_empty() && self.holds.is_empty() && self.pending.is_empty()
    }

    /// Puts what the plan says into Identify data.
    pub(super) fn overlay(&self, command: &Command, page: &mut [u8; 4096]) {
        self.plan.overlay(command, page);
    }

    /// Whether what stops the controller takes its power as well, by the plan.
    pub(super) fn takes_power(&self) -> bool {
        self.plan.takes_power()
    }

    /// What a register reads as, by the plan.
    pub(super) fn register(&self, offset: u64, value: u32) -> u32 {
        self.plan.register(offset, value)
    }

    /// All commands are forgotten.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }

    /// The commands of a submission queue are forgotten.
    pub(super) fn clear_queue(&mut self, qid: u16) {
        self.pending.retain(|_, pending| pending.qid != qid);
    }

    /// The command becomes the last one in the queue for a turn.
    fn push(&mut self, pending: Pending) {
        self.pending.insert(self.next_turn, pending);
        self.next_turn += 1;
    }

    /// Takes a command in that was just fetched.
    fn admit(&mut self, qid: u16, command: Command, now: u64) -> Pending {
        let fate = self.plan.decide(qid, &command);
        let delay = u64::try_from(fate.delay.as_nanos()).unwrap_or(u64::MAX);
        self.count += 1;
        Pending {
            qid,
            command,
            number: self.count,
            fate,
            held: self.holds.iter().any(|held| held.contain(qid, &command)),
            from_step: self.step + u64::from(fate.delay_steps),
            from_time: now.saturating_add(delay),
            answer: None,
            repeated: false,
        }
    }

    /// The turns of all commands that could be completed now, and how many shall be.
    fn due(&mut self, now: u64) -> (Vec<u64>, usize) {
        let is_due =
            |pending: &Pending| !pending.held && pending.from_step <= self.step && pending.from_time <= now;
        let mut due: Vec<u64> =
            self.pending.iter().filter(|(_, pending)| is_due(pending)).map(|(turn, _)| *turn).collect();
        let count = self.plan.arrange(&mut due);
        (due, count)
    }

    /// Whether a command completes in a later step, whatever else happens.
    fn counts_steps(&self) -> bool {
        self.pending.values().any(|pending| !pending.held && pending.from_step > self.step)
    }

    fn release(&mut self, wanted: impl Fn(&Pending) -> bool) -> usize {
        let is_wanted = |pending: &Pending| pending.held && wanted(pending);
        let released: Vec<Pending> = self
            .pending
            .extract_if(.., |_, pending| is_wanted(pending))
            .map(|(_, pending)| pending)
            .collect();
        let count = released.len();
        for pending in released {
            self.push(Pending { held: false, ..pending });
        }
        count
    }
}

impl Controller {
    /// Follows another plan from now on. Commands that were fetched already meet the fate that they
    /// were given.
    pub(crate) fn set_faults(&mut self, faults: Faults) {
        self.fetched.plan = Plan::new(faults);
        self.update_planned();
    }

    /// How many commands each fault of the plan has happened to.
    pub(crate) fn injections(&self) -> Vec<u64> {
        self.fetched.plan.injections()
    }

    /// From now on these commands do not complete.
    pub(crate) fn hold(&mut self, commands: Commands) {
        if !self.fetched.holds.contains(&commands) {
            self.fetched.holds.push(commands);
        }
        self.update_planned();
    }

    /// Lets those of the held commands go that are among these.
    pub(crate) fn release(&mut self, commands: Commands) -> usize {
        self.fetched.release(|pending| commands.contain(pending.qid, &pending.command))
    }

    /// Holds no commands any more.
    pub(crate) fn release_all(&mut self) -> usize {
        self.fetched.holds.clear();
        let released = self.fetched.release(|_| true);
        self.update_planned();
        released
    }

    /// The commands that are held, in the order in which they were fetched.
    pub(crate) fn held(&self) -> Vec<(u16, Command)> {
        let held = self.fetched.pending.values().filter(|pending| pending.held);
        held.map(|pending| (pending.qid, pending.command)).collect()
    }

    pub(super) fn update_planned(&mut self) {
        self.planned = !self.fetched.is_idle();
    }

    /// As [`poll`](Controller::poll), but what is fetched completes when it has its turn.
    #[cold]
    pub(super) fn poll_planned(&mut self) -> usize {
        self.fetched.step += 1;
        let mut work = self.fetch_all(0);
        for at in 0..self.active.len() {
            work += self.fetch_all(self.active[at]);
        }
        work += self.complete_due();
        work += self.post_admin();
        self.update_planned();
        if work == 0 && self.running { self.poll_idle() } else { work }
    }

    /// Fetches what there is in a submission queue.
    fn fetch_all(&mut self, qid: u16) -> usize {
        let now = self.clock.nanos();
        let Some(sq) = &mut self.sqs[usize::from(qid)] else { return 0 };
        let Ok(tail) = sq.told(&self.dma, self.doorbells.tail(qid), &mut self.counters) else {
            return self.lose_shadow();
        };
        let bad = note(sq.notice(tail), &mut self.counters.sq_doorbells);
        let mut work = self.after_doorbell(bad, qid);
        while self.running
            && self.fetched.pending.len() < MOST
            && let Some(command) = self.fetch(qid)
        {
            let mut pending = self.fetched.admit(qid, command, now);
            if qid == 0 && command.opcode == admin_opcode::ABORT {
                self.limit_aborts(&mut pending);
            }
            // What an Admin command does is seen by the commands that follow it: it keeps its place.
            if pending.fate.early && !pending.held && qid != 0 {
                pending.answer = Some(self.carry_out(&pending));
            }
            self.counters.faults.held += u64::from(pending.held);
            self.counters.faults.delayed +=
                u64::from(pending.from_step > self.fetched.step || pending.from_time > now);
            self.fetched.push(pending);
            work += 1;
        }
        work
    }

    /// No more Aborts at a time than the Abort Command Limit says (Base 2.0, section 5.1).
    fn limit_aborts(&mut self, pending: &mut Pending) {
        let is_abort = |other: &&Pending| other.qid == 0 && other.command.opcode == admin_opcode::ABORT;
        let others = self.fetched.pending.values().filter(is_abort).count();
        if others > usize::from(self.config.acl) {
            self.counters.excess_aborts += 1;
            pending.fate.status = Some(Status::ABORT_LIMIT_EXCEEDED);
        }
    }

    /// Completes those that have their turn in this step.
    fn complete_due(&mut self) -> usize {
        let (due, count) = self.fetched.due(self.clock.nanos());
        let mut done = 0;
        for turn in due {
            if done == count || !self.running {
                break;
            }
            done += usize::from(self.complete(turn));
        }
        if done == 0 { usize::from(self.fetched.counts_steps()) } else { done }
    }

    /// Completes a command, if there is room for its completion.
    fn complete(&mut self, turn: u64) -> bool {
        // It may be gone meanwhile, with its queue.
        let Some(pending) = self.fetched.pending.get(&turn) else { return false };
        let Fate { fatal, unplugged, dropped, .. } = pending.fate;
        let qid = pending.qid;
        if !fatal && !unplugged && !dropped && !self.can_complete(qid) {
            return false;
        }
        let Some(pending) = self.fetched.pending.remove(&turn) else { return false };
        if fatal {
            self.counters.faults.fatal += 1;
            self.fail();
        } else if unplugged {
            self.counters.faults.unplugged += 1;
            self.remove();
        } else {
            self.finish(pending);
        }
        true
    }

    /// Whether there is room for a completion of this submission queue.
    fn can_complete(&mut self, qid: u16) -> bool {
        let Some(sq) = &self.sqs[usize::from(qid)] else { return false };
        let cqid = sq.cqid();
        (qid != 0 || self.backlog.is_empty()) && self.has_room(cqid)
    }

    /// Carries a command out, unless that has been done, and posts its completion; there is room.
    fn finish(&mut self, mut pending: Pending) {
        let answer = match pending.answer {
            Some(answer) => answer,
            None => self.carry_out(&pending),
        };
        let Some(answer) = answer else { return };
        let injected = &mut self.counters.faults;
        if pending.fate.dropped {
            injected.dropped += 1;
            return;
        }
        let newest = &mut self.fetched.newest[usize::from(pending.qid)];
        injected.overtaken += u64::from(pending.number < *newest);
        *newest = pending.number.max(*newest);
        let bits = std::mem::take(&mut pending.fate.flipped);
        injected.corrupted += u64::from(bits != Completion::default());
        // Counted now: its place may be taken for as long as the host has no reason to make room.
        let doubled = std::mem::take(&mut pending.fate.doubled);
        injected.doubled += u64::from(doubled);
        self.post(pending.qid, pending.command.cid, answer, bits);
        if doubled {
            self.fetched.push(Pending { answer: Some(Some(answer)), repeated: true, ..pending });
        }
    }

    /// Does what a command asks for, or what the plan says in its place.
    fn carry_out(&mut self, pending: &Pending) -> Answer {
        let Pending { qid, command, fate, .. } = pending;
        let answer = match fate.status {
            Some(status) => {
                self.counters.faults.errors += 1;
                // No delay is asked of a host that does not know it.
                let crd = if self.features.advanced_retry { status.crd() } else { 0 };
                Some(Err(status.with_crd(crd)))
            }
            None if *qid == 0 => self.admin(command),
            None => match self.nvm.execute(&self.dma, command, &mut self.counters) {
                status if status.is_success() => Some(Ok(0)),
                status => Some(Err(status)),
            },
        };
        if let Some(Err(status)) = answer
            && !status.is_success()
        {
            self.errors.add_failed(*qid, command, status);
        }
        answer
    }

    /// Posts a completion with some bits flipped; there is room.
    fn post(&mut self, qid: u16, cid: u16, answer: Result<u32, Status>, bits: Completion) {
        let Some(entry) = self.entry(qid, cid, answer) else { return };
        let ((low, high), (low_bits, high_bits)) = (entry.to_words(), bits.to_words());
        let entry = Completion::from_words(low ^ low_bits, high ^ high_bits);
        if qid == 0 {
            self.backlog.push_back(entry);
            self.post_admin();
            return;
        }
        let Some(sq) = &self.sqs[usize::from(qid)] else { return };
        let Some(cq) = &mut self.cqs[usize::from(sq.cqid())] else { return };
        match cq.post(&self.dma, entry) {
            Ok(()) => {
                self.counters.completions += 1;
                let vector = cq.vector();
                self.interrupt(vector);
            }
            Err(_) => self.fail(),
        }
    }

    /// The I/O commands that were fetched and not completed, and whether each was carried out.
    pub(super) fn pending_commands(&self) -> impl Iterator<Item = (Command, bool)> {
        let is_open = |pending: &&Pending| pending.qid != 0 && !pending.repeated;
        let open = self.fetched.pending.values().filter(is_open);
        open.map(|pending| (pending.command, pending.answer.is_some()))
    }

    /// Aborts a command that is pending: its completion comes before that of the Abort (Base 2.0,
    /// section 5.1). False if there is no such command, or no room.
    pub(super) fn abort_pending(&mut self, qid: u16, cid: u16) -> bool {
        let wanted =
            |pending: &Pending| pending.qid == qid && pending.command.cid == cid && !pending.repeated;
        let found = self.fetched.pending.iter().find(|(_, pending)| wanted(pending));
        let Some(turn) = found.map(|(turn, _)| *turn) else { return false };
        if !self.can_complete(qid) {
            return false;
        }
        self.fetched.pending.remove(&turn);
        self.post(qid, cid, Err(Status::ABORT_REQUESTED), Completion::default());
        true
    }
}
