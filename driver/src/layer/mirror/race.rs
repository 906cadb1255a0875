//! Hedged reads: when one leg takes long, another one is asked as well, and the first answer counts.
//!
//! The one that comes late may still be writing, so that neither reads into the memory of the request:
//! each lane of a race has a buffer, and goes on alone if it loses. Knows lanes, buffers and times; must
//! not know what is done about writes.

use std::time::Duration;

use super::roster::bit;
use super::{Cx, Geometry, Handle, Layer, Mirror, Role};
use crate::layer::Name;
use crate::layer::call::Call;
use crate::memory::{MemoryChain, Segment};
use crate::request::IoContainer;
use crate::{Error, Result};

/// Buffers of a mirror, at most.
pub(super) const MAX_BUFFERS: usize = 4096;

/// All races of a mirror. By default there are no buffers, and so none.
#[derive(Debug, Default)]
pub(super) struct Races {
    /// Nanoseconds until a second leg is asked.
    after: u64,
    /// Bytes that fit each buffer.
    longest: u64,
    /// All buffers there are.
    count: u32,
    buffers: Vec<MemoryChain>,
    races: Vec<Race>,
    vacant: Vec<u16>,
    /// When the mirror is to be called, in nanoseconds, unless it has not asked for that: once for all
    /// races, as one that begins later is due later.
    call: Call,
}

/// A read that one or two legs carry out, each into a buffer.
#[derive(Debug, Default, Clone, Copy)]
struct Race {
    /// The children of the request that have the buffers, as long as they read.
    lanes: [Option<Name>; 2],
    /// When the second lane begins, in nanoseconds, unless it has begun or never will.
    due: Option<u64>,
    /// Legs that were asked.
    tried: u8,
}

impl Races {
    pub(super) fn new(after: Duration, buffers: Vec<MemoryChain>, geometry: &Geometry) -> Result<Races> {
        let count = buffers.len();
        if !(2..=MAX_BUFFERS).contains(&count) {
            let what = format!("hedged reads take 2 to {MAX_BUFFERS} buffers, not {count}");
            return Err(Error::InvalidInput(what));
        }
        for (number, buffer) in buffers.iter().enumerate() {
            let (len, block) = (buffer.len(), geometry.block_size());
            if len == 0 || !len.is_multiple_of(block) {
                return Err(Error::InvalidInput(format!(
                    "buffer {number} of {len} bytes is not a whole number of {block}-byte blocks"
                )));
            }
            if buffer.iter().any(Segment::is_shared) {
                return Err(Error::InvalidInput(format!(
                    "buffer {number} is a guest's memory, who could change what was read; allocate one"
                )));
            }
            if buffer.iter().any(|segment| segment.space() != geometry.space) {
                return Err(Error::InvalidInput(format!(
                    "buffer {number} belongs to another DmaSpace than the legs; allocate it from theirs"
                )));
            }
        }
        Ok(Races {
            after: u64::try_from(after.as_nanos()).unwrap_or(u64::MAX),
            longest: buffers.iter().map(MemoryChain::len).min().unwrap_or(0) as u64,
            count: count as u32,
            buffers,
            races: vec![Race::default(); count],
            vacant: (0..count as u16).rev().collect(),
            call: Call::default(),
        })
    }

    /// All buffers there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Buffers that no lane has.
    pub(super) fn free(&self) -> usize {
        self.buffers.len()
    }

    /// A buffer is free again, unless a lost controller may still write it: then it does not come back.
    fn give_back(&mut self, copy: IoContainer) {
        let memory = copy.into_memory();
        if !memory.is_empty() {
            self.buffers.push(memory);
        }
    }

    fn race(&mut self, race: u16) -> &mut Race {
        &mut self.races[usize::from(race)]
    }

    /// A lane is over: the other one, if there is one.
    fn end_lane(&mut self, race: u16, lane: usize) -> Option<Name> {
        let Race { lanes, .. } = self.race(race);
        lanes[lane] = None;
        lanes[1 - lane]
    }

    /// A race is over.
    fn end(&mut self, race: u16) {
        *self.race(race) = Race::default();
        self.vacant.push(race);
    }
}

impl<B: Layer> Mirror<B> {
    /// Whether a read is one to be hedged, now.
    #[inline]
    pub(super) fn may_race(&self, cx: &Cx<'_>, io: &Handle) -> bool {
        !self.races.buffers.is_empty()
            && self.roster.last().is_none()
            && cx.len(io) <= self.races.longest
            && cx.unissued(io) == cx.io(io).blocks()
            && !cx.io(io).is_no_bounce()
    }

    /// Starts a race with its first lane. There is a buffer.
    pub(super) fn start_race(&mut self, cx: &mut Cx<'_>, io: Handle, leg: usize) -> Option<Handle> {
        let due = cx.nanos().saturating_add(self.races.after);
        let index = self.races.vacant.pop().expect("there are as many races as buffers");
        let mut copy = cx.io(&io).part(0, cx.io(&io).blocks());
        copy.replace_memory(self.races.buffers.pop().expect("who starts a race has looked for a buffer"));
        let holder = cx.foster(&io, copy);
        cx.park(io);
        *self.races.race(index) =
            Race { lanes: [Some(Name::from(&holder)), None], due: Some(due), tried: bit(leg) };
        self.races.call.ask(cx, due);
        let word = self.word(cx, &holder).with_role(Role::Racer).with_race(index).with_second(false);
        self.set_word(cx, &holder, word);
        let child = self.run_lane(cx, holder, leg)?;
        self.end_lane(cx, child)
    }

    /// Starts the second lanes that are due. A request that is finished by that is returned.
    pub(super) fn start_hedges(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        let now = if self.races.count > 0 { cx.nanos() } else { return None };
        self.races.call.forget(now);
        let mut next = None;
        for index in 0..self.races.count as u16 {
            match self.races.race(index).due {
                None => {}
                Some(due) if due > now => next = Some(next.map_or(due, |next: u64| next.min(due))),
                Some(_) => {
                    self.races.race(index).due = None;
                    if let Some(io) = self.start_hedge(cx, index) {
                        return Some(io);
                    }
                }
            }
        }
        if let Some(due) = next {
            self.races.call.ask(cx, due);
        }
        None
    }

    /// Starts a second lane, if there is a leg and a buffer for it.
    fn start_hedge(&mut self, cx: &mut Cx<'_>, index: u16) -> Option<Handle> {
        let Race { lanes: [first, _], tried, .. } = *self.races.race(index);
        let (first, buffer) = (first?, self.races.buffers.pop()?);
        let holder = cx.foster_sibling(first, buffer);
        let cancelled = cx.parent_unissued(&holder) == 0;
        let leg = if cancelled { None } else { self.roster.another(tried) };
        let Some(leg) = leg else {
            let (copy, _) = cx.release(holder);
            self.races.give_back(copy);
            return None;
        };
        self.counts.hedges += 1;
        let race = self.races.race(index);
        race.lanes[1] = Some(Name::from(&holder));
        race.tried |= bit(leg);
        let word = self.word(cx, &holder).with_role(Role::Racer).with_race(index).with_second(true);
        self.set_word(cx, &holder, word);
        let child = self.run_lane(cx, holder, leg)?;
        self.end_lane(cx, child)
    }

    /// Reads what is left to be read from a leg, into the buffer of a lane. The buffer may be longer: what
    /// goes down is a child with as much of it as is needed.
    fn run_lane(&mut self, cx: &mut Cx<'_>, holder: Handle, leg: usize) -> Option<Handle> {
        self.set_word(cx, &holder, self.word(cx, &holder).with_leg(leg as u8));
        let child = cx.child(&holder, cx.unissued(&holder));
        cx.park(holder);
        self.legs[leg].submit(cx, child)
    }

    /// A lane has read, or failed: then it goes on with another leg, if there is one.
    pub(super) fn end_lane(&mut self, cx: &mut Cx<'_>, mut child: Handle) -> Option<Handle> {
        loop {
            let mut holder = cx.join(child)?;
            let Some(leg) = self.lane_fails_over(cx, &holder) else {
                return self.leave(cx, holder);
            };
            cx.resume(&mut holder);
            child = self.run_lane(cx, holder, leg)?;
        }
    }

    /// Where a lane goes on that failed. `None` if it did not, or has no reason to.
    fn lane_fails_over(&mut self, cx: &Cx<'_>, holder: &Handle) -> Option<usize> {
        let failure = cx.failure(holder)?;
        let word = self.word(cx, holder);
        let failed = usize::from(word.leg());
        if !self.roster.read_failed(failed, failure.cause) || !cx.can_resume(holder) {
            return None;
        }
        let lost = self.roster.eject_lost(failed, failure.cause);
        let orphan = cx.parent(holder).is_none();
        // A request that failed meanwhile was cancelled.
        if orphan || cx.parent_unissued(holder) == 0 {
            return None;
        }
        let race = self.races.race(word.race());
        // As for a read that is not hedged; the other lane, if there is one, asks by itself.
        if lost && race.lanes[usize::from(!word.second())].is_none() {
            race.tried = bit(failed);
        }
        let leg = self.roster.another(race.tried)?;
        race.tried |= bit(leg);
        self.counts.failovers += 1;
        Some(leg)
    }

    /// A lane is over. The first that succeeds finishes the request, and so does the last that fails.
    fn leave(&mut self, cx: &mut Cx<'_>, holder: Handle) -> Option<Handle> {
        let (word, failure, lba) = (self.word(cx, &holder), cx.failure(&holder), cx.io(&holder).lba());
        if cx.parent(&holder).is_some() {
            let other = self.races.end_lane(word.race(), usize::from(word.second()));
            if let (None, Some(other)) = (failure, other) {
                // Nothing comes back: the winner is still a child.
                let parent = cx.orphan(other);
                debug_assert!(parent.is_none());
            }
            if failure.is_none() || other.is_none() {
                self.races.end(word.race());
            }
            self.counts.hedge_wins += u64::from(failure.is_none() && word.second());
        }
        let (copy, request) = cx.release(holder);
        // One that was cancelled stays so.
        if let Some(request) = request.as_ref().filter(|request| cx.failure(request).is_none()) {
            match failure {
                None => {
                    deliver(cx, request, &copy, cx.len(request));
                    cx.succeed(request);
                }
                // What lies before a failure counts as done, so it has to be there.
                Some(failure) => {
                    let at = failure.lba.wrapping_sub(lba);
                    deliver(cx, request, &copy, at << self.legs.geometry.block_shift);
                    cx.fail(request, at, failure.cause);
                }
            }
        }
        self.races.give_back(copy);
        request
    }
}

/// Copies so many bytes of what was read to where they were to be read to.
fn deliver(cx: &mut Cx<'_>, request: &Handle, copy: &IoContainer, len: u64) {
    let mut at = 0;
    for segment in copy.memory().iter() {
        let data = segment.as_slice();
        let data = &data[..data.len().min((len - at) as usize)];
        cx.copy_in(request, at, data);
        at += data.len() as u64;
    }
}
