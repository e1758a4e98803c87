//! What a handler returns or publishes: confirmed before its input is acknowledged, under ids that a re-run repeats.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use postrider::memory::{FaultPlan, MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{Env, MessageId, RouteOptions};
use router_kit::{
    Invoiced, Log, Placed, broker_with, finish, header, invoiced, lag, look, placed, retry, within,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").publishes("invoices").retry(retry(3, SECOND))
}

async fn invoice(order: Placed) -> Invoiced {
    invoiced(&order)
}

#[tokio::test(start_paused = true)]
async fn the_input_is_acknowledged_only_after_its_output_is_confirmed() {
    for workers in [1, 2] {
        // every publish takes an hour of this broker's clock
        let plan = FaultPlan::seeded(1).delayed(1.0, HOUR);
        let broker = Broker::new(MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(7), plan));
        let route = billing().workers(workers).handle(invoice);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        broker.publish("orders", &placed("ann", 1)).await.unwrap();
        // the clock moves only when every task waits: by then the handler has returned, and its output is on its way
        tokio::time::sleep(HOUR / 2).await;
        assert_eq!(lag(&service, "bill").await, 1, "the input is still unsettled");
        assert_eq!(service.report().routes[0].handled, 0);
        assert_eq!(look(&broker, "invoices").await.len(), 0);
        let report = finish(service).await;
        // the output took longer than the 30 s that a handler may take, but waiting for a confirm is no handling
        assert_eq!((report.handled, report.retried), (1, 0));
        assert_eq!(look(&broker, "invoices").await.len(), 1);
    }
}

/// Whose handler is done takes no place of `concurrency` while its output is on its way; what bounds those is the window, and the order.
#[tokio::test(start_paused = true)]
async fn while_outputs_are_confirmed_other_handlers_run_as_far_as_window_and_order_allow() {
    const ORDERS: usize = 20;
    let customers: Vec<_> = (0..ORDERS).map(|number| format!("customer {number}")).collect();
    let one = vec!["ann".to_owned(); ORDERS];
    // so many handlers are done before the first output is confirmed
    for (customers, window, done) in [(&customers, 100, ORDERS), (&customers, 7, 7), (&one, 100, 1)] {
        for (workers, pause) in [(1, Duration::ZERO), (1, SECOND), (3, Duration::ZERO), (3, SECOND)] {
            // every publish takes a minute of this broker's clock
            let plan = FaultPlan::seeded(1).delayed(1.0, 60 * SECOND);
            let broker = MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(7), plan);
            let broker = Broker::new(broker);
            broker.declare("orders").await.unwrap();
            for customer in customers {
                broker.publish("orders", &placed(customer, 1)).await.unwrap();
            }
            let at_work = Arc::new(AtomicUsize::new(0));
            let ended = Log::default();
            let log = ended.clone();
            let handler = move |order: Placed| {
                assert!(at_work.fetch_add(1, Relaxed) < 2, "more handlers than places");
                let (at_work, log) = (Arc::clone(&at_work), log.clone());
                async move {
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    at_work.fetch_sub(1, Relaxed);
                    log.add(());
                    invoiced(&order)
                }
            };
            let options = billing().workers(workers).concurrency(2).max_in_flight(window);
            let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
            tokio::time::sleep(30 * SECOND).await;
            let case = format!("window {window}, {workers} workers, each {pause:?}");
            assert_eq!(ended.all().len(), done, "{case}");
            assert_eq!(service.report().routes[0].handled, 0, "{case}");
            let report = finish(service).await;
            assert_eq!((report.handled as usize, report.retried), (ORDERS, 0), "{case}");
            assert_eq!(look(&broker, "invoices").await.len(), ORDERS, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_refused_leaves_its_input_unacknowledged_and_the_handler_runs_again() {
    let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
    memory.fail_publishes(2);
    let attempts = Log::default();
    let log = attempts.clone();
    let handler = move |order: Placed, attempt: Attempt| {
        log.add(attempt.0);
        invoice(order)
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(attempts.all(), [1]);
    assert_eq!(lag(&service, "bill").await, 1, "an input whose output isn't stored stays with the broker");
    let report = finish(service).await;
    assert_eq!(attempts.all(), [1, 2, 3]);
    assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 2, 0));
    let invoices = look(&broker, "invoices").await;
    assert_eq!(invoices.len(), 1, "a refused output is not stored");
    assert_eq!(&invoices[0].payload()[..], br#"{"customer":"ann","number":1}"#);
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_refused_every_time_ends_in_the_dead_letters() {
    let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
    memory.fail_publishes(3);
    let service = Router::new().route(billing().handle(invoice)).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!((report.handled, report.dead_lettered), (0, 1));
    let letters = look(&broker, "orders.billing.dlq").await;
    assert_eq!(header(&letters[0], "postrider-dlq-reason"), "exhausted");
    assert!(header(&letters[0], "postrider-dlq-error").contains("not stored"));
    assert_eq!(look(&broker, "invoices").await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rerun_publishes_the_same_ids_again() {
    const ORDERS: u64 = 30;
    // half of all confirms are lost: stored, but the publisher can't know
    let plan = FaultPlan::seeded(3).confirm_lost(0.5);
    let broker = Broker::new(MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(7), plan));
    let handler = async |order: Placed, publish: Publish<Invoiced>| {
        publish.send(&invoiced(&order)).await?;
        Ok::<_, HandlerError>(vec![invoiced(&order), invoiced(&order)])
    };
    let route = billing().retry(retry(100, SECOND)).handle(handler);
    let service = Router::new().route(route).start(&broker).await.unwrap();
    for number in 0..ORDERS {
        // unknown or confirmed: it is stored
        let _ = broker.publish("orders", &placed("ann", number)).await;
    }
    let report = finish(service).await;
    assert_eq!((report.handled, report.dead_lettered), (ORDERS, 0));
    assert!(report.retried > 0, "no confirm was lost, so this shows nothing");
    let mut ids: HashMap<String, HashSet<MessageId>> = HashMap::new();
    let invoices = look(&broker, "invoices").await;
    for invoice in &invoices {
        ids.entry(invoice.causation_id().unwrap().into()).or_default().insert(invoice.id().clone());
    }
    assert_eq!(ids.len() as u64, ORDERS, "each names the order that caused it");
    assert!(
        ids.values().all(|ids| ids.len() == 3),
        "one id for each output, however often it was sent: {ids:?}"
    );
    assert_eq!(ids.values().flatten().collect::<HashSet<_>>().len() as u64, 3 * ORDERS);
    assert!(invoices.len() as u64 > 3 * ORDERS, "nothing was sent twice, so this shows nothing");
}

#[tokio::test(start_paused = true)]
async fn an_item_of_a_batch_whose_output_is_refused_is_tried_again_by_itself() {
    let orders = ["ann", "bob", "cem"].map(|customer| placed(customer, 1));
    let (memory, broker) = broker_with(&orders).await;
    memory.fail_publishes(1);
    let batches = Log::default();
    let log = batches.clone();
    let handler = move |Batch(orders): Batch<Placed>| {
        log.add(orders.iter().map(|order| order.customer.clone()).collect::<Vec<_>>());
        std::future::ready(orders.iter().map(|o| Ok::<_, HandlerError>(invoiced(o))).collect::<Vec<_>>())
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    let report = finish(service).await;
    assert_eq!(batches.all(), [vec!["ann", "bob", "cem"], vec!["ann"]]);
    assert_eq!((report.handled, report.retried), (3, 1));
    let invoices = look(&broker, "invoices").await;
    let mut keys: Vec<_> = invoices.iter().map(|invoice| invoice.key().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [b"ann", b"bob", b"cem"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_returned_before_it_was_cancelled_at_the_deadline_comes_again_under_its_id() {
    let plan = FaultPlan::seeded(1).delayed(1.0, HOUR);
    let broker = Broker::new(MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(7), plan));
    let route = || Router::new().route(billing().handle(invoice));
    let service = route().start(&broker).await.unwrap();
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    tokio::time::sleep(HOUR / 2).await;
    let report = within("it stops", service.stop(SECOND)).await.unwrap();
    assert_eq!((report.drained, report.routes[0].given_back, report.routes[0].handled), (false, 1, 0));
    let report = finish(route().start(&broker).await.unwrap()).await;
    assert_eq!(report.handled, 1);
    assert_eq!(
        look(&broker, "invoices").await.len(),
        1,
        "the send that was cancelled in its wait was not made"
    );
}
