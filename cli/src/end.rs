//! How a command ends, and which exit code says so.

use std::io;

use postrider::{Error, ErrorKind};

/// How a command ended that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All is done.
    Done,
    /// It failed, or some of it; what was said already.
    Failed,
    /// The arguments are wrong.
    Usage,
    /// Ctrl-C came before it was done.
    Interrupted,
}

impl End {
    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Interrupted => 130,
        }
    }

    /// All is done, or not all.
    pub(crate) fn of(all: bool) -> Self {
        if all { Self::Done } else { Self::Failed }
    }
}

/// Why a command couldn't do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// As the library says it, with what to do next where that isn't in it.
    Error(Error, Option<&'static str>),
    /// Reading or writing here.
    Io(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let next = match error.kind() {
            ErrorKind::NotFound => Some(
                "`postrider channels` lists what is there; no command declares a channel, routers and `broker.declare(…)` do",
            ),
            _ => None,
        };
        Self::Error(error, next)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    /// Says it on standard error.
    pub(crate) fn tell(&self) -> End {
        match self {
            // whoever read our output has read enough
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => End::Done,
            Self::Io(error) => {
                eprintln!("error: {error}");
                End::Failed
            }
            Self::Error(error, next) => {
                eprintln!("error: {error:?}");
                if let Some(next) = next {
                    eprintln!("  next: {next}");
                }
                if error.kind() == ErrorKind::Config { End::Usage } else { End::Failed }
            }
        }
    }
}
