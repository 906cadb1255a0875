//! One client after another.

use std::os::fd::AsFd;

use kiovec::pci::vfio_user::message::{REGION_BAR0, REGION_CONFIG};
use kiovec::spec::registers;
use kiovec::spec::{Command, Csts};

use crate::host::{DATA, Host, IOVA};
use crate::peer::Rig;

#[test]
fn the_next_client_finds_a_controller_as_after_power_on() {
    let rig = Rig::new("size=16M,media=ram,queues=2");
    let mut last = None;
    for round in 0..5u8 {
        let mut host = Host::new(&rig);
        host.create_pair(1);
        if round > 0 {
            assert_eq!(host.read_block(1), [round - 1; 4096]);
        }
        host.write_block(1, round);
        // It vanishes in the middle: commands are in flight, and nobody takes their completions.
        for lba in 0..10 {
            host.submit(1, Command::read(1, lba, 0).with_prps(IOVA + DATA, 0));
        }
        // Doorbells that were the last client's are nobody's now.
        if let Some(doorbells) = last.replace(host.doorbells.as_fd().try_clone_to_owned().unwrap()) {
            rustix::io::pwrite(&doorbells, &[0xff; 4096], 0x1000).unwrap();
        }
        drop(host);
        assert_eq!(rig.end(), "it has closed the connection");
        let mut peer = rig.client();
        assert_eq!(peer.read(REGION_BAR0, registers::CC, 4).unwrap(), [0; 4]);
        assert_eq!(
            peer.read(REGION_BAR0, registers::CSTS, 4).unwrap(),
            Csts::new().into_bits().to_le_bytes()
        );
        assert_eq!(peer.read(REGION_BAR0, registers::ASQ, 16).unwrap(), [0; 16]);
        assert_eq!(peer.read(REGION_CONFIG, 4, 2).unwrap(), [2, 0]);
        drop(peer);
        rig.end();
    }
    assert_eq!(rig.stop().bad_doorbells, 0);
}

#[test]
fn a_second_client_waits_for_its_turn() {
    let rig = Rig::new("size=16M,media=ram");
    let mut first = Host::with_queue(&rig);
    let second = rig.stream();
    first.write_block(0, 1);
    drop(first);
    let mut second = crate::peer::Peer::new(second);
    second.version();
    assert_eq!(rig.end(), "it has closed the connection");
}

#[test]
fn a_server_that_is_stopped_sends_its_client_away() {
    let rig = Rig::new("size=16M");
    let peer = rig.client();
    rig.stop();
    assert!(peer.receive().is_none());
}

#[test]
fn a_removed_device_reads_as_ones_and_is_there_again_for_the_next() {
    let rig = Rig::new("size=16M,unplug_after=1");
    for _ in 0..2 {
        let mut host = Host::with_queue(&rig);
        for _ in 0..2 {
            host.submit(1, Command::read(1, 0, 0).with_prps(IOVA + DATA, 0));
        }
        host.wait(|host| (host.read32(registers::CSTS) == u32::MAX).then_some(()));
        drop(host);
        rig.end();
    }
}
