//! One request: how it is drawn, and what is kept of it until it is over.
//!
//! Knows what is asked for; must not know how it is carried out.

use std::ops::Range;

use kiovec::memory::{MemoryChain, RawCommands};
use kiovec::spec::{Command, io_opcode};
use kiovec::{IoContainer, Operation, Target};

use crate::bench::Bench;
use crate::memory::Parts;
use crate::model::Write;
use crate::reach::Point;
use crate::tree::Tree;

/// A request that is under way.
#[derive(Debug)]
pub struct Live {
    /// Its number, which no other has.
    pub tag: u64,
    /// Where it went to.
    pub volume: usize,
    /// The poller.
    pub station: usize,
    /// What is asked for; `Raw` is a compare.
    pub operation: Operation,
    /// The first block.
    pub lba: u64,
    /// How many; none for a flush.
    pub blocks: u64,
    /// What it writes.
    pub write: Option<Write>,
    /// When it was submitted, on the model's clock.
    pub since: u64,
    /// The turn in which it was.
    pub turn: u64,
    /// Neither split nor merged; nor copied: somebody may refuse it for that.
    pub fussy: bool,
    /// It cannot succeed.
    pub must_fail: bool,
    /// How often it is submitted again.
    pub again: u64,
    /// Memory that it has.
    pub parts: Parts,
    /// Its event's node, if it is one.
    pub node: Option<usize>,
    /// The node of the event that counts it, if one does.
    pub counted: Option<usize>,
    /// Parts of it that are observed.
    pub observers: Vec<Observer>,
    /// Blocks that an observer saw done, and how many losses of a cache were told by then.
    pub known: Vec<(Range<u64>, u64)>,
}

/// A part of a request that is observed.
#[derive(Debug)]
pub struct Observer {
    /// Its event's node.
    pub node: usize,
    /// Bytes of the request's memory.
    pub bytes: Range<usize>,
    /// It was seen done.
    pub told: bool,
}

impl Live {
    /// Its blocks.
    pub fn range(&self) -> Range<u64> {
        self.lba..self.lba + self.blocks
    }

    /// Whether it flushes a volume.
    pub fn is_flush_of(&self, volume: usize) -> bool {
        self.operation == Operation::Flush && self.volume == volume
    }

    /// Whether it leaves something on its blocks.
    pub fn writes(&self) -> bool {
        matches!(self.operation, Operation::Write | Operation::WriteZeroes | Operation::Deallocate)
    }
}

impl Bench {
    /// Draws a request to some volume of a poller.
    pub fn draw(&mut self, station: usize) -> Result<(Live, Target, IoContainer), String> {
        let reachable: Vec<(usize, Target)> = (self.volumes.iter().enumerate())
            .flat_map(|(number, volume)| volume.ways.iter().map(move |way| (number, *way)))
            .filter(|(_, (there, _))| *there == station)
            // A stack is worth as much as all namespaces.
            .flat_map(|(number, (_, target))| {
                let weight = if self.volumes[number].direct { 1 } else { 4 };
                std::iter::repeat_n((number, target), weight)
            })
            .collect();
        let (volume, target) = self.chance.pick(&reachable);
        let (live, io) = self.draw_to(station, volume)?;
        Ok((live, target, io))
    }

    /// Draws a request to a volume.
    pub fn draw_to(&mut self, station: usize, volume: usize) -> Result<(Live, IoContainer), String> {
        let compares = self.volumes[volume].compares;
        let operation = self.chance.weighted(&[
            (9, Operation::Write),
            (9, Operation::Read),
            (2, Operation::WriteZeroes),
            (2, Operation::Deallocate),
            (if self.volumes[volume].model.is_cached() { 3 } else { 1 }, Operation::Flush),
            (u64::from(compares), Operation::Raw),
        ]);
        let (lba, blocks) = self.place(volume, operation);
        self.tag += 1;
        self.now += 1;
        let mut live = Live {
            tag: self.tag,
            volume,
            station,
            operation,
            lba,
            blocks,
            write: None,
            since: self.now,
            turn: self.turn,
            fussy: false,
            must_fail: false,
            again: if self.chance.one_in(4) { self.chance.within(1..4) } else { 0 },
            parts: Parts::default(),
            node: None,
            counted: None,
            observers: Vec::new(),
            known: Vec::new(),
        };
        let io = self.container(&mut live)?;
        self.check_memory(&io).map_err(|why| format!("memory for request {}: {why}", live.tag))?;
        self.expect(&mut live);
        Ok((live, io))
    }

    /// Where a request goes to: behind the last one, to where everybody goes, or anywhere.
    fn place(&mut self, volume: usize, operation: Operation) -> (u64, u64) {
        if operation == Operation::Flush {
            return (0, 0);
        }
        let all = self.volumes[volume].blocks;
        let lba = match self.chance.below(8) {
            0..3 => self.volumes[volume].cursor % all,
            3..6 => self.chance.below(all.min(24)),
            _ => self.chance.below(all),
        };
        let most = match (operation, self.chance.below(10)) {
            (Operation::Raw, _) => 4096 / self.block as u64,
            (_, 0..6) => 8,
            (_, 6..9) => 80,
            _ => all,
        };
        let blocks = (1 + self.chance.below(most)).min(all - lba);
        self.volumes[volume].cursor = lba + blocks;
        (lba, blocks)
    }

    fn container(&mut self, live: &mut Live) -> Result<IoContainer, String> {
        let len = live.blocks as usize * self.block;
        let io = match live.operation {
            Operation::Read | Operation::Write => {
                let (mut memory, parts) = self
                    .memories
                    .chain(&mut self.chance, len, self.block, &mut self.reached)
                    .map_err(|error| error.to_string())?;
                live.parts = parts;
                if live.operation == Operation::Read {
                    memory.fill(0xee);
                    IoContainer::read(live.lba, memory)
                } else {
                    let write = self.write(live);
                    fill(&mut memory, write, live.lba, self.block);
                    IoContainer::write(live.lba, memory)
                }
            }
            Operation::WriteZeroes => {
                self.write(live);
                IoContainer::write_zeroes(live.lba, live.blocks)
            }
            Operation::Deallocate => {
                self.write(live);
                IoContainer::deallocate(live.lba, live.blocks)
            }
            Operation::Flush => IoContainer::flush(),
            Operation::Raw => return self.comparison(live),
        };
        let mut rarely = || self.chance.one_in(20);
        let (fua, no_merge, no_bounce, atomic) = (rarely(), rarely(), rarely(), rarely());
        live.fussy = no_bounce || atomic;
        self.reached.note_if(fua, Point::Fua);
        self.reached.note_if(no_merge, Point::NoMerge);
        Ok(io.tag(live.tag).fua(fua).no_merge(no_merge).no_bounce(no_bounce).atomic(atomic))
    }

    /// What a request writes, from now on.
    pub fn write(&mut self, live: &mut Live) -> Write {
        self.writes += 1;
        let zeros = live.operation != Operation::Write;
        let write = Write { number: self.writes, zeros, since: live.since };
        live.write = Some(write);
        let overlaps = self.volumes[live.volume].model.begin(live.range(), write);
        self.reached.note_if(overlaps, Point::Overlap);
        write
    }

    /// A compare with what is there, or with something else.
    fn comparison(&mut self, live: &mut Live) -> Result<IoContainer, String> {
        let volume = &self.volumes[live.volume];
        let Tree::Disk(disk) = volume.tree else { return Err("a compare goes to a namespace".into()) };
        let mut memory =
            self.memories.own(live.blocks as usize * self.block).map_err(|error| error.to_string())?;
        let other = self.chance.one_in(3).then(|| self.chance.below(live.blocks));
        for block in 0..live.blocks {
            let lba = live.lba + block;
            let latest = volume.model.latest(lba).filter(|_| other != Some(block));
            let write = latest.unwrap_or(Write { number: u32::MAX, zeros: false, since: 0 });
            memory.copy_from_slice(block as usize * self.block, write.contents(lba, self.block));
        }
        live.fussy = true;
        let mut command = Command::read(disk.nsid, live.lba, (live.blocks - 1) as u16);
        command.opcode = io_opcode::COMPARE;
        // SAFETY: it transfers as many blocks as the memory has, and there is no address in it.
        let trust = unsafe { RawCommands::trust() };
        Ok(IoContainer::raw(&command, memory, trust).tag(live.tag))
    }

    /// What is certain of a request as it is submitted.
    pub fn expect(&mut self, live: &mut Live) {
        let tree = &self.volumes[live.volume].tree;
        live.must_fail = tree.must_fail(&self.fates(), live.operation, &live.range());
        let lost = tree.disks().iter().any(|disk| self.plights[disk.controller].gone);
        self.reached.note_if(lost, Point::AfterLoss);
    }
}

/// Puts into memory what a write writes.
pub fn fill(memory: &mut MemoryChain, write: Write, lba: u64, block: usize) {
    for number in 0..memory.len() / block {
        memory.copy_from_slice(number * block, write.contents(lba + number as u64, block));
    }
}
