//! What a topic's log does to a reader: retention, compaction, transactions, growth, deletion. `POSTRIDER_TEST_KAFKA_URL` names the
//! broker.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

#[allow(dead_code, reason = "not every helper is needed here")]
mod support;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postrider_conformance::{Controls, Settings};
use postrider_core::{
    Broker, BrokerUrl, Bytes, Channel, Confirmed, Connector, Delivery, Env, Envelope, ErrorKind, Group,
    GroupName, HealthState, Outgoing, PublishError, PublishOptions, Publisher as _, PublisherExt,
    RouteOptions, Router, Scope, Settlement, Signal, Start, SubscribeOptions, Subscriber, Subscription,
};
use postrider_kafka::{KafkaConnector, Naming};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use support::{PrivateBroker, address, shared_url, with_options};

/// How long a test waits for what must come. Nothing waits that long unless something is stuck.
const PATIENCE: Duration = Duration::from_mins(2);

fn tenant() -> String {
    format!("t{:x}", Env::system().random())
}

fn topic(tenant: &str, channel: &str) -> String {
    Naming::new(Some(tenant)).unwrap().topic(channel).unwrap()
}

async fn connect(tenant: &str, options: &str) -> Broker {
    connect_by("classic", tenant, options).await
}

async fn connect_by(protocol: &str, tenant: &str, options: &str) -> Broker {
    let mut settings = Settings::default();
    settings.tenant = tenant.to_owned();
    let url = format!("{}&{options}", with_options(&shared_url(), &settings, protocol));
    KafkaConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.expect("the broker answers")
}

fn options(channel: &str) -> SubscribeOptions {
    let group = Group::Named(GroupName::new("g").unwrap());
    SubscribeOptions::new(Channel::new(channel).unwrap(), group)
}

fn number_of(delivery: &Delivery) -> usize {
    std::str::from_utf8(delivery.envelope.payload()).unwrap().parse().unwrap()
}

/// The numbers of the next `count` messages, each acknowledged.
async fn numbers(subscription: &mut impl Subscription, count: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    let all = async {
        while numbers.len() < count {
            let mut deliveries = Vec::new();
            let max = NonZeroUsize::new(64).unwrap();
            if subscription.receive(max, &mut deliveries).await.expect("it goes on") == Signal::Deliveries {
                for delivery in deliveries {
                    numbers.push(number_of(&delivery));
                    delivery.claim.settle(Settlement::Ack).expect("the claim holds");
                }
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await.is_ok();
    assert!(in_time, "within {PATIENCE:?} only {numbers:?} came");
    numbers
}

/// Waits until it comes true.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn plain() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address(&shared_url()));
    config
}

/// How many partitions of the topic have a leader.
fn led(client: &BaseProducer, topic: &str) -> usize {
    let metadata = client.client().fetch_metadata(Some(topic), PATIENCE).expect("the broker answers");
    let all = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
    all.filter(|partition| partition.leader() >= 0).count()
}

/// Adds partitions until there are four, and lets another program write 199 numbers, in turn to each, at once.
async fn grow_and_write(topic: &str) {
    let admin: AdminClient<DefaultClientContext> = plain().create().expect("an admin client");
    let grown = admin.create_partitions(&[NewPartitions::new(topic, 4)], &AdminOptions::new()).await;
    grown.expect("the broker answers")[0].as_ref().expect("it grows");
    let producer: BaseProducer = plain().create().expect("a plain producer");
    until("the new partitions have leaders", async || led(&producer, topic) == 4).await;
    for n in 0..199 {
        let text = n.to_string();
        let record = BaseRecord::<(), _>::to(topic).partition(n % 4).payload(&text);
        producer.send(record).map_err(|(error, _)| error).expect("it is taken");
    }
    producer.flush(PATIENCE).expect("all are stored");
}

fn latest(mut options: SubscribeOptions) -> SubscribeOptions {
    options.start = Start::Latest;
    options
}

/// A topic of one partition with a message that is older than any group.
async fn with_an_old_message(protocol: &str, tenant: &str) -> Broker {
    let options = "partitions=1&native.topic.metadata.refresh.interval.ms=3000";
    let broker = connect_by(protocol, tenant, options).await;
    broker.declare("c").await.expect("it is declared");
    broker.publish("c", Envelope::builder(Bytes::from("1000"))).await.expect("it is confirmed");
    broker
}

/// All 199, none twice, and nothing is left.
async fn assert_all_of_199(subscription: &mut impl Subscription) {
    let mut all = numbers(subscription, 199).await;
    all.sort_unstable();
    assert_eq!(all, (0..199).collect::<Vec<_>>());
    let control = subscription.control();
    until("the lag is 0", async || control.lag().await.is_ok_and(|lag| lag == 0)).await;
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_partition_that_comes_while_a_late_group_runs_is_read_from_its_first_message() {
    for protocol in ["classic", "consumer"] {
        let tenant = tenant();
        let broker = with_an_old_message(protocol, &tenant).await;
        let mut subscription = broker.subscribe(&latest(options("c"))).await.expect("it subscribes");
        grow_and_write(&topic(&tenant, "c")).await;
        assert_all_of_199(&mut subscription).await;
    }
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_partition_that_comes_while_a_late_group_is_away_is_read_from_its_first_message() {
    let tenant = tenant();
    let broker = with_an_old_message("classic", &tenant).await;
    let tomorrow = Start::Time(broker.env().wall_ms() + DAY_MS);
    // one that was begun by `latest`, by another option that is changed meanwhile, by a time that no message has
    let cases = [
        ("c", Start::Latest, Start::Latest),
        ("d", Start::Earliest, Start::Latest),
        ("e", tomorrow, tomorrow),
    ];
    for (channel, start, later) in cases {
        broker.declare(channel).await.expect("it is declared");
        let mut first = options(channel);
        first.start = start;
        let mut subscription = broker.subscribe(&first).await.expect("it subscribes");
        subscription.close().await.expect("it leaves");
        grow_and_write(&topic(&tenant, channel)).await;
        let mut second = options(channel);
        second.start = later;
        let mut subscription = broker.subscribe(&second).await.expect("it subscribes");
        assert_all_of_199(&mut subscription).await;
        subscription.close().await.expect("it leaves");
    }
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_partition_that_comes_while_a_reader_without_a_group_runs_is_read_from_its_first_message() {
    let tenant = tenant();
    let broker = with_an_old_message("classic", &tenant).await;
    let alone = latest(SubscribeOptions::new(Channel::new("c").unwrap(), Group::Ephemeral));
    let mut subscription = broker.subscribe(&alone).await.expect("it subscribes");
    grow_and_write(&topic(&tenant, "c")).await;
    assert_all_of_199(&mut subscription).await;
}

/// Makes a topic with these settings.
async fn make(topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = plain().create().expect("an admin client");
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let made = admin.create_topics([&new], &AdminOptions::new()).await;
    made.expect("the broker answers")[0].as_ref().expect("it is made");
    let producer: BaseProducer = plain().create().expect("a plain producer");
    until("the topic has a leader", async || led(&producer, topic) == 1).await;
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_message_without_a_key_to_a_compacted_topic_fails_alone() {
    let tenant = tenant();
    let topic = topic(&tenant, "c");
    make(&topic, &[("cleanup.policy", "compact")]).await;
    // what is published together goes in one batch
    let broker = connect(&tenant, "declare=none&native.linger.ms=200").await;
    let number = |n: usize| Envelope::builder(Bytes::from(n.to_string()));
    let sent = (0..30).map(|n| if n % 10 == 5 { number(n) } else { number(n).key(format!("k{n}")) });
    let confirmed = broker.publish_all("c", sent).await;
    for (n, outcome) in confirmed.into_iter().enumerate() {
        match outcome {
            Ok(_) => assert_ne!(n % 10, 5),
            Err(PublishError::Failed(error)) => {
                assert_eq!(n % 10, 5, "{error}");
                assert!(error.to_string().contains("a compacted topic needs a key"), "{error}");
            }
            Err(other) => panic!("{n}: {other}"),
        }
    }
    let mut subscription = broker.subscribe(&options("c")).await.expect("it subscribes");
    let stored: Vec<_> = (0..30).filter(|n| n % 10 != 5).collect();
    assert_eq!(numbers(&mut subscription, stored.len()).await, stored);
    // a topic that becomes compacted is noticed by the first message that the broker refuses
    let plain_topic = self::topic(&tenant, "d");
    make(&plain_topic, &[]).await;
    broker.publish("d", number(1)).await.expect("it needs no key");
    let admin: AdminClient<DefaultClientContext> = plain().create().expect("an admin client");
    let mut compacted = AlterConfig::new(ResourceSpecifier::Topic(&plain_topic));
    compacted = compacted.set("cleanup.policy", "compact");
    let altered = admin.alter_configs([&compacted], &AdminOptions::new()).await;
    altered.expect("the broker answers")[0].as_ref().expect("it is altered");
    until("it needs a key", async || {
        let outcome = broker.publish("d", number(2)).await;
        outcome.is_err_and(|error| {
            !error.is_unknown() && error.to_string().contains("a compacted topic needs a key")
        })
    })
    .await;
    let again = broker.publish("d", number(3)).await.expect_err("it needs a key");
    assert!(again.to_string().contains("set one with `key`"), "refused before it was sent: {again}");
    broker.publish("d", number(4).key("k")).await.expect("it has one");
}

/// For each of these, three records in a transaction that is committed or aborted.
fn transactions(topic: &str, committed: &[bool]) {
    let mut config = plain();
    let id = format!("{topic}-writer");
    let producer: BaseProducer = config.set("transactional.id", id).create().expect("a plain producer");
    producer.init_transactions(PATIENCE).expect("it may begin");
    for committed in committed {
        producer.begin_transaction().expect("it begins");
        for n in 0..3 {
            let text = n.to_string();
            let record = BaseRecord::<(), _>::to(topic).payload(&text);
            producer.send(record).map_err(|(error, _)| error).expect("it is taken");
        }
        producer.flush(PATIENCE).expect("all are stored");
        if *committed {
            producer.commit_transaction(PATIENCE).expect("it is committed");
        } else {
            producer.abort_transaction(PATIENCE).expect("it is aborted");
        }
    }
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn marks_of_transactions_and_what_they_undid_are_no_lag() {
    let tenant = tenant();
    let broker = connect(&tenant, "partitions=1").await;
    broker.declare("c").await.expect("it is declared");
    let handled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&handled);
    let handler = move |_: Envelope| {
        counted.fetch_add(1, SeqCst);
        async {}
    };
    let router = || Router::new().route(RouteOptions::new("c", "g").handle(handler.clone()));
    let mut service = router().start(&broker).await.expect("it starts");
    let topic = topic(&tenant, "c");
    let write = async |committed: &'static [bool]| {
        let topic = topic.clone();
        tokio::task::spawn_blocking(move || transactions(&topic, committed)).await.expect("they are written");
    };
    for round in 1..=2 {
        write(&[true, false]).await;
        tokio::time::timeout(PATIENCE, service.idle()).await.expect("nothing is left to do");
        assert_eq!(handled.load(SeqCst), 3 * round);
    }
    // a member that comes later finds nothing but offsets without a message
    service.stop(PATIENCE).await.expect("it stops");
    write(&[false, false]).await;
    service = router().start(&broker).await.expect("it starts");
    tokio::time::timeout(PATIENCE, service.idle()).await.expect("nothing is left to do");
    assert_eq!(handled.load(SeqCst), 6);
    // what is written down says so, too: for other members, and for the command line
    let scope = Scope::Everything;
    until("the inventory shows no lag", async || {
        let inventory = broker.inventory(&scope).await.expect("the broker answers");
        let channel = inventory.channels.iter().find(|channel| channel.channel == "c").expect("it is there");
        channel.groups.iter().any(|group| group.lag == Some(0))
    })
    .await;
    service.stop(PATIENCE).await.expect("it stops");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_channel_whose_name_collides_with_another_is_refused_with_both_names() {
    let tenant = tenant();
    let broker = connect(&tenant, "partitions=1").await;
    broker.declare("x.eu").await.expect("it is declared");
    let error = broker.declare("x_eu").await.expect_err("to Kafka they are the same");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{text}");
    assert!(text.contains(&topic(&tenant, "x.eu")) && text.contains(&topic(&tenant, "x_eu")), "{text}");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_record_whose_header_has_no_name_is_handled_without_that_header() {
    let tenant = tenant();
    let broker = connect(&tenant, "partitions=1").await;
    broker.declare("c").await.expect("it is declared");
    let producer: BaseProducer = plain().create().expect("a plain producer");
    let header = |key, value| Header { key, value: Some(value) };
    let headers = OwnedHeaders::new().insert(header("", "lost")).insert(header("kept", "here"));
    let topic = topic(&tenant, "c");
    let record = BaseRecord::<(), _>::to(&topic).payload("7").headers(headers);
    producer.send(record).map_err(|(error, _)| error).expect("it is taken");
    producer.flush(PATIENCE).expect("it is stored");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let route = RouteOptions::new("c", "g").handle(move |envelope: Envelope| {
        let all = envelope.headers().iter().map(|(name, value)| format!("{name}={value}"));
        kept.lock().unwrap().extend(all);
        async {}
    });
    let service = Router::new().route(route).start(&broker).await.expect("it starts");
    tokio::time::timeout(PATIENCE, service.idle()).await.expect("nothing is left to do");
    let report = service.stop(PATIENCE).await.expect("it stops");
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (1, 0));
    assert_eq!(*seen.lock().unwrap(), ["kept=here", "postrider-unreadable-headers=1"]);
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_topic_that_is_deleted_is_told_by_health_and_never_idle_until_it_is_made_again() {
    let tenant = tenant();
    let broker = connect(&tenant, "partitions=2").await;
    let handled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&handled);
    let route = RouteOptions::new("c", "g").handle(move |_: Envelope| {
        counted.fetch_add(1, SeqCst);
        async {}
    });
    let service = Router::new().route(route).start(&broker).await.expect("it starts");
    broker.publish("c", Envelope::builder(Bytes::from("1"))).await.expect("it is confirmed");
    tokio::time::timeout(PATIENCE, service.idle()).await.expect("nothing is left to do");
    let topic = topic(&tenant, "c");
    let admin: AdminClient<DefaultClientContext> = plain().create().expect("an admin client");
    let deleted = admin.delete_topics(&[&topic], &AdminOptions::new()).await.expect("the broker answers");
    deleted[0].as_ref().expect("it is deleted");
    until("health says so", async || {
        let health = service.health();
        health.routes[0].health.state == HealthState::Down
            && health.routes[0].health.reason.as_ref().is_some_and(|reason| reason.contains(&topic))
    })
    .await;
    // what `idle` asks for
    let name = service.health().routes[0].route.clone();
    let lag = service.control(&name).expect("the route is there").lag().await;
    assert!(lag.is_err_and(|error| error.kind() == ErrorKind::NotFound));
    until("it is made again and handles", async || {
        let _ = broker.declare("c").await;
        let _ = broker.publish("c", Envelope::builder(Bytes::from("2"))).await;
        handled.load(SeqCst) > 1
    })
    .await;
    until("health says so", async || service.health().routes[0].health.state <= HealthState::Standby).await;
    tokio::time::timeout(PATIENCE, service.idle()).await.expect("nothing is left to do");
    service.stop(PATIENCE).await.expect("it stops");
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Publishes a message with a timestamp that is set on purpose.
async fn publish_at(broker: &Broker, channel: &str, timestamp_ms: u64) -> Confirmed {
    let mut options = PublishOptions::default();
    options.native.push(("timestamp".into(), timestamp_ms.to_string()));
    let envelope = Envelope::builder(Bytes::from("0")).build(broker.env()).unwrap();
    broker.send(Outgoing::new(channel, envelope).with(options)).await.await
}

// the proxy in front of the broker runs beside requests that block
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn retention_goes_by_when_a_message_was_published_and_not_by_its_own_time() {
    let private = PrivateBroker::start_with("classic", |_, _| {
        format!(
            "log.retention.ms={DAY_MS}\nlog.retention.check.interval.ms=200\nlog.initial.task.delay.ms=200\n"
        )
    })
    .await;
    let mut settings = Settings::default();
    settings.tenant = tenant();
    let tenant = settings.tenant.clone();
    let broker = private.connect(settings).await;
    broker.declare("old").await.expect("it is declared");
    broker.declare("control").await.expect("it is declared");
    let now = broker.env().wall_ms();
    for n in 0..10 {
        let old = Envelope::builder(Bytes::from(n.to_string())).key("k").time_ms(now - 10 * DAY_MS);
        broker.publish("old", old).await.expect("it is confirmed");
    }
    let early = Envelope::builder(Bytes::from("10")).key("k").time_ms(now + 2 * 60 * 60 * 1000);
    broker.publish("old", early).await.expect("its time is data: the broker doesn't judge it");
    let refused = publish_at(&broker, "control", now + 2 * 60 * 60 * 1000).await;
    assert!(matches!(refused, Err(PublishError::Failed(_))), "the broker judges the timestamp: {refused:?}");

    // a message whose timestamp is old is removed: when the second one is, all logs have been looked through since the first one was
    let address = private.proxy().address().to_string();
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", address).create().expect("a plain consumer");
    for _ in 0..2 {
        let receipt = publish_at(&broker, "control", now - 10 * DAY_MS).await.expect("it is confirmed");
        let removed = async || {
            let edges = client.fetch_watermarks(&topic(&tenant, "control"), receipt.shard as i32, PATIENCE);
            edges.expect("the broker answers").0 as u64 > receipt.position
        };
        until("retention has run", removed).await;
    }
    let mut subscription = broker.subscribe(&options("old")).await.expect("it subscribes");
    assert_eq!(numbers(&mut subscription, 11).await, (0..11).collect::<Vec<_>>());
    subscription.close().await.expect("it leaves");
}
