//! Runs the cases of all machines, or of those named, and prints a line for each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use kiovec_tests::build;
use kiovec_tests::initramfs::Initramfs;
use kiovec_tests::kernel::Kernel;
use kiovec_tests::machine::{MACHINES, Machine, SERVED, SERVED_MACHINES};
use kiovec_tests::qemu::{self, Boot};
use kiovec_tests::report::{self, Line, Outcome};
use kiovec_tests::server::Server;

/// What VFIO consists of; nvme as well, which some kernels have as a module; and two users of disks.
const MODULES: [&str; 5] = ["nvme", "vfio_iommu_type1", "vfio_pci", "dm_mod", "romfs"];

/// The program that serves a controller; the guest has it too.
const SERVER: &str = "kiovec";

type Error = Box<dyn std::error::Error>;

/// Boots virtual machines with NVMe controllers and runs kiovec's programs in them.
#[derive(Parser)]
struct Arguments {
    /// The machines to boot; all of a kind if none is named
    machines: Vec<String>,
    /// Boots the machines whose controller is that of `kiovec serve`, by a QEMU that has a client for vfio-user
    #[arg(long)]
    vfio_user: bool,
    /// Lists machines and cases, and runs nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let kind = if arguments.vfio_user { SERVED_MACHINES } else { MACHINES };
    let outcome = chosen(kind, &arguments.machines).and_then(|machines| {
        if arguments.list {
            list(&machines);
            return Ok(true);
        }
        if arguments.vfio_user { run_served(&machines) } else { run_own(&machines) }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("qemu-tests: {e}");
            ExitCode::FAILURE
        }
    }
}

fn chosen(kind: &'static [Machine], names: &[String]) -> Result<Vec<&'static Machine>, Error> {
    if names.is_empty() {
        return Ok(kind.iter().collect());
    }
    let known = || kind.iter().map(|machine| machine.name).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let found = kind.iter().find(|machine| machine.name == name);
        found.ok_or_else(|| format!("no machine {name}; there are: {}", known()).into())
    };
    names.iter().map(find).collect()
}

fn list(machines: &[&Machine]) {
    for machine in machines {
        println!("{}: {}", machine.name, machine.cases.join(" "));
    }
}

/// Whether every case of every machine passed, with QEMU's own controllers.
fn run_own(machines: &[&'static Machine]) -> Result<bool, Error> {
    let work = work()?;
    let boot = make_boot(&work, &build::static_binaries()?, qemu::PROGRAM.into())?;
    Ok(conclude(&run_all(machines, &boot, &work)?))
}

/// The same with the controller of one server.
fn run_served(machines: &[&'static Machine]) -> Result<bool, Error> {
    let work = work()?;
    let binaries = build::static_binaries()?;
    let mut boot = make_boot(&work, &binaries, qemu::with_vfio_user(&work))?;
    let log = work.join("run/serve.log");
    let server = Server::start(&binaries.join(SERVER), &SERVED, &log)?;
    boot.socket = server.socket();
    let mut outcomes = run_all(machines, &boot, &work)?;
    let started = Instant::now();
    let failure = server.end()?;
    let said = failure.is_some();
    let outcome = Outcome { name: "server-ends".into(), took: started.elapsed(), failure };
    print_outcome(&outcome);
    if said {
        println!("  what the server said is in {}", log.display());
    }
    outcomes.push(outcome);
    Ok(conclude(&outcomes))
}

/// TARGET/qemu.
fn work() -> Result<PathBuf, Error> {
    let work = build::target_directory().join("qemu");
    let run = work.join("run");
    fs::create_dir_all(&run).map_err(|e| format!("{}: {e}", run.display()))?;
    Ok(work)
}

fn run_all(machines: &[&'static Machine], boot: &Boot, work: &Path) -> Result<Vec<Outcome>, Error> {
    println!(
        "{}, kernel {}, largest MDTS {}",
        boot.program.display(),
        boot.kernel.display(),
        boot.largest_mdts
    );
    let mut outcomes = Vec::new();
    for machine in machines {
        outcomes.extend(run_machine(machine, boot, &work.join("run").join(machine.name))?);
    }
    Ok(outcomes)
}

/// Prints the count; whether all passed.
fn conclude(outcomes: &[Outcome]) -> bool {
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    failed == 0
}

fn make_boot(work: &Path, binaries: &Path, program: PathBuf) -> Result<Boot, Error> {
    let kernel = Kernel::find(&work.join("kernel"))?;
    let image = kernel.boot_image(work)?;
    let path = work.join("initramfs");
    fs::write(&path, initramfs(&kernel, binaries)?).map_err(|e| format!("{}: {e}", path.display()))?;
    let largest_mdts = qemu::largest_mdts(&program)?;
    Ok(Boot { program, socket: PathBuf::new(), kernel: image, initramfs: path, largest_mdts })
}

fn initramfs(kernel: &Kernel, binaries: &Path) -> Result<Vec<u8>, Error> {
    let read = |name: &str| {
        let path: PathBuf = binaries.join(name);
        fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
    };
    let mut archive = Initramfs::new();
    // Before devtmpfs is mounted there is no other way for the first process to say anything.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, &read(build::INIT)?);
    for program in build::PROGRAMS {
        archive.file(&format!("bin/{program}"), 0o755, &read(program)?);
    }
    for (position, module) in kernel.modules(&MODULES)?.iter().enumerate() {
        archive.file(&format!("modules/{position:02}-{}.ko", module.name), 0o644, &module.data);
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/false\ntester:x:1000:1000::/:/bin/false\n");
    archive.file("etc/group", 0o644, b"root:x:0:\ntester:x:1000:\n");
    Ok(archive.finish())
}

fn run_machine(machine: &Machine, boot: &Boot, directory: &Path) -> Result<Vec<Outcome>, qemu::Error> {
    println!("machine {}", machine.name);
    let started = Instant::now();
    let run = qemu::run(machine, boot, directory, print_line)?;
    let fault = report::fault(&run.lines, run.ending)
        .or_else(|| dma_complaint(&run.complaints))
        .or_else(|| machine.is_served().then(|| nvme_complaint(&run.console)).flatten());
    let outcomes = report::settle(machine.cases, &run.lines, fault.as_deref());
    // What the guest itself reported has been printed as it came.
    let heard = |outcome: &Outcome| run.lines.contains(&Line::Case(outcome.clone()));
    outcomes.iter().filter(|outcome| !heard(outcome)).for_each(print_outcome);
    if outcomes.iter().any(|outcome| outcome.failure.is_some()) {
        println!(
            "  the guest's console is in {}/console.log, QEMU's own messages beside it",
            directory.display()
        );
        run.complaints.lines().for_each(|line| println!("  QEMU: {line}"));
    }
    println!("  {:.1} s", started.elapsed().as_secs_f32());
    Ok(outcomes)
}

/// QEMU's virtual IOMMU says on standard error what it refused to translate; the device goes on as if nothing had
/// happened.
fn dma_complaint(complaints: &str) -> Option<String> {
    complaints
        .lines()
        .find(|line| line.contains("vtd_"))
        .map(|line| format!("the virtual IOMMU complains: {line}"))
}

/// The kernel's driver says on the console, even of a quiet boot, what went wrong; nowhere else can it be read after a
/// reboot that shut the controller down. Lines of the kernel begin with a time.
fn nvme_complaint(console: &str) -> Option<String> {
    let complaint = console.lines().find(|line| line.starts_with('[') && line.contains("nvme"));
    complaint.map(|line| format!("the guest's kernel complains: {}", line.trim_end()))
}

fn print_line(line: &Line) {
    if let Line::Case(outcome) = line {
        print_outcome(outcome);
    }
}

fn print_outcome(outcome: &Outcome) {
    println!("  {outcome}");
}
