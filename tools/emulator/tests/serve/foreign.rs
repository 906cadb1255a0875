//! Somebody else's client: the crate `vfio_user`, for the parts where it is right.

use std::os::fd::{AsFd, AsRawFd};

use kiovec::spec::registers::{self, cq_head_doorbell, sq_tail_doorbell};
use kiovec::spec::{Aqa, Cap, Cc, Cns, Command, Completion, Csts, Status, identify};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_user::Client;
use zerocopy::{FromBytes, IntoBytes};

use crate::host::memory;
use crate::peer::Rig;

const IOVA: u64 = 0x10_0000;

fn read32(client: &mut Client, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    client.region_read(0, offset, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn somebody_else_s_client_brings_the_controller_up() {
    let rig = Rig::new("size=16M,media=ram,serial=FOREIGN");
    let mut client = Client::new(&rig.path).unwrap();
    // Not asked: `resettable`, which says the opposite of what the server has said.
    let bar = client.region(0).unwrap();
    assert_eq!((bar.size, bar.sparse_areas.len()), (0x4000, 1));
    let doorbells = bar.file_offset.as_ref().unwrap().file().as_fd().try_clone_to_owned().unwrap();
    let memory = memory(0x10_0000);
    client.dma_map(0, IOVA, 0x10_0000, memory.as_raw_fd()).unwrap();
    client.region_write(7, 4, &[6, 0]).unwrap();
    let mut cap = [0; 8];
    client.region_read(0, registers::CAP, &mut cap).unwrap();
    let cap = Cap::from_bits(u64::from_le_bytes(cap));
    let aqa = Aqa::new().with_asqs(7).with_acqs(7);
    let cc = Cc::new().with_en(true).with_iosqes(6).with_iocqes(4);
    client.region_write(0, registers::AQA, &aqa.into_bits().to_le_bytes()).unwrap();
    client.region_write(0, registers::ASQ, &IOVA.to_le_bytes()).unwrap();
    client.region_write(0, registers::ACQ, &(IOVA + 0x1000).to_le_bytes()).unwrap();
    client.region_write(0, registers::CC, &cc.into_bits().to_le_bytes()).unwrap();
    while !Csts::from_bits(read32(&mut client, registers::CSTS)).rdy() {
        std::thread::yield_now();
    }
    let irqs = client.get_irq_info(2).unwrap();
    assert_eq!(irqs.count, 65);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    client.set_irqs(2, 4 | 32, 0, 1, &[event.as_raw_fd()]).unwrap();

    let command = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(IOVA + 0x2000, 0);
    rustix::io::pwrite(&memory, command.as_bytes(), 0).unwrap();
    let tail = registers::DOORBELLS + sq_tail_doorbell(0, cap.dstrd());
    rustix::io::pwrite(&doorbells, &1u32.to_le_bytes(), tail).unwrap();
    // The eventfd tells of the completion: no look at the ring before that.
    let mut polled = [PollFd::new(&event, PollFlags::IN)];
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut polled, Some(&patience)), Ok(1));
    let mut entry = [0; 16];
    rustix::io::pread(&memory, &mut entry, 0x1000).unwrap();
    let entry = Completion::read_from_bytes(&entry).unwrap();
    assert_eq!((entry.phase(), entry.status(), entry.sq_head), (true, Status::SUCCESS, 1));
    let head = registers::DOORBELLS + cq_head_doorbell(0, cap.dstrd());
    rustix::io::pwrite(&doorbells, &1u32.to_le_bytes(), head).unwrap();
    let mut page = [0; 4096];
    rustix::io::pread(&memory, &mut page, 0x2000).unwrap();
    assert_eq!(identify::Controller::read_from_bytes(&page).unwrap().serial(), "FOREIGN");

    client.dma_unmap(IOVA, 0x10_0000).unwrap();
    client.reset().unwrap();
    assert_eq!(read32(&mut client, registers::CC), 0);
    client.shutdown().unwrap();
    assert_eq!(rig.end(), "it has closed the connection");
}
