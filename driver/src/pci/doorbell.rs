//! Doorbells as mapped memory: the one part of a function that is touched per poll.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The mapped doorbells of a controller (NVM Express PCIe Transport, section 3.1.2), from offset 1000h of BAR0 on.
#[derive(Clone)]
pub struct DoorbellPage {
    base: NonNull<AtomicU32>,
    len: u64,
    owner: Arc<dyn Any + Send + Sync>,
}

impl DoorbellPage {
    /// Wraps a mapping that `owner` keeps alive.
    ///
    /// # Safety
    /// `base` is valid for atomic 32-bit access over `len` bytes and aligned to 4, as long as
    /// `owner` lives.
    pub unsafe fn new(base: NonNull<AtomicU32>, len: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        DoorbellPage { base, len, owner }
    }

    /// The doorbell at a byte offset into the page, or `None` where the page ends before it.
    pub fn doorbell(&self, offset: u64) -> Option<Doorbell> {
        if !offset.is_multiple_of(4) || offset.checked_add(4)? > self.len {
            return None;
        }
        // SAFETY: offset + 4 is within the mapping, as checked.
        let cell = unsafe { self.base.byte_add(offset as usize) };
        Some(Doorbell { cell, _owner: Arc::clone(&self.owner) })
    }
}

/// One doorbell register. Keeps its mapping alive.
pub struct Doorbell {
    cell: NonNull<AtomicU32>,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Doorbell {
    /// Tells the controller the new tail or head. Everything written to the ring before is visible
    /// to the controller when it sees the value.
    #[inline]
    pub fn ring(&self, value: u32) {
        device_write_barrier();
        // SAFETY: the cell lies in the mapping that `_owner` keeps alive (DoorbellPage::new).
        unsafe { self.cell.as_ref() }.store(value, Ordering::Release);
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

// SAFETY: a doorbell is only ever accessed atomically, and its owner is Send + Sync.
unsafe impl Send for DoorbellPage {}
// SAFETY: as above.
unsafe impl Sync for DoorbellPage {}
// SAFETY: as above.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl fmt::Debug for DoorbellPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorbellPage").field("len", &self.len).finish_non_exhaustive()
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}
