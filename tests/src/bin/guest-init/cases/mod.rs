//! The cases, by name. Each is a function that leaves the machine such that the next one can run.

mod commands;
mod gathered;
mod io;
mod kernel;
mod layers;
mod legs;
mod perf;
mod recovery;
mod served;
mod setup;

use kiovec_tests::machine::{
    Controller, DISK, LARGE_TRANSFERS, LEG, Machine, OTHER_LEG, SERVED, SMALL_TRANSFERS,
};

use crate::Verdict;

/// A case.
pub type Case = fn(&'static Machine) -> Verdict;

const CASES: &[(&str, Case)] = &[
    ("modules-loaded", kernel::modules_loaded),
    ("kernel-writes", io::kernel_writes),
    ("kernel-reads-back", io::kernel_reads_back),
    ("kiovec-reads-kernels-prp", io::kiovec_reads_prp),
    ("kiovec-reads-kernels-sgl", io::kiovec_reads_sgl),
    ("kiovec-writes-prp", io::kiovec_writes_prp),
    ("kiovec-writes-sgl", io::kiovec_writes_sgl),
    ("kernel-reads-kiovecs", io::kernel_reads_kiovecs),
    ("no-dma-faults", kernel::no_dma_faults),
    ("sysfs-bind", kernel::sysfs_bind),
    ("sysfs-restore", kernel::sysfs_restore),
    ("status", setup::status),
    ("status-and-bind-without-iommu", setup::no_iommu),
    ("reserve", setup::reserve),
    ("setup-refuses-wrong-addresses", setup::wrong_addresses_are_refused),
    ("setup-refuses-swap", setup::swap_is_refused),
    ("setup-refuses-mount", setup::mount_is_refused),
    ("setup-refuses-device-mapper", setup::device_mapper_is_refused),
    ("setup-refuses-open-device", setup::open_device_is_refused),
    ("bind", setup::bind_disks),
    ("bind-for-user", setup::user_gets_the_group),
    ("restore", setup::restore),
    ("list-kernels", commands::list_kernels),
    ("list-bound", commands::list_bound),
    ("identify", commands::identify_disks),
    ("kiovec-refuses-kernels-device", commands::kernels_device_is_refused),
    ("kiovec-refuses-wrong-addresses", commands::wrong_addresses_are_refused),
    ("group-must-be-viable", commands::group_must_be_viable),
    ("unprivileged-user", commands::unprivileged_user),
    ("no-interrupt-remapping", commands::no_interrupt_remapping),
    ("kiovec-without-iommu", commands::no_iommu),
    ("perf-reads", perf::reads),
    ("perf-verifies", perf::verifies),
    ("perf-verifies-on-two-cores", perf::verifies_on_two_cores),
    ("perf-needs-consent", perf::consent_is_needed),
    ("perf-refuses-wrong-workloads", perf::wrong_workloads_are_refused),
    ("perf-without-hugepages", perf::no_hugepages),
    ("perf-interrupted", perf::interrupted_run_reports),
    ("perf-killed", perf::killed_run_leaves_it_usable),
    ("kiovec-duplicates-prp", legs::duplicates_prp),
    ("kiovec-duplicates-sgl", legs::duplicates_sgl),
    ("power-lost-and-back", legs::power_is_lost_and_back),
    ("removed-in-use", legs::removed_in_use),
    ("mirror-writes", layers::mirror_writes),
    ("mirror-verifies", layers::mirror_verifies),
    ("mirror-loses-a-leg", layers::mirror_loses_a_leg),
    ("stripe-as-the-kernels", layers::stripe_as_the_kernels),
    ("stripe-verifies", layers::stripe_verifies),
    ("stripe-loses-a-leg", layers::stripe_loses_a_leg),
    ("merges", legs::merges),
    ("gathered", gathered::gathered),
    ("defects", legs::defects),
    ("defects-fail-alone", legs::defects_fail_alone),
    ("removed-while-verifying", legs::removed_while_verifying),
    ("unplugged-while-verifying", legs::unplugged_while_verifying),
    ("defects-under-merged", legs::defects_under_merged),
    ("atomic-writes", legs::atomic_writes),
    ("killed-again-and-again", recovery::killed_again_and_again),
    ("reset-under-load", recovery::reset_under_load),
    ("shadow-doorbells", recovery::shadow_doorbells),
    ("answers-late", recovery::answers_late),
    ("contended", recovery::contended),
    ("dead-bar", legs::dead_bar),
    ("dead-bar-under-writes", recovery::dead_bar_under_writes),
    ("served-as-described", served::as_described),
    ("many-at-once", served::many_at_once),
    ("deallocates", served::deallocates),
    ("writes-zeroes", served::writes_zeroes),
    ("controller-reset", served::controller_reset),
    ("driver-leaves-and-returns", served::driver_leaves_and_returns),
    ("driver-returns-after-reboot", served::driver_leaves_and_returns),
    ("kernel-writes-again", io::kernel_writes),
    ("kernel-reads-after-reboot", io::kernel_reads_back),
    ("kernel-writes-after-reboot", io::kernel_writes),
    ("no-nvme-complaints", served::no_complaints),
    ("no-nvme-complaints-after-reboot", served::no_complaints),
    ("busy-to-the-end", served::busy_to_the_end),
];

/// The controllers of the machine that kernel and kiovec write for each other.
fn written_disks(machine: &Machine) -> impl Iterator<Item = &'static Controller> {
    let written = [&DISK, &SMALL_TRANSFERS, &LARGE_TRANSFERS, &LEG, &OTHER_LEG, &SERVED];
    machine.controllers.iter().copied().filter(move |c| written.iter().any(|w| w.serial == c.serial))
}

/// The case of that name.
pub fn find(name: &str) -> Option<Case> {
    CASES.iter().find(|(known, _)| *known == name).map(|(_, case)| *case)
}
