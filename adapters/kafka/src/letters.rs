//! Dead letters of a topic: read by a client that shares nothing with any group, closed by a mark in the compacted topic beside it. What
//! a mark is stands in `closed`.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use postrider_core::{Error, ErrorKind, Letter, Letters, Origin, Result};
use rdkafka::ClientConfig;
use rdkafka::message::Message;

use crate::broker::KafkaBroker;
use crate::closed::{self, Closed, Place};
use crate::connection::HEADER_ROOM;
use crate::convert;
use crate::error;
use crate::patience::ask_again;
use crate::properties;
use crate::scan::{self, Scan};

/// The open letters of one channel's topic: partition by partition, in each the oldest first. Every reader sees all of them.
#[derive(Debug)]
pub struct KafkaLetters {
    broker: KafkaBroker,
    channel: String,
    topic: String,
    /// The topic of the marks.
    marks: String,
    desk: Arc<Mutex<Desk>>,
    /// The time of each letter that was read here, which its mark tells.
    times: HashMap<Place, i64>,
}

/// What blocks its thread: the clients, and what is known by them.
#[derive(Debug)]
struct Desk {
    letters: Scan,
    marks: Option<Scan>,
    closed: Closed,
}

impl KafkaLetters {
    pub(crate) async fn open(broker: &KafkaBroker, channel: &str) -> Result<Self> {
        let naming = broker.topology().naming();
        let (topic, marks) = (naming.topic(channel)?, naming.closed(channel)?);
        let Some(count) = broker.connection().partitions("letters", &topic).await? else {
            let message = "there is no topic of such a channel; start the router whose dead letters go there, or check the name";
            return Err(Error::new(ErrorKind::NotFound, "letters", message).with("channel", channel));
        };
        let letters = Scan::open(config(broker), &topic, count)?;
        let desk = Arc::new(Mutex::new(Desk { letters, marks: None, closed: Closed::default() }));
        let (broker, channel) = (broker.clone(), channel.into());
        Ok(Self { broker, channel, topic, marks, desk, times: HashMap::new() })
    }

    /// Works at the desk, on a thread that may be blocked.
    async fn at_desk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Desk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let desk = Arc::clone(&self.desk);
        let worked = tokio::task::spawn_blocking(move || {
            work(&mut desk.lock().unwrap_or_else(PoisonError::into_inner))
        });
        worked
            .await
            .map_err(|e| Error::new(ErrorKind::Closed, "letters", "the runtime is stopping").because(e))?
    }

    /// Where the partitions of a topic begin and end, once each has a leader.
    async fn edges(&self, of: fn(&Desk) -> Option<&Scan>) -> Result<Vec<(i64, i64)>> {
        let ask = || self.at_desk(move |desk| of(desk).map_or(Ok(Vec::new()), Scan::edges));
        ask_again(self.broker.environment(), scan::REQUEST, error::is_leaderless, ask).await
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.broker.is_closed() {
            return Err(Error::new(ErrorKind::Closed, operation, "the broker was closed; connect again"));
        }
        Ok(())
    }

    /// Takes in what was closed since, here or by others.
    async fn catch_up(&self) -> Result<()> {
        let known = self.at_desk(|desk| Ok(desk.marks.is_some())).await?;
        // made when the first letter is closed
        if !known && self.broker.connection().partitions("letters", &self.marks).await?.is_none() {
            return Ok(());
        }
        let (config, topic) = (config(&self.broker), self.marks.clone());
        self.at_desk(move |desk| {
            if desk.marks.is_none() {
                desk.marks = Some(Scan::open(config, &topic, 1)?);
            }
            Ok(())
        })
        .await?;
        let edges = self.edges(|desk| desk.marks.as_ref()).await?;
        self.at_desk(move |desk| {
            let Desk { marks, closed, .. } = desk;
            let Some(marks) = marks else { return Ok(()) };
            marks.run(edges, |record| {
                closed.note(record.key(), record.payload());
                true
            })
        })
        .await
    }
}

/// How a client that reads and belongs nowhere is made.
fn config(broker: &KafkaBroker) -> ClientConfig {
    let mut config = broker.connection().common.clone();
    properties::native(&mut config, broker.config());
    config
}

impl Letters for KafkaLetters {
    async fn read(&mut self, max: NonZeroUsize, into: &mut Vec<Letter>) -> Result<()> {
        self.check_open("letters")?;
        self.catch_up().await?;
        let (topic, edges) = (self.topic.clone(), self.edges(|desk| Some(&desk.letters)).await?);
        let read = self.at_desk(move |desk| {
            let Desk { letters, closed, .. } = desk;
            let mut read = Vec::new();
            letters.run(edges, |record| {
                let place = Place { partition: record.partition(), offset: record.offset() };
                let time = record.timestamp().to_millis().unwrap_or(0);
                if !closed.has(place, time) {
                    let origin = Origin { shard: place.partition as u32, position: place.offset as u64 };
                    read.push((Letter::new(convert::envelope(record, &topic), origin), place, time));
                }
                read.len() < max.get()
            })?;
            Ok(read)
        });
        for (letter, place, time) in read.await? {
            self.times.insert(place, time);
            into.push(letter);
        }
        Ok(())
    }

    async fn close(&mut self, letters: &[Origin]) -> Result<()> {
        self.check_open("close")?;
        let marked = letters.iter().filter_map(|letter| {
            let place = Place { partition: letter.shard as i32, offset: letter.position as i64 };
            Some((place, *self.times.get(&place)?))
        });
        let marked: Vec<_> = marked.collect();
        if marked.is_empty() {
            return Ok(());
        }
        self.broker.topology().closed(&self.channel).await?;
        let producer =
            properties::producer(&self.broker.connection().common, self.broker.config(), HEADER_ROOM);
        let topic = self.marks.clone();
        self.at_desk(move |desk| {
            closed::close(&producer, &topic, &marked)?;
            desk.closed.add(&marked);
            Ok(())
        })
        .await
    }

    async fn count(&mut self) -> Result<u64> {
        self.check_open("count")?;
        self.catch_up().await?;
        let edges = self.edges(|desk| Some(&desk.letters)).await?;
        self.at_desk(move |desk| {
            let held: u64 = edges.iter().map(|(low, high)| high.saturating_sub(*low).max(0) as u64).sum();
            Ok(held.saturating_sub(desk.closed.within(&edges)))
        })
        .await
    }

    fn describe(&self, letter: Origin) -> String {
        format!("kafka:{}/{}/{}", self.topic, letter.shard, letter.position)
    }

    async fn leave(&mut self) -> Result<()> {
        self.at_desk(|desk| {
            desk.letters.rewind();
            Ok(())
        })
        .await
    }
}
