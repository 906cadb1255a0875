//! The next call that a layer has asked for: one at a time, whatever number of requests it waits for.
//!
//! Knows a time; must not know what is due then.

use std::time::Duration;

use super::Cx;

/// When a layer is to be called, in nanoseconds, unless it has not asked for that.
#[derive(Debug, Default)]
pub(super) struct Call(Option<u64>);

impl Call {
    /// Asks for a call at a time, unless there will be one before.
    pub(super) fn ask(&mut self, cx: &mut Cx<'_>, due: u64) {
        if self.0.is_none() {
            self.0 = Some(due);
            cx.call_at(Duration::from_nanos(due));
        }
    }

    /// Forgets a call whose time has come.
    pub(super) fn forget(&mut self, now: u64) {
        self.0 = self.0.filter(|call| *call > now);
    }
}
