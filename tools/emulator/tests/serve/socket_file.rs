//! The socket in the file system.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use kiovec_emulator::{Config, Media, ServeError, Server};

use crate::peer::Rig;

fn bind(path: &std::path::Path) -> Result<Server, ServeError> {
    Server::bind(Config::parse("size=1M").unwrap(), path, kiovec::install_sigbus_handler().unwrap())
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
    assert!(error.contains("at most 107 bytes; choose a shorter one"), "{error}");
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

#[test]
fn of_those_that_replace_a_dead_one_at_the_same_time_one_listens() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("s");
    for round in 0..200 {
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Barrier::new(4);
        let servers = std::thread::scope(|scope| {
            let one = || {
                start.wait();
                bind(&path)
            };
            let threads = [(); 4].map(|()| scope.spawn(one));
            threads.map(|thread| thread.join().unwrap())
        });
        let others = servers.iter().filter(|server| matches!(server, Err(ServeError::InUse(_)))).count();
        assert_eq!(others, 3, "round {round}: {servers:?}");
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(servers);
        assert!(!path.exists());
    }
}

#[test]
fn who_cannot_listen_makes_no_file() {
    let rig = Rig::new("size=1M");
    let dir = tempfile::TempDir::new().unwrap();
    let disk = dir.path().join("disk");
    let config = Config { media: Media::File(disk.clone()), ..Config::parse("size=1M").unwrap() };
    let error = Server::bind(config, &rig.path, kiovec::install_sigbus_handler().unwrap()).unwrap_err();
    assert!(matches!(error, ServeError::InUse(_)) && !disk.exists(), "{error}");
}

#[test]
fn what_no_client_could_be_served_with_is_refused_at_once() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = Config::parse("size=1M,core=1023").unwrap();
    let path = dir.path().join("s");
    let error = Server::bind(config, &path, kiovec::install_sigbus_handler().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("cannot run the emulator on processor 1023"), "{error}");
    assert!(!path.exists());
}
