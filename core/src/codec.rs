//! How a message becomes bytes and back. JSON is built in; another codec is a type of the user's own.

use std::cell::Cell;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::chunk::chunked;
use crate::error::BoxError;

/// Turns messages into bytes and back. A message type names its codec: `#[message(codec = MyCodec)]`.
///
/// ```
/// use postrider_core::codec::{Codec, Json};
/// let bytes = Json::encode(&vec![1, 2])?;
/// assert_eq!(Json::decode::<Vec<u8>>(&bytes)?, [1, 2]);
/// # Ok::<(), postrider_core::BoxError>(())
/// ```
pub trait Codec {
    /// The media type that travels with the message.
    const CONTENT_TYPE: &'static str;

    /// The bytes of a message.
    ///
    /// # Errors
    /// Whatever the format can't express.
    fn encode<T: Serialize>(message: &T) -> Result<Bytes, BoxError>;

    /// The message of these bytes. Its depth must be bounded: the bytes may be hostile.
    ///
    /// # Errors
    /// Bytes that are not such a message; the runner dead-letters them as `undecodable`.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError>;
}

/// JSON ([RFC 8259]), at most 128 levels deep.
///
/// [RFC 8259]: https://www.rfc-editor.org/rfc/rfc8259
#[derive(Clone, Copy, Debug)]
pub enum Json {}

impl Codec for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode<T: Serialize>(message: &T) -> Result<Bytes, BoxError> {
        // written where there is room already, and copied once its size is known, so that little grows; what is large goes as it is
        let mut written = DESK.take();
        written.clear();
        let done = serde_json::to_writer(&mut written, message);
        let encoded = if written.capacity() > KEPT {
            // also what failed: nothing large is kept
            let large = std::mem::take(&mut written);
            done.map(|()| large.into())
        } else {
            done.map(|()| chunked(&written))
        };
        DESK.set(written);
        Ok(encoded?)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// How many bytes of room a thread keeps.
const KEPT: usize = 64 * 1024;

thread_local! {
    /// Room to write in. One who encodes while encoding finds none, and makes its own.
    static DESK: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes something while it is encoded.
    struct Nested(u32);

    impl Serialize for Nested {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            let inner = Json::encode(&self.0).map_err(serde::ser::Error::custom)?;
            (self.0, inner.as_ref()).serialize(to)
        }
    }

    /// A failure half-way, after so many bytes, leaves nothing of it in what comes next.
    struct Fails(usize);

    impl Serialize for Fails {
        fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            use serde::ser::{Error, SerializeSeq};
            let mut sequence = to.serialize_seq(Some(2))?;
            sequence.serialize_element(&"h".repeat(self.0))?;
            Err(Error::custom("no more"))
        }
    }

    #[test]
    fn room_is_used_again_and_nothing_stays_in_it() {
        assert_eq!(Json::encode(&Nested(7)).unwrap(), "[7,[55]]");
        for bytes in [4, 2 * KEPT] {
            assert!(Json::encode(&Fails(bytes)).is_err());
            let written = DESK.take();
            assert!(written.capacity() <= KEPT, "{}", written.capacity());
            DESK.set(written);
            assert_eq!(Json::encode(&"x").unwrap(), "\"x\"");
        }
        let large = "l".repeat(2 * KEPT);
        assert_eq!(Json::encode(&large).unwrap().len(), large.len() + 2);
        assert_eq!(Json::encode(&1).unwrap(), "1");
    }

    #[test]
    fn a_depth_bomb_is_an_error_from_both_sides() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(Json::decode::<serde_json::Value>(&nested(127)).is_ok());
        assert!(Json::decode::<serde_json::Value>(&nested(129)).is_err());
    }
}
