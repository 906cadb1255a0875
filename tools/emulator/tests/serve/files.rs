//! Blocks in a file.

use std::os::unix::fs::FileExt;

use kiovec::spec::{Command, Status, io_opcode};
use kiovec_emulator::{Config, Emulator, Media, MediaError};
use tempfile::TempDir;

use crate::host::{DATA, Host, IOVA};
use crate::peer::Rig;

fn config(dir: &TempDir, text: &str) -> Config {
    Config { media: Media::File(dir.path().join("disk")), ..Config::parse(text).unwrap() }
}

#[test]
fn a_file_is_made_and_has_what_was_written() {
    let (dir, sockets) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let rig = Rig::with(sockets, config(&dir, "size=16M,namespaces=2"));
    let mut host = Host::with_queue(&rig);
    host.write_block(3, 0x33);
    host.put(DATA, &[0x44; 8192]);
    let both = Command::write(2, 4, 1).with_prps(IOVA + DATA, IOVA + DATA + 4096);
    assert_eq!(host.run(1, both).status(), Status::SUCCESS);
    assert_eq!(host.io(Command::flush(1)), Status::SUCCESS);
    let file = std::fs::File::open(dir.path().join("disk")).unwrap();
    let at = |offset| {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    assert_eq!(file.metadata().unwrap().len(), 32 << 20);
    assert_eq!((at(3 * 4096), at(4 * 4096)), ([0x33; 4096], [0; 4096]));
    assert_eq!((at((16 << 20) + 4 * 4096), at((16 << 20) + 5 * 4096)), ([0x44; 4096], [0x44; 4096]));
    assert_eq!(host.read_block(3), [0x33; 4096]);
    let compare = Command { opcode: io_opcode::COMPARE, ..Command::read(1, 3, 0) };
    assert_eq!(host.io(compare), Status::SUCCESS);
    host.put(DATA, &[1]);
    assert_eq!(host.io(compare), Status::COMPARE_FAILURE);
    assert_eq!(host.io(Command::write_zeroes(1, 3, 0)), Status::SUCCESS);
    assert_eq!((host.read_block(3), at(3 * 4096)), (vec![0; 4096], [0; 4096]));
    // Somebody cuts the file off.
    file_of(&dir).set_len(4096).unwrap();
    assert_eq!(host.io(Command::read(1, 1, 0)), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(host.io(Command::read(1, 0, 0)), Status::SUCCESS);
}

fn file_of(dir: &TempDir) -> std::fs::File {
    std::fs::File::options().write(true).open(dir.path().join("disk")).unwrap()
}

#[test]
fn a_file_belongs_to_one_server() {
    let dir = TempDir::new().unwrap();
    let first = Emulator::stepped(config(&dir, "size=1M")).unwrap();
    let error = Emulator::stepped(config(&dir, "size=1M")).unwrap_err();
    assert!(error.to_string().contains("is in use by another process"), "{error}");
    drop(first);
    Emulator::stepped(config(&dir, "size=1M")).unwrap();
}

#[test]
fn what_cannot_store_blocks_is_refused() {
    let dir = TempDir::new().unwrap();
    let open = |path: &str| {
        let media = Media::File(path.into());
        match Emulator::stepped(Config { media, ..Config::parse("size=1M").unwrap() }) {
            Err(kiovec_emulator::Error::Media(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(open("/dev/null"), MediaError::Unsuitable { .. }));
    assert!(matches!(open(dir.path().to_str().unwrap()), MediaError::Unsuitable { .. }));
    assert!(matches!(open("/no/such/file"), MediaError::Os { .. }));
    let huge = Config { size: 1 << 52, namespaces: 1024, ..config(&dir, "size=1M") };
    let error = Emulator::stepped(huge).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
}
