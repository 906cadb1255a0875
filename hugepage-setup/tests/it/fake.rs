//! A tree of files that looks like `/`, and a kernel that reacts to what is written there. Everything happens
//! in the call that causes it, so every run is the same.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hugepage_setup::{Bdf, Kernel, Machine, NvmeFunction, Sysfs, nvme_functions};
use tempfile::TempDir;

/// A function, and what the kernel's driver shows of it.
#[derive(Debug, Clone)]
pub struct Device {
    pub bdf: &'static str,
    pub class: &'static str,
    pub group: Option<u32>,
    /// The driver that would take it by its IDs.
    pub native: &'static str,
    pub controller: &'static str,
    /// Entries of the controller's folder that are paths or disks, and the disk that users see.
    pub disks: Vec<(&'static str, &'static str)>,
    pub partitions: Vec<&'static str>,
}

pub const FIRST: &str = "0000:01:00.0";
pub const SECOND: &str = "0000:02:00.0";
pub const NETWORK: &str = "0000:03:00.0";

pub fn nvme(bdf: &'static str, group: u32, controller: &'static str, disk: &'static str) -> Device {
    Device {
        bdf,
        class: "0x010802",
        group: Some(group),
        native: "nvme",
        controller,
        disks: vec![(disk, disk)],
        partitions: vec![],
    }
}

pub fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// The simulated kernel and the tree that it shows.
#[derive(Debug)]
pub struct Fake {
    dir: TempDir,
    devices: Vec<Device>,
    /// Owners other than root.
    owners: BTreeMap<PathBuf, (u32, u32)>,
    /// Modules that modprobe finds.
    pub loadable: Vec<&'static str>,
    /// Drivers that fail to probe, or to appear when they are loaded.
    pub refusing: Vec<&'static str>,
    /// Pauses until /dev/vfio/GROUP is there.
    pub node_after: u32,
    waiting_nodes: Vec<(u32, PathBuf)>,
    /// What `is_claimed` says yes to.
    pub claimed: Vec<PathBuf>,
    /// A file to remove at this pause, counted from 1.
    pub remove_at_pause: Option<(u32, PathBuf)>,
    pub pauses: u32,
    /// Free memory per node, in hugepages.
    pub memory: BTreeMap<u32, u64>,
    /// Every step that changed something.
    pub log: Vec<String>,
    /// The process dies instead of doing the step after this many.
    pub dies_after: Option<usize>,
    /// The step with this number, counted from 1, fails; later ones work again.
    pub fails_at: Option<usize>,
}

/// Two NVMe functions and a network card, each in a group of its own; vfio-pci is loaded; hugepages on two
/// nodes.
pub fn machine() -> Fake {
    machine_with(vec![nvme(FIRST, 12, "nvme0", "nvme0n1"), nvme(SECOND, 13, "nvme1", "nvme1n1")])
}

pub fn machine_with(mut devices: Vec<Device>) -> Fake {
    devices.push(Device { class: "0x020000", native: "e1000e", disks: vec![], ..nvme(NETWORK, 14, "", "") });
    let mut fake = Fake {
        dir: TempDir::new().unwrap(),
        devices,
        owners: BTreeMap::new(),
        loadable: vec![],
        refusing: vec![],
        node_after: 0,
        waiting_nodes: vec![],
        claimed: vec![],
        remove_at_pause: None,
        pauses: 0,
        memory: BTreeMap::from([(0, 64), (1, 32)]),
        log: vec![],
        dies_after: None,
        fails_at: None,
    };
    fake.build();
    fake
}

impl Fake {
    fn build(&mut self) {
        self.file("/proc/self/mountinfo", "22 1 253:0 / / rw - ext4 /dev/vda rw\n");
        self.file("/proc/self/limits", "Max locked memory         8388608  16777216  bytes\n");
        self.file("/proc/1/limits", "Max locked memory         8388608  16777216  bytes\n");
        self.file("/proc/self/status", "Name:\tx\nUid:\t0\t0\t0\t0\n");
        self.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n");
        self.file("/proc/sys/kernel/random/boot_id", "boot-1\n");
        self.file("/proc/sys/kernel/modprobe", "/nonexistent/modprobe\n");
        self.file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\njoe:x:1000:1000::/home/joe:/bin/sh\n");
        self.file("/sys/bus/pci/drivers_probe", "");
        self.file("/dev/vfio/vfio", "");
        for driver in ["nvme", "e1000e", "vfio-pci"] {
            self.add_driver(driver);
        }
        for device in self.devices.clone() {
            self.add_device(&device);
        }
        for size in ["2048kB", "1048576kB"] {
            self.file(&format!("/sys/kernel/mm/hugepages/hugepages-{size}/resv_hugepages"), "0\n");
            for node in [None, Some(0), Some(1)] {
                for name in ["nr_hugepages", "free_hugepages", "surplus_hugepages"] {
                    self.file(&format!("{}/{name}", pool(size, node)), "0\n");
                }
            }
        }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn sysfs(&self) -> Sysfs {
        Sysfs::new(self.root())
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap().trim().to_owned()
    }

    pub fn add_driver(&self, name: &str) {
        self.file(&format!("/sys/bus/pci/drivers/{name}/unbind"), "");
        self.file(&format!("/sys/bus/pci/drivers/{name}/bind"), "");
    }

    fn add_device(&self, device: &Device) {
        let Device { bdf, class, .. } = device;
        let real = format!("/sys/devices/pci0000:00/{bdf}");
        self.file(&format!("{real}/class"), &format!("{class}\n"));
        self.file(&format!("{real}/vendor"), "0x1b36\n");
        self.file(&format!("{real}/device"), "0x0010\n");
        self.file(&format!("{real}/numa_node"), "-1\n");
        self.file(&format!("{real}/driver_override"), "(null)\n");
        self.link(&format!("/sys/bus/pci/devices/{bdf}"), format!("../../../devices/pci0000:00/{bdf}"));
        if let Some(group) = device.group {
            let members = format!("/sys/kernel/iommu_groups/{group}/devices");
            self.link(&format!("{members}/{bdf}"), format!("../../../../devices/pci0000:00/{bdf}"));
            self.link(&format!("{real}/iommu_group"), format!("../../../kernel/iommu_groups/{group}"));
        }
        self.attach(device, device.native);
    }

    pub fn unplug(&self, bdf: &str) {
        fs::remove_file(self.at(&format!("/sys/bus/pci/devices/{bdf}"))).unwrap();
    }

    fn device(&self, bdf: &str) -> io::Result<Device> {
        self.devices.iter().find(|device| device.bdf == bdf).cloned().ok_or_else(|| errno(19))
    }

    pub fn driver_of(&self, bdf: &str) -> Option<String> {
        let link = fs::read_link(self.at(&format!("/sys/bus/pci/devices/{bdf}/driver"))).ok()?;
        Some(link.file_name().unwrap().to_str().unwrap().to_owned())
    }

    /// Somebody else does this, not the program under test.
    pub fn rebind(&mut self, bdf: &str, driver: &str) {
        let device = self.device(bdf).unwrap();
        if let Some(now) = self.driver_of(bdf) {
            self.detach(&device, &now);
        }
        self.attach(&device, driver);
        self.add_nodes(0);
    }

    fn attach(&self, device: &Device, driver: &str) {
        let folder = format!("/sys/devices/pci0000:00/{}", device.bdf);
        self.link(&format!("{folder}/driver"), format!("../../../bus/pci/drivers/{driver}"));
        if driver != "nvme" {
            return;
        }
        let controller = format!("{folder}/nvme/{}", device.controller);
        self.file(&format!("{controller}/model"), "QEMU NVMe Ctrl                          \n");
        self.file(&format!("{controller}/serial"), &format!("serial-{}     \n", device.controller));
        for (index, (entry, disk)) in device.disks.iter().enumerate() {
            let real = format!("{controller}/{entry}");
            self.file(&format!("{real}/path"), "");
            self.block(disk, &format!("259:{}", index * 16), &device.partitions);
        }
    }

    /// A block device with its partitions, numbered after it. Kept apart from the PCI tree, where the real
    /// one is nested: nothing under test looks at that.
    pub fn block(&self, name: &str, number: &str, partitions: &[&str]) {
        let real = format!("/sys/devices/block/{name}");
        self.file(&format!("{real}/size"), "2097152\n");
        self.file(&format!("{real}/dev"), &format!("{number}\n"));
        let (major, minor) = number.split_once(':').unwrap();
        let link = |name: &str, real: &str| {
            let path = format!("/sys/class/block/{name}");
            if fs::symlink_metadata(self.at(&path)).is_err() {
                self.link(&path, format!("../..{}", real.trim_start_matches("/sys")));
            }
        };
        link(name, &real);
        for (index, part) in partitions.iter().enumerate() {
            let minor = minor.parse::<usize>().unwrap() + index + 1;
            self.file(&format!("{real}/{part}/partition"), &format!("{}\n", index + 1));
            self.file(&format!("{real}/{part}/dev"), &format!("{major}:{minor}\n"));
            link(part, &format!("{real}/{part}"));
        }
    }

    pub fn mount(&self, line: &str) {
        let before = self.read("/proc/self/mountinfo");
        self.file("/proc/self/mountinfo", &format!("{before}\n{line}\n"));
    }

    pub fn process(&self, pid: u32, comm: &str, open: &str) {
        self.file(&format!("/proc/{pid}/comm"), &format!("{comm}\n"));
        self.link(&format!("/proc/{pid}/fd/0"), "/dev/null");
        self.link(&format!("/proc/{pid}/fd/7"), open);
    }

    fn detach(&mut self, device: &Device, driver: &str) {
        let folder = format!("/sys/devices/pci0000:00/{}", device.bdf);
        fs::remove_file(self.at(&format!("{folder}/driver"))).unwrap();
        if driver == "nvme" {
            fs::remove_dir_all(self.at(&format!("{folder}/nvme"))).unwrap();
            for name in device.disks.iter().map(|(_, disk)| disk).chain(&device.partitions) {
                fs::remove_file(self.at(&format!("/sys/class/block/{name}"))).unwrap();
            }
            for (_, disk) in &device.disks {
                fs::remove_dir_all(self.at(&format!("/sys/devices/block/{disk}"))).unwrap();
            }
        }
        if let Some(group) = device.group {
            let others = self.devices.iter().filter(|other| other.group == Some(group));
            if others.clone().all(|other| self.driver_of(other.bdf).as_deref() != Some("vfio-pci")) {
                let node = self.at(&format!("/dev/vfio/{group}"));
                let _ = fs::remove_file(&node);
                self.owners.remove(&node);
                self.waiting_nodes.retain(|(_, waiting)| *waiting != node);
            }
        }
    }

    fn probe(&mut self, bdf: &str) -> io::Result<()> {
        let device = self.device(bdf)?;
        if self.driver_of(bdf).is_some() {
            return Ok(());
        }
        let only = self.read(&format!("/sys/bus/pci/devices/{bdf}/driver_override"));
        let driver = if only == "(null)" { device.native.to_owned() } else { only };
        let there = self.at(&format!("/sys/bus/pci/drivers/{driver}")).exists();
        if there && !self.refusing.contains(&driver.as_str()) {
            self.attach(&device, &driver);
        }
        self.add_nodes(self.node_after);
        Ok(())
    }

    fn add_nodes(&mut self, after: u32) {
        for device in self.devices.clone() {
            let Some(group) = device.group else { continue };
            let node = self.at(&format!("/dev/vfio/{group}"));
            let known = node.exists() || self.waiting_nodes.iter().any(|(_, waiting)| *waiting == node);
            if self.driver_of(device.bdf).as_deref() == Some("vfio-pci") && !known {
                self.waiting_nodes.push((self.pauses + after, node));
            }
        }
        self.show_nodes();
    }

    fn show_nodes(&mut self) {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting_nodes).into_iter().partition(|(at, _)| *at <= self.pauses);
        self.waiting_nodes = waiting;
        let ready: Vec<(u32, PathBuf)> = ready;
        ready.iter().for_each(|(_, node)| fs::write(node, "").unwrap());
    }

    fn react(&mut self, path: &str, value: &str) -> io::Result<()> {
        let parts: Vec<&str> = path.split('/').collect();
        match *parts.as_slice() {
            ["sys", "bus", "pci", "drivers_probe"] => self.probe(value),
            ["sys", "bus", "pci", "drivers", driver, "unbind"] => {
                let device = self.device(value)?;
                if self.driver_of(value).as_deref() != Some(driver) {
                    return Err(errno(19));
                }
                self.detach(&device, driver);
                Ok(())
            }
            [.., "driver_override"] => {
                // The kernel would take this for the name of a driver.
                assert_ne!(value.trim(), "(null)");
                let shown = if value.trim().is_empty() { "(null)" } else { value.trim() };
                fs::write(self.at(path), format!("{shown}\n"))
            }
            ["sys", "kernel", "mm", "hugepages", size, "nr_hugepages"] => {
                self.set_pages(size, None, value.parse().map_err(|_| errno(22))?);
                Ok(())
            }
            ["sys", "devices", "system", "node", node, "hugepages", size, "nr_hugepages"] => {
                let node = node.trim_start_matches("node").parse().unwrap();
                self.set_pages(size, Some(node), value.parse().map_err(|_| errno(22))?);
                Ok(())
            }
            _ => Err(io::Error::other(format!("the simulated kernel knows no {path}"))),
        }
    }

    /// Like the kernel: spreads evenly over the nodes, stops when no node has memory, and keeps pages that
    /// are in use as surplus.
    fn set_pages(&mut self, size: &str, node: Option<u32>, wanted: u64) {
        let size = size.trim_start_matches("hugepages-");
        let nodes: Vec<u32> = node.map_or_else(|| self.memory.keys().copied().collect(), |node| vec![node]);
        loop {
            let counts: Vec<u64> = nodes.iter().map(|&node| self.persistent(size, node)).collect();
            let sum: u64 = counts.iter().sum();
            let changed = if sum < wanted {
                let roomy = nodes.iter().zip(&counts).filter(|(node, _)| self.memory[node] > 0);
                let emptiest = roomy.min_by_key(|(_, count)| **count).map(|(&node, _)| node);
                emptiest.map(|node| self.add_page(size, node)).is_some()
            } else if sum > wanted {
                let fullest =
                    nodes.iter().zip(&counts).max_by_key(|(_, count)| **count).map(|(&node, _)| node);
                fullest.map(|node| self.take_page(size, node)).is_some()
            } else {
                false
            };
            if !changed {
                return;
            }
        }
    }

    pub fn count(&self, size: &str, node: Option<u32>, name: &str) -> u64 {
        self.read(&format!("{}/{name}_hugepages", pool(size, node))).parse().unwrap()
    }

    fn persistent(&self, size: &str, node: u32) -> u64 {
        self.count(size, Some(node), "nr") - self.count(size, Some(node), "surplus")
    }

    fn adjust(&self, size: &str, node: u32, name: &str, by: i64) {
        for node in [None, Some(node)] {
            let now = self.count(size, node, name).checked_add_signed(by).unwrap();
            self.file(&format!("{}/{name}_hugepages", pool(size, node)), &format!("{now}\n"));
        }
    }

    fn add_page(&mut self, size: &str, node: u32) {
        *self.memory.get_mut(&node).unwrap() -= 1;
        self.adjust(size, node, "nr", 1);
        self.adjust(size, node, "free", 1);
    }

    fn take_page(&mut self, size: &str, node: u32) {
        if self.count(size, Some(node), "free") == 0 {
            self.adjust(size, node, "surplus", 1);
            return;
        }
        *self.memory.get_mut(&node).unwrap() += 1;
        self.adjust(size, node, "nr", -1);
        self.adjust(size, node, "free", -1);
    }

    /// A program maps free pages.
    pub fn use_pages(&self, size: &str, node: u32, pages: i64) {
        self.adjust(size, node, "free", -pages);
    }

    /// Whether the step may happen.
    fn step(&mut self, what: String) -> io::Result<()> {
        if self.is_dead() {
            return Err(io::Error::other("killed"));
        }
        self.log.push(what);
        if self.fails_at == Some(self.log.len()) { Err(errno(5)) } else { Ok(()) }
    }

    pub fn is_dead(&self) -> bool {
        self.dies_after.is_some_and(|steps| self.log.len() >= steps)
    }

    fn short<'a>(&self, path: &'a Path) -> &'a str {
        path.strip_prefix(self.root()).unwrap().to_str().unwrap()
    }

    /// Runs the program under test on this machine, from lock to unlock.
    pub fn run<T>(&mut self, what: impl FnOnce(&mut Machine<&mut Fake>) -> T) -> T {
        let sysfs = self.sysfs();
        // It may have to wait: a child that another test's thread is just starting has a copy of the lock's
        // file until it executes its program.
        let mut machine = Machine::open(sysfs, self, || ()).unwrap();
        what(&mut machine)
    }

    /// The next run is by a new process, which lives.
    pub fn revive(&mut self) {
        self.log.clear();
        (self.dies_after, self.fails_at) = (None, None);
    }

    pub fn nvme(&self, address: &str) -> NvmeFunction {
        let mut functions = nvme_functions(&self.sysfs()).unwrap();
        functions.retain(|function| function.bdf == bdf(address));
        functions.pop().unwrap()
    }

    pub fn remembers_nothing(&self) -> bool {
        !self.at("/run/hugepage-setup/state.json").exists()
    }

    /// Everything but `/run`: files with contents, links with targets, owners.
    pub fn snapshot(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.root().to_owned()];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = self.short(&path).to_owned();
                let meta = fs::symlink_metadata(&path).unwrap();
                let text = if meta.is_symlink() {
                    format!("-> {}", fs::read_link(&path).unwrap().display())
                } else if meta.is_dir() {
                    if name != "run" {
                        waiting.push(path);
                    }
                    continue;
                } else {
                    fs::read_to_string(&path).unwrap()
                };
                found.insert(name, text);
            }
        }
        let owners = self.owners.iter().filter(|&(_, &owner)| owner != (0, 0));
        found.extend(
            owners.map(|(path, owner)| (format!("owner of {}", self.short(path)), format!("{owner:?}"))),
        );
        found
    }
}

pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn pool(size: &str, node: Option<u32>) -> String {
    match node {
        None => format!("/sys/kernel/mm/hugepages/hugepages-{size}"),
        Some(node) => format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{size}"),
    }
}

impl Kernel for Fake {
    fn write(&mut self, attribute: &Path, value: &str) -> io::Result<()> {
        let path = self.short(attribute).to_owned();
        self.step(format!("{path} <- {}", value.trim()))?;
        fs::metadata(attribute)?;
        self.react(&path, value)
    }

    fn create(&mut self, file: &Path, contents: &str) -> io::Result<()> {
        if self.is_dead() {
            // Killed in the middle of it.
            fs::write(file, &contents[..contents.len() / 2])?;
        }
        self.step(format!("{} created", self.short(file)))?;
        fs::write(file, contents)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(format!("{} replaced", self.short(to)))?;
        fs::rename(from, to)
    }

    fn remove(&mut self, file: &Path) -> io::Result<()> {
        self.step(format!("{} removed", self.short(file)))?;
        fs::remove_file(file)
    }

    fn owner(&mut self, file: &Path) -> io::Result<(u32, u32)> {
        fs::metadata(file)?;
        Ok(self.owners.get(file).copied().unwrap_or((0, 0)))
    }

    fn chown(&mut self, file: &Path, user: u32, group: u32) -> io::Result<()> {
        self.step(format!("{} given to {user}:{group}", self.short(file)))?;
        fs::metadata(file)?;
        self.owners.insert(file.to_owned(), (user, group));
        Ok(())
    }

    fn load_module(&mut self, modprobe: &Path, name: &str) -> Result<(), String> {
        assert_eq!(modprobe, Path::new("/nonexistent/modprobe"));
        self.step(format!("modprobe {name}")).map_err(|error| error.to_string())?;
        if !self.loadable.contains(&name) {
            return Err(format!("modprobe: FATAL: Module {name} not found"));
        }
        if !self.refusing.contains(&name) {
            self.add_driver(name);
        }
        Ok(())
    }

    fn is_claimed(&mut self, device: &Path) -> bool {
        self.claimed.iter().any(|claimed| self.root().join(claimed) == device)
    }

    fn pause(&mut self, _: Duration) {
        self.pauses += 1;
        if let Some((_, file)) = self.remove_at_pause.take_if(|(at, _)| *at == self.pauses) {
            fs::remove_file(self.root().join(file)).unwrap();
        }
        self.show_nodes();
    }
}
