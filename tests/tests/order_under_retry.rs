//! One attempt in twenty fails and is made again at once: every key stays in its order, and the work takes little longer for it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postrider::prelude::*;
use postrider::{Backoff, Channel, Declare, Group, GroupName, Jitter, Retry, RouteOptions, SubscribeOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

const KEYS: u32 = 16;
const NUMBERS: u32 = 10_000;
const ALL: u32 = KEYS * NUMBERS;
/// How much of the speed without failures must be left.
const LEAST: f64 = 0.8;
/// How often the speeds are compared: other work on the machine may fall on one of both.
const TRIES: usize = 3;

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "work", version = 1, key = "key")]
struct Work {
    key: u32,
    number: u32,
}

/// What was handled so far.
#[derive(Debug)]
struct Seen {
    /// The number that each key is to come to next.
    next: Vec<u32>,
    handled: u32,
    began: Option<Instant>,
    took: Duration,
}

#[derive(Clone, Debug)]
struct World {
    seen: Arc<Mutex<Seen>>,
    all: Arc<Notify>,
    /// Each message of which this is true of its number fails once.
    fails: fn(u32) -> bool,
}

impl World {
    fn new(fails: fn(u32) -> bool) -> Self {
        let next = vec![0; KEYS as usize];
        let seen = Seen { next, handled: 0, began: None, took: Duration::ZERO };
        Self { seen: Arc::new(Mutex::new(seen)), all: Arc::default(), fails }
    }
}

async fn work(work: Work, attempt: Attempt, State(world): State<World>) -> Result<(), HandlerError> {
    if attempt.0 == 1 && (world.fails)(work.number + work.key) {
        return Err(HandlerError::msg("the first attempt fails"));
    }
    let mut seen = world.seen.lock().unwrap();
    let next = &mut seen.next[work.key as usize];
    assert_eq!(*next, work.number, "key {}", work.key);
    *next += 1;
    seen.handled += 1;
    let began = *seen.began.get_or_insert_with(Instant::now);
    if seen.handled == ALL {
        seen.took = began.elapsed();
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

/// Handles all messages; answers how many in a second, and how many attempts failed.
async fn speed(broker: &Broker, fails: fn(u32) -> bool) -> (f64, u64) {
    let channel = format!("work-{:x}", broker.env().random());
    let retry = Retry::new().attempts(3).backoff(Backoff::Fixed(Duration::ZERO)).jitter(Jitter::None);
    let world = World::new(fails);
    let start = async || {
        let route = RouteOptions::new(&channel, "workers").retry(retry.clone()).handle(work);
        Router::with_state(world.clone()).route(route).start(broker).await.expect("it starts")
    };
    let service = if broker.name() == "memory" {
        // its bound is less than this: what is published is handled meanwhile
        let service = start().await;
        publish(broker, &channel).await;
        service
    } else {
        let group = Group::Named(GroupName::new("workers").unwrap());
        let group = SubscribeOptions::new(Channel::new(&*channel).unwrap(), group);
        broker.declare_all(&[Declare::Group(group)]).await.expect("it is declared");
        publish(broker, &channel).await;
        start().await
    };
    tokio::time::timeout(Duration::from_mins(2), world.all.notified()).await.expect("all are handled");
    let report = service.stop(Duration::from_secs(30)).await.expect("it stops");
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (u64::from(ALL), 0), "{report}");
    let took = world.seen.lock().unwrap().took;
    (f64::from(ALL) / took.as_secs_f64(), report.routes[0].retried)
}

async fn order_and_speed_are_kept(broker: Broker) {
    let mut ratios = Vec::new();
    while ratios.len() < TRIES {
        let (calm, none) = speed(&broker, |_| false).await;
        let (rough, failed) = speed(&broker, |number| number.is_multiple_of(20)).await;
        assert_eq!((none, failed), (0, u64::from(ALL / 20)));
        println!("{}: {calm:.0} a second, {rough:.0} with failures: {:.2}", broker.name(), rough / calm);
        ratios.push(rough / calm);
        if rough / calm >= LEAST {
            return;
        }
    }
    panic!("with one attempt in twenty failing, so much of the speed was left: {ratios:.2?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory() {
    order_and_speed_are_kept(postrider::connect("memory:").await.unwrap()).await;
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
    async fn on_a_real_server() {
        order_and_speed_are_kept(connect("POSTRIDER_TEST_NATS_URL").await).await;
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn on_a_real_broker() {
        order_and_speed_are_kept(connect("POSTRIDER_TEST_KAFKA_URL").await).await;
    }
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn on_a_real_broker() {
        order_and_speed_are_kept(connect("POSTRIDER_TEST_RABBITMQ4_URL").await).await;
    }
}
