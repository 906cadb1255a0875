//! What a controller reports of its own accord, and where that waits for the application.
//!
//! Knows what an event says; must not know how it came.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::spec::{AsyncEvent, ErrorLogEntry, FirmwareSlotLog, SmartLog};

/// Events that wait for the application, at most.
const MOST: usize = 64;

/// Something that a controller reported of its own accord (Base 2.0, section 5.2), with the log page that
/// tells more of it. The log is `None` if the controller did not hand it out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ControllerEvent {
    /// An error that no command is to blame for.
    Error {
        /// Asynchronous Event Information: what kind of error, an Error status constant of [`AsyncEvent`].
        info: u8,
        /// The newest entry of the Error Information log.
        entry: Option<ErrorLogEntry>,
    },
    /// The health of the medium: see [`SmartLog::critical_warning`], its temperature and its spare.
    Health {
        /// Asynchronous Event Information: what it is about, a SMART / Health status constant of
        /// [`AsyncEvent`].
        info: u8,
        /// The SMART / Health Information log.
        log: Option<Box<SmartLog>>,
    },
    /// Namespaces were attached, detached, resized or changed otherwise. The handles that there are of them
    /// know it by now: [`Namespace::blocks`](crate::Namespace::blocks) and
    /// [`Namespace::state`](crate::Namespace::state).
    NamespacesChanged {
        /// Their NSIDs, ascending.
        nsids: Vec<u32>,
        /// Others may have changed as well, which the controller did not name.
        more: bool,
    },
    /// Other firmware is about to become active; commands may take longer meanwhile, up to MTFA of
    /// Identify Controller.
    FirmwareActivation {
        /// The Firmware Slot Information log.
        log: Option<Box<FirmwareSlotLog>>,
    },
    /// The kernel wants the PCI function back: it is being removed, or unbound from vfio-pci, or it was pulled out.
    /// The controller is lost by now, and everything in flight fails. What waits for the function goes on when all
    /// handles of the controller, and pollers with queue pairs of it, are dropped.
    ReturnRequested,
    /// The bus reported an uncorrectable error (PCI Express Advanced Error Reporting). The controller is reset, or
    /// lost if it does not answer.
    BusError,
    /// Anything else. Its log page was read and dropped, so that the controller reports the next one.
    Other(AsyncEvent),
    /// So many events came at this place while as many waited as there is room for.
    Lost(u64),
}

/// The events that the application has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<ControllerEvent>,
    /// Events since the newest of these that found no room.
    lost: u64,
}

impl Inbox {
    pub(super) fn put(&self, event: ControllerEvent) {
        let mut waiting = self.waiting();
        // Room for what was lost before it as well.
        let room = if waiting.lost > 0 { MOST - 1 } else { MOST };
        if waiting.events.len() >= room {
            waiting.lost += 1;
            return;
        }
        let lost = waiting.take_lost();
        waiting.events.extend(lost);
        waiting.events.push_back(event);
    }

    pub(super) fn take(&self) -> Option<ControllerEvent> {
        let mut waiting = self.waiting();
        waiting.events.pop_front().or_else(|| waiting.take_lost())
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take_lost(&mut self) -> Option<ControllerEvent> {
        let lost = std::mem::take(&mut self.lost);
        (lost > 0).then_some(ControllerEvent::Lost(lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(inbox: &Inbox, most: usize) -> Vec<i64> {
        let number = |event| match event {
            ControllerEvent::Other(event) => i64::from(event.0),
            ControllerEvent::Lost(count) => -(count as i64),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| inbox.take()).take(most).map(number).collect()
    }

    #[test]
    fn what_finds_no_room_is_counted_in_its_place() {
        let inbox = Inbox::default();
        let put = |range: std::ops::Range<u32>| {
            range.for_each(|number| inbox.put(ControllerEvent::Other(AsyncEvent(number))));
        };
        put(0..70);
        assert_eq!(numbers(&inbox, 1), [0]);
        // There is room for one, but not for it and for what was lost.
        put(70..71);
        assert_eq!(numbers(&inbox, 1), [1]);
        put(71..72);
        assert_eq!(numbers(&inbox, 62), (2..64).collect::<Vec<_>>());
        assert_eq!(numbers(&inbox, 9), [-7, 71]);
        put(80..82);
        assert_eq!(numbers(&inbox, 9), [80, 81]);
        put(0..65);
        assert_eq!(numbers(&inbox, 99).last(), Some(&-1));
    }
}
