//! What order per key promises.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{
    Attempt, Backoff, Envelope, HandlerError, PublisherExt, Retry, RouteOptions, Router, Settlement,
    Subscriber, Subscription,
};
use tokio::sync::Semaphore;

use crate::kit::{Bench, DRAIN, SHORT_CLAIM, number, number_of, options, settle, subscribe, within};
use crate::record::Outcome::{self, Passed};

type Log = Arc<Mutex<Vec<(String, usize)>>>;

fn key_of(envelope: &Envelope) -> String {
    String::from_utf8_lossy(envelope.key().unwrap_or_default()).into_owned()
}

/// Publishes `each` messages for each of `keys` keys, interleaved; the body counts within the key.
async fn publish_interleaved(bench: &Bench, channel: &str, keys: usize, each: usize) {
    for n in 0..each {
        let round = (0..keys).map(|k| number(n).key(format!("k{k}")));
        assert!(bench.broker.publish_all(channel, round).await.iter().all(Result::is_ok));
    }
}

fn assert_in_order(log: &Log, keys: usize, each: usize) {
    let log = log.lock().expect("no handler panicked");
    let mut next: HashMap<&str, usize> = HashMap::new();
    for (key, n) in log.iter() {
        let expected = next.entry(key).or_default();
        assert_eq!(n, expected, "key {key}");
        *expected += 1;
    }
    assert_eq!((next.len(), log.len()), (keys, keys * each));
}

pub async fn sixteen_keys_stay_in_order(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let log = Log::default();
    let into = Arc::clone(&log);
    let handler = move |envelope: Envelope| {
        let into = Arc::clone(&into);
        async move {
            tokio::task::yield_now().await;
            into.lock().expect("no handler panicked").push((key_of(&envelope), number_of(&envelope)));
        }
    };
    let route = RouteOptions::new(&*channel, "g").concurrency(10).workers(2).handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    publish_interleaved(&bench, &channel, 16, 200).await;
    within("all are handled", service.idle()).await;
    service.stop(DRAIN).await.expect("it stops");
    assert_in_order(&log, 16, 200);
    Passed
}

pub async fn retried_key_keeps_its_order(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let log = Log::default();
    let into = Arc::clone(&log);
    let handler = move |envelope: Envelope, attempt: Attempt| {
        let into = Arc::clone(&into);
        async move {
            let (key, n) = (key_of(&envelope), number_of(&envelope));
            if n % 10 == 3 && attempt.0 < 3 {
                return Err(HandlerError::msg("not yet"));
            }
            into.lock().expect("no handler panicked").push((key, n));
            Ok(())
        }
    };
    let retry = Retry::new().attempts(3).backoff(Backoff::Fixed(Duration::from_millis(20)));
    let route = RouteOptions::new(&*channel, "g").retry(retry).handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    publish_interleaved(&bench, &channel, 8, 40).await;
    within("all are handled", service.idle()).await;
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_in_order(&log, 8, 40);
    assert_eq!((report.routes[0].retried, report.routes[0].dead_lettered), (8 * 4 * 2, 0));
    Passed
}

pub async fn blocked_key_delays_no_other(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let gate = Arc::new(Semaphore::new(0));
    let (stuck, others, order) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (g, s, o, ok) = (Arc::clone(&gate), Arc::clone(&stuck), Arc::clone(&others), Arc::clone(&order));
    let handler = move |envelope: Envelope| {
        let (gate, stuck, others, order) = (Arc::clone(&g), Arc::clone(&s), Arc::clone(&o), Arc::clone(&ok));
        async move {
            if key_of(&envelope) == "stuck" {
                let _open = gate.acquire().await;
                order.fetch_and(number_of(&envelope) == stuck.fetch_add(1, Relaxed), Relaxed);
            } else {
                others.fetch_add(1, Relaxed);
            }
        }
    };
    let route = RouteOptions::new(&*channel, "g")
        .concurrency(8)
        .max_in_flight(4096)
        .timeout(Duration::from_mins(1))
        .handle(handler);
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    bench.publish_keys(&channel, &["stuck"; 20]).await;
    let rest = (0..2000).map(|n| number(n).key(format!("k{}", n % 100)));
    assert!(bench.broker.publish_all(&*channel, rest).await.iter().all(Result::is_ok));
    crate::kit::eventually("every other key is handled while one is stuck", || others.load(Relaxed) == 2000)
        .await;
    assert_eq!(stuck.load(Relaxed), 0, "the stuck key has not moved");
    gate.add_permits(1000);
    within("the stuck key is handled", service.idle()).await;
    service.stop(DRAIN).await.expect("it stops");
    assert!(stuck.load(Relaxed) == 20 && order.load(Relaxed));
    Passed
}

pub async fn graceful_hand_over_has_no_overlap(bench: Bench) -> Outcome {
    let channel = bench.channel_with("g", |options| options.partitions = Some(1)).await;
    let other = bench.reconnect().await;
    bench.publish_keys(&channel, &["k"; 500]).await;
    let one_partition = |options: &mut postrider_core::SubscribeOptions| options.partitions = Some(1);
    let mut first = subscribe(&bench.broker, &channel, "g", one_partition).await;
    let mut held = first.take(400).await;
    let mut second = subscribe(&other, &channel, "g", one_partition).await;
    second.nothing().await;
    let given_up = held.split_off(150);
    settle(held, Settlement::Ack);
    settle(given_up, Settlement::GiveBack(None));
    first.close().await;
    assert_eq!(
        second.take_numbers(350).await,
        (150..500).collect::<Vec<_>>(),
        "the rest, in order, and nothing twice"
    );
    second.nothing().await;
    Passed
}

pub async fn killed_holder_hands_over(bench: Bench) -> Outcome {
    let broker = bench.reconnect_with(|settings| settings.claim_timeout = Some(SHORT_CLAIM)).await;
    let short = |options: &mut postrider_core::SubscribeOptions| {
        options.partitions = Some(1);
        options.claim_timeout = Some(SHORT_CLAIM);
    };
    let channel = bench.channel_with("g", short).await;
    bench.publish_keys(&channel, &["k"; 50]).await;
    let mut first = subscribe(&broker, &channel, "g", short).await;
    let mut held = first.take(30).await;
    let rest = held.split_off(10);
    settle(held, Settlement::Ack);
    let mut second = subscribe(&bench.broker, &channel, "g", short).await;
    // gone without a word: claims and all
    drop(first);
    drop(rest);
    let mut numbers = Vec::new();
    while numbers.last() != Some(&49) {
        numbers.extend(second.take_numbers(1).await);
    }
    // an acknowledgement on its way may be lost with the holder, so it may begin earlier, but it goes on in order
    assert!(numbers[0] <= 10 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    Passed
}

pub async fn another_partition_count_is_refused(bench: Bench) -> Outcome {
    let channel = bench.channel().await;
    let reader = bench.subscribe_with(&channel, "g", |options| options.partitions = Some(4)).await;
    reader.close().await;
    // where they are the channel's, a group may have fewer
    let (others, found) = match bench.factory().channel_partitions() {
        Some(count) => (vec![count + 1, 1024], count),
        None => (vec![1, 2, 8], 4),
    };
    for other in others {
        let mut asked = options(&channel, "g");
        asked.partitions = Some(other);
        let Err(error) = bench.broker.subscribe(&asked).await else {
            panic!("{other} partitions were accepted beside {found}")
        };
        assert_eq!(error.kind(), postrider_core::ErrorKind::Mismatch, "{error}");
        assert!(error.to_string().contains(&format!("found: {found}")), "it says what was found: {error}");
    }
    Passed
}

pub async fn keyless_messages_all_come(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    bench.publish_count(&channel, 200).await;
    let mut reader = bench.subscribe(&channel, "g").await;
    let held = reader.take(200).await;
    let numbers: BTreeSet<_> = held.iter().map(|delivery| number_of(&delivery.envelope)).collect();
    assert_eq!(numbers.len(), 200);
    settle(held, Settlement::Ack);
    assert!(!reader.subscription.control().claims().is_empty());
    Passed
}
