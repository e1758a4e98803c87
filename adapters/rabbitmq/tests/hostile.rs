//! Hostile records on a real RabbitMQ, written by the plain client.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, ConnectionProperties};
use postrider_conformance::Settings;
use postrider_conformance::hostile::{Record, Value, records, survive};
use postrider_core::{BrokerUrl, Connector, Env};
use postrider_rabbitmq::{Naming, RabbitmqConnector};

use support::{Version, with_options};

const RECORDS: usize = 20_000;
/// How many are written before their confirms are awaited.
const WINDOW: usize = 500;

fn value(value: &Value) -> AMQPValue {
    match value {
        Value::Text(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Bytes(bytes) => AMQPValue::ByteArray(bytes.clone().into()),
        Value::Int(n) => AMQPValue::LongLongInt(*n),
        // no NaN: on that the broker's own parser breaks off the publisher's channel
        Value::Nested(depth) => (0..*depth).fold(AMQPValue::Double(f64::INFINITY.recip()), |inner, level| {
            if level % 2 == 0 {
                AMQPValue::FieldArray(FieldArray::from(vec![inner]))
            } else {
                let mut table = FieldTable::default();
                table.insert("in".into(), inner);
                AMQPValue::FieldTable(table)
            }
        }),
        _ => AMQPValue::Void,
    }
}

fn properties(record: &Record) -> BasicProperties {
    let (mut properties, mut table) = (BasicProperties::default(), FieldTable::default());
    let mut put = |name: &str, value: AMQPValue| {
        if let Ok(name) = ShortString::try_new(name) {
            table.insert(name, value);
        }
    };
    for (name, text) in &record.attributes {
        put(&format!("cloudEvents:{name}"), AMQPValue::LongString(text.as_str().into()));
    }
    record.headers.iter().for_each(|(name, v)| put(name, value(v)));
    if let Some(key) = &record.key {
        // a group's own keys are text; others travel as bytes
        put("cloudEvents:partitionkey", AMQPValue::LongString(key.clone().into()));
    }
    if let Some(text) = &record.content_type {
        properties = properties.with_content_type(text.as_str().into());
    }
    properties.with_headers(table)
}

async fn hostile_records(version: Version) {
    let mut settings = Settings::default();
    settings.tenant = format!("hostile-{:x}", Env::system().random());
    let url = BrokerUrl::parse(&with_options(&version.shared_url(), &settings)).unwrap();
    let broker = RabbitmqConnector.connect(&url, Env::system()).await.expect("the broker answers");
    let exchange = Naming::new(Some(&settings.tenant)).unwrap().exchange("orders").unwrap();
    let url = version.shared_url();
    let connection = lapin::Connection::connect(&url, ConnectionProperties::default());
    let connection = connection.await.expect("the broker answers");
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let tally = survive(&broker, "orders", async {
        let mut confirms = Vec::new();
        for (n, record) in records(7).take(RECORDS).enumerate() {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let exchange = exchange.as_str().into();
            let sent =
                channel.basic_publish(exchange, "theirs".into(), options, &record.body, properties(&record));
            confirms.push(sent.await.expect("it is sent"));
            if confirms.len() == WINDOW || n + 1 == RECORDS {
                for confirm in confirms.drain(..) {
                    let confirmed = confirm.await.expect("it is stored");
                    assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "it is routed");
                }
            }
        }
        RECORDS as u64
    })
    .await;
    println!("{tally:?}");
    tally.assert_hostile();
}

mod rabbitmq {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
    async fn twenty_thousand_hostile_records_are_all_accounted_for() {
        hostile_records(Version::V3_10).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
    async fn twenty_thousand_hostile_records_are_all_accounted_for_by_4_0() {
        hostile_records(Version::V4_0).await;
    }
}
