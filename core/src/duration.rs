//! Durations as people write them: `250ms`, `3s`, `7d`. For configuration read by serde.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads `250ms`, `3s`, `1h 30m`.
///
/// # Errors
/// Text that is no duration; the error doesn't repeat it.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration; write a number with its unit: `250ms`, `3s`, `5m`, `7d`")
}

/// For `#[serde(with = "postrider_core::duration")]`.
///
/// # Errors
/// As [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
    parse(&text).map_err(de::Error::custom)
}

/// For `#[serde(with = "postrider_core::duration::option", default)]`.
pub mod option {
    use super::{Deserializer, Duration};

    /// Reads a duration that may be absent.
    ///
    /// # Errors
    /// As [`parse`](super::parse).
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
