//! The service that a growth is measured on, and what is published to it. Options are the default ones but for what grows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use postrider::prelude::*;
use postrider::{Confirm, RouteOptions, Window};

use super::Curve;
use super::gate::Gate;
use super::point::Point;
use crate::job::{BILLING, ORDERS};
use crate::order::OrderPlaced;
use crate::tally::Tally;

/// How many confirms are outstanding before the oldest is awaited.
const WINDOW: usize = 4_096;
/// Customers where they don't grow.
const KEYS: u64 = 10_000;
/// Where customers begin, so that up to 8,999,999 of them have names of one length.
const FIRST: u64 = 1_000_000;
/// From one customer to the next: prime to every power of ten, so that each has its turn, and far enough that neighbours don't follow.
const STRIDE: u64 = 7_368_787;
/// How many messages in a row one channel gets, where there are many.
const BURST: u64 = 64;
/// How long a handler computes that does.
const WORK: Duration = Duration::from_micros(5);

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) tally: Tally,
    gate: Arc<Gate>,
}

async fn bill(order: OrderPlaced, State(load): State<Load>) {
    load.tally.add(&order);
}

async fn wait(order: OrderPlaced, State(load): State<Load>) {
    load.wait(order).await;
}

async fn compute(order: OrderPlaced, State(load): State<Load>) {
    let began = Instant::now();
    while began.elapsed() < WORK {
        std::hint::spin_loop();
    }
    load.tally.add(&order);
}

impl Load {
    /// Waits at the gate, then counts as handled.
    pub(super) async fn wait(&self, order: OrderPlaced) {
        self.gate.pass().await;
        self.tally.add(&order);
    }

    pub(super) fn of(point: &Point) -> Self {
        let all = point.warm + point.messages;
        let gate = Arc::new(Gate::new(point.at as usize, all));
        Self { tally: Tally::warmed(point.warm, all), gate }
    }

    /// The routes of a point.
    pub(super) fn router(&self, point: &Point) -> Router<Self> {
        let router = Router::with_state(self.clone());
        let (at, options) = (point.at as usize, RouteOptions::new(ORDERS, BILLING));
        match point.curve {
            Curve::Routes => channels(point).into_iter().fold(router, |router, channel| {
                router.route(RouteOptions::new(channel, BILLING).handle(bill))
            }),
            Curve::InFlight => {
                // as many are read ahead as ever
                let options = options.concurrency(at).max_in_flight(at + Window::default().messages);
                router.route(options.max_in_flight_bytes(usize::MAX).handle(wait))
            }
            Curve::Workers => router.route(options.workers(at).handle(compute)),
            Curve::Keys | Curve::Headers | Curve::Backlog => router.route(options.handle(bill)),
        }
    }
}

/// The channels that a point publishes to and reads.
pub(super) fn channels(point: &Point) -> Vec<String> {
    match (point.curve, point.at) {
        (Curve::Routes, count) => (0..count).map(|n| format!("{ORDERS}-{n:04}")).collect(),
        _ => vec![ORDERS.to_owned()],
    }
}

/// The orders of a point, one after the other.
pub(super) struct Orders {
    order: OrderPlaced,
    keys: u64,
}

impl Orders {
    pub(super) fn of(point: &Point) -> Self {
        let keys = match point.curve {
            Curve::Keys => point.at,
            // so many that hardly any waits for another of its key
            Curve::InFlight => 9_000_000,
            _ => KEYS,
        };
        Self { order: OrderPlaced::template(point.payload), keys }
    }

    /// The one of that number.
    pub(super) fn number(&mut self, number: u64) -> &OrderPlaced {
        self.order.of_customer(number, FIRST + number.wrapping_mul(STRIDE) % self.keys);
        &self.order
    }
}

/// Publishes the messages of those numbers, pipelined; all are confirmed at the end.
pub(super) async fn send(point: &Point, broker: &Broker, numbers: Range<u64>) -> Result<()> {
    let (channels, mut orders) = (channels(point), Orders::of(point));
    let headers = if point.curve == Curve::Headers { headers(point.at) } else { Vec::new() };
    let mut confirms: VecDeque<Confirm> = VecDeque::with_capacity(WINDOW);
    for number in numbers {
        if confirms.len() == WINDOW
            && let Some(oldest) = confirms.pop_front()
        {
            oldest.await?;
        }
        let order = orders.number(number);
        let channel = &channels[(number / BURST) as usize % channels.len()];
        confirms.push_back(if point.curve == Curve::Headers {
            let mut envelope = Envelope::builder(order.clone());
            for (name, value) in &headers {
                envelope = envelope.header(name, value.as_str());
            }
            broker.enqueue(channel, envelope).await
        } else {
            broker.enqueue(channel, order).await
        });
    }
    for confirm in confirms {
        confirm.await?;
    }
    Ok(())
}

/// So many headers of the length of a usual one.
fn headers(count: u64) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("x-header-{n:02}"), format!("a value of text {n:02}"))).collect()
}
