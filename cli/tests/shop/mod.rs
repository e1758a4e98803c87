//! A shop with two groups: billing gives everything up, shipping takes everything.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says what it expects")]

pub(crate) mod cases;
pub(crate) mod dead_letters;

use std::num::NonZeroUsize;
use std::process::Child;
use std::time::{Duration, Instant};

use postrider::prelude::*;
use postrider::{
    Channel, Declare, Delivery, Group, GroupName, RouteOptions, Settlement, SubscribeOptions, Subscriber,
    Subscription,
};

use crate::support::PATIENCE;

pub(crate) const LETTERS: &str = "orders.billing.dlq";

/// What is declared for the group that reads `orders`.
fn reads(group: &str) -> SubscribeOptions {
    let mut options =
        SubscribeOptions::new(Channel::new("orders").unwrap(), Group::Named(GroupName::new(group).unwrap()));
    options.partitions = Some(2);
    options
}

/// The channel with both groups and billing's dead letters, but nobody who reads.
pub(crate) async fn declared(url: &str) -> Broker {
    let broker = postrider::connect(url).await.expect("the broker answers");
    let letters = Declare::DeadLetters(Channel::new(LETTERS).unwrap());
    let topology = [Declare::Group(reads("billing")), Declare::Group(reads("shipping")), letters];
    broker.declare_all(&topology).await.expect("it is declared");
    broker
}

/// A router of both; billing says why.
pub(crate) fn router() -> Router {
    let bill = async |_: Envelope| -> Result<(), HandlerError> {
        Err(HandlerError::msg("the card was declined")).permanent()
    };
    let ship = async |_: Envelope| {};
    Router::new()
        .route(RouteOptions::new("orders", "billing").name("bill").partitions(2).handle(bill))
        .route(RouteOptions::new("orders", "shipping").name("ship").partitions(2).handle(ship))
}

/// Publishes so many orders, o-0 and on, which all become dead letters of billing's and are shipped.
pub(crate) async fn with_letters(url: &str, count: usize) -> Broker {
    let broker = postrider::connect(url).await.expect("the broker answers");
    let service = router().start(&broker).await.expect("the shop opens");
    let orders = (0..count).map(|n| {
        let body = format!("{{\"number\":{n}}}");
        Envelope::builder(postrider::Bytes::from(body))
            .type_name("order.placed")
            .version(1)
            .key(format!("k-{}", n % 16))
            .id(postrider::MessageId::parse(&format!("o-{n}")))
            .attribute(postrider::Attribute::ContentType, "application/json")
    });
    for outcome in broker.publish_all("orders", orders).await {
        outcome.expect("the order is confirmed");
    }
    let closed = Instant::now() + PATIENCE;
    loop {
        service.idle().await;
        let report = service.report();
        if report.routes.iter().map(|route| route.dead_lettered + route.handled).sum::<u64>()
            >= 2 * count as u64
        {
            break;
        }
        assert!(Instant::now() < closed, "the shop is too slow: {report}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.stop(Duration::from_secs(30)).await.expect("the shop closes");
    broker
}

/// Takes what the group gets: at least `least` messages, and whatever else comes within a while.
pub(crate) async fn taken(broker: &Broker, group: &str, least: usize) -> Vec<Envelope> {
    // what comes too much comes at once after the rest
    take(broker, group, least, Duration::from_secs(2)).await
}

/// Takes so many of what the group gets, or a few more, and leaves.
pub(crate) async fn first(broker: &Broker, group: &str, least: usize) -> Vec<Envelope> {
    take(broker, group, least, Duration::ZERO).await
}

async fn take(broker: &Broker, group: &str, least: usize, after: Duration) -> Vec<Envelope> {
    let mut subscription = broker.subscribe(&reads(group)).await.expect("the group is joined");
    let (mut all, mut batch): (Vec<Envelope>, Vec<Delivery>) = (Vec::new(), Vec::new());
    let most = NonZeroUsize::new(100).unwrap();
    loop {
        let wait = if all.len() < least { PATIENCE } else { after };
        let Ok(signal) = tokio::time::timeout(wait, subscription.receive(most, &mut batch)).await else {
            break;
        };
        signal.expect("the group goes on");
        for delivery in batch.drain(..) {
            all.push(delivery.envelope.clone());
            delivery.claim.settle(Settlement::Ack).expect("the claim holds");
        }
    }
    assert!(all.len() >= least, "{group} got {} of {least}", all.len());
    subscription.close().await.expect("the group is left");
    all
}

/// The ids, in order.
pub(crate) fn ids(messages: &[Envelope]) -> Vec<String> {
    let mut ids: Vec<_> = messages.iter().map(|message| message.id().to_string()).collect();
    ids.sort();
    ids
}

/// The ids of so many orders, in order.
pub(crate) fn orders(count: usize) -> Vec<String> {
    let mut ids: Vec<_> = (0..count).map(|n| format!("o-{n}")).collect();
    ids.sort();
    ids
}

/// What Ctrl-C does.
pub(crate) fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
}
