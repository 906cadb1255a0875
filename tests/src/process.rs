//! Waiting for a child process, but not for ever.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Kills what `command` starts when this process, or the thread that starts it, is gone: nobody would be left to
/// enforce its limit.
pub fn end_with_parent(command: &mut Command) {
    let die = || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
    // SAFETY: between fork and exec only one system call is made; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(die) };
}

/// Waits until `child` has ended. After `limit` it is killed and the answer is `None`.
pub fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if ended(child, limit)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Waits until `child` has ended, or `limit` is over; whether it has ended.
pub fn ended(child: &Child, limit: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    readable(&pidfd, Instant::now() + limit)
}

/// Whether `fd` became readable before `deadline`.
pub fn readable(fd: &impl std::os::fd::AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ends_gives_its_status() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().expect("sh");
        let status = wait(&mut child, Duration::from_secs(60)).expect("waited");
        assert_eq!(status.and_then(|s| s.code()), Some(3));
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        assert!(wait(&mut child, Duration::from_millis(10)).expect("waited").is_none());
        assert!(child.try_wait().expect("reaped").is_some());
    }
}
