//! The NVM command set (Base 2.0, section 7; NVM Command Set 1.0, section 3).
//!
//! Knows commands, blocks and limits; must not know queues.

use std::ops::Range;

use kiovec::spec::command::{DSM_DEALLOCATE, NSID_ALL, RW_FUA};
use kiovec::spec::identify::{ONCS_COMPARE, ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES};
use kiovec::spec::{Command, DsmRange, Status, io_opcode};
use zerocopy::{FromZeros, IntoBytes};

use super::namespaces::Namespaces;
use super::transfer::{Run, Transfer, not_fused, unreachable_memory};
use super::write_cache::WriteCache;
use crate::config::Config;
use crate::counters::Counters;
use crate::dma::{Dma, Want};
use crate::media::Store;

/// The largest namespace, as of the setting `size`.
const MAX_BYTES: u64 = 1 << 52;

/// All namespaces, and what commands may ask of them.
#[derive(Debug)]
pub(crate) struct Nvm {
    stores: Vec<Store>,
    pub(crate) namespaces: Namespaces,
    /// Nothing is stored in any of them: reading and writing need no look at them.
    null: bool,
    /// There is no volatile write cache, or it is off: what is written stays, whatever happens.
    write_through: bool,
    /// What a loss of power takes back, if there is any.
    cache: Option<WriteCache>,
    block_shift: u32,
    /// MDTS in bytes.
    max_transfer: u64,
    /// WZSL in bytes.
    max_zeroes: u64,
    oncs: u16,
    max_ranges: u32,
    max_range: u32,
    max_total: u64,
    pub(crate) transfer: Transfer,
}

/// Blocks that a command concerns, checked to exist.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Bytes.
    offset: u64,
    /// Bytes.
    len: u64,
}

impl Extent {
    fn blocks(&self, shift: u32) -> Range<u64> {
        self.offset >> shift..(self.offset + self.len) >> shift
    }
}

impl Nvm {
    pub(crate) fn new(config: &Config, stores: Vec<Store>) -> Nvm {
        let pages = |power: u8| match power {
            0 => u64::MAX,
            power => 1 << (12 + u32::from(config.mpsmin) + u32::from(power)),
        };
        let or_none = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        Nvm {
            null: stores.iter().all(|store| matches!(store, Store::Null)),
            stores,
            namespaces: Namespaces::new(config),
            write_through: !config.vwc,
            cache: (config.write_cache > 0).then(|| {
                let (room, atomic) = (config.write_cache.into(), u64::from(config.awupf) + 1);
                WriteCache::new(config.block as usize, room, atomic, config.seed)
            }),
            block_shift: config.block.trailing_zeros(),
            max_transfer: pages(config.mdts),
            max_zeroes: pages(config.wzsl),
            oncs: config.oncs,
            max_ranges: or_none(config.dmrl.into()).min(256) as u32,
            max_range: or_none(config.dmrsl.into()).min(u32::MAX.into()) as u32,
            max_total: or_none(config.dmsl),
            transfer: Transfer::new(config.sgl),
        }
    }

    /// What is stored in the namespaces. There are none afterwards.
    pub(crate) fn take_stores(&mut self) -> Vec<Store> {
        std::mem::take(&mut self.stores)
    }

    /// The volatile write cache was switched on or off.
    pub(crate) fn set_write_cache(&mut self, on: bool) {
        self.write_through = !on;
        if let Some(cache) = self.cache.as_mut().filter(|_| !on) {
            (0..self.stores.len()).for_each(|store| cache.flush(store));
        }
    }

    /// The power fails. Returns how many blocks lost what was written to them; `None` if there is no cache.
    pub(crate) fn lose_cache(&mut self) -> Option<u64> {
        Some(self.cache.as_mut()?.lose(&mut self.stores))
    }

    /// What is on the medium of a namespace, from a block on; zeros beyond its end. False if there is no such
    /// namespace.
    pub(crate) fn peek(&self, nsid: u32, lba: u64, bytes: &mut [u8]) -> bool {
        let Some(store) = self.stores.get(nsid.wrapping_sub(1) as usize) else { return false };
        store.peek(lba.saturating_mul(1 << self.block_shift), bytes);
        true
    }

    /// The largest transfer in bytes.
    pub(crate) fn max_transfer(&self) -> u64 {
        self.max_transfer
    }

    /// Executes a command. Inlined into the way without a plan, although there is another caller, and
    /// reading and writing with it: that is some 20 instructions per command.
    #[inline(always)]
    pub(crate) fn execute(&mut self, dma: &Dma, command: &Command, counters: &mut Counters) -> Status {
        let done = match command.opcode {
            io_opcode::READ if self.null => self.read::<false>(dma, command, counters),
            io_opcode::WRITE if self.null => self.write::<false>(dma, command, counters),
            _ => self.execute_other(dma, command, counters),
        };
        done.err().unwrap_or(Status::SUCCESS)
    }

    #[inline(never)]
    fn execute_other(&mut self, dma: &Dma, command: &Command, counters: &mut Counters) -> Result<(), Status> {
        match command.opcode {
            io_opcode::READ => self.read::<true>(dma, command, counters),
            io_opcode::WRITE => self.write::<true>(dma, command, counters),
            io_opcode::FLUSH => self.flush(command),
            io_opcode::COMPARE if self.oncs & ONCS_COMPARE != 0 => self.compare(dma, command),
            io_opcode::WRITE_ZEROES if self.oncs & ONCS_WRITE_ZEROES != 0 => self.write_zeroes(command),
            io_opcode::DATASET_MANAGEMENT if self.oncs & ONCS_DATASET_MANAGEMENT != 0 => {
                self.dataset_management(dma, command)
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    #[inline(always)]
    fn read<const STORED: bool>(
        &mut self,
        dma: &Dma,
        command: &Command,
        counters: &mut Counters,
    ) -> Result<(), Status> {
        let (store, blocks) = self.store(command)?;
        let extent = self.data_extent(command, blocks)?;
        let runs = self.transfer.io(dma, command, extent.len, Want::Write)?;
        if STORED {
            self.stores[store].read(extent.offset, dma, runs)?;
        }
        counters.reads += 1;
        counters.blocks_read += u64::from(command.nlb()) + 1;
        Ok(())
    }

    #[inline(always)]
    fn write<const STORED: bool>(
        &mut self,
        dma: &Dma,
        command: &Command,
        counters: &mut Counters,
    ) -> Result<(), Status> {
        let (store, blocks) = self.store(command)?;
        let extent = self.data_extent(command, blocks)?;
        let runs = self.transfer.io(dma, command, extent.len, Want::Read)?;
        if STORED {
            let durable = self.write_through || command.cdw12 & RW_FUA != 0;
            match &mut self.cache {
                None => self.stores[store].write(extent.offset, dma, runs, durable)?,
                Some(cache) => {
                    let blocks = extent.blocks(self.block_shift);
                    cache.change(&mut self.stores, store, blocks, durable, |store| {
                        store.write(extent.offset, dma, runs, durable)
                    })?;
                }
            }
        }
        counters.writes += 1;
        counters.blocks_written += u64::from(command.nlb()) + 1;
        Ok(())
    }

    /// The memory that a command moves blocks to or from; none if it cannot be carried out.
    pub(crate) fn runs(&mut self, dma: &Dma, command: &Command) -> &[Run] {
        let want = match command.opcode {
            io_opcode::READ => Want::Write,
            io_opcode::WRITE | io_opcode::COMPARE => Want::Read,
            _ => return &[],
        };
        let len = (u64::from(command.nlb()) + 1) << self.block_shift;
        self.transfer.io(dma, command, len, want).unwrap_or_default()
    }

    fn flush(&mut self, command: &Command) -> Result<(), Status> {
        not_fused(command)?;
        let stores = match command.nsid {
            NSID_ALL => 0..self.stores.len(),
            _ => {
                let (store, _) = self.store(command)?;
                store..store + 1
            }
        };
        for store in stores {
            self.stores[store].flush()?;
            if let Some(cache) = &mut self.cache {
                cache.flush(store);
            }
        }
        Ok(())
    }

    fn compare(&mut self, dma: &Dma, command: &Command) -> Result<(), Status> {
        let (store, blocks) = self.store(command)?;
        let extent = self.data_extent(command, blocks)?;
        let runs = self.transfer.io(dma, command, extent.len, Want::Read)?;
        let equal = self.stores[store].compare(extent.offset, dma, runs)?;
        if equal { Ok(()) } else { Err(Status::COMPARE_FAILURE) }
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<(), Status> {
        not_fused(command)?;
        let (store, blocks) = self.store(command)?;
        let extent = self.extent(command, blocks)?;
        if extent.len > self.max_zeroes {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let durable = self.write_through || command.cdw12 & RW_FUA != 0;
        self.change(store, extent, durable, |store| store.zero(extent.offset, extent.len))?;
        if durable { self.stores[store].flush() } else { Ok(()) }
    }

    fn dataset_management(&mut self, dma: &Dma, command: &Command) -> Result<(), Status> {
        not_fused(command)?;
        let (store, blocks) = self.store(command)?;
        let count = (command.cdw10 & 0xff) + 1;
        if count > self.max_ranges {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
        }
        let ranges = self.ranges(dma, command, count as usize)?;
        self.check_ranges(&ranges, blocks)?;
        if command.cdw11 & DSM_DEALLOCATE != 0 {
            for range in &ranges {
                let len = u64::from(range.length) << self.block_shift;
                let extent = Extent { offset: range.slba << self.block_shift, len };
                let through = self.write_through;
                self.change(store, extent, through, |store| store.deallocate(extent.offset, extent.len))?;
            }
        }
        Ok(())
    }

    /// Changes blocks of a store; what is not `durable` is in the cache, if there is one.
    fn change(
        &mut self,
        store: usize,
        extent: Extent,
        durable: bool,
        how: impl FnOnce(&mut Store) -> Result<(), Status>,
    ) -> Result<(), Status> {
        match &mut self.cache {
            None => how(&mut self.stores[store]),
            Some(cache) => {
                let blocks = extent.blocks(self.block_shift);
                cache.change(&mut self.stores, store, blocks, durable, how)
            }
        }
    }

    /// Fetches the ranges of a Dataset Management command.
    fn ranges(&mut self, dma: &Dma, command: &Command, count: usize) -> Result<Vec<DsmRange>, Status> {
        let mut ranges = vec![DsmRange::new_zeroed(); count];
        let mut bytes = ranges.as_mut_bytes();
        let runs = self.transfer.io(dma, command, bytes.len() as u64, Want::Read)?;
        for run in runs {
            let (now, later) = bytes.split_at_mut(run.len as usize);
            if let Some(iova) = run.iova {
                dma.read(iova, now).map_err(unreachable_memory)?;
            }
            bytes = later;
        }
        Ok(ranges)
    }

    fn check_ranges(&self, ranges: &[DsmRange], blocks: u64) -> Result<(), Status> {
        let total: u64 = ranges.iter().map(|range| u64::from(range.length)).sum();
        if total > self.max_total || ranges.iter().any(|range| range.length > self.max_range) {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
        }
        let within = |range: &DsmRange| fits(range.slba, range.length.into(), blocks);
        if ranges.iter().all(within) { Ok(()) } else { Err(Status::LBA_OUT_OF_RANGE.with_dnr()) }
    }

    /// Which namespace a command is for, and its size in blocks.
    #[inline]
    fn store(&self, command: &Command) -> Result<(usize, u64), Status> {
        self.namespaces.active(command.nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())
    }

    /// Gives a namespace another size; what is cut off is lost. False if there is no such namespace, or
    /// it has that size,
    /// or what stores its blocks has no room.
    pub(crate) fn resize(&mut self, nsid: u32, blocks: u64) -> bool {
        let Some(store) = (nsid as usize).checked_sub(1).and_then(|index| self.stores.get_mut(index)) else {
            return false;
        };
        if blocks > store.most().min(MAX_BYTES) >> self.block_shift {
            return false;
        }
        let Some(before) = self.namespaces.resize(nsid, blocks) else { return false };
        let cut = before.saturating_sub(blocks);
        if let Some(cache) = &mut self.cache {
            cache.flush(nsid as usize - 1);
        }
        // What a file does not let go of would be read again if the namespace grew; no worse.
        let _ = store.zero(blocks << self.block_shift, cut << self.block_shift);
        true
    }

    /// The blocks of a command that moves data.
    #[inline]
    fn data_extent(&self, command: &Command, blocks: u64) -> Result<Extent, Status> {
        not_fused(command)?;
        let extent = self.extent(command, blocks)?;
        if extent.len > self.max_transfer { Err(Status::INVALID_FIELD.with_dnr()) } else { Ok(extent) }
    }

    #[inline]
    fn extent(&self, command: &Command, blocks: u64) -> Result<Extent, Status> {
        let (slba, count) = (command.slba(), u64::from(command.nlb()) + 1);
        if !fits(slba, count, blocks) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        Ok(Extent { offset: slba << self.block_shift, len: count << self.block_shift })
    }
}

#[inline]
fn fits(slba: u64, count: u64, blocks: u64) -> bool {
    slba.checked_add(count).is_some_and(|end| end <= blocks)
}

#[cfg(test)]
mod tests {
    use kiovec::memory::Access;
    use proptest::prelude::*;

    use super::*;
    use crate::dma::tests::HostMemory;

    const HOST: u64 = 0x10_0000;

    struct Bench {
        nvm: Nvm,
        counters: Counters,
        dma: Dma,
        memory: HostMemory,
    }

    fn nvm(text: &str) -> Nvm {
        let config = Config::parse(text).unwrap();
        let stores = Store::open(&config).unwrap();
        Nvm::new(&config, stores)
    }

    fn bench(text: &str) -> Bench {
        let memory = HostMemory::new(HOST, 64, 0);
        let mut dma = Dma::new();
        memory.map(&mut dma, Access::ReadWrite);
        Bench { nvm: nvm(text), counters: Counters::default(), dma, memory }
    }

    impl Bench {
        fn run(&mut self, command: Command) -> Status {
            self.nvm.execute(&self.dma, &command, &mut self.counters)
        }

        fn deallocate(&mut self, ranges: &[DsmRange]) -> Status {
            self.memory.write(0, ranges.as_bytes());
            let count = (ranges.len() - 1) as u8;
            self.run(Command::deallocate(1, count).with_prps(HOST, HOST + 4096))
        }
    }

    fn at(command: Command) -> Command {
        command.with_prps(HOST, 0)
    }

    fn range(slba: u64, length: u32) -> DsmRange {
        DsmRange { context_attributes: 0, length, slba }
    }

    #[test]
    fn blocks_beyond_the_end_are_out_of_range() {
        let mut bench = bench("size=1M,block=4096,media=ram");
        let refused = Status::LBA_OUT_OF_RANGE.with_dnr();
        for command in [Command::read, Command::write, Command::write_zeroes] {
            assert_eq!(bench.run(at(command(1, 255, 0))), Status::SUCCESS);
            assert_eq!(bench.run(at(command(1, 256, 0))), refused);
            assert_eq!(bench.run(at(command(1, 255, 1))), refused);
            assert_eq!(bench.run(at(command(1, u64::MAX, 0))), refused);
            assert_eq!(bench.run(at(command(1, u64::MAX - 1, 9))), refused);
        }
        assert_eq!((bench.counters.reads, bench.counters.blocks_written), (1, 1));
    }

    #[test]
    fn namespaces_are_checked() {
        let mut bench = bench("namespaces=2");
        let refused = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
        for nsid in [0, 3, NSID_ALL] {
            assert_eq!(bench.run(at(Command::read(nsid, 0, 0))), refused);
            assert_eq!(bench.run(at(Command::write(nsid, 0, 0))), refused);
            assert_eq!(bench.run(Command::write_zeroes(nsid, 0, 0)), refused);
            assert_eq!(bench.run(at(Command::deallocate(nsid, 0))), refused);
        }
        assert_eq!(bench.run(Command::flush(0)), refused);
        assert_eq!(bench.run(Command::flush(3)), refused);
        assert_eq!(bench.run(Command::flush(2)), Status::SUCCESS);
        assert_eq!(bench.run(Command::flush(NSID_ALL)), Status::SUCCESS);
    }

    #[test]
    fn transfers_are_limited() {
        let refused = Status::INVALID_FIELD.with_dnr();
        let mut bench = bench("mdts=1,wzsl=2,block=512,size=1M");
        let read = |nlb| Command::read(1, 0, nlb).with_prps(HOST, HOST + 4096);
        assert_eq!(bench.run(read(15)), Status::SUCCESS);
        assert_eq!(bench.run(read(16)), refused);
        assert_eq!(bench.run(Command::write_zeroes(1, 0, 31)), Status::SUCCESS);
        assert_eq!(bench.run(Command::write_zeroes(1, 0, 32)), refused);
    }

    #[test]
    fn fused_commands_are_refused() {
        let mut bench = bench("");
        for command in [Command::read, Command::write, Command::write_zeroes] {
            let fused = Command { flags: 1, ..at(command(1, 0, 0)) };
            assert_eq!(bench.run(fused), Status::INVALID_FIELD.with_dnr());
        }
        assert_eq!(bench.run(Command { flags: 2, ..Command::flush(1) }), Status::INVALID_FIELD.with_dnr());
    }

    #[test]
    fn commands_that_are_not_there() {
        let mut plain = bench("");
        let refused = Status::INVALID_OPCODE.with_dnr();
        let opcode = |opcode| Command { opcode, nsid: 1, ..Command::default() };
        for unknown in [io_opcode::WRITE_UNCORRECTABLE, io_opcode::VERIFY, io_opcode::COPY, 0x80, 0xff] {
            assert_eq!(plain.run(opcode(unknown)), refused);
        }
        let mut bare = bench("oncs=0");
        for optional in [io_opcode::COMPARE, io_opcode::WRITE_ZEROES, io_opcode::DATASET_MANAGEMENT] {
            assert_eq!(bare.run(at(opcode(optional))), refused);
        }
    }

    #[test]
    fn null_media_checks_and_does_not_touch() {
        let mut bench = bench("media=null");
        bench.memory.write(0, &[0xaa; 4096]);
        assert_eq!(bench.run(at(Command::read(1, 0, 0))), Status::SUCCESS);
        assert_eq!(bench.memory.read(0, 4096), [0xaa; 4096]);
        let read = |prp1| Command::read(1, 0, 0).with_prps(prp1, 0);
        assert_eq!(bench.run(read(HOST + 1)), Status::PRP_OFFSET_INVALID.with_dnr());
        assert_eq!(bench.run(read(HOST - 4096)), Status::DATA_TRANSFER_ERROR);
        assert_eq!(bench.run(at(Command::write(1, 0, 0))), Status::SUCCESS);
    }

    #[test]
    fn deallocation_is_limited_and_all_or_nothing() {
        let mut bench = bench("size=1M,block=4096,media=ram,dmrl=2,dmrsl=8,dmsl=10");
        bench.memory.write(4096, &[1; 4096]);
        let write = Command::write(1, 3, 0).with_prps(HOST + 4096, 0);
        let compare = Command { opcode: io_opcode::COMPARE, ..write };
        let limit = Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr();
        assert_eq!(bench.run(write), Status::SUCCESS);
        assert_eq!(bench.deallocate(&[range(0, 1); 3]), limit);
        assert_eq!(bench.deallocate(&[range(0, 9)]), limit);
        assert_eq!(bench.deallocate(&[range(0, 8), range(0, 3)]), limit);
        assert_eq!(bench.deallocate(&[range(3, 1), range(256, 1)]), Status::LBA_OUT_OF_RANGE.with_dnr());
        assert_eq!(bench.deallocate(&[range(u64::MAX, 1)]), Status::LBA_OUT_OF_RANGE.with_dnr());
        assert_eq!(bench.run(compare), Status::SUCCESS);
        assert_eq!(bench.deallocate(&[range(3, 1), range(0, 0)]), Status::SUCCESS);
        assert_eq!(bench.run(compare), Status::COMPARE_FAILURE);
    }

    #[test]
    fn other_hints_change_nothing() {
        let mut bench = bench("size=1M,media=ram");
        bench.memory.write(4096, &[1; 4096]);
        let write = Command::write(1, 3, 0).with_prps(HOST + 4096, 0);
        bench.run(write);
        bench.memory.write(0, range(3, 1).as_bytes());
        let mut hint = at(Command::deallocate(1, 0));
        hint.cdw11 = 0b11;
        assert_eq!(bench.run(hint), Status::SUCCESS);
        assert_eq!(bench.run(Command { opcode: io_opcode::COMPARE, ..write }), Status::SUCCESS);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write { slba: u64, nlb: u16, byte: u8 },
        Read { slba: u64, nlb: u16 },
        Zero { slba: u64, nlb: u16 },
        Deallocate(Vec<(u64, u32)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let extent = || (0..4096u64, 0..64u16);
        prop_oneof![
            (extent(), any::<u8>()).prop_map(|((slba, nlb), byte)| Step::Write { slba, nlb, byte }),
            extent().prop_map(|(slba, nlb)| Step::Read { slba, nlb }),
            extent().prop_map(|(slba, nlb)| Step::Zero { slba, nlb }),
            proptest::collection::vec((0..4096u64, 0..3000u32), 1..5).prop_map(Step::Deallocate),
        ]
    }

    proptest! {
        /// RAM media against a plain array, two megabytes of it.
        #[test]
        fn ram_agrees_with_an_array(steps in proptest::collection::vec(step(), 1..60)) {
            let mut bench = bench("size=2M,block=512,media=ram,mdts=0");
            let mut model = vec![0u8; 2 << 20];
            // Data at a page, with a list that names its pages backwards.
            let pages: Vec<u64> = (1..9).rev().map(|page| HOST + 4096 * page).collect();
            bench.memory.write(16 * 4096, pages[1..].as_bytes());
            let pointed = |command: Command| {
                let blocks = usize::from(command.nlb()) + 1;
                let prp2 = if blocks <= 16 { pages[1] } else { HOST + 16 * 4096 };
                command.with_prps(pages[0], prp2)
            };
            let byte_range = |slba: u64, blocks: u64| slba as usize * 512..(slba + blocks) as usize * 512;
            for step in steps {
                let (status, expected) = match step {
                    Step::Write { slba, nlb, byte } => {
                        let blocks = u64::from(nlb) + 1;
                        let data: Vec<u8> = (0..blocks * 512).map(|i| byte.wrapping_add((i / 64) as u8)).collect();
                        for (chunk, page) in data.chunks(4096).zip(&pages) {
                            bench.memory.write((page - HOST) as usize, chunk);
                        }
                        let fits = slba + blocks <= 4096;
                        if fits {
                            model[byte_range(slba, blocks)].copy_from_slice(&data);
                        }
                        (bench.run(pointed(Command::write(1, slba, nlb))), fits)
                    }
                    Step::Read { slba, nlb } => {
                        let blocks = u64::from(nlb) + 1;
                        let status = bench.run(pointed(Command::read(1, slba, nlb)));
                        let fits = slba + blocks <= 4096;
                        if fits {
                            let mut data = Vec::new();
                            for page in &pages {
                                data.extend(bench.memory.read((page - HOST) as usize, 4096));
                            }
                            data.truncate(blocks as usize * 512);
                            prop_assert_eq!(&data[..], &model[byte_range(slba, blocks)]);
                        }
                        (status, fits)
                    }
                    Step::Zero { slba, nlb } => {
                        let blocks = u64::from(nlb) + 1;
                        let fits = slba + blocks <= 4096;
                        if fits {
                            model[byte_range(slba, blocks)].fill(0);
                        }
                        (bench.run(Command::write_zeroes(1, slba, nlb)), fits)
                    }
                    Step::Deallocate(ranges) => {
                        let fits = ranges.iter().all(|(slba, len)| slba + u64::from(*len) <= 4096);
                        if fits {
                            for (slba, len) in &ranges {
                                model[byte_range(*slba, u64::from(*len))].fill(0);
                            }
                        }
                        let ranges: Vec<DsmRange> = ranges.iter().map(|(slba, len)| range(*slba, *len)).collect();
                        (bench.deallocate(&ranges), fits)
                    }
                };
                let wanted = if expected { Status::SUCCESS } else { Status::LBA_OUT_OF_RANGE.with_dnr() };
                prop_assert_eq!(status, wanted);
            }
        }
    }
}
