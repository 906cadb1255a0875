//! Identify data for people: the important fields by their names in the specification, each with
//! what it means.

use std::fmt::Write;

use hugepage_setup::Bytes;
use kiovec::{Controller, Namespace};

use super::decode;

pub fn document(controller: &Controller, namespaces: &[Namespace]) -> String {
    let mut text = format!("NVMe controller {}\n", controller.name());
    text += &lines(&identity(controller));
    text += &lines(&limits(controller));
    for namespace in namespaces {
        let _ = write!(text, "\nnamespace {}\n", namespace.nsid());
        text += &lines(&size(namespace));
        text += &lines(&names(namespace));
        text += &formats(namespace);
    }
    if namespaces.is_empty() {
        text += "\nno active namespaces\n";
    }
    text
}

type Field = (&'static str, String);

fn lines(fields: &[Field]) -> String {
    fields.iter().map(|(name, value)| format!("{name:<9} : {value}").trim_end().to_owned() + "\n").collect()
}

fn identity(controller: &Controller) -> Vec<Field> {
    let id = controller.identity();
    vec![
        ("vid", format!("{:#06x}", id.vid)),
        ("ssvid", format!("{:#06x}", id.ssvid)),
        ("mn", id.model()),
        ("sn", id.serial()),
        ("fr", id.firmware()),
        ("ieee", format!("{:06x}", id.oui())),
        ("cntlid", id.cntlid.to_string()),
        ("ver", controller.version().to_string()),
        ("cntrltype", decode::controller_type(id).to_owned()),
        ("subnqn", id.subnqn()),
        ("tnvmcap", capacity(id.total_capacity())),
    ]
}

fn limits(controller: &Controller) -> Vec<Field> {
    let (id, cap) = (controller.identity(), controller.capabilities());
    let transfer = match id.max_transfer(cap.mpsmin()) {
        Some(bytes) => format!("{} (transfers up to {})", id.mdts, Bytes(bytes)),
        None => format!("{} (transfers of any size)", id.mdts),
    };
    let entries = cap.max_queue_entries();
    let cache =
        if id.has_volatile_write_cache() { "volatile write cache" } else { "no volatile write cache" };
    vec![
        ("mdts", transfer),
        ("mqes", format!("{} (queues of up to {entries} entries)", cap.mqes())),
        ("queues", format!("{} I/O queue pairs", controller.available_queue_pairs())),
        ("doorbells", if controller.has_shadow_doorbells() { "in memory" } else { "registers" }.to_owned()),
        ("to", format!("{} (ready within {} ms)", cap.to(), u32::from(cap.to()) * 500)),
        ("sgls", format!("{:#x} ({})", id.sgls, sgls(decode::sgl_support(id)))),
        ("oncs", format!("{:#x} ({})", id.oncs, list(&decode::oncs(id)))),
        ("oacs", format!("{:#x} ({})", id.oacs, list(&decode::oacs(id)))),
        ("vwc", format!("{:#x} ({cache})", id.vwc)),
        ("awun", blocks(id.awun)),
        ("awupf", blocks(id.awupf)),
        ("nn", id.nn.to_string()),
    ]
}

fn size(namespace: &Namespace) -> Vec<Field> {
    let id = namespace.identity();
    let block = namespace.block_size().map_or_else(
        || format!("LBADS {}, which is no block size", id.format().lbads()),
        |size| format!("{size} bytes, {} of metadata", namespace.metadata_size()),
    );
    let bytes = |blocks: u64| match namespace.block_size().and_then(|size| blocks.checked_mul(size.into())) {
        Some(bytes) => format!("{blocks} blocks ({})", Bytes(bytes)),
        None => format!("{blocks} blocks"),
    };
    let boundary = if id.noiob == 0 { "none".to_owned() } else { format!("{} blocks", id.noiob) };
    let protected = id.nsattr & kiovec::spec::identify::NSATTR_WRITE_PROTECTED != 0;
    vec![
        ("nsze", bytes(id.nsze)),
        ("ncap", bytes(id.ncap)),
        ("nuse", bytes(id.nuse)),
        ("block", block),
        ("nsfeat", format!("{:#x}", id.nsfeat)),
        ("noiob", boundary),
        ("nsattr", format!("{:#x}{}", id.nsattr, if protected { " (write protected)" } else { "" })),
    ]
}

/// From the descriptors where there are any; the fields that came before them else.
fn names(namespace: &Namespace) -> Vec<Field> {
    let id = namespace.identity();
    let mut names: Vec<Field> = namespace.descriptors().iter().map(decode::descriptor).collect();
    for (kind, bytes) in [("nguid", &id.nguid[..]), ("eui64", &id.eui64[..])] {
        if bytes.iter().any(|byte| *byte != 0) && !names.iter().any(|(name, _)| *name == kind) {
            names.push((kind, decode::hex(bytes)));
        }
    }
    names
}

fn formats(namespace: &Namespace) -> String {
    let id = namespace.identity();
    let mut text = String::new();
    for (index, format) in id.lbaf.iter().take(usize::from(id.nlbaf) + 1).enumerate() {
        let size =
            format.block_size().map_or_else(|| "not available".to_owned(), |size| format!("{size} bytes"));
        let used = if index == id.format_index() { " (in use)" } else { "" };
        let (metadata, rp) = (format.ms(), format.rp());
        let _ = writeln!(text, "lbaf {index:>4} : {size}, {metadata} of metadata, performance {rp}{used}");
    }
    text
}

fn capacity(bytes: u128) -> String {
    match u64::try_from(bytes) {
        Ok(0) => "not reported".to_owned(),
        Ok(bytes) => format!("{bytes} ({})", Bytes(bytes)),
        Err(_) => bytes.to_string(),
    }
}

fn blocks(zeros_based: u16) -> String {
    format!("{zeros_based} (atomic up to {} blocks)", u32::from(zeros_based) + 1)
}

fn sgls(support: &str) -> String {
    match support {
        "none" => "no SGLs".to_owned(),
        "bytes" => "SGLs of any alignment".to_owned(),
        "dwords" => "SGLs aligned to dwords".to_owned(),
        other => other.to_owned(),
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
