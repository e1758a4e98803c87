//! Hostile records on a real NATS server, written by the plain client.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use postrider_conformance::Settings;
use postrider_conformance::hostile::{Record, Value, records, survive};
use postrider_core::{BrokerUrl, Bytes, Connector, Env};
use postrider_nats::{Naming, NatsConnector};

use support::{shared_url, with_options};

const RECORDS: usize = 20_000;
/// How many are written before their confirms are awaited.
const WINDOW: usize = 500;

fn headers(record: &Record) -> HeaderMap {
    let mut map = HeaderMap::new();
    let mut put = |name: &str, value: &str| {
        // what the client can't write, no client of its kind writes; and what the server acts on is no matter here
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    };
    record.attributes.iter().for_each(|(name, text)| put(&format!("ce-{name}"), text));
    record.content_type.iter().for_each(|text| put("content-type", text));
    for (name, value) in &record.headers {
        match value {
            Value::Text(text) => put(name, text),
            Value::Bytes(bytes) => put(name, &String::from_utf8_lossy(bytes)),
            Value::Int(n) => put(name, &n.to_string()),
            Value::Nested(depth) => put(name, &"[".repeat(*depth)),
            _ => put(name, ""),
        }
    }
    map
}

mod nats {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a NATS server: cargo xtask test --only nats"]
    async fn twenty_thousand_hostile_records_are_all_accounted_for() {
        let mut settings = Settings::default();
        settings.tenant = format!("hostile-{:x}", Env::system().random());
        let url = BrokerUrl::parse(&with_options(&shared_url(), &settings)).unwrap();
        let broker = NatsConnector.connect(&url, Env::system()).await.expect("the server answers");
        let subject = Naming::new(Some(&settings.tenant)).unwrap().subject("orders");
        let client = async_nats::connect(shared_url()).await.expect("the server answers");
        let stream = async_nats::jetstream::new(client);
        let tally = survive(&broker, "orders", async {
            let mut acks = Vec::new();
            for (n, record) in records(7).take(RECORDS).enumerate() {
                let map = headers(&record);
                let sent = stream.publish_with_headers(subject.clone(), map, Bytes::from(record.body)).await;
                acks.push(sent.expect("it is sent"));
                if acks.len() == WINDOW || n + 1 == RECORDS {
                    for ack in acks.drain(..) {
                        ack.await.expect("it is stored");
                    }
                }
            }
            RECORDS as u64
        })
        .await;
        println!("{tally:?}");
        tally.assert_hostile();
    }
}
