//! Each message once, whatever the broker brings twice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{
    BoxFuture, Broker, Capability, Declare, End, Envelope, EnvelopeBuilder, HeaderValue, Idempotency,
    IdempotencyStore, Identity, MemoryStore, Order, Outgoing, PublishOptions, Publisher, PublisherExt,
    Report, Reserve, Reserved, Retry, RouteOptions, Router, Running, SubscribeOptions,
};
use postrider_redb::RedbStore;
use tokio::sync::Notify;

use super::failure;
use crate::kit::{
    Bench, DRAIN, Ender, SHORT_CLAIM, append, appended, declare_group, number, number_of, one_at_a_time,
    scratch, within,
};
use crate::record::Outcome::{self, Passed};

/// A channel with the group that handles it, and its dead letters.
async fn channel_of(bench: &Bench, order: Order) -> String {
    channel_with(bench, |options| options.order = order).await
}

async fn channel_with(bench: &Bench, change: impl FnOnce(&mut SubscribeOptions)) -> String {
    let channel = bench.channel_with("g", change).await;
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
    service.stop(DRAIN).await.expect("it stops")
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

/// Where a process is ended in the following cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The outputs are confirmed, and the store doesn't know of it.
    BeforeComplete,
    /// The store knows, and the broker doesn't.
    AfterComplete,
    Nowhere,
}

/// A durable store by which the process is ended at a point.
struct Deadly {
    store: RedbStore,
    point: Point,
    end: Ender,
}

impl IdempotencyStore for Deadly {
    fn reserve<'a>(
        &'a self,
        requests: &'a [Reserve],
    ) -> BoxFuture<'a, postrider_core::Result<Vec<Reserved>>> {
        self.store.reserve(requests)
    }

    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, postrider_core::Result<()>> {
        Box::pin(async move {
            if self.point == Point::BeforeComplete {
                (self.end)();
                std::future::pending::<()>().await;
            }
            self.store.end(endings).await?;
            if self.point == Point::AfterComplete {
                (self.end)();
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }
}

/// A service whose store ends it at `point`; it handles one message after the other.
async fn deadly(broker: Broker, end: Ender, channel: &str, point: Point) -> Running {
    let file = scratch(channel);
    // an earlier life in this very process may be about to let go of it
    let store = within("the store opens", async {
        loop {
            if let Ok(store) = RedbStore::open(file.with_extension("redb")) {
                return store;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let (runs, store) = (file.with_extension("runs"), Deadly { store, point, end });
    let options = once(channel).publishes(format!("{channel}.out")).concurrency(1).partitions(1);
    let options = options.claim_timeout(SHORT_CLAIM);
    let handler = move |envelope: Envelope| {
        append(&runs, number_of(&envelope));
        std::future::ready(failure::Order { number: number_of(&envelope) as u64 })
    };
    let router = Router::new().route(options.handle(handler)).idempotency(store);
    router.start(&broker).await.expect("it starts")
}

/// Lets a process end at `point`, and another one go on. Answers which messages were handled, in order, and their outputs.
async fn ended_at(bench: &Bench, point: Point) -> Option<(Vec<usize>, Vec<Envelope>)> {
    if let Some(role) = &bench.role {
        let (channel, last) = role.split_once(' ').expect("a channel, and whether it is the last life");
        let point = if last == "last" { Point::Nowhere } else { point };
        bench.life(role, SHORT_CLAIM, |broker, end| deadly(broker, end, channel, point)).await;
        return None;
    }
    let channel = channel_with(bench, one_at_a_time).await;
    let outputs = format!("{channel}.out");
    bench.broker.declare(&outputs).await.expect("it is declared");
    declare_group(&bench.broker, &outputs, "look", |options| options.partitions = Some(1)).await;
    bench.publish_keys(&channel, &["k", "k", "k"]).await;
    for (life, point) in [("first", point), ("last", Point::Nowhere)] {
        let role = format!("{channel} {life}");
        let through =
            bench.life(&role, SHORT_CLAIM, |broker, end| deadly(broker, end, &channel, point)).await;
        assert_eq!(through, point == Point::Nowhere, "the {life} one");
    }
    let file = scratch(&channel);
    let runs = appended(&file.with_extension("runs"));
    for extension in ["runs", "redb"] {
        std::fs::remove_file(file.with_extension(extension)).expect("it is there");
    }
    let mut looks = bench.subscribe_with(&outputs, "look", |options| options.partitions = Some(1)).await;
    let mut out = Vec::new();
    while out.iter().map(failure::order_in).collect::<BTreeSet<_>>().len() < 3 {
        out.push(looks.one().await);
    }
    looks.nothing().await;
    Some((runs, out))
}

/// What was handled is handled again, since nobody knows; its outputs are the same ones again.
pub async fn killed_before_complete(bench: Bench) -> Outcome {
    let Some((runs, out)) = ended_at(&bench, Point::BeforeComplete).await else {
        return Passed;
    };
    assert_eq!(runs, [0, 0, 1, 2]);
    let ids =
        out.iter().filter(|output| failure::order_in(output) == 0).map(Envelope::id).collect::<Vec<_>>();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // a broker that drops doubles has dropped the second
    let copies = if bench.broker.capabilities().has(Capability::Dedupe) { 1 } else { 2 };
    assert_eq!((ids.len(), out.len()), (copies, copies + 2));
    Passed
}

/// What comes again is a duplicate, and acknowledged.
pub async fn killed_after_complete(bench: Bench) -> Outcome {
    let Some((runs, out)) = ended_at(&bench, Point::AfterComplete).await else {
        return Passed;
    };
    assert_eq!((runs, out.len()), (vec![0, 1, 2], 3));
    Passed
}

/// Whoever had the message is gone without a word: it waits until his time is over, and no longer.
pub async fn lease_runs_out(bench: Bench) -> Outcome {
    const LEASE: Duration = Duration::from_secs(1);
    let channel = channel_of(&bench, Order::Key).await;
    let message = number(1).key("k").build(bench.broker.env()).expect("it is legal");
    let id = message.id().to_string();
    let store = Arc::<MemoryStore>::default();
    let identity = Identity::new(&[b"g", b"h", b"id", message.source().as_bytes(), id.as_bytes()]);
    let since = std::time::Instant::now();
    let reserved = store.reserve(&[Reserve::new(identity, 1, LEASE)]).await.expect("it can be asked");
    assert_eq!(reserved, [Reserved::Granted]);
    bench.broker.publish(&*channel, message).await.expect("it is confirmed");
    let service = start(&bench, once(&channel).name("h"), &store, async |_: Envelope| {}).await;
    let report = finish(service).await;
    assert_eq!((report.routes[0].handled, report.routes[0].duplicates), (1, 0));
    assert!(since.elapsed() >= LEASE, "after {:?}", since.elapsed());
    Passed
}

/// Who one is, is the broker's to say where the record doesn't: its coordinates. Where there are none, it is nobody.
pub async fn foreign_record_has_the_brokers_name_or_none(bench: Bench) -> Outcome {
    let channel = channel_of(&bench, Order::Key).await;
    bench.foreign(&channel, &[], b"1").await;
    bench.foreign(&channel, &[], b"1").await;
    let service = start(&bench, once(&channel), &Arc::default(), async |_: Envelope| {}).await;
    let report = finish(service).await;
    let expected = if bench.factory().names_foreign_records() { (2, 0, 0) } else { (0, 0, 2) };
    let route = &report.routes[0];
    assert_eq!((route.handled, route.duplicates, route.dead_lettered), expected);
    Passed
}
