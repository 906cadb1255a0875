//! QEMU's monitor: a command and its answer at a time; events between them are passed over.
//!
//! Knows the protocol's framing (QMP: one JSON object a line); must not know what commands are for.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What a command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Where QEMU connects to when it starts.
#[derive(Debug)]
pub struct Entrance {
    listener: UnixListener,
}

/// A QEMU that has connected.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Entrance {
    /// Listens at `path`, for QEMU's `-chardev socket,path=PATH`.
    pub fn open(path: &Path) -> io::Result<Entrance> {
        Ok(Entrance { listener: UnixListener::bind(path)? })
    }

    /// Takes the connection of a QEMU that has started; it connects before it runs anything.
    pub fn accept(&self) -> io::Result<Monitor> {
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        let mut monitor = Monitor { stream: BufReader::new(stream) };
        monitor.next(Instant::now() + LIMIT)?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }
}

impl Monitor {
    /// Executes a command, and fails if QEMU says that it failed.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> io::Result<()> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let message = self.next(deadline)?;
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!("QEMU refuses {request}: {error}")));
            }
            if message.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> io::Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(left))?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|e| io::Error::other(format!("QEMU's monitor: {line:?}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a QEMU says that greets, and then answers with these lines.
    fn conversation(name: &str, answers: &[&str], then: impl FnOnce(Monitor)) {
        let path = std::env::temp_dir().join(format!("kiovec-monitor-{name}-{}", std::process::id()));
        let entrance = Entrance::open(&path).expect("a socket");
        let mut qemu = UnixStream::connect(&path).expect("connected");
        let said = ["{\"QMP\": {}}", "{\"return\": {}}"].iter().chain(answers);
        said.for_each(|line| writeln!(qemu, "{line}").expect("said"));
        qemu.shutdown(std::net::Shutdown::Write).expect("said all");
        then(entrance.accept().expect("greeted"));
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn events_may_come_before_the_answer() {
        let event = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"x\"}}";
        conversation("events", &["{\"event\": \"RESUME\"}", event, "{\"return\": {}}"], |mut monitor| {
            monitor.execute("device_del", &json!({ "id": "x" })).expect("done");
            assert!(monitor.execute("device_del", &json!({ "id": "x" })).is_err(), "QEMU is gone");
        });
    }

    #[test]
    fn a_refusal_is_an_error() {
        conversation("refusal", &["{\"error\": {\"desc\": \"no such device\"}}"], |mut monitor| {
            let error = monitor.execute("device_del", &json!({})).expect_err("refused").to_string();
            assert!(error.contains("no such device") && error.contains("device_del"), "{error}");
        });
    }
}
