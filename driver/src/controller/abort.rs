//! Abort commands (Base 2.0, section 5.1): which are outstanding, which wait, and what came of them.
//!
//! Nothing here waits: commands are handed over, and answers taken in when they have come. Knows the Abort
//! Command Limit; must not know why a command is aborted.

use std::collections::VecDeque;

use super::admin::{ABORTS, AdminQueue, TIMEOUT_MILLIS};
use crate::spec::Command;

/// Commands that wait for their Abort, at most; and answers that wait to be taken.
const MOST: usize = 64;
/// Dword 0 of the completion of an Abort: the command was not aborted.
const NOT_ABORTED: u32 = 1;

/// A command by its submission queue and CID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named {
    qid: u16,
    cid: u16,
}

#[derive(Debug)]
pub(super) struct Aborts {
    /// What is being aborted, and since when, by the slot of the Abort.
    sent: [Option<(Named, u64)>; ABORTS],
    /// How many of these slots are used: the Abort Command Limit.
    limit: usize,
    waiting: VecDeque<Named>,
    /// Whether they were aborted.
    answers: VecDeque<(Named, bool)>,
}

impl Aborts {
    /// `acl` is that of Identify Controller, a 0's based number.
    pub(super) fn new(acl: u8) -> Aborts {
        let limit = ABORTS.min(usize::from(acl) + 1);
        let (waiting, answers) = (VecDeque::with_capacity(MOST), VecDeque::with_capacity(MOST));
        Aborts { sent: [None; ABORTS], limit, waiting, answers }
    }

    /// Takes a command that is to be aborted; false if too many wait.
    pub(super) fn ask(&mut self, admin: &mut AdminQueue, qid: u16, cid: u16) -> bool {
        if self.waiting.len() == MOST {
            return false;
        }
        self.waiting.push_back(Named { qid, cid });
        self.turn(admin);
        true
    }

    /// After a reset nothing is outstanding, and nothing is to be aborted.
    pub(super) fn forget(&mut self) {
        self.sent = [None; ABORTS];
        self.waiting.clear();
        self.answers.clear();
    }

    /// Takes in what has come, and sends what waits, also for admin commands that are overdue. False if the
    /// controller does not answer.
    pub(super) fn turn(&mut self, admin: &mut AdminQueue) -> bool {
        while self.waiting.len() < MOST
            && let Some(cid) = admin.take_overdue()
        {
            self.waiting.push_back(Named { qid: 0, cid });
        }
        for _ in 0..ABORTS {
            let Some((slot, completion)) = admin.finished_abort() else { break };
            let Some((named, _)) = self.sent.get_mut(slot).and_then(Option::take) else { continue };
            // Of the admin queue: what became of the command shows there.
            if named.qid == 0 {
                continue;
            }
            // Nobody took the oldest: its queue has gone on without it.
            if self.answers.len() == MOST {
                self.answers.pop_front();
            }
            let aborted = completion.status().is_success() && completion.dw0 & NOT_ABORTED == 0;
            self.answers.push_back((named, aborted));
        }
        for slot in 0..self.limit {
            if self.sent[slot].is_some() {
                continue;
            }
            let Some(named) = self.waiting.pop_front() else { break };
            admin.start_abort(slot, &Command::abort(named.qid, named.cid));
            self.sent[slot] = Some((named, admin.nanos()));
        }
        let is_late =
            |(_, since): &(Named, u64)| admin.nanos().saturating_sub(*since) > TIMEOUT_MILLIS * 1_000_000;
        !self.sent.iter().flatten().any(is_late)
    }

    /// The next answer for a queue.
    pub(super) fn answer(&mut self, qid: u16) -> Option<(u16, bool)> {
        let at = self.answers.iter().position(|(named, _)| named.qid == qid)?;
        self.answers.remove(at).map(|(named, aborted)| (named.cid, aborted))
    }
}
