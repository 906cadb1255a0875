//! Controllers that need to be handled otherwise than the specification says. Facts, by PCI ID, as
//! the Linux kernel's NVMe driver knows them.

/// What is peculiar about a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// Needs a pause between a change of CC.EN and the first look at CSTS.RDY.
    DelayBeforeReady,
    /// Reads PRP lists wrongly that are not aligned to 512 bytes.
    AlignedLists,
}

/// How long [`Quirk::DelayBeforeReady`] waits.
pub(super) const DELAY_BEFORE_READY_MILLIS: u64 = 2300;

const TABLE: &[(u16, u16, Quirk)] = &[
    // HGST Ultrastar SN100.
    (0x1c58, 0x0003, Quirk::DelayBeforeReady),
    // WDC Ultrastar SN200.
    (0x1c58, 0x0023, Quirk::DelayBeforeReady),
    // Memblaze PBlaze4.
    (0x1c5f, 0x0540, Quirk::DelayBeforeReady),
    // Samsung PM1725 and PM1725a.
    (0x144d, 0xa821, Quirk::DelayBeforeReady),
    (0x144d, 0xa822, Quirk::DelayBeforeReady),
    // O2 Micro, in the 64 GB Steam Deck.
    (0x1217, 0x8760, Quirk::AlignedLists),
];

/// The quirks of one controller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quirks {
    vendor: u16,
    device: u16,
}

impl Quirks {
    pub(super) fn of(vendor: u16, device: u16) -> Quirks {
        Quirks { vendor, device }
    }

    pub(super) fn has(self, quirk: Quirk) -> bool {
        TABLE.contains(&(self.vendor, self.device, quirk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quirks_go_by_vendor_and_device() {
        assert!(Quirks::of(0x1217, 0x8760).has(Quirk::AlignedLists));
        assert!(!Quirks::of(0x1217, 0x8760).has(Quirk::DelayBeforeReady));
        assert!(!Quirks::of(0x144d, 0x8760).has(Quirk::AlignedLists));
    }
}
