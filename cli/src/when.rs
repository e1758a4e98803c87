//! Points in time and rates, as they are typed.

use std::time::Duration;

use postrider::parse_rfc3339;

/// A point in time: RFC 3339, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Milliseconds since the Unix epoch.
    At(u64),
    /// So long before now.
    Ago(Duration),
}

impl When {
    /// In milliseconds since the Unix epoch.
    pub(crate) fn ms(self, now_ms: u64) -> u64 {
        match self {
            Self::At(ms) => ms,
            Self::Ago(ago) => now_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// Reads a point in time.
pub(crate) fn when(text: &str) -> Result<When, String> {
    if let Some(ms) = parse_rfc3339(text) {
        return Ok(When::At(ms));
    }
    postrider::duration::parse(text)
        .map(When::Ago)
        .map_err(|_| "not a time; write `2026-01-31T12:00:00Z`, or how long ago: `10m`, `2h`, `7d`".into())
}

/// Reads `100/s`, `5/m`, `1/h`: answers how long one takes.
pub(crate) fn rate(text: &str) -> Result<Duration, String> {
    let wrong = || "not a rate; write how many in what time: `100/s`, `30/m`".to_owned();
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    let unit = match unit.trim() {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        "h" => Duration::from_hours(1),
        _ => return Err(wrong()),
    };
    unit.checked_div(count).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_read() {
        assert_eq!(when("1970-01-01T00:00:01Z"), Ok(When::At(1000)));
        assert_eq!(when("10m").map(|when| when.ms(600_001)), Ok(1));
        assert!(when("yesterday").is_err());
        assert_eq!(rate("100/s"), Ok(Duration::from_millis(10)));
        assert_eq!(rate("2/m"), Ok(Duration::from_secs(30)));
        for wrong in ["", "5", "0/s", "x/s", "5/d"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
