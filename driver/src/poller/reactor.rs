//! Events as futures: `poller.run(async |reactor| …)` drives the poller until a future is ready.
//!
//! Every request and every event is a future; `join` and `select` of any crate work on them, and so do compound
//! events. A request becomes an event when somebody wants it to be one. Knows who waits for what; must not know
//! what an event stands for.
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

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::{Direct, Layer, Poller, Rejected, Target};
use crate::request::{BadEvent, Event, Failure, InPlace, IoContainer, Node, NodeId, State, Totals, Verdict};

/// A poller, in the hands of a future that [`Poller::run`] drives.
#[derive(Debug)]
pub struct Reactor<'p, L: Layer = Direct> {
    poller: RefCell<&'p mut Poller<L>>,
    waiting: RefCell<Vec<Wakers>>,
    /// Who waits for the request with an index of the tree.
    callers: RefCell<Vec<Option<Waker>>>,
    /// Who is to be woken, when the poller is free again.
    woken: RefCell<Vec<Waker>>,
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
        let reactor = Reactor {
            poller: RefCell::new(self),
            waiting: RefCell::default(),
            callers: RefCell::default(),
            woken: RefCell::default(),
        };
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
        let request = self.poller.borrow_mut().submit_awaited(target, io)?;
        Ok(Request { reactor: self, what: Cell::new(What::Request(request)) })
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
        self.take_wakers(event.index(), &mut self.woken.borrow_mut());
        self.wake_all();
    }

    /// Polls once, and wakes whose requests and events came.
    fn turn(&self) {
        let mut poller = self.poller.borrow_mut();
        let mut callers = self.callers.borrow_mut();
        let mut woken = self.woken.borrow_mut();
        let count = poller.poll(|done| {
            if let Some(request) = done.leave() {
                woken.extend(callers.get_mut(request.index()).and_then(Option::take));
            }
        });
        if count == 0 {
            poller.pause();
        }
        while let Some(index) = poller.core.events.next_watched() {
            self.take_wakers(index, &mut woken);
        }
        drop((poller, callers, woken));
        self.wake_all();
    }

    /// Takes out who waits for the event with an index.
    fn take_wakers(&self, index: usize, woken: &mut Vec<Waker>) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(index) {
            woken.extend(waiting.one.take());
            woken.append(&mut waiting.others);
        }
    }

    /// Whoever is woken may do anything with the reactor.
    fn wake_all(&self) {
        let mut woken = self.woken.take();
        woken.drain(..).for_each(Waker::wake);
        // Its room is kept.
        self.woken.replace(woken);
    }

    /// Has a task woken when a request has finished.
    fn watch_request(&self, request: NodeId, waker: &Waker) {
        let (mut all, index) = (self.callers.borrow_mut(), request.index());
        if all.len() <= index {
            all.resize(index + 1, None);
        }
        match &mut all[index] {
            Some(one) if one.will_wake(waker) => {}
            one => *one = Some(waker.clone()),
        }
    }

    /// Makes a request an event.
    fn make_event(&self, request: NodeId) -> Event {
        let event = self.poller.borrow_mut().make_event(request);
        // Whoever waits for the request looks once more, and waits for the event then.
        let waker = self.callers.borrow_mut().get_mut(request.index()).and_then(Option::take);
        waker.into_iter().for_each(Waker::wake);
        event
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
    what: Cell<What>,
}

/// What a future waits for.
#[derive(Debug, Clone, Copy)]
enum What {
    Request(NodeId),
    Event(Event),
    /// It was ready.
    Nothing,
}

impl<'r, 'p, L: Layer> Request<'r, 'p, L> {
    /// Its event, to be part of others, cancelled, or given a deadline. A request that nobody asks for its event is
    /// none, and costs less.
    ///
    /// # Panics
    /// After the future was ready.
    pub fn event(&self) -> Event {
        match self.what.get() {
            What::Event(event) => event,
            What::Request(request) => {
                let event = self.reactor.make_event(request);
                self.what.set(What::Event(event));
                event
            }
            What::Nothing => panic!("the future was ready already"),
        }
    }

    /// Waits until it has finished: then the container is still where it is, to be submitted again from there, which
    /// costs a part of what [taking](Finished::take) it out and submitting it does.
    ///
    /// ```
    /// # use kiovec::{Controller, IoContainer, Poller, QueueOptions, memory::DmaSpace};
    /// # use kiovec_emulator::{Config, Emulator};
    /// # let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
    /// # let space = DmaSpace::new()?;
    /// # let controller = Controller::open(emulator.function(), &space)?;
    /// # let mut poller = Poller::new(64);
    /// # let queue = poller.add_queue(&controller, QueueOptions::default())?;
    /// # let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;
    /// poller.run(async |reactor| {
    ///     let mut request = reactor.submit(disk, IoContainer::read(0, space.allocate(4096)?))?;
    ///     for lba in 1..100 {
    ///         let mut finished = request.finished().await;
    ///         finished.result()?;
    ///         finished.in_place(|mut io| io.set_lba(lba));
    ///         finished.resubmit()?;
    ///     }
    ///     let (_io, result) = request.await;
    ///     Ok::<(), Box<dyn std::error::Error>>(result?)
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The event that it was made, if it was, is released with that.
    ///
    /// # Panics
    /// After the future was ready, or the container was taken out.
    pub async fn finished(&mut self) -> Finished<'_, 'r, 'p, L> {
        std::future::poll_fn(|context| self.poll_finished(context)).await;
        Finished { request: self }
    }

    fn poll_finished(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut poller = self.reactor.poller.borrow_mut();
        match self.what.get() {
            What::Request(request) if poller.is_ready(request) => return Poll::Ready(()),
            What::Request(request) => self.reactor.watch_request(request, context.waker()),
            What::Event(event) => match poller.unmake_event(event) {
                Some(request) => {
                    self.what.set(What::Request(request));
                    return Poll::Ready(());
                }
                None => {
                    drop(poller);
                    self.reactor.watch(event, context.waker());
                }
            },
            What::Nothing => panic!("the future was ready already"),
        }
        Poll::Pending
    }

    /// What it is about, once it has finished.
    fn with_node<R>(&self, f: impl FnOnce(&mut Node) -> R) -> R {
        let What::Request(request) = self.what.get() else { panic!("it is not finished") };
        f(self.reactor.poller.borrow_mut().ready(request).expect("it is finished"))
    }
}

/// A request that has finished, where it is: like [`Done`](crate::Done). If this is dropped, the request still is one
/// that has finished.
#[derive(Debug)]
pub struct Finished<'q, 'r, 'p, L: Layer = Direct> {
    request: &'q mut Request<'r, 'p, L>,
}

impl<L: Layer> Finished<'_, '_, '_, L> {
    /// Whether all of it succeeded; else the failure with the lowest LBA.
    pub fn result(&self) -> Result<(), Failure> {
        self.request.with_node(|node| node.failure().map_or(Ok(()), Err))
    }

    /// The container, to be looked at, and to be changed such that what was prepared for its commands stays in use.
    ///
    /// # Panics
    /// If `f` uses the reactor.
    pub fn in_place<R>(&mut self, f: impl FnOnce(InPlace<'_>) -> R) -> R {
        self.request.with_node(|node| f(InPlace { io: &mut node.io, wire: Some(&mut node.wire) }))
    }

    /// Submits the container again, where it is, to the same target.
    pub fn resubmit(self) -> Result<(), Rejected> {
        let What::Request(request) = self.request.what.get() else { panic!("it is not finished") };
        let again = self.request.reactor.poller.borrow_mut().resubmit_ready(request);
        if again.is_err() {
            self.request.what.set(What::Nothing);
        }
        again
    }

    /// Takes the container out.
    pub fn take(self) -> IoContainer {
        let What::Request(request) = self.request.what.replace(What::Nothing) else {
            panic!("it is not finished")
        };
        let finished = self.request.reactor.poller.borrow_mut().take_ready(request);
        finished.expect("it is finished").0
    }
}

impl<L: Layer> Future for Request<'_, '_, L> {
    type Output = (IoContainer, Result<(), Failure>);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut poller = self.reactor.poller.borrow_mut();
        let finished = match self.what.get() {
            What::Request(request) => poller.take_ready(request),
            What::Event(event) => poller.claim(event),
            What::Nothing => panic!("the future was ready already"),
        };
        drop(poller);
        match (finished, self.what.get()) {
            (Some(finished), _) => {
                self.what.set(What::Nothing);
                return Poll::Ready(finished);
            }
            (None, What::Request(request)) => self.reactor.watch_request(request, context.waker()),
            (None, What::Event(event)) => self.reactor.watch(event, context.waker()),
            (None, What::Nothing) => {}
        }
        Poll::Pending
    }
}

impl<L: Layer> Drop for Request<'_, '_, L> {
    fn drop(&mut self) {
        if let What::Request(_) | What::Event(_) = self.what.get() {
            // It goes on as an event that nobody claims.
            self.reactor.release(self.event());
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
