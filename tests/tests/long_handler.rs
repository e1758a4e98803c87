//! A handler that takes far longer than the broker's patience keeps its claim, runs once, and is finished when the service stops.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Twice the claim time-out on NATS and Kafka. That time-out is long enough to survive a halt of some seconds.
const LONG: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "work", version = 1, key = "key")]
struct Work {
    key: u32,
}

#[derive(Clone, Debug, Default)]
struct World {
    begun: Arc<AtomicU32>,
    done: Arc<AtomicU32>,
    running: Arc<Notify>,
}

// one attempt: several of that length can't be held for the 60 s that RabbitMQ leaves a message with a member
#[handler(channel = "work", group = "workers", timeout = "45s", retry = never)]
async fn work(_work: Work, State(world): State<World>) {
    world.begun.fetch_add(1, Relaxed);
    world.running.notify_one();
    tokio::time::sleep(LONG).await;
    world.done.fetch_add(1, Relaxed);
}

/// The handler begins, a second member stands beside it all the time, and the service is told to stop while it runs.
async fn runs_once_and_is_drained(url: &str) {
    let joint = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{joint}tenant=long-{:x}", postrider::Env::system().random());
    let (world, broker) = (World::default(), postrider::connect(&url).await.expect("it connects"));
    let start = async |broker: &Broker| {
        Router::with_state(world.clone()).route(work).start(broker).await.expect("it starts")
    };
    let service = start(&broker).await;
    broker.publish("work", &Work { key: 1 }).await.expect("it is confirmed");
    tokio::time::timeout(Duration::from_secs(30), world.running.notified()).await.expect("it begins");
    let other = postrider::connect(&url).await.expect("it connects");
    let beside = start(&other).await;
    let report = service.stop(Duration::from_mins(1)).await.expect("it stops in good order");
    assert!(report.drained, "{report}");
    assert_eq!((report.routes[0].handled, report.routes[0].cancelled), (1, 0), "{report}");
    // whoever takes over finds nothing left
    tokio::time::timeout(Duration::from_mins(1), beside.idle()).await.expect("there is nothing to do");
    beside.stop(Duration::from_secs(10)).await.expect("it stops in good order");
    assert_eq!((world.begun.load(Relaxed), world.done.load(Relaxed)), (1, 1));
}

fn url(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker"))
}

#[cfg(feature = "nats")]
mod nats {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a NATS server: cargo xtask test --only nats"]
    async fn beyond_the_ack_wait() {
        runs_once_and_is_drained(&(url("POSTRIDER_TEST_NATS_URL") + "?claim_timeout=15s")).await;
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
    async fn beyond_the_longest_poll_interval() {
        let options = "?claim_timeout=15s&release_timeout=90s&native.max.poll.interval.ms=15000";
        runs_once_and_is_drained(&(url("POSTRIDER_TEST_KAFKA_URL") + options)).await;
    }
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
    async fn within_the_consumer_time_out() {
        runs_once_and_is_drained(&(url("POSTRIDER_TEST_RABBITMQ4_URL") + "?consumer_timeout=60s")).await;
    }
}
