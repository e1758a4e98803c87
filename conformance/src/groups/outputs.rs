//! Outputs that can't be published: the handler runs once as long as the process lives, and the output arrives once it can.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use postrider_core::{
    Batch, Broker, Envelope, HandlerError, HealthState, Message, PublisherExt, RouteOptions, Router, Running,
    Settlement, codec::Json,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::failure::{Order, channel_of, dead_letters, handle, text};
use crate::factory::Doomed;
use crate::kit::{
    Bench, DRAIN, SHORT_CLAIM, append, appended, declare_group, eventually, number, number_of, one_at_a_time,
    scratch, subscribe, unique, within,
};
use crate::record::Outcome::{self, Passed, Skipped};

/// The group that reads outputs: the one that [`Doomed::Channel`] goes with.
const READERS: &str = "g";
/// Long enough for outputs to be published again several times.
const MEANWHILE: Duration = Duration::from_secs(3);
const NO_DELETE: Outcome = Skipped("a way to delete a channel");

/// How often a handler ran.
#[derive(Clone, Default)]
struct Calls(Arc<AtomicUsize>);

impl Calls {
    fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A service with one handler, which returns an order for each message.
async fn serve(broker: &Broker, channel: &str, outputs: &str, calls: &Calls) -> Running {
    let calls = calls.clone();
    let options = RouteOptions::new(channel, "g").publishes(outputs);
    let handler = move |envelope: Envelope| {
        calls.add();
        std::future::ready(Order { number: number_of(&envelope) as u64 })
    };
    Router::new().route(options.handle(handler)).start(broker).await.expect("it starts")
}

/// Waits until the route says that its outputs wait.
async fn degraded(service: &Running) -> String {
    within("the route is degraded", async {
        loop {
            let route = service.health().routes.remove(0);
            if let (HealthState::Degraded, Some(reason)) = (route.health.state, route.health.reason) {
                return reason;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Waits until as many messages are handled.
async fn handled(service: &Running, count: u64) {
    within("all are handled", async {
        while service.report().routes[0].handled < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Makes the channel of outputs and its group, also where another is being deleted meanwhile.
async fn make(broker: &Broker, outputs: &str) {
    within("the channel is made again", async {
        while broker.declare(outputs).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    declare_group(broker, outputs, READERS, |_| {}).await;
}

/// The ids of the outputs that a group reads, once there are `count` different ones.
async fn ids(bench: &Bench, outputs: &str, count: usize) -> Vec<String> {
    let mut reader = bench.subscribe(outputs, READERS).await;
    let mut ids = Vec::new();
    while ids.iter().collect::<BTreeSet<_>>().len() < count {
        for delivery in reader.take(1).await {
            ids.push(delivery.envelope.id().to_string());
            // one that is dropped unsettled comes again at once
            delivery.claim.settle(Settlement::Ack).expect("it is settled in time");
        }
    }
    ids
}

/// Nobody reads the outputs yet. A broker that keeps them has them; another refuses them until somebody does.
pub async fn missing_reader_runs_the_handler_once(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let outputs = format!("{channel}.out");
    let calls = Calls::default();
    let service = serve(&bench.broker, &channel, &outputs, &calls).await;
    bench.publish_keys(&channel, &["k"]).await;
    eventually("the handler runs", || calls.count() > 0).await;
    tokio::time::sleep(MEANWHILE).await;
    assert_eq!(calls.count(), 1);
    if service.report().routes[0].handled == 0 {
        degraded(&service).await;
    }
    make(&bench.broker, &outputs).await;
    handled(&service, 1).await;
    assert_eq!(ids(&bench, &outputs, 1).await.len(), 1);
    let report = service.stop(DRAIN).await.expect("it stops");
    let route = &report.routes[0];
    assert_eq!((calls.count(), route.handled, route.retried, route.dead_lettered), (1, 1, 0, 0));
    Passed
}

/// A service whose channel of outputs was deleted; its one message waits. `None` where that can't be done.
async fn deprived(bench: &Bench, calls: &Calls) -> Option<(String, String, Running)> {
    let channel = channel_of(bench).await;
    let outputs = format!("{channel}.out");
    declare_group(&bench.broker, &outputs, READERS, |_| {}).await;
    let service = serve(&bench.broker, &channel, &outputs, calls).await;
    if !bench.factory().delete(&bench.settings, Doomed::Channel(&outputs)).await {
        service.stop(DRAIN).await.expect("it stops");
        return None;
    }
    bench.publish_keys(&channel, &["k"]).await;
    Some((channel, outputs, service))
}

/// The channel of outputs is deleted while the service runs, and made again later.
pub async fn deleted_channel_runs_the_handler_once(bench: Bench) -> Outcome {
    let calls = Calls::default();
    let Some((_, outputs, service)) = deprived(&bench, &calls).await else { return NO_DELETE };
    degraded(&service).await;
    tokio::time::sleep(MEANWHILE).await;
    assert_eq!(calls.count(), 1);
    make(&bench.broker, &outputs).await;
    handled(&service, 1).await;
    assert_eq!(ids(&bench, &outputs, 1).await.len(), 1);
    let report = service.stop(DRAIN).await.expect("it stops");
    let route = &report.routes[0];
    assert_eq!((calls.count(), route.handled, route.retried, route.dead_lettered), (1, 1, 0, 0));
    Passed
}

/// The service stops while outputs wait: their message goes back, and the handler runs again in the next service.
pub async fn stop_returns_the_message_of_waiting_outputs(bench: Bench) -> Outcome {
    let calls = Calls::default();
    let Some((channel, outputs, service)) = deprived(&bench, &calls).await else { return NO_DELETE };
    degraded(&service).await;
    let report = service.stop(DRAIN).await.expect("it stops");
    let route = &report.routes[0];
    assert_eq!((route.handled, route.given_back, route.dead_lettered), (0, 1, 0));
    make(&bench.broker, &outputs).await;
    let service = serve(&bench.broker, &channel, &outputs, &calls).await;
    handled(&service, 1).await;
    assert_eq!(ids(&bench, &outputs, 1).await.len(), 1);
    service.stop(DRAIN).await.expect("it stops");
    assert_eq!(calls.count(), 2);
    Passed
}

/// The process is killed while outputs wait: the next one runs the handler, as after any crash.
pub async fn killed_process_leaves_the_message_of_waiting_outputs(bench: Bench) -> Outcome {
    let channel = match &bench.role {
        Some(channel) => channel.clone(),
        None => bench.channel_with("g", one_at_a_time).await,
    };
    let (outputs, calls) = (format!("{channel}.out"), scratch(&channel));
    let serve = async |broker: &Broker| {
        let options = RouteOptions::new(&*channel, "g").publishes(&*outputs).partitions(1);
        let calls = calls.clone();
        let handler = move |envelope: Envelope| {
            append(&calls, number_of(&envelope));
            std::future::ready(Order { number: number_of(&envelope) as u64 })
        };
        let route = options.claim_timeout(SHORT_CLAIM).handle(handler);
        Router::new().route(route).start(broker).await.expect("it starts")
    };
    if bench.role.is_none() {
        declare_group(&bench.broker, &outputs, READERS, |_| {}).await;
        if !bench.factory().delete(&bench.settings, Doomed::Channel(&outputs)).await {
            return NO_DELETE;
        }
    }
    let ended = !bench
        .life(&channel, SHORT_CLAIM, async |broker, end| {
            let service = serve(&broker).await;
            // starting declares the channel that the route publishes to
            assert!(bench.factory().delete(&bench.settings, Doomed::Channel(&outputs)).await);
            broker.publish(&*channel, number(0).key("k")).await.expect("it is confirmed");
            degraded(&service).await;
            end();
            service
        })
        .await;
    assert!(ended, "the process was to be killed");
    assert_eq!(appended(&calls), [0]);
    make(&bench.broker, &outputs).await;
    let service = serve(&bench.broker).await;
    handled(&service, 1).await;
    assert_eq!(ids(&bench, &outputs, 1).await.len(), 1);
    service.stop(DRAIN).await.expect("it stops");
    assert_eq!(appended(&calls), [0, 0]);
    Passed
}

/// The broker halts with an output under way, is killed, and comes back.
pub async fn broker_away_runs_the_handler_once(bench: Bench) -> Outcome {
    let Some(controls) = bench.controls().await else {
        return Skipped("a broker that can be killed");
    };
    let broker = controls.connect(bench.settings.clone()).await;
    let channel = unique("c");
    let outputs = format!("{channel}.out");
    declare_group(&broker, &channel, "g", |_| {}).await;
    declare_group(&broker, &outputs, READERS, |_| {}).await;
    let (calls, gate) = (Calls::default(), Arc::new(Notify::new()));
    let (called, opened) = (calls.clone(), Arc::clone(&gate));
    let handler = move |envelope: Envelope| {
        called.add();
        let opened = Arc::clone(&opened);
        async move {
            opened.notified().await;
            Order { number: number_of(&envelope) as u64 }
        }
    };
    let options = RouteOptions::new(&*channel, "g").publishes(&*outputs);
    let service = Router::new().route(options.handle(handler)).start(&broker).await.expect("it starts");
    broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
    eventually("the handler runs", || calls.count() == 1).await;
    controls.settled().await;
    controls.pause().await;
    gate.notify_one();
    tokio::time::sleep(Duration::from_millis(500)).await;
    controls.kill().await;
    controls.start().await;
    handled(&service, 1).await;
    let mut reader = subscribe(&broker, &outputs, READERS, |_| {}).await;
    reader.take(1).await;
    let report = service.stop(DRAIN).await.expect("it stops");
    let route = &report.routes[0];
    assert_eq!((calls.count(), route.retried, route.dead_lettered), (1, 0, 0));
    Passed
}

/// An order with as much beside its number as is asked for.
#[derive(Serialize, Deserialize)]
struct Padded {
    number: u64,
    padding: String,
}

impl Message for Padded {
    const NAME: &'static str = "padded";
    const VERSION: u32 = 1;
    type Codec = Json;
}

impl Padded {
    /// More than the broker takes for this number, little for any other.
    fn new(bench: &Bench, number: usize, large: usize) -> Self {
        let largest = bench.broker.capabilities().usable_payload();
        Self { number: number as u64, padding: "x".repeat(if number == large { largest } else { 10 }) }
    }
}

/// One in twenty returns more than the broker takes, which can never be published.
pub async fn too_large_output_is_dead_lettered_after_one_run(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let outputs = format!("{channel}.out");
    declare_group(&bench.broker, &outputs, READERS, |_| {}).await;
    bench.publish_keys(&channel, &["k"; 20]).await;
    let (calls, made) = (Calls::default(), bench.clone());
    let called = calls.clone();
    let options = RouteOptions::new(&*channel, "g").publishes(&*outputs);
    let report = handle(&bench, options, move |envelope: Envelope| {
        called.add();
        std::future::ready(Padded::new(&made, number_of(&envelope), 7))
    })
    .await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (19, 1));
    assert_eq!(calls.count(), 20);
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!(text(&letter, "postrider-dlq-reason"), "output-failed");
    assert_eq!(ids(&bench, &outputs, 19).await.len(), 19);
    Passed
}

/// Of a batch, the one whose output can't be published is dead-lettered by itself.
pub async fn batch_with_one_failed_output(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let outputs = format!("{channel}.out");
    declare_group(&bench.broker, &outputs, READERS, |_| {}).await;
    for number in 0..5 {
        bench.broker.publish(&*channel, &Order { number }).await.expect("it is confirmed");
    }
    let (items, made) = (Calls::default(), bench.clone());
    let counted = items.clone();
    let options = RouteOptions::new(&*channel, "g").publishes(&*outputs).batch(5);
    let report = handle(&bench, options, move |Batch(orders): Batch<Order>| {
        let results = orders.iter().map(|order| {
            counted.add();
            Ok::<_, HandlerError>(Padded::new(&made, order.number as usize, 2))
        });
        std::future::ready(results.collect::<Vec<_>>())
    })
    .await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered, items.count()), (4, 1, 5));
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!(text(&letter, "postrider-dlq-reason"), "output-failed");
    assert_eq!(ids(&bench, &outputs, 4).await.len(), 4);
    Passed
}
