//! Headers and attributes of a message, in one arena. Which names a broker uses on the wire is the adapter's.

mod arena;
mod attribute;
mod value;
mod write;

use std::fmt;

use bytes::Bytes;

use arena::{CONTENTS, Contents, USER, entries, is_attribute};

pub use attribute::Attribute;
pub use value::HeaderValue;
pub use write::{HeadersMut, RESERVED_PREFIXES};

/// At most this many user headers a message.
pub const MAX_HEADERS: usize = 64;
/// The longest name of a user header, in bytes.
pub const MAX_HEADER_NAME: usize = 128;
/// The longest value of a user header, in bytes.
pub const MAX_HEADER_VALUE: usize = 8 * 1024;
/// All user headers of a message together, names and values, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// User headers and attributes, ordered and repeatable. A clone is one reference count; empty is nothing.
///
/// One arena holds all: `[contents u32]`, then `[kind u8][name length u16][value length u32][name][value]…`. An attribute's name is its
/// number. The contents tell without a search what isn't there, which is what is asked for most.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

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

    /// The bytes of an attribute, text or not. Text isn't checked to be UTF-8 once more, which for every message would be felt.
    pub(crate) fn attribute_bytes(&self, attribute: Attribute) -> Option<&[u8]> {
        let (_, kind, value) = self.entry(attribute.bit(), &[attribute as u8])?;
        HeaderValue::is_plain(kind).then_some(value)
    }

    /// All attributes that are set, in the order in which they were set.
    pub fn attributes(&self) -> impl Iterator<Item = (Attribute, HeaderValue<'_>)> {
        self.kept_attributes().map(|(attribute, kind, value)| (attribute, HeaderValue::read(kind, value)))
    }

    /// The same with their values as they are kept, which [`HeaderValue::read`] makes one of: to write text out, nobody need look
    /// whether it is UTF-8.
    pub(crate) fn kept_attributes(&self) -> impl Iterator<Item = (Attribute, u8, &[u8])> {
        entries(self.arena())
            .filter_map(|(name, kind, value)| Some((Attribute::from_arena(name)?, kind, value)))
    }

    /// How many bytes names and values take, attributes included.
    pub fn byte_len(&self) -> usize {
        self.arena().len()
    }

    fn arena(&self) -> &[u8] {
        self.0.get(CONTENTS..).unwrap_or_default()
    }

    fn contents(&self) -> Contents {
        self.0.first_chunk().map_or(0, |contents| Contents::from_le_bytes(*contents))
    }

    fn find(&self, bit: Contents, name: &[u8]) -> Option<HeaderValue<'_>> {
        self.entry(bit, name).map(|(_, kind, value)| HeaderValue::read(kind, value))
    }

    fn entry(&self, bit: Contents, name: &[u8]) -> Option<(&[u8], u8, &[u8])> {
        if self.contents() & bit == 0 {
            return None;
        }
        entries(self.arena()).find(|(n, ..)| *n == name)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests;
