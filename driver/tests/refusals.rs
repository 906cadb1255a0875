//! What cannot be done is refused, in words that say what to do, and everything is as it was.
#![allow(clippy::unwrap_used)]

mod pass_on;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiovec::memory::{DmaSpace, Domain, Mapping, MemoryChain, RawCommands};
use kiovec::pci::Function;
use kiovec::spec::{Command, Status, io_opcode};
use kiovec::{Controller, DataForm, Error, IoContainer, Poller, QueueOptions, Refusal, Target};
use kiovec_emulator::{Config, Emulator};
use pass_on::pass_on;

struct Bench {
    poller: Poller,
    disk: Target,
    space: DmaSpace,
    controller: Arc<Controller>,
    emulator: Emulator,
}

/// A RAM disk of 1 MiB in blocks of 4 KiB, with room for two requests.
fn bench(settings: &str, options: QueueOptions) -> Bench {
    let settings = format!("size=1M,media=ram,{settings}");
    let emulator = Emulator::stepped(Config::parse(settings.trim_end_matches(',')).unwrap()).unwrap();
    let space = DmaSpace::new().unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(2);
    let queue = poller.add_queue(&controller, options).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { poller, disk, space, controller, emulator }
}

fn open(settings: &str) -> Result<(Emulator, Arc<Controller>), Error> {
    let emulator = Emulator::stepped(Config::parse(settings).unwrap()).unwrap();
    let controller = Controller::open(emulator.function(), &DmaSpace::new().unwrap())?;
    Ok((emulator, controller))
}

impl Bench {
    fn refused(&mut self, io: IoContainer) -> Refusal {
        let (lba, len) = (io.lba(), io.memory().len());
        let rejected = self.poller.submit(self.disk, io).unwrap_err();
        assert_eq!((rejected.io.lba(), rejected.io.memory().len()), (lba, len), "the container comes back");
        assert_eq!(self.poller.outstanding(), 0);
        rejected.reason
    }

    /// Submits and polls until everything is done.
    fn run(&mut self, io: IoContainer) -> (Result<(), kiovec::Failure>, u32, MemoryChain) {
        self.poller.submit(self.disk, io).unwrap();
        let mut out = None;
        for _ in 0..1000 {
            self.poller.poll(|done| out = Some((done.result(), done.dword0(), done.take().into_memory())));
            self.emulator.step();
        }
        out.expect("completed")
    }

    fn memory(&self, len: usize) -> MemoryChain {
        self.space.allocate(len).unwrap()
    }
}

fn trust() -> RawCommands {
    // SAFETY: the commands of these tests transfer no more than the memory they are given.
    unsafe { RawCommands::trust() }
}

#[test]
fn containers_that_do_not_fit_the_namespace() {
    let mut bench = bench("oncs=0", QueueOptions::default());
    let memory = bench.memory(8192);
    let refusal = bench.refused(IoContainer::read(255, memory));
    assert_eq!(refusal, Refusal::OutOfRange { lba: 255, blocks: 2, capacity: 256 });
    let memory = bench.memory(4096);
    assert!(matches!(bench.refused(IoContainer::write(u64::MAX, memory)), Refusal::OutOfRange { .. }));
    let memory = bench.memory(4000);
    let refusal = bench.refused(IoContainer::read(0, memory));
    assert_eq!(refusal.to_string(), "4000 bytes of memory are not a whole number of 4096-byte blocks");
    assert!(matches!(bench.refused(IoContainer::read(0, MemoryChain::new())), Refusal::Length { .. }));
    assert!(matches!(bench.refused(IoContainer::write_zeroes(0, 1)), Refusal::NotSupported(_)));
    assert!(matches!(bench.refused(IoContainer::deallocate(0, 1)), Refusal::NotSupported(_)));
}

#[test]
fn memory_that_the_controller_cannot_reach_or_be_told_of() {
    let mut prp = bench("", QueueOptions::default().data(DataForm::Prp));
    let foreign = DmaSpace::new().unwrap().allocate(4096).unwrap();
    assert_eq!(prp.refused(IoContainer::read(0, foreign)), Refusal::ForeignMemory { segment: 0 });
    // A joint inside a block, off a page boundary.
    let (mut chain, rest) = prp.memory(8192).split_at(512);
    drop(rest);
    let (_, tail) = prp.memory(8192).split_at(512);
    chain.append(tail.split_at(4096 - 512).0);
    let refusal = prp.refused(IoContainer::read(0, chain).no_bounce(true));
    assert!(matches!(refusal, Refusal::Shape { segment: 1, form: "PRPs", .. }), "{refusal:?}");
    let (_, odd) = prp.memory(8192).split_at(2);
    let refusal = prp.refused(IoContainer::read(0, odd.split_at(4096).0).no_bounce(true));
    assert!(matches!(refusal, Refusal::Shape { segment: 0, .. }), "{refusal:?}");

    let mut sgl = bench("sgl=dword", QueueOptions::default().data(DataForm::Sgl));
    let (_, odd) = sgl.memory(8192).split_at(2);
    let refusal = sgl.refused(IoContainer::read(0, odd.split_at(4096).0).no_bounce(true));
    assert!(matches!(refusal, Refusal::Shape { segment: 0, form: "SGLs", .. }), "{refusal:?}");

    let mut raw = bench("mdts=1", QueueOptions::default().data(DataForm::Prp));
    let command = Command { opcode: io_opcode::READ, ..Command::default() };
    let memory = raw.memory(16384);
    assert!(matches!(raw.refused(IoContainer::raw(&command, memory, trust())), Refusal::Shape { .. }));
}

#[test]
fn a_full_tree_returns_the_container_and_works_on() {
    let mut bench = bench("", QueueOptions::default().depth(1));
    for lba in 0..2 {
        let memory = bench.memory(4096);
        bench.poller.submit(bench.disk, IoContainer::read(lba, memory)).unwrap();
    }
    let memory = bench.memory(4096);
    let rejected = bench.poller.submit(bench.disk, IoContainer::read(2, memory)).unwrap_err();
    assert_eq!(rejected.reason, Refusal::Full);
    let mut done = 0;
    for _ in 0..10 {
        done += bench.poller.poll(|done| done.result().unwrap());
        bench.emulator.step();
    }
    assert_eq!((done, bench.poller.outstanding()), (2, 0));
    bench.poller.submit(bench.disk, rejected.io).unwrap();
}

#[test]
fn what_the_controller_refuses_comes_back_with_its_status() {
    let mut bench = bench("", QueueOptions::default());
    let command = Command { opcode: 0x7d, ..Command::default() };
    let (result, ..) = bench.run(IoContainer::raw(&command, MemoryChain::new(), trust()));
    assert_eq!(result.unwrap_err().status().unwrap().code(), Status::INVALID_OPCODE.code());
    let command = Command { cdw10: 1000, ..Command::read(1, 1000, 0) };
    let memory = bench.memory(4096);
    let (result, _, memory) = bench.run(IoContainer::raw(&command, memory, trust()));
    assert_eq!(result.unwrap_err().status().unwrap().code(), Status::LBA_OUT_OF_RANGE.code());
    // And the queue works on.
    let (result, ..) = bench.run(IoContainer::read(0, memory));
    assert_eq!(result, Ok(()));
}

#[test]
fn controllers_that_cannot_be_driven() {
    let error = open("never_ready=on,to=4").map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotReady { millis: 2000, .. }), "{error}");
    let error = open("mpsmin=1").map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("8 KiB"), "{error}");
}

#[test]
fn namespaces_queues_and_depths_that_do_not_exist() {
    let mut bench = bench("queues=2,namespaces=3", QueueOptions::default());
    let error = bench.controller.namespace(7).unwrap_err();
    assert_eq!(
        error.to_string(),
        "emulated:size=1M,media=ram,queues=2,namespaces=3 has no active namespace 7; active: 1, 2, 3"
    );
    for depth in [0, 4097] {
        let error =
            bench.poller.add_queue(&bench.controller, QueueOptions::default().depth(depth)).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
    bench.poller.add_queue(&bench.controller, QueueOptions::default()).unwrap();
    let error = bench.poller.add_queue(&bench.controller, QueueOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no more I/O queue pairs"), "{error}");
    // The namespace of one controller through the queue of another.
    let (_emulator, other) = open("").unwrap();
    let queue = bench.poller.add_queue(&other, QueueOptions::default()).unwrap();
    let error = bench.poller.add_namespace(queue, &bench.controller.namespace(1).unwrap()).unwrap_err();
    assert!(error.to_string().contains("another controller"), "{error}");
    // Dropping a poller gives its queue pairs back.
    bench.poller = Poller::new(1);
    for _ in 0..2 {
        bench.poller.add_queue(&bench.controller, QueueOptions::default()).unwrap();
    }
    let error =
        bench.poller.add_queue(&bench.controller, QueueOptions::default().data(DataForm::Sgl)).unwrap_err();
    assert!(error.to_string().contains("no SGLs"), "{error}");
}

#[test]
fn a_target_of_another_poller() {
    let (mut one, other) = (bench("", QueueOptions::default()), bench("", QueueOptions::default()));
    let memory = one.memory(4096);
    let rejected = one.poller.submit(other.disk, IoContainer::write(0, memory)).unwrap_err();
    assert_eq!(rejected.reason, Refusal::ForeignTarget);
}

#[test]
fn admin_commands_of_ones_own() {
    let bench = bench("", QueueOptions::default());
    let identify = Command { dptr: [0x1000, 0], ..Command::identify(kiovec::spec::Cns::CONTROLLER, 0, 0) };
    let (completion, memory) =
        bench.controller.admin(&identify, bench.memory(4096), u64::MAX, trust()).unwrap();
    assert!(completion.status().is_success());
    let serial = &memory.to_vec()[4..16];
    assert_eq!(serial, b"EMULATED0001");
    // Without memory there is no address in the command, whatever the caller put there.
    let (completion, _) = bench.controller.admin(&identify, MemoryChain::new(), 1000, trust()).unwrap();
    assert!(!completion.status().is_success());
    let foreign = DmaSpace::new().unwrap().allocate(4096).unwrap();
    assert!(bench.controller.admin(&identify, foreign, 1000, trust()).is_err());
}

/// Unmapping needs the function's IOMMU, so it comes before the function is closed.
#[test]
fn memory_is_unmapped_before_the_function_is_closed() {
    let emulator = Emulator::stepped(Config::default()).unwrap();
    let space = DmaSpace::new().unwrap();
    let open = Arc::new(AtomicBool::new(true));
    let domain = Arc::new(Watched { inner: emulator.function().domain(), open: Arc::clone(&open) });
    let function = Arc::new(Closing { inner: emulator.function(), domain, open });
    let before = space.allocate(4096).unwrap().segments()[0].iova();
    drop(Controller::open(function, &space).unwrap());
    // Nothing had to be retired.
    assert_eq!(space.allocate(4096).unwrap().segments()[0].iova(), before);
}

/// A function after whose end nothing can be unmapped, as with VFIO.
struct Closing {
    inner: Arc<dyn Function>,
    domain: Arc<dyn Domain>,
    open: Arc<AtomicBool>,
}

struct Watched {
    inner: Arc<dyn Domain>,
    open: Arc<AtomicBool>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.open.store(false, Ordering::Relaxed);
    }
}

impl Domain for Watched {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        self.inner.iova_ranges()
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<(), Error> {
        self.inner.map(mapping)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), Error> {
        match self.open.load(Ordering::Relaxed) {
            true => self.inner.unmap(iova, len),
            false => Err(Error::InvalidInput("the IOMMU is gone".into())),
        }
    }
}

impl Function for Closing {
    pass_on! { inner: name, config_read, config_write, read32, read64, write32, write64, doorbells, reset, clock, pause }

    fn domain(&self) -> Arc<dyn Domain> {
        Arc::clone(&self.domain)
    }
}

#[test]
fn a_controller_that_was_pulled_is_noticed() {
    let Bench { mut poller, disk, space, controller, emulator } = bench("", QueueOptions::default());
    poller.submit(disk, IoContainer::read(0, space.allocate(4096).unwrap())).unwrap();
    poller.poll(|_| {});
    drop(emulator);
    assert!(matches!(controller.check(), Err(Error::Gone { .. })));
    assert!(matches!(controller.active_namespaces(), Err(Error::Gone { .. })));
    drop((poller, controller));
}

#[test]
fn a_panic_in_the_closure_leaves_the_poller_whole() {
    let mut bench = bench("", QueueOptions::default());
    let memory = bench.memory(4096);
    bench.poller.submit(bench.disk, IoContainer::read(0, memory)).unwrap();
    bench.poller.poll(|_| {});
    bench.emulator.step();
    let poll = std::panic::AssertUnwindSafe(|| bench.poller.poll(|_| panic!("the caller's own")));
    std::panic::catch_unwind(poll).unwrap_err();
    assert_eq!(bench.poller.outstanding(), 0);
    let memory = bench.memory(4096);
    assert_eq!(bench.run(IoContainer::read(0, memory)).0, Ok(()));
}

/// What is prepared for one container's memory and namespace must not serve another that is put in
/// its place.
#[test]
fn a_container_put_in_anothers_place_goes_where_it_says() {
    let mut bench = bench("namespaces=2", QueueOptions::default());
    let mut memory = bench.memory(4096);
    memory.fill(1);
    bench.poller.submit(bench.disk, IoContainer::write(0, memory)).unwrap();
    let mut other = bench.memory(4096);
    other.fill(2);
    let mut other = Some(IoContainer::write(1, other));
    for _ in 0..10 {
        bench.poller.poll(|mut done| {
            done.result().unwrap();
            if let Some(mut other) = other.take() {
                std::mem::swap(done.io_mut(), &mut other);
                done.resubmit().unwrap();
            }
        });
        bench.emulator.step();
    }
    let memory = bench.memory(8192);
    let (result, _, memory) = bench.run(IoContainer::read(0, memory));
    result.unwrap();
    let bytes = memory.to_vec();
    assert_eq!((bytes[0], bytes[4096]), (1, 2));
}

#[test]
fn a_poller_that_goes_away_ends_its_commands_first() {
    let mut bench = bench("", QueueOptions::default());
    let memory = bench.memory(64 << 10);
    let iova = memory.segments()[0].iova();
    bench.poller.submit(bench.disk, IoContainer::read(0, memory)).unwrap();
    // The controller is told, and never gets to carry it out.
    bench.poller.poll(|_| {});
    bench.poller = Poller::new(1);
    // First fit: had it not come back, new memory would lie behind it.
    assert!(bench.memory(64 << 10).segments()[0].iova() <= iova, "the memory came back");
}
