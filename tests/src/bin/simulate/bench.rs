//! Everything of a seed but its pollers: what the requests under way are, what is known, what was reached.
//!
//! Knows state; must not know what is done next.

use std::collections::BTreeMap;

use kiovec_emulator::Emulator;

use crate::chance::Chance;
use crate::events::Node;
use crate::faults::{self, Legal, Planned};
use crate::memory::Memories;
use crate::reach::{Point, Reached};
use crate::request::Live;
use crate::trace::{Step, Trace};
use crate::world::Volume;

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
    /// By controller: it is gone, or has failed.
    pub lost: Vec<bool>,
    /// By controller: it was pulled, so that no reset brings it back.
    pub gone: Vec<bool>,
    /// By controller, if it has a cache that can be lost: how often that happened, and how many blocks were.
    pub caches: Vec<Option<(u64, u64)>>,
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
    /// Turns that a request took, at most.
    pub longest: u64,
    /// Events are claimed as soon as they settle.
    pub hurry: bool,
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
            if !self.lost[controller] && faults.fatal + faults.unplugged > 0 {
                self.lose(controller, faults.unplugged > 0);
                self.reached.note(if faults.fatal > 0 { Point::FatalFound } else { Point::GoneFound });
            }
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

    /// A controller is lost, unless a reset brings it back: not if it is gone.
    pub fn lose(&mut self, controller: usize, gone: bool) {
        self.lost[controller] = true;
        self.gone[controller] |= gone;
        self.trace.note(self.turn, &Step::Lost { controller });
    }

    /// Reads from the emulators how often their faults have struck.
    pub fn count_strikes(&mut self) {
        for (controller, emulator) in self.emulators.iter().enumerate() {
            faults::count(&mut self.plan, controller, &emulator.injections());
        }
    }

    /// A controller that has a command which never ends.
    pub fn stuck(&mut self) -> Option<usize> {
        self.count_strikes();
        let sticks = |planned: &&Planned| {
            planned.drawn.legal == Legal::Sticks && planned.struck > 0 && !self.gone[planned.controller]
        };
        self.plan.iter().find(sticks).map(|planned| planned.controller)
    }

    /// Requests under way, looked at or not.
    pub fn under_way(&self) -> usize {
        self.lives.len() + self.detached.len()
    }
}
