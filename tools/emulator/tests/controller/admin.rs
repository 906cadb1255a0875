//! Admin commands (Base 2.0, section 5), each with what can be wrong with it.

use kiovec::memory::MemoryChain;
use kiovec::spec::command::{CQ_IEN, NSID_ALL, PSDT_SGL_MPTR_CONTIGUOUS};
use kiovec::spec::identify::Controller;
use kiovec::spec::{Cns, Command, ErrorLogEntry, FeatureId, FirmwareSlotLog, LogPage, SmartLog, Status};
use zerocopy::FromBytes;

use crate::host::Host;

fn refused(status: Status) -> Status {
    status.with_dnr()
}

/// Executes a command that returns data.
fn fetch(host: &mut Host, command: Command, len: usize) -> Result<Vec<u8>, Status> {
    let (memory, iova) = host.buffer(len + 4096, 0xaa);
    let status = host.try_admin(command.with_prps(iova, iova + 4096));
    if !status.is_success() {
        return Err(status);
    }
    let bytes = memory.to_vec();
    assert!(bytes[len..].iter().all(|byte| *byte == 0xaa), "more was written than asked for");
    Ok(bytes[..len].to_vec())
}

#[test]
fn unknown_commands() {
    let mut host = Host::new("");
    for opcode in [0x03, 0x07, 0x0d, 0x18, 0x7f, 0x80, 0xff] {
        assert_eq!(host.try_admin(Command { opcode, ..Command::default() }), refused(Status::INVALID_OPCODE));
    }
}

#[test]
fn fields_that_all_commands_have() {
    let mut host = Host::new("");
    let (_memory, iova) = host.buffer(4096, 0);
    let identify = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(iova, 0);
    assert_eq!(host.try_admin(identify), Status::SUCCESS);
    assert_eq!(host.try_admin(Command { flags: 1, ..identify }), refused(Status::INVALID_FIELD));
    let sgl = Command { flags: PSDT_SGL_MPTR_CONTIGUOUS, ..identify };
    assert_eq!(host.try_admin(sgl), refused(Status::INVALID_FIELD));
    for command in [Command::abort(0, 0), Command::async_event_request(), Command::delete_io_sq(1)] {
        assert_eq!(host.try_admin(Command { nsid: 1, ..command }), refused(Status::INVALID_FIELD));
    }
}

#[test]
fn identify_data_arrive() {
    let mut host = Host::new("serial=S-77");
    let page = fetch(&mut host, Command::identify(Cns::CONTROLLER, 0, 0), 4096).unwrap();
    assert_eq!(Controller::read_from_bytes(&page).unwrap().serial(), "S-77");
    let unaligned = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(2, 0);
    assert_eq!(host.try_admin(unaligned), refused(Status::PRP_OFFSET_INVALID));
    // Data that cross a page.
    let (memory, iova) = host.buffer(3 * 4096, 0xaa);
    let split = Command::identify(Cns::CONTROLLER, 0, 0).with_prps(iova + 0x800, iova + 0x2000);
    assert_eq!(host.try_admin(split), Status::SUCCESS);
    let bytes = memory.to_vec();
    assert_eq!((&bytes[0x800..0x1000], &bytes[0x2000..0x2800]), (&page[..2048], &page[2048..]));
    assert!(bytes[0x1000..0x2000].iter().all(|byte| *byte == 0xaa));
}

#[test]
fn completion_queues_are_created_within_limits() {
    let mut host = Host::new("queues=4,mqes=15");
    let (_memory, iova) = host.buffer(8192, 0);
    let create = |qid, entries| Command::create_io_cq(qid, entries, iova);
    for qid in [0, 5, u16::MAX] {
        assert_eq!(host.try_admin(create(qid, 4)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    }
    for entries in [1, 17, 65536] {
        assert_eq!(host.try_admin(create(1, entries)), refused(Status::INVALID_QUEUE_SIZE));
    }
    let scattered = Command { cdw11: 0, ..create(1, 4) };
    assert_eq!(host.try_admin(scattered), refused(Status::INVALID_FIELD));
    let misplaced = Command::create_io_cq(1, 4, iova + 64);
    assert_eq!(host.try_admin(misplaced), refused(Status::PRP_OFFSET_INVALID));
    let vector = Command { cdw11: 5 << 16 | CQ_IEN | 1, ..create(1, 4) };
    assert_eq!(host.try_admin(vector), refused(Status::INVALID_INTERRUPT_VECTOR));
    let unmapped = Command::create_io_cq(1, 4, 0x30_0000_0000);
    assert_eq!(host.try_admin(unmapped), Status::DATA_TRANSFER_ERROR);
    assert_eq!(host.try_admin(create(1, 16)), Status::SUCCESS);
    assert_eq!(host.try_admin(create(1, 16)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    assert_eq!(host.try_admin(create(4, 2)), Status::SUCCESS);
}

#[test]
fn submission_queues_are_created_within_limits() {
    let mut host = Host::new("queues=4,mqes=15");
    let (_memory, iova) = host.buffer(8192, 0);
    let create = |qid, entries, cqid| Command::create_io_sq(qid, entries, iova, cqid);
    assert_eq!(host.try_admin(create(1, 4, 1)), refused(Status::COMPLETION_QUEUE_INVALID));
    host.create_cq(1, 4);
    for qid in [0, 5, u16::MAX] {
        assert_eq!(host.try_admin(create(qid, 4, 1)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    }
    for cqid in [0, 5, u16::MAX] {
        assert_eq!(host.try_admin(create(1, 4, cqid)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    }
    for entries in [1, 17, 65536] {
        assert_eq!(host.try_admin(create(1, entries, 1)), refused(Status::INVALID_QUEUE_SIZE));
    }
    let scattered = Command { cdw11: 1 << 16, ..create(1, 4, 1) };
    assert_eq!(host.try_admin(scattered), refused(Status::INVALID_FIELD));
    let misplaced = Command::create_io_sq(1, 4, iova + 8, 1);
    assert_eq!(host.try_admin(misplaced), refused(Status::PRP_OFFSET_INVALID));
    assert_eq!(host.try_admin(create(1, 16, 1)), Status::SUCCESS);
    assert_eq!(host.try_admin(create(1, 16, 1)), refused(Status::INVALID_QUEUE_IDENTIFIER));
}

#[test]
fn entry_sizes_are_needed_for_io_queues() {
    let mut host = Host::cold("");
    host.prepare();
    host.write_cc(Host::usual_cc().with_iosqes(0).with_iocqes(0));
    host.wait(|csts| csts.rdy());
    let (_memory, iova) = host.buffer(4096, 0);
    assert_eq!(host.try_admin(Command::create_io_cq(1, 4, iova)), refused(Status::INVALID_QUEUE_SIZE));
    host.write_cc(Host::usual_cc().with_iosqes(0));
    assert_eq!(host.try_admin(Command::create_io_cq(1, 4, iova)), Status::SUCCESS);
    assert_eq!(host.try_admin(Command::create_io_sq(1, 4, iova, 1)), refused(Status::INVALID_QUEUE_SIZE));
}

#[test]
fn queues_are_deleted_from_the_outside_in() {
    let mut host = Host::with_queue("");
    for qid in [0, 2, u16::MAX] {
        assert_eq!(host.try_admin(Command::delete_io_sq(qid)), refused(Status::INVALID_QUEUE_IDENTIFIER));
        assert_eq!(host.try_admin(Command::delete_io_cq(qid)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    }
    assert_eq!(host.try_admin(Command::delete_io_cq(1)), refused(Status::INVALID_QUEUE_DELETION));
    assert_eq!(host.try_admin(Command::delete_io_sq(1)), Status::SUCCESS);
    assert_eq!(host.try_admin(Command::delete_io_sq(1)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    assert_eq!(host.try_admin(Command::delete_io_cq(1)), Status::SUCCESS);
    host.create_pair(1, 4);
    assert_eq!(host.try_io(Command::flush(1)), Status::SUCCESS);
}

#[test]
fn the_number_of_queues_is_negotiated_before_they_are_created() {
    let mut host = Host::new("queues=8");
    let set = |value| Command::set_features(FeatureId::NUMBER_OF_QUEUES, value);
    assert_eq!(host.admin(set(0x0001_0001)).dw0, 0x0001_0001);
    let (_memory, iova) = host.buffer(4096, 0);
    assert_eq!(host.try_admin(Command::create_io_cq(3, 4, iova)), refused(Status::INVALID_QUEUE_IDENTIFIER));
    assert_eq!(host.admin(set(0x00ff_00ff)).dw0, 0x0007_0007);
    host.create_cq(8, 4);
    assert_eq!(host.try_admin(set(0x0001_0001)), refused(Status::COMMAND_SEQUENCE_ERROR));
    // Still so after the last queue is gone; a reset is needed.
    assert_eq!(host.try_admin(Command::delete_io_cq(8)), Status::SUCCESS);
    assert_eq!(host.try_admin(set(0x0001_0001)), refused(Status::COMMAND_SEQUENCE_ERROR));
}

fn log(host: &mut Host, page: LogPage, offset: u64, len: u32) -> Result<Vec<u8>, Status> {
    fetch(host, Command::get_log_page(page, NSID_ALL, offset, len), len as usize)
}

#[test]
fn log_pages() {
    let mut host = Host::new("mdts=1");
    let smart = log(&mut host, LogPage::SMART, 0, 512).unwrap();
    assert_eq!(SmartLog::read_from_bytes(&smart).unwrap().temperature_kelvin(), 300);
    let firmware = log(&mut host, LogPage::FIRMWARE_SLOT, 0, 512).unwrap();
    assert_eq!(FirmwareSlotLog::read_from_bytes(&firmware).unwrap().afi, 1);
    assert_eq!(log(&mut host, LogPage::SMART, 500, 12).unwrap(), smart[500..]);
    // Beyond the end there is nothing.
    let beyond = log(&mut host, LogPage::SMART, 0, 1024).unwrap();
    assert_eq!((&beyond[..512], &beyond[512..]), (&smart[..], &[0; 512][..]));
    let supported = log(&mut host, LogPage::SUPPORTED, 0, 1024).unwrap();
    for id in 0..=255u8 {
        let there = supported[4 * usize::from(id)] & 1 != 0;
        let error = log(&mut host, LogPage(id), 0, 4).err();
        assert_eq!(error, (!there).then_some(refused(Status::INVALID_LOG_PAGE)));
    }
    let invalid = Err(refused(Status::INVALID_FIELD));
    assert_eq!(log(&mut host, LogPage::SMART, 2, 4), invalid);
    assert_eq!(log(&mut host, LogPage::SMART, 516, 4), invalid);
    assert_eq!(log(&mut host, LogPage::SMART, u64::MAX - 3, 4), invalid);
    assert_eq!(log(&mut host, LogPage::ERROR, 0, 8196), invalid);
    let one = Command::get_log_page(LogPage::SMART, 1, 0, 512);
    assert_eq!(fetch(&mut host, one, 512), invalid);
}

#[test]
fn errors_are_logged() {
    let mut host = Host::with_queue("size=1M");
    let (_memory, iova) = host.buffer(4096, 0);
    let mut read = Command::read(1, 256, 0).with_prps(iova, 0);
    read.cid = 0x1234;
    host.push_as_is(1, read);
    host.ring(1);
    let completion = host.reap_all(1)[0];
    let page = log(&mut host, LogPage::ERROR, 0, 64).unwrap();
    let entry = ErrorLogEntry::read_from_bytes(&page).unwrap();
    assert_eq!((entry.sqid, entry.cid, entry.lba, entry.nsid), (1, 0x1234, 256, 1));
    assert_eq!(entry.status(), completion.status());
}

#[test]
fn event_requests_are_held_and_can_be_aborted() {
    let mut host = Host::new("");
    let held: Vec<u16> = (0..4).map(|_| host.push(0, Command::async_event_request())).collect();
    host.ring(0);
    assert_eq!(host.reap_all(0), []);
    assert_eq!(host.try_admin(Command::async_event_request()), refused(Status::ASYNC_EVENT_LIMIT_EXCEEDED));
    // A CID that is outstanding cannot be used again.
    let again = Command { cid: held[1], ..Command::get_features(FeatureId::ARBITRATION) };
    host.push_as_is(0, again);
    host.ring(0);
    assert_eq!(host.reap_all(0)[0].status(), refused(Status::COMMAND_ID_CONFLICT));
    let abort = host.push(0, Command::abort(0, held[2]));
    host.ring(0);
    let done: Vec<_> = host.reap_all(0).iter().map(|entry| (entry.cid, entry.status(), entry.dw0)).collect();
    assert_eq!(done, [(held[2], Status::ABORT_REQUESTED, 0), (abort, Status::SUCCESS, 0)]);
    assert_eq!(host.admin(Command::abort(0, held[2])).dw0, 1);
    assert_eq!(host.admin(Command::abort(1, held[1])).dw0, 1);
}

#[test]
fn the_admin_queue_waits_for_room() {
    let mut host = Host::new("");
    host.cqs.get_mut(&0).unwrap().acknowledges = false;
    let mut done = 0;
    for _ in 0..40 {
        host.push(0, Command::get_features(FeatureId::ARBITRATION));
        host.ring(0);
        host.settle();
        while host.reap(0).is_some() {
            done += 1;
        }
        if host.emulator.counters().full_queues > 0 {
            let cq = &host.cqs[&0];
            cq.doorbell.ring(cq.head.into());
        }
    }
    assert_eq!(done + host.reap_all(0).len(), 40);
    assert_eq!(host.emulator.counters().bad_doorbells, 0);
}

#[test]
fn data_of_a_list_of_pages() {
    // 64 error log entries and more, through a PRP list.
    let mut host = Host::new("");
    let (memory, iova): (MemoryChain, u64) = host.buffer(4 * 4096, 0xaa);
    let list = crate::host::Words::new(&host.space, 4096);
    list.store(0, &[iova + 0x3000, iova + 0x1000]);
    let command = Command::get_log_page(LogPage::ERROR, 0, 0, 3 * 4096).with_prps(iova, list.iova());
    assert_eq!(host.try_admin(command), Status::SUCCESS);
    let bytes = memory.to_vec();
    assert!(bytes[0x2000..0x3000].iter().all(|byte| *byte == 0xaa));
    assert!(bytes[..0x2000].iter().chain(&bytes[0x3000..]).all(|byte| *byte == 0));
}
