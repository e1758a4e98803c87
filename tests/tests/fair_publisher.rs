//! A program that publishes in a loop, and never has to wait, leaves others their turn.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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
