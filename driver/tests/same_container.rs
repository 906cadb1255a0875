//! Layers that neither split nor merge pass the same container: one place in memory, from the caller to
//! the queue and back, with no allocation and no reference count on the way.
//!
//! That no reference count changes is proved by the processor: everything that was allocated for the
//! memory of the requests, where such counts are, is read-only while they go round.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiovec::layer::{Cx, Disk, Filter, Handle, Layer, Partition, Through, Trace, Verify};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::{Controller, Done, IoContainer, Operation, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Config, Emulator};

/// Counts allocations, each thread its own; and puts some of them apart.
struct Witness;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static VAULT: Vault = const { Vault { open: Cell::new(false), base: Cell::new(0), used: Cell::new(0) } };
}

/// Memory that can be made read-only, each thread its own. What is freed in it is not used again.
struct Vault {
    /// What this thread allocates goes into it.
    open: Cell<bool>,
    base: Cell<usize>,
    used: Cell<usize>,
}

const VAULT_SIZE: usize = 1 << 20;
/// The first address of all vaults, and how many there are. Address space only, until it is written to.
static VAULTS: (OnceLock<usize>, AtomicUsize) = (OnceLock::new(), AtomicUsize::new(0));
const MOST_VAULTS: usize = 64;

impl Vault {
    fn base(&self) -> usize {
        if self.base.get() == 0 {
            let number = VAULTS.1.fetch_add(1, Ordering::Relaxed);
            assert!(number < MOST_VAULTS);
            self.base.set(*VAULTS.0.get_or_init(reserve) + number * VAULT_SIZE);
        }
        self.base.get()
    }

    fn allocate(&self, layout: Layout) -> *mut u8 {
        let at = (self.base() + self.used.get()).next_multiple_of(layout.align()) - self.base();
        self.used.set(at + layout.size());
        if self.used.get() <= VAULT_SIZE { (self.base() + at) as *mut u8 } else { null_mut() }
    }
}

fn reserve() -> usize {
    let (how, what) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which touches nothing that exists.
    let base = unsafe { libc::mmap(null_mut(), MOST_VAULTS * VAULT_SIZE, how, what, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    base as usize
}

fn is_in_a_vault(pointer: *mut u8) -> bool {
    let vaults = |base: &usize| *base..base + MOST_VAULTS * VAULT_SIZE;
    VAULTS.0.get().is_some_and(|base| vaults(base).contains(&(pointer as usize)))
}

/// Puts everything that `f` allocates into the vault.
fn keep<T>(f: impl FnOnce() -> T) -> T {
    VAULT.with(|vault| vault.open.set(true));
    let kept = f();
    VAULT.with(|vault| vault.open.set(false));
    kept
}

/// Runs `f` with the vault locked: who writes to it then, dies.
fn locked<T>(f: impl FnOnce() -> T) -> T {
    let base = VAULT.with(Vault::base);
    let protect = |how| {
        // SAFETY: a vault is memory of this thread alone; nothing in it is written to, as the test claims.
        assert_eq!(unsafe { libc::mprotect(base as *mut _, VAULT_SIZE, how) }, 0);
    };
    protect(libc::PROT_READ);
    let result = f();
    protect(libc::PROT_READ | libc::PROT_WRITE);
    result
}

// SAFETY: the system allocator's doing, or memory of the vault, which is as large and as aligned as was
// asked for and is given out once.
unsafe impl GlobalAlloc for Witness {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        VAULT.with(|vault| match vault.open.get() {
            true => vault.allocate(layout),
            // SAFETY: the caller's promises are passed on.
            false => unsafe { System.alloc(layout) },
        })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !is_in_a_vault(pointer) {
            // SAFETY: the caller's promises are passed on.
            unsafe { System.dealloc(pointer, layout) }
        }
    }
}

#[global_allocator]
static ALLOCATOR: Witness = Witness;

/// Where things are: of a container itself, of its first and last segments, and of the memory they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    container: usize,
    segments: [usize; 2],
    iovas: [u64; 2],
    count: usize,
}

impl Place {
    fn of(io: &IoContainer) -> Place {
        let segments = io.memory().segments();
        let ends = [segments.first().unwrap(), segments.last().unwrap()];
        Place {
            container: std::ptr::from_ref(io) as usize,
            segments: ends.map(|segment| std::ptr::from_ref(segment) as usize),
            iovas: ends.map(|segment| segment.iova()),
            count: segments.len(),
        }
    }
}

/// Notes where each container is, by its tag, and that it is there every time: in a layer, down and up,
/// or in the caller's closure.
#[derive(Debug, Default)]
struct Places {
    seen: Vec<Option<Place>>,
    looks: u64,
}

impl Places {
    fn look(&mut self, io: &IoContainer) {
        let (place, tag) = (Place::of(io), io.get_tag() as usize);
        assert_eq!(*self.seen[tag].get_or_insert(place), place, "request {tag} is somewhere else");
        self.looks += 1;
    }
}

impl Filter for Places {
    fn down(&mut self, cx: &mut Cx<'_>, io: &Handle, _: usize) {
        self.look(cx.io(io));
    }

    fn up(&mut self, cx: &mut Cx<'_>, io: &Handle, _: usize) {
        self.look(cx.io(io));
    }
}

fn places<B: Layer>(below: B) -> Through<Places, B> {
    Through::over(Places { seen: vec![None; TAGS as usize], looks: 0 }, below)
}

struct Bench<L: Layer> {
    emulator: Emulator,
    space: DmaSpace,
    poller: Poller<L>,
    queue: QueueId,
    disk: Target,
}

const BLOCKS: u64 = 4096;

fn bench<L: Layer>() -> Bench<L> {
    let config = format!("size={},block=4096,media=ram", (BLOCKS + 1000) * 4096);
    let emulator = Emulator::stepped(Config::parse(&config).unwrap()).unwrap();
    let space = keep(|| DmaSpace::new().unwrap());
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(64);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(32)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { emulator, space, poller, queue, disk }
}

impl<L: Layer> Bench<L> {
    /// Lets requests go round until so many have finished; each writes, then reads what it wrote.
    fn go_round(&mut self, count: u64, mut look: impl FnMut(&Done<'_, L>)) {
        let mut left = count;
        while left > 0 {
            let done = self.poller.poll(|mut done| {
                done.result().unwrap();
                look(&done);
                again(&mut done);
                done.resubmit().unwrap();
            });
            left = left.saturating_sub(done as u64);
            self.emulator.step();
        }
    }
}

/// What was written is read; what was read gets other contents, and is written elsewhere.
fn again<L: Layer>(done: &mut Done<'_, L>) {
    let mut io = done.in_place();
    match io.operation() {
        Operation::Write => io.set_operation(Operation::Read),
        _ => {
            let lane = BLOCKS / TAGS;
            let (first, at) = (io.get_tag() * lane, io.lba() % lane);
            io.set_lba(first + (at * 5 + 3) % (lane - 8));
            io.data_mut().for_each(|data| data[0] = data[0].wrapping_add(1));
            io.set_operation(Operation::Write);
        }
    }
}

const TAGS: u64 = 18;

/// Memory of 1 segment, or of 4, in the vault.
fn memory(space: &DmaSpace, tag: u64) -> MemoryChain {
    keep(|| match tag % 3 {
        2 => (0..4).fold(MemoryChain::new(), |mut chain, _| {
            chain.append(space.allocate(8192).unwrap());
            std::mem::forget(space.allocate(4096).unwrap());
            chain
        }),
        _ => space.allocate(8192).unwrap(),
    })
}

#[test]
fn a_container_stays_where_it_is_and_nobody_counts_references() {
    let mut bench = bench();
    let disk = Disk::new(&bench.poller, bench.disk).unwrap();
    let part = Partition::new(places(disk), 500..500 + BLOCKS).unwrap();
    let verify = Verify::new(places(Trace::new(places(part)))).unwrap();
    let stack = bench.poller.add_layer(places(verify)).unwrap();
    let mut above = Places { seen: vec![None; TAGS as usize], looks: 0 };
    for tag in 0..TAGS {
        let io = IoContainer::write(tag * (BLOCKS / TAGS), memory(&bench.space, tag)).tag(tag);
        bench.poller.submit(stack, io).unwrap();
    }
    bench.go_round(1000, |done| above.look(done.io()));
    let (allocations, looks) = (ALLOCATIONS.get(), above.looks);
    let commands = bench.poller.stats(bench.queue).commands;
    locked(|| bench.go_round(10_000, |done| above.look(done.io())));
    assert_eq!(ALLOCATIONS.get() - allocations, 0, "allocations in 10,000 I/Os");
    let finished = above.looks - looks;
    assert_eq!(bench.poller.stats(bench.queue).commands - commands, finished, "one command for each");

    // Every layer saw the same container as the caller, twice each time.
    let top = bench.poller.layer(stack).unwrap();
    let middle = top.below().below();
    let lower = middle.below().below();
    let bottom = lower.below().below();
    for layer in [top.filter(), middle.filter(), lower.filter(), bottom.filter()] {
        assert_eq!(layer.seen, above.seen);
        assert_eq!(layer.looks, 2 * above.looks + TAGS);
    }
    let checks = top.below().filter().checks();
    assert!(checks.checked > 10_000 && checks.mismatches == 0, "{checks:?}");
}

/// A place in the vault is written to: then this test is no proof of anything, unless it notices.
#[test]
fn a_reference_count_that_changes_is_noticed() {
    const CHILD: &str = "KIOVEC_TEST_WRITES_TO_THE_VAULT";
    if std::env::var_os(CHILD).is_some() {
        let space = keep(|| DmaSpace::new().unwrap());
        let memory = memory(&space, 0);
        // Cutting memory in two makes two owners of its region.
        locked(|| std::mem::forget(memory.split_at(4096)));
        return;
    }
    let name = "a_reference_count_that_changes_is_noticed";
    let program = std::env::current_exe().unwrap();
    // AddressSanitizer, where the tests run under it, would turn the signal into a report of its own.
    let sanitizer = "handle_segv=0:detect_leaks=0";
    let mut child = Command::new(program);
    child.args(["--exact", name]).env(CHILD, "1").env("ASAN_OPTIONS", sanitizer);
    let child = child.output().unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{child:?}");
}

/// Commands that so many requests are, which go round through a stack.
fn commands<L: Layer>(target: impl FnOnce(&mut Poller<L>, Target) -> Target) -> (u64, u64) {
    let mut bench = bench();
    let target = target(&mut bench.poller, bench.disk);
    for tag in 0..TAGS {
        let io = IoContainer::write(tag * (BLOCKS / TAGS), memory(&bench.space, tag)).tag(tag);
        bench.poller.submit(target, io).unwrap();
    }
    let mut finished = 0;
    bench.go_round(1000, |_| finished += 1);
    let (before, allocations) = (bench.poller.stats(bench.queue).commands, ALLOCATIONS.get());
    finished = 0;
    bench.go_round(2000, |_| finished += 1);
    assert_eq!(ALLOCATIONS.get(), allocations);
    (bench.poller.stats(bench.queue).commands - before, finished)
}

#[test]
fn requests_go_round_in_place_through_any_number_of_layers() {
    fn stack<L: Layer>(build: impl FnOnce(Disk) -> L) -> (u64, u64) {
        commands(|poller, disk| {
            let stack = build(Disk::new(poller, disk).unwrap());
            poller.add_layer(stack).unwrap()
        })
    }
    fn part<B: Layer>(below: B) -> Partition<B> {
        let blocks = below.geometry().blocks;
        Partition::new(below, 3..blocks - 3).unwrap()
    }
    fn verify<B: Layer>(below: B) -> Verify<B> {
        Verify::new(below).unwrap()
    }
    let counts = [
        commands::<kiovec::layer::Direct>(|_, disk| disk),
        stack(|disk| disk),
        stack(part),
        stack(verify),
        stack(|disk| Trace::new(part(verify(disk)))),
        stack(|disk| verify(part(Trace::new(verify(part(Trace::new(disk))))))),
        stack(|disk| Trace::new(Trace::new(Trace::new(Trace::new(Trace::new(Trace::new(disk))))))),
    ];
    for (i, (commands, finished)) in counts.into_iter().enumerate() {
        assert!(finished >= 2000);
        assert_eq!(commands, finished, "stack {i}");
    }
}
