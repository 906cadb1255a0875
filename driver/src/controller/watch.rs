//! Asynchronous events: requests for them are kept armed, what is reported is read and handed on.
//!
//! An event type is not reported again before its log page was read (Base 2.0, section 5.2), so each
//! event is followed by a Get Log Page, and by an Identify for each namespace that changed. Nothing here
//! waits: every turn looks at what has been completed and sends the next command. Knows which log belongs
//! to which event; must not know who looks, nor how often.

use std::sync::atomic::Ordering;

use zerocopy::{FromBytes, IntoBytes};

use super::Commands;
use super::admin::{AdminQueue, EVENT_REQUESTS, TIMEOUT_MILLIS};
use super::event::{ControllerEvent, Inbox};
use super::namespace::Known;
use crate::defects::{self, Defect};
use crate::memory::{Access, DmaSpace, MemoryChain, SharedArray};
use crate::spec::command::NSID_ALL;
use crate::spec::identify::{
    self, OAES_ASYMMETRIC_ACCESS, OAES_ENDURANCE_GROUP, OAES_FIRMWARE_ACTIVATION, OAES_LBA_STATUS,
    OAES_NAMESPACE_ATTRIBUTE, OAES_PREDICTABLE_LATENCY,
};
use crate::spec::log::{
    WARNING_READ_ONLY, WARNING_RELIABILITY, WARNING_SPARE, WARNING_TEMPERATURE, WARNING_VOLATILE_BACKUP,
};
use crate::spec::{
    AsyncEvent, ChangedNamespaces, Cns, Command, Completion, ErrorLogEntry, FeatureId, FirmwareSlotLog,
    LogPage, SmartLog, Status,
};
use crate::{Error, Result};

/// Critical warnings that are reported. They need no support in OAES.
const WARNINGS: u8 =
    WARNING_SPARE | WARNING_TEMPERATURE | WARNING_RELIABILITY | WARNING_READ_ONLY | WARNING_VOLATILE_BACKUP;
/// Notices that are asked for where the controller has them; the bits of OAES and of the feature are the
/// same.
const NOTICES: u32 = OAES_NAMESPACE_ATTRIBUTE
    | OAES_FIRMWARE_ACTIVATION
    | OAES_ASYMMETRIC_ACCESS
    | OAES_PREDICTABLE_LATENCY
    | OAES_LBA_STATUS
    | OAES_ENDURANCE_GROUP;
/// Requests that fail in a row until no more are sent: there is something that they do not agree with.
const MOST_FAILURES: u32 = 16;
/// Steps of one turn, at most: a controller that reports without end must not keep a poller here.
const STEPS: usize = 4;
/// Bytes of the buffer for logs and Identify data.
const BUFFER: usize = 4096;

/// What happens to the event that was reported last.
#[derive(Debug)]
enum Stage {
    /// There is none.
    Idle,
    /// Its log page is being read.
    Log(AsyncEvent),
    /// Namespaces are being identified: the last of `left`.
    Namespaces { nsids: Vec<u32>, more: bool, left: Vec<u32> },
    /// A command was not completed in time, and the buffer is the controller's until it is. What is
    /// reported meanwhile is handed on without its log.
    Overdue,
}

#[derive(Debug)]
pub(super) struct Watch {
    stage: Stage,
    /// When the command that it waits for was sent.
    since: u64,
    failures: u32,
    /// Shared with the controller: it may write to it late, or when it should not.
    buffer: SharedArray<1>,
}

/// Whom events are for.
pub(super) struct Audience<'a> {
    pub(super) known: &'a Known,
    pub(super) inbox: &'a Inbox,
}

impl Watch {
    pub(super) fn new(space: &DmaSpace) -> Result<Watch> {
        let buffer = SharedArray::new(space.segment(BUFFER, 4096, Access::ReadWrite)?);
        Ok(Watch { stage: Stage::Idle, since: 0, failures: 0, buffer })
    }

    /// Has the controller report what it can, and sends requests: after it was enabled, and after every
    /// reset, which ends all requests.
    pub(super) fn arm(&mut self, commands: &mut Commands<'_>, identity: &identify::Controller) -> Result<()> {
        commands.admin.forget_background();
        (self.stage, self.failures) = (Stage::Idle, 0);
        let wanted = u32::from(WARNINGS) | identity.oaes & NOTICES;
        let configure = Command::set_features(FeatureId::ASYNC_EVENT_CONFIGURATION, wanted);
        match commands.succeed(&configure, MemoryChain::new()) {
            // What is reported without being asked for is still heard.
            Ok(_) | Err(Error::Command { .. }) => {}
            Err(error) => return Err(error),
        }
        // AERL is 0's based.
        for slot in 0..EVENT_REQUESTS.min(usize::from(identity.aerl) + 1) {
            commands.admin.start(slot, &Command::async_event_request());
        }
        Ok(())
    }

    /// Goes on as far as that is possible without waiting.
    pub(super) fn turn(&mut self, admin: &mut AdminQueue, audience: &Audience<'_>) {
        admin.look();
        for _ in 0..STEPS {
            if !self.step(admin, audience) {
                return;
            }
        }
    }

    /// One step; false if there is nothing to do but wait.
    fn step(&mut self, admin: &mut AdminQueue, audience: &Audience<'_>) -> bool {
        let idle = matches!(self.stage, Stage::Idle);
        if !idle && let Some(completion) = admin.finished_read() {
            self.follow(admin, audience, &completion);
            return true;
        }
        if idle || matches!(self.stage, Stage::Overdue) {
            return match admin.finished_request() {
                Some((slot, completion)) => {
                    self.report(admin, audience, slot, &completion);
                    true
                }
                None => false,
            };
        }
        if admin.nanos().saturating_sub(self.since) > TIMEOUT_MILLIS * 1_000_000 {
            admin.give_up_read();
            match std::mem::replace(&mut self.stage, Stage::Overdue) {
                Stage::Log(event) => unread(audience, event),
                Stage::Namespaces { nsids, more, .. } => {
                    audience.inbox.put(ControllerEvent::NamespacesChanged { nsids, more });
                }
                Stage::Idle | Stage::Overdue => {}
            }
        }
        false
    }

    /// A request was completed: another one is sent, and the log page read.
    fn report(
        &mut self,
        admin: &mut AdminQueue,
        audience: &Audience<'_>,
        slot: usize,
        completion: &Completion,
    ) {
        let status = completion.status();
        self.failures = if status.is_success() { 0 } else { self.failures + 1 };
        // One more than the controller takes is one too many for good.
        let excess = status.code() == Status::ASYNC_EVENT_LIMIT_EXCEEDED.code();
        if self.failures < MOST_FAILURES && !excess && !defects::is(Defect::ForgetToRearmEvents) {
            admin.start(slot, &Command::async_event_request());
        }
        if !status.is_success() {
            return;
        }
        let event = AsyncEvent(completion.dw0);
        if matches!(self.stage, Stage::Overdue) {
            return unread(audience, event);
        }
        let (page, bytes) = log_of(event);
        self.stage = Stage::Log(event);
        self.send(admin, Command::get_log_page(page, NSID_ALL, 0, bytes));
    }

    /// What the stage waited for is there.
    fn follow(&mut self, admin: &mut AdminQueue, audience: &Audience<'_>, completion: &Completion) {
        let status = completion.status();
        let data = status.is_success().then(|| self.data());
        let data = data.as_ref().map(|data| data.as_bytes());
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Log(event) if is_namespace_change(event) => {
                let (nsids, more) = changed(data);
                let left = audience.known.nsids(|nsid| more || nsids.binary_search(&nsid).is_ok());
                self.identify(admin, audience, nsids, more, left);
            }
            Stage::Log(event) => audience.inbox.put(delivered(event, data)),
            Stage::Namespaces { nsids, more, mut left } => {
                if let Some(nsid) = left.pop() {
                    renew(audience.known, nsid, status, data);
                }
                self.identify(admin, audience, nsids, more, left);
            }
            Stage::Idle | Stage::Overdue => {}
        }
    }

    /// Identifies the next of the namespaces, or hands the event on when there is none left.
    fn identify(
        &mut self,
        admin: &mut AdminQueue,
        audience: &Audience<'_>,
        nsids: Vec<u32>,
        more: bool,
        left: Vec<u32>,
    ) {
        let Some(nsid) = left.last().copied() else {
            return audience.inbox.put(ControllerEvent::NamespacesChanged { nsids, more });
        };
        self.stage = Stage::Namespaces { nsids, more, left };
        self.send(admin, Command::identify(Cns::NAMESPACE, nsid, 0));
    }

    fn send(&mut self, admin: &mut AdminQueue, command: Command) {
        // What the controller leaves out is not what it said the last time.
        self.buffer.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
        self.since = admin.nanos();
        admin.start_read(&command.with_prps(self.buffer.iova(), 0));
    }

    /// A copy of the buffer, which changes no more.
    fn data(&self) -> Box<[u64; BUFFER / 8]> {
        let mut data = Box::new([0; BUFFER / 8]);
        for (copy, word) in data.iter_mut().zip(self.buffer.iter().flatten()) {
            *copy = word.load(Ordering::Relaxed);
        }
        data
    }
}

fn is_namespace_change(event: AsyncEvent) -> bool {
    (event.event_type(), event.info()) == (AsyncEvent::TYPE_NOTICE, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED)
}

/// The log page whose reading clears an event, and how much of it is read.
fn log_of(event: AsyncEvent) -> (LogPage, u32) {
    match (event.event_type(), event.info()) {
        (AsyncEvent::TYPE_ERROR, _) => (LogPage::ERROR, size_of::<ErrorLogEntry>() as u32),
        (AsyncEvent::TYPE_SMART, _) => (LogPage::SMART, size_of::<SmartLog>() as u32),
        (AsyncEvent::TYPE_NOTICE, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED) => {
            (LogPage::CHANGED_NAMESPACES, size_of::<ChangedNamespaces>() as u32)
        }
        (AsyncEvent::TYPE_NOTICE, AsyncEvent::FIRMWARE_ACTIVATION_STARTING) => {
            (LogPage::FIRMWARE_SLOT, size_of::<FirmwareSlotLog>() as u32)
        }
        // Any part of it will do.
        _ => (event.log_page(), 512),
    }
}

/// An event with what its log page says.
fn delivered(event: AsyncEvent, data: Option<&[u8]>) -> ControllerEvent {
    let info = event.info();
    match event.event_type() {
        AsyncEvent::TYPE_ERROR => {
            let entry = read(data).filter(|entry: &ErrorLogEntry| entry.error_count > 0);
            ControllerEvent::Error { info, entry }
        }
        AsyncEvent::TYPE_SMART => ControllerEvent::Health { info, log: read(data).map(Box::new) },
        AsyncEvent::TYPE_NOTICE if is_namespace_change(event) => {
            ControllerEvent::NamespacesChanged { nsids: Vec::new(), more: true }
        }
        AsyncEvent::TYPE_NOTICE if info == AsyncEvent::FIRMWARE_ACTIVATION_STARTING => {
            ControllerEvent::FirmwareActivation { log: read(data).map(Box::new) }
        }
        _ => ControllerEvent::Other(event),
    }
}

/// Hands an event on whose log page cannot be read.
fn unread(audience: &Audience<'_>, event: AsyncEvent) {
    audience.inbox.put(delivered(event, None));
}

/// The namespaces of a Changed Namespace List, ascending, and whether there are others.
fn changed(data: Option<&[u8]>) -> (Vec<u32>, bool) {
    match read(data) {
        Some(ChangedNamespaces { nsids: list }) if list[0] != 0 && list[0] != u32::MAX => {
            let mut nsids: Vec<u32> = list.into_iter().take_while(|nsid| *nsid != 0).collect();
            nsids.retain(|nsid| *nsid != NSID_ALL);
            nsids.sort_unstable();
            nsids.dedup();
            (nsids, false)
        }
        // Too many to be named, none although there was one, or not told.
        _ => (Vec::new(), true),
    }
}

/// A namespace was identified again, or there is none any more.
fn renew(known: &Known, nsid: u32, status: Status, data: Option<&[u8]>) {
    if let Some(identity) = read(data) {
        known.renew(nsid, Some(&identity));
    } else if status.code() == Status::INVALID_NAMESPACE_OR_FORMAT.code() {
        known.renew(nsid, None);
    }
}

fn read<T: FromBytes>(data: Option<&[u8]>) -> Option<T> {
    T::read_from_prefix(data?).ok().map(|(log, _)| log)
}
