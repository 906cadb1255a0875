//! PRPs and SGLs of any kind, in commands and lists of any kind, through the emulator's queues.
//!
//! It may reach a few regions of some pages each, and around each is memory that is not mapped and must stay as
//! it is. Commands go one by one: each is answered once, in bounded time; one that fails, or that takes data from
//! the host, changes nothing there; one that succeeds changes as many bytes as it transfers, at most.

use std::cell::RefCell;
use std::ptr::NonNull;

use kiovec::memory::{Attachment, DmaSpace, ExternalMemory, MemoryChain, Registration};
use kiovec::pci::Doorbell;
use kiovec_emulator::{Config, Emulator};

const PAGE: usize = 4096;
const REGIONS: usize = 3;
/// Pages of a region that are mapped, and those before and after them that are not.
const MAPPED: usize = 8;
const AROUND: usize = 4;
const CANARY: u8 = 0xca;
/// Entries of all queues.
const ENTRIES: usize = 16;
/// Commands of a run, at most.
const MOST: usize = 24;
/// Steps in which a command is over.
const STEPS: usize = 100;
/// What is on the medium.
const PATTERN: u8 = 0x5a;
const SETTINGS: [&str; 4] = [
    "size=256K,block=512,media=ram,sgl=on,queues=1,mdts=0",
    "size=1M,block=4096,media=ram,sgl=dword,queues=1,mdts=3",
    "size=256K,block=512,media=ram,sgl=off,queues=1,mdts=0",
    "size=4M,block=65536,media=null,sgl=on,queues=1,mdts=0",
];

pub fn fuzz_data_pointer(data: &[u8]) {
    thread_local!(static MEMORY: RefCell<Option<Memory>> = const { RefCell::new(None) });
    let mut memory = MEMORY.take().unwrap_or_else(Memory::new);
    let mut script = Script(data);
    let settings = SETTINGS[usize::from(script.byte() & 3)];
    memory.regions.iter_mut().for_each(|region| region.data.fill(0));
    let mut host = Host::new(settings, &mut memory);
    host.fill_medium();
    host.len = (1 + u64::from(script.byte() & 0x3f)) * host.block;
    for _ in 0..MOST {
        if script.0.is_empty() {
            break;
        }
        host.step(&mut script);
    }
    drop(host);
    memory.regions.iter().for_each(Region::check_around);
    MEMORY.set(Some(memory));
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}

#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// The pages in the middle of these are mapped.
struct Middle(NonNull<[Page]>);

// SAFETY: nothing but what reads the pages around them goes without the owner.
unsafe impl Send for Middle {}

// SAFETY: pages that are leaked, so they stay, and of those in the middle this has the only pointer.
unsafe impl ExternalMemory for Middle {
    fn memory(&mut self) -> NonNull<[u8]> {
        // SAFETY: within the pages.
        let first = unsafe { self.0.cast::<Page>().add(AROUND) };
        NonNull::slice_from_raw_parts(first.cast(), MAPPED * PAGE)
    }
}

struct Region {
    pages: NonNull<[Page]>,
    data: MemoryChain,
    iova: u64,
    _registration: Registration,
}

impl Region {
    fn new(space: &DmaSpace) -> Region {
        let pages: Vec<Page> = (0..MAPPED + 2 * AROUND).map(|_| Page([CANARY; PAGE])).collect();
        let pages = NonNull::from(Box::leak(pages.into_boxed_slice()));
        let registration = space.register(Middle(pages)).expect("memory");
        let data = registration.chain(0..MAPPED * PAGE).expect("memory");
        let iova = data.segments()[0].iova();
        Region { pages, data, iova, _registration: registration }
    }

    /// What is not mapped is as it was.
    fn check_around(&self) {
        let first = self.pages.cast::<Page>();
        for page in (0..AROUND).chain(AROUND + MAPPED..2 * AROUND + MAPPED) {
            // SAFETY: within the pages, which are leaked, and of which nobody writes this one.
            let page = unsafe { first.add(page).as_ref() };
            assert!(page.0.iter().all(|byte| *byte == CANARY), "written beyond what is mapped");
        }
    }
}

/// Lives from one run to the next.
struct Memory {
    regions: [Region; REGIONS],
    /// Submission and completion queues, of Admin and I/O commands in turn, and a buffer for the medium.
    queues: [MemoryChain; 4],
    buffer: MemoryChain,
    space: DmaSpace,
}

impl Memory {
    fn new() -> Memory {
        let space = DmaSpace::new().expect("a space");
        let queues = std::array::from_fn(|_| space.allocate(PAGE).expect("memory"));
        let buffer = space.allocate(PAGE).expect("memory");
        Memory { regions: std::array::from_fn(|_| Region::new(&space)), queues, buffer, space }
    }
}

struct Host<'a> {
    emulator: Emulator,
    memory: &'a mut Memory,
    doorbells: [Doorbell; 4],
    tails: [usize; 2],
    heads: [usize; 2],
    block: u64,
    /// Bytes that most commands move, so that descriptors can agree with it.
    len: u64,
    cid: u16,
    _attachment: Attachment,
}

impl<'a> Host<'a> {
    fn new(settings: &str, memory: &'a mut Memory) -> Host<'a> {
        let config = Config::parse(settings).expect("settings");
        let block = config.block.into();
        let emulator = Emulator::stepped(config).expect("an emulator");
        let function = emulator.function();
        let attachment = memory.space.attach(function.domain()).expect("a domain");
        memory.queues.iter_mut().for_each(|queue| queue.fill(0));
        let iova = |queue: usize| memory.queues[queue].segments()[0].iova();
        let size = ENTRIES as u64 - 1;
        let stride = 4u64 << (function.read64(0).expect("CAP") >> 32 & 15);
        let page = function.doorbells(4 * stride).expect("doorbells");
        let doorbells = std::array::from_fn(|at| page.doorbell(at as u64 * stride).expect("a doorbell"));
        function.write32(0x24, (size << 16 | size) as u32).expect("AQA");
        function.write64(0x28, iova(0)).expect("ASQ");
        function.write64(0x30, iova(1)).expect("ACQ");
        function.set_bus_master(true).expect("Bus Master");
        function.write32(0x14, 4 << 20 | 6 << 16 | 1).expect("CC");
        while function.read32(0x1c).expect("CSTS") & 1 == 0 {
            function.pause();
        }
        let (cq, sq) = ([iova(3), 0], [iova(2), 0]);
        let (tails, heads) = ([0; 2], [0; 2]);
        let mut host = Host {
            emulator,
            memory,
            doorbells,
            tails,
            heads,
            block,
            len: block,
            cid: 0,
            _attachment: attachment,
        };
        for (opcode, dptr, dw11) in [(0x05, cq, 1), (0x01, sq, 1 << 16 | 1)] {
            assert_eq!(host.run(0, [opcode, 0, 0, dptr[0], 0, dw11 << 32 | size << 16 | 1, 0, 0]), 0);
        }
        host
    }

    /// Writes to the first blocks, so that reading them changes memory.
    fn fill_medium(&mut self) {
        self.memory.buffer.fill(PATTERN);
        let iova = self.memory.buffer.segments()[0].iova();
        let blocks = (PAGE as u64 / self.block).max(1);
        for part in 0..8 {
            let second = if self.block > PAGE as u64 { return } else { 0 };
            assert_eq!(self.run(1, [0x01, 0, 0, iova, second, part * blocks, blocks - 1, 0]), 0);
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() {
            what @ 0..=0x7f => self.list(what, script),
            what => self.command(what, script),
        }
    }

    /// Writes entries of PRP lists, or descriptors of SGLs.
    fn list(&mut self, what: u8, script: &mut Script<'_>) {
        let (region, start) = (usize::from(what & 3) % REGIONS, usize::from(script.byte()));
        // At the beginning of a page, or up to its end.
        let (page, back) = (start & 7, start >> 3);
        let mut at = if what & 4 == 0 { page * PAGE + 16 * back } else { (page + 1) * PAGE - 16 * back };
        let repeat = if what & 0x40 == 0 { 1 } else { 1 + usize::from(script.byte()) * 2 };
        for _ in 0..=(what >> 3 & 7) {
            let entry = if what & 0x20 == 0 {
                self.address(script).to_le_bytes().to_vec()
            } else {
                self.descriptor(script).map(u64::to_le_bytes).concat()
            };
            for _ in 0..repeat {
                if at + entry.len() <= MAPPED * PAGE {
                    self.memory.regions[region].data.copy_from_slice(at, &entry);
                }
                at += entry.len();
            }
        }
    }

    fn command(&mut self, what: u8, script: &mut Script<'_>) {
        if what & 0x60 == 0x60 {
            return self.admin(what, script);
        }
        let opcode = [0x02, 0x01, 0x02, 0x05, 0x09, 0x08, 0x00, 0x02][usize::from(what & 7)];
        let (lba, nlb) = (u64::from(script.byte()), u64::from(script.half()));
        // As descriptors expect, or any number.
        let nlb = if what & 0x10 == 0 { self.len / self.block - 1 } else { nlb };
        let dw12 = if opcode == 0x09 { 0 } else { nlb };
        let lba = if opcode == 0x09 { 4 << 32 | nlb & 0xff } else { lba };
        let (flags, dptr) = if what & 8 == 0 {
            (0, [self.address(script), self.address(script)])
        } else {
            (1 + u64::from(what >> 5 & 1), self.descriptor(script))
        };
        let most = (nlb + 1) * self.block;
        let limit = if opcode == 0x02 { most } else { 0 };
        self.checked(1, [opcode | flags << 14, 0, 0, dptr[0], dptr[1], lba, dw12, 0], limit);
    }

    /// Identify, or Get Log Page with any length.
    fn admin(&mut self, what: u8, script: &mut Script<'_>) {
        let (opcode, dw10, most) = match what & 1 {
            0 => (0x06, u64::from(script.byte() & 7), PAGE as u64),
            _ => {
                let dwords = u64::from(script.half());
                (0x02, dwords << 16 | u64::from(1 + script.byte() % 5), (dwords + 1) * 4)
            }
        };
        let dptr = [self.address(script), self.address(script)];
        let nsid = if opcode == 6 { 1 } else { u64::from(u32::MAX) };
        self.checked_nsid(0, nsid, [opcode, 0, 0, dptr[0], dptr[1], dw10, 0, 0], most);
    }

    fn checked(&mut self, queue: usize, words: [u64; 8], most: u64) {
        self.checked_nsid(queue, 1, words, most);
    }

    /// Runs a command that may change so many bytes of the regions, if it succeeds.
    fn checked_nsid(&mut self, queue: usize, nsid: u64, mut words: [u64; 8], most: u64) {
        words[0] |= nsid << 32;
        let before = self.snapshot();
        let status = self.run(queue, words);
        let after = self.snapshot();
        let count = |(before, after): (&[u8], &[u8])| match before == after {
            true => 0,
            false => before.iter().zip(after).filter(|(before, after)| before != after).count() as u64,
        };
        let changed: u64 = before.chunks(512).zip(after.chunks(512)).map(count).sum();
        let most = if status == 0 { most } else { 0 };
        assert!(changed <= most, "{changed} bytes changed by {words:x?}, status {status:#x}");
    }

    fn snapshot(&self) -> Vec<u8> {
        self.memory.regions.iter().map(|region| region.data.to_vec()).collect::<Vec<_>>().concat()
    }

    /// An address in a region, or not far from one, or nowhere.
    fn address(&self, script: &mut Script<'_>) -> u64 {
        let (place, offset) = (script.byte(), u64::from(script.byte()));
        let offset = match offset {
            0..=63 => 64 * offset,
            64..=127 => PAGE as u64 - 8 * (offset - 63),
            128..=191 => offset - 128,
            _ => 0,
        };
        let region = &self.memory.regions;
        match usize::from(place & 3) {
            3 => match place >> 2 {
                0 => 0,
                1 => u64::MAX - 4095,
                2 => u64::MAX - 7,
                3 => 1 << 48,
                4 => region[0].iova - PAGE as u64 + offset,
                5 => region[1].iova - 8,
                6 => 1 << 63,
                _ => region[2].iova + (MAPPED * PAGE) as u64 - 8,
            },
            which => region[which].iova + u64::from(place >> 2 & 15) * PAGE as u64 + offset,
        }
    }

    fn descriptor(&self, script: &mut Script<'_>) -> [u64; 2] {
        let address = self.address(script);
        let (kind, len) = (u64::from(script.byte()), u64::from(script.half()));
        let types = [0x00, 0x20, 0x30, 0x10, 0x00, 0x30, 0x01, 0x40];
        let (kind, scale) =
            if kind < 0xf0 { (types[kind as usize & 7], kind >> 4) } else { (kind & 0x7f, 0) };
        // Multiples of 512, of 16, or anything, and now and then very many.
        let len = match scale & 3 {
            0 => match len & 7 {
                0 => self.len,
                1 => self.len / 2,
                2 => self.len - 512,
                3 => 512,
                _ => (len & 0x7f) * 512,
            },
            1 => len * 16,
            2 => len,
            _ => len << 16 | len,
        };
        [address, kind << 56 | len & 0xffff_ffff]
    }

    /// Executes a command, and returns its status.
    fn run(&mut self, queue: usize, mut words: [u64; 8]) -> u16 {
        self.cid = self.cid.wrapping_add(1) & 0x7fff;
        if words[0] >> 32 == 0 && queue == 1 {
            words[0] |= 1 << 32;
        }
        words[0] |= u64::from(self.cid) << 16;
        let bytes = words.map(u64::to_le_bytes).concat();
        self.memory.queues[2 * queue].copy_from_slice(64 * self.tails[queue], &bytes);
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES;
        self.doorbells[2 * queue].ring(self.tails[queue] as u32);
        for _ in 0..STEPS {
            self.emulator.step();
            if let Some(status) = self.reap(queue) {
                self.emulator.step();
                assert!(self.reap(queue).is_none(), "answered twice");
                return status;
            }
            self.emulator.advance(std::time::Duration::from_micros(100));
        }
        panic!("{words:x?} is not answered");
    }

    fn reap(&mut self, queue: usize) -> Option<u16> {
        // Rings go round without a word about it: the phase follows from how many there were.
        let (at, phase) = (self.heads[queue] % ENTRIES, (self.heads[queue] / ENTRIES).is_multiple_of(2));
        let mut entry = [0; 16];
        self.memory.queues[2 * queue + 1].copy_to_slice(16 * at, &mut entry);
        let [.., cid_low, cid_high, low, high] = entry;
        let status = u16::from_le_bytes([low, high]);
        if (status & 1 == 1) != phase {
            return None;
        }
        assert_eq!(u16::from_le_bytes([cid_low, cid_high]), self.cid);
        self.heads[queue] += 1;
        self.doorbells[2 * queue + 1].ring((self.heads[queue] % ENTRIES) as u32);
        Some(status >> 1)
    }
}
