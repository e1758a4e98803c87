//! A program that publishes in a loop, and a route that finds more and more, never have to wait, and leave others their turn.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "tick", version = 1)]
struct Tick(u32);

/// On one thread, so that the other task has a turn only when this one is done or gives way.
#[tokio::test]
async fn whoever_publishes_without_a_pause_lets_others_run() {
    let broker = postrider::connect("memory:").await.unwrap();
    broker.declare("ticks").await.unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let other = tokio::spawn(async move { flag.store(true, Relaxed) });
    for number in 0..1_000 {
        broker.publish("ticks", &Tick(number)).await.unwrap();
    }
    assert!(ran.load(Relaxed), "1,000 messages were published, and nobody else ran");
    other.await.unwrap();
}

#[handler(channel = "ticks", group = "g")]
async fn count(_: Tick, State(handled): State<Arc<AtomicU32>>) {
    handled.fetch_add(1, Relaxed);
}

#[tokio::test]
async fn a_route_with_much_before_it_lets_others_run() {
    const BACKLOG: u32 = 9_000;
    /// A good deal more than a route receives at once.
    const MOST: u32 = 600;
    let broker = postrider::connect("memory:").await.unwrap();
    broker.declare("ticks").await.unwrap();
    for outcome in broker.publish_all("ticks", &(0..BACKLOG).map(Tick).collect::<Vec<_>>()).await {
        outcome.unwrap();
    }
    let handled = Arc::<AtomicU32>::default();
    let route = Router::with_state(Arc::clone(&handled)).route(count).start(&broker).await.unwrap();
    // this task, and the route's, on one thread
    let (mut before, mut longest) = (0, 0);
    while before < BACKLOG {
        tokio::task::yield_now().await;
        let now = handled.load(Relaxed);
        longest = longest.max(now - before);
        before = now;
    }
    route.stop(Duration::from_secs(5)).await.unwrap();
    assert!(longest <= MOST, "{longest} messages were handled, and nobody else ran");
}
