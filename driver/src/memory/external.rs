//! Memory that the application allocated itself, as part of a space.
//!
//! Knows who owns such memory; must not know how it is mapped.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::chain::{MemoryChain, Segment};
use super::region::Backing;
use super::source::Source;
use super::space::DmaSpace;
use crate::{Error, Result};

/// Memory that its owner hands to a [`DmaSpace`], for devices to read and write.
///
/// Vectors and boxed slices of plain data are such owners. For a mapping of one's own:
///
/// ```
/// use std::ptr::NonNull;
/// use kiovec::memory::ExternalMemory;
///
/// /// A mapping that nothing else has the address of.
/// struct Mapped(NonNull<[u8]>);
///
/// // SAFETY: the memory has no other user, and no user but the kernel's page tables needs a thread.
/// unsafe impl Send for Mapped {}
///
/// // SAFETY: whole pages, mapped for reading and writing until `drop`, and used by nobody else.
/// unsafe impl ExternalMemory for Mapped {
///     fn memory(&mut self) -> NonNull<[u8]> {
///         self.0
///     }
/// }
///
/// impl Drop for Mapped {
///     fn drop(&mut self) {
///         // munmap
///     }
/// }
/// ```
///
/// # Safety
/// What [`memory`](ExternalMemory::memory) returns
/// - is initialised, and can be read and written, until the owner is dropped;
/// - does not lie in the owner itself, but behind a pointer;
/// - is used by nothing and nobody else from the call until the owner is dropped, the owner and
///   other processes included.
pub unsafe trait ExternalMemory: Send + 'static {
    /// The memory. Called once.
    fn memory(&mut self) -> NonNull<[u8]>;
}

// SAFETY: the slice lies on the heap and belongs to the box; any bytes are valid values of T, and
// all bytes of a T are initialised.
unsafe impl<T: FromBytes + IntoBytes + Send + 'static> ExternalMemory for Box<[T]> {
    fn memory(&mut self) -> NonNull<[u8]> {
        NonNull::from((**self).as_mut_bytes())
    }
}

// SAFETY: as for Box.
unsafe impl<T: FromBytes + IntoBytes + Send + 'static> ExternalMemory for Vec<T> {
    fn memory(&mut self) -> NonNull<[u8]> {
        NonNull::from(self.as_mut_slice().as_mut_bytes())
    }
}

impl DmaSpace {
    /// Makes an application's memory part of the space: every controller reaches it, and the
    /// registration gives out chains of it.
    ///
    /// The memory must be whole pages of 4096 bytes, since an IOMMU maps nothing smaller. Its owner
    /// is kept until the registration and all segments of it are dropped and it is unmapped
    /// everywhere; for ever, if a device that reaches it cannot be stopped.
    ///
    /// # Errors
    /// If the memory is not whole pages, is (in part) in this space already, finds no room in the IOVA
    /// window, or cannot be mapped for an attached controller. The owner is dropped then.
    ///
    /// ```
    /// use kiovec::memory::DmaSpace;
    ///
    /// #[derive(Clone, zerocopy::FromBytes, zerocopy::IntoBytes)]
    /// #[repr(C, align(4096))]
    /// struct Page([u8; 4096]);
    ///
    /// let space = DmaSpace::new()?;
    /// let memory = space.register(vec![Page([7; 4096]); 16])?;
    /// let chain = memory.chain(512..8192)?;
    /// assert!(chain.to_vec().iter().all(|byte| *byte == 7));
    /// # Ok::<(), kiovec::Error>(())
    /// ```
    pub fn register<M: ExternalMemory>(&self, owner: M) -> Result<Registration> {
        let mut owner = Box::new(owner);
        let memory = owner.memory();
        // SAFETY: what `ExternalMemory` promises; the owner is in its place and moves no more.
        let registered = self.add_external(unsafe { Backing::external(memory, None, owner)? })?;
        let region = Arc::clone(registered.region());
        Ok(Registration { source: Arc::new(Source::exclusive(region, self.id(), Some(registered))) })
    }
}

/// An application's memory in a space. Dropping it ends the registration as soon as no segment of it is
/// left: whoever drops the last one unmaps the memory and drops its owner.
#[derive(Debug)]
pub struct Registration {
    source: Arc<Source>,
}

impl Registration {
    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        let Range { start, end } = self.source.iova();
        (end - start) as usize
    }

    /// The bytes of a range, as a chain of one segment that owns them until it is dropped. They are
    /// what they were left as.
    ///
    /// Not for the I/O path: it takes a lock.
    ///
    /// # Errors
    /// If the range is empty or not within the memory, or another segment owns part of it.
    pub fn chain(&self, range: Range<usize>) -> Result<MemoryChain> {
        let refuse = |why| {
            let what = format!("bytes {range:?} of registered memory of {} bytes {why}", self.len());
            Err(Error::InvalidInput(what))
        };
        if range.is_empty() || range.end > self.len() {
            return refuse("are none, or not all within it");
        }
        let (offset, len) = (range.start as u64, range.len());
        if !self.source.take_at(offset..offset + len as u64) {
            return refuse("are in use by an earlier segment, at least in part; drop that one first");
        }
        let iova = self.source.iova().start + offset;
        Ok(Segment::new(iova, len, len as u64, Arc::clone(&self.source)).into())
    }
}
