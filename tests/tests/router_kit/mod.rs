//! What the router's tests share: a broker with a clock of its own, one message type, and a look at what was left behind.
//! The cases themselves stand in the files beside this folder.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

pub(crate) mod altered;
pub(crate) mod group;

use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::memory::{MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{
    Backoff, Channel, Env, Group, Jitter, Report, Retry, RouteReport, Running, SubscribeOptions, Subscriber,
    Subscription,
};
use serde::{Deserialize, Serialize};

/// Longer than anything here takes; the clock is paused, so only a test that hangs waits for it.
const PATIENCE: Duration = Duration::from_hours(24);

/// The message of these tests; its key is the customer.
#[derive(Clone, Debug, PartialEq, Eq, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 2, key = "customer")]
pub(crate) struct Placed {
    pub(crate) customer: String,
    pub(crate) number: u64,
}

/// What a handler makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Message, Serialize, Deserialize)]
#[message(name = "order.invoiced", version = 1, key = "customer")]
pub(crate) struct Invoiced {
    pub(crate) customer: String,
    pub(crate) number: u64,
}

pub(crate) fn placed(customer: &str, number: u64) -> Placed {
    Placed { customer: customer.into(), number }
}

pub(crate) fn invoiced(placed: &Placed) -> Invoiced {
    Invoiced { customer: placed.customer.clone(), number: placed.number }
}

/// A broker on tokio's clock: its own handle, for faults, and the one that programs hold.
pub(crate) fn broker() -> (MemoryBroker, Broker) {
    let memory = MemoryBroker::with(MemoryConfig::default(), Env::seeded(7));
    (memory.clone(), Broker::new(memory))
}

/// A broker whose channel `orders` holds these already, so that a route finds them all at once.
pub(crate) async fn broker_with(orders: &[Placed]) -> (MemoryBroker, Broker) {
    let (memory, broker) = broker();
    broker.declare("orders").await.expect("it is declared");
    for outcome in broker.publish_all("orders", orders).await {
        outcome.expect("it is confirmed");
    }
    (memory, broker)
}

/// `attempts` in all, `wait` before each further one.
pub(crate) fn retry(attempts: u32, wait: Duration) -> Retry {
    Retry::new().attempts(attempts).backoff(Backoff::Fixed(wait)).jitter(Jitter::None)
}

/// Waits, but fails a test that hangs.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("it hangs, waiting until {what}"))
}

/// Waits until nothing is left to do, stops, and answers what the only route did.
pub(crate) async fn finish(service: Running) -> RouteReport {
    within("nothing is left to do", service.idle()).await;
    only(service.stop(Duration::from_secs(5)).await.expect("it stops"))
}

/// The report of the only route.
pub(crate) fn only(report: Report) -> RouteReport {
    let mut routes = report.routes;
    assert_eq!(routes.len(), 1, "{routes:?}");
    routes.remove(0)
}

/// How much a route's group has still to settle.
pub(crate) async fn lag(service: &Running, route: &str) -> u64 {
    service.control(route).expect("there is such a route").lag().await.expect("memory tells")
}

/// Everything that a channel holds, settled or not.
pub(crate) async fn look(broker: &Broker, channel: &str) -> Vec<Envelope> {
    let channel = Channel::new(channel).expect("a good name");
    let options = SubscribeOptions::new(channel, Group::Ephemeral);
    let mut subscription = broker.subscribe(&options).await.expect("it subscribes");
    let expected = subscription.control().lag().await.expect("memory tells") as usize;
    let (mut found, most) = (Vec::new(), NonZeroUsize::new(100).expect("not zero"));
    while found.len() < expected {
        within("all is read", subscription.receive(most, &mut found)).await.expect("it is received");
    }
    found.into_iter().map(|delivery| delivery.envelope).collect()
}

/// The text of a header.
pub(crate) fn header<'a>(envelope: &'a Envelope, name: &str) -> &'a str {
    let value = envelope.headers().get(name).unwrap_or_else(|| panic!("there is no header {name}"));
    value.as_text().expect("it is text")
}

/// What handlers write down, in the order in which they do.
#[derive(Debug)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Debug> Log<T> {
    pub(crate) fn add(&self, entry: T) {
        self.0.lock().expect("nobody panics while writing").push(entry);
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.0.lock().expect("nobody panics while writing").clone()
    }
}
