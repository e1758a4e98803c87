//! What a message type says of itself: name, version, key, codec. Encoding is `codec`'s, the envelope is `envelope`'s.

use std::borrow::Cow;
use std::num::NonZero;
use std::sync::Arc;

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

/// A field that can be a key: text, a character, bytes, whole numbers (as decimal text), with the feature `uuid` a `Uuid` (as text), and
/// `Option`, `Box`, `Arc` or `Cow` of those.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be the key of a message",
    note = "a key is text, bytes, a whole number, or an `Option`, `Box`, `Arc` or `Cow` of those; `Uuid` is one with the feature `uuid`; implement `ToKey` for a type of your own"
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

impl<const N: usize> ToKey for [u8; N] {
    fn to_key(&self) -> Option<Key<'_>> {
        Some(self.as_slice().into())
    }
}

impl ToKey for char {
    fn to_key(&self) -> Option<Key<'_>> {
        Some(self.to_string().into())
    }
}

/// As text, in lower case and with hyphens.
#[cfg(feature = "uuid")]
impl ToKey for uuid::Uuid {
    fn to_key(&self) -> Option<Key<'_>> {
        let mut digits = [0; DIGITS];
        let length = self.hyphenated().encode_lower(&mut digits).len();
        Some(Key(Repr::Digits(digits, length)))
    }
}

impl<T: ToKey + ToOwned + ?Sized> ToKey for Cow<'_, T> {
    fn to_key(&self) -> Option<Key<'_>> {
        (**self).to_key()
    }
}

macro_rules! pointer_keys {
    ($($pointer:ident)*) => { $(impl<T: ToKey + ?Sized> ToKey for $pointer<T> {
        fn to_key(&self) -> Option<Key<'_>> {
            (**self).to_key()
        }
    })* };
}
pointer_keys!(Box Arc);

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
    }

    impl ToKey for NonZero<$t> {
        fn to_key(&self) -> Option<Key<'_>> {
            Some(Key::of_number(self.get()))
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
        assert_eq!(NonZero::<u64>::MAX.to_key(), Some("18446744073709551615".into()));
        assert_eq!(NonZero::<i8>::MIN.to_key(), Some("-128".into()));
    }

    #[test]
    fn a_key_is_the_same_whatever_holds_it() {
        let (text, bytes): (&str, &[u8]) = ("köy", &[0, 0xff]);
        let of_text = [
            Box::<str>::from(text).to_key().map(|key| key.as_bytes().to_vec()),
            Arc::<str>::from(text).to_key().map(|key| key.as_bytes().to_vec()),
            Cow::Borrowed(text).to_key().map(|key| key.as_bytes().to_vec()),
            Cow::<str>::Owned(text.into()).to_key().map(|key| key.as_bytes().to_vec()),
            Some(Box::new(text.to_owned())).to_key().map(|key| key.as_bytes().to_vec()),
        ];
        assert!(of_text.iter().all(|key| key.as_deref() == Some(text.as_bytes())), "{of_text:?}");
        let of_bytes = [
            [0_u8, 0xff].to_key().map(|key| key.as_bytes().to_vec()),
            Box::<[u8]>::from(bytes).to_key().map(|key| key.as_bytes().to_vec()),
            Cow::Borrowed(bytes).to_key().map(|key| key.as_bytes().to_vec()),
            Arc::new([0_u8, 0xff]).to_key().map(|key| key.as_bytes().to_vec()),
        ];
        assert!(of_bytes.iter().all(|key| key.as_deref() == Some(bytes)), "{of_bytes:?}");
        assert_eq!('ö'.to_key(), Some("ö".into()));
        assert_eq!([0_u8; 0].to_key(), Some("".into()), "an empty key is a key");
        assert_eq!(Arc::new(None::<char>).to_key(), None);
    }

    #[cfg(feature = "uuid")]
    #[test]
    fn a_uuid_is_a_key_as_its_text() {
        let id = uuid::Uuid::from_u128(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF);
        assert_eq!(id.to_key(), Some("01234567-89ab-cdef-0123-456789abcdef".into()));
        assert_eq!(Some(Box::new(id)).to_key(), id.to_key());
    }
}
