//! `kiovec identify`: what a controller and its namespaces say of themselves.

mod decode;
mod json;
mod text;

use clap::Args;
use kiovec::{Controller, Namespace};

use crate::device::{Device, FORMS};
use crate::output::{self, Format};
use crate::{Error, Result};

#[derive(Debug, Args)]
pub struct Options {
    #[arg(help = format!("The device: {FORMS}"))]
    device: Device,

    /// Only this namespace; without it, all active ones.
    #[arg(short, long)]
    nsid: Option<u32>,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output_format: Format,

    /// The same as --output-format json.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let device = &options.device;
    if device.is_stack() {
        // The specification describes controllers, and layers have nothing to add to that.
        let leaf = &device.leaves[0];
        let what = format!("{device}: only controllers have Identify data, layers have none");
        return Err(Error::Usage(format!("{what}; identify them one by one: kiovec identify {leaf}")));
    }
    let opened = device.open()?;
    let controller = &*opened.controllers[0];
    let namespaces = namespaces(controller, options.nsid)?;
    match output::format(options.output_format, options.json) {
        Format::Json => output::print_json(&json::document(controller, &namespaces)),
        Format::Text => output::print(&text::document(controller, &namespaces)),
    }
}

fn namespaces(controller: &Controller, nsid: Option<u32>) -> Result<Vec<Namespace>> {
    let nsids = match nsid {
        Some(nsid) => vec![nsid],
        None => controller.active_namespaces()?,
    };
    nsids.into_iter().map(|nsid| Ok(controller.namespace(nsid)?)).collect()
}
