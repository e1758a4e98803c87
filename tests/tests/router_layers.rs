//! A user's own layers: around every attempt, in the order in which they are written, and without the right to settle.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::time::Duration;

use postrider::prelude::*;
use postrider::{Bytes, Handler, Incoming, Layer, Outcome, RouteOptions};
use router_kit::{Log, Placed, broker_with, finish, header, invoiced, lag, look, placed, retry};

const SECOND: Duration = Duration::from_secs(1);

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(2, SECOND))
}

/// Writes down what goes in and what comes out.
#[derive(Clone)]
struct Note(&'static str, Log<String>);

impl Layer for Note {
    async fn call<H: Handler>(&self, incoming: Incoming, next: &H) -> Outcome {
        let Self(name, log) = self;
        log.add(format!("{name} in: {} from attempt {}", incoming.len(), incoming.attempt));
        let outcome = next.handle(incoming).await;
        log.add(match &outcome {
            Outcome::Done(outputs) => format!("{name} out: done, {} outputs", outputs.len()),
            Outcome::Retry(error, _) => format!("{name} out: retry, {error}"),
            Outcome::Reject(reason, _) => format!("{name} out: reject, {reason}"),
            Outcome::Each(each) => format!("{name} out: {} items", each.len()),
            _ => format!("{name} out: something new"),
        });
        outcome
    }
}

#[tokio::test(start_paused = true)]
async fn layers_wrap_the_routes_added_after_them_in_the_written_order() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let log = Log::default();
    let note = |name| Note(name, log.clone());
    let handler = |who: &'static str| {
        let log = log.clone();
        move |_: Placed| {
            log.add(who.to_owned());
            std::future::ready(())
        }
    };
    let options = |group: &str| RouteOptions::new("orders", group);
    let merged = Router::new().route(options("merged").handle(handler("merged")));
    let router = Router::new()
        .route(options("bare").handle(handler("bare")))
        .layer(note("outer"))
        .layer(note("inner"))
        .route(options("wrapped").handle(handler("wrapped")))
        .merge(merged);
    let service = router.start(&broker).await.unwrap();
    service.idle().await;
    service.stop(SECOND).await.unwrap();
    let all = log.all();
    let wrapped = [
        "outer in: 1 from attempt 1",
        "inner in: 1 from attempt 1",
        "wrapped",
        "inner out: done, 0 outputs",
        "outer out: done, 0 outputs",
    ];
    assert!(all.windows(5).any(|window| window == wrapped), "{all:?}");
    assert_eq!(all.len(), 7, "the other two have no layers: {all:?}");
    assert!(all.contains(&"bare".to_owned()) && all.contains(&"merged".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_layer_sees_every_attempt_with_its_outcome_decoding_included() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let log = Log::default();
    let handler = async |order: Placed, attempt: Attempt| {
        if attempt.0 == 1 { Err(HandlerError::msg("card service busy")) } else { Ok(invoiced(&order)) }
    };
    let router = Router::new().layer(Note("layer", log.clone()));
    let service = router.route(billing().publishes("invoices").handle(handler)).start(&broker).await.unwrap();
    service.idle().await;
    let garbled = Envelope::builder(Bytes::from_static(b"{")).type_name("order.placed").version(2);
    broker.publish("orders", garbled).await.unwrap();
    finish(service).await;
    assert_eq!(
        log.all(),
        [
            "layer in: 1 from attempt 1",
            "layer out: retry, card service busy",
            "layer in: 1 from attempt 2",
            "layer out: done, 1 outputs",
            "layer in: 1 from attempt 1",
            "layer out: reject, undecodable",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_layer_sees_a_batch_as_one() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("bob", 2)]).await;
    let log = Log::default();
    let handler =
        async |Batch(orders): Batch<Placed>| orders.iter().map(|_| Ok::<_, String>(())).collect::<Vec<_>>();
    let router = Router::new().layer(Note("layer", log.clone())).route(billing().handle(handler));
    assert_eq!(finish(router.start(&broker).await.unwrap()).await.handled, 2);
    assert_eq!(log.all(), ["layer in: 2 from attempt 1", "layer out: 2 items"]);
}

/// What a layer may do instead of passing on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trick {
    /// Answers without calling the handler.
    Swallow,
    /// Calls the handler and says that it failed.
    Deny,
    /// Says that all is well, whatever the handler said.
    Whitewash,
    /// Calls the handler and panics.
    Panic,
    /// Calls the handler and never answers.
    Hang,
}

impl Layer for Trick {
    async fn call<H: Handler>(&self, incoming: Incoming, next: &H) -> Outcome {
        if *self == Self::Swallow {
            return Outcome::done();
        }
        drop(next.handle(incoming).await);
        match self {
            Self::Deny => Outcome::Retry("the layer says no".into(), None),
            Self::Panic => panic!("the layer gives way"),
            Self::Hang => std::future::pending().await,
            Self::Swallow | Self::Whitewash => Outcome::done(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_decides_the_outcome_but_the_runner_alone_settles() {
    for (trick, fails, runs, error) in [
        (Trick::Swallow, true, 0, None),
        (Trick::Whitewash, true, 1, None),
        (Trick::Deny, false, 2, Some("the layer says no")),
        (Trick::Panic, false, 2, Some("the handler panicked: the layer gives way")),
        (Trick::Hang, false, 2, Some("the attempt took longer than its time-out of 10s")),
    ] {
        let (_, broker) = broker_with(&[placed("ann", 1)]).await;
        let ran = Log::default();
        let log = ran.clone();
        let handler = move |order: Placed| {
            log.add(order.number);
            std::future::ready(if fails { Err("card service busy") } else { Ok(invoiced(&order)) })
        };
        let options = billing().publishes("invoices").timeout(10 * SECOND);
        let router = Router::new().layer(trick).route(options.handle(handler));
        let service = router.start(&broker).await.unwrap();
        // by now an attempt has ended or hangs; what wasn't done stays with the broker, whatever the handler did
        tokio::time::sleep(SECOND / 2).await;
        assert_eq!(lag(&service, "bill").await, u64::from(error.is_some()), "{trick:?}");
        let report = finish(service).await;
        assert_eq!(ran.all().len(), runs, "{trick:?}");
        assert_eq!(
            look(&broker, "invoices").await.len(),
            0,
            "what the layer withheld isn't published: {trick:?}"
        );
        let letters = look(&broker, "orders.billing.dlq").await;
        match error {
            None => assert_eq!((report.handled, letters.len()), (1, 0), "{trick:?}"),
            Some(error) => assert_eq!(header(&letters[0], "postrider-dlq-error"), error),
        }
    }
}
