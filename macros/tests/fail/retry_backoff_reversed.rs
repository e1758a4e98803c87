#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "billing", retry(attempts = 3, backoff = exponential("30s".."200ms")))]
async fn bill(order: OrderPlaced) {}

fn main() {}
