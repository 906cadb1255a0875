//! The space against a domain that only keeps books.

mod chains;
mod external;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use super::*;
use crate::{Error, Result};

struct Books {
    ranges: Mutex<Vec<RangeInclusive<u64>>>,
    /// Unmapping fails.
    stuck: Mutex<bool>,
    /// How many more mappings succeed.
    allowed: Mutex<usize>,
    mapped: Mutex<BTreeMap<u64, Mapped>>,
}

#[derive(Clone, Copy)]
struct Mapped {
    len: u64,
    memory: usize,
    access: Access,
    has_file: bool,
}

impl Books {
    fn new(ranges: Vec<RangeInclusive<u64>>) -> Arc<Books> {
        let ranges = Mutex::new(ranges);
        Arc::new(Books {
            ranges,
            stuck: Mutex::default(),
            allowed: Mutex::new(usize::MAX),
            mapped: Mutex::default(),
        })
    }

    fn all() -> Arc<Books> {
        Books::new(vec![0..=u64::MAX])
    }

    /// What a device reads at an IOVA.
    fn read64(&self, iova: u64) -> u64 {
        let mapped = self.mapped.lock().unwrap();
        let (start, Mapped { len, memory, .. }) = mapped.range(..=iova).next_back().expect("not mapped");
        assert!(iova + 8 <= start + len, "not mapped");
        let at = *memory + (iova - start) as usize;
        // SAFETY: mapped memory stays valid until unmapped.
        unsafe { std::ptr::with_exposed_provenance::<u64>(at).read_volatile() }
    }
}

impl Domain for Books {
    fn name(&self) -> String {
        "books".into()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        self.ranges.lock().unwrap().clone()
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<()> {
        let mut allowed = self.allowed.lock().unwrap();
        if *allowed == 0 {
            return Err(Error::InvalidInput("no more".into()));
        }
        *allowed -= 1;
        let memory = mapping.memory().as_ptr().expose_provenance();
        let mut mapped = self.mapped.lock().unwrap();
        for (start, Mapped { len, .. }) in mapped.iter() {
            assert!(mapping.iova() + mapping.len() <= *start || *start + len <= mapping.iova(), "overlap");
        }
        let (len, access, has_file) = (mapping.len(), mapping.access(), mapping.file().is_some());
        mapped.insert(mapping.iova(), Mapped { len, memory, access, has_file });
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<()> {
        if *self.stuck.lock().unwrap() {
            return Err(Error::InvalidInput("stuck".into()));
        }
        let was = self.mapped.lock().unwrap().remove(&iova).expect("unmapped what was not mapped");
        assert_eq!(was.len, len);
        Ok(())
    }
}

#[test]
fn every_domain_sees_every_region_at_the_same_iova() {
    let space = DmaSpace::new().unwrap();
    let (first, second) = (Books::all(), Books::all());
    let _first = space.attach(first.clone()).unwrap();
    let mut before = space.allocate(5000).unwrap();
    let attachment = space.attach(second.clone()).unwrap();
    let mut after = space.allocate(3 << 20).unwrap();
    before.copy_from_slice(0, &7u64.to_le_bytes());
    after.copy_from_slice(0, &8u64.to_le_bytes());
    for books in [&first, &second] {
        assert_eq!(books.read64(before.segments()[0].iova()), 7);
        assert_eq!(books.read64(after.segments()[0].iova()), 8);
    }
    drop(attachment);
    assert!(second.mapped.lock().unwrap().is_empty());
    assert_eq!(first.mapped.lock().unwrap().len(), 4);
}

#[test]
fn the_prp_table_lists_every_page_of_the_space() {
    let space = DmaSpace::new().unwrap();
    let books = Books::all();
    let _attached = space.attach(books.clone()).unwrap();
    let chain = space.allocate(4 << 20).unwrap();
    let iova = chain.segments()[0].iova();
    for page in (iova..iova + (4 << 20)).step_by(4096) {
        assert_eq!(books.read64(space.prp_table() + page / 512), page);
    }
    let mapped = books.mapped.lock().unwrap();
    assert!(mapped.values().any(|mapped| mapped.access == Access::Read), "the device must not write it");
}

#[test]
fn a_domain_that_cannot_reach_existing_memory_is_refused_by_name() {
    let space = DmaSpace::new().unwrap();
    let _memory = space.allocate(4096).unwrap();
    let error = space.attach(Books::new(vec![1 << 32..=(1 << 40) - 1])).unwrap_err();
    assert!(matches!(error, Error::IovaExcluded { .. }), "{error}");
    assert!(error.to_string().contains("books"), "{error}");
}

#[test]
fn new_memory_avoids_the_holes_of_attached_domains() {
    let space = DmaSpace::new().unwrap();
    let books = Books::new(vec![0x2000_0000..=0x3fff_ffff, 1 << 32..=(1 << 38) - 1]);
    let _attached = space.attach(books.clone()).unwrap();
    let chain = space.allocate(1 << 20).unwrap();
    assert!(chain.segments()[0].iova() >= 1 << 32);
}

#[test]
fn a_failed_mapping_is_undone_everywhere() {
    let space = DmaSpace::new().unwrap();
    let (good, bad) = (Books::all(), Books::all());
    let _good = space.attach(good.clone()).unwrap();
    let _bad = space.attach(bad.clone()).unwrap();
    for allowed in 0..2 {
        *bad.allowed.lock().unwrap() = allowed;
        assert!(space.allocate(4096).is_err());
        assert!(good.mapped.lock().unwrap().is_empty());
        assert!(bad.mapped.lock().unwrap().is_empty());
    }
    *bad.allowed.lock().unwrap() = usize::MAX;
    assert!(space.allocate(4096).is_ok());
}

#[test]
fn a_domain_that_cannot_reach_the_table_is_refused_even_without_memory() {
    let space = DmaSpace::new().unwrap();
    for ranges in [vec![1 << 32..=(1 << 40) - 1], vec![]] {
        let error = space.attach(Books::new(ranges)).unwrap_err();
        assert!(error.to_string().contains("PRP table"), "{error}");
    }
    // And leaves no trace.
    let _attached = space.attach(Books::all()).unwrap();
    assert!(space.allocate(4096).unwrap().segments()[0].iova() < 1 << 32);
}

#[test]
fn ranges_that_get_narrower_with_a_further_device_are_kept_to() {
    let space = DmaSpace::new().unwrap();
    let books = Books::all();
    let _first = space.attach(books.clone()).unwrap();
    *books.ranges.lock().unwrap() = vec![0x2000_0000..=0x3fff_ffff, 1 << 33..=(1 << 38) - 1];
    let second = space.attach(books.clone()).unwrap();
    assert!(space.allocate(4096).unwrap().segments()[0].iova() >= 1 << 33);
    drop(second);
    *books.ranges.lock().unwrap() = vec![0..=0x3fff_ffff];
    assert!(space.attach(books).is_err(), "it cannot reach what is there");
}

#[test]
fn an_address_that_could_not_be_unmapped_is_not_used_again() {
    let space = DmaSpace::new().unwrap();
    let (first, second) = (Books::all(), Books::all());
    let _first = space.attach(first.clone()).unwrap();
    let _second = space.attach(second.clone()).unwrap();
    // The second refuses, and the first cannot be undone.
    *second.allowed.lock().unwrap() = 0;
    *first.stuck.lock().unwrap() = true;
    assert!(space.allocate(4096).is_err());
    *second.allowed.lock().unwrap() = usize::MAX;
    // Books asserts that nothing is mapped over what is still there.
    assert!(space.allocate(4096).is_ok());
}

#[test]
fn memory_comes_back_when_dropped() {
    let space = DmaSpace::new().unwrap();
    let iova = space.allocate(1 << 20).unwrap().segments()[0].iova();
    for _ in 0..100 {
        let (left, right) = space.allocate(1 << 20).unwrap().split_at(12_345);
        assert_eq!(left.segments()[0].iova(), iova);
        drop(right);
        drop(left);
    }
}

#[test]
fn retired_memory_is_never_handed_out_again() {
    let space = DmaSpace::new().unwrap();
    let old = space.allocate(4096).unwrap().segments()[0].iova();
    space.retire();
    let new = space.allocate(4096).unwrap().segments()[0].iova();
    assert!(old / (2 << 20) != new / (2 << 20), "{old:#x} and {new:#x} are in one region");
}

#[test]
fn the_domain_of_a_type_is_found() {
    let space = DmaSpace::new().unwrap();
    assert!(space.domain_of_type::<Books>().is_none());
    let books = Books::all();
    space.remember(&(books.clone() as Arc<dyn Domain>));
    assert!(Arc::ptr_eq(&space.domain_of_type::<Books>().unwrap(), &books));
    drop(books);
    assert!(space.domain_of_type::<Books>().is_none());
}
