//! Memory of all kinds for requests, in segments of all shapes.
//!
//! Knows where memory comes from; must not know what it is for.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kiovec::memory::vm_memory::{GuestAddress, GuestMemoryMmap};
use kiovec::memory::{
    Access, DmaSpace, Domain, ExternalMemory, GuestRegistration, Mapping, MemoryChain, Registration,
};
use kiovec::{Controller, Poller, QueueOptions};
use kiovec_emulator::{Config, Emulator};

use crate::chance::Chance;
use crate::reach::{Point, Reached};

/// An application's memory, and a guest's, in parts that are given out one at a time.
const PARTS: usize = 16;
const PART: usize = 64 << 10;
const PAGE: usize = 4096;

/// What a space that is used again has from the beginning: as much as all but very few seeds have at a time.
const REGIONS: [(usize, usize); 2] = [(16, 2 << 20), (4, 6 << 20)];

thread_local! {
    /// A space that waits for its next seed, and its regions.
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// A space that seeds have one after the other: to get memory from the kernel and to give it back takes longer than
/// most seeds do. Each of them finds it as it was in the beginning, but for what is written in it.
struct Kept {
    space: DmaSpace,
    regions: Vec<(u64, u64, Access)>,
}

impl Kept {
    /// With regions for data, and one for what controllers only read.
    fn new() -> Result<Kept, kiovec::Error> {
        let space = DmaSpace::new()?;
        let lengths = REGIONS.iter().flat_map(|(count, len)| std::iter::repeat_n(*len, *count));
        let data: Vec<_> = lengths.map(|len| space.allocate(len)).collect::<Result<_, _>>()?;
        drop(data);
        let emulator = Emulator::stepped(Config::default())
            .map_err(|error| kiovec::Error::InvalidInput(error.to_string()))?;
        let controller = Controller::open(emulator.function(), &space)?;
        Poller::new(1).add_queue(&controller, QueueOptions::default())?;
        drop(controller);
        let regions = regions(&space)?;
        Ok(Kept { space, regions })
    }
}

/// Makes a space for the seeds to come, so that no seed is charged with it. True if it is a new one.
pub fn prepare() -> Result<bool, kiovec::Error> {
    let is_new = KEPT.with_borrow(Option::is_none);
    if is_new {
        KEPT.set(Some(Kept::new()?));
    }
    Ok(is_new)
}

/// Where all regions of a space lie, in their order: what a domain is told that is attached to it.
fn regions(space: &DmaSpace) -> Result<Vec<(u64, u64, Access)>, kiovec::Error> {
    let look = Arc::new(Look::default());
    drop(space.attach(Arc::<Look>::clone(&look))?);
    Ok(std::mem::take(&mut look.0.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// A domain that no device is behind.
#[derive(Default)]
struct Look(Mutex<Vec<(u64, u64, Access)>>);

impl Domain for Look {
    fn name(&self) -> String {
        "nobody".into()
    }

    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=u64::MAX]
    }

    fn map(&self, mapping: &Mapping<'_>) -> Result<(), kiovec::Error> {
        let seen = (mapping.iova(), mapping.len(), mapping.access());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), kiovec::Error> {
        Ok(())
    }
}

/// Memory of an application, which tells when it is gone.
struct Owner {
    bytes: Vec<u8>,
    gone: Arc<AtomicBool>,
}

// SAFETY: whole pages within a vector on the heap, aligned below, which nobody touches before the owner is dropped.
unsafe impl ExternalMemory for Owner {
    fn memory(&mut self) -> NonNull<[u8]> {
        let skip = self.bytes.as_ptr().align_offset(PAGE);
        NonNull::from(&mut self.bytes[skip..skip + PARTS * PART])
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// Parts of external memory that a request has, one bit each: those of an application, and those of a guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts([u16; 2]);

/// How the memory of a request is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// In one piece.
    Whole,
    /// Whole pages.
    Pages,
    /// Whole blocks.
    Blocks,
    /// Multiples of 4 bytes.
    Words,
    /// Any number of bytes.
    Bytes,
}

/// All memory of a seed.
pub struct Memories {
    space: DmaSpace,
    /// The regions of a space that other seeds had.
    kept: Option<Vec<(u64, u64, Access)>>,
    registered: Registration,
    guest: GuestRegistration,
    taken: Parts,
    gone: Arc<AtomicBool>,
    ram: Arc<GuestMemoryMmap>,
}

impl Memories {
    /// With an application's memory and a guest's beside the space's own; which begins empty and grows, or is one that
    /// other seeds had.
    pub fn new(grows: bool) -> Result<Memories, kiovec::Error> {
        let kept = if grows { None } else { KEPT.take() };
        let (space, kept) = match kept {
            Some(Kept { space, regions }) => (space, Some(regions)),
            None => (DmaSpace::new()?, None),
        };
        let gone = Arc::<AtomicBool>::default();
        let owner = Owner { bytes: vec![0; PARTS * PART + PAGE], gone: Arc::clone(&gone) };
        let registered = space.register(owner)?;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PARTS * PART)])
            .map_err(|error| kiovec::Error::InvalidInput(error.to_string()))?;
        let ram = Arc::new(ram);
        let guest = space.register_guest(Arc::clone(&ram))?;
        Ok(Memories { space, kept, registered, guest, taken: Parts::default(), gone, ram })
    }

    /// The space.
    pub fn space(&self) -> &DmaSpace {
        &self.space
    }

    /// Contiguous memory of the space's own.
    pub fn own(&self, len: usize) -> Result<MemoryChain, kiovec::Error> {
        self.space.allocate(len)
    }

    /// So many bytes, `offset` bytes into a page.
    fn piece(
        &mut self,
        chance: &mut Chance,
        len: usize,
        offset: usize,
        parts: &mut Parts,
        reached: &mut Reached,
    ) -> Result<MemoryChain, kiovec::Error> {
        let which = chance.weighted(&[(3, None), (1, Some(0)), (1, Some(1))]);
        let part = which.map(|which: usize| (which, self.taken.0[which].trailing_ones() as usize));
        if let Some((which, part)) = part
            && part < PARTS
            && offset + len <= PART
        {
            let at = part * PART + offset;
            self.taken.0[which] |= 1 << part;
            parts.0[which] |= 1 << part;
            reached.note(if which == 0 { Point::Registered } else { Point::Guest });
            return match which {
                0 => self.registered.chain(at..at + len),
                _ => self.guest.chain(GuestAddress(at as u64), len),
            };
        }
        reached.note(Point::OwnMemory);
        let whole = self.space.allocate(offset + len)?;
        Ok(if offset == 0 { whole } else { whole.split_at(offset).1 })
    }

    /// A chain of so many bytes.
    pub fn chain(
        &mut self,
        chance: &mut Chance,
        len: usize,
        block: usize,
        reached: &mut Reached,
    ) -> Result<(MemoryChain, Parts), kiovec::Error> {
        let shape = chance.weighted(&[
            (4, Shape::Whole),
            (3, Shape::Pages),
            (2, Shape::Blocks),
            (1, Shape::Words),
            (1, Shape::Bytes),
        ]);
        let (unit, most) = match shape {
            Shape::Whole => (len, 2),
            Shape::Pages => (PAGE, 6),
            Shape::Blocks => (block, 6),
            Shape::Words => (4, 2000),
            Shape::Bytes => (1, 3000),
        };
        let mut offset = match shape {
            Shape::Words => chance.count(0..1024) * 4,
            Shape::Bytes => chance.count(0..PAGE),
            Shape::Whole | Shape::Pages if chance.one_in(5) => chance.count(1..1024) * 4,
            _ => 0,
        };
        reached.note_if(matches!(shape, Shape::Words | Shape::Bytes), Point::OddSegments);
        let (mut chain, mut parts) = (MemoryChain::new(), Parts::default());
        // What lies between two segments is kept until the last one is there.
        let mut gaps = Vec::new();
        for number in 0.. {
            let left = len - chain.len();
            // The first piece of whole pages ends on one.
            let less = if shape == Shape::Pages { offset } else { 0 };
            let size = if number < 16 { (chance.count(1..most) * unit - less).min(left) } else { left };
            if size == 0 {
                break;
            }
            chain.append(self.piece(chance, size, offset, &mut parts, reached)?);
            gaps.push(self.space.allocate(1)?);
            offset = 0;
        }
        Ok((chain, parts))
    }

    /// Parts whose request is over.
    pub fn give_back(&mut self, parts: Parts) {
        for (taken, parts) in self.taken.0.iter_mut().zip(parts.0) {
            *taken &= !parts;
        }
    }

    /// Where the memory that is free lies.
    pub fn free(&self) -> Result<Vec<u64>, kiovec::Error> {
        let pieces: Vec<MemoryChain> =
            (0..64).map(|_| self.space.allocate(64 << 10)).collect::<Result<_, _>>()?;
        Ok(pieces.iter().filter_map(|piece| piece.segments().first()).map(|first| first.iova()).collect())
    }

    /// Ends the registrations: what is wrong, if somebody still has memory of them. A space that is what it was in the
    /// beginning is kept for the next seed.
    pub fn end(self) -> Result<(), String> {
        let Memories { space, kept, registered, guest, gone, ram, .. } = self;
        drop((registered, guest));
        if !gone.load(Ordering::Relaxed) || Arc::strong_count(&ram) != 1 {
            return Err("memory that was registered is still in use at the end".into());
        }
        if let Some(kept) = kept
            && regions(&space).is_ok_and(|regions| regions == kept)
        {
            KEPT.set(Some(Kept { space, regions: kept }));
        }
        Ok(())
    }
}
