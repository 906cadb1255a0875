//! Memory that is not the space's own.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use zerocopy::{FromBytes, IntoBytes};

use super::super::region::GRID;
use super::super::*;
use super::Books;
use crate::Error;

pub(super) const PAGE: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Memory of an application, which tells when it is gone.
pub(super) struct Owner {
    pages: Vec<Page>,
    gone: Arc<AtomicBool>,
    /// Must not reach the memory any more when it goes away.
    books: Option<Arc<Books>>,
    last_words: Option<Box<dyn FnMut() + Send>>,
}

impl Owner {
    pub(super) fn new(pages: usize) -> Owner {
        Owner { pages: vec![Page([0; PAGE]); pages], gone: Arc::default(), books: None, last_words: None }
    }
}

// SAFETY: whole pages on the heap, which are not touched before the owner is dropped.
unsafe impl ExternalMemory for Owner {
    fn memory(&mut self) -> NonNull<[u8]> {
        self.pages.memory()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let address = self.pages.as_ptr().addr();
        if let Some(books) = &self.books {
            assert!(books.mapped.lock().unwrap().values().all(|mapped| mapped.memory != address));
        }
        if let Some(say) = &mut self.last_words {
            say();
        }
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// A page's worth of bytes that does not begin on a page.
struct Shifted(Vec<Page>);

// SAFETY: as for `Owner`.
unsafe impl ExternalMemory for Shifted {
    fn memory(&mut self) -> NonNull<[u8]> {
        NonNull::from(&mut self.0.as_mut_slice().as_mut_bytes()[512..512 + PAGE])
    }
}

fn ram(ranges: &[(u64, usize)]) -> Arc<GuestMemoryMmap> {
    let ranges: Vec<_> = ranges.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

fn guest_of(mapping: MmapRegion) -> Arc<GuestMemoryMmap> {
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())
}

#[test]
fn devices_see_registered_memory_and_its_pages_in_the_table() {
    let space = DmaSpace::new().unwrap();
    let (early, late) = (Books::all(), Books::all());
    let _early = space.attach(early.clone()).unwrap();
    // More than two blocks of 2 MiB, and hardly ever on their grid.
    let pages = vec![Page([9; PAGE]); 1100];
    let address = pages.as_ptr().addr() as u64;
    let memory = space.register(pages).unwrap();
    let _late = space.attach(late.clone()).unwrap();
    assert_eq!(memory.len(), 1100 * PAGE);
    let chain = memory.chain(PAGE..1100 * PAGE).unwrap();
    let iova = chain.segments()[0].iova();
    assert_eq!(iova % GRID, (address + 4096) % GRID);
    for books in [&early, &late] {
        assert_eq!(books.read64(iova), 0x0909_0909_0909_0909);
        for page in (iova..iova + 1099 * 4096).step_by(PAGE) {
            assert_eq!(books.read64(space.prp_table() + page / 512), page);
        }
        assert!(books.mapped.lock().unwrap().values().any(|mapped| !mapped.has_file), "no file behind it");
    }
    // Its neighbour lies in other blocks: a page of the table is mapped once.
    let own = space.allocate(PAGE).unwrap();
    assert!(own.segments()[0].iova() / GRID > (iova + 1099 * 4096 - 1) / GRID);
}

#[test]
fn no_two_segments_of_registered_memory_overlap() {
    let space = DmaSpace::new().unwrap();
    let memory = space.register(Owner::new(2)).unwrap();
    let chain = memory.chain(100..200).unwrap();
    for range in [100..200, 0..101, 199..300, 150..151, 0..8192] {
        let error = memory.chain(range).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
    }
    for range in [0..0, 8000..8193, usize::MAX - 1..usize::MAX] {
        assert!(memory.chain(range).is_err());
    }
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = memory.chain(300..200);
    assert!(reversed.is_err());
    let (_before, _after) = (memory.chain(0..100).unwrap(), memory.chain(200..8192).unwrap());
    drop(chain);
    let (left, right) = memory.chain(100..200).unwrap().split_at(50);
    drop(left);
    assert!(memory.chain(100..150).is_ok());
    assert!(memory.chain(149..151).is_err());
    drop(right);
}

#[test]
fn memory_that_is_not_whole_pages_is_refused() {
    let space = DmaSpace::new().unwrap();
    let odd_length = vec![0u8; PAGE + 1];
    let odd_start = Shifted(vec![Page([0; PAGE]); 2]);
    let nothing = Vec::<Page>::new();
    let too_short = guest_of(MmapRegion::new(PAGE + 512).unwrap());
    let refused = [
        space.register(odd_length).err(),
        space.register(odd_start).err(),
        space.register(nothing.into_boxed_slice()).err(),
        space.register_guest(too_short).err(),
    ];
    for error in refused {
        let error = error.expect("refused").to_string();
        assert!(error.contains("whole pages") && error.contains("align"), "{error}");
    }
}

#[test]
fn a_registration_ends_with_its_last_segment() {
    let space = DmaSpace::new().unwrap();
    let books = Books::all();
    let _attached = space.attach(books.clone()).unwrap();
    let mut owner = Owner::new(4);
    owner.books = Some(books.clone());
    let gone = Arc::clone(&owner.gone);
    let memory = space.register(owner).unwrap();
    assert_eq!(books.mapped.lock().unwrap().len(), 2);
    let (left, right) = memory.chain(0..4 * PAGE).unwrap().split_at(100);
    let iova = left.segments()[0].iova();
    drop(memory);
    drop(left);
    assert_eq!(books.mapped.lock().unwrap().len(), 2);
    assert!(!gone.load(Ordering::Relaxed));
    assert_eq!(right.to_vec(), vec![0; 4 * PAGE - 100]);
    drop(right);
    assert!(gone.load(Ordering::Relaxed));
    assert!(books.mapped.lock().unwrap().is_empty());
    // Its place is free again.
    let next = space.register(Owner::new(4)).unwrap();
    assert_eq!(next.chain(0..1).unwrap().segments()[0].iova() / GRID, iova / GRID);
}

#[test]
fn memory_without_segments_goes_with_its_registration_and_the_space_with_its_last_user() {
    let owner = Owner::new(1);
    let gone = Arc::clone(&owner.gone);
    let memory = DmaSpace::new().unwrap().register(owner).unwrap();
    let chain = memory.chain(0..PAGE).unwrap();
    drop(memory);
    assert!(!gone.load(Ordering::Relaxed));
    drop(chain);
    assert!(gone.load(Ordering::Relaxed));
}

#[test]
fn memory_that_a_device_may_still_reach_keeps_its_owner() {
    for stuck in [true, false] {
        let space = DmaSpace::new().unwrap();
        let books = Books::all();
        let attached = space.attach(books.clone()).unwrap();
        let owner = Owner::new(1);
        let gone = Arc::clone(&owner.gone);
        let memory = space.register(owner).unwrap();
        let iova = memory.chain(0..1).unwrap().segments()[0].iova();
        match stuck {
            true => *books.stuck.lock().unwrap() = true,
            false => {
                space.retire();
                assert!(memory.chain(0..1).is_err(), "what is retired is not handed out again");
            }
        }
        drop(memory);
        *books.stuck.lock().unwrap() = false;
        let next = space.register(Owner::new(1)).unwrap();
        assert!(next.chain(0..1).unwrap().segments()[0].iova() / GRID != iova / GRID);
        drop((next, attached, space));
        assert!(!gone.load(Ordering::Relaxed));
    }
}

#[test]
fn a_registration_that_fails_leaves_nothing_behind() {
    let space = DmaSpace::new().unwrap();
    let (good, bad) = (Books::all(), Books::all());
    let (_good, _bad) = (space.attach(good.clone()).unwrap(), space.attach(bad.clone()).unwrap());
    for allowed in 0..2 {
        *bad.allowed.lock().unwrap() = allowed;
        let mut owner = Owner::new(1);
        let gone = Arc::clone(&owner.gone);
        // The owner's own code may use the space.
        let again = space.clone();
        owner.last_words = Some(Box::new(move || assert_eq!(again.pages(), None)));
        assert!(space.register(owner).is_err());
        assert!(gone.load(Ordering::Relaxed));
    }
    // The second region of a guest fails: the first one goes, too.
    *bad.allowed.lock().unwrap() = 2;
    let ram = ram(&[(0, PAGE), (1 << 20, PAGE)]);
    assert!(space.register_guest(Arc::clone(&ram)).is_err());
    assert_eq!(Arc::strong_count(&ram), 1);
    assert!(good.mapped.lock().unwrap().is_empty() && bad.mapped.lock().unwrap().is_empty());
    *bad.allowed.lock().unwrap() = usize::MAX;
    assert!(space.register_guest(ram).is_ok());
}

#[test]
fn a_guest_address_is_found_in_every_region() {
    let space = DmaSpace::new().unwrap();
    let books = Books::all();
    let _attached = space.attach(books.clone()).unwrap();
    let high = 1 << 32;
    let guest = space.register_guest(ram(&[(0, 8 * PAGE), (8 * 4096, PAGE), (high, 3 << 20)])).unwrap();
    for (at, len) in
        [(0, 1), (4000, 8000), (8 * 4096 - 1, 1), (8 * 4096, 4096), (high + 123, (3 << 20) - 123)]
    {
        let mut chain = guest.chain(GuestAddress(at), len).unwrap();
        assert_eq!((chain.len(), chain.segments().len()), (len, 1));
        chain.fill(at as u8 | 1);
        let iova = chain.segments()[0].iova();
        assert_eq!(books.read64(iova & !7).to_le_bytes()[iova as usize % 8], at as u8 | 1);
        assert!(
            guest.chain(GuestAddress(at), len).unwrap().to_vec().iter().all(|byte| *byte == at as u8 | 1)
        );
    }
    // Neighbours to the guest, but two mappings.
    let across = guest.chain(GuestAddress(8 * 4096 - 10), 30).unwrap();
    assert_eq!(across.iter().map(Segment::len).collect::<Vec<_>>(), [10, 20]);
    for (at, len) in [
        (0, 0),
        (9 * 4096, 1),
        (9 * 4096 - 1, 2),
        (high - 1, 2),
        (high, (3 << 20) + 1),
        (u64::MAX, 2),
        (high, usize::MAX),
    ] {
        let error = guest.chain(GuestAddress(at), len).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
}

#[test]
fn a_guest_and_its_devices_share_memory() {
    use vm_memory::Bytes;
    let space = DmaSpace::new().unwrap();
    let ram = ram(&[(0, PAGE)]);
    let guest = space.register_guest(Arc::clone(&ram)).unwrap();
    let (mut first, second) =
        (guest.chain(GuestAddress(0), 100).unwrap(), guest.chain(GuestAddress(50), 100).unwrap());
    assert!(first.segments()[0].is_shared());
    first.fill(1);
    ram.write_slice(&[2; 10], GuestAddress(95)).unwrap();
    let expected: Vec<u8> = [vec![1; 45], vec![2; 10], vec![0; 45]].concat();
    assert_eq!(second.to_vec(), expected);
    first.copy_from_slice(7, &[3; 5]);
    let mut seen = [0; 5];
    ram.read_slice(&mut seen, GuestAddress(7)).unwrap();
    assert_eq!(seen, [3; 5]);
}

#[test]
fn a_guests_memory_has_no_slices() {
    let space = DmaSpace::new().unwrap();
    let guest = space.register_guest(ram(&[(0, PAGE)])).unwrap();
    let chain = || guest.chain(GuestAddress(0), 8).unwrap();
    let uses: [fn(MemoryChain); 2] = [
        |chain| drop(chain.segments()[0].as_slice().to_vec()),
        |mut chain| chain.data_mut().for_each(|data| data.fill(0)),
    ];
    for using in uses {
        let chain = chain();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| using(chain))).unwrap_err();
        assert!(panic.downcast_ref::<&str>().is_some_and(|what| what.contains("no slices")));
    }
}

#[test]
fn a_guest_is_let_go_with_the_last_clone_and_segment() {
    let space = DmaSpace::new().unwrap();
    let books = Books::all();
    let _attached = space.attach(books.clone()).unwrap();
    let ram = ram(&[(0, PAGE), (1 << 20, PAGE)]);
    let guest = space.register_guest(Arc::clone(&ram)).unwrap();
    let clone = guest.clone();
    let chain = clone.chain(GuestAddress(0), 8).unwrap();
    drop(guest);
    assert!(clone.chain(GuestAddress(1 << 20), 8).is_ok());
    drop(clone);
    // The region without a segment is gone already.
    assert_eq!(books.mapped.lock().unwrap().len(), 2);
    assert_eq!(Arc::strong_count(&ram), 2);
    drop(chain);
    assert!(books.mapped.lock().unwrap().is_empty());
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn threads_make_segments_of_a_guest_while_its_registration_ends() {
    let space = DmaSpace::new().unwrap();
    let books = Books::all();
    let _attached = space.attach(books.clone()).unwrap();
    let ram = ram(&[(0, 16 * PAGE)]);
    let guest = space.register_guest(Arc::clone(&ram)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let guest = guest.clone();
            let books = &books;
            scope.spawn(move || {
                for i in 0..2000 {
                    let at = (i * 64 + thread * 4096) % (15 * 4096);
                    let chain = guest.chain(GuestAddress(at & !7), 512).unwrap();
                    assert_eq!(books.read64(chain.segments()[0].iova()), 0);
                }
            });
        }
        drop(guest);
    });
    assert!(books.mapped.lock().unwrap().is_empty());
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn memory_is_registered_once_in_a_space() {
    let (space, other) = (DmaSpace::new().unwrap(), DmaSpace::new().unwrap());
    let ram = ram(&[(0, PAGE)]);
    let guest = space.register_guest(Arc::clone(&ram)).unwrap();
    let error = space.register_guest(Arc::clone(&ram)).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    assert!(guest.chain(GuestAddress(0), 1).is_ok(), "the first one is none the worse for it");
    assert!(other.register_guest(Arc::clone(&ram)).is_ok());
    drop(guest);
    assert!(space.register_guest(ram).is_ok());
}

/// What the poller's threads pass on, and what they share.
const _: () = {
    const fn crosses_threads<T: Send + Sync>() {}
    crosses_threads::<MemoryChain>();
    crosses_threads::<Registration>();
    crosses_threads::<GuestRegistration>();
};

#[test]
fn only_the_file_of_a_shared_mapping_stands_for_it() {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    for (flags, expected) in [(libc::MAP_SHARED, true), (libc::MAP_PRIVATE, false)] {
        let file =
            File::from(super::super::map::memfd("ram", 8192, rustix::fs::MemfdFlags::empty()).unwrap());
        let mapping = MmapRegion::build(Some(FileOffset::new(file, 4096)), PAGE, protection, flags).unwrap();
        let space = DmaSpace::new().unwrap();
        let books = Books::all();
        let _attached = space.attach(books.clone()).unwrap();
        let guest = space.register_guest(guest_of(mapping)).unwrap();
        let iova = guest.chain(GuestAddress(0), 1).unwrap().segments()[0].iova();
        assert_eq!(books.mapped.lock().unwrap()[&iova].has_file, expected);
    }
}

#[test]
fn a_guest_whose_memory_cannot_be_written_is_refused() {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let read_only = MmapRegion::build(None, PAGE, libc::PROT_READ, flags).unwrap();
    let error = DmaSpace::new().unwrap().register_guest(guest_of(read_only)).unwrap_err();
    assert!(error.to_string().contains("PROT_WRITE"), "{error}");
}

#[test]
fn external_memory_avoids_the_holes_of_attached_domains() {
    let space = DmaSpace::new().unwrap();
    let books = Books::new(vec![0x2000_0000..=0x3fff_ffff, 1 << 32..=(1 << 38) - 1]);
    let _attached = space.attach(books).unwrap();
    let memory = space.register(Owner::new(1)).unwrap();
    assert!(memory.chain(0..1).unwrap().segments()[0].iova() >= 1 << 32);
    let error = space.attach(Books::new(vec![0..=(1 << 32) - 1])).unwrap_err();
    assert!(matches!(error, Error::IovaExcluded { .. }), "{error}");
}
