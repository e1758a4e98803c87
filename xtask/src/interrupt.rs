//! Programs run so that Ctrl-C, SIGTERM and SIGHUP end them first and this command then: what was
//! brought up is taken down by whoever owns it, as the error passes by.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How often a running program is asked whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a program may take to end once it is told to.
const GRACE: Duration = Duration::from_secs(10);

/// The user, or the system, wants the command to end.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The signals that end the command. Made once, before the first program is run.
pub(crate) struct Interrupt {
    signals: Receiver<()>,
}

impl Interrupt {
    /// Takes the signals over from the system's own handling.
    pub(crate) fn install() -> Result<Self> {
        let mut caught = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .context("the handler of Ctrl-C could not be installed")?;
        let (sender, signals) = channel();
        thread::spawn(move || {
            for _ in caught.forever() {
                eprintln!("interrupted: ending what runs, taking down what was brought up");
                if sender.send(()).is_err() {
                    break; // nobody listens any more: the command is at its end
                }
            }
        });
        Ok(Self { signals })
    }

    /// Waits; an error if a signal comes in meanwhile.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        match self.signals.recv_timeout(time) {
            Ok(()) => Err(Interrupted.into()),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Interrupted).context("signals are no longer heard"),
        }
    }

    /// Runs a program to its end; its input is empty, its output is ours.
    pub(crate) fn run(&self, command: &mut Command) -> Result<ExitStatus> {
        let mut child = spawn(command)?;
        self.wait(&mut child)
    }

    /// The same, and gives what it wrote to standard output, after passing it on if `echo` is set.
    pub(crate) fn read(&self, command: &mut Command, echo: bool) -> Result<(ExitStatus, String)> {
        let mut child = spawn(command.stdout(Stdio::piped()))?;
        let stdout = child.stdout.take().context("the program's output is not piped")?;
        let reader = thread::spawn(move || {
            let mut text = String::new();
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if echo {
                    println!("{line}");
                }
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        let status = self.wait(&mut child)?;
        let text = reader.join().map_err(|_| anyhow::anyhow!("the program's output could not be read"))?;
        Ok((status, text))
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if let Err(interrupted) = self.sleep(LOOK) {
                end(child)?;
                return Err(interrupted);
            }
        }
    }
}

/// A program in a process group of its own, so that a signal reaches it from us alone, once, with all that it started.
fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("`{}` could not be run", command.get_program().display()))
}

/// Tells the program's group to end, then makes it.
fn end(child: &mut Child) -> Result<()> {
    let group = Pid::from_child(child);
    // a group that is gone can't be told: that is what is wanted
    let _ = kill_process_group(group, Signal::TERM);
    let (ended, end) = channel::<()>();
    let patience = thread::spawn(move || {
        if end.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    });
    let waited = child.wait();
    drop(ended);
    let _ = patience.join();
    waited?;
    Ok(())
}

/// The command and its arguments as one would type them.
pub(crate) fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
