//! Whatever cannot be done is said in one line, and nothing else is printed.

use std::time::{Duration, Instant};

use super::{kiovec, stderr};

/// Runs a command that must fail, and returns its exit code.
fn refused(line: &str, words: &[&str]) -> i32 {
    let output = kiovec(line);
    let error = stderr(&output);
    assert!(output.stdout.is_empty(), "kiovec {line} printed something");
    assert!(error.starts_with("kiovec: ") && error.lines().count() == 1, "kiovec {line}: {error:?}");
    for word in words {
        assert!(error.contains(word), "kiovec {line}: {word:?} is not in {error:?}");
    }
    output.status.code().expect("an exit code")
}

#[test]
fn wrong_usage() {
    for (line, words) in [
        ("perf -q 0", &["'0'", "--io-depth", "1..=4096"][..]),
        ("perf -q 4097", &["4097", "1..=4096"]),
        ("perf -t 0", &["--time", "at least 0.001 seconds"]),
        ("perf -t soon", &["--time", "not a number of seconds"]),
        ("perf -a -1", &["'-1'"]),
        ("perf -M 101 -w rw", &["101", "0..=100"]),
        ("perf -M 50", &["-M", "randread", "-w randrw"]),
        ("perf -M 50 -w write", &["-M", "write"]),
        ("perf -w scribble", &["scribble", "randwrite"]),
        ("perf -o 0", &["-o 0", "at least one block"]),
        ("perf -o many", &["many", "not a size"]),
        ("perf -c 1,1", &["core 1 is named twice"]),
        ("perf -c none", &["none", "0-3"]),
        ("perf --range 7", &["START:LEN", "START-END"]),
        ("perf --nsid 0", &["--nsid"]),
        ("perf --data cbor", &["prp", "sgl"]),
        ("perf --seed x", &["--seed", "such as the one that a report shows"]),
        ("perf --verify", &["null media", "media=ram"]),
        ("perf emulated:media=null --verify -w write", &["null media", "media=ram"]),
        ("perf --depth 3", &["--depth"]),
        ("perf emulated emulated:blocks=3", &["emulated:blocks=3", "blocks"]),
        ("perf --rounds 3", &["--versus"]),
        ("perf --versus emulated --rounds 0", &["--rounds", "1..=10000"]),
        ("perf emulated emulated --versus emulated", &["--versus compares one device", "name one before it"]),
        ("perf --versus /dev/sda", &["--versus", "kiovec list", "kernel:/dev/sda measures it"]),
        ("perf nvme0n1", &["the kernel's driver", "kiovec list", "kernel:/dev/nvme0n1 measures it"]),
        ("perf emulatd", &["a device is 0000:01:00.0", "kernel:/dev/nvme0n1"]),
        ("perf -o json", &["--io-size", "for JSON, use --json"]),
        ("perf -r trtype:PCIe", &["unexpected argument '-r' found; see --help"]),
        ("perf -d 0", &["--number-ios"]),
        ("perf --status-interval 0.01", &["at least 0.1 seconds"]),
        ("perf --versus emulated -w read -M 3", &["-M is the read share"]),
        ("perf --numjobs 0", &["--numjobs", "1..=1024"]),
        ("perf kernel:/etc/passwd --merge", &["--merge", "the kernel decides", "leave it out"]),
        ("identify", &["DEVICE"]),
        ("identify /dev/nvme0n1", &["a name of the kernel's driver", "kiovec list"]),
        ("identify 0000:01:00.8", &["0000:01:00.8", "emulated["]),
        ("identify emulated:block=513", &["block=513", "512 to 65536"]),
        ("identify emulated:flavour=vanilla", &["flavour", "media"]),
        ("identify trace(emulated)", &["trace(emulated)", "only controllers", "kiovec identify emulated"]),
        ("perf trace(emulated", &["parentheses do not match"]),
        ("perf trace(emulated,/dev/sda)", &["/dev/sda: a name of the kernel's driver; `kiovec list`"]),
        ("perf trace(emulated:block=513)", &["emulated:block=513", "512 to 65536"]),
        ("perf partition(emulated,start=1)", &["emulated,start=1", "options come before its devices"]),
        ("perf mirror(emulated,emulated)", &["emulated is there twice", "emulated:serial=A"]),
        ("perf trace(emulated) --verify", &["emulated has null media", "media=ram"]),
        ("list -o xml", &["xml", "json"]),
        ("sing", &["sing"]),
    ] {
        assert_eq!(refused(line, words), 2, "kiovec {line}");
    }
}

#[test]
fn writing_to_hardware_without_consent() {
    // Refused before the device is looked for: this one does not exist.
    for line in ["-w write", "-w randrw", "-w read --verify", "-w randwrite --range 0:1"] {
        for device in ["ffff:ff:1f.7", "mirror(emulated:media=ram,trace(ffff:ff:1f.7))"] {
            let code = refused(&format!("perf {device} {line}"), &["on ffff:ff:1f.7", "--yes-destroy-data"]);
            assert_eq!(code, 2, "{device} {line}");
        }
    }
}

#[test]
fn what_does_not_go_with_the_device() {
    for (line, words) in [
        ("perf -o 1000", &["-o 1000", "odd I/O size", "4096"][..]),
        ("perf emulated:block=512 -o 513", &["odd I/O size", "512"]),
        ("perf emulated:size=1M -o 2M", &["-o 2097152", "larger than the range"]),
        ("perf --range 0:3 -o 16k", &["larger than the range"]),
        ("perf --range 0:262145", &["--range 0:262145", "262144"]),
        ("perf --range 512B:4k", &["4096-byte blocks"]),
        ("perf --nsid 2", &["no active namespace 2", "active: 1"]),
        ("identify emulated --nsid 9", &["no active namespace 9"]),
        ("perf -c 1023", &["no core 1023", "it may use"]),
        ("perf --data sgl", &["SGL", "PRP"]),
        ("perf -q 4096 -o 1G", &["data memory", "lower"]),
        ("perf emulated:size=1T,block=512,media=ram --verify -o 512", &["--range", "256 MiB"]),
        ("perf polish(emulated)", &["polish(emulated): there is no layer polish", "partition("]),
        ("perf partition(begin=1,emulated)", &["partition(begin=1,emulated): begin is no option"]),
        (
            "perf trace(partition(start=8,emulated:size=4k))",
            &["partition(start=8,emulated:size=4k): a partition of", "not within the 1 blocks below"],
        ),
        ("perf stripe(emulated)", &["stripe(emulated): a stripe has 2 to 64 legs"]),
        ("perf mirror(trace(emulated))", &["mirror(trace(emulated)): a mirror has 2 to 8 legs"]),
        ("perf retry(times=99,emulated)", &["retry(times=99,emulated): 99 retries"]),
        ("perf cache(line=1000,emulated)", &["cache(line=1000,emulated): "]),
        ("perf trace(emulated:size=1M) -o 2M", &["larger than the range"]),
        ("perf trace(emulated:block=512) -o 513", &["odd I/O size", "trace(emulated:block=512)"]),
        ("perf emulated:mpsmin=1", &["emulated:mpsmin=1", "8 KiB"]),
    ] {
        assert_eq!(refused(line, words), 1, "kiovec {line}");
    }
}

#[test]
fn a_function_that_does_not_exist() {
    for line in ["perf ffff:ff:1f.7", "identify ff:1f.7", "perf trace(ff:1f.7)"] {
        assert_eq!(refused(line, &["ff:1f.7", "kiovec list"]), 1, "kiovec {line}");
    }
}

#[test]
fn a_controller_that_never_gets_ready() {
    for line in ["perf emulated:never_ready=on,to=1", "identify emulated:never_ready=on,to=1"] {
        let began = Instant::now();
        assert_eq!(refused(line, &["emulated:never_ready=on", "not ready after 500 ms"]), 1);
        assert!(began.elapsed() < Duration::from_secs(300), "kiovec {line}: {:?}", began.elapsed());
    }
}
