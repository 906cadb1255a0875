//! Binding, unbinding and restoring, when nothing comes between.

use hugepage_setup::{BindOptions, Error, Restored, User};

use crate::fake::{Device, FIRST, Fake, NETWORK, SECOND, bdf, machine, machine_with, nvme};

fn joe() -> BindOptions {
    BindOptions { user: Some(User { name: "joe".to_owned(), uid: 1000 }), force: false }
}

fn plain() -> BindOptions {
    BindOptions::default()
}

fn bind(fake: &mut Fake, address: &str, options: &BindOptions) -> hugepage_setup::Result<Option<String>> {
    fake.run(|machine| machine.bind(bdf(address), options)).map(|bound| bound.from)
}

fn restore(fake: &mut Fake, address: &str) -> Restored {
    fake.run(|machine| machine.restore(bdf(address))).unwrap()
}

#[test]
fn bind_gives_the_function_to_vfio_and_restore_puts_it_back() {
    let mut fake = machine();
    let before = fake.snapshot();
    assert_eq!(bind(&mut fake, FIRST, &plain()).unwrap().as_deref(), Some("nvme"));
    assert_eq!(fake.driver_of(FIRST).as_deref(), Some("vfio-pci"));
    assert_eq!(fake.driver_of(SECOND).as_deref(), Some("nvme"));
    assert!(fake.at("/dev/vfio/12").exists());
    assert_eq!(restore(&mut fake, FIRST), Restored::Back { driver: Some("nvme".to_owned()) });
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
}

#[test]
fn what_was_there_is_written_down_before_the_first_change() {
    let mut fake = machine();
    bind(&mut fake, FIRST, &joe()).unwrap();
    let written = [
        "run/hugepage-setup/state.json.new created",
        "run/hugepage-setup/state.json replaced",
        "sys/bus/pci/devices/0000:01:00.0/driver_override <- vfio-pci",
        "sys/bus/pci/drivers/nvme/unbind <- 0000:01:00.0",
        "sys/bus/pci/drivers_probe <- 0000:01:00.0",
        "run/hugepage-setup/state.json.new created",
        "run/hugepage-setup/state.json replaced",
        "dev/vfio/12 given to 1000:0",
    ];
    assert_eq!(fake.log, written);
}

#[test]
fn model_and_serial_are_known_after_the_kernels_driver_is_gone() {
    let mut fake = machine();
    bind(&mut fake, FIRST, &plain()).unwrap();
    let function = fake.nvme(FIRST);
    assert_eq!(function.kernel_device, None);
    assert_eq!(function.model.as_deref(), Some("QEMU NVMe Ctrl"));
    assert_eq!(function.serial.as_deref(), Some("serial-nvme0"));
    assert_eq!(function.previous_driver.as_deref(), Some("nvme"));
}

#[test]
fn twice_is_the_same_as_once() {
    let mut fake = machine();
    let before = fake.snapshot();
    bind(&mut fake, FIRST, &joe()).unwrap();
    let bound = fake.snapshot();
    fake.log.clear();
    assert_eq!(bind(&mut fake, FIRST, &joe()).unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(fake.snapshot(), bound);
    assert_eq!(fake.log, [""; 0]);
    restore(&mut fake, FIRST);
    assert_eq!(restore(&mut fake, FIRST), Restored::Untouched);
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn without_an_iommu_group_nothing_is_touched() {
    let mut fake = machine_with(vec![Device { group: None, ..nvme(FIRST, 0, "nvme0", "nvme0n1") }]);
    let error = bind(&mut fake, FIRST, &plain()).unwrap_err().to_string();
    assert_eq!(
        error,
        "0000:01:00.0 has no IOMMU group: there is no IOMMU, or it is off; enable VT-d/AMD-Vi in the \
         firmware and boot with intel_iommu=on"
    );
    assert_eq!(fake.log, [""; 0]);
}

#[test]
fn other_functions_are_refused_by_class() {
    let mut fake = machine();
    let error = bind(&mut fake, NETWORK, &plain()).unwrap_err().to_string();
    assert!(error.contains("PCI class is 0x020000"), "{error}");
    let unbound = fake.run(|machine| machine.unbind(bdf(NETWORK), true));
    assert!(matches!(unbound, Err(Error::NotNvme { .. })));
    assert!(matches!(bind(&mut fake, "0000:09:00.0", &plain()), Err(Error::NoSuchFunction(_))));
    assert_eq!(fake.log, [""; 0]);
}

#[test]
fn what_others_bound_is_left_as_it_is() {
    let mut fake = machine();
    fake.rebind(FIRST, "vfio-pci");
    let before = fake.snapshot();
    bind(&mut fake, FIRST, &plain()).unwrap();
    assert!(fake.remembers_nothing());
    bind(&mut fake, FIRST, &joe()).unwrap();
    assert_ne!(fake.snapshot(), before);
    assert_eq!(restore(&mut fake, FIRST), Restored::Back { driver: Some("vfio-pci".to_owned()) });
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn a_function_without_a_driver_ends_without_one() {
    let mut fake = machine();
    fake.file("/sys/bus/pci/devices/0000:01:00.0/driver_override", "elsewhere\n");
    fake.run(|machine| machine.unbind(bdf(FIRST), false)).unwrap();
    fake.file(
        "/run/hugepage-setup/state.json",
        "{\"version\":1,\"boot_id\":\"boot-0\",\"devices\":{},\"groups\":{},\"hugepages\":[]}",
    );
    let before = fake.snapshot();
    assert_eq!(bind(&mut fake, FIRST, &plain()).unwrap(), None);
    assert_eq!(fake.driver_of(FIRST).as_deref(), Some("vfio-pci"));
    assert_eq!(restore(&mut fake, FIRST), Restored::Back { driver: None });
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn vfio_pci_is_loaded_if_it_is_not_there() {
    let mut fake = machine();
    std::fs::remove_dir_all(fake.at("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    let before = fake.snapshot();
    let error = bind(&mut fake, FIRST, &plain()).unwrap_err().to_string();
    assert!(error.contains("no vfio-pci driver") && error.contains("Module vfio-pci not found"), "{error}");
    assert_eq!(fake.snapshot(), before);
    fake.loadable.push("vfio-pci");
    bind(&mut fake, FIRST, &plain()).unwrap();
    assert_eq!(fake.driver_of(FIRST).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_module_without_its_driver_is_noticed() {
    let mut fake = machine();
    std::fs::remove_dir_all(fake.at("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    (fake.loadable, fake.refusing) = (vec!["vfio-pci"], vec!["vfio-pci"]);
    let error = bind(&mut fake, FIRST, &plain()).unwrap_err().to_string();
    assert!(error.contains("modprobe succeeded, but there is no such driver"), "{error}");
    assert_eq!(fake.log, ["modprobe vfio-pci"]);
}

#[test]
fn a_kernel_without_modules_says_so() {
    let mut fake = machine();
    std::fs::remove_dir_all(fake.at("/sys/bus/pci/drivers/vfio-pci")).unwrap();
    std::fs::remove_file(fake.at("/proc/sys/kernel/modprobe")).unwrap();
    let error = bind(&mut fake, FIRST, &plain()).unwrap_err().to_string();
    assert!(error.contains("loads no modules"), "{error}");
    assert_eq!(fake.log, [""; 0]);
}

#[test]
fn if_vfio_pci_does_not_take_it_it_goes_back() {
    let mut fake = machine();
    fake.refusing.push("vfio-pci");
    let before = fake.snapshot();
    let error = bind(&mut fake, FIRST, &plain()).unwrap_err();
    assert!(matches!(&error, Error::NotBound { wanted, now: None, .. } if wanted == "vfio-pci"), "{error}");
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
}

#[test]
fn if_nobody_takes_it_both_failures_are_told_and_restore_tries_again() {
    let mut fake = machine();
    fake.refusing.extend(["vfio-pci", "nvme"]);
    let before = fake.snapshot();
    let error = bind(&mut fake, FIRST, &plain()).unwrap_err();
    assert!(matches!(error, Error::NotPutBack { .. }), "{error}");
    assert!(error.to_string().ends_with("run: hugepage-setup restore 0000:01:00.0"), "{error}");
    assert!(!error.to_string().contains('\n'));
    assert!(fake.run(|machine| machine.restore(bdf(FIRST))).is_err());
    fake.refusing.clear();
    restore(&mut fake, FIRST);
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn the_node_is_waited_for_but_not_forever() {
    let mut fake = machine();
    fake.node_after = 7;
    bind(&mut fake, FIRST, &joe()).unwrap();
    assert_eq!(fake.pauses, 7);
    assert!(fake.log.contains(&"dev/vfio/12 given to 1000:0".to_owned()));
    restore(&mut fake, FIRST);
    let before = fake.snapshot();
    fake.node_after = 1_000_000;
    let error = bind(&mut fake, FIRST, &joe()).unwrap_err();
    assert!(error.to_string().contains("/dev/vfio/12 did not appear within 5 s"), "{error}");
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
}

#[test]
fn unbind_leaves_no_driver_and_no_override() {
    let mut fake = machine();
    let before = fake.snapshot();
    bind(&mut fake, FIRST, &plain()).unwrap();
    let unbound = fake.run(|machine| machine.unbind(bdf(FIRST), false)).unwrap();
    assert_eq!(unbound.from.as_deref(), Some("vfio-pci"));
    assert_eq!(fake.driver_of(FIRST), None);
    assert_eq!(fake.read("/sys/bus/pci/devices/0000:01:00.0/driver_override"), "(null)");
    let again = fake.run(|machine| machine.unbind(bdf(FIRST), false)).unwrap();
    assert_eq!(again.from, None);
    assert_eq!(restore(&mut fake, FIRST), Restored::Back { driver: Some("nvme".to_owned()) });
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn a_function_that_was_never_changed_is_left_alone() {
    let mut fake = machine();
    fake.rebind(FIRST, "vfio-pci");
    let before = fake.snapshot();
    assert_eq!(restore(&mut fake, FIRST), Restored::Untouched);
    assert_eq!(restore(&mut fake, NETWORK), Restored::Untouched);
    assert_eq!(fake.log, [""; 0]);
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn an_override_that_was_there_comes_back() {
    let mut fake = machine();
    fake.file("/sys/bus/pci/devices/0000:01:00.0/driver_override", "nvme\n");
    let before = fake.snapshot();
    bind(&mut fake, FIRST, &plain()).unwrap();
    restore(&mut fake, FIRST);
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn the_driver_of_last_counts_when_somebody_else_changed_it_meanwhile() {
    let mut fake = machine();
    bind(&mut fake, FIRST, &plain()).unwrap();
    fake.rebind(FIRST, "e1000e");
    bind(&mut fake, FIRST, &plain()).unwrap();
    assert_eq!(restore(&mut fake, FIRST), Restored::Back { driver: Some("e1000e".to_owned()) });
    assert_eq!(fake.read("/sys/bus/pci/devices/0000:01:00.0/driver_override"), "(null)");
}

#[test]
fn a_failure_after_that_still_leaves_something_to_restore() {
    let mut fake = machine();
    bind(&mut fake, FIRST, &plain()).unwrap();
    fake.rebind(FIRST, "e1000e");
    fake.refusing.push("vfio-pci");
    bind(&mut fake, FIRST, &plain()).unwrap_err();
    assert_eq!(fake.read("/sys/bus/pci/devices/0000:01:00.0/driver_override"), "vfio-pci");
    restore(&mut fake, FIRST);
    assert_eq!(fake.driver_of(FIRST).as_deref(), Some("e1000e"));
    assert_eq!(fake.read("/sys/bus/pci/devices/0000:01:00.0/driver_override"), "(null)");
}

#[test]
fn a_function_that_is_gone_or_replaced_is_forgotten() {
    let mut fake = machine();
    bind(&mut fake, FIRST, &joe()).unwrap();
    bind(&mut fake, SECOND, &joe()).unwrap();
    fake.file("/sys/bus/pci/devices/0000:02:00.0/device", "0x4711\n");
    fake.unplug(FIRST);
    fake.log.clear();
    assert_eq!(restore(&mut fake, FIRST), Restored::Gone);
    assert_eq!(fake.nvme(SECOND).serial, None, "of the device that was there before");
    assert_eq!(restore(&mut fake, SECOND), Restored::Gone);
    assert_eq!(fake.driver_of(SECOND).as_deref(), Some("vfio-pci"));
    assert!(fake.log.iter().all(|step| step.starts_with("run/")), "{:?}", fake.log);
    assert!(fake.remembers_nothing());
}

/// Pulled out and another put in, of the same model or not, after the first was bound.
#[test]
fn another_device_at_the_address_is_remembered_anew() {
    for (file, text) in [("device", "0x4711\n"), ("nvme/nvme0/serial", "another\n")] {
        let mut fake = machine();
        bind(&mut fake, FIRST, &plain()).unwrap();
        fake.rebind(FIRST, "nvme");
        fake.file("/sys/bus/pci/devices/0000:01:00.0/driver_override", "(null)\n");
        fake.file(&format!("/sys/bus/pci/devices/0000:01:00.0/{file}"), text);
        bind(&mut fake, FIRST, &plain()).unwrap();
        let serial = if file == "device" { "serial-nvme0" } else { "another" };
        assert_eq!(fake.nvme(FIRST).serial.as_deref(), Some(serial));
        assert_eq!(restore(&mut fake, FIRST), Restored::Back { driver: Some("nvme".to_owned()) });
    }
}

#[test]
fn the_group_goes_back_to_its_owner_with_its_last_function() {
    let pair = vec![nvme(FIRST, 12, "nvme0", "nvme0n1"), nvme(SECOND, 12, "nvme1", "nvme1n1")];
    let mut fake = machine_with(pair);
    fake.rebind(SECOND, "vfio-pci");
    let before = fake.snapshot();
    bind(&mut fake, FIRST, &joe()).unwrap();
    bind(&mut fake, SECOND, &joe()).unwrap();
    assert_eq!(fake.snapshot().get("owner of dev/vfio/12").map(String::as_str), Some("(1000, 0)"));
    restore(&mut fake, SECOND);
    assert_eq!(fake.snapshot().get("owner of dev/vfio/12").map(String::as_str), Some("(1000, 0)"));
    restore(&mut fake, FIRST);
    assert_eq!(fake.snapshot(), before);
    assert!(fake.remembers_nothing());
}

#[test]
fn the_first_owner_of_a_group_counts() {
    let mut fake = machine();
    fake.rebind(FIRST, "vfio-pci");
    let before = fake.snapshot();
    bind(&mut fake, FIRST, &joe()).unwrap();
    let ann = User { name: "ann".to_owned(), uid: 2000 };
    bind(&mut fake, FIRST, &BindOptions { user: Some(ann), force: false }).unwrap();
    assert_eq!(fake.snapshot()["owner of dev/vfio/12"], "(2000, 0)");
    restore(&mut fake, FIRST);
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn another_boot_voids_what_is_remembered() {
    let mut fake = machine();
    bind(&mut fake, FIRST, &plain()).unwrap();
    fake.file("/proc/sys/kernel/random/boot_id", "boot-2\n");
    assert_eq!(restore(&mut fake, FIRST), Restored::Untouched);
    assert_eq!(fake.driver_of(FIRST).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_damaged_state_file_stops_changes_but_not_looking() {
    for damage in [
        "",
        "{",
        "[]",
        "{\"version\":2,\"devices\":{},\"groups\":{},\"hugepages\":[]}",
        "{\"devices\":{\"x\":1}}",
    ] {
        let mut fake = machine();
        bind(&mut fake, FIRST, &plain()).unwrap();
        fake.file("/run/hugepage-setup/state.json", damage);
        let error = hugepage_setup::Machine::open(fake.sysfs(), &mut fake, || ()).unwrap_err();
        assert!(matches!(error, Error::BadState { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        assert_eq!(fake.nvme(FIRST).model, None);
    }
}
