//! A busy key never blocks an idle one: while one key's first message is being handled, with 99 behind it, all others finish.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

const KEYS: u32 = 1_000;
const NUMBERS: u32 = 100;
const STUCK: u32 = 0;

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "work", version = 1, key = "key")]
struct Work {
    key: u32,
    number: u32,
}

#[derive(Clone, Debug)]
struct World {
    /// What was finished, in that order.
    finished: Arc<Mutex<Vec<(u32, u32)>>>,
    /// The stuck key's first message has begun.
    begun: Arc<Notify>,
    /// All messages of the other keys are finished.
    others: Arc<Notify>,
    /// Closed until the stuck key may go on.
    gate: Arc<Semaphore>,
}

#[handler(channel = "work", group = "workers", concurrency = 8, max_in_flight = 4_096, timeout = "10m")]
async fn work(work: Work, State(world): State<World>) {
    if work.key == STUCK {
        world.begun.notify_one();
        let _open = world.gate.acquire().await.expect("the gate is opened, not closed");
    }
    let count = {
        let mut finished = world.finished.lock().unwrap();
        finished.push((work.key, work.number));
        finished.len()
    };
    if count == ((KEYS - 1) * NUMBERS) as usize {
        world.others.notify_one();
    }
}

async fn others_finish_while_one_key_is_stuck(broker: Broker) {
    let world = World {
        finished: Arc::default(),
        begun: Arc::default(),
        others: Arc::default(),
        gate: Arc::new(Semaphore::new(0)),
    };
    let service = Router::with_state(world.clone()).route(work).start(&broker).await.expect("it starts");
    // the stuck one first, with its 99 behind it
    let stuck: Vec<_> = (0..NUMBERS).map(|number| Work { key: STUCK, number }).collect();
    for outcome in broker.publish_all("work", &stuck).await {
        outcome.expect("it is confirmed");
    }
    world.begun.notified().await;
    let publishing = async {
        for number in 0..NUMBERS {
            let round: Vec<_> =
                (0..KEYS).filter(|key| *key != STUCK).map(|key| Work { key, number }).collect();
            for outcome in broker.publish_all("work", &round).await {
                outcome.expect("it is confirmed");
            }
        }
    };
    let all = async { tokio::join!(publishing, world.others.notified()) };
    tokio::time::timeout(Duration::from_mins(2), all)
        .await
        .expect("the other keys finish while one is stuck");
    assert!(
        world.finished.lock().unwrap().iter().all(|(key, _)| *key != STUCK),
        "the stuck key was stuck all the time"
    );
    world.gate.add_permits(1);
    service.idle().await;
    service.stop(Duration::from_secs(30)).await.expect("it drains");
    let finished = world.finished.lock().unwrap();
    assert_eq!(finished.len(), (KEYS * NUMBERS) as usize);
    let last: Vec<_> = finished[((KEYS - 1) * NUMBERS) as usize..].to_vec();
    assert_eq!(
        last,
        (0..NUMBERS).map(|number| (STUCK, number)).collect::<Vec<_>>(),
        "in its order, after all others"
    );
    let mut next = vec![0; KEYS as usize];
    for (key, number) in finished.iter().copied() {
        assert_eq!(number, next[key as usize], "key {key} is in order");
        next[key as usize] += 1;
    }
}

mod memory {
    #[tokio::test(flavor = "multi_thread")]
    async fn a_blocked_key_does_not_delay_the_others() {
        let broker = postrider::connect("memory:?max_messages=200000&max_bytes=256MiB").await.unwrap();
        super::others_finish_while_one_key_is_stuck(broker).await;
    }
}

#[cfg(feature = "nats")]
mod nats {
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs a NATS server: cargo xtask test --only nats"]
    async fn a_blocked_key_does_not_delay_the_others() {
        let url = std::env::var("POSTRIDER_TEST_NATS_URL").expect("POSTRIDER_TEST_NATS_URL names a server");
        let tenant = format!("blocked-{:x}", postrider::Env::system().random());
        let joint = if url.contains('?') { '&' } else { '?' };
        let broker = postrider::connect(&format!("{url}{joint}tenant={tenant}")).await.unwrap();
        super::others_finish_while_one_key_is_stuck(broker).await;
    }
}
