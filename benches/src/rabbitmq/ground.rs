//! What stands at RabbitMQ before and after a run.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::Names;
use crate::job::Job;

const PATIENCE: Duration = Duration::from_secs(20);
/// The time between two looks at a queue whose reader is leaving.
const LOOK: Duration = Duration::from_millis(20);

async fn open(job: &Job) -> Result<(Connection, Names)> {
    Ok((super::connect(&job.url).await?, Names::of(job)?))
}

/// Removes the subject's queues of the case, with whatever they hold.
pub(crate) async fn clear(job: &Job) -> Result<()> {
    let (connection, names) = open(job).await?;
    let channel = connection.create_channel().await?;
    let marker = names.queues[0].trim_end_matches("--0").to_owned() + "--partitions";
    for queue in names.queues.iter().chain([&names.archive, &marker]) {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    Ok(connection.close(200, "cleared".into()).await?)
}

/// Messages that are ready, once nobody reads the queue any more: what a reader had and didn't acknowledge is ready again by then.
async fn ready(channel: &Channel, queue: &str) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        if found.consumer_count() == 0 {
            return Ok(found.message_count().into());
        }
        ensure!(Instant::now() < deadline, "{queue} is still read");
        tokio::time::sleep(LOOK).await;
    }
}

/// How many orders, and how many invoices, are stored.
pub(crate) async fn stored(job: &Job) -> Result<(u64, u64)> {
    let (connection, names) = open(job).await?;
    let channel = connection.create_channel().await?;
    let mut orders = 0;
    for queue in &names.queues {
        orders += ready(&channel, queue).await?;
    }
    let invoices =
        if job.case == crate::case::Case::Transform { ready(&channel, &names.archive).await? } else { 0 };
    connection.close(200, "looked".into()).await?;
    Ok((orders, invoices))
}

/// How many orders are left in the queues, those included that were read and not acknowledged.
pub(crate) async fn left(job: &Job) -> Result<u64> {
    Ok(stored(job).await?.0)
}
