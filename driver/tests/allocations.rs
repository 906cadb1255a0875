//! A steady state allocates nothing: a counting allocator proves it.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use kiovec::memory::DmaSpace;
use kiovec::{Controller, IoContainer, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's doing; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    run(10_000);
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert_eq!(after - before, 0, "allocations in 10,000 I/Os");
}
