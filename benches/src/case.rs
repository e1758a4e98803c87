//! What can be measured, on what, and of whom.

use clap::ValueEnum;
use serde::Serialize;

/// A broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Memory,
    Nats,
    Kafka,
    Rabbitmq,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// One at a time, each confirmed before the next
    PublishOne,
    /// Pipelined, all confirmed
    Publish,
    /// Pipelined in batches of 500, each confirmed before the next
    PublishAll,
    /// A handler that decodes; acknowledged
    Consume,
    /// The same in the order of 10,000 keys
    ConsumeKeyed,
    /// A handler of batches
    ConsumeBatch,
    /// A handler whose output is published and confirmed before its input is acknowledged
    Transform,
    /// From sending to handling, at half the rate that is possible
    Latency,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// A service on postrider
    Postrider,
    /// The loop that the client's documentation shows
    Usual,
    /// The fastest honest loop on the client's public interface
    Best,
    /// The fastest loop that sends bodies alone, or looks at nothing but bodies
    Bare,
    /// The same with 256 messages in flight: what it is held against on Kafka
    Narrow,
}

/// How a case moves messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Only to the broker.
    In,
    /// Only from it.
    Out,
    /// Both, in one process.
    Through,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Nats, Self::Kafka, Self::Rabbitmq];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Nats => "nats",
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
        }
    }

    /// The variable that says where it is; the embedded one is in the process.
    pub(crate) fn variable(self) -> Option<&'static str> {
        match self {
            Self::Memory => None,
            Self::Nats => Some("POSTRIDER_TEST_NATS_URL"),
            Self::Kafka => Some("POSTRIDER_TEST_KAFKA_URL"),
            Self::Rabbitmq => Some("POSTRIDER_TEST_RABBITMQ_URL"),
        }
    }

    /// Whether what was read stays, so that a new group reads it again.
    pub(crate) fn keeps(self) -> bool {
        matches!(self, Self::Nats | Self::Kafka)
    }
}

impl Case {
    pub(crate) const ALL: [Self; 8] = [
        Self::PublishOne,
        Self::Publish,
        Self::PublishAll,
        Self::Consume,
        Self::ConsumeKeyed,
        Self::ConsumeBatch,
        Self::Transform,
        Self::Latency,
    ];
    /// Those of a quick run.
    pub(crate) const QUICK: [Self; 5] =
        [Self::PublishOne, Self::Publish, Self::Consume, Self::ConsumeKeyed, Self::ConsumeBatch];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PublishOne => "publish-one",
            Self::Publish => "publish",
            Self::PublishAll => "publish-all",
            Self::Consume => "consume",
            Self::ConsumeKeyed => "consume-keyed",
            Self::ConsumeBatch => "consume-batch",
            Self::Transform => "transform",
            Self::Latency => "latency",
        }
    }

    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::PublishOne | Self::Publish | Self::PublishAll => Direction::In,
            Self::Consume | Self::ConsumeKeyed | Self::ConsumeBatch | Self::Transform => Direction::Out,
            Self::Latency => Direction::Through,
        }
    }

    /// Into how many partitions the group is split: order among many needs them, and only that.
    pub(crate) fn partitions(self) -> u32 {
        if self == Self::ConsumeKeyed { 8 } else { 1 }
    }

    /// What postrider's rate is to be of the best's.
    pub(crate) fn target(self, kind: Kind) -> f64 {
        match (kind, self) {
            (Kind::Memory, _) => 0.70,
            (_, Self::PublishOne) => 0.97,
            (_, Self::ConsumeBatch) => 1.0,
            _ => 0.95,
        }
    }

    /// How many handlers of postrider may run at once; null where none runs.
    pub(crate) fn concurrency(self) -> Option<usize> {
        (self.direction() != Direction::In).then_some(64)
    }
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postrider => "postrider",
            Self::Usual => "usual",
            Self::Best => "best",
            Self::Bare => "bare",
            Self::Narrow => "narrow",
        }
    }
}
