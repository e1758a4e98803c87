//! The embedded broker's bound holds, and with it the process's memory, however long a consumer is slower than its publisher.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use postrider::memory::{MemoryBroker, MemoryConfig};
use postrider::prelude::*;
use postrider::{Bytes, Env};
use tokio::sync::Notify;

/// A hundred times the bound: a leak of 17 bytes a message shows.
const SENDS: u64 = 1_000_000;
const BODY: usize = 256;
const BOUND: usize = 10_000;
/// The consumer stops after so many messages until the bound is reached again.
const BURST: u64 = 8_000;
/// How often the bound is reached before memory is measured: by then the process has what it needs.
const WARM_UP: u64 = 5;
const MIB: u64 = 1024 * 1024;

#[derive(Clone, Debug, Default)]
struct World(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    handled: AtomicU64,
    /// The consumer stands still until the bound is reached.
    stands_still: AtomicBool,
    reached: Notify,
}

#[handler(channel = "events", group = "slow", order = none, timeout = "1h")]
async fn count(event: Envelope, State(world): State<World>) {
    assert_eq!(event.payload().len(), BODY);
    if world.0.handled.fetch_add(1, Relaxed) % BURST == 0 {
        world.0.stands_still.store(true, Relaxed);
        world.0.reached.notified().await;
    }
}

#[tokio::test]
async fn a_million_messages_pass_through_ten_thousand_places() {
    let mut config = MemoryConfig::default();
    config.max_messages = BOUND;
    let memory = MemoryBroker::with(config, Env::system());
    let broker = Broker::new(memory.clone());
    let world = World::default();
    let service = Router::with_state(world.clone()).route(count).start(&broker).await.unwrap();

    let (mut fills, mut high_water, mut warm) = (0, 0, 0);
    for _ in 0..SENDS {
        let body = Bytes::from(vec![b'x'; BODY]);
        let mut sending = pin!(broker.publish("events", Envelope::builder(body)));
        let outcome = poll_fn(|cx| {
            let polled = sending.as_mut().poll(cx);
            high_water = high_water.max(memory.kept("events"));
            // a publisher that must wait while the consumer stands still waits for room
            if polled.is_pending() && world.0.stands_still.swap(false, Relaxed) {
                fills += 1;
                if fills == WARM_UP {
                    warm = resident_high_water();
                }
                world.0.reached.notify_one();
            }
            polled
        });
        outcome.await.expect("it is confirmed");
    }
    // the last burst need not fill the bound
    world.0.reached.notify_one();
    service.idle().await;
    let report = service.stop(Duration::from_secs(30)).await.unwrap();
    let resident = resident_high_water();
    println!(
        "{SENDS} sends of {BODY} B into {BOUND} places: filled {fills} times, high-water {high_water}, {} handled, {} MiB resident at most, {} of them after {WARM_UP} fills",
        world.0.handled.load(Relaxed),
        resident / MIB,
        (resident - warm) / MIB
    );
    assert_eq!(world.0.handled.load(Relaxed), SENDS);
    assert_eq!(report.routes[0].handled, SENDS);
    assert!(fills >= 100, "{fills}");
    assert!(high_water <= BOUND, "{high_water}");
    assert!(resident < 100 * MIB, "{resident}");
    assert!(resident - warm < 16 * MIB, "{resident} after {warm}");
}

/// The most bytes that this process has had resident, as the system tells it.
fn resident_high_water() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the system tells it");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it has a high-water mark");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
    kib * 1024
}
