//! Memory chains: what an I/O reads into or writes from, contiguous or not, as one unit.
//!
//! Knows segments and their order; must not know commands. A segment carries its IOVA: nobody on
//! the I/O path looks an address up, nor asks what kind of memory it is.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::source::Source;

/// A run of device-reachable memory. It owns its bytes, and gives them back on drop: no two segments
/// overlap, but for those of a guest's memory, which belongs to the guest.
pub struct Segment {
    iova: u64,
    len: usize,
    /// Bytes to give back: `len` and what alignment added behind it.
    room: u64,
    source: Arc<Source>,
}

impl Segment {
    #[inline]
    pub(super) fn new(iova: u64, len: usize, room: u64, source: Arc<Source>) -> Self {
        Segment { iova, len, room, source }
    }

    /// The address that devices use.
    #[inline]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes, never 0.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether others may write the memory at any time: a guest's. There are no slices of it.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.source.is_shared()
    }

    /// The memory, for reading.
    ///
    /// # Panics
    /// If it is [shared](Segment::is_shared); [`MemoryChain::copy_to_slice`] reads any memory.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the segment owns this range of its region, which is mapped and initialised, and
        // lives as long as the source does. It is not shared, as `exclusive` checked. No command that
        // touches it is in flight: submitting moves the segment away until its completion.
        unsafe { std::slice::from_raw_parts(self.exclusive().as_ptr(), self.len) }
    }

    /// The memory, for writing.
    ///
    /// # Panics
    /// If it is [shared](Segment::is_shared); [`MemoryChain::copy_from_slice`] writes any memory.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.exclusive().as_ptr(), self.len) }
    }

    /// Cuts the segment in two: the first `at` bytes, and the rest.
    ///
    /// # Panics
    /// If `at` is 0 or not less than the length.
    pub fn split_at(mut self, at: usize) -> (Segment, Segment) {
        let front = self.split_front(at);
        (front, self)
    }

    /// Cuts the first `at` bytes off.
    fn split_front(&mut self, at: usize) -> Segment {
        assert!(at > 0 && at < self.len, "a segment of {} bytes cannot be cut at {at}", self.len);
        let front = Segment::new(self.iova, at, at as u64, Arc::clone(&self.source));
        (self.iova, self.len, self.room) = (self.iova + at as u64, self.len - at, self.room - at as u64);
        front
    }

    /// Where the memory is in this process.
    pub(super) fn pointer(&self) -> NonNull<u8> {
        self.source.pointer(self.iova)
    }

    /// Where the memory is, if slices of it may exist.
    fn exclusive(&self) -> NonNull<u8> {
        assert!(!self.is_shared(), "a guest's memory has no slices: the guest writes it too; copy it");
        self.pointer()
    }

    /// The bytes of a range, to be copied to or from: no reference to them comes into being.
    fn bytes(&self, range: Range<usize>) -> VolatileSlice<'_> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies in the segment, as checked, whose memory is mapped for reading and
        // writing as long as the source lives, which the borrow of the segment keeps. No slice of
        // it exists meanwhile: of shared memory there is none; otherwise the callers below either have
        // the chain mutably borrowed, or only read it, or are `MemoryChain::copy_range_in`. Who
        // else may write it, a guest or a device, is not this program, and can make the bytes
        // arbitrary but valid.
        unsafe { VolatileSlice::new(self.pointer().as_ptr().add(range.start), range.len()) }
    }

    /// Whether the memory is never given to anybody again, whoever drops it.
    pub(crate) fn is_retired(&self) -> bool {
        self.source.region().is_retired()
    }

    #[inline]
    pub(crate) fn space(&self) -> u64 {
        self.source.space()
    }

    /// Whether another segment is of the same source, and so of the same space.
    #[inline(always)]
    pub(crate) fn has_source_of(&self, other: &Segment) -> bool {
        Arc::ptr_eq(&self.source, &other.source)
    }
}

impl Drop for Segment {
    #[inline]
    fn drop(&mut self) {
        self.source.give(self.iova, self.room);
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({:#x}, {} bytes)", self.iova, self.len)
    }
}

/// Memory of one I/O: segments in order, of any kinds. One segment costs no heap.
#[derive(Default)]
pub struct MemoryChain {
    segments: Segments,
    len: usize,
}

enum Segments {
    One(Segment),
    /// Any number: a list that was once needed is kept. None are a list without room.
    Many(Vec<Segment>),
}

/// What tells one from many is in the segment's source.
const _: () = assert!(size_of::<Segments>() == size_of::<Segment>());

impl Default for Segments {
    fn default() -> Segments {
        Segments::Many(Vec::new())
    }
}

/// A place in a chain: a segment, and an offset in it that is less than its length. The end is the
/// beginning of the segment that would come next. Going on from a place costs no walk from the
/// chain's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub(crate) segment: usize,
    pub(crate) offset: u64,
}

impl Segments {
    /// As `std::mem::swap`, which would read and write one word after the other.
    #[inline(always)]
    fn exchange(&mut self, other: &mut Segments) {
        type Word = MaybeUninit<u64>;
        const { assert!(size_of::<Segments>() == 32 && align_of::<Segments>() >= align_of::<Word>()) };
        let (ours, others) = (ptr::from_mut(self).cast::<Word>(), ptr::from_mut(other).cast::<Word>());
        // SAFETY: both are four such words, as asserted, whose bits may be anything. They are mutably
        // borrowed, so they do not overlap; each is whole again, as a bitwise copy of the other, before
        // anybody else looks at it, and there is one of each as before.
        unsafe {
            let (a, b) = (ours.read(), ours.add(1).read());
            let (c, d) = (ours.add(2).read(), ours.add(3).read());
            let (e, f) = (others.read(), others.add(1).read());
            let (g, h) = (others.add(2).read(), others.add(3).read());
            ours.write(e);
            ours.add(1).write(f);
            ours.add(2).write(g);
            ours.add(3).write(h);
            others.write(a);
            others.add(1).write(b);
            others.add(2).write(c);
            others.add(3).write(d);
        }
    }

    /// Cuts off the segments from one on. The shorter part gets a new list: so whoever cuts piece after
    /// piece from a long chain gets short lists, and the long one stays where it is.
    fn split_off(&mut self, at: usize) -> Segments {
        match self {
            Segments::Many(all) if at > 0 => Segments::Many(match at < all.len() / 2 {
                true => {
                    let front = all.drain(..at).collect();
                    std::mem::replace(all, front)
                }
                false => all.split_off(at),
            }),
            Segments::One(_) if at > 0 => Segments::default(),
            whole => std::mem::take(whole),
        }
    }

    /// Without a list where there is no need of one.
    fn simplest(self) -> Segments {
        match self {
            Segments::Many(mut all) if all.len() < 2 => {
                all.pop().map_or_else(Segments::default, Segments::One)
            }
            several => several,
        }
    }
}

impl MemoryChain {
    /// A chain of no memory: what a flush carries.
    pub const fn new() -> MemoryChain {
        MemoryChain { segments: Segments::Many(Vec::new()), len: 0 }
    }

    /// A chain of no memory, with room for a number of segments: appending that many costs no heap any
    /// more, nor does it after [`clear`](MemoryChain::clear).
    pub fn with_capacity(segments: usize) -> MemoryChain {
        MemoryChain { segments: Segments::Many(Vec::with_capacity(segments)), len: 0 }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no memory in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments, in order.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        match &self.segments {
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(segments) => segments,
        }
    }

    /// The segment, where there is one.
    #[inline(always)]
    pub(crate) fn only_segment(&self) -> Option<&Segment> {
        match &self.segments {
            Segments::One(segment) => Some(segment),
            Segments::Many(segments) if segments.len() == 1 => segments.first(),
            Segments::Many(_) => None,
        }
    }

    /// The segment, where there is no list either.
    #[inline(always)]
    pub(crate) fn one(&self) -> Option<&Segment> {
        match &self.segments {
            Segments::One(segment) => Some(segment),
            Segments::Many(_) => None,
        }
    }

    /// Exchanges two chains; whether they are equally long.
    #[inline(always)]
    pub(crate) fn exchange(&mut self, other: &mut MemoryChain) -> bool {
        let (ours, others) = (self.len, other.len);
        self.segments.exchange(&mut other.segments);
        if ours != others {
            (self.len, other.len) = (others, ours);
        }
        ours == others
    }

    /// Goes through the segments, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.segments().iter()
    }

    /// The contents, segment by segment, for writing.
    ///
    /// # Panics
    /// At a segment that is [shared](Segment::is_shared).
    pub fn data_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.segments_mut().iter_mut().map(Segment::as_mut_slice)
    }

    /// Not public: segments exchanged from outside would leave `len` untrue.
    fn segments_mut(&mut self) -> &mut [Segment] {
        match &mut self.segments {
            Segments::One(segment) => std::slice::from_mut(segment),
            Segments::Many(segments) => segments,
        }
    }

    /// Appends another chain: its segments follow this chain's. No data moves.
    pub fn append(&mut self, other: MemoryChain) {
        match (&mut self.segments, other.segments) {
            (_, Segments::Many(none)) if none.capacity() == 0 => {}
            (_, Segments::One(segment)) => return self.push(segment),
            (Segments::Many(all), Segments::Many(mut more)) if all.capacity() > 0 => all.append(&mut more),
            (few, Segments::Many(mut all)) => {
                if let Segments::One(first) = std::mem::take(few) {
                    all.insert(0, first);
                }
                *few = Segments::Many(all);
            }
        }
        self.len += other.len;
    }

    #[inline]
    pub(super) fn push(&mut self, segment: Segment) {
        self.len += segment.len();
        match &mut self.segments {
            Segments::Many(all) if all.capacity() > 0 => all.push(segment),
            few => {
                *few = match std::mem::take(few) {
                    Segments::One(first) => Segments::Many(vec![first, segment]),
                    Segments::Many(_) => Segments::One(segment),
                }
            }
        }
    }

    /// Gives all memory back. The list of segments is kept for the next ones.
    pub fn clear(&mut self) {
        self.len = 0;
        match &mut self.segments {
            Segments::Many(segments) => segments.clear(),
            few => *few = Segments::default(),
        }
    }

    /// Cuts the chain in two: the first `at` bytes, and the rest. No data moves. Costs as much as there
    /// are segments in the chain.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    pub fn split_at(mut self, at: usize) -> (MemoryChain, MemoryChain) {
        let rest = self.split_off(at);
        (self, rest)
    }

    /// The bytes of a range. No data moves; the memory outside goes back where it came from.
    ///
    /// # Panics
    /// If the range ends before it begins, or beyond the end.
    pub fn slice(mut self, range: Range<usize>) -> MemoryChain {
        drop(self.split_off(range.end));
        self.split_off(range.start)
    }

    /// Cuts off what follows the first `at` bytes.
    fn split_off(&mut self, at: usize) -> MemoryChain {
        assert!(at <= self.len, "a chain of {} bytes cannot be cut at {at}", self.len);
        if at == 0 {
            return std::mem::take(self);
        }
        let Position { segment, offset } = self.advance(MemoryChain::start(), at as u64);
        // Of a segment that is cut, the end stays in its place, and the beginning comes to the end of
        // what is before it.
        let cut = (offset > 0).then(|| self.segments_mut()[segment].split_front(offset as usize));
        let rest = self.segments.split_off(segment).simplest();
        let rest = MemoryChain { segments: rest, len: self.len - at };
        self.len = at - offset as usize;
        cut.into_iter().for_each(|cut| self.push(cut));
        self.segments = std::mem::take(&mut self.segments).simplest();
        rest
    }

    /// The contents from a place on, of which no command in flight moves anything; others may move other
    /// parts of the chain.
    ///
    /// # Panics
    /// At a segment that is [shared](Segment::is_shared).
    pub(crate) fn slices(&self, at: Position, len: u64) -> impl Iterator<Item = &[u8]> {
        let (mut skip, mut left) = (at.offset as usize, len as usize);
        self.segments()[at.segment..].iter().map_while(move |segment| {
            let from = std::mem::take(&mut skip);
            let n = left.min(segment.len() - from);
            left -= n;
            // SAFETY: within the segment, as in `as_slice`; the caller knows that nobody writes it.
            (n > 0).then(|| unsafe { std::slice::from_raw_parts(segment.exclusive().as_ptr().add(from), n) })
        })
    }

    /// Copies `data` into the chain from byte `offset` on.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn copy_from_slice(&mut self, offset: usize, data: &[u8]) {
        self.check(offset, data.len());
        self.copy_range_in(self.advance(MemoryChain::start(), offset as u64), data);
    }

    /// Copies from the chain, from byte `offset` on, into `data`.
    ///
    /// # Panics
    /// If the chain is shorter than that.
    pub fn copy_to_slice(&self, offset: usize, data: &mut [u8]) {
        self.check(offset, data.len());
        self.copy_range_out(self.advance(MemoryChain::start(), offset as u64), data);
    }

    fn check(&self, offset: usize, len: usize) {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "{len} bytes from {offset} on are not within a chain of {} bytes", self.len);
    }

    /// A copy of the contents.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to_slice(0, &mut bytes);
        bytes
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) {
        let bytes = [byte; 4096];
        for segment in self.segments_mut() {
            for at in (0..segment.len()).step_by(bytes.len()) {
                segment.bytes(at..segment.len().min(at + bytes.len())).copy_from(&bytes);
            }
        }
    }

    /// The place of the first byte of any chain.
    pub(crate) fn start() -> Position {
        Position::default()
    }

    /// The place `bytes` bytes after another one. Costs as much as there are segments between them.
    ///
    /// # Panics
    /// If it is beyond the end.
    pub(crate) fn advance(&self, from: Position, bytes: u64) -> Position {
        let Position { mut segment, offset } = from;
        let mut left = offset.saturating_add(bytes);
        while let Some(here) = self.segments().get(segment)
            && left >= here.len() as u64
        {
            left -= here.len() as u64;
            segment += 1;
        }
        assert!(left == 0 || segment < self.segments().len(), "a place beyond the end of a chain");
        Position { segment, offset: left }
    }

    /// Copies `data` into the chain from a place on. Neither reads nor writes a byte of the rest of the
    /// chain, nor refers to it: that may be in flight.
    ///
    /// For whoever has the chain's container in his tree of requests, which is mutably borrowed then:
    /// a slice of the chain would borrow the container, so none exists.
    ///
    /// # Panics
    /// If it does not fit.
    pub(crate) fn copy_range_in(&self, at: Position, data: &[u8]) {
        self.pieces(at, data.len(), |segment, here, range| {
            segment.bytes(here).copy_from(&data[range]);
        });
    }

    /// Copies from the chain, from a place on, into `data`. As for [`copy_range_in`](Self::copy_range_in),
    /// the rest of the chain may be in flight.
    ///
    /// # Panics
    /// If the chain is shorter than that.
    pub(crate) fn copy_range_out(&self, at: Position, data: &mut [u8]) {
        self.pieces(at, data.len(), |segment, here, range| {
            segment.bytes(here).copy_to(&mut data[range]);
        });
    }

    /// Calls `each` for the part of each segment that `len` bytes from a place on have in it: the
    /// segment, the range in it, and the range of those bytes.
    fn pieces(&self, at: Position, len: usize, mut each: impl FnMut(&Segment, Range<usize>, Range<usize>)) {
        let (mut from, mut done) = (at.offset as usize, 0);
        let mut segments = self.segments().get(at.segment..).unwrap_or_default().iter();
        while done < len {
            let segment = segments.next().expect("a range beyond the end of a chain");
            let upto = segment.len().min(from + (len - done));
            each(segment, from..upto, done..done + (upto - from));
            done += upto - from;
            from = 0;
        }
    }
}

impl From<Segment> for MemoryChain {
    fn from(segment: Segment) -> MemoryChain {
        MemoryChain { len: segment.len(), segments: Segments::One(segment) }
    }
}

impl Extend<Segment> for MemoryChain {
    fn extend<I: IntoIterator<Item = Segment>>(&mut self, segments: I) {
        segments.into_iter().for_each(|segment| self.push(segment));
    }
}

impl FromIterator<Segment> for MemoryChain {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> MemoryChain {
        let mut chain = MemoryChain::new();
        chain.extend(segments);
        chain
    }
}

impl fmt::Debug for MemoryChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::DmaSpace;

    fn crumbs(space: &DmaSpace, count: usize) -> MemoryChain {
        let mut rest = space.allocate((count + 1) * 512).unwrap();
        let mut chain = MemoryChain::new();
        for _ in 0..count {
            let (front, more) = rest.split_at(512);
            chain.append(front);
            rest = more;
        }
        chain
    }

    fn capacity(chain: &MemoryChain) -> usize {
        match &chain.segments {
            Segments::Many(list) => list.capacity(),
            _ => 0,
        }
    }

    #[test]
    fn what_is_cut_from_a_long_chain_has_no_long_list() {
        let space = DmaSpace::new().unwrap();
        let (front, back) = crumbs(&space, 1000).split_at(2 * 512);
        assert!(capacity(&front) < 10);
        let (most, last) = back.split_at(997 * 512 + 100);
        assert_eq!((capacity(&last), last.segments().len()), (0, 1));
        let (one, _) = most.split_at(10);
        assert_eq!(capacity(&one), 0, "one segment costs no heap");
    }

    #[test]
    fn a_list_is_kept_for_the_next_segments() {
        let space = DmaSpace::new().unwrap();
        let mut chain = MemoryChain::with_capacity(4);
        for _ in 0..3 {
            for _ in 0..4 {
                chain.append(crumbs(&space, 1));
            }
            assert_eq!((chain.segments().len(), chain.len(), capacity(&chain)), (4, 2048, 4));
            chain.clear();
            assert_eq!((chain.segments().len(), chain.len()), (0, 0));
        }
    }
}
