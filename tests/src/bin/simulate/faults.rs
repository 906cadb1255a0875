//! The faults there are, as a list, and a plan of some of them for a seed.
//!
//! An entry of [`KINDS`] is a line: its name, how bad it is, and what is drawn by chance. What is drawn says on which
//! commands it strikes, what it does to them, and which outcomes that makes legal. Knows commands and outcomes; must
//! not know the driver.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use kiovec::Operation;
use kiovec::spec::status::SCT_VENDOR;
use kiovec::spec::{Completion, Status, admin_opcode, io_opcode};
use kiovec_emulator::{Commands, Effect, Fault, Faults, Remedy};

use crate::chance::Chance;

/// How bad a fault is, which decides how often a seed has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An error or a delay.
    Mild,
    /// The controller is lost by it, or has to be given up.
    Severe,
    /// At bring-up or when queues are taken down.
    Edge,
}

/// A fault that a seed can have.
pub struct Kind {
    /// What it is called in reports.
    pub name: &'static str,
    class: Class,
    draw: fn(&mut Draw<'_>) -> Drawn,
}

const NOISE: Status = Status::new(SCT_VENDOR, 0x5a);
const NO_BITS: Completion = Completion { dw0: 0, dw1: 0, sq_head: 0, sq_id: 0, cid: 0, status_phase: 0 };
/// A bit of the CID that is the generation's at every depth.
const GENERATION: Effect = Effect::Corrupt(Completion { cid: 0x8000, ..NO_BITS });
const SQ_HEAD: Effect = Effect::Corrupt(Completion { sq_head: 0xffff, ..NO_BITS });
const RESULT: Effect = Effect::Corrupt(Completion { dw0: 0xdead_beef, dw1: 0xffff_ffff, ..NO_BITS });
const FALSE_ERROR: Effect = Effect::Corrupt(Completion { status_phase: NOISE.0 << 1, ..NO_BITS });

use Class::{Edge, Mild, Severe};

const fn kind(name: &'static str, class: Class, draw: fn(&mut Draw<'_>) -> Drawn) -> Kind {
    Kind { name, class, draw }
}

/// Faults of a plan that strike for certain, soon, and wherever there is traffic; there is a kind that always fits.
const SURE: usize = 4;

/// All there are.
pub const KINDS: &[Kind] = &[
    kind("read error", Mild, |d| d.of(Operation::Read).fails(Status::UNRECOVERED_READ_ERROR)),
    kind("write fault", Mild, |d| d.of(Operation::Write).fails(Status::WRITE_FAULT)),
    kind("write zeroes error", Mild, |d| d.of(Operation::WriteZeroes).fails(Status::WRITE_FAULT)),
    kind("deallocate error", Mild, |d| d.of(Operation::Deallocate).fails(Status::INTERNAL_ERROR)),
    kind("flush error", Mild, |d| d.of(Operation::Flush).fails(Status::INTERNAL_ERROR)),
    kind("compare error", Mild, |d| d.of(Operation::Raw).fails(Status::UNRECOVERED_READ_ERROR)),
    kind("internal error", Mild, |d| d.any().fails(Status::INTERNAL_ERROR)),
    kind("error with Do Not Retry", Mild, |d| d.any().fails(Status::INTERNAL_ERROR.with_dnr())),
    kind("namespace not ready", Mild, |d| d.any().fails(Status::NAMESPACE_NOT_READY)),
    kind("command interrupted", Mild, |d| d.any().fails(Status::COMMAND_INTERRUPTED)),
    kind("lasting error", Mild, |d| d.of(Operation::Write).fails(Status::CAPACITY_EXCEEDED)),
    kind("vendor's error", Mild, |d| d.any().fails(Status::new(SCT_VENDOR, 1))),
    kind("false error", Mild, |d| d.any().does(FALSE_ERROR).which_fails(NOISE)),
    kind("delay by steps", Mild, |d| {
        let steps = d.chance.within(1..60) as u32;
        d.any().does(Effect::DelaySteps(steps))
    }),
    kind("delay by time", Mild, |d| {
        let micros = d.chance.within(1..20_000);
        d.any().does(Effect::Delay(Duration::from_micros(micros)))
    }),
    kind("a retry delay asked for", Mild, |d| {
        let crd = d.chance.within(1..4) as u8;
        d.counted().fails(Status::COMMAND_INTERRUPTED.with_crd(crd))
    }),
    kind("doubled completion", Mild, |d| d.any().does(Effect::Double)),
    kind("unknown CID before the right one", Mild, |d| {
        d.counted().does(Effect::UNKNOWN_CID).does(Effect::Double)
    }),
    kind("wrong queue before the right one", Mild, |d| {
        d.counted().does(Effect::WRONG_SQ_ID).does(Effect::Double)
    }),
    kind("wrong generation before the right one", Mild, |d| {
        d.counted().does(GENERATION).does(Effect::Double)
    }),
    kind("SQ head out of range", Mild, |d| d.any().does(SQ_HEAD)),
    kind("noise in the result", Mild, |d| d.any().does(RESULT)),
    kind("commands held back", Mild, |d| d.act(Act::Hold)),
    kind("completions in any order", Mild, |d| d.act(Act::Order)),
    kind("few completions at a time", Mild, |d| d.act(Act::Squeeze)),
    kind("far too late", Severe, |d| {
        let millis = d.chance.within(30..300);
        let times = d.chance.within(1..4);
        Drawn { times: Some(times), ..d.once() }.does(Effect::Delay(Duration::from_millis(millis)))
    }),
    kind("Aborts that take long", Severe, |d| {
        let millis = d.chance.within(1..80);
        d.admin(admin_opcode::ABORT).does(Effect::Delay(Duration::from_millis(millis)))
    }),
    kind("Aborts without an answer", Severe, |d| d.admin(admin_opcode::ABORT).does(Effect::Drop)),
    kind("fatal status in a reset", Severe, |d| d.in_reset().does(Effect::Fatal)),
    kind("removal in a reset", Severe, |d| d.in_reset().does(Effect::Unplug).which_loses()),
    kind("dropped completion", Severe, |d| d.once().does(Effect::Drop).which_sticks()),
    kind("unknown CID", Severe, |d| d.once().does(Effect::UNKNOWN_CID).which_sticks()),
    kind("wrong generation", Severe, |d| d.once().does(GENERATION).which_sticks()),
    kind("wrong queue", Severe, |d| d.once().does(Effect::WRONG_SQ_ID).which_sticks()),
    kind("wrong phase", Severe, |d| d.once().does(Effect::WRONG_PHASE).which_sticks()),
    kind("fatal status by a command", Severe, |d| d.once().does(Effect::Fatal).which_loses()),
    kind("removal by a command", Severe, |d| d.once().does(Effect::Unplug).which_loses()),
    kind("fatal status at some time", Severe, |d| d.act(Act::Fail)),
    kind("removal at some time", Severe, |d| d.act(Act::Unplug)),
    kind("power lost at some time", Severe, |d| d.act(Act::Power)),
    kind("failed until its function is reset", Severe, |d| d.act(Act::Hang(Remedy::FunctionReset))),
    kind("failed for good", Severe, |d| d.act(Act::Hang(Remedy::None))),
    kind("bring-up: command error", Edge, |d| d.act(Act::BringUp(Effect::Status(Status::INTERNAL_ERROR)))),
    kind("bring-up: no completion", Edge, |d| d.act(Act::BringUp(Effect::Drop))),
    kind("bring-up: unknown CID", Edge, |d| d.act(Act::BringUp(Effect::UNKNOWN_CID))),
    kind("bring-up: fatal status", Edge, |d| d.act(Act::BringUp(Effect::Fatal))),
    kind("bring-up: never ready", Edge, |d| d.act(Act::NeverReady)),
    kind("bring-up: removal", Edge, |d| d.act(Act::BringUp(Effect::Unplug))),
    kind("teardown: command error", Edge, |d| d.act(Act::TearDown(Effect::Status(Status::INTERNAL_ERROR)))),
    kind("teardown: no completion", Edge, |d| d.act(Act::TearDown(Effect::Drop))),
    kind("teardown: fatal status", Edge, |d| d.act(Act::TearDown(Effect::Fatal))),
    kind("teardown: removal", Edge, |d| d.act(Act::TearDown(Effect::Unplug))),
];

/// Something that happens once, not to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Commands are fetched and not carried out, for a while.
    Hold,
    /// Completions come in any order.
    Order,
    /// Few completions come in each step.
    Squeeze,
    /// CSTS.CFS.
    Fail,
    /// The device is pulled.
    Unplug,
    /// The power fails for a moment.
    Power,
    /// CSTS.CFS, and it does not get ready again until something helps.
    Hang(Remedy),
    /// An Admin command meets this while the controller is brought up, which fails; the next time, it succeeds.
    BringUp(Effect),
    /// A controller that never becomes ready.
    NeverReady,
    /// All Admin commands meet this when queues are taken down.
    TearDown(Effect),
}

/// Which commands a fault can strike.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// `Raw` stands for Compare, which is the only raw command.
    operation: Option<Operation>,
    /// Admin commands with this opcode.
    admin: Option<u8>,
    nsid: Option<u32>,
    lbas: Option<Range<u64>>,
}

/// Which outcomes it makes legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Legal {
    /// Whatever would be without it.
    Same,
    /// A request that it strikes may fail so.
    Fails(Status),
    /// The same; and a status that comes of another fault may be mixed with it.
    Mixes(Status),
    /// A command never ends, until its controller is given up.
    Sticks,
    /// The controller is lost.
    Loses,
}

/// A fault that was drawn.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// Where it strikes.
    pub scope: Scope,
    effects: Vec<Effect>,
    act: Option<Act>,
    /// What may come of it.
    pub legal: Legal,
    after: u64,
    /// `None` is always.
    times: Option<u64>,
    one_in: u32,
}

/// What faults are drawn from.
pub struct Draw<'a> {
    chance: &'a mut Chance,
    /// Blocks of a namespace.
    blocks: u64,
    namespaces: u32,
    /// Commands that a controller gets, for all that is known.
    commands: u64,
    /// It is to strike for certain.
    sure: bool,
}

impl Draw<'_> {
    fn drawn(&self, scope: Scope) -> Drawn {
        let legal = Legal::Same;
        Drawn { scope, effects: Vec::new(), act: None, legal, after: 0, times: None, one_in: 1 }
    }

    fn act(&mut self, act: Act) -> Drawn {
        // What ends a controller ends it when other faults have had their time.
        let from = if matches!(act, Act::Fail | Act::Unplug | Act::Power | Act::Hang(_)) { 90 } else { 20 };
        let after = self.chance.within(from..190);
        Drawn { act: Some(act), after, ..self.drawn(Scope::default()) }
    }

    /// Any I/O commands.
    fn any(&mut self) -> Drawn {
        self.on(None)
    }

    /// Commands of an operation.
    fn of(&mut self, operation: Operation) -> Drawn {
        self.on(Some(operation))
    }

    fn on(&mut self, operation: Option<Operation>) -> Drawn {
        if self.sure {
            return self.counted();
        }
        let names_blocks = !matches!(operation, Some(Operation::Flush | Operation::Deallocate));
        let lbas = (names_blocks && self.chance.one_in(2)).then(|| {
            let first = self.chance.below(self.blocks);
            let most = self.chance.pick(&[2, 5, 60, 1000]);
            first..first + self.chance.within(1..most)
        });
        let nsid = self.chance.one_in(3).then(|| 1 + self.chance.below(self.namespaces.into()) as u32);
        let narrow = lbas.as_ref().is_some_and(|lbas| lbas.end - lbas.start < 5);
        let mut drawn = self.drawn(Scope { operation, admin: None, nsid, lbas });
        match self.chance.below(8) {
            0 | 1 if narrow => {}
            0..4 => drawn.times = Some(self.chance.within(1..5)),
            4..6 => drawn.one_in = self.chance.within(3..40) as u32,
            _ => {
                drawn.times = Some(self.chance.within(1..9));
                drawn.one_in = self.chance.within(2..10) as u32;
            }
        }
        drawn.after = self.chance.pick(&[0, 0, 5, 40]);
        // What always happens happens from the beginning.
        if drawn.times.is_none() && drawn.one_in == 1 {
            drawn.after = 0;
        }
        drawn
    }

    /// Some of all commands, soon; of several effects, all strike the same.
    fn counted(&mut self) -> Drawn {
        let (after, times) = (self.chance.below(12), Some(self.chance.within(1..5)));
        Drawn { after, times, ..self.drawn(Scope::default()) }
    }

    /// Some Admin commands.
    fn admin(&mut self, opcode: u8) -> Drawn {
        let times = Some(self.chance.within(1..4));
        let scope = Scope { admin: Some(opcode), ..Scope::default() };
        Drawn { times, ..self.drawn(scope) }
    }

    /// The command by which a controller is told how many queues there are.
    fn in_reset(&mut self) -> Drawn {
        Drawn { times: Some(1), ..self.admin(admin_opcode::SET_FEATURES) }
    }

    /// One command, when others have had their time.
    fn once(&mut self) -> Drawn {
        let after = self.chance.within(self.commands / 4..self.commands);
        Drawn { after, times: Some(1), ..self.drawn(Scope::default()) }
    }
}

impl Drawn {
    fn does(mut self, effect: Effect) -> Drawn {
        self.effects.push(effect);
        self
    }

    fn fails(self, status: Status) -> Drawn {
        Drawn { legal: Legal::Fails(status), ..self.does(Effect::Status(status)) }
    }

    fn which_fails(self, status: Status) -> Drawn {
        Drawn { legal: Legal::Mixes(status), ..self }
    }

    fn which_sticks(self) -> Drawn {
        Drawn { legal: Legal::Sticks, ..self }
    }

    fn which_loses(self) -> Drawn {
        Drawn { legal: Legal::Loses, ..self }
    }

    /// Whether it can strike a command for these blocks of a namespace.
    pub fn concerns(&self, nsid: u32, operation: Operation, blocks: &Range<u64>) -> bool {
        let Scope { operation: only, nsid: here, lbas, admin } = &self.scope;
        let names_blocks = !matches!(operation, Operation::Flush | Operation::Deallocate);
        admin.is_none()
            && only.is_none_or(|only| only == operation)
            && here.is_none_or(|here| here == nsid)
            && lbas
                .as_ref()
                .is_none_or(|lbas| names_blocks && blocks.start < lbas.end && lbas.start < blocks.end)
    }

    /// How often it can strike; `None` is any number of times.
    pub fn times(&self) -> Option<u64> {
        self.times
    }

    /// It strikes every command that it concerns, and fails it.
    pub fn always_fails(&self) -> bool {
        let always = self.times.is_none() && self.after == 0 && self.one_in == 1;
        always && matches!(self.legal, Legal::Fails(_))
    }

    fn corrupts(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Corrupt(_)))
    }

    fn commands(&self) -> Commands {
        if let Some(opcode) = self.scope.admin {
            return Commands::admin().opcode(opcode);
        }
        let commands = match self.scope.operation {
            None => Commands::io(),
            Some(Operation::Read) => Commands::reads(),
            Some(Operation::Write) => Commands::writes(),
            Some(Operation::WriteZeroes) => Commands::io().opcode(io_opcode::WRITE_ZEROES),
            Some(Operation::Deallocate) => Commands::io().opcode(io_opcode::DATASET_MANAGEMENT),
            Some(Operation::Flush) => Commands::io().opcode(io_opcode::FLUSH),
            Some(Operation::Raw) => Commands::io().opcode(io_opcode::COMPARE),
        };
        let commands = self.scope.nsid.map_or(commands, |nsid| commands.nsid(nsid));
        match &self.scope.lbas {
            Some(lbas) => commands.lbas(lbas.clone()),
            None => commands,
        }
    }

    fn faults(&self) -> impl Iterator<Item = Fault> {
        let fault = |effect: &Effect| {
            let fault = Fault::new(self.commands(), *effect).after(self.after).one_in(self.one_in);
            self.times.map_or(fault, |times| fault.times(times))
        };
        self.effects.iter().map(fault)
    }
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.act {
            Some(act) => write!(f, "{act:?}, from request {} on", self.after),
            None => {
                let Drawn { scope, effects, after, times, one_in, .. } = self;
                write!(f, "{effects:?} {scope:?} after {after}, {times:?} times, one in {one_in}")
            }
        }
    }
}

/// A fault of a seed's plan, and what has become of it.
#[derive(Debug)]
pub struct Planned {
    /// Its place in [`KINDS`].
    pub kind: usize,
    /// Where it is to happen.
    pub controller: usize,
    /// What was drawn.
    pub drawn: Drawn,
    /// How often it happened.
    pub struck: u64,
}

impl Planned {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        KINDS[self.kind].name
    }

    /// An act that is due once so many requests have been submitted, and has not been done.
    pub fn due(&self, submitted: u64) -> Option<Act> {
        self.drawn.act.filter(|act| {
            let timed = matches!(act, Act::Hold | Act::Fail | Act::Unplug | Act::Power | Act::Hang(_));
            timed && self.struck == 0 && submitted >= self.drawn.after
        })
    }

    /// Whether it strikes while a controller is set up after a reset.
    pub fn is_in_reset(&self) -> bool {
        self.drawn.scope.admin == Some(admin_opcode::SET_FEATURES)
    }

    /// By which Command Retry Delay it has a command sent again, if it does.
    pub fn retry_delay(&self) -> Option<usize> {
        match self.drawn.legal {
            Legal::Fails(status) => usize::from(status.crd()).checked_sub(1),
            _ => None,
        }
    }

    /// How many requests or commands it lets pass.
    pub fn drawn_after(&self) -> u64 {
        self.drawn.after
    }

    /// An act, whenever it is due.
    pub fn act(&self) -> Option<Act> {
        self.drawn.act
    }
}

/// Draws a plan for controllers with so many namespaces of so many blocks each.
pub fn draw(chance: &mut Chance, controllers: &[(u32, u64)], commands: u64) -> Vec<Planned> {
    let mut plan = Vec::new();
    let add = |plan: &mut Vec<Planned>, chance: &mut Chance, class: Class, sure: bool| {
        let kinds: Vec<usize> = (0..KINDS.len()).filter(|kind| KINDS[*kind].class == class).collect();
        let controller = chance.count(0..controllers.len());
        let (namespaces, blocks) = controllers[controller];
        let kind = chance.pick(&kinds);
        let drawn = (KINDS[kind].draw)(&mut Draw { chance, blocks, namespaces, commands, sure });
        let here = |planned: &Planned| planned.controller == controller && planned.drawn.corrupts();
        // Of two that corrupt the same completion one would be lost, and come later by itself.
        let fits = !(drawn.corrupts() && plan.iter().any(here));
        if fits {
            plan.push(Planned { kind, controller, drawn, struck: 0 });
        }
        fits
    };
    for _ in 0..SURE {
        while !add(&mut plan, chance, Mild, true) {}
    }
    for _ in 0..chance.below(5) {
        add(&mut plan, chance, Mild, false);
    }
    for _ in 0..chance.pick(&[0, 0, 1, 1, 2]) {
        add(&mut plan, chance, Severe, false);
    }
    for _ in 0..chance.pick(&[0, 0, 1]) {
        add(&mut plan, chance, Edge, false);
    }
    plan
}

/// Commands of a controller that are held back once so many requests have been submitted.
pub fn hold(controller: usize, after: u64) -> Planned {
    let is_hold = |kind: &Kind| kind.name == "commands held back";
    let drawn = Drawn {
        scope: Scope::default(),
        effects: Vec::new(),
        act: Some(Act::Hold),
        legal: Legal::Same,
        after,
        times: None,
        one_in: 1,
    };
    Planned { kind: KINDS.iter().position(is_hold).unwrap_or(0), controller, drawn, struck: 0 }
}

/// The plan of one controller, for its emulator.
pub fn faults(plan: &[Planned], controller: usize, seed: u64) -> Faults {
    let here = || plan.iter().filter(|planned| planned.controller == controller);
    let has = |act| here().any(|planned| planned.drawn.act == Some(act));
    let mut faults = Faults::seeded(seed);
    if has(Act::Order) {
        faults = faults.random_order();
    }
    if has(Act::Squeeze) {
        faults = faults.completions_per_step(2);
    }
    here().flat_map(|planned| planned.drawn.faults()).fold(faults, Faults::with)
}

/// Takes over how often the faults of a controller have struck, from its emulator's list.
pub fn count(plan: &mut [Planned], controller: usize, injections: &[u64]) {
    let mut at = 0;
    for planned in plan.iter_mut().filter(|planned| planned.controller == controller) {
        let effects = planned.drawn.effects.len();
        if effects > 0 {
            planned.struck = injections[at..at + effects].iter().copied().max().unwrap_or(0);
        }
        at += effects;
    }
}
