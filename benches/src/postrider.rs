//! postrider as a subject: the same program on every broker, with annotated handlers and default options but the order that the
//! case asks for.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Result, ensure};
use postrider::prelude::*;
use postrider::{Confirm, Declare};

use crate::case::{Case, Kind};
use crate::job::{BATCH, INVOICES, Job, ORDERS, found};
use crate::meter::Measured;
use crate::order::{Invoiced, OrderPlaced};
use crate::pace::Pace;
use crate::tally::Tally;

const DEADLINE: Duration = Duration::from_mins(1);
/// What a message takes beside its body, at most.
const HEADERS: u64 = 1024;

#[handler(channel = "orders", group = "billing", order = none)]
async fn bill(order: OrderPlaced, State(tally): State<Tally>) {
    tally.add(&order);
}

#[handler(channel = "orders", group = "billing")]
async fn bill_in_order(order: OrderPlaced, State(tally): State<Tally>) {
    tally.add(&order);
}

#[handler(channel = "orders", group = "billing", order = none)]
async fn bill_many(orders: Batch<OrderPlaced>, State(tally): State<Tally>) {
    orders.0.iter().for_each(|order| tally.add(order));
}

#[handler(channel = "orders", group = "billing", order = none, publishes = "invoices")]
async fn invoice(order: OrderPlaced, State(tally): State<Tally>) -> Invoiced {
    tally.add(&order);
    order.invoice()
}

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let broker = postrider::connect(&url(job, job.messages)).await?;
    if job.broker == Kind::Memory {
        return embedded(job, &broker).await;
    }
    match job.case {
        Case::PublishOne | Case::Publish | Case::PublishAll => {
            broker.declare(ORDERS).await?;
            publish(&job.first(), &broker, None).await?;
            job.publishing(publish(job, &broker, None)).await
        }
        Case::Latency => {
            let tally = job.tally();
            let service = router(job, &tally).start(&broker).await?;
            publish(job, &broker, Some(&tally)).await?;
            end(job, &tally, service).await
        }
        _ => {
            let tally = job.tally();
            let service = router(job, &tally).start(&broker).await?;
            end(job, &tally, service).await
        }
    }
}

/// Where a subject's messages are: each subject has names of its own.
pub(crate) fn url(job: &Job, messages: u64) -> String {
    if job.broker == Kind::Memory {
        let held = if job.case.direction() == crate::case::Direction::Out { messages } else { 10_000 };
        // what is only consumed is all there before, however large
        let bytes = (held * (job.payload as u64 + HEADERS)).max(4 << 30);
        return format!("memory:?max_messages={held}&max_bytes={bytes}");
    }
    // the URL may have options of its own, to try them out
    let join = if job.url.contains('?') { '&' } else { '?' };
    format!("{}{join}tenant={}", job.url, job.subject.name())
}

/// On the embedded broker what is published is handled in the same process; what is only consumed is there before.
async fn embedded(job: &Job, broker: &Broker) -> Result<Measured> {
    let tally = job.tally();
    if job.case.direction() == crate::case::Direction::Out {
        broker.declare(ORDERS).await?;
        publish(job, broker, None).await?;
        let service = router(job, &tally).start(broker).await?;
        return end(job, &tally, service).await;
    }
    let service = router(job, &tally).start(broker).await?;
    tally.begin();
    publish(job, broker, Some(&tally)).await?;
    end(job, &tally, service).await
}

fn router(job: &Job, tally: &Tally) -> Router<Tally> {
    let router = Router::with_state(tally.clone());
    match job.case {
        // on the embedded broker what only publishes is handled, too, in the order that a route has by itself
        Case::ConsumeKeyed | Case::Publish | Case::PublishOne | Case::PublishAll => {
            router.route(bill_in_order)
        }
        Case::ConsumeBatch => router.route(bill_many),
        Case::Transform => router.route(invoice),
        _ => router.route(bill),
    }
}

async fn end(job: &Job, tally: &Tally, service: postrider::Running) -> Result<Measured> {
    tally.full().await;
    service.idle().await;
    let report = service.stop(DEADLINE).await?;
    let route = &report.routes[0];
    ensure!(report.drained && route.dead_lettered == 0 && route.retried == 0, "{report}");
    ensure!(route.handled >= job.messages, "{} of {} were handled", route.handled, job.messages);
    found(tally)
}

/// How many confirms are outstanding before the oldest is awaited: as many as of the best loop where that has fewer than postrider
/// has room for.
fn window(broker: Kind) -> usize {
    match broker {
        Kind::Nats | Kind::Rabbitmq => 1_024,
        Kind::Memory | Kind::Kafka => 4_096,
    }
}

/// Publishes as the case says; everything is confirmed at the end.
async fn publish(job: &Job, broker: &Broker, tally: Option<&Tally>) -> Result<()> {
    let mut order = job.order();
    match job.case {
        Case::PublishOne => {
            for number in 0..job.messages {
                order.number(number);
                broker.publish(ORDERS, &order).await?;
            }
        }
        Case::PublishAll => {
            let mut number = 0;
            let mut orders = vec![order; BATCH as usize];
            while number < job.messages {
                let size = BATCH.min(job.messages - number);
                orders.truncate(size as usize);
                for order in &mut orders {
                    order.number(number);
                    number += 1;
                }
                for outcome in broker.publish_all(ORDERS, &orders).await {
                    outcome?;
                }
            }
        }
        _ => {
            let mut pace = Pace::new(job.rate);
            let window = window(job.broker);
            let mut confirms: VecDeque<Confirm> = VecDeque::with_capacity(window);
            for number in 0..job.messages {
                if let (Some(tally), Case::Latency) = (tally, job.case) {
                    tally.sent(number, pace.wait(number).await);
                }
                order.number(number);
                if confirms.len() == window
                    && let Some(oldest) = confirms.pop_front()
                {
                    oldest.await?;
                }
                confirms.push_back(broker.enqueue(ORDERS, &order).await);
            }
            for confirm in confirms {
                confirm.await?;
            }
        }
    }
    Ok(())
}

/// Makes what a job reads and writes: the same for all subjects, as postrider makes it.
pub(crate) async fn declare(job: &Job) -> Result<Broker> {
    declare_at(&url(job, job.messages), job).await
}

/// The same by a URL with options of its own.
pub(crate) async fn declare_at(url: &str, job: &Job) -> Result<Broker> {
    use postrider::{Channel, Group, GroupName, Order, SubscribeOptions};
    let broker = postrider::connect(url).await?;
    let group = |channel, group| {
        let mut options = SubscribeOptions::new(Channel::new(channel)?, Group::Named(GroupName::new(group)?));
        options.order = if job.case == Case::ConsumeKeyed { Order::Key } else { Order::None };
        anyhow::Ok(Declare::Group(options))
    };
    let mut topology = vec![Declare::Channel(Channel::new(ORDERS)?), group(ORDERS, crate::job::BILLING)?];
    if job.case == Case::Transform {
        topology.extend([Declare::Channel(Channel::new(INVOICES)?), group(INVOICES, "archive")?]);
    }
    broker.declare_all(&topology).await?;
    Ok(broker)
}

/// Puts a backlog there: the same messages for all subjects.
pub(crate) async fn fill(job: &Job, broker: &Broker) -> Result<()> {
    publish(&Job { case: Case::Publish, rate: None, ..job.clone() }, broker, None).await?;
    Ok(())
}
