//! The largest durations and sizes that can be written: they mean "no limit", or are refused by name.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::prelude::*;
use postrider::{
    Backoff, BreakerPolicy, Idempotency, Jitter, MemoryStore, Outgoing, PublishOptions, RatePolicy, Retry,
    RouteOptions,
};
use router_kit::{Placed, broker, only, placed, within};

const SECOND: Duration = Duration::from_secs(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill")
}

/// Every limit of a route at its largest.
fn unlimited() -> RouteOptions {
    let retry =
        Retry::new().attempts(u32::MAX).max_elapsed(Duration::MAX).backoff(Backoff::Fixed(Duration::ZERO));
    let breaker = BreakerPolicy::new()
        .failure_rate(1.0, Duration::MAX, u32::MAX)
        .slow_calls(Duration::MAX, 1.0)
        .open_for(Duration::MAX)
        .probes(u32::MAX)
        .timeout(Duration::MAX);
    billing()
        .timeout(Duration::MAX)
        .retry(retry)
        .breaker(breaker)
        .rate(RatePolicy::new(u32::MAX, Duration::from_millis(1)).burst(u32::MAX))
        .idempotency(Idempotency::auto().ttl(Duration::MAX))
        .max_in_flight(usize::MAX)
        .max_in_flight_bytes(usize::MAX)
        .concurrency(usize::MAX)
        .claim_timeout(Duration::MAX)
        .crash_limit(u32::MAX)
}

#[tokio::test(start_paused = true)]
async fn the_largest_of_every_option_is_no_limit() {
    let (_, broker) = broker();
    // one attempt fails, so that each of the policies is asked
    let handler = async |order: Placed, attempt: Attempt| {
        tokio::time::sleep(SECOND).await;
        if order.number == 1 && attempt.0 == 1 { Err("not yet") } else { Ok(()) }
    };
    let router = Router::new().idempotency(MemoryStore::new()).route(unlimited().handle(handler));
    let table = router.describe().unwrap();
    assert_eq!(table.routes[0].worst_case_ms, u64::MAX);
    assert!(table.to_string().ends_with("no limit"), "{table}");
    let service = router.start(&broker).await.unwrap();
    for number in 0..3 {
        let envelope = Envelope::builder(placed("ann", number)).build(broker.env()).unwrap();
        let mut options = PublishOptions::default();
        options.deadline = Some(Duration::MAX);
        let body = serde_json::to_vec(envelope.payload()).unwrap();
        let envelope = envelope.map(|_| body.into());
        broker.send(Outgoing::new("orders", envelope).with(options)).await.await.unwrap();
    }
    within("all are handled", service.idle()).await;
    let report = only(within("it stops", service.stop(Duration::MAX)).await.unwrap());
    assert_eq!((report.handled, report.retried, report.dead_lettered), (3, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_deadline_waits_for_what_runs() {
    let (_, broker) = broker();
    let handler = async |_: Placed| tokio::time::sleep(Duration::from_hours(1000)).await;
    let options = billing().timeout(Duration::MAX);
    let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let report = service.stop(Duration::MAX).await.unwrap();
    assert!(report.drained && report.took > Duration::from_hours(999), "{:?}", report.took);
    assert_eq!(only(report).handled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_a_limit_takes_all_that_is_there() {
    let (_, broker) = broker();
    let options = billing().batch(usize::MAX).max_in_flight(usize::MAX).max_in_flight_bytes(usize::MAX);
    let route = options.handle(async |_: Batch<Placed>| ());
    let service = Router::new().route(route).start(&broker).await.unwrap();
    for outcome in broker.publish_all("orders", &[placed("ann", 1), placed("ben", 2)]).await {
        outcome.unwrap();
    }
    within("all are handled", service.idle()).await;
    assert_eq!(only(service.stop(SECOND).await.unwrap()).handled, 2);
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_an_end_is_one() {
    let (_, broker) = broker();
    for (back_off, advised) in [(Duration::MAX, None), (Duration::ZERO, Some(Duration::MAX))] {
        for jitter in [Jitter::None, Jitter::Full, Jitter::Decorrelated] {
            let handler = move |_: Placed| async move {
                let failed: Result<(), HandlerError> = Err(HandlerError::msg("later"));
                advised.map_or(failed, |after| Err("later").retry_after(after))
            };
            let retry = Retry::new().backoff(Backoff::Fixed(back_off)).jitter(jitter);
            let route = RouteOptions::ephemeral("orders").retry(retry).handle(handler);
            let service = Router::new().route(route).start(&broker).await.unwrap();
            broker.publish("orders", &placed("ann", 1)).await.unwrap();
            tokio::time::sleep(Duration::from_hours(24)).await;
            let report = only(within("it stops", service.stop(SECOND)).await.unwrap());
            assert_eq!((report.retried, report.handled), (1, 0), "{back_off:?} {jitter:?}");
        }
    }
}

#[tokio::test]
async fn what_has_no_largest_is_refused_by_name() {
    let (_, broker) = broker();
    let route = billing().workers(usize::MAX).handle(async |_: Placed| ());
    let error = Router::new().route(route).start(&broker).await.unwrap_err().to_string();
    assert!(error.contains("`workers`") && error.contains("at most 1024"), "{error}");
    // remembered for a week, but a message may take for ever
    let route =
        billing().timeout(Duration::MAX).idempotency(Idempotency::auto()).handle(async |_: Placed| ());
    let router = Router::new().idempotency(MemoryStore::new()).route(route);
    let error = router.start(&broker).await.unwrap_err().to_string();
    assert!(error.contains("remember for `Duration::MAX`"), "{error}");
}
