//! The messages that are measured with.

use postrider::Message;
use serde::{Deserialize, Serialize};

/// How many keys the orders have, unless others are asked for; and the first key.
pub(crate) const CUSTOMERS: u64 = 10_000;
/// Where numbers begin, so that all have as many digits.
const FIRST: u64 = 1_000_000_000_000_000;

/// An order; its JSON is as long as asked for.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "customer")]
pub(crate) struct OrderPlaced {
    pub(crate) customer: u64,
    /// Its number in the run, or when it was sent.
    serial: u64,
    pub(crate) note: String,
    /// Of those that are made one after the other: among how many customers they are.
    #[serde(skip)]
    customers: u64,
}

/// What a transforming handler makes of an order; as long as the order.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "invoice", version = 1, key = "customer")]
pub(crate) struct Invoiced {
    customer: u64,
    serial: u64,
    note: String,
}

impl OrderPlaced {
    /// One whose JSON has that many bytes, whatever its number.
    pub(crate) fn template(bytes: usize) -> Self {
        let bare = Self { customer: CUSTOMERS, serial: FIRST, note: String::new(), customers: CUSTOMERS };
        let length = serde_json::to_vec(&bare).map_or(0, |json| json.len());
        Self { note: "n".repeat(bytes.saturating_sub(length)), ..bare }
    }

    /// From now on they are of so many customers.
    pub(crate) fn among(self, customers: u64) -> Self {
        Self { customers, ..self }
    }

    /// Makes it the order of that number, of one customer of many.
    pub(crate) fn number(&mut self, number: u64) {
        self.numbered(number, self.customers);
    }

    /// Makes it the order of that number, of one customer among so many, 90,000 at most where its length is to stay.
    pub(crate) fn numbered(&mut self, number: u64, customers: u64) {
        (self.customer, self.serial) = (CUSTOMERS + number % customers, FIRST + number);
    }

    /// Makes it the order of that number, of that customer.
    pub(crate) fn of_customer(&mut self, number: u64, customer: u64) {
        (self.customer, self.serial) = (customer, FIRST + number);
    }

    /// Its number in the run.
    pub(crate) fn serial(&self) -> u64 {
        self.serial - FIRST
    }

    /// The key as it goes on the wire.
    pub(crate) fn key(&self) -> String {
        self.customer.to_string()
    }

    /// As a transforming handler does it.
    pub(crate) fn invoice(self) -> Invoiced {
        Invoiced { customer: self.customer, serial: self.serial, note: self.note }
    }
}

impl Invoiced {
    /// The key as it goes on the wire.
    pub(crate) fn key(&self) -> String {
        self.customer.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_asked_for() {
        for bytes in [256, 4096] {
            let mut order = OrderPlaced::template(bytes);
            for number in [0, 17, 9_999_999] {
                order.number(number);
                assert_eq!(serde_json::to_vec(&order).unwrap().len(), bytes);
                assert_eq!(order.serial(), number);
            }
        }
    }
}
