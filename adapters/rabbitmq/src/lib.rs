//! RabbitMQ for postrider: `amqp://host:5672` and `amqps://host:5671`.
//!
//! A channel is a direct exchange with a fanout exchange behind it for what has no slot, a group is one quorum queue for each
//! of its partitions, a key's slot is the routing key. Order per key in the whole group comes from single active consumers.
//! What is declared, and what differs from other brokers, stands in the book's page on RabbitMQ.
//!
//! A queue has no past: a group gets what came since it was declared, wherever it asks to start. A member keeps its partitions as
//! long as its connection lives, so a subscription's `claim_timeout` changes nothing here; see
//! [`RabbitmqConfig::heartbeat`] and [`RabbitmqConfig::consumer_timeout`].

mod broker;
mod config;
mod confirms;
mod connection;
mod connector;
mod convert;
mod driver;
mod error;
mod field;
mod flight;
mod foreign;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod inventory;
mod ledger;
mod letters;
mod members;
mod naming;
mod partition;
mod publisher;
mod settle;
mod shared;
mod strikes;
mod subscriber;
mod topology;

pub use broker::RabbitmqBroker;
pub use config::{DeclareMode, OnUnknown, QueueType, RabbitmqConfig};
pub use connector::RabbitmqConnector;
pub use inventory::{ListedQueue, Listing};
pub use letters::RabbitmqLetters;
pub use naming::{Naming, Role};
pub use subscriber::RabbitmqSubscription;
