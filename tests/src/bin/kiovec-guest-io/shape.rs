//! Memory in the shapes that callers have.

use kiovec::memory::{DmaSpace, MemoryChain};

const PAGE: usize = 4096;

/// How the memory of a request lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One segment that starts so many bytes after the start of a page.
    Contiguous {
        /// A multiple of four.
        offset: usize,
    },
    /// A segment for each page, the highest address first.
    PagesBackwards,
    /// A segment for each block, at changing places of pages that do not follow each other.
    BlocksApart,
    /// Segments that end within blocks: for SGLs only.
    Ragged,
}

impl Shape {
    /// `len` bytes in this shape; `block` is the block size.
    pub fn allocate(self, space: &DmaSpace, len: usize, block: usize) -> kiovec::Result<MemoryChain> {
        match self {
            Shape::Contiguous { offset } => at_offset(space, offset, len),
            Shape::PagesBackwards => backwards(space, len),
            Shape::BlocksApart => apart(space, (0..len / block).map(|index| ((index * 516) % PAGE, block))),
            Shape::Ragged => apart(space, ragged(len).into_iter().map(|piece| (0, piece))),
        }
    }
}

fn at_offset(space: &DmaSpace, offset: usize, len: usize) -> kiovec::Result<MemoryChain> {
    let memory = space.allocate(offset + len)?;
    Ok(if offset == 0 { memory } else { memory.split_at(offset).1 })
}

fn backwards(space: &DmaSpace, len: usize) -> kiovec::Result<MemoryChain> {
    let mut rest = space.allocate(len.next_multiple_of(PAGE))?;
    let mut chain = MemoryChain::new();
    while rest.len() > PAGE {
        let at = rest.len() - PAGE;
        let (front, last) = rest.split_at(at);
        chain.append(last);
        rest = front;
    }
    chain.append(rest);
    // The last of the chain is whole only if the length is.
    Ok(if chain.len() == len { chain } else { chain.split_at(len).0 })
}

/// Pieces of the given offsets in their page and lengths, each from memory of its own.
fn apart(space: &DmaSpace, pieces: impl Iterator<Item = (usize, usize)>) -> kiovec::Result<MemoryChain> {
    let mut chain = MemoryChain::new();
    for (offset, len) in pieces {
        chain.append(at_offset(space, offset, len)?);
    }
    Ok(chain)
}

/// Lengths that add up to `len`, few of which are a multiple of a block.
fn ragged(len: usize) -> Vec<usize> {
    let mut left = len;
    let mut pieces = Vec::new();
    for piece in [4, 508, 1000, 3096, 20, 2044].into_iter().cycle() {
        if left == 0 {
            break;
        }
        let piece = piece.min(left);
        pieces.push(piece);
        left -= piece;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(shape: Shape, len: usize) -> Vec<(u64, usize)> {
        let space = DmaSpace::new().expect("a space");
        let chain = shape.allocate(&space, len, 512).expect("memory");
        assert_eq!(chain.len(), len);
        chain.segments().iter().map(|segment| (segment.iova(), segment.len())).collect()
    }

    #[test]
    fn contiguous_memory_starts_where_it_should() {
        let segments = segments(Shape::Contiguous { offset: 516 }, 8192);
        assert_eq!((segments.len(), segments[0].0 % 4096), (1, 516));
    }

    #[test]
    fn pages_come_backwards() {
        let segments = segments(Shape::PagesBackwards, 3 * 4096);
        assert_eq!(segments.len(), 3);
        assert!(segments.windows(2).all(|pair| pair[0].0 == pair[1].0 + 4096));
    }

    #[test]
    fn no_block_follows_another() {
        let segments = segments(Shape::BlocksApart, 17 * 512);
        assert_eq!(segments.len(), 17);
        assert!(segments.windows(2).all(|pair| pair[0].0 + 512 != pair[1].0));
    }

    #[test]
    fn ragged_segments_end_within_blocks() {
        let segments = segments(Shape::Ragged, 64 << 10);
        assert!(segments.iter().any(|(_, len)| len % 512 != 0));
        assert!(segments.iter().all(|(iova, len)| iova % 4 == 0 && len % 4 == 0));
    }
}
