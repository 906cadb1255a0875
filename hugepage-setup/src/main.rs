//! `hugepage-setup`: the command line. Exit codes: 0 done, 1 something failed, 2 wrong usage.
#![forbid(unsafe_code)]

mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use hugepage_setup::{
    Bdf, BindOptions, Bound, Linux, Machine, Reservation, Result, Status, Sysfs, User, bind_warnings,
    parse_bytes,
};
use serde::Serialize;
use serde_json::{Value, json};

/// Reserve hugepages and bind NVMe functions to vfio-pci, and put everything back.
///
/// What was there before is kept in /run/hugepage-setup/state.json until `restore`, written before each
/// change; so `restore` also works after a run that was killed.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How to print what was done or found.
    #[arg(short, long, value_enum, default_value_t = Output::Text, global = true)]
    output: Output,

    /// The same as --output json.
    #[arg(long, global = true)]
    json: bool,

    /// Where /sys, /proc, /dev, /etc and /run are: for tests.
    #[arg(long, global = true, hide = true, default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show hugepages, NVMe functions and who uses them, the IOMMU, and what to do next.
    Status,
    /// Grow a pool of hugepages; if the kernel finds too few, the pool is put back and that is an error.
    Reserve(Reserve),
    /// Give NVMe functions to vfio-pci.
    Bind(Bind),
    /// Take NVMe functions from their driver and leave them without one.
    Unbind(Unbind),
    /// Put back drivers, owners of group files and hugepage counts as they were before hugepage-setup changed
    /// them.
    Restore(Restore),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("amount").required(true))]
struct Reserve {
    /// Bytes in a hugepage: 2M or 1G.
    #[arg(long, default_value = "2M", value_parser = parse_bytes)]
    size: u64,
    /// How many hugepages the pool shall hold at least.
    #[arg(long, group = "amount", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How much memory the pool shall hold at least: 512M, 1G.
    #[arg(long, group = "amount", value_parser = parse_bytes)]
    bytes: Option<u64>,
    /// The NUMA node to take the memory from; without it, the kernel chooses.
    #[arg(long)]
    node: Option<u32>,
}

#[derive(Debug, Args)]
struct Bind {
    /// The functions: 0000:01:00.0, or 01:00.0 in domain 0000.
    #[arg(required = true)]
    bdf: Vec<Bdf>,
    /// Who shall own /dev/vfio/GROUP: a name from /etc/passwd, or a number.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Take a function even from under a mounted file system, swap, LVM, MD or a process.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Unbind {
    /// The functions: 0000:01:00.0, or 01:00.0 in domain 0000.
    #[arg(required = true)]
    bdf: Vec<Bdf>,
    /// Take a function even from under a mounted file system, swap, LVM, MD or a process.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Restore {
    /// The functions; none means everything that was changed, hugepages included.
    bdf: Vec<Bdf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json || cli.output == Output::Json;
    let mut printer = Printer { json, items: Vec::new(), printed: false, failed: false };
    let done = run(&cli, &mut printer);
    if let Err(error) = &done {
        complain(error);
    }
    printer.finish(done.is_err());
    if done.is_ok() && !printer.failed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(cli: &Cli, printer: &mut Printer) -> Result<()> {
    let sysfs = Sysfs::new(&cli.root);
    match &cli.command {
        Command::Status => {
            let status = Status::read(&sysfs)?;
            printer.whole(&status, report::status(&status));
            Ok(())
        }
        Command::Reserve(reserve) => run_reserve(sysfs, reserve, printer),
        Command::Bind(bind) => run_bind(sysfs, bind, printer),
        Command::Unbind(unbind) => run_unbind(sysfs, unbind, printer),
        Command::Restore(restore) => run_restore(sysfs, restore, printer),
    }
}

fn run_reserve(sysfs: Sysfs, reserve: &Reserve, printer: &mut Printer) -> Result<()> {
    let &Reserve { size, count, bytes, node } = reserve;
    // A size of 0 is refused by the library, as is every other that the kernel does not have.
    let pages = count.unwrap_or_else(|| bytes.unwrap_or_default().div_ceil(size.max(1)));
    let reserved = open(sysfs)?.reserve(&Reservation { size, pages, node })?;
    printer.whole(reserved, report::reserved(&reserved));
    Ok(())
}

fn run_bind(sysfs: Sysfs, bind: &Bind, printer: &mut Printer) -> Result<()> {
    let user = bind.user.as_ref().map(|name| User::find(&sysfs, name)).transpose()?;
    let options = BindOptions { user, force: bind.force };
    let mut machine = open(sysfs.clone())?;
    let mut bound: Vec<Bound> = Vec::new();
    for &bdf in &bind.bdf {
        let result = machine.bind(bdf, &options);
        printer.function(bdf, &result, report::bound);
        bound.extend(result.ok());
    }
    for warning in bind_warnings(&sysfs, &bound, options.user.as_ref())? {
        complain(format_args!("warning: {warning}"));
    }
    Ok(())
}

fn run_unbind(sysfs: Sysfs, unbind: &Unbind, printer: &mut Printer) -> Result<()> {
    let mut machine = open(sysfs)?;
    for &bdf in &unbind.bdf {
        printer.function(bdf, &machine.unbind(bdf, unbind.force), report::unbound);
    }
    Ok(())
}

fn run_restore(sysfs: Sysfs, restore: &Restore, printer: &mut Printer) -> Result<()> {
    let mut machine = open(sysfs)?;
    let all = restore.bdf.is_empty();
    let bdfs = if all { machine.changed_functions() } else { restore.bdf.clone() };
    for bdf in bdfs {
        let result = machine.restore(bdf);
        printer.function(bdf, &result, |restored| report::restored(bdf, restored));
    }
    if all {
        for pool in machine.restore_hugepages()? {
            printer.item(json!({ "ok": true, "hugepages": pool }), report::restored_pool(&pool));
        }
        if printer.items.is_empty() {
            printer.nothing();
        }
    }
    Ok(())
}

fn open(sysfs: Sysfs) -> Result<Machine<Linux>> {
    Machine::open(sysfs, Linux, || complain("waiting for another hugepage-setup to finish"))
}

fn complain(what: impl std::fmt::Display) {
    eprintln!("hugepage-setup: {what}");
}

/// Text goes out as it comes; JSON of several functions is one array at the end.
struct Printer {
    json: bool,
    items: Vec<Value>,
    printed: bool,
    failed: bool,
}

impl Printer {
    /// All that the command prints.
    fn whole(&mut self, value: impl Serialize, text: String) {
        self.say(if self.json { format!("{:#}\n", json!(value)) } else { text });
    }

    /// What became of one function. Errors go to stderr in any case, for the people who watch.
    fn function<T: Serialize>(&mut self, bdf: Bdf, result: &Result<T>, text: impl FnOnce(&T) -> String) {
        let mut item = json!({ "bdf": bdf, "ok": result.is_ok() });
        match result {
            Ok(done) => {
                merge(&mut item, json!(done));
                self.item(item, text(done));
            }
            Err(error) => {
                self.failed = true;
                complain(error);
                merge(&mut item, json!({ "error": error.to_string() }));
                self.item(item, String::new());
            }
        }
    }

    fn item(&mut self, item: Value, text: String) {
        self.items.push(item);
        if !self.json {
            self.say(text);
        }
    }

    fn nothing(&mut self) {
        if !self.json {
            self.say("nothing to restore\n".to_owned());
        }
    }

    fn finish(&mut self, failed: bool) {
        let items = Value::from(std::mem::take(&mut self.items));
        if self.json && !self.printed && !(failed && items == json!([])) {
            self.say(format!("{items:#}\n"));
        }
    }

    fn say(&mut self, text: String) {
        self.printed = true;
        match io::stdout().lock().write_all(text.as_bytes()) {
            // Whoever closes the pipe early has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.failed = true;
                complain(format_args!("cannot write to standard output: {error}"));
            }
            _ => (),
        }
    }
}

fn merge(into: &mut Value, fields: Value) {
    if let (Value::Object(into), Value::Object(fields)) = (into, fields) {
        into.extend(fields);
    }
}
