//! Commands that the host has told of and that are not over: what the controller may still do to memory.
//!
//! For whoever judges a driver, which must not give memory to anybody else while this says that it may be
//! touched. Knows where commands are before they are completed; must not know when they will be.

use std::ops::Range;

use kiovec::spec::Command;

use super::Controller;

impl Controller {
    /// How many I/O commands are in submission queues, or fetched and not completed. None if it is off the bus:
    /// then nothing becomes of them.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding_commands().len()
    }

    /// Whether one of them moves data to or from memory within a range of I/O virtual addresses.
    pub(crate) fn may_touch(&mut self, memory: &Range<u64>) -> bool {
        let commands = self.outstanding_commands();
        let Controller { nvm, dma, .. } = self;
        // What was carried out moves nothing any more.
        commands.iter().filter(|(_, done)| !done).any(|(command, _)| {
            nvm.runs(dma, command).iter().any(|run| {
                let meets = |iova: u64| iova < memory.end && memory.start < iova.saturating_add(run.len);
                run.iova.is_some_and(meets)
            })
        })
    }

    /// And whether each was carried out.
    fn outstanding_commands(&self) -> Vec<(Command, bool)> {
        if self.gone || !self.pci.is_bus_master() {
            return Vec::new();
        }
        let mut commands: Vec<_> = self.pending_commands().collect();
        for qid in &self.active {
            if let Some(sq) = &self.sqs[usize::from(*qid)] {
                let tail = self.told_tail(*qid);
                commands.extend(sq.unfetched(&self.dma, tail).into_iter().map(|command| (command, false)));
            }
        }
        commands
    }
}
