//! The way out for results: the second serial line, which the kernel's messages do not use.

use std::fs::{File, OpenOptions};
use std::io::Write;

use kiovec_tests::report::Line;

const PATH: &str = "/dev/ttyS1";

/// The open serial line.
#[derive(Debug)]
pub struct Reporter {
    line: File,
}

impl Reporter {
    pub fn open() -> Result<Self, String> {
        let line = OpenOptions::new().write(true).open(PATH).map_err(|e| format!("{PATH}: {e}"))?;
        Ok(Self { line })
    }

    /// Tells one line, and returns when it has left the machine: the next case may end it.
    pub fn tell(&mut self, line: &Line) {
        let written = writeln!(self.line, "{line}").and_then(|()| Ok(rustix::termios::tcdrain(&self.line)?));
        if let Err(e) = written {
            println!("guest-init: {PATH}: {e}");
        }
    }
}
