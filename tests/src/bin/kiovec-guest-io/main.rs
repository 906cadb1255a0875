//! Moves patterns between memory and a controller, or layers on several, through the library, in all the ways a caller
//! can: every shape of memory, PRPs and SGLs, both block sizes, several queue pairs in several threads.
//!
//! `read` expects what the guest's kernel wrote before; `write` writes, reads back, and prints a manifest that the
//! kernel's driver is held against afterwards; `duplicate` writes the same memory to two controllers, and its manifest
//! holds for both; `merge` has neighbours share a command over a defect of the medium; `alone` has requests all around
//! one; `generations` writes on, whatever happens, and keeps account of it; `gather` writes an extent in small requests,
//! many at a time, of which neighbours share commands.

mod alone;
mod device;
mod duplicate;
mod gather;
mod generations;
mod merge;
mod plan;
mod shape;
mod worker;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kiovec::memory::DmaSpace;
use kiovec::pci::Vfio;
use kiovec::{Controller, DataForm, Operation, QueueOptions, QueueStats};
use kiovec_tests::machine::kernel_seed;
use kiovec_tests::pattern::Extent;
use serde_json::json;

use device::Device;
use gather::{Order, Taken};
use generations::Task;
use merge::Bad;
use plan::{Action, Geometry, Step};
use shape::Shape;
use worker::{Job, Way};

/// Threads, each with a poller of its own.
const THREADS: usize = 2;

/// Reads or writes the test patterns on controllers that are bound to vfio-pci.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Expect the kernel's patterns, change nothing
    Read(One),
    /// Write patterns, read them back, print a manifest
    Write(One),
    /// Write every pattern to two controllers from the same memory, read it back, print a manifest
    Duplicate {
        #[command(flatten)]
        one: One,
        /// The other function
        other: String,
    },
    /// Write an extent in requests of 4 KiB, 256 at a time, of which neighbours share commands
    Gather {
        #[command(flatten)]
        one: One,
        /// The namespace
        nsid: u32,
        /// Its first byte
        offset: u64,
        /// Its length, 4 KiB times a power of two
        len: u64,
        /// The seed of its pattern
        seed: u64,
        /// None of them next to the one before it
        #[arg(long)]
        scattered: bool,
    },
    /// Read or write neighbours in one command, one of them over a defect
    Merge(AtDefect),
    /// Read the kernel's patterns all around a defect, or write others and print a manifest
    Alone(AtDefect),
    /// Expect what the ledger says, write more, and note in the ledger what was acknowledged
    Generations {
        #[command(flatten)]
        one: One,
        /// The namespace
        nsid: u32,
        /// The file of the ledger
        ledger: PathBuf,
        /// End after so many writes, instead of writing until it is killed
        #[arg(long)]
        writes: Option<u64>,
        /// End after the controller was reset so often
        #[arg(long)]
        resets: Option<u64>,
        /// Seconds that the controller may take for a command
        #[arg(long)]
        command_timeout: Option<u64>,
        /// Reset the controller with each line that comes on standard input
        #[arg(long)]
        reset_on_line: bool,
    },
}

#[derive(Debug, Clone, Args)]
struct One {
    /// The form of data pointers
    form: Form,
    /// The function, 0000:00:10.0; to read and to write, it can be layers: mirror(0000:01:00.0,0000:02:00.0)
    device: String,
}

#[derive(Debug, Clone, Args)]
struct AtDefect {
    #[command(flatten)]
    one: One,
    /// The namespace
    nsid: u32,
    /// The block that cannot be read or written
    lba: u64,
    /// Write instead of read
    #[arg(long)]
    write: bool,
}

impl AtDefect {
    fn bad(&self) -> Bad {
        let operation = if self.write { Operation::Write } else { Operation::Read };
        Bad { nsid: self.nsid, lba: self.lba, operation }
    }
}

/// The form of data pointers; each has its half of every namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    Prp,
    Sgl,
}

impl Form {
    fn data(self) -> DataForm {
        match self {
            Form::Prp => DataForm::Prp,
            Form::Sgl => DataForm::Sgl,
        }
    }
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let what = Arguments::parse().what;
    let (What::Read(One { device, .. })
    | What::Write(One { device, .. })
    | What::Duplicate { one: One { device, .. }, .. }
    | What::Gather { one: One { device, .. }, .. }
    | What::Merge(AtDefect { one: One { device, .. }, .. })
    | What::Alone(AtDefect { one: One { device, .. }, .. })
    | What::Generations { one: One { device, .. }, .. }) = &what;
    match run(&what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kiovec-guest-io: {device}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What) -> Result<(), Failure> {
    kiovec::install_sigbus_handler()?;
    match what {
        What::Read(One { form, device }) => {
            let device = Device::open(device)?;
            read_kernels(&device, *form, steps(device.namespaces()?, *form))
        }
        What::Write(One { form, device }) => {
            let device = Device::open(device)?;
            write(&device, *form, steps(device.namespaces()?, *form))
        }
        What::Duplicate { one: One { form, device }, other } => {
            let space = DmaSpace::new()?;
            let controllers = [open(device, &space)?, open(other, &space)?];
            let steps = steps(namespaces(&controllers[0])?, *form);
            duplicate::run(&controllers, form.data(), &steps)?;
            steps.iter().for_each(|step| println!("{}", step.extent()));
            println!("{} writes read back from both", steps.len());
            Ok(())
        }
        What::Gather { one: One { form, device }, nsid, offset, len, seed, scattered } => {
            let controller = open(device, &DmaSpace::new()?)?;
            let extent = Extent { nsid: *nsid, offset: *offset, len: *len, seed: *seed };
            let order = if *scattered { Order::Scattered } else { Order::Sequential };
            let Taken { requests, commands, polls } = gather::run(&controller, form.data(), &extent, order)?;
            println!("{extent}\n{requests} requests, {commands} commands, {polls} polls");
            Ok(())
        }
        What::Merge(at) => {
            let controller = open(&at.one.device, &DmaSpace::new()?)?;
            let stats = merge::run(&controller, at.one.form.data(), &at.bad())?;
            println!("one request failed alone; {} merges, {} commands", stats.merges, stats.commands);
            Ok(())
        }
        What::Alone(at) => {
            let controller = open(&at.one.device, &DmaSpace::new()?)?;
            let (written, failure) = alone::run(&controller, at.one.form.data(), &at.bad())?;
            written.iter().for_each(|extent| println!("{extent}"));
            println!("one request failed: {failure}");
            Ok(())
        }
        What::Generations {
            one: One { form, device },
            nsid,
            ledger,
            writes,
            resets,
            command_timeout,
            reset_on_line,
        } => {
            let controller = open(device, &DmaSpace::new()?)?;
            let task = Task { nsid: *nsid, writes: *writes, resets: *resets, reset_on_line: *reset_on_line };
            let mut options = QueueOptions::default().data(form.data());
            if let Some(seconds) = command_timeout {
                options = options.command_timeout(Duration::from_secs(*seconds));
            }
            let stats = generations::run(&controller, options, ledger, task)?;
            let QueueStats { timeouts, aborts, resets, resent, faults, .. } = stats;
            let shadows = controller.has_shadow_doorbells();
            let counted = json!({
                "timeouts": timeouts, "aborts": aborts, "resets": resets, "resent": resent, "faults": faults,
                "shadow_doorbells": shadows,
            });
            println!("{counted}");
            Ok(())
        }
    }
}

fn open(device: &str, space: &DmaSpace) -> Result<Arc<Controller>, Failure> {
    let function = Arc::new(Vfio::open(device.parse()?, space)?);
    Ok(Controller::open(function, space)?)
}

/// What there is to do on all namespaces.
fn steps(namespaces: Vec<Geometry>, form: Form) -> Vec<Step> {
    namespaces.into_iter().flat_map(|namespace| plan::steps(namespace, form)).collect()
}

fn namespaces(controller: &Controller) -> Result<Vec<Geometry>, Failure> {
    controller.active_namespaces()?.into_iter().map(|nsid| geometry(controller, nsid)).collect()
}

fn geometry(controller: &Controller, nsid: u32) -> Result<Geometry, Failure> {
    let namespace = controller.namespace(nsid)?;
    let block = namespace.block_size().ok_or_else(|| format!("namespace {nsid} has no block size"))?;
    Ok(Geometry { nsid, blocks: namespace.blocks(), block: u64::from(block) })
}

/// What the kernel wrote has to come in whatever shape of memory it is asked into.
fn read_kernels(device: &Device, form: Form, steps: Vec<Step>) -> Result<(), Failure> {
    let count = steps.len();
    let steps = steps.into_iter().map(|step| Step { seed: kernel_seed(step.place.nsid), ..step }).collect();
    in_threads(device, form, Way::Read, steps)?;
    println!("{count} reads match what the kernel wrote");
    Ok(())
}

fn write(device: &Device, form: Form, steps: Vec<Step>) -> Result<(), Failure> {
    let of = |action: Action| steps.iter().filter(move |step| step.action == action).copied().collect();
    in_threads(device, form, Way::Deallocate, of(Action::DeallocateAndWrite))?;
    let written = steps.iter().filter(|step| step.action != Action::WriteZeroes).copied();
    in_threads(device, form, Way::Write, written.collect())?;
    in_threads(device, form, Way::WriteZeroes, of(Action::WriteZeroes))?;
    in_threads(device, form, Way::Flush, steps.clone())?;
    // Another shape than it was written from: an error that both directions share would hide itself.
    let plain = Shape::Contiguous { offset: 0 };
    let back = steps.iter().map(|step| Step { shape: plain, ..*step }).collect();
    in_threads(device, form, Way::Read, back)?;
    steps.iter().for_each(|step| println!("{}", step.extent()));
    println!("{} writes read back", steps.len());
    Ok(())
}

/// Does the steps, each thread its share, and waits for all of them.
fn in_threads(device: &Device, form: Form, way: Way, steps: Vec<Step>) -> Result<(), Failure> {
    let data = form.data();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let share = steps.iter().skip(thread).step_by(THREADS).copied().collect();
                scope.spawn(move || worker::run(&Job { device, data, way, steps: share }))
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|_| Err("a thread panicked".into())))
    })
}
