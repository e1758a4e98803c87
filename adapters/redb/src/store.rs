//! The store: reservations in memory, since they end with the process, and what became of messages in the file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::{
    BoxFuture, End, Ending, Env, Error, ErrorKind, IdempotencyStore, Identity, MemoryStore, Reserve,
    Reserved, Result,
};
use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use crate::entry::Entry;
use crate::writer::{ENTRIES, EXPIRIES, Writer};

/// How long what is being written down stays its holder's.
const WRITING: Duration = Duration::from_mins(1);

/// Remembers in a file what was handled: synced to the disk before the message is acknowledged, and there again after a crash.
///
/// One process has the file at a time. A reservation isn't written: it ends with the process that holds it, and so what a killed one
/// was handling can be handled at once by the next. Endings that come while the disk is busy are written together, with one flush.
///
/// Reading looks into the file on the caller's thread; it is in the system's cache unless it is much larger than the memory.
#[derive(Debug)]
pub struct RedbStore {
    // before the database: what it was told is written first
    writer: Writer,
    database: Arc<Database>,
    running: MemoryStore,
    env: Env,
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it can't be opened or isn't such a file, or another process has it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, Env::system())
    }

    /// The same, by the clocks of `env`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, env: Env) -> Result<Self> {
        let path = path.as_ref();
        let opened = Database::create(path).map_err(redb::Error::from).and_then(|database| {
            // the tables are there from now on, so that reading finds them
            let transaction = database.begin_write()?;
            transaction.open_table(ENTRIES)?;
            transaction.open_table(EXPIRIES)?;
            transaction.commit()?;
            Ok(database)
        });
        let database = Arc::new(opened.map_err(|e| {
            let message = match e {
                redb::Error::DatabaseAlreadyOpen => {
                    "the store's file is open already: one process, and one store in it, has it at a time"
                }
                _ => "the store's file can't be opened; check the path and who may write there",
            };
            Error::new(ErrorKind::Config, "open", message).with("path", path.display()).because(e)
        })?);
        let writer = Writer::start(Arc::clone(&database), env.clone())?;
        Ok(Self { writer, database, running: MemoryStore::with(env.clone(), usize::MAX), env })
    }

    /// How many messages the file remembers, those included whose time is over and that weren't forgotten yet.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn len(&self) -> Result<u64> {
        let count = || -> std::result::Result<u64, redb::Error> {
            Ok(self.database.begin_read()?.open_table(ENTRIES)?.len()?)
        };
        count().map_err(unreadable)
    }

    /// Whether it remembers none.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    fn remembered(&self, requests: &[Reserve]) -> std::result::Result<Vec<Option<Entry>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(ENTRIES)?;
        let now_ms = self.env.wall_ms();
        let mut found = Vec::with_capacity(requests.len());
        for request in requests {
            let entry = table.get(request.identity.as_bytes())?.and_then(|bytes| Entry::of(bytes.value()));
            found.push(entry.filter(|entry| entry.until_ms() > now_ms));
        }
        Ok(found)
    }

    /// Whether nobody else has it by now.
    async fn holds(&self, end: &End) -> Result<bool> {
        let again = Reserve::new(end.identity.clone(), end.token, WRITING);
        Ok(self.running.reserve(&[again]).await?.first() == Some(&Reserved::Granted))
    }

    async fn let_go(&self, requests: &[(&Identity, u64)]) -> Result<()> {
        let released =
            requests.iter().map(|(identity, token)| End::new((*identity).clone(), *token, Ending::Released));
        self.running.end(&released.collect::<Vec<_>>()).await
    }
}

impl IdempotencyStore for RedbStore {
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, Result<Vec<Reserved>>> {
        Box::pin(async move {
            // first who runs, then what is written: an ending lets go only when it is written, so none is missed between the two
            let mut answers = self.running.reserve(requests).await?;
            let remembered = self.remembered(requests);
            let remembered = match remembered {
                Ok(remembered) => remembered,
                Err(error) => {
                    let granted = granted(requests, &answers, |_| true);
                    self.let_go(&granted).await?;
                    return Err(unreadable(error));
                }
            };
            let answer = |at: usize| match remembered[at] {
                Some(Entry::Completed { .. }) => Some(Reserved::Completed),
                Some(Entry::DeadLettered { redrives, .. }) if requests[at].redrives <= redrives => {
                    Some(Reserved::DeadLettered)
                }
                _ => None,
            };
            self.let_go(&granted(requests, &answers, |at| answer(at).is_some())).await?;
            for (at, answered) in answers.iter_mut().enumerate() {
                if *answered == Reserved::Granted {
                    *answered = answer(at).unwrap_or(Reserved::Granted);
                }
            }
            Ok(answers)
        })
    }

    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let until = |ttl| self.env.due_ms(ttl);
            let mut entries = Vec::with_capacity(endings.len());
            for end in endings {
                let entry = match end.how {
                    Ending::Completed(ttl) => Entry::Completed { until_ms: until(ttl) },
                    // where the lease has run out and another has it, that one's word counts
                    Ending::DeadLettered(ttl, redrives) if self.holds(end).await? => {
                        Entry::DeadLettered { until_ms: until(ttl), redrives }
                    }
                    _ => continue,
                };
                entries.push((end.identity.clone(), entry));
            }
            if !entries.is_empty() {
                self.writer.write(entries).await?;
            }
            let all: Vec<_> = endings.iter().map(|end| (&end.identity, end.token)).collect();
            self.let_go(&all).await
        })
    }
}

/// Which of those that were granted are as `which` says.
fn granted<'a>(
    requests: &'a [Reserve],
    answers: &[Reserved],
    which: impl Fn(usize) -> bool,
) -> Vec<(&'a Identity, u64)> {
    let all = requests.iter().zip(answers).enumerate();
    let granted = all.filter(|(at, (_, answer))| **answer == Reserved::Granted && which(*at));
    granted.map(|(_, (request, _))| (&request.identity, request.token)).collect()
}

fn unreadable(error: redb::Error) -> Error {
    Error::new(ErrorKind::Broker, "read", "the store's file can't be read").because(error).temporary(true)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Instant;

    use postrider_core::Source;

    use super::*;

    /// A wall clock that stands until the test moves it.
    struct ByHand(Arc<AtomicU64>);

    impl Source for ByHand {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn wall_ms(&self) -> u64 {
            self.0.load(Relaxed)
        }

        fn random(&self) -> u64 {
            7
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn what_was_handled_is_known_for_its_whole_time() {
        let (folder, wall_ms) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(5_000)));
        let env = Env::new(ByHand(Arc::clone(&wall_ms)));
        let store = RedbStore::open_with(folder.path().join("handled.redb"), env).unwrap();
        let identity = Identity::new(&[b"a"]);
        store.end(&[End::new(identity.clone(), 1, Ending::Completed(Duration::from_secs(1)))]).await.unwrap();
        // handled at 5,000.9 it is to be known until 6,000.9: the clock shows no more than 6,000 then
        for (now_ms, expected) in [(6_000, Reserved::Completed), (6_001, Reserved::Granted)] {
            wall_ms.store(now_ms, Relaxed);
            let request = Reserve::new(identity.clone(), 2, Duration::from_secs(30));
            assert_eq!(store.reserve(&[request]).await.unwrap(), [expected], "{now_ms}");
        }
    }
}
