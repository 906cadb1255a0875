//! Identify data, namespace lists, descriptors and log pages of any bytes.
//!
//! The fuzzer gives parts of pages, each from some reading on; what is parsed is asked for everything that it
//! can be asked for, and a namespace that is accepted is used at its ends.

use kiovec::memory::DmaSpace;
use kiovec::spec::identify;
use kiovec::{Controller, ControllerEvent, IoContainer, Poller, QueueOptions};

#[path = "attacker.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod attacker;

use attacker::{Attacker, Script, Wishes, with_space};

const MOST_BYTES: usize = 256 << 10;

pub fn fuzz_identify(data: &[u8]) {
    let mut script = Script(data);
    parse(data);
    let chunks = script.byte() % 16;
    let attacker = Attacker::new(Wishes::read(&mut script, chunks).pages_only());
    with_space(&attacker, |space| use_it(&attacker, space, &mut script));
}

/// The parsers by themselves.
fn parse(data: &[u8]) {
    let mut page = [0; 4096];
    let len = data.len().min(page.len());
    page[..len].copy_from_slice(&data[..len]);
    // Towards the end as well.
    page[4096 - len..].copy_from_slice(&data[..len]);
    assert!(identify::NamespaceDescriptors::new(&page).count() <= page.len() / 4);
}

fn use_it(attacker: &Attacker, space: &DmaSpace, script: &mut Script<'_>) {
    let Ok(controller) = Controller::open(attacker.function(), space) else { return };
    let id = controller.identity();
    let _ = (id.serial(), id.model(), id.firmware(), id.subnqn(), id.version(), id.oui());
    let _ = (id.total_capacity(), id.unallocated_capacity(), id.max_transfer(0), id.max_transfer(15));
    let _ = (id.sgl_support(), id.has_volatile_write_cache(), format!("{id:?} {controller:?}"));
    let nsids = controller.active_namespaces().unwrap_or_default();
    assert!(nsids.is_sorted_by(|a, b| a < b) && !nsids.contains(&0) && !nsids.contains(&u32::MAX));
    let mut poller = Poller::new(16);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(4));
    let mut targets = Vec::new();
    for nsid in nsids.into_iter().take(3) {
        let Ok(namespace) = controller.namespace(nsid) else { continue };
        let id = namespace.identity();
        let _ = (id.format_index(), id.has_format(), id.format(), id.capacity_bytes(), format!("{id:?}"));
        let _ =
            (namespace.block_size(), namespace.metadata_size(), namespace.state(), namespace.descriptors());
        let Ok(queue) = queue else { continue };
        targets.extend(poller.add_namespace(queue, &namespace).ok().map(|target| (target, namespace)));
    }
    // It says that it takes shadow doorbells, and looks at none: nothing has to complete.
    if controller.has_shadow_doorbells() {
        return;
    }
    // The second time with what events have changed.
    for _ in 0..2 {
        for (target, namespace) in &targets {
            let Some(geometry) = poller.geometry(*target) else { continue };
            let block = geometry.block_size();
            assert!(block.is_power_of_two() && block >= 512);
            let blocks = namespace.blocks();
            for lba in [0, 1, blocks / 2, blocks.wrapping_sub(1), blocks, u64::MAX] {
                exercise(attacker, space, &mut poller, *target, lba, block);
            }
        }
        report(attacker, &controller, script);
        // Long enough for the poller to look at what the controller has reported.
        (0..1100).for_each(|_| _ = poller.poll(|_| {}));
    }
}

/// One request of each kind; the controller completes all commands.
fn exercise(
    attacker: &Attacker,
    space: &DmaSpace,
    poller: &mut Poller,
    target: kiovec::Target,
    lba: u64,
    block: usize,
) {
    let most = (MOST_BYTES / block).max(1);
    for io in [
        space.allocate(block).map(|memory| IoContainer::read(lba, memory)),
        space.allocate(block * most.min(33)).map(|memory| IoContainer::write(lba, memory)),
        space.allocate(block * most.min(2)).map(|memory| IoContainer::write(lba, memory).atomic(true)),
        Ok(IoContainer::write_zeroes(lba, 1000)),
        Ok(IoContainer::deallocate(lba, 70)),
        Ok(IoContainer::flush()),
    ] {
        let Ok(io) = io else { continue };
        let _ = poller.submit(target, io);
    }
    // However small its pieces are: one command for each block, at most, and four at a time.
    for _ in 0..1300 {
        poller.poll(|done| assert!(done.result().is_ok()));
        if poller.outstanding() == 0 {
            return;
        }
        while attacker.outstanding() > 0 {
            attacker.complete(0, 0);
        }
    }
    panic!("{} requests are stuck", poller.outstanding());
}

fn report(attacker: &Attacker, controller: &Controller, script: &mut Script<'_>) {
    for _ in 0..4 {
        attacker.event(script.word());
        for _ in 0..8 {
            for event in controller.events() {
                if let ControllerEvent::NamespacesChanged { nsids, .. } = &event {
                    assert!(nsids.is_sorted_by(|a, b| a < b));
                }
                let _ = format!("{event:?}");
            }
        }
    }
}
