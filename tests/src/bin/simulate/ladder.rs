//! What the driver does about commands that take too long, and whether there is a reason for it.
//!
//! A command may be overdue only if its controller has not completed it; one that a controller asks to be sent again
//! later is not sent again before; and no more Aborts are outstanding than it takes. Knows what controllers and queues
//! have counted; must not know what becomes of a request.

use std::collections::BTreeMap;
use std::time::Duration;

use kiovec::QueueStats;
use kiovec::spec::{Csts, registers};

use crate::bench::Bench;
use crate::reach::Point;
use crate::run::Run;
use crate::world::Station;

/// Aborts that the driver has outstanding, at most.
const MOST_ABORTS: u64 = 2;
/// Turns in which a poller may not be polled.
const HELD_UP: u64 = 30;

/// When commands that were told to wait may be sent again.
#[derive(Debug, Default)]
pub struct Delays {
    /// By controller, in nanoseconds.
    due: Vec<Vec<u64>>,
    /// Strikes so far, by fault.
    struck: BTreeMap<usize, u64>,
}

impl Delays {
    /// Of so many controllers.
    pub fn new(controllers: usize) -> Delays {
        Delays { due: vec![Vec::new(); controllers], struck: BTreeMap::new() }
    }

    /// A fault has struck so often by now, each time a command that waits for `delay`, the newest from now on.
    pub fn note(&mut self, controller: usize, (fault, struck): (usize, u64), now: u64, delay: Duration) {
        let before = self.struck.insert(fault, struck).unwrap_or(0);
        let at = now.saturating_add(delay.as_nanos() as u64);
        self.due[controller].extend((before..struck).map(|_| at));
    }

    /// Whether any command of a controller has been told to wait.
    pub fn any(&self, controller: usize) -> bool {
        !self.due[controller].is_empty()
    }

    /// Whether a controller's queues may have sent so many commands again, if nothing but a delay has made them.
    pub fn allow(&self, controller: usize, resent: u64, now: u64) -> bool {
        resent <= self.due[controller].iter().filter(|at| **at <= now).count() as u64
    }
}

/// How often some queues did each thing.
pub fn sum<'a>(stats: impl Iterator<Item = &'a QueueStats>) -> QueueStats {
    stats.fold(QueueStats::default(), |mut sum, stats| {
        sum.timeouts += stats.timeouts;
        sum.aborts += stats.aborts;
        sum.resets += stats.resets;
        sum.resent += stats.resent;
        sum
    })
}

impl Bench {
    /// The time of a controller: they wait each for themselves.
    fn nanos(&self, controller: usize) -> u64 {
        self.emulators[controller].function().clock().nanos()
    }

    /// Whether a controller has a fatal status.
    pub fn has_failed(&self, controller: usize) -> bool {
        let status = self.emulators[controller].function().read32(registers::CSTS);
        status.is_ok_and(|status| Csts::from_bits(status).cfs())
    }

    /// Commands that were told to wait before they are sent again.
    pub fn note_delays(&mut self) {
        self.count_strikes();
        for (number, planned) in self.plan.iter().enumerate() {
            let units = self.devices[planned.controller].retry_delays;
            if let Some((crd, units)) = planned.retry_delay().zip(units) {
                let delay = Duration::from_millis(100 * u64::from(units[crd]));
                let now = self.nanos(planned.controller);
                self.delays.note(planned.controller, (number, planned.struck), now, delay);
            }
        }
    }

    /// What a queue has done in a poll.
    pub fn look_at_queue(
        &mut self,
        controller: usize,
        before: &QueueStats,
        now: &QueueStats,
    ) -> Result<(), String> {
        let counters = self.emulators[controller].counters();
        let (again, reset) = (now.resent > before.resent, now.resets > before.resets);
        let told = self.delays.any(controller);
        self.reached.note_if(again && reset, Point::AgainAfterReset);
        self.reached.note_if(again && !reset && now.aborts > 0 && !told, Point::AgainAfterAbort);
        self.reached.note_if(again && !reset && now.aborts == 0 && told, Point::DelayKept);
        if now.timeouts == before.timeouts {
            return Ok(());
        }
        self.plights[controller].overdue = true;
        // A poller that was not polled may have seen nothing of a completion.
        let busy = self.turn - self.busy[controller] <= HELD_UP;
        let faults = counters.faults;
        // What was rung when the power failed is gone.
        let vanished = faults.dropped + faults.corrupted + faults.power_losses > 0;
        match busy || vanished || self.plights[controller].gone {
            true => Ok(()),
            false => Err(format!(
                "controller {controller} has completed all commands, and one of them takes too long for the driver"
            )),
        }
    }

    /// What all queues of a controller have done by now.
    pub fn look_at_controller(&mut self, controller: usize, stats: &QueueStats) -> Result<(), String> {
        let counters = self.emulators[controller].counters();
        if counters.missed_writes > 0 {
            return Err(format!(
                "controller {controller} waits for a doorbell that was told in its shadow only"
            ));
        }
        if counters.resets > self.opened[controller] || self.plights[controller].gone {
            return Ok(());
        }
        let limit = MOST_ABORTS.min(u64::from(self.devices[controller].acl) + 1);
        let first = self.reached.count(Point::AbortsLimited) == 0;
        self.reached.note_if(first && stats.aborts > counters.aborts + limit, Point::AbortsLimited);
        // Others are sent again, and at once, after an Abort.
        let early = !self.delays.allow(controller, stats.resent, self.nanos(controller));
        match early && counters.aborted == 0 {
            true => Err(format!("controller {controller} asked for a delay that was not kept")),
            false => Ok(()),
        }
    }
}

impl Run {
    /// What the ladder did.
    pub fn count_recovery(&mut self) -> Result<(), String> {
        let Run { stations, bench, controllers, .. } = self;
        for (controller, emulator) in bench.emulators.iter().enumerate() {
            let counters = emulator.counters();
            let here = |station: &Station| {
                let queues = station.queues.iter().filter(|queue| queue.controller == controller);
                sum(queues.map(|queue| &queue.seen))
            };
            let each: Vec<QueueStats> = stations.iter().map(here).collect();
            let reached = &mut bench.reached;
            reached.add(Point::TimedOut, each.iter().map(|stats| stats.timeouts).sum());
            reached.add(Point::AbortSent, counters.aborts);
            reached.add(Point::AbortFound, counters.aborted);
            reached.add(Point::AbortMissed, counters.aborts - counters.aborted);
            reached.add(Point::ControllerReset, counters.resets - bench.opened[controller]);
            reached.add(Point::FunctionReset, counters.function_resets);
            let together = each.len() > 1 && each.iter().all(|stats| stats.resets > 0);
            reached.note_if(together, Point::PollersReset);
            let reset = each.iter().any(|stats| stats.resets > 0);
            let armed = controllers.get(controller).is_some_and(|it| it.has_shadow_doorbells());
            reached.note_if(reset && armed, Point::ShadowsArmedAgain);
            if counters.excess_aborts > 0 {
                return Err(format!("controller {controller} has more Aborts at a time than it takes"));
            }
        }
        Ok(())
    }
}
