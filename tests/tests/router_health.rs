//! What a route's health says as data: what it waits for, how old its oldest message is, what its group has still to settle.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::prelude::*;
use postrider::{BreakerPolicy, RatePolicy, RouteHealth, RouteOptions, RouteState, Running};
use router_kit::{Placed, broker_with, placed, retry};
use tokio::sync::watch;

const SECOND: Duration = Duration::from_secs(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(2, SECOND))
}

fn orders(count: u64) -> Vec<Placed> {
    (0..count).map(|n| placed(&format!("c-{n}"), n)).collect()
}

fn told(service: &Running) -> RouteHealth {
    service.health().routes.remove(0)
}

#[tokio::test(start_paused = true)]
async fn the_oldest_unsettled_message_has_an_age_and_the_group_a_lag() {
    let (_, broker) = broker_with(&orders(3)).await;
    let (settle, settled) = watch::channel(0);
    // each waits for its number
    let handler = move |order: Placed| {
        let mut settled = settled.clone();
        async move {
            settled.wait_for(|until| *until > order.number).await.expect("the test goes on");
        }
    };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(5 * SECOND).await;
    broker.publish("orders", &placed("c-3", 3)).await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    let health = service.health_with_lag().await.routes.remove(0);
    assert_eq!((health.state, health.in_flight, health.lag), (RouteState::Running, 4, Some(4)));
    assert_eq!(health.oldest_unsettled, Some(7 * SECOND));
    settle.send_replace(2);
    tokio::time::sleep(SECOND).await;
    let health = service.health_with_lag().await.routes.remove(0);
    assert_eq!((health.in_flight, health.lag, health.oldest_unsettled), (2, Some(2), Some(8 * SECOND)));
    settle.send_replace(3);
    tokio::time::sleep(SECOND).await;
    assert_eq!(
        (told(&service).oldest_unsettled, told(&service).lag),
        (Some(4 * SECOND), None),
        "nobody asked"
    );
    settle.send_replace(4);
    service.idle().await;
    assert_eq!(told(&service).oldest_unsettled, None);
    service.stop(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_route_says_what_it_waits_for() {
    let failing = |_: Placed| std::future::ready(Err::<(), _>("no answer"));
    let (_, broker) = broker_with(&orders(5)).await;
    let route = billing().breaker(BreakerPolicy::new().consecutive_failures(2)).handle(failing);
    let service = Router::new().route(route).start(&broker).await.unwrap();
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(told(&service).state, RouteState::PausedByBreaker);
    drop(service);

    let (_, broker) = broker_with(&orders(5)).await;
    let route = billing().rate(RatePolicy::new(1, SECOND).burst(1)).handle(async |_: Placed| {});
    let service = Router::new().route(route).start(&broker).await.unwrap();
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(told(&service).state, RouteState::PausedByRate);
    service.idle().await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(told(&service).state, RouteState::Running, "nothing waits any more");
    drop(service);

    let (memory, broker) = broker_with(&orders(1)).await;
    memory.fail_publishes(usize::MAX);
    let service = Router::new().route(billing().handle(failing)).start(&broker).await.unwrap();
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(told(&service).state, RouteState::PausedByDeadLetters);
    memory.fail_publishes(0);
    service.idle().await;
    assert_eq!(told(&service).state, RouteState::Running);
    service.stop(SECOND).await.unwrap();
}
