//! The socket in the file system: made without taking another server's away, and removed at the end.
//!
//! Knows paths and connections; must not know what is said on them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::ServeError;

/// Clients that wait for their turn.
const BACKLOG: i32 = 16;
/// Attempts to lock the socket's directory, and how long they are apart: others hold the lock for no longer
/// than it takes to make a socket.
const LOCK_ATTEMPTS: u32 = 1000;
const LOCK_INTERVAL: Duration = Duration::from_millis(1);

/// A listening socket. Dropping it removes the file, if it is still the same.
#[derive(Debug)]
pub(super) struct Listener {
    path: PathBuf,
    socket: OwnedFd,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at a path. A socket that nobody listens on is replaced. Nobody but this user can connect.
    pub(super) fn bind(path: &Path) -> Result<Listener, ServeError> {
        let os = |what| {
            move |errno: Errno| ServeError::Socket { what, path: path.to_owned(), source: errno.into() }
        };
        let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
            Errno::NAMETOOLONG => ServeError::TooLong(path.to_owned()),
            errno => os("name")(errno),
        })?;
        let _lock = lock_directory(path);
        remove_dead(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(os("make"))?;
        rustix::net::bind(&socket, &address).map_err(os("make"))?;
        let stat = rustix::fs::lstat(path).map_err(os("find"))?;
        let listener = Listener { path: path.to_owned(), socket, identity: identity(&stat) };
        // As nobody listens yet, nobody can connect before this is done.
        rustix::fs::chmod(path, Mode::from_raw_mode(0o600)).map_err(os("protect"))?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(os("listen on"))?;
        Ok(listener)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, if there is one.
    pub(super) fn accept(&self) -> Result<Option<UnixStream>, ServeError> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(stream) => Ok(Some(stream.into())),
            // Whoever came has gone again.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => {
                let path = self.path.clone();
                Err(ServeError::Socket { what: "accept a client on", path, source: errno.into() })
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if rustix::fs::lstat(&self.path).is_ok_and(|stat| identity(&stat) == self.identity) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Keeps other servers from replacing a socket at the same time: who has found a dead one must not remove
/// what another server has put in its place since. Until the file is closed; none where the directory
/// cannot be read, or is locked for so long that it must be for another purpose.
fn lock_directory(path: &Path) -> Option<OwnedFd> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_INTERVAL),
            Err(_) => return None,
        }
    }
    None
}

/// Removes a socket that nobody has bound. Anything else that is there is an error.
fn remove_dead(path: &Path, address: &SocketAddrUnix) -> Result<(), ServeError> {
    let os =
        |errno: Errno| ServeError::Socket { what: "look at", path: path.to_owned(), source: errno.into() };
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(os(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    // A socket of another type: it cannot connect, so that whoever listens there does not take it for a client.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).map_err(os)?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path).map_err(os),
        Ok(()) | Err(Errno::PROTOTYPE) => Err(ServeError::InUse(path.to_owned())),
        Err(errno) => Err(os(errno)),
    }
}
