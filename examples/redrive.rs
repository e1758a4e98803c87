//! A bug, its fix, and what it had failed brought back: billing can't read the tax of every 20th order, 500 of 10,000, and they end in its
//! dead letters. The fixed handler starts, the letters are redriven, and billing gets these 500 and nothing else; shipping, which had
//! handled all of them, gets nothing.
//!
//! `cargo run --example redrive`, or on RabbitMQ
//! `POSTRIDER_URL=amqp://127.0.0.1:5672 cargo run --example redrive --no-default-features --features rabbitmq`.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postrider::prelude::*;
use postrider::{Letters, Redrive, Redriven, Report};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

const ORDERS: u64 = 10_000;
const WITH_A_BUG: u64 = ORDERS / 20;

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "order_id")]
struct OrderPlaced {
    order_id: String,
    number: u64,
    tax: String,
}

/// The orders that billing has written an invoice for.
#[derive(Clone, Debug, Default)]
struct Billed(Arc<Mutex<BTreeSet<u64>>>);

impl Billed {
    fn note(&self, order: &OrderPlaced) -> Result<(), HandlerError> {
        let mut billed = self.0.lock().map_err(|_| HandlerError::msg("another handler panicked"))?;
        if billed.insert(order.number) { Ok(()) } else { Err(HandlerError::msg("billed twice")).permanent() }
    }

    fn take(&self) -> BTreeSet<u64> {
        self.0.lock().map(|mut billed| std::mem::take(&mut *billed)).unwrap_or_default()
    }
}

/// As it was first: it takes the tax for a whole number.
#[handler(channel = "orders", group = "billing", retry = never)]
async fn bill_with_a_bug(order: OrderPlaced, State(billed): State<Billed>) -> Result<(), HandlerError> {
    order.tax.parse::<u8>()?;
    billed.note(&order)
}

/// As it is now.
#[handler(channel = "orders", group = "billing", retry = never)]
async fn bill(order: OrderPlaced, State(billed): State<Billed>) -> Result<(), HandlerError> {
    order.tax.parse::<f32>()?;
    billed.note(&order)
}

#[handler(channel = "orders", group = "shipping")]
async fn ship(_order: OrderPlaced) {}

#[tokio::main]
async fn main() -> postrider::Result<()> {
    // what the library warns of goes to standard error; a service would log INFO as well
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let url = std::env::var("POSTRIDER_URL").unwrap_or_else(|_| "memory:".into());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let joint = if url.contains('?') { '&' } else { '?' };
    let broker = postrider::connect(&format!("{url}{joint}tenant=redrive-{since:x}")).await?;
    let billed = Billed::default();

    let buggy = Router::with_state(billed.clone()).route(bill_with_a_bug).route(ship);
    let service = buggy.start(&broker).await?;
    publish(&broker).await?;
    service.idle().await;
    summary("with the bug", &service.stop(Duration::from_secs(30)).await?);
    let (before, failed) = (billed.take(), (1..=ORDERS).filter(|n| n.is_multiple_of(20)));
    let failed: BTreeSet<u64> = failed.collect();

    let fixed = Router::with_state(billed.clone()).route(bill).route(ship);
    let service = fixed.start(&broker).await?;
    let (sent, open) = redrive(&broker).await?;
    println!("redriven {sent}, open {open}");
    service.idle().await;
    summary("with the fix", &service.stop(Duration::from_secs(30)).await?);
    let back = billed.take();
    if before.is_disjoint(&back) && back == failed {
        println!("back at billing {} of {WITH_A_BUG}", back.len());
        return Ok(());
    }
    eprintln!("billing was to get the {} that failed, and got {}", failed.len(), back.len());
    std::process::exit(1)
}

async fn publish(broker: &Broker) -> postrider::Result<()> {
    let numbers: Vec<u64> = (1..=ORDERS).collect();
    for chunk in numbers.chunks(500) {
        let order = |number: &u64| {
            let tax = if number.is_multiple_of(20) { "7.5" } else { "19" };
            OrderPlaced { order_id: format!("o-{}", number % 1000), number: *number, tax: tax.into() }
        };
        let placed: Vec<_> = chunk.iter().map(order).collect();
        for outcome in broker.publish_all("orders", &placed).await {
            outcome?;
        }
    }
    Ok(())
}

/// Sends back every open letter of billing, a hundred at a time; answers how many, and how many are open still.
async fn redrive(broker: &Broker) -> postrider::Result<(usize, u64)> {
    let mut letters = broker.letters("orders.billing.dlq").await?;
    let mut sent = 0;
    loop {
        let mut some = Vec::new();
        letters.read(NonZeroUsize::MIN.saturating_add(99), &mut some).await?;
        if some.is_empty() {
            return Ok((sent, letters.count().await?));
        }
        for outcome in broker.redrive(&mut letters, &some, &Redrive::new().limit(3)).await {
            if let Redriven::Sent(_) = outcome? {
                sent += 1;
            }
        }
    }
}

fn summary(when: &str, report: &Report) {
    for route in &report.routes {
        println!("{when}: {} handled {} dead-lettered {}", route.group, route.handled, route.dead_lettered);
    }
}
