//! Headers and attributes of a message, in one arena. Which names a broker uses on the wire is the adapter's.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// At most this many user headers a message.
pub const MAX_HEADERS: usize = 64;
/// The longest name of a user header, in bytes.
pub const MAX_HEADER_NAME: usize = 128;
/// The longest value of a user header, in bytes.
pub const MAX_HEADER_VALUE: usize = 8 * 1024;
/// All user headers of a message together, names and values, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The value of a header. Text and bytes are what most brokers have; the others are carried where the broker has them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue<'a> {
    /// UTF-8 text.
    Text(&'a str),
    /// Any bytes.
    Bytes(&'a [u8]),
    /// A whole number.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// Milliseconds since the Unix epoch.
    Time(i64),
    /// A name without a value.
    Null,
    /// A value of a type that only one broker has, in that broker's own encoding, carried along as it came.
    Native(u8, &'a [u8]),
}

impl<'a> HeaderValue<'a> {
    /// The text, if it is text (or bytes that are valid UTF-8).
    pub fn as_text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The bytes, if it is bytes or text.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Text(text) => Some(text.as_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The number, if it is one, or text that reads as one.
    pub fn as_int(self) -> Option<i64> {
        match self {
            Self::Int(n) | Self::Time(n) => Some(n),
            other => other.as_text()?.parse().ok(),
        }
    }

    const fn kind(self) -> u8 {
        match self {
            Self::Text(_) => 0,
            Self::Bytes(_) => 1,
            Self::Int(_) => 2,
            Self::Bool(_) => 3,
            Self::Time(_) => 4,
            Self::Null => 5,
            Self::Native(..) => 6,
        }
    }

    fn read(kind: u8, value: &'a [u8]) -> Self {
        let number = || value.try_into().map_or(0, i64::from_le_bytes);
        match (kind, value) {
            // what was written as text was `str`, so the check can't fail and costs less than the search
            (0, _) => Self::Text(std::str::from_utf8(value).unwrap_or_default()),
            (2, _) => Self::Int(number()),
            (3, [b]) => Self::Bool(*b == 1),
            (4, _) => Self::Time(number()),
            (5, _) => Self::Null,
            (6, [tag, rest @ ..]) => Self::Native(*tag, rest),
            _ => Self::Bytes(value),
        }
    }
}

/// As it is written out: text as it is, bytes in lower-case hex, times as RFC 3339.
impl fmt::Display for HeaderValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bytes(bytes) | Self::Native(_, bytes) => {
                bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            Self::Int(n) => n.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::Time(ms) => f.write_str(&crate::time::rfc3339(*ms)),
            Self::Null => f.write_str("null"),
        }
    }
}

impl<'a> From<&'a str> for HeaderValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for HeaderValue<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for HeaderValue<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<i64> for HeaderValue<'_> {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for HeaderValue<'_> {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

macro_rules! attributes {
    ($($(#[doc = $doc:expr])+ $name:ident = $number:literal $text:literal,)+) => {
        /// A `CloudEvents` attribute or extension that lives in the arena. (`id`, `time` and `schemaversion` are fields
        /// of the envelope; `specversion` is always 1.0.)
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Attribute { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Attribute {
            /// Every attribute, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The `CloudEvents` name, without a broker's prefix.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The attribute of a `CloudEvents` name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$name),)+ _ => None }
            }

            fn from_arena(name: &[u8]) -> Option<Self> {
                match name { $([$number] => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

attributes! {
    /// What kind of message it is.
    Type = 1 "type",
    /// Who published it.
    Source = 2 "source",
    /// What it is about, within the source.
    Subject = 3 "subject",
    /// The media type of the body.
    ContentType = 4 "datacontenttype",
    /// Where the schema of the body stands.
    DataSchema = 5 "dataschema",
    /// The unit of order, any bytes.
    Key = 6 "partitionkey",
    /// The publisher's own identity of the business fact.
    IdempotencyKey = 7 "idempotencykey",
    /// What belongs to one conversation.
    CorrelationId = 8 "correlationid",
    /// The id of the message that caused this one.
    CausationId = 9 "causationid",
    /// The publisher's own sequence.
    Sequence = 11 "sequence",
    /// After this time the message is of no use; milliseconds since the Unix epoch.
    ExpiryTime = 12 "expirytime",
    /// Where an answer goes.
    ReplyTo = 14 "replyto",
    /// W3C trace context.
    TraceParent = 15 "traceparent",
    /// W3C trace state.
    TraceState = 16 "tracestate",
}

/// Prefixes of names that only the library sets; a user header that begins with one is refused.
pub const RESERVED_PREFIXES: [&str; 6] =
    ["ce_", "ce-", "cloudevents:", "cloudevents_", "postrider-", "nats-"];

impl Attribute {
    /// Its bit among [`Contents`].
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// User headers and attributes, ordered and repeatable. A clone is one reference count; empty is nothing.
///
/// One arena holds all: `[contents u32]`, then `[kind u8][name length u16][value length u32][name][value]…`. An attribute's name is its
/// number. The contents tell without a search what isn't there, which is what is asked for most.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<Arc<[u8]>>);

/// What an arena holds: bit 0 for user headers, and one for each attribute.
type Contents = u32;
const USER: Contents = 1;
const CONTENTS: usize = size_of::<Contents>();

impl Headers {
    /// The user headers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, HeaderValue<'_>)> {
        entries(self.arena()).filter(|(name, ..)| !is_attribute(name)).map(|(name, kind, value)| {
            (std::str::from_utf8(name).unwrap_or_default(), HeaderValue::read(kind, value))
        })
    }

    /// The first user header of that name.
    pub fn get(&self, name: &str) -> Option<HeaderValue<'_>> {
        self.find(USER, name.as_bytes())
    }

    /// All user headers of that name.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = HeaderValue<'a>> {
        self.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value)
    }

    /// How many user headers there are.
    pub fn len(&self) -> usize {
        entries(self.arena()).filter(|(name, ..)| !is_attribute(name)).count()
    }

    /// Whether there are no user headers.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The attribute's value, if it is set.
    pub fn attribute(&self, attribute: Attribute) -> Option<HeaderValue<'_>> {
        self.find(attribute.bit(), &[attribute as u8])
    }

    /// All attributes that are set, in the order in which they were set.
    pub fn attributes(&self) -> impl Iterator<Item = (Attribute, HeaderValue<'_>)> {
        entries(self.arena()).filter_map(|(name, kind, value)| {
            Some((Attribute::from_arena(name)?, HeaderValue::read(kind, value)))
        })
    }

    /// How many bytes names and values take, attributes included.
    pub fn byte_len(&self) -> usize {
        self.arena().len()
    }

    fn arena(&self) -> &[u8] {
        self.0.as_deref().and_then(|arena| arena.get(CONTENTS..)).unwrap_or_default()
    }

    fn contents(&self) -> Contents {
        let contents = self.0.as_deref().and_then(|arena| arena.first_chunk());
        contents.map_or(0, |contents| Contents::from_le_bytes(*contents))
    }

    fn find(&self, bit: Contents, name: &[u8]) -> Option<HeaderValue<'_>> {
        if self.contents() & bit == 0 {
            return None;
        }
        entries(self.arena())
            .find(|(n, ..)| *n == name)
            .map(|(_, kind, value)| HeaderValue::read(kind, value))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

const fn is_attribute(name: &[u8]) -> bool {
    matches!(name, [b, ..] if *b < 0x20)
}

fn entries(arena: &[u8]) -> impl Iterator<Item = (&[u8], u8, &[u8])> {
    let mut rest = arena;
    std::iter::from_fn(move || {
        let [kind, n0, n1, v0, v1, v2, v3, tail @ ..] = rest else {
            return None;
        };
        let (name, tail) = tail.split_at_checked(u16::from_le_bytes([*n0, *n1]) as usize)?;
        let (value, tail) = tail.split_at_checked(u32::from_le_bytes([*v0, *v1, *v2, *v3]) as usize)?;
        rest = tail;
        Some((name, *kind, value))
    })
}

/// Headers being written, on the stack as long as they are small. The hot path writes through `&mut`.
#[derive(Clone, Default)]
pub struct HeadersMut {
    arena: Arena,
    contents: Contents,
    count: usize,
    bytes: usize,
    /// Headers of the library's own that came off the wire.
    own: usize,
    breach: bool,
}

/// What the library's own headers may be at most when they come off the wire: beside the user's, and bounded by themselves.
const MAX_OWN: usize = 32;
const MAX_OWN_VALUE: usize = 2 * 1024;
const OWN_PREFIX: &str = "postrider-";

/// Kind, length of the name, length of the value.
const HEAD: usize = 7;

/// Bytes being written, on the stack as long as they are few. What is written is never moved within, so a write is a copy and no more.
#[derive(Clone)]
struct Arena {
    few: [u8; Self::FEW],
    length: usize,
    /// All of them, once they are more than that.
    many: Vec<u8>,
}

impl Arena {
    const FEW: usize = 256;

    /// The next `count` bytes, to be written.
    fn grow(&mut self, count: usize) -> &mut [u8] {
        let from = self.length;
        self.length += count;
        if self.length <= Self::FEW {
            return &mut self.few[from..self.length];
        }
        if self.many.is_empty() {
            self.many.extend_from_slice(&self.few[..from]);
        }
        self.many.resize(self.length, 0);
        &mut self.many[from..]
    }

    fn written(&self) -> &[u8] {
        if self.length <= Self::FEW { &self.few[..self.length] } else { &self.many }
    }
}

impl Default for Arena {
    /// With room for the contents.
    fn default() -> Self {
        Self { few: [0; Self::FEW], length: CONTENTS, many: Vec::new() }
    }
}

impl HeadersMut {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What `headers` holds, to be added to.
    pub fn from_headers(headers: &Headers) -> Self {
        let mut this = Self { contents: headers.contents(), ..Self::default() };
        this.arena.grow(headers.arena().len()).copy_from_slice(headers.arena());
        (this.count, this.bytes) = headers.iter().fold((0, 0), |(n, bytes), (name, value)| {
            (n + 1, bytes + name.len() + value.as_bytes().map_or(8, <[u8]>::len))
        });
        this
    }

    /// Adds a user header, within the bounds.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a reserved name or one with CR, LF, NUL or another control character;
    /// [`ErrorKind::TooLarge`] beyond [`MAX_HEADERS`], [`MAX_HEADER_NAME`], [`MAX_HEADER_VALUE`] or [`MAX_HEADER_BYTES`].
    pub fn insert<'a>(&mut self, name: &str, value: impl Into<HeaderValue<'a>>) -> Result<()> {
        let value = value.into();
        check_name(name)?;
        self.fits(name, value).map_err(|(bound, limit, found)| {
            let message = format!("a message's headers may have {limit} {bound} at most, this makes {found}");
            Error::new(ErrorKind::TooLarge, "set header", message).with("header", name.escape_debug())
        })?;
        self.put(name, value);
        Ok(())
    }

    /// Adds a header that came off the wire, as it is. What breaks a bound is kept and noted: see [`breach`](Self::breach).
    pub fn insert_foreign<'a>(&mut self, name: &str, value: impl Into<HeaderValue<'a>>) {
        let value = value.into();
        // a control character would read as an attribute; on no broker can a sane producer have meant it
        let hostile = name.is_empty() || name.len() > u16::MAX as usize || name.bytes().any(|b| b < 0x20);
        let length = value.as_bytes().map_or(8, <[u8]>::len);
        if !hostile && name.starts_with(OWN_PREFIX) && self.own < MAX_OWN && length <= MAX_OWN_VALUE {
            // a dead letter has the user's headers, up to all that are allowed, and ours
            self.own += 1;
            return self.write(USER, name.as_bytes(), value);
        }
        self.breach |= hostile || self.fits(name, value).is_err();
        if !hostile {
            self.put(name, value);
        }
    }

    /// Adds a header of the library's own (`postrider-…`), outside the user's bounds and reserved names.
    pub fn insert_system<'a>(&mut self, name: &str, value: impl Into<HeaderValue<'a>>) {
        self.write(USER, name.as_bytes(), value.into());
    }

    /// Sets an attribute. Setting one twice keeps the first.
    pub fn set<'a>(&mut self, attribute: Attribute, value: impl Into<HeaderValue<'a>>) {
        self.write(attribute.bit(), &[attribute as u8], value.into());
    }

    /// Whether a foreign header broke a bound.
    pub fn breach(&self) -> bool {
        self.breach
    }

    /// The finished headers: one allocation, or none when empty.
    pub fn freeze(&self) -> Headers {
        Headers((self.contents != 0).then(|| {
            let mut arena: Arc<[u8]> = Arc::from(self.arena.written());
            if let Some(contents) = Arc::get_mut(&mut arena).and_then(|arena| arena.first_chunk_mut()) {
                *contents = self.contents.to_le_bytes();
            }
            arena
        }))
    }

    fn fits(
        &self,
        name: &str,
        value: HeaderValue<'_>,
    ) -> std::result::Result<(), (&'static str, usize, usize)> {
        let length = value.as_bytes().map_or(8, <[u8]>::len);
        let bounds = [
            ("entries", MAX_HEADERS, self.count + 1),
            ("bytes in a name", MAX_HEADER_NAME, name.len()),
            ("bytes in a value", MAX_HEADER_VALUE, length),
            ("bytes in all", MAX_HEADER_BYTES, self.bytes + name.len() + length),
        ];
        bounds.into_iter().find(|(_, limit, found)| found > limit).map_or(Ok(()), Err)
    }

    fn put(&mut self, name: &str, value: HeaderValue<'_>) {
        self.count += 1;
        self.bytes += name.len() + value.as_bytes().map_or(8, <[u8]>::len);
        self.write(USER, name.as_bytes(), value);
    }

    fn write(&mut self, bit: Contents, name: &[u8], value: HeaderValue<'_>) {
        self.contents |= bit;
        let number;
        let (tag, bytes): (Option<u8>, &[u8]) = match value {
            HeaderValue::Text(text) => (None, text.as_bytes()),
            HeaderValue::Bytes(bytes) => (None, bytes),
            HeaderValue::Int(n) | HeaderValue::Time(n) => {
                number = n.to_le_bytes();
                (None, &number)
            }
            HeaderValue::Bool(b) => (Some(u8::from(b)), &[]),
            HeaderValue::Null => (None, &[]),
            HeaderValue::Native(tag, bytes) => (Some(tag), bytes),
        };
        let length = bytes.len() + usize::from(tag.is_some());
        let ([n0, n1], [v0, v1, v2, v3]) = ((name.len() as u16).to_le_bytes(), (length as u32).to_le_bytes());
        let room = self.arena.grow(HEAD + name.len() + length);
        let (head, rest) = room.split_at_mut(HEAD);
        head.copy_from_slice(&[value.kind(), n0, n1, v0, v1, v2, v3]);
        let (written, rest) = rest.split_at_mut(name.len());
        written.copy_from_slice(name);
        let (tagged, rest) = rest.split_at_mut(length - bytes.len());
        tagged.fill(tag.unwrap_or_default());
        rest.copy_from_slice(bytes);
    }
}

impl fmt::Debug for HeadersMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.freeze(), f)
    }
}

fn check_name(name: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::config("set header", why).with("header", name.escape_debug()));
    if name.is_empty() {
        return refuse("a header needs a name");
    }
    if name.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return refuse("a header's name can't contain control characters");
    }
    let reserved =
        |prefix: &&str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    if name.eq_ignore_ascii_case("content-type") || RESERVED_PREFIXES.iter().any(reserved) {
        return refuse(
            "this name is reserved; attributes are set by the envelope's own methods, others need another name",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_in_order_beside_the_attributes() {
        let values = [
            HeaderValue::Text("ä"),
            HeaderValue::Bytes(&[0, 255]),
            HeaderValue::Int(-5),
            HeaderValue::Bool(true),
            HeaderValue::Time(1),
            HeaderValue::Null,
            HeaderValue::Text(""),
        ];
        let mut headers = HeadersMut::new();
        headers.set(Attribute::Key, &[1_u8, 2][..]);
        for value in values {
            headers.insert("x", value).unwrap();
        }
        headers.insert_foreign("y", HeaderValue::Native(b'A', &[9, 9]));
        let frozen = headers.freeze();
        assert_eq!(frozen.get_all("x").collect::<Vec<_>>(), values);
        assert_eq!(frozen.get("y"), Some(HeaderValue::Native(b'A', &[9, 9])));
        assert_eq!(frozen.attribute(Attribute::Key), Some(HeaderValue::Bytes(&[1, 2])));
        assert_eq!(frozen.len(), 8);
        assert_eq!(HeadersMut::from_headers(&frozen).freeze(), frozen);
    }

    #[test]
    fn what_outgrows_the_stack_is_whole_wherever_it_does() {
        let text = "0123456789".repeat(Arena::FEW / 10 + 1);
        for length in 0..text.len() {
            let mut headers = HeadersMut::new();
            headers.set(Attribute::Type, "t");
            headers.insert("a", &text[..length]).unwrap();
            headers.insert("b", "behind").unwrap();
            let frozen = headers.freeze();
            assert_eq!(frozen.get("a"), Some(HeaderValue::Text(&text[..length])), "{length}");
            assert_eq!(frozen.get("b"), Some(HeaderValue::Text("behind")), "{length}");
            assert_eq!(frozen.attribute(Attribute::Type), Some(HeaderValue::Text("t")), "{length}");
            assert_eq!((frozen.get("c"), frozen.attribute(Attribute::Key)), (None, None), "{length}");
            assert_eq!(HeadersMut::from_headers(&frozen).freeze(), frozen, "{length}");
        }
    }

    #[test]
    fn bounds_hold_from_both_sides() {
        let mut headers = HeadersMut::new();
        assert!(headers.insert(&"n".repeat(MAX_HEADER_NAME), "").is_ok());
        assert!(headers.insert(&"n".repeat(MAX_HEADER_NAME + 1), "").is_err());
        assert!(headers.insert("v", &"v".repeat(MAX_HEADER_VALUE)).is_ok());
        assert!(headers.insert("v", &"v".repeat(MAX_HEADER_VALUE + 1)).is_err());
        for _ in 2..MAX_HEADERS {
            headers.insert("h", "").unwrap();
        }
        assert_eq!(headers.insert("h", "").unwrap_err().kind(), ErrorKind::TooLarge);

        let mut full = HeadersMut::new();
        for _ in 0..7 {
            full.insert("v", &"v".repeat(MAX_HEADER_VALUE)).unwrap();
        }
        assert!(full.insert("v", &"v".repeat(MAX_HEADER_VALUE - 8)).is_ok());
        assert!(full.insert("v", "").is_err());
    }

    #[test]
    fn names_that_are_not_the_users_are_refused() {
        for bad in [
            "",
            "a\r",
            "a\nb",
            "a\0",
            "CE-id",
            "ce_x",
            "cloudEvents:id",
            "Postrider-a",
            "Nats-Msg-Id",
            "Content-Type",
        ] {
            assert_eq!(HeadersMut::new().insert(bad, "").unwrap_err().kind(), ErrorKind::Config, "{bad:?}");
        }
    }

    #[test]
    fn a_foreign_header_beyond_a_bound_is_kept_and_noted() {
        let mut headers = HeadersMut::new();
        headers.insert_foreign("big", &*"v".repeat(MAX_HEADER_VALUE + 1));
        assert!(headers.breach());
        assert_eq!(headers.freeze().len(), 1);
    }

    #[test]
    fn headers_of_our_own_that_come_off_the_wire_are_bounded_by_themselves() {
        let mut headers = HeadersMut::new();
        for number in 0..MAX_HEADERS {
            headers.insert_foreign(&format!("user-{number}"), "v");
        }
        for number in 0..MAX_OWN {
            headers.insert_foreign(&format!("postrider-{number}"), &*"v".repeat(MAX_OWN_VALUE));
        }
        assert!(!headers.breach());
        headers.insert_foreign("postrider-more", "v");
        assert!(headers.breach());
        let mut headers = HeadersMut::new();
        headers.insert_foreign("postrider-long", &*"v".repeat(MAX_HEADER_VALUE + 1));
        assert!(headers.breach());
    }
}
