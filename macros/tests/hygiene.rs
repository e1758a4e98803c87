//! Names of the user's own that the macros could take for theirs: all of this compiles, and works.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]
#![allow(
    clippy::used_underscore_binding,
    clippy::duplicate_underscore_argument,
    reason = "such names are the case"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use postrider::prelude::*;
use postrider::{Handling, RouteOptions};
use serde::{Deserialize, Serialize};

/// A message with the name of what a `#[handler]` once declared within the function.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "info", key = "type", idempotency = "r#match.r#move")]
struct Info {
    r#type: String,
    r#match: Nested,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Nested {
    r#move: u64,
}

/// An output whose name a type parameter may have.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "t")]
struct T;

#[derive(Clone, Debug, Default)]
struct Total(Arc<AtomicU64>);

fn info(number: u64) -> Info {
    Info { r#type: "a".into(), r#match: Nested { r#move: number } }
}

#[handler(channel = "in", group = "one", publishes = "out")]
async fn one(info: Info, State(argument_0): State<Total>) -> Result<T, HandlerError> {
    argument_0.0.fetch_add(info.r#match.r#move, Relaxed);
    Ok(T)
}

#[handler(channel = "in", group = "two")]
async fn two(r#type: Info, _1: State<Total>, _type: Attempt, _match: Meta, _: Envelope) {
    let State(total) = _1;
    total.0.fetch_add(10 * r#type.r#match.r#move, Relaxed);
}

#[handler(channel = "in", group = "three")]
async fn three(item: Info, _item: State<Total>, mut argument_3: Attempt, returns: Broker) {
    argument_3.0 += 1;
    assert_eq!(argument_3.0, 2, "this is the first attempt");
    assert_eq!(returns.name(), "memory");
    _item.0.0.fetch_add(100 * item.r#match.r#move, Relaxed);
}

#[handler(channel = "out", group = "four")]
async fn r#move(r#move: T, State(total): State<Total>) {
    let T = r#move;
    total.0.fetch_add(1_000, Relaxed);
}

/// A handler may call itself: what it calls is the function within.
#[handler(channel = "in", group = "five")]
async fn again(info: Info, state: State<Total>) {
    state.0.0.fetch_add(10_000, Relaxed);
    if info.r#match.r#move > 1 {
        Box::pin(again(Info { r#match: Nested { r#move: 1 }, ..info }, state)).await;
    }
}

#[tokio::test]
async fn names_of_the_users_own_are_in_nobodys_way() {
    let broker = postrider::connect("memory:").await.unwrap();
    let total = Total::default();
    let router =
        Router::with_state(total.clone()).route(one).route(two).route(three).route(r#move).route(again);
    let service = router.start(&broker).await.unwrap();
    broker.publish("in", &info(2)).await.unwrap();
    service.idle().await;
    let report = service.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(total.0.load(Relaxed), 2 + 20 + 200 + 1_000 + 20_000);
    let names: Vec<_> = report.routes.iter().map(|route| &*route.route).collect();
    assert_eq!(names, ["one", "two", "three", "move", "again"]);
}

#[test]
fn fields_may_be_keywords() {
    assert_eq!(info(7).key().unwrap().as_bytes(), b"a");
    assert_eq!(info(7).idempotency_key().unwrap(), "7");
}

/// Attributes of a function stay with it: this one is asked for its value, and its lints are the user's.
#[handler(channel = "in", group = "six")]
#[must_use = "a future does nothing"]
#[expect(unused_variables, reason = "an expectation that is not met is a warning")]
#[inline]
async fn six(info: Info) {
    let nobody_reads_this = 1;
}

fn options<A, H: Handling>(_: fn(A) -> H) -> RouteOptions {
    H::options()
}

#[test]
fn a_function_with_attributes_is_a_route() {
    assert_eq!(options(six), RouteOptions::new("in", "six").name("six"));
}

#[derive(Debug, Default)]
struct Warehouse {
    packed: AtomicU64,
}

#[handlers]
impl Warehouse {
    #[handler(channel = "in", group = "pack")]
    async fn pack(&self, this: Info, argument_0: Attempt) {
        self.packed.fetch_add(this.r#match.r#move * u64::from(argument_0.0), Relaxed);
    }
}

/// A second block of the same type.
#[handlers(routes = counting_routes)]
impl Warehouse {
    #[handler(channel = "in", group = "count")]
    async fn count(&self, _: Info) {
        self.packed.fetch_add(100, Relaxed);
    }
}

#[tokio::test]
async fn two_blocks_of_one_type_make_one_router() {
    let warehouse = Arc::new(Warehouse::default());
    let broker = postrider::connect("memory:").await.unwrap();
    let router = Arc::clone(&warehouse).routes().merge(Arc::clone(&warehouse).counting_routes());
    let service = router.start(&broker).await.unwrap();
    broker.publish("in", &info(3)).await.unwrap();
    service.idle().await;
    service.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(warehouse.packed.load(Relaxed), 103);
}

/// Stands for the crate under another name; its trait is not the facade's.
mod renamed {
    pub(super) trait FromRef<S> {
        fn from_ref(state: &S) -> Self;
    }
    pub(super) use postrider::{Handling, IntoOutcome, RouteInfo, RouteOptions, handled};
}

#[derive(FromRef)]
#[from_ref(crate = "renamed")]
struct App {
    total: Total,
    #[from_ref(skip)]
    _secret: String,
}

#[handler(crate = "renamed", channel = "in", group = "seven")]
async fn seven(_info: Info) {}

#[test]
fn under_another_name_the_traits_are_that_ones() {
    let app = App { total: Total::default(), _secret: String::new() };
    app.total.0.store(7, Relaxed);
    let total = <Total as renamed::FromRef<App>>::from_ref(&app);
    assert_eq!(total.0.load(Relaxed), 7);
    assert_eq!(options(seven), RouteOptions::new("in", "seven").name("seven"));
}
