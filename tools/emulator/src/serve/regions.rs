//! Regions: what there is, and reading and writing it without a mapping.
//!
//! Knows how offsets and bytes of a region become accesses of the controller; must not know sockets.

use kiovec::pci::vfio_user::SparseArea;
use kiovec::pci::vfio_user::message::{
    PCI_REGIONS, REGION_BAR0, REGION_CONFIG, REGION_MMAP, REGION_READABLE, REGION_WRITEABLE, RegionInfo,
};
use kiovec::spec::registers;
use rustix::io::Errno;

use crate::controller::Controller;

/// The BAR with the MSI-X table.
const REGION_MSIX: u32 = 4;
const CONFIG_LEN: u64 = 4096;

/// Bytes of a region; 0 for one that is not there.
fn len(controller: &mut Controller, region: u32) -> u64 {
    match region {
        REGION_BAR0 => controller.bar_len(),
        REGION_MSIX => controller.interrupts().layout().bar_len(),
        REGION_CONFIG => CONFIG_LEN,
        _ => 0,
    }
}

/// The payload of a reply to DEVICE_GET_REGION_INFO, and whether the file of the doorbells goes with it.
/// Where the client has no room for capabilities, it learns how much they need.
pub(super) fn info(controller: &mut Controller, asked: &RegionInfo) -> Result<(Vec<u8>, bool), Errno> {
    if asked.index >= PCI_REGIONS || (asked.argsz as usize) < size_of::<RegionInfo>() {
        return Err(Errno::INVAL);
    }
    let size = len(controller, asked.index);
    let flags = match (size, asked.index) {
        (0, _) => 0,
        (_, REGION_BAR0) => REGION_READABLE | REGION_WRITEABLE | REGION_MMAP,
        _ => REGION_READABLE | REGION_WRITEABLE,
    };
    let info = RegionInfo { argsz: 0, flags, index: asked.index, cap_offset: 0, size, offset: 0 };
    let doorbells = SparseArea { offset: registers::DOORBELLS, size: size - registers::DOORBELLS.min(size) };
    let areas = if asked.index == REGION_BAR0 { &[doorbells][..] } else { &[] };
    let mut payload = SparseArea::region_info_payload(info, areas);
    let complete = payload.len() <= asked.argsz as usize;
    if !complete {
        payload.truncate(size_of::<RegionInfo>());
    }
    Ok((payload, complete && !areas.is_empty()))
}

/// Checks that an access lies within its region.
pub(super) fn check(controller: &mut Controller, region: u32, offset: u64, count: u64) -> Result<(), Errno> {
    let end = offset.checked_add(count).ok_or(Errno::INVAL)?;
    let within = count > 0 && end <= len(controller, region);
    if within { Ok(()) } else { Err(Errno::INVAL) }
}

/// Reads any bytes of a region.
pub(super) fn read(
    controller: &mut Controller,
    region: u32,
    offset: u64,
    count: u32,
) -> Result<Vec<u8>, Errno> {
    check(controller, region, offset, count.into())?;
    let mut data = vec![0; count as usize];
    if region == REGION_CONFIG {
        controller.config_read(offset as u16, &mut data);
        return Ok(data);
    }
    // All dwords that the bytes are in.
    let first = offset & !3;
    let words = (first..offset + u64::from(count)).step_by(4);
    let bytes = words.flat_map(|at| read32(controller, region, at).to_le_bytes());
    for (byte, register) in data.iter_mut().zip(bytes.skip((offset - first) as usize)) {
        *byte = register;
    }
    Ok(data)
}

/// Writes a region: configuration space in any bytes, registers in whole dwords.
pub(super) fn write(controller: &mut Controller, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
    check(controller, region, offset, data.len() as u64)?;
    if region == REGION_CONFIG {
        controller.config_write(offset as u16, data);
        return Ok(());
    }
    let (words, []) = data.as_chunks::<4>() else { return Err(Errno::INVAL) };
    if !offset.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    for (at, word) in (offset..).step_by(4).zip(words) {
        let value = u32::from_le_bytes(*word);
        match region {
            REGION_BAR0 => controller.write32(at, value),
            _ => controller.interrupts().write32(at, value),
        }
    }
    Ok(())
}

fn read32(controller: &mut Controller, region: u32, offset: u64) -> u32 {
    match region {
        REGION_BAR0 => controller.read32(offset),
        _ => controller.interrupts().read32(offset),
    }
}
