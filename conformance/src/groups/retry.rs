//! Retries that wait at the broker, and what comes to one group alone.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postrider_core::{
    Address, Attempt, Backoff, Confirmed, Envelope, EnvelopeBuilder, ErrorKind, Jitter, Order, Outgoing,
    PublishError, PublishOptions, Publisher, PublisherExt, RETRY_TIERS, Retry, RouteOptions, Router, Running,
};

use crate::kit::{Bench, DRAIN, Reader, assert_waited, number, number_of};
use crate::record::Outcome::{self, Passed};

/// The least that a message waits at the broker.
const FIRST: Duration = RETRY_TIERS[0];

/// Each attempt: the message's number, the attempt's, and when it began.
type Attempts = Arc<Mutex<Vec<(usize, u32, Instant)>>>;

/// A route that retries by the broker.
fn route(channel: &str, attempts: u32) -> RouteOptions {
    let backoff = Backoff::Fixed(Duration::from_millis(10));
    let retry = Retry::new().attempts(attempts).backoff(backoff).jitter(Jitter::None).durable();
    RouteOptions::new(channel, "g").order(Order::None).retry(retry)
}

/// Starts it; the messages numbered 0 fail at each attempt.
async fn start(bench: &Bench, options: RouteOptions, attempts: &Attempts) -> Running {
    let attempts = Arc::clone(attempts);
    let handler = move |envelope: Envelope, attempt: Attempt| {
        let number = number_of(&envelope);
        attempts.lock().expect("nobody panicked").push((number, attempt.0, Instant::now()));
        async move { if number == 0 { Err("no luck") } else { Ok(()) } }
    };
    Router::new().route(options.handle(handler)).start(&bench.broker).await.expect("it starts")
}

/// A channel whose group retries by the broker, and a reader of its dead letters.
async fn channel_of(bench: &Bench) -> (String, Reader) {
    let durable = |options: &mut postrider_core::SubscribeOptions| {
        (options.order, options.durable_retry) = (Order::None, true);
    };
    let channel = bench.channel_with("g", durable).await;
    let letters = format!("{channel}.g.dlq");
    let reader = bench.subscribe_with(&letters, "look", |options| options.partitions = Some(1)).await;
    (channel, reader)
}

fn text(envelope: &Envelope, header: &str) -> Option<String> {
    Some(envelope.headers().get(header)?.as_text()?.to_owned())
}

fn made(attempts: &Attempts) -> Vec<(usize, u32)> {
    attempts.lock().expect("nobody panicked").iter().map(|(n, attempt, _)| (*n, *attempt)).collect()
}

/// Sends to one group alone.
async fn send(
    bench: &Bench,
    to: Address<'_>,
    message: EnvelopeBuilder,
    delay: Option<Duration>,
) -> Confirmed {
    let mut options = PublishOptions::default();
    (options.hop, options.delay) = (Some("redrive/g/1".into()), delay);
    let envelope = message.build(bench.broker.env()).expect("it is legal");
    bench.broker.send(Outgoing::new(to, envelope).with(options)).await.await
}

/// Every attempt is made, none early by the broker's clock, and the dead letter records all of them.
pub async fn broker_keeps_the_message(bench: Bench) -> Outcome {
    let (channel, mut letters) = channel_of(&bench).await;
    let attempts = Attempts::default();
    let service = start(&bench, route(&channel, 3), &attempts).await;
    let message = number(0).key("k").header("mine", "1");
    bench.broker.publish(&*channel, message).await.expect("it is confirmed");
    let letter = letters.one().await;
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!(made(&attempts), [(0, 1), (0, 2), (0, 3)]);
    for pair in attempts.lock().expect("nobody panicked").windows(2) {
        assert_waited(pair[1].2 - pair[0].2, FIRST);
    }
    assert_eq!((report.routes[0].retried, report.routes[0].dead_lettered), (2, 1));
    assert_eq!(text(&letter, "postrider-dlq-attempts").as_deref(), Some("3"));
    assert_eq!((letter.key(), text(&letter, "mine").as_deref()), (Some(&b"k"[..]), Some("1")));
    let left = letter.headers().iter().filter(|(name, _)| name.starts_with("postrider-retry-")).count();
    assert_eq!(left, 0, "what the retries needed is of no use to whoever reads the letter");
    Passed
}

/// The process that failed is gone; another goes on counting where it ended.
pub async fn attempts_survive_a_restart(bench: Bench) -> Outcome {
    let (channel, mut letters) = channel_of(&bench).await;
    let attempts = Attempts::default();
    for run in 1..=3 {
        let side = Bench { broker: bench.reconnect().await, ..bench.clone() };
        let service = start(&side, route(&channel, 3), &attempts).await;
        if run == 1 {
            bench.broker.publish(&*channel, number(0)).await.expect("it is confirmed");
        }
        let what = format!("attempt {run} is made");
        crate::kit::eventually(&what, || made(&attempts).len() >= run).await;
        service.stop(DRAIN).await.expect("it stops");
    }
    let letter = letters.one().await;
    assert_eq!(made(&attempts), [(0, 1), (0, 2), (0, 3)]);
    assert_eq!(text(&letter, "postrider-dlq-attempts").as_deref(), Some("3"));
    letters.nothing().await;
    Passed
}

/// One that waits takes no place in the window, and no handler.
pub async fn waiting_blocks_nobody(bench: Bench) -> Outcome {
    let (channel, mut letters) = channel_of(&bench).await;
    let attempts = Attempts::default();
    let options = route(&channel, 2).max_in_flight(1).concurrency(1);
    bench.publish_count(&channel, 1).await;
    let service = start(&bench, options, &attempts).await;
    crate::kit::eventually("the first attempt is made", || !made(&attempts).is_empty()).await;
    for n in 1..=3 {
        bench.broker.publish(&*channel, number(n)).await.expect("it is confirmed");
        crate::kit::eventually("the others are handled", || made(&attempts).contains(&(n, 1))).await;
    }
    letters.one().await;
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (3, 1));
    Passed
}

/// A message to one group comes to it as it is, and to no other.
pub async fn group_alone_is_reached(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let (mut mine, mut theirs) = (bench.subscribe(&channel, "g").await, bench.subscribe(&channel, "h").await);
    let message = number(1).key("k").header("mine", "1").build(bench.broker.env()).expect("it is legal");
    let id = message.id().clone();
    let mut options = PublishOptions::default();
    options.hop = Some("redrive/g/1".into());
    let outgoing = Outgoing::new(Address::to_group(&channel, "g"), message).with(options);
    bench.broker.send(outgoing).await.await.expect("it is confirmed");
    let got = mine.one().await;
    assert_eq!((got.id(), got.key(), number_of(&got)), (&id, Some(&b"k"[..]), 1));
    assert_eq!(text(&got, "mine").as_deref(), Some("1"));
    bench.broker.publish(&*channel, number(2).key("k")).await.expect("it is confirmed");
    assert_eq!((mine.take_numbers(1).await, theirs.take_numbers(1).await), (vec![2], vec![2]));
    theirs.nothing().await;
    Passed
}

/// What can't reach a group is a failed publish, and says why.
pub async fn group_address_is_checked(bench: Bench) -> Outcome {
    let channel = bench.channel_for("g").await;
    let sent = send(&bench, Address::to_group(&channel, "nobody"), number(1), None).await;
    let Err(PublishError::Failed(error)) = sent else {
        panic!("no such group, but: {sent:?}");
    };
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let sent = send(&bench, (&*channel).into(), number(1), Some(FIRST)).await;
    assert!(matches!(&sent, Err(PublishError::Failed(e)) if e.kind() == ErrorKind::Config), "{sent:?}");
    let sent = send(&bench, Address::to_group(&channel, "a.b"), number(1), None).await;
    assert!(matches!(&sent, Err(PublishError::Failed(e)) if e.kind() == ErrorKind::Config), "{sent:?}");
    Passed
}
