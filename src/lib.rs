//! One way to write message handlers over Kafka, RabbitMQ, NATS and an embedded broker, with the same promises on each.
//!
//! ```
//! use std::time::Duration;
//!
//! use postrider::prelude::*;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Message, Serialize, Deserialize)]
//! #[message(name = "order.placed", version = 1, key = "order_id")]
//! struct OrderPlaced {
//!     order_id: String,
//!     total_cents: u64,
//! }
//!
//! #[handler(channel = "orders", group = "billing")]
//! async fn bill(order: OrderPlaced) {
//!     println!("{} owes {} cents", order.order_id, order.total_cents);
//! }
//!
//! #[tokio::main]
//! async fn main() -> postrider::Result<()> {
//!     let broker = postrider::connect("memory:").await?;
//!     let service = Router::new().route(bill).start(&broker).await?;
//!     broker.publish("orders", &OrderPlaced { order_id: "o-1".into(), total_cents: 1999 }).await?;
//!     service.idle().await;
//!     service.stop(Duration::from_secs(30)).await?;
//!     Ok(())
//! }
//! ```
//!
//! Features choose the brokers that are compiled in (`memory`, on by default, `nats`, `kafka` and `rabbitmq`); the scheme of the URL chooses
//! among those at run time. What is promised on each broker stands in the book, under `docs/`.

mod connect;
mod run;

pub use connect::{connect, connect_from_env, connect_from_env_or, registry};
pub use postrider_core::*;
pub use postrider_macros::{FromRef, Message, handler, handlers};
pub use run::RunExt;

#[cfg(feature = "kafka")]
pub use postrider_kafka as kafka;
#[cfg(feature = "memory")]
pub use postrider_memory as memory;
#[cfg(feature = "nats")]
pub use postrider_nats as nats;
#[cfg(feature = "rabbitmq")]
pub use postrider_rabbitmq as rabbitmq;
#[cfg(feature = "redb")]
pub use postrider_redb as redb;

/// What a program with handlers needs, in one import.
pub mod prelude {
    pub use postrider_core::{
        Attempt, Batch, Broker, Classify, DeadLetter, Envelope, HandlerError, Message, Meta, Publish,
        Publisher, PublisherExt, Router, State, Stop,
    };
    pub use postrider_macros::{FromRef, Message, handler, handlers};

    pub use crate::RunExt;
}

/// What the macros' output refers to. Not for programs: it changes without notice.
#[doc(hidden)]
pub mod __private {
    pub use postrider_core::*;
}
