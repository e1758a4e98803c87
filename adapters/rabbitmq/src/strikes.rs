//! What a group remembers of messages that may have ended processes: notes in a stream of the group's, made when the first is written.
//! A note says which message and how often; the newest of a message holds. To read takes nothing out, so every member knows all.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use postrider_core::{Env, Error, ErrorKind, Result};
use tokio::sync::Mutex;

use crate::config::DeclareMode;
use crate::error;

/// The most bytes of notes that are kept; the oldest go, by the segment.
const MOST: i64 = 4 * 1024 * 1024;
const SEGMENT: i64 = 1024 * 1024;
/// How many messages are known at most; beyond, all are forgotten, and what was begun counts anew.
const KNOWN: usize = 65_536;
/// How many notes may be on the way here.
const AHEAD: u16 = 256;
const PERSISTENT: u8 = 2;

/// Where a group's notes are, and what is known of them.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    queue: Arc<str>,
    mode: DeclareMode,
    reading: Arc<Mutex<Option<Reading>>>,
}

/// The notes as far as they were read, on one channel. Dropped, the client closes it.
#[derive(Debug)]
struct Reading {
    generation: u64,
    channel: Channel,
    consumer: Consumer,
    known: HashMap<u64, u32>,
}

/// One line in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// The message was begun alone so often, and has not ended.
    Strikes { fingerprint: u64, strikes: u32 },
    /// Somebody wants to know that everything before was read.
    Mark(u64),
}

impl Notes {
    pub(crate) fn new(queue: String, mode: DeclareMode) -> Self {
        Self { queue: queue.into(), mode, reading: Arc::default() }
    }

    /// How often the message was begun alone and not ended.
    pub(crate) async fn strikes(
        &self,
        connection: &lapin::Connection,
        generation: u64,
        fingerprint: u64,
        env: &Env,
    ) -> Result<u32> {
        self.with(connection, generation, "strikes", async |reading| {
            // by the time the mark comes back, so has everything that any member wrote before
            let mark = Note::Mark(env.random());
            let all = reading.write(&self.queue, mark).await? && reading.read_to(mark).await?;
            Ok(all.then(|| reading.known.get(&fingerprint).copied().unwrap_or(0)))
        })
        .await
    }

    /// Writes it down; 0: it isn't remembered any more. What is written is known here once it is read.
    pub(crate) async fn set(
        &self,
        connection: &lapin::Connection,
        generation: u64,
        fingerprint: u64,
        strikes: u32,
    ) -> Result<()> {
        self.with(connection, generation, "set_strikes", async |reading| {
            let taken = reading.write(&self.queue, Note::Strikes { fingerprint, strikes }).await?;
            Ok(taken.then_some(()))
        })
        .await
    }

    /// Works on the channel of this connection, which is opened if need be. After a failure the next call opens another, and also
    /// when the work comes to nothing.
    async fn with<T>(
        &self,
        connection: &lapin::Connection,
        generation: u64,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut Reading) -> lapin::Result<Option<T>>,
    ) -> Result<T> {
        let mut place = self.reading.lock().await;
        // taken out while it is worked on: a call that is cancelled half-way leaves nothing behind that reads at the wrong place
        let held = place.take().filter(|reading| reading.generation == generation && reading.lives());
        let mut reading = match held {
            Some(reading) => reading,
            None => self.open(connection, generation, operation).await?,
        };
        let failed = |e| error::of(operation, e).with("queue", &self.queue);
        let Some(done) = work(&mut reading).await.map_err(failed)? else {
            let message = "the broker didn't take the note, or took its stream away";
            let error = Error::new(ErrorKind::Broker, operation, message).with("queue", &self.queue);
            return Err(error.temporary(true));
        };
        *place = Some(reading);
        Ok(done)
    }

    /// A channel of its own, and the stream from its first note on.
    async fn open(
        &self,
        connection: &lapin::Connection,
        generation: u64,
        operation: &'static str,
    ) -> Result<Reading> {
        let failed = |e| error::of(operation, e).with("queue", &self.queue);
        let channel = connection.create_channel().await.map_err(failed)?;
        let passive = self.mode != DeclareMode::Create;
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        let arguments = if passive { FieldTable::default() } else { arguments() };
        match channel.queue_declare(self.name(), options, arguments).await {
            Ok(_) => {}
            Err(e) if error::is_not_found(&e) => {
                let message = "there is no stream for what is remembered of messages, and none may be made";
                return Err(Error::new(ErrorKind::Unsupported, operation, message).with("queue", &self.queue));
            }
            Err(e) => return Err(failed(e)),
        }
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        channel.basic_qos(AHEAD, BasicQosOptions::default()).await.map_err(failed)?;
        let mut from = FieldTable::default();
        from.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(self.name(), "".into(), options, from).await.map_err(failed)?;
        Ok(Reading { generation, channel, consumer, known: HashMap::new() })
    }

    fn name(&self) -> lapin::types::ShortString {
        (&*self.queue).into()
    }
}

fn arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(MOST));
    arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(SEGMENT));
    arguments
}

impl Reading {
    fn lives(&self) -> bool {
        self.channel.status().connected()
    }

    /// Whether the broker took it.
    async fn write(&self, queue: &str, note: Note) -> lapin::Result<bool> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let body = note.to_string();
        let sent =
            self.channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await?;
        Ok(matches!(sent.await?, Confirmation::Ack(None)))
    }

    /// Reads until this note has come; `false` when the stream ends before.
    async fn read_to(&mut self, last: Note) -> lapin::Result<bool> {
        while let Some(delivery) = self.consumer.next().await {
            let delivery = delivery?;
            let note = Note::read(&delivery.data);
            match note {
                Some(Note::Strikes { fingerprint, strikes: 0 }) => {
                    self.known.remove(&fingerprint);
                }
                Some(Note::Strikes { fingerprint, strikes }) => {
                    if self.known.len() >= KNOWN {
                        self.known.clear();
                    }
                    self.known.insert(fingerprint, strikes);
                }
                // somebody else's mark, or what isn't ours to understand
                Some(Note::Mark(_)) | None => {}
            }
            // takes nothing out of a stream, and lets the next come
            self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
            if note == Some(last) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Strikes { fingerprint, strikes } => write!(f, "{fingerprint:016x} {strikes}"),
            Self::Mark(mark) => write!(f, "mark {mark:016x}"),
        }
    }
}

impl Note {
    fn read(note: &[u8]) -> Option<Self> {
        let (first, second) = std::str::from_utf8(note).ok()?.split_once(' ')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        if first == "mark" {
            return number(second).map(Self::Mark);
        }
        Some(Self::Strikes { fingerprint: number(first)?, strikes: second.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_note_is_read_as_it_was_written(fingerprint: u64, strikes: u32, mark: u64) {
            for note in [Note::Strikes { fingerprint, strikes }, Note::Mark(mark)] {
                prop_assert_eq!(Note::read(note.to_string().as_bytes()), Some(note));
            }
        }

        #[test]
        fn what_is_no_note_is_none(bytes: Vec<u8>) {
            if let Some(note) = Note::read(&bytes) {
                prop_assert_eq!(Note::read(note.to_string().as_bytes()), Some(note));
            }
        }
    }
}
