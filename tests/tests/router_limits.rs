//! A route's rate, bulkheads that routes share, which errors are worth another attempt, and dead letters by their reason.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::fmt;
use std::time::Duration;

use postrider::prelude::*;
use postrider::{
    Bulkhead, BulkheadError, BulkheadPolicy, Bytes, Env, Idempotency, MemoryStore, RateLimit, RatePolicy,
    Reason, Retry, RouteOptions,
};
use router_kit::{Log, Placed, broker_with, finish, header, look, only, placed, retry, within};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(2, SECOND))
}

fn orders(count: u64) -> Vec<Placed> {
    (0..count).map(|n| placed(&format!("c-{n}"), n)).collect()
}

/// A handler that writes down when it was called.
fn noting(log: &Log<Duration>) -> impl Fn(Placed) -> std::future::Ready<()> + Clone + Send + Sync + 'static {
    let (log, began) = (log.clone(), Instant::now());
    move |_| {
        log.add(began.elapsed());
        std::future::ready(())
    }
}

/// No span of time sees more than what the rate gives, and one burst.
fn within_rate(times: &[Duration], per_second: usize, burst: usize) {
    for (i, from) in times.iter().enumerate() {
        for (j, to) in times.iter().enumerate().skip(i) {
            let most = to.abs_diff(*from).as_secs_f64() * per_second as f64 + burst as f64;
            // a tick of the paused clock is a millisecond
            assert!((j - i) as f64 <= most + 1.0, "{} from {from:?} to {to:?}", j - i + 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_over_the_rate_waits_and_nothing_fails() {
    for (workers, once) in [(1, false), (2, false), (1, true)] {
        let (_, broker) = broker_with(&orders(200)).await;
        let log = Log::default();
        let mut options = billing().workers(workers).rate(RatePolicy::new(20, SECOND).burst(10));
        if once {
            options = options.idempotency(Idempotency::auto());
        }
        let router = Router::new().idempotency(MemoryStore::new()).route(options.handle(noting(&log)));
        let report = finish(router.start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.retried), (200, 0));
        let times = log.all();
        within_rate(&times, 20, 10);
        assert_eq!(times.iter().filter(|at| **at < SECOND / 100).count(), 10, "the burst");
        let last = times[199].as_secs_f64();
        assert!((9.4..9.8).contains(&last), "the rate is used up: {last} s");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_and_batches_are_counted_too_and_duplicates_are_not() {
    let (_, broker) = broker_with(&orders(10)).await;
    let (log, began) = (Log::default(), Instant::now());
    let noted = log.clone();
    let failing = move |_: Placed| {
        noted.add(began.elapsed());
        async { Err::<(), _>("no answer") }
    };
    let options = billing().retry(retry(2, Duration::ZERO)).rate(RatePolicy::new(10, SECOND));
    let report = finish(Router::new().route(options.handle(failing)).start(&broker).await.unwrap()).await;
    assert_eq!((report.dead_lettered, log.all().len()), (10, 20));
    within_rate(&log.all(), 10, 1);

    // a batch may begin when one message may; the next one waits for all of it
    let (_, broker) = broker_with(&orders(100)).await;
    let (log, began) = (Log::default(), Instant::now());
    let noted = log.clone();
    let batches = move |batch: Batch<Placed>| {
        noted.add((batch.0.len(), began.elapsed().as_millis() / 100));
        async {}
    };
    let options = billing().batch(50).rate(RatePolicy::new(10, SECOND));
    finish(Router::new().route(options.handle(batches)).start(&broker).await.unwrap()).await;
    assert_eq!(log.all(), [(50, 0), (50, 50)]);

    // each message twice, and each handled once: the second ones take nothing of the rate
    let (_, broker) = router_kit::broker();
    broker.declare("orders").await.unwrap();
    let envelopes: Vec<_> =
        (0..10).map(|n| Envelope::builder(Bytes::from(n.to_string())).build(broker.env()).unwrap()).collect();
    let began = Instant::now();
    let options = billing().idempotency(Idempotency::auto()).rate(RatePolicy::new(10, SECOND));
    let router = Router::new().idempotency(MemoryStore::new()).route(options.handle(async |_: Envelope| ()));
    let service = router.start(&broker).await.unwrap();
    for envelope in envelopes.iter().chain(&envelopes) {
        broker.publish("orders", envelope.clone()).await.unwrap();
    }
    let report = finish(service).await;
    assert_eq!((report.handled, report.duplicates), (10, 10));
    assert!(began.elapsed() < SECOND * 3 / 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_two_routes_share_holds_for_both_together() {
    let (_, broker) = broker_with(&orders(50)).await;
    let (log, limit) = (Log::default(), RateLimit::with(RatePolicy::new(10, SECOND), Env::seeded(1)));
    let handler = noting(&log);
    let route = |group: &str| RouteOptions::new("orders", group).shared_rate(&limit).handle(handler.clone());
    let service = Router::new().route(route("a")).route(route("b")).start(&broker).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    service.stop(SECOND).await.unwrap();
    assert_eq!(log.all().len(), 100);
    within_rate(&log.all(), 10, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_doesnt_wait_for_the_rate() {
    let (_, broker) = broker_with(&orders(50)).await;
    let options = billing().rate(RatePolicy::new(1, 3600 * SECOND));
    let service = Router::new().route(options.handle(async |_: Placed| ())).start(&broker).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let report = within("it stops", service.stop(60 * SECOND)).await.unwrap();
    assert!(report.drained && report.took < SECOND);
    let report = only(report);
    assert_eq!((report.handled, report.given_back), (1, 49));
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_that_routes_share_is_given_in_turn_and_leaves_others_alone() {
    let (_, broker) = broker_with(&orders(40)).await;
    let (cards, log, began) =
        (Bulkhead::with(BulkheadPolicy::new(2), Env::seeded(1)), Log::default(), Instant::now());
    let slow = |name: &'static str| {
        let (log, cards) = (log.clone(), cards.clone());
        move |_: Placed| {
            let (log, taken) = (log.clone(), cards.free());
            async move {
                tokio::time::sleep(SECOND).await;
                log.add((name, began.elapsed().as_secs(), taken));
            }
        }
    };
    let route = |group: &str| RouteOptions::new("orders", group).name(group);
    let service = Router::new()
        .route(route("a").bulkhead(&cards).handle(slow("a")))
        .route(route("b").bulkhead(&cards).handle(slow("b")))
        .route(route("free").handle(slow("free")))
        .start(&broker)
        .await
        .unwrap();
    within("nothing is left to do", service.idle()).await;
    service.stop(SECOND).await.unwrap();
    let all = log.all();
    let of = |name: &str| all.iter().filter(|(n, ..)| *n == name).map(|(_, at, _)| *at).collect::<Vec<_>>();
    assert!(of("free").iter().all(|at| *at == 1), "another route has all its own places");
    let (a, b) = (of("a"), of("b"));
    assert_eq!((a.len(), b.len()), (40, 40));
    for second in 1..=40 {
        let now = a.iter().chain(&b).filter(|at| **at == second).count();
        assert_eq!(now, 2, "in second {second}");
    }
    // neither starves: half of the time is half of the work of each
    let by_then = |times: &[u64]| times.iter().filter(|at| **at <= 20).count();
    assert!(by_then(&a).abs_diff(by_then(&b)) <= 4, "{} {}", by_then(&a), by_then(&b));
    assert_eq!(cards.free(), 2);
}

#[tokio::test(start_paused = true)]
async fn calls_inside_of_handlers_share_a_bulkhead_with_a_queue() {
    let (_, broker) = broker_with(&orders(4)).await;
    let cards = Bulkhead::with(BulkheadPolicy::new(1).queue(2).wait(SECOND / 2), Env::seeded(1));
    let log = Log::default();
    let noted = log.clone();
    let handler = move |_: Placed| {
        let (cards, log) = (cards.clone(), noted.clone());
        async move {
            let work = async {
                tokio::time::sleep(SECOND * 2 / 5).await;
                Ok::<_, BulkheadError<()>>(())
            };
            log.add(match cards.call(work).await {
                Ok(()) => "called",
                Err(BulkheadError::Full) => "full",
                Err(BulkheadError::TimedOut(_)) => "too late",
                Err(BulkheadError::Failed(_)) => "failed",
            });
        }
    };
    finish(Router::new().route(billing().handle(handler)).start(&broker).await.unwrap()).await;
    let mut all = log.all();
    all.sort_unstable();
    assert_eq!(all, ["called", "called", "full", "too late"]);
}

/// What a card service may say.
#[derive(Debug)]
enum CardError {
    Declined,
    Busy,
}

impl fmt::Display for CardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for CardError {}

fn worth_it(error: &(dyn std::error::Error + 'static)) -> bool {
    !matches!(error.downcast_ref(), Some(CardError::Declined))
}

#[tokio::test(start_paused = true)]
async fn errors_that_are_not_worth_it_go_straight_to_the_dead_letters() {
    let patience = Retry::new().attempts(3).only_if(worth_it);
    let (_, broker) = broker_with(&orders(4)).await;
    let handler = async |order: Placed| -> Result<(), HandlerError> {
        match order.number {
            0 => Err(CardError::Declined)?,
            1 => Err(CardError::Busy)?,
            // a mark hides nothing from the question
            2 => Err(CardError::Declined).retry_after(SECOND)?,
            _ => std::future::pending().await,
        }
        Ok(())
    };
    let options = billing().timeout(SECOND).retry(patience.clone());
    let report = finish(Router::new().route(options.handle(handler)).start(&broker).await.unwrap()).await;
    assert_eq!((report.retried, report.dead_lettered), (4, 4), "busy and the time-out are tried three times");
    let letters = look(&broker, "orders.billing.dlq").await;
    let count = |reason| letters.iter().filter(|l| header(l, "postrider-dlq-reason") == reason).count();
    assert_eq!((count("rejected"), count("exhausted")), (2, 2));

    let (_, broker) = broker_with(&orders(4)).await;
    let batches = async |batch: Batch<Placed>| {
        let each = batch
            .into_iter()
            .map(|order| if order.number == 1 { Err(CardError::Busy) } else { Err(CardError::Declined) });
        each.collect::<Vec<Result<(), _>>>()
    };
    let options = billing().retry(patience);
    let report = finish(Router::new().route(options.handle(batches)).start(&broker).await.unwrap()).await;
    assert_eq!((report.retried, report.dead_lettered), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn each_reason_may_have_dead_letters_of_its_own() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    broker
        .publish("orders", Envelope::builder(Bytes::from_static(b"{")).type_name("order.placed").version(2))
        .await
        .unwrap();
    let handler = async |_: Placed| Err::<(), _>("no answer");
    let options = billing().dead_letter_for(Reason::Undecodable, "orders.broken");
    let router = Router::new().route(options.handle(handler));
    let description = router.describe().unwrap();
    assert_eq!(description.routes[0].dead_letter_for["undecodable"], "orders.broken");
    assert!(
        description.to_string().contains("orders.billing.dlq, undecodable: orders.broken"),
        "{description}"
    );
    let service = router.start(&broker).await.unwrap();
    assert_eq!(finish(service).await.dead_lettered, 2);
    let reasons = async |channel: &str| {
        look(&broker, channel)
            .await
            .iter()
            .map(|l| header(l, "postrider-dlq-reason").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (reasons("orders.billing.dlq").await, reasons("orders.broken").await),
        (vec!["exhausted".into()], vec!["undecodable".into()])
    );

    let lossy = billing().no_dead_letter().dead_letter_for(Reason::Exhausted, "orders");
    let refused = Router::new().route(lossy.handle(handler)).describe().unwrap_err();
    assert!(refused.to_string().contains("never ends"), "{refused}");
}
