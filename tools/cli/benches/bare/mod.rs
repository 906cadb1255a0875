//! A loop that keeps a queue pair of an emulated controller busy with 4 KiB reads of random blocks, with no driver
//! in it: what a driver can hope for. It checks nothing but the phase of a completion, knows its controller,
//! has set its queues up by hand, and never stops to look at anything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiovec::memory::{Attachment, DmaSpace, MemoryChain};
use kiovec::pci::{Doorbell, Function};
use kiovec::spec::registers::{self, cq_head_doorbell, sq_tail_doorbell};
use kiovec::spec::{Aqa, Cap, Cc, Command, Csts};
use kiovec_emulator::Emulator;

use crate::Failure;

/// Bytes of an I/O, which is one block.
const BYTES: usize = 4096;
/// The settings of its controller, of as many blocks as a random number's upper bits count.
pub const SETTINGS: &str = "size=1G,block=4096,media=null,mdts=9";
const BLOCK_BITS: u32 = 18;
/// How long the controller may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// A ring, or other memory that is shared with the controller, as 64-bit words.
struct Words {
    words: &'static [AtomicU64],
    iova: u64,
    /// Keeps the memory.
    _memory: MemoryChain,
}

impl Words {
    fn new(space: &DmaSpace, bytes: usize) -> Result<Words, Failure> {
        let mut memory = space.allocate(bytes)?;
        memory.fill(0);
        let iova = memory.segments().first().ok_or("no memory")?.iova();
        let first = memory.data_mut().next().ok_or("no memory")?;
        // SAFETY: whole words of a page-aligned segment that is kept beside the slice and is not looked at in any
        // other way; the slice does not leave this module, whose values keep the segment as long.
        let words = unsafe { std::slice::from_raw_parts(first.as_mut_ptr().cast(), first.len() / 8) };
        Ok(Words { words, iova, _memory: memory })
    }
}

/// The host's ends of a queue pair of as many entries each.
struct Pair {
    sq: Words,
    cq: Words,
    mask: u32,
    tail: u32,
    head: u32,
    /// The phase bit of a new completion, in its place in the upper word.
    phase: u64,
    /// The head that the controller was told last.
    told: u32,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
}

const PHASE: u64 = 1 << 48;

impl Pair {
    fn new(function: &dyn Function, space: &DmaSpace, qid: u16, entries: u32) -> Result<Pair, Failure> {
        let dstrd = Cap::from_bits(function.read64(registers::CAP)?).dstrd();
        let doorbell = |offset: u64| -> Result<Doorbell, Failure> {
            Ok(function.doorbells(offset + 4)?.doorbell(offset).ok_or("no doorbell")?)
        };
        Ok(Pair {
            sq: Words::new(space, entries as usize * 64)?,
            cq: Words::new(space, entries as usize * 16)?,
            mask: entries - 1,
            tail: 0,
            head: 0,
            phase: PHASE,
            told: 0,
            sq_doorbell: doorbell(sq_tail_doorbell(qid, dstrd))?,
            cq_doorbell: doorbell(cq_head_doorbell(qid, dstrd))?,
        })
    }

    #[inline(always)]
    fn push(&mut self, words: [u64; 8]) {
        let at = 8 * self.tail as usize;
        if let Some(entry) = self.sq.words.get(at..at + 8) {
            for (cell, word) in entry.iter().zip(words) {
                cell.store(word, Ordering::Relaxed);
            }
        }
        self.tail = (self.tail + 1) & self.mask;
    }

    /// The upper word of the next completion, if there is one.
    #[inline(always)]
    fn next(&mut self) -> Option<u64> {
        let high = self.cq.words.get(2 * self.head as usize + 1)?.load(Ordering::Acquire);
        if (high ^ self.phase) & PHASE != 0 {
            return None;
        }
        self.head = (self.head + 1) & self.mask;
        if self.head == 0 {
            self.phase ^= PHASE;
        }
        Some(high)
    }
}

/// The loop, and its controller.
pub struct Bare {
    io: Pair,
    /// Where the data of command 0 go; those of the others follow.
    data: u64,
    random: u64,
    // In the order of release: the controller forgets the memory before it goes.
    _attachment: Attachment,
    function: Arc<dyn Function>,
    _space: DmaSpace,
    _memory: MemoryChain,
}

impl Bare {
    /// Sets a queue pair up, and submits as many reads as are to be in flight.
    pub fn new(emulator: &Emulator, depth: u32) -> Result<Bare, Failure> {
        let function = emulator.function();
        let space = DmaSpace::new()?;
        let attachment = space.attach(function.domain())?;
        let admin = enable(&*function, &space)?;
        // Completions are acknowledged by halves of the queue, and one half has room for all of them.
        let io = Pair::new(&*function, &space, 1, (2 * (depth + 1)).next_power_of_two())?;
        create(admin, &*function, &io)?;
        let memory = space.allocate(depth as usize * BYTES)?;
        let data = memory.segments().first().ok_or("no memory")?.iova();
        let mut bare =
            Bare { io, data, random: 1, _attachment: attachment, function, _space: space, _memory: memory };
        (0..u64::from(depth)).for_each(|cid| bare.read(cid));
        bare.io.sq_doorbell.ring(bare.io.tail);
        Ok(bare)
    }

    #[inline(always)]
    fn read(&mut self, cid: u64) {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lba = self.random >> (64 - BLOCK_BITS);
        let data = self.data + cid * BYTES as u64;
        self.io.push([1 << 32 | cid << 16 | 2, 0, 0, data, 0, lba, 0, 0]);
    }

    /// Submits a read for each that has completed. Returns how many those were.
    #[inline(always)]
    pub fn poll(&mut self) -> u32 {
        let mut count = 0;
        while let Some(high) = self.io.next() {
            self.read(high >> 32 & 0xffff);
            count += 1;
        }
        if count > 0 {
            self.io.sq_doorbell.ring(self.io.tail);
            if (self.io.head.wrapping_sub(self.io.told) & self.io.mask) > self.io.mask / 4 {
                self.io.told = self.io.head;
                self.io.cq_doorbell.ring(self.io.head);
            }
        }
        count
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // What is in flight ends with the controller's queues.
        let _ = self.function.write32(registers::CC, 0);
        let _ = wait(&*self.function, |csts| !csts.rdy());
    }
}

/// Waits for the controller.
fn wait(function: &dyn Function, done: impl Fn(Csts) -> bool) -> Result<(), Failure> {
    let clock = function.clock();
    let end = clock.now() + PATIENCE;
    while !done(Csts::from_bits(function.read32(registers::CSTS)?)) {
        if clock.now() > end {
            return Err("the controller does not answer".into());
        }
        function.pause();
    }
    Ok(())
}

/// Entries of the Admin queues.
const ADMIN: u32 = 16;

fn enable(function: &dyn Function, space: &DmaSpace) -> Result<Pair, Failure> {
    let admin = Pair::new(function, space, 0, ADMIN)?;
    let size = (ADMIN - 1) as u16;
    function.set_bus_master(true)?;
    function.write32(registers::AQA, Aqa::new().with_asqs(size).with_acqs(size).into_bits())?;
    function.write64(registers::ASQ, admin.sq.iova)?;
    function.write64(registers::ACQ, admin.cq.iova)?;
    function.write32(registers::CC, Cc::new().with_en(true).with_iosqes(6).with_iocqes(4).into_bits())?;
    wait(function, |csts| csts.rdy())?;
    Ok(admin)
}

/// Creates I/O queue pair 1.
fn create(mut admin: Pair, function: &dyn Function, io: &Pair) -> Result<(), Failure> {
    let entries = io.mask + 1;
    for command in
        [Command::create_io_cq(1, entries, io.cq.iova), Command::create_io_sq(1, entries, io.sq.iova, 1)]
    {
        admin.push(zerocopy::transmute!(command));
        admin.sq_doorbell.ring(admin.tail);
        let end = function.clock().now() + PATIENCE;
        let high = loop {
            if let Some(high) = admin.next() {
                break high;
            }
            if function.clock().now() > end {
                return Err("the controller does not create a queue".into());
            }
            function.pause();
        };
        if high >> 49 != 0 {
            return Err(format!("the controller refuses a queue, with status {:x}h", high >> 49).into());
        }
    }
    Ok(())
}
