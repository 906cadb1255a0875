//! Many seeds in several threads: whatever a seed does, a panic included, is that seed's result.
//!
//! Knows threads and seeds; must not know what a seed is.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::run::{Outcome, run};

/// A seed that takes longer hangs: nothing in it waits for anything.
const HANGS: Duration = Duration::from_secs(120);

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what a panic says, and where, for [`run_one`]; nothing is printed.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.set(Some(info.to_string().replace('\n', ": ")));
    }));
}

/// Runs a seed; a panic is a failure of it.
pub fn run_one(seed: u64, printed: bool) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| run(seed, printed))) {
        Ok(outcome) => outcome,
        Err(_) => {
            let what = PANIC.take().unwrap_or_else(|| "a panic".into());
            Outcome { failure: Some(what), ..Outcome::default() }
        }
    }
}

/// Which seeds, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The first.
    pub first: u64,
    /// How many, at most.
    pub count: u64,
    /// No new ones after this time.
    pub limit: Option<Duration>,
}

/// Runs seeds in `jobs` threads and gives each outcome to `each`, in the order in which they come, until that returns
/// false.
pub fn run_all(seeds: Seeds, jobs: usize, mut each: impl FnMut(u64, Outcome) -> bool) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    let over = || seeds.limit.is_some_and(|limit| started.elapsed() >= limit) || stop.load(Ordering::Relaxed);
    let current: Vec<Mutex<Option<(u64, Instant)>>> = (0..jobs).map(|_| Mutex::new(None)).collect();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        for slot in &current {
            let (sender, next, over) = (sender.clone(), &next, &over);
            scope.spawn(move || {
                while !over() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds.count {
                        break;
                    }
                    let seed = seeds.first.wrapping_add(number);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
                    let outcome = run_one(seed, false);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    if sender.send((seed, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(Duration::from_secs(1)) {
                Ok((seed, outcome)) => {
                    if !each(seed, outcome) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let hangs = |slot: &Mutex<Option<(u64, Instant)>>| {
                let current = *slot.lock().unwrap_or_else(PoisonError::into_inner);
                current.filter(|(_, since)| since.elapsed() > HANGS).map(|(seed, _)| seed)
            };
            if let Some(seed) = current.iter().find_map(hangs) {
                // Its thread cannot be ended, so the process must be.
                eprintln!("seed {seed} does not end; replay it with: {}", crate::report::replay(seed));
                std::process::exit(1);
            }
        }
    })
}
