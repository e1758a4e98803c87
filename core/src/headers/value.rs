//! The value of a header, and what it can be read as.

use std::fmt;

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
    /// Text where the bytes are valid UTF-8, else bytes: so a key is kept, which brokers carry as bytes and people read as text.
    ///
    /// ```
    /// use postrider_core::HeaderValue;
    ///
    /// assert_eq!(HeaderValue::text_or_bytes(b"order-7"), HeaderValue::Text("order-7"));
    /// assert_eq!(HeaderValue::text_or_bytes(&[0xff]), HeaderValue::Bytes(&[0xff]));
    /// ```
    pub fn text_or_bytes(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or(Self::Bytes(bytes), Self::Text)
    }

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

    /// The kind of text.
    pub(crate) const TEXT: u8 = 0;

    pub(super) const fn kind(self) -> u8 {
        match self {
            Self::Text(_) => Self::TEXT,
            Self::Bytes(_) => 1,
            Self::Int(_) => 2,
            Self::Bool(_) => 3,
            Self::Time(_) => 4,
            Self::Null => 5,
            Self::Native(..) => 6,
        }
    }

    /// Whether a value of this kind is text or bytes.
    pub(super) const fn is_plain(kind: u8) -> bool {
        matches!(kind, 0 | 1)
    }

    pub(crate) fn read(kind: u8, value: &'a [u8]) -> Self {
        let number = || value.try_into().map_or(0, i64::from_le_bytes);
        match (kind, value) {
            // what was written as text was `str`, so the check can't fail and costs less than the search
            (Self::TEXT, _) => Self::Text(std::str::from_utf8(value).unwrap_or_default()),
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
