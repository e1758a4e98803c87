//! Who a message is. How ids are drawn is `env`'s.

use std::fmt;
use std::sync::Arc;

/// Who a message is: our own ids are UUIDs, foreign ones any text. 24 bytes; the clone of a UUID doesn't allocate.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MessageId {
    /// The 16 bytes of a UUID, in network order.
    Uuid([u8; 16]),
    /// Any other text, as it came.
    Text(Arc<str>),
}

impl MessageId {
    /// Reads an id: the canonical text of a UUID becomes [`MessageId::Uuid`], everything else stays text.
    pub fn parse(text: &str) -> Self {
        parse_uuid(text).map_or_else(|| Self::Text(text.into()), Self::Uuid)
    }

    /// Its text, written into `room` where it isn't text already.
    pub fn text<'a>(&'a self, room: &'a mut [u8; 36]) -> &'a str {
        match self {
            Self::Uuid(bytes) => format_uuid(bytes, room),
            Self::Text(text) => text,
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => f.write_str(format_uuid(bytes, &mut [0; 36])),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const DASHES: [usize; 4] = [8, 13, 18, 23];

pub(crate) fn format_uuid<'a>(bytes: &[u8; 16], out: &'a mut [u8; 36]) -> &'a str {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut at = 0;
    for byte in bytes {
        if DASHES.contains(&at) {
            out[at] = b'-';
            at += 1;
        }
        out[at] = HEX[usize::from(byte >> 4)];
        out[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    std::str::from_utf8(out).unwrap_or_default()
}

/// Only the canonical lower-case form: everything else must come back as the text that it was.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 36 {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (mut out, mut at) = ([0; 16], 0);
    for byte in &mut out {
        if DASHES.contains(&at) {
            if text[at] != b'-' {
                return None;
            }
            at += 1;
        }
        *byte = digit(text[at])? << 4 | digit(text[at + 1])?;
        at += 2;
    }
    Some(out)
}
