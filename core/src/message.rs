//! What a message type says of itself: name, version, key, codec. Encoding is `codec`'s, the envelope is `envelope`'s.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::env::Env;
use crate::envelope::{Envelope, EnvelopeBuilder};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::headers::{Attribute, HeaderValue};
use crate::id::MessageId;

/// A type that can be published and handled. Derive it: `#[derive(Message)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message",
    note = "add `#[derive(Message)]` (with serde's `Serialize` and `Deserialize`) to `{Self}`; anything else that a handler takes must be an extractor (`State`, `Meta`, …)"
)]
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The name on the wire; never taken from a Rust path, so that a type can be moved and renamed.
    const NAME: &'static str;
    /// The version of the contract, from 1.
    const VERSION: u32;
    /// How it becomes bytes.
    type Codec: Codec;

    /// The unit of order: messages with one key are handled one after the other.
    fn key(&self) -> Option<Key<'_>> {
        None
    }

    /// The identity of the business fact, where the message carries one.
    fn idempotency_key(&self) -> Option<Cow<'_, str>> {
        None
    }

    /// Reads a body of `version`. The default takes its own version (and a foreign message's, which names none).
    ///
    /// # Errors
    /// [`DecodeError`], which says why the message goes to the dead letters.
    fn decode(version: u32, body: &[u8]) -> Result<Self, DecodeError> {
        if version != Self::VERSION && version != 0 {
            return Err(DecodeError::UnknownVersion { found: version, expected: Self::VERSION });
        }
        Self::Codec::decode(body).map_err(DecodeError::Undecodable)
    }
}

/// Why a body is not the message that a handler asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes are not such a message.
    Undecodable(BoxError),
    /// The message is of another type.
    UnknownType {
        /// What it says it is.
        found: String,
        /// What the handler takes.
        expected: &'static str,
    },
    /// What the message has for a version is no number up to 4,294,967,295.
    UnreadableVersion {
        /// What it says, cut to 64 characters.
        found: String,
        /// What this program reads.
        expected: u32,
    },
    /// The message is of a version that this program doesn't read.
    UnknownVersion {
        /// What it says it is.
        found: u32,
        /// What this program reads.
        expected: u32,
    },
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // what is wrong is the source: it may quote the body, and messages like this one are logged
            Self::Undecodable(_) => f.write_str("the body can't be decoded"),
            Self::UnknownType { found, expected } => {
                write!(f, "the message is a `{found}`, the handler takes `{expected}`")
            }
            Self::UnreadableVersion { found, expected } => write!(
                f,
                "the message has version `{found}`, which is no number up to 4294967295; this program reads version {expected}"
            ),
            Self::UnknownVersion { found, expected } => {
                write!(f, "the message has version {found}, this program reads version {expected}")
            }
        }
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Undecodable(error) => Some(&**error),
            Self::UnknownType { .. } | Self::UnreadableVersion { .. } | Self::UnknownVersion { .. } => None,
        }
    }
}

/// How much of a version that can't be read is told, in characters.
const MAX_FOUND: usize = 64;

/// Reads a message out of an envelope, checking type and version.
///
/// # Errors
/// [`DecodeError`]; a foreign message that names no type is taken by its body alone.
pub fn decode<T: Message>(envelope: &Envelope) -> Result<T, DecodeError> {
    if !envelope.may_be(T::NAME) {
        return Err(DecodeError::UnknownType { found: envelope.type_name().into(), expected: T::NAME });
    }
    if let Some(found) = envelope.unreadable_version() {
        let found = found.chars().take(MAX_FOUND).collect();
        return Err(DecodeError::UnreadableVersion { found, expected: T::VERSION });
    }
    T::decode(envelope.version(), envelope.payload())
}

/// The bytes of a key, borrowed from the message where possible.
#[derive(Clone)]
pub struct Key<'a>(Repr<'a>);

/// The longest decimal number that has a sign: `i128::MIN`.
const DIGITS: usize = 40;

#[derive(Clone)]
enum Repr<'a> {
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// A number, written out without an allocation.
    Digits([u8; DIGITS], usize),
}

impl Key<'_> {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Text(text) => text.as_bytes(),
            Repr::Bytes(bytes) => bytes,
            Repr::Digits(digits, length) => &digits[..*length],
        }
    }

    fn of_number(number: impl itoa::Integer) -> Self {
        let mut buffer = itoa::Buffer::new();
        let text = buffer.format(number).as_bytes();
        let mut digits = [0; DIGITS];
        digits[..text.len()].copy_from_slice(text);
        Self(Repr::Digits(digits, text.len()))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key<'_> {}

impl std::fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key(\"{}\")", self.as_bytes().escape_ascii())
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(text: &'a str) -> Self {
        Self(Repr::Text(Cow::Borrowed(text)))
    }
}

impl<'a> From<&'a [u8]> for Key<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(Repr::Bytes(Cow::Borrowed(bytes)))
    }
}

impl From<String> for Key<'_> {
    fn from(text: String) -> Self {
        Self(Repr::Text(Cow::Owned(text)))
    }
}

/// A field that can be a key: text, bytes, whole numbers (as decimal text), and `Option` of those.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be the key of a message",
    note = "a key is text, bytes, a whole number, or an `Option` of those; implement `ToKey` for a type of your own"
)]
pub trait ToKey {
    /// The key, if there is one.
    fn to_key(&self) -> Option<Key<'_>>;
}

impl ToKey for str {
    fn to_key(&self) -> Option<Key<'_>> {
        Some(self.into())
    }
}

impl ToKey for String {
    fn to_key(&self) -> Option<Key<'_>> {
        Some(self.as_str().into())
    }
}

impl ToKey for [u8] {
    fn to_key(&self) -> Option<Key<'_>> {
        Some(self.into())
    }
}

impl ToKey for Vec<u8> {
    fn to_key(&self) -> Option<Key<'_>> {
        Some(self.as_slice().into())
    }
}

impl<T: ToKey> ToKey for Option<T> {
    fn to_key(&self) -> Option<Key<'_>> {
        self.as_ref()?.to_key()
    }
}

impl<T: ToKey + ?Sized> ToKey for &T {
    fn to_key(&self) -> Option<Key<'_>> {
        (**self).to_key()
    }
}

macro_rules! number_keys {
    ($($t:ty)*) => { $(impl ToKey for $t {
        fn to_key(&self) -> Option<Key<'_>> {
            Some(Key::of_number(*self))
        }
    })* };
}
number_keys!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

/// What an envelope is made with: the environment, the time, and what caused it.
#[derive(Clone, Debug)]
pub struct EnvelopeContext<'a> {
    /// Clock and ids.
    pub env: &'a Env,
    /// The wall clock, asked once per batch; milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// For an output of a handler: the id derived from its input.
    pub id: Option<MessageId>,
    /// For an output of a handler: its input.
    pub cause: Option<&'a Envelope>,
}

impl<'a> EnvelopeContext<'a> {
    /// A first publish: a fresh id, no cause.
    pub fn first(env: &'a Env, wall_ms: u64) -> Self {
        Self { env, wall_ms, id: None, cause: None }
    }
}

/// What can be published: `&message`, an envelope or its builder around a message or around bytes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be published",
    note = "publish `&message` where the type has `#[derive(Message)]`, or an `Envelope`, or `Envelope::builder(message)…`"
)]
pub trait IntoEnvelope {
    /// The envelope with its encoded body.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] when the message can't be encoded, [`ErrorKind::TooLarge`] or [`ErrorKind::Config`] for a header.
    fn into_envelope(self, cx: &EnvelopeContext<'_>) -> Result<Envelope>;
}

impl<T: Message> IntoEnvelope for &T {
    fn into_envelope(self, cx: &EnvelopeContext<'_>) -> Result<Envelope> {
        let mut builder = EnvelopeBuilder::new(encode(self)?);
        fill(&mut builder, self, cx);
        builder.build_at(cx.env, cx.wall_ms)
    }
}

impl<T: Message> IntoEnvelope for EnvelopeBuilder<T> {
    fn into_envelope(self, cx: &EnvelopeContext<'_>) -> Result<Envelope> {
        let body = encode(self.payload())?;
        let mut message = None;
        let mut builder = self.map(|m| {
            message = Some(m);
            body
        });
        if let Some(message) = message {
            fill(&mut builder, &message, cx);
        }
        builder.build_at(cx.env, cx.wall_ms)
    }
}

impl IntoEnvelope for EnvelopeBuilder {
    fn into_envelope(mut self, cx: &EnvelopeContext<'_>) -> Result<Envelope> {
        caused(&mut self, cx);
        self.build_at(cx.env, cx.wall_ms)
    }
}

impl IntoEnvelope for Envelope {
    fn into_envelope(self, _: &EnvelopeContext<'_>) -> Result<Envelope> {
        Ok(self)
    }
}

impl<T: Message> IntoEnvelope for Envelope<T> {
    fn into_envelope(self, _: &EnvelopeContext<'_>) -> Result<Envelope> {
        let body = encode(self.payload())?;
        Ok(self.map(|_| body))
    }
}

fn encode<T: Message>(message: &T) -> Result<Bytes> {
    T::Codec::encode(message).map_err(|e| {
        Error::new(ErrorKind::Codec, "publish", "the message can't be encoded")
            .with("type", T::NAME)
            .because(e)
    })
}

/// Writes what the type says, after what the builder said: the first one set counts. (In place: a builder is large.)
fn fill<T: Message>(builder: &mut EnvelopeBuilder, message: &T, cx: &EnvelopeContext<'_>) {
    let headers = builder.headers_mut();
    headers.set(Attribute::Type, T::NAME);
    headers.set(Attribute::ContentType, T::Codec::CONTENT_TYPE);
    if let Some(key) = message.key() {
        match &key.0 {
            Repr::Text(text) => headers.set(Attribute::Key, &**text),
            Repr::Bytes(bytes) => headers.set(Attribute::Key, HeaderValue::text_or_bytes(bytes)),
            Repr::Digits(digits, length) => headers.set_digits(Attribute::Key, &digits[..*length]),
        }
    }
    if let Some(key) = message.idempotency_key() {
        headers.set(Attribute::IdempotencyKey, &*key);
    }
    caused(builder, cx);
    builder.set_version(T::VERSION);
}

fn caused(builder: &mut EnvelopeBuilder, cx: &EnvelopeContext<'_>) {
    if let Some(id) = &cx.id {
        builder.id_if_unset(id);
    }
    if let Some(cause) = cx.cause {
        let headers = builder.headers_mut();
        headers.set(Attribute::CausationId, &*cause.id().to_string());
        // a conversation goes on under the id that began it
        match cause.correlation_id() {
            Some(id) => headers.set(Attribute::CorrelationId, id),
            None => headers.set(Attribute::CorrelationId, &*cause.id().to_string()),
        }
        for attribute in [Attribute::TraceParent, Attribute::TraceState] {
            if let Some(value) = cause.headers().attribute(attribute) {
                headers.set(attribute, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_key_as_decimal_text() {
        let key = |key: &dyn ToKey| String::from_utf8(key.to_key().unwrap().as_bytes().to_vec()).unwrap();
        assert_eq!(key(&0_u8), "0");
        assert_eq!(key(&i128::MIN), i128::MIN.to_string());
        assert_eq!(key(&u128::MAX), u128::MAX.to_string());
        assert_eq!(17_u64.to_key(), Some("17".into()));
        assert_ne!(17_u64.to_key(), Some("18".into()));
    }
}
