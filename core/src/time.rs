//! Points in time as text.

use std::cell::Cell;

/// What is written here rather than by jiff: from the Unix epoch on, up to the last times that jiff knows.
const WRITTEN: std::ops::Range<i64> = 0..253_402_207_200_000;
const DAY: i64 = 24 * 3600;

/// The text of a time, without an allocation.
#[derive(Clone, Copy)]
pub(crate) struct TimeText {
    text: [u8; 24],
    length: usize,
}

impl TimeText {
    /// Of milliseconds since the Unix epoch; `None` before it, and where the year 9999 ends.
    pub(crate) fn new(ms: i64) -> Option<Self> {
        thread_local! {
            /// A second and its text, without a fraction: most messages are of the same as the one before.
            static LAST: Cell<(i64, [u8; 24])> = const { Cell::new((i64::MIN, [0; 24])) };
        }
        if !WRITTEN.contains(&ms) {
            return None;
        }
        let (second, fraction) = (ms / 1000, (ms % 1000) as u32);
        let (last, mut text) = LAST.get();
        if last != second {
            text = Self::of_second(second);
            LAST.set((second, text));
        }
        digits(&mut text[20..23], fraction);
        // only as many digits as there are
        let length = match fraction {
            0 => 19,
            n if n % 100 == 0 => 21,
            n if n % 10 == 0 => 22,
            _ => 23,
        };
        text[length] = b'Z';
        Some(Self { text, length: length + 1 })
    }

    /// With room for a fraction.
    fn of_second(second: i64) -> [u8; 24] {
        let (days, seconds) = (second / DAY, (second % DAY) as u32);
        let (year, month, day) = civil(days as u32);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], seconds / 3600);
        digits(&mut text[14..16], seconds / 60 % 60);
        digits(&mut text[17..19], seconds % 60);
        text
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC.
pub fn rfc3339(ms: i64) -> String {
    match TimeText::new(ms) {
        Some(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        None => jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |t| t.to_string()),
    }
}

/// RFC 3339 with any offset, as milliseconds since the Unix epoch; `None` if it can't be read or lies before it.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    own_form(text.as_bytes())
        .or_else(|| text.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_millisecond()).ok()))
}

/// Reads what [`TimeText`] writes: nearly every time that comes off the wire. `None` for any other form.
fn own_form(text: &[u8]) -> Option<u64> {
    let (date, rest) = text.split_first_chunk::<19>()?;
    let [y0, y1, y2, y3, b'-', mo0, mo1, b'-', d0, d1, b'T', h0, h1, b':', mi0, mi1, b':', s0, s1] = *date
    else {
        return None;
    };
    let (f0, f1, f2) = match *rest {
        [b'Z'] => (b'0', b'0', b'0'),
        [b'.', a, b'Z'] => (a, b'0', b'0'),
        [b'.', a, b, b'Z'] => (a, b, b'0'),
        [b'.', a, b, c, b'Z'] => (a, b, c),
        _ => return None,
    };
    // one check finds any that is no digit
    let digits = [y0, y1, y2, y3, mo0, mo1, d0, d1, h0, h1, mi0, mi1, s0, s1, f0, f1, f2];
    let digits = digits.map(|digit| digit.wrapping_sub(b'0'));
    if digits.iter().fold(0, |most, digit| most.max(*digit)) > 9 {
        return None;
    }
    let two = |at: usize| u32::from(digits[at]) * 10 + u32::from(digits[at + 1]);
    let (year, month, day) = (two(0) * 100 + two(2), two(4), two(6));
    let (hour, minute, second) = (two(8), two(10), two(12));
    let fraction = two(14) * 10 + u32::from(digits[16]);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=last).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days(year, month, day);
    let seconds = i64::from(days) * 24 * 3600 + i64::from(hour * 3600 + minute * 60 + second);
    let ms = seconds * 1000 + i64::from(fraction);
    WRITTEN.contains(&ms).then_some(ms as u64)
}

/// The days of a year up to the first of each month, where the year begins with March.
const fn days_before(month_from_march: u32) -> u32 {
    (153 * month_from_march + 2) / 5
}

/// Days since the Unix epoch of a date in the Gregorian calendar, from 1970 on. Years are counted from March, so that the day that some
/// have more is their last.
fn days(year: u32, month: u32, day: u32) -> u32 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year / 4 - year / 100 + year / 400 + days_before(month) + day - 1 - TO_EPOCH
}

/// From the first of March of the year 0 to the Unix epoch.
const TO_EPOCH: u32 = 719_468;
const DAYS_OF_400_YEARS: u32 = 146_097;

/// Year, month and day of days since the Unix epoch: the other way round.
fn civil(days: u32) -> (u32, u32, u32) {
    let days = days + TO_EPOCH;
    let (era, days) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    // without the leap days before, each year has 365
    let year = (days - days / 1460 + days / 36_524 - days / 146_096) / 365;
    let days = days - (365 * year + year / 4 - year / 100);
    let month = (5 * days + 2) / 153;
    let day = days - days_before(month) + 1;
    let year = era * 400 + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

/// Writes a number with leading zeros.
fn digits(room: &mut [u8], mut number: u32) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_jiff(text: &str) -> Option<u64> {
        text.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_millisecond()).ok())
    }

    proptest! {
        #[test]
        fn a_time_is_written_and_read_as_jiff_does(ms in prop_oneof![WRITTEN, 1_600_000_000_000..1_900_000_000_000_i64, -1_000_000_000_000..0_i64]) {
            let text = rfc3339(ms);
            prop_assert_eq!(&text, &jiff::Timestamp::from_millisecond(ms).unwrap().to_string());
            prop_assert_eq!(parse_rfc3339(&text), u64::try_from(ms).ok());
            prop_assert_eq!(own_form(text.as_bytes()), u64::try_from(ms).ok());
        }

        #[test]
        fn what_is_no_time_is_none_here_too(text in "[0-9]{4}-[0-3][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,4})?(Z|\\+01:00|)") {
            prop_assert_eq!(parse_rfc3339(&text), by_jiff(&text));
        }
    }

    #[test]
    fn times_of_one_second_and_of_others_follow_each_other() {
        let second = 1_730_419_199_000;
        for ms in [0, 123, 100, 20, 0, 5, 1000, 1007, 0, 999, -1, -1000, 30] {
            let at = second + ms;
            assert_eq!(rfc3339(at), jiff::Timestamp::from_millisecond(at).unwrap().to_string());
        }
    }

    #[test]
    fn every_day_of_400_years_has_its_date() {
        for day in 0..146_097 {
            let at = i64::from(day) * DAY * 1000;
            assert_eq!(rfc3339(at), jiff::Timestamp::from_millisecond(at).unwrap().to_string());
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
        assert_eq!(rfc3339(WRITTEN.end - 1), "9999-12-30T21:59:59.999Z");
        let whole = b"2024-10-31T23:59:59.123Z";
        assert!(own_form(whole).is_some());
        for at in 0..whole.len() {
            for other in [b'/', b':', b' ', b'Z', 0x80, 0xff] {
                let mut text = whole.to_vec();
                text[at] = other;
                assert!(text == whole || own_form(&text).is_none(), "{}", text.escape_ascii());
            }
        }
        for (text, is_read) in [
            ("2100-02-29", false),
            ("2000-02-29", true),
            ("2024-02-29", true),
            ("2024-02-30", false),
            ("2023-02-29", false),
            ("2023-04-31", false),
            ("2023-12-31", true),
            ("2023-01-00", false),
            ("2023-00-01", false),
            ("2023-13-01", false),
            ("1969-12-31", false),
        ] {
            assert_eq!(own_form(format!("{text}T00:00:00Z").as_bytes()).is_some(), is_read, "{text}");
        }
    }
}
