//! Events as futures: `poller.run(async |reactor| …)` drives the poller until a future is ready.
//!
//! Every event is a future; `join` and `select` of any crate work on them, and so do compound events. Knows
//! who waits for which event; must not know what the event stands for.
//!
//! ```
//! # use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
//! # use kiovec_emulator::{Config, Emulator};
//! # let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
//! # let space = DmaSpace::new()?;
//! # let controller = Controller::open(emulator.function(), &space)?;
//! # let mut poller = Poller::new(64);
//! # let queue = poller.add_queue(&controller, QueueOptions::default())?;
//! # let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
//! let bytes = poller.run(async |reactor| {
//!     let mut memory = space.allocate(8192)?;
//!     memory.fill(7);
//!     let (mut io, result) = reactor.submit(disk, IoContainer::write(0, memory))?.await;
//!     result?;
//!     io.memory_mut().fill(0);
//!     io.set_operation(kiovec::Operation::Read);
//!     let (io, result) = reactor.submit(disk, io)?.await;
//!     result?;
//!     Ok::<_, Box<dyn std::error::Error>>(io.into_memory().to_vec())
//! })?;
//! assert_eq!(bytes, [7; 8192]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::{Direct, Layer, Poller, Rejected, Target};
use crate::request::{BadEvent, Event, Failure, IoContainer, State, Totals, Verdict};

/// A poller, in the hands of a future that [`Poller::run`] drives.
#[derive(Debug)]
pub struct Reactor<'p, L: Layer = Direct> {
    poller: RefCell<&'p mut Poller<L>>,
    waiting: RefCell<Vec<Wakers>>,
}

/// Who waits for the event with an index of its arena.
#[derive(Debug, Default)]
struct Wakers {
    one: Option<Waker>,
    /// Nearly always empty.
    others: Vec<Waker>,
}

/// Told to run the future once more.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl<L: Layer> Poller<L> {
    /// Polls until a future is ready, and returns what it came to. The future submits requests and waits
    /// for them through the [`Reactor`]; a [deadline](Reactor::set_deadline) is what bounds a wait.
    ///
    /// What completes meanwhile and is no event is dropped: its memory is freed.
    pub fn run<T>(&mut self, future: impl AsyncFnOnce(&Reactor<'_, L>) -> T) -> T {
        let reactor = Reactor { poller: RefCell::new(self), waiting: RefCell::default() };
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future(&reactor));
        loop {
            if flag.0.swap(false, Ordering::Acquire)
                && let Poll::Ready(result) = future.as_mut().poll(&mut context)
            {
                return result;
            }
            reactor.turn();
        }
    }
}

impl<'p, L: Layer> Reactor<'p, L> {
    /// Hands a container over. The future is ready when the request is settled; a future that is dropped
    /// before detaches: the request goes on, and its memory is freed when it is settled.
    pub fn submit(&self, target: Target, io: IoContainer) -> Result<Request<'_, 'p, L>, Rejected> {
        let event = self.poller.borrow_mut().request(target, io)?;
        Ok(Request { reactor: self, event: Some(event) })
    }

    /// Ready when an event is resolved; at once, with `None`, if it was released. Dropping it changes
    /// nothing about the event.
    pub fn resolved(&self, event: Event) -> impl Future<Output = Option<Verdict>> {
        Watch {
            reactor: self,
            event,
            until: |state| match state {
                State::Pending => None,
                State::Resolved(verdict) | State::Settled(verdict, _) => Some(verdict),
            },
        }
    }

    /// Ready when an event is settled; at once, with `None`, if it was released.
    pub fn settled(&self, event: Event) -> impl Future<Output = Option<(Verdict, Totals)>> {
        Watch {
            reactor: self,
            event,
            until: |state| match state {
                State::Settled(verdict, totals) => Some((verdict, totals)),
                State::Pending | State::Resolved(_) => None,
            },
        }
    }

    /// See [`Poller::all`].
    pub fn all(&self, events: &[Event]) -> Result<Event, BadEvent> {
        self.poller.borrow_mut().all(events)
    }

    /// See [`Poller::any`].
    pub fn any(&self, events: &[Event]) -> Result<Event, BadEvent> {
        self.poller.borrow_mut().any(events)
    }

    /// See [`Poller::at_least`].
    pub fn at_least(&self, k: usize, events: &[Event]) -> Result<Event, BadEvent> {
        self.poller.borrow_mut().at_least(k, events)
    }

    /// See [`Poller::cancel`].
    pub fn cancel(&self, event: Event) {
        self.poller.borrow_mut().cancel(event);
    }

    /// See [`Poller::set_deadline`].
    pub fn set_deadline(&self, event: Event, limit: Duration) {
        self.poller.borrow_mut().set_deadline(event, limit);
    }

    /// See [`Poller::release`].
    pub fn release(&self, event: Event) {
        self.poller.borrow_mut().release(event);
        // Whoever waits for it learns that there is nothing to wait for.
        self.wake(event.index());
    }

    /// Polls once, and wakes whose events came.
    fn turn(&self) {
        let mut poller = self.poller.borrow_mut();
        if poller.poll(|done| drop(done)) == 0 {
            poller.pause();
        }
        while let Some(index) = poller.core.events.next_watched() {
            self.wake(index);
        }
    }

    fn wake(&self, index: usize) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(index) {
            waiting.one.take().into_iter().chain(waiting.others.drain(..)).for_each(Waker::wake);
        }
    }

    /// Has a task woken at each of an event's moments.
    fn watch(&self, event: Event, waker: &Waker) {
        let index = self.poller.borrow_mut().core.events.watch(event);
        let mut all = self.waiting.borrow_mut();
        if all.len() <= index {
            all.resize_with(index + 1, Wakers::default);
        }
        let waiting = &mut all[index];
        match &mut waiting.one {
            Some(one) if one.will_wake(waker) => {}
            one @ None => *one = Some(waker.clone()),
            Some(_) if waiting.others.iter().any(|other| other.will_wake(waker)) => {}
            Some(_) => waiting.others.push(waker.clone()),
        }
    }
}

/// A request, as a future of its container and its result.
#[derive(Debug)]
#[must_use = "a request whose future is dropped goes on, but nobody learns of its result"]
pub struct Request<'r, 'p, L: Layer = Direct> {
    reactor: &'r Reactor<'p, L>,
    /// `None` once it was claimed.
    event: Option<Event>,
}

impl<L: Layer> Request<'_, '_, L> {
    /// Its event, to be part of others, cancelled, or given a deadline.
    ///
    /// # Panics
    /// After the future was ready.
    pub fn event(&self) -> Event {
        self.event.expect("the future was ready already")
    }
}

impl<L: Layer> Future for Request<'_, '_, L> {
    type Output = (IoContainer, Result<(), Failure>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let event = self.event();
        let claimed = self.reactor.poller.borrow_mut().claim(event);
        match claimed {
            Some(finished) => {
                self.event = None;
                Poll::Ready(finished)
            }
            None => {
                self.reactor.watch(event, context.waker());
                Poll::Pending
            }
        }
    }
}

impl<L: Layer> Drop for Request<'_, '_, L> {
    fn drop(&mut self) {
        if let Some(event) = self.event {
            self.reactor.release(event);
        }
    }
}

/// A moment of an event, as a future.
struct Watch<'r, 'p, L: Layer, F> {
    reactor: &'r Reactor<'p, L>,
    event: Event,
    until: F,
}

impl<L: Layer, T, F: Fn(State) -> Option<T> + Unpin> Future for Watch<'_, '_, L, F> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let Some(state) = self.reactor.poller.borrow().state(self.event) else { return Poll::Ready(None) };
        match (self.until)(state) {
            None => {
                self.reactor.watch(self.event, context.waker());
                Poll::Pending
            }
            ready => Poll::Ready(ready),
        }
    }
}
