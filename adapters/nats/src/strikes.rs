//! What a group remembers of messages that may have ended processes: in the channel's stream, under a subject for each, which no
//! consumer reads. The last message there is the number; none is 0.

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use postrider_core::{Error, ErrorKind, Result};

use crate::error;
use crate::topology::ConsumerPlan;

impl ConsumerPlan {
    /// How often the message with this sequence was begun alone and not ended.
    pub(crate) async fn strikes(&self, group: &str, sequence: u64) -> Result<u32> {
        let subject = self.naming().strikes(&self.channel, group, sequence);
        match self.stream_of("strikes").await?.get_last_raw_message_by_subject(&subject).await {
            Ok(found) => {
                Ok(std::str::from_utf8(&found.payload).ok().and_then(|n| n.parse().ok()).unwrap_or(0))
            }
            Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
            Err(e) => Err(error::request("strikes", e).with("subject", subject)),
        }
    }

    /// Writes it down; 0: it isn't remembered any more.
    pub(crate) async fn set_strikes(&self, group: &str, sequence: u64, strikes: u32) -> Result<()> {
        let subject = self.naming().strikes(&self.channel, group, sequence);
        let stream = self.stream_of("set_strikes").await?;
        if strikes == 0 {
            let purged = stream.purge().filter(&subject).await;
            return purged.map(drop).map_err(|e| error::request("set_strikes", e).with("subject", subject));
        }
        if !stream.cached_info().config.subjects.contains(&self.naming().strikes(&self.channel, "*", "*")) {
            let message = "the stream isn't ours and has no place for what is remembered of a message";
            return Err(
                Error::new(ErrorKind::Unsupported, "set_strikes", message).with("stream", &self.stream)
            );
        }
        let failed = |e| error::request("set_strikes", e).with("subject", &subject);
        let sent = self.js().publish(subject.clone(), strikes.to_string().into()).await.map_err(failed)?;
        sent.await.map(drop).map_err(failed)
    }

    async fn stream_of(&self, operation: &'static str) -> Result<Stream> {
        let found = self.js().get_stream(&self.stream).await;
        found.map_err(|e| error::request(operation, e).with("stream", &self.stream))
    }
}
