//! What goes wrong, in two types: [`Error`] at a crate's boundary, and [`HandlerError`] for what a handler returns.
//!
//! How an error is *treated* (retry, dead letter) is decided in `policy`; here is only what it says.

mod text;

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

pub(crate) use text::{chain, contained, text_of};

/// How many errors of a chain are looked at, the first included: a `source` may lead back to where it came from.
pub(crate) const MAX_CHAIN: usize = 32;

/// Any error that a handler, a codec or a client library may hand over.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The result of everything that talks to a broker.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is; programs match on this, people read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, URL, name or header is wrong; nothing was sent.
    Config,
    /// The broker can't do what was asked; found before any I/O.
    Unsupported,
    /// No connection could be made, or it was lost.
    Connection,
    /// The broker refused the credentials or the permission.
    Unauthorized,
    /// A deadline passed.
    Timeout,
    /// The channel, stream, queue or consumer isn't there.
    NotFound,
    /// The topology at the broker differs from what was declared.
    Mismatch,
    /// A message or header is larger than its bound.
    TooLarge,
    /// A message could not be encoded or decoded.
    Codec,
    /// The publisher, subscription or service is closed.
    Closed,
    /// The broker answered with an error of its own.
    Broker,
}

impl ErrorKind {
    /// The kind in words, as it stands in messages and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "configuration",
            Self::Unsupported => "unsupported",
            Self::Connection => "connection",
            Self::Unauthorized => "unauthorized",
            Self::Timeout => "timeout",
            Self::NotFound => "not found",
            Self::Mismatch => "mismatch",
            Self::TooLarge => "too large",
            Self::Codec => "codec",
            Self::Closed => "closed",
            Self::Broker => "broker",
        }
    }
}

/// An error with its kind, the operation it ended, what it was about, and its source.
///
/// It is one pointer wide, so that results stay small on the hot path.
///
/// ```
/// use postrider_core::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::NotFound, "publish", "no stream takes the subject").with("channel", "orders");
/// assert_eq!(error.to_string(), "publish: no stream takes the subject (channel: orders)");
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// assert!(!error.is_temporary());
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    temporary: bool,
    source: Option<BoxError>,
}

impl Error {
    /// An error of `kind` that ended `operation`. The message says what was expected and what to do next.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        let temporary = matches!(kind, ErrorKind::Connection | ErrorKind::Timeout);
        let (message, context) = (message.into(), Vec::new());
        Self(Box::new(Inner { kind, operation, message, context, temporary, source: None }))
    }

    /// A mistake in a setting, URL, name or header.
    pub fn config(operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, operation, message)
    }

    /// Adds a fact: what the operation was about. Never a secret.
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((name, value.to_string()));
        self
    }

    /// Adds the error underneath.
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says whether the same operation may succeed later. By default that is so for `Connection` and `Timeout`.
    pub fn temporary(mut self, temporary: bool) -> Self {
        self.0.temporary = temporary;
        self
    }

    /// The same with sources that are text: nothing in it is the user's code.
    pub(crate) fn contained(mut self) -> Self {
        self.0.source = self.0.source.take().map(contained);
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Which operation it ended: `connect`, `publish`, `subscribe` and so on.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Whether the same operation may succeed later without a change.
    pub fn is_temporary(&self) -> bool {
        self.0.temporary
    }

    /// The facts added by [`with`](Self::with), in order.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(name, value)| (*name, &**value))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.message)?;
        for (i, (name, value)) in self.0.context.iter().enumerate() {
            let open = if i == 0 { " (" } else { ", " };
            write!(f, "{open}{name}: {value}")?;
        }
        if self.0.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// `main` prints the `Debug` form of what it returns, so that it reads like the message, with its sources below.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        // the sources may be the user's
        for source in chain(self).skip(1) {
            write!(f, "\n  because: {}", text_of(source))?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// How the runner treats an error that a handler returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// Try again, at the earliest after the advised time.
    Retry(Option<Duration>),
    /// Trying again can't help: to the dead letters at once.
    Permanent,
}

impl Class {
    /// The class that was marked in the error or in one of its sources; `Retry(None)` if none was. At most 32 errors of a chain are
    /// looked at.
    pub fn of(error: &(dyn StdError + 'static)) -> Self {
        let mark = chain(error).find_map(|error| error.downcast_ref::<Mark>());
        mark.map_or(Self::Retry(None), |Mark(class, _)| *class)
    }
}

/// What a handler may return when it wants `?` to take any error.
///
/// Like `anyhow::Error` it is not itself an [`std::error::Error`]. See [`Classify`] for how to mark an error.
pub struct HandlerError(BoxError);

impl HandlerError {
    /// From a message alone: `return Err(HandlerError::msg("declined"))`.
    pub fn msg(message: impl Into<String>) -> Self {
        Self(message.into().into())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<HandlerError> for BoxError {
    fn from(error: HandlerError) -> Self {
        error.0
    }
}

/// Marks the error of a result as permanent, or with a time to wait. The mark survives `anyhow`'s and `thiserror`'s wrapping.
///
/// ```
/// use postrider_core::{Class, Classify, HandlerError};
/// fn charge(cents: u64) -> Result<(), HandlerError> {
///     if cents == 0 { Err("nothing to charge").permanent()? }
///     Ok(())
/// }
/// let error: postrider_core::BoxError = charge(0).unwrap_err().into();
/// assert_eq!(Class::of(&*error), Class::Permanent);
/// ```
pub trait Classify<T> {
    /// Trying again can't help: the message goes to the dead letters at once.
    fn permanent(self) -> Result<T, HandlerError>;
    /// Try again, but not before `after` has passed.
    fn retry_after(self, after: Duration) -> Result<T, HandlerError>;
}

impl<T, E: Into<BoxError>> Classify<T> for Result<T, E> {
    fn permanent(self) -> Result<T, HandlerError> {
        self.map_err(|e| mark(Class::Permanent, e.into()))
    }

    fn retry_after(self, after: Duration) -> Result<T, HandlerError> {
        self.map_err(|e| mark(Class::Retry(Some(after)), e.into()))
    }
}

fn mark(class: Class, error: BoxError) -> HandlerError {
    HandlerError(Box::new(Classified(Mark(class, error))))
}

/// The error under the mark that was put on it last, if it has one.
pub(crate) fn unmarked<'a>(
    error: &'a (dyn StdError + Send + Sync + 'static),
) -> &'a (dyn StdError + 'static) {
    let mut error = error;
    for _ in 0..MAX_CHAIN {
        match error.downcast_ref::<Classified>() {
            Some(Classified(Mark(_, inner))) => error = &**inner,
            None => break,
        }
    }
    error
}

/// Reads like the error it wraps; its `source()` is the [`Mark`], a node of its own, because `anyhow` hides the
/// outermost type from `downcast_ref` but keeps the chain below it.
#[derive(Debug)]
struct Classified(Mark);

struct Mark(Class, BoxError);

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.1, f)
    }
}

impl fmt::Display for Classified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.1, f)
    }
}

impl StdError for Classified {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Class::Permanent => f.write_str("marked permanent"),
            Class::Retry(Some(after)) => write!(f, "marked to be retried after {after:?}"),
            Class::Retry(None) => f.write_str("marked to be retried"),
        }
    }
}

impl StdError for Mark {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.1.source()
    }
}
