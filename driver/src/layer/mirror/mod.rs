//! Several layers with the same contents: RAID-1.
//!
//! Knows which legs have what was written, and which is asked for it; must not know what a leg is made
//! of.

mod race;
mod roster;

use std::time::Duration;

use bitfield_struct::bitfield;

use self::race::Races;
pub use self::roster::LegCounts;
use self::roster::{MAX_LEGS, Roster, bit, blames_leg};
use super::legs::Legs;
use super::{Cx, Geometry, Handle, Layer};
use crate::Result;
use crate::memory::MemoryChain;
use crate::request::Operation;

/// Layers side by side, each with all of the data.
///
/// What changes data, and a flush, goes to every leg in use, and has finished when it has on all of them.
/// It succeeds if it did on one; the legs where it failed do not have the data, and are *ejected* before
/// the request is seen to be finished: nothing is sent to them any more. The last leg in use is never
/// ejected; what fails there fails. A leg is not ejected for a request that was cancelled, expired or
/// refused below: such a request fails, even if another leg carried it out.
///
/// A request that fails on every leg in use ejects none: no leg is better than the others. From then on
/// they may differ in the blocks of that request, and reads of them may return what was there before or
/// what was to be written, one time this and one time that, until the blocks are written again. The same
/// is true of a request that was cancelled, expired or refused.
///
/// A read goes to one leg, the legs in use taking turns. One that fails goes on with another leg that it
/// has not been to, from the block on that could not be read, until there is none left; except if it was
/// cancelled, expired or refused below. A leg whose controller is lost is ejected; one that fails to read
/// otherwise is not, as it can still have what is written. When one is ejected so, legs that failed before are asked
/// once more: a read fails with [`ControllerLost`](crate::Cause::ControllerLost) only if the last leg in use is lost,
/// or the memory of the read. Reads can be [hedged](Mirror::hedged).
///
/// **It is not crash-consistent.** Nothing about the mirror is kept on disk: not which legs belong
/// together, not which one was ejected, not which writes were under way. After a crash, a loss of power,
/// or just a restart after a leg was ejected, legs may differ, and whoever puts them together again has to
/// know which one to trust, and to copy it to the others first.
///
/// ```
/// use kiovec::layer::{Disk, Mirror};
/// use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
/// use kiovec_emulator::{Config, Emulator};
///
/// let space = DmaSpace::new()?;
/// let mut poller = Poller::with_layers(64);
/// let mut emulators = Vec::new();
/// let mut legs = Vec::new();
/// for _ in 0..2 {
///     let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
///     let controller = Controller::open(emulator.function(), &space)?;
///     let queue = poller.add_queue(&controller, QueueOptions::default())?;
///     let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
///     legs.push(Disk::new(&poller, namespace)?);
///     emulators.push(emulator);
/// }
/// let mirror = poller.add_layer(Mirror::new(legs)?)?;
///
/// poller.submit(mirror, IoContainer::write(0, space.allocate(4096)?))?;
/// while poller.poll(|done| done.result().expect("no error")) == 0 {}
/// emulators.pop(); // its controller is gone
/// for _ in 0..2 {
///     poller.submit(mirror, IoContainer::read(0, space.allocate(4096)?))?;
///     while poller.poll(|done| done.result().expect("the other leg has it")) == 0 {}
/// }
/// let mirror = poller.layer(mirror).expect("it is there");
/// assert!(mirror.leg_counts(1).expect("there are two").ejected.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Mirror<B> {
    legs: Legs<B>,
    roster: Roster,
    races: Races,
    counts: MirrorCounts,
}

/// What a [`Mirror`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorCounts {
    /// Reads that went on with another leg after one failed, each time that they did.
    pub failovers: u64,
    /// Reads for which a second leg was asked because the first took long.
    pub hedges: u64,
    /// Those of them which the second leg finished first.
    pub hedge_wins: u64,
}

/// What a mirror keeps with a request.
#[bitfield(u64)]
struct Word {
    /// What it is to the mirror.
    #[bits(2)]
    role: Role,
    /// It is the second lane of its race.
    second: bool,
    #[bits(5)]
    __: u8,
    /// Where it was sent.
    leg: u8,
    /// Of a read: legs that failed it, a bit for each; since a lost one did, if one did.
    tried: u8,
    /// Of a request with copies: legs that carried it out.
    done: u8,
    /// Legs that failed it.
    failed: u8,
    /// Legs of which nobody knows, through no fault of theirs.
    unknown: u8,
    /// Which race it is a lane of.
    race: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The request itself, on its way through one leg.
    Whole,
    /// A child that is all of the request, for one leg.
    Copy,
    /// A lane of a race, or what it sends down.
    Racer,
}

impl Role {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Role {
        match bits {
            1 => Role::Copy,
            2 => Role::Racer,
            _ => Role::Whole,
        }
    }
}

impl<B: Layer> Mirror<B> {
    /// The most buffers that [`hedged`](Mirror::hedged) takes.
    pub const MAX_BUFFERS: usize = race::MAX_BUFFERS;

    /// A mirror of 2 to 8 legs, as large as the smallest of them. The legs have blocks of one size, and
    /// memory for one of them is memory for all. They have the same contents: that is not checked.
    pub fn new(legs: Vec<B>) -> Result<Mirror<B>> {
        let legs = Legs::new("mirror", legs, MAX_LEGS)?;
        let roster = Roster::new(legs.len());
        Ok(Mirror { legs, roster, races: Races::default(), counts: MirrorCounts::default() })
    }

    /// Reads are hedged: one that has not finished `after` some time is read from another leg as well, and
    /// finished by whichever is first.
    ///
    /// Such reads take one of 2 to [`MAX_BUFFERS`](Mirror::MAX_BUFFERS) buffers for each leg that is asked, and are copied from there when
    /// they have finished. The buffer of the leg that comes late is free again when it has come, which may
    /// be never; the memory of the request is free at once. A read that is longer than the smallest
    /// buffer, or must not be [copied](crate::IoContainer::no_bounce), or for which there is no buffer, is
    /// not hedged. Buffers are whole numbers of blocks of memory that the legs can reach.
    pub fn hedged(mut self, after: Duration, buffers: Vec<MemoryChain>) -> Result<Mirror<B>> {
        self.races = Races::new(after, buffers, &self.legs.geometry)?;
        Ok(self)
    }

    /// The layers below.
    pub fn legs(&self) -> &[B] {
        &self.legs
    }

    /// What a leg did so far.
    pub fn leg_counts(&self, leg: usize) -> Option<&LegCounts> {
        (leg < self.legs.len()).then(|| self.roster.counts(leg))
    }

    /// What the mirror did so far.
    pub fn counts(&self) -> &MirrorCounts {
        &self.counts
    }

    /// Buffers for hedged reads that are free now.
    pub fn free_buffers(&self) -> usize {
        self.races.free()
    }

    #[inline]
    fn word(&self, cx: &Cx<'_>, io: &Handle) -> Word {
        Word::from(cx.frame(io, self.legs.frame))
    }

    #[inline]
    fn set_word(&self, cx: &mut Cx<'_>, io: &Handle, word: Word) {
        cx.set_frame(io, self.legs.frame, word.into());
    }

    // ---- one leg ----

    /// Sends a request to one leg.
    #[inline]
    fn send(&mut self, cx: &mut Cx<'_>, io: Handle, leg: usize, tried: u8) -> Option<Handle> {
        let word = Word::new().with_role(Role::Whole).with_leg(leg as u8).with_tried(tried);
        self.set_word(cx, &io, word);
        self.legs[leg].submit(cx, io)
    }

    #[inline]
    fn read(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let leg = self.roster.next();
        if self.may_race(cx, &io) {
            return self.start_race(cx, io, leg);
        }
        let io = self.send(cx, io, leg, 0)?;
        self.end_whole(cx, io)
    }

    /// A request has been through a leg. A read that failed goes on with another one, if there is one.
    #[inline]
    fn end_whole(&mut self, cx: &mut Cx<'_>, mut io: Handle) -> Option<Handle> {
        while let Some((leg, tried)) = self.fails_over(cx, &io) {
            cx.resume(&mut io);
            io = self.send(cx, io, leg, tried)?;
        }
        Some(io)
    }

    /// Where a read goes on that failed, and where it has been. `None` if it did not, or cannot.
    #[inline]
    fn fails_over(&mut self, cx: &Cx<'_>, io: &Handle) -> Option<(usize, u8)> {
        let failure = cx.failure(io)?;
        let word = self.word(cx, io);
        let read = cx.io(io).operation() == Operation::Read;
        let failed = usize::from(word.leg());
        if !read || !self.roster.read_failed(failed, failure.cause) || !cx.can_resume(io) {
            return None;
        }
        // Those that failed it before are asked once more: what the mirror fails with is the word of a leg that is not
        // lost, as long as there is one, or whoever is above would take the mirror for lost.
        let lost = self.roster.eject_lost(failed, failure.cause);
        let tried = if lost { bit(failed) } else { word.tried() | bit(failed) };
        let leg = self.roster.another(tried)?;
        self.counts.failovers += 1;
        Some((leg, tried))
    }

    // ---- all legs ----

    /// A copy for each leg in use; the request itself, if there is one only.
    fn write(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        if cx.failure(&io).is_some() {
            // Ended while a layer above had it.
            return Some(io);
        }
        if let Some(leg) = self.roster.last() {
            return self.send(cx, io, leg, 0);
        }
        self.set_word(cx, &io, Word::new());
        let mut copies: [Option<Handle>; MAX_LEGS] = [const { None }; MAX_LEGS];
        let first = cx.issued(&io);
        for (leg, copy) in copies.iter_mut().enumerate() {
            if self.roster.live() & bit(leg) != 0 {
                let copy = copy.insert(cx.share(&io, first));
                self.set_word(cx, copy, Word::new().with_role(Role::Copy).with_leg(leg as u8));
            }
        }
        cx.park(io);
        let mut parent = None;
        for (leg, copy) in copies.into_iter().enumerate() {
            if let Some(copy) = copy.and_then(|copy| self.legs[leg].submit(cx, copy)) {
                // Nothing before the last copy.
                parent = self.end_copy(cx, copy);
            }
        }
        parent
    }

    /// A leg has carried out its copy, or not.
    fn end_copy(&mut self, cx: &mut Cx<'_>, copy: Handle) -> Option<Handle> {
        let leg = usize::from(self.word(cx, &copy).leg());
        let tally = Word::from(cx.parent_frame(&copy, self.legs.frame));
        let tally = match cx.failure(&copy).map(|failure| failure.cause) {
            None => tally.with_done(tally.done() | bit(leg)),
            Some(cause) if blames_leg(cause) => {
                self.roster.write_failed(leg, cause);
                tally.with_failed(tally.failed() | bit(leg))
            }
            Some(_) => tally.with_unknown(tally.unknown() | bit(leg)),
        };
        cx.set_parent_frame(&copy, self.legs.frame, tally.into());
        let request = cx.join(copy)?;
        self.end_copies(cx, &request, tally);
        Some(request)
    }

    /// All legs have settled. Only those count that are still in use: one that was ejected meanwhile has
    /// not got everything, whatever it says of this request.
    fn end_copies(&mut self, cx: &mut Cx<'_>, request: &Handle, tally: Word) {
        let live = self.roster.live();
        let (done, failed, unknown) = (tally.done() & live, tally.failed() & live, tally.unknown() & live);
        // None has it: the request fails with the lowest failure of all.
        if done == 0 {
            return;
        }
        if failed != 0 {
            self.roster.eject_stale(failed);
        }
        // Else the legs differ and all stay, or it was cancelled: it fails.
        if unknown == 0 && cx.failure(request).is_some_and(|failure| blames_leg(failure.cause)) {
            cx.succeed(request);
        }
    }

    /// What a leg has finished.
    #[inline]
    fn up(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        match self.word(cx, &io).role() {
            Role::Whole => self.end_whole(cx, io),
            Role::Copy => self.end_copy(cx, io),
            Role::Racer => self.end_lane(cx, io),
        }
    }
}

impl<B: Layer> Layer for Mirror<B> {
    fn geometry(&self) -> Geometry {
        self.legs.geometry
    }

    fn frames(&self) -> usize {
        self.legs.frame + 1
    }

    fn children(&self) -> u32 {
        let below = self.legs.children();
        let copies = self.legs.len() as u32 * (1 + below);
        // Each lane is one that has the buffer, and one that goes down.
        let lanes = if self.races.count() > 0 { 2 * (2 + below) } else { 0 };
        copies.max(lanes)
    }

    fn orphans(&self) -> u32 {
        self.legs.orphans() + self.races.count() * (2 + self.legs.children())
    }

    #[inline]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        match cx.io(&io).operation() {
            Operation::Read => self.read(cx, io),
            _ => self.write(cx, io),
        }
    }

    #[inline]
    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let leg = usize::from(self.word(cx, &io).leg());
        let io = self.legs[leg].complete(cx, io)?;
        self.up(cx, io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        while let Some(io) = self.legs.poll(cx) {
            if let Some(io) = self.up(cx, io) {
                return Some(io);
            }
        }
        self.start_hedges(cx)
    }
}
