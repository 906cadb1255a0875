//! Faults as a host sees them, and as the emulator counts them.

use std::time::Duration;

use kiovec::memory::DmaSpace;
use kiovec::spec::{Cns, Command, Completion, Status, admin_opcode, registers};
use kiovec::{Controller, Event, IoContainer, Poller, QueueId, QueueOptions, Target};
use kiovec_emulator::{Commands, Config, Effect, Emulator, Fault, Faults};
use proptest::prelude::*;

use crate::host::{Host, Words};

/// A host with queue pair 1, of 64 entries each.
fn host(text: &str) -> Host {
    let mut host = Host::new(text);
    host.create_pair(1, 64);
    host
}

/// The plan in which one thing happens to I/O commands.
fn all_io(effect: Effect) -> Faults {
    Faults::default().with(Fault::new(Commands::io(), effect))
}

impl Host {
    /// Submits a read of one block, without data to speak of, and returns its CID.
    fn submit_read(&mut self, slba: u64, iova: u64) -> u16 {
        let cid = self.push(1, Command::read(1, slba, 0).with_prps(iova, 0));
        self.ring(1);
        cid
    }

    /// Submits reads of blocks 0 to `count`, as one.
    fn submit_reads(&mut self, count: u64, iova: u64) -> Vec<u16> {
        let reads = (0..count).map(|slba| Command::read(1, slba, 0).with_prps(iova, 0));
        let cids = reads.map(|read| self.push(1, read)).collect();
        self.ring(1);
        cids
    }

    /// What has been posted so far, without a step.
    fn posted(&mut self) -> Vec<Completion> {
        std::iter::from_fn(|| self.reap(1)).collect()
    }

    /// CIDs of what has been posted so far.
    fn posted_cids(&mut self) -> Vec<u16> {
        self.posted().iter().map(|entry| entry.cid).collect()
    }
}

#[test]
fn blocks_fail_for_the_commands_that_touch_them() {
    let mut host = host("size=1M,media=ram");
    let (memory, iova) = host.buffer(8192, 0x5a);
    let error = Status::UNRECOVERED_READ_ERROR.with_dnr();
    let bad = Fault::new(Commands::reads().lbas(10..12), Effect::Status(error));
    host.emulator.set_faults(Faults::default().with(bad));
    let read = |slba, nlb| Command::read(1, slba, nlb).with_prps(iova, iova + 4096);
    assert_eq!(host.try_io(read(10, 0)), error);
    assert_eq!(host.try_io(read(9, 1)), error);
    assert_eq!(memory.to_vec(), [0x5a; 8192], "a command that fails moves no data");
    assert_eq!(host.try_io(read(12, 0)), Status::SUCCESS);
    assert_eq!(host.try_io(read(8, 1)), Status::SUCCESS);
    assert_eq!(host.try_io(Command::write(1, 10, 0).with_prps(iova, 0)), Status::SUCCESS);
    let counters = host.emulator.counters();
    assert_eq!((counters.faults.errors, counters.errors, counters.reads), (2, 2, 2));
    assert_eq!(host.emulator.injections(), [2]);
}

#[test]
fn a_transient_error_ends() {
    let mut host = host("");
    let fault = Fault::new(Commands::io(), Effect::Status(Status::COMMAND_INTERRUPTED));
    host.emulator.set_faults(Faults::default().with(fault.after(1).times(2)));
    let statuses = [0; 5].map(|_| host.try_io(Command::flush(1)));
    let (ok, failed) = (Status::SUCCESS, Status::COMMAND_INTERRUPTED);
    assert_eq!(statuses, [ok, failed, failed, ok, ok]);
}

#[test]
fn settings_have_bad_blocks() {
    let mut host = host("size=1M,read_error=3,write_error=0x10-0x1f");
    let (_memory, iova) = host.buffer(4096, 0);
    let read = |slba| Command::read(1, slba, 0).with_prps(iova, 0);
    let write = |slba| Command::write(1, slba, 0).with_prps(iova, 0);
    assert_eq!(host.try_io(read(3)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(host.try_io(read(0x10)), Status::SUCCESS);
    assert_eq!(host.try_io(write(0x1f)), Status::WRITE_FAULT);
    assert_eq!(host.try_io(write(3)), Status::SUCCESS);
}

#[test]
fn admin_commands_fail_too() {
    let mut host = host("");
    let create = Commands::admin().opcode(admin_opcode::CREATE_IO_SQ);
    host.emulator
        .set_faults(Faults::default().with(Fault::new(create, Effect::Status(Status::INTERNAL_ERROR))));
    host.create_cq(2, 8);
    let sq = host.sq(2, 8);
    let command = Command::create_io_sq(2, 8, sq.words.iova(), 2);
    assert_eq!(host.try_admin(command), Status::INTERNAL_ERROR);
    host.emulator.set_faults(Faults::default());
    assert_eq!(host.try_admin(command), Status::SUCCESS);
}

#[test]
fn a_plan_that_was_not_reached_is_seen() {
    let mut host = host("");
    let never = Fault::new(Commands::writes(), Effect::Drop);
    let late = Fault::new(Commands::io(), Effect::Status(Status::INTERNAL_ERROR)).after(1);
    host.emulator.set_faults(Faults::default().with(never).with(late));
    assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    assert_eq!(host.emulator.injections(), [0, 0]);
    assert_eq!(host.emulator.counters().faults, Default::default());
}

#[test]
fn held_commands_complete_in_the_order_of_their_release() {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    host.emulator.hold(Commands::reads().lbas(1..));
    let cids = host.submit_reads(4, iova);
    host.settle();
    assert_eq!(host.posted_cids(), [cids[0]]);
    let held = host.emulator.held();
    assert_eq!(
        held.iter().map(|(qid, command)| (*qid, command.slba())).collect::<Vec<_>>(),
        [(1, 1), (1, 2), (1, 3)]
    );
    let block = |slba: u64| Commands::io().lbas(slba..=slba);
    assert_eq!(host.emulator.release(block(3)), 1);
    assert_eq!(host.emulator.release(block(1)), 1);
    assert_eq!(host.emulator.release(block(1)), 0);
    assert_eq!(host.posted(), [], "nothing happens but in steps");
    host.settle();
    assert_eq!(host.posted_cids(), [cids[3], cids[1]]);
    // What comes later is held as well, until nothing is.
    let last = host.submit_read(1, iova);
    host.settle();
    assert_eq!(host.emulator.held().len(), 2);
    assert_eq!(host.emulator.release_all(), 2);
    host.settle();
    assert_eq!(host.posted_cids(), [cids[2], last]);
    assert_eq!(host.try_io(Command::read(1, 1, 0).with_prps(iova, 0)), Status::SUCCESS);
    let faults = host.emulator.counters().faults;
    assert_eq!((faults.held, faults.overtaken), (4, 2));
}

#[test]
fn held_commands_touch_memory_when_they_are_released() {
    let mut host = host("size=1M,media=ram,random_order=on");
    let (mut memory, iova) = host.buffer(4096, 1);
    for seed in 0..8 {
        host.emulator.set_faults(Faults::seeded(seed).random_order());
        memory.fill(1);
        host.emulator.hold(Commands::writes());
        host.push(1, Command::write(1, 0, 0).with_prps(iova, 0));
        host.ring(1);
        host.settle();
        // A host must not do this: the controller has not read the memory yet.
        memory.fill(2);
        host.emulator.release_all();
        host.settle();
        assert_eq!(host.posted().len(), 1);
        memory.fill(0);
        assert_eq!(host.try_io(Command::read(1, 0, 0).with_prps(iova, 0)), Status::SUCCESS);
        assert_eq!(memory.to_vec(), [2; 4096]);
    }
}

#[test]
fn random_order_moves_data_early_or_late() {
    let mut host = host("size=1M,media=ram");
    let mut early = 0;
    for seed in 0..40 {
        let (mut memory, iova) = host.buffer(4096, 1);
        // The command is fetched in one step and completes in another.
        let delay = Fault::new(Commands::writes(), Effect::DelaySteps(1));
        host.emulator.set_faults(Faults::seeded(seed).random_order().with(delay));
        host.push(1, Command::write(1, 0, 0).with_prps(iova, 0));
        host.ring(1);
        assert_eq!(host.emulator.step(), 2);
        assert_eq!(host.posted(), []);
        memory.fill(2);
        host.settle();
        assert_eq!(host.posted().len(), 1);
        assert_eq!(host.try_io(Command::read(1, 0, 0).with_prps(iova, 0)), Status::SUCCESS);
        early += usize::from(memory.to_vec() == [1; 4096]);
    }
    assert!((10..30).contains(&early), "{early}");
}

/// From the doorbell on until it is carried out, a command may touch its memory.
#[test]
fn memory_is_in_use_until_the_command_is_carried_out() {
    let mut host = host("size=1M,block=512,media=ram,mdts=5");
    let (_memory, iova) = host.buffer(5 * 4096, 0);
    let list = Words::new(&host.space, 4096);
    let in_use = |host: &Host, from: u64, to: u64| host.emulator.may_touch(&(iova + from..iova + to));
    // Two blocks of 512 bytes, and then three pages by a list.
    host.push(1, Command::read(1, 0, 1).with_prps(iova + 4096, 0));
    host.ring(1);
    assert_eq!(host.emulator.outstanding(), 1, "it was not fetched yet");
    assert!(in_use(&host, 0, 4097) && in_use(&host, 4096 + 1023, 8192) && in_use(&host, 0, 8192));
    assert!(!in_use(&host, 0, 4096) && !in_use(&host, 4096 + 1024, 8192));
    host.emulator.hold(Commands::writes());
    host.settle();
    assert!(!in_use(&host, 0, 8192));
    list.store(0, &[iova + 3 * 4096, iova + 4096]);
    host.push(1, Command::write(1, 0, 23).with_prps(iova, list.iova()));
    host.ring(1);
    host.settle();
    assert_eq!(host.emulator.outstanding(), 1, "it is held");
    assert!(in_use(&host, 0, 4096) && in_use(&host, 4096, 8192) && in_use(&host, 3 * 4096, 4 * 4096));
    assert!(!in_use(&host, 2 * 4096, 3 * 4096) && !in_use(&host, 4 * 4096, 5 * 4096));
    host.bus_master(false);
    assert!(!in_use(&host, 0, 4096), "off the bus");
    host.bus_master(true);
    host.disable();
    assert_eq!(host.emulator.outstanding(), 0);
}

/// More Aborts at a time than the Abort Command Limit fail.
#[test]
fn aborts_are_limited() {
    let mut host = host("acl=1");
    let abort = Commands::admin().opcode(admin_opcode::ABORT);
    host.emulator.set_faults(Faults::default().with(Fault::new(abort, Effect::DelaySteps(3))));
    let cids: Vec<u16> = (0..3).map(|cid| host.push(0, Command::abort(1, cid))).collect();
    host.ring(0);
    host.settle();
    let done: Vec<_> = host.reap_all(0).iter().map(|entry| (entry.cid, entry.status())).collect();
    assert!(done.contains(&(cids[2], Status::ABORT_LIMIT_EXCEEDED)), "{done:?}");
    assert_eq!(done.iter().filter(|(_, status)| status.is_success()).count(), 2);
    let counters = host.emulator.counters();
    assert_eq!((counters.aborts, counters.aborted, counters.excess_aborts), (2, 0, 1));
}

#[test]
fn held_commands_can_be_aborted_and_go_with_their_queue() {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    host.emulator.hold(Commands::io());
    let cids = host.submit_reads(3, iova);
    host.settle();
    let aborted = host.admin(Command::abort(1, cids[1]));
    assert_eq!((aborted.status(), aborted.dw0), (Status::SUCCESS, 0));
    let posted = host.posted();
    assert_eq!((posted[0].cid, posted[0].status()), (cids[1], Status::ABORT_REQUESTED));
    assert_eq!(host.admin(Command::abort(1, cids[1])).dw0, 1, "it is gone");
    assert_eq!(host.emulator.held().len(), 2);
    assert_eq!(host.try_admin(Command::delete_io_sq(1)), Status::SUCCESS);
    assert_eq!(host.emulator.held(), []);
    host.emulator.release_all();
    host.settle();
    assert_eq!(host.posted(), []);
}

#[test]
fn a_reset_forgets_what_is_pending() {
    let mut host = host("");
    host.emulator.hold(Commands::io());
    host.push(1, Command::flush(1));
    host.ring(1);
    host.settle();
    host.disable();
    assert_eq!(host.emulator.held(), []);
    host.emulator.release_all();
    host.enable();
    host.create_pair(1, 8);
    assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    assert_eq!(host.emulator.counters().completions, host.emulator.counters().admin_commands + 1);
}

/// CIDs in the order of their completions, step by step.
fn steps(seed: u64, count: u64, limit: usize) -> Vec<Vec<u16>> {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    let faults = Faults::seeded(seed).random_order().completions_per_step(limit);
    host.emulator.set_faults(faults);
    let mut cids = host.submit_reads(count, iova);
    let mut steps = Vec::new();
    while host.emulator.step() > 0 {
        steps.push(host.posted_cids());
    }
    let mut all = steps.concat();
    all.sort_unstable();
    cids.sort_unstable();
    assert_eq!(all, cids, "every command completes once");
    steps
}

#[test]
fn a_seed_is_one_order() {
    let order = steps(1, 60, 60);
    assert_eq!(order, steps(1, 60, 60));
    assert_ne!(order, steps(2, 60, 60));
    assert!(!order.concat().is_sorted());
}

#[test]
fn completions_per_step_are_limited_in_order_as_well() {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    host.emulator.set_faults(Faults::default().completions_per_step(2));
    let cids = host.submit_reads(5, iova);
    for two in cids.chunks(2) {
        host.emulator.step();
        assert_eq!(host.posted_cids(), two);
    }
    assert_eq!(host.emulator.counters().faults.overtaken, 0);
}

#[test]
fn a_full_completion_queue_stops_no_other() {
    let mut host = Host::new("");
    host.create_cq(1, 2);
    host.create_sq(1, 16, 1);
    host.create_pair(2, 16);
    host.cqs.get_mut(&1).unwrap().acknowledges = false;
    host.emulator.set_faults(Faults::seeded(3).random_order().completions_per_step(1));
    for _ in 0..8 {
        host.push(1, Command::flush(1));
        host.push(2, Command::flush(1));
    }
    host.ring(1);
    host.ring(2);
    assert_eq!(host.reap_all(2).len(), 8);
    let mut done = 0;
    while done < 8 {
        assert_eq!(host.reap_all(1).len(), 1);
        done += 1;
        let cq = &host.cqs[&1];
        cq.doorbell.ring(cq.head.into());
    }
    assert_eq!(host.reap_all(1), []);
}

#[test]
fn an_unplugged_device_is_silent() {
    let mut host = host("size=1M,media=ram");
    let (memory, iova) = host.buffer(4096, 7);
    host.emulator.hold(Commands::io());
    host.submit_read(0, iova);
    host.settle();
    host.emulator.unplug();
    assert_eq!(host.function.read32(registers::CSTS).unwrap(), u32::MAX);
    let mut vendor = [0; 2];
    host.function.config_read(0, &mut vendor).unwrap();
    assert_eq!(vendor, [0xff; 2]);
    assert!(host.function.reset().is_err());
    host.emulator.release_all();
    host.submit_read(0, iova);
    assert_eq!(host.emulator.step(), 0);
    assert_eq!(host.posted(), []);
    assert_eq!(memory.to_vec(), [7; 4096]);
    assert_eq!((host.emulator.held(), host.emulator.counters().io_commands), (vec![], 1));
}

#[test]
fn a_device_is_unplugged_after_so_many_commands() {
    let mut host = host("unplug_after=3");
    let (_memory, iova) = host.buffer(4096, 0);
    let cids = host.submit_reads(5, iova);
    host.settle();
    assert_eq!(host.posted_cids(), cids[..3]);
    assert_eq!(host.function.read32(registers::CSTS).unwrap(), u32::MAX);
    assert_eq!(host.emulator.counters().faults.unplugged, 1);
}

#[test]
fn a_fatal_status_lasts_until_a_reset() {
    for planned in [false, true] {
        let mut host = host(if planned { "fatal_after=1" } else { "" });
        assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
        if planned {
            host.push(1, Command::flush(1));
            host.ring(1);
        } else {
            host.emulator.fail();
        }
        host.settle();
        assert!(host.csts().cfs());
        host.push(1, Command::flush(1));
        host.ring(1);
        assert_eq!(host.reap_all(1), []);
        assert_eq!(host.emulator.counters().faults.fatal, u64::from(planned));
        host.emulator.set_faults(Faults::default());
        host.disable();
        assert!(!host.csts().cfs());
        host.enable();
        host.create_pair(1, 8);
        assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    }
}

#[test]
fn delays_are_in_steps_or_in_time() {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    let slow = |lba: u64, effect| Fault::new(Commands::reads().lbas(lba..=lba), effect);
    let faults = Faults::default().with(slow(0, Effect::DelaySteps(2)));
    host.emulator.set_faults(faults.with(slow(1, Effect::Delay(Duration::from_millis(5)))));
    let cids = host.submit_reads(3, iova);
    assert_eq!(host.emulator.step(), 4);
    assert_eq!(host.posted_cids(), [cids[2]]);
    assert_eq!(host.emulator.step(), 1, "the first one comes nearer");
    assert_eq!(host.emulator.step(), 1);
    assert_eq!(host.posted_cids(), [cids[0]]);
    assert_eq!(host.emulator.step(), 0, "only time helps the second one");
    host.emulator.advance(Duration::from_micros(4999));
    host.settle();
    assert_eq!(host.posted(), []);
    host.emulator.advance(Duration::from_micros(1));
    host.settle();
    assert_eq!(host.posted_cids(), [cids[1]]);
    assert_eq!(host.emulator.counters().faults.delayed, 2);
}

#[test]
fn a_dropped_completion_is_of_a_command_that_was_carried_out() {
    let mut host = host("size=1M,media=ram");
    let (_memory, iova) = host.buffer(4096, 9);
    host.emulator.set_faults(all_io(Effect::Drop));
    host.push(1, Command::write(1, 0, 0).with_prps(iova, 0));
    host.ring(1);
    assert_eq!(host.reap_all(1), []);
    host.emulator.set_faults(Faults::default());
    let (back, iova) = host.buffer(4096, 0);
    assert_eq!(host.try_io(Command::read(1, 0, 0).with_prps(iova, 0)), Status::SUCCESS);
    assert_eq!(back.to_vec(), [9; 4096]);
    assert_eq!(host.emulator.counters().faults.dropped, 1);
}

#[test]
fn a_doubled_completion_is_of_a_command_carried_out_once() {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    host.emulator.set_faults(all_io(Effect::Double));
    let cids = host.submit_reads(2, iova);
    let done = host.reap_all(1);
    let seen: Vec<u16> = done.iter().map(|entry| entry.cid).collect();
    assert_eq!(seen, [cids[0], cids[1], cids[0], cids[1]]);
    let counters = host.emulator.counters();
    assert_eq!((counters.reads, counters.faults.doubled), (2, 2));
}

#[test]
fn completions_are_corrupted() {
    let corrupted = |effect| {
        let mut host = host("");
        host.emulator.set_faults(all_io(effect));
        let cid = host.push(1, Command::flush(1));
        host.ring(1);
        let entry = host.reap_all(1).pop();
        assert_eq!(host.emulator.counters().faults.corrupted, 1);
        entry.map(|entry| (entry.cid == cid, entry.sq_id == 1, entry.status()))
    };
    assert_eq!(corrupted(Effect::UNKNOWN_CID), Some((false, true, Status::SUCCESS)));
    assert_eq!(corrupted(Effect::WRONG_SQ_ID), Some((true, false, Status::SUCCESS)));
    assert_eq!(corrupted(Effect::WRONG_PHASE), None);
    let status = Completion { status_phase: 0x80 << 1, ..Completion::default() };
    assert_eq!(corrupted(Effect::Corrupt(status)), Some((true, true, Status::LBA_OUT_OF_RANGE)));
}

#[test]
fn a_stray_completion_comes_before_the_right_one() {
    let mut host = host("");
    let faults = all_io(Effect::UNKNOWN_CID).with(Fault::new(Commands::io(), Effect::Double));
    host.emulator.set_faults(faults);
    let cid = host.push(1, Command::flush(1));
    host.ring(1);
    assert_eq!(host.reap_all(1).iter().map(|entry| entry.cid).collect::<Vec<_>>(), [!cid, cid]);
}

#[test]
fn faults_meet_the_admin_queue_as_any_other() {
    let mut host = host("");
    let (_memory, iova) = host.buffer(4096, 0);
    let identify = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(iova, 0);
    let admin = |effect| Faults::default().with(Fault::new(Commands::admin(), effect).once());
    host.emulator.set_faults(admin(Effect::Double));
    let cid = host.push(0, identify);
    host.ring(0);
    assert_eq!(host.reap_all(0).iter().map(|entry| entry.cid).collect::<Vec<_>>(), [cid, cid]);
    host.emulator.set_faults(admin(Effect::Drop));
    host.push(0, identify);
    host.ring(0);
    assert_eq!(host.reap_all(0), []);
    host.emulator.hold(Commands::admin().opcode(admin_opcode::IDENTIFY));
    let held = host.push(0, identify);
    host.ring(0);
    assert_eq!(host.reap_all(0), []);
    assert_eq!(host.admin(Command::abort(1, held)).dw0, 1);
    let abort = host.push(0, Command::abort(0, held));
    host.ring(0);
    let done: Vec<_> = host.reap_all(0).iter().map(|entry| (entry.cid, entry.status())).collect();
    assert_eq!(done, [(held, Status::ABORT_REQUESTED), (abort, Status::SUCCESS)]);
}

#[test]
fn events_are_reported_while_there_is_a_plan() {
    let mut host = host("random_order=on");
    let cid = host.push(0, Command::async_event_request());
    host.ring(0);
    host.settle();
    host.sqs[&1].doorbell.ring(100);
    assert_eq!(host.reap_all(0).iter().map(|entry| entry.cid).collect::<Vec<_>>(), [cid]);
}

#[test]
fn a_thread_follows_a_plan_too() {
    let config = Config::parse("size=1M,random_order=on,read_error=5").unwrap();
    let mut host = Host::of(Emulator::spawn(config).unwrap());
    host.enable();
    host.create_pair(1, 64);
    let (_memory, iova) = host.buffer(4096, 0);
    host.emulator.hold(Commands::reads().lbas(..2));
    let cids = host.submit_reads(10, iova);
    let (mut done, mut released) = (Vec::new(), 0);
    let end = host.function.clock().nanos() + 5_000_000_000;
    while done.len() < 10 {
        assert!(host.function.clock().nanos() < end);
        done.extend(host.posted());
        if done.len() == 8 {
            released += host.emulator.release(Commands::io());
        }
        host.function.pause();
    }
    assert_eq!(released, 2);
    let failed: Vec<u16> =
        done.iter().filter(|entry| !entry.status().is_success()).map(|entry| entry.cid).collect();
    assert_eq!(failed, [cids[5]]);
}

/// The driver's requests, on a controller of its own.
struct Bench {
    poller: Poller,
    queue: QueueId,
    disk: Target,
    space: DmaSpace,
    emulator: Emulator,
}

fn bench(text: &str) -> Bench {
    let space = DmaSpace::new().unwrap();
    let emulator = Emulator::stepped(Config::parse(text).unwrap()).unwrap();
    let controller = Controller::open(emulator.function(), &space).unwrap();
    let mut poller = Poller::new(64);
    let queue = poller.add_queue(&controller, QueueOptions::default().depth(8)).unwrap();
    let disk = poller.add_namespace(queue, &controller.namespace(1).unwrap()).unwrap();
    Bench { poller, queue, disk, space, emulator }
}

impl Bench {
    fn write(&mut self, lba: u64, blocks: usize, byte: u8) -> Event {
        let mut memory = self.space.allocate(4096 * blocks).unwrap();
        memory.fill(byte);
        self.poller.request(self.disk, IoContainer::write(lba, memory)).unwrap()
    }

    fn read(&mut self, lba: u64, blocks: usize) -> Event {
        let memory = self.space.allocate(4096 * blocks).unwrap();
        self.poller.request(self.disk, IoContainer::read(lba, memory)).unwrap()
    }

    /// Completions that the driver has found to be of no command.
    fn faults(&self) -> u64 {
        self.poller.stats(self.queue).faults
    }

    /// Waits for an event.
    fn succeeds(&mut self, event: Event) -> bool {
        self.poller.wait(event, Duration::from_secs(30), |_| {}).unwrap().success
    }
}

#[test]
fn the_driver_reports_the_bad_block_of_a_request_of_many_commands() {
    let mut bench = bench("size=16M,media=ram,mdts=1,random_order=on,seed=11,read_error=9");
    let event = bench.read(0, 16);
    assert!(!bench.succeeds(event));
    let (_, result) = bench.poller.claim(event).unwrap();
    assert_eq!(result.unwrap_err().status().unwrap(), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(bench.emulator.counters().faults.errors, 1);
}

#[test]
fn the_driver_counts_strays_and_delivers_none() {
    let mut bench = bench("size=16M,media=ram,mdts=1");
    let all = |effect| Fault::new(Commands::io(), effect);
    for (effect, strays) in
        [(None, 16), (Some(Effect::UNKNOWN_CID), 16), (Some(Effect::WRONG_SQ_ID), 16), (None, 16)]
    {
        let plan = Faults::seeded(1).random_order().with(all(Effect::Double));
        bench.emulator.set_faults(effect.into_iter().map(all).fold(plan, Faults::with));
        let before = bench.faults();
        let event = bench.read(0, 32);
        assert!(bench.succeeds(event));
        assert_eq!(bench.poller.claim(event).unwrap().1, Ok(()));
        // Repetitions may come after the request is done, and may have to wait for room: the driver tells how
        // far it is when it must, and every 1024 polls.
        for _ in 0..2 * 1024 {
            bench.emulator.step();
            bench.poller.poll(|_| panic!("everything here is an event"));
        }
        assert_eq!(bench.faults() - before, strays, "{effect:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the order, nothing is lost, nothing comes twice, and a step does no more than it may.
    #[test]
    fn a_random_order_completes_everything(seed: u64, count in 1..60u64, limit in 1..70usize) {
        for step in steps(seed, count, limit) {
            prop_assert!((1..=limit).contains(&step.len()));
        }
    }

    /// The driver's requests, split and queued, over a controller that completes in any order.
    #[test]
    fn the_driver_bears_any_order(
        seed: u64,
        limit in 1..10usize,
        requests in proptest::collection::vec((0..8usize, any::<u8>()), 1..12),
    ) {
        let mut bench = bench("size=16M,media=ram,mdts=1");
        bench.emulator.set_faults(Faults::seeded(seed).random_order().completions_per_step(limit));
        let place = |at: usize| at as u64 * 8;
        let writes: Vec<Event> = requests
            .iter()
            .enumerate()
            .map(|(at, (blocks, byte))| bench.write(place(at), blocks + 1, *byte))
            .collect();
        let all = bench.poller.all(&writes).unwrap();
        prop_assert!(bench.succeeds(all));
        for (at, (blocks, byte)) in requests.iter().enumerate() {
            let event = bench.read(place(at), blocks + 1);
            prop_assert!(bench.succeeds(event));
            let (io, _) = bench.poller.claim(event).unwrap();
            prop_assert!(io.memory().to_vec().iter().all(|read| read == byte));
        }
    }
}
