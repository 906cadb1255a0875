//! Requests that failed are carried out once more, where that may help.
//!
//! Knows which failures may pass, and how often a request was tried; must not know what is below. A
//! request goes down again as the same container, from its first failure on: what lies before is done.

use std::time::Duration;

use super::call::Call;
use super::{Cx, Geometry, Handle, Layer, Waiting};
use crate::request::Cause;
use crate::spec::Status;
use crate::{Error, Result};

/// Submits requests that failed once more, a limited number of times, at once or after a delay.
///
/// It does so where the controller failed a command, did not say Do Not Retry, and the failure is none
/// that stays until somebody changes the command or the device. Nor where the controller said how long to wait
/// (Command Retry Delay): then the queue pair has done so, three times, in vain. Never after a request was cancelled, its
/// deadline passed, or the controller was lost; nor what a layer below has refused or found corrupt.
#[derive(Debug)]
pub struct Retry<B> {
    below: B,
    options: RetryOptions,
    /// The number of its word, which has how often the request was tried again, and when that is due.
    frame: usize,
    /// All have the same delay, so the first is due first.
    waiting: Waiting,
    /// When it is to be called, in nanoseconds, unless it has not asked for that: once for all that wait.
    call: Call,
    retries: Retries,
}

/// How often, and when, a [`Retry`] tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryOptions {
    /// How often one request, however large, is submitted again: 0 to [`MAX_TIMES`](Self::MAX_TIMES).
    pub times: u32,
    /// How long it waits before, each time, at most [`MAX_DELAY`](Self::MAX_DELAY). 0 is not at all.
    pub delay: Duration,
}

/// What a [`Retry`] has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retries {
    /// How often requests were submitted again.
    pub retried: u64,
    /// Requests that succeeded in the end.
    pub cured: u64,
    /// Requests that were submitted again, and failed in the end.
    pub given_up: u64,
}

/// Bits of the word that count.
const COUNT_BITS: u32 = 4;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

impl RetryOptions {
    /// The most that `times` can be.
    pub const MAX_TIMES: u32 = COUNT as u32;
    /// The longest that `delay` can be.
    pub const MAX_DELAY: Duration = Duration::from_secs(3600);

    /// Sets how often one request is submitted again.
    #[must_use]
    pub fn times(self, times: u32) -> RetryOptions {
        RetryOptions { times, ..self }
    }

    /// Sets how long it waits before.
    #[must_use]
    pub fn delay(self, delay: Duration) -> RetryOptions {
        RetryOptions { delay, ..self }
    }
}

impl Default for RetryOptions {
    /// Three times, at once.
    fn default() -> RetryOptions {
        RetryOptions { times: 3, delay: Duration::ZERO }
    }
}

impl<B: Layer> Retry<B> {
    /// Tries again what fails in a layer. Refused if the options are out of their ranges.
    pub fn new(below: B, options: RetryOptions) -> Result<Retry<B>> {
        if options.times > RetryOptions::MAX_TIMES || options.delay > RetryOptions::MAX_DELAY {
            let RetryOptions { times, delay } = options;
            return Err(Error::InvalidInput(format!(
                "{times} retries after {delay:?} each: at most {} after {:?} are possible",
                RetryOptions::MAX_TIMES,
                RetryOptions::MAX_DELAY
            )));
        }
        let frame = below.frames();
        let (waiting, retries) = (Waiting::default(), Retries::default());
        Ok(Retry { below, options, frame, waiting, call: Call::default(), retries })
    }

    /// What it has done so far.
    pub fn retries(&self) -> &Retries {
        &self.retries
    }

    /// The layer below.
    pub fn below(&self) -> &B {
        &self.below
    }

    /// A request that came up: `Some` if it is finished.
    #[inline(always)]
    fn up(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        if cx.failure(&io).is_none() && cx.frame(&io, self.frame) == 0 {
            return Some(io);
        }
        self.failed_once(cx, io)
    }

    /// One that failed now or before.
    #[cold]
    fn failed_once(&mut self, cx: &mut Cx<'_>, mut io: Handle) -> Option<Handle> {
        while self.is_worth_it(cx, &io) {
            if !self.options.delay.is_zero() {
                self.delay(cx, io);
                return None;
            }
            io = self.again(cx, io)?;
        }
        let retried = cx.frame(&io, self.frame) & COUNT > 0;
        match cx.failure(&io) {
            None => self.retries.cured += u64::from(retried),
            Some(_) => self.retries.given_up += u64::from(retried),
        }
        Some(io)
    }

    fn is_worth_it(&self, cx: &Cx<'_>, io: &Handle) -> bool {
        let count = cx.frame(io, self.frame) & COUNT;
        count < self.options.times.into() && cx.failure(io).is_some_and(|failure| may_pass(failure.cause))
    }

    /// Goes on with a request where it failed.
    fn again(&mut self, cx: &mut Cx<'_>, mut io: Handle) -> Option<Handle> {
        let count = cx.frame(&io, self.frame) & COUNT;
        cx.set_frame(&io, self.frame, count + 1);
        self.retries.retried += 1;
        cx.resume(&mut io);
        self.below.submit(cx, io)
    }

    /// Keeps a request until its time comes.
    fn delay(&mut self, cx: &mut Cx<'_>, io: Handle) {
        // Nanoseconds since a start that is not long ago: decades fit.
        let due = (cx.now() + self.options.delay).as_nanos() as u64;
        let count = cx.frame(&io, self.frame) & COUNT;
        cx.set_frame(&io, self.frame, due << COUNT_BITS | count);
        cx.wait(&mut self.waiting, io);
        self.call.ask(cx, due);
    }

    /// The next request whose time has come, or that was ended meanwhile; if there is none, asks to be
    /// called when the time of the first has come.
    fn due(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        let (frame, now, mut first) = (self.frame, cx.nanos(), None);
        self.call.forget(now);
        let io = cx.next_waiting(&mut self.waiting, |cx, io| {
            let due = cx.frame(io, frame) >> COUNT_BITS;
            first.get_or_insert(due);
            due <= now || cx.failure(io).is_none_or(|failure| !may_pass(failure.cause))
        });
        if let (None, Some(due)) = (&io, first) {
            self.call.ask(cx, due);
        }
        io
    }
}

/// Whether a request that failed for a reason might succeed the next time.
fn may_pass(cause: Cause) -> bool {
    match cause {
        Cause::Status(status) => !status.dnr() && status.crd() == 0 && !LASTING.contains(&status.code()),
        // Somebody gave it up; or the same would come of it again.
        _ => false,
    }
}

/// Statuses that a command has again and again, whether the controller says Do Not Retry or not.
const LASTING: &[Status] = &[
    // The command is wrong, or does not fit the controller or the namespace: it will not fit later.
    Status::INVALID_OPCODE,
    Status::INVALID_FIELD,
    Status::INVALID_NAMESPACE_OR_FORMAT,
    Status::INVALID_SGL_SEGMENT_DESCRIPTOR,
    Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS,
    Status::DATA_SGL_LENGTH_INVALID,
    Status::METADATA_SGL_LENGTH_INVALID,
    Status::SGL_DESCRIPTOR_TYPE_INVALID,
    Status::SGL_OFFSET_INVALID,
    Status::SGL_DATA_BLOCK_GRANULARITY_INVALID,
    Status::INVALID_USE_OF_CMB,
    Status::COMMAND_NOT_SUPPORTED_IN_CMB,
    Status::PRP_OFFSET_INVALID,
    Status::ATOMIC_WRITE_UNIT_EXCEEDED,
    Status::COMMAND_SIZE_LIMIT_EXCEEDED,
    Status::CONFLICTING_ATTRIBUTES,
    Status::INVALID_PROTECTION_INFORMATION,
    Status::COMMAND_SET_NOT_ENABLED,
    // There is no such block, or no room for it.
    Status::LBA_OUT_OF_RANGE,
    Status::CAPACITY_EXCEEDED,
    // Not allowed, until somebody with the right to do so changes that.
    Status::NAMESPACE_WRITE_PROTECTED,
    Status::WRITE_TO_READ_ONLY_RANGE,
    Status::OPERATION_DENIED,
    Status::ACCESS_DENIED,
    Status::PROHIBITED_BY_LOCKDOWN,
    Status::RESERVATION_CONFLICT,
    Status::SANITIZE_FAILED,
    Status::ANA_PERSISTENT_LOSS,
    // An answer, not a failure: it depends on what is on the medium.
    Status::COMPARE_FAILURE,
    Status::DEALLOCATED_OR_UNWRITTEN,
    Status::APPLICATION_TAG_CHECK_ERROR,
    Status::REFERENCE_TAG_CHECK_ERROR,
    Status::STORAGE_TAG_CHECK_ERROR,
    // The host wanted it to end.
    Status::ABORT_REQUESTED,
    Status::ABORTED_BY_HOST,
    Status::ABORTED_PREEMPT,
];

impl<B: Layer> Layer for Retry<B> {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn frames(&self) -> usize {
        self.frame + 1
    }

    fn children(&self) -> u32 {
        self.below.children()
    }

    fn orphans(&self) -> u32 {
        self.below.orphans()
    }

    #[inline(always)]
    fn submit(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        cx.set_frame(&io, self.frame, 0);
        let io = self.below.submit(cx, io)?;
        self.up(cx, io)
    }

    #[inline(always)]
    fn complete(&mut self, cx: &mut Cx<'_>, io: Handle) -> Option<Handle> {
        let io = self.below.complete(cx, io)?;
        self.up(cx, io)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Handle> {
        while let Some(io) = self.below.poll(cx) {
            if let Some(io) = self.up(cx, io) {
                return Some(io);
            }
        }
        while let Some(io) = self.due(cx) {
            // One that was ended is not carried out any more.
            let io = if self.is_worth_it(cx, &io) { self.again(cx, io) } else { Some(io) };
            if let Some(io) = io.and_then(|io| self.up(cx, io)) {
                return Some(io);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::status::SCT_VENDOR;

    #[test]
    fn what_may_pass_is_tried_again() {
        let may_pass = |status| super::may_pass(Cause::Status(status));
        for status in [
            Status::INTERNAL_ERROR,
            Status::DATA_TRANSFER_ERROR,
            Status::NAMESPACE_NOT_READY,
            Status::FORMAT_IN_PROGRESS,
            Status::COMMAND_INTERRUPTED,
            Status::TRANSIENT_TRANSPORT_ERROR,
            Status::UNRECOVERED_READ_ERROR,
            Status::WRITE_FAULT,
            Status::ANA_TRANSITION,
            Status::new(SCT_VENDOR, 1),
        ] {
            assert!(may_pass(status) && may_pass(status.with_more()), "{status}");
            assert!(!may_pass(status.with_dnr()) && !may_pass(status.with_crd(1)), "{status}");
        }
        assert!(LASTING.iter().all(|status| !may_pass(*status) && !may_pass(status.with_more())));
    }

    #[test]
    fn what_was_given_up_is_not() {
        for cause in [Cause::Cancelled, Cause::Expired, Cause::ControllerLost, Cause::Refused, Cause::Corrupt]
        {
            assert!(!may_pass(cause), "{cause}");
        }
    }
}
