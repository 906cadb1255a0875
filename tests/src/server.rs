//! `kiovec serve` with the controller of the machines that are served one, from its start to its end.
//!
//! Knows the command line and how the process ends; must not know what is done with the controller.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::Controller;
use crate::process;

/// How long start and end may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the run.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
    /// The process.
    #[error("{0}: {1}")]
    Process(PathBuf, #[source] io::Error),
    /// It says nothing, or ended.
    #[error("kiovec serve does not get ready; {0} says why")]
    NotReady(PathBuf),
}

/// A running server. Dropped, it is killed, and nothing is left of it but its log.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    child: Child,
    /// Below /tmp: the path of a socket has 107 bytes at most, which TARGET's may use up.
    directory: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts `program` with that controller and returns when it listens. What it complains of is in `log`.
    pub fn start(program: &Path, controller: &Controller, log: &Path) -> Result<Server, Error> {
        let directory = std::env::temp_dir().join(format!("kiovec-serve-{}", std::process::id()));
        fs::create_dir(&directory).map_err(|e| Error::File(directory.clone(), e))?;
        let started = start_in(&directory, program, controller, log);
        let child = started.inspect_err(|_| drop(fs::remove_dir_all(&directory)))?;
        let mut server = Server { program: program.to_owned(), child, directory, log: log.to_owned() };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.directory)
    }

    /// It says on standard output that it listens.
    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let not_ready = || Error::NotReady(self.log.clone());
        let mut out = self.child.stdout.take().ok_or_else(not_ready)?;
        let deadline = Instant::now() + LIMIT;
        let mut said = Vec::new();
        while !said.contains(&b'\n') {
            let failed = |e| Error::Process(self.program.clone(), e);
            let mut more = [0; 256];
            let len = match process::readable(&out, deadline).map_err(failed)? {
                true => out.read(&mut more).map_err(failed)?,
                false => 0,
            };
            if len == 0 {
                return Err(not_ready());
            }
            said.extend_from_slice(&more[..len]);
        }
        // Kept open: it may say more.
        self.child.stdout = Some(out);
        Ok(())
    }

    /// Asks it to end; what is wrong with how it does, if anything.
    pub fn end(mut self) -> Result<Option<String>, Error> {
        let failed = |e: io::Error| Error::Process(self.program.clone(), e);
        if let Some(status) = self.child.try_wait().map_err(failed)? {
            return Ok(Some(format!("kiovec serve had ended already: {status}")));
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(|e| failed(e.into()))?;
        let status = process::wait(&mut self.child, LIMIT).map_err(failed)?;
        let said = fs::read_to_string(&self.log).map_err(|e| Error::File(self.log.clone(), e))?;
        Ok(match status {
            None => Some(format!("kiovec serve did not end in {} s", LIMIT.as_secs())),
            Some(status) if !status.success() => Some(format!("kiovec serve ended with {status}")),
            Some(_) if self.socket().exists() => Some("kiovec serve left its socket behind".into()),
            Some(_) => said.lines().find(|line| line.contains("panicked")).map(str::to_owned),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, or it has to now.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn socket_in(directory: &Path) -> PathBuf {
    directory.join("cntrl")
}

fn start_in(directory: &Path, program: &Path, controller: &Controller, log: &Path) -> Result<Child, Error> {
    let complaints = File::create(log).map_err(|e| Error::File(log.to_owned(), e))?;
    let mut command = Command::new(program);
    command.args(["serve", &settings(controller), "--socket"]).arg(socket_in(directory));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
    process::end_with_parent(&mut command);
    command.spawn().map_err(|e| Error::Process(program.to_owned(), e))
}

/// The namespaces are alike: the first speaks for all.
fn settings(controller: &Controller) -> String {
    let (serial, count) = (controller.serial, controller.namespaces.len());
    let alike = controller.namespaces.first().map(|n| format!("size={},block={}", n.size, n.block));
    format!("emulated:{},namespaces={count},media=ram,sgl=on,serial={serial}", alike.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::SERVED;

    #[test]
    fn the_settings_say_what_the_guest_expects() {
        assert_eq!(
            settings(&SERVED),
            "emulated:size=33554432,block=512,namespaces=2,media=ram,sgl=on,serial=KIOVECSERVED"
        );
        let size = |n: &crate::machine::Namespace| (n.size, n.block);
        assert!(SERVED.namespaces.iter().all(|n| size(n) == size(&SERVED.namespaces[0])));
    }
}
