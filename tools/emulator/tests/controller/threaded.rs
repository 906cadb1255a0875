//! The controller in a thread of its own.

use std::time::{Duration, Instant};

use kiovec::spec::{Command, Status, registers};
use kiovec_emulator::{Config, Emulator, Error};

use crate::host::Host;

fn spawn(text: &str) -> Host {
    Host::of(Emulator::spawn(Config::parse(text).unwrap()).unwrap())
}

#[test]
fn it_comes_up_and_does_io() {
    let mut host = spawn("size=16M,media=ram");
    host.enable();
    host.create_pair(1, 64);
    let (memory, iova) = host.buffer(4096, 0x3c);
    assert_eq!(host.try_io(Command::write(1, 7, 0).with_prps(iova, 0)), Status::SUCCESS);
    let (back, iova) = host.buffer(4096, 0);
    assert_eq!(host.try_io(Command::read(1, 7, 0).with_prps(iova, 0)), Status::SUCCESS);
    assert_eq!(back.to_vec(), memory.to_vec());
    host.disable();
}

#[test]
fn many_commands_in_flight() {
    let mut host = spawn("");
    host.enable();
    host.create_pair(1, 64);
    let (_memory, iova) = host.buffer(4096, 0);
    let (mut submitted, mut done) = (0, 0);
    let end = Instant::now() + Duration::from_secs(600);
    while done < 20_000 {
        while submitted - done < 63 {
            host.push(1, Command::read(1, submitted % 1000, 0).with_prps(iova, 0));
            submitted += 1;
        }
        host.ring(1);
        while let Some(entry) = host.reap(1) {
            assert_eq!(entry.status(), Status::SUCCESS);
            done += 1;
        }
        assert!(Instant::now() < end);
    }
}

#[test]
fn registers_and_mappings_are_served_while_it_is_busy_or_asleep() {
    let mut host = spawn("");
    host.enable();
    host.create_pair(1, 64);
    for round in 0..200 {
        for _ in 0..20 {
            host.push(1, Command::flush(1));
        }
        host.ring(1);
        // A mapping comes and goes while commands are in flight: the rings are found again.
        host.map_and_unmap();
        assert!(host.csts().rdy());
        let mut done = 0;
        while done < 20 {
            done += usize::from(host.reap(1).is_some());
            host.function.pause();
        }
        if round % 100 == 0 {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn pulling_it_leaves_nothing_running() {
    let mut host = spawn("");
    host.enable();
    host.create_pair(1, 64);
    let function = host.function.clone();
    drop(host);
    assert_eq!(function.read32(registers::CSTS).unwrap(), u32::MAX);
    assert!(function.reset().is_err());
    assert_eq!(std::sync::Arc::strong_count(&function), 1);
}

#[test]
fn a_processor_that_is_not_there_is_an_error() {
    let config = Config { core: Some(1000), ..Config::default() };
    let error = Emulator::spawn(config).unwrap_err();
    assert!(matches!(error, Error::Thread { .. }), "{error}");
    assert!(error.to_string().contains("processor 1000"), "{error}");
    let config = Config { core: Some(0), ..Config::default() };
    drop(Emulator::spawn(config).unwrap());
    let config = Config { block: 3, ..Config::default() };
    assert!(matches!(Emulator::spawn(config), Err(Error::Config(_))));
}
