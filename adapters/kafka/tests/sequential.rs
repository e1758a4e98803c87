//! One publish awaited at a time never waits for a linger timer: it is as fast as the bare client.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use postrider_core::{BrokerUrl, Bytes, Connector, Env, Envelope, PublisherExt};
use postrider_kafka::{KafkaConnector, Naming};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

const EACH: u32 = 200;
const ROUNDS: usize = 5;
/// What the least is that is asked for, in messages a second.
const WANTED: f64 = 500.0;

struct Reports(mpsc::Sender<bool>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        // whoever counts is there as long as the producer
        let _ = self.0.send(result.is_ok());
    }
}

/// The fastest loop on the bare client with the same guarantee.
fn bare(producer: &BaseProducer<Reports>, reports: &mpsc::Receiver<bool>, topic: &str) -> f64 {
    let began = Instant::now();
    for _ in 0..EACH {
        producer.send(BaseRecord::to(topic).payload(&[7; 256]).key("k")).expect("there is room");
        let stored = loop {
            match reports.try_recv() {
                Ok(stored) => break stored,
                // it would wait for the whole time, also after the report has come
                Err(_) => producer.poll(Duration::ZERO),
            }
        };
        assert!(stored);
    }
    f64::from(EACH) / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_one_at_a_time_are_as_fast_as_the_bare_client_s() {
    let url = std::env::var("POSTRIDER_TEST_KAFKA_URL").expect("POSTRIDER_TEST_KAFKA_URL names a broker");
    let tenant = format!("seq-{:x}", Env::system().random());
    let parsed = BrokerUrl::parse(&format!("{url}?tenant={tenant}")).unwrap();
    let broker = KafkaConnector.connect(&parsed, Env::system()).await.expect("the broker answers");
    broker.declare("work").await.expect("it is declared");
    let (sender, reports) = mpsc::channel();
    let servers = parsed.hosts()[0].address(9092);
    let producer: BaseProducer<Reports> = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Reports(sender))
        .expect("a producer");
    let topic = Naming::new(Some(&tenant)).and_then(|naming| naming.topic("work")).expect("a good name");
    producer
        .client()
        .fetch_metadata(Some(&topic), Duration::from_secs(30))
        .expect("the topic is the one that postrider publishes to");
    let mut ratios = Vec::new();
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let floor = bare(&producer, &reports, &topic);
        let began = Instant::now();
        for _ in 0..EACH {
            let message = Envelope::builder(Bytes::from_static(&[7; 256])).key("k");
            broker.publish("work", message).await.expect("it is confirmed");
        }
        let ours = f64::from(EACH) / began.elapsed().as_secs_f64();
        println!("{ours:.0} a second beside {floor:.0} on the bare client");
        ratios.push(ours / floor);
        best = best.max(ours);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ROUNDS / 2];
    println!("at most {best:.0} a second, {median:.2} of the bare client in the median");
    assert!(best >= WANTED || median >= 0.9, "{best:.0} a second, {median:.2} of the bare client");
}
