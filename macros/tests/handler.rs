//! A handler stays a function: it is called in a plain test, and the same definition is the route.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use postrider::{
    Backoff, BreakerPolicy, Handling, OnExpired, OnGap, Order, RatePolicy, Reason, Retry, RouteOptions, Start,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 3, key = "order_id")]
struct OrderPlaced {
    order_id: String,
    total_cents: u64,
}

#[derive(Clone, Debug, PartialEq, Message, Serialize, Deserialize)]
#[message(name = "order.invoiced", key = "customer.id")]
struct Invoiced {
    customer: Customer,
    total_cents: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Customer {
    id: u64,
}

#[derive(Clone, Debug, Default)]
struct Ledger(Arc<AtomicU64>);

#[derive(Clone, Debug, Default, FromRef)]
struct Shop {
    ledger: Ledger,
}

fn order(total_cents: u64) -> OrderPlaced {
    OrderPlaced { order_id: "o-1".into(), total_cents }
}

/// Adds up what is owed.
#[handler(channel = "orders", group = "billing", publishes = "invoices")]
async fn bill(order: OrderPlaced, State(ledger): State<Ledger>) -> Result<Invoiced, HandlerError> {
    if order.total_cents == 0 {
        return Err(HandlerError::msg("nothing to pay")).permanent();
    }
    ledger.0.fetch_add(order.total_cents, Relaxed);
    Ok(Invoiced { customer: Customer { id: 7 }, total_cents: order.total_cents })
}

/// An argument may be called as the function is.
#[handler(channel = "invoices", group = "archive")]
async fn archive(archive: Invoiced, State(Ledger(count)): State<Ledger>) {
    count.fetch_add(archive.total_cents * 1_000, Relaxed);
}

#[tokio::test]
async fn a_handler_is_called_as_the_function_that_it_is() {
    let ledger = Ledger::default();
    let invoiced = bill(order(1_999), State(ledger.clone())).await.unwrap();
    assert_eq!(invoiced, Invoiced { customer: Customer { id: 7 }, total_cents: 1_999 });
    assert_eq!(ledger.0.load(Relaxed), 1_999);
    assert!(bill(order(0), State(ledger)).await.is_err());
}

#[tokio::test]
async fn the_same_definition_is_a_route() {
    let broker = postrider::connect("memory:").await.unwrap();
    let shop = Shop::default();
    let service = Router::with_state(shop.clone()).route(bill).route(archive).start(&broker).await.unwrap();
    broker.publish("orders", &order(5)).await.unwrap();
    service.idle().await;
    let report = service.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(shop.ledger.0.load(Relaxed), 5_005);
    let names: Vec<_> =
        report.routes.iter().map(|r| (&*r.route, &*r.channel, &*r.group, r.handled)).collect();
    assert_eq!(names, [("bill", "orders", "billing", 1), ("archive", "invoices", "archive", 1)]);
}

#[derive(Debug, Default)]
struct Warehouse {
    packed: AtomicU64,
}

#[handlers]
impl Warehouse {
    #[handler(channel = "orders", group = "shipping")]
    async fn pack(&self, order: OrderPlaced, attempt: Attempt) -> Result<(), HandlerError> {
        if attempt.0 == 1 && order.total_cents > 100 {
            return Err(HandlerError::msg("too heavy at first"));
        }
        self.packed.fetch_add(1, Relaxed);
        Ok(())
    }

    #[handler(channel = "orders", group = "statistics", retry = never)]
    async fn count(&self, _order: OrderPlaced) {
        self.packed.fetch_add(10, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn methods_are_routes_whose_state_is_self_and_stay_callable() {
    let warehouse = Arc::new(Warehouse::default());
    warehouse.pack(order(1), Attempt(1)).await.unwrap();
    warehouse.count(order(1)).await;
    assert_eq!(warehouse.packed.load(Relaxed), 11);

    let broker = postrider::connect("memory:").await.unwrap();
    let service = Arc::clone(&warehouse).routes().start(&broker).await.unwrap();
    broker.publish("orders", &order(500)).await.unwrap();
    service.idle().await;
    let report = service.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(warehouse.packed.load(Relaxed), 22);
    assert_eq!(report.routes[0].retried, 1);
}

#[handler(
    channel = "orders",
    group = "everything",
    name = "all options",
    publishes = "invoices",
    order = partition,
    partitions = 4,
    concurrency = 3,
    workers = 2,
    max_in_flight = 100,
    max_in_flight_bytes = 1_000_000,
    start = latest,
    timeout = "3s",
    retry(attempts = 7, backoff = list("1s", "2s"), jitter = decorrelated, max_elapsed = "1m"),
    dead_letter = "letters",
    on_expired = drop,
    on_gap = stop,
    crash_limit = 9,
    claim_timeout = "20s",
    native("a" = "b", "c" = "d")
)]
async fn everything(_: OrderPlaced) -> Option<Invoiced> {
    None
}

#[handler(channel = "orders", ephemeral, order = none, batch = 50, dead_letter = none)]
async fn broadcast(_orders: Batch<OrderPlaced>) {}

#[handler(
    channel = "orders",
    group = "audit",
    order = none,
    retry(attempts = 3, durable),
    idempotency(key = business, ttl = "9d")
)]
async fn audit(_: OrderPlaced) {}

fn worth_it(error: &(dyn std::error::Error + 'static)) -> bool {
    error.to_string() != "declined"
}

#[handler(
    channel = "orders",
    group = "guarded",
    breaker(failure_rate = 0.25, min_calls = 7, consecutive = 5, slow(limit = "1s", rate = 1), open_for = "20s", probes = 2, timeout = "4s"),
    rate(limit = 100, per = "1m", burst = 10),
    retry(attempts = 2, only_if = worth_it),
    dead_letter_for(undecodable = "orders.broken", crash_loop = "orders.deadly")
)]
async fn guarded(_: OrderPlaced) -> Result<(), &'static str> {
    Err("declined")
}

#[handler(channel = "orders", group = "classical", breaker = classical)]
async fn classical(_: OrderPlaced) {}

#[handler(channel = "orders", group = "plain", breaker(window = "5s"))]
async fn plain(_: OrderPlaced) {}

/// What the annotation says.
fn options<A, H: Handling>(_: fn(A) -> H) -> RouteOptions {
    H::options()
}

#[test]
fn every_option_reaches_the_route_as_the_builder_would_set_it() {
    let by_hand = RouteOptions::new("orders", "everything")
        .name("all options")
        .publishes("invoices")
        .order(Order::Partition)
        .partitions(4)
        .concurrency(3)
        .workers(2)
        .max_in_flight(100)
        .max_in_flight_bytes(1_000_000)
        .start(Start::Latest)
        .timeout(Duration::from_secs(3))
        .retry(
            Retry::new()
                .attempts(7)
                .backoff(Backoff::List(vec![Duration::from_secs(1), Duration::from_secs(2)]))
                .jitter(postrider::Jitter::Decorrelated)
                .max_elapsed(Duration::from_mins(1)),
        )
        .dead_letter("letters")
        .on_expired(OnExpired::Drop)
        .crash_limit(9)
        .on_gap(OnGap::Stop)
        .claim_timeout(Duration::from_secs(20))
        .native("a", "b")
        .native("c", "d");
    assert_eq!(options(everything), by_hand);
    let by_hand =
        RouteOptions::ephemeral("orders").name("broadcast").order(Order::None).batch(50).no_dead_letter();
    assert_eq!(options(broadcast), by_hand);
    assert_ne!(options(broadcast), by_hand.batch(51));
    let retry = Retry::new().attempts(3).durable();
    let once = postrider::Idempotency::business().ttl(Duration::from_hours(9 * 24));
    let by_hand = RouteOptions::new("orders", "audit").name("audit").order(Order::None).retry(retry);
    let by_hand = by_hand.idempotency(once);
    assert_eq!(options(audit), by_hand);
}

#[test]
fn guards_reach_the_route_as_the_builder_would_set_them() {
    let second = Duration::from_secs(1);
    let breaker = BreakerPolicy::new()
        .failure_rate(0.25, 10 * second, 7)
        .consecutive_failures(5)
        .slow_calls(second, 1.0)
        .open_for(20 * second)
        .probes(2)
        .timeout(4 * second);
    let by_hand = |breaker: BreakerPolicy| {
        RouteOptions::new("orders", "guarded")
            .name("guarded")
            .breaker(breaker)
            .rate(RatePolicy::new(100, 60 * second).burst(10))
            .dead_letter_for(Reason::Undecodable, "orders.broken")
            .dead_letter_for(Reason::CrashLoop, "orders.deadly")
    };
    // a function that is asked is the same only as itself; what it does is seen below
    let said = || options(guarded).retry(Retry::new());
    assert_eq!(said(), by_hand(breaker.clone()));
    assert_ne!(said(), by_hand(breaker.probes(3)));
    let by_hand =
        RouteOptions::new("orders", "classical").name("classical").breaker(BreakerPolicy::classical());
    assert_eq!(options(classical), by_hand);
    let breaker = BreakerPolicy::new().failure_rate(0.5, 5 * second, 20);
    assert_eq!(options(plain), RouteOptions::new("orders", "plain").name("plain").breaker(breaker));
}

#[tokio::test]
async fn an_error_that_is_not_worth_it_is_not_tried_again() {
    let broker = postrider::connect("memory:").await.unwrap();
    let service = Router::new().route(guarded).start(&broker).await.unwrap();
    broker.publish("orders", &order(5)).await.unwrap();
    service.idle().await;
    let report = service.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!((report.routes[0].retried, report.routes[0].dead_lettered), (0, 1));
}

#[test]
fn a_message_has_its_name_version_and_key() {
    assert_eq!((OrderPlaced::NAME, OrderPlaced::VERSION), ("order.placed", 3));
    assert_eq!((Invoiced::NAME, Invoiced::VERSION), ("order.invoiced", 1));
    assert_eq!(order(1).key().unwrap().as_bytes(), b"o-1");
    let invoiced = Invoiced { customer: Customer { id: 42 }, total_cents: 1 };
    assert_eq!(invoiced.key().unwrap().as_bytes(), b"42");
}
