//! The one thread that writes: what came while the disk was busy goes into the next transaction, all of it with one flush.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use postrider_core::{Env, Error, ErrorKind, Identity, Result};
use redb::{Database, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use crate::entry::{Entry, LENGTH};

/// What became of each message.
pub(crate) const ENTRIES: TableDefinition<'_, &[u8], [u8; LENGTH]> =
    TableDefinition::new("postrider-entries-1");
/// The same by the time at which it may be forgotten.
pub(crate) const EXPIRIES: TableDefinition<'_, (u64, &[u8]), ()> =
    TableDefinition::new("postrider-expiries-1");

/// The most entries of one transaction.
const BATCH: usize = 4096;
/// How many that have had their time go with each transaction that writes any, at least.
const FORGET: usize = 64;

/// Something to be written down.
struct Job {
    entries: Vec<(Identity, Entry)>,
    written: oneshot::Sender<Result<()>>,
}

/// The thread. Dropped, it writes what it has and ends.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts it.
    pub(crate) fn start(database: Arc<Database>, env: Env) -> Result<Self> {
        let (jobs, todo) = channel();
        let builder = std::thread::Builder::new().name("postrider-redb".into());
        let thread = builder.spawn(move || run(&database, &env, &todo)).map_err(|e| {
            Error::new(ErrorKind::Broker, "open", "the system gives no thread for the store").because(e)
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Resolves when these are on the disk.
    pub(crate) async fn write(&self, entries: Vec<(Identity, Entry)>) -> Result<()> {
        let gone =
            || Error::new(ErrorKind::Closed, "write", "the store's thread has ended; open the store again");
        let (written, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Job { entries, written }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // it has only what was told to it to write; a panic there was told to those who waited
            let _ = thread.join();
        }
    }
}

fn run(database: &Database, env: &Env, todo: &Receiver<Job>) {
    while let Ok(first) = todo.recv() {
        let mut count = first.entries.len();
        let mut jobs = vec![first];
        while count < BATCH
            && let Ok(job) = todo.try_recv()
        {
            count += job.entries.len();
            jobs.push(job);
        }
        let outcome = commit(database, env.wall_ms(), &jobs);
        for job in jobs {
            let answer = match &outcome {
                Ok(()) => Ok(()),
                Err(error) => {
                    let message = "the store's file can't be written";
                    Err(Error::new(ErrorKind::Broker, "write", message).with("reason", error).temporary(true))
                }
            };
            // whoever has gone on without the answer is told by the file
            let _ = job.written.send(answer);
        }
    }
}

fn commit(database: &Database, now_ms: u64, jobs: &[Job]) -> std::result::Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        let mut expiries = transaction.open_table(EXPIRIES)?;
        let all: usize = jobs.iter().map(|job| job.entries.len()).sum();
        for (identity, entry) in jobs.iter().flat_map(|job| &job.entries) {
            let before = entries.get(identity.as_bytes())?.and_then(|bytes| Entry::of(bytes.value()));
            if matches!(
                (before, entry),
                (Some(Entry::Completed { until_ms }), Entry::DeadLettered { .. }) if until_ms > now_ms
            ) {
                continue; // handled is handled
            }
            if let Some(before) = before {
                expiries.remove((before.until_ms(), identity.as_bytes()))?;
            }
            entries.insert(identity.as_bytes(), entry.to_bytes())?;
            expiries.insert((entry.until_ms(), identity.as_bytes()), ())?;
        }
        // twice as many go as come, so that what has had its time never piles up
        let mut old: Vec<(u64, Vec<u8>)> = Vec::new();
        for expiry in expiries.range::<(u64, &[u8])>(..(now_ms, &[][..]))?.take(FORGET.max(2 * all)) {
            let (key, ()) = expiry.map(|(key, value)| (key, value.value()))?;
            let (until_ms, identity) = key.value();
            old.push((until_ms, identity.to_vec()));
        }
        for (until_ms, identity) in old {
            expiries.remove((until_ms, &identity[..]))?;
            entries.remove(&identity[..])?;
        }
    }
    transaction.commit()?;
    Ok(())
}
