use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced {
    order_id: String,
}

#[handler(channel = "orders", group = "billing", dead_letter = "none")]
async fn bill(_order: OrderPlaced) {}

#[handler(channel = "orders", group = "audit", dead_letter = "None")]
async fn audit(_order: OrderPlaced) {}

#[handler(channel = "orders", group = "log", dead_letter_for(undecodable = "none"))]
async fn log(_order: OrderPlaced) {}

fn main() {}
