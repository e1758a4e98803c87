//! Claims that are lost under a running route: what ran under them is cancelled, comes again, and is no failure.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::prelude::*;
use postrider::{ClaimId, RouteOptions};
use router_kit::{Log, Placed, broker_with, finish, header, lag, look, placed, retry, within};
use tokio::sync::mpsc;

const HOUR: Duration = Duration::from_hours(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").timeout(HOUR).retry(retry(3, HOUR))
}

/// Says when it is dropped.
struct Dropped(mpsc::UnboundedSender<&'static str>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send("cancelled");
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_its_claim_is_lost_is_cancelled_and_its_key_goes_on_under_the_next_claim() {
    for workers in [1, 2] {
        let orders = [placed("ann", 1), placed("ann", 2), placed("bob", 3)];
        let (memory, broker) = broker_with(&orders).await;
        let (tell, mut told) = mpsc::unbounded_channel();
        let runs: Log<(u64, u32, Option<u32>)> = Log::default();
        let log = runs.clone();
        // the first delivery of ann's first order never ends by itself
        let handler = move |order: Placed, meta: Meta| {
            log.add((order.number, meta.attempt(), meta.deliveries()));
            let (tell, hangs) = (tell.clone(), order.number == 1 && meta.deliveries() == Some(1));
            async move {
                if hangs {
                    let _dropped = Dropped(tell.clone());
                    let _ = tell.send("began");
                    std::future::pending::<()>().await;
                }
            }
        };
        let service =
            Router::new().route(billing().workers(workers).handle(handler)).start(&broker).await.unwrap();
        assert_eq!(told.recv().await, Some("began"));
        // until bob's is settled, too
        tokio::time::sleep(HOUR / 60).await;
        memory.disconnect();
        assert_eq!(within("it is cancelled", told.recv()).await, Some("cancelled"));
        let report = finish(service).await;
        assert_eq!((report.handled, report.cancelled, report.given_back), (3, 1, 2), "{workers} workers");
        assert_eq!((report.retried, report.dead_lettered), (0, 0), "a lost claim is no failure");
        let mut ann = runs.all();
        ann.retain(|(number, ..)| *number != 3);
        assert_eq!(ann, [(1, 1, Some(1)), (1, 1, Some(2)), (2, 1, Some(2))]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_next_attempt_when_its_claim_is_lost_begins_anew() {
    let (memory, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    let runs: Log<(u64, u32)> = Log::default();
    let log = runs.clone();
    let handler = move |order: Placed, meta: Meta| {
        log.add((order.number, meta.attempt()));
        std::future::ready(if meta.deliveries() == Some(1) { Err("card service busy") } else { Ok(()) })
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(runs.all(), [(1, 1)]);
    memory.disconnect();
    let report = finish(service).await;
    assert_eq!(runs.all(), [(1, 1), (1, 1), (2, 1)]);
    assert_eq!((report.handled, report.given_back, report.dead_lettered), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_fails_as_its_claim_is_lost_begins_anew_under_the_next_alone() {
    for permanent in [false, true] {
        let (memory, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
        let runs: Log<(u64, u32, Option<u32>)> = Log::default();
        let (log, cut) = (runs.clone(), memory.clone());
        let handler = move |order: Placed, meta: Meta| {
            log.add((order.number, meta.attempt(), meta.deliveries()));
            let first = order.number == 1 && meta.deliveries() == Some(1);
            if first {
                cut.disconnect();
            }
            let declined = Err(HandlerError::msg("card declined"));
            std::future::ready(match (first, permanent) {
                (true, false) => declined,
                (true, true) => declined.permanent(),
                (false, _) => Ok(()),
            })
        };
        // a worker's outcome is on its way when the loss is noticed
        let service = Router::new().route(billing().workers(2).handle(handler)).start(&broker).await.unwrap();
        let report = finish(service).await;
        let counts = (report.handled, report.dead_lettered, report.retried, report.given_back);
        assert_eq!(counts, (2, 0, 0, 2), "permanent: {permanent}");
        assert_eq!(runs.all(), [(1, 1, Some(1)), (1, 1, Some(2)), (2, 1, Some(2))], "permanent: {permanent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_cancelled_as_one_and_comes_again_in_order() {
    let orders: Vec<_> = (1..=4).map(|number| placed("ann", number)).collect();
    let (memory, broker) = broker_with(&orders).await;
    let (began, mut begun) = mpsc::unbounded_channel();
    let batches = Log::default();
    let log = batches.clone();
    let handler = move |Batch(orders): Batch<Placed>, meta: Meta| {
        log.add(orders.iter().map(|order| order.number).collect::<Vec<_>>());
        let (began, hangs) = (began.clone(), meta.deliveries() == Some(1));
        async move {
            if hangs {
                let _ = began.send(());
                std::future::pending::<()>().await;
            }
        }
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    begun.recv().await.unwrap();
    memory.disconnect();
    let report = finish(service).await;
    assert_eq!(batches.all().concat(), [1, 2, 3, 4, 1, 2, 3, 4]);
    assert_eq!((report.handled, report.cancelled), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_lost_while_the_route_is_stalled_is_noticed_at_once() {
    let (memory, broker) = broker_with(&[placed("ann", 1), placed("bob", 2), placed("cem", 3)]).await;
    memory.fail_publishes(usize::MAX);
    let (tell, mut told) = mpsc::unbounded_channel();
    // ann's is poison, and its dead letter is refused; bob's runs on; cem's ends after the route has stalled
    let handler = move |order: Placed, meta: Meta| {
        let tell = tell.clone();
        async move {
            if order.customer == "ann" {
                return Err(HandlerError::msg("card declined")).permanent();
            }
            if order.customer == "cem" {
                tokio::time::sleep(HOUR / 3600).await;
            } else if meta.deliveries() == Some(1) {
                let _dropped = Dropped(tell);
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(HOUR / 60).await;
    memory.disconnect();
    assert_eq!(within("it is cancelled", told.recv()).await, Some("cancelled"));
    // bob's comes again and is handled; ann's comes again, too, and waits for its letter
    tokio::time::sleep(HOUR / 3600).await;
    assert_eq!(lag(&service, "bill").await, 1);
    memory.fail_publishes(0);
    let report = finish(service).await;
    assert_eq!((report.cancelled, report.handled, report.dead_lettered), (1, 2, 1));
    // the letter of the lost claim was given up with it: the message came again, and only then was it dead-lettered
    let letters = look(&broker, "orders.billing.dlq").await;
    assert_eq!((letters.len(), header(&letters[0], "postrider-dlq-deliveries")), (1, "2"));
}

#[tokio::test(start_paused = true)]
async fn each_hold_has_an_epoch_of_its_own_and_a_later_one_is_higher() {
    let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
    let (began, mut begun) = mpsc::unbounded_channel::<ClaimId>();
    let handler = move |_: Placed, meta: Meta| {
        let _ = began.send(meta.claim_epoch());
        let hangs = meta.deliveries() == Some(1);
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
        }
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let first = begun.recv().await.unwrap();
    memory.disconnect();
    let second = within("it comes again", begun.recv()).await.unwrap();
    assert!(second > first && second.shard == first.shard, "{first:?} then {second:?}");
    finish(service).await;
}
