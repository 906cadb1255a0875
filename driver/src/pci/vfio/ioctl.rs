//! The VFIO calls that this driver makes, each as a function that returns the kernel's errors.
//!
//! Knows the kernel's ABI (linux/vfio.h); must not know why a call is made.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio as abi;

const fn request(number: u64) -> u64 {
    ((abi::VFIO_TYPE as u64) << 8) | (100 + number)
}

const GET_API_VERSION: u64 = request(0);
const CHECK_EXTENSION: u64 = request(1);
const SET_IOMMU: u64 = request(2);
const GROUP_GET_STATUS: u64 = request(3);
const GROUP_SET_CONTAINER: u64 = request(4);
const GROUP_GET_DEVICE_FD: u64 = request(6);
const DEVICE_GET_INFO: u64 = request(7);
const DEVICE_GET_REGION_INFO: u64 = request(8);
const DEVICE_GET_IRQ_INFO: u64 = request(9);
const DEVICE_SET_IRQS: u64 = request(10);
const DEVICE_RESET: u64 = request(11);
const IOMMU_GET_INFO: u64 = request(12);
const IOMMU_MAP_DMA: u64 = request(13);
const IOMMU_UNMAP_DMA: u64 = request(14);

/// Larger than any info the kernel returns; a larger answer is an error, not a loop.
const INFO_LIMIT: usize = 64 * 1024;

/// # Safety
/// `argument` is what `request` of the VFIO ABI takes.
unsafe fn call(fd: impl AsFd, request: u64, argument: usize) -> io::Result<i32> {
    // SAFETY: the caller vouches for the argument.
    match unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

pub(super) fn api_version(container: impl AsFd) -> io::Result<i32> {
    // SAFETY: takes no argument.
    unsafe { call(container, GET_API_VERSION, 0) }
}

pub(super) fn has_type1v2(container: impl AsFd) -> io::Result<bool> {
    // SAFETY: takes a number.
    Ok(unsafe { call(container, CHECK_EXTENSION, abi::VFIO_TYPE1v2_IOMMU as usize)? } > 0)
}

pub(super) fn set_type1v2(container: impl AsFd) -> io::Result<()> {
    // SAFETY: takes a number.
    unsafe { call(container, SET_IOMMU, abi::VFIO_TYPE1v2_IOMMU as usize) }.map(drop)
}

pub(super) fn group_is_viable(group: impl AsFd) -> io::Result<bool> {
    let mut status = abi::vfio_group_status { argsz: size_of::<abi::vfio_group_status>() as u32, flags: 0 };
    // SAFETY: takes a pointer to this structure, whose size it states.
    unsafe { call(group, GROUP_GET_STATUS, (&raw mut status).addr())? };
    Ok(status.flags & abi::VFIO_GROUP_FLAGS_VIABLE != 0)
}

pub(super) fn set_container(group: impl AsFd, container: impl AsFd) -> io::Result<()> {
    let fd: i32 = container.as_fd().as_raw_fd();
    // SAFETY: takes a pointer to a file descriptor.
    unsafe { call(group, GROUP_SET_CONTAINER, (&raw const fd).addr()) }.map(drop)
}

pub(super) fn device(group: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: takes a NUL-terminated string.
    let fd = unsafe { call(group, GROUP_GET_DEVICE_FD, name.as_ptr().addr())? };
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn device_info(device: impl AsFd) -> io::Result<abi::vfio_device_info> {
    let mut info =
        abi::vfio_device_info { argsz: size_of::<abi::vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: takes a pointer to this structure, whose size it states.
    unsafe { call(device, DEVICE_GET_INFO, (&raw mut info).addr())? };
    Ok(info)
}

pub(super) fn irq_info(device: impl AsFd, index: u32) -> io::Result<abi::vfio_irq_info> {
    let argsz = size_of::<abi::vfio_irq_info>() as u32;
    let mut info = abi::vfio_irq_info { argsz, index, ..Default::default() };
    // SAFETY: takes a pointer to this structure, whose size it states.
    unsafe { call(device, DEVICE_GET_IRQ_INFO, (&raw mut info).addr())? };
    Ok(info)
}

/// Has the first interrupt of a kind written to an eventfd, which the kernel keeps open until the device is closed.
pub(super) fn set_trigger(device: impl AsFd, index: u32, eventfd: impl AsFd) -> io::Result<()> {
    // struct vfio_irq_set: argsz, flags, index, start, count; one file descriptor as its data.
    let fd = eventfd.as_fd().as_raw_fd() as u32;
    let flags = abi::VFIO_IRQ_SET_DATA_EVENTFD | abi::VFIO_IRQ_SET_ACTION_TRIGGER;
    let set = [size_of::<[u32; 6]>() as u32, flags, index, 0, 1, fd];
    // SAFETY: takes a pointer to this structure, whose size it states.
    unsafe { call(device, DEVICE_SET_IRQS, (&raw const set).addr()) }.map(drop)
}

pub(super) fn reset(device: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { call(device, DEVICE_RESET, 0) }.map(drop)
}

/// The region's information with its capabilities, as the kernel wrote it.
pub(super) fn region_info(device: impl AsFd, index: u32) -> io::Result<Vec<u32>> {
    // struct vfio_region_info: argsz, flags, index, …
    info(device, DEVICE_GET_REGION_INFO, size_of::<abi::vfio_region_info>(), index)
}

/// The container's IOMMU information with its capabilities, as the kernel wrote it.
pub(super) fn iommu_info(container: impl AsFd) -> io::Result<Vec<u32>> {
    info(container, IOMMU_GET_INFO, size_of::<abi::vfio_iommu_type1_info>(), 0)
}

/// Asks twice: the first answer says how long the whole one is. `third` is what the third word of
/// the structure says on the way in.
fn info(fd: impl AsFd, request: u64, least: usize, third: u32) -> io::Result<Vec<u32>> {
    let mut len = least;
    for _ in 0..3 {
        let mut words = vec![0u32; len.div_ceil(4)];
        words[0] = (words.len() * 4) as u32;
        words[2] = third;
        // SAFETY: takes a pointer to an info structure whose first word says how much room there is.
        unsafe { call(fd.as_fd(), request, words.as_mut_ptr().addr())? };
        let whole = words[0] as usize;
        if whole <= words.len() * 4 {
            return Ok(words);
        }
        if whole > INFO_LIMIT {
            break;
        }
        len = whole;
    }
    Err(io::Error::other("VFIO information keeps growing"))
}

pub(super) fn map_dma(container: impl AsFd, iova: u64, memory: u64, len: u64, flags: u32) -> io::Result<()> {
    let argsz = size_of::<abi::vfio_iommu_type1_dma_map>() as u32;
    let map = abi::vfio_iommu_type1_dma_map { argsz, flags, vaddr: memory, iova, size: len };
    // SAFETY: takes a pointer to this structure. That the memory outlives the mapping is what
    // `memory::Mapping` promises.
    unsafe { call(container, IOMMU_MAP_DMA, (&raw const map).addr()) }.map(drop)
}

/// Unmaps, and checks that exactly this range was mapped.
pub(super) fn unmap_dma(container: impl AsFd, iova: u64, len: u64) -> io::Result<()> {
    let argsz = size_of::<abi::vfio_iommu_type1_dma_unmap>() as u32;
    let mut unmap = abi::vfio_iommu_type1_dma_unmap { argsz, iova, size: len, ..Default::default() };
    // SAFETY: takes a pointer to this structure, without the optional bitmap that follows it.
    unsafe { call(container, IOMMU_UNMAP_DMA, (&raw mut unmap).addr())? };
    match unmap.size == len {
        true => Ok(()),
        false => Err(io::Error::other(format!("{} of {len} bytes were mapped", unmap.size))),
    }
}
