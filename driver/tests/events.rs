//! Requests as events: over several queues and controllers of one poller.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiovec::memory::{DmaSpace, MemoryChain, RawCommands};
use kiovec::spec::{Command, Status};
use kiovec::{Controller, Event, IoContainer, Moment, Poller, QueueOptions, State, Target};
use kiovec_emulator::{Config, Emulator};

const LIMIT: Duration = Duration::from_secs(30);

/// One poller with a queue on each of three controllers.
struct Bench {
    poller: Poller,
    disks: Vec<Target>,
    space: DmaSpace,
    emulators: Vec<Emulator>,
}

fn bench() -> Bench {
    let space = DmaSpace::new().unwrap();
    let mut poller = Poller::new(64);
    let mut emulators = Vec::new();
    let mut disks = Vec::new();
    for _ in 0..3 {
        let emulator = Emulator::stepped(Config::parse("size=16M,media=ram,mdts=1").unwrap()).unwrap();
        let controller = Controller::open(emulator.function(), &space).unwrap();
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(2)).unwrap();
        disks.push(poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap());
        emulators.push(emulator);
    }
    Bench { poller, disks, space, emulators }
}

impl Bench {
    fn read(&mut self, disk: usize, lba: u64, len: usize) -> Event {
        let io = IoContainer::read(lba, self.space.allocate(len).unwrap());
        self.poller.request(self.disks[disk], io).unwrap()
    }

    /// A command that the controller refuses.
    fn failing(&mut self, disk: usize) -> Event {
        // SAFETY: the command has no data.
        let trust = unsafe { RawCommands::trust() };
        let command = Command { opcode: 0x7d, ..Command::default() };
        let io = IoContainer::raw(&command, MemoryChain::new(), trust);
        self.poller.request(self.disks[disk], io).unwrap()
    }

    /// Lets one controller work until nothing is left for it.
    fn let_work(&mut self, disk: usize) {
        for _ in 0..100 {
            self.poller.poll(|_| panic!("everything here is an event"));
            self.emulators[disk].step();
        }
        self.poller.poll(|_| panic!("everything here is an event"));
    }
}

#[test]
fn two_of_three_controllers_are_enough() {
    let mut bench = bench();
    // Larger than a command, so that each is several.
    let legs: Vec<Event> = (0..3).map(|disk| bench.read(disk, 0, 64 << 10)).collect();
    let quorum = bench.poller.at_least(2, &legs).unwrap();
    let all = bench.poller.all(&legs).unwrap();
    bench.poller.notify(quorum, 1);
    bench.poller.notify(all, 2);
    bench.let_work(0);
    assert_eq!(bench.poller.state(quorum), Some(State::Pending));
    bench.let_work(2);
    let Some(State::Resolved(verdict)) = bench.poller.state(quorum) else { panic!("not resolved") };
    assert!(verdict.success);
    assert_eq!(verdict.decided_by, Some(legs[2]));
    assert_eq!(bench.poller.next_moment(), Some((1, Moment::Resolved)));
    assert_eq!(bench.poller.next_moment(), None);
    bench.let_work(1);
    let Some(State::Settled(_, totals)) = bench.poller.state(quorum) else { panic!("not settled") };
    assert_eq!((totals.bytes, totals.failed), (3 * (64 << 10), 0));
    let moments: Vec<_> = std::iter::from_fn(|| bench.poller.next_moment()).collect();
    assert_eq!(moments.len(), 3);
    assert!(moments.contains(&(1, Moment::Settled)));
    let all_moments: Vec<_> = moments.iter().filter(|m| m.0 == 2).map(|m| m.1).collect();
    assert_eq!(all_moments, [Moment::Resolved, Moment::Settled]);
    for leg in legs {
        let (io, result) = bench.poller.claim(leg).unwrap();
        assert_eq!((io.memory().len(), result), (64 << 10, Ok(())));
        assert!(bench.poller.claim(leg).is_none(), "a container is claimed once");
    }
    assert_eq!(bench.poller.outstanding(), 0);
}

#[test]
fn a_failure_decides_all_before_the_rest_is_done() {
    let mut bench = bench();
    let slow = bench.read(0, 0, 4096);
    let bad = bench.failing(1);
    let all = bench.poller.all(&[slow, bad]).unwrap();
    let any = bench.poller.any(&[all, slow]).unwrap();
    bench.let_work(1);
    let Some(State::Resolved(verdict)) = bench.poller.state(all) else { panic!("not resolved") };
    assert_eq!((verdict.success, verdict.decided_by), (false, Some(bad)));
    assert_eq!(bench.poller.state(any), Some(State::Pending));
    assert!(bench.poller.wait(any, LIMIT, |_| {}).unwrap().success);
    let Some(State::Settled(_, totals)) = bench.poller.state(all) else { panic!("not settled") };
    assert_eq!(totals.failed, 1);
    assert_eq!(totals.first.unwrap().status().unwrap().code(), Status::INVALID_OPCODE);
    assert_eq!(
        bench.poller.claim(bad).unwrap().1.unwrap_err().status().unwrap().code(),
        Status::INVALID_OPCODE
    );
}

#[test]
fn a_released_request_goes_on_and_gives_its_memory_back() {
    let mut bench = bench();
    let memory = bench.space.allocate(1 << 20).unwrap();
    let iova = memory.segments()[0].iova();
    let event = bench.poller.request(bench.disks[0], IoContainer::write(0, memory)).unwrap();
    let done = bench.poller.all(&[event]).unwrap();
    bench.poller.release(event);
    assert_eq!(bench.poller.state(event), None);
    assert!(bench.space.allocate(1 << 20).unwrap().segments()[0].iova() > iova, "it is still in use");
    assert!(bench.poller.wait(done, LIMIT, |_| {}).unwrap().success);
    assert_eq!(bench.poller.outstanding(), 0);
    assert_eq!(bench.space.allocate(1 << 20).unwrap().segments()[0].iova(), iova);
}

#[test]
fn a_wait_for_what_never_comes_ends() {
    let mut bench = bench();
    // Nobody tells this controller of the command: it is gone.
    let event = bench.read(0, 0, 4096);
    drop(bench.emulators.remove(0));
    assert_eq!(bench.poller.wait(event, Duration::from_millis(20), |_| {}), None);
    assert_eq!(bench.poller.state(event), Some(State::Pending));
}
