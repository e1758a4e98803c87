//! What stands at the NATS server before and after a run.

use anyhow::{Context as _, Result};
use async_nats::jetstream::context::DeleteStreamErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};

use super::Names;
use crate::job::Job;

async fn server(job: &Job) -> Result<Context> {
    Ok(jetstream::new(async_nats::connect(&job.url).await?))
}

/// Removes the subject's streams.
pub(crate) async fn clear(job: &Job) -> Result<()> {
    let (js, names) = (server(job).await?, Names::of(job)?);
    for stream in [names.stream, names.invoices] {
        match js.delete_stream(&stream).await.map_err(|e| (e.kind(), e)) {
            Err((DeleteStreamErrorKind::JetStream(e), _))
                if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
            Err((_, error)) => return Err(error).context("the stream can't be removed"),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Lets the group begin anew with the first message.
pub(crate) async fn rewind(job: &Job) -> Result<()> {
    let (js, names) = (server(job).await?, Names::of(job)?);
    for consumer in &names.consumers {
        js.delete_consumer_from_stream(consumer, &names.stream).await?;
    }
    // with the invoices of the run before: the same orders make invoices of the same ids, which the stream would drop as doubles, also
    // when it was emptied
    let _ = js.delete_stream(&names.invoices).await;
    Ok(())
}

/// How many orders, and how many invoices, are stored.
pub(crate) async fn stored(job: &Job) -> Result<(u64, u64)> {
    let (js, names) = (server(job).await?, Names::of(job)?);
    let orders = js.get_stream(&names.stream).await?.cached_info().state.messages;
    let invoices = js.get_stream(&names.invoices).await.map_or(0, |s| s.cached_info().state.messages);
    Ok((orders, invoices))
}

/// How many orders the group has not read, or read and not acknowledged.
pub(crate) async fn left(job: &Job) -> Result<u64> {
    let (js, names) = (server(job).await?, Names::of(job)?);
    let stream = js.get_stream(&names.stream).await?;
    let mut left = 0;
    for consumer in &names.consumers {
        let info = stream.consumer_info(consumer).await.context("the consumer is gone")?;
        left += info.num_pending + info.num_ack_pending as u64;
    }
    Ok(left)
}
