//! How much memory of the heap a seed has, now and at most.
//!
//! A seed runs in one thread from its beginning to its end, so what that thread allocates is the seed's. Knows
//! bytes; must not know what they are for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counted by thread.
pub struct Counting;

fn count(bytes: i64) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    MOST.set(MOST.get().max(live));
}

// SAFETY: everything is the system allocator's doing; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What this thread has allocated since, and had at most.
#[derive(Debug, Clone, Copy)]
pub struct Mark(i64);

impl Mark {
    /// From here on.
    pub fn new() -> Mark {
        MOST.set(LIVE.get());
        Mark(LIVE.get())
    }

    /// Bytes more than at the mark.
    pub fn live(self) -> i64 {
        LIVE.get() - self.0
    }

    /// Bytes more than at the mark, at most so far.
    pub fn most(self) -> i64 {
        MOST.get() - self.0
    }
}
