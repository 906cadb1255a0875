//! A stack of layers: its text, and what may come of a request to it, given what goes wrong below.
//!
//! Knows what each layer promises; must not know how it keeps that.

use std::fmt::Write as _;
use std::ops::Range;

use kiovec::Operation;
use kiovec::spec::Status;

use crate::chance::Chance;
use crate::faults::{Legal, Planned};

/// Layers on each other, at most: what a request has room for.
const MOST_LAYERS: usize = 4;

/// A namespace: a controller's number, and an NSID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its controller.
    pub controller: usize,
    /// Its NSID.
    pub nsid: u32,
    /// Its blocks.
    pub blocks: u64,
}

/// A second leg that is asked when the first one is slow.
#[derive(Debug, Clone, Copy)]
pub struct Hedge {
    micros: u64,
    /// Buffers of a mirror.
    pub buffers: usize,
    blocks: u64,
}

/// A stack, with its sizes in blocks.
#[derive(Debug)]
pub enum Tree {
    /// A namespace.
    Disk(Disk),
    /// A part of what is below.
    Partition { start: u64, blocks: u64, below: Box<Tree> },
    /// `trace` or `verify`: neither moves nor hides anything.
    Filter { name: &'static str, below: Box<Tree> },
    /// Tries again.
    Retry { times: u64, delay: u64, below: Box<Tree> },
    /// Lines, and log2 of the blocks of each.
    Cache { lines: u64, shift: u64, below: Box<Tree> },
    /// RAID-0.
    Stripe { chunk: u64, legs: Vec<Tree> },
    /// RAID-1.
    Mirror { hedge: Option<Hedge>, legs: Vec<Tree> },
}

/// What has become of a controller.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plight {
    /// Nothing brings it back: it was pulled, or never gets ready any more.
    pub gone: bool,
    /// It may have been given up, after several resets.
    pub lost: bool,
    /// It was reset.
    pub reset: bool,
    /// A command has taken longer than its timeout.
    pub overdue: bool,
}

/// What goes wrong below.
pub struct Fates<'a> {
    /// The plan.
    pub plan: &'a [Planned],
    /// By controller: what has become of it.
    pub plights: &'a [Plight],
    /// No commands fail any more.
    pub cured: bool,
}

impl Fates<'_> {
    fn here(&self, disk: Disk) -> impl Iterator<Item = &Planned> {
        self.plan.iter().filter(move |planned| planned.controller == disk.controller)
    }

    /// Whether a command may fail, or always does.
    fn meets(&self, disk: Disk, operation: Operation, blocks: &Range<u64>, always: bool) -> bool {
        let fails = |planned: &Planned| match always {
            true => planned.drawn.always_fails(),
            false => matches!(planned.drawn.legal, Legal::Fails(_) | Legal::Mixes(_)),
        };
        !self.cured
            && self
                .here(disk)
                .any(|planned| fails(planned) && planned.drawn.concerns(disk.nsid, operation, blocks))
    }

    /// How many attempts can fail in all; `None` is any number.
    fn strikes(&self, disk: Disk) -> Option<u64> {
        let Plight { lost, reset, overdue, .. } = self.plights[disk.controller];
        if lost || reset || overdue {
            return None;
        }
        self.here(disk).try_fold(0, |sum, planned| match planned.drawn.legal {
            // What its queue has tried again is not tried again above.
            Legal::Fails(status) if status.crd() > 0 => None,
            Legal::Fails(status) => planned.drawn.times().filter(|_| passes(status)).map(|times| sum + times),
            // Who knows what becomes of a status that two have written to.
            Legal::Mixes(_) => None,
            Legal::Same | Legal::Sticks | Legal::Loses => Some(sum),
        })
    }

    /// Whether a controller may say this, having been told to, or by its own judgement.
    pub fn may_say(&self, status: Status, own: &[Status]) -> bool {
        let planned = self.plan.iter().filter_map(|planned| match planned.drawn.legal {
            Legal::Fails(status) => Some(status),
            _ => None,
        });
        let mixed: Vec<u16> = std::iter::once(0)
            .chain(self.plan.iter().filter_map(|planned| match planned.drawn.legal {
                Legal::Mixes(status) => Some(status.0),
                _ => None,
            }))
            .collect();
        let own = own.iter().copied().chain([Status::SUCCESS]);
        // A delay is told only to those who know of it.
        planned
            .chain(own)
            .any(|said| mixed.iter().any(|bits| Status(said.0 ^ bits).with_crd(0) == status.with_crd(0)))
    }
}

/// Whether trying again can help.
fn passes(status: Status) -> bool {
    !status.dnr() && status != Status::CAPACITY_EXCEEDED
}

impl Tree {
    /// A stack on some disks.
    pub fn draw(chance: &mut Chance, disks: &[Disk]) -> Tree {
        Tree::grow(chance, disks, MOST_LAYERS)
    }

    fn grow(chance: &mut Chance, disks: &[Disk], layers: usize) -> Tree {
        // Legs abreast take one layer for each time they are split in two.
        let needed = disks.len().next_power_of_two().ilog2() as usize;
        if layers > needed && chance.below(4) < 3 {
            let below = Tree::grow(chance, disks, layers - 1);
            return Tree::filter(chance, below);
        }
        let [_, .., _] = disks else { return Tree::Disk(disks[0]) };
        let parts: Vec<&[Disk]> = match chance.one_in(2) {
            true => disks.chunks(1).collect(),
            false => disks.chunks(disks.len().div_ceil(2)).collect(),
        };
        let legs: Vec<Tree> = parts.into_iter().map(|disks| Tree::grow(chance, disks, layers - 1)).collect();
        if chance.one_in(2) {
            let chunk = chance.within(1..40).min(smallest(&legs));
            return Tree::Stripe { chunk, legs };
        }
        let hedge = chance.one_in(2).then(|| Hedge {
            micros: chance.pick(&[0, 30, 150, 400]),
            buffers: chance.count(2..6),
            blocks: chance.within(1..16),
        });
        Tree::Mirror { hedge, legs }
    }

    fn filter(chance: &mut Chance, below: Tree) -> Tree {
        let all = below.blocks();
        let below = Box::new(below);
        match chance.below(6) {
            0 => {
                let start = all * chance.below(40) / 100;
                let blocks = (all * chance.within(30..61) / 100).max(1);
                Tree::Partition { start, blocks, below }
            }
            1 => Tree::Filter { name: "trace", below },
            2 => Tree::Filter { name: "verify", below },
            3 => Tree::Cache { lines: chance.within(1..100), shift: chance.below(5), below },
            // One in another multiplies what each does, and a block that never can be read takes for ever.
            _ if below.retries() => Tree::Filter { name: "trace", below },
            _ => Tree::Retry { times: chance.below(9), delay: chance.below(2), below },
        }
    }

    fn retries(&self) -> bool {
        match self {
            Tree::Disk(_) => false,
            Tree::Retry { .. } => true,
            Tree::Partition { below, .. } | Tree::Filter { below, .. } | Tree::Cache { below, .. } => {
                below.retries()
            }
            Tree::Stripe { legs, .. } | Tree::Mirror { legs, .. } => legs.iter().any(Tree::retries),
        }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        match self {
            Tree::Disk(disk) => disk.blocks,
            Tree::Partition { blocks, .. } => *blocks,
            Tree::Filter { below, .. } | Tree::Retry { below, .. } | Tree::Cache { below, .. } => {
                below.blocks()
            }
            Tree::Stripe { chunk, legs } => smallest(legs) / chunk * chunk * legs.len() as u64,
            Tree::Mirror { legs, .. } => smallest(legs),
        }
    }

    /// The stack as text, with disks called `controller.nsid`.
    pub fn text(&self, block: u64) -> String {
        let mut text = String::new();
        self.write(block, &mut text);
        text
    }

    fn write(&self, block: u64, text: &mut String) {
        let legs: &[Tree] = match self {
            Tree::Disk(Disk { controller, nsid, .. }) => {
                let _ = write!(text, "{controller}.{nsid}");
                return;
            }
            Tree::Partition { start, blocks, below } => {
                let _ = write!(text, "partition(start={start},blocks={blocks}");
                std::slice::from_ref(below)
            }
            Tree::Filter { name, below } => {
                let _ = write!(text, "{name}(");
                std::slice::from_ref(below)
            }
            Tree::Retry { times, delay, below } => {
                let _ = write!(text, "retry(times={times},delay={delay}");
                std::slice::from_ref(below)
            }
            Tree::Cache { lines, shift, below } => {
                let line = block << shift;
                let _ = write!(text, "cache(bytes={},line={line}", lines * line);
                std::slice::from_ref(below)
            }
            Tree::Stripe { chunk, legs } => {
                let _ = write!(text, "stripe(chunk={}", chunk * block);
                legs
            }
            Tree::Mirror { hedge, legs } => {
                text.push_str("mirror(");
                if let Some(Hedge { micros, buffers, blocks }) = hedge {
                    let _ = write!(text, "hedge={micros},buffers={buffers},buffer={}", blocks * block);
                }
                legs
            }
        };
        for leg in legs {
            text.push_str(if text.ends_with('(') { "" } else { "," });
            leg.write(block, text);
        }
        text.push(')');
    }

    /// Whether a request for these blocks may fail, as long as nobody ends it and nothing below refuses it.
    pub fn may_fail(&self, fates: &Fates<'_>, operation: Operation, blocks: &Range<u64>) -> bool {
        match self {
            Tree::Disk(disk) => {
                let Plight { lost, reset, overdue, .. } = fates.plights[disk.controller];
                let told = matches!(operation, Operation::Flush | Operation::Raw);
                lost || overdue && !fates.cured
                    || reset && told
                    || fates.meets(*disk, operation, blocks, false)
            }
            Tree::Partition { start, below, .. } => {
                below.may_fail(fates, operation, &(start + blocks.start..start + blocks.end))
            }
            // What cannot be read with its neighbours is read by itself.
            Tree::Filter { below, .. } | Tree::Cache { below, .. } => {
                below.may_fail(fates, operation, blocks)
            }
            Tree::Retry { times, below, .. } => {
                below.strikes(fates).is_none_or(|strikes| strikes > *times)
                    && below.may_fail(fates, operation, blocks)
            }
            Tree::Stripe { chunk, legs } => legs.iter().enumerate().any(|(leg, below)| {
                share(*chunk, legs.len() as u64, leg as u64, operation, blocks)
                    .is_some_and(|blocks| below.may_fail(fates, operation, &blocks))
            }),
            // A leg that fails to write may be in use no more.
            Tree::Mirror { legs, .. } => {
                legs.iter().all(|leg| leg.may_be_ejected(fates) || leg.may_fail(fates, operation, blocks))
            }
        }
    }

    /// Whether any disk may fail such a request, of whatever blocks.
    pub fn may_fail_somewhere(&self, fates: &Fates<'_>, operation: Operation) -> bool {
        self.disks().into_iter().any(|disk| Tree::Disk(disk).may_fail(fates, operation, &(0..1 << 40)))
    }

    fn may_be_ejected(&self, fates: &Fates<'_>) -> bool {
        let writes = [Operation::Write, Operation::WriteZeroes, Operation::Deallocate, Operation::Flush];
        let all = Fates { cured: false, ..*fates };
        writes.iter().any(|operation| self.may_fail(&all, *operation, &(0..1 << 40)))
    }

    /// How many attempts can fail here in all, of whatever requests; `None` is any number.
    fn strikes(&self, fates: &Fates<'_>) -> Option<u64> {
        match self {
            Tree::Disk(disk) => fates.strikes(*disk),
            Tree::Partition { below, .. } | Tree::Filter { below, .. } | Tree::Cache { below, .. } => {
                below.strikes(fates)
            }
            Tree::Retry { times, below, .. } => {
                below.strikes(fates).map(|strikes| if strikes > *times { strikes } else { 0 })
            }
            Tree::Stripe { legs, .. } => legs.iter().try_fold(0, |sum, leg| Some(sum + leg.strikes(fates)?)),
            Tree::Mirror { legs, .. } => {
                if legs.iter().any(|leg| leg.strikes(fates) == Some(0)) {
                    return Some(0);
                }
                legs.iter().try_fold(0, |sum, leg| Some(sum + leg.strikes(fates)?))
            }
        }
    }

    /// Whether a request for these blocks cannot but fail.
    pub fn must_fail(&self, fates: &Fates<'_>, operation: Operation, blocks: &Range<u64>) -> bool {
        match self {
            Tree::Disk(disk) => {
                fates.plights[disk.controller].gone || fates.meets(*disk, operation, blocks, true)
            }
            Tree::Partition { start, below, .. } => {
                below.must_fail(fates, operation, &(start + blocks.start..start + blocks.end))
            }
            Tree::Filter { below, .. } | Tree::Retry { below, .. } => {
                below.must_fail(fates, operation, blocks)
            }
            // What is in it can be read when its controller is gone; what never could be read is not in it.
            Tree::Cache { below, .. } if operation == Operation::Read => {
                let none = vec![Plight::default(); fates.plights.len()];
                let there = Fates { plights: &none, ..*fates };
                below.must_fail(&there, operation, blocks)
            }
            Tree::Cache { below, .. } => below.must_fail(fates, operation, blocks),
            Tree::Stripe { chunk, legs } => legs.iter().enumerate().any(|(leg, below)| {
                share(*chunk, legs.len() as u64, leg as u64, operation, blocks)
                    .is_some_and(|blocks| below.must_fail(fates, operation, &blocks))
            }),
            // What one leg cannot read, another can: there must be a block that none can.
            Tree::Mirror { legs, .. } if operation == Operation::Read => blocks
                .clone()
                .any(|block| legs.iter().all(|leg| leg.must_fail(fates, operation, &(block..block + 1)))),
            Tree::Mirror { legs, .. } => legs.iter().all(|leg| leg.must_fail(fates, operation, blocks)),
        }
    }

    /// All disks, from left to right.
    pub fn disks(&self) -> Vec<Disk> {
        match self {
            Tree::Disk(disk) => vec![*disk],
            Tree::Partition { below, .. }
            | Tree::Filter { below, .. }
            | Tree::Retry { below, .. }
            | Tree::Cache { below, .. } => below.disks(),
            Tree::Stripe { legs, .. } | Tree::Mirror { legs, .. } => {
                legs.iter().flat_map(Tree::disks).collect()
            }
        }
    }

    /// Buffers of the mirrors, from top to bottom and from left to right.
    pub fn buffers(&self, buffers: &mut Vec<usize>) {
        match self {
            Tree::Disk(_) => {}
            Tree::Partition { below, .. }
            | Tree::Filter { below, .. }
            | Tree::Retry { below, .. }
            | Tree::Cache { below, .. } => below.buffers(buffers),
            Tree::Stripe { legs, .. } => legs.iter().for_each(|leg| leg.buffers(buffers)),
            Tree::Mirror { hedge, legs } => {
                buffers.push(hedge.map_or(0, |hedge| hedge.buffers));
                legs.iter().for_each(|leg| leg.buffers(buffers));
            }
        }
    }

    /// Whether a block can be in several places.
    pub fn has_mirror(&self) -> bool {
        let mut buffers = Vec::new();
        self.buffers(&mut buffers);
        !buffers.is_empty()
    }

    /// Where a block is on the disks, one place for each leg of each mirror that is still in use: `in_use` is asked
    /// for each leg, by the place of its mirror from top to bottom and from left to right.
    pub fn places(
        &self,
        block: u64,
        mirror: &mut usize,
        in_use: &dyn Fn(usize, usize) -> bool,
        used: bool,
        places: &mut Vec<(Disk, u64)>,
    ) {
        match self {
            Tree::Disk(disk) => places.extend(used.then_some((*disk, block))),
            Tree::Partition { start, below, .. } => below.places(start + block, mirror, in_use, used, places),
            Tree::Filter { below, .. } | Tree::Retry { below, .. } | Tree::Cache { below, .. } => {
                below.places(block, mirror, in_use, used, places);
            }
            Tree::Stripe { chunk, legs } => {
                let (number, within) = (block / chunk, block % chunk);
                let (row, here) = (number / legs.len() as u64, number % legs.len() as u64);
                for (leg, below) in legs.iter().enumerate() {
                    let used = used && leg as u64 == here;
                    below.places(row * chunk + within, mirror, in_use, used, places);
                }
            }
            Tree::Mirror { legs, .. } => {
                let number = *mirror;
                *mirror += 1;
                for (leg, below) in legs.iter().enumerate() {
                    below.places(block, mirror, in_use, used && in_use(number, leg), places);
                }
            }
        }
    }
}

fn smallest(legs: &[Tree]) -> u64 {
    legs.iter().map(Tree::blocks).min().unwrap_or(0)
}

/// The blocks of a leg that blocks of a stripe are on; `None` if there are none. Those of all legs, for what
/// concerns no blocks.
fn share(chunk: u64, legs: u64, leg: u64, operation: Operation, blocks: &Range<u64>) -> Option<Range<u64>> {
    if operation == Operation::Flush || blocks.end - blocks.start >= 1 << 32 {
        return Some(blocks.clone());
    }
    let here = |number: &u64| number % legs == leg;
    let mut chunks = (blocks.start / chunk..blocks.end.div_ceil(chunk)).filter(here);
    let first = chunks.next()?;
    let last = chunks.next_back().unwrap_or(first);
    let within = |number: u64, at: u64| at.clamp(number * chunk, (number + 1) * chunk) - number * chunk;
    Some(first / legs * chunk + within(first, blocks.start)..last / legs * chunk + within(last, blocks.end))
}
