//! Dead letters that can't be published: nothing is acknowledged, the route stalls and says so, and goes on when they can.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use postrider::memory::{FaultPlan, MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{Env, Failure, HealthState, Letters, Redrive, RouteOptions, Running};
use router_kit::{Log, Placed, broker_with, finish, header, lag, look, only, placed, retry, within};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const LETTERS: &str = "orders.billing.dlq";

/// Order 1 is poison; every number that is handled is written down.
async fn start(broker: &Broker, options: RouteOptions, log: &Log<u64>) -> Running {
    let log = log.clone();
    let handler = move |order: Placed| {
        log.add(order.number);
        let declined = HandlerError::msg("card declined");
        std::future::ready(if order.number == 1 { Err(declined).permanent() } else { Ok(()) })
    };
    Router::new().route(options.name("bill").handle(handler)).start(broker).await.unwrap()
}

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").retry(retry(2, SECOND))
}

#[tokio::test(start_paused = true)]
async fn while_a_dead_letter_is_refused_nothing_is_acknowledged_and_nothing_starts() {
    let orders: Vec<_> = (1..=3).map(|number| placed(&format!("c-{number}"), number)).collect();
    let (memory, broker) = broker_with(&orders).await;
    memory.fail_publishes(usize::MAX);
    let log = Log::default();
    let service = start(&broker, billing().max_in_flight(1), &log).await;
    // the clock moves only when every task waits
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(log.all(), [1], "the route stalls: others would only follow it into the same trouble");
    assert_eq!(lag(&service, "bill").await, 3, "nothing is acknowledged");
    let health = service.health();
    assert_eq!((health.state, health.routes[0].health.state), (HealthState::Degraded, HealthState::Degraded));
    let reason = health.routes[0].health.reason.as_deref().unwrap();
    assert!(reason.contains("memory:orders/0") && reason.contains(LETTERS), "{reason}");

    memory.fail_publishes(0);
    let report = {
        within("nothing is left to do", service.idle()).await;
        assert_eq!(service.health().state, HealthState::Up, "the trouble is over");
        finish(service).await
    };
    assert_eq!(log.all(), [1, 2, 3], "the poison isn't handled again, only its dead letter was late");
    assert_eq!((report.handled, report.dead_lettered, report.given_back), (2, 1, 0));
    let letters = look(&broker, LETTERS).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(header(&letters[0], "postrider-dlq-error"), "card declined");
}

#[tokio::test(start_paused = true)]
async fn what_was_received_before_the_stall_is_not_started_in_it() {
    let orders: Vec<_> = (1..=3).map(|number| placed(&format!("c-{number}"), number)).collect();
    let (memory, broker) = broker_with(&orders).await;
    memory.fail_publishes(usize::MAX);
    let begun = Log::default();
    let log = begun.clone();
    // the second runs when the first one's letter is refused; the third waits for its place
    let handler = move |order: Placed| {
        log.add(order.number);
        async move {
            if order.number == 1 {
                return Err(HandlerError::msg("card declined")).permanent();
            }
            tokio::time::sleep(SECOND).await;
            Ok(())
        }
    };
    let route = billing().name("bill").concurrency(1).handle(handler);
    let service = Router::new().route(route).start(&broker).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(begun.all(), [1, 2]);
    assert_eq!(lag(&service, "bill").await, 2, "the second was finished and acknowledged");
    memory.fail_publishes(0);
    let report = finish(service).await;
    assert_eq!((begun.all(), report.handled, report.dead_lettered), (vec![1, 2, 3], 2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_runs_beside_a_stalled_dead_letter_is_finished_and_acknowledged() {
    let orders: Vec<_> = (1..=3).map(|number| placed(&format!("c-{number}"), number)).collect();
    let (memory, broker) = broker_with(&orders).await;
    memory.fail_publishes(usize::MAX);
    let log = Log::default();
    let service = start(&broker, billing(), &log).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(log.all(), [1, 2, 3]);
    assert_eq!(lag(&service, "bill").await, 1, "the poison alone is unsettled");
    memory.fail_publishes(0);
    assert_eq!(finish(service).await.dead_lettered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_stops_while_it_is_stalled_gives_the_message_back() {
    let (memory, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    memory.fail_publishes(usize::MAX);
    let log = Log::default();
    let service = start(&broker, billing(), &log).await;
    tokio::time::sleep(MINUTE).await;
    let report = within("it stops", service.stop(5 * SECOND)).await.unwrap();
    assert!(!report.drained, "a dead letter was still on its way at the deadline");
    assert_eq!(report.took, 5 * SECOND);
    let report = only(report);
    assert_eq!((report.handled, report.dead_lettered, report.given_back), (0, 0, 2));

    memory.fail_publishes(0);
    let report = finish(start(&broker, billing(), &log).await).await;
    assert_eq!(log.all(), [1, 1, 2], "it comes again, before what came after it");
    assert_eq!((report.handled, report.dead_lettered), (1, 1));
    assert_eq!(look(&broker, LETTERS).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_never_fits_takes_the_route_down_and_keeps_the_message() {
    // the message fits, the message with its dead-letter headers doesn't
    let config = MemoryConfig::default().max_bytes(300);
    let memory = MemoryBroker::with(config, Env::seeded(7));
    let broker = Broker::new(memory);
    let log = Log::default();
    let service = start(&broker, billing(), &log).await;
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    tokio::time::sleep(10 * MINUTE).await;
    let health = service.health();
    assert_eq!((health.state, health.is_ready()), (HealthState::Down, false));
    let reason = health.routes[0].health.reason.as_deref().unwrap();
    assert!(reason.contains("memory:orders/0") && reason.contains(LETTERS), "{reason}");
    assert_eq!(lag(&service, "bill").await, 1);
    let report = within("it stops", service.stop(SECOND)).await.unwrap();
    assert_eq!((report.drained, only(report).given_back), (false, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_when_publishes_fail_confirms_get_lost_and_claims_too() {
    const ORDERS: u64 = 200;
    for seed in 0..5 {
        let plan = FaultPlan::seeded(seed).publish_fails(0.3).confirm_lost(0.3).disconnected(0.05);
        let memory = MemoryBroker::with_faults(MemoryConfig::default(), Env::seeded(seed), plan);
        let broker = Broker::new(memory);
        let handled = Log::default();
        let log = handled.clone();
        let handler = move |order: Placed| {
            let log = log.clone();
            async move {
                tokio::time::sleep(SECOND / 10).await;
                if order.number.is_multiple_of(3) {
                    return Err(HandlerError::msg("card declined")).permanent();
                }
                log.add(order.number);
                Ok(())
            }
        };
        let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
        let mut stored = HashSet::new();
        for number in 0..ORDERS {
            let outcome = broker.publish("orders", &placed(&format!("c-{}", number % 7), number)).await;
            // a lost confirm is of a message that is stored
            if outcome.is_ok() || outcome.is_err_and(|error| error.is_unknown()) {
                stored.insert(number);
            }
        }
        finish(service).await;
        let number = |letter: &Envelope| {
            let text = std::str::from_utf8(letter.payload()).unwrap();
            let digits: String =
                text.rsplit(':').next().unwrap().chars().filter(char::is_ascii_digit).collect();
            digits.parse::<u64>().unwrap()
        };
        let dead: HashSet<_> = look(&broker, LETTERS).await.iter().map(number).collect();
        let done: HashSet<_> = handled.all().into_iter().collect();
        assert!(dead.is_disjoint(&done), "seed {seed}");
        assert_eq!(dead.union(&done).copied().collect::<HashSet<_>>(), stored, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn dead_letters_that_go_round_through_another_service_end_at_a_depth_of_32() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let calls = Log::default();
    let fails = |group: &'static str| {
        let calls = calls.clone();
        move |letter: Envelope| {
            calls.add((group, Failure::of(&letter).depth));
            std::future::ready(Err::<(), _>(HandlerError::msg("declined")).permanent())
        }
    };
    let there = RouteOptions::new("orders", "there").dead_letter("back").handle(fails("there"));
    let back = RouteOptions::new("back", "back").dead_letter("orders").handle(fails("back"));
    // each service alone sees no cycle
    let there = Router::new().route(there).start(&broker).await.unwrap();
    let back = Router::new().route(back).start(&broker).await.unwrap();
    tokio::time::sleep(10 * MINUTE).await;
    let expected: Vec<_> = (0..=32).map(|depth| (["there", "back"][depth % 2], depth as u32)).collect();
    assert_eq!(calls.all(), expected);
    let health = there.health();
    assert_eq!((health.state, back.health().state), (HealthState::Degraded, HealthState::Up));
    let reason = health.routes[0].health.reason.as_deref().unwrap();
    assert!(reason.contains("32 times") && reason.contains("memory:orders/"), "{reason}");
    let report = only(there.stop(SECOND).await.unwrap());
    assert_eq!((report.dead_lettered, report.given_back), (16, 1), "the message stays where it is");
    assert_eq!(only(back.stop(SECOND).await.unwrap()).dead_lettered, 16);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_sent_back_begins_anew() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    for redrives in 0..3 {
        finish(start(&broker, billing(), &Log::default()).await).await;
        let mut letters = broker.letters(LETTERS).await.unwrap();
        let mut open = Vec::new();
        letters.read(NonZeroUsize::MIN, &mut open).await.unwrap();
        assert_eq!((open[0].failure().depth, open[0].failure().redrives), (1, redrives));
        assert!(broker.redrive(&mut letters, &open, &Redrive::new()).await[0].is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_channel_is_a_channel_like_any_other_but_says_where_its_own_failures_go() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    assert_eq!(finish(start(&broker, billing(), &Log::default()).await).await.dead_lettered, 1);
    let read = Log::default();
    let log = read.clone();
    let handler = move |letter: Envelope| {
        log.add((header(&letter, "postrider-dlq-group").to_owned(), letter.payload().clone()));
        std::future::ready(Err::<(), _>(HandlerError::msg("still declined")).permanent())
    };
    let undecided = RouteOptions::new(LETTERS, "clerk").handle(handler.clone());
    let error = Router::new().route(undecided).start(&broker).await.unwrap_err();
    assert!(error.to_string().contains("dead_letter = "), "{error}");
    let route = RouteOptions::new(LETTERS, "clerk").dead_letter("given.up").handle(handler);
    let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
    assert_eq!(report.dead_lettered, 1);
    assert_eq!(read.all().len(), 1);
    let letters = look(&broker, "given.up").await;
    let groups: Vec<_> = letters[0].headers().get_all("postrider-dlq-group").collect();
    assert_eq!(groups.len(), 1, "the second failure's headers replace those of the first");
    assert_eq!(header(&letters[0], "postrider-dlq-group"), "clerk");
    assert_eq!(header(&letters[0], "postrider-dlq-channel"), LETTERS);
}
