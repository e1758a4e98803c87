//! What is refused before a message moves, in words that say what to do; and what a router says of itself.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use postrider::memory::{MemoryBroker, MemoryConnector, MemoryLetters, MemorySubscription};
use postrider::prelude::*;
use postrider::{
    Adapter, Backoff, BoxFuture, BrokerUrl, Capabilities, Capability, Channel, Confirm, Connector, Declare,
    DrainReport, Env, Error, ErrorKind, Finding, Health, Inventory, Letters, OnGap, Order, Outgoing,
    PublishError, Reason, Redrive, Registry, Retry, RouteOptions, Scope, Start, SubscribeOptions, Subscriber,
};
use router_kit::{Invoiced, Placed, broker, broker_with, finish, invoiced, placed};

const SECRET: &str = "s3cr3t";

async fn ignore(_: Envelope) {}

fn route(channel: &str, group: &str) -> RouteOptions {
    RouteOptions::new(channel, group)
}

/// The embedded broker, said to do less, and unwilling to subscribe more than so many; it counts what reaches it.
struct Limited {
    memory: MemoryBroker,
    can: Capabilities,
    subscriptions: usize,
    calls: Arc<AtomicUsize>,
}

impl Publisher for Limited {
    fn env(&self) -> &Env {
        self.memory.env()
    }
    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        self.memory.send(message).await
    }
    fn try_send<'a>(&self, message: Outgoing<'a>) -> Result<Confirm, Outgoing<'a>> {
        self.memory.try_send(message)
    }
    async fn flush(&self) -> Result<(), PublishError> {
        self.memory.flush().await
    }
    async fn close(&self, deadline: Instant) -> DrainReport {
        self.memory.close(deadline).await
    }
}

impl Subscriber for Limited {
    type Subscription = MemorySubscription;
    async fn subscribe(&self, options: &SubscribeOptions) -> postrider::Result<MemorySubscription> {
        if self.calls.fetch_add(1, Relaxed) > self.subscriptions {
            return Err(Error::new(ErrorKind::Broker, "subscribe", "no more subscriptions"));
        }
        self.memory.subscribe(options).await
    }
}

impl Adapter for Limited {
    type Letters = MemoryLetters;
    fn name(&self) -> &'static str {
        "limited"
    }
    fn capabilities(&self) -> &Capabilities {
        &self.can
    }
    async fn declare(&self, topology: &[Declare]) -> postrider::Result<()> {
        self.calls.fetch_add(1, Relaxed);
        self.memory.declare(topology).await
    }
    async fn letters(&self, channel: &Channel) -> postrider::Result<MemoryLetters> {
        self.calls.fetch_add(1, Relaxed);
        self.memory.letters(channel).await
    }
    fn health(&self) -> Health {
        Adapter::health(&self.memory)
    }
    async fn inventory(&self, scope: &Scope) -> postrider::Result<Inventory> {
        self.memory.inventory(scope).await
    }
    async fn examine(&self) -> Vec<Finding> {
        self.memory.examine().await
    }
}

#[tokio::test]
async fn a_capability_that_the_broker_lacks_is_named_before_any_io() {
    for (options, capability) in [
        (route("orders", "billing"), Capability::KeyOrder),
        (route("orders", "billing").order(Order::Partition), Capability::PartitionOrder),
        (RouteOptions::ephemeral("orders").order(Order::None), Capability::Ephemeral),
        (route("orders", "billing").order(Order::None).start(Start::Time(1)), Capability::StartTime),
        (route("orders", "billing").order(Order::None).on_gap(OnGap::Stop), Capability::Gaps),
    ] {
        let calls = Arc::new(AtomicUsize::new(0));
        let can = Capability::ALL.iter().filter(|has| **has != capability);
        let can = can.fold(Capabilities::new(1024), |can, has| can.with(*has));
        let limited =
            Limited { memory: MemoryBroker::new(), can, subscriptions: 9, calls: Arc::clone(&calls) };
        let start =
            Router::new().route(options.name("bill").handle(ignore)).start(&Broker::new(limited)).await;
        let error = start.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.context().any(|fact| fact == ("capability", capability.as_str())), "{error}");
        assert!(error.context().any(|fact| fact == ("route", "bill")), "{error}");
        assert_eq!(calls.load(Relaxed), 0, "{capability}");
    }
}

#[tokio::test]
async fn letters_and_their_redrive_are_refused_before_any_io_where_the_broker_has_none() {
    let without = |lacking: Capability| {
        let calls: Arc<AtomicUsize> = Arc::default();
        let can = Capability::ALL.iter().filter(|has| **has != lacking);
        let can = can.fold(Capabilities::new(1024), |can, has| can.with(*has));
        let memory = MemoryBroker::new();
        let limited = Limited { memory: memory.clone(), can, subscriptions: 9, calls: Arc::clone(&calls) };
        (memory, Broker::new(limited), calls)
    };
    let (_, broker, calls) = without(Capability::Letters);
    let error = broker.letters("orders.billing.dlq").await.unwrap_err();
    assert_eq!((error.kind(), calls.load(Relaxed)), (ErrorKind::Unsupported, 0));
    assert!(error.to_string().contains("dead-letters"), "{error}");

    let (memory, broker, _) = without(Capability::GroupAddress);
    broker.declare("orders.billing.dlq").await.unwrap();
    broker.publish("orders.billing.dlq", &placed("ann", 1)).await.unwrap();
    let mut letters = broker.letters("orders.billing.dlq").await.unwrap();
    let mut all = Vec::new();
    letters.read(NonZeroUsize::MAX, &mut all).await.unwrap();
    let back = Redrive::new().to("orders", "billing").unwrap();
    let outcomes = broker.redrive(&mut letters, &all, &back).await;
    let error = outcomes.into_iter().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!((letters.count().await.unwrap(), memory.kept("orders")), (1, 0), "it is open still");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_half_way_leaves_nothing_behind() {
    let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
    let can = memory.capabilities().clone();
    let limited = Limited { memory, can, subscriptions: 1, calls: Arc::default() };
    let both =
        Router::new().route(route("orders", "a").handle(ignore)).route(route("orders", "b").handle(ignore));
    let error = both.start(&Broker::new(limited)).await.unwrap_err();
    assert_eq!(error.to_string(), "subscribe: no more subscriptions");
    let service = Router::new().route(route("orders", "a").handle(ignore)).start(&broker).await.unwrap();
    assert_eq!(finish(service).await.handled, 1, "no half-started member holds it");
}

#[tokio::test]
async fn routes_that_contradict_themselves_or_each_other_are_refused() {
    let (_, broker) = broker();
    let two_types = |_: Placed, _: Invoiced| std::future::ready(());
    let returns = |order: Placed| std::future::ready(invoiced(&order));
    let alone = |options: RouteOptions| Router::new().route(options.handle(ignore));
    for (router, says) in [
        (
            alone(route("orders", "billing").name("bill"))
                .merge(alone(route("orders", "billing").name("charge"))),
            "the routes `bill` and `charge` both read `orders` for the group `billing`",
        ),
        (
            Router::new().route(route("orders", "billing").handle(two_types)),
            "`order.placed`, `order.invoiced`",
        ),
        (Router::new().route(route("orders", "billing").handle(returns)), "add `publishes = \"…\"`"),
        (alone(route("orders", "billing").publishes("orders")), "that never ends"),
        (alone(route("orders", "billing").dead_letter("orders")), "that never ends"),
        (alone(route("orders.billing.dlq", "clerk")), "dead_letter = "),
        (
            alone(route("a", "x").dead_letter("b")).merge(alone(route("b", "y").dead_letter("a"))),
            "`a` (`x`) → `b` (`y`) → `a`",
        ),
        (
            // the first route leads into the cycle and isn't part of it
            alone(route("in", "w").dead_letter("a"))
                .merge(alone(route("a", "x").dead_letter_for(Reason::Expired, "b")))
                .merge(alone(route("b", "y").dead_letter("c").publishes("a")))
                .merge(alone(route("c", "z").dead_letter("a"))),
            "`a` (`x`) → `b` (`y`) → `c` (`z`) → `a`",
        ),
        (alone(route("orders", "billing").concurrency(0)), "`concurrency` must be at least 1"),
        (alone(route("orders", "billing").workers(0)), "`workers` must be at least 1"),
        (alone(route("orders", "billing").max_in_flight(0)), "`max_in_flight` must be at least 1"),
        (alone(route("orders", "billing").timeout(Duration::ZERO)), "`timeout`"),
        (alone(route("orders", "billing").partitions(3)), "1, 2, 4, 8, 16, 32 or 64"),
        (alone(route("orders", "billing").retry(Retry::new().durable())), "say `order = none`"),
        (
            alone(RouteOptions::ephemeral("orders").order(Order::None).retry(Retry::new().durable())),
            "name a group",
        ),
        (
            alone(
                route("orders", "billing")
                    .order(Order::None)
                    .retry(Retry::new().backoff(Backoff::Fixed(Duration::from_secs(3601))).durable()),
            ),
            "shorten it",
        ),
        (alone(route("orders--x", "billing")), "its channel is wrong"),
        (alone(route("orders", "a.b")), "its group is wrong"),
    ] {
        let described = router.describe().unwrap_err();
        let error = router.start(&broker).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(says), "expected {says}, found {error}");
        assert_eq!(described.to_string(), error.to_string(), "`describe` says what `start` would");
    }
    let native = alone(route("orders", "billing").native("prefetch", "9")).start(&broker).await.unwrap_err();
    assert!(native.context().any(|fact| fact == ("property", "prefetch")), "{native}");
}

#[tokio::test]
async fn dead_letters_that_end_somewhere_are_no_cycle() {
    let (_, broker) = broker();
    let alone = |options: RouteOptions| Router::new().route(options.handle(ignore));
    // two ways to one end, and one channel read by two groups
    let router = alone(route("a", "x").dead_letter("b").dead_letter_for(Reason::Expired, "c"))
        .merge(alone(route("a", "w").dead_letter("c")))
        .merge(alone(route("b", "y").dead_letter("c")))
        .merge(alone(route("c", "z").no_dead_letter()));
    router.start(&broker).await.unwrap().stop(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn an_unknown_scheme_lists_those_there_are_and_names_the_feature() {
    let registry = Registry::new(&[("memory", "memory"), ("kafka", "kafka")]).with(MemoryConnector);
    let connect = |url: &'static str| {
        let registry = &registry;
        async move { registry.connect(url, Env::system()).await.unwrap_err().to_string() }
    };
    let known = connect("kafka://localhost").await;
    assert!(
        known.contains("the Cargo feature `kafka`") && known.contains("compiled in: `memory:`"),
        "{known}"
    );
    let misspelt = connect("memry:").await;
    assert!(misspelt.contains("did you mean `memory:`?"), "{misspelt}");
    let foreign = connect("gopher://localhost").await;
    assert!(foreign.contains("`gopher:`") && foreign.contains("no such broker is known"), "{foreign}");
    let facade = postrider::connect("gopher://localhost").await.unwrap_err().to_string();
    assert!(facade.contains("`memory:`"), "{facade}");
}

#[tokio::test]
async fn a_misspelt_url_option_gets_the_nearest_right_one() {
    for (url, says) in [
        ("memory:?max_mesages=5", "did you mean `max_messages`?"),
        ("memory:?max_messages=many", "`max_messages` must be a whole number"),
        ("memory:?max_messages=1&max_messages=2", "`max_messages` stands twice"),
        ("memory:?max_messages=0", "`max_messages` must be at least 1"),
        ("memory://host", "has no address"),
    ] {
        let error = postrider::connect(url).await.unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Config, "connect"), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// A broker that can't be reached, which says all that it may.
struct Unreachable;

impl Connector for Unreachable {
    fn schemes(&self) -> &'static [&'static str] {
        &["far"]
    }
    fn connect<'a>(&'a self, url: &'a BrokerUrl, _: Env) -> BoxFuture<'a, postrider::Result<Broker>> {
        let message = format!("nobody answers ({url:?})");
        Box::pin(async move { Err(Error::new(ErrorKind::Connection, "connect", message).with("url", url)) })
    }
}

#[tokio::test]
async fn no_connect_error_shows_the_password_however_the_url_is_wrong() {
    let registry = Registry::new(&[]).with(Unreachable).with(MemoryConnector);
    for url in [
        format!("far://ann:{SECRET}@host:1"),
        format!("far://{SECRET}@host:1"),
        format!("memory://ann:{SECRET}@host"),
        format!("elsewhere://ann:{SECRET}@host"),
        // the host was forgotten
        format!("far://ann:{SECRET}"),
        // a password whose `/`, `?`, `%` or `@` should have been escaped
        format!("far://ann:{SECRET}/x@host:1"),
        format!("far://ann:x/{SECRET}@host:1"),
        format!("far://ann:{SECRET}?x@host:1"),
        format!("far://ann:1?{SECRET}@host:1"),
        format!("far://ann:1/?{SECRET}=x@host:1"),
        format!("far://ann:{SECRET}%zz@host:1"),
        format!("far://ann:{SECRET}@{SECRET}/{SECRET}@host:1"),
        format!("far://host:1/?password={SECRET}&nothing"),
        format!("memory:?max_messages={SECRET}"),
    ] {
        let error = registry.connect(&url, Env::system()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{url} gives: {error:?}");
    }
}

#[test]
fn a_router_describes_itself_as_a_table_and_as_json() {
    let bill = async |order: Placed| invoiced(&order);
    let patient = Retry::new().attempts(3).backoff(Backoff::Fixed(Duration::from_secs(1)));
    let router = Router::new()
        .route(
            RouteOptions::new("orders", "billing")
                .name("bill")
                .publishes("invoices")
                .timeout(Duration::from_secs(3))
                .retry(patient)
                .handle(bill),
        )
        .route(RouteOptions::ephemeral("invoices").name("watch").order(Order::None).handle(ignore));
    let description = router.describe().unwrap();
    insta::assert_snapshot!(description, @"
    ROUTE  READS     GROUP        PUBLISHES  DEAD LETTERS        ORDER  ATTEMPTS  WORST CASE
    bill   orders    billing      invoices   orders.billing.dlq  key    3         11.0 s
    watch  invoices  (ephemeral)  -          -                   none   5         153.0 s
    ");
    insta::assert_snapshot!(serde_json::to_string_pretty(&description).unwrap(), @r#"
    {
      "routes": [
        {
          "route": "bill",
          "channel": "orders",
          "group": "billing",
          "types": [
            "order.placed"
          ],
          "publishes": "invoices",
          "dead_letter": "orders.billing.dlq",
          "dead_letter_for": {},
          "order": "key",
          "partitions": null,
          "concurrency": 64,
          "max_in_flight": 1024,
          "attempts": 3,
          "timeout_ms": 3000,
          "worst_case_ms": 11000
        },
        {
          "route": "watch",
          "channel": "invoices",
          "group": "(ephemeral)",
          "types": [],
          "publishes": null,
          "dead_letter": null,
          "dead_letter_for": {},
          "order": "none",
          "partitions": null,
          "concurrency": 64,
          "max_in_flight": 1024,
          "attempts": 5,
          "timeout_ms": 30000,
          "worst_case_ms": 153000
        }
      ]
    }
    "#);
}
