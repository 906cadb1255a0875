//! What ends a process is tried in one of its own: the test's program again, for this test only.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::super::Map;
use super::*;

const CHILD: &str = "KIOVEC_SIGBUS_CHILD";
const LEN: usize = 0x4000;
/// What a child ends with that lives on.
const ALIVE: i32 = 42;

/// How a process ends that does this. `test` is the test that asks, and in the child, this does not return.
fn in_a_child(test: &str, f: fn()) -> ExitStatus {
    if std::env::var_os(CHILD).is_some() {
        rustix::process::setrlimit(
            rustix::process::Resource::Core,
            rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
        )
        .unwrap();
        f();
        std::process::exit(ALIVE);
    }
    let name = format!("memory::sigbus::tests::{test}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap().status
}

fn file() -> OwnedFd {
    let file = memfd_create("bar", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, LEN as u64).unwrap();
    file
}

fn map(file: &OwnedFd) -> Map {
    Map::new(file.as_fd(), 0, LEN).unwrap()
}

fn guard(map: &Map, wake: Option<Arc<OwnedFd>>) -> Guarded {
    // SAFETY: all of a mapping that outlives the guard in each test.
    unsafe { Guarded::new(map.base(), map.len(), wake).unwrap() }
}

fn write(map: &Map, at: usize) {
    // SAFETY: within a mapping, if there is memory.
    unsafe { map.base().byte_add(at).write_volatile(1) }
}

fn read(map: &Map, at: usize) -> u8 {
    // SAFETY: as in `write`.
    unsafe { map.base().byte_add(at).read_volatile() }
}

#[test]
fn what_has_vanished_is_lost_and_nothing_else_is() {
    install_sigbus_handler().unwrap();
    let (one, other) = (file(), file());
    let (map_one, map_other) = (map(&one), map(&other));
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let (guard_one, guard_other) = (guard(&map_one, Some(Arc::clone(&wake))), guard(&map_other, None));
    write(&map_one, 8);
    ftruncate(&one, 0x1000).unwrap();
    assert_eq!((read(&map_one, 8), guard_one.is_lost()), (1, false), "that page is still there");
    let losses = Guarded::losses();
    write(&map_one, 0x3ffc);
    assert!(guard_one.is_lost() && Guarded::losses() > losses);
    assert_eq!((read(&map_one, 8), read(&map_one, 0x3ffc)), (0, 1), "all of it is memory of our own");
    let mut count = [0; 8];
    rustix::io::read(&*wake, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    write(&map_other, 8);
    assert!(!guard_other.is_lost());
    // The row is free for another mapping.
    drop(guard_one);
    drop(map_one);
    let map_one = map(&other);
    let guard_one = guard(&map_one, None);
    assert_eq!((read(&map_one, 8), guard_one.is_lost()), (1, false));
}

#[test]
fn without_a_handler_it_ends_the_process() {
    let status = in_a_child("without_a_handler_it_ends_the_process", || {
        let file = file();
        let map = map(&file);
        let _guard = guard(&map, None);
        ftruncate(&file, 0).unwrap();
        write(&map, 0);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_handler_that_comes_late_is_early_enough() {
    let status = in_a_child("a_handler_that_comes_late_is_early_enough", || {
        let file = file();
        let map = map(&file);
        let guard = guard(&map, None);
        ftruncate(&file, 0).unwrap();
        install_sigbus_handler().unwrap();
        write(&map, 0);
        assert!(guard.is_lost());
    });
    assert_eq!(status.code(), Some(ALIVE), "{status}");
}

/// Also a mapping whose guard is gone.
#[test]
fn what_is_not_guarded_ends_the_process() {
    let status = in_a_child("what_is_not_guarded_ends_the_process", || {
        install_sigbus_handler().unwrap();
        let file = file();
        let map = map(&file);
        drop(guard(&map, None));
        ftruncate(&file, 0).unwrap();
        write(&map, 0);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_signal_that_is_sent_ends_the_process() {
    let status = in_a_child("a_signal_that_is_sent_ends_the_process", || {
        // The action that Rust's library has installed takes the first one for a fault, and waits for the next.
        // SAFETY: sets the default action; raises a signal in this thread.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        install_sigbus_handler().unwrap();
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn what_was_ignored_is_ignored_unless_it_is_a_fault() {
    let status = in_a_child("what_was_ignored_is_ignored_unless_it_is_a_fault", || {
        // SAFETY: ignores a signal; raises it in this thread.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
        install_sigbus_handler().unwrap();
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(status.code(), Some(ALIVE), "{status}");
}

/// Touches what is not guarded, after an action of another's was there first.
fn fault_after(handler: usize, flags: libc::c_int) {
    // SAFETY: an action of zeros is valid, and so is one with this handler and its flags.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler, flags);
        assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()), 0);
    }
    install_sigbus_handler().unwrap();
    let file = file();
    let map = map(&file);
    ftruncate(&file, 0).unwrap();
    write(&map, 0);
}

#[test]
fn the_earlier_handler_gets_what_is_not_ours() {
    extern "C" fn earlier(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: valid in a handler with SA_SIGINFO; ends the process at once.
        unsafe { libc::_exit(if (*info).si_code == libc::BUS_ADRERR { 7 } else { 1 }) }
    }
    let status = in_a_child("the_earlier_handler_gets_what_is_not_ours", || {
        fault_after(earlier as Action as usize, libc::SA_SIGINFO);
    });
    assert_eq!(status.code(), Some(7), "{status}");
}

#[test]
fn so_does_one_of_the_old_kind() {
    extern "C" fn earlier(signal: libc::c_int) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(if signal == libc::SIGBUS { 7 } else { 1 }) }
    }
    let status = in_a_child("so_does_one_of_the_old_kind", || {
        fault_after(earlier as extern "C" fn(libc::c_int) as usize, 0);
    });
    assert_eq!(status.code(), Some(7), "{status}");
}
