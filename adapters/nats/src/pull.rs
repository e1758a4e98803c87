//! What is said to a pull consumer and what it answers: requests, deliveries, statuses. The server's words, and no state.

use std::time::Duration;

use async_nats::Message;
use async_nats::header::NATS_PIN_ID;
use memchr::memchr_iter;
use serde::Serialize;

/// The one priority group of our consumers.
pub(crate) const PRIORITY_GROUP: &str = "postrider";
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";

/// A request for messages.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) batch: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) max_bytes: usize,
    /// Nanoseconds.
    pub(crate) expires: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub(crate) idle_heartbeat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero_u64(n: &u64) -> bool {
    *n == 0
}

/// The subject that requests go to.
pub(crate) fn next_subject(stream: &str, consumer: &str) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")
}

/// The subject that gives up a pin.
pub(crate) fn unpin_subject(stream: &str, consumer: &str) -> String {
    format!("$JS.API.CONSUMER.UNPIN.{stream}.{consumer}")
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What came on a consumer's inbox.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// A message, with what its reply subject says.
    Delivery(Place),
    /// The server is alive and has nothing.
    Heartbeat,
    /// A request ended with this many messages not delivered.
    Ended { left: usize },
    /// A request ended because the next message is larger than what it still asks for.
    TooLarge { left: usize },
    /// The pin isn't ours any more.
    WrongPin,
    /// The consumer or stream is gone.
    Gone(String),
    /// Nobody takes requests: JetStream or the consumer isn't there at the moment.
    NoResponders,
    /// A request that the server doesn't take.
    Refused(String),
}

/// Where a delivery stood, out of its reply subject `$JS.ACK.…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) deliveries: u32,
    /// In the stream.
    pub(crate) sequence: u64,
    /// Of this delivery among all of the consumer.
    pub(crate) delivered: u64,
    pub(crate) time_ms: u64,
}

pub(crate) fn read(message: &Message) -> Answer {
    let Some(status) = message.status else {
        return match message.reply.as_deref().and_then(place) {
            Some(place) => Answer::Delivery(place),
            None => Answer::Refused(format!(
                "a message without an acknowledgement subject on {}",
                message.subject
            )),
        };
    };
    let header = |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
    let left = header(PENDING_MESSAGES).and_then(|n| n.parse().ok());
    let description = message.description.clone().unwrap_or_default();
    match (status.as_u16(), left) {
        (100, _) => Answer::Heartbeat,
        (423, _) => Answer::WrongPin,
        (503, _) => Answer::NoResponders,
        (409, Some(left)) if description.contains("Exceeds MaxBytes") => Answer::TooLarge { left },
        // a request that ended early says how much of it was left
        (404 | 408 | 409, Some(left)) => Answer::Ended { left },
        (409, None) if description.to_ascii_lowercase().contains("deleted") => Answer::Gone(description),
        (404 | 408 | 409, None) => Answer::Ended { left: usize::MAX },
        (code, _) => Answer::Refused(format!("{code} {description}")),
    }
}

/// The pin under which a message was delivered.
pub(crate) fn pin_of(message: &Message) -> Option<&str> {
    message.headers.as_ref()?.get(NATS_PIN_ID).map(async_nats::HeaderValue::as_str)
}

/// `$JS.ACK.stream.consumer.deliveries.sequence.delivered.time.pending`, or with a domain and account in front and a token behind.
fn place(reply: &str) -> Option<Place> {
    let reply = reply.as_bytes();
    let mut dots = [0; 10];
    let mut count = 0;
    for dot in memchr_iter(b'.', reply) {
        // more may follow what is read here
        if let Some(room) = dots.get_mut(count) {
            *room = dot;
        }
        count += 1;
    }
    let dots = match count + 1 {
        9 => &dots[3..8],
        11.. => &dots[5..],
        _ => return None,
    };
    let number = |n: usize| number(reply.get(dots[n] + 1..dots[n + 1])?);
    Some(Place {
        deliveries: number(0)?.try_into().ok()?,
        sequence: number(1)?,
        delivered: number(2)?,
        time_ms: number(3)? / 1_000_000,
    })
}

/// A number of digits alone.
fn number(digits: &[u8]) -> Option<u64> {
    /// So many are never too large.
    const SURE: usize = 19;
    if digits.is_empty() || digits.len() > SURE {
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        return is_number.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten();
    }
    // one check at the end finds any that was no digit
    let (mut number, mut most) = (0_u64, 0);
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        most = most.max(digit);
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    (most <= 9).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        let expected = Some(Place { deliveries: 2, sequence: 17, delivered: 5, time_ms: 1_700_000_000_000 });
        assert_eq!(place("$JS.ACK.orders.billing.2.17.5.1700000000000000000.3"), expected);
        assert_eq!(place("$JS.ACK._.hash.orders.billing.2.17.5.1700000000000000000.3.token"), expected);
        assert_eq!(place("$JS.ACK._.hash.orders.billing.2.17.5.1700000000000000000.3"), expected);
        for none in [
            "$JS.ACK.orders",
            "$JS.ACK._.orders.billing.2.17.5.1700000000000000000.3",
            "$JS.ACK.orders.billing.2.17.5.1700000000000000000",
            "$JS.ACK.orders.billing.2..5.1700000000000000000.3",
            "$JS.ACK.orders.billing.2.x7.5.1700000000000000000.3",
            "$JS.ACK.orders.billing.2.+7.5.1700000000000000000.3",
            "$JS.ACK.orders.billing.4294967296.17.5.1700000000000000000.3",
            "$JS.ACK.orders.billing.2.18446744073709551616.5.1700000000000000000.3",
        ] {
            assert_eq!(place(none), None, "{none}");
        }
        for (digits, number) in [
            ("9999999999999999999", Some(9_999_999_999_999_999_999)),
            ("00000000000000000007", Some(7)),
            ("18446744073709551616", None),
        ] {
            let found = place(&format!("$JS.ACK.orders.billing.2.{digits}.5.1700000000000000000.3"));
            assert_eq!(found.map(|place| place.sequence), number, "{digits}");
        }
        let largest = place("$JS.ACK.orders.billing.4294967295.18446744073709551615.5.1700000000000000000.3");
        assert_eq!(largest.map(|place| (place.deliveries, place.sequence)), Some((u32::MAX, u64::MAX)));
    }

    #[test]
    fn a_request_says_only_what_it_means() {
        let request =
            Request { batch: 5, max_bytes: 0, expires: 1, idle_heartbeat: 0, group: None, id: None };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"batch":5,"expires":1}"#);
    }
}
