//! The loop of `async-nats`' own documentation: `Context::publish` with its acknowledgement awaited, and the stream of
//! `Consumer::messages` with `ack().await` for each message.

use std::pin::pin;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use super::Names;
use super::pull::GROUP;
use crate::case::Case;
use crate::job::{Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;
use crate::tally::Tally;

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let js = jetstream::new(async_nats::connect(&job.url).await?);
    let names = Arc::new(Names::of(job)?);
    if let Case::PublishOne | Case::Publish | Case::PublishAll = job.case {
        publish(&job.first(), &js, &names).await?;
        return job.publishing(publish(job, &js, &names)).await;
    }
    let (tally, mut tasks) = (job.tally(), JoinSet::new());
    for name in &names.consumers {
        let consumer: PullConsumer = js.get_consumer_from_stream(name, &names.stream).await?;
        tasks.spawn(consume(job.case, consumer, js.clone(), Arc::clone(&names), tally.clone()));
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    js.client().flush().await?;
    found(&tally)
}

async fn publish(job: &Job, js: &Context, names: &Names) -> Result<()> {
    let collected = job.collected();
    let mut order = job.order();
    let mut acks = Vec::with_capacity(collected);
    for number in 0..job.messages {
        order.number(number);
        let body = serde_json::to_vec(&order)?;
        acks.push(js.publish(names.order(&order.key()), body.into()).await?.into_future());
        if acks.len() == collected {
            try_join_all(acks.drain(..)).await?;
        }
    }
    try_join_all(acks).await?;
    Ok(())
}

async fn consume(
    case: Case,
    consumer: PullConsumer,
    js: Context,
    names: Arc<Names>,
    tally: Tally,
) -> Result<()> {
    let mut messages = if case == Case::ConsumeKeyed {
        consumer.stream().group(GROUP).messages().await?
    } else {
        consumer.messages().await?
    };
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let message = tokio::select! {
            biased;
            Some(message) = messages.next() => message?,
            () = &mut full => return Ok(()),
        };
        let order: OrderPlaced = serde_json::from_slice(&message.payload)?;
        tally.add(&order);
        if case == Case::Transform {
            let invoice = order.invoice();
            let body = serde_json::to_vec(&invoice)?;
            js.publish(names.invoice(&invoice.key()), body.into()).await?.await?;
        }
        message.ack().await.map_err(|e| anyhow!("a message can't be acknowledged: {e}"))?;
    }
}
