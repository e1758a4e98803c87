//! The message of the run.

use postrider::Message;
use serde::{Deserialize, Serialize};

use crate::history::Id;

/// The `number`-th order of a customer, about 256 bytes as JSON.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "customer")]
pub(crate) struct OrderPlaced {
    customer: String,
    key: u32,
    number: u32,
    note: String,
}

impl OrderPlaced {
    pub(crate) fn new(id: Id) -> Self {
        Self {
            customer: format!("customer-{}", id.key),
            key: id.key,
            number: id.number,
            note: "x".repeat(190),
        }
    }

    pub(crate) fn id(&self) -> Id {
        Id { key: self.key, number: self.number }
    }

    /// In the case `abort`: three that end the process.
    pub(crate) fn is_deadly(&self) -> bool {
        self.key % 400 == 7 && self.number == 3
    }

    /// In the cases `poison` and `dlq-down`: one in a hundred never succeeds.
    pub(crate) fn is_poison(&self) -> bool {
        (u64::from(self.key) * 31 + u64::from(self.number) * 17).is_multiple_of(100)
    }
}
