//! Interrupts by eventfd.

use std::os::fd::OwnedFd;

use kiovec::pci::vfio_user::message::{IRQ_MSIX, IrqInfo, SetIrqs, command};
use kiovec::spec::{Command, Status};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::host::{DATA, Host, IOVA};
use crate::peer::Rig;

const EINVAL: u32 = 22;
const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn set(flags: u32, start: u32, count: u32) -> SetIrqs {
    SetIrqs { argsz: 0, flags, index: IRQ_MSIX, start, count }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// What has been written to it since the last time, 0 if it is nothing.
fn count(event: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

fn wait(event: &OwnedFd) -> u64 {
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&patience)), Ok(1), "no interrupt");
    count(event)
}

#[test]
fn completions_interrupt_through_the_vector_of_their_queue() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    let (admin, io, other) = (event(), event(), event());
    host.peer.set_irqs(set(EVENTFD | TRIGGER, 0, 3), &[], &[&admin, &io, &other]).unwrap();
    let read = Command::read(1, 0, 0).with_prps(IOVA + DATA, 0);
    for _ in 0..40 {
        host.submit(1, read);
        assert!(wait(&io) > 0);
        let entry = host.wait(|host| host.reap(1));
        assert_eq!(entry.status(), Status::SUCCESS);
    }
    host.identify();
    assert!(wait(&admin) > 0);
    assert_eq!((count(&io), count(&other)), (0, 0));
}

#[test]
fn masked_vectors_are_pending() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    let io = event();
    host.peer.set_irqs(set(EVENTFD | TRIGGER, 1, 1), &[], &[&io]).unwrap();
    host.peer.set_irqs(set(NONE | MASK, 1, 1), &[], &[]).unwrap();
    host.write_block(0, 1);
    let pending = |host: &mut Host| host.peer.read(4, 0x1000, 8).unwrap()[0];
    host.wait(|host| (pending(host) == 0b10).then_some(()));
    assert_eq!(count(&io), 0);
    host.peer.set_irqs(set(BOOL | UNMASK, 0, 3), &[0, 1, 0], &[]).unwrap();
    assert_eq!((wait(&io), pending(&mut host)), (1, 0));
    // The Function Mask of Message Control, with MSI-X enabled.
    host.peer.write(7, 0x92, &[0x00, 0xc0]).unwrap();
    host.write_block(0, 1);
    host.wait(|host| (pending(host) == 0b10).then_some(()));
    host.peer.write(7, 0x92, &[0x00, 0x80]).unwrap();
    assert_eq!(wait(&io), 1);
    // Vector Control of vector 1.
    host.peer.write(4, 16 + 12, &1u32.to_le_bytes()).unwrap();
    host.write_block(0, 1);
    host.wait(|host| (pending(host) == 0b10).then_some(()));
    host.peer.write(4, 16 + 12, &0u32.to_le_bytes()).unwrap();
    assert_eq!(wait(&io), 1);
}

#[test]
fn vectors_are_triggered_and_taken_down() {
    let rig = Rig::new("size=16M");
    let mut peer = rig.client();
    let events: Vec<OwnedFd> = (0..16).map(|_| event()).collect();
    let all: Vec<&OwnedFd> = events.iter().collect();
    peer.set_irqs(set(EVENTFD | TRIGGER, 0, 16), &[], &all).unwrap();
    peer.set_irqs(set(NONE | TRIGGER, 3, 2), &[], &[]).unwrap();
    peer.set_irqs(set(BOOL | TRIGGER, 4, 3), &[1, 0, 1], &[]).unwrap();
    assert_eq!(events.iter().map(count).collect::<Vec<_>>()[2..8], [0, 1, 2, 0, 1, 0]);
    // No files: these are taken down. No vectors: all of them.
    peer.set_irqs(set(EVENTFD | TRIGGER, 3, 1), &[], &[]).unwrap();
    peer.set_irqs(set(NONE | TRIGGER, 0, 16), &[], &[]).unwrap();
    assert_eq!(events.iter().map(count).sum::<u64>(), 15);
    peer.set_irqs(set(NONE | TRIGGER, 0, 0), &[], &[]).unwrap();
    peer.set_irqs(set(NONE | TRIGGER, 0, 16), &[], &[]).unwrap();
    assert_eq!(events.iter().map(count).sum::<u64>(), 0);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let rig = Rig::new("size=16M,queues=4");
    let mut peer = rig.client();
    for (index, vectors) in [(0, 0), (1, 0), (IRQ_MSIX, 5), (3, 0), (4, 0)] {
        let asked = IrqInfo { argsz: 16, flags: 0, index, count: 0 };
        let info: IrqInfo = peer.try_ask(command::DEVICE_GET_IRQ_INFO, &asked).unwrap().parse();
        assert_eq!((info.index, info.count, info.flags & 1), (index, vectors, u32::from(vectors > 0)));
    }
    for (argsz, index) in [(16, 5), (16, u32::MAX), (15, 2)] {
        let asked = IrqInfo { argsz, flags: 0, index, count: 0 };
        assert_eq!(peer.try_ask(command::DEVICE_GET_IRQ_INFO, &asked).unwrap_err(), EINVAL);
    }
    let (event, pipe) = (event(), rustix::pipe::pipe().unwrap().1);
    for (set, data, files) in [
        (set(EVENTFD | TRIGGER, 0, 2), &[][..], &[&event][..]),
        (set(EVENTFD | TRIGGER, 0, 1), &[], &[&event, &event]),
        (set(EVENTFD | TRIGGER, 5, 1), &[], &[&event]),
        (set(EVENTFD | TRIGGER, u32::MAX, 2), &[], &[&event, &event]),
        (set(EVENTFD | TRIGGER, 0, u32::MAX), &[], &[]),
        (set(EVENTFD | TRIGGER, 0, 1), &[], &[&pipe]),
        (set(EVENTFD | MASK, 0, 1), &[], &[&event]),
        (set(BOOL | TRIGGER, 0, 2), &[1], &[]),
        (set(NONE | BOOL | TRIGGER, 0, 1), &[1], &[]),
        (set(NONE, 0, 1), &[], &[]),
        (set(TRIGGER, 0, 1), &[], &[]),
        (set(NONE | MASK | UNMASK, 0, 1), &[], &[]),
        (set(NONE | TRIGGER | 64, 0, 1), &[], &[]),
        (SetIrqs { index: 0, ..set(NONE | TRIGGER, 0, 1) }, &[], &[]),
        (SetIrqs { index: 5, ..set(NONE | TRIGGER, 0, 0) }, &[], &[]),
    ] {
        assert_eq!(peer.set_irqs(set, data, files), Err(EINVAL), "{set:?}");
    }
    assert_eq!(peer.set_irqs(SetIrqs { index: 0, ..set(NONE | TRIGGER, 0, 0) }, &[], &[]), Ok(()));
}
