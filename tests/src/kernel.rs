//! Debian's kernel package as `dpkg-deb -x` leaves it: its boot image and its modules.
//!
//! Knows bzImage headers and the `.modinfo` of modules; must not know which modules the tests want.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why the guest's kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no kernel.
    #[error("no kernel in {0}; fetch one with: tests/install")]
    NoKernel(PathBuf),
    /// A module is in no file and not built in.
    #[error("{release} has no module {name}, neither as a file nor built in; use another kernel package")]
    NoModule {
        /// The module.
        name: String,
        /// The kernel's release.
        release: String,
    },
    /// A file cannot be read, or not written.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
    /// An unpacker is not there or fails.
    #[error("cannot unpack {path} with {tool}: {reason}; install it with: tests/install")]
    Unpack {
        /// The packed file.
        path: PathBuf,
        /// The program.
        tool: &'static str,
        /// What it said.
        reason: String,
    },
}

/// An unpacked kernel package.
#[derive(Debug)]
pub struct Kernel {
    release: String,
    image: PathBuf,
    tree: PathBuf,
}

/// A module, ready to be loaded.
#[derive(Debug)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF file, unpacked.
    pub data: Vec<u8>,
}

impl Kernel {
    /// The kernel that was unpacked in `root`.
    pub fn find(root: &Path) -> Result<Kernel, Error> {
        let none = || Error::NoKernel(root.to_owned());
        let boot = fs::read_dir(root.join("boot")).map_err(|_| none())?;
        let names = boot.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let release = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).max();
        let release = release.ok_or_else(none)?;
        let modules = ["lib/modules", "usr/lib/modules"].map(|dir| root.join(dir).join(&release));
        let tree = modules.into_iter().find(|dir| dir.is_dir()).ok_or_else(none)?;
        Ok(Kernel { image: root.join("boot").join(format!("vmlinuz-{release}")), tree, release })
    }

    /// The release, as `uname -r` gives it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// What to boot: the uncompressed ELF kernel, which saves a second or more of emulated decompression in
    /// each boot; the bzImage itself where the ELF cannot be had or has no PVH entry.
    pub fn boot_image(&self, cache: &Path) -> Result<PathBuf, Error> {
        let unpacked = cache.join(format!("vmlinux-{}", self.release));
        if unpacked.exists() {
            return Ok(unpacked);
        }
        let bz_image = fs::read(&self.image).map_err(|e| Error::File(self.image.clone(), e))?;
        match payload(&bz_image).and_then(|payload| unpacked_payload(payload, cache)) {
            Some(elf) if elf.starts_with(b"\x7fELF") && self.has_pvh() => {
                // Renamed into place: two runs may do this at the same time.
                let partial = cache.join(format!("vmlinux-{}.{}", self.release, std::process::id()));
                fs::write(&partial, elf).map_err(|e| Error::File(partial.clone(), e))?;
                fs::rename(&partial, &unpacked).map_err(|e| Error::File(unpacked.clone(), e))?;
                Ok(unpacked)
            }
            _ => Ok(self.image.clone()),
        }
    }

    /// The named modules with all that they depend on, in an order in which they can be loaded. What is built
    /// in needs no loading and is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>, Error> {
        let files = module_files(&self.tree)?;
        let built_in = self.built_in();
        let mut wanted = Load { kernel: self, files: &files, built_in: &built_in, order: Vec::new() };
        for name in names {
            wanted.add(name)?;
        }
        Ok(wanted.order)
    }

    fn has_pvh(&self) -> bool {
        let config = self.image.with_file_name(format!("config-{}", self.release));
        fs::read_to_string(config).is_ok_and(|text| text.lines().any(|line| line == "CONFIG_PVH=y"))
    }

    fn built_in(&self) -> BTreeSet<String> {
        let list = fs::read_to_string(self.tree.join("modules.builtin")).unwrap_or_default();
        list.lines().filter_map(|line| module_name(Path::new(line))).collect()
    }
}

/// Modules on their way into load order.
struct Load<'a> {
    kernel: &'a Kernel,
    files: &'a BTreeMap<String, PathBuf>,
    built_in: &'a BTreeSet<String>,
    order: Vec<Module>,
}

impl Load<'_> {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || self.order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            return Err(Error::NoModule { name, release: self.kernel.release.clone() });
        };
        let data = unpacked(path)?;
        for needed in dependencies(&data) {
            self.add(&needed)?;
        }
        self.order.push(Module { name, data });
        Ok(())
    }
}

/// `drivers/vfio/pci/vfio-pci.ko.xz` is the module `vfio_pci`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file.strip_suffix(".ko").or_else(|| file.rsplit_once(".ko.").map(|(stem, _)| stem))?;
    Some(stem.replace('-', "_"))
}

fn module_files(tree: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut files = BTreeMap::new();
    let mut directories = vec![tree.join("kernel")];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).map_err(|e| Error::File(directory.clone(), e))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                directories.push(path);
            } else if let Some(name) = module_name(&path) {
                files.insert(name, path);
            }
        }
    }
    Ok(files)
}

/// The modules that `module` (an ELF file) names in its `.modinfo`. There is no modules.dep to read: it is made
/// when the package is installed, which this one is not.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn unpacked(path: &Path) -> Result<Vec<u8>, Error> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => unpack_with("xz", path),
        Some("zst") => unpack_with("zstd", path),
        _ => fs::read(path).map_err(|e| Error::File(path.to_owned(), e)),
    }
}

fn unpack_with(tool: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Unpack { path: path.to_owned(), tool, reason };
    let packed = File::open(path).map_err(|e| Error::File(path.to_owned(), e))?;
    let output = Command::new(tool).arg("-dc").stdin(packed).output();
    let output = output.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Unpacks a kernel's payload: LZ4's legacy frame, or whatever `zstd` takes. `None` if it is something else.
fn unpacked_payload(payload: &[u8], cache: &Path) -> Option<Vec<u8>> {
    const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";
    if !payload.starts_with(ZSTD_MAGIC) {
        return lz4_legacy(payload);
    }
    let packed = cache.join(format!("payload.{}", std::process::id()));
    let unpacked = fs::write(&packed, payload).ok().and_then(|()| unpack_with("zstd", &packed).ok());
    let _ = fs::remove_file(&packed);
    unpacked
}

/// The compressed kernel inside a bzImage, without the four bytes of size that the kernel's build appends
/// (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
fn payload(bz_image: &[u8]) -> Option<&[u8]> {
    const SECTOR: usize = 512;
    if bz_image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match *bz_image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR + u32_at(bz_image, 0x248)? as usize;
    let len = (u32_at(bz_image, 0x24c)? as usize).checked_sub(4)?;
    bz_image.get(start..start.checked_add(len)?)
}

/// Unpacks LZ4's legacy frame, the one that kernels are packed with: a magic number, then blocks of up to 8 MiB,
/// each with its packed size before it. `None` if it is something else.
fn lz4_legacy(packed: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: u32 = 0x184c_2102;
    const BLOCK: usize = 8 << 20;
    let mut rest = (u32_at(packed, 0)? == MAGIC).then(|| &packed[4..])?;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let len = u32_at(rest, 0)? as usize;
        let block = rest.get(4..4 + len)?;
        out.extend(lz4_flex::block::decompress(block, BLOCK).ok()?);
        rest = &rest[4 + len..];
    }
    Some(out)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_have_underscores() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/drivers/vfio/pci/vfio-pci.ko.xz").as_deref(), Some("vfio_pci"));
        assert_eq!(name("vfio.ko").as_deref(), Some("vfio"));
        assert_eq!(name("modules.order"), None);
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            dependencies(b"\x7fELF..license=GPL\0depends=vfio,irqbypass\0name=x\0"),
            ["vfio", "irqbypass"]
        );
        assert!(dependencies(b"license=GPL\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn a_kernel_is_found_and_modules_come_after_what_they_need() {
        let root = std::env::temp_dir().join(format!("kiovec-kernel-{}", std::process::id()));
        let tree = root.join("lib/modules/6.1.0-1");
        fs::create_dir_all(tree.join("kernel/a")).expect("tree");
        fs::create_dir_all(root.join("boot")).expect("boot");
        fs::write(root.join("boot/vmlinuz-6.1.0-1"), b"").expect("image");
        fs::write(tree.join("modules.builtin"), "kernel/drivers/nvme/host/nvme.ko\n").expect("list");
        fs::write(tree.join("kernel/a/top-one.ko"), b"\0depends=base,nvme\0").expect("module");
        fs::write(tree.join("kernel/a/base.ko"), b"\0depends=\0").expect("module");
        let kernel = Kernel::find(&root).expect("kernel");
        assert_eq!(kernel.release(), "6.1.0-1");
        let loaded: Vec<String> =
            kernel.modules(&["top_one", "base"]).expect("modules").into_iter().map(|m| m.name).collect();
        assert_eq!(loaded, ["base", "top_one"]);
        assert!(matches!(kernel.modules(&["other"]), Err(Error::NoModule { .. })));
        fs::remove_dir_all(root).expect("removed");
    }

    #[test]
    fn a_missing_kernel_says_how_to_get_one() {
        let error = Kernel::find(Path::new("/nonexistent")).expect_err("nothing there");
        assert!(error.to_string().contains("tests/install"), "{error}");
    }

    #[test]
    fn the_payload_is_cut_out_and_unpacked() {
        let text = b"\x7fELF and so on, and so on, and so on, and so on";
        // One sequence of literals only: token with length 15 + extension, then the bytes.
        let mut block = vec![0xf0, text.len() as u8 - 15];
        block.extend_from_slice(text);
        let mut packed = 0x184c_2102_u32.to_le_bytes().to_vec();
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(&block);

        let mut image = vec![0; 2048];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        image.truncate(3 * 512 + 64);
        image.resize(3 * 512 + 64, 0);
        image.extend(&packed);
        image.extend((text.len() as u32).to_le_bytes());
        image.extend([0; 100]);

        assert_eq!(payload(&image), Some(&packed[..]));
        assert_eq!(lz4_legacy(&packed).as_deref(), Some(&text[..]));
        assert_eq!(lz4_legacy(b"\x28\xb5\x2f\xfd...."), None, "zstd is something else");
        assert_eq!(payload(b"MZ"), None);
    }
}
