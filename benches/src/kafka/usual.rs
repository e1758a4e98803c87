//! The loops of `rdkafka`'s own examples: `FutureProducer` with its futures joined (`simple_producer`), and `StreamConsumer` with
//! offsets stored after handling and committed by the client (`at_least_once`). All else stays as the client has it.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::Names;
use crate::case::Case;
use crate::job::{Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let names = Names::of(job)?;
    if let Case::PublishOne | Case::Publish | Case::PublishAll = job.case {
        let producer = super::client(job)?.set("message.timeout.ms", "30000").create()?;
        publish(&job.first(), &producer, &names).await?;
        return job.publishing(publish(job, &producer, &names)).await;
    }
    consume(job, &names).await
}

async fn publish(job: &Job, producer: &FutureProducer, names: &Names) -> Result<()> {
    let collected = job.collected();
    let mut order = job.order();
    let mut sends = Vec::with_capacity(collected);
    for number in 0..job.messages {
        order.number(number);
        let (key, body) = (order.key(), serde_json::to_vec(&order)?);
        sends.push(async move {
            let record = FutureRecord::to(&names.orders).key(&key).payload(&body);
            producer.send(record, PATIENCE).await.map_err(|(error, _)| error)
        });
        if sends.len() == collected {
            try_join_all(sends.drain(..)).await?;
        }
    }
    try_join_all(sends).await?;
    Ok(())
}

async fn consume(job: &Job, names: &Names) -> Result<Measured> {
    let consumer: StreamConsumer = super::client(job)?
        .set("group.id", &names.group)
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "5000")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .create()?;
    // as the example has it: without waiting for more to send
    let producer: FutureProducer = super::client(job)?.set("queue.buffering.max.ms", "0").create()?;
    consumer.subscribe(&[&names.orders])?;
    let tally = job.tally();
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let message = tokio::select! {
            biased;
            message = consumer.recv() => message?,
            () = &mut full => break,
        };
        let order: OrderPlaced = serde_json::from_slice(message.payload().context("no body")?)?;
        tally.add(&order);
        if job.case == Case::Transform {
            let invoice = order.invoice();
            let (key, body) = (invoice.key(), serde_json::to_vec(&invoice)?);
            let record = FutureRecord::to(&names.invoices).key(&key).payload(&body);
            producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
        }
        consumer.store_offset_from_message(&message)?;
    }
    // the client writes down what is stored when it leaves the group
    tokio::task::spawn_blocking(move || drop(consumer)).await?;
    found(&tally)
}
