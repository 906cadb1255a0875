//! The Admin command set (Base 2.0, section 5).
//!
//! Knows what each command asks of the controller; must not know how commands arrive or how their
//! completions leave.

use kiovec::spec::command::{CQ_IEN, NSID_ALL, PSDT_MASK, PSDT_PRP, QUEUE_PC};
use kiovec::spec::{Command, FeatureId, FirmwareSlotLog, LogPage, SmartLog, Status, admin_opcode};
use zerocopy::{FromZeros, IntoBytes};

use super::identify::{FIRMWARE, identify};
use super::queue::{CompletionQueue, SubmissionQueue};
use super::transfer::{not_fused, unreachable_memory};
use super::{Answer, Controller};
use crate::dma::Want;

/// CDW10 of Get Log Page: Retain Asynchronous Event.
const RETAIN_EVENT: u32 = 1 << 15;
/// CDW14 of Get Log Page: Offset Type, an index in place of bytes.
const OFFSET_IS_INDEX: u32 = 1 << 23;
/// Bytes of the structure of Host Behavior Support.
const HOST_BEHAVIOR: u64 = 512;
/// Log pages there are.
const LOG_PAGES: [LogPage; 5] =
    [LogPage::SUPPORTED, LogPage::ERROR, LogPage::SMART, LogPage::FIRMWARE_SLOT, LogPage::CHANGED_NAMESPACES];

impl Controller {
    /// Executes an Admin command.
    pub(super) fn admin(&mut self, command: &Command) -> Answer {
        if self.events.holds(command.cid) {
            return Some(Err(Status::COMMAND_ID_CONFLICT.with_dnr()));
        }
        self.execute_admin(command).transpose()
    }

    /// Dword 0 of the completion; `None` if it waits for something to happen.
    fn execute_admin(&mut self, command: &Command) -> Result<Option<u32>, Status> {
        let execute: fn(&mut Controller, &Command) -> Result<u32, Status> = match command.opcode {
            admin_opcode::DELETE_IO_SQ => Controller::delete_sq,
            admin_opcode::CREATE_IO_SQ => Controller::create_sq,
            admin_opcode::GET_LOG_PAGE => Controller::get_log_page,
            admin_opcode::DELETE_IO_CQ => Controller::delete_cq,
            admin_opcode::CREATE_IO_CQ => Controller::create_cq,
            admin_opcode::IDENTIFY => Controller::identify,
            admin_opcode::ABORT => Controller::abort,
            admin_opcode::SET_FEATURES => Controller::set_features,
            admin_opcode::GET_FEATURES => Controller::get_features,
            admin_opcode::DOORBELL_BUFFER_CONFIG => Controller::doorbell_buffer_config,
            admin_opcode::ASYNC_EVENT_REQUEST => {
                common_fields(command)?;
                unused_nsid(command)?;
                self.events.request(command.cid)?;
                return Ok(None);
            }
            _ => return Err(Status::INVALID_OPCODE.with_dnr()),
        };
        common_fields(command)?;
        execute(self, command).map(Some)
    }

    /// Create I/O Completion Queue (Base 2.0, section 5.4).
    fn create_cq(&mut self, command: &Command) -> Result<u32, Status> {
        unused_nsid(command)?;
        let (qid, entries) = queue_fields(command);
        let (_, granted) = self.features.queues();
        if qid == 0 || qid > granted || self.cqs[usize::from(qid)].is_some() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        // The entry size must have been set before (CC.IOCQES).
        if entries < 2 || entries > u32::from(self.config.mqes) + 1 || self.cc.iocqes() == 0 {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        let vector = (command.cdw11 & CQ_IEN != 0).then_some((command.cdw11 >> 16) as u16);
        if vector.is_some_and(|vector| vector >= self.interrupts.layout().vectors) {
            return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
        }
        let iova = self.queue_address(command)?;
        let queue = CompletionQueue::new(&self.dma, iova, entries).map_err(unreachable_memory)?;
        let queue = queue.with_vector(vector);
        self.clear_doorbell(self.doorbells.head(qid));
        self.cqs[usize::from(qid)] = Some(queue);
        self.shadow_head(qid);
        self.queues_created = true;
        Ok(0)
    }

    /// Create I/O Submission Queue (Base 2.0, section 5.5).
    fn create_sq(&mut self, command: &Command) -> Result<u32, Status> {
        unused_nsid(command)?;
        let (qid, entries) = queue_fields(command);
        let (granted, granted_cqs) = self.features.queues();
        if qid == 0 || qid > granted || self.sqs[usize::from(qid)].is_some() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if entries < 2 || entries > u32::from(self.config.mqes) + 1 || self.cc.iosqes() == 0 {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        let cqid = (command.cdw11 >> 16) as u16;
        if cqid == 0 || cqid > granted_cqs {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if self.cqs[usize::from(cqid)].is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID.with_dnr());
        }
        let iova = self.queue_address(command)?;
        let queue = SubmissionQueue::new(&self.dma, iova, entries, cqid).map_err(unreachable_memory)?;
        self.clear_doorbell(self.doorbells.tail(qid));
        self.sqs[usize::from(qid)] = Some(queue);
        if let Some(cq) = &mut self.cqs[usize::from(cqid)] {
            cq.add_user();
        }
        self.active.push(qid);
        self.shadow_tail(qid);
        self.queues_created = true;
        Ok(0)
    }

    /// Where a queue is to lie. Queues are physically contiguous (CAP.CQR) and begin on a page.
    fn queue_address(&self, command: &Command) -> Result<u64, Status> {
        let [iova, _] = command.dptr;
        if command.cdw11 & QUEUE_PC == 0 {
            Err(Status::INVALID_FIELD.with_dnr())
        } else if !iova.is_multiple_of(self.page()) {
            Err(Status::PRP_OFFSET_INVALID.with_dnr())
        } else {
            Ok(iova)
        }
    }

    /// Delete I/O Submission Queue (Base 2.0, section 5.7). Commands that were not fetched yet, or not
    /// carried out, are never completed: the host knows that they are gone.
    fn delete_sq(&mut self, command: &Command) -> Result<u32, Status> {
        unused_nsid(command)?;
        let qid = command.cdw10 as u16;
        let slot = self.sqs.get_mut(usize::from(qid)).filter(|_| qid != 0);
        let Some(queue) = slot.and_then(Option::take) else {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        };
        self.active.retain(|active| *active != qid);
        if let Some(cq) = &mut self.cqs[usize::from(queue.cqid())] {
            cq.remove_user();
        }
        self.fetched.clear_queue(qid);
        self.clear_doorbell(self.doorbells.tail(qid));
        Ok(0)
    }

    /// Delete I/O Completion Queue (Base 2.0, section 5.6).
    fn delete_cq(&mut self, command: &Command) -> Result<u32, Status> {
        unused_nsid(command)?;
        let qid = command.cdw10 as u16;
        let slot = self.cqs.get_mut(usize::from(qid)).filter(|_| qid != 0);
        let Some(slot @ Some(_)) = slot else {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        };
        if slot.as_ref().is_some_and(|queue| queue.users() > 0) {
            return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
        }
        *slot = None;
        self.clear_doorbell(self.doorbells.head(qid));
        Ok(0)
    }

    fn identify(&mut self, command: &Command) -> Result<u32, Status> {
        let mut page = identify(&self.config, &self.nvm.namespaces, command)?;
        self.fetched.overlay(command, &mut page);
        self.send(command, &page[..], page.len() as u64)
    }

    fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        if FeatureId(command.cdw10 as u8) == FeatureId::HOST_BEHAVIOR {
            return self.set_host_behavior(command);
        }
        let answer = self.features.set(command, self.queues_created)?;
        self.nvm.set_write_cache(self.features.write_cache());
        Ok(answer)
    }

    /// Host Behavior Support (Base 2.0, section 5.27.1.18): a structure of 512 bytes, of which the first is
    /// ACRE.
    fn set_host_behavior(&mut self, command: &Command) -> Result<u32, Status> {
        if command.cdw10 >> 31 != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        let runs = self.nvm.transfer.admin(&self.dma, command, HOST_BEHAVIOR, Want::Read)?;
        let mut acre = [0];
        if let Some(iova) = runs.first().and_then(|run| run.iova) {
            self.dma.read(iova, &mut acre).map_err(unreachable_memory)?;
        }
        match acre {
            [0 | 1] => self.features.advanced_retry = acre == [1],
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        }
        Ok(0)
    }

    fn get_features(&mut self, command: &Command) -> Result<u32, Status> {
        if FeatureId(command.cdw10 as u8) == FeatureId::HOST_BEHAVIOR {
            let acre = u8::from(self.features.advanced_retry && command.cdw10 >> 8 & 7 == 0);
            return self.send(command, &[acre], HOST_BEHAVIOR);
        }
        self.features.get(command)
    }

    /// Abort (Base 2.0, section 5.1). Without a plan commands are executed as they are fetched, so that
    /// only an Asynchronous Event Request can be found waiting.
    fn abort(&mut self, command: &Command) -> Result<u32, Status> {
        unused_nsid(command)?;
        self.counters.aborts += 1;
        let (sqid, cid) = (command.cdw10 as u16, (command.cdw10 >> 16) as u16);
        if sqid == 0 && self.events.abort(cid) {
            self.complete_admin(cid, Err(Status::ABORT_REQUESTED));
            return Ok(0);
        }
        let found = self.abort_pending(sqid, cid);
        self.counters.aborted += u64::from(found);
        Ok(if found { 0 } else { 1 })
    }

    /// Get Log Page (Base 2.0, section 5.16).
    fn get_log_page(&mut self, command: &Command) -> Result<u32, Status> {
        let page = LogPage(command.cdw10 as u8);
        let dwords = u64::from((command.cdw11 & 0xffff) << 16 | command.cdw10 >> 16) + 1;
        let offset = u64::from(command.cdw13) << 32 | u64::from(command.cdw12);
        if !LOG_PAGES.contains(&page) {
            return Err(Status::INVALID_LOG_PAGE.with_dnr());
        }
        let log = self.log(page);
        // No log page is kept per namespace.
        let wrong_nsid = command.nsid != 0 && command.nsid != NSID_ALL;
        let wrong_offset =
            !offset.is_multiple_of(4) || offset > log.len() as u64 || command.cdw14 & OFFSET_IS_INDEX != 0;
        if wrong_nsid || wrong_offset || dwords * 4 > self.nvm.max_transfer() {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        self.send(command, &log[offset as usize..], dwords * 4)?;
        if command.cdw10 & RETAIN_EVENT == 0 {
            self.events.acknowledge(page);
            if page == LogPage::CHANGED_NAMESPACES {
                self.changed.clear();
                self.events.forget(page);
            }
        }
        Ok(0)
    }

    fn log(&self, page: LogPage) -> Vec<u8> {
        match page {
            LogPage::SUPPORTED => supported_logs(),
            LogPage::ERROR => self.error_log(),
            LogPage::SMART => self.smart_log().as_bytes().to_vec(),
            LogPage::CHANGED_NAMESPACES => self.changed.list().as_bytes().to_vec(),
            _ => firmware_log().as_bytes().to_vec(),
        }
    }

    fn error_log(&self) -> Vec<u8> {
        let mut log: Vec<u8> = self.errors.entries().flat_map(|entry| entry.as_bytes()).copied().collect();
        log.resize(super::log::ERROR_ENTRIES * 64, 0);
        log
    }

    fn smart_log(&self) -> SmartLog {
        // A data unit is 1000 times 512 bytes, rounded up.
        let units = |blocks: u64| {
            let bytes = u128::from(blocks) * u128::from(self.config.block);
            bytes.div_ceil(512_000).to_le_bytes()
        };
        let count = |count: u64| u128::from(count).to_le_bytes();
        let mut log = SmartLog::new_zeroed();
        log.critical_warning = self.health.critical_warning;
        log.composite_temperature = self.health.temperature.to_le_bytes();
        log.available_spare = self.health.available_spare;
        log.percentage_used = self.health.percentage_used;
        log.available_spare_threshold = 10;
        log.data_units_read = units(self.counters.blocks_read);
        log.data_units_written = units(self.counters.blocks_written);
        log.host_read_commands = count(self.counters.reads);
        log.host_write_commands = count(self.counters.writes);
        log.power_cycles = count(1);
        log.error_log_entries = count(self.errors.count());
        log
    }

    /// Writes data to the host: `bytes`, then zeros up to `len`.
    fn send(&mut self, command: &Command, bytes: &[u8], len: u64) -> Result<u32, Status> {
        let mut bytes = bytes;
        for run in self.nvm.transfer.admin(&self.dma, command, len, Want::Write)? {
            let Some(iova) = run.iova else { continue };
            let (now, later) = bytes.split_at(bytes.len().min(run.len as usize));
            let padding = run.len - now.len() as u64;
            self.dma.write(iova, now).map_err(unreachable_memory)?;
            self.dma.zero(iova + now.len() as u64, padding).map_err(unreachable_memory)?;
            bytes = later;
        }
        Ok(0)
    }
}

/// What all Admin commands have in common: no fused operations, and PRPs only.
fn common_fields(command: &Command) -> Result<(), Status> {
    not_fused(command)?;
    if command.flags & PSDT_MASK == PSDT_PRP { Ok(()) } else { Err(Status::INVALID_FIELD.with_dnr()) }
}

/// A command that does not use the NSID has 0 there (Base 2.0, section 3.3.3.1).
fn unused_nsid(command: &Command) -> Result<(), Status> {
    if command.nsid == 0 { Ok(()) } else { Err(Status::INVALID_FIELD.with_dnr()) }
}

/// QID, and QSIZE as a count.
fn queue_fields(command: &Command) -> (u16, u32) {
    (command.cdw10 as u16, (command.cdw10 >> 16) + 1)
}

/// Supported Log Pages (Base 2.0, section 5.16.1.1): a dword per page, supported in bit 0.
fn supported_logs() -> Vec<u8> {
    let mut log = vec![0; 1024];
    for page in LOG_PAGES {
        log[4 * usize::from(page.0)] = 1;
    }
    log
}

fn firmware_log() -> FirmwareSlotLog {
    let mut log = FirmwareSlotLog::new_zeroed();
    log.afi = 1;
    log.frs[0] = *FIRMWARE;
    log
}
