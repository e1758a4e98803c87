//! Dead letters sent back while publishes fail and confirms get lost: open until confirmed, never lost. And who reads them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use postrider::memory::{FaultPlan, MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{
    BoxLetters, Bytes, Env, Failure, Letter, Letters, MAX_HEADER_VALUE, Reason, Redrive, Redriven, Retry,
    RouteOptions, WireReader,
};
use router_kit::{Log, Placed, broker, broker_with, finish, placed};

const LETTERS: &str = "orders.billing.dlq";

/// Runs billing until nothing is left: with a bug it fails all, else it writes them down.
async fn bill(broker: &Broker, bug: bool, log: &Log<u64>) -> postrider::RouteReport {
    let log = log.clone();
    let handler = move |order: Placed| {
        if !bug {
            log.add(order.number);
        }
        std::future::ready(if bug { Err("a bug") } else { Ok(()) })
    };
    let options = RouteOptions::new("orders", "billing").retry(Retry::never());
    finish(Router::new().route(options.handle(handler)).start(broker).await.unwrap()).await
}

async fn open(broker: &Broker) -> (BoxLetters, Vec<Letter>) {
    let mut letters = broker.letters(LETTERS).await.unwrap();
    let mut all = Vec::new();
    letters.read(NonZeroUsize::MAX, &mut all).await.unwrap();
    (letters, all)
}

#[tokio::test(start_paused = true)]
async fn a_letter_is_open_until_its_copy_is_confirmed() {
    let (memory, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    let log = Log::default();
    assert_eq!(bill(&broker, true, &log).await.dead_lettered, 2);
    let (mut letters, all) = open(&broker).await;

    memory.fail_publishes(usize::MAX);
    let outcomes = broker.redrive(&mut letters, &all, &Redrive::new()).await;
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(error.is_temporary() && error.to_string().contains("memory:orders.billing.dlq/"), "{error}");
    }
    assert!(broker.edit(&mut letters, &all[0], Bytes::from_static(b"{}")).await.is_err());
    assert_eq!(letters.count().await.unwrap(), 2);

    // each first try fails, and is made again
    memory.fail_publishes(2);
    let outcomes = broker.redrive(&mut letters, &all, &Redrive::new()).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Redriven::Sent(_)))), "{outcomes:?}");
    assert_eq!(letters.count().await.unwrap(), 0);
    assert_eq!(bill(&broker, false, &log).await.handled, 2);
    assert_eq!(log.all(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn where_half_of_all_confirms_get_lost_all_come_back_and_none_is_left() {
    let faults = FaultPlan::seeded(11).confirm_lost(0.5).publish_fails(0.1);
    let memory = MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(7), faults);
    let broker = Broker::new(memory);
    let log = Log::default();
    broker.declare("orders").await.unwrap();
    let mut stored = BTreeSet::new();
    for number in 0..60 {
        // an unknown outcome is stored here
        match broker.publish("orders", &placed("ann", number)).await {
            Err(error) if !error.is_unknown() => {}
            _ => drop(stored.insert(number)),
        }
    }
    assert!(bill(&broker, true, &log).await.dead_lettered >= stored.len() as u64);
    let mut rounds = 0;
    loop {
        let (mut letters, all) = open(&broker).await;
        if all.is_empty() {
            break;
        }
        let outcomes = broker.redrive(&mut letters, &all, &Redrive::new()).await;
        let sent = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Redriven::Sent(_)))).count();
        assert_eq!(
            letters.count().await.unwrap(),
            (all.len() - sent) as u64,
            "closed are those that were sent"
        );
        rounds += 1;
    }
    assert!(rounds > 1, "some were given up on and tried anew");
    bill(&broker, false, &log).await;
    assert_eq!(log.all().into_iter().collect::<BTreeSet<_>>(), stored);
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_is_no_such_message_goes_where_its_route_says_and_never_round() {
    let (_, broker) = broker();
    let log: Log<(String, Option<Reason>)> = Log::default();
    let (orders, others) = (log.clone(), log.clone());
    let desk = move |letter: DeadLetter<Placed>| {
        orders.add((format!("order {}", letter.message.number), letter.failure.reason));
        std::future::ready(())
    };
    let rest = move |letter: Envelope, failure: Failure| {
        others.add((format!("{} bytes", letter.payload().len()), failure.reason));
        std::future::ready(())
    };
    let options = |channel: &str, group: &str| RouteOptions::new(channel, group).retry(Retry::never());
    let fails = |_: Placed| std::future::ready(Err::<(), _>("a bug"));
    let router = Router::new()
        .route(options("orders", "billing").handle(fails))
        .route(options(LETTERS, "desk").dead_letter("desk.rest").handle(desk))
        .route(options("desk.rest", "look").no_dead_letter().handle(rest));
    let service = router.start(&broker).await.unwrap();
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    broker.publish("orders", Envelope::builder(Bytes::from_static(b"{oops"))).await.unwrap();
    // headers beyond the bounds, which only a foreign message can have
    let mut foreign = WireReader::new(Some(Bytes::from_static(b"{}")));
    foreign.header("huge", &*"v".repeat(MAX_HEADER_VALUE + 1));
    foreign.id_or(|| broker.env().new_id(0));
    broker.publish("orders", foreign.finish()).await.unwrap();
    service.idle().await;
    let report = service.stop(std::time::Duration::from_secs(5)).await.unwrap();
    let counts: Vec<_> = report.routes.iter().map(|r| (r.handled, r.dead_lettered, r.dropped)).collect();
    assert_eq!(counts, [(0, 3, 0), (1, 2, 0), (2, 0, 0)]);
    let mut seen = log.all();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    let undecodable = Some(Reason::Undecodable);
    let expected = [("2 bytes", undecodable), ("5 bytes", undecodable), ("order 1", Some(Reason::Exhausted))];
    assert_eq!(seen, expected.map(|(what, reason)| (what.to_owned(), reason)));
}
