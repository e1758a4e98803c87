//! One message in twenty fails once and is retried at once. The messages of each key are still handled
//! in their order.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::prelude::*;
use postrider::{Backoff, Channel, Declare, Group, GroupName, Jitter, Retry, RouteOptions, SubscribeOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

const KEYS: u32 = 16;
const NUMBERS: u32 = 500;
const ALL: u32 = KEYS * NUMBERS;
/// One message in so many fails at its first attempt.
const FAILING: u32 = 20;

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "work", version = 1, key = "key")]
struct Work {
    key: u32,
    number: u32,
}

/// What was handled so far.
#[derive(Debug, Default)]
struct Seen {
    /// The number that is next for each key.
    next: [u32; KEYS as usize],
    handled: u32,
    /// Messages that were handled out of order, each with the number that was next.
    out_of_order: Vec<(Work, u32)>,
}

#[derive(Clone, Debug, Default)]
struct World {
    seen: Arc<Mutex<Seen>>,
    all: Arc<Notify>,
}

async fn work(work: Work, attempt: Attempt, State(world): State<World>) -> Result<(), HandlerError> {
    // half of the keys have handlers that wait, during which another message could overtake
    if work.key % 2 == 1 {
        tokio::task::yield_now().await;
    }
    if attempt.0 == 1 && (work.number + work.key).is_multiple_of(FAILING) {
        return Err(HandlerError::msg("the first attempt fails"));
    }
    let mut seen = world.seen.lock().unwrap();
    let next = std::mem::replace(&mut seen.next[work.key as usize], work.number + 1);
    if next != work.number {
        seen.out_of_order.push((work, next));
    }
    seen.handled += 1;
    if seen.handled == ALL {
        world.all.notify_one();
    }
    Ok(())
}

async fn publish(broker: &Broker, channel: &str) {
    for first in (0..NUMBERS).step_by(250) {
        let round: Vec<_> =
            (first..first + 250).flat_map(|number| (0..KEYS).map(move |key| Work { key, number })).collect();
        for outcome in broker.publish_all(channel, &round).await {
            outcome.expect("it is confirmed");
        }
    }
}

async fn order_is_kept_while_attempts_fail(broker: Broker) {
    let channel = format!("work-{:x}", broker.env().random());
    let retry = Retry::new().attempts(3).backoff(Backoff::Fixed(Duration::ZERO)).jitter(Jitter::None);
    let world = World::default();
    // the group exists before its first member, so all messages wait for the route when it starts
    let group = Group::Named(GroupName::new("workers").unwrap());
    let group = SubscribeOptions::new(Channel::new(&*channel).unwrap(), group);
    broker.declare_all(&[Declare::Group(group)]).await.expect("it is declared");
    publish(&broker, &channel).await;
    let route = RouteOptions::new(&channel, "workers").retry(retry).handle(work);
    let service = Router::with_state(world.clone()).route(route).start(&broker).await.expect("it starts");
    tokio::time::timeout(Duration::from_mins(2), world.all.notified()).await.expect("all are handled");
    let report = service.stop(Duration::from_secs(30)).await.expect("it stops");
    let (seen, route) = (world.seen.lock().unwrap(), &report.routes[0]);
    assert!(seen.out_of_order.is_empty(), "handled, and what was next: {:?}", seen.out_of_order);
    assert_eq!((seen.handled, seen.next), (ALL, [NUMBERS; KEYS as usize]));
    assert_eq!(
        (route.handled, route.retried, route.dead_lettered),
        (u64::from(ALL), u64::from(ALL / FAILING), 0),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory() {
    order_is_kept_while_attempts_fail(postrider::connect("memory:").await.unwrap()).await;
}

/// The broker that a variable names, for channels of this test alone.
#[cfg(any(feature = "nats", feature = "kafka", feature = "rabbitmq"))]
async fn connect(variable: &str) -> Broker {
    let url = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker"));
    let joint = if url.contains('?') { '&' } else { '?' };
    let tenant = postrider::Env::system().random();
    postrider::connect(&format!("{url}{joint}tenant=retry-{tenant:x}")).await.expect("it connects")
}

#[cfg(feature = "nats")]
mod nats {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a NATS server: cargo xtask test --only nats"]
    async fn on_a_real_server() {
        order_is_kept_while_attempts_fail(connect("POSTRIDER_TEST_NATS_URL").await).await;
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a Kafka broker: cargo xtask test --only kafka"]
    async fn on_a_real_broker() {
        order_is_kept_while_attempts_fail(connect("POSTRIDER_TEST_KAFKA_URL").await).await;
    }
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"]
    async fn on_a_real_broker() {
        order_is_kept_while_attempts_fail(connect("POSTRIDER_TEST_RABBITMQ4_URL").await).await;
    }
}
