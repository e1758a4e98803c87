//! The message that is measured with.

use postrider::Message;
use serde::{Deserialize, Serialize};

/// 256 bytes as JSON.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "customer")]
pub(crate) struct OrderPlaced {
    pub(crate) customer: u64,
    pub(crate) total_cents: u64,
    pub(crate) note: String,
}

/// How many keys the orders have.
const CUSTOMERS: u64 = 1_000;

impl OrderPlaced {
    /// One whose JSON is about 256 bytes long, whatever its number.
    pub(crate) fn template() -> Self {
        Self { customer: 100, total_cents: 10_000_000, note: "n".repeat(207) }
    }

    /// Makes it another customer's.
    pub(crate) fn number(&mut self, number: u64) {
        (self.customer, self.total_cents) = (100 + number % (CUSTOMERS - 100), 10_000_000 + number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_256_bytes_of_json() {
        let mut order = OrderPlaced::template();
        for number in [0, 17, 999_999] {
            order.number(number);
            assert_eq!(serde_json::to_vec(&order).unwrap().len(), 256);
        }
    }
}
