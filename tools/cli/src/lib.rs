//! What the command line `kiovec` does. A library so that its bench can count what a worker costs; nothing
//! else is for others.
// But for the one module that shares buffers with the kernel.
#![deny(unsafe_code)]

mod device;
mod error;
mod identify;
mod list;
mod output;
mod perf;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::error::{Error, Result};

/// What a worker of `kiovec perf` does with these options (the first is no name of a program), until so many
/// I/Os have completed: for the bench. Errors are messages for people.
#[doc(hidden)]
pub fn count_perf(options: &str, ios: u64) -> std::result::Result<(), String> {
    let line = ["kiovec", "perf"].into_iter().chain(options.split_whitespace());
    match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
        Command::Perf(options) => {
            perf::counted::run(&options, ios).map(drop).map_err(|error| error.to_string())
        }
        _ => Err("only perf is counted".into()),
    }
}

/// Drive NVMe controllers from userspace: through VFIO, or emulated, with no hardware at all.
#[derive(Debug, Parser)]
#[command(name = "kiovec", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the NVMe functions of this machine and who uses them.
    List(list::Options),
    /// Show what a controller and its namespaces say of themselves.
    Identify(identify::Options),
    /// Measure a namespace: reads, writes, or both, at a given depth for a given time.
    Perf(Box<perf::Options>),
    /// Let drivers in other processes use an emulated controller, through a vfio-user socket.
    Serve(Box<serve::Options>),
}

/// Runs the command line of this process. Exit codes: 0 done, 1 something failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("{error}"));
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<()> {
    // A device that vanishes is to cost its own command an error, and nothing the process.
    kiovec::install_sigbus_handler()?;
    match command {
        Command::List(options) => list::run(&options),
        Command::Identify(options) => identify::run(&options),
        Command::Perf(options) => perf::run(*options),
        Command::Serve(options) => serve::run(*options),
    }
}

/// Help and version as they are; an error in one line, like every other error.
fn refuse(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    // Help that was not asked for begins with no such word.
    match text.strip_prefix("error: ").filter(|_| error.use_stderr()) {
        Some(text) => output::note(format_args!("{}", one_line(text))),
        None => {
            let _ = error.print();
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What clap says before its usage lines, which `--help` gives in full.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    // That an option we do not have could be a value of one we have is of use to nobody.
    let lines = lines.filter(|line| !line.starts_with("tip: to pass '"));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    format!("{}; see --help", lines.join(" ").replace(" tip: ", "; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_line() {
        let error = Cli::try_parse_from(["kiovec", "perf", "--verfy"]).unwrap_err().to_string();
        let line = one_line(&error);
        assert!(line.contains("'--verfy'") && line.contains("'--verify'"), "{line}");
        assert!(!line.contains('\n') && line.ends_with("'--verify'; see --help"), "{line}");
    }
}
