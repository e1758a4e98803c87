//! A message with all that is said about it. How it looks on a broker is the adapter's; how it is encoded is `codec`'s.

use std::fmt;

use bytes::Bytes;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::headers::{Attribute, HeaderValue, Headers, HeadersMut};
use crate::id::MessageId;

mod structured;
mod wire;

pub use wire::{WireReader, derived_id};

/// A message and its attributes: who, when, what, for which key, plus the user's headers. A clone is two reference counts.
///
/// Attributes are those of [`CloudEvents` 1.0]; see the wire format in the documentation for the extensions.
///
/// [`CloudEvents` 1.0]: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope<T = Bytes> {
    id: MessageId,
    time_ms: u64,
    version: u32,
    null: bool,
    breach: bool,
    made_up: bool,
    headers: Headers,
    payload: T,
}

impl<T> Envelope<T> {
    /// Starts an envelope around a payload: `Bytes`, or a message type.
    pub fn builder(payload: T) -> EnvelopeBuilder<T> {
        EnvelopeBuilder::new(payload)
    }

    /// The id; unique together with [`source`](Self::source).
    pub fn id(&self) -> &MessageId {
        &self.id
    }

    /// When it happened, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The version of the message type; 0 when a foreign message names none, or one that is [no number](Self::unreadable_version).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The version of the message type as it came off the wire, where that is no number up to 4,294,967,295.
    pub fn unreadable_version(&self) -> Option<&str> {
        if self.version > 0 { None } else { self.text(Attribute::SchemaVersion) }
    }

    /// The name of the message type; empty when a foreign message names none.
    pub fn type_name(&self) -> &str {
        self.text(Attribute::Type).unwrap_or_default()
    }

    /// Whether it is of this type, or names none.
    pub(crate) fn may_be(&self, name: &str) -> bool {
        let found = self.headers.attribute_bytes(Attribute::Type).unwrap_or_default();
        found == name.as_bytes() || found.is_empty()
    }

    /// Who published it; empty when a foreign message doesn't say.
    pub fn source(&self) -> &str {
        self.text(Attribute::Source).unwrap_or_default()
    }

    /// The key: the unit of order. An empty key is a key.
    pub fn key(&self) -> Option<&[u8]> {
        self.headers.attribute_bytes(Attribute::Key)
    }

    /// The media type of the body.
    pub fn content_type(&self) -> Option<&str> {
        self.text(Attribute::ContentType)
    }

    /// What it is about, within the source.
    pub fn subject(&self) -> Option<&str> {
        self.text(Attribute::Subject)
    }

    /// The publisher's own identity of the business fact.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.text(Attribute::IdempotencyKey)
    }

    /// What belongs to one conversation.
    pub fn correlation_id(&self) -> Option<&str> {
        self.text(Attribute::CorrelationId)
    }

    /// The id of the message that caused this one.
    pub fn causation_id(&self) -> Option<&str> {
        self.text(Attribute::CausationId)
    }

    /// Where an answer goes.
    pub fn reply_to(&self) -> Option<&str> {
        self.text(Attribute::ReplyTo)
    }

    /// After this time the message is of no use; milliseconds since the Unix epoch.
    pub fn expires_ms(&self) -> Option<u64> {
        self.headers.attribute(Attribute::ExpiryTime)?.as_int().map(|ms| ms.max(0) as u64)
    }

    /// The user's headers, and every attribute by [`Headers::attribute`].
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Whether the body is null (a tombstone), which is not the same as empty.
    pub fn is_null(&self) -> bool {
        self.null
    }

    /// Whether it came off the wire with headers beyond the bounds; the runner dead-letters it as `oversize`.
    pub fn breaks_bounds(&self) -> bool {
        self.breach
    }

    /// Whether its id was made up for this delivery alone, because it brought none and the broker has no name for it that lasts.
    pub fn id_is_made_up(&self) -> bool {
        self.made_up
    }

    /// The body or message.
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// The body or message, by value.
    pub fn into_payload(self) -> T {
        self.payload
    }

    /// The same envelope around another payload.
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Envelope<U> {
        let Self { id, time_ms, version, null, breach, made_up, headers, payload } = self;
        Envelope { id, time_ms, version, null, breach, made_up, headers, payload: with(payload) }
    }

    /// The same envelope with other headers: how dead letters and redriven copies are made.
    pub fn with_headers(self, headers: Headers) -> Self {
        Self { headers, ..self }
    }

    /// The same envelope around another body, which is never null.
    pub(crate) fn with_body(self, body: T) -> Self {
        Self { payload: body, null: false, ..self }
    }

    /// The same envelope under another id.
    pub(crate) fn with_id(self, id: MessageId) -> Self {
        Self { id, ..self }
    }

    fn text(&self, attribute: Attribute) -> Option<&str> {
        self.headers.attribute(attribute)?.as_text()
    }
}

impl Envelope {
    /// How much memory it accounts for: body and headers, in bytes. Windows and bounds count this.
    pub fn byte_len(&self) -> usize {
        self.payload.len() + self.headers.byte_len()
    }
}

/// Without the body: it may be large, and it may be secret.
impl<T> fmt::Debug for Envelope<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("id", &self.id)
            .field("type", &self.type_name())
            .field("version", &self.version)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// An envelope in the making. What isn't set comes from the [`Env`] (id, time, source) or stays absent.
///
/// The by-value methods read well in a program; the hot path uses [`headers_mut`](Self::headers_mut).
///
/// ```
/// use postrider_core::{Env, Envelope, Bytes};
/// let envelope = Envelope::builder(Bytes::from_static(b"{}"))
///     .type_name("order.placed").version(1).key("o-1").header("tenant", "acme")
///     .build(&Env::system())?;
/// assert_eq!(envelope.key(), Some(&b"o-1"[..]));
/// # Ok::<(), postrider_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "an envelope is made by `build`, or by publishing the builder"]
pub struct EnvelopeBuilder<T = Bytes> {
    id: Option<MessageId>,
    time_ms: Option<u64>,
    version: u32,
    null: bool,
    headers: HeadersMut,
    payload: T,
    error: Option<Error>,
}

impl<T> EnvelopeBuilder<T> {
    pub(crate) fn new(payload: T) -> Self {
        Self {
            id: None,
            time_ms: None,
            version: 0,
            null: false,
            headers: HeadersMut::new(),
            payload,
            error: None,
        }
    }

    /// The id; a fresh UUID if not set.
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// When it happened, in milliseconds since the Unix epoch; now if not set.
    pub fn time_ms(mut self, time_ms: u64) -> Self {
        self.time_ms = Some(time_ms);
        self
    }

    /// The version of the message type.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The name of the message type.
    pub fn type_name(self, name: &str) -> Self {
        self.attribute(Attribute::Type, name)
    }

    /// The unit of order.
    pub fn key(self, key: impl AsRef<[u8]>) -> Self {
        self.attribute(Attribute::Key, HeaderValue::text_or_bytes(key.as_ref()))
    }

    /// The publisher's own identity of the business fact.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.attribute(Attribute::IdempotencyKey, key)
    }

    /// What belongs to one conversation.
    pub fn correlation_id(self, id: &str) -> Self {
        self.attribute(Attribute::CorrelationId, id)
    }

    /// After this time (milliseconds since the Unix epoch) the message is of no use.
    pub fn expires_ms(self, at: u64) -> Self {
        self.attribute(Attribute::ExpiryTime, HeaderValue::Time(i64::try_from(at).unwrap_or(i64::MAX)))
    }

    /// Any attribute. A text attribute may not contain control characters.
    pub fn attribute<'a>(mut self, attribute: Attribute, value: impl Into<HeaderValue<'a>>) -> Self {
        let value = value.into();
        if attribute == Attribute::SchemaVersion
            && let Some(version) = value.as_text().and_then(|text| text.parse().ok())
        {
            return self.version(version);
        }
        if attribute != Attribute::Key
            && value.as_text().is_some_and(|text| text.chars().any(char::is_control))
        {
            let why = "an attribute can't contain control characters";
            self.error
                .get_or_insert(Error::config("set attribute", why).with("attribute", attribute.as_str()));
        } else {
            self.headers.set(attribute, value);
        }
        self
    }

    /// A user header; the first one beyond a bound is the error of `build`.
    pub fn header<'a>(mut self, name: &str, value: impl Into<HeaderValue<'a>>) -> Self {
        if let Err(error) = self.headers.insert(name, value) {
            self.error.get_or_insert(error);
        }
        self
    }

    /// [`version`](Self::version) in place: what is being made is large, to move it is a copy.
    pub(crate) fn set_version(&mut self, version: u32) {
        self.version = version;
    }

    /// The headers in the making, for the hot path and for adapters.
    pub fn headers_mut(&mut self) -> &mut HeadersMut {
        &mut self.headers
    }

    /// The payload, to be read before it is published.
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// Around another payload.
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> EnvelopeBuilder<U> {
        let Self { id, time_ms, version, null, headers, payload, error } = self;
        EnvelopeBuilder { id, time_ms, version, null, headers, payload: with(payload), error }
    }

    /// The finished envelope.
    ///
    /// # Errors
    /// The first header or attribute that was refused.
    pub fn build(self, env: &Env) -> Result<Envelope<T>> {
        let now = if self.time_ms.is_none() || self.id.is_none() { env.wall_ms() } else { 0 };
        self.build_at(env, now)
    }

    pub(crate) fn id_if_unset(&mut self, id: &MessageId) {
        self.id.get_or_insert_with(|| id.clone());
    }

    pub(crate) fn build_at(mut self, env: &Env, now_ms: u64) -> Result<Envelope<T>> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.headers.set(Attribute::Source, &**env.origin());
        Ok(Envelope {
            id: self.id.unwrap_or_else(|| env.new_id(now_ms)),
            time_ms: self.time_ms.unwrap_or(now_ms),
            version: self.version,
            null: self.null,
            breach: self.headers.breach(),
            made_up: false,
            headers: self.headers.freeze(),
            payload: self.payload,
        })
    }
}

impl EnvelopeBuilder {
    /// An envelope without a body: a tombstone, which says that its key is gone. Not the same as an empty body.
    pub fn null() -> Self {
        Self { null: true, ..Self::new(Bytes::new()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_small_and_its_attributes_come_back() {
        assert!(size_of::<Envelope>() <= 104, "{}", size_of::<Envelope>());
        let env = Env::seeded(1);
        let e = Envelope::builder(Bytes::new())
            .type_name("t")
            .version(3)
            .key([0xff])
            .correlation_id("c")
            .build(&env)
            .unwrap();
        assert_eq!(
            (e.type_name(), e.version(), e.key(), e.correlation_id()),
            ("t", 3, Some(&[0xff][..]), Some("c"))
        );
        assert_eq!(e.source(), "/postrider");
        assert!(!e.is_null());
        assert!(EnvelopeBuilder::null().build(&env).unwrap().is_null());
    }

    #[test]
    fn the_first_bad_header_is_the_error_of_build() {
        let error = Envelope::builder(Bytes::new())
            .header("ce-id", "1")
            .header("", "2")
            .build(&Env::seeded(1))
            .unwrap_err();
        assert!(error.to_string().contains("ce-id"), "{error}");
    }

    #[test]
    fn a_source_that_is_set_wins_over_the_environments() {
        let e = Envelope::builder(Bytes::new())
            .attribute(Attribute::Source, "/shop")
            .build(&Env::seeded(1))
            .unwrap();
        assert_eq!(e.source(), "/shop");
    }
}
