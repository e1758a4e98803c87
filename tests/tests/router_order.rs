//! The order of a key, through retries and batches: nothing of a key starts while an earlier message of it is unsettled.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::prelude::*;
use postrider::{Order, RouteOptions};
use router_kit::{Log, Placed, broker_with, finish, header, look, placed, retry};

const SECOND: Duration = Duration::from_secs(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").retry(retry(3, SECOND))
}

/// Two customers' orders, one after the other: a1 b1 a2 b2 …
fn alternating(each: u64) -> Vec<Placed> {
    (1..=each).flat_map(|number| [placed("ann", number), placed("bob", number)]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_retried_message_keeps_its_place_while_other_keys_pass() {
    for workers in [1, 3] {
        let (_, broker) = broker_with(&alternating(4)).await;
        let runs = Log::default();
        let log = runs.clone();
        let handler = move |order: Placed, attempt: Attempt| {
            log.add((order.customer.clone(), order.number, attempt.0));
            async move {
                // let others in between
                tokio::task::yield_now().await;
                let fails = order.customer == "ann" && order.number == 2 && attempt.0 < 3;
                if fails { Err("not yet") } else { Ok(()) }
            }
        };
        let route = billing().workers(workers).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        let report = finish(service).await;
        assert_eq!((report.handled, report.retried, report.dead_lettered), (8, 2, 0));
        let of = |customer: &str| {
            let all = runs.all().into_iter().filter(|(c, ..)| c == customer);
            all.map(|(_, number, attempt)| (number, attempt)).collect::<Vec<_>>()
        };
        assert_eq!(of("ann"), [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1)], "with {workers} workers");
        assert_eq!(of("bob"), [(1, 1), (2, 1), (3, 1), (4, 1)]);
        let place = |wanted: (&str, u64, u32)| {
            runs.all().iter().position(|(c, n, a)| (c.as_str(), *n, *a) == wanted).unwrap()
        };
        assert!(place(("bob", 4, 1)) < place(("ann", 2, 2)), "bob waits for nothing of ann's");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_wait_the_second_attempt_is_made_at_once_and_others_go_before_the_third() {
    // one that is done at once, and one that isn't, so that the others are in line already when it fails
    for waits in [false, true] {
        let (_, broker) = broker_with(&[placed("ann", 1), placed("bob", 1), placed("eve", 1)]).await;
        let runs = Log::default();
        let log = runs.clone();
        let handler = move |order: Placed, attempt: Attempt| {
            log.add((order.customer.clone(), attempt.0));
            async move {
                if waits {
                    tokio::task::yield_now().await;
                }
                if order.customer == "ann" && attempt.0 < 4 { Err("not yet") } else { Ok(()) }
            }
        };
        let route = billing().concurrency(1).retry(retry(4, Duration::ZERO)).handle(handler);
        let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.retried), (3, 3));
        let runs = runs.all();
        let runs: Vec<_> = runs.iter().map(|(customer, attempt)| (customer.as_str(), *attempt)).collect();
        let expected = [("ann", 1), ("ann", 2), ("bob", 1), ("eve", 1), ("ann", 3), ("ann", 4)];
        assert_eq!(runs, expected, "it waits: {waits}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_on_after_its_message_was_dead_lettered() {
    let (_, broker) = broker_with(&alternating(3)).await;
    let runs = Log::default();
    let log = runs.clone();
    let handler = move |order: Placed| {
        log.add((order.customer.clone(), order.number));
        std::future::ready(if order.number == 1 { Err(HandlerError::msg("no")).permanent() } else { Ok(()) })
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!((report.handled, report.dead_lettered), (4, 2));
    let ann: Vec<_> = runs.all().into_iter().filter(|(c, _)| c == "ann").map(|(_, number)| number).collect();
    assert_eq!(ann, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn one_key_runs_one_at_a_time_unless_the_route_asks_for_no_order() {
    for (order, expected) in [(Order::Key, 2), (Order::Partition, 1), (Order::None, 6)] {
        let (_, broker) = broker_with(&alternating(3)).await;
        let running = std::sync::Arc::new(tokio::sync::Mutex::new((0_u32, 0_u32)));
        let counted = std::sync::Arc::clone(&running);
        let handler = move |_: Placed| {
            let counted = std::sync::Arc::clone(&counted);
            async move {
                let mut count = counted.lock().await;
                *count = (count.0 + 1, count.1.max(count.0 + 1));
                drop(count);
                tokio::time::sleep(SECOND).await;
                counted.lock().await.0 -= 1;
            }
        };
        let service =
            Router::new().route(billing().order(order).handle(handler)).start(&broker).await.unwrap();
        assert_eq!(finish(service).await.handled, 6);
        assert_eq!(running.lock().await.1, expected, "at most so many at once with {order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_item_of_a_batch_the_rest_of_its_key_counts_as_not_run() {
    let orders = [placed("ann", 1), placed("ann", 2), placed("bob", 1), placed("ann", 3), placed("bob", 2)];
    let (_, broker) = broker_with(&orders).await;
    let batches = Log::default();
    let log = batches.clone();
    let handler = move |Batch(orders): Batch<Placed>, attempt: Attempt| {
        let names = orders.iter().map(|o| format!("{}{}", o.customer, o.number)).collect::<Vec<_>>();
        log.add((attempt.0, names.join(" ")));
        let outcome = |order: &Placed| {
            let fails = order.customer == "ann" && order.number == 2 && attempt.0 < 3;
            if fails { Err(HandlerError::msg("not yet")) } else { Ok(()) }
        };
        std::future::ready(orders.iter().map(outcome).collect::<Vec<_>>())
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    let batches = batches.all();
    let mut first: Vec<_> = batches[0].1.split(' ').collect();
    assert!(
        first.iter().filter(|name| name.starts_with("ann")).eq(["ann1", "ann2", "ann3"].iter()),
        "{first:?}"
    );
    first.sort_unstable();
    assert_eq!(first, ["ann1", "ann2", "ann3", "bob1", "bob2"], "all fit into one batch");
    assert_eq!(batches[1..], [(2, "ann2 ann3".to_owned()), (3, "ann2 ann3".to_owned())]);
    assert_eq!((report.handled, report.retried, report.dead_lettered), (5, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn items_of_a_batch_are_given_up_on_one_by_one() {
    let orders = [placed("ann", 1), placed("ann", 2), placed("ann", 3)];
    let (_, broker) = broker_with(&orders).await;
    let runs = Log::default();
    let log = runs.clone();
    // the middle one fails always; the last counts as not run each time, and has all its attempts left
    let handler = move |Batch(orders): Batch<Placed>| {
        log.add(orders.iter().map(|order| order.number).collect::<Vec<_>>());
        let outcome = |order: &Placed| if order.number == 2 { Err(HandlerError::msg("no")) } else { Ok(()) };
        std::future::ready(orders.iter().map(outcome).collect::<Vec<_>>())
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!(runs.all(), [vec![1, 2, 3], vec![2, 3], vec![2, 3]]);
    assert_eq!((report.handled, report.retried, report.dead_lettered), (2, 2, 1));
    let letters = look(&broker, "orders.billing.dlq").await;
    assert_eq!((letters.len(), header(&letters[0], "postrider-dlq-attempts")), (1, "3"));
    assert_eq!(&letters[0].payload()[..], br#"{"customer":"ann","number":2}"#);
}

#[tokio::test(start_paused = true)]
async fn a_batch_handler_that_answers_for_too_few_has_its_whole_batch_tried_again() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("bob", 1)]).await;
    let handler = async |_: Batch<Placed>| vec![Ok::<(), HandlerError>(())];
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    // alone, one outcome for one message is right
    let letters = look(&broker, "orders.billing.dlq").await;
    assert_eq!(report.handled + report.dead_lettered, 2, "{report:?}");
    assert!(report.retried >= 2, "{report:?}");
    for letter in letters {
        assert_eq!(header(&letter, "postrider-dlq-error"), "the handler returned 1 outcomes for 2 messages");
    }
}
