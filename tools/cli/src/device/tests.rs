//! Names of devices, and what is opened for them.

use super::*;

fn refused(name: &str) -> String {
    name.parse::<Device>().unwrap_err()
}

#[test]
fn every_form_is_read_and_written() {
    for (name, canonical) in [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("emulated", "emulated"),
        ("emulated:", "emulated"),
        ("emulated:size=64M,media=ram", "emulated:size=64M,media=ram"),
        ("trace(01:00.0)", "trace(0000:01:00.0)"),
        ("vfio-user:/run/a:b=c/socket", "vfio-user:/run/a:b=c/socket"),
        ("vfio-user:socket", "vfio-user:socket"),
        (
            "mirror(vfio-user:/a,vfio-user:/b,emulated:size=1M)",
            "mirror(vfio-user:/a,vfio-user:/b,emulated:size=1M)",
        ),
        (
            "stripe(chunk=64K,emulated:size=1M,block=512,01:00.0)",
            "stripe(chunk=64K,emulated:size=1M,block=512,0000:01:00.0)",
        ),
    ] {
        let device: Device = name.parse().unwrap();
        assert_eq!(device.to_string(), canonical);
        assert_eq!(device.is_stack(), name.contains('('));
    }
}

#[test]
fn any_other_form_is_answered_with_the_forms_there_are() {
    for name in ["", "nvme", "0000:01:00", "emulator", "Emulated", "stripe(a,b)", "x:y"] {
        let error = refused(name);
        let forms = ["0000:01:00.0", "emulated[:", "vfio-user:/"];
        assert!(forms.iter().all(|form| error.contains(form)), "{name}: {error}");
    }
}

#[test]
fn a_wrong_part_is_named() {
    for (name, parts) in [
        ("emulated:block=513", &["block=513", "512"][..]),
        ("mirror(emulated,emulated:block=513)", &["emulated:block=513: ", "a power of two"]),
        (
            "mirror(emulated,/dev/nvme0n1)",
            &["/dev/nvme0n1: a name of the kernel's driver; `kiovec list` shows"],
        ),
        ("nvme0", &["a name of the kernel's driver; `kiovec list` shows"]),
        ("mirror(emulated,sda)", &["sda: a device is 0000:01:00.0"]),
        ("vfio-user", &["vfio-user: the path of a socket is missing"]),
        ("vfio-user:", &["as in vfio-user:/path/to/socket"]),
        ("vfio-user:/a,b", &["/a,b: ", "no comma", "symbolic link"]),
        ("mirror(vfio-user:/a,b=c,vfio-user:/b)", &["/a,b=c: ", "no comma"]),
        ("vfio-user:/a(b)", &["parentheses"]),
        ("vfio-user:/a\nb", &["\"/a\\nb\"", "no control character", "symbolic link"]),
        ("mirror(vfio-user:/a,vfio-user:/a)", &["vfio-user:/a is there twice"]),
        ("mirror(emulated,)", &["a device is missing", "stripe("]),
        ("mirror(emulated", &["parentheses do not match", "mirror(emulated"]),
        ("emulated)", &["parentheses do not match"]),
        ("trace()", &["a device is missing"]),
        ("partition(01:00.0,start=8)", &["01:00.0,start=8: ", "a layer's options come before its devices"]),
    ] {
        let error = refused(name);
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
}

#[test]
fn the_same_name_is_the_same_controller() {
    let parts = "stripe(partition(blocks=9,01:00.0),partition(start=9,trace(0000:01:00.0)))";
    assert_eq!(parts.parse::<Device>().unwrap().leaves.len(), 1);
    for (name, advice) in [
        ("mirror(01:00.0,0000:01:00.0)", "partition(start=0,blocks=1000,0000:01:00.0), or two devices"),
        ("stripe(partition(blocks=9,01:00.0),trace(01:00.0))", "0000:01:00.0 is there twice"),
        ("mirror(emulated,emulated)", "emulated:serial=A and emulated:serial=B"),
        ("mirror(emulated:mdts=3,emulated:mdts=3)", "emulated:mdts=3,serial=A and"),
    ] {
        let error = refused(name);
        assert!(error.contains(advice), "{name}: {error}");
    }
}

#[test]
fn each_controller_is_opened_once() {
    let name =
        "stripe(partition(blocks=9,emulated:size=1M),partition(start=9,blocks=9,emulated:size=1M),emulated)";
    let opened = name.parse::<Device>().unwrap().open().unwrap();
    let names: Vec<&str> = opened.controllers.iter().map(|controller| controller.name()).collect();
    assert_eq!(names, ["emulated:size=1M", "emulated"]);
    assert_eq!(opened.emulators.len(), 2);
}

#[test]
fn layers_are_listed_as_a_stack_lists_them() {
    let device: Device = "a(b(x=1,emulated,c(01:00.0)),02:00.0)".parse().unwrap();
    let layers: Vec<String> = device.layers().into_iter().map(Plan::to_string).collect();
    assert_eq!(
        layers,
        [
            "a(b(x=1,emulated,c(0000:01:00.0)),0000:02:00.0)",
            "b(x=1,emulated,c(0000:01:00.0))",
            "emulated",
            "c(0000:01:00.0)",
            "0000:01:00.0",
            "0000:02:00.0",
        ]
    );
}

#[test]
fn controllers_are_shut_down_while_their_emulators_run() {
    let opened = "trace(emulated)".parse::<Device>().unwrap().open().unwrap();
    let function = opened.emulators[0].function();
    // Released in the order of the fields, up to where the emulators' turn is.
    let Opened { device, controllers, space, emulators } = opened;
    drop((device, controllers, space));
    let status = function.read32(kiovec::spec::registers::CSTS).unwrap();
    assert_eq!(status & 1, 0, "disabled, and still there: {status:#x}");
    drop(emulators);
    assert_eq!(function.read32(kiovec::spec::registers::CSTS).unwrap(), u32::MAX);
}

#[test]
fn a_bring_up_that_fails_leaves_none_half_open() {
    let began = std::time::Instant::now();
    let device: Device = "stripe(emulated:serial=A,emulated:never_ready=on,to=1)".parse().unwrap();
    let error = device.open().unwrap_err().to_string();
    assert!(error.contains("emulated:never_ready=on,to=1: controller not ready"), "{error}");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

/// What a user sees who has mistaken the socket: one line, and what to do next.
#[test]
fn a_socket_that_leads_nowhere_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        let device: Device = format!("vfio-user:{}", path.display()).parse().unwrap();
        let error = device.open().map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{device}: ")) && !error.contains('\n'), "{error}");
        error
    };
    let missing = open(&dir.path().join("socket"));
    assert!(
        missing.contains("there is no socket") && missing.contains("start the server first"),
        "{missing}"
    );
    let empty = open(dir.path());
    assert!(empty.contains("there is no socket") && empty.contains("cntrl"), "{empty}");
    let ended = dir.path().join("ended");
    drop(std::os::unix::net::UnixListener::bind(&ended).unwrap());
    let ended = open(&ended);
    assert!(ended.contains("nobody listens") && ended.contains("start it again"), "{ended}");
    let other = dir.path().join("other");
    let listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    let thread = std::thread::spawn(move || drop(listener.accept()));
    let other = open(&other);
    assert!(other.contains("no vfio-user server") && other.contains("correct the path"), "{other}");
    thread.join().unwrap();
}
