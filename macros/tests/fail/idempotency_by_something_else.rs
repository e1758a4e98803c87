#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "billing", idempotency = order_id)]
async fn bill(order: OrderPlaced) {}

#[handler(channel = "orders", group = "shipping", idempotency(key = "auto", tll = "7d"))]
async fn ship(order: OrderPlaced) {}

#[handler(channel = "orders", ephemeral, idempotency(ttl = "0s"))]
async fn show(order: OrderPlaced) {}

fn main() {}
