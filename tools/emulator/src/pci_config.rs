//! The configuration space of the function (PCI Express Base Specification, section 7.5; NVM
//! Express PCIe Transport 1.0, section 3.8).
//!
//! Knows bytes, and which of them may be written; must not know the controller.

use crate::msix::Layout;

const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
/// The BAR with the MSI-X table, and its number.
const BAR4: usize = 0x20;
const MSIX_BAR: u32 = 4;
const POWER_MANAGEMENT: usize = 0x40;
const EXPRESS: usize = 0x50;
const DEVICE_CONTROL: usize = EXPRESS + 8;
const MSIX: usize = 0x90;
/// Message Control of MSI-X.
const MSIX_CONTROL: usize = MSIX + 2;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const MSIX_ENABLE: u16 = 1 << 15;

/// Not assigned to anybody: nobody is to take this function for a product of theirs.
pub(crate) const VENDOR: u16 = 0x4b56;
const DEVICE: u16 = 0x0001;

/// What a write asks the function to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// Initiate Function Level Reset was set.
    Reset,
}

/// 4096 bytes, and a mask of the bits that the host may change.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSpace {
    bytes: Box<[u8; 4096]>,
    writable: Box<[u8; 4096]>,
}

impl ConfigSpace {
    /// As an operating system leaves it that has enumerated the bus and opened the function:
    /// BAR0 is assigned and decoded, the function is not a bus master yet.
    pub(crate) fn new(bar_len: u64, msix: Layout) -> ConfigSpace {
        let mut space = ConfigSpace { bytes: Box::new([0; 4096]), writable: Box::new([0; 4096]) };
        space.set(0x00, &VENDOR.to_le_bytes());
        space.set(0x02, &DEVICE.to_le_bytes());
        space.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        // Memory space, bus master, parity and SERR reporting, INTx disable.
        space.allow(COMMAND, &0x0546u16.to_le_bytes());
        // Capabilities List.
        space.set(0x06, &0x0010u16.to_le_bytes());
        // Class code: mass storage, non-volatile memory, NVM Express I/O controller.
        space.set(0x08, &[1, 0x02, 0x08, 0x01]);
        space.allow(0x0c, &[0xff]);
        space.set_bar(BAR0, 0xfe00_0000, bar_len);
        space.set_bar(BAR4, 0xfd00_0000, msix.bar_len());
        space.set(0x2c, &VENDOR.to_le_bytes());
        space.set(0x2e, &DEVICE.to_le_bytes());
        space.set(0x34, &[POWER_MANAGEMENT as u8]);
        space.allow(0x3c, &[0xff]);
        space.set(POWER_MANAGEMENT, &[0x01, EXPRESS as u8, 0x03, 0x00]);
        space.allow(POWER_MANAGEMENT + 4, &[0x03]);
        // PCI Express endpoint, version 2; Function Level Reset capable, one lane at 2.5 GT/s.
        space.set(EXPRESS, &[0x10, MSIX as u8, 0x02, 0x00]);
        space.set(EXPRESS + 4, &(1u32 << 28 | 1 << 15).to_le_bytes());
        space.allow(DEVICE_CONTROL, &0x7fffu16.to_le_bytes());
        space.set(EXPRESS + 12, &0x11u32.to_le_bytes());
        space.set(EXPRESS + 18, &0x11u16.to_le_bytes());
        // MSI-X: table and pending bits in a BAR of their own.
        space.set(MSIX, &[0x11, 0x00]);
        space.set(MSIX_CONTROL, &(msix.vectors - 1).to_le_bytes());
        space.allow(MSIX_CONTROL, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
        space.set(MSIX + 4, &MSIX_BAR.to_le_bytes());
        space.set(MSIX + 8, &(msix.pending_bits() as u32 | MSIX_BAR).to_le_bytes());
        space
    }

    /// The function may read and write memory.
    pub(crate) fn is_bus_master(&self) -> bool {
        self.word(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// BAR0 is decoded: registers can be reached.
    pub(crate) fn decodes_memory(&self) -> bool {
        self.word(COMMAND) & COMMAND_MEMORY != 0
    }

    /// MSI-X is enabled, and all vectors are masked at once.
    pub(crate) fn masks_interrupts(&self) -> bool {
        let both = MSIX_ENABLE | MSIX_FUNCTION_MASK;
        self.word(MSIX_CONTROL) & both == both
    }

    /// Reads; what lies beyond the end reads as all ones.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes the bits that can be written.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) -> Effect {
        let mut effect = Effect::None;
        for (at, byte) in (usize::from(offset)..).zip(data) {
            let Some(mask) = self.writable.get(at) else { continue };
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
            if at == DEVICE_CONTROL + 1 && u16::from(*byte) << 8 & DEVICE_CONTROL_FLR != 0 {
                effect = Effect::Reset;
            }
        }
        effect
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// A BAR of 64-bit memory. Bits below its size stay 0, by which software finds the size.
    fn set_bar(&mut self, at: usize, address: u64, len: u64) {
        self.set(at, &(address & !(len - 1) | 0b100).to_le_bytes());
        self.allow(at, &(!(len - 1)).to_le_bytes());
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(0x4000, Layout::new(64))
    }

    fn read32(space: &ConfigSpace, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn it_looks_like_an_nvme_function() {
        let space = space();
        assert_eq!(read32(&space, 0x08) >> 8, 0x01_0802);
        assert_eq!(read32(&space, BAR0 as u16) & 0xf, 0b100);
        assert!(space.decodes_memory() && !space.is_bus_master());
    }

    #[test]
    fn only_some_bits_can_be_written() {
        let mut space = space();
        assert_eq!(space.write(0, &[0xff; 4]), Effect::None);
        assert_eq!(read32(&space, 0) as u16, VENDOR);
        space.write(COMMAND as u16, &[0x06, 0]);
        assert!(space.is_bus_master());
        space.write(COMMAND as u16, &[0, 0]);
        assert!(!space.is_bus_master() && !space.decodes_memory());
        space.write(4095, &[1, 2, 3]);
        let mut beyond = [0; 3];
        space.read(4095, &mut beyond);
        assert_eq!(beyond, [0, 0xff, 0xff]);
    }

    #[test]
    fn the_size_of_the_bar_can_be_found() {
        let mut space = space();
        space.write(BAR0 as u16, &[0xff; 8]);
        assert_eq!(read32(&space, BAR0 as u16), 0xffff_c004);
        assert_eq!(read32(&space, BAR0 as u16 + 4), u32::MAX);
        space.write(BAR4 as u16, &[0xff; 8]);
        assert_eq!(read32(&space, BAR4 as u16), 0xffff_e004);
    }

    #[test]
    fn msix_is_the_last_capability() {
        let mut space = space();
        assert_eq!(read32(&space, MSIX as u16), 64 << 16 | 0x11);
        assert_eq!((read32(&space, MSIX as u16 + 4), read32(&space, MSIX as u16 + 8)), (4, 0x1004));
        space.write(MSIX_CONTROL as u16, &[0xff, 0xff]);
        assert!(space.masks_interrupts());
        assert_eq!(read32(&space, MSIX as u16), 0xc040_0011);
        space.write(MSIX_CONTROL as u16, &[0, 0x80]);
        assert!(!space.masks_interrupts());
    }

    #[test]
    fn a_function_level_reset_can_be_asked_for() {
        let mut space = space();
        let mut next = 0x34;
        loop {
            let mut capability = [0; 2];
            space.read(next, &mut capability[..1]);
            next = capability[0].into();
            space.read(next, &mut capability);
            if capability[0] == 0x10 {
                break;
            }
            next += 1;
        }
        assert_eq!(read32(&space, next + 4) >> 28 & 1, 1);
        assert_eq!(space.write(next + 8, &[0x00, 0x80]), Effect::Reset);
        assert_eq!(read32(&space, next + 8), 0);
    }
}
