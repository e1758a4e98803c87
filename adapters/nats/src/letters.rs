//! Dead letters of a stream: read by a consumer of their own that acknowledges nothing, closed by being deleted.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{ConsumerErrorKind, DeleteMessageErrorKind, RawMessageErrorKind, Stream};
use futures_util::future::try_join_all;
use futures_util::stream::StreamExt;
use postrider_core::{Error, ErrorKind, Letter, Letters, Origin, Result};

use crate::broker::NatsBroker;
use crate::convert;
use crate::error;
use crate::pull::{Answer, read};

/// The most letters that are asked for at once.
const PULL: usize = 64;
/// How long the server may take to hand those out.
const ANSWER: Duration = Duration::from_secs(10);
/// The most deletions that are under way at once.
const DELETIONS: usize = 64;
/// The consumer goes when nobody has read for so long; then it is made anew.
const INACTIVE: Duration = Duration::from_mins(1);

/// The open letters of one channel's stream. Every reader sees all of them.
#[derive(Debug)]
pub struct NatsLetters {
    broker: NatsBroker,
    channel: String,
    stream: Stream,
    /// The sequence that reading goes on with.
    next: u64,
    /// Stands at `next`. Taken out while it is asked: a call that is dropped leaves it somewhere else.
    consumer: Option<PullConsumer>,
}

impl NatsLetters {
    pub(crate) async fn open(broker: &NatsBroker, channel: &str) -> Result<Self> {
        let name = broker.topology().naming().stream(channel)?;
        let stream = broker.topology().js().get_stream(&name).await.map_err(|e| {
            let error = match e.kind() {
                GetStreamErrorKind::JetStream(answer) => error::api("letters", &answer),
                _ => error::request("letters", e),
            };
            if error.kind() != ErrorKind::NotFound {
                return error.with("stream", &name);
            }
            let message = "there is no stream of such a channel; start the router whose dead letters go there, or check the name";
            Error::new(ErrorKind::NotFound, "letters", message).with("channel", channel).because(error)
        })?;
        Ok(Self { broker: broker.clone(), channel: channel.into(), stream, next: 1, consumer: None })
    }

    fn name(&self) -> &str {
        &self.stream.cached_info().config.name
    }

    /// A consumer of the letters from a sequence on: of what is everybody's, not of what is a group's alone.
    async fn consumer(&self, operation: &'static str, from: u64) -> Result<PullConsumer> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            filter_subjects: self.broker.topology().naming().filters(&self.channel, None, 0, 1),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            ..pull::Config::default()
        };
        self.stream.create_consumer(config).await.map_err(|e| {
            let error = match e.kind() {
                ConsumerErrorKind::JetStream(answer) => error::api(operation, &answer),
                _ => error::request(operation, e),
            };
            error.with("stream", self.name())
        })
    }

    /// Appends what the consumer has, up to `max`; answers whether that is all there is.
    async fn pull(&mut self, consumer: &PullConsumer, max: usize, into: &mut Vec<Letter>) -> Result<bool> {
        let failed = |e: async_nats::Error| {
            let message = "the server didn't hand out the letters";
            Error::new(ErrorKind::Connection, "letters", message).because(e)
        };
        let mut batch = consumer.fetch().max_messages(max).messages().await.map_err(|e| failed(e.into()))?;
        let mut found = 0;
        while let Some(message) = batch.next().await {
            let message = message.map_err(failed)?.message;
            let Answer::Delivery(place) = read(&message) else {
                continue;
            };
            let name = self.stream.cached_info().config.name.as_str();
            let (headers, body) = (message.headers.as_ref(), message.payload);
            let envelope = convert::envelope(headers, body, name, place.sequence, place.time_ms);
            into.push(Letter::new(envelope, Origin { shard: 0, position: place.sequence }));
            self.next = place.sequence + 1;
            found += 1;
        }
        Ok(found < max)
    }

    async fn delete(&self, sequence: u64) -> Result<()> {
        let Err(e) = self.stream.delete_message(sequence).await else {
            return Ok(());
        };
        let error = match e.kind() {
            DeleteMessageErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::SEQUENCE_NOT_FOUND =>
            {
                return Ok(());
            }
            DeleteMessageErrorKind::JetStream(answer) => error::api("close", &answer),
            _ => error::request("close", e),
        };
        // the server has more than one word for what is gone already
        let left = self.stream.get_raw_message(sequence).await;
        if left.err().is_some_and(|e| e.kind() == RawMessageErrorKind::NoMessageFound) {
            return Ok(());
        }
        Err(error.with("stream", self.name()).with("sequence", sequence))
    }

    async fn remove(&self, consumer: PullConsumer) {
        // gone already, or gone by itself soon
        let _ = self.stream.delete_consumer(&consumer.cached_info().name).await;
    }
}

impl Letters for NatsLetters {
    async fn read(&mut self, max: NonZeroUsize, into: &mut Vec<Letter>) -> Result<()> {
        let goal = into.len().saturating_add(max.get());
        let env = self.broker.environment().clone();
        while into.len() < goal {
            let consumer = match self.consumer.take() {
                Some(consumer) => consumer,
                None => self.consumer("letters", self.next).await?,
            };
            let wanted = (goal - into.len()).min(PULL);
            let at_end = tokio::select! {
                biased;
                pulled = self.pull(&consumer, wanted, into) => pulled?,
                () = env.sleep(ANSWER) => {
                    let message = format!("the server didn't hand out the letters within {ANSWER:?}");
                    return Err(Error::new(ErrorKind::Timeout, "letters", message).with("stream", self.name()));
                }
            };
            self.consumer = Some(consumer);
            if at_end {
                break;
            }
        }
        Ok(())
    }

    async fn close(&mut self, letters: &[Origin]) -> Result<()> {
        // a piece at a time: that is how many deletions are under way at once
        for piece in letters.chunks(DELETIONS) {
            try_join_all(piece.iter().map(|letter| self.delete(letter.position))).await?;
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<u64> {
        let consumer = self.consumer("count", 1).await?;
        let count = consumer.cached_info().num_pending;
        self.remove(consumer).await;
        Ok(count)
    }

    fn describe(&self, letter: Origin) -> String {
        format!("nats:{}/{}", self.name(), letter.position)
    }

    async fn leave(&mut self) -> Result<()> {
        self.next = 1;
        if let Some(consumer) = self.consumer.take() {
            self.remove(consumer).await;
        }
        Ok(())
    }
}
