//! What the program prints for people.

use std::fmt::Write;

use hugepage_setup::{Bdf, VFIO_PCI};
use hugepage_setup::{
    Bound, Bytes, HugepagePool, NvmeFunction, Reserved, Restored, RestoredPool, Status, Unbound,
};

pub fn status(status: &Status) -> String {
    let mut text = host(status);
    text += &hugepages(&status.hugepages);
    text += &functions(&status.functions);
    if !status.next.is_empty() {
        text += "\nnext:\n";
        status.next.iter().for_each(|next| text += &format!("  - {next}\n"));
    }
    text
}

fn host(status: &Status) -> String {
    let loaded = |loaded| if loaded { "loaded" } else { "not loaded" };
    let iommu = match (status.iommu, status.iommu_units.as_slice()) {
        (false, _) => "off".to_owned(),
        (true, []) => "on".to_owned(),
        (true, units) => format!("on ({})", units.join(", ")),
    };
    let memlock = status.memlock.map_or_else(|| "unknown".to_owned(), |limit| limit.to_string());
    format!(
        "IOMMU {iommu}, vfio-pci {}, vfio_iommu_type1 {}, memlock {memlock}\n",
        loaded(status.vfio_pci),
        loaded(status.vfio_iommu_type1)
    )
}

fn hugepages(pools: &[HugepagePool]) -> String {
    if pools.is_empty() {
        return "\nhugepages: this kernel has none\n".to_owned();
    }
    let mut rows = vec![["HUGEPAGES", "NODE", "TOTAL", "FREE", "RESERVED"].map(str::to_owned).to_vec()];
    rows.extend(pools.iter().map(|pool| {
        vec![
            Bytes(pool.size).to_string(),
            pool.node.map_or_else(|| "all".to_owned(), |node| node.to_string()),
            pool.total.to_string(),
            pool.free.to_string(),
            or_dash(pool.reserved),
        ]
    }));
    format!("\n{}", table(&rows))
}

fn functions(functions: &[NvmeFunction]) -> String {
    if functions.is_empty() {
        return String::new();
    }
    let head = ["NVME", "ID", "DRIVER", "GROUP", "NODE", "DEVICE", "MODEL", "SERIAL"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(functions.iter().map(row));
    let table = table(&rows);
    let mut lines = table.lines();
    let mut text = format!("\n{}\n", lines.next().unwrap_or_default());
    for (line, function) in lines.zip(functions) {
        let _ = writeln!(text, "{line}");
        text += &details(function);
    }
    text
}

fn row(function: &NvmeFunction) -> Vec<String> {
    vec![
        function.bdf.to_string(),
        format!("{:04x}:{:04x}", function.vendor, function.device),
        or_dash(function.driver.as_ref()),
        or_dash(function.iommu_group),
        or_dash(function.numa_node),
        or_dash(function.kernel_device.as_ref()),
        or_dash(function.model.as_ref()),
        or_dash(function.serial.as_ref()),
    ]
}

fn details(function: &NvmeFunction) -> String {
    let mut text = String::new();
    for disk in &function.namespaces {
        let _ = writeln!(text, "    {} {}", disk.name, Bytes(disk.bytes));
    }
    for user in &function.users {
        let _ = writeln!(text, "    in use: {user}");
    }
    if let Some(before) =
        function.previous_driver.as_ref().filter(|&before| Some(before) != function.driver.as_ref())
    {
        let _ = writeln!(
            text,
            "    had {before} before; to put that back: hugepage-setup restore {}",
            function.bdf
        );
    }
    text
}

fn or_dash(item: Option<impl ToString>) -> String {
    item.map_or_else(|| "-".to_owned(), |item| item.to_string())
}

/// Columns as wide as their widest entry.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths = vec![0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

pub fn reserved(reserved: &Reserved) -> String {
    let &Reserved { size, node, before, pages, free } = reserved;
    let place = on_node(node);
    let size = Bytes(size);
    if before == pages {
        return format!("{pages} hugepages of {size}{place} were reserved already, {free} of them free\n");
    }
    format!(
        "{pages} hugepages of {size}{place} are reserved now, {free} of them free; there were {before}, \
         `hugepage-setup restore` puts that back\n"
    )
}

pub fn bound(bound: &Bound) -> String {
    let Bound { bdf, iommu_group, node, from } = bound;
    let now = format!("IOMMU group {iommu_group}, {}", node.display());
    match from.as_deref() {
        Some(VFIO_PCI) => format!("{bdf} is bound to {VFIO_PCI} already; {now}\n"),
        Some(from) => format!("{bdf} is bound to {VFIO_PCI} now, from {from}; {now}\n"),
        None => format!("{bdf} is bound to {VFIO_PCI} now, it had no driver; {now}\n"),
    }
}

pub fn unbound(unbound: &Unbound) -> String {
    let Unbound { bdf, from } = unbound;
    match from {
        Some(from) => format!("{bdf} is unbound from {from}, it has no driver now\n"),
        None => format!("{bdf} has no driver already\n"),
    }
}

pub fn restored(bdf: Bdf, restored: &Restored) -> String {
    match restored {
        Restored::Back { driver: Some(driver) } => format!("{bdf} is back with {driver}\n"),
        Restored::Back { driver: None } => format!("{bdf} is without a driver, as it was\n"),
        Restored::Gone => format!("{bdf} is gone, or another device is there now; nothing to restore\n"),
        Restored::Untouched => format!("{bdf} was not changed by hugepage-setup, it is left as it is\n"),
    }
}

pub fn restored_pool(pool: &RestoredPool) -> String {
    let &RestoredPool { size, node, pages, surplus } = pool;
    let busy = match surplus {
        0 => String::new(),
        _ => format!("; {surplus} more are in use and go when they are freed"),
    };
    format!("{pages} hugepages of {}{} again{busy}\n", Bytes(size), on_node(node))
}

fn on_node(node: Option<u32>) -> String {
    node.map_or_else(String::new, |node| format!(" on NUMA node {node}"))
}
