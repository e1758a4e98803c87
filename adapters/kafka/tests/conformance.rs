//! The conformance suite on a real Kafka broker, by both group protocols: `POSTRIDER_TEST_KAFKA_URL` names it (`cargo xtask
//! test` sets it). Cases that kill, pause or cut off the broker have one of their own, started by the project's script.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use postrider_conformance::{Controls, Doomed, Factory, Revocable, Settings, free_port};
use postrider_core::{BoxFuture, Broker, BrokerUrl, Bytes, Connector, Env, Error};
use postrider_kafka::{KafkaConnector, Naming};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use support::{PrivateBroker, address, shared_url, with_options};

/// Kafka by one of its group protocols.
struct Kafka(&'static str);

async fn connect(url: &str) -> Result<Broker, Error> {
    KafkaConnector.connect(&BrokerUrl::parse(url)?, Env::system()).await
}

fn topic(settings: &Settings, channel: &str) -> String {
    Naming::new(Some(&settings.tenant)).and_then(|naming| naming.topic(channel)).expect("a good name")
}

fn plain() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address(&shared_url()));
    config
}

fn admin() -> AdminClient<DefaultClientContext> {
    plain().create().expect("an admin client")
}

/// Fewer than a topic has by itself: a thousand topics are made here, and a broker on a small machine feels each partition.
const PARTITIONS: i32 = 4;

impl Factory for Kafka {
    fn adapter(&self) -> &'static str {
        "kafka"
    }

    fn variant(&self) -> &'static str {
        self.0
    }

    fn channel_partitions(&self) -> Option<u32> {
        Some(PARTITIONS as u32)
    }

    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let url = format!("{}&partitions={PARTITIONS}", with_options(&shared_url(), &settings, self.0));
            connect(&url).await.expect("the broker answers")
        })
    }

    fn write_foreign<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: Bytes,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let topic = topic(settings, channel);
            let mut all = OwnedHeaders::new();
            for (key, value) in headers {
                all = all.insert(Header { key, value: Some(*value) });
            }
            let large = plain().set("message.max.bytes", "1048588").create();
            let producer: BaseProducer = large.expect("a plain producer");
            let record: BaseRecord<'_, (), [u8]> = BaseRecord::to(&topic).payload(&body[..]).headers(all);
            producer.send(record).map_err(|(e, _)| e).expect("it is taken");
            producer.flush(Duration::from_mins(1)).expect("it is stored");
        })
    }

    fn foreign_header_bytes(&self) -> usize {
        // a broker's default for a whole record is 1,048,588 bytes
        1_048_300
    }

    fn delete<'a>(&'a self, settings: &'a Settings, what: Doomed<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Doomed::Channel(channel) = what else {
                return false; // a group that has members isn't deleted
            };
            let topic = topic(settings, channel);
            let deleted = admin().delete_topics(&[&topic], &AdminOptions::new()).await.expect("it answers");
            assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
            true
        })
    }

    fn retain_from<'a>(
        &'a self,
        settings: &'a Settings,
        channel: &'a str,
        count: u64,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let topic = topic(settings, channel);
            let producer: BaseProducer = plain().create().expect("a plain producer");
            let mut list = TopicPartitionList::new();
            for partition in 0..PARTITIONS {
                let edges = producer.client().fetch_watermarks(&topic, partition, Duration::from_mins(1));
                let (low, high) = edges.expect("the broker answers");
                let from = Offset::Offset((low + count as i64).min(high));
                list.add_partition_offset(&topic, partition, from).expect("a good offset");
            }
            admin().delete_records(&list, &AdminOptions::new()).await.expect("they are deleted");
            true
        })
    }

    fn controls(&self) -> BoxFuture<'_, Option<Arc<dyn Controls>>> {
        Box::pin(async { Some(Arc::new(PrivateBroker::start(self.0).await) as Arc<dyn Controls>) })
    }

    fn connect_to_nothing(&self) -> Option<BoxFuture<'_, Error>> {
        Some(Box::pin(async {
            let port = free_port();
            let url = format!("kafka://ann:s3cret@127.0.0.1:{port}?connect_timeout=2s");
            connect(&url).await.expect_err("nobody is there")
        }))
    }

    fn wrong_credentials(&self) -> BoxFuture<'_, Option<Error>> {
        Box::pin(async {
            let account = Account::open(self.0, "right").await;
            connect(&account.url("right")).await.expect("the right ones are taken");
            Some(connect(&account.url("s3cret")).await.expect_err("the wrong ones are not"))
        })
    }

    fn revocable(&self) -> BoxFuture<'_, Option<Arc<dyn Revocable>>> {
        Box::pin(async {
            let account = Account::open(self.0, "s3cret").await;
            Some(Arc::new(account) as Arc<dyn Revocable>)
        })
    }
}

/// A broker whose clients have an account, for which it takes one password.
struct Account {
    broker: PrivateBroker,
    port: u16,
    protocol: &'static str,
}

impl Account {
    async fn open(protocol: &'static str, password: &'static str) -> Self {
        let port = free_port();
        let broker = PrivateBroker::start_with(protocol, Self::lines(port, password)).await;
        Self { broker, port, protocol }
    }

    fn lines(sasl: u16, password: &'static str) -> impl Fn(u16, u16) -> String {
        move |port, controller| {
            let listeners = format!("PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl}");
            let login = format!(
                "org.apache.kafka.common.security.plain.PlainLoginModule required user_ann=\"{password}\";"
            );
            format!(
                "listeners={listeners},CONTROLLER://127.0.0.1:{controller}\nadvertised.listeners={listeners}\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT\n\
                 sasl.enabled.mechanisms=PLAIN\nlistener.name.sasl_plaintext.plain.sasl.jaas.config={login}\n"
            )
        }
    }

    fn url(&self, password: &str) -> String {
        format!("kafka://ann:{password}@127.0.0.1:{}", self.port)
    }

    /// From now on it takes another password alone. Its clients come anew, and show the one that they have.
    async fn take(&self, password: &'static str) {
        self.broker.restart(Self::lines(self.port, password)).await;
    }
}

impl Revocable for Account {
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let url = with_options(&self.url("s3cret"), &settings, self.protocol);
            connect(&url).await.expect("the account is open")
        })
    }

    fn revoke(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.take("right"))
    }

    fn restore(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.take("s3cret"))
    }
}

mod classic {
    use super::Kafka;

    postrider_conformance::conformance!(
        Kafka("classic"),
        ignore = "needs a Kafka broker: cargo xtask test --only kafka"
    );
}

mod consumer {
    use super::Kafka;

    postrider_conformance::conformance!(
        Kafka("consumer"),
        ignore = "needs a Kafka broker: cargo xtask test --only kafka"
    );
}
