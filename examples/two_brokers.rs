//! One application on two brokers at once: events on one, which keeps them for whoever comes later, jobs on another, which hands
//! each to one worker. An order is an event; packing it is a job; that it is packed is an event again.
//!
//! `cargo run --example two_brokers`, or with events on Kafka and jobs on RabbitMQ
//! `POSTRIDER_EVENTS_URL=kafka://127.0.0.1:9092 POSTRIDER_JOBS_URL=amqp://127.0.0.1:5672
//! cargo run --example two_brokers --no-default-features --features kafka,rabbitmq`.
//!
//! Each message is acknowledged on the broker that it came from after what it led to is confirmed by the other one. Between the two a
//! crash may fall, so what follows from a message has an id that is made of the message's: a second one is told by that.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postrider::prelude::*;
use postrider::{MessageId, Report};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

const ORDERS: u64 = 100;

/// An event: a customer has ordered.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

/// A job: pack this. It needs no order, so that all packers share the work.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.pack", version = 1)]
struct PackOrder {
    order_id: String,
}

/// An event: it is packed.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.packed", version = 1, key = "order_id")]
struct OrderPacked {
    order_id: String,
}

/// The two brokers, told apart by their types, and what customers can look up.
#[derive(Clone, Debug, FromRef)]
struct World {
    events: Events,
    jobs: Jobs,
    tracking: Tracking,
}

#[derive(Clone, Debug)]
struct Events(Broker);

#[derive(Clone, Debug)]
struct Jobs(Broker);

#[derive(Clone, Debug, Default)]
struct Tracking(Arc<Mutex<BTreeSet<String>>>);

/// Turns an event into a job.
#[handler(channel = "orders", group = "dispatch")]
async fn dispatch(order: OrderPlaced, State(jobs): State<Jobs>) -> Result<(), HandlerError> {
    let id = MessageId::Text(format!("pack-{}", order.order_id).into());
    jobs.0.publish("packing", Envelope::builder(PackOrder { order_id: order.order_id }).id(id)).await?;
    Ok(())
}

/// Does the job, and says so.
#[handler(channel = "packing", group = "packers", order = none)]
async fn pack(job: PackOrder, State(events): State<Events>) -> Result<(), HandlerError> {
    let id = MessageId::Text(format!("packed-{}", job.order_id).into());
    events.0.publish("parcels", Envelope::builder(OrderPacked { order_id: job.order_id }).id(id)).await?;
    Ok(())
}

/// Remembers what is packed; a second event of the same order changes nothing.
#[handler(channel = "parcels", group = "tracking")]
async fn track(packed: OrderPacked, State(tracking): State<Tracking>) -> Result<(), HandlerError> {
    let mut known = tracking.0.lock().map_err(|_| HandlerError::msg("another handler panicked"))?;
    known.insert(packed.order_id);
    Ok(())
}

#[tokio::main]
async fn main() -> postrider::Result<()> {
    // what the library warns of goes to standard error; a service would log INFO as well
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let (events, jobs) = (connect("POSTRIDER_EVENTS_URL").await?, connect("POSTRIDER_JOBS_URL").await?);
    let world =
        World { events: Events(events.clone()), jobs: Jobs(jobs.clone()), tracking: Tracking::default() };
    // the jobs' service first: what the other one sends has somewhere to go
    let on_jobs = Router::with_state(world.clone()).route(pack).start(&jobs).await?;
    let on_events = Router::with_state(world.clone()).route(dispatch).route(track).start(&events).await?;

    let orders: Vec<_> = (1..=ORDERS).map(|n| OrderPlaced { order_id: format!("o-{n}") }).collect();
    for outcome in events.publish_all("orders", &orders).await {
        outcome?;
    }
    let all = || world.tracking.0.lock().is_ok_and(|known| known.len() as u64 == ORDERS);
    while !all() {
        // one idles while the other works, and the other way round
        on_events.idle().await;
        on_jobs.idle().await;
    }
    for service in [on_events, on_jobs] {
        summary(&service.stop(Duration::from_secs(30)).await?);
    }
    println!("packed {ORDERS} of {ORDERS}");
    Ok(())
}

/// The broker that the variable names, or an embedded one of its own.
async fn connect(variable: &str) -> postrider::Result<Broker> {
    let url = std::env::var(variable).unwrap_or_else(|_| "memory:".into());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let joint = if url.contains('?') { '&' } else { '?' };
    postrider::connect(&format!("{url}{joint}tenant=parcels-{since:x}")).await
}

fn summary(report: &Report) {
    for route in &report.routes {
        println!("{} handled {} dead-lettered {}", route.group, route.handled, route.dead_lettered);
    }
}
