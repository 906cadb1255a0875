//! Running the programs under test as a user would, and looking at what they say.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiovec_tests::process;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use crate::{Verdict, ensure};

/// The unprivileged user of the guest's /etc/passwd.
pub const USER: &str = "tester";
const USER_ID: u32 = 1000;
/// No single program needs longer, even emulated.
pub const LIMIT: Duration = Duration::from_secs(90);
/// What a program that is being started writes to; then the files get the names of its process.
const OUT: &str = "/run/stdout";
const ERR: &str = "/run/stderr";

/// A program with its arguments.
#[derive(Debug)]
pub struct Program {
    command: Command,
    locked_memory: Option<u64>,
    small_pages: bool,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    text: String,
    /// Its exit code; `None` if it was killed.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

/// A program of the guest, `/bin/NAME`; `line` is its command line, split at spaces.
pub fn program(line: &str) -> Program {
    let mut words = line.split_whitespace();
    let mut command = Command::new(format!("/bin/{}", words.next().unwrap_or_default()));
    command.args(words).env("PATH", "/bin").current_dir("/").stdin(Stdio::null());
    Program { command, locked_memory: None, small_pages: false }
}

impl Program {
    /// Runs it as the unprivileged user.
    pub fn unprivileged(mut self) -> Self {
        self.command.uid(USER_ID).gid(USER_ID);
        self
    }

    /// Runs it with this limit of locked memory, in bytes.
    pub fn locked_memory(mut self, bytes: u64) -> Self {
        self.locked_memory = Some(bytes);
        self
    }

    /// Lets it be told something while it runs.
    pub fn listening(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    /// Lets `kiovec perf` say ever so often how it goes.
    pub fn telling(mut self) -> Self {
        self.command.args(["--status-interval", "0.1"]);
        self
    }

    /// Runs it without transparent hugepages.
    pub fn small_pages(mut self) -> Self {
        self.small_pages = true;
        self
    }

    /// Starts it and leaves it running.
    pub fn start(mut self) -> Result<Child, String> {
        let text = self.to_string();
        let file = |path: &str| File::create(path).map_err(|e| format!("{path}: {e}"));
        self.command.stdout(file(OUT)?).stderr(file(ERR)?);
        // Both are inherited: ours are changed around the start, which needs no code between fork and exec.
        let before = getrlimit(Resource::Memlock);
        if let Some(bytes) = self.locked_memory {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            setrlimit(Resource::Memlock, limit).map_err(|e| format!("setrlimit: {e}"))?;
        }
        disable_transparent_hugepages(self.small_pages)?;
        let child = self.command.spawn().map_err(|e| format!("{text}: {e}"));
        disable_transparent_hugepages(false)?;
        setrlimit(Resource::Memlock, before).map_err(|e| format!("setrlimit: {e}"))?;
        let child = child?;
        for path in [OUT, ERR] {
            fs::rename(path, of_process(path, &child)).map_err(|e| format!("{path}: {e}"))?;
        }
        Ok(child)
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Output, String> {
        let text = self.to_string();
        finish(text, self.start()?, LIMIT)
    }

    /// Runs it; it has to succeed.
    pub fn succeeds(self) -> Result<Output, String> {
        let output = self.run()?;
        ensure!(output.code == Some(0), "{output}");
        Ok(output)
    }

    /// Runs it; it has to fail as every error does: exit code 1 or 2, nothing on standard output, one line on
    /// standard error, which contains all of `words`.
    pub fn refuses(self, words: &[&str]) -> Verdict {
        let output = self.run()?;
        ensure!(matches!(output.code, Some(1 | 2)), "should have failed: {output}");
        ensure!(output.err.trim_end().lines().count() == 1, "the error is not one line: {output}");
        output.err_has(words)
    }
}

/// What a program that was started has written to standard error so far.
pub fn said(child: &Child) -> Result<String, String> {
    let path = of_process(ERR, child);
    fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))
}

fn of_process(path: &str, child: &Child) -> String {
    format!("{path}-{}", child.id())
}

/// Waits for the end of a program that was started, `limit` at most; `text` is its command line.
pub fn finish(text: String, mut child: Child, limit: Duration) -> Result<Output, String> {
    let status = process::wait(&mut child, limit).map_err(|e| format!("{text}: {e}"))?;
    let read = |path: &str| {
        let path = of_process(path, &child);
        let bytes = fs::read(&path).and_then(|bytes| fs::remove_file(&path).map(|()| bytes));
        bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|e| format!("{path}: {e}"))
    };
    let (out, err) = (read(OUT)?, read(ERR)?);
    println!("$ {text}\n{out}{err}[{status:?}]");
    let status = status.ok_or_else(|| format!("{text}: still running after {} s", limit.as_secs()))?;
    Ok(Output { text, code: status.code(), out, err })
}

/// For this process and what it starts (PR_SET_THP_DISABLE(2const)).
fn disable_transparent_hugepages(disable: bool) -> Verdict {
    // SAFETY: the call takes numbers only.
    let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, libc::c_ulong::from(disable), 0, 0, 0) };
    ensure!(done == 0, "prctl: {}", std::io::Error::last_os_error());
    Ok(())
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.command.get_program().display())?;
        self.command.get_args().try_for_each(|argument| write!(f, " {}", argument.display()))
    }
}

impl Output {
    /// Standard output, read as JSON.
    pub fn json(&self) -> Result<Value, String> {
        serde_json::from_str(&self.out).map_err(|e| format!("not JSON: {e}: {self}"))
    }

    /// Standard output has all of these.
    pub fn out_has(&self, words: &[&str]) -> Verdict {
        has(&self.out, words, self)
    }

    /// Standard error has all of these.
    pub fn err_has(&self, words: &[&str]) -> Verdict {
        has(&self.err, words, self)
    }
}

fn has(text: &str, words: &[&str], output: &Output) -> Verdict {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "no {missing:?} in the output: {output}");
    Ok(())
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Output { text, code, out, err } = self;
        write!(f, "`{text}` exit code {code:?}, out: {out:?}, err: {err:?}")
    }
}
