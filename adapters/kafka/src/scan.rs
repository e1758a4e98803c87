//! Reading a topic by itself, for no group: from its beginning up to where it ends when it is looked at. Every call blocks its thread.

use std::time::{Duration, Instant};

use postrider_core::{Error, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientConfig, Offset};

use crate::connection::ClientLog;
use crate::error;
use crate::positions::list;

/// How long one request may take.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// How long reading may go without a record or an end.
const SILENCE: Duration = Duration::from_secs(15);
/// How long one look for records takes at most.
const LOOK: Duration = Duration::from_millis(100);

/// One topic and how far it is read.
pub(crate) struct Scan {
    topic: String,
    client: BaseConsumer<ClientLog>,
    /// Where reading goes on, by partition.
    places: Vec<i64>,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("topic", &self.topic)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Scan {
    /// A client of the topic's partitions, from their beginning on.
    pub(crate) fn open(mut config: ClientConfig, topic: &str, partitions: u32) -> Result<Self> {
        config
            // the client reads nothing without the name of a group; nothing is ever written down for it
            .set("group.id", format!("{topic}--letters"))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false")
            .set("fetch.wait.max.ms", "100");
        let client = config.create_with_context(ClientLog).map_err(error::creation)?;
        Ok(Self { topic: topic.into(), client, places: vec![0; partitions as usize] })
    }

    /// Begins anew.
    pub(crate) fn rewind(&mut self) {
        self.places.fill(0);
    }

    /// Where each partition begins and ends now.
    pub(crate) fn edges(&self) -> Result<Vec<(i64, i64)>> {
        let edges = (0..self.places.len() as i32).map(|partition| {
            self.client.fetch_watermarks(&self.topic, partition, REQUEST).map_err(|e| self.failed(e))
        });
        edges.collect()
    }

    /// Hands over what wasn't read up to these `edges`, partition by partition, for as long as `take` wants more.
    pub(crate) fn run(
        &mut self,
        edges: Vec<(i64, i64)>,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> Result<()> {
        for (partition, (low, high)) in edges.into_iter().enumerate() {
            let from = self.places[partition].max(low);
            if from >= high {
                continue;
            }
            let number = partition as i32;
            // anew each time: what the client has heard of an end before is forgotten with that
            let assigned = list(&self.topic, [(number, Offset::Offset(from))]);
            self.client.assign(&assigned).map_err(|e| self.failed(e))?;
            let mut heard = Instant::now();
            while self.places[partition] < high {
                match self.client.poll(LOOK) {
                    Some(Ok(record)) if record.partition() == number => {
                        heard = Instant::now();
                        if record.offset() >= high {
                            break;
                        }
                        let more = take(&record);
                        self.places[partition] = record.offset() + 1;
                        if !more {
                            return Ok(());
                        }
                    }
                    // what was undone, and the marks of transactions, take places without being records
                    Some(Err(KafkaError::PartitionEOF(at))) if at == number => self.places[partition] = high,
                    // the client goes on by itself
                    Some(Err(e)) if error::client("letters", e.clone()).is_temporary() => {}
                    Some(Err(e)) => return Err(self.failed(e)),
                    Some(Ok(_)) | None => {}
                }
                if heard.elapsed() > SILENCE {
                    return Err(error::code("letters", Code::OperationTimedOut).with("topic", &self.topic));
                }
            }
        }
        Ok(())
    }

    fn failed(&self, error: KafkaError) -> Error {
        error::client("letters", error).with("topic", &self.topic)
    }
}
