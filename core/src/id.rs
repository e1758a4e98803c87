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
            Self::Uuid(bytes) => std::str::from_utf8(format_uuid(bytes, room)).unwrap_or_default(),
            Self::Text(text) => text,
        }
    }

    /// The same as bytes, which nobody has looked through whether they are UTF-8; they are.
    pub(crate) fn bytes<'a>(&'a self, room: &'a mut [u8; 36]) -> &'a [u8] {
        match self {
            Self::Uuid(bytes) => format_uuid(bytes, room),
            Self::Text(text) => text.as_bytes(),
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; 36]))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const DASHES: [usize; 4] = [8, 13, 18, 23];
/// Where the two digits of each byte begin.
const PAIRS: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
const HEX: &[u8; 16] = b"0123456789abcdef";
/// The two digits of each byte.
const WRITTEN: [[u8; 2]; 256] = {
    let (mut written, mut byte) = ([[0; 2]; 256], 0);
    while byte < written.len() {
        written[byte] = [HEX[byte >> 4], HEX[byte & 15]];
        byte += 1;
    }
    written
};
/// What each byte of text is worth as a digit; [`NO_DIGIT`] of all others.
const DIGITS: [u8; 256] = {
    let (mut digits, mut value) = ([NO_DIGIT; 256], 0);
    while value < HEX.len() {
        digits[HEX[value] as usize] = value as u8;
        value += 1;
    }
    digits
};
const NO_DIGIT: u8 = u8::MAX;

fn format_uuid<'a>(bytes: &[u8; 16], out: &'a mut [u8; 36]) -> &'a [u8] {
    for at in DASHES {
        out[at] = b'-';
    }
    for (byte, at) in bytes.iter().zip(PAIRS) {
        [out[at], out[at + 1]] = WRITTEN[usize::from(*byte)];
    }
    out
}

/// Only the canonical lower-case form: everything else must come back as the text that it was.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.as_bytes().try_into().ok()?;
    if DASHES.iter().any(|at| text[*at] != b'-') {
        return None;
    }
    let (mut out, mut seen) = ([0; 16], 0);
    for (byte, at) in out.iter_mut().zip(PAIRS) {
        let (high, low) = (DIGITS[usize::from(text[at])], DIGITS[usize::from(text[at + 1])]);
        // one check at the end finds any that was no digit
        seen |= high | low;
        *byte = high << 4 | low;
    }
    (seen < 16).then_some(out)
}
