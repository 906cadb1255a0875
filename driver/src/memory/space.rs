//! The IOVA space: which memory there is, where devices see it, and which domains it is mapped in.
//!
//! Knows regions and domains; must not know controllers or commands.

use std::any::Any;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::PAGE_SIZE;
use super::chain::{MemoryChain, Segment};
use super::domain::{Access, Domain, Mapping};
use super::prp_table::PrpTable;
use super::ranges::FreeRanges;
use super::region::{Backing, GRID, Pages, Region};
use super::source::Source;
use crate::{Error, Result};

/// Where the IOVAs of a space begin and end. 2^38 because many IOMMUs translate 39 bits only.
const WINDOW: Range<u64> = GRID..1 << 38;
/// Where the PRP table lies: low, so that narrow IOMMUs reach it, and away from the start, where
/// firmware tends to reserve ranges.
const PRP_TABLE: u64 = 512 << 20;
/// x86 interrupt messages: no IOMMU maps anything here.
const MSI_WINDOW: Range<u64> = 0xfee0_0000..0xfef0_0000;
/// Regions of a space: far below the 65535 mappings that type 1 VFIO allows a container.
const MAX_REGIONS: usize = 16 * 1024;

/// An address space for DMA: all memory in it has one IOVA that is the same for every controller
/// attached to it. A cheap handle; clones are the same space.
///
/// ```
/// let space = kiovec::memory::DmaSpace::new()?;
/// let mut memory = space.allocate(8192)?;
/// memory.copy_from_slice(0, b"hello");
/// assert_eq!(memory.len(), 8192);
/// # Ok::<(), kiovec::Error>(())
/// ```
#[derive(Clone)]
pub struct DmaSpace {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    table: PrpTable,
    state: Mutex<State>,
}

struct State {
    iovas: FreeRanges,
    /// What is mapped in every domain, whoever brought it.
    regions: Vec<Arc<Region>>,
    /// What is allocated from.
    pool: Vec<Arc<Source>>,
    /// Bytes of memory that is no longer among the regions, and could not be unmapped.
    kept: u64,
    domains: Vec<Attached>,
    known: Vec<Weak<dyn Domain>>,
}

struct Attached {
    domain: Arc<dyn Domain>,
    users: usize,
}

impl DmaSpace {
    /// An empty space: no memory, no domains.
    pub fn new() -> Result<DmaSpace> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let table = PrpTable::new(PRP_TABLE, WINDOW.end).map_err(Error::os("PRP table"))?;
        let mut iovas = FreeRanges::new(WINDOW);
        iovas.exclude(PRP_TABLE..PRP_TABLE + PrpTable::len_for(WINDOW.end));
        iovas.exclude(MSI_WINDOW);
        let state = Mutex::new(State {
            iovas,
            regions: Vec::new(),
            pool: Vec::new(),
            kept: 0,
            domains: Vec::new(),
            known: Vec::new(),
        });
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        Ok(DmaSpace { inner: Arc::new(Inner { id, table, state }) })
    }

    /// Gets `len` bytes of device-reachable memory (1 byte or more), contiguous and page-aligned, as
    /// a chain of one segment. What they contain is unspecified. They return to the space when the
    /// chain is dropped.
    ///
    /// Not for the I/O path: it takes a lock, and may map a new region.
    pub fn allocate(&self, len: usize) -> Result<MemoryChain> {
        Ok(MemoryChain::from(self.segment(len, PAGE_SIZE, Access::ReadWrite)?))
    }

    /// The worst pages that any memory of the space's own stands on, `None` while it has none. Nothing
    /// is known of registered memory's pages.
    pub fn pages(&self) -> Option<Pages> {
        self.state().regions.iter().filter_map(|region| region.pages()).max()
    }

    /// Bytes of memory that are retired: a device that was lost may still reach them, so they stay mapped
    /// in this process, and are never used for anything else, as long as it lives.
    pub fn retired(&self) -> u64 {
        let state = self.state();
        let retired = state.regions.iter().filter(|region| region.is_retired());
        state.kept + retired.map(|region| region.mapping().len()).sum::<u64>()
    }

    /// Identifies the space among all of this process.
    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    /// The IOVA of the PRP table.
    pub(crate) fn prp_table(&self) -> u64 {
        self.inner.table.iova()
    }

    /// Gets memory with a chosen alignment (a power of two, at most 2 MiB) and device access.
    pub(crate) fn segment(&self, len: usize, align: u64, access: Access) -> Result<Segment> {
        let bytes = len as u64;
        if len == 0 || bytes > WINDOW.end / 2 || align > GRID {
            let reason = "a request is 1 byte to 128 GiB long".into();
            return Err(Error::OutOfMemory { bytes, reason });
        }
        let mut state = self.state();
        // Data begins and ends on pages of its own, so that no two buffers share a page that a
        // device writes.
        let room = bytes.next_multiple_of(PAGE_SIZE);
        let fit = |source: &Arc<Source>| {
            let iova = (source.access() == access).then(|| source.take(room, align))??;
            Some(Segment::new(iova, len, room, Arc::clone(source)))
        };
        if let Some(segment) = state.pool.iter().find_map(fit) {
            return Ok(segment);
        }
        let backing = Backing::new(room.next_multiple_of(GRID))
            .map_err(|e| Error::OutOfMemory { bytes: room, reason: e.to_string() })?;
        let iova = self.place(&mut state, &backing)?;
        let region = Arc::new(Region::new(backing, iova, access));
        self.map_everywhere(&mut state, &region)?;
        let source = Arc::new(Source::exclusive(region, self.id(), None));
        state.pool.push(Arc::clone(&source));
        fit(&source).ok_or_else(|| unreachable!("a new region has room for what it was made for"))
    }

    /// Adds memory that came from elsewhere, until what is returned is dropped.
    pub(super) fn add_external(&self, backing: Backing) -> Result<Arc<Registered>> {
        // Declared before the lock is taken: whatever fails, the owner, whose code is not ours, is
        // dropped without it.
        let region;
        let mut state = self.state();
        let new = backing.address();
        let overlaps = |old: Range<u64>| new.start < old.end && old.start < new.end;
        if state.regions.iter().any(|region| !region.is_retired() && overlaps(region.address())) {
            return Err(Error::InvalidInput(format!(
                "memory at {:#x}-{:#x}, or part of it, is in this space already; end the earlier registration first",
                new.start,
                new.end - 1
            )));
        }
        let iova = self.place(&mut state, &backing)?;
        region = Arc::new(Region::new(backing, iova, Access::ReadWrite));
        self.map_everywhere(&mut state, &region)?;
        Ok(Arc::new(Registered { space: self.clone(), region }))
    }

    /// Makes all memory of this space, present and future, reachable through `domain`, until the
    /// returned guard is dropped.
    pub fn attach(&self, domain: Arc<dyn Domain>) -> Result<Attachment> {
        let mut state = self.state();
        self.forget_unused(&mut state);
        let ranges = domain.iova_ranges();
        self.check_table(&domain, &ranges)?;
        for region in &state.regions {
            check_range(&domain, &ranges, region.blocks(), "a region of this space")?;
        }
        match state.domains.iter_mut().find(|attached| Arc::ptr_eq(&attached.domain, &domain)) {
            Some(attached) => attached.users += 1,
            None => self.map_all(&mut state, &domain)?,
        }
        // A further device behind a domain may have made its ranges narrower.
        exclude_gaps(&mut state.iovas, &ranges);
        Ok(Attachment { space: self.clone(), domain })
    }

    /// Never hands out again, and never unmaps from this process, any memory that the space has now:
    /// some controller that cannot be stopped may still write it.
    pub(crate) fn retire(&self) {
        self.state().regions.iter().for_each(retire);
    }

    /// Lets [`domain_of_type`](DmaSpace::domain_of_type) find a domain as long as it lives, attached
    /// or not.
    pub(crate) fn remember(&self, domain: &Arc<dyn Domain>) {
        let mut state = self.state();
        state.known.retain(|known| known.strong_count() > 0);
        state.known.push(Arc::downgrade(domain));
    }

    /// The domain of a given type that was remembered, if it still lives.
    pub(crate) fn domain_of_type<T: Domain>(&self) -> Option<Arc<T>> {
        let domains = self.state().known.iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        domains.into_iter().find_map(|domain| (domain as Arc<dyn Any + Send + Sync>).downcast::<T>().ok())
    }

    fn map_all(&self, state: &mut State, domain: &Arc<dyn Domain>) -> Result<()> {
        for (done, region) in state.regions.iter().enumerate() {
            if let Err(error) = self.map_region(domain, region) {
                state.regions[..done].iter().for_each(|region| self.unmap_region(domain, region));
                return Err(error);
            }
        }
        state.domains.push(Attached { domain: Arc::clone(domain), users: 1 });
        Ok(())
    }

    /// Takes IOVAs for memory: it gets 2 MiB blocks of its own, and is as far into the first one as its
    /// address is into a (huge) page.
    fn place(&self, state: &mut State, backing: &Backing) -> Result<u64> {
        let out_of_memory = |reason: String| Error::OutOfMemory { bytes: backing.len(), reason };
        if state.regions.len() == MAX_REGIONS {
            return Err(out_of_memory(format!("the space has {MAX_REGIONS} regions already")));
        }
        let align = backing.iova_align();
        let skip = backing.address().start % align;
        let start = state.iovas.take((skip + backing.len()).next_multiple_of(GRID), align);
        start.map(|start| start + skip).ok_or_else(|| out_of_memory("no room left in the IOVA window".into()))
    }

    /// Maps a region that has its place in every domain, or gives the place back.
    fn map_everywhere(&self, state: &mut State, region: &Arc<Region>) -> Result<()> {
        // All of the table that the region can need: to map a part of it when it is first used would
        // be a system call per domain on the way of an I/O. VFIO gives mapped pages memory at once,
        // so writing the entries later would save none.
        let filled = self.inner.table.fill(&region.blocks()).map_err(Error::os("PRP table"));
        let mapped = filled.and_then(|()| {
            for (done, attached) in state.domains.iter().enumerate() {
                if let Err(error) = self.map_region(&attached.domain, region) {
                    state.domains[..done].iter().for_each(|d| self.unmap_region(&d.domain, region));
                    return Err(error);
                }
            }
            Ok(())
        });
        match mapped {
            Ok(()) => state.regions.push(Arc::clone(region)),
            Err(_) => self.reclaim(state, region),
        }
        mapped
    }

    /// Takes out what is retired and nobody has any more, so that no further domain gets it: a space would
    /// have more to map each time that a controller is lost, and domains take so many mappings only.
    fn forget_unused(&self, state: &mut State) {
        // A source that only the pool has is nobody's, and nobody gets anything of a retired one.
        let unused =
            |source: &mut Arc<Source>| source.region().is_retired() && Arc::strong_count(source) == 1;
        let unused: Vec<_> = state.pool.extract_if(.., unused).collect();
        unused.iter().for_each(|source| self.remove(state, source.region()));
    }

    /// Takes a region out of the space whose last segment is gone. One that is retired stays in this
    /// process, and keeps its place.
    fn remove(&self, state: &mut State, region: &Arc<Region>) {
        state.regions.retain(|other| !Arc::ptr_eq(other, region));
        state.domains.iter().for_each(|attached| self.unmap_region(&attached.domain, region));
        self.reclaim(state, region);
    }

    /// Frees the place of a region that is mapped nowhere. What could not be unmapped keeps it, so
    /// that nothing else gets it.
    fn reclaim(&self, state: &mut State, region: &Region) {
        if region.is_retired() {
            state.kept += region.mapping().len();
            return;
        }
        self.inner.table.release(&region.blocks());
        state.iovas.give(region.blocks());
    }

    fn map_region(&self, domain: &Arc<dyn Domain>, region: &Arc<Region>) -> Result<()> {
        domain.map(&region.mapping())?;
        domain.map(&self.inner.table.mapping(&region.blocks())).inspect_err(|_| {
            let range = region.iova();
            retire_unless(domain.unmap(range.start, range.end - range.start), region);
        })
    }

    fn unmap_region(&self, domain: &Arc<dyn Domain>, region: &Arc<Region>) {
        for mapping in [region.mapping(), self.inner.table.mapping(&region.blocks())] {
            let Mapping { iova, len, .. } = mapping;
            retire_unless(domain.unmap(iova, len), region);
        }
    }

    /// The table's place is the same for all, so it must be in reach even without memory.
    fn check_table(&self, domain: &Arc<dyn Domain>, ranges: &[RangeInclusive<u64>]) -> Result<()> {
        let start = self.inner.table.iova();
        check_range(
            domain,
            ranges,
            start..start + PrpTable::len_for(WINDOW.end),
            "the PRP table of this space",
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_range(
    domain: &Arc<dyn Domain>,
    ranges: &[RangeInclusive<u64>],
    wanted: Range<u64>,
    what: &str,
) -> Result<()> {
    let (start, end) = (wanted.start, wanted.end - 1);
    if ranges.iter().any(|range| *range.start() <= start && end <= *range.end()) {
        return Ok(());
    }
    let list = ranges.iter().map(|r| format!("{:#x}-{:#x}", r.start(), r.end())).collect::<Vec<_>>();
    let ranges = if list.is_empty() { "unknown".into() } else { list.join(", ") };
    Err(Error::IovaExcluded { device: domain.name(), start, end, what: what.into(), ranges })
}

/// A device may still reach what could not be unmapped: that memory is never used again.
fn retire_unless(unmapped: Result<()>, region: &Arc<Region>) {
    if unmapped.is_err() {
        retire(region);
    }
}

fn retire(region: &Arc<Region>) {
    region.retire();
    std::mem::forget(Arc::clone(region));
}

/// Takes out of the free IOVAs whatever lies between a domain's ranges.
fn exclude_gaps(iovas: &mut FreeRanges, ranges: &[RangeInclusive<u64>]) {
    let mut next = 0;
    for range in ranges {
        iovas.exclude(next..*range.start());
        match range.end().checked_add(1) {
            Some(end) => next = end,
            None => return,
        }
    }
    iovas.exclude(next..u64::MAX);
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("DmaSpace")
            .field("regions", &state.regions)
            .field("domains", &state.domains.iter().map(|d| d.domain.name()).collect::<Vec<_>>())
            .finish()
    }
}

/// Memory that came from elsewhere, as part of a space. Dropping it unmaps it everywhere, and only then
/// drops its owner. Every source of it holds this, so that this comes after its last segment.
pub(super) struct Registered {
    space: DmaSpace,
    region: Arc<Region>,
}

impl Registered {
    pub(super) fn space(&self) -> u64 {
        self.space.id()
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.space.remove(&mut self.space.state(), &self.region);
    }
}

/// Keeps a domain attached to a space. Dropping the last one of a domain unmaps everything from it.
#[derive(Debug)]
pub struct Attachment {
    space: DmaSpace,
    domain: Arc<dyn Domain>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.space.state();
        let Some(at) = state.domains.iter().position(|d| Arc::ptr_eq(&d.domain, &self.domain)) else {
            return;
        };
        state.domains[at].users -= 1;
        if state.domains[at].users == 0 {
            state.domains.swap_remove(at);
            state.regions.iter().for_each(|region| self.space.unmap_region(&self.domain, region));
        }
    }
}
