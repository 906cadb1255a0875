//! Memory of all kinds for requests, in segments of all shapes.
//!
//! Knows where memory comes from; must not know what it is for.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiovec::memory::vm_memory::{GuestAddress, GuestMemoryMmap};
use kiovec::memory::{DmaSpace, ExternalMemory, GuestRegistration, MemoryChain, Registration};

use crate::chance::Chance;
use crate::reach::{Point, Reached};

/// An application's memory, and a guest's, in parts that are given out one at a time.
const PARTS: usize = 16;
const PART: usize = 64 << 10;
const PAGE: usize = 4096;

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
    registered: Registration,
    guest: GuestRegistration,
    taken: Parts,
    gone: Arc<AtomicBool>,
    ram: Arc<GuestMemoryMmap>,
}

impl Memories {
    /// With an application's memory and a guest's beside the space's own.
    pub fn new() -> Result<Memories, kiovec::Error> {
        let space = DmaSpace::new()?;
        let gone = Arc::<AtomicBool>::default();
        let owner = Owner { bytes: vec![0; PARTS * PART + PAGE], gone: Arc::clone(&gone) };
        let registered = space.register(owner)?;
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PARTS * PART)])
            .map_err(|error| kiovec::Error::InvalidInput(error.to_string()))?;
        let ram = Arc::new(ram);
        let guest = space.register_guest(Arc::clone(&ram))?;
        Ok(Memories { space, registered, guest, taken: Parts::default(), gone, ram })
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

    /// Ends the registrations: what is wrong, if somebody still has memory of them.
    pub fn end(self) -> Result<DmaSpace, String> {
        let Memories { space, registered, guest, gone, ram, .. } = self;
        drop((registered, guest));
        match gone.load(Ordering::Relaxed) && Arc::strong_count(&ram) == 1 {
            true => Ok(space),
            false => Err("memory that was registered is still in use at the end".into()),
        }
    }
}
