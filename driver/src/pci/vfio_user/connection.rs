//! A connection: requests with their replies, the server's own requests, and how it ends.
//!
//! Knows who may say what when; must not know what a request is for. Each request has one deadline, from
//! before it is sent until its reply is there, whatever the server asks for meanwhile. After a deadline
//! that passed, and after anything that a server must not say, the two ends are out of step for good: the
//! connection is *lost*, and its cause is kept.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::mappings::{Denied, Mappings};
use super::message::{DmaAccess, Header, Message, command};
use super::socket::{Socket, SocketError};
use crate::{Error, Result};

/// Bytes of data that this end takes and gives with one message.
pub(super) const DATA_XFER_SIZE: usize = 1 << 20;
/// Files that this end takes with one message.
pub(super) const MSG_FDS: usize = 8;
/// What a time-out is cut to.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests of the server's that are served in a row while none of ours is under way.
const SERVED_IN_A_ROW: usize = 64;

pub(super) struct Connection {
    name: String,
    timeout: Duration,
    channel: Mutex<Channel>,
    lost: OnceLock<String>,
}

/// The socket, and what the server may reach.
pub(super) struct Channel {
    socket: Socket,
    next_id: u16,
    pub(super) mappings: Mappings,
}

/// Why there is no reply.
pub(super) enum Failure {
    /// The server refused, with an errno.
    Refused(u32),
    /// The connection is lost.
    Lost,
}

impl Connection {
    pub(super) fn new(name: String, socket: Socket, timeout: Duration) -> Connection {
        let channel = Channel { socket, next_id: 1, mappings: Mappings::default() };
        Connection { name, timeout, channel: Mutex::new(channel), lost: OnceLock::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// What is said of a lost connection.
    pub(super) fn disconnected(&self) -> Error {
        let reason = self.lost.get().map_or("its registers read as all ones", String::as_str).to_owned();
        Error::Disconnected { device: self.name.clone(), reason }
    }

    pub(super) fn channel(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a command and waits for its reply.
    pub(super) fn request(&self, command: u16, payload: &[&[u8]]) -> Result<Message> {
        self.request_within(command, payload, self.timeout)
    }

    /// The same, with a time of its own.
    pub(super) fn request_within(
        &self,
        command: u16,
        payload: &[&[u8]],
        timeout: Duration,
    ) -> Result<Message> {
        let reply = self.exchange(&mut self.channel(), command, payload, &[], timeout);
        reply.map_err(|failure| self.error(command, failure))
    }

    /// The same for whoever holds the channel, in the time that a request has.
    pub(super) fn request_in(
        &self,
        channel: &mut Channel,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<Message, Failure> {
        self.exchange(channel, command, &[payload], fds, self.timeout)
    }

    pub(super) fn error(&self, command: u16, failure: Failure) -> Error {
        match failure {
            Failure::Lost => self.disconnected(),
            Failure::Refused(errno) => Error::Os {
                what: format!("{}: the server refused {}", self.name, command::name(command)),
                source: errno_error(errno),
            },
        }
    }

    /// Sends a command that wants no reply. If it cannot be sent, the connection is lost.
    pub(super) fn post(&self, command: u16, payload: &[&[u8]]) {
        let mut channel = self.channel();
        if self.is_lost() {
            return;
        }
        let header = Header::command(channel.take_id(), command).without_reply();
        let deadline = after(self.timeout);
        if let Err(cause) = channel.send(header, payload, &[], deadline) {
            self.lose_in(&mut channel, format!("{} could not be sent: {cause}", command::name(command)));
        }
    }

    /// Answers what the server asks for, as far as it has been asked, without waiting. Nothing if
    /// somebody else uses the connection: whoever waits for a reply serves as well.
    pub(super) fn serve(&self) {
        let mut channel = match self.channel.try_lock() {
            Ok(channel) => channel,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if self.is_lost() {
            return;
        }
        if let Err(cause) = channel.serve_pending(after(self.timeout)) {
            self.lose_in(&mut channel, cause);
        }
    }

    /// Gives the connection up: what the server said makes no sense.
    pub(super) fn lose(&self, cause: String) -> Error {
        self.lose_in(&mut self.channel(), cause);
        self.disconnected()
    }

    /// The same without waiting for whoever uses the connection: it ends when that is over.
    pub(super) fn lose_soon(&self, cause: String) {
        let _ = self.lost.set(cause);
        if let Ok(mut channel) = self.channel.try_lock() {
            channel.socket.shut_down();
        }
    }

    fn lose_in(&self, channel: &mut Channel, cause: String) {
        let _ = self.lost.set(cause);
        channel.socket.shut_down();
    }

    fn exchange(
        &self,
        channel: &mut Channel,
        command: u16,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> std::result::Result<Message, Failure> {
        if self.is_lost() {
            return Err(Failure::Lost);
        }
        let reply = channel.exchange(command, payload, fds, timeout).map_err(|cause| {
            self.lose_in(channel, cause);
            Failure::Lost
        })?;
        match reply.header.failure() {
            Some(errno) => Err(Failure::Refused(errno)),
            None => Ok(reply),
        }
    }
}

impl Channel {
    fn take_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// One command and its reply. An error is the cause of a lost connection.
    fn exchange(
        &mut self,
        command: u16,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> std::result::Result<Message, String> {
        let deadline = after(timeout);
        let name = command::name(command);
        let header = Header::command(self.take_id(), command);
        let late = |error: SocketError| match error {
            SocketError::Timeout => format!("no answer to {name} in {} ms", timeout.as_millis()),
            error => format!("in {name}: {error}"),
        };
        self.send(header, payload, fds, deadline).map_err(late)?;
        loop {
            let message = self.socket.receive(deadline).map_err(late)?;
            if message.header.is_command() {
                self.serve_one(message, deadline)?;
                // A server that keeps asking must not keep us here.
                if Instant::now() >= deadline {
                    return Err(late(SocketError::Timeout));
                }
                continue;
            }
            check_reply(&header, &message.header)?;
            return match message.fds.len() {
                files @ 1.. if command != command::DEVICE_GET_REGION_INFO => {
                    Err(format!("{files} files came with the reply to {name}"))
                }
                _ => Ok(message),
            };
        }
    }

    /// Sends when there is room, and until then serves the server: it may be waiting for us to do so.
    fn send(
        &mut self,
        header: Header,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> std::result::Result<(), SocketError> {
        while !self.socket.wait_for_room(deadline)? {
            let message = self.socket.try_receive()?;
            if let Some(message) = message {
                self.serve_one(message, deadline)
                    .map_err(|cause| SocketError::Os(io::Error::other(cause)))?;
            }
            if Instant::now() >= deadline {
                return Err(SocketError::Timeout);
            }
        }
        self.socket.send(header, payload, fds, deadline)
    }

    fn serve_pending(&mut self, deadline: Instant) -> std::result::Result<(), String> {
        for _ in 0..SERVED_IN_A_ROW {
            match self.socket.try_receive() {
                Ok(Some(message)) => self.serve_one(message, deadline)?,
                Ok(None) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Answers one command of the server's.
    fn serve_one(&mut self, message: Message, deadline: Instant) -> std::result::Result<(), String> {
        let Message { header, fds, .. } = &message;
        if !header.is_command() || !fds.is_empty() {
            return Err(format!("a message that nobody asked for ({header:?}, {} files)", fds.len()));
        }
        let answer = match header.command {
            command::DMA_READ => self.dma_read(&message),
            command::DMA_WRITE => self.dma_write(&message),
            _ => Err(libc::EOPNOTSUPP),
        };
        if !header.wants_reply() {
            return Ok(());
        }
        let sent = match answer {
            Ok((access, data)) => {
                self.socket.send(header.reply(), &[access.as_bytes(), &data], &[], deadline)
            }
            Err(errno) => self.socket.send(header.error_reply(errno as u32), &[], &[], deadline),
        };
        sent.map_err(|error| format!("in the answer to {}: {error}", command::name(header.command)))
    }

    fn dma_read(&self, message: &Message) -> std::result::Result<(DmaAccess, Vec<u8>), i32> {
        let (access, _) = message.parse::<DmaAccess>().ok_or(libc::EINVAL)?;
        let len = usize::try_from(access.count).ok().filter(|len| *len <= DATA_XFER_SIZE);
        let data = self.mappings.read(access.address, len.ok_or(libc::EINVAL)?).map_err(errno)?;
        Ok((access, data))
    }

    fn dma_write(&self, message: &Message) -> std::result::Result<(DmaAccess, Vec<u8>), i32> {
        let (access, data) = message.parse::<DmaAccess>().ok_or(libc::EINVAL)?;
        let len = usize::try_from(access.count).ok().filter(|len| *len <= DATA_XFER_SIZE);
        let data = len.and_then(|len| data.get(..len)).ok_or(libc::EINVAL)?;
        self.mappings.write(access.address, data).map_err(errno)?;
        Ok((access, Vec::new()))
    }
}

/// The end of a time that begins now.
fn after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST)
}

fn errno(denied: Denied) -> i32 {
    match denied {
        Denied::Unmapped => libc::EFAULT,
        Denied::ReadOnly => libc::EACCES,
    }
}

/// The errno of a reply as an error, which 0 and what is none have as well.
fn errno_error(errno: u32) -> io::Error {
    match i32::try_from(errno) {
        Ok(0) => io::Error::other("it gave no reason"),
        Ok(errno @ 1..4096) => io::Error::from_raw_os_error(errno),
        _ => io::Error::other(format!("error {errno:#x}")),
    }
}

/// Whether a header is that of the reply to a command.
fn check_reply(asked: &Header, got: &Header) -> std::result::Result<(), String> {
    // Some servers leave the command 0 in their replies.
    if got.is_reply() && got.id == asked.id && (got.command == asked.command || got.command == 0) {
        return Ok(());
    }
    let kind = if got.is_reply() { "a reply" } else { "neither a command nor a reply came, but a message" };
    Err(format!(
        "{kind} with ID {} and command {} (flags {:#x}), where {} with ID {} was asked",
        got.id,
        got.command,
        got.flags,
        command::name(asked.command),
        asked.id
    ))
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("name", &self.name)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
