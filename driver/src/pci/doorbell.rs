//! Doorbells: mapped memory, the one part of a function that is touched per poll, or posted writes where
//! nothing can be mapped; either may have a shadow. Which it is is decided once, when a queue gets its doorbells.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::shadow::Shadow;

/// Register writes that nobody waits for: doorbells where they cannot be mapped.
pub trait PostedWrites: Send + Sync {
    /// Writes a 32-bit register of BAR0, after everything that was written to memory before. That this
    /// failed is seen where registers are read.
    fn post(&self, offset: u64, value: u32);
}

/// The doorbells of a controller (NVM Express PCIe Transport, section 3.1.2), from offset 1000h of BAR0 on.
#[derive(Clone)]
pub struct DoorbellPage {
    place: Place,
    len: u64,
}

#[derive(Clone)]
enum Place {
    Mapped { base: NonNull<AtomicU32>, owner: Arc<dyn Any + Send + Sync> },
    Posted(Arc<dyn PostedWrites>),
}

impl DoorbellPage {
    /// Wraps a mapping that `owner` keeps alive.
    ///
    /// # Safety
    /// `base` is valid for atomic 32-bit access over `len` bytes and aligned to 4, as long as
    /// `owner` lives.
    pub unsafe fn new(base: NonNull<AtomicU32>, len: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        DoorbellPage { place: Place::Mapped { base, owner }, len }
    }

    /// Doorbells that are not memory: each ring is a call.
    pub fn posted(writes: Arc<dyn PostedWrites>, len: u64) -> Self {
        DoorbellPage { place: Place::Posted(writes), len }
    }

    /// Whether a doorbell is a store to memory.
    pub fn is_mapped(&self) -> bool {
        matches!(self.place, Place::Mapped { .. })
    }

    /// The doorbell at a byte offset into the page, or `None` where the page ends before it.
    pub fn doorbell(&self, offset: u64) -> Option<Doorbell> {
        if !offset.is_multiple_of(4) || offset.checked_add(4)? > self.len {
            return None;
        }
        Some(Doorbell(match &self.place {
            Place::Mapped { base, owner } => {
                // SAFETY: offset + 4 is within the mapping, as checked.
                let cell = unsafe { base.byte_add(offset as usize) };
                Cell::Mapped { cell, _owner: Arc::clone(owner) }
            }
            Place::Posted(writes) => {
                let offset = super::DOORBELLS.checked_add(offset)?;
                Cell::Posted { writes: Arc::clone(writes), offset }
            }
        }))
    }
}

/// One doorbell register. Keeps its mapping alive.
pub struct Doorbell(Cell);

enum Cell {
    Mapped { cell: NonNull<AtomicU32>, _owner: Arc<dyn Any + Send + Sync> },
    Posted { writes: Arc<dyn PostedWrites>, offset: u64 },
    Shadowed(Box<Shadowed>),
}

struct Shadowed {
    register: Doorbell,
    shadow: Shadow,
}

impl Doorbell {
    /// Tells the controller the new tail or head. Everything written to the ring before is visible
    /// to the controller when it sees the value.
    #[inline]
    pub fn ring(&self, value: u32) {
        self.ring_counted(value, &mut 0);
    }

    /// The same; counts writes to the register: one each time, unless it has a shadow that the controller looks at.
    #[inline(always)]
    pub(crate) fn ring_counted(&self, value: u32, writes: &mut u64) {
        match &self.0 {
            Cell::Mapped { cell, .. } => {
                *writes += 1;
                device_write_barrier();
                // SAFETY: the cell lies in the mapping that `_owner` keeps alive (DoorbellPage::new).
                unsafe { cell.as_ref() }.store(value, Ordering::Release);
            }
            _ => self.ring_otherwise(value, writes),
        }
    }

    #[cold]
    #[inline(never)]
    fn ring_otherwise(&self, value: u32, writes: &mut u64) {
        match &self.0 {
            Cell::Mapped { .. } => self.ring_counted(value, writes),
            Cell::Posted { writes: posted, offset } => {
                *writes += 1;
                // Another process reads the ring after it has read the message.
                fence(Ordering::SeqCst);
                posted.post(*offset, value);
            }
            Cell::Shadowed(both) => {
                device_write_barrier();
                if both.shadow.tell(value) {
                    both.register.ring_counted(value, writes);
                }
            }
        }
    }

    /// The same doorbell, with a shadow.
    pub(crate) fn with_shadow(self, shadow: Shadow) -> Doorbell {
        Doorbell(Cell::Shadowed(Box::new(Shadowed { register: self, shadow })))
    }

    /// The queue is empty, and the controller knows nothing of it.
    pub(crate) fn restart(&self) {
        if let Cell::Shadowed(both) = &self.0 {
            both.shadow.restart();
        }
    }
}

/// Orders ring memory before a doorbell. A Release store does that for other processors; towards a
/// device, weakly ordered machines need a barrier of the outer shareable domain.
#[inline(always)]
fn device_write_barrier() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier instruction without operands.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags))
    }
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    compile_error!("say which barrier orders memory before a doorbell on this architecture");
}

// SAFETY: a doorbell is only ever accessed atomically, and its owner is Send + Sync; so are posted writes.
unsafe impl Send for DoorbellPage {}
// SAFETY: as above.
unsafe impl Sync for DoorbellPage {}
// SAFETY: as above.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl fmt::Debug for DoorbellPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorbellPage").field("len", &self.len).field("mapped", &self.is_mapped()).finish()
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}
