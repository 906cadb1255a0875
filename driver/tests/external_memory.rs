//! I/O to and from memory that the space did not allocate: an application's and a guest's, by itself
//! and in one chain with the space's own.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiovec::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use kiovec::memory::{DmaSpace, ExternalMemory, GuestRegistration, MemoryChain, Registration};
use kiovec::{Controller, DataForm, IoContainer, Operation, Poller, QueueOptions, Refusal, Target};
use kiovec_emulator::{Config, Emulator};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = 4096;
const BLOCK: usize = 512;

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's doing; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[derive(Clone, FromBytes, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Memory of an application, which tells when it is gone.
struct Owner {
    pages: Vec<Page>,
    gone: Arc<AtomicBool>,
}

// SAFETY: whole pages on the heap, which are not touched before the owner is dropped.
unsafe impl ExternalMemory for Owner {
    fn memory(&mut self) -> NonNull<[u8]> {
        self.pages.memory()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

const GUEST_HIGH: u64 = 1 << 32;

/// A stepped controller, and a space with memory of all kinds.
struct Bench {
    emulator: Emulator,
    poller: Poller,
    disk: Target,
    space: DmaSpace,
    registered: Option<Registration>,
    gone: Arc<AtomicBool>,
    guest: Option<GuestRegistration>,
    ram: Arc<GuestMemoryMmap>,
}

fn bench(data: DataForm) -> Bench {
    let config = Config::parse("size=16M,block=512,media=ram,sgl=on").unwrap();
    let emulator = Emulator::stepped(config).unwrap();
    let space = DmaSpace::new().unwrap();
    // One kind from before the controller came, one from after.
    let gone = Arc::<AtomicBool>::default();
    let owner = Owner { pages: vec![Page([0; PAGE]); 1024], gone: Arc::clone(&gone) };
    let registered = space.register(owner).unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(GUEST_HIGH), 4 << 20)];
    let ram = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    let guest = space.register_guest(Arc::clone(&ram)).unwrap();
    let mut poller = Poller::new(64);
    let options = QueueOptions::default().depth(4).data(data);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { emulator, poller, disk, space, registered: Some(registered), gone, guest: Some(guest), ram }
}

impl Bench {
    fn registered(&self, at: usize, len: usize) -> MemoryChain {
        self.registered.as_ref().unwrap().chain(at..at + len).unwrap()
    }

    fn guest(&self, at: u64, len: usize) -> MemoryChain {
        self.guest.as_ref().unwrap().chain(GuestAddress(at), len).unwrap()
    }

    /// Does one request, and returns its memory.
    fn run(&mut self, io: IoContainer) -> MemoryChain {
        self.poller.submit(self.disk, io).unwrap();
        let mut memory = None;
        while memory.is_none() {
            self.poller.poll(|done| {
                done.result().unwrap();
                memory = Some(done.take().into_memory());
            });
            self.emulator.step();
        }
        memory.unwrap()
    }

    /// Writes from one chain, reads into another, and compares.
    fn round_trip(&mut self, mut from: MemoryChain, mut into: MemoryChain, seed: u8) {
        let bytes: Vec<u8> =
            (0..from.len()).map(|i| (i as u8).wrapping_mul(13) ^ (i >> 8) as u8 ^ seed).collect();
        from.copy_from_slice(0, &bytes);
        into.fill(!seed);
        let from = self.run(IoContainer::write(u64::from(seed), from));
        let into = self.run(IoContainer::read(u64::from(seed), into));
        assert!(from.to_vec() == bytes, "a write leaves its memory alone");
        assert!(into.to_vec() == bytes, "read other data than was written");
    }
}

#[test]
fn every_kind_of_memory_is_written_from_and_read_into() {
    for data in [DataForm::Prp, DataForm::Sgl] {
        let mut bench = bench(data);
        // Of one page, within a 2 MiB block and across one, on pages and off them.
        for (seed, (at, len)) in [
            (0, PAGE),
            (512, 2 * PAGE),
            (100 * PAGE, 300 * PAGE),
            (PAGE + 512, 1000 * PAGE),
            (0, 1024 * PAGE),
        ]
        .into_iter()
        .enumerate()
        {
            let seed = seed as u8 * 3;
            let (registered, own) = (bench.registered(at, len), bench.space.allocate(len).unwrap());
            bench.round_trip(registered, own, seed);
            let (guest, registered) = (bench.guest(GUEST_HIGH + at as u64, len), bench.registered(at, len));
            bench.round_trip(guest, registered, seed + 1);
            let (own, guest) = (bench.space.allocate(len).unwrap(), bench.guest(GUEST_HIGH + at as u64, len));
            bench.round_trip(own, guest, seed + 2);
            let mut start = [0; 2];
            bench.ram.read_slice(&mut start, GuestAddress(GUEST_HIGH + at as u64)).unwrap();
            assert_eq!(start, [seed + 2, 13 ^ (seed + 2)], "the guest sees what was read");
        }
    }
}

#[test]
fn a_chain_may_be_of_all_kinds() {
    for (data, piece) in [(DataForm::Prp, 2 * PAGE), (DataForm::Sgl, BLOCK + 4), (DataForm::Sgl, 12)] {
        let mut bench = bench(data);
        let chain = |first: usize| {
            let pieces = (first..first + 48).map(|i| {
                let at = i * 2 * PAGE;
                match i % 4 {
                    0 => bench.space.allocate(piece).unwrap(),
                    1 => bench.registered(at, piece),
                    2 => bench.guest(at as u64, piece),
                    _ => bench.guest(GUEST_HIGH + at as u64, piece),
                }
            });
            let mut chain = MemoryChain::new();
            pieces.for_each(|piece| chain.append(piece));
            // In whole blocks, though the pieces may not be.
            let len = chain.len() / BLOCK * BLOCK;
            chain.slice(0..len)
        };
        let (from, into) = (chain(0), chain(65));
        assert!(from.segments().len() > 40);
        bench.round_trip(from, into, 77);
    }
}

#[test]
fn memory_in_flight_outlives_its_registration() {
    let mut bench = bench(DataForm::Auto);
    let (registered, guest) = (bench.registered(0, 8 * PAGE), bench.guest(0, 8 * PAGE));
    let disk = bench.disk;
    bench.ram.write_slice(&[5; 8 * PAGE], GuestAddress(0)).unwrap();
    bench.poller.submit(disk, IoContainer::write(0, guest).tag(0)).unwrap();
    bench.poller.submit(disk, IoContainer::read(1000, registered).tag(1)).unwrap();
    bench.poller.poll(|_| panic!("the controller has not been told"));
    bench.registered = None;
    bench.guest = None;
    assert!(!bench.gone.load(Ordering::Relaxed));
    // One region of the guest's has no segments; the other one's keeps the memory.
    assert_eq!(Arc::strong_count(&bench.ram), 2);
    let mut kept = Vec::new();
    while bench.poller.outstanding() > 0 {
        bench.emulator.step();
        bench.poller.poll(|done| {
            done.result().unwrap();
            kept.push(done.take());
        });
    }
    assert!(!bench.gone.load(Ordering::Relaxed), "what the caller holds is the caller's");
    drop(kept);
    assert!(bench.gone.load(Ordering::Relaxed));
    assert_eq!(Arc::strong_count(&bench.ram), 1);
    // The controller still works, and finds what the guest wrote.
    let read = bench.space.allocate(8 * PAGE).unwrap();
    assert!(bench.run(IoContainer::read(0, read)).to_vec() == [5; 8 * PAGE]);
}

#[test]
fn memory_comes_back_from_a_poller_that_goes_away() {
    let mut bench = bench(DataForm::Auto);
    let (registered, guest) = (bench.registered(0, PAGE), bench.guest(0, PAGE));
    let disk = bench.disk;
    bench.poller.submit(disk, IoContainer::read(0, registered)).unwrap();
    bench.poller.submit(disk, IoContainer::read(0, guest)).unwrap();
    bench.poller.poll(|_| {});
    (bench.registered, bench.guest) = (None, None);
    let Bench { poller, gone, ram, .. } = bench;
    drop(poller);
    assert!(gone.load(Ordering::Relaxed));
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn memory_of_another_space_is_refused() {
    let mut bench = bench(DataForm::Auto);
    let other = DmaSpace::new().unwrap();
    let registered = other.register(vec![Page([0; PAGE]); 1]).unwrap();
    let guest = other.register_guest(Arc::clone(&bench.ram)).unwrap();
    for foreign in [registered.chain(0..PAGE).unwrap(), guest.chain(GuestAddress(0), PAGE).unwrap()] {
        let mut chain = bench.guest(0, PAGE);
        chain.append(foreign);
        let rejected = bench.poller.submit(bench.disk, IoContainer::read(0, chain)).unwrap_err();
        assert_eq!(rejected.reason, Refusal::ForeignMemory { segment: 1 });
    }
}

#[test]
fn memory_that_is_in_the_space_is_not_registered_again() {
    let bench = bench(DataForm::Auto);
    let error = bench.space.register_guest(Arc::clone(&bench.ram)).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    let _mine = bench.registered(0, PAGE);
    let error = bench.registered.as_ref().unwrap().chain(100..101).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
}

#[test]
fn a_request_of_a_guests_allocates_nothing() {
    let mut bench = bench(DataForm::Auto);
    let disk = bench.disk;
    let Bench { emulator, poller, guest, .. } = &mut bench;
    let guest = guest.as_ref().unwrap();
    for tag in 0..4u64 {
        let io = IoContainer::read(tag, guest.chain(GuestAddress(tag * 4096), PAGE).unwrap());
        poller.submit(disk, io.tag(tag)).unwrap();
    }
    let mut done = 0;
    let mut warm = 0;
    while done < 4000 {
        // What the emulator allocates is not the driver's.
        emulator.step();
        let before = ALLOCATIONS.get();
        poller.poll(|mut finished| {
            finished.result().unwrap();
            done += 1;
            let io = finished.io_mut();
            let at = GuestAddress(GUEST_HIGH + done * 512 % (1 << 20));
            // As a virtqueue does it: one descriptor, or several.
            if done % 2 == 0 {
                io.replace_memory(guest.chain(at, PAGE).unwrap());
                io.set_operation(Operation::Write);
            } else {
                io.set_operation(Operation::Read);
            }
            finished.resubmit().unwrap();
        });
        let after = ALLOCATIONS.get();
        if done < 100 {
            warm = after;
        } else {
            assert_eq!(after, before, "allocated after {done} requests");
        }
    }
    assert!(warm > 0, "the counter counts");
    // A chain of several segments has its list from the chain before.
    let mut chain = MemoryChain::with_capacity(3);
    let before = ALLOCATIONS.get();
    for i in 0..100 {
        chain.clear();
        for at in [i * 512, GUEST_HIGH, 8192] {
            chain.append(guest.chain(GuestAddress(at), 512).unwrap());
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
}

/// Memory whose owner panics when it goes.
struct Bad(Vec<Page>);

// SAFETY: whole pages on the heap, which are not touched before the owner is dropped.
unsafe impl ExternalMemory for Bad {
    fn memory(&mut self) -> NonNull<[u8]> {
        self.0.memory()
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        panic!("of the test");
    }
}

/// Nobody waits for its memory, which goes in the turn in which it finishes, while those that shared its command, for
/// which futures wait, are not delivered yet; these are dropped by the panic.
#[test]
fn requests_outlive_a_panic_with_the_futures_that_wait_for_them() {
    let emulator = Emulator::stepped(Config::parse("size=1M,block=4096,media=ram").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(8);
    let queue = poller.add_queue(&controller, QueueOptions::default().gather(true)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let registered = space.register(Bad(vec![Page([0; PAGE])])).unwrap();
    poller.submit(disk, IoContainer::read(0, registered.chain(0..PAGE).unwrap())).unwrap();
    drop(registered);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        poller.run(async |reactor| {
            let read =
                |lba| reactor.submit(disk, IoContainer::read(lba, space.allocate(PAGE).unwrap())).unwrap();
            let requests = [1, 2].map(read);
            for request in requests {
                request.await.1.unwrap();
            }
        })
    }));
    assert!(panicked.is_err());
    assert_eq!((poller.outstanding(), poller.stats(queue).merges), (2, 2));
    for _ in 0..100 {
        poller.poll(|done| panic!("{:?} shows up where nobody asked for it", done.io()));
        emulator.step();
    }
    assert_eq!(poller.outstanding(), 0);
}
