//! Data pointers: from PRPs (Base 2.0, section 4.1.1) and SGLs (section 4.1.2) to runs of host memory.
//!
//! Knows addresses, lists and what is wrong with them; must not know what the data are.

use std::sync::atomic::Ordering;

use kiovec::spec::command::{FUSE_MASK, PSDT_MASK, PSDT_PRP, PSDT_SGL_MPTR_CONTIGUOUS, PSDT_SGL_MPTR_SGL};
use kiovec::spec::{Command, Descriptor, Status, sgl};

use crate::config::Sgl;
use crate::dma::{Dma, Fault, Want};

/// The most segments and descriptors of one SGL: an end to lists that loop.
const MAX_DESCRIPTORS: usize = 64 * 1024;

/// A run of host memory, or of data to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where it starts; none for a bit bucket.
    pub(crate) iova: Option<u64>,
    pub(crate) len: u64,
}

/// The pointer and the number of bytes that a command moves through it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pointer {
    pub(crate) dptr: [u64; 2],
    pub(crate) len: u64,
    /// What the controller does with the memory.
    pub(crate) want: Want,
}

/// Turns data pointers into runs. Keeps its buffer from one command to the next.
#[derive(Debug)]
pub(crate) struct Transfer {
    runs: Vec<Run>,
    /// The run of a transfer within one page, which is most of them.
    single: [Run; 1],
    /// Bytes of a memory page, from CC.MPS.
    page: u64,
    sgl: Sgl,
}

impl Transfer {
    pub(crate) fn new(sgl: Sgl) -> Transfer {
        Transfer { runs: Vec::new(), single: [Run { iova: None, len: 0 }], page: 4096, sgl }
    }

    /// CC.MPS has changed.
    pub(crate) fn set_page(&mut self, page: u64) {
        self.page = page;
    }

    /// The memory that an I/O command moves `len` bytes through, checked to be reachable.
    #[inline(always)]
    pub(crate) fn io(
        &mut self,
        dma: &Dma,
        command: &Command,
        len: u64,
        want: Want,
    ) -> Result<&[Run], Status> {
        let [first, _] = command.dptr;
        let within_page = first.is_multiple_of(4) && self.offset(first) + len <= self.page;
        if within_page && command.flags & PSDT_MASK == PSDT_PRP {
            dma.check(first, len, want).map_err(unreachable_memory)?;
            self.single = [Run { iova: Some(first), len }];
            return Ok(&self.single);
        }
        self.io_of_any_shape(dma, command, len, want)
    }

    fn io_of_any_shape(
        &mut self,
        dma: &Dma,
        command: &Command,
        len: u64,
        want: Want,
    ) -> Result<&[Run], Status> {
        let pointer = Pointer { dptr: command.dptr, len, want };
        match command.flags & PSDT_MASK {
            PSDT_PRP => self.prp(dma, pointer),
            PSDT_SGL_MPTR_CONTIGUOUS | PSDT_SGL_MPTR_SGL if self.sgl != Sgl::Off => self.sgl(dma, pointer),
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }

    /// The memory of an Admin command: over PCIe these have PRPs only (Base 2.0, section 3.3.3.1).
    pub(crate) fn admin(
        &mut self,
        dma: &Dma,
        command: &Command,
        len: u64,
        want: Want,
    ) -> Result<&[Run], Status> {
        self.prp(dma, Pointer { dptr: command.dptr, len, want })
    }

    /// Walks PRPs (Base 2.0, section 4.1.1).
    #[inline]
    pub(crate) fn prp(&mut self, dma: &Dma, pointer: Pointer) -> Result<&[Run], Status> {
        self.runs.clear();
        let [first, second] = pointer.dptr;
        // PRP1 may begin anywhere in a page, on a dword.
        if !first.is_multiple_of(4) {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        let here = (self.page - self.offset(first)).min(pointer.len);
        self.push(first, here);
        match pointer.len - here {
            0 => {}
            rest if rest <= self.page => {
                self.entry(second)?;
                self.push(second, rest);
            }
            rest => self.prp_list(dma, second, rest)?,
        }
        self.reachable(dma, pointer.want)
    }

    /// Walks the list at `list` for `rest` bytes, which are more than a page.
    fn prp_list(&mut self, dma: &Dma, list: u64, mut rest: u64) -> Result<(), Status> {
        // The first list may begin anywhere in its page, on a qword; the others at its start.
        if !list.is_multiple_of(8) {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        let mut list = list;
        loop {
            let slots = (self.page - self.offset(list)) / 8;
            let needed = rest.div_ceil(self.page);
            // The last entry of a page points to the next one, but only if one more is needed.
            let entries = if needed > slots { slots - 1 } else { needed };
            let words = entries + u64::from(needed > slots);
            let words = dma.words(list, words as usize).map_err(unreachable_memory)?;
            for word in &words[..entries as usize] {
                let entry = word.load(Ordering::Relaxed);
                self.entry(entry)?;
                let here = rest.min(self.page);
                self.push(entry, here);
                rest -= here;
            }
            match words.get(entries as usize) {
                None => return Ok(()),
                Some(chain) => list = chain.load(Ordering::Relaxed),
            }
            self.entry(list)?;
        }
    }

    /// Where in its page an address lies. Pages are powers of two: no division on this path.
    #[inline]
    fn offset(&self, address: u64) -> u64 {
        address & (self.page - 1)
    }

    /// Every entry but PRP1 and the first list pointer has offset 0 (Base 2.0, section 4.1.1).
    #[inline]
    fn entry(&self, entry: u64) -> Result<(), Status> {
        if self.offset(entry) == 0 { Ok(()) } else { Err(Status::PRP_OFFSET_INVALID.with_dnr()) }
    }

    /// Walks an SGL (Base 2.0, section 4.1.2).
    fn sgl(&mut self, dma: &Dma, pointer: Pointer) -> Result<&[Run], Status> {
        self.runs.clear();
        let mut rest = pointer.len;
        let mut left = MAX_DESCRIPTORS;
        let first = Descriptor::from(pointer.dptr);
        let mut next = match first.descriptor_type() {
            sgl::SEGMENT | sgl::LAST_SEGMENT => Some(segment(&first)?),
            _ => {
                self.data(&first, pointer.want, &mut rest)?;
                None
            }
        };
        while let Some(segment) = next {
            let count = segment.words / 2;
            left = left.checked_sub(count).ok_or(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.with_dnr())?;
            next = self.segment(dma, segment, pointer.want, &mut rest)?;
        }
        if rest > 0 {
            return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
        }
        self.reachable(dma, pointer.want)
    }

    /// Walks one segment, and returns the one that its last descriptor points to.
    fn segment(
        &mut self,
        dma: &Dma,
        segment: Segment,
        want: Want,
        rest: &mut u64,
    ) -> Result<Option<Segment>, Status> {
        let words = dma.words(segment.iova, segment.words).map_err(unreachable_memory)?;
        let mut descriptors = words
            .chunks_exact(2)
            .map(|pair| Descriptor::from([pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed)]))
            .peekable();
        while let Some(descriptor) = descriptors.next() {
            let is_final = descriptors.peek().is_none();
            match descriptor.descriptor_type() {
                sgl::SEGMENT | sgl::LAST_SEGMENT if segment.last => {
                    return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr());
                }
                sgl::SEGMENT | sgl::LAST_SEGMENT if !is_final => {
                    return Err(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.with_dnr());
                }
                sgl::SEGMENT | sgl::LAST_SEGMENT => return self::segment(&descriptor).map(Some),
                // A segment that is not the last ends with a pointer to the next.
                _ if is_final && !segment.last => {
                    return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr());
                }
                _ => self.data(&descriptor, want, rest)?,
            }
        }
        Ok(None)
    }

    /// Takes a descriptor that stands for data.
    fn data(&mut self, descriptor: &Descriptor, want: Want, rest: &mut u64) -> Result<(), Status> {
        let bucket = match (descriptor.descriptor_type(), descriptor.sub_type()) {
            (sgl::DATA_BLOCK, sgl::SUBTYPE_ADDRESS) => false,
            (sgl::BIT_BUCKET, sgl::SUBTYPE_ADDRESS) => true,
            _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr()),
        };
        let mut len = u64::from(descriptor.length);
        if bucket && want == Want::Read {
            // A bit bucket counts for nothing where the host is the source.
            len = 0;
        }
        if !bucket && self.sgl == Sgl::Dword && !(descriptor.address | len).is_multiple_of(4) {
            return Err(Status::SGL_DATA_BLOCK_GRANULARITY_INVALID.with_dnr());
        }
        // SGLS says that an SGL may not be longer than the data.
        *rest = rest.checked_sub(len).ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
        if len > 0 {
            self.runs.push(Run { iova: (!bucket).then_some(descriptor.address), len });
        }
        Ok(())
    }

    /// Appends memory; what follows the last run continues it.
    #[inline]
    fn push(&mut self, iova: u64, len: u64) {
        match self.runs.last_mut() {
            Some(Run { iova: Some(start), len: so_far }) if start.checked_add(*so_far) == Some(iova) => {
                *so_far += len;
            }
            _ => self.runs.push(Run { iova: Some(iova), len }),
        }
    }

    #[inline]
    fn reachable(&self, dma: &Dma, want: Want) -> Result<&[Run], Status> {
        for run in &self.runs {
            if let Some(iova) = run.iova {
                dma.check(iova, run.len, want).map_err(unreachable_memory)?;
            }
        }
        Ok(&self.runs)
    }
}

/// FUSE is reserved where fused operations are not supported (Base 2.0, section 3.3.3.1).
#[inline]
pub(crate) fn not_fused(command: &Command) -> Result<(), Status> {
    if command.flags & FUSE_MASK == 0 { Ok(()) } else { Err(Status::INVALID_FIELD.with_dnr()) }
}

/// A transfer that hits memory the host has not given (Base 2.0, section 3.3.3.2.1.1).
pub(crate) fn unreachable_memory(Fault: Fault) -> Status {
    Status::DATA_TRANSFER_ERROR
}

/// A segment of descriptors, as a descriptor tells of it.
#[derive(Debug, Clone, Copy)]
struct Segment {
    iova: u64,
    words: usize,
    last: bool,
}

/// Reads a Segment or Last Segment descriptor: its length is a multiple of 16 that is not 0 (Base
/// 2.0, section 4.1.2.1).
fn segment(descriptor: &Descriptor) -> Result<Segment, Status> {
    if descriptor.sub_type() != sgl::SUBTYPE_ADDRESS {
        return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr());
    }
    // Descriptors are qword aligned.
    if descriptor.length == 0
        || !descriptor.length.is_multiple_of(16)
        || !descriptor.address.is_multiple_of(8)
    {
        return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr());
    }
    Ok(Segment {
        iova: descriptor.address,
        words: descriptor.length as usize / 8,
        last: descriptor.descriptor_type() == sgl::LAST_SEGMENT,
    })
}

#[cfg(test)]
mod tests {
    use kiovec::memory::Access;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::dma::tests::HostMemory;

    const HOST: u64 = 0x10_0000;

    struct Host {
        dma: Dma,
        memory: HostMemory,
    }

    fn host(pages: usize) -> Host {
        let memory = HostMemory::new(HOST, pages, 0);
        let mut dma = Dma::new();
        memory.map(&mut dma, Access::ReadWrite);
        Host { dma, memory }
    }

    impl Host {
        fn list(&self, iova: u64, words: &[u64]) {
            self.memory.write((iova - HOST) as usize, words.as_bytes());
        }

        fn segment(&self, iova: u64, descriptors: &[Descriptor]) {
            self.memory.write((iova - HOST) as usize, descriptors.as_bytes());
        }

        fn prp(&self, dptr: [u64; 2], len: u64) -> Result<Vec<(u64, u64)>, Status> {
            let mut transfer = Transfer::new(Sgl::Off);
            let runs = transfer.prp(&self.dma, Pointer { dptr, len, want: Want::Write })?;
            Ok(runs.iter().map(|run| (run.iova.unwrap(), run.len)).collect())
        }

        fn sgl(&self, sgl: Sgl, want: Want, descriptor: Descriptor, len: u64) -> Result<Vec<Run>, Status> {
            let command = Command::default().with_sgl(descriptor);
            Transfer::new(sgl).io(&self.dma, &command, len, want).map(<[Run]>::to_vec)
        }

        fn sgl_read(&self, descriptor: Descriptor, len: u64) -> Result<Vec<Run>, Status> {
            self.sgl(Sgl::On, Want::Write, descriptor, len)
        }
    }

    fn refused<T>(status: Status) -> Result<T, Status> {
        Err(status.with_dnr())
    }

    fn run(iova: u64, len: u64) -> Run {
        Run { iova: Some(iova), len }
    }

    #[test]
    fn prp1_alone() {
        let host = host(4);
        assert_eq!(host.prp([HOST + 4, 1], 4092), Ok(vec![(HOST + 4, 4092)]));
        assert_eq!(host.prp([HOST + 0xffc, 0], 4), Ok(vec![(HOST + 0xffc, 4)]));
        for odd in [1, 2, 3] {
            assert_eq!(host.prp([HOST + odd, 0], 512), refused(Status::PRP_OFFSET_INVALID));
        }
    }

    #[test]
    fn prp2_is_a_page_where_two_are_touched() {
        let host = host(4);
        assert_eq!(
            host.prp([HOST + 0x800, HOST + 0x3000], 4096),
            Ok(vec![(HOST + 0x800, 2048), (HOST + 0x3000, 2048)])
        );
        assert_eq!(host.prp([HOST, HOST + 0x1000], 8192), Ok(vec![(HOST, 8192)]));
        for odd in [1, 4, 8, 0x800] {
            assert_eq!(host.prp([HOST, HOST + 0x1000 + odd], 8192), refused(Status::PRP_OFFSET_INVALID));
        }
    }

    #[test]
    fn prp2_is_a_list_where_more_are_touched() {
        let host = host(8);
        host.list(HOST + 0x7008, &[HOST + 0x1000, HOST + 0x4000]);
        assert_eq!(host.prp([HOST, HOST + 0x7008], 3 * 4096), Ok(vec![(HOST, 8192), (HOST + 0x4000, 4096)]));
        assert_eq!(
            host.prp([HOST + 0xe00, HOST + 0x7008], 8192),
            Ok(vec![(HOST + 0xe00, 0x200 + 4096), (HOST + 0x4000, 4096 - 0x200)])
        );
        for odd in [1, 4] {
            assert_eq!(host.prp([HOST, HOST + 0x7008 + odd], 3 * 4096), refused(Status::PRP_OFFSET_INVALID));
        }
        host.list(HOST + 0x7008, &[HOST + 0x1000, HOST + 0x4008]);
        assert_eq!(host.prp([HOST, HOST + 0x7008], 3 * 4096), refused(Status::PRP_OFFSET_INVALID));
    }

    #[test]
    fn the_last_entry_of_a_page_is_data_if_nothing_follows() {
        let host = host(8);
        host.list(HOST + 0x7ff0, &[HOST + 0x2000, HOST + 0x4000]);
        assert_eq!(host.prp([HOST, HOST + 0x7ff0], 3 * 4096).unwrap().len(), 3);
    }

    #[test]
    fn the_last_entry_of_a_page_is_a_pointer_if_more_follows() {
        let host = host(8);
        host.list(HOST + 0x6ff0, &[HOST + 0x2000, HOST + 0x5000]);
        host.list(HOST + 0x5000, &[HOST + 0x4000, HOST + 0x1000]);
        let expected = vec![(HOST, 4096), (HOST + 0x2000, 4096), (HOST + 0x4000, 4096), (HOST + 0x1000, 512)];
        assert_eq!(host.prp([HOST, HOST + 0x6ff0], 3 * 4096 + 512), Ok(expected));
        // That pointer has no offset.
        host.list(HOST + 0x6ff0, &[HOST + 0x2000, HOST + 0x5008]);
        assert_eq!(host.prp([HOST, HOST + 0x6ff0], 4 * 4096), refused(Status::PRP_OFFSET_INVALID));
    }

    #[test]
    fn every_address_is_checked() {
        let host = host(4);
        let end = HOST + 0x4000;
        assert_eq!(host.prp([end, 0], 512), Err(Status::DATA_TRANSFER_ERROR));
        assert_eq!(host.prp([HOST, end], 8192), Err(Status::DATA_TRANSFER_ERROR));
        assert_eq!(host.prp([HOST, end], 3 * 4096), Err(Status::DATA_TRANSFER_ERROR));
        host.list(HOST + 0x3000, &[HOST, end]);
        assert_eq!(host.prp([HOST, HOST + 0x3000], 3 * 4096), Err(Status::DATA_TRANSFER_ERROR));
        host.list(HOST + 0x3ff8, &[end]);
        assert_eq!(host.prp([HOST, HOST + 0x3ff8], 3 * 4096), Err(Status::DATA_TRANSFER_ERROR));
        assert_eq!(host.prp([u64::MAX - 3, 0], 4), Err(Status::DATA_TRANSFER_ERROR));
    }

    #[test]
    fn read_only_memory_is_not_written() {
        let memory = HostMemory::new(HOST, 1, 0);
        let mut dma = Dma::new();
        memory.map(&mut dma, Access::Read);
        let mut transfer = Transfer::new(Sgl::Off);
        let mut walk =
            |want| transfer.prp(&dma, Pointer { dptr: [HOST, 0], len: 512, want }).map(<[Run]>::len);
        assert_eq!(walk(Want::Read), Ok(1));
        assert_eq!(walk(Want::Write), Err(Status::DATA_TRANSFER_ERROR));
    }

    #[test]
    fn pages_are_as_large_as_cc_mps_says() {
        let host = host(8);
        let mut transfer = Transfer::new(Sgl::Off);
        transfer.set_page(8192);
        let mut walk = |dptr, len| {
            transfer.prp(&host.dma, Pointer { dptr, len, want: Want::Write }).map(<[Run]>::to_vec)
        };
        assert_eq!(
            walk([HOST + 0x1000, HOST + 0x4000], 8192),
            Ok(vec![run(HOST + 0x1000, 4096), run(HOST + 0x4000, 4096)])
        );
        assert_eq!(walk([HOST, HOST + 0x3000], 16384), refused(Status::PRP_OFFSET_INVALID));
    }

    /// One data pointer, written from the specification in the plainest way: page by page, without
    /// looking ahead further than one entry.
    fn flat_walk(read: &dyn Fn(u64) -> u64, dptr: [u64; 2], len: u64) -> Vec<u64> {
        let mut bytes: Vec<u64> = (dptr[0]..).take((4096 - dptr[0] % 4096) as usize).collect();
        if len <= bytes.len() as u64 {
            bytes.truncate(len as usize);
            return bytes;
        }
        if len - bytes.len() as u64 <= 4096 {
            bytes.extend((dptr[1]..).take(4096));
        } else {
            let mut slot = dptr[1];
            while (bytes.len() as u64) < len {
                let missing = len - bytes.len() as u64;
                if slot % 4096 == 4088 && missing > 4096 {
                    slot = read(slot);
                } else {
                    bytes.extend((read(slot)..).take(4096));
                    slot += 8;
                }
            }
        }
        bytes.truncate(len as usize);
        bytes
    }

    proptest! {
        #[test]
        fn lists_agree_with_a_flat_walk(
            offset in 0..1024u64,
            dwords in 1..12 * 1024u64,
            pages in proptest::collection::vec(0..20u64, 16),
            // How many entries the page of a list has left, so that chains are as common as not.
            rooms in proptest::collection::vec(2..6u64, 16),
        ) {
            // Twenty pages of data, and a page for each list that may be chained.
            let host = host(40);
            let (offset, len) = (4 * offset, 4 * dwords);
            let data = |i: usize| HOST + 4096 * pages[i % 16];
            let entries = (len - (4096 - offset).min(len)).div_ceil(4096);
            let mut lists = 20..40u64;
            let mut next_list = || HOST + 4096 * lists.next().unwrap();
            let first_list = next_list() + 4096 - 8 * rooms[0];
            let mut slot = first_list;
            for entry in 0..entries {
                if slot % 4096 == 4088 && entry + 1 < entries {
                    // Only the first list begins within its page.
                    let list = next_list();
                    host.list(slot, &[list]);
                    slot = list;
                }
                host.list(slot, &[data(entry as usize + 1)]);
                slot += 8;
            }
            let prp2 = if entries == 1 { data(1) } else { first_list };
            let dptr = [data(0) + offset, prp2];
            let read = |iova: u64| {
                u64::from_le_bytes(host.memory.read((iova - HOST) as usize, 8).try_into().unwrap())
            };
            let runs = host.prp(dptr, len).unwrap();
            let bytes: Vec<u64> = runs.iter().flat_map(|(iova, len)| *iova..iova + len).collect();
            prop_assert_eq!(bytes, flat_walk(&read, dptr, len));
        }

        /// Whatever the host writes, the walk ends and finds only memory that is mapped.
        #[test]
        fn garbage_is_refused_or_lies_in_mapped_memory(
            dptr: [u64; 2],
            near in 0..0x3000u64,
            garbage in proptest::collection::vec(prop_oneof![any::<u64>(), (0..4u64).prop_map(|page| HOST + 4096 * page)], 512),
            len in 1..200_000u64,
            flags in 0..4u8,
        ) {
            let host = host(3);
            host.list(HOST, &garbage);
            for dptr in [dptr, [HOST + near, HOST + near], [HOST, HOST]] {
                let command = Command { flags: flags << 6, dptr, ..Command::default() };
                let mut transfer = Transfer::new(Sgl::On);
                if let Ok(runs) = transfer.io(&host.dma, &command, len, Want::Write) {
                    prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), len);
                    for run in runs {
                        prop_assert!(run.iova.is_none_or(|iova| iova >= HOST && iova + run.len <= HOST + 0x3000));
                    }
                }
            }
        }
    }

    #[test]
    fn sgls_need_support() {
        let host = host(1);
        let block = Descriptor::data_block(HOST, 512);
        assert_eq!(host.sgl(Sgl::Off, Want::Write, block, 512), refused(Status::INVALID_FIELD));
        let command = Command { flags: PSDT_MASK, ..Command::default() };
        assert_eq!(
            Transfer::new(Sgl::On).io(&host.dma, &command, 512, Want::Write).map(<[Run]>::len),
            refused(Status::INVALID_FIELD)
        );
    }

    #[test]
    fn one_data_block() {
        let host = host(1);
        assert_eq!(host.sgl_read(Descriptor::data_block(HOST + 3, 509), 509), Ok(vec![run(HOST + 3, 509)]));
        assert_eq!(
            host.sgl_read(Descriptor::data_block(HOST, 511), 512),
            refused(Status::DATA_SGL_LENGTH_INVALID)
        );
        assert_eq!(
            host.sgl_read(Descriptor::data_block(HOST, 513), 512),
            refused(Status::DATA_SGL_LENGTH_INVALID)
        );
        assert_eq!(
            host.sgl_read(Descriptor::data_block(HOST + 4096, 512), 512),
            Err(Status::DATA_TRANSFER_ERROR)
        );
        for kind in [0x01, 0x40, 0x50, 0x60, 0xf0, 0x11] {
            let odd = Descriptor { kind, ..Descriptor::data_block(HOST, 512) };
            assert_eq!(host.sgl_read(odd, 512), refused(Status::SGL_DESCRIPTOR_TYPE_INVALID));
        }
    }

    #[test]
    fn dword_granularity() {
        let host = host(1);
        let take = |address, length| {
            host.sgl(Sgl::Dword, Want::Write, Descriptor::data_block(address, length), u64::from(length))
        };
        assert!(take(HOST + 4, 512).is_ok());
        assert_eq!(take(HOST + 2, 512), refused(Status::SGL_DATA_BLOCK_GRANULARITY_INVALID));
        assert_eq!(take(HOST, 510), refused(Status::SGL_DATA_BLOCK_GRANULARITY_INVALID));
    }

    #[test]
    fn segments_follow_one_another() {
        let host = host(2);
        let blocks = |n: u64| Descriptor::data_block(HOST + 512 * n, 512);
        host.segment(HOST + 0x1000, &[blocks(0), Descriptor::segment(HOST + 0x1100, 32)]);
        host.segment(HOST + 0x1100, &[blocks(2), Descriptor::last_segment(HOST + 0x1208, 32)]);
        host.segment(HOST + 0x1208, &[blocks(4), blocks(1)]);
        let expected =
            vec![run(HOST, 512), run(HOST + 1024, 512), run(HOST + 2048, 512), run(HOST + 512, 512)];
        assert_eq!(host.sgl_read(Descriptor::segment(HOST + 0x1000, 32), 2048), Ok(expected));
    }

    #[test]
    fn a_segment_descriptor_has_a_length_of_whole_descriptors() {
        let host = host(2);
        for length in [0, 8, 15, 17] {
            for descriptor in [Descriptor::segment(HOST, length), Descriptor::last_segment(HOST, length)] {
                assert_eq!(host.sgl_read(descriptor, 512), refused(Status::INVALID_SGL_SEGMENT_DESCRIPTOR));
            }
        }
        let odd = Descriptor::last_segment(HOST + 4, 16);
        assert_eq!(host.sgl_read(odd, 512), refused(Status::INVALID_SGL_SEGMENT_DESCRIPTOR));
        let outside = Descriptor::last_segment(HOST + 0x1ff8, 16);
        assert_eq!(host.sgl_read(outside, 512), Err(Status::DATA_TRANSFER_ERROR));
    }

    #[test]
    fn segment_descriptors_stand_last_and_not_in_the_last_segment() {
        let host = host(2);
        let block = Descriptor::data_block(HOST, 512);
        host.segment(HOST + 0x1000, &[Descriptor::last_segment(HOST + 0x1100, 16), block]);
        host.segment(HOST + 0x1100, &[Descriptor::last_segment(HOST + 0x1100, 16)]);
        host.segment(HOST + 0x1200, &[block, block]);
        let from = |kind: fn(u64, u32) -> Descriptor, at, len| host.sgl_read(kind(HOST + at, len), 1024);
        assert_eq!(from(Descriptor::segment, 0x1000, 32), refused(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS));
        assert_eq!(
            from(Descriptor::last_segment, 0x1100, 16),
            refused(Status::INVALID_SGL_SEGMENT_DESCRIPTOR)
        );
        assert_eq!(from(Descriptor::segment, 0x1200, 32), refused(Status::INVALID_SGL_SEGMENT_DESCRIPTOR));
        assert!(from(Descriptor::last_segment, 0x1200, 32).is_ok());
    }

    #[test]
    fn segments_that_loop_come_to_an_end() {
        let host = host(1);
        host.segment(HOST, &[Descriptor::segment(HOST, 16)]);
        let looped = host.sgl_read(Descriptor::segment(HOST, 16), 512);
        assert_eq!(looped, refused(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS));
    }

    #[test]
    fn bit_buckets_drop_what_is_read_and_are_nothing_to_a_write() {
        let host = host(2);
        let block = Descriptor::data_block(HOST, 512);
        host.segment(HOST + 0x1000, &[Descriptor::bit_bucket(1536), block]);
        let list = Descriptor::last_segment(HOST + 0x1000, 32);
        assert_eq!(host.sgl_read(list, 2048), Ok(vec![Run { iova: None, len: 1536 }, run(HOST, 512)]));
        assert_eq!(host.sgl(Sgl::On, Want::Read, list, 512), Ok(vec![run(HOST, 512)]));
    }
}
