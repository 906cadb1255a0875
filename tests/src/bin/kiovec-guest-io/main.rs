//! Moves patterns between memory and a controller through the library, in all the ways a caller can: every
//! shape of memory, PRPs and SGLs, both block sizes, several queue pairs in several threads.
//!
//! `read` expects what the guest's kernel wrote before; `write` writes, reads back, and prints a manifest that the
//! kernel's driver is held against afterwards.

mod plan;
mod shape;
mod worker;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use clap::{Parser, ValueEnum};
use kiovec::memory::DmaSpace;
use kiovec::pci::Vfio;
use kiovec::{Controller, DataForm};
use kiovec_tests::machine::kernel_seed;

use plan::{Action, Geometry, Step};
use shape::Shape;
use worker::{Job, Way};

/// Threads, each with a poller of its own.
const THREADS: usize = 2;

/// Reads or writes the test patterns on a controller that is bound to vfio-pci.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to do
    what: What,
    /// The form of data pointers
    form: Form,
    /// The function: 0000:00:10.0
    device: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Expect the kernel's patterns, change nothing
    Read,
    /// Write patterns, read them back, print a manifest
    Write,
}

/// The form of data pointers; each has its half of every namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    Prp,
    Sgl,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kiovec-guest-io: {}: {e}", arguments.device);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let space = DmaSpace::new()?;
    let function = Arc::new(Vfio::open(arguments.device.parse()?, &space)?);
    let controller = Controller::open(function, &space)?;
    let namespaces = controller.active_namespaces()?;
    let namespaces: Result<Vec<Geometry>, Failure> =
        namespaces.into_iter().map(|nsid| geometry(&controller, nsid)).collect();
    let steps: Vec<Step> =
        namespaces?.iter().flat_map(|namespace| plan::steps(*namespace, arguments.form)).collect();
    match arguments.what {
        What::Read => read_kernels(&controller, arguments.form, steps),
        What::Write => write(&controller, arguments.form, steps),
    }
}

fn geometry(controller: &Controller, nsid: u32) -> Result<Geometry, Failure> {
    let namespace = controller.namespace(nsid)?;
    let block = namespace.block_size().ok_or_else(|| format!("namespace {nsid} has no block size"))?;
    Ok(Geometry { nsid, blocks: namespace.blocks(), block: u64::from(block) })
}

/// What the kernel wrote has to come in whatever shape of memory it is asked into.
fn read_kernels(controller: &Arc<Controller>, form: Form, steps: Vec<Step>) -> Result<(), Failure> {
    let count = steps.len();
    let steps = steps.into_iter().map(|step| Step { seed: kernel_seed(step.place.nsid), ..step }).collect();
    in_threads(controller, form, Way::Read, steps)?;
    println!("{count} reads match what the kernel wrote");
    Ok(())
}

fn write(controller: &Arc<Controller>, form: Form, steps: Vec<Step>) -> Result<(), Failure> {
    let of = |action: Action| steps.iter().filter(move |step| step.action == action).copied().collect();
    in_threads(controller, form, Way::Deallocate, of(Action::DeallocateAndWrite))?;
    let written = steps.iter().filter(|step| step.action != Action::WriteZeroes).copied();
    in_threads(controller, form, Way::Write, written.collect())?;
    in_threads(controller, form, Way::WriteZeroes, of(Action::WriteZeroes))?;
    in_threads(controller, form, Way::Flush, steps.clone())?;
    // Another shape than it was written from: an error that both directions share would hide itself.
    let plain = Shape::Contiguous { offset: 0 };
    let back = steps.iter().map(|step| Step { shape: plain, ..*step }).collect();
    in_threads(controller, form, Way::Read, back)?;
    steps.iter().for_each(|step| println!("{}", step.extent()));
    println!("{} writes read back", steps.len());
    Ok(())
}

/// Does the steps, each thread its share, and waits for all of them.
fn in_threads(controller: &Arc<Controller>, form: Form, way: Way, steps: Vec<Step>) -> Result<(), Failure> {
    let data = match form {
        Form::Prp => DataForm::Prp,
        Form::Sgl => DataForm::Sgl,
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let share = steps.iter().skip(thread).step_by(THREADS).copied().collect();
                scope.spawn(move || worker::run(&Job { controller, data, way, steps: share }))
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|_| Err("a thread panicked".into())))
    })
}
