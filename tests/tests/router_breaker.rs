//! A route's breaker: what opens it, what waits meanwhile, how it closes, and what a stop makes of it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use postrider::{
    Breaker, BreakerError, BreakerPolicy, BreakerState, Env, HealthState, Idempotency, MemoryStore, Order,
    RouteOptions,
};
use router_kit::{Log, Placed, broker, broker_with, finish, lag, look, only, placed, retry, within};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> BreakerPolicy {
    BreakerPolicy::new().consecutive_failures(3).open_for(10 * SECOND).probes(1)
}

fn billing() -> RouteOptions {
    let options = RouteOptions::new("orders", "billing").name("bill").retry(retry(5, SECOND)).concurrency(1);
    options.timeout(5 * SECOND)
}

/// Something that handlers call, and that may be down.
#[derive(Clone, Default)]
struct Cards {
    down: Arc<AtomicBool>,
    calls: Log<(u64, u32, Duration)>,
}

impl Cards {
    fn handler(
        &self,
    ) -> impl Fn(Placed, Attempt) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + 'static
    {
        let (cards, began) = (self.clone(), Instant::now());
        move |order, attempt| {
            cards.calls.add((order.number, attempt.0, began.elapsed()));
            std::future::ready(if cards.down.load(Relaxed) { Err("no answer") } else { Ok(()) })
        }
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Relaxed);
    }
}

fn orders(count: u64) -> Vec<Placed> {
    (0..count).map(|n| placed(&format!("c-{n}"), n)).collect()
}

#[tokio::test(start_paused = true)]
async fn open_it_starts_nothing_and_burns_no_attempt_until_a_probe_closes_it() {
    let (_, broker) = broker_with(&orders(20)).await;
    let cards = Cards::default();
    cards.set_down(true);
    let route = billing().breaker(policy()).handle(cards.handler());
    let service = Router::new().route(route).start(&broker).await.unwrap();
    let breaker = service.breaker("bill").expect("it has one");
    let mut states = breaker.watch();
    within("it opens", states.wait_for(|state| *state == BreakerState::Open)).await.unwrap();
    // back-offs of a second end meanwhile; their messages wait, too
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!(cards.calls.all().len(), 3, "{:?}", cards.calls.all());
    let health = service.health();
    let route = &health.routes[0];
    assert_eq!((health.state, route.breaker), (HealthState::Degraded, Some(BreakerState::Open)));
    let reason = route.health.reason.as_deref().unwrap_or_default();
    assert!(reason.contains("circuit breaker is open") && reason.contains("2026-01-01T00:00:10"), "{reason}");
    assert_eq!(breaker.probes_in(), Some(SECOND));

    // one probe, which fails
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!((cards.calls.all().len(), breaker.state()), (4, BreakerState::Open));
    cards.set_down(false);
    let report = finish(service).await;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (20, 4, 0));
    assert_eq!(breaker.state(), BreakerState::Closed);
    let times: Vec<_> = cards.calls.all().into_iter().map(|(.., at)| at.as_secs()).collect();
    assert_eq!(times[..5], [0, 0, 0, 10, 20]);
    assert!(times[5..].iter().all(|at| *at >= 20), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_or_cancelled_says_nothing() {
    let (memory, broker) = broker_with(&orders(40)).await;
    let handler = async |order: Placed, attempt: Attempt| match order.number {
        39 if attempt.0 == 1 => std::future::pending().await,
        n if n.is_multiple_of(2) => Err(HandlerError::msg("a card that is no card")).permanent(),
        _ => Ok(()),
    };
    let strict = BreakerPolicy::new().failure_rate(0.01, 60 * SECOND, 1).consecutive_failures(1);
    let route = billing().timeout(SECOND * 3600).breaker(strict).handle(handler);
    let service = Router::new().route(route).start(&broker).await.unwrap();
    tokio::time::sleep(SECOND).await;
    // the last one hangs: its claim is lost, it is cancelled, and comes again
    memory.disconnect();
    tokio::time::sleep(SECOND).await;
    assert_eq!(service.health().routes[0].breaker, Some(BreakerState::Closed));
    let report = only(within("it stops", service.stop(SECOND)).await.unwrap());
    assert_eq!((report.dead_lettered, report.handled, report.retried), (20, 19, 0));
}

#[tokio::test(start_paused = true)]
async fn panics_and_time_outs_open_it_and_its_own_time_out_is_the_attempts() {
    let (_, broker) = broker_with(&orders(3)).await;
    let began = Instant::now();
    let handler = async |order: Placed| {
        assert!(order.number != 0, "on purpose");
        std::future::pending::<()>().await;
    };
    let policy = BreakerPolicy::classical().consecutive_failures(3);
    let route = billing().timeout(3600 * SECOND).breaker(policy).handle(handler);
    let router = Router::new().route(route);
    assert_eq!(router.describe().unwrap().routes[0].timeout_ms, 3_000, "the shorter of both");
    let service = router.start(&broker).await.unwrap();
    let mut states = service.breaker("bill").unwrap().watch();
    within("it opens", states.wait_for(|state| *state == BreakerState::Open)).await.unwrap();
    assert_eq!(began.elapsed(), 6 * SECOND, "a panic, and two time-outs of 3 s");
    drop(service);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_it_is_open_probes_nothing_and_gives_all_back_at_once() {
    let (_, broker) = broker_with(&orders(10)).await;
    let cards = Cards::default();
    cards.set_down(true);
    let route = || billing().breaker(policy()).handle(cards.handler());
    let service = Router::new().route(route()).start(&broker).await.unwrap();
    tokio::time::sleep(5 * SECOND).await;
    let calls = cards.calls.all().len();
    let report = within("it stops", service.stop(60 * SECOND)).await.unwrap();
    assert!(report.drained && report.took < SECOND, "{report:?}");
    assert_eq!((cards.calls.all().len(), only(report).given_back), (calls, 10));
    cards.set_down(false);
    let service = Router::new().route(route()).start(&broker).await.unwrap();
    assert_eq!(lag(&service, "bill").await, 10);
    assert_eq!(finish(service).await.handled, 10);
}

#[tokio::test(start_paused = true)]
async fn the_time_for_which_it_is_open_is_not_the_message_s() {
    let (_, broker) = broker_with(&orders(3)).await;
    let cards = Cards::default();
    cards.set_down(true);
    let patience = retry(100, SECOND).max_elapsed(5 * SECOND);
    let route = billing().retry(patience).breaker(policy().open_for(60 * SECOND)).handle(cards.handler());
    let service = Router::new().route(route).start(&broker).await.unwrap();
    tokio::time::sleep(200 * SECOND).await;
    cards.set_down(false);
    let report = finish(service).await;
    assert_eq!((report.handled, report.dead_lettered), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn two_routes_and_a_call_share_a_circuit() {
    let (memory, broker) = broker();
    broker.declare("orders").await.unwrap();
    let shared = Breaker::with(policy(), Env::seeded(3));
    let cards = Cards::default();
    cards.set_down(true);
    let route =
        |group: &str| RouteOptions::new("orders", group).name(group).retry(retry(5, SECOND)).concurrency(1);
    let service = Router::new()
        .route(route("a").shared_breaker(&shared).handle(cards.handler()))
        .route(route("b").shared_breaker(&shared).handle(cards.handler()))
        .start(&broker)
        .await
        .unwrap();
    for order in orders(5) {
        broker.publish("orders", &order).await.unwrap();
    }
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!((cards.calls.all().len(), shared.state()), (3, BreakerState::Open), "both stand still");
    let refused = shared.call(async { Ok::<_, &str>(()) }).await;
    assert!(matches!(refused, Err(BreakerError::Open(_))));
    cards.set_down(false);
    within("nothing is left to do", service.idle()).await;
    let report = service.stop(SECOND).await.unwrap();
    assert_eq!(report.routes.iter().map(|r| r.handled).collect::<Vec<_>>(), [5, 5]);
    drop(memory);
}

#[tokio::test(start_paused = true)]
async fn a_probe_of_one_that_is_cancelled_lets_the_other_probe() {
    let (_, broker) = broker();
    broker.declare("orders").await.unwrap();
    let shared = Breaker::with(policy(), Env::seeded(3));
    for _ in 0..3 {
        shared.call(async { Err::<(), _>("no answer") }).await.unwrap_err();
    }
    tokio::time::sleep(10 * SECOND).await;
    let hanging = tokio::spawn({
        let shared = shared.clone();
        async move { shared.call(std::future::pending::<Result<(), &str>>()).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(shared.state(), BreakerState::HalfOpen);
    let route = billing().shared_breaker(&shared).handle(async |_: Placed| ());
    let service = Router::new().route(route).start(&broker).await.unwrap();
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(lag(&service, "bill").await, 1, "the only place is taken");
    hanging.abort();
    assert_eq!(finish(service).await.handled, 1);
    assert_eq!(shared.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn it_goes_with_batches_workers_and_idempotency() {
    for (workers, store) in [(1, false), (2, false), (1, true), (2, true)] {
        let (_, broker) = broker_with(&orders(200)).await;
        let (down, calls) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (is_down, counted) = (Arc::clone(&down), Arc::clone(&calls));
        let handler = move |batch: Batch<Placed>| {
            counted.fetch_add(1, Relaxed);
            let down = is_down.load(Relaxed);
            async move {
                let each = batch.into_iter().enumerate();
                // one in ten is of its own making, and opens nothing
                each.map(|(i, _)| if down || i % 10 == 9 { Err("no answer") } else { Ok(()) })
                    .collect::<Vec<_>>()
            }
        };
        let policy = BreakerPolicy::new().failure_rate(0.5, 10 * SECOND, 2).probes(1);
        let mut options =
            billing().batch(50).workers(workers).concurrency(2).retry(retry(60, SECOND)).breaker(policy);
        if store {
            options = options.idempotency(Idempotency::auto());
        }
        let router = Router::new().idempotency(MemoryStore::new()).route(options.handle(handler));
        let service = router.start(&broker).await.unwrap();
        tokio::time::sleep(20 * SECOND).await;
        let open = service.health().routes[0].breaker;
        let made = calls.load(Relaxed);
        assert!(
            open == Some(BreakerState::Open) && (2..=4).contains(&made),
            "{workers} {store}: {open:?} {made}"
        );
        down.store(false, Relaxed);
        let report = finish(service).await;
        assert_eq!((report.handled, report.dead_lettered), (200, 0), "{workers} {store}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_durable_retry_that_comes_back_waits_as_well() {
    let (_, broker) = broker_with(&orders(3)).await;
    let cards = Cards::default();
    cards.set_down(true);
    let options = billing().order(Order::None).retry(retry(5, SECOND).durable());
    let route = options.breaker(policy().open_for(100 * SECOND)).handle(cards.handler());
    let service = Router::new().route(route).start(&broker).await.unwrap();
    tokio::time::sleep(99 * SECOND).await;
    assert_eq!(cards.calls.all().len(), 3);
    cards.set_down(false);
    let report = finish(service).await;
    assert_eq!((report.handled, report.retried), (3, 3));
    let attempts: Vec<_> = cards.calls.all().into_iter().map(|(_, attempt, _)| attempt).collect();
    assert_eq!(attempts, [1, 1, 1, 2, 2, 2]);
}

/// A thousand messages a second for half a minute, and what they call is away for ten seconds of it.
#[tokio::test(start_paused = true)]
async fn the_drill() {
    const AWAY: std::ops::Range<u64> = 5..15;
    let (_, broker) = broker();
    broker.declare("orders").await.unwrap();
    let began = Instant::now();
    let calls = Log::<(u64, u32, Duration, BreakerState)>::default();
    let shared = Breaker::with(
        BreakerPolicy::new().consecutive_failures(20).open_for(2 * SECOND).probes(3),
        Env::seeded(1),
    );
    let (log, breaker) = (calls.clone(), shared.clone());
    let handler = move |order: Placed, attempt: Attempt| {
        log.add((order.number, attempt.0, began.elapsed(), breaker.state()));
        async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            if AWAY.contains(&began.elapsed().as_secs()) { Err("no answer") } else { Ok(()) }
        }
    };
    let options = RouteOptions::new("orders", "billing").name("bill").retry(retry(3, SECOND)).concurrency(32);
    let route = options.shared_breaker(&shared).handle(handler);
    let service = Router::new().route(route).start(&broker).await.unwrap();
    let mut states = shared.watch();
    let closed = tokio::spawn(async move {
        let mut closed = Duration::ZERO;
        while states.changed().await.is_ok() {
            if *states.borrow_and_update() == BreakerState::Closed {
                closed = began.elapsed();
            }
            if closed > 15 * SECOND {
                break;
            }
        }
        closed
    });
    for number in 0..30_000_u64 {
        broker.publish("orders", &placed(&format!("c-{}", number % 500), number)).await.unwrap();
        if number.is_multiple_of(10) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let report = finish(service).await;
    assert_eq!((report.handled, report.dead_lettered, report.dropped), (30_000, 0, 0), "none is lost");
    let calls = calls.all();
    let burnt = calls.iter().filter(|(.., state)| *state == BreakerState::Open).count();
    assert_eq!(burnt, 0, "an attempt began while it was open");
    let away: Vec<_> = calls.iter().filter(|(_, _, at, _)| AWAY.contains(&at.as_secs())).collect();
    // what ran when it opened, and three probes each two seconds
    assert!(away.len() <= 20 + 32 + 5 * 3 + 12, "{} calls while it was away", away.len());
    let most = calls.iter().map(|(_, attempt, ..)| *attempt).max();
    assert!(most <= Some(3), "{most:?}");
    let closed = within("it closes", closed).await.unwrap();
    assert!(closed <= 15 * SECOND + 2 * SECOND + SECOND / 10, "it closed after {closed:?}");
    assert!(look(&broker, "orders.billing.dlq").await.is_empty());
}
