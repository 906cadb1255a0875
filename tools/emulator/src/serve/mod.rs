//! The controller behind a vfio-user socket, for drivers in other processes.
//!
//! Knows clients, one after the other, and that each finds a controller as after power-on; must not know
//! NVMe.

mod interrupts;
mod listener;
mod memory;
mod regions;
mod session;

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiovec::memory::SigbusHandler;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::config::Config;
use crate::counters::Counters;
use crate::doorbells::Doorbells;
use crate::emulator::{Error, Thread, check_core};
use crate::function::Shared;
use crate::media::Store;
use crate::refused_path::Advice;
use listener::Listener;
use memory::ClientMemory;
use session::Session;

pub use session::End;

/// Why a controller cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The controller cannot be made.
    #[error(transparent)]
    Emulator(#[from] Error),
    /// Another server listens there.
    #[error("{} is in use by another server; end that one, or choose another path", .0.display())]
    InUse(PathBuf),
    /// There is a file of another kind.
    #[error("{} is there and is no socket; choose another path", .0.display())]
    NotASocket(PathBuf),
    /// No socket can have this name.
    #[error("{} is too long for a socket, whose path has at most 107 bytes; choose a shorter one", .0.display())]
    TooLong(PathBuf),
    /// The socket cannot be made or used.
    #[error("cannot {what} the socket {}: {source}{}", path.display(), Advice(path, source))]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// What a client's connection needs cannot be made.
    #[error("cannot {what}: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

fn os(what: &'static str) -> impl Fn(Errno) -> ServeError {
    move |errno| ServeError::Os { what, source: errno.into() }
}

/// An emulated controller that listens on a Unix socket for vfio-user clients.
///
/// It serves one at a time; others wait in line until it is their turn. Each client finds the controller
/// as after power-on, with what earlier ones have written. Dropping the server removes the socket.
///
/// ```no_run
/// use kiovec_emulator::{Config, Server};
/// let config = Config::parse("size=1G,media=ram")?;
/// let mut server = Server::bind(config, "/run/nvme.sock".as_ref(), kiovec::install_sigbus_handler()?)?;
/// while let Some(client) = server.accept()? {
///     println!("a client has left: {}", client.serve()?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    config: Config,
    listener: Listener,
    /// What is stored in the namespaces, while no client is connected.
    stores: Vec<Store>,
    counters: Counters,
    /// Readable when the server is to stop.
    stop: UnixStream,
    stopper: UnixStream,
    sigbus: SigbusHandler,
}

/// Ends a [`Server`], from anywhere.
#[derive(Debug)]
pub struct Stopper(UnixStream);

impl Stopper {
    /// Lets the server end: its client is disconnected, and [`Server::accept`] returns no more.
    pub fn stop(&self) {
        // If there is no room, there is a byte already.
        let _ = rustix::net::send(&self.0, &[0], rustix::net::SendFlags::DONTWAIT);
    }

    /// What it does as a stream: a byte written to it ends the server. For a signal handler.
    pub fn into_stream(self) -> UnixStream {
        self.0
    }
}

impl Server {
    /// Makes the socket, mode 0600, and opens what is stored. A socket that nobody listens on is
    /// replaced. The handler is what keeps a client that truncates its memory from ending this process.
    pub fn bind(config: Config, path: &Path, sigbus: SigbusHandler) -> Result<Server, ServeError> {
        config.check().map_err(Error::from)?;
        check_core(config.core)?;
        let pair = UnixStream::pair();
        let (stop, stopper) =
            pair.map_err(|source| ServeError::Os { what: "make a pair of sockets", source })?;
        // First, so that who may not listen makes no file; its clients wait.
        let listener = Listener::bind(path)?;
        let stores = Store::open(&config).map_err(Error::from)?;
        Ok(Server { config, listener, stores, counters: Counters::default(), stop, stopper, sigbus })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// What ends it.
    pub fn stopper(&self) -> Result<Stopper, ServeError> {
        let stopper = self.stopper.try_clone();
        stopper.map(Stopper).map_err(|source| ServeError::Os { what: "copy a socket", source })
    }

    /// What has been done for all clients so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Waits for a client. `None` when the server was stopped.
    pub fn accept(&mut self) -> Result<Option<Connection<'_>>, ServeError> {
        loop {
            let mut events =
                [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            match poll(&mut events, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(os("wait for a client")(errno)),
            }
            if !events[0].revents().is_empty() {
                return Ok(None);
            }
            if !events[1].revents().is_empty()
                && let Some(stream) = self.listener.accept()?
            {
                return Ok(Some(Connection { server: self, stream }));
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// A client that has connected.
#[derive(Debug)]
pub struct Connection<'a> {
    server: &'a mut Server,
    stream: UnixStream,
}

impl Connection<'_> {
    /// The client's process identifier and user, where the kernel knows them.
    pub fn peer(&self) -> Option<(u32, u32)> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream).ok()?;
        Some((u32::try_from(peer.pid.as_raw_nonzero().get()).ok()?, peer.uid.as_raw()))
    }

    /// Serves it until it leaves, or is sent away, or the server is stopped. Then nothing of it is left:
    /// no mapping, no file, and doorbells that nobody looks at.
    pub fn serve(self) -> Result<End, ServeError> {
        let Connection { server, stream } = self;
        let lost =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(os("make an eventfd"))?;
        let memory = ClientMemory::new(Arc::new(lost), server.sigbus);
        let doorbells = Doorbells::in_file(server.config.queues).map_err(|source| {
            let what = "make the file of the doorbells";
            ServeError::Os { what, source }
        })?;
        let stores = std::mem::take(&mut server.stores);
        let shared = Arc::new(Shared::served(server.config.clone(), Arc::clone(&doorbells), stores));
        let thread = Thread::start(&shared, server.config.core);
        let end = thread.map(|thread| {
            let end = Session::new(stream, &shared, doorbells, memory).run(server.stop.as_fd());
            // It is the last one that could use the client's memory.
            drop(thread);
            end
        });
        let mut controller = shared.controller();
        server.counters += controller.counters();
        server.stores = controller.take_stores();
        Ok(end?)
    }
}
