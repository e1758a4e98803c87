//! What an attempt ended in, and how a function's return value becomes that.

use std::fmt;

use std::time::Duration;

use crate::env::Env;
use crate::envelope::{Envelope, derived_id};
use crate::error::{BoxError, Class, contained};
use crate::id::MessageId;
use crate::message::{DecodeError, EnvelopeContext, IntoEnvelope, Message};

/// Why a message went to the dead letters: the header `postrider-dlq-reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The handler said that trying again can't help.
    Rejected,
    /// Every attempt failed.
    Exhausted,
    /// The body is no such message.
    Undecodable,
    /// A type that this handler doesn't take.
    UnknownType,
    /// A version that this program doesn't read.
    UnknownVersion,
    /// Its time had passed.
    Expired,
    /// Headers or body beyond the bounds.
    Oversize,
    /// It ended the process too often.
    CrashLoop,
    /// Idempotency was asked for, and the message has no identity.
    NoIdentity,
    /// Its handler is done, and what it returned can never be published: too large, not allowed, or not encodable.
    OutputFailed,
}

impl Reason {
    /// The word in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Exhausted => "exhausted",
            Self::Undecodable => "undecodable",
            Self::UnknownType => "unknown-type",
            Self::UnknownVersion => "unknown-version",
            Self::Expired => "expired",
            Self::Oversize => "oversize",
            Self::CrashLoop => "crash-loop",
            Self::NoIdentity => "no-identity",
            Self::OutputFailed => "output-failed",
        }
    }
}

impl Reason {
    const ALL: [Self; 10] = [
        Self::Rejected,
        Self::Exhausted,
        Self::Undecodable,
        Self::UnknownType,
        Self::UnknownVersion,
        Self::Expired,
        Self::Oversize,
        Self::CrashLoop,
        Self::NoIdentity,
        Self::OutputFailed,
    ];

    /// The reason of a word in the header; `None` for a word that this version doesn't know.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one attempt ended in.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It worked; these are to be published and confirmed before the input is acknowledged.
    Done(Vec<Envelope>),
    /// Try again, at the earliest after the advised time.
    Retry(BoxError, Option<Duration>),
    /// To the dead letters at once.
    Reject(Reason, BoxError),
    /// Batches only: one for each message, in order.
    Each(Vec<Outcome>),
}

impl Outcome {
    /// It worked, and publishes nothing.
    pub const fn done() -> Self {
        Self::Done(Vec::new())
    }

    /// The outcome of an error: retried, unless it is marked permanent.
    pub fn failed(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        match Class::of(&*error) {
            Class::Permanent => Self::Reject(Reason::Rejected, error),
            Class::Retry(after) => Self::Retry(error, after),
        }
    }

    /// The same without any code of the user's: an error is its text from here on.
    pub(crate) fn contained(self) -> Self {
        match self {
            Self::Retry(error, after) => Self::Retry(contained(error), after),
            Self::Reject(reason, error) => Self::Reject(reason, contained(error)),
            Self::Each(each) => Self::Each(each.into_iter().map(Self::contained).collect()),
            done @ Self::Done(_) => done,
        }
    }

    /// Whether it worked; a batch did when all of it did.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Done(_) => true,
            Self::Each(each) => each.iter().all(Self::is_done),
            Self::Retry(..) | Self::Reject(..) => false,
        }
    }
}

impl From<DecodeError> for Outcome {
    fn from(error: DecodeError) -> Self {
        let reason = match &error {
            DecodeError::Undecodable(_) => Reason::Undecodable,
            DecodeError::UnknownType { .. } => Reason::UnknownType,
            DecodeError::UnreadableVersion { .. } | DecodeError::UnknownVersion { .. } => {
                Reason::UnknownVersion
            }
        };
        Self::Reject(reason, error.into())
    }
}

/// What outputs are made with: the environment, the input that caused them, and who made them.
#[derive(Debug)]
pub struct OutputContext<'a> {
    env: &'a Env,
    wall_ms: u64,
    cause: &'a Envelope,
    /// The items of a batch that were handed to the function; empty for a single message.
    items: Vec<&'a Envelope>,
    group: &'a str,
    handler: &'a str,
}

impl<'a> OutputContext<'a> {
    pub(crate) fn new(env: &'a Env, cause: &'a Envelope, group: &'a str, handler: &'a str) -> Self {
        Self { env, wall_ms: 0, cause, items: Vec::new(), group, handler }
    }

    pub(crate) fn with_items(mut self, items: Vec<&'a Envelope>) -> Self {
        self.items = items;
        self
    }

    /// For the output of one item of a batch.
    fn of_item(&self, index: usize) -> OutputContext<'a> {
        let cause = self.items.get(index).copied().unwrap_or(self.cause);
        OutputContext {
            env: self.env,
            wall_ms: self.wall_ms,
            cause,
            items: Vec::new(),
            group: self.group,
            handler: self.handler,
        }
    }

    /// The envelope of output number `index`: its id follows from the input's, so that a re-run publishes the same again.
    pub(crate) fn envelope(
        &self,
        output: impl IntoEnvelope,
        stream: &str,
        index: u64,
    ) -> crate::Result<Envelope> {
        output.into_envelope(&EnvelopeContext {
            env: self.env,
            wall_ms: if self.wall_ms == 0 { self.env.wall_ms() } else { self.wall_ms },
            id: Some(output_id(self.cause, self.group, self.handler, stream, index)),
            cause: Some(self.cause),
        })
    }
}

/// The id of an output: derived from the input's identity and from who made it.
pub(crate) fn output_id(cause: &Envelope, group: &str, handler: &str, stream: &str, index: u64) -> MessageId {
    let id = cause.id().to_string();
    derived_id(&[
        cause.source().as_bytes(),
        id.as_bytes(),
        group.as_bytes(),
        handler.as_bytes(),
        stream.as_bytes(),
        &index.to_le_bytes(),
    ])
}

/// What a handler may return.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be returned by a handler",
    note = "return `()`, a message, `Option`/`Vec` of messages, `Result` of those, or `Vec<Result<_, _>>` from a batch handler",
    note = "the error of a `Result` must be `Into<Box<dyn Error + Send + Sync>>`: any `Error`, `HandlerError`, `anyhow::Error`, `String`"
)]
pub trait IntoOutcome {
    /// Whether it publishes, so that a route without `publishes` is refused at start-up.
    const PUBLISHES: bool;
    /// The outcome.
    fn into_outcome(self, cx: &OutputContext<'_>) -> Outcome;
}

/// What a handler may return to be published: nothing, a message, or several.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be returned by a handler",
    note = "return `()`, a message (`#[derive(Message)]`), or `Option`/`Vec` of messages, each alone or in a `Result`"
)]
pub trait IntoOutputs {
    /// Whether it publishes at all.
    const PUBLISHES: bool = true;
    /// Appends the envelopes.
    ///
    /// # Errors
    /// A message that can't be encoded.
    fn outputs(self, cx: &OutputContext<'_>, into: &mut Vec<Envelope>) -> crate::Result<()>;
}

impl IntoOutputs for () {
    const PUBLISHES: bool = false;

    fn outputs(self, _: &OutputContext<'_>, _: &mut Vec<Envelope>) -> crate::Result<()> {
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl<T: Message> IntoOutputs for T {
    fn outputs(self, cx: &OutputContext<'_>, into: &mut Vec<Envelope>) -> crate::Result<()> {
        let envelope = cx.envelope(&self, "returned", into.len() as u64)?;
        into.push(envelope);
        Ok(())
    }
}

impl<T: Message> IntoOutputs for Option<T> {
    fn outputs(self, cx: &OutputContext<'_>, into: &mut Vec<Envelope>) -> crate::Result<()> {
        self.into_iter().try_for_each(|message| message.outputs(cx, into))
    }
}

impl<T: Message> IntoOutputs for Vec<T> {
    fn outputs(self, cx: &OutputContext<'_>, into: &mut Vec<Envelope>) -> crate::Result<()> {
        self.into_iter().try_for_each(|message| message.outputs(cx, into))
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoOutputs> IntoOutcome for T {
    const PUBLISHES: bool = T::PUBLISHES;

    fn into_outcome(self, cx: &OutputContext<'_>) -> Outcome {
        let mut envelopes = Vec::new();
        match self.outputs(cx, &mut envelopes) {
            Ok(()) => Outcome::Done(envelopes),
            // the same value would fail the same way again
            Err(error) => Outcome::Reject(Reason::OutputFailed, error.into()),
        }
    }
}

impl<T: IntoOutputs, E: Into<BoxError>> IntoOutcome for Result<T, E> {
    const PUBLISHES: bool = T::PUBLISHES;

    fn into_outcome(self, cx: &OutputContext<'_>) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(cx),
            Err(error) => Outcome::failed(error),
        }
    }
}

impl<T: IntoOutputs, E: Into<BoxError>> IntoOutcome for Vec<Result<T, E>> {
    const PUBLISHES: bool = T::PUBLISHES;

    fn into_outcome(self, cx: &OutputContext<'_>) -> Outcome {
        let each = self.into_iter().enumerate().map(|(i, result)| result.into_outcome(&cx.of_item(i)));
        Outcome::Each(each.collect())
    }
}
