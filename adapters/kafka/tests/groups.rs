//! What a Kafka group's members see when partitions change hands, retention is faster than they are, or topics differ from what
//! was asked for; and that nothing that was confirmed is missing. `POSTRIDER_TEST_KAFKA_URL` names the broker.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

#[allow(dead_code, reason = "private brokers are for the conformance suite")]
mod support;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use postrider_conformance::Settings;
use postrider_core::{
    Address, Broker, BrokerUrl, Bytes, Channel, Connector, Declare, Delivery, Env, Envelope, EnvelopeBuilder,
    ErrorKind, Group, GroupName, Outgoing, PublishError, PublishOptions, Publisher as _, PublisherExt,
    Settlement, Signal, Start, SubscribeOptions, Subscriber, Subscription,
};
use postrider_kafka::{KafkaConnector, Naming};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use support::{address, shared_url, with_options};

/// How long a test waits for what must come. Nothing waits that long unless something is stuck.
const PATIENCE: Duration = Duration::from_mins(1);

fn tenant() -> String {
    format!("t{:x}", Env::system().random())
}

async fn connect(tenant: &str, options: &str) -> Broker {
    let mut settings = Settings::default();
    settings.tenant = tenant.to_owned();
    let url = format!("{}&{options}", with_options(&shared_url(), &settings, "classic"));
    KafkaConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.expect("the broker answers")
}

fn options(channel: &str) -> SubscribeOptions {
    let group = Group::Named(GroupName::new("g").unwrap());
    SubscribeOptions::new(Channel::new(channel).unwrap(), group)
}

fn number(n: usize) -> EnvelopeBuilder {
    Envelope::builder(Bytes::from(n.to_string()))
}

fn number_of(delivery: &Delivery) -> usize {
    std::str::from_utf8(delivery.envelope.payload()).unwrap().parse().unwrap()
}

/// Deliveries and signals, until `enough` says so.
async fn receive(
    subscription: &mut impl Subscription,
    mut enough: impl FnMut(&[Delivery], &[Signal]) -> bool,
) -> (Vec<Delivery>, Vec<Signal>) {
    let (mut deliveries, mut signals) = (Vec::new(), Vec::new());
    let all = async {
        while !enough(&deliveries, &signals) {
            let max = NonZeroUsize::new(64).unwrap();
            match subscription.receive(max, &mut deliveries).await.expect("it goes on") {
                Signal::Deliveries => {}
                other => signals.push(other),
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await.is_ok();
    assert!(in_time, "within {PATIENCE:?} only {} deliveries and {signals:?} came", deliveries.len());
    (deliveries, signals)
}

/// The channel's partitions that are to be given up; those of the group's own topic come and go by themselves.
fn revoked(signals: &[Signal]) -> Vec<postrider_core::ClaimId> {
    let claims = signals.iter().flat_map(|signal| match signal {
        Signal::Revoking(claims) => claims.clone(),
        _ => Vec::new(),
    });
    claims.filter(|claim| claim.shard < 2).collect()
}

/// Two partitions with five messages each, all of them out at the first member; then a second one joins.
async fn two_members(
    options_of_first: &str,
) -> (postrider_core::BoxSubscription, Vec<Delivery>, tokio::task::JoinHandle<postrider_core::BoxSubscription>)
{
    let tenant = tenant();
    let broker = connect(&tenant, &format!("partitions=2&{options_of_first}")).await;
    broker.declare("c").await.expect("it is declared");
    // keyless messages take each partition in turn
    for outcome in broker.publish_all("c", (0..10).map(number)).await {
        outcome.expect("it is confirmed");
    }
    let mut first = broker.subscribe(&options("c")).await.expect("it subscribes");
    let (held, _) = receive(&mut first, |deliveries, _| deliveries.len() == 10).await;
    let other = connect(&tenant, "").await;
    let second = tokio::spawn(async move { other.subscribe(&options("c")).await.expect("it subscribes") });
    (first, held, second)
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_revoked_partition_is_handed_over_when_its_messages_are_settled() {
    let (mut first, held, second) = two_members("release_timeout=30s").await;
    let (_, signals) = receive(&mut first, |_, signals| !revoked(signals).is_empty()).await;
    let claims = revoked(&signals);
    assert_eq!(claims.len(), 1, "one of two");
    let (going, staying): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|delivery| claims.contains(&delivery.claim_id()));
    let mut numbers: Vec<_> = going.iter().map(number_of).collect();
    let last = numbers.split_off(3);
    for (n, delivery) in going.into_iter().enumerate() {
        let how = if n < 3 { Settlement::Ack } else { Settlement::GiveBack(None) };
        delivery.claim.settle(how).expect("the claim holds while it is revoked");
    }
    first.release(&claims).await.expect("it is released");
    let mut second = second.await.expect("it has joined");
    let (rest, _) = receive(&mut second, |deliveries, _| deliveries.len() == last.len()).await;
    assert_eq!(rest.iter().map(number_of).collect::<Vec<_>>(), last, "the rest, in order, and nothing twice");
    for delivery in staying {
        delivery.claim.settle(Settlement::Ack).expect("what stays is untouched");
    }
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_late_result_of_a_partition_that_went_and_came_back_changes_nothing() {
    let (mut first, held, second) = two_members("release_timeout=500ms").await;
    let lost = |signals: &[Signal]| signals.iter().any(|signal| matches!(signal, Signal::Lost(_)));
    let (_, signals) = receive(&mut first, |_, signals| lost(signals)).await;
    let claims = revoked(&signals);
    assert_eq!(claims.len(), 1, "announced before it was taken");
    let mut second = second.await.expect("it has joined");
    second.close().await.expect("it leaves");
    let back = |signals: &[Signal]| {
        signals.iter().any(|signal| matches!(signal, Signal::Assigned(now) if now[0].shard == claims[0].shard && now[0].epoch > claims[0].epoch))
    };
    receive(&mut first, |_, signals| back(signals)).await;
    let (late, _staying): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|delivery| claims.contains(&delivery.claim_id()));
    assert_eq!(late.len(), 5);
    for delivery in late {
        delivery.claim.settle(Settlement::Ack).expect_err("its claim has ended");
    }
    let (again, _) = receive(&mut first, |deliveries, _| deliveries.len() == 5).await;
    assert!(again.iter().all(|delivery| delivery.claim_id().shard == claims[0].shard), "all come again");
}

/// Removes the messages below `offset`, as retention would.
async fn retain_from(topic: &str, offset: i64) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", address(&shared_url())).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.expect("they are deleted");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn what_retention_removed_is_told_as_a_gap() {
    let tenant = tenant();
    let topic = Naming::new(Some(&tenant)).unwrap().topic("c").unwrap();
    let broker = connect(&tenant, "partitions=1").await;
    broker.declare("c").await.expect("it is declared");
    for outcome in broker.publish_all("c", (0..20).map(number)).await {
        outcome.expect("it is confirmed");
    }
    let mut subscription = broker.subscribe(&options("c")).await.expect("it subscribes");
    let (read, _) = receive(&mut subscription, |deliveries, _| deliveries.len() >= 5).await;
    for delivery in read.into_iter().take(5) {
        delivery.claim.settle(Settlement::Ack).expect("the claim holds");
    }
    subscription.close().await.expect("it leaves");
    // while the group is stopped
    retain_from(&topic, 12).await;
    let mut subscription = broker.subscribe(&options("c")).await.expect("it subscribes");
    let (read, signals) = receive(&mut subscription, |deliveries, _| deliveries.len() == 8).await;
    assert!(signals.contains(&Signal::Gap(postrider_core::Gap::new(0, 5, 12))), "{signals:?}");
    assert_eq!(read.iter().map(number_of).collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn retention_that_overtakes_a_reader_is_told_as_a_gap() {
    let tenant = tenant();
    let topic = Naming::new(Some(&tenant)).unwrap().topic("c").unwrap();
    let broker = connect(&tenant, "partitions=1").await;
    broker.declare("c").await.expect("it is declared");
    for _ in 0..20 {
        let body = Envelope::builder(Bytes::from(vec![b'x'; 500_000]));
        broker.publish("c", body).await.expect("it is confirmed");
    }
    // a narrow window, so that the client reads no more ahead than its queue of 1 MiB, a fetch, and 4 MiB beside
    let mut narrow = options("c");
    narrow.window.bytes = 600_000;
    let mut subscription = broker.subscribe(&narrow).await.expect("it subscribes");
    let (mut held, _) = receive(&mut subscription, |deliveries, _| deliveries.len() == 1).await;
    retain_from(&topic, 18).await;
    let (mut positions, mut signals) = (Vec::new(), Vec::new());
    while positions.last() != Some(&19) {
        for delivery in held {
            positions.push(delivery.origin.position);
            delivery.claim.settle(Settlement::Ack).expect("the claim holds");
        }
        let more = receive(&mut subscription, |deliveries, _| !deliveries.is_empty()).await;
        held = more.0;
        signals.extend(more.1);
        let behind = held.iter().any(|delivery| delivery.origin.position >= 18);
        let told = signals.iter().any(|signal| matches!(signal, Signal::Gap(_)));
        assert!(told || !behind, "the gap is told before anything from behind it");
        if let Some(last) = held.last().filter(|last| last.origin.position == 19) {
            positions.push(last.origin.position);
        }
    }
    let gaps = signals.iter().filter_map(|signal| match signal {
        Signal::Gap(gap) => Some((gap.from, gap.to)),
        _ => None,
    });
    let gaps: Vec<_> = gaps.collect();
    let before = positions.iter().filter(|position| **position < 18).count() as u64;
    assert!(before < 18, "the client had read everything ahead");
    assert_eq!(gaps, [(before, 18)], "{positions:?}");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_reader_without_a_group_can_be_moved() {
    let broker = connect(&tenant(), "partitions=2").await;
    broker.declare("c").await.expect("it is declared");
    for outcome in broker.publish_all("c", (0..20).map(number)).await {
        outcome.expect("it is confirmed");
    }
    let mut alone = SubscribeOptions::new(Channel::new("c").unwrap(), Group::Ephemeral);
    alone.start = Start::Earliest;
    let mut subscription = broker.subscribe(&alone).await.expect("it subscribes");
    receive(&mut subscription, |deliveries, _| deliveries.len() == 20).await;
    subscription.control().seek(Start::Earliest).await.expect("it is moved");
    let (again, _) = receive(&mut subscription, |deliveries, _| deliveries.len() == 20).await;
    assert_eq!(again.iter().map(number_of).collect::<BTreeSet<_>>(), (0..20).collect());
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn what_was_confirmed_on_a_new_topic_is_there() {
    // a topic that was made a moment ago refuses its first requests while it accepts later ones
    let tenant = tenant();
    for round in 0..5 {
        let broker = connect(&tenant, "partitions=4").await;
        let channel = format!("c{round}");
        broker.declare(&channel).await.expect("it is declared");
        let sent = (0..400).map(|n| number(n).key(format!("k{}", n % 16)));
        let confirmed = broker.publish_all(&*channel, sent).await;
        assert!(confirmed.iter().all(Result::is_ok));
        let mut subscription = broker.subscribe(&options(&channel)).await.expect("it subscribes");
        let (read, _) = receive(&mut subscription, |deliveries, _| deliveries.len() == 400).await;
        let numbers: BTreeSet<_> = read.iter().map(number_of).collect();
        assert_eq!(numbers, (0..400).collect());
    }
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn topics_are_checked_and_never_altered() {
    let tenant = tenant();
    let check = connect(&tenant, "declare=check").await;
    let error = check.declare("c").await.expect_err("it isn't there");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let create = connect(&tenant, "partitions=3").await;
    create.declare("c").await.expect("it is made");
    check.declare("c").await.expect("it is there");
    let mut more = options("c");
    more.partitions = Some(4);
    let error = create.declare_all(&[Declare::Group(more)]).await.expect_err("it has fewer");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{text}");
    assert!(text.contains("expected: at least 4") && text.contains("found: 3"), "{text}");
    let none = connect(&tenant, "declare=none").await;
    none.declare("elsewhere").await.expect("nothing is asked for");
    none.publish("elsewhere", number(1)).await.expect_err("and nothing is made");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn many_that_publish_to_a_topic_that_isnt_there_are_refused_by_one_asking() {
    let broker = connect(&tenant(), "declare=none").await;
    let mut all = tokio::task::JoinSet::new();
    for n in 0..200 {
        let broker = broker.clone();
        all.spawn(async move { broker.publish("nowhere", number(n)).await });
    }
    // how often the broker is asked, a test of `topics.rs` counts
    let all = tokio::time::timeout(PATIENCE, all.join_all()).await.expect("none is left waiting");
    for published in all {
        let Err(PublishError::Failed(error)) = published else { panic!("there is no such topic") };
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_group_s_topic_without_a_partition_for_the_wait_refuses_a_retry() {
    let tenant = tenant();
    let topic = Naming::new(Some(&tenant)).unwrap().redrive("c", "g").unwrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", address(&shared_url())).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let made = admin.create_topics([&new], &AdminOptions::new()).await.expect("the broker answers");
    made[0].as_ref().expect("it is made");
    let shown = || {
        let found = admin.inner().fetch_metadata(Some(&topic), PATIENCE).expect("the broker answers");
        found.topics()[0].partitions().first().is_some_and(|partition| partition.leader() >= 0)
    };
    let deadline = Instant::now() + PATIENCE;
    while !shown() {
        assert!(Instant::now() < deadline, "the topic isn't shown within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let broker = connect(&tenant, "declare=none").await;
    let send = async |delay| {
        let mut options = PublishOptions::default();
        options.delay = delay;
        let envelope = number(1).build(broker.env()).unwrap();
        let outgoing = Outgoing::new(Address::to_group("c", "g"), envelope).with(options);
        tokio::time::timeout(PATIENCE, async { broker.send(outgoing).await.await }).await.expect("in time")
    };
    let Err(PublishError::Failed(error)) = send(Some(Duration::from_secs(1))).await else {
        panic!("there is one partition, and the wait has another");
    };
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{text}");
    assert!(text.contains("expected: at least 2") && text.contains("found: 1"), "{text}");
    send(None).await.expect("what doesn't wait has the partition that there is");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_claim_time_out_that_the_broker_does_not_allow_is_refused_by_name() {
    let broker = connect(&tenant(), "claim_timeout=100ms").await;
    let error = broker.subscribe(&options("c")).await.err().expect("the broker's bound is 500 ms");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("claim_timeout"), "{error}");
}

#[tokio::test]
#[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
async fn a_group_that_starts_late_reads_what_comes() {
    let broker = connect(&tenant(), "partitions=4").await;
    broker.declare("c").await.expect("it is declared");
    broker.publish("c", number(1).key("a")).await.expect("it is confirmed");
    let mut late = options("c");
    late.start = Start::Latest;
    let first = broker.subscribe(&late).await.expect("it subscribes");
    // gone before it has read anything; its place is kept all the same
    drop(first);
    broker.publish("c", number(2).key("a")).await.expect("it is confirmed");
    let mut second = broker.subscribe(&late).await.expect("it subscribes");
    let (read, _) = receive(&mut second, |deliveries, _| !deliveries.is_empty()).await;
    assert_eq!(read.iter().map(number_of).collect::<Vec<_>>(), [2]);
}
