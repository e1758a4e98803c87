#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "billing", retry(attempts = 3, durable))]
async fn bill(order: OrderPlaced) {}

#[handler(channel = "orders", group = "shipping", order = none, retry(durable = true))]
async fn ship(order: OrderPlaced) {}

fn main() {}
