//! The Error Information log (Base 2.0, section 5.16.1.2), the list of changed namespaces (section
//! 5.16.1.5), health (section 5.16.1.3) and asynchronous events (section 5.2).
//!
//! Knows what has happened and who is to hear of it; must not know queues.

use std::collections::{BTreeSet, VecDeque};

use kiovec::spec::log::{AsyncEvent, WARNING_SPARE, WARNING_TEMPERATURE};
use kiovec::spec::{ChangedNamespaces, Command, ErrorLogEntry, LogPage, Status};
use zerocopy::FromZeros;

/// Entries of the error log.
pub(crate) const ERROR_ENTRIES: usize = 64;
/// Asynchronous Event Requests that may be outstanding.
pub(crate) const EVENT_REQUESTS: usize = 4;

/// The newest errors, newest first.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    entries: VecDeque<ErrorLogEntry>,
    count: u64,
}

impl ErrorLog {
    /// Adds an entry; the oldest makes room. Its number is filled in.
    fn add(&mut self, mut entry: ErrorLogEntry) {
        self.count += 1;
        entry.error_count = self.count;
        self.entries.truncate(ERROR_ENTRIES - 1);
        self.entries.push_front(entry);
    }

    /// Adds an entry for a command that failed.
    #[cold]
    pub(crate) fn add_failed(&mut self, sqid: u16, command: &Command, status: Status) {
        self.add(ErrorLogEntry {
            sqid,
            cid: command.cid,
            status_phase: status.0 << 1,
            parameter_error_location: 0xffff,
            // An Admin command concerns no block.
            lba: if sqid == 0 { 0 } else { command.slba() },
            nsid: command.nsid,
            ..ErrorLogEntry::default()
        });
    }

    /// Adds an entry for an error that no command made.
    pub(crate) fn add_queue_error(&mut self, qid: u16) {
        let (cid, parameter_error_location) = (0xffff, 0xffff);
        self.add(ErrorLogEntry { sqid: qid, cid, parameter_error_location, ..ErrorLogEntry::default() });
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &ErrorLogEntry> {
        self.entries.iter()
    }

    /// Entries ever added.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

/// Namespaces that have changed since the host read of them (Base 2.0, section 5.16.1.5).
#[derive(Debug, Default)]
pub(crate) struct Changed {
    nsids: BTreeSet<u32>,
}

impl Changed {
    pub(crate) fn add(&mut self, nsid: u32) {
        self.nsids.insert(nsid);
    }

    pub(crate) fn clear(&mut self) {
        self.nsids.clear();
    }

    pub(crate) fn list(&self) -> ChangedNamespaces {
        let mut list = ChangedNamespaces::new_zeroed();
        if self.nsids.len() > list.nsids.len() {
            list.nsids[0] = u32::MAX;
            return list;
        }
        for (entry, nsid) in list.nsids.iter_mut().zip(&self.nsids) {
            *entry = *nsid;
        }
        list
    }
}

/// What the SMART / Health log says of the medium, as far as it can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Critical Warning: the `WARNING_` bits of [`kiovec::spec::log`].
    pub critical_warning: u8,
    /// Composite temperature in kelvins.
    pub temperature: u16,
    /// Available spare in percent.
    pub available_spare: u8,
    /// Percentage used, which may exceed 100.
    pub percentage_used: u8,
}

impl Health {
    /// The events of the warnings that are there now and were not before: one of each kind.
    pub(crate) fn events_since(&self, before: &Health, enabled: u8) -> impl Iterator<Item = AsyncEvent> {
        let news = self.critical_warning & !before.critical_warning & enabled;
        let other = !(WARNING_SPARE | WARNING_TEMPERATURE);
        let kinds = [
            (other, AsyncEvent::RELIABILITY),
            (WARNING_TEMPERATURE, AsyncEvent::TEMPERATURE_THRESHOLD),
            (WARNING_SPARE, AsyncEvent::SPARE_BELOW_THRESHOLD),
        ];
        let event = |info| AsyncEvent::new(AsyncEvent::TYPE_SMART, info, LogPage::SMART);
        kinds.into_iter().filter(move |(bits, _)| news & bits != 0).map(move |(_, info)| event(info))
    }
}

impl Default for Health {
    fn default() -> Health {
        Health { critical_warning: 0, temperature: 300, available_spare: 100, percentage_used: 0 }
    }
}

/// Asynchronous Event Requests that wait for something to happen, and events that wait for a request.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// CIDs of the requests, oldest first.
    requests: VecDeque<u16>,
    pending: VecDeque<AsyncEvent>,
    /// By event type: that page, if the type was reported and is not reported again until it is read.
    masked: [Option<LogPage>; 8],
}

impl Events {
    /// Takes a request in.
    pub(crate) fn request(&mut self, cid: u16) -> Result<(), Status> {
        if self.requests.contains(&cid) {
            return Err(Status::COMMAND_ID_CONFLICT.with_dnr());
        }
        if self.requests.len() == EVENT_REQUESTS {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr());
        }
        self.requests.push_back(cid);
        Ok(())
    }

    /// Whether a request with this CID is outstanding.
    pub(crate) fn holds(&self, cid: u16) -> bool {
        self.requests.contains(&cid)
    }

    /// Ends a request without an event. False if there is none.
    pub(crate) fn abort(&mut self, cid: u16) -> bool {
        let at = self.requests.iter().position(|held| *held == cid);
        at.and_then(|at| self.requests.remove(at)).is_some()
    }

    /// Something has happened.
    pub(crate) fn raise(&mut self, event: AsyncEvent) {
        if !self.pending.contains(&event) {
            self.pending.push_back(event);
        }
    }

    /// What was to be reported of a page is known by now.
    pub(crate) fn forget(&mut self, page: LogPage) {
        self.pending.retain(|event| event.log_page() != page);
    }

    /// The next request that completes, and with which event.
    pub(crate) fn report(&mut self) -> Option<(u16, AsyncEvent)> {
        let ready = |event: &AsyncEvent| self.masked[usize::from(event.event_type())].is_none();
        let at = self.pending.iter().position(ready)?;
        let cid = self.requests.pop_front()?;
        let event = self.pending.remove(at)?;
        self.masked[usize::from(event.event_type())] = Some(event.log_page());
        Some((cid, event))
    }

    /// Whether [`report`](Events::report) has something.
    pub(crate) fn is_due(&self) -> bool {
        !self.requests.is_empty()
            && self.pending.iter().any(|event| self.masked[usize::from(event.event_type())].is_none())
    }

    /// A log page was read with Retain Asynchronous Event clear: its events may come again.
    pub(crate) fn acknowledge(&mut self, page: LogPage) {
        for masked in self.masked.iter_mut().filter(|masked| **masked == Some(page)) {
            *masked = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD_VALUE: AsyncEvent =
        AsyncEvent::new(AsyncEvent::TYPE_ERROR, AsyncEvent::INVALID_DOORBELL_VALUE, LogPage::ERROR);
    const BAD_REGISTER: AsyncEvent =
        AsyncEvent::new(AsyncEvent::TYPE_ERROR, AsyncEvent::INVALID_DOORBELL_REGISTER, LogPage::ERROR);

    #[test]
    fn requests_are_limited_and_distinct() {
        let mut events = Events::default();
        for cid in 0..4 {
            assert_eq!(events.request(cid), Ok(()));
        }
        assert_eq!(events.request(2), Err(Status::COMMAND_ID_CONFLICT.with_dnr()));
        assert_eq!(events.request(4), Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr()));
        assert!(events.abort(2) && !events.abort(2) && !events.holds(2));
        assert_eq!(events.request(4), Ok(()));
    }

    #[test]
    fn an_event_type_is_masked_until_its_log_page_is_read() {
        let mut events = Events::default();
        events.raise(BAD_VALUE);
        assert!(!events.is_due());
        events.request(1).unwrap();
        events.request(2).unwrap();
        assert!(events.is_due());
        assert_eq!(events.report(), Some((1, BAD_VALUE)));
        events.raise(BAD_REGISTER);
        events.raise(BAD_REGISTER);
        assert_eq!(events.report(), None);
        events.acknowledge(LogPage::SMART);
        assert_eq!(events.report(), None);
        events.acknowledge(LogPage::ERROR);
        assert_eq!(events.report(), Some((2, BAD_REGISTER)));
        events.acknowledge(LogPage::ERROR);
        assert!(!events.is_due());
    }

    #[test]
    fn a_notice_is_masked_until_its_own_page_is_read() {
        let notice = |info, page| AsyncEvent::new(AsyncEvent::TYPE_NOTICE, info, page);
        let changed = notice(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED, LogPage::CHANGED_NAMESPACES);
        let firmware = notice(AsyncEvent::FIRMWARE_ACTIVATION_STARTING, LogPage::FIRMWARE_SLOT);
        let mut events = Events::default();
        events.request(1).unwrap();
        events.request(2).unwrap();
        events.raise(changed);
        events.raise(firmware);
        assert_eq!(events.report(), Some((1, changed)));
        events.acknowledge(LogPage::FIRMWARE_SLOT);
        assert_eq!(events.report(), None);
        events.acknowledge(LogPage::CHANGED_NAMESPACES);
        assert_eq!(events.report(), Some((2, firmware)));
    }

    #[test]
    fn changed_namespaces_are_listed_until_there_are_too_many() {
        let mut changed = Changed::default();
        for nsid in [7, 3, 7] {
            changed.add(nsid);
        }
        assert_eq!(changed.list().nsids[..3], [3, 7, 0]);
        (1..=1024).for_each(|nsid| changed.add(nsid));
        assert_eq!(changed.list().nsids[1023], 1024);
        changed.add(1025);
        assert!(changed.list().overflowed() && changed.list().nsids[1] == 0);
        changed.clear();
        assert_eq!(changed.list().nsids, [0; 1024]);
    }

    #[test]
    fn a_warning_is_an_event_once() {
        let warnings = |before, now, enabled| {
            let (before, now) = (
                Health { critical_warning: before, ..Health::default() },
                Health { critical_warning: now, ..Health::default() },
            );
            now.events_since(&before, enabled).map(AsyncEvent::info).collect::<Vec<_>>()
        };
        assert_eq!(warnings(0, 0b1_1111, 0xff), [0, 1, 2]);
        assert_eq!(warnings(0, 0b1_1111, 0b1_1001), [0, 2]);
        assert!(warnings(0b1_1111, 0b1_1111, 0xff).is_empty());
        assert_eq!(warnings(0b10, 0b110, 0xff), [0]);
    }

    #[test]
    fn the_log_keeps_the_newest() {
        let mut log = ErrorLog::default();
        for cid in 0..100 {
            let command = Command { cid, ..Command::read(1, 5, 0) };
            log.add_failed(1, &command, Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        assert_eq!(log.entries().count(), ERROR_ENTRIES);
        let newest = log.entries().next().unwrap();
        assert_eq!((newest.error_count, newest.cid, newest.lba), (100, 99, 5));
        assert_eq!(newest.status(), Status::LBA_OUT_OF_RANGE.with_dnr());
    }
}
