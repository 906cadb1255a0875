//! The socket in the file system.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use kiovec_emulator::{Config, ServeError, Server, SigbusHandler};

use crate::peer::Rig;

fn bind(path: &std::path::Path) -> Result<Server, ServeError> {
    Server::bind(Config::parse("size=1M").unwrap(), path, SigbusHandler::install().unwrap())
}

#[test]
fn it_is_this_user_s_alone() {
    let rig = Rig::new("size=1M");
    let metadata = std::fs::metadata(&rig.path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn one_that_is_in_use_is_left_alone() {
    let rig = Rig::new("size=1M");
    let error = bind(&rig.path).unwrap_err();
    assert!(matches!(error, ServeError::InUse(_)), "{error}");
    rig.client();
}

#[test]
fn one_that_is_dead_is_replaced() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(bind(&path).unwrap());
    assert!(!path.exists());
}

#[test]
fn other_files_are_left_alone() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("s");
    std::fs::write(&path, "mine").unwrap();
    let error = bind(&path).unwrap_err().to_string();
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let error = bind(&dir.path().join("no/such")).unwrap_err().to_string();
    assert!(error.contains("no/such") && error.contains("No such file"), "{error}");
    let error = bind(&dir.path().join("x".repeat(200))).unwrap_err().to_string();
    assert!(error.contains("cannot name"), "{error}");
}

#[test]
fn one_that_was_replaced_is_not_removed() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("s");
    let server = bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}
