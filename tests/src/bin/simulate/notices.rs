//! What controllers report of their own accord: every event that is raised must reach the application.
//!
//! A controller does not report what it has reported already, and a reset ends what it was about to report. So of
//! each kind one event is certain to come at most, and others may come. Namespaces that nobody reads or writes are
//! resized, detached and attached for it. Knows what was raised and told; must not know who looks when.

use kiovec::spec::log::{WARNING_SPARE, WARNING_TEMPERATURE};
use kiovec::spec::{AsyncEvent, LogPage};
use kiovec::{Controller, ControllerEvent, Error, Namespace, NamespaceState};
use kiovec_emulator::{Emulator, Health};

use crate::chance::Chance;
use crate::reach::{Point, Reached};

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An error that no command is to blame for.
    Error,
    /// A critical warning.
    Health,
    /// A namespace was resized, detached or attached.
    Namespaces,
    /// Other firmware.
    Firmware,
    /// Anything else.
    Other,
}

impl Kind {
    /// All there are.
    pub const ALL: [Kind; 5] = [Kind::Error, Kind::Health, Kind::Namespaces, Kind::Firmware, Kind::Other];

    /// Its name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Error => "an error",
            Kind::Health => "a warning",
            Kind::Namespaces => "a changed namespace",
            Kind::Firmware => "a firmware activation",
            Kind::Other => "something else",
        }
    }

    fn of(event: &ControllerEvent) -> Option<Kind> {
        match event {
            ControllerEvent::Error { .. } => Some(Kind::Error),
            ControllerEvent::Health { .. } => Some(Kind::Health),
            ControllerEvent::NamespacesChanged { .. } => Some(Kind::Namespaces),
            ControllerEvent::FirmwareActivation { .. } => Some(Kind::Firmware),
            ControllerEvent::Other(_) => Some(Kind::Other),
            _ => None,
        }
    }

    fn point(self) -> Point {
        match self {
            Kind::Error => Point::EventError,
            Kind::Health => Point::EventHealth,
            Kind::Namespaces => Point::EventNamespaces,
            Kind::Firmware => Point::EventFirmware,
            Kind::Other => Point::EventOther,
        }
    }
}

/// What is expected of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Expected {
    /// One must come.
    due: bool,
    /// So many more may come.
    may: u64,
}

/// A namespace that changes.
#[derive(Debug)]
struct Spare {
    nsid: u32,
    blocks: u64,
    attached: bool,
    /// What the driver knows of it; none after it was detached, until it is identified anew.
    handle: Option<Namespace>,
}

/// A controller that reports.
#[derive(Debug)]
struct Reporter {
    expected: [Expected; Kind::ALL.len()],
    spare: Spare,
    resets: u64,
}

/// Those of all controllers.
#[derive(Debug, Default)]
pub struct Notices {
    reporters: Vec<Reporter>,
}

impl Notices {
    /// One controller more, with a namespace that changes.
    pub fn add(&mut self, handle: Namespace, resets: u64) {
        let (nsid, blocks) = (handle.nsid(), handle.blocks());
        let spare = Spare { nsid, blocks, attached: true, handle: Some(handle) };
        self.reporters.push(Reporter { expected: Default::default(), spare, resets });
    }

    /// Has a controller report something of a kind, unless nobody would hear of it.
    pub fn raise(&mut self, controller: usize, emulator: &Emulator, kind: Kind, chance: &mut Chance) -> bool {
        let reporter = &mut self.reporters[controller];
        reporter.notice_reset(emulator);
        if !emulator.is_listened_to() {
            return false;
        }
        match kind {
            Kind::Error => emulator.raise(AsyncEvent::new(
                AsyncEvent::TYPE_ERROR,
                AsyncEvent::TRANSIENT_INTERNAL_ERROR,
                LogPage::ERROR,
            )),
            Kind::Health => {
                let critical_warning = chance.pick(&[WARNING_SPARE, WARNING_TEMPERATURE]);
                emulator.set_health(Health::default());
                emulator.set_health(Health { critical_warning, ..Health::default() });
            }
            Kind::Namespaces => reporter.spare.change(emulator, chance),
            Kind::Firmware => emulator.activate_firmware(),
            Kind::Other => emulator.raise(AsyncEvent::new(AsyncEvent::TYPE_IO_COMMAND, 0, LogPage::ERROR)),
        }
        let expected = &mut reporter.expected[kind as usize];
        expected.may += u64::from(expected.due);
        expected.due = true;
        true
    }

    /// The application was told something: which kind of event that was.
    pub fn told(
        &mut self,
        controller: usize,
        emulator: &Emulator,
        event: &ControllerEvent,
        reached: &mut Reached,
    ) -> Result<Kind, String> {
        let reporter = &mut self.reporters[controller];
        let kind = Kind::of(event).ok_or_else(|| format!("controller {controller} reports {event:?}"))?;
        let expected = &mut reporter.expected[kind as usize];
        let certain = std::mem::take(&mut expected.due);
        let doorbells = kind == Kind::Error && emulator.counters().bad_doorbells > 0;
        if !certain && !doorbells {
            expected.may = expected.may.checked_sub(1).ok_or_else(|| {
                format!("controller {controller} is said to report {}, and did not: {event:?}", kind.name())
            })?;
        }
        reached.note(kind.point());
        reached.note_if(reporter.resets > 0, Point::EventAfterReset);
        // What is about to be told may be known already, or not yet.
        if kind == Kind::Namespaces && expected.may == 0 {
            reporter.spare.check(event, reached).map_err(|why| format!("controller {controller}: {why}"))?;
        }
        Ok(kind)
    }

    /// Identifies a namespace that was attached anew. True if that cost memory: what a controller is asked for that
    /// fails meanwhile is its own for good.
    pub fn identify(&mut self, number: usize, controller: &Controller) -> bool {
        let spare = &mut self.reporters[number].spare;
        let closed = spare.handle.as_ref().is_none_or(|handle| handle.state() != NamespaceState::Active);
        if !spare.attached || !closed || controller.check().is_err() {
            return false;
        }
        match controller.namespace(spare.nsid) {
            Ok(handle) => {
                spare.handle = Some(handle);
                false
            }
            Err(error) => !matches!(error, Error::Resetting { .. } | Error::Lost { .. }),
        }
    }

    /// What a controller has still to report.
    pub fn due(&mut self, controller: usize, emulator: &Emulator) -> Vec<Kind> {
        let reporter = &mut self.reporters[controller];
        reporter.notice_reset(emulator);
        Kind::ALL.into_iter().filter(|kind| reporter.expected[*kind as usize].due).collect()
    }

    /// Nothing more that may come can come.
    pub fn settle(&mut self, controller: usize) {
        self.reporters[controller].expected = Default::default();
    }
}

impl Expected {
    /// What had to come may come.
    fn excuse(&mut self) {
        self.may += u64::from(std::mem::take(&mut self.due));
    }
}

impl Reporter {
    /// A reset ends what was about to be reported; what was fetched before may still be told.
    fn notice_reset(&mut self, emulator: &Emulator) {
        let resets = emulator.counters().resets;
        if std::mem::replace(&mut self.resets, resets) != resets {
            self.expected.iter_mut().for_each(Expected::excuse);
        }
    }
}

impl Spare {
    /// Something happens to it.
    fn change(&mut self, emulator: &Emulator, chance: &mut Chance) {
        if !self.attached || chance.one_in(4) {
            self.attached = !self.attached;
            match self.attached {
                true => emulator.attach(self.nsid),
                false => emulator.detach(self.nsid),
            };
            return;
        }
        // Another size than before.
        self.blocks = 1 + (self.blocks + chance.below(60)) % 64;
        if !emulator.resize(self.nsid, self.blocks) {
            emulator.namespace_changed(self.nsid);
        }
    }

    /// The driver knows what has become of it.
    fn check(&mut self, event: &ControllerEvent, reached: &mut Reached) -> Result<(), String> {
        let ControllerEvent::NamespacesChanged { nsids, more } = event else { return Ok(()) };
        if !more && *nsids != [self.nsid] {
            return Err(format!("namespace {} has changed, and reported are {nsids:?}", self.nsid));
        }
        let Some(handle) = &self.handle else { return Ok(()) };
        let (state, blocks) = (handle.state(), handle.blocks());
        if !self.attached {
            reached.note_if(state == NamespaceState::Detached, Point::Detached);
        } else if state == NamespaceState::Detached {
            // It stays that, until it is identified anew.
            reached.note(Point::Attached);
            return Ok(());
        } else if blocks == self.blocks {
            reached.note(Point::Resized);
            return Ok(());
        }
        match state == NamespaceState::Detached {
            true => Ok(()),
            false => Err(format!(
                "namespace {} has {} blocks and is attached: {}; its handle has {blocks}, {state:?}",
                self.nsid, self.blocks, self.attached
            )),
        }
    }
}
