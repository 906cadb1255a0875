//! Registers, enabling, reset and shutdown (Base 2.0, sections 3.1.3, 3.5, 3.6, 3.7).

use std::time::Duration;

use kiovec::spec::registers::{self, *};
use kiovec::spec::{Cc, Command, Status, Version};
use kiovec_emulator::{Config, Emulator};

use crate::host::Host;

#[test]
fn capabilities_are_as_configured() {
    let host = Host::cold("mqes=255,to=7,mpsmin=1");
    let cap = host.cap();
    assert_eq!((cap.mqes(), cap.to(), cap.mpsmin(), cap.mpsmax()), (255, 7, 1, 5));
    assert!(cap.cqr() && cap.crwms() && !cap.cmbs() && !cap.nssrs());
    assert_eq!((cap.css(), cap.dstrd()), (1, 4));
    let version = Version::from_bits(host.function.read32(VS).unwrap());
    assert_eq!(version.to_string(), "2.0.0");
    assert_eq!(host.function.read32(CRTO).unwrap(), 7);
    assert_eq!(host.function.name(), "emulated:mqes=255,to=7,mpsmin=1");
}

#[test]
fn undefined_registers_read_as_zero_and_ignore_writes() {
    let host = Host::cold("");
    for offset in [0x38, 0x40, 0x100, 0xffc, NSSR, DOORBELLS + 4] {
        host.function.write32(offset, 0xffff_ffff).unwrap();
        assert_eq!(host.function.read32(offset).unwrap(), 0);
    }
    let cap = host.cap();
    host.function.write64(CAP, 0).unwrap();
    host.function.write32(VS, 0).unwrap();
    host.function.write32(CSTS, u32::MAX).unwrap();
    assert_eq!(host.cap(), cap);
    assert_eq!(host.csts().into_bits(), 0);
    assert!(host.function.read32(2).is_err());
    assert!(host.function.read32(1 << 20).is_err());
    assert!(host.function.read64(4).is_err());
}

#[test]
fn queue_registers_keep_what_is_not_reserved() {
    let host = Host::cold("");
    host.function.write32(AQA, u32::MAX).unwrap();
    host.function.write64(ASQ, u64::MAX).unwrap();
    host.function.write64(ACQ, u64::MAX).unwrap();
    assert_eq!(host.function.read32(AQA).unwrap(), 0x0fff_0fff);
    assert_eq!(host.function.read64(ASQ).unwrap(), !0xfff);
    assert_eq!(host.function.read64(ACQ).unwrap(), !0xfff);
    host.function.write32(INTMS, 0b110).unwrap();
    host.function.write32(INTMC, 0b010).unwrap();
    assert_eq!(host.function.read32(INTMS).unwrap(), 0b100);
}

#[test]
fn ready_follows_enable_and_not_at_once() {
    let mut host = Host::cold("ready=20");
    host.prepare();
    host.write_cc(Host::usual_cc());
    for _ in 0..10 {
        assert!(!host.csts().rdy());
        host.emulator.step();
    }
    host.emulator.advance(Duration::from_millis(19));
    host.emulator.step();
    assert!(!host.csts().rdy());
    host.emulator.advance(Duration::from_millis(1));
    host.emulator.step();
    assert!(host.csts().rdy() && !host.csts().cfs());
    assert_eq!(
        host.try_admin(Command::identify(kiovec::spec::Cns::CONTROLLER, 0, 0)),
        Status::DATA_TRANSFER_ERROR
    );
}

#[test]
fn a_controller_that_is_never_ready() {
    let mut host = Host::cold("never_ready=on,to=4");
    host.prepare();
    host.write_cc(Host::usual_cc());
    let start = host.function.clock().nanos();
    while host.function.clock().nanos() - start < 2_000_000_000 {
        host.function.pause();
        assert!(!host.csts().rdy() && !host.csts().cfs());
    }
}

type Case = (&'static str, fn(&Host, Cc));

#[test]
fn an_impossible_configuration_is_fatal() {
    let cc = Host::usual_cc();
    let wrong: [Case; 9] = [
        ("css", |host, cc| host.write_cc(cc.with_css(CSS_ALL))),
        ("mps too large", |host, cc| host.write_cc(cc.with_mps(5))),
        ("ams", |host, cc| host.write_cc(cc.with_ams(1))),
        ("iosqes", |host, cc| host.write_cc(cc.with_iosqes(5))),
        ("iocqes", |host, cc| host.write_cc(cc.with_iocqes(6))),
        ("aqa", |host, cc| {
            host.function.write32(AQA, 15 << 16).unwrap();
            host.write_cc(cc);
        }),
        ("aqa", |host, cc| {
            host.function.write32(AQA, 15).unwrap();
            host.write_cc(cc);
        }),
        ("asq", |host, cc| {
            host.function.write64(ASQ, 0x1000).unwrap();
            host.write_cc(cc);
        }),
        ("acq aligned to 4096, pages of 64 KiB", |host, cc| {
            host.function.write64(ACQ, 0x1000).unwrap();
            host.write_cc(cc.with_mps(4));
        }),
    ];
    for (what, write) in wrong {
        let mut host = Host::cold("");
        host.prepare();
        write(&host, cc);
        host.settle();
        assert!(host.csts().cfs() && !host.csts().rdy(), "{what}");
        // A reset gets out of it.
        host.disable();
        assert!(!host.csts().cfs(), "{what}");
        host.enable();
    }
    let mut host = Host::cold("mpsmin=1");
    host.prepare();
    host.write_cc(cc);
    host.settle();
    assert!(host.csts().cfs(), "mps too small");
}

#[test]
fn enabling_before_the_last_reset_has_ended_is_fatal() {
    let host = Host::new("");
    host.write_cc(Cc::new());
    host.write_cc(Host::usual_cc());
    host.settle();
    assert!(host.csts().cfs());
}

#[test]
fn page_size_and_command_set_do_not_change_while_enabled() {
    let host = Host::new("");
    host.write_cc(Host::usual_cc().with_iosqes(0));
    host.settle();
    assert!(!host.csts().cfs());
    host.write_cc(Host::usual_cc().with_mps(1));
    host.settle();
    assert!(host.csts().cfs());
}

#[test]
fn a_controller_reset_forgets_queues_and_features_and_keeps_the_admin_registers() {
    let mut host = Host::with_queue("queues=8");
    let feature = kiovec::spec::FeatureId::ARBITRATION;
    assert_eq!(host.try_admin(Command::set_features(feature, 3)), Status::SUCCESS);
    let asq = host.function.read64(ASQ).unwrap();
    host.function.write32(ASQ, 0).unwrap();
    host.function.write32(INTMS, 1).unwrap();
    host.disable();
    assert_eq!(host.function.read64(ASQ).unwrap(), asq);
    assert_eq!(host.function.read32(INTMS).unwrap(), 0);
    host.enable();
    assert_eq!(host.admin(Command::get_features(feature)).dw0, 7);
    host.create_pair(1, 4);
    assert_eq!(host.emulator.counters().resets, 1);
}

#[test]
fn a_function_level_reset_clears_all_registers_and_keeps_bus_mastering() {
    let mut host = Host::with_queue("");
    host.function.reset().unwrap();
    for offset in [CC, CSTS, AQA, ASQ, ACQ, ACQ + 4, INTMS] {
        assert_eq!(host.function.read32(offset).unwrap(), 0);
    }
    let mut command = [0; 2];
    host.function.config_read(4, &mut command).unwrap();
    assert_eq!(command[0] & 0b110, 0b110);
    host.enable();
    host.create_pair(1, 4);
}

#[test]
fn a_shutdown_completes_and_ends_command_processing() {
    for shn in [SHN_NORMAL, SHN_ABRUPT] {
        let mut host = Host::new("");
        assert_eq!(host.csts().shst(), SHST_NORMAL);
        host.write_cc(Host::usual_cc().with_shn(shn));
        assert_eq!(host.csts().shst(), SHST_OCCURRING);
        host.wait(|csts| csts.shst() == SHST_COMPLETE);
        host.push(0, Command::async_event_request());
        host.ring(0);
        host.settle();
        assert_eq!(host.emulator.counters().admin_commands, 0);
        host.disable();
        assert_eq!(host.csts().shst(), SHST_NORMAL);
        host.enable();
    }
}

#[test]
fn without_bus_mastering_nothing_is_fetched() {
    let mut host = Host::new("");
    host.bus_master(false);
    host.push(0, Command::get_features(kiovec::spec::FeatureId::ARBITRATION));
    host.ring(0);
    host.settle();
    assert_eq!(host.emulator.counters().admin_commands, 0);
    host.bus_master(true);
    assert_eq!(host.reap_all(0).len(), 1);
}

#[test]
fn without_memory_decoding_registers_are_not_there() {
    let host = Host::cold("");
    host.function.set_command(1 << 1, false).unwrap();
    assert_eq!(host.function.read32(VS).unwrap(), u32::MAX);
    host.function.write32(AQA, 5).unwrap();
    host.function.set_command(1 << 1, true).unwrap();
    assert_eq!(host.function.read32(AQA).unwrap(), 0);
}

#[test]
fn a_removed_device_reads_as_ones_and_its_memory_can_be_unmapped() {
    let emulator = Emulator::stepped(Config::default()).unwrap();
    let function = emulator.function();
    let space = kiovec::memory::DmaSpace::new().unwrap();
    let attachment = space.attach(function.domain()).unwrap();
    let _memory = space.allocate(1 << 20).unwrap();
    drop(emulator);
    assert_eq!(function.read64(registers::CAP).unwrap(), u64::MAX);
    function.write32(CC, 1).unwrap();
    let mut id = [0; 4];
    function.config_read(0, &mut id).unwrap();
    assert_eq!(id, [0xff; 4]);
    assert!(function.reset().is_err());
    function.pause();
    drop(attachment);
}

#[test]
fn memory_that_is_unmapped_under_the_admin_queue_is_fatal() {
    let mut host = Host::cold("");
    host.prepare();
    host.function.write64(ASQ, 0x10_0000_0000).unwrap();
    host.write_cc(Host::usual_cc());
    host.settle();
    assert!(host.csts().cfs());
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let host = Host::cold("iova_bits=32");
    let domain = host.function.domain();
    let ranges = domain.iova_ranges();
    assert_eq!(ranges, [0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff]);
    assert!(domain.unmap(0x1000, 0x1000).unwrap_err().to_string().contains("emulated:iova_bits=32"));
    assert_eq!(Host::cold("iova_bits=64").function.domain().iova_ranges()[1], 0xfef0_0000..=u64::MAX);
}
