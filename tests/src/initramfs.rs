//! The "newc" cpio archive that the kernel unpacks into its root file system.
//!
//! Knows the archive format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst); must
//! not know what is put in.

use std::collections::BTreeSet;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that grows entry by entry; [`finish`](Self::finish) gives its bytes.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Initramfs {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with its parents. `path` has no leading slash.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            // The kernel refuses an entry whose directory comes later, or comes twice with other modes.
            if self.directories.insert(path[..end].to_owned()) {
                self.entry(&path[..end], DIRECTORY | 0o755, (0, 0), &[]);
            }
        }
        self
    }

    /// Adds a regular file, with its directories. `mode` is the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.parents(path);
        self.entry(path, FILE | mode, (0, 0), data);
        self
    }

    /// Adds a character device node, with its directories.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> &mut Self {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | mode, (major, minor), &[]);
        self
    }

    /// The archive, with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        assert!(data.len() <= u32::MAX as usize, "{name}: newc has 32-bit sizes");
        self.entries += 1;
        let fields = [
            self.entries, // inode: distinct, or the kernel takes entries for hard links
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // modification time: none, so that equal contents give equal archives
            data.len() as u32,
            0, // device of the file, major and minor
            0,
            major,
            minor,
            name.len() as u32 + 1, // with its NUL
            0,                     // checksum: unused in this flavour
        ];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq)]
    struct Entry {
        name: String,
        mode: u32,
        device: (u32, u32),
        data: Vec<u8>,
    }

    /// Reads an archive as the format's text says it, not as the writer above does it: fixed columns,
    /// counted from the start of each header.
    fn parse(archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0, "headers start at a multiple of four");
            let header = std::str::from_utf8(&archive[at..at + 110]).expect("a header is ASCII");
            assert_eq!(&header[..6], "070701");
            let column =
                |first: usize| u32::from_str_radix(&header[first..first + 8], 16).expect("hexadecimal");
            let (mode, size, name_size) = (column(14), column(54) as usize, column(94) as usize);
            let name_bytes = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name_bytes.last(), Some(&0));
            let name = String::from_utf8(name_bytes[..name_size - 1].to_vec()).expect("UTF-8");
            let data_at = (at + 110 + name_size).div_ceil(4) * 4;
            if name == "TRAILER!!!" {
                assert_eq!(data_at, archive.len(), "nothing follows the trailer");
                return entries;
            }
            let device = (column(78), column(86));
            entries.push(Entry { name, mode, device, data: archive[data_at..data_at + size].to_vec() });
            at = (data_at + size).div_ceil(4) * 4;
        }
    }

    #[test]
    fn an_empty_archive_is_a_trailer() {
        assert_eq!(parse(&Initramfs::new().finish()), []);
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let mut archive = Initramfs::new();
        archive.file("bin/a", 0o755, b"A").file("lib/modules/x.ko", 0o644, b"").file("bin/b", 0o755, b"BB");
        let names: Vec<String> = parse(&archive.finish()).into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["bin", "bin/a", "lib", "lib/modules", "lib/modules/x.ko", "bin/b"]);
    }

    #[test]
    fn types_modes_and_device_numbers_are_there() {
        let mut archive = Initramfs::new();
        archive.character_device("dev/console", 0o600, 5, 1).file("init", 0o755, b"x");
        let entries = parse(&archive.finish());
        let node = Entry { name: "dev/console".into(), mode: 0o020_600, device: (5, 1), data: vec![] };
        let init = Entry { name: "init".into(), mode: 0o100_755, device: (0, 0), data: b"x".to_vec() };
        assert_eq!(entries[0].mode, 0o040_755);
        assert_eq!(entries[1..], [node, init]);
    }

    proptest! {
        #[test]
        fn contents_come_back_whatever_their_lengths(
            files in proptest::collection::btree_map("[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..300), 0..20)
        ) {
            let mut archive = Initramfs::new();
            for (name, data) in &files {
                archive.file(name, 0o644, data);
            }
            let back: Vec<(String, Vec<u8>)> =
                parse(&archive.finish()).into_iter().map(|e| (e.name, e.data)).collect();
            prop_assert_eq!(back, files.into_iter().collect::<Vec<_>>());
        }
    }
}
