//! Handlers that wait cost little however many there are: none is polled over and over for the others' sake.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::RouteOptions;
use postrider::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

const MESSAGES: usize = 40_000;
/// So many wait at once, and so many of them go on together.
const WAITING: usize = 20_000;
const TOGETHER: usize = 16;

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "work", version = 1, key = "number")]
struct Work {
    number: u64,
}

#[derive(Clone, Default)]
struct World {
    begun: Arc<AtomicU64>,
    polls: Arc<AtomicU64>,
    waiting: Arc<Mutex<VecDeque<oneshot::Sender<()>>>>,
}

impl World {
    /// The oldest go on when so many wait, and all of them when all have begun.
    fn enter(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let begun = self.begun.fetch_add(1, Relaxed) + 1;
        let mut waiting = self.waiting.lock().unwrap();
        waiting.push_back(sender);
        let going = match waiting.len() {
            all if begun == MESSAGES as u64 => all,
            WAITING.. => TOGETHER,
            _ => 0,
        };
        for sender in waiting.drain(..going) {
            sender.send(()).unwrap();
        }
        receiver
    }
}

async fn wait(_: Work, State(world): State<World>) {
    let mut going = pin!(world.enter());
    poll_fn(|cx| {
        world.polls.fetch_add(1, Relaxed);
        going.as_mut().poll(cx)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn handlers_that_wait_are_polled_a_few_times_each() {
    let broker = postrider::connect(&format!("memory:?max_messages={MESSAGES}")).await.unwrap();
    broker.declare("work").await.unwrap();
    for number in 0..MESSAGES as u64 {
        broker.publish("work", &Work { number }).await.unwrap();
    }
    let world = World::default();
    let options = RouteOptions::new("work", "workers").concurrency(WAITING).max_in_flight(2 * WAITING);
    // none of them is retried, however long the others take
    let options = options.timeout(Duration::from_hours(1));
    let route = options.handle(wait);
    let service = Router::with_state(world.clone()).route(route).start(&broker).await.unwrap();
    service.idle().await;
    let report = service.stop(Duration::from_secs(30)).await.unwrap();
    assert_eq!(report.routes[0].handled, MESSAGES as u64);
    let polls = world.polls.load(Relaxed);
    println!("{polls} polls of {MESSAGES} handlers");
    assert!(polls <= 4 * MESSAGES as u64, "{polls} polls of {MESSAGES} handlers");
}
