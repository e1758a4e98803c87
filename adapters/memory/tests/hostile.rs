//! Hostile records through the embedded broker: each is handled, dead-lettered or dropped, and nothing crashes or goes round.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use postrider_conformance::hostile::{Record, Value, records, survive};
use postrider_core::{Broker, Bytes, Envelope, HeaderValue, Outgoing, Publisher, WireReader};
use postrider_memory::MemoryBroker;

const RECORDS: usize = 200_000;

/// As an adapter reads a foreign record.
fn envelope(record: Record, position: usize) -> Envelope {
    let mut reader = WireReader::new(Some(Bytes::from(record.body)));
    for (name, text) in &record.attributes {
        if !reader.attribute(name, text) {
            reader.header(name, &**text);
        }
    }
    record.content_type.iter().for_each(|text| reader.content_type(text));
    record.key.iter().for_each(|key| reader.key(key));
    for (name, value) in &record.headers {
        let nested;
        reader.header(
            name,
            match value {
                Value::Text(text) => HeaderValue::Text(text),
                Value::Bytes(bytes) => HeaderValue::Bytes(bytes),
                Value::Int(n) => HeaderValue::Int(*n),
                Value::Nested(depth) => {
                    nested = vec![b'A'; *depth];
                    HeaderValue::Native(b'A', &nested)
                }
                _ => HeaderValue::Null,
            },
        );
    }
    reader.id_or(|| postrider_core::MessageId::Text(format!("foreign/{position}").into()));
    reader.time_or(1_700_000_000_000);
    reader.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_hostile_records_are_all_accounted_for() {
    let broker = Broker::new(MemoryBroker::new());
    let publisher = broker.clone();
    let tally = survive(&broker, "orders", async move {
        let mut sent = 0;
        for (position, record) in records(7).take(RECORDS).enumerate() {
            let outgoing = Outgoing::new("orders", envelope(record, position));
            sent += u64::from(publisher.send(outgoing).await.await.is_ok());
        }
        sent
    })
    .await;
    println!("{tally:?}");
    assert_eq!(tally.sent, RECORDS as u64);
    tally.assert_hostile();
}
