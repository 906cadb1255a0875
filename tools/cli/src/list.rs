//! `kiovec list`: the NVMe functions of this machine.

use std::path::PathBuf;

use clap::Args;
use hugepage_setup::{NvmeFunction, Sysfs, nvme_functions};
use serde_json::json;

use crate::Result;
use crate::output::{self, Format};

const NONE: &str = "no NVMe functions (PCI class 0x010802) on this machine; `kiovec perf` runs on an \
                    emulated controller without any";

#[derive(Debug, Args)]
pub struct Options {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output_format: Format,

    /// The same as --output-format json.
    #[arg(long)]
    json: bool,

    /// Where /sys and /proc are: for tests.
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let functions = nvme_functions(&Sysfs::new(&options.root))?;
    if functions.is_empty() {
        output::note(format_args!("{NONE}"));
    }
    match output::format(options.output_format, options.json) {
        Format::Json => output::print_json(&json!({ "functions": functions })),
        Format::Text if functions.is_empty() => Ok(()),
        Format::Text => output::print(&text(&functions)),
    }
}

fn text(functions: &[NvmeFunction]) -> String {
    let head = ["BDF", "DRIVER", "GROUP", "NODE", "DEVICE", "MODEL", "SERIAL", "IN USE BY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(functions.iter().map(row));
    output::table(&rows, &[])
}

fn row(function: &NvmeFunction) -> Vec<String> {
    let users: Vec<String> = function.users.iter().map(ToString::to_string).collect();
    vec![
        function.bdf.to_string(),
        or_dash(function.driver.as_ref()),
        or_dash(function.iommu_group),
        or_dash(function.numa_node),
        or_dash(function.kernel_device.as_ref()),
        or_dash(function.model.as_ref()),
        or_dash(function.serial.as_ref()),
        or_dash(Some(users.join("; ")).filter(|users| !users.is_empty())),
    ]
}

fn or_dash(item: Option<impl ToString>) -> String {
    item.map_or_else(|| "-".to_owned(), |item| item.to_string())
}
