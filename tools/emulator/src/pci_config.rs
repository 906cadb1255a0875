//! The configuration space of the function (PCI Express Base Specification, section 7.5; NVM
//! Express PCIe Transport 1.0, section 3.8).
//!
//! Knows bytes, and which of them may be written; must not know the controller.

const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
const POWER_MANAGEMENT: usize = 0x40;
const EXPRESS: usize = 0x50;
const DEVICE_CONTROL: usize = EXPRESS + 8;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;

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
    pub(crate) fn new(bar_len: u64) -> ConfigSpace {
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
        // BAR0: 64-bit memory. Bits below its size stay 0, by which software finds the size.
        let address = 0xfe00_0000u64 & !(bar_len - 1);
        space.set(BAR0, &(address | 0b100).to_le_bytes());
        space.allow(BAR0, &(!(bar_len - 1)).to_le_bytes());
        space.set(0x2c, &VENDOR.to_le_bytes());
        space.set(0x2e, &DEVICE.to_le_bytes());
        space.set(0x34, &[POWER_MANAGEMENT as u8]);
        space.allow(0x3c, &[0xff]);
        space.set(POWER_MANAGEMENT, &[0x01, EXPRESS as u8, 0x03, 0x00]);
        space.allow(POWER_MANAGEMENT + 4, &[0x03]);
        // PCI Express endpoint, version 2; Function Level Reset capable.
        space.set(EXPRESS, &[0x10, 0x00, 0x02, 0x00]);
        space.set(EXPRESS + 4, &(1u32 << 28).to_le_bytes());
        space.allow(DEVICE_CONTROL, &0x7fffu16.to_le_bytes());
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

    fn read32(space: &ConfigSpace, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn it_looks_like_an_nvme_function() {
        let space = ConfigSpace::new(0x4000);
        assert_eq!(read32(&space, 0x08) >> 8, 0x01_0802);
        assert_eq!(read32(&space, BAR0 as u16) & 0xf, 0b100);
        assert!(space.decodes_memory() && !space.is_bus_master());
    }

    #[test]
    fn only_some_bits_can_be_written() {
        let mut space = ConfigSpace::new(0x4000);
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
        let mut space = ConfigSpace::new(0x4000);
        space.write(BAR0 as u16, &[0xff; 8]);
        assert_eq!(read32(&space, BAR0 as u16), 0xffff_c004);
        assert_eq!(read32(&space, BAR0 as u16 + 4), u32::MAX);
    }

    #[test]
    fn a_function_level_reset_can_be_asked_for() {
        let mut space = ConfigSpace::new(0x4000);
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
