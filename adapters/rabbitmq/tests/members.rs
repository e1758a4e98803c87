//! What members of a group share, and what an operator may do under them: on the shared broker.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::ConnectionProperties;
use lapin::options::QueueDeleteOptions;
use postrider_conformance::proxy::Proxy;
use postrider_core::{
    Backoff, BreakerPolicy, Broker, BrokerUrl, Bytes, Capability, Channel, Connector, Declare, Delivery, Env,
    Envelope, ErrorKind, Group, GroupName, HealthState, Message, Meta, Order, Origin, PublisherExt, Retry,
    RouteOptions, Router, Settlement, Signal, SubscribeOptions, Subscriber, Subscription, Suspect,
    codec::Json,
};
use postrider_rabbitmq::{Naming, RabbitmqConnector};

use support::{PrivateBroker, Version};

/// How long a test waits for what must come. Nothing waits that long unless something is stuck.
const PATIENCE: Duration = Duration::from_mins(1);

fn unique(prefix: &str) -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{prefix}{:x}-{:x}", std::process::id(), time.as_nanos())
}

async fn connect(options: &str) -> Broker {
    let url = Version::V3_10.shared_url();
    let url = format!("{url}{}{options}", if url.contains('?') { '&' } else { '?' });
    RabbitmqConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.expect("it connects")
}

fn options(channel: &str, group: &str) -> SubscribeOptions {
    let group = Group::Named(GroupName::new(group).unwrap());
    SubscribeOptions::new(Channel::new(channel).unwrap(), group)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Invoice {
    number: u64,
}

impl Message for Invoice {
    const NAME: &'static str = "invoice";
    const VERSION: u32 = 1;
    type Codec = Json;
}

fn number(n: usize) -> postrider_core::EnvelopeBuilder {
    Envelope::builder(Bytes::from(n.to_string()))
}

fn number_of(envelope: &Envelope) -> usize {
    std::str::from_utf8(envelope.payload()).unwrap().parse().unwrap()
}

async fn take(subscription: &mut impl Subscription, count: usize) -> Vec<Delivery> {
    let mut got = Vec::new();
    let taking = async {
        while got.len() < count {
            let max = NonZeroUsize::new(count - got.len()).unwrap();
            let _: Signal = subscription.receive(max, &mut got).await.expect("it goes on");
        }
    };
    tokio::time::timeout(PATIENCE, taking).await.expect("they come");
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_member_that_joins_gets_its_share_and_no_key_loses_its_order() {
    type Log = Arc<Mutex<Vec<(usize, String, usize)>>>;
    let tenant = format!("tenant={}", unique("t"));
    let log = Log::default();
    let route = |member: usize| {
        let log = Arc::clone(&log);
        RouteOptions::new("orders", "g").handle(move |envelope: Envelope| {
            let log = Arc::clone(&log);
            async move {
                tokio::task::yield_now().await;
                let key = String::from_utf8_lossy(envelope.key().unwrap_or_default()).into_owned();
                log.lock().unwrap().push((member, key, number_of(&envelope)));
            }
        })
    };
    let (one, two) = (connect(&tenant).await, connect(&tenant).await);
    let first = Router::new().route(route(1)).start(&one).await.expect("it starts");
    let mut next = 0;
    let mut publish = async |rounds: usize| {
        for _ in 0..rounds {
            let round = (0..64).map(|k| number(next).key(format!("k{k}")));
            assert!(one.publish_all("orders", round).await.iter().all(Result::is_ok));
            next += 1;
        }
    };
    publish(20).await;
    let second = Router::new().route(route(2)).start(&two).await.expect("it starts");
    let shared = async {
        while log.lock().unwrap().iter().filter(|(member, ..)| *member == 2).count() < 200 {
            publish(1).await;
        }
    };
    tokio::time::timeout(PATIENCE, shared).await.expect("the second member gets its share");
    publish(20).await;
    first.idle().await;
    second.idle().await;
    for service in [second, first] {
        service.stop(PATIENCE).await.expect("it stops");
    }
    let log = log.lock().unwrap();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (member, key, n) in log.iter() {
        let expected = seen.entry(key).or_default();
        assert_eq!(n, expected, "key {key} at member {member}: in order, nothing twice, nothing lost");
        *expected += 1;
    }
    assert_eq!((seen.len(), log.len()), (64, 64 * next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_queue_that_is_deleted_comes_back_and_new_messages_flow() {
    let tenant = unique("t");
    let broker = connect(&format!("tenant={tenant}")).await;
    let mut options = options("orders", "g");
    options.partitions = Some(1);
    let mut subscription = broker.subscribe(&options).await.expect("it starts");
    broker.publish("orders", number(1).key("k")).await.expect("it is confirmed");
    let held = take(&mut subscription, 1).await.pop().unwrap();
    let url = Version::V3_10.shared_url();
    let other = lapin::Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let queue = Naming::new(Some(&tenant)).unwrap().queue("orders", "g", 0, 1).unwrap();
    let channel = other.create_channel().await.unwrap();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    // unroutable until the member has noticed
    let published = async { while broker.publish("orders", number(2).key("k")).await.is_err() {} };
    tokio::time::timeout(PATIENCE, published).await.expect("it flows again");
    let next = take(&mut subscription, 1).await.pop().unwrap();
    assert_eq!(number_of(&next.envelope), 2);
    held.claim.settle(Settlement::Ack).expect_err("the claim went with the queue");
    next.claim.settle(Settlement::Ack).expect("the new one holds");
    subscription.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn what_the_broker_gives_up_is_a_readable_dead_letter() {
    let broker = connect(&format!("tenant={}&delivery_limit=2", unique("t"))).await;
    assert!(broker.capabilities().has(Capability::DeliveryCount));
    let mut options = options("orders", "g");
    options.order = Order::None;
    let mut look = self::options("orders.g.dlq", "look");
    look.partitions = Some(1);
    broker.declare_all(&[Declare::Group(options.clone()), Declare::Group(look.clone())]).await.unwrap();
    let mut subscription = broker.subscribe(&options).await.expect("it starts");
    broker.publish("orders", number(7).key("k").header("mine", "1")).await.expect("it is confirmed");
    let mut deliveries = Vec::new();
    for _ in 0..3 {
        let delivery = take(&mut subscription, 1).await.pop().unwrap();
        deliveries.push(delivery.deliveries);
        delivery.claim.settle(Settlement::GiveBack(None)).expect("the claim holds");
    }
    assert_eq!(deliveries, [Some(1), Some(2), Some(3)]);
    let mut letters = broker.subscribe(&look).await.expect("it starts");
    let letter = take(&mut letters, 1).await.pop().unwrap();
    let text = |name: &str| letter.envelope.headers().get(name).and_then(|v| v.as_text().map(str::to_owned));
    assert_eq!((number_of(&letter.envelope), letter.envelope.key()), (7, Some(&b"k"[..])));
    assert_eq!(
        (text("postrider-dlq-reason").as_deref(), text("mine").as_deref()),
        (Some("crash-loop"), Some("1"))
    );
    letter.claim.settle(Settlement::Ack).expect("the claim holds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn other_arguments_are_refused_with_what_was_expected_and_found() {
    let tenant = unique("t");
    let broker = connect(&format!("tenant={tenant}")).await;
    broker.declare_all(&[Declare::Group(options("orders", "g"))]).await.unwrap();
    let other = connect(&format!("tenant={tenant}&delivery_limit=77")).await;
    let error = other.declare_all(&[Declare::Group(options("orders", "g"))]).await.expect_err("it differs");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(
        error.to_string().contains("x-delivery-limit=77") && error.to_string().contains("10000"),
        "{error}"
    );
    let check = connect(&format!("tenant={tenant}&declare=check")).await;
    check.declare_all(&[Declare::Group(options("orders", "g"))]).await.expect("it is there");
    let error = check.declare_all(&[Declare::Group(options("orders", "h"))]).await.expect_err("it is not");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_channel_that_nobody_reads_fails_and_shows_until_somebody_does() {
    let broker = connect(&format!("tenant={}", unique("t"))).await;
    broker.declare("orders").await.expect("it is declared");
    assert_eq!(broker.health().state, HealthState::Up);
    broker.publish("orders", number(1)).await.expect_err("no queue takes it");
    let health = broker.health();
    assert_eq!(health.state, HealthState::Degraded);
    assert!(health.reason.is_some_and(|reason| reason.contains("orders")));
    broker.declare_all(&[Declare::Group(options("orders", "g"))]).await.unwrap();
    broker.publish("orders", number(2)).await.expect("it is confirmed");
    assert_eq!(broker.health().state, HealthState::Up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn an_alarm_holds_publishes_back_and_lets_acknowledgements_pass() {
    let server = PrivateBroker::start(Version::V3_10, "").await;
    let url = format!("amqp://guest:guest@{}/?heartbeat=30s", server.address());
    let url = BrokerUrl::parse(&url).unwrap();
    let broker = RabbitmqConnector.connect(&url, Env::system()).await.expect("it connects");
    let mut options = options("orders", "g");
    options.partitions = Some(1);
    let mut subscription = broker.subscribe(&options).await.expect("it starts");
    for n in 0..50 {
        broker.publish("orders", number(n).key("k")).await.expect("it is confirmed");
    }
    server.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    // the broker blocks a connection when it publishes next
    let waiting = broker.enqueue("orders", number(50).key("k")).await;
    let degraded = async {
        while broker.health().state != HealthState::Degraded {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, degraded).await.expect("the alarm shows");
    assert!(broker.health().reason.is_some_and(|reason| reason.contains("alarm")));
    let more = broker.enqueue("orders", number(51).key("k")).await;
    for delivery in take(&mut subscription, 50).await {
        delivery.claim.settle(Settlement::Ack).expect("the claim holds");
    }
    let lag = async { while subscription.control().lag().await.expect("it is told") > 1 {} };
    tokio::time::timeout(PATIENCE, lag).await.expect("acknowledgements pass");
    server.ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    let confirmed = async { (waiting.await, more.await) };
    let (first, second) = tokio::time::timeout(PATIENCE, confirmed).await.expect("they go on");
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    let numbers: BTreeSet<_> =
        take(&mut subscription, 2).await.iter().map(|delivery| number_of(&delivery.envelope)).collect();
    assert_eq!(numbers, BTreeSet::from([50, 51]));
    assert_eq!(broker.health().state, HealthState::Up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn an_attempt_that_may_outlast_the_consumer_time_out_is_refused() {
    let broker = connect(&format!("tenant={}&consumer_timeout=60s", unique("t"))).await;
    let mut options = options("orders", "g");
    options.attempt_timeout = Some(Duration::from_secs(49));
    let error = broker.subscribe(&options).await.err().expect("it is more than four fifths");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("at most 48s"), "{error}");
    options.attempt_timeout = Some(Duration::from_secs(48));
    options.longest_hold = Some(Duration::from_secs(49));
    let error = broker.subscribe(&options).await.err().expect("its attempts together are too long");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("at most 48s"), "{error}");
    options.longest_hold = Some(Duration::from_secs(48));
    broker.subscribe(&options).await.expect("it is short enough").close().await.expect("it closes");
}

/// A route that waits for long, here for its breaker, gives back what it holds before the broker takes the queue away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn what_is_held_for_most_of_the_consumer_time_out_goes_back_and_nothing_is_cancelled() {
    for order in [Order::Key, Order::None] {
        let broker = connect(&format!("tenant={}&consumer_timeout=5s", unique("t"))).await;
        let calls = Arc::new(Mutex::new(Vec::<(usize, Option<u32>)>::new()));
        let log = Arc::clone(&calls);
        let handler = move |envelope: Envelope, meta: Meta| {
            let mut log = log.lock().unwrap();
            log.push((number_of(&envelope), meta.deliveries()));
            std::future::ready(if log.len() == 1 { Err("no answer") } else { Ok(()) })
        };
        let breaker =
            BreakerPolicy::new().consecutive_failures(1).open_for(Duration::from_secs(20)).probes(1);
        let retry = Retry::new().attempts(2).backoff(Backoff::Fixed(Duration::from_millis(10)));
        let options = RouteOptions::new("orders", "g").order(order).concurrency(1).crash_limit(20);
        let options = options.retry(retry).timeout(Duration::from_secs(1)).breaker(breaker);
        let service = Router::new().route(options.handle(handler)).start(&broker).await.expect("it starts");
        let messages = (0..20).map(|n| number(n).key(format!("k{}", n % 4)));
        assert!(broker.publish_all("orders", messages).await.iter().all(Result::is_ok));
        tokio::time::timeout(3 * PATIENCE, service.idle()).await.expect("all is handled");
        let report = service.stop(PATIENCE).await.expect("it stops").routes.remove(0);
        assert_eq!((report.handled, report.dead_lettered, report.cancelled), (20, 0, 0), "{order:?}");
        // all 20 at least twice: the breaker is open for five budgets, so halts of the machine may take up three of them
        assert!(report.given_back >= 40, "{order:?}: {report:?}");
        let calls = calls.lock().unwrap();
        assert!(
            calls[1..].iter().all(|(_, deliveries)| *deliveries >= Some(2)),
            "the broker had them back: {calls:?}"
        );
        if order == Order::Key {
            for key in 0..4 {
                let of_key: Vec<_> = calls[1..].iter().map(|(n, _)| *n).filter(|n| n % 4 == key).collect();
                assert!(of_key.is_sorted(), "{of_key:?}");
            }
        }
    }
}

/// The URL of the shared broker with these hosts instead of its own.
fn through(hosts: &[String]) -> String {
    Version::V3_10.shared_url().replace(&shared_address().to_string(), &hosts.join(","))
}

fn shared_address() -> std::net::SocketAddr {
    let url = Version::V3_10.shared_url();
    let (_, rest) = url.split_once('@').expect("the URL has credentials");
    rest.split('/').next().unwrap().parse().expect("the shared broker has one address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn a_silent_first_host_leaves_time_for_the_second() {
    // it is never accepted, so connecting succeeds and nothing is answered
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = [silent.local_addr().unwrap().to_string(), shared_address().to_string()];
    let url = format!("{}?connect_timeout=20s&tenant={}", through(&hosts), unique("t"));
    let url = BrokerUrl::parse(&url).unwrap();
    let broker = RabbitmqConnector.connect(&url, Env::system()).await.expect("the second host answers");
    broker.declare("orders").await.expect("it is declared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn when_the_host_that_is_connected_hangs_publishing_goes_on_through_the_next() {
    let first = Proxy::start(shared_address()).await.unwrap();
    let second = Proxy::start(shared_address()).await.unwrap();
    let hosts = [first.address().to_string(), second.address().to_string()];
    let url = format!("{}?heartbeat=2s&connect_timeout=20s&tenant={}", through(&hosts), unique("t"));
    let broker = RabbitmqConnector.connect(&BrokerUrl::parse(&url).unwrap(), Env::system()).await.unwrap();
    broker.declare_all(&[Declare::Group(options("orders", "g"))]).await.expect("it is declared");
    broker.publish("orders", number(1)).await.expect("it is confirmed");
    assert!(first.connections() > 0 && second.connections() == 0, "the first of the list comes first");
    first.stall(true);
    let goes_on = async { while broker.publish("orders", number(2)).await.is_err() {} };
    tokio::time::timeout(2 * PATIENCE, goes_on).await.expect("the second host is used");
    assert!(second.connections() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn outputs_without_a_reader_outlast_the_hold_limit_and_the_handler_runs_once() {
    for order in [Order::Key, Order::None] {
        // what is held for 4 s goes back to the broker, which delivers it again
        let broker = connect(&format!("tenant={}&consumer_timeout=5s", unique("t"))).await;
        let calls = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&calls);
        let handler = move |envelope: Envelope| {
            *counted.lock().unwrap() += 1;
            std::future::ready(Invoice { number: number_of(&envelope) as u64 })
        };
        let route = RouteOptions::new("orders", "g").order(order).publishes("invoices").crash_limit(2);
        let route = route.timeout(Duration::from_secs(1)).retry(Retry::never()).handle(handler);
        let service = Router::new().route(route).start(&broker).await.expect("it starts");
        broker.publish("orders", number(7).key("k")).await.expect("it is confirmed");
        let given_back = async {
            while service.report().routes[0].given_back < 4 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(3 * PATIENCE, given_back).await.expect("the broker has it back four times");
        assert_eq!(*calls.lock().unwrap(), 1, "{order:?}");
        let mut reader = broker.subscribe(&options("invoices", "mailer")).await.expect("it subscribes");
        let invoice = take(&mut reader, 1).await.remove(0);
        assert_eq!(invoice.envelope.type_name(), "invoice");
        tokio::time::timeout(PATIENCE, service.idle()).await.expect("all is handled");
        let report = service.stop(PATIENCE).await.expect("it stops").routes.remove(0);
        assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 0, 0), "{order:?}");
        assert_eq!(*calls.lock().unwrap(), 1, "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
async fn what_is_known_of_suspects_every_member_knows_and_it_outlives_them() {
    let tenant = format!("tenant={}", unique("t"));
    let (one, two) = (connect(&tenant).await, connect(&tenant).await);
    let suspect = |n: u64| Suspect { origin: Origin { shard: 0, position: n }, fingerprint: n };
    let first = one.subscribe(&options("orders", "g")).await.expect("it subscribes");
    let second = two.subscribe(&options("orders", "g")).await.expect("it subscribes");
    let (mine, theirs) = (first.control(), second.control());
    assert_eq!(mine.strikes(suspect(1)).await.unwrap(), 0);
    mine.set_strikes(suspect(1), 1).await.unwrap();
    // the first holds the stream open as well
    assert_eq!(theirs.strikes(suspect(1)).await.unwrap(), 1);
    theirs.set_strikes(suspect(1), 2).await.unwrap();
    theirs.set_strikes(suspect(2), 1).await.unwrap();
    assert_eq!((mine.strikes(suspect(1)).await.unwrap(), mine.strikes(suspect(2)).await.unwrap()), (2, 1));
    mine.set_strikes(suspect(1), 0).await.unwrap();
    assert_eq!(theirs.strikes(suspect(1)).await.unwrap(), 0);
    // many, as when a member is killed that had much prefetched
    for n in 10..510 {
        assert_eq!(mine.strikes(suspect(n)).await.unwrap(), 0);
        mine.set_strikes(suspect(n), 1).await.unwrap();
        mine.set_strikes(suspect(n), 0).await.unwrap();
    }
    drop((first, second, mine, theirs));
    let later = connect(&tenant).await;
    let third = later.subscribe(&options("orders", "g")).await.expect("it subscribes");
    let control = third.control();
    assert_eq!(
        (control.strikes(suspect(1)).await.unwrap(), control.strikes(suspect(2)).await.unwrap()),
        (0, 1)
    );
}
