//! The store as the runner uses it, across restarts and kills, and how often it flushes.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use postrider_core::{BoxFuture, End, Ending, Env, IdempotencyStore, Identity, Reserve, Reserved, Source};
use postrider_redb::RedbStore;

const LEASE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_hours(24);

fn identity(n: u64) -> Identity {
    Identity::new(&[b"group", b"handler", &n.to_be_bytes()])
}

async fn ask(store: &RedbStore, n: u64, token: u64, redrives: u32) -> Reserved {
    let mut request = Reserve::new(identity(n), token, LEASE);
    request.redrives = redrives;
    store.reserve(&[request]).await.expect("it answers")[0]
}

async fn tell(store: &RedbStore, n: u64, token: u64, how: Ending) {
    store.end(&[End::new(identity(n), token, how)]).await.expect("it is written");
}

#[tokio::test]
async fn what_was_handled_is_known_after_a_restart_and_what_was_running_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handled.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 1..=4 {
        assert_eq!(ask(&store, n, n, 0).await, Reserved::Granted);
    }
    assert!(matches!(ask(&store, 1, 9, 0).await, Reserved::Taken(left) if left <= LEASE && !left.is_zero()));
    tell(&store, 1, 1, Ending::Completed(DAY)).await;
    tell(&store, 2, 2, Ending::DeadLettered(DAY, 0)).await;
    tell(&store, 3, 3, Ending::Released).await;
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(ask(&store, 1, 9, 7).await, Reserved::Completed);
    assert_eq!(ask(&store, 2, 9, 0).await, Reserved::DeadLettered);
    assert_eq!(ask(&store, 2, 9, 1).await, Reserved::Granted, "redriven since");
    assert_eq!(ask(&store, 3, 9, 0).await, Reserved::Granted);
    assert_eq!(ask(&store, 4, 9, 0).await, Reserved::Granted, "its holder is gone");
}

#[tokio::test]
async fn a_second_store_on_one_file_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handled.redb");
    let _first = RedbStore::open(&path).unwrap();
    let error = RedbStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("open already") && error.contains("handled.redb"), "{error}");
    let nowhere = RedbStore::open(folder.path().join("no/such/folder.redb")).unwrap_err().to_string();
    assert!(nowhere.contains("check the path"), "{nowhere}");
    let other = folder.path().join("notes.txt");
    std::fs::write(&other, "not a database, but long enough to be taken for one".repeat(200)).unwrap();
    RedbStore::open(&other).expect_err("it is something else's");
    assert!(std::fs::read_to_string(&other).unwrap().starts_with("not a database"), "and is left alone");
}

#[tokio::test]
async fn a_late_word_takes_nothing_from_the_next_holder() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::open(folder.path().join("handled.redb")).unwrap();
    let short = Reserve::new(identity(1), 7, Duration::ZERO);
    assert_eq!(store.reserve(&[short]).await.unwrap(), [Reserved::Granted]);
    assert_eq!(ask(&store, 1, 8, 0).await, Reserved::Granted, "the lease had run out");
    tell(&store, 1, 7, Ending::DeadLettered(DAY, 0)).await;
    assert!(matches!(ask(&store, 1, 9, 0).await, Reserved::Taken(_)));
    // handled is handled, whoever did it, and stays so
    tell(&store, 1, 7, Ending::Completed(DAY)).await;
    tell(&store, 1, 8, Ending::DeadLettered(DAY, 0)).await;
    assert_eq!(ask(&store, 1, 9, 0).await, Reserved::Completed);
}

/// A wall clock that stands until the test moves it; everything else is the system's.
#[derive(Clone, Debug)]
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

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[tokio::test]
async fn what_has_had_its_time_is_forgotten_and_its_room_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handled.redb");
    let clock = ByHand(Arc::new(AtomicU64::new(1)));
    let store = RedbStore::open_with(&path, Env::new(clock.clone())).unwrap();
    let mut size = 0;
    for round in 0..20_u64 {
        let endings: Vec<_> = (0..2000)
            .map(|n| End::new(identity(round * 2000 + n), 1, Ending::Completed(Duration::from_millis(1))))
            .collect();
        store.end(&endings).await.unwrap();
        let now = std::fs::metadata(&path).unwrap().len();
        assert!(size == 0 || round < 5 || now <= size * 3, "{now} bytes after {size}");
        size = if round < 5 { now } else { size };
        clock.0.fetch_add(2, Relaxed);
    }
    assert!(store.len().unwrap() <= 4000, "{} of 40,000 are kept", store.len().unwrap());
    assert_eq!(ask(&store, 0, 1, 0).await, Reserved::Granted, "its time is over");
}

/// Run again as a child with the file's path, it writes until it is killed, and says what is written.
#[test]
fn what_was_told_survives_a_kill() {
    const CHILD: &str = "POSTRIDER_REDB_CHILD";
    if let Ok(path) = std::env::var(CHILD) {
        return write_for_ever(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handled.redb");
    let mut told: Vec<u64> = Vec::new();
    for kill in 1..=5_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_was_told_survives_a_kill", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines {
            let line = line.unwrap();
            told.extend(line.strip_prefix("written ").and_then(|n| n.parse::<u64>().ok()));
            if told.len() >= 200 * kill {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = RedbStore::open(&path).expect("it opens after a kill");
            for n in &told {
                assert_eq!(ask(&store, *n, 1, 0).await, Reserved::Completed, "{n} was told to be written");
            }
        });
    }
}

fn write_for_ever(path: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let store = Arc::new(RedbStore::open(path).unwrap());
    let first = store.len().unwrap() * 1_000;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..16_u64 {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                for n in (first + task..).step_by(16) {
                    tell(&store, n, 1, Ending::Completed(DAY)).await;
                    let mut out = std::io::stdout().lock();
                    if writeln!(out, "written {n}").and_then(|()| out.flush()).is_err() {
                        return;
                    }
                }
            });
        }
        tasks.join_all().await;
    });
}

/// Counts the store's transactions, each of which is one flush: the writing thread reads the wall
/// clock once for each of them. It can be held back there, as by a busy disk.
#[derive(Clone, Debug, Default)]
struct Flushes(Arc<FlushesState>);

#[derive(Debug, Default)]
struct FlushesState {
    count: AtomicU64,
    busy: Mutex<bool>,
    changed: Condvar,
}

impl Flushes {
    fn set_busy(&self, busy: bool) {
        *self.0.busy.lock().unwrap() = busy;
        self.0.changed.notify_all();
    }

    fn count(&self) -> u64 {
        self.0.count.load(SeqCst)
    }
}

impl Source for Flushes {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall_ms(&self) -> u64 {
        if std::thread::current().name() == Some("postrider-redb") {
            self.0.count.fetch_add(1, SeqCst);
            drop(self.0.changed.wait_while(self.0.busy.lock().unwrap(), |busy| *busy).unwrap());
        }
        1
    }

    fn random(&self) -> u64 {
        7
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// One after the other, each ending waits for a flush of its own. Endings that come while the disk is
/// busy share the next one.
#[tokio::test]
async fn endings_that_come_while_the_disk_is_busy_are_written_with_one_flush() {
    const TOGETHER: u64 = 1_024;
    let folder = tempfile::tempdir().unwrap();
    let flushes = Flushes::default();
    let env = Env::new(flushes.clone());
    let store = Arc::new(RedbStore::open_with(folder.path().join("handled.redb"), env).unwrap());
    for n in 0..10 {
        tell(&store, n, 1, Ending::Completed(DAY)).await;
    }
    assert_eq!(flushes.count(), 10, "one after the other");

    flushes.set_busy(true);
    let begun = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let mut start = |n| {
        let (store, begun) = (Arc::clone(&store), Arc::clone(&begun));
        tasks.spawn(async move {
            begun.fetch_add(1, SeqCst);
            tell(&store, n, 1, Ending::Completed(DAY)).await;
        });
    };
    // the first occupies the writing thread, and all others are handed over before it may go on
    start(1_000);
    while flushes.count() < 11 {
        tokio::task::yield_now().await;
    }
    (1..=TOGETHER).for_each(|n| start(1_000 + n));
    // on one thread: a task that has begun hands over its ending before another task runs
    while begun.load(SeqCst) < 1 + TOGETHER {
        tokio::task::yield_now().await;
    }
    flushes.set_busy(false);
    tasks.join_all().await;
    assert_eq!(flushes.count(), 12, "{TOGETHER} at once");
    assert_eq!(store.len().unwrap(), 10 + 1 + TOGETHER);
}
