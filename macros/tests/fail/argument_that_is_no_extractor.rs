#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "billing")]
async fn bill(order: OrderPlaced, count: usize) {}

fn main() {
    let _ = Router::new().route(bill);
}
