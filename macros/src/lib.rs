//! The macros of postrider: `#[handler]`, `#[handlers]`, `#[derive(Message)]`, `#[derive(FromRef)]`.
//!
//! They are thin: each parses, collects every mistake, and calls the public builder. Use them through the crate `postrider`.

mod breaker;
mod dead_letters;
mod errors;
mod from_ref;
mod handler;
mod handlers;
mod idempotency;
mod message;
mod names;
mod options;
mod rate;
mod retry;
mod settings;
mod values;

use proc_macro::TokenStream;

/// Makes an async function a route. It stays a function: it can be called, documented and tested as before.
///
/// `channel` and `group` are needed (or `ephemeral` instead of a group); everything else has a default. Each option is the
/// method of the same name of `RouteOptions`:
///
/// | option | value |
/// |---|---|
/// | `channel`, `group`, `name`, `publishes` | text |
/// | `ephemeral` | alone, instead of `group` |
/// | `order` | `key`, `partition` or `none` |
/// | `partitions`, `concurrency`, `workers`, `max_in_flight`, `max_in_flight_bytes`, `batch` | whole numbers |
/// | `timeout`, `claim_timeout` | `"250ms"`, `"3s"`, `"5m"` |
/// | `retry` | `never`, or `retry(attempts = 5, backoff = exponential("200ms".."30s"), jitter = full, max_elapsed = "5m", only_if = is_temporary)` |
/// | `breaker` | `classical`, or `breaker(failure_rate = 0.5, window = "10s", min_calls = 20, consecutive = 5, slow(limit = "1s", rate = 0.8), open_for = "30s", probes = 3, timeout = "3s")` |
/// | `rate` | `rate(limit = 100, per = "1s", burst = 10)` |
/// | `dead_letter` | text, or `none` |
/// | `dead_letter_for` | `dead_letter_for(undecodable = "orders.broken", expired = "orders.late")` |
/// | `idempotency` | `auto` or `business`, or `idempotency(key = auto, ttl = "7d")` |
/// | `on_expired` | `dead_letter` or `drop` |
/// | `on_gap` | `continue` or `stop` |
/// | `start` | `earliest` or `latest` |
/// | `native` | `native("name" = "value")` |
///
/// ```
/// use postrider::prelude::*;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Message, Serialize, Deserialize)]
/// # #[message(name = "order.placed")]
/// # struct OrderPlaced { order_id: String }
/// #[handler(channel = "orders", group = "billing", timeout = "3s", retry(attempts = 3, backoff = fixed("1s")))]
/// async fn bill(order: OrderPlaced) -> Result<(), HandlerError> {
///     println!("{}", order.order_id);
///     Ok(())
/// }
/// let router = Router::new().route(bill);
/// # let _ = router;
/// ```
#[proc_macro_attribute]
pub fn handler(options: TokenStream, item: TokenStream) -> TokenStream {
    handler::expand(options.into(), &item.into()).into()
}

/// Makes the `#[handler]` methods of an impl block routes whose state is `self`, and adds `fn routes(self: Arc<Self>) -> Router`.
/// The methods stay callable; methods without `#[handler]` stay as they are.
///
/// A second impl block of the same type gives its method another name: `#[handlers(routes = more_routes)]`. Both make one router
/// by `Router::merge`.
///
/// ```
/// use std::sync::Arc;
/// use postrider::prelude::*;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Message, Serialize, Deserialize)]
/// # #[message(name = "order.placed")]
/// # struct OrderPlaced { order_id: String }
/// struct Billing;
/// #[handlers]
/// impl Billing {
///     #[handler(channel = "orders", group = "billing")]
///     async fn bill(&self, order: OrderPlaced) {
///         println!("{}", order.order_id);
///     }
/// }
/// let router = Arc::new(Billing).routes();
/// # let _ = router;
/// ```
#[proc_macro_attribute]
pub fn handlers(options: TokenStream, item: TokenStream) -> TokenStream {
    handlers::expand(&options.into(), &item.into()).into()
}

/// Makes a type a message: `#[message(name = "order.placed", version = 1, key = "order_id", idempotency = "payment_id")]`.
///
/// `name` is needed; it is what stands on the wire, so it doesn't follow the type's Rust name. `version` is 1 unless said.
/// `key` and `idempotency` name fields, also nested ones (`customer.id`). `codec` names a type that implements `Codec`, JSON
/// unless said. Where the crate has another name, `crate = "name"` says it, here and in `#[handler(…)]`.
///
/// ```
/// use postrider::Message as _;
/// # use serde::{Deserialize, Serialize};
/// #[derive(postrider::Message, Serialize, Deserialize)]
/// #[message(name = "order.placed", version = 2, key = "order_id")]
/// struct OrderPlaced { order_id: u64 }
/// assert_eq!(OrderPlaced::NAME, "order.placed");
/// assert_eq!(OrderPlaced { order_id: 7 }.key(), Some("7".into()));
/// ```
#[proc_macro_derive(Message, attributes(message))]
pub fn message(item: TokenStream) -> TokenStream {
    message::expand(item.into()).into()
}

/// Lets handlers take each field of a state by itself: `State<Db>` from a state that has a field of type `Db`.
/// A field with `#[from_ref(skip)]` stays inside. Where the crate has another name, `#[from_ref(crate = "name")]` on the type says it.
///
/// ```
/// use postrider::prelude::*;
/// #[derive(Clone)] struct Db;
/// #[derive(Clone, FromRef)]
/// struct App { db: Db, #[from_ref(skip)] secret: String }
/// # let _ = Router::with_state(App { db: Db, secret: String::new() });
/// ```
#[proc_macro_derive(FromRef, attributes(from_ref))]
pub fn from_ref(item: TokenStream) -> TokenStream {
    from_ref::expand(item.into()).into()
}
