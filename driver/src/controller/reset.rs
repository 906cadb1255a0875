//! The upper rungs of the ladder: controller reset, function reset, and the end.
//!
//! A course of small steps, each taken by whichever poller looks next, so that it needs no leader that could
//! go away: the queue pairs stop; the controller is disabled and enabled; it is identified and set up as
//! before; the queue pairs are created anew, each by its own poller. No step waits for the controller, but
//! for the reset of the function, and for the few admin commands at the end, each of which is granted
//! [`SETUP_MILLIS`]. Knows the order of steps; must not know what is in a queue.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use super::admin::AdminQueue;
use super::loss::Loss;
use super::registers::Change;
use super::{Admin, Commands, Controller};
use crate::memory::MemoryChain;
use crate::spec::identify;
use crate::spec::{Cns, Command, Status};
use crate::{Error, Result};

/// How long pollers have to stop. One that is not polled in this time keeps the others from going on.
const STOP_MILLIS: u64 = 10_000;
/// What each admin command after a reset is granted.
const SETUP_MILLIS: u64 = 10_000;
/// Resets in a row without a completed command, at most.
const MOST_ATTEMPTS: u32 = 3;

/// What pollers see of a controller without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// It is there; the number changes with every reset.
    Running(u64),
    /// It is being reset. Queue pairs have to stop.
    Resetting(u64),
    /// It is given up; whether it is certain that it reaches no memory.
    Lost { reaches_nothing: bool },
}

/// An [`Era`] that is shared: even numbers are of a controller that runs.
#[derive(Debug, Default)]
pub(super) struct SharedEra(AtomicU64);

const LOST_FOR_CERTAIN: u64 = u64::MAX;
const LOST: u64 = u64::MAX - 1;

impl SharedEra {
    #[inline]
    pub(super) fn get(&self) -> Era {
        match self.0.load(Ordering::Acquire) {
            LOST_FOR_CERTAIN => Era::Lost { reaches_nothing: true },
            LOST => Era::Lost { reaches_nothing: false },
            number if number % 2 == 0 => Era::Running(number),
            number => Era::Resetting(number),
        }
    }

    fn lose(&self, reaches_nothing: bool) {
        self.0.store(if reaches_nothing { LOST_FOR_CERTAIN } else { LOST }, Ordering::Release);
    }

    /// From running to resetting, and back.
    fn change(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Where a reset stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There is none.
    Running,
    /// Queue pairs stop, until a time.
    Stopping(u64),
    /// CSTS.RDY becomes 0.
    Disabling(Change),
    /// CSTS.RDY becomes 1.
    Enabling(Change),
    Lost,
}

#[derive(Debug)]
pub(super) struct Course {
    stage: Stage,
    /// The function was reset in this course.
    function_reset: bool,
    /// Resets since the last completed command.
    attempts: u32,
    /// The I/O queue pairs that there are, and whether each has stopped for this reset.
    pairs: Vec<(u16, bool)>,
}

impl Course {
    pub(super) fn new() -> Course {
        Course { stage: Stage::Running, function_reset: false, attempts: 0, pairs: Vec::new() }
    }

    /// Whether commands can be sent.
    pub(super) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// What to say to whoever wants to send a command otherwise.
    pub(super) fn refusal(&self, device: &str) -> Option<Error> {
        match self.stage {
            Stage::Running => None,
            _ => Some(Error::Resetting { device: device.into() }),
        }
    }

    pub(super) fn join(&mut self, qid: u16) {
        self.pairs.push((qid, false));
    }

    /// A queue pair goes. True if the controller knows nothing of it any more.
    pub(super) fn leave(&mut self, qid: u16) -> bool {
        self.pairs.retain(|(pair, _)| *pair != qid);
        matches!(self.stage, Stage::Enabling(_))
    }
}

impl Controller {
    /// What has become of the controller.
    #[inline]
    pub(crate) fn era(&self) -> Era {
        self.era.get()
    }

    /// Resets the controller, as a command that is never completed has it reset: its queue pairs stop, it is disabled,
    /// enabled and set up as before, and what was in flight is sent again or fails, each as
    /// [`Poller::set_replay`](crate::Poller::set_replay) says. A volatile write cache may be lost with it.
    ///
    /// Returns when the reset has begun, or if there is one already. Pollers carry it out, all that have a queue pair of
    /// the controller; without any, [`events`](Controller::events) does. Until it is over admin commands fail with
    /// [`Error::Resetting`]; [`QueueStats::resets`](crate::QueueStats::resets) tells when. However often it is asked
    /// for, that is not held against the controller. Waits for an admin command of another thread.
    ///
    /// # Errors
    /// Why the controller was lost, if it was.
    pub fn reset(&self) -> Result<()> {
        let mut admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        if admin.course.is_running() {
            self.stop(&mut admin);
        }
        match admin.course.stage {
            Stage::Lost => self.outlived(),
            _ => Ok(()),
        }
    }

    /// Begins a reset because the controller does not do what it should, if there is none already. While another
    /// thread uses the admin queue, that one begins it if it waits for a command; otherwise ask again.
    pub(crate) fn recover(&self) {
        match self.try_admin() {
            Some(mut admin) => self.begin(&mut admin),
            None => self.interrupt.store(true, Ordering::Relaxed),
        }
    }

    pub(super) fn begin(&self, admin: &mut Admin) {
        let course = &mut admin.course;
        if !course.is_running() {
            return;
        }
        if course.attempts == MOST_ATTEMPTS {
            return self.lose(course, Loss::GivenUp);
        }
        course.attempts += 1;
        self.stop(admin);
    }

    /// Has all queue pairs stop, which is how each reset begins.
    pub(super) fn stop(&self, admin: &mut Admin) {
        // Whoever wanted it has it.
        self.interrupt.store(false, Ordering::Relaxed);
        let course = &mut admin.course;
        course.function_reset = false;
        course.pairs.iter_mut().for_each(|(_, stopped)| *stopped = false);
        course.stage = Stage::Stopping(admin.queue.nanos().saturating_add(STOP_MILLIS * 1_000_000));
        self.era.change();
    }

    /// A queue pair has stopped; false if that could not be noted.
    pub(crate) fn stopped(&self, qid: u16) -> bool {
        self.try_admin().is_some_and(|mut admin| {
            let pair = admin.course.pairs.iter_mut().find(|(pair, _)| *pair == qid);
            pair.map(|(_, stopped)| *stopped = true).is_some()
        })
    }

    /// A command has completed since the last reset: it was of use.
    pub(crate) fn proved(&self) -> bool {
        self.try_admin().map(|mut admin| admin.course.attempts = 0).is_some()
    }

    /// Takes the next step of a reset, if it can be taken.
    pub(super) fn advance(&self, admin: &mut Admin) {
        let now = admin.queue.nanos();
        match admin.course.stage {
            Stage::Running | Stage::Lost => {}
            Stage::Stopping(until) => {
                let all = admin.course.pairs.iter().all(|(_, stopped)| *stopped);
                if all {
                    self.disable(admin, now);
                } else if now > until {
                    // Somebody may still ring doorbells, whatever becomes of the controller.
                    self.lose(&mut admin.course, Loss::GivenUp);
                }
            }
            Stage::Disabling(change) => match self.registers.is_disabled(&change, now) {
                Ok(true) => self.enable(admin, now),
                Ok(false) => {}
                Err(error) => self.next_rung(admin, now, &error),
            },
            Stage::Enabling(change) => match self.registers.is_enabled(&change, now) {
                Ok(true) => self.set_up(admin, now),
                Ok(false) => {}
                Err(error) => self.next_rung(admin, now, &error),
            },
        }
    }

    fn disable(&self, admin: &mut Admin, now: u64) {
        match self.registers.begin_disable(now) {
            Ok(change) => admin.course.stage = Stage::Disabling(change),
            Err(error) => self.next_rung(admin, now, &error),
        }
    }

    fn enable(&self, admin: &mut Admin, now: u64) {
        // Disabled, it reaches no memory any more.
        admin.queue.restart();
        admin.aborts.forget();
        admin.stranded.clear();
        // A reset of the function, or a loss of power, has cleared it.
        let enabled = self.function.set_bus_master(true);
        let (sq, cq) = (admin.queue.sq(), admin.queue.cq());
        match enabled.and_then(|()| self.registers.begin_enable(sq, cq, now)) {
            Ok(change) => admin.course.stage = Stage::Enabling(change),
            Err(error) => self.next_rung(admin, now, &error),
        }
    }

    /// The controller is there again: it is set up as it was.
    fn set_up(&self, admin: &mut Admin, now: u64) {
        // Of one that had not stopped yet; since then nobody needs another reset than this one.
        self.interrupt.store(false, Ordering::Relaxed);
        match self.prepare(admin) {
            Ok(()) => {
                admin.course.stage = Stage::Running;
                self.era.change();
            }
            Err(error) => self.next_rung(admin, now, &error),
        }
    }

    fn prepare(&self, admin: &mut Admin) -> Result<()> {
        let Admin { queue, watch, course, .. } = admin;
        let mut commands = self.commands_of(queue, SETUP_MILLIS);
        let identity = commands.identify::<identify::Controller>(Cns::CONTROLLER, 0, 0)?;
        if !is_same(&identity, &self.identity) {
            let what = "after a reset it is another controller than before".into();
            return Err(Error::Unsupported { device: self.name().into(), what });
        }
        let granted = commands.number_of_queues()?;
        if course.pairs.iter().any(|(qid, _)| *qid > granted) {
            let what = "after a reset it has fewer queue pairs than before".into();
            return Err(Error::Unsupported { device: self.name().into(), what });
        }
        commands.enable_advanced_retry(&identity)?;
        if let Some(shadows) = &self.shadows {
            commands.arm_doorbells(shadows)?;
        }
        self.renew_namespaces(&mut commands)?;
        if identity.has_volatile_write_cache() {
            self.known.lose_caches();
        }
        watch.arm(&mut commands, &identity)
    }

    /// What has become of the namespaces that there are handles of.
    fn renew_namespaces(&self, commands: &mut Commands<'_>) -> Result<()> {
        for nsid in self.known.nsids(|_| true) {
            match commands.identify(Cns::NAMESPACE, nsid, 0) {
                Ok(identity) => self.known.renew(nsid, Some(&identity)),
                Err(Error::Command { status, .. })
                    if status.code() == Status::INVALID_NAMESPACE_OR_FORMAT.code() =>
                {
                    self.known.renew(nsid, None);
                }
                Err(Error::Command { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A reset did not do: the function is reset, and if that was done already, or cannot be, it is the end.
    fn next_rung(&self, admin: &mut Admin, now: u64, error: &Error) {
        let gone = matches!(error, Error::Gone { .. } | Error::Disconnected { .. });
        // To reset what is gone can block for minutes in the kernel.
        if gone {
            return self.lose(&mut admin.course, Loss::Gone);
        }
        if admin.course.function_reset || self.function.reset().is_err() {
            return self.lose(&mut admin.course, Loss::GivenUp);
        }
        admin.course.function_reset = true;
        // It is as after power-on. Should it not be, that shows here.
        self.disable(admin, now);
    }

    /// The last rung: the function is kept from memory, and everything fails.
    pub(super) fn lose(&self, course: &mut Course, loss: Loss) {
        course.stage = Stage::Lost;
        let _ = self.loss.set(loss);
        let gone = || matches!(super::registers::check(&*self.function), Err(Error::Gone { .. }));
        self.era.lose(self.function.set_bus_master(false).is_ok() || gone());
    }

    /// Creates an I/O queue pair anew, with the rings that it had, which are empty.
    pub(crate) fn create_again(&self, qid: u16, [sq, cq]: [(u64, u32); 2]) -> Result<()> {
        let commands = [Command::create_io_cq(qid, cq.1, cq.0), Command::create_io_sq(qid, sq.1, sq.0, qid)];
        let mut admin = self.running()?;
        let mut setup = self.commands_of(&mut admin.queue, SETUP_MILLIS);
        for command in &commands {
            setup.succeed(command, MemoryChain::new())?;
        }
        Ok(())
    }

    pub(super) fn commands_of<'a>(&'a self, admin: &'a mut AdminQueue, millis: u64) -> Commands<'a> {
        Commands { admin, space: &self.space, table: self.prp_table(), millis }
    }
}

/// Whether a controller is the one that it was, and takes the same commands.
fn is_same(now: &identify::Controller, before: &identify::Controller) -> bool {
    let facts = |it: &identify::Controller| (it.sn, it.mn, it.mdts, it.sgls, it.crdt);
    facts(now) == facts(before)
}
