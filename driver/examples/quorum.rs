//! One write to three controllers, done when two of them have it: `cargo run -p kiovec --example quorum`.
//!
//! One of the three is slow. The event "2 of 3" is resolved without it; the deadline of the last one
//! then ends that request for us, but not for the controller: its memory stays with it until it settles.

use std::error::Error;
use std::time::Duration;

use kiovec::memory::DmaSpace;
use kiovec::{Controller, Event, IoContainer, Poller, QueueOptions, State};
use kiovec_emulator::{Commands, Config, Emulator};

const LIMIT: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let space = DmaSpace::new()?;
    let mut poller = Poller::new(16);
    let (mut emulators, mut disks) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
        let controller = Controller::open(emulator.function(), &space)?;
        let queue = poller.add_queue(&controller, QueueOptions::default())?;
        disks.push(poller.add_namespace(queue, &controller.namespace(1)?)?);
        emulators.push(emulator);
    }
    emulators[1].hold(Commands::writes());

    let mut legs: Vec<Event> = Vec::new();
    for disk in &disks {
        let mut memory = space.allocate(1 << 20)?;
        memory.fill(7);
        legs.push(poller.request(*disk, IoContainer::write(0, memory))?);
    }
    let quorum = poller.at_least(2, &legs)?;
    let verdict = poller.wait(quorum, LIMIT, |_| {}).ok_or("two of three did not answer")?;
    println!("two of three have it: {}", verdict.success);
    assert!(verdict.success);

    // The third has a little longer. Resolved is not settled: it may still carry the write out.
    poller.set_deadline(legs[1], Duration::from_millis(10));
    let late = poller.wait(legs[1], LIMIT, |_| {}).ok_or("a deadline resolves")?;
    println!(
        "the third: {:?}, and its memory is still out: {}",
        late.reason,
        poller.claim(legs[1]).is_none()
    );

    emulators[1].release_all();
    while !matches!(poller.state(quorum), Some(State::Settled(..))) {
        poller.poll(|_| {});
    }
    for (number, leg) in legs.into_iter().enumerate() {
        let (io, result) = poller.claim(leg).ok_or("everything is settled")?;
        let result = result.map_or_else(|failure| failure.to_string(), |()| "written".into());
        println!("controller {number}: {} bytes, {result}", io.memory().len());
    }
    poller.release(quorum);
    assert_eq!(poller.outstanding(), 0);
    Ok(())
}
