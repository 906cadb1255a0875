//! Booting a [`Machine`] under QEMU and reading its report.
//!
//! Software emulation only: the tests ask for correctness, and a machine without KVM has to give the same answer
//! as one with it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{
    Access, Address, Atomic, Content, Controller, Defect, Machine, Mdts, Model, Namespace, RootPort,
};
use crate::monitor::Entrance;
use crate::operator::{CONTROLLER_ENABLED, Operator, namespace_id};
use crate::process;
use crate::report::{EXIT_PORT, Ending, Line};

/// The machine's own QEMU.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// What is booted.
#[derive(Debug)]
pub struct Boot {
    /// QEMU.
    pub program: PathBuf,
    /// Where [`Model::Served`] listens.
    pub socket: PathBuf,
    /// An ELF kernel with a PVH entry, or a bzImage.
    pub kernel: PathBuf,
    /// The archive with /init.
    pub initramfs: PathBuf,
    /// What [`Mdts::Largest`] is here.
    pub largest_mdts: u8,
}

/// Why a machine did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU is not there.
    #[error("cannot run {0}: {1}; install it with: tests/install")]
    NoQemu(PathBuf, #[source] io::Error),
    /// A file of the run.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// The report.
    pub lines: Vec<Line>,
    /// How QEMU ended.
    pub ending: Ending,
    /// What guest-init and the kernel wrote to the console.
    pub console: String,
    /// What QEMU itself complained of.
    pub complaints: String,
}

/// The files of one run.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
    /// Where the monitor's socket is. Below /tmp: its path has 107 bytes at most, which TARGET's may use up.
    rendezvous: PathBuf,
}

impl Files {
    fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    fn complaints(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    fn monitor(&self) -> PathBuf {
        self.rendezvous.join("monitor")
    }

    fn medium(&self, controller: &Controller, namespace: &Namespace) -> PathBuf {
        self.directory.join(format!("{}-{}.raw", controller.serial, namespace.nsid))
    }
}

fn rendezvous(machine: &Machine) -> PathBuf {
    std::env::temp_dir().join(format!("kiovec-{}-{}", machine.name, std::process::id()))
}

/// The QEMU that tests/install found to have a client for vfio-user; `work` is TARGET/qemu.
pub fn with_vfio_user(work: &Path) -> PathBuf {
    work.join("newest").join(PROGRAM)
}

/// The largest MDTS that this QEMU's controller takes: none at all (0), or the 2 MiB (9) that newer ones allow.
pub fn largest_mdts(program: &Path) -> Result<u8, Error> {
    const NO_LIMIT: u8 = 0;
    const TWO_MIB: u8 = 9;
    let failed = |e| Error::NoQemu(program.to_owned(), e);
    let mut probe = Command::new(program)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-S",
        ])
        .args(["-device", &format!("nvme,serial=probe,mdts={NO_LIMIT}"), "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    // One that refuses the device ends without reading this.
    let _ = probe.stdin.take().map(|mut monitor| monitor.write_all(b"quit\n"));
    let status = process::wait(&mut probe, Duration::from_secs(60)).map_err(failed)?;
    Ok(if status.is_some_and(|status| status.success()) { NO_LIMIT } else { TWO_MIB })
}

/// Boots `machine` with media of its own in `directory` and waits for its end. Each line of the report goes to
/// `heard` as it comes. The guest's console stays in `directory`/console.log; the media are removed.
pub fn run(
    machine: &Machine,
    boot: &Boot,
    directory: &Path,
    heard: impl FnMut(&Line) + Send,
) -> Result<Run, Error> {
    let files = Files { directory: directory.to_owned(), rendezvous: rendezvous(machine) };
    make_media(machine, &files)?;
    fs::create_dir(&files.rendezvous).map_err(|e| Error::File(files.rendezvous.clone(), e))?;
    let outcome = run_with(machine, boot, &files, heard);
    fs::remove_dir_all(&files.rendezvous).map_err(|e| Error::File(files.rendezvous.clone(), e))?;
    for_media(machine, |controller, namespace| {
        let path = files.medium(controller, namespace);
        fs::remove_file(&path).map_err(|e| Error::File(path, e))
    })?;
    outcome
}

fn run_with(
    machine: &Machine,
    boot: &Boot,
    files: &Files,
    mut heard: impl FnMut(&Line) + Send,
) -> Result<Run, Error> {
    let log = files.complaints();
    let complaints = File::create(&log).map_err(|e| Error::File(log.clone(), e))?;
    let failed = |e| Error::NoQemu(boot.program.clone(), e);
    let entrance = files.monitor();
    let entrance = Entrance::open(&entrance).map_err(|e| Error::File(entrance, e))?;
    let mut command = Command::new(&boot.program);
    command
        .args(arguments(machine, boot, files))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    process::end_with_parent(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let (tracing, traced) = mpsc::channel();
    let mut operator = child.stdin.take().map(|answers| Operator::new(entrance, answers, traced));
    let mut heard = move |line: &Line| {
        if let (Line::Ask(ask), Some(operator)) = (line, &mut operator) {
            operator.obey(ask);
        }
        heard(line);
    };
    let (report, said) = (child.stdout.take(), child.stderr.take());
    let (lines, status) = thread::scope(|scope| {
        let reader = scope.spawn(|| report.map_or_else(Vec::new, |report| read_report(report, &mut heard)));
        scope.spawn(|| said.map(|said| keep(said, complaints, &tracing)));
        let status = process::wait(&mut child, machine.limit);
        (reader.join().unwrap_or_default(), status)
    });
    let status = status.map_err(failed)?;
    let read = |path: PathBuf| match fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) => Err(Error::File(path, e)),
    };
    Ok(Run { lines, ending: ending(status), console: read(files.console())?, complaints: read(log)? })
}

/// Writes what QEMU says to a file, and passes on which controllers were enabled.
fn keep(said: impl io::Read, mut complaints: File, traced: &Sender<String>) {
    for line in BufReader::new(said).split(b'\n').map_while(Result::ok) {
        // A log without a line is better than a QEMU that waits for somebody to read.
        let _ = complaints.write_all(&[&line[..], b"\n"].concat());
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(CONTROLLER_ENABLED) {
            let _ = traced.send(line);
        }
    }
}

fn ending(status: Option<ExitStatus>) -> Ending {
    match status {
        None => Ending::TooLong,
        Some(status) => match status.code() {
            Some(code) => Ending::Code(code),
            None => Ending::Signal(status.signal().unwrap_or_default()),
        },
    }
}

fn read_report(report: ChildStdout, heard: &mut impl FnMut(&Line)) -> Vec<Line> {
    let mut lines = Vec::new();
    // Bytes, not text: firmware or a dying guest may write anything.
    for bytes in BufReader::new(report).split(b'\n').map_while(Result::ok) {
        if let Some(line) = Line::parse(&String::from_utf8_lossy(&bytes)) {
            heard(&line);
            lines.push(line);
        }
    }
    lines
}

/// With less, 64 hugepages cannot be had.
const MEMORY: &str = "768M";

fn arguments(machine: &Machine, boot: &Boot, files: &Files) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-nographic"].map(String::from).into();
    if !machine.reboots() {
        arguments.push("-no-reboot".into());
    }
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    // Interrupt remapping needs the split interrupt controller; it changes nothing for a machine without.
    let mut board = "q35,kernel-irqchip=split".to_owned();
    if machine.is_served() {
        // Another process can only reach memory that has a file.
        add("-object", format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"));
        board += ",memory-backend=memory";
    }
    add("-machine", board);
    // With a thread for each processor, QEMU up to 10.0 at least aborts now and then (iotlb_to_section) when one
    // processor enables or disables a BAR while another runs; and every opening of a device does that.
    add("-accel", "tcg,thread=single".into());
    add("-cpu", "max".into());
    add("-smp", machine.processors.to_string());
    add("-m", MEMORY.into());
    if let Some(iommu) = machine.iommu {
        let remapping = if iommu.interrupt_remapping { "on" } else { "off" };
        let bits = iommu.address_bits;
        add("-device", format!("intel-iommu,intremap={remapping},caching-mode=on,aw-bits={bits}"));
    }
    if machine.controllers.iter().any(|controller| controller.root_port.is_some()) {
        // Else the firmware's tables keep hot-plug to themselves, by a mechanism that only QEMU has, and the kernel
        // leaves the ports' slots alone.
        add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off".into());
    }
    for controller in machine.controllers {
        if let Some(port) = &controller.root_port {
            add("-device", root_port_device(port).to_string());
        }
        add("-device", controller_device(controller, boot).to_string());
        for namespace in own_namespaces(controller) {
            let node = namespace_id(controller.serial, namespace.nsid);
            add("-blockdev", medium_node(namespace, &node, &files.medium(controller, namespace)).to_string());
            add("-device", namespace_device(controller, namespace, &node).to_string());
        }
    }
    let option = |path: PathBuf| path.display().to_string().replace(',', ",,");
    add("-chardev", format!("socket,id=monitor,path={}", option(files.monitor())));
    add("-mon", "chardev=monitor,mode=control".into());
    // The kernel's console and the report go separate ways, so that neither can cut into the other's lines.
    add("-chardev", format!("file,id=console,path={}", option(files.console())));
    add("-serial", "chardev:console".into());
    add("-serial", "stdio".into());
    add("-device", format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"));
    add("-kernel", boot.kernel.display().to_string());
    add("-initrd", boot.initramfs.display().to_string());
    // The kernel gives up if it sees no timer interrupt within a few milliseconds, which are over sooner than QEMU gets
    // to run on a host that is busy enough.
    let kernel = "console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on";
    add("-append", format!("{kernel} kiovec.machine={}", machine.name));
    arguments
}

/// The bus of a port, for what is in its slot.
fn port_bus(port: &RootPort) -> String {
    format!("slot{}", port.slot)
}

fn root_port_device(port: &RootPort) -> Value {
    json!({
        "driver": "pcie-root-port",
        "id": port_bus(port),
        "bus": "pcie.0",
        "addr": device_address(port.address),
        "chassis": port.slot,
        "slot": port.slot,
    })
}

fn controller_device(controller: &Controller, boot: &Boot) -> Value {
    let mut device = json!({
        "id": controller.serial,
        "multifunction": controller.multifunction,
        "bus": controller.root_port.as_ref().map_or_else(|| "pcie.0".into(), port_bus),
        "addr": device_address(controller.address),
    });
    let Model::Qemu { mdts, atomic } = controller.model else {
        device["driver"] = json!("vfio-user-pci");
        device["socket"] = json!({ "type": "unix", "path": boot.socket });
        return device;
    };
    device["driver"] = json!("nvme");
    device["serial"] = json!(controller.serial);
    device["mdts"] = match mdts {
        Mdts::Pages(exponent) => json!(exponent),
        Mdts::Largest => json!(boot.largest_mdts),
    };
    // Only where it is asked for: QEMU before 9.2 does not have these.
    if let Atomic::Blocks(blocks) = atomic {
        device["atomic.awun"] = json!(blocks - 1);
        device["atomic.awupf"] = json!(blocks - 1);
    }
    device
}

/// The namespaces whose media are QEMU's.
fn own_namespaces(controller: &Controller) -> &'static [Namespace] {
    match controller.model {
        Model::Qemu { .. } => controller.namespaces,
        Model::Served => &[],
    }
}

fn device_address(address: Address) -> String {
    format!("{:x}.{:x}", address.slot, address.function)
}

fn namespace_device(controller: &Controller, namespace: &Namespace, node: &str) -> Value {
    json!({
        "driver": "nvme-ns",
        "id": node,
        "drive": node,
        "bus": controller.serial,
        "nsid": namespace.nsid,
        "logical_block_size": namespace.block,
        "physical_block_size": namespace.block,
    })
}

fn medium_node(namespace: &Namespace, node: &str, path: &Path) -> Value {
    let mut file = json!({ "driver": "file", "filename": path.display().to_string(), "discard": "unmap" });
    if namespace.defects.is_empty() {
        file["node-name"] = json!(node);
        return file;
    }
    let errors: Vec<Value> = namespace.defects.iter().map(injected_error).collect();
    json!({
        "driver": "blkdebug",
        "node-name": node,
        "discard": "unmap",
        "image": file,
        "inject-error": errors,
    })
}

fn injected_error(defect: &Defect) -> Value {
    let access = match defect.access {
        Access::Read => "read",
        Access::Write => "write",
    };
    json!({ "event": "none", "iotype": access, "sector": defect.sector, "errno": libc::EIO, "once": false })
}

fn for_media(
    machine: &Machine,
    mut each: impl FnMut(&Controller, &Namespace) -> Result<(), Error>,
) -> Result<(), Error> {
    for controller in machine.controllers {
        own_namespaces(controller).iter().try_for_each(|namespace| each(controller, namespace))?;
    }
    Ok(())
}

fn make_media(machine: &Machine, files: &Files) -> Result<(), Error> {
    fs::create_dir_all(&files.directory).map_err(|e| Error::File(files.directory.clone(), e))?;
    for_media(machine, |controller, namespace| {
        let path = files.medium(controller, namespace);
        make_medium(&path, namespace).map_err(|e| Error::File(path, e))
    })
}

fn make_medium(path: &Path, namespace: &Namespace) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(namespace.size)?;
    match namespace.content {
        Content::Blank => Ok(()),
        Content::SwapPartition => write_swap_partition(&file, namespace.size),
        Content::FileSystem => file.write_all_at(&empty_romfs(), 0),
    }
}

/// A DOS partition table with one partition from 1 MiB to the end, and in it the header that `mkswap` would write.
fn write_swap_partition(file: &File, size: u64) -> io::Result<()> {
    const PAGE: u64 = 4096;
    const START: u64 = 1 << 20;
    let sectors = |bytes: u64| ((bytes / 512) as u32).to_le_bytes();
    let mut entry = [0; 16];
    entry[4] = 0x82; // Linux swap
    entry[8..12].copy_from_slice(&sectors(START));
    entry[12..16].copy_from_slice(&sectors(size - START));
    file.write_all_at(&entry, 446)?;
    file.write_all_at(&[0x55, 0xaa], 510)?;
    // After the boot sector's 1024 bytes: version, last page, bad pages; the magic ends the first page.
    let last_page = ((size - START) / PAGE - 1) as u32;
    file.write_all_at(&[1_u32.to_le_bytes(), last_page.to_le_bytes(), [0; 4]].concat(), START + 1024)?;
    file.write_all_at(b"SWAPSPACE2", START + PAGE - 10)
}

/// A romfs with nothing but its root (the kernel's Documentation/filesystems/romfs.rst): the superblock, and the
/// header of a directory that begins with itself.
fn empty_romfs() -> [u8; 64] {
    const ROOT: u32 = 32;
    const DIRECTORY: u32 = 1;
    let mut image = [0; 64];
    let mut put = |at: usize, data: &[u8]| image[at..at + data.len()].copy_from_slice(data);
    put(0, b"-rom1fs-");
    put(8, &64_u32.to_be_bytes());
    put(ROOT as usize, &DIRECTORY.to_be_bytes());
    put(ROOT as usize + 4, &ROOT.to_be_bytes());
    put(ROOT as usize + 16, b".");
    let sum = romfs_sum(&image);
    image[12..16].copy_from_slice(&sum.wrapping_neg().to_be_bytes());
    image
}

/// The sum of big-endian words, which is 0 in a good image.
fn romfs_sum(image: &[u8]) -> u32 {
    let words =
        image.chunks_exact(4).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    words.fold(0, u32::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{self, ATOMIC, DEFECTIVE, DISK, LEG, MACHINES, OTHER_TWIN, SERVED_MACHINES, USED};
    use std::collections::BTreeSet;

    fn boot() -> Boot {
        Boot {
            program: PROGRAM.into(),
            socket: "/run,1/socket".into(),
            kernel: "/k/vmlinux".into(),
            initramfs: "/k/initramfs".into(),
            largest_mdts: 0,
        }
    }

    fn arguments_of(machine: &Machine) -> Vec<String> {
        arguments(machine, &boot(), &Files { directory: "/run,1".into(), rendezvous: "/tmp,1".into() })
    }

    fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
        let pairs = arguments.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn every_device_hangs_on_a_node_and_a_bus_that_exist() {
        for machine in MACHINES {
            let arguments = arguments_of(machine);
            let parsed = |option| {
                let json = values(&arguments, option).into_iter().filter(|value| value.starts_with('{'));
                json.map(|value| serde_json::from_str::<Value>(value).expect("JSON")).collect::<Vec<_>>()
            };
            let nodes: BTreeSet<String> =
                parsed("-blockdev").iter().map(|n| n["node-name"].to_string()).collect();
            let devices = parsed("-device");
            let of = |driver: &'static str| devices.iter().filter(move |device| device["driver"] == driver);
            let mut slots: BTreeSet<String> = of("pcie-root-port").map(|d| d["id"].to_string()).collect();
            slots.insert(json!("pcie.0").to_string());
            let buses: BTreeSet<String> = of("nvme").map(|d| d["id"].to_string()).collect();
            assert_eq!(buses.len(), machine.controllers.len());
            assert!(of("nvme").all(|controller| slots.contains(&controller["bus"].to_string())));
            for namespace in of("nvme-ns") {
                assert!(nodes.contains(&namespace["drive"].to_string()), "{namespace}");
                assert!(buses.contains(&namespace["bus"].to_string()), "{namespace}");
            }
            assert_eq!(nodes.len(), of("nvme-ns").count());
        }
    }

    #[test]
    fn the_iommu_is_as_described() {
        let iommu = |machine: &Machine| {
            values(&arguments_of(machine), "-device")
                .into_iter()
                .find(|d| d.starts_with("intel-iommu"))
                .map(str::to_owned)
        };
        let main = machine::find("main").expect("main");
        assert_eq!(iommu(main).as_deref(), Some("intel-iommu,intremap=on,caching-mode=on,aw-bits=48"));
        assert_eq!(iommu(machine::find("no-iommu").expect("no-iommu")), None);
    }

    #[test]
    fn controllers_and_namespaces_are_as_described() {
        assert_eq!(controller_device(&OTHER_TWIN, &boot())["addr"], "13.1");
        assert_eq!(controller_device(&OTHER_TWIN, &boot())["multifunction"], true);
        let namespace = namespace_device(&DISK, &DISK.namespaces[1], "n");
        assert_eq!((&namespace["nsid"], &namespace["logical_block_size"]), (&json!(2), &json!(4096)));
    }

    #[test]
    fn a_controller_in_a_slot_is_behind_its_port() {
        let port = LEG.root_port.as_ref().expect("a port");
        assert_eq!(root_port_device(port)["id"], controller_device(&LEG, &boot())["bus"]);
        assert_eq!(controller_device(&LEG, &boot())["addr"], "0.0");
        assert_eq!(controller_device(&DISK, &boot())["bus"], "pcie.0");
    }

    #[test]
    fn a_served_controller_is_reached_by_its_socket_and_reaches_shared_memory() {
        let machine = machine::find("served").expect("served");
        let arguments = arguments_of(machine);
        let device = values(&arguments, "-device").into_iter().find(|d| d.contains("vfio-user-pci"));
        let device: Value = serde_json::from_str(device.expect("the device")).expect("JSON");
        assert_eq!(device["socket"]["path"], "/run,1/socket");
        assert_eq!(values(&arguments, "-object"), ["memory-backend-memfd,id=memory,size=768M,share=on"]);
        assert!(values(&arguments, "-machine")[0].ends_with(",memory-backend=memory"));
        assert_eq!(values(&arguments, "-blockdev"), [""; 0]);
        assert_eq!(values(&arguments_of(&MACHINES[0]), "-object"), [""; 0]);
    }

    #[test]
    fn only_a_machine_that_boots_twice_may() {
        for machine in MACHINES.iter().chain(SERVED_MACHINES) {
            let stays_down = arguments_of(machine).contains(&"-no-reboot".to_owned());
            assert_eq!(stays_down, !machine.reboots(), "{}", machine.name);
        }
    }

    #[test]
    fn atomic_writes_are_zeroes_based() {
        assert_eq!(controller_device(&ATOMIC, &boot())["atomic.awupf"], 255);
        assert_eq!(controller_device(&DISK, &boot())["atomic.awupf"], Value::Null);
    }

    #[test]
    fn defects_lie_over_the_medium() {
        let node = medium_node(&DEFECTIVE.namespaces[0], "n", Path::new("/m"));
        assert_eq!((&node["driver"], &node["image"]["filename"]), (&json!("blkdebug"), &json!("/m")));
        let errors = node["inject-error"].as_array().expect("errors");
        assert_eq!(errors.len(), DEFECTIVE.namespaces[0].defects.len());
        assert_eq!((&errors[1]["iotype"], &errors[1]["sector"]), (&json!("write"), &json!(30_005)));
        assert_eq!(medium_node(&DISK.namespaces[0], "n", Path::new("/m"))["driver"], "file");
    }

    #[test]
    fn a_comma_in_a_path_is_escaped() {
        let arguments = arguments_of(&MACHINES[0]);
        let expected = ["socket,id=monitor,path=/tmp,,1/monitor", "file,id=console,path=/run,,1/console.log"];
        assert_eq!(values(&arguments, "-chardev"), expected);
    }

    #[test]
    fn the_file_system_adds_up() {
        assert_eq!(romfs_sum(&empty_romfs()), 0);
    }

    #[test]
    fn the_swap_partition_is_where_the_table_says() {
        let path = std::env::temp_dir().join(format!("kiovec-swap-{}", std::process::id()));
        let namespace = USED.namespaces[0];
        make_medium(&path, &namespace).expect("written");
        let bytes = fs::read(&path).expect("read");
        fs::remove_file(&path).expect("removed");
        let start = u32::from_le_bytes(bytes[454..458].try_into().expect("four bytes")) as usize * 512;
        assert_eq!(bytes.len(), 16 << 20);
        assert_eq!(&bytes[start + 4086..start + 4096], b"SWAPSPACE2");
    }
}
