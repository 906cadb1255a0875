//! The plan of what goes wrong: which commands, how often, and in what way.
//!
//! A plan is data. The controller follows it; the driver cannot tell a planned fault from a real
//! one. Knows commands, completions and what data and registers look like; must not know queues, memory
//! or time.

use std::cell::Cell;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use kiovec::spec::{Cns, Command, Completion, Status, io_opcode};

/// A set of commands, by what they have in common.
///
/// ```
/// use kiovec_emulator::Commands;
/// // Reads from queue 1 that touch any of the blocks 8 to 15.
/// let commands = Commands::reads().queue(1).lbas(8..16);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commands {
    admin: bool,
    queue: Option<u16>,
    opcode: Option<u8>,
    nsid: Option<u32>,
    /// First and last; none are meant if the last comes first.
    lbas: Option<(u64, u64)>,
}

impl Commands {
    /// All I/O commands.
    pub const fn io() -> Commands {
        Commands { admin: false, queue: None, opcode: None, nsid: None, lbas: None }
    }

    /// All Admin commands.
    pub const fn admin() -> Commands {
        Commands { admin: true, ..Commands::io() }
    }

    /// All Read commands.
    pub const fn reads() -> Commands {
        Commands::io().opcode(io_opcode::READ)
    }

    /// All Write commands.
    pub const fn writes() -> Commands {
        Commands::io().opcode(io_opcode::WRITE)
    }

    /// Those among them with this opcode.
    pub const fn opcode(self, opcode: u8) -> Commands {
        Commands { opcode: Some(opcode), ..self }
    }

    /// Those among them for this namespace.
    pub const fn nsid(self, nsid: u32) -> Commands {
        Commands { nsid: Some(nsid), ..self }
    }

    /// Those among them from this submission queue.
    pub const fn queue(self, qid: u16) -> Commands {
        Commands { queue: Some(qid), ..self }
    }

    /// Those among them that name a block in this range. Flush and Dataset Management name none: the
    /// one concerns all blocks, the other has its ranges in memory.
    pub fn lbas(self, lbas: impl RangeBounds<u64>) -> Commands {
        let first = match lbas.start_bound() {
            Bound::Included(first) => Some(*first),
            Bound::Excluded(before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match lbas.end_bound() {
            Bound::Included(last) => Some(*last),
            Bound::Excluded(after) => after.checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        Commands { lbas: first.zip(last).or(Some((1, 0))), ..self }
    }

    /// Whether a command from a submission queue is one of them.
    pub(crate) fn contain(&self, qid: u16, command: &Command) -> bool {
        self.admin == (qid == 0)
            && self.queue.is_none_or(|queue| queue == qid)
            && self.opcode.is_none_or(|opcode| opcode == command.opcode)
            && self.nsid.is_none_or(|nsid| nsid == command.nsid)
            && self.lbas.is_none_or(|lbas| qid != 0 && touches(command, lbas))
    }
}

/// Whether an I/O command names a block in a range.
fn touches(command: &Command, (first, last): (u64, u64)) -> bool {
    let names_blocks = matches!(
        command.opcode,
        io_opcode::READ
            | io_opcode::WRITE
            | io_opcode::COMPARE
            | io_opcode::VERIFY
            | io_opcode::WRITE_ZEROES
            | io_opcode::WRITE_UNCORRECTABLE
    );
    let end = command.slba().saturating_add(command.nlb().into());
    names_blocks && first <= last && command.slba() <= last && first <= end
}

/// What happens to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// It is not carried out, and completes with this status; with [`Status::SUCCESS`], too.
    Status(Status),
    /// It completes this many steps later.
    DelaySteps(u32),
    /// It completes this much later, by the controller's clock.
    Delay(Duration),
    /// It is carried out and never completes.
    Drop,
    /// Its completion is posted twice. Where the order is random, other completions may come in
    /// between, so that the second one meets another command with the same CID, or none.
    Double,
    /// Its completion is posted with those bits flipped that are set here; the right one is never
    /// posted. With [`Double`](Effect::Double), the right one follows.
    Corrupt(Completion),
    /// In place of its completion comes a fatal status (CSTS.CFS).
    Fatal,
    /// In place of its completion the device is unplugged.
    Unplug,
}

const NO_BITS: Completion = Completion { dw0: 0, dw1: 0, sq_head: 0, sq_id: 0, cid: 0, status_phase: 0 };

impl Effect {
    /// All bits of the CID are flipped.
    pub const UNKNOWN_CID: Effect = Effect::Corrupt(Completion { cid: u16::MAX, ..NO_BITS });
    /// All bits of the SQ identifier are flipped.
    pub const WRONG_SQ_ID: Effect = Effect::Corrupt(Completion { sq_id: u16::MAX, ..NO_BITS });
    /// The phase tag is flipped: the host cannot see the entry, nor any that follow it.
    pub const WRONG_PHASE: Effect = Effect::Corrupt(Completion { status_phase: 1, ..NO_BITS });
}

/// What happens to which commands, and to how many of them: to all, until it is told otherwise.
///
/// ```
/// use kiovec::spec::Status;
/// use kiovec_emulator::{Commands, Effect, Fault};
/// // Blocks 100 to 107 cannot be read, twice; then they can.
/// let weak = Commands::reads().lbas(100..108);
/// let transient = Fault::new(weak, Effect::Status(Status::UNRECOVERED_READ_ERROR)).times(2);
/// // The controller vanishes when 1000 I/O commands have come in.
/// let removal = Fault::new(Commands::io(), Effect::Unplug).after(1000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    commands: Commands,
    effect: Effect,
    after: u64,
    times: u64,
    one_in: u32,
}

impl Fault {
    /// This happens to all of these commands.
    pub const fn new(commands: Commands, effect: Effect) -> Fault {
        Fault { commands, effect, after: 0, times: u64::MAX, one_in: 1 }
    }

    /// It does not happen to the first `count` of them.
    pub const fn after(self, count: u64) -> Fault {
        Fault { after: count, ..self }
    }

    /// It happens to `count` of them at most.
    pub const fn times(self, count: u64) -> Fault {
        Fault { times: count, ..self }
    }

    /// It happens to one of them only.
    pub const fn once(self) -> Fault {
        self.times(1)
    }

    /// It happens to one in `count` of them, by chance.
    pub const fn one_in(self, count: u32) -> Fault {
        Fault { one_in: count, ..self }
    }
}

/// Bytes of Identify data in place of the right ones.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Overlay {
    cns: Cns,
    nsid: u32,
    offset: usize,
    bytes: Vec<u8>,
}

/// A register that reads as something else than it is: always, or only some of the times.
///
/// ```
/// use kiovec::spec::registers::CSTS;
/// use kiovec_emulator::{Faults, Register};
/// // From the tenth time on, CSTS.CFS (bit 1) is set.
/// let faults = Faults::default().register(Register::new(CSTS, 0b10, 0b10).after(9));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    offset: u64,
    mask: u32,
    value: u32,
    after: u64,
    times: u64,
}

impl Register {
    /// The bits of `mask`, of the 32 at this offset of BAR0, read as those of `value`. A 64-bit register
    /// is two of 32 bits.
    pub const fn new(offset: u64, mask: u32, value: u32) -> Register {
        Register { offset, mask, value, after: 0, times: u64::MAX }
    }

    /// Not the first `count` times that it is read.
    pub const fn after(self, count: u64) -> Register {
        Register { after: count, ..self }
    }

    /// `count` times at most.
    pub const fn times(self, count: u64) -> Register {
        Register { times: count, ..self }
    }
}

/// What goes wrong in a controller, for [`Emulator::set_faults`](crate::Emulator::set_faults).
///
/// Several faults may meet in one command: it can be delayed and then fail. Where they contradict
/// one another, the first one wins. With a stepped controller, the same seed and the same calls have
/// the same results.
///
/// ```
/// use kiovec::spec::Status;
/// use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
/// let emulator = Emulator::stepped(Config::default())?;
/// let bad = Fault::new(Commands::writes(), Effect::Status(Status::WRITE_FAULT)).one_in(10);
/// emulator.set_faults(Faults::seeded(42).random_order().with(bad));
/// // ... and after the test, that there were any:
/// assert_eq!(emulator.injections(), [0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    seed: u64,
    random_order: bool,
    per_step: Option<usize>,
    faults: Vec<Fault>,
    overlays: Vec<Overlay>,
    registers: Vec<Register>,
    power_loss: bool,
}

impl Faults {
    /// Nothing goes wrong, and what is left to chance follows from this seed.
    pub fn seeded(seed: u64) -> Faults {
        Faults { seed, ..Faults::default() }
    }

    /// One more fault.
    pub fn with(mut self, fault: Fault) -> Faults {
        self.faults.push(fault);
        self
    }

    /// Identify data of this CNS and NSID have these bytes at this offset; what is beyond the 4096 there
    /// are is left out. Of several for one place, the last one wins. Only what Identify says changes, not
    /// what the controller does.
    ///
    /// ```
    /// use kiovec::spec::Cns;
    /// use kiovec_emulator::Faults;
    /// // MDTS (byte 77) is 255, and namespace 2 has no blocks.
    /// let absurd = Faults::default()
    ///     .identify(Cns::CONTROLLER, 0, 77, [255])
    ///     .identify(Cns::NAMESPACE, 2, 0, [0; 16]);
    /// ```
    pub fn identify(mut self, cns: Cns, nsid: u32, offset: usize, bytes: impl Into<Vec<u8>>) -> Faults {
        self.overlays.push(Overlay { cns, nsid, offset, bytes: bytes.into() });
        self
    }

    /// A register does not read as it is.
    pub fn register(mut self, register: Register) -> Faults {
        self.registers.push(register);
        self
    }

    /// Resets, fatal statuses and the removal are losses of power: what is in the volatile write cache
    /// ([`Config::write_cache`](crate::Config::write_cache)) and was not flushed is lost, any part of it.
    pub fn power_loss(self) -> Faults {
        Faults { power_loss: true, ..self }
    }

    /// Of the commands that were fetched, each step completes some, in any order, and at least one:
    /// repeated steps complete all. Data move when a command is fetched or when it is completed.
    pub fn random_order(self) -> Faults {
        Faults { random_order: true, ..self }
    }

    /// A step completes no more commands than these, and at least one.
    pub fn completions_per_step(self, count: usize) -> Faults {
        Faults { per_step: Some(count.max(1)), ..self }
    }
}

/// Numbers by chance, the same for the same seed on every machine and for ever: SplitMix64 (Steele,
/// Lea and Flood, 2014).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// What is to happen to one command.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) status: Option<Status>,
    pub(crate) delay_steps: u32,
    pub(crate) delay: Duration,
    pub(crate) dropped: bool,
    pub(crate) doubled: bool,
    /// Bits of the completion to be flipped.
    pub(crate) flipped: Completion,
    pub(crate) fatal: bool,
    pub(crate) unplugged: bool,
    /// Data move when it is fetched, not when it is completed.
    pub(crate) early: bool,
}

impl Fate {
    /// Takes one effect more. False if there is one already that it contradicts or repeats.
    fn add(&mut self, effect: Effect) -> bool {
        let before = *self;
        match effect {
            Effect::Status(status) => self.status = self.status.or(Some(status)),
            Effect::DelaySteps(steps) => self.delay_steps = self.delay_steps.max(steps),
            Effect::Delay(delay) => self.delay = self.delay.max(delay),
            Effect::Drop => self.dropped = true,
            Effect::Double => self.doubled = true,
            Effect::Corrupt(bits) if self.flipped == NO_BITS => self.flipped = bits,
            Effect::Corrupt(_) => {}
            Effect::Fatal => self.fatal = !self.unplugged,
            Effect::Unplug => self.unplugged = !self.fatal,
        }
        *self != before
    }
}

/// A fault, and how far it has come.
#[derive(Debug)]
struct Progress {
    fault: Fault,
    random: Random,
    /// Commands that it could have happened to.
    seen: u64,
    /// Commands that it has happened to.
    struck: u64,
}

/// A plan that is being followed.
#[derive(Debug)]
pub(crate) struct Plan {
    random_order: bool,
    per_step: Option<usize>,
    order: Random,
    faults: Vec<Progress>,
    overlays: Vec<Overlay>,
    /// With the times that each was read. Reading a register changes nothing else of a controller.
    registers: Vec<(Register, Cell<u64>)>,
    power_loss: bool,
}

impl Plan {
    pub(crate) fn new(faults: Faults) -> Plan {
        let mut seeds = Random(faults.seed);
        // Each fault has numbers of its own: which commands it strikes does not depend on the others.
        let mut progress = |fault| Progress { fault, random: Random(seeds.next()), seen: 0, struck: 0 };
        Plan {
            random_order: faults.random_order,
            per_step: faults.per_step,
            faults: faults.faults.into_iter().map(&mut progress).collect(),
            order: Random(faults.seed),
            overlays: faults.overlays,
            power_loss: faults.power_loss,
            registers: faults.registers.into_iter().map(|register| (register, Cell::new(0))).collect(),
        }
    }

    /// Puts what is planned into Identify data.
    pub(crate) fn overlay(&self, command: &Command, page: &mut [u8; 4096]) {
        let cns = Cns(command.cdw10 as u8);
        for overlay in self.overlays.iter().filter(|it| (it.cns, it.nsid) == (cns, command.nsid)) {
            let there = page.get_mut(overlay.offset..).unwrap_or_default();
            for (byte, planned) in there.iter_mut().zip(&overlay.bytes) {
                *byte = *planned;
            }
        }
    }

    /// What a register reads as that is `value`.
    pub(crate) fn register(&self, offset: u64, value: u32) -> u32 {
        let mut value = value;
        for (register, read) in self.registers.iter().filter(|(register, _)| register.offset == offset) {
            let before = read.replace(read.get() + 1);
            if before >= register.after && before - register.after < register.times {
                value = value & !register.mask | register.value & register.mask;
            }
        }
        value
    }

    /// Whether nothing is planned for commands at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.faults.is_empty() && !self.random_order && self.per_step.is_none()
    }

    /// Whether what stops the controller takes its power as well.
    pub(crate) fn takes_power(&self) -> bool {
        self.power_loss
    }

    /// Commands that each fault has happened to.
    pub(crate) fn injections(&self) -> Vec<u64> {
        self.faults.iter().map(|progress| progress.struck).collect()
    }

    /// Decides what is to happen to a command.
    pub(crate) fn decide(&mut self, qid: u16, command: &Command) -> Fate {
        let early = self.random_order && self.order.below(2) == 0;
        let mut fate = Fate { early, ..Fate::default() };
        for Progress { fault, random, seen, struck } in &mut self.faults {
            if !fault.commands.contain(qid, command) {
                continue;
            }
            *seen += 1;
            if *seen > fault.after
                && *struck < fault.times
                && random.below(fault.one_in.max(1).into()) == 0
                && fate.add(fault.effect)
            {
                *struck += 1;
            }
        }
        fate
    }

    /// Puts commands that could be completed in this step into the order in which they are, and
    /// returns how many of them shall be.
    pub(crate) fn arrange<T>(&mut self, due: &mut [T]) -> usize {
        let limit = self.per_step.unwrap_or(usize::MAX).min(due.len());
        if !self.random_order || due.is_empty() {
            return limit;
        }
        for at in (1..due.len()).rev() {
            due.swap(at, self.order.below(at as u64 + 1) as usize);
        }
        1 + self.order.below(limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: Effect = Effect::Status(Status::UNRECOVERED_READ_ERROR);

    fn struck(plan: &mut Plan, commands: impl IntoIterator<Item = Command>) -> Vec<bool> {
        commands.into_iter().map(|command| plan.decide(1, &command).status.is_some()).collect()
    }

    #[test]
    fn commands_are_told_apart() {
        let read = Command::read(1, 8, 7);
        assert!(Commands::io().contain(1, &read) && Commands::reads().contain(9, &read));
        assert!(!Commands::admin().contain(1, &read) && Commands::admin().contain(0, &read));
        assert!(!Commands::writes().contain(1, &read) && !Commands::reads().queue(2).contain(1, &read));
        assert!(Commands::io().nsid(1).contain(1, &read) && !Commands::io().nsid(2).contain(1, &read));
    }

    #[test]
    fn one_block_of_a_command_is_enough() {
        let touched =
            |lbas: (Bound<u64>, Bound<u64>)| Commands::io().lbas(lbas).contain(1, &Command::read(1, 8, 7));
        let within =
            |lbas: std::ops::Range<u64>| touched((Bound::Included(lbas.start), Bound::Excluded(lbas.end)));
        assert!(within(15..16) && within(8..9) && within(0..100) && within(10..11));
        assert!(!within(0..8) && !within(16..17) && !within(9..9) && !within(0..0));
        #[expect(clippy::reversed_empty_ranges)]
        let backwards = within(12..10);
        assert!(!backwards);
        assert!(touched((Bound::Unbounded, Bound::Unbounded)));
        assert!(!touched((Bound::Excluded(u64::MAX), Bound::Unbounded)));
        assert!(Commands::io().lbas(..).contain(1, &Command::write(1, u64::MAX, 0xffff)));
        assert!(!Commands::io().lbas(..).contain(1, &Command::flush(1)));
        assert!(!Commands::io().lbas(..).contain(1, &Command::deallocate(1, 0)));
    }

    #[test]
    fn overlays_are_put_where_they_belong() {
        let faults = Faults::default()
            .identify(Cns::NAMESPACE, 1, 4094, [1, 2, 3])
            .identify(Cns::NAMESPACE, 1, 9000, [4])
            .identify(Cns::NAMESPACE, 1, 4095, [5]);
        let plan = Plan::new(faults);
        assert!(plan.is_empty());
        let ask = |cns, nsid| {
            let mut page = [0; 4096];
            plan.overlay(&Command::identify(cns, nsid, 0), &mut page);
            page[4093..].to_vec()
        };
        assert_eq!(ask(Cns::NAMESPACE, 1), [0, 1, 5]);
        assert_eq!(ask(Cns::NAMESPACE, 2), [0; 3]);
        assert_eq!(ask(Cns::CONTROLLER, 1), [0; 3]);
    }

    #[test]
    fn registers_change_for_a_while() {
        let plan = Plan::new(Faults::default().register(Register::new(8, 0xf0, 0x5f).after(1).times(2)));
        let read: Vec<u32> = (0..4).map(|_| plan.register(8, 0x1ff)).collect();
        assert_eq!(read, [0x1ff, 0x15f, 0x15f, 0x1ff]);
        assert_eq!(plan.register(4, 7), 7);
    }

    #[test]
    fn faults_are_limited_in_number() {
        let fault = Fault::new(Commands::reads(), ERROR).after(1).times(2);
        let mut plan = Plan::new(Faults::default().with(fault));
        let commands = [Command::read, Command::write, Command::read, Command::read, Command::read];
        let commands = commands.map(|command| command(1, 0, 0));
        assert_eq!(struck(&mut plan, commands), [false, false, true, true, false]);
        assert_eq!(plan.injections(), [2]);
    }

    #[test]
    fn chance_follows_from_the_seed() {
        let faults = |seed| Faults::seeded(seed).with(Fault::new(Commands::io(), ERROR).one_in(10));
        let run = |seed| struck(&mut Plan::new(faults(seed)), vec![Command::read(1, 0, 0); 10_000]);
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let count = run(3).iter().filter(|struck| **struck).count();
        assert!((900..1100).contains(&count), "{count}");
    }

    #[test]
    fn effects_meet_in_one_command_and_the_first_of_a_kind_wins() {
        let all = |effect| Fault::new(Commands::io(), effect);
        let faults = Faults::default()
            .with(all(ERROR))
            .with(all(Effect::Status(Status::WRITE_FAULT)))
            .with(all(Effect::DelaySteps(3)))
            .with(all(Effect::UNKNOWN_CID))
            .with(all(Effect::WRONG_PHASE))
            .with(all(Effect::Unplug))
            .with(all(Effect::Fatal));
        let mut plan = Plan::new(faults);
        let fate = plan.decide(1, &Command::read(1, 0, 0));
        assert_eq!((fate.status, fate.delay_steps), (Some(Status::UNRECOVERED_READ_ERROR), 3));
        assert_eq!((fate.flipped.cid, fate.flipped.status_phase), (0xffff, 0));
        assert!(fate.unplugged && !fate.fatal);
        assert_eq!(plan.injections(), [1, 0, 1, 1, 0, 1, 0]);
    }

    #[test]
    fn a_random_order_leaves_nothing_out_and_stands_still_never() {
        let mut plan = Plan::new(Faults::seeded(5).random_order().completions_per_step(4));
        let mut counts = [0; 5];
        for _ in 0..1000 {
            let mut due: Vec<u32> = (0..9).collect();
            counts[plan.arrange(&mut due)] += 1;
            due.sort_unstable();
            assert_eq!(due, (0..9).collect::<Vec<_>>());
        }
        assert!(counts[0] == 0 && counts[1..].iter().all(|count| *count > 200), "{counts:?}");
        assert_eq!(plan.arrange::<u32>(&mut []), 0);
    }
}
