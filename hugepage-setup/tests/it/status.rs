//! What is shown of a machine.

use hugepage_setup::{BindOptions, MemoryLimit, Status, Sysfs, User, bind_warnings, nvme_functions};

use crate::fake::{FIRST, Fake, NETWORK, bdf, machine, machine_with, nvme};

fn next(fake: &Fake) -> Vec<String> {
    Status::read(&fake.sysfs()).unwrap().next
}

#[test]
fn functions_are_listed_with_what_the_kernel_knows() {
    let fake = machine();
    fake.file("/sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n");
    let functions = nvme_functions(&fake.sysfs()).unwrap();
    assert_eq!(functions.len(), 2);
    let first = &functions[0];
    assert_eq!(first.bdf, bdf(FIRST));
    assert_eq!((first.vendor, first.device), (0x1b36, 0x0010));
    assert_eq!((first.iommu_group, first.numa_node, functions[1].numa_node), (Some(12), Some(1), None));
    assert_eq!(first.driver.as_deref(), Some("nvme"));
    assert_eq!(first.kernel_device.as_deref(), Some("nvme0"));
    assert_eq!(first.model.as_deref(), Some("QEMU NVMe Ctrl"));
    assert_eq!((&*first.namespaces[0].name, first.namespaces[0].bytes), ("nvme0n1", 1 << 30));
    assert_eq!(first.previous_driver, None);
}

#[test]
fn what_a_device_says_does_not_reach_the_terminal_raw() {
    let fake = machine();
    fake.file("/sys/bus/pci/devices/0000:01:00.0/nvme/nvme0/model", "evil\u{1b}[2Jmodel\n");
    assert_eq!(fake.nvme(FIRST).model.as_deref(), Some("evil[2Jmodel"));
}

#[test]
fn an_empty_tree_is_a_machine_without_anything() {
    let folder = tempfile::TempDir::new().unwrap();
    let status = Status::read(&Sysfs::new(folder.path())).unwrap();
    assert!(!status.iommu && !status.vfio_pci && status.functions.is_empty() && status.memlock.is_none());
    assert!(status.next[0].starts_with("there is no NVMe function"));
}

#[test]
fn what_is_missing_comes_with_what_to_do() {
    let fake = machine();
    let advice = next(&fake);
    assert!(advice.iter().any(|line| line.contains("modprobe vfio_iommu_type1")), "{advice:?}");
    assert!(advice.iter().any(|line| line.ends_with("hugepage-setup bind 0000:01:00.0")), "{advice:?}");
    assert!(advice.iter().any(|line| line.ends_with("hugepage-setup reserve --bytes 1G")), "{advice:?}");
    assert!(
        !advice.iter().any(|line| line.contains("IOMMU, or it is off") || line.contains("memlock")),
        "{advice:?}"
    );
    std::fs::remove_dir_all(fake.at("/sys/kernel/iommu_groups")).unwrap();
    std::fs::remove_dir_all(fake.at("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    let advice = next(&fake);
    assert!(advice[0].contains("intel_iommu=on"), "{advice:?}");
    assert!(advice[1].contains("modprobe vfio-pci"), "{advice:?}");
}

#[test]
fn nothing_is_advised_for_what_is_in_use_or_done() {
    let mut fake = machine();
    fake.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
    fake.file("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n");
    fake.mount("40 22 259:0 / /home rw - ext4 /dev/nvme0n1 rw");
    fake.rebind("0000:02:00.0", "vfio-pci");
    // The fake numbers the disks of all controllers alike; only the first is left.
    assert_eq!(next(&fake), [""; 0]);
}

#[test]
fn a_small_memlock_limit_matters_to_users_only() {
    let fake = machine();
    fake.file("/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\n");
    let advice = next(&fake);
    assert!(advice.iter().any(|line| line.starts_with("you may lock 8 MiB")), "{advice:?}");
    fake.file("/proc/self/limits", "Max locked memory         unlimited  unlimited  bytes\n");
    let status = Status::read(&fake.sysfs()).unwrap();
    assert_eq!(status.memlock, Some(MemoryLimit::Unlimited));
    assert!(!status.next.iter().any(|line| line.contains("may lock")));
}

fn warnings(fake: &mut Fake) -> Vec<String> {
    let user = User::find(&fake.sysfs(), "joe").unwrap();
    let options = BindOptions { user: Some(user.clone()), force: false };
    let bound = fake.run(|machine| machine.bind(bdf(FIRST), &options)).unwrap();
    bind_warnings(&fake.sysfs(), &[bound], Some(&user)).unwrap()
}

#[test]
fn the_users_memlock_limit_is_looked_up_where_the_log_in_takes_it() {
    let mut fake = machine();
    assert!(warnings(&mut fake)[0].starts_with("joe may lock 8 MiB"));
    fake.file("/etc/security/limits.conf", "* soft memlock 1024\n");
    assert!(warnings(&mut fake)[0].starts_with("joe may lock 1 MiB"));
    fake.file("/etc/security/limits.d/50-joe.conf", "joe - memlock 65536\n* - memlock 2048\n");
    assert_eq!(warnings(&mut fake), [""; 0]);
    fake.file("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "2\n");
    let warning = &warnings(&mut fake)[0];
    assert!(
        warning.starts_with("joe may lock 64 MiB") && warning.contains("raise memlock to 2 GiB"),
        "{warning}"
    );
}

#[test]
fn other_drivers_in_the_group_are_named() {
    let mut fake = machine_with(vec![nvme(FIRST, 14, "nvme0", "nvme0n1")]);
    fake.file("/etc/security/limits.conf", "* soft memlock unlimited\n");
    let warning = &warnings(&mut fake)[0];
    assert!(
        warning.starts_with("0000:01:00.0: its IOMMU group 14 also holds 0000:03:00.0 (e1000e);"),
        "{warning}"
    );
    assert!(next(&fake).contains(warning));
    fake.rebind(NETWORK, "vfio-pci");
    assert_eq!(warnings(&mut fake), [""; 0]);
}

#[test]
fn users_by_name_and_by_number() {
    let sysfs = machine().sysfs();
    assert!(User::find(&sysfs, "joe").is_err(), "the tree is gone with its machine");
    let fake = machine();
    assert_eq!(User::find(&fake.sysfs(), "joe").unwrap().uid, 1000);
    assert_eq!(User::find(&fake.sysfs(), "4711").unwrap().uid, 4711);
    let error = User::find(&fake.sysfs(), "jo").unwrap_err().to_string();
    assert!(error.contains("\"jo\"") && error.contains("--user 1000"), "{error}");
}
