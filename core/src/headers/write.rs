//! Headers being written, within the bounds of the user's and of our own.

use std::fmt;

use super::arena::{Arena, Contents, HEAD, USER};
use super::{
    Attribute, HeaderValue, Headers, MAX_HEADER_BYTES, MAX_HEADER_NAME, MAX_HEADER_VALUE, MAX_HEADERS,
};
use crate::chunk::joined;
use crate::error::{Error, ErrorKind, Result};

/// Prefixes of names that only the library sets; a user header that begins with one is refused.
pub const RESERVED_PREFIXES: [&str; 6] =
    ["ce_", "ce-", "cloudevents:", "cloudevents_", "postrider-", "nats-"];

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
pub(super) const MAX_OWN: usize = 32;
pub(super) const MAX_OWN_VALUE: usize = 2 * 1024;
const OWN_PREFIX: &str = "postrider-";

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

    /// [`set`](Self::set) with the digits of a number, which are text without a look at each.
    pub(crate) fn set_digits(&mut self, attribute: Attribute, digits: &[u8]) {
        debug_assert!(digits.is_ascii(), "digits are ASCII");
        self.write_entry(attribute.bit(), &[attribute as u8], HeaderValue::TEXT, None, digits);
    }

    /// Whether a foreign header broke a bound.
    pub fn breach(&self) -> bool {
        self.breach
    }

    /// The finished headers, in [room that messages share](crate::chunked) unless they are large.
    pub fn freeze(&self) -> Headers {
        if self.contents == 0 {
            return Headers::default();
        }
        Headers(joined([&self.contents.to_le_bytes(), self.arena.written()]))
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

    fn write<N: AsRef<[u8]> + ?Sized>(&mut self, bit: Contents, name: &N, value: HeaderValue<'_>) {
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
        self.write_entry(bit, name, value.kind(), tag, bytes);
    }

    /// Generic, so that the name of an attribute, one byte, is written without a call.
    fn write_entry<N: AsRef<[u8]> + ?Sized>(
        &mut self,
        bit: Contents,
        name: &N,
        kind: u8,
        tag: Option<u8>,
        bytes: &[u8],
    ) {
        let name = name.as_ref();
        self.contents |= bit;
        let length = bytes.len() + usize::from(tag.is_some());
        let ([n0, n1], [v0, v1, v2, v3]) = ((name.len() as u16).to_le_bytes(), (length as u32).to_le_bytes());
        let room = self.arena.grow(HEAD + name.len() + length);
        let (head, rest) = room.split_at_mut(HEAD);
        head.copy_from_slice(&[kind, n0, n1, v0, v1, v2, v3]);
        let (written, rest) = rest.split_at_mut(name.len());
        written.copy_from_slice(name);
        let rest = match (tag, rest) {
            (Some(tag), [tagged, rest @ ..]) => {
                *tagged = tag;
                rest
            }
            (_, rest) => rest,
        };
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
