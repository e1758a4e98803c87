//! What a group remembers of messages that may have ended processes: notes in a queue of the group's, made when the first is written.
//! A note says which message and how often; to read them all is to take them out and give them back.

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};
use postrider_core::{Error, ErrorKind, Result};

use crate::config::{DeclareMode, QueueType};
use crate::error;
use crate::topology::NO_LIMIT;

/// The most notes that are kept; the oldest go.
const MOST: i64 = 1_000;
const PERSISTENT: u8 = 2;

/// Where a group's notes are.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    pub(crate) queue: String,
    pub(crate) mode: DeclareMode,
    pub(crate) queue_type: QueueType,
}

/// One note, as it was taken out.
struct Note {
    tag: u64,
    fingerprint: u64,
    strikes: u32,
}

impl Notes {
    /// How often the message was begun alone and not ended.
    pub(crate) async fn strikes(&self, connection: &lapin::Connection, fingerprint: u64) -> Result<u32> {
        let channel = self.open(connection, "strikes").await?;
        let notes = self.take_all(&channel, "strikes").await?;
        close(&channel).await;
        let own = notes.into_iter().filter(|note| note.fingerprint == fingerprint);
        Ok(own.map(|note| note.strikes).max().unwrap_or(0))
    }

    /// Writes it down; 0: it isn't remembered any more.
    pub(crate) async fn set(
        &self,
        connection: &lapin::Connection,
        fingerprint: u64,
        strikes: u32,
    ) -> Result<()> {
        let channel = self.open(connection, "set_strikes").await?;
        let failed = |e| error::of("set_strikes", e).with("queue", &self.queue);
        let earlier = self.take_all(&channel, "set_strikes").await?;
        if strikes > 0 {
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
            let body = format!("{fingerprint:016x} {strikes}");
            let sent = channel.basic_publish(
                "".into(),
                self.queue.as_str().into(),
                BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
                body.as_bytes(),
                BasicProperties::default().with_delivery_mode(PERSISTENT),
            );
            let confirmed = sent.await.map_err(failed)?.await.map_err(failed)?;
            if !matches!(confirmed, Confirmation::Ack(None)) {
                let message = "the broker didn't take the note";
                let error = Error::new(ErrorKind::Broker, "set_strikes", message).with("queue", &self.queue);
                return Err(error.temporary(true));
            }
        }
        // only now: what was known before isn't forgotten before the new note is there
        for note in earlier.into_iter().filter(|note| note.fingerprint == fingerprint) {
            channel.basic_ack(note.tag, BasicAckOptions::default()).await.map_err(failed)?;
        }
        close(&channel).await;
        Ok(())
    }

    /// A channel of its own, and the queue.
    async fn open(&self, connection: &lapin::Connection, operation: &'static str) -> Result<Channel> {
        let failed = |e| error::of(operation, e).with("queue", &self.queue);
        let channel = connection.create_channel().await.map_err(failed)?;
        let passive = self.mode != DeclareMode::Create;
        let mut arguments = FieldTable::default();
        if !passive {
            let quorum = self.queue_type == QueueType::Quorum;
            let name = AMQPValue::LongString(if quorum { "quorum" } else { "classic" }.into());
            arguments.insert("x-queue-type".into(), name);
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MOST));
            if quorum {
                // to be read is to be given back
                arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(NO_LIMIT.into()));
            }
        }
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(self.queue.as_str().into(), options, arguments).await {
            Ok(_) => Ok(channel),
            Err(e) if error::is_not_found(&e) => {
                let message = "there is no queue for what is remembered of messages, and none may be made";
                Err(Error::new(ErrorKind::Unsupported, operation, message).with("queue", &self.queue))
            }
            Err(e) => Err(failed(e)),
        }
    }

    async fn take_all(&self, channel: &Channel, operation: &'static str) -> Result<Vec<Note>> {
        let mut notes = Vec::new();
        loop {
            let found = channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()).await;
            let Some(found) = found.map_err(|e| error::of(operation, e).with("queue", &self.queue))? else {
                return Ok(notes);
            };
            let tag = found.delivery_tag;
            // somebody else's stays where it is, too
            notes.extend(read(&found.data).map(|(fingerprint, strikes)| Note { tag, fingerprint, strikes }));
        }
    }
}

/// Gives back what was taken out.
async fn close(channel: &Channel) {
    // a channel that is gone has given it back already
    let _ = channel.close(200, "".into()).await;
}

fn read(note: &[u8]) -> Option<(u64, u32)> {
    let (fingerprint, strikes) = std::str::from_utf8(note).ok()?.split_once(' ')?;
    Some((u64::from_str_radix(fingerprint, 16).ok()?, strikes.parse().ok()?))
}
