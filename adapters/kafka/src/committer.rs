//! The thread of one member that writes its place down. The client tells what became of a commit only to who waits for it
//! (`rd_kafka_commit` without waiting raises no event since the client's callbacks became events), so that one thread waits here
//! and the member's own goes on.

use std::sync::{Arc, mpsc};

use postrider_core::{Error, ErrorKind, Result};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::Offset;

use crate::positions;
use crate::rebalance::{Client, Event, Waker};
use crate::shared::Commit;

/// Hands places to the thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Committer(mpsc::Sender<Vec<Commit>>);

impl Committer {
    /// Starts the thread.
    pub(crate) fn start(client: Arc<Client>, topic: String, waker: Arc<Waker>) -> Result<Self> {
        let (sender, places) = mpsc::channel::<Vec<Commit>>();
        let builder = std::thread::Builder::new().name("postrider-commit".into());
        let spawned = builder.spawn(move || {
            while let Ok(commits) = places.recv() {
                let result = write(&client, &topic, &commits);
                client.context().push(Event::Committed(result));
                waker.wake();
            }
            // a member that leaves waits for that
            drop(client);
            waker.wake();
        });
        spawned.map_err(|e| {
            let message = "the system gives no thread for the subscription";
            Error::new(ErrorKind::Broker, "subscribe", message).because(e)
        })?;
        Ok(Self(sender))
    }

    /// Writes these down; an event says what became of it.
    pub(crate) fn write(&self, commits: Vec<Commit>) {
        // the thread ends after us
        let _ = self.0.send(commits);
    }
}

fn write(client: &Client, topic: &str, commits: &[Commit]) -> std::result::Result<(), Code> {
    let offset = |commit: &Commit| (commit.partition, Offset::Offset(commit.position as i64));
    let list = positions::list(topic, commits.iter().map(offset));
    for (element, commit) in list.elements().iter_mut().zip(commits) {
        if !commit.metadata.is_empty() {
            element.set_metadata(&commit.metadata);
        }
    }
    client.commit(&list, CommitMode::Sync).map_err(|e| e.rdkafka_error_code().unwrap_or(Code::Unknown))
}
