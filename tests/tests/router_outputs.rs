//! What a handler returns or publishes: confirmed before its input is acknowledged, under ids that a re-run repeats.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use postrider::memory::{FaultPlan, MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{Env, HealthState, MessageId, RouteOptions};
use router_kit::altered::Altered;
use router_kit::group::Script;
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

/// A broker whose confirms come a minute after a message is handed over, once `orders` are there.
async fn late(orders: &[Placed]) -> (Broker, Script) {
    let (inner, _) = broker_with(orders).await;
    let script = Script::default();
    script.confirms_after.store(60, SeqCst);
    (Broker::new(Altered { inner, difference: script.clone() }), script)
}

/// A broker that hands no message over before a minute is over, once `orders` are there.
async fn full(orders: &[Placed]) -> Broker {
    let plan = FaultPlan::seeded(1).delayed(1.0, 60 * SECOND);
    let broker = Broker::new(MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(7), plan));
    broker.declare("orders").await.unwrap();
    for order in orders {
        broker.publish("orders", order).await.unwrap();
    }
    broker
}

/// How many of these orders are handled before the first output is confirmed, by two handlers at once.
async fn handled_meanwhile(
    broker: Broker,
    orders: &[Placed],
    options: RouteOptions,
    pause: Duration,
) -> usize {
    let at_work = Arc::new(AtomicUsize::new(0));
    let ended = Log::default();
    let log = ended.clone();
    let handler = move |order: Placed| {
        assert!(at_work.fetch_add(1, SeqCst) < 2, "more handlers than places");
        let (at_work, log) = (Arc::clone(&at_work), log.clone());
        async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            at_work.fetch_sub(1, SeqCst);
            log.add(());
            invoiced(&order)
        }
    };
    let options = options.concurrency(2);
    let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(50 * SECOND).await;
    let meanwhile = ended.all().len();
    assert_eq!(service.report().routes[0].handled, 0, "nothing is confirmed yet");
    let report = finish(service).await;
    assert_eq!((report.handled as usize, report.retried), (orders.len(), 0));
    assert_eq!(look(&broker, "invoices").await.len(), orders.len());
    meanwhile
}

/// Whose handler is done takes no place of `concurrency` while its output is being confirmed; what bounds those is the window, and the
/// order. While the publisher has no room it takes one, so that no more stand before it.
#[tokio::test(start_paused = true)]
async fn while_outputs_are_confirmed_other_handlers_run_as_far_as_window_and_order_allow() {
    const ORDERS: u64 = 20;
    let orders: Vec<_> = (0..ORDERS).map(|number| placed(&format!("customer {number}"), number)).collect();
    let of_one: Vec<_> = (0..ORDERS).map(|number| placed("ann", number)).collect();
    for workers in [1, 3] {
        for pause in [Duration::ZERO, SECOND] {
            let case = format!("{workers} workers, each {pause:?}");
            let route = || billing().workers(workers);
            let meanwhile = handled_meanwhile(late(&orders).await.0, &orders, route(), pause).await;
            assert_eq!(meanwhile, 20, "{case}");
            let narrow = route().max_in_flight(7);
            assert_eq!(handled_meanwhile(late(&orders).await.0, &orders, narrow, pause).await, 7, "{case}");
            let meanwhile = handled_meanwhile(late(&of_one).await.0, &of_one, route(), pause).await;
            assert_eq!(meanwhile, 1, "{case}");
            let meanwhile = handled_meanwhile(full(&orders).await, &orders, route(), pause).await;
            assert_eq!(meanwhile, 2, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_outputs_of_a_batch_are_all_handed_over_before_the_first_is_confirmed() {
    let orders: Vec<_> = (0..200).map(|number| placed(&format!("customer {number}"), number)).collect();
    for workers in [1, 3] {
        let (broker, script) = late(&orders).await;
        let handler = async |Batch(orders): Batch<Placed>| {
            orders.iter().map(|order| Ok::<_, HandlerError>(invoiced(order))).collect::<Vec<_>>()
        };
        let options = billing().workers(workers).batch(200).concurrency(1);
        let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
        tokio::time::sleep(50 * SECOND).await;
        assert_eq!(script.sent.load(SeqCst), 200, "{workers} workers");
        assert_eq!(service.report().routes[0].handled, 0);
        assert_eq!(finish(service).await.handled, 200);
        let invoices = look(&broker, "invoices").await;
        let keys: Vec<_> = invoices.iter().map(|invoice| invoice.key().unwrap().to_vec()).collect();
        let expected: Vec<_> = orders.iter().map(|order| order.customer.clone().into_bytes()).collect();
        assert_eq!(keys, expected, "they go in the order of their messages");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_confirmed_at_the_deadline_or_when_its_claim_is_lost_comes_again() {
    let orders = [placed("ann", 1), placed("bob", 2), placed("cem", 3)];
    for (workers, loses) in [(1, false), (3, false), (1, true), (3, true)] {
        let (inner, _) = broker_with(&orders).await;
        let script = Script::default();
        script.confirms_after.store(60, SeqCst);
        let broker = Broker::new(Altered { inner: inner.clone(), difference: script.clone() });
        let route = || Router::new().route(billing().workers(workers).concurrency(1).handle(invoice));
        let service = route().start(&broker).await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(script.sent.load(SeqCst), 3, "all are being confirmed");
        script.confirms_after.store(0, SeqCst);
        let service = if loses {
            inner.disconnect();
            service
        } else {
            let report = within("it stops", service.stop(SECOND)).await.unwrap();
            let counts = &report.routes[0];
            assert_eq!((report.drained, counts.given_back, counts.handled), (false, 3, 0));
            route().start(&broker).await.unwrap()
        };
        let report = finish(service).await;
        assert_eq!((report.handled, report.retried, report.dead_lettered), (3, 0, 0), "loses: {loses}");
        let invoices = look(&broker, "invoices").await;
        assert_eq!(invoices.len(), 6, "they were stored before, and published again under the same ids");
        let ids: HashSet<_> = invoices.iter().map(|invoice| invoice.id().clone()).collect();
        assert_eq!(ids.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn many_outputs_of_one_message_go_in_their_order_with_and_without_room() {
    const OUTPUTS: u64 = 200;
    for (room, workers) in [(10_000, 1), (10_000, 3), (50, 1), (50, 3)] {
        let config = MemoryConfig::default().max_messages(room);
        let broker = Broker::new(MemoryBroker::with(config, Env::seeded(7)));
        let bill = async |order: Placed| {
            (0..OUTPUTS).map(|number| Invoiced { number, ..invoiced(&order) }).collect::<Vec<_>>()
        };
        let entered = Log::default();
        let ledger = entered.clone();
        let enter = move |invoice: Invoiced| {
            let ledger = ledger.clone();
            async move {
                tokio::time::sleep(SECOND / 10).await;
                ledger.add(invoice.number);
            }
        };
        let router = Router::new()
            .route(billing().workers(workers).handle(bill))
            .route(RouteOptions::new("invoices", "ledger").handle(enter));
        let service = router.start(&broker).await.unwrap();
        broker.publish("orders", &placed("ann", 1)).await.unwrap();
        within("nothing is left to do", service.idle()).await;
        assert!(entered.all().into_iter().eq(0..OUTPUTS), "room for {room}, {workers} workers: {entered:?}");
        let report = service.stop(SECOND).await.unwrap();
        assert_eq!(
            report.routes.iter().map(|r| (r.handled, r.retried)).collect::<Vec<_>>(),
            [(1, 0), (OUTPUTS, 0)]
        );
    }
}

fn large(order: &Placed) -> Invoiced {
    Invoiced { customer: "x".repeat(1 << 20), number: order.number }
}

/// What the publisher refuses at once is refused, too.
#[tokio::test(start_paused = true)]
async fn an_output_that_is_too_large_is_not_taken_for_published() {
    for workers in [1, 3] {
        let (_, broker) = broker_with(&[placed("ann", 1)]).await;
        let route = billing().workers(workers).handle(async |order: Placed| large(&order));
        let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.retried, report.dead_lettered), (0, 0, 1), "{workers} workers");
        let letters = look(&broker, "orders.billing.dlq").await;
        assert_eq!(header(&letters[0], "postrider-dlq-reason"), "output-failed");
        let says = header(&letters[0], "postrider-dlq-error");
        assert!(says.contains("send a reference to it instead"), "{says}");

        let (_, broker) = broker_with(&[placed("ann", 1), placed("bob", 2), placed("cem", 3)]).await;
        let handler = async |Batch(orders): Batch<Placed>| {
            let made = orders.iter().map(|o| if o.number == 2 { large(o) } else { invoiced(o) });
            made.map(Ok::<_, HandlerError>).collect::<Vec<_>>()
        };
        let route = billing().workers(workers).handle(handler);
        let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.retried, report.dead_lettered), (2, 0, 1), "{workers} workers");
        assert_eq!(look(&broker, "invoices").await.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_output_is_published_again_and_the_handler_runs_once() {
    for workers in [1, 3] {
        let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
        memory.fail_publishes(20);
        let calls = Arc::new(AtomicUsize::new(0));
        let called = Arc::clone(&calls);
        let route = billing().workers(workers).handle(move |order: Placed| {
            called.fetch_add(1, SeqCst);
            invoice(order)
        });
        let service = Router::new().route(route).start(&broker).await.unwrap();
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(
            lag(&service, "bill").await,
            1,
            "an input whose output isn't stored stays with the broker"
        );
        let health = service.health();
        let why = health.routes[0].health.reason.clone().unwrap_or_default();
        assert!(why.contains("is not published"), "{why}");
        assert_eq!(health.state, HealthState::Degraded);
        tokio::time::sleep(HOUR).await;
        assert_eq!(service.health().state, HealthState::Up, "{workers} workers");
        let report = finish(service).await;
        assert_eq!(calls.load(SeqCst), 1);
        assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 0, 0));
        let invoices = look(&broker, "invoices").await;
        assert_eq!(invoices.len(), 1, "a refused output is not stored");
        assert_eq!(&invoices[0].payload()[..], br#"{"customer":"ann","number":1}"#);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_reader_the_handler_runs_once_and_the_output_arrives_when_there_is_one() {
    for workers in [1, 3] {
        let config = MemoryConfig::default().require_readers(true);
        let broker = Broker::new(MemoryBroker::with(config, Env::seeded(7)));
        let calls = Arc::new(AtomicUsize::new(0));
        let called = Arc::clone(&calls);
        let route = billing().workers(workers).handle(move |order: Placed| {
            called.fetch_add(1, SeqCst);
            invoice(order)
        });
        let service = Router::new().route(route).start(&broker).await.unwrap();
        broker.publish("orders", &placed("ann", 1)).await.unwrap();
        tokio::time::sleep(HOUR).await;
        assert_eq!((calls.load(SeqCst), service.report().routes[0].handled), (1, 0));
        let reason = service.health().routes[0].health.reason.clone().unwrap_or_default();
        assert!(reason.contains("no group reads the channel"), "{reason}");
        let entered = Log::default();
        let ledger = entered.clone();
        let route = RouteOptions::new("invoices", "ledger").handle(move |invoice: Invoiced| {
            ledger.add(invoice.number);
            std::future::ready(())
        });
        let readers = Router::new().route(route).start(&broker).await.unwrap();
        within("the order is handled", service.idle()).await;
        within("the invoice is read", readers.idle()).await;
        assert_eq!((calls.load(SeqCst), entered.all()), (1, vec![1]));
        let report = finish(service).await;
        assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 0, 0));
        finish(readers).await;
    }
}

#[tokio::test(start_paused = true)]
async fn outputs_of_a_message_that_comes_again_are_published_without_its_handler() {
    let (inner, _) = broker_with(&[placed("ann", 1), placed("bob", 2)]).await;
    for workers in [1, 3] {
        let calls = Arc::new(AtomicUsize::new(0));
        let called = Arc::clone(&calls);
        let broker = Broker::new(inner.clone());
        let route = billing().workers(workers).handle(move |order: Placed| {
            called.fetch_add(1, SeqCst);
            invoice(order)
        });
        inner.fail_publishes(10);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        if workers > 1 {
            inner.fail_publishes(0);
            broker.publish("orders", &placed("cem", 3)).await.unwrap();
            broker.publish("orders", &placed("dan", 4)).await.unwrap();
            inner.fail_publishes(10);
        }
        tokio::time::sleep(SECOND).await;
        assert_eq!(calls.load(SeqCst), 2);
        // the broker takes both messages back and delivers them again
        inner.disconnect();
        let report = finish(service).await;
        assert_eq!(
            (calls.load(SeqCst), report.handled, report.dead_lettered),
            (2, 2, 0),
            "{workers} workers"
        );
    }
    assert_eq!(look(&Broker::new(inner), "invoices").await.len(), 4);
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
async fn an_item_of_a_batch_whose_output_is_refused_waits_by_itself_and_runs_once() {
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
    assert_eq!(batches.all(), [vec!["ann", "bob", "cem"]]);
    assert_eq!((report.handled, report.retried), (3, 0));
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
