//! Everything of a seed but its pollers: what the requests under way are, what is known, what was reached.
//!
//! Knows state; must not know what is done next.

use std::collections::BTreeMap;

use kiovec_emulator::Emulator;

use crate::chance::Chance;
use crate::events::Node;
use crate::faults::{self, Act, Legal, Planned};
use crate::ladder::Delays;
use crate::memory::Memories;
use crate::notices::Notices;
use crate::reach::{Point, Reached};
use crate::request::Live;
use crate::trace::{Step, Trace};
use crate::tree::{Fates, Plight};
use crate::world::{Device, Volume};

/// Resets of a controller from which on it may be given up: it is after three in a row that did not help.
const MOST_RESETS: u64 = 3;

/// It.
pub struct Bench {
    /// What everything follows from.
    pub chance: Chance,
    /// What was done.
    pub trace: Trace,
    /// What was reached.
    pub reached: Reached,
    /// By number.
    pub emulators: Vec<Emulator>,
    /// By controller, if it has a cache that can be lost: how often that happened, and how many blocks were.
    pub caches: Vec<Option<(u64, u64)>>,
    /// By controller: what has become of it.
    pub plights: Vec<Plight>,
    /// By controller: fatal statuses by a command that were seen.
    pub fatal: Vec<u64>,
    /// By controller: fatal statuses, however they came.
    pub failures: Vec<u64>,
    /// Resets of each controller when it was opened.
    pub opened: Vec<u64>,
    /// By controller: the last turn in which a command was under way in it.
    pub busy: Vec<u64>,
    /// What the controllers are like.
    pub devices: Vec<Device>,
    /// Some controller never gets ready any more.
    pub doomed: bool,
    /// A controller that failed may keep memory that an admin command was given.
    pub forfeited: bool,
    /// What controllers report of their own accord.
    pub notices: Notices,
    /// Commands that are to be sent again, and when.
    pub delays: Delays,
    /// Memory.
    pub memories: Memories,
    /// What requests go to.
    pub volumes: Vec<Volume>,
    /// What goes wrong.
    pub plan: Vec<Planned>,
    /// Nothing goes wrong any more.
    pub cured: bool,
    /// Bytes of a block.
    pub block: usize,
    /// Requests under way, by their number.
    pub lives: BTreeMap<u64, Live>,
    /// Requests that nobody looks at any more.
    pub detached: Vec<Live>,
    /// Events.
    pub nodes: Vec<Node>,
    /// Those that are looked at.
    pub active: Vec<usize>,
    /// A clock that ticks with each submission and completion.
    pub now: u64,
    /// The last request's number.
    pub tag: u64,
    /// The last write's number.
    pub writes: u32,
    /// Which turn it is.
    pub turn: u64,
    /// Turns in a row in which nothing came back, and no command was completed.
    pub quiet: u64,
    /// Completions of all controllers so far.
    pub completions: u64,
    /// Requests that were accepted.
    pub submitted: u64,
    /// When the last poll was, on the poller's clock.
    pub polled_at: u64,
    /// The turn in which a request came back last.
    pub came_back: u64,
    /// Turns that a request took, at most.
    pub longest: u64,
    /// Events are claimed as soon as they settle.
    pub hurry: bool,
    /// Polls go on until an event is over: a command may become overdue in one, and be aborted before the next look.
    pub waiting: bool,
    /// Room for the data of a request that came back.
    pub bytes: Vec<u8>,
}

impl Bench {
    /// Whether some controller stopped, by a planned fault; or, if it completes commands, that there is progress.
    pub fn notice_losses(&mut self) {
        self.notice_power();
        let mut completions = 0;
        for controller in 0..self.emulators.len() {
            let counters = self.emulators[controller].counters();
            completions += counters.completions;
            let faults = counters.faults;
            if !self.plights[controller].gone && faults.unplugged > 0 {
                self.lose(controller);
                self.reached.note(Point::GoneFound);
            }
            let before = std::mem::replace(&mut self.fatal[controller], faults.fatal);
            if faults.fatal > before {
                self.fail(controller, faults.fatal - before);
            }
            let resets = counters.resets - self.opened[controller];
            let plight = &mut self.plights[controller];
            plight.reset |= resets > 0;
            // One failure costs one reset. With more, it may happen that none of them is of use.
            plight.lost |= plight.gone || resets >= MOST_RESETS;
        }
        if std::mem::replace(&mut self.completions, completions) != completions {
            self.quiet = 0;
        }
    }

    /// Whether the power of some controller failed: then its media may hold what they held before.
    pub fn notice_power(&mut self) {
        for (controller, cache) in self.caches.iter_mut().enumerate() {
            let Some((losses, blocks)) = cache else { continue };
            let faults = self.emulators[controller].counters().faults;
            if *losses == faults.power_losses {
                continue;
            }
            self.now += 1;
            self.reached.note(Point::PowerLost);
            self.reached.add(Point::BlocksLost, faults.lost_blocks - *blocks);
            (*losses, *blocks) = (faults.power_losses, faults.lost_blocks);
            self.trace.note(self.turn, &Step::PowerLost { controller, blocks: *blocks });
            let here =
                |volume: &&mut Volume| volume.tree.disks().iter().any(|disk| disk.controller == controller);
            self.volumes.iter_mut().filter(here).for_each(|volume| volume.model.lost(self.now));
        }
    }

    /// A controller is lost for good.
    pub fn lose(&mut self, controller: usize) {
        let plight = &mut self.plights[controller];
        (plight.lost, plight.gone) = (true, true);
        self.trace.note(self.turn, &Step::Lost { controller });
    }

    /// A controller has failed, so many times, and is to be reset.
    pub fn fail(&mut self, controller: usize, times: u64) {
        self.failures[controller] += times;
        // One may come while the other is recovered from.
        self.plights[controller].lost |= self.failures[controller] > 1;
        self.reached.note(Point::FatalFound);
        self.trace.note(self.turn, &Step::Failed { controller });
    }

    /// Reads from the emulators how often their faults have struck.
    pub fn count_strikes(&mut self) {
        for (controller, emulator) in self.emulators.iter().enumerate() {
            faults::count(&mut self.plan, controller, &emulator.injections());
        }
    }

    /// Faults of the plan that have struck.
    pub fn struck(&mut self) -> usize {
        self.count_strikes();
        // What is to be held back may never come.
        let held = |planned: &Planned| {
            planned.act() != Some(Act::Hold) || self.emulators[planned.controller].counters().faults.held > 0
        };
        self.plan.iter().filter(|planned| planned.struck > 0 && held(planned)).count()
    }

    /// A controller that has a command which never ends.
    pub fn stuck(&mut self) -> Option<usize> {
        self.count_strikes();
        let sticks = |planned: &&Planned| {
            planned.drawn.legal == Legal::Sticks
                && planned.struck > 0
                && !self.plights[planned.controller].gone
        };
        self.plan.iter().find(sticks).map(|planned| planned.controller)
    }

    /// What goes wrong.
    pub fn fates(&self) -> Fates<'_> {
        Fates { plan: &self.plan, plights: &self.plights, cured: self.cured }
    }

    /// Requests under way, looked at or not.
    pub fn under_way(&self) -> usize {
        self.lives.len() + self.detached.len()
    }
}
