//! A small controller behind the socket: bring-up, a queue pair, reads; once with memory and doorbells
//! mapped, once with everything by message; and what happens when it dies.
//!
//! It is one page of NVMe and no more: the emulator behind a socket is tested elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kiovec::memory::vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use kiovec::memory::{DmaSpace, MemoryChain};
use kiovec::pci::Function;
use kiovec::pci::vfio_user::{DoorbellPath, Message};
use kiovec::{Cause, Controller, Error, IoContainer, Poller, QueueOptions};

use super::peer::{LONG, Peer, Server, file, longs, message, region_info, reply, words};

/// How the controller reaches memory, and is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Mapped,
    Messages,
}

struct Ring {
    iova: u64,
    entries: u32,
    at: u32,
}

struct Nvme {
    peer: Peer,
    way: Way,
    waiting: VecDeque<Message>,
    config: [u8; 256],
    registers: [u8; 0x1000],
    doorbells: OwnedFd,
    /// What doorbells were last seen at.
    seen: BTreeMap<u16, u32>,
    files: Vec<(u64, u64, u64, MmapRegion)>,
    sqs: BTreeMap<u16, Ring>,
    cqs: BTreeMap<u16, Ring>,
    /// Reads until the server ends without a word.
    reads_left: u32,
    read: u32,
    /// The read before whose completion the file of the doorbells is truncated.
    truncates_at: u32,
    /// DMA_MAPs.
    maps: u32,
}

impl Nvme {
    fn new(peer: Peer, way: Way, reads_left: u32) -> Nvme {
        let mut registers = [0; 0x1000];
        // CAP: MQES 255, CQR, TO 1 s, NVM command set. VS: 1.4.
        registers[..8].copy_from_slice(&0x0000_0020_0201_00ffu64.to_le_bytes());
        registers[8..12].copy_from_slice(&0x0001_0400u32.to_le_bytes());
        Nvme {
            peer,
            way,
            waiting: VecDeque::new(),
            config: [0; 256],
            registers,
            doorbells: file(0x2000),
            seen: BTreeMap::new(),
            files: vec![],
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            reads_left,
            read: 0,
            truncates_at: 0,
            maps: 0,
        }
    }

    /// Serves until the client is gone; returns how many blocks were read, and how much was mapped.
    fn run(mut self) -> (u32, u32) {
        while self.reads_left > 0 {
            if self.way == Way::Mapped {
                self.look_at_doorbells();
            }
            match self.waiting.pop_front().map_or_else(|| self.peer.poll(), |message| Some(Some(message))) {
                Some(Some(message)) => self.handle(&message),
                Some(None) => std::thread::yield_now(),
                None => break,
            }
        }
        (self.read, self.maps)
    }

    fn look_at_doorbells(&mut self) {
        for qid in [0, 1] {
            let mut tail = [0; 4];
            let at = 0x1000 + 8 * u64::from(qid);
            if rustix::io::pread(&self.doorbells, &mut tail, at) != Ok(tail.len()) {
                return;
            }
            let tail = u32::from_le_bytes(tail);
            if self.seen.insert(qid, tail) != Some(tail) {
                self.tail(qid, tail);
            }
        }
    }

    fn handle(&mut self, request: &Message) {
        let word = |at: usize| u32::from_ne_bytes(request.payload[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request.payload[at..at + 8].try_into().unwrap());
        let mut files = vec![];
        let payload = match request.header.command {
            1 => vec![0, 0, 1, 0],
            2 => {
                self.maps += 1;
                // Mapped, since files of hugepages cannot be written.
                let file = FileOffset::new(request.fds[0].try_clone().unwrap().into(), 0);
                let (at, len) = (long(8), long(24));
                let mapped = MmapRegion::from_file(file, (at + len) as usize).unwrap();
                self.files.push((long(16), len, at, mapped));
                vec![]
            }
            3 => {
                self.files.retain(|(iova, ..)| *iova != long(8));
                request.payload.clone()
            }
            4 => words(&[16, 3, 9, 5]),
            5 if word(8) == 7 => region_info(3, 7, 256, 0, &[]),
            5 if self.way == Way::Messages => region_info(3, 0, 0x2000, 0, &[]),
            5 => {
                files.push(self.doorbells.try_clone().unwrap());
                region_info(7, 0, 0x2000, 0, &[(0x1000, 0x1000)])
            }
            9 => {
                let (at, len) = (word(0) as usize, word(12) as usize);
                let region = if word(8) == 7 { &self.config[..] } else { &self.registers[..] };
                [&request.payload[..16], &region[at..at + len]].concat()
            }
            10 => {
                let (at, len) = (word(0) as usize, word(12) as usize);
                let data = &request.payload[16..];
                match word(8) {
                    7 => self.config[at..at + len].copy_from_slice(data),
                    _ if at < 0x1000 => {
                        self.registers[at..at + len].copy_from_slice(data);
                        self.written(at);
                    }
                    _ => {
                        assert!(!request.header.wants_reply(), "a doorbell that somebody waits for");
                        let (number, value) =
                            ((at as u16 - 0x1000) / 4, u32::from_le_bytes(data.try_into().unwrap()));
                        if number.is_multiple_of(2) {
                            self.tail(number / 2, value);
                        }
                    }
                }
                request.payload[..16].to_vec()
            }
            other => panic!("command {other}"),
        };
        if request.header.wants_reply() {
            self.peer.send(&reply(request, &payload), &files);
        }
    }

    fn register(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.registers[at..at + 8].try_into().unwrap())
    }

    fn written(&mut self, at: usize) {
        if at != 0x14 {
            return;
        }
        let (cc, aqa) = (self.register(0x14) as u32, self.register(0x24) as u32);
        let ready = cc & 1;
        let shutdown = if cc >> 14 & 3 != 0 { 2 << 2 } else { 0 };
        self.registers[0x1c..0x20].copy_from_slice(&(ready | shutdown).to_le_bytes());
        if ready == 1 && !self.sqs.contains_key(&0) {
            let ring = |iova, entries| Ring { iova, entries: (entries & 0xfff) + 1, at: 0 };
            self.sqs.insert(0, ring(self.register(0x28), aqa));
            self.cqs.insert(0, ring(self.register(0x30), aqa >> 16));
        }
    }

    fn tail(&mut self, qid: u16, tail: u32) {
        while let Some(sq) = self.sqs.get_mut(&qid).filter(|sq| sq.at != tail) {
            let from = sq.iova + 64 * u64::from(sq.at);
            sq.at = (sq.at + 1) % sq.entries;
            let command = self.dma_read(from, 64);
            let word = |at: usize| u32::from_le_bytes(command[4 * at..4 * at + 4].try_into().unwrap());
            let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 1)) << 32;
            let dw0 = match (qid, word(0) as u8) {
                (0, 6) => {
                    let data = identify(word(10) as u8);
                    self.dma_write(long(6), &data);
                    0
                }
                (0, 9) => 0,
                (0, opcode @ (1 | 5)) => {
                    let (qid, entries) = (word(10) as u16, (word(10) >> 16) + 1);
                    let ring = Ring { iova: long(6), entries, at: 0 };
                    if opcode == 1 {
                        self.sqs.insert(qid, ring)
                    } else {
                        self.cqs.insert(qid, ring)
                    };
                    0
                }
                (0, 0) => self.sqs.remove(&(word(10) as u16)).map_or(0, |_| 0),
                (0, 4) => self.cqs.remove(&(word(10) as u16)).map_or(0, |_| 0),
                // An Asynchronous Event Request: it stays, as there is nothing to report.
                (0, 0x0c) => continue,
                (1, 2) => {
                    self.reads_left -= 1;
                    if self.reads_left == 0 {
                        return;
                    }
                    self.read += 1;
                    if self.read == self.truncates_at {
                        rustix::fs::ftruncate(&self.doorbells, 0x1000).unwrap();
                    }
                    self.dma_write(long(6), &[word(10) as u8; 4096]);
                    0
                }
                other => panic!("command {other:?}"),
            };
            self.complete(qid, word(0) >> 16, dw0);
        }
    }

    fn complete(&mut self, qid: u16, cid: u32, dw0: u32) {
        let head = self.sqs.get(&qid).map_or(0, |sq| sq.at);
        let cq = self.cqs.get_mut(&qid).unwrap();
        // The number of the round is not kept anywhere but in the phase of what was there before.
        let (at, iova) = (cq.at, cq.iova + 16 * u64::from(cq.at));
        cq.at = (at + 1) % cq.entries;
        let before = self.dma_read(iova + 14, 2)[0] & 1;
        let high = cid | u32::from(before ^ 1) << 16;
        self.dma_write(iova, &[words(&[dw0, 0]), words(&[head | u32::from(qid) << 16, high])].concat());
    }

    // ---- memory ----

    fn dma_read(&mut self, iova: u64, len: usize) -> Vec<u8> {
        if self.way == Way::Messages {
            return self.ask(11, &longs(&[iova, len as u64])).payload[16..].to_vec();
        }
        let (file, at) = self.find(iova);
        let mut data = vec![0; len];
        file.as_volatile_slice().read_slice(&mut data, at as usize).unwrap();
        data
    }

    /// In pieces of 8 bytes, in ascending order.
    fn dma_write(&mut self, iova: u64, data: &[u8]) {
        if self.way == Way::Messages {
            self.ask(12, &[&longs(&[iova, data.len() as u64])[..], data].concat());
            return;
        }
        let (file, at) = self.find(iova);
        for (index, piece) in data.chunks(8).enumerate() {
            file.as_volatile_slice().write_slice(piece, at as usize + 8 * index).unwrap();
        }
    }

    fn find(&self, iova: u64) -> (&MmapRegion, u64) {
        let mut found = self.files.iter().filter(|(start, len, ..)| (*start..start + len).contains(&iova));
        let (start, _, offset, file) = found.next().unwrap();
        (file, offset + iova - start)
    }

    /// A request of the server's own. What the client asks meanwhile waits.
    fn ask(&mut self, command: u16, payload: &[u8]) -> Message {
        self.peer.send(&message(77, command, 0, 0, payload), &[]);
        loop {
            let Some(message) = self.peer.next() else {
                // The client is gone: nobody sees what follows.
                return Message {
                    header: kiovec::pci::vfio_user::Header::command(0, 0),
                    payload: vec![0; 4112],
                    fds: vec![],
                };
            };
            if message.header.is_reply() {
                assert_eq!((message.header.id, message.header.failure()), (77, None));
                return message;
            }
            self.waiting.push_back(message);
        }
    }
}

fn identify(cns: u8) -> Vec<u8> {
    let mut data = vec![0; 4096];
    match cns {
        0 => {
            // NSZE, NCAP, NUSE: 1000 blocks of 4096 bytes.
            data[..24].copy_from_slice(&longs(&[1000, 1000, 1000]));
            data[130] = 12;
        }
        1 => {
            data[77] = 5;
            data[512..514].copy_from_slice(&[0x66, 0x44]);
            data[516] = 1;
        }
        2 => data[0] = 1,
        _ => {}
    }
    data
}

fn start(way: Way, reads: u32) -> (Server<(u32, u32)>, Arc<Controller>, DmaSpace) {
    let server = Server::start(move |peer| Nvme::new(peer, way, reads).run());
    let function = server.open(LONG).unwrap();
    let path = function.doorbell_path();
    assert_eq!(matches!(path, DoorbellPath::Mapped { .. }), way == Way::Mapped);
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(Arc::new(function), &space).unwrap();
    (server, controller, space)
}

#[test]
fn a_controller_is_driven_both_ways() {
    for way in [Way::Mapped, Way::Messages] {
        let (server, controller, space) = start(way, u32::MAX);
        let namespace = controller.namespace(1).unwrap();
        assert_eq!((namespace.blocks(), controller.active_namespaces().unwrap()), (1000, vec![1]));
        let mut poller = Poller::new(16);
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(4).merge(false)).unwrap();
        let disk = poller.add_namespace(queue, &namespace).unwrap();
        for lba in 0..12 {
            let memory: MemoryChain = space.allocate(4096).unwrap();
            poller.submit(disk, IoContainer::read(lba, memory).tag(lba)).unwrap();
        }
        let mut lbas = Vec::new();
        let began = std::time::Instant::now();
        while lbas.len() < 12 {
            assert!(began.elapsed() < LONG, "{way:?}: {} of 12 reads", lbas.len());
            poller.poll(|done| {
                done.result().unwrap();
                let lba = done.io().get_tag();
                assert!(done.take().into_memory().to_vec() == [lba as u8; 4096]);
                lbas.push(lba);
            });
        }
        lbas.sort();
        assert_eq!(lbas, (0..12).collect::<Vec<_>>());
        drop((poller, controller));
        assert_eq!(server.end().0, 12);
    }
}

/// It ends in the middle of I/O: all of it comes back, without its memory, and another device of the same
/// space can be opened.
#[test]
fn a_controller_that_dies_is_reported_and_its_memory_kept() {
    for way in [Way::Mapped, Way::Messages] {
        let (server, controller, space) = start(way, 5);
        let mut poller = Poller::new(16);
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(4).merge(false)).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        for lba in 0..12 {
            poller.submit(disk, IoContainer::read(lba, space.allocate(4096).unwrap())).unwrap();
        }
        let (mut good, mut lost, mut without) = (0, 0, 0);
        let began = std::time::Instant::now();
        while good + lost < 12 {
            assert!(began.elapsed() < LONG, "{way:?}: {good} good, {lost} lost");
            poller.poll(|done| match done.result() {
                Ok(()) => good += 1,
                Err(failure) => {
                    assert_eq!(failure.cause, Cause::ControllerLost);
                    lost += 1;
                    without += usize::from(done.take().into_memory().is_empty());
                }
            });
        }
        // What the server may still write goes back to nobody; what was never sent down does.
        assert!(without > 0 && without <= 4, "{without} of {lost} came back without memory");
        assert!(space.retired() > 0);
        assert!(good <= 4 && lost >= 8, "{good} good, {lost} lost");
        let error = controller.check().unwrap_err();
        assert!(matches!(error, Error::Disconnected { .. }), "{error}");
        server.end();
        drop((poller, controller));

        let server = Server::start(move |peer| Nvme::new(peer, way, u32::MAX).run());
        let again = Controller::open(Arc::new(server.open(LONG).unwrap()), &space).unwrap();
        assert_eq!(again.namespace(1).unwrap().blocks(), 1000);
        drop(again);
        // Rings and data, with their parts of the table: nothing of what the first one had.
        assert_eq!(server.end().1, 4, "{way:?}");
    }
}

/// What became of reads.
type Results = Vec<Result<(), Cause>>;

/// Two servers, the first of which truncates the file of its doorbells: what becomes of 12 reads of each, and what
/// is said of the first.
fn truncate_in_the_middle() -> ([Results; 2], Error) {
    let (space, mut poller) = (DmaSpace::new().unwrap(), Poller::new(64));
    let (mut servers, mut controllers, mut targets) = (vec![], vec![], vec![]);
    for truncates_at in [4, 0] {
        let server =
            Server::start(move |peer| Nvme { truncates_at, ..Nvme::new(peer, Way::Mapped, u32::MAX) }.run());
        let function = server.open(LONG).unwrap();
        assert_eq!(function.doorbell_path(), DoorbellPath::Mapped { sealed: false });
        let controller = Controller::open(Arc::new(function), &space).unwrap();
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(4).merge(false)).unwrap();
        targets.push(poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap());
        servers.push(server);
        controllers.push(controller);
    }
    for lba in 0..12 {
        for (tag, target) in (0..).zip(&targets) {
            let io = IoContainer::read(lba, space.allocate(4096).unwrap()).tag(tag);
            poller.submit(*target, io).unwrap();
        }
    }
    let mut results = [vec![], vec![]];
    let began = std::time::Instant::now();
    while results.iter().any(|results| results.len() < 12) {
        assert!(began.elapsed() < LONG, "{results:?}");
        poller.poll(|done| {
            let result = done.result().map_err(|failure| failure.cause);
            results[done.io().get_tag() as usize].push(result);
        });
    }
    let error = controllers[0].check().unwrap_err();
    controllers[1].check().unwrap();
    drop((poller, controllers));
    for server in servers {
        server.end();
    }
    (results, error)
}

/// The process lives, everything of that controller comes back, and others go on.
#[test]
fn a_server_that_truncates_its_doorbells_is_lost() {
    kiovec::install_sigbus_handler().unwrap();
    let ([first, second], error) = truncate_in_the_middle();
    assert_eq!(second, [Ok(()); 12]);
    // The last completion may come when the next doorbell has been missed already.
    let good = first.iter().filter(|result| result.is_ok()).count();
    assert!(good <= 4, "{first:?}");
    assert!(first.iter().all(|result| matches!(result, Ok(()) | Err(Cause::ControllerLost))), "{first:?}");
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    assert!(error.to_string().contains("truncated the file of its doorbells"), "{error}");
}

/// What the documentation says of a program that has installed no handler, in a process of its own.
#[test]
fn without_a_handler_truncated_doorbells_end_the_process() {
    const CHILD: &str = "KIOVEC_TRUNCATES";
    if std::env::var_os(CHILD).is_some() {
        use rustix::process::{Resource, Rlimit, setrlimit};
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        truncate_in_the_middle();
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let name = "controller::without_a_handler_truncated_doorbells_end_the_process";
    let status = child.args(["--exact", name]).env(CHILD, "1").output().unwrap().status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// It stops in the middle of I/O and keeps the connection: all of it comes back at the deadline.
#[test]
fn a_controller_that_stalls_is_reported() {
    for way in [Way::Mapped, Way::Messages] {
        let server = Server::start(move |peer| {
            let mut stream = peer.stream.try_clone().unwrap();
            Nvme::new(peer, way, 5).run();
            // Whatever comes, until the client gives up.
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        let space = DmaSpace::new().unwrap();
        let function = server.open(Duration::from_secs(1)).unwrap();
        let controller = Controller::open(Arc::new(function), &space).unwrap();
        let mut poller = Poller::new(16);
        let queue = poller.add_queue(&controller, QueueOptions::default().depth(4).merge(false)).unwrap();
        let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
        for lba in 0..12 {
            poller.submit(disk, IoContainer::read(lba, space.allocate(4096).unwrap())).unwrap();
        }
        let (mut good, mut lost) = (0, 0);
        let began = std::time::Instant::now();
        while good + lost < 12 {
            assert!(began.elapsed() < LONG, "{way:?}: {good} good, {lost} lost");
            poller.poll(|done| match done.result().map_err(|failure| failure.cause) {
                Ok(()) => good += 1,
                Err(cause) => {
                    assert_eq!(cause, Cause::ControllerLost);
                    lost += 1;
                }
            });
        }
        assert!(good <= 4, "{good} good");
        let error = controller.check().unwrap_err().to_string();
        assert!(error.contains("no answer to REGION_READ in 1000 ms"), "{error}");
        server.end();
    }
}

/// A server asks for what it may not have.
#[test]
fn a_server_reaches_what_is_mapped_for_it_and_no_more() {
    let server = Server::start(|peer| {
        let mut nvme = Nvme::new(peer, Way::Messages, 1);
        let ask = |nvme: &mut Nvme, command, payload: &[u8]| {
            nvme.peer.send(&message(1, command, 0, 0, payload), &[]);
            loop {
                let message = nvme.peer.next().unwrap();
                if message.header.is_reply() {
                    return message;
                }
                nvme.handle(&message);
            }
        };
        // Until both mappings are there.
        while nvme.files.len() < 2 {
            let request = nvme.peer.next().unwrap();
            nvme.handle(&request);
        }
        let (iova, len, ..) = nvme.files[0];
        let (table, ..) = nvme.files[1];
        let read = |at: u64, count: u64| longs(&[at, count]);
        for (command, payload, errno) in [
            (11, read(iova, 8), None),
            (11, read(iova + len - 8, 8), None),
            (11, read(iova + len - 8, 9), Some(14)),
            (11, read(iova - 1, 1), Some(14)),
            (11, read(u64::MAX, 8), Some(14)),
            (11, read(iova, u64::MAX), Some(22)),
            (11, read(iova, (1 << 20) + 1), Some(22)),
            (11, read(iova, 1 << 20), None),
            (11, read(iova, 0), None),
            (11, words(&[0, 0, 0]), Some(22)),
            (12, [read(iova + 9, 3), vec![1, 2, 3]].concat(), None),
            (12, [read(iova, 4), vec![1, 2, 3]].concat(), Some(22)),
            (12, [read(table, 3), vec![1, 2, 3]].concat(), Some(13)),
            (11, read(table, 8), None),
            (5, vec![0; 32], Some(95)),
            (99, vec![], Some(95)),
        ] {
            let answer = ask(&mut nvme, command, &payload);
            assert_eq!(answer.header.failure(), errno, "{command} {payload:x?}");
            if errno.is_none() && command == 11 {
                let count = u64::from_ne_bytes(payload[8..16].try_into().unwrap());
                assert_eq!(answer.payload.len() as u64, 16 + count);
            }
        }
        // One that wants no reply gets none.
        nvme.peer.send(&message(2, 12, 1 << 4, 0, &[read(iova + 16, 1), vec![9]].concat()), &[]);
        nvme.run();
    });
    let space = DmaSpace::new().unwrap();
    let mut memory = space.allocate(2 << 20).unwrap();
    memory.fill(0);
    let function = server.open(LONG).unwrap();
    let attachment = space.attach(function.domain()).unwrap();
    // Asked at any time: between requests of ours, too.
    let began = std::time::Instant::now();
    loop {
        assert!(began.elapsed() < LONG);
        function.pause();
        if function.read32(8).unwrap() == u32::MAX || memory_is_written(&memory) {
            break;
        }
    }
    function.pause();
    drop((attachment, function));
    server.end();
    assert_eq!(memory.to_vec()[..20], [[0; 9].as_slice(), &[1, 2, 3], &[0; 4], &[9, 0, 0, 0]].concat());
    fn memory_is_written(memory: &MemoryChain) -> bool {
        memory.to_vec()[16] == 9
    }
}
