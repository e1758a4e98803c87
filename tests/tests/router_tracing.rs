//! What the router says through `tracing`: fixed targets and fields, nothing for each message above DEBUG, never a secret.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::fmt::{Debug, Write as _};
use std::time::Duration;

use postrider::memory::MemoryConnector;
use postrider::prelude::*;
use postrider::{Attribute, BreakerPolicy, Bytes, Env, Registry, RouteOptions};
use router_kit::{Log, Placed, broker, broker_with, finish, invoiced, lag, placed, retry, within};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "s3cr3t";

/// One event or span: its level, its target, and its fields as text.
#[derive(Clone, Debug)]
struct Said {
    level: Level,
    target: String,
    text: String,
}

/// Writes down all that is said on this thread, at every level.
struct Recorder(Log<Said>);

impl Recorder {
    fn add(&self, metadata: &tracing::Metadata<'_>, fields: impl FnOnce(&mut Fields)) {
        let mut text = Fields::default();
        fields(&mut text);
        let (level, target) = (*metadata.level(), metadata.target().to_owned());
        self.0.add(Said { level, target, text: format!("{}{}", text.message, text.rest) });
    }
}

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        self.add(span.metadata(), |fields| span.record(fields));
    }
    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.0.add(Said { level: Level::TRACE, target: "recorded".into(), text: fields.rest });
    }
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.add(event.metadata(), |fields| event.record(fields));
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}

/// Records what is said on this thread until the guard is dropped: the tests' runtime has no other.
fn record() -> (Log<Said>, DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(Recorder(log.clone()));
    (log, tracing::subscriber::set_default(subscriber))
}

/// What postrider said, one event a line.
fn story(log: &Log<Said>) -> String {
    let said = log.all().into_iter().filter(|said| said.target.starts_with("postrider"));
    let line = |said: Said| format!("{:5} {} {}", said.level, said.target, said.text);
    said.map(line).collect::<Vec<_>>().join("\n")
}

fn billing() -> RouteOptions {
    RouteOptions::new("orders", "billing").name("bill").retry(retry(2, SECOND))
}

#[tokio::test(start_paused = true)]
async fn start_retry_dead_letter_and_drain_are_told() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    let (log, _guard) = record();
    let handler = async |order: Placed| if order.number == 2 { Err("card declined") } else { Ok(()) };
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    finish(service).await;
    insta::assert_snapshot!(story(&log), @r#"
    INFO  postrider::route route started route="bill" channel="orders" group="billing" broker="memory" worst_case_ms=61000
    INFO  postrider::retry attempt failed, to be retried route="bill" channel="orders" group="billing" id=019b76da-a800-763c-a3cb-e1e459320dd8 attempt=1 wait_ms=1000 error="card declined"
    WARN  postrider::dead_letter message dead-lettered route="bill" channel="orders" group="billing" id=019b76da-a800-763c-a3cb-e1e459320dd8 attempt=2 reason="exhausted" error="card declined"
    INFO  postrider::drain route draining route="bill" channel="orders" group="billing" held=0
    INFO  postrider::drain route stopped route="bill" channel="orders" group="billing" given_back=0 in_time=true
    "#);
}

#[tokio::test(start_paused = true)]
async fn of_each_message_the_first_failed_attempt_is_told_at_info() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("ben", 2)]).await;
    let (log, _guard) = record();
    let handler = async |_: Placed| Err::<(), _>(HandlerError::msg("x".repeat(1000)));
    let route = billing().retry(retry(3, SECOND)).handle(handler);
    finish(Router::new().route(route).start(&broker).await.unwrap()).await;
    let retries: Vec<_> = log.all().into_iter().filter(|said| said.target == "postrider::retry").collect();
    let levels: Vec<_> = retries.iter().map(|said| said.level).collect();
    assert_eq!(levels, [Level::INFO, Level::INFO, Level::DEBUG, Level::DEBUG]);
    let letters: Vec<_> = log.all().into_iter().filter(|said| said.level == Level::WARN).collect();
    assert_eq!(letters.len(), 2);
    // 512 characters, and no more of it
    let error = format!(" error=\"{}…\"", "x".repeat(511));
    assert!(retries.iter().chain(&letters).all(|said| said.text.ends_with(&error)), "{letters:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_of_an_unknown_type_or_version_tells_what_was_found_and_expected() {
    let (_, broker) = broker_with(&[]).await;
    let (log, _guard) = record();
    let service = Router::new().route(billing().handle(async |_: Placed| ())).start(&broker).await.unwrap();
    let message = || Envelope::builder(Bytes::from("{}")).type_name("order.placed");
    for message in [
        Envelope::builder(Bytes::from("{}")).type_name("order.cancelled"),
        message().version(3),
        message().attribute(Attribute::SchemaVersion, "two"),
        message().version(2),
    ] {
        broker.publish("orders", message.header("tenant", SECRET)).await.unwrap();
    }
    finish(service).await;
    let letters = log.all().into_iter().filter(|said| said.target == "postrider::dead_letter");
    let told: Vec<_> =
        letters.map(|said| said.text.split(" attempt=1 ").nth(1).unwrap().to_owned()).collect();
    assert_eq!(
        told,
        [
            r#"reason="unknown-type" error="the message is a `order.cancelled`, the handler takes `order.placed`" found="order.cancelled" expected="order.placed""#,
            r#"reason="unknown-version" error="the message has version 3, this program reads version 2" found="3" expected="2""#,
            r#"reason="unknown-version" error="the message has version `two`, which is no number up to 4294967295; this program reads version 2" found="two" expected="2""#,
            r#"reason="undecodable" error="the body can't be decoded""#,
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn outputs_that_lead_back_are_told_once_when_the_routes_start() {
    let (_, broker) = broker_with(&[]).await;
    let (log, _guard) = record();
    let route = |channel: &str, group: &str| RouteOptions::new(channel, group).handle(async |_: Envelope| ());
    let to = |channel: &str, group: &str, publishes: &str| {
        RouteOptions::new(channel, group).publishes(publishes).handle(async |_: Envelope| ())
    };
    // a cycle of three, one through dead letters, and a route that only leads into the first
    let parked = RouteOptions::new("parked", "clerk").publishes("c").no_dead_letter();
    let router = Router::new()
        .route(route("other", "reads"))
        .route(to("in", "leads", "a"))
        .route(to("a", "one", "b"))
        .route(to("b", "two", "c"))
        .route(
            RouteOptions::new("c", "three")
                .publishes("a")
                .dead_letter("parked")
                .handle(async |_: Envelope| ()),
        )
        .route(parked.handle(async |_: Envelope| ()));
    router.start(&broker).await.unwrap().stop(SECOND).await.unwrap();
    let said: Vec<_> = log.all().into_iter().filter(|said| said.level == Level::WARN).collect();
    let cycles: Vec<_> = said.iter().map(|said| said.text.split("cycle=").nth(1).unwrap()).collect();
    assert_eq!(
        cycles,
        [
            "\"`a` (`one`) → `b` (`two`) → `c` (`three`) → `a`\"",
            "\"`parked` (`clerk`) → `c` (`three`) → `parked`\"",
        ]
    );
    assert!(said.iter().all(|said| said.target == "postrider::route"));
}

type SpanNames = Log<Option<&'static str>>;

fn current() -> Option<&'static str> {
    tracing::Span::current().metadata().map(tracing::Metadata::name)
}

#[handler(channel = "orders", group = "above")]
#[tracing::instrument(skip_all)]
async fn above(_order: Placed, State(names): State<SpanNames>) {
    tokio::task::yield_now().await;
    names.add(current());
}

#[tracing::instrument(skip_all)]
#[handler(channel = "orders", group = "below")]
async fn below(_order: Placed, State(names): State<SpanNames>) {
    tokio::task::yield_now().await;
    names.add(current());
}

#[tokio::test(start_paused = true)]
async fn the_span_of_an_instrumented_handler_is_entered_wherever_the_attribute_stands() {
    let (_, broker) = broker_with(&[placed("ann", 1)]).await;
    let (_, _guard) = record();
    let names = SpanNames::default();
    let router = Router::with_state(names.clone()).route(above).route(below);
    let service = router.start(&broker).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    service.stop(SECOND).await.unwrap();
    above(placed("ann", 1), State(names.clone())).await;
    let mut names: Vec<_> = names.all().into_iter().flatten().collect();
    names.sort_unstable();
    assert_eq!(names, ["above", "above", "below"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_refused_and_a_message_that_is_dropped_are_told() {
    let (memory, broker) = broker_with(&[placed("ann", 1)]).await;
    memory.fail_publishes(2);
    let (log, _guard) = record();
    let handler = async |_: Placed| Err::<(), _>(HandlerError::msg("card declined")).permanent();
    let lossy = RouteOptions::new("orders", "lossy").no_dead_letter().handle(handler);
    let router = Router::new().route(billing().handle(handler)).route(lossy);
    let service = router.start(&broker).await.unwrap();
    within("nothing is left to do", service.idle()).await;
    service.stop(SECOND).await.unwrap();
    let mut told: Vec<_> =
        story(&log).lines().filter(|line| line.contains("dead_letter")).map(str::to_owned).collect();
    told.sort();
    insta::assert_snapshot!(told.join("\n"), @r#"
    ERROR postrider::dead_letter dead letter not confirmed, the route waits and tries again route="bill" channel="orders" group="billing" id=019b76da-a800-763c-a3cb-e1e459320dd7 attempt=1 error=publish: the fault plan refuses this message; the message is not stored
    ERROR postrider::dead_letter dead letter not confirmed, the route waits and tries again route="bill" channel="orders" group="billing" id=019b76da-a800-763c-a3cb-e1e459320dd7 attempt=1 error=publish: the fault plan refuses this message; the message is not stored
    WARN  postrider::dead_letter message dead-lettered route="bill" channel="orders" group="billing" id=019b76da-a800-763c-a3cb-e1e459320dd7 attempt=1 reason="rejected" error="card declined"
    WARN  postrider::dead_letter message dropped: the route has no dead letters route="lossy" channel="orders" group="lossy" id=019b76da-a800-763c-a3cb-e1e459320dd7 attempt=1 reason="rejected" error="card declined"
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_lost_claim_and_the_way_back_are_told_and_so_is_what_a_stop_gives_back() {
    let (memory, broker) = broker_with(&[placed("ann", 1), placed("ann", 2)]).await;
    let (log, _guard) = record();
    let handler = async |_: Placed| std::future::pending::<()>().await;
    let service = Router::new().route(billing().handle(handler)).start(&broker).await.unwrap();
    tokio::time::sleep(SECOND).await;
    memory.disconnect();
    tokio::time::sleep(SECOND).await;
    assert_eq!(lag(&service, "bill").await, 2);
    within("it stops", service.stop(SECOND)).await.unwrap();
    insta::assert_snapshot!(story(&log), @r#"
    INFO  postrider::route route started route="bill" channel="orders" group="billing" broker="memory" worst_case_ms=61000
    WARN  postrider::claim claims lost route="bill" channel="orders" group="billing" claims=1
    INFO  postrider::reconnect reconnected route="bill" channel="orders" group="billing"
    INFO  postrider::drain route draining route="bill" channel="orders" group="billing" held=2
    INFO  postrider::drain route stopped route="bill" channel="orders" group="billing" given_back=2 in_time=false
    "#);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_probes_and_closes_is_told() {
    let (_, broker) = broker_with(&[placed("ann", 1), placed("bob", 2), placed("eve", 3)]).await;
    let (log, _guard) = record();
    let began = tokio::time::Instant::now();
    let handler = move |_: Placed| {
        let up = began.elapsed() > 15 * SECOND;
        async move { if up { Ok(()) } else { Err("card service down") } }
    };
    let policy = BreakerPolicy::new().consecutive_failures(2).open_for(10 * SECOND).probes(1);
    let route = billing().retry(retry(9, SECOND)).concurrency(1).breaker(policy).handle(handler);
    let service = Router::new().route(route).start(&broker).await.unwrap();
    finish(service).await;
    let told: Vec<_> =
        story(&log).lines().filter(|line| line.contains("breaker")).map(str::to_owned).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    WARN  postrider::breaker circuit breaker open, the route waits route="bill" channel="orders" group="billing" open_ms=10000
    INFO  postrider::breaker circuit breaker half-open, the route probes route="bill" channel="orders" group="billing"
    WARN  postrider::breaker circuit breaker open, the route waits route="bill" channel="orders" group="billing" open_ms=10000
    INFO  postrider::breaker circuit breaker half-open, the route probes route="bill" channel="orders" group="billing"
    INFO  postrider::breaker circuit breaker closed, the route goes on route="bill" channel="orders" group="billing"
    "#);
}

#[tokio::test(start_paused = true)]
async fn no_event_for_each_message_is_above_debug() {
    for workers in [1, 2] {
        let (_, broker) = broker();
        let (log, _guard) = record();
        // each third is tried twice, so that retries are among what is told
        let handler = async |order: Placed, attempt: Attempt| {
            if order.number.is_multiple_of(3) && attempt.0 == 1 {
                Err("not yet")
            } else {
                Ok(invoiced(&order))
            }
        };
        let route = billing().publishes("invoices").workers(workers).handle(handler);
        let service = Router::new().route(route).start(&broker).await.unwrap();
        for number in 0..300 {
            broker.publish("orders", &placed(&format!("c-{}", number % 9), number)).await.unwrap();
        }
        let report = finish(service).await;
        assert_eq!((report.handled, report.retried), (300, 100));
        let (retries, all): (Vec<_>, Vec<_>) =
            log.all().into_iter().partition(|said| said.target == "postrider::retry");
        let loud: Vec<_> = all.into_iter().filter(|said| said.level < Level::DEBUG).collect();
        let targets: Vec<_> = loud.iter().map(|said| said.target.as_str()).collect();
        assert_eq!(targets, ["postrider::route", "postrider::drain", "postrider::drain"], "{loud:?}");
        assert_eq!(retries.len(), 100, "one for each message that failed, and none for the others");
    }
}

#[tokio::test(start_paused = true)]
async fn no_secret_of_a_body_a_header_or_a_url_is_told_at_any_level() {
    let (log, _guard) = record();
    let registry = Registry::new(&[]).with(MemoryConnector);
    let url = format!("memory://ann:{SECRET}@host");
    log.add(Said {
        level: Level::TRACE,
        target: "error".into(),
        text: shown(&registry.connect(&url, Env::system()).await),
    });

    let (memory, broker) = broker();
    let well = async |order: Placed| Ok::<_, HandlerError>(invoiced(&order));
    let hangs = async |_: Envelope| std::future::pending::<()>().await;
    let panics = async |_: Envelope| assert!(std::hint::black_box(false), "on purpose");
    let batch = async |_: Batch<Placed>| ();
    let options = |group: &str| RouteOptions::new("orders", group).retry(retry(2, SECOND)).timeout(SECOND);
    let router = Router::new()
        .route(options("well").publishes("invoices").handle(well))
        .route(options("hangs").handle(hangs))
        .route(options("panics").no_dead_letter().handle(panics))
        .route(options("reads").no_dead_letter().handle(async |_: Placed| ()))
        .route(options("batch").no_dead_letter().handle(batch));
    log.add(Said { level: Level::TRACE, target: "debug".into(), text: format!("{router:?}") });
    let service = router.start(&broker).await.unwrap();
    // one that can be read, one that isn't JSON, and one whose secret stands where a number should
    for body in [
        format!(r#"{{"customer":"{SECRET}","number":1}}"#),
        SECRET.to_string(),
        format!(r#"{{"customer":"ann","number":"{SECRET}"}}"#),
    ] {
        let envelope = Envelope::builder(Bytes::from(body)).type_name("order.placed").version(2);
        broker.publish("orders", envelope.header("authorization", SECRET)).await.unwrap();
    }
    memory.fail_publishes(5);
    tokio::time::sleep(SECOND / 10).await;
    memory.disconnect();
    log.add(Said { level: Level::TRACE, target: "health".into(), text: shown(&service.health()) });
    within("nothing is left to do", service.idle()).await;
    let report = service.stop(SECOND).await.unwrap();
    let (dropped, dead): (Vec<_>, Vec<_>) =
        report.routes.iter().map(|r| (r.dropped, r.dead_lettered)).unzip();
    assert_eq!((dropped, dead), (vec![0, 0, 3, 2, 2], vec![2, 3, 0, 0, 0]), "each way to fail was taken");
    assert!(log.all().len() > 20, "the recorder hears");
    for said in log.all() {
        assert!(!said.text.contains(SECRET), "{said:?}");
    }
}

fn shown(value: &impl Debug) -> String {
    format!("{value:?}")
}
