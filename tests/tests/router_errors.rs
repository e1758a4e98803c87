//! Errors of handlers that misbehave themselves: whatever their `Display`, `source` or `Drop` do, the message is dead-lettered and the
//! route goes on.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::error::Error as StdError;
use std::fmt;
use std::panic::panic_any;
use std::time::Duration;

use postrider::prelude::*;
use postrider::{
    BoxError, BoxFuture, Bytes, End, ErrorKind, Handler, Idempotency, IdempotencyStore, Incoming, Outcome,
    Reserve, Reserved, RouteOptions, codec::Codec,
};
use router_kit::{Log, Placed, broker, broker_with, finish, header, look, placed, retry};
use serde::de::DeserializeOwned;

const SECOND: Duration = Duration::from_secs(1);
const LETTERS: &str = "orders.billing.dlq";
const NO_TEXT: &str = "(no text: the error's Display failed)";

/// What an error does that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hostile {
    DisplayFails,
    DisplayPanics,
    DisplayNeverEnds,
    DropPanics,
    SourceIsItself,
    SourcePanics,
}

const ALL: [Hostile; 6] = [
    Hostile::DisplayFails,
    Hostile::DisplayPanics,
    Hostile::DisplayNeverEnds,
    Hostile::DropPanics,
    Hostile::SourceIsItself,
    Hostile::SourcePanics,
];

#[derive(Debug)]
struct HostileError(Hostile);

impl fmt::Display for HostileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Hostile::DisplayFails => Err(fmt::Error),
            Hostile::DisplayPanics => panic!("on purpose"),
            Hostile::DisplayNeverEnds => loop {
                f.write_str("and so on ")?;
            },
            other => write!(f, "{other:?}"),
        }
    }
}

impl StdError for HostileError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.0 {
            Hostile::SourceIsItself => Some(self),
            Hostile::SourcePanics => panic!("on purpose"),
            _ => None,
        }
    }
}

impl Drop for HostileError {
    fn drop(&mut self) {
        // a second panic would end the process
        assert!(self.0 != Hostile::DropPanics || std::thread::panicking(), "on purpose");
    }
}

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(2, SECOND))
}

fn hostile(order: &Placed) -> Option<HostileError> {
    ALL.get(order.number as usize).map(|how| HostileError(*how))
}

/// One order for each kind of error, and a last one that is handled.
fn orders() -> Vec<Placed> {
    (0..=ALL.len() as u64).map(|number| placed(&format!("c-{number}"), number)).collect()
}

fn check(letters: &[Envelope], reason: &str, attempts: &str) {
    assert_eq!(letters.len(), ALL.len());
    for letter in letters {
        assert_eq!(header(letter, "postrider-dlq-reason"), reason);
        assert_eq!(header(letter, "postrider-dlq-attempts"), attempts);
        let number: usize = number(letter);
        let (text, chain) =
            (header(letter, "postrider-dlq-error"), header(letter, "postrider-dlq-error-chain"));
        // the mark is a link of the chain
        let (marked, mark) = if reason == "rejected" { (1, ": marked permanent") } else { (0, "") };
        match ALL[number] {
            Hostile::DisplayFails | Hostile::DisplayPanics => {
                assert_eq!((text, chain), (NO_TEXT, &*format!("{NO_TEXT}{mark}")));
            }
            Hostile::DisplayNeverEnds => {
                assert!(text.starts_with("and so on and so on") && text.ends_with("(cut)"), "{text}");
                assert_eq!(text.len(), 2048);
            }
            Hostile::SourceIsItself => {
                let further = vec![": SourceIsItself"; 31 - marked].concat();
                assert_eq!(chain, format!("SourceIsItself{mark}{further}"));
                assert_eq!(text, "SourceIsItself");
            }
            other => assert_eq!((text, chain), (&*format!("{other:?}"), &*format!("{other:?}{mark}"))),
        }
    }
}

fn number(letter: &Envelope) -> usize {
    let body: serde_json::Value = serde_json::from_slice(letter.payload()).unwrap();
    body["number"].as_u64().unwrap() as usize
}

#[tokio::test(start_paused = true)]
async fn whatever_an_error_does_its_message_is_dead_lettered_and_the_route_goes_on() {
    for (workers, reason, attempts) in [(1, "exhausted", "2"), (2, "exhausted", "2"), (1, "rejected", "1")] {
        let (_, broker) = broker_with(&orders()).await;
        let handler = move |order: Placed| async move {
            tokio::task::yield_now().await;
            match hostile(&order) {
                None => Ok(()),
                Some(error) if reason == "rejected" => Err(error).permanent(),
                Some(error) => Err(HandlerError::from(error)),
            }
        };
        let route = billing().workers(workers).handle(handler);
        let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
        assert_eq!((report.handled, report.dead_lettered), (1, ALL.len() as u64), "{workers} {reason}");
        check(&look(&broker, LETTERS).await, reason, attempts);
    }
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_batch_are_contained_as_well() {
    // one outcome for each
    let (_, broker) = broker_with(&orders()).await;
    let each = async |orders: Batch<Placed>| {
        orders.0.iter().map(|order| hostile(order).map_or(Ok(()), Err)).collect::<Vec<_>>()
    };
    let report = finish(Router::new().route(billing().handle(each)).start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, report.dead_lettered), (1, ALL.len() as u64));
    check(&look(&broker, LETTERS).await, "exhausted", "2");

    // one error for all that could be decoded
    for how in ALL {
        let (_, broker) = broker_with(&[placed("ann", 1), placed("ben", 2)]).await;
        broker
            .publish("orders", Envelope::builder(Bytes::from("{")).type_name("order.placed"))
            .await
            .unwrap();
        let all = move |_: Batch<Placed>| async move { Err::<(), _>(HostileError(how)).permanent() };
        let report = finish(Router::new().route(billing().handle(all)).start(&broker).await.unwrap()).await;
        assert_eq!(report.dead_lettered, 3, "{how:?}");
        let reasons: Vec<_> = look(&broker, LETTERS)
            .await
            .iter()
            .map(|letter| header(letter, "postrider-dlq-reason").to_owned())
            .collect();
        assert_eq!(reasons.iter().filter(|reason| *reason == "rejected").count(), 2, "{how:?} {reasons:?}");
    }
}

/// JSON whose errors are hostile.
enum HostileCodec {}

impl Codec for HostileCodec {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode<T: serde::Serialize>(message: &T) -> Result<Bytes, BoxError> {
        Ok(serde_json::to_vec(message)?.into())
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
        let number = bytes.first().map_or(0, |digit| usize::from(digit - b'0'));
        Err(HostileError(ALL[number]).into())
    }
}

#[derive(Message, serde::Serialize, serde::Deserialize)]
#[message(name = "coded", codec = HostileCodec)]
struct Coded;

#[tokio::test(start_paused = true)]
async fn errors_of_a_codec_are_contained_as_well() {
    let (_, broker) = broker_with(&[]).await;
    for number in 0..ALL.len() {
        broker.publish("orders", Envelope::builder(Bytes::from(number.to_string()))).await.unwrap();
    }
    let route = billing().handle(async |_: Coded| ());
    let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, report.dead_lettered), (0, ALL.len() as u64));
    for letter in look(&broker, LETTERS).await {
        assert_eq!(header(&letter, "postrider-dlq-reason"), "undecodable");
        assert_eq!(header(&letter, "postrider-dlq-error"), "the body can't be decoded");
        let number = usize::from(letter.payload()[0] - b'0');
        if number < 2 {
            let expected = format!("the body can't be decoded: {NO_TEXT}");
            assert_eq!(header(&letter, "postrider-dlq-error-chain"), expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_predicate_that_panics_decides_nothing() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    let handler = async |order: Placed| if order.number == 1 { Err("declined") } else { Ok(()) };
    let options = billing().retry(retry(3, SECOND).only_if(|_| panic!("on purpose")));
    let report = finish(Router::new().route(options.handle(handler)).start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 2, 1));
    assert_eq!(header(&look(&broker, LETTERS).await[0], "postrider-dlq-error"), "declined");
}

/// The payload of a panic, whose drop panics.
struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "on purpose");
    }
}

/// A handler that panics before it has a future, and inside of it.
struct Panics;

impl Handler for Panics {
    fn handle(&self, incoming: Incoming) -> impl Future<Output = Outcome> + Send {
        let attempt = incoming.attempt;
        if attempt == 1 {
            panic_any(Payload);
        }
        async move {
            if attempt == 2 {
                panic_any(Payload);
            }
            Outcome::done()
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_of_a_panic_may_panic_when_it_is_dropped() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let route = billing().retry(retry(3, SECOND)).handle(Panics);
    let report = finish(Router::new().route(route).start(&broker).await.unwrap()).await;
    assert_eq!((report.handled, report.retried), (1, 2));
}

/// A store that panics at its first calls, and then fails with an error whose drop panics.
#[derive(Clone, Default)]
struct PanickingStore(Log<&'static str>);

impl IdempotencyStore for PanickingStore {
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, postrider::Result<Vec<Reserved>>> {
        self.0.add("reserve");
        let calls = self.0.all().iter().filter(|call| **call == "reserve").count();
        assert_ne!(calls, 1, "on purpose");
        Box::pin(async move {
            if calls == 2 {
                let error = postrider::Error::new(ErrorKind::Broker, "reserve", "no answer");
                return Err(error.because(HostileError(Hostile::DropPanics)));
            }
            Ok(requests.iter().map(|_| Reserved::Granted).collect())
        })
    }

    fn end<'a>(&'a self, _: &'a [End]) -> BoxFuture<'a, postrider::Result<()>> {
        self.0.add("end");
        let panics = self.0.all().iter().filter(|call| **call == "end").count() == 1;
        Box::pin(async move {
            assert!(!panics, "on purpose");
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_is_asked_again() {
    let (_, broker) = broker();
    let store = PanickingStore::default();
    let options = billing().idempotency(Idempotency::auto());
    let router = Router::new().idempotency(store.clone()).route(options.handle(async |_: Placed| ()));
    let service = router.start(&broker).await.unwrap();
    broker.publish("orders", &placed("ann", 1)).await.unwrap();
    assert_eq!(finish(service).await.handled, 1);
    assert_eq!(store.0.all(), ["reserve", "reserve", "reserve", "end", "end"]);
}
