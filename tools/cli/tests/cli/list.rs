use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{json, kiovec, stderr, stdout, text};

/// A machine with one NVMe function, bound to vfio-pci.
fn machine(root: &Path) {
    let function = root.join("sys/bus/pci/devices/0000:01:00.0");
    fs::create_dir_all(&function).unwrap();
    for (name, value) in
        [("class", "0x010802"), ("vendor", "0x8086"), ("device", "0x0a54"), ("numa_node", "1")]
    {
        fs::write(function.join(name), format!("{value}\n")).unwrap();
    }
    for (link, folder) in
        [("driver", "sys/bus/pci/drivers/vfio-pci"), ("iommu_group", "sys/kernel/iommu_groups/17")]
    {
        fs::create_dir_all(root.join(folder)).unwrap();
        symlink(root.join(folder), function.join(link)).unwrap();
    }
    fs::create_dir_all(root.join("proc/self")).unwrap();
    fs::write(root.join("proc/self/mountinfo"), "").unwrap();
}

#[test]
fn functions_are_shown_with_all_that_is_known() {
    let root = tempfile::tempdir().unwrap();
    machine(root.path());
    let line = format!("list --root {}", root.path().display());
    let table = text(&line);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["0000:01:00.0", "vfio-pci", "17", "1", "-", "-", "-", "-"], "{table}");
    let document = json(&line);
    let function = &document["functions"][0];
    assert_eq!(function["bdf"], "0000:01:00.0");
    assert_eq!((&function["iommu_group"], &function["numa_node"]), (&17.into(), &1.into()));
}

#[test]
fn a_machine_without_any_is_told_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let line = format!("list --root {}", root.path().display());
    let output = kiovec(&line);
    assert!(output.status.success());
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("no NVMe functions") && stderr(&output).contains("`kiovec perf`"));
    assert_eq!(json(&line)["functions"], serde_json::json!([]));
}
