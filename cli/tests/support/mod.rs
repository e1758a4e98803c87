//! The built command, and a shop that has something to show.

#![allow(dead_code, reason = "each test takes what it needs")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says what it expects")]

use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// What is waited for at most.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The command, with nothing of this process's environment that it would listen to.
pub(crate) fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    for name in ["POSTRIDER_URL", "POSTRIDER_MANAGEMENT_URL", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// The command on a broker.
pub(crate) fn postrider(url: &str, arguments: &[&str]) -> Command {
    let mut command = bare();
    command.env("POSTRIDER_URL", url).args(arguments);
    command
}

/// How it ended, and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its only JSON object.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A JSON object a line.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
    }

    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// Runs it to its end.
pub(crate) fn run(url: &str, arguments: &[&str]) -> Said {
    Said::of(postrider(url, arguments).output().expect("it runs"))
}

/// Runs it to its end, with something to read, of which it may read nothing.
pub(crate) fn run_with(url: &str, arguments: &[&str], input: &str) -> Said {
    let mut command = postrider(url, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let written = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    // one that ends without reading says so by its code
    if let Err(error) = written {
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    }
    Said::of(child.wait_with_output().expect("it ends"))
}

/// Runs it to its end at a terminal where somebody types this.
pub(crate) fn run_typing(url: &str, arguments: &[&str], typed: &str) -> Said {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&terminal).expect("it is ours");
    unlockpt(&terminal).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name").into_string().expect("it is a path");
    let other_end = std::fs::OpenOptions::new().read(true).write(true).open(name).expect("it opens");
    let mut keyboard = std::fs::File::from(terminal);
    keyboard.write_all(typed.as_bytes()).expect("it is typed");
    Said::of(postrider(url, arguments).stdin(Stdio::from(other_end)).output().expect("it runs"))
}

/// A tenant that no other test has, on the broker that a variable names.
pub(crate) fn url(variable: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let base = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker"));
    let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_nanos() % 0xffff_ffff;
    format!("{base}?tenant=t{:x}-{time:x}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed))
}
