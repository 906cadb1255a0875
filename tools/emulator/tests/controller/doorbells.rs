//! Doorbells, full queues, phases, and queues that share a completion queue (Base 2.0, section 3.3.1
//! and section 5.2.1).

use std::collections::BTreeMap;

use kiovec::spec::log::AsyncEvent;
use kiovec::spec::registers::{DOORBELLS, sq_tail_doorbell};
use kiovec::spec::{Command, LogPage, Status};

use crate::host::Host;

/// Submits an Asynchronous Event Request and returns its CID.
fn listen(host: &mut Host) -> u16 {
    let cid = host.push(0, Command::async_event_request());
    host.ring(0);
    host.settle();
    cid
}

fn event(host: &mut Host, cid: u16) -> (u8, u8) {
    let done = host.reap_all(0);
    assert_eq!(
        done.iter().map(|entry| (entry.cid, entry.status())).collect::<Vec<_>>(),
        [(cid, Status::SUCCESS)]
    );
    let event = AsyncEvent(done[0].dw0);
    assert_eq!(event.log_page(), LogPage::ERROR);
    (event.event_type(), event.info())
}

fn read_error_log(host: &mut Host) {
    let (_memory, iova) = host.buffer(4096, 0);
    let command = Command::get_log_page(LogPage::ERROR, 0, 0, 64).with_prps(iova, 0);
    assert_eq!(host.try_admin(command), Status::SUCCESS);
}

#[test]
fn a_bad_tail_is_reported_and_ignored() {
    for bad in [8, 9, 0xffff, 0x1_0000, u32::MAX] {
        let mut host = Host::with_queue("");
        let cid = listen(&mut host);
        host.sqs[&1].doorbell.ring(bad);
        assert_eq!(event(&mut host, cid), (0, AsyncEvent::INVALID_DOORBELL_VALUE));
        assert_eq!(host.emulator.counters().bad_doorbells, 1);
        assert_eq!(host.emulator.counters().io_commands, 0);
        // The queue works on.
        assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    }
}

#[test]
fn a_head_beyond_the_tail_is_reported_and_ignored() {
    for bad in [1, 7, 8, u32::MAX] {
        let mut host = Host::with_queue("");
        let cid = listen(&mut host);
        host.cqs[&1].doorbell.ring(bad);
        host.settle();
        assert_eq!(event(&mut host, cid), (0, AsyncEvent::INVALID_DOORBELL_VALUE));
        assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    }
}

#[test]
fn a_doorbell_of_no_queue_is_reported() {
    let mut host = Host::with_queue("");
    let cid = listen(&mut host);
    host.doorbell(sq_tail_doorbell(5, 4)).ring(1);
    assert_eq!(event(&mut host, cid), (0, AsyncEvent::INVALID_DOORBELL_REGISTER));
    // As a register write as well, once the event is acknowledged.
    read_error_log(&mut host);
    let cid = listen(&mut host);
    host.function.write32(DOORBELLS + sq_tail_doorbell(6, 4), 1).unwrap();
    assert_eq!(event(&mut host, cid), (0, AsyncEvent::INVALID_DOORBELL_REGISTER));
}

#[test]
fn an_event_waits_for_a_request_and_for_its_acknowledgement() {
    let mut host = Host::with_queue("");
    host.sqs[&1].doorbell.ring(100);
    host.settle();
    let first = listen(&mut host);
    assert_eq!(event(&mut host, first).1, AsyncEvent::INVALID_DOORBELL_VALUE);
    let second = listen(&mut host);
    host.sqs[&1].doorbell.ring(101);
    assert_eq!(host.reap_all(0), []);
    read_error_log(&mut host);
    assert_eq!(event(&mut host, second).1, AsyncEvent::INVALID_DOORBELL_VALUE);
}

#[test]
fn doorbells_before_enabling_mean_nothing() {
    let mut host = Host::cold("");
    host.prepare();
    host.sqs[&0].doorbell.ring(3);
    host.write_cc(Host::usual_cc());
    host.wait(|csts| csts.rdy());
    host.settle();
    assert_eq!(host.emulator.counters().admin_commands, 0);
    assert_eq!(host.emulator.counters().bad_doorbells, 0);
}

#[test]
fn a_full_completion_queue_is_never_overwritten() {
    let mut host = Host::new("");
    host.create_cq(1, 4);
    host.create_sq(1, 16, 1);
    host.cqs.get_mut(&1).unwrap().acknowledges = false;
    let cids: Vec<u16> = (0..10).map(|_| host.push(1, Command::flush(1))).collect();
    host.ring(1);
    let mut done = Vec::new();
    while done.len() < 10 {
        let more = host.reap_all(1);
        // One entry of four stays free.
        assert_eq!(more.len(), 3.min(10 - done.len()));
        assert_eq!(host.reap_all(1), []);
        done.extend(more);
        let cq = &host.cqs[&1];
        cq.doorbell.ring(cq.head.into());
    }
    assert_eq!(done.iter().map(|entry| entry.cid).collect::<Vec<_>>(), cids);
    // What was reported as fetched is what had been posted: nothing is fetched without room.
    assert!(done.iter().zip(1..).all(|(entry, count)| entry.sq_head == count));
    assert!(host.emulator.counters().full_queues > 0);
}

#[test]
fn the_smallest_queues_work_through_many_passes() {
    let mut host = Host::new("");
    host.create_pair(1, 2);
    for pass in 0..20 {
        let done = host.run(1, Command::flush(1));
        assert_eq!(u32::from(done.sq_head), (pass + 1) % 2);
    }
}

#[test]
fn heads_are_reported_and_phases_turn() {
    let mut host = Host::new("");
    host.create_cq(1, 5);
    host.create_sq(1, 7, 1);
    let mut fetched = 0;
    for batch in [1, 2, 3, 4, 4, 3, 2, 1, 4, 4, 4, 4] {
        for _ in 0..batch {
            host.push(1, Command::flush(1));
        }
        host.ring(1);
        let done = host.reap_all(1);
        assert_eq!(done.len(), batch);
        for entry in done {
            fetched += 1;
            assert_eq!(entry.sq_head, fetched % 7);
        }
    }
    assert_eq!(host.emulator.counters().sq_doorbells, host.emulator.counters().admin_commands + 12);
}

#[test]
fn submission_queues_share_a_completion_queue_and_take_turns() {
    let mut host = Host::new("");
    host.create_cq(3, 256);
    for qid in 1..=3 {
        host.create_sq(qid, 128, 3);
    }
    for qid in 1..=3 {
        for _ in 0..100 {
            host.push(qid, Command::flush(1));
        }
    }
    for qid in 1..=3 {
        host.ring(qid);
    }
    host.emulator.step();
    let mut turns = BTreeMap::new();
    while let Some(entry) = host.reap(3) {
        *turns.entry(entry.sq_id).or_insert(0) += 1;
    }
    // Nobody had more than a part before all had the same.
    assert_eq!(turns.len(), 3);
    assert!(turns.values().all(|count| *count == turns[&1] && *count < 100), "{turns:?}");
    let rest = host.reap_all(3);
    assert_eq!(rest.len() + turns.values().sum::<usize>(), 300);
    assert_eq!(host.try_admin(Command::delete_io_sq(1)), Status::SUCCESS);
    assert_eq!(host.try_admin(Command::delete_io_cq(3)), Status::INVALID_QUEUE_DELETION.with_dnr());
}

#[test]
fn a_deleted_queue_leaves_its_commands_behind() {
    let mut host = Host::new("");
    host.create_cq(1, 2);
    host.create_sq(1, 8, 1);
    host.cqs.get_mut(&1).unwrap().acknowledges = false;
    for _ in 0..5 {
        host.push(1, Command::flush(1));
    }
    host.ring(1);
    host.settle();
    assert_eq!(host.try_admin(Command::delete_io_sq(1)), Status::SUCCESS);
    assert!(host.reap(1).is_some());
    assert_eq!(host.reap_all(1), []);
    assert_eq!(host.emulator.counters().io_commands, 1);
}

#[test]
fn memory_that_goes_away_under_a_queue_is_fatal() {
    let mut host = Host::with_queue("");
    // An unrelated mapping that comes and goes changes nothing: queues are found again.
    host.map_and_unmap();
    assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
    host.push(1, Command::flush(1));
    host.drop_attachment();
    host.ring(1);
    host.settle();
    assert!(host.csts().cfs());
}
