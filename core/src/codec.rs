//! How a message becomes bytes and back. JSON is built in; another codec is a type of the user's own.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

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
        Ok(serde_json::to_vec(message)?.into())
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_bomb_is_an_error_from_both_sides() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(Json::decode::<serde_json::Value>(&nested(127)).is_ok());
        assert!(Json::decode::<serde_json::Value>(&nested(129)).is_err());
    }
}
