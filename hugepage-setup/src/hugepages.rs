//! The kernel's pools of hugepages, of the whole machine and of each NUMA node.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state::PoolBefore;
use crate::sysfs::{names, number};
use crate::{Bytes, Error, Kernel, Machine, Result, Sysfs};

/// Pages of one size, on one node or on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Pool {
    size_kib: u64,
    node: Option<u32>,
}

/// A pool of hugepages and how full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HugepagePool {
    /// Bytes in a page.
    pub size: u64,
    /// The NUMA node; `None` for the sum over all.
    pub node: Option<u32>,
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody has.
    pub free: u64,
    /// Free pages that are promised to a mapping; the kernel keeps count only for the whole machine.
    pub reserved: Option<u64>,
    /// Pages beyond the count that was asked for; they go back to the kernel as soon as they are free.
    pub surplus: u64,
}

/// What to reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Bytes in a page.
    pub size: u64,
    /// How many pages the pool shall hold at least.
    pub pages: u64,
    /// On which NUMA node; `None` leaves that to the kernel.
    pub node: Option<u32>,
}

/// A pool after a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// Bytes in a page.
    pub size: u64,
    /// The NUMA node, if one was asked for.
    pub node: Option<u32>,
    /// Pages that were in the pool.
    pub before: u64,
    /// Pages that are in the pool now.
    pub pages: u64,
    /// Pages of those that nobody has.
    pub free: u64,
}

/// A pool that was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RestoredPool {
    /// Bytes in a page.
    pub size: u64,
    /// The NUMA node.
    pub node: Option<u32>,
    /// Pages in the pool now.
    pub pages: u64,
    /// Pages still in use; the kernel takes them back when they are freed.
    pub surplus: u64,
}

/// All pools: for each size first the whole machine, then each node.
///
/// # Errors
///
/// A file of a pool cannot be read, or holds no number.
pub fn hugepage_pools(sysfs: &Sysfs) -> Result<Vec<HugepagePool>> {
    let nodes = nodes(sysfs)?;
    let mut pools = Vec::new();
    for size_kib in sizes(sysfs, None)? {
        pools.push(Pool { size_kib, node: None }.read(sysfs)?);
        for &node in &nodes {
            let pool = Pool { size_kib, node: Some(node) };
            if pool.folder(sysfs).exists() {
                pools.push(pool.read(sysfs)?);
            }
        }
    }
    Ok(pools)
}

impl Pool {
    fn folder(self, sysfs: &Sysfs) -> PathBuf {
        folder(sysfs, self.node).join(format!("hugepages-{}kB", self.size_kib))
    }

    fn size(self) -> u64 {
        self.size_kib.saturating_mul(1024)
    }

    fn read(self, sysfs: &Sysfs) -> Result<HugepagePool> {
        let folder = self.folder(sysfs);
        let reserved = if self.node.is_none() { Some(number(&folder.join("resv_hugepages"))?) } else { None };
        Ok(HugepagePool {
            size: self.size(),
            node: self.node,
            total: number(&folder.join("nr_hugepages"))?,
            free: number(&folder.join("free_hugepages"))?,
            reserved,
            surplus: number(&folder.join("surplus_hugepages"))?,
        })
    }
}

impl HugepagePool {
    /// What a write to `nr_hugepages` sets; reading it counts the surplus too.
    fn persistent(&self) -> u64 {
        self.total.saturating_sub(self.surplus)
    }
}

impl<K: Kernel> Machine<K> {
    /// Grows the pool to at least so many pages. It is never made smaller: those pages may be somebody
    /// else's. If the kernel does not find enough, the pool is put back.
    ///
    /// # Errors
    ///
    /// No such page size or node, or too little memory.
    pub fn reserve(&mut self, wanted: &Reservation) -> Result<Reserved> {
        let pool = self.existing_pool(wanted)?;
        let before = pool.read(&self.sysfs)?.persistent();
        if before < wanted.pages {
            self.grow(pool, wanted.pages)?;
        }
        let now = pool.read(&self.sysfs)?;
        Ok(Reserved { size: wanted.size, node: wanted.node, before, pages: now.persistent(), free: now.free })
    }

    /// Puts the counts back to what they were before the first [`reserve`](Machine::reserve). Pages that are
    /// in use stay until they are freed.
    ///
    /// # Errors
    ///
    /// A count could not be written. What is left to do is still remembered then.
    pub fn restore_hugepages(&mut self) -> Result<Vec<RestoredPool>> {
        let mut restored = Vec::new();
        for PoolBefore { pool, pages } in self.state.hugepages().to_vec() {
            if !pool.folder(&self.sysfs).exists() {
                // The node's memory has gone offline, and its pages with it.
                self.commit(|state| state.forget_pool(pool))?;
                continue;
            }
            // Less than was there before is not our doing.
            if pool.read(&self.sysfs)?.persistent() > pages {
                self.set(pool, pages)?;
            }
            self.commit(|state| state.forget_pool(pool))?;
            let now = pool.read(&self.sysfs)?;
            let (pages, surplus) = (now.persistent(), now.surplus);
            restored.push(RestoredPool { size: now.size, node: now.node, pages, surplus });
        }
        Ok(restored)
    }

    fn existing_pool(&self, wanted: &Reservation) -> Result<Pool> {
        let &Reservation { size, node, .. } = wanted;
        if let Some(node) = node {
            let nodes = nodes(&self.sysfs)?;
            if !nodes.contains(&node) {
                return Err(Error::NoSuchNode { node, have: list(nodes) });
            }
        }
        let sizes = sizes(&self.sysfs, node)?;
        if size % 1024 != 0 || !sizes.contains(&(size / 1024)) {
            let have = list(sizes.into_iter().map(|kib| Bytes(kib.saturating_mul(1024))));
            return Err(Error::NoSuchPageSize { size, node, have });
        }
        Ok(Pool { size_kib: size / 1024, node })
    }

    fn grow(&mut self, pool: Pool, pages: u64) -> Result<()> {
        let found = self.parts(pool)?;
        let was = self.state.clone();
        self.commit(|state| found.iter().for_each(|&part| state.remember_pool(part)))?;
        let written = self.set(pool, pages);
        let got = pool.read(&self.sysfs)?.persistent();
        if written.is_ok() && got >= pages {
            return Ok(());
        }
        found.iter().try_for_each(|&PoolBefore { pool, pages }| self.set(pool, pages))?;
        self.commit(|state| *state = was)?;
        written?;
        let back = pool.read(&self.sysfs)?.persistent();
        Err(Error::TooFewPages { size: pool.size(), node: pool.node, asked: pages, got, back })
    }

    /// The pools that a change to this one changes, and what is in them. The sum over all nodes is restored
    /// node by node, as the kernel would take pages away evenly, not where they were added.
    fn parts(&self, pool: Pool) -> Result<Vec<PoolBefore>> {
        let mut parts = vec![pool];
        if pool.node.is_none() {
            let node = |node| Pool { node: Some(node), ..pool };
            let nodes = nodes(&self.sysfs)?.into_iter().map(node);
            let nodes: Vec<Pool> = nodes.filter(|pool| pool.folder(&self.sysfs).exists()).collect();
            if !nodes.is_empty() {
                parts = nodes;
            }
        }
        let before = |pool: Pool| Ok(PoolBefore { pool, pages: pool.read(&self.sysfs)?.persistent() });
        parts.into_iter().map(before).collect()
    }

    fn set(&mut self, pool: Pool, pages: u64) -> Result<()> {
        self.write(&pool.folder(&self.sysfs).join("nr_hugepages"), &pages.to_string())
    }
}

fn folder(sysfs: &Sysfs, node: Option<u32>) -> PathBuf {
    match node {
        None => sysfs.path("/sys/kernel/mm/hugepages"),
        Some(node) => sysfs.path(format!("/sys/devices/system/node/node{node}/hugepages")),
    }
}

fn nodes(sysfs: &Sysfs) -> Result<Vec<u32>> {
    let names = names(&sysfs.path("/sys/devices/system/node"))?;
    let mut nodes: Vec<u32> =
        names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    nodes.sort();
    Ok(nodes)
}

/// In KiB.
fn sizes(sysfs: &Sysfs, node: Option<u32>) -> Result<Vec<u64>> {
    let names = names(&folder(sysfs, node))?;
    let size = |name: &String| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok();
    let mut sizes: Vec<u64> = names.iter().filter_map(size).collect();
    sizes.sort();
    Ok(sizes)
}

fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
