//! Each message once, whatever the broker brings twice.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{
    Declare, Envelope, EnvelopeBuilder, HeaderValue, Idempotency, MemoryStore, Order, Outgoing,
    PublishOptions, Publisher, Report, Retry, RouteOptions, Router, Running,
};
use tokio::sync::Notify;

use crate::kit::{Bench, declare_group, number, number_of, within};
use crate::record::Outcome::{self, Passed};

/// A channel with the group that handles it, and its dead letters.
async fn channel_of(bench: &Bench, order: Order) -> String {
    let channel = bench.channel_with("g", |options| options.order = order).await;
    let letters = postrider_core::Channel::new(format!("{channel}.g.dlq")).expect("a good name");
    bench.broker.declare_all(&[Declare::DeadLetters(letters)]).await.expect("it is declared");
    channel
}

/// The same message, as often as asked for; the hop tells the copies apart where the broker drops doubles.
async fn publish(bench: &Bench, channel: &str, message: EnvelopeBuilder, copies: usize) {
    let message = message.build(bench.broker.env()).expect("it is legal");
    for n in 0..copies {
        let mut options = PublishOptions::default();
        options.hop = Some(format!("copy/{n}").into());
        let outgoing = Outgoing::new(channel, message.clone()).with(options);
        bench.broker.send(outgoing).await.await.expect("it is confirmed");
    }
}

fn once(channel: &str) -> RouteOptions {
    RouteOptions::new(channel, "g").retry(Retry::never()).idempotency(Idempotency::auto())
}

async fn start<F, M>(bench: &Bench, options: RouteOptions, store: &Arc<MemoryStore>, handler: F) -> Running
where
    postrider_core::Route<F>: postrider_core::IntoRoute<(), M>,
{
    let router = Router::new().route(options.handle(handler)).idempotency(Arc::clone(store));
    router.start(&bench.broker).await.expect("it starts")
}

async fn finish(service: Running) -> Report {
    within("nothing is left to do", service.idle()).await;
    service.stop(Duration::from_secs(5)).await.expect("it stops")
}

pub async fn completed_duplicate_is_skipped(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::Key).await;
    publish(&bench, &channel, number(1).key("k"), 3).await;
    publish(&bench, &channel, number(2).key("k"), 1).await;
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let into = Arc::clone(&seen);
    let service = start(&bench, once(&channel), &Arc::default(), move |envelope: Envelope| {
        into.lock().expect("nobody panicked").push(number_of(&envelope));
        std::future::ready(())
    })
    .await;
    let report = finish(service).await;
    assert_eq!(*seen.lock().expect("nobody panicked"), [1, 2]);
    assert_eq!((report.routes[0].handled, report.routes[0].duplicates), (2, 2));
    Passed
}

pub async fn concurrent_duplicates_run_once(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::None).await;
    publish(&bench, &channel, number(1), 5).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let options = once(&channel).order(Order::None);
    let service = start(&bench, options, &Arc::default(), move |_: Envelope| {
        counted.fetch_add(1, Relaxed);
        // long enough for the others to come and find it taken
        tokio::time::sleep(Duration::from_millis(300))
    })
    .await;
    let report = finish(service).await;
    assert_eq!(runs.load(Relaxed), 1);
    assert_eq!((report.routes[0].handled, report.routes[0].duplicates), (1, 4));
    Passed
}

pub async fn business_key_beats_the_id(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::Key).await;
    for n in 0..3 {
        publish(&bench, &channel, number(n).key("k").idempotency_key("payment-7"), 1).await;
    }
    publish(&bench, &channel, number(3).key("k"), 1).await;
    let options = once(&channel).idempotency(Idempotency::business());
    let service = start(&bench, options, &Arc::default(), async |_: Envelope| {}).await;
    let report = finish(service).await;
    let route = &report.routes[0];
    assert_eq!((route.handled, route.duplicates, route.dead_lettered), (1, 2, 1), "one has no identity");
    let letters = format!("{channel}.g.dlq");
    let mut reader = bench.subscribe_with(&letters, "look", |options| options.partitions = Some(1)).await;
    // where a new group sees what was there before it
    if bench.broker.capabilities().has(postrider_core::Capability::Replay) {
        let letter = reader.one().await;
        let reason = letter.headers().get("postrider-dlq-reason").and_then(HeaderValue::as_text);
        assert_eq!(reason, Some("no-identity"));
    }
    Passed
}

pub async fn scope_is_the_group(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::Key).await;
    declare_group(&bench.broker, &channel, "h", |_| {}).await;
    publish(&bench, &channel, number(1).key("k"), 2).await;
    let store = Arc::default();
    for group in ["g", "h"] {
        let options = RouteOptions::new(&*channel, group).idempotency(Idempotency::auto());
        let service = start(&bench, options, &store, async |_: Envelope| {}).await;
        let report = finish(service).await;
        assert_eq!((report.routes[0].handled, report.routes[0].duplicates), (1, 1), "{group}");
    }
    Passed
}

pub async fn dead_lettered_duplicate_is_acknowledged(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::Key).await;
    publish(&bench, &channel, number(1).key("k"), 3).await;
    let handler = async |_: Envelope| Err::<(), _>("no luck");
    let service = start(&bench, once(&channel), &Arc::default(), handler).await;
    let report = finish(service).await;
    let route = &report.routes[0];
    assert_eq!((route.handled, route.duplicates, route.dead_lettered), (0, 2, 1));
    Passed
}

/// What was not handled is free for the next one at once, long before its lease runs out.
pub async fn giving_back_lets_go(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::Key).await;
    publish(&bench, &channel, number(1).key("k"), 1).await;
    let (store, began): (Arc<MemoryStore>, _) = (Arc::default(), Arc::new(Notify::new()));
    let tell = Arc::clone(&began);
    let service = start(&bench, once(&channel), &store, move |_: Envelope| {
        tell.notify_one();
        std::future::pending::<()>()
    })
    .await;
    within("it is being handled", began.notified()).await;
    let report = service.stop(Duration::ZERO).await.expect("it stops");
    assert_eq!(report.routes[0].given_back, 1);
    let side = Bench { broker: bench.reconnect().await, ..bench.clone() };
    let service = start(&side, once(&channel), &store, async |_: Envelope| {}).await;
    let report = finish(service).await;
    assert_eq!((report.routes[0].handled, report.routes[0].duplicates), (1, 0));
    Passed
}
