//! `kiovec serve`: what it prints, how it ends, and that nothing of a client is left.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use kiovec::pci::vfio_user::message::{DmaMap, RegionInfo, SetIrqs, Version, command};
use kiovec::pci::vfio_user::{Header, Limits, Message, Socket};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zerocopy::IntoBytes;

use super::{json, kiovec, number, stderr, stdout};

struct Serve {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<BufReader<ChildStderr>>,
    socket: PathBuf,
    dir: tempfile::TempDir,
}

impl Serve {
    fn new(device: &str, options: &str) -> Serve {
        Serve::in_dir(tempfile::TempDir::new().unwrap(), device, options)
    }

    fn in_dir(dir: tempfile::TempDir, device: &str, options: &str) -> Serve {
        let socket = dir.path().join("nvme.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiovec"))
            .args(["serve", device, "--socket"])
            .arg(&socket)
            .args(options.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kiovec starts");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = child.stderr.take().map(BufReader::new);
        Serve { child, stdout, stderr, socket, dir }
    }

    fn out(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn err(&mut self) -> String {
        let mut line = String::new();
        self.stderr.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// What a client calls it.
    fn device(&self) -> String {
        format!("vfio-user:{}", self.socket.display())
    }

    /// What there is beside the socket, by name.
    fn folder(&self) -> Vec<String> {
        let names = fs::read_dir(self.socket.parent().unwrap()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; whether it was a success, and the rest of what it has printed.
    fn end(&mut self) -> (bool, String) {
        let success = self.child.wait().unwrap().success();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (success, rest)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that uses what can be used up: mappings, files, interrupts.
struct Client {
    socket: Socket,
    id: u16,
    _kept: Vec<OwnedFd>,
}

impl Client {
    fn connect(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        let socket = Socket::new(stream, Limits { payload: 1 << 16, fds: 8 });
        let mut client = Client { socket, id: 0, _kept: vec![] };
        client.ask(command::VERSION, Version::CURRENT.as_bytes(), &[]);
        client
    }

    fn ask(&mut self, command: u16, payload: &[u8], files: &[&OwnedFd]) -> Message {
        let deadline = Instant::now() + Duration::from_secs(300);
        self.id += 1;
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.socket.send(Header::command(self.id, command), &[payload], &files, deadline).unwrap();
        let reply = self.socket.receive(deadline).unwrap();
        assert_eq!((reply.header.id, reply.header.failure()), (self.id, None));
        reply
    }

    fn use_everything(&mut self) {
        let memory = memfd_create("client", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 0x10000).unwrap();
        for index in 0..16u64 {
            let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: index << 16, size: 0x10000 };
            self.ask(command::DMA_MAP, map.as_bytes(), &[&memory]);
        }
        let events: Vec<OwnedFd> = (0..8).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
        let set = SetIrqs { argsz: 20, flags: 4 | 32, index: 2, start: 0, count: 8 };
        self.ask(command::DEVICE_SET_IRQS, set.as_bytes(), &events.iter().collect::<Vec<_>>());
        let info = RegionInfo { argsz: 4096, flags: 0, index: 0, cap_offset: 0, size: 0, offset: 0 };
        self._kept = self.ask(command::DEVICE_GET_REGION_INFO, info.as_bytes(), &[]).fds;
        assert_eq!(self._kept.len(), 1);
    }
}

#[test]
fn it_says_how_to_connect_and_what_it_has_done() {
    let mut serve = Serve::new("emulated:size=16M", "");
    let line = serve.out();
    let path = serve.socket.display();
    assert!(line.starts_with(&format!("serving 16777216 bytes on {path};")), "{line}");
    assert!(line.contains(&format!("kiovec perf vfio-user:{path},")), "{line}");
    let device = line.split('\'').nth(1).unwrap();
    let device: Value = serde_json::from_str(device).unwrap();
    assert_eq!(
        (device["driver"].as_str(), device["socket"]["type"].as_str()),
        (Some("vfio-user-pci"), Some("unix"))
    );
    let client = Client::connect(&serve.socket);
    let id = std::process::id();
    assert_eq!(serve.err(), format!("kiovec: client 1 (process {id}) has connected\n"));
    serve.signal(Signal::TERM);
    assert_eq!(serve.err(), "kiovec: client 1 has left: the server was stopped\n");
    let (success, rest) = serve.end();
    assert!(success && rest.starts_with("served 1 client: 0 I/O commands"), "{rest}");
    assert!(!serve.socket.exists());
    drop(client);
}

#[test]
fn it_goes_on_when_nobody_reads_what_it_says() {
    let mut serve = Serve::new("emulated:size=16M", "");
    serve.out();
    // As when standard error is a pipe to a program that has ended.
    serve.stderr = None;
    for _ in 0..2 {
        drop(Client::connect(&serve.socket));
    }
    serve.signal(Signal::TERM);
    let (success, rest) = serve.end();
    assert!(success && rest.starts_with("served 2 clients"), "{rest}");
    assert!(!serve.socket.exists());
}

#[test]
fn an_error_that_nobody_reads_has_its_exit_code() {
    for (line, code) in [("serve 0000:01:00.0 --socket /tmp/never", 1), ("serve", 2)] {
        let (theirs, ours) = std::io::pipe().unwrap();
        drop(theirs);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiovec"));
        let status = command.args(line.split(' ')).stderr(ours).status().unwrap();
        assert_eq!(status.code(), Some(code), "{line}");
    }
}

#[test]
fn a_terminal_that_is_closed_ends_it() {
    let mut serve = Serve::new("emulated:size=16M", "");
    serve.out();
    serve.signal(Signal::HUP);
    let (success, rest) = serve.end();
    assert!(success && rest.starts_with("served 0 clients"), "{rest}");
    assert!(!serve.socket.exists());
}

#[test]
fn an_interrupt_ends_it_while_nobody_is_connected() {
    let mut serve = Serve::new("emulated", "--json");
    let line: Value = serde_json::from_str(&serve.out()).unwrap();
    assert_eq!((line["socket"].as_str(), line["size"].as_u64()), (serve.socket.to_str(), Some(1 << 30)));
    serve.signal(Signal::INT);
    let (success, rest) = serve.end();
    let summary: Value = serde_json::from_str(&rest).unwrap();
    assert!(success && summary["clients"] == 0 && summary["io_commands"] == 0, "{rest}");
    assert!(!serve.socket.exists());
}

#[test]
fn nothing_of_a_client_is_left() {
    let mut serve = Serve::new("emulated:size=16M", "");
    serve.out();
    let before = serve.files();
    for round in 1..=3 {
        let mut client = Client::connect(&serve.socket);
        client.use_everything();
        assert!(serve.files() > before);
        drop(client);
        assert!(serve.err().contains(&format!("client {round} (")));
        assert!(serve.err().contains("has closed the connection"));
        assert_eq!(serve.files(), before);
    }
}

#[test]
fn what_is_written_through_the_socket_is_read_through_it() {
    let mut serve = Serve::new("emulated:size=16M,media=ram", "");
    serve.out();
    let device = format!("vfio-user:{}", serve.socket.display());
    let output = kiovec(&format!("perf {device} -q 16 -w randrw -d 100 -t 300 --verify --yes-destroy-data"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains(" 0 wrong"), "{}", stdout(&output));
    serve.signal(Signal::TERM);
    let (success, rest) = serve.end();
    assert!(success && rest.contains(" 0 errors"), "{rest}");
}

/// Measures, verifying, with nothing wrong.
fn verified(line: &str) {
    let report = json(&format!("perf {line} --verify --yes-destroy-data"));
    let verify = &report["verify"];
    assert!(number(&verify["checked_blocks"]) > 0.0, "{line}: {report}");
    assert_eq!((number(&verify["mismatches"]), number(&report["errors"])), (0.0, 0.0), "{line}: {verify}");
}

#[test]
fn controllers_of_all_kinds_keep_what_was_written_through_the_socket() {
    for settings in ["sgl=on,block=512,mdts=2,mqes=15", "random_order=on", "queues=1,mdts=0"] {
        let mut serve = Serve::new(&format!("emulated:size=16M,media=ram,{settings}"), "");
        serve.out();
        for workload in ["-w randrw -M 40 -o 12k -q 24 -d 50 -t 300", "-w write -o 1M -q 4 -d 50 -t 300"] {
            verified(&format!("{} {workload}", serve.device()));
        }
    }
}

#[test]
fn layers_stand_on_served_controllers() {
    let mut legs =
        ["A", "B"].map(|serial| Serve::new(&format!("emulated:size=16M,media=ram,serial={serial}"), ""));
    legs.iter_mut().for_each(|leg| assert!(leg.out().starts_with("serving")));
    verified(&format!(
        "stripe({},{}) -w randrw -o 64k -q 8 -d 50 -t 300",
        legs[0].device(),
        legs[1].device()
    ));
}

/// As with fio: the job on the lost device ends with its error, the others go on, and the exit code is 1.
#[test]
fn a_lost_device_ends_its_own_job_and_no_other() {
    for extra in ["", "--rate 2000", "--numjobs 2"] {
        let (mut killed, file) = with_file();
        let mut other = Serve::new("emulated:size=16M,media=ram,serial=OTHER", "");
        assert!(killed.out().starts_with("serving") && other.out().starts_with("serving"));
        let devices = [killed.device(), other.device()];
        let line = format!(
            "perf {} {} -w randwrite --verify --yes-destroy-data -q 16 -a 0 -t 3 --json {extra}",
            devices[0], devices[1]
        );
        let mut client = spawn(&line, Stdio::piped());
        until_written(&file, &mut client);
        killed.signal(Signal::KILL);
        let output = client.wait_with_output().unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{extra}: {error}");
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|wrong| panic!("{extra}: {wrong}: {error}"));
        let [lost, whole] = &report["jobs"].as_array().unwrap()[..] else { panic!("{report}") };
        assert_eq!(
            (&lost["device"], &whole["device"]),
            (&devices[0].as_str().into(), &devices[1].as_str().into())
        );
        // The other one was measured to its end, and all that it wrote was read back.
        assert!(number(&whole["seconds"]) >= 2.9 && whole["lost"].is_null(), "{extra}: {report}");
        assert_eq!(
            (&whole["verify"]["read_back"], &whole["verify"]["mismatches"]),
            (&true.into(), &0.into())
        );
        assert_eq!(
            (number(&whole["errors"]), &whole["interrupted"]),
            (0.0, &false.into()),
            "{extra}: {report}"
        );
        // The report names the loss, and so does the error, in one line.
        assert!(lost["lost"].as_str().unwrap().starts_with(&devices[0]), "{extra}: {report}");
        assert!(number(&lost["seconds"]) <= number(&whole["seconds"]), "{extra}: {report}");
        let errors: Vec<&str> = error.lines().filter(|line| !line.starts_with("kiovec: note: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(&devices[0]), "{extra}: {error}");
        assert!(
            errors[0].contains("the connection is lost") && errors[0].contains("its job ended"),
            "{error}"
        );
        assert!(!error.contains(&devices[1]), "{extra}: {error}");
    }
}

#[test]
fn a_run_that_loses_all_its_devices_ends_at_once_and_names_them() {
    let (mut first, file) = with_file();
    let (mut second, _) = with_file();
    assert!(first.out().starts_with("serving") && second.out().starts_with("serving"));
    let line =
        format!("perf {} {} -w randwrite --yes-destroy-data -a 0 -t 86400", first.device(), second.device());
    let mut client = spawn(&line, Stdio::piped());
    until_written(&file, &mut client);
    first.signal(Signal::KILL);
    second.signal(Signal::KILL);
    let output = client.wait_with_output().unwrap();
    let error = stderr(&output);
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()), "{error}");
    assert!(error.contains(&first.device()) && error.contains(&second.device()), "{error}");
}

/// Writes only: reads in flight on that leg fail, since it may still write their memory.
#[test]
fn a_mirror_goes_on_when_the_server_of_one_leg_is_killed() {
    for extra in ["", "--rate 1000"] {
        let (mut killed, file) = with_file();
        let mut other = Serve::new("emulated:size=16M,media=ram,serial=OTHER", "");
        assert!(killed.out().starts_with("serving") && other.out().starts_with("serving"));
        let stack = format!("mirror({},{})", killed.device(), other.device());
        let line =
            format!("perf {stack} -w randwrite --verify --yes-destroy-data -q 16 -a 0 -t 5 --json {extra}");
        let mut client = spawn(&line, Stdio::piped());
        until_written(&file, &mut client);
        killed.signal(Signal::KILL);
        let output = client.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{extra}: {error}: {:?}", stderr(&output)));
        assert!(number(&report["verify"]["checked_blocks"]) > 0.0, "{report}");
        assert_eq!((&report["verify"]["mismatches"], &report["errors"]), (&0.into(), &0.into()), "{report}");
    }
}

#[test]
fn a_file_keeps_what_was_written_when_the_server_is_killed() {
    let (mut serve, file) = with_file();
    serve.out();
    verified(&format!("{} -w write -o 64k -q 4 -d 50 -t 300", serve.device()));
    let before = fs::read(&file).unwrap();
    serve.signal(Signal::KILL);
    serve.end();
    let dir = std::mem::replace(&mut serve.dir, tempfile::TempDir::new().unwrap());
    let mut again = Serve::in_dir(dir, &format!("emulated:size=16M,media=file:{}", file.display()), "");
    assert!(again.out().starts_with("serving"));
    json(&format!("perf {} -w read -d 50 -t 300", again.device()));
    assert!(before.iter().any(|byte| *byte != 0) && fs::read(&file).unwrap() == before);
}

fn with_file() -> (Serve, PathBuf) {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("disk");
    (Serve::in_dir(dir, &format!("emulated:size=16M,media=file:{}", file.display()), ""), file)
}

fn spawn(line: &str, stdout: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kiovec"))
        .args(line.split_whitespace())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiovec starts")
}

/// Waits until a client is in the middle of its I/O.
fn until_written(file: &Path, client: &mut Child) {
    let end = Instant::now() + Duration::from_secs(300);
    while fs::metadata(file).unwrap().blocks() == 0 {
        assert!(Instant::now() < end && client.try_wait().unwrap().is_none(), "nothing is written");
        std::thread::yield_now();
    }
}

/// A server with a file, and a client that writes to it for longer than any test; it has begun.
fn busy() -> (Serve, Child) {
    let (mut serve, file) = with_file();
    serve.out();
    let line = format!("perf {} -q 32 -t 600 -w randwrite --yes-destroy-data", serve.device());
    let mut client = spawn(&line, Stdio::null());
    assert!(serve.err().contains("has connected"));
    until_written(&file, &mut client);
    (serve, client)
}

#[test]
fn a_client_that_is_killed_leaves_a_clean_controller() {
    let (mut serve, mut client) = busy();
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(serve.err().contains("closed the connection"));
    let after = serve.files();
    let output = kiovec(&format!("identify vfio-user:{}", serve.socket.display()));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(serve.err().contains("client 2 (") && serve.err().contains("closed the connection"));
    assert_eq!(serve.files(), after);
    assert_eq!(serve.folder(), ["disk", "nvme.sock"]);
}

/// Of the server there is its socket, which the next one replaces (see below), and nothing else.
#[test]
fn a_server_that_is_killed_ends_its_client_s_run_with_an_error() {
    let (serve, mut client) = busy();
    serve.signal(Signal::KILL);
    let output = client.wait().unwrap();
    let mut error = String::new();
    client.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(output.code(), Some(1), "{error}");
    assert!(error.contains("vfio-user:"), "{error}");
    assert_eq!(serve.folder(), ["disk", "nvme.sock"]);
}

#[test]
fn once_is_once() {
    let mut serve = Serve::new("emulated:size=16M", "--once");
    serve.out();
    // Who finds the socket in use is no client.
    let second = kiovec(&format!("serve emulated --socket {}", serve.socket.display()));
    assert!(stderr(&second).contains("is in use by another server"), "{}", stderr(&second));
    drop(Client::connect(&serve.socket));
    let (success, rest) = serve.end();
    assert!(success && rest.starts_with("served 1 client"), "{rest}");
    assert!(!serve.socket.exists());
}

#[test]
fn a_server_that_was_killed_is_in_nobody_s_way() {
    let mut serve = Serve::new("emulated:size=16M", "");
    serve.out();
    serve.signal(Signal::KILL);
    assert!(!serve.end().0);
    assert!(serve.socket.exists());
    let dir = std::mem::replace(&mut serve.dir, tempfile::TempDir::new().unwrap());
    let mut again = Serve::in_dir(dir, "emulated:size=16M", "");
    assert!(again.out().starts_with("serving"));
    Client::connect(&again.socket);
}

#[test]
fn blocks_in_a_file() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("disk");
    let mut serve = Serve::new("emulated:size=1M", &format!("--media file:{}", file.display()));
    serve.out();
    assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 20);
    let line =
        format!("serve emulated:size=1M --socket {}/b --media file:{}", dir.path().display(), file.display());
    let output = kiovec(&line);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(error.contains("is in use by another process") && error.lines().count() == 1, "{error}");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let socket = dir.path().join("s").display().to_string();
    for (device, options, code, what) in [
        ("0000:01:00.0", "", 1, "0000:01:00.0 cannot be served; only one emulated[:…] can, without layers"),
        ("trace(emulated)", "", 1, "cannot be served"),
        ("stripe(emulated:serial=A,emulated:serial=B)", "", 1, "cannot be served"),
        ("emulated", "--media tape", 2, "media=tape is not possible; media is null, ram or file:PATH"),
        ("emulated", "--core 5000", 1, "core is the number of a processor"),
        ("emulated", "--media file:/no/such/file", 1, "make the folder first: mkdir -p /no/such"),
    ] {
        let output = kiovec(&format!("serve {device} --socket {socket} {options}"));
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(what) && error.lines().count() == 1, "{error}");
        assert!(!Path::new(&socket).exists());
    }
    let output = kiovec(&format!("serve emulated --socket {}/no/folder/s", dir.path().display()));
    assert!(stderr(&output).contains("make the folder first: mkdir -p "), "{}", stderr(&output));
    fs::write(&socket, "mine").unwrap();
    let output = kiovec(&format!("serve emulated --socket {socket}"));
    assert!(stderr(&output).contains("is there and is no socket"), "{}", stderr(&output));
}
