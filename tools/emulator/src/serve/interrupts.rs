//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS: how a client sets interrupts up.
//!
//! Knows messages and vectors; must not know what raises them.

use std::os::fd::{AsRawFd, OwnedFd};

use kiovec::pci::vfio_user::message::{IRQ_MSIX, IrqInfo, PCI_IRQS, SetIrqs};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::msix::Interrupts;

/// `VFIO_IRQ_INFO_EVENTFD` and `VFIO_IRQ_INFO_MASKABLE`.
const INFO_EVENTFD: u32 = 1 << 0;
const INFO_MASKABLE: u32 = 1 << 1;

/// `VFIO_IRQ_SET_*`: what the data are, and what is to be done.
const DATA_NONE: u32 = 1 << 0;
const DATA_BOOL: u32 = 1 << 1;
const DATA_EVENTFD: u32 = 1 << 2;
const DATA: u32 = DATA_NONE | DATA_BOOL | DATA_EVENTFD;
const MASK: u32 = 1 << 3;
const UNMASK: u32 = 1 << 4;
const TRIGGER: u32 = 1 << 5;

/// There is MSI-X and nothing else.
fn vectors(interrupts: &Interrupts, index: u32) -> u32 {
    if index == IRQ_MSIX { interrupts.layout().vectors.into() } else { 0 }
}

pub(super) fn info(interrupts: &Interrupts, asked: &IrqInfo) -> Result<IrqInfo, Errno> {
    if asked.index >= PCI_IRQS || (asked.argsz as usize) < size_of::<IrqInfo>() {
        return Err(Errno::INVAL);
    }
    let count = vectors(interrupts, asked.index);
    let flags = if count > 0 { INFO_EVENTFD | INFO_MASKABLE } else { 0 };
    Ok(IrqInfo { argsz: size_of::<IrqInfo>() as u32, flags, index: asked.index, count })
}

/// Does what a message asks for, whose data and files are these. All of it, or nothing and EINVAL.
pub(super) fn set(
    interrupts: &mut Interrupts,
    set: &SetIrqs,
    data: &[u8],
    files: Vec<OwnedFd>,
) -> Result<(), Errno> {
    let there = vectors(interrupts, set.index);
    let end = set.start.checked_add(set.count).filter(|end| *end <= there);
    if set.index >= PCI_IRQS || (set.argsz as usize) < size_of::<SetIrqs>() {
        return Err(Errno::INVAL);
    }
    let range = set.start..end.ok_or(Errno::INVAL)?;
    match (set.flags & DATA, set.flags & !DATA) {
        // No vectors and no data: all are taken down.
        (DATA_NONE, TRIGGER) if range.is_empty() => {
            (0..there).for_each(|vector| _ = interrupts.set_eventfd(vector, None));
        }
        (DATA_EVENTFD, TRIGGER) => return set_eventfds(interrupts, set, files),
        (kind @ (DATA_NONE | DATA_BOOL), action @ (MASK | UNMASK | TRIGGER)) => {
            let count = set.count as usize;
            let chosen = match kind {
                DATA_NONE => vec![1; count],
                _ => data.get(..count).ok_or(Errno::INVAL)?.to_vec(),
            };
            for (vector, _) in range.zip(chosen).filter(|(_, chosen)| *chosen != 0) {
                match action {
                    TRIGGER => interrupts.raise(vector as u16),
                    _ => _ = interrupts.set_masked(vector, action == MASK),
                }
            }
        }
        _ => return Err(Errno::INVAL),
    }
    Ok(())
}

/// A file for each vector, or none for any of them: then they are taken down.
fn set_eventfds(interrupts: &mut Interrupts, set: &SetIrqs, files: Vec<OwnedFd>) -> Result<(), Errno> {
    let count = set.count as usize;
    if files.is_empty() {
        (set.start..set.start + set.count).for_each(|vector| _ = interrupts.set_eventfd(vector, None));
        return Ok(());
    }
    if files.len() != count {
        return Err(Errno::INVAL);
    }
    files.iter().try_for_each(prepare)?;
    for (vector, file) in (set.start..).zip(files) {
        interrupts.set_eventfd(vector, Some(file));
    }
    Ok(())
}

/// An eventfd, and nothing else, whose writes do not wait for its reader as long as its other owner leaves it so.
fn prepare(file: &OwnedFd) -> Result<(), Errno> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let target = rustix::fs::readlink(link, Vec::new())?;
    if target.as_bytes() != b"anon_inode:[eventfd]" {
        return Err(Errno::INVAL);
    }
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)
}
