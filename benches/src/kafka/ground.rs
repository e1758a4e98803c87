//! What stands at the Kafka broker before and after a run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::MetadataPartition;
use rdkafka::{Offset, TopicPartitionList};

use super::Names;
use crate::job::Job;

const PATIENCE: Duration = Duration::from_secs(20);
/// The time between two looks at what goes away by itself.
const LOOK: Duration = Duration::from_millis(20);

fn admin(job: &Job) -> Result<AdminClient<DefaultClientContext>> {
    Ok(super::client(job)?.create()?)
}

fn reader(job: &Job, names: &Names) -> Result<BaseConsumer> {
    Ok(super::client(job)?.set("group.id", &names.group).create()?)
}

/// Removes the subject's topics, and its group.
pub(crate) async fn clear(job: &Job) -> Result<()> {
    let (admin, names) = (admin(job)?, Names::of(job)?);
    let topics = [names.orders.as_str(), names.invoices.as_str()];
    // what was never made can't be removed
    admin.delete_topics(&topics, &AdminOptions::new()).await?;
    let archive = format!("{}--archive", names.invoices);
    admin.delete_groups(&[&names.group, &archive], &AdminOptions::new()).await?;
    let deadline = Instant::now() + PATIENCE;
    let there = || -> Result<bool> {
        let all = admin.inner().fetch_metadata(None, PATIENCE)?;
        Ok(all.topics().iter().any(|topic| topics.contains(&topic.name())))
    };
    while there()? {
        ensure!(Instant::now() < deadline, "the topics are still there");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Lets the group begin anew with the first message.
pub(crate) async fn rewind(job: &Job) -> Result<()> {
    let (admin, names) = (admin(job)?, Names::of(job)?);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answers = admin.delete_groups(&[&names.group], &AdminOptions::new()).await?;
        match answers.into_iter().next() {
            Some(Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound))) => return Ok(()),
            // the member before is still leaving
            Some(Err((_, RDKafkaErrorCode::NonEmptyGroup))) if Instant::now() < deadline => {
                tokio::time::sleep(LOOK).await;
            }
            other => bail!("the group can't be removed: {other:?}"),
        }
    }
}

/// How many orders, and how many invoices, are stored.
pub(crate) async fn stored(job: &Job) -> Result<(u64, u64)> {
    let names = Names::of(job)?;
    let reader = reader(job, &names)?;
    let sum = |edges: Vec<(i32, i64, i64)>| edges.iter().map(|edge| (edge.2 - edge.1) as u64).sum();
    Ok((sum(edges(&reader, &names.orders).await?), sum(edges(&reader, &names.invoices).await?)))
}

/// How many orders the group has not written down as done.
pub(crate) async fn left(job: &Job) -> Result<u64> {
    let names = Names::of(job)?;
    let reader = reader(job, &names)?;
    let edges = edges(&reader, &names.orders).await?;
    let mut list = TopicPartitionList::new();
    for (number, ..) in &edges {
        list.add_partition(&names.orders, *number);
    }
    let written = reader.committed_offsets(list, PATIENCE)?;
    let mut left = 0;
    for (number, low, high) in edges {
        let element = written.find_partition(&names.orders, number).context("a partition is missing")?;
        let done = match element.offset() {
            Offset::Offset(offset) => offset,
            _ => low,
        };
        left += (high - done) as u64;
    }
    Ok(left)
}

/// Number, first and next offset of each partition; none where there is no topic.
async fn edges(reader: &BaseConsumer, topic: &str) -> Result<Vec<(i32, i64, i64)>> {
    let all = reader.fetch_metadata(None, PATIENCE)?;
    let Some(found) = all.topics().iter().find(|found| found.name() == topic) else {
        return Ok(Vec::new());
    };
    let deadline = Instant::now() + PATIENCE;
    let mut edges = Vec::new();
    for number in found.partitions().iter().map(MetadataPartition::id) {
        let (low, high) = loop {
            match reader.fetch_watermarks(topic, number, PATIENCE) {
                Ok(edge) => break edge,
                // a topic that was just made may be shown before its leaders know of it
                Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                Err(error) => return Err(error.into()),
            }
        };
        edges.push((number, low, high));
    }
    Ok(edges)
}
