//! Hostile records on a real Kafka broker, written by the plain client.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::time::Duration;

use postrider_conformance::Settings;
use postrider_conformance::hostile::{Record, Value, records, survive};
use postrider_core::{BrokerUrl, Connector, Env};
use postrider_kafka::{KafkaConnector, Naming};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use support::{address, shared_url, with_options};

const RECORDS: usize = 20_000;

fn headers(record: &Record) -> OwnedHeaders {
    let mut all = OwnedHeaders::new();
    let mut put =
        |key: &str, value: Option<&[u8]>| all = std::mem::take(&mut all).insert(Header { key, value });
    record.attributes.iter().for_each(|(name, text)| put(&format!("ce_{name}"), Some(text.as_bytes())));
    record.content_type.iter().for_each(|text| put("content-type", Some(text.as_bytes())));
    for (name, value) in &record.headers {
        match value {
            Value::Text(text) => put(name, Some(text.as_bytes())),
            Value::Bytes(bytes) => put(name, Some(bytes)),
            Value::Int(n) => put(name, Some(n.to_string().as_bytes())),
            Value::Nested(depth) => put(name, Some(&vec![b'['; *depth])),
            _ => put(name, None),
        }
    }
    all
}

mod kafka {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
    async fn twenty_thousand_hostile_records_are_all_accounted_for() {
        let mut settings = Settings::default();
        settings.tenant = format!("hostile-{:x}", Env::system().random());
        let url = BrokerUrl::parse(&with_options(&shared_url(), &settings, "classic")).unwrap();
        let broker = KafkaConnector.connect(&url, Env::system()).await.expect("the broker answers");
        let topic = Naming::new(Some(&settings.tenant)).and_then(|naming| naming.topic("orders")).unwrap();
        let writing = move || {
            let mut config = ClientConfig::new();
            let producer: BaseProducer =
                config.set("bootstrap.servers", address(&shared_url())).create().expect("a plain producer");
            for record in records(7).take(RECORDS) {
                let mut next =
                    BaseRecord::<[u8], [u8]>::to(&topic).payload(&record.body).headers(headers(&record));
                if let Some(key) = &record.key {
                    next = next.key(key);
                }
                while let Err((error, again)) = producer.send(next) {
                    let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                    assert_eq!(error, full, "it is taken as soon as there is room");
                    producer.poll(Duration::from_millis(10));
                    next = again;
                }
            }
            producer.flush(Duration::from_mins(1)).expect("all are stored");
            RECORDS as u64
        };
        let tally = survive(&broker, "orders", async {
            tokio::task::spawn_blocking(writing).await.expect("they are written")
        })
        .await;
        println!("{tally:?}");
        tally.assert_hostile();
    }
}
