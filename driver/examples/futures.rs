//! Requests as futures: `cargo run -p kiovec --example futures`.
//!
//! `Poller::run` drives the poller until a future is ready. What joins and selects futures is any crate's;
//! none is needed to wait for many requests at once, as compound events do that.

use std::error::Error;
use std::time::Duration;

use kiovec::memory::DmaSpace;
use kiovec::{Controller, IoContainer, Operation, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator};

fn main() -> Result<(), Box<dyn Error>> {
    let emulator = Emulator::spawn(Config::parse("size=64M,media=ram")?)?;
    let space = DmaSpace::new()?;
    let controller = Controller::open(emulator.function(), &space)?;
    let mut poller = Poller::new(64);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(4))?;
    let disk = poller.add_namespace(queue, &controller.namespace(1)?)?;

    poller.run(async |reactor| {
        // One after the other, in the same memory: write, and read back.
        let mut memory = space.allocate(8192)?;
        memory.fill(42);
        let (mut io, result) = reactor.submit(disk, IoContainer::write(0, memory))?.await;
        result?;
        io.memory_mut().fill(0);
        io.set_operation(Operation::Read);
        let (io, result) = reactor.submit(disk, io)?.await;
        result?;
        println!("read back: {:?} …", &io.into_memory().to_vec()[..4]);

        // Many at once: all of them, or whatever there is in half a minute.
        let mut reads = Vec::new();
        for i in 0..16u64 {
            reads.push(reactor.submit(disk, IoContainer::read(i * 256, space.allocate(1 << 20)?))?);
        }
        let events: Vec<_> = reads.iter().map(|read| read.event()).collect();
        let all = reactor.all(&events)?;
        reactor.set_deadline(all, Duration::from_secs(30));
        let (verdict, totals) = reactor.settled(all).await.ok_or("nobody released it")?;
        println!("16 reads: {:?}, {} MiB, {} failed", verdict.reason, totals.bytes >> 20, totals.failed);
        reactor.release(all);
        for read in reads {
            read.await.1?; // ready already: here the memory comes back
        }
        Ok(())
    })
}
