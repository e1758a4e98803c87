//! Handlers that wait cost little however many there are: none is polled over and over for the others' sake.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use postrider::RouteOptions;
use postrider::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

const MESSAGES: u64 = 20_000;

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "work", version = 1, key = "number")]
struct Work {
    number: u64,
}

#[derive(Clone)]
struct World {
    begun: Arc<AtomicU64>,
    polls: Arc<AtomicU64>,
    gate: Arc<Semaphore>,
}

/// Waits until all have begun.
async fn wait(_: Work, State(world): State<World>) {
    if world.begun.fetch_add(1, Relaxed) + 1 == MESSAGES {
        world.gate.close();
    }
    let mut opened = pin!(world.gate.acquire());
    poll_fn(|cx| {
        world.polls.fetch_add(1, Relaxed);
        opened.as_mut().poll(cx).map(drop)
    })
    .await;
}

#[tokio::test]
async fn handlers_that_wait_are_polled_a_few_times_each() {
    let broker = postrider::connect("memory:?max_messages=20000").await.unwrap();
    broker.declare("work").await.unwrap();
    for number in 0..MESSAGES {
        broker.publish("work", &Work { number }).await.unwrap();
    }
    let world = World { begun: Arc::default(), polls: Arc::default(), gate: Arc::new(Semaphore::new(0)) };
    let most = MESSAGES as usize;
    let options = RouteOptions::new("work", "workers").concurrency(most).max_in_flight(most);
    let route = options.timeout(Duration::from_mins(10)).handle(wait);
    let service = Router::with_state(world.clone()).route(route).start(&broker).await.unwrap();
    service.idle().await;
    let report = service.stop(Duration::from_secs(30)).await.unwrap();
    assert_eq!(report.routes[0].handled, MESSAGES);
    let polls = world.polls.load(Relaxed);
    assert!(polls <= 4 * MESSAGES, "{polls} polls of {MESSAGES} handlers");
}
