//! A steady state allocates nothing: a counting allocator proves it.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kiovec::layer::{Cache, CacheOptions, Disk};
use kiovec::memory::DmaSpace;
use kiovec::{Controller, IoContainer, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator};

struct Counting;

thread_local! {
    /// Of this thread: other tests run at the same time.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: everything is the system allocator's doing; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_steady_state_allocates_nothing() {
    let emulator = Emulator::stepped(Config::parse("size=1G,block=4096,media=null").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(64);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(32)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    // 4 KiB in one command each, and one large request that is cut again and again.
    for tag in 0..16 {
        poller.submit(disk, IoContainer::read(tag, space.allocate(4096).unwrap()).tag(tag)).unwrap();
    }
    poller.submit(disk, IoContainer::read(0, space.allocate(8 << 20).unwrap()).tag(16)).unwrap();
    let mut run = |ios: usize| {
        let mut left = ios;
        while left > 0 {
            left = left.saturating_sub(poller.poll(|mut done| {
                done.result().unwrap();
                let lba = (done.io().lba() * 7 + 3) % 200_000;
                done.set_lba(lba);
                done.resubmit().unwrap();
            }));
            emulator.step();
        }
    };
    run(1000);
    let before = allocations();
    run(10_000);
    let after = allocations();
    assert_eq!(after - before, 0, "allocations in 10,000 I/Os");
}

#[test]
fn nor_does_a_cache() {
    let emulator = Emulator::stepped(Config::parse("size=64M,block=4096,media=null").unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::with_layers(64);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(32)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let disk = Disk::new(&poller, disk).unwrap();
    let cache = Cache::new(disk, &space, CacheOptions { bytes: 8 << 20, line: 64 << 10 }).unwrap();
    let cached = poller.add_layer(cache).unwrap();
    // Hits and misses of one line and of several, with writes in between.
    for tag in 0..16 {
        let memory = space.allocate(if tag % 3 == 0 { 400 << 10 } else { 4096 }).unwrap();
        let io = if tag == 1 { IoContainer::write(0, memory) } else { IoContainer::read(tag, memory) };
        poller.submit(cached, io.tag(tag)).unwrap();
    }
    let mut run = |ios: usize| {
        let mut left = ios;
        while left > 0 {
            left = left.saturating_sub(poller.poll(|mut done| {
                done.result().unwrap();
                let lba = (done.io().lba() * 7 + 3) % 3_000;
                done.set_lba(lba);
                done.resubmit().unwrap();
            }));
            emulator.step();
        }
        *poller.layer(cached).unwrap().counts()
    };
    run(1000);
    let before = allocations();
    let counts = run(10_000);
    assert_eq!(allocations() - before, 0, "allocations in 10,000 I/Os");
    assert!(counts.hits > 1000 && counts.misses > 1000 && counts.shared > 100 && counts.invalidated > 100);
}
