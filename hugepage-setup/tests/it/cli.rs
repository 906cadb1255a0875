//! The binary itself: arguments, what it prints where, and exit codes.

use std::process::{Command, Output};

use serde_json::Value;

use crate::fake::{Device, FIRST, Fake, machine, machine_with, nvme};

fn run(fake: &Fake, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hugepage-setup"));
    command.arg("--root").arg(fake.root()).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let fake = machine();
    for arguments in [
        &["reserve"][..],
        &["reserve", "--count", "0"],
        &["reserve", "--count", "1", "--bytes", "1G"],
        &["reserve", "--bytes", "lots"],
        &["bind"],
        &["bind", "nvme0"],
        &["restore", "01:00"],
        &["--output", "xml", "status"],
    ] {
        let output = run(&fake, arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert_eq!(stdout(&output), "");
    }
    assert!(stderr(&run(&fake, &["bind", "nvme0"])).contains("the form is 0000:01:00.0"));
}

#[test]
fn output_that_is_lost_is_a_failure() {
    let fake = machine();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hugepage-setup"));
    let output = command.arg("--root").arg(fake.root()).arg("status").stdout(full).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("cannot write to standard output"), "{}", stderr(&output));
}

#[test]
fn status_for_people() {
    let fake = machine();
    fake.mount("40 22 259:0 / /home rw - ext4 /dev/nvme0n1 rw");
    let text = stdout(&run(&fake, &["status"]));
    assert!(
        text.starts_with("IOMMU on, vfio-pci loaded, vfio_iommu_type1 not loaded, memlock 8 MiB\n"),
        "{text}"
    );
    for line in [
        "HUGEPAGES  NODE  TOTAL  FREE  RESERVED",
        "2 MiB      all   0      0     0",
        "NVME          ID         DRIVER  GROUP  NODE  DEVICE  MODEL           SERIAL",
        "0000:01:00.0  1b36:0010  nvme    12     -     nvme0   QEMU NVMe Ctrl  serial-nvme0",
        "    nvme0n1 1 GiB",
        "    in use: /dev/nvme0n1 is mounted on /home",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in:\n{text}");
    }
}

#[test]
fn status_for_programs() {
    let fake = machine();
    fake.mount("40 22 259:0 / /home rw - ext4 /dev/nvme0n1 rw");
    for arguments in [&["status", "--json"][..], &["-o", "json", "status"], &["status", "--output", "json"]] {
        let status = json(&run(&fake, arguments));
        assert_eq!(status["functions"][0]["bdf"], FIRST);
        assert_eq!(status["functions"][0]["users"][0]["kind"], "mount");
        assert_eq!(status["functions"][0]["users"][0]["at"], "/home");
        assert_eq!(status["memlock"], 8 << 20);
        assert_eq!(status["hugepages"][0]["size"], 2 << 20);
    }
}

/// Each function for itself: one that fails does not stop the others, and the exit code tells.
#[test]
fn several_functions_are_reported_one_by_one() {
    let orphan = Device { group: None, ..nvme(FIRST, 0, "nvme0", "nvme0n1") };
    let fake = machine_with(vec![orphan, nvme("0000:02:00.0", 13, "nvme1", "nvme1n1")]);
    let mut fake = fake;
    fake.rebind("0000:02:00.0", "vfio-pci");
    let output = run(&fake, &["bind", "01:00.0", "02:00.0"]);
    assert_eq!(code(&output), 1);
    assert_eq!(stdout(&output), "0000:02:00.0 is bound to vfio-pci already; IOMMU group 13, /dev/vfio/13\n");
    assert!(stderr(&output).starts_with("hugepage-setup: 0000:01:00.0 has no IOMMU group:"));
    assert_eq!(stderr(&output).lines().count(), 1);
    let items = json(&run(&fake, &["bind", "--json", "01:00.0", "02:00.0"]));
    assert_eq!(items[0]["ok"], false);
    assert!(items[0]["error"].as_str().unwrap().contains("has no IOMMU group"));
    assert_eq!(items[1]["ok"], true);
    assert_eq!(items[1]["iommu_group"], 13);
    assert_eq!(items[1]["node"], "/dev/vfio/13");
}

#[test]
fn nothing_to_do_is_success() {
    let fake = machine();
    let output = run(&fake, &["restore"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "nothing to restore\n"));
    assert_eq!(json(&run(&fake, &["restore", "--json"])), serde_json::json!([]));
    let output = run(&fake, &["restore", "01:00.0"]);
    assert_eq!(code(&output), 0);
    assert_eq!(stdout(&output), "0000:01:00.0 was not changed by hugepage-setup, it is left as it is\n");
    assert_eq!(json(&run(&fake, &["restore", "01:00.0", "--json"]))[0]["outcome"], "untouched");
}

#[test]
fn a_user_that_is_unknown_is_noticed_before_anything_is_touched() {
    let fake = machine();
    let before = fake.snapshot();
    let output = run(&fake, &["bind", "01:00.0", "--user", "nobody-here"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("there is no user \"nobody-here\""), "{}", stderr(&output));
    assert_eq!(fake.snapshot(), before);
}

/// Plain files do not react, so the pool stays at what was written: enough to see the size arithmetic.
#[test]
fn bytes_are_rounded_up_to_whole_pages() {
    let fake = machine();
    let output = run(&fake, &["reserve", "--bytes", "5M", "--node", "1", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json(&output)["pages"], 3);
    assert_eq!(fake.read("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"), "3");
    let output = run(&fake, &["restore"]);
    assert_eq!(stdout(&output), "0 hugepages of 2 MiB on NUMA node 1 again\n");
}

/// The kernel does not react here either, so that is what the program must notice.
#[test]
fn a_kernel_that_ignores_the_request_is_noticed() {
    let fake = machine();
    let output = run(&fake, &["unbind", "01:00.0"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("0000:01:00.0: nvme did not let go of it"), "{}", stderr(&output));
}

#[test]
fn a_second_run_waits_for_the_first() {
    let fake = machine();
    let first = hugepage_setup::Machine::open(fake.sysfs(), hugepage_setup::Linux, || ()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hugepage-setup"));
    command.arg("--root").arg(fake.root()).arg("restore").stderr(std::process::Stdio::piped());
    let mut second = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    let mut pipe = std::io::BufReader::new(second.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut pipe, &mut said).unwrap();
    assert_eq!(said, "hugepage-setup: waiting for another hugepage-setup to finish\n");
    assert!(second.try_wait().unwrap().is_none(), "it waits");
    drop(first);
    assert!(second.wait().unwrap().success());
}
