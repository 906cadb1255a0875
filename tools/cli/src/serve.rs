//! `kiovec serve`: an emulated controller behind a vfio-user socket.

use std::path::PathBuf;

use clap::Args;
use kiovec_emulator::{Connection, Counters, Media, Server};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::device::{Device, Leaf};
use crate::output::{self, Format};
use crate::{Error, Result};

#[derive(Debug, Args)]
pub struct Options {
    /// What is served: emulated[:size=1G,block=4096,…].
    #[arg(value_name = "DEVICE")]
    device: Device,

    /// The Unix socket to listen on. It is made, and removed at the end.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// What blocks are stored in: null, ram, or file:PATH (a file, which is made if it is not there, or
    /// a block device). The same as media= of the device.
    #[arg(long)]
    media: Option<Media>,

    /// The processor that the controller's thread stays on. The same as core= of the device.
    #[arg(long, value_name = "N")]
    core: Option<usize>,

    /// End when the first client has left.
    #[arg(long)]
    once: bool,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output_format: Format,

    /// The same as --output-format json.
    #[arg(long)]
    json: bool,
}

pub fn run(options: Options) -> Result<()> {
    let [Leaf::Emulated(config)] = &options.device.leaves[..] else {
        return Err(unsuitable(&options.device));
    };
    if options.device.is_stack() {
        return Err(unsuitable(&options.device));
    }
    let mut config = (**config).clone();
    config.media = options.media.unwrap_or(config.media);
    config.core = options.core.or(config.core);
    let size = config.size;
    let sigbus = kiovec::install_sigbus_handler()?;
    let mut server = Server::bind(config, &options.socket, sigbus)?;
    // Who started it with nohup wants it to outlive the terminal.
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
        signal_hook::low_level::pipe::register(signal, server.stopper()?.into_stream())
            .map_err(Error::os("installing a signal handler"))?;
    }
    let format = output::format(options.output_format, options.json);
    announce(&server, size, format)?;
    let mut clients = 0u64;
    while let Some(client) = server.accept()? {
        clients += 1;
        output::note(format_args!("client {clients}{} has connected", process(&client)));
        let end = client.serve()?;
        output::note(format_args!("client {clients} has left: {end}"));
        if options.once {
            break;
        }
    }
    summarize(&server.counters(), clients, format)
}

/// Whether this process was started with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal - 1) & 1 != 0)
}

fn unsuitable(device: &Device) -> Error {
    Error::Unsuitable(format!("{device} cannot be served; only one emulated[:…] can, without layers"))
}

fn process(client: &Connection<'_>) -> String {
    client.peer().map_or_else(String::new, |(pid, _)| format!(" (process {pid})"))
}

/// One line when it can be connected to.
fn announce(server: &Server, size: u64, format: Format) -> Result<()> {
    let path = server.path().display().to_string();
    let device = json!({
        "driver": "vfio-user-pci",
        "socket": { "type": "unix", "path": path },
    });
    match format {
        Format::Json => output::print(&format!(
            "{}\n",
            json!({ "socket": path, "size": size, "device": format!("vfio-user:{path}") })
        )),
        Format::Text => output::print(&format!(
            "serving {size} bytes on {path}; connect with: kiovec perf vfio-user:{path}, or in \
                 QEMU: -device '{device}'\n"
        )),
    }
}

fn summarize(counters: &Counters, clients: u64, format: Format) -> Result<()> {
    match format {
        Format::Json => output::print(&format!(
            "{}\n",
            json!({
                "clients": clients,
                "admin_commands": counters.admin_commands,
                "io_commands": counters.io_commands,
                "reads": counters.reads,
                "writes": counters.writes,
                "blocks_read": counters.blocks_read,
                "blocks_written": counters.blocks_written,
                "errors": counters.errors,
                "bad_doorbells": counters.bad_doorbells,
                "resets": counters.resets,
            })
        )),
        Format::Text => {
            let Counters { io_commands, reads, writes, errors, .. } = counters;
            let clients = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
            output::print(&format!(
                "served {clients}: {io_commands} I/O commands, of which {reads} reads and {writes} \
                 writes, {errors} errors\n"
            ))
        }
    }
}
