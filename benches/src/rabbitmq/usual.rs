//! The loop of `lapin`'s own examples: `basic_publish` awaited and its confirm awaited (many of them together where many are sent),
//! and the consumer's stream with `ack().await` for each delivery.

use std::pin::pin;
use std::sync::Arc;

use anyhow::{Result, ensure};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::task::JoinSet;

use super::Names;
use crate::case::Case;
use crate::job::{Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;
use crate::tally::Tally;

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let (connection, names) = (super::connect(&job.url).await?, Arc::new(Names::of(job)?));
    if let Case::PublishOne | Case::Publish | Case::PublishAll = job.case {
        let channel = confirming(&connection).await?;
        publish(&job.first(), &channel, &names).await?;
        let measured = job.publishing(publish(job, &channel, &names)).await?;
        connection.close(200, "done".into()).await?;
        return Ok(measured);
    }
    let (tally, mut tasks, mut channels) = (job.tally(), JoinSet::new(), Vec::new());
    for queue in &names.queues {
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let channel = connection.create_channel().await?;
        let consumer =
            channel.basic_consume(queue.as_str().into(), "usual".into(), options, arguments).await?;
        let output = if job.case == Case::Transform { Some(confirming(&connection).await?) } else { None };
        // kept, since one that is dropped closes by itself and the connection then can't be closed in good order
        channels.extend([Some(channel), output.clone()]);
        tasks.spawn(consume(consumer, output, Arc::clone(&names), tally.clone()));
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    super::settle().await;
    connection.close(200, "done".into()).await?;
    found(&tally)
}

async fn confirming(connection: &lapin::Connection) -> Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Answers with the confirm, to be awaited.
async fn send(
    channel: &Channel,
    exchange: &ShortString,
    slot: ShortString,
    body: &[u8],
) -> Result<impl Future<Output = lapin::Result<Confirmation>> + Send + use<>> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2);
    Ok(channel.basic_publish(exchange.clone(), slot, options, body, properties).await?)
}

async fn publish(job: &Job, channel: &Channel, names: &Names) -> Result<()> {
    let collected = job.collected();
    let mut order = job.order();
    let mut confirms = Vec::with_capacity(collected);
    for number in 0..job.messages {
        order.number(number);
        let body = serde_json::to_vec(&order)?;
        confirms.push(send(channel, &names.orders, names.slot(&order.key()), &body).await?);
        if confirms.len() == collected || number + 1 == job.messages {
            for confirmation in try_join_all(confirms.drain(..)).await? {
                ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker says {confirmation:?}");
            }
        }
    }
    Ok(())
}

async fn consume(
    mut consumer: Consumer,
    output: Option<Channel>,
    names: Arc<Names>,
    tally: Tally,
) -> Result<()> {
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let delivery = tokio::select! {
            biased;
            Some(delivery) = consumer.next() => delivery?,
            () = &mut full => return Ok(()),
        };
        let order: OrderPlaced = serde_json::from_slice(&delivery.data)?;
        tally.add(&order);
        if let Some(channel) = &output {
            let invoice = order.invoice();
            let (slot, body) = (names.slot(&invoice.key()), serde_json::to_vec(&invoice)?);
            let confirmation = send(channel, &names.invoices, slot, &body).await?.await?;
            ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker says {confirmation:?}");
        }
        delivery.ack(BasicAckOptions::default()).await?;
    }
}
