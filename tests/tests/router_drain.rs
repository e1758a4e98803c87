//! How a service ends: what runs is finished, what waits is given back, and neither counts as a failure.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use postrider::{Bytes, ErrorKind, RouteOptions, Running};
use router_kit::{
    Invoiced, Log, Placed, broker, broker_with, finish, invoiced, lag, look, only, placed, retry, within,
};
use tokio::sync::mpsc;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);
const LETTERS: &str = "orders.billing.dlq";

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(3, HOUR))
}

fn orders(count: u64) -> Vec<Placed> {
    (1..=count).map(|number| placed(&format!("c-{number}"), number)).collect()
}

/// What a fresh service finds: each order's number with its attempt and how often the broker delivered it.
async fn leftovers(broker: &Broker) -> Vec<(u64, u32, Option<u32>)> {
    let found = Log::default();
    let log = found.clone();
    let handler = move |order: Placed, meta: Meta| {
        log.add((order.number, meta.attempt(), meta.deliveries()));
        std::future::ready(())
    };
    finish(Router::new().route(billing().handle(handler)).start(broker).await.unwrap()).await;
    found.all()
}

#[tokio::test(start_paused = true)]
async fn stop_finishes_what_runs_and_starts_nothing_else() {
    for workers in [1, 2] {
        let (_, broker) = broker_with(&orders(4)).await;
        let (began, mut begun) = mpsc::unbounded_channel();
        // each ends ten seconds after the order to stop
        let handler = move |order: Placed, stop: Stop| {
            let _ = began.send(order.number);
            async move {
                stop.stopping().await;
                tokio::time::sleep(10 * SECOND).await;
            }
        };
        let route = billing().workers(workers).concurrency(2).timeout(HOUR).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        assert_eq!((begun.recv().await, begun.recv().await), (Some(1), Some(2)));
        let report = within("it stops", service.stop(30 * SECOND)).await.unwrap();
        assert_eq!((report.drained, report.took), (true, 10 * SECOND));
        let report = only(report);
        assert_eq!((report.handled, report.given_back, report.cancelled), (2, 2, 0), "{workers} workers");
        assert!(begun.try_recv().is_err(), "nothing has started after the order");
        assert_eq!(leftovers(&broker).await, [(3, 1, Some(2)), (4, 1, Some(2))]);
    }
}

/// A handler may see the order to stop, and be done, before its route's loop has seen it.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nothing_starts_behind_a_handler_that_was_done_because_of_the_order() {
    for workers in [1, 2] {
        let (_, broker) = broker_with(&orders(10)).await;
        let started = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&started);
        let handler = move |_: Placed, stop: Stop| {
            count.fetch_add(1, Relaxed);
            // it has the loop's thread until then
            while !stop.is_stopping() {
                std::thread::yield_now();
            }
            std::future::ready(())
        };
        let route = billing().workers(workers).concurrency(1).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        while started.load(Relaxed) == 0 {
            tokio::time::sleep(SECOND / 100).await;
        }
        let report = only(within("it stops", service.stop(30 * SECOND)).await.unwrap());
        assert_eq!(
            (started.load(Relaxed), report.handled, report.given_back),
            (1, 1, 9),
            "{workers} workers"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_the_rest_is_cancelled_and_given_back_and_is_no_failure() {
    for workers in [1, 2] {
        let (_, broker) = broker_with(&orders(5)).await;
        let (began, mut begun) = mpsc::unbounded_channel();
        let handler = move |order: Placed| {
            let _ = began.send(order.number);
            std::future::pending::<()>()
        };
        let route = billing().workers(workers).concurrency(2).timeout(HOUR).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        assert_eq!((begun.recv().await, begun.recv().await), (Some(1), Some(2)));
        let report = within("it stops", service.stop(5 * SECOND)).await.unwrap();
        assert_eq!((report.drained, report.took), (false, 5 * SECOND));
        let report = only(report);
        assert_eq!((report.handled, report.cancelled, report.given_back), (0, 2, 5), "{workers} workers");
        assert_eq!((report.retried, report.dead_lettered, report.dropped), (0, 0, 0));
        assert_eq!(look(&broker, LETTERS).await.len(), 0);
        let expected: Vec<_> = (1..=5).map(|number| (number, 1, Some(2))).collect();
        assert_eq!(leftovers(&broker).await, expected);
    }
}

/// Panics as it is dropped, once it has counted that.
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
        assert!(std::hint::black_box(false), "on purpose");
    }
}

/// Starts a service whose handlers hang, each with a bomb: which have begun, and how many bombs were dropped.
async fn start_bombs(
    options: RouteOptions,
    broker: &Broker,
) -> (Running, mpsc::UnboundedReceiver<u64>, Arc<AtomicUsize>) {
    let (began, begun) = mpsc::unbounded_channel();
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    let handler = move |order: Placed| {
        let _ = began.send(order.number);
        let bomb = Bomb(Arc::clone(&count));
        async move {
            let _bomb = bomb;
            std::future::pending::<()>().await;
        }
    };
    let service = Router::new().route(options.handle(handler)).start(broker).await.unwrap();
    (service, begun, dropped)
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_as_it_is_cancelled_takes_nothing_with_it() {
    for workers in [1, 2] {
        let (_, broker) = broker_with(&orders(3)).await;
        let options = billing().workers(workers).concurrency(2).timeout(HOUR);
        let (service, mut begun, dropped) = start_bombs(options, &broker).await;
        assert_eq!((begun.recv().await, begun.recv().await), (Some(1), Some(2)));
        let report = only(within("it stops", service.stop(SECOND)).await.unwrap());
        assert_eq!((report.cancelled, report.given_back, report.retried), (2, 3, 0), "{workers} workers");
        assert_eq!(dropped.load(Relaxed), 2);
        let expected: Vec<_> = (1..=3).map(|number| (number, 1, Some(2))).collect();
        assert_eq!(leftovers(&broker).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_that_panic_as_the_service_is_dropped_are_all_dropped() {
    let (_, broker) = broker_with(&orders(3)).await;
    let options = billing().concurrency(3).timeout(HOUR);
    let (service, mut begun, dropped) = start_bombs(options, &broker).await;
    for _ in 0..3 {
        begun.recv().await.unwrap();
    }
    drop(service);
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(dropped.load(Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_stop_between_two_attempts_is_no_failure() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("ann", 2), placed("bob", 3)]).await;
    let handler = async |order: Placed| if order.number == 1 { Err("card service busy") } else { Ok(()) };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    // bob is handled, ann's first waits an hour for its second attempt, and her second behind it
    tokio::time::sleep(SECOND).await;
    assert_eq!(lag(&service, "bill").await, 2);
    let report = within("it stops", service.stop(30 * SECOND)).await.unwrap();
    assert_eq!((report.drained, report.took), (true, Duration::ZERO), "a back-off is not waited for");
    let report = only(report);
    assert_eq!((report.handled, report.given_back, report.dead_lettered, report.cancelled), (1, 2, 0, 0));
    assert_eq!(look(&broker, LETTERS).await.len(), 0);
    assert_eq!(
        leftovers(&broker).await,
        [(1, 1, Some(2)), (2, 1, Some(2))],
        "in their order, from attempt 1"
    );
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_fails_while_the_service_stops_is_given_back_unless_it_was_the_last() {
    for (attempts, dead_lettered, given_back) in [(2, 0, 1), (1, 1, 0)] {
        let (_, broker) = broker_with(&orders(1)).await;
        let (began, mut begun) = mpsc::unbounded_channel();
        let handler = move |_: Placed, stop: Stop| {
            let _ = began.send(());
            async move {
                stop.stopping().await;
                Err::<(), _>("card service busy")
            }
        };
        let route = billing().retry(retry(attempts, SECOND)).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        begun.recv().await.unwrap();
        let report = only(within("it stops", service.stop(30 * SECOND)).await.unwrap());
        assert_eq!((report.dead_lettered, report.given_back), (dead_lettered, given_back));
        assert_eq!(look(&broker, LETTERS).await.len() as u64, dead_lettered);
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_as_the_time_is_up_is_given_back_and_holds_up_nothing() {
    for (workers, permanent) in [(1, true), (2, true), (1, false), (2, false)] {
        let (memory, broker) = broker_with(&orders(20)).await;
        memory.fail_publishes(usize::MAX);
        let handler = move |_: Placed, stop: Stop| async move {
            stop.stopping().await;
            tokio::time::sleep(5 * SECOND).await;
            let declined: Result<(), _> = Err(HandlerError::msg("card declined"));
            if permanent { declined.permanent() } else { declined }
        };
        let route = billing().order(postrider::Order::None).workers(workers).concurrency(20).timeout(HOUR);
        let route = route.retry(retry(3, HOUR).durable()).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        tokio::time::sleep(SECOND).await;
        let report = within("it stops", service.stop(5 * SECOND)).await.unwrap();
        assert!(report.took <= 6 * SECOND, "{workers} workers: {:?}", report.took);
        assert_eq!(only(report).given_back, 20, "{workers} workers, permanent: {permanent}");
        memory.fail_publishes(0);
        assert_eq!(leftovers(&broker).await.len(), 20, "{workers} workers, permanent: {permanent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_dropped_gives_back_all_it_holds() {
    let (_, broker) = broker_with(&orders(3)).await;
    let (began, mut begun) = mpsc::unbounded_channel();
    let handler = move |order: Placed| {
        let _ = began.send(order.number);
        std::future::pending::<()>()
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    begun.recv().await.unwrap();
    drop(service);
    let expected: Vec<_> = (1..=3).map(|number| (number, 1, Some(2))).collect();
    assert_eq!(leftovers(&broker).await, expected);
}

#[tokio::test(start_paused = true)]
async fn idle_waits_for_what_handlers_publish_and_for_back_offs() {
    let (_, broker) = broker();
    let bill = async |order: Placed, attempt: Attempt| {
        tokio::time::sleep(10 * SECOND).await;
        if attempt.0 < 3 { Err("card service busy") } else { Ok(invoiced(&order)) }
    };
    let entered = Log::default();
    let ledger = entered.clone();
    let enter = move |invoice: Invoiced| {
        let ledger = ledger.clone();
        async move {
            tokio::time::sleep(10 * SECOND).await;
            ledger.add(invoice.number);
        }
    };
    let router = Router::new()
        .route(billing().publishes("invoices").handle(bill))
        .route(RouteOptions::new("invoices", "ledger").handle(enter));
    let service = router.start(&broker).await.unwrap();
    within("an idle service is idle", service.idle()).await;
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    assert_eq!(entered.all(), [1]);
    assert_eq!(service.report().routes.iter().map(|r| r.handled).collect::<Vec<_>>(), [1, 1]);
    service.stop(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn run_until_drains_and_closes_the_broker() {
    let (_, broker) = broker_with(&orders(1)).await;
    let (began, mut begun) = mpsc::unbounded_channel();
    let handler = move |_: Placed| {
        let _ = began.send(());
        tokio::time::sleep(10 * SECOND)
    };
    let router = Router::new().route(billing().handle(handler));
    let until = async move { begun.recv().await.unwrap() };
    let report = within("it ends", router.run_until(broker.clone(), until)).await.unwrap();
    assert_eq!((report.drained, report.took), (true, 10 * SECOND));
    assert_eq!(only(report).handled, 1);
    let error = broker.publish("orders", Envelope::builder(Bytes::new())).await.unwrap_err();
    assert_eq!(error.error().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn run_until_ends_with_the_reason_when_a_route_ends_by_itself() {
    let (_, broker) = broker_with(&orders(1)).await;
    let closer = broker.clone();
    // the broker goes away under the service
    let handler = move |_: Placed| {
        let closer = closer.clone();
        async move {
            closer.close(closer.env().now()).await;
        }
    };
    let router = Router::new().route(billing().handle(handler));
    let error = within("it ends", router.run_until(broker, std::future::pending())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let text = error.to_string();
    assert!(text.contains("ended the subscription") && text.contains("orders"), "{text}");
}

/// Others may be at work under it already: whoever drains is told as well, and doesn't go on until the deadline.
#[tokio::test(start_paused = true)]
async fn a_claim_that_is_lost_while_draining_cancels_what_runs_under_it() {
    for workers in [1, 2] {
        let (memory, broker) = broker_with(&orders(2)).await;
        let (began, mut begun) = mpsc::unbounded_channel();
        let handler = move |order: Placed| {
            let _ = began.send(order.number);
            std::future::pending::<()>()
        };
        let route = billing().workers(workers).concurrency(1).timeout(HOUR).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        assert_eq!(begun.recv().await, Some(1));
        let losing = async {
            tokio::time::sleep(5 * SECOND).await;
            memory.disconnect();
        };
        let (report, ()) = tokio::join!(service.stop(HOUR), losing);
        let report = report.unwrap();
        assert_eq!(report.took, 5 * SECOND, "not at the deadline");
        let report = only(report);
        assert_eq!((report.handled, report.cancelled, report.given_back), (0, 1, 2), "{workers} workers");
        assert!(begun.try_recv().is_err(), "nothing else has started");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_all_clocks_holds_up_nobody_else() {
    let (_, broker) = broker_with(&orders(2)).await;
    let handler = |order: Placed| {
        let advised = Err::<(), _>(HandlerError::msg("not in this life")).retry_after(Duration::MAX);
        std::future::ready(if order.number == 1 { advised } else { Ok(()) })
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(HOUR).await;
    let report = only(within("it stops", service.stop(SECOND)).await.unwrap());
    assert_eq!((report.handled, report.given_back), (1, 1));
}
