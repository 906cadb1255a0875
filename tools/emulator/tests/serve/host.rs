//! A driver of the simplest kind, in a client: rings and data in a memfd that it reaches by system calls.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kiovec::pci::vfio_user::message::{REGION_BAR0, REGION_CONFIG, RegionInfo, command};
use kiovec::spec::registers::{self, cq_head_doorbell, sq_tail_doorbell};
use kiovec::spec::{Aqa, Cap, Cc, Cns, Command, Completion, Csts, Status, identify};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use zerocopy::{FromBytes, IntoBytes};

use crate::peer::{Peer, Rig, map_of};

/// Where the memory is, as a device sees it: an address of the kind that SPDK uses.
pub const IOVA: u64 = 0x2000_0020_0000;
pub const LEN: u64 = 1 << 20;
/// Data, from the start of the memory; queue pairs lie before it.
pub const DATA: u64 = 0x8_0000;
const ENTRIES: u16 = 16;

/// A queue pair: positions on the host's side.
struct Pair {
    tail: u16,
    head: u16,
    phase: bool,
}

pub struct Host {
    pub peer: Peer,
    pub memory: OwnedFd,
    pub doorbells: OwnedFd,
    dstrd: u8,
    pairs: Vec<Pair>,
    next_cid: u16,
}

pub fn memory(len: u64) -> OwnedFd {
    let file = memfd_create("client", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

impl Host {
    /// A client with a controller that is ready.
    pub fn new(rig: &Rig) -> Host {
        let mut peer = rig.client();
        let info =
            RegionInfo { argsz: 4096, flags: 0, index: REGION_BAR0, cap_offset: 0, size: 0, offset: 0 };
        let mut reply = peer.ask(command::DEVICE_GET_REGION_INFO, info.as_bytes());
        let doorbells = reply.fds.pop().expect("the doorbells' file");
        let memory = memory(LEN);
        peer.map(&map_of(IOVA, LEN), Some(&memory)).unwrap();
        let mut host = Host { peer, memory, doorbells, dstrd: 0, pairs: vec![], next_cid: 0 };
        host.enable();
        host
    }

    /// The same with I/O queue pair 1, and interrupts on vector 1 if they are set up.
    pub fn with_queue(rig: &Rig) -> Host {
        let mut host = Host::new(rig);
        host.create_pair(1);
        host
    }

    pub fn read32(&mut self, offset: u64) -> u32 {
        let bytes = self.peer.read(REGION_BAR0, offset, 4).unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    pub fn enable(&mut self) {
        self.peer.write(REGION_CONFIG, 4, &[6, 0]).unwrap();
        let cap = self.peer.read(REGION_BAR0, registers::CAP, 8).unwrap();
        let cap = Cap::from_bits(u64::from_le_bytes(cap.try_into().unwrap()));
        self.dstrd = cap.dstrd();
        self.pairs = vec![Pair { tail: 0, head: 0, phase: true }];
        self.clear(0, 0x2000);
        let aqa = Aqa::new().with_asqs(ENTRIES - 1).with_acqs(ENTRIES - 1);
        let cc = Cc::new().with_en(true).with_iosqes(6).with_iocqes(4);
        self.peer.write(REGION_BAR0, registers::AQA, &aqa.into_bits().to_le_bytes()).unwrap();
        self.peer.write(REGION_BAR0, registers::ASQ, &IOVA.to_le_bytes()).unwrap();
        self.peer.write(REGION_BAR0, registers::ACQ, &(IOVA + 0x1000).to_le_bytes()).unwrap();
        self.peer.write(REGION_BAR0, registers::CC, &cc.into_bits().to_le_bytes()).unwrap();
        let ready = |host: &mut Host| Csts::from_bits(host.read32(registers::CSTS)).rdy().then_some(());
        self.wait(ready);
    }

    pub fn create_pair(&mut self, qid: u16) {
        assert_eq!(self.pairs.len(), usize::from(qid));
        self.pairs.push(Pair { tail: 0, head: 0, phase: true });
        let sq = IOVA + 0x2000 * u64::from(qid);
        self.clear(sq - IOVA, 0x2000);
        let mut cq = Command::create_io_cq(qid, ENTRIES.into(), sq + 0x1000);
        // With interrupts, on the vector of the same number.
        cq.cdw11 |= u32::from(qid) << 16 | 2;
        assert_eq!(self.run(0, cq).status(), Status::SUCCESS);
        let sq = Command::create_io_sq(qid, ENTRIES.into(), sq, qid);
        assert_eq!(self.run(0, sq).status(), Status::SUCCESS);
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.memory, bytes, at), Ok(bytes.len()));
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert_eq!(rustix::io::pread(&self.memory, &mut bytes, at), Ok(len));
        bytes
    }

    fn clear(&self, at: u64, len: usize) {
        self.put(at, &vec![0; len]);
    }

    fn ring(&self, offset: u64, value: u16) {
        let bytes = u32::from(value).to_le_bytes();
        assert_eq!(rustix::io::pwrite(&self.doorbells, &bytes, registers::DOORBELLS + offset), Ok(4));
    }

    /// Submits a command, and rings.
    pub fn submit(&mut self, qid: u16, mut command: Command) -> u16 {
        command.cid = self.next_cid;
        self.next_cid = (self.next_cid + 1) % 0xffff;
        let tail = self.pairs[usize::from(qid)].tail;
        self.put(0x2000 * u64::from(qid) + 64 * u64::from(tail), command.as_bytes());
        let tail = (tail + 1) % ENTRIES;
        self.pairs[usize::from(qid)].tail = tail;
        self.ring(sq_tail_doorbell(qid, self.dstrd), tail);
        command.cid
    }

    /// The next completion, if it is there.
    pub fn reap(&mut self, qid: u16) -> Option<Completion> {
        let pair = &self.pairs[usize::from(qid)];
        let at = 0x2000 * u64::from(qid) + 0x1000 + 16 * u64::from(pair.head);
        let entry = Completion::read_from_bytes(&self.get(at, 16)).unwrap();
        if entry.phase() != pair.phase {
            return None;
        }
        let pair = &mut self.pairs[usize::from(qid)];
        pair.head = (pair.head + 1) % ENTRIES;
        pair.phase ^= pair.head == 0;
        let head = pair.head;
        self.ring(cq_head_doorbell(qid, self.dstrd), head);
        Some(entry)
    }

    pub fn wait<T>(&mut self, mut until: impl FnMut(&mut Host) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(300);
        loop {
            if let Some(done) = until(self) {
                return done;
            }
            assert!(Instant::now() < end, "nothing has happened");
            std::thread::yield_now();
        }
    }

    pub fn run(&mut self, qid: u16, command: Command) -> Completion {
        let cid = self.submit(qid, command);
        let entry = self.wait(|host| host.reap(qid));
        assert_eq!((entry.cid, entry.sq_id), (cid, qid));
        entry
    }

    pub fn io(&mut self, command: Command) -> Status {
        self.run(1, command.with_prps(IOVA + DATA, 0)).status()
    }

    pub fn write_block(&mut self, lba: u64, fill: u8) {
        self.put(DATA, &[fill; 4096]);
        assert_eq!(self.io(Command::write(1, lba, 0)), Status::SUCCESS);
    }

    pub fn read_block(&mut self, lba: u64) -> Vec<u8> {
        self.put(DATA, &[0xee; 4096]);
        assert_eq!(self.io(Command::read(1, lba, 0)), Status::SUCCESS);
        self.get(DATA, 4096)
    }

    pub fn identify(&mut self) -> identify::Controller {
        let command = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(IOVA + DATA, 0);
        assert_eq!(self.run(0, command).status(), Status::SUCCESS);
        identify::Controller::read_from_bytes(&self.get(DATA, 4096)).unwrap()
    }
}

#[test]
fn a_block_is_written_and_read() {
    let rig = Rig::new("size=16M,media=ram,serial=SERVED1");
    let mut host = Host::with_queue(&rig);
    assert_eq!(host.identify().serial(), "SERVED1");
    host.write_block(7, 0x5a);
    assert_eq!(host.read_block(7), [0x5a; 4096]);
    assert_eq!(host.read_block(8), [0; 4096]);
    drop(host);
    assert_eq!(rig.end(), "it has closed the connection");
    let counters = rig.stop();
    assert_eq!((counters.reads, counters.writes, counters.errors), (2, 1, 0));
}

#[test]
fn many_blocks_through_several_queues() {
    let rig = Rig::new("size=16M,media=ram,queues=3");
    let mut host = Host::new(&rig);
    for qid in 1..4 {
        host.create_pair(qid);
    }
    for round in 0..100u16 {
        let qid = round % 3 + 1;
        host.put(DATA, &[round as u8; 4096]);
        let command = Command::write(1, round.into(), 0).with_prps(IOVA + DATA, 0);
        assert_eq!(host.run(qid, command).status(), Status::SUCCESS);
    }
    for round in 0..100u16 {
        assert_eq!(host.read_block(round.into()), [round as u8; 4096]);
    }
}

#[test]
fn addresses_that_are_not_mapped_are_faults_of_their_commands() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    for address in [0, IOVA - 4096, IOVA + LEN, !4095] {
        let command = Command::read(1, 0, 0).with_prps(address, 0);
        assert_eq!(host.run(1, command).status(), Status::DATA_TRANSFER_ERROR);
    }
    host.write_block(1, 1);
}

#[test]
fn a_reset_over_the_socket_is_a_function_level_reset() {
    let rig = Rig::new("size=16M,media=ram");
    let mut host = Host::with_queue(&rig);
    host.write_block(3, 0x33);
    host.peer.ask(command::DEVICE_RESET, &[]);
    assert_eq!((host.read32(registers::CC), host.read32(registers::CSTS)), (0, 0));
    host.enable();
    host.create_pair(1);
    assert_eq!(host.read_block(3), [0x33; 4096]);
}
