//! Write a block and read it back, on a controller without hardware: `cargo run -p kiovec --example
//! hello`, or on a real one: `… --example hello 0000:01:00.0` (which overwrites its first block!).

use std::error::Error;
use std::sync::Arc;

use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::pci::{Function, Vfio};
use kiovec::{Controller, IoContainer, Poller, QueueOptions, Target};
use kiovec_emulator::{Config, Emulator};

fn main() -> Result<(), Box<dyn Error>> {
    let space = DmaSpace::new()?;
    // Keeps the emulated controller's thread running, if there is one.
    let mut emulator = None;
    let function: Arc<dyn Function> = match std::env::args().nth(1) {
        Some(address) => Arc::new(Vfio::open(address.parse()?, &space)?),
        None => emulator.insert(Emulator::spawn(Config::parse("media=ram")?)?).function(),
    };
    let controller = Controller::open(function, &space)?;
    println!("{}: {}", controller.name(), controller.identity().model());

    let mut poller = Poller::new(1);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(1))?;
    let namespace = controller.namespace(1)?;
    let disk = poller.add_namespace(queue, &namespace)?;
    let block = namespace.block_size().ok_or("a block size that cannot be")? as usize;

    let mut memory = space.allocate(block)?;
    memory.copy_from_slice(0, b"hello, controller");
    let mut memory = complete(&mut poller, disk, IoContainer::write(0, memory))?;
    memory.fill(0);
    let memory = complete(&mut poller, disk, IoContainer::read(0, memory))?;
    println!("read back: {}", String::from_utf8_lossy(&memory.to_vec()[..17]));
    assert_eq!(&memory.to_vec()[..17], b"hello, controller");
    Ok(())
}

/// Submits one request and polls until it is done.
fn complete(poller: &mut Poller, disk: Target, io: IoContainer) -> Result<MemoryChain, Box<dyn Error>> {
    poller.submit(disk, io)?;
    let mut finished = None;
    while finished.is_none() {
        poller.poll(|done| finished = Some(done.result().map(|()| done.take().into_memory())));
    }
    Ok(finished.ok_or("unreachable: the loop ends with a result")??)
}
