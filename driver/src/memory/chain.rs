//! Memory chains: what an I/O reads into or writes from, contiguous or not, as one unit.
//!
//! Knows segments and their order; must not know commands. A segment carries its IOVA: nobody on
//! the I/O path looks an address up.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::region::Region;

/// A run of device-reachable memory, owned: no two segments overlap. Returns to its region on drop.
pub struct Segment {
    iova: u64,
    len: usize,
    /// Bytes to give back to the region: `len` and what alignment added behind it.
    room: u64,
    region: Arc<Region>,
}

impl Segment {
    pub(super) fn new(iova: u64, len: usize, room: u64, region: Arc<Region>) -> Self {
        Segment { iova, len, room, region }
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

    /// The memory, for reading.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the segment owns this range of its region, which is mapped and initialised (a
        // memfd begins as zeros) and lives as long as the Arc. No command that touches it is in
        // flight: submitting moves the segment away until its completion.
        unsafe { std::slice::from_raw_parts(self.pointer().as_ptr(), self.len) }
    }

    /// The memory, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().as_ptr(), self.len) }
    }

    /// Cuts the segment in two: the first `at` bytes, and the rest.
    ///
    /// # Panics
    /// If `at` is 0 or not less than the length.
    pub fn split_at(self, at: usize) -> (Segment, Segment) {
        assert!(at > 0 && at < self.len, "a segment of {} bytes cannot be cut at {at}", self.len);
        let whole = std::mem::ManuallyDrop::new(self);
        // SAFETY: `whole` is never dropped nor used again, so its Arc moves out exactly once.
        let region = unsafe { std::ptr::read(&whole.region) };
        let (len, room) = (whole.len - at, whole.room - at as u64);
        let first = Segment::new(whole.iova, at, at as u64, Arc::clone(&region));
        (first, Segment::new(whole.iova + at as u64, len, room, region))
    }

    /// Where the memory is in this process.
    pub(super) fn pointer(&self) -> NonNull<u8> {
        self.region.pointer(self.iova)
    }

    pub(crate) fn space(&self) -> u64 {
        self.region.space()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.region.give(self.iova, self.room);
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({:#x}, {} bytes)", self.iova, self.len)
    }
}

/// A place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// The index of the segment.
    pub(crate) segment: usize,
    /// Bytes of the segment before it.
    pub(crate) offset: u64,
}

/// Memory of one I/O: segments in order. One segment costs no heap.
#[derive(Default)]
pub struct MemoryChain {
    segments: Segments,
    len: usize,
}

#[derive(Default)]
enum Segments {
    #[default]
    None,
    One(Segment),
    Many(Vec<Segment>),
}

impl MemoryChain {
    /// A chain of no memory: what a flush carries.
    pub const fn new() -> MemoryChain {
        MemoryChain { segments: Segments::None, len: 0 }
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
            Segments::None => &[],
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(segments) => segments,
        }
    }

    /// The contents, segment by segment, for writing.
    pub fn data_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.segments_mut().iter_mut().map(Segment::as_mut_slice)
    }

    /// Not public: segments exchanged from outside would leave `len` untrue.
    fn segments_mut(&mut self) -> &mut [Segment] {
        match &mut self.segments {
            Segments::None => &mut [],
            Segments::One(segment) => std::slice::from_mut(segment),
            Segments::Many(segments) => segments,
        }
    }

    /// Appends another chain: its segments follow this chain's. No data moves.
    pub fn append(&mut self, other: MemoryChain) {
        self.len += other.len;
        let mut all = std::mem::take(&mut self.segments).into_vec();
        all.extend(other.segments.into_vec());
        self.segments = Segments::from_vec(all);
    }

    /// Cuts the chain in two: the first `at` bytes, and the rest. No data moves.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    pub fn split_at(self, at: usize) -> (MemoryChain, MemoryChain) {
        assert!(at <= self.len, "a chain of {} bytes cannot be cut at {at}", self.len);
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        let mut before = 0;
        for segment in self.segments.into_vec() {
            let end = before + segment.len();
            if end <= at {
                first.push(segment);
            } else if before >= at {
                rest.push(segment);
            } else {
                let (left, right) = segment.split_at(at - before);
                first.push(left);
                rest.push(right);
            }
            before = end;
        }
        (first.into_iter().collect(), rest.into_iter().collect())
    }

    /// The place `bytes` behind another. Looks at the segments between them only.
    pub(crate) fn advance(&self, from: Position, bytes: u64) -> Position {
        let Position { mut segment, offset } = from;
        let mut offset = offset + bytes;
        let segments = self.segments();
        while let Some(len) = segments.get(segment).map(|segment| segment.len() as u64)
            && offset >= len
        {
            offset -= len;
            segment += 1;
        }
        Position { segment, offset }
    }

    /// The contents from a place on, of which no command in flight moves anything; others may move other
    /// parts of the chain.
    pub(crate) fn slices(&self, at: Position, len: u64) -> impl Iterator<Item = &[u8]> {
        let (mut skip, mut left) = (at.offset as usize, len as usize);
        self.segments()[at.segment..].iter().map_while(move |segment| {
            let (from, n) = (std::mem::take(&mut skip), left.min(segment.len()));
            let n = n.min(segment.len() - from);
            left -= n;
            // SAFETY: within the segment, as in `as_slice`; the caller knows that nobody writes it.
            (n > 0).then(|| unsafe { std::slice::from_raw_parts(segment.pointer().as_ptr().add(from), n) })
        })
    }

    /// Copies bytes into the chain, whatever else of it a device may be writing.
    pub(crate) fn copy_range_in(&self, at: Position, data: &[u8]) {
        let (mut offset, mut data) = (at.offset as usize, data);
        for segment in &self.segments()[at.segment..] {
            let n = data.len().min(segment.len() - offset);
            // SAFETY: within the segment, whose memory this chain owns; no reference to it is made.
            unsafe { segment.pointer().as_ptr().add(offset).copy_from_nonoverlapping(data.as_ptr(), n) };
            (offset, data) = (0, &data[n..]);
            if data.is_empty() {
                break;
            }
        }
    }

    /// Copies bytes from the chain, whatever else of it a device may be writing.
    pub(crate) fn copy_range_out(&self, at: Position, data: &mut [u8]) {
        let (mut offset, mut data) = (at.offset as usize, data);
        for segment in &self.segments()[at.segment..] {
            let n = data.len().min(segment.len() - offset);
            let (now, later) = data.split_at_mut(n);
            // SAFETY: as above.
            unsafe { segment.pointer().as_ptr().add(offset).copy_to_nonoverlapping(now.as_mut_ptr(), n) };
            (offset, data) = (0, later);
            if data.is_empty() {
                break;
            }
        }
    }

    /// Copies `data` into the chain from byte `offset` on.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn copy_from_slice(&mut self, offset: usize, data: &[u8]) {
        assert!(offset.checked_add(data.len()).is_some_and(|end| end <= self.len));
        let (mut skip, mut data) = (offset, data);
        for segment in self.segments_mut() {
            let from = skip.min(segment.len());
            let n = data.len().min(segment.len() - from);
            segment.as_mut_slice()[from..from + n].copy_from_slice(&data[..n]);
            (skip, data) = (skip - from, &data[n..]);
        }
    }

    /// Copies from the chain, from byte `offset` on, into `data`.
    ///
    /// # Panics
    /// If the chain is shorter than that.
    pub fn copy_to_slice(&self, offset: usize, data: &mut [u8]) {
        assert!(offset.checked_add(data.len()).is_some_and(|end| end <= self.len));
        let (mut skip, mut data) = (offset, data);
        for segment in self.segments() {
            let from = skip.min(segment.len());
            let n = data.len().min(segment.len() - from);
            let (now, later) = data.split_at_mut(n);
            now.copy_from_slice(&segment.as_slice()[from..from + n]);
            (skip, data) = (skip - from, later);
        }
    }

    /// A copy of the contents.
    pub fn to_vec(&self) -> Vec<u8> {
        self.segments().iter().flat_map(|segment| segment.as_slice()).copied().collect()
    }

    /// Sets every byte.
    pub fn fill(&mut self, byte: u8) {
        self.segments_mut().iter_mut().for_each(|segment| segment.as_mut_slice().fill(byte));
    }
}

impl Segments {
    fn into_vec(self) -> Vec<Segment> {
        match self {
            Segments::None => Vec::new(),
            Segments::One(segment) => vec![segment],
            Segments::Many(segments) => segments,
        }
    }

    fn from_vec(mut segments: Vec<Segment>) -> Segments {
        match segments.len() {
            0 => Segments::None,
            1 => segments.pop().map_or(Segments::None, Segments::One),
            _ => Segments::Many(segments),
        }
    }
}

impl From<Segment> for MemoryChain {
    fn from(segment: Segment) -> MemoryChain {
        MemoryChain { len: segment.len(), segments: Segments::One(segment) }
    }
}

impl FromIterator<Segment> for MemoryChain {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> MemoryChain {
        let segments: Vec<Segment> = segments.into_iter().collect();
        MemoryChain { len: segments.iter().map(Segment::len).sum(), segments: Segments::from_vec(segments) }
    }
}

impl fmt::Debug for MemoryChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments()).finish()
    }
}
