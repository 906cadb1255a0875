//! What happens to a device without the host's doing, and what the host is told of it.

use kiovec::spec::command::NSID_ALL;
use kiovec::spec::identify::{ActiveNamespaces, Namespace};
use kiovec::spec::log::{WARNING_SPARE, WARNING_TEMPERATURE};
use kiovec::spec::{AsyncEvent, ChangedNamespaces, Cns, Command, FeatureId, LogPage, SmartLog, Status};
use kiovec_emulator::{Faults, Health, Register};
use zerocopy::FromBytes;

use crate::host::Host;

/// CDW10 of Get Log Page: Retain Asynchronous Event.
const RETAIN: u32 = 1 << 15;

/// A host that has asked for these events, with so many requests outstanding.
fn listening(text: &str, wanted: u32, requests: usize) -> Host {
    let mut host = Host::with_queue(text);
    host.admin(Command::set_features(FeatureId::ASYNC_EVENT_CONFIGURATION, wanted));
    for _ in 0..requests {
        listen(&mut host);
    }
    host
}

fn listen(host: &mut Host) {
    host.push(0, Command::async_event_request());
    host.ring(0);
    host.settle();
}

/// What has been reported since the last time: type, information and log page.
fn reported(host: &mut Host) -> Vec<(u8, u8, u8)> {
    host.settle();
    let events = host.reap_all(0).into_iter().map(|entry| AsyncEvent(entry.dw0));
    events.map(|event| (event.event_type(), event.info(), event.log_page().0)).collect()
}

fn fetch<T: FromBytes>(host: &mut Host, command: Command) -> Result<T, Status> {
    let (memory, iova) = host.buffer(4096, 0xaa);
    match host.try_admin(command.with_prps(iova, 0)) {
        Status::SUCCESS => Ok(T::read_from_prefix(&memory.to_vec()).unwrap().0),
        status => Err(status),
    }
}

fn log<T: FromBytes>(host: &mut Host, page: LogPage, retain: bool) -> T {
    let mut command = Command::get_log_page(page, NSID_ALL, 0, size_of::<T>() as u32);
    command.cdw10 |= if retain { RETAIN } else { 0 };
    fetch(host, command).unwrap()
}

fn changed(host: &mut Host, retain: bool) -> Vec<u32> {
    let list: ChangedNamespaces = log(host, LogPage::CHANGED_NAMESPACES, retain);
    list.nsids.into_iter().take_while(|nsid| *nsid != 0).collect()
}

const NAMESPACE_CHANGED: (u8, u8, u8) = (2, 0, 4);

#[test]
fn a_change_is_reported_once_until_its_list_is_read() {
    let mut host = listening("namespaces=4", 0x100, 3);
    assert!(host.emulator.resize(3, 10) && !host.emulator.resize(3, 10) && !host.emulator.resize(5, 10));
    assert!(!host.emulator.resize(0, 1) && !host.emulator.resize(1, u64::MAX));
    assert_eq!(reported(&mut host), [NAMESPACE_CHANGED]);
    assert!(host.emulator.resize(1, 10));
    assert_eq!(reported(&mut host), []);
    // Read and retained: nothing changes.
    assert_eq!(changed(&mut host, true), [1, 3]);
    assert_eq!(reported(&mut host), []);
    assert_eq!(changed(&mut host, false), [1, 3]);
    // What was to be reported has been read.
    assert_eq!(reported(&mut host), []);
    assert!(changed(&mut host, false).is_empty());
    assert!(host.emulator.resize(2, 10));
    assert_eq!(reported(&mut host), [NAMESPACE_CHANGED]);
}

#[test]
fn what_nobody_asked_for_is_not_reported() {
    let mut host = listening("", 0b10, 4);
    host.emulator.resize(1, 10);
    host.emulator.activate_firmware();
    host.emulator.set_health(Health { critical_warning: WARNING_SPARE, ..Health::default() });
    assert_eq!(reported(&mut host), []);
    assert_eq!(changed(&mut host, false), [1]);
    host.emulator.set_health(Health { critical_warning: WARNING_TEMPERATURE, ..Health::default() });
    assert_eq!(reported(&mut host), [(1, 1, 2)]);
}

#[test]
fn health_is_in_its_log() {
    let mut host = listening("", 0xff, 1);
    let health = Health {
        critical_warning: WARNING_SPARE,
        temperature: 355,
        available_spare: 3,
        percentage_used: 101,
    };
    host.emulator.set_health(health);
    assert_eq!(reported(&mut host), [(1, 2, 2)]);
    let smart: SmartLog = log(&mut host, LogPage::SMART, false);
    assert_eq!((smart.critical_warning, smart.temperature_kelvin()), (1, 355));
    assert_eq!((smart.available_spare, smart.percentage_used), (3, 101));
}

#[test]
fn a_notice_waits_for_the_other_one_to_be_read() {
    let mut host = listening("", 0x300, 2);
    host.emulator.activate_firmware();
    host.emulator.resize(1, 9);
    assert_eq!(reported(&mut host), [(2, 1, 3)]);
    let _: [u8; 512] = log(&mut host, LogPage::FIRMWARE_SLOT, true);
    assert_eq!(reported(&mut host), []);
    let _: [u8; 512] = log(&mut host, LogPage::FIRMWARE_SLOT, false);
    assert_eq!(reported(&mut host), [NAMESPACE_CHANGED]);
}

#[test]
fn sizes_are_those_of_now() {
    let mut host = listening("size=1M,block=4096,media=ram", 0, 0);
    let size = |host: &mut Host| {
        let data: Namespace = fetch(host, Command::identify(Cns::NAMESPACE, 1, 0)).unwrap();
        assert_eq!(data.capacity_bytes(), u128::from(data.nsze) * 4096);
        data.nsze
    };
    let (memory, iova) = host.buffer(4096, 0x77);
    let at = |command: Command| command.with_prps(iova, 0);
    assert_eq!(size(&mut host), 256);
    assert_eq!(host.try_io(at(Command::write(1, 200, 0))), Status::SUCCESS);
    host.emulator.resize(1, 100);
    assert_eq!(size(&mut host), 100);
    assert_eq!(host.try_io(at(Command::read(1, 100, 0))), Status::LBA_OUT_OF_RANGE.with_dnr());
    host.emulator.resize(1, 1000);
    assert_eq!(host.try_io(at(Command::write(1, 999, 0))), Status::SUCCESS);
    // What was cut off is lost.
    assert_eq!(host.try_io(at(Command::read(1, 200, 0))), Status::SUCCESS);
    assert_eq!(memory.to_vec(), [0; 4096]);
}

#[test]
fn a_detached_namespace_is_not_active() {
    let mut host = listening("namespaces=3", 0x100, 2);
    let (_memory, iova) = host.buffer(4096, 0);
    let none = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
    let identify = Command::identify(Cns::NAMESPACE, 2, 0);
    let list = |host: &mut Host| {
        let list: ActiveNamespaces = fetch(host, Command::identify(Cns::ACTIVE_NAMESPACES, 0, 0)).unwrap();
        list.iter().collect::<Vec<_>>()
    };
    let read = Command::read(2, 0, 0).with_prps(iova, 0);
    assert!(host.emulator.detach(2) && !host.emulator.detach(2) && !host.emulator.detach(4));
    assert_eq!(reported(&mut host), [NAMESPACE_CHANGED]);
    assert_eq!(changed(&mut host, false), [2]);
    assert_eq!(fetch::<Namespace>(&mut host, identify).map(|data| data.nsze), Err(none));
    assert_eq!(host.try_io(read), none);
    assert_eq!(list(&mut host), [1, 3]);
    assert!(host.emulator.attach(2) && !host.emulator.attach(2));
    assert_eq!(reported(&mut host), [NAMESPACE_CHANGED]);
    assert_eq!(host.try_io(read), Status::SUCCESS);
    assert_eq!(list(&mut host), [1, 2, 3]);
}

#[test]
fn data_and_registers_are_patched_by_the_plan() {
    let mut host = Host::new("namespaces=2");
    let faults = Faults::default()
        .identify(Cns::NAMESPACE, 2, 0, u64::MAX.to_le_bytes())
        .register(Register::new(kiovec::spec::registers::VS, 0xff00, 0x0100));
    host.emulator.set_faults(faults);
    let size = |host: &mut Host, nsid| {
        let data: Namespace = fetch(host, Command::identify(Cns::NAMESPACE, nsid, 0)).unwrap();
        data.nsze
    };
    assert_eq!((size(&mut host, 1), size(&mut host, 2)), (1 << 18, u64::MAX));
    assert_eq!(host.function.read32(kiovec::spec::registers::VS).unwrap(), 0x0002_0100);
    host.emulator.set_faults(Faults::default());
    assert_eq!(size(&mut host, 2), 1 << 18);
    assert_eq!(host.function.read32(kiovec::spec::registers::VS).unwrap(), 0x0002_0000);
}
