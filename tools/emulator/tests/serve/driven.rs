//! The driver as the client.

use std::sync::Arc;

use kiovec::memory::DmaSpace;
use kiovec::pci::VfioUser;
use kiovec::{Controller, IoContainer, Poller, QueueOptions};

use crate::peer::Rig;

/// Shadow doorbells lie in a file that is the client's, and two processes may be looking at them.
#[test]
fn a_client_is_heard_by_its_shadow_doorbells() {
    const REQUESTS: u64 = 300;
    let rig = Rig::new("size=16M,media=ram,dbbuf=on");
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(Arc::new(VfioUser::open(&rig.path).unwrap()), &space).unwrap();
    assert!(controller.has_shadow_doorbells());
    let mut poller = Poller::new(8);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(8).merge(false)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    let (mut next, mut done) = (0, 0);
    while done < REQUESTS {
        while next < REQUESTS && poller.outstanding() < 8 {
            let mut memory = space.allocate(4096).unwrap();
            memory.fill(next as u8);
            poller.submit(disk, IoContainer::write(next, memory)).unwrap();
            next += 1;
        }
        poller.poll(|io| {
            assert_eq!(io.result(), Ok(()));
            io.take();
            done += 1;
        });
        std::thread::yield_now();
    }
    let stats = poller.stats(queue);
    assert_eq!((stats.commands, stats.timeouts, stats.faults), (REQUESTS, 0, 0));
    drop((poller, controller));
    rig.end();
    let counters = rig.stop();
    assert_eq!((counters.writes, counters.bad_doorbells), (REQUESTS, 0));
    assert!(counters.shadow_looks > 0 && counters.needed_writes > 0);
}
