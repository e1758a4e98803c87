//! Hostile records, from a seed: what a foreign or broken producer may write to a channel. And a route that survives them, with every
//! record accounted for. How a record is written to a broker is the adapter's test's.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_core::codec::Json;
use postrider_core::{
    Backoff, BoxSubscription, Broker, Classify, HandlerError, HeaderValue, Jitter, Message, OnExpired,
    Order as KeyOrder, Retry, RouteOptions, RouteReport, Router, Settlement, Subscriber, Subscription,
};
use serde::{Deserialize, Serialize};

use crate::kit::{DRAIN, options};

/// How often a record is tried.
const ATTEMPTS: u32 = 2;
/// How long all of them may take. Nothing waits that long unless something is stuck.
const PATIENCE: Duration = Duration::from_secs(150);

/// One record, before it is put into a broker's own form.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// The key, any bytes.
    pub key: Option<Vec<u8>>,
    /// `CloudEvents` attributes, by their names without a broker's prefix.
    pub attributes: Vec<(String, String)>,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// Headers beside them. A broker that has no such name or value leaves the header out.
    pub headers: Vec<(String, Value)>,
    /// The body.
    pub body: Vec<u8>,
}

/// The value of a header.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Text.
    Text(String),
    /// Any bytes.
    Bytes(Vec<u8>),
    /// A number, where the broker has them.
    Int(i64),
    /// Nothing, where the broker has that.
    Null,
    /// Lists in lists, so deep, where the broker has them.
    Nested(usize),
}

/// What became of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// How many were stored.
    pub sent: u64,
    /// How many were handled.
    pub handled: u64,
    /// How many were dropped because their time was over.
    pub dropped: u64,
    /// Dead letters that are there, by reason.
    pub letters: BTreeMap<String, u64>,
    /// How often the handler was called.
    pub calls: u64,
}

/// The message that the route takes.
#[derive(Serialize, Deserialize)]
struct Order {
    number: u64,
    note: Option<serde_json::Value>,
}

impl Message for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 2;
    type Codec = Json;
}

/// Records without an end; the same for the same seed.
pub fn records(seed: u64) -> impl Iterator<Item = Record> {
    let mut dice = Dice(seed);
    (1..).map(move |number| record(number, &mut dice))
}

/// Runs a route over what `sending` writes to `channel` (it answers how many records were stored), until each has been handled,
/// dead-lettered or dropped; asserts that this is so, and that the dead letters are there.
pub async fn survive(broker: &Broker, channel: &str, sending: impl Future<Output = u64>) -> Tally {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let retry = Retry::new().attempts(ATTEMPTS).backoff(Backoff::Fixed(Duration::ZERO)).jitter(Jitter::None);
    let route = RouteOptions::new(channel, "hostile")
        .order(KeyOrder::None)
        .retry(retry.durable())
        .on_expired(OnExpired::Drop)
        .handle(move |order: Order| {
            counted.fetch_add(1, Relaxed);
            async move {
                match order.number {
                    n if n % 97 == 0 => Err(HandlerError::msg("no luck")),
                    n if n % 89 == 0 => Err("never").permanent(),
                    _ => Ok(()),
                }
            }
        });
    let service = Router::new().route(route).start(broker).await.expect("it starts");
    let mut look = options(&format!("{channel}.hostile.dlq"), "look");
    look.partitions = Some(1);
    let subscription = broker.subscribe(&look).await.expect("the dead letters are read");
    let letters = Arc::new(Mutex::new(BTreeMap::new()));
    let reading = tokio::spawn(read(subscription, Arc::clone(&letters)));

    let sent = sending.await;
    let of = |letters: &BTreeMap<String, u64>| letters.values().sum::<u64>();
    let read = || letters.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let accounted = async {
        loop {
            let report = only(service.report().routes);
            if ended(&report) >= sent && of(&read()) >= report.dead_lettered {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, accounted).await.is_ok();
    assert!(
        in_time,
        "of {sent} records some are stuck: {:?}, {:?}; {:?}",
        service.report(),
        read(),
        service.health()
    );
    // what goes round and round would be counted once too often by now
    service.idle().await;
    let report = only(service.stop(DRAIN).await.expect("it stops").routes);
    reading.abort();
    let letters = read();
    assert_eq!(ended(&report), sent, "each record has one end: {report:?}");
    assert_eq!(of(&letters), report.dead_lettered, "the dead letters are there: {report:?}, {letters:?}");
    let calls = calls.load(Relaxed);
    assert!(calls <= sent * u64::from(ATTEMPTS), "{calls} calls for {sent} records");
    Tally { sent, handled: report.handled, dropped: report.dropped, letters, calls }
}

impl Tally {
    /// Asserts that the records were as hostile as they are meant to be.
    pub fn assert_hostile(&self) {
        assert!(self.handled > 0 && self.dropped > 0, "{self:?}");
        for reason in ["undecodable", "unknown-type", "unknown-version", "oversize", "exhausted", "rejected"]
        {
            assert!(self.letters.get(reason).is_some_and(|count| *count > 0), "none is {reason}: {self:?}");
        }
    }
}

fn only(routes: Vec<RouteReport>) -> RouteReport {
    routes.into_iter().next().expect("there is one route")
}

fn ended(report: &RouteReport) -> u64 {
    report.handled + report.dead_lettered + report.dropped
}

async fn read(mut subscription: BoxSubscription, letters: Arc<Mutex<BTreeMap<String, u64>>>) {
    let (mut inbox, most) = (Vec::new(), std::num::NonZeroUsize::new(256).expect("not zero"));
    while subscription.receive(most, &mut inbox).await.is_ok() {
        for delivery in inbox.drain(..) {
            let reasons = delivery.envelope.headers().get_all("postrider-dlq-reason");
            let reason = reasons.filter_map(HeaderValue::as_text).collect::<Vec<_>>().join("+");
            // one that is stale comes again, and would be counted twice
            if delivery.claim.settle(Settlement::Ack).is_ok() {
                *letters.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
            }
        }
    }
}

fn record(number: u64, dice: &mut Dice) -> Record {
    let mut record = Record { body: format!("{{\"number\":{number}}}").into_bytes(), ..Record::default() };
    if dice.one_in(3) {
        record.key = Some(dice.bytes(12));
    }
    if dice.one_in(2) {
        record.attributes =
            vec![text("type", "order"), text("schemaversion", "2"), text("specversion", "1.0")];
    }
    match dice.below(16) {
        0..=4 => {}
        5 => spoil_body(&mut record, dice),
        6 => record.attributes.push(text("expirytime", dice.pick(&EXPIRED))),
        7 => record.attributes = vec![text("type", &dice.word())],
        8 => {
            record.attributes = vec![text("type", "order"), text("schemaversion", dice.pick(&VERSIONS))];
        }
        9 | 10 => {
            for _ in 0..=dice.below(4) {
                record.headers.push((dice.pick(&OURS).into(), dice.number()));
            }
        }
        11 => beyond_the_bounds(&mut record, dice),
        12 => structured(number, &mut record, dice),
        13 => record.headers.push(("deep".into(), Value::Nested(1 + dice.below(60) as usize))),
        14 => record.attributes.push((dice.pick(&ATTRIBUTES).into(), dice.word())),
        _ => {
            for _ in 0..dice.below(10) {
                let value = match dice.below(4) {
                    0 => Value::Bytes(dice.bytes(40)),
                    1 => Value::Null,
                    2 => dice.number(),
                    _ => Value::Text(dice.word()),
                };
                record.headers.push((dice.word(), value));
            }
        }
    }
    record
}

/// Times at which a message was of no use any more, and some that say nothing.
const EXPIRED: [&str; 5] = [
    "2001-01-01T00:00:00Z",
    "1970-01-01T00:00:00Z",
    "-9999-01-01T00:00:00Z",
    "yesterday",
    "2001-01-01T00:00:00+14:00",
];
const VERSIONS: [&str; 6] = ["9", "4294967295", "4294967296", "-1", "two", "0"];
const ATTRIBUTES: [&str; 8] = [
    "id",
    "source",
    "time",
    "partitionkey",
    "partitionkeyencoding",
    "idempotencykey",
    "correlationid",
    "traceparent",
];
/// Headers that the library itself writes, and acts on when it reads them.
const OURS: [&str; 11] = [
    "postrider-retry-attempts",
    "postrider-retry-first-failed-at",
    "postrider-retry-origin",
    "postrider-dlq-redrives",
    "postrider-dlq-attempts",
    "postrider-dlq-error",
    "postrider-origin-id",
    "postrider-header-kinds",
    "postrider-h-0",
    "postrider-null",
    "postrider-orig-x-death",
];

fn text(name: &str, value: &str) -> (String, String) {
    (name.into(), value.into())
}

fn spoil_body(record: &mut Record, dice: &mut Dice) {
    record.body = match dice.below(6) {
        0 => record.body[..record.body.len() - 1].to_vec(),
        1 => [&b"{\"number\":1,\"note\":"[..], &vec![b'['; 5_000], &vec![b']'; 5_000], b"}"].concat(),
        2 => b"{\"number\":\"\xff\xfe\"}".to_vec(),
        3 => Vec::new(),
        4 => b"{\"number\":18446744073709551616}".to_vec(),
        _ => dice.bytes(400),
    };
}

fn beyond_the_bounds(record: &mut Record, dice: &mut Dice) {
    match dice.below(4) {
        0 => record.headers.extend((0..100).map(|n| (format!("h{n}"), Value::Text("v".into())))),
        1 => record.headers.push(("long".into(), Value::Text("v".repeat(9_000)))),
        2 => record.headers.push(("n".repeat(200), Value::Text("v".into()))),
        _ => record.headers.extend((0..50).map(|n| (format!("postrider-{n}"), Value::Text("v".into())))),
    }
}

fn structured(number: u64, record: &mut Record, dice: &mut Dice) {
    record.content_type = Some("application/cloudevents+json".into());
    record.body = match dice.below(4) {
        0 => format!(
            "{{\"specversion\":\"1.0\",\"source\":\"/s\",\"id\":\"s{number}\",\"type\":\"order\",\"schemaversion\":2,\"data\":{{\"number\":{number}}}}}"
        )
        .into_bytes(),
        1 => b"{\"specversion\":\"1.0\",\"source\":\"/s\",\"id\":\"1\",\"type\":\"order\",\"data_base64\":\"not base64!\"}".to_vec(),
        2 => [&b"{\"odd\":"[..], &vec![b'['; 3_000]].concat(),
        _ => b"{\"id\":7,\"type\":null,\"time\":{},\"data\":[]}".to_vec(),
    };
}

/// Random numbers from a seed (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<'a>(&mut self, among: &[&'a str]) -> &'a str {
        among[self.below(among.len() as u64) as usize]
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.roll() as u8).collect()
    }

    /// A name or value of any characters, control characters among them.
    fn word(&mut self) -> String {
        let alphabet: Vec<char> = "abcXYZ019-_. :%\"\t\u{e9}\u{4e16}\u{1}".chars().collect();
        (0..=self.below(12)).map(|_| alphabet[self.below(alphabet.len() as u64) as usize]).collect()
    }

    /// A count or time as nobody honest writes it.
    fn number(&mut self) -> Value {
        match self.below(6) {
            0 => Value::Int(i64::MAX),
            1 => Value::Int(i64::MIN),
            2 => Value::Text("4294967295".into()),
            3 => Value::Text("-1".into()),
            4 => Value::Text("many".into()),
            _ => Value::Int(self.roll().cast_signed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_records() {
        let some = |seed| records(seed).take(500).collect::<Vec<_>>();
        assert_eq!(some(1), some(1));
        assert_ne!(some(1), some(2));
    }
}
