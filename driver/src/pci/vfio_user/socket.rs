//! Whole messages over a stream socket, with the files that go with them.
//!
//! Knows framing, limits and time; must not know what a message means. A stream has no message
//! boundaries, so each message is read by its own length and nothing beyond it: what is glued is taken
//! apart, what comes in pieces is put together, also over several calls, and files stay with the message
//! that they came with. Nothing here blocks longer than its deadline.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromZeros, IntoBytes};

use super::message::{Header, Message};

/// Files that the kernel lets one message have (`SCM_MAX_FD`).
const MOST_FDS: usize = 253;
/// Parts of a payload that [`Socket::send`] takes, at most.
const MOST_PARTS: usize = 4;

/// What is taken from the other end, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a payload.
    pub payload: usize,
    /// Files of a message: up to 253.
    pub fds: usize,
}

/// Why a message did not get across. After anything but [`Timeout`](SocketError::Timeout) of a receive,
/// the stream is out of step, and every later call fails as [`Closed`](SocketError::Closed).
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The other end closed the connection between two messages.
    #[error("the other end closed the connection")]
    Closed,
    /// The other end closed the connection within a message.
    #[error("the other end closed the connection {got} bytes into a message of {wanted}")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes of the message, or of its header if not even that came.
        wanted: usize,
    },
    /// Nothing came, or nothing more could be sent, in time.
    #[error("the other end took too long")]
    Timeout,
    /// A message says that it is shorter than a header, or longer than it may be.
    #[error("a message of {size} bytes; one has 16 to {most}")]
    Size {
        /// What its header says.
        size: u32,
        /// The most that it may say.
        most: usize,
    },
    /// More files than agreed on came with a message, or than this process may open.
    #[error("more than {most} files came with a message (or this process has too many open)")]
    TooManyFds {
        /// How many there may be.
        most: usize,
    },
    /// What is to be sent cannot be: more files than the kernel takes, or longer than 4 GiB.
    #[error("a message of {size} bytes with {fds} files cannot be sent")]
    Unsendable {
        /// Its bytes.
        size: usize,
        /// Its files.
        fds: usize,
    },
    /// The operating system's error.
    #[error("{0}")]
    Os(io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> SocketError {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => SocketError::Closed,
            errno => SocketError::Os(errno.into()),
        }
    }
}

/// One end of a connection.
pub struct Socket {
    stream: UnixStream,
    limits: Limits,
    /// What has come of the next message.
    partial: Partial,
    /// Out of step: nothing that is read or sent would mean anything.
    broken: bool,
}

struct Partial {
    header: Header,
    /// Once the header is there and has been found good.
    payload: Option<Vec<u8>>,
    /// Bytes that are there, of the header or of the payload.
    got: usize,
    fds: Vec<OwnedFd>,
}

impl Partial {
    fn new() -> Partial {
        Partial { header: Header::new_zeroed(), payload: None, got: 0, fds: Vec::new() }
    }
}

impl Socket {
    /// Takes a connected stream.
    pub fn new(stream: UnixStream, limits: Limits) -> Socket {
        let mut socket = Socket { stream, limits, partial: Partial::new(), broken: false };
        socket.set_limits(limits);
        socket
    }

    /// Changes what is taken from the next message on.
    pub fn set_limits(&mut self, limits: Limits) {
        let payload = limits.payload.min(u32::MAX as usize - Header::LEN);
        self.limits = Limits { payload, fds: limits.fds.min(MOST_FDS) };
    }

    /// Whether the stream is out of step or closed, as far as is known.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Makes every later call fail, and lets the other end know.
    pub fn shut_down(&mut self) {
        self.broken = true;
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Sends a message as one, with its files; the header's size is filled in. `payload` has up to four
    /// parts. If the deadline passes when a part of it is on its way, the stream is out of step.
    pub fn send(
        &mut self,
        header: Header,
        payload: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), SocketError> {
        if self.broken {
            return Err(SocketError::Closed);
        }
        let size = payload.iter().fold(Header::LEN, |size, part| size.saturating_add(part.len()));
        let unsendable = SocketError::Unsendable { size, fds: fds.len() };
        if fds.len() > MOST_FDS || payload.len() > MOST_PARTS {
            return Err(unsendable);
        }
        let header = Header { size: u32::try_from(size).map_err(|_| unsendable)?, ..header };
        let mut parts = [IoSlice::new(&[]); MOST_PARTS + 1];
        let bytes = std::iter::once(header.as_bytes()).chain(payload.iter().copied());
        parts.iter_mut().zip(bytes).for_each(|(part, bytes)| *part = IoSlice::new(bytes));
        self.send_all(&mut parts[..], fds, deadline).inspect_err(|_| self.broken = true)
    }

    fn send_all(
        &self,
        mut parts: &mut [IoSlice<'_>],
        mut fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), SocketError> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            // The files go with the first byte, whatever becomes of the rest.
            let fits = fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(fits, "the space was made for them");
            match sendmsg(&self.stream, parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    fds = &[];
                    IoSlice::advance_slices(&mut parts, sent);
                }
                Err(Errno::AGAIN) => {
                    self.wait(PollFlags::OUT, deadline)?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits for a message, at most until the deadline. What has come by then is kept for the next call.
    pub fn receive(&mut self, deadline: Instant) -> Result<Message, SocketError> {
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            self.wait(PollFlags::IN, deadline)?;
        }
    }

    /// A message, if all of it is there already.
    pub fn try_receive(&mut self) -> Result<Option<Message>, SocketError> {
        if self.broken {
            return Err(SocketError::Closed);
        }
        self.fill().inspect_err(|_| self.broken = true)
    }

    fn fill(&mut self) -> Result<Option<Message>, SocketError> {
        loop {
            let Partial { header, payload, got, fds } = &mut self.partial;
            let room = match payload {
                None => header.as_mut_bytes(),
                Some(payload) => payload.as_mut_slice(),
            };
            let room = room.get_mut(*got..).unwrap_or_default();
            if room.is_empty() {
                match payload {
                    None => *payload = Some(vec![0; payload_len(header, self.limits.payload)?]),
                    Some(_) => return Ok(self.take()),
                }
                *got = 0;
                continue;
            }
            match receive_some(&self.stream, room, fds, self.limits.fds) {
                Ok(0) => return Err(self.end()),
                Ok(bytes) => *got += bytes,
                Err(SocketError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(SocketError::Os(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self) -> Option<Message> {
        let Partial { header, payload, fds, .. } = std::mem::replace(&mut self.partial, Partial::new());
        Some(Message { header, payload: payload?, fds })
    }

    /// What the end of the stream means here.
    fn end(&self) -> SocketError {
        let Partial { header, payload, got, .. } = &self.partial;
        match (payload, *got) {
            (None, 0) => SocketError::Closed,
            (None, got) => SocketError::Truncated { got, wanted: Header::LEN },
            (Some(_), got) => SocketError::Truncated { got: Header::LEN + got, wanted: header.size as usize },
        }
    }

    /// Waits until a short message can be sent at once (true), or something has come (false).
    pub fn wait_for_room(&self, deadline: Instant) -> Result<bool, SocketError> {
        if self.broken {
            return Err(SocketError::Closed);
        }
        let seen = self.wait(PollFlags::IN | PollFlags::OUT, deadline)?;
        Ok(seen.contains(PollFlags::OUT))
    }

    /// Waits for events of the socket, and returns those that there are; none if a signal came.
    fn wait(&self, what: PollFlags, deadline: Instant) -> Result<PollFlags, SocketError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SocketError::Timeout);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // Early or late, the caller tries again and comes back here.
        let mut fds = [PollFd::new(&self.stream, what)];
        match poll(&mut fds, Some(&left)) {
            Ok(_) => Ok(fds[0].revents()),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The length of the payload that a header announces.
fn payload_len(header: &Header, most: usize) -> Result<usize, SocketError> {
    let len = (header.size as usize).checked_sub(Header::LEN).filter(|len| *len <= most);
    len.ok_or(SocketError::Size { size: header.size, most: most + Header::LEN })
}

/// Reads once, without waiting. Files that are too many are closed.
fn receive_some(
    stream: &UnixStream,
    room: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    most: usize,
) -> Result<usize, SocketError> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(most))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(room)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            fds.extend(files);
        }
    }
    // What did not fit, the kernel has closed; the rest is closed with the connection's state.
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > most {
        fds.clear();
        return Err(SocketError::TooManyFds { most });
    }
    Ok(received.bytes)
}

impl AsFd for Socket {
    /// To wait for input in a poll of one's own.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("limits", &self.limits).field("broken", &self.broken).finish()
    }
}

#[cfg(test)]
mod tests;
