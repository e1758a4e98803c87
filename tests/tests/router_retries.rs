//! Retries that wait at the broker: counted across whoever makes them, never early, and in place where the broker can't help.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::prelude::*;
use postrider::{Order, RouteOptions};
use router_kit::{Log, Placed, broker_with, finish, header, look, placed, retry};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const LETTERS: &str = "orders.billing.dlq";

fn durable(attempts: u32, wait: Duration) -> RouteOptions {
    let retry = retry(attempts, wait).durable();
    RouteOptions::new("orders", "billing").name("bill").order(Order::None).retry(retry).timeout(10 * SECOND)
}

/// A handler that always fails and writes down when it was called, with which attempt.
fn failing(
    log: &Log<(Duration, u32)>,
) -> impl Fn(Placed, Attempt) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + 'static {
    let (log, began) = (log.clone(), Instant::now());
    move |_, attempt| {
        log.add((began.elapsed(), attempt.0));
        std::future::ready(Err("card service busy"))
    }
}

#[tokio::test(start_paused = true)]
async fn every_wait_is_the_next_tier() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let log = Log::default();
    let waits = postrider::Backoff::List(vec![SECOND / 2, 9 * SECOND, 59 * SECOND]);
    let options = durable(4, SECOND);
    let options = options.retry(retry(4, SECOND).backoff(waits).durable());
    let service = Router::new().route(options.handle(failing(&log))).start(&broker).await.unwrap();
    let report = finish(service).await;
    let (times, attempts): (Vec<_>, Vec<_>) = log.all().into_iter().unzip();
    assert_eq!(attempts, [1, 2, 3, 4]);
    let waits: Vec<_> =
        times.windows(2).map(|pair| pair[1].checked_sub(pair[0]).unwrap().as_secs()).collect();
    assert_eq!(waits, [1, 10, 60]);
    assert_eq!((report.retried, report.dead_lettered, report.handled), (3, 1, 0));
    // the letter tells of the message as it was published, not of its copies
    let letters = look(&broker, LETTERS).await;
    assert_eq!(header(&letters[0], "postrider-dlq-origin"), "memory:orders/0");
    assert_eq!(header(&letters[0], "postrider-dlq-attempts"), "4");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_no_copy_leaves_the_message_in_place() {
    let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
    let log = Log::default();
    let service = Router::new().route(durable(3, SECOND).handle(failing(&log))).start(&broker).await.unwrap();
    memory.fail_publishes(1);
    let report = finish(service).await;
    let attempts: Vec<_> = log.all().into_iter().map(|(_, attempt)| attempt).collect();
    assert_eq!((attempts, report.retried, report.dead_lettered), (vec![1, 2, 3], 2, 1));
    // the message, one copy: the other wait was in place
    assert_eq!(look(&broker, "orders").await.len(), 1, "a copy is its group's alone");
    assert_eq!(memory.kept("orders"), 2);
}

#[tokio::test(start_paused = true)]
async fn the_ceiling_on_it_all_counts_from_the_first_failure_on() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let log = Log::default();
    let patience = retry(100, 10 * SECOND).durable().max_elapsed(35 * SECOND);
    let options = durable(1, SECOND).retry(patience);
    let service = Router::new().route(options.handle(failing(&log))).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!((log.all().len(), report.dead_lettered), (4, 1), "at 0, 10, 20 and 30 s");
}

#[tokio::test(start_paused = true)]
async fn stopping_leaves_with_the_broker_what_waits_there() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let log = Log::default();
    let first = Router::new().route(durable(3, 60 * SECOND).handle(failing(&log))).start(&broker).await;
    let first = first.unwrap();
    while log.all().is_empty() {
        tokio::time::sleep(SECOND / 10).await;
    }
    let report = first.stop(SECOND).await.unwrap();
    assert_eq!((report.routes[0].given_back, report.drained), (0, true), "nothing is held while it waits");
    let service =
        Router::new().route(durable(3, 60 * SECOND).handle(failing(&log))).start(&broker).await.unwrap();
    finish(service).await;
    let attempts: Vec<_> = log.all().into_iter().map(|(_, attempt)| attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
}
