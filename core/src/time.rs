//! Points in time as text.

/// Milliseconds since the Unix epoch as RFC 3339 in UTC.
pub fn rfc3339(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |t| t.to_string())
}

/// RFC 3339 with any offset, as milliseconds since the Unix epoch; `None` if it can't be read or lies before it.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    text.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_millisecond()).ok())
}
