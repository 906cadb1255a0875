//! What this machine cannot do to itself: asking for it on the second serial line, and waiting for the answer.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use kiovec_tests::process;
use kiovec_tests::report::{Answer, Ask};

use crate::Verdict;

const PATH: &str = "/dev/ttyS1";
/// Longer than the operator waits for anything.
const LIMIT: Duration = Duration::from_secs(80);

/// Returns when it is done.
pub fn ask(ask: &Ask) -> Verdict {
    let failed = |e: std::io::Error| format!("{PATH}: {e}");
    let mut options = OpenOptions::new();
    let mut line = options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(PATH).map_err(failed)?;
    writeln!(line, "{ask}").map_err(failed)?;
    let deadline = Instant::now() + LIMIT;
    let mut heard = String::new();
    while process::readable(&line, deadline).map_err(failed)? {
        let mut more = [0; 256];
        let len = line.read(&mut more).map_err(failed)?;
        heard += &String::from_utf8_lossy(&more[..len]);
        let whole = heard.rfind('\n').map_or("", |end| &heard[..end]);
        if let Some(Answer(refused)) = whole.lines().find_map(Answer::parse) {
            return refused.map_or(Ok(()), |why| Err(format!("{ask}: {why}")));
        }
    }
    Err(format!("{ask}: no answer within {} s", LIMIT.as_secs()))
}
