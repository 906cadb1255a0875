//! Shadow doorbells (Base 2.0, section 5.8): memory in which a controller looks for tails and heads, and where it
//! says when it wants its registers to be written as well. Emulated controllers have them, for which a write to a
//! register is dear.
//!
//! Knows what is written where, and when a register has to be written; must not know what a tail or a head is, nor
//! how a controller is told of the memory. The controller may write anything there: what comes of it is a register
//! that is written needlessly, or not written, which shows as commands that are overdue.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use crate::Result;
use crate::defects::{self, Defect};
use crate::memory::{Access, DmaSpace, PAGE_SIZE, SharedWords};

/// The two buffers of a controller, a memory page each.
#[derive(Debug)]
pub(crate) struct ShadowDoorbells {
    shadows: SharedWords,
    events: SharedWords,
    /// The controller was told of them, and has not forgotten it.
    armed: AtomicBool,
}

impl ShadowDoorbells {
    /// Buffers that no controller knows yet.
    pub(crate) fn new(space: &DmaSpace) -> Result<Arc<ShadowDoorbells>> {
        // Some controllers also write to the shadows: what their registers say, when they are told of the buffers.
        let page = || space.segment(PAGE_SIZE as usize, PAGE_SIZE, Access::ReadWrite).map(SharedWords::new);
        Ok(Arc::new(ShadowDoorbells { shadows: page()?, events: page()?, armed: AtomicBool::new(false) }))
    }

    /// The addresses of the shadows and of the EventIdx, both full of zeros: the controller has forgotten them.
    pub(crate) fn forgotten(&self) -> (u64, u64) {
        self.set_armed(false);
        self.shadows.clear();
        self.events.clear();
        fence(Ordering::SeqCst);
        (self.shadows.iova(), self.events.iova())
    }

    /// The controller was told of them, or not. Without that, each doorbell is written.
    pub(crate) fn set_armed(&self, armed: bool) {
        self.armed.store(armed, Ordering::Release);
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    /// The shadow of the doorbell at a byte offset, of a queue that the controller does not know yet. None if that
    /// is beyond the page.
    pub(crate) fn shadow(self: &Arc<Self>, offset: u64) -> Option<Shadow> {
        let at = usize::try_from(offset / 4).ok().filter(|at| *at < self.shadows.len())?;
        let shadow = Shadow { of: Arc::clone(self), at, told: AtomicU32::new(0) };
        shadow.restart();
        Some(shadow)
    }
}

/// The shadow of one doorbell.
#[derive(Debug)]
pub(crate) struct Shadow {
    of: Arc<ShadowDoorbells>,
    at: usize,
    /// What was written last. What is there now may be the controller's.
    told: AtomicU32,
}

impl Shadow {
    /// Tells the new tail or head. Whether the doorbell is to be written too.
    pub(crate) fn tell(&self, new: u32) -> bool {
        let ShadowDoorbells { shadows, events, .. } = &*self.of;
        let old = self.told.load(Ordering::Relaxed);
        self.told.store(new, Ordering::Relaxed);
        shadows[self.at].store(new, Ordering::Release);
        // The controller writes EventIdx and then looks at the shadow once more; here it is the other way round. One
        // of us sees what the other has written only if the store is there before the load: not so on any machine
        // without a full fence, x86 included.
        fence(Ordering::SeqCst);
        let event = events[self.at].load(Ordering::Relaxed);
        if defects::is(Defect::ForgetDoorbell) && new % 8 == 5 {
            return false;
        }
        is_passed(event, old, new) || !self.of.is_armed()
    }

    /// As of a queue that is created: an EventIdx of its predecessor's would keep its first commands from being seen.
    pub(crate) fn restart(&self) {
        self.told.store(0, Ordering::Relaxed);
        self.of.shadows[self.at].store(0, Ordering::Relaxed);
        self.of.events[self.at].store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// Whether the controller wants to be told by its register: going on from `old` to `new` leaves the place that EventIdx
/// names behind. All of them are 16 bits wide, and places beyond the end of a queue never come.
fn is_passed(event: u32, old: u32, new: u32) -> bool {
    let [event, old, new] = [event, old, new].map(|place| place as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against places that are walked one by one, for all queues of up to 16 entries: the register is written if the
    /// place that EventIdx names is one of those that are left.
    #[test]
    fn a_doorbell_is_written_when_its_event_is_passed() {
        for size in 2..=16u32 {
            for old in 0..size {
                for steps in 0..size {
                    let new = (old + steps) % size;
                    let left: Vec<u32> = (0..steps).map(|step| (old + step) % size).collect();
                    for event in 0..size {
                        let expected = left.contains(&event);
                        assert_eq!(is_passed(event, old, new), expected, "{size}: {old} to {new}, {event}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_queue_goes_round() {
        assert!(is_passed(65535, 65535, 0));
        assert!(!is_passed(65534, 65535, 0));
        assert!(is_passed(0, 65535, 1) && !is_passed(1, 65535, 1));
    }

    #[test]
    fn a_doorbell_is_written_if_nobody_looks_at_the_shadow() {
        let space = DmaSpace::new().unwrap();
        let shadows = ShadowDoorbells::new(&space).unwrap();
        let shadow = shadows.shadow(64).unwrap();
        // The controller asks for nothing.
        shadows.events[16].store(9, Ordering::Relaxed);
        assert!(shadow.tell(1));
        shadows.set_armed(true);
        assert!(!shadow.tell(2));
        assert_eq!(shadows.shadows[16].load(Ordering::Relaxed), 2);
        assert!(shadow.tell(10), "9 is passed");
        let again = shadows.shadow(64).unwrap();
        assert_eq!(shadows.shadows[16].load(Ordering::Relaxed), 0);
        assert!(again.tell(1), "the first command of a queue");
    }

    #[test]
    fn a_page_has_so_many_shadows() {
        let shadows = ShadowDoorbells::new(&DmaSpace::new().unwrap()).unwrap();
        assert!(shadows.shadow(4092).is_some());
        assert!(shadows.shadow(4096).is_none() && shadows.shadow(u64::MAX).is_none());
    }
}
