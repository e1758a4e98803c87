//! NATS JetStream for postrider: `nats://host:4222`.
//!
//! A channel is a stream, a group is one durable pull consumer for each of its partitions, a key's slot is a token of the
//! subject. Order per key in the whole group comes from pinned consumers (NATS 2.11 and newer). What is declared, and what
//! differs from other brokers, stands in the book's page on NATS.

mod acks;
mod broker;
mod config;
mod connection;
mod connector;
mod convert;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod inventory;
mod letters;
mod members;
mod naming;
mod partition;
mod publisher;
mod pull;
mod settle;
mod shared;
mod strikes;
mod subscriber;
mod teller;
mod topology;

pub use broker::NatsBroker;
pub use config::{DeclareMode, NatsConfig, OnUnknown};
pub use connector::NatsConnector;
pub use letters::NatsLetters;
pub use naming::Naming;
pub use subscriber::NatsSubscription;
