//! Each message once: duplicates are skipped, wait for each other, or are let through again where they must be.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use postrider::{
    BoxFuture, Bulkhead, BulkheadPolicy, End, Env, HealthState, Idempotency, IdempotencyStore, MemoryStore,
    Reserve, Reserved, RouteOptions,
};
use router_kit::{Log, Placed, broker, broker_with, finish, header, look, only, retry};

const SECOND: Duration = Duration::from_secs(1);
const LETTERS: &str = "orders.billing.dlq";

fn billing() -> RouteOptions {
    let once = Idempotency::auto();
    RouteOptions::new("orders", "billing").name("bill").retry(retry(3, SECOND)).idempotency(once)
}

/// The same message, as often as asked for.
async fn publish(broker: &Broker, message: &Envelope, times: usize) {
    for _ in 0..times {
        broker.publish("orders", message.clone()).await.expect("it is confirmed");
    }
}

fn message(broker: &Broker, number: u64, key: Option<&str>) -> Envelope {
    let body = postrider::Bytes::from(format!(r#"{{"customer":"ann","number":{number}}}"#));
    let builder = Envelope::builder(body).type_name("order.placed").version(2).key("ann");
    let builder = match key {
        Some(key) => builder.idempotency_key(key),
        None => builder,
    };
    builder.build(postrider::Publisher::env(broker)).expect("it is legal")
}

/// A store that two services share, and that a test can look into or break.
#[derive(Clone)]
struct Shared {
    store: Arc<MemoryStore>,
    broken: Arc<AtomicUsize>,
}

impl Shared {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::with(Env::seeded(3), 1000));
        Self { store, broken: Arc::default() }
    }

    /// Whether this call fails.
    fn fails(&self) -> postrider::Result<()> {
        let left = self.broken.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        match left {
            Err(_) => Ok(()),
            Ok(_) => Err(postrider::Error::new(
                postrider::ErrorKind::Connection,
                "reserve",
                "no route to the store",
            )),
        }
    }
}

impl IdempotencyStore for Shared {
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, postrider::Result<Vec<Reserved>>> {
        match self.fails() {
            Ok(()) => self.store.reserve(requests),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, postrider::Result<()>> {
        match self.fails() {
            Ok(()) => self.store.end(endings),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_again_is_acknowledged_and_not_handled() {
    for (workers, batch) in [(1, false), (2, false), (1, true), (2, true)] {
        let (_, broker) = broker_with(&[]).await;
        let seen = Log::default();
        let log = seen.clone();
        let first = message(&broker, 1, None);
        publish(&broker, &first, 3).await;
        publish(&broker, &message(&broker, 2, None), 1).await;
        publish(&broker, &first, 2).await;
        let options = billing().workers(workers);
        let router = Router::new().idempotency(MemoryStore::with(Env::seeded(3), 100));
        let router = if batch {
            router.route(options.handle(move |orders: Batch<Placed>| {
                orders.0.iter().for_each(|order| log.add(order.number));
                std::future::ready(())
            }))
        } else {
            router.route(options.handle(move |order: Placed| {
                log.add(order.number);
                std::future::ready(())
            }))
        };
        let report = finish(router.start(&broker).await.unwrap()).await;
        assert_eq!(seen.all(), [1, 2], "{workers} {batch}");
        assert_eq!((report.handled, report.duplicates, report.dead_lettered), (2, 4, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_publisher_s_key_beats_the_id_and_business_alone_wants_one() {
    let (_, broker) = broker_with(&[]).await;
    for number in 1..=3 {
        publish(&broker, &message(&broker, number, Some("order-1")), 1).await;
    }
    publish(&broker, &message(&broker, 4, None), 1).await;
    let seen = Log::default();
    let log = seen.clone();
    let options = billing().idempotency(Idempotency::business());
    let route = options.handle(move |order: Placed| {
        log.add(order.number);
        std::future::ready(())
    });
    let service = Router::new().route(route).idempotency(MemoryStore::new()).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!((seen.all(), report.duplicates, report.dead_lettered), (vec![1], 2, 1));
    assert_eq!(header(&look(&broker, LETTERS).await[0], "postrider-dlq-reason"), "no-identity");
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_tried_again_and_its_duplicate_waits_for_the_outcome() {
    let (_, broker) = broker_with(&[]).await;
    publish(&broker, &message(&broker, 1, None), 2).await;
    let attempts = Log::default();
    let log = attempts.clone();
    // without order the two meet
    let options = billing().order(postrider::Order::None);
    let route = options.handle(move |_: Placed, attempt: Attempt| {
        log.add(attempt.0);
        async move {
            tokio::time::sleep(SECOND).await;
            if attempt.0 < 3 { Err("not yet") } else { Ok(()) }
        }
    });
    let service = Router::new().route(route).idempotency(MemoryStore::with(Env::seeded(3), 9));
    let report = finish(service.start(&broker).await.unwrap()).await;
    assert_eq!(attempts.all(), [1, 2, 3], "the other one never ran");
    assert_eq!((report.handled, report.retried, report.duplicates), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_s_duplicate_is_acknowledged() {
    let (_, broker) = broker_with(&[]).await;
    publish(&broker, &message(&broker, 1, None), 3).await;
    let route = billing().handle(async |_: Placed| Err::<(), _>("never"));
    let service = Router::new().route(route).idempotency(MemoryStore::with(Env::seeded(3), 9));
    let report = finish(service.start(&broker).await.unwrap()).await;
    assert_eq!((report.dead_lettered, report.duplicates, report.retried), (1, 2, 2));
    assert_eq!(look(&broker, LETTERS).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_scope_is_the_group_s_handler() {
    let (_, broker) = broker_with(&[]).await;
    publish(&broker, &message(&broker, 1, None), 2).await;
    let shared = Shared::new();
    for group in ["billing", "shipping"] {
        let options = RouteOptions::new("orders", group).idempotency(Idempotency::auto());
        let service = Router::new().route(options.handle(async |_: Placed| {})).idempotency(shared.clone());
        let report = finish(service.start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.duplicates), (1, 1), "{group}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_at_the_deadline_is_let_go() {
    let (_, broker) = broker_with(&[]).await;
    publish(&broker, &message(&broker, 1, None), 1).await;
    let shared = Shared::new();
    let began = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&began);
    let route = billing().timeout(100 * SECOND).handle(move |_: Placed| {
        tell.notify_one();
        std::future::pending::<()>()
    });
    let service = Router::new().route(route).idempotency(shared.clone()).start(&broker).await.unwrap();
    began.notified().await;
    let report = only(service.stop(SECOND).await.unwrap());
    assert_eq!((report.given_back, shared.store.len()), (1, 0), "nobody has to wait for the lease");
    let service = Router::new().route(billing().handle(async |_: Placed| {})).idempotency(shared.clone());
    let report = finish(service.start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, report.duplicates), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_waited_for_and_shows() {
    let (_, broker) = broker_with(&[]).await;
    let shared = Shared::new();
    shared.broken.store(3, Relaxed);
    publish(&broker, &message(&broker, 1, None), 2).await;
    let attempts = Log::default();
    let log = attempts.clone();
    let route = billing().handle(move |_: Placed, attempt: Attempt| {
        log.add(attempt.0);
        std::future::ready(())
    });
    let service = Router::new().route(route).idempotency(shared.clone()).start(&broker).await.unwrap();
    let mut health = service.health().routes[0].health.clone();
    while health.state == HealthState::Up {
        tokio::time::sleep(SECOND / 100).await;
        health = service.health().routes[0].health.clone();
    }
    assert!(health.reason.is_some_and(|reason| reason.contains("no route to the store")));
    let report = finish(service).await;
    assert_eq!(attempts.all(), [1], "no attempt was burnt");
    assert_eq!((report.handled, report.duplicates, report.retried), (1, 1, 0));
}

/// A store that never answers, and tells when it was asked.
struct Silent(tokio::sync::watch::Sender<bool>);

impl IdempotencyStore for Silent {
    fn reserve<'a>(&'a self, _: &'a [Reserve]) -> BoxFuture<'a, postrider::Result<Vec<Reserved>>> {
        self.0.send_replace(true);
        Box::pin(std::future::pending())
    }

    fn end<'a>(&'a self, _: &'a [End]) -> BoxFuture<'a, postrider::Result<()>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ends_while_the_store_is_asked_was_ended_by_no_message() {
    for stops in [true, false] {
        let (_, broker) = broker_with(&[]).await;
        publish(&broker, &message(&broker, 1, None), 1).await;
        let wary = || billing().crash_limit(1);
        for _ in 0..5 {
            let (asked, mut asks) = tokio::sync::watch::channel(false);
            let router = Router::new().route(wary().handle(async |_: Placed| {})).idempotency(Silent(asked));
            let service = router.start(&broker).await.unwrap();
            let asking = tokio::time::timeout(SECOND, asks.wait_for(|asked| *asked));
            asking.await.expect("it isn't judged").unwrap();
            if stops {
                service.stop(Duration::ZERO).await.unwrap();
            }
            // else it goes without a word, as a process does that is killed
        }
        let store = MemoryStore::with(Env::seeded(3), 9);
        let router = Router::new().route(wary().handle(async |_: Placed| {})).idempotency(store);
        let report = finish(router.start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.dead_lettered), (1, 0), "stops: {stops}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_what_ended_processes_is_acknowledged_with_it() {
    let (_, broker) = broker_with(&[]).await;
    publish(&broker, &message(&broker, 1, None), 2).await;
    // it outlives the services, and lets go what they had when their leases are over
    let store = Shared::new();
    let wary = || billing().crash_limit(1).timeout(SECOND * 3600);
    let mut lives = 0;
    let report = loop {
        lives += 1;
        assert!(lives < 10, "it is judged at some time");
        let (began, mut begun) = tokio::sync::watch::channel(false);
        let hangs = move |_: Placed| {
            began.send_replace(true);
            std::future::pending::<()>()
        };
        let router = Router::new().route(wary().handle(hangs)).idempotency(store.clone());
        let service = router.start(&broker).await.unwrap();
        let running = tokio::time::timeout(SECOND * 3600 * 2, begun.wait_for(|begun| *begun)).await;
        if !matches!(running, Ok(Ok(_))) {
            break finish(service).await;
        }
    };
    assert!(lives > 2, "two processes ended while it ran alone");
    assert_eq!((report.dead_lettered, report.duplicates, report.handled), (1, 1, 0));
    let letters = look(&broker, LETTERS).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(header(&letters[0], "postrider-dlq-reason"), "crash-loop");
}

/// A service that goes without a word while its one handler has the first message; the others are handed out and go back.
async fn crash(broker: &Broker, options: RouteOptions) {
    let (began, mut begun) = tokio::sync::watch::channel(false);
    let hangs = move |_: Envelope| {
        began.send_replace(true);
        std::future::pending::<()>()
    };
    let service = Router::new().route(options.handle(hangs)).start(broker).await.unwrap();
    begun.wait_for(|begun| *begun).await.unwrap();
    drop(service);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_the_store_lets_run_runs_within_the_route_s_bounds() {
    let (_, broker) = broker_with(&[]).await;
    publish(&broker, &message(&broker, 1, None), 1).await;
    let wary = || RouteOptions::new("orders", "billing").name("bill").crash_limit(1);
    crash(&broker, wary()).await;
    let cards = Bulkhead::new(BulkheadPolicy::new(2));
    let (free, seen) = (Log::default(), cards.clone());
    let log = free.clone();
    let route = wary().idempotency(Idempotency::auto()).bulkhead(&cards).handle(move |_: Placed| {
        log.add(seen.free());
        std::future::ready(())
    });
    let router = Router::new().route(route).idempotency(MemoryStore::with(Env::seeded(3), 9));
    let report = finish(router.start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, free.all(), cards.free()), (1, vec![1], 2));
}

#[tokio::test(start_paused = true)]
async fn suspects_without_an_identity_are_all_let_go() {
    let (_, broker) = broker_with(&[]).await;
    for number in 1..=5 {
        publish(&broker, &message(&broker, number, None), 1).await;
    }
    let wary = || RouteOptions::new("orders", "billing").name("bill").crash_limit(1).max_in_flight(5);
    crash(&broker, wary()).await;
    let route = wary().idempotency(Idempotency::business()).no_dead_letter().handle(async |_: Placed| {});
    let router = Router::new().route(route).idempotency(MemoryStore::with(Env::seeded(3), 9));
    let report = finish(router.start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, report.dropped), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn outputs_come_once_and_before_the_message_counts_as_handled() {
    let (memory, broker) = broker_with(&[]).await;
    broker.declare("invoices").await.unwrap();
    publish(&broker, &message(&broker, 1, None), 3).await;
    let route = billing().publishes("invoices").handle(async |order: Placed| router_kit::invoiced(&order));
    let router = Router::new().route(route).idempotency(MemoryStore::with(Env::seeded(3), 9));
    memory.fail_publishes(1);
    let report = finish(router.start(&broker).await.unwrap()).await;
    // the handler is done, so the failed publish is no attempt
    assert_eq!((report.handled, report.retried, report.duplicates), (1, 0, 2));
    assert_eq!(look(&broker, "invoices").await.len(), 1);
}

#[tokio::test]
async fn what_a_route_needs_for_it_is_asked_for_at_start() {
    let (_, broker) = broker();
    let ignore = async |_: Envelope| {};
    let with_store = |router: Router| router.idempotency(MemoryStore::new());
    for (router, says) in [
        (Router::new().route(billing().handle(ignore)), "there is no store"),
        (
            with_store(
                Router::new()
                    .route(RouteOptions::ephemeral("orders").idempotency(Idempotency::auto()).handle(ignore)),
            ),
            "name a group",
        ),
        (
            with_store(
                Router::new()
                    .route(billing().idempotency(Idempotency::auto().ttl(691 * SECOND)).handle(ignore)),
            ),
            "remember longer",
        ),
    ] {
        let error = router.start(&broker).await.unwrap_err().to_string();
        assert!(error.contains(says), "expected {says}, found {error}");
    }
    // three attempts of 30 s, two waits of 1 s, and ten minutes
    let enough = billing().idempotency(Idempotency::auto().ttl(692 * SECOND)).handle(ignore);
    let service = with_store(Router::new().route(enough)).start(&broker).await.unwrap();
    service.stop(SECOND).await.unwrap();
    // a router that is merged keeps its own store
    let own = with_store(Router::new().route(billing().handle(ignore)));
    Router::new().merge(own).start(&broker).await.unwrap().stop(SECOND).await.unwrap();
}
