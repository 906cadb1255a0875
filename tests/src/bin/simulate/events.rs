//! Events: requests, parts of requests, and sets of events; and what each of them must come to.
//!
//! What a set must be follows from what its members are, whatever they stand for. Knows counts; must not know when
//! an event is made or ended.

use kiovec::{Cause, Event, Failure, Moment, Reason, State, Totals, Verdict};

use crate::bench::Bench;
use crate::reach::Point;
use crate::trace::Step;
use crate::world::Station;

/// What an event stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A request.
    Request {
        /// Its number.
        tag: u64,
    },
    /// A part of a request.
    Part {
        /// The request's number.
        tag: u64,
    },
    /// `wanted` of some events.
    Set {
        /// How many must succeed.
        wanted: usize,
        /// Their nodes, all below this one.
        of: Vec<usize>,
    },
    /// All requests that came while it was open.
    Open(Count),
}

/// What an event has to have counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Count {
    /// It takes no more requests.
    pub closed: bool,
    /// Requests that came.
    pub came: u32,
    /// Requests that are over.
    pub over: u32,
    /// Those of them that failed.
    pub failed: u32,
    /// The lowest block that one failed at.
    pub first: Option<u64>,
    /// Bytes of those that succeeded.
    pub bytes: u64,
}

/// An event, and what is known of it.
#[derive(Debug)]
pub struct Node {
    /// `None` once it was claimed or released.
    pub event: Option<Event>,
    /// The poller.
    pub station: usize,
    /// What it stands for.
    pub what: What,
    /// Success or failure, once resolved.
    pub success: Option<bool>,
    /// What it came to, once settled.
    pub totals: Option<Totals>,
    /// It was released before it settled: nobody knows what comes of it.
    pub unknown: bool,
    /// Somebody cancelled it, or one above it; or gave one of them a deadline.
    pub cancelled: bool,
    /// The same, with a deadline.
    pub limited: bool,
    /// Its own deadline, on its poller's clock.
    pub deadline: Option<u64>,
    /// Moments that were told, if it was asked for.
    pub moments: Option<[bool; 2]>,
    /// Scans that it is left alone after it settled.
    pub patience: u64,
    /// A set that settled and is what follows from its members, which have settled as well.
    pub checked: bool,
}

impl Node {
    /// Whether it counts requests, and was ended.
    pub fn is_ended_count(&self) -> bool {
        matches!(self.what, What::Open(_)) && (self.cancelled || self.limited)
    }
}

impl Bench {
    /// One event more.
    pub fn add_node(&mut self, station: usize, event: Event, what: What) -> usize {
        self.nodes.push(Node {
            event: Some(event),
            station,
            what,
            success: None,
            totals: None,
            unknown: false,
            cancelled: false,
            limited: false,
            deadline: None,
            moments: None,
            patience: if self.chance.one_in(4) { self.chance.below(20) } else { 0 },
            checked: false,
        });
        let number = self.nodes.len() - 1;
        self.active.push(number);
        number
    }

    /// Marks an event and all that are below it as ended early.
    pub fn mark_ended(&mut self, number: usize, reason: Reason) {
        let mut work = vec![number];
        while let Some(number) = work.pop() {
            let node = &mut self.nodes[number];
            let mark = match reason {
                Reason::Expired => &mut node.limited,
                _ => &mut node.cancelled,
            };
            // One that is marked has marked what is below it: members never change, and there are many ways to each.
            if std::mem::replace(mark, true) {
                continue;
            }
            if let What::Set { of, .. } = &node.what {
                work.extend(of);
            }
        }
    }

    /// Looks at all events of a poller, after a poll.
    pub fn scan(&mut self, station: &mut Station, number: usize) -> Result<(), String> {
        self.take_moments(station)?;
        let active = std::mem::take(&mut self.active);
        let mut rest = Vec::with_capacity(active.len());
        let mut result = Ok(());
        for node in active {
            if result.is_ok() && self.nodes[node].station == number {
                result = self.look(station, node);
            }
            if self.nodes[node].event.is_some() {
                rest.push(node);
            }
        }
        // What was made meanwhile stands behind.
        rest.append(&mut self.active);
        self.active = rest;
        result
    }

    /// Looks at one event.
    fn look(&mut self, station: &mut Station, number: usize) -> Result<(), String> {
        let Some(event) = self.nodes[number].event else { return Ok(()) };
        let Some(state) = station.poller.state(event) else {
            return Err(format!("event {number} is forgotten, though nobody released it"));
        };
        self.check_state(number, event, state).map_err(|why| format!("event {number}: {why}"))?;
        let late = self.nodes[number].deadline.is_some_and(|deadline| deadline < self.polled_at);
        if late && state == State::Pending {
            return Err(format!("event {number} is pending after its deadline"));
        }
        match self.nodes[number].what {
            What::Set { .. } if self.nodes[number].checked => Ok(()),
            What::Set { wanted, ref of } => {
                self.check_set(number, state, wanted, of)?;
                self.nodes[number].checked = matches!(state, State::Settled(..));
                Ok(())
            }
            What::Open(ref count) => {
                let count = count.clone();
                self.check_count(number, state, &count)
            }
            What::Part { tag } => self.look_at_part(station, tag, number, state),
            What::Request { tag } => match state {
                State::Settled(verdict, totals) => self.finish(station, number, tag, verdict, totals),
                _ if station.poller.claim(event).is_some() => {
                    Err(format!("event {number} is claimed too early"))
                }
                _ => Ok(()),
            },
        }
    }

    /// A state follows from an earlier one.
    fn check_state(&mut self, number: usize, event: Event, state: State) -> Result<(), String> {
        let node = &mut self.nodes[number];
        let (verdict, totals) = match state {
            State::Pending if node.success.is_some() => return Err("it was resolved, and is pending".into()),
            State::Pending => return Ok(()),
            State::Resolved(_) if node.totals.is_some() => return Err("it was settled, and is not".into()),
            State::Resolved(verdict) => (verdict, None),
            State::Settled(verdict, totals) => (verdict, Some(totals)),
        };
        if node.success.is_some_and(|before| before != verdict.success) {
            return Err("it was resolved otherwise before".into());
        }
        if node.totals.is_some() && node.totals != totals {
            return Err(format!("it settled with {:?}, and has {totals:?}", node.totals));
        }
        let own = verdict.decided_by == Some(event);
        let allowed = match verdict.reason {
            Reason::Completion => true,
            Reason::Cancelled => !verdict.success && (node.cancelled || !own),
            Reason::Expired => !verdict.success && (node.limited || !own),
        };
        if !allowed {
            return Err(format!("nobody ended it, and it has {verdict:?}"));
        }
        if node.success.is_none() && totals.is_none() && matches!(node.what, What::Set { .. }) {
            self.reached.note(Point::ResolvedFirst);
        }
        node.success = Some(verdict.success);
        node.totals = totals;
        Ok(())
    }

    /// A set is what follows from its members.
    fn check_set(&self, number: usize, state: State, wanted: usize, of: &[usize]) -> Result<(), String> {
        let members = || of.iter().map(|member| &self.nodes[*member]);
        let (mut known, mut settled, mut succeeded, mut failed) = (true, true, 0, 0);
        for member in members() {
            known &= !member.unknown;
            settled &= member.totals.is_some();
            succeeded += usize::from(member.success == Some(true));
            failed += usize::from(member.success == Some(false));
        }
        let expected = match () {
            () if succeeded >= wanted && !(wanted > 0 && of.is_empty()) => Some(true),
            () if failed + wanted > of.len() => Some(false),
            () => None,
        };
        let told = |why: String| Err(format!("event {number}, {wanted} of {of:?}, {why}"));
        let node = &self.nodes[number];
        let ended = matches!(state, State::Resolved(Verdict { reason, decided_by, .. })
            | State::Settled(Verdict { reason, decided_by, .. }, _)
            if reason != Reason::Completion && decided_by == node.event);
        if !ended && known && expected != node.success {
            return told(format!("is {state:?} with {succeeded} successes and {failed} failures"));
        }
        if known && settled != node.totals.is_some() {
            return told(format!("is {state:?}, its members are settled: {settled}"));
        }
        if let (true, Some(totals)) = (known && settled, node.totals) {
            let all = || members().filter_map(|member| member.totals);
            let bytes = all().fold(0, |sum: u64, totals| sum.saturating_add(totals.bytes));
            let failed = all().fold(0, |sum: u32, totals| sum.saturating_add(totals.failed));
            let first = all().filter_map(|totals| totals.first).map(|first| first.lba).min();
            if (totals.bytes, totals.failed, totals.first.map(|first| first.lba)) != (bytes, failed, first) {
                return told(format!("has {totals:?}; it should be {bytes} bytes, {failed} failures"));
            }
        }
        Ok(())
    }

    /// An event that counts requests has counted what came back.
    fn check_count(&mut self, number: usize, state: State, count: &Count) -> Result<(), String> {
        let node = &self.nodes[number];
        let told = |what: &str| Err(format!("event {number} is {state:?}, {what}: {count:?}"));
        if node.checked {
            return Ok(());
        }
        let ended = node.cancelled || node.limited;
        let over = count.over == count.came;
        let all_over = count.closed && over;
        let expected = match () {
            () if count.failed > 0 => Some(false),
            () if all_over => Some(true),
            () => None,
        };
        // One that was ended takes no more requests, and has failed if it did not succeed before.
        if node.success != expected && !(ended && node.success == Some(false)) {
            return told("which is wrong");
        }
        if node.totals.is_some() != all_over && !(ended && over && node.totals.is_some()) {
            return told("settled too early or too late");
        }
        if let Some(totals) = node.totals {
            let first = totals.first.map(|first| first.lba);
            if (totals.bytes, totals.failed, first) != (count.bytes, count.failed, count.first) {
                return told("which are other totals");
            }
            self.nodes[number].checked = true;
            self.reached.note(Point::CountedAll);
        }
        Ok(())
    }

    /// A request that an event counts is over.
    pub fn count(&mut self, number: usize, bytes: u64, failure: Option<Failure>) {
        let What::Open(count) = &mut self.nodes[number].what else { return };
        count.over += 1;
        match failure {
            None => count.bytes += bytes,
            Some(Failure { lba, .. }) => {
                count.failed += 1;
                count.first = Some(count.first.map_or(lba, |first| first.min(lba)));
            }
        }
    }

    /// Why a request that an event counts was ended, if it was.
    pub fn ended_with(&self, number: usize, result: Result<(), Failure>) -> Option<Cause> {
        let node = &self.nodes[number];
        match result.err()?.cause {
            Cause::Cancelled if node.cancelled => Some(Cause::Cancelled),
            Cause::Expired if node.limited => Some(Cause::Expired),
            _ => None,
        }
    }

    /// A part that is done has the right bytes, whatever of the rest is under way.
    fn look_at_part(
        &mut self,
        station: &Station,
        tag: u64,
        number: usize,
        state: State,
    ) -> Result<(), String> {
        let State::Settled(verdict, _) = state else { return Ok(()) };
        let Some(mut live) = self.lives.remove(&tag) else { return Ok(()) };
        let block = self.block;
        let mut result = Ok(());
        if let Some(observer) = live.observers.iter_mut().find(|part| part.node == number && !part.told)
            && let Some(event) = self.nodes[number].event
            && verdict.success
        {
            observer.told = true;
            let first = live.lba + (observer.bytes.start / block) as u64;
            let end = live.lba + observer.bytes.end.div_ceil(block) as u64;
            let whole = live.node.is_some_and(|node| self.nodes[node].totals.is_some());
            self.reached.note_if(!whole, Point::Observed);
            self.trace.note(self.turn, &Step::Observed { tag, success: true });
            if let Some(slices) = station.poller.observed(event) {
                let bytes: Vec<u8> = slices.flatten().copied().collect();
                if bytes.len() != (end - first) as usize * block {
                    result = Err(format!("{} bytes of {first}..{end} are observed", bytes.len()));
                } else if live.operation == kiovec::Operation::Read {
                    let checked = self.volumes[live.volume].model.check(first, &bytes, live.since);
                    result = checked.map_err(|why| format!("a part of request {tag} was observed: {why}"));
                } else {
                    live.known.push((first..end, self.volumes[live.volume].model.losses_told()));
                }
            }
        } else {
            self.reached.note_if(!verdict.success, Point::ObservedFailed);
        }
        self.lives.insert(tag, live);
        result
    }

    /// A request whose event has settled is taken out.
    fn finish(
        &mut self,
        station: &mut Station,
        number: usize,
        tag: u64,
        verdict: Verdict,
        totals: Totals,
    ) -> Result<(), String> {
        let parts: Vec<usize> =
            self.lives.get(&tag).iter().flat_map(|live| &live.observers).map(|part| part.node).collect();
        for part in &parts {
            self.look(station, *part)?;
            if self.nodes[*part].totals.is_none() {
                return Err(format!("request {tag} is settled, a part of it is not"));
            }
        }
        if self.nodes[number].patience > 0 && !self.hurry {
            self.nodes[number].patience -= 1;
            return Ok(());
        }
        let Some(live) = self.lives.remove(&tag) else {
            return Err(format!("request {tag} is not under way"));
        };
        let event = self.nodes[number].event.take();
        let claimed = event.and_then(|event| station.poller.claim(event));
        let (io, result) =
            claimed.ok_or_else(|| format!("request {tag} is settled and cannot be claimed"))?;
        if io.get_tag() != tag {
            return Err(format!("request {tag} came back as {}", io.get_tag()));
        }
        if verdict.success != result.is_ok() || totals.first != result.err() {
            return Err(format!("request {tag} has {result:?}, its event {verdict:?} and {totals:?}"));
        }
        let ended = |node: &Node| node.success == Some(false) && (node.cancelled || node.limited);
        if result.is_ok() && live.observers.iter().any(|part| !part.told && !ended(&self.nodes[part.node])) {
            return Err(format!("request {tag} has succeeded, a part of it has not"));
        }
        let ended = match verdict.reason {
            Reason::Completion => None,
            Reason::Cancelled => Some(Cause::Cancelled),
            Reason::Expired => Some(Cause::Expired),
        };
        self.reached.note_if(verdict.reason == Reason::Expired, Point::DeadlinePassed);
        let kept = self.nodes[number].deadline.is_some() && result.is_ok();
        self.reached.note_if(kept, Point::DeadlineMet);
        self.quiet = 0;
        let nanos = self.polled_at;
        let failure = result.err().map(|failure| failure.to_string());
        self.trace.note(self.turn, &Step::Done { tag, poller: live.station, nanos, failure });
        self.judge(&live, &io, result, ended)?;
        self.memories.give_back(live.parts);
        for part in parts {
            if let Some(event) = self.nodes[part].event.take() {
                station.poller.release(event);
            }
        }
        Ok(())
    }

    /// Moments come once each, resolved first.
    fn take_moments(&mut self, station: &mut Station) -> Result<(), String> {
        while let Some((token, moment)) = station.poller.next_moment() {
            let number = token as usize;
            let Some([resolved, settled]) = self.nodes.get_mut(number).and_then(|node| node.moments.as_mut())
            else {
                return Err(format!("a moment of event {token}, which nobody asked for"));
            };
            let fits = match moment {
                Moment::Resolved => !std::mem::replace(resolved, true) && !*settled,
                Moment::Settled => !std::mem::replace(settled, true) && *resolved,
            };
            self.trace.note(self.turn, &Step::SetMoment { node: number, settled: *settled });
            if !fits {
                return Err(format!("event {number} has {moment:?} twice or in the wrong order"));
            }
        }
        Ok(())
    }
}
