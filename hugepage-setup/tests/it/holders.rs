//! Who uses a function, and that it is not taken from them.

use hugepage_setup::{BindOptions, Bound, Error, Holder, Result};

use crate::fake::{Device, FIRST, Fake, SECOND, bdf, machine, machine_with, nvme};

/// nvme0n1 with two partitions.
fn partitioned() -> Fake {
    machine_with(vec![
        Device { partitions: vec!["nvme0n1p1", "nvme0n1p2"], ..nvme(FIRST, 12, "nvme0", "nvme0n1") },
        nvme(SECOND, 13, "nvme1", "nvme1n1"),
    ])
}

fn bind(fake: &mut Fake, force: bool) -> Result<Bound> {
    fake.run(|machine| machine.bind(bdf(FIRST), &BindOptions { user: None, force }))
}

/// Bind and unbind refuse with this message and change nothing; `--force` binds.
fn is_refused(fake: &mut Fake, message: &str) {
    let before = fake.snapshot();
    assert_eq!(bind(fake, false).unwrap_err().to_string(), message);
    let unbound = fake.run(|machine| machine.unbind(bdf(FIRST), false));
    assert_eq!(unbound.unwrap_err().to_string(), message);
    assert_eq!(fake.log, [""; 0]);
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
    bind(fake, true).unwrap();
    assert_eq!(fake.driver_of(FIRST).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_mounted_partition() {
    let mut fake = partitioned();
    fake.mount(r"40 22 259:2 / /home rw - ext4 /dev/root rw");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1p2 is mounted on /home; unmount it first, or use --force",
    );
}

#[test]
fn a_mounted_whole_disk_with_a_blank_in_the_path() {
    let mut fake = partitioned();
    fake.mount(r"40 22 259:0 / /mnt/my\040disk rw - ext4 /dev/nvme0n1 rw");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1 is mounted on /mnt/my disk; unmount it first, or use --force",
    );
}

#[test]
fn a_mount_that_only_its_source_names() {
    let mut fake = partitioned();
    fake.mount("40 22 0:45 / /data rw - btrfs /dev/nvme0n1p1 rw");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1p1 is mounted on /data; unmount it first, or use --force",
    );
}

#[test]
fn a_mount_by_a_link_in_dev() {
    let mut fake = partitioned();
    fake.link("/dev/disk/by-label/data", "../../nvme0n1p1");
    fake.mount("40 22 0:45 / /data rw - btrfs /dev/disk/by-label/data rw");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1p1 is mounted on /data; unmount it first, or use --force",
    );
}

#[test]
fn a_second_device_of_a_mounted_btrfs() {
    let mut fake = partitioned();
    fake.mount("40 22 0:45 / /data rw - btrfs /dev/sda1 rw");
    fake.file("/sys/fs/btrfs/features/raid1", "0\n");
    for member in ["sda1", "nvme0n1p2"] {
        let target = format!("../../../../class/block/{member}");
        fake.link(&format!("/sys/fs/btrfs/6a7b/devices/{member}"), target);
    }
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1p2 is mounted on /data; unmount it first, or use --force",
    );
}

#[test]
fn a_btrfs_that_is_mounted_where_we_cannot_see_it() {
    let fake = partitioned();
    fake.link("/sys/fs/btrfs/6a7b/devices/nvme0n1p2", "../../../../class/block/nvme0n1p2");
    assert_eq!(fake.nvme(FIRST).users, [Holder::Claimed { device: "nvme0n1p2".to_owned() }]);
}

#[test]
fn swap() {
    let mut fake = partitioned();
    fake.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1p1 is swapped on; run swapoff on it first, or use --force",
    );
}

#[test]
fn a_volume_that_is_idle() {
    let mut fake = partitioned();
    fake.file("/sys/devices/block/nvme0n1/nvme0n1p2/holders/dm-0", "");
    fake.block("dm-0", "254:0", &[]);
    fake.file("/sys/devices/block/dm-0/dm/name", "vg0-home\n");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1p2 is held by dm-0 (vg0-home); deactivate that (vgchange -an, mdadm \
         --stop, cryptsetup close, losetup -d) first, or use --force",
    );
}

/// nvme0n1 → md0 → md0p1 → dm-0 → mount: what is on top has to go first, so it is named first.
#[test]
fn a_mount_on_top_of_a_stack() {
    let mut fake = partitioned();
    fake.file("/sys/devices/block/nvme0n1/holders/md0", "");
    fake.block("md0", "9:0", &["md0p1"]);
    fake.file("/sys/devices/block/md0/md0p1/holders/dm-0", "");
    fake.block("dm-0", "254:0", &[]);
    fake.file("/sys/devices/block/dm-0/dm/name", "vg0-home\n");
    fake.mount("40 22 254:0 / /home rw - ext4 /dev/mapper/vg0-home rw");
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/dm-0 is mounted on /home (and 2 more, see `hugepage-setup status`); unmount it \
         first, or use --force",
    );
}

#[test]
fn swap_on_a_volume_that_is_named_by_its_mapper_path() {
    let fake = partitioned();
    fake.file("/sys/devices/block/nvme0n1/holders/dm-0", "");
    fake.block("dm-0", "254:0", &[]);
    fake.file("/sys/devices/block/dm-0/dm/name", "vg0-swap\n");
    fake.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/mapper/vg0-swap partition 1 0 -2\n");
    let users = fake.nvme(FIRST).users;
    assert!(users.contains(&Holder::Swap { device: "dm-0".to_owned() }), "{users:?}");
}

#[test]
fn a_stack_that_bites_its_tail_ends() {
    let mut fake = partitioned();
    fake.file("/sys/devices/block/nvme0n1/holders/dm-0", "");
    fake.block("dm-0", "254:0", &[]);
    fake.file("/sys/devices/block/dm-0/holders/nvme0n1", "");
    assert!(matches!(bind(&mut fake, false), Err(Error::InUse { more: 1, .. })));
}

#[test]
fn a_loop_device_on_the_disk() {
    let mut fake = partitioned();
    fake.block("loop3", "7:3", &[]);
    fake.file("/sys/devices/block/loop3/loop/backing_file", "/dev/nvme0n1\n");
    assert!(matches!(bind(&mut fake, false), Err(Error::InUse { .. })));
}

#[test]
fn a_multipath_namespace_is_in_use_by_its_head() {
    let device = Device { disks: vec![("nvme0c3n1", "nvme0n1")], ..nvme(FIRST, 12, "nvme3", "") };
    let mut fake = machine_with(vec![device]);
    fake.mount("40 22 259:0 / /home rw - ext4 /dev/nvme0n1 rw");
    assert_eq!(fake.nvme(FIRST).namespaces[0].name, "nvme0n1");
    is_refused(&mut fake, "0000:01:00.0: /dev/nvme0n1 is mounted on /home; unmount it first, or use --force");
}

#[test]
fn the_second_namespace_counts_too() {
    let device = Device {
        disks: vec![("nvme0n1", "nvme0n1"), ("nvme0n2", "nvme0n2")],
        ..nvme(FIRST, 12, "nvme0", "")
    };
    let mut fake = machine_with(vec![device]);
    fake.mount("40 22 259:16 / /home rw - ext4 /dev/nvme0n2 rw");
    is_refused(&mut fake, "0000:01:00.0: /dev/nvme0n2 is mounted on /home; unmount it first, or use --force");
}

#[test]
fn a_process_with_the_disk_open() {
    for (file, device) in
        [("/dev/nvme0n1p2", "partition"), ("/dev/ng0n1", "generic"), ("/dev/nvme0", "controller")]
    {
        let mut fake = partitioned();
        fake.process(815, "qemu", file);
        let error = bind(&mut fake, false).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{file} is held open by qemu (pid 815); stop that process")),
            "{device}: {error}"
        );
        assert_eq!(fake.log, [""; 0]);
    }
}

/// As udev's workers do after a device appears.
#[test]
fn a_process_that_only_looks_is_waited_for() {
    let mut fake = partitioned();
    fake.process(815, "(udev-worker)", "/dev/nvme0n1");
    fake.remove_at_pause = Some((3, "proc/815/fd/7".into()));
    bind(&mut fake, false).unwrap();
    assert_eq!(fake.pauses, 3);
}

#[test]
fn a_mount_is_not_waited_for() {
    let mut fake = partitioned();
    fake.process(815, "bash", "/dev/nvme0n1");
    fake.mount("40 22 259:2 / /home rw - ext4 /dev/nvme0n1p2 rw");
    bind(&mut fake, false).unwrap_err();
    assert_eq!(fake.pauses, 0);
}

#[test]
fn what_the_kernel_claims_without_a_trace_in_sysfs() {
    let mut fake = partitioned();
    fake.claimed.push("dev/nvme0n1".into());
    is_refused(
        &mut fake,
        "0000:01:00.0: /dev/nvme0n1 is claimed in the kernel (ZFS, or mounted in a container); export that \
         pool, or unmount it there first, or use --force",
    );
}

#[test]
fn what_others_use_does_not_matter() {
    let mut fake = partitioned();
    fake.mount("40 22 259:20 / /home rw - ext4 /dev/nvme1n1 rw");
    fake.mount("41 22 0:50 / /net rw - nfs server:/dev/nvme rw");
    fake.mount("42 22 0:51 / /x rw - tmpfs nvme0n1p1 rw");
    fake.process(815, "fio", "/dev/nvme0n12");
    fake.process(816, "kiovec", "/dev/vfio/12");
    fake.claimed.push("dev/nvme1n1".into());
    assert_eq!(fake.nvme(FIRST).users, []);
    bind(&mut fake, false).unwrap();
}

/// vfio-pci waits in the kernel until the last file is closed; there is no way to force that.
#[test]
fn a_group_that_is_open_is_not_taken_away() {
    for node in ["/dev/vfio/12", "/dev/vfio/devices/vfio0"] {
        let mut fake = machine();
        bind(&mut fake, false).unwrap();
        fake.file("/sys/devices/pci0000:00/0000:01:00.0/vfio-dev/vfio0/dev", "511:0\n");
        fake.process(815, "kiovec", node);
        let (before, _) = (fake.snapshot(), fake.log.clear());
        let message =
            format!("0000:01:00.0: {node} is held open by kiovec (pid 815); stop that process first");
        for force in [false, true] {
            let error = fake.run(|machine| machine.unbind(bdf(FIRST), force)).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let error = fake.run(|machine| machine.restore(bdf(FIRST))).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(fake.log, [""; 0]);
        assert_eq!(fake.snapshot(), before);
        let user = Holder::Process { path: node.to_owned(), pid: 815, comm: "kiovec".to_owned() };
        assert_eq!(fake.nvme(FIRST).users, [user]);
    }
}

/// The user gave it to another driver and uses it: that is not ours to break.
#[test]
fn restore_does_not_take_from_a_driver_in_use() {
    let mut fake = machine();
    fake.run(|machine| machine.unbind(bdf(FIRST), false)).unwrap();
    fake.file(
        "/run/hugepage-setup/state.json",
        &fake.read("/run/hugepage-setup/state.json").replace("\"nvme\"", "null"),
    );
    fake.rebind(FIRST, "nvme");
    fake.mount("40 22 259:0 / /home rw - ext4 /dev/nvme0n1 rw");
    let error = fake.run(|machine| machine.restore(bdf(FIRST))).unwrap_err();
    assert_eq!(error.to_string(), "0000:01:00.0: /dev/nvme0n1 is mounted on /home; unmount it first");
}

#[test]
fn mounts_that_cannot_be_read_are_not_taken_for_none() {
    let mut fake = machine();
    std::fs::remove_file(fake.at("/proc/self/mountinfo")).unwrap();
    assert!(matches!(bind(&mut fake, false), Err(Error::Read { .. })));
    assert_eq!(fake.log, [""; 0]);
}

#[test]
fn a_kernel_that_cannot_swap_has_no_swaps() {
    let mut fake = machine();
    std::fs::remove_file(fake.at("/proc/swaps")).unwrap();
    bind(&mut fake, false).unwrap();
}
