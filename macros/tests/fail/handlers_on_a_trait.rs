#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

struct Billing;

trait Bills {
    async fn bill(&self, order: OrderPlaced);
}

#[handlers]
impl Bills for Billing {
    #[handler(channel = "orders", group = "billing")]
    async fn bill(&self, order: OrderPlaced) {}
}

fn main() {}
