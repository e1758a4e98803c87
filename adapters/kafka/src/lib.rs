//! Apache Kafka for postrider: `kafka://host:9092,host2`.
//!
//! A channel is a topic, a group is a consumer group `channel--group`, a key's place is the partition that Kafka's own Java
//! producers choose for it. The group's place is the watermark below which everything is settled; what is settled above it is
//! written beside it, so that a restart delivers only what is open. What is declared, and what differs from other brokers,
//! stands in the book's page on Kafka.

mod ahead;
mod broker;
mod closed;
mod committer;
mod compaction;
mod config;
mod confirms;
mod connection;
mod connector;
mod convert;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod inventory;
mod letters;
mod mark;
mod member;
mod members;
mod naming;
mod partition;
mod partitioner;
mod patience;
mod positions;
mod properties;
mod publisher;
mod reader;
mod rebalance;
mod scan;
mod settle;
mod shared;
mod source;
mod subscriber;
mod topics;
mod topology;
mod watermark;

pub use broker::KafkaBroker;
pub use config::{DeclareMode, GroupProtocol, KafkaConfig, SaslMechanism};
pub use connector::KafkaConnector;
pub use letters::KafkaLetters;
pub use naming::Naming;
pub use subscriber::KafkaSubscription;
