//! Layers named in text, and what passes them: `cargo run -p kiovec --example layers`, or with another
//! stack on devices called A and B: `… --example layers 'trace(partition(start=8,blocks=100,B))'`.
//!
//! The stack is made at run time, and is an enum of the built-in layers, so that a request passes it
//! without a virtual call. It is one container all the way, and its memory is nowhere copied.

use std::error::Error;

use kiovec::layer::{Disk, Plan, Stack};
use kiovec::memory::DmaSpace;
use kiovec::{Controller, IoContainer, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator};

const STACK: &str = "trace(partition(start=1000,blocks=2000,trace(A)))";

fn main() -> Result<(), Box<dyn Error>> {
    let plan: Plan = std::env::args().nth(1).as_deref().unwrap_or(STACK).parse()?;
    let space = DmaSpace::new()?;
    let mut poller = Poller::with_layers(64);
    let mut disks = Vec::new();
    for name in ["A", "B"] {
        let emulator = Emulator::spawn(Config::parse("size=64M,media=ram,awupf=63")?)?;
        let controller = Controller::open(emulator.function(), &space)?;
        let queue = poller.add_queue(&controller, QueueOptions::default())?;
        let namespace = poller.add_namespace(queue, &controller.namespace(1)?)?;
        disks.push((name, Disk::new(&poller, namespace)?, queue, emulator));
    }
    let mut disk = |name: &str| match disks.iter().find(|disk| disk.0 == name) {
        Some(disk) => Ok(disk.1),
        None => Err(kiovec::Error::InvalidInput(format!("{name} is not A or B"))),
    };
    let target = poller.add_layer(Stack::new(&plan, &space, &mut disk)?)?;
    let geometry = poller.geometry(target).ok_or("the target is the poller's own")?;
    println!("{plan}: {} blocks of {} bytes", geometry.blocks, geometry.block_size());

    // Neighbours that are held back together go down in one command, and complete one by one.
    disks.iter().for_each(|disk| poller.plug(disk.2));
    for lba in 0..8 {
        let mut memory = space.allocate(geometry.block_size())?;
        memory.fill(lba as u8);
        poller.submit(target, IoContainer::write(lba, memory).tag(lba))?;
    }
    disks.iter().for_each(|disk| poller.unplug(disk.2));
    let mut failed = None;
    while poller.outstanding() > 0 {
        poller.poll(|done| failed = failed.or(done.result().err()));
    }
    if let Some(failure) = failed {
        return Err(failure.into());
    }

    for layer in poller.layer(target).map(Stack::layers).unwrap_or_default() {
        if let Stack::Trace(trace) = layer {
            let counts = trace.filter().counts();
            println!("trace: {} writes of {} blocks, {} failed", counts.writes, counts.blocks, counts.failed);
        }
    }
    for (name, _, queue, _) in &disks {
        let stats = poller.stats(*queue);
        println!("{name}: {} commands, {} requests merged into others", stats.commands, stats.merges);
    }
    Ok(())
}
