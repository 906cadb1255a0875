//! What tells right from wrong when a request comes back.
//!
//! Knows the model and what faults make legal; must not know when a request comes back, or how.

use kiovec::spec::Status;
use kiovec::{Cause, Failure, IoContainer, Operation};

use crate::bench::Bench;
use crate::model::Comparison;
use crate::reach::Point;
use crate::request::Live;
use crate::tree::Plight;

impl Bench {
    /// A request has come back: whether it could, with this result and these bytes. `ended` is set if somebody ended
    /// it.
    pub fn judge(
        &mut self,
        live: &Live,
        io: &IoContainer,
        result: Result<(), Failure>,
        ended: Option<Cause>,
    ) -> Result<(), String> {
        self.now += 1;
        self.notice_power();
        if result.is_err() {
            self.notice_losses();
        }
        let what = format!(
            "request {}, {:?} of {:?} of volume {}, has {}",
            live.tag,
            live.operation,
            live.range(),
            live.volume,
            result.map_or_else(|failure| failure.to_string(), |()| "succeeded".into())
        );
        let wrong = |why: &str| Err(format!("{what}: {why}"));
        if (io.lba(), io.operation()) != (live.lba, live.operation) {
            return wrong("it came back as another one");
        }
        let moves = matches!(live.operation, Operation::Read | Operation::Write);
        if moves && (io.blocks(), io.memory().len()) != (live.blocks, live.blocks as usize * self.block) {
            return wrong("it came back with other memory");
        }
        self.check_memory(io).or_else(|why| wrong(&why))?;
        self.came_back = self.turn;
        let kept = self.turn - live.turn;
        self.longest = self.longest.max(kept);
        self.check_cause(live, result, ended).or_else(|why| wrong(&why))?;
        let done = match done(live, result) {
            Some(done) => done,
            None => return wrong("it failed at a block that is not its own"),
        };
        self.note_result(live, result, done);
        self.check_data(live, io, result, ended.is_some(), done).or_else(|why| wrong(&why))
    }

    /// No command can move data to or from a container's memory when that belongs to its owner.
    pub fn check_memory(&self, io: &IoContainer) -> Result<(), String> {
        for segment in io.memory().segments() {
            let range = segment.iova()..segment.iova() + segment.len() as u64;
            if let Some(controller) = self.emulators.iter().position(|emulator| emulator.may_touch(&range)) {
                return Err(format!("its memory is free while controller {controller} may still touch it"));
            }
        }
        Ok(())
    }

    /// Whether it may have succeeded, or failed for this reason.
    fn check_cause(
        &self,
        live: &Live,
        result: Result<(), Failure>,
        ended: Option<Cause>,
    ) -> Result<(), String> {
        let fates = self.fates();
        let tree = &self.volumes[live.volume].tree;
        // What a leg of a mirror refuses, another may have failed: then that is what is told.
        let may_fail = || {
            tree.may_fail(&fates, live.operation, &live.range())
                || live.fussy && tree.may_fail_somewhere(&fates, live.operation)
        };
        let disks = tree.disks();
        let some = |has: fn(&Plight) -> bool| disks.iter().any(|disk| has(&self.plights[disk.controller]));
        let (lost, reset) = (some(|it| it.lost), some(|it| it.reset));
        let aborted = |controller: usize| self.emulators[controller].counters().aborted > 0;
        let overdue =
            some(|it| it.overdue) || self.waiting && disks.iter().any(|disk| aborted(disk.controller));
        let waited = || disks.iter().any(|disk| self.delays.any(disk.controller));
        let mut own = Vec::new();
        own.extend((live.operation == Operation::Raw).then_some(Status::COMPARE_FAILURE));
        // What is aborted again and again fails.
        own.extend(overdue.then_some(Status::ABORT_REQUESTED));
        match (result.map_err(|failure| failure.cause), ended) {
            (Ok(()), Some(ended)) => Err(format!("although it was {ended}")),
            (Ok(()), None) if live.must_fail => Err("and must fail".into()),
            (Ok(()), None) => Ok(()),
            (Err(cause), Some(ended)) if cause == ended => Ok(()),
            (Err(cause), Some(ended)) => Err(format!("{cause}, although it was {ended}")),
            (Err(Cause::Refused), None) if live.fussy => Ok(()),
            (Err(Cause::Status(Status::COMPARE_FAILURE)), None) if live.operation == Operation::Raw => Ok(()),
            (Err(Cause::Status(status)), None) if may_fail() => match fates.may_say(status, &own) {
                true => Ok(()),
                false => Err("nobody said so".into()),
            },
            (Err(Cause::ControllerLost), None) if may_fail() && lost => Ok(()),
            // What may be carried out twice is, unless some of it had failed, or it was overdue several times.
            (Err(Cause::OutcomeUnknown), None) if may_fail() && (reset || overdue || waited()) => Ok(()),
            (Err(Cause::CacheLost), None) if live.operation == Operation::Flush && reset => Ok(()),
            (Err(_), None) => Err("it cannot fail so".into()),
        }
    }

    fn note_result(&mut self, live: &Live, result: Result<(), Failure>, done: u64) {
        let reached = &mut self.reached;
        match result.map_err(|failure| failure.cause) {
            Ok(()) => reached.note_if(live.operation == Operation::Flush, Point::Flush),
            Err(Cause::Status(_)) => {
                reached.note(Point::Failed);
                reached.note_if(done > 0 && done < live.blocks, Point::FailedLater);
            }
            Err(Cause::ControllerLost) => {
                reached.note(Point::Lost);
                reached.note_if(self.doomed, Point::LastRung);
            }
            Err(Cause::Refused) => reached.note(Point::RefusedBelow),
            Err(Cause::OutcomeUnknown) => reached.note(Point::OutcomeUnknown),
            Err(Cause::CacheLost) => reached.note(Point::CacheLost),
            Err(_) => {}
        }
        if result.is_ok() {
            reached.note_if(live.operation == Operation::WriteZeroes, Point::WriteZeroes);
            reached.note_if(live.operation == Operation::Deallocate, Point::Deallocate);
        }
    }

    /// What is on the blocks now, or was read from them.
    fn check_data(
        &mut self,
        live: &Live,
        io: &IoContainer,
        result: Result<(), Failure>,
        ended: bool,
        done: u64,
    ) -> Result<(), String> {
        let oldest = self.lives.values().map(|live| live.since).min().unwrap_or(self.now).min(live.since);
        let (now, block) = (self.now, self.block);
        let mut others = self.lives.values().chain(&self.detached);
        let volume = &mut self.volumes[live.volume];
        let len = if live.operation == Operation::Read { done as usize * block } else { io.memory().len() };
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        let bytes = &mut self.bytes[..len];
        io.memory().copy_to_slice(0, bytes);
        let bytes = &*bytes;
        match (live.operation, live.write) {
            (Operation::Read, _) => {
                volume.model.check(live.lba, bytes, live.since)?;
                if !volume.tree.has_mirror() {
                    volume.model.seen(live.lba, bytes, live.since, now);
                }
            }
            (Operation::Raw, _) if !ended => {
                let Comparison { equal, other } = volume.model.compare(live.lba, bytes, live.since);
                let found =
                    matches!(result, Err(Failure { cause: Cause::Status(Status::COMPARE_FAILURE), .. }));
                match result {
                    Ok(()) if !equal => return Err("although what is there differs".into()),
                    Err(_) if found && !other => return Err("although there is no difference".into()),
                    _ => {}
                }
                self.reached.note_if(result.is_ok(), Point::CompareEqual);
                self.reached.note_if(found, Point::CompareOther);
            }
            (Operation::Flush, _) if matches!(result, Err(Failure { cause: Cause::CacheLost, .. })) => {
                volume.model.told_of_loss();
            }
            // Of several that are in flight together, one may be told of a loss, and its caller later or never.
            (Operation::Flush, _) if others.any(|other| other.is_flush_of(live.volume)) => {}
            (Operation::Flush, _) if result.is_ok() => volume.model.flushed(live.since, now, oldest),
            (_, Some(write)) => {
                let durable = io.is_fua() && live.operation != Operation::Deallocate;
                volume.model.acknowledged(live.lba..live.lba + done, write, now, oldest, durable);
                volume.model.over(live.range(), write, now);
                // Unless its caller was told since that it may be lost.
                let told = volume.model.losses_told();
                for (known, _) in live.known.iter().filter(|(_, before)| *before == told) {
                    volume.model.acknowledged(known.clone(), write, now, oldest, durable);
                }
                let same = |(lba, bytes): (u64, &[u8])| write.contents(lba, block) == bytes;
                if live.operation == Operation::Write && !(live.lba..).zip(bytes.chunks(block)).all(same) {
                    return Err("it changed what was to be written".into());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// How many blocks are done for certain: those before the first failure. `None` if that is at another block.
fn done(live: &Live, result: Result<(), Failure>) -> Option<u64> {
    match result {
        Ok(()) => Some(live.blocks),
        Err(_) if live.blocks == 0 || live.operation == Operation::Raw => Some(0),
        Err(Failure { lba, cause: Cause::Status(_) | Cause::ControllerLost }) => {
            live.range().contains(&lba).then(|| lba - live.lba)
        }
        Err(_) => Some(0),
    }
}
