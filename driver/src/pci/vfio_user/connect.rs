//! Finding a server by a path, and agreeing with it on a version and on capabilities.
//!
//! Knows what can be wrong with a path, and what both ends must hold to; must not know devices.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::connection::{Connection, DATA_XFER_SIZE, LONGEST, MSG_FDS};
use super::message::{DmaAccess, Version, command};
use super::socket::{Limits, Socket};
use super::{Capabilities, MAX_VERSION_PAYLOAD};
use crate::{Error, Result};

/// What a directory's socket is called.
const SOCKET_IN_DIRECTORY: &str = "cntrl";
/// Bytes of a socket's path: all of `sun_path`, as Linux needs no NUL.
const LONGEST_PATH: usize = 108;
/// The largest register access.
const REGISTER: u64 = 8;

/// Connects, in `timeout` at most.
pub(super) fn connect(name: &str, path: &Path, timeout: Duration) -> Result<UnixStream> {
    let path = match path.is_dir() {
        true => path.join(SOCKET_IN_DIRECTORY),
        false => path.to_path_buf(),
    };
    let no_server = |reason| Error::NoServer { device: name.into(), reason };
    check(&path).map_err(no_server)?;
    stream(&path, timeout).map_err(|error| no_server(refusal(&path, &error)))
}

/// A connection over a stream, on which nothing was said yet.
pub(super) fn over(name: String, stream: UnixStream, timeout: Duration) -> Connection {
    const { assert!(MAX_VERSION_PAYLOAD <= DATA_XFER_SIZE) };
    let limits = Limits { payload: DATA_XFER_SIZE + size_of::<DmaAccess>(), fds: MSG_FDS };
    Connection::new(name, Socket::new(stream, limits), timeout)
}

fn check(path: &PathBuf) -> std::result::Result<(), String> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => Err(format!("{shown} is no socket; name the one that the server was started with")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "there is no socket {shown}; start the server first, with this socket, or correct the path"
        )),
        Err(error) => Err(refusal(path, &error)),
    }
}

fn stream(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A server that accepts nobody while its queue is full must not keep us.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout.min(LONGEST)))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(UnixStream::from(socket))
}

fn refusal(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("nobody listens at {shown}; the server has ended: start it again")
        }
        io::ErrorKind::WouldBlock => {
            format!(
                "the server at {shown} accepts no connection; it may be serving another client: end that one"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("no permission to connect to {shown}; run as the server's user, or change its mode")
        }
        io::ErrorKind::InvalidFilename => {
            format!(
                "{shown} is longer than a socket's path can be, {LONGEST_PATH} bytes; make a symbolic link to it"
            )
        }
        _ => format!("{shown}: {error}; correct the path"),
    }
}

/// The first exchange. What the server can do is returned; what this end could not live with is an error.
pub(super) fn negotiate(connection: &Connection) -> Result<Capabilities> {
    let ours = Capabilities {
        max_msg_fds: Some(MSG_FDS as u64),
        max_data_xfer_size: Some(DATA_XFER_SIZE as u64),
        pgsizes: Some(4096),
        ..Capabilities::default()
    };
    let payload = Capabilities::version_payload(Version::CURRENT, Some(&ours));
    let device = || connection.name().to_owned();
    let reply = connection.request(command::VERSION, &[&payload]).map_err(|error| match error {
        Error::Disconnected { reason, .. } => Error::NoServer {
            device: device(),
            reason: format!(
                "{reason}; what listens there is no vfio-user server, or is stopped, or is serving another client: \
                 end that one, or correct the path"
            ),
        },
        error => error,
    })?;
    let (version, theirs) =
        Capabilities::parse_version(&reply.payload).map_err(|error| connection.lose(error.to_string()))?;
    agree(version, &theirs).map_err(|what| {
        connection.lose(what.clone());
        Error::Unsupported { device: device(), what }
    })?;
    Ok(theirs)
}

fn agree(version: Version, theirs: &Capabilities) -> std::result::Result<(), String> {
    let ours = Version::CURRENT;
    if version.major != ours.major || version.minor > ours.minor {
        let Version { major, minor } = version;
        return Err(format!(
            "it speaks version {major}.{minor} of vfio-user, and was asked for 0.{}",
            ours.minor
        ));
    }
    if theirs.twin_socket.as_ref().is_some_and(|twin| twin.supported) {
        return Err("it wants a second socket for its own commands, which it was not asked for".into());
    }
    if theirs.msg_fds() == 0 {
        return Err("it takes no files, so it cannot reach memory".into());
    }
    if theirs.data_xfer_size() < REGISTER {
        return Err(format!(
            "it transfers {} bytes at a time, less than a register",
            theirs.data_xfer_size()
        ));
    }
    if theirs.page_sizes() == 0 {
        return Err("it maps no pages of any size".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root, who runs tests as well, is refused nothing.
    #[test]
    fn a_refusal_says_what_to_do() {
        for (error, says) in [
            (libc::EACCES, "no permission to connect to /x; run as the server's user"),
            (libc::EAGAIN, "end that one"),
            (libc::ECONNREFUSED, "start it again"),
            (libc::ENAMETOOLONG, "make a symbolic link"),
            (libc::ENOTDIR, "correct the path"),
        ] {
            let refusal = refusal(Path::new("/x"), &io::Error::from_raw_os_error(error));
            assert!(refusal.contains(says) && refusal.contains("/x"), "{refusal}");
        }
    }
}
