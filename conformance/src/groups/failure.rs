//! What becomes of a message that can't be handled.

mod guards;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{
    Backoff, Batch, Broker, Bytes, Classify, Declare, Envelope, Group, HandlerError, HealthState, Jitter,
    Letters, Message, OnExpired, Publisher, PublisherExt, Report, Retry, RouteOptions, Router, Running,
    SubscribeOptions, codec::Json,
};
use serde::{Deserialize, Serialize};

use crate::factory::Doomed;
use crate::kit::{Bench, DRAIN, Ender, Reader, declare_group, number, number_of, within};
use crate::record::Outcome::{self, Passed};
pub use guards::{
    breaker_open_and_drain, breaker_pauses_probes_and_closes, full_bulkhead_leaves_the_others,
    rate_limit_holds, total_retry_time_is_bounded,
};

#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
}

impl Message for Order {
    const NAME: &'static str = "order";
    const VERSION: u32 = 2;
    type Codec = Json;
}

/// The number of the order in a body.
pub(crate) fn order_in(envelope: &Envelope) -> u64 {
    serde_json::from_slice::<Order>(envelope.payload()).expect("it is an order").number
}

fn quick(attempts: u32) -> Retry {
    Retry::new().attempts(attempts).backoff(Backoff::Fixed(Duration::from_millis(10))).jitter(Jitter::None)
}

/// A reader of the dead letters of group `g`; read as any other channel.
pub(super) async fn dead_letters(bench: &Bench, channel: &str) -> Reader {
    let letters = format!("{channel}.g.dlq");
    bench.subscribe_with(&letters, "look", |options| options.partitions = Some(1)).await
}

/// A channel with the group that handles it, and the reader of its dead letters.
pub(super) async fn channel_of(bench: &Bench) -> String {
    channel_with(bench, |_| {}).await
}

async fn channel_with(bench: &Bench, change: impl FnOnce(&mut SubscribeOptions)) -> String {
    let channel = bench.channel_with("g", change).await;
    let letters = format!("{channel}.g.dlq");
    let declare = Declare::DeadLetters(postrider_core::Channel::new(&*letters).expect("a good name"));
    bench.broker.declare_all(&[declare]).await.expect("it is declared");
    declare_group(&bench.broker, &letters, "look", |options| options.partitions = Some(1)).await;
    channel
}

/// Runs one route over what is there until nothing is left.
pub(super) async fn handle<F, M>(bench: &Bench, options: RouteOptions, handler: F) -> Report
where
    postrider_core::Route<F>: postrider_core::IntoRoute<(), M>,
{
    let service = Router::new().route(options.handle(handler)).start(&bench.broker).await.expect("it starts");
    within("nothing is left to do", service.idle()).await;
    service.stop(DRAIN).await.expect("it stops")
}

pub(super) fn text(envelope: &Envelope, header: &str) -> String {
    let value = envelope.headers().get(header).unwrap_or_else(|| panic!("there is no {header}"));
    value.as_text().expect("it is text").to_owned()
}

pub async fn error_is_retried_then_dead_lettered(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    bench.broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let report = handle(&bench, RouteOptions::new(&*channel, "g").retry(quick(4)), move |_: Envelope| {
        counted.fetch_add(1, Relaxed);
        async { Err::<(), _>("no luck") }
    })
    .await;
    assert_eq!((runs.load(Relaxed), report.routes[0].retried, report.routes[0].dead_lettered), (4, 3, 1));
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!(text(&letter, "postrider-dlq-reason"), "exhausted");
    assert_eq!(text(&letter, "postrider-dlq-error"), "no luck");
    Passed
}

pub async fn permanent_goes_straight(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    bench.broker.publish(&*channel, number(1)).await.expect("it is confirmed");
    let report = handle(&bench, RouteOptions::new(&*channel, "g").retry(quick(4)), async |_: Envelope| {
        Err::<(), HandlerError>(HandlerError::msg("never")).permanent()
    })
    .await;
    assert_eq!((report.routes[0].retried, report.routes[0].dead_lettered), (0, 1));
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!(
        (text(&letter, "postrider-dlq-reason"), text(&letter, "postrider-dlq-attempts")),
        ("rejected".into(), "1".into())
    );
    Passed
}

pub async fn panic_is_retried_and_the_service_lives(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    bench.publish_count(&channel, 2).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let report = handle(&bench, RouteOptions::new(&*channel, "g").retry(quick(3)), move |_: Envelope| {
        let run = counted.fetch_add(1, Relaxed);
        async move {
            assert!(run >= 2, "on purpose, run {run}");
        }
    })
    .await;
    assert_eq!(
        (report.routes[0].handled, report.routes[0].retried, report.routes[0].dead_lettered),
        (2, 2, 0)
    );
    Passed
}

pub async fn timeout_is_retried(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    bench.broker.publish(&*channel, number(1)).await.expect("it is confirmed");
    let options = RouteOptions::new(&*channel, "g").retry(quick(2)).timeout(Duration::from_millis(50));
    let report = handle(&bench, options, async |_: Envelope| std::future::pending::<()>().await).await;
    assert_eq!((report.routes[0].retried, report.routes[0].dead_lettered), (1, 1));
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert!(text(&letter, "postrider-dlq-error").contains("50ms"));
    Passed
}

pub async fn undecodable_keeps_its_bytes(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let body = Envelope::builder(Bytes::from_static(b"{\"number\":\xff"))
        .type_name("order")
        .version(2)
        .key("k")
        .header("h", "v");
    let sent = body.build(bench.broker.env()).expect("it is legal");
    bench.broker.publish(&*channel, sent.clone()).await.expect("it is confirmed");
    let report = handle(&bench, RouteOptions::new(&*channel, "g"), async |_: Order| {}).await;
    assert_eq!((report.routes[0].retried, report.routes[0].dead_lettered), (0, 1));
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!(text(&letter, "postrider-dlq-reason"), "undecodable");
    assert_eq!((letter.payload(), letter.id(), letter.key()), (sent.payload(), sent.id(), sent.key()));
    assert_eq!((letter.time_ms(), text(&letter, "h")), (sent.time_ms(), "v".into()));
    Passed
}

pub async fn unknown_type_and_version(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let good = || Envelope::builder(Bytes::from_static(b"{\"number\":1}")).key("k");
    for builder in [
        good().type_name("refund").version(2),
        good().type_name("order").version(3),
        good().type_name("order").version(2),
    ] {
        bench.broker.publish(&*channel, builder).await.expect("it is confirmed");
    }
    let report = handle(&bench, RouteOptions::new(&*channel, "g"), async |_: Order| {}).await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (1, 2));
    let mut letters = dead_letters(&bench, &channel).await;
    assert_eq!(text(&letters.one().await, "postrider-dlq-reason"), "unknown-type");
    assert_eq!(text(&letters.one().await, "postrider-dlq-reason"), "unknown-version");
    Passed
}

pub async fn expired_by_policy(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    declare_group(&bench.broker, &channel, "h", |_| {}).await;
    let past = bench.broker.env().wall_ms() - 1000;
    bench.broker.publish(&*channel, number(1).expires_ms(past)).await.expect("it is confirmed");
    bench.broker.publish(&*channel, number(2).expires_ms(past + 3_600_000)).await.expect("it is confirmed");
    let report = handle(&bench, RouteOptions::new(&*channel, "g"), async |_: Envelope| {}).await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (1, 1));
    let options = RouteOptions::new(&*channel, "h").on_expired(OnExpired::Drop);
    let report = handle(&bench, options, async |_: Envelope| {}).await;
    assert_eq!(
        (report.routes[0].handled, report.routes[0].dropped, report.routes[0].dead_lettered),
        (1, 1, 0)
    );
    Passed
}

pub async fn dead_letter_headers_are_true(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let before = bench.broker.env().wall_ms();
    let huge = "x".repeat(10_000);
    bench
        .broker
        .publish(&*channel, number(1).key("k").header("Nats-Rollup", "all").header("mine", "1"))
        .await
        .expect_err("reserved");
    bench.broker.publish(&*channel, number(1).key("k").header("mine", "1")).await.expect("it is confirmed");
    let error = huge.clone();
    handle(&bench, RouteOptions::new(&*channel, "g").name("try-it").retry(quick(2)), move |_: Envelope| {
        let error = error.clone();
        async move { Err::<(), _>(error) }
    })
    .await;
    let letter = dead_letters(&bench, &channel).await.one().await;
    let get = |name: &str| text(&letter, &format!("postrider-dlq-{name}"));
    assert_eq!([get("channel"), get("group"), get("handler")], [channel, "g".into(), "try-it".into()]);
    assert_eq!([get("attempts"), get("redrives"), get("reason")], ["2", "0", "exhausted"].map(String::from));
    let (first, last) = (get("first-failed-at"), get("last-failed-at"));
    let time = |text: &str| postrider_core::parse_rfc3339(text).expect("it is a time");
    assert!(before <= time(&first) && time(&first) <= time(&last), "{first} {last}");
    assert!(get("error").len() <= 2048 && get("error-chain").len() <= 2048, "cut to their bound");
    assert!(get("origin").contains(bench.broker.name()), "{}", get("origin"));
    assert_eq!(text(&letter, "mine"), "1");
    Passed
}

pub async fn poison_blocks_nobody(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let messages = (0..200).map(|n| number(n).key(format!("k{}", n % 10)));
    assert!(bench.broker.publish_all(&*channel, messages).await.iter().all(Result::is_ok));
    let report =
        handle(&bench, RouteOptions::new(&*channel, "g").retry(quick(2)), async |envelope: Envelope| {
            if crate::kit::number_of(&envelope) % 20 == 7 { Err("poison") } else { Ok(()) }
        })
        .await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (190, 10));
    Passed
}

pub async fn outputs_are_confirmed_first(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let outputs = format!("{channel}.out");
    declare_group(&bench.broker, &outputs, "look", |_| {}).await;
    bench.publish_keys(&channel, &["k"; 20]).await;
    let options = RouteOptions::new(&*channel, "g").publishes(&*outputs);
    let report = handle(&bench, options, async |envelope: Envelope| Order {
        number: crate::kit::number_of(&envelope) as u64,
    })
    .await;
    assert_eq!(report.routes[0].handled, 20);
    let mut reader = bench.subscribe(&outputs, "look").await;
    for delivery in reader.take(20).await {
        assert_eq!((delivery.envelope.type_name(), delivery.envelope.version()), ("order", 2));
        assert!(delivery.envelope.causation_id().is_some() && delivery.envelope.correlation_id().is_some());
    }
    Passed
}

pub async fn output_ids_repeat(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let outputs = format!("{channel}.out");
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let input = number(1).build(bench.broker.env()).expect("it is legal");
    // two services of one name handle one message, as a re-run would
    for _ in 0..2 {
        let side = bench.reconnect_with(|settings| settings.tenant = crate::kit::unique("t")).await;
        let bench = Bench { broker: side, ..bench.clone() };
        declare_group(&bench.broker, &channel, "g", |_| {}).await;
        declare_group(&bench.broker, &outputs, "look", |_| {}).await;
        bench.broker.publish(&*channel, input.clone()).await.expect("it is confirmed");
        let options = RouteOptions::new(&*channel, "g").name("h").publishes(&*outputs);
        handle(&bench, options, async |_: Envelope| vec![Order { number: 1 }, Order { number: 2 }]).await;
        let mut reader = bench
            .subscribe_with(&outputs, "look", |options| {
                options.group = Group::Named(postrider_core::GroupName::new("look").expect("good"));
            })
            .await;
        let mut ids: Vec<_> =
            reader.take(2).await.iter().map(|delivery| delivery.envelope.id().to_string()).collect();
        ids.sort_unstable();
        seen.lock().expect("nobody panicked").push(ids.join(" "));
    }
    let seen = seen.lock().expect("nobody panicked");
    assert_eq!(seen[0], seen[1]);
    Passed
}

pub async fn oversize_headers_are_dead_lettered(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let huge = "v".repeat(postrider_core::MAX_HEADER_VALUE + 1);
    bench.foreign(&channel, &[("huge", &huge)], b"x").await;
    let report = handle(&bench, RouteOptions::new(&*channel, "g"), async |_: Envelope| {}).await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (0, 1));
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!((text(&letter, "postrider-dlq-reason"), text(&letter, "huge")), ("oversize".into(), huge));
    Passed
}

pub async fn batch_with_a_failed_middle(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let orders = (0..30_u64).map(|n| {
        let body = serde_json::to_vec(&Order { number: n }).expect("it is JSON");
        Envelope::builder(Bytes::from(body)).type_name("order").version(2).key("k")
    });
    assert!(bench.broker.publish_all(&*channel, orders).await.iter().all(Result::is_ok));
    let (done, failed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (into, count) = (Arc::clone(&done), Arc::clone(&failed));
    let options = RouteOptions::new(&*channel, "g").batch(10).retry(quick(3));
    let report = handle(&bench, options, move |batch: Batch<Order>| {
        let (into, count) = (Arc::clone(&into), Arc::clone(&count));
        async move {
            let mut failing = false;
            let each = batch.into_iter().map(|order| {
                // the fifteenth fails once; those behind it in its batch count as not run
                if order.number == 15 && count.fetch_add(1, Relaxed) == 0 {
                    failing = true;
                    return Err("once");
                }
                if !failing {
                    into.lock().expect("nobody panicked").push(order.number);
                }
                Ok(())
            });
            each.collect::<Vec<Result<(), &str>>>()
        }
    })
    .await;
    assert_eq!((report.routes[0].handled, report.routes[0].retried), (30, 1));
    assert_eq!(*done.lock().expect("nobody panicked"), (0..30).collect::<Vec<_>>());
    Passed
}

/// Gone, the dead-letter channel stops the route, which keeps its messages and says so; there again, all goes on.
pub async fn dead_letter_channel_comes_back(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let letters = postrider_core::Channel::new(format!("{channel}.g.dlq")).expect("a good name");
    let (handled, ran) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, begun) = (Arc::clone(&handled), Arc::clone(&ran));
    let options = RouteOptions::new(&*channel, "g").retry(Retry::never());
    let handler = move |envelope: Envelope| {
        begun.fetch_add(1, Relaxed);
        let fails = number_of(&envelope) == 0;
        counted.fetch_add(usize::from(!fails), Relaxed);
        async move { if fails { Err("no luck") } else { Ok(()) } }
    };
    let service = Router::new().route(options.handle(handler)).start(&bench.broker).await.expect("it starts");
    if !bench.factory().delete(&bench.settings, Doomed::Channel(&letters)).await {
        return Outcome::Skipped("a way to delete a channel");
    }
    bench.broker.publish(&*channel, number(0).key("k")).await.expect("it is confirmed");
    crate::kit::eventually("the route says so", || {
        let health = service.health();
        health.routes.iter().any(|route| route.health.state >= HealthState::Degraded)
    })
    .await;
    // nothing new is begun meanwhile, whatever its key
    let others = (1..4).map(|n| number(n).key(format!("k{n}")));
    assert!(bench.broker.publish_all(&*channel, others).await.iter().all(Result::is_ok));
    tokio::time::sleep(crate::kit::QUIET).await;
    assert_eq!((ran.load(Relaxed), handled.load(Relaxed)), (1, 0));
    within("the channel is made again", async {
        while bench.broker.declare_all(&[Declare::DeadLetters(letters.clone())]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    within("nothing is left to do", service.idle()).await;
    let health = service.health();
    assert!(health.routes.iter().all(|route| route.health.state < HealthState::Degraded), "{health:?}");
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (3, 1));
    let mut reader = bench.broker.letters(&letters).await.expect("the letters can be opened");
    let mut all = Vec::new();
    reader.read(std::num::NonZeroUsize::MAX, &mut all).await.expect("they can be read");
    assert_eq!(all.iter().map(|letter| number_of(&letter.envelope)).collect::<Vec<_>>(), [0]);
    Passed
}

/// How often a message may be handed out in these cases: a broker that gives up on messages by itself must not do so here.
const CRASH_LIMIT: u32 = 23;
/// Shorter than [`SHORT_CLAIM`](crate::kit::SHORT_CLAIM): each of some 24 processes waits for the claim of the one before. A claim
/// that a halt of the machine costs only repeats messages, which this case allows.
const CRASH_CLAIM: Duration = Duration::from_secs(2);
/// The message that ends every process.
const KILLER: usize = 2;

/// A service that the message [`KILLER`] ends by `end`.
async fn deadly(broker: Broker, end: Ender, channel: &str) -> Running {
    let options =
        RouteOptions::new(channel, "g").publishes(format!("{channel}.effects")).crash_limit(CRASH_LIMIT);
    let options = options.partitions(1).claim_timeout(CRASH_CLAIM);
    let handler = move |envelope: Envelope| {
        let end = Arc::clone(&end);
        async move {
            if number_of(&envelope) == KILLER {
                end();
                std::future::pending::<()>().await;
            }
            Order { number: number_of(&envelope) as u64 }
        }
    };
    Router::new().route(options.handle(handler)).start(&broker).await.expect("it starts")
}

pub async fn crash_loop_is_judged(bench: Bench) -> Outcome {
    if let Some(channel) = &bench.role {
        bench.life(channel, CRASH_CLAIM, |broker, end| deadly(broker, end, channel)).await;
        return Passed;
    }
    let soon = |options: &mut SubscribeOptions| {
        options.partitions = Some(1);
        options.claim_timeout = Some(CRASH_CLAIM);
    };
    let channel = channel_with(&bench, soon).await;
    let effects = format!("{channel}.effects");
    bench.broker.declare(&effects).await.expect("it is declared");
    declare_group(&bench.broker, &effects, "look", |options| options.partitions = Some(1)).await;
    bench.publish_keys(&channel, &["a", "b", "c", "d", "c", "a"]).await;
    let mut ended = 0;
    while !bench.life(&channel, CRASH_CLAIM, |broker, end| deadly(broker, end, &channel)).await {
        ended += 1;
        assert!(ended < 2 * CRASH_LIMIT, "the message is judged at some time");
    }
    assert!(ended > CRASH_LIMIT, "after {ended} processes it was too early to tell");
    let mut letters = dead_letters(&bench, &channel).await;
    let letter = letters.one().await;
    assert_eq!((number_of(&letter), text(&letter, "postrider-dlq-reason")), (KILLER, "crash-loop".into()));
    letters.nothing().await;
    let mut looks = bench.subscribe_with(&effects, "look", |options| options.partitions = Some(1)).await;
    let mut handled = std::collections::BTreeSet::new();
    while handled.len() < 5 {
        handled.insert(order_in(&looks.one().await));
    }
    assert_eq!(handled.into_iter().collect::<Vec<_>>(), [0, 1, 3, 4, 5], "what only stood beside it");
    Passed
}

pub async fn clean_restarts_are_no_crash_loop(bench: Bench) -> Outcome {
    let channel = channel_with(&bench, |options| options.partitions = Some(1)).await;
    bench.publish_keys(&channel, &["a", "a", "b"]).await;
    let options = || RouteOptions::new(&*channel, "g").crash_limit(3).partitions(1);
    for _ in 0..50 {
        let (begun, begins) = tokio::sync::watch::channel(false);
        let slow = move |_: Envelope| {
            begun.send_replace(true);
            std::future::pending::<()>()
        };
        let service =
            Router::new().route(options().handle(slow)).start(&bench.broker).await.expect("it starts");
        let mut begins = begins;
        within("a handler begins", begins.wait_for(|begun| *begun)).await.expect("it lives");
        service.stop(Duration::ZERO).await.expect("it stops");
    }
    let report = handle(&bench, options(), async |_: Envelope| {}).await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (3, 0));
    Passed
}
