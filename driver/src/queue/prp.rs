//! Physical Region Pages (Base 2.0, section 4.1.1): what a piece of a chain looks like to a
//! controller that takes PRPs.
//!
//! Knows addresses and lengths; must not know commands.

use super::runs::Run;
use crate::request::Second;

pub(super) const PAGE: u64 = 4096;
/// Entries of a list page.
const PER_PAGE: usize = 512;
/// A page takes an entry of 8 bytes: log2 of how much less that is.
const ENTRY: u32 = 9;
/// What a full list page is the list of.
const BLOCK: u64 = PAGE * PER_PAGE as u64;

/// Where the lists of contiguous memory lie, written in advance for the whole IOVA space:
/// `None` for controllers that want every list to begin on a page.
pub(super) type Table = Option<u64>;

/// The data pointer of a contiguous run, where it needs no list of its own.
#[inline(always)]
pub(super) fn contiguous(run: Run, table: Table) -> Option<[u64; 2]> {
    let first = run.iova / PAGE;
    let last = (run.iova + run.len - 1) / PAGE;
    match last - first {
        0 => Some([run.iova, 0]),
        1 => Some([run.iova, last * PAGE]),
        // One page of the table lists one 2 MiB block; a list that crosses into the next page of the
        // table would need a chain pointer there.
        _ if (first + 1) / PER_PAGE as u64 == last / PER_PAGE as u64 => {
            table.map(|table| [run.iova, table + 8 * (first + 1)])
        }
        _ => None,
    }
}

/// What the pointers of runs of as many whole pages, one behind the other, differ by, and how many of them do.
#[inline(always)]
pub(super) fn series(run: Run) -> ([u64; 2], u32) {
    let first = run.iova / PAGE;
    let last = (run.iova + run.len - 1) / PAGE;
    match last - first {
        0 => ([run.len, 0], u32::MAX),
        1 => ([run.len; 2], u32::MAX),
        // As long as they are listed by one page of the table.
        _ => {
            let left = PER_PAGE as u64 - 1 - last % PER_PAGE as u64;
            ([run.len, run.len >> ENTRY], 1 + (left / (run.len / PAGE)) as u32)
        }
    }
}

/// How the second half of the data pointer of a contiguous run goes with the first.
pub(super) fn second(run: Run) -> Second {
    match (run.iova + run.len - 1) / PAGE - run.iova / PAGE {
        0 => Second::Fixed,
        1 => Second::Any,
        _ => Second::Listed,
    }
}

/// Whether a run lies in a block of which one page of the table lists all addresses.
#[inline(always)]
pub(super) fn is_in_block(iova: u64, len: u64) -> bool {
    iova % BLOCK + len <= BLOCK
}

/// An address in the table, as what it lists moves `by` whole pages, modulo 2^64.
#[inline(always)]
pub(super) fn moved(list: u64, by: u64) -> u64 {
    list.wrapping_add((by.cast_signed() >> ENTRY).cast_unsigned())
}

/// The number of bytes, from the start of `runs` on, that one list can express: all, or up to the
/// first joint that does not lie on a page boundary on both sides. None, unless they begin on a dword.
pub(super) fn expressible(runs: impl Iterator<Item = Run>) -> u64 {
    let mut list = Prps::new(0);
    for run in runs {
        if !list.joins(run) {
            break;
        }
        list.extend(run);
    }
    list.bytes
}

/// The data pointer of `runs`, which `expressible` measured, with a list written through `store`
/// (index of the 64-bit word, value) to memory at `list`: pages in a row, chained where one is
/// not enough.
pub(super) fn scattered(
    runs: impl Iterator<Item = Run>,
    list: u64,
    mut store: impl FnMut(usize, u64),
) -> [u64; 2] {
    let mut list = Prps::new(list);
    runs.for_each(|run| _ = list.add(run, &mut store));
    list.pointer()
}

/// PRPs in the making.
pub(super) struct Prps {
    /// Where the list is.
    list: u64,
    first: u64,
    /// The last entry of the list, and their number, with pointers to further pages.
    last: u64,
    words: usize,
    /// The end of the last run.
    end: u64,
    bytes: u64,
}

impl Prps {
    #[inline(always)]
    pub(super) fn new(list: u64) -> Prps {
        Prps { list, first: 0, last: 0, words: 0, end: 0, bytes: 0 }
    }

    /// Whether a run can follow: the joint lies on a page boundary on both sides, or is none.
    #[inline(always)]
    fn joins(&self, run: Run) -> bool {
        match self.bytes {
            0 => run.iova.is_multiple_of(4),
            _ => (self.end | run.iova).is_multiple_of(PAGE) || self.end == run.iova,
        }
    }

    #[inline(always)]
    fn extend(&mut self, run: Run) {
        self.end = run.iova + run.len;
        self.bytes += run.len;
    }

    /// Adds the pages of a run, if it can follow.
    #[inline(always)]
    pub(super) fn add(&mut self, run: Run, store: &mut impl FnMut(usize, u64)) -> bool {
        if !self.joins(run) {
            return false;
        }
        let mut page = match self.bytes {
            0 => (run.iova | (PAGE - 1)) + 1,
            _ => run.iova.next_multiple_of(PAGE),
        };
        if self.bytes == 0 {
            self.first = run.iova;
        }
        self.extend(run);
        while page < self.end {
            // The last word of a full page turns into the pointer to the next one as soon as there is
            // more than it.
            if self.words.is_multiple_of(PER_PAGE) && self.words > 0 {
                store(self.words - 1, self.list + 8 * self.words as u64);
                store(self.words, self.last);
                self.words += 1;
            }
            store(self.words, page);
            self.last = page;
            self.words += 1;
            page += PAGE;
        }
        true
    }

    #[inline(always)]
    pub(super) fn pointer(&self) -> [u64; 2] {
        match self.words {
            0 => [self.first, 0],
            1 => [self.first, self.last],
            _ => [self.first, self.list],
        }
    }
}

/// List pages that a transfer of `bytes` may need, whatever its alignment.
pub(super) fn list_pages(bytes: u64) -> usize {
    // PRP1 takes the first page; an unaligned transfer touches one page more than its length.
    (bytes.saturating_sub(1) / PAGE).div_ceil(PER_PAGE as u64 - 1).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// What a controller does with PRPs, written from the specification: the runs of bytes that a
    /// transfer of `len` bytes touches.
    fn walk(dptr: [u64; 2], len: u64, memory: &HashMap<u64, u64>) -> Vec<Run> {
        let mut left = len;
        let mut out = Vec::new();
        let take = |iova: u64, left: &mut u64, out: &mut Vec<Run>| {
            let n = (PAGE - iova % PAGE).min(*left);
            out.push(Run { iova, len: n });
            *left -= n;
        };
        take(dptr[0], &mut left, &mut out);
        if left == 0 {
            return out;
        }
        if left <= PAGE {
            assert_eq!(dptr[1] % PAGE, 0, "PRP2 is a page");
            take(dptr[1], &mut left, &mut out);
            return out;
        }
        let mut at = dptr[1];
        while left > 0 {
            let entry = *memory.get(&at).expect("list entry was written");
            assert_eq!(entry % PAGE, 0, "list entries have no offset");
            if at % PAGE == PAGE - 8 && left > PAGE {
                at = entry;
            } else {
                take(entry, &mut left, &mut out);
                at += 8;
            }
        }
        out
    }

    fn join(runs: impl IntoIterator<Item = Run>) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        for run in runs {
            match out.last_mut() {
                Some((start, len)) if *start + *len == run.iova => *len += run.len,
                _ => out.push((run.iova, run.len)),
            }
        }
        out
    }

    /// Runs whose joints are all on page boundaries, and that are not adjacent.
    fn aligned_runs() -> impl Strategy<Value = Vec<Run>> {
        (proptest::collection::vec(1..700u64, 1..6), 0..1024u64, 0..1024u64).prop_map(|(pages, skip, cut)| {
            let count = pages.len();
            let mut at = 0x1000_0000;
            let mut runs: Vec<Run> = Vec::new();
            for pages in pages {
                runs.push(Run { iova: at, len: pages * PAGE });
                at += (pages + 3) * PAGE;
            }
            runs[0].iova += skip * 4 % PAGE;
            runs[0].len -= skip * 4 % PAGE;
            runs[count - 1].len -= (cut * 4 % PAGE).min(runs[count - 1].len - 4);
            runs
        })
    }

    proptest! {
        #[test]
        fn a_controller_finds_every_byte_of_a_list(runs in aligned_runs()) {
            let len: u64 = runs.iter().map(|run| run.len).sum();
            prop_assert_eq!(expressible(runs.iter().copied()), len);
            let list = 0x4000_0000;
            let mut memory = HashMap::new();
            let dptr = scattered(runs.iter().copied(), list, |i, value| {
                memory.insert(list + 8 * i as u64, value);
            });
            prop_assert!(memory.len() <= list_pages(len) * PER_PAGE);
            prop_assert_eq!(join(walk(dptr, len, &memory)), join(runs));
        }

        #[test]
        fn a_pointer_moves_as_it_would_be_made(offset in 0..1024u64, from in 1..2000u64, to in 1..2000u64, len in 1..3000u64) {
            let run = |page: u64| Run { iova: page * PAGE + offset * 4, len: len * 512 };
            let (from, to) = (run(from), run(to));
            let table = Some(0x2000_0000);
            if let Some([_, list]) = contiguous(from, table) && is_in_block(to.iova, to.len) {
                let moved = match second(from) {
                    Second::Fixed => Some(list),
                    Second::Listed => Some(moved(list, to.iova.wrapping_sub(from.iova))),
                    Second::Any => None,
                };
                prop_assert!(moved.is_none_or(|moved| contiguous(to, table) == Some([to.iova, moved])));
            }
        }

        #[test]
        fn a_controller_finds_every_byte_through_the_table(page in 1..4096u64, offset in 0..1024u64, len in 1..3000u64) {
            let run = Run { iova: page * PAGE + offset * 4, len: len * 512 };
            let table = 0x2000_0000u64;
            let memory: HashMap<u64, u64> = (0..10_000).map(|i| (table + 8 * i, i * PAGE)).collect();
            if let Some(dptr) = contiguous(run, Some(table)) {
                prop_assert_eq!(join(walk(dptr, run.len, &memory)), join([run]));
            } else {
                // Only a list that crosses a page of the table is not served from it.
                let (first, last) = (run.iova / PAGE, (run.iova + run.len - 1) / PAGE);
                prop_assert!((first + 1) / 512 != last / 512);
            }
        }
    }

    #[test]
    fn a_joint_off_a_page_boundary_ends_the_piece() {
        let run = |iova, len| Run { iova, len };
        assert_eq!(expressible([run(0x1000, 512), run(0x3000, 512)].into_iter()), 512);
        assert_eq!(expressible([run(0x1000, 4096), run(0x3200, 512)].into_iter()), 4096);
        assert_eq!(expressible([run(0x1e00, 512), run(0x3000, 512)].into_iter()), 1024);
    }
}
