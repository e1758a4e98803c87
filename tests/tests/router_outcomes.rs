//! What becomes of one message: handled, retried, or in the dead letters, with all that they say of it. Outputs and order
//! stand in files of their own.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use postrider::prelude::*;
use postrider::{Attribute, Bytes, HeaderValue, MessageId, OnExpired, Order, RouteOptions, RouteReport};
use router_kit::{Log, Placed, broker, broker_with, finish, header, look, placed, retry, within};
use tokio::task::coop::{consume_budget, has_budget_remaining};

const SECOND: Duration = Duration::from_secs(1);
const LETTERS: &str = "orders.billing.dlq";

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(3, SECOND)).timeout(10 * SECOND)
}

/// How a handler misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ill {
    Fails,
    Panics,
    PanicsLate,
    Hangs,
    IsPermanent,
    IsWell,
}

/// Runs one message through a handler that always behaves so; answers the report, the attempts it saw and the dead letters.
async fn run(ill: Ill, workers: usize) -> (RouteReport, Vec<u32>, Vec<Envelope>) {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let attempts = Log::default();
    let log = attempts.clone();
    let handler = move |_: Placed, attempt: Attempt| {
        log.add(attempt.0);
        assert!(ill != Ill::Panics, "no rate for it");
        async move {
            match ill {
                Ill::Fails => Err(HandlerError::msg("card service busy")),
                Ill::IsPermanent => Err(HandlerError::msg("card declined")).permanent(),
                Ill::Hangs => std::future::pending().await,
                Ill::PanicsLate => {
                    tokio::task::yield_now().await;
                    panic!("no rate for it, found late")
                }
                Ill::Panics | Ill::IsWell => Ok(()),
            }
        }
    };
    let service =
        Router::new().route(billing().workers(workers).handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    (report, attempts.all(), look(&broker, LETTERS).await)
}

#[tokio::test(start_paused = true)]
async fn what_succeeds_is_handled_once() {
    for workers in [1, 3] {
        let (report, attempts, letters) = run(Ill::IsWell, workers).await;
        assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 0, 0));
        assert_eq!((attempts, letters.len()), (vec![1], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_panics_or_hangs_is_tried_to_the_last_attempt_then_dead_lettered() {
    for (ill, says) in [
        (Ill::Fails, "card service busy"),
        (Ill::Panics, "the handler panicked: no rate for it"),
        (Ill::PanicsLate, "the handler panicked: no rate for it, found late"),
        (Ill::Hangs, "the attempt took longer than its time-out of 10s"),
    ] {
        for workers in [1, 3] {
            let (report, attempts, letters) = run(ill, workers).await;
            assert_eq!(attempts, [1, 2, 3], "{ill:?} with {workers} workers");
            assert_eq!((report.handled, report.retried, report.dead_lettered), (0, 2, 1), "{ill:?}");
            assert_eq!(letters.len(), 1, "{ill:?}");
            assert_eq!(header(&letters[0], "postrider-dlq-reason"), "exhausted", "{ill:?}");
            assert_eq!(header(&letters[0], "postrider-dlq-attempts"), "3", "{ill:?}");
            assert_eq!(header(&letters[0], "postrider-dlq-error"), says);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_ends_at_its_time_whatever_came_and_went_beside_it() {
    for workers in [1, 3] {
        let (_, broker) = broker_with(&[placed("ann", 0)]).await;
        // the first hangs for good, the others end after a second each
        let handler = async |order: Placed| match order.number {
            0 => std::future::pending().await,
            _ => tokio::time::sleep(SECOND).await,
        };
        let options = billing().order(Order::None).workers(workers).concurrency(8).retry(retry(1, SECOND));
        let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut ended = None;
        for number in 1..400 {
            broker.publish("orders", &placed("bob", number)).await.unwrap();
            tokio::time::sleep(SECOND / 20).await;
            if ended.is_none() && look(&broker, LETTERS).await.len() == 1 {
                ended = Some(began.elapsed());
            }
        }
        let report = finish(service).await;
        assert_eq!((report.handled, report.dead_lettered), (399, 1), "{workers} workers");
        let ended = ended.expect("it never ended");
        assert!(
            (10 * SECOND..=10 * SECOND + SECOND / 10).contains(&ended),
            "{ended:?} with {workers} workers"
        );
    }
}

/// Not on a paused clock, which stands still while anybody is at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_rests_keeps_nobody_from_the_time_out() {
    for workers in [1, 3] {
        let (_, broker) = broker_with(&[placed("ann", 1), placed("bob", 2)]).await;
        let handler = async |order: Placed| match order.number {
            1 => std::future::pending::<()>().await,
            // uses up what its task may do, and asks to go on at once
            _ => {
                poll_fn(|cx| {
                    while has_budget_remaining() {
                        let _ = pin!(consume_budget()).poll(cx);
                    }
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                })
                .await;
            }
        };
        let options = billing().workers(workers).concurrency(2).retry(retry(1, SECOND)).timeout(SECOND / 5);
        let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
        within("both are dead letters", async {
            while look(&broker, LETTERS).await.len() < 2 {
                tokio::time::sleep(SECOND / 100).await;
            }
        })
        .await;
        let report = finish(service).await;
        assert_eq!((report.handled, report.dead_lettered), (0, 2), "{workers} workers");
    }
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_is_dead_lettered_after_one_attempt() {
    let (report, attempts, letters) = run(Ill::IsPermanent, 1).await;
    assert_eq!((report.retried, report.dead_lettered, attempts), (0, 1, vec![1]));
    assert_eq!(header(&letters[0], "postrider-dlq-reason"), "rejected");
    assert_eq!(header(&letters[0], "postrider-dlq-attempts"), "1");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_never_reaches_the_handler_and_keeps_its_bytes() {
    let garbled = Bytes::from_static(b"{\"customer\":\"ann\",\xff\x00");
    let good = Bytes::from_static(b"{\"customer\":\"ann\",\"number\":1}");
    for (body, name, version, reason) in [
        (&garbled, "order.placed", 2, "undecodable"),
        (&good, "order.cancelled", 2, "unknown-type"),
        (&good, "order.placed", 3, "unknown-version"),
        (&good, "order.placed", 1, "unknown-version"),
    ] {
        let (_, broker) = broker();
        let runs = Log::default();
        let log = runs.clone();
        let handler = move |order: Placed| {
            log.add(order);
            std::future::ready(())
        };
        let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
        let message = Envelope::builder(body.clone()).type_name(name).version(version).key("ann");
        broker.publish("orders", message).await.unwrap();
        let report = finish(service).await;
        assert_eq!((report.retried, report.dead_lettered, runs.all()), (0, 1, vec![]), "{reason}");
        let letters = look(&broker, LETTERS).await;
        assert_eq!(header(&letters[0], "postrider-dlq-reason"), reason);
        assert_eq!(letters[0].payload(), body, "{reason}");
        let detailed = header(&letters[0], "postrider-dlq-error-chain").contains(" at line 1 column ");
        assert_eq!(detailed, reason == "undecodable", "what is wrong with the bytes stands beside them");
        assert_eq!((letters[0].type_name(), letters[0].version()), (name, version));
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_no_number_is_unknown_and_told_as_it_came() {
    for found in ["two", "4294967296", "-1", ""] {
        let (_, broker) = broker();
        let route = billing().handle(async |_: Placed| ());
        let service = Router::new().route(route).start(&broker).await.unwrap();
        let body = Bytes::from_static(b"{\"customer\":\"ann\",\"number\":1}");
        let message = Envelope::builder(body).type_name("order.placed");
        broker.publish("orders", message.attribute(Attribute::SchemaVersion, found)).await.unwrap();
        assert_eq!(finish(service).await.dead_lettered, 1, "{found}");
        let letters = look(&broker, LETTERS).await;
        assert_eq!(header(&letters[0], "postrider-dlq-reason"), "unknown-version");
        let error = header(&letters[0], "postrider-dlq-error");
        assert!(
            error.contains(&format!("version `{found}`")) && error.ends_with("reads version 2"),
            "{error}"
        );
        assert_eq!(letters[0].unreadable_version(), Some(found), "and the letter has it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_time_has_passed_is_dead_lettered_or_dropped_as_the_route_says() {
    for (policy, letters, dropped) in [(OnExpired::DeadLetter, 1, 0), (OnExpired::Drop, 0, 1)] {
        let (_, broker) = broker();
        let handler = async |_: Envelope| Err::<(), _>("busy");
        let route = billing().on_expired(policy).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        // good for one attempt: the second would come a second later
        let expires = broker.env().wall_ms() + 500;
        broker.publish("orders", Envelope::builder(Bytes::new()).expires_ms(expires)).await.unwrap();
        let report = finish(service).await;
        assert_eq!((report.retried, report.dead_lettered, report.dropped), (1, letters, dropped));
        let found = look(&broker, LETTERS).await;
        let reasons: Vec<_> = found.iter().map(|letter| header(letter, "postrider-dlq-reason")).collect();
        assert_eq!(reasons, vec!["expired"; letters as usize]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_has_every_header_and_all_that_the_message_had() {
    let (_, broker) = broker();
    let handler = async |_: Placed| {
        let cause = std::io::Error::other("connection refused");
        Err::<(), HandlerError>(HandlerError::from(Busy(cause)))
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let source = Envelope::builder(Bytes::from_static(b"{\"customer\":\"ann\",\"number\":1}"))
        .id(MessageId::parse("order-1"))
        .time_ms(1_700_000_000_123)
        .type_name("order.placed")
        .version(2)
        .key([0xff, 0x00])
        .idempotency_key("payment-1")
        .correlation_id("talk-1")
        .attribute(Attribute::ContentType, "application/json")
        .attribute(Attribute::Source, "/shop")
        .header("tenant", "acme")
        .header("tenant", "acme again")
        .header("blob", HeaderValue::Bytes(&[0, 159, 146]))
        .header("count", 7)
        .build(broker.env())
        .unwrap();
    broker.publish("orders", source.clone()).await.unwrap();
    finish(service).await;

    let letter = look(&broker, LETTERS).await.remove(0);
    assert_eq!((letter.id(), letter.time_ms(), letter.version()), (source.id(), source.time_ms(), 2));
    assert_eq!((letter.payload(), letter.key()), (source.payload(), source.key()));
    let attributes =
        |e: &Envelope| e.headers().attributes().map(|(a, v)| (a, v.to_string())).collect::<Vec<_>>();
    assert_eq!(attributes(&letter), attributes(&source));
    let users = source.headers().len();
    assert!(
        letter.headers().iter().take(users).eq(source.headers().iter()),
        "the user's headers, in their order"
    );
    let said: Vec<_> = letter.headers().iter().skip(users).map(|(n, v)| (n, v.as_text().unwrap())).collect();
    assert_eq!(
        said,
        [
            ("postrider-dlq-reason", "exhausted"),
            ("postrider-dlq-error", "the card service is busy"),
            ("postrider-dlq-error-chain", "the card service is busy: connection refused"),
            ("postrider-dlq-attempts", "3"),
            ("postrider-dlq-deliveries", "1"),
            ("postrider-dlq-first-failed-at", "2026-01-01T00:00:00Z"),
            ("postrider-dlq-last-failed-at", "2026-01-01T00:00:02Z"),
            ("postrider-dlq-channel", "orders"),
            ("postrider-dlq-group", "billing"),
            ("postrider-dlq-handler", "bill"),
            ("postrider-dlq-origin", "memory:orders/0"),
            ("postrider-dlq-redrives", "0"),
            ("postrider-dlq-depth", "1"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_ceiling_on_retries_counts_from_the_first_attempt_not_from_the_arrival() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    let attempts = Log::default();
    let log = attempts.clone();
    // the first holds its key for a minute; the second fails once, and has two seconds of its own
    let handler = move |order: Placed, attempt: Attempt| {
        log.add((order.number, attempt.0));
        async move {
            if order.number == 1 {
                tokio::time::sleep(60 * SECOND).await;
            }
            if order.number == 2 && attempt.0 == 1 { Err("not yet") } else { Ok(()) }
        }
    };
    let options = billing().timeout(90 * SECOND).retry(retry(3, SECOND).max_elapsed(2 * SECOND));
    let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!(attempts.all(), [(1, 1), (2, 1), (2, 2)]);
    assert_eq!((report.handled, report.dead_lettered), (2, 0));
}

/// An error with a cause.
#[derive(Debug)]
struct Busy(std::io::Error);

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the card service is busy")
    }
}

impl std::error::Error for Busy {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}
